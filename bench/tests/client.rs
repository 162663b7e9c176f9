//! The client against a real server: a region of one voter.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_bench::client::{Client, ClientError, create};
use meridian_node::region::{RegionConfig, Timing};
use meridian_node::server::{Server, ServerOptions};
use meridian_seam::Environment;
use meridian_wire::{ErrorCode, Request, Response};

struct Region {
    server: Server,
    _directory: tempfile::TempDir,
}

impl Region {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let peer = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let region = RegionConfig {
            region: 1,
            region_name: "a".into(),
            server: 1,
            voters: BTreeMap::from([(1, peer.clone())]),
            observers: BTreeMap::new(),
            listen: peer,
            data_dir: directory.path().into(),
            timing: Timing {
                heartbeat: Duration::from_millis(50),
                election_timeout: (Duration::from_millis(200), Duration::from_millis(400)),
            },
            tls: None,
        };
        let options = ServerOptions::new(region, "127.0.0.1:0");
        let server = Server::start(Environment::production(), options).await.unwrap();
        Self { server, _directory: directory }
    }

    async fn connect(&self) -> Client {
        Client::connect(&self.server.client_address().to_string()).await.unwrap()
    }
}

#[tokio::test]
async fn replies_to_many_outstanding_requests_come_in_order() {
    let region = Region::start().await;
    let mut client = region.connect().await;
    client.ensure_path("/a/b/c").await.unwrap();
    client.ensure_path("/a/b/c").await.unwrap();
    for i in 0..500 {
        client.submit(&create(&format!("/a/{i}"), b"x")).unwrap();
        client.submit(&Request::GetData { path: &format!("/a/{i}"), watch: true }).unwrap();
    }
    assert_eq!(client.outstanding(), 1_000);
    for i in 0..500 {
        let created = client.next_reply().await.unwrap().succeeded().unwrap();
        let path = format!("/a/{i}");
        assert_eq!(created.response().unwrap(), Response::Path(&path));
        let read = client.next_reply().await.unwrap().succeeded().unwrap();
        let Response::Data { data, stat } = read.response().unwrap() else { panic!("{read:?}") };
        assert_eq!((data, stat.czxid), (Some(&b"x"[..]), created.header.zxid));
    }
    assert_eq!(client.outstanding(), 0);
    client.call(&Request::Delete { path: "/a/7", version: -1 }).await.unwrap();
    assert_eq!(client.watch_events(), 1);
    client.close().await.unwrap();
    region.server.shutdown().await;
}

#[tokio::test]
async fn errors_of_the_server_and_of_the_connection_surface() {
    let region = Region::start().await;
    let mut client = region.connect().await;
    let missing = client.call(&Request::GetData { path: "/none", watch: false }).await;
    assert!(matches!(missing, Err(ClientError::Server { error: ErrorCode::NoNode, .. })), "{missing:?}");
    client.call(&Request::Sync { path: "/" }).await.unwrap();
    let address = region.server.client_address().to_string();
    region.server.shutdown().await;
    let lost = client.call(&Request::Sync { path: "/" }).await;
    assert!(matches!(lost, Err(ClientError::Io(_))), "{lost:?}");
    assert!(matches!(Client::connect(&address).await, Err(ClientError::Io(_))));
}
