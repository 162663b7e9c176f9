//! From the layout that runs to the best one: what it would gain, and the steps, one server, vote or
//! leader at a time.

use std::fmt;

use serde::Serialize;

use super::{Assessment, Assessor, Objective};
use crate::layout::{Design, Layout};
use crate::scenario::World;
use crate::timing::{Misfit, misfits};

/// The layout that runs, beside the best one.
#[derive(Clone, Debug)]
pub struct Change {
    /// The figures of what runs.
    pub running: Assessment,
    /// What the best layout's objective is less, ms; infinite where writes would stop.
    pub gain_ms: f64,
    /// Whether the gain is worth a change: see [`GAIN_SHARE_MIN`] and [`GAIN_MS_MIN`].
    pub worth_it: bool,
    /// The steps to the best layout; `None` to another design, which is set up beside the old one.
    pub steps: Option<Vec<Step>>,
    /// Timeouts in use that do not fit the round trips.
    pub misfits: Vec<Misfit>,
}

/// A change is proposed when it lowers the objective by more than this share ...
pub const GAIN_SHARE_MIN: f64 = 0.1;
/// ... and by more than this, ms; or when a requirement is not met.
pub const GAIN_MS_MIN: f64 = 1.0;

impl Change {
    /// Compares what runs with `best`; `None` if nothing is known to run.
    pub(super) fn to(world: &World, best: &Assessment, objective: Objective) -> Option<Change> {
        let current = world.current.as_ref()?;
        let running = Assessor::new(world).assess(&current.layout);
        let (now_ms, then_ms) = (running.objective_ms(objective), best.objective_ms(objective));
        let gain_ms = if now_ms.is_finite() || then_ms.is_finite() { now_ms - then_ms } else { 0.0 };
        let gains = gain_ms > GAIN_MS_MIN && gain_ms > GAIN_SHARE_MIN * now_ms;
        let worth_it = gain_ms.is_infinite() && gain_ms > 0.0 || gains || !running.violations.is_empty();
        let target = with_observers_of(&best.layout, &current.layout);
        Some(Change {
            gain_ms,
            worth_it,
            steps: steps(&current.layout, &target),
            misfits: misfits(world, &current.layout, &current.timing),
            running,
        })
    }

    /// Whether neither layout nor timeouts need a change.
    pub fn fits(&self) -> bool {
        !self.worth_it && self.misfits.is_empty()
    }
}

/// Observers that run beside voters stay: no write waits for them.
fn with_observers_of(best: &Layout, running: &Layout) -> Layout {
    let mut target = best.clone();
    for region in target.voting_regions().collect::<Vec<_>>() {
        if running.voters[region] > 0 {
            target.observers[region] = target.observers[region].max(running.observers[region]);
        }
    }
    target
}

/// One step, and what there is when it is done.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What to do.
    pub action: Action,
    /// The layout then.
    pub after: Layout,
}

/// What a step does; regions by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// Start a server and let it vote.
    AddVoter {
        /// Where.
        region: usize,
    },
    /// Start a server that only listens.
    AddObserver {
        /// Where.
        region: usize,
    },
    /// Let an observer vote.
    Promote {
        /// Where.
        region: usize,
    },
    /// Let a region's ensemble vote in the global group.
    GiveVote {
        /// Which.
        region: usize,
    },
    /// Let another region lead.
    MoveLeader {
        /// From where.
        from: usize,
        /// To where.
        to: usize,
    },
    /// Take a region's vote in the global group; its ensemble goes on.
    TakeVote {
        /// Which.
        region: usize,
    },
    /// Let a voter only listen.
    Demote {
        /// Where.
        region: usize,
    },
    /// Take a voter out and stop it.
    RemoveVoter {
        /// Where.
        region: usize,
    },
    /// Stop an observer.
    RemoveObserver {
        /// Where.
        region: usize,
    },
}

impl Action {
    /// The action in words.
    pub fn display<'a>(&'a self, names: &'a [String]) -> impl fmt::Display + 'a {
        InWords { action: self, names }
    }

    /// What there is when it is done.
    fn apply(self, layout: &Layout) -> Layout {
        let mut after = layout.clone();
        let (voters, observers) = (&mut after.voters, &mut after.observers);
        match self {
            Action::AddVoter { region } => voters[region] += 1,
            Action::AddObserver { region } => observers[region] += 1,
            Action::Promote { region } => {
                observers[region] -= 1;
                voters[region] += 1;
            }
            Action::GiveVote { region } => voters[region] = std::mem::take(&mut observers[region]),
            Action::MoveLeader { to, .. } => after.leader = to,
            Action::TakeVote { region } => observers[region] += std::mem::take(&mut voters[region]),
            Action::Demote { region } => {
                voters[region] -= 1;
                observers[region] += 1;
            }
            Action::RemoveVoter { region } => voters[region] -= 1,
            Action::RemoveObserver { region } => observers[region] -= 1,
        }
        after
    }
}

struct InWords<'a> {
    action: &'a Action,
    names: &'a [String],
}

impl fmt::Display for InWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |region: usize| self.names[region].as_str();
        match *self.action {
            Action::AddVoter { region } => write!(f, "add a voter in {}", name(region)),
            Action::AddObserver { region } => write!(f, "add an observer in {}", name(region)),
            Action::Promote { region } => write!(f, "let an observer in {} vote", name(region)),
            Action::GiveVote { region } => write!(f, "let {} vote in the global group", name(region)),
            Action::MoveLeader { from, to } => {
                write!(f, "move the leader from {} to {}", name(from), name(to))
            }
            Action::TakeVote { region } => write!(f, "take {}'s vote in the global group", name(region)),
            Action::Demote { region } => write!(f, "make a voter in {} an observer", name(region)),
            Action::RemoveVoter { region } => write!(f, "remove a voter in {}", name(region)),
            Action::RemoveObserver { region } => write!(f, "remove an observer in {}", name(region)),
        }
    }
}

/// Steps from one layout to another of the same design; `None` between designs.
///
/// What is added comes first, then the leader moves, then the rest goes: there is a quorum all the
/// time. A step that would make the mesh survive fewer regions than it does at both ends waits, if
/// another one can be taken first.
pub fn steps(from: &Layout, to: &Layout) -> Option<Vec<Step>> {
    if from.design != to.design {
        return None;
    }
    let survived = from.survives_regions().min(to.survives_regions());
    let mut steps: Vec<Step> = Vec::new();
    let mut now = from.clone();
    while now != *to {
        let open = open_actions(&now, to);
        let safe = |action: &Action| action.apply(&now).survives_regions() >= survived;
        let action = open.iter().copied().find(safe).or(open.first().copied())?;
        now = action.apply(&now);
        steps.push(Step { action, after: now.clone() });
    }
    Some(steps)
}

/// What may be done next, what should come first first.
fn open_actions(now: &Layout, to: &Layout) -> Vec<Action> {
    let (mut growing, mut shrinking) = (Vec::new(), Vec::new());
    for region in 0..now.voters.len() {
        let (actions, grows) = match next_in_region(now, to, region) {
            Some(next) => next,
            None => continue,
        };
        if grows { growing.push(actions) } else { shrinking.push(actions) }
    }
    let leader_moves = now.leader != to.leader && now.voters[to.leader] > 0;
    let mv = leader_moves.then_some(Action::MoveLeader { from: now.leader, to: to.leader });
    // The leader's region keeps a voter as long as it leads.
    let leads_on = |action: &Action| action.apply(now).voters[now.leader] > 0;
    growing.into_iter().chain(mv).chain(shrinking.into_iter().filter(leads_on)).collect()
}

/// The next step in one region, and whether it adds something.
fn next_in_region(now: &Layout, to: &Layout, region: usize) -> Option<(Action, bool)> {
    let (voters, observers) = (now.voters[region], now.observers[region]);
    let (to_voters, to_observers) = (to.voters[region], to.observers[region]);
    if now.design == Design::Two && (voters == 0) != (to_voters == 0) {
        // The ensemble is brought to its size while it has no vote.
        return Some(match to_voters {
            0 => (Action::TakeVote { region }, false),
            size if observers < size => (Action::AddObserver { region }, true),
            size if observers > size => (Action::RemoveObserver { region }, false),
            _ => (Action::GiveVote { region }, true),
        });
    }
    if voters < to_voters {
        let action =
            if observers > to_observers { Action::Promote { region } } else { Action::AddVoter { region } };
        Some((action, true))
    } else if voters > to_voters {
        let action =
            if observers < to_observers { Action::Demote { region } } else { Action::RemoveVoter { region } };
        Some((action, false))
    } else if observers < to_observers {
        Some((Action::AddObserver { region }, true))
    } else if observers > to_observers {
        Some((Action::RemoveObserver { region }, false))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout(design: Design, leader: usize, voters: [u8; 3], observers: [u8; 3]) -> Layout {
        Layout { design, leader, voters: voters.to_vec(), observers: observers.to_vec() }
    }

    fn words(from: &Layout, to: &Layout) -> Vec<String> {
        let names = ["a", "b", "c"].map(str::to_owned);
        let steps = steps(from, to).unwrap();
        steps.iter().map(|step| step.action.display(&names).to_string()).collect()
    }

    #[test]
    fn a_region_gets_its_ensemble_before_its_vote() {
        let from = layout(Design::Two, 0, [3, 3, 0], [0, 0, 1]);
        let to = layout(Design::Two, 1, [3, 3, 3], [0, 0, 0]);
        assert_eq!(
            words(&from, &to),
            [
                "add an observer in c",
                "add an observer in c",
                "let c vote in the global group",
                "move the leader from a to b"
            ]
        );
        assert_eq!(
            words(&to, &from),
            [
                "move the leader from b to a",
                "take c's vote in the global group",
                "remove an observer in c",
                "remove an observer in c"
            ]
        );
    }

    #[test]
    fn the_leader_moves_before_its_region_is_emptied() {
        let from = layout(Design::Flat, 0, [3, 1, 1], [0, 0, 0]);
        let to = layout(Design::Flat, 1, [0, 3, 2], [1, 0, 0]);
        let words = words(&from, &to);
        let place = |text: &str| words.iter().position(|word| word == text);
        let last_vote = words.iter().rposition(|word| word == "remove a voter in a");
        assert!(place("move the leader from a to b") < last_vote, "{words:?}");
        assert!(words.contains(&"make a voter in a an observer".to_owned()), "{words:?}");
    }

    #[test]
    fn there_are_no_steps_between_designs_and_none_to_where_one_is() {
        let flat = layout(Design::Flat, 0, [1, 1, 1], [0, 0, 0]);
        assert_eq!(steps(&flat, &Layout { design: Design::Two, ..flat.clone() }), None);
        assert_eq!(steps(&flat, &flat), Some(vec![]));
    }

    fn layouts(design: Design) -> impl Strategy<Value = Layout> {
        (0usize..3, prop::array::uniform3(0u8..=3), prop::array::uniform3(0u8..=2)).prop_map(
            move |(leader, mut voters, observers)| {
                voters[leader] = voters[leader].max(1);
                layout(design, leader, voters, observers)
            },
        )
    }

    proptest! {
        #[test]
        fn every_step_leaves_a_leader_with_a_voter_and_the_last_one_the_target(
            (from, to) in prop::sample::select(&Design::ALL[..]).prop_flat_map(|d| (layouts(d), layouts(d)))
        ) {
            let steps = steps(&from, &to).unwrap();
            prop_assert!(steps.len() <= 40);
            let end = steps.last().map_or(&from, |step| &step.after);
            prop_assert_eq!(end, &to);
            for step in &steps {
                prop_assert!(step.after.voters[step.after.leader] > 0);
            }
            if from.design == Design::Two && from.survives_regions().min(to.survives_regions()) == 0 {
                prop_assert!(steps.iter().all(|step| step.after.voter_count() > 0));
            }
        }
    }
}
