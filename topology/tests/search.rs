//! The search against brute force: every layout, assessed one by one.

use meridian_topology::availability::{CommonCause, RegionFailure};
use meridian_topology::latency::Pipeline;
use meridian_topology::layout::{Design, Guide, Layout, Partial};
use meridian_topology::matrix;
use meridian_topology::plan::{Assessment, Assessor, Objective, Plan, plan};
use meridian_topology::scenario::{Requirements, Scenario, Time, World, Zones};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

struct All(Vec<Layout>);

impl Guide for All {
    fn cut(&mut self, _: &Partial<'_>) -> bool {
        false
    }

    fn visit(&mut self, layout: &Layout) {
        self.0.push(layout.clone());
    }
}

fn every_layout(plan: &Plan) -> Vec<Assessment> {
    let world = &plan.world;
    let regions = 0..world.model.regions.len();
    let order: Vec<Vec<usize>> =
        regions.clone().map(|leader| regions.clone().filter(|region| *region != leader).collect()).collect();
    let mut all = All(Vec::new());
    world.space.walk(&order, &mut all);
    let mut assessor = Assessor::new(world);
    all.0.iter().filter(|layout| world.allows(layout)).map(|layout| assessor.assess(layout)).collect()
}

/// Every placement that meets limits and requirements, even numbers too.
fn every_placement(world: &World) -> Vec<Layout> {
    let space = &world.space;
    let mut placements = vec![vec![]];
    for most in &space.voters_max_per_region {
        placements = placements
            .iter()
            .flat_map(|so_far: &Vec<u8>| (0..=*most).map(|count| [so_far.as_slice(), &[count]].concat()))
            .filter(|voters| voters.iter().sum::<u8>() <= space.voters_max)
            .collect();
    }
    let leaders = (0..space.may_lead.len()).filter(|region| space.may_lead[*region]);
    let layouts = leaders.flat_map(|leader| {
        placements.iter().filter(move |voters| voters[leader] > 0).flat_map(move |voters| {
            space.designs.iter().map(move |design| space.complete(*design, leader, voters.clone()))
        })
    });
    layouts.filter(|layout| world.allows(layout)).collect()
}

/// The counts of the Pareto front, in the steps that the search tells apart.
fn counts(assessment: &Assessment) -> [i64; 6] {
    let steps = |ms: f64| (ms * 1e6).round() as i64;
    [
        steps(assessment.mean_write_ms),
        steps(assessment.worst_write_ms),
        steps(assessment.worst_after_loss_ms()),
        (assessment.unavailability / 1e-10) as i64,
        assessment.layout.voter_count() as i64,
        assessment.wan_copies_per_write as i64,
    ]
}

fn front<'a>(all: impl Iterator<Item = &'a Assessment>) -> Vec<[i64; 6]> {
    let mut counted: Vec<[i64; 6]> = all.map(counts).collect();
    counted.sort_unstable();
    counted.dedup();
    let covered = |a: &[i64; 6]| counted.iter().any(|b| b != a && b.iter().zip(a).all(|(x, y)| x <= y));
    counted.iter().filter(|a| !covered(a)).copied().collect()
}

fn scenarios() -> impl Strategy<Value = Scenario> {
    let times = prop::collection::vec((5u32..300, 1u32..40), 10);
    let shares = prop::collection::vec(0u32..4, 5);
    let limits = (1usize..=7, 1usize..=3, prop::collection::vec(0usize..=3, 2));
    let required = (0usize..=2, 0usize..=1, 0usize..=2);
    let roles = (prop::option::of(0usize..5), prop::option::of(0usize..5), prop::option::of(0usize..5));
    let votes = (prop::option::weighted(0.2, 0usize..4), prop::option::weighted(0.2, 0usize..4));
    let ceilings = (prop::option::weighted(0.2, 50u32..400), prop::option::weighted(0.2, 50u32..500));
    let more = (votes, ceilings, any::<bool>());
    (3usize..=4, times, shares, limits, required, roles, any::<bool>(), more).prop_map(
        |(
            count,
            times,
            shares,
            (most, default, own),
            (survive, plus, leader),
            (witness, never, preferred),
            local,
            ((must, must_not), (mean, after_loss), uneven),
        )| {
            let name = |region: usize| format!("r{region}");
            let named = |region: Option<usize>| region.filter(|r| *r < count).map(name).into_iter().collect();
            let mut scenario = Scenario { regions: (0..count).map(name).collect(), ..Scenario::default() };
            let mut times = times.into_iter();
            for a in 0..count {
                for (b, (p50, tail)) in (a + 1..count).zip(times.by_ref()) {
                    let time = Time::new(f64::from(p50), Some(f64::from(p50) + f64::from(tail) / 4.0));
                    scenario.rtt.entry(name(a)).or_default().insert(name(b), time);
                }
            }
            scenario.client_write_share = shares
                .iter()
                .take(count)
                .enumerate()
                .map(|(r, share)| (name(r), f64::from(*share)))
                .collect();
            scenario.client_write_share.entry(name(0)).and_modify(|share| *share += 0.5);
            scenario.max_voters = most;
            scenario.max_per_region_default = default;
            scenario.max_per_region = own.iter().enumerate().map(|(r, most)| (name(r), *most)).collect();
            scenario.require = Requirements {
                survive_regions: Some(survive),
                region_loss_plus_voters: plus,
                leader_region_min_voters: leader,
                ..Requirements::default()
            };
            (scenario.witness, scenario.never_leader) = (named(witness), named(never));
            scenario.preferred_leaders = named(preferred);
            scenario.never_vote = named(must_not);
            if must != must_not && must.is_some_and(|must| own.get(must).is_none_or(|most| *most > 0)) {
                scenario.must_vote = named(must);
            }
            scenario.require.max_mean_write_ms = mean.map(f64::from);
            scenario.require.max_after_loss_ms = after_loss.map(f64::from);
            if uneven {
                let worse = RegionFailure { region_unavail: Some(1e-3), ..RegionFailure::default() };
                scenario.failure.regions.insert(name(1), worse);
                scenario.zones.insert(name(0), Zones::Count(2));
                scenario.failure.common_causes = vec![CommonCause {
                    name: "cable".to_owned(),
                    unavail: 1e-4,
                    regions: vec![name(0), name(2)],
                }];
            }
            scenario.pipeline = if local { Pipeline::MERIDIAN } else { Pipeline::default() };
            scenario
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn the_best_is_the_best_of_all(scenario in scenarios(), objective in prop::sample::select(&Objective::ALL[..])) {
        let plan = plan(&scenario, objective).unwrap();
        let all = every_layout(&plan);
        match plan.best() {
            None => prop_assert!(all.is_empty(), "{} layouts fit", all.len()),
            Some(best) => {
                let least = all.iter().map(|a| a.objective_ms(objective)).fold(f64::INFINITY, f64::min);
                let found = best.objective_ms(objective);
                prop_assert!(found == least || (found - least).abs() < 1e-5, "{found} is not {least}");
            }
        }
    }

    /// The walk leaves out even numbers of voters and groups; none of them is better.
    #[test]
    fn even_numbers_never_win(scenario in scenarios(), objective in prop::sample::select(&Objective::ALL[..])) {
        let scenario = Scenario { pipeline: Pipeline::default(), ..scenario };
        let plan = plan(&scenario, objective).unwrap();
        let world = &plan.world;
        let least = plan.best().map_or(f64::INFINITY, |best| best.objective_ms(objective));
        let mut assessor = Assessor::new(world);
        for layout in every_placement(world) {
            let other = assessor.assess(&layout).objective_ms(objective);
            prop_assert!(other >= least - 0.05, "{layout:?}: {other} against {least}");
        }
    }

    #[test]
    fn the_front_is_the_front_of_all(scenario in scenarios()) {
        let plan = plan(&scenario, Objective::Mean).unwrap();
        let all = every_layout(&plan);
        prop_assert_eq!(front(plan.layouts.iter().filter(|a| a.on_front)), front(all.iter()));
    }
}

/// Twenty regions and nine voters: 58 million layouts. None of a few thousand drawn at random beats
/// the one found.
#[test]
fn a_large_scenario_is_searched_whole() {
    let names = "us-east-1 us-east-2 us-west-1 us-west-2 ca-central-1 sa-east-1 eu-west-1 eu-west-2 eu-west-3 \
                 eu-central-1 eu-north-1 ap-south-1 ap-southeast-1 ap-southeast-2 ap-northeast-1 ap-northeast-2 \
                 ap-northeast-3 ap-east-1 af-south-1 me-south-1";
    let scenario = Scenario {
        regions: names.split_whitespace().map(str::to_owned).collect(),
        matrix: matrix::builtin("aws-all").unwrap(),
        ..Scenario::default()
    };
    let plan = plan(&scenario, Objective::AfterLoss).unwrap();
    assert_eq!(plan.considered, 58_050_440);
    let (world, best) = (&plan.world, plan.best().unwrap());
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..20_000 {
        let mut voters = vec![0u8; 20];
        for _ in 0..random.random_range(3..=9) {
            let region: usize = random.random_range(0..20);
            voters[region] = (voters[region] + 1).min(3);
        }
        let leader = (0..20).find(|region| voters[*region] > 0).unwrap();
        let layout = world.space.complete(Design::ALL[random.random_range(0..3)], leader, voters);
        if world.allows(&layout) {
            let after_loss_ms = layout.worst_after_loss_ms(&world.model, &world.succession);
            assert!(after_loss_ms >= best.worst_after_loss_ms() - 1e-6, "{layout:?}");
        }
    }
}
