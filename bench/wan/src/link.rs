//! One direction of a link: what it does to datagrams, and what it did.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use crate::Conditions;

/// The most bytes under way in one direction of a link: half a second at 64 MB/s.
pub const QUEUED_BYTES_MAX: usize = 32 << 20;

/// What a datagram costs in the queue on top of its payload, so that empty ones are bounded too.
const DATAGRAM_OVERHEAD_BYTES: usize = 128;

/// One direction of a link.
#[derive(Debug)]
pub(crate) struct Link {
    conditions: Conditions,
    /// Odd while cut. A datagram arrives only if this has not changed since it left.
    generation: AtomicU64,
    queued_bytes: AtomicUsize,
    line: Mutex<Line>,
    delivered: AtomicU64,
    lost: AtomicU64,
    cut_off: AtomicU64,
    overflowed: AtomicU64,
}

#[derive(Debug)]
struct Line {
    random: SmallRng,
    /// When the datagram that entered last leaves: none may leave earlier.
    last_due: Option<Instant>,
}

/// Leave to be under way on a link, and until when; [`Link::arrive`] takes it.
#[derive(Debug)]
pub(crate) struct Passage {
    pub(crate) due: Instant,
    generation: u64,
    queued_bytes: usize,
}

impl Link {
    pub(crate) fn new(conditions: Conditions) -> Self {
        Self {
            conditions,
            generation: AtomicU64::new(0),
            queued_bytes: AtomicUsize::new(0),
            line: Mutex::new(Line { random: SmallRng::from_os_rng(), last_due: None }),
            delivered: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            cut_off: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
        }
    }

    /// Lets a datagram in that came `now`, or drops it.
    pub(crate) fn enter(&self, now: Instant, payload_bytes: usize) -> Option<Passage> {
        let generation = self.generation.load(Ordering::Acquire);
        if is_cut(generation) {
            return count(&self.cut_off);
        }
        let mut line = self.line.lock();
        if self.conditions.loss > 0.0 && line.random.random_bool(self.conditions.loss) {
            return count(&self.lost);
        }
        let queued_bytes = payload_bytes + DATAGRAM_OVERHEAD_BYTES;
        // Only changed upwards here, under the line's lock.
        if self.queued_bytes.load(Ordering::Relaxed) + queued_bytes > QUEUED_BYTES_MAX {
            return count(&self.overflowed);
        }
        self.queued_bytes.fetch_add(queued_bytes, Ordering::Relaxed);
        let mut due = now + self.conditions.one_way;
        if !self.conditions.jitter.is_zero() {
            due += self.conditions.jitter.mul_f64(line.random.random());
        }
        let due = line.last_due.map_or(due, |last| due.max(last));
        line.last_due = Some(due);
        Some(Passage { due, generation, queued_bytes })
    }

    /// Lets a datagram out that is due: was the link whole all the time?
    pub(crate) fn arrive(&self, passage: &Passage) -> bool {
        self.queued_bytes.fetch_sub(passage.queued_bytes, Ordering::Relaxed);
        let whole = self.generation.load(Ordering::Acquire) == passage.generation;
        let counter = if whole { &self.delivered } else { &self.cut_off };
        counter.fetch_add(1, Ordering::Relaxed);
        whole
    }

    pub(crate) fn cut(&self) {
        self.generation.fetch_or(1, Ordering::AcqRel);
    }

    pub(crate) fn heal(&self) {
        let next = |generation| is_cut(generation).then(|| generation.wrapping_add(1));
        // An error means that it was whole already.
        let _ = self.generation.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
    }

    pub(crate) fn status(&self, from: &str, to: &str) -> LinkStatus {
        LinkStatus {
            from: from.to_owned(),
            to: to.to_owned(),
            one_way_ms: self.conditions.one_way.as_secs_f64() * 1_000.0,
            jitter_ms: self.conditions.jitter.as_secs_f64() * 1_000.0,
            loss: self.conditions.loss,
            cut: is_cut(self.generation.load(Ordering::Acquire)),
            queued_bytes: self.queued_bytes.load(Ordering::Relaxed),
            delivered: self.delivered.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
            cut_off: self.cut_off.load(Ordering::Relaxed),
            overflowed: self.overflowed.load(Ordering::Relaxed),
        }
    }
}

fn is_cut(generation: u64) -> bool {
    generation % 2 == 1
}

fn count(counter: &AtomicU64) -> Option<Passage> {
    counter.fetch_add(1, Ordering::Relaxed);
    None
}

/// One direction of a link as it is now, with counts of datagrams since the start.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkStatus {
    /// The region that it leaves.
    pub from: String,
    /// The region that it reaches.
    pub to: String,
    /// The least time under way.
    pub one_way_ms: f64,
    /// The most time on top of it.
    pub jitter_ms: f64,
    /// The share of datagrams that get lost, 0 to 1.
    pub loss: f64,
    /// Is it cut?
    pub cut: bool,
    /// Bytes under way.
    pub queued_bytes: usize,
    /// Datagrams that arrived.
    pub delivered: u64,
    /// Datagrams lost by chance.
    pub lost: u64,
    /// Datagrams lost to a cut.
    pub cut_off: u64,
    /// Datagrams dropped because too many were under way.
    pub overflowed: u64,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn link(jitter_ms: u64, loss: f64) -> Link {
        let one_way = Duration::from_millis(10);
        Link::new(Conditions { one_way, jitter: Duration::from_millis(jitter_ms), loss })
    }

    #[test]
    fn jitter_only_adds_and_never_reorders() {
        let (link, start) = (link(50, 0.0), Instant::now());
        let mut last = start;
        for sent_ms in 0..200 {
            let sent = start + Duration::from_millis(sent_ms);
            let due = link.enter(sent, 100).unwrap().due;
            assert!(due >= sent + Duration::from_millis(10) && due >= last);
            assert!(due <= sent + Duration::from_millis(60).max(last - sent));
            last = due;
        }
    }

    #[test]
    fn a_share_is_lost() {
        let link = link(0, 0.25);
        let passed = (0..10_000).filter(|_| link.enter(Instant::now(), 100).is_some()).count();
        assert!((7_000..8_000).contains(&passed), "{passed}");
        assert_eq!(link.status("a", "b").lost, 10_000 - passed as u64);
    }

    #[test]
    fn a_full_link_drops_until_something_has_left() {
        let link = link(0, 0.0);
        let half = || link.enter(Instant::now(), QUEUED_BYTES_MAX / 2 - DATAGRAM_OVERHEAD_BYTES);
        let first = half().unwrap();
        let second = half().unwrap();
        assert!(link.enter(Instant::now(), 0).is_none());
        assert!(link.arrive(&first));
        assert!(link.enter(Instant::now(), 0).is_some());
        assert!(link.arrive(&second));
        let status = link.status("a", "b");
        assert_eq!(
            (status.overflowed, status.delivered, status.queued_bytes),
            (1, 2, DATAGRAM_OVERHEAD_BYTES)
        );
    }

    #[test]
    fn what_is_under_way_when_a_link_is_cut_never_arrives() {
        let link = link(0, 0.0);
        let under_way = link.enter(Instant::now(), 100).unwrap();
        link.cut();
        link.cut();
        assert!(link.enter(Instant::now(), 100).is_none());
        link.heal();
        link.heal();
        assert!(!link.arrive(&under_way));
        let later = link.enter(Instant::now(), 100).unwrap();
        assert!(link.arrive(&later));
        assert_eq!(link.status("a", "b").cut_off, 2);
    }
}
