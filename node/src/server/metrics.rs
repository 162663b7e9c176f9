//! Counters of a server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meridian_seam::clock::micros;
use meridian_wire::EventType;

use crate::region::Sizes;
use crate::summary::Summary;

/// What a server counts about its clients, as `srvr` and `mntr` tell it.
#[derive(Debug, Default)]
pub struct Metrics {
    packets_received: AtomicU64,
    packets_sent: AtomicU64,
    pub(super) outstanding: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) connections_rejected: AtomicU64,
    authentications_failed: AtomicU64,
    /// Connections let in.
    pub(super) admissions: AtomicU64,
    /// Connections that have ended without the end of their sessions.
    pub(super) dropped: AtomicU64,
    /// Sessions taken up again.
    pub(super) revalidated: AtomicU64,
    /// Connections that have opened no session in time.
    pub(super) sessionless_expired: AtomicU64,
    /// Sessions that this server as the leader has let expire.
    pub(super) sessions_expired: AtomicU64,
    /// Bytes of requests.
    pub(super) bytes_received: AtomicU64,
    /// Bytes of replies and events.
    pub(super) bytes_sent: AtomicU64,
    pub(super) frames_refused: AtomicU64,
    pub(super) throttled: AtomicU64,
    /// TLS handshakes under way.
    pub(super) handshakes: AtomicU64,
    /// TLS handshakes that did not succeed.
    pub(super) handshakes_failed: AtomicU64,
    /// Bytes of events.
    pub(super) watch_bytes: AtomicU64,
    /// From a wake-up of a connection to the replies to the reads that it brought, in microseconds.
    pub(super) reads_us: Summary,
    /// From the arrival of a write to its reply, in microseconds.
    pub(super) updates_us: Summary,
    /// Sizes of replies to reads and writes.
    pub(super) response_bytes: Sizes,
    /// Watches that were told of one event: of a creation, a deletion, a change of data, and one of children.
    watches_fired: [Summary; 4],
}

/// Latencies of requests in ms.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    /// The least.
    pub min_ms: u64,
    /// The mean.
    pub avg_ms: f64,
    /// The greatest.
    pub max_ms: u64,
}

/// What one connection counts between two writes: the shared counters are touched once for all of it.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) bytes_received: u64,
    pub(super) bytes_sent: u64,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) latency_us_total: u64,
    pub(super) latency_us_max: u64,
    pub(super) latency_us_min: Option<u64>,
    /// Reads answered whose latency is not counted yet.
    reads: u64,
    /// The same, of those counted.
    reads_us: Option<(u64, u64)>,
    updates_us: Vec<u64>,
    /// The last, the least and the greatest reply.
    response_bytes: Option<[usize; 3]>,
}

impl Tally {
    /// A write was answered after so long.
    pub(super) fn wrote(&mut self, latency: Duration, response_bytes: usize) {
        let us = micros(latency);
        self.updates_us.push(us);
        self.answered(us, 1);
        self.responded(response_bytes);
    }

    /// A request was answered within the wake-up that brought it: [`Tally::finish`] tells how long that took.
    pub(super) fn read(&mut self, response_bytes: usize) {
        self.reads += 1;
        self.responded(response_bytes);
    }

    /// The replies are about to be sent, so long after the wake-up.
    pub(super) fn finish(&mut self, took: impl FnOnce() -> Duration) {
        if self.reads > 0 {
            let us = micros(took());
            self.answered(us, self.reads);
            self.reads_us = Some((us, std::mem::take(&mut self.reads)));
        }
    }

    /// Whether there is something to count.
    pub(super) fn has_packets(&self) -> bool {
        self.received + self.sent + self.reads > 0
    }

    fn answered(&mut self, us: u64, times: u64) {
        self.sent += times;
        self.latency_us_total = self.latency_us_total.saturating_add(us.saturating_mul(times));
        self.latency_us_max = self.latency_us_max.max(us);
        self.latency_us_min = Some(self.latency_us_min.map_or(us, |least| least.min(us)));
    }

    fn responded(&mut self, bytes: usize) {
        let [_, min, max] = self.response_bytes.unwrap_or([bytes; 3]);
        self.response_bytes = Some([bytes, min.min(bytes), max.max(bytes)]);
    }
}

impl Metrics {
    pub(super) fn add(&self, tally: &Tally) {
        self.packets_received.fetch_add(tally.received, Ordering::Relaxed);
        self.bytes_received.fetch_add(tally.bytes_received, Ordering::Relaxed);
        self.bytes_sent.fetch_add(tally.bytes_sent, Ordering::Relaxed);
        self.packets_sent.fetch_add(tally.sent, Ordering::Relaxed);
        if let Some(reads) = tally.reads_us {
            self.reads_us.record_all([reads]);
        }
        if !tally.updates_us.is_empty() {
            self.updates_us.record_all(tally.updates_us.iter().map(|us| (*us, 1)));
        }
        if let Some([last, min, max]) = tally.response_bytes {
            self.response_bytes.note_all(last, min, max);
        }
    }

    /// An event has been told to so many watchers, which took so many bytes.
    pub(super) fn fired(&self, event: EventType, watchers: u64, bytes: u64) {
        if watchers > 0 {
            self.watches_fired(event).record(watchers);
            self.watch_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// How many watchers were told of events of a kind.
    pub(super) fn watches_fired(&self, event: EventType) -> &Summary {
        let [created, deleted, changed, children] = &self.watches_fired;
        match event {
            EventType::NodeCreated => created,
            EventType::NodeDeleted => deleted,
            EventType::NodeChildrenChanged => children,
            _ => changed,
        }
    }

    /// Latencies of reads and writes since the start or the last reset.
    pub fn latency(&self) -> Latency {
        let answered = [&self.reads_us, &self.updates_us].map(Summary::distribution);
        let answered = || answered.iter().filter(|one| one.count > 0);
        let requests: u64 = answered().map(|one| one.count).sum();
        let total_us: u64 = answered().map(|one| one.sum).fold(0, u64::saturating_add);
        Latency {
            min_ms: answered().map(|one| one.min).min().unwrap_or(0) / 1000,
            avg_ms: if requests == 0 { 0.0 } else { total_us as f64 / requests as f64 / 1000.0 },
            max_ms: answered().map(|one| one.max).max().unwrap_or(0) / 1000,
        }
    }

    /// Packets received and sent.
    pub fn packets(&self) -> (u64, u64) {
        (self.packets_received.load(Ordering::Relaxed), self.packets_sent.load(Ordering::Relaxed))
    }

    /// Connections open.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Writes not yet answered.
    pub fn outstanding(&self) -> u64 {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// Connections refused because of limits.
    pub fn connections_rejected(&self) -> u64 {
        self.connections_rejected.load(Ordering::Relaxed)
    }

    pub(super) fn authentication_failed(&self) {
        self.authentications_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Frames whose length is above the limit, each of which has ended its connection.
    pub fn frames_refused(&self) -> u64 {
        self.frames_refused.load(Ordering::Relaxed)
    }

    /// Writes refused because they had waited for too long.
    pub fn throttled(&self) -> u64 {
        self.throttled.load(Ordering::Relaxed)
    }

    /// Clients that did not prove what they had to.
    pub fn authentications_failed(&self) -> u64 {
        self.authentications_failed.load(Ordering::Relaxed)
    }

    /// Starts counting anew (`srst`).
    pub(super) fn reset(&self) {
        for counter in [&self.packets_received, &self.packets_sent] {
            counter.store(0, Ordering::Relaxed);
        }
        let [created, deleted, changed, children] = &self.watches_fired;
        for summary in [&self.reads_us, &self.updates_us, created, deleted, changed, children] {
            summary.reset();
        }
        self.response_bytes.reset();
    }
}
