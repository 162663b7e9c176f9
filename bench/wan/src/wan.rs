//! The network: its links and relays.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::task::AbortHandle;

use crate::link::{Link, LinkStatus};
use crate::relay::{self, Route};
use crate::transit::Transit;
use crate::{WanDelays, WanError};

/// A running network. Clones share it; it ends with the last of them.
#[derive(Debug, Clone)]
pub struct Wan {
    network: Arc<Network>,
}

#[derive(Debug)]
struct Network {
    delays: WanDelays,
    /// From every region (row) to every region (column).
    links: Vec<Vec<Arc<Link>>>,
    transit: Arc<Transit>,
    relays: Mutex<Vec<AbortHandle>>,
}

/// A network as it is now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WanStatus {
    /// The names of the regions.
    pub regions: Vec<String>,
    /// Both directions of every link between two regions.
    pub links: Vec<LinkStatus>,
}

impl Wan {
    /// Starts a network without relays, all links whole.
    pub fn new(delays: WanDelays) -> Result<Self, WanError> {
        let regions = delays.regions().len();
        let link = |from, to| Arc::new(Link::new(delays.conditions(from, to)));
        let links = (0..regions).map(|from| (0..regions).map(|to| link(from, to)).collect()).collect();
        let transit = Transit::start()?;
        let relays = Mutex::new(Vec::new());
        Ok(Self { network: Arc::new(Network { delays, links, transit, relays }) })
    }

    /// Opens a relay and returns its address: what clients in region `from` send there reaches `target`
    /// in region `to`, from a socket per client, and the answers come back.
    ///
    /// It must be called within a tokio runtime, on which the relay then runs until the network ends.
    pub async fn relay(&self, from: &str, to: &str, target: SocketAddr) -> Result<SocketAddr, WanError> {
        let network = &self.network;
        let route = Route {
            target,
            onward: Arc::clone(network.link(from, to)?),
            back: Arc::clone(network.link(to, from)?),
            transit: Arc::clone(&network.transit),
        };
        let (address, relay) = relay::open(route)?;
        network.relays.lock().push(relay);
        Ok(address)
    }

    /// Cuts the link between two regions in both directions.
    pub fn cut(&self, a: &str, b: &str) -> Result<(), WanError> {
        self.network.between(a, b)?.into_iter().for_each(Link::cut);
        tracing::info!(a, b, "link cut");
        Ok(())
    }

    /// Cuts all links of a region to others.
    pub fn isolate(&self, region: &str) -> Result<(), WanError> {
        self.network.links_of(region)?.for_each(Link::cut);
        tracing::info!(region, "region isolated");
        Ok(())
    }

    /// Heals the link between two regions in both directions.
    pub fn heal(&self, a: &str, b: &str) -> Result<(), WanError> {
        self.network.between(a, b)?.into_iter().for_each(Link::heal);
        tracing::info!(a, b, "link healed");
        Ok(())
    }

    /// Heals all links of a region.
    pub fn heal_region(&self, region: &str) -> Result<(), WanError> {
        self.network.links_of(region)?.for_each(Link::heal);
        tracing::info!(region, "region healed");
        Ok(())
    }

    /// Heals all links.
    pub fn heal_all(&self) {
        self.network.links.iter().flatten().for_each(|link| link.heal());
        tracing::info!("all links healed");
    }

    /// The links between different regions.
    pub fn links(&self) -> Vec<LinkStatus> {
        let regions = self.network.delays.regions();
        let rows = regions.iter().zip(&self.network.links);
        rows.flat_map(|(from, row)| regions.iter().zip(row).map(move |(to, link)| (from, to, link)))
            .filter(|(from, to, _)| from != to)
            .map(|(from, to, link)| link.status(from, to))
            .collect()
    }

    /// The regions and the links between them.
    pub fn status(&self) -> WanStatus {
        WanStatus { regions: self.network.delays.regions().to_vec(), links: self.links() }
    }
}

impl Network {
    fn link(&self, from: &str, to: &str) -> Result<&Arc<Link>, WanError> {
        let (from, to) = (self.delays.region(from)?, self.delays.region(to)?);
        Ok(&self.links[from][to])
    }

    /// Both directions between two regions.
    fn between(&self, a: &str, b: &str) -> Result<[&Link; 2], WanError> {
        let both = [self.link(a, b)?.as_ref(), self.link(b, a)?.as_ref()];
        if a == b { Err(WanError::SameRegion(a.to_owned())) } else { Ok(both) }
    }

    /// Both directions between a region and every other.
    fn links_of(&self, region: &str) -> Result<impl Iterator<Item = &Link>, WanError> {
        let at = self.delays.region(region)?;
        let others = (0..self.links.len()).filter(move |other| *other != at);
        Ok(others.flat_map(move |other| [self.links[at][other].as_ref(), self.links[other][at].as_ref()]))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.relays.lock().iter().for_each(AbortHandle::abort);
        self.transit.close();
    }
}
