//! Region leases: how long a region may believe that its sessions' ephemerals in shared subtrees stand.
//!
//! A region asks the leader of the global group to renew its lease. The leader answers only after it has
//! heard, later than the request came in, from a majority of regions that it still leads. The region
//! counts from the moment it *sent* the request, the leader from the moment it *received* it and for
//! longer, by twice the greatest drift of a clock's rate and a margin for telling the clients. So the
//! region's own servers give up its holders before the others may take their place, whatever the network
//! did, as long as no clock's rate is off by more than the bound. A new leader of the global group starts
//! all leases anew, from its election.
//!
//! Both sides are state machines that are told the time.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_seam::mutant::{self, Mutant};

use crate::mesh::RegionId;

/// A client that hears nothing gives its server up after this share of its session's timeout: as ZooKeeper's clients
/// do in `ClientCnxn` (Java), `zookeeper.c`, kazoo and Go.
pub const BELIEF_SHARE: f64 = 2.0 / 3.0;

/// How long leases last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeaseTerms {
    /// From the sending of a renewal, on the region's clock. Must be longer than a failover of a
    /// region's leader and of the global group's together, or every failover ends sessions.
    pub duration: Duration,
    /// By how much the rate of any clock may be off: 0.01 is 1 %.
    pub drift_max: f64,
    /// For a region's servers to close the connections of its holders after the lease has run out.
    pub margin: Duration,
    /// The longest timeout of a session in any region of the mesh.
    pub session_timeout_max: Duration,
}

impl Default for LeaseTerms {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(10),
            drift_max: 0.01,
            margin: Duration::from_secs(1),
            session_timeout_max: Duration::from_secs(15),
        }
    }
}

impl LeaseTerms {
    /// How long the leader of the global group waits, from the receipt of a renewal, on its clock.
    pub fn granted(&self) -> Duration {
        if mutant::is(Mutant::LeaseFromReceipt) {
            return self.duration;
        }
        self.with_drift(self.duration) + self.notice_period()
    }

    /// From the end of the lease on the region's side until all of its clients have noticed, those too whose server
    /// tells them nothing.
    pub fn notice_period(&self) -> Duration {
        if mutant::is(Mutant::SilentServersForgotten) {
            return self.margin;
        }
        self.with_drift(self.session_timeout_max.mul_f64(BELIEF_SHARE)) + self.margin
    }

    /// What a clock that is fast by the bound shows when this time is over on one that is slow by the bound.
    fn with_drift(&self, time: Duration) -> Duration {
        time.mul_f64((1.0 + self.drift_max) / (1.0 - self.drift_max))
    }

    /// How often a region renews.
    pub fn renewal_interval(&self) -> Duration {
        self.duration / 10
    }
}

/// The region's side.
#[derive(Debug)]
pub struct HeldLease {
    terms: LeaseTerms,
    deadline: Duration,
    stage: LeaseStage,
}

/// How far a region is from losing what its sessions hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseStage {
    /// The lease holds.
    Holds,
    /// It has run out: the region's servers no longer serve holders, whose sessions go on if it is renewed in time.
    RunOut,
    /// All clients have noticed: the sessions end.
    Lapsed,
}

impl HeldLease {
    /// A new regional leader knows of no renewal. Until it has one, or for one duration at most, it does
    /// not count the lease as run out: the mesh's side lasts at least as long.
    pub fn new(terms: LeaseTerms, now: Duration) -> Self {
        Self { terms, deadline: now + terms.duration, stage: LeaseStage::Holds }
    }

    /// A renewal that was sent at `sent` has been granted; returns until when the lease holds.
    pub fn renewed(&mut self, sent: Duration) -> Duration {
        self.deadline = self.deadline.max(sent + self.terms.duration);
        self.stage = LeaseStage::Holds;
        sent + self.terms.duration
    }

    /// When the next stage begins unless the lease is renewed; `None` after the last.
    pub fn next_stage_at(&self) -> Option<Duration> {
        match self.stage {
            LeaseStage::Holds => Some(self.deadline),
            LeaseStage::RunOut => Some(self.deadline + self.terms.notice_period()),
            LeaseStage::Lapsed => None,
        }
    }

    /// Goes on to the stage that has begun by now, and returns it if it is another one.
    pub fn advance(&mut self, now: Duration) -> Option<LeaseStage> {
        let before = self.stage;
        while self.next_stage_at().is_some_and(|at| now >= at) {
            self.stage =
                if self.stage == LeaseStage::Holds { LeaseStage::RunOut } else { LeaseStage::Lapsed };
        }
        (self.stage != before).then_some(self.stage)
    }
}

/// The side of the global group's leader.
#[derive(Debug)]
pub struct GrantedLeases {
    terms: LeaseTerms,
    regions: BTreeMap<RegionId, Grant>,
}

#[derive(Debug)]
struct Grant {
    ends: Duration,
    state: GrantState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GrantState {
    Running,
    /// The group has been asked to agree that it ended. Nothing is granted until it has: an agreement that
    /// was thought lost may still come.
    Ending,
    Ended,
}

impl GrantedLeases {
    /// A leader that was elected at `now` gives every region a whole lease.
    pub fn new(terms: LeaseTerms, regions: impl IntoIterator<Item = RegionId>, now: Duration) -> Self {
        let grant = || Grant { ends: now + terms.granted(), state: GrantState::Running };
        Self { terms, regions: regions.into_iter().map(|region| (region, grant())).collect() }
    }

    /// A renewal that was received at `received`, before a majority confirmed the leader. Whether it is
    /// granted.
    pub fn renew(&mut self, region: RegionId, received: Duration) -> bool {
        match self.regions.get_mut(&region) {
            Some(grant) if grant.state != GrantState::Ending => {
                grant.ends = grant.ends.max(received + self.terms.granted());
                grant.state = GrantState::Running;
                true
            }
            _ => false,
        }
    }

    /// Regions whose lease has just ended. Nothing is granted to them until [`GrantedLeases::agreed`].
    pub fn ended(&mut self, now: Duration) -> Vec<RegionId> {
        let ended = self.regions.iter_mut().filter(|(_, g)| g.state == GrantState::Running && now >= g.ends);
        ended
            .map(|(region, grant)| {
                grant.state = GrantState::Ending;
                *region
            })
            .collect()
    }

    /// Regions about whose end the group is yet to agree: it is to be asked, again and again.
    pub fn ending(&self) -> Vec<RegionId> {
        self.regions
            .iter()
            .filter(|(_, g)| g.state == GrantState::Ending)
            .map(|(region, _)| *region)
            .collect()
    }

    /// The group has agreed that a region's lease ended.
    pub fn agreed(&mut self, region: RegionId) {
        if let Some(grant) = self.regions.get_mut(&region) {
            grant.state = GrantState::Ended;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secs(s: f64) -> Duration {
        Duration::from_secs_f64(s)
    }

    #[test]
    fn each_stage_is_told_once_and_a_renewal_ends_it() {
        let notice_period = LeaseTerms::default().notice_period();
        let mut held = HeldLease::new(LeaseTerms::default(), secs(5.0));
        assert_eq!(held.advance(secs(14.9)), None);
        assert_eq!(held.advance(secs(15.0)), Some(LeaseStage::RunOut));
        assert_eq!(held.advance(secs(16.0)), None);
        held.renewed(secs(16.0));
        assert_eq!(held.advance(secs(25.9)), None);
        assert_eq!(held.advance(secs(26.0)), Some(LeaseStage::RunOut));
        assert_eq!(held.advance(secs(25.9) + notice_period), None);
        assert_eq!(held.advance(secs(26.0) + notice_period), Some(LeaseStage::Lapsed));
        assert_eq!((held.advance(secs(90.0)), held.next_stage_at()), (None, None));
        held.renewed(secs(91.0));
        assert_eq!(held.advance(secs(200.0)), Some(LeaseStage::Lapsed));
    }

    #[test]
    fn nothing_is_granted_while_the_group_is_asked() {
        let mut granted = GrantedLeases::new(LeaseTerms::default(), [1, 2], secs(0.0));
        assert!(granted.renew(2, secs(11.0)));
        assert!(granted.ended(secs(21.0)).is_empty());
        assert_eq!(granted.ended(secs(22.0)), [1]);
        assert!(!granted.renew(1, secs(22.1)));
        assert_eq!(granted.ending(), [1]);
        granted.agreed(1);
        assert!(granted.ended(secs(23.0)).is_empty() && granted.ending().is_empty());
        assert!(granted.renew(1, secs(23.0)));
        assert!(!granted.renew(9, secs(13.0)), "no such region");
    }

    proptest! {
        /// Whatever the delays and the drift within the bound, the region's clients notice first: those whose
        /// connections are closed, and those whose servers fall silent with the end of the lease.
        #[test]
        fn the_region_ends_first(
            start in 0.0f64..100.0,
            travel in 0.0f64..5.0,
            region_rate in 0.99f64..1.01,
            leader_rate in 0.99f64..1.01,
            client_rate in 0.99f64..1.01,
            timeout in 0.0f64..15.0,
        ) {
            let terms = LeaseTerms::default();
            // True time of the sending is `start`, of the receipt `start + travel`.
            let mut held = HeldLease::new(terms, secs(0.0));
            let until = held.renewed(secs(start * region_rate));
            let region_ends_true = until.as_secs_f64() / region_rate;
            let client_ends_true = region_ends_true + timeout * BELIEF_SHARE / client_rate;
            let received = (start + travel) * leader_rate;
            let leader_ends_true = (received + terms.granted().as_secs_f64()) / leader_rate;
            prop_assert!(client_ends_true + 0.9 <= leader_ends_true);
            // And before the region itself ends the sessions.
            let lapses_true = held.next_stage_at().map(|end| (end + terms.notice_period()).as_secs_f64() / region_rate);
            prop_assert!(client_ends_true + 0.9 <= lapses_true.unwrap());
        }
    }
}
