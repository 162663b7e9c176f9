//! Measured distributions: from histograms, counts or samples.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

/// Longest histogram taken, in base64: a few times what three digits over a minute need.
const HISTOGRAM_BYTES_MAX: usize = 256 * 1024;

/// Most samples or counts taken.
const SAMPLES_MAX: usize = 1_000_000;

/// Histograms of a live mesh count microseconds.
const HISTOGRAM_UNITS_PER_MS: f64 = 1000.0;

/// Longest time taken, ms: a minute is longer than any connection waits.
pub const TIME_MAX_MS: f64 = 60_000.0;

/// Quantiles of a measured histogram, from least to most.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// (probability of at most, time): both increasing.
    points: Vec<(f64, f64)>,
}

impl Measured {
    /// From the steps of a distribution function, sorted by probability. `None` without steps.
    pub fn new(points: Vec<(f64, f64)>) -> Option<Self> {
        let ordered = points.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1);
        (!points.is_empty() && ordered).then_some(Measured { points })
    }

    /// The time that a share `probability` (0..1) of the samples stayed within.
    pub fn quantile(&self, probability: f64) -> f64 {
        let after = self.points.partition_point(|(p, _)| *p < probability);
        let last = self.points.len() - 1;
        let (p1, t1) = self.points[after.min(last)];
        if after == 0 || after > last {
            return t1;
        }
        let (p0, t0) = self.points[after - 1];
        if p1 > p0 { t0 + (t1 - t0) * (probability - p0) / (p1 - p0) } else { t1 }
    }

    pub(super) fn cdf(&self, time_ms: f64) -> f64 {
        let after = self.points.partition_point(|(_, t)| *t <= time_ms);
        if after == 0 {
            return 0.0;
        }
        let (p0, t0) = self.points[after - 1];
        match self.points.get(after) {
            Some((p1, t1)) if *t1 > t0 => p0 + (p1 - p0) * (time_ms - t0) / (t1 - t0),
            Some((p1, _)) => *p1,
            None => 1.0,
        }
    }
}

impl Measured {
    /// From an HdrHistogram that counts microseconds, serialised as V2 and written in base64.
    ///
    /// # Errors
    /// Says what is wrong with the text; it is bounded before it is decoded.
    pub fn from_histogram(text: &str) -> Result<Self, String> {
        if text.len() > HISTOGRAM_BYTES_MAX {
            return Err(format!("the histogram is longer than {HISTOGRAM_BYTES_MAX} bytes"));
        }
        let bytes = BASE64.decode(text).map_err(|error| format!("the histogram is not base64: {error}"))?;
        let histogram: hdrhistogram::Histogram<u64> = hdrhistogram::serialization::Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|error| format!("the histogram is not a V2 one: {error:?}"))?;
        let ms = |us: u64| us as f64 / HISTOGRAM_UNITS_PER_MS;
        let steps: Vec<(f64, u64)> = histogram
            .iter_recorded()
            .map(|step| (ms(step.value_iterated_to()), step.count_at_value()))
            .collect();
        Self::from_steps(ms(histogram.min()), &steps)
    }

    /// From pairs of a time in ms and how often it was seen, in any order.
    ///
    /// # Errors
    /// If there are none, too many, or one is no time.
    pub fn from_counts(counts: &[(f64, u64)]) -> Result<Self, String> {
        if counts.len() > SAMPLES_MAX {
            return Err(format!("more than {SAMPLES_MAX} entries"));
        }
        if let Some((bad, _)) = counts.iter().find(|(ms, _)| !(0.0..=TIME_MAX_MS).contains(ms)) {
            return Err(format!("{bad} is not a time of 0 to {TIME_MAX_MS} ms"));
        }
        let mut sorted: Vec<(f64, u64)> = counts.iter().copied().filter(|(_, count)| *count > 0).collect();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let least_ms = sorted.first().map_or(0.0, |(ms, _)| *ms);
        Self::from_steps(least_ms, &sorted)
    }

    /// From single times in ms, in any order.
    ///
    /// # Errors
    /// As [`Measured::from_counts`].
    pub fn from_samples(samples: &[f64]) -> Result<Self, String> {
        let counts: Vec<(f64, u64)> = samples.iter().map(|ms| (*ms, 1)).collect();
        Self::from_counts(&counts)
    }

    /// From ascending times and how often each was seen.
    fn from_steps(least_ms: f64, steps: &[(f64, u64)]) -> Result<Self, String> {
        let total = steps.iter().fold(0u64, |sum, (_, count)| sum.saturating_add(*count)) as f64;
        let mut points = vec![(0.0, least_ms.min(TIME_MAX_MS))];
        let mut seen = 0u64;
        for (ms, count) in steps {
            seen = seen.saturating_add(*count);
            points.push((seen as f64 / total, ms.min(TIME_MAX_MS)));
        }
        if seen == 0 {
            return Err("the histogram is empty".to_owned());
        }
        Self::new(points).ok_or_else(|| "the histogram's steps are not in order".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        let measured = Measured::new(vec![(0.0, 10.0), (0.5, 20.0), (1.0, 60.0)]).unwrap();
        assert!((measured.quantile(0.75) - 40.0).abs() < 1e-9);
        assert!((measured.cdf(40.0) - 0.75).abs() < 1e-9);
        assert_eq!(measured.cdf(5.0), 0.0);
        assert_eq!(Measured::new(vec![(0.0, 2.0), (1.0, 1.0)]), None);
    }

    #[test]
    fn samples_and_counts_say_the_same() {
        let samples = Measured::from_samples(&[3.0, 1.0, 2.0, 2.0]).unwrap();
        assert_eq!(samples, Measured::from_samples(&[2.0, 1.0, 2.0, 3.0]).unwrap());
        let counts = Measured::from_counts(&[(2.0, 2), (1.0, 1), (3.0, 1), (9.0, 0)]).unwrap();
        assert_eq!(counts.quantile(0.75), samples.quantile(0.75));
        assert_eq!(samples.quantile(1.0), 3.0);
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        assert!(Measured::from_samples(&[]).is_err());
        assert!(Measured::from_samples(&[1.0, -1.0]).is_err());
        assert!(Measured::from_samples(&[f64::NAN]).is_err());
        assert!(Measured::from_counts(&[(1.0, 0)]).is_err());
        assert!(Measured::from_histogram("AAAA").is_err());
        assert!(Measured::from_histogram(&"A".repeat(HISTOGRAM_BYTES_MAX + 1)).is_err());
    }
}
