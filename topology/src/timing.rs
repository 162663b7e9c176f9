//! Timeouts that follow from measured round trips, each with its reason.
//!
//! h is the heartbeat, l the share of lost packets, q the probability that the packet after a lost
//! one is lost too, S the stall of a process, lambda the false elections allowed per second, eps
//! the drift between two clocks.

mod fit;

pub use fit::{Misfit, TIMEOUTS_IN_USE, misfits};

use serde::{Deserialize, Serialize};

use crate::latency::{Distribution, Model};
use crate::layout::{Design, Layout};
use crate::scenario::World;

const SECONDS_PER_YEAR: f64 = 365.25 * 86_400.0;
/// The longest session of a mesh where nobody asks for another: the servers' default.
const MESH_SESSION_MS: f64 = 15_000.0;
/// What the servers allow for closing the connections of holders: `mesh.lease.margin_ms`.
const LEASE_MARGIN_MS: f64 = 1_000.0;

/// What the formulas assume where nothing is measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Assumptions {
    /// Between two heartbeats, ms.
    pub heartbeat_ms: f64,
    /// Share of packets lost between regions.
    pub loss: f64,
    /// Probability that the packet after a lost one is lost too.
    pub loss_again: f64,
    /// p99.99 of what keeps a process from sending or reading, ms.
    pub stall_ms: f64,
    /// False elections allowed per second.
    pub false_elections_per_s: f64,
    /// Bound on the drift between two clocks.
    pub clock_drift: f64,
    /// A snapshot, MB.
    pub snapshot_mb: f64,
    /// What a follower may lag behind, MB.
    pub backlog_mb: f64,
    /// A link between regions, MB/s.
    pub link_mb_per_s: f64,
    /// Receive window of one connection, MB.
    pub window_mb: f64,
    /// Loading a snapshot into memory, MB/s.
    pub load_mb_per_s: f64,
    /// How often a path between regions breaks and heals by itself, per day; zero if that is not known.
    pub blips_per_day: f64,
    /// How long such a blip lasts: the median, ms.
    pub blip_p50_ms: f64,
    /// How long such a blip lasts: the 99th percentile, ms.
    pub blip_p99_ms: f64,
    /// Failures of the leader that nothing but silence tells of, per year.
    pub silent_failures_per_year: f64,
}

impl Default for Assumptions {
    /// One packet of ten thousand lost, in bursts of two; a stall of 100 ms; one false election a
    /// month; clocks within 0.1 %; a tree of 256 MB over 1 Gbit/s with a window of 16 MB.
    fn default() -> Self {
        Assumptions {
            heartbeat_ms: 100.0,
            loss: 1e-4,
            loss_again: 0.5,
            stall_ms: 100.0,
            false_elections_per_s: 1.0 / (30.0 * 86_400.0),
            clock_drift: 1e-3,
            snapshot_mb: 256.0,
            backlog_mb: 16.0,
            link_mb_per_s: 125.0,
            window_mb: 16.0,
            load_mb_per_s: 200.0,
            blips_per_day: 0.0,
            blip_p50_ms: 500.0,
            blip_p99_ms: 20_000.0,
            silent_failures_per_year: 4.0,
        }
    }
}

/// One timeout.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Its name: that of the configuration key where there is one.
    pub name: &'static str,
    /// Its value, in `unit`.
    pub value: f64,
    /// `ms`, or `ticks` of `tickTime`.
    pub unit: &'static str,
    /// Why this much.
    pub reason: String,
    /// What the usual rule of thumb would say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule_of_thumb: Option<String>,
}

/// The timeouts of a layout.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// What was assumed.
    pub assumptions: Assumptions,
    /// The timeouts, those of the ensembles first.
    pub settings: Vec<Setting>,
}

impl Timing {
    /// The timeouts that `layout` needs in this world.
    pub fn derive(world: &World, layout: &Layout) -> Timing {
        let (model, assumptions) = (&world.model, world.assumptions);
        let derivation = Derivation::new(world);
        let between_regions = Path::between_regions(model, layout);
        let mut settings = Vec::new();
        if layout.design == Design::Two {
            let servers = layout.voters.iter().chain(&layout.observers).max().copied().unwrap_or(1);
            let inside = Path::inside_region(model, usize::from(servers));
            derivation.ensemble(&inside, Some(&between_regions), &mut settings);
            derivation.global_group(&between_regions, &mut settings);
        } else {
            derivation.ensemble(&between_regions, None, &mut settings);
            derivation.leader_lease(&between_regions, &mut settings);
        }
        Timing { assumptions, settings }
    }

    /// A timeout by its name.
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.name == name)
    }
}

/// Round trips that a group's messages take, ms.
struct Path {
    what: &'static str,
    members: usize,
    min_ms: f64,
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    /// Round trip to the farthest member that a quorum needs: median and p99.9.
    quorum_p50_ms: f64,
    quorum_p999_ms: f64,
}

impl Path {
    fn between_regions(model: &Model, layout: &Layout) -> Path {
        let mut ways: Vec<(f64, usize)> = (0..layout.voters.len())
            .filter(|region| *region != layout.leader && layout.servers(*region) > 0)
            .map(|region| (model.rtt_ms[layout.leader][region], region))
            .collect();
        ways.sort_by(|a, b| a.0.total_cmp(&b.0));
        let Some((_, farthest)) = ways.last().copied() else {
            return Path::inside_region(model, layout.voter_count());
        };
        let way = &model.rtt[layout.leader][farthest];
        let quorum_p50_ms = (model.commit_ms(layout) - model.fsync_ms).max(0.0);
        let nearest_beyond = ways.iter().find(|(ms, _)| *ms >= quorum_p50_ms - model.zone_ms - 1e-9);
        let to_quorum = &model.rtt[layout.leader][nearest_beyond.map_or(farthest, |(_, region)| *region)];
        let members = match layout.design {
            Design::Two => ways.len() + 1,
            _ => (0..layout.voters.len()).map(|region| usize::from(layout.servers(region))).sum(),
        };
        Path {
            what: "the farthest region",
            members,
            min_ms: way.floor_ms(),
            p50_ms: way.quantile(0.5),
            p99_ms: way.quantile(0.99),
            p999_ms: way.quantile(0.999),
            quorum_p50_ms: to_quorum.quantile(0.5),
            quorum_p999_ms: to_quorum.quantile(0.999),
        }
    }

    fn inside_region(model: &Model, members: usize) -> Path {
        let zone = &model.zone;
        Path {
            what: "another zone",
            members,
            min_ms: zone.floor_ms(),
            p50_ms: zone.quantile(0.5),
            p99_ms: zone.quantile(0.99),
            p999_ms: zone.quantile(0.999),
            quorum_p50_ms: zone.quantile(0.5),
            quorum_p999_ms: zone.quantile(0.999),
        }
    }
}

/// Timeouts tried for the least downtime: from two heartbeats, each this much longer than the one before.
const PATIENCE_RATIO: f64 = 1.02;
const PATIENCE_STEPS: i32 = 300;

struct Derivation<'m> {
    model: &'m Model,
    assumptions: Assumptions,
    fsync_p9999_ms: f64,
    /// What clients ask for.
    session_ms: Option<f64>,
}

impl<'m> Derivation<'m> {
    fn new(world: &'m World) -> Self {
        Derivation {
            model: &world.model,
            assumptions: world.assumptions,
            fsync_p9999_ms: world.model.fsync.quantile(0.9999),
            session_ms: world.session_timeout_ms,
        }
    }

    /// How far a follower may be behind: round trip, flush and backlog.
    fn lag_ms(&self, path: &Path) -> f64 {
        let a = &self.assumptions;
        path.p999_ms + self.fsync_p9999_ms + 1000.0 * a.backlog_mb / a.link_mb_per_s
    }

    /// What a snapshot is sent at, when all followers ask for one at once.
    fn snapshot_mb_per_s(&self, path: &Path) -> f64 {
        let a = &self.assumptions;
        let parallel = path.members.saturating_sub(1).max(1) as f64;
        (a.link_mb_per_s / parallel).min(a.window_mb * 1000.0 / path.p999_ms)
    }

    /// How long a follower needs to join with a snapshot.
    fn join_ms(&self, path: &Path) -> f64 {
        let a = &self.assumptions;
        let transfer_ms = 1000.0 * a.snapshot_mb / self.snapshot_mb_per_s(path);
        let load_ms = 1000.0 * a.snapshot_mb / a.load_mb_per_s;
        4.0 * path.p999_ms + transfer_ms + load_ms + self.fsync_p9999_ms
    }

    /// Heartbeats that may go missing in a row before an election: so many that the path's losses
    /// alone cause no more than the allowed false elections.
    fn heartbeats(&self) -> f64 {
        let Assumptions { heartbeat_ms, loss, loss_again, false_elections_per_s, .. } = self.assumptions;
        let allowed = false_elections_per_s * heartbeat_ms / 1000.0 / (loss * (1.0 - loss_again));
        (1.0 + (allowed.ln() / loss_again.ln()).ceil()).max(2.0)
    }

    /// Elections that the path's losses alone cause in a year, at each follower.
    fn false_elections_per_year(&self) -> f64 {
        let Assumptions { heartbeat_ms, loss, loss_again, .. } = self.assumptions;
        let per_second =
            loss * (1.0 - loss_again) * loss_again.powf(self.heartbeats() - 1.0) / (heartbeat_ms / 1000.0);
        per_second * SECONDS_PER_YEAR
    }

    /// The election timeout of least downtime where paths break and heal by themselves.
    ///
    /// A blip costs its length if it ends before the timeout E, else E and a failover of F; a silent
    /// failure costs E + F. The downtime r_b (E[min(B, E)] + F S(E)) + r_f (E + F) is least where
    /// f/S = 1/F + r_f/(r_b F S): wait only while the path is likelier to heal than a failover is to
    /// finish.
    fn patience(&self, timeout: &'static str, path: &Path, settings: &mut Vec<Setting>) {
        let a = &self.assumptions;
        if a.blips_per_day <= 0.0 {
            return;
        }
        let blip = Distribution::from_percentiles(a.blip_p50_ms, a.blip_p99_ms, 0.0);
        let (blips, failures) = (a.blips_per_day * 365.25, a.silent_failures_per_year);
        let takeover_ms = self.takeover_ms(path);
        let (mut waited_ms, mut before_ms) = (0.0, 0.0);
        let (mut least, mut best_ms) = (f64::INFINITY, 0.0);
        for step in 0..PATIENCE_STEPS {
            let timeout_ms = 2.0 * a.heartbeat_ms * PATIENCE_RATIO.powi(step);
            let lasts = 1.0 - blip.cdf(timeout_ms);
            waited_ms += (timeout_ms - before_ms) * (2.0 - blip.cdf(timeout_ms) - blip.cdf(before_ms)) / 2.0;
            before_ms = timeout_ms;
            let downtime_ms =
                blips * (waited_ms + takeover_ms * lasts) + failures * (timeout_ms + takeover_ms);
            if downtime_ms < least {
                (least, best_ms) = (downtime_ms, timeout_ms);
            }
        }
        settings.push(Setting {
            name: timeout,
            value: best_ms.ceil(),
            unit: "ms",
            reason: format!(
                "the least downtime, {:.0} s a year, with {} blips a day (half of them over after {:.0} ms) and {} silent \
                 failures a year: a shorter timeout fails over where the path heals",
                least / 1000.0,
                a.blips_per_day,
                a.blip_p50_ms,
                failures
            ),
            rule_of_thumb: None,
        });
    }

    /// From a failure until the election starts: the last heartbeat may just have been sent.
    fn detection_ms(&self, path: &Path) -> f64 {
        self.election_timeout_ms(path) + self.assumptions.heartbeat_ms
    }

    fn election_timeout_ms(&self, path: &Path) -> f64 {
        let Assumptions { heartbeat_ms, stall_ms, .. } = self.assumptions;
        self.heartbeats() * heartbeat_ms + (path.p999_ms - path.min_ms) / 2.0 + stall_ms
    }

    /// From the first election message until the new leader serves.
    fn takeover_ms(&self, path: &Path) -> f64 {
        200.0 + 6.0 * path.quorum_p50_ms + 2.0 * self.model.fsync_ms
    }

    fn failover_ms(&self, path: &Path) -> f64 {
        self.detection_ms(path) + self.takeover_ms(path)
    }

    /// The keys of an ensemble's zoo.cfg, and its election.
    fn ensemble(&self, path: &Path, global: Option<&Path>, settings: &mut Vec<Setting>) {
        let a = &self.assumptions;
        let tick_ms = 2.0 * a.heartbeat_ms;
        settings.push(Setting {
            name: "tickTime",
            value: tick_ms,
            unit: "ms",
            reason: format!("two heartbeats of {:.0} ms: the server pings every half tick", a.heartbeat_ms),
            rule_of_thumb: Some("2000 ms: no failure is noticed in less than four seconds".to_owned()),
        });
        self.sync_limits(path, tick_ms, settings);
        self.election("heartbeat", "electionTimeout", path, settings);
        self.patience("electionTimeoutUnderBlips", path, settings);
        self.failover(["falseElections", "detection", "failover"], path, settings);
        self.sessions(path, global, tick_ms, settings);
    }

    fn sync_limits(&self, path: &Path, tick_ms: f64, settings: &mut Vec<Setting>) {
        let a = &self.assumptions;
        let lag_ms = self.lag_ms(path);
        let election_ms = self.election_timeout_ms(path);
        let sync_ticks = (election_ms.max(lag_ms) / tick_ms).ceil().max(2.0);
        settings.push(Setting {
            name: "syncLimit",
            value: sync_ticks,
            unit: "ticks",
            reason: format!(
                "covers the election timeout ({election_ms:.0} ms) and a lagging follower's round trip, flush and \
                 {:.0} MB ({lag_ms:.0} ms)",
                a.backlog_mb
            ),
            rule_of_thumb: Some(sync_rule_of_thumb(path.p50_ms)),
        });
        let (rate, join_ms) = (self.snapshot_mb_per_s(path), 1.5 * self.join_ms(path));
        settings.push(Setting {
            name: "initLimit",
            value: (join_ms / tick_ms).ceil(),
            unit: "ticks",
            reason: format!(
                "one and a half times four round trips, a snapshot of {:.0} MB at {rate:.0} MB/s and its loading \
                 ({join_ms:.0} ms)",
                a.snapshot_mb
            ),
            rule_of_thumb: Some("10 ticks, whatever the snapshot's size".to_owned()),
        });
        settings.push(Setting {
            name: "connectToLearnerMasterLimit",
            value: ((3.0 * path.p999_ms + 2000.0) / tick_ms).ceil(),
            unit: "ticks",
            reason: format!("three round trips to {} and two seconds of retries", path.what),
            rule_of_thumb: None,
        });
    }

    fn election(&self, beat: &'static str, timeout: &'static str, path: &Path, settings: &mut Vec<Setting>) {
        let a = &self.assumptions;
        settings.push(Setting {
            name: beat,
            value: a.heartbeat_ms,
            unit: "ms",
            reason: "detection takes a number of heartbeats, hardly any round trips: a short one is cheap"
                .to_owned(),
            rule_of_thumb: Some(format!(
                "etcd: 0.5 to 1.5 round trips, {:.0} to {:.0} ms",
                0.5 * path.p50_ms,
                1.5 * path.p50_ms
            )),
        });
        settings.push(Setting {
            name: timeout,
            value: self.election_timeout_ms(path).ceil(),
            unit: "ms",
            reason: format!(
                "{:.0} heartbeats, {:.0} ms jitter to {}, {:.0} ms stall; randomise by {:.0} ms or more (p99 of the \
                 round trip)",
                self.heartbeats(),
                (path.p999_ms - path.min_ms) / 2.0,
                path.what,
                a.stall_ms,
                path.p99_ms
            ),
            rule_of_thumb: Some(format!(
                "etcd: ten round trips or more, {:.0} ms; Consul: 5000 ms",
                10.0 * path.p50_ms
            )),
        });
    }

    /// What the election's timeout buys and costs.
    fn failover(&self, names: [&'static str; 3], path: &Path, settings: &mut Vec<Setting>) {
        let a = &self.assumptions;
        let [false_elections, detection, failover] = names;
        settings.push(Setting {
            name: false_elections,
            value: (self.false_elections_per_year() * 10.0).round() / 10.0,
            unit: "a year",
            reason: format!(
                "{:.0} heartbeats lost in a row, at {} loss in bursts of {:.0}; one in {:.0} days is allowed",
                self.heartbeats(),
                a.loss,
                1.0 / (1.0 - a.loss_again),
                1.0 / (86_400.0 * a.false_elections_per_s)
            ),
            rule_of_thumb: None,
        });
        settings.push(Setting {
            name: detection,
            value: self.detection_ms(path).ceil(),
            unit: "ms",
            reason: "from a failure until the election: the election timeout and a heartbeat".to_owned(),
            rule_of_thumb: Some("ZooKeeper's syncLimit 5 at tickTime 2000: 10000 ms".to_owned()),
        });
        settings.push(Setting {
            name: failover,
            value: self.failover_ms(path).ceil(),
            unit: "ms",
            reason: format!(
                "detection, and {:.0} ms to elect, synchronise and serve: 200 ms, six round trips to the quorum, two \
                 flushes",
                self.takeover_ms(path)
            ),
            rule_of_thumb: None,
        });
    }

    fn sessions(&self, path: &Path, global: Option<&Path>, tick_ms: f64, settings: &mut Vec<Setting>) {
        let client_ms = 3.0 * (2.0 * self.model.client_rtt_ms + self.assumptions.stall_ms);
        let min_ms = (2.0 * tick_ms).max(client_ms).max(self.failover_ms(path)).ceil();
        settings.push(Setting {
            name: "minSessionTimeout",
            value: min_ms,
            unit: "ms",
            reason: format!(
                "outlives two ticks ({:.0} ms), three lost pings of a client ({client_ms:.0} ms) and a failover ({:.0} ms)",
                2.0 * tick_ms,
                self.failover_ms(path)
            ),
            rule_of_thumb: Some(format!("two ticks, {:.0} ms here", 2.0 * tick_ms)),
        });
        let mut longest_ms = min_ms;
        if let Some(global) = global {
            longest_ms = min_ms.max(self.failover_ms(global)).ceil();
            settings.push(Setting {
                name: "minGlobalSessionTimeout",
                value: longest_ms,
                unit: "ms",
                reason: format!(
                    "sessions that own global znodes also outlive a failover between regions ({:.0} ms)",
                    self.failover_ms(global)
                ),
                rule_of_thumb: None,
            });
        }
        settings.push(self.longest_session(tick_ms, longest_ms, global.is_some()));
    }

    fn longest_session(&self, tick_ms: f64, shortest_ms: f64, in_mesh: bool) -> Setting {
        let (name, unit, rule_of_thumb) = ("maxSessionTimeout", "ms", Some("20 ticks".to_owned()));
        let (default_ms, wanted_ms) = (20.0 * tick_ms, self.session_ms);
        let asked = wanted_ms.map_or_else(String::new, |ms| format!("clients ask for {ms:.0} ms; "));
        if in_mesh {
            let value = wanted_ms.unwrap_or(MESH_SESSION_MS).max(2.0 * shortest_ms);
            let reason = format!(
                "{asked}for two thirds of it the others wait longer when they take over from a region"
            );
            return Setting { name, value, unit, reason, rule_of_thumb };
        }
        let value = default_ms.max(4.0 * shortest_ms).max(wanted_ms.unwrap_or(0.0)).max(40_000.0);
        let reason = match wanted_ms {
            Some(_) => format!("{asked}the default of 20 ticks would cap them at {default_ms:.0} ms"),
            None => {
                format!("always write it: the default of 20 ticks would cap sessions at {default_ms:.0} ms")
            }
        };
        Setting { name, value, unit, reason, rule_of_thumb }
    }

    fn global_group(&self, path: &Path, settings: &mut Vec<Setting>) {
        self.election("globalHeartbeat", "globalElectionTimeout", path, settings);
        self.patience("globalElectionTimeoutUnderBlips", path, settings);
        let names = ["globalFalseElections", "globalDetection", "globalFailover"];
        self.failover(names, path, settings);
        let lease_ms = self.lease("regionLease", path, settings);
        let session_ms = settings.iter().find(|s| s.name == "maxSessionTimeout").map_or(0.0, |s| s.value);
        let drift = self.assumptions.clock_drift;
        let with_drift = (1.0 + drift) / (1.0 - drift);
        settings.push(Setting {
            name: "regionTakeover",
            value: ((lease_ms + session_ms * 2.0 / 3.0) * with_drift + LEASE_MARGIN_MS).ceil(),
            unit: "ms",
            reason: format!(
                "from the receipt of the last renewal: the lease, two thirds of the longest session ({session_ms:.0} ms) \
                 for clients whose servers are silent, on the slowest clock allowed, and {LEASE_MARGIN_MS:.0} ms to tell \
                 the others"
            ),
            rule_of_thumb: None,
        });
    }

    fn leader_lease(&self, path: &Path, settings: &mut Vec<Setting>) {
        let lease_ms = self.lease("leaderLease", path, settings);
        settings.push(Setting {
            name: "leaderTakeover",
            value: (lease_ms * (1.0 + self.assumptions.clock_drift)).ceil(),
            unit: "ms",
            reason: "from the receipt of the last renewal: the lease on the slowest clock allowed".to_owned(),
            rule_of_thumb: None,
        });
    }

    /// Adds a lease, and returns how long it lasts, ms.
    fn lease(&self, lease: &'static str, path: &Path, settings: &mut Vec<Setting>) -> f64 {
        let a = &self.assumptions;
        let needed_ms = self.heartbeats() * a.heartbeat_ms + path.quorum_p999_ms + a.stall_ms;
        let lease_ms = (needed_ms / (1.0 - a.clock_drift)).ceil();
        settings.push(Setting {
            name: lease,
            value: lease_ms,
            unit: "ms",
            reason: format!(
                "from the sending of a renewal: {:.0} heartbeats, {:.0} ms to a quorum (p99.9), {:.0} ms stall, {:.1} % drift",
                self.heartbeats(),
                path.quorum_p999_ms,
                a.stall_ms,
                100.0 * a.clock_drift
            ),
            rule_of_thumb: None,
        });
        lease_ms
    }
}

/// What operators use at tickTime 2000, by the distance.
fn sync_rule_of_thumb(rtt_ms: f64) -> String {
    let (low, high) = match rtt_ms {
        ms if ms < 1.0 => (5, 5),
        ms if ms < 5.0 => (5, 10),
        ms if ms < 100.0 => (10, 50),
        _ => (50, 150),
    };
    let ticks = if low == high { low.to_string() } else { format!("{low} to {high}") };
    format!("{ticks} ticks of 2000 ms at {rtt_ms:.0} ms: {} s or more to drop a dead follower", 2 * low)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::latency::tests::layout;
    use crate::scenario;

    /// The world of the example scenario.
    pub(super) fn world(assumptions: Assumptions) -> World {
        let mut scenario = scenario::parse(include_str!("../data/three-regions.json")).unwrap();
        scenario.timing = assumptions;
        scenario.world().unwrap().0
    }

    fn value(timing: &Timing, name: &str) -> f64 {
        timing.get(name).unwrap_or_else(|| panic!("no {name}")).value
    }

    #[test]
    fn timing_follows_the_formulas() {
        let world = world(Assumptions::default());
        let model = &world.model;
        let timing = Timing::derive(&world, &layout(Design::Flat, 0, [2, 2, 1]));
        // k = 1 + ceil(ln(3.858e-7 * 0.1 / 5e-5) / ln 0.5) = 1 + ceil(10.34).
        let way = &model.rtt[0][2];
        let election = 12.0 * 100.0 + (way.quantile(0.999) - way.floor_ms()) / 2.0 + 100.0;
        assert_eq!(value(&timing, "electionTimeout"), election.ceil());
        assert_eq!(value(&timing, "tickTime"), 200.0);
        assert_eq!(value(&timing, "syncLimit"), (election / 200.0).ceil());
        let quorum = &model.rtt[0][1];
        let lease = (1200.0 + quorum.quantile(0.999) + 100.0) / 0.999;
        assert_eq!(value(&timing, "leaderLease"), lease.ceil());
        assert_eq!(value(&timing, "failover"), (election + 100.0 + 200.0 + 6.0 * 62.0 + 2.0).ceil());
        assert!(value(&timing, "maxSessionTimeout") >= 40_000.0);
        assert_eq!(value(&timing, "detection"), (election + 100.0).ceil());
        // l (1 - q) q^(k - 1) / h = 1e-4 * 0.5 * 2^-11 / 0.1 s.
        let per_year = 5e-4 / 2048.0 * SECONDS_PER_YEAR;
        assert!((value(&timing, "falseElections") - per_year).abs() < 0.05);
    }

    #[test]
    fn two_levels_have_timeouts_of_their_own() {
        let timing = Timing::derive(&world(Assumptions::default()), &layout(Design::Two, 0, [3, 3, 1]));
        assert!(value(&timing, "globalElectionTimeout") > value(&timing, "electionTimeout"));
        assert!(value(&timing, "minGlobalSessionTimeout") > value(&timing, "minSessionTimeout"));
        let (lease, session) = (value(&timing, "regionLease"), value(&timing, "maxSessionTimeout"));
        assert_eq!(session, (2.0 * value(&timing, "minGlobalSessionTimeout")).max(MESH_SESSION_MS));
        assert!((value(&timing, "regionTakeover") / (lease + 10_000.0 + 1_000.0) - 1.0).abs() < 0.01);
        assert!(timing.get("leaderLease").is_none());
    }

    #[test]
    fn patience_pays_as_long_as_paths_heal_sooner_than_a_failover_is_done() {
        let under_blips = |blips_per_day, blip_p50_ms, blip_p99_ms| {
            let assumptions =
                Assumptions { blips_per_day, blip_p50_ms, blip_p99_ms, ..Assumptions::default() };
            let timing = Timing::derive(&world(assumptions), &layout(Design::Flat, 0, [2, 2, 1]));
            timing.get("electionTimeoutUnderBlips").map(|setting| setting.value)
        };
        assert_eq!(under_blips(0.0, 500.0, 20_000.0), None);
        // Of many short blips most are waited out; long ones are not worth waiting for.
        let (short, long) =
            (under_blips(50.0, 100.0, 600.0).unwrap(), under_blips(50.0, 30_000.0, 90_000.0).unwrap());
        assert!(short > 300.0 && long <= 200.0, "{short} {long}");
        // The first-order condition: f/S = 1/F + r_f/(r_b F S), F = 574 ms in the example.
        let (blip, failover_ms) = (Distribution::from_percentiles(100.0, 600.0, 0.0), 574.0);
        let density = (blip.cdf(short + 1.0) - blip.cdf(short - 1.0)) / 2.0;
        let needed = ((1.0 - blip.cdf(short)) + 4.0 / (50.0 * 365.25)) / failover_ms;
        assert!((density / needed - 1.0).abs() < 0.15, "{density} {needed}");
    }

    #[test]
    fn sessions_are_as_long_as_clients_ask() {
        let mut world = world(Assumptions::default());
        world.session_timeout_ms = Some(120_000.0);
        let timing = Timing::derive(&world, &layout(Design::Flat, 0, [1, 1, 1]));
        assert_eq!(value(&timing, "maxSessionTimeout"), 120_000.0);
    }

    #[test]
    fn more_loss_needs_more_heartbeats() {
        let election = |loss| {
            let assumptions = Assumptions { loss, ..Assumptions::default() };
            value(
                &Timing::derive(&world(assumptions), &layout(Design::Flat, 0, [1, 1, 1])),
                "electionTimeout",
            )
        };
        assert!(election(1e-2) > election(1e-4));
        assert!(election(1e-12) >= 200.0);
    }
}
