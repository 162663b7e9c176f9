//! This server's region as the bridge sees it, and what a leading server does for the mesh.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use meridian_bridge::bridge::Bridge;
use meridian_bridge::mesh::{Mesh, Orderer, SubtreeId};
use meridian_bridge::region::{Region as BridgeRegion, RegionView};
use meridian_bridge::state::{Command as FederationCommand, Federation, Outcome};
use meridian_seam::watch;

use crate::region::{Leadership, Region, View};
use crate::txn::Command;
use crate::txn::snapshot::SubtreeSnapshot;

/// Called when the region's lease has been renewed, with the time of the monotonic clock until which it
/// holds.
pub type LeaseRenewed = Box<dyn Fn(Duration) + Send + Sync>;

/// A region for its bridge.
pub struct FederatedRegion {
    region: Region,
    lease_renewed: LeaseRenewed,
}

impl FederatedRegion {
    /// A region for its bridge.
    pub fn new(region: Region, lease_renewed: LeaseRenewed) -> Arc<Self> {
        Arc::new(Self { region, lease_renewed })
    }
}

impl BridgeRegion for FederatedRegion {
    fn propose(&self, command: FederationCommand) -> BoxFuture<'static, io::Result<Outcome>> {
        Box::pin(self.region.propose_federation(command))
    }

    fn view(&self) -> Arc<dyn RegionView> {
        self.region.view()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.region.applied()
    }

    fn lease_holds_until(&self, deadline: Duration) {
        (self.lease_renewed)(deadline);
    }
}

impl RegionView for View {
    fn federation(&self) -> &Federation {
        &self.state.federation
    }

    fn export(&self, orderer: Orderer) -> io::Result<Vec<Bytes>> {
        SubtreeSnapshot::write(&self.state, orderer).map_err(io::Error::other)
    }

    fn digest(&self, subtree: SubtreeId) -> u128 {
        self.state.tree.digest(subtree)
    }
}

/// How often a leader asks itself whether a majority still follows it.
const QUORUM_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// A leader that a majority has not followed for so long must make room for another that may already have
/// been elected, so that the region keeps its place in the mesh.
fn has_quorum(region: &Region) -> bool {
    let patience = region.config().timing.election_timeout.1 * 2;
    region.quorum_age().is_some_and(|age| age < patience)
}

async fn quorum_lost(region: &Region) {
    // A new leader has not heard of a majority yet.
    quorum_regained(region).await;
    while has_quorum(region) {
        tokio::time::sleep(QUORUM_CHECK_INTERVAL).await;
    }
}

async fn quorum_regained(region: &Region) {
    let leadership = region.leadership();
    while leadership.borrow().is_me && !has_quorum(region) {
        tokio::time::sleep(QUORUM_CHECK_INTERVAL).await;
    }
}

/// The pause before the mesh's table is proposed again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The pause before it is looked again whether an operator has made room for the shared subtrees.
const OBSTACLE_PAUSE: Duration = Duration::from_secs(10);

/// Speaks for the region in the mesh whenever this server leads it, until the server stops.
pub async fn speak_while_leading(region: Region, bridge: Arc<Bridge>, mesh: Mesh) {
    let mut leadership = region.leadership();
    loop {
        let now: Leadership = *leadership.borrow_and_update();
        if now.is_me {
            let speaking = async {
                form_mesh(&region, &mesh).await;
                bridge.lead(now.term).await;
            };
            let replaced = async {
                // Another election with the same winner is another tenure.
                leadership.wait_for(|l| !l.is_me || l.term != now.term).await.map(drop)
            };
            tokio::select! {
                biased;
                () = speaking => {}
                gone = replaced => if gone.is_err() { return },
                () = quorum_lost(&region) => {
                    tracing::warn!("no majority of the region follows this leader: it no longer speaks for the region");
                    quorum_regained(&region).await;
                }
            }
        } else if leadership.changed().await.is_err() {
            return;
        }
    }
}

/// Makes sure that the region's state has the mesh's table, and that it is the configured one.
async fn form_mesh(region: &Region, mesh: &Mesh) {
    loop {
        let formed = region.view().state.mesh.clone();
        if *formed == *mesh {
            return;
        }
        if !formed.regions.is_empty() {
            tracing::error!(
                configured = ?mesh, formed = ?*formed,
                "the mesh's table in the configuration differs from the one that this region was formed with; \
                 restore the configuration"
            );
            // Others of the region may have the right one: this server keeps out of the mesh.
            std::future::pending::<()>().await;
        }
        let in_the_way = region.view().state.in_the_way_of(mesh);
        if let Some(path) = in_the_way {
            tracing::error!(
                path,
                "the mesh is not formed: znodes that only this region has are where a shared subtree is to be; \
                 move them elsewhere and delete them here"
            );
            tokio::time::sleep(OBSTACLE_PAUSE).await;
            continue;
        }
        if let Err(error) = region.propose(&Command::FormMesh { mesh: mesh.clone() }).await {
            tracing::debug!(%error, "the mesh's table was not yet proposed");
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}
