//! What a client sends: frames, the connect request, every kind of request; and what a server answers.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use meridian_wire::{ConnectRequest, ConnectResponse, OpCode, ReplyHeader, Request, RequestHeader, Response};

fuzz_target!(|data: &[u8]| {
    let mut input = BytesMut::from(data);
    while let Ok(Some(frame)) = meridian_wire::cut_frame(&mut input, 1 << 20) {
        let _ = ConnectRequest::decode(&frame);
        let _ = ConnectResponse::decode(&frame);
        if let Ok((header, body)) = RequestHeader::decode(&frame)
            && let Ok(op) = OpCode::try_from(header.op)
        {
            if let Ok(request) = Request::decode(op, body) {
                // What is understood is written as it can be read again.
                let mut again = BytesMut::new();
                request.encode(&mut again);
                assert_eq!(Request::decode(op, &again).as_ref(), Ok(&request));
            }
            let _ = Response::decode(op, body);
        }
        let _ = ReplyHeader::decode(&frame);
    }
});
