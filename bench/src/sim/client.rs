//! A client of simulated servers: one session over one connection after the other, requests in order and several
//! under way if wanted, watches set again after a reconnect, and the rules by which a client library decides that it
//! is disconnected. All that it is told is checked at once against what it was told before ([`seen`]).

mod operations;
mod seen;

pub(super) use operations::{create, set};
pub(super) use seen::Once;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use meridian_seam::net::{BoxStream, Net};
use meridian_wire::{
    ConnectRequest, ConnectResponse, ErrorCode, EventType, ReplyHeader, Request, SetWatches, WatcherEvent,
    begin_frame, cut_frame, finish_frame, xid,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::history::History;
use seen::Seen;

const FRAME_BYTES_MAX: usize = 64 << 20;
const PASSWORD: [u8; 16] = [0; 16];
/// What is not answered for so long is given up, and the connection with it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a client connects to and how long it asks its sessions to last.
pub(super) struct ClientOptions {
    pub(super) name: String,
    pub(super) net: Arc<dyn Net>,
    pub(super) servers: Vec<String>,
    pub(super) first_server: usize,
    pub(super) timeout: Duration,
}

pub(super) struct Client {
    options: ClientOptions,
    history: History,
    next_server: usize,
    connection: Option<Connection>,
    session: i64,
    password: Vec<u8>,
    xid: i32,
    /// Requests without a reply, in order.
    outstanding: VecDeque<i32>,
    seen: Seen,
}

struct Connection {
    stream: BoxStream,
    input: BytesMut,
    heard: Instant,
    pinged: Instant,
    /// The session's, as the server has granted it.
    session_timeout: Duration,
}

/// The connection is gone: what was asked may or may not have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Disconnected;

/// What became of the session when a connection stands again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connected {
    /// It goes on.
    Same,
    /// It has ended: here is another one.
    Expired,
    /// There was none: here is one.
    New,
}

enum Packet {
    Event(EventType, String),
    Reply(ReplyHeader, Bytes),
}

impl Client {
    pub(super) fn new(options: ClientOptions, history: History) -> Self {
        Self {
            next_server: options.first_server,
            options,
            history,
            connection: None,
            session: 0,
            password: PASSWORD.to_vec(),
            xid: 0,
            outstanding: VecDeque::new(),
            seen: Seen::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.options.name
    }

    /// The session, 0 if there is none.
    pub(super) fn session(&self) -> i64 {
        self.session
    }

    /// Leaves the session to expire, or has seen it end; the next connection opens another.
    pub(super) fn abandon_session(&mut self) {
        self.disconnect();
        self.session = 0;
        self.password = PASSWORD.to_vec();
        self.seen.another_session();
    }

    /// Drops the connection. What is under way may still take effect.
    pub(super) fn disconnect(&mut self) {
        self.connection = None;
        self.outstanding.clear();
        self.seen.disconnected();
    }

    /// Connects to one server after the other until one takes the session.
    pub(super) async fn connect(&mut self) -> Connected {
        self.disconnect();
        let mut connected = if self.session == 0 { Connected::New } else { Connected::Same };
        loop {
            let servers = &self.options.servers;
            let server = servers[self.next_server % servers.len()].clone();
            self.next_server += 1;
            match timeout(self.options.timeout, self.greet(server)).await {
                Ok(Ok(())) if self.session != 0 => {
                    if self.set_watches().await.is_ok() {
                        return connected;
                    }
                    self.disconnect();
                }
                // The session has ended: the next attempt asks for a new one.
                Ok(Ok(())) => {
                    self.abandon_session();
                    connected = Connected::Expired;
                }
                Ok(Err(_)) | Err(_) => {
                    self.disconnect();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn greet(&mut self, server: String) -> io::Result<()> {
        let stream = self.options.net.connect(server).await?;
        let now = Instant::now();
        let session_timeout = self.options.timeout;
        let mut connection =
            Connection { stream, input: BytesMut::new(), heard: now, pinged: now, session_timeout };
        let mut out = BytesMut::new();
        let start = begin_frame(&mut out);
        ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: self.seen.zxid(),
            timeout_ms: i32::try_from(self.options.timeout.as_millis()).unwrap_or(i32::MAX),
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
        connection.session_timeout = Duration::from_millis(u64::try_from(reply.timeout_ms).unwrap_or(0));
        connection.heard = Instant::now();
        connection.pinged = connection.heard;
        self.connection = Some(connection);
        Ok(())
    }

    /// Sets the watches of the connection before again.
    async fn set_watches(&mut self) -> Result<(), Disconnected> {
        let watched = self.seen.watched();
        if watched.is_empty() {
            return Ok(());
        }
        fn paths(paths: &[String]) -> Vec<&str> {
            paths.iter().map(String::as_str).collect()
        }
        let request = Request::SetWatches2(SetWatches {
            relative_zxid: self.seen.zxid(),
            data: paths(&watched.data),
            exist: paths(&watched.exist),
            child: paths(&watched.child),
            persistent: paths(&watched.persistent),
            recursive: paths(&watched.recursive),
        });
        self.put(&request, xid::SET_WATCHES).await?;
        self.reply().await.map(drop)
    }

    /// Sends a request and waits for its reply. If that takes too long, the client disconnects.
    pub(super) async fn call(&mut self, request: &Request<'_>) -> Result<(ReplyHeader, Bytes), Disconnected> {
        self.send(request).await?;
        self.reply().await
    }

    /// Sends a request.
    pub(super) async fn send(&mut self, request: &Request<'_>) -> Result<(), Disconnected> {
        self.xid += 1;
        self.put(request, self.xid).await
    }

    async fn put(&mut self, request: &Request<'_>, xid: i32) -> Result<(), Disconnected> {
        let mut out = BytesMut::new();
        request.encode_frame(xid, &mut out).map_err(|_| Disconnected)?;
        let connection = self.connection.as_mut().ok_or(Disconnected)?;
        if connection.stream.write_all(&out).await.is_err() {
            self.disconnect();
            return Err(Disconnected);
        }
        self.outstanding.push_back(xid);
        Ok(())
    }

    /// Waits for the reply to the oldest request without one.
    pub(super) async fn reply(&mut self) -> Result<(ReplyHeader, Bytes), Disconnected> {
        let result = match timeout(PATIENCE, self.next_reply()).await {
            Ok(result) => result,
            Err(_) => Err(Disconnected),
        };
        if result.is_err() {
            self.disconnect();
        }
        result
    }

    async fn next_reply(&mut self) -> Result<(ReplyHeader, Bytes), Disconnected> {
        loop {
            let Packet::Reply(header, body) = self.packet().await? else { continue };
            if header.xid == xid::PING {
                continue;
            }
            let expected = self.outstanding.pop_front();
            if expected != Some(header.xid) {
                self.violation(format!("a reply to request {} instead of {expected:?}", header.xid));
            }
            return match header.error {
                ErrorCode::SessionExpired | ErrorCode::ConnectionLoss | ErrorCode::SessionMoved => {
                    Err(Disconnected)
                }
                _ => Ok((header, body)),
            };
        }
    }

    /// Keeps the session alive for a time.
    pub(super) async fn idle(&mut self, duration: Duration) -> Result<(), Disconnected> {
        self.wait_for(duration, |_, _| false).await.map(drop)
    }

    /// Keeps the session alive until an event comes that is waited for, or for a time; whether it came.
    pub(super) async fn wait_for(
        &mut self,
        duration: Duration,
        wanted: impl Fn(EventType, &str) -> bool,
    ) -> Result<bool, Disconnected> {
        let until = Instant::now() + duration;
        let result = loop {
            match tokio::time::timeout_at(until, self.packet()).await {
                Err(_) => break Ok(false),
                Ok(Ok(Packet::Event(event, path))) if wanted(event, &path) => break Ok(true),
                Ok(Ok(_)) => {}
                Ok(Err(Disconnected)) => break Err(Disconnected),
            }
        };
        if result.is_err() {
            self.disconnect();
        }
        result
    }

    /// The next packet. Pings while there is none, and gives up as client libraries do: after two thirds of
    /// the session's timeout.
    async fn packet(&mut self) -> Result<Packet, Disconnected> {
        let connection = self.connection.as_mut().ok_or(Disconnected)?;
        let session_timeout = connection.session_timeout;
        let frame = loop {
            let now = Instant::now();
            if now - connection.heard >= session_timeout * 2 / 3 {
                return Err(Disconnected);
            }
            if now - connection.pinged >= session_timeout / 3 {
                connection.pinged = now;
                let mut out = BytesMut::new();
                Request::Ping.encode_frame(xid::PING, &mut out).map_err(|_| Disconnected)?;
                connection.stream.write_all(&out).await.map_err(|_| Disconnected)?;
            }
            let next =
                (connection.heard + session_timeout * 2 / 3).min(connection.pinged + session_timeout / 3);
            let Ok(frame) = tokio::time::timeout_at(next, connection.frame()).await else { continue };
            connection.heard = Instant::now();
            break frame.map_err(|_| Disconnected)?;
        };
        self.take(&frame)
    }

    fn take(&mut self, frame: &Bytes) -> Result<Packet, Disconnected> {
        let (header, body) = ReplyHeader::decode(frame).map_err(|_| Disconnected)?;
        if header.xid != xid::NOTIFICATION {
            let finding = self.seen.reply(header.zxid);
            self.expect(finding);
            return Ok(Packet::Reply(header, frame.slice_ref(body)));
        }
        let WatcherEvent { event, path, .. } = WatcherEvent::decode(body).map_err(|_| Disconnected)?;
        let finding = self.seen.event(event, path, header.zxid);
        self.expect(finding);
        self.history.count("watch events");
        Ok(Packet::Event(event, path.to_string()))
    }

    fn expect(&self, finding: Result<(), String>) {
        if let Err(text) = finding {
            self.violation(text);
        }
    }

    pub(super) fn violation(&self, text: String) {
        self.history.violation(format!("{}: {text}", self.options.name));
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
