//! Three regions over real sockets, disks and QUIC: a global subtree, a homed one, and the loss of a leader.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use meridian_bridge::bridge::{Bridge, BridgeConfig};
use meridian_bridge::certificates::{Authority, Identity, IdentityPaths, PeerName};
use meridian_bridge::mesh::{Mesh, Mode, Subtree};
use meridian_bridge::state::{self as federation, Content, MirrorRecord};
use meridian_bridge::transport::PeerAddress;
use meridian_node::federation::{FederatedRegion, speak_while_leading};
use meridian_node::peer_tls::PeerIdentity;
use meridian_node::region::{Region, RegionConfig, Sink, Timing, View};
use meridian_node::txn::ensemble::members_at;
use meridian_node::txn::{Answer, Caller, ClientRequest, Command, Effects, Position, SharedRequest, State};
use meridian_seam::{Environment, codec};
use meridian_wire::{Acl, Create, ErrorCode, Request};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const REGIONS: [&str; 3] = ["a", "b", "c"];

struct TestSink {
    view: Arc<ArcSwap<View>>,
    answers: mpsc::UnboundedSender<Answer>,
}

impl Sink for TestSink {
    fn applied(&self, view: Arc<View>, effects: Effects) {
        self.view.store(view);
        for answer in effects.answers {
            // The test may have stopped listening.
            let _ = self.answers.send(answer);
        }
    }

    fn reset(&self, view: Arc<View>) {
        self.view.store(view);
    }

    fn report(&self, _from: u64, report: Bytes) -> Result<Bytes, String> {
        Ok(report)
    }
}

/// One server with its bridge.
struct Server {
    region: Region,
    bridge: Arc<Bridge>,
    view: Arc<ArcSwap<View>>,
    answers: mpsc::UnboundedReceiver<Answer>,
    speaking: JoinHandle<()>,
    session: i64,
}

struct Addresses {
    peers: Vec<Vec<String>>,
    bridges: Vec<Vec<SocketAddr>>,
}

fn addresses(servers: usize) -> Addresses {
    let tcp: Vec<_> = (0..3 * servers).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let udp: Vec<_> = (0..3 * servers).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let tcp: Vec<String> = tcp.iter().map(|s| s.local_addr().unwrap().to_string()).collect();
    let udp: Vec<SocketAddr> = udp.iter().map(|s| s.local_addr().unwrap()).collect();
    Addresses {
        peers: tcp.chunks(servers).map(<[_]>::to_vec).collect(),
        bridges: udp.chunks(servers).map(<[_]>::to_vec).collect(),
    }
}

fn mesh() -> Mesh {
    Mesh {
        regions: REGIONS.map(String::from).to_vec(),
        subtrees: vec![
            Subtree { path: "/global".into(), mode: Mode::Global },
            Subtree { path: "/shared".into(), mode: Mode::Homed { home: 1 } },
        ],
    }
}

fn name(region: usize, server: usize) -> String {
    format!("{}-{}", REGIONS[region], server + 1)
}

impl Server {
    async fn start(
        region: usize,
        server: usize,
        addresses: &Addresses,
        authority: &Authority,
        dir: &Path,
    ) -> Self {
        let environment = Environment::production();
        let own_name = name(region, server);
        let paths = IdentityPaths::in_directory(dir, &own_name);
        if !paths.certificate.exists() {
            let peer = PeerName::new(REGIONS[region], own_name.clone());
            authority.issue(&peer, &*environment.clock, 2).unwrap().save(dir).unwrap();
        }
        let identity = Arc::new(Identity::load(paths, environment.clock.clone()).unwrap());
        let number = region as u8 + 1;
        let voters: BTreeMap<u64, String> = (1..).zip(addresses.peers[region].iter().cloned()).collect();
        let config = RegionConfig {
            region: number,
            region_name: REGIONS[region].into(),
            server: server as u64 + 1,
            members: members_at(&voters, &BTreeMap::new()),
            listen: addresses.peers[region][server].clone(),
            data_dir: dir.join(&own_name),
            timing: Timing::default(),
            storage: Default::default(),
            tls: Some(PeerIdentity::new(identity.clone())),
        };
        let blank = View { state: State::new(number), position: Position::default() };
        let view = Arc::new(ArcSwap::from_pointee(blank));
        let (sender, answers) = mpsc::unbounded_channel();
        let sink = Arc::new(TestSink { view: view.clone(), answers: sender });
        let node = Region::start(environment.clone(), config, view.clone(), sink).await.unwrap();
        let others = (0..3).filter(|other| *other != region);
        let peers = others.flat_map(|other| {
            addresses.bridges[other].iter().enumerate().map(move |(i, address)| PeerAddress {
                region: REGIONS[other].into(),
                server: name(other, i),
                address: address.to_string(),
            })
        });
        let bridge_config = BridgeConfig {
            mesh: mesh(),
            region: number,
            server: own_name,
            listen: addresses.bridges[region][server],
            peers: peers.collect(),
            timing: Default::default(),
            log_bounds: meridian_bridge::global::LOG_BOUNDS,
            lease: Default::default(),
            transport: Default::default(),
        };
        let federated = FederatedRegion::new(node.clone(), Box::new(|_| {}));
        let bridge = Bridge::start(environment, bridge_config, identity, federated).unwrap();
        let speaking = tokio::spawn(speak_while_leading(node.clone(), bridge.clone(), mesh()));
        let session = i64::from(number) << 56 | (server as i64 + 1) << 48 | 1;
        Self { region: node, bridge, view, answers, speaking, session }
    }

    async fn stop(self) {
        self.speaking.abort();
        self.bridge.shutdown().await;
        self.region.shutdown().await;
    }

    async fn open_session(&mut self) {
        let session = self.session;
        let open = |caller| {
            let timeout_ms = 30_000;
            codec::encode(&Command::OpenSession {
                caller,
                session,
                connection: 1,
                timeout_ms,
                password: [7; 16],
            })
        };
        assert_eq!(self.finish(open).await, ErrorCode::Ok);
    }

    async fn create(&mut self, path: &str, flags: i32) -> ErrorCode {
        self.request(&Request::Create(Create { path, data: Some(b"x"), acl: vec![Acl::OPEN], flags })).await
    }

    async fn request(&mut self, request: &Request<'_>) -> ErrorCode {
        let mut body = BytesMut::new();
        request.encode(&mut body);
        let session = self.session;
        let build = |caller| {
            codec::encode(&Command::Client(ClientRequest {
                caller,
                session,
                connection: 1,
                identities: &[],
                op: request.op() as i32,
                body: &body,
            }))
        };
        self.finish(build).await
    }

    async fn finish(
        &mut self,
        build: impl FnOnce(Caller) -> Result<Vec<u8>, codec::CodecError>,
    ) -> ErrorCode {
        let sequence = self.region.submit(|caller| build(caller).map(Bytes::from)).await.unwrap();
        let answer =
            tokio::time::timeout(Duration::from_secs(30), self.answers.recv()).await.unwrap().unwrap();
        assert_eq!(answer.sequence, sequence);
        answer.outcome.error
    }

    async fn until(&self, what: &str, reached: impl Fn(&State) -> bool) {
        let waiting = async {
            while !reached(&self.view.load().state) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting)
            .await
            .unwrap_or_else(|_| panic!("never: {what}"));
    }
}

fn has(state: &State, path: &str) -> bool {
    state.tree.get(path).is_some()
}

/// Three regions of one server each.
async fn three_regions(dir: &Path) -> Vec<Server> {
    start_log();
    let environment = Environment::production();
    let authority = Authority::create(&*environment.clock, 2).unwrap();
    let all = addresses(1);
    let mut servers = Vec::new();
    for region in 0..3 {
        servers.push(Server::start(region, 0, &all, &authority, dir).await);
    }
    servers
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "off".into());
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

#[tokio::test(flavor = "multi_thread")]
async fn regions_share_subtrees_and_survive_the_loss_of_leaders() {
    start_log();
    let dir = tempfile::tempdir().unwrap();
    let environment = Environment::production();
    let authority = Authority::create(&*environment.clock, 2).unwrap();
    let all = addresses(3);
    let mut regions: Vec<Vec<Server>> = Vec::new();
    for region in 0..3 {
        let mut servers = Vec::new();
        for server in 0..3 {
            servers.push(Server::start(region, server, &all, &authority, dir.path()).await);
        }
        regions.push(servers);
    }
    for servers in &regions {
        for server in servers {
            server.until("the table is formed", |s| has(s, "/global") && has(s, "/shared")).await;
        }
    }
    for servers in &mut regions {
        servers[0].open_session().await;
    }

    // A global write is seen everywhere, whoever sends it, and the stat is the same.
    for (region, servers) in regions.iter_mut().enumerate() {
        assert_eq!(servers[0].create(&format!("/global/from-{region}"), 0).await, ErrorCode::Ok);
    }
    assert_eq!(regions[1][0].create("/global/from-2", 0).await, ErrorCode::NodeExists);
    // A homed write from its home and from elsewhere.
    assert_eq!(regions[0][0].create("/shared/home", 0).await, ErrorCode::Ok);
    assert_eq!(regions[2][0].create("/shared/away", 0).await, ErrorCode::Ok);
    // Local writes stay local.
    assert_eq!(regions[1][0].create("/local", 0).await, ErrorCode::Ok);
    for servers in &regions {
        for server in servers {
            server
                .until("global and homed writes arrive", |s| {
                    has(s, "/global/from-2") && has(s, "/shared/home") && has(s, "/shared/away")
                })
                .await;
        }
    }
    assert!(!has(&regions[0][0].view.load().state, "/local"));
    for subtree in [1, 2] {
        let digest = regions[0][0].view.load().state.tree.digest(subtree);
        for server in regions.iter().flatten() {
            assert_eq!(server.view.load().state.tree.digest(subtree), digest, "subtree {subtree}");
        }
    }

    // An ephemeral of a session that closes in one region disappears in all.
    assert_eq!(regions[2][0].create("/global/holder", 1).await, ErrorCode::Ok);
    regions[0][1].until("the ephemeral arrives", |s| has(s, "/global/holder")).await;
    assert_eq!(regions[2][0].request(&Request::CloseSession).await, ErrorCode::Ok);
    for server in regions.iter().flatten() {
        server.until("the ephemeral goes", |s| !has(s, "/global/holder")).await;
    }

    // The leader of the region that leads the global group is lost: writes go on from everywhere else.
    let leading = regions.iter().flatten().find_map(|s| s.bridge.status().global_leader).unwrap();
    let leading = REGIONS.iter().position(|r| *r == leading).unwrap();
    let leader = regions[leading][0].region.leadership().borrow().leader.unwrap() as usize - 1;
    let stopped = regions[leading].remove(leader);
    stopped.stop().await;
    let writer = (leading + 1) % 3;
    let other_session = &mut regions[writer][1];
    other_session.open_session().await;
    for i in 0..10 {
        assert_eq!(other_session.create(&format!("/global/after-{i}"), 0).await, ErrorCode::Ok);
    }
    for server in regions.iter().flatten() {
        server.until("writes after the loss arrive", |s| has(s, "/global/after-9")).await;
    }
    let digest = regions[writer][0].view.load().state.tree.digest(1);
    for server in regions.iter().flatten() {
        assert_eq!(server.view.load().state.tree.digest(1), digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_home_of_a_subtree_moves_and_comes_back_while_all_regions_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut servers = three_regions(dir.path()).await;
    for server in &mut servers {
        server.until("the table is formed", |s| has(s, "/shared")).await;
        server.open_session().await;
    }
    assert_eq!(servers[1].create("/shared/held", 1).await, ErrorCode::Ok);
    let bridges: Vec<Arc<Bridge>> = servers.iter().map(|s| s.bridge.clone()).collect();
    let writers: Vec<JoinHandle<Server>> = servers
        .into_iter()
        .enumerate()
        .map(|(region, mut server)| {
            tokio::spawn(async move {
                for i in 0..300 {
                    let path = format!("/shared/{region}-{i}");
                    assert_eq!(server.create(&path, 0).await, ErrorCode::Ok, "{path}");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                server
            })
        })
        .collect();
    // From region 1 to 3, to 2 and back; only the home itself can hand it on.
    for (home, to) in [(1, 3), (3, 2), (2, 1)] {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(bridges[to as usize - 1].move_home(2, to).await.is_err());
        let moving = async {
            // The region that it came to may not know yet.
            while bridges[home as usize - 1].move_home(2, to).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), moving).await.unwrap();
    }
    let mut servers = Vec::new();
    for writer in writers {
        servers.push(tokio::time::timeout(Duration::from_secs(60), writer).await.unwrap().unwrap());
    }
    for server in &servers {
        server
            .until("all writes arrive once", |s| {
                (0..3).all(|region| has(s, &format!("/shared/{region}-299")))
                    && s.tree.get("/shared").unwrap().times.cversion == 901
            })
            .await;
    }
    let of = |server: &Server| {
        let state = server.view.load().state.clone();
        let order = state.federation.orders.values().find(|o| o.home != 0).unwrap().clone();
        (state.tree.digest(2), order.home, order.epoch, order.position)
    };
    servers[0].until("the home is back", |s| s.federation.orders.values().any(|o| o.home == 1)).await;
    assert_eq!(of(&servers[0]).2, 4, "three moves");
    for server in &servers[1..] {
        let expected = of(&servers[0]);
        server
            .until("the order arrives", |s| s.federation.orders.values().any(|o| o.position == expected.3))
            .await;
        assert_eq!(of(server), expected);
    }
    // A session's ephemeral goes with it, wherever the home is.
    assert_eq!(servers[1].request(&Request::CloseSession).await, ErrorCode::Ok);
    servers[2].until("the ephemeral goes", |s| !has(s, "/shared/held")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_differs_from_its_home_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let mut servers = three_regions(dir.path()).await;
    for server in &servers {
        server.until("the table is formed", |s| has(s, "/shared")).await;
    }
    servers[0].open_session().await;
    assert_eq!(servers[0].create("/shared/first", 0).await, ErrorCode::Ok);
    servers[2].until("the mirror is fed", |s| has(s, "/shared/first")).await;

    // What the home never said, in the place of what it says next.
    let mut body = BytesMut::new();
    Request::Create(Create { path: "/shared/forged", data: None, acl: vec![Acl::OPEN], flags: 0 })
        .encode(&mut body);
    let request = SharedRequest::Client {
        session: 1,
        lease_epoch: 0,
        may_own: false,
        identities: &[],
        op: 1,
        body: &body,
    };
    let order =
        servers[2].view.load().state.federation.orders.values().find(|o| o.home == 1).cloned().unwrap();
    let record = MirrorRecord {
        position: order.position + 1,
        zxid: order.zxid() + 1,
        time_ms: 0,
        content: Content::Request {
            region: 1,
            sequence: 0,
            request: codec::encode(&request).unwrap().into(),
        },
    };
    let records = vec![codec::encode(&record).unwrap().into()];
    let forged = federation::Command::Mirror { subtree: 2, records };
    servers[2].region.propose_federation(forged).await.unwrap();
    assert!(has(&servers[2].view.load().state, "/shared/forged"));

    assert_eq!(servers[0].create("/shared/second", 0).await, ErrorCode::Ok);
    servers[2].until("the mirror is mended", |s| has(s, "/shared/second") && !has(s, "/shared/forged")).await;
    let digest = |server: &Server| server.view.load().state.tree.digest(2);
    assert_eq!(digest(&servers[2]), digest(&servers[0]));
    assert_eq!(servers[0].create("/shared/third", 0).await, ErrorCode::Ok);
    servers[2].until("the mirror is fed on", |s| has(s, "/shared/third")).await;
}
