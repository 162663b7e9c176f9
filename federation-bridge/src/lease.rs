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
}

impl Default for LeaseTerms {
    fn default() -> Self {
        Self { duration: Duration::from_secs(10), drift_max: 0.01, margin: Duration::from_secs(1) }
    }
}

impl LeaseTerms {
    /// How long the leader of the global group waits, from the receipt of a renewal, on its clock.
    pub fn granted(&self) -> Duration {
        if mutant::is(Mutant::LeaseFromReceipt) {
            return self.duration;
        }
        // The region's clock may run slow by the bound, and the leader's fast by the bound.
        self.duration.mul_f64((1.0 + self.drift_max) / (1.0 - self.drift_max)) + self.margin
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
    lapsed: bool,
}

impl HeldLease {
    /// A new regional leader knows of no renewal. Until it has one, or for one duration at most, it does
    /// not count the lease as lapsed: the mesh's side lasts at least as long.
    pub fn new(terms: LeaseTerms, now: Duration) -> Self {
        Self { terms, deadline: now + terms.duration, lapsed: false }
    }

    /// A renewal that was sent at `sent` has been granted; returns until when the lease holds.
    pub fn renewed(&mut self, sent: Duration) -> Duration {
        self.deadline = self.deadline.max(sent + self.terms.duration);
        self.lapsed = false;
        sent + self.terms.duration
    }

    /// When the lease lapses unless it is renewed.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Whether the lease has lapsed since it was last asked for: true once per lapse.
    pub fn has_lapsed(&mut self, now: Duration) -> bool {
        let lapses = !self.lapsed && now >= self.deadline;
        self.lapsed |= lapses;
        lapses
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
    fn a_lapse_is_told_once_and_a_renewal_ends_it() {
        let mut held = HeldLease::new(LeaseTerms::default(), secs(5.0));
        assert!(!held.has_lapsed(secs(14.9)));
        assert!(held.has_lapsed(secs(15.0)));
        assert!(!held.has_lapsed(secs(16.0)));
        held.renewed(secs(20.0));
        assert!(!held.has_lapsed(secs(29.9)));
        assert!(held.has_lapsed(secs(30.0)));
    }

    #[test]
    fn nothing_is_granted_while_the_group_is_asked() {
        let mut granted = GrantedLeases::new(LeaseTerms::default(), [1, 2], secs(0.0));
        assert!(granted.renew(2, secs(11.0)));
        assert_eq!(granted.ended(secs(12.0)), [1]);
        assert!(!granted.renew(1, secs(12.1)));
        assert_eq!(granted.ending(), [1]);
        granted.agreed(1);
        assert!(granted.ended(secs(13.0)).is_empty() && granted.ending().is_empty());
        assert!(granted.renew(1, secs(13.0)));
        assert!(!granted.renew(9, secs(13.0)), "no such region");
    }

    proptest! {
        /// Whatever the delays and the drift within the bound, the region gives up first.
        #[test]
        fn the_region_ends_first(
            start in 0.0f64..100.0,
            travel in 0.0f64..5.0,
            region_rate in 0.99f64..1.01,
            leader_rate in 0.99f64..1.01,
        ) {
            let terms = LeaseTerms::default();
            // True time of the sending is `start`, of the receipt `start + travel`.
            let mut held = HeldLease::new(terms, secs(0.0));
            let until = held.renewed(secs(start * region_rate));
            let region_ends_true = until.as_secs_f64() / region_rate;
            let received = (start + travel) * leader_rate;
            let leader_ends_true = (received + terms.granted().as_secs_f64()) / leader_rate;
            prop_assert!(region_ends_true + 0.9 <= leader_ends_true);
        }
    }
}
