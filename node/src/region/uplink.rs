//! The way of this server's writes to the leader, exactly once and in order.
//!
//! Every write gets the next number of this start of the server and stays here until it is seen applied.
//! When the leader changes, or a connection breaks, everything that is still here is sent again in order;
//! the region's state drops what it has seen.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian_seam::limits;
use meridian_seam::resend::{self, Carrier, Queue, Sent};
use meridian_seam::watch;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use super::Leadership;
use super::peers::{PeerLink, Peers};
use super::proposer::Proposer;
use crate::txn::{Caller, Me};

/// After a failure, the pause before everything is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The writes of this server that are not yet applied. Clones share them.
#[derive(Clone)]
pub(super) struct Uplink {
    shared: Arc<Shared>,
}

struct Shared {
    me: Me,
    pending: Mutex<Pending>,
    /// Something was added.
    added: Notify,
    room: Semaphore,
}

#[derive(Default)]
struct Pending {
    /// Number of the last write added.
    last: u64,
    /// Encoded commands; the first has the number `last - len + 1`.
    commands: VecDeque<Bytes>,
}

impl Pending {
    fn first(&self) -> u64 {
        self.last + 1 - self.commands.len() as u64
    }
}

impl Uplink {
    pub(super) fn new(me: Me) -> Self {
        let room = Semaphore::new(limits::SERVER_WRITES_MAX);
        Self { shared: Arc::new(Shared { me, pending: Mutex::default(), added: Notify::new(), room }) }
    }

    /// Waits while too many writes are not yet applied, then adds one. `build` is given the number under
    /// which the answer will come; it runs before the write can be applied, so that it can note who waits.
    pub(super) async fn submit<E>(&self, build: impl FnOnce(Caller) -> Result<Bytes, E>) -> Result<u64, E> {
        // The semaphore is never closed.
        let permit = self.shared.room.acquire().await.ok();
        let sequence = {
            let mut pending = self.shared.pending.lock();
            let sequence = pending.last + 1;
            let caller = Caller { server: self.shared.me.server, boot: self.shared.me.boot, sequence };
            let command = build(caller)?;
            pending.last = sequence;
            pending.commands.push_back(command);
            sequence
        };
        if let Some(permit) = permit {
            permit.forget();
        }
        self.shared.added.notify_one();
        Ok(sequence)
    }

    /// Writes up to this number are applied.
    pub(super) fn settle(&self, boot: u32, upto: u64) {
        if boot != self.shared.me.boot {
            return;
        }
        let mut pending = self.shared.pending.lock();
        let first = pending.first();
        let settled =
            usize::try_from((upto + 1).saturating_sub(first)).unwrap_or(0).min(pending.commands.len());
        pending.commands.drain(..settled);
        self.shared.room.add_permits(settled);
    }
}

impl Queue for Uplink {
    type Item = Bytes;

    fn first(&self) -> u64 {
        self.shared.pending.lock().first()
    }

    fn take_from(&self, from: u64) -> (u64, Vec<Bytes>) {
        let pending = self.shared.pending.lock();
        let from = from.max(pending.first());
        let skip = usize::try_from(from - pending.first()).unwrap_or(usize::MAX);
        let mut budget = limits::BATCH_BYTES_MAX;
        let mut taken = Vec::new();
        for command in pending.commands.iter().skip(skip).take(limits::BATCH_COMMANDS_MAX) {
            if command.len() > budget && !taken.is_empty() {
                break;
            }
            budget = budget.saturating_sub(command.len());
            taken.push(command.clone());
        }
        (from, taken)
    }

    async fn added(&self) {
        self.shared.added.notified().await;
    }
}

/// Sends the writes to whoever leads, until the server stops.
pub(super) async fn run(
    uplink: Uplink,
    peers: Peers,
    proposer: Proposer,
    mut leadership: watch::Receiver<Leadership>,
) {
    let mut links: BTreeMap<u64, PeerLink> = BTreeMap::new();
    loop {
        let Some(leader) = leadership.borrow_and_update().leader else {
            if leadership.changed().await.is_err() {
                return;
            }
            continue;
        };
        let way = if leader == peers.config.server {
            Way::Here(proposer.clone())
        } else {
            Way::There(Box::new(links.entry(leader).or_insert_with(|| peers.link(leader)).clone()))
        };
        let outcome = tokio::select! {
            biased;
            outcome = resend::send_all(&uplink, limits::FORWARDS_IN_FLIGHT_MAX, &way) => outcome,
            changed = leadership.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, leader, "writes are sent again");
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// The way to the leader.
enum Way {
    /// This server leads.
    Here(Proposer),
    /// Another does.
    There(Box<PeerLink>),
}

impl Carrier<Bytes> for Way {
    async fn send(&self, _first: u64, commands: Vec<Bytes>) -> io::Result<Sent> {
        Ok(match self {
            Way::Here(proposer) => {
                let applied = proposer.propose(commands);
                Box::pin(async move { applied.await.map(drop) })
            }
            Way::There(link) => {
                let forwarded = link.forward(commands).await?;
                Box::pin(async move { forwarded.await.map(drop) })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_settled_is_sent_again_in_order() {
        let uplink = Uplink::new(Me { server: 1, boot: 7 });
        for name in ["a", "b", "c"] {
            let build = |_| Ok::<_, ()>(Bytes::from_static(name.as_bytes()));
            uplink.submit(build).await.unwrap();
        }
        assert_eq!(uplink.take_from(2), (2, vec!["b".into(), "c".into()]));
        uplink.settle(6, 3);
        assert_eq!(uplink.first(), 1, "another start's numbers mean nothing");
        uplink.settle(7, 2);
        assert_eq!(uplink.take_from(0), (3, vec!["c".into()]));
    }
}
