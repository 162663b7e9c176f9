//! The planner's JSON against formulas written down once more, naively: every placement is tried,
//! every failure is multiplied out, nothing is shared with the crate but its input.

use clap::Parser;
use meridian_topology::command::{Inputs, PlanArgs};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    plan: PlanArgs,
}

const ROUNDING_MS: f64 = 6e-4;

/// A scenario as the formulas of the reference see it.
struct Case {
    names: Vec<String>,
    rtt: Vec<Vec<f64>>,
    shares: Vec<f64>,
    client_rtt: f64,
    fsync: f64,
    zone: f64,
    failure: [f64; 3],
    max_voters: usize,
    max_in: Vec<usize>,
    witness: Vec<bool>,
    never_leader: Vec<bool>,
    survive: usize,
    leader_min: usize,
}

#[derive(Clone, Debug)]
struct Placement {
    design: &'static str,
    leader: usize,
    voters: Vec<usize>,
}

impl Case {
    fn draw(random: &mut StdRng) -> Self {
        let count = random.random_range(3..=4);
        let names: Vec<String> = (0..count).map(|i| format!("r{i}")).collect();
        let mut rtt = vec![vec![0.0; count]; count];
        for (a, b) in (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b))) {
            let ms = f64::from(random.random_range(40..160)) / 2.0;
            (rtt[a][b], rtt[b][a]) = (ms, ms);
        }
        let parts: Vec<u32> = (0..count).map(|i| random.random_range(u32::from(i == 0)..4)).collect();
        let sum = f64::from(parts.iter().sum::<u32>());
        let witness: Vec<bool> = (0..count).map(|i| i > 0 && random.random_bool(0.2)).collect();
        Case {
            rtt,
            shares: parts.iter().map(|part| f64::from(*part) / sum).collect(),
            client_rtt: 0.5,
            fsync: f64::from(random.random_range(1..6)),
            zone: f64::from(random.random_range(1..4)) / 2.0,
            failure: [1e-2, 2e-3, 5e-4],
            max_voters: random.random_range(3..=7),
            max_in: (0..count).map(|_| random.random_range(0..=3)).collect(),
            never_leader: (0..count).map(|i| i > 0 && random.random_bool(0.2)).collect(),
            witness,
            survive: random.random_range(0..=1),
            leader_min: random.random_range(1..=2),
            names,
        }
    }

    /// p99 equals p50, so that the objective `p99` is the mean of the formulas.
    fn scenario(&self) -> String {
        let mut rtt = serde_json::Map::new();
        for a in 0..self.names.len() {
            let row = (a + 1..self.names.len())
                .map(|b| (self.names[b].clone(), json!({ "p50": self.rtt[a][b], "p99": self.rtt[a][b] })));
            rtt.insert(self.names[a].clone(), Value::Object(row.collect()));
        }
        let map =
            |values: Vec<Value>| -> Value { Value::Object(self.names.iter().cloned().zip(values).collect()) };
        let list = |chosen: &[bool]| -> Vec<&String> {
            self.names.iter().zip(chosen).filter(|(_, yes)| **yes).map(|(name, _)| name).collect()
        };
        json!({
            "name": "drawn", "regions": self.names, "rtt": rtt, "client_rtt": self.client_rtt,
            "client_write_share": map(self.shares.iter().map(|share| json!(share)).collect()),
            "fsync": { "p50": self.fsync, "p99": self.fsync },
            "zone_rtt": { "p50": self.zone, "p99": self.zone },
            "failure": { "node_unavail": self.failure[0], "zone_unavail": self.failure[1],
                         "region_unavail": self.failure[2] },
            "max_voters": self.max_voters,
            "max_per_region": map(self.max_in.iter().map(|most| json!(most)).collect()),
            "witness": list(&self.witness), "never_leader": list(&self.never_leader),
            "require": { "survive_regions": self.survive, "region_loss_plus_voters": 0,
                         "leader_region_min_voters": self.leader_min },
        })
        .to_string()
    }

    fn placements(&self) -> Vec<Placement> {
        let count = self.names.len();
        let mut voters = vec![vec![]];
        for region in 0..count {
            let most = if self.witness[region] { self.max_in[region].min(1) } else { self.max_in[region] };
            voters = voters
                .into_iter()
                .flat_map(|so_far: Vec<usize>| {
                    (0..=most).map(move |more| so_far.iter().copied().chain([more]).collect())
                })
                .collect();
        }
        let mut placements = Vec::new();
        for voters in voters {
            let total: usize = voters.iter().sum();
            for leader in 0..count {
                let may_lead = !self.witness[leader] && !self.never_leader[leader];
                if total > self.max_voters || !may_lead || voters[leader] < self.leader_min {
                    continue;
                }
                for design in ["flat", "hier", "two"] {
                    let placement = Placement { design, leader, voters: voters.clone() };
                    if placement.survives(&self.lost_sets(self.survive)) {
                        placements.push(placement);
                    }
                }
            }
        }
        placements
    }

    fn lost_sets(&self, size: usize) -> Vec<Vec<usize>> {
        let count = self.names.len();
        (0..1usize << count)
            .filter(|set| set.count_ones() as usize == size)
            .map(|set| (0..count).filter(|region| set >> region & 1 == 1).collect())
            .collect()
    }

    fn local_commit(&self, voters: usize) -> f64 {
        if voters == 1 { self.fsync } else { self.zone + self.fsync }
    }

    fn commit(&self, placement: &Placement, leader: usize, lost: Option<usize>) -> Option<f64> {
        let mut per_region: Vec<(usize, Vec<f64>)> = Vec::new();
        for (region, voters) in placement.voters.iter().enumerate().filter(|(_, voters)| **voters > 0) {
            let acknowledgements = (0..*voters).map(|i| match (region == leader, i) {
                (true, 0) => self.fsync,
                (true, _) => self.zone + self.fsync,
                (false, _) => self.rtt[leader][region] + self.fsync,
            });
            per_region.push((region, acknowledgements.collect()));
        }
        let standing = |region: &usize| Some(*region) != lost;
        let groups = per_region.len();
        match placement.design {
            "flat" => {
                let total: usize = placement.voters.iter().sum();
                let all = per_region.iter().filter(|(region, _)| standing(region));
                kth(all.flat_map(|(_, acks)| acks.clone()).collect(), total / 2 + 1)
            }
            "hier" => {
                let alive = per_region.iter().filter(|(region, _)| standing(region));
                let answers: Option<Vec<f64>> =
                    alive.map(|(_, acks)| kth(acks.clone(), acks.len() / 2 + 1)).collect();
                kth(answers?, groups / 2 + 1)
            }
            _ => {
                let own = self.local_commit(placement.voters[leader]);
                let others = per_region.iter().map(|(region, _)| *region);
                let votes: Vec<f64> = others
                    .filter(|region| *region != leader && standing(region))
                    .map(|region| self.rtt[leader][region] + self.local_commit(placement.voters[region]))
                    .collect();
                if groups / 2 == 0 { Some(own) } else { kth(votes, groups / 2).map(|vote| vote.max(own)) }
            }
        }
    }

    fn write(&self, commit: f64, leader: usize, client: usize) -> f64 {
        self.client_rtt + if client == leader { 0.0 } else { self.rtt[client][leader] } + commit
    }

    fn mean(&self, commit: f64, leader: usize, without: Option<usize>) -> f64 {
        let clients = || (0..self.names.len()).filter(|client| Some(*client) != without);
        let weight: f64 = clients().map(|client| self.shares[client]).sum();
        if weight > 0.0 {
            clients().map(|c| self.shares[c] * self.write(commit, leader, c)).sum::<f64>() / weight
        } else {
            let count = clients().count() as f64;
            clients().map(|client| self.write(commit, leader, client)).sum::<f64>() / count
        }
    }

    fn worst(&self, commit: f64, leader: usize) -> f64 {
        let writing = (0..self.names.len()).filter(|client| self.shares[*client] > 0.0);
        writing.map(|client| self.write(commit, leader, client)).fold(0.0, f64::max)
    }

    /// The best mean over all regions that may take over; an avoided one only if no other can.
    fn after_loss(&self, placement: &Placement, lost: usize) -> Option<f64> {
        let under = |leader: usize| {
            self.commit(placement, leader, Some(lost)).map(|commit| self.mean(commit, leader, Some(lost)))
        };
        if lost != placement.leader {
            return under(placement.leader);
        }
        let able = |avoided: bool| {
            (0..self.names.len())
                .filter(|r| *r != lost && placement.voters[*r] > 0 && !self.witness[*r])
                .filter(|r| self.never_leader[*r] == avoided)
                .filter_map(under)
                .min_by(f64::total_cmp)
        };
        able(false).or_else(|| able(true))
    }

    fn worst_after_loss(&self, placement: &Placement) -> f64 {
        let lost = 0..self.names.len();
        lost.map(|lost| self.after_loss(placement, lost).unwrap_or(f64::INFINITY)).fold(0.0, f64::max)
    }

    /// Over every subset of regions that are down, and every number of servers up in each other.
    fn unavailability(&self, placement: &Placement) -> f64 {
        let [node, zone, region] = self.failure;
        let mut missing = 0.0;
        let mut outcomes: Vec<(Vec<usize>, f64)> = vec![(vec![], 1.0)];
        for voters in &placement.voters {
            // At most three voters here, each in a zone of its own.
            let up_one = (1.0 - node) * (1.0 - zone);
            let mut next = Vec::new();
            for (so_far, p) in &outcomes {
                for up in 0..=*voters {
                    let ways = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 2, 1, 0], [1, 3, 3, 1]][*voters][up];
                    let mut here =
                        f64::from(ways) * up_one.powi(up as i32) * (1.0 - up_one).powi((voters - up) as i32);
                    here *= 1.0 - region;
                    if up == 0 {
                        here += region;
                    }
                    next.push((so_far.iter().copied().chain([up]).collect(), p * here));
                }
            }
            outcomes = next;
        }
        for (up, p) in outcomes {
            if !placement.has_quorum(&up) {
                missing += p;
            }
        }
        missing
    }

    fn observers(&self, placement: &Placement, region: usize) -> usize {
        match placement.design {
            _ if placement.voters[region] > 0 || self.shares[region] <= 0.0 => 0,
            "two" => 3.min(if self.witness[region] { 1 } else { self.max_in[region] }).max(1),
            _ => 1,
        }
    }

    fn wan_copies(&self, placement: &Placement) -> usize {
        let servers = |region: usize| placement.voters[region] + self.observers(placement, region);
        let elsewhere = (0..self.names.len()).filter(|region| *region != placement.leader);
        match placement.design {
            "two" => elsewhere.filter(|region| servers(*region) > 0).count(),
            _ => elsewhere.map(servers).sum(),
        }
    }
}

impl Placement {
    fn has_quorum(&self, up: &[usize]) -> bool {
        if self.design == "flat" {
            return 2 * up.iter().sum::<usize>() > self.voters.iter().sum::<usize>();
        }
        let groups = self.voters.iter().filter(|voters| **voters > 0).count();
        let alive = up.iter().zip(&self.voters).filter(|(up, all)| **all > 0 && 2 * **up > **all).count();
        2 * alive > groups
    }

    fn survives(&self, lost_sets: &[Vec<usize>]) -> bool {
        lost_sets.iter().all(|lost| {
            let up = self.voters.iter().enumerate().map(|(r, n)| if lost.contains(&r) { 0 } else { *n });
            self.has_quorum(&up.collect::<Vec<_>>())
        })
    }
}

fn kth(mut times: Vec<f64>, k: usize) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    times.get(k - 1).copied()
}

fn close(got: &Value, expected: f64, what: &str) {
    let got = got.as_f64().unwrap_or_else(|| panic!("{what}: {got} is no number"));
    assert!((got - expected).abs() <= ROUNDING_MS, "{what}: {got}, by brute force {expected}");
}

fn plan(case: &Case, objective: &str) -> Value {
    let words = ["plan", "s.json", "--json", "--objective", objective];
    let args = Cli::try_parse_from(words).expect("a figure that the plan has").plan;
    let answer = args.run(&Inputs { scenario: Some(case.scenario()), ..Inputs::default() });
    serde_json::from_str(&answer.output).expect("a figure that the plan has")
}

fn check_layout(case: &Case, layout: &Value) {
    let region =
        |name: &Value| case.names.iter().position(|known| name == known).expect("a figure that the plan has");
    let design = ["flat", "hier", "two"]
        .into_iter()
        .find(|design| layout["design"] == *design)
        .expect("a figure that the plan has");
    let counts = |key: &str| -> Vec<usize> {
        case.names
            .iter()
            .map(|name| layout[key][name].as_u64().expect("a figure that the plan has") as usize)
            .collect()
    };
    let placement = Placement { design, leader: region(&layout["leader"]), voters: counts("voters") };
    let what = layout["layout"].as_str().expect("a figure that the plan has");
    let leader = placement.leader;
    let commit = case.commit(&placement, leader, None).expect("a figure that the plan has");
    close(&layout["commit_ms"], commit, what);
    close(&layout["mean_write_ms"], case.mean(commit, leader, None), what);
    close(&layout["worst_write_ms"], case.worst(commit, leader), what);
    for (client, name) in case.names.iter().enumerate().filter(|(client, _)| case.shares[*client] > 0.0) {
        let write = case.write(commit, leader, client);
        close(&layout["write_ms"][name]["typical"], write, what);
        close(&layout["lock_ms"][name], write + case.client_rtt, what);
        close(&layout["sync_read_ms"][name], case.client_rtt + case.rtt[client][leader], what);
    }
    for (lost, name) in case.names.iter().enumerate() {
        match case.after_loss(&placement, lost) {
            Some(mean) => close(&layout["after_loss"][name]["mean_write_ms"], mean, what),
            None => assert_eq!(layout["after_loss"][name], Value::Null, "{what}"),
        }
    }
    let survives = (0..case.names.len()).rev().find(|n| placement.survives(&case.lost_sets(*n)));
    assert_eq!(layout["survives_regions"], survives.unwrap_or(0), "{what}");
    let unavailability = layout["unavailability"].as_f64().expect("a figure that the plan has");
    assert!((unavailability / case.unavailability(&placement) - 1.0).abs() < 1e-9, "{what}");
    assert_eq!(layout["wan_copies_per_write"], case.wan_copies(&placement), "{what}");
    let observers: Vec<usize> =
        (0..case.names.len()).map(|region| case.observers(&placement, region)).collect();
    assert_eq!(counts("observers"), observers, "{what}");
}

#[test]
fn every_figure_agrees_with_the_formulas_written_down_again() {
    let mut random = StdRng::seed_from_u64(11);
    let mut feasible = 0;
    for _ in 0..60 {
        let case = Case::draw(&mut random);
        let placements = case.placements();
        for objective in ["mean", "worst", "p99", "after-loss"] {
            let plan = plan(&case, objective);
            let layouts = plan["layouts"].as_array().expect("a figure that the plan has");
            layouts.iter().for_each(|layout| check_layout(&case, layout));
            let figure = |placement: &Placement| {
                let commit =
                    case.commit(placement, placement.leader, None).expect("a figure that the plan has");
                match objective {
                    "worst" => case.worst(commit, placement.leader),
                    "after-loss" => case.worst_after_loss(placement),
                    _ => case.mean(commit, placement.leader, None),
                }
            };
            let least = placements.iter().map(figure).fold(f64::INFINITY, f64::min);
            let Some(index) = plan["recommended"].as_u64() else {
                assert!(placements.is_empty(), "{} placements fit {}", placements.len(), case.scenario());
                continue;
            };
            feasible += 1;
            let best = &layouts[index as usize];
            let found = match objective {
                "worst" => best["worst_write_ms"].as_f64(),
                "after-loss" => case
                    .names
                    .iter()
                    .map(|name| best["after_loss"][name]["mean_write_ms"].as_f64())
                    .try_fold(0.0, |most: f64, ms| ms.map(|ms| most.max(ms))),
                "p99" => best["p99_write_ms"].as_f64(),
                _ => best["mean_write_ms"].as_f64(),
            };
            let found = found.unwrap_or(f64::INFINITY);
            // Tabulated distributions of fixed times are exact to a little more than rounding.
            let tolerance = if objective == "p99" { 0.01 } else { ROUNDING_MS };
            assert!(
                found == least || (found - least).abs() <= tolerance,
                "{objective}: {found} recommended, {least} by brute force"
            );
        }
    }
    assert!(feasible > 50, "only {feasible} plans were compared");
}
