//! Sessions: opened, taken up elsewhere, closed, expired; and what survives which server's end.

use std::time::Duration;

use meridian_wire::{CreateMode, ErrorCode, Request};

use crate::raw::{Hello, RawClient};
use crate::region::{TestRegion, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_session_resumes_at_another_server_and_the_old_connection_is_closed() {
    let region = TestRegion::start(3, 1).await;
    let mut first = RawClient::connect(region.address(1)).await;
    first.create("/mine", CreateMode::Ephemeral).await.unwrap();
    for server in [2, 4, 1] {
        let mut next = RawClient::try_connect(region.address(server), &first.hello()).await.unwrap();
        assert_eq!(next.session, first.session, "never a new session in silence");
        first.closed().await;
        next.call(&Request::Sync { path: "/" }).await;
        assert!(next.get("/mine", false).await.is_ok());
        assert_eq!(next.set("/mine", b"still").await, ErrorCode::Ok);
        first = next;
    }
    first.call(&Request::CloseSession).await;
    first.closed().await;
    let mut other = RawClient::connect(region.address(1)).await;
    assert_eq!(other.get("/mine", false).await, Err(ErrorCode::NoNode));
    let late = RawClient::try_connect(region.address(2), &first.hello()).await.unwrap();
    assert_eq!((late.session, late.timeout_ms), (0, 0), "a closed session is told to be expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn impostors_and_clients_from_the_future_are_refused() {
    let region = TestRegion::start(1, 0).await;
    let mut owner = RawClient::connect(region.address(1)).await;
    owner.create("/mine", CreateMode::Ephemeral).await.unwrap();
    for password in [vec![7; 16], vec![7; 3], Vec::new()] {
        let hello = Hello { password, ..owner.hello() };
        let mut impostor = RawClient::try_connect(region.address(1), &hello).await.unwrap();
        assert_eq!((impostor.session, impostor.timeout_ms), (0, 0));
        impostor.closed().await;
    }
    assert!(owner.get("/mine", false).await.is_ok(), "the owner is not disturbed");
    let ahead = Hello { last_zxid: i64::MAX, ..Hello::default() };
    assert!(RawClient::try_connect(region.address(1), &ahead).await.is_err());
    let old = Hello { read_only: None, timeout_ms: 1, ..Hello::default() };
    let old = RawClient::try_connect(region.address(1), &old).await.unwrap();
    assert_eq!(old.timeout_ms, 4_000, "two ticks at least");
    let patient = Hello { timeout_ms: i32::MAX, ..Hello::default() };
    let patient = RawClient::try_connect(region.address(1), &patient).await.unwrap();
    assert_eq!(patient.timeout_ms, 40_000, "twenty ticks at most");
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemerals_go_when_their_session_expires_and_not_before() {
    let region = TestRegion::with(3, 0, |o| o.tick = Duration::from_millis(500)).await;
    let leader = region.leader().await;
    let follower = leader % 3 + 1;
    let timeout = |timeout_ms| Hello { timeout_ms, ..Hello::default() };
    let mut silent = RawClient::try_connect(region.address(follower), &timeout(1_000)).await.unwrap();
    let mut alive = RawClient::try_connect(region.address(follower), &timeout(3_000)).await.unwrap();
    silent.create("/silent", CreateMode::Ephemeral).await.unwrap();
    alive.create("/alive", CreateMode::Ephemeral).await.unwrap();
    // Longer than its own timeout, too.
    let mut pings = 0;
    eventually("the silent session expires", async || {
        alive.call(&Request::Ping).await;
        pings += 1;
        let is_gone = alive.get("/silent", false).await == Err(ErrorCode::NoNode);
        tokio::time::sleep(Duration::from_millis(50)).await;
        is_gone && pings > 80
    })
    .await;
    assert!(alive.get("/alive", false).await.is_ok(), "a session that pings at a follower lives");
    silent.closed().await;
    let late = RawClient::try_connect(region.address(leader), &silent.hello()).await.unwrap();
    assert_eq!(late.session, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_outlive_the_leader() {
    let mut region = TestRegion::start(3, 0).await;
    let leader = region.leader().await;
    let (second, third) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let mut at_leader = RawClient::connect(region.address(leader)).await;
    let mut at_follower = RawClient::connect(region.address(second)).await;
    at_leader.create("/l", CreateMode::Ephemeral).await.unwrap();
    at_follower.create("/f", CreateMode::Ephemeral).await.unwrap();
    region.stop(leader).await;
    at_leader.closed().await;
    // A write under way over the change of leaders is answered when there is a new one.
    at_follower.create("/during", CreateMode::Persistent).await.unwrap();
    let mut moved = RawClient::try_connect(region.address(third), &at_leader.hello()).await.unwrap();
    assert_eq!(moved.session, at_leader.session);
    assert!(moved.get("/l", false).await.is_ok());
    assert!(moved.get("/f", false).await.is_ok());
    region.start_server(leader).await;
    let mut back = RawClient::try_connect(region.address(leader), &Hello::default()).await.unwrap();
    back.call(&Request::Sync { path: "/" }).await;
    assert!(back.get("/during", false).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_data_and_sessions() {
    let mut region = TestRegion::start(1, 0).await;
    let mut client = RawClient::connect(region.address(1)).await;
    client.create("/kept", CreateMode::Persistent).await.unwrap();
    client.create("/mine", CreateMode::Ephemeral).await.unwrap();
    assert_eq!(client.set("/kept", b"value").await, ErrorCode::Ok);
    region.stop(1).await;
    client.closed().await;
    region.start_server(1).await;
    region.leader().await;
    let mut back = RawClient::try_connect(region.address(1), &client.hello()).await.unwrap();
    assert_eq!(back.session, client.session);
    assert_eq!(back.get("/kept", false).await.unwrap(), b"value");
    assert!(back.get("/mine", false).await.is_ok());
    let fresh = RawClient::connect(region.address(1)).await;
    assert_ne!(fresh.session, client.session, "no identifier is given twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_leader_lets_go_of_its_clients_before_their_sessions_may_end() {
    let mut region = TestRegion::with(3, 0, |o| o.tick = Duration::from_millis(500)).await;
    let hello = Hello { timeout_ms: 2_000, ..Hello::default() };
    let mut client = RawClient::try_connect(region.address(1), &hello).await.unwrap();
    region.stop(2).await;
    region.stop(3).await;
    loop {
        // Pings keep coming: it is not silence that ends the connection.
        client.send(&Request::Ping).await;
        if client.reply().await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_leader_turns_new_clients_away_at_once() {
    let mut region = TestRegion::with(3, 0, |o| o.tick = Duration::from_millis(500)).await;
    let client = RawClient::connect(region.address(1)).await;
    region.stop(2).await;
    region.stop(3).await;
    // One that waits for its session when the server learns that it can't have it, and others afterwards.
    assert!(RawClient::connect_fails(region.address(1), &client.hello()).await);
    for hello in [Hello::default(), client.hello()] {
        assert!(RawClient::connect_fails(region.address(1), &hello).await);
    }
    region.start_server(2).await;
    eventually("the session goes on", async || {
        let resumed = RawClient::try_connect(region.address(1), &client.hello()).await;
        resumed.is_ok_and(|resumed| resumed.session == client.session)
    })
    .await;
}
