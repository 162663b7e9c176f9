//! Subtrees that another region orders, seen by the clients of this one. The other region is played by
//! the test: it decides what this region's outbox holds.

use std::time::Duration;

use bytes::Bytes;
use meridian_bridge::mesh::{Mesh, Mode, Orderer, Subtree};
use meridian_bridge::state::{self as federation, Content, MirrorRecord, Outcome};
use meridian_node::txn::Command;
use meridian_seam::codec;
use meridian_wire::{CreateMode, ErrorCode, EventType, Request, SetWatches};

use crate::raw::{RawClient, create};
use crate::region::{TestRegion, eventually};

const FAR: u16 = 1;

async fn region_with_a_far_home() -> TestRegion {
    let region = TestRegion::start(1, 0).await;
    let subtree = Subtree { path: "/far".into(), mode: Mode::Homed { home: 2 } };
    let mesh = Mesh { regions: vec!["here".into(), "far".into()], subtrees: vec![subtree] };
    region.server(1).region().propose(&Command::FormMesh { mesh }).await.unwrap();
    region
}

/// The home puts this region's request number `sequence` at the position of the same number.
async fn decide(region: &TestRegion, sequence: u64) {
    let server = region.server(1).region();
    let pending = || {
        let view = server.view();
        let outbox = view.state.federation.outboxes.get(&Orderer::Home(FAR))?;
        Some(outbox.requests.get(&sequence)?.request.clone())
    };
    eventually("the request is in the outbox", async || pending().is_some()).await;
    let record = MirrorRecord {
        position: sequence,
        zxid: 1 << 32 | i64::try_from(sequence).unwrap(),
        time_ms: 1,
        content: Content::Request { region: 1, sequence, request: pending().unwrap() },
    };
    let records = vec![Bytes::from(codec::encode(&record).unwrap())];
    let mirror = federation::Command::Mirror { subtree: FAR, records };
    assert_eq!(server.propose_federation(mirror).await.unwrap(), Outcome::Applied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_to_another_orderer_waits_for_the_outstanding_ones() {
    let region = region_with_a_far_home().await;
    let mut client = RawClient::connect(region.address(1)).await;
    let before = client.send(&create("/before", b"", CreateMode::Persistent)).await;
    let far = client.send(&create("/far/x", b"", CreateMode::Persistent)).await;
    let after = client.send(&create("/after", b"", CreateMode::Persistent)).await;
    let read = client.send(&Request::GetData { path: "/far/x", watch: false }).await;
    assert_eq!(client.reply().await.unwrap().0.xid, before);
    let mut other = RawClient::connect(region.address(1)).await;
    other.call(&Request::Sync { path: "/" }).await;
    assert!(other.get("/before", false).await.is_ok());
    assert_eq!(other.get("/after", false).await, Err(ErrorCode::NoNode));
    decide(&region, 1).await;
    for xid in [far, after, read] {
        let (header, _) = client.reply().await.unwrap();
        assert_eq!((header.xid, header.error), (xid, ErrorCode::Ok));
    }
    let mixed = Request::Multi(vec![
        create("/far/y", b"", CreateMode::Persistent),
        create("/y", b"", CreateMode::Persistent),
    ]);
    assert_eq!(other.call(&mixed).await.0.error, ErrorCode::BadArguments);
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_on_shared_znodes_are_set_again_by_the_regions_zxids() {
    let region = region_with_a_far_home().await;
    let mut client = RawClient::connect(region.address(1)).await;
    let before = client.call(&Request::Exists { path: "/far", watch: false }).await.0.zxid;
    client.send(&create("/far/x", b"", CreateMode::Persistent)).await;
    decide(&region, 1).await;
    let created = client.reply().await.unwrap().0.zxid;
    let again = |since| {
        let (data, child) = (vec!["/far/x"], vec!["/far"]);
        Request::SetWatches(SetWatches { relative_zxid: since, data, child, ..SetWatches::default() })
    };
    client.call(&again(created)).await;
    assert_eq!(client.events, [], "nothing has changed since");
    client.call(&again(before)).await;
    let fired: Vec<_> = client.events.drain(..).map(|(_, kind, path)| (kind, path)).collect();
    let expected = [(EventType::NodeDataChanged, "/far/x"), (EventType::NodeChildrenChanged, "/far")];
    assert_eq!(fired, expected.map(|(kind, path)| (kind, path.to_string())));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_lease_cuts_off_who_holds_ephemerals_elsewhere_and_nobody_else() {
    let region = region_with_a_far_home().await;
    let mut holder = RawClient::connect(region.address(1)).await;
    let mut local = RawClient::connect(region.address(1)).await;
    local.create("/local", CreateMode::Ephemeral).await.unwrap();
    holder.send(&create("/far/lock", b"", CreateMode::Ephemeral)).await;
    decide(&region, 1).await;
    assert_eq!(holder.reply().await.unwrap().0.error, ErrorCode::Ok);

    let lease = region.server(1).lease();
    assert!(holder.get("/far/lock", false).await.is_ok(), "no lease is needed yet");
    lease.set(Some(Duration::ZERO));
    holder.closed().await;
    assert!(
        RawClient::try_connect(region.address(1), &holder.hello()).await.is_err(),
        "not even a new connection is told anything"
    );
    assert!(local.get("/local", false).await.is_ok());
    assert_eq!(local.set("/local", b"x").await, ErrorCode::Ok);
    lease.set(None);
    let back = RawClient::try_connect(region.address(1), &holder.hello()).await.unwrap();
    assert_eq!(back.session, holder.session);
}
