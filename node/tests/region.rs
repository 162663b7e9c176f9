//! A region's consensus group over real sockets and disks: what is acknowledged survives its servers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use meridian_node::region::{Region, RegionConfig, Sink, Timing, View};
use meridian_node::txn::ensemble::members_at;
use meridian_node::txn::{Answer, ClientRequest, Command, Effects, Position, State};
use meridian_seam::{Environment, codec};
use meridian_wire::{Acl, Create, ErrorCode, Request};
use tokio::sync::mpsc;

struct TestSink {
    view: Arc<ArcSwap<View>>,
    answers: mpsc::UnboundedSender<Answer>,
}

impl Sink for TestSink {
    fn applied(&self, view: Arc<View>, effects: Effects) {
        self.view.store(view);
        for answer in effects.answers {
            self.answers.send(answer).unwrap();
        }
    }

    fn reset(&self, view: Arc<View>) {
        self.view.store(view);
    }

    fn report(&self, _from: u64, report: Bytes) -> Result<Bytes, String> {
        Ok(report)
    }
}

struct Server {
    region: Region,
    view: Arc<ArcSwap<View>>,
    answers: mpsc::UnboundedReceiver<Answer>,
}

const SESSION: i64 = 1 << 56 | 77;

impl Server {
    async fn start(number: u64, addresses: &[String], voters: usize, dir: &Path) -> Self {
        let all: BTreeMap<u64, String> = (1..).zip(addresses.iter().cloned()).collect();
        let (voters, observers) = all.into_iter().partition(|(id, _)| *id <= voters as u64);
        let config = RegionConfig {
            region: 1,
            region_name: "test".into(),
            server: number,
            members: members_at(&voters, &observers),
            listen: addresses[number as usize - 1].clone(),
            data_dir: dir.join(number.to_string()),
            timing: Timing::default(),
            storage: Default::default(),
            tls: None,
        };
        let blank = View { state: State::new(1), position: Position::default() };
        let view = Arc::new(ArcSwap::from_pointee(blank));
        let (sender, answers) = mpsc::unbounded_channel();
        let sink = Arc::new(TestSink { view: view.clone(), answers: sender });
        let region = Region::start(Environment::production(), config, view.clone(), sink).await.unwrap();
        Self { region, view, answers }
    }

    async fn open_session(&mut self) {
        let command = |caller| {
            codec::encode(&Command::OpenSession {
                caller,
                session: SESSION,
                connection: 1,
                timeout_ms: 10_000,
                password: [7; 16],
            })
        };
        self.finish(command).await;
    }

    async fn take_session(&mut self) {
        let command = |caller| {
            codec::encode(&Command::MoveSession {
                caller,
                session: SESSION,
                connection: 1,
                password: [7; 16],
                timeout_ms: 10_000,
            })
        };
        self.finish(command).await;
    }

    async fn create(&mut self, path: &str) {
        let request = Request::Create(Create { path, data: Some(b"x"), acl: vec![Acl::OPEN], flags: 0 });
        let mut body = BytesMut::new();
        request.encode(&mut body);
        let command = |caller| {
            codec::encode(&Command::Client(ClientRequest {
                caller,
                session: SESSION,
                connection: 1,
                identities: &[],
                op: request.op() as i32,
                body: &body,
            }))
        };
        self.finish(command).await;
    }

    async fn finish(
        &mut self,
        build: impl FnOnce(meridian_node::txn::Caller) -> Result<Vec<u8>, codec::CodecError>,
    ) {
        let sequence = self.region.submit(|caller| build(caller).map(Bytes::from)).await.unwrap();
        let answer =
            tokio::time::timeout(Duration::from_secs(20), self.answers.recv()).await.unwrap().unwrap();
        assert_eq!((answer.sequence, answer.outcome.error), (sequence, ErrorCode::Ok));
    }

    async fn until(&self, reached: impl Fn(&State) -> bool) {
        let waiting = async {
            while !reached(&self.view.load().state) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
    }
}

fn free_addresses(count: usize) -> Vec<String> {
    let sockets: Vec<_> = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    sockets.iter().map(|s| s.local_addr().unwrap().to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_survive_their_leader_and_a_restart_of_all() {
    let dir = tempfile::tempdir().unwrap();
    let addresses = free_addresses(4);
    let mut servers = Vec::new();
    for number in 1..=4 {
        servers.push(Server::start(number, &addresses, 3, dir.path()).await);
    }
    servers[3].open_session().await;
    servers[3].create("/first").await;

    let leader = servers[3].region.leadership().borrow().leader.unwrap();
    let stopped = servers.remove(leader as usize - 1);
    stopped.region.shutdown().await;
    drop(stopped);
    let writer = servers.len() - 1;
    for i in 0..20 {
        servers[writer].create(&format!("/second-{i}")).await;
    }
    for server in &servers {
        server.until(|s| s.tree.get("/second-19").is_some()).await;
    }
    let digest = servers[0].view.load().state.tree.digest(0);
    for server in &servers {
        assert_eq!(server.view.load().state.tree.digest(0), digest);
        server.region.shutdown().await;
    }
    drop(servers);

    let mut servers = Vec::new();
    for number in 1..=4 {
        servers.push(Server::start(number, &addresses, 3, dir.path()).await);
    }
    for server in &servers {
        server.until(|s| s.tree.get("/second-19").is_some()).await;
        assert_eq!(server.view.load().state.tree.digest(0), digest);
    }
    servers[0].take_session().await;
    servers[0].create("/third").await;
    for server in &servers {
        server.until(|s| s.tree.get("/third").is_some()).await;
    }
}
