//! The side that is dialled: admits peers and hands their streams over.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use meridian_seam::limits;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{Incoming, quic};
use crate::certificates::{Identity, PeerName};
use crate::probe;

/// Admits connections and reads the lanes of their streams.
pub(super) struct Acceptor {
    identity: Arc<Identity>,
    config: quinn::ServerConfig,
    handshake_timeout: Duration,
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    of_peer: Mutex<HashMap<PeerName, VecDeque<quinn::Connection>>>,
    streams: mpsc::Sender<Incoming>,
}

impl Acceptor {
    pub(super) fn new(
        identity: Arc<Identity>,
        config: quinn::ServerConfig,
        handshake_timeout: Duration,
        streams: mpsc::Sender<Incoming>,
    ) -> Arc<Self> {
        Arc::new(Self {
            identity,
            config,
            handshake_timeout,
            handshakes: Arc::new(Semaphore::new(limits::BRIDGE_HANDSHAKES_MAX)),
            connections: Arc::new(Semaphore::new(limits::BRIDGE_CONNECTIONS_MAX)),
            of_peer: Mutex::default(),
            streams,
        })
    }

    /// Runs until the endpoint is closed.
    pub(super) async fn run(self: Arc<Self>, endpoint: quinn::Endpoint) {
        while let Some(arriving) = endpoint.accept().await {
            let is_busy = self.handshakes.available_permits() < limits::BRIDGE_HANDSHAKES_MAX / 2;
            if is_busy && !arriving.remote_address_validated() && arriving.may_retry() {
                // Cannot fail: it may retry.
                let _ = arriving.retry();
                continue;
            }
            match Arc::clone(&self.handshakes).try_acquire_owned() {
                Ok(permit) => drop(tokio::spawn(Arc::clone(&self).serve(arriving, permit))),
                Err(_) => arriving.refuse(),
            }
        }
    }

    /// One connection from its first packet to its end.
    async fn serve(self: Arc<Self>, arriving: quinn::Incoming, handshaking: OwnedSemaphorePermit) {
        let address = arriving.remote_address();
        let admitted = tokio::time::timeout(self.handshake_timeout, self.admit(arriving)).await;
        drop(handshaking);
        let (connection, peer, _room) = match admitted {
            Ok(Ok(admitted)) => admitted,
            Ok(Err(error)) => return tracing::warn!(%address, %error, "connection refused"),
            Err(_) => return tracing::debug!(%address, "handshake not completed in time"),
        };
        tracing::info!(%address, %peer, "connected");
        self.enter(&peer, &connection);
        let error = Arc::clone(&self).take_streams(&connection, &peer).await;
        self.leave(&peer, &connection);
        tracing::info!(%address, %peer, %error, "disconnected");
    }

    async fn admit(
        &self,
        arriving: quinn::Incoming,
    ) -> io::Result<(quinn::Connection, PeerName, OwnedSemaphorePermit)> {
        let config = quic::with_identity(&self.config, &self.identity)?;
        let connection = arriving.accept_with(config)?.await?;
        let peer = quic::peer_of(&connection).inspect_err(|_| {
            connection.close(quic::CLOSE_REFUSED, b"the certificate names no server of a mesh");
        })?;
        let room = Arc::clone(&self.connections).try_acquire_owned().map_err(|_| {
            connection.close(quic::CLOSE_ROOM, b"too many connections");
            io::Error::new(io::ErrorKind::QuotaExceeded, "too many connections")
        })?;
        // Tells the peer that it has been admitted.
        connection.open_uni().await?.finish().map_err(io::Error::other)?;
        Ok((connection, peer, room))
    }

    /// Notes a connection; one too many closes the oldest of that peer.
    fn enter(&self, peer: &PeerName, connection: &quinn::Connection) {
        let mut of_peer = self.of_peer.lock();
        let present = of_peer.entry(peer.clone()).or_default();
        present.push_back(connection.clone());
        if present.len() > limits::BRIDGE_CONNECTIONS_PER_PEER_MAX
            && let Some(oldest) = present.pop_front()
        {
            oldest.close(quic::CLOSE_ROOM, b"too many connections of this server");
        }
    }

    fn leave(&self, peer: &PeerName, connection: &quinn::Connection) {
        let mut of_peer = self.of_peer.lock();
        let Some(present) = of_peer.get_mut(peer) else { return };
        present.retain(|other| other.stable_id() != connection.stable_id());
        if present.is_empty() {
            of_peer.remove(peer);
        }
    }

    /// Hands streams over and answers probes until the connection ends.
    async fn take_streams(self: Arc<Self>, connection: &quinn::Connection, peer: &PeerName) -> io::Error {
        loop {
            tokio::select! {
                biased;
                stream = connection.accept_bi() => match stream {
                    Ok((send, receive)) => {
                        tokio::spawn(Arc::clone(&self).hand_over(peer.clone(), send, receive));
                    }
                    Err(error) => return error.into(),
                },
                datagram = connection.read_datagram() => match datagram {
                    Ok(datagram) => answer(connection, &datagram),
                    Err(error) => return error.into(),
                },
            }
        }
    }

    /// A stream whose lane does not come in time is closed by dropping it.
    async fn hand_over(
        self: Arc<Self>,
        peer: PeerName,
        send: quinn::SendStream,
        mut receive: quinn::RecvStream,
    ) {
        let mut lane = [0];
        let read = tokio::time::timeout(self.handshake_timeout, receive.read_exact(&mut lane)).await;
        if let Ok(Ok(())) = read {
            let [lane] = lane;
            let stream = Box::new(tokio::io::join(receive, send));
            // Fails if the transport is gone.
            let _ = self.streams.send(Incoming { peer, lane, stream }).await;
        }
    }
}

/// Answers a probe; anything else is ignored.
fn answer(connection: &quinn::Connection, datagram: &[u8]) {
    if let Some(reply) = probe::reply_to(datagram) {
        // A reply that can't be sent is as good as lost.
        let _ = connection.send_datagram(reply);
    }
}
