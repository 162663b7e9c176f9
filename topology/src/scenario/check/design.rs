//! Designs that buy less than they seem to, in what is allowed and in what runs.

use crate::diagnostic::{Code, Diagnostic};
use crate::layout::{Design, Layout, VOTERS_MAX};
use crate::scenario::{Current, Scenario};

/// ZooKeeper's default for the longest session, in ticks, and for the tick, ms.
const SESSION_TICKS_MAX_DEFAULT: f64 = 20.0;
const TICK_MS_DEFAULT: f64 = 2000.0;

impl Scenario {
    /// What the limits make of the designs.
    pub(super) fn check_designs(&self) -> Vec<Diagnostic> {
        let mut diagnostics = Vec::new();
        let voting = self.regions.iter().filter(|name| self.voters_max_in(name) > 0).count();
        let by_region: Vec<&str> = Design::ALL
            .into_iter()
            .filter(|design| design.votes_by_region() && self.designs.contains(design))
            .map(Design::name)
            .collect();
        if voting == 2 && !by_region.is_empty() {
            diagnostics.push(two_groups("designs", &by_region.join(" and ")));
        }
        diagnostics.extend(
            self.weights
                .iter()
                .filter(|(_, weight)| **weight == 0.0)
                .map(|(name, _)| zero_weight(&format!("weights.{name}"), name, voting)),
        );
        if self.max_voters > 0 && self.max_voters.is_multiple_of(2) {
            diagnostics.push(even_voters("max_voters", self.max_voters));
        }
        diagnostics
    }

    /// What is doubtful about the layout that runs, and about its sessions.
    pub(super) fn check_current(&self) -> Vec<Diagnostic> {
        let Some(current) = &self.current else {
            return Vec::new();
        };
        let mut diagnostics = Vec::new();
        let voters = |name: &String| usize::from(current.voters.get(name).copied().unwrap_or(0));
        let counted = |name: &&String| self.weights.get(*name).is_none_or(|weight| *weight > 0.0);
        let total: usize = self.regions.iter().filter(counted).map(voters).sum();
        let groups = self.regions.iter().filter(counted).filter(|name| voters(name) > 0).count();
        if voters(&current.leader) == 0 || total > VOTERS_MAX {
            let message = format!(
                "{} leads with {} of {total} voters; it needs one, and {VOTERS_MAX} in all are the most",
                current.leader,
                voters(&current.leader)
            );
            diagnostics.push(Diagnostic::new(Code::BadValue, "current.voters", message));
        }
        if !current.design.votes_by_region() && total.is_multiple_of(2) && total > 0 {
            diagnostics.push(even_voters("current.voters", total));
        }
        if current.design.votes_by_region() && groups == 2 {
            diagnostics.push(two_groups("current.voters", current.design.name()));
        }
        if self.witness.contains(&current.leader) {
            let message = format!("{} leads, and is a witness: every write waits for it", current.leader);
            diagnostics.push(
                Diagnostic::new(Code::WitnessLeader, "current.leader", message)
                    .suggest("move the leader to a region that serves clients"),
            );
        }
        diagnostics.extend(self.check_current_sessions(current));
        diagnostics
    }

    fn check_current_sessions(&self, current: &Current) -> Option<Diagnostic> {
        let wanted_ms = self.session_timeout_ms?;
        let tick_ms = current.timing.get("tickTime").copied().unwrap_or(TICK_MS_DEFAULT);
        let given = current.timing.get("maxSessionTimeout").copied();
        let most_ms = given.unwrap_or(SESSION_TICKS_MAX_DEFAULT * tick_ms);
        (most_ms < wanted_ms).then(|| {
            let why = match given {
                Some(_) => "maxSessionTimeout".to_owned(),
                None => format!("the default of 20 ticks of {tick_ms:.0} ms"),
            };
            let message =
                format!("clients ask for {wanted_ms:.0} ms and get {most_ms:.0} ms: {why} caps them");
            Diagnostic::new(Code::SessionCap, "current.timing", message)
                .suggest(format!("set maxSessionTimeout to {wanted_ms:.0} or more"))
        })
    }
}

/// What is doubtful about a layout that was named.
pub(crate) fn about(layout: &Layout, names: &[String]) -> Vec<Diagnostic> {
    let place = layout.display(names).to_string();
    let (voters, groups) = (layout.voter_count(), layout.voting_regions().count());
    match layout.design.votes_by_region() {
        false if voters.is_multiple_of(2) => vec![even_voters(&place, voters)],
        true if groups == 2 => vec![two_groups(&place, layout.design.name())],
        _ => Vec::new(),
    }
}

fn two_groups(place: &str, designs: &str) -> Diagnostic {
    let message = format!("{designs} over two regions is a quorum of both: the loss of either stops writes");
    Diagnostic::new(Code::TwoGroups, place, message)
        .suggest("add a third region; a witness with one voter is enough")
}

fn zero_weight(place: &str, name: &str, voting: usize) -> Diagnostic {
    let rest = if voting == 2 { "; what is left are two groups" } else { "" };
    let message = format!("servers of weight 0 have no vote: {name} is no group of the quorum{rest}");
    Diagnostic::new(Code::ZeroWeight, place, message)
        .suggest("give it a weight of 1, or make its servers observers")
}

fn even_voters(place: &str, voters: usize) -> Diagnostic {
    let message =
        format!("{voters} voters survive no more than {}, and wait for one acknowledgement more", voters - 1);
    Diagnostic::new(Code::EvenVoters, place, message).suggest(format!(
        "{} or {} voters",
        voters - 1,
        voters + 1
    ))
}
