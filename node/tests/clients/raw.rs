//! A client that shows every packet: what it sends and gets is not interpreted behind its back.

use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use meridian_seam::net::BoxStream;
use meridian_wire::{
    Acl, ConnectRequest, ConnectResponse, Create, CreateMode, ErrorCode, OpCode, ReplyHeader, Request,
    Response, WatcherEvent, begin_frame, cut_frame, finish_frame, xid,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::region::PATIENCE;

pub(crate) struct RawClient {
    pub(crate) stream: BoxStream,
    input: BytesMut,
    xid: i32,
    pub(crate) session: i64,
    pub(crate) password: Vec<u8>,
    pub(crate) timeout_ms: i32,
    /// Whether the server says that it serves reads alone.
    pub(crate) read_only: bool,
    /// Watch events that came before the replies that were asked for.
    pub(crate) events: Vec<(i64, meridian_wire::EventType, String)>,
}

/// How a client connects.
#[derive(Clone)]
pub(crate) struct Hello {
    pub(crate) session: i64,
    pub(crate) password: Vec<u8>,
    pub(crate) timeout_ms: i32,
    pub(crate) last_zxid: i64,
    pub(crate) read_only: Option<bool>,
}

impl Default for Hello {
    fn default() -> Self {
        Self { session: 0, password: vec![0; 16], timeout_ms: 10_000, last_zxid: 0, read_only: Some(false) }
    }
}

impl RawClient {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address, &Hello::default()).await.unwrap()
    }

    pub(crate) async fn try_connect(address: SocketAddr, hello: &Hello) -> io::Result<Self> {
        Self::connect_over(Box::new(TcpStream::connect(address).await?), hello).await
    }

    /// Whether the server turns a client away.
    pub(crate) async fn connect_fails(address: SocketAddr, hello: &Hello) -> bool {
        Self::try_connect(address, hello).await.is_err()
    }

    /// Connects over a stream that stands already.
    pub(crate) async fn connect_over(stream: BoxStream, hello: &Hello) -> io::Result<Self> {
        let mut client = Self {
            stream,
            input: BytesMut::new(),
            xid: 0,
            session: 0,
            password: Vec::new(),
            timeout_ms: 0,
            read_only: false,
            events: Vec::new(),
        };
        let mut out = BytesMut::new();
        let start = begin_frame(&mut out);
        ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: hello.last_zxid,
            timeout_ms: hello.timeout_ms,
            session_id: hello.session,
            password: &hello.password,
            read_only: hello.read_only,
        }
        .encode(&mut out);
        finish_frame(start, &mut out).unwrap();
        client.stream.write_all(&out).await?;
        let frame = client.frame().await?;
        assert_eq!(frame.len(), if hello.read_only.is_some() { 37 } else { 36 });
        let reply = ConnectResponse::decode(&frame).unwrap();
        client.session = reply.session_id;
        client.password = reply.password.to_vec();
        client.timeout_ms = reply.timeout_ms;
        client.read_only = reply.read_only == Some(true);
        Ok(client)
    }

    /// What another connection needs to take this session up.
    pub(crate) fn hello(&self) -> Hello {
        Hello { session: self.session, password: self.password.clone(), ..Hello::default() }
    }

    /// Sends a request and returns its number.
    pub(crate) async fn send(&mut self, request: &Request<'_>) -> i32 {
        let xid = match request {
            Request::Ping => xid::PING,
            Request::Auth(_) => xid::AUTH,
            Request::SetWatches(_) | Request::SetWatches2(_) => xid::SET_WATCHES,
            _ => {
                self.xid += 1;
                self.xid
            }
        };
        let mut out = BytesMut::new();
        request.encode_frame(xid, &mut out).unwrap();
        self.stream.write_all(&out).await.unwrap();
        xid
    }

    /// The next packet, an event or a reply.
    pub(crate) async fn packet(&mut self) -> io::Result<(ReplyHeader, Bytes)> {
        let frame = self.frame().await?;
        let (header, body) = ReplyHeader::decode(&frame).unwrap();
        Ok((header, frame.slice_ref(body)))
    }

    /// The next reply; events before it are kept.
    pub(crate) async fn reply(&mut self) -> io::Result<(ReplyHeader, Bytes)> {
        loop {
            let (header, body) = self.packet().await?;
            if header.xid != xid::NOTIFICATION {
                return Ok((header, body));
            }
            let event = WatcherEvent::decode(&body).unwrap();
            self.events.push((header.zxid, event.event, event.path.to_string()));
        }
    }

    /// Sends a request and waits for its reply, which must be the next one.
    pub(crate) async fn call(&mut self, request: &Request<'_>) -> (ReplyHeader, Bytes) {
        let xid = self.send(request).await;
        let (header, body) = self.reply().await.unwrap();
        assert_eq!(header.xid, xid);
        (header, body)
    }

    pub(crate) async fn create(&mut self, path: &str, mode: CreateMode) -> Result<String, ErrorCode> {
        let (header, body) = self.call(&create(path, b"", mode)).await;
        match header.error {
            ErrorCode::Ok => match Response::decode(OpCode::Create, &body).unwrap() {
                Response::Path(path) => Ok(path.to_string()),
                other => panic!("{other:?}"),
            },
            error => Err(error),
        }
    }

    pub(crate) async fn get(&mut self, path: &str, watch: bool) -> Result<Vec<u8>, ErrorCode> {
        let (header, body) = self.call(&Request::GetData { path, watch }).await;
        if header.error == ErrorCode::Ok { Ok(data(&body)) } else { Err(header.error) }
    }

    pub(crate) async fn set(&mut self, path: &str, data: &[u8]) -> ErrorCode {
        self.call(&Request::SetData { path, data: Some(data), version: -1 }).await.0.error
    }

    /// Waits until the server closes the connection.
    pub(crate) async fn closed(&mut self) {
        while self.packet().await.is_ok() {}
    }

    async fn frame(&mut self) -> io::Result<Bytes> {
        loop {
            if let Some(frame) = cut_frame(&mut self.input, 64 << 20).unwrap() {
                return Ok(frame);
            }
            let reading = self.stream.read_buf(&mut self.input);
            if tokio::time::timeout(PATIENCE, reading).await.expect("an answer in time")? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

pub(crate) fn create<'a>(path: &'a str, data: &'a [u8], mode: CreateMode) -> Request<'a> {
    Request::Create(Create { path, data: Some(data), acl: vec![Acl::OPEN], flags: mode.into() })
}

/// The data in the body of a getData reply.
pub(crate) fn data(body: &[u8]) -> Vec<u8> {
    match Response::decode(OpCode::GetData, body).unwrap() {
        Response::Data { data, .. } => data.unwrap_or_default().to_vec(),
        other => panic!("{other:?}"),
    }
}
