//! The global group: a consensus group whose voters are regions.
//!
//! A region takes part through its current leader, which runs the engine here. What a voter must keep is
//! kept in the region's own replicated log ([`Command::Global`]): an append is on disk when the region
//! has committed it. So a lost server never shows at this level, and a new regional leader continues where
//! the old one stopped, with a higher [`Incarnation`] that shuts the old one out.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use meridian_seam::clock::millis;
use meridian_seam::mutant::{self, Mutant};
use meridian_seam::{codec, limits, rpc};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::impls::{BasicNode, ProgressResponder};
use openraft::network::{RPCOption, RaftNetworkFactory, v2::RaftNetworkV2};
use openraft::raft::TransferLeaderRequest;
use openraft::storage::{
    EntryResponder, IOFlushed, LogState, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine,
};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::{Config, EntryPayload, ReadPolicy, SnapshotPolicy};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::engine::{
    self, Entry, Link, LogBounds, LogId, LogMemory, LogReader, Members, Payload, Responder, StoredEntry,
    StoredLogId, StoredMembers, StoredPayload, StoredVote, TypeConfig, Vote, invalid_data,
};
use crate::links::RegionLink;
use crate::mesh::{Orderer, RegionId};
use crate::region::{Region, RegionView};
use crate::state::{
    Command, GlobalChange, GlobalCommand, GlobalEntry, GlobalInstall, GlobalLogId, GlobalPayload,
    Incarnation, Outcome,
};

/// Timeouts of the global group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlobalTiming {
    /// How often the leading region is heard of.
    pub heartbeat: Duration,
    /// A region that has not heard of it for a time in this range calls an election. Must exceed a regional
    /// failover, so that a lost server does not move the global leader.
    pub election_timeout: (Duration, Duration),
}

impl Default for GlobalTiming {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(400),
            election_timeout: (Duration::from_millis(2_500), Duration::from_millis(4_000)),
        }
    }
}

/// A region that can't be told in this time is left out of it.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(1);
/// A snapshot of the global order costs nothing until a region asks for it, so it may be taken often.
const ENTRIES_PER_SNAPSHOT: u64 = 20_000;
/// The log is part of the region's replicated state, which every server of the region has in memory.
pub const LOG_BOUNDS: LogBounds = LogBounds { bytes_per_snapshot: 16 << 20, bytes_kept: 16 << 20 };

type Raft = openraft::Raft<TypeConfig, Machine>;

/// This region's part in the global group, for one tenure of its leader. Clones share it.
#[derive(Clone)]
pub struct GlobalGroup {
    raft: Raft,
}

impl GlobalGroup {
    /// Continues this region's part from what the region has stored. The caller has acquired the storage
    /// for `incarnation`.
    ///
    /// # Errors
    /// If the stored state can't be read, or the timing makes no sense.
    pub(crate) async fn start(
        region: Arc<dyn Region>,
        region_id: RegionId,
        incarnation: Incarnation,
        links: BTreeMap<RegionId, RegionLink>,
        timing: GlobalTiming,
        log_bounds: LogBounds,
    ) -> io::Result<Self> {
        let (election_timeout_min, election_timeout_max) = engine::timeouts_ms(timing.election_timeout);
        let config = Config {
            cluster_name: "global".into(),
            heartbeat_interval: millis(timing.heartbeat),
            election_timeout_min,
            election_timeout_max,
            enable_pre_vote: Some(true),
            // Another server of the region may still lead in this term: only an election tells.
            enable_leader_restore: Some(false),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(ENTRIES_PER_SNAPSHOT),
            // What a snapshot covers is purged by bytes.
            max_in_snapshot_log_to_keep: u64::MAX,
            replication_lag_threshold: u64::MAX,
            max_payload_entries: limits::APPEND_ENTRIES_MAX,
            install_snapshot_timeout: 600_000,
            backoff: "50ms 100ms 200ms 400ms ...1000ms".into(),
            ..Config::default()
        };
        let config = Arc::new(config.validate().map_err(io::Error::other)?);
        let store = Store::load(region.clone(), incarnation)?;
        let memory = store.memory.clone();
        let pristine = memory.lock().is_pristine();
        let own = u64::from(region_id);
        let led = memory.lock().vote.filter(|vote| vote.committed && vote.leader_id.voted_for == own);
        let machine = Machine { region: region.clone(), incarnation, built: None };
        let members: BTreeMap<u64, BasicNode> =
            links.keys().chain([&region_id]).map(|id| (u64::from(*id), BasicNode::default())).collect();
        let network = Links { links: links.clone(), timeout: timing.election_timeout.1 };
        let raft = Raft::new(own, config, network, store, machine).await.map_err(io::Error::other)?;
        if pristine {
            match raft.initialize(members).await {
                Ok(()) => {}
                // Another region was quicker and its entries have already arrived.
                Err(openraft::errors::RaftError::APIError(
                    openraft::errors::InitializeError::NotAllowed(_),
                )) => {}
                Err(error) => return Err(io::Error::other(error.to_string())),
            }
        }
        tokio::spawn(engine::bound_log(raft.clone(), memory, log_bounds, || 0));
        if let Some(vote) = led {
            tokio::spawn(Self::lead_on(raft.clone(), vote, own, links));
        }
        Ok(Self { raft })
    }

    /// The region led, for all that is stored here, until its last leader's tenure was over. The others are told that
    /// nobody need wait for that one's silence; then this region asks for votes, and if it lacks entries that others
    /// have, so that it gets none, each of the others is asked to.
    async fn lead_on(raft: Raft, vote: Vote, own: u64, links: BTreeMap<RegionId, RegionLink>) {
        let hand_over = |to: u64, link: &RegionLink| {
            let link = Some(link.another());
            async move {
                let mut network = engine::Network::new(GlobalLink { link }, HAND_OVER_TIMEOUT);
                let request = TransferLeaderRequest::new(vote, to, None);
                network.transfer_leader(request, RPCOption::new(HAND_OVER_TIMEOUT)).await.is_ok()
            }
        };
        let mut telling: JoinSet<bool> = links.values().map(|link| hand_over(own, link)).collect();
        let (majority, mut told) = (links.len().div_ceil(2), 0);
        while told < majority {
            match telling.join_next().await {
                Some(answer) => told += usize::from(answer.unwrap_or(false)),
                // Silence it is, then.
                None => return,
            }
        }
        telling.detach_all();
        let current = raft.metrics().borrow_watched().vote;
        if current != vote {
            return;
        }
        tracing::info!(
            term = vote.leader_id.term,
            "the region goes on leading the global group: it asks for votes"
        );
        // If the engine has stopped there is nothing to lead.
        let _ = raft.trigger().elect(false).await;
        for (region, link) in &links {
            if Self::is_led_soon(&raft).await {
                return;
            }
            tracing::info!(
                region,
                "another region may have more entries: it is asked to lead the global group"
            );
            hand_over(u64::from(*region), link).await;
        }
    }

    /// Whether a leader is known within [`HAND_OVER_TIMEOUT`].
    async fn is_led_soon(raft: &Raft) -> bool {
        let mut metrics = raft.metrics();
        let led = async {
            while metrics.borrow_watched().current_leader.is_none() {
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(HAND_OVER_TIMEOUT, led).await.is_ok()
    }

    /// The region that leads the group, as far as this one knows.
    pub fn leader(&self) -> Option<RegionId> {
        self.raft.metrics().borrow_watched().current_leader.and_then(|id| RegionId::try_from(id).ok())
    }

    /// The newest term known.
    pub fn term(&self) -> u64 {
        self.raft.metrics().borrow_watched().current_term
    }

    /// Waits until who leads changes, or the group's part here has stopped (then `false`).
    pub async fn leader_changed(&self, known: (Option<RegionId>, u64)) -> bool {
        let mut metrics = self.raft.metrics();
        loop {
            if metrics.borrow_watched().running_state.is_err() {
                return false;
            }
            if (self.leader(), self.term()) != known {
                return true;
            }
            if metrics.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Waits until the engine can't go on, and says why.
    pub async fn stopped(&self) -> String {
        let mut metrics = self.raft.metrics();
        loop {
            if let Err(fatal) = &metrics.borrow_watched().running_state {
                return fatal.to_string();
            }
            if metrics.changed().await.is_err() {
                return "the engine has ended".into();
            }
        }
    }

    /// Proposes a command. Queued before the returned future is first awaited to its end; the inner future
    /// is done when the group has agreed and this region has applied it.
    ///
    /// # Errors
    /// If this region does not lead the group or stops to.
    pub async fn propose(&self, command: &GlobalCommand) -> io::Result<BoxFuture<'static, io::Result<()>>> {
        let bytes = codec::encode(command).map_err(invalid_data)?;
        let (responder, response) = ProgressResponder::complete_only();
        self.raft.client_write_ff(Payload(bytes.into()), Some(responder)).await.map_err(io::Error::other)?;
        Ok(Box::pin(async move {
            match response.await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(refused)) => Err(io::Error::other(refused.to_string())),
                Err(_) => Err(io::Error::other("the global group has stopped here")),
            }
        }))
    }

    /// Makes sure, by hearing from a majority of regions after this call, that this region leads, and that
    /// everything the group had agreed on by then is applied here.
    ///
    /// # Errors
    /// If it does not, or can't be sure.
    pub async fn confirm_leadership(&self) -> io::Result<()> {
        let confirmed = self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await;
        confirmed.map(drop).map_err(|e| io::Error::other(e.to_string()))
    }

    /// Asks another region to lead.
    pub(crate) async fn transfer(&self, to: RegionId) -> io::Result<()> {
        self.raft.trigger().transfer_leader(u64::from(to)).await.map_err(|e| io::Error::other(e.to_string()))
    }

    /// Answers the engine's requests of one connection.
    pub(crate) fn responder(&self) -> Arc<Responder<Machine>> {
        Responder::new(self.raft.clone())
    }

    /// Installs a snapshot whose pieces have been staged in the region.
    pub(crate) async fn install(&self, request: InstallGlobal) -> io::Result<StoredVote> {
        let meta = SnapshotMetaOf::<TypeConfig> {
            last_log_id: Some(request.last.into()),
            last_membership: request.members.into_members()?,
        };
        let snapshot =
            SnapshotOf::<TypeConfig, Snapshot> { meta, snapshot: Snapshot::Staged(request.transfer) };
        let response = self.raft.install_full_snapshot(Vote::from(request.vote), snapshot).await;
        response.map(|r| (&r.vote).into()).map_err(|e| io::Error::other(e.to_string()))
    }

    /// Stops this region's part; what is stored stays.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::debug!(%error, "the global group's engine did not end cleanly");
        }
    }
}

/// Asks a region to install a snapshot whose pieces it has staged.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct InstallGlobal {
    pub(crate) vote: StoredVote,
    pub(crate) last: StoredLogId,
    pub(crate) members: StoredMembers,
    pub(crate) transfer: u64,
}

/// A snapshot of the global order.
pub(crate) enum Snapshot {
    /// A view to be exported when it is sent.
    View(Arc<dyn RegionView>),
    /// Staged in this region under this number.
    Staged(u64),
}

impl Snapshot {
    /// Its pieces, to be sent.
    pub(crate) fn pieces(&self) -> io::Result<Vec<Bytes>> {
        match self {
            Snapshot::View(view) => view.export(Orderer::Global),
            Snapshot::Staged(_) => Err(io::Error::other("a staged snapshot is not sent on")),
        }
    }
}

struct Links {
    links: BTreeMap<RegionId, RegionLink>,
    timeout: Duration,
}

impl RaftNetworkFactory<TypeConfig> for Links {
    type Network = engine::Network<GlobalLink>;

    async fn new_client(&mut self, target: u64, _node: &BasicNode) -> Self::Network {
        let link =
            RegionId::try_from(target).ok().and_then(|id| self.links.get(&id)).map(RegionLink::another);
        engine::Network::new(GlobalLink { link }, self.timeout)
    }
}

/// The engine's way to another region; none to a region that is not in the configuration.
#[derive(Clone)]
pub(crate) struct GlobalLink {
    link: Option<RegionLink>,
}

impl Link for GlobalLink {
    type Snapshot = Snapshot;

    fn client(&self) -> BoxFuture<'_, io::Result<rpc::Client>> {
        Box::pin(async move {
            match &self.link {
                Some(link) => link.client().await,
                None => {
                    Err(io::Error::new(io::ErrorKind::NotFound, "the region is not in the configuration"))
                }
            }
        })
    }

    fn send_snapshot(
        &self,
        vote: StoredVote,
        snapshot: SnapshotOf<TypeConfig, Snapshot>,
    ) -> BoxFuture<'_, io::Result<StoredVote>> {
        Box::pin(async move {
            let link = self.link.as_ref().ok_or(io::ErrorKind::NotFound)?;
            let last = snapshot.meta.last_log_id.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
            let transfer = link.send_pieces(Orderer::Global, 0, snapshot.snapshot.pieces()?).await?;
            let members = (&snapshot.meta.last_membership).into();
            link.install_global(&InstallGlobal { vote, last: last.into(), members, transfer }).await
        })
    }
}

/// The engine's log storage: the region's replicated state.
#[derive(Clone)]
struct Store {
    region: Arc<dyn Region>,
    incarnation: Incarnation,
    memory: Arc<Mutex<LogMemory>>,
}

fn stored_global(entry: &Entry) -> io::Result<GlobalEntry> {
    let StoredEntry { id, payload } = entry.into();
    Ok(GlobalEntry {
        id: GlobalLogId { term: id.term, index: id.index },
        payload: match payload {
            StoredPayload::Blank => GlobalPayload::Blank,
            StoredPayload::Normal(bytes) => GlobalPayload::Command(bytes),
            StoredPayload::Members(mut members) => {
                members.log_id = Some(id);
                GlobalPayload::Membership(codec::encode(&members).map_err(invalid_data)?.into())
            }
        },
    })
}

fn engine_entry(stored: &GlobalEntry) -> io::Result<Entry> {
    let payload = match &stored.payload {
        GlobalPayload::Blank => StoredPayload::Blank,
        GlobalPayload::Command(bytes) => StoredPayload::Normal(bytes.clone()),
        GlobalPayload::Membership(bytes) => {
            StoredPayload::Members(codec::decode(bytes).map_err(invalid_data)?)
        }
    };
    StoredEntry { id: stored_id(stored.id), payload }.into_entry()
}

fn stored_id(id: GlobalLogId) -> StoredLogId {
    StoredLogId { term: id.term, index: id.index }
}

fn global_id(id: &LogId) -> GlobalLogId {
    GlobalLogId { term: id.committed_leader_id().term, index: id.index() }
}

impl Store {
    fn load(region: Arc<dyn Region>, incarnation: Incarnation) -> io::Result<Self> {
        let view = region.view();
        let stored = &view.federation().global;
        let mut memory = LogMemory::default();
        if let Some(vote) = &stored.vote {
            memory.vote = Some(codec::decode::<StoredVote>(vote).map_err(invalid_data)?.into());
        }
        if let Some(purged) = stored.purged {
            memory.purge(stored_id(purged).into());
        }
        let mut expected = stored.purged.map(|id| id.index + 1);
        for (index, entry) in &stored.log {
            if expected.is_some_and(|expected| expected != *index) {
                let reason = format!("the stored log of the global group has a gap before entry {index}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
            expected = Some(index + 1);
            memory.push(engine_entry(entry)?);
        }
        memory.committed = stored.applied.map(|id| stored_id(id).into());
        Ok(Self { region, incarnation, memory: Arc::new(Mutex::new(memory)) })
    }

    /// Changes what the region stores. Queued before this returns.
    fn change(&self, change: GlobalChange) -> impl Future<Output = io::Result<()>> + Send + use<> {
        let proposed = self.region.propose(Command::Global { incarnation: self.incarnation, change });
        async move { applied(proposed.await?) }
    }
}

/// The engine treats a storage error as final, which is right: this tenure is over.
fn applied(outcome: Outcome) -> io::Result<()> {
    match outcome {
        Outcome::Applied => Ok(()),
        other => {
            Err(io::Error::other(format!("the region answered {other:?}: another leader has taken over")))
        }
    }
}

impl RaftLogStorage<TypeConfig> for Store {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let memory = self.memory.lock();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last() })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader(self.memory.clone())
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let bytes = codec::encode(&StoredVote::from(vote)).map_err(invalid_data)?;
        self.change(GlobalChange::Vote(bytes.into())).await?;
        self.memory.lock().vote = Some(*vote);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.memory.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut stored = Vec::new();
        {
            let mut memory = self.memory.lock();
            for entry in entries {
                stored.push(stored_global(&entry)?);
                memory.push(entry);
            }
        }
        // The regional commit runs beside the sending to other regions, not before it.
        let change = self.change(GlobalChange::Append(stored));
        if mutant::is(Mutant::GlobalAckBeforeCommit) {
            tokio::spawn(change);
            callback.io_completed(Ok(()));
            return Ok(());
        }
        tokio::spawn(async move { callback.io_completed(change.await) });
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let index = last.map(|id| id.index());
        self.memory.lock().truncate_from(index.map_or(0, |i| i + 1));
        self.change(GlobalChange::TruncateAfter(index)).await
    }

    async fn purge(&mut self, id: LogId) -> Result<(), io::Error> {
        self.memory.lock().purge(id);
        self.change(GlobalChange::Purge(global_id(&id))).await
    }
}

/// The engine's state machine: the region's tree, which applies what the group has agreed on.
pub(crate) struct Machine {
    region: Arc<dyn Region>,
    incarnation: Incarnation,
    /// The snapshot built last.
    built: Option<(SnapshotMetaOf<TypeConfig>, Arc<dyn RegionView>)>,
}

fn meta_of(view: &dyn RegionView) -> io::Result<SnapshotMetaOf<TypeConfig>> {
    let stored = &view.federation().global;
    let members = match &stored.membership {
        Some(bytes) => codec::decode::<StoredMembers>(bytes).map_err(invalid_data)?.into_members()?,
        None => Members::default(),
    };
    Ok(SnapshotMetaOf::<TypeConfig> {
        last_log_id: stored.applied.map(|id| stored_id(id).into()),
        last_membership: members,
    })
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Snapshot;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Members), io::Error> {
        let meta = meta_of(&*self.region.view())?;
        Ok((meta.last_log_id, meta.last_membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let (mut upto, mut responders) = (None, Vec::new());
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            upto = Some(entry.log_id.index());
            debug_assert!(!matches!(entry.payload, EntryPayload::Normal(ref p) if p.0.is_empty()));
            responders.extend(responder);
        }
        let Some(upto) = upto else { return Ok(()) };
        let change = GlobalChange::Commit(upto);
        applied(self.region.propose(Command::Global { incarnation: self.incarnation, change }).await?)?;
        for responder in responders {
            responder.send(Vec::new());
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let view = self.region.view();
        self.built = meta_of(&*view).ok().map(|meta| (meta, view.clone()));
        Builder { view }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: Snapshot,
    ) -> Result<(), io::Error> {
        let Snapshot::Staged(transfer) = snapshot else { return Ok(()) };
        let last = meta.last_log_id.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
        let members = StoredMembers::from(&meta.last_membership);
        let global = GlobalInstall {
            incarnation: self.incarnation,
            applied: global_id(last),
            membership: codec::encode(&members).map_err(invalid_data)?.into(),
        };
        let command = Command::Install { orderer: Orderer::Global, transfer, global: Some(global) };
        applied(self.region.propose(command).await?)?;
        // A snapshot that turned out damaged was refused at apply.
        if self.region.view().federation().global.applied != Some(global_id(last)) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot was refused as damaged"));
        }
        self.built = None;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, Snapshot>>, io::Error> {
        Ok(self.built.as_ref().map(|(meta, view)| SnapshotOf::<TypeConfig, Snapshot> {
            meta: meta.clone(),
            snapshot: Snapshot::View(view.clone()),
        }))
    }
}

/// A snapshot costs nothing until it is sent: it is a view.
pub(crate) struct Builder {
    view: Arc<dyn RegionView>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Snapshot;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, Snapshot>, io::Error> {
        let meta = meta_of(&*self.view)?;
        Ok(SnapshotOf::<TypeConfig, Snapshot> { meta, snapshot: Snapshot::View(self.view.clone()) })
    }
}
