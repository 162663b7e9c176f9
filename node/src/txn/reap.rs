//! Znodes that go by themselves: containers that have been emptied, and znodes whose time to live is over.
//!
//! The leader looks for them and proposes their deletion; whether they are due is judged again where the
//! deletion is applied, with the time of its place in the order. Said twice, it has no effect the second time.

use std::sync::Arc;

use super::request::{Event, remove_znode};
use crate::tree::{Lifetime, Tree, ZnodeRef};

/// Paths of the znodes that are due at a time (ms since the Unix epoch). A container that never had children
/// stays for `never_used_ms`; 0 is for ever.
pub fn due(tree: &Tree, time_ms: i64, never_used_ms: i64) -> impl Iterator<Item = &Arc<str>> {
    tree.mortal().filter(move |path| tree.get(path).is_some_and(|z| is_due(&z, time_ms, never_used_ms)))
}

/// Deletes one if it is due.
pub fn reap(
    tree: &mut Tree,
    path: &str,
    zxid: i64,
    time_ms: i64,
    never_used_ms: i64,
    events: &mut Vec<Event>,
) {
    if tree.get(path).is_some_and(|znode| is_due(&znode, time_ms, never_used_ms)) {
        remove_znode(tree, path, zxid, events);
    }
}

fn is_due(znode: &ZnodeRef<'_>, time_ms: i64, never_used_ms: i64) -> bool {
    let unwritten_ms = time_ms.saturating_sub(znode.times.mtime);
    let is_over = match znode.lifetime() {
        Lifetime::Container if znode.times.cversion != 0 => true,
        Lifetime::Container => never_used_ms > 0 && unwritten_ms > never_used_ms,
        Lifetime::Ttl(ttl_ms) => unwritten_ms > ttl_ms,
        Lifetime::Persistent | Lifetime::Ephemeral(_) => false,
    };
    is_over && znode.children == 0
}
