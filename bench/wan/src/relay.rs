//! A relay: a loopback port that stands for a server on the far side of a link.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use crate::link::Link;
use crate::transit::Transit;

/// The most clients of one relay. Each takes a socket; a server that restarts comes as a new client.
pub const CLIENTS_MAX: usize = 128;

/// The longest UDP payload.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Room for a burst while the relay is not scheduled; the system grants what its limits allow.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// After an error of a socket, so that one that persists does not burn a core.
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// The way between the clients of one region and one server of another.
pub(crate) struct Route {
    pub(crate) target: SocketAddr,
    pub(crate) onward: Arc<Link>,
    pub(crate) back: Arc<Link>,
    pub(crate) transit: Arc<Transit>,
}

/// Opens a relay. It runs until aborted.
pub(crate) fn open(route: Route) -> io::Result<(SocketAddr, AbortHandle)> {
    let port = Port::open(route.target)?;
    let address = port.egress.local_addr()?;
    let relay = Relay { route: Arc::new(route), port, clients: HashMap::new() };
    Ok((address, tokio::spawn(relay.run()).abort_handle()))
}

struct Relay {
    route: Arc<Route>,
    port: Port,
    clients: HashMap<SocketAddr, Client>,
}

impl Relay {
    async fn run(mut self) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let (datagram, client) = self.port.receive(&mut buffer).await;
            if let Err(error) = self.forward(client, datagram) {
                tracing::warn!(%client, target = %self.route.target, %error, "client not relayed");
            }
        }
    }

    fn forward(&mut self, address: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let now = Instant::now();
        if let Some(client) = self.clients.get_mut(&address) {
            client.last_sent = now;
            client.send(&self.route, datagram);
            return Ok(());
        }
        if self.clients.len() >= CLIENTS_MAX {
            self.displace_client();
        }
        let client = Client::open(&self.route, &self.port, address, now)?;
        client.send(&self.route, datagram);
        self.clients.insert(address, client);
        Ok(())
    }

    fn displace_client(&mut self) {
        let idle_longest = self.clients.iter().min_by_key(|(_, client)| client.last_sent);
        if let Some(address) = idle_longest.map(|(address, _)| *address) {
            self.clients.remove(&address);
        }
    }
}

/// A client of a relay: it has a port of its own, so that the server can tell clients apart.
struct Client {
    egress: Arc<UdpSocket>,
    answers: AbortHandle,
    last_sent: Instant,
}

impl Client {
    fn open(route: &Arc<Route>, relay: &Port, address: SocketAddr, now: Instant) -> io::Result<Self> {
        let port = Port::open(route.target)?;
        let egress = Arc::clone(&port.egress);
        let answers = return_answers(Arc::clone(route), port, Arc::clone(&relay.egress), address);
        Ok(Self { egress, answers: tokio::spawn(answers).abort_handle(), last_sent: now })
    }

    fn send(&self, route: &Route, datagram: &[u8]) {
        route.transit.send(&route.onward, &self.egress, route.target, datagram);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

/// Sends what the server answers to one client back through the relay's port.
async fn return_answers(route: Arc<Route>, port: Port, egress: Arc<UdpSocket>, client: SocketAddr) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let (datagram, sender) = port.receive(&mut buffer).await;
        if sender == route.target {
            route.transit.send(&route.back, &egress, client, datagram);
        }
    }
}

/// A loopback socket: the runtime receives from it, the transit thread sends through it.
struct Port {
    ingress: tokio::net::UdpSocket,
    egress: Arc<UdpSocket>,
}

impl Port {
    /// Opens a port of the address family of `peer`.
    fn open(peer: SocketAddr) -> io::Result<Self> {
        let loopback: IpAddr = match peer {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let egress = UdpSocket::bind((loopback, 0))?;
        egress.set_nonblocking(true)?;
        socket2::SockRef::from(&egress).set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
        let ingress = tokio::net::UdpSocket::from_std(egress.try_clone()?)?;
        Ok(Self { ingress, egress: Arc::new(egress) })
    }

    async fn receive<'b>(&self, buffer: &'b mut [u8]) -> (&'b [u8], SocketAddr) {
        loop {
            match self.ingress.recv_from(buffer).await {
                Ok((length, sender)) => {
                    let (datagram, _) = buffer.split_at(length);
                    return (datagram, sender);
                }
                Err(error) => {
                    tracing::debug!(%error, "relay could not receive");
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
    }
}
