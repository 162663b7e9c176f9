//! Distributions of what a server measures, for operators: ZooKeeper's summaries.

use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// The quantiles that are told, with ZooKeeper's names for them.
pub const QUANTILES: [(f64, &str); 4] = [(0.5, "p50"), (0.95, "p95"), (0.99, "p99"), (0.999, "p999")];

/// Two significant digits: values are told with an error of 1 % at most, in some ten kilobytes at most.
const SIGNIFICANT_DIGITS: u8 = 2;

/// Counts values since the start or the last reset. Shared; a lock is held for the time of one addition.
#[derive(Debug, Default)]
pub struct Summary(Mutex<Option<Counted>>);

#[derive(Debug)]
struct Counted {
    histogram: Histogram<u64>,
    sum: u64,
    /// These two exactly, unlike the histogram's.
    min: u64,
    max: u64,
}

/// What a [`Summary`] has counted. All 0 if there was nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distribution {
    /// Number of values.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
    /// The least.
    pub min: u64,
    /// The greatest.
    pub max: u64,
    /// The values at [`QUANTILES`].
    pub quantiles: [u64; QUANTILES.len()],
}

impl Summary {
    /// Counts a value.
    pub fn record(&self, value: u64) {
        self.record_all([(value, 1)]);
    }

    /// Counts values, each so many times.
    pub fn record_all(&self, values: impl IntoIterator<Item = (u64, u64)>) {
        let mut counted = self.0.lock();
        for (value, times) in values.into_iter().filter(|(_, times)| *times > 0) {
            if counted.is_none() {
                *counted = Counted::new();
            }
            let Some(counted) = &mut *counted else { return };
            counted.sum = counted.sum.saturating_add(value.saturating_mul(times));
            counted.min = counted.min.min(value);
            counted.max = counted.max.max(value);
            // It grows to whatever a u64 can be.
            let _ = counted.histogram.record_n(value, times);
        }
    }

    /// What has been counted.
    pub fn distribution(&self) -> Distribution {
        let counted = self.0.lock();
        let Some(Counted { histogram, sum, min, max }) = &*counted else { return Distribution::default() };
        Distribution {
            count: histogram.len(),
            sum: *sum,
            min: *min,
            max: *max,
            quantiles: QUANTILES.map(|(quantile, _)| histogram.value_at_quantile(quantile)),
        }
    }

    /// Starts counting anew.
    pub fn reset(&self) {
        *self.0.lock() = None;
    }
}

impl Counted {
    fn new() -> Option<Self> {
        // The number of digits is one of those that it takes.
        let histogram = Histogram::new(SIGNIFICANT_DIGITS).ok()?;
        Some(Self { histogram, sum: 0, min: u64::MAX, max: 0 })
    }
}

impl Distribution {
    /// The mean, 0 if there was nothing.
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_until_a_reset() {
        let summary = Summary::default();
        assert_eq!(summary.distribution(), Distribution::default());
        summary.record_all((1..=1000).map(|value| (value, 1)));
        summary.record_all([(7, 0), (u64::MAX / 4, 1)]);
        let Distribution { count, min, quantiles: [p50, p95, _, _], .. } = summary.distribution();
        assert_eq!((count, min), (1001, 1));
        assert!((495..=505).contains(&p50) && (940..=960).contains(&p95), "{p50} {p95}");
        summary.reset();
        summary.record(3);
        let counted = Distribution { count: 1, sum: 3, min: 3, max: 3, quantiles: [3; 4] };
        assert_eq!((summary.distribution(), counted.mean()), (counted, 3.0));
    }
}
