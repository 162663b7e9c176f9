//! Distributions of times: what single hops are given as, and what sums and order statistics of
//! hops come out as.

use std::sync::Arc;

use super::Measured;

/// Standard normal quantile of 0.99: a log-normal's p99 is `exp(mu + Z99 sigma)`.
const Z99: f64 = 2.326_347_874_040_841;

/// Samples of the normal variable that stand for a log-normal when it is convolved. The trapezoid
/// rule converges faster than any power of the spacing here; 121 over ±5.5 leave an error far
/// below the 0.5 % that the planner promises.
const NORMAL_NODES: usize = 121;
const NORMAL_REACH: f64 = 5.5;

/// Points of a tabulated distribution function.
const CURVE_POINTS: usize = 900;

/// Share of the probability above a curve's last point, treated as never happening.
const CUT_TAIL: f64 = 1e-5;

/// The distribution of one hop or one disk flush, in milliseconds.
#[derive(Clone, Debug)]
pub enum Distribution {
    /// Always the same time.
    Fixed(f64),
    /// `shift + exp(mu + sigma Z)`: a floor that physics sets, and a log-normal above it.
    ShiftedLogNormal {
        /// The floor, ms.
        shift_ms: f64,
        /// Mean of the logarithm.
        mu: f64,
        /// Standard deviation of the logarithm.
        sigma: f64,
    },
    /// Quantiles of a measured histogram.
    Measured(Arc<Measured>),
}

impl Distribution {
    /// The shifted log-normal with the given median and 99th percentile, whose floor is
    /// `shift` (0..1) of the median. A p99 at or below the p50 gives a fixed time.
    pub fn from_percentiles(p50_ms: f64, p99_ms: f64, shift: f64) -> Self {
        let shift_ms = p50_ms * shift;
        let scale_ms = p50_ms - shift_ms;
        if p99_ms <= p50_ms || scale_ms <= 0.0 {
            return Distribution::Fixed(p50_ms);
        }
        let sigma = ((p99_ms - shift_ms) / scale_ms).ln() / Z99;
        Distribution::ShiftedLogNormal { shift_ms, mu: scale_ms.ln(), sigma }
    }

    /// Probability of at most `time_ms`.
    pub fn cdf(&self, time_ms: f64) -> f64 {
        match self {
            Distribution::Fixed(value) => f64::from(u8::from(time_ms >= *value)),
            Distribution::ShiftedLogNormal { shift_ms, mu, sigma } => {
                let above = time_ms - shift_ms;
                if above <= 0.0 { 0.0 } else { normal_cdf((above.ln() - mu) / sigma) }
            }
            Distribution::Measured(measured) => measured.cdf(time_ms),
        }
    }

    /// The time that a share `probability` (0..1, exclusive) of the hops stays within.
    pub fn quantile(&self, probability: f64) -> f64 {
        match self {
            Distribution::Fixed(value) => *value,
            Distribution::ShiftedLogNormal { shift_ms, mu, sigma } => {
                shift_ms + (mu + sigma * normal_quantile(probability)).exp()
            }
            Distribution::Measured(measured) => measured.quantile(probability),
        }
    }

    /// The least time possible.
    pub fn floor_ms(&self) -> f64 {
        match self {
            Distribution::Fixed(value) => *value,
            Distribution::ShiftedLogNormal { shift_ms, .. } => *shift_ms,
            Distribution::Measured(measured) => measured.quantile(0.0),
        }
    }

    /// A time drawn with the standard normal deviate `z`: the generator stays with the caller.
    pub fn sample(&self, z: f64) -> f64 {
        match self {
            Distribution::Fixed(value) => *value,
            Distribution::ShiftedLogNormal { shift_ms, mu, sigma } => shift_ms + (mu + sigma * z).exp(),
            Distribution::Measured(measured) => measured.quantile(normal_cdf(z)),
        }
    }

    /// The distribution as weighted values, for convolution.
    pub fn nodes(&self) -> Vec<Node> {
        if let Distribution::Fixed(value) = self {
            return vec![Node { value_ms: *value, weight: 1.0 }];
        }
        let spacing = 2.0 * NORMAL_REACH / (NORMAL_NODES - 1) as f64;
        let mut nodes: Vec<Node> = (0..NORMAL_NODES)
            .map(|i| {
                let z = -NORMAL_REACH + spacing * i as f64;
                Node { value_ms: self.sample(z), weight: (-0.5 * z * z).exp() }
            })
            .collect();
        let total: f64 = nodes.iter().map(|node| node.weight).sum();
        nodes.iter_mut().for_each(|node| node.weight /= total);
        nodes
    }

    /// The distribution function as a table.
    pub fn curve(&self) -> Curve {
        match self {
            Distribution::Fixed(value) => Curve::fixed(*value),
            _ => Curve::tabulate(self.floor_ms(), self.quantile(1.0 - 0.1 * CUT_TAIL), |t| self.cdf(t)),
        }
    }
}

/// One weighted value of a distribution; the weights of all add up to one.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// The time, ms.
    pub value_ms: f64,
    /// Its probability.
    pub weight: f64,
}

/// A distribution function tabulated from a floor upwards, linear in between. The points lie
/// closer towards the floor (their distance from it grows with the cube of their number), so that a
/// long tail leaves the body its detail.
#[derive(Clone, Debug)]
pub struct Curve {
    start_ms: f64,
    span_ms: f64,
    cdf: Vec<f64>,
}

impl Curve {
    /// The time that never varies.
    pub fn fixed(value_ms: f64) -> Self {
        Curve { start_ms: value_ms, span_ms: 0.0, cdf: vec![1.0] }
    }

    /// Tabulates `cdf` from `start_ms` to where its tail ends, `most_ms` at the latest.
    fn tabulate(start_ms: f64, most_ms: f64, mut cdf: impl FnMut(f64) -> f64) -> Self {
        let (mut low, mut end_ms) = (start_ms, most_ms);
        while end_ms - low > 0.01 * (end_ms - start_ms) {
            let middle = 0.5 * (low + end_ms);
            if cdf(middle) < 1.0 - CUT_TAIL {
                low = middle;
            } else {
                end_ms = middle;
            }
        }
        let span_ms = end_ms - start_ms;
        if span_ms <= 1e-9 * end_ms {
            return Curve::fixed(start_ms);
        }
        let mut curve = Curve { start_ms, span_ms, cdf: vec![0.0; CURVE_POINTS] };
        for point in 0..CURVE_POINTS {
            curve.cdf[point] = cdf(curve.time_ms(point as f64));
        }
        curve
    }

    /// The time at a point of the table; whole numbers are points.
    fn time_ms(&self, point: f64) -> f64 {
        let share = point / (CURVE_POINTS - 1) as f64;
        self.start_ms + self.span_ms * share * share * share
    }

    /// Probability of at most `time_ms`.
    pub fn cdf(&self, time_ms: f64) -> f64 {
        if time_ms < self.start_ms {
            return 0.0;
        }
        let share = (time_ms - self.start_ms) / self.span_ms;
        if !(0.0..1.0).contains(&share) {
            return 1.0;
        }
        let cell = (share.cbrt() * (CURVE_POINTS - 1) as f64) as usize;
        match (self.cdf.get(cell), self.cdf.get(cell + 1)) {
            (Some(low), Some(high)) => {
                let (before, after) = (self.time_ms(cell as f64), self.time_ms(cell as f64 + 1.0));
                low + (high - low) * ((time_ms - before) / (after - before)).clamp(0.0, 1.0)
            }
            _ => 1.0,
        }
    }

    /// The time that a share `probability` (0..1) stays within.
    pub fn quantile(&self, probability: f64) -> f64 {
        let above = self.cdf.partition_point(|p| *p < probability);
        if above == 0 || above >= self.cdf.len() {
            return self.time_ms(above.min(self.cdf.len() - 1) as f64);
        }
        let (low, high) = (self.cdf[above - 1], self.cdf[above]);
        let (before, after) = (self.time_ms(above as f64 - 1.0), self.time_ms(above as f64));
        before + (after - before) * (probability - low) / (high - low)
    }

    fn end_ms(&self) -> f64 {
        self.start_ms + self.span_ms
    }

    /// The same times, all `offset_ms` later.
    pub fn later(mut self, offset_ms: f64) -> Self {
        self.start_ms += offset_ms;
        self
    }

    /// The sum of this time and an independent one (a convolution).
    pub fn plus(&self, other: &[Node]) -> Curve {
        let low = other.iter().map(|node| node.value_ms).fold(f64::INFINITY, f64::min);
        let high = other.iter().map(|node| node.value_ms).fold(f64::NEG_INFINITY, f64::max);
        if other.is_empty() || high <= low {
            return self.clone().later(if other.is_empty() { 0.0 } else { low });
        }
        let sum = |t: f64| other.iter().map(|node| node.weight * self.cdf(t - node.value_ms)).sum();
        Curve::tabulate(self.start_ms + low, self.end_ms() + high, sum)
    }

    /// A quantile of the sum of this time and an independent one, without tabulating the sum.
    pub fn quantile_of_sum(&self, other: &[Node], probability: f64) -> f64 {
        let least = other.iter().map(|node| node.value_ms).fold(f64::INFINITY, f64::min);
        let most = other.iter().map(|node| node.value_ms).fold(f64::NEG_INFINITY, f64::max);
        let (mut low, mut high) = (self.start_ms + least, self.end_ms() + most);
        while high - low > 1e-6 * high {
            let middle = 0.5 * (low + high);
            let passed: f64 = other.iter().map(|node| node.weight * self.cdf(middle - node.value_ms)).sum();
            if passed < probability {
                low = middle;
            } else {
                high = middle;
            }
        }
        0.5 * (low + high)
    }

    /// The distribution as weighted values, for convolution.
    pub fn nodes(&self) -> Vec<Node> {
        const CELLS_PER_NODE: usize = 4;
        let mut nodes = vec![Node { value_ms: self.start_ms, weight: self.cdf[0] }];
        let mut first = 0;
        while first + 1 < self.cdf.len() {
            let last = (first + CELLS_PER_NODE).min(self.cdf.len() - 1);
            let middle_ms = 0.5 * (self.time_ms(first as f64) + self.time_ms(last as f64));
            nodes.push(Node { value_ms: middle_ms, weight: self.cdf[last] - self.cdf[first] });
            first = last;
        }
        let total: f64 = nodes.iter().map(|node| node.weight).sum();
        nodes.retain(|node| node.weight > 0.0);
        nodes.iter_mut().for_each(|node| node.weight /= total);
        nodes
    }

    /// The `k`-th smallest (from 1) of independent times, each `(distribution, how many like it)`.
    ///
    /// At every point the number of times that have passed is Poisson-binomial; its recursion
    /// adds one time after the other.
    pub fn kth_smallest(times: &[(&Curve, usize)], k: usize) -> Curve {
        let count: usize = times.iter().map(|(_, count)| count).sum();
        if k == 0 || k > count {
            return Curve::fixed(f64::INFINITY);
        }
        let start = kth_value(times, k, |curve| curve.start_ms);
        let end = kth_value(times, k, |curve| curve.end_ms());
        let mut passed = vec![0.0; k + 1];
        Curve::tabulate(start, end, |t| {
            at_least_k(times, t, &mut passed);
            passed[k]
        })
    }

    /// The later of two independent times.
    pub fn later_of(&self, other: &Curve) -> Curve {
        Curve::kth_smallest(&[(self, 1), (other, 1)], 2)
    }
}

fn kth_value(times: &[(&Curve, usize)], k: usize, value: impl Fn(&Curve) -> f64) -> f64 {
    let mut values: Vec<f64> =
        times.iter().flat_map(|(curve, count)| std::iter::repeat_n(value(curve), *count)).collect();
    values.sort_by(f64::total_cmp);
    values[k - 1]
}

/// Fills `passed[j]` with the probability that exactly `j` times have passed by `t`, the last
/// entry with that of at least `k`.
fn at_least_k(times: &[(&Curve, usize)], t: f64, passed: &mut [f64]) {
    let k = passed.len() - 1;
    passed.fill(0.0);
    passed[0] = 1.0;
    for (curve, count) in times {
        let p = curve.cdf(t);
        if p <= 0.0 {
            continue;
        }
        for _ in 0..*count {
            passed[k] += passed[k - 1] * p;
            for j in (1..k).rev() {
                passed[j] += p * (passed[j - 1] - passed[j]);
            }
            passed[0] *= 1.0 - p;
        }
    }
}

/// Distribution function of the standard normal.
fn normal_cdf(z: f64) -> f64 {
    0.5 * libm::erfc(-z * std::f64::consts::FRAC_1_SQRT_2)
}

/// Quantile of the standard normal, by bisection; ±8 at the ends.
fn normal_quantile(probability: f64) -> f64 {
    let (mut low, mut high) = (-8.0, 8.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if normal_cdf(middle) < probability {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, expected: f64, share: f64) {
        assert!((got - expected).abs() <= share * expected.abs(), "{got} is not near {expected}");
    }

    #[test]
    fn a_distribution_has_the_percentiles_it_was_made_from() {
        for (p50, p99, shift) in [(62.0, 66.0, 0.98), (1.0, 8.0, 0.0), (1.0, 3.0, 0.5)] {
            let distribution = Distribution::from_percentiles(p50, p99, shift);
            close(distribution.quantile(0.5), p50, 1e-9);
            close(distribution.quantile(0.99), p99, 1e-9);
            close(distribution.curve().quantile(0.5), p50, 1e-3);
            close(distribution.curve().quantile(0.99), p99, 1e-3);
        }
    }

    #[test]
    fn a_long_tail_leaves_the_body_its_detail() {
        let flush = Distribution::from_percentiles(1.0, 200.0, 0.0);
        close(flush.curve().quantile(0.5), 1.0, 5e-3);
        close(flush.curve().quantile(0.99), 200.0, 5e-3);
        let way = Distribution::from_percentiles(60.0, 64.0, 0.98);
        // A convolution by hand, on a fine grid of the flush's quantiles.
        let by_hand = |t: f64| {
            let steps = 20_000;
            (0..steps)
                .map(|i| way.cdf(t - flush.quantile((f64::from(i) + 0.5) / f64::from(steps))))
                .sum::<f64>()
                / f64::from(steps)
        };
        let sum = way.curve().plus(&flush.nodes());
        for p in [0.5, 0.9, 0.99] {
            close(by_hand(sum.quantile(p)), p, 2e-3);
        }
    }

    #[test]
    fn one_lost_packet_does_not_blur_a_measured_distribution() {
        let points = vec![(0.0, 60.0), (0.5, 62.0), (0.99, 66.0), (0.9999, 70.0), (1.0, 30_000.0)];
        let measured = Distribution::Measured(Arc::new(Measured::new(points).unwrap()));
        close(measured.curve().quantile(0.5), 62.0, 1e-3);
        // Of 400,000 sums drawn.
        let sum = measured.curve().plus(&measured.nodes());
        for (p, expected) in [(0.5, 124.99), (0.9, 128.65), (0.99, 131.35)] {
            close(sum.quantile(p), expected, 1e-3);
        }
    }

    #[test]
    fn a_flat_tail_is_a_fixed_time() {
        let fixed = Distribution::from_percentiles(5.0, 5.0, 0.5);
        assert_eq!(fixed.quantile(0.999), 5.0);
        assert_eq!(fixed.curve().plus(&fixed.nodes()).quantile(0.5), 10.0);
    }

    #[test]
    fn order_statistics_of_equal_times_follow_the_binomial() {
        let one = Distribution::from_percentiles(10.0, 20.0, 0.5);
        let median_of_three = Curve::kth_smallest(&[(&one.curve(), 3)], 2);
        for t in [8.0, 10.0, 14.0] {
            let p = one.cdf(t);
            close(median_of_three.cdf(t), 3.0 * p * p - 2.0 * p.powi(3), 2e-3);
        }
    }

    #[test]
    fn fixed_times_sort() {
        let curves = [3.0, 1.0, 2.0].map(Curve::fixed);
        let times: Vec<_> = curves.iter().map(|curve| (curve, 1)).collect();
        assert_eq!(Curve::kth_smallest(&times, 2).quantile(0.5), 2.0);
        assert_eq!(curves[0].later_of(&curves[2]).quantile(0.5), 3.0);
    }
}
