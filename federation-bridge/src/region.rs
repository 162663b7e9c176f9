//! What the bridge sees of its region.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use meridian_seam::watch;

use crate::mesh::{Orderer, SubtreeId};
use crate::state::{Command, Federation, Outcome};

/// The region that a bridge belongs to, as seen from its leader. The region server implements it.
pub trait Region: Send + Sync + 'static {
    /// Proposes a command in the region's log. It is queued before this returns, so that commands keep
    /// the order of the calls; the future is done when it is applied here.
    ///
    /// # Errors
    /// If this server does not lead, or stops to lead before the command is applied; it may still be
    /// applied later.
    fn propose(&self, command: Command) -> BoxFuture<'static, io::Result<Outcome>>;

    /// The region's state as applied here.
    fn view(&self) -> Arc<dyn RegionView>;

    /// Changes with every entry applied here.
    fn changes(&self) -> watch::Receiver<u64>;

    /// This region's lease holds until then (of the monotonic clock); called with every renewal.
    fn lease_holds_until(&self, deadline: std::time::Duration);
}

/// A consistent view of a region's state.
pub trait RegionView: Send + Sync + 'static {
    /// The federation's part.
    fn federation(&self) -> &Federation;

    /// The content of everything that an orderer orders, in pieces for another region.
    ///
    /// # Errors
    /// If the region has no such order.
    fn export(&self, orderer: Orderer) -> io::Result<Vec<Bytes>>;

    /// The digest of a subtree's content.
    fn digest(&self, subtree: SubtreeId) -> u128;
}
