//! Quorums as such: how many servers may fail, and how busy the busiest one is. The words are those
//! of the literature on quorum systems (Naor and Wool 1998; Whittaker et al., PaPoC 2021).

use serde::Serialize;

use crate::layout::Layout;

/// What a layout's quorums are like, whoever leads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct QuorumFigures {
    /// Voters that may fail, whichever they are. Says nothing of regions: see
    /// [`Layout::survives_regions`].
    pub resilience: usize,
    /// Share of the writes that the busiest voter takes part in, when quorums are chosen to make
    /// that least.
    pub load: f64,
    /// Writes of the whole for one write that a single voter could take: the inverse of the load.
    pub capacity: f64,
}

impl QuorumFigures {
    /// The figures of `layout`, which has at least one voter.
    pub fn of(layout: &Layout) -> Self {
        let load = if layout.design.votes_by_region() { load_of_groups(layout) } else { flat_load(layout) };
        QuorumFigures { resilience: resilience(layout), load, capacity: 1.0 / load }
    }
}

/// One less than the fewest failures that leave no quorum.
fn resilience(layout: &Layout) -> usize {
    let sizes: Vec<usize> = layout.voting_regions().map(|region| layout.voters[region].into()).collect();
    if !layout.design.votes_by_region() {
        return sizes.iter().sum::<usize>().saturating_sub(1) / 2;
    }
    let mut failures_to_break: Vec<usize> = sizes.iter().map(|size| size.div_ceil(2)).collect();
    failures_to_break.sort_unstable();
    let groups_to_break = sizes.len().div_ceil(2);
    failures_to_break.iter().take(groups_to_break).sum::<usize>().saturating_sub(1)
}

fn flat_load(layout: &Layout) -> f64 {
    let voters = layout.voter_count();
    (voters / 2 + 1) as f64 / voters as f64
}

/// The chosen groups differ from write to write: a group whose majority is a small part of it takes
/// part in more of them, at most in all, until every other group's voters are equally busy.
fn load_of_groups(layout: &Layout) -> f64 {
    let majority_share = |size: u8| f64::from(size / 2 + 1) / f64::from(size);
    let mut shares: Vec<f64> =
        layout.voting_regions().map(|region| majority_share(layout.voters[region])).collect();
    shares.sort_by(f64::total_cmp);
    let quorum = shares.len() / 2 + 1;
    let load_of = |in_all: usize| {
        let others: f64 = shares[in_all..].iter().map(|share| 1.0 / share).sum();
        (quorum - in_all) as f64 / others
    };
    (0..quorum)
        .map(|in_all| (load_of(in_all), shares[in_all]))
        .find(|(load, share)| load <= share)
        .map_or(shares.last().copied().unwrap_or(1.0), |(load, _)| load)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::tests::layout;
    use crate::layout::Design;

    #[test]
    fn majorities_and_groups_have_the_known_figures() {
        let figures = |design, voters| QuorumFigures::of(&layout(design, 0, voters));
        let flat = figures(Design::Flat, [2, 2, 1]);
        assert_eq!((flat.resilience, flat.load), (2, 0.6));
        let groups = figures(Design::Hier, [3, 3, 3]);
        assert_eq!(groups.resilience, 3);
        assert!((groups.load - 4.0 / 9.0).abs() < 1e-12);
        assert_eq!(figures(Design::Two, [3, 1, 1]).resilience, 1);
        assert_eq!(figures(Design::Flat, [1, 0, 0]).resilience, 0);
    }
}
