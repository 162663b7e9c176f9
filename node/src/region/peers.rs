//! Connections between the servers of a region: TCP, with mutual TLS when the servers have certificates.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use meridian_bridge::engine::{Link, Responder, StoredVote, TypeConfig, Vote, kind};
use meridian_seam::mutant::{self, Mutant};
use meridian_seam::net::{Acceptor, BoxStream};
use meridian_seam::{Environment, codec, limits, rpc};
use openraft::network::RaftNetworkFactory;
use openraft::type_config::alias::SnapshotOf;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::machine::{Machine, StoredMeta};
use super::members::{Directory, Membership};
use super::proposer::Proposer;
use super::succession::Succession;
use super::{RegionConfig, Sink};
use crate::snapshot::{SnapshotId, SnapshotReceiver, SnapshotStore};
use crate::txn::ensemble::Role;

const HELLO: u8 = kind::FIRST_FREE;
const FORWARD: u8 = kind::FIRST_FREE + 1;
const REPORT: u8 = kind::FIRST_FREE + 2;
const SNAPSHOT_BEGIN: u8 = kind::FIRST_FREE + 3;
const SNAPSHOT_CHUNK: u8 = kind::FIRST_FREE + 4;
const SNAPSHOT_END: u8 = kind::FIRST_FREE + 5;
const STANDING: u8 = kind::FIRST_FREE + 6;
const ANNOUNCE: u8 = kind::FIRST_FREE + 7;
const TRANSFER: u8 = kind::FIRST_FREE + 8;

/// A connection that is not made in this time is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The bound of a snapshot taken from another server.
const SNAPSHOT_BYTES_MAX: u64 = 64 << 30;

/// The first message of a connection, which is answered with the number of the server that it has reached.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    region: String,
    server: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct SnapshotBegin {
    vote: StoredVote,
    meta: StoredMeta,
}

/// What the connections of one server have in common.
#[derive(Clone)]
pub(super) struct Peers {
    pub(super) config: Arc<RegionConfig>,
    pub(super) environment: Environment,
    pub(super) snapshots: SnapshotStore,
    pub(super) directory: Directory,
}

impl Peers {
    /// A link to a server, with a connection of its own. A link holds all of this: kept in here it would
    /// keep itself alive.
    pub(super) fn link(&self, server: u64) -> PeerLink {
        PeerLink {
            peers: self.clone(),
            server,
            fallback: None,
            attempts: Arc::default(),
            slot: Arc::default(),
        }
    }

    /// Asks a server whether the group exists.
    pub(super) async fn standing_of(&self, server: u64) -> io::Result<Bytes> {
        self.link(server).client().await?.call(STANDING, Bytes::new()).await
    }

    /// Tells a server that this one is there.
    pub(super) async fn announce_to(&self, server: u64, announcement: Bytes) -> io::Result<Bytes> {
        self.link(server).client().await?.call(ANNOUNCE, announcement).await
    }

    /// Asks the leader to hand over to a voter.
    pub(super) async fn ask_for_transfer(&self, leader: u64, to: u64) -> io::Result<()> {
        self.link(leader).client().await?.call(TRANSFER, encode(&to)?).await.map(drop)
    }
}

/// The way to one other server.
#[derive(Clone)]
pub(super) struct PeerLink {
    peers: Peers,
    server: u64,
    /// An address to try when no other is known.
    fallback: Option<String>,
    /// Connections that failed: the next one tries another address, if there is one.
    attempts: Arc<AtomicUsize>,
    slot: Arc<tokio::sync::Mutex<Option<rpc::Client>>>,
}

impl PeerLink {
    /// Where it leads.
    pub(super) fn server(&self) -> u64 {
        self.server
    }

    async fn connect(&self) -> io::Result<rpc::Client> {
        let mut addresses = self.peers.directory.addresses_of(self.server);
        addresses.extend(self.fallback.clone().filter(|fallback| !addresses.contains(fallback)));
        // Where it is not, the next one is tried at once; what fails otherwise may have taken its time.
        let is_elsewhere = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::AddrNotAvailable)
        };
        let first = self.attempts.load(Ordering::Relaxed);
        let mut refused =
            io::Error::new(io::ErrorKind::NotFound, format!("no address of server {} is known", self.server));
        for attempt in first..first + addresses.len() {
            match self.connect_to(&addresses[attempt % addresses.len()]).await {
                Err(error) if is_elsewhere(&error) => refused = error,
                Err(error) => {
                    self.attempts.store(attempt + 1, Ordering::Relaxed);
                    return Err(error);
                }
                connected => return connected,
            }
        }
        Err(refused)
    }

    async fn connect_to(&self, address: &str) -> io::Result<rpc::Client> {
        let connecting = async {
            let net = &self.peers.environment.net;
            let stream = match (net.connect(address.to_string()).await, self.observer_instead()) {
                (Err(_), Some(observer)) if mutant::is(Mutant::ObserverInQuorum) => {
                    net.connect(observer).await?
                }
                (connected, _) => connected?,
            };
            let stream = match &self.peers.config.tls {
                Some(tls) => tls.connect(stream, self.server).await?,
                None => stream,
            };
            let client = rpc::Client::new(stream);
            let hello =
                Hello { region: self.peers.config.region_name.clone(), server: self.peers.config.server };
            let answer = client.call(HELLO, encode(&hello)?).await?;
            let found: u64 = codec::decode(&answer).map_err(io::Error::other)?;
            if found != self.server && !mutant::is(Mutant::ObserverInQuorum) {
                // Counted twice it would make up a majority that is none.
                tracing::warn!(expected = self.server, found, %address, "another server than expected answers");
                let reason = format!("server {found} answers at {address}, not server {}", self.server);
                return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, reason));
            }
            Ok(client)
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection to {address} in time")))
        })
    }

    /// For [`Mutant::ObserverInQuorum`]: where an observer is, if this is the way to the last voter.
    fn observer_instead(&self) -> Option<String> {
        let members = &self.peers.config.members;
        let with = |role| members.iter().filter(move |(_, member)| member.role == role);
        let (last, _) = with(Role::Voter).next_back()?;
        let (_, observer) = with(Role::Observer).next()?;
        (u64::from(*last) == self.server).then(|| observer.address.clone())
    }

    /// Forwards commands to the server, which must be the leader; done when they are committed.
    pub(super) async fn forward(
        &self,
        commands: Vec<Bytes>,
    ) -> io::Result<impl Future<Output = io::Result<Bytes>> + use<>> {
        let body = encode(&commands)?;
        Ok(self.client().await?.call(FORWARD, body))
    }

    /// Reports to the leader and returns its answer.
    pub(super) async fn report(&self, report: Bytes) -> io::Result<Bytes> {
        self.client().await?.call(REPORT, report).await
    }
}

impl Link for PeerLink {
    type Snapshot = SnapshotId;

    fn client(&self) -> BoxFuture<'_, io::Result<rpc::Client>> {
        Box::pin(async move {
            let mut slot = self.slot.lock().await;
            if let Some(client) = slot.as_ref().filter(|c| !c.is_closed()) {
                return Ok(client.clone());
            }
            let client = self.connect().await?;
            *slot = Some(client.clone());
            Ok(client)
        })
    }

    fn send_snapshot(
        &self,
        vote: StoredVote,
        snapshot: SnapshotOf<TypeConfig, SnapshotId>,
    ) -> BoxFuture<'_, io::Result<StoredVote>> {
        Box::pin(async move {
            let client = self.client().await?;
            let mut file =
                self.peers.snapshots.open_raw(snapshot.snapshot.index).map_err(io::Error::other)?;
            let begin = SnapshotBegin { vote, meta: StoredMeta::new(&snapshot.meta) };
            client.call(SNAPSHOT_BEGIN, encode(&begin)?).await?;
            loop {
                let mut chunk = vec![0; limits::SNAPSHOT_CHUNK_BYTES];
                let read = file.read(&mut chunk)?;
                if read == 0 {
                    break;
                }
                chunk.truncate(read);
                client.call(SNAPSHOT_CHUNK, chunk.into()).await?;
            }
            let reply = client.call(SNAPSHOT_END, Bytes::new()).await?;
            codec::decode(&reply).map_err(io::Error::other)
        })
    }
}

fn encode(value: &impl Serialize) -> io::Result<Bytes> {
    codec::encode(value).map(Bytes::from).map_err(io::Error::other)
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = meridian_bridge::engine::Network<PeerLink>;

    async fn new_client(&mut self, target: u64, node: &openraft::impls::BasicNode) -> Self::Network {
        let link = PeerLink { fallback: Some(node.addr.clone()), ..self.link(target) };
        meridian_bridge::engine::Network::new(link, self.config.timing.rpc_timeout())
    }
}

/// Accepts connections of the other servers of the region.
pub(super) async fn serve_peers(
    peers: Peers,
    listener: Box<dyn meridian_seam::net::Listener>,
    raft: openraft::Raft<TypeConfig, Machine>,
    proposer: Proposer,
    membership: Membership,
    succession: Succession,
    sink: Arc<dyn Sink>,
) {
    let mut acceptor = Acceptor::new(listener, "servers of the region");
    // They end with this task: nobody must go on talking to a part of the region that has stopped.
    let mut connections = JoinSet::new();
    loop {
        let (stream, address) = acceptor.accept().await;
        while connections.try_join_next().is_some() {}
        if connections.len() >= limits::PEER_CONNECTIONS_MAX {
            acceptor.refused(address, limits::PEER_CONNECTIONS_MAX);
            continue;
        }
        let connection = PeerConnection {
            peers: peers.clone(),
            raft: raft.clone(),
            responder: Responder::new(raft.clone()),
            proposer: proposer.clone(),
            membership: membership.clone(),
            sink: sink.clone(),
            peer: Arc::default(),
            receiving: Arc::default(),
        };
        let succession = succession.clone();
        connections.spawn(async move {
            let peer = connection.peer.clone();
            if let Err(error) = serve_peer(connection, stream).await {
                tracing::debug!(%error, %address, "a peer's connection ended");
            }
            let greeted = peer.lock().greeted;
            if let Some(server) = greeted {
                succession.connection_ended(server).await;
            }
        });
    }
}

async fn serve_peer(connection: PeerConnection, stream: BoxStream) -> io::Result<()> {
    let stream = match &connection.peers.config.tls {
        Some(tls) => {
            let accepting = tokio::time::timeout(CONNECT_TIMEOUT, tls.accept(stream));
            let (stream, server) = accepting.await.map_err(|_| io::ErrorKind::TimedOut)??;
            *connection.peer.lock() = Peer { certified: Some(server), greeted: None };
            stream
        }
        None => stream,
    };
    tokio::select! {
        biased;
        served = rpc::serve(stream, &connection) => served,
        () = connection.stays_silent() => Err(io::Error::new(io::ErrorKind::TimedOut, "no greeting came")),
    }
}

/// Who is at the other end.
#[derive(Default)]
struct Peer {
    /// The server that the certificate names.
    certified: Option<u64>,
    /// The server that it says it is.
    greeted: Option<u64>,
}

struct PeerConnection {
    peers: Peers,
    raft: openraft::Raft<TypeConfig, Machine>,
    responder: Arc<Responder<Machine>>,
    proposer: Proposer,
    membership: Membership,
    sink: Arc<dyn Sink>,
    peer: Arc<Mutex<Peer>>,
    receiving: Arc<Mutex<Option<(SnapshotBegin, SnapshotReceiver)>>>,
}

impl rpc::Handler for PeerConnection {
    fn handle(&self, kind: u8, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        if kind == HELLO {
            let (greeted, raft, own) = (self.greet(&body), self.raft.clone(), self.peers.config.server);
            return Box::pin(async move {
                // A server that was away is back: it is sent what it lacks without the rest of the pause.
                let back = raft.trigger().reset_backoff([greeted?]).await;
                back.map_err(|error| error.to_string())?;
                encode(&own).map_err(|error| error.to_string())
            });
        }
        let Some(from) = self.peer.lock().greeted else {
            return ready(Err("a connection starts with a greeting".into()));
        };
        match kind {
            FORWARD => self.forward(&body),
            REPORT => ready(self.sink.report(from, body)),
            STANDING => ready(self.membership.standing().map_err(|e| e.to_string())),
            ANNOUNCE => ready(self.membership.announced(from, &body).map_err(|e| e.to_string())),
            TRANSFER => self.transfer(&body),
            _ if !self.membership.is_admitted() => {
                ready(Err("this server's disk is empty and it has not been admitted yet".into()))
            }
            SNAPSHOT_BEGIN => ready(self.begin_snapshot(&body)),
            SNAPSHOT_CHUNK => ready(self.snapshot_chunk(&body)),
            SNAPSHOT_END => self.end_snapshot(),
            _ => self.responder.handle(kind, &body),
        }
    }
}

fn ready(result: Result<Bytes, String>) -> BoxFuture<'static, Result<Bytes, String>> {
    Box::pin(std::future::ready(result))
}

impl PeerConnection {
    /// Done if no greeting comes in the time in which connections are made: strangers must not take up the places.
    async fn stays_silent(&self) {
        tokio::time::sleep(CONNECT_TIMEOUT).await;
        if self.peer.lock().greeted.is_some() {
            std::future::pending().await
        }
    }

    fn greet(&self, body: &Bytes) -> Result<u64, String> {
        let hello: Hello = codec::decode(body).map_err(|e| e.to_string())?;
        let own = &self.peers.config.region_name;
        if hello.region != *own {
            return Err(format!("this server belongs to region '{own}', not to '{}'", hello.region));
        }
        let mut peer = self.peer.lock();
        if peer.certified.is_some_and(|certified| certified != hello.server) {
            return Err(format!("the certificate is not that of server {}", hello.server));
        }
        peer.greeted = Some(hello.server);
        Ok(hello.server)
    }

    fn forward(&self, body: &Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        let commands: Vec<Bytes> = match codec::decode(body) {
            Ok(commands) => commands,
            Err(error) => return ready(Err(error.to_string())),
        };
        let committed = self.proposer.propose(commands);
        Box::pin(async move { committed.await.map(|_| Bytes::new()).map_err(|e| e.to_string()) })
    }

    fn transfer(&self, body: &Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        let (membership, to) = (self.membership.clone(), codec::decode::<u64>(body));
        Box::pin(async move {
            let to = to.map_err(|e| e.to_string())?;
            membership.hand_over_to(to).await.map(|()| Bytes::new()).map_err(|e| e.to_string())
        })
    }

    fn begin_snapshot(&self, body: &Bytes) -> Result<Bytes, String> {
        let begin: SnapshotBegin = codec::decode(body).map_err(|e| e.to_string())?;
        let receiver =
            self.peers.snapshots.receive(begin.meta.id(), SNAPSHOT_BYTES_MAX).map_err(|e| e.to_string())?;
        *self.receiving.lock() = Some((begin, receiver));
        Ok(Bytes::new())
    }

    fn snapshot_chunk(&self, body: &Bytes) -> Result<Bytes, String> {
        let mut receiving = self.receiving.lock();
        let (_, receiver) = receiving.as_mut().ok_or("no snapshot is being sent")?;
        receiver.write_all(body).map_err(|e| e.to_string())?;
        Ok(Bytes::new())
    }

    fn end_snapshot(&self) -> BoxFuture<'static, Result<Bytes, String>> {
        let received = self.receiving.lock().take();
        let raft = self.raft.clone();
        Box::pin(async move {
            let (begin, receiver) = received.ok_or("no snapshot is being sent")?;
            let id = receiver.finish().map_err(|e| e.to_string())?;
            let meta = begin.meta.into_meta().map_err(|e| e.to_string())?;
            let snapshot = SnapshotOf::<TypeConfig, SnapshotId> { meta, snapshot: id };
            let response = raft.install_full_snapshot(Vote::from(begin.vote), snapshot).await;
            let response = response.map_err(|e| e.to_string())?;
            codec::encode(&StoredVote::from(&response.vote)).map(Bytes::from).map_err(|e| e.to_string())
        })
    }
}
