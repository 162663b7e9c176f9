//! Znodes from elsewhere, taken with their versions, times and ACLs as they were there.

use std::sync::Arc;

use bytes::Bytes;
use meridian_bridge::mesh::{LOCAL, Mesh};
use meridian_wire::{EventType, validate_path};
use serde::{Deserialize, Serialize};

use super::request::Event;
use super::snapshot::weight_of;
use crate::tree::{Acl, Lifetime, Times, Tree, Znode, split_path};

/// Znodes to take, parents before their children.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// The highest zxid that clients of the old ensemble may have seen: the region's goes on above it.
    pub zxid: i64,
    /// The znodes.
    pub znodes: Vec<ImportedZnode>,
}

/// A znode as it was elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedZnode {
    /// Its path.
    pub path: Box<str>,
    /// Its data; null is not empty.
    pub data: Option<Bytes>,
    /// Who may do what.
    pub acl: Vec<Acl>,
    /// How long it stays, as [`Lifetime::to_owner`] has it; never a session.
    pub owner: i64,
    /// Its times, versions and zxids.
    pub times: Times,
}

impl ImportedZnode {
    /// About the bytes it takes.
    pub fn weight(&self) -> usize {
        weight_of(&self.path, self.data.as_ref(), &self.acl)
    }

    /// Why it can't be taken; `known` says whether a path exists or comes before this one.
    pub fn refusal(&self, mesh: &Mesh, known: impl Fn(&str) -> bool) -> Option<String> {
        let path = &*self.path;
        let reason = if validate_path(path).is_err() {
            "is no valid path".to_string()
        } else if path == "/zookeeper" || path.starts_with("/zookeeper/") {
            "belongs to the server".to_string()
        } else if mesh.subtree_of(path) != LOCAL {
            "belongs to a shared subtree: regions agree on its znodes; write it with a client".to_string()
        } else if matches!(Lifetime::of_owner(self.owner), Lifetime::Ephemeral(_)) {
            "is ephemeral: its session is not here".to_string()
        } else if split_path(path).is_some_and(|(parent, _)| !known(parent)) {
            "has no parent".to_string()
        } else {
            return None;
        };
        Some(format!("{path} {reason}"))
    }

    /// Whether a tree has it exactly so.
    pub fn is_in(&self, tree: &Tree) -> bool {
        tree.get(&self.path).is_some_and(|znode| {
            znode.data == self.data.as_deref()
                && **znode.acl == *self.acl
                && znode.owner == self.owner
                && znode.times == self.times
        })
    }
}

/// Puts znodes into a tree, over those that are there; what can't be taken is left out.
pub(super) fn apply(tree: &mut Tree, mesh: &Mesh, import: Import, events: &mut Vec<Event>) {
    for imported in import.znodes {
        if imported.refusal(mesh, |parent| tree.contains(parent)).is_some() {
            continue;
        }
        let path: Arc<str> = imported.path.into();
        let ImportedZnode { data, acl, owner, times, .. } = imported;
        let acl: Arc<[Acl]> = acl.into();
        if tree.contains(&path) {
            tree.change(&path, |znode| {
                (znode.data, znode.owner, znode.times) = (data, owner, times);
                znode.acl = acl.clone();
            });
            events.push(Event::new(EventType::NodeDataChanged, path, &acl));
            continue;
        }
        tree.put(&path, Znode { subtree: LOCAL, data, acl: acl.clone(), owner, times }.as_ref());
        if let Some((parent, _)) = split_path(&path)
            && let Some(znode) = tree.get(parent)
        {
            events.push(Event::new(EventType::NodeChildrenChanged, parent, znode.acl));
        }
        events.push(Event::new(EventType::NodeCreated, path, &acl));
    }
    tree.recount_quotas();
    tree.write_quota_stats();
}
