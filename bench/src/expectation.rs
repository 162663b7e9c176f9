//! What an operation should cost, given the round trips between the regions, and whether two claims
//! about the design hold in the figures.
//!
//! The formulas are the planner's for two levels, with Meridian's two further commits in the region of
//! the caller (`meridian_topology::latency::Pipeline::MERIDIAN`): one keeps the request until its orderer
//! has taken it, one applies the outcome. A `sync` costs what a write does: it is put in order with the
//! writes and answered when the caller's region has applied it, where the planner's formula for other
//! systems asks the leader only. All times are medians in ms; the sum of medians is near the median of
//! the sum where, as here, one term outweighs the others.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::mesh::{Mode, RoundTrips};

/// A global write in the leading region may take this many round trips to its quorum ...
const ROUND_TRIPS_MAX: f64 = 1.6;
/// ... and this many ms for its commits in regions, on slow disks and busy machines.
const COMMITS_MS_MAX: f64 = 25.0;
/// A local operation may take this part of the shortest round trip ...
const LOCAL_PART_MAX: f64 = 0.5;
/// ... and this many ms if it is a read.
const READ_MS_MAX: f64 = 5.0;

/// A median may be off its prediction by this part of it ...
const TOLERANCE_PART: f64 = 0.1;
/// ... or by this many ms, whichever is more.
const TOLERANCE_MS: f64 = 1.0;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// `getData`
    Read,
    /// `setData`
    Write,
    /// `sync`, then `getData`
    SyncRead,
}

/// What it should take, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Expectation {
    /// The median in ms.
    pub ms: f64,
    /// The terms that it is the sum of.
    pub terms: String,
}

impl Expectation {
    /// How far the measured median may be off, either way, ms.
    pub fn tolerance_ms(&self) -> f64 {
        (TOLERANCE_PART * self.ms).max(TOLERANCE_MS)
    }
}

/// What was measured of the mesh: all that expectations follow from.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Names of the regions, each a voter of the global group.
    pub regions: Vec<String>,
    /// Round trips between them.
    pub round_trips: RoundTrips,
    /// The region that leads the global group.
    pub global_leader: Option<String>,
    /// The median of a local write in each region, which is a commit of its ensemble, in ms.
    pub local_commit_ms: BTreeMap<String, f64>,
}

impl Measured {
    /// What `action` on a znode of a subtree should take for a client in `region`; no mode stands for a
    /// local znode. None for what never leaves the region, or where a round trip is not known.
    pub fn expectation(&self, action: Action, mode: Option<&Mode>, region: &str) -> Option<Expectation> {
        match (action, mode?) {
            (Action::Read, _) => None,
            // A sync is put in order like a write that changes nothing.
            (Action::Write | Action::SyncRead, Mode::Homed { home }) => self.homed_write(home, region),
            (Action::Write | Action::SyncRead, Mode::Global) => self.global_write(region),
        }
    }

    /// The (Q-1)-th nearest of the other regions and the round trip to it: whom a write in the leading
    /// region waits for. None for a mesh of one region.
    pub fn quorum_region(&self, leader: &str) -> Option<(&str, f64)> {
        let quorum = self.regions.len() / 2 + 1;
        let others = self.regions.iter().filter(|region| *region != leader);
        let mut others: Vec<(&str, f64)> = others
            .map(|region| Some((region.as_str(), self.round_trips.between(leader, region)?)))
            .collect::<Option<_>>()?;
        others.sort_by(|a, b| a.1.total_cmp(&b.1));
        others.get(quorum.checked_sub(2)?).copied()
    }

    fn homed_write(&self, home: &str, region: &str) -> Option<Expectation> {
        let mut sum = Sum::default();
        if region != home {
            sum.add(format_args!("RTT to {home}"), self.round_trips.between(region, home)?);
        }
        sum.add("commit at home", self.commit_ms(home)?);
        if region != home {
            sum.add("2 commits here", 2.0 * self.commit_ms(region)?);
        }
        Some(sum.expectation())
    }

    fn global_write(&self, region: &str) -> Option<Expectation> {
        let leader = self.global_leader.as_deref()?;
        let mut sum = self.way_to_leader(leader, region)?;
        match self.quorum_region(leader) {
            Some((nearest, rtt_ms)) => {
                // The leader's own commit runs beside the sending.
                let vote_ms = rtt_ms + self.commit_ms(nearest)?;
                let own_ms = self.commit_ms(leader)?;
                sum.add(format_args!("RTT {leader}-{nearest} and its commit"), vote_ms.max(own_ms));
            }
            None => sum.add("commit", self.commit_ms(leader)?),
        }
        sum.add("2 commits here", 2.0 * self.commit_ms(region)?);
        Some(sum.expectation())
    }

    fn way_to_leader(&self, leader: &str, region: &str) -> Option<Sum> {
        let mut sum = Sum::default();
        if region != leader {
            sum.add(format_args!("RTT to {leader}"), self.round_trips.between(region, leader)?);
        }
        Some(sum)
    }

    fn commit_ms(&self, region: &str) -> Option<f64> {
        self.local_commit_ms.get(region).copied()
    }

    fn shortest_round_trip(&self, region: &str) -> Option<f64> {
        let others = self.regions.iter().filter(|other| *other != region);
        others.filter_map(|other| self.round_trips.between(region, other)).min_by(f64::total_cmp)
    }

    /// Claim: what is local does not wait for other regions.
    pub fn local_claim(&self, action: Action, region: &str, p50_ms: f64) -> Option<Claim> {
        let round_trip_ms = self.shortest_round_trip(region)?;
        let (what, allowance_ms) = match action {
            Action::Read => ("reads", READ_MS_MAX),
            Action::Write | Action::SyncRead => ("writes", COMMITS_MS_MAX),
        };
        let limit_ms = LOCAL_PART_MAX * round_trip_ms + allowance_ms;
        Some(Claim {
            claim: format!("local {what} in {region} do not wait for other regions"),
            measured_ms: p50_ms,
            limit_ms,
            verdict: Verdict::of(p50_ms, limit_ms, round_trip_ms),
        })
    }

    /// Claim: a global write in the leading region costs one round trip to its quorum, not two.
    pub fn global_claim(&self, region: &str, p50_ms: f64) -> Option<Claim> {
        if self.global_leader.as_deref() != Some(region) {
            return None;
        }
        let (nearest, round_trip_ms) = self.quorum_region(region)?;
        let limit_ms = ROUND_TRIPS_MAX * round_trip_ms + COMMITS_MS_MAX;
        let two_round_trips_ms = 2.0 * round_trip_ms + self.commit_ms(region)?;
        Some(Claim {
            claim: format!(
                "a global write in {region}, which leads, costs one round trip (to {nearest}), not two"
            ),
            measured_ms: p50_ms,
            limit_ms,
            verdict: Verdict::of(p50_ms, limit_ms, two_round_trips_ms),
        })
    }
}

/// A sum whose terms are told.
#[derive(Default)]
struct Sum {
    ms: f64,
    terms: Vec<String>,
}

impl Sum {
    fn add(&mut self, what: impl std::fmt::Display, ms: f64) {
        self.ms += ms;
        self.terms.push(format!("{what} {ms:.1}"));
    }

    fn expectation(self) -> Expectation {
        Expectation { ms: self.ms, terms: self.terms.join(" + ") }
    }
}

/// A claim about the design and what the figures say of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Claim {
    /// What is claimed.
    pub claim: String,
    /// The median in ms that speaks for or against it.
    pub measured_ms: f64,
    /// Above this the claim is violated, by a wide margin.
    pub limit_ms: f64,
    /// What follows.
    pub verdict: Verdict,
}

/// Whether a claim holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It does.
    Holds,
    /// It does not.
    Violated,
    /// The round trips are too short to tell: even if it did not hold, the figure could be this small.
    Undecided,
}

impl Verdict {
    /// `otherwise_ms` is what the figure would be at least if the claim did not hold.
    fn of(measured_ms: f64, limit_ms: f64, otherwise_ms: f64) -> Self {
        if measured_ms > limit_ms {
            Self::Violated
        } else if measured_ms < otherwise_ms {
            Self::Holds
        } else {
            Self::Undecided
        }
    }
}

#[cfg(test)]
mod tests {
    use meridian_topology::latency::Pipeline;
    use meridian_topology::layout::Design;

    use super::*;

    fn measured() -> Measured {
        let pair = |a: &str, b: &str, ms| ((a.to_string(), b.to_string()), ms);
        let rtts = [pair("east", "west", 62.0), pair("east", "eu", 75.0), pair("west", "eu", 130.0)];
        Measured {
            regions: ["east", "west", "eu"].map(String::from).to_vec(),
            round_trips: RoundTrips(rtts.into()),
            global_leader: Some("east".into()),
            local_commit_ms: [("east".into(), 3.0), ("west".into(), 4.0), ("eu".into(), 5.0)].into(),
        }
    }

    fn expected_ms(action: Action, mode: Option<&Mode>, region: &str) -> Option<f64> {
        measured().expectation(action, mode, region).map(|expectation| expectation.ms)
    }

    #[test]
    fn a_write_costs_what_the_planner_says() {
        let homed = Mode::Homed { home: "west".into() };
        assert_eq!(expected_ms(Action::Write, None, "east"), None);
        assert_eq!(expected_ms(Action::Write, Some(&homed), "west"), Some(4.0));
        assert_eq!(expected_ms(Action::Write, Some(&homed), "eu"), Some(130.0 + 4.0 + 2.0 * 5.0));
        assert_eq!(expected_ms(Action::Write, Some(&Mode::Global), "east"), Some(62.0 + 4.0 + 2.0 * 3.0));
        assert_eq!(
            expected_ms(Action::Write, Some(&Mode::Global), "eu"),
            Some(75.0 + (62.0 + 4.0) + 2.0 * 5.0)
        );
    }

    /// Where every region commits alike, these are the planner's formulas for this mesh.
    #[test]
    fn the_planner_predicts_the_same() {
        let mut scenario = meridian_topology::scenario::parse(
            r#"
            regions = ["east", "west", "eu"]
            client_rtt = 0
            fsync = 1
            zone_rtt = 2
            rtt.east = { west = 62, eu = 75 }
            rtt.west = { eu = 130 }
            "#,
        )
        .unwrap();
        scenario.pipeline = Pipeline::MERIDIAN;
        let (world, _) = scenario.world().unwrap();
        let mut measured = measured();
        measured.local_commit_ms.values_mut().for_each(|ms| *ms = 3.0);
        for (leader, name) in measured.regions.clone().iter().enumerate() {
            measured.global_leader = Some(name.clone());
            let layout = world.space.complete(Design::Two, leader, vec![3, 3, 3]);
            for (client, region) in measured.regions.iter().enumerate() {
                let expected_ms = |action| {
                    measured.expectation(action, Some(&Mode::Global), region).map(|expected| expected.ms)
                };
                assert_eq!(expected_ms(Action::Write), Some(world.model.write_ms(&layout, client)));
                assert_eq!(expected_ms(Action::SyncRead), Some(world.model.sync_read_ms(&layout, client)));
            }
        }
    }

    #[test]
    fn a_prediction_may_be_off_by_a_tenth_or_a_millisecond() {
        let tolerance_ms = |ms| Expectation { ms, terms: String::new() }.tolerance_ms();
        assert_eq!([0.5, 10.0, 60.0].map(tolerance_ms), [1.0, 1.0, 6.0]);
    }

    #[test]
    fn a_read_waits_for_the_orderer_only_after_a_sync() {
        let homed = Mode::Homed { home: "west".into() };
        assert_eq!(expected_ms(Action::Read, Some(&homed), "eu"), None);
        for mode in [homed, Mode::Global] {
            let write = expected_ms(Action::Write, Some(&mode), "eu");
            assert_eq!(expected_ms(Action::SyncRead, Some(&mode), "eu"), write);
        }
    }

    #[test]
    fn the_quorum_of_five_regions_ends_with_the_second_nearest() {
        let mut five = measured();
        five.regions.extend(["asia".into(), "south".into()]);
        for (region, ms) in [("asia", 160.0), ("south", 110.0)] {
            five.round_trips.0.insert(("east".into(), region.into()), ms);
        }
        assert_eq!(five.quorum_region("east"), Some(("eu", 75.0)));
        five.regions.push("moon".into());
        assert_eq!(five.quorum_region("east"), None, "a round trip is missing");
        five.regions.truncate(1);
        assert_eq!(five.quorum_region("east"), None);
        assert_eq!(five.expectation(Action::Write, Some(&Mode::Global), "east").unwrap().ms, 9.0);
    }

    #[test]
    fn a_claim_is_judged_by_a_wide_margin() {
        let verdict = |ms| measured().global_claim("east", ms).unwrap().verdict;
        assert_eq!(verdict(75.0), Verdict::Holds);
        assert_eq!(verdict(124.0), Verdict::Holds);
        assert_eq!(verdict(130.0), Verdict::Violated);
        assert_eq!(measured().global_claim("west", 999.0), None);

        let local = |action, ms| measured().local_claim(action, "west", ms).unwrap().verdict;
        assert_eq!(local(Action::Read, 0.2), Verdict::Holds);
        assert_eq!(local(Action::Read, 62.0), Verdict::Violated);
        assert_eq!(local(Action::Write, 9.0), Verdict::Holds);
        assert_eq!(local(Action::Write, 66.0), Verdict::Violated);
    }

    #[test]
    fn short_round_trips_decide_nothing() {
        let mut near = measured();
        near.round_trips.0.values_mut().for_each(|ms| *ms = 1.0);
        assert_eq!(near.global_claim("east", 12.0).unwrap().verdict, Verdict::Undecided);
        assert_eq!(near.local_claim(Action::Write, "east", 12.0).unwrap().verdict, Verdict::Undecided);
        assert_eq!(near.global_claim("east", 40.0).unwrap().verdict, Verdict::Violated);
    }
}
