//! Timeouts in use, held against what the round trips need.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Derivation, Path};
use crate::layout::{Design, Layout};
use crate::scenario::World;

/// A timeout in use that does not fit the round trips.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Misfit {
    /// The timeout.
    pub name: &'static str,
    /// What it is, in `unit`.
    pub value: f64,
    /// What it must be at least.
    pub least: f64,
    /// `ms` or `ticks`.
    pub unit: &'static str,
    /// Why.
    pub reason: String,
}

/// Names that timeouts in use are given by, as [`super::Setting::name`].
pub const TIMEOUTS_IN_USE: [&str; 11] = [
    "tickTime",
    "initLimit",
    "syncLimit",
    "connectToLearnerMasterLimit",
    "minSessionTimeout",
    "maxSessionTimeout",
    "heartbeat",
    "electionTimeout",
    "globalHeartbeat",
    "globalElectionTimeout",
    "regionLease",
];

/// Timeouts in use that are too short for the round trips, whatever may be thought of losses: less
/// than what the formulas need with two heartbeats lost in a row.
pub fn misfits(world: &World, layout: &Layout, in_use: &BTreeMap<String, f64>) -> Vec<Misfit> {
    let derivation = Derivation::new(world);
    let between_regions = Path::between_regions(&world.model, layout);
    let used = InUse { derivation, in_use };
    let mut misfits = Vec::new();
    let (ensemble, failover_ms) = match layout.design {
        Design::Two => {
            let servers = layout.voters.iter().chain(&layout.observers).max().copied().unwrap_or(1);
            let inside = Path::inside_region(&world.model, usize::from(servers));
            used.election("globalHeartbeat", "globalElectionTimeout", &between_regions, &mut misfits);
            used.lease(&between_regions, &mut misfits);
            let failover_ms = used.failover_ms("electionTimeout", &inside);
            (inside, failover_ms)
        }
        Design::Flat | Design::Hier => {
            let failover_ms = used.failover_ms("electionTimeout", &between_regions);
            (between_regions, failover_ms)
        }
    };
    used.election("heartbeat", "electionTimeout", &ensemble, &mut misfits);
    used.limits(&ensemble, &mut misfits);
    used.sessions(failover_ms, &mut misfits);
    misfits
}

/// Timeouts in use, held against what the round trips need.
struct InUse<'u> {
    derivation: Derivation<'u>,
    in_use: &'u BTreeMap<String, f64>,
}

impl InUse<'_> {
    fn get(&self, name: &str) -> Option<f64> {
        self.in_use.get(name).copied()
    }

    fn check(
        &self,
        name: &'static str,
        unit: &'static str,
        least: f64,
        reason: String,
        misfits: &mut Vec<Misfit>,
    ) {
        if let Some(value) = self.get(name).filter(|value| *value < least.ceil()) {
            misfits.push(Misfit { name, value, least: least.ceil(), unit, reason });
        }
    }

    fn election(&self, beat: &'static str, timeout: &'static str, path: &Path, misfits: &mut Vec<Misfit>) {
        let a = &self.derivation.assumptions;
        let heartbeat_ms = self.get(beat).unwrap_or(a.heartbeat_ms);
        let jitter_ms = (path.p999_ms - path.min_ms) / 2.0;
        let least_ms = (2.0 * heartbeat_ms + jitter_ms).max(heartbeat_ms + path.p999_ms) + a.stall_ms;
        let reason = format!(
            "two heartbeats of {heartbeat_ms:.0} ms and {jitter_ms:.0} ms jitter, or one and the round trip to {} \
             ({:.0} ms at p99.9), and {:.0} ms stall",
            path.what, path.p999_ms, a.stall_ms
        );
        self.check(timeout, "ms", least_ms, reason, misfits);
    }

    fn lease(&self, path: &Path, misfits: &mut Vec<Misfit>) {
        let a = &self.derivation.assumptions;
        let Some(election_ms) = self.get("globalElectionTimeout") else { return };
        let least_ms = (election_ms + path.quorum_p999_ms + a.stall_ms) / (1.0 - a.clock_drift);
        let reason = format!(
            "a renewal outlives an election ({election_ms:.0} ms), {:.0} ms to a quorum (p99.9) and {:.0} ms stall",
            path.quorum_p999_ms, a.stall_ms
        );
        self.check("regionLease", "ms", least_ms, reason, misfits);
    }

    fn limits(&self, path: &Path, misfits: &mut Vec<Misfit>) {
        let Some(tick_ms) = self.get("tickTime").filter(|ms| *ms > 0.0) else { return };
        let (lag_ms, join_ms) = (self.derivation.lag_ms(path), self.derivation.join_ms(path));
        let reason = format!("a lagging follower's round trip, flush and backlog take {lag_ms:.0} ms");
        self.check("syncLimit", "ticks", lag_ms / tick_ms, reason, misfits);
        let reason = format!("four round trips, a snapshot and its loading take {join_ms:.0} ms");
        self.check("initLimit", "ticks", join_ms / tick_ms, reason, misfits);
        let connect_ms = 3.0 * path.p999_ms;
        let reason = format!("three round trips to {} take {connect_ms:.0} ms", path.what);
        self.check("connectToLearnerMasterLimit", "ticks", connect_ms / tick_ms, reason, misfits);
    }

    fn sessions(&self, failover_ms: f64, misfits: &mut Vec<Misfit>) {
        let reason = format!("shorter sessions end with every failover of {failover_ms:.0} ms");
        self.check("minSessionTimeout", "ms", failover_ms, reason, misfits);
        if let Some(wanted_ms) = self.derivation.session_ms {
            let reason = "clients ask for it".to_owned();
            self.check("maxSessionTimeout", "ms", wanted_ms, reason, misfits);
        }
    }

    fn failover_ms(&self, timeout: &str, path: &Path) -> f64 {
        let derivation = &self.derivation;
        let election_ms = self.get(timeout).unwrap_or(derivation.election_timeout_ms(path));
        let beat_ms = self.get("heartbeat").unwrap_or(derivation.assumptions.heartbeat_ms);
        election_ms + beat_ms + derivation.takeover_ms(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::tests::layout;
    use crate::timing::Assumptions;
    use crate::timing::tests::world;

    #[test]
    fn timeouts_in_use_are_held_against_the_round_trips() {
        let world = world(Assumptions::default());
        let layout = layout(Design::Two, 0, [3, 3, 1]);
        let of = |pairs: &[(&str, f64)]| -> Vec<&'static str> {
            let in_use = pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
            misfits(&world, &layout, &in_use).iter().map(|misfit| misfit.name).collect()
        };
        let defaults = [
            ("tickTime", 2000.0),
            ("heartbeat", 100.0),
            ("electionTimeout", 900.0),
            ("globalHeartbeat", 400.0),
            ("globalElectionTimeout", 2500.0),
            ("regionLease", 10_000.0),
            ("minSessionTimeout", 4000.0),
        ];
        assert_eq!(of(&defaults), Vec::<&str>::new());
        assert_eq!(
            of(&[("globalHeartbeat", 400.0), ("globalElectionTimeout", 800.0)]),
            ["globalElectionTimeout"]
        );
        assert_eq!(of(&[("globalElectionTimeout", 2500.0), ("regionLease", 2000.0)]), ["regionLease"]);
        assert_eq!(of(&[("tickTime", 100.0), ("syncLimit", 1.0)]), ["syncLimit"]);
        assert_eq!(of(&[("minSessionTimeout", 500.0)]), ["minSessionTimeout"]);
    }
}
