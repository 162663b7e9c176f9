//! Results and error codes of ZooKeeper in the corners. `.ci/interop/differential.py` compares many more with
//! ZooKeeper itself.

use meridian_wire::{
    Acl, Create, CreateMode, ErrorCode, EventType, OpCode, OpResult, Request, Response, Stat, perms,
};

use crate::raw::{RawClient, create};
use crate::region::TestRegion;

use ErrorCode::{
    BadArguments, BadVersion, InvalidAcl, MarshallingError, NoAuth, NoChildrenForEphemerals, NoNode,
    NoWatcher, NodeExists, NotEmpty, Ok,
};

async fn single() -> (TestRegion, RawClient) {
    let region = TestRegion::start(1, 0).await;
    let client = RawClient::connect(region.address(1)).await;
    (region, client)
}

async fn expect(client: &mut RawClient, cases: &[(Request<'_>, ErrorCode)]) {
    for (request, error) in cases {
        assert_eq!(client.call(request).await.0.error, *error, "{request:?}");
    }
}

fn with_acl<'a>(path: &'a str, acl: Vec<Acl<'a>>) -> Request<'a> {
    Request::Create(Create { path, data: None, acl, flags: 0 })
}

fn plain(path: &str) -> Request<'_> {
    create(path, b"", CreateMode::Persistent)
}

async fn stat(client: &mut RawClient, path: &str) -> Stat {
    let (header, body) = client.call(&Request::Exists { path, watch: false }).await;
    assert_eq!(header.error, Ok);
    match Response::decode(OpCode::Exists, &body).unwrap() {
        Response::Stat(stat) => stat,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_are_judged_where_zookeeper_judges_them() {
    let (_region, mut client) = single().await;
    expect(
        &mut client,
        &[
            (plain("/p"), Ok),
            (plain("/p"), NodeExists),
            (plain(""), BadArguments),
            (plain("p"), BadArguments),
            (plain("/"), NodeExists),
            (plain("/p/"), BadArguments),
            (plain("/p/."), BadArguments),
            (plain("/p/.."), BadArguments),
            (plain("/p/a\0"), BadArguments),
            (plain("/p/a\u{1}"), BadArguments),
            (plain("/none/a"), NoNode),
            (plain("/p//a"), NoNode),
            (create("/p/", b"", CreateMode::PersistentSequential), Ok),
            (Request::GetData { path: "/p/", watch: false }, NoNode),
            (Request::GetData { path: "p", watch: false }, NoNode),
            (Request::Exists { path: "/p\0", watch: false }, BadArguments),
            (Request::SetData { path: "p", data: None, version: -1 }, BadArguments),
            (Request::Delete { path: "p", version: -1 }, BadArguments),
            (Request::Delete { path: "/p/", version: -1 }, NoNode),
            (Request::Sync { path: "/none" }, Ok),
            (
                Request::Create(Create { path: "/f", data: None, acl: vec![Acl::OPEN], flags: 7 }),
                BadArguments,
            ),
            (
                Request::Create(Create { path: "/f", data: None, acl: vec![Acl::OPEN], flags: -1 }),
                BadArguments,
            ),
        ],
    )
    .await;
    let (_, body) = client.call(&Request::Sync { path: "/none" }).await;
    assert_eq!(Response::decode(OpCode::Sync, &body).unwrap(), Response::Path("/none"));
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_checked_and_counted() {
    let (_region, mut client) = single().await;
    let set = |version| Request::SetData { path: "/v", data: Some(b"x"), version };
    let set_acl = |version| Request::SetAcl { path: "/v", acl: vec![Acl::OPEN], version };
    let delete = |path, version| Request::Delete { path, version };
    expect(
        &mut client,
        &[
            (plain("/v"), Ok),
            (set(0), Ok),
            (set(0), BadVersion),
            (set(-2), BadVersion),
            (set(1), Ok),
            (set(-1), Ok),
            (set_acl(1), BadVersion),
            (set_acl(0), Ok),
            (set_acl(-1), Ok),
            (plain("/v/c"), Ok),
            (delete("/v", 3), NotEmpty),
            (delete("/v", 9), BadVersion),
            (delete("/v/c", 1), BadVersion),
            (delete("/v/c", 0), Ok),
            (delete("/v/c", 0), NoNode),
        ],
    )
    .await;
    let stat = stat(&mut client, "/v").await;
    assert_eq!((stat.version, stat.aversion, stat.cversion, stat.num_children), (3, 2, 2, 0));
    assert!(stat.pzxid > stat.mzxid && stat.mzxid > stat.czxid);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_zookeeper_itself_is_protected() {
    let (_region, mut client) = single().await;
    for path in ["/", "/zookeeper", "/zookeeper/config", "/zookeeper/quota"] {
        expect(&mut client, &[(Request::Delete { path, version: -1 }, BadArguments)]).await;
    }
    let set = Request::SetData { path: "/zookeeper/config", data: None, version: -1 };
    expect(&mut client, &[(set, NoAuth), (plain("/zookeeper/quota/a"), Ok)]).await;
    expect(&mut client, &[(Request::Delete { path: "/zookeeper/quota/a", version: -1 }, Ok)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acls_are_judged_as_they_are_set() {
    let (_region, mut client) = single().await;
    let acl = |scheme, id| vec![Acl { perms: perms::ALL, scheme, id }];
    expect(
        &mut client,
        &[
            (with_acl("/a", vec![]), InvalidAcl),
            (with_acl("/a", acl("auth", "")), InvalidAcl),
            (with_acl("/a", acl("world", "me")), InvalidAcl),
            (with_acl("/a", acl("nonsense", "x")), InvalidAcl),
            (with_acl("/a", acl("digest", "x")), InvalidAcl),
            (with_acl("/a", acl("ip", "1.2.3")), InvalidAcl),
            (with_acl("/none/a", vec![]), InvalidAcl),
            (with_acl("/a", acl("ip", "127.0.0.0/8")), Ok),
            (Request::SetAcl { path: "/a", acl: vec![], version: -1 }, InvalidAcl),
            (Request::SetAcl { path: "/none", acl: vec![Acl::OPEN], version: -1 }, NoNode),
            (
                Request::SetAcl {
                    path: "/a",
                    acl: vec![Acl { perms: perms::READ, ..Acl::OPEN }],
                    version: 0,
                },
                Ok,
            ),
            (Request::SetAcl { path: "/a", acl: vec![Acl::OPEN], version: 1 }, NoAuth),
            (Request::SetData { path: "/a", data: None, version: -1 }, NoAuth),
            (plain("/a/c"), NoAuth),
            // The parent is asked first.
            (Request::Delete { path: "/a/none", version: -1 }, NoAuth),
            (Request::Delete { path: "/a", version: -1 }, Ok),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemerals_have_no_children() {
    let (_region, mut client) = single().await;
    expect(
        &mut client,
        &[
            (create("/e", b"", CreateMode::Ephemeral), Ok),
            (plain("/e/c"), NoChildrenForEphemerals),
            (create("/e/c", b"", CreateMode::EphemeralSequential), NoChildrenForEphemerals),
        ],
    )
    .await;
    assert_eq!(stat(&mut client, "/e").await.ephemeral_owner, client.session);
    let (_, body) = client.call(&Request::GetEphemerals { prefix: "/e" }).await;
    assert_eq!(Response::decode(OpCode::GetEphemerals, &body).unwrap(), Response::Names(vec!["/e"]));
}

async fn multi(client: &mut RawClient, operations: Vec<Request<'_>>) -> (ErrorCode, Vec<ErrorCode>) {
    let (header, body) = client.call(&Request::Multi(operations)).await;
    let Response::Results(results) = Response::decode(OpCode::Multi, &body).unwrap() else { panic!() };
    let error = |result: &OpResult<'_>| if let OpResult::Error(error) = result { *error } else { Ok };
    (header.error, results.iter().map(error).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_tells_what_became_of_each_operation() {
    let (_region, mut client) = single().await;
    expect(&mut client, &[(plain("/m"), Ok)]).await;
    let skipped = ErrorCode::RuntimeInconsistency;
    let check = |version| Request::Check { path: "/m", version };
    for (operations, results) in [
        (vec![], vec![]),
        (vec![check(0), plain("/m/a")], vec![Ok, Ok]),
        (vec![plain("/m/b"), check(5), plain("/m/c")], vec![Ok, BadVersion, skipped]),
        (vec![plain("/m/b"), plain("/m/b")], vec![Ok, NodeExists]),
        (vec![Request::Delete { path: "/m", version: -1 }], vec![NotEmpty]),
        (vec![plain("m"), plain("/m/b")], vec![BadArguments, skipped]),
    ] {
        assert_eq!(multi(&mut client, operations.clone()).await, (Ok, results), "{operations:?}");
    }
    let stat = stat(&mut client, "/m").await;
    assert_eq!((stat.num_children, stat.cversion), (1, 1), "what is taken back leaves no trace");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_transaction_the_mode_says_what_a_create_makes() {
    let (_region, mut client) = single().await;
    let new = |path, flags| Create { path, data: None, acl: vec![Acl::OPEN], flags };
    let ttl = |path, flags, ttl_ms| Request::CreateTtl { create: new(path, flags), ttl_ms };
    let (header, body) = client
        .call(&Request::Multi(vec![
            Request::Create(new("/plain", 0)),
            Request::Create2(new("/with-stat", 0)),
            Request::Create(new("/container", CreateMode::Container.into())),
            ttl("/sequence-", CreateMode::PersistentSequential.into(), 0),
            ttl("/ephemeral", CreateMode::Ephemeral.into(), -1),
            ttl("/mortal", CreateMode::PersistentWithTtl.into(), 60_000),
        ]))
        .await;
    assert_eq!(header.error, Ok);
    let Response::Results(results) = Response::decode(OpCode::Multi, &body).unwrap() else { panic!() };
    let has_stat = |result: &OpResult<'_>| match result {
        OpResult::Create(_) => false,
        OpResult::Create2 { .. } => true,
        other => panic!("{other:?}"),
    };
    let has_stat: Vec<bool> = results.iter().map(has_stat).collect();
    assert_eq!(has_stat, [false, true, true, false, false, true]);
    assert_eq!(stat(&mut client, "/ephemeral").await.ephemeral_owner, client.session);
    let unreadable = MarshallingError;
    for (request, error) in [
        (Request::Create(new("/x", 99)), unreadable),
        (Request::Create2(new("/x", CreateMode::PersistentWithTtl.into())), unreadable),
        (Request::CreateContainer(new("/x", -1)), unreadable),
    ] {
        let (header, _) = client.call(&Request::Multi(vec![plain("/before"), request])).await;
        assert_eq!(header.error, error);
    }
    assert_eq!(multi(&mut client, vec![ttl("/x", 99, 1)]).await, (Ok, vec![BadArguments]));
    expect(&mut client, &[(Request::Exists { path: "/before", watch: false }, NoNode)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_empty_path_is_the_root_to_reads() {
    let (_region, mut client) = single().await;
    expect(
        &mut client,
        &[
            (Request::GetData { path: "", watch: false }, Ok),
            (Request::GetChildren { path: "", watch: false }, Ok),
            (Request::GetAcl { path: "" }, Ok),
            (Request::SetData { path: "", data: None, version: -1 }, BadArguments),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_are_removed_by_kind_and_only_if_there_are_any() {
    let (_region, mut client) = single().await;
    let remove = |kind| Request::RemoveWatches { path: "/w", kind };
    let check = |kind| Request::CheckWatches { path: "/w", kind };
    let add = |mode| Request::AddWatch { path: "/w", mode };
    expect(
        &mut client,
        &[
            (plain("/w"), Ok),
            (remove(3), NoWatcher),
            (Request::GetData { path: "/w", watch: true }, Ok),
            (check(2), Ok),
            (check(1), NoWatcher),
            (remove(1), NoWatcher),
            (remove(2), Ok),
            (remove(2), NoWatcher),
            (add(0), Ok),
            (add(1), Ok),
            (remove(4), Ok),
            (check(5), Ok),
            (check(4), NoWatcher),
            (remove(3), Ok),
            (add(2), MarshallingError),
            (add(-1), MarshallingError),
            (remove(0), MarshallingError),
            (remove(6), MarshallingError),
            (Request::SetData { path: "/w", data: None, version: -1 }, Ok),
        ],
    )
    .await;
    assert_eq!(client.events, [], "what is removed does not fire");
}

#[tokio::test(flavor = "multi_thread")]
async fn persistent_watches_tell_of_everything_in_their_reach() {
    let (_region, mut client) = single().await;
    expect(
        &mut client,
        &[
            (plain("/w"), Ok),
            (Request::AddWatch { path: "/w", mode: 1 }, Ok),
            (plain("/w/a"), Ok),
            (plain("/w/a/b"), Ok),
            (Request::SetData { path: "/w/a/b", data: None, version: -1 }, Ok),
            (Request::Delete { path: "/w/a/b", version: -1 }, Ok),
            (plain("/wider"), Ok),
        ],
    )
    .await;
    use EventType::{NodeCreated, NodeDataChanged, NodeDeleted};
    let told: Vec<_> = client.events.iter().map(|(_, kind, path)| (*kind, path.as_str())).collect();
    let deep = "/w/a/b";
    assert_eq!(
        told,
        [(NodeCreated, "/w/a"), (NodeCreated, deep), (NodeDataChanged, deep), (NodeDeleted, deep)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reads_what_it_has_written_at_any_server() {
    let region = TestRegion::start(3, 1).await;
    for server in 1..=4 {
        let mut client = RawClient::connect(region.address(server)).await;
        let path = format!("/own-{server}");
        for round in 0..50 {
            let value = format!("{round}");
            let write = if round == 0 {
                create(&path, value.as_bytes(), CreateMode::Persistent)
            } else {
                Request::SetData { path: &path, data: Some(value.as_bytes()), version: round - 1 }
            };
            assert_eq!(client.call(&write).await.0.error, Ok);
            assert_eq!(client.get(&path, false).await.unwrap(), value.as_bytes());
        }
    }
}
