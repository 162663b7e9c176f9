//! A client of a simulated server: one session, one request at a time, and the rules by which a client
//! library decides that it is disconnected.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use meridian_seam::net::{BoxStream, Net};
use meridian_wire::{
    ConnectRequest, ConnectResponse, ErrorCode, ReplyHeader, Request, begin_frame, cut_frame, finish_frame,
    xid,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

const FRAME_BYTES_MAX: usize = 64 << 20;
const PASSWORD: [u8; 16] = [0; 16];

pub(super) struct Client {
    net: Arc<dyn Net>,
    servers: Vec<String>,
    next_server: usize,
    timeout: Duration,
    connection: Option<Connection>,
    session: i64,
    password: Vec<u8>,
    last_zxid: i64,
    xid: i32,
}

struct Connection {
    stream: BoxStream,
    input: BytesMut,
    heard: Instant,
    pinged: Instant,
}

/// The connection is gone: what was asked may or may not have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Disconnected;

/// What became of the session when a connection stands again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connected {
    /// It goes on.
    Same,
    /// There is another one; the last one, if any, has ended.
    New,
}

impl Client {
    pub(super) fn new(
        net: Arc<dyn Net>,
        servers: Vec<String>,
        next_server: usize,
        timeout: Duration,
    ) -> Self {
        Self {
            net,
            servers,
            next_server,
            timeout,
            connection: None,
            session: 0,
            password: PASSWORD.to_vec(),
            last_zxid: 0,
            xid: 0,
        }
    }

    /// The session, 0 if there is none.
    pub(super) fn session(&self) -> i64 {
        self.session
    }

    /// Leaves the session to expire; the next connection opens another.
    pub(super) fn abandon_session(&mut self) {
        self.connection = None;
        self.session = 0;
        self.password = PASSWORD.to_vec();
    }

    /// Connects to one server after the other until one takes the session.
    pub(super) async fn connect(&mut self) -> Connected {
        self.connection = None;
        let before = self.session;
        loop {
            let server = self.servers[self.next_server % self.servers.len()].clone();
            self.next_server += 1;
            match timeout(self.timeout, self.greet(server)).await {
                Ok(Ok(())) if self.session != 0 => {
                    return if self.session == before { Connected::Same } else { Connected::New };
                }
                // The session has ended: the next attempt asks for a new one.
                Ok(Ok(())) => {
                    self.connection = None;
                    self.password = PASSWORD.to_vec();
                }
                Ok(Err(_)) | Err(_) => {
                    self.connection = None;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn greet(&mut self, server: String) -> io::Result<()> {
        let stream = self.net.connect(server).await?;
        let now = Instant::now();
        let mut connection = Connection { stream, input: BytesMut::new(), heard: now, pinged: now };
        let mut out = BytesMut::new();
        let start = begin_frame(&mut out);
        ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: self.last_zxid,
            timeout_ms: i32::try_from(self.timeout.as_millis()).unwrap_or(i32::MAX),
            session_id: self.session,
            password: &self.password,
            read_only: Some(false),
        }
        .encode(&mut out);
        finish_frame(start, &mut out).map_err(io::Error::other)?;
        connection.stream.write_all(&out).await?;
        let frame = connection.frame().await?;
        let reply = ConnectResponse::decode(&frame).map_err(io::Error::other)?;
        self.session = reply.session_id;
        self.password = reply.password.to_vec();
        connection.heard = Instant::now();
        connection.pinged = connection.heard;
        self.connection = Some(connection);
        Ok(())
    }

    /// Sends a request and waits for its reply. If that takes too long, the client disconnects.
    pub(super) async fn call(
        &mut self,
        request: &Request<'_>,
        patience: Duration,
    ) -> Result<(ReplyHeader, Bytes), Disconnected> {
        self.xid += 1;
        let xid = self.xid;
        let mut out = BytesMut::new();
        if request.encode_frame(xid, &mut out).is_err() {
            return Err(Disconnected);
        }
        let result = match timeout(patience, self.exchange(xid, &out)).await {
            Ok(result) => result,
            Err(_) => Err(Disconnected),
        };
        if result.is_err() {
            self.connection = None;
        }
        result
    }

    async fn exchange(&mut self, xid: i32, out: &[u8]) -> Result<(ReplyHeader, Bytes), Disconnected> {
        let connection = self.connection.as_mut().ok_or(Disconnected)?;
        connection.stream.write_all(out).await.map_err(|_| Disconnected)?;
        loop {
            let (header, body) = self.packet().await?;
            if header.xid == xid {
                return match header.error {
                    ErrorCode::SessionExpired | ErrorCode::ConnectionLoss | ErrorCode::SessionMoved => {
                        Err(Disconnected)
                    }
                    _ => Ok((header, body)),
                };
            }
        }
    }

    /// Keeps the session alive for a time.
    pub(super) async fn idle(&mut self, duration: Duration) -> Result<(), Disconnected> {
        let until = Instant::now() + duration;
        let result = loop {
            match tokio::time::timeout_at(until, self.packet()).await {
                Err(_) => break Ok(()),
                Ok(Ok(_)) => {}
                Ok(Err(Disconnected)) => break Err(Disconnected),
            }
        };
        if result.is_err() {
            self.connection = None;
        }
        result
    }

    /// The next packet. Pings while there is none, and gives up as client libraries do: after two thirds of
    /// the session's timeout.
    async fn packet(&mut self) -> Result<(ReplyHeader, Bytes), Disconnected> {
        let connection = self.connection.as_mut().ok_or(Disconnected)?;
        loop {
            let now = Instant::now();
            if now - connection.heard >= self.timeout * 2 / 3 {
                return Err(Disconnected);
            }
            if now - connection.pinged >= self.timeout / 3 {
                connection.pinged = now;
                let mut out = BytesMut::new();
                Request::Ping.encode_frame(xid::PING, &mut out).map_err(|_| Disconnected)?;
                connection.stream.write_all(&out).await.map_err(|_| Disconnected)?;
            }
            let next = (connection.heard + self.timeout * 2 / 3).min(connection.pinged + self.timeout / 3);
            let Ok(frame) = tokio::time::timeout_at(next, connection.frame()).await else { continue };
            let frame = frame.map_err(|_| Disconnected)?;
            connection.heard = Instant::now();
            let (header, body) = ReplyHeader::decode(&frame).map_err(|_| Disconnected)?;
            if header.xid >= 0 {
                self.last_zxid = self.last_zxid.max(header.zxid);
            }
            return Ok((header, frame.slice_ref(body)));
        }
    }
}

impl Connection {
    /// Cancelling it loses nothing.
    async fn frame(&mut self) -> io::Result<Bytes> {
        loop {
            if let Some(frame) = cut_frame(&mut self.input, FRAME_BYTES_MAX).map_err(io::Error::other)? {
                return Ok(frame);
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
