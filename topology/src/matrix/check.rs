//! What is wrong or doubtful about a matrix.

use super::{Matrix, RoundTrip};
use crate::diagnostic::{Code, Diagnostic, nearest};
use crate::latency::TIME_MAX_MS;

/// Difference between the two directions, as a share of the longer, that is still taken for noise:
/// the 99th percentile of public matrices is 8 to 14 %.
pub const ASYMMETRY_ALLOWED: f64 = 0.15;

/// A detour over a third region must be shorter by this share to be reported.
const DETOUR_ALLOWED: f64 = 0.05;

/// A round trip this many times longer than the detour is a fault of measurement, not of routing.
const DETOUR_ABSURD: f64 = 3.0;

impl Matrix {
    /// Findings about the round trips between `regions`: missing and asymmetric pairs, shorter
    /// detours over a third of them.
    pub fn check(&self, regions: &[String]) -> Vec<Diagnostic> {
        let mut diagnostics = Vec::new();
        // A name that is nearly one of the matrix is misspelt; another one has no round trips yet.
        let known_names = || self.regions.iter().map(String::as_str);
        let is_misspelt =
            |name: &String| !self.index.contains_key(name) && nearest(name, known_names()).is_some();
        diagnostics
            .extend(regions.iter().filter(|name| is_misspelt(name)).map(|name| self.unknown_region(name)));
        let known: Vec<&String> = regions.iter().filter(|name| !is_misspelt(name)).collect();
        for (i, a) in known.iter().enumerate() {
            for b in &known[i + 1..] {
                diagnostics.extend(self.check_pair(a, b));
                diagnostics.extend(self.check_detours(a, b, &known));
            }
        }
        diagnostics
    }

    fn check_pair(&self, a: &str, b: &str) -> Option<Diagnostic> {
        let place = format!("rtt {a} - {b}");
        match (self.direction(a, b), self.direction(b, a)) {
            (None, None) => Some(
                Diagnostic::new(Code::MissingPair, place, "no round-trip time in either direction")
                    .suggest(format!(
                        "give rtt.{a}.{b} in the scenario, or a line {a},{b},<ms> in a table, or leave one of them out"
                    )),
            ),
            (Some(there), Some(back)) => {
                let (low, high) = (there.p50_ms.min(back.p50_ms), there.p50_ms.max(back.p50_ms));
                (high - low > ASYMMETRY_ALLOWED * high).then(|| {
                    Diagnostic::new(
                        Code::Asymmetric,
                        place,
                        format!(
                            "{:.1} ms there, {:.1} ms back: {:.0} % apart",
                            there.p50_ms,
                            back.p50_ms,
                            100.0 * (high - low) / high
                        ),
                    )
                    .suggest(format!(
                        "the mean, {:.1} ms, is used; measure the pair again",
                        (low + high) / 2.0
                    ))
                })
            }
            _ => None,
        }
    }

    fn check_detours(&self, a: &str, b: &str, regions: &[&String]) -> Option<Diagnostic> {
        let direct = self.round_trip(a, b)?.p50_ms;
        let (detour, over) = regions
            .iter()
            .filter(|over| over.as_str() != a && over.as_str() != b)
            .filter_map(|over| {
                Some((self.round_trip(a, over)?.p50_ms + self.round_trip(over, b)?.p50_ms, over))
            })
            .min_by(|x, y| x.0.total_cmp(&y.0))?;
        if detour >= (1.0 - DETOUR_ALLOWED) * direct {
            return None;
        }
        let finding = Diagnostic::new(
            Code::Triangle,
            format!("rtt {a} - {b}"),
            format!("{direct:.1} ms direct, but {detour:.1} ms over {over}"),
        );
        Some(if direct >= DETOUR_ABSURD * detour {
            finding.suggest(format!(
                "{:.1} times the detour: surely a fault of this figure; measure it again",
                direct / detour
            ))
        } else {
            finding.suggest("the direct figure is used; ask the provider about the route")
        })
    }
}

/// Refuses a round trip that is not a positive number up to [`TIME_MAX_MS`], or whose tail lies below its median.
pub(super) fn round_trip(from: &str, to: &str, given: &RoundTrip, place: &str) -> Result<(), Diagnostic> {
    let latencies = [Some(given.p50_ms), given.p99_ms];
    if let Some(bad) = latencies.into_iter().flatten().find(|ms| !(*ms > 0.0 && *ms <= TIME_MAX_MS)) {
        return Err(Diagnostic::new(
            Code::BadLatency,
            place,
            format!("{from} to {to}: {bad} ms is not a round-trip time"),
        )
        .suggest("give a number of milliseconds above 0 and up to 60000, or leave the pair out"));
    }
    match given.p99_ms {
        Some(p99_ms) if p99_ms < given.p50_ms => Err(Diagnostic::new(
            Code::TailBelowMedian,
            place,
            format!("{from} to {to}: p99 {p99_ms} ms lies below p50 {} ms", given.p50_ms),
        )
        .suggest("swap the two, or leave the p99 out")),
        _ => Ok(()),
    }
}
