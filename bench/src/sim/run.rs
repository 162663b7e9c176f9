//! One run: a mesh is formed, clients work while faults strike, everything heals, and what is left is checked.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use meridian_bridge::mesh::{LOCAL, Mesh, Mode, Subtree, SubtreeId};
use meridian_node::region::View;
use meridian_node::tree::Znode;
use meridian_node::txn::State;
use meridian_seam::entropy::seed_thread;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::certificates::Certificates;
use super::client::Client;
use super::faults::{self, Fault};
use super::history::{History, Scope};
use super::host::Host;
use super::mutant::Mutant;
use super::net::{HostId, Link, Wires};
use super::server::{Failure, Layout, SimServer};
use super::trace::Trace;
use super::workload::{self, Orders, Worker};

/// From the first start until every region serves every subtree.
const FORM_MS_MAX: u64 = 60_000;
/// From the end of the last fault until a write of every kind has succeeded everywhere.
const RECOVER_MS_MAX: u64 = 60_000;
/// From then until nothing is left of the sessions, and all regions agree.
const SETTLE_MS_MAX: u64 = 60_000;
/// How often the servers' states are compared.
const COMPARE_INTERVAL_MS: u64 = 10;
const SESSION_TIMEOUT: Duration = Duration::from_secs(6);
const CLIENTS_PER_REGION: usize = 3;

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Scenario {
    /// One region of three voters and an observer
    Region,
    /// Three regions of one voter each, with a global and a homed subtree
    Mesh,
    /// Three regions of three voters each
    LargeMesh,
}

impl Scenario {
    /// The scenario of a seed, if none is asked for.
    pub(super) fn of_seed(seed: u64) -> Self {
        match seed % 4 {
            0 => Scenario::Region,
            3 => Scenario::LargeMesh,
            _ => Scenario::Mesh,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Scenario::Region => "region",
            Scenario::Mesh => "mesh",
            Scenario::LargeMesh => "large-mesh",
        }
    }

    fn layout(self) -> Layout {
        let subtrees = vec![
            Subtree { path: "/global".into(), mode: Mode::Global },
            Subtree { path: "/homed".into(), mode: Mode::Homed { home: 1 } },
        ];
        let mesh = Mesh { regions: ["a", "b", "c"].map(String::from).to_vec(), subtrees };
        match self {
            Scenario::Region => Layout { mesh: Mesh::default(), regions: 1, voters: 3, observers: 1 },
            Scenario::Mesh => Layout { mesh, regions: 3, voters: 1, observers: 0 },
            Scenario::LargeMesh => Layout { mesh, regions: 3, voters: 3, observers: 0 },
        }
    }
}

/// What came of a run.
pub(super) struct Outcome {
    pub(super) violations: Vec<String>,
    pub(super) simulated_ms: u64,
    pub(super) real: Duration,
    /// Digest of all events, and their number.
    pub(super) digest: (u64, u64),
    /// Operations of clients, and those whose fate the client was not told.
    pub(super) operations: (u64, u64),
}

/// Runs one seed, in a broken world if a mutant is given.
///
/// # Errors
/// If the simulation itself can't be set up.
pub(super) fn run(
    seed: u64,
    scenario: Scenario,
    fault_ms: u64,
    mutant: Option<Mutant>,
    trace: Trace,
) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    catch_panics();
    let mut simulation = Simulation::new(seed, scenario, mutant, trace)?;
    simulation.play(fault_ms)?;
    let simulated_ms = simulation.wires.now_ms();
    let (history, trace) = (simulation.history.clone(), simulation.trace.clone());
    simulation.end();
    Ok(Outcome {
        violations: history.violations(),
        simulated_ms,
        real: began.elapsed(),
        digest: trace.digest(),
        operations: history.operations(),
    })
}

thread_local! {
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// A panic of a simulated server ends only one of its tasks: it must not go unnoticed.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let simulating = PANICS.with_borrow_mut(|panics| {
                panics.as_mut().map(|panics| panics.push(panic.to_string())).is_some()
            });
            if !simulating {
                usual(panic);
            }
        }));
    });
    PANICS.set(Some(Vec::new()));
}

struct Simulation {
    layout: Layout,
    random: StdRng,
    trace: Trace,
    wires: Wires,
    history: History,
    certificates: Option<Certificates>,
    servers: Vec<SimServer>,
    /// The hosts of each region's clients.
    clients: Vec<Host>,
    /// When crashed servers start again.
    restarts: BTreeMap<usize, u64>,
    digests: Digests,
}

impl Simulation {
    fn new(seed: u64, scenario: Scenario, mutant: Option<Mutant>, trace: Trace) -> anyhow::Result<Self> {
        seed_thread(seed);
        let mut random = StdRng::seed_from_u64(seed);
        let layout = scenario.layout();
        let wires = Wires::new(random.random(), trace.clone());
        let certificates = match layout.regions {
            1 => None,
            _ => Some(Certificates::create(&layout.peer_names())?),
        };
        let servers = (0..layout.regions)
            .flat_map(|region| (0..layout.servers_per_region()).map(move |index| (region, index)))
            .map(|(region, index)| SimServer::new(&layout, region, index, &mut random, mutant))
            .collect();
        let clients = (0..layout.regions).map(|_| Host::new("clients", 0)).collect();
        let history = History::new(trace.clone());
        let mut simulation = Self {
            layout,
            random,
            trace,
            wires,
            history,
            certificates,
            servers,
            clients,
            restarts: BTreeMap::new(),
            digests: Digests::default(),
        };
        simulation.connect_hosts();
        Ok(simulation)
    }

    /// Delays: about a millisecond within a region, tens between regions.
    fn connect_hosts(&mut self) {
        let mut hosts: Vec<(HostId, usize)> = self.servers.iter().map(|s| (s.id, s.region)).collect();
        hosts.extend((0..self.layout.regions).map(|region| (self.layout.client_host_of(region), region)));
        let between: Vec<u64> = (0..9).map(|_| self.random.random_range(5..60)).collect();
        for (from, of) in &hosts {
            for (to, other) in &hosts {
                let link = if of == other {
                    Link { delay_ms: 1, jitter_ms: 1 }
                } else {
                    let delay_ms = between[of.min(other) * 3 + of.max(other)];
                    Link { delay_ms, jitter_ms: delay_ms / 10 + 1 }
                };
                self.wires.connect_hosts(*from, *to, link);
            }
        }
    }

    fn play(&mut self, fault_ms: u64) -> anyhow::Result<()> {
        for server in 0..self.servers.len() {
            self.start(server)?;
        }
        for host in &mut self.clients {
            host.start(0, std::future::pending())?;
        }
        if !self.form() {
            return Ok(());
        }
        self.work(fault_ms)?;
        self.recover()?;
        self.settle();
        self.history.check_locks(self.wires.now_ms());
        Ok(())
    }

    /// Ends all processes, so that what they drop is dropped where tasks run.
    fn end(mut self) {
        for server in &mut self.servers {
            server.crash(&self.wires, false, &mut self.random);
        }
        for client in &mut self.clients {
            client.kill(|| {});
        }
    }

    fn note(&self, text: std::fmt::Arguments<'_>) {
        self.trace.note(self.wires.now_ms(), text);
    }

    fn start(&mut self, server: usize) -> anyhow::Result<()> {
        let name = self.servers[server].name(&self.layout);
        self.note(format_args!("{name} starts"));
        self.servers[server].start(&self.layout, &self.wires, self.certificates.as_ref())?;
        Ok(())
    }

    /// A millisecond passes everywhere.
    fn step(&mut self) {
        let now_ms = self.wires.now_ms() + 1;
        super::log::set_time(now_ms);
        self.wires.advance_to(now_ms);
        for server in &mut self.servers {
            server.host.run_to(now_ms);
        }
        for client in &mut self.clients {
            client.run_to(now_ms);
        }
        if now_ms.is_multiple_of(COMPARE_INTERVAL_MS) {
            self.look_after_servers(now_ms);
            self.digests.compare(now_ms, &self.servers, &self.history);
        }
        let panics = PANICS.with_borrow_mut(|panics| panics.as_mut().map(std::mem::take));
        for panic in panics.into_iter().flatten() {
            self.history.violation(now_ms, format!("a server panicked: {panic}"));
        }
    }

    /// A server that can't go on is restarted, as an operator's supervisor does; one that can't start is a bug.
    fn look_after_servers(&mut self, now_ms: u64) {
        for index in 0..self.servers.len() {
            match self.servers[index].failure() {
                None => {}
                Some(Failure::Running(reason)) => {
                    let name = self.servers[index].name(&self.layout);
                    self.note(format_args!("{name} stops: {reason}"));
                    self.servers[index].crash(&self.wires, false, &mut self.random);
                    self.restarts.insert(index, now_ms + 500);
                }
                Some(Failure::Start(reason)) => {
                    let name = self.servers[index].name(&self.layout);
                    self.servers[index].crash(&self.wires, false, &mut self.random);
                    self.history.violation(now_ms, format!("{name} did not start: {reason}"));
                }
            }
        }
    }

    fn start_what_is_due(&mut self) -> anyhow::Result<()> {
        let now_ms = self.wires.now_ms();
        let due: Vec<usize> =
            self.restarts.iter().filter(|(_, at_ms)| **at_ms <= now_ms).map(|(server, _)| *server).collect();
        for server in due {
            self.restarts.remove(&server);
            self.start(server)?;
        }
        Ok(())
    }

    /// Lets time pass until something is so, at most until `until_ms`, or until a violation.
    fn pass(&mut self, until_ms: u64, reached: impl Fn(&Self) -> bool) -> bool {
        while !reached(self) {
            if self.wires.now_ms() >= until_ms || !self.history.violations().is_empty() {
                return false;
            }
            self.step();
        }
        true
    }

    fn views(&self) -> Vec<Option<Arc<View>>> {
        self.servers.iter().map(SimServer::view).collect()
    }

    fn scopes_of(&self, region: usize) -> Vec<Scope> {
        let local = Scope::Local { region };
        if self.layout.regions == 1 { vec![local] } else { vec![local, Scope::Homed, Scope::Global] }
    }

    fn client(&self, region: usize, first_server: usize) -> Client {
        let net = self.wires.net_of(self.layout.client_host_of(region));
        Client::new(net, self.layout.client_addresses(region), first_server, SESSION_TIMEOUT)
    }

    /// Runs a task for clients of a region; the flag tells when it is done.
    fn spawn(&self, region: usize, task: impl Future<Output = ()> + Send + 'static) -> Arc<AtomicBool> {
        let done = Arc::new(AtomicBool::new(false));
        let flag = done.clone();
        self.clients[region].spawn(async move {
            task.await;
            flag.store(true, Ordering::Relaxed);
        });
        done
    }

    /// Waits until the regions have their table and the counters exist everywhere.
    fn form(&mut self) -> bool {
        let mesh = self.layout.mesh.clone();
        let formed = self.pass(FORM_MS_MAX, |s| {
            s.views().iter().all(|v| v.as_ref().is_some_and(|v| *v.state.mesh == mesh))
        });
        let mut done = Vec::new();
        for region in 0..self.layout.regions {
            let (mut client, scopes) = (self.client(region, 0), self.scopes_of(region));
            done.push(self.spawn(region, async move {
                client.connect().await;
                workload::prepare(client, scopes).await;
            }));
        }
        let prepared =
            formed && self.pass(FORM_MS_MAX, |_| done.iter().all(|done| done.load(Ordering::Relaxed)));
        if !prepared && self.history.violations().is_empty() {
            let what = if formed { "the counters were never made" } else { "the mesh was never formed" };
            self.history.violation(self.wires.now_ms(), what.into());
        }
        self.note(format_args!("the mesh is ready"));
        prepared
    }

    /// Clients work while faults strike.
    fn work(&mut self, fault_ms: u64) -> anyhow::Result<()> {
        let from_ms = self.wires.now_ms() + 1_000;
        let to_ms = from_ms + fault_ms;
        let mut plan = faults::plan(&self.layout, &mut self.random, from_ms, to_ms).into_iter().peekable();
        let orders = Orders {
            history: self.history.clone(),
            wires: self.wires.clone(),
            stop: Arc::default(),
            working: Arc::default(),
        };
        self.spawn_workers(&orders);
        while self.wires.now_ms() < to_ms && self.history.violations().is_empty() {
            while let Some((_, fault)) = plan.next_if(|(at_ms, _)| *at_ms <= self.wires.now_ms()) {
                self.strike(fault);
            }
            self.start_what_is_due()?;
            self.step();
        }
        self.heal()?;
        // They work on for a moment without faults.
        let rest_ms = self.wires.now_ms() + 3_000;
        self.pass(rest_ms, |_| false);
        orders.stop.store(true, Ordering::Relaxed);
        let until_ms = self.wires.now_ms() + RECOVER_MS_MAX;
        let stopped = self.pass(until_ms, |_| orders.working.load(Ordering::Relaxed) == 0);
        if !stopped && self.history.violations().is_empty() {
            self.history.violation(self.wires.now_ms(), "a client's operation never ended".into());
        }
        Ok(())
    }

    fn spawn_workers(&mut self, orders: &Orders) {
        let servers = self.layout.servers_per_region();
        for region in 0..self.layout.regions {
            for number in 0..CLIENTS_PER_REGION {
                let name = format!("{}{number}", self.layout.region_name(region));
                let client = self.client(region, number % servers);
                let seed = self.random.random();
                let worker = Worker::new(name, client, self.scopes_of(region), orders.clone(), seed);
                self.spawn(region, worker.run());
            }
        }
    }

    fn strike(&mut self, fault: Fault) {
        self.note(format_args!("{fault:?}"));
        match fault {
            Fault::Crash { server, power, restart_after_ms } => {
                if self.servers[server].host.is_running() {
                    self.servers[server].crash(&self.wires, power, &mut self.random);
                    self.restarts.insert(server, self.wires.now_ms() + restart_after_ms);
                }
            }
            Fault::Pause { server } => self.servers[server].host.set_paused(true),
            Fault::Resume { server } => self.servers[server].host.set_paused(false),
            Fault::Cut { from, to, cut } => {
                for from in &from {
                    for to in to.iter().filter(|to| *to != from) {
                        self.wires.set_cut(self.servers[*from].id, self.servers[*to].id, cut);
                    }
                }
            }
            Fault::Loss { share } => self.wires.set_loss(share),
            Fault::Disk { server, sync_ms } => self.servers[server].set_sync_ms(sync_ms),
            Fault::Wall { server, by_ms } => self.servers[server].host.shift_wall_clock(by_ms),
        }
    }

    /// Everything is as it should be again.
    fn heal(&mut self) -> anyhow::Result<()> {
        self.note(format_args!("everything heals"));
        self.wires.heal();
        for server in 0..self.servers.len() {
            self.servers[server].host.set_paused(false);
            self.servers[server].set_sync_ms(faults::HEALTHY_SYNC_MS);
            if !self.servers[server].host.is_running() {
                self.start(server)?;
            }
        }
        self.restarts.clear();
        Ok(())
    }

    /// A write of every kind succeeds from every region.
    fn recover(&mut self) -> anyhow::Result<()> {
        if !self.history.violations().is_empty() {
            return Ok(());
        }
        let until_ms = self.wires.now_ms() + RECOVER_MS_MAX;
        let mut waiting = Vec::new();
        for region in 0..self.layout.regions {
            for scope in self.scopes_of(region) {
                let mut client = self.client(region, 0);
                let name = format!("after-{region}");
                let done = self.spawn(region, async move {
                    client.connect().await;
                    workload::write_once(client, scope, name).await;
                });
                waiting.push((format!("{scope:?} from region {region}"), done));
            }
        }
        while self.wires.now_ms() < until_ms && self.history.violations().is_empty() {
            if waiting.iter().all(|(_, done)| done.load(Ordering::Relaxed)) {
                return Ok(());
            }
            self.start_what_is_due()?;
            self.step();
        }
        for (what, _) in waiting.iter().filter(|(_, done)| !done.load(Ordering::Relaxed)) {
            let text = format!("no write in {what} within {RECOVER_MS_MAX} ms after the last fault");
            self.history.violation(self.wires.now_ms(), text);
        }
        Ok(())
    }

    /// All sessions expire, their ephemerals go, and all servers agree.
    fn settle(&mut self) {
        if !self.history.violations().is_empty() {
            return;
        }
        let until_ms = self.wires.now_ms() + SETTLE_MS_MAX;
        if !self.pass(until_ms, |s| s.difference().is_none())
            && let Some(difference) = self.difference()
        {
            self.history.violation(self.wires.now_ms(), format!("not settled: {difference}"));
        }
        for (server, view) in self.servers.iter().zip(self.views()) {
            if let Some(view) = view {
                self.history.check_state(self.wires.now_ms(), server.region, &view);
            }
        }
    }

    /// What is not yet as it will be when nothing happens any more.
    fn difference(&self) -> Option<String> {
        let mut first_of_region: BTreeMap<usize, Arc<View>> = BTreeMap::new();
        for server in &self.servers {
            let name = server.name(&self.layout);
            let Some(view) = server.view() else { return Some(format!("{name} does not run")) };
            let ephemerals = view.state.tree.ephemeral_count();
            if ephemerals > 0 {
                return Some(format!("{name} has {ephemerals} ephemerals"));
            }
            if !view.state.sessions.is_empty() {
                return Some(format!("{name} has {} sessions", view.state.sessions.len()));
            }
            let first = first_of_region.entry(server.region).or_insert_with(|| view.clone());
            if first.position != view.position {
                return Some(format!(
                    "{name} is at {:?}, another server at {:?}",
                    view.position, first.position
                ));
            }
            if let Some(other) = first_of_region.values().next() {
                for (orderer, order) in &view.state.federation.orders {
                    let position = other.state.federation.orders.get(orderer).map(|o| o.position);
                    if position != Some(order.position) {
                        return Some(format!(
                            "{name} has {orderer:?} at {}, not {position:?}",
                            order.position
                        ));
                    }
                }
                for (subtree, _) in self.layout.mesh.subtrees() {
                    if other.state.tree.digest(subtree) != view.state.tree.digest(subtree) {
                        return Some(format!("{name} has another digest of subtree {subtree}"));
                    }
                }
            }
        }
        None
    }
}

/// The digests seen at each place of each order: one digest per place.
#[derive(Default)]
struct Digests {
    /// Of a region's own tree, by region and index of its log.
    local: BTreeMap<(usize, u64), (i64, u128)>,
    /// Of shared subtrees, by subtree and position, with the first view that was there.
    shared: BTreeMap<(u16, u64), (u128, Arc<View>)>,
}

impl Digests {
    fn compare(&mut self, now_ms: u64, servers: &[SimServer], history: &History) {
        for server in servers {
            let Some(view) = server.view() else { continue };
            let state = &view.state;
            let local = (state.zxid, state.tree.digest(LOCAL));
            let known = self.local.entry((server.region, view.position.index)).or_insert(local);
            if *known != local {
                let text = format!(
                    "region {} at {}: server {} has zxid and digest {local:x?}, another had {known:x?}",
                    server.region, view.position.index, server.index
                );
                history.violation(now_ms, text);
            }
            for (subtree, _) in state.mesh.subtrees() {
                let orderer = state.mesh.orderer_of(subtree);
                let order = orderer.and_then(|orderer| state.federation.orders.get(&orderer));
                let Some(position) = order.map(|order| order.position) else { continue };
                let digest = state.tree.digest(subtree);
                let (known, first) =
                    self.shared.entry((subtree, position)).or_insert_with(|| (digest, view.clone()));
                if *known != digest {
                    let text = format!(
                        "subtree {subtree} at {position}: region {} server {} differs from region {} before: {}",
                        server.region,
                        server.index,
                        first.state.region - 1,
                        first_difference(subtree, &first.state, state)
                    );
                    history.violation(now_ms, text);
                }
            }
        }
    }
}

/// The first znode, by path, in which two states of a subtree differ.
fn first_difference(subtree: SubtreeId, first: &State, second: &State) -> String {
    let of = |state: &State| -> BTreeMap<Arc<str>, Arc<Znode>> {
        let inside = state.tree.iter().filter(|(path, _)| state.mesh.subtree_of(path) == subtree);
        inside.map(|(path, znode)| (path.clone(), znode.clone())).collect()
    };
    let (first, second) = (of(first), of(second));
    let paths: BTreeSet<&Arc<str>> = first.keys().chain(second.keys()).collect();
    let differs = paths.into_iter().find(|path| first.get(*path) != second.get(*path));
    differs.map_or_else(
        || "no znode differs".into(),
        |path| format!("{path} is {:?} and {:?}", first.get(path), second.get(path)),
    )
}
