//! The client against a real server.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod region;

use meridian_bench::client::{Client, ClientError, create};
use meridian_wire::{ErrorCode, Request, Response};
use region::Region;

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
