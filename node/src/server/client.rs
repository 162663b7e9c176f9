//! What the rest of the server knows of a client's connection, and the inbox through which it is told.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use meridian_seam::limits;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::txn::Answer;

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
    /// When bytes came last, ms of the monotonic clock.
    heard_ms: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    pub(super) outstanding: AtomicUsize,
    queue: Mutex<Queue>,
    /// Events in the queue: looked at without the lock before every reply.
    events: AtomicUsize,
    wake: Notify,
    closed: AtomicBool,
    closing: Notify,
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
    pub(super) fn new(number: u64, peer: SocketAddr, handshake: Duration, now: Duration) -> Self {
        Self {
            number,
            peer,
            session: AtomicI64::new(0),
            timeout_ms: AtomicU32::new(u32::try_from(handshake.as_millis()).unwrap_or(u32::MAX)),
            heard_ms: AtomicU64::new(millis(now)),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            outstanding: AtomicUsize::new(0),
            queue: Mutex::default(),
            events: AtomicUsize::new(0),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            closing: Notify::new(),
        }
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

    /// Requests taken and answers given.
    pub fn packets(&self) -> (u64, u64) {
        (self.received.load(Ordering::Relaxed), self.sent.load(Ordering::Relaxed))
    }

    pub(super) fn count_packets(&self, received: u64, sent: u64) {
        self.received.fetch_add(received, Ordering::Relaxed);
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }

    pub(super) fn reset_packets(&self) {
        self.received.store(0, Ordering::Relaxed);
        self.sent.store(0, Ordering::Relaxed);
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

    pub(super) fn open(&self, session: i64, timeout_ms: u32) {
        self.timeout_ms.store(timeout_ms, Ordering::Relaxed);
        self.session.store(session, Ordering::Relaxed);
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

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
