//! Limits on how many come at once and on how much is under way.

use std::fs::File;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use meridian_node::server::{ServerOptions, ThrottleOptions};
use meridian_seam::{limits, open_files};
use meridian_wire::{CreateMode, ErrorCode, Request};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::raw::{Hello, RawClient, create};
use crate::region::{PATIENCE, TestRegion, eventually, free_port};

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_come_all_at_once_are_turned_away() {
    let change = |o: &mut ServerOptions| {
        let fill_interval = Duration::from_secs(3_600);
        o.throttle = ThrottleOptions { tokens_max: 3, fill_interval, ..ThrottleOptions::default() };
    };
    let region = TestRegion::with(1, 0, change).await;
    let mut served = Vec::new();
    for _ in 0..3 {
        served.push(RawClient::connect(region.address(1)).await);
    }
    assert!(RawClient::connect_fails(region.address(1), &Hello::default()).await);
    assert_eq!(region.server(1).hub().metrics().connections_rejected(), 1);
    for client in &mut served {
        assert!(client.get("/", false).await.is_ok(), "those who are in stay in");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_wait_for_room_and_keep_their_order() {
    let region = TestRegion::with(3, 0, |o| o.outstanding_max = 2).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(RawClient::connect(region.address(1)).await);
    }
    clients[0].create("/n", CreateMode::Persistent).await.unwrap();
    let mut sent = vec![Vec::new(); clients.len()];
    for round in 0..50 {
        for (client, sent) in clients.iter_mut().zip(&mut sent) {
            let value = format!("{round}");
            let set = Request::SetData { path: "/n", data: Some(value.as_bytes()), version: -1 };
            sent.push(client.send(&set).await);
            if round % 10 == 0 {
                sent.push(client.send(&Request::GetData { path: "/n", watch: false }).await);
            }
        }
    }
    for (client, sent) in clients.iter_mut().zip(sent) {
        for xid in sent {
            let (header, _) = client.reply().await.unwrap();
            assert_eq!((header.xid, header.error), (xid, ErrorCode::Ok));
        }
    }
    assert_eq!(region.server(1).hub().metrics().outstanding(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_waits_too_long_is_refused_without_effect() {
    let change = |o: &mut ServerOptions| {
        o.outstanding_max = 1;
        o.throttled_wait = Some(Duration::from_millis(100));
    };
    let mut region = TestRegion::with(3, 0, change).await;
    let leader = region.leader().await;
    let (near, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let mut first = RawClient::connect(region.address(near)).await;
    let mut second = RawClient::connect(region.address(near)).await;
    first.create("/n", CreateMode::Persistent).await.unwrap();
    region.stop(leader).await;
    region.stop(other).await;
    // Nobody decides this one: it keeps the room.
    first.send(&Request::SetData { path: "/n", data: None, version: -1 }).await;
    let room = async || region.server(near).hub().metrics().outstanding() == 1;
    eventually("the first is under way", room).await;
    assert_eq!(second.set("/n", b"x").await, ErrorCode::ThrottledOp);
    assert_eq!(region.server(near).hub().metrics().throttled(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_say_nothing_do_not_stay_where_the_servers_meet() {
    // Both ends are in this process.
    open_files::raise_limit();
    let mut region = TestRegion::start(1, 0).await;
    let mut strangers = Vec::new();
    for _ in 0..limits::PEER_CONNECTIONS_MAX + 10 {
        strangers.push(TcpStream::connect(region.peer_address(1)).await.unwrap());
    }
    for mut stranger in strangers {
        let end = tokio::time::timeout(PATIENCE, stranger.read(&mut [0])).await.unwrap();
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
    region.join_server(2).await;
    RawClient::connect(region.address(2)).await.create("/n", CreateMode::Persistent).await.unwrap();
}

/// A process with its own limit of open files.
struct Limited {
    process: Child,
    address: SocketAddr,
    directory: TempDir,
}

impl Limited {
    fn start(soft: u32, hard: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("region.toml");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let text = format!(
            "region = \"here\"\nserver = 1\ndata_dir = \"{}/data\"\nclient = {{ listen = \"{address}\", \
             connections_per_address_max = 0 }}\nadmin = {{ listen = \"127.0.0.1:0\" }}\n\
             [[servers]]\nnumber = 1\naddress = \"127.0.0.1:{}\"\n",
            directory.path().display(),
            free_port()
        );
        std::fs::write(&file, text).unwrap();
        let script = format!(
            "ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" server --until-stdin-closes --config \"$1\""
        );
        let process = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_meridian")])
            .arg(&file)
            .stdin(Stdio::piped())
            .stderr(File::create(directory.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { process, address, directory }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_leave_a_server_the_files_that_it_needs() {
    let (soft, hard) = (100, 300);
    let server = Limited::start(soft, hard);
    let served = async || RawClient::try_connect(server.address, &Hello::default()).await.is_ok();
    eventually("the server serves", served).await;
    let mut clients = Vec::new();
    while let Ok(client) = RawClient::try_connect(server.address, &Hello::default()).await {
        clients.push(client);
        assert!(clients.len() <= hard as usize, "nobody is refused");
    }
    assert!(clients.len() > soft as usize, "the limit is raised: {} clients", clients.len());
    assert!(server.log().contains("LimitNOFILE"), "the log says what to do: {}", server.log());
    // A new segment of the log and a snapshot need files of their own.
    for part in 0..80 {
        let value = vec![part; 1_000_000];
        let path = format!("/n{part}");
        let request = create(&path, &value, CreateMode::Persistent);
        assert_eq!(clients[0].call(&request).await.0.error, ErrorCode::Ok);
    }
    drop(clients.split_off(1));
    eventually("there is room again", served).await;
    assert_eq!(clients[0].get("/n0", false).await.unwrap().len(), 1_000_000);
}
