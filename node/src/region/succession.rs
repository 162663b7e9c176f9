//! A leader whose process has ended is replaced at once.
//!
//! When the connection that the leader keeps to a follower breaks and nobody listens at the leader's address
//! any more, its process is gone: that is news, and no timeout need pass. Whoever finds that out asks for
//! votes as if the leader had handed over to it, which is as safe as any election; the voters take turns, so
//! that they do not split the votes. A leader that hangs or is cut off is found out by the election timeout.

use std::io;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use tokio::io::AsyncReadExt;

use super::peers::Peers;
use super::store::Store;
use super::{Leadership, Raft};
use meridian_seam::watch;

/// What a voter leaves to those of lower numbers before it tries.
const TURN: Duration = Duration::from_millis(40);
/// A machine that does not even refuse a connection in this time may be far away or cut off.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two attempts to find out.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// What finding out takes. Clones share it.
#[derive(Clone)]
pub(super) struct Succession {
    pub(super) raft: Raft,
    pub(super) peers: Peers,
    pub(super) store: Store,
    pub(super) leadership: watch::Receiver<Leadership>,
}

impl Succession {
    /// A connection from a server has ended.
    pub(super) async fn connection_ended(&self, server: u64) {
        let leads = *self.leadership.borrow();
        if leads.leader != Some(server) || leads.is_me {
            return;
        }
        let Some(turn) = self.turn(server) else { return };
        if !self.is_gone(server).await {
            return;
        }
        tokio::time::sleep(TURN * turn).await;
        // Whoever came before may have asked in vain, for want of the newest entries.
        let now = *self.leadership.borrow();
        if now.is_me || now.leader.is_some_and(|leader| leader != server) {
            return;
        }
        let vote = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.vote
        };
        tracing::info!(
            leader = server,
            term = leads.term,
            "the leader's process has ended: this server asks for votes"
        );
        let own = self.peers.config.server;
        let last = self.store.memory().lock().last();
        // It may have been too late, or the engine may have stopped: then others see to it.
        let _ = self.raft.handle_transfer_leader(TransferLeaderRequest::new(vote, own, last)).await;
    }

    /// This voter's place among those that may follow a leader; none if it does not vote.
    fn turn(&self, leader: u64) -> Option<u32> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let heirs = metrics.membership_config.voter_ids().filter(|voter| *voter != leader);
        let place = heirs.enumerate().find(|(_, voter)| *voter == self.peers.config.server)?.0;
        u32::try_from(place).ok()
    }

    /// Whether nobody listens at the server's address.
    async fn is_gone(&self, server: u64) -> bool {
        let Some(address) = self.peers.directory.addresses_of(server).into_iter().next() else {
            return false;
        };
        let refused = async {
            loop {
                match self.peers.environment.net.connect(address.clone()).await {
                    // A process that ends may close what it listens on last of all: whoever is still taken
                    // then is thrown out in a moment. A server that lives waits for a greeting.
                    Ok(mut stream) => {
                        if stream.read_u8().await.is_ok() {
                            return false;
                        }
                    }
                    Err(error) => return error.kind() == io::ErrorKind::ConnectionRefused,
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        };
        tokio::time::timeout(REFUSAL_TIMEOUT, refused).await.unwrap_or(false)
    }
}
