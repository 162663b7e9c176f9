//! Configuration of how many sessions may be opened at a time.

use std::time::Duration;

use meridian_seam::clock::millis;
use serde::{Deserialize, Serialize};

use crate::server::{ThrottleOptions, Weights};

/// See [`ThrottleOptions`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ThrottleConfig {
    /// `connectionMaxTokens`; 0 is without bound.
    pub tokens_max: u32,
    /// `connectionTokenFillTime`.
    pub fill_interval_ms: u64,
    /// `connectionTokenFillCount`.
    pub fill_tokens: u32,
    /// `connectionFreezeTime`; without it nobody is turned away at random.
    pub freeze_ms: Option<u64>,
    /// `connectionDropIncrease`.
    pub drop_increase: f64,
    /// `connectionDropDecrease`.
    pub drop_decrease: f64,
    /// `connectionDecreaseRatio`.
    pub decrease_ratio: f64,
    /// Tokens that a session costs ...
    pub global_session_weight: u32,
    /// ... one that only this server knows ...
    pub local_session_weight: u32,
    /// ... and one that is taken up again.
    pub renewal_weight: u32,
}

impl Default for ThrottleConfig {
    fn default() -> Self {
        let options = ThrottleOptions::default();
        Self {
            tokens_max: options.tokens_max,
            fill_interval_ms: millis(options.fill_interval),
            fill_tokens: options.fill_tokens,
            freeze_ms: None,
            drop_increase: options.drop_increase,
            drop_decrease: options.drop_decrease,
            decrease_ratio: options.decrease_ratio,
            global_session_weight: options.weights.global,
            local_session_weight: options.weights.local,
            renewal_weight: options.weights.renewal,
        }
    }
}

impl ThrottleConfig {
    /// The same for the server.
    pub fn options(&self) -> ThrottleOptions {
        ThrottleOptions {
            tokens_max: self.tokens_max,
            fill_interval: Duration::from_millis(self.fill_interval_ms),
            fill_tokens: self.fill_tokens,
            freeze: self.freeze_ms.map(Duration::from_millis),
            drop_increase: self.drop_increase,
            drop_decrease: self.drop_decrease,
            decrease_ratio: self.decrease_ratio,
            weights: Weights {
                global: self.global_session_weight,
                local: self.local_session_weight,
                renewal: self.renewal_weight,
            },
        }
    }
}
