//! Lower bounds on the figures of every layout that a partial one can become.

use std::collections::HashMap;

use super::Objective;
use super::search::Figures;
use crate::availability::Failures;
use crate::latency::{Model, Times};
use crate::layout::{Design, Layout, Partial, Space};
use crate::scenario::World;

/// Bounds for one world; keeps what partial layouts share.
pub(super) struct Bounds<'w> {
    world: &'w World,
    nearest_first: Vec<Vec<usize>>,
    /// Per leader: mean and largest way of the clients to it, ms.
    ways: Vec<(f64, f64)>,
    /// Per leader and lost region: mean way of the remaining clients to the leader, ms.
    ways_after_loss: Vec<Vec<f64>>,
    /// Failures that depend on sizes only, and are no more frequent than the world's.
    least_failures: Failures,
    unavailability: HashMap<(Design, Vec<u8>), f64>,
    least_unavailability: HashMap<(Design, Vec<u8>, u8, u8), f64>,
    least_after_leader_loss: HashMap<(Design, usize, u8), f64>,
}

impl<'w> Bounds<'w> {
    pub(super) fn new(world: &'w World) -> Self {
        let model = &world.model;
        let regions = model.regions.len();
        let nearest_first = model.nearest_first();
        let ways = (0..regions)
            .map(|leader| {
                let way_ms = |client: usize| model.rtt_ms[client][leader];
                (model.mean_over_clients(way_ms), model.client_regions().map(way_ms).fold(0.0, f64::max))
            })
            .collect();
        let ways_after_loss = (0..regions)
            .map(|leader| (0..regions).map(|lost| mean_way_after_loss_ms(world, leader, lost)).collect())
            .collect();
        Bounds {
            world,
            nearest_first,
            ways,
            ways_after_loss,
            least_failures: world.failures.floor(),
            unavailability: HashMap::new(),
            least_unavailability: HashMap::new(),
            least_after_leader_loss: HashMap::new(),
        }
    }

    /// Per leader: the other regions, nearest first.
    pub(super) fn nearest_first(&self) -> &[Vec<usize>] {
        &self.nearest_first
    }

    /// Where regions fail alike, only the sizes matter.
    pub(super) fn unavailability(&mut self, layout: &Layout) -> f64 {
        let failures = &self.world.failures;
        if !failures.are_alike() {
            return failures.unavailability(layout);
        }
        let sizes = sizes(&layout.voters);
        *self.unavailability.entry((layout.design, sizes)).or_insert_with(|| failures.unavailability(layout))
    }

    /// Whether no completion meets the requirements.
    pub(super) fn infeasible(&self, partial: &Partial<'_>) -> bool {
        let world = self.world;
        if !world.ceilings.are_infinite() && self.above_ceilings(partial) {
            return true;
        }
        if partial.design.votes_by_region() {
            return usize::from(partial.total) < 2 * world.survive_regions + 1
                || (world.region_loss_plus_voters > 0 && !self.largest_groups_survive(partial));
        }
        // What the largest regions hold may be lost, and the rest must be a majority.
        let spare = usize::from(partial.total - 1) / 2;
        let mut sizes = sizes(partial.voters);
        sizes.reverse();
        let lost = |regions: usize| sizes.iter().take(regions).map(|size| usize::from(*size)).sum::<usize>();
        let more = world.region_loss_plus_voters;
        lost(world.survive_regions) > spare || (more > 0 && lost(1) + more > spare)
    }

    /// Whether every completion's writes take longer than they may.
    fn above_ceilings(&self, partial: &Partial<'_>) -> bool {
        let (model, ceilings) = (&self.world.model, &self.world.ceilings);
        let commit_ms = model.client_rtt_ms + least_commit_ms(model, partial, None);
        let (mean_way_ms, longest_way_ms) = self.ways[partial.leader];
        let write_ms = |region: usize| model.rtt_ms[region][partial.leader] + commit_ms;
        mean_way_ms + commit_ms > ceilings.mean_write_ms
            || longest_way_ms + commit_ms > ceilings.worst_write_ms
            || ceilings.write_ms.iter().enumerate().any(|(region, most_ms)| write_ms(region) > *most_ms)
    }

    /// Whether a region and more voters could be lost if all groups left became as large as any may.
    fn largest_groups_survive(&self, partial: &Partial<'_>) -> bool {
        let most = self.world.space.voters_max_per_region.iter().max().copied().unwrap_or(0);
        let largest = most.min((partial.room + 1).saturating_sub(partial.left)).max(1);
        let mut voters = sizes(partial.voters);
        voters.extend((0..partial.left).map(|_| largest));
        let layout = Layout { design: partial.design, leader: 0, voters, observers: Vec::new() };
        layout.survives_region_and_voters(self.world.region_loss_plus_voters)
    }

    /// Figures that no completion falls below, in any.
    pub(super) fn figures(&mut self, partial: &Partial<'_>, objective: Objective) -> Figures {
        let world = self.world;
        let model = &world.model;
        let commit_ms = least_commit_ms(model, partial, None);
        let (mean_way_ms, longest_way_ms) = self.ways[partial.leader];
        let mean_write_ms = model.client_rtt_ms + mean_way_ms + commit_ms;
        let worst_write_ms = model.client_rtt_ms + longest_way_ms + commit_ms;
        let stays_ms = model.client_rtt_ms + self.longest_way_after_loss_ms(partial.leader) + commit_ms;
        let after_loss_ms = stays_ms.max(self.after_leader_loss_ms(partial));
        let voters =
            partial.voters.iter().map(|count| usize::from(*count)).sum::<usize>() + usize::from(partial.left);
        Figures {
            objective_ms: objective.of(mean_write_ms, worst_write_ms, after_loss_ms),
            preference: world.preference(partial.leader),
            mean_write_ms,
            worst_write_ms,
            after_loss_ms,
            unavailability: self.least_unavailability(partial),
            voters,
            wan_copies: wan_copies(&world.space, partial),
        }
    }

    /// Mean and longest median write of the clients, ms.
    pub(super) fn write_ms(&self, layout: &Layout, commit_ms: f64) -> (f64, f64) {
        let model = &self.world.model;
        if layout.design == Design::Two && model.pipeline.commits() > 0 {
            return (model.mean_write_ms(layout), model.worst_write_ms(layout));
        }
        let (mean_way_ms, longest_way_ms) = self.ways[layout.leader];
        let rest_ms = model.client_rtt_ms + commit_ms;
        (rest_ms + mean_way_ms, rest_ms + longest_way_ms)
    }

    /// [`Layout::worst_after_loss_ms`], sooner: most of it is known before the layout is.
    pub(super) fn after_loss_ms(&self, layout: &Layout, commit_ms: f64) -> f64 {
        let model = &self.world.model;
        if layout.design == Design::Two && model.pipeline.commits() > 0 {
            return layout.worst_after_loss_ms(model, &self.world.succession);
        }
        let leader = layout.leader;
        let mut worst_ms = self.after_leader_is_lost_ms(layout);
        for lost in (0..layout.voters.len()).filter(|lost| *lost != leader) {
            let commit_ms = match layout.voters[lost] {
                0 => commit_ms,
                _ => model.commit_without_ms(layout, leader, Some(lost)).unwrap_or(f64::INFINITY),
            };
            worst_ms = worst_ms.max(self.ways_after_loss[leader][lost] + commit_ms);
        }
        model.client_rtt_ms + worst_ms
    }

    /// The way and the commit under the region that takes over, ms.
    fn after_leader_is_lost_ms(&self, layout: &Layout) -> f64 {
        let World { model, succession, .. } = self.world;
        let lost = layout.leader;
        let under = |leader: usize| {
            let commit_ms = model.commit_without_ms(layout, leader, Some(lost))?;
            Some(self.ways_after_loss[leader][lost] + commit_ms)
        };
        succession.successor(model, layout, under).and_then(under).unwrap_or(f64::INFINITY)
    }

    fn longest_way_after_loss_ms(&self, leader: usize) -> f64 {
        let ways = self.ways_after_loss[leader].iter().enumerate();
        ways.filter(|(lost, _)| *lost != leader).map(|(_, way_ms)| *way_ms).fold(0.0, f64::max)
    }

    /// A bound on the time after a loss that also loses each region decided on; at least `known_ms`.
    pub(super) fn after_any_loss_ms(&self, partial: &Partial<'_>, known_ms: f64) -> f64 {
        let ways = &self.ways_after_loss[partial.leader];
        (0..partial.voters.len())
            .filter(|lost| *lost != partial.leader && partial.voters[*lost] > 0)
            .map(|lost| {
                self.world.model.client_rtt_ms
                    + ways[lost]
                    + least_commit_ms(&self.world.model, partial, Some(lost))
            })
            .fold(known_ms, f64::max)
    }

    /// The least mean write when the leader's region is lost: the best successor with the nearest
    /// quorum that the limits allow.
    fn after_leader_loss_ms(&mut self, partial: &Partial<'_>) -> f64 {
        let world = self.world;
        let (design, leader, total) = (partial.design, partial.leader, partial.total);
        let nearest_first = &self.nearest_first;
        *self.least_after_leader_loss.entry((design, leader, total)).or_insert_with(|| {
            let successors = (0..world.model.regions.len())
                .filter(|region| *region != leader && world.space.voters_max_per_region[*region] > 0);
            successors
                .map(|successor| {
                    world.model.client_rtt_ms
                        + mean_way_after_loss_ms(world, successor, leader)
                        + least_commit_of_successor_ms(
                            world,
                            design,
                            successor,
                            leader,
                            total,
                            &nearest_first[successor],
                        )
                })
                .fold(f64::INFINITY, f64::min)
        })
    }

    fn least_unavailability(&mut self, partial: &Partial<'_>) -> f64 {
        let sizes = sizes(partial.voters);
        self.least_for_sizes(partial.design, sizes, partial.left, partial.room)
    }

    /// The least unavailability over all ways to complete the sizes.
    fn least_for_sizes(&mut self, design: Design, sizes: Vec<u8>, left: u8, room: u8) -> f64 {
        let room = if design.votes_by_region() { room } else { left };
        let key = (design, sizes, left, room);
        if let Some(known) = self.least_unavailability.get(&key) {
            return *known;
        }
        if left == 0 {
            let observers = vec![0; key.1.len()];
            let layout = Layout { design, leader: 0, voters: key.1.clone(), observers };
            let least = self.least_failures.unavailability(&layout);
            self.least_unavailability.insert(key, least);
            return least;
        }
        let most = self.world.space.voters_max_per_region.iter().max().copied().unwrap_or(0).min(room);
        let mut least = f64::INFINITY;
        for size in (1..=most).filter(|size| !design.votes_by_region() || size % 2 == 1) {
            let mut larger = key.1.clone();
            larger.insert(larger.partition_point(|other| *other <= size), size);
            let taken = if design.votes_by_region() { 1 } else { size };
            least = least.min(self.least_for_sizes(design, larger, left - taken, room - size));
        }
        self.least_unavailability.insert(key, least);
        least
    }
}

/// The earliest commit, without the `lost` region: what is left to place acknowledges no
/// earlier than the nearest undecided region.
pub(super) fn least_commit_ms(model: &Model, partial: &Partial<'_>, lost: Option<usize>) -> f64 {
    let Partial { design, leader, voters, total, left, .. } = *partial;
    let mut times = Times::new();
    let own_ms = model.local_commit_ms(voters[leader]);
    match design {
        Design::Flat => {
            times.push(model.fsync_ms, 1);
            times.push(model.fsync_ms + model.zone_ms, voters[leader] - 1);
        }
        Design::Hier => times.push(own_ms, 1),
        Design::Two => {}
    }
    for (region, size) in voters.iter().enumerate() {
        if *size > 0 && region != leader && lost != Some(region) {
            let copies = if design == Design::Flat { *size } else { 1 };
            times.push(model.rtt_ms[leader][region] + model.fsync_ms, copies);
        }
    }
    times.push(model.rtt_ms[leader][partial.undecided[0]] + model.fsync_ms, left);
    let others = usize::from(total) / 2;
    match design {
        Design::Flat | Design::Hier => times.kth_smallest(others + 1).unwrap_or(f64::INFINITY),
        Design::Two if others == 0 => own_ms,
        Design::Two => times.kth_smallest(others).map_or(f64::INFINITY, |vote| vote.max(own_ms)),
    }
}

/// The mean way of the remaining clients to `leader`, as [`Layout::after_loss`] weighs them, ms.
fn mean_way_after_loss_ms(world: &World, leader: usize, lost: usize) -> f64 {
    let model = &world.model;
    let clients = || (0..model.regions.len()).filter(|client| *client != lost);
    let left: f64 = clients().map(|client| model.shares[client]).sum();
    if left > 0.0 {
        clients().map(|client| model.shares[client] / left * model.rtt_ms[client][leader]).sum()
    } else {
        let count = clients().count().max(1) as f64;
        clients().map(|client| model.rtt_ms[client][leader]).sum::<f64>() / count
    }
}

/// The earliest commit of a successor without `lost`, whatever the layout of that many voters or
/// groups.
fn least_commit_of_successor_ms(
    world: &World,
    design: Design,
    leader: usize,
    lost: usize,
    total: u8,
    nearest_first: &[usize],
) -> f64 {
    let model = &world.model;
    let space = &world.space;
    // Its own acknowledgement comes first, so the rest of the quorum is what is waited for.
    let mut needed = u32::from(total) / 2;
    if design == Design::Flat {
        needed = needed.saturating_sub(u32::from(space.voters_max_per_region[leader]) - 1);
    }
    for region in nearest_first.iter().filter(|region| **region != lost) {
        if needed == 0 {
            break;
        }
        let most = u32::from(space.voters_max_per_region[*region]);
        needed = needed.saturating_sub(if design == Design::Flat { most } else { most.min(1) });
        if needed == 0 {
            return model.rtt_ms[leader][*region] + model.fsync_ms;
        }
    }
    if needed == 0 { model.fsync_ms } else { f64::INFINITY }
}

fn wan_copies(space: &Space, partial: &Partial<'_>) -> usize {
    let away = |region: &usize| *region != partial.leader;
    if partial.design == Design::Two {
        let served = (0..partial.voters.len()).filter(away).filter(|region| space.served[*region]).count();
        return served.max(usize::from(partial.total) - 1);
    }
    // Every served region costs a copy, for a voter or an observer.
    let decided: usize = (0..partial.voters.len())
        .filter(|region| away(region) && !partial.undecided.contains(region))
        .map(|region| usize::from(partial.voters[region].max(u8::from(space.served[region]))))
        .sum();
    let served = partial.undecided.iter().filter(|region| space.served[**region]).count();
    decided + served.max(usize::from(partial.left))
}

fn sizes(voters: &[u8]) -> Vec<u8> {
    let mut sizes: Vec<u8> = voters.iter().copied().filter(|count| *count > 0).collect();
    sizes.sort_unstable();
    sizes
}
