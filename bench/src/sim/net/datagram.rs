//! Datagrams, for QUIC.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use rand::Rng;

use super::{Event, State, Wires, host_of};

/// Datagrams that wait at a socket; what comes beyond is dropped, as by a kernel.
const WAITING_MAX: usize = 4_096;

#[derive(Default)]
pub(super) struct Socket {
    waiting: VecDeque<(SocketAddr, Vec<u8>)>,
    reader: Option<Waker>,
}

impl Wires {
    pub(super) fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let mut state = self.0.lock();
        if state.sockets.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        state.sockets.insert(address, Socket::default());
        Ok(Arc::new(BoundSocket { wires: self.clone(), address }))
    }
}

impl State {
    fn is_duplicated(&mut self) -> bool {
        self.duplication > 0.0 && self.random.random_bool(self.duplication)
    }

    pub(super) fn deliver(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        if self.is_cut(host_of(from), host_of(to)) {
            return;
        }
        self.trace.packet(self.now_ms, "datagram", host_of(from), host_of(to), bytes.len());
        let Some(socket) = self.sockets.get_mut(&to) else { return };
        if socket.waiting.len() < WAITING_MAX {
            socket.waiting.push_back((from, bytes));
            self.wakers.extend(socket.reader.take());
        }
    }
}

struct BoundSocket {
    wires: Wires,
    address: SocketAddr,
}

impl fmt::Debug for BoundSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundSocket").field("address", &self.address).finish()
    }
}

impl AsyncUdpSocket for BoundSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut state = self.wires.0.lock();
        let (from, to) = (host_of(self.address), host_of(transmit.destination));
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for bytes in transmit.contents.chunks(size) {
            if state.loses(from, to) {
                continue;
            }
            let copies = if state.is_duplicated() { 2 } else { 1 };
            for _ in 0..copies {
                let due_ms = state.now_ms + state.delay_ms(from, to);
                let (from, to) = (self.address, transmit.destination);
                state.schedule(due_ms, Event::Datagram { from, to, bytes: bytes.to_vec() });
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.wires.0.lock();
        let Some(socket) = state.sockets.get_mut(&self.address) else { return Poll::Pending };
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let Some((from, bytes)) = socket.waiting.pop_front() else { break };
            let len = bytes.len().min(buffer.len());
            buffer[..len].copy_from_slice(&bytes[..len]);
            *meta = RecvMeta { addr: from, len, stride: len, ecn: None, dst_ip: None };
            count += 1;
        }
        if count > 0 {
            return Poll::Ready(Ok(count));
        }
        socket.reader = Some(context.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        self.wires.0.lock().sockets.remove(&self.address);
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
