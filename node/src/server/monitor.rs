//! What a server measures, by ZooKeeper's names where ZooKeeper measures the same and with the prefix `meridian_`
//! elsewhere: for `mntr`, for AdminServer's `monitor`, and for Prometheus.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use meridian_seam::clock::millis;
use meridian_wire::EventType;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value};

use super::connection::Service;
use crate::region::Roster;
use crate::summary::{Distribution, QUANTILES, Summary};

/// One figure.
pub(super) struct Sample {
    name: &'static str,
    /// What it is of, if there are several of the name.
    label: Option<(&'static str, String)>,
    figure: Figure,
}

enum Figure {
    /// What rises and falls.
    Gauge(f64),
    /// What only rises, until it is reset.
    Counter(f64),
    /// Many values, each to be divided by the second to get the unit of its name.
    Summary(Distribution, f64),
}

/// Turns the microseconds that are counted into the milliseconds that are told.
const US_PER_MS: f64 = 1000.0;

/// A line for each figure, as `mntr` has it.
pub(super) fn lines(service: &Service, out: &mut String) -> std::fmt::Result {
    samples(service).into_iter().flat_map(Sample::flattened).try_for_each(|(name, value)| match value {
        Value::String(text) => writeln!(out, "zk_{name}\t{text}"),
        value => writeln!(out, "zk_{name}\t{value}"),
    })
}

/// All figures by their names.
pub(super) fn json(service: &Service) -> Map<String, Value> {
    samples(service).into_iter().flat_map(Sample::flattened).collect()
}

/// Prometheus's text format, version 0.0.4.
pub(super) fn exposition(service: &Service) -> String {
    let (mut out, mut described) = (String::new(), BTreeSet::new());
    for Sample { name, label, figure } in samples(service) {
        let kind = match figure {
            Figure::Gauge(_) => "gauge",
            Figure::Counter(_) => "counter",
            Figure::Summary(..) => "summary",
        };
        // Writing to a string does not fail.
        if described.insert(name) {
            let _ = writeln!(out, "# TYPE {name} {kind}");
        }
        let labels = label.map_or(String::new(), |(key, value)| format!("{{{key}=\"{value}\"}}"));
        let _ = match figure {
            Figure::Gauge(value) | Figure::Counter(value) => writeln!(out, "{name}{labels} {value}"),
            Figure::Summary(counted, divisor) => {
                for ((quantile, _), value) in QUANTILES.iter().zip(counted.quantiles) {
                    let _ = writeln!(out, "{name}{{quantile=\"{quantile}\"}} {}", value as f64 / divisor);
                }
                let _ = writeln!(out, "{name}_sum {}", counted.sum as f64 / divisor);
                writeln!(out, "{name}_count {}", counted.count)
            }
        };
    }
    out
}

/// Starts counting anew.
pub(super) fn reset(service: &Service) {
    service.hub.metrics.reset();
    service.region.metrics().reset();
    service.region.log_metrics().reset();
}

impl Sample {
    /// The figures of which it consists, each with a name of its own.
    fn flattened(self) -> Vec<(String, Value)> {
        let Self { name, label, figure } = self;
        let suffix = label.map_or(String::new(), |(_, of)| format!("_{of}"));
        let number = |value: f64| {
            // Whole numbers without a point, as those who read them expect.
            if value.fract() == 0.0 && value.abs() < 1e15 { Value::from(value as i64) } else { value.into() }
        };
        match figure {
            Figure::Gauge(value) | Figure::Counter(value) => vec![(format!("{name}{suffix}"), number(value))],
            Figure::Summary(counted, divisor) => {
                let scaled = |value: u64| number(value as f64 / divisor);
                let mut flattened = vec![
                    (format!("avg_{name}"), Value::from(counted.mean() / divisor)),
                    (format!("min_{name}"), scaled(counted.min)),
                    (format!("max_{name}"), scaled(counted.max)),
                    (format!("cnt_{name}"), counted.count.into()),
                    (format!("sum_{name}"), scaled(counted.sum)),
                ];
                let quantiles = QUANTILES.iter().zip(counted.quantiles);
                flattened.extend(
                    quantiles.map(|((_, quantile), value)| (format!("{quantile}_{name}"), scaled(value))),
                );
                flattened
            }
        }
    }
}

fn gauge(name: &'static str, value: impl Number) -> Sample {
    Sample { name, label: None, figure: Figure::Gauge(value.number()) }
}

fn counter(name: &'static str, value: &AtomicU64) -> Sample {
    Sample { name, label: None, figure: Figure::Counter(value.load(Ordering::Relaxed).number()) }
}

fn summary(name: &'static str, values: &Summary, divisor: f64) -> Sample {
    Sample { name, label: None, figure: Figure::Summary(values.distribution(), divisor) }
}

/// What is told as a floating-point number, exactly up to 2^53.
trait Number {
    fn number(self) -> f64;
}

impl Number for f64 {
    fn number(self) -> f64 {
        self
    }
}

impl Number for u64 {
    fn number(self) -> f64 {
        self as f64
    }
}

impl Number for i64 {
    fn number(self) -> f64 {
        self as f64
    }
}

impl Number for usize {
    fn number(self) -> f64 {
        self as f64
    }
}

impl Number for bool {
    fn number(self) -> f64 {
        f64::from(u8::from(self))
    }
}

fn samples(service: &Service) -> Vec<Sample> {
    let mut samples = of_clients(service);
    samples.extend(of_state(service));
    samples.extend(of_region(service));
    samples.extend(of_log(service));
    samples.extend(of_process());
    samples
}

fn of_clients(service: &Service) -> Vec<Sample> {
    let metrics = &service.hub.metrics;
    let latency = metrics.latency();
    let (received, sent) = metrics.packets();
    let [last_response, min_response, max_response] = metrics.response_bytes.get();
    let fired = |event| metrics.watches_fired(event);
    vec![
        gauge("avg_latency", latency.avg_ms),
        gauge("max_latency", latency.max_ms),
        gauge("min_latency", latency.min_ms),
        gauge("packets_received", received),
        gauge("packets_sent", sent),
        gauge("num_alive_connections", metrics.connections()),
        gauge("outstanding_requests", metrics.outstanding()),
        gauge("outstanding_tls_handshake", metrics.handshakes.load(Ordering::Relaxed)),
        gauge("auth_failed_count", metrics.authentications_failed()),
        gauge("connection_drop_probability", service.throttle.lock().drop_share()),
        gauge("last_client_response_size", last_response),
        gauge("min_client_response_size", min_response),
        gauge("max_client_response_size", max_response),
        counter("connection_request_count", &metrics.admissions),
        counter("connection_rejected", &metrics.connections_rejected),
        counter("connection_drop_count", &metrics.dropped),
        counter("connection_revalidate_count", &metrics.revalidated),
        counter("sessionless_connections_expired", &metrics.sessionless_expired),
        counter("stale_sessions_expired", &metrics.sessions_expired),
        counter("unsuccessful_handshake", &metrics.handshakes_failed),
        counter("large_requests_rejected", &metrics.frames_refused),
        counter("throttled_ops", &metrics.throttled),
        counter("bytes_received_count", &metrics.bytes_received),
        counter("response_bytes", &metrics.bytes_sent),
        counter("watch_bytes", &metrics.watch_bytes),
        summary("readlatency", &metrics.reads_us, US_PER_MS),
        summary("updatelatency", &metrics.updates_us, US_PER_MS),
        summary("node_created_watch_count", fired(EventType::NodeCreated), 1.0),
        summary("node_deleted_watch_count", fired(EventType::NodeDeleted), 1.0),
        summary("node_changed_watch_count", fired(EventType::NodeDataChanged), 1.0),
        summary("node_children_watch_count", fired(EventType::NodeChildrenChanged), 1.0),
    ]
}

fn of_state(service: &Service) -> Vec<Sample> {
    let view = service.hub.view();
    let tree = &view.state.tree;
    vec![
        gauge("znode_count", tree.len()),
        gauge("watch_count", service.hub.watch_count()),
        gauge("ephemerals_count", tree.ephemeral_count()),
        gauge("approximate_data_size", tree.data_bytes()),
        gauge("global_sessions", view.state.sessions.len()),
        gauge("local_sessions", service.local_sessions.len()),
        gauge("read_only", service.is_read_only()),
        gauge("uptime", millis(service.hub.now())),
    ]
}

fn of_region(service: &Service) -> Vec<Sample> {
    let (region, now) = (&service.region, service.hub.now());
    let (metrics, roster) = (region.metrics(), region.roster());
    let leadership = *region.leadership().borrow();
    let [last_proposal, min_proposal, max_proposal] = metrics.proposal_bytes.get();
    let mut samples = vec![
        gauge("quorum_size", roster.voters.len()),
        counter("proposal_count", &metrics.proposals),
        counter("commit_count", &metrics.applied),
        gauge("last_proposal_size", last_proposal),
        gauge("min_proposal_size", min_proposal),
        gauge("max_proposal_size", max_proposal),
        summary("quorum_ack_latency", &metrics.commit_us, US_PER_MS),
        summary("propagation_latency", &metrics.propagation_ms, 1.0),
        counter("looking_count", &metrics.leaderless),
        summary("election_time", &metrics.leaderless_ms, 1.0),
        summary("unavailable_time", &metrics.leaderless_ms, 1.0),
        summary("snapshottime", &metrics.snapshot_ms, 1.0),
        counter("snapshot_error_count", &metrics.snapshots_failed),
        summary("dbinittime", &metrics.recovery_ms, 1.0),
        gauge("unrecoverable_error_count", region.failure().borrow().is_some()),
        counter("meridian_snapshots_installed", &metrics.snapshots_installed),
        gauge("meridian_term", leadership.term),
        gauge("meridian_leads", leadership.is_me),
        gauge("meridian_applied_index", service.hub.view().position.index),
        gauge("meridian_leader_contact_age_ms", millis(now.saturating_sub(service.hub.contact()))),
    ];
    if let Some(deadline) = service.hub.lease().deadline() {
        samples.push(gauge("meridian_lease_left_ms", millis(deadline.saturating_sub(now))));
    }
    if let Some(leads_for) = metrics.leads_for(now) {
        let present = in_touch(service, &roster);
        let voters = present.intersection(&roster.voters).count();
        samples.extend([
            gauge("leader_uptime", millis(leads_for)),
            gauge("learners", present.len()),
            gauge("synced_followers", voters),
            gauge("synced_observers", present.len() - voters),
            gauge("synced_non_voting_followers", 0_u64),
            gauge("pending_syncs", 0_u64),
        ]);
        let lags = roster.lag_entries.iter().filter(|(server, _)| **server != region.config().server);
        samples.extend(lags.map(|(server, lag)| Sample {
            name: "meridian_lag_entries",
            label: Some(("server", server.to_string())),
            figure: Figure::Gauge(lag.number()),
        }));
    }
    samples
}

/// At the leader: the other servers that have acknowledged something within the time of an election.
pub(super) fn in_touch(service: &Service, roster: &Roster) -> BTreeSet<u64> {
    let config = service.region.config();
    let (_, patience) = config.timing.election_timeout;
    let heard =
        roster.silence.iter().filter(|(server, silence)| **server != config.server && **silence <= patience);
    heard.map(|(server, _)| *server).collect()
}

fn of_log(service: &Service) -> Vec<Sample> {
    let metrics = service.region.log_metrics();
    vec![
        summary("fsynctime", &metrics.sync_us, US_PER_MS),
        summary("sync_processor_batch_size", &metrics.group_records, 1.0),
        counter("meridian_log_syncs", &metrics.syncs),
        counter("meridian_log_written_bytes", &metrics.written_bytes),
        gauge("meridian_disk_has_room", service.region.has_room()),
    ]
}

/// What the system tells of this process; files and memory on Linux alone.
fn of_process() -> Vec<Sample> {
    let mut samples = Vec::new();
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // The directory itself is open while it is read.
        samples.push(gauge("open_file_descriptor_count", open.count().saturating_sub(1)));
    }
    let field = |file: &str, key: &str| -> Option<u64> {
        let text = std::fs::read_to_string(file).ok()?;
        let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let limit = field("/proc/self/limits", "Max open files");
    samples.extend(limit.map(|limit| gauge("max_file_descriptor_count", limit)));
    let resident_kb = field("/proc/self/status", "VmRSS:");
    samples.extend(resident_kb.map(|kb| gauge("process_resident_memory_bytes", kb * 1024)));
    let used = clock_gettime(ClockId::ProcessCPUTime);
    samples.push(Sample {
        name: "process_cpu_seconds_total",
        label: None,
        figure: Figure::Counter(used.tv_sec as f64 + used.tv_nsec as f64 / 1e9),
    });
    samples
}
