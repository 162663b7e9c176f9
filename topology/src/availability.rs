//! Availability with common causes: a server, its zone and its region fail, and take along what
//! stands in them. The figure for independent servers stands beside it: it is optimistic by
//! orders of magnitude.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::layout::{Design, Layout};

/// Zones that the voters of a region are spread over, unless the scenario says otherwise.
pub const ZONES_PER_REGION: u8 = 3;

/// Most common causes: their combinations are multiplied out.
pub const CAUSES_MAX: usize = 8;

/// Shares of time that things are down for, each for its own cause, as a scenario gives them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FailureModel {
    /// A server by itself: crash, disk, upgrade.
    pub node_unavail: f64,
    /// A zone with all its servers.
    pub zone_unavail: f64,
    /// A region with all its zones. Public incident counts suggest 5e-5 to 1e-4 for large clouds.
    pub region_unavail: f64,
    /// A provider with all its regions: a control plane, a certificate, a bad configuration.
    pub provider_unavail: f64,
    /// Regions that fail more or less often than the others.
    pub regions: BTreeMap<String, RegionFailure>,
    /// What takes several regions down together: a cable, a grid, an operator.
    pub common_causes: Vec<CommonCause>,
}

impl Default for FailureModel {
    fn default() -> Self {
        FailureModel {
            node_unavail: 1e-3,
            zone_unavail: 1e-4,
            region_unavail: 1e-5,
            provider_unavail: 0.0,
            regions: BTreeMap::new(),
            common_causes: Vec::new(),
        }
    }
}

/// What one region has instead of the general shares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegionFailure {
    /// See [`FailureModel::node_unavail`].
    pub node_unavail: Option<f64>,
    /// See [`FailureModel::zone_unavail`].
    pub zone_unavail: Option<f64>,
    /// See [`FailureModel::region_unavail`].
    pub region_unavail: Option<f64>,
}

/// One cause that strikes several regions.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommonCause {
    /// What it is called in reports.
    pub name: String,
    /// Share of time that it keeps the regions down.
    pub unavail: f64,
    /// The regions.
    pub regions: Vec<String>,
}

/// The failures of a scenario's regions, by index.
#[derive(Clone, Debug, PartialEq)]
pub struct Failures {
    regions: Vec<Rates>,
    causes: Vec<Cause>,
}

/// Shares of time down, in one region.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rates {
    node: f64,
    zone: f64,
    region: f64,
    zones: u8,
}

#[derive(Clone, Debug, PartialEq)]
struct Cause {
    name: String,
    unavail: f64,
    /// Whether it takes each region down.
    struck: Vec<bool>,
}

/// What a share of the unavailability comes from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BudgetItem {
    /// The cause, in words.
    pub cause: String,
    /// Share of time without a quorum if there were no other cause.
    pub unavailability: f64,
}

impl Failures {
    /// The failures of `names`, whose voters stand in `zones` zones each. `providers` says whose a
    /// region is: without any entry all are one provider's, with some the others stand alone.
    pub fn new(
        model: &FailureModel,
        names: &[String],
        zones: &[u8],
        providers: &BTreeMap<String, String>,
    ) -> Self {
        let rates = |(name, zones): (&String, &u8)| {
            let own = model.regions.get(name).copied().unwrap_or_default();
            Rates {
                node: own.node_unavail.unwrap_or(model.node_unavail),
                zone: own.zone_unavail.unwrap_or(model.zone_unavail),
                region: own.region_unavail.unwrap_or(model.region_unavail),
                zones: (*zones).max(1),
            }
        };
        let struck = |regions: &[String]| names.iter().map(|name| regions.contains(name)).collect();
        let common = model.common_causes.iter().map(|cause| Cause {
            name: cause.name.clone(),
            unavail: cause.unavail,
            struck: struck(&cause.regions),
        });
        let mut providers_regions: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for name in names {
            let provider = match providers.get(name) {
                Some(provider) => format!("provider {provider}"),
                None if providers.is_empty() => "the provider".to_owned(),
                None => format!("provider of {name}"),
            };
            providers_regions.entry(provider).or_default().push(name.clone());
        }
        let of_providers = providers_regions.into_iter().map(|(name, regions)| Cause {
            name,
            unavail: model.provider_unavail,
            struck: struck(&regions),
        });
        Failures {
            regions: names.iter().zip(zones).map(rates).collect(),
            causes: common.chain(of_providers).filter(|cause| cause.unavail > 0.0).collect(),
        }
    }

    /// Number of common causes that matter.
    pub fn cause_count(&self) -> usize {
        self.causes.len()
    }

    /// Whether only the sizes of a layout's groups matter, not where they stand.
    pub fn are_alike(&self) -> bool {
        self.causes.is_empty() && self.regions.windows(2).all(|pair| pair[0] == pair[1])
    }

    /// Failures that are alike in every region and, for any layout, as rare as these or rarer.
    pub fn floor(&self) -> Failures {
        if self.are_alike() {
            return self.clone();
        }
        let least = |rate: fn(&Rates) -> f64| self.regions.iter().map(rate).fold(1.0, f64::min);
        let zones = self.regions.first().map_or(ZONES_PER_REGION, |rates| rates.zones);
        // Zones of different numbers can't be compared: without their failures none is worse.
        let same_zones = self.regions.iter().all(|rates| rates.zones == zones);
        let rates = Rates {
            node: least(|rates| rates.node),
            zone: if same_zones { least(|rates| rates.zone) } else { 0.0 },
            region: least(|rates| rates.region),
            zones,
        };
        Failures { regions: vec![rates; self.regions.len()], causes: Vec::new() }
    }

    /// Share of time that no quorum stands.
    pub fn unavailability(&self, layout: &Layout) -> f64 {
        let regions: Vec<(usize, Vec<f64>)> = layout
            .voting_regions()
            .map(|region| (region, self.rates(region).up(layout.voters[region])))
            .collect();
        self.over_causes(layout, &regions, 0, &mut vec![false; layout.voters.len()])
    }

    /// The same if every server failed by itself, as often as all causes together take it down.
    pub fn independent_unavailability(&self, layout: &Layout) -> f64 {
        let regions = layout.voting_regions().map(|region| {
            let rates = self.rates(region);
            let causes = self.causes.iter().filter(|cause| cause.strikes(region));
            let spared: f64 = causes.map(|cause| 1.0 - cause.unavail).product();
            let up = (1.0 - rates.node) * (1.0 - rates.zone) * (1.0 - rates.region) * spared;
            binomial(usize::from(layout.voters[region]), up)
        });
        quorum_missing(layout, regions)
    }

    /// What the unavailability is made of: each kind of cause alone, and what only comes about by
    /// several kinds together.
    pub fn budget(&self, layout: &Layout) -> Vec<BudgetItem> {
        let only = |keep: fn(&Rates) -> Rates| Failures {
            regions: self.regions.iter().map(keep).collect(),
            causes: Vec::new(),
        };
        let none = |rates: &Rates| Rates { node: 0.0, zone: 0.0, region: 0.0, ..*rates };
        let kinds = [
            ("servers", only(|rates| Rates { zone: 0.0, region: 0.0, ..*rates })),
            ("zones", only(|rates| Rates { node: 0.0, region: 0.0, ..*rates })),
            ("regions", only(|rates| Rates { node: 0.0, zone: 0.0, ..*rates })),
        ];
        let causes = self.causes.iter().map(|cause| {
            let alone =
                Failures { regions: self.regions.iter().map(none).collect(), causes: vec![cause.clone()] };
            (cause.name.as_str(), alone)
        });
        let mut items: Vec<BudgetItem> = kinds
            .into_iter()
            .chain(causes)
            .map(|(cause, alone)| BudgetItem {
                cause: cause.to_owned(),
                unavailability: alone.unavailability(layout),
            })
            .collect();
        let alone: f64 = items.iter().map(|item| item.unavailability).sum();
        items.push(BudgetItem {
            cause: "several kinds at once".to_owned(),
            unavailability: (self.unavailability(layout) - alone).max(0.0),
        });
        items
    }

    /// How the voters of a region are spread over its zones: as evenly as can be.
    pub fn voters_per_zone(&self, region: usize, voters: u8) -> Vec<u8> {
        self.rates(region).per_zone(voters).collect()
    }

    /// Sums over what each cause does, from the `next` one on.
    fn over_causes(
        &self,
        layout: &Layout,
        regions: &[(usize, Vec<f64>)],
        next: usize,
        down: &mut Vec<bool>,
    ) -> f64 {
        let Some(cause) = self.causes.get(next) else {
            let up = regions.iter().map(
                |(region, up)| {
                    if down[*region] { nothing_up(up.len() - 1) } else { up.clone() }
                },
            );
            return quorum_missing(layout, up);
        };
        let spared = self.over_causes(layout, regions, next + 1, down);
        let before = down.clone();
        down.iter_mut().enumerate().for_each(|(region, down)| *down |= cause.strikes(region));
        let struck = self.over_causes(layout, regions, next + 1, down);
        *down = before;
        (1.0 - cause.unavail) * spared + cause.unavail * struck
    }

    fn rates(&self, region: usize) -> Rates {
        let known = self.regions.get(region).or(self.regions.last()).copied();
        known.unwrap_or(Rates { node: 0.0, zone: 0.0, region: 0.0, zones: ZONES_PER_REGION })
    }
}

impl Cause {
    fn strikes(&self, region: usize) -> bool {
        self.struck.get(region).copied().unwrap_or(false)
    }
}

impl Rates {
    fn per_zone(self, voters: u8) -> impl Iterator<Item = u8> {
        (0..self.zones).map(move |zone| voters / self.zones + u8::from(zone < voters % self.zones))
    }

    /// Probability of each number of voters up, in a region with `voters` of them.
    fn up(self, voters: u8) -> Vec<f64> {
        let mut up = vec![1.0];
        for here in self.per_zone(voters) {
            let mut standing = binomial(usize::from(here), 1.0 - self.node);
            strike(&mut standing, self.zone);
            up = convolve(&up, &standing);
        }
        strike(&mut up, self.region);
        up
    }
}

fn nothing_up(voters: usize) -> Vec<f64> {
    let mut up = vec![0.0; voters + 1];
    up[0] = 1.0;
    up
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

    fn alike(model: &FailureModel) -> Failures {
        let names = ["a", "b", "c"].map(str::to_owned);
        Failures::new(model, &names, &[ZONES_PER_REGION; 3], &BTreeMap::new())
    }

    #[test]
    fn one_server_is_up_when_all_its_causes_are() {
        let model = alike(&FailureModel::default());
        let expected = 1.0 - 0.999 * 0.9999 * 0.99999;
        let single = layout(Design::Flat, 0, [1, 0, 0]);
        assert!((model.unavailability(&single) - expected).abs() < 1e-15);
        assert!((model.independent_unavailability(&single) - expected).abs() < 1e-15);
    }

    #[test]
    fn more_voters_can_be_less_available() {
        let model = alike(&FailureModel::default());
        let (five, seven) = (layout(Design::Flat, 0, [2, 2, 1]), layout(Design::Flat, 0, [3, 3, 1]));
        assert!(model.unavailability(&seven) > model.unavailability(&five));
        assert!(model.independent_unavailability(&seven) < model.independent_unavailability(&five));
    }

    #[test]
    fn independent_arithmetic_is_optimistic() {
        let model = alike(&FailureModel::default());
        let one_region = layout(Design::Flat, 0, [3, 0, 0]);
        assert!(model.unavailability(&one_region) > 1e-5);
        assert!(model.independent_unavailability(&one_region) < 5e-6);
    }

    /// Multiplies out every combination of causes for 2-2-1 and its kin.
    #[test]
    fn the_convolution_agrees_with_every_outcome_tried() {
        let model = FailureModel {
            node_unavail: 0.1,
            zone_unavail: 0.05,
            region_unavail: 0.03,
            ..FailureModel::default()
        };
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
                let computed = alike(&model).unavailability(&layout);
                assert!((computed - missing).abs() < 1e-12, "{layout:?}: {computed} against {missing}");
            }
        }
    }

    #[test]
    fn what_strikes_two_regions_at_once_stops_what_survives_one() {
        let causes = vec![CommonCause {
            name: "cable".to_owned(),
            unavail: 1e-4,
            regions: vec!["a".to_owned(), "b".to_owned()],
        }];
        let model = FailureModel { common_causes: causes, ..FailureModel::default() };
        let layout = layout(Design::Flat, 0, [1, 1, 1]);
        let (with, without) = (alike(&model), alike(&FailureModel::default()));
        let more = with.unavailability(&layout) - without.unavailability(&layout);
        assert!((more - 1e-4).abs() < 1e-6, "{more}");
        let budget = with.budget(&layout);
        assert_eq!((budget[3].cause.as_str(), budget[3].unavailability), ("cable", 1e-4));
        assert!(with.floor().unavailability(&layout) <= without.unavailability(&layout));
    }

    #[test]
    fn a_provider_takes_all_its_regions_along() {
        let model = FailureModel { provider_unavail: 1e-3, ..FailureModel::default() };
        let names = ["a", "b", "c"].map(str::to_owned);
        let of = |pairs: &[(&str, &str)]| {
            let providers = pairs.iter().map(|(r, p)| ((*r).to_owned(), (*p).to_owned())).collect();
            let failures = Failures::new(&model, &names, &[3; 3], &providers);
            failures.unavailability(&layout(Design::Flat, 0, [1, 1, 1]))
        };
        let one = of(&[]);
        let three = of(&[("a", "x"), ("b", "y"), ("c", "z")]);
        assert!(one > 1e-3 && three < 1e-4, "{one} {three}");
        assert!((of(&[("a", "x"), ("b", "x"), ("c", "z")]) - 1e-3).abs() < 1e-4);
    }

    #[test]
    fn a_region_may_fail_more_often_and_stand_in_fewer_zones() {
        let names = ["a", "b", "c"].map(str::to_owned);
        let worse = RegionFailure { region_unavail: Some(1e-2), ..RegionFailure::default() };
        let model = FailureModel { regions: [("b".to_owned(), worse)].into(), ..FailureModel::default() };
        let failures = Failures::new(&model, &names, &[3, 3, 1], &BTreeMap::new());
        let of = |voters| failures.unavailability(&layout(Design::Flat, 0, voters));
        assert!(of([0, 3, 0]) > of([3, 0, 0]));
        assert!(of([0, 0, 3]) > of([3, 0, 0]), "one zone takes all three along");
        assert_eq!(failures.voters_per_zone(2, 3), [3]);
        assert_eq!(failures.voters_per_zone(0, 4), [2, 1, 1]);
        let floor = failures.floor();
        assert!(floor.are_alike());
        for voters in [[3, 0, 0], [0, 3, 0], [0, 0, 3], [1, 1, 1]] {
            let layout = layout(Design::Flat, 0, voters);
            assert!(floor.unavailability(&layout) <= failures.unavailability(&layout));
        }
    }
}
