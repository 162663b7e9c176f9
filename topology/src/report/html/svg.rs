//! Drawings as inline SVG: shapes with classes, so that one style sheet serves screen and print.

use std::fmt::{self, Write as _};

/// A drawing of a fixed size in its own units; the page scales it.
pub(super) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

impl Svg {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Svg { width, height, body: String::new() }
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.add(format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" class=\"{class}\"/>"
        ));
    }

    pub(super) fn circle(&mut self, center: (f64, f64), radius: f64, class: &str) {
        let (x, y) = center;
        self.add(format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\" class=\"{class}\"/>"));
    }

    pub(super) fn rect(&mut self, corner: (f64, f64), size: (f64, f64), class: &str) {
        let ((x, y), (width, height)) = (corner, size);
        let width = width.max(0.0);
        self.add(format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" class=\"{class}\"/>"
        ));
    }

    pub(super) fn polygon(&mut self, points: &[(f64, f64)], class: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.add(format_args!("<polygon points=\"{}\" class=\"{class}\"/>", points.join(" ")));
    }

    /// Classes may say `middle` or `end` for the anchor.
    pub(super) fn text(&mut self, at: (f64, f64), class: &str, text: &str) {
        let (x, y) = at;
        let text = Escaped(text);
        self.add(format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{text}</text>"));
    }

    /// The element; `label` is what a reader hears who does not see it.
    pub(super) fn finish(self, label: &str) -> String {
        format!(
            "<svg viewBox=\"0 0 {:.0} {:.0}\" role=\"img\" aria-label=\"{}\">\n{}</svg>\n",
            self.width,
            self.height,
            Escaped(label),
            self.body
        )
    }

    fn add(&mut self, element: fmt::Arguments<'_>) {
        // Writing to a string can't fail.
        let _ = writeln!(self.body, "{element}");
    }
}

/// Text as it may stand in a page.
pub(super) struct Escaped<'t>(pub(super) &'t str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// A linear scale from figures to units of the drawing.
pub(super) struct Scale {
    pub(super) from: (f64, f64),
    pub(super) to: (f64, f64),
}

impl Scale {
    pub(super) fn at(&self, value: f64) -> f64 {
        let ((low, high), (start, end)) = (self.from, self.to);
        let span = high - low;
        if span.abs() < f64::EPSILON {
            0.5 * (start + end)
        } else {
            start + (value - low) / span * (end - start)
        }
    }

    /// Round figures within the scale, about `count` of them.
    pub(super) fn ticks(&self, count: usize) -> Vec<f64> {
        let (low, high) = self.from;
        let rough = (high - low) / count.max(1) as f64;
        if !(rough > 0.0 && rough.is_finite()) {
            return vec![low];
        }
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * power);
        let first = (low / step).ceil() as i64;
        (first..=(high / step).floor() as i64).map(|i| i as f64 * step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        assert_eq!(Escaped("<a href='x'>&\"").to_string(), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;");
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let scale = Scale { from: (63.0, 212.0), to: (0.0, 100.0) };
        assert_eq!(scale.ticks(5), [100.0, 150.0, 200.0]);
        assert_eq!(scale.at(63.0), 0.0);
        assert_eq!(Scale { from: (5.0, 5.0), to: (0.0, 10.0) }.ticks(4), [5.0]);
        assert_eq!(Scale { from: (5.0, 5.0), to: (0.0, 10.0) }.at(5.0), 5.0);
    }
}
