//! Links to the leaders of other regions.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use meridian_seam::{codec, rpc};
use serde::{Deserialize, Serialize};

use crate::engine::{StoredVote, invalid_data, kind::FIRST_FREE};
use crate::global::InstallGlobal;
use crate::mesh::{Orderer, RegionId, SubtreeId};
use crate::state::Outcome;
use crate::transport::{PeerAddress, Transport};

/// The lane of the requests below; there is one lane so far.
pub(crate) const LANE: u8 = 1;

/// Kinds of requests between regions, beside the engine's.
pub(crate) mod kind {
    use super::FIRST_FREE;
    pub(crate) const HELLO: u8 = FIRST_FREE;
    pub(crate) const FORWARD_GLOBAL: u8 = FIRST_FREE + 1;
    pub(crate) const FORWARD_HOME: u8 = FIRST_FREE + 2;
    pub(crate) const MIRROR_POSITION: u8 = FIRST_FREE + 3;
    pub(crate) const MIRROR: u8 = FIRST_FREE + 4;
    pub(crate) const STAGE: u8 = FIRST_FREE + 5;
    pub(crate) const INSTALL_GLOBAL: u8 = FIRST_FREE + 6;
    pub(crate) const INSTALL_HOMED: u8 = FIRST_FREE + 7;
    pub(crate) const RENEW_LEASE: u8 = FIRST_FREE + 8;
    pub(crate) const GOSSIP: u8 = FIRST_FREE + 9;
}

/// The first request of a stream.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// A digest of the mesh's table: regions with different tables do not talk.
    pub(crate) mesh: u64,
}

/// Requests from a region's outbox.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Forward {
    /// The subtree whose home is asked; none for the global group.
    pub(crate) subtree: Option<SubtreeId>,
    pub(crate) first: u64,
    pub(crate) requests: Vec<Bytes>,
}

/// Records of a homed subtree.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Mirror {
    pub(crate) subtree: SubtreeId,
    /// The epoch of the order at the region that sends them.
    pub(crate) epoch: u32,
    pub(crate) records: Vec<Bytes>,
}

/// A piece of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Stage {
    pub(crate) orderer: Orderer,
    /// The epoch of the order at the region that sends it.
    pub(crate) epoch: u32,
    pub(crate) transfer: u64,
    pub(crate) piece: u32,
    pub(crate) bytes: Bytes,
}

/// All pieces of a snapshot of a homed subtree are staged.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct InstallHomed {
    pub(crate) subtree: SubtreeId,
    /// The epoch of the order at the region that sends it.
    pub(crate) epoch: u32,
    pub(crate) transfer: u64,
}

/// How long finding a region's leader may take, and a snapshot piece to be taken.
const FIND_TIMEOUT: Duration = Duration::from_secs(5);
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

/// The way to another region's leader, found among its servers, with a stream of its own.
#[derive(Clone)]
pub(crate) struct RegionLink {
    target: Arc<Target>,
    slot: Arc<tokio::sync::Mutex<Option<rpc::Client>>>,
}

struct Target {
    transport: Arc<Transport>,
    region: RegionId,
    name: String,
    servers: Vec<PeerAddress>,
    mesh: u64,
}

impl RegionLink {
    pub(crate) fn new(
        transport: Arc<Transport>,
        region: RegionId,
        name: String,
        servers: Vec<PeerAddress>,
        mesh: u64,
    ) -> Self {
        Self { target: Arc::new(Target { transport, region, name, servers, mesh }), slot: Arc::default() }
    }

    /// A link to the same region with another stream, for traffic that must not wait behind this one's.
    pub(crate) fn another(&self) -> Self {
        Self { target: self.target.clone(), slot: Arc::default() }
    }

    pub(crate) fn region(&self) -> RegionId {
        self.target.region
    }

    /// The stream to the region's leader, made anew if there is none.
    ///
    /// # Errors
    /// If none of the region's servers can be reached and leads.
    pub(crate) async fn client(&self) -> io::Result<rpc::Client> {
        let mut slot = self.slot.lock().await;
        if let Some(client) = slot.as_ref().filter(|c| !c.is_closed()) {
            return Ok(client.clone());
        }
        let client = self.find_leader().await?;
        *slot = Some(client.clone());
        Ok(client)
    }

    /// Asks all servers of the region at once; the one that leads answers.
    async fn find_leader(&self) -> io::Result<rpc::Client> {
        let mut asking: FuturesUnordered<_> = self.target.servers.iter().map(|s| self.greet(s)).collect();
        let mut reasons = Vec::new();
        let finding = async {
            while let Some(result) = asking.next().await {
                match result {
                    Ok(client) => return Some(client),
                    Err(error) => reasons.push(error.to_string()),
                }
            }
            None
        };
        if let Ok(Some(client)) = tokio::time::timeout(FIND_TIMEOUT, finding).await {
            return Ok(client);
        }
        let reason = format!("no leader of region '{}' found: {}", self.target.name, reasons.join("; "));
        Err(io::Error::new(io::ErrorKind::NotConnected, reason))
    }

    async fn greet(&self, server: &PeerAddress) -> io::Result<rpc::Client> {
        let connection = self.target.transport.connect(server).await?;
        let client = rpc::Client::new(connection.open(LANE).await?);
        client.call(kind::HELLO, encode(&Hello { mesh: self.target.mesh })?).await?;
        Ok(client)
    }

    /// Sends a request and returns a future of its reply; the request is on its way before this returns.
    pub(crate) async fn call(
        &self,
        kind: u8,
        message: &impl Serialize,
    ) -> io::Result<BoxFuture<'static, io::Result<Bytes>>> {
        let body = encode(message)?;
        Ok(Box::pin(self.client().await?.call(kind, body)))
    }

    /// Sends a request and waits for its outcome.
    pub(crate) async fn ask<T: for<'a> Deserialize<'a>>(
        &self,
        kind: u8,
        message: &impl Serialize,
        timeout: Duration,
    ) -> io::Result<T> {
        let asking = async { self.call(kind, message).await?.await };
        let reply = tokio::time::timeout(timeout, asking).await.map_err(|_| io::ErrorKind::TimedOut)??;
        codec::decode(&reply).map_err(invalid_data)
    }

    /// Stages the pieces of a snapshot in the region; returns the transfer's number.
    pub(crate) async fn send_pieces(
        &self,
        orderer: Orderer,
        epoch: u32,
        pieces: Vec<Bytes>,
    ) -> io::Result<u64> {
        // Only one transfer is staged in a region at a time; the number tells its pieces from stray ones.
        let transfer = pieces
            .iter()
            .fold(pieces.len() as u64, |sum, p| sum.wrapping_mul(31).wrapping_add(u64::from(crc_of(p))));
        for (piece, bytes) in (0u32..).zip(pieces) {
            let stage = Stage { orderer, epoch, transfer, piece, bytes };
            match self.ask(kind::STAGE, &stage, PIECE_TIMEOUT).await? {
                Outcome::Applied => {}
                other => return Err(io::Error::other(format!("a snapshot piece was answered {other:?}"))),
            }
        }
        Ok(transfer)
    }

    pub(crate) async fn install_global(&self, request: &InstallGlobal) -> io::Result<StoredVote> {
        self.ask(kind::INSTALL_GLOBAL, request, PIECE_TIMEOUT).await
    }
}

/// A cheap fingerprint; what protects the content is the snapshot's own digest.
fn crc_of(bytes: &[u8]) -> u32 {
    bytes.iter().step_by(61).fold(0, |sum: u32, b| sum.rotate_left(5) ^ u32::from(*b))
}

fn encode(message: &impl Serialize) -> io::Result<Bytes> {
    codec::encode(message).map(Bytes::from).map_err(invalid_data)
}
