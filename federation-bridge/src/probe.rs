//! Round-trip times between the regions.
//!
//! [`Probes`] keeps them: a histogram per peer region, in windows of time, so that old samples fade.
//! [`measure`] takes them: at an interval it sends a QUIC datagram, which the other end's transport sends
//! back at once. Datagrams are not repeated when lost and wait behind no stream, so that a sample is one
//! trip there and back, with what the two processes need to notice a packet. A probe may still wait
//! where everything waits that a connection sends, if more is to be sent than the path takes.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2Serializer};
use meridian_seam::clock::{Clock, micros};
use meridian_seam::limits;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

use crate::transport::Connection;

/// Time between two probes of a connection, unless told otherwise.
pub const INTERVAL: Duration = Duration::from_millis(200);

/// Length of a window, unless told otherwise.
pub const WINDOW: Duration = Duration::from_secs(600);

/// Windows kept, unless told otherwise: samples fade after an hour.
pub const WINDOWS: usize = 6;

/// Samples beyond it are recorded as it: 60 s.
const RTT_US_MAX: u64 = 60_000_000;

/// Digits of a sample that are kept.
const SIGNIFICANT_DIGITS: u8 = 3;

/// A probe that has not come back after this long counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(10);

/// Probes on their way, on one connection. The oldest counts as lost when there are more.
const ON_THEIR_WAY_MAX: usize = 1_024;

const REQUEST: u8 = 0;
const REPLY: u8 = 1;

/// Round-trip times per peer region.
///
/// At most [`limits::REGIONS_MAX`] regions are kept; samples of further ones are ignored. A window of a
/// region takes at most 70 KiB.
pub struct Probes {
    window: Duration,
    windows: u64,
    regions: Mutex<BTreeMap<String, VecDeque<Window>>>,
}

struct Window {
    /// Its place in time: the number of windows before it.
    number: u64,
    rtt_us: Histogram<u32>,
    lost: u64,
}

/// Round-trip times to one region over the windows kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RttSummary {
    /// Probes that came back.
    pub count: u64,
    /// Probes that did not.
    pub lost: u64,
    /// The shortest round trip. All times are exact to three digits.
    pub min_ms: f64,
    /// The median.
    pub p50_ms: f64,
    /// Nine of ten are shorter.
    pub p90_ms: f64,
    /// 99 of 100 are shorter.
    pub p99_ms: f64,
    /// 999 of 1,000 are shorter.
    pub p999_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Default for Probes {
    fn default() -> Self {
        Self::new(WINDOW, WINDOWS)
    }
}

impl Probes {
    /// Keeps samples for a number of windows, of at least 1 ms and at least one.
    pub fn new(window: Duration, windows: usize) -> Self {
        Self {
            window: window.max(Duration::from_millis(1)),
            windows: windows.max(1) as u64,
            regions: Mutex::default(),
        }
    }

    /// Records a round trip that ended at `now` (monotonic).
    pub fn record(&self, region: &str, rtt: Duration, now: Duration) {
        let rtt_us = micros(rtt).clamp(1, RTT_US_MAX);
        self.in_window(region, now, |window| {
            // The histogram grows with its samples: none within the bounds is refused.
            let _ = window.rtt_us.record(rtt_us);
        });
    }

    /// Records a probe that was given up at `now`.
    pub fn record_lost(&self, region: &str, now: Duration) {
        self.in_window(region, now, |window| window.lost += 1);
    }

    fn in_window(&self, region: &str, now: Duration, record: impl FnOnce(&mut Window)) {
        let number = self.number(now);
        let mut regions = self.regions.lock();
        if !regions.contains_key(region) {
            if regions.len() >= limits::REGIONS_MAX {
                return;
            }
            regions.insert(region.to_owned(), VecDeque::new());
        }
        let Some(windows) = regions.get_mut(region) else { return };
        if windows.back().is_none_or(|newest| newest.number < number) {
            windows.push_back(Window { number, rtt_us: histogram(), lost: 0 });
        }
        windows.retain(|window| window.number + self.windows > number);
        if let Some(newest) = windows.back_mut() {
            record(newest);
        }
    }

    fn number(&self, now: Duration) -> u64 {
        u64::try_from(now.as_nanos() / self.window.as_nanos()).unwrap_or(u64::MAX)
    }

    /// The regions that have samples or losses.
    pub fn regions(&self) -> Vec<String> {
        self.regions.lock().keys().cloned().collect()
    }

    /// What was measured in the windows that count at `now`; `None` if that is nothing.
    pub fn summary(&self, region: &str, now: Duration) -> Option<RttSummary> {
        let (rtt_us, lost) = self.merged(region, now)?;
        let ms = |us: u64| us as f64 / 1_000.0;
        let at = |quantile| ms(rtt_us.value_at_quantile(quantile));
        Some(RttSummary {
            count: rtt_us.len(),
            lost,
            min_ms: ms(rtt_us.min()),
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: ms(rtt_us.max()),
        })
    }

    /// The whole histogram, in microseconds: HdrHistogram's V2 encoding in base64.
    pub fn histogram_base64(&self, region: &str, now: Duration) -> Option<String> {
        let (rtt_us, _) = self.merged(region, now)?;
        let mut encoded = Vec::new();
        V2Serializer::new().serialize(&rtt_us, &mut encoded).ok()?;
        Some(STANDARD.encode(encoded))
    }

    fn merged(&self, region: &str, now: Duration) -> Option<(Histogram<u32>, u64)> {
        let number = self.number(now);
        let regions = self.regions.lock();
        let (mut all, mut lost) = (histogram(), 0);
        for window in regions.get(region)?.iter().filter(|w| w.number + self.windows > number) {
            all.add(&window.rtt_us).ok()?;
            lost += window.lost;
        }
        (!all.is_empty() || lost > 0).then_some((all, lost))
    }
}

/// An empty histogram. It takes 17,408 counters for all of 1 us to 60 s, and only those that its
/// samples need.
fn histogram() -> Histogram<u32> {
    Histogram::new(SIGNIFICANT_DIGITS).expect("three digits are within the library's bounds")
}

/// Probes the peer of a connection at an interval and records what comes back, until the connection is
/// lost. It may run once per connection.
pub async fn measure(
    connection: &Connection,
    probes: &Probes,
    clock: &dyn Clock,
    interval: Duration,
) -> io::Error {
    let region = &connection.peer().region;
    let mut on_their_way = OnTheirWay::default();
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = ticks.tick() => {
                let now = clock.monotonic();
                for _ in 0..on_their_way.give_up(now) {
                    probes.record_lost(region, now);
                }
                if let Err(error) = connection.send_datagram(on_their_way.next_request(now)) {
                    return error;
                }
            }
            datagram = connection.receive_datagram() => match datagram {
                Ok(datagram) => {
                    let now = clock.monotonic();
                    if let Some(rtt) = on_their_way.back(&datagram, now) {
                        probes.record(region, rtt, now);
                    }
                }
                Err(error) => return error,
            },
        }
    }
}

/// The reply to a probe; `None` if the datagram is no probe.
pub(crate) fn reply_to(datagram: &[u8]) -> Option<Bytes> {
    match datagram {
        [REQUEST, number @ ..] if number.len() == 8 => Some(encode(REPLY, number)),
        _ => None,
    }
}

fn encode(kind: u8, number: &[u8]) -> Bytes {
    let mut datagram = BytesMut::with_capacity(9);
    datagram.put_u8(kind);
    datagram.put_slice(number);
    datagram.freeze()
}

/// The probes of a connection that have not come back, oldest first, with the time of sending. What is
/// on its way when a connection is lost counts as nothing: that is an outage, not loss.
#[derive(Default)]
struct OnTheirWay {
    next: u64,
    sent: VecDeque<(u64, Duration)>,
}

impl OnTheirWay {
    fn next_request(&mut self, now: Duration) -> Bytes {
        let number = self.next;
        self.next += 1;
        self.sent.push_back((number, now));
        encode(REQUEST, &number.to_le_bytes())
    }

    /// The round trip of a probe that came back for the first time.
    fn back(&mut self, datagram: &[u8], now: Duration) -> Option<Duration> {
        let [REPLY, number @ ..] = datagram else { return None };
        let number = u64::from_le_bytes(number.try_into().ok()?);
        let index = self.sent.binary_search_by_key(&number, |(sent, _)| *sent).ok()?;
        let (_, sent) = self.sent.remove(index)?;
        Some(now.saturating_sub(sent))
    }

    /// Forgets the probes that are lost and returns how many they are.
    fn give_up(&mut self, now: Duration) -> usize {
        let before = self.sent.len();
        while let Some((_, sent)) = self.sent.front()
            && (now.saturating_sub(*sent) >= LOST_AFTER || self.sent.len() >= ON_THEIR_WAY_MAX)
        {
            self.sent.pop_front();
        }
        before - self.sent.len()
    }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::Deserializer;
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_summary_says_what_was_recorded() {
        let probes = Probes::default();
        assert_eq!(probes.summary("eu", ms(0)), None);
        for sample in 1..=1_000 {
            probes.record("eu", ms(sample), ms(sample));
        }
        probes.record_lost("eu", ms(1_000));
        probes.record("ap", ms(7), ms(1_000));
        let summary = probes.summary("eu", ms(1_000)).unwrap();
        let close = |found: f64, expected: f64| (found - expected).abs() <= expected / 1_000.0;
        assert_eq!((summary.count, summary.lost), (1_000, 1));
        assert!(close(summary.min_ms, 1.0) && close(summary.max_ms, 1_000.0), "{summary:?}");
        assert!(close(summary.p50_ms, 500.0) && close(summary.p90_ms, 900.0), "{summary:?}");
        assert!(close(summary.p99_ms, 990.0) && close(summary.p999_ms, 999.0), "{summary:?}");
        assert_eq!(probes.regions(), ["ap", "eu"]);
    }

    #[test]
    fn samples_fade_window_by_window() {
        let probes = Probes::new(ms(1_000), 3);
        probes.record("eu", ms(100), ms(500));
        probes.record("eu", ms(10), ms(1_500));
        let count = |now| probes.summary("eu", ms(now)).map(|summary| summary.count);
        assert_eq!((count(2_999), count(3_000), count(3_999)), (Some(2), Some(1), Some(1)));
        assert_eq!(count(4_000), None);
        probes.record("eu", ms(20), ms(9_000));
        assert_eq!(count(9_000), Some(1));
    }

    #[test]
    fn the_histogram_can_be_read_back() {
        let probes = Probes::default();
        for sample in [1, 40, 40, 59_999] {
            probes.record("eu", ms(sample), ms(0));
        }
        let bytes = STANDARD.decode(probes.histogram_base64("eu", ms(0)).unwrap()).unwrap();
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
        assert_eq!((read.len(), read.count_at(40_000)), (4, 2));
        assert_eq!(probes.histogram_base64("ap", ms(0)), None);
    }

    #[test]
    fn regions_beyond_the_limit_are_ignored() {
        let probes = Probes::default();
        for number in 0..limits::REGIONS_MAX + 5 {
            probes.record(&format!("region-{number}"), ms(1), ms(0));
        }
        assert_eq!(probes.regions().len(), limits::REGIONS_MAX);
    }

    #[test]
    fn a_probe_counts_once_and_late_ones_are_lost() {
        let mut on_their_way = OnTheirWay::default();
        let first = on_their_way.next_request(ms(0));
        let second = on_their_way.next_request(ms(200));
        let reply = reply_to(&second).unwrap();
        assert_eq!(on_their_way.back(&second, ms(250)), None, "a request is no reply");
        assert_eq!(on_their_way.back(&reply, ms(250)), Some(ms(50)));
        assert_eq!(on_their_way.back(&reply, ms(251)), None);
        assert_eq!(on_their_way.give_up(ms(9_999)), 0);
        assert_eq!(on_their_way.give_up(ms(10_000)), 1);
        assert_eq!(on_their_way.back(&reply_to(&first).unwrap(), ms(10_001)), None);
    }

    #[test]
    fn few_probes_are_remembered() {
        let mut on_their_way = OnTheirWay::default();
        let mut lost = 0;
        for _ in 0..2 * ON_THEIR_WAY_MAX {
            lost += on_their_way.give_up(ms(1));
            on_their_way.next_request(ms(1));
        }
        assert_eq!((on_their_way.sent.len(), lost), (ON_THEIR_WAY_MAX, ON_THEIR_WAY_MAX));
    }

    proptest! {
        #[test]
        fn any_sample_at_any_time_is_in_bounds(
            samples in proptest::collection::vec((any::<u64>(), any::<u64>()), 1..50),
        ) {
            let probes = Probes::new(ms(1_000), 3);
            for (rtt_us, now_us) in samples {
                let now = Duration::from_micros(now_us);
                probes.record("eu", Duration::from_micros(rtt_us), now);
                let summary = probes.summary("eu", now);
                if let Some(summary) = summary {
                    prop_assert!(summary.min_ms > 0.0 && summary.max_ms <= 60_100.0);
                }
            }
        }

        #[test]
        fn only_requests_are_answered(datagram in proptest::collection::vec(0..3_u8, 0..12)) {
            let reply = reply_to(&datagram);
            prop_assert_eq!(reply.is_some(), datagram.len() == 9 && datagram[0] == REQUEST);
            if let Some(reply) = reply {
                prop_assert!(reply_to(&reply).is_none());
            }
            prop_assert_eq!(OnTheirWay::default().back(&datagram, ms(1)), None);
        }
    }
}
