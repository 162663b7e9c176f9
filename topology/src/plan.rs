//! Plans: every layout that a scenario allows, compared; the best under an objective; the ones
//! that nothing beats on every count; and, where none fits, what to relax.

mod bound;
mod change;
mod forecast;
mod relax;
mod search;
mod tail;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use change::{Action, Change, GAIN_MS_MIN, GAIN_SHARE_MIN, Step, steps};
pub use forecast::{ClientLatency, Forecast, Latency, Situation};
pub use relax::{Infeasible, Relaxation};
pub use search::{Figures, Progress, Standing};

use crate::availability::BudgetItem;
use crate::diagnostic::{Code, Diagnostic};
use crate::latency::{Curve, Percentiles, Tails};
use crate::layout::{Design, Layout};
use crate::quorum::QuorumFigures;
use crate::scenario::{Scenario, World};
use crate::survival::AfterLoss;
use crate::timing::{Misfit, Timing};
use search::Search;

/// What the best layout has the least of. Figures are write latencies as clients see them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Mean of the medians, weighted by the clients' writes.
    #[default]
    Mean,
    /// Median of the client region that waits longest.
    Worst,
    /// Mean of the 99th percentiles, weighted by the clients' writes.
    P99,
    /// Mean write after the worst loss of one region.
    AfterLoss,
}

impl Objective {
    /// Every objective.
    pub const ALL: [Objective; 4] = [Objective::Mean, Objective::Worst, Objective::P99, Objective::AfterLoss];

    /// The figure to minimise; the mean stands in for the p99, which only distributions give.
    fn of(self, mean_write_ms: f64, worst_write_ms: f64, after_loss_ms: f64) -> f64 {
        match self {
            Objective::Mean | Objective::P99 => mean_write_ms,
            Objective::Worst => worst_write_ms,
            Objective::AfterLoss => after_loss_ms,
        }
    }

    /// The name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Objective::Mean => "mean",
            Objective::Worst => "worst",
            Objective::P99 => "p99",
            Objective::AfterLoss => "after-loss",
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The layouts compared, best first, and what follows from the best.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The scenario's name.
    pub name: String,
    /// What was minimised.
    pub objective: Objective,
    /// The world it was planned for.
    pub world: World,
    /// Layouts compared: looked at, or shown to be no better than one that was.
    pub considered: u64,
    /// How much less of the objective a layout could have that was not looked at, ms; zero when the
    /// best is proved to be the best.
    pub gap_ms: f64,
    /// The best layouts and those on the Pareto front, best first; at most [`LISTED_MAX`] beside
    /// the front.
    pub layouts: Vec<Assessment>,
    /// Index of the best layout; `None` if none meets the requirements.
    pub recommended: Option<usize>,
    /// Why there is none.
    pub infeasible: Option<Infeasible>,
    /// Timeouts of the best layout.
    pub timing: Option<Timing>,
    /// What one leader per client region would be worth.
    pub homes: Option<Homes>,
    /// All latencies of the best layout.
    pub forecast: Option<Forecast>,
    /// What runs now, beside the best layout.
    pub change: Option<Change>,
    /// What the best layout's unavailability is made of.
    pub budget: Vec<BudgetItem>,
    /// Findings about the input.
    pub diagnostics: Vec<Diagnostic>,
}

/// Most layouts in a plan, beside the Pareto front.
pub const LISTED_MAX: usize = 300;

/// Up to so many layouts in all, [`LISTED_MAX`] are kept; of more, only [`LISTED_OF_MANY`].
const LISTED_ALL: u64 = 100_000;
const LISTED_OF_MANY: usize = 40;

/// All figures of one layout. Vectors are per region.
#[derive(Clone, Debug)]
pub struct Assessment {
    /// The layout.
    pub layout: Layout,
    /// Median commit, ms.
    pub commit_ms: f64,
    /// Writes as clients in each region see them.
    pub write: Vec<WriteLatency>,
    /// Mean of the median writes, by the clients' shares, ms.
    pub mean_write_ms: f64,
    /// Longest median write of a region that writes, ms.
    pub worst_write_ms: f64,
    /// Mean of the p99 writes, by the clients' shares, ms.
    pub p99_write_ms: f64,
    /// An uncontended lock, ms.
    pub lock_ms: Vec<f64>,
    /// `sync`, then a read, ms.
    pub sync_read_ms: Vec<f64>,
    /// Any so many regions may be lost.
    pub survives_regions: usize,
    /// Share of time without a quorum, with common causes.
    pub unavailability: f64,
    /// The same for servers that fail independently.
    pub independent_unavailability: f64,
    /// Copies of a write between regions.
    pub wan_copies_per_write: usize,
    /// What its writes send between regions, kB/s.
    pub wan_kb_per_s: f64,
    /// What it costs a month; `None` without prices.
    pub cost_per_month: Option<f64>,
    /// What its quorums are like.
    pub quorum: QuorumFigures,
    /// Writes after the loss of each region; `None` where they stop.
    pub after_loss: Vec<Option<AfterLoss>>,
    /// Whether no other layout is better on one count without being worse on another.
    pub on_front: bool,
    /// Requirements not met, in words.
    pub violations: Vec<String>,
}

/// A write as the clients of one region see it, ms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WriteLatency {
    /// By the formula, on medians.
    pub typical: f64,
    /// Percentiles of the distribution.
    #[serde(flatten)]
    pub percentiles: Percentiles,
    /// The formula with Meridian's two further commits in the client's region (two levels only).
    pub with_local_commits: f64,
}

/// What it is worth to home each client region's subtrees in that region, instead of one leader
/// for all.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Homes {
    /// Per region: where the subtrees that its clients write are homed best; itself, if it may lead.
    pub home: Vec<usize>,
    /// Per region: the write of its clients to a subtree homed there, ms.
    pub write_ms: Vec<f64>,
    /// Mean over the clients' writes, ms.
    pub mean_write_ms: f64,
}

/// Compares the layouts that `scenario` allows. Errors in the scenario are returned as findings.
pub fn plan(scenario: &Scenario, objective: Objective) -> Result<Plan, Vec<Diagnostic>> {
    plan_and_report(scenario, objective, &mut |_| {})
}

/// [`plan`] that tells how far it has come, from time to time.
pub fn plan_and_report(
    scenario: &Scenario,
    objective: Objective,
    progress: &mut dyn FnMut(Progress),
) -> Result<Plan, Vec<Diagnostic>> {
    let (world, mut diagnostics) = scenario.world()?;
    let keep = if world.space.count() <= LISTED_ALL { LISTED_MAX } else { LISTED_OF_MANY };
    let found = Search::new(&world, objective, keep, progress).run();
    let mut assessor = Assessor::new(&world);
    let layouts: Vec<Assessment> = found
        .standings
        .iter()
        .map(|standing| Assessment { on_front: standing.on_front, ..assessor.assess(&standing.layout) })
        .collect();
    let recommended = layouts.first().is_some_and(|best| best.violations.is_empty()).then_some(0);
    let infeasible = match recommended {
        Some(_) => None,
        None => Some(relax::explain(scenario, objective, &world)),
    };
    if let Some(infeasible) = &infeasible {
        diagnostics.push(infeasible.diagnostic());
    }
    let best = recommended.map(|index| &layouts[index]);
    let best_ms = best.map_or(f64::INFINITY, |best| best.objective_ms(objective));
    let gap_ms = (best_ms - found.bound_ms).max(0.0);
    if found.bound_ms.is_finite() {
        diagnostics.push(bounded(&world, best.is_some(), gap_ms, found.bound_ms));
    }
    let homes = best.map(|best| Homes::of(&world, &best.layout));
    if let Some(best) = best {
        diagnostics.extend(slow_preference(&world, objective, best, &layouts));
    }
    let timing = best.map(|best| Timing::derive(&world, &best.layout));
    let forecast = best.map(|best| Forecast::of(&world, &best.layout));
    let change = best.and_then(|best| Change::to(&world, best, objective));
    diagnostics.extend(change.iter().flat_map(|change| &change.misfits).map(unfit));
    let budget = best.map_or(Vec::new(), |best| world.failures.budget(&best.layout));
    diagnostics.extend(timing.as_ref().and_then(|timing| short_sessions(&world, timing)));
    Ok(Plan {
        name: scenario.name.clone(),
        objective,
        considered: world.space.count(),
        gap_ms,
        layouts,
        recommended,
        infeasible,
        timing,
        homes,
        forecast,
        change,
        budget,
        diagnostics,
        world,
    })
}

impl Plan {
    /// The best layout.
    pub fn best(&self) -> Option<&Assessment> {
        self.recommended.and_then(|index| self.layouts.get(index))
    }
}

impl Assessment {
    /// The figure that `objective` minimises, ms.
    pub fn objective_ms(&self, objective: Objective) -> f64 {
        match objective {
            Objective::Mean => self.mean_write_ms,
            Objective::Worst => self.worst_write_ms,
            Objective::P99 => self.p99_write_ms,
            Objective::AfterLoss => self.worst_after_loss_ms(),
        }
    }

    /// The largest mean write after a loss; infinite when one stops writes.
    pub fn worst_after_loss_ms(&self) -> f64 {
        self.after_loss
            .iter()
            .map(|after| after.map_or(f64::INFINITY, |a| a.mean_write_ms))
            .fold(0.0, f64::max)
    }
}

/// Computes all figures of layouts; shares the distributions between them.
pub struct Assessor<'w> {
    world: &'w World,
    tails: Tails<'w>,
}

impl<'w> Assessor<'w> {
    /// For layouts of one world.
    pub fn new(world: &'w World) -> Self {
        Assessor { world, tails: Tails::new(&world.model) }
    }

    /// All figures of `layout`.
    pub fn assess(&mut self, layout: &Layout) -> Assessment {
        let World { model, succession, failures, .. } = self.world;
        let regions = 0..model.regions.len();
        let commit = self.tails.commit(layout);
        let write: Vec<WriteLatency> =
            regions.clone().map(|client| self.write(layout, client, &commit)).collect();
        Assessment {
            commit_ms: model.commit_ms(layout),
            mean_write_ms: model.mean_write_ms(layout),
            worst_write_ms: model.worst_write_ms(layout),
            p99_write_ms: model.mean_over_clients(|client| write[client].percentiles.p99),
            write,
            lock_ms: regions.clone().map(|client| model.lock_ms(layout, client)).collect(),
            sync_read_ms: regions.clone().map(|client| model.sync_read_ms(layout, client)).collect(),
            survives_regions: layout.survives_regions(),
            unavailability: failures.unavailability(layout),
            independent_unavailability: failures.independent_unavailability(layout),
            wan_copies_per_write: layout.wan_copies_per_write(),
            wan_kb_per_s: self.world.traffic.wan_kb_per_s(layout),
            cost_per_month: self.world.cost_per_month(layout),
            quorum: QuorumFigures::of(layout),
            after_loss: regions.map(|lost| layout.after_loss(model, succession, lost)).collect(),
            on_front: false,
            violations: self.world.violations(layout),
            layout: layout.clone(),
        }
    }

    /// Mean of the p99 writes by the clients' shares: what [`Objective::P99`] minimises.
    pub fn p99_write_ms(&mut self, layout: &Layout) -> f64 {
        let model = &self.world.model;
        let commit = self.tails.commit(layout);
        let clients: Vec<usize> = model.client_regions().collect();
        clients
            .iter()
            .map(|client| model.shares[*client] * self.tails.write_p99_ms(layout, *client, &commit))
            .sum()
    }

    fn write(&mut self, layout: &Layout, client: usize, commit: &Curve) -> WriteLatency {
        let model = &self.world.model;
        let typical = model.write_ms(layout, client);
        let missing = match layout.design {
            Design::Two => {
                crate::latency::Pipeline::MERIDIAN.commits().saturating_sub(model.pipeline.commits())
            }
            Design::Flat | Design::Hier => 0,
        };
        let local_commit_ms = model.client_region_commit_ms(layout, client);
        WriteLatency {
            typical,
            percentiles: self.tails.write(layout, client, commit),
            with_local_commits: typical + f64::from(missing) * local_commit_ms,
        }
    }
}

impl Homes {
    /// A homed subtree's write is one commit of its region's ensemble: as many servers as the
    /// best layout has there, three where it has fewer and may have them. From elsewhere the way there
    /// comes on top, and what [`crate::latency::Pipeline`] adds.
    fn of(world: &World, best: &Layout) -> Homes {
        let model = &world.model;
        let regions = 0..model.regions.len();
        let write_ms = |client: usize, home: usize| {
            let servers = best.servers(home).max(world.space.voters_max_per_region[home].min(3));
            let own_commits = if client == home { 0 } else { model.pipeline.commits() };
            model.client_rtt_ms
                + model.rtt_ms[client][home]
                + model.local_commit_ms(servers)
                + f64::from(own_commits) * model.client_region_commit_ms(best, client)
        };
        let able = |home: &usize| world.space.voters_max_per_region[*home] > 0 && !model.witness[*home];
        let nearest = |client: usize| {
            let homes = regions.clone().filter(able);
            let nearest = homes.min_by(|a, b| write_ms(client, *a).total_cmp(&write_ms(client, *b)));
            nearest.unwrap_or(best.leader)
        };
        let home: Vec<usize> = regions.clone().map(nearest).collect();
        let write_ms: Vec<f64> = regions.clone().map(|client| write_ms(client, home[client])).collect();
        let mean_write_ms = model.mean_over_clients(|client| write_ms[client]);
        Homes { home, write_ms, mean_write_ms }
    }
}

/// Says that not every layout was looked at, and what that may have cost.
fn bounded(world: &World, found_one: bool, gap_ms: f64, bound_ms: f64) -> Diagnostic {
    let count = world.space.count();
    let message = match found_one {
        true if gap_ms <= 0.0 => {
            format!("of {count} layouts a part was looked at; the others are proved to be no better")
        }
        true => format!(
            "of {count} layouts a part was looked at: another may be better, by at most {gap_ms:.1} ms (none is below \
             {bound_ms:.1} ms)"
        ),
        false => format!("of {count} layouts a part was looked at, and none of it fits"),
    };
    Diagnostic::new(Code::Bounded, "max_voters", message).suggest(
        "lower max_voters or max_per_region_default, or list regions under never_vote, to have all looked at",
    )
}

/// Says which timeout in use is too short.
fn unfit(misfit: &Misfit) -> Diagnostic {
    let Misfit { name, value, least, unit, reason } = misfit;
    Diagnostic::new(
        Code::Unfit,
        format!("current.timing.{name}"),
        format!("{value} {unit} is too short: {reason}"),
    )
    .suggest(format!("set it to {least:.0} or more"))
}

/// Says when the sessions that clients ask for do not outlive a failover.
fn short_sessions(world: &World, timing: &Timing) -> Option<Diagnostic> {
    let wanted_ms = world.session_timeout_ms?;
    let least_ms = timing.get("minSessionTimeout")?.value;
    (wanted_ms < least_ms).then(|| {
        let message = format!(
            "clients ask for {wanted_ms:.0} ms: shorter than {least_ms:.0} ms, sessions end with every failover"
        );
        Diagnostic::new(Code::SessionCap, "session_timeout_ms", message)
            .suggest(format!("minSessionTimeout raises them to {least_ms:.0} ms"))
    })
}

/// Says what the preferred leader region costs, when another one is better.
fn slow_preference(
    world: &World,
    objective: Objective,
    best: &Assessment,
    layouts: &[Assessment],
) -> Option<Diagnostic> {
    let preferred = *world.succession.preferred.first()?;
    if best.layout.leader == preferred || !world.space.may_lead[preferred] {
        return None;
    }
    let names = &world.model.regions;
    let alternative = layouts
        .iter()
        .find(|assessment| assessment.layout.leader == preferred && assessment.violations.is_empty());
    let cost = match alternative {
        Some(alternative) => format!(
            "{:.1} ms more ({})",
            alternative.objective_ms(objective) - best.objective_ms(objective),
            alternative.layout.display(names)
        ),
        None => format!("more than the {LISTED_MAX} best layouts take"),
    };
    Some(
        Diagnostic::new(
            Code::SlowPreference,
            "preferred_leaders",
            format!(
                "{} leads the best layout; {} would cost {cost}",
                names[best.layout.leader], names[preferred]
            ),
        )
        .suggest("put the other regions into never_leader to insist"),
    )
}
