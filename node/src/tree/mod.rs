//! Znodes: a persistent tree that is cheap to clone, so that readers and snapshots keep a consistent
//! view while writes go on.
//!
//! One table maps paths to znodes, another one paths to the names of their children. Every change keeps the
//! index of ephemerals and, per subtree, a digest: the wrapping sum of a 128-bit hash of every znode
//! (path, data, ACL, stat). Equal content has an equal digest, whatever order it was written in.
//!
//! The tree checks nothing that clients may or may not do; that is the transaction's part
//! ([`crate::txn`]).

mod acls;
mod lifetime;
mod packed;
mod quota;
mod table;
mod znode;

pub use lifetime::{Lifetime, TTL_MS_MAX};
pub use quota::{Limits, Usage};
pub use znode::{Acl, Times, Znode, ZnodeRef};

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::FixedState;
use imbl::{GenericHashMap, OrdMap, OrdSet};
use meridian_bridge::mesh::SubtreeId;
use meridian_wire::Stat;

use acls::Acls;
use packed::{Data, Packed};
use table::Table;

type Map<V> = GenericHashMap<Arc<str>, V, FixedState, imbl::shared_ptr::DefaultSharedPtr>;

/// Larger data stands by itself, so that it is not copied whenever a znode beside it changes.
const PACKED_DATA_BYTES_MAX: usize = 512;

/// All znodes of a region. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    znodes: Table,
    /// Names of children, by the parent's path.
    children: Map<Table>,
    /// Data that does not stand with its znode.
    large_data: Map<Bytes>,
    acls: Acls,
    /// Paths of ephemerals by the session that owns them.
    ephemerals: OrdMap<i64, OrdSet<Arc<str>>>,
    /// Paths of containers and of znodes with a time to live.
    mortal: OrdSet<Arc<str>>,
    /// What is used of each quota, by its path.
    quotas: OrdMap<Arc<str>, Usage>,
    digests: OrdMap<SubtreeId, u128>,
    data_bytes: u64,
}

/// A tree that is put together piece by piece, faster than znode by znode.
#[derive(Debug, Default)]
pub struct Planting {
    tree: Tree,
    repeats: bool,
}

impl Planting {
    /// Some of the znodes, in any order. Those that [`Tree::iter`] of another tree tells are the fastest.
    pub fn add<'z>(&mut self, znodes: impl IntoIterator<Item = (&'z str, ZnodeRef<'z>)>) {
        self.repeats |= !self.tree.plant(znodes);
    }

    /// The whole tree; `None` if a path came twice.
    pub fn finish(mut self) -> Option<Tree> {
        let znodes = self.tree.znodes.clone();
        self.tree.link_all(znodes.iter().map(|(path, _)| path));
        (!self.repeats).then_some(self.tree)
    }
}

/// To reads and watches the empty path is the root, as in ZooKeeper.
pub fn or_root(path: &str) -> &str {
    if path.is_empty() { "/" } else { path }
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
    pub fn get(&self, path: &str) -> Option<ZnodeRef<'_>> {
        self.unpack(path, Packed::decode(self.znodes.get(path)?))
    }

    /// Whether there is a znode at a path.
    pub fn contains(&self, path: &str) -> bool {
        self.znodes.get(path).is_some()
    }

    /// Names of a znode's children, in no particular order.
    pub fn children(&self, path: &str) -> impl Iterator<Item = &str> {
        self.children.get(path).into_iter().flat_map(Table::iter).map(|(name, _)| name)
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
    pub fn iter(&self) -> impl Iterator<Item = (&str, ZnodeRef<'_>)> {
        self.znodes.iter().filter_map(|(path, bytes)| Some((path, self.unpack(path, Packed::decode(bytes))?)))
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
    /// the parent's stat: for the roots of subtrees. Quotas are to be counted anew then.
    pub fn put(&mut self, path: &str, znode: ZnodeRef<'_>) {
        self.extend([(path, znode)]);
    }

    /// Puts many znodes, in any order but each once.
    pub fn extend<'z>(&mut self, znodes: impl IntoIterator<Item = (&'z str, ZnodeRef<'z>)>) {
        let znodes: Vec<_> = znodes.into_iter().collect();
        znodes.iter().for_each(|(path, _)| self.remove(path));
        let paths: Vec<&str> = znodes.iter().map(|(path, _)| *path).collect();
        self.plant(znodes);
        self.link_all(paths);
    }

    /// Creates a znode. Its parent must exist.
    pub fn create(&mut self, path: &str, znode: ZnodeRef<'_>) {
        if let Some((parent, name)) = split_path(path) {
            self.link(parent, name);
            self.change_times(parent, |times| {
                times.cversion = times.cversion.wrapping_add(1);
                times.pzxid = znode.times.czxid;
            });
        }
        self.store(path, &znode);
        self.account(path, &znode);
        self.charge(path, 1, znode.data_len() as i64);
        self.note_quota(path, true);
    }

    /// Deletes a znode without children.
    pub fn delete(&mut self, path: &str, zxid: i64) {
        let bytes = self.get(path).map_or(0, |znode| znode.data_len() as i64);
        self.charge(path, -1, -bytes);
        self.remove(path);
        self.note_quota(path, false);
        if let Some((parent, name)) = split_path(path) {
            self.unlink(parent, name);
            self.change_times(parent, |times| times.pzxid = zxid);
        }
    }

    /// Changes a znode in place, and tells its stat; nothing happens if it does not exist.
    pub fn change(&mut self, path: &str, change: impl FnOnce(&mut Znode)) -> Option<Stat> {
        let mut znode = self.get(path)?.to_owned();
        change(&mut znode);
        self.replace(path, znode.as_ref())
    }

    /// Gives a znode other data and times, and tells its stat; nothing happens if it does not exist.
    pub fn set_data(&mut self, path: &str, data: Option<&[u8]>, times: Times) -> Option<Stat> {
        let ZnodeRef { subtree, acl, owner, .. } = self.get(path)?;
        let acl = acl.clone();
        self.replace(path, ZnodeRef { subtree, data, acl: &acl, owner, times, children: 0 })
    }

    /// Removes everything that belongs to a subtree, its root included, without touching the parent's
    /// stat: before a complete snapshot of it replaces it.
    pub fn remove_subtree(&mut self, subtree: SubtreeId) {
        let inside = self.iter().filter(|(_, znode)| znode.subtree == subtree);
        let paths: Vec<String> = inside.map(|(path, _)| path.to_string()).collect();
        for path in &paths {
            self.remove(path);
            if let Some((parent, name)) = split_path(path) {
                self.unlink(parent, name);
                self.change_times(parent, |_| {});
            }
        }
    }

    fn unpack<'t>(&'t self, path: &str, packed: Packed<'t>) -> Option<ZnodeRef<'t>> {
        let Packed { subtree, acl, children, owner, times, data } = packed;
        let data = match data {
            Data::Null => None,
            Data::Here(data) => Some(data),
            Data::Elsewhere => Some(&self.large_data.get(path)?[..]),
        };
        Some(ZnodeRef { subtree, data, acl: self.acls.get(acl)?, owner, times, children })
    }

    /// Puts many znodes where there are none, and tells whether there were none. The parents' lists are left to
    /// [`Tree::link_all`].
    fn plant<'z>(&mut self, znodes: impl IntoIterator<Item = (&'z str, ZnodeRef<'z>)>) -> bool {
        let mut packed = Vec::new();
        for (path, znode) in znodes {
            packed.push((path, self.pack(path, &znode)));
            self.account(path, &znode);
        }
        self.znodes.extend(packed.iter().map(|(path, bytes)| (*path, &bytes[..]))) == packed.len()
    }

    /// Puts paths into their parents' lists of children.
    fn link_all<'p>(&mut self, paths: impl IntoIterator<Item = &'p str>) {
        let mut families: HashMap<&str, Vec<&str>, FixedState> = HashMap::default();
        for (parent, name) in paths.into_iter().filter_map(split_path) {
            families.entry(parent).or_default().push(name);
        }
        for (parent, names) in families {
            let children = self.children.entry(parent.into()).or_default();
            children.extend(names.into_iter().map(|name| (name, &[][..])));
            self.change_times(parent, |_| {});
        }
    }

    /// Writes a znode with its data and ACL.
    fn store(&mut self, path: &str, znode: &ZnodeRef<'_>) {
        let packed = self.pack(path, znode);
        self.znodes.insert(path, &packed);
    }

    /// A znode as it stands in the table; keeps its ACL, and data that stands elsewhere.
    fn pack(&mut self, path: &str, znode: &ZnodeRef<'_>) -> Vec<u8> {
        let data = match znode.data {
            None => Data::Null,
            Some(data) if data.len() <= PACKED_DATA_BYTES_MAX => Data::Here(data),
            Some(data) => {
                self.large_data.insert(path.into(), Bytes::copy_from_slice(data));
                Data::Elsewhere
            }
        };
        let acl = self.acls.take(znode.acl);
        let ZnodeRef { subtree, owner, times, .. } = *znode;
        Packed { subtree, acl, children: self.child_count(path), owner, times, data }.encode()
    }

    fn replace(&mut self, path: &str, new: ZnodeRef<'_>) -> Option<Stat> {
        let old = Packed::decode(self.znodes.get(path)?);
        let (old_acl, is_elsewhere) = (old.acl, old.data == Data::Elsewhere);
        let old = self.unpack(path, old)?;
        let (old_hash, old_bytes, old_lifetime) = (old.hash(path), old.data_len(), old.lifetime());
        let new = ZnodeRef { children: old.children, ..new };
        if is_elsewhere {
            self.large_data.remove(path);
        }
        self.store(path, &new);
        self.acls.give_back(old_acl);
        self.shift_digest(new.subtree, new.hash(path).wrapping_sub(old_hash));
        self.data_bytes = self.data_bytes - old_bytes + new.data_len();
        if new.lifetime() != old_lifetime {
            self.index(path, old_lifetime, false);
            self.index(path, new.lifetime(), true);
        }
        if new.data_len() != old_bytes {
            self.charge(path, 0, new.data_len() as i64 - old_bytes as i64);
        }
        Some(new.stat())
    }

    /// Changes a znode's times, and keeps the number of its children.
    fn change_times(&mut self, path: &str, change: impl FnOnce(&mut Times)) {
        let Some(bytes) = self.znodes.get(path) else { return };
        let packed = Packed::decode(bytes);
        let Some(old) = self.unpack(path, packed) else { return };
        let mut new = ZnodeRef { children: self.child_count(path), ..old };
        change(&mut new.times);
        let delta = if new.times == old.times { 0 } else { new.hash(path).wrapping_sub(old.hash(path)) };
        let subtree = new.subtree;
        let bytes = Packed { times: new.times, children: new.children, ..packed }.encode();
        self.znodes.insert(path, &bytes);
        self.shift_digest(subtree, delta);
    }

    fn remove(&mut self, path: &str) {
        let Some(packed) = self.znodes.get(path).map(Packed::decode) else { return };
        let (acl, is_elsewhere) = (packed.acl, packed.data == Data::Elsewhere);
        let Some(znode) = self.unpack(path, packed) else { return };
        let (digest, bytes) = (znode.hash(path), znode.data_len());
        let (subtree, lifetime) = (znode.subtree, znode.lifetime());
        self.shift_digest(subtree, digest.wrapping_neg());
        self.data_bytes -= bytes + path.len() as u64;
        self.index(path, lifetime, false);
        self.znodes.remove(path);
        self.acls.give_back(acl);
        if is_elsewhere {
            self.large_data.remove(path);
        }
    }

    fn child_count(&self, path: &str) -> u32 {
        self.children.get(path).map_or(0, |names| u32::try_from(names.len()).unwrap_or(u32::MAX))
    }

    fn link(&mut self, parent: &str, name: &str) {
        match self.children.get_mut(parent) {
            Some(names) => names.insert(name, &[]),
            None => {
                let mut names = Table::default();
                names.insert(name, &[]);
                self.children.insert(parent.into(), names);
            }
        }
    }

    fn unlink(&mut self, parent: &str, name: &str) {
        let Some(names) = self.children.get_mut(parent) else { return };
        names.remove(name);
        if names.is_empty() {
            self.children.remove(parent);
        }
    }

    /// Keeps the digest, the size and the indexes as a znode comes.
    fn account(&mut self, path: &str, znode: &ZnodeRef<'_>) {
        self.shift_digest(znode.subtree, znode.hash(path));
        self.data_bytes += znode.data_len() + path.len() as u64;
        self.index(path, znode.lifetime(), true);
    }

    fn shift_digest(&mut self, subtree: SubtreeId, by: u128) {
        let digest = self.digests.entry(subtree).or_insert(0);
        *digest = digest.wrapping_add(by);
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
        }
    }

    pub(super) fn rooted() -> Tree {
        let mut tree = Tree::default();
        tree.put("/", znode(0, "", 0).as_ref());
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
        tree.create("/a", znode(5, "", 1).as_ref());
        tree.change("/a", |z| z.owner = Lifetime::Container.to_owner());
        assert_eq!((tree.ephemeral_count(), tree.mortal().count()), (0, 1));
        tree.change("/a", |z| z.owner = 0);
        assert_eq!((tree.ephemeral_count(), tree.mortal().count()), (0, 0));
        tree.delete("/a", 2);
    }

    #[test]
    fn a_path_that_comes_twice_is_noticed() {
        let tree = rooted();
        for times in [vec![2], vec![1, 1]] {
            let mut planting = Planting::default();
            times.iter().for_each(|times| planting.add((0..*times).flat_map(|_| tree.iter())));
            assert!(planting.finish().is_none());
        }
    }

    #[test]
    fn a_clone_keeps_its_view() {
        let mut tree = rooted();
        tree.create("/a", znode(0, "x", 1).as_ref());
        let view = tree.clone();
        tree.change("/a", |z| z.data = None);
        tree.create("/a/b", znode(5, "y", 2).as_ref());
        assert_eq!(view.get("/a").unwrap().data, Some(&b"x"[..]));
        assert_eq!(view.get("/a").unwrap().children, 0);
        assert_eq!(tree.get("/a").unwrap().stat().num_children, 1);
        assert_eq!(tree.get("/a").unwrap().times.pzxid, 2);
        assert_eq!(tree.ephemerals_of(5).count(), 1);
    }

    proptest! {
        /// The digest and the size depend on what is there, not on how it came about.
        #[test]
        fn accounting_follows_content(ops in proptest::collection::vec((0u8..4, 0u8..6, 0i64..3, ".{0,4}"), 0..60)) {
            let mut tree = rooted();
            let mut zxid = 0;
            for (op, name, owner, data) in ops {
                zxid += 1;
                let path = format!("/{name}");
                match (op, tree.get(&path).is_some()) {
                    (0, false) => tree.create(&path, znode(owner, &data, zxid).as_ref()),
                    (1, true) => tree.delete(&path, zxid),
                    (2, true) => {
                        let data = data.repeat(if zxid % 3 == 0 { PACKED_DATA_BYTES_MAX } else { 1 });
                        tree.change(&path, |z| z.data = Some(data.into_bytes().into()));
                    }
                    (3, true) => {
                        tree.change(&path, |z| z.acl = Arc::new([Acl { perms: owner as i32, ..Acl::open() }]));
                    }
                    _ => {}
                }
            }
            let mut again = Tree::default();
            again.extend(tree.iter());
            prop_assert_eq!(again.digest(0), tree.digest(0));
            prop_assert_eq!(again.data_bytes(), tree.data_bytes());
            prop_assert_eq!(again.ephemeral_count(), tree.ephemeral_count());
            let mut planting = Planting::default();
            let all: Vec<_> = tree.iter().collect();
            all.chunks(3).for_each(|some| planting.add(some.iter().copied()));
            let planted = planting.finish().unwrap();
            let sorted = |tree: &Tree| {
                let mut all: Vec<_> = tree.iter().map(|(path, znode)| (path.to_string(), znode.to_owned(), znode.stat())).collect();
                all.sort_by(|a, b| a.0.cmp(&b.0));
                all
            };
            prop_assert_eq!(sorted(&again), sorted(&tree));
            prop_assert_eq!(sorted(&planted), sorted(&tree));
            prop_assert_eq!(planted.digest(0), tree.digest(0));
            let mut children: Vec<&str> = planted.children("/").collect();
            children.sort_unstable();
            prop_assert_eq!(children.len(), tree.children("/").count());
            let is_child = |name: &&str| tree.contains(&format!("/{name}"));
            prop_assert!(children.iter().all(is_child));
            let large = tree.iter().filter(|(_, znode)| znode.data_len() > PACKED_DATA_BYTES_MAX as u64);
            prop_assert_eq!(tree.large_data.len(), large.count());
        }
    }
}
