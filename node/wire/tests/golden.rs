//! Bytes worked out by hand from jute's rules: what existing clients and servers send.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use bytes::BytesMut;
use meridian_wire::*;

/// Bytes written as hexadecimal digits; spaces, line ends and text after `;` are for the reader.
fn hex(text: &str) -> Vec<u8> {
    let digits: String = text
        .lines()
        .flat_map(|line| line.split(';').next())
        .flat_map(str::chars)
        .filter(|character| !character.is_whitespace())
        .collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn encoded(encode: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode(&mut out);
    out.to_vec()
}

/// The frame of a request is exactly these bytes, and they read back as the request.
fn check_request(xid: i32, request: &Request<'_>, golden: &str) {
    let golden = hex(golden);
    assert_eq!(encoded(|out| request.encode_frame(xid, out).unwrap()), golden);

    let mut received = BytesMut::from(&golden[..]);
    let frame = cut_frame(&mut received, DEFAULT_MAX_BUFFER).unwrap().unwrap();
    let (header, body) = RequestHeader::decode(&frame).unwrap();
    assert_eq!(header, RequestHeader { xid, op: request.op().into() });
    assert_eq!(Request::decode(request.op(), body).as_ref(), Ok(request));
}

/// The frame of a reply is exactly these bytes, and they read back as the reply.
fn check_response(op: OpCode, header: ReplyHeader, response: &Response<'_>, golden: &str) {
    let golden = hex(golden);
    assert_eq!(encoded(|out| response.encode_frame(header, out).unwrap()), golden);

    let mut received = BytesMut::from(&golden[..]);
    let frame = cut_frame(&mut received, DEFAULT_MAX_BUFFER).unwrap().unwrap();
    let (read, body) = ReplyHeader::decode(&frame).unwrap();
    assert_eq!(read, header);
    assert_eq!(Response::decode(op, body).as_ref(), Ok(response));
}

const STAT: Stat = Stat {
    czxid: 0x1_0000_0002,
    mzxid: 0x1_0000_0003,
    ctime: 4,
    mtime: 5,
    version: 6,
    cversion: 7,
    aversion: 8,
    ephemeral_owner: 9,
    data_length: 2,
    num_children: 11,
    pzxid: 0x1_0000_000c,
};

const STAT_HEX: &str = "0000000100000002 0000000100000003 0000000000000004 0000000000000005
    00000006 00000007 00000008 0000000000000009 00000002 0000000b 000000010000000c";

#[test]
fn connect_with_and_without_the_read_only_byte() {
    let request = ConnectRequest {
        protocol_version: 0,
        last_zxid_seen: 0x1_0000_0001,
        timeout_ms: 30_000,
        session_id: 0x1122_3344_5566_7788,
        password: &[0xab; 16],
        read_only: Some(true),
    };
    let golden = hex("00000000 0000000100000001 00007530 1122334455667788
        00000010 abababababababababababababababab 01");
    assert_eq!(encoded(|out| request.encode(out)), golden);
    assert_eq!(ConnectRequest::decode(&golden), Ok(request));

    let old = ConnectRequest { read_only: None, ..request };
    assert_eq!(encoded(|out| old.encode(out)), golden[..44]);
    assert_eq!(ConnectRequest::decode(&golden[..44]), Ok(old));
}

#[test]
fn connect_reply_of_37_or_36_bytes() {
    let response = ConnectResponse {
        protocol_version: 0,
        timeout_ms: 4_000,
        session_id: 7,
        password: &[0xcd; PASSWORD_LENGTH],
        read_only: Some(false),
    };
    let golden = hex("00000000 00000fa0 0000000000000007 00000010 cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd 00");
    assert_eq!(golden.len(), 37);
    assert_eq!(encoded(|out| response.encode(out)), golden);
    assert_eq!(ConnectResponse::decode(&golden), Ok(response));

    let old = ConnectResponse { read_only: None, ..response };
    assert_eq!(encoded(|out| old.encode(out)), golden[..36]);
    assert_eq!(ConnectResponse::decode(&golden[..36]), Ok(old));
}

#[test]
fn create_an_ephemeral_znode() {
    let create =
        Create { path: "/a", data: Some(b"hi"), acl: vec![Acl::OPEN], flags: CreateMode::Ephemeral.into() };
    check_request(
        5,
        &Request::Create(create),
        "00000033           ; length
         00000005 00000001  ; xid, create
         00000002 2f61      ; /a
         00000002 6869      ; hi
         00000001 0000001f 00000005 776f726c64 00000006 616e796f6e65 ; all to world:anyone
         00000001           ; ephemeral",
    );
    check_response(
        OpCode::Create,
        ReplyHeader { xid: 5, zxid: 0x1_0000_0002, error: ErrorCode::Ok },
        &Response::Path("/a"),
        "00000016 00000005 0000000100000002 00000000 00000002 2f61",
    );
}

#[test]
fn create_with_null_data_and_a_time_to_live() {
    let create = Create { path: "/t", data: None, acl: vec![], flags: CreateMode::PersistentWithTtl.into() };
    check_request(
        6,
        &Request::CreateTtl { create, ttl_ms: 60_000 },
        "00000022 00000006 00000015 00000002 2f74 ffffffff 00000000 00000005 000000000000ea60",
    );
    check_response(
        OpCode::CreateTtl,
        ReplyHeader { xid: 6, zxid: 1, error: ErrorCode::Ok },
        &Response::Create2 { path: "/t", stat: STAT },
        &format!("0000005a 00000006 0000000000000001 00000000 00000002 2f74 {STAT_HEX}"),
    );
}

#[test]
fn get_data_with_a_watch() {
    check_request(
        7,
        &Request::GetData { path: "/a", watch: true },
        "0000000f 00000007 00000004 00000002 2f61 01",
    );
    check_response(
        OpCode::GetData,
        ReplyHeader { xid: 7, zxid: 0x1_0000_0003, error: ErrorCode::Ok },
        &Response::Data { data: Some(b"hi"), stat: STAT },
        &format!("0000005a 00000007 0000000100000003 00000000 00000002 6869 {STAT_HEX}"),
    );
    check_response(
        OpCode::Delete,
        ReplyHeader { xid: 7, zxid: 3, error: ErrorCode::NoNode },
        &Response::Empty,
        "00000010 00000007 0000000000000003 ffffff9b",
    );
}

#[test]
fn a_multi_and_its_success() {
    let operations = vec![
        Request::Check { path: "/a", version: 3 },
        Request::SetData { path: "/a", data: Some(b"x"), version: -1 },
        Request::Delete { path: "/b", version: 0 },
    ];
    check_request(
        8,
        &Request::Multi(operations),
        "0000004f               ; length
         00000008 0000000e      ; xid, multi
         0000000d 00 ffffffff 00000002 2f61 00000003
         00000005 00 ffffffff 00000002 2f61 00000001 78 ffffffff
         00000002 00 ffffffff 00000002 2f62 00000000
         ffffffff 01 ffffffff   ; end",
    );
    check_response(
        OpCode::Multi,
        ReplyHeader { xid: 8, zxid: 9, error: ErrorCode::Ok },
        &Response::Results(vec![OpResult::Check, OpResult::SetData(STAT), OpResult::Delete]),
        &format!(
            "00000078 00000008 0000000000000009 00000000
             0000000d 00 00000000
             00000005 00 00000000 {STAT_HEX}
             00000002 00 00000000
             ffffffff 01 ffffffff"
        ),
    );
}

#[test]
fn a_failed_multi_has_an_error_per_operation() {
    check_response(
        OpCode::Multi,
        ReplyHeader { xid: 8, zxid: 9, error: ErrorCode::Ok },
        &Response::Results(vec![
            OpResult::Error(ErrorCode::Ok),
            OpResult::Error(ErrorCode::NodeExists),
            OpResult::Error(ErrorCode::RuntimeInconsistency),
        ]),
        "00000040 00000008 0000000000000009 00000000
         ffffffff 00 00000000 00000000
         ffffffff 00 ffffff92 ffffff92
         ffffffff 00 fffffffe fffffffe
         ffffffff 01 ffffffff",
    );
}

#[test]
fn a_ping_and_a_close_are_a_header_alone() {
    check_request(xid::PING, &Request::Ping, "00000008 fffffffe 0000000b");
    check_request(9, &Request::CloseSession, "00000008 00000009 fffffff5");
}

#[test]
fn credentials() {
    let packet = AuthPacket { kind: 0, scheme: "digest", auth: b"u:p" };
    check_request(
        xid::AUTH,
        &Request::Auth(packet),
        "0000001d fffffffc 00000064 00000000 00000006 646967657374 00000003 753a70",
    );
}

#[test]
fn watches_set_again() {
    let watches = SetWatches { relative_zxid: 2, data: vec!["/a"], ..SetWatches::default() };
    check_request(
        xid::SET_WATCHES,
        &Request::SetWatches(watches.clone()),
        "00000022 fffffff8 00000065 0000000000000002 00000001 00000002 2f61 00000000 00000000",
    );
    check_request(
        xid::SET_WATCHES,
        &Request::SetWatches2(SetWatches { recursive: vec!["/r"], ..watches }),
        "00000030 fffffff8 00000069 0000000000000002 00000001 00000002 2f61 00000000 00000000
         00000000 00000001 00000002 2f72",
    );
}

#[test]
fn a_watch_event() {
    let event = WatcherEvent { event: EventType::NodeDeleted, state: KeeperState::SyncConnected, path: "/a" };
    let golden = hex("00000002 00000003 00000002 2f61");
    assert_eq!(encoded(|out| event.encode(out)), golden);
    assert_eq!(WatcherEvent::decode(&golden), Ok(event));
}

#[test]
fn children_are_written_from_an_iterator() {
    let names = ["x", "yz"];
    let golden = hex("00000002 00000001 78 00000002 797a");
    assert_eq!(encoded(|out| encode_names(names.iter().copied().filter(|_| true), out)), golden);
    assert_eq!(encoded(|out| Response::Names(names.to_vec()).encode(out)), golden);
}
