//! Finds the best layouts and the Pareto front: an exact search that cuts off what bounds show to
//! be no better than what it has.

use std::cmp::Ordering;

use super::bound::Bounds;
use super::tail::least_p99;
use super::{Assessor, Objective};
use crate::layout::{Guide, Layout, Partial};
use crate::scenario::{LAYOUTS_MAX, World};

/// The figures that layouts are compared by: cheap enough to compute for every one. Less is better
/// in each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// The objective, ms.
    pub objective_ms: f64,
    /// Place of the leader's region in the preference.
    pub preference: usize,
    /// Mean median write, ms.
    pub mean_write_ms: f64,
    /// Longest median write, ms.
    pub worst_write_ms: f64,
    /// Mean write after the worst loss of a region, ms; infinite when writes stop.
    pub after_loss_ms: f64,
    /// Share of time without a quorum.
    pub unavailability: f64,
    /// Servers with a vote.
    pub voters: usize,
    /// Copies of a write between regions.
    pub wan_copies: usize,
}

/// A layout among the others.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The layout.
    pub layout: Layout,
    /// Its figures.
    pub figures: Figures,
    /// Whether it meets the requirements.
    pub feasible: bool,
    /// Whether nothing beats it on every count.
    pub on_front: bool,
}

/// Latencies that differ by less than this are the same, ms.
const SAME_MS: f64 = 1e-6;

/// Compares all layouts of a world.
pub(super) struct Search<'w> {
    world: &'w World,
    objective: Objective,
    keep: usize,
    feasible_only: bool,
    bounds: Bounds<'w>,
    /// The best so far, sorted once `keep` are there.
    best: Vec<Standing>,
    front: Vec<(Counts, Standing)>,
    allowance: Allowance,
    progress: &'w mut dyn FnMut(Progress),
}

/// How far a search has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Partial layouts looked at.
    pub examined: u64,
    /// The objective of the best layout so far, ms.
    pub best_ms: Option<f64>,
}

/// Partial layouts between two reports of progress.
const EXAMINED_PER_REPORT: u64 = 1 << 18;

/// Partial layouts that a bounded search looks at: a few seconds' work.
const EXAMINED_MAX: u64 = 10_000_000;

/// How many partial layouts may still be looked at, and what was left out for want of it.
pub(super) struct Allowance {
    left: u64,
    left_for_part: u64,
    examined: u64,
    /// No layout that was left out has less of the objective, ms.
    bound_ms: f64,
}

impl Allowance {
    /// Enough for everything in spaces that are searched whole, else for the best part of it.
    pub(super) fn new(world: &World) -> Self {
        let left = if world.space.count() > LAYOUTS_MAX { EXAMINED_MAX } else { u64::MAX };
        Allowance { left, left_for_part: left, examined: 0, bound_ms: f64::INFINITY }
    }

    /// Whether there may not be enough for everything.
    fn is_bounded(&self) -> bool {
        self.left <= EXAMINED_MAX
    }

    /// Every part of the walk gets an equal share of what is left.
    pub(super) fn begin(&mut self, parts_left: usize) {
        self.left_for_part = (self.left / parts_left.max(1) as u64).max(1);
    }

    /// Whether one more may be looked at.
    pub(super) fn take(&mut self) -> bool {
        self.examined += 1;
        let granted = self.left_for_part > 0;
        self.left_for_part = self.left_for_part.saturating_sub(1);
        self.left = self.left.saturating_sub(u64::from(granted));
        granted
    }

    /// Leaves out what can't have less than this of the objective.
    pub(super) fn leave_out(&mut self, at_least_ms: f64) {
        self.bound_ms = self.bound_ms.min(at_least_ms);
    }
}

/// What a search has found.
pub(super) struct Found {
    /// Layouts, best first.
    pub(super) standings: Vec<Standing>,
    /// No layout that was left out has less of the objective, ms; infinite if none was.
    pub(super) bound_ms: f64,
}

impl<'w> Search<'w> {
    /// A search that keeps the `keep` best.
    pub(super) fn new(
        world: &'w World,
        objective: Objective,
        keep: usize,
        progress: &'w mut dyn FnMut(Progress),
    ) -> Self {
        Search {
            world,
            objective,
            keep: keep.max(1),
            feasible_only: world.space.count() > keep as u64,
            bounds: Bounds::new(world),
            best: Vec::new(),
            front: Vec::new(),
            allowance: Allowance::new(world),
            progress,
        }
    }

    /// The layouts that meet the requirements, best first, the Pareto front among them; the others
    /// behind them if there is room for all, or if none meets the requirements.
    pub(super) fn run(mut self) -> Found {
        self.walk();
        if self.best.is_empty() && self.feasible_only {
            self.feasible_only = false;
            self.allowance = Allowance::new(self.world);
            self.walk();
        }
        if self.objective == Objective::P99 && self.best.first().is_some_and(|best| best.feasible) {
            self.rank_by_tail();
        }
        for (_, member) in &self.front {
            if self.best.iter().all(|standing| standing.layout != member.layout) {
                self.best.push(member.clone());
            }
        }
        for standing in &mut self.best {
            let own = counts(&standing.figures);
            let beaten = self.front.iter().any(|(counts, _)| *counts != own && covers(counts, &own));
            standing.on_front = standing.feasible && !beaten;
        }
        self.best.sort_by(rank);
        Found { standings: self.best, bound_ms: self.allowance.bound_ms }
    }

    fn walk(&mut self) {
        let world = self.world;
        let nearest_first = self.bounds.nearest_first().to_vec();
        world.space.walk(&nearest_first, self);
        self.best.sort_by(rank);
        self.best.truncate(self.keep);
    }

    fn figures(&mut self, layout: &Layout) -> Figures {
        let least = self.figures_but_after_loss(layout);
        let after_loss_ms = self.bounds.after_loss_ms(layout, self.world.model.commit_ms(layout));
        let objective_ms = self.objective.of(least.mean_write_ms, least.worst_write_ms, after_loss_ms);
        Figures { objective_ms, after_loss_ms, ..least }
    }

    /// The figures that cost little, and zero for the time after a loss.
    fn figures_but_after_loss(&mut self, layout: &Layout) -> Figures {
        let world = self.world;
        let (mean_write_ms, worst_write_ms) = self.bounds.write_ms(layout, world.model.commit_ms(layout));
        Figures {
            objective_ms: self.objective.of(mean_write_ms, worst_write_ms, 0.0),
            preference: world.preference(layout.leader),
            mean_write_ms,
            worst_write_ms,
            after_loss_ms: 0.0,
            unavailability: self.bounds.unavailability(layout),
            voters: layout.voter_count(),
            wan_copies: layout.wan_copies_per_write(),
        }
    }

    /// Whether a layout with figures of at least these is neither among the best nor on the front.
    fn hopeless(&self, least: &Figures) -> bool {
        let too_late = self.best.len() >= self.keep
            && self.best.last().is_some_and(|last| order(least, &last.figures) != Ordering::Less);
        too_late && (!self.feasible_only || self.allowance.is_bounded() || self.is_covered(&counts(least)))
    }

    fn is_covered(&self, figures: &Counts) -> bool {
        self.front.iter().any(|(member, _)| covers(member, figures))
    }

    /// Ranks by the p99 what the mean has found, together with the layout of the least p99.
    fn rank_by_tail(&mut self) {
        let mut assessor = Assessor::new(self.world);
        for standing in self.best.iter_mut().chain(self.front.iter_mut().map(|(_, member)| member)) {
            standing.figures.objective_ms = assessor.p99_write_ms(&standing.layout);
        }
        self.best.sort_by(rank);
        let known_ms = self.best.first().map_or(f64::INFINITY, |best| best.figures.objective_ms);
        // The mean's bound says nothing of tails.
        self.allowance = Allowance::new(self.world);
        for (layout, p99_ms) in least_p99(self.world, &mut assessor, known_ms, &mut self.allowance) {
            if self.best.iter().all(|standing| standing.layout != layout) {
                let figures = Figures { objective_ms: p99_ms, ..self.figures(&layout) };
                self.best.push(Standing { layout, figures, feasible: true, on_front: false });
            }
        }
        self.best.sort_by(rank);
    }
}

impl Guide for Search<'_> {
    fn begin(&mut self, parts_left: usize) {
        self.allowance.begin(parts_left);
    }

    fn cut(&mut self, partial: &Partial<'_>) -> bool {
        if self.feasible_only && self.bounds.infeasible(partial) {
            return true;
        }
        let least = self.bounds.figures(partial, self.objective);
        let granted = self.allowance.take();
        if self.allowance.examined.is_multiple_of(EXAMINED_PER_REPORT) {
            let best_ms = self.best.first().map(|best| best.figures.objective_ms);
            (self.progress)(Progress { examined: self.allowance.examined, best_ms });
        }
        if self.hopeless(&least) {
            return true;
        }
        if !granted {
            self.allowance.leave_out(least.objective_ms);
            return true;
        }
        let after_loss_ms = self.bounds.after_any_loss_ms(partial, least.after_loss_ms);
        let objective_ms = self.objective.of(least.mean_write_ms, least.worst_write_ms, after_loss_ms);
        after_loss_ms > least.after_loss_ms
            && self.hopeless(&Figures { objective_ms, after_loss_ms, ..least })
    }

    fn visit(&mut self, layout: &Layout) {
        let feasible = self.world.allows(layout);
        if (self.feasible_only && !feasible) || {
            let least = self.figures_but_after_loss(layout);
            self.hopeless(&least)
        } {
            return;
        }
        let figures = self.figures(layout);
        let own = counts(&figures);
        let standing = Standing { layout: layout.clone(), figures, feasible, on_front: false };
        if feasible && !self.is_covered(&own) {
            self.front.retain(|(member, _)| !covers(&own, member));
            self.front.push((own, standing.clone()));
        }
        let place = self.best.partition_point(|kept| rank(kept, &standing) == Ordering::Less);
        if place < self.keep {
            self.best.insert(place, standing);
            self.best.truncate(self.keep);
        }
    }
}

/// The order of a plan: what meets the requirements, then [`order`], then a fixed one.
fn rank(a: &Standing, b: &Standing) -> Ordering {
    b.feasible
        .cmp(&a.feasible)
        .then_with(|| order(&a.figures, &b.figures))
        .then_with(|| a.layout.design.cmp(&b.layout.design))
        .then_with(|| a.layout.leader.cmp(&b.layout.leader))
        .then_with(|| b.layout.voters.cmp(&a.layout.voters))
}

/// The objective, the preference of leaders, then the latencies, availability and cost.
fn order(a: &Figures, b: &Figures) -> Ordering {
    let latencies =
        |f: &Figures| [rounded(f.mean_write_ms), rounded(f.worst_write_ms), rounded(f.after_loss_ms)];
    rounded(a.objective_ms)
        .cmp(&rounded(b.objective_ms))
        .then_with(|| a.preference.cmp(&b.preference))
        .then_with(|| latencies(a).cmp(&latencies(b)))
        .then_with(|| stepped(a.unavailability).cmp(&stepped(b.unavailability)))
        .then_with(|| a.voters.cmp(&b.voters))
        .then_with(|| a.wan_copies.cmp(&b.wan_copies))
}

/// Latency in steps of [`SAME_MS`]: an order that stays transitive.
fn rounded(ms: f64) -> i64 {
    (ms / SAME_MS + 0.5) as i64
}

/// Unavailability in steps of [`SAME_UNAVAILABILITY`].
fn stepped(unavailability: f64) -> i64 {
    (unavailability / SAME_UNAVAILABILITY) as i64
}

/// Unavailability below this is as good as none: three milliseconds a year.
const SAME_UNAVAILABILITY: f64 = 1e-10;

/// What the Pareto front counts, in whole steps.
type Counts = [i64; 6];

fn counts(figures: &Figures) -> Counts {
    [
        rounded(figures.mean_write_ms),
        rounded(figures.worst_write_ms),
        rounded(figures.after_loss_ms),
        stepped(figures.unavailability),
        figures.voters as i64,
        figures.wan_copies as i64,
    ]
}

/// Whether `a` is as good as `b` on every count.
fn covers(a: &Counts, b: &Counts) -> bool {
    a.iter().zip(b).all(|(x, y)| x <= y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix;
    use crate::scenario::Scenario;

    /// However little is looked at: no layout at all is below the bound, and none left out is better than
    /// both the bound and what was found say.
    #[test]
    fn a_bounded_search_knows_how_far_it_may_be_off() {
        let scenario = Scenario {
            regions: matrix::builtin("aws").unwrap().regions()[..7].to_vec(),
            matrix: matrix::builtin("aws").unwrap(),
            max_voters: 7,
            ..Scenario::default()
        };
        let (world, _) = scenario.world().unwrap();
        for objective in [Objective::Mean, Objective::Worst, Objective::AfterLoss] {
            let exact = Search::new(&world, objective, 1, &mut |_| {}).run();
            let least_ms = exact.standings[0].figures.objective_ms;
            assert!(exact.bound_ms.is_infinite());
            let mut exhausted = 0;
            for left in [1, 30, 300, 3000, 1_000_000] {
                let mut report = |_| {};
                let mut search = Search::new(&world, objective, 1, &mut report);
                search.allowance = Allowance { left, ..Allowance::new(&world) };
                search.walk();
                let found_ms = search.best.first().map_or(f64::INFINITY, |best| best.figures.objective_ms);
                assert!(found_ms >= least_ms - SAME_MS);
                assert!(search.allowance.bound_ms.min(found_ms) <= least_ms + SAME_MS, "{objective} {left}");
                exhausted += usize::from(search.allowance.bound_ms.is_finite());
            }
            assert!(exhausted > 0, "{objective}: nothing was left out");
        }
    }
}
