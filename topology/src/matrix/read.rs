//! The three forms that round-trip times come in.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::{Matrix, RoundTrip};
use crate::diagnostic::{Code, Diagnostic};
use crate::latency::{Measured, TIME_MAX_MS};

/// Most rows of a table: the square of [`super::REGIONS_MAX`].
const ROWS_MAX: usize = super::REGIONS_MAX * super::REGIONS_MAX;

/// Samples below which a measured p99 is mostly luck.
const SAMPLES_MIN: u64 = 1000;

/// Reads any of the forms: a text that starts with `{` as [`parse_json`], another as [`parse_csv`].
pub fn parse(text: &str) -> (Matrix, Vec<Diagnostic>) {
    if text.trim_start().starts_with('{') { parse_json(text) } else { parse_csv(text) }
}

/// Reads a table with the columns `from,to,rtt_ms` and, if it has them, `p50` and `p99` (also
/// `p50_ms`, `p99_ms`); lines that start with `#` are comments. Where there is a `p50`, it is
/// used instead of `rtt_ms`.
pub fn parse_csv(text: &str) -> (Matrix, Vec<Diagnostic>) {
    let mut matrix = Matrix::default();
    let mut diagnostics = Vec::new();
    let mut reader = csv::ReaderBuilder::new()
        .comment(Some(b'#'))
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let columns = match reader.headers().map_err(|error| error.to_string()).and_then(Columns::find) {
        Ok(columns) => columns,
        Err(message) => {
            let finding = Diagnostic::new(Code::Syntax, "header", message)
                .suggest("the first line that is no comment must read from,to,rtt_ms[,p50][,p99]");
            return (matrix, vec![finding]);
        }
    };
    for (row, record) in reader.records().enumerate() {
        let record = match record {
            Ok(record) if row < ROWS_MAX => record,
            Ok(_) => {
                diagnostics.push(Diagnostic::new(
                    Code::TooLarge,
                    format!("row {row}"),
                    format!("more than {ROWS_MAX} rows"),
                ));
                break;
            }
            Err(error) => {
                diagnostics.push(Diagnostic::new(
                    Code::Syntax,
                    format!("row {}", row + 1),
                    error.to_string(),
                ));
                break;
            }
        };
        let place = format!("line {}", record.position().map_or(0, |position| position.line()));
        match columns.round_trip(&record) {
            Ok((from, to, round_trip)) => matrix.set(from, to, round_trip, &place, &mut diagnostics),
            Err(message) => diagnostics.push(Diagnostic::new(Code::Syntax, place, message)),
        }
    }
    (matrix, diagnostics)
}

/// Where a table has what.
struct Columns {
    from: usize,
    to: usize,
    p50: usize,
    p99: Option<usize>,
}

impl Columns {
    fn find(header: &csv::StringRecord) -> Result<Columns, String> {
        let position = |names: &[&str]| {
            names.iter().find_map(|name| header.iter().position(|field| field.eq_ignore_ascii_case(name)))
        };
        let required =
            |names: &[&str]| position(names).ok_or_else(|| format!("no column {}", names[names.len() - 1]));
        Ok(Columns {
            from: required(&["from"])?,
            to: required(&["to"])?,
            p50: required(&["p50", "p50_ms", "rtt_ms"])?,
            p99: position(&["p99", "p99_ms"]),
        })
    }

    fn round_trip<'r>(&self, record: &'r csv::StringRecord) -> Result<(&'r str, &'r str, RoundTrip), String> {
        let field = |column: usize| {
            record
                .get(column)
                .filter(|text| !text.is_empty())
                .ok_or_else(|| format!("column {} is empty", column + 1))
        };
        let number = |column: usize| {
            let text = field(column)?;
            text.parse::<f64>().map_err(|_| format!("{text} is not a number of milliseconds"))
        };
        let p99_ms = match self.p99 {
            Some(column) if record.get(column).is_some_and(|text| !text.is_empty()) => Some(number(column)?),
            _ => None,
        };
        let round_trip = RoundTrip { p50_ms: number(self.p50)?, p99_ms, measured: None };
        Ok((field(self.from)?, field(self.to)?, round_trip))
    }
}

/// Reads a small matrix, `{"data": {from: {to: ms}}}`, or what a live mesh answers,
/// `{"rtt": [{"from", "to", "count", "p50_ms", "p99_ms", ..}]}`.
pub fn parse_json(text: &str) -> (Matrix, Vec<Diagnostic>) {
    let refuse = |message: String| {
        let finding = Diagnostic::new(Code::Syntax, "matrix", message)
            .suggest("expected {\"data\": {from: {to: ms}}} or {\"rtt\": [{\"from\", \"to\", \"p50_ms\"}]}");
        (Matrix::default(), vec![finding])
    };
    match serde_json::from_str::<Value>(text) {
        Err(error) => refuse(error.to_string()),
        Ok(value) => match (value.get("data"), value.get("rtt")) {
            (Some(Value::Object(rows)), _) => small_matrix(rows),
            (_, Some(Value::Array(pairs))) => live_matrix(pairs),
            _ => refuse("neither a matrix nor the round-trip times of a mesh".to_owned()),
        },
    }
}

fn small_matrix(rows: &serde_json::Map<String, Value>) -> (Matrix, Vec<Diagnostic>) {
    let mut matrix = Matrix::default();
    let mut diagnostics = Vec::new();
    for (from, row) in rows {
        let Some(row) = row.as_object() else {
            diagnostics.push(Diagnostic::new(Code::Syntax, format!("data.{from}"), "not a table of regions"));
            continue;
        };
        for (to, ms) in row {
            let place = format!("data.{from}.{to}");
            match ms.as_f64() {
                Some(ms) => matrix.set(from, to, RoundTrip::median(ms), &place, &mut diagnostics),
                None => diagnostics.push(Diagnostic::new(
                    Code::BadLatency,
                    place,
                    format!("{ms} is not a number of milliseconds"),
                )),
            }
        }
    }
    (matrix, diagnostics)
}

/// What a mesh has measured between two of its regions.
#[derive(Deserialize)]
struct LivePair {
    from: String,
    to: String,
    #[serde(default)]
    count: Option<u64>,
    min_ms: Option<f64>,
    p50_ms: f64,
    p90_ms: Option<f64>,
    p99_ms: Option<f64>,
    p999_ms: Option<f64>,
    max_ms: Option<f64>,
    histogram: Option<String>,
}

fn live_matrix(pairs: &[Value]) -> (Matrix, Vec<Diagnostic>) {
    let mut matrix = Matrix::default();
    let mut diagnostics = Vec::new();
    for (i, pair) in pairs.iter().take(ROWS_MAX).enumerate() {
        let pair = match LivePair::deserialize(pair) {
            Ok(pair) => pair,
            Err(error) => {
                diagnostics.push(Diagnostic::new(Code::Syntax, format!("rtt[{i}]"), error.to_string()));
                continue;
            }
        };
        let place = format!("rtt {} - {}", pair.from, pair.to);
        if pair.count.is_some_and(|count| count < SAMPLES_MIN) {
            diagnostics.push(
                Diagnostic::new(
                    Code::FewSamples,
                    &place,
                    format!("{} samples say little about the p99", pair.count.unwrap_or(0)),
                )
                .suggest(format!("let the mesh run until it has {SAMPLES_MIN}")),
            );
        }
        let measured = pair.measured(&place, &mut diagnostics);
        let round_trip = RoundTrip { p50_ms: pair.p50_ms, p99_ms: pair.p99_ms, measured };
        matrix.set(&pair.from, &pair.to, round_trip, &place, &mut diagnostics);
    }
    (matrix, diagnostics)
}

impl LivePair {
    /// The histogram, or the distribution through the percentiles.
    fn measured(&self, place: &str, diagnostics: &mut Vec<Diagnostic>) -> Option<Arc<Measured>> {
        let measured = match self.histogram.as_deref().map(Measured::from_histogram) {
            Some(Ok(measured)) if self.agrees(&measured) => Some(measured),
            Some(Ok(_)) => {
                diagnostics.push(
                    Diagnostic::new(Code::BadHistogram, place, "the histogram contradicts its percentiles")
                        .suggest("the percentiles are used; histograms must count microseconds"),
                );
                self.percentiles()
            }
            Some(Err(message)) => {
                diagnostics.push(
                    Diagnostic::new(Code::BadHistogram, place, message).suggest("the percentiles are used"),
                );
                self.percentiles()
            }
            None => self.percentiles(),
        };
        measured.map(Arc::new)
    }

    fn agrees(&self, measured: &Measured) -> bool {
        (measured.quantile(0.5) - self.p50_ms).abs() <= 0.05 * self.p50_ms + 0.05
    }

    fn percentiles(&self) -> Option<Measured> {
        let steps = [
            (0.0, self.min_ms),
            (0.5, Some(self.p50_ms)),
            (0.9, self.p90_ms),
            (0.99, self.p99_ms),
            (0.999, self.p999_ms),
            (1.0, self.max_ms),
        ];
        let points: Option<Vec<(f64, f64)>> = steps
            .into_iter()
            .map(|(p, ms)| ms.filter(|ms| *ms > 0.0).map(|ms| (p, ms.min(TIME_MAX_MS))))
            .collect();
        Measured::new(points?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use hdrhistogram::serialization::{Serializer, V2Serializer};

    fn codes(diagnostics: &[Diagnostic]) -> Vec<Code> {
        diagnostics.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn a_table_may_have_comments_and_percentiles() {
        let (matrix, diagnostics) = parse("# source\nfrom,to,rtt_ms,p50,p99\na,b,11,10,12\nb, a,13,,\n");
        assert_eq!(codes(&diagnostics), [Code::Syntax]);
        let there = matrix.direction("a", "b").unwrap();
        assert_eq!((there.p50_ms, there.p99_ms), (10.0, Some(12.0)));
        assert!(matrix.direction("b", "a").is_none());
    }

    #[test]
    fn bad_figures_are_refused_with_their_line() {
        let text = "from,to,rtt_ms,p99\na,b,-3,\na,c,NaN,\na,d,0,\na,e,5,4\na,f,x,\na,g,5,6\n";
        let (matrix, diagnostics) = parse_csv(text);
        assert_eq!(
            codes(&diagnostics),
            [Code::BadLatency, Code::BadLatency, Code::BadLatency, Code::TailBelowMedian, Code::Syntax]
        );
        assert_eq!(diagnostics[3].place, "line 5");
        assert_eq!(matrix.regions(), ["a", "g"]);
    }

    #[test]
    fn a_table_without_its_columns_is_refused() {
        assert_eq!(codes(&parse_csv("from,rtt\n").1), [Code::Syntax]);
        assert_eq!(codes(&parse_csv("").1), [Code::Syntax]);
        assert_eq!(codes(&parse_json("{\"x\":1}").1), [Code::Syntax]);
        assert_eq!(codes(&parse_json("{").1), [Code::Syntax]);
    }

    fn live(histogram: &str) -> (Matrix, Vec<Diagnostic>) {
        parse(&format!(
            r#"{{"rtt":[{{"from":"a","to":"b","count":5000,"min_ms":60,"p50_ms":62,"p90_ms":63,"p99_ms":66,
                "p999_ms":80,"max_ms":90,"histogram":{histogram}}}]}}"#
        ))
    }

    #[test]
    fn a_live_mesh_gives_its_percentiles() {
        let (matrix, diagnostics) = live("null");
        assert_eq!(diagnostics, []);
        let distribution = matrix.round_trip("a", "b").unwrap().distribution(0.98);
        assert!((distribution.quantile(0.99) - 66.0).abs() < 1e-9);
        assert!((distribution.quantile(0.999) - 80.0).abs() < 1e-9);
    }

    #[test]
    fn a_live_mesh_gives_its_histogram() {
        let mut histogram = hdrhistogram::Histogram::<u64>::new(3).unwrap();
        for i in 0..1000u64 {
            histogram.record(60_000 + 4 * i).unwrap();
        }
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&histogram, &mut bytes).unwrap();
        let (matrix, diagnostics) = live(&format!("\"{}\"", BASE64.encode(&bytes)));
        assert_eq!(diagnostics, []);
        let distribution = matrix.round_trip("a", "b").unwrap().distribution(0.98);
        assert!((distribution.quantile(0.9) - 63.6).abs() < 0.1, "{}", distribution.quantile(0.9));
    }

    #[test]
    fn an_unreadable_histogram_falls_back_to_the_percentiles() {
        for bad in ["\"???\"", "\"AAAA\""] {
            let (matrix, diagnostics) = live(bad);
            assert_eq!(codes(&diagnostics), [Code::BadHistogram], "{bad}");
            assert!(matrix.round_trip("a", "b").unwrap().measured.is_some());
        }
    }
}
