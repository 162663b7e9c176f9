//! What the rest of the server knows of a client's connection, and the inbox through which it is told.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use meridian_seam::clock::millis;
use meridian_seam::limits;
use meridian_wire::{OpCode, perms};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::metrics::{Latency, Tally};
use crate::tree::Acl;
use crate::txn::{Answer, acl};

/// A client's connection as other tasks see it.
#[derive(Debug)]
pub struct Client {
    /// The connection's number, unique in this start of the server.
    pub number: u64,
    /// The client's address.
    pub peer: SocketAddr,
    /// The session, 0 before one is open.
    session: AtomicI64,
    /// The session's timeout; before one is open the time for the handshake.
    timeout_ms: AtomicU32,
    /// When it asked for its session to be opened or taken up, ms of the monotonic clock.
    opened_ms: AtomicU64,
    /// When it was last heard as far as the leader knows, ms of the monotonic clock.
    vouched_ms: AtomicU64,
    /// Whether it is served in read-only mode.
    is_read_only: AtomicBool,
    /// When bytes came last, ms of the monotonic clock.
    heard_ms: AtomicU64,
    /// Whether it speaks TLS.
    pub is_secure: bool,
    /// When it connected, ms since the Unix epoch.
    pub established_unix_ms: i64,
    /// Who it has proved to be, encoded.
    identities: Mutex<Bytes>,
    statistics: Mutex<Statistics>,
    pub(super) outstanding: AtomicUsize,
    queue: Mutex<Queue>,
    /// Events in the queue: looked at without the lock before every reply.
    events: AtomicUsize,
    wake: Notify,
    closed: AtomicBool,
    closing: Notify,
}

/// When and how a client has connected.
pub(super) struct Established {
    /// In the monotonic clock's time.
    pub(super) at: Duration,
    pub(super) unix_ms: i64,
    pub(super) is_secure: bool,
}

/// What a connection has done, for operators.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Statistics {
    pub(super) received: u64,
    pub(super) sent: u64,
    latency_us_total: u64,
    latency_us_max: u64,
    latency_us_min: Option<u64>,
    pub(super) last: Last,
}

/// The last request of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Last {
    /// A [`meridian_wire::OpCode`].
    pub(super) operation: i32,
    pub(super) xid: i32,
    pub(super) zxid: i64,
    /// When it was answered, ms of the monotonic clock.
    pub(super) at_ms: u64,
    pub(super) latency_ms: u64,
}

impl Last {
    /// Four letters, as ZooKeeper writes them.
    pub(super) fn operation_name(&self) -> &'static str {
        match OpCode::try_from(self.operation) {
            Ok(OpCode::Create | OpCode::Create2 | OpCode::CreateContainer | OpCode::CreateTtl) => "CREA",
            Ok(OpCode::Delete) => "DELE",
            Ok(OpCode::Exists) => "EXIS",
            Ok(OpCode::GetData) => "GETD",
            Ok(OpCode::SetData) => "SETD",
            Ok(OpCode::GetAcl) => "GETA",
            Ok(OpCode::SetAcl) => "SETA",
            Ok(OpCode::GetChildren | OpCode::GetChildren2) => "GETC",
            Ok(OpCode::Sync) => "SYNC",
            Ok(OpCode::Ping) => "PING",
            Ok(OpCode::Multi | OpCode::MultiRead) => "MULT",
            Ok(OpCode::Reconfig) => "RECO",
            Ok(OpCode::CheckWatches) => "CHKW",
            Ok(OpCode::RemoveWatches) => "REMW",
            Ok(OpCode::AddWatch) => "ADDW",
            Ok(OpCode::SetWatches | OpCode::SetWatches2) => "SETW",
            Ok(OpCode::Auth) => "AUTH",
            Ok(OpCode::Sasl) => "SASL",
            Ok(OpCode::CloseSession) => "CLOS",
            Ok(OpCode::GetEphemerals) => "GETE",
            Ok(OpCode::GetAllChildrenNumber) => "GETACN",
            Ok(OpCode::WhoAmI) => "WHOA",
            // Nothing but the opening of the session yet.
            _ => "SESS",
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<(i64, Bytes)>,
    event_bytes: usize,
    answers: VecDeque<Answer>,
    /// The session has ended as its client wished: nothing comes after the answers.
    ended: bool,
}

impl Client {
    /// `handshake` is the time that the client has for opening a session.
    pub(super) fn new(number: u64, peer: SocketAddr, handshake: Duration, established: Established) -> Self {
        let Established { at: now, unix_ms, is_secure } = established;
        Self {
            is_secure,
            established_unix_ms: unix_ms,
            number,
            peer,
            session: AtomicI64::new(0),
            timeout_ms: AtomicU32::new(u32::try_from(handshake.as_millis()).unwrap_or(u32::MAX)),
            opened_ms: AtomicU64::new(0),
            vouched_ms: AtomicU64::new(0),
            is_read_only: AtomicBool::new(false),
            heard_ms: AtomicU64::new(millis(now)),
            identities: Mutex::default(),
            statistics: Mutex::default(),
            outstanding: AtomicUsize::new(0),
            queue: Mutex::default(),
            events: AtomicUsize::new(0),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            closing: Notify::new(),
        }
    }

    /// It has proved who it is.
    pub(super) fn identify(&self, encoded_identities: Bytes) {
        *self.identities.lock() = encoded_identities;
    }

    /// Whether it may read a znode with this ACL.
    pub(super) fn may_read(&self, znode_acl: &[Acl]) -> bool {
        acl::permits(znode_acl, perms::READ, &self.identities.lock())
    }

    /// The session, 0 before one is open.
    pub fn session(&self) -> i64 {
        self.session.load(Ordering::Relaxed)
    }

    /// The session's timeout.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.load(Ordering::Relaxed).into())
    }

    /// When bytes came last, in the monotonic clock's time.
    pub fn heard(&self) -> Duration {
        Duration::from_millis(self.heard_ms.load(Ordering::Relaxed))
    }

    /// When it asked for its session to be opened or taken up: the leader has learnt of it since.
    pub(super) fn opened(&self) -> Duration {
        Duration::from_millis(self.opened_ms.load(Ordering::Relaxed))
    }

    /// When it was last heard as far as the leader knows.
    pub(super) fn vouched(&self) -> Duration {
        Duration::from_millis(self.vouched_ms.load(Ordering::Relaxed))
    }

    /// The leader has been told that it was heard then.
    pub(super) fn vouch(&self, heard: Duration) {
        self.vouched_ms.fetch_max(millis(heard), Ordering::Relaxed);
    }

    /// Requests taken and answers given.
    pub fn packets(&self) -> (u64, u64) {
        let statistics = self.statistics.lock();
        (statistics.received, statistics.sent)
    }

    pub(super) fn statistics(&self) -> Statistics {
        *self.statistics.lock()
    }

    /// Latencies of this connection's requests.
    pub(super) fn latency(&self) -> Latency {
        let Statistics { sent, latency_us_total, latency_us_max, latency_us_min, .. } = self.statistics();
        Latency {
            min_ms: latency_us_min.unwrap_or(0) / 1_000,
            avg_ms: if sent == 0 { 0.0 } else { latency_us_total as f64 / sent as f64 / 1_000.0 },
            max_ms: latency_us_max / 1_000,
        }
    }

    pub(super) fn count(&self, tally: &Tally, last: Option<Last>) {
        let mut statistics = self.statistics.lock();
        statistics.received += tally.received;
        statistics.sent += tally.sent;
        statistics.latency_us_total = statistics.latency_us_total.saturating_add(tally.latency_us_total);
        statistics.latency_us_max = statistics.latency_us_max.max(tally.latency_us_max);
        let least = [statistics.latency_us_min, tally.latency_us_min];
        statistics.latency_us_min = least.into_iter().flatten().min();
        if let Some(last) = last {
            statistics.last = last;
        }
    }

    pub(super) fn reset_statistics(&self) {
        *self.statistics.lock() = Statistics::default();
    }

    /// Writes that are not yet answered.
    pub fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// Ends the connection as soon as its task looks.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.closing.notify_one();
    }

    /// Its session was opened or taken up.
    pub(super) fn open(&self, session: i64, timeout_ms: u32, asked: Duration) {
        self.opened_ms.store(millis(asked), Ordering::Relaxed);
        self.timeout_ms.store(timeout_ms, Ordering::Relaxed);
        self.session.store(session, Ordering::Relaxed);
    }

    /// Whether it is served in read-only mode.
    pub fn is_read_only(&self) -> bool {
        self.is_read_only.load(Ordering::Relaxed)
    }

    pub(super) fn restrict_to_reads(&self) {
        self.is_read_only.store(true, Ordering::Relaxed);
    }

    pub(super) fn hear(&self, now: Duration) {
        self.heard_ms.store(millis(now), Ordering::Relaxed);
    }

    /// Waits for [`Client::close`].
    pub(super) async fn closing(&self) {
        while !self.closed.load(Ordering::Acquire) {
            self.closing.notified().await;
        }
    }

    /// Waits for something in the inbox; may return without reason.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Adds an event. A client that does not take its events is disconnected.
    pub(super) fn push_event(&self, zxid: i64, frame: Bytes) {
        let mut queue = self.queue.lock();
        queue.event_bytes += frame.len();
        if queue.event_bytes > limits::CONNECTION_OUTPUT_BYTES_MAX {
            queue.events.clear();
            tracing::warn!(peer = %self.peer, "closed: the client does not take its watch events");
            return self.close();
        }
        queue.events.push_back((zxid, frame));
        // Release: whoever loads a view published after this sees that there are events.
        self.events.store(queue.events.len(), Ordering::Release);
    }

    pub(super) fn push_answer(&self, answer: Answer) {
        self.queue.lock().answers.push_back(answer);
    }

    pub(super) fn end(&self) {
        self.queue.lock().ended = true;
    }

    /// Takes the events up to a zxid, in order.
    pub(super) fn take_events(&self, upto: i64, mut take: impl FnMut(Bytes)) {
        if self.events.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut queue = self.queue.lock();
        while queue.events.front().is_some_and(|(zxid, _)| *zxid <= upto)
            && let Some((_, frame)) = queue.events.pop_front()
        {
            queue.event_bytes = queue.event_bytes.saturating_sub(frame.len());
            take(frame);
        }
        self.events.store(queue.events.len(), Ordering::Release);
    }

    /// Takes the answers, and whether the session has ended with them.
    pub(super) fn take_answers(&self) -> (VecDeque<Answer>, bool) {
        let mut queue = self.queue.lock();
        (std::mem::take(&mut queue.answers), queue.ended)
    }
}
