//! Counters of this server's part in its region.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use meridian_seam::clock::millis;

use crate::summary::Summary;

/// What a server counts of its region's work, since its start or the last reset.
#[derive(Debug, Default)]
pub struct RegionMetrics {
    /// Commands that this server has put into the log as the leader.
    pub proposals: AtomicU64,
    /// The sizes of those commands.
    pub proposal_bytes: Sizes,
    /// From the proposal of a batch to its commit, in microseconds: at the leader.
    pub commit_us: Summary,
    /// Entries applied.
    pub applied: AtomicU64,
    /// From the leader's taking a batch to its application here, in ms of the two servers' clocks.
    pub propagation_ms: Summary,
    /// How often no leader was known.
    pub leaderless: AtomicU64,
    /// For how long, in ms.
    pub leaderless_ms: Summary,
    /// Time to write a snapshot, in ms.
    pub snapshot_ms: Summary,
    /// Snapshots that were not written.
    pub snapshots_failed: AtomicU64,
    /// Snapshots taken over from other servers.
    pub snapshots_installed: AtomicU64,
    /// Time that it took at the start to read what the disk held, in ms.
    pub recovery_ms: Summary,
    /// When this server began to lead, one more than ms of the monotonic clock; 0 if it does not.
    leads_since_ms: AtomicU64,
    /// Whether what is applied is new, not what the disk held.
    is_live: AtomicBool,
}

/// The last, the least and the greatest of some sizes, in bytes; -1 before there is one.
#[derive(Debug)]
pub struct Sizes {
    last: AtomicI64,
    min: AtomicI64,
    max: AtomicI64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { last: AtomicI64::new(-1), min: AtomicI64::new(-1), max: AtomicI64::new(-1) }
    }
}

impl Sizes {
    /// Notes one size.
    pub fn note(&self, bytes: usize) {
        self.note_all(bytes, bytes, bytes);
    }

    /// Notes several by their last, their least and their greatest.
    pub fn note_all(&self, last: usize, min: usize, max: usize) {
        let [last, min, max] = [last, min, max].map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        self.last.store(last, Ordering::Relaxed);
        self.max.fetch_max(max, Ordering::Relaxed);
        let least = self.min.load(Ordering::Relaxed);
        // One that comes between the two is lost, which is of no consequence.
        if least < 0 || min < least {
            self.min.store(min, Ordering::Relaxed);
        }
    }

    /// The last, the least and the greatest.
    pub fn get(&self) -> [i64; 3] {
        [&self.last, &self.min, &self.max].map(|size| size.load(Ordering::Relaxed))
    }

    /// Starts anew.
    pub fn reset(&self) {
        for size in [&self.last, &self.min, &self.max] {
            size.store(-1, Ordering::Relaxed);
        }
    }
}

impl RegionMetrics {
    /// For how long this server has led.
    pub fn leads_for(&self, now: Duration) -> Option<Duration> {
        let since = self.leads_since_ms.load(Ordering::Relaxed).checked_sub(1)?;
        Some(now.saturating_sub(Duration::from_millis(since)))
    }

    /// This server leads from now on, or not.
    pub(super) fn leads(&self, is_me: bool, now: Duration) {
        let since = self.leads_since_ms.load(Ordering::Relaxed);
        if is_me != (since != 0) {
            self.leads_since_ms.store(if is_me { millis(now) + 1 } else { 0 }, Ordering::Relaxed);
        }
    }

    /// A leader is known: what is applied from now on is new.
    pub(super) fn is_live(&self) {
        self.is_live.store(true, Ordering::Relaxed);
    }

    /// An entry was applied so many ms after it was taken.
    pub(super) fn applied(&self, age_ms: i64) {
        self.applied.fetch_add(1, Ordering::Relaxed);
        if self.is_live.load(Ordering::Relaxed) {
            self.propagation_ms.record(u64::try_from(age_ms).unwrap_or(0));
        }
    }

    /// Starts counting anew.
    pub fn reset(&self) {
        for counter in [
            &self.proposals,
            &self.applied,
            &self.leaderless,
            &self.snapshots_failed,
            &self.snapshots_installed,
        ] {
            counter.store(0, Ordering::Relaxed);
        }
        for summary in
            [&self.commit_us, &self.propagation_ms, &self.leaderless_ms, &self.snapshot_ms, &self.recovery_ms]
        {
            summary.reset();
        }
        self.proposal_bytes.reset();
    }
}
