//! Counters of a server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a server counts about its clients, as `srvr` and `mntr` tell it.
#[derive(Debug, Default)]
pub struct Metrics {
    packets_received: AtomicU64,
    packets_sent: AtomicU64,
    pub(super) outstanding: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) connections_rejected: AtomicU64,
    authentications_failed: AtomicU64,
    pub(super) admissions: AtomicU64,
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
    pub(super) frames_refused: AtomicU64,
    pub(super) throttled: AtomicU64,
    pub(super) handshakes_failed: AtomicU64,
    requests: AtomicU64,
    latency_us_total: AtomicU64,
    latency_us_max: AtomicU64,
    /// One more than the least, so that 0 tells that there was none.
    latency_us_min: AtomicU64,
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
}

impl Tally {
    /// A request was answered after so long.
    pub(super) fn answered(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.sent += 1;
        self.latency_us_total = self.latency_us_total.saturating_add(us);
        self.latency_us_max = self.latency_us_max.max(us);
        self.latency_us_min = Some(self.latency_us_min.map_or(us, |least| least.min(us)));
    }
}

impl Metrics {
    pub(super) fn add(&self, tally: &Tally) {
        self.packets_received.fetch_add(tally.received, Ordering::Relaxed);
        self.bytes_received.fetch_add(tally.bytes_received, Ordering::Relaxed);
        self.bytes_sent.fetch_add(tally.bytes_sent, Ordering::Relaxed);
        let Some(min_us) = tally.latency_us_min else { return };
        self.packets_sent.fetch_add(tally.sent, Ordering::Relaxed);
        self.requests.fetch_add(tally.sent, Ordering::Relaxed);
        self.latency_us_total.fetch_add(tally.latency_us_total, Ordering::Relaxed);
        self.latency_us_max.fetch_max(tally.latency_us_max, Ordering::Relaxed);
        let least = self.latency_us_min.load(Ordering::Relaxed);
        if least == 0 || min_us.saturating_add(1) < least {
            self.latency_us_min.store(min_us.saturating_add(1), Ordering::Relaxed);
        }
    }

    /// Latencies since the start or the last reset.
    pub fn latency(&self) -> Latency {
        let requests = self.requests.load(Ordering::Relaxed);
        let total = self.latency_us_total.load(Ordering::Relaxed);
        Latency {
            min_ms: self.latency_us_min.load(Ordering::Relaxed).saturating_sub(1) / 1000,
            avg_ms: if requests == 0 { 0.0 } else { total as f64 / requests as f64 / 1000.0 },
            max_ms: self.latency_us_max.load(Ordering::Relaxed) / 1000,
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

    /// Connections let in.
    pub fn admissions(&self) -> u64 {
        self.admissions.load(Ordering::Relaxed)
    }

    /// Bytes of requests.
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received.load(Ordering::Relaxed)
    }

    /// Bytes of replies and events.
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::Relaxed)
    }

    /// Frames whose length is above the limit, each of which has ended its connection.
    pub fn frames_refused(&self) -> u64 {
        self.frames_refused.load(Ordering::Relaxed)
    }

    /// Writes refused because they had waited for too long.
    pub fn throttled(&self) -> u64 {
        self.throttled.load(Ordering::Relaxed)
    }

    /// TLS handshakes that did not succeed.
    pub fn handshakes_failed(&self) -> u64 {
        self.handshakes_failed.load(Ordering::Relaxed)
    }

    /// Clients that did not prove what they had to.
    pub fn authentications_failed(&self) -> u64 {
        self.authentications_failed.load(Ordering::Relaxed)
    }

    /// Starts counting anew (`srst`).
    pub(super) fn reset(&self) {
        let counters = [
            &self.packets_received,
            &self.packets_sent,
            &self.requests,
            &self.latency_us_total,
            &self.latency_us_max,
            &self.latency_us_min,
        ];
        for counter in counters {
            counter.store(0, Ordering::Relaxed);
        }
    }
}
