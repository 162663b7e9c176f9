//! What no well-meaning client sends: it costs who sends it the connection and nobody else anything.

use bytes::{BufMut, BytesMut};
use meridian_node::server::{LocalSessionMode, ServerOptions};
use meridian_wire::{
    Acl, AuthPacket, Create, CreateMode, ErrorCode, OpCode, Request, SetWatches, begin_frame, finish_frame,
    xid,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::io::AsyncWriteExt;

use crate::raw::RawClient;
use crate::region::TestRegion;

/// One of every request that a client may send.
fn requests() -> Vec<Request<'static>> {
    let create = |path| Create { path, data: Some(b"data"), acl: vec![Acl::OPEN], flags: 0 };
    let path = "/hostile";
    let watches = SetWatches { relative_zxid: 0, data: vec![path], ..SetWatches::default() };
    vec![
        Request::Create(create("/a")),
        Request::Create2(create("/b")),
        Request::CreateContainer(create("/c")),
        Request::CreateTtl { create: Create { flags: 5, ..create("/d") }, ttl_ms: 5_000 },
        Request::Delete { path, version: 0 },
        Request::Exists { path, watch: true },
        Request::GetData { path, watch: true },
        Request::SetData { path, data: Some(b"x"), version: 0 },
        Request::GetAcl { path },
        Request::SetAcl { path, acl: vec![Acl::OPEN], version: 0 },
        Request::GetChildren { path, watch: true },
        Request::GetChildren2 { path, watch: true },
        Request::Sync { path },
        Request::Multi(vec![Request::Create(create("/m")), Request::Delete { path: "/m", version: -1 }]),
        Request::MultiRead(vec![Request::GetData { path, watch: false }]),
        Request::Reconfig { joining: Some("x"), leaving: None, new_members: None, config_id: -1 },
        Request::CheckWatches { path, kind: 3 },
        Request::RemoveWatches { path, kind: 3 },
        Request::AddWatch { path, mode: 1 },
        Request::SetWatches(watches.clone()),
        Request::SetWatches2(watches),
        Request::Auth(AuthPacket { kind: 0, scheme: "digest", auth: b"a:b" }),
        Request::Sasl { token: b"token" },
        Request::GetEphemerals { prefix: "/" },
        Request::GetAllChildrenNumber { path: "/" },
    ]
}

fn body_of(request: &Request<'_>) -> BytesMut {
    let mut body = BytesMut::new();
    request.encode(&mut body);
    body
}

fn frame(xid: i32, op: i32, body: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    let start = begin_frame(&mut out);
    out.put_i32(xid);
    out.put_i32(op);
    out.put_slice(body);
    finish_frame(start, &mut out).unwrap();
    out
}

/// A region where opening a session costs little, and a client that must not notice anything.
async fn region() -> (TestRegion, RawClient) {
    let local = |o: &mut ServerOptions| {
        o.local_sessions = LocalSessionMode::Upgrading;
        o.connections_per_address_max = 0;
    };
    let region = TestRegion::with(1, 0, local).await;
    let bystander = RawClient::connect(region.address(1)).await;
    (region, bystander)
}

/// Sends bytes and says whether the connection is still served.
async fn survives(region: &TestRegion, bytes: &[u8]) -> bool {
    let mut client = RawClient::connect(region.address(1)).await;
    client.stream.write_all(bytes).await.unwrap();
    // It may be closed already.
    let _ = client.stream.write_all(&frame(xid::PING, OpCode::Ping.into(), &[])).await;
    loop {
        match client.packet().await {
            Ok((header, _)) if header.xid == xid::PING => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_cut_anywhere_ends_its_connection_alone() {
    let (region, mut bystander) = region().await;
    for request in requests() {
        let body = body_of(&request);
        for cut in 0..body.len() {
            let bytes = frame(1, request.op().into(), &body[..cut]);
            assert!(!survives(&region, &bytes).await, "{request:?} cut at {cut}");
        }
    }
    assert_eq!(bystander.create("/fine", CreateMode::Persistent).await.unwrap(), "/fine");
    assert_eq!(region.server(1).hub().view().state.tree.len(), 5, "nothing of it took effect");
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_counts_and_strings_that_cannot_be_end_their_connection() {
    let (region, mut bystander) = region().await;
    let first_length = |length: i32, rest: &[u8]| [&length.to_be_bytes()[..], rest].concat();
    for request in requests() {
        let body = body_of(&request);
        // All but a few begin with a string; the others have nothing that could be too long.
        let at = match request {
            Request::Multi(_) | Request::MultiRead(_) => 9,
            Request::SetWatches(_) | Request::SetWatches2(_) => 8,
            Request::Auth(_) => 4,
            _ => 0,
        };
        let length = i32::from_be_bytes(body[at..at + 4].try_into().unwrap());
        for hostile in [i32::MAX, i32::MIN, -2, length + 10_000] {
            let hostile = [&body[..at], &first_length(hostile, &body[at + 4..])].concat();
            assert!(!survives(&region, &frame(1, request.op().into(), &hostile)).await, "{request:?}");
        }
    }
    // As ZooKeeper does: a path that is not UTF-8 is that of no znode.
    let not_utf8 = [&[0, 0, 0, 3, b'/', 0xff, 0xfe][..], &[0]].concat();
    assert!(survives(&region, &frame(1, OpCode::GetData.into(), &not_utf8)).await);
    assert_eq!(bystander.create("/fine", CreateMode::Persistent).await.unwrap(), "/fine");
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_that_are_none_end_their_connection() {
    let (region, mut bystander) = region().await;
    let unknown = [i32::MIN, -12, -10, -1, 0, 10, 13, 20, 23, 99, 108, 999, i32::MAX];
    for op in unknown {
        for body in [&b""[..], &[0xff; 40]] {
            assert!(!survives(&region, &frame(1, op, body)).await, "operation {op}");
        }
    }
    assert_eq!(bystander.create("/fine", CreateMode::Persistent).await.unwrap(), "/fine");
}

#[tokio::test(flavor = "multi_thread")]
async fn reserved_numbers_are_answered_like_any_other() {
    let (region, _) = region().await;
    let get = body_of(&Request::GetData { path: "/", watch: false });
    for reserved in [xid::NOTIFICATION, xid::AUTH, xid::SET_WATCHES, -11, 0, i32::MIN, i32::MAX] {
        let mut client = RawClient::connect(region.address(1)).await;
        client.stream.write_all(&frame(reserved, OpCode::GetData.into(), &get)).await.unwrap();
        let (header, body) = client.packet().await.unwrap();
        assert_eq!((header.xid, header.error), (reserved, ErrorCode::Ok));
        assert!(!body.is_empty());
    }
    // The other way round: what has a number of its own under another one.
    for (request, number) in [(Request::Ping, 7), (requests().remove(21), 8), (requests().remove(19), 9)] {
        let mut client = RawClient::connect(region.address(1)).await;
        let bytes = frame(number, request.op().into(), &body_of(&request));
        client.stream.write_all(&bytes).await.unwrap();
        let (header, _) = client.reply().await.unwrap();
        assert_eq!((header.xid, header.error), (number, ErrorCode::Ok), "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_above_the_limit_end_their_connection_before_they_have_come() {
    let region = TestRegion::with(1, 0, |o| o.frame_bytes_max = 1_000).await;
    let mut client = RawClient::connect(region.address(1)).await;
    client.create("/large", CreateMode::Persistent).await.unwrap();
    // Header, path, lengths and version are 8 + 10 + 4 + 4 bytes.
    assert_eq!(client.set("/large", &[1; 1_000 - 26]).await, ErrorCode::Ok);
    assert_eq!(client.get("/large", false).await.unwrap().len(), 974);
    let refused = region.server(1).hub().metrics().frames_refused();
    client.send(&Request::SetData { path: "/large", data: Some(&[2; 1_000 - 25]), version: -1 }).await;
    client.closed().await;
    assert_eq!(region.server(1).hub().metrics().frames_refused(), refused + 1);
    for length in [1_001_u32, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff] {
        let mut client = RawClient::connect(region.address(1)).await;
        client.stream.write_all(&length.to_be_bytes()).await.unwrap();
        client.closed().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_frames_hurt_nobody() {
    let (region, mut bystander) = region().await;
    let mut runner = TestRunner::deterministic();
    let bodies = proptest::collection::vec(any::<u8>(), 0..60);
    for _ in 0..400 {
        let (op, body) = (-11..108_i32, &bodies).new_tree(&mut runner).unwrap().current();
        survives(&region, &frame(1, op, &body)).await;
    }
    bystander.call(&Request::Sync { path: "/" }).await;
    assert_eq!(bystander.create("/fine", CreateMode::Persistent).await.unwrap(), "/fine");
}
