//! A region's replicated state and how the entries of its log change it.

use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::FixedState;
use imbl::{GenericHashMap, OrdMap, OrdSet};
use meridian_bridge::mesh::{LOCAL, Mesh, Orderer, RegionId};
use meridian_bridge::state::{self as federation, Caller, Content, Delivery, Federation};
use meridian_seam::mutant::{self, Mutant};
use meridian_seam::{codec, limits};
use meridian_wire::{Create, CreateMode, ErrorCode, EventType, OpCode, PASSWORD_LENGTH, Request, perms};
use serde::{Deserialize, Serialize};

use super::acl::permits;
use super::ensemble::{self, CONFIG_PATH, Change, Ensemble, ReconfigError};
use super::import;
use super::reap;
use super::request::{self, Context, Event};
use super::restore::{self, Restoring};
use super::snapshot::SubtreeSnapshot;
use super::{Batch, ClientRequest, Command, Outcome, Policy, Reply, SharedRequest};
use crate::tree::{Acl, Times, Tree, Znode, ZnodeRef, split_path};

/// Sessions by identifier.
pub type Sessions = GenericHashMap<i64, Session, FixedState, imbl::shared_ptr::DefaultSharedPtr>;

/// Everything that the servers of a region agree on. Cloning is cheap: a clone is a consistent view.
#[derive(Clone, Debug)]
pub struct State {
    /// This region.
    pub region: RegionId,
    /// The table of the mesh; empty until it is formed.
    pub mesh: Arc<Mesh>,
    /// The region's zxid of the last write applied.
    pub zxid: i64,
    /// The term of the last entry applied: a new one starts a new epoch of zxids.
    pub term: u64,
    /// The time of the last entry applied, ms since the Unix epoch.
    pub time_ms: i64,
    /// The znodes.
    pub tree: Tree,
    /// The open sessions.
    pub sessions: Sessions,
    /// The last request applied from each server: its start and its number.
    pub cursors: OrdMap<u8, (u32, u64)>,
    /// The federation's part.
    pub federation: Federation,
    /// The region's members.
    pub ensemble: Ensemble,
    /// How requests are judged.
    pub policy: Policy,
    /// A restore that is under way.
    pub restoring: Restoring,
}

/// The place of a request in an order: the same in every region.
#[derive(Clone, Copy)]
struct Place {
    orderer: Orderer,
    zxid: i64,
    time_ms: i64,
    /// Of the region that the request came from, at this place.
    lease_epoch: u64,
}

/// An open session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Ends if the session is not heard of for so long.
    pub timeout_ms: u32,
    /// What a client must know to take it up again.
    pub password: [u8; PASSWORD_LENGTH],
    /// The connection that may write.
    pub owner: Owner,
    /// Who has orders with ephemerals of this session, or may soon.
    #[serde(deserialize_with = "codec::collect")]
    pub shared: OrdSet<Orderer>,
}

/// A connection to a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The server.
    pub server: u8,
    /// The server's start.
    pub boot: u32,
    /// The server's number for the connection.
    pub connection: u64,
}

/// The place of an entry in the region's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The term it was proposed in.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

/// The server that applies: effects are collected for its own clients only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Me {
    /// The server.
    pub server: u8,
    /// Its start.
    pub boot: u32,
}

/// What a server must tell its clients after it has applied entries.
#[derive(Debug, Default)]
pub struct Effects {
    /// Changes that watches may wait for, in order.
    pub events: Vec<Event>,
    /// Whether one of them may stand for several changes of the same znode.
    pub has_skipped: bool,
    /// Answers to this server's own requests, in the order of the log.
    pub answers: Vec<Answer>,
    /// Sessions that ended.
    pub closed: Vec<ClosedSession>,
    /// Sessions taken up by a connection, which has become the only one that may write.
    pub moved: Vec<(i64, Owner)>,
    /// Sessions opened, with the timeouts, for whoever watches over them.
    pub opened: Vec<(i64, u32)>,
    /// What the federation's commands of the entry came to, in order.
    pub outcomes: Vec<federation::Outcome>,
}

/// An answer to a request of this server.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// The server's own number for the request.
    pub sequence: u64,
    /// The region's zxid at which it was decided.
    pub zxid: i64,
    /// The result.
    pub outcome: Outcome,
}

/// A session that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedSession {
    /// The session.
    pub session: i64,
    /// The connection that it had.
    pub owner: Owner,
    /// Whether its client asked for it.
    pub asked_for: bool,
}

impl State {
    /// The state of a region that has just been formed: a root, `/zookeeper` and its children.
    pub fn new(region: RegionId) -> Self {
        let mut tree = Tree::default();
        for path in ["/", "/zookeeper", "/zookeeper/config", "/zookeeper/quota"] {
            tree.put(path, bare_znode(LOCAL).as_ref());
        }
        Self {
            region,
            mesh: Arc::default(),
            zxid: 0,
            term: 0,
            time_ms: 0,
            tree,
            sessions: Sessions::default(),
            cursors: OrdMap::new(),
            federation: Federation { region, ..Federation::default() },
            ensemble: Ensemble::default(),
            policy: Policy::default(),
            restoring: Restoring::default(),
        }
    }

    /// Applies an entry of the log. An entry that is no batch changes nothing, on every server alike.
    pub fn apply(&mut self, term: u64, entry: &[u8], me: Me, effects: &mut Effects) {
        let batch: Batch<'_> = match codec::decode(entry) {
            Ok(batch) => batch,
            Err(error) => {
                tracing::error!(%error, term, "entry skipped");
                return;
            }
        };
        self.enter_term(term);
        self.time_ms = self.time_ms.max(batch.time_ms);
        for bytes in batch.commands {
            match codec::decode(bytes) {
                Ok(command) => Apply { state: self, me, effects }.command(command),
                Err(error) => tracing::error!(%error, term, "command skipped"),
            }
        }
    }

    /// Every leader's zxids have an epoch of their own: the first leader's the first, as in ZooKeeper, and the others'
    /// rise as the terms do. An epoch that has caught up with the terms goes on with them.
    fn enter_term(&mut self, term: u64) {
        if term <= self.term {
            return;
        }
        let before = i64::try_from(std::mem::replace(&mut self.term, term)).unwrap_or(i64::MAX);
        let (term, epoch) = (i64::try_from(term).unwrap_or(i64::MAX), self.zxid >> 32);
        let next = match before {
            0 => epoch.saturating_add(1),
            _ => epoch.saturating_add(1).max(term.min(epoch.saturating_add(term - before))),
        };
        self.zxid = self.zxid.max(next.min(i64::from(i32::MAX)) << 32);
    }

    fn next_zxid(&mut self) -> i64 {
        // A full counter runs over into the epoch, which is what is wanted.
        self.zxid = self.zxid.saturating_add(1);
        self.zxid
    }

    /// Goes on above a zxid of elsewhere; the last epoch that there can be is left to this region.
    pub(super) fn catch_up_with(&mut self, zxid: i64) {
        let newest = (i64::from(i32::MAX) << 32) - 1;
        self.zxid = self.zxid.max(zxid.min(newest));
    }

    /// Who orders the writes of a path: `None` if this region alone does.
    pub fn orderer_of(&self, path: &str) -> Option<Orderer> {
        self.mesh.orderer_of(self.mesh.subtree_of(path))
    }

    /// Whether a session owns ephemerals that another region or the global group orders: such a session
    /// must end when this region loses its lease.
    pub fn owns_ephemerals_elsewhere(&self, session: i64) -> bool {
        self.tree
            .ephemerals_of(session)
            .any(|path| self.orderer_of(path).is_some_and(|orderer| !self.federation.orders_here(orderer)))
    }

    /// The root of a shared subtree of a table where a znode of this region alone stands that holds something:
    /// the other regions don't have it, so that the mesh can't be formed before it is gone.
    pub fn in_the_way_of<'m>(&self, mesh: &'m Mesh) -> Option<&'m str> {
        let holds_something =
            |znode: ZnodeRef<'_>| znode.children > 0 || znode.data.is_some_and(|data| !data.is_empty());
        let mut roots = mesh.subtrees().map(|(_, subtree)| subtree.path.as_str());
        roots.find(|path| self.tree.get(path).is_some_and(holds_something))
    }

    /// Whether a znode belongs to what an orderer orders.
    pub(super) fn is_ordered_by(&self, subtree: meridian_bridge::mesh::SubtreeId, orderer: Orderer) -> bool {
        self.mesh.orderer_of(subtree) == Some(orderer)
    }
}

pub(super) fn bare_znode(subtree: meridian_bridge::mesh::SubtreeId) -> Znode {
    Znode {
        subtree,
        data: Some(Bytes::new()),
        acl: Arc::new([Acl::open()]),
        owner: 0,
        times: Times::default(),
    }
}

/// The identifiers of a region's sessions: the region is their highest byte.
pub fn sessions_of_region(region: RegionId) -> std::ops::RangeInclusive<i64> {
    let first = i64::from(region) << 56;
    first..=first | ((1 << 56) - 1)
}

/// One entry being applied.
struct Apply<'s, 'e> {
    state: &'s mut State,
    me: Me,
    effects: &'e mut Effects,
}

impl Apply<'_, '_> {
    fn command(&mut self, command: Command<'_>) {
        match command {
            Command::Client(request) => {
                if self.admit(request.caller) {
                    self.client(&request);
                }
            }
            Command::LocalClient(request) => {
                if self.admit(request.caller) {
                    self.local_client(&request);
                }
            }
            Command::OpenSession { caller, session, connection, timeout_ms, password } => {
                if self.admit(caller) {
                    self.open_session(caller, session, connection, timeout_ms, password);
                }
            }
            Command::MoveSession { caller, session, connection, password, timeout_ms } => {
                if self.admit(caller) {
                    self.move_session(caller, session, connection, password, timeout_ms);
                }
            }
            Command::ExpireSessions { sessions } => {
                for (session, owner) in sessions {
                    if self.state.sessions.get(&session).is_some_and(|s| s.owner == owner) {
                        self.state.next_zxid();
                        self.close_session(session, None);
                    }
                }
            }
            Command::FormMesh { mesh } => self.form_mesh(mesh),
            Command::Reap { paths, never_used_ms } => self.reap(&paths, never_used_ms),
            Command::SetPolicy(policy) => self.state.policy = policy,
            Command::Bridge(command) => {
                let time_ms = self.state.time_ms;
                let (outcome, deliveries) = self.state.federation.apply(command, time_ms);
                self.deliver(deliveries);
                self.effects.outcomes.push(outcome);
            }
            Command::FormEnsemble { members } => {
                if self.state.ensemble.members.is_empty() {
                    self.put_members_in_force(Arc::new(members));
                }
            }
            Command::ChangeMembers { version, members } => {
                let id = self.state.zxid;
                let ensemble = &mut self.state.ensemble;
                if ensemble.version == version && ensemble.change.is_none() {
                    let members = Arc::new(members);
                    ensemble.change = Some(Change { id, caller: Caller::default(), members });
                }
            }
            Command::MembersChanged { id, error } => self.end_change(id, error),
            Command::Restore(step) => {
                let first = self.effects.events.len();
                restore::apply(self.state, step, &mut self.effects.events);
                self.state.next_zxid();
                for event in &mut self.effects.events[first..] {
                    event.zxid = self.state.zxid;
                }
            }
            Command::Import(import) => {
                // Clients of the old ensemble must not find an older state here.
                self.state.catch_up_with(import.zxid);
                self.state.next_zxid();
                let mesh = self.state.mesh.clone();
                self.on_tree(|tree, events| import::apply(tree, &mesh, import, events));
            }
        }
    }

    /// Exactly once and in order: whether a request is the next one of its server. After a leader change
    /// servers send again what has not been answered.
    fn admit(&mut self, caller: Caller) -> bool {
        let (boot, last) = self.state.cursors.get(&caller.server).copied().unwrap_or((0, 0));
        let next = match caller.boot.cmp(&boot) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => {
                caller.sequence.checked_sub(1) == Some(last)
                    || mutant::is(Mutant::ResentWriteApplied) && caller.sequence <= last
            }
            std::cmp::Ordering::Greater => caller.sequence == 1,
        };
        if next {
            self.state.cursors.insert(caller.server, (caller.boot, caller.sequence));
        }
        next
    }

    fn answer(&mut self, caller: Caller, outcome: Outcome) {
        if caller.server == self.me.server && caller.boot == self.me.boot {
            let zxid = self.state.zxid;
            self.effects.answers.push(Answer { sequence: caller.sequence, zxid, outcome });
        }
    }

    fn open_session(
        &mut self,
        caller: Caller,
        session: i64,
        connection: u64,
        timeout_ms: u32,
        password: [u8; PASSWORD_LENGTH],
    ) {
        self.state.next_zxid();
        if self.state.sessions.len() >= limits::SESSIONS_MAX || self.state.sessions.contains_key(&session) {
            return self.answer(caller, Outcome::error(ErrorCode::SystemError));
        }
        let owner = Owner { server: caller.server, boot: caller.boot, connection };
        self.state.sessions.insert(session, Session { timeout_ms, password, owner, shared: OrdSet::new() });
        self.effects.opened.push((session, timeout_ms));
        self.answer(caller, Outcome::ok(Reply::Session(timeout_ms)));
    }

    fn move_session(
        &mut self,
        caller: Caller,
        session: i64,
        connection: u64,
        password: [u8; PASSWORD_LENGTH],
        timeout_ms: u32,
    ) {
        // Only the owner may take it up; an impostor learns nothing and disturbs nobody.
        let Some(found) = self.state.sessions.get_mut(&session).filter(|s| s.password == password) else {
            return self.answer(caller, Outcome::error(ErrorCode::SessionExpired));
        };
        found.owner = Owner { server: caller.server, boot: caller.boot, connection };
        found.timeout_ms = timeout_ms;
        let owner = found.owner;
        self.effects.moved.push((session, owner));
        self.effects.opened.push((session, timeout_ms));
        self.answer(caller, Outcome::ok(Reply::Session(timeout_ms)));
    }

    fn client(&mut self, request: &ClientRequest<'_>) {
        self.take_zxid(request);
        let owner = Owner {
            server: request.caller.server,
            boot: request.caller.boot,
            connection: request.connection,
        };
        let refusal = match self.state.sessions.get(&request.session) {
            None => Some(ErrorCode::SessionExpired),
            Some(session) if session.owner != owner && !mutant::is(Mutant::SessionMovedUnchecked) => {
                Some(ErrorCode::SessionMoved)
            }
            Some(_) => None,
        };
        if let Some(error) = refusal {
            return self.answer(request.caller, Outcome::error(error));
        }
        if request.op == OpCode::CloseSession as i32 {
            return self.close_session(request.session, Some(request.caller));
        }
        let decoded = OpCode::try_from(request.op).and_then(|op| Request::decode(op, request.body));
        let Ok(decoded) = decoded else {
            // Servers check before they propose; this is a request from a newer build.
            return self.answer(request.caller, Outcome::error(ErrorCode::MarshallingError));
        };
        self.judge(request, &decoded);
    }

    /// Every write has a zxid of its own; a change of members has it when it is in force.
    fn take_zxid(&mut self, request: &ClientRequest<'_>) {
        if request.op != OpCode::Reconfig as i32 {
            self.state.next_zxid();
        }
    }

    /// A write of a session that only its server knows: it can't own anything.
    fn local_client(&mut self, request: &ClientRequest<'_>) {
        self.take_zxid(request);
        let decoded = OpCode::try_from(request.op).and_then(|op| Request::decode(op, request.body));
        match decoded {
            Ok(decoded) if makes_ephemeral(&decoded) => {
                self.answer(request.caller, Outcome::error(ErrorCode::EphemeralOnLocalSession));
            }
            Ok(decoded) => self.judge(request, &decoded),
            Err(_) => self.answer(request.caller, Outcome::error(ErrorCode::MarshallingError)),
        }
    }

    /// Applies a write of a client that may write, or hands it to its orderer.
    fn judge(&mut self, request: &ClientRequest<'_>, decoded: &Request<'_>) {
        if let Request::Reconfig { joining, leaving, new_members, config_id } = *decoded {
            let asked = ensemble::Request { joining, leaving, new_members, version: config_id };
            return self.change_members(request, &asked);
        }
        if let Err(outcome) = self.state.policy.admits(decoded) {
            return self.answer(request.caller, outcome);
        }
        match route(&self.state.mesh, decoded) {
            Err(error) => self.answer(request.caller, Outcome::error(error)),
            Ok(None) => self.apply_local(request, decoded),
            Ok(_) if matches!(decoded, Request::Sync { .. }) && mutant::is(Mutant::SyncUnordered) => {
                self.apply_local(request, decoded)
            }
            Ok(Some(orderer)) => self.apply_shared(request, decoded, orderer),
        }
    }

    /// A client asks for other members: it is answered when they are in force.
    fn change_members(&mut self, request: &ClientRequest<'_>, asked: &ensemble::Request<'_>) {
        let writable = |znode: ZnodeRef<'_>| permits(znode.acl, perms::WRITE, request.identities);
        let may_write = self.state.tree.get(CONFIG_PATH).is_some_and(writable);
        // As in ZooKeeper, who asks for nonsense is told so whoever it is.
        match self.state.ensemble.plan(asked) {
            Ok(_) | Err(ReconfigError::Number(_)) if !may_write => {
                self.answer(request.caller, Outcome::error(ErrorCode::NoAuth));
            }
            Ok(members) => {
                let change =
                    Change { id: self.state.zxid, caller: request.caller, members: Arc::new(members) };
                self.state.ensemble.change = Some(change);
            }
            Err(error) => {
                tracing::info!(%error, "change of members refused");
                self.answer(request.caller, Outcome::error(error.code()));
            }
        }
    }

    fn end_change(&mut self, id: i64, error: i32) {
        let Some(change) = self.state.ensemble.change.take_if(|change| change.id == id) else { return };
        self.state.next_zxid();
        let outcome = match ErrorCode::try_from(error) {
            Ok(ErrorCode::Ok) => {
                self.put_members_in_force(change.members);
                let text = Bytes::from(self.state.ensemble.text());
                let stat = self.state.tree.get(CONFIG_PATH).map(|znode| znode.stat()).unwrap_or_default();
                Outcome::ok(Reply::Members(text, stat))
            }
            refusal => {
                self.state.ensemble.last_failure = Some((id, error));
                Outcome::error(refusal.unwrap_or(ErrorCode::SystemError))
            }
        };
        if change.caller.waits() {
            self.answer(change.caller, outcome);
        }
    }

    fn put_members_in_force(&mut self, members: Arc<ensemble::Members>) {
        let (zxid, time_ms) = (self.state.zxid, self.state.time_ms);
        self.state.ensemble.members = members;
        self.state.ensemble.version = zxid;
        let text = Bytes::from(self.state.ensemble.text());
        let acl: Arc<[Acl]> = Arc::new([Acl { perms: perms::READ, ..Acl::open() }]);
        self.on_tree(|tree, events| {
            tree.change(CONFIG_PATH, |znode| {
                znode.data = Some(text);
                znode.acl = acl.clone();
                znode.times.version = znode.times.version.wrapping_add(1);
                (znode.times.mzxid, znode.times.mtime) = (zxid, time_ms);
            });
            events.push(Event::new(EventType::NodeDataChanged, CONFIG_PATH, &acl));
        });
    }

    fn apply_local(&mut self, request: &ClientRequest<'_>, decoded: &Request<'_>) {
        let (mesh, zxid, time_ms) = (self.state.mesh.clone(), self.state.zxid, self.state.time_ms);
        let context = Context {
            mesh: &mesh,
            zxid,
            time_ms,
            session: request.session,
            identities: request.identities,
            enforce_quota: self.state.policy.enforce_quota,
        };
        let outcome = self.on_tree(|tree, events| request::apply(tree, &context, decoded, events));
        self.answer(request.caller, outcome);
    }

    /// Runs a change of the tree and stamps its events with the region's zxid.
    fn on_tree<R>(&mut self, change: impl FnOnce(&mut Tree, &mut Vec<Event>) -> R) -> R {
        let first = self.effects.events.len();
        let result = change(&mut self.state.tree, &mut self.effects.events);
        for event in &mut self.effects.events[first..] {
            event.zxid = self.state.zxid;
        }
        result
    }

    fn apply_shared(&mut self, request: &ClientRequest<'_>, decoded: &Request<'_>, orderer: Orderer) {
        if self.state.policy.enforce_quota
            && let Some(refusal) = request::exceeds_quota(&self.state.tree, decoded)
        {
            return self.answer(request.caller, refusal);
        }
        let lease_epoch = self.state.federation.own_lease_epoch(orderer);
        let mut may_own = false;
        if let Some(session) = self.state.sessions.get_mut(&request.session) {
            may_own = makes_ephemeral(decoded) || session.shared.contains(&orderer);
            if may_own && self.state.federation.awaits_end_of_lease(orderer) {
                tracing::debug!(
                    ?orderer,
                    "refused: its home has not told of the end of this region's lease yet"
                );
                return self.answer(request.caller, Outcome::error(ErrorCode::ConnectionLoss));
            }
            if may_own {
                session.shared.insert(orderer);
            }
        }
        let shared = SharedRequest::Client {
            session: request.session,
            lease_epoch,
            may_own,
            identities: request.identities,
            op: request.op,
            body: request.body,
        };
        let Ok(bytes) = codec::encode(&shared).map(Bytes::from) else {
            return self.answer(request.caller, Outcome::error(ErrorCode::MarshallingError));
        };
        if let Err(error) = self.send(orderer, request.caller, bytes) {
            self.answer(request.caller, Outcome::error(error));
        }
    }

    /// Hands a request to its orderer: this region if it is the home, else the outbox.
    fn send(&mut self, orderer: Orderer, caller: Caller, request: Bytes) -> Result<(), ErrorCode> {
        if let Orderer::Home(subtree) = orderer
            && self.state.federation.orders_here(orderer)
        {
            let content = Content::Request { region: self.state.region, sequence: 0, request };
            let time_ms = self.state.time_ms;
            let delivery = self.state.federation.order(subtree, time_ms, content);
            if let Some(Delivery::Request { orderer, zxid, time_ms, lease_epoch, request, .. }) = delivery {
                let place = Place { orderer, zxid, time_ms, lease_epoch };
                self.deliver_request(place, &request, Some(caller));
            }
            return Ok(());
        }
        if self.state.federation.send(orderer, caller, request) {
            Ok(())
        } else {
            Err(ErrorCode::ConnectionLoss)
        }
    }

    /// Does what orders and leases ask for. Sessions that end by it end last: where this region is home that makes
    /// records of its own, whose places come after those of all that is delivered.
    fn deliver(&mut self, deliveries: Vec<Delivery>) {
        let mut has_lapsed = false;
        let mut ended_in = Vec::new();
        for delivery in deliveries {
            match delivery {
                Delivery::Request { orderer, zxid, time_ms, lease_epoch, request, caller, .. } => {
                    self.state.next_zxid();
                    let place = Place { orderer, zxid, time_ms, lease_epoch };
                    self.deliver_request(place, &request, caller);
                }
                Delivery::ExpireRegion { orderer, zxid, region, .. } => {
                    self.expire_region(orderer, zxid, region);
                    ended_in.extend((region == self.state.region).then_some(orderer));
                }
                Delivery::LapseLease => has_lapsed = true,
                Delivery::Install { orderer, pieces, global } => self.install(orderer, &pieces, global),
            }
        }
        for orderer in ended_in {
            self.end_sessions_with(orderer);
        }
        if has_lapsed {
            self.end_sessions(Self::sessions_at_stake);
        }
    }

    /// Applies a request at its place in an order: the same in every region.
    fn deliver_request(&mut self, place: Place, bytes: &[u8], caller: Option<Caller>) {
        let Place { orderer, zxid, time_ms, .. } = place;
        let outcome = match codec::decode(bytes) {
            Ok(SharedRequest::CloseSession { session }) => {
                let mesh = self.state.mesh.clone();
                self.on_tree(|tree, events| {
                    let concerns = |subtree| mesh.orderer_of(subtree) == Some(orderer);
                    request::remove_ephemerals(tree, session, zxid, concerns, events);
                });
                Outcome::ok(Reply::Empty)
            }
            Ok(SharedRequest::Reap { paths, never_used_ms }) => {
                let mesh = self.state.mesh.clone();
                self.on_tree(|tree, events| {
                    let here = |path: &&str| mesh.orderer_of(mesh.subtree_of(path)) == Some(orderer);
                    for path in paths.into_iter().filter(here) {
                        reap::reap(tree, path, zxid, time_ms, never_used_ms, events);
                    }
                });
                Outcome::ok(Reply::Empty)
            }
            // The session has ended: what it asked for before (the deletion of its lock, say) must not hit what
            // others have made since.
            Ok(SharedRequest::Client { lease_epoch, may_own: true, .. })
                if lease_epoch != place.lease_epoch && !mutant::is(Mutant::StaleLeaseEpoch) =>
            {
                Outcome::error(ErrorCode::SessionExpired)
            }
            Ok(SharedRequest::Client { session, identities, op, body, .. }) => {
                let mesh = self.state.mesh.clone();
                let enforce_quota = false;
                let context = Context { mesh: &mesh, zxid, time_ms, session, identities, enforce_quota };
                let decoded = OpCode::try_from(op).and_then(|op| Request::decode(op, body));
                match decoded {
                    Ok(decoded) => {
                        self.on_tree(|tree, events| request::apply(tree, &context, &decoded, events))
                    }
                    Err(_) => Outcome::error(ErrorCode::MarshallingError),
                }
            }
            Err(_) => Outcome::error(ErrorCode::MarshallingError),
        };
        if let Some(caller) = caller {
            self.answer(caller, outcome);
        }
    }

    /// A region has lost its lease: its ephemerals go from what the orderer orders.
    fn expire_region(&mut self, orderer: Orderer, zxid: i64, region: RegionId) {
        self.state.next_zxid();
        let owners: Vec<i64> = self.state.tree.ephemeral_owners(sessions_of_region(region)).collect();
        let mesh = self.state.mesh.clone();
        self.on_tree(|tree, events| {
            let concerns = |subtree| mesh.orderer_of(subtree) == Some(orderer);
            for session in &owners {
                request::remove_ephemerals(tree, *session, zxid, concerns, events);
            }
        });
    }

    /// This region has learnt that an orderer has taken its ephemerals away. Once the global group says so, other
    /// regions may take over what is homed elsewhere too, while the mirror here still shows the old holders.
    fn end_sessions_with(&mut self, orderer: Orderer) {
        self.end_sessions(|apply| {
            let shared = apply.state.sessions.iter().filter(|(_, s)| s.shared.contains(&orderer));
            let mut ending: Vec<i64> = shared.map(|(id, _)| *id).collect();
            if orderer == Orderer::Global {
                ending.extend(apply.sessions_at_stake());
            }
            ending
        });
    }

    fn end_sessions(&mut self, which: impl FnOnce(&Self) -> Vec<i64>) {
        let mut ending = which(self);
        // The order in which sessions end is part of the result: zxids follow from it.
        ending.sort_unstable();
        ending.dedup();
        for session in ending {
            self.state.next_zxid();
            self.close_session(session, None);
        }
    }

    /// Sessions that own, or may be about to own, ephemerals that are ordered elsewhere.
    fn sessions_at_stake(&self) -> Vec<i64> {
        let elsewhere = |orderer: &Orderer| !self.state.federation.orders_here(*orderer);
        let pending: std::collections::BTreeSet<i64> = self
            .state
            .federation
            .outboxes
            .values()
            .flat_map(|outbox| outbox.requests.values())
            .filter_map(|pending| match codec::decode(&pending.request) {
                Ok(SharedRequest::Client { session, .. }) => Some(session),
                _ => None,
            })
            .collect();
        let at_stake = |id: &i64| pending.contains(id) || self.state.owns_ephemerals_elsewhere(*id);
        let shared = self.state.sessions.iter().filter(|(_, s)| s.shared.iter().any(elsewhere));
        shared.map(|(id, _)| *id).filter(at_stake).collect()
    }

    /// Ends a session: its ephemerals go here at once, and elsewhere in the order of each orderer. A client
    /// that asked for it is answered once they are gone from what the global group orders (or else the first
    /// other orderer): who learns from it that the session is closed must not find them there.
    fn close_session(&mut self, session: i64, asked_by: Option<Caller>) {
        let Some(closed) = self.state.sessions.remove(&session) else { return };
        let zxid = self.state.zxid;
        if !mutant::is(Mutant::EphemeralStays) {
            self.on_tree(|tree, events| {
                request::remove_ephemerals(tree, session, zxid, |s| s == LOCAL, events);
            });
        }
        let bytes = Bytes::from(codec::encode(&SharedRequest::CloseSession { session }).unwrap_or_default());
        let mut to_answer = asked_by;
        // The global group comes first in the set's order.
        for orderer in &closed.shared {
            let elsewhere = !self.state.federation.orders_here(*orderer);
            if elsewhere
                && let Some(caller) = to_answer
                && self.send(*orderer, caller, bytes.clone()).is_ok()
            {
                to_answer = None;
                continue;
            }
            // For nobody in particular it is taken even into a full outbox.
            let _ = self.send(*orderer, Caller::default(), bytes.clone());
        }
        if let Some(caller) = to_answer {
            self.answer(caller, Outcome::ok(Reply::Empty));
        }
        let asked_for = asked_by.is_some();
        self.effects.closed.push(ClosedSession { session, owner: closed.owner, asked_for });
    }

    /// Deletes what is due here, and lets the orderers of the others judge.
    fn reap(&mut self, paths: &[Box<str>], never_used_ms: i64) {
        let mut elsewhere = std::collections::BTreeMap::<Orderer, Vec<&str>>::new();
        for path in paths {
            if let Some(orderer) = self.state.orderer_of(path) {
                elsewhere.entry(orderer).or_default().push(path);
                continue;
            }
            let (zxid, time_ms) = (self.state.next_zxid(), self.state.time_ms);
            self.on_tree(|tree, events| reap::reap(tree, path, zxid, time_ms, never_used_ms, events));
        }
        for (orderer, paths) in elsewhere {
            // The leader of a subtree's home sees to it by itself.
            if matches!(orderer, Orderer::Home(_)) && !self.state.federation.orders_here(orderer) {
                continue;
            }
            if let Ok(bytes) = codec::encode(&SharedRequest::Reap { paths, never_used_ms }) {
                // Nobody waits for it; what is lost is proposed again.
                let _ = self.send(orderer, Caller::default(), bytes.into());
            }
        }
    }

    fn form_mesh(&mut self, mesh: Mesh) {
        if !self.state.mesh.regions.is_empty() || mesh.validate().is_err() {
            return;
        }
        if let Some(path) = self.state.in_the_way_of(&mesh) {
            return tracing::error!(path, "the mesh is not formed over znodes that only this region has");
        }
        self.state.federation = Federation {
            incarnation: self.state.federation.incarnation,
            ..Federation::new(self.state.region, &mesh)
        };
        for (id, subtree) in mesh.subtrees() {
            self.put_ancestors(&subtree.path);
            self.state.tree.put(&subtree.path, bare_znode(id).as_ref());
        }
        self.state.tree.recount_quotas();
        self.state.tree.write_quota_stats();
        self.state.mesh = Arc::new(mesh);
    }

    /// Makes the local znodes above a subtree's root.
    fn put_ancestors(&mut self, path: &str) {
        let Some((parent, _)) = split_path(path) else { return };
        if !self.state.tree.contains(parent) {
            self.put_ancestors(parent);
            self.state.tree.put(parent, bare_znode(LOCAL).as_ref());
        }
    }

    /// Replaces the content of what an orderer orders. A snapshot that is not whole changes nothing.
    fn install(&mut self, orderer: Orderer, pieces: &[Bytes], global: Option<federation::GlobalInstall>) {
        let snapshot = match SubtreeSnapshot::read(pieces) {
            Ok(snapshot) if snapshot.is_of(orderer, &self.state.mesh) && self.is_news(&snapshot) => snapshot,
            Ok(_) => return tracing::error!(?orderer, "snapshot of another orderer, or an old one, refused"),
            Err(error) => return tracing::error!(%error, ?orderer, "damaged snapshot refused"),
        };
        self.state.next_zxid();
        let first = self.effects.events.len();
        snapshot.install(&mut self.state.tree, &self.state.mesh, &mut self.effects.events);
        for event in &mut self.effects.events[first..] {
            event.zxid = self.state.zxid;
        }
        self.effects.has_skipped |= self.effects.events.len() > first;
        let (region, lease_epoch) = (self.state.region, self.state.federation.own_lease_epoch(orderer));
        let is_new_lease = snapshot.order.lease_epoch(region) != lease_epoch;
        for caller in self.state.federation.installed(orderer, snapshot.order, global) {
            self.answer(caller, Outcome::error(ErrorCode::ConnectionLoss));
        }
        let time_ms = self.state.time_ms;
        let deliveries = match orderer {
            Orderer::Home(subtree) => self.state.federation.begin_home(subtree, time_ms),
            Orderer::Global => self.state.federation.expire_regions_in_own_subtrees(time_ms),
        };
        self.deliver(deliveries);
        if is_new_lease {
            self.end_sessions_with(orderer);
        }
    }

    /// Whether a snapshot takes a homed subtree forward; of the global order the consensus engine knows.
    fn is_news(&self, snapshot: &SubtreeSnapshot) -> bool {
        let known = self.state.federation.orders.get(&snapshot.orderer);
        snapshot.orderer == Orderer::Global || known.is_none_or(|o| o.position <= snapshot.order.position)
    }
}

/// Who orders a request: `None` for this region's local tree.
///
/// # Errors
/// badArguments if its paths have different orderers.
pub fn route(mesh: &Mesh, request: &Request<'_>) -> Result<Option<Orderer>, ErrorCode> {
    let of = |path: &str| mesh.orderer_of(mesh.subtree_of(path));
    let Request::Multi(operations) = request else {
        return Ok(request.path().and_then(of));
    };
    let mut orderers = operations.iter().filter_map(Request::path).map(of);
    let Some(first) = orderers.next() else { return Ok(None) };
    if orderers.all(|o| o == first) { Ok(first) } else { Err(ErrorCode::BadArguments) }
}

/// Whether a request would make ephemerals.
pub fn makes_ephemeral(request: &Request<'_>) -> bool {
    let ephemeral = |c: &Create<'_>| CreateMode::try_from(c.flags).is_ok_and(CreateMode::is_ephemeral);
    match request {
        // In a multi, createTTL with another mode makes what the mode says.
        Request::Create(create) | Request::Create2(create) | Request::CreateTtl { create, .. } => {
            ephemeral(create)
        }
        Request::Multi(operations) => operations.iter().any(makes_ephemeral),
        _ => false,
    }
}
