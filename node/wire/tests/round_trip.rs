//! What is encoded reads back as it was, for every request and every reply.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use bytes::{BufMut, BytesMut};
use meridian_wire::*;
use proptest::prelude::*;

/// Values that requests and replies are made from.
#[derive(Debug, Clone)]
struct Material {
    strings: Vec<String>,
    nullable: [Option<String>; 3],
    data: Option<Vec<u8>>,
    int: i32,
    long: i64,
    flag: bool,
    error: ErrorCode,
    stat: Stat,
}

fn material() -> impl Strategy<Value = Material> {
    let strings = prop::collection::vec(any::<String>(), 2..6);
    let nullable = any::<[Option<String>; 3]>();
    let error = prop::sample::select(ErrorCode::ALL);
    let rest = (any::<Option<Vec<u8>>>(), any::<i32>(), any::<i64>(), any::<bool>());
    (strings, nullable, rest, error, stat()).prop_map(
        |(strings, nullable, (data, int, long, flag), error, stat)| Material {
            strings,
            nullable,
            data,
            int,
            long,
            flag,
            error,
            stat,
        },
    )
}

fn stat() -> impl Strategy<Value = Stat> {
    (any::<[i64; 6]>(), any::<[i32; 5]>()).prop_map(
        |(
            [czxid, mzxid, ctime, mtime, ephemeral_owner, pzxid],
            [version, cversion, aversion, data_length, num_children],
        )| Stat {
            czxid,
            mzxid,
            ctime,
            mtime,
            version,
            cversion,
            aversion,
            ephemeral_owner,
            data_length,
            num_children,
            pzxid,
        },
    )
}

impl Material {
    fn path(&self) -> &str {
        &self.strings[0]
    }

    fn names(&self) -> Vec<&str> {
        self.strings.iter().map(String::as_str).collect()
    }

    fn acl(&self) -> Vec<Acl<'_>> {
        self.strings.windows(2).map(|pair| Acl { perms: self.int, scheme: &pair[0], id: &pair[1] }).collect()
    }

    fn create(&self) -> Create<'_> {
        Create { path: self.path(), data: self.data.as_deref(), acl: self.acl(), flags: self.int }
    }

    fn writes(&self) -> Vec<Request<'_>> {
        let (path, version) = (self.path(), self.int);
        vec![
            Request::Create(self.create()),
            Request::Create2(self.create()),
            Request::CreateContainer(self.create()),
            Request::CreateTtl { create: self.create(), ttl_ms: self.long },
            Request::Delete { path, version },
            Request::SetData { path, data: self.data.as_deref(), version },
            Request::Check { path, version },
        ]
    }

    fn reads(&self) -> Vec<Request<'_>> {
        let (path, watch) = (self.path(), self.flag);
        vec![Request::GetChildren { path, watch }, Request::GetData { path, watch }]
    }

    /// One of every request.
    fn requests(&self) -> Vec<Request<'_>> {
        let (path, int) = (self.path(), self.int);
        let token = self.data.as_deref().unwrap_or_default();
        let watches = SetWatches {
            relative_zxid: self.long,
            data: self.names(),
            exist: vec![],
            child: vec![path],
            ..SetWatches::default()
        };
        let [joining, leaving, new_members] = self.nullable.each_ref().map(Option::as_deref);
        let mut requests = vec![
            Request::Exists { path, watch: self.flag },
            Request::GetAcl { path },
            Request::SetAcl { path, acl: self.acl(), version: int },
            Request::GetChildren2 { path, watch: self.flag },
            Request::Sync { path },
            Request::Ping,
            Request::Multi(self.writes()),
            Request::Multi(vec![]),
            Request::MultiRead(self.reads()),
            Request::Reconfig { joining, leaving, new_members, config_id: self.long },
            Request::CheckWatches { path, kind: int },
            Request::RemoveWatches { path, kind: int },
            Request::AddWatch { path, mode: int },
            Request::SetWatches(watches.clone()),
            Request::SetWatches2(SetWatches { persistent: vec![path], recursive: self.names(), ..watches }),
            Request::Auth(AuthPacket { kind: int, scheme: path, auth: token }),
            Request::Sasl { token },
            Request::GetEphemerals { prefix: path },
            Request::GetAllChildrenNumber { path },
            Request::WhoAmI,
            Request::CloseSession,
        ];
        requests.extend(self.writes());
        requests.extend(self.reads());
        requests
    }

    /// One of every reply, with an operation that it answers.
    fn responses(&self) -> Vec<(OpCode, Response<'_>)> {
        let (path, stat, data) = (self.path(), self.stat, self.data.as_deref());
        let clients = self.strings.iter().map(|user| ClientInfo { scheme: path, user }).collect::<Vec<_>>();
        let results = vec![
            OpResult::Create(path),
            OpResult::Create2 { path, stat },
            OpResult::Delete,
            OpResult::SetData(stat),
            OpResult::Check,
            OpResult::GetChildren(self.names()),
            OpResult::GetData { data, stat },
            OpResult::Error(self.error),
        ];
        vec![
            (OpCode::Delete, Response::Empty),
            (OpCode::Create, Response::Path(path)),
            (OpCode::Create2, Response::Create2 { path, stat }),
            (OpCode::Exists, Response::Stat(stat)),
            (OpCode::GetData, Response::Data { data, stat }),
            (OpCode::GetAcl, Response::Acl { acl: self.acl(), stat }),
            (OpCode::GetChildren, Response::Names(self.names())),
            (OpCode::GetChildren2, Response::Children2 { children: self.names(), stat }),
            (OpCode::GetAllChildrenNumber, Response::Number(self.int)),
            (OpCode::AddWatch, Response::Error(self.error)),
            (OpCode::Sasl, Response::Token(data)),
            (OpCode::WhoAmI, Response::Clients(clients)),
            (OpCode::Multi, Response::Results(results)),
        ]
    }
}

/// The body that a frame carries behind a header of so many bytes.
fn body_of(frame: &[u8], header_bytes: usize) -> &[u8] {
    &frame[4 + header_bytes..]
}

fn is_truncated<T>(read: &Result<T, WireError>) -> bool {
    matches!(read, Err(WireError::Truncated { .. }))
}

proptest! {
    #[test]
    fn requests_read_back(material in material(), xid: i32, trailing: Vec<u8>) {
        for request in material.requests() {
            let mut out = BytesMut::new();
            request.encode_frame(xid, &mut out).unwrap();
            out.put_slice(b"next frame");
            let frame = cut_frame(&mut out, usize::MAX).unwrap().unwrap();
            prop_assert_eq!(&out[..], b"next frame");

            let (header, body) = RequestHeader::decode(&frame).unwrap();
            prop_assert_eq!(header, RequestHeader { xid, op: request.op().into() });
            let body_and_more = [body, &trailing].concat();
            prop_assert_eq!(&Request::decode(request.op(), &body_and_more).unwrap(), &request);
        }
    }

    #[test]
    fn responses_read_back(material in material(), xid: i32, zxid: i64, trailing: Vec<u8>) {
        for (op, response) in material.responses() {
            let header = ReplyHeader { xid, zxid, error: material.error };
            let mut out = BytesMut::new();
            response.encode_frame(header, &mut out).unwrap();
            let frame = cut_frame(&mut out, usize::MAX).unwrap().unwrap();

            let (read, body) = ReplyHeader::decode(&frame).unwrap();
            prop_assert_eq!(read, header);
            let body_and_more = [body, &trailing].concat();
            prop_assert_eq!(&Response::decode(op, &body_and_more).unwrap(), &response);
        }
    }

    #[test]
    fn a_request_cut_short_is_refused(material in material(), cut: prop::sample::Index) {
        for request in material.requests() {
            let mut frame = BytesMut::new();
            request.encode_frame(1, &mut frame).unwrap();
            let body = body_of(&frame, 8);
            if !body.is_empty() {
                let cut = &body[..cut.index(body.len())];
                let read = Request::decode(request.op(), cut);
                prop_assert!(is_truncated(&read), "{read:?}");
            }
        }
    }

    #[test]
    fn a_response_cut_short_is_refused(material in material(), cut: prop::sample::Index) {
        for (op, response) in material.responses() {
            let mut body = BytesMut::new();
            response.encode(&mut body);
            if !body.is_empty() {
                let cut = &body[..cut.index(body.len())];
                let read = Response::decode(op, cut);
                prop_assert!(is_truncated(&read), "{read:?}");
            }
        }
    }

    #[test]
    fn a_damaged_body_never_panics_and_what_it_reads_as_reads_back(
        material in material(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for request in material.requests() {
            let mut body = BytesMut::new();
            request.encode(&mut body);
            if body.is_empty() {
                continue;
            }
            for (at, byte) in &damage {
                let at = at.index(body.len());
                body[at] = *byte;
            }
            if let Ok(read) = Request::decode(request.op(), &body) {
                let mut again = BytesMut::new();
                read.encode(&mut again);
                prop_assert_eq!(Request::decode(request.op(), &again), Ok(read));
            }
        }
        for (op, response) in material.responses() {
            let mut body = BytesMut::new();
            response.encode(&mut body);
            if body.is_empty() {
                continue;
            }
            for (at, byte) in &damage {
                let at = at.index(body.len());
                body[at] = *byte;
            }
            if let Ok(read) = Response::decode(op, &body) {
                let mut again = BytesMut::new();
                read.encode(&mut again);
                prop_assert_eq!(Response::decode(op, &again), Ok(read));
            }
        }
    }

    #[test]
    fn connecting_reads_back(ints: [i32; 2], longs: [i64; 2], password: Vec<u8>, read_only: Option<bool>) {
        let [protocol_version, timeout_ms] = ints;
        let [last_zxid_seen, session_id] = longs;
        let password = &password[..];
        let request =
            ConnectRequest { protocol_version, last_zxid_seen, timeout_ms, session_id, password, read_only };
        let mut out = BytesMut::new();
        request.encode(&mut out);
        prop_assert_eq!(ConnectRequest::decode(&out), Ok(request));

        let response =
            ConnectResponse { protocol_version, timeout_ms, session_id, password, read_only };
        let mut out = BytesMut::new();
        response.encode(&mut out);
        prop_assert_eq!(ConnectResponse::decode(&out), Ok(response));
    }

    #[test]
    fn watch_events_read_back(
        event in prop::sample::select(EventType::ALL),
        state in prop::sample::select(KeeperState::ALL),
        path: String,
    ) {
        let event = WatcherEvent { event, state, path: &path };
        let mut out = BytesMut::new();
        event.encode(&mut out);
        prop_assert_eq!(WatcherEvent::decode(&out), Ok(event));
    }
}
