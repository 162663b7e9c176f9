//! The leader's side of a write: what arrives while earlier batches are under way forms the next one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use meridian_bridge::engine::{Payload, TypeConfig};
use meridian_bridge::state::Outcome;
use meridian_seam::clock::{Clock, micros};
use meridian_seam::limits;
use openraft::impls::ProgressResponder;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::RegionMetrics;
use super::machine::Machine;
use crate::txn::Batch;

/// Puts commands into the region's log. Clones share one queue.
#[derive(Clone)]
pub(super) struct Proposer {
    queue: mpsc::Sender<Proposal>,
}

/// Commands that stay together and in order, and whom to tell when they are committed and applied here.
struct Proposal {
    commands: Vec<Bytes>,
    /// Whether it is one command of the federation, which has an outcome.
    federation: bool,
    done: oneshot::Sender<io::Result<Vec<Outcome>>>,
}

impl Proposer {
    pub(super) fn start(
        raft: openraft::Raft<TypeConfig, Machine>,
        clock: Arc<dyn Clock>,
        metrics: Arc<RegionMetrics>,
    ) -> Self {
        let (queue, proposals) = mpsc::channel(limits::LEADER_QUEUE_PROPOSALS_MAX);
        tokio::spawn(run(raft, clock, metrics, proposals));
        Self { queue }
    }

    /// Queues commands before it returns, so that proposals keep the order of the calls; the future is done
    /// when they are applied here, with what the federation's commands of the batch came to.
    ///
    /// # Errors
    /// If this server does not lead, if the leader changes meanwhile (the commands may or may not be
    /// committed later), or if too many proposals wait.
    pub(super) fn propose(
        &self,
        commands: Vec<Bytes>,
    ) -> impl Future<Output = io::Result<Vec<Outcome>>> + Send + use<> {
        self.enqueue(commands, false)
    }

    /// The same for one command of the federation.
    pub(super) fn propose_federation(
        &self,
        command: Bytes,
    ) -> impl Future<Output = io::Result<Vec<Outcome>>> + Send + use<> {
        self.enqueue(vec![command], true)
    }

    fn enqueue(
        &self,
        commands: Vec<Bytes>,
        federation: bool,
    ) -> impl Future<Output = io::Result<Vec<Outcome>>> + Send + use<> {
        let (done, applied) = oneshot::channel();
        let queued = self.queue.try_send(Proposal { commands, federation, done });
        async move {
            queued.map_err(|e| match e {
                mpsc::error::TrySendError::Full(_) => {
                    io::Error::new(io::ErrorKind::WouldBlock, "too many proposals wait at the leader")
                }
                mpsc::error::TrySendError::Closed(_) => stopped(),
            })?;
            applied.await.unwrap_or_else(|_| Err(stopped()))
        }
    }
}

fn stopped() -> io::Error {
    io::Error::other("the region has stopped")
}

async fn run(
    raft: openraft::Raft<TypeConfig, Machine>,
    clock: Arc<dyn Clock>,
    metrics: Arc<RegionMetrics>,
    mut proposals: mpsc::Receiver<Proposal>,
) {
    let in_flight = Arc::new(Semaphore::new(limits::BATCHES_IN_FLIGHT_MAX));
    let mut next = None;
    loop {
        if next.is_none() {
            next = proposals.recv().await;
        }
        let Some(first) = next.take() else { return };
        let Ok(permit) = in_flight.clone().acquire_owned().await else { return };
        let (commands, waiting, left) = gather(first, &mut proposals);
        next = left;
        let batch = match Batch::encode(clock.unix_ms(), &commands) {
            Ok(batch) => batch,
            Err(error) => {
                fail(waiting, &io::Error::other(error));
                continue;
            }
        };
        let proposed = clock.monotonic();
        let (responder, response) = ProgressResponder::complete_only();
        if let Err(fatal) = raft.client_write_ff(Payload(batch), Some(responder)).await {
            fail(waiting, &io::Error::other(fatal.to_string()));
            continue;
        }
        note_proposals(&metrics, &commands);
        let (clock, metrics) = (clock.clone(), metrics.clone());
        tokio::spawn(async move {
            let result = match response.await {
                Ok(Ok(written)) => {
                    let took = clock.monotonic().saturating_sub(proposed);
                    metrics.commit_us.record(micros(took));
                    Ok(written.data)
                }
                Ok(Err(refused)) => Err(io::Error::other(refused.to_string())),
                Err(_) => Err(stopped()),
            };
            drop(permit);
            match result {
                Ok(outcomes) => succeed(waiting, outcomes),
                Err(error) => fail(waiting, &error),
            }
        });
    }
}

fn note_proposals(metrics: &RegionMetrics, commands: &[Bytes]) {
    metrics.proposals.fetch_add(commands.len() as u64, Ordering::Relaxed);
    let sizes = || commands.iter().map(Bytes::len);
    if let (Some(last), Some(min), Some(max)) = (sizes().next_back(), sizes().min(), sizes().max()) {
        metrics.proposal_bytes.note_all(last, min, max);
    }
}

/// A proposal in a batch, and whether one of the batch's outcomes is its own.
struct Waiting {
    federation: bool,
    done: oneshot::Sender<io::Result<Vec<Outcome>>>,
}

/// Takes what waits, up to the bounds of a batch; what no longer fits is returned for the next one.
fn gather(
    first: Proposal,
    proposals: &mut mpsc::Receiver<Proposal>,
) -> (Vec<Bytes>, Vec<Waiting>, Option<Proposal>) {
    let (mut commands, mut waiting, mut bytes) = (Vec::new(), Vec::new(), 0);
    let mut next = Some(first);
    while let Some(proposal) = next.take() {
        let size: usize = proposal.commands.iter().map(Bytes::len).sum();
        let fits = commands.is_empty()
            || (commands.len() + proposal.commands.len() <= limits::BATCH_COMMANDS_MAX
                && bytes + size <= limits::BATCH_BYTES_MAX);
        if !fits {
            return (commands, waiting, Some(proposal));
        }
        bytes += size;
        commands.extend(proposal.commands);
        waiting.push(Waiting { federation: proposal.federation, done: proposal.done });
        next = proposals.try_recv().ok();
    }
    (commands, waiting, None)
}

fn succeed(waiting: Vec<Waiting>, outcomes: Vec<Outcome>) {
    let mut outcomes = outcomes.into_iter();
    for Waiting { federation, done } in waiting {
        // Whoever proposed may have stopped waiting.
        let _ = done.send(Ok(outcomes.by_ref().take(usize::from(federation)).collect()));
    }
}

fn fail(waiting: Vec<Waiting>, error: &io::Error) {
    for Waiting { done, .. } in waiting {
        let _ = done.send(Err(io::Error::new(error.kind(), error.to_string())));
    }
}
