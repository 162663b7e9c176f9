//! What clients did and were told, and what must follow from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_node::region::View;
use meridian_node::txn::State;
use parking_lot::Mutex;

use super::trace::Trace;

/// Clients notice at the same millisecond, in any order.
const SIMULTANEOUS_MS: u64 = 1;

/// A part of the tree with one orderer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    /// A region's own.
    Local {
        region: usize,
    },
    Homed,
    Global,
}

impl Scope {
    /// The path below which its clients work.
    pub(super) fn root(self) -> &'static str {
        match self {
            Scope::Local { .. } => "/local",
            Scope::Homed => "/homed",
            Scope::Global => "/global",
        }
    }

    /// Whether a region has it.
    fn is_in(self, other: usize) -> bool {
        !matches!(self, Scope::Local { region } if region != other)
    }
}

/// What a client was told of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It took effect.
    Done,
    /// Perhaps it took effect.
    Unknown,
}

/// The history of a run. Clones share it.
#[derive(Clone)]
pub(super) struct History {
    trace: Trace,
    content: Arc<Mutex<Content>>,
}

#[derive(Default)]
struct Content {
    creates: BTreeMap<(Scope, String), Fate>,
    /// Paths of sequential znodes, with the data that tells who asked for them.
    sequential: BTreeMap<(Scope, String), String>,
    /// Data of sequential creates.
    sequential_fates: BTreeMap<(Scope, String), Fate>,
    counters: BTreeMap<Scope, Counter>,
    holdings: Vec<Holding>,
    violations: Vec<String>,
    operations: u64,
    unknown: u64,
}

#[derive(Default)]
struct Counter {
    /// Versions that a write made, as its client was told.
    made: BTreeSet<i32>,
    unknown: usize,
}

/// The time in which a client could believe to hold a lock.
#[derive(Clone, Debug)]
struct Holding {
    scope: Scope,
    client: String,
    from_ms: u64,
    to_ms: Option<u64>,
    czxid: i64,
}

impl History {
    pub(super) fn new(trace: Trace) -> Self {
        Self { trace, content: Arc::default() }
    }

    /// Something that must not be.
    pub(super) fn violation(&self, now_ms: u64, text: String) {
        self.trace.note(now_ms, format_args!("VIOLATION {text}"));
        self.content.lock().violations.push(text);
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.content.lock().violations.clone()
    }

    /// Operations asked for, and those of unknown fate.
    pub(super) fn operations(&self) -> (u64, u64) {
        let content = self.content.lock();
        (content.operations, content.unknown)
    }

    fn count(content: &mut Content, fate: Fate) {
        content.operations += 1;
        content.unknown += u64::from(fate == Fate::Unknown);
    }

    pub(super) fn created(&self, scope: Scope, path: String, fate: Fate) {
        let mut content = self.content.lock();
        Self::count(&mut content, fate);
        content.creates.insert((scope, path), fate);
    }

    /// A sequential znode was asked for with this data; if it was made, it got this path.
    pub(super) fn created_sequential(&self, now_ms: u64, scope: Scope, data: String, path: Option<String>) {
        let mut content = self.content.lock();
        let fate = if path.is_some() { Fate::Done } else { Fate::Unknown };
        Self::count(&mut content, fate);
        content.sequential_fates.insert((scope, data.clone()), fate);
        let Some(path) = path else { return };
        if let Some(other) = content.sequential.insert((scope, path.clone()), data.clone()) {
            drop(content);
            self.violation(now_ms, format!("{scope:?} {path} was given to {other} and to {data}"));
        }
    }

    /// The newest version of the counter that anybody was told of.
    pub(super) fn newest_version(&self, scope: Scope) -> i32 {
        let content = self.content.lock();
        content.counters.get(&scope).and_then(|c| c.made.last().copied()).unwrap_or(0)
    }

    pub(super) fn incremented(&self, now_ms: u64, scope: Scope, version: Option<i32>) {
        let mut content = self.content.lock();
        let fate = if version.is_some() { Fate::Done } else { Fate::Unknown };
        Self::count(&mut content, fate);
        let counter = content.counters.entry(scope).or_default();
        match version {
            None => counter.unknown += 1,
            Some(version) => {
                if !counter.made.insert(version) {
                    drop(content);
                    self.violation(now_ms, format!("{scope:?} counter: two writes made version {version}"));
                }
            }
        }
    }

    /// A client was told that it holds the lock.
    pub(super) fn acquired(&self, now_ms: u64, scope: Scope, client: &str, czxid: i64) {
        self.trace.note(now_ms, format_args!("{client} holds the lock of {scope:?}, czxid {czxid:#x}"));
        let mut content = self.content.lock();
        Self::count(&mut content, Fate::Done);
        let client = client.to_string();
        content.holdings.push(Holding { scope, client, from_ms: now_ms, to_ms: None, czxid });
    }

    /// A client releases the lock, or was told that it may not hold it.
    pub(super) fn lost(&self, now_ms: u64, scope: Scope, client: &str, how: &str) {
        let mut content = self.content.lock();
        let open = |h: &&mut Holding| h.scope == scope && h.client == client && h.to_ms.is_none();
        if let Some(holding) = content.holdings.iter_mut().find(open) {
            holding.to_ms = Some(now_ms);
            self.trace.note(now_ms, format_args!("{client} lets go of the lock of {scope:?}: {how}"));
        }
    }

    /// Checks what can be checked without the servers.
    pub(super) fn check_locks(&self, now_ms: u64) {
        let mut holdings = self.content.lock().holdings.clone();
        holdings.sort_by_key(|h| (h.scope, h.from_ms));
        for (at, earlier) in holdings.iter().enumerate() {
            for later in holdings.iter().skip(at + 1).filter(|later| later.scope == earlier.scope) {
                let until_ms = earlier.to_ms.unwrap_or(u64::MAX);
                if later.from_ms + SIMULTANEOUS_MS < until_ms {
                    self.violation(
                        now_ms,
                        format!(
                            "{:?} lock: {} held it from {} to {:?}, {} from {}",
                            earlier.scope,
                            earlier.client,
                            earlier.from_ms,
                            earlier.to_ms,
                            later.client,
                            later.from_ms
                        ),
                    );
                }
                if later.czxid < earlier.czxid {
                    self.violation(
                        now_ms,
                        format!(
                            "{:?} lock: the czxid went back from {:#x} ({}) to {:#x} ({})",
                            earlier.scope, earlier.czxid, earlier.client, later.czxid, later.client
                        ),
                    );
                }
            }
        }
    }

    /// Checks a region's final state against what its clients, and those of others, were told.
    pub(super) fn check_state(&self, now_ms: u64, region: usize, view: &View) {
        let found = {
            let content = self.content.lock();
            let mut found = content.check_creates(region, &view.state);
            found.extend(content.check_sequential(region, &view.state));
            found.extend(content.check_counters(region, &view.state));
            found
        };
        for text in found {
            self.violation(now_ms, format!("region {region}: {text}"));
        }
    }
}

impl Content {
    fn check_creates(&self, region: usize, state: &State) -> Vec<String> {
        let lost = self.creates.iter().filter(|((scope, path), fate)| {
            scope.is_in(region) && **fate == Fate::Done && state.tree.get(path).is_none()
        });
        lost.map(|((_, path), _)| format!("the acknowledged create of {path} is lost")).collect()
    }

    fn check_sequential(&self, region: usize, state: &State) -> Vec<String> {
        let mut found = Vec::new();
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (path, znode) in state.tree.iter() {
            if path.contains("/seq-") {
                let data = znode.data.as_ref().map(|d| String::from_utf8_lossy(d).into_owned());
                *seen.entry(data.unwrap_or_default()).or_default() += 1;
            }
        }
        for ((scope, data), fate) in &self.sequential_fates {
            let count = seen.get(data).copied().unwrap_or(0);
            if scope.is_in(region) && (count > 1 || (count == 0 && *fate == Fate::Done)) {
                found.push(format!("the sequential create {data} ({fate:?}) took effect {count} times"));
            }
        }
        for ((scope, path), data) in &self.sequential {
            let there = state.tree.get(path).and_then(|z| z.data.as_ref().map(|d| d.to_vec()));
            if scope.is_in(region) && there.as_deref() != Some(data.as_bytes()) {
                found.push(format!("{path} was told to be {data}'s and is not"));
            }
        }
        found
    }

    fn check_counters(&self, region: usize, state: &State) -> Vec<String> {
        let mut found = Vec::new();
        for (scope, counter) in self.counters.iter().filter(|(scope, _)| scope.is_in(region)) {
            let path = format!("{}/counter", scope.root());
            let Some(znode) = state.tree.get(&path) else {
                found.push(format!("{path} is gone"));
                continue;
            };
            let value = znode.data.as_ref().and_then(|d| std::str::from_utf8(d).ok()?.parse::<usize>().ok());
            let version = usize::try_from(znode.stat().version).unwrap_or(0);
            let told = counter.made.len();
            if value != Some(version) || version < told || version > told + counter.unknown {
                found.push(format!(
                    "{path} is {value:?} at version {version} after {told} acknowledged and {} unknown increments",
                    counter.unknown
                ));
            }
        }
        found
    }
}
