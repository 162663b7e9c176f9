//! Limits on how many come at once and on how much is under way.

use std::time::Duration;

use meridian_node::server::{ServerOptions, ThrottleOptions};
use meridian_wire::{CreateMode, ErrorCode, Request};

use crate::raw::{Hello, RawClient};
use crate::region::TestRegion;

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
    crate::region::eventually("the first is under way", room).await;
    assert_eq!(second.set("/n", b"x").await, ErrorCode::ThrottledOp);
    assert_eq!(region.server(near).hub().metrics().throttled(), 1);
}
