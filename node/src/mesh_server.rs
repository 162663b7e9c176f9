//! A server with its part in a mesh: what `meridian server` runs, and what the simulator runs many of.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use meridian_bridge::bridge::{Bridge, BridgeConfig, RttRow};
use meridian_bridge::certificates::Identity;
use meridian_seam::Environment;
use serde_json::json;
use tokio::task::JoinSet;

use crate::federation::{FederatedRegion, speak_while_leading};
use crate::server::{Server, ServerOptions};

/// How often the leader tells the other servers what it knows of the mesh.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// A running server with its bridge, if it has one.
pub struct MeshServer {
    server: Server,
    bridge: Option<Arc<Bridge>>,
    duties: JoinSet<()>,
}

/// What a server does in its mesh.
pub enum MeshPart {
    /// Its region is on its own.
    Alone,
    /// Its region is part of a mesh, but the server never speaks for it: an observer.
    Follow,
    /// It speaks for its region while it leads it.
    Bridge {
        /// The bridge.
        config: Box<BridgeConfig>,
        /// The server's certificate.
        identity: Arc<Identity>,
    },
}

impl MeshServer {
    /// Starts a server, and its bridge if it has one.
    ///
    /// # Errors
    /// Those of [`Server::start`] and [`Bridge::start`].
    pub async fn start(environment: Environment, options: ServerOptions, part: MeshPart) -> io::Result<Self> {
        let server = Server::start(environment.clone(), options).await?;
        let in_mesh = match &part {
            MeshPart::Alone => false,
            MeshPart::Follow => true,
            MeshPart::Bridge { config, .. } => config.mesh.regions.len() > 1,
        };
        if in_mesh {
            // Nobody has granted a lease yet.
            server.lease().set(Some(Duration::ZERO));
        }
        let mut running = Self { server, bridge: None, duties: JoinSet::new() };
        if let MeshPart::Bridge { config, identity } = part {
            running.start_bridge(environment, *config, identity)?;
        }
        Ok(running)
    }

    /// The server.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The bridge, if it has one.
    pub fn bridge(&self) -> Option<&Arc<Bridge>> {
        self.bridge.as_ref()
    }

    /// Stops; see [`Server::shutdown`].
    pub async fn shutdown(mut self) {
        self.duties.abort_all();
        if let Some(bridge) = self.bridge {
            bridge.shutdown().await;
        }
        self.server.shutdown().await;
    }

    fn start_bridge(
        &mut self,
        environment: Environment,
        config: BridgeConfig,
        identity: Arc<Identity>,
    ) -> io::Result<()> {
        let mesh = config.mesh.clone();
        let (region, gate) = (self.server.region().clone(), self.server.lease().clone());
        let federated = FederatedRegion::new(region.clone(), Box::new(move |deadline| gate.extend(deadline)));
        let bridge = Bridge::start(environment, config, identity, federated)?;
        self.duties.spawn(speak_while_leading(region.clone(), bridge.clone(), mesh));
        let (hub, reporting, leadership) = (self.server.hub().clone(), bridge.clone(), region.leadership());
        self.duties.spawn(async move {
            let mut ticks = tokio::time::interval(REPORT_INTERVAL);
            loop {
                ticks.tick().await;
                if leadership.borrow().is_me {
                    hub.set_mesh_report(Some(report(&reporting).to_string()));
                }
            }
        });
        self.bridge = Some(bridge);
        Ok(())
    }
}

/// What a leading server tells the others of its region about the mesh.
fn report(bridge: &Bridge) -> serde_json::Value {
    let row = |row: RttRow| {
        let mut value = serde_json::to_value(&row.rtt).unwrap_or_default();
        value["from"] = row.from.into();
        value["to"] = row.to.into();
        value
    };
    let status = bridge.status();
    json!({
        "rtt": bridge.rtt().into_iter().map(row).collect::<Vec<_>>(),
        "global_leader": status.global_leader,
        "global_term": status.global_term,
        "outbox_requests": status.outbox_requests,
    })
}
