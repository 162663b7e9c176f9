//! The bridge of a server: answers other regions while this server leads its region, and does what a
//! leading server owes the mesh.
//!
//! Every server that may lead has a [`Bridge`] with its QUIC endpoint. When the server becomes leader of
//! its region it calls [`Bridge::lead`]; for that *tenure* the bridge
//!
//! * takes over the region's storage of the global group and runs the region's vote in it ([`crate::global`]),
//! * sends what waits in the region's outboxes to whoever orders it,
//! * sends the records of subtrees that this region is home of to the other regions,
//! * renews the region's lease, and if it leads the global group grants the leases of all,
//! * measures round-trip times and compares digests with the other regions.
//!
//! Everything that must be remembered is in the region's log; a tenure can end at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use meridian_seam::clock::millis;
use meridian_seam::mutant::{self, Mutant};
use meridian_seam::resend::{self, Carrier, Queue, Sent};
use meridian_seam::watch;
use meridian_seam::{Environment, codec, limits, rpc};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::certificates::{Identity, PeerName};
use crate::engine::{LogBounds, Responder, invalid_data};
use crate::global::{GlobalGroup, GlobalTiming, InstallGlobal, Machine};
use crate::lease::{GrantedLeases, HeldLease, LeaseStage, LeaseTerms};
use crate::links::{Forward, Hello, InstallHomed, LANE, Mirror, RegionLink, Stage, kind};
use crate::mesh::{Mesh, Orderer, RegionId, SubtreeId};
use crate::probe::{self, Probes, RttSummary};
use crate::region::{Region, RegionView};
use crate::state::{Command, GlobalCommand, Outcome};
use crate::transport::{PeerAddress, Settings, Transport};

/// The pause before something that failed is tried again: short, because a cut may heal at any time.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// A request to another region that is not answered for so long is given up.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests and records that another region has not answered for so long are sent again: longer than a
/// change of the global group's leader.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// How often regions tell each other what they have measured, and their digests.
const GOSSIP_INTERVAL: Duration = Duration::from_secs(1);

/// What a bridge must know.
#[derive(Clone, Debug)]
pub struct BridgeConfig {
    /// The mesh's table.
    pub mesh: Mesh,
    /// This region's number.
    pub region: RegionId,
    /// This server's name within the region, as its certificate has it.
    pub server: String,
    /// The address to bind for QUIC.
    pub listen: SocketAddr,
    /// The servers of the other regions that may lead them.
    pub peers: Vec<PeerAddress>,
    /// Timeouts of the global group.
    pub timing: GlobalTiming,
    /// Bounds of the global group's log.
    pub log_bounds: LogBounds,
    /// How long leases last.
    pub lease: LeaseTerms,
    /// QUIC.
    pub transport: Settings,
}

/// The bridge of one server.
pub struct Bridge {
    config: BridgeConfig,
    environment: Environment,
    region: Arc<dyn Region>,
    links: BTreeMap<RegionId, RegionLink>,
    transport: Arc<Transport>,
    probes: Probes,
    gossip: Mutex<BTreeMap<RegionId, Gossip>>,
    /// Regions whose copy of a subtree differs from this one's.
    diverged: Mutex<BTreeSet<(RegionId, SubtreeId)>>,
    divergence: Notify,
    /// Tenures begun since this server started.
    tenures: AtomicU64,
    /// The tenure under way.
    tenure: RwLock<Option<Arc<Tenure>>>,
    tasks: Mutex<JoinSet<()>>,
}

/// What regions tell each other now and then.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Gossip {
    rtt: Vec<RttRow>,
    digests: Vec<SubtreeDigest>,
}

/// Round-trip times from one region to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RttRow {
    /// Who measured.
    pub from: String,
    /// To whom.
    pub to: String,
    /// What.
    pub rtt: RttSummary,
}

/// The content of a subtree at a position of its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubtreeDigest {
    /// The subtree.
    pub subtree: SubtreeId,
    /// The position of its order.
    pub position: u64,
    /// The digest there.
    pub digest: u128,
}

/// What a bridge is doing, for operators.
#[derive(Clone, Debug, Serialize)]
pub struct BridgeStatus {
    /// Whether this server leads its region and so speaks for it.
    pub leading: bool,
    /// The region that leads the global group, if known.
    pub global_leader: Option<String>,
    /// The newest term of the global group known.
    pub global_term: u64,
    /// Requests that wait to be ordered elsewhere.
    pub outbox_requests: usize,
}

/// The time during which this server leads its region.
struct Tenure {
    incarnation: u64,
    group: GlobalGroup,
    grants: Mutex<Option<GrantedLeases>>,
    /// Dropped at the end: streams of other regions that are being answered end with it.
    ended: watch::Receiver<()>,
}

impl Bridge {
    /// Opens the QUIC endpoint and answers other regions; must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the certificate is not this server's or the address can't be bound.
    pub fn start(
        environment: Environment,
        config: BridgeConfig,
        identity: Arc<Identity>,
        region: Arc<dyn Region>,
    ) -> io::Result<Arc<Self>> {
        let own_name = config.mesh.region_name(config.region).unwrap_or_default().to_string();
        let name = PeerName::new(own_name, config.server.clone());
        let transport = Arc::new(Transport::bind(
            &environment,
            config.listen,
            identity,
            &name,
            config.transport.clone(),
        )?);
        let table = config.mesh.fingerprint();
        let links = config
            .mesh
            .region_ids()
            .filter(|id| *id != config.region)
            .map(|id| {
                let name = config.mesh.region_name(id).unwrap_or_default().to_string();
                let servers = config.peers.iter().filter(|p| p.region == name).cloned().collect();
                (id, RegionLink::new(transport.clone(), id, name, servers, table))
            })
            .collect();
        let bridge = Arc::new(Self {
            config,
            environment,
            region,
            links,
            transport,
            probes: Probes::default(),
            gossip: Mutex::default(),
            diverged: Mutex::default(),
            divergence: Notify::new(),
            tenures: AtomicU64::new(0),
            tenure: RwLock::default(),
            tasks: Mutex::new(JoinSet::new()),
        });
        bridge.tasks.lock().spawn(accept(Arc::downgrade(&bridge), bridge.transport.clone()));
        Ok(bridge)
    }

    /// Speaks for the region until the future is dropped or another server has taken over. `term` is the
    /// term of this server's leadership: later ones are higher.
    pub async fn lead(self: &Arc<Self>, term: u64) {
        loop {
            match self.tenure(self.next_incarnation(term)).await {
                Ok(reason) => tracing::info!(reason, "the region's part in the mesh starts anew"),
                Err(error) => tracing::info!(%error, "the region's part in the mesh starts anew"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Every tenure has a number of its own, also within one term: proposals of the one before, which may
    /// still be under way, must have no effect once the next one has read what is stored.
    fn next_incarnation(&self, term: u64) -> u64 {
        const TENURE_BITS: u32 = 24;
        let tenure = self.tenures.fetch_add(1, Ordering::Relaxed);
        term << TENURE_BITS | tenure.min((1 << TENURE_BITS) - 1)
    }

    async fn tenure(self: &Arc<Self>, incarnation: u64) -> io::Result<String> {
        let acquired = self.region.propose(Command::AcquireGlobal { incarnation }).await?;
        if acquired != Outcome::Applied {
            return Err(io::Error::other("a later leader of the region speaks for it"));
        }
        let region_id = self.config.region;
        let links = self.links.iter().map(|(id, link)| (*id, link.another())).collect();
        let group = GlobalGroup::start(
            self.region.clone(),
            region_id,
            incarnation,
            links,
            self.config.timing,
            self.config.log_bounds,
        )
        .await?;
        let (alive, ended) = watch::channel(());
        let tenure = Arc::new(Tenure { incarnation, group: group.clone(), grants: Mutex::default(), ended });
        let guard = TenureGuard { bridge: self.clone(), tenure: tenure.clone(), _alive: alive };
        *self.tenure.write() = Some(tenure.clone());
        tracing::info!(incarnation, "this server speaks for its region");
        let mut duties = self.duties(&tenure);
        let reason = tokio::select! {
            biased;
            reason = group.stopped() => reason,
            _ = duties.join_next() => "a duty ended".to_string(),
        };
        drop(guard);
        Ok(reason)
    }

    fn duties(self: &Arc<Self>, tenure: &Arc<Tenure>) -> JoinSet<()> {
        let mut duties = JoinSet::new();
        let federation = self.region.view().federation().clone();
        for orderer in federation.orders.keys() {
            match orderer {
                Orderer::Global => duties.spawn(self.clone().empty_outbox(tenure.clone(), *orderer)),
                Orderer::Home(subtree) => duties.spawn(self.clone().serve_homed(tenure.clone(), *subtree)),
            };
        }
        duties.spawn(self.clone().hold_lease(tenure.clone()));
        duties.spawn(self.clone().grant_leases(tenure.clone()));
        for link in self.links.values() {
            duties.spawn(self.clone().tell(link.another()));
        }
        for peer in &self.config.peers {
            duties.spawn(self.clone().measure(peer.clone()));
        }
        duties
    }

    /// Round-trip times between all pairs of regions, as far as known here.
    pub fn rtt(&self) -> Vec<RttRow> {
        let mut rows = self.own_rtt();
        rows.extend(self.gossip.lock().values().flat_map(|g| g.rtt.iter().cloned()));
        rows
    }

    /// The histogram of round-trip times from this region to another, V2-serialised in base64.
    pub fn rtt_histogram(&self, to: &str) -> Option<String> {
        self.probes.histogram_base64(to, self.environment.clock.monotonic())
    }

    /// What the bridge is doing.
    pub fn status(&self) -> BridgeStatus {
        let tenure = self.tenure.read().clone();
        let global_leader = tenure.as_ref().and_then(|t| t.group.leader());
        let view = self.region.view();
        BridgeStatus {
            leading: tenure.is_some(),
            global_leader: global_leader.and_then(|id| self.config.mesh.region_name(id)).map(str::to_string),
            global_term: tenure.as_ref().map_or(0, |t| t.group.term()),
            outbox_requests: view.federation().outboxes.values().map(|o| o.requests.len()).sum(),
        }
    }

    /// Closes the endpoint; nothing is lost that the region's log has.
    pub async fn shutdown(&self) {
        self.tasks.lock().abort_all();
        let tenure = self.tenure.write().take();
        if let Some(tenure) = tenure {
            tenure.group.shutdown().await;
        }
        self.transport.close().await;
    }

    fn own_rtt(&self) -> Vec<RttRow> {
        let now = self.environment.clock.monotonic();
        let from = self.config.mesh.region_name(self.config.region).unwrap_or_default().to_string();
        let summary = |to: String| {
            let rtt = self.probes.summary(&to, now)?;
            Some(RttRow { from: from.clone(), to, rtt })
        };
        self.probes.regions().into_iter().filter_map(summary).collect()
    }

    fn own_digests(&self) -> Vec<SubtreeDigest> {
        let view = self.region.view();
        let digest = |(id, _): (SubtreeId, _)| {
            let order = view.federation().orders.get(&self.config.mesh.orderer_of(id)?)?;
            Some(SubtreeDigest { subtree: id, position: order.position, digest: view.digest(id) })
        };
        self.config.mesh.subtrees().filter_map(digest).collect()
    }

    /// Does what a region owes a homed subtree, as its home or as one of its mirrors, however often the home
    /// moves.
    async fn serve_homed(self: Arc<Self>, tenure: Arc<Tenure>, subtree: SubtreeId) {
        let orderer = Orderer::Home(subtree);
        loop {
            let (home, epoch) = self.home_of(subtree);
            // A region that was the home may be the only one that has what another lacks.
            let feeding = self.links.values().map(|link| self.clone().feed_mirror(link.another(), subtree));
            let feeding = futures::future::join_all(feeding);
            let serving = async {
                if home == self.config.region {
                    feeding.await;
                } else {
                    tokio::join!(feeding, self.clone().empty_outbox(tenure.clone(), orderer));
                }
            };
            let moved = async {
                let mut changes = self.region.changes();
                while self.home_of(subtree) == (home, epoch) {
                    changes.changed().await?;
                }
                Ok::<(), watch::Closed>(())
            };
            tokio::select! {
                biased;
                moved = moved => {
                    if moved.is_err() {
                        // The region has stopped.
                        return;
                    }
                    let (home, epoch) = self.home_of(subtree);
                    let home = self.config.mesh.region_name(home).unwrap_or_default();
                    tracing::info!(subtree, home, epoch, "the home of a subtree has moved");
                }
                () = serving => {}
            }
        }
    }

    fn home_of(&self, subtree: SubtreeId) -> (RegionId, u32) {
        let view = self.region.view();
        view.federation().orders.get(&Orderer::Home(subtree)).map_or((0, 0), |o| (o.home, o.epoch))
    }

    /// Moves the home of a subtree from this region to another, which must be reachable: until it has the last
    /// record of this home nobody orders.
    ///
    /// # Errors
    /// If this server does not speak for the home, or the other region does not answer.
    pub async fn move_home(&self, subtree: SubtreeId, to: RegionId) -> io::Result<()> {
        let refused = |reason: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, reason.to_string()));
        if self.tenure.read().is_none() || self.home_of(subtree).0 != self.config.region {
            return refused(
                "this server does not speak for the subtree's home: ask the leader of the home region",
            );
        }
        let Some(link) = self.links.get(&to) else {
            return refused("the subtree's home is that region already, or there is no such region");
        };
        link.ask::<u64>(kind::MIRROR_POSITION, &subtree, ASK_TIMEOUT).await?;
        expect_applied(self.region.propose(Command::MoveHome { subtree, to }).await?)
    }

    /// Hands the lead of the global group to another region, which takes it once it is up to date.
    ///
    /// # Errors
    /// If this server does not speak for the region that leads.
    pub async fn transfer_global(&self, to: RegionId) -> io::Result<()> {
        let tenure = self.tenure.read().clone();
        let leading = tenure.filter(|t| t.group.leader() == Some(self.config.region));
        let Some(tenure) = leading else {
            let reason = "this server does not speak for the region that leads the global group: ask that one's leader";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        };
        tenure.group.transfer(to).await
    }

    /// Sends what waits in an outbox to whoever orders it now.
    async fn empty_outbox(self: Arc<Self>, tenure: Arc<Tenure>, orderer: Orderer) {
        let changes = tokio::sync::Mutex::new(self.region.changes());
        let queue = OutboxQueue { region: self.region.clone(), orderer, changes };
        loop {
            let (target, known) = match orderer {
                Orderer::Global => (tenure.group.leader(), (tenure.group.leader(), tenure.group.term())),
                Orderer::Home(_) => {
                    (self.region.view().federation().orders.get(&orderer).map(|o| o.home), (None, 0))
                }
            };
            let carrier = target.and_then(|region| self.carrier(&tenure, orderer, region));
            let Some(carrier) = carrier else {
                if orderer == Orderer::Global && !tenure.group.leader_changed(known).await {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let moved = async {
                match orderer {
                    Orderer::Global => tenure.group.leader_changed(known).await,
                    Orderer::Home(_) => std::future::pending().await,
                }
            };
            // The way is opened before anything waits for it, and opened anew as soon as it breaks.
            let Ok(broken) = carrier.open().await else {
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            };
            tokio::select! {
                biased;
                () = broken => {}
                sent = resend::send_all(&queue, limits::FORWARDS_IN_FLIGHT_MAX, &carrier) => {
                    if let Err(error) = sent {
                        tracing::debug!(%error, ?orderer, "the outbox is sent again");
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                // Without a group there will be no other leader: the tenure is over.
                goes_on = moved => if !goes_on { return },
            }
        }
    }

    fn carrier(&self, tenure: &Arc<Tenure>, orderer: Orderer, target: RegionId) -> Option<OutboxCarrier> {
        let subtree = match orderer {
            Orderer::Global => None,
            Orderer::Home(subtree) => Some(subtree),
        };
        if target == self.config.region {
            // A region sends nothing to itself as a home: it orders at once.
            return (orderer == Orderer::Global).then(|| OutboxCarrier::Here {
                group: tenure.group.clone(),
                region: target,
                clock: self.environment.clock.clone(),
            });
        }
        Some(OutboxCarrier::There { link: self.links.get(&target)?.another(), subtree })
    }

    /// Sends the records of a subtree that this region is home of to another region; of one that it was home
    /// of, what the other lacks.
    async fn feed_mirror(self: Arc<Self>, link: RegionLink, subtree: SubtreeId) {
        loop {
            let is_home = self.home_of(subtree).0 == self.config.region;
            if !is_home && !self.region.view().federation().mirrors.contains_key(&subtree) {
                return;
            }
            match self.feed_mirror_until_failure(&link, subtree).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::debug!(%error, subtree, region = link.region(), "the mirror is fed anew");
                }
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn feed_mirror_until_failure(&self, link: &RegionLink, subtree: SubtreeId) -> io::Result<()> {
        let orderer = Orderer::Home(subtree);
        let mut changes = self.region.changes();
        let mut position: u64 = link.ask(kind::MIRROR_POSITION, &subtree, ASK_TIMEOUT).await?;
        let mut under_way = FuturesUnordered::new();
        loop {
            changes.mark_unchanged();
            let view = self.region.view();
            let federation = view.federation();
            let order = federation.orders.get(&orderer).cloned().unwrap_or_default();
            let (reached, epoch) = (order.position, order.epoch);
            let kept = federation.mirrors.get(&subtree);
            let is_home = order.home == self.config.region;
            // The new home feeds what comes after an old one's last record.
            let end = kept.map_or(0, |m| (m.first + m.records.len() as u64).saturating_sub(1));
            let target = if is_home { reached } else { end.min(reached) };
            if !is_home && position >= target && under_way.is_empty() {
                return Ok(());
            }
            if is_home && position > reached {
                let reason =
                    format!("region {} is at {position}, ahead of the home's {reached}", link.region());
                tracing::error!(
                    subtree,
                    reason,
                    "the home has lost writes that a mirror has; move the home there"
                );
                return Err(io::Error::other(reason));
            }
            if is_home && under_way.is_empty() && self.diverged.lock().remove(&(link.region(), subtree)) {
                tracing::warn!(
                    subtree,
                    region = link.region(),
                    "a mirror that differs gets the whole content anew"
                );
                position = send_whole(link, &*view, subtree, epoch).await?;
                continue;
            }
            if position < target && under_way.len() < limits::FORWARDS_IN_FLIGHT_MAX {
                match kept.and_then(|m| m.from(position + 1, limits::FORWARD_BYTES_MAX)) {
                    Some(records) if !records.is_empty() => {
                        position += records.len() as u64;
                        let reply = link.call(kind::MIRROR, &Mirror { subtree, epoch, records }).await?;
                        under_way.push(in_time(reply));
                    }
                    // The region is further behind than the records that are kept.
                    _ => position = send_whole(link, &*view, subtree, epoch).await?,
                }
                continue;
            }
            tokio::select! {
                biased;
                Some(reply) = under_way.next(), if !under_way.is_empty() => {
                    expect_applied(reply?)?;
                }
                changed = changes.changed() => changed.map_err(io::Error::other)?,
                () = self.divergence.notified() => {}
            }
        }
    }

    /// Renews the region's lease, and ends the sessions at stake when all clients have noticed that it ran out.
    async fn hold_lease(self: Arc<Self>, tenure: Arc<Tenure>) {
        let terms = self.config.lease;
        let clock = &self.environment.clock;
        let mut held = HeldLease::new(terms, clock.monotonic());
        let mut ticks = tokio::time::interval(terms.renewal_interval());
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let sent = clock.monotonic();
            let lease_epoch = self.lease_epoch(self.config.region);
            // A renewal that is on its way must not keep the end of the lease from being noticed.
            let patience =
                held.next_stage_at().map_or(ASK_TIMEOUT, |at| ASK_TIMEOUT.min(at.saturating_sub(sent)));
            match tokio::time::timeout(patience, self.renew(&tenure, lease_epoch)).await {
                Ok(Ok(())) => {
                    let from = if mutant::is(Mutant::LeaseFromReceipt) { clock.monotonic() } else { sent };
                    self.region.lease_holds_until(held.renewed(from));
                }
                Ok(Err(error)) => tracing::debug!(%error, "the region's lease was not renewed"),
                Err(_) => tracing::debug!("the renewal of the region's lease was not answered in time"),
            }
            match held.advance(clock.monotonic()) {
                Some(LeaseStage::RunOut) => tracing::warn!(
                    sessions_end_in_ms = millis(terms.notice_period()),
                    "the region's lease has run out: holders of global znodes are disconnected, and their sessions end \
                     unless it is renewed before"
                ),
                Some(LeaseStage::Lapsed) if !mutant::is(Mutant::LeaseIgnored) => {
                    tracing::warn!("the region's lease has lapsed: the sessions that hold global znodes end");
                    // If it fails, this server's time as leader is over and the next one sees to it.
                    if let Err(error) = self.region.propose(Command::LapseLease { lease_epoch }).await {
                        tracing::warn!(%error, "the lapse of the lease could not be recorded");
                    }
                }
                _ => {}
            }
        }
    }

    async fn renew(&self, tenure: &Tenure, lease_epoch: u64) -> io::Result<()> {
        match tenure.group.leader() {
            None => {
                Err(io::Error::new(io::ErrorKind::NotConnected, "no leader of the global group is known"))
            }
            Some(leader) if leader == self.config.region => {
                self.grant(tenure, self.config.region, lease_epoch).await.map_err(io::Error::other)
            }
            Some(leader) => {
                let link = self.links.get(&leader).ok_or(io::ErrorKind::NotFound)?;
                link.ask::<()>(kind::RENEW_LEASE, &lease_epoch, ASK_TIMEOUT).await
            }
        }
    }

    /// Grants a lease, as the leader of the global group.
    async fn grant(&self, tenure: &Tenure, region: RegionId, lease_epoch: u64) -> Result<(), String> {
        let received = self.environment.clock.monotonic();
        // Leadership is confirmed after the receipt: a leader elected later counts from a later time.
        tenure.group.confirm_leadership().await.map_err(|e| e.to_string())?;
        if self.lease_epoch(region) != lease_epoch {
            return Err("the region's lease has ended; it must learn of that first".into());
        }
        let mut grants = tenure.grants.lock();
        let grants = grants.as_mut().ok_or("this region does not grant leases yet")?;
        grants.renew(region, received).then_some(()).ok_or_else(|| "the region's lease is being ended".into())
    }

    fn lease_epoch(&self, region: RegionId) -> u64 {
        self.region.view().federation().orders.get(&Orderer::Global).map_or(0, |o| o.lease_epoch(region))
    }

    /// Watches over the leases while this region leads the global group.
    async fn grant_leases(self: Arc<Self>, tenure: Arc<Tenure>) {
        let clock = &self.environment.clock;
        let mut ticks = tokio::time::interval(self.config.lease.renewal_interval() / 4);
        let mut granting_in = None;
        loop {
            ticks.tick().await;
            let (leader, term) = (tenure.group.leader(), tenure.group.term());
            if leader != Some(self.config.region) {
                granting_in = None;
                *tenure.grants.lock() = None;
                continue;
            }
            if granting_in != Some(term) {
                granting_in = Some(term);
                tracing::info!(term, "this region leads the global group");
                let regions = self.config.mesh.region_ids();
                *tenure.grants.lock() =
                    Some(GrantedLeases::new(self.config.lease, regions, clock.monotonic()));
            }
            let ended = tenure.grants.lock().as_mut().map(|g| g.ended(clock.monotonic())).unwrap_or_default();
            for region in ended {
                let name = self.config.mesh.region_name(region).unwrap_or_default();
                tracing::warn!(
                    region = name,
                    "a region did not renew its lease: its ephemerals will be removed"
                );
            }
            let ending = tenure.grants.lock().as_ref().map(GrantedLeases::ending).unwrap_or_default();
            for region in ending {
                if self.expire(&tenure, region).await
                    && let Some(grants) = tenure.grants.lock().as_mut()
                {
                    grants.agreed(region);
                }
            }
        }
    }

    async fn expire(&self, tenure: &Tenure, region: RegionId) -> bool {
        let time_ms = self.environment.clock.unix_ms();
        let command = GlobalCommand::ExpireRegion { region, lease_epoch: self.lease_epoch(region), time_ms };
        let proposing = async { tenure.group.propose(&command).await?.await };
        matches!(tokio::time::timeout(ASK_TIMEOUT, proposing).await, Ok(Ok(())))
    }

    /// Tells another region now and then what this one has measured, and its digests.
    async fn tell(self: Arc<Self>, link: RegionLink) {
        let mut ticks = tokio::time::interval(GOSSIP_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let gossip = Gossip { rtt: self.own_rtt(), digests: self.own_digests() };
            if let Err(error) = link.ask::<()>(kind::GOSSIP, &gossip, ASK_TIMEOUT).await {
                tracing::debug!(%error, region = link.region(), "a region could not be told");
            }
        }
    }

    fn hear(&self, from: RegionId, gossip: Gossip) {
        for theirs in &gossip.digests {
            let own = self.own_digests().into_iter().find(|d| d.subtree == theirs.subtree);
            if own.is_some_and(|own| own.position == theirs.position && own.digest != theirs.digest) {
                tracing::error!(
                    subtree = theirs.subtree,
                    position = theirs.position,
                    region = self.config.mesh.region_name(from),
                    "the content of a shared subtree differs between regions at the same position"
                );
                // The home is right, and mends the mirror.
                self.diverged.lock().insert((from, theirs.subtree));
                self.divergence.notify_waiters();
            }
        }
        self.gossip.lock().insert(from, gossip);
    }

    /// Measures the round-trip time to a server of another region.
    async fn measure(self: Arc<Self>, peer: PeerAddress) {
        loop {
            if let Ok(connection) = self.transport.connect(&peer).await {
                let clock = &*self.environment.clock;
                let error = probe::measure(&connection, &self.probes, clock, probe::INTERVAL).await;
                tracing::debug!(%error, server = peer.server, "the connection to a server of another region ended");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Sends the whole content of a subtree to another region, and returns the position that it stands at then.
async fn send_whole(
    link: &RegionLink,
    view: &dyn RegionView,
    subtree: SubtreeId,
    epoch: u32,
) -> io::Result<u64> {
    let orderer = Orderer::Home(subtree);
    let mut pieces = view.export(orderer)?;
    if mutant::is(Mutant::DeletionOnEmptySource) {
        pieces.truncate(1);
    }
    let transfer = link.send_pieces(orderer, epoch, pieces).await?;
    let request = InstallHomed { subtree, epoch, transfer };
    expect_applied(link.ask(kind::INSTALL_HOMED, &request, ASK_TIMEOUT).await?)?;
    link.ask(kind::MIRROR_POSITION, &subtree, ASK_TIMEOUT).await
}

/// The outcome of what was sent to another region. What is not answered in time is sent again, which does
/// no harm: the other side drops what it has seen.
async fn in_time(reply: BoxFuture<'static, io::Result<Bytes>>) -> io::Result<Outcome> {
    let reply = tokio::time::timeout(REPLY_TIMEOUT, reply).await.map_err(|_| io::ErrorKind::TimedOut)??;
    codec::decode(&reply).map_err(invalid_data)
}

fn expect_applied(outcome: Outcome) -> io::Result<()> {
    match outcome {
        Outcome::Applied => Ok(()),
        other => Err(io::Error::other(format!("the other region answered {other:?}"))),
    }
}

/// Ends what belongs to a tenure, however it ends.
struct TenureGuard {
    bridge: Arc<Bridge>,
    tenure: Arc<Tenure>,
    _alive: watch::Sender<()>,
}

impl Drop for TenureGuard {
    fn drop(&mut self) {
        let mut current = self.bridge.tenure.write();
        if current.as_ref().is_some_and(|t| t.incarnation == self.tenure.incarnation) {
            *current = None;
        }
        let group = self.tenure.group.clone();
        if mutant::is(Mutant::UnfencedIncarnation) {
            return;
        }
        tokio::spawn(async move { group.shutdown().await });
    }
}

/// The requests in an outbox, by number.
struct OutboxQueue {
    region: Arc<dyn Region>,
    orderer: Orderer,
    changes: tokio::sync::Mutex<watch::Receiver<u64>>,
}

impl Queue for OutboxQueue {
    type Item = Bytes;

    fn first(&self) -> u64 {
        let view = self.region.view();
        let outbox = view.federation().outboxes.get(&self.orderer);
        outbox.map_or(1, |o| o.requests.get_min().map_or(o.last + 1, |(first, _)| *first))
    }

    fn take_from(&self, from: u64) -> (u64, Vec<Bytes>) {
        let view = self.region.view();
        let Some(outbox) = view.federation().outboxes.get(&self.orderer) else { return (from, Vec::new()) };
        let first = outbox.requests.get_min().map_or(outbox.last + 1, |(first, _)| *first);
        let from = from.max(first);
        let mut budget = limits::FORWARD_BYTES_MAX;
        let mut taken: Vec<Bytes> = Vec::new();
        for (_, pending) in outbox.requests.range(from..).take(limits::FORWARD_REQUESTS_MAX) {
            if pending.request.len() > budget && !taken.is_empty() {
                break;
            }
            budget = budget.saturating_sub(pending.request.len());
            taken.push(pending.request.clone());
        }
        (from, taken)
    }

    async fn added(&self) {
        // The sender lives as long as the region.
        if self.changes.lock().await.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// The way of an outbox's requests to whoever orders them.
enum OutboxCarrier {
    Here { group: GlobalGroup, region: RegionId, clock: Arc<dyn meridian_seam::clock::Clock> },
    There { link: RegionLink, subtree: Option<SubtreeId> },
}

impl OutboxCarrier {
    /// Connects; the future is done when the connection has ended.
    async fn open(&self) -> io::Result<BoxFuture<'static, ()>> {
        match self {
            OutboxCarrier::Here { .. } => Ok(Box::pin(std::future::pending())),
            OutboxCarrier::There { link, .. } => {
                let client = link.client().await?;
                Ok(Box::pin(async move { client.closed().await }))
            }
        }
    }
}

impl Carrier<Bytes> for OutboxCarrier {
    async fn send(&self, first: u64, requests: Vec<Bytes>) -> io::Result<Sent> {
        Ok(match self {
            OutboxCarrier::Here { group, region, clock } => {
                let time_ms = clock.unix_ms();
                group.propose(&GlobalCommand::Forward { region: *region, first, time_ms, requests }).await?
            }
            OutboxCarrier::There { link, subtree } => {
                let kind = if subtree.is_some() { kind::FORWARD_HOME } else { kind::FORWARD_GLOBAL };
                let reply = link.call(kind, &Forward { subtree: *subtree, first, requests }).await?;
                Box::pin(async move { expect_applied(in_time(reply).await?) })
            }
        })
    }
}

async fn accept(bridge: std::sync::Weak<Bridge>, transport: Arc<Transport>) {
    while let Some(incoming) = transport.accept().await {
        let Some(bridge) = bridge.upgrade() else { return };
        if incoming.lane != LANE {
            tracing::debug!(peer = %incoming.peer, lane = incoming.lane, "a stream of an unknown lane was dropped");
            continue;
        }
        let Some(from) = bridge.config.mesh.region_id(&incoming.peer.region) else {
            tracing::warn!(peer = %incoming.peer, "a server of a region that is not in the mesh's table was refused");
            continue;
        };
        tokio::spawn(async move {
            let Some(tenure) = bridge.tenure.read().clone() else {
                // Not the leader: closing the stream says so.
                return;
            };
            let mut ended = tenure.ended.clone();
            let answering = RegionConnection {
                responder: tenure.group.responder(),
                bridge,
                tenure,
                from,
                greeted: Arc::new(Mutex::new(false)),
            };
            tokio::select! {
                biased;
                served = rpc::serve(incoming.stream, &answering) => {
                    if let Err(error) = served {
                        tracing::debug!(%error, peer = %incoming.peer, "a stream of another region ended");
                    }
                }
                _ = ended.changed() => {}
            }
        });
    }
}

/// A stream of another region's leader to this one.
struct RegionConnection {
    bridge: Arc<Bridge>,
    tenure: Arc<Tenure>,
    responder: Arc<Responder<Machine>>,
    from: RegionId,
    greeted: Arc<Mutex<bool>>,
}

type Reply = BoxFuture<'static, Result<Bytes, String>>;

impl rpc::Handler for RegionConnection {
    fn handle(&self, kind: u8, body: Bytes) -> Reply {
        if kind == kind::HELLO {
            return ready(self.greet(&body));
        }
        if !*self.greeted.lock() {
            return ready(Err("a stream starts with a greeting".into()));
        }
        let handled = match kind {
            kind::FORWARD_GLOBAL => self.forward_global(&body),
            kind::FORWARD_HOME => self.forward_home(&body),
            kind::MIRROR_POSITION => self.mirror_position(&body),
            kind::MIRROR => self.mirror(&body),
            kind::STAGE => self.stage(&body),
            kind::INSTALL_GLOBAL => self.install_global(&body),
            kind::INSTALL_HOMED => self.install_homed(&body),
            kind::RENEW_LEASE => self.renew_lease(&body),
            kind::GOSSIP => self.gossip(&body),
            _ => Ok(self.responder.handle(kind, &body)),
        };
        handled.unwrap_or_else(|reason| ready(Err(reason)))
    }
}

fn ready(result: Result<Bytes, String>) -> Reply {
    Box::pin(std::future::ready(result))
}

fn decode<'a, T: Deserialize<'a>>(body: &'a Bytes) -> Result<T, String> {
    codec::decode(body).map_err(|e| e.to_string())
}

fn encode(value: &impl Serialize) -> Result<Bytes, String> {
    codec::encode(value).map(Bytes::from).map_err(|e| e.to_string())
}

impl RegionConnection {
    fn greet(&self, body: &Bytes) -> Result<Bytes, String> {
        let hello: Hello = decode(body)?;
        if hello.mesh != self.bridge.config.mesh.fingerprint() {
            let region = self.bridge.config.mesh.region_name(self.from).unwrap_or_default();
            tracing::error!(
                region,
                "a region with another table of regions and subtrees was refused; make them equal"
            );
            return Err("the tables of regions and subtrees differ; make them equal in all regions".into());
        }
        *self.greeted.lock() = true;
        Ok(Bytes::new())
    }

    /// Proposes in this region's log; queued before this returns.
    fn propose(&self, command: Command) -> Reply {
        let proposed = self.bridge.region.propose(command);
        Box::pin(async move { encode(&proposed.await.map_err(|e| e.to_string())?) })
    }

    fn forward_global(&self, body: &Bytes) -> Result<Reply, String> {
        let Forward { first, requests, .. } = decode(body)?;
        let time_ms = self.bridge.environment.clock.unix_ms();
        let command = GlobalCommand::Forward { region: self.from, first, time_ms, requests };
        let group = self.tenure.group.clone();
        // The stream's requests are handled in order, and queued by the first poll of this future; two that
        // overtake each other would be refused as a gap and sent again.
        Ok(Box::pin(async move {
            let proposed = group.propose(&command).await.map_err(|e| e.to_string())?;
            proposed.await.map_err(|e| e.to_string())?;
            encode(&Outcome::Applied)
        }))
    }

    fn forward_home(&self, body: &Bytes) -> Result<Reply, String> {
        let Forward { subtree, first, requests } = decode(body)?;
        let subtree = subtree.ok_or("no subtree is named")?;
        Ok(self.propose(Command::Forward { subtree, region: self.from, first, requests }))
    }

    fn mirror_position(&self, body: &Bytes) -> Result<Reply, String> {
        let subtree: SubtreeId = decode(body)?;
        let view = self.bridge.region.view();
        let position = view.federation().orders.get(&Orderer::Home(subtree)).map_or(0, |o| o.position);
        Ok(ready(encode(&position)))
    }

    /// Only the home of a subtree may say what is in it: the one known here, or one of a later epoch.
    fn expect_home(&self, subtree: SubtreeId, epoch: u32) -> Result<(), String> {
        let (home, known) = self.bridge.home_of(subtree);
        if home == self.from || epoch > known {
            Ok(())
        } else {
            Err("the region is not the subtree's home".into())
        }
    }

    fn mirror(&self, body: &Bytes) -> Result<Reply, String> {
        let Mirror { subtree, epoch, records } = decode(body)?;
        self.expect_home(subtree, epoch)?;
        Ok(self.propose(Command::Mirror { subtree, records }))
    }

    fn stage(&self, body: &Bytes) -> Result<Reply, String> {
        let Stage { orderer, epoch, transfer, piece, bytes } = decode(body)?;
        if let Orderer::Home(subtree) = orderer {
            self.expect_home(subtree, epoch)?;
        }
        Ok(self.propose(Command::Stage { orderer, transfer, piece, bytes }))
    }

    fn install_homed(&self, body: &Bytes) -> Result<Reply, String> {
        let InstallHomed { subtree, epoch, transfer } = decode(body)?;
        self.expect_home(subtree, epoch)?;
        Ok(self.propose(Command::Install { orderer: Orderer::Home(subtree), transfer, global: None }))
    }

    fn install_global(&self, body: &Bytes) -> Result<Reply, String> {
        let request: InstallGlobal = decode(body)?;
        let group = self.tenure.group.clone();
        Ok(Box::pin(async move { encode(&group.install(request).await.map_err(|e| e.to_string())?) }))
    }

    fn renew_lease(&self, body: &Bytes) -> Result<Reply, String> {
        let lease_epoch: u64 = decode(body)?;
        let (bridge, tenure, from) = (self.bridge.clone(), self.tenure.clone(), self.from);
        Ok(Box::pin(async move {
            bridge.grant(&tenure, from, lease_epoch).await?;
            encode(&())
        }))
    }

    fn gossip(&self, body: &Bytes) -> Result<Reply, String> {
        let gossip: Gossip = decode(body)?;
        self.bridge.hear(self.from, gossip);
        Ok(ready(encode(&())))
    }
}
