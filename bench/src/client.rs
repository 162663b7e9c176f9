//! A client of the ZooKeeper protocol for measuring: many requests outstanding on one connection, no
//! task and no queue between the caller and the socket.
//!
//! [`Client::submit`] adds a request to the output, [`Client::next_reply`] sends what is there and waits
//! for the next reply. A server answers in the order of the requests, and the client checks that it does.
//! A connection that is lost stays lost.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use meridian_wire::{
    Acl, ConnectRequest, ConnectResponse, Create, CreateMode, DEFAULT_MAX_BUFFER, ErrorCode, OpCode,
    PASSWORD_LENGTH, ReplyHeader, Request, Response, WireError, begin_frame, cut_frame, finish_frame, xid,
};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

/// A server that does not answer a connect request in this time is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// What the session timeout should be; a server may agree on another.
const SESSION_TIMEOUT_MS: i32 = 30_000;
/// A reply may be somewhat longer than `jute.maxbuffer`, which bounds requests.
const REPLY_BYTES_MAX: usize = 4 * DEFAULT_MAX_BUFFER;
/// Unanswered requests of one connection.
const OUTSTANDING_MAX: usize = 65_536;
/// Read at once at most.
const READ_BYTES: usize = 64 << 10;

/// One connection and its session.
pub struct Client {
    stream: TcpStream,
    received: BytesMut,
    output: BytesMut,
    outstanding: VecDeque<(i32, OpCode)>,
    next_xid: i32,
    ping_interval: Duration,
    last_sent: Instant,
    watch_events: u64,
}

/// The answer to one request.
#[derive(Debug, Clone)]
pub struct Reply {
    /// What was asked.
    pub op: OpCode,
    /// The server's zxid and the outcome.
    pub header: ReplyHeader,
    body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection failed.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    /// The server sent what is not the protocol, or a request does not fit a frame.
    #[error("protocol: {0}")]
    Wire(#[from] WireError),
    /// The server gave no session.
    #[error("the server refused to open a session")]
    Refused,
    /// A reply that is not to the oldest outstanding request.
    #[error("a reply to request {received} came where that to {expected:?} was due")]
    OutOfOrder {
        /// Whose reply came.
        received: i32,
        /// Whose was due, if any.
        expected: Option<i32>,
    },
    /// Too many requests without an answer.
    #[error("more than {OUTSTANDING_MAX} requests are outstanding on one connection")]
    TooManyOutstanding,
    /// The server answered with an error.
    #[error("{op:?} answered {error:?}")]
    Server {
        /// What was asked.
        op: OpCode,
        /// The error.
        error: ErrorCode,
    },
}

impl Client {
    /// Connects to `host:port` and opens a session.
    ///
    /// # Errors
    /// If the server can't be reached, does not answer within ten seconds, or gives no session.
    pub async fn connect(address: &str) -> Result<Self, ClientError> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("{address} did not answer in time"));
        timeout(CONNECT_TIMEOUT, Self::open(address)).await.map_err(late)?
    }

    async fn open(address: &str) -> Result<Self, ClientError> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut client = Self {
            stream,
            received: BytesMut::with_capacity(READ_BYTES),
            output: BytesMut::new(),
            outstanding: VecDeque::new(),
            next_xid: 1,
            ping_interval: Duration::ZERO,
            last_sent: Instant::now(),
            watch_events: 0,
        };
        let request = ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: 0,
            timeout_ms: SESSION_TIMEOUT_MS,
            session_id: 0,
            password: &[0; PASSWORD_LENGTH],
            read_only: Some(false),
        };
        let start = begin_frame(&mut client.output);
        request.encode(&mut client.output);
        finish_frame(start, &mut client.output)?;
        let frame = loop {
            if let Some(frame) = cut_frame(&mut client.received, REPLY_BYTES_MAX)? {
                break frame;
            }
            client.exchange().await?;
        };
        let response = ConnectResponse::decode(&frame)?;
        let timeout_ms = u64::try_from(response.timeout_ms).unwrap_or(0);
        if timeout_ms == 0 {
            return Err(ClientError::Refused);
        }
        // As ZooKeeper's own client does.
        client.ping_interval = Duration::from_millis(timeout_ms / 3);
        Ok(client)
    }

    /// Adds a request to the output; [`Self::next_reply`] sends it.
    ///
    /// # Errors
    /// If the request does not fit a frame, or too many are outstanding.
    pub fn submit(&mut self, request: &Request<'_>) -> Result<(), ClientError> {
        if self.outstanding.len() >= OUTSTANDING_MAX {
            return Err(ClientError::TooManyOutstanding);
        }
        let number = self.next_xid;
        request.encode_frame(number, &mut self.output)?;
        self.next_xid = number.checked_add(1).unwrap_or(1);
        self.outstanding.push_back((number, request.op()));
        Ok(())
    }

    /// Sends what was submitted and waits for the reply to the oldest outstanding request. Pings the
    /// server while waiting; with nothing outstanding it waits until it is dropped, which loses nothing.
    ///
    /// # Errors
    /// If the connection is lost or the server breaks the protocol; the client is of no more use then.
    /// A reply with an error is a reply: [`Reply::succeeded`].
    pub async fn next_reply(&mut self) -> Result<Reply, ClientError> {
        loop {
            if let Some(reply) = self.buffered_reply()? {
                return Ok(reply);
            }
            let ping_due = self.last_sent + self.ping_interval;
            match timeout_at(ping_due, self.exchange()).await {
                Ok(exchanged) => exchanged?,
                Err(_) => {
                    Request::Ping.encode_frame(xid::PING, &mut self.output)?;
                    self.last_sent = Instant::now();
                }
            }
        }
    }

    /// The next reply, if it has been received already: whoever submits requests in answer to replies
    /// takes all that are there before [`Self::next_reply`] sends.
    ///
    /// # Errors
    /// If the server breaks the protocol.
    pub fn buffered_reply(&mut self) -> Result<Option<Reply>, ClientError> {
        while let Some(frame) = cut_frame(&mut self.received, REPLY_BYTES_MAX)? {
            let (header, body) = ReplyHeader::decode(&frame)?;
            match header.xid {
                xid::PING => continue,
                xid::NOTIFICATION => {
                    self.watch_events += 1;
                    continue;
                }
                _ => {}
            }
            let op = match self.outstanding.pop_front() {
                Some((number, op)) if number == header.xid => op,
                other => {
                    let expected = other.map(|(number, _)| number);
                    return Err(ClientError::OutOfOrder { received: header.xid, expected });
                }
            };
            let body = frame.slice_ref(body);
            return Ok(Some(Reply { op, header, body }));
        }
        Ok(None)
    }

    /// Submits a request and waits for its reply, which must be the next one: nothing else may be
    /// outstanding.
    ///
    /// # Errors
    /// As [`Self::next_reply`], and if the server answered with an error.
    pub async fn call(&mut self, request: &Request<'_>) -> Result<Reply, ClientError> {
        self.submit(request)?;
        self.next_reply().await?.succeeded()
    }

    /// Creates a znode and those above it; those that exist stay as they are.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn ensure_path(&mut self, path: &str) -> Result<(), ClientError> {
        let ends = path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0).chain([path.len()]);
        for end in ends {
            match self.call(&create(&path[..end], b"")).await {
                Ok(_) | Err(ClientError::Server { error: ErrorCode::NodeExists, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ends the session, so that the server need not wait for its expiry.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn close(mut self) -> Result<(), ClientError> {
        self.call(&Request::CloseSession).await.map(drop)
    }

    /// Requests without a reply yet.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Watch events so far.
    pub fn watch_events(&self) -> u64 {
        self.watch_events
    }

    /// Writes and reads what the socket takes and has; losing the future loses nothing.
    async fn exchange(&mut self) -> io::Result<()> {
        // The socket is all but always writable: asking it first saves a wake-up.
        self.write_some()?;
        let interest = match self.output.is_empty() {
            true => Interest::READABLE,
            false => Interest::READABLE | Interest::WRITABLE,
        };
        let ready = self.stream.ready(interest).await?;
        if ready.is_writable() {
            self.write_some()?;
        }
        if ready.is_readable() {
            self.received.reserve(READ_BYTES);
            match self.stream.try_read_buf(&mut self.received) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed it")),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_some(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.try_write(&self.output) {
                Ok(written) => {
                    self.output.advance(written);
                    self.last_sent = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Reply {
    /// The reply, unless its outcome is an error.
    ///
    /// # Errors
    /// The server's error.
    pub fn succeeded(self) -> Result<Self, ClientError> {
        match self.header.error {
            ErrorCode::Ok => Ok(self),
            error => Err(ClientError::Server { op: self.op, error }),
        }
    }

    /// The body of a reply that succeeded.
    ///
    /// # Errors
    /// If it is not what the operation answers with.
    pub fn response(&self) -> Result<Response<'_>, WireError> {
        Response::decode(self.op, &self.body)
    }
}

/// The request that creates a persistent znode open to all.
pub fn create<'a>(path: &'a str, data: &'a [u8]) -> Request<'a> {
    let flags = CreateMode::Persistent.into();
    Request::Create(Create { path, data: Some(data), acl: vec![Acl::OPEN], flags })
}
