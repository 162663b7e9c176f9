//! Tails: the same formulas over distributions, by order statistics and convolution.

use std::collections::HashMap;
use std::rc::Rc;

use serde::Serialize;

use super::{Curve, Distribution, Model, Node};
use crate::layout::{Design, Layout};

/// A time in the middle and in the tail, ms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
}

/// Distributions of a model's layouts. Keeps what layouts share.
///
/// Hops and flushes are taken as independent of each other.
pub struct Tails<'m> {
    model: &'m Model,
    fsync: Rc<Curve>,
    fsync_nodes: Vec<Node>,
    zone_acknowledgement: Rc<Curve>,
    acknowledgements: HashMap<(usize, usize), Rc<Curve>>,
    local_commits: HashMap<u8, Rc<Curve>>,
    votes: HashMap<(usize, usize, u8), Rc<Curve>>,
    ways: HashMap<(usize, usize), Rc<Vec<Node>>>,
}

impl<'m> Tails<'m> {
    /// Nothing is computed before it is asked for.
    pub fn new(model: &'m Model) -> Self {
        let fsync_nodes = model.fsync.nodes();
        Tails {
            model,
            fsync: Rc::new(model.fsync.curve()),
            zone_acknowledgement: Rc::new(model.zone.curve().plus(&fsync_nodes)),
            fsync_nodes,
            acknowledgements: HashMap::new(),
            local_commits: HashMap::new(),
            votes: HashMap::new(),
            ways: HashMap::new(),
        }
    }

    /// Distribution of the time from the leader's receipt of a write to its commit.
    pub fn commit(&mut self, layout: &Layout) -> Curve {
        self.commit_without(layout, None)
    }

    /// The same with one region lost; what is left must hold a quorum of the whole.
    pub fn commit_without(&mut self, layout: &Layout, lost: Option<usize>) -> Curve {
        match layout.design {
            Design::Flat => self.flat_commit(layout, lost),
            Design::Hier => self.hier_commit(layout, lost),
            Design::Two => self.two_level_commit(layout, lost),
        }
    }

    /// Percentiles of the write that a client in `client` sees, when writes commit after `commit`.
    pub fn write(&mut self, layout: &Layout, client: usize, commit: &Curve) -> Percentiles {
        let at_leader = self.write_at_leader(layout, client, commit);
        Percentiles {
            p50: self.after_way(layout, client, &at_leader, 0.5),
            p99: self.after_way(layout, client, &at_leader, 0.99),
        }
    }

    /// Percentiles of `sync` and a read.
    pub fn sync_read(&mut self, layout: &Layout, client: usize, commit: &Curve) -> Percentiles {
        let model = self.model;
        if model.sync_is_ordered(layout) {
            return self.write(layout, client, commit);
        }
        let way = &model.rtt[client][layout.leader];
        let at = |probability| model.client_rtt_ms + way.quantile(probability);
        Percentiles { p50: at(0.5), p99: at(0.99) }
    }

    /// Percentiles of the time from the release of a lock in `from` until `to` holds it.
    pub fn hand_off(&mut self, layout: &Layout, from: usize, to: usize, commit: &Curve) -> Percentiles {
        let halved = |way: Rc<Vec<Node>>| -> Vec<Node> {
            way.iter().map(|node| Node { value_ms: node.value_ms / 2.0, ..*node }).collect()
        };
        let there = halved(self.way(from, layout.leader));
        let back = halved(self.way(layout.leader, to));
        let at_leader = commit.clone().later(2.0 * self.model.client_rtt_ms).plus(&there);
        Percentiles {
            p50: at_leader.quantile_of_sum(&back, 0.5),
            p99: at_leader.quantile_of_sum(&back, 0.99),
        }
    }

    /// The 99th percentile of the same, ms.
    pub fn write_p99_ms(&mut self, layout: &Layout, client: usize, commit: &Curve) -> f64 {
        let at_leader = self.write_at_leader(layout, client, commit);
        self.after_way(layout, client, &at_leader, 0.99)
    }

    /// The write but for the way between the client's region and the leader's.
    fn write_at_leader(&mut self, layout: &Layout, client: usize, commit: &Curve) -> Curve {
        let model = self.model;
        let own_commits = if layout.design == Design::Two { model.pipeline.commits() } else { 0 };
        let mut total = commit.clone().later(model.client_rtt_ms);
        if own_commits > 0 {
            let servers = layout.servers(client);
            let nodes = self.local_commit(servers).nodes();
            for _ in 0..own_commits {
                total = total.plus(&nodes);
            }
        }
        total
    }

    fn after_way(&mut self, layout: &Layout, client: usize, at_leader: &Curve, probability: f64) -> f64 {
        if client == layout.leader {
            return at_leader.quantile(probability);
        }
        at_leader.quantile_of_sum(&self.way(client, layout.leader), probability)
    }

    fn flat_commit(&mut self, layout: &Layout, lost: Option<usize>) -> Curve {
        let acknowledgements: Vec<(Rc<Curve>, usize)> =
            standing(layout, lost).flat_map(|region| self.region_acknowledgements(layout, region)).collect();
        kth_smallest(&acknowledgements, layout.voter_count() / 2 + 1)
    }

    fn hier_commit(&mut self, layout: &Layout, lost: Option<usize>) -> Curve {
        let groups = layout.voting_regions().count();
        let answers: Vec<(Rc<Curve>, usize)> = standing(layout, lost)
            .map(|region| {
                let majority = usize::from(layout.voters[region]) / 2 + 1;
                (Rc::new(kth_smallest(&self.region_acknowledgements(layout, region), majority)), 1)
            })
            .collect();
        kth_smallest(&answers, groups / 2 + 1)
    }

    fn two_level_commit(&mut self, layout: &Layout, lost: Option<usize>) -> Curve {
        let groups = layout.voting_regions().count();
        let votes: Vec<(Rc<Curve>, usize)> = standing(layout, lost)
            .filter(|region| *region != layout.leader)
            .map(|region| (self.vote(layout.leader, region, layout.voters[region]), 1))
            .collect();
        let own = self.local_commit(layout.voters[layout.leader]);
        match groups / 2 {
            0 => (*own).clone(),
            others_needed => own.later_of(&kth_smallest(&votes, others_needed)),
        }
    }

    /// The acknowledgements of the voters of one region, the leader's own among them.
    fn region_acknowledgements(&mut self, layout: &Layout, region: usize) -> Vec<(Rc<Curve>, usize)> {
        let voters = usize::from(layout.voters[region]);
        if region != layout.leader {
            return vec![(self.acknowledgement(layout.leader, region), voters)];
        }
        vec![(Rc::clone(&self.fsync), 1), (Rc::clone(&self.zone_acknowledgement), voters.saturating_sub(1))]
    }

    fn acknowledgement(&mut self, leader: usize, region: usize) -> Rc<Curve> {
        let (model, fsync) = (self.model, &self.fsync_nodes);
        let made = self
            .acknowledgements
            .entry((leader, region))
            .or_insert_with(|| Rc::new(model.rtt[leader][region].curve().plus(fsync)));
        Rc::clone(made)
    }

    fn local_commit(&mut self, servers: u8) -> Rc<Curve> {
        let (own, other) = (Rc::clone(&self.fsync), Rc::clone(&self.zone_acknowledgement));
        let made = self.local_commits.entry(servers).or_insert_with(|| {
            let servers = usize::from(servers.max(1));
            Rc::new(kth_smallest(&[(own, 1), (other, servers - 1)], servers / 2 + 1))
        });
        Rc::clone(made)
    }

    fn vote(&mut self, leader: usize, region: usize, voters: u8) -> Rc<Curve> {
        if let Some(made) = self.votes.get(&(leader, region, voters)) {
            return Rc::clone(made);
        }
        let made = match &self.model.rtt[leader][region] {
            Distribution::Fixed(ms) => (*self.local_commit(voters)).clone().later(*ms),
            way => {
                let way = way.nodes();
                self.local_commit(voters).plus(&way)
            }
        };
        let made = Rc::new(made);
        self.votes.insert((leader, region, voters), Rc::clone(&made));
        made
    }

    fn way(&mut self, client: usize, leader: usize) -> Rc<Vec<Node>> {
        let model = self.model;
        Rc::clone(
            self.ways.entry((client, leader)).or_insert_with(|| Rc::new(model.rtt[client][leader].nodes())),
        )
    }
}

/// The voting regions that are left.
fn standing(layout: &Layout, lost: Option<usize>) -> impl Iterator<Item = usize> {
    layout.voting_regions().filter(move |region| lost != Some(*region))
}

fn kth_smallest(times: &[(Rc<Curve>, usize)], k: usize) -> Curve {
    let borrowed: Vec<(&Curve, usize)> = times.iter().map(|(curve, count)| (&**curve, *count)).collect();
    Curve::kth_smallest(&borrowed, k)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{example, layout};
    use super::super::{Pipeline, tests};
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    const SAMPLES: usize = 800_000;

    /// Draws what the formulas add up, hop by hop.
    struct MonteCarlo<'m> {
        model: &'m Model,
        random: StdRng,
    }

    impl MonteCarlo<'_> {
        fn draw(&mut self, distribution: &Distribution) -> f64 {
            let (u, v): (f64, f64) = (1.0 - self.random.random::<f64>(), self.random.random());
            distribution.sample((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos())
        }

        fn acknowledgement(&mut self, leader: usize, region: usize, i: u8) -> f64 {
            let model = self.model;
            let way = match (region == leader, i) {
                (true, 0) => 0.0,
                (true, _) => self.draw(&model.zone),
                _ => self.draw(&model.rtt[leader][region]),
            };
            way + self.draw(&model.fsync)
        }

        fn ensemble(&mut self, region: usize, servers: u8) -> f64 {
            let acks: Vec<f64> =
                (0..servers.max(1)).map(|i| self.acknowledgement(region, region, i)).collect();
            kth(acks, usize::from(servers.max(1)) / 2 + 1)
        }

        fn commit(&mut self, layout: &Layout) -> f64 {
            let leader = layout.leader;
            let regions: Vec<usize> = layout.voting_regions().collect();
            let mut acks = Vec::new();
            let mut own = 0.0f64;
            for region in &regions {
                let voters = layout.voters[*region];
                match layout.design {
                    Design::Flat => {
                        acks.extend((0..voters).map(|i| self.acknowledgement(leader, *region, i)))
                    }
                    Design::Hier => {
                        let group = (0..voters).map(|i| self.acknowledgement(leader, *region, i)).collect();
                        acks.push(kth(group, usize::from(voters) / 2 + 1));
                    }
                    Design::Two if *region == leader => own = self.ensemble(leader, voters),
                    Design::Two => {
                        let model = self.model;
                        acks.push(self.draw(&model.rtt[leader][*region]) + self.ensemble(*region, voters));
                    }
                }
            }
            match layout.design {
                Design::Two => own.max(kth(acks, regions.len() / 2)),
                _ => {
                    let quorum = acks.len() / 2 + 1;
                    kth(acks, quorum)
                }
            }
        }

        fn write(&mut self, layout: &Layout, client: usize, commit: f64) -> f64 {
            let model = self.model;
            let own: u8 = if layout.design == Design::Two { model.pipeline.commits() } else { 0 };
            let own: f64 = (0..own).map(|_| self.ensemble(client, layout.voters[client])).sum();
            model.client_rtt_ms + self.draw(&model.rtt[client][layout.leader]) + commit + own
        }
    }

    fn kth(mut times: Vec<f64>, k: usize) -> f64 {
        times.sort_by(f64::total_cmp);
        times[k - 1]
    }

    fn check(model: &Model, layout: &Layout) {
        let mut tails = Tails::new(model);
        let commit = tails.commit(layout);
        let mut carlo = MonteCarlo { model, random: StdRng::seed_from_u64(7) };
        let commits: Vec<f64> = (0..SAMPLES).map(|_| carlo.commit(layout)).collect();
        for client in 0..3 {
            let computed = tails.write(layout, client, &commit);
            let mut drawn: Vec<f64> =
                commits.iter().map(|commit| carlo.write(layout, client, *commit)).collect();
            drawn.sort_by(f64::total_cmp);
            for (got, expected) in
                [(computed.p50, drawn[SAMPLES / 2]), (computed.p99, drawn[SAMPLES * 99 / 100])]
            {
                assert!(
                    (got - expected).abs() < 0.005 * expected,
                    "{layout:?}, client {client}: computed {got}, drawn {expected}"
                );
            }
        }
    }

    #[test]
    fn tails_agree_with_monte_carlo_within_half_a_percent() {
        let model = example();
        for design in Design::ALL {
            for (leader, voters) in [(0, [2, 2, 1]), (0, [3, 3, 3]), (1, [1, 3, 1]), (2, [1, 1, 1])] {
                check(&model, &layout(design, leader, voters));
            }
        }
    }

    #[test]
    fn the_pipelines_tail_agrees_with_monte_carlo() {
        let model = Model { pipeline: Pipeline::MERIDIAN, ..tests::example() };
        check(&model, &layout(Design::Two, 0, [3, 3, 1]));
    }

    /// A lost region's voters never answer; a hand-off goes half the way to the leader and half the way
    /// on.
    #[test]
    fn losses_and_hand_offs_agree_with_monte_carlo() {
        let model = example();
        let mut carlo = MonteCarlo { model: &model, random: StdRng::seed_from_u64(9) };
        let layout = layout(Design::Flat, 0, [2, 2, 1]);
        let mut tails = Tails::new(&model);
        let commit = tails.commit_without(&layout, Some(1));
        let hand_off = tails.hand_off(&layout, 2, 2, &commit);
        let (mut commits, mut hand_offs) = (Vec::new(), Vec::new());
        for _ in 0..SAMPLES {
            let mut acks: Vec<f64> = (0..2).map(|i| carlo.acknowledgement(0, 0, i)).collect();
            acks.push(carlo.acknowledgement(0, 2, 0));
            let committed = kth(acks, 3);
            commits.push(committed);
            let ways = carlo.draw(&model.rtt[2][0]) / 2.0 + carlo.draw(&model.rtt[0][2]) / 2.0;
            hand_offs.push(committed + ways + 2.0 * model.client_rtt_ms);
        }
        let percentile = |drawn: &mut Vec<f64>, percent: usize| {
            drawn.sort_by(f64::total_cmp);
            drawn[SAMPLES * percent / 100]
        };
        for (computed, expected) in [
            (commit.quantile(0.5), percentile(&mut commits, 50)),
            (commit.quantile(0.99), percentile(&mut commits, 99)),
            (hand_off.p50, percentile(&mut hand_offs, 50)),
            (hand_off.p99, percentile(&mut hand_offs, 99)),
        ] {
            assert!((computed - expected).abs() < 0.005 * expected, "computed {computed}, drawn {expected}");
        }
    }

    #[test]
    fn without_variation_percentiles_are_the_formulas() {
        let mut model = example();
        for row in &mut model.rtt {
            row.iter_mut().for_each(|way| *way = Distribution::Fixed(way.quantile(0.5)));
        }
        (model.fsync, model.zone) = (Distribution::Fixed(1.0), Distribution::Fixed(1.0));
        for design in Design::ALL {
            let layout = layout(design, 0, [3, 3, 3]);
            let mut tails = Tails::new(&model);
            let commit = tails.commit(&layout);
            let write = tails.write(&layout, 1, &commit);
            let formula = model.write_ms(&layout, 1);
            assert!(
                (write.p50 - formula).abs() < 0.01 && (write.p99 - formula).abs() < 0.01,
                "{write:?} {formula}"
            );
        }
    }
}
