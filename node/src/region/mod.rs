//! A region's consensus group: voters that agree on a log, observers that learn it.
//!
//! [`Region`] runs this server's part. Writes go in through [`Region::submit`] (a client's, numbered and
//! sent to the leader exactly once) or [`Region::propose`] (the leader's own); what the log says comes out
//! through the [`Sink`], entry by entry, with a [`View`] of the whole state. The consensus engine is known
//! to this module and its children alone.

mod machine;
mod members;
mod metrics;
mod peers;
mod ports;
mod proposer;
mod store;
mod succession;
mod uplink;

pub use machine::View;
pub use metrics::{RegionMetrics, Sizes};

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::future::BoxFuture;
use meridian_bridge::engine::{self, LogBounds, bound_log};
use meridian_bridge::mesh::RegionId;
use meridian_bridge::state::{self as federation, Outcome};
use meridian_seam::clock::{Clock, millis};
use meridian_seam::disk::Disk;
use meridian_seam::net::{self, BoxStream, Mover};
use meridian_seam::watch;
use meridian_seam::{Environment, codec, limits};
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Config, ServerState, SnapshotPolicy};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::log::{Log, LogHandle, LogMetrics, LogOptions};
use crate::snapshot::SnapshotStore;
use crate::txn::ensemble::{Member, Members, Role};
use crate::txn::{Caller, Command, Effects, Me, State};
use machine::{LastSaved, Machine, Saved};
use members::{Directory, Group, Membership};
use peers::{PeerLink, Peers};
use ports::Ports;
use proposer::Proposer;
use store::Store;
use succession::Succession;
use uplink::Uplink;

type Raft = openraft::Raft<meridian_bridge::engine::TypeConfig, Machine>;

/// What a server must know to take part in its region.
#[derive(Clone)]
pub struct RegionConfig {
    /// The region's number in the mesh.
    pub region: RegionId,
    /// The region's name.
    pub region_name: String,
    /// This server's number, 0 to [`limits::SERVERS_MAX`], unique in the region.
    pub server: u64,
    /// The servers of the region as they are to be when it is formed; later the region knows better.
    pub members: Members,
    /// The address to listen on for the other servers.
    pub listen: String,
    /// Where the log and snapshots live.
    pub data_dir: PathBuf,
    /// Timeouts.
    pub timing: Timing,
    /// What is kept on disk.
    pub storage: Storage,
    /// Secures the connections between servers.
    pub tls: Option<Arc<dyn PeerTls>>,
}

/// For how long a server may be sent a snapshot: it may be large, and a broken connection ends it much earlier.
pub const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(600);

/// Timeouts of a region's group.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How often a leader is heard of.
    pub heartbeat: Duration,
    /// A follower that has not heard of it for a time from this range calls an election. Others have its vote
    /// once half of the longest has passed.
    pub election_timeout: (Duration, Duration),
}

/// What a server keeps on disk.
#[derive(Clone, Debug)]
pub struct Storage {
    /// The write-ahead log.
    pub log: LogOptions,
    /// Where the log lives, if not in the data directory.
    pub log_dir: Option<PathBuf>,
    /// Bounds the log and the time of a restart.
    pub log_bounds: LogBounds,
    /// Bytes of the newest entries kept in memory: more than is ever on its way to members that keep up. Older ones
    /// are read from the disk.
    pub log_bytes_in_memory: usize,
    /// Entries (batches) after which a snapshot is taken, however small they are.
    pub entries_per_snapshot: u64,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            log: LogOptions::default(),
            log_dir: None,
            log_bounds: LogBounds { bytes_per_snapshot: 32 << 20, bytes_kept: 16 << 20 },
            log_bytes_in_memory: 4 << 20,
            entries_per_snapshot: 100_000,
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_timeout: (Duration::from_millis(900), Duration::from_millis(1_200)),
        }
    }
}

impl Timing {
    fn rpc_timeout(&self) -> Duration {
        self.election_timeout.1
    }
}

/// Secures connections between the servers of a region: both sides prove which server they are.
pub trait PeerTls: Send + Sync {
    /// Secures a connection to a server.
    fn connect(&self, stream: BoxStream, server: u64) -> BoxFuture<'_, io::Result<BoxStream>>;

    /// Secures an accepted connection and says which server is at the other end.
    fn accept(&self, stream: BoxStream) -> BoxFuture<'_, io::Result<(BoxStream, u64)>>;
}

/// Takes what the log says. Called by one task at a time, in the order of the log; must not block.
pub trait Sink: Send + Sync + 'static {
    /// An entry has been applied: publishes the view and tells clients what the effects say.
    fn applied(&self, view: Arc<View>, effects: Effects);

    /// The state has been replaced as a whole, at the start or by a snapshot: what happened in between is
    /// not known, so that clients must connect anew.
    fn reset(&self, view: Arc<View>);

    /// Another server of the region reports to this one, which it takes for the leader.
    ///
    /// # Errors
    /// A reason that is sent back.
    fn report(&self, from: u64, report: Bytes) -> Result<Bytes, String>;
}

/// Who leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The newest term known.
    pub term: u64,
    /// The leader, if one is known.
    pub leader: Option<u64>,
    /// Whether this server leads.
    pub is_me: bool,
}

/// Who takes part in the region at this moment, as the consensus engine has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// Those that vote.
    pub voters: BTreeSet<u64>,
    /// Those that only learn.
    pub learners: BTreeSet<u64>,
    /// Whether it is so for good: no change is under way as far as this server knows.
    pub settled: bool,
    /// At the leader: how many entries of the log each lacks, or has not yet said that it has.
    pub lag_entries: BTreeMap<u64, u64>,
    /// At the leader: how long ago each of the others last acknowledged something.
    pub silence: BTreeMap<u64, Duration>,
}

/// A snapshot of this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastSnapshot {
    /// The zxid that its state has reached.
    pub zxid: i64,
    /// Where it lies, until newer ones have taken its place.
    pub file: PathBuf,
}

/// This server's part in its region. Clones share it.
#[derive(Clone)]
pub struct Region {
    raft: Raft,
    config: Arc<RegionConfig>,
    me: Me,
    view: Arc<ArcSwap<View>>,
    leadership: watch::Receiver<Leadership>,
    failure: watch::Receiver<Option<String>>,
    applied: watch::Receiver<u64>,
    proposer: Proposer,
    membership: Membership,
    uplink: Uplink,
    peers: Peers,
    /// The link for reports to the leader, kept while it leads.
    reporting: Arc<parking_lot::Mutex<Option<PeerLink>>>,
    store: Store,
    last_saved: LastSaved,
    metrics: Arc<RegionMetrics>,
    ports: Ports,
    tasks: Arc<parking_lot::Mutex<JoinSet<()>>>,
}

impl RegionConfig {
    fn log_dir(&self) -> PathBuf {
        self.storage.log_dir.clone().unwrap_or_else(|| self.data_dir.join("log"))
    }

    /// Those that are to vote when the region is formed.
    fn voters(&self) -> impl Iterator<Item = (u64, &Member)> {
        let voters = self.members.iter().filter(|(_, member)| member.role == Role::Voter);
        voters.map(|(number, member)| (u64::from(*number), member))
    }

    fn voter_numbers(&self) -> BTreeSet<u64> {
        self.voters().map(|(number, _)| number).collect()
    }

    /// Where the others reach this server.
    fn own_address(&self) -> String {
        let own = u8::try_from(self.server).ok().and_then(|number| self.members.get(&number));
        own.map_or_else(|| self.listen.clone(), |member| member.address.clone())
    }

    fn engine_config(&self) -> Result<Config, openraft::ConfigError> {
        let (election_timeout_min, election_timeout_max) = engine::timeouts_ms(self.timing.election_timeout);
        Config {
            cluster_name: self.region_name.clone(),
            heartbeat_interval: millis(self.timing.heartbeat),
            election_timeout_min,
            election_timeout_max,
            enable_pre_vote: Some(true),
            // Before it was restarted a leader may have sent entries that its own disk does not have: in the
            // same term it could put others in their place.
            enable_leader_restore: Some(false),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.storage.entries_per_snapshot),
            // What a snapshot covers is purged by bytes; who needs what is gone gets a snapshot.
            max_in_snapshot_log_to_keep: u64::MAX,
            replication_lag_threshold: u64::MAX,
            max_payload_entries: limits::APPEND_ENTRIES_MAX,
            install_snapshot_timeout: millis(SNAPSHOT_TIMEOUT),
            backoff: "20ms 50ms 100ms 200ms ...1000ms".into(),
            ..Config::default()
        }
        .validate()
    }
}

impl Region {
    /// Starts this server's part: recovers what the disk holds, listens for the other servers and joins
    /// the group. `view` is what the sink publishes.
    ///
    /// # Errors
    /// If the disk holds nothing usable, or the address can't be bound; the message says what to do.
    pub async fn start(
        environment: Environment,
        config: RegionConfig,
        view: Arc<ArcSwap<View>>,
        sink: Arc<dyn Sink>,
    ) -> io::Result<Self> {
        let config = Arc::new(config);
        let disk = environment.disk.clone();
        let listener = net::listen(&*environment.net, &config.listen).await;
        let listener = listener.map_err(|e| io::Error::new(e.kind(), format!("servers: {e}")))?;
        let (listener, mover) = net::movable(environment.net.clone(), &config.listen, listener)?;
        let started = environment.clock.monotonic();
        let (log, recovered) = Log::open(disk.clone(), &config.log_dir(), config.storage.log.clone())
            .map_err(io::Error::other)?;
        claim(&*disk, &config)?;
        let (files, background) = (log.reader(), environment.background.clone());
        let log = LogHandle::spawn(log, &*background)?;
        let bytes_in_memory = config.storage.log_bytes_in_memory;
        let store = Store::new(log, files, recovered, bytes_in_memory, background)?;
        let snapshots = SnapshotStore::open(disk.clone(), &config.data_dir.join("snapshots"))
            .map_err(io::Error::other)?;
        let me = Me {
            server: u8::try_from(config.server).map_err(|_| io::Error::other("server numbers end at 255"))?,
            boot: next_boot(&*disk, &config.data_dir)?,
        };
        let uplink = Uplink::new(me);
        let (applied_sender, applied) = watch::channel(0);
        let (version_sender, version) = watch::channel(0);
        let care = Arc::new(Notify::new());
        let machine_sink = Arc::new(SettlingSink {
            sink: sink.clone(),
            uplink: uplink.clone(),
            server: me.server,
            applied: applied_sender,
            members: parking_lot::Mutex::default(),
            version: version_sender,
            members_changed: care.clone(),
        });
        let state = State::new(config.region);
        let metrics = Arc::<RegionMetrics>::default();
        let machine = Machine::open(
            state,
            me,
            snapshots.clone(),
            store.purged(),
            machine_sink,
            metrics.clone(),
            environment.clone(),
        )?;
        let last_saved = machine.last_saved();
        let peers = Peers {
            config: config.clone(),
            environment: environment.clone(),
            snapshots,
            directory: Directory::new(config.clone(), view.clone()),
        };
        let pristine = store.is_pristine();
        let engine_config = Arc::new(config.engine_config().map_err(io::Error::other)?);
        let raft = Raft::new(config.server, engine_config, peers.clone(), store.clone(), machine)
            .await
            .map_err(io::Error::other)?;
        if !pristine {
            let recovered = view.load();
            let ms = millis(environment.clock.monotonic() - started);
            metrics.recovery_ms.record(ms);
            tracing::info!(
                index = recovered.position.index,
                znodes = recovered.state.tree.len(),
                ms,
                "recovered what the disk held"
            );
        }
        let proposer = Proposer::start(raft.clone(), environment.clock.clone(), metrics.clone());
        let (leadership_sender, leadership) = watch::channel(Leadership::default());
        let (failure_sender, failure) = watch::channel(None);
        let membership = Membership::new(
            raft.clone(),
            peers.clone(),
            proposer.clone(),
            leadership.clone(),
            care,
            pristine,
        );
        let succession = Succession {
            raft: raft.clone(),
            peers: peers.clone(),
            store: store.clone(),
            leadership: leadership.clone(),
        };
        let mut tasks = JoinSet::new();
        let clock = environment.clock.clone();
        tasks.spawn(follow_leadership(
            raft.clone(),
            leadership_sender,
            failure_sender,
            metrics.clone(),
            clock,
        ));
        tasks.spawn(uplink::run(uplink.clone(), peers.clone(), proposer.clone(), leadership.clone()));
        tasks.spawn(peers::serve_peers(
            peers.clone(),
            listener,
            raft.clone(),
            proposer.clone(),
            membership.clone(),
            succession,
            sink,
        ));
        let ports =
            Ports { config: config.clone(), view: view.clone(), leadership: leadership.clone(), version };
        tasks.spawn(ports.clone().follow(|member| Some(&member.address), mover));
        let content = view.clone();
        let content_bytes = move || content.load().state.tree.data_bytes();
        tasks.spawn(bound_log(raft.clone(), store.memory(), config.storage.log_bounds, content_bytes));
        tasks.spawn(membership.clone().run());
        let tasks = Arc::new(parking_lot::Mutex::new(tasks));
        Ok(Self {
            raft,
            config,
            me,
            view,
            leadership,
            failure,
            applied,
            proposer,
            membership,
            uplink,
            peers,
            reporting: Arc::default(),
            store,
            last_saved,
            metrics,
            ports,
            tasks,
        })
    }

    /// This server and its start.
    pub fn me(&self) -> Me {
        self.me
    }

    /// The configuration it was started with.
    pub fn config(&self) -> &RegionConfig {
        &self.config
    }

    /// The view published last.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Who leads, and changes of it.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// If this server leads: how long ago a majority of the voters was last known to follow it. `None`
    /// if it does not lead or has not heard of a majority yet.
    pub fn quorum_age(&self) -> Option<Duration> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state != ServerState::Leader {
            return None;
        }
        if metrics.membership_config.voter_ids().count() == 1 {
            return Some(Duration::ZERO);
        }
        metrics.last_quorum_acked.map(|acked| acked.into_inner().elapsed())
    }

    /// Why this server can take no further part (its disk failed, for instance); it must stop then.
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.failure.clone()
    }

    /// Changes with every entry that is applied here: its index in the region's log.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }

    /// The newest snapshot that this server has saved, or has started from.
    pub fn last_snapshot(&self) -> Option<LastSnapshot> {
        let Saved { id, zxid } = self.last_saved.get()?;
        Some(LastSnapshot { zxid, file: self.peers.snapshots.path_of(id) })
    }

    /// What this server counts of the region's work.
    pub fn metrics(&self) -> &RegionMetrics {
        &self.metrics
    }

    /// What this server counts of its log.
    pub fn log_metrics(&self) -> &LogMetrics {
        self.store.log().metrics()
    }

    /// Whether the disk has room for more writes.
    pub fn has_room(&self) -> bool {
        self.store.log().has_room()
    }

    /// Adds a write of this server's clients. `build` is given the number under which its answer will
    /// come out of the sink and makes the encoded [`Command`]; it runs before the answer can come. Waits
    /// while too many writes are under way.
    ///
    /// # Errors
    /// What `build` returns.
    pub async fn submit<E>(&self, build: impl FnOnce(Caller) -> Result<Bytes, E>) -> Result<u64, E> {
        self.uplink.submit(build).await
    }

    /// Proposes a command of the leader itself. Queued before this returns: calls keep their order.
    ///
    /// # Errors
    /// If this server does not lead or stops to lead before the command is applied here; it may still be
    /// committed later.
    pub fn propose(&self, command: &Command<'_>) -> impl Future<Output = io::Result<()>> + Send + use<> {
        let queued = codec::encode(command).map(|bytes| self.proposer.propose(vec![bytes.into()]));
        async move { queued.map_err(io::Error::other)?.await.map(drop) }
    }

    /// Has the leader, whoever it is, propose a command; done when it is applied there.
    ///
    /// # Errors
    /// If there is no leader or it can't be reached; the command may still be committed later.
    pub async fn propose_anywhere(&self, command: &Command<'_>) -> io::Result<()> {
        let leads = *self.leadership.borrow();
        let leader = leads.leader.ok_or_else(no_leader)?;
        let command: Bytes = codec::encode(command).map_err(io::Error::other)?.into();
        if leads.is_me {
            return self.proposer.propose(vec![command]).await.map(drop);
        }
        let link = self.peers.link(leader);
        link.forward(vec![command]).await?.await.map(drop)
    }

    /// Proposes a command of the federation and returns what it came to. Queued before this returns.
    ///
    /// # Errors
    /// As for [`Region::propose`].
    pub fn propose_federation(
        &self,
        command: federation::Command,
    ) -> impl Future<Output = io::Result<Outcome>> + Send + use<> {
        let queued =
            codec::encode(&Command::Bridge(command)).map(|b| self.proposer.propose_federation(b.into()));
        async move {
            let outcomes = queued.map_err(io::Error::other)?.await?;
            outcomes.first().copied().ok_or_else(|| io::Error::other("the command came to nothing"))
        }
    }

    /// Reports to the leader, whoever it is, and returns its answer.
    ///
    /// # Errors
    /// If no leader is known or it can't be reached.
    pub async fn report(&self, report: Bytes) -> io::Result<Bytes> {
        let leader = self.leadership.borrow().leader;
        let leader =
            leader.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "no leader is known"))?;
        let link = {
            let mut reporting = self.reporting.lock();
            match reporting.as_ref().filter(|link| link.server() == leader) {
                Some(link) => link.clone(),
                None => reporting.insert(self.peers.link(leader)).clone(),
            }
        };
        link.report(report).await
    }

    /// Hands the lead of the region over to a voter; whoever leads now is asked to. Done when this server
    /// sees that the other leads.
    ///
    /// # Errors
    /// If no leader can be reached, if it refuses, or if the other has not taken over in a few seconds.
    pub async fn transfer_leadership(&self, to: u64) -> io::Result<()> {
        let leads = *self.leadership.borrow();
        let leader = leads.leader.ok_or_else(no_leader)?;
        if leads.is_me {
            self.membership.hand_over_to(to).await?;
        } else {
            self.peers.ask_for_transfer(leader, to).await?;
        }
        let mut leadership = self.leadership();
        let taken = tokio::time::timeout(TRANSFER_TIMEOUT, leadership.wait_for(|l| l.leader == Some(to)));
        match taken.await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::TimedOut, format!("server {to} has not taken the lead"))),
        }
    }

    /// Asks for other members and waits until they are in force.
    ///
    /// # Errors
    /// If there is no leader, if another change came first, or if too few of the new voters are up to date.
    pub async fn change_members(&self, members: Members) -> io::Result<()> {
        self.formed().await?;
        let before = self.view().state.ensemble.clone();
        let command = Command::ChangeMembers { version: before.version, members: members.clone() };
        self.propose_anywhere(&command).await?;
        let mut applied = self.applied();
        let mut accepted = false;
        let waiting = async {
            loop {
                let ensemble = self.view().state.ensemble.clone();
                if *ensemble.members == members && ensemble.version > before.version {
                    return Ok(());
                }
                let mine = ensemble.change.as_ref().is_some_and(|change| *change.members == members);
                accepted |= mine;
                if ensemble.last_failure != before.last_failure && !mine {
                    return Err(io::Error::other(
                        "too few of the new voters are up to date; the members stay as they were",
                    ));
                }
                if ensemble.version > before.version || (accepted && !mine) {
                    return Err(io::Error::other("another change of members came first"));
                }
                applied.changed().await.map_err(|_| io::Error::other("the region has stopped"))?;
            }
        };
        let waited = tokio::time::timeout(CHANGE_TIMEOUT, waiting).await;
        waited.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the change is still being carried out"))
        })
    }

    /// Waits until the region has agreed on its first members and this server has learnt of it.
    ///
    /// # Errors
    /// If that takes longer than a few seconds.
    pub async fn formed(&self) -> io::Result<()> {
        let mut applied = self.applied();
        while self.view().state.ensemble.members.is_empty() {
            let changed = tokio::time::timeout(TRANSFER_TIMEOUT, applied.changed()).await;
            changed.map_err(|_| no_leader())?.map_err(|_| io::Error::other("the region has stopped"))?;
        }
        Ok(())
    }

    /// Has the listener for clients go to the port that a change of the members gives this server, from now on.
    pub fn follow_client_port(&self, mover: Mover) {
        let follow = self.ports.clone().follow(|member| member.client.as_deref(), mover);
        self.tasks.lock().spawn(follow);
    }

    /// Who takes part, as this server knows it.
    pub fn roster(&self) -> Roster {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        Group::of(&metrics).roster()
    }

    /// Stops taking part, after handing leadership over if there is somebody to take it. What was
    /// acknowledged is on disk.
    pub async fn shutdown(&self) {
        self.hand_over().await;
        self.tasks.lock().abort_all();
        if let Err(error) = self.raft.shutdown().await {
            tracing::debug!(%error, "the consensus engine did not end cleanly");
        }
        self.store.log().close().await;
    }
}

fn no_leader() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "the region has no leader; see whether a majority of its voters runs",
    )
}

/// How long a voter that is asked to lead may take.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a change of members is waited for: new voters may have to be brought up to date.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a leader that stops waits for another to take over.
const HAND_OVER_TIMEOUT: Duration = Duration::from_millis(500);

impl Region {
    /// Asks the voter that has the most of the log to lead, and waits until it does.
    async fn hand_over(&self) {
        let mut leadership = self.leadership();
        if !leadership.borrow().is_me {
            return;
        }
        let successor = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
            let others = metrics
                .replication
                .iter()
                .flatten()
                .filter(|(id, _)| **id != self.config.server && voters.contains(id));
            others.max_by_key(|(_, matched)| **matched).map(|(id, _)| *id)
        };
        let Some(successor) = successor else { return };
        if let Err(error) = self.raft.trigger().transfer_leader(successor).await {
            tracing::debug!(%error, "leadership was not handed over");
            return;
        }
        let handed_over = leadership.wait_for(|l| !l.is_me && l.leader.is_some());
        // Whoever did not take over in time is elected the ordinary way.
        let _ = tokio::time::timeout(HAND_OVER_TIMEOUT, handed_over).await;
    }
}

/// Tells the uplink what is applied before anybody else learns of it.
struct SettlingSink {
    sink: Arc<dyn Sink>,
    uplink: Uplink,
    server: u8,
    applied: watch::Sender<u64>,
    /// The version of the members and the change of them that was asked for.
    members: parking_lot::Mutex<(i64, Option<i64>)>,
    /// Told the version when there is another.
    version: watch::Sender<i64>,
    /// Told when there was another.
    members_changed: Arc<Notify>,
}

impl SettlingSink {
    fn settle(&self, view: &View) {
        if let Some((boot, upto)) = view.state.cursors.get(&self.server) {
            self.uplink.settle(*boot, *upto);
        }
        let ensemble = &view.state.ensemble;
        let newest = (ensemble.version, ensemble.change.as_ref().map(|change| change.id));
        if std::mem::replace(&mut *self.members.lock(), newest) != newest {
            self.members_changed.notify_one();
        }
    }

    /// Tells those who read the view, which has been published.
    fn tell_version(&self, version: i64) {
        self.version.send_if_modified(|known| std::mem::replace(known, version) != version);
    }
}

impl Sink for SettlingSink {
    fn applied(&self, view: Arc<View>, effects: Effects) {
        self.settle(&view);
        let (index, version) = (view.position.index, view.state.ensemble.version);
        self.sink.applied(view, effects);
        self.applied.send_replace(index);
        self.tell_version(version);
    }

    fn reset(&self, view: Arc<View>) {
        self.settle(&view);
        let (index, version) = (view.position.index, view.state.ensemble.version);
        self.sink.reset(view);
        self.applied.send_replace(index);
        self.tell_version(version);
    }

    fn report(&self, from: u64, report: Bytes) -> Result<Bytes, String> {
        self.sink.report(from, report)
    }
}

/// Counts the starts of this server, durably: the number tells its writes from those of an earlier start.
fn next_boot(disk: &dyn Disk, dir: &Path) -> io::Result<u32> {
    let path = dir.join("boots");
    let last = match disk.open(&path) {
        Ok(file) => {
            let mut bytes = [0; 4];
            if file.read_at(&mut bytes, 0)? != 4 {
                let reason =
                    format!("{} is damaged: it should hold four bytes; restore this server", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
            u32::from_le_bytes(bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let boot = last.checked_add(1).ok_or_else(|| io::Error::other("this server was started too often"))?;
    replace_file(disk, dir, "boots", &boot.to_le_bytes())?;
    Ok(boot)
}

/// Writes down in the data directory whose it is, or refuses another server's: two servers of one identity, or
/// one with two, could vote twice.
fn claim(disk: &dyn Disk, config: &RegionConfig) -> io::Result<()> {
    let path = config.data_dir.join("owner");
    let owner = format!("{}-{}", config.region_name, config.server);
    match disk.open(&path) {
        Ok(file) => {
            // What is longer is another's in any case.
            let mut bytes = vec![0; owner.len() + 256];
            let length = file.read_at(&mut bytes, 0)?;
            let found = String::from_utf8_lossy(&bytes[..length]);
            if found == owner {
                return Ok(());
            }
            let reason = format!(
                "{} belongs to server {found}, and this is {owner}; correct data_dir, region or server",
                config.data_dir.display()
            );
            Err(io::Error::new(io::ErrorKind::InvalidData, reason))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            replace_file(disk, &config.data_dir, "owner", owner.as_bytes())
        }
        Err(error) => Err(error),
    }
}

/// Replaces a small file of the data directory, so that a crash leaves the old one or the new one.
fn replace_file(disk: &dyn Disk, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary_name = format!("{name}.tmp");
    let temporary = dir.join(&temporary_name);
    if disk.list(dir)?.contains(&temporary_name) {
        // Left over by a crash between create and rename.
        disk.remove(&temporary)?;
    }
    let file = disk.create(&temporary)?;
    file.write_at(bytes, 0)?;
    file.sync_data()?;
    disk.rename(&temporary, &dir.join(name))?;
    disk.sync_dir(dir)
}

/// Publishes who leads, and why the engine has stopped if it has.
async fn follow_leadership(
    raft: Raft,
    leadership: watch::Sender<Leadership>,
    failure: watch::Sender<Option<String>>,
    counters: Arc<RegionMetrics>,
    clock: Arc<dyn Clock>,
) {
    let mut metrics = raft.metrics();
    let mut leaderless_since = Some(clock.monotonic());
    counters.leaderless.fetch_add(1, Ordering::Relaxed);
    loop {
        let now = {
            let metrics = metrics.borrow_watched();
            if let Err(fatal) = &metrics.running_state {
                failure.send_replace(Some(fatal.to_string()));
            }
            let is_me = metrics.state == ServerState::Leader;
            Leadership { term: metrics.current_term, leader: metrics.current_leader, is_me }
        };
        if *leadership.borrow() != now {
            let at = clock.monotonic();
            counters.leads(now.is_me, at);
            match (now.leader, leaderless_since) {
                (Some(_), Some(since)) => {
                    counters.is_live();
                    counters.leaderless_ms.record(millis(at.saturating_sub(since)));
                    leaderless_since = None;
                }
                (None, None) => {
                    counters.leaderless.fetch_add(1, Ordering::Relaxed);
                    leaderless_since = Some(at);
                }
                _ => {}
            }
            if leadership.borrow().leader != now.leader {
                tracing::info!(term = now.term, leader = now.leader, "leader of the region");
            }
            leadership.send_replace(now);
        }
        if metrics.changed().await.is_err() {
            failure.send_if_modified(|f| {
                let stopped = f.is_none();
                f.get_or_insert_with(|| "the consensus engine has stopped".into());
                stopped
            });
            return;
        }
    }
}
