//! Quorum figures against `quoracle`, which finds them by linear programming and by trying failures.

use meridian_topology::layout::{Design, Layout};
use meridian_topology::quorum::QuorumFigures;
use quoracle::{Distribution, Expr, Node, Objective, QuorumSystem, StrategyLimits, choose, majority};

fn quorums(layout: &Layout) -> Expr<usize> {
    let group = |region: usize| {
        (0..layout.voters[region]).map(move |i| Expr::Node(Node::new(100 * region + usize::from(i))))
    };
    if layout.design == Design::Flat {
        return majority(layout.voting_regions().flat_map(group).collect()).expect("a quorum system");
    }
    let groups: Vec<Expr<usize>> = layout
        .voting_regions()
        .map(|region| majority(group(region).collect()).expect("a quorum system"))
        .collect();
    choose(groups.len() / 2 + 1, groups).expect("a quorum system")
}

fn check(design: Design, voters: &[u8]) {
    let layout = Layout { design, leader: 0, voters: voters.to_vec(), observers: vec![0; voters.len()] };
    let figures = QuorumFigures::of(&layout);
    let system = QuorumSystem::from_writes(quorums(&layout));
    let writes_only = Distribution::fixed(0.0).expect("a quorum system");
    let strategy = system
        .strategy(Objective::Load, Some(&writes_only), None, &StrategyLimits::default(), 0)
        .expect("a quorum system");
    let load = strategy.load(Some(&writes_only), None).expect("a quorum system");
    let capacity = strategy.capacity(Some(&writes_only), None).expect("a quorum system");
    assert!((figures.load - load).abs() < 1e-6, "{design:?} {voters:?}: {} against {load}", figures.load);
    assert!((figures.capacity - capacity).abs() < 1e-5, "{design:?} {voters:?}");
    assert_eq!(figures.resilience, system.write_resilience(), "{design:?} {voters:?}");
}

#[test]
fn load_capacity_and_resilience_agree_with_quoracle() {
    for design in Design::ALL {
        for voters in [
            [1, 0, 0].as_slice(),
            &[3, 0, 0],
            &[1, 1, 1],
            &[2, 2, 1],
            &[3, 1, 1],
            &[3, 3, 1],
            &[3, 3, 3],
            &[2, 1, 0],
            &[5, 1, 1],
            &[1, 1, 1, 1, 1],
            &[3, 1, 1, 1, 1],
            &[2, 2, 1, 1, 1],
        ] {
            check(design, voters);
        }
    }
}
