//! What must hold in the servers' states, whatever happens: looked at whenever a server has published another one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_bridge::mesh::{LOCAL, Mode, SubtreeId};
use meridian_node::region::View;
use meridian_node::tree::ZnodeRef;
use meridian_node::txn::{State, sessions_of_region};

use super::history::History;
use super::server::SimServer;

/// The digests seen at each place of each order: one digest per place.
#[derive(Default)]
pub(super) struct Published {
    /// The index of the log that each server has shown last.
    shown: BTreeMap<usize, u64>,
    /// Of a region's own tree, by region and index of its log.
    local: BTreeMap<(usize, u64), (i64, u128)>,
    /// Of shared subtrees, by subtree and position, with the first view that was there.
    shared: BTreeMap<(u16, u64), (u128, Arc<View>)>,
}

impl Published {
    pub(super) fn check(&mut self, servers: &[SimServer], history: &History) {
        for (number, server) in servers.iter().enumerate() {
            let Some(view) = server.view() else { continue };
            if self.shown.insert(number, view.position.index) == Some(view.position.index) {
                continue;
            }
            history.count("states compared");
            let found = [
                self.compare_local(server, &view),
                self.compare_shared(server, &view),
                expect_owners_to_live(&view.state),
            ];
            for text in found.into_iter().flatten() {
                history.violation(format!("{} at {}: {text}", server.name, view.position.index));
            }
        }
    }

    fn compare_local(&mut self, server: &SimServer, view: &View) -> Option<String> {
        let local = (view.state.zxid, view.state.tree.digest(LOCAL));
        let known = *self.local.entry((server.region, view.position.index)).or_insert(local);
        (known != local).then(|| format!("zxid and digest are {local:x?}, another server had {known:x?}"))
    }

    fn compare_shared(&mut self, server: &SimServer, view: &Arc<View>) -> Option<String> {
        let state = &view.state;
        for (subtree, _) in state.mesh.subtrees() {
            let orderer = state.mesh.orderer_of(subtree);
            let order = orderer.and_then(|orderer| state.federation.orders.get(&orderer));
            let Some(position) = order.map(|order| order.position) else { continue };
            let digest = state.tree.digest(subtree);
            let (known, first) =
                self.shared.entry((subtree, position)).or_insert_with(|| (digest, view.clone()));
            if *known != digest {
                return Some(format!(
                    "subtree {subtree} at position {position} of region {} differs from that of region {}: {}",
                    server.region,
                    first.state.region - 1,
                    first_difference(subtree, &first.state, state)
                ));
            }
        }
        None
    }
}

/// Ephemerals go with their sessions: here at once; what others order, as soon as they have ordered it.
fn expect_owners_to_live(state: &State) -> Option<String> {
    let owners = state.tree.ephemeral_owners(sessions_of_region(state.region));
    for session in owners.filter(|session| !state.sessions.contains_key(session)) {
        for path in state.tree.ephemerals_of(session) {
            let outbox = state.orderer_of(path).and_then(|orderer| state.federation.outboxes.get(&orderer));
            if outbox.is_none_or(|outbox| outbox.requests.is_empty()) {
                return Some(format!("{path} is there, but its session {session:x} is not"));
            }
        }
    }
    None
}

/// The first znode, by path, in which two states of a subtree differ.
fn first_difference(subtree: SubtreeId, first: &State, second: &State) -> String {
    fn of(state: &State, subtree: SubtreeId) -> BTreeMap<&str, ZnodeRef<'_>> {
        state.tree.iter().filter(|(path, _)| state.mesh.subtree_of(path) == subtree).collect()
    }
    let (first, second) = (of(first, subtree), of(second, subtree));
    let paths: BTreeSet<&&str> = first.keys().chain(second.keys()).collect();
    let differs = paths.into_iter().find(|path| first.get(*path) != second.get(*path));
    differs.map_or_else(
        || "no znode differs".into(),
        |path| format!("{path} is {:?} and {:?}", first.get(path), second.get(path)),
    )
}

/// What is not yet as it will be when nothing happens any more. What is homed is left out if its home is lost.
pub(super) fn difference(servers: &[SimServer], home_is_lost: bool) -> Option<String> {
    let mut first_of_region: BTreeMap<usize, Arc<View>> = BTreeMap::new();
    let counts = |path: &str| !(home_is_lost && path.starts_with("/homed"));
    for server in servers.iter().filter(|server| !server.is_lost) {
        let name = &server.name;
        let Some(view) = server.view() else { return Some(format!("{name} does not run")) };
        let state = &view.state;
        let ephemeral =
            state.tree.iter().find(|(path, znode)| znode.owner != 0 && counts(path)).map(|(path, _)| path);
        if let Some(path) = ephemeral {
            return Some(format!("{name} has {path}"));
        }
        if !state.sessions.is_empty() {
            return Some(format!("{name} has {} sessions", state.sessions.len()));
        }
        let first = first_of_region.entry(server.region).or_insert_with(|| view.clone());
        if first.position != view.position {
            return Some(format!("{name} is at {:?}, another server at {:?}", view.position, first.position));
        }
    }
    shared_difference(servers, home_is_lost)
}

/// In what shared subtrees differ between servers, if they do.
pub(super) fn shared_difference(servers: &[SimServer], home_is_lost: bool) -> Option<String> {
    let views = || servers.iter().filter_map(|server| Some((server, server.view()?)));
    let (_, first) = views().next()?;
    let position = |state: &State, subtree| {
        let orderer = state.mesh.orderer_of(subtree)?;
        state.federation.orders.get(&orderer).map(|order| order.position)
    };
    for (server, view) in views() {
        for (subtree, shared) in view.state.mesh.subtrees() {
            if home_is_lost && matches!(shared.mode, Mode::Homed { .. }) {
                continue;
            }
            let (here, there) = (position(&view.state, subtree), position(&first.state, subtree));
            if here != there {
                let name = &server.name;
                return Some(format!("{name} has {} at {here:?}, another server at {there:?}", shared.path));
            }
            if view.state.tree.digest(subtree) != first.state.tree.digest(subtree) {
                return Some(format!("{} has another digest of {}", server.name, shared.path));
            }
        }
    }
    None
}
