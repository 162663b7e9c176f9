//! The layout of the least p99. Distributions are a thousand times dearer than medians, so only
//! layouts that could win are looked at.

use super::Assessor;
use super::bound::least_commit_ms;
use super::search::Allowance;
use crate::latency::{Distribution, Model};
use crate::layout::{Design, Guide, Layout, Partial};
use crate::scenario::World;

/// The layouts with a p99 below `known_ms` that were met on the way to the least, the least last.
pub(super) fn least_p99(
    world: &World,
    assessor: &mut Assessor<'_>,
    known_ms: f64,
    allowance: &mut Allowance,
) -> Vec<(Layout, f64)> {
    let mut contenders = Contenders::new(world, known_ms, allowance);
    // Nearest by the least times: the bound of a partial layout rests on that order.
    let nearest_first = contenders.floor.nearest_first();
    world.space.walk(&nearest_first, &mut contenders);
    contenders.found.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut least_ms = known_ms;
    let mut better = Vec::new();
    for (floor_ms, layout) in contenders.found {
        if floor_ms > least_ms {
            break;
        }
        let p99_ms = assessor.p99_write_ms(&layout);
        if p99_ms <= least_ms {
            least_ms = p99_ms;
            better.push((layout, p99_ms));
        }
    }
    better
}

/// The layouts that the least p99 is among.
///
/// A commit under a fixed leader comes no later, in any percentile, when a voter (or a whole group,
/// where groups vote) moves to a region whose round trip is no longer in any percentile. Layouts
/// with such a move open to them are left out: where it leads is at least as good.
struct Contenders<'w> {
    world: &'w World,
    /// `nearer[leader][a][b]`: whether `a`'s round trip is no longer than `b`'s in any percentile.
    nearer: Vec<Vec<Vec<bool>>>,
    /// The same world with the least possible times: bounds a layout's p99 from below.
    floor: Model,
    /// Per leader: mean over the clients of their round trip and the p99 of the way, ms.
    ways_p99_ms: Vec<f64>,
    /// A p99 that some layout is known to reach.
    known_ms: f64,
    allowance: &'w mut Allowance,
    /// Lower bound of the p99, and the layout.
    found: Vec<(f64, Layout)>,
}

impl<'w> Contenders<'w> {
    fn new(world: &'w World, known_ms: f64, allowance: &'w mut Allowance) -> Self {
        let model = &world.model;
        let regions = model.regions.len();
        let nearer_under = |leader: usize| -> Vec<Vec<bool>> {
            let quantiles: Vec<Vec<f64>> = model.rtt[leader].iter().map(quantiles).collect();
            let no_longer = |a: usize, b: usize| {
                let all = quantiles[a].iter().zip(&quantiles[b]).all(|(x, y)| x <= y);
                all && (a < b || quantiles[a] != quantiles[b])
            };
            (0..regions).map(|a| (0..regions).map(|b| a != b && no_longer(a, b)).collect()).collect()
        };
        let floor = Model {
            rtt_ms: model.rtt.iter().map(|row| row.iter().map(|way| way.floor_ms()).collect()).collect(),
            fsync_ms: model.fsync.floor_ms(),
            zone_ms: model.zone.floor_ms(),
            ..model.clone()
        };
        let way_p99_ms = |leader: usize| {
            let client_ms = |client: usize| model.client_rtt_ms + model.rtt[client][leader].quantile(0.99);
            model.mean_over_clients(client_ms)
        };
        Contenders {
            world,
            nearer: (0..regions).map(nearer_under).collect(),
            floor,
            ways_p99_ms: (0..regions).map(way_p99_ms).collect(),
            known_ms,
            allowance,
            found: Vec::new(),
        }
    }

    /// Whether a voter or group may move nearer to the leader and leave the requirements met.
    fn improvable(&self, layout: &Layout) -> bool {
        let regions = 0..layout.voters.len();
        let elsewhere = |region: &usize| *region != layout.leader;
        regions.clone().filter(elsewhere).any(|from| {
            layout.voters[from] > 0
                && regions.clone().filter(elsewhere).any(|to| self.may_move(layout, from, to))
        })
    }

    fn may_move(&self, layout: &Layout, from: usize, to: usize) -> bool {
        if !self.nearer[layout.leader][to][from] || self.moves_clients(layout.design) {
            return false;
        }
        let by_region = layout.design.votes_by_region();
        let moving = if by_region { layout.voters[from] } else { 1 };
        if (by_region && layout.voters[to] > 0)
            || layout.voters[to] + moving > self.world.space.voters_max_per_region[to]
        {
            return false;
        }
        let mut moved = layout.clone();
        moved.voters[from] -= moving;
        moved.voters[to] += moving;
        self.world.allows(&moved)
    }

    /// Whether a move changes more than the commit: the clients' own regional commits.
    fn moves_clients(&self, design: Design) -> bool {
        design == Design::Two && self.world.model.pipeline.commits() > 0
    }

    /// No p99 is less than the client's round trip, the p99 of the way to the leader, and the least
    /// time a commit can take.
    fn p99_floor_ms(&self, leader: usize, commit_ms: f64) -> f64 {
        self.ways_p99_ms[leader] + commit_ms
    }
}

impl Guide for Contenders<'_> {
    fn begin(&mut self, parts_left: usize) {
        self.allowance.begin(parts_left);
    }

    /// Cuts what can't reach the p99 that is known, and where a decided group or voter could move
    /// to a decided region whatever the rest is: single voters only where one region must be
    /// survivable at most, for otherwise a move may cost the requirement.
    fn cut(&mut self, partial: &Partial<'_>) -> bool {
        let world = self.world;
        let commit_ms = least_commit_ms(&self.floor, partial, None);
        let floor_ms = self.p99_floor_ms(partial.leader, commit_ms);
        if floor_ms > self.known_ms {
            return true;
        }
        if !self.allowance.take() {
            self.allowance.leave_out(floor_ms);
            return true;
        }
        let by_region = partial.design.votes_by_region();
        let restricted = world.space.must_vote.contains(&true) || !world.ceilings.are_infinite();
        if restricted || (world.survive_regions > 1 && !by_region) || self.moves_clients(partial.design) {
            return false;
        }
        let spare = usize::from(partial.total - 1) / 2;
        let most_lost = spare.saturating_sub(world.region_loss_plus_voters);
        let takes_one_more = |to: usize| {
            let (count, most) = (partial.voters[to], world.space.voters_max_per_region[to]);
            let survivable = world.survive_regions == 0 && world.region_loss_plus_voters == 0
                || usize::from(count) < most_lost;
            count < most && survivable
        };
        let decided = |region: &usize| *region != partial.leader && !partial.undecided.contains(region);
        let regions = 0..partial.voters.len();
        regions.clone().filter(decided).filter(|from| partial.voters[*from] > 0).any(|from| {
            regions.clone().filter(decided).any(|to| {
                self.nearer[partial.leader][to][from]
                    && if by_region {
                        partial.voters[to] == 0
                            && partial.voters[from] <= world.space.voters_max_per_region[to]
                    } else {
                        takes_one_more(to)
                    }
            })
        })
    }

    fn visit(&mut self, layout: &Layout) {
        if self.world.allows(layout) && !self.improvable(layout) {
            let floor_ms = self.p99_floor_ms(layout.leader, self.floor.commit_ms(layout));
            self.found.push((floor_ms, layout.clone()));
        }
    }
}

/// Enough quantiles to tell whether one distribution lies below another throughout.
fn quantiles(way: &Distribution) -> Vec<f64> {
    let inner = (1..200).map(|i| way.quantile(f64::from(i) / 200.0));
    [way.floor_ms(), way.quantile(1e-6)]
        .into_iter()
        .chain(inner)
        .chain([way.quantile(0.9999), way.quantile(1.0 - 1e-6)])
        .collect()
}
