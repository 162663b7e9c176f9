//! Byte streams, for clients and for the servers of a region.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use futures::future::BoxFuture;
use meridian_seam::net::{BoxStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Event, HostId, RESEND_MS, RESEND_MS_MAX, STREAM_TIMEOUT_MS, STREAM_WINDOW_BYTES, State, Wires,
    address_of, host_of,
};

/// A stream that nobody answers is given up after so many attempts, a second apart.
const KNOCKS_MAX: u32 = 6;
const KNOCK_INTERVAL_MS: u64 = 1_000;

/// One end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EndId {
    stream: u64,
    is_caller: bool,
}

impl EndId {
    pub(super) fn other(self) -> Self {
        Self { is_caller: !self.is_caller, ..self }
    }
}

pub(super) struct End {
    pub(super) host: HostId,
    peer: HostId,
    stage: Stage,
    /// What the other end has sent and the network has not yet brought, with the time at the earliest.
    on_their_way: VecDeque<(u64, Segment)>,
    /// When the oldest of them was first lost, and how often.
    lost: Option<(u64, u32)>,
    arrived: VecDeque<Bytes>,
    /// Nothing comes after what has arrived.
    ended: bool,
    /// Bytes that this end has sent and the other has not read.
    unread_bytes: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Knocking { at: SocketAddr },
    Open,
    Refused,
    Unreachable,
    Reset,
}

enum Segment {
    Bytes(Bytes),
    End,
}

#[derive(Default)]
pub(super) struct Listening {
    waiting: VecDeque<(EndId, HostId)>,
    acceptor: Option<Waker>,
}

impl End {
    fn new(host: HostId, peer: HostId, stage: Stage) -> Self {
        Self {
            host,
            peer,
            stage,
            on_their_way: VecDeque::new(),
            lost: None,
            arrived: VecDeque::new(),
            ended: false,
            unread_bytes: 0,
            reader: None,
            writer: None,
        }
    }

    fn check(&self) -> io::Result<()> {
        match self.stage {
            Stage::Open | Stage::Knocking { .. } => Ok(()),
            Stage::Refused => Err(io::ErrorKind::ConnectionRefused.into()),
            Stage::Unreachable => Err(io::ErrorKind::TimedOut.into()),
            Stage::Reset => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    /// The host of the other end has lost its power, and what it was to send again with it.
    pub(super) fn forget_what_is_on_its_way(&mut self) {
        self.on_their_way.clear();
    }

    fn take_wakers(&mut self) -> impl Iterator<Item = Waker> + use<> {
        self.reader.take().into_iter().chain(self.writer.take())
    }
}

impl Wires {
    pub(super) fn listen(&self, address: SocketAddr) -> io::Result<StreamListener> {
        let mut state = self.0.lock();
        if state.listening.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        state.listening.insert(address, Listening::default());
        Ok(StreamListener { wires: self.clone(), address })
    }

    pub(super) fn connect(&self, host: HostId, at: SocketAddr) -> Stream {
        let mut state = self.0.lock();
        let id = EndId { stream: state.next_stream, is_caller: true };
        state.next_stream += 1;
        state.ends.insert(id, End::new(host, host_of(at), Stage::Knocking { at }));
        let due_ms = state.now_ms + state.delay_ms(host, host_of(at));
        state.schedule(due_ms, Event::Knock { from: id, attempt: 1 });
        Stream { wires: self.clone(), id }
    }
}

impl State {
    pub(super) fn knock(&mut self, from: EndId, attempt: u32) {
        let Some(end) = self.ends.get_mut(&from) else { return };
        let Stage::Knocking { at } = end.stage else { return };
        let (host, peer) = (end.host, end.peer);
        if attempt > KNOCKS_MAX {
            end.stage = Stage::Unreachable;
            let wakers = end.take_wakers();
            return self.wakers.extend(wakers);
        }
        if self.loses(host, peer) {
            return self
                .schedule(self.now_ms + KNOCK_INTERVAL_MS, Event::Knock { from, attempt: attempt + 1 });
        }
        let accepted = match self.listening.get_mut(&at) {
            // A caller whose first answer was lost knocks again.
            Some(_) if self.ends.contains_key(&from.other()) => true,
            Some(listening) => {
                listening.waiting.push_back((from.other(), host));
                self.wakers.extend(listening.acceptor.take());
                self.ends.insert(from.other(), End::new(peer, host, Stage::Open));
                true
            }
            None => false,
        };
        self.trace.packet(self.now_ms, "knock", host, peer, usize::from(accepted));
        let due_ms = self.now_ms + self.delay_ms(peer, host);
        self.schedule(due_ms, Event::Answered { to: from, attempt, accepted });
    }

    pub(super) fn answered(&mut self, to: EndId, attempt: u32, accepted: bool) {
        let Some(end) = self.ends.get(&to) else { return };
        if !matches!(end.stage, Stage::Knocking { .. }) {
            return;
        }
        let (host, peer) = (end.host, end.peer);
        if self.loses(peer, host) {
            return self
                .schedule(self.now_ms + KNOCK_INTERVAL_MS, Event::Knock { from: to, attempt: attempt + 1 });
        }
        if let Some(end) = self.ends.get_mut(&to) {
            end.stage = if accepted { Stage::Open } else { Stage::Refused };
            let wakers = end.take_wakers();
            self.wakers.extend(wakers);
        }
    }

    /// Puts a segment on its way to an end.
    fn send(&mut self, from: HostId, to: EndId, segment: Segment) {
        let Some(peer) = self.ends.get(&to.other()).map(|end| end.peer) else { return };
        let mut due_ms = self.now_ms + self.delay_ms(from, peer);
        let Some(end) = self.ends.get_mut(&to) else {
            // The other end is gone: it will be said so, if anybody is there to say it.
            return self.schedule(due_ms, Event::Arrive { to });
        };
        let is_first = end.on_their_way.is_empty();
        if let Some((before_ms, _)) = end.on_their_way.back() {
            due_ms = due_ms.max(*before_ms);
        }
        end.on_their_way.push_back((due_ms, segment));
        if is_first {
            self.schedule(due_ms, Event::Arrive { to });
        }
    }

    pub(super) fn send_reset(&mut self, from: HostId, to: EndId) {
        let Some(host) = self.ends.get(&to).map(|end| end.host) else { return };
        let due_ms = self.now_ms + self.delay_ms(from, host);
        self.schedule(due_ms, Event::Reset { to });
    }

    pub(super) fn reset(&mut self, to: EndId) {
        let Some(end) = self.ends.get(&to) else { return };
        let (host, peer) = (end.host, end.peer);
        if self.loses(peer, host) {
            return;
        }
        self.trace.packet(self.now_ms, "reset", peer, host, 0);
        self.break_off(to);
    }

    fn break_off(&mut self, id: EndId) {
        if let Some(end) = self.ends.get_mut(&id) {
            end.stage = Stage::Reset;
            let wakers = end.take_wakers();
            self.wakers.extend(wakers);
        }
    }

    /// Brings what is due to an end, unless it gets lost and has to be sent again.
    pub(super) fn arrive(&mut self, to: EndId) {
        loop {
            let Some(end) = self.ends.get(&to) else { return self.answer_for_the_gone(to) };
            let (from, host) = (end.peer, end.host);
            let Some((due_ms, _)) = end.on_their_way.front() else { return };
            if *due_ms > self.now_ms {
                let due_ms = *due_ms;
                return self.schedule(due_ms, Event::Arrive { to });
            }
            let (is_lost, now_ms) = (self.loses(from, host), self.now_ms);
            let Some(end) = self.ends.get_mut(&to) else { return };
            if is_lost {
                let (since_ms, count) = end.lost.unwrap_or((now_ms, 0));
                end.lost = Some((since_ms, count + 1));
                if now_ms - since_ms > STREAM_TIMEOUT_MS {
                    return self.break_off(to.other());
                }
                let pause_ms = (RESEND_MS << count.min(8)).min(RESEND_MS_MAX);
                return self.schedule(now_ms + pause_ms, Event::Arrive { to });
            }
            end.lost = None;
            let Some((_, segment)) = end.on_their_way.pop_front() else { return };
            let size = match segment {
                Segment::Bytes(bytes) => {
                    let size = bytes.len();
                    end.arrived.push_back(bytes);
                    size
                }
                Segment::End => {
                    end.ended = true;
                    0
                }
            };
            let reader = end.reader.take();
            self.wakers.extend(reader);
            self.trace.packet(self.now_ms, "stream", from, host, size);
        }
    }

    /// Something came for an end that does not exist any more: its host says so, or nobody does.
    fn answer_for_the_gone(&mut self, to: EndId) {
        let now_ms = self.now_ms;
        let Some(sender) = self.ends.get_mut(&to.other()) else { return };
        let (from, host) = (sender.host, sender.peer);
        let (since_ms, _) = *sender.lost.get_or_insert((now_ms, 0));
        if now_ms - since_ms > STREAM_TIMEOUT_MS {
            return self.break_off(to.other());
        }
        if self.loses(from, host) {
            return self.schedule(now_ms + RESEND_MS_MAX, Event::Arrive { to });
        }
        self.send_reset(host, to.other());
    }
}

pub(super) struct StreamListener {
    wires: Wires,
    address: SocketAddr,
}

impl Listener for StreamListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxStream, SocketAddr)>> {
        Box::pin(poll_fn(move |context| {
            let mut state = self.wires.0.lock();
            let Some(listening) = state.listening.get_mut(&self.address) else { return Poll::Pending };
            let Some((id, caller)) = listening.waiting.pop_front() else {
                listening.acceptor = Some(context.waker().clone());
                return Poll::Pending;
            };
            let stream = Stream { wires: self.wires.clone(), id };
            Poll::Ready(Ok((Box::new(stream) as BoxStream, address_of(caller, 1_024))))
        }))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Drop for StreamListener {
    fn drop(&mut self) {
        self.wires.0.lock().listening.remove(&self.address);
    }
}

/// One end of a stream, as a program has it.
pub(super) struct Stream {
    wires: Wires,
    id: EndId,
}

impl Stream {
    /// Waits until the other end has accepted.
    pub(super) async fn connected(&self) -> io::Result<()> {
        poll_fn(|context| {
            let mut state = self.wires.0.lock();
            let Some(end) = state.ends.get_mut(&self.id) else { return Poll::Ready(Err(gone())) };
            if matches!(end.stage, Stage::Knocking { .. }) {
                end.reader = Some(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(end.check())
        })
        .await
    }
}

fn gone() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.wires.0.lock();
        let Some(end) = state.ends.get_mut(&self.id) else { return Poll::Ready(Err(gone())) };
        let mut read = 0;
        while buffer.remaining() > 0
            && let Some(bytes) = end.arrived.front_mut()
        {
            let len = bytes.len().min(buffer.remaining());
            buffer.put_slice(&bytes[..len]);
            bytes.advance(len);
            read += len;
            if bytes.is_empty() {
                end.arrived.pop_front();
            }
        }
        if read == 0 {
            end.check()?;
            if end.ended {
                return Poll::Ready(Ok(()));
            }
            end.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        if let Some(sender) = state.ends.get_mut(&self.id.other()) {
            sender.unread_bytes = sender.unread_bytes.saturating_sub(read);
            let writer = sender.writer.take();
            state.wakers.extend(writer);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.wires.0.lock();
        let Some(end) = state.ends.get_mut(&self.id) else { return Poll::Ready(Err(gone())) };
        end.check()?;
        let room = STREAM_WINDOW_BYTES.saturating_sub(end.unread_bytes);
        if room == 0 {
            end.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let len = bytes.len().min(room);
        end.unread_bytes += len;
        let host = end.host;
        state.send(host, self.id.other(), Segment::Bytes(Bytes::copy_from_slice(&bytes[..len])));
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.wires.0.lock();
        let Some(host) = state.ends.get(&self.id).map(|end| end.host) else { return Poll::Ready(Ok(())) };
        state.send(host, self.id.other(), Segment::End);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.wires.0.lock();
        // If the host has stopped, nothing more is said.
        let Some(host) = state.ends.get(&self.id).map(|end| end.host) else { return };
        state.send(host, self.id.other(), Segment::End);
        state.ends.remove(&self.id);
    }
}
