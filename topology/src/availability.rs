//! Availability with common causes: a server, its zone and its region fail, and take along what
//! stands in them. The figure for independent servers stands beside it: it is optimistic by
//! orders of magnitude.

use serde::{Deserialize, Serialize};

use crate::layout::{Design, Layout};

/// Zones that the voters of a region are spread over.
pub const ZONES_PER_REGION: u8 = 3;

/// Shares of time that things are down for, each for its own cause.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FailureModel {
    /// A server by itself: crash, disk, upgrade.
    pub node_unavail: f64,
    /// A zone with all its servers.
    pub zone_unavail: f64,
    /// A region with all its zones. Public incident counts suggest 5e-5 to 1e-4 for large clouds.
    pub region_unavail: f64,
}

impl Default for FailureModel {
    fn default() -> Self {
        FailureModel { node_unavail: 1e-3, zone_unavail: 1e-4, region_unavail: 1e-5 }
    }
}

impl FailureModel {
    /// Share of time that no quorum stands.
    pub fn unavailability(&self, layout: &Layout) -> f64 {
        let regions = layout.voting_regions().map(|region| self.up_in_region(layout.voters[region]));
        quorum_missing(layout, regions)
    }

    /// The same if every server failed by itself, as often as all causes together take it down.
    pub fn independent_unavailability(&self, layout: &Layout) -> f64 {
        let up = (1.0 - self.node_unavail) * (1.0 - self.zone_unavail) * (1.0 - self.region_unavail);
        let regions = layout.voting_regions().map(|region| binomial(usize::from(layout.voters[region]), up));
        quorum_missing(layout, regions)
    }

    /// Probability of each number of voters up, in a region with `voters` of them.
    fn up_in_region(&self, voters: u8) -> Vec<f64> {
        let mut up = vec![1.0];
        for zone in 0..ZONES_PER_REGION {
            let here = voters / ZONES_PER_REGION + u8::from(zone < voters % ZONES_PER_REGION);
            let mut standing = binomial(usize::from(here), 1.0 - self.node_unavail);
            strike(&mut standing, self.zone_unavail);
            up = convolve(&up, &standing);
        }
        strike(&mut up, self.region_unavail);
        up
    }
}

/// Sums the outcomes without a quorum, rather than subtracting from one: small figures stay exact.
fn quorum_missing(layout: &Layout, regions: impl Iterator<Item = Vec<f64>>) -> f64 {
    let mut up = vec![1.0];
    for region in regions {
        let voters = region.len() - 1;
        let counted = if layout.design == Design::Flat {
            region
        } else {
            let broken = region[..=voters / 2].iter().sum();
            vec![broken, region[voters / 2 + 1..].iter().sum()]
        };
        up = convolve(&up, &counted);
    }
    up[..=(up.len() - 1) / 2].iter().sum()
}

/// Everything is down for a share `cause` of the time.
fn strike(up: &mut [f64], cause: f64) {
    up.iter_mut().for_each(|p| *p *= 1.0 - cause);
    up[0] += cause;
}

fn binomial(count: usize, up: f64) -> Vec<f64> {
    (0..count).fold(vec![1.0], |so_far, _| convolve(&so_far, &[1.0 - up, up]))
}

fn convolve(a: &[f64], b: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; a.len() + b.len() - 1];
    for (i, x) in a.iter().enumerate() {
        for (j, y) in b.iter().enumerate() {
            sum[i + j] += x * y;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::tests::layout;

    #[test]
    fn one_server_is_up_when_all_its_causes_are() {
        let model = FailureModel::default();
        let expected = 1.0 - 0.999 * 0.9999 * 0.99999;
        let single = layout(Design::Flat, 0, [1, 0, 0]);
        assert!((model.unavailability(&single) - expected).abs() < 1e-15);
        assert!((model.independent_unavailability(&single) - expected).abs() < 1e-15);
    }

    #[test]
    fn more_voters_can_be_less_available() {
        let model = FailureModel::default();
        let (five, seven) = (layout(Design::Flat, 0, [2, 2, 1]), layout(Design::Flat, 0, [3, 3, 1]));
        assert!(model.unavailability(&seven) > model.unavailability(&five));
        assert!(model.independent_unavailability(&seven) < model.independent_unavailability(&five));
    }

    #[test]
    fn independent_arithmetic_is_optimistic() {
        let model = FailureModel::default();
        let one_region = layout(Design::Flat, 0, [3, 0, 0]);
        assert!(model.unavailability(&one_region) > 1e-5);
        assert!(model.independent_unavailability(&one_region) < 5e-6);
    }

    /// Multiplies out every combination of causes for 2-2-1 and its kin.
    #[test]
    fn the_convolution_agrees_with_every_outcome_tried() {
        let model = FailureModel { node_unavail: 0.1, zone_unavail: 0.05, region_unavail: 0.03 };
        for design in Design::ALL {
            for voters in [[2, 2, 1], [1, 1, 1], [3, 1, 0]] {
                let layout = layout(design, 0, voters);
                let mut missing = 0.0;
                // Bits: regions, then zones (each voter has its own), then voters.
                let count: usize = layout.voter_count();
                for outcome in 0..1u32 << (3 + 2 * count) {
                    let up = |bit: usize| outcome >> bit & 1 == 1;
                    let mut p = 1.0;
                    let mut weigh = |bit: usize, cause: f64| p *= if up(bit) { 1.0 - cause } else { cause };
                    (0..3).for_each(|bit| weigh(bit, model.region_unavail));
                    (3..3 + count).for_each(|bit| weigh(bit, model.zone_unavail));
                    (3 + count..3 + 2 * count).for_each(|bit| weigh(bit, model.node_unavail));
                    let mut standing = [0u8; 3];
                    let mut voter = 0;
                    for region in 0..3 {
                        for _ in 0..voters[region] {
                            standing[region] +=
                                u8::from(up(region) && up(3 + voter) && up(3 + count + voter));
                            voter += 1;
                        }
                    }
                    let quorum = if design == Design::Flat {
                        usize::from(standing.iter().sum::<u8>()) > count / 2
                    } else {
                        let alive =
                            (0..3).filter(|r| voters[*r] > 0 && standing[*r] > voters[*r] / 2).count();
                        alive > layout.voting_regions().count() / 2
                    };
                    missing += if quorum { 0.0 } else { p };
                }
                let computed = model.unavailability(&layout);
                assert!((computed - missing).abs() < 1e-12, "{layout:?}: {computed} against {missing}");
            }
        }
    }
}
