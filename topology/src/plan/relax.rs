//! Why no layout fits, and what would have to give.

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
    /// Single changes that make a layout fit, the smallest first.
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
            Some(least) => finding.suggest(format!(
                "least change: {} from {} to {}, then {} at {:.1} ms",
                least.key, least.from, least.to, least.layout, least.objective_ms
            )),
            None if self.relaxations_searched => {
                finding.suggest("no single change helps: relax two requirements, or add regions")
            }
            None => finding.suggest("too many layouts to search for the least change: name fewer regions"),
        }
    }
}

/// Most steps tried on one key.
const STEPS_MAX: usize = 4;

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
    let knobs = if relaxations_searched { knobs(scenario) } else { Vec::new() };
    let mut relaxations: Vec<Relaxation> =
        knobs.into_iter().filter_map(|knob| first_that_works(knob, objective)).collect();
    relaxations.sort_by(|a, b| {
        a.steps
            .cmp(&b.steps)
            .then_with(|| a.objective_ms.total_cmp(&b.objective_ms))
            .then_with(|| a.key.cmp(&b.key))
    });
    Infeasible { reason: reason(scenario, world), relaxations, relaxations_searched }
}

fn first_that_works(knob: Knob, objective: Objective) -> Option<Relaxation> {
    knob.steps.into_iter().enumerate().find_map(|(i, (to, scenario))| {
        let (world, _) = scenario.world().ok()?;
        if world.space.count() > LAYOUTS_MAX {
            return None;
        }
        let found = Search::new(&world, objective, 1).run();
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
    let require = scenario.require;
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
    for name in &scenario.witness {
        let without = changed(scenario, |s| s.witness.retain(|witness| witness != name));
        knobs.push(Knob {
            key: "witness".to_owned(),
            from: name.clone(),
            steps: vec![(format!("not {name}"), without)],
        });
    }
    for name in &scenario.never_leader {
        let without = changed(scenario, |s| s.never_leader.retain(|never| never != name));
        knobs.push(Knob {
            key: "never_leader".to_owned(),
            from: name.clone(),
            steps: vec![(format!("not {name}"), without)],
        });
    }
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
            "to lose {} regions and keep a majority takes voters in {needed} regions; {voting} regions and \
             {voters_max} voters are allowed",
            world.survive_regions
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
    let designs: Vec<&str> = scenario.designs.iter().map(|design| design.name()).collect();
    format!(
        "none of {} layouts ({}) of at most {voters_max} voters can {}",
        world.space.count(),
        designs.join(", "),
        wanted.join(" and ")
    )
}
