//! What simulated clients do, all the time: writes of every kind, reads after `sync`, locks, elections, queues, gates,
//! watches, ephemerals, several requests under way in several subtrees, changes of servers and of sessions.

mod coordination;
mod sessions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use meridian_wire::{CreateMode, ErrorCode, Request, Stat};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::client::{Client, Connected, Disconnected};
use super::history::{History, Prize, Scope};
use super::linear::{Ask, Told};
use super::net::Wires;

/// Registers of each scope.
const REGISTERS: u64 = 4;
/// Znodes below a scope's root that are there from the start.
const PARENTS: [&str; 4] = ["queue", "election", "ephemerals", "own"];

/// What all clients share.
#[derive(Clone)]
pub(super) struct Orders {
    pub(super) history: History,
    pub(super) wires: Wires,
    /// Whether clients should come to an end.
    pub(super) stop: Arc<AtomicBool>,
    /// Whether a disk may be full: then servers may refuse writes.
    pub(super) may_refuse: Arc<AtomicBool>,
    /// Whether the home of the homed subtree is lost: nobody can write there.
    pub(super) home_is_lost: Arc<AtomicBool>,
}

/// One client at work.
pub(super) struct Worker {
    client: Client,
    scopes: Vec<Scope>,
    /// The names of the clients of the same region.
    neighbours: Vec<String>,
    orders: Orders,
    random: StdRng,
    count: u64,
    /// What it believes to have.
    holds: Option<(Scope, Prize)>,
    /// The newest version of each counter that it has seen.
    versions: BTreeMap<String, i32>,
    ephemerals: BTreeMap<Scope, String>,
    /// When the client last knew that its session lived.
    heard_ms: u64,
}

type Step = Result<(), Disconnected>;

impl Worker {
    pub(super) fn new(
        client: Client,
        scopes: Vec<Scope>,
        neighbours: Vec<String>,
        orders: Orders,
        seed: u64,
    ) -> Self {
        Self {
            client,
            scopes,
            neighbours,
            orders,
            random: StdRng::seed_from_u64(seed),
            count: 0,
            holds: None,
            versions: BTreeMap::new(),
            ephemerals: BTreeMap::new(),
            heard_ms: 0,
        }
    }

    /// Works until it is told to stop; the session is left to expire.
    pub(super) async fn run(mut self) {
        while !self.is_to_stop() {
            if self.connect().await.is_ok() {
                while !self.is_to_stop() && self.step().await.is_ok() {
                    self.heard_ms = self.orders.wires.now_ms();
                }
            }
            self.let_go("disconnected");
        }
        // Whatever was watched was told, or has not changed.
        while self.look_at_what_is_watched().await.is_err() {
            self.client.connect().await;
        }
    }

    fn is_to_stop(&self) -> bool {
        self.orders.stop.load(Ordering::Relaxed)
    }

    fn is_home_lost(&self) -> bool {
        self.orders.home_is_lost.load(Ordering::Relaxed)
    }

    /// Where it can work.
    fn scopes(&self) -> Vec<Scope> {
        let lost = self.is_home_lost();
        self.scopes.iter().copied().filter(|scope| !lost || *scope != Scope::Homed).collect()
    }

    fn history(&self) -> &History {
        &self.orders.history
    }

    async fn connect(&mut self) -> Step {
        match self.client.connect().await {
            Connected::Same => {
                self.history().count("reconnects");
                // An ephemeral of this session may have survived: then it is the holder again.
                for scope in self.scopes() {
                    self.look_at_lock(scope).await?;
                }
            }
            Connected::Expired => {
                self.history().expired(self.client.name(), self.heard_ms);
                self.ephemerals.clear();
            }
            Connected::New => self.ephemerals.clear(),
        }
        Ok(())
    }

    async fn step(&mut self) -> Step {
        let scope = *self.scopes().choose(&mut self.random).ok_or(Disconnected)?;
        self.count += 1;
        match self.random.random_range(0..200) {
            0..14 => self.create(scope).await?,
            14..22 => self.create_numbered(scope).await?,
            22..28 => self.create_many(scope).await?,
            28..50 => self.increment(scope).await?,
            50..56 => self.read_counter(scope).await?,
            56..96 => self.operate(scope).await?,
            96..112 => self.pair(scope).await?,
            112..124 => self.lock(scope).await?,
            124..128 => self.elect(scope).await?,
            128..140 => self.queue(scope).await?,
            140..143 => self.gate(scope).await?,
            143..159 => self.watch(scope).await?,
            159..165 => self.look_at_what_is_watched().await?,
            165..175 => self.ephemeral(scope).await?,
            175..190 => self.write_in_order().await?,
            190..194 => self.read_in_order().await?,
            194..198 => self.change_servers().await?,
            198 => self.close().await?,
            _ => self.abandon().await?,
        }
        let pause_ms = self.random.random_range(0..60);
        self.client.idle(Duration::from_millis(pause_ms)).await
    }

    /// What is written by nobody else.
    fn mark(&self) -> String {
        format!("{}#{}", self.client.name(), self.count)
    }

    async fn create(&mut self, scope: Scope) -> Step {
        let path = format!("{}/{}-{}", scope.root(), self.client.name(), self.count);
        self.history().creates(scope, path.clone());
        let answer = self.client.create(&path, "", CreateMode::Persistent).await?;
        self.history().created(scope, &path, answer.is_ok());
        match answer {
            Ok(_) => Ok(()),
            Err(ErrorCode::NodeExists) => {
                self.client.violation(format!("{path} existed before it was created"));
                Ok(())
            }
            Err(error) => self.refused("create", scope, error),
        }
    }

    async fn create_numbered(&mut self, scope: Scope) -> Step {
        let prefix = format!("{}/seq-", scope.root());
        self.create_with_number(scope, prefix, CreateMode::PersistentSequential).await.map(drop)
    }

    /// Sequential creates, all under way at once: their numbers are in the order in which they were asked for.
    async fn create_many(&mut self, scope: Scope) -> Step {
        let prefix = format!("{}/seq-", scope.root());
        let mut numbers = Vec::new();
        for _ in 0..self.random.random_range(2..12) {
            self.count += 1;
            let data = self.mark();
            numbers.push(self.history().asks_for_number(scope, prefix.clone(), data.clone()));
            let request = super::client::create(&prefix, &data, CreateMode::PersistentSequential);
            self.client.send(&request).await?;
        }
        let mut newest = String::new();
        for number in numbers {
            match self.client.create_reply().await? {
                Ok((path, _)) => {
                    self.history().numbered(number, Some(path.clone()));
                    if path <= newest {
                        self.client.violation(format!("{path} was asked for after {newest}"));
                    }
                    newest = path;
                }
                Err(error) => {
                    self.history().numbered(number, None);
                    self.refused("sequential create", scope, error)?;
                }
            }
        }
        Ok(())
    }

    async fn create_with_number(
        &mut self,
        scope: Scope,
        prefix: String,
        mode: CreateMode,
    ) -> Result<Option<(String, Stat)>, Disconnected> {
        let data = self.mark();
        let number = self.history().asks_for_number(scope, prefix.clone(), data.clone());
        let answer = self.client.create(&prefix, &data, mode).await?;
        self.history().numbered(number, answer.as_ref().ok().map(|(path, _)| path.clone()));
        match answer {
            Ok(made) => Ok(Some(made)),
            Err(error) => self.refused("sequential create", scope, error).map(|()| None),
        }
    }

    /// Reads the counter, which may never go back for one client.
    async fn get_counter(&mut self, scope: Scope) -> Result<Option<(usize, i32)>, Disconnected> {
        let path = format!("{}/counter", scope.root());
        match self.client.get(&path, false).await? {
            Ok((data, stat)) => Ok(data.parse().ok().map(|value| (value, stat.version))),
            Err(error) => self.refused("get", scope, error).map(|()| None),
        }
    }

    async fn increment(&mut self, scope: Scope) -> Step {
        let Some((value, version)) = self.get_counter(scope).await? else { return Ok(()) };
        let path = format!("{}/counter", scope.root());
        self.history().increments(scope);
        let answer = self.client.set(&path, &(value + 1).to_string(), version).await?;
        self.history().incremented(scope, answer.as_ref().ok().map(|stat| stat.version));
        match answer {
            Ok(_) | Err(ErrorCode::BadVersion) => Ok(()),
            Err(error) => self.refused("set", scope, error),
        }
    }

    /// After `sync`, a read shows everything that anybody was told of before.
    async fn read_counter(&mut self, scope: Scope) -> Step {
        let newest = self.history().newest_version(scope);
        let path = format!("{}/counter", scope.root());
        if let Err(error) = self.client.sync(&path).await? {
            return self.refused("sync", scope, error);
        }
        if let Some((_, version)) = self.get_counter(scope).await?
            && version < newest
        {
            self.client.violation(format!(
                "after sync the counter of {scope:?} is at version {version}, not {newest}"
            ));
        }
        Ok(())
    }

    /// An operation on one of the registers.
    async fn operate(&mut self, scope: Scope) -> Step {
        let path = self.register(scope);
        let value = self.history().moment();
        let known = self.versions.get(&path).copied().unwrap_or(0);
        let ask = match self.random.random_range(0..100) {
            0..30 => Ask::Write(value),
            30..50 => Ask::Compare { version: known, value },
            50..60 => Ask::Create(value),
            60..66 => Ask::Delete,
            _ => Ask::Read,
        };
        let number = self.history().operates(scope, &path, ask);
        match self.ask(&path, ask).await? {
            Ok(told) => {
                self.history().operated(scope, &path, number, told);
                if let Told::Version(version) | Told::Found(_, version) = told {
                    self.versions.insert(path, version);
                }
                Ok(())
            }
            Err(error) => self.refused("operation", scope, error),
        }
    }

    fn register(&mut self, scope: Scope) -> String {
        format!("{}/register-{}", scope.root(), self.random.random_range(0..REGISTERS))
    }

    async fn ask(&mut self, path: &str, ask: Ask) -> Result<Result<Told, ErrorCode>, Disconnected> {
        let client = &mut self.client;
        let told = match ask {
            Ask::Write(value) => {
                client.set(path, &value.to_string(), -1).await?.map(|stat| Told::Version(stat.version))
            }
            Ask::Compare { version, value } => {
                client.set(path, &value.to_string(), version).await?.map(|stat| Told::Version(stat.version))
            }
            Ask::Create(value) => {
                client.create(path, &value.to_string(), CreateMode::Persistent).await?.map(|_| Told::Done)
            }
            Ask::Delete => client.delete(path).await?.map(|()| Told::Done),
            Ask::Read => match client.sync(path).await? {
                Ok(()) => client
                    .get(path, false)
                    .await?
                    .map(|(data, stat)| Told::Found(data.parse().unwrap_or(u64::MAX), stat.version)),
                Err(error) => Err(error),
            },
        };
        Ok(match told {
            Err(ErrorCode::NoNode) => Ok(Told::NoNode),
            Err(ErrorCode::NodeExists) => Ok(Told::NodeExists),
            Err(ErrorCode::BadVersion) => Ok(Told::BadVersion),
            other => other,
        })
    }

    /// Two znodes that are always written together, and so are always equal.
    async fn pair(&mut self, scope: Scope) -> Step {
        let [left, right] = pair_of(scope);
        let mark = self.mark();
        let both =
            [&left, &right].map(|path| super::client::set(path, &mark, -1)).into_iter().collect::<Vec<_>>();
        match self.random.random_range(0..3) {
            0 => {
                self.history().count("multis");
                match self.client.multi(both).await? {
                    Ok(()) => Ok(()),
                    Err(error) => self.refused("multi", scope, error),
                }
            }
            1 => {
                self.history().count("multis");
                let [write, _] = <[Request<'_>; 2]>::try_from(both).map_err(|_| Disconnected)?;
                let check = Request::Check { path: &right, version: i32::MAX };
                match self.client.multi(vec![write, check]).await? {
                    Err(ErrorCode::BadVersion) => Ok(()),
                    Ok(()) => {
                        self.client.violation(format!("a multi in {scope:?} with a wrong version succeeded"));
                        Ok(())
                    }
                    Err(error) => self.refused("multi", scope, error),
                }
            }
            _ => match self.client.get_all(&[&left, &right]).await? {
                Ok(data) if data.first() == data.last() => Ok(()),
                Ok(data) => {
                    self.client.violation(format!("half a multi in {scope:?}: {data:?}"));
                    Ok(())
                }
                Err(error) => self.refused("read", scope, error),
            },
        }
    }

    /// No client may be told this: the session is alive, and nobody else touches what it works on. But a server
    /// whose disk is full refuses writes.
    fn refused(&self, what: &str, scope: Scope, error: ErrorCode) -> Step {
        let full = error == ErrorCode::SystemError && self.orders.may_refuse.load(Ordering::Relaxed);
        if full {
            self.history().count("writes refused by full disks");
        } else {
            self.client.violation(format!("{what} in {scope:?} was answered {error:?}"));
        }
        Ok(())
    }
}

fn pair_of(scope: Scope) -> [String; 2] {
    ["left", "right"].map(|name| format!("{}/{name}", scope.root()))
}

/// Makes what the clients work on; done when all has been made or read back through this client's region.
pub(super) async fn prepare(mut client: Client, scopes: Vec<Scope>) {
    for scope in scopes {
        let root = scope.root();
        let mut znodes = vec![(root.to_string(), ""), (format!("{root}/counter"), "0")];
        znodes.extend(PARENTS.map(|name| (format!("{root}/{name}"), "")));
        znodes.extend(pair_of(scope).map(|path| (path, "")));
        for (path, data) in znodes {
            make(&mut client, &path, data).await;
        }
    }
}

/// Writes once in a scope; done when it was acknowledged.
pub(super) async fn write_once(mut client: Client, scope: Scope) {
    let path = format!("{}/{}", scope.root(), client.name());
    make(&mut client, &path, "").await;
}

async fn make(client: &mut Client, path: &str, data: &str) {
    loop {
        match client.create(path, data, CreateMode::Persistent).await {
            Ok(Ok(_) | Err(ErrorCode::NodeExists)) => return,
            Ok(Err(_)) => {}
            Err(Disconnected) => drop(client.connect().await),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
