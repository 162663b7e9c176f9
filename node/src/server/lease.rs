//! The region's lease as its servers' clients feel it: what has to happen before other regions may take
//! over what the sessions of this one hold.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meridian_seam::clock::millis;
use meridian_seam::mutant::{self, Mutant};
use tokio::sync::Notify;

/// Until when this server may let sessions believe that they hold ephemerals which other regions order.
/// Past the deadline such clients get no more bytes and are disconnected.
#[derive(Debug)]
pub struct LeaseGate {
    /// ms of the monotonic clock; [`FOREVER`] if no lease is needed.
    deadline_ms: AtomicU64,
    changed: Notify,
}

const FOREVER: u64 = u64::MAX;

impl Default for LeaseGate {
    fn default() -> Self {
        Self { deadline_ms: AtomicU64::new(FOREVER), changed: Notify::new() }
    }
}

impl LeaseGate {
    /// Sets the deadline, in the monotonic clock's time; `None` if no lease is needed.
    pub fn set(&self, deadline: Option<Duration>) {
        self.deadline_ms.store(deadline.map_or(FOREVER, millis), Ordering::Release);
        self.changed.notify_one();
    }

    /// The lease holds until `deadline` at least: what was granted once stays granted, whoever leads. From
    /// then on a lease is needed.
    pub fn extend(&self, deadline: Duration) {
        let deadline_ms = millis(deadline).min(FOREVER - 1);
        let later = |current| Some(if current == FOREVER { deadline_ms } else { deadline_ms.max(current) });
        // The closure always returns a value.
        let _ = self.deadline_ms.fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
        self.changed.notify_one();
    }

    /// The deadline, if a lease is needed.
    pub fn deadline(&self) -> Option<Duration> {
        let deadline_ms = self.deadline_ms.load(Ordering::Acquire);
        (deadline_ms != FOREVER && !mutant::is(Mutant::LeaseIgnored))
            .then(|| Duration::from_millis(deadline_ms))
    }

    /// Whether the deadline is over.
    pub fn is_past(&self, now: impl FnOnce() -> Duration) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now())
    }

    /// Waits until the deadline may be different.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}
