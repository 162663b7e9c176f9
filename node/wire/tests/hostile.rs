//! Bytes that no well-meaning peer sends.

use bytes::{BufMut, BytesMut};
use meridian_wire::*;
use proptest::prelude::*;

fn ints(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

#[test]
fn a_frame_length_is_judged_before_the_frame_has_come() {
    for length in [i32::MIN, -2, -1, 101, i32::MAX] {
        let mut received = BytesMut::from(&ints(&[length])[..]);
        let error = WireError::FrameLength { length, max: 100 };
        assert_eq!(cut_frame(&mut received, 100), Err(error));
        assert_eq!(received[..], ints(&[length])[..], "the bytes stay for the caller to look at");
    }
}

#[test]
fn a_frame_comes_in_pieces() {
    let mut received = BytesMut::new();
    for byte in [0, 0, 0, 2, b'o'] {
        received.put_u8(byte);
        assert_eq!(cut_frame(&mut received, 2), Ok(None));
    }
    received.put_slice(b"k\0\0\0\0");
    assert_eq!(cut_frame(&mut received, 2).unwrap().unwrap()[..], b"ok"[..]);
    assert!(cut_frame(&mut received, 2).unwrap().unwrap().is_empty());
    assert_eq!(cut_frame(&mut received, 2), Ok(None));
}

#[test]
fn lengths_and_counts_are_bounded_by_the_body() {
    let truncated = |needed, remaining| Err(WireError::Truncated { needed, remaining });
    let huge = i32::MAX as usize;

    let path = ints(&[i32::MAX, 0]);
    assert_eq!(Request::decode(OpCode::GetAcl, &path), truncated(huge, 4));
    let path = ints(&[-2, 0]);
    assert_eq!(Request::decode(OpCode::GetAcl, &path), Err(WireError::NegativeLength(-2)));

    // An empty path and empty data, then a list of ACLs.
    let acl = ints(&[0, 0, i32::MAX, 0]);
    assert_eq!(Request::decode(OpCode::Create, &acl), truncated(huge * 12, 4));
    let acl = ints(&[0, 0, 1, 31, 0]);
    assert_eq!(Request::decode(OpCode::Create, &acl), truncated(12, 8));
    let acl = ints(&[0, 0, -2, 0]);
    assert_eq!(Request::decode(OpCode::Create, &acl), Err(WireError::NegativeLength(-2)));

    let watches = ints(&[0, 0, 3, 0, 0]);
    assert_eq!(Request::decode(OpCode::SetWatches, &watches), truncated(12, 8));

    let names = ints(&[i32::MAX]);
    assert_eq!(Response::decode(OpCode::GetChildren, &names), truncated_response(huge * 4, 0));
    assert_eq!(Response::decode(OpCode::WhoAmI, &names), truncated_response(huge * 8, 0));

    let connect = ints(&[0, 0, 0, 30_000, 0, 0, i32::MAX]);
    assert_eq!(ConnectRequest::decode(&connect), Err(WireError::Truncated { needed: huge, remaining: 0 }));
}

fn truncated_response<'a>(needed: usize, remaining: usize) -> Result<Response<'a>, WireError> {
    Err(WireError::Truncated { needed, remaining })
}

#[test]
fn nulls_read_as_null_or_empty() {
    let create = ints(&[-1, -1, -1, 0]);
    let expected = Create { path: "", data: None, acl: vec![], flags: 0 };
    assert_eq!(Request::decode(OpCode::Create, &create), Ok(Request::Create(expected)));
    let empty = ints(&[-1, 0, -1, 0]);
    let expected = Create { path: "", data: Some(b""), acl: vec![], flags: 0 };
    assert_eq!(Request::decode(OpCode::Create, &empty), Ok(Request::Create(expected)));
    let token = ints(&[-1]);
    assert_eq!(Request::decode(OpCode::Sasl, &token), Ok(Request::Sasl { token: b"" }));
}

#[test]
fn what_is_not_utf_8_names_nothing_in_a_request_and_is_refused_elsewhere() {
    let path = [0, 0, 0, 2, 0xc3, 0x28];
    assert_eq!(Request::decode(OpCode::Sync, &path), Ok(Request::Sync { path: "/\u{fffd}" }));
    assert!(matches!(Response::decode(OpCode::Sync, &path), Err(WireError::NotUtf8)));
}

#[test]
fn operations_that_servers_keep_to_themselves_are_refused() {
    for op in [OpCode::Notification, OpCode::DeleteContainer, OpCode::CreateSession, OpCode::Error] {
        assert_eq!(Request::decode(op, &[0; 64]), Err(WireError::NotARequest(op)));
    }
}

#[test]
fn a_multi_holds_what_it_may_and_nothing_nested() {
    let within = |multi: OpCode, operation: i32| {
        let mut body = BytesMut::new();
        body.put_i32(operation);
        body.put_u8(0);
        body.put_slice(&ints(&[-1, 0, 0, 0, 0, 0, 0]));
        body.put_slice(&[0xff; 9]);
        Request::decode(multi, &body).err()
    };
    for multi in [OpCode::Multi, OpCode::MultiRead] {
        for operation in [14, 22, 3, 7, 11, 100, -11, 0, 10, -2, i32::MAX] {
            let refused = WireError::NotInMulti { operation, multi };
            assert_eq!(within(multi, operation), Some(refused));
        }
    }
    let read = WireError::NotInMulti { operation: 4, multi: OpCode::Multi };
    assert_eq!(within(OpCode::Multi, 4), Some(read));
    let write = WireError::NotInMulti { operation: 1, multi: OpCode::MultiRead };
    assert_eq!(within(OpCode::MultiRead, 1), Some(write));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        for &op in OpCode::ALL {
            let _ = Request::decode(op, &bytes);
            let _ = Response::decode(op, &bytes);
        }
        let _ = ConnectRequest::decode(&bytes);
        let _ = ConnectResponse::decode(&bytes);
        let _ = RequestHeader::decode(&bytes);
        let _ = ReplyHeader::decode(&bytes);
        let _ = WatcherEvent::decode(&bytes);
        let _ = cut_frame(&mut BytesMut::from(&bytes[..]), 64);
    }

    /// Small numbers make plausible lengths, so that decoding gets further than with random bytes.
    #[test]
    fn plausible_lengths_never_panic(values in prop::collection::vec(-2_i32..24, 0..64)) {
        for &op in OpCode::ALL {
            let _ = Request::decode(op, &ints(&values));
            let _ = Response::decode(op, &ints(&values));
        }
    }
}
