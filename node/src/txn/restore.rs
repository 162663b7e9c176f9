//! A region's own znodes replaced by those of a snapshot, while it runs.
//!
//! The znodes come in pieces through the log and are kept aside until they are whole; one entry then puts them in
//! the place of those that are there. What is shared with other regions, the members and the sessions stay as
//! they are. Ephemerals come with no snapshot; those of sessions that live now stay where their parents do.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use meridian_bridge::mesh::LOCAL;
use serde::{Deserialize, Serialize};

use super::import::ImportedZnode;
use super::request::Event;
use super::snapshot::push_difference;
use super::state::State;
use crate::tree::{Lifetime, Znode, ZnodeRef, split_path};

/// A step of a restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restore {
    /// Another one begins; what an earlier one has brought is forgotten.
    Begin {
        /// Tells one restore from another.
        transfer: u64,
    },
    /// Some of the znodes.
    Put {
        /// See [`Restore::Begin`].
        transfer: u64,
        /// The znodes.
        znodes: Vec<ImportedZnode>,
    },
    /// They are all there: they take effect.
    Finish {
        /// See [`Restore::Begin`].
        transfer: u64,
        /// How many there are.
        znodes: u64,
        /// The zxid that the snapshot stands at: the region's goes on above it.
        zxid: i64,
    },
}

/// What a restore has brought so far.
#[derive(Clone, Debug, Default)]
pub struct Restoring {
    /// Tells one restore from another.
    pub transfer: u64,
    /// The znodes by path.
    pub znodes: OrdMap<Arc<str>, ImportedZnode>,
}

/// The znodes of a state that a restore brings back.
pub fn restorable(state: &State) -> impl Iterator<Item = ImportedZnode> + '_ {
    let wanted = |path: &str, znode: &ZnodeRef<'_>| {
        znode.subtree == LOCAL && is_restored(path) && !matches!(znode.lifetime(), Lifetime::Ephemeral(_))
    };
    state.tree.iter().filter(move |(path, znode)| wanted(path, znode)).map(|(path, znode)| ImportedZnode {
        path: path.into(),
        data: znode.data.map(Bytes::copy_from_slice),
        acl: znode.acl.to_vec(),
        owner: znode.owner,
        times: znode.times,
    })
}

/// Everything but the members and what stands above them.
fn is_restored(path: &str) -> bool {
    path != "/zookeeper/config" && path != "/zookeeper"
}

/// Takes a step; `events` gets what has changed by it.
pub(super) fn apply(state: &mut State, step: Restore, events: &mut Vec<Event>) {
    match step {
        Restore::Begin { transfer } => state.restoring = Restoring { transfer, ..Restoring::default() },
        Restore::Put { transfer, znodes } if transfer == state.restoring.transfer => {
            state.restoring.znodes.extend(znodes.into_iter().map(|z| (Arc::from(&*z.path), z)));
        }
        Restore::Finish { transfer, znodes, zxid } if transfer == state.restoring.transfer => {
            let restoring = std::mem::take(&mut state.restoring);
            if restoring.znodes.len() as u64 != znodes {
                return tracing::error!("a restore that is not whole changes nothing");
            }
            state.catch_up_with(zxid);
            replace(state, &restoring.znodes, events);
        }
        Restore::Put { .. } | Restore::Finish { .. } => {}
    }
}

fn replace(state: &mut State, restored: &OrdMap<Arc<str>, ImportedZnode>, events: &mut Vec<Event>) {
    let before = std::mem::take(&mut state.tree);
    // Parents sort before their children.
    let mut planned: BTreeMap<Arc<str>, Znode> = BTreeMap::new();
    for (path, imported) in restored {
        let is_ephemeral = matches!(Lifetime::of_owner(imported.owner), Lifetime::Ephemeral(_));
        if is_restored(path) && state.mesh.subtree_of(path) == LOCAL && !is_ephemeral {
            planned.insert(path.clone(), znode_of(imported));
        }
    }
    let stays = |path: &str, znode: &ZnodeRef<'_>| {
        znode.subtree != LOCAL || !is_restored(path) || matches!(znode.lifetime(), Lifetime::Ephemeral(_))
    };
    let staying = before.iter().filter(|(path, znode)| stays(path, znode));
    for (path, znode) in staying {
        planned.entry(path.into()).or_insert_with(|| znode.to_owned());
    }
    // What stands above the members and above shared subtrees is needed whatever the snapshot has.
    let fixed = state.mesh.subtrees().map(|(_, subtree)| subtree.path.as_str());
    for path in fixed.chain(["/zookeeper/config", "/zookeeper/quota/"]) {
        let mut path = path;
        while let Some((above, _)) = path.rfind('/').map(|slash| path.split_at(slash.max(1))) {
            if let Some((known, znode)) = before.get(above).map(|znode| (above, znode)) {
                planned.entry(known.into()).or_insert_with(|| znode.to_owned());
            }
            if above == "/" {
                break;
            }
            path = above;
        }
    }
    let tree = &mut state.tree;
    for (path, znode) in planned {
        // Ephemerals go with the znodes above them.
        if split_path(&path).is_none_or(|(parent, _)| tree.contains(parent)) {
            tree.put(&path, znode.as_ref());
        }
    }
    tree.recount_quotas();
    tree.write_quota_stats();
    let mut paths: Vec<&str> = before.iter().map(|(path, _)| path).collect();
    paths.extend(tree.iter().map(|(path, _)| path).filter(|path| !before.contains(path)));
    paths.sort_unstable();
    for path in paths {
        push_difference(path, before.get(path), tree.get(path), events);
    }
}

fn znode_of(imported: &ImportedZnode) -> Znode {
    let ImportedZnode { data, acl, owner, times, .. } = imported.clone();
    Znode { subtree: LOCAL, data, acl: acl.into(), owner, times }
}
