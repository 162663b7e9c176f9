//! A server that is cut off from the others serves reads to who asks for no more.

use std::time::Duration;

use meridian_node::server::LocalSessionMode;
use meridian_wire::{CreateMode, ErrorCode, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::raw::{Hello, RawClient, create};
use crate::region::{TestRegion, eventually};

fn read_only() -> Hello {
    Hello { read_only: Some(true), ..Hello::default() }
}

async fn cut_off() -> (TestRegion, RawClient) {
    let change = |o: &mut meridian_node::server::ServerOptions| {
        o.read_only_mode = true;
        o.tick = Duration::from_millis(500);
    };
    let mut region = TestRegion::with(3, 0, change).await;
    let mut before = RawClient::try_connect(region.address(1), &read_only()).await.unwrap();
    before.create("/kept", CreateMode::Persistent).await.unwrap();
    region.stop(2).await;
    region.stop(3).await;
    before.closed().await;
    let address = region.address(1);
    eventually("read-only mode begins", async || {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"isro").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer == "ro"
    })
    .await;
    (region, before)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_session_is_not_told_that_it_may_write_where_no_majority_is_left() {
    let mut region = TestRegion::with(3, 0, |options| {
        options.read_only_mode = true;
        options.local_sessions = LocalSessionMode::Only;
    })
    .await;
    let remaining = region.leader().await;
    let mut before = RawClient::try_connect(region.address(remaining), &read_only()).await.unwrap();
    before.create("/kept", CreateMode::Persistent).await.unwrap();
    for server in (1..=3).filter(|server| *server != remaining) {
        region.stop(server).await;
    }
    // From now on, not only when the server counts as cut off.
    let mut client = loop {
        if let Ok(client) = RawClient::try_connect(region.address(remaining), &read_only()).await {
            break client;
        }
    };
    assert!(client.read_only);
    assert!(client.get("/kept", false).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_server_serves_reads_to_who_asks_for_no_more() {
    let (mut region, before) = cut_off().await;
    let address = region.address(1);
    assert!(RawClient::connect_fails(address, &Hello::default()).await, "others are not served");
    // Both a new session and one that the region knows.
    for hello in [read_only(), Hello { read_only: Some(true), ..before.hello() }] {
        let mut client = RawClient::try_connect(address, &hello).await.unwrap();
        assert!(client.session != 0 && client.read_only);
        assert!(client.get("/kept", false).await.is_ok());
        for request in [
            create("/no", b"", CreateMode::Persistent),
            Request::SetData { path: "/kept", data: None, version: -1 },
            Request::Delete { path: "/kept", version: -1 },
            Request::Multi(vec![Request::Check { path: "/kept", version: -1 }]),
            Request::Sync { path: "/" },
        ] {
            assert_eq!(client.call(&request).await.0.error, ErrorCode::NotReadOnly, "{request:?}");
        }
        client.call(&Request::Ping).await;
        let again = RawClient::try_connect(address, &Hello { read_only: Some(true), ..client.hello() }).await;
        assert_eq!(again.unwrap().session, client.session, "it may come back");
    }
    let unknown = Hello { session: 99, ..read_only() };
    assert_eq!(RawClient::try_connect(address, &unknown).await.unwrap().session, 0);

    let mut reader = RawClient::try_connect(address, &read_only()).await.unwrap();
    region.start_server(2).await;
    reader.closed().await;
    eventually("writes go on", async || {
        let Ok(mut client) = RawClient::try_connect(address, &Hello::default()).await else { return false };
        client.set("/kept", b"new").await == ErrorCode::Ok
    })
    .await;
    let local = RawClient::try_connect(address, &reader.hello()).await.unwrap();
    assert_eq!(local.session, 0, "what was local to the isolated server is over");
    let resumed = RawClient::try_connect(address, &before.hello()).await.unwrap();
    assert!(resumed.session == before.session && !resumed.read_only);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_in_read_only_mode_is_answered() {
    let (region, _) = cut_off().await;
    let mut client = RawClient::try_connect(region.address(1), &read_only()).await.unwrap();
    let session = client.hello();
    assert_eq!(client.call(&Request::CloseSession).await.0.error, ErrorCode::Ok);
    client.closed().await;
    let late = Hello { read_only: Some(true), ..session };
    assert_eq!(RawClient::try_connect(region.address(1), &late).await.unwrap().session, 0);
}
