//! Znodes: a persistent tree that is cheap to clone, so that readers and snapshots keep a consistent
//! view while writes go on.
//!
//! Paths map to znodes in one hash map; a znode lists its children's names. Every change keeps the
//! index of ephemerals and, per subtree, a digest: the wrapping sum of a 128-bit hash of every znode
//! (path, data, ACL, stat). Equal content has an equal digest, whatever order it was written in.
//!
//! The tree checks nothing that clients may or may not do; that is the transaction's part
//! ([`crate::txn`]).

mod lifetime;
mod quota;

pub use lifetime::{Lifetime, TTL_MS_MAX};
pub use quota::{Limits, Usage};

use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::FixedState;
use imbl::{GenericHashMap, OrdMap, OrdSet};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use meridian_bridge::mesh::SubtreeId;
use meridian_wire::Stat;

type ZnodeMap = GenericHashMap<Arc<str>, Arc<Znode>, FixedState, imbl::shared_ptr::DefaultSharedPtr>;

/// All znodes of a region. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    znodes: ZnodeMap,
    /// Paths of ephemerals by the session that owns them.
    ephemerals: OrdMap<i64, OrdSet<Arc<str>>>,
    /// Paths of containers and of znodes with a time to live.
    mortal: OrdSet<Arc<str>>,
    /// What is used of each quota, by its path.
    quotas: OrdMap<Arc<str>, Usage>,
    digests: OrdMap<SubtreeId, u128>,
    data_bytes: u64,
}

/// A znode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Znode {
    /// The subtree it belongs to.
    pub subtree: SubtreeId,
    /// Its data; clients tell null from empty.
    pub data: Option<Bytes>,
    /// Who may do what.
    pub acl: Arc<[Acl]>,
    /// How long it stays: [`Znode::lifetime`].
    pub owner: i64,
    /// Its times, versions and zxids.
    pub times: Times,
    /// Names of its children.
    pub children: OrdSet<Arc<str>>,
}

/// The part of a stat that is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// zxid of its creation.
    pub czxid: i64,
    /// zxid of the last change of its data.
    pub mzxid: i64,
    /// zxid of the last creation or deletion of a child.
    pub pzxid: i64,
    /// Time of its creation, ms since the Unix epoch.
    pub ctime: i64,
    /// Time of the last change of its data.
    pub mtime: i64,
    /// Changes of its data.
    pub version: i32,
    /// Creations of children: the number of the next sequential child. The stat that clients see counts
    /// deletions as well.
    pub cversion: i32,
    /// Changes of its ACL.
    pub aversion: i32,
}

/// An entry of an ACL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Acl {
    /// Bits of [`meridian_wire::perms`].
    pub perms: i32,
    /// How `id` is to be read: `world`, `digest`, `ip`, ...
    pub scheme: Box<str>,
    /// Whom it is about.
    pub id: Box<str>,
}

impl Acl {
    /// `world:anyone` may do everything.
    pub fn open() -> Self {
        Self { perms: meridian_wire::perms::ALL, scheme: "world".into(), id: "anyone".into() }
    }
}

impl Znode {
    /// How long it stays.
    pub fn lifetime(&self) -> Lifetime {
        Lifetime::of_owner(self.owner)
    }

    /// The stat that clients see.
    pub fn stat(&self) -> Stat {
        let Times { czxid, mzxid, pzxid, ctime, mtime, version, cversion, aversion } = self.times;
        let num_children = i32::try_from(self.children.len()).unwrap_or(i32::MAX);
        Stat {
            czxid,
            mzxid,
            ctime,
            mtime,
            version,
            // Every child was created, and those that are not there any more were deleted.
            cversion: cversion.wrapping_mul(2).wrapping_sub(num_children),
            aversion,
            ephemeral_owner: self.lifetime().session(),
            data_length: self.data.as_ref().map_or(0, |d| i32::try_from(d.len()).unwrap_or(i32::MAX)),
            num_children,
            pzxid,
        }
    }

    fn data_len(&self) -> u64 {
        self.data.as_ref().map_or(0, |d| d.len() as u64)
    }

    /// A hash of everything that must be equal in all copies. The subtree's root is hashed like any
    /// other znode; its place above does not enter.
    fn hash(&self, path: &str) -> u128 {
        let mut hasher = Xxh3::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(path.as_bytes());
        match &self.data {
            Some(data) => field(data),
            None => field(&[0xff; 3]),
        }
        for acl in self.acl.iter() {
            field(&acl.perms.to_le_bytes());
            field(acl.scheme.as_bytes());
            field(acl.id.as_bytes());
        }
        let Times { czxid, mzxid, pzxid, ctime, mtime, version, cversion, aversion } = self.times;
        for number in [czxid, mzxid, pzxid, ctime, mtime, self.owner] {
            hasher.update(&number.to_le_bytes());
        }
        for number in [version, cversion, aversion] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.digest128()
    }
}

/// The parent's path and the last name of a path; `None` for the root.
pub fn split_path(path: &str) -> Option<(&str, &str)> {
    let slash = path.rfind('/')?;
    let name = &path[slash + 1..];
    if name.is_empty() {
        return None;
    }
    Some((if slash == 0 { "/" } else { &path[..slash] }, name))
}

impl Tree {
    /// The znode at a path.
    pub fn get(&self, path: &str) -> Option<&Arc<Znode>> {
        self.znodes.get(path)
    }

    /// Number of znodes.
    pub fn len(&self) -> usize {
        self.znodes.len()
    }

    /// Whether there is not even a root.
    pub fn is_empty(&self) -> bool {
        self.znodes.is_empty()
    }

    /// Sum of the lengths of data and paths, as ZooKeeper's `approximate_data_size` counts them.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Number of ephemerals.
    pub fn ephemeral_count(&self) -> usize {
        self.ephemerals.values().map(OrdSet::len).sum()
    }

    /// The digest of a subtree's content.
    pub fn digest(&self, subtree: SubtreeId) -> u128 {
        self.digests.get(&subtree).copied().unwrap_or(0)
    }

    /// All znodes with their paths, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Znode>)> {
        self.znodes.iter()
    }

    /// Paths of a session's ephemerals.
    pub fn ephemerals_of(&self, session: i64) -> impl Iterator<Item = &Arc<str>> {
        self.ephemerals.get(&session).into_iter().flat_map(OrdSet::iter)
    }

    /// Paths of containers and of znodes with a time to live, which go by themselves one day.
    pub fn mortal(&self) -> impl Iterator<Item = &Arc<str>> {
        self.mortal.iter()
    }

    /// Sessions that own ephemerals, within a range of identifiers.
    pub fn ephemeral_owners(
        &self,
        sessions: std::ops::RangeInclusive<i64>,
    ) -> impl Iterator<Item = i64> + '_ {
        self.ephemerals.range(sessions).map(|(session, _)| *session)
    }

    /// Puts a znode at a path, over one that is there, and into its parent's list of children, without touching
    /// the parent's stat: for the roots of subtrees and for loading a snapshot. Quotas are to be counted anew then.
    pub fn put(&mut self, path: Arc<str>, znode: Znode) {
        if let Some((parent, name)) = split_path(&path)
            && let Some(parent) = self.znodes.get_mut(parent)
        {
            Arc::make_mut(parent).children.insert(name.into());
        }
        self.remove(&path);
        self.account(&path, &znode, true);
        self.znodes.insert(path, Arc::new(znode));
    }

    /// Creates a znode. Its parent must exist.
    pub fn create(&mut self, path: Arc<str>, znode: Znode) {
        let zxid = znode.times.czxid;
        if let Some((parent, name)) = split_path(&path) {
            self.change(parent, |parent| {
                parent.children.insert(name.into());
                parent.times.cversion = parent.times.cversion.wrapping_add(1);
                parent.times.pzxid = zxid;
            });
        }
        self.account(&path, &znode, true);
        let bytes = znode.data_len() as i64;
        self.znodes.insert(path.clone(), Arc::new(znode));
        self.charge(&path, 1, bytes);
        self.note_quota(&path, true);
    }

    /// Deletes a znode without children.
    pub fn delete(&mut self, path: &str, zxid: i64) {
        let bytes = self.get(path).map_or(0, |znode| znode.data_len() as i64);
        self.charge(path, -1, -bytes);
        self.remove(path);
        self.note_quota(path, false);
        if let Some((parent, name)) = split_path(path) {
            self.change(parent, |parent| {
                parent.children.remove(name);
                parent.times.pzxid = zxid;
            });
        }
    }

    /// Changes a znode in place; nothing happens if it does not exist.
    pub fn change(&mut self, path: &str, change: impl FnOnce(&mut Znode)) {
        let Some(slot) = self.znodes.get_mut(path) else { return };
        let znode = Arc::make_mut(slot);
        let (before, bytes_before, lifetime_before) = (znode.hash(path), znode.data_len(), znode.lifetime());
        change(znode);
        let lifetime = znode.lifetime();
        let delta = znode.hash(path).wrapping_sub(before);
        let bytes_after = znode.data_len();
        self.data_bytes = self.data_bytes - bytes_before + bytes_after;
        let digest = self.digests.entry(znode.subtree).or_insert(0);
        *digest = digest.wrapping_add(delta);
        if lifetime != lifetime_before {
            self.index(path, lifetime_before, false);
            self.index(path, lifetime, true);
        }
        if bytes_after != bytes_before {
            self.charge(path, 0, bytes_after as i64 - bytes_before as i64);
        }
    }

    /// Removes everything that belongs to a subtree, its root included, without touching the parent's
    /// stat: before a complete snapshot of it replaces it.
    pub fn remove_subtree(&mut self, subtree: SubtreeId) {
        let paths: Vec<Arc<str>> =
            self.znodes.iter().filter(|(_, z)| z.subtree == subtree).map(|(p, _)| p.clone()).collect();
        for path in &paths {
            self.remove(path);
            if let Some((parent, name)) = split_path(path)
                && let Some(parent) = self.znodes.get_mut(parent)
            {
                Arc::make_mut(parent).children.remove(name);
            }
        }
    }

    fn remove(&mut self, path: &str) {
        if let Some(znode) = self.znodes.remove(path) {
            self.account(path, &znode, false);
        }
    }

    /// Keeps the digest, the size and the index of ephemerals as a znode comes or goes.
    fn account(&mut self, path: &str, znode: &Znode, comes: bool) {
        let bytes = znode.data_len() + path.len() as u64;
        let digest = self.digests.entry(znode.subtree).or_insert(0);
        if comes {
            *digest = digest.wrapping_add(znode.hash(path));
            self.data_bytes += bytes;
        } else {
            *digest = digest.wrapping_sub(znode.hash(path));
            self.data_bytes -= bytes;
        }
        self.index(path, znode.lifetime(), comes);
    }

    /// Keeps the indexes of znodes that go with a session or by themselves.
    fn index(&mut self, path: &str, lifetime: Lifetime, comes: bool) {
        match lifetime {
            Lifetime::Persistent => {}
            Lifetime::Ephemeral(session) if comes => {
                self.ephemerals.entry(session).or_default().insert(path.into());
            }
            Lifetime::Ephemeral(session) => {
                let Some(paths) = self.ephemerals.get_mut(&session) else { return };
                paths.remove(path);
                if paths.is_empty() {
                    self.ephemerals.remove(&session);
                }
            }
            Lifetime::Container | Lifetime::Ttl(_) if comes => {
                self.mortal.insert(path.into());
            }
            Lifetime::Container | Lifetime::Ttl(_) => {
                self.mortal.remove(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(super) fn znode(owner: i64, data: &str, zxid: i64) -> Znode {
        Znode {
            subtree: 0,
            data: Some(Bytes::copy_from_slice(data.as_bytes())),
            acl: Arc::new([Acl::open()]),
            owner,
            times: Times { czxid: zxid, mzxid: zxid, pzxid: zxid, ..Times::default() },
            children: OrdSet::new(),
        }
    }

    pub(super) fn rooted() -> Tree {
        let mut tree = Tree::default();
        tree.put("/".into(), znode(0, "", 0));
        tree
    }

    #[test]
    fn split_path_knows_the_root() {
        assert_eq!(split_path("/"), None);
        assert_eq!(split_path("/a"), Some(("/", "a")));
        assert_eq!(split_path("/a/b"), Some(("/a", "b")));
    }

    #[test]
    fn indexes_follow_a_change_of_lifetime() {
        let mut tree = rooted();
        tree.create("/a".into(), znode(5, "", 1));
        tree.change("/a", |z| z.owner = Lifetime::Container.to_owner());
        assert_eq!((tree.ephemeral_count(), tree.mortal().count()), (0, 1));
        tree.change("/a", |z| z.owner = 0);
        assert_eq!((tree.ephemeral_count(), tree.mortal().count()), (0, 0));
        tree.delete("/a", 2);
    }

    #[test]
    fn a_clone_keeps_its_view() {
        let mut tree = rooted();
        tree.create("/a".into(), znode(0, "x", 1));
        let view = tree.clone();
        tree.change("/a", |z| z.data = None);
        tree.create("/a/b".into(), znode(5, "y", 2));
        assert_eq!(view.get("/a").unwrap().data.as_deref(), Some(&b"x"[..]));
        assert_eq!(view.get("/a").unwrap().children.len(), 0);
        assert_eq!(tree.get("/a").unwrap().stat().num_children, 1);
        assert_eq!(tree.get("/a").unwrap().times.pzxid, 2);
        assert_eq!(tree.ephemerals_of(5).count(), 1);
    }

    proptest! {
        /// The digest and the size depend on what is there, not on how it came about.
        #[test]
        fn accounting_follows_content(ops in proptest::collection::vec((0u8..3, 0u8..6, 0i64..3, ".{0,4}"), 0..60)) {
            let mut tree = rooted();
            let mut zxid = 0;
            for (op, name, owner, data) in ops {
                zxid += 1;
                let path = format!("/{name}");
                match (op, tree.get(&path).is_some()) {
                    (0, false) => tree.create(path.as_str().into(), znode(owner, &data, zxid)),
                    (1, true) => tree.delete(&path, zxid),
                    (2, true) => tree.change(&path, |z| z.data = Some(data.into_bytes().into())),
                    _ => {}
                }
            }
            let mut again = Tree::default();
            let mut all: Vec<_> = tree.iter().collect();
            all.sort_by_key(|(path, _)| path.len());
            for (path, znode) in all {
                again.put(path.clone(), Znode::clone(znode));
            }
            prop_assert_eq!(again.digest(0), tree.digest(0));
            prop_assert_eq!(again.data_bytes(), tree.data_bytes());
            prop_assert_eq!(again.ephemeral_count(), tree.ephemeral_count());
        }
    }
}
