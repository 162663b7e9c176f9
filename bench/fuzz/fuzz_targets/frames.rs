//! What a client sends: frames, the connect request, every kind of request; and what a server answers.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use meridian_wire::{
    ConnectRequest, ConnectResponse, OpCode, ReplyHeader, Request, RequestHeader, Response, WatcherEvent,
};

fuzz_target!(|data: &[u8]| {
    // As one frame, so that a changed length is in nobody's way; and as a connection's bytes.
    read(data);
    let mut input = BytesMut::from(data);
    while let Ok(Some(frame)) = meridian_wire::cut_frame(&mut input, 1 << 20) {
        read(&frame);
    }
});

fn read(frame: &[u8]) {
    let _ = ConnectRequest::decode(frame);
    let _ = ConnectResponse::decode(frame);
    if let Ok((header, body)) = RequestHeader::decode(frame)
        && let Ok(op) = OpCode::try_from(header.op)
    {
        read_bodies(op, body);
    }
    if let Ok((_, body)) = ReplyHeader::decode(frame) {
        let _ = WatcherEvent::decode(body);
    }
}

/// What is understood is written as it can be read again.
fn read_bodies(op: OpCode, body: &[u8]) {
    let mut again = BytesMut::new();
    if let Ok(request) = Request::decode(op, body) {
        request.encode(&mut again);
        assert_eq!(Request::decode(op, &again).as_ref(), Ok(&request));
    }
    again.clear();
    if let Ok(response) = Response::decode(op, body) {
        response.encode(&mut again);
        assert_eq!(Response::decode(op, &again).as_ref(), Ok(&response));
    }
}
