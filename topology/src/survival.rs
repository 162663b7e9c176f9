//! What a layout survives, and what it is like afterwards. Resilience counts failure domains:
//! whole regions first, then any further voters.

use serde::Serialize;

use crate::latency::Model;
use crate::layout::Layout;

/// Who leads when the leader's region is gone.
#[derive(Clone, Debug, Default)]
pub struct Succession {
    /// Regions to lead, best first.
    pub preferred: Vec<usize>,
    /// Regions that lead only if no other can.
    pub avoided: Vec<bool>,
}

impl Succession {
    /// Who takes over from the leader of `layout` when its region is lost: the first preferred
    /// region with a voter, else the one with the least `mean_write_ms` (`None` where writes
    /// stop). A witness never does, an avoided region only if no other can.
    pub fn successor(
        &self,
        model: &Model,
        layout: &Layout,
        mean_write_ms: impl Fn(usize) -> Option<f64>,
    ) -> Option<usize> {
        let able = |region: &usize| {
            *region != layout.leader && !model.witness[*region] && layout.voters[*region] > 0
        };
        let avoided = |region: &usize| self.avoided.get(*region).copied().unwrap_or(false);
        let preferred = self.preferred.iter().copied().find(|region| able(region) && !avoided(region));
        let best = |consider_avoided: bool| {
            (0..layout.voters.len())
                .filter(|region| able(region) && avoided(region) == consider_avoided)
                .filter_map(|leader| Some((mean_write_ms(leader)?, leader)))
                .min_by(|a, b| a.0.total_cmp(&b.0))
                .map(|(_, leader)| leader)
        };
        preferred.or_else(|| best(false)).or_else(|| best(true))
    }
}

/// Writes after the loss of one region: the remaining voters are a quorum of the original
/// configuration, and the remaining regions' clients write.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct AfterLoss {
    /// Index of the region that leads then.
    pub leader: usize,
    /// Commit, ms.
    pub commit_ms: f64,
    /// Mean write of the remaining clients, ms.
    pub mean_write_ms: f64,
    /// The longest write among the remaining client regions, ms.
    pub worst_write_ms: f64,
}

impl Layout {
    /// The number of regions of which any so many may be lost while the rest holds a quorum.
    pub fn survives_regions(&self) -> usize {
        let mut sizes: Vec<usize> =
            self.voting_regions().map(|region| usize::from(self.voters[region])).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        if self.design.votes_by_region() {
            return sizes.len().saturating_sub(1) / 2;
        }
        let total: usize = sizes.iter().sum();
        let mut left = total;
        sizes
            .iter()
            .take_while(|size| {
                left -= **size;
                left > total / 2
            })
            .count()
    }

    /// Whether after the loss of any one region any `voters` more servers may fail.
    pub fn survives_region_and_voters(&self, voters: usize) -> bool {
        let sizes: Vec<usize> =
            self.voting_regions().map(|region| usize::from(self.voters[region])).collect();
        if !self.design.votes_by_region() {
            let total: usize = sizes.iter().sum();
            let largest = sizes.iter().max().copied().unwrap_or(0);
            return total - largest > total / 2 + voters;
        }
        // The worst case: the region that is hardest to break is lost, and the failures go where
        // they break a region's majority most cheaply.
        let mut to_break: Vec<usize> = sizes.iter().map(|size| size.div_ceil(2)).collect();
        to_break.sort_unstable();
        to_break.pop();
        let mut left = voters;
        let broken = to_break
            .iter()
            .take_while(|cost| {
                let breaks = **cost <= left;
                left = left.saturating_sub(**cost);
                breaks
            })
            .count();
        to_break.len() - broken > sizes.len() / 2
    }

    /// Writes after the loss of `lost`; `None` when they stop. The leader stays where it is if it
    /// can.
    pub fn after_loss(&self, model: &Model, succession: &Succession, lost: usize) -> Option<AfterLoss> {
        if lost != self.leader {
            return self.under_leader(model, self.leader, lost);
        }
        let mean_write_ms = |leader| self.under_leader(model, leader, lost).map(|after| after.mean_write_ms);
        self.under_leader(model, succession.successor(model, self, mean_write_ms)?, lost)
    }

    fn under_leader(&self, model: &Model, leader: usize, lost: usize) -> Option<AfterLoss> {
        let commit_ms = model.commit_without_ms(self, leader, Some(lost))?;
        let left: f64 =
            model.client_regions().filter(|client| *client != lost).map(|c| model.shares[c]).sum();
        let (mut mean, mut worst, mut remaining) = (0.0, 0.0f64, 0);
        for client in (0..self.voters.len()).filter(|client| *client != lost) {
            remaining += 1;
            if model.shares[client] > 0.0 || left <= 0.0 {
                let write_ms = model.write_at_commit_ms(self, leader, client, commit_ms);
                worst = worst.max(write_ms);
                mean += if left > 0.0 { model.shares[client] / left * write_ms } else { write_ms };
            }
        }
        let mean_write_ms = if left > 0.0 { mean } else { mean / f64::from(remaining.max(1)) };
        Some(AfterLoss { leader, commit_ms, mean_write_ms, worst_write_ms: worst })
    }

    /// The largest mean write after the loss of any one region; infinite when one loss stops
    /// writes.
    pub fn worst_after_loss_ms(&self, model: &Model, succession: &Succession) -> f64 {
        (0..self.voters.len())
            .map(|lost| {
                self.after_loss(model, succession, lost).map_or(f64::INFINITY, |after| after.mean_write_ms)
            })
            .fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::tests::{example, layout};
    use crate::layout::Design;

    #[test]
    fn survival_counts_regions() {
        let cases = [
            (Design::Flat, [1, 1, 1], 1),
            (Design::Flat, [2, 2, 1], 1),
            (Design::Flat, [3, 1, 1], 0),
            (Design::Flat, [3, 3, 3], 1),
            (Design::Hier, [3, 1, 1], 1),
            (Design::Two, [3, 3, 1], 1),
            (Design::Two, [3, 0, 0], 0),
        ];
        for (design, voters, expected) in cases {
            assert_eq!(layout(design, 0, voters).survives_regions(), expected, "{design:?} {voters:?}");
        }
    }

    #[test]
    fn a_region_and_more_voters() {
        let survives = |design, voters, more| layout(design, 0, voters).survives_region_and_voters(more);
        assert!(survives(Design::Flat, [3, 3, 3], 1));
        assert!(!survives(Design::Flat, [3, 3, 3], 2));
        assert!(!survives(Design::Flat, [2, 2, 1], 1));
        // Two of three regions must stand, each with two of its three voters.
        assert!(survives(Design::Two, [3, 3, 3], 1));
        assert!(!survives(Design::Two, [3, 3, 3], 2));
        assert!(!survives(Design::Two, [3, 3, 1], 1));
    }

    /// Every set of failed voters, against the rule that counts them.
    #[test]
    fn survival_agrees_with_every_failure_tried() {
        let alive = |layout: &Layout, up: &[u8]| {
            if layout.design == Design::Flat {
                up.iter().sum::<u8>() > layout.voters.iter().sum::<u8>() / 2
            } else {
                let groups = layout.voting_regions().count();
                layout.voting_regions().filter(|r| up[*r] > layout.voters[*r] / 2).count() > groups / 2
            }
        };
        for design in Design::ALL {
            for code in 0..125u8 {
                let voters = [code % 5, code / 5 % 5, code / 25];
                let layout = layout(design, 0, voters);
                for more in 0..3 {
                    let mut all_survived = true;
                    for lost in layout.voting_regions() {
                        for failed in 0..125u8 {
                            let failed = [failed % 5, failed / 5 % 5, failed / 25];
                            let within = (0..3).all(|r| failed[r] <= if r == lost { 0 } else { voters[r] });
                            if !within || failed.iter().map(|f| usize::from(*f)).sum::<usize>() != more {
                                continue;
                            }
                            let up: Vec<u8> =
                                (0..3).map(|r| if r == lost { 0 } else { voters[r] - failed[r] }).collect();
                            all_survived &= alive(&layout, &up);
                        }
                    }
                    let standing: usize =
                        layout.voter_count() - voters.iter().max().copied().unwrap_or(0) as usize;
                    if layout.voter_count() > 0 && standing >= more {
                        assert_eq!(
                            layout.survives_region_and_voters(more),
                            all_survived,
                            "{layout:?} {more}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_leader_moves_only_when_its_region_is_lost() {
        let model = example();
        let succession = Succession { preferred: vec![], avoided: vec![false; 3] };
        let flat = layout(Design::Flat, 0, [2, 2, 1]);
        let after = flat.after_loss(&model, &succession, 2).unwrap();
        assert_eq!((after.leader, after.commit_ms), (0, 63.0));
        // The clients of us-east and us-west remain, two writes to one.
        assert!((after.mean_write_ms - (63.5 * 2.0 + 125.5) / 3.0).abs() < 1e-9);
        let after = flat.after_loss(&model, &succession, 0).unwrap();
        assert_eq!((after.commit_ms, after.worst_write_ms), (131.0, 261.5));
        assert_eq!(layout(Design::Flat, 0, [3, 1, 1]).after_loss(&model, &succession, 0), None);
    }

    #[test]
    fn succession_follows_the_preference_and_avoids_what_it_should() {
        let model = example();
        let flat = layout(Design::Flat, 0, [2, 2, 1]);
        let leader = |preferred: Vec<usize>, avoided: [bool; 3], witness: [bool; 3]| {
            let model = Model { witness: witness.to_vec(), ..model.clone() };
            let succession = Succession { preferred, avoided: avoided.to_vec() };
            flat.after_loss(&model, &succession, 0).map(|after| after.leader)
        };
        assert_eq!(leader(vec![0, 2], [false; 3], [false; 3]), Some(2));
        assert_eq!(leader(vec![], [false, false, true], [false; 3]), Some(1));
        assert_eq!(leader(vec![], [false, true, true], [false, true, false]), Some(2));
        assert_eq!(leader(vec![], [false; 3], [false, true, true]), None);
    }
}
