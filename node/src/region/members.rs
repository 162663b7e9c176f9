//! Who takes part in the region: how the group is formed, how servers join it, and how the leader carries
//! out changes of members.
//!
//! A server that has nothing on its disk asks the others first. If a majority of the configured voters has
//! nothing either, it forms the group with them. If the group exists, it joins: it neither votes nor
//! acknowledges anything until the leader has seen to it that the group no longer counts on what may once
//! have been on this disk. So a voter that lost its disk is taken out, brought up to date and made a voter
//! again, by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use meridian_seam::codec;
use meridian_wire::ErrorCode;
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::impls::BasicNode;
use openraft::{ChangeMembers, RaftMetrics};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::machine::View;
use super::peers::Peers;
use super::proposer::Proposer;
use super::{Leadership, Raft, RegionConfig, Roster};
use crate::txn::Command;
use crate::txn::ensemble::{Ensemble, Members, Role};
use meridian_bridge::engine::TypeConfig;
use meridian_seam::watch;

/// How often the leader compares the group with what it is to be, and servers that are no members yet
/// announce themselves.
const CARE_INTERVAL: Duration = Duration::from_millis(500);
/// The pause after a step that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How often a server with an empty disk asks what it may do.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// A server that has not announced itself for so long has gone.
const ANNOUNCEMENT_AGE_MAX: Duration = Duration::from_secs(15);
/// New voters that make no progress for so long fail the change.
const STALLED_AFTER: Duration = Duration::from_secs(3);
/// Entries that a server may lack and still count as up to date.
const LAG_ENTRIES_MAX: u64 = 64;
/// A change of the group that takes longer is looked at again.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a server tells one that has nothing on its disk.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Standing {
    /// Whether the group exists as far as this server knows: something was written after it was formed.
    established: bool,
    /// The voters it would form the group with.
    voters: BTreeSet<u64>,
}

/// A server tells the leader that it is there.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Announcement {
    address: String,
    /// It has nothing on its disk and does not know what was there before.
    empty: bool,
}

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Welcome {
    /// Whether whoever answers leads.
    leads: bool,
    /// Whether the group counts on nothing that the server may have lost.
    admitted: bool,
}

/// Where the servers of the region are reached.
#[derive(Clone)]
pub(super) struct Directory {
    config: Arc<RegionConfig>,
    view: Arc<ArcSwap<View>>,
    announced: Arc<Mutex<BTreeMap<u64, Announced>>>,
}

struct Announced {
    address: String,
    empty: bool,
    at: Instant,
}

impl Directory {
    pub(super) fn new(config: Arc<RegionConfig>, view: Arc<ArcSwap<View>>) -> Self {
        Self { config, view, announced: Arc::default() }
    }

    /// The addresses at which a server may be reached, the most likely one first: what is in force, what it is to be,
    /// what the server has said itself, and what this server's configuration says.
    pub(super) fn addresses_of(&self, server: u64) -> Vec<String> {
        let Ok(number) = u8::try_from(server) else { return Vec::new() };
        let agreed = |members: &Members| members.get(&number).map(|member| member.address.clone());
        let view = self.view.load();
        let announced = self.announced.lock().get(&server).map(|a| a.address.clone());
        let mut addresses = Vec::new();
        let ensemble = &view.state.ensemble;
        let known =
            [agreed(&ensemble.members), agreed(ensemble.target()), announced, agreed(&self.config.members)];
        for address in known.into_iter().flatten() {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// All servers that this one knows of, itself aside.
    fn others(&self) -> BTreeSet<u64> {
        let view = self.view.load();
        let known = self.config.members.keys().chain(view.state.ensemble.target().keys());
        known.map(|number| u64::from(*number)).filter(|number| *number != self.config.server).collect()
    }
}

/// This server's part in keeping the group's members as they are to be. Clones share it.
#[derive(Clone)]
pub(super) struct Membership {
    raft: Raft,
    config: Arc<RegionConfig>,
    directory: Directory,
    peers: Peers,
    proposer: Proposer,
    leadership: watch::Receiver<Leadership>,
    /// Whether this server may vote and acknowledge.
    admitted: Arc<AtomicBool>,
    care: Arc<Notify>,
}

impl Membership {
    pub(super) fn new(
        raft: Raft,
        peers: Peers,
        proposer: Proposer,
        leadership: watch::Receiver<Leadership>,
        care: Arc<Notify>,
        pristine: bool,
    ) -> Self {
        let (config, directory) = (peers.config.clone(), peers.directory.clone());
        let admitted = Arc::new(AtomicBool::new(!pristine));
        Self { raft, config, directory, peers, proposer, leadership, admitted, care }
    }

    /// Whether this server may vote and acknowledge; until then it answers none of the engine's requests.
    pub(super) fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Acquire)
    }

    /// Answers a server that has nothing on its disk.
    pub(super) fn standing(&self) -> io::Result<Bytes> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let written = metrics.last_log_index.max(metrics.last_applied.map(|id| id.index()));
        // The first entry is the one that every voter writes for itself when it forms the group.
        let established = self.is_admitted() && written.is_some_and(|index| index > 0);
        encode(&Standing { established, voters: self.config.voter_numbers() })
    }

    /// Takes note of a server that is there.
    pub(super) fn announced(&self, server: u64, body: &[u8]) -> io::Result<Bytes> {
        let Announcement { address, empty } = codec::decode(body).map_err(io::Error::other)?;
        let leads = self.leadership.borrow().is_me;
        if !leads || server == self.config.server || u8::try_from(server).is_err() {
            return encode(&Welcome { leads, admitted: false });
        }
        self.directory.announced.lock().insert(server, Announced { address, empty, at: Instant::now() });
        let admitted = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            empty && !counts_on(&metrics, server)
        };
        self.care.notify_one();
        encode(&Welcome { leads, admitted })
    }

    /// Hands the lead over to a voter, who takes it as soon as it is up to date.
    ///
    /// # Errors
    /// If this server does not lead or the other is no voter.
    pub(super) async fn hand_over_to(&self, server: u64) -> io::Result<()> {
        let refusal = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        if !self.leadership.borrow().is_me {
            return refusal("this server does not lead".into());
        }
        if server == self.config.server {
            return Ok(());
        }
        let votes = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.voter_ids().any(|voter| voter == server)
        };
        if !votes {
            return refusal(format!("server {server} does not vote"));
        }
        tracing::info!(to = server, "the lead is handed over");
        self.raft.trigger().transfer_leader(server).await.map_err(|e| io::Error::other(e.to_string()))
    }

    /// Forms the group or joins it, then sees to it that this server stays a member and, while it leads,
    /// that the members are those that there are to be.
    pub(super) async fn run(self) {
        if !self.is_admitted() {
            self.begin().await;
        }
        let mut ticks = tokio::time::interval(CARE_INTERVAL);
        let mut leadership = self.leadership.clone();
        let mut leading: Option<Leading> = None;
        loop {
            tokio::select! {
                biased;
                _ = ticks.tick() => {}
                () = self.care.notified() => {}
                changed = leadership.changed() => if changed.is_err() { return },
            }
            let leads = *self.leadership.borrow();
            if !leads.is_me {
                leading = None;
                self.announce_if_needed().await;
                continue;
            }
            let now = Instant::now();
            let leading = match &mut leading {
                Some(leading) if leading.term == leads.term => leading,
                other => other.insert(Leading { term: leads.term, since: now, progress: None, asked: None }),
            };
            if let Err(error) = self.care_for_members(leading).await {
                tracing::debug!(%error, "the members are not yet what they are to be");
                tokio::time::sleep(RETRY_PAUSE).await;
                self.care.notify_one();
            }
        }
    }

    /// The first steps of a server that has nothing on its disk.
    async fn begin(&self) {
        let voters = self.config.voter_numbers();
        let is_voter = voters.contains(&self.config.server);
        let mut told = false;
        loop {
            let mut pristine = usize::from(is_voter);
            let mut established = false;
            for standing in self.ask_others().await {
                established |= standing.established;
                pristine += usize::from(is_voter && standing.voters == voters);
            }
            if established {
                return self.join().await;
            }
            if is_voter && 2 * pristine > voters.len() {
                return self.form().await;
            }
            if !std::mem::replace(&mut told, true) {
                tracing::info!(?voters, "waiting for the other servers of the region");
            }
            tokio::time::sleep(ASK_INTERVAL).await;
        }
    }

    async fn ask_others(&self) -> Vec<Standing> {
        let asking = self.directory.others().into_iter().map(|server| async move {
            let answer =
                tokio::time::timeout(CARE_INTERVAL, self.peers.standing_of(server)).await.ok()?.ok()?;
            codec::decode(&answer).ok()
        });
        futures::future::join_all(asking).await.into_iter().flatten().collect()
    }

    /// Forms the group from the configured voters. Every voter does so with the same set; only the first
    /// election tells who leads.
    async fn form(&self) {
        let voters = self.config.voters();
        let members: BTreeMap<u64, BasicNode> =
            voters.map(|(number, member)| (number, BasicNode::new(&member.address))).collect();
        self.admitted.store(true, Ordering::Release);
        match self.raft.initialize(members).await {
            // The second: another voter was quicker and its entries have already arrived.
            Ok(())
            | Err(openraft::errors::RaftError::APIError(openraft::errors::InitializeError::NotAllowed(_))) => {
            }
            Err(error) => tracing::error!(%error, "the group was not formed"),
        }
    }

    /// Waits until the leader has taken note that this server has an empty disk.
    async fn join(&self) {
        tracing::info!("this server's disk is empty: it joins the region and votes once it is up to date");
        while !self.announce(true).await {
            tokio::time::sleep(ASK_INTERVAL).await;
        }
        self.admitted.store(true, Ordering::Release);
        self.announce(false).await;
    }

    async fn announce_if_needed(&self) {
        let is_member = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.current_leader.is_some()
                && metrics.membership_config.get_node(&self.config.server).is_some()
        };
        if !is_member {
            self.announce(false).await;
        }
    }

    /// Tells everybody that this server is there; true if the leader has admitted it.
    async fn announce(&self, empty: bool) -> bool {
        let address = self.config.own_address();
        let announcement = Announcement { address, empty };
        let Ok(body) = encode(&announcement) else { return false };
        let telling = self.directory.others().into_iter().map(|server| {
            let told = tokio::time::timeout(CARE_INTERVAL, self.peers.announce_to(server, body.clone()));
            async move { codec::decode::<Welcome>(&told.await.ok()?.ok()?).ok() }
        });
        let welcomes = futures::future::join_all(telling).await;
        welcomes.into_iter().flatten().any(|welcome| welcome.leads && welcome.admitted)
    }
}

/// Whether the group may count on what a server once had on its disk.
fn counts_on(metrics: &RaftMetrics<TypeConfig>, server: u64) -> bool {
    let members = &metrics.membership_config;
    let votes = members.voter_ids().any(|voter| voter == server);
    let matched = metrics.replication.as_ref().is_some_and(|r| r.get(&server).is_some_and(Option::is_some));
    votes || matched
}

/// What a leader remembers of its tenure.
struct Leading {
    term: u64,
    since: Instant,
    /// How far the new voters were, and since when.
    progress: Option<(u64, Instant)>,
    /// The change that was asked for, and when it was first looked at.
    asked: Option<(i64, Instant)>,
}

impl Leading {
    /// For how long a change that was asked for has been looked at.
    fn looked_at(&mut self, id: i64) -> Duration {
        let first = self.asked.filter(|(asked, _)| *asked == id).map_or_else(Instant::now, |(_, at)| at);
        self.asked = Some((id, first));
        first.elapsed()
    }

    /// Whether servers have come nearer to the end of the log lately.
    fn gets_on(&mut self, behind: &BTreeSet<u64>, group: &Group) -> bool {
        let reached: u64 = behind.iter().filter_map(|server| group.matched(*server)).sum();
        match self.progress {
            Some((before, since)) if before == reached => since.elapsed() < STALLED_AFTER,
            _ => {
                self.progress = Some((reached, Instant::now()));
                true
            }
        }
    }
}

/// The group as the engine has it.
pub(super) struct Group {
    voters: BTreeSet<u64>,
    learners: BTreeSet<u64>,
    /// Whether a change of voters is half done.
    joint: bool,
    /// Whether all of it is applied here, and so committed.
    settled: bool,
    /// How much of the log each server is known to have, if that is known: at the leader.
    progress: BTreeMap<u64, Option<u64>>,
    /// How long ago each server last acknowledged something: at the leader.
    heard: BTreeMap<u64, Duration>,
    last: u64,
}

impl Group {
    pub(super) fn of(metrics: &RaftMetrics<TypeConfig>) -> Self {
        let members = &metrics.membership_config;
        let voters: BTreeSet<u64> = members.voter_ids().collect();
        let nodes = members.nodes().map(|(id, _)| *id);
        let applied = metrics.last_applied.map(|id| id.index());
        let progress = metrics.replication.iter().flatten();
        let heard = metrics.heartbeat.iter().flatten();
        Self {
            heard: heard.filter_map(|(id, at)| Some((*id, at.as_ref()?.elapsed()))).collect(),
            learners: nodes.filter(|id| !voters.contains(id)).collect(),
            joint: members.get_joint_config().len() != 1,
            settled: members.log_id().map(|id| id.index()) <= applied,
            voters,
            progress: progress.map(|(id, matched)| (*id, matched.as_ref().map(|id| id.index()))).collect(),
            last: metrics.last_log_index.unwrap_or(0),
        }
    }

    /// The same for operators.
    pub(super) fn roster(self) -> Roster {
        let behind = |matched: u64| self.last.saturating_sub(matched);
        Roster {
            settled: self.settled && !self.joint,
            lag_entries: self
                .progress
                .iter()
                .map(|(id, matched)| (*id, behind(matched.unwrap_or(0))))
                .collect(),
            silence: self.heard,
            voters: self.voters,
            learners: self.learners,
        }
    }

    /// How much of the log a server is known to have.
    fn matched(&self, server: u64) -> Option<u64> {
        self.progress.get(&server).copied().flatten()
    }

    fn is_up_to_date(&self, server: u64) -> bool {
        self.matched(server).is_some_and(|matched| matched + LAG_ENTRIES_MAX >= self.last)
    }

    fn has_heard(&self, server: u64, within: Duration) -> bool {
        self.heard.get(&server).is_some_and(|age| *age <= within)
    }
}

impl Membership {
    /// One step towards the members that there are to be.
    async fn care_for_members(&self, leading: &mut Leading) -> io::Result<()> {
        let ensemble = self.directory.view.load().state.ensemble.clone();
        if ensemble.members.is_empty() {
            return self
                .propose(&Command::FormEnsemble { members: Members::clone(&self.config.members) })
                .await;
        }
        let group = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            Group::of(&metrics)
        };
        if !group.settled {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "the last change is not yet committed"));
        }
        let (empty, present) = self.announcements();
        if let Some(server) = empty.iter().find(|server| self.group_counts_on(**server)) {
            return self.take_out(*server, &group).await;
        }
        let of_role = |role: Role| {
            let servers = ensemble.target().iter().filter(|(_, member)| member.role == role);
            servers.map(|(number, _)| u64::from(*number)).collect::<BTreeSet<u64>>()
        };
        let wanted = of_role(Role::Voter);
        let voters: BTreeSet<u64> = wanted.difference(&empty).copied().collect();
        let mut learners: BTreeSet<u64> = of_role(Role::Observer).difference(&empty).copied().collect();
        learners.extend(present.difference(&voters));
        self.add_learners(&group, voters.union(&learners)).await?;
        if voters != group.voters || group.joint {
            return self.change_voters(&ensemble, &group, voters, leading).await;
        }
        if ensemble.change.is_some() && voters != wanted {
            // Who has just come with an empty disk is made a voter before the change counts as carried out.
            return Ok(());
        }
        self.end_change(&ensemble, ErrorCode::Ok).await?;
        let unwanted: BTreeSet<u64> = group.learners.difference(&learners).copied().collect();
        // A new leader does not know yet who is there.
        if !unwanted.is_empty() && leading.since.elapsed() > ANNOUNCEMENT_AGE_MAX {
            tracing::info!(servers = ?unwanted, "servers that are no members are let go");
            self.change(ChangeMembers::RemoveNodes(unwanted), false).await?;
        }
        Ok(())
    }

    /// The servers that have announced themselves lately: those with an empty disk, and the others.
    fn announcements(&self) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let mut announced = self.directory.announced.lock();
        announced.retain(|_, announced| announced.at.elapsed() < ANNOUNCEMENT_AGE_MAX);
        let (empty, present): (Vec<_>, Vec<_>) = announced.iter().partition(|(_, a)| a.empty);
        let numbers = |servers: Vec<(&u64, &Announced)>| servers.into_iter().map(|(id, _)| *id).collect();
        (numbers(empty), numbers(present))
    }

    fn group_counts_on(&self, server: u64) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        counts_on(&metrics, server)
    }

    /// Takes a server that lost what it had out of the group, so that nothing is counted on it.
    async fn take_out(&self, server: u64, group: &Group) -> io::Result<()> {
        tracing::info!(
            server,
            "a server has an empty disk: it is taken out of the group until it is up to date"
        );
        let servers = BTreeSet::from([server]);
        if group.voters.contains(&server) {
            self.change(ChangeMembers::RemoveVoters(servers), false).await
        } else {
            self.change(ChangeMembers::RemoveNodes(servers), false).await
        }
    }

    async fn add_learners(&self, group: &Group, wanted: impl Iterator<Item = &u64>) -> io::Result<()> {
        for server in wanted {
            if group.voters.contains(server) || group.learners.contains(server) {
                continue;
            }
            let Some(address) = self.directory.addresses_of(*server).into_iter().next() else { continue };
            let node = BasicNode::new(&address);
            self.raft.add_learner(*server, node, false).await.map_err(|e| io::Error::other(e.to_string()))?;
            tracing::info!(server, %address, "server added to the group, without a vote so far");
        }
        Ok(())
    }

    async fn change_voters(
        &self,
        ensemble: &Ensemble,
        group: &Group,
        voters: BTreeSet<u64>,
        leading: &mut Leading,
    ) -> io::Result<()> {
        let own = self.config.server;
        let ready: BTreeSet<u64> = voters
            .iter()
            .filter(|server| {
                **server == own || group.voters.contains(server) || group.is_up_to_date(**server)
            })
            .copied()
            .collect();
        let behind: BTreeSet<u64> = voters.difference(&ready).copied().collect();
        // Nobody that lags is made a voter while it gets on; who is gone may become one in name, if asked for.
        let voters = match (behind.is_empty(), ensemble.change.is_some()) {
            (true, _) => voters,
            (false, false) if ready == group.voters && !group.joint => return Ok(()),
            (false, false) => ready,
            (false, true) if leading.gets_on(&behind, group) => return Ok(()),
            (false, true) if 2 * ready.len() > voters.len() => voters,
            (false, true) => {
                tracing::warn!(
                    ?behind,
                    "the members stay as they are: too many of the new voters are not up to date"
                );
                return self.end_change(ensemble, ErrorCode::NewConfigNoQuorum).await;
            }
        };
        if let Some(change) = &ensemble.change {
            // With voters that have gone nothing would ever be agreed on again: most must have answered since it was
            // asked for.
            let since = leading.looked_at(change.id);
            let is_silent = |server: &&u64| **server != own && !group.has_heard(**server, since);
            let silent: BTreeSet<u64> = voters.iter().filter(is_silent).copied().collect();
            if 2 * silent.len() >= voters.len() {
                if since < STALLED_AFTER {
                    let reason = "the new voters have not answered yet";
                    return Err(io::Error::new(io::ErrorKind::WouldBlock, reason));
                }
                tracing::warn!(?silent, "the members stay as they are: too few of the new voters are there");
                return self.end_change(ensemble, ErrorCode::NewConfigNoQuorum).await;
            }
        }
        let heir = voters.iter().filter(|server| **server != own && group.voters.contains(server));
        if let (false, Some(heir)) = (voters.contains(&own), heir.max_by_key(|id| group.matched(**id))) {
            tracing::info!(heir, "this server is to vote no longer: another takes the lead");
            return self
                .raft
                .trigger()
                .transfer_leader(*heir)
                .await
                .map_err(|e| io::Error::other(e.to_string()));
        }
        tracing::info!(from = ?group.voters, to = ?voters, "voters change");
        self.change(ChangeMembers::ReplaceAllVoters(voters), true).await
    }

    async fn change(&self, change: ChangeMembers<u64, BasicNode>, retain: bool) -> io::Result<()> {
        let changed = tokio::time::timeout(CHANGE_TIMEOUT, self.raft.change_membership(change, retain)).await;
        let changed = changed.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        // What failed may fail again at once: the next try waits for the next tick.
        changed.map_err(|error| io::Error::other(error.to_string()))?;
        self.care.notify_one();
        Ok(())
    }

    async fn end_change(&self, ensemble: &Ensemble, error: ErrorCode) -> io::Result<()> {
        let Some(change) = &ensemble.change else { return Ok(()) };
        self.propose(&Command::MembersChanged { id: change.id, error: error as i32 }).await
    }

    async fn propose(&self, command: &Command<'_>) -> io::Result<()> {
        let command = encode(command)?;
        self.proposer.propose(vec![command]).await.map(drop)
    }
}

fn encode(value: &impl Serialize) -> io::Result<Bytes> {
    codec::encode(value).map(Bytes::from).map_err(io::Error::other)
}
