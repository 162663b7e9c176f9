//! Latency of a layout: the deterministic formulas, on medians.
//!
//! L is the leader's region, c a client's, f a disk flush, z the round trip between zones of one
//! region, R(a, b) the round trip between regions. A voter acknowledges after f in the leader's
//! own server, z + f in its region, R(L, r) + f in region r.
//!
//! - Flat: a write commits with the q-th smallest acknowledgement, q = N/2 + 1.
//! - Hierarchical: region r has answered with its majority-th acknowledgement; a write commits
//!   with the majority-th region.
//! - Two levels: region r votes after R(L, r) + C_r, where C_r is its own commit; a write commits
//!   with the later of C_L and the (Q-1)-th smallest vote of the others, Q = G/2 + 1 regions.
//!
//! A client in c sees client RTT + R(c, L) + commit, plus what [`Pipeline`] adds.

mod distribution;
mod measured;
mod tail;

pub use distribution::{Curve, Distribution, Node};
pub use measured::{Measured, TIME_MAX_MS};
pub use tail::{Percentiles, Tails};

use crate::layout::{Design, Layout, VOTERS_MAX};

/// What the formulas need to know of the world. Vectors are per region.
#[derive(Clone, Debug)]
pub struct Model {
    /// The regions' names.
    pub regions: Vec<String>,
    /// Round trip between every two regions; its median is [`Model::rtt_ms`].
    pub rtt: Vec<Vec<Distribution>>,
    /// Medians of the round trips, ms; zero from a region to itself.
    pub rtt_ms: Vec<Vec<f64>>,
    /// A flush of the log to disk.
    pub fsync: Distribution,
    /// Median of the flush, ms.
    pub fsync_ms: f64,
    /// Round trip between two zones of one region.
    pub zone: Distribution,
    /// Median of the round trip between zones, ms.
    pub zone_ms: f64,
    /// Round trip between a client and the server it talks to, ms.
    pub client_rtt_ms: f64,
    /// Share of the writes that comes from each region; adds up to one.
    pub shares: Vec<f64>,
    /// Regions that hold one voter at most and never lead.
    pub witness: Vec<bool>,
    /// Regional commits beside the one that is part of the vote.
    pub pipeline: Pipeline,
}

/// Where the servers of this mesh differ from the formulas of the literature, in the two-level
/// design; flat and hierarchical ones follow the formulas.
///
/// A global write waits for two commits in the client's own region beside the global commit: the
/// region first commits the request in its own log, which forwards it, and commits once more to
/// apply the decision. A `sync` is put in order with the writes, so that a read behind it sees all
/// that was acknowledged anywhere before: it takes as long as a write, where the formula asks the
/// leader only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pipeline {
    /// Commits in the client's region before the request is forwarded.
    pub request_commits: u8,
    /// Commits in the client's region after the decision has come back.
    pub apply_commits: u8,
    /// Whether a `sync` is ordered like a write.
    pub ordered_sync: bool,
}

impl Pipeline {
    /// What the servers of this mesh do.
    pub const MERIDIAN: Pipeline = Pipeline { request_commits: 1, apply_commits: 1, ordered_sync: true };

    /// Commits in all.
    pub fn commits(self) -> u8 {
        self.request_commits.saturating_add(self.apply_commits)
    }
}

impl Model {
    /// Time from the leader's receipt of a write to its commit, ms.
    pub fn commit_ms(&self, layout: &Layout) -> f64 {
        self.commit_without_ms(layout, layout.leader, None).unwrap_or(f64::INFINITY)
    }

    /// The same with another leader and one region lost: `None` when the rest is no quorum of the
    /// whole.
    pub fn commit_without_ms(&self, layout: &Layout, leader: usize, lost: Option<usize>) -> Option<f64> {
        match layout.design {
            Design::Flat => self.flat_commit_ms(&layout.voters, leader, lost),
            Design::Hier => self.hier_commit_ms(&layout.voters, leader, lost),
            Design::Two => self.two_level_commit_ms(&layout.voters, leader, lost),
        }
    }

    fn flat_commit_ms(&self, voters: &[u8], leader: usize, lost: Option<usize>) -> Option<f64> {
        let mut acks = Times::new();
        let mut total = 0;
        for (region, count) in voters.iter().enumerate() {
            total += usize::from(*count);
            if lost != Some(region) {
                acks.push(self.acknowledgement_ms(leader, region, 0), (*count).min(1));
                acks.push(self.acknowledgement_ms(leader, region, 1), count.saturating_sub(1));
            }
        }
        acks.kth_smallest(total / 2 + 1)
    }

    fn hier_commit_ms(&self, voters: &[u8], leader: usize, lost: Option<usize>) -> Option<f64> {
        let mut answers = Times::new();
        let mut groups = 0;
        for (region, count) in voters.iter().enumerate().filter(|(_, count)| **count > 0) {
            groups += 1;
            if lost != Some(region) {
                answers.push(self.acknowledgement_ms(leader, region, count / 2), 1);
            }
        }
        answers.kth_smallest(groups / 2 + 1)
    }

    fn two_level_commit_ms(&self, voters: &[u8], leader: usize, lost: Option<usize>) -> Option<f64> {
        let mut votes = Times::new();
        let mut groups = 0;
        for (region, count) in voters.iter().enumerate().filter(|(_, count)| **count > 0) {
            groups += 1;
            if region != leader && lost != Some(region) {
                votes.push(self.rtt_ms[leader][region] + self.local_commit_ms(*count), 1);
            }
        }
        let own = self.local_commit_ms(voters[leader]);
        let others_needed = groups / 2;
        if others_needed == 0 {
            Some(own)
        } else {
            votes.kth_smallest(others_needed).map(|vote| vote.max(own))
        }
    }

    /// When the `i`-th voter (from 0) of a region has the write on disk: the order is that of
    /// time, the leader itself first.
    fn acknowledgement_ms(&self, leader: usize, region: usize, i: u8) -> f64 {
        let way_ms = match (region == leader, i) {
            (true, 0) => 0.0,
            (true, _) => self.zone_ms,
            (false, _) => self.rtt_ms[leader][region],
        };
        way_ms + self.fsync_ms
    }

    /// Commit of an ensemble of `servers` in the zones of one region, ms.
    pub fn local_commit_ms(&self, servers: u8) -> f64 {
        if servers <= 1 { self.fsync_ms } else { self.zone_ms + self.fsync_ms }
    }

    /// A write as a client in `client` sees it, ms.
    pub fn write_ms(&self, layout: &Layout, client: usize) -> f64 {
        self.write_at_commit_ms(layout, layout.leader, client, self.commit_ms(layout))
    }

    /// The write of a client in `client` when `leader` commits after `commit_ms`.
    pub fn write_at_commit_ms(&self, layout: &Layout, leader: usize, client: usize, commit_ms: f64) -> f64 {
        let own_commits_ms = if layout.design == Design::Two && self.pipeline.commits() > 0 {
            f64::from(self.pipeline.commits()) * self.client_region_commit_ms(layout, client)
        } else {
            0.0
        };
        self.client_rtt_ms + self.rtt_ms[client][leader] + commit_ms + own_commits_ms
    }

    /// C_c: a commit in the client's region, ms.
    pub fn client_region_commit_ms(&self, layout: &Layout, client: usize) -> f64 {
        self.local_commit_ms(layout.servers(client))
    }

    /// A read from a server of the client's region: every region with clients has one, ms.
    pub fn read_ms(&self) -> f64 {
        self.client_rtt_ms
    }

    /// `sync`, then a read: asks the leader, ms.
    pub fn sync_read_ms(&self, layout: &Layout, client: usize) -> f64 {
        if self.sync_is_ordered(layout) {
            return self.write_ms(layout, client);
        }
        self.client_rtt_ms + self.rtt_ms[client][layout.leader]
    }

    /// Whether a `sync` takes as long as a write: see [`Pipeline`].
    pub fn sync_is_ordered(&self, layout: &Layout) -> bool {
        layout.design == Design::Two && self.pipeline.ordered_sync
    }

    /// An uncontended lock: a write, and a read that sees who is first, ms.
    pub fn lock_ms(&self, layout: &Layout, client: usize) -> f64 {
        self.write_ms(layout, client) + self.read_ms()
    }

    /// From the release of a lock in `from` until a waiter in `to` knows that it holds it, ms:
    /// half a write there, the event's way here, and a listing.
    pub fn hand_off_ms(&self, layout: &Layout, from: usize, to: usize) -> f64 {
        self.hand_off_at_commit_ms(layout.leader, from, to, self.commit_ms(layout))
    }

    /// The same when `leader` commits after `commit_ms`.
    pub fn hand_off_at_commit_ms(&self, leader: usize, from: usize, to: usize, commit_ms: f64) -> f64 {
        self.client_rtt_ms / 2.0
            + self.rtt_ms[from][leader] / 2.0
            + commit_ms
            + self.rtt_ms[leader][to] / 2.0
            + self.client_rtt_ms / 2.0
            + self.client_rtt_ms
    }

    /// Mean over the clients' writes, ms.
    pub fn mean_write_ms(&self, layout: &Layout) -> f64 {
        self.mean_over_clients(|client| self.write_ms(layout, client))
    }

    /// The write of the region that waits longest, among those that write, ms.
    pub fn worst_write_ms(&self, layout: &Layout) -> f64 {
        self.client_regions().map(|client| self.write_ms(layout, client)).fold(0.0, f64::max)
    }

    /// Per region: the others, nearest first.
    pub fn nearest_first(&self) -> Vec<Vec<usize>> {
        let regions = 0..self.regions.len();
        let nearest = |from: usize| {
            let mut others: Vec<usize> = regions.clone().filter(|region| *region != from).collect();
            others.sort_by(|a, b| self.rtt_ms[from][*a].total_cmp(&self.rtt_ms[from][*b]));
            others
        };
        regions.clone().map(nearest).collect()
    }

    /// The regions that write.
    pub fn client_regions(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.shares.len()).filter(|region| self.shares[*region] > 0.0)
    }

    /// Mean of a figure per client region, weighted by the writes.
    pub fn mean_over_clients(&self, figure: impl Fn(usize) -> f64) -> f64 {
        self.client_regions().map(|client| self.shares[client] * figure(client)).sum()
    }
}

/// A few times on the stack, sorted: the search evaluates millions of layouts.
pub(crate) struct Times {
    values: [f64; VOTERS_MAX + 1],
    count: usize,
}

impl Times {
    pub(crate) fn new() -> Self {
        Times { values: [0.0; VOTERS_MAX + 1], count: 0 }
    }

    /// Adds a time so often; beyond [`VOTERS_MAX`], which no layout exceeds, it is not counted.
    pub(crate) fn push(&mut self, value: f64, copies: u8) {
        for _ in 0..usize::from(copies).min(self.values.len() - self.count) {
            let mut place = self.count;
            while place > 0 && self.values[place - 1] > value {
                self.values[place] = self.values[place - 1];
                place -= 1;
            }
            self.values[place] = value;
            self.count += 1;
        }
    }

    /// `None` when there are fewer than `k`, or `k` is zero.
    pub(crate) fn kth_smallest(&self, k: usize) -> Option<f64> {
        self.values[..self.count].get(k.checked_sub(1)?).copied()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Three regions 62, 75 and 130 ms apart, as in the example scenario.
    pub(crate) fn example() -> Model {
        let (p50, p99) = ([[0.0, 62.0, 75.0], [62.0, 0.0, 130.0], [75.0, 130.0, 0.0]], [66.0, 80.0, 138.0]);
        let rtt = |a: usize, b: usize| Distribution::from_percentiles(p50[a][b], p99[a + b - 1], 0.98);
        Model {
            regions: ["us-east", "us-west", "eu"].map(str::to_owned).to_vec(),
            rtt: (0..3)
                .map(|a| (0..3).map(|b| if a == b { Distribution::Fixed(0.0) } else { rtt(a, b) }).collect())
                .collect(),
            rtt_ms: p50.iter().map(|row| row.to_vec()).collect(),
            fsync: Distribution::from_percentiles(1.0, 8.0, 0.0),
            fsync_ms: 1.0,
            zone: Distribution::from_percentiles(1.0, 3.0, 0.5),
            zone_ms: 1.0,
            client_rtt_ms: 0.5,
            shares: vec![0.5, 0.25, 0.25],
            witness: vec![false; 3],
            pipeline: Pipeline::default(),
        }
    }

    pub(crate) fn layout(design: Design, leader: usize, voters: [u8; 3]) -> Layout {
        Layout { design, leader, voters: voters.to_vec(), observers: vec![0; 3] }
    }

    #[test]
    fn a_flat_group_waits_for_the_nearest_majority() {
        let model = example();
        // 2-2-1: the leader 1, its neighbour 2, then us-west 63: the third of five.
        assert_eq!(model.commit_ms(&layout(Design::Flat, 0, [2, 2, 1])), 63.0);
        // 3-1-1: the majority is in the leader's region.
        assert_eq!(model.commit_ms(&layout(Design::Flat, 0, [3, 1, 1])), 2.0);
        assert_eq!(model.commit_ms(&layout(Design::Flat, 2, [1, 1, 1])), 76.0);
        assert_eq!(model.commit_ms(&layout(Design::Flat, 0, [1, 0, 0])), 1.0);
    }

    #[test]
    fn groups_wait_for_a_majority_of_regions() {
        let model = example();
        assert_eq!(model.commit_ms(&layout(Design::Hier, 0, [3, 3, 3])), 63.0);
        assert_eq!(model.commit_ms(&layout(Design::Two, 0, [3, 3, 3])), 64.0);
        assert_eq!(model.commit_ms(&layout(Design::Two, 0, [3, 1, 1])), 63.0);
        assert_eq!(model.commit_ms(&layout(Design::Two, 0, [3, 0, 0])), 2.0);
    }

    #[test]
    fn clients_elsewhere_pay_the_way_to_the_leader() {
        let model = example();
        let flat = layout(Design::Flat, 0, [2, 2, 1]);
        assert_eq!([0, 1, 2].map(|client| model.write_ms(&flat, client)), [63.5, 125.5, 138.5]);
        assert_eq!(model.mean_write_ms(&flat), 97.75);
        assert_eq!(model.worst_write_ms(&flat), 138.5);
        assert_eq!(model.sync_read_ms(&flat, 2), 75.5);
        assert_eq!(model.lock_ms(&flat, 1), 126.0);
        assert_eq!(model.hand_off_ms(&flat, 1, 2), 31.0 + 63.0 + 37.5 + 1.0);
    }

    #[test]
    fn the_pipeline_adds_commits_in_the_clients_region_at_two_levels_only() {
        let mut model = example();
        model.pipeline = Pipeline::MERIDIAN;
        assert_eq!(model.write_ms(&layout(Design::Two, 0, [3, 3, 1]), 1), 0.5 + 62.0 + 64.0 + 4.0);
        assert_eq!(model.write_ms(&layout(Design::Two, 0, [3, 3, 1]), 2), 0.5 + 75.0 + 64.0 + 2.0);
        assert_eq!(model.write_ms(&layout(Design::Flat, 0, [2, 2, 1]), 1), 125.5);
    }

    #[test]
    fn a_lost_region_leaves_the_quorum_of_the_whole() {
        let model = example();
        let flat = layout(Design::Flat, 0, [2, 2, 1]);
        assert_eq!(model.commit_without_ms(&flat, 1, Some(0)), Some(131.0));
        assert_eq!(model.commit_without_ms(&layout(Design::Flat, 0, [3, 1, 1]), 1, Some(0)), None);
        assert_eq!(model.commit_without_ms(&layout(Design::Two, 0, [3, 3, 3]), 0, Some(1)), Some(77.0));
    }
}
