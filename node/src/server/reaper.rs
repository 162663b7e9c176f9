//! The leader's duty to the znodes that go by themselves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian_bridge::mesh::Orderer;
use meridian_seam::limits;
use tokio::time::MissedTickBehavior;

use super::connection::Service;
use crate::txn::{Command, State, reap::due};

/// How often the leader looks for znodes that go by themselves, and how many it deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaping {
    /// `znode.container.checkIntervalMs`.
    pub interval: Duration,
    /// `znode.container.maxPerMinute`.
    pub per_minute_max: u32,
    /// `znode.container.maxNeverUsedIntervalMs`: how long a container stays that never had children; zero is for
    /// ever.
    pub never_used: Duration,
}

impl Default for Reaping {
    fn default() -> Self {
        Self { interval: Duration::from_secs(60), per_minute_max: 10_000, never_used: Duration::ZERO }
    }
}

impl Reaping {
    /// How many may be deleted after each look, at least one.
    fn at_once_max(&self) -> usize {
        const MINUTE_MS: u128 = 60_000;
        let share = u128::from(self.per_minute_max) * self.interval.as_millis() / MINUTE_MS;
        usize::try_from(share).unwrap_or(usize::MAX).max(1)
    }
}

/// Proposes what is due while this server leads.
pub(super) async fn reap(service: Arc<Service>) {
    let reaping = service.options.reaping;
    let leadership = service.region.leadership();
    let mut ticks = tokio::time::interval(reaping.interval.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut overdue = Overdue::default();
    loop {
        ticks.tick().await;
        if !leadership.borrow().is_me {
            overdue = Overdue::default();
            continue;
        }
        let never_used_ms = i64::try_from(reaping.never_used.as_millis()).unwrap_or(i64::MAX);
        let state = &service.hub.view().state;
        let paths = overdue.look(state, service.hub.unix_ms(), never_used_ms, reaping.at_once_max());
        propose(&service, &paths, never_used_ms).await;
    }
}

/// What was due in earlier looks and is still there. Every region could have a global znode deleted, and one is
/// enough: the second region of the mesh waits for one look more than the first, and so on.
#[derive(Default)]
struct Overdue(BTreeMap<Arc<str>, u8>);

impl Overdue {
    /// The paths to be deleted now.
    fn look(&mut self, state: &State, time_ms: i64, never_used_ms: i64, at_once_max: usize) -> Vec<Box<str>> {
        let mut seen = BTreeMap::new();
        let mut now = Vec::new();
        for path in due(&state.tree, time_ms, never_used_ms) {
            let patience = match state.orderer_of(path) {
                Some(orderer @ Orderer::Home(_)) if !state.federation.orders_here(orderer) => continue,
                Some(Orderer::Global) => state.region.saturating_sub(1),
                _ => 0,
            };
            let looks = self.0.get(path).map_or(0, |looks| looks.saturating_add(1));
            if looks >= patience && now.len() < at_once_max {
                now.push(Box::from(&**path));
            }
            if patience > 0 {
                seen.insert(path.clone(), looks);
            }
        }
        self.0 = seen;
        now
    }
}

async fn propose(service: &Service, paths: &[Box<str>], never_used_ms: i64) {
    for paths in paths.chunks(limits::REAPED_ZNODES_PER_COMMAND) {
        tracing::debug!(count = paths.len(), first = &*paths[0], "znodes are due");
        let command = Command::Reap { paths: paths.to_vec(), never_used_ms };
        if let Err(error) = service.region.propose(&command).await {
            tracing::debug!(%error, "znodes will be deleted later");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_per_minute_is_spread_over_its_looks() {
        let reaping = |ms, per_minute_max| Reaping {
            interval: Duration::from_millis(ms),
            per_minute_max,
            ..Reaping::default()
        };
        assert_eq!(Reaping::default().at_once_max(), 10_000);
        assert_eq!(reaping(1_000, 10_000).at_once_max(), 166);
        assert_eq!(reaping(1, 1).at_once_max(), 1);
    }
}
