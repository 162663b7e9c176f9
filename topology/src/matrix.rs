//! Round-trip times between regions: read from tables, small JSON matrices or a live mesh, checked
//! like a program is by its compiler.

mod builtin;
mod check;
mod read;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

pub use builtin::{BUILTIN_NAMES, DEFAULT_REGIONS, builtin, default_regions};
pub use check::ASYMMETRY_ALLOWED;
pub use read::{parse, parse_csv, parse_json};

use crate::diagnostic::{Code, Diagnostic, nearest};
use crate::latency::{Distribution, Measured};

/// Most regions in one matrix: enough for every cloud of today together.
pub const REGIONS_MAX: usize = 512;

/// The 99th percentile assumed where only the median is known, as a multiple of it.
///
/// Public tables give no packet-level tail between regions. An hour of pings has a maximum over
/// the mean of 1.01 to 1.07 for nine pairs of ten (AWS 2020), and scenario figures in use lie at
/// 1.06 to 1.07.
pub const ASSUMED_P99_OVER_P50: f64 = 1.06;

/// Round-trip times between named regions. A direction may be missing; the other one holds then.
#[derive(Clone, Debug, Default)]
pub struct Matrix {
    regions: Vec<String>,
    index: HashMap<String, usize>,
    cells: BTreeMap<(usize, usize), RoundTrip>,
}

/// What is known of the round trip from one region to another, ms.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundTrip {
    /// The median (or, where a source gives nothing else, the mean).
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: Option<f64>,
    /// The measured distribution.
    pub measured: Option<Arc<Measured>>,
}

impl RoundTrip {
    /// A round trip of which only the median is known.
    pub fn median(p50_ms: f64) -> Self {
        RoundTrip { p50_ms, p99_ms: None, measured: None }
    }

    /// The p99, or the one assumed for this median.
    pub fn p99_or_assumed_ms(&self) -> f64 {
        self.p99_ms.unwrap_or(self.p50_ms * ASSUMED_P99_OVER_P50)
    }

    /// The measured distribution, or a log-normal above a floor of `shift` times the median.
    pub fn distribution(&self, shift: f64) -> Distribution {
        match &self.measured {
            Some(measured) => Distribution::Measured(Arc::clone(measured)),
            None => Distribution::from_percentiles(self.p50_ms, self.p99_or_assumed_ms(), shift),
        }
    }

    /// Both directions averaged.
    fn averaged(&self, back: &RoundTrip) -> RoundTrip {
        RoundTrip {
            p50_ms: (self.p50_ms + back.p50_ms) / 2.0,
            p99_ms: match (self.p99_ms, back.p99_ms) {
                (Some(there), Some(back)) => Some((there + back) / 2.0),
                (one, other) => one.or(other),
            },
            measured: self.measured.clone().or_else(|| back.measured.clone()),
        }
    }
}

impl Matrix {
    /// The regions in the order of their first mention.
    pub fn regions(&self) -> &[String] {
        &self.regions
    }

    /// Whether there is no round trip at all.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The round trip between two regions: the mean of both directions, or the one that is known.
    pub fn round_trip(&self, a: &str, b: &str) -> Option<RoundTrip> {
        match (self.direction(a, b), self.direction(b, a)) {
            (Some(there), Some(back)) => Some(there.averaged(back)),
            (one, other) => one.or(other).cloned(),
        }
    }

    /// The round trip as measured from `from`.
    pub fn direction(&self, from: &str, to: &str) -> Option<&RoundTrip> {
        self.cells.get(&(*self.index.get(from)?, *self.index.get(to)?))
    }

    /// Sets one direction; a time that is not a positive number is refused with a finding.
    pub fn set(
        &mut self,
        from: &str,
        to: &str,
        round_trip: RoundTrip,
        place: &str,
        diagnostics: &mut Vec<Diagnostic>,
    ) {
        if let Err(finding) = check::round_trip(from, to, &round_trip, place) {
            diagnostics.push(finding);
            return;
        }
        let (Some(from_index), Some(to_index)) = (self.intern(from), self.intern(to)) else {
            diagnostics.push(Diagnostic::new(
                Code::TooLarge,
                place,
                format!("more than {REGIONS_MAX} regions"),
            ));
            return;
        };
        if self.cells.insert((from_index, to_index), round_trip).is_some() {
            diagnostics.push(
                Diagnostic::new(Code::Conflict, place, format!("{from} to {to} is given twice"))
                    .suggest("the later figure is used; remove the other"),
            );
        }
    }

    /// The given regions only. An item is a region of the matrix, or `name=region` to call it
    /// otherwise. Unknown regions are refused with the nearest known name.
    pub fn select(&self, items: &[String]) -> Result<Matrix, Vec<Diagnostic>> {
        let unknown: Vec<Diagnostic> = items
            .iter()
            .map(|item| name_and_source(item).1)
            .filter(|source| !self.index.contains_key(*source))
            .map(|source| self.unknown_region(source))
            .collect();
        if unknown.is_empty() { Ok(self.restrict(items)) } else { Err(unknown) }
    }

    /// What there is of the given regions, called as in [`Matrix::select`].
    pub fn restrict(&self, items: &[String]) -> Matrix {
        let mut restricted = Matrix::default();
        for (name, source) in items.iter().map(|item| name_and_source(item)) {
            if self.index.contains_key(source) {
                restricted.intern(name);
            }
            for (other, other_source) in items.iter().map(|item| name_and_source(item)) {
                if let Some(round_trip) = self.direction(source, other_source)
                    && let (Some(from), Some(to)) = (restricted.intern(name), restricted.intern(other))
                {
                    restricted.cells.insert((from, to), round_trip.clone());
                }
            }
        }
        restricted
    }

    /// Takes over every round trip of `other`, which wins where both have one.
    pub fn overlay(&mut self, other: &Matrix) {
        for ((from, to), round_trip) in &other.cells {
            let indices = (self.intern(&other.regions[*from]), self.intern(&other.regions[*to]));
            if let (Some(from), Some(to)) = indices {
                self.cells.insert((from, to), round_trip.clone());
            }
        }
    }

    fn unknown_region(&self, name: &str) -> Diagnostic {
        let finding = Diagnostic::new(
            Code::UnknownRegion,
            "regions",
            format!("{name} is not among the {} regions of the matrix", self.regions.len()),
        );
        match nearest(name, self.regions.iter().map(String::as_str)) {
            Some(known) => finding.suggest(format!("did you mean {known}?")),
            None => finding,
        }
    }

    /// The region's index, made on first mention; `None` when the matrix is full.
    fn intern(&mut self, name: &str) -> Option<usize> {
        if let Some(index) = self.index.get(name) {
            return Some(*index);
        }
        if self.regions.len() >= REGIONS_MAX {
            return None;
        }
        self.regions.push(name.to_owned());
        self.index.insert(name.to_owned(), self.regions.len() - 1);
        Some(self.regions.len() - 1)
    }
}

/// `name=region` taken apart; a plain region is its own name.
pub fn name_and_source(item: &str) -> (&str, &str) {
    item.split_once('=').unwrap_or((item, item))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Matrix {
        let mut matrix = Matrix::default();
        let mut findings = Vec::new();
        matrix.set("a", "b", RoundTrip::median(10.0), "t", &mut findings);
        matrix.set(
            "b",
            "a",
            RoundTrip { p50_ms: 12.0, p99_ms: Some(13.0), measured: None },
            "t",
            &mut findings,
        );
        assert_eq!(findings, []);
        matrix
    }

    #[test]
    fn directions_are_averaged() {
        let round_trip = two().round_trip("b", "a").unwrap();
        assert_eq!((round_trip.p50_ms, round_trip.p99_ms), (11.0, Some(13.0)));
    }

    #[test]
    fn one_direction_holds_for_both() {
        let mut matrix = Matrix::default();
        matrix.set("a", "b", RoundTrip::median(10.0), "t", &mut Vec::new());
        assert_eq!(matrix.round_trip("b", "a"), Some(RoundTrip::median(10.0)));
    }

    #[test]
    fn a_selection_may_rename() {
        let selection = two().select(&["near=a".into(), "b".into()]).unwrap();
        assert_eq!(selection.regions(), ["near", "b"]);
        assert_eq!(selection.round_trip("near", "b").unwrap().p50_ms, 11.0);
        let refused = two().select(&["c".into()]).unwrap_err();
        assert_eq!(refused[0].code, Code::UnknownRegion);
    }

    #[test]
    fn the_matrix_is_bounded() {
        let mut matrix = Matrix::default();
        let mut findings = Vec::new();
        for i in 0..REGIONS_MAX {
            matrix.set("hub", &format!("r{i}"), RoundTrip::median(1.0), "t", &mut findings);
        }
        assert_eq!(findings[0].code, Code::TooLarge);
        assert_eq!(matrix.regions().len(), REGIONS_MAX);
    }
}
