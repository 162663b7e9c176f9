//! Sessions that only their server knows.

use meridian_node::server::{LocalSessionMode, ServerOptions};
use meridian_wire::{CreateMode, ErrorCode, Request};

use crate::raw::{RawClient, create};
use crate::region::{TestRegion, eventually};

async fn region(mode: LocalSessionMode) -> TestRegion {
    TestRegion::with(3, 0, move |o: &mut ServerOptions| o.local_sessions = mode).await
}

fn known(region: &TestRegion, session: i64) -> bool {
    region.server(1).hub().view().state.sessions.contains_key(&session)
}

#[tokio::test(flavor = "multi_thread")]
async fn local_sessions_write_but_own_nothing() {
    let region = region(LocalSessionMode::Only).await;
    let mut client = RawClient::connect(region.address(1)).await;
    client.create("/p", CreateMode::Persistent).await.unwrap();
    assert_eq!(client.set("/p", b"x").await, ErrorCode::Ok);
    let refused = Err(ErrorCode::EphemeralOnLocalSession);
    assert_eq!(client.create("/e", CreateMode::Ephemeral).await, refused);
    assert!(!known(&region, client.session));
    let mut back = RawClient::try_connect(region.address(1), &client.hello()).await.unwrap();
    assert_eq!(back.session, client.session, "it may come back here");
    client.closed().await;
    let elsewhere = RawClient::try_connect(region.address(2), &back.hello()).await.unwrap();
    assert_eq!(elsewhere.session, 0, "and nowhere else");
    assert_eq!(back.call(&Request::CloseSession).await.0.error, ErrorCode::Ok);
    back.closed().await;
    assert_eq!(RawClient::try_connect(region.address(1), &back.hello()).await.unwrap().session, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_makes_an_ephemeral_becomes_known() {
    let region = region(LocalSessionMode::Upgrading).await;
    let mut client = RawClient::connect(region.address(1)).await;
    // Sent without waiting: the order is kept over the change.
    let mut sent = Vec::new();
    for (path, mode) in [
        ("/before", CreateMode::Persistent),
        ("/mine", CreateMode::Ephemeral),
        ("/after", CreateMode::Persistent),
    ] {
        sent.push(client.send(&create(path, b"", mode)).await);
    }
    for xid in sent {
        let (header, _) = client.reply().await.unwrap();
        assert_eq!((header.xid, header.error), (xid, ErrorCode::Ok));
    }
    assert!(known(&region, client.session));
    let mut moved = RawClient::try_connect(region.address(2), &client.hello()).await.unwrap();
    assert_eq!(moved.session, client.session);
    client.closed().await;
    moved.call(&Request::CloseSession).await;
    let mut other = RawClient::connect(region.address(1)).await;
    eventually("the ephemeral goes with its session", async || {
        other.get("/mine", false).await == Err(ErrorCode::NoNode)
    })
    .await;
    assert!(other.get("/after", false).await.is_ok());
}
