//! Why no layout fits, and what would have to give.

use std::fmt;

use serde::Serialize;

use super::Objective;
use super::search::Search;
use crate::diagnostic::{Code, Diagnostic};
use crate::layout::{Design, VOTERS_MAX};
use crate::scenario::{Scenario, World};

/// Why no layout meets the requirements.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Infeasible {
    /// The requirements that fail, and why.
    pub reason: String,
    /// Changes that make a layout fit, the smallest first: of one key, or of two where no single one
    /// does.
    pub relaxations: Vec<Relaxation>,
    /// Whether changes were looked for: in very large scenarios they are not.
    pub relaxations_searched: bool,
}

/// One change to the scenario, and the best layout that it allows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Relaxation {
    /// The key to change.
    pub key: String,
    /// Its value now.
    pub from: String,
    /// The nearest value that works.
    pub to: String,
    /// Steps between the two.
    pub steps: usize,
    /// The best layout then.
    pub layout: String,
    /// Its objective, ms.
    pub objective_ms: f64,
}

impl Infeasible {
    pub(super) fn diagnostic(&self) -> Diagnostic {
        let finding = Diagnostic::new(Code::Infeasible, "require", &self.reason);
        match self.relaxations.first() {
            Some(least) => finding.suggest(format!("the least relaxation is {least}")),
            None if self.relaxations_searched => {
                finding.suggest("no change of one key helps, nor of two: add regions")
            }
            None => finding.suggest("too many layouts to search for the least change: name fewer regions"),
        }
    }
}

impl fmt::Display for Relaxation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Relaxation { key, from, to, layout, objective_ms, .. } = self;
        write!(f, "{key} from {from} to {to}: then {layout} at {objective_ms:.1} ms")
    }
}

/// Most steps tried on one key.
const STEPS_MAX: usize = 4;

/// Pairs of changes are many: fewer steps each, in smaller spaces, and only the first are told.
const STEPS_MAX_OF_PAIRS: usize = 2;
const LAYOUTS_MAX_OF_PAIRS: u64 = 20_000;
const PAIRS_TOLD: usize = 5;

/// Most layouts searched for one step: there are many steps.
const LAYOUTS_MAX: u64 = 100_000_000;

/// One way to relax a scenario: its key, the value now, and the scenarios of each further step.
struct Knob {
    key: String,
    from: String,
    steps: Vec<(String, Scenario)>,
}

pub(super) fn explain(scenario: &Scenario, objective: Objective, world: &World) -> Infeasible {
    let relaxations_searched = world.space.count() <= LAYOUTS_MAX;
    let mut relaxations = Vec::new();
    if relaxations_searched {
        relaxations = singles(scenario, objective);
    }
    if relaxations.is_empty() && world.space.count() <= LAYOUTS_MAX_OF_PAIRS {
        relaxations = pairs(scenario, objective);
        relaxations.truncate(PAIRS_TOLD);
    }
    Infeasible { reason: reason(scenario, world), relaxations, relaxations_searched }
}

/// Every single change that makes a layout fit, the smallest first.
fn singles(scenario: &Scenario, objective: Objective) -> Vec<Relaxation> {
    let knobs = knobs(scenario).into_iter().filter_map(|knob| first_that_works(knob, objective));
    let ceilings = ceilings(scenario);
    let raised = ceilings.iter().filter_map(|ceiling| ceiling.raised(scenario, objective));
    smallest_first(knobs.chain(raised).collect())
}

/// The same with two changes at once: every single change to what another one has left.
fn pairs(scenario: &Scenario, objective: Objective) -> Vec<Relaxation> {
    let mut pairs = Vec::new();
    for knob in knobs(scenario) {
        for (i, (to, changed)) in knob.steps.iter().enumerate().take(STEPS_MAX_OF_PAIRS) {
            for other in singles(changed, objective).into_iter().filter(|other| other.key > knob.key) {
                pairs.push(other.after(&knob.key, &knob.from, to, i + 1));
            }
        }
    }
    for ceiling in ceilings(scenario) {
        // As far as the others, raised one by one, leave it necessary.
        for other in singles(&ceiling.least, objective).into_iter().filter(|other| other.key != ceiling.key) {
            let raised = ceilings(scenario).into_iter().find(|raised| raised.key == other.key);
            let Some((raised, to)) = raised.zip(other.to.parse().ok()) else { continue };
            let changed = changed(scenario, |s| (raised.set)(s, to));
            let again = ceilings(&changed).into_iter().find(|again| again.key == ceiling.key);
            if let Some(last) = again.and_then(|again| again.raised(&changed, objective)) {
                pairs.push(last.after(&other.key, &other.from, &other.to, 1));
            }
        }
    }
    smallest_first(pairs)
}

fn smallest_first(mut relaxations: Vec<Relaxation>) -> Vec<Relaxation> {
    relaxations.sort_by(|a, b| {
        a.steps
            .cmp(&b.steps)
            .then_with(|| a.objective_ms.total_cmp(&b.objective_ms))
            .then_with(|| a.key.cmp(&b.key))
    });
    relaxations
}

impl Relaxation {
    /// This change together with an earlier one.
    fn after(self, key: &str, from: &str, to: &str, steps: usize) -> Relaxation {
        Relaxation {
            key: format!("{key} and {}", self.key),
            from: format!("{from} and {}", self.from),
            to: format!("{to} and {}", self.to),
            steps: steps + self.steps,
            ..self
        }
    }
}

type SetCeiling = Box<dyn Fn(&mut Scenario, f64)>;

/// A figure that must not exceed a number.
struct Ceiling {
    key: String,
    now: f64,
    /// The scenario without the ceiling, in which the best layout under the objective has the least
    /// of the figure.
    least: Scenario,
    objective: Objective,
    /// Whether the figure is the cost, which no objective is.
    is_cost: bool,
    /// The scenario with another ceiling.
    set: SetCeiling,
}

fn ceilings(scenario: &Scenario) -> Vec<Ceiling> {
    type Field = fn(&mut Scenario) -> &mut Option<f64>;
    let fields: [(&str, Objective, Field); 4] = [
        ("max_mean_write_ms", Objective::Mean, |s| &mut s.require.max_mean_write_ms),
        ("max_worst_write_ms", Objective::Worst, |s| &mut s.require.max_worst_write_ms),
        ("max_after_loss_ms", Objective::AfterLoss, |s| &mut s.require.max_after_loss_ms),
        ("max_cost", Objective::Mean, |s| &mut s.require.max_cost),
    ];
    let mut ceilings: Vec<Ceiling> = fields
        .into_iter()
        .filter_map(|(key, objective, field)| {
            let mut least = scenario.clone();
            let now = field(&mut least).take()?;
            let set: SetCeiling = Box::new(move |s, to| *field(s) = Some(to));
            let key_path = format!("require.{key}");
            Some(Ceiling { key: key_path, now, least, objective, is_cost: key == "max_cost", set })
        })
        .collect();
    for (name, now) in &scenario.require.max_write_ms {
        let mut least = scenario.clone();
        least.require.max_write_ms.remove(name);
        least.client_write_share = [(name.clone(), 1.0)].into();
        let region = name.clone();
        let set: SetCeiling = Box::new(move |s, to| {
            s.require.max_write_ms.insert(region.clone(), to);
        });
        let (key, objective) = (format!("require.max_write_ms.{name}"), Objective::Mean);
        ceilings.push(Ceiling { key, now: *now, least, objective, is_cost: false, set });
    }
    ceilings
}

impl Ceiling {
    /// The least ceiling that a layout stays below, if that alone makes one fit.
    fn raised(&self, scenario: &Scenario, objective: Objective) -> Option<Relaxation> {
        let (world, _) = self.least.world().ok()?;
        let found = Search::new(&world, self.objective, CEILING_CANDIDATES, &mut |_| {}).run().standings;
        let fitting = found.iter().filter(|standing| standing.feasible);
        let least = fitting
            .map(|standing| match self.is_cost {
                true => world.prices.cost_per_month(&standing.layout, &world.traffic),
                false => standing.figures.objective_ms,
            })
            .fold(f64::INFINITY, f64::min);
        // Rounded up to what people write down.
        let to = (least * 10.0).ceil() / 10.0;
        let scenario = changed(scenario, |s| (self.set)(s, to));
        let knob = Knob {
            key: self.key.clone(),
            from: self.now.to_string(),
            steps: vec![(to.to_string(), scenario)],
        };
        least.is_finite().then(|| first_that_works(knob, objective))?
    }
}

/// Layouts among which the cheapest is looked for, beside the Pareto front.
const CEILING_CANDIDATES: usize = 100;

fn first_that_works(knob: Knob, objective: Objective) -> Option<Relaxation> {
    knob.steps.into_iter().enumerate().find_map(|(i, (to, scenario))| {
        let (world, _) = scenario.world().ok()?;
        if world.space.count() > LAYOUTS_MAX {
            return None;
        }
        let found = Search::new(&world, objective, 1, &mut |_| {}).run().standings;
        let best = found.first().filter(|best| best.feasible)?;
        Some(Relaxation {
            key: knob.key.clone(),
            from: knob.from.clone(),
            to,
            steps: i + 1,
            layout: best.layout.display(&world.model.regions).to_string(),
            objective_ms: best.figures.objective_ms,
        })
    })
}

fn knobs(scenario: &Scenario) -> Vec<Knob> {
    let mut knobs = requirement_knobs(scenario);
    let mut count = |key: &str, from: usize, most: usize, set: &dyn Fn(&mut Scenario, usize)| {
        let steps = (from + 1..=most.min(from + STEPS_MAX))
            .map(|to| (to.to_string(), changed(scenario, |s| set(s, to))));
        knobs.push(Knob { key: key.to_owned(), from: from.to_string(), steps: steps.collect() });
    };
    count("max_voters", scenario.max_voters, VOTERS_MAX, &|s, to| s.max_voters = to);
    count("max_per_region_default", scenario.max_per_region_default, VOTERS_MAX, &|s, to| {
        s.max_per_region_default = to;
    });
    for (name, most) in &scenario.max_per_region {
        count(&format!("max_per_region.{name}"), *most, VOTERS_MAX, &|s, to| {
            s.max_per_region.insert(name.clone(), to);
        });
    }
    knobs.extend(list_knobs(scenario));
    knobs
}

fn requirement_knobs(scenario: &Scenario) -> Vec<Knob> {
    let require = &scenario.require;
    let mut knobs = Vec::new();
    let mut down = |key: &str, from: usize, least: usize, set: &dyn Fn(&mut Scenario, usize)| {
        let steps =
            (least..from).rev().take(STEPS_MAX).map(|to| (to.to_string(), changed(scenario, |s| set(s, to))));
        knobs.push(Knob { key: key.to_owned(), from: from.to_string(), steps: steps.collect() });
    };
    down("require.survive_regions", scenario.survive_regions(), 0, &|s, to| {
        s.require.survive_regions = Some(to)
    });
    down("require.region_loss_plus_voters", require.region_loss_plus_voters, 0, &|s, to| {
        s.require.region_loss_plus_voters = to;
    });
    down("require.leader_region_min_voters", require.leader_region_min_voters, 1, &|s, to| {
        s.require.leader_region_min_voters = to;
    });
    knobs
}

/// Names struck from a list, one list at a time; and every design instead of some.
fn list_knobs(scenario: &Scenario) -> Vec<Knob> {
    let mut knobs = Vec::new();
    let mut struck = |key: &str, names: &[String], strike: &dyn Fn(&mut Scenario, &String)| {
        knobs.extend(names.iter().map(|name| Knob {
            key: key.to_owned(),
            from: name.clone(),
            steps: vec![(format!("not {name}"), changed(scenario, |s| strike(s, name)))],
        }));
    };
    struck("witness", &scenario.witness, &|s, name| s.witness.retain(|other| other != name));
    struck("never_leader", &scenario.never_leader, &|s, name| s.never_leader.retain(|other| other != name));
    struck("must_vote", &scenario.must_vote, &|s, name| s.must_vote.retain(|other| other != name));
    struck("never_vote", &scenario.never_vote, &|s, name| s.never_vote.retain(|other| other != name));
    if Design::ALL.iter().any(|design| !scenario.designs.contains(design)) {
        let names: Vec<&str> = scenario.designs.iter().map(|design| design.name()).collect();
        let all = changed(scenario, |s| s.designs = Design::ALL.to_vec());
        knobs.push(Knob {
            key: "designs".to_owned(),
            from: names.join(", "),
            steps: vec![("flat, hier, two".to_owned(), all)],
        });
    }
    knobs
}

fn changed(scenario: &Scenario, change: impl FnOnce(&mut Scenario)) -> Scenario {
    let mut scenario = scenario.clone();
    change(&mut scenario);
    scenario
}

/// Which requirements stand in the way: those that no layout meets, or else the combination.
fn reason(scenario: &Scenario, world: &World) -> String {
    let voting = world.space.voters_max_per_region.iter().filter(|most| **most > 0).count();
    let needed = 2 * world.survive_regions + 1;
    let voters_max = usize::from(world.space.voters_max);
    let leader_min = usize::from(world.space.leader_voters_min);
    if voting.min(voters_max) < needed {
        return format!(
            "to lose {} and keep a majority takes voters in {needed} regions; {voting} regions and \
             {voters_max} voters are allowed",
            if world.survive_regions == 1 {
                "any region".to_owned()
            } else {
                format!("any {} regions", world.survive_regions)
            }
        );
    }
    if !world.space.may_lead.iter().any(|may| *may) {
        return "no region may lead: every one is a witness or in never_leader".to_owned();
    }
    let room = world.space.may_lead.iter().zip(&world.space.voters_max_per_region);
    let largest = room.filter(|(may, _)| **may).map(|(_, most)| usize::from(*most)).max().unwrap_or(0);
    if largest.min(voters_max) < leader_min {
        return format!(
            "the leader's region must hold {leader_min} voters, but no region that may lead may hold them"
        );
    }
    let mut wanted = Vec::new();
    let more = world.region_loss_plus_voters;
    if world.survive_regions > usize::from(more > 0) {
        wanted.push(match world.survive_regions {
            1 => "lose any region".to_owned(),
            regions => format!("lose any {regions} regions"),
        });
    }
    if more > 0 {
        wanted.push(format!("lose any region and {more} more voter{}", if more > 1 { "s" } else { "" }));
    }
    if leader_min > 1 {
        wanted.push(format!("hold {leader_min} voters in the leader's region"));
    }
    let must: Vec<&str> = scenario.must_vote.iter().map(String::as_str).collect();
    if !must.is_empty() {
        wanted.push(format!("hold voters in {}", must.join(", ")));
    }
    let require = &scenario.require;
    let ceilings = [
        ("write on average", require.max_mean_write_ms, " ms"),
        ("write in every region", require.max_worst_write_ms, " ms"),
        ("write after the loss of any region", require.max_after_loss_ms, " ms"),
        ("cost a month", require.max_cost, ""),
    ];
    let given = ceilings.into_iter().filter_map(|(what, most, unit)| Some((what, most?, unit)));
    wanted.extend(given.map(|(what, most, unit)| format!("{what} within {most}{unit}")));
    wanted
        .extend(require.max_write_ms.iter().map(|(region, ms)| format!("write in {region} within {ms} ms")));
    let designs: Vec<&str> = scenario.designs.iter().map(|design| design.name()).collect();
    format!(
        "none of {} layouts ({}) of at most {voters_max} voters can {}",
        world.space.count(),
        designs.join(", "),
        wanted.join(" and ")
    )
}
