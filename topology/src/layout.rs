//! Layouts: where voters, observers and the leader stand, and how a write is agreed on.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::diagnostic::{Code, Diagnostic, nearest};

/// Most regions that layouts are searched over.
pub const PLANNED_REGIONS_MAX: usize = 32;

/// Most voters of a layout.
pub const VOTERS_MAX: usize = 31;

/// Servers of a two-level region that votes in no global decision but has its own ensemble.
const LEARNER_ENSEMBLE: u8 = 3;

/// One way to place servers. Counts are per region, in the order of the scenario's regions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// How a write is agreed on.
    pub design: Design,
    /// The region whose server leads, as an index into the regions.
    pub leader: usize,
    /// Voters in each region.
    pub voters: Vec<u8>,
    /// Servers in each region that hear every write but have no vote in it.
    pub observers: Vec<u8>,
}

/// How a write is agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Design {
    /// One ensemble over all regions; a majority of all voters.
    Flat,
    /// One ensemble with a ZooKeeper group per region; a majority of voters in a majority of groups.
    #[serde(alias = "hierarchical")]
    Hier,
    /// An ensemble per region, and a global group whose voters are whole regions.
    #[serde(alias = "two-level")]
    Two,
}

impl Design {
    /// Every design.
    pub const ALL: [Design; 3] = [Design::Flat, Design::Hier, Design::Two];

    /// The short name, as in scenarios.
    pub fn name(self) -> &'static str {
        match self {
            Design::Flat => "flat",
            Design::Hier => "hier",
            Design::Two => "two",
        }
    }

    /// Whether regions, not servers, make the quorum.
    pub fn votes_by_region(self) -> bool {
        self != Design::Flat
    }
}

impl Layout {
    /// Number of voters in all regions.
    pub fn voter_count(&self) -> usize {
        self.voters.iter().map(|count| usize::from(*count)).sum()
    }

    /// The regions that hold voters.
    pub fn voting_regions(&self) -> impl Iterator<Item = usize> + '_ {
        self.voters.iter().enumerate().filter(|(_, count)| **count > 0).map(|(region, _)| region)
    }

    /// Servers of a region, whatever their part.
    pub fn servers(&self, region: usize) -> u8 {
        self.voters[region].saturating_add(self.observers[region])
    }

    /// Copies of one write that leave the leader's region: one to every voter and observer
    /// elsewhere; in the two-level design one to every other region that has servers, which
    /// spreads it inside.
    pub fn wan_copies_per_write(&self) -> usize {
        let elsewhere = (0..self.voters.len()).filter(|region| *region != self.leader);
        match self.design {
            Design::Two => elsewhere.filter(|region| self.servers(*region) > 0).count(),
            Design::Flat | Design::Hier => elsewhere.map(|region| usize::from(self.servers(region))).sum(),
        }
    }

    /// The notation that [`Layout::parse`] reads, with the regions' names.
    pub fn display<'l>(&'l self, regions: &'l [String]) -> impl fmt::Display + 'l {
        Notation { layout: self, regions }
    }

    /// Reads `design:region=voters,region=voters`, the leader's region first or marked with `*`
    /// behind its count: `two:us-east=3,us-west=3,eu=1` or `flat:eu=1,us-east=2*`.
    pub fn parse(text: &str, regions: &[String], space: &Space) -> Result<Layout, Diagnostic> {
        let refuse = |message: String| {
            Diagnostic::new(Code::Syntax, format!("layout {text}"), message)
                .suggest("write it as two:us-east=3,us-west=3,eu=1, the leader's region first")
        };
        let (design, placement) = text.split_once(':').ok_or_else(|| refuse("no design".to_owned()))?;
        let design = match design {
            "flat" => Design::Flat,
            "hier" | "hierarchical" => Design::Hier,
            "two" | "two-level" => Design::Two,
            other => return Err(refuse(format!("{other} is not flat, hier or two"))),
        };
        let mut voters = vec![0u8; regions.len()];
        let (mut first, mut marked) = (None, None);
        for item in placement.split(',') {
            let (name, count) =
                item.split_once('=').ok_or_else(|| refuse(format!("{item} is not region=voters")))?;
            let region = regions.iter().position(|region| region == name.trim()).ok_or_else(|| {
                let finding = Diagnostic::new(
                    Code::UnknownRegion,
                    format!("layout {text}"),
                    format!("no region {name}"),
                );
                match nearest(name, regions.iter().map(String::as_str)) {
                    Some(known) => finding.suggest(format!("did you mean {known}?")),
                    None => finding,
                }
            })?;
            let (digits, mark) = match count.trim().strip_suffix('*') {
                Some(digits) => (digits, true),
                None => (count.trim(), false),
            };
            let count: u8 =
                digits.parse().map_err(|_| refuse(format!("{count} is not a number of voters")))?;
            voters[region] = count;
            if count > 0 {
                first = first.or(Some(region));
            }
            if mark {
                marked = Some(region);
            }
        }
        let leader = marked.or(first).ok_or_else(|| refuse("no voters".to_owned()))?;
        let total: usize = voters.iter().map(|count| usize::from(*count)).sum();
        if voters[leader] == 0 || total > VOTERS_MAX {
            return Err(refuse(format!(
                "the leader's region needs a voter, and {VOTERS_MAX} voters are the most"
            )));
        }
        Ok(space.complete(design, leader, voters))
    }
}

struct Notation<'l> {
    layout: &'l Layout,
    regions: &'l [String],
}

impl fmt::Display for Notation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Layout { design, leader, voters, .. } = self.layout;
        write!(f, "{}:{}={}", design.name(), self.regions[*leader], voters[*leader])?;
        for region in self.layout.voting_regions().filter(|region| region != leader) {
            write!(f, ",{}={}", self.regions[region], voters[region])?;
        }
        Ok(())
    }
}

/// The layouts that a scenario allows.
#[derive(Clone, Debug)]
pub struct Space {
    /// Designs to consider.
    pub designs: Vec<Design>,
    /// Most voters in all.
    pub voters_max: u8,
    /// Most voters per region.
    pub voters_max_per_region: Vec<u8>,
    /// Regions that may lead.
    pub may_lead: Vec<bool>,
    /// Least voters in the leader's region.
    pub leader_voters_min: u8,
    /// Regions that must hold a voter.
    pub must_vote: Vec<bool>,
    /// Regions whose clients need a server of their own.
    pub served: Vec<bool>,
}

impl Space {
    /// The layout with the observers that its voters leave necessary: one in every served region
    /// without voters, or, at two levels, an ensemble of its own.
    pub fn complete(&self, design: Design, leader: usize, voters: Vec<u8>) -> Layout {
        let observers = voters
            .iter()
            .enumerate()
            .map(|(region, count)| match design {
                _ if *count > 0 || !self.served[region] => 0,
                Design::Two => LEARNER_ENSEMBLE.min(self.voters_max_per_region[region].max(1)),
                Design::Flat | Design::Hier => 1,
            })
            .collect();
        Layout { design, leader, voters, observers }
    }

    /// Walks through every layout worth considering, as far as `guide` lets it. Regions are
    /// decided in the order `nearest_first[leader]`, which holds all regions but the leader's.
    ///
    /// Even numbers of voters (flat) and of groups, and even groups, are left out: dropping one
    /// voter outside the leader's region asks for one acknowledgement less, so it commits no
    /// later and survives every failure that the even number survives. The exceptions are a
    /// leader's region that must hold an even number, and regions that must vote and are even in
    /// number.
    pub fn walk(&self, nearest_first: &[Vec<usize>], guide: &mut impl Guide) {
        let starts = self.starts();
        let count = starts.len();
        for (i, Start { design, leader, at_leader, total }) in starts.into_iter().enumerate() {
            guide.begin(count - i);
            let voters = vec![0; self.may_lead.len()];
            let mut walk = Walk { space: self, design, leader, total, voters };
            walk.voters[leader] = at_leader;
            let left = walk_left(design, at_leader, total);
            walk.decide(&nearest_first[leader], left, self.voters_max - at_leader, guide);
        }
    }

    /// How many layouts [`Space::walk`] has when nothing is cut.
    pub fn count(&self) -> u64 {
        self.starts().iter().fold(0, |sum: u64, start| {
            let left = walk_left(start.design, start.at_leader, start.total);
            let room = self.voters_max - start.at_leader;
            sum.saturating_add(self.completions(start.design, start.leader, left, room))
        })
    }

    /// What every walk begins with, small totals first.
    fn starts(&self) -> Vec<Start> {
        let mut starts = Vec::new();
        for design in &self.designs {
            for leader in (0..self.may_lead.len()).filter(|region| self.may_lead[*region]) {
                starts.extend(self.starts_under(*design, leader));
            }
        }
        starts.sort_by_key(|start| start.total);
        starts
    }

    fn starts_under(&self, design: Design, leader: usize) -> Vec<Start> {
        let least = self.leader_voters_min.max(1);
        let most = self.voters_max_per_region[leader].min(self.voters_max);
        let groups = u8::try_from(self.may_lead.len()).unwrap_or(u8::MAX).min(self.voters_max);
        let mut starts = Vec::new();
        let forced = (0..self.must_vote.len()).filter(|r| *r != leader && self.must_vote[*r]).count();
        let forced = u8::try_from(forced).unwrap_or(u8::MAX);
        for at_leader in least..=most {
            let start = |total: u8| Start { design, leader, at_leader, total };
            let forced_total = if design.votes_by_region() { 1u8 } else { at_leader }.saturating_add(forced);
            let totals_max = if design.votes_by_region() { groups } else { self.voters_max };
            let even_but_least = at_leader % 2 == 0 && at_leader == least;
            if design.votes_by_region() && at_leader % 2 == 0 && !even_but_least {
                continue;
            }
            let forced_even = forced_total % 2 == 0
                && forced_total <= totals_max
                && (design.votes_by_region() || at_leader == least);
            starts.extend(forced_even.then_some(start(forced_total)));
            starts.extend((forced_total | 1..=totals_max).step_by(2).map(start));
        }
        starts
    }

    /// Sizes that a region besides the leader's may have, largest first; zero is left out.
    fn sizes(&self, design: Design, region: usize, most: u8) -> impl Iterator<Item = u8> + use<> {
        let most = self.voters_max_per_region[region].min(most);
        (1..=most).rev().filter(move |size| !design.votes_by_region() || size % 2 == 1)
    }

    /// Ways to place what is left: `ways[left][room]` over the regions seen so far.
    fn completions(&self, design: Design, leader: usize, left: u8, room: u8) -> u64 {
        let (left, room) = (usize::from(left), usize::from(room));
        let mut ways = vec![vec![0u64; room + 1]; left + 1];
        ways[0][0] = 1;
        for region in (0..self.may_lead.len()).filter(|region| *region != leader) {
            let none = vec![vec![0u64; room + 1]; left + 1];
            let mut next = if self.must_vote[region] { none } else { ways.clone() };
            for (placed, row) in ways.iter().enumerate() {
                for (used, count) in row.iter().enumerate().filter(|(_, count)| **count > 0) {
                    for size in self.sizes(design, region, u8::MAX).map(usize::from) {
                        let step = if design.votes_by_region() { 1 } else { size };
                        if placed + step <= left && used + size <= room {
                            let sum = &mut next[placed + step][used + size];
                            *sum = sum.saturating_add(*count);
                        }
                    }
                }
            }
            ways = next;
        }
        ways[left].iter().fold(0u64, |sum, count| sum.saturating_add(*count))
    }
}

/// Where a walk begins: the leader's region is decided, and how many voters (flat) or groups there
/// will be in all.
struct Start {
    design: Design,
    leader: usize,
    at_leader: u8,
    total: u8,
}

/// What is left to place beside the leader's region.
fn walk_left(design: Design, at_leader: u8, total: u8) -> u8 {
    if design.votes_by_region() { total - 1 } else { total - at_leader }
}

/// Steers a walk through the layouts.
pub trait Guide {
    /// One of the `parts_left` parts of the walk begins: a leader, its voters and a total.
    fn begin(&mut self, parts_left: usize) {
        let _ = parts_left;
    }

    /// Whether no completion of `partial` is of interest.
    fn cut(&mut self, partial: &Partial<'_>) -> bool;

    /// A complete layout.
    fn visit(&mut self, layout: &Layout);
}

/// A layout of which the regions nearest to the leader are decided.
#[derive(Debug)]
pub struct Partial<'w> {
    /// How a write is agreed on.
    pub design: Design,
    /// The leader's region.
    pub leader: usize,
    /// Voters so far.
    pub voters: &'w [u8],
    /// Regions still to be decided, nearest to the leader first; never empty.
    pub undecided: &'w [usize],
    /// Of all voters (flat) or groups: how many there will be.
    pub total: u8,
    /// How many of these are still to be placed; at least one.
    pub left: u8,
    /// How many voters these may have together.
    pub room: u8,
}

struct Walk<'s> {
    space: &'s Space,
    design: Design,
    leader: usize,
    total: u8,
    voters: Vec<u8>,
}

impl Walk<'_> {
    fn decide(&mut self, undecided: &[usize], left: u8, room: u8, guide: &mut impl Guide) {
        let must = undecided.iter().filter(|region| self.space.must_vote[**region]).count();
        if usize::from(left) < must {
            return;
        }
        if left == 0 {
            let layout = self.space.complete(self.design, self.leader, self.voters.clone());
            return guide.visit(&layout);
        }
        let Some((region, farther)) = undecided.split_first() else {
            return;
        };
        let (design, leader, total) = (self.design, self.leader, self.total);
        if guide.cut(&Partial { design, leader, voters: &self.voters, undecided, total, left, room }) {
            return;
        }
        let most = if design.votes_by_region() { room } else { room.min(left) };
        for size in self.space.sizes(design, *region, most) {
            self.voters[*region] = size;
            let taken = if design.votes_by_region() { 1 } else { size };
            self.decide(farther, left - taken, room - size, guide);
        }
        self.voters[*region] = 0;
        if !self.space.must_vote[*region] {
            self.decide(farther, left, room, guide);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(designs: &[Design]) -> Space {
        Space {
            designs: designs.to_vec(),
            voters_max: 5,
            voters_max_per_region: vec![3, 3, 1],
            may_lead: vec![true, true, false],
            leader_voters_min: 1,
            must_vote: vec![false; 3],
            served: vec![true, true, true],
        }
    }

    struct All(Vec<Layout>);

    impl Guide for All {
        fn cut(&mut self, _: &Partial<'_>) -> bool {
            false
        }

        fn visit(&mut self, layout: &Layout) {
            self.0.push(layout.clone());
        }
    }

    fn all(space: &Space) -> Vec<Layout> {
        let mut all = All(Vec::new());
        space.walk(&[vec![1, 2], vec![0, 2], vec![0, 1]], &mut all);
        all.0
    }

    fn names() -> Vec<String> {
        ["a", "b", "c"].map(str::to_owned).to_vec()
    }

    #[test]
    fn flat_layouts_have_an_odd_number_of_voters_within_the_limits() {
        let layouts = all(&space(&[Design::Flat]));
        for layout in &layouts {
            assert_eq!(layout.voter_count() % 2, 1);
            assert!(layout.voter_count() <= 5 && layout.leader < 2 && layout.voters[2] <= 1);
        }
        let notation: Vec<String> = layouts
            .iter()
            .map(|layout| layout.display(&names()).to_string())
            .filter(|n| n.contains("=2"))
            .collect();
        assert!(notation.contains(&"flat:a=2,b=2,c=1".to_owned()));
        assert!(notation.contains(&"flat:b=2,a=3".to_owned()));
    }

    #[test]
    fn groups_are_odd_and_odd_in_number() {
        for layout in all(&space(&[Design::Hier, Design::Two])) {
            assert_eq!(layout.voting_regions().count() % 2, 1);
            assert!(layout.voters.iter().all(|count| *count == 0 || count % 2 == 1));
        }
    }

    #[test]
    fn no_layout_comes_twice() {
        let layouts = all(&space(&Design::ALL));
        let distinct: std::collections::HashSet<_> = layouts.iter().collect();
        assert_eq!(distinct.len(), layouts.len());
        assert_eq!(space(&Design::ALL).count(), layouts.len() as u64);
    }

    /// Every placement within the limits, by counting up, against the walk.
    #[test]
    fn the_walk_leaves_out_only_even_numbers() {
        let mut space = space(&Design::ALL);
        for least in 1..=3 {
            space.leader_voters_min = least;
            let walked: std::collections::HashSet<Layout> = all(&space).into_iter().collect();
            let mut expected = 0;
            for design in Design::ALL {
                for (leader, code) in (0..2).flat_map(|leader| (0..32u8).map(move |code| (leader, code))) {
                    let voters = vec![code % 4, code / 4 % 4, code / 16];
                    let total: u8 = voters.iter().sum();
                    let groups = voters.iter().filter(|count| **count > 0).count();
                    let at_leader = voters[leader];
                    let others_odd = (0..3).all(|r| r == leader || voters[r] == 0 || voters[r] % 2 == 1);
                    let odd = match design {
                        Design::Flat => total % 2 == 1 || (total == least && at_leader == least),
                        _ => groups % 2 == 1 && others_odd && (at_leader % 2 == 1 || at_leader == least),
                    };
                    if total <= 5 && at_leader >= least && odd {
                        expected += 1;
                        assert!(
                            walked.contains(&space.complete(design, leader, voters.clone())),
                            "{voters:?}"
                        );
                    }
                }
            }
            assert_eq!(walked.len(), expected);
            assert_eq!(space.count(), expected as u64);
        }
    }

    #[test]
    fn regions_that_must_vote_hold_a_voter() {
        let mut space = space(&Design::ALL);
        space.must_vote = vec![true, false, true];
        let layouts = all(&space);
        assert_eq!(space.count(), layouts.len() as u64);
        assert!(layouts.iter().all(|layout| layout.voters[0] > 0 && layout.voters[2] > 0));
        let notation: Vec<String> =
            layouts.iter().map(|layout| layout.display(&names()).to_string()).collect();
        assert!(notation.contains(&"two:a=3,c=1".to_owned()), "two groups where no third may be forced");
        assert!(notation.contains(&"flat:a=1,c=1".to_owned()));
        assert!(!notation.contains(&"flat:a=2,b=1,c=1".to_owned()));
    }

    #[test]
    fn clients_without_voters_get_observers() {
        let space = space(&[Design::Flat]);
        let names = names();
        let flat = Layout::parse("flat:a=3", &names, &space).unwrap();
        assert_eq!((flat.observers.clone(), flat.wan_copies_per_write()), (vec![0, 1, 1], 2));
        let two = Layout::parse("two:a=1,b=3*", &names, &space).unwrap();
        assert_eq!((two.leader, two.observers.clone(), two.wan_copies_per_write()), (1, vec![0, 0, 1], 2));
    }

    #[test]
    fn notation_that_names_no_layout_is_refused() {
        for text in
            ["a=1", "flat:", "flat:a=x", "round:a=1", "flat:d=1", "flat:a=0", "flat:a=200", "flat:a=1,b=0*"]
        {
            assert!(Layout::parse(text, &names(), &space(&[Design::Flat])).is_err(), "{text}");
        }
    }
}
