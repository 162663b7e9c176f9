//! Who may do what, and who is served at all.

use meridian_wire::{
    Acl, AuthPacket, Create, CreateMode, ErrorCode, EventType, OpCode, Request, Response, perms,
};

use crate::raw::RawClient;
use crate::region::TestRegion;

const SUPER_DIGEST: &str = "super:D/InIHSb7yEEbrWz8b9l71RjZJU=";

fn digest(auth: &[u8]) -> Request<'_> {
    Request::Auth(AuthPacket { kind: 0, scheme: "digest", auth })
}

async fn create_for(client: &mut RawClient, path: &str, scheme: &str, id: &str) -> ErrorCode {
    let acl = vec![Acl { perms: perms::ALL, scheme, id }];
    let create = Create { path, data: None, acl, flags: CreateMode::Persistent.into() };
    client.call(&Request::Create(create)).await.0.error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_super_user_may_do_everything() {
    let change = |o: &mut meridian_node::server::ServerOptions| {
        o.authentication.super_digest = Some(SUPER_DIGEST.into());
    };
    let region = TestRegion::with(1, 0, change).await;
    let mut owner = RawClient::connect(region.address(1)).await;
    assert_eq!(create_for(&mut owner, "/theirs", "digest", "bob:x").await, ErrorCode::Ok);
    assert_eq!(owner.get("/theirs", false).await, Err(ErrorCode::NoAuth));
    owner.call(&digest(b"super:guess")).await;
    assert_eq!(owner.set("/theirs", b"x").await, ErrorCode::NoAuth);
    owner.call(&digest(b"super:test")).await;
    assert_eq!(owner.set("/theirs", b"x").await, ErrorCode::Ok);
    assert!(owner.get("/theirs", false).await.is_ok());
    let (_, body) = owner.call(&Request::WhoAmI).await;
    let Response::Clients(known) = Response::decode(OpCode::WhoAmI, &body).unwrap() else { panic!() };
    let schemes: Vec<&str> = known.iter().map(|client| client.scheme).collect();
    assert_eq!(schemes, ["ip", "digest", "super", "digest"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn acls_may_be_skipped() {
    let region = TestRegion::with(1, 0, |o| o.authentication.skip_acl = true).await;
    let mut client = RawClient::connect(region.address(1)).await;
    assert_eq!(create_for(&mut client, "/theirs", "digest", "bob:x").await, ErrorCode::Ok);
    assert!(client.get("/theirs", false).await.is_ok());
    assert_eq!(client.set("/theirs", b"x").await, ErrorCode::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_proved_what_is_required_is_not_served() {
    let region =
        TestRegion::with(1, 0, |o| o.authentication.required_schemes = ["digest".to_string()].into()).await;
    for request in [Request::Ping, Request::Exists { path: "/", watch: false }] {
        let mut stranger = RawClient::connect(region.address(1)).await;
        let error = stranger.call(&request).await.0.error;
        assert_eq!(error, ErrorCode::SessionClosedRequireSaslAuth);
        stranger.closed().await;
    }
    let mut known = RawClient::connect(region.address(1)).await;
    assert_eq!(known.call(&digest(b"a:b")).await.0.error, ErrorCode::Ok);
    known.create("/fine", CreateMode::Persistent).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_looks_for_another_ensemble_is_disconnected() {
    let region =
        TestRegion::with(1, 0, |o| o.authentication.ensemble_names = ["here".to_string()].into()).await;
    let ensemble = |auth| Request::Auth(AuthPacket { kind: 0, scheme: "ensemble", auth });
    let mut right = RawClient::connect(region.address(1)).await;
    assert_eq!(right.call(&ensemble(b"here")).await.0.error, ErrorCode::Ok);
    let mut wrong = RawClient::connect(region.address(1)).await;
    wrong.send(&ensemble(b"there")).await;
    wrong.closed().await;
}

/// The answer to a token of SASL.
pub(crate) async fn token(client: &mut RawClient, token: &[u8]) -> Result<Option<Vec<u8>>, ErrorCode> {
    let (header, body) = client.call(&Request::Sasl { token }).await;
    // A refusal has a body as well: Java's client reads one whatever the header says.
    match Response::decode(OpCode::Sasl, &body).unwrap() {
        Response::Token(None) if header.error != ErrorCode::Ok => Err(header.error),
        Response::Token(token) => Ok(token.map(<[u8]>::to_vec)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sasl_that_fails_ends_the_connection() {
    let users = |required: bool| {
        move |o: &mut meridian_node::server::ServerOptions| {
            o.authentication.sasl_users = [("bob".to_string(), "secret".to_string())].into();
            if required {
                o.authentication.required_schemes = ["sasl".to_string()].into();
            }
        }
    };
    for (required, error) in [(false, ErrorCode::AuthFailed), (true, ErrorCode::SessionClosedRequireSaslAuth)]
    {
        let region = TestRegion::with(1, 0, users(required)).await;
        let mut client = RawClient::connect(region.address(1)).await;
        let challenge = token(&mut client, b"").await.unwrap().unwrap();
        assert!(challenge.starts_with(b"realm=\"zk-sasl-md5\",nonce="));
        assert_eq!(token(&mut client, b"username=\"bob\",response=0").await, Err(error));
        client.closed().await;
        // One of another mechanism is challenged, too, and will not know what to make of it.
        let mut other = RawClient::connect(region.address(1)).await;
        assert!(token(&mut other, b"\x60\x00").await.unwrap().unwrap().starts_with(b"realm="));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_users_sasl_proves_nothing() {
    let region = TestRegion::start(1, 0).await;
    let mut client = RawClient::connect(region.address(1)).await;
    assert_eq!(token(&mut client, b"").await, Ok(None));
    client.create("/fine", CreateMode::Persistent).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_nothing_of_what_its_owner_may_not_read() {
    let region = TestRegion::start(1, 0).await;
    let mut owner = RawClient::connect(region.address(1)).await;
    owner.call(&digest(b"bob:secret")).await;
    owner.create("/open", CreateMode::Persistent).await.unwrap();
    let mut watchers =
        [RawClient::connect(region.address(1)).await, RawClient::connect(region.address(1)).await];
    watchers[1].call(&digest(b"bob:secret")).await;
    for watcher in &mut watchers {
        watcher.call(&Request::AddWatch { path: "/open", mode: 1 }).await;
        watcher.call(&Request::Exists { path: "/open/secret", watch: true }).await;
    }
    assert_eq!(create_for(&mut owner, "/open/secret", "auth", "").await, ErrorCode::Ok);
    assert_eq!(owner.set("/open/secret", b"x").await, ErrorCode::Ok);
    owner.call(&Request::Delete { path: "/open/secret", version: -1 }).await;
    let mut told = Vec::new();
    for watcher in &mut watchers {
        watcher.call(&Request::WhoAmI).await;
        told.push(watcher.events.iter().map(|(_, kind, _)| *kind).collect::<Vec<_>>());
    }
    let all = [EventType::NodeCreated, EventType::NodeDataChanged, EventType::NodeDeleted];
    assert_eq!(told, [&[][..], &all[..]]);
}
