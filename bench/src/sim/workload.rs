//! What simulated clients do, all the time: creates, sequential creates, increments, reads after `sync`, locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use meridian_wire::{Acl, Create, CreateMode, ErrorCode, OpCode, Request, Response, Stat};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::client::{Client, Connected, Disconnected};
use super::history::{Fate, History, Scope};
use super::net::Wires;

/// What is not answered for so long is given up, and the connection with it.
const PATIENCE: Duration = Duration::from_secs(20);

/// What all clients share.
#[derive(Clone)]
pub(super) struct Orders {
    pub(super) history: History,
    pub(super) wires: Wires,
    /// Whether clients should come to an end.
    pub(super) stop: Arc<AtomicBool>,
    /// Clients at work.
    pub(super) working: Arc<AtomicU64>,
}

/// One client at work.
pub(super) struct Worker {
    name: String,
    client: Client,
    scopes: Vec<Scope>,
    orders: Orders,
    random: StdRng,
    count: u64,
    /// The lock that it believes to hold.
    holds: Option<Scope>,
    /// The newest version of each counter that it has seen.
    seen: std::collections::BTreeMap<Scope, i32>,
}

type Step = Result<(), Disconnected>;

impl Worker {
    pub(super) fn new(name: String, client: Client, scopes: Vec<Scope>, orders: Orders, seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self { name, client, scopes, orders, random, count: 0, holds: None, seen: Default::default() }
    }

    /// Works until it is told to stop; the session is left to expire.
    pub(super) async fn run(mut self) {
        self.orders.working.fetch_add(1, Ordering::Relaxed);
        while !self.orders.stop.load(Ordering::Relaxed) {
            if self.connected().await.is_ok() {
                while !self.orders.stop.load(Ordering::Relaxed) && self.step().await.is_ok() {}
            }
            self.let_go("disconnected");
        }
        self.orders.working.fetch_sub(1, Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        self.orders.wires.now_ms()
    }

    async fn connected(&mut self) -> Step {
        let connected = self.client.connect().await;
        if connected == Connected::Same {
            // An ephemeral of this session may have survived: then it is the holder again.
            for scope in self.scopes.clone() {
                self.look_at_lock(scope).await?;
            }
        }
        Ok(())
    }

    async fn step(&mut self) -> Step {
        let scope = *self.scopes.choose(&mut self.random).ok_or(Disconnected)?;
        self.count += 1;
        match self.random.random_range(0..100) {
            0..20 => self.create(scope).await?,
            20..35 => self.create_sequential(scope).await?,
            35..60 => self.increment(scope).await?,
            60..75 => self.read(scope).await?,
            _ => self.lock(scope).await?,
        }
        let pause_ms = self.random.random_range(0..60);
        self.client.idle(Duration::from_millis(pause_ms)).await
    }

    async fn create(&mut self, scope: Scope) -> Step {
        let path = format!("{}/{}-{}", scope.root(), self.name, self.count);
        let request = create(&path, self.name.as_bytes(), CreateMode::Persistent);
        match self.client.call(&request, PATIENCE).await {
            Ok((header, _)) if header.error == ErrorCode::Ok => {
                self.orders.history.created(scope, path, Fate::Done);
                Ok(())
            }
            Ok((header, _)) if header.error == ErrorCode::NodeExists => {
                let text = format!("{}: {path} existed before it was created", self.name);
                self.orders.history.violation(self.now_ms(), text);
                Ok(())
            }
            Ok((header, _)) => self.unexpected("create", scope, header.error),
            Err(Disconnected) => {
                self.orders.history.created(scope, path, Fate::Unknown);
                Err(Disconnected)
            }
        }
    }

    async fn create_sequential(&mut self, scope: Scope) -> Step {
        let data = format!("{}#{}", self.name, self.count);
        let prefix = format!("{}/seq-", scope.root());
        let request = create(&prefix, data.as_bytes(), CreateMode::PersistentSequential);
        match self.client.call(&request, PATIENCE).await {
            Ok((header, body)) if header.error == ErrorCode::Ok => {
                let path = match Response::decode(OpCode::Create, &body) {
                    Ok(Response::Path(path)) => path.to_string(),
                    _ => return self.unexpected("create", scope, ErrorCode::MarshallingError),
                };
                self.orders.history.created_sequential(self.now_ms(), scope, data, Some(path));
                Ok(())
            }
            Ok((header, _)) => self.unexpected("sequential create", scope, header.error),
            Err(Disconnected) => {
                self.orders.history.created_sequential(self.now_ms(), scope, data, None);
                Err(Disconnected)
            }
        }
    }

    async fn get(&mut self, path: &str) -> Result<Result<(Vec<u8>, Stat), ErrorCode>, Disconnected> {
        let (header, body) = self.client.call(&Request::GetData { path, watch: false }, PATIENCE).await?;
        if header.error != ErrorCode::Ok {
            return Ok(Err(header.error));
        }
        match Response::decode(OpCode::GetData, &body) {
            Ok(Response::Data { data, stat }) => Ok(Ok((data.unwrap_or_default().to_vec(), stat))),
            _ => Ok(Err(ErrorCode::MarshallingError)),
        }
    }

    /// Reads the counter, which may never go back for one client.
    async fn get_counter(&mut self, scope: Scope) -> Result<Option<(usize, i32)>, Disconnected> {
        let path = format!("{}/counter", scope.root());
        let (data, stat) = match self.get(&path).await? {
            Ok(found) => found,
            Err(error) => {
                self.unexpected("get", scope, error)?;
                return Ok(None);
            }
        };
        let value = std::str::from_utf8(&data).ok().and_then(|text| text.parse().ok());
        let seen = self.seen.entry(scope).or_default();
        if stat.version < *seen {
            let text =
                format!("{}: the counter of {scope:?} went back from {seen} to {}", self.name, stat.version);
            self.orders.history.violation(self.orders.wires.now_ms(), text);
        }
        *seen = stat.version;
        Ok(value.map(|value| (value, stat.version)))
    }

    async fn increment(&mut self, scope: Scope) -> Step {
        let Some((value, version)) = self.get_counter(scope).await? else { return Ok(()) };
        let (path, data) = (format!("{}/counter", scope.root()), (value + 1).to_string());
        let request = Request::SetData { path: &path, data: Some(data.as_bytes()), version };
        match self.client.call(&request, PATIENCE).await {
            Ok((header, body)) if header.error == ErrorCode::Ok => {
                let Ok(Response::Stat(stat)) = Response::decode(OpCode::SetData, &body) else {
                    return self.unexpected("set", scope, ErrorCode::MarshallingError);
                };
                self.orders.history.incremented(self.now_ms(), scope, Some(stat.version));
                Ok(())
            }
            Ok((header, _)) if header.error == ErrorCode::BadVersion => Ok(()),
            Ok((header, _)) => self.unexpected("set", scope, header.error),
            Err(Disconnected) => {
                self.orders.history.incremented(self.now_ms(), scope, None);
                Err(Disconnected)
            }
        }
    }

    /// After `sync`, a read shows everything that anybody was told of before.
    async fn read(&mut self, scope: Scope) -> Step {
        let newest = self.orders.history.newest_version(scope);
        let path = format!("{}/counter", scope.root());
        let (header, _) = self.client.call(&Request::Sync { path: &path }, PATIENCE).await?;
        if header.error != ErrorCode::Ok {
            return self.unexpected("sync", scope, header.error);
        }
        if let Some((_, version)) = self.get_counter(scope).await?
            && version < newest
        {
            let text = format!(
                "{}: after sync the counter of {scope:?} is at version {version}, not {newest}",
                self.name
            );
            self.orders.history.violation(self.now_ms(), text);
        }
        Ok(())
    }

    async fn lock(&mut self, scope: Scope) -> Step {
        if self.holds.is_some() {
            return self.unlock().await;
        }
        let path = format!("{}/lock", scope.root());
        let request = Request::Create2(Create {
            path: &path,
            data: Some(self.name.as_bytes()),
            acl: vec![Acl::OPEN],
            flags: CreateMode::Ephemeral.into(),
        });
        let (header, body) = self.client.call(&request, PATIENCE).await?;
        match header.error {
            ErrorCode::Ok => {
                let Ok(Response::Create2 { stat, .. }) = Response::decode(OpCode::Create2, &body) else {
                    return self.unexpected("create2", scope, ErrorCode::MarshallingError);
                };
                self.take(scope, stat);
                // Some hold it for longer than a lease.
                let longest_ms = if self.random.random_bool(0.25) { 30_000 } else { 2_000 };
                let hold_ms = self.random.random_range(0..longest_ms);
                self.client.idle(Duration::from_millis(hold_ms)).await?;
                self.unlock().await
            }
            ErrorCode::NodeExists => Ok(()),
            error => self.unexpected("lock", scope, error),
        }
    }

    async fn look_at_lock(&mut self, scope: Scope) -> Step {
        if let Ok((_, stat)) = self.get(&format!("{}/lock", scope.root())).await?
            && stat.ephemeral_owner == self.client.session()
            && self.holds.is_none()
        {
            self.take(scope, stat);
        }
        Ok(())
    }

    fn take(&mut self, scope: Scope, stat: Stat) {
        self.holds = Some(scope);
        self.orders.history.acquired(self.now_ms(), scope, &self.name, stat.czxid);
    }

    fn let_go(&mut self, how: &str) {
        if let Some(scope) = self.holds.take() {
            self.orders.history.lost(self.now_ms(), scope, &self.name, how);
        }
    }

    async fn unlock(&mut self) -> Step {
        let Some(scope) = self.holds else { return Ok(()) };
        self.let_go("released");
        let path = format!("{}/lock", scope.root());
        match self.client.call(&Request::Delete { path: &path, version: -1 }, PATIENCE).await {
            Ok((header, _)) if header.error == ErrorCode::Ok => Ok(()),
            Ok((header, _)) => self.unexpected("unlock", scope, header.error),
            Err(Disconnected) => {
                // To see the lock still there would not mean to hold it: the deletion may be on its way. To
                // delete it again could hit the next holder's.
                self.client.abandon_session();
                Err(Disconnected)
            }
        }
    }

    /// No client may be told this: the session is alive, and nobody else touches what it works on.
    fn unexpected(&mut self, what: &str, scope: Scope, error: ErrorCode) -> Step {
        let text = format!("{}: {what} in {scope:?} was answered {error:?}", self.name);
        self.orders.history.violation(self.now_ms(), text);
        Ok(())
    }
}

/// Makes the counters; done when each has been read back through this client's region.
pub(super) async fn prepare(mut client: Client, scopes: Vec<Scope>) {
    for scope in scopes {
        for (path, data) in [(scope.root().to_string(), ""), (format!("{}/counter", scope.root()), "0")] {
            while !is_made(&mut client, &path, data).await {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Writes once in a scope; done when it was acknowledged.
pub(super) async fn write_once(mut client: Client, scope: Scope, name: String) {
    let path = format!("{}/{name}", scope.root());
    while !is_made(&mut client, &path, "").await {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn is_made(client: &mut Client, path: &str, data: &str) -> bool {
    let request = create(path, data.as_bytes(), CreateMode::Persistent);
    match client.call(&request, PATIENCE).await {
        Ok((header, _)) => matches!(header.error, ErrorCode::Ok | ErrorCode::NodeExists),
        Err(Disconnected) => {
            client.connect().await;
            false
        }
    }
}

fn create<'a>(path: &'a str, data: &'a [u8], mode: CreateMode) -> Request<'a> {
    Request::Create(Create { path, data: Some(data), acl: vec![Acl::OPEN], flags: mode.into() })
}
