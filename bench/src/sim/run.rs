//! One run: a mesh is formed, clients work while faults strike, everything heals, and what is left is checked.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use meridian_bridge::mesh::{Mesh, Mode, RegionId, Subtree, SubtreeId};
use meridian_node::txn::ensemble::Members;
use meridian_seam::codec::VERSION;
use meridian_seam::entropy::seed_thread;
use meridian_seam::{limits, mutant};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::certificates::Certificates;
use super::checks::{self, Published};
use super::client::{Client, ClientOptions};
use super::faults::{self, Build, Fault, Kind};
use super::history::{History, Scope};
use super::host::Host;
use super::mutant::Mutant;
use super::net::{HostId, Link, Wires};
use super::server::{Failure, Layout, SimServer, number};
use super::trace::Trace;
use super::workload::{self, Orders, Worker};

/// From the first start until every region serves every subtree.
const FORM_MS_MAX: u64 = 60_000;
/// From the end of the last fault until a write of every kind has succeeded everywhere.
const RECOVER_MS_MAX: u64 = 60_000;
/// From then until nothing is left of the sessions, and all regions agree.
const SETTLE_MS_MAX: u64 = 60_000;
/// How often it is looked whether servers have failed.
const LOOK_INTERVAL_MS: u64 = 10;
/// A supervisor starts a server again that has stopped.
const SUPERVISOR_MS: u64 = 500;
/// A server that is told to stop has so long for it.
const SHUTDOWN_MS: u64 = 900;
/// Clients work on for so long after everything has healed.
const REST_MS: u64 = 3_000;
/// Session timeouts that clients ask for: shorter and longer than a lease, or than a mesh grants.
const SESSION_TIMEOUTS: [Duration; 2] = [Duration::from_secs(6), Duration::from_secs(20)];
/// Clients in a mesh; a region on its own has so many as a whole.
const CLIENTS: usize = 6;
/// Few, so that regions fall behind them within a run.
const MIRROR_RECORDS_MAX: usize = 100;

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

    pub(super) fn layout(self) -> Layout {
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

/// The number of `/homed`.
const HOMED_SUBTREE: SubtreeId = 2;

fn region_id(region: usize) -> RegionId {
    RegionId::try_from(region + 1).unwrap_or(RegionId::MAX)
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) scenario: Scenario,
    /// For how long faults strike.
    pub(super) fault_ms: u64,
    /// What is broken, if anything.
    pub(super) mutant: Option<Mutant>,
}

/// What came of a run.
pub(super) struct Outcome {
    pub(super) violations: Vec<String>,
    pub(super) simulated_ms: u64,
    pub(super) real: Duration,
    /// Digest of all events, and their number.
    pub(super) digest: (u64, u64),
    /// What was done and checked, and how often.
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) faults: BTreeMap<&'static str, u64>,
}

/// Runs one seed.
///
/// # Errors
/// If the simulation itself can't be set up.
pub(super) fn run(plan: Plan, trace: Trace) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    let mut simulation = Simulation::new(plan.seed, plan.scenario.layout(), plan.mutant, trace)?;
    simulation.play(plan.fault_ms)?;
    let simulated_ms = simulation.wires.now_ms();
    let (history, trace) = (simulation.history.clone(), simulation.trace.clone());
    let faults = std::mem::take(&mut simulation.faults);
    simulation.end();
    Ok(Outcome {
        violations: history.violations(),
        simulated_ms,
        real: began.elapsed(),
        digest: trace.digest(),
        counts: history.counts(),
        faults,
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

/// A mesh with its network, its clients and what they were told.
pub(super) struct Simulation {
    pub(super) layout: Layout,
    random: StdRng,
    pub(super) trace: Trace,
    pub(super) wires: Wires,
    pub(super) history: History,
    certificates: Option<Certificates>,
    pub(super) servers: Vec<SimServer>,
    /// The hosts of each region's clients.
    clients: Vec<Host>,
    /// When crashed servers start again.
    restarts: BTreeMap<usize, u64>,
    /// When servers that were told to stop are gone.
    stops: BTreeMap<usize, u64>,
    published: Published,
    faults: BTreeMap<&'static str, u64>,
    /// Whether a disk may be full.
    may_refuse: Arc<AtomicBool>,
    /// The leaders that are cut off from their regions.
    isolated: BTreeMap<usize, usize>,
    /// Regions whose servers may have other roles than at first.
    roles_changed: BTreeSet<usize>,
    home_is_lost: Arc<AtomicBool>,
    /// The kinds of faults that strike, if not all may.
    only: &'static [Kind],
}

impl Simulation {
    pub(super) fn new(
        seed: u64,
        layout: Layout,
        mutant: Option<Mutant>,
        trace: Trace,
    ) -> anyhow::Result<Self> {
        catch_panics();
        seed_thread(seed);
        mutant::set(Mutant::code(mutant));
        limits::lower_mirror_records_max(MIRROR_RECORDS_MAX);
        let world = Mutant::world(mutant);
        let mut random = StdRng::seed_from_u64(seed);
        let wires = Wires::new(random.random(), trace.clone());
        let certificates = match layout.regions {
            1 => None,
            _ => Some(Certificates::create(&layout.peer_names())?),
        };
        let servers = (0..layout.regions)
            .flat_map(|region| (0..layout.servers_per_region()).map(move |index| (region, index)))
            .map(|(region, index)| SimServer::new(&layout, region, index, &mut random, world))
            .collect();
        let clients = (0..layout.regions).map(|_| Host::new("clients", 0)).collect();
        let history = History::new(trace.clone(), wires.clone());
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
            stops: BTreeMap::new(),
            published: Published::default(),
            faults: BTreeMap::new(),
            may_refuse: Arc::default(),
            isolated: BTreeMap::new(),
            roles_changed: BTreeSet::new(),
            home_is_lost: Arc::default(),
            only: mutant.map_or(&[], Mutant::faults),
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
        self.start_all()?;
        if !self.form() {
            return Ok(());
        }
        self.work(fault_ms)?;
        self.recover()?;
        self.settle()?;
        self.history.check();
        Ok(())
    }

    pub(super) fn start_all(&mut self) -> anyhow::Result<()> {
        for server in 0..self.servers.len() {
            self.start(server)?;
        }
        for host in &mut self.clients {
            host.start(0, std::future::pending())?;
        }
        Ok(())
    }

    /// Ends all processes, so that what they drop is dropped where tasks run.
    pub(super) fn end(mut self) {
        for server in &mut self.servers {
            server.crash(&self.wires, false, &mut self.random);
        }
        for client in &mut self.clients {
            client.kill(|| {});
        }
        mutant::set(None);
    }

    pub(super) fn note(&self, text: std::fmt::Arguments<'_>) {
        self.trace.note(self.wires.now_ms(), text);
    }

    pub(super) fn start(&mut self, server: usize) -> anyhow::Result<()> {
        if self.servers[server].is_lost {
            return Ok(());
        }
        self.note(format_args!("{} starts", self.servers[server].name));
        self.servers[server].start(&self.layout, &self.wires, self.certificates.as_ref())?;
        Ok(())
    }

    /// A millisecond passes everywhere.
    pub(super) fn step(&mut self) -> anyhow::Result<()> {
        let now_ms = self.wires.now_ms() + 1;
        super::log::set_time(now_ms);
        self.wires.advance_to(now_ms);
        for server in &mut self.servers {
            server.host.run_to(now_ms);
        }
        for client in &mut self.clients {
            client.run_to(now_ms);
        }
        self.published.check(&self.servers, &self.history);
        if now_ms.is_multiple_of(LOOK_INTERVAL_MS) {
            self.look_after_servers(now_ms);
        }
        self.start_what_is_due()?;
        let panics = PANICS.with_borrow_mut(|panics| panics.as_mut().map(std::mem::take));
        for panic in panics.into_iter().flatten() {
            self.history.violation(format!("a server panicked: {panic}"));
        }
        Ok(())
    }

    /// A server that can't go on is restarted, as an operator's supervisor does; one that can't start is a bug, unless
    /// its disk is the reason.
    fn look_after_servers(&mut self, now_ms: u64) {
        for index in 0..self.servers.len() {
            let Some(failure) = self.servers[index].failure() else { continue };
            let server = &mut self.servers[index];
            let power_is_off = server.may_have_failed();
            server.crash(&self.wires, power_is_off, &mut self.random);
            match failure {
                Failure::Running(reason) => {
                    self.note(format_args!("{} stops: {reason}", self.servers[index].name));
                    self.restarts.insert(index, now_ms + SUPERVISOR_MS);
                }
                Failure::Start(reason) if self.servers[index].may_have_failed() => {
                    self.note(format_args!("{} does not start: {reason}", self.servers[index].name));
                    self.restarts.insert(index, now_ms + SUPERVISOR_MS);
                }
                Failure::Start(reason) if self.servers[index].is_rotten() => {
                    self.note(format_args!("{} is lost: {reason}", self.servers[index].name));
                    self.history.count("damaged disks refused");
                    self.servers[index].is_lost = true;
                }
                Failure::Start(reason) => {
                    let name = self.servers[index].name.clone();
                    self.history.violation(format!("{name} did not start: {reason}"));
                }
            }
        }
    }

    fn start_what_is_due(&mut self) -> anyhow::Result<()> {
        let now_ms = self.wires.now_ms();
        let due = |times: &BTreeMap<usize, u64>| -> Vec<usize> {
            times.iter().filter(|(_, at_ms)| **at_ms <= now_ms).map(|(server, _)| *server).collect()
        };
        for server in due(&self.stops) {
            self.stops.remove(&server);
            self.servers[server].crash(&self.wires, false, &mut self.random);
            self.restarts.insert(server, now_ms + 100);
        }
        for server in due(&self.restarts) {
            self.restarts.remove(&server);
            self.start(server)?;
        }
        Ok(())
    }

    /// Lets time pass until something is so, at most until `until_ms`, or until a violation.
    pub(super) fn pass(&mut self, until_ms: u64, reached: impl Fn(&Self) -> bool) -> anyhow::Result<bool> {
        while !reached(self) {
            if self.wires.now_ms() >= until_ms || self.history.has_violations() {
                return Ok(false);
            }
            self.step()?;
        }
        Ok(true)
    }

    fn scopes_of(&self, region: usize) -> Vec<Scope> {
        let local = Scope::Local { region };
        if self.layout.regions == 1 { vec![local] } else { vec![local, Scope::Homed, Scope::Global] }
    }

    /// A client of a region, not yet connected.
    pub(super) fn client(
        &self,
        name: String,
        region: usize,
        first_server: usize,
        timeout: Duration,
    ) -> Client {
        let options = ClientOptions {
            name,
            net: self.wires.net_of(self.layout.client_host_of(region)),
            servers: self.layout.client_addresses(region),
            first_server,
            timeout,
        };
        Client::new(options, self.history.clone())
    }

    /// Runs a task for clients of a region; the flag tells when it is done.
    pub(super) fn spawn(
        &self,
        region: usize,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Arc<AtomicBool> {
        let done = Arc::new(AtomicBool::new(false));
        let flag = done.clone();
        self.clients[region].spawn(async move {
            task.await;
            flag.store(true, Ordering::Relaxed);
        });
        done
    }

    /// Waits until the regions have their table and what the clients work on exists everywhere.
    pub(super) fn form(&mut self) -> bool {
        let mesh = self.layout.mesh.clone();
        let formed = self.pass(FORM_MS_MAX, |s| {
            let formed = |server: &SimServer| server.view().is_some_and(|view| *view.state.mesh == mesh);
            s.servers.iter().all(formed)
        });
        let formed = formed.unwrap_or(false);
        let mut done = Vec::new();
        for region in 0..self.layout.regions {
            let name = format!("{}-first", self.layout.region_name(region));
            let (mut client, scopes) =
                (self.client(name, region, 0, SESSION_TIMEOUTS[0]), self.scopes_of(region));
            done.push(self.spawn(region, async move {
                client.connect().await;
                workload::prepare(client, scopes).await;
            }));
        }
        let all_done = |_: &Self| done.iter().all(|done| done.load(Ordering::Relaxed));
        let prepared = formed && self.pass(FORM_MS_MAX, all_done).unwrap_or(false);
        if !prepared && !self.history.has_violations() {
            let what = if formed { "the znodes were never made" } else { "the mesh was never formed" };
            self.history.violation(what.into());
        }
        self.note(format_args!("the mesh is ready"));
        prepared
    }

    /// Clients work while faults strike.
    fn work(&mut self, fault_ms: u64) -> anyhow::Result<()> {
        let from_ms = self.wires.now_ms() + 1_000;
        let to_ms = from_ms + fault_ms;
        let mut plan =
            faults::plan(&self.layout, &mut self.random, from_ms, to_ms, self.only).into_iter().peekable();
        let stop = Arc::new(AtomicBool::new(false));
        let done = self.spawn_workers(&stop);
        while self.wires.now_ms() < to_ms && !self.history.has_violations() {
            while let Some((_, fault)) = plan.next_if(|(at_ms, _)| *at_ms <= self.wires.now_ms()) {
                self.strike(fault);
            }
            self.step()?;
        }
        self.heal()?;
        let rest_ms = self.wires.now_ms() + REST_MS;
        self.pass(rest_ms, |_| false)?;
        stop.store(true, Ordering::Relaxed);
        let until_ms = self.wires.now_ms() + RECOVER_MS_MAX;
        let stopped = self.pass(until_ms, |s| {
            let is_over = |(region, done): &(usize, Arc<AtomicBool>)| {
                done.load(Ordering::Relaxed) || !s.clients[*region].is_running()
            };
            done.iter().all(is_over)
        })?;
        if !stopped && !self.history.has_violations() {
            self.history.violation("a client's operation never ended".into());
        }
        Ok(())
    }

    fn spawn_workers(&mut self, stop: &Arc<AtomicBool>) -> Vec<(usize, Arc<AtomicBool>)> {
        let orders = Orders {
            history: self.history.clone(),
            wires: self.wires.clone(),
            stop: stop.clone(),
            may_refuse: self.may_refuse.clone(),
            home_is_lost: self.home_is_lost.clone(),
        };
        let mut done = Vec::new();
        for region in 0..self.layout.regions {
            let name = |number| format!("{}{number}", self.layout.region_name(region));
            let names: Vec<String> = (0..CLIENTS.div_ceil(self.layout.regions).max(3)).map(name).collect();
            for (number, name) in names.iter().enumerate() {
                let timeout = SESSION_TIMEOUTS[usize::from(self.random.random_bool(0.4))];
                let server = number % self.layout.servers_per_region();
                let client = self.client(name.clone(), region, server, timeout);
                let seed = self.random.random();
                let worker = Worker::new(client, self.scopes_of(region), names.clone(), orders.clone(), seed);
                done.push((region, self.spawn(region, worker.run())));
            }
        }
        done
    }

    pub(super) fn strike(&mut self, fault: Fault) {
        self.note(format_args!("{fault:?}"));
        *self.faults.entry(fault.name()).or_default() += 1;
        let only_pauses = matches!(fault, Fault::PauseRegion { .. } | Fault::ResumeRegion { .. });
        self.do_strike(fault);
        let is_calm = self.wires.is_whole()
            && self.restarts.is_empty()
            && self.stops.is_empty()
            && self.servers.iter().all(|s| s.has_good_disk() && !s.host.is_slow() && !s.is_lost);
        if !only_pauses || !is_calm {
            self.history.set_calm(is_calm);
        }
    }

    fn do_strike(&mut self, fault: Fault) {
        let now_ms = self.wires.now_ms();
        match fault {
            Fault::Crash { server, power, restart_after_ms } => {
                if self.servers[server].host.is_running() {
                    self.servers[server].crash(&self.wires, power, &mut self.random);
                    self.stops.remove(&server);
                    self.restarts.insert(server, now_ms + restart_after_ms);
                }
            }
            Fault::CrashLeader { region, power, restart_after_ms } => {
                if let Some(server) = self.leader_of(region) {
                    self.do_strike(Fault::Crash { server, power, restart_after_ms });
                }
            }
            Fault::IsolateLeader { region, cut } => self.isolate_leader(region, cut),
            Fault::Restart { server } => self.restart(server),
            Fault::PowerCut { server, changes } => self.servers[server].cut_power_after(changes),
            Fault::Pause { server } => self.servers[server].host.set_paused(true),
            Fault::Resume { server } => self.servers[server].host.set_paused(false),
            Fault::PauseRegion { region } => self.set_region_paused(region, true),
            Fault::ResumeRegion { region } => self.set_region_paused(region, false),
            Fault::Slow { server, period_ms } => self.servers[server].host.set_period_ms(period_ms),
            Fault::Cut { from, to, cut } => self.on_links(&from, &to, |wires, from, to| {
                wires.set_cut(from, to, cut);
            }),
            Fault::Loss { share } => self.wires.set_loss(share),
            Fault::Duplication { share } => self.wires.set_duplication(share),
            Fault::Delay { from, to, up_to_ms } => self.on_links(&from, &to, |wires, from, to| {
                wires.set_delay(from, to, up_to_ms);
            }),
            Fault::Disk { server, sync_ms } => self.servers[server].set_sync_ms(sync_ms),
            Fault::FailSync { server } => self.servers[server].fail_next_sync(),
            Fault::Fill { server, left_bytes } => {
                self.may_refuse.store(true, Ordering::Relaxed);
                self.servers[server].fill_disk(left_bytes);
            }
            Fault::Rot { server } => {
                if let Some(what) = self.servers[server].rot(&mut self.random) {
                    self.note(format_args!("{what}"));
                    self.servers[server].crash(&self.wires, false, &mut self.random);
                    self.restarts.insert(server, now_ms + SUPERVISOR_MS);
                }
            }
            Fault::Wall { server, by_ms } => self.servers[server].host.shift_wall_clock(by_ms),
            Fault::LoseRegion { region } => self.lose_region(region),
            Fault::Roles { region, voters, gone } => {
                self.roles_changed.insert(region);
                self.change_roles(region, &voters, gone);
            }
            Fault::MoveHome { to } => self.move_home(to),
            Fault::MoveLead { to } => {
                for server in &self.servers {
                    server.have(|running| {
                        let bridge = running.bridge()?.clone();
                        // Those that do not lead refuse.
                        Some(async move { drop(bridge.transfer_global(region_id(to)).await) })
                    });
                }
            }
            Fault::Upgrade { server, build } => {
                let written = if build == Build::NewWriting { VERSION + 1 } else { VERSION };
                let known = VERSION + 1;
                self.servers[server].host.set_next_versions(known, written);
                self.restart(server);
            }
        }
    }

    fn leader_of(&self, region: usize) -> Option<usize> {
        let leads = |server: &SimServer| {
            let leads = server.with_server(|s| s.server().region().leadership().borrow().is_me);
            server.region == region && leads == Some(true)
        };
        self.servers.iter().position(leads)
    }

    /// Cuts the leader of a region off from the others of the region, or heals the one that was.
    fn isolate_leader(&mut self, region: usize, cut: bool) {
        let leader = match cut {
            true => self.leader_of(region),
            false => self.isolated.remove(&region),
        };
        let Some(leader) = leader else { return };
        let others: Vec<usize> =
            (0..self.servers.len()).filter(|other| self.servers[*other].region == region).collect();
        if cut {
            self.isolated.insert(region, leader);
        }
        for (from, to) in [(vec![leader], others.clone()), (others, vec![leader])] {
            self.on_links(&from, &to, |wires, from, to| wires.set_cut(from, to, cut));
        }
    }

    /// Asks some server of a region for other roles. That nobody can be asked, or that it fails, is as good.
    fn change_roles(&self, region: usize, voters: &[usize], gone: Option<usize>) {
        let mut of_region = self.servers.iter().filter(|server| server.region == region);
        // A server that is no member reaches no leader, and may not know that it is none.
        let led = self.leader_of(region).and_then(|leader| self.servers[leader].view());
        let is_member = |server: &&SimServer| {
            let number = number(server.index);
            let is_known = led.as_ref().is_none_or(|led| led.state.ensemble.members.contains_key(&number));
            server.view().is_some() && is_known
        };
        let Some(server) = of_region.find(is_member) else { return };
        let members = self.layout.members(region, voters, gone);
        server.have(|running| {
            let region = running.server().region().clone();
            Some(async move { drop(region.change_members(members).await) })
        });
    }

    /// Asks the home of the homed subtree to move. The leader of the home does; others refuse.
    fn move_home(&self, to: usize) {
        for server in &self.servers {
            server.have(|running| {
                let bridge = running.bridge()?.clone();
                Some(async move { drop(bridge.move_home(HOMED_SUBTREE, region_id(to)).await) })
            });
        }
    }

    fn on_links(&self, from: &[usize], to: &[usize], act: impl Fn(&Wires, HostId, HostId)) {
        for from in from {
            for to in to.iter().filter(|to| *to != from) {
                act(&self.wires, self.servers[*from].id, self.servers[*to].id);
            }
        }
    }

    /// Stops a server in an orderly way and starts it again.
    fn restart(&mut self, server: usize) {
        if self.servers[server].host.is_running() {
            self.servers[server].shut_down();
            self.stops.insert(server, self.wires.now_ms() + SHUTDOWN_MS);
        }
    }

    fn set_region_paused(&mut self, region: usize, paused: bool) {
        for server in self.servers.iter_mut().filter(|server| server.region == region) {
            server.host.set_paused(paused);
        }
    }

    fn lose_region(&mut self, region: usize) {
        for (index, server) in self.servers.iter_mut().enumerate().filter(|(_, s)| s.region == region) {
            server.crash(&self.wires, true, &mut self.random);
            server.is_lost = true;
            self.restarts.remove(&index);
            self.stops.remove(&index);
        }
        self.clients[region].kill(|| {});
        self.roles_changed.remove(&region);
        self.history.died(&self.layout.region_name(region));
        let home_is_lost =
            self.layout.mesh.subtrees.iter().any(
                |subtree| matches!(subtree.mode, Mode::Homed { home } if usize::from(home) == region + 1),
            );
        self.home_is_lost.fetch_or(home_is_lost, Ordering::Relaxed);
    }

    fn is_region_lost(&self, region: usize) -> bool {
        !self.clients[region].is_running()
    }

    /// Everything is as it should be again, but for what is lost.
    pub(super) fn heal(&mut self) -> anyhow::Result<()> {
        self.note(format_args!("everything heals"));
        self.wires.heal();
        for server in 0..self.servers.len() {
            self.servers[server].host.set_paused(false);
            self.servers[server].host.set_period_ms(1);
            self.servers[server].heal_disk();
            if !self.servers[server].host.is_running() {
                self.start(server)?;
            }
        }
        self.restarts.clear();
        Ok(())
    }

    /// Who was to vote at first votes again.
    fn restore_roles(&mut self) -> anyhow::Result<()> {
        let voters: Vec<usize> = (0..self.layout.voters).collect();
        let regions: Vec<usize> = self.roles_changed.iter().copied().collect();
        let are_restored = |s: &Self| {
            s.servers.iter().filter(|server| regions.contains(&server.region)).all(|server| {
                let members = s.layout.members(server.region, &voters, None);
                let roles =
                    |members: &Members| -> Vec<_> { members.iter().map(|(n, m)| (*n, m.role)).collect() };
                server.is_lost
                    || server.view().is_some_and(|v| roles(&v.state.ensemble.members) == roles(&members))
            })
        };
        let until_ms = self.wires.now_ms() + RECOVER_MS_MAX;
        while !are_restored(self) && !self.history.has_violations() {
            if self.wires.now_ms() > until_ms {
                self.history.violation("the members of a region can't be changed back".into());
            }
            regions.iter().for_each(|region| self.change_roles(*region, &voters, None));
            let next_ms = self.wires.now_ms() + 3_000;
            self.pass(next_ms, are_restored)?;
        }
        Ok(())
    }

    /// A write of every kind succeeds from every region.
    fn recover(&mut self) -> anyhow::Result<()> {
        self.restore_roles()?;
        if self.history.has_violations() {
            return Ok(());
        }
        let home_is_lost = self.home_is_lost.load(Ordering::Relaxed);
        let mut waiting = Vec::new();
        for region in (0..self.layout.regions).filter(|region| !self.is_region_lost(*region)) {
            let scopes = self.scopes_of(region).into_iter();
            for scope in scopes.filter(|scope| !(home_is_lost && *scope == Scope::Homed)) {
                let name = format!("after-{region}");
                let mut client = self.client(name, region, 0, SESSION_TIMEOUTS[0]);
                let done = self.spawn(region, async move {
                    client.connect().await;
                    workload::write_once(client, scope).await;
                });
                waiting.push((format!("{scope:?} from region {region}"), done));
            }
        }
        let until_ms = self.wires.now_ms() + RECOVER_MS_MAX;
        self.pass(until_ms, |_| waiting.iter().all(|(_, done)| done.load(Ordering::Relaxed)))?;
        if self.history.has_violations() {
            return Ok(());
        }
        for (what, _) in waiting.iter().filter(|(_, done)| !done.load(Ordering::Relaxed)) {
            let text = format!("no write in {what} within {RECOVER_MS_MAX} ms after the last fault");
            self.history.violation(text);
        }
        Ok(())
    }

    /// All sessions expire, their ephemerals go, and all servers agree.
    fn settle(&mut self) -> anyhow::Result<()> {
        if self.history.has_violations() {
            return Ok(());
        }
        let home_is_lost = self.home_is_lost.load(Ordering::Relaxed);
        let until_ms = self.wires.now_ms() + SETTLE_MS_MAX;
        let settled = |s: &Self| {
            s.wires.now_ms().is_multiple_of(LOOK_INTERVAL_MS)
                && checks::difference(&s.servers, home_is_lost).is_none()
        };
        if !self.pass(until_ms, settled)?
            && let Some(difference) = checks::difference(&self.servers, home_is_lost)
        {
            self.history.violation(format!("not settled: {difference}"));
        }
        for server in &self.servers {
            if let Some(view) = server.view() {
                self.history.check_state(server.region, &view, home_is_lost);
            }
        }
        Ok(())
    }
}
