//! Where in a text a finding's place is: line, column and the words to underline.

use std::collections::HashMap;
use std::ops::Range;

use toml_edit::{ImDocument, Item, Value as TomlValue};

use crate::diagnostic::{At, Code, Diagnostic};

/// A text that was read, and where its keys are.
pub struct Source<'t> {
    name: &'t str,
    text: &'t str,
    /// Key path with dots, and the bytes of the key and of its value.
    spans: HashMap<String, Spans>,
}

#[derive(Clone, Debug, Default)]
struct Spans {
    key: Range<usize>,
    value: Range<usize>,
}

impl<'t> Source<'t> {
    /// A scenario, JSON or TOML, called `name` in findings.
    pub fn scenario(name: &'t str, text: &'t str) -> Self {
        let spans = if text.trim_start().starts_with('{') { json_spans(text) } else { toml_spans(text) };
        Source { name, text, spans }
    }

    /// A table, of which findings name the line.
    pub fn table(name: &'t str, text: &'t str) -> Self {
        Source { name, text, spans: HashMap::new() }
    }

    /// Adds line, column and text to every finding whose place this text has.
    pub fn locate(&self, diagnostics: &mut [Diagnostic]) {
        for finding in diagnostics.iter_mut().filter(|finding| finding.at.is_none()) {
            finding.at = self.find(finding).map(Box::new);
        }
    }

    fn find(&self, finding: &Diagnostic) -> Option<At> {
        if let Some(place) = finding.place.strip_prefix("line ") {
            let (line, column) = place.split_once(", column ").unwrap_or((place, ""));
            return self.at_line(line.parse().ok()?, column.parse().ok());
        }
        let key = self.paths(&finding.place).into_iter().find(|path| self.spans.contains_key(path))?;
        let spans = self.spans.get(&key)?;
        let on_key = finding.code == Code::UnknownKey || spans.value.is_empty();
        Some(self.at_bytes(if on_key { spans.key.clone() } else { spans.value.clone() }))
    }

    /// The key itself, a pair `rtt a - b` either way round, or else what holds it.
    fn paths(&self, place: &str) -> Vec<String> {
        let mut paths = Vec::new();
        if let Some((a, b)) = place.strip_prefix("rtt ").and_then(|pair| pair.split_once(" - ")) {
            paths.extend([format!("rtt.{a}.{b}"), format!("rtt.{b}.{a}"), "rtt".to_owned()]);
        }
        let mut path = place;
        paths.push(path.to_owned());
        while let Some((outer, _)) = path.rsplit_once('.') {
            paths.push(outer.to_owned());
            path = outer;
        }
        paths
    }

    /// A place in a line, or all of it.
    fn at_line(&self, line: usize, column: Option<usize>) -> Option<At> {
        let text = self.text.lines().nth(line.checked_sub(1)?)?;
        let start = text.chars().take_while(|c| c.is_whitespace()).count();
        Some(match column {
            Some(column) => self.at(line, column.clamp(1, text.chars().count() + 1), text, 1),
            None => self.at(line, start + 1, text, text.trim().chars().count()),
        })
    }

    fn at_bytes(&self, bytes: Range<usize>) -> At {
        let before = self.text.get(..bytes.start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        let text = self.text[line_start..].lines().next().unwrap_or_default();
        let column = self.text.get(line_start..bytes.start).map_or(0, |head| head.chars().count()) + 1;
        let marked = self.text.get(bytes).unwrap_or_default().lines().next().unwrap_or_default();
        self.at(line, column, text, marked.chars().count())
    }

    fn at(&self, line: usize, column: usize, text: &str, width: usize) -> At {
        At { file: self.name.to_owned(), line, column, text: text.to_owned(), width: width.max(1) }
    }
}

fn toml_spans(text: &str) -> HashMap<String, Spans> {
    let mut spans = HashMap::new();
    if let Ok(document) = ImDocument::parse(text) {
        for (key, item) in document.iter() {
            let span = document.key(key).and_then(|key| key.span()).unwrap_or_default();
            toml_item(key.to_owned(), span, item, &mut spans);
        }
    }
    spans
}

fn toml_item(path: String, key: Range<usize>, item: &Item, spans: &mut HashMap<String, Spans>) {
    let is_header = matches!(item, Item::Table(_) | Item::ArrayOfTables(_));
    let value = if is_header { key.clone() } else { item.span().unwrap_or_default() };
    if let Some(table) = item.as_table_like() {
        for (name, inner) in table.iter() {
            let span = table.key(name).and_then(|key| key.span()).unwrap_or_default();
            toml_item(format!("{path}.{name}"), span, inner, spans);
        }
    }
    if let Item::Value(TomlValue::Array(array)) = item {
        for (i, element) in array.iter().enumerate() {
            let value = element.span().unwrap_or_default();
            spans.insert(format!("{path}[{i}]"), Spans { key: value.clone(), value });
        }
    }
    spans.insert(path, Spans { key, value });
}

/// Of a text that is JSON; of another one as far as it is.
fn json_spans(text: &str) -> HashMap<String, Spans> {
    let mut walk = JsonWalk { bytes: text.as_bytes(), place: 0, spans: HashMap::new() };
    walk.value("", 0..0, 0);
    walk.spans
}

/// Deeper nesting is not followed: scenarios have four levels.
const DEPTH_MAX: usize = 16;

struct JsonWalk<'t> {
    bytes: &'t [u8],
    place: usize,
    spans: HashMap<String, Spans>,
}

impl JsonWalk<'_> {
    fn value(&mut self, path: &str, key: Range<usize>, depth: usize) -> Option<()> {
        self.space();
        let start = self.place;
        match self.bytes.get(start)? {
            b'{' | b'[' if depth >= DEPTH_MAX => return None,
            b'{' => self.members(path, depth)?,
            b'[' => self.elements(path, depth)?,
            b'"' => {
                self.string()?;
            }
            _ => {
                let rest = &self.bytes[start..];
                let ends = |byte: &u8| byte.is_ascii_whitespace() || b",]}".contains(byte);
                self.place += rest.iter().position(ends).unwrap_or(rest.len());
            }
        }
        self.spans.insert(path.to_owned(), Spans { key, value: start..self.place });
        Some(())
    }

    fn members(&mut self, path: &str, depth: usize) -> Option<()> {
        self.place += 1;
        loop {
            self.space();
            match self.bytes.get(self.place)? {
                b'}' => break,
                b',' => self.place += 1,
                _ => {
                    let key = self.string()?;
                    let name = std::str::from_utf8(self.bytes.get(key.start + 1..key.end - 1)?).ok()?;
                    let inner = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                    self.space();
                    self.place += 1;
                    self.value(&inner, key, depth + 1)?;
                }
            }
        }
        self.place += 1;
        Some(())
    }

    fn elements(&mut self, path: &str, depth: usize) -> Option<()> {
        self.place += 1;
        let mut i = 0;
        loop {
            self.space();
            match self.bytes.get(self.place)? {
                b']' => break,
                b',' => self.place += 1,
                _ => {
                    self.value(&format!("{path}[{i}]"), self.place..self.place, depth + 1)?;
                    i += 1;
                }
            }
        }
        self.place += 1;
        Some(())
    }

    /// A string with its quotes.
    fn string(&mut self) -> Option<Range<usize>> {
        let start = self.place;
        (*self.bytes.get(start)? == b'"').then_some(())?;
        self.place += 1;
        loop {
            match self.bytes.get(self.place)? {
                b'\\' => self.place += 2,
                b'"' => break,
                _ => self.place += 1,
            }
        }
        self.place += 1;
        Some(start..self.place)
    }

    fn space(&mut self) {
        while self.bytes.get(self.place).is_some_and(u8::is_ascii_whitespace) {
            self.place += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn underlined(text: &str, code: Code, place: &str) -> Option<(usize, usize, String)> {
        let source = Source::scenario("s", text);
        let mut findings = [Diagnostic::new(code, place, "")];
        source.locate(&mut findings);
        let at = findings[0].at.take()?;
        let marked = at.text.chars().skip(at.column - 1).take(at.width).collect();
        Some((at.line, at.column, marked))
    }

    #[test]
    fn places_are_found_in_toml() {
        let text = "max_voter = 5\nrtt.a = { b = 10 }\n[failure]\nnode_unavail = 2\n[rtt.c]\nd = -1\n";
        let found = |code, place| underlined(text, code, place).unwrap();
        assert_eq!(found(Code::UnknownKey, "max_voter"), (1, 1, "max_voter".to_owned()));
        assert_eq!(found(Code::BadLatency, "rtt b - a"), (2, 15, "10".to_owned()));
        assert_eq!(found(Code::BadValue, "failure.node_unavail"), (4, 16, "2".to_owned()));
        assert_eq!(found(Code::BadLatency, "rtt.c.d"), (6, 5, "-1".to_owned()));
        assert_eq!(underlined(text, Code::BadValue, "designs"), None);
    }

    #[test]
    fn places_are_found_in_json() {
        let text = "{\n \"rtt\": {\"ä\": {\"b\": {\"p50\": 1, \"p9\": 2}}},\n \"witness\": [\"x\", 3]}";
        let found = |code, place| underlined(text, code, place).unwrap();
        assert_eq!(found(Code::UnknownKey, "rtt.ä.b.p9"), (2, 32, "\"p9\"".to_owned()));
        assert_eq!(found(Code::BadValue, "rtt.ä.b.p50"), (2, 29, "1".to_owned()));
        assert_eq!(found(Code::BadValue, "witness[1]"), (3, 19, "3".to_owned()));
        assert_eq!(found(Code::BadValue, "witness").2, "[\"x\", 3]");
    }

    #[test]
    fn half_a_text_has_no_places_to_fall_over() {
        for text in ["{", "{\"a", "{\"a\":", "{\"a\":[1,", "[[[[[[[[[[[[[[[[[[[[", "a = ", "{\"\\"] {
            let _ = underlined(text, Code::BadValue, "a");
            let _ = underlined(text, Code::BadValue, "line 9");
            let _ = underlined(text, Code::Syntax, "line 1, column 99");
        }
    }
}
