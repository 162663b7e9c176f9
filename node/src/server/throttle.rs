//! How many sessions may be opened at a time: after an outage all clients come at once.
//!
//! ZooKeeper's scheme: a bucket of tokens that fills with time, and on top of it, if wanted, a share of clients
//! turned away at random that grows while the bucket is empty (BLUE).

use std::time::Duration;

/// The bounds, by ZooKeeper's names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThrottleOptions {
    /// `connectionMaxTokens`; 0 is without bound.
    pub tokens_max: u32,
    /// `connectionTokenFillTime`: how often the bucket is filled ...
    pub fill_interval: Duration,
    /// `connectionTokenFillCount`: ... and with how many tokens.
    pub fill_tokens: u32,
    /// `connectionFreezeTime`: how long the share of clients turned away stays the same at least; without it
    /// nobody is turned away at random.
    pub freeze: Option<Duration>,
    /// `connectionDropIncrease`: by how much that share grows.
    pub drop_increase: f64,
    /// `connectionDropDecrease`: by how much it falls.
    pub drop_decrease: f64,
    /// `connectionDecreaseRatio`: it falls while no more than this share of the tokens is gone.
    pub decrease_ratio: f64,
    /// What a new session, a local session and one that is taken up again cost, in tokens.
    pub weights: Weights,
}

/// What opening a session costs, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    /// A session that the region knows.
    pub global: u32,
    /// A session that only this server knows.
    pub local: u32,
    /// One that is taken up again.
    pub renewal: u32,
}

impl Default for Weights {
    fn default() -> Self {
        Self { global: 1, local: 1, renewal: 1 }
    }
}

impl Default for ThrottleOptions {
    fn default() -> Self {
        Self {
            tokens_max: 0,
            fill_interval: Duration::from_millis(1),
            fill_tokens: 1,
            freeze: None,
            drop_increase: 0.02,
            drop_decrease: 0.002,
            decrease_ratio: 0.0,
            weights: Weights::default(),
        }
    }
}

/// The bucket. Times are those of one monotonic clock.
#[derive(Debug)]
pub(super) struct Throttle {
    options: ThrottleOptions,
    tokens: u32,
    filled: Duration,
    /// The share of clients turned away at random.
    drop_share: f64,
    frozen: Duration,
}

impl Throttle {
    pub(super) fn new(options: ThrottleOptions) -> Self {
        let tokens = options.tokens_max;
        Self { options, tokens, filled: Duration::ZERO, drop_share: 0.0, frozen: Duration::ZERO }
    }

    pub(super) fn weights(&self) -> Weights {
        self.options.weights
    }

    /// The share of clients turned away at random.
    pub(super) fn drop_share(&self) -> f64 {
        self.drop_share
    }

    /// Whether a session that costs so much may be opened now. `random` is drawn from 0 to 1.
    pub(super) fn admits(&mut self, cost: u32, now: Duration, random: impl FnOnce() -> f64) -> bool {
        let ThrottleOptions { tokens_max, fill_interval, fill_tokens, .. } = self.options;
        if tokens_max == 0 {
            return true;
        }
        let interval_us = fill_interval.as_micros().max(1);
        let fills = now.saturating_sub(self.filled).as_micros() / interval_us;
        if fills > 0 {
            let more = u32::try_from(fills.saturating_mul(fill_tokens.into())).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(more).min(tokens_max);
            self.filled = now;
        }
        if !self.passes_at_random(now, random) || self.tokens < cost {
            return false;
        }
        self.tokens -= cost;
        true
    }

    fn passes_at_random(&mut self, now: Duration, random: impl FnOnce() -> f64) -> bool {
        let Some(freeze) = self.options.freeze else { return true };
        if now.saturating_sub(self.frozen) > freeze {
            let gone = f64::from(self.options.tokens_max - self.tokens);
            if self.tokens == 0 {
                self.drop_share = (self.drop_share + self.options.drop_increase).min(1.0);
            } else if gone <= f64::from(self.options.tokens_max) * self.options.decrease_ratio {
                self.drop_share = (self.drop_share - self.options.drop_decrease).max(0.0);
            }
            self.frozen = now;
        }
        random() >= self.drop_share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn without_a_bound_everybody_comes_in() {
        let mut throttle = Throttle::new(ThrottleOptions::default());
        assert!((0..1_000).all(|_| throttle.admits(9, ms(1), || 0.0)));
    }

    #[test]
    fn tokens_come_back_with_time() {
        let options = ThrottleOptions { tokens_max: 3, fill_interval: ms(100), ..ThrottleOptions::default() };
        let mut throttle = Throttle::new(options);
        let admitted =
            |throttle: &mut Throttle, now| (0..9).filter(|_| throttle.admits(1, now, || 0.5)).count();
        assert_eq!(admitted(&mut throttle, ms(1)), 3);
        assert_eq!(admitted(&mut throttle, ms(99)), 0);
        assert_eq!(admitted(&mut throttle, ms(100)), 1);
        assert_eq!(admitted(&mut throttle, ms(10_000)), 3, "no more than fit into the bucket");
        assert!(throttle.admits(0, ms(10_000), || 0.5) && !throttle.admits(1, ms(10_000), || 0.5));
    }

    #[test]
    fn while_the_bucket_is_empty_more_are_turned_away_at_random() {
        let options = ThrottleOptions {
            tokens_max: 1,
            fill_interval: ms(1_000),
            freeze: Some(ms(10)),
            drop_increase: 0.25,
            drop_decrease: 0.5,
            decrease_ratio: 0.5,
            ..ThrottleOptions::default()
        };
        let mut throttle = Throttle::new(options);
        assert!(throttle.admits(1, ms(1), || 0.9));
        for (now, share) in [(20, 0.25), (25, 0.25), (40, 0.5), (60, 0.75), (80, 1.0), (100, 1.0)] {
            assert!(!throttle.admits(1, ms(now), || 0.9));
            assert_eq!(throttle.drop_share(), share, "after {now} ms");
        }
        assert!(throttle.admits(1, ms(2_000), || 0.9), "half of them pass again");
        assert_eq!(throttle.drop_share(), 0.5);
    }
}
