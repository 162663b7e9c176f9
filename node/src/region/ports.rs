//! A running server goes to the ports that a change of the members gives it. One that is started takes those of its
//! configuration.

use std::sync::Arc;

use arc_swap::ArcSwap;
use meridian_seam::net::Mover;
use meridian_seam::watch;

use super::machine::View;
use super::{Leadership, RegionConfig};
use crate::txn::ensemble::{Member, port_of};

/// What following takes.
#[derive(Clone)]
pub(super) struct Ports {
    pub(super) config: Arc<RegionConfig>,
    pub(super) view: Arc<ArcSwap<View>>,
    pub(super) leadership: watch::Receiver<Leadership>,
    /// The version of the members.
    pub(super) version: watch::Receiver<i64>,
}

impl Ports {
    /// Has a listener follow one of the addresses of this server, for as long as the region runs.
    pub(super) async fn follow(mut self, address_of: fn(&Member) -> Option<&str>, mover: Mover) {
        let mut known = self.port(address_of);
        // Where the network maps ports, members have another one for this server than it listens at.
        let mut follows = known == Some(mover.address().port());
        while self.version.changed().await.is_ok() {
            let Some(port) = self.port(address_of) else { continue };
            // What is read back from the disk before a leader is known was so before the start.
            let is_new = known.is_some() && self.leadership.borrow().leader.is_some();
            if !is_new {
                follows = port == mover.address().port();
            } else if follows && known != Some(port) {
                mover.move_to(port);
            }
            if !follows {
                tracing::info!(
                    members_say = port,
                    listening = %mover.address(),
                    "the region's members have another port for this server than its configuration"
                );
            }
            known = Some(port);
        }
    }

    fn port(&self, address_of: fn(&Member) -> Option<&str>) -> Option<u16> {
        let view = self.view.load();
        let member = view.state.ensemble.members.get(&u8::try_from(self.config.server).ok()?)?;
        port_of(address_of(member)?).filter(|port| *port != 0)
    }
}
