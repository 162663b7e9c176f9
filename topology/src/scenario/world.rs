//! A scenario that was checked, in the terms that layouts are judged in.

use std::collections::BTreeMap;

use super::Zones;
use crate::availability::Failures;
use crate::cost::{Prices, Traffic};
use crate::latency::Model;
use crate::layout::{Layout, Space};
use crate::survival::Succession;
use crate::timing::Assumptions;

/// A checked scenario, ready to be searched.
#[derive(Clone, Debug)]
pub struct World {
    /// Times.
    pub model: Model,
    /// The layouts allowed.
    pub space: Space,
    /// Who leads after a loss.
    pub succession: Succession,
    /// Failures.
    pub failures: Failures,
    /// Zones per region.
    pub zones: Vec<Zones>,
    /// Latitude and longitude per region, where known.
    pub coordinates: Vec<Option<[f64; 2]>>,
    /// Share of the reads that comes from each region; adds up to one.
    pub read_shares: Vec<f64>,
    /// Regions that must be survivable.
    pub survive_regions: usize,
    /// Further voters beside one region; zero asks for nothing.
    pub region_loss_plus_voters: usize,
    /// Figures not to exceed.
    pub ceilings: Ceilings,
    /// What things cost.
    pub prices: Prices,
    /// How much is written.
    pub traffic: Traffic,
    /// What timeouts are derived from.
    pub assumptions: Assumptions,
    /// The session timeout that clients ask for, ms.
    pub session_timeout_ms: Option<f64>,
    /// What runs now.
    pub current: Option<Running>,
}

/// Figures that a layout must not exceed; infinite where nothing is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceilings {
    /// The mean write, ms.
    pub mean_write_ms: f64,
    /// The longest write, ms.
    pub worst_write_ms: f64,
    /// The mean write after the worst loss, ms.
    pub after_loss_ms: f64,
    /// The write of each region, ms.
    pub write_ms: Vec<f64>,
    /// The cost of a month.
    pub cost: f64,
}

/// A layout that runs, with the timeouts that are known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    /// The layout.
    pub layout: Layout,
    /// Timeouts by the names that the plan gives them, in its units.
    pub timing: BTreeMap<String, f64>,
}

impl World {
    /// The requirements that `layout` does not meet, in words.
    pub fn violations(&self, layout: &Layout) -> Vec<String> {
        let names = &self.model.regions;
        let mut violations = Vec::new();
        let survived = layout.survives_regions();
        if survived < self.survive_regions {
            violations.push(format!("survives the loss of {survived} regions, not {}", self.survive_regions));
        }
        let more = self.region_loss_plus_voters;
        if more > 0 && !layout.survives_region_and_voters(more) {
            violations.push(format!("does not survive a region and {more} more voters"));
        }
        if layout.voters[layout.leader] < self.space.leader_voters_min {
            violations.push(format!(
                "{} voters in the leader's region, not {}",
                layout.voters[layout.leader], self.space.leader_voters_min
            ));
        }
        for region in (0..names.len()).filter(|region| self.lacks_vote(layout, *region)) {
            violations.push(format!("no voter in {}", names[region]));
        }
        violations.extend(self.exceeded_limits(layout));
        for (what, figure, most) in self.figures_with_ceilings(layout) {
            if figure > most {
                violations.push(format!("{what}: {figure:.1}, not {most} or less"));
            }
        }
        violations
    }

    /// How the voters of a region are spread over its zones, by name; zones without any are left out.
    pub fn voters_by_zone(&self, region: usize, voters: u8) -> Vec<(String, u8)> {
        let counts = self.failures.voters_per_zone(region, voters);
        let zone = |(i, count): (usize, u8)| (self.zones[region].name(i), count);
        counts.into_iter().enumerate().filter(|(_, count)| *count > 0).map(zone).collect()
    }

    /// What a layout costs a month; `None` without prices.
    pub fn cost_per_month(&self, layout: &Layout) -> Option<f64> {
        self.prices.are_given().then(|| self.prices.cost_per_month(layout, &self.traffic))
    }

    /// Place of a leader's region in the preference; the others share the last.
    pub fn preference(&self, leader: usize) -> usize {
        let preferred = &self.succession.preferred;
        preferred.iter().position(|region| *region == leader).unwrap_or(preferred.len())
    }

    /// Whether there are no [`World::violations`].
    pub fn allows(&self, layout: &Layout) -> bool {
        let more = self.region_loss_plus_voters;
        layout.survives_regions() >= self.survive_regions
            && (more == 0 || layout.survives_region_and_voters(more))
            && layout.voters[layout.leader] >= self.space.leader_voters_min
            && !(0..layout.voters.len()).any(|region| self.lacks_vote(layout, region))
            && (self.ceilings.are_infinite()
                || self.figures_with_ceilings(layout).iter().all(|(_, figure, most)| figure <= most))
    }

    /// Limits that only a layout can exceed that was named or that runs: the search stays within them.
    fn exceeded_limits(&self, layout: &Layout) -> Vec<String> {
        let (names, space) = (&self.model.regions, &self.space);
        let mut exceeded = Vec::new();
        if layout.voter_count() > usize::from(space.voters_max) {
            exceeded.push(format!("{} voters, not {} or fewer", layout.voter_count(), space.voters_max));
        }
        for region in layout.voting_regions() {
            let (count, most) = (layout.voters[region], space.voters_max_per_region[region]);
            if count > most {
                exceeded.push(format!("{count} voters in {}, not {most} or fewer", names[region]));
            }
        }
        if !space.may_lead[layout.leader] {
            exceeded.push(format!("{} leads, and must not", names[layout.leader]));
        }
        if !space.designs.contains(&layout.design) {
            exceeded.push(format!("the design is {}, which is not among those wanted", layout.design.name()));
        }
        exceeded
    }

    fn lacks_vote(&self, layout: &Layout, region: usize) -> bool {
        self.space.must_vote[region] && layout.voters[region] == 0
    }

    /// How far the figures of a layout lie below their ceilings; of a write, so much longer may the way to
    /// the quorum become.
    pub fn room(&self, layout: &Layout) -> Vec<(String, f64)> {
        let bounded = self.figures_with_ceilings(layout).into_iter().filter(|(_, _, most)| most.is_finite());
        bounded.map(|(what, figure, most)| (what, most - figure)).collect()
    }

    /// Every figure that has a ceiling, with its name.
    fn figures_with_ceilings(&self, layout: &Layout) -> Vec<(String, f64, f64)> {
        let (model, ceilings) = (&self.model, &self.ceilings);
        let mut figures = vec![
            ("mean write, ms".to_owned(), model.mean_write_ms(layout), ceilings.mean_write_ms),
            ("worst write, ms".to_owned(), model.worst_write_ms(layout), ceilings.worst_write_ms),
            ("cost a month".to_owned(), self.prices.cost_per_month(layout, &self.traffic), ceilings.cost),
        ];
        if ceilings.after_loss_ms.is_finite() {
            let after_loss_ms = layout.worst_after_loss_ms(model, &self.succession);
            figures.push(("mean write after a loss, ms".to_owned(), after_loss_ms, ceilings.after_loss_ms));
        }
        for (region, most) in ceilings.write_ms.iter().enumerate().filter(|(_, most)| most.is_finite()) {
            let what = format!("write in {}, ms", model.regions[region]);
            figures.push((what, model.write_ms(layout, region), *most));
        }
        figures
    }
}

impl Ceilings {
    /// Whether nothing is asked.
    pub fn are_infinite(&self) -> bool {
        [self.mean_write_ms, self.worst_write_ms, self.after_loss_ms, self.cost]
            .iter()
            .chain(&self.write_ms)
            .all(|most| most.is_infinite())
    }
}
