//! A running server goes to the ports that a change of the members gives it. One that is started takes those of its
//! configuration.

use std::sync::Arc;

use arc_swap::ArcSwap;
use meridian_seam::net::Mover;
use meridian_seam::watch;

use super::machine::View;
use super::{Leadership, RegionConfig};
use crate::txn::ensemble::Member;

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
        while self.version.changed().await.is_ok() {
            let port = self.port(address_of);
            // What is read back from the disk before a leader is known was so before the start.
            let is_new = known.is_some() && self.leadership.borrow().leader.is_some();
            if let Some(port) = port.filter(|_| is_new && port != known) {
                mover.move_to(port);
            }
            known = port.or(known);
            if let (Some(port), false) = (port, is_new)
                && port != mover.address().port()
            {
                tracing::warn!(
                    members_say = port,
                    listening = %mover.address(),
                    "the region's members have another port for this server than its configuration: correct one of them"
                );
            }
        }
    }

    fn port(&self, address_of: fn(&Member) -> Option<&str>) -> Option<u16> {
        let view = self.view.load();
        let member = view.state.ensemble.members.get(&u8::try_from(self.config.server).ok()?)?;
        let (_, port) = address_of(member)?.rsplit_once(':')?;
        port.parse().ok().filter(|port| *port != 0)
    }
}
