//! Simulated servers: the production server, with its bridge, on a simulated host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use meridian_bridge::bridge::BridgeConfig;
use meridian_bridge::certificates::{Identity, PeerName};
use meridian_bridge::engine::LogBounds;
use meridian_bridge::mesh::Mesh;
use meridian_bridge::transport::{Congestion, PeerAddress, Settings};
use meridian_node::config::server_name;
use meridian_node::log::LogOptions;
use meridian_node::mesh_server::{MeshPart, MeshServer};
use meridian_node::peer_tls::PeerIdentity;
use meridian_node::region::{RegionConfig, Storage, Timing, View};
use meridian_node::server::ServerOptions;
use meridian_node::txn::ensemble::{Members, members_at};
use meridian_seam::Environment;
use meridian_seam::background::{Background, LogWriter, Work};
use meridian_seam::disk::Disk;
use meridian_seam::disk::testing::MemoryDisk;
use meridian_seam::entropy::{Entropy, SeededEntropy};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::certificates::{Certificates, repeatable_crypto};
use super::faults::HEALTHY_SYNC_MS;
use super::host::Host;
use super::mutant::World;
use super::net::{HostId, Wires, address_of};

const CLIENT_PORT: u16 = 2181;
const PEER_PORT: u16 = 2888;
const BRIDGE_PORT: u16 = 7000;

/// Regions, and the servers in each.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) mesh: Mesh,
    pub(super) regions: usize,
    pub(super) voters: usize,
    pub(super) observers: usize,
}

impl Layout {
    pub(super) fn servers(&self) -> usize {
        self.regions * self.servers_per_region()
    }

    pub(super) fn servers_per_region(&self) -> usize {
        self.voters + self.observers
    }

    pub(super) fn region_name(&self, region: usize) -> String {
        self.mesh.regions.get(region).cloned().unwrap_or_else(|| "alone".into())
    }

    pub(super) fn host_of(&self, region: usize, server: usize) -> HostId {
        u8::try_from(1 + region * self.servers_per_region() + server).unwrap_or(u8::MAX)
    }

    /// The host of a region's clients.
    pub(super) fn client_host_of(&self, region: usize) -> HostId {
        u8::try_from(200 + region).unwrap_or(u8::MAX)
    }

    /// Where a region's clients connect to.
    pub(super) fn client_addresses(&self, region: usize) -> Vec<String> {
        (0..self.servers_per_region())
            .map(|server| address_of(self.host_of(region, server), CLIENT_PORT).to_string())
            .collect()
    }

    /// The names of all servers, as their certificates have them.
    pub(super) fn peer_names(&self) -> Vec<PeerName> {
        let name = |region, server| {
            let region = self.region_name(region);
            PeerName::new(region.clone(), server_name(&region, number(server)))
        };
        let of_region = |region| (0..self.servers_per_region()).map(move |server| name(region, server));
        (0..self.regions).flat_map(of_region).collect()
    }

    /// The members of a region: these vote, and one of its servers may be no member.
    pub(super) fn members(&self, region: usize, voters: &[usize], gone: Option<usize>) -> Members {
        let members = (0..self.servers_per_region()).filter(|server| Some(*server) != gone);
        let (voters, observers): (Vec<usize>, Vec<usize>) =
            members.partition(|server| voters.contains(server));
        members_at(&self.peer_addresses(region, voters), &self.peer_addresses(region, observers))
    }

    fn peer_addresses(&self, region: usize, servers: Vec<usize>) -> BTreeMap<u64, String> {
        servers
            .into_iter()
            .map(|server| {
                let address = address_of(self.host_of(region, server), PEER_PORT).to_string();
                (u64::from(number(server)), address)
            })
            .collect()
    }

    fn region_config(&self, region: usize, server: usize) -> RegionConfig {
        RegionConfig {
            region: number(region),
            region_name: self.region_name(region),
            server: u64::from(number(server)),
            members: self.members(region, &(0..self.voters).collect::<Vec<_>>(), None),
            listen: address_of(self.host_of(region, server), PEER_PORT).to_string(),
            data_dir: PathBuf::from("/data"),
            timing: Timing::default(),
            // Small, so that segments end, logs are purged and snapshots are sent within a run.
            storage: Storage {
                log_dir: None,
                log: LogOptions {
                    segment_bytes: 128 << 10,
                    reserve_bytes: 512 << 10,
                    ..LogOptions::default()
                },
                log_bounds: LogBounds { bytes_per_snapshot: 64 << 10, bytes_kept: 16 << 10 },
                // Members that lag are sent what is read from the disk.
                log_bytes_in_memory: 8 << 10,
                entries_per_snapshot: 300,
            },
            tls: None,
        }
    }

    fn bridge_config(&self, region: usize, server: usize, world: Option<World>) -> BridgeConfig {
        let others = (0..self.regions).filter(|other| *other != region);
        let peers = others.flat_map(|other| {
            (0..self.voters).map(move |server| PeerAddress {
                region: self.region_name(other),
                server: server_name(&self.region_name(other), number(server)),
                address: address_of(self.host_of(other, server), BRIDGE_PORT).to_string(),
            })
        });
        BridgeConfig {
            mesh: self.mesh.clone(),
            region: number(region),
            server: server_name(&self.region_name(region), number(server)),
            listen: address_of(self.host_of(region, server), BRIDGE_PORT),
            peers: peers.collect(),
            timing: Default::default(),
            log_bounds: LogBounds { bytes_per_snapshot: 16 << 10, bytes_kept: 8 << 10 },
            lease: World::lease(world),
            // The other way of finding the rate draws random numbers past every seam.
            transport: Settings { congestion: Congestion::Cubic, ..Settings::default() },
        }
    }
}

pub(super) fn number(index: usize) -> u8 {
    u8::try_from(index + 1).unwrap_or(u8::MAX)
}

/// A server, running or not.
pub(super) struct SimServer {
    pub(super) region: usize,
    pub(super) index: usize,
    pub(super) id: HostId,
    pub(super) host: Host,
    pub(super) name: String,
    /// It never starts again.
    pub(super) is_lost: bool,
    disk: MemoryDisk,
    sync_ms: Arc<AtomicU64>,
    starts: u64,
    seed: u64,
    world: Option<World>,
    /// Changes of the disk until the power goes again, once the server has started.
    power_left: Option<u64>,
    /// Its disk has failed, or will at the next sync or when the power goes: that may be why it can't start or go on.
    disk_fails: bool,
    disk_is_full: bool,
    /// One of the two was so at its last start or since, even if the disk is healed by now.
    disk_has_failed: bool,
    /// Damage was done to what it has written: it may refuse to start.
    disk_rots: bool,
    running: Arc<Mutex<Running>>,
}

enum Running {
    Starting,
    Yes(Box<MeshServer>),
    Stopped,
    Failed(String),
}

impl SimServer {
    pub(super) fn new(
        layout: &Layout,
        region: usize,
        index: usize,
        random: &mut StdRng,
        world: Option<World>,
    ) -> Self {
        let drift_max_ppm = World::drift_max_ppm(world);
        let name = server_name(&layout.region_name(region), number(index));
        Self {
            region,
            index,
            id: layout.host_of(region, index),
            host: Host::new(&name, random.random_range(-drift_max_ppm..=drift_max_ppm)),
            name,
            is_lost: false,
            disk: MemoryDisk::new(),
            sync_ms: Arc::new(AtomicU64::new(HEALTHY_SYNC_MS)),
            starts: 0,
            seed: random.random(),
            world,
            power_left: None,
            disk_fails: false,
            disk_is_full: false,
            disk_has_failed: false,
            disk_rots: false,
            running: Arc::new(Mutex::new(Running::Stopped)),
        }
    }

    /// Starts the server on what its disk holds.
    pub(super) fn start(
        &mut self,
        layout: &Layout,
        wires: &Wires,
        certificates: Option<&Certificates>,
    ) -> std::io::Result<()> {
        self.starts += 1;
        wires.power_on(self.id);
        if let Some(changes) = self.power_left.take() {
            self.disk.cut_power_after(changes);
            self.disk_fails = true;
        }
        self.disk_has_failed = self.is_failing();
        let now_ms = wires.now_ms();
        let entropy = Arc::new(SeededEntropy::new(self.seed.wrapping_add(self.starts)));
        let environment = Environment {
            clock: self.host.clock(now_ms),
            entropy: entropy.clone(),
            net: wires.net_of(self.id),
            disk: World::disk(self.world, &self.disk, &entropy),
            background: Arc::new(Beside { sync_ms: self.sync_ms.clone(), entropy }),
        };
        let region = layout.region_config(self.region, self.index);
        let mut options = ServerOptions::new(region, address_of(self.id, CLIENT_PORT).to_string());
        options.tick = Duration::from_secs(1);
        let bridge = layout.bridge_config(self.region, self.index, self.world);
        if layout.regions > 1 {
            options.session_timeout_max = Some(bridge.lease.session_timeout_max);
        }
        let is_voter = self.index < layout.voters;
        let paths = certificates.map(|c| c.paths_of(&self.name));
        let running = Arc::new(Mutex::new(Running::Starting));
        self.running = running.clone();
        self.host.start(now_ms, async move {
            let started = async {
                let identity = match paths {
                    Some(paths) => Some(Arc::new(Identity::load_with(
                        paths,
                        environment.clock.clone(),
                        repeatable_crypto(),
                    )?)),
                    None => None,
                };
                options.region.tls = identity.clone().map(|identity| PeerIdentity::new(identity) as _);
                let part = match identity {
                    None => MeshPart::Alone,
                    Some(identity) if is_voter => MeshPart::Bridge { config: Box::new(bridge), identity },
                    Some(_) => MeshPart::Follow,
                };
                anyhow::Ok(MeshServer::start(environment, options, part).await?)
            };
            let started = started.await;
            *running.lock() = match started {
                Ok(server) => Running::Yes(Box::new(server)),
                Err(error) => Running::Failed(format!("{error:#}")),
            };
        })
    }

    /// Tells the server to stop in an orderly way, if it runs.
    pub(super) fn shut_down(&mut self) {
        let mut running = self.running.lock();
        if let Running::Yes(server) = std::mem::replace(&mut *running, Running::Stopped) {
            self.host.spawn(server.shutdown());
        }
    }

    /// Ends the process. If the power goes too, what was not synced may be lost, in part or as a whole.
    pub(super) fn crash(&mut self, wires: &Wires, power_is_off: bool, random: &mut StdRng) {
        wires.stop_host(self.id, power_is_off);
        let running = std::mem::replace(&mut self.running, Arc::new(Mutex::new(Running::Stopped)));
        self.host.kill(|| drop(std::mem::replace(&mut *running.lock(), Running::Stopped)));
        if power_is_off {
            let keep: f64 = random.random();
            self.disk.crash(|_| usize::from(random.random_bool(keep)));
            if self.world == Some(World::WipedDisk) {
                self.disk = MemoryDisk::new();
            }
        } else {
            self.disk.restore_power();
        }
        if self.world == Some(World::ForgottenStarts) {
            // A server that never got as far has nothing to forget.
            let _ = self.disk.remove(Path::new("/data/boots"));
        }
    }

    /// Why the server could not start, or can't go on.
    pub(super) fn failure(&self) -> Option<Failure> {
        match &*self.running.lock() {
            Running::Starting | Running::Stopped => None,
            Running::Failed(reason) => Some(Failure::Start(reason.clone())),
            Running::Yes(server) => server.server().region().failure().borrow().clone().map(Failure::Running),
        }
    }

    /// The server, if it runs.
    pub(super) fn with_server<T>(&self, ask: impl FnOnce(&MeshServer) -> T) -> Option<T> {
        match &*self.running.lock() {
            Running::Yes(server) if self.host.is_running() => Some(ask(server)),
            _ => None,
        }
    }

    /// Has the server do something, if it runs, and does not wait for it.
    pub(super) fn have<F: Future<Output = ()> + Send + 'static>(
        &self,
        act: impl FnOnce(&MeshServer) -> Option<F>,
    ) {
        if let Some(task) = self.with_server(act).flatten() {
            self.host.spawn(task);
        }
    }

    /// The state that the server has published, if it runs.
    pub(super) fn view(&self) -> Option<Arc<View>> {
        self.with_server(|server| server.server().region().view())
    }

    pub(super) fn set_sync_ms(&self, sync_ms: u64) {
        self.sync_ms.store(sync_ms, Ordering::Relaxed);
    }

    /// Whether the disk is as it should be.
    pub(super) fn has_good_disk(&self) -> bool {
        !self.is_failing() && self.sync_ms.load(Ordering::Relaxed) <= HEALTHY_SYNC_MS
    }

    fn is_failing(&self) -> bool {
        self.disk_fails || self.disk_is_full
    }

    /// Whether the disk may be why the server can't start or go on.
    pub(super) fn may_have_failed(&self) -> bool {
        self.disk_has_failed || self.is_failing()
    }

    /// Whether the server may refuse to start, because what it has written is damaged.
    pub(super) fn is_rotten(&self) -> bool {
        self.disk_rots
    }

    pub(super) fn cut_power_after(&mut self, changes: u64) {
        self.power_left = Some(changes);
    }

    pub(super) fn fail_next_sync(&mut self) {
        self.disk.fail_next_sync();
        (self.disk_fails, self.disk_has_failed) = (true, true);
    }

    /// Leaves the disk so much room, or all that is wanted.
    pub(super) fn fill_disk(&mut self, left_bytes: Option<u64>) {
        self.disk.set_capacity_bytes(left_bytes.map(|left| self.disk.used_bytes() + left));
        self.disk_is_full = left_bytes.is_some();
        self.disk_has_failed |= self.disk_is_full;
    }

    /// The disk is as good as new, but for what it holds.
    pub(super) fn heal_disk(&mut self) {
        self.fill_disk(None);
        self.disk.restore_power();
        self.disk_fails = false;
        self.power_left = None;
        self.set_sync_ms(HEALTHY_SYNC_MS);
    }

    /// Inverts a bit of the older half of a file that holds enough of it: what was written last can't be told from a
    /// write that the power cut short.
    pub(super) fn rot(&mut self, random: &mut StdRng) -> Option<String> {
        let files = ["log", "snapshots"].iter().flat_map(|dir| {
            let dir = Path::new("/data").join(dir);
            let names = self.disk.list(&dir).unwrap_or_default();
            names.into_iter().map(move |name| dir.join(name))
        });
        let written = |path: &PathBuf| {
            let bytes = self.disk.read(path)?;
            Some(bytes.iter().rposition(|byte| *byte != 0)? as u64 + 1)
        };
        let files: Vec<(PathBuf, u64)> =
            files.filter_map(|path| Some((path.clone(), written(&path)?))).collect();
        let large: Vec<_> = files.iter().filter(|(_, written)| *written > 4_096).collect();
        let (path, written) = large.choose(random)?;
        let offset = random.random_range(0..written / 2);
        self.disk.flip_bit(path, offset, random.random_range(0..8));
        self.disk_rots = true;
        Some(format!("{} at byte {offset}", path.display()))
    }
}

pub(super) enum Failure {
    Start(String),
    Running(String),
}

/// Blocking work is done at once; syncs take their time.
struct Beside {
    sync_ms: Arc<AtomicU64>,
    entropy: Arc<SeededEntropy>,
}

impl Background for Beside {
    fn run(&self, work: Work) -> BoxFuture<'static, std::io::Result<()>> {
        let pause = Duration::from_millis(1 + self.entropy.next_u64() % 20);
        Box::pin(async move {
            tokio::time::sleep(pause).await;
            work();
            Ok(())
        })
    }

    fn pause(&self, _: Duration) {}

    fn log_writer(&self) -> LogWriter {
        let (sync_ms, entropy) = (self.sync_ms.clone(), self.entropy.clone());
        LogWriter::Task(Arc::new(move |_bytes| {
            let longest_ms = sync_ms.load(Ordering::Relaxed).max(1);
            let time = Duration::from_millis(1 + entropy.next_u64() % longest_ms);
            Box::pin(tokio::time::sleep(time))
        }))
    }
}
