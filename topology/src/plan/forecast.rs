//! What every operation of one layout takes in every region, with its tails: now, after the loss of
//! each region, and after the leader has moved.

use serde::Serialize;

use crate::latency::{Percentiles, Tails};
use crate::layout::Layout;
use crate::scenario::World;

/// The latencies of one layout. Vectors are per region.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// As it is.
    pub now: Situation,
    /// From the release of a lock in one region until a waiter in another holds it; regions without
    /// clients have none.
    pub hand_off: Vec<Vec<Option<Latency>>>,
    /// After the loss of each region; `None` where writes stop.
    pub after_loss: Vec<Option<Situation>>,
    /// With the leader in each other region that may lead, and nothing lost.
    pub after_move: Vec<Option<Situation>>,
}

/// The latencies under one leader.
#[derive(Clone, Debug, PartialEq)]
pub struct Situation {
    /// The region that leads.
    pub leader: usize,
    /// From the leader's receipt of a write to its commit.
    pub commit: Latency,
    /// What clients in each region see; `None` where there are none.
    pub clients: Vec<Option<ClientLatency>>,
    /// Mean over the clients' writes.
    pub mean_write: Latency,
    /// Mean of `sync` and a read, over the clients' reads.
    pub mean_sync_read: Latency,
}

/// What clients in one region see.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClientLatency {
    /// A write.
    pub write: Latency,
    /// A read from a server of the region.
    pub read: Latency,
    /// `sync`, then a read.
    pub sync_read: Latency,
    /// An uncontended lock: a write, and a read that sees who is first.
    pub lock: Latency,
    /// From the release of a lock here until the farthest clients hold it.
    pub hand_off: Latency,
}

/// One figure by the formula, and its percentiles, ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// By the formula, on medians.
    pub typical: f64,
    /// The median of the distribution.
    pub p50: f64,
    /// Its 99th percentile.
    pub p99: f64,
}

impl Latency {
    fn new(typical: f64, percentiles: Percentiles) -> Self {
        Latency { typical, p50: percentiles.p50, p99: percentiles.p99 }
    }

    fn later(self, ms: f64) -> Self {
        Latency { typical: self.typical + ms, p50: self.p50 + ms, p99: self.p99 + ms }
    }

    fn plus_share(self, share: f64, other: Latency) -> Self {
        Latency {
            typical: self.typical + share * other.typical,
            p50: self.p50 + share * other.p50,
            p99: self.p99 + share * other.p99,
        }
    }
}

impl Forecast {
    /// The latencies of `layout`.
    pub fn of(world: &World, layout: &Layout) -> Self {
        let mut tails = Tails::new(&world.model);
        let regions = 0..world.model.regions.len();
        let now = situation(world, &mut tails, layout, None);
        let after_loss = regions.clone().map(|lost| {
            let after = layout.after_loss(&world.model, &world.succession, lost)?;
            let under = Layout { leader: after.leader, ..layout.clone() };
            Some(situation(world, &mut tails, &under, Some(lost)))
        });
        let after_loss = after_loss.collect();
        let after_move = regions.clone().map(|leader| {
            let able = leader != layout.leader && layout.voters[leader] > 0 && world.space.may_lead[leader];
            let under = Layout { leader, ..layout.clone() };
            able.then(|| situation(world, &mut tails, &under, None))
        });
        let after_move = after_move.collect();
        let commit = tails.commit(layout);
        let served = |region: usize| world.space.served[region];
        let mut hand_off = |from: usize, to: usize| {
            let typical = world.model.hand_off_ms(layout, from, to);
            (served(from) && served(to))
                .then(|| Latency::new(typical, tails.hand_off(layout, from, to, &commit)))
        };
        let hand_off =
            regions.clone().map(|from| regions.clone().map(|to| hand_off(from, to)).collect()).collect();
        Forecast { now, hand_off, after_loss, after_move }
    }
}

fn situation(world: &World, tails: &mut Tails<'_>, layout: &Layout, lost: Option<usize>) -> Situation {
    let model = &world.model;
    let curve = tails.commit_without(layout, lost);
    let commit_ms = model.commit_without_ms(layout, layout.leader, lost).unwrap_or(f64::INFINITY);
    let present = |client: usize| world.space.served[client] && lost != Some(client);
    let way_ms = &model.rtt_ms[layout.leader];
    let clients = (0..model.regions.len()).filter(|client| present(*client));
    let farthest = clients.max_by(|a, b| way_ms[*a].total_cmp(&way_ms[*b]));
    let mut client_latency = |client: usize| {
        let to = farthest.unwrap_or(client);
        let write_ms = model.write_at_commit_ms(layout, layout.leader, client, commit_ms);
        let write = Latency::new(write_ms, tails.write(layout, client, &curve));
        let sync_read_ms =
            if model.sync_is_ordered(layout) { write_ms } else { model.sync_read_ms(layout, client) };
        ClientLatency {
            write,
            read: Latency::default().later(model.read_ms()),
            sync_read: Latency::new(sync_read_ms, tails.sync_read(layout, client, &curve)),
            lock: write.later(model.read_ms()),
            hand_off: Latency::new(
                model.hand_off_at_commit_ms(layout.leader, client, to, commit_ms),
                tails.hand_off(layout, client, to, &curve),
            ),
        }
    };
    let clients: Vec<Option<ClientLatency>> =
        (0..model.regions.len()).map(|client| present(client).then(|| client_latency(client))).collect();
    let percentile = |p: f64| curve.quantile(p);
    let commit = Latency { typical: commit_ms, p50: percentile(0.5), p99: percentile(0.99) };
    Situation {
        leader: layout.leader,
        commit,
        mean_write: mean(&model.shares, &clients, |client| client.write),
        mean_sync_read: mean(&world.read_shares, &clients, |client| client.sync_read),
        clients,
    }
}

/// Mean over those who have a share; over all where nobody is left who has.
fn mean(shares: &[f64], clients: &[Option<ClientLatency>], figure: fn(&ClientLatency) -> Latency) -> Latency {
    let present =
        || shares.iter().zip(clients).filter_map(|(share, client)| Some((*share, client.as_ref()?)));
    let all: f64 = present().map(|(share, _)| share).sum();
    let count = present().count().max(1) as f64;
    let weight = |share: f64| if all > 0.0 { share / all } else { 1.0 / count };
    present().fold(Latency::default(), |sum, (share, client)| sum.plus_share(weight(share), figure(client)))
}

#[cfg(test)]
mod tests {
    use crate::plan::{Objective, plan};
    use crate::scenario;

    #[test]
    fn the_forecast_has_the_figures_of_the_assessment() {
        let scenario = scenario::parse(include_str!("../../data/three-regions.json")).unwrap();
        let plan = plan(&scenario, Objective::Mean).unwrap();
        let (best, forecast) = (plan.best().unwrap(), plan.forecast.as_ref().unwrap());
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        close(forecast.now.mean_write.typical, best.mean_write_ms);
        close(forecast.now.mean_write.p99, best.p99_write_ms);
        close(forecast.now.commit.typical, best.commit_ms);
        for (region, client) in forecast.now.clients.iter().enumerate() {
            let client = client.unwrap();
            close(client.lock.typical, best.lock_ms[region]);
            close(client.sync_read.typical, best.sync_read_ms[region]);
            close(client.write.p99, best.write[region].percentiles.p99);
            assert!(client.sync_read.p99 >= client.sync_read.p50);
        }
        for (lost, after) in forecast.after_loss.iter().enumerate() {
            let (after, expected) = (after.as_ref().unwrap(), best.after_loss[lost].unwrap());
            assert_eq!(after.leader, expected.leader);
            close(after.mean_write.typical, expected.mean_write_ms);
            assert!(after.clients[lost].is_none() && after.mean_write.p99 > after.mean_write.p50);
        }
        let moved = forecast.after_move[1].as_ref().unwrap();
        close(moved.commit.typical, 63.0);
        assert!(forecast.after_move[0].is_none() && forecast.after_move[2].is_none());
        close(forecast.hand_off[1][2].unwrap().typical, 31.0 + 63.0 + 37.5 + 1.0);
        assert_eq!(forecast.now.clients[1].unwrap().hand_off, forecast.hand_off[1][2].unwrap());
        close(forecast.now.mean_sync_read.typical, 0.5 + 0.25 * 62.0 + 0.25 * 75.0);
    }
}
