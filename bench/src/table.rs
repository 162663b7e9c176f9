//! Tables in plain text.

use std::fmt;

/// Rows under headings; the first and the last `trailing` columns are flush left, figures flush right.
pub struct Table {
    rows: Vec<Vec<String>>,
    trailing: usize,
}

impl Table {
    /// A table with these headings; the last `trailing` columns hold text.
    pub fn new<S: Into<String>>(headings: impl IntoIterator<Item = S>, trailing: usize) -> Self {
        Self { rows: vec![headings.into_iter().map(Into::into).collect()], trailing }
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths = vec![0; columns];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(widths.iter().copied()).enumerate() {
                if column == 0 || column + self.trailing >= columns {
                    line.push_str(&format!("{cell:<width$}  "));
                } else {
                    line.push_str(&format!("{cell:>width$}  "));
                }
            }
            writeln!(out, "  {}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["what", "ms", "why"], 1);
        table.row(["read", "0.1", "near"]);
        table.row(["global write", "75.0", "far"]);
        let expected = "  what            ms  why\n  read           0.1  near\n  global write  75.0  far\n";
        assert_eq!(table.to_string(), expected);
    }
}
