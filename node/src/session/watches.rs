//! Which connections watch which znodes, and which of them a change concerns.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use foldhash::fast::FixedState;
use meridian_seam::mutant::{self, Mutant};
use meridian_wire::EventType;

use crate::tree::{Tree, or_root, split_path};

/// A kind of watch. The numbers are bits of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Watch {
    /// Once: the data, the existence or the end of a znode, which need not exist.
    Data = 1,
    /// Once: the children or the end of a znode.
    Child = 2,
    /// Until removed: both of the above.
    Persistent = 4,
    /// Until removed: the data, existence and end of a znode and of all below it.
    Recursive = 8,
}

const ONCE: u8 = Watch::Data as u8 | Watch::Child as u8;

/// The watches of one server's connections. A connection is known by a number, and `H` is what its
/// events are handed to.
#[derive(Debug)]
pub struct WatchTable<H> {
    paths: Paths,
    watchers: HashMap<u64, Watcher<H>, FixedState>,
    /// Watches in all.
    count: usize,
    /// Recursive ones: without any, a change concerns its own path alone.
    recursive: usize,
}

/// Per path, the connections that watch it and their kinds of watches.
type Paths = HashMap<Arc<str>, HashMap<u64, u8, FixedState>, FixedState>;

/// A connection that may watch.
#[derive(Debug)]
struct Watcher<H> {
    /// Takes its events.
    handle: H,
    paths: HashSet<Arc<str>, FixedState>,
}

impl<H> Default for WatchTable<H> {
    fn default() -> Self {
        Self { paths: HashMap::default(), watchers: HashMap::default(), count: 0, recursive: 0 }
    }
}

impl<H> WatchTable<H> {
    /// Adds a connection, which has no watches yet.
    pub fn connect(&mut self, connection: u64, handle: H) {
        self.watchers.insert(connection, Watcher { handle, paths: HashSet::default() });
    }

    /// Removes a connection and its watches.
    pub fn disconnect(&mut self, connection: u64) {
        let Some(watcher) = self.watchers.remove(&connection) else { return };
        for path in watcher.paths {
            self.drop_bits(&path, connection, u8::MAX);
        }
    }

    /// The handles of all connections.
    pub fn handles(&self) -> impl Iterator<Item = &H> {
        self.watchers.values().map(|w| &w.handle)
    }

    /// The handles of the connections that have watches which stay.
    pub fn lasting(&self) -> impl Iterator<Item = &H> {
        let stays = |connection: &u64, path: &Arc<str>| {
            self.paths
                .get(path)
                .and_then(|watching| watching.get(connection))
                .is_some_and(|bits| bits & !ONCE != 0)
        };
        self.watchers
            .iter()
            .filter(move |(connection, watcher)| watcher.paths.iter().any(|path| stays(connection, path)))
            .map(|(_, watcher)| &watcher.handle)
    }

    /// Leaves a watch. Nothing happens if the connection is not (or no longer) known, or if it has such a
    /// watch.
    pub fn add(&mut self, connection: u64, path: &str, watch: Watch) {
        let Some(watcher) = self.watchers.get_mut(&connection) else { return };
        let path: Arc<str> = match self.paths.get_key_value(path) {
            Some((known, _)) => known.clone(),
            None => path.into(),
        };
        watcher.paths.insert(path.clone());
        let bits = self.paths.entry(path).or_default().entry(connection).or_insert(0);
        if *bits & watch as u8 == 0 {
            *bits |= watch as u8;
            self.count += 1;
            self.recursive += usize::from(watch == Watch::Recursive);
        }
    }

    /// Whether a connection has one of these watches on a path.
    pub fn has(&self, connection: u64, path: &str, watches: &[Watch]) -> bool {
        let wanted = watches.iter().fold(0, |bits, w| bits | *w as u8);
        self.paths.get(path).and_then(|p| p.get(&connection)).is_some_and(|bits| bits & wanted != 0)
    }

    /// Removes watches of a connection on a path and says whether there were any.
    pub fn remove(&mut self, connection: u64, path: &str, watches: &[Watch]) -> bool {
        let found = self.has(connection, path, watches);
        let bits = watches.iter().fold(0, |bits, w| bits | *w as u8);
        self.forget(path, connection, bits);
        found
    }

    /// Hands a change to every connection that watches for it, once each, and drops the watches that
    /// fire only once.
    ///
    /// A deletion fires data and child watches of the znode; the change of the parent's list of children
    /// is a change of its own. Recursive watches hear of znodes, not of lists.
    pub fn trigger(&mut self, kind: EventType, path: &str, mut fire: impl FnMut(&H)) {
        let mut told = Vec::new();
        let fires = firing(kind);
        if let Some(watching) = self.paths.get(path) {
            told.extend(watching.iter().filter(|(_, bits)| **bits & fires != 0).map(|(c, _)| *c));
        }
        let direct = told.len();
        if self.recursive > 0 && fires & Watch::Recursive as u8 != 0 {
            self.recursive_above(path, &mut told);
            told[direct..].sort_unstable();
            let (of_path, above) = told.split_at(direct);
            let of_path: HashSet<u64> = of_path.iter().copied().collect();
            let mut above: Vec<u64> = above.iter().copied().filter(|c| !of_path.contains(c)).collect();
            above.dedup();
            told.truncate(direct);
            told.append(&mut above);
        }
        for (index, connection) in told.iter().enumerate() {
            if let Some(watcher) = self.watchers.get(connection) {
                fire(&watcher.handle);
            }
            if index < direct && !mutant::is(Mutant::WatchStays) {
                self.forget(path, *connection, fires & ONCE);
            }
        }
    }

    /// Number of watches.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether nothing is watched.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Number of watches of a connection's paths.
    pub fn paths_watched_by(&self, connection: u64) -> usize {
        self.watchers.get(&connection).map_or(0, |w| w.paths.len())
    }

    /// The paths watched, each with the connections that watch it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, impl Iterator<Item = u64> + '_)> {
        self.paths.iter().map(|(path, watching)| (&**path, watching.keys().copied()))
    }

    fn recursive_above(&self, path: &str, told: &mut Vec<u64>) {
        let mut path = path;
        while let Some((parent, _)) = split_path(path) {
            if let Some(watching) = self.paths.get(parent) {
                let recursive = watching.iter().filter(|(_, bits)| **bits & Watch::Recursive as u8 != 0);
                told.extend(recursive.map(|(connection, _)| *connection));
            }
            path = parent;
        }
    }

    fn forget(&mut self, path: &str, connection: u64, bits: u8) {
        if self.drop_bits(path, connection, bits)
            && let Some(watcher) = self.watchers.get_mut(&connection)
        {
            watcher.paths.remove(path);
        }
    }

    /// Whether the connection no longer watches the path at all.
    fn drop_bits(&mut self, path: &str, connection: u64, bits: u8) -> bool {
        let Some(watching) = self.paths.get_mut(path) else { return true };
        let Some(held) = watching.get_mut(&connection) else { return true };
        let dropped = *held & bits;
        *held &= !bits;
        self.count -= dropped.count_ones() as usize;
        self.recursive -= usize::from(dropped & Watch::Recursive as u8 != 0);
        let gone = *held == 0;
        if gone {
            watching.remove(&connection);
            if watching.is_empty() {
                self.paths.remove(path);
            }
        }
        gone
    }
}

/// The kinds of watches that a change fires.
fn firing(kind: EventType) -> u8 {
    let (data, child) = (Watch::Data as u8, Watch::Child as u8);
    let (persistent, recursive) = (Watch::Persistent as u8, Watch::Recursive as u8);
    match kind {
        EventType::NodeCreated | EventType::NodeDataChanged => data | persistent | recursive,
        EventType::NodeDeleted => data | child | persistent | recursive,
        EventType::NodeChildrenChanged => child | persistent,
        _ => 0,
    }
}

/// When znodes of shared subtrees changed, in this region's zxids.
///
/// A client that sets its watches again says which of the region's zxids it has seen, but the stat of a
/// shared znode has zxids of its subtree's orderer. A server therefore remembers the latest changes of
/// shared znodes as it applies them. About what it has forgotten it must assume a change: a watch that
/// fires without need costs a read, one that does not fire is lost.
#[derive(Debug, Default)]
pub struct Recent {
    /// Changes up to this zxid may be forgotten.
    forgotten: i64,
    changes: HashMap<Arc<str>, Change, FixedState>,
    order: VecDeque<(i64, Arc<str>)>,
    bound: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Change {
    data: i64,
    children: i64,
}

impl Recent {
    /// Remembers at least `bound` changes after `zxid`.
    pub fn new(zxid: i64, bound: usize) -> Self {
        Self { forgotten: zxid, bound, ..Self::default() }
    }

    /// A change with the region's zxid.
    pub fn note(&mut self, kind: EventType, path: &Arc<str>, zxid: i64) {
        let change = self.changes.entry(path.clone()).or_default();
        // What was created or deleted is new in both respects, as its pzxid would tell.
        if kind != EventType::NodeChildrenChanged {
            change.data = zxid;
        }
        if kind != EventType::NodeDataChanged {
            change.children = zxid;
        }
        self.order.push_back((zxid, path.clone()));
        while self.order.len() > self.bound
            && let Some((zxid, path)) = self.order.pop_front()
        {
            self.forgotten = self.forgotten.max(zxid);
            if self.changes.get(&path).is_some_and(|c| c.data <= zxid && c.children <= zxid) {
                self.changes.remove(&path);
            }
        }
    }

    fn data_changed_since(&self, path: &str, zxid: i64) -> bool {
        zxid < self.forgotten || self.changes.get(path).is_some_and(|c| c.data > zxid)
    }

    fn children_changed_since(&self, path: &str, zxid: i64) -> bool {
        zxid < self.forgotten || self.changes.get(path).is_some_and(|c| c.children > zxid)
    }

    /// What a client that has seen the region's `zxid` missed of a watch that it had, if anything: the
    /// event that fires at once instead of setting the watch again. `exists` tells a watch for a znode
    /// that was absent.
    ///
    /// The rules are those of ZooKeeper's `DataTree.setWatches`; `shared` says whether the znode's stat
    /// has other zxids than the region's.
    pub fn missed(
        &self,
        tree: &Tree,
        path: &str,
        watch: Watch,
        exists: bool,
        zxid: i64,
        shared: bool,
    ) -> Option<EventType> {
        let znode = tree.get(or_root(path));
        match (watch, znode) {
            (Watch::Data, found) if exists => found.map(|_| EventType::NodeCreated),
            (Watch::Data | Watch::Child, None) => Some(EventType::NodeDeleted),
            (Watch::Data, Some(znode)) => {
                let changed =
                    if shared { self.data_changed_since(path, zxid) } else { znode.times.mzxid > zxid };
                changed.then_some(EventType::NodeDataChanged)
            }
            (Watch::Child, Some(znode)) => {
                let changed =
                    if shared { self.children_changed_since(path, zxid) } else { znode.times.pzxid > zxid };
                changed.then_some(EventType::NodeChildrenChanged)
            }
            (Watch::Persistent | Watch::Recursive, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::txn::State;

    fn told(table: &mut WatchTable<u64>, kind: EventType, path: &str) -> Vec<u64> {
        let mut told = Vec::new();
        table.trigger(kind, path, |handle| told.push(*handle));
        told.sort_unstable();
        told
    }

    fn table(watches: &[(u64, &str, Watch)]) -> WatchTable<u64> {
        let mut table = WatchTable::default();
        for connection in 1..=3 {
            table.connect(connection, connection);
        }
        for (connection, path, watch) in watches {
            table.add(*connection, path, *watch);
        }
        table
    }

    use EventType::{NodeChildrenChanged, NodeCreated, NodeDataChanged, NodeDeleted};

    #[test]
    fn a_watch_fires_once_for_what_it_watches() {
        let mut t = table(&[(1, "/a", Watch::Data), (2, "/a", Watch::Child), (2, "/a", Watch::Child)]);
        assert_eq!(t.len(), 2);
        assert!(told(&mut t, NodeCreated, "/b").is_empty());
        assert_eq!(told(&mut t, NodeChildrenChanged, "/a"), [2]);
        assert!(told(&mut t, NodeChildrenChanged, "/a").is_empty());
        assert_eq!(told(&mut t, NodeDataChanged, "/a"), [1]);
        assert!(told(&mut t, NodeDataChanged, "/a").is_empty());
        assert!(t.is_empty());
        assert_eq!(t.paths_watched_by(1), 0);
    }

    #[test]
    fn whose_watches_stay_is_known() {
        let mut t =
            table(&[(1, "/a", Watch::Data), (2, "/a", Watch::Persistent), (3, "/b", Watch::Recursive)]);
        let lasting = |t: &WatchTable<u64>| t.lasting().copied().collect::<std::collections::BTreeSet<u64>>();
        assert_eq!(lasting(&t), [2, 3].into());
        t.remove(3, "/b", &[Watch::Recursive]);
        assert_eq!(lasting(&t), [2].into());
    }

    #[test]
    fn a_deletion_tells_a_connection_once_and_drops_both_watches() {
        let mut t = table(&[(1, "/a", Watch::Data), (1, "/a", Watch::Child), (2, "/", Watch::Child)]);
        assert_eq!(told(&mut t, NodeDeleted, "/a"), [1]);
        assert_eq!(t.len(), 1);
        assert_eq!(told(&mut t, NodeChildrenChanged, "/"), [2]);
        assert!(t.is_empty());
    }

    #[test]
    fn persistent_watches_stay_and_recursive_ones_hear_of_znodes_below() {
        let mut t =
            table(&[(1, "/a", Watch::Persistent), (2, "/", Watch::Recursive), (2, "/a/b", Watch::Data)]);
        assert_eq!(told(&mut t, NodeCreated, "/a/b"), [2], "told once for two watches");
        assert_eq!(told(&mut t, NodeChildrenChanged, "/a"), [1], "recursive watches ignore lists");
        assert_eq!(told(&mut t, NodeDataChanged, "/a"), [1, 2]);
        assert_eq!(told(&mut t, NodeDeleted, "/a"), [1, 2]);
        assert_eq!(t.len(), 2);
        assert!(t.remove(2, "/", &[Watch::Recursive]));
        assert!(!t.remove(2, "/", &[Watch::Recursive]));
        assert_eq!(told(&mut t, NodeCreated, "/a"), [1]);
    }

    #[test]
    fn watches_go_with_their_connection() {
        let mut t = table(&[(1, "/a", Watch::Data), (1, "/b", Watch::Recursive), (2, "/a", Watch::Data)]);
        t.disconnect(1);
        t.add(1, "/late", Watch::Data);
        assert_eq!(t.len(), 1);
        assert_eq!(told(&mut t, NodeDataChanged, "/a"), [2]);
        assert_eq!(t.iter().count(), 0);
    }

    /// As of zxid 5: `/old` was last changed at 3, `/new` at 7; `/gone` does not exist.
    fn tree() -> Tree {
        let mut tree = State::new(1).tree;
        for (path, zxid) in [("/old", 3), ("/new", 7)] {
            let mut znode = tree.get("/").unwrap().to_owned();
            znode.times.mzxid = zxid;
            znode.times.pzxid = zxid;
            tree.put(path, znode.as_ref());
        }
        tree
    }

    #[test]
    fn setting_watches_again_fires_what_was_missed() {
        let (tree, recent) = (tree(), Recent::new(0, 10));
        let missed = |path, watch, exists| recent.missed(&tree, path, watch, exists, 5, false);
        assert_eq!(missed("/old", Watch::Data, false), None);
        assert_eq!(missed("/new", Watch::Data, false), Some(NodeDataChanged));
        assert_eq!(missed("/gone", Watch::Data, false), Some(NodeDeleted));
        assert_eq!(missed("/old", Watch::Data, true), Some(NodeCreated));
        assert_eq!(missed("/gone", Watch::Data, true), None);
        assert_eq!(missed("/old", Watch::Child, false), None);
        assert_eq!(missed("/new", Watch::Child, false), Some(NodeChildrenChanged));
        assert_eq!(missed("/gone", Watch::Child, false), Some(NodeDeleted));
    }

    #[test]
    fn shared_znodes_go_by_the_regions_zxids() {
        let tree = tree();
        let mut recent = Recent::new(4, 2);
        let missed =
            |recent: &Recent, path, watch, zxid| recent.missed(&tree, path, watch, false, zxid, true);
        assert_eq!(missed(&recent, "/new", Watch::Data, 4), None, "nothing has happened since");
        assert_eq!(missed(&recent, "/old", Watch::Data, 3), Some(NodeDataChanged), "not known any more");
        recent.note(NodeDataChanged, &"/old".into(), 9);
        assert_eq!(missed(&recent, "/old", Watch::Data, 8), Some(NodeDataChanged));
        assert_eq!(missed(&recent, "/old", Watch::Data, 9), None);
        assert_eq!(missed(&recent, "/old", Watch::Child, 8), None);
        recent.note(NodeChildrenChanged, &"/new".into(), 10);
        recent.note(NodeChildrenChanged, &"/new".into(), 11);
        assert_eq!(missed(&recent, "/old", Watch::Child, 8), Some(NodeChildrenChanged), "forgotten");
        assert_eq!(missed(&recent, "/new", Watch::Child, 10), Some(NodeChildrenChanged));
    }
}
