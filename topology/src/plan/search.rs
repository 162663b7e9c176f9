//! Finds the best layouts and the Pareto front.

use std::cmp::Ordering;
use std::collections::HashMap;

use super::{Assessor, Objective};
use crate::latency::Model;
use crate::layout::{Design, Layout};
use crate::scenario::World;

/// The figures that layouts are compared by: cheap enough to compute for every one.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The layout.
    pub layout: Layout,
    /// Whether it meets the requirements.
    pub feasible: bool,
    /// The objective, ms.
    pub objective_ms: f64,
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
    /// Place of the leader's region in the preference.
    pub preference: usize,
    /// Whether nothing beats it on every count.
    pub on_front: bool,
}

/// What a search found.
pub(super) struct Found {
    /// Best first, without repetition.
    pub(super) layouts: Vec<Standing>,
    /// Layouts looked at.
    pub(super) considered: u64,
}

/// Latencies that differ by less than this are the same, ms.
const SAME_MS: f64 = 1e-6;

/// Compares all layouts of a world.
pub(super) struct Search<'w> {
    world: &'w World,
    objective: Objective,
    keep: usize,
    best: Vec<Standing>,
    front: Vec<Standing>,
    contenders: Option<Contenders>,
    considered: u64,
    unavailability: HashMap<(Design, Vec<u8>), f64>,
}

impl<'w> Search<'w> {
    /// A search that keeps the `keep` best.
    pub(super) fn new(world: &'w World, objective: Objective, keep: usize) -> Self {
        Search {
            world,
            objective,
            keep,
            best: Vec::new(),
            front: Vec::new(),
            contenders: (objective == Objective::P99).then(|| Contenders::new(world)),
            considered: 0,
            unavailability: HashMap::new(),
        }
    }

    /// Looks at every layout; best first.
    pub(super) fn run(mut self) -> Found {
        let world = self.world;
        world.space.visit(&mut |layout| self.consider(layout));
        self.best.sort_by(rank);
        self.best.truncate(self.keep);
        if let Some(contenders) = self.contenders.take() {
            self.rank_by_tail(contenders);
        }
        let mut layouts = self.best;
        for member in &mut self.front {
            member.on_front = true;
            match layouts.iter_mut().find(|standing| standing.layout == member.layout) {
                Some(standing) => standing.on_front = true,
                None => layouts.push(member.clone()),
            }
        }
        layouts.sort_by(rank);
        Found { layouts, considered: self.considered }
    }

    fn consider(&mut self, layout: &Layout) {
        self.considered += 1;
        let standing = self.standing(layout);
        self.admit_to_front(&standing);
        if let Some(contenders) = &mut self.contenders {
            contenders.consider(self.world, &standing);
        }
        self.best.push(standing);
        if self.best.len() >= 4 * self.keep.max(64) {
            self.best.sort_by(rank);
            self.best.truncate(self.keep);
        }
    }

    fn standing(&mut self, layout: &Layout) -> Standing {
        let world = self.world;
        let model = &world.model;
        let (mean_write_ms, worst_write_ms) = (model.mean_write_ms(layout), model.worst_write_ms(layout));
        let after_loss_ms = layout.worst_after_loss_ms(model, &world.succession);
        Standing {
            feasible: world.allows(layout),
            objective_ms: match self.objective {
                // The tail replaces the mean for those that could win: see `Contenders`.
                Objective::Mean | Objective::P99 => mean_write_ms,
                Objective::Worst => worst_write_ms,
                Objective::AfterLoss => after_loss_ms,
            },
            mean_write_ms,
            worst_write_ms,
            after_loss_ms,
            unavailability: self.unavailability(layout),
            voters: layout.voter_count(),
            wan_copies: layout.wan_copies_per_write(),
            preference: world
                .succession
                .preferred
                .iter()
                .position(|region| *region == layout.leader)
                .unwrap_or(usize::MAX),
            on_front: false,
            layout: layout.clone(),
        }
    }

    /// Regions fail alike, so only the sizes matter.
    fn unavailability(&mut self, layout: &Layout) -> f64 {
        let mut sizes: Vec<u8> = layout.voters.iter().copied().filter(|count| *count > 0).collect();
        sizes.sort_unstable();
        let failure = &self.world.failure;
        *self.unavailability.entry((layout.design, sizes)).or_insert_with(|| failure.unavailability(layout))
    }

    fn admit_to_front(&mut self, standing: &Standing) {
        if standing.feasible && !self.front.iter().any(|member| beats(member, standing)) {
            self.front.retain(|member| !beats(standing, member));
            self.front.push(standing.clone());
        }
    }

    /// Ranks the kept layouts by their p99, together with the layout of the least p99 of all.
    fn rank_by_tail(&mut self, contenders: Contenders) {
        let mut assessor = Assessor::new(self.world);
        let winner = contenders.winner(&mut assessor);
        if let Some(winner) =
            winner.filter(|winner| self.best.iter().all(|kept| kept.layout != winner.layout))
        {
            self.best.push(winner);
        }
        for standing in self.best.iter_mut().chain(&mut self.front) {
            standing.objective_ms = assessor.p99_write_ms(&standing.layout);
        }
        self.best.sort_by(rank);
    }
}

/// The layouts that the least p99 is among.
///
/// A commit under a fixed leader comes no later, in any percentile, when a voter moves to a region
/// whose round trip is no longer in any percentile. Layouts with such a move open to them are left
/// out: where it leads is at least as good.
struct Contenders {
    /// `nearer[leader][a][b]`: whether `a`'s round trip is no longer than `b`'s in any percentile.
    nearer: Vec<Vec<Vec<bool>>>,
    /// The same world with the least possible times: bounds a layout's p99 from below.
    floor: Model,
    /// Lower bound of the p99, and the layout.
    found: Vec<(f64, Standing)>,
}

impl Contenders {
    fn new(world: &World) -> Self {
        let model = &world.model;
        let regions = 0..model.regions.len();
        let no_longer = |leader: usize, a: usize, b: usize| {
            let (x, y) = (&model.rtt[leader][a], &model.rtt[leader][b]);
            let level = (0..=200).all(|i| {
                let probability = (f64::from(i) / 200.0).clamp(1e-6, 1.0 - 1e-6);
                x.quantile(probability) <= y.quantile(probability)
            });
            level && x.floor_ms() <= y.floor_ms() && (a < b || x.quantile(0.5) < y.quantile(0.5))
        };
        let nearer = regions
            .clone()
            .map(|leader| {
                regions
                    .clone()
                    .map(|a| regions.clone().map(|b| a != b && no_longer(leader, a, b)).collect())
                    .collect()
            })
            .collect();
        let floor = Model {
            rtt_ms: model.rtt.iter().map(|row| row.iter().map(|way| way.floor_ms()).collect()).collect(),
            fsync_ms: model.fsync.floor_ms(),
            zone_ms: model.zone.floor_ms(),
            ..model.clone()
        };
        Contenders { nearer, floor, found: Vec::new() }
    }

    fn consider(&mut self, world: &World, standing: &Standing) {
        if standing.feasible && !self.improvable(world, &standing.layout) {
            self.found.push((self.p99_floor_ms(world, &standing.layout), standing.clone()));
        }
    }

    /// Whether a voter (or a whole group, where groups vote) may move nearer to the leader.
    fn improvable(&self, world: &World, layout: &Layout) -> bool {
        let regions = layout.voters.len();
        let pairs = (0..regions).flat_map(|to| (0..regions).map(move |from| (to, from)));
        pairs.filter(|(to, from)| *to != layout.leader && *from != layout.leader).any(|(to, from)| {
            let moving = if layout.design.votes_by_region() {
                if layout.voters[to] > 0 { 0 } else { layout.voters[from] }
            } else {
                layout.voters[from].min(1)
            };
            if moving == 0
                || layout.voters[to] + moving > world.space.voters_max_per_region[to]
                || !self.nearer[layout.leader][to][from]
            {
                return false;
            }
            let mut moved = layout.clone();
            moved.voters[from] -= moving;
            moved.voters[to] += moving;
            world.allows(&moved)
        })
    }

    /// No p99 is less than the client's round trip, the p99 of the way to the leader, and the least
    /// time a commit can take.
    fn p99_floor_ms(&self, world: &World, layout: &Layout) -> f64 {
        let commit_ms = self.floor.commit_ms(layout);
        world.model.mean_over_clients(|client| {
            let way_ms = world.model.rtt[client][layout.leader].quantile(0.99);
            world.model.client_rtt_ms + way_ms + commit_ms
        })
    }

    /// The contender of least p99; bounds spare the evaluation of most.
    fn winner(mut self, assessor: &mut Assessor<'_>) -> Option<Standing> {
        self.found.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut winner: Option<Standing> = None;
        for (floor_ms, mut standing) in self.found {
            if winner.as_ref().is_some_and(|winner| floor_ms > winner.objective_ms) {
                break;
            }
            standing.objective_ms = assessor.p99_write_ms(&standing.layout);
            if winner.as_ref().is_none_or(|winner| rank(&standing, winner) == Ordering::Less) {
                winner = Some(standing);
            }
        }
        winner
    }
}

/// The order of a plan: what meets the requirements, the objective, the preference of leaders;
/// then the mean, the time after a loss, availability, cost; and a fixed order at last.
fn rank(a: &Standing, b: &Standing) -> Ordering {
    let latencies = |s: &Standing| [rounded(s.mean_write_ms), rounded(s.after_loss_ms)];
    b.feasible
        .cmp(&a.feasible)
        .then_with(|| rounded(a.objective_ms).cmp(&rounded(b.objective_ms)))
        .then_with(|| a.preference.cmp(&b.preference))
        .then_with(|| latencies(a).cmp(&latencies(b)))
        .then_with(|| a.unavailability.total_cmp(&b.unavailability))
        .then_with(|| a.voters.cmp(&b.voters))
        .then_with(|| a.wan_copies.cmp(&b.wan_copies))
        .then_with(|| a.layout.design.cmp(&b.layout.design))
        .then_with(|| a.layout.leader.cmp(&b.layout.leader))
        .then_with(|| b.layout.voters.cmp(&a.layout.voters))
}

/// Latency in steps of [`SAME_MS`]: an order that stays transitive.
fn rounded(ms: f64) -> i64 {
    (ms / SAME_MS).round() as i64
}

/// Whether `a` is as good as `b` on every count and better on one, or equal and first in rank.
fn beats(a: &Standing, b: &Standing) -> bool {
    let counts = |s: &Standing| {
        [
            s.mean_write_ms,
            s.worst_write_ms,
            s.after_loss_ms,
            s.unavailability * 1e6,
            s.voters as f64,
            s.wan_copies as f64,
        ]
    };
    let (x, y) = (counts(a), counts(b));
    let no_worse = x.iter().zip(&y).all(|(x, y)| *x <= *y + SAME_MS);
    let better = x.iter().zip(&y).any(|(x, y)| *x < *y - SAME_MS);
    no_worse && (better || rank(a, b) == Ordering::Less)
}
