//! The consensus engine as both levels use it.
//!
//! This module, the region's glue (in the node) and the global group's ([`crate::global`]) are the only
//! ones that name openraft. Here are the types that both levels share: what stands in a log, what is
//! stored and sent (in records of our own, never in the engine's layout), and how the engine's calls
//! travel over [`rpc`] connections, with appends pipelined.

mod runtime;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, Stream, StreamExt};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::{BasicNode, leader_id_std};
use openraft::network::{RPCOption, v2::RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::storage::{RaftLogReader, RaftStateMachine};
use openraft::type_config::alias::{
    CommittedLeaderIdOf, EntryOf, EntryPayloadOf, LogIdOf, SnapshotOf, VoteOf,
};
use openraft::{EntryPayload, Membership, StoredMembership};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use meridian_seam::clock::millis;
use meridian_seam::{codec, limits, rpc};

use crate::state::Outcome;

openraft::declare_raft_types!(
    /// The engine's types, the same at both levels.
    pub TypeConfig:
        D = Payload,
        R = Vec<Outcome>,
        NodeId = u64,
        Node = BasicNode,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = runtime::Runtime,
);

/// An entry of a log.
pub type Entry = EntryOf<TypeConfig>;
/// Identity of an entry: term and index.
pub type LogId = LogIdOf<TypeConfig>;
/// A vote.
pub type Vote = VoteOf<TypeConfig>;
/// The members of a group, with the entry that set them.
pub type Members = StoredMembership<CommittedLeaderIdOf<TypeConfig>, u64, BasicNode>;

/// What an entry proposes: bytes that only the state machine reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload(pub Bytes);

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Makes the identity of an entry.
pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}

/// A vote as it is stored and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredVote {
    term: u64,
    voted_for: u64,
    committed: bool,
}

impl From<&Vote> for StoredVote {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, voted_for: vote.leader_id.voted_for, committed: vote.committed }
    }
}

impl From<StoredVote> for Vote {
    fn from(stored: StoredVote) -> Self {
        let leader_id = leader_id_std::LeaderId { term: stored.term, voted_for: stored.voted_for };
        Vote { leader_id, committed: stored.committed }
    }
}

/// The identity of an entry as it is stored and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredLogId {
    /// The term.
    pub term: u64,
    /// The index.
    pub index: u64,
}

impl From<&LogId> for StoredLogId {
    fn from(id: &LogId) -> Self {
        Self { term: id.committed_leader_id().term, index: id.index() }
    }
}

impl From<StoredLogId> for LogId {
    fn from(stored: StoredLogId) -> Self {
        log_id(stored.term, stored.index)
    }
}

/// The members of a group as they are stored and sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMembers {
    /// The entry that set them.
    pub log_id: Option<StoredLogId>,
    /// Voters; two sets while a change is under way.
    pub configs: Vec<BTreeSet<u64>>,
    /// Addresses of all, voters and learners.
    pub nodes: BTreeMap<u64, String>,
}

impl StoredMembers {
    fn of(log_id: Option<StoredLogId>, membership: &Membership<u64, BasicNode>) -> Self {
        Self {
            log_id,
            configs: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
        }
    }

    /// The engine's form.
    ///
    /// # Errors
    /// If a voter has no address.
    pub fn into_members(self) -> io::Result<Members> {
        let log_id = self.log_id.map(LogId::from);
        if self.configs.is_empty() {
            // What a group has before it is formed.
            return Ok(Members::new(log_id, Membership::default()));
        }
        Ok(Members::new(log_id, self.membership()?))
    }

    fn membership(self) -> io::Result<Membership<u64, BasicNode>> {
        let nodes: BTreeMap<u64, BasicNode> =
            self.nodes.into_iter().map(|(id, addr)| (id, BasicNode { addr })).collect();
        Membership::new(self.configs, nodes)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
    }
}

impl From<&Members> for StoredMembers {
    fn from(members: &Members) -> Self {
        Self::of(members.log_id().as_ref().map(StoredLogId::from), members.membership())
    }
}

/// An entry as it is stored and sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredEntry {
    /// Its identity.
    pub id: StoredLogId,
    /// Its content.
    pub payload: StoredPayload,
}

/// The content of a stored entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoredPayload {
    /// A new leader's first entry.
    Blank,
    /// A proposal.
    Normal(Bytes),
    /// A change of members.
    Members(StoredMembers),
}

impl From<&Entry> for StoredEntry {
    fn from(entry: &Entry) -> Self {
        let payload = match &entry.payload {
            EntryPayload::Blank => StoredPayload::Blank,
            EntryPayload::Normal(Payload(bytes)) => StoredPayload::Normal(bytes.clone()),
            EntryPayload::Membership(membership) => {
                StoredPayload::Members(StoredMembers::of(None, membership))
            }
        };
        Self { id: (&entry.log_id).into(), payload }
    }
}

impl StoredEntry {
    /// The engine's form.
    ///
    /// # Errors
    /// If it names members that are no valid group.
    pub fn into_entry(self) -> io::Result<Entry> {
        let payload = match self.payload {
            StoredPayload::Blank => EntryPayload::Blank,
            StoredPayload::Normal(bytes) => EntryPayload::Normal(Payload(bytes)),
            StoredPayload::Members(members) => EntryPayload::Membership(members.membership()?),
        };
        Ok(Entry { log_id: self.id.into(), payload })
    }
}

/// A log as the engine reads it, with the positions that go with it: the newest entries whole, of older ones perhaps
/// only where they stand. What makes entries durable, and where the older ones are read, is elsewhere.
#[derive(Debug, Default)]
pub struct LogMemory {
    /// The vote saved last.
    pub vote: Option<Vote>,
    /// The committed position saved last.
    pub committed: Option<LogId>,
    /// The entry up to which the log is purged.
    pub purged: Option<LogId>,
    entries: VecDeque<Kept>,
    /// How many entries, the oldest, are kept without their payloads.
    forgotten: usize,
    /// About the bytes of all entries, counted as [`Kept::start`] is.
    end: usize,
}

#[derive(Debug)]
struct Kept {
    /// About the bytes of all entries before it, counted from some entry that may be purged.
    start: usize,
    id: LogId,
    /// `None` once it has been forgotten.
    payload: Option<Box<EntryPayloadOf<TypeConfig>>>,
}

/// The entries of a range of indices, as far as they are in memory.
#[derive(Debug, Default)]
pub struct Found {
    /// Indices of entries before the others whose payloads are forgotten.
    pub forgotten: Option<RangeInclusive<u64>>,
    /// The others.
    pub entries: Vec<Entry>,
}

impl LogMemory {
    /// Whether nothing was ever stored.
    pub fn is_pristine(&self) -> bool {
        self.vote.is_none() && self.last().is_none()
    }

    /// About the bytes that the entries behind this one take.
    pub fn bytes_behind(&self, index: Option<u64>) -> usize {
        let covered = self.entries.partition_point(|kept| Some(kept.id.index()) <= index);
        self.end - self.start_of(covered)
    }

    /// The last entry, or the one up to which the log is purged.
    pub fn last(&self) -> Option<LogId> {
        self.entries.back().map(|kept| kept.id).or(self.purged)
    }

    /// Appends the entry that follows the last one.
    pub fn push(&mut self, entry: Entry) {
        let bytes = weight(&entry);
        self.entries.push_back(Kept {
            start: self.end,
            id: entry.log_id,
            payload: Some(Box::new(entry.payload)),
        });
        self.end += bytes;
    }

    /// Removes the entries from this index on.
    pub fn truncate_from(&mut self, index: u64) {
        let left = self.entries.partition_point(|kept| kept.id.index() < index);
        self.end = self.start_of(left);
        self.entries.truncate(left);
        self.forgotten = self.forgotten.min(left);
    }

    /// Removes the entries up to this one.
    pub fn purge(&mut self, id: LogId) {
        let purged = self.entries.partition_point(|kept| kept.id.index() <= id.index());
        self.entries.drain(..purged);
        self.forgotten = self.forgotten.saturating_sub(purged);
        self.purged = Some(id);
    }

    /// Forgets the payloads of entries up to this index, which can be read elsewhere from now on, but for the newest
    /// ones of about `bytes_kept`.
    pub fn forget(&mut self, index: u64, bytes_kept: usize) {
        while let Some(kept) = self.entries.get_mut(self.forgotten)
            && kept.id.index() <= index
            && self.end - kept.start > bytes_kept
        {
            kept.payload = None;
            self.forgotten += 1;
        }
    }

    /// The last entry to purge so that about `bytes_kept` of entries stay; none if there are no more.
    pub fn purge_point(&self, bytes_kept: usize) -> Option<u64> {
        let beyond = self.entries.partition_point(|kept| self.end - kept.start > bytes_kept);
        Some(self.entries.get(beyond.checked_sub(1)?)?.id.index())
    }

    /// The entries of a range of indices, at most `bytes_max` of them but at least one if there is one.
    pub fn range(&self, range: &impl RangeBounds<u64>, bytes_max: usize) -> Found {
        let Some(first) = self.entries.front().map(|kept| kept.id.index()) else { return Found::default() };
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => first,
        };
        let skip = usize::try_from(start.saturating_sub(first)).unwrap_or(usize::MAX);
        let mut found = Found::default();
        for (place, kept) in self.entries.iter().enumerate().skip(skip) {
            let index = kept.id.index();
            let bytes = self.start_of(place + 1) - self.start_of(skip);
            if !range.contains(&index) || (bytes > bytes_max && place > skip) {
                break;
            }
            match &kept.payload {
                Some(payload) => found.entries.push(Entry { log_id: kept.id, payload: (**payload).clone() }),
                None => {
                    let from = found.forgotten.as_ref().map_or(index, |forgotten| *forgotten.start());
                    found.forgotten = Some(from..=index);
                }
            }
        }
        found
    }

    /// About the bytes of all entries before this one, counted by its place.
    fn start_of(&self, place: usize) -> usize {
        self.entries.get(place).map_or(self.end, |kept| kept.start)
    }
}

/// Reads the entries of a log that is wholly in memory, for the engine and its replication tasks.
#[derive(Clone)]
pub struct LogReader(pub Arc<parking_lot::Mutex<LogMemory>>);

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + fmt::Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        Ok(self.0.lock().range(&range, usize::MAX).entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        Ok(self.0.lock().range(&(start..end), limits::BATCH_BYTES_MAX).entries)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.lock().vote)
    }
}

fn weight(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(payload) => payload.0.len() + 64,
        _ => 256,
    }
}

/// How long a log may grow.
#[derive(Clone, Copy, Debug)]
pub struct LogBounds {
    /// Bytes of new entries after which a snapshot is taken: bounds the time of a restart. A quarter of what the snapshot holds if that is more, up to eight times as much: so that what
    /// is written for snapshots stays in proportion to what is written for entries.
    pub bytes_per_snapshot: usize,
    /// Bytes of entries kept behind a snapshot for members that lag a little.
    pub bytes_kept: usize,
}

impl LogBounds {
    fn bytes_before_snapshot(&self, content_bytes: u64) -> usize {
        let quarter = usize::try_from(content_bytes / 4).unwrap_or(usize::MAX);
        quarter.clamp(self.bytes_per_snapshot, self.bytes_per_snapshot.saturating_mul(8))
    }
}

/// How often a log's length is looked at.
const LOG_CARE_INTERVAL: Duration = Duration::from_millis(500);

/// Takes snapshots as a log grows and purges what they cover, by bytes; the engine itself counts entries,
/// which differ in size by five orders of magnitude. `content_bytes` tells about how much a snapshot holds. Ends
/// with the engine.
pub async fn bound_log<SM: RaftStateMachine<TypeConfig>>(
    raft: openraft::Raft<TypeConfig, SM>,
    memory: Arc<parking_lot::Mutex<LogMemory>>,
    bounds: LogBounds,
    content_bytes: impl Fn() -> u64,
) {
    let mut interval = tokio::time::interval(LOG_CARE_INTERVAL);
    loop {
        interval.tick().await;
        let covered = raft.metrics().borrow_watched().snapshot.map(|id| id.index());
        let (uncovered_bytes, purge_point) = {
            let memory = memory.lock();
            (memory.bytes_behind(covered), memory.purge_point(bounds.bytes_kept))
        };
        let mut cared = Ok(());
        if uncovered_bytes > bounds.bytes_before_snapshot(content_bytes()) {
            // Asked for in vain while the one before is being written, and again the next time.
            cared = raft.trigger().snapshot().await;
        }
        if let (Ok(()), Some(point), Some(covered)) = (&cared, purge_point, covered) {
            cared = raft.trigger().purge_log(point.min(covered)).await;
        }
        if cared.is_err() {
            return;
        }
    }
}

/// The range of time without a leader after which a member calls an election, as the engine wants it, in ms. After a
/// leader it waits for a lease, which is its own longest timeout, and then for a timeout drawn from its range; so half
/// of the longest is the lease. Its shortest timeout is also how long it waits for a vote: never less than half of a
/// lease.
pub fn timeouts_ms((shortest, longest): (Duration, Duration)) -> (u64, u64) {
    let lease = millis(longest).div_ceil(2);
    (millis(shortest).saturating_sub(lease).max(lease.div_ceil(2)), lease)
}

/// A failure to encode or decode, as the engine wants it.
pub fn invalid_data(error: codec::CodecError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Kinds of requests between the members of a group, for [`rpc`].
pub mod kind {
    /// An `AppendMessage`, answered with an `AppendReply`.
    pub const APPEND: u8 = 1;
    /// A `VoteMessage`, answered with a `VoteReply`.
    pub const VOTE: u8 = 2;
    /// A `VoteMessage` that asks what a vote would bring.
    pub const PRE_VOTE: u8 = 3;
    /// A `TransferMessage`, answered with a truth value.
    pub const TRANSFER_LEADER: u8 = 4;
    /// First kind that the engine does not use.
    pub const FIRST_FREE: u8 = 16;
}

#[derive(Debug, Serialize, Deserialize)]
struct AppendMessage {
    vote: StoredVote,
    prev: Option<StoredLogId>,
    entries: Vec<StoredEntry>,
    committed: Option<StoredLogId>,
}

#[derive(Debug, Serialize, Deserialize)]
enum AppendReply {
    Matching(Option<StoredLogId>),
    Conflict(StoredLogId),
    HigherVote(StoredVote),
}

#[derive(Debug, Serialize, Deserialize)]
struct VoteMessage {
    vote: StoredVote,
    last: Option<StoredLogId>,
    leadership_transfer: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct VoteReply {
    vote: StoredVote,
    granted: bool,
    last: Option<StoredLogId>,
}

#[derive(Debug, Serialize, Deserialize)]
struct TransferMessage {
    from: StoredVote,
    to: u64,
    last: Option<StoredLogId>,
}

/// How a group reaches one of its members.
pub trait Link: Clone + Send + Sync + 'static {
    /// A snapshot as the member's state machine keeps it.
    type Snapshot: Send + 'static;

    /// A live connection, made anew if there is none.
    fn client(&self) -> BoxFuture<'_, io::Result<rpc::Client>>;

    /// Sends a whole snapshot and returns the member's vote.
    fn send_snapshot(
        &self,
        vote: StoredVote,
        snapshot: SnapshotOf<TypeConfig, Self::Snapshot>,
    ) -> BoxFuture<'_, io::Result<StoredVote>>;
}

/// The engine's network over a [`Link`].
pub struct Network<L> {
    link: L,
    /// An append or vote that is not answered for so long is given up.
    timeout: Duration,
}

impl<L: Link> Network<L> {
    /// A network to one member.
    pub fn new(link: L, timeout: Duration) -> Self {
        Self { link, timeout }
    }

    async fn ask<T: for<'a> Deserialize<'a>>(
        &self,
        kind: u8,
        message: &impl Serialize,
    ) -> Result<T, RPCError<TypeConfig>> {
        let body = codec::encode(message).map_err(NetworkError::from_string)?;
        let asking = async {
            let client = self.link.client().await?;
            client.call(kind, body.into()).await
        };
        let reply = match tokio::time::timeout(self.timeout, asking).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => return Err(Unreachable::new(&error).into()),
            Err(_) => return Err(Unreachable::from_string("no answer in time").into()),
        };
        codec::decode(&reply).map_err(|e| NetworkError::from_string(e).into())
    }
}

fn append_message(request: &AppendEntriesRequest<TypeConfig>) -> AppendMessage {
    AppendMessage {
        vote: (&request.vote).into(),
        prev: request.prev_log_id.as_ref().map(StoredLogId::from),
        entries: request.entries.iter().map(StoredEntry::from).collect(),
        committed: request.leader_commit.as_ref().map(StoredLogId::from),
    }
}

fn append_request(message: AppendMessage) -> io::Result<AppendEntriesRequest<TypeConfig>> {
    Ok(AppendEntriesRequest {
        vote: message.vote.into(),
        prev_log_id: message.prev.map(LogId::from),
        entries: message.entries.into_iter().map(StoredEntry::into_entry).collect::<io::Result<_>>()?,
        leader_commit: message.committed.map(LogId::from),
    })
}

impl From<AppendReply> for StreamAppendResult<TypeConfig> {
    fn from(reply: AppendReply) -> Self {
        match reply {
            AppendReply::Matching(upto) => Ok(upto.map(LogId::from)),
            AppendReply::Conflict(at) => Err(StreamAppendError::Conflict(at.into())),
            AppendReply::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote.into())),
        }
    }
}

type StreamResult = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;
type OpenedStream<'s> = Result<Pin<Box<dyn Stream<Item = StreamResult> + Send + 's>>, RPCError<TypeConfig>>;

impl<L: Link> RaftNetworkV2<TypeConfig> for Network<L> {
    type SnapshotData = L::Snapshot;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let reply: AppendReply = self.ask(kind::APPEND, &append_message(&request)).await?;
        Ok(match reply {
            AppendReply::Matching(_) => AppendEntriesResponse::Success,
            AppendReply::Conflict(_) => AppendEntriesResponse::Conflict,
            AppendReply::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote.into()),
        })
    }

    /// Keeps up to [`limits::APPENDS_IN_FLIGHT_MAX`] appends under way; the default awaits each reply, so
    /// that a write would wait for the one before it to cross the network and back.
    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        _option: RPCOption,
    ) -> Pin<Box<dyn Future<Output = OpenedStream<'s>> + Send + 's>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let timeout = self.timeout;
        Box::pin(async move {
            // It comes after the pause that the engine makes when the attempt before has failed. Whoever connects
            // first makes none, and a member that is gone costs the leader a whole processor.
            let Some(first) = input.next().await else { return Ok(stream::empty().boxed()) };
            let connecting = tokio::time::timeout(timeout, self.link.client());
            let client = match connecting.await {
                Ok(Ok(client)) => client,
                Ok(Err(error)) => return Err(Unreachable::new(&error).into()),
                Err(_) => return Err(Unreachable::from_string("no connection in time").into()),
            };
            let replies = stream::once(std::future::ready(first))
                .chain(input)
                .map(move |request| {
                    // The call is queued here, in the order of the stream; only its reply is awaited later.
                    let call = codec::encode(&append_message(&request))
                        .map(|body| client.call(kind::APPEND, body.into()));
                    async move { append_reply(call, timeout).await }
                })
                .buffered(limits::APPENDS_IN_FLIGHT_MAX);
            let replies: BoxStream<'s, StreamResult> = replies.boxed();
            Ok(replies)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask(kind::VOTE, &vote_message(&request)).await.map(vote_response)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask(kind::PRE_VOTE, &vote_message(&request)).await.map(vote_response)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, L::Snapshot>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            biased;
            sent = self.link.send_snapshot((&vote).into(), snapshot) => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote.into())),
                Err(error) => Err(Unreachable::new(&error).into()),
            },
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = TransferMessage {
            from: request.from_leader().into(),
            to: *request.to_node_id(),
            last: request.last_log_id().map(StoredLogId::from),
        };
        self.ask::<()>(kind::TRANSFER_LEADER, &message).await?;
        Ok(Ok(()))
    }
}

async fn append_reply(
    call: Result<impl Future<Output = io::Result<Bytes>>, codec::CodecError>,
    timeout: Duration,
) -> StreamResult {
    let call = call.map_err(NetworkError::from_string)?;
    let reply = match tokio::time::timeout(timeout, call).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(error)) => return Err(Unreachable::new(&error).into()),
        Err(_) => return Err(Unreachable::from_string("no answer in time").into()),
    };
    let reply: AppendReply = codec::decode(&reply).map_err(NetworkError::from_string)?;
    Ok(reply.into())
}

fn vote_message(request: &VoteRequest<TypeConfig>) -> VoteMessage {
    VoteMessage {
        vote: (&request.vote).into(),
        last: request.last_log_id.as_ref().map(StoredLogId::from),
        leadership_transfer: request.leadership_transfer,
    }
}

fn vote_response(reply: VoteReply) -> VoteResponse<TypeConfig> {
    VoteResponse {
        vote: reply.vote.into(),
        vote_granted: reply.granted,
        last_log_id: reply.last.map(LogId::from),
    }
}

/// Answers the engine's requests of one connection. Appends are handed on in the order in which they
/// arrive, several at a time.
pub struct Responder<SM>
where
    SM: RaftStateMachine<TypeConfig>,
{
    raft: openraft::Raft<TypeConfig, SM>,
    appends: mpsc::Sender<Append>,
}

/// An append to be handed to the engine, and where its reply goes.
type Append = (AppendEntriesRequest<TypeConfig>, oneshot::Sender<AppendReply>);

impl<SM: RaftStateMachine<TypeConfig>> Responder<SM> {
    /// A responder for one connection.
    pub fn new(raft: openraft::Raft<TypeConfig, SM>) -> Arc<Self> {
        let (appends, queue) = mpsc::channel(limits::RPC_REQUESTS_MAX);
        tokio::spawn(run_appends(raft.clone(), queue));
        Arc::new(Self { raft, appends })
    }

    /// Answers one of the engine's requests (see [`kind`]).
    pub fn handle(&self, kind: u8, body: &Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        match kind {
            kind::APPEND => self.append(body),
            kind::VOTE | kind::PRE_VOTE => self.vote(body, kind == kind::PRE_VOTE),
            kind::TRANSFER_LEADER => self.transfer(body),
            other => Box::pin(async move { Err(format!("request kind {other} is not known")) }),
        }
    }

    fn append(&self, body: &Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        let (reply, answer) = oneshot::channel();
        let queued = decode(body)
            .and_then(|message| append_request(message).map_err(|e| e.to_string()))
            .and_then(|request| self.appends.try_send((request, reply)).map_err(|e| e.to_string()));
        Box::pin(async move {
            queued?;
            encode(&answer.await.map_err(|_| "the group has stopped".to_string())?)
        })
    }

    fn vote(&self, body: &Bytes, pre: bool) -> BoxFuture<'static, Result<Bytes, String>> {
        let (raft, message) = (self.raft.clone(), decode::<VoteMessage>(body));
        Box::pin(async move {
            let message = message?;
            let request = VoteRequest {
                vote: message.vote.into(),
                last_log_id: message.last.map(LogId::from),
                leadership_transfer: message.leadership_transfer,
            };
            let response = if pre { raft.pre_vote(request).await } else { raft.vote(request).await };
            let response = response.map_err(|e| e.to_string())?;
            encode(&VoteReply {
                vote: (&response.vote).into(),
                granted: response.vote_granted,
                last: response.last_log_id.as_ref().map(StoredLogId::from),
            })
        })
    }

    fn transfer(&self, body: &Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        let (raft, message) = (self.raft.clone(), decode::<TransferMessage>(body));
        Box::pin(async move {
            let message = message?;
            let request =
                TransferLeaderRequest::new(message.from.into(), message.to, message.last.map(LogId::from));
            match raft.handle_transfer_leader(request).await {
                Ok(Ok(())) => encode(&()),
                Ok(Err(refused)) => Err(refused.to_string()),
                Err(fatal) => Err(fatal.to_string()),
            }
        })
    }
}

/// Feeds the appends of one connection to the engine. A refusal ends the engine's stream: what was sent
/// behind it is dropped (the sender starts over), and a new stream takes what comes next.
async fn run_appends<SM: RaftStateMachine<TypeConfig>>(
    raft: openraft::Raft<TypeConfig, SM>,
    mut queue: mpsc::Receiver<Append>,
) {
    loop {
        let (requests, feed) =
            mpsc::channel::<AppendEntriesRequest<TypeConfig>>(limits::APPENDS_IN_FLIGHT_MAX);
        let feed =
            futures::stream::unfold(feed, |mut feed| async move { feed.recv().await.map(|r| (r, feed)) });
        let mut results = std::pin::pin!(raft.stream_append(feed));
        let mut unanswered = VecDeque::new();
        loop {
            tokio::select! {
                biased;
                result = results.next() => {
                    let Some(reply) = unanswered.pop_front() else { return };
                    let Some(Ok(result)) = result else { return };
                    let failed = result.is_err();
                    let _: Result<(), AppendReply> = oneshot::Sender::send(reply, append_reply_of(result));
                    if failed {
                        break;
                    }
                }
                taken = queue.recv(), if unanswered.len() < limits::APPENDS_IN_FLIGHT_MAX => {
                    let Some((request, reply)) = taken else { return };
                    unanswered.push_back(reply);
                    if requests.send(request).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

fn append_reply_of(result: StreamAppendResult<TypeConfig>) -> AppendReply {
    match result {
        Ok(upto) => AppendReply::Matching(upto.as_ref().map(StoredLogId::from)),
        Err(StreamAppendError::Conflict(at)) => AppendReply::Conflict((&at).into()),
        Err(StreamAppendError::HigherVote(vote)) => AppendReply::HigherVote((&vote).into()),
    }
}

fn decode<T: for<'a> Deserialize<'a>>(body: &Bytes) -> Result<T, String> {
    codec::decode(body).map_err(|e| e.to_string())
}

fn encode(value: &impl Serialize) -> Result<Bytes, String> {
    codec::encode(value).map(Bytes::from).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(index: u64, bytes: usize) -> Entry {
        Entry { log_id: log_id(1, index), payload: EntryPayload::Normal(Payload(vec![0; bytes].into())) }
    }

    proptest! {
        /// The bytes are those of the entries that are there, whatever was cut off at either end.
        #[test]
        fn bytes_are_counted(
            ops in proptest::collection::vec((0u8..8, 0u64..40, 0usize..500), 0..200),
            kept in 0usize..3_000,
        ) {
            let (mut memory, mut model) = (LogMemory::default(), VecDeque::new());
            let mut next = 1;
            for (op, index, bytes) in ops {
                let first = model.front().map_or(next, |(index, _)| *index);
                let index = (first + index).min(next - 1);
                match op {
                    0 => {
                        memory.purge(log_id(1, index));
                        model.retain(|(i, _)| *i > index);
                    }
                    1 if index >= first => {
                        memory.truncate_from(index);
                        model.retain(|(i, _)| *i < index);
                        next = index;
                    }
                    2 => memory.forget(index, kept),
                    _ => {
                        memory.push(entry(next, bytes));
                        model.push_back((next, weight(&entry(next, bytes))));
                        next += 1;
                    }
                }
                let behind = |covered| model.iter().filter(|(i, _)| *i > covered).map(|(_, bytes)| *bytes).sum::<usize>();
                prop_assert_eq!(memory.bytes_behind(Some(index)), behind(index));
                prop_assert_eq!(memory.bytes_behind(None), behind(0));
                let found = memory.range(&(first..next), usize::MAX);
                let forgotten = found.forgotten.map_or(0, |indices| indices.count());
                prop_assert_eq!(forgotten + found.entries.len(), model.len());
                prop_assert!(found.entries.iter().zip(model.iter().skip(forgotten)).all(|(e, (i, _))| e.log_id.index() == *i));
                let point = model.iter().rev().find(|(i, bytes)| behind(*i) + bytes > kept).map(|(i, _)| *i);
                prop_assert_eq!(memory.purge_point(kept), point);
            }
        }

        /// Those forgotten come first, within the same bound of bytes, which only a first entry may exceed.
        #[test]
        fn a_range_is_bounded_whether_or_not_it_is_in_memory(
            sizes in proptest::collection::vec(0usize..500, 1..40), forgotten in 0u64..40, from in 1u64..40, max in 0usize..4_000,
        ) {
            let mut memory = LogMemory::default();
            for (index, bytes) in (1..).zip(&sizes) {
                memory.push(entry(index, *bytes));
            }
            let whole = memory.range(&(from..), max);
            prop_assert!(whole.forgotten.is_none());
            let bytes: usize = whole.entries.iter().map(weight).sum();
            prop_assert!(bytes <= max || whole.entries.len() == 1);
            prop_assert_eq!(whole.entries.is_empty(), from > sizes.len() as u64);
            memory.forget(forgotten, 0);
            let part = memory.range(&(from..), max);
            let indices = part.forgotten.into_iter().flatten().chain(part.entries.iter().map(|e| e.log_id.index()));
            prop_assert_eq!(indices.collect::<Vec<_>>(), whole.entries.iter().map(|e| e.log_id.index()).collect::<Vec<_>>());
            prop_assert!(part.entries.iter().all(|entry| entry.log_id.index() > forgotten));
        }

        #[test]
        fn an_election_is_called_within_the_range(heartbeat in 1_u64..5_000, more in 1_u64..20_000, spread in 1_u64..20_000) {
            let shortest = 3 * heartbeat + more;
            let longest = shortest + spread;
            let (least, lease) = timeouts_ms((Duration::from_millis(shortest), Duration::from_millis(longest)));
            prop_assert!(heartbeat < least && least < lease, "what the engine asks for");
            prop_assert!(shortest <= lease + least && 2 * lease <= longest + 1);
        }
    }

    #[test]
    fn half_of_the_longest_time_is_the_lease() {
        let timeouts = |shortest, longest| {
            timeouts_ms((Duration::from_millis(shortest), Duration::from_millis(longest)))
        };
        assert_eq!(timeouts(900, 1_200), (300, 600));
        assert_eq!(timeouts(750, 1_500), (375, 750), "later than the shortest, to wait for votes");
    }
}
