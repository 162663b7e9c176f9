//! Kinds of znodes that go by themselves.

use std::time::Duration;

use meridian_wire::{
    Acl, Create, CreateMode, ErrorCode, EventType, OpCode, OpResult, Request, Response, Stat,
};

use crate::raw::{RawClient, create};
use crate::region::{TestRegion, eventually};

fn new<'a>(path: &'a str, mode: CreateMode) -> Create<'a> {
    Create { path, data: Some(b"x"), acl: vec![Acl::OPEN], flags: mode.into() }
}

async fn created(client: &mut RawClient, request: &Request<'_>) -> (String, Stat) {
    let (header, body) = client.call(request).await;
    assert_eq!(header.error, ErrorCode::Ok, "{request:?}");
    match Response::decode(request.op(), &body).unwrap() {
        Response::Create2 { path, stat } => (path.to_string(), stat),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_and_expired_znodes_are_deleted_and_watchers_are_told() {
    let region = TestRegion::with(3, 0, |o| o.reaping.interval = Duration::from_millis(50)).await;
    let mut client = RawClient::connect(region.address(1)).await;
    let container = Request::CreateContainer(new("/container", CreateMode::Container));
    let (path, stat) = created(&mut client, &container).await;
    assert_eq!((path.as_str(), stat.ephemeral_owner), ("/container", 0));
    let create = new("/timed-", CreateMode::PersistentSequentialWithTtl);
    let (timed, stat) = created(&mut client, &Request::CreateTtl { create, ttl_ms: 300 }).await;
    assert_eq!((timed.as_str(), stat.ephemeral_owner), ("/timed-0000000001", 0));
    assert!(client.get(&timed, true).await.is_ok());
    eventually("the time to live is over", async || {
        client.get("/timed-0000000001", false).await == Err(ErrorCode::NoNode)
    })
    .await;
    assert!(client.get("/container", true).await.is_ok(), "it never had children");
    client.create("/container/child", CreateMode::Persistent).await.unwrap();
    let delete = Request::Delete { path: "/container/child", version: -1 };
    assert_eq!(client.call(&delete).await.0.error, ErrorCode::Ok);
    eventually("the container is gone", async || {
        client.get("/container", false).await == Err(ErrorCode::NoNode)
    })
    .await;
    let told: Vec<_> = client.events.iter().map(|(_, kind, path)| (*kind, path.as_str())).collect();
    assert_eq!(told, [(EventType::NodeDeleted, &*timed), (EventType::NodeDeleted, "/container")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mode_may_stand_in_a_multi() {
    let region = TestRegion::start(1, 0).await;
    let mut client = RawClient::connect(region.address(1)).await;
    let multi = Request::Multi(vec![
        create("/p", b"", CreateMode::Persistent),
        Request::CreateContainer(new("/p/c", CreateMode::Container)),
        Request::CreateTtl { create: new("/p/t", CreateMode::PersistentWithTtl), ttl_ms: 60_000 },
        Request::Create2(new("/p/s-", CreateMode::PersistentSequential)),
    ]);
    let (header, body) = client.call(&multi).await;
    assert_eq!(header.error, ErrorCode::Ok);
    let Response::Results(results) = Response::decode(OpCode::Multi, &body).unwrap() else { panic!() };
    let paths: Vec<&str> = results
        .iter()
        .map(|result| match result {
            OpResult::Create(path) | OpResult::Create2 { path, .. } => *path,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(paths, ["/p", "/p/c", "/p/t", "/p/s-0000000002"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn extended_types_may_be_switched_off() {
    let region = TestRegion::with(1, 0, |o| o.policy.extended_types = false).await;
    let mut client = RawClient::connect(region.address(1)).await;
    let create = new("/t", CreateMode::PersistentWithTtl);
    let (header, _) = client.call(&Request::CreateTtl { create, ttl_ms: 60_000 }).await;
    assert_eq!(header.error, ErrorCode::Unimplemented, "from the first request on");
    created(&mut client, &Request::CreateContainer(new("/c", CreateMode::Container))).await;
}
