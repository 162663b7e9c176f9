//! A region of real servers in this process, on loopback addresses and temporary directories.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use meridian_node::region::{RegionConfig, Timing};
use meridian_node::server::{Server, ServerOptions};
use meridian_node::txn::ensemble::members_at;
use meridian_seam::Environment;
use tempfile::TempDir;

/// Nothing in these tests takes so long on a machine that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Options other than the usual ones.
type Change = Box<dyn Fn(&mut ServerOptions) + Send + Sync>;

pub(crate) struct TestRegion {
    directory: TempDir,
    voters: BTreeMap<u64, String>,
    observers: BTreeMap<u64, String>,
    servers: BTreeMap<u64, Server>,
    change: Change,
}

impl TestRegion {
    /// Starts servers 1 to `voters` and after them `observers` more, and waits until all hear of a leader.
    pub(crate) async fn start(voters: u64, observers: u64) -> Self {
        Self::with(voters, observers, |_| {}).await
    }

    /// The same with other options.
    pub(crate) async fn with(
        voters: u64,
        observers: u64,
        change: impl Fn(&mut ServerOptions) + Send + Sync + 'static,
    ) -> Self {
        let mut region = Self::prepare(voters, observers, change);
        for server in 1..=voters + observers {
            region.start_server(server).await;
        }
        region.leader().await;
        eventually("all hear of the leader and its majority", async || {
            region.servers.values().all(|server| server.hub().has_had_contact())
        })
        .await;
        region
    }

    /// The same with no server started yet.
    pub(crate) fn prepare(
        voters: u64,
        observers: u64,
        change: impl Fn(&mut ServerOptions) + Send + Sync + 'static,
    ) -> Self {
        let address = |server| (server, format!("127.0.0.1:{}", free_port()));
        Self {
            directory: tempfile::tempdir().unwrap(),
            voters: (1..=voters).map(address).collect(),
            observers: (voters + 1..=voters + observers).map(address).collect(),
            servers: BTreeMap::new(),
            change: Box::new(change),
        }
    }

    pub(crate) async fn start_server(&mut self, server: u64) {
        let options = self.options(server);
        let started = Server::start(Environment::production(), options).await.unwrap();
        self.servers.insert(server, started);
    }

    /// Takes over a server that was started with [`TestRegion::options`].
    pub(crate) fn insert(&mut self, server: u64, started: Server) {
        self.servers.insert(server, started);
    }

    /// What a server is started with.
    pub(crate) fn options(&self, server: u64) -> ServerOptions {
        let addresses = self.voters.iter().chain(&self.observers);
        let listen = addresses.clone().find(|(id, _)| **id == server).unwrap().1.clone();
        let data_dir = self.directory.path().join(server.to_string());
        std::fs::create_dir_all(&data_dir).unwrap();
        let config = RegionConfig {
            region: 1,
            region_name: "here".into(),
            server,
            members: members_at(&self.voters, &self.observers),
            listen,
            data_dir,
            timing: Timing::default(),
            storage: Default::default(),
            tls: None,
        };
        let mut options = ServerOptions {
            admin_listen: Some("127.0.0.1:0".into()),
            ..ServerOptions::new(config, "127.0.0.1:0")
        };
        (self.change)(&mut options);
        options
    }

    /// Starts a server that the others have not heard of yet.
    pub(crate) async fn join_server(&mut self, server: u64) {
        self.observers.insert(server, format!("127.0.0.1:{}", free_port()));
        self.start_server(server).await;
    }

    /// Where the other servers reach one.
    pub(crate) fn peer_address(&self, server: u64) -> String {
        let addresses = self.voters.iter().chain(&self.observers);
        addresses.clone().find(|(id, _)| **id == server).unwrap().1.clone()
    }

    /// Has the configurations say that one voter is where another is.
    pub(crate) fn mistake(&mut self, voter: u64, other: u64) {
        self.voters.insert(voter, self.peer_address(other));
    }

    /// Loses what a stopped server has on its disk.
    pub(crate) fn wipe(&self, server: u64) {
        std::fs::remove_dir_all(self.directory.path().join(server.to_string())).unwrap();
    }

    /// Stops a server and returns when it has.
    pub(crate) async fn stop(&mut self, server: u64) {
        self.servers.remove(&server).unwrap().shutdown().await;
    }

    pub(crate) fn server(&self, server: u64) -> &Server {
        &self.servers[&server]
    }

    /// Where clients reach a server.
    pub(crate) fn address(&self, server: u64) -> SocketAddr {
        self.server(server).client_address()
    }

    /// The addresses of all servers that run, as clients take them.
    pub(crate) fn addresses(&self) -> String {
        let addresses: Vec<String> = self.servers.values().map(|s| s.client_address().to_string()).collect();
        addresses.join(",")
    }

    /// The leader that all servers agree on.
    pub(crate) async fn leader(&self) -> u64 {
        let mut leaders = Vec::new();
        for server in self.servers.values() {
            let mut leadership = server.region().leadership();
            let running = |leader: u64| self.servers.contains_key(&leader);
            let waiting = leadership.wait_for(|l| l.leader.is_some_and(running));
            leaders.push(tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().leader.unwrap());
        }
        *leaders.last().unwrap()
    }
}

/// A port below those that the system gives to outgoing connections, which other tests make all the time.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let place = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(12_000 + place % 20_000).unwrap();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
