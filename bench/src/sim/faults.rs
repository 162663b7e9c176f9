//! What goes wrong in a run, and when: drawn from the seed before it starts.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::server::Layout;

/// What goes wrong, or ends to.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// A server's process ends, or its machine loses its power, and it starts again some time later.
    Crash {
        server: usize,
        power: bool,
        restart_after_ms: u64,
    },
    /// A server's process gets no time.
    Pause {
        server: usize,
    },
    Resume {
        server: usize,
    },
    /// Packets from these servers to those get lost, or no longer do.
    Cut {
        from: Vec<usize>,
        to: Vec<usize>,
        cut: bool,
    },
    /// A share of all packets gets lost.
    Loss {
        share: f64,
    },
    /// A server's disk takes up to so long for a sync.
    Disk {
        server: usize,
        sync_ms: u64,
    },
    /// A server's wall clock jumps.
    Wall {
        server: usize,
        by_ms: i64,
    },
}

/// Syncs of a healthy disk take up to this.
pub(super) const HEALTHY_SYNC_MS: u64 = 2;

/// The faults of a time, in order.
pub(super) fn plan(layout: &Layout, random: &mut StdRng, from_ms: u64, to_ms: u64) -> Vec<(u64, Fault)> {
    let mut plan = Vec::new();
    let mut at_ms = from_ms;
    // Some runs are calmer than others: bugs may need two faults close together, or time between them.
    let pause_max_ms = *[1_000, 4_000, 12_000].choose(random).unwrap_or(&4_000);
    while at_ms < to_ms {
        draw(layout, random, at_ms, &mut plan);
        at_ms += random.random_range(pause_max_ms / 10..pause_max_ms);
    }
    plan.sort_by_key(|(at_ms, _)| *at_ms);
    plan
}

fn draw(layout: &Layout, random: &mut StdRng, at_ms: u64, plan: &mut Vec<(u64, Fault)>) {
    let per_region = layout.servers_per_region();
    let servers = layout.regions * per_region;
    let server = random.random_range(0..servers);
    let of_region = |region: usize| (region * per_region..(region + 1) * per_region).collect::<Vec<_>>();
    let until_ms = at_ms + random.random_range(100..15_000);
    match random.random_range(0..100) {
        0..30 => {
            let power = random.random_bool(0.5);
            let restart_after_ms = random.random_range(50..8_000);
            plan.push((at_ms, Fault::Crash { server, power, restart_after_ms }));
        }
        30..40 => {
            let until_ms = at_ms + random.random_range(50..6_000);
            plan.push((at_ms, Fault::Pause { server }));
            plan.push((until_ms, Fault::Resume { server }));
        }
        40..60 => {
            let other = (server + random.random_range(1..servers)) % servers;
            cut(random, vec![server], vec![other], at_ms, until_ms, plan);
        }
        60..80 if layout.regions > 1 => {
            let region = random.random_range(0..layout.regions);
            let others: Vec<usize> = if random.random_bool(0.6) {
                (0..servers).filter(|server| server / per_region != region).collect()
            } else {
                of_region((region + random.random_range(1..layout.regions)) % layout.regions)
            };
            // Long enough, now and then, for leases to end.
            let until_ms = at_ms + random.random_range(500..30_000);
            cut(random, of_region(region), others, at_ms, until_ms, plan);
        }
        60..80 => {
            let others = (0..servers).filter(|other| *other != server).collect();
            cut(random, vec![server], others, at_ms, until_ms, plan);
        }
        80..87 => {
            plan.push((at_ms, Fault::Loss { share: random.random_range(0.01..0.2) }));
            plan.push((until_ms, Fault::Loss { share: 0.0 }));
        }
        87..95 => {
            plan.push((at_ms, Fault::Disk { server, sync_ms: random.random_range(50..4_000) }));
            plan.push((until_ms, Fault::Disk { server, sync_ms: HEALTHY_SYNC_MS }));
        }
        _ => {
            let by_ms = random.random_range(-3_600_000..3_600_000);
            plan.push((at_ms, Fault::Wall { server, by_ms }));
        }
    }
}

fn cut(
    random: &mut StdRng,
    from: Vec<usize>,
    to: Vec<usize>,
    at_ms: u64,
    until_ms: u64,
    plan: &mut Vec<(u64, Fault)>,
) {
    let mut one_way = |from: &[usize], to: &[usize]| {
        for (at_ms, cut) in [(at_ms, true), (until_ms, false)] {
            plan.push((at_ms, Fault::Cut { from: from.to_vec(), to: to.to_vec(), cut }));
        }
    };
    let ways = random.random_range(0..4);
    if ways != 0 {
        one_way(&from, &to);
    }
    if ways != 1 {
        one_way(&to, &from);
    }
}
