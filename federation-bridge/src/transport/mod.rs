//! Connections between the regions: QUIC with mutual TLS 1.3.
//!
//! A [`Transport`] is one UDP endpoint that dials and is dialled. Between two servers there is one
//! connection per direction of dialling; on it the dialling side opens streams, each for a *lane*: one
//! byte at its start that says what the stream is for. Who the other end is comes from its certificate
//! and is verified in both directions before a stream passes.
//!
//! **Loss of a peer.** A peer that is cut off shows as an error on all streams after the idle timeout at
//! the latest. A peer whose process was replaced answers packets of the old connection with a
//! stateless reset, and the error shows after one round trip. The key of the resets is derived from the
//! private key of its certificate, so that it outlives the process; after a restart with another private key the idle
//! timeout has to do.
//!
//! **Bounds.** See `meridian_seam::limits` (`BRIDGE_*`). A connection may have 8 MiB under way to a
//! stream and 16 MiB in all, more than six times what 100 Mbit/s over 200 ms hold. A peer that sends
//! garbage loses its own connection at most; datagrams of strangers are dropped by QUIC.

mod acceptor;
mod quic;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian_seam::Environment;
use meridian_seam::entropy::Entropy;
use meridian_seam::limits;
use meridian_seam::net::{BoxStream, Net};
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::certificates::{Identity, PeerName};
use acceptor::Acceptor;

/// One endpoint, server and client. It closes when it is dropped.
pub struct Transport {
    endpoint: quinn::Endpoint,
    net: Arc<dyn Net>,
    entropy: Arc<dyn Entropy>,
    identity: Arc<Identity>,
    settings: Settings,
    outgoing: Mutex<HashMap<PeerName, Dialled>>,
    incoming: tokio::sync::Mutex<mpsc::Receiver<Incoming>>,
}

/// The connection to one peer, locked while it is being made.
type Dialled = Arc<tokio::sync::Mutex<Option<quinn::Connection>>>;

/// What may be set. The defaults suit round trips up to half a second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A sign of life is sent after this much silence; it also bounds the back-off after a cut.
    pub keep_alive: Duration,
    /// A connection is lost after this much silence of the other end; both sides' smaller value holds.
    pub idle_timeout: Duration,
    /// Bounds connecting, opening a stream, and the peer's part of both.
    pub handshake_timeout: Duration,
    /// How the sending rate is found.
    pub congestion: Congestion,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(3),
            congestion: Congestion::Bbr,
        }
    }
}

/// How the sending rate is found.
///
/// One stream over an emulated path of 100 ms round trip on two cores (`cargo run --profile test -p
/// meridian-bridge --example throughput`), in Mbit/s: with 1 % loss BBR 250 and CUBIC 2, without loss
/// 550 and 540; at 200 ms with 1 % loss 117 and 1.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Congestion {
    /// From the measured bandwidth: a lost packet does not slow it down by itself.
    Bbr,
    /// From losses. It draws no random numbers, so that a simulation repeats itself.
    Cubic,
}

/// Where a peer is reached and who must answer there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddress {
    /// The region that must answer.
    pub region: String,
    /// The server that must answer.
    pub server: String,
    /// `host:port`.
    pub address: String,
}

/// A stream that a peer opened.
pub struct Incoming {
    /// Who opened it, from its certificate.
    pub peer: PeerName,
    /// What it is for. Lanes that are not known are to be dropped, which closes the stream.
    pub lane: u8,
    /// The stream after the lane byte.
    pub stream: BoxStream,
}

impl Transport {
    /// Opens the endpoint of the server `name` at `address`. Bind `[::]` where peers have addresses of
    /// both families: an IPv4 endpoint can't reach IPv6 addresses. It must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// If the certificate is not that of `name`, if the address can't be bound, or if a setting is out
    /// of bounds.
    pub fn bind(
        env: &Environment,
        address: SocketAddr,
        identity: Arc<Identity>,
        name: &PeerName,
        settings: Settings,
    ) -> io::Result<Self> {
        identity.expect_name(name)?;
        let server_config = quic::server_config(&identity, &settings)?;
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            quic::endpoint_config(&identity, &env.entropy),
            Some(server_config.clone()),
            env.net.bind_udp(address)?,
            env.net.quic_runtime(),
        )?;
        let (streams, incoming) = mpsc::channel(limits::BRIDGE_STREAMS_WAITING_MAX);
        let acceptor =
            Acceptor::new(Arc::clone(&identity), server_config, settings.handshake_timeout, streams);
        tokio::spawn(acceptor.run(endpoint.clone()));
        Ok(Self {
            endpoint,
            net: Arc::clone(&env.net),
            entropy: Arc::clone(&env.entropy),
            identity,
            settings,
            outgoing: Mutex::default(),
            incoming: tokio::sync::Mutex::new(incoming),
        })
    }

    /// The address bound, with the port that was chosen if port 0 was asked for.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The connection to a peer: the one that stands, or a new one. The peer's name is resolved anew for
    /// a new one. Only one attempt per peer is under way at a time; the caller decides when to try
    /// again.
    ///
    /// # Errors
    /// If the name can't be resolved, if the peer can't be reached within the handshake timeout, if
    /// it is not the server that it should be, or if it refuses this server's certificate.
    pub async fn connect(&self, peer: &PeerAddress) -> io::Result<Connection> {
        let name = PeerName::new(peer.region.clone(), peer.server.clone());
        let dialled = self.dialled(&name);
        let mut dialled = dialled.lock().await;
        let quic = match dialled.take() {
            Some(standing) if standing.close_reason().is_none() => standing,
            _ => self.dial(&name, &peer.address).await.map_err(|error| {
                io::Error::new(error.kind(), format!("cannot connect to {name} at {}: {error}", peer.address))
            })?,
        };
        *dialled = Some(quic.clone());
        Ok(Connection { quic, peer: name, open_timeout: self.settings.handshake_timeout })
    }

    /// The place of the connection to a peer; places of peers that are gone are given up.
    fn dialled(&self, name: &PeerName) -> Dialled {
        let is_live = |dialled: &Dialled| {
            let Ok(connection) = dialled.try_lock() else { return true };
            connection.as_ref().is_some_and(|c| c.close_reason().is_none())
        };
        let mut outgoing = self.outgoing.lock();
        outgoing.retain(|_, dialled| Arc::strong_count(dialled) > 1 || is_live(dialled));
        Arc::clone(outgoing.entry(name.clone()).or_default())
    }

    async fn dial(&self, name: &PeerName, address: &str) -> io::Result<quinn::Connection> {
        let attempt = async {
            let dns_name = name.dns_name()?;
            let address = self.net.resolve(address.to_owned()).await?;
            let config = quic::client_config(&self.identity, &self.settings, &self.entropy)?;
            let connecting =
                self.endpoint.connect_with(config, address, &dns_name).map_err(io::Error::other)?;
            let connection = connecting.await?;
            let shown = quic::peer_of(&connection)?;
            if shown != *name {
                connection.close(quic::CLOSE_REFUSED, b"another server was expected");
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{shown} answered")));
            }
            // The peer judges our certificate after the handshake is complete on this side.
            connection.accept_uni().await?;
            Ok(connection)
        };
        tokio::time::timeout(self.settings.handshake_timeout, attempt).await.unwrap_or_else(|_| {
            let after = format!("no answer within {:?}", self.settings.handshake_timeout);
            Err(io::Error::new(io::ErrorKind::TimedOut, after))
        })
    }

    /// The next stream that a peer opened; `None` once the transport is closed. Cancelling it loses
    /// nothing.
    pub async fn accept(&self) -> Option<Incoming> {
        self.incoming.lock().await.recv().await
    }

    /// Closes all connections and waits until the peers have been told, for a second at most.
    pub async fn close(&self) {
        self.endpoint.close(quic::CLOSE_DONE, b"the server is stopping");
        let _ = tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.endpoint.close(quic::CLOSE_DONE, b"the server is stopping");
    }
}

/// A connection to a peer. Clones share it; it stays open until it is lost, closed, or the transport is
/// dropped.
#[derive(Clone)]
pub struct Connection {
    quic: quinn::Connection,
    peer: PeerName,
    open_timeout: Duration,
}

impl Connection {
    /// The other end, as its certificate says.
    pub fn peer(&self) -> &PeerName {
        &self.peer
    }

    /// Opens a stream for a lane.
    ///
    /// # Errors
    /// If the connection is lost, or if the peer lets no more streams open within the handshake timeout.
    pub async fn open(&self, lane: u8) -> io::Result<BoxStream> {
        let opening = async {
            let (mut send, receive) = self.quic.open_bi().await?;
            send.write_all(&[lane]).await?;
            send.flush().await?;
            Ok(Box::new(tokio::io::join(receive, send)) as BoxStream)
        };
        tokio::time::timeout(self.open_timeout, opening).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("{} takes no more streams", self.peer)))
        })
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.quic.close_reason().is_some()
    }

    /// Waits until the connection has ended and says why.
    pub async fn closed(&self) -> io::Error {
        self.quic.closed().await.into()
    }

    /// Ends the connection and all its streams at once; what is under way is lost.
    pub fn close(&self) {
        self.quic.close(quic::CLOSE_DONE, b"");
    }

    /// QUIC's own smoothed estimate of the round-trip time.
    pub fn smoothed_rtt(&self) -> Duration {
        self.quic.rtt()
    }

    /// Sends a datagram, which may get lost. If too many wait, the oldest of them is dropped.
    pub(crate) fn send_datagram(&self, datagram: Bytes) -> io::Result<()> {
        self.quic.send_datagram(datagram).map_err(io::Error::other)
    }

    /// The next datagram. Cancelling it loses nothing.
    pub(crate) async fn receive_datagram(&self) -> io::Result<Bytes> {
        Ok(self.quic.read_datagram().await?)
    }
}
