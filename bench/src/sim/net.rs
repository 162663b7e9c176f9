//! The simulated network: byte streams and datagrams between hosts, with delays, losses and cuts per
//! direction.
//!
//! Streams behave as TCP does seen from a program: in order and complete, delayed while packets are lost,
//! reset when the other end no longer knows them or when nothing gets through for [`STREAM_TIMEOUT_MS`].

mod datagram;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::Waker;

use futures::future::BoxFuture;
use meridian_seam::net::{BoxStream, Listener, Net};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::trace::Trace;
use datagram::Socket;
use stream::{End, EndId, Listening};

/// A host: its place among all hosts.
pub(super) type HostId = u8;

/// A lost segment of a stream is sent again after this time, then after twice as long, and so on.
const RESEND_MS: u64 = 200;
/// ... but never later than this.
const RESEND_MS_MAX: u64 = 1_000;
/// A stream on which nothing gets through for so long is reset at the sending end.
const STREAM_TIMEOUT_MS: u64 = 15_000;
/// Bytes written and not yet read by the other end; beyond it a writer waits.
const STREAM_WINDOW_BYTES: usize = 1 << 20;

/// All hosts' network. Clones share it.
#[derive(Clone)]
pub(super) struct Wires(Arc<Mutex<State>>);

/// What happens to packets from one host to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Link {
    /// One way.
    pub(super) delay_ms: u64,
    /// Added at random to every packet, up to this.
    pub(super) jitter_ms: u64,
}

struct State {
    now_ms: u64,
    /// Tells events of the same time apart: first scheduled, first happened.
    scheduled: u64,
    events: BTreeMap<(u64, u64), Event>,
    random: StdRng,
    trace: Trace,
    links: BTreeMap<(HostId, HostId), Link>,
    cut: BTreeSet<(HostId, HostId)>,
    /// The share of packets that are lost.
    loss: f64,
    /// The share of datagrams that come twice.
    duplication: f64,
    /// What packets take longer, at most.
    delays: BTreeMap<(HostId, HostId), u64>,
    /// Hosts without power: nothing answers for them.
    down: BTreeSet<HostId>,
    listening: BTreeMap<SocketAddr, Listening>,
    ends: BTreeMap<EndId, End>,
    next_stream: u64,
    sockets: BTreeMap<SocketAddr, Socket>,
    wakers: Vec<Waker>,
}

enum Event {
    /// A stream asks to be accepted.
    Knock {
        from: EndId,
        attempt: u32,
    },
    /// The answer to that.
    Answered {
        to: EndId,
        attempt: u32,
        accepted: bool,
    },
    /// The oldest bytes on their way to an end may arrive.
    Arrive {
        to: EndId,
    },
    /// The other end is told that its stream is unknown.
    Reset {
        to: EndId,
    },
    Datagram {
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    },
}

pub(super) fn address_of(host: HostId, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, host)), port)
}

fn host_of(address: SocketAddr) -> HostId {
    match address.ip() {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => 0,
    }
}

impl Wires {
    pub(super) fn new(seed: u64, trace: Trace) -> Self {
        Self(Arc::new(Mutex::new(State {
            now_ms: 0,
            scheduled: 0,
            events: BTreeMap::new(),
            random: StdRng::seed_from_u64(seed),
            trace,
            links: BTreeMap::new(),
            cut: BTreeSet::new(),
            loss: 0.0,
            duplication: 0.0,
            delays: BTreeMap::new(),
            down: BTreeSet::new(),
            listening: BTreeMap::new(),
            ends: BTreeMap::new(),
            next_stream: 1,
            sockets: BTreeMap::new(),
            wakers: Vec::new(),
        })))
    }

    /// The sockets of a host.
    pub(super) fn net_of(&self, host: HostId) -> Arc<dyn Net> {
        Arc::new(HostNet { wires: self.clone(), host })
    }

    pub(super) fn connect_hosts(&self, from: HostId, to: HostId, link: Link) {
        self.0.lock().links.insert((from, to), link);
    }

    /// Cuts one direction, or heals it.
    pub(super) fn set_cut(&self, from: HostId, to: HostId, cut: bool) {
        let mut state = self.0.lock();
        if cut {
            state.cut.insert((from, to));
        } else {
            state.cut.remove(&(from, to));
        }
    }

    pub(super) fn set_loss(&self, share: f64) {
        self.0.lock().loss = share;
    }

    pub(super) fn set_duplication(&self, share: f64) {
        self.0.lock().duplication = share;
    }

    /// Packets of one direction take longer, each by something up to this.
    pub(super) fn set_delay(&self, from: HostId, to: HostId, up_to_ms: u64) {
        let mut state = self.0.lock();
        if up_to_ms > 0 {
            state.delays.insert((from, to), up_to_ms);
        } else {
            state.delays.remove(&(from, to));
        }
    }

    /// Heals everything.
    pub(super) fn heal(&self) {
        let mut state = self.0.lock();
        state.cut.clear();
        state.delays.clear();
        (state.loss, state.duplication) = (0.0, 0.0);
    }

    /// Whether everything gets through as it should.
    pub(super) fn is_whole(&self) -> bool {
        let state = self.0.lock();
        let faultless = state.loss + state.duplication <= 0.0;
        faultless && state.cut.is_empty() && state.delays.is_empty() && state.down.is_empty()
    }

    /// A host has lost its power (then nothing answers for it) or its process (then its streams are reset).
    pub(super) fn stop_host(&self, host: HostId, power_is_off: bool) {
        let mut state = self.0.lock();
        if power_is_off {
            state.down.insert(host);
        }
        state.listening.retain(|address, _| host_of(*address) != host);
        state.sockets.retain(|address, _| host_of(*address) != host);
        let ends: Vec<EndId> =
            state.ends.iter().filter(|(_, end)| end.host == host).map(|(id, _)| *id).collect();
        for id in ends {
            state.ends.remove(&id);
            if !power_is_off {
                state.send_reset(host, id.other());
            } else if let Some(other) = state.ends.get_mut(&id.other()) {
                other.forget_what_is_on_its_way();
            }
        }
    }

    pub(super) fn power_on(&self, host: HostId) {
        self.0.lock().down.remove(&host);
    }

    /// Moves the time on and lets everything happen that is due.
    pub(super) fn advance_to(&self, now_ms: u64) {
        let mut state = self.0.lock();
        while let Some(entry) = state.events.first_entry()
            && entry.key().0 <= now_ms
        {
            let ((due_ms, _), event) = entry.remove_entry();
            state.now_ms = state.now_ms.max(due_ms);
            state.happen(event);
        }
        state.now_ms = now_ms;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.0.lock().now_ms
    }
}

impl State {
    fn schedule(&mut self, due_ms: u64, event: Event) {
        self.scheduled += 1;
        self.events.insert((due_ms, self.scheduled), event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Knock { from, attempt } => self.knock(from, attempt),
            Event::Answered { to, attempt, accepted } => self.answered(to, attempt, accepted),
            Event::Arrive { to } => self.arrive(to),
            Event::Reset { to } => self.reset(to),
            Event::Datagram { from, to, bytes } => self.deliver(from, to, bytes),
        }
    }

    /// Whether packets get from one host to another at all.
    fn is_cut(&self, from: HostId, to: HostId) -> bool {
        self.cut.contains(&(from, to)) || self.down.contains(&from) || self.down.contains(&to)
    }

    /// Whether this packet gets lost.
    fn loses(&mut self, from: HostId, to: HostId) -> bool {
        self.is_cut(from, to) || (self.loss > 0.0 && from != to && self.random.random_bool(self.loss))
    }

    fn delay_ms(&mut self, from: HostId, to: HostId) -> u64 {
        let link = self.links.get(&(from, to)).copied().unwrap_or(Link { delay_ms: 1, jitter_ms: 0 });
        let jitter_ms = if link.jitter_ms == 0 { 0 } else { self.random.random_range(0..=link.jitter_ms) };
        let longer_ms =
            self.delays.get(&(from, to)).map_or(0, |up_to_ms| self.random.random_range(0..=*up_to_ms));
        link.delay_ms + jitter_ms + longer_ms
    }
}

struct HostNet {
    wires: Wires,
    host: HostId,
}

fn parse(address: &str) -> io::Result<SocketAddr> {
    address.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("no address: {address}")))
}

impl Net for HostNet {
    fn listen(&self, address: String) -> BoxFuture<'static, io::Result<Box<dyn Listener>>> {
        let listener = parse(&address).and_then(|address| self.wires.listen(address));
        Box::pin(std::future::ready(listener.map(|listener| Box::new(listener) as Box<dyn Listener>)))
    }

    fn connect(&self, address: String) -> BoxFuture<'static, io::Result<BoxStream>> {
        let (wires, host) = (self.wires.clone(), self.host);
        Box::pin(async move {
            let stream = wires.connect(host, parse(&address)?);
            stream.connected().await?;
            Ok(Box::new(stream) as BoxStream)
        })
    }

    fn resolve(&self, address: String) -> BoxFuture<'static, io::Result<SocketAddr>> {
        Box::pin(std::future::ready(parse(&address)))
    }

    fn bind_udp(&self, address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        self.wires.bind(address)
    }

    fn quic_runtime(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(quinn::TokioRuntime)
    }
}
