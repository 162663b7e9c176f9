//! Sending numbered items in order to somebody who applies each exactly once.
//!
//! The items stay in a [`Queue`] until they are seen applied. Several groups are under way at a time; when
//! one fails, or when what was acknowledged does not get applied, the caller starts over from the first
//! item that is left, and the other side drops what it has already seen.

use std::future::Future;
use std::io;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;

/// Acknowledged items that are not applied for so long are sent again.
const STALL_TIMEOUT: Duration = Duration::from_secs(3);

/// Items with consecutive numbers that wait to be applied.
pub trait Queue: Send + Sync {
    /// What is sent.
    type Item: Send;

    /// The number of the first item that is not yet applied.
    fn first(&self) -> u64;

    /// A group of items from number `from` (or the first that is left) on, and the first one's number.
    fn take_from(&self, from: u64) -> (u64, Vec<Self::Item>);

    /// Waits until an item may have been added since the last call.
    fn added(&self) -> impl Future<Output = ()> + Send;
}

/// The way to the other side.
pub trait Carrier<T>: Send + Sync {
    /// Puts a group, whose first item has the number `first`, on its way before it returns, so that groups
    /// keep their order.
    fn send(&self, first: u64, items: Vec<T>) -> impl Future<Output = io::Result<Sent>> + Send;
}

/// A group that has been sent: done when the other side has it, or has failed.
pub type Sent = BoxFuture<'static, io::Result<()>>;

/// Sends everything in the queue and then what is added, with up to `in_flight_max` groups under way.
///
/// # Errors
/// The first failure: then some items may have arrived and others not.
pub async fn send_all<Q: Queue>(
    queue: &Q,
    in_flight_max: usize,
    carrier: &impl Carrier<Q::Item>,
) -> io::Result<()> {
    let mut next = 0;
    let mut under_way: FuturesUnordered<BoxFuture<'static, (u64, io::Result<()>)>> = FuturesUnordered::new();
    let mut acknowledged = 0;
    let mut stall = tokio::time::interval(STALL_TIMEOUT);
    stall.tick().await;
    let mut acknowledged_before = 0;
    loop {
        while under_way.len() < in_flight_max {
            let (first, items) = queue.take_from(next);
            if items.is_empty() {
                break;
            }
            next = first + items.len() as u64;
            let (last, sent) = (next - 1, carrier.send(first, items).await?);
            under_way.push(Box::pin(async move { (last, sent.await) }));
        }
        tokio::select! {
            biased;
            Some((last, result)) = under_way.next(), if !under_way.is_empty() => {
                result?;
                acknowledged = acknowledged.max(last);
            }
            () = queue.added() => {}
            _ = stall.tick() => {
                // Acknowledged a whole period ago and still not applied: dropped behind a gap.
                if acknowledged_before > 0 && queue.first() <= acknowledged_before {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "acknowledged items were not applied"));
                }
                acknowledged_before = acknowledged;
            }
        }
    }
}
