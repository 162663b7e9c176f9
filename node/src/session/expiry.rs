//! Which sessions have not been heard of for their timeout.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use meridian_seam::mutant::{self, Mutant};

/// Sessions in buckets of time, as in ZooKeeper's ExpiryQueue: a session expires at the first multiple
/// of the interval after its timeout and an allowance, so that hearing of one mostly changes nothing.
///
/// Times are those of one monotonic clock. Whoever owns this asks [`Expiry::expired`] at least once an
/// interval. When that did not happen (a paused process, an overloaded machine), reports of living
/// sessions could not be taken either: nobody expires then for as long as was missed, at most for the
/// longest timeout there is.
#[derive(Debug)]
pub struct Expiry {
    interval: Duration,
    allowance: Duration,
    sessions: HashMap<i64, Tracked>,
    buckets: BTreeMap<Duration, BTreeSet<i64>>,
    asked_last: Option<Duration>,
    /// No session expires before.
    grace_until: Duration,
}

#[derive(Debug)]
struct Tracked {
    timeout: Duration,
    bucket: Duration,
}

impl Expiry {
    /// Tracks no session yet. `interval` is the width of a bucket (at least 1 ms); `allowance` is for how long a
    /// server may go on answering its clients after it was last heard of, and with that their belief in their sessions.
    pub fn new(interval: Duration, allowance: Duration) -> Self {
        Self {
            interval: interval.max(Duration::from_millis(1)),
            allowance,
            sessions: HashMap::new(),
            buckets: BTreeMap::new(),
            asked_last: None,
            grace_until: Duration::ZERO,
        }
    }

    /// Tracks a session from now on, with this timeout.
    pub fn open(&mut self, session: i64, timeout: Duration, now: Duration) {
        self.close(session);
        let bucket = self.bucket_after(now + timeout + self.allowance);
        self.sessions.insert(session, Tracked { timeout, bucket });
        self.buckets.entry(bucket).or_default().insert(session);
    }

    /// Forgets a session.
    pub fn close(&mut self, session: i64) {
        if let Some(tracked) = self.sessions.remove(&session) {
            self.leave(session, tracked.bucket);
        }
    }

    /// Forgets all sessions and tracks these.
    pub fn replace(&mut self, sessions: impl IntoIterator<Item = (i64, Duration)>, now: Duration) {
        self.sessions.clear();
        self.buckets.clear();
        for (session, timeout) in sessions {
            self.open(session, timeout, now);
        }
    }

    /// A session has been heard of; unknown ones are ignored. Its time is never shortened.
    pub fn touch(&mut self, session: i64, now: Duration) {
        let Some(timeout) = self.sessions.get(&session).map(|s| s.timeout) else { return };
        self.move_to(session, self.bucket_after(now + timeout + self.allowance));
    }

    /// Gives every session its whole timeout from now on: a new leader does not know when they were
    /// heard of last.
    pub fn renew_all(&mut self, now: Duration) {
        self.asked_last = None;
        let sessions: Vec<i64> = self.sessions.keys().copied().collect();
        for session in sessions {
            self.touch(session, now);
        }
    }

    /// The sessions whose time is over. They come again an interval later unless they are closed or
    /// heard of meanwhile.
    pub fn expired(&mut self, now: Duration) -> Vec<i64> {
        if let Some(last) = self.asked_last.replace(now) {
            let missed = now.saturating_sub(last).saturating_sub(self.interval);
            if missed > self.interval {
                let longest = self.sessions.values().map(|s| s.timeout).max().unwrap_or_default();
                self.grace_until = now + missed.min(longest);
            }
        }
        if now < self.grace_until && !mutant::is(Mutant::ExpiryAfterPause) {
            return Vec::new();
        }
        let mut expired = Vec::new();
        while let Some((&bucket, _)) = self.buckets.first_key_value()
            && bucket <= now
        {
            expired.extend(self.buckets.remove(&bucket).unwrap_or_default());
        }
        let next = self.bucket_after(now);
        for session in &expired {
            if let Some(tracked) = self.sessions.get_mut(session) {
                tracked.bucket = next;
                self.buckets.entry(next).or_default().insert(*session);
            }
        }
        expired
    }

    /// Number of sessions tracked.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether no session is tracked.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    fn bucket_after(&self, at: Duration) -> Duration {
        let interval_ns = self.interval.as_nanos();
        let buckets = at.as_nanos() / interval_ns + 1;
        Duration::from_nanos(u64::try_from(buckets.saturating_mul(interval_ns)).unwrap_or(u64::MAX))
    }

    fn move_to(&mut self, session: i64, bucket: Duration) {
        let Some(tracked) = self.sessions.get_mut(&session).filter(|s| s.bucket < bucket) else { return };
        let old = std::mem::replace(&mut tracked.bucket, bucket);
        self.leave(session, old);
        self.buckets.entry(bucket).or_default().insert(session);
    }

    fn leave(&mut self, session: i64, bucket: Duration) {
        if let Some(members) = self.buckets.get_mut(&bucket) {
            members.remove(&session);
            if members.is_empty() {
                self.buckets.remove(&bucket);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(s: f64) -> Duration {
        Duration::from_secs_f64(s)
    }

    /// Asks every second from `from` to `to` and says who expired when.
    fn run(expiry: &mut Expiry, from: u32, to: u32) -> Vec<(u32, Vec<i64>)> {
        (from..=to)
            .map(|s| (s, expiry.expired(seconds(f64::from(s)))))
            .filter(|(_, expired)| !expired.is_empty())
            .collect()
    }

    #[test]
    fn a_session_lives_for_its_timeout_after_it_was_heard_of() {
        let mut expiry = Expiry::new(seconds(1.0), Duration::ZERO);
        expiry.open(1, seconds(4.0), seconds(0.0));
        expiry.open(2, seconds(4.0), seconds(0.0));
        assert_eq!(run(&mut expiry, 0, 3), []);
        expiry.touch(2, seconds(3.5));
        expiry.touch(3, seconds(3.5));
        assert_eq!(run(&mut expiry, 4, 5), [(5, vec![1])]);
        expiry.close(1);
        assert_eq!(run(&mut expiry, 6, 8), [(8, vec![2])]);
    }

    #[test]
    fn the_allowance_comes_on_top_of_every_timeout() {
        let mut expiry = Expiry::new(seconds(1.0), seconds(2.0));
        expiry.open(1, seconds(4.0), seconds(0.0));
        expiry.open(2, seconds(4.0), seconds(0.0));
        expiry.touch(2, seconds(3.5));
        assert_eq!(run(&mut expiry, 0, 7), [(7, vec![1])]);
        expiry.close(1);
        assert_eq!(run(&mut expiry, 8, 10), [(10, vec![2])]);
    }

    #[test]
    fn the_expired_come_again_until_they_are_closed_or_heard_of() {
        let mut expiry = Expiry::new(seconds(1.0), Duration::ZERO);
        expiry.open(1, seconds(1.0), seconds(0.0));
        assert_eq!(run(&mut expiry, 1, 4), [(2, vec![1]), (3, vec![1]), (4, vec![1])]);
        expiry.touch(1, seconds(4.0));
        assert_eq!(run(&mut expiry, 5, 6), [(6, vec![1])]);
        expiry.close(1);
        assert_eq!(run(&mut expiry, 7, 9), []);
        assert!(expiry.is_empty());
    }

    #[test]
    fn a_pause_of_the_process_expires_nobody_at_once() {
        let mut expiry = Expiry::new(seconds(1.0), Duration::ZERO);
        expiry.open(1, seconds(4.0), seconds(0.0));
        expiry.open(2, seconds(4.0), seconds(0.0));
        assert_eq!(run(&mut expiry, 0, 2), []);
        assert!(expiry.expired(seconds(60.0)).is_empty());
        expiry.touch(1, seconds(60.5));
        assert_eq!(run(&mut expiry, 61, 64), [(64, vec![2])]);
        expiry.close(2);
        assert_eq!(run(&mut expiry, 65, 65), [(65, vec![1])]);
    }

    #[test]
    fn a_new_leader_starts_all_over() {
        let mut expiry = Expiry::new(seconds(1.0), Duration::ZERO);
        expiry.replace([(1, seconds(2.0)), (2, seconds(6.0))], seconds(0.0));
        assert_eq!(run(&mut expiry, 0, 1), []);
        expiry.renew_all(seconds(1.9));
        assert_eq!(run(&mut expiry, 2, 4), [(4, vec![1])]);
        expiry.close(1);
        assert_eq!(run(&mut expiry, 5, 8), [(8, vec![2])]);
    }

    #[test]
    fn time_as_a_follower_is_no_pause() {
        let mut expiry = Expiry::new(seconds(1.0), Duration::ZERO);
        expiry.open(1, seconds(2.0), seconds(0.0));
        assert_eq!(run(&mut expiry, 0, 1), []);
        expiry.renew_all(seconds(1_000.0));
        assert_eq!(run(&mut expiry, 1_000, 1_003), [(1_003, vec![1])]);
    }

    #[test]
    fn a_touch_never_shortens() {
        let mut expiry = Expiry::new(seconds(1.0), Duration::ZERO);
        expiry.open(1, seconds(4.0), seconds(2.0));
        expiry.touch(1, seconds(0.0));
        assert_eq!(run(&mut expiry, 0, 7), [(7, vec![1])]);
    }
}
