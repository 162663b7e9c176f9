//! What one client has been shown, over all its connections, and what it may not be shown after that.
//!
//! * The region's zxid never goes back, and no znode does.
//! * An event comes after the replies that do not yet show its change, and before the first that does.
//! * A watch that fires once fires once, for a change after it was set; a lasting one fires for every change, which
//!   the versions of the znode count.

use std::collections::{BTreeMap, BTreeSet};

use meridian_wire::{EventType, Stat};

/// A kind of watch that fires once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::sim) enum Once {
    /// Of a znode's data, or of its existence.
    Data,
    /// Of its children.
    Child,
}

/// What a reply shows of a znode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sight {
    czxid: i64,
    mzxid: i64,
    pzxid: i64,
    version: i32,
    cversion: i32,
}

impl Sight {
    fn of(stat: &Stat) -> Self {
        let Stat { czxid, mzxid, pzxid, version, cversion, .. } = *stat;
        Self { czxid, mzxid, pzxid, version, cversion }
    }
}

/// A watch that fires once, and what its client knew when it was set.
struct Watching {
    since_zxid: i64,
    known: Option<Sight>,
}

/// What lasting watches have told of a znode since a reply last showed it on this connection.
#[derive(Default)]
struct Counted {
    sight: Option<Sight>,
    data: i32,
    children: i32,
    /// Creations and deletions.
    lives: i32,
}

#[derive(Default)]
pub(super) struct Seen {
    /// Of the newest reply.
    zxid: i64,
    /// Of the newest event.
    event_zxid: i64,
    znodes: BTreeMap<String, (Sight, bool)>,
    once: BTreeMap<(String, Once), Watching>,
    /// Those that fired, to be compared with what the next reply shows.
    fired: BTreeMap<String, Vec<(EventType, Option<Sight>)>>,
    persistent: BTreeSet<String>,
    recursive: BTreeSet<String>,
    counted: BTreeMap<String, Counted>,
}

/// What is wrong with it, if anything.
type Finding = Result<(), String>;

/// The watches to be set again on another connection.
#[derive(Default)]
pub(super) struct WatchedPaths {
    pub(super) data: Vec<String>,
    pub(super) exist: Vec<String>,
    pub(super) child: Vec<String>,
    pub(super) persistent: Vec<String>,
    pub(super) recursive: Vec<String>,
}

impl WatchedPaths {
    pub(super) fn is_empty(&self) -> bool {
        [&self.data, &self.exist, &self.child, &self.persistent, &self.recursive]
            .iter()
            .all(|paths| paths.is_empty())
    }
}

impl Seen {
    pub(super) fn zxid(&self) -> i64 {
        self.zxid.max(self.event_zxid)
    }

    /// The header of a reply came.
    pub(super) fn reply(&mut self, zxid: i64) -> Finding {
        // Replies that say nothing of the state.
        if zxid <= 0 {
            return Ok(());
        }
        let (reply, event) = (self.zxid, self.event_zxid);
        self.zxid = self.zxid.max(zxid);
        if zxid < reply || zxid < event {
            return Err(format!(
                "a reply at zxid {zxid:#x} after one at {reply:#x} and an event at {event:#x}"
            ));
        }
        Ok(())
    }

    /// A reply showed a znode, or that there is none.
    pub(super) fn shown(&mut self, path: &str, stat: Option<&Stat>) -> Finding {
        let sight = stat.map(Sight::of);
        let found = [
            self.expect_not_older(path, sight),
            self.expect_told(path, sight),
            self.expect_changed(path, sight),
            self.expect_counted(path, sight),
        ];
        match (sight, self.znodes.get_mut(path)) {
            (Some(sight), _) => drop(self.znodes.insert(path.into(), (sight, true))),
            (None, Some((_, exists))) => *exists = false,
            (None, None) => {}
        }
        found.into_iter().collect()
    }

    fn expect_not_older(&self, path: &str, sight: Option<Sight>) -> Finding {
        let (Some(sight), Some((known, existed))) = (sight, self.znodes.get(path)) else { return Ok(()) };
        let same_life = sight.czxid == known.czxid;
        let older = sight.czxid < known.czxid
            || sight.mzxid < known.mzxid
            || same_life
                && (!existed
                    || sight.pzxid < known.pzxid
                    || sight.version < known.version
                    || sight.cversion < known.cversion);
        if older { Err(format!("{path} went back from {known:?} to {sight:?}")) } else { Ok(()) }
    }

    /// No watch that was to fire for what is shown is still waiting.
    fn expect_told(&self, path: &str, sight: Option<Sight>) -> Finding {
        for kind in [Once::Data, Once::Child] {
            if let Some(Watching { known, .. }) = self.once.get(&(path.to_string(), kind))
                && differs(kind, *known, sight)
            {
                return Err(format!("{path} is shown as {sight:?} before the watch set at {known:?} fired"));
            }
        }
        Ok(())
    }

    /// What fired had a reason.
    fn expect_changed(&mut self, path: &str, sight: Option<Sight>) -> Finding {
        for (event, known) in self.fired.remove(path).into_iter().flatten() {
            let changed = match (event, known, sight) {
                (EventType::NodeDataChanged, Some(_), Some(_)) => differs(Once::Data, known, sight),
                (EventType::NodeChildrenChanged, Some(_), Some(_)) => differs(Once::Child, known, sight),
                (EventType::NodeDeleted, Some(known), Some(sight)) => known.czxid != sight.czxid,
                (EventType::NodeCreated, None, _) | (_, Some(_), None) => true,
                _ => false,
            };
            if !changed {
                return Err(format!("{event:?} of {path}, which was {known:?} and still is {sight:?}"));
            }
        }
        Ok(())
    }

    /// Lasting watches have told of every change.
    fn expect_counted(&mut self, path: &str, sight: Option<Sight>) -> Finding {
        let persistent = self.persistent.contains(path);
        if !persistent && !self.is_below_recursive(path) {
            return Ok(());
        }
        let now = Counted { sight, ..Counted::default() };
        let Some(counted) = self.counted.insert(path.to_string(), now) else { return Ok(()) };
        let Counted { sight: before, data, children, lives } = counted;
        let (told, happened) = match (before, sight) {
            (Some(before), Some(now)) if before.czxid == now.czxid => {
                let happened = (now.version - before.version, now.cversion - before.cversion, 0);
                ((data, if persistent { children } else { happened.1 }, lives), happened)
            }
            (None, None) => return Ok(()),
            (Some(_), Some(_)) => ((0, 0, lives.min(2)), (0, 0, 2)),
            _ => ((0, 0, lives.min(1)), (0, 0, 1)),
        };
        if told == happened {
            return Ok(());
        }
        Err(format!(
            "a lasting watch of {path} told of {told:?} changes of data, children and existence, not {happened:?}"
        ))
    }

    fn is_below_recursive(&self, path: &str) -> bool {
        self.recursive.iter().any(|root| {
            path == root || path.strip_prefix(root.as_str()).is_some_and(|rest| rest.starts_with('/'))
        })
    }

    /// A read has left a watch, after what it showed was taken.
    pub(super) fn watch(&mut self, path: &str, kind: Once, stat: Option<&Stat>) {
        let watching = Watching { since_zxid: self.zxid, known: stat.map(Sight::of) };
        self.once.insert((path.to_string(), kind), watching);
    }

    /// A lasting watch has been set.
    pub(super) fn watch_lastingly(&mut self, path: &str, recursive: bool) {
        let paths = if recursive { &mut self.recursive } else { &mut self.persistent };
        paths.insert(path.to_string());
        // What was told of it before was counted under other watches.
        self.counted.retain(|counted, _| !counted.starts_with(path));
    }

    /// An event came. Those that answer the setting of watches on a new connection have no zxid.
    pub(super) fn event(&mut self, event: EventType, path: &str, zxid: i64) -> Finding {
        let in_order = if zxid >= 0 { self.expect_in_order(event, path, zxid) } else { Ok(()) };
        let kinds: &[Once] = match event {
            EventType::NodeCreated | EventType::NodeDataChanged => &[Once::Data],
            EventType::NodeChildrenChanged => &[Once::Child],
            _ => &[Once::Data, Once::Child],
        };
        let mut expected = false;
        for kind in kinds {
            let Some(Watching { since_zxid, known }) = self.once.remove(&(path.to_string(), *kind)) else {
                continue;
            };
            expected = true;
            if zxid < 0 {
                // The server may tell of a change too many when it does not remember.
                continue;
            }
            self.fired.entry(path.into()).or_default().push((event, known));
            if zxid <= since_zxid {
                return Err(format!(
                    "{event:?} of {path} at {zxid:#x}, but the watch was set at {since_zxid:#x}"
                ));
            }
        }
        let below = event != EventType::NodeChildrenChanged && self.is_below_recursive(path);
        if self.persistent.contains(path) || below {
            expected = true;
            self.count(event, path);
        }
        // Both watches of a znode that is gone are told when they are set again.
        let repeated = zxid < 0 && event == EventType::NodeDeleted;
        if !expected && !repeated {
            return Err(format!("{event:?} of {path} at {zxid:#x} without a watch"));
        }
        in_order
    }

    fn expect_in_order(&mut self, event: EventType, path: &str, zxid: i64) -> Finding {
        let (reply, before) = (self.zxid, self.event_zxid);
        self.event_zxid = before.max(zxid);
        if zxid <= reply {
            return Err(format!("{event:?} of {path} at {zxid:#x} after a reply at {reply:#x}"));
        }
        if zxid < before {
            return Err(format!("{event:?} of {path} at {zxid:#x} after an event at {before:#x}"));
        }
        Ok(())
    }

    fn count(&mut self, event: EventType, path: &str) {
        // Counting starts with the first reply that shows the znode.
        let Some(counted) = self.counted.get_mut(path) else { return };
        match event {
            EventType::NodeDataChanged => counted.data += 1,
            EventType::NodeChildrenChanged => counted.children += 1,
            _ => counted.lives += 1,
        }
    }

    /// The connection is gone, and with it the lasting watches until they are set again: what happens meanwhile is
    /// not told.
    pub(super) fn disconnected(&mut self) {
        self.counted.clear();
    }

    /// Another session begins, without watches.
    pub(super) fn another_session(&mut self) {
        let (zxid, event_zxid, znodes) = (self.zxid, self.event_zxid, std::mem::take(&mut self.znodes));
        *self = Self { zxid, event_zxid, znodes, ..Self::default() };
    }

    /// The watches to be set again.
    pub(super) fn watched(&self) -> WatchedPaths {
        let mut watched = WatchedPaths::default();
        for ((path, kind), watching) in &self.once {
            let paths = match (kind, watching.known) {
                (Once::Child, _) => &mut watched.child,
                (Once::Data, Some(_)) => &mut watched.data,
                (Once::Data, None) => &mut watched.exist,
            };
            paths.push(path.clone());
        }
        watched.persistent = self.persistent.iter().cloned().collect();
        watched.recursive = self.recursive.iter().cloned().collect();
        watched
    }

    /// Paths that some watch concerns and that were seen.
    pub(super) fn watched_paths(&self) -> BTreeSet<String> {
        let once = self.once.keys().map(|(path, _)| path.clone());
        once.chain(self.persistent.iter().cloned()).chain(self.counted.keys().cloned()).collect()
    }

    /// Whether a watch that fires once is set.
    pub(super) fn is_watched(&self, path: &str, kind: Once) -> bool {
        self.once.contains_key(&(path.to_string(), kind))
    }
}

/// Whether a watch that was set at one sight must have fired by the other.
fn differs(kind: Once, known: Option<Sight>, sight: Option<Sight>) -> bool {
    match (kind, known, sight) {
        (_, None, None) => false,
        (_, Some(known), Some(sight)) if known.czxid != sight.czxid => true,
        (Once::Data, Some(known), Some(sight)) => known.version != sight.version,
        (Once::Child, Some(known), Some(sight)) => known.cversion != sight.cversion,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(czxid: i64, version: i32) -> Stat {
        Stat { czxid, mzxid: czxid + i64::from(version), version, ..Stat::default() }
    }

    #[test]
    fn a_change_is_told_before_it_is_shown_and_once() {
        let mut seen = Seen::default();
        seen.reply(5).unwrap();
        seen.shown("/a", Some(&stat(3, 0))).unwrap();
        seen.watch("/a", Once::Data, Some(&stat(3, 0)));
        assert!(seen.shown("/a", Some(&stat(3, 1))).is_err(), "shown before it was told");
        assert!(seen.event(EventType::NodeDataChanged, "/a", 5).is_err(), "not after the reply");
        seen.watch("/a", Once::Data, Some(&stat(3, 1)));
        seen.event(EventType::NodeDataChanged, "/a", 6).unwrap();
        assert!(seen.event(EventType::NodeDataChanged, "/a", 7).is_err(), "fires twice");
        assert!(seen.shown("/a", Some(&stat(3, 1))).is_err(), "nothing has changed");
    }

    #[test]
    fn lasting_watches_tell_of_every_change() {
        let mut seen = Seen::default();
        seen.watch_lastingly("/a", false);
        seen.shown("/a", Some(&stat(3, 0))).unwrap();
        seen.event(EventType::NodeDataChanged, "/a", 6).unwrap();
        seen.event(EventType::NodeDataChanged, "/a", 7).unwrap();
        seen.shown("/a", Some(&stat(3, 2))).unwrap();
        seen.event(EventType::NodeDataChanged, "/a", 8).unwrap();
        assert!(seen.shown("/a", Some(&stat(3, 4))).is_err(), "one is missing");
        seen.disconnected();
        seen.shown("/a", Some(&stat(3, 9))).unwrap();
    }

    #[test]
    fn nothing_goes_back() {
        let mut seen = Seen::default();
        seen.reply(5).unwrap();
        assert!(seen.reply(4).is_err());
        seen.shown("/a", Some(&stat(3, 2))).unwrap();
        assert!(seen.shown("/a", Some(&stat(3, 1))).is_err());
        seen.shown("/b", Some(&stat(3, 0))).unwrap();
        seen.shown("/b", None).unwrap();
        assert!(seen.shown("/b", Some(&stat(3, 0))).is_err(), "it was gone");
        seen.shown("/b", Some(&stat(4, 0))).unwrap();
    }
}
