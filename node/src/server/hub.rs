//! Where what the region's log says meets the connections: publishes views, fires watches, hands answers
//! to whoever waits for them, and knows which sessions are connected here and which are due to expire.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use foldhash::fast::FixedState;
use meridian_bridge::mesh::RegionId;
use meridian_seam::clock::{Clock, millis};
use meridian_seam::mutant::{self, Mutant};
use meridian_seam::watch;
use meridian_seam::{codec, limits};
use meridian_wire::{
    ErrorCode, EventType, KeeperState, ReplyHeader, SetWatches, WatcherEvent, begin_frame, finish_frame, xid,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::lease::LeaseGate;
use super::metrics::Metrics;
use crate::region::{Leadership, Sink, View};
use crate::session::{Expiry, Recent, Watch, WatchTable};
use crate::txn::{Effects, Me, Owner, Reply, State};

/// The meeting point of the log and the connections of one server.
pub struct Hub {
    view: Arc<ArcSwap<View>>,
    clock: Arc<dyn Clock>,
    server: u8,
    watching: Mutex<Watching>,
    /// Who waits for the answer to which of this server's writes.
    waiting: Mutex<HashMap<u64, Waiting, FixedState>>,
    /// The connections of the sessions served here.
    sessions: Mutex<HashMap<i64, Arc<Client>, FixedState>>,
    expiry: Mutex<Expiry>,
    /// Everything up to this zxid, answers included, is in the inboxes.
    settled: AtomicI64,
    /// When the leader, with a majority behind it, was last known to have this server's report.
    contact_ms: AtomicU64,
    /// What it was at the start, when there had been none.
    no_contact_ms: u64,
    /// When a leader last gave every session its whole timeout.
    renewed_ms: AtomicU64,
    leadership: OnceLock<watch::Receiver<Leadership>>,
    lease: Arc<LeaseGate>,
    mesh_report: Mutex<Option<String>>,
    pub(super) metrics: Metrics,
}

struct Watching {
    table: WatchTable<Arc<Client>>,
    recent: Recent,
}

impl Watching {
    fn bound(&self, client: &Client) {
        let paths = self.table.paths_watched_by(client.number);
        if paths > limits::CONNECTION_WATCHED_PATHS_MAX {
            tracing::warn!(peer = %client.peer, paths, "closed: too many watches");
            client.close();
        }
    }
}

/// Whom an answer is for.
pub(super) struct Waiting {
    pub(super) client: Arc<Client>,
    /// The session that the write opens or takes up.
    pub(super) opens: Option<i64>,
    /// When it was asked for.
    pub(super) since: Duration,
}

/// What a server tells the leader: the sessions that it has heard of since the last report.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) sessions: Vec<i64>,
}

/// What the leader answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ReportAnswer {
    /// How long ago a majority was last known to follow the leader.
    pub(super) quorum_age_ms: u64,
    /// How long ago the leader gave every session its whole timeout.
    pub(super) renewed_age_ms: u64,
    /// The region's lease, if it needs one.
    pub(super) lease: Option<LeaseReport>,
    /// What the leader knows of the mesh: see [`Hub::set_mesh_report`].
    pub(super) mesh: Option<String>,
}

/// The region's lease as the leader knows it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LeaseReport {
    /// What is left of it.
    pub(super) left_ms: u64,
    /// The entry up to which the leader has applied the log. To a server that has not come so far the lease says
    /// nothing: what it still shows may have ended with the lease before.
    pub(super) applied: u64,
}

impl Hub {
    /// What is known of the mesh, in JSON: the leader, which speaks for the region, sets it, and the other
    /// servers get it with the answers to their reports.
    pub fn set_mesh_report(&self, report: Option<String>) {
        *self.mesh_report.lock() = report;
    }

    /// What is known of the mesh, in JSON.
    pub fn mesh_report(&self) -> Option<String> {
        self.mesh_report.lock().clone()
    }

    pub(super) fn new(region: RegionId, server: u8, clock: Arc<dyn Clock>, expiry: Expiry) -> Self {
        let view = View { state: State::new(region), position: Default::default() };
        let no_contact_ms = millis(clock.monotonic());
        let contact_ms = AtomicU64::new(no_contact_ms);
        Self {
            view: Arc::new(ArcSwap::from_pointee(view)),
            clock,
            server,
            watching: Mutex::new(Watching {
                table: WatchTable::default(),
                recent: Recent::new(0, limits::RECENT_CHANGES_MAX),
            }),
            waiting: Mutex::default(),
            sessions: Mutex::default(),
            expiry: Mutex::new(expiry),
            settled: AtomicI64::new(0),
            contact_ms,
            no_contact_ms,
            renewed_ms: AtomicU64::new(0),
            leadership: OnceLock::new(),
            lease: Arc::default(),
            mesh_report: Mutex::default(),
            metrics: Metrics::default(),
        }
    }

    /// The view published last.
    pub fn view(&self) -> arc_swap::Guard<Arc<View>> {
        self.view.load()
    }

    /// What this server counts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The gate of the region's lease.
    pub fn lease(&self) -> &Arc<LeaseGate> {
        &self.lease
    }

    /// All connections.
    pub fn clients(&self) -> Vec<Arc<Client>> {
        self.watching.lock().table.handles().cloned().collect()
    }

    /// Number of watches.
    pub fn watch_count(&self) -> usize {
        self.watching.lock().table.len()
    }

    /// The paths watched, each with the sessions whose connections watch it.
    pub fn watches(&self) -> Vec<(String, Vec<i64>)> {
        let watching = self.watching.lock();
        let sessions: HashMap<u64, i64> =
            watching.table.handles().map(|client| (client.number, client.session())).collect();
        let of = |connections: &mut dyn Iterator<Item = u64>| {
            connections.filter_map(|c| sessions.get(&c).copied()).collect()
        };
        watching.table.iter().map(|(path, mut watchers)| (path.to_string(), of(&mut watchers))).collect()
    }

    pub(super) fn published(&self) -> Arc<ArcSwap<View>> {
        self.view.clone()
    }

    pub(super) fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    pub(super) fn unix_ms(&self) -> i64 {
        self.clock.unix_ms()
    }

    pub(super) fn follow(&self, leadership: watch::Receiver<Leadership>) {
        // Set once, at the start.
        let _ = self.leadership.set(leadership);
    }

    /// Up to which zxid events may be sent without a reply that asks for them.
    pub(super) fn settled(&self) -> i64 {
        self.settled.load(Ordering::Acquire)
    }

    pub(super) fn connect(&self, client: &Arc<Client>) {
        self.watching.lock().table.connect(client.number, client.clone());
    }

    pub(super) fn disconnect(&self, client: &Client) {
        self.watching.lock().table.disconnect(client.number);
        let mut sessions = self.sessions.lock();
        if sessions.get(&client.session()).is_some_and(|c| c.number == client.number) {
            sessions.remove(&client.session());
        }
    }

    pub(super) fn wait(&self, sequence: u64, waiting: Waiting) {
        self.waiting.lock().insert(sequence, waiting);
    }

    /// Leaves a watch and returns the view as of which it is set: no change between the two is missed,
    /// none before it fires. `which` chooses the watch by the view.
    pub(super) fn watch(
        &self,
        client: &Client,
        path: &str,
        which: impl FnOnce(&View) -> Option<Watch>,
    ) -> Arc<View> {
        let mut watching = self.watching.lock();
        let view = self.view.load_full();
        if let Some(watch) = which(&view) {
            watching.table.add(client.number, path, watch);
            watching.bound(client);
        }
        view
    }

    /// Removes watches (or only looks, unless `remove`) and says whether there were any.
    pub(super) fn unwatch(&self, client: &Client, path: &str, watches: &[Watch], remove: bool) -> bool {
        let mut watching = self.watching.lock();
        if remove {
            watching.table.remove(client.number, path, watches)
        } else {
            watching.table.has(client.number, path, watches)
        }
    }

    /// Sets watches again that a client had on another connection. Returns the view as of which they are
    /// set, and the events of what the client has missed.
    pub(super) fn set_watches(
        &self,
        client: &Client,
        watches: &SetWatches<'_>,
    ) -> (Arc<View>, Vec<(EventType, String)>) {
        let mut watching = self.watching.lock();
        let Watching { table, recent } = &mut *watching;
        let view = self.view.load_full();
        let once = [
            (&watches.data, Watch::Data, false),
            (&watches.exist, Watch::Data, true),
            (&watches.child, Watch::Child, false),
        ];
        let lasting = [(&watches.persistent, Watch::Persistent), (&watches.recursive, Watch::Recursive)];
        let mut missed = Vec::new();
        for (paths, watch, exists) in once {
            for path in paths {
                let shared = view.state.orderer_of(path).is_some();
                let since = watches.relative_zxid;
                match recent.missed(&view.state.tree, path, watch, exists, since, shared) {
                    Some(event) if !mutant::is(Mutant::SetWatchesForgets) => {
                        missed.push((event, (*path).to_string()));
                    }
                    _ => table.add(client.number, path, watch),
                }
            }
        }
        for (paths, watch) in lasting {
            paths.iter().for_each(|path| table.add(client.number, path, watch));
        }
        watching.bound(client);
        (view, missed)
    }

    /// When the leader, with a majority behind it, was last in touch.
    pub fn contact(&self) -> Duration {
        Duration::from_millis(self.contact_ms.load(Ordering::Relaxed))
    }

    /// Whether there was a leader in touch, with its majority, since the start.
    pub fn has_had_contact(&self) -> bool {
        self.contact_ms.load(Ordering::Relaxed) > self.no_contact_ms
    }

    pub(super) fn in_contact(&self, at: Duration) {
        self.contact_ms.fetch_max(millis(at), Ordering::Relaxed);
    }

    pub(super) fn touch(&self, sessions: &[i64]) {
        let now = self.now();
        let mut expiry = self.expiry.lock();
        sessions.iter().for_each(|session| expiry.touch(*session, now));
    }

    /// Gives every session its whole timeout.
    pub(super) fn renew_all(&self) {
        let now = self.now();
        self.expiry.lock().renew_all(now);
        self.renewed_at(now);
    }

    /// When a leader last gave every session its whole timeout.
    pub(super) fn renewed(&self) -> Duration {
        Duration::from_millis(self.renewed_ms.load(Ordering::Relaxed))
    }

    /// A leader has given every session its whole timeout then.
    pub(super) fn renewed_at(&self, at: Duration) {
        self.renewed_ms.fetch_max(millis(at), Ordering::Relaxed);
    }

    /// The sessions whose time is over, with their owners.
    pub(super) fn expired(&self) -> Vec<(i64, Owner)> {
        let expired = self.expiry.lock().expired(self.now());
        let view = self.view.load();
        let owner = |session: i64| view.state.sessions.get(&session).map(|s| (session, s.owner));
        expired.into_iter().filter_map(owner).collect()
    }

    /// Closes the connections whose sessions the region's lease protects.
    pub(super) fn close_leased(&self) {
        let view = self.view.load_full();
        for client in self.clients() {
            if view.state.owns_ephemerals_elsewhere(client.session()) {
                tracing::info!(peer = %client.peer, "closed: the region's lease is over");
                client.close();
            }
        }
    }

    fn fire(&self, view: &Arc<View>, effects: &Effects, woken: &mut Vec<Arc<Client>>) {
        let mut watching = self.watching.lock();
        let Watching { table, recent } = &mut *watching;
        if effects.has_skipped {
            // Who watches for every change learns by the end of the connection that it may have missed some.
            for client in table.lasting() {
                tracing::info!(peer = %client.peer, "closed: the region took up a snapshot, changes were skipped");
                client.close();
            }
        }
        for event in &effects.events {
            if view.state.orderer_of(&event.path).is_some() {
                recent.note(event.kind, &event.path, event.zxid);
            }
            let mut frame = None;
            let before = woken.len();
            table.trigger(event.kind, &event.path, |client| {
                // A watch says nothing about a znode that its owner may not read.
                if event.readers.as_deref().is_some_and(|acl| !client.may_read(acl)) {
                    return;
                }
                let frame = frame.get_or_insert_with(|| event_frame(event.kind, &event.path, event.zxid));
                client.push_event(event.zxid, frame.clone());
                woken.push(client.clone());
            });
            let watchers = (woken.len() - before) as u64;
            let bytes = frame.map_or(0, |frame| frame.len() as u64);
            self.metrics.fired(event.kind, watchers, watchers * bytes);
        }
        self.view.store(view.clone());
    }

    fn answer(&self, effects: &mut Effects, woken: &mut Vec<Arc<Client>>) {
        if effects.answers.is_empty() {
            return;
        }
        let mut waiting = self.waiting.lock();
        for answer in effects.answers.drain(..) {
            let Some(Waiting { client, opens, since }) = waiting.remove(&answer.sequence) else { continue };
            if let Some(session) = opens
                && let Reply::Session(timeout_ms) = answer.outcome.reply
                && answer.outcome.error == ErrorCode::Ok
            {
                client.open(session, timeout_ms, since);
                if let Some(before) = self.sessions.lock().insert(session, client.clone()) {
                    before.close();
                }
            }
            client.push_answer(answer);
            woken.push(client);
        }
    }

    fn end_sessions(&self, view: &View, effects: &Effects, woken: &mut Vec<Arc<Client>>) {
        let mut sessions = self.sessions.lock();
        for (session, _) in &effects.moved {
            let owner = view.state.sessions.get(session).map(|s| s.owner);
            let is_owner = |client: &Client| {
                owner.is_some_and(|o| o.server == self.server && o.connection == client.number)
            };
            if sessions.get(session).is_some_and(|client| !is_owner(client))
                && let Some(client) = sessions.remove(session)
            {
                tracing::debug!(peer = %client.peer, session, "closed: the session has moved");
                client.close();
            }
        }
        for closed in &effects.closed {
            let Some(client) = sessions.remove(&closed.session) else { continue };
            if closed.asked_for {
                client.end();
                woken.push(client);
            } else {
                tracing::debug!(peer = %client.peer, session = closed.session, "closed: the session has ended");
                client.close();
            }
        }
    }
}

impl Sink for Hub {
    fn applied(&self, view: Arc<View>, mut effects: Effects) {
        let mut woken = Vec::new();
        self.fire(&view, &effects, &mut woken);
        if !effects.opened.is_empty() || !effects.closed.is_empty() {
            let now = self.now();
            let mut expiry = self.expiry.lock();
            for (session, timeout_ms) in &effects.opened {
                expiry.open(*session, Duration::from_millis((*timeout_ms).into()), now);
            }
            effects.closed.iter().for_each(|closed| expiry.close(closed.session));
        }
        self.answer(&mut effects, &mut woken);
        self.end_sessions(&view, &effects, &mut woken);
        self.settled.store(view.state.zxid, Ordering::Release);
        woken.iter().for_each(|client| client.wake());
    }

    fn reset(&self, view: Arc<View>) {
        let mut watching = self.watching.lock();
        watching.recent = Recent::new(view.state.zxid, limits::RECENT_CHANGES_MAX);
        self.view.store(view.clone());
        // Whoever connects after this lock is released starts anew.
        watching.table.handles().for_each(|client| client.close());
        self.waiting.lock().clear();
        self.sessions.lock().clear();
        drop(watching);
        let sessions = view.state.sessions.iter();
        let sessions = sessions.map(|(id, s)| (*id, Duration::from_millis(s.timeout_ms.into())));
        self.expiry.lock().replace(sessions, self.now());
        self.settled.store(view.state.zxid, Ordering::Release);
    }

    fn report(&self, _from: u64, report: Bytes) -> Result<Bytes, String> {
        if !self.leadership.get().is_some_and(|leadership| leadership.borrow().is_me) {
            return Err("this server does not lead".into());
        }
        let report: Report = codec::decode(&report).map_err(|e| e.to_string())?;
        self.touch(&report.sessions);
        let now = self.now();
        let answer = ReportAnswer {
            quorum_age_ms: millis(now.saturating_sub(self.contact())),
            renewed_age_ms: millis(now.saturating_sub(self.renewed())),
            // In this order: what ended before the lease was granted is applied by then.
            lease: self.lease.deadline().map(|deadline| LeaseReport {
                left_ms: millis(deadline.saturating_sub(now)),
                applied: self.view().position.index,
            }),
            mesh: self.mesh_report(),
        };
        codec::encode(&answer).map(Bytes::from).map_err(|e| e.to_string())
    }
}

/// A watch event as it goes to clients.
pub(super) fn event_frame(event: EventType, path: &str, zxid: i64) -> Bytes {
    let mut frame = BytesMut::with_capacity(path.len() + 32);
    let start = begin_frame(&mut frame);
    ReplyHeader { xid: xid::NOTIFICATION, zxid, error: ErrorCode::Ok }.encode(&mut frame);
    WatcherEvent { event, state: KeeperState::SyncConnected, path }.encode(&mut frame);
    // A path is far shorter than a frame may be.
    let _ = finish_frame(start, &mut frame);
    frame.freeze()
}

/// The identifier of a new session: where and when it was opened, so that no two are ever equal. `None`
/// when the counter is used up.
pub(super) fn session_id(region: RegionId, me: Me, counter: u64) -> Option<i64> {
    const COUNTER_BITS: u32 = 28;
    const BOOT_BITS: u32 = 20;
    if counter >> COUNTER_BITS != 0 {
        return None;
    }
    let boot = u64::from(me.boot) & ((1 << BOOT_BITS) - 1);
    let id = u64::from(region) << 56 | u64::from(me.server) << 48 | boot << COUNTER_BITS | counter;
    i64::try_from(id).ok()
}
