//! Time. Timers are tokio's (virtual under a paused runtime); decisions are taken on what a [`Clock`]
//! says, so that a simulation can let every server's clock drift on its own.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// A server's clock.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since the Unix epoch; may jump. Only for timestamps that people read.
    fn unix_ms(&self) -> i64;

    /// Time since an arbitrary point; never goes back. For timeouts and leases.
    fn monotonic(&self) -> Duration;
}

/// A duration in whole milliseconds; the highest number for one that is longer.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A duration in whole microseconds; the highest number for one that is longer.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The operating system's clock, on tokio's time base.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn unix_ms(&self) -> i64 {
        // A clock set before 1970 reads as 0: timestamps are wrong then, nothing else.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}
