//! What clients did and were told, and what must follow from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_node::region::View;
use meridian_node::txn::State;
use parking_lot::Mutex;

use super::linear::{self, Ask, Operation, Told, Verdict};
use super::net::Wires;
use super::trace::Trace;

/// Clients notice at the same millisecond, in any order.
const SIMULTANEOUS_MS: u64 = 1;
/// What happened before it may still be felt for so long.
const CALM_MS: u64 = 15_000;

/// Counts writes whose clients never learnt what came of them.
const UNKNOWN: &str = "of unknown outcome";

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

/// What only one client at a time may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Prize {
    Lock,
    Leadership,
}

/// The history of a run. Clones share it.
#[derive(Clone)]
pub(super) struct History {
    trace: Trace,
    wires: Wires,
    content: Arc<Mutex<Content>>,
}

#[derive(Default)]
struct Content {
    creates: BTreeMap<(Scope, String), Fate>,
    numbered: Vec<Numbered>,
    counters: BTreeMap<Scope, Counter>,
    holdings: Vec<Holding>,
    registers: BTreeMap<(Scope, String), Vec<Operation>>,
    /// Numbers that one client writes to a znode in rising order, by the zxids at which they were seen there.
    rising: BTreeMap<(Scope, String), BTreeMap<i64, u64>>,
    /// Items that were taken out of queues.
    taken: BTreeMap<(Scope, String), Fate>,
    /// Sessions whose clients were told that they are closed.
    closed: BTreeSet<i64>,
    /// Since when no fault but pauses of whole regions has struck.
    calm_since_ms: Option<u64>,
    violations: Vec<String>,
    counts: BTreeMap<&'static str, u64>,
    moment: u64,
}

#[derive(Default)]
struct Counter {
    /// Versions that a write made, as its client was told.
    made: BTreeSet<i32>,
    unknown: usize,
}

/// A sequential znode that was asked for, with data that nobody else writes.
struct Numbered {
    scope: Scope,
    prefix: String,
    data: String,
    asked: u64,
    /// When its client was told its path.
    made: Option<(u64, String)>,
}

/// The time in which a client could believe to have a prize.
#[derive(Clone, Debug)]
struct Holding {
    scope: Scope,
    prize: Prize,
    client: String,
    from_ms: u64,
    to_ms: Option<u64>,
    czxid: i64,
}

impl History {
    pub(super) fn new(trace: Trace, wires: Wires) -> Self {
        let content = Content { calm_since_ms: Some(0), ..Content::default() };
        Self { trace, wires, content: Arc::new(Mutex::new(content)) }
    }

    /// Something that must not be.
    pub(super) fn violation(&self, text: String) {
        self.trace.note(self.wires.now_ms(), format_args!("VIOLATION {text}"));
        self.content.lock().violations.push(text);
    }

    pub(super) fn has_violations(&self) -> bool {
        !self.content.lock().violations.is_empty()
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.content.lock().violations.clone()
    }

    /// Counts something that is reported at the end.
    pub(super) fn count(&self, what: &'static str) {
        *self.content.lock().counts.entry(what).or_default() += 1;
    }

    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.content.lock().counts.clone()
    }

    /// The next moment: everything that clients ask and are told has a moment of its own.
    pub(super) fn moment(&self) -> u64 {
        let mut content = self.content.lock();
        content.moment += 1;
        content.moment
    }

    /// Counts a write of which nothing is known yet.
    fn count_write(content: &mut Content, what: &'static str) {
        *content.counts.entry(what).or_default() += 1;
        *content.counts.entry(UNKNOWN).or_default() += 1;
    }

    /// Its client has learnt what came of a write.
    fn count_answer(content: &mut Content) {
        if let Some(unknown) = content.counts.get_mut(UNKNOWN) {
            *unknown -= 1;
        }
    }

    /// A create was asked for: perhaps it takes effect.
    pub(super) fn creates(&self, scope: Scope, path: String) {
        let mut content = self.content.lock();
        Self::count_write(&mut content, "creates");
        content.creates.insert((scope, path), Fate::Unknown);
    }

    /// A create was answered.
    pub(super) fn created(&self, scope: Scope, path: &str, done: bool) {
        let mut content = self.content.lock();
        Self::count_answer(&mut content);
        if done {
            content.creates.insert((scope, path.to_string()), Fate::Done);
        }
    }

    /// A sequential znode was asked for; returns what [`History::numbered`] must be told.
    pub(super) fn asks_for_number(&self, scope: Scope, prefix: String, data: String) -> usize {
        let asked = self.moment();
        let mut content = self.content.lock();
        Self::count_write(&mut content, "sequential creates");
        content.numbered.push(Numbered { scope, prefix, data, asked, made: None });
        content.numbered.len() - 1
    }

    /// A sequential create was answered, with a path if it took effect.
    pub(super) fn numbered(&self, number: usize, path: Option<String>) {
        let moment = self.moment();
        let mut content = self.content.lock();
        Self::count_answer(&mut content);
        if let Some(numbered) = content.numbered.get_mut(number) {
            numbered.made = path.map(|path| (moment, path));
        }
    }

    /// An item is asked to be taken out of a queue.
    pub(super) fn takes(&self, scope: Scope, path: String) {
        let mut content = self.content.lock();
        Self::count_write(&mut content, "items taken");
        content.taken.entry((scope, path)).or_insert(Fate::Unknown);
    }

    /// That was answered.
    pub(super) fn taken(&self, scope: Scope, path: &str, done: bool) {
        let mut content = self.content.lock();
        Self::count_answer(&mut content);
        if !done {
            return;
        }
        let before = content.taken.insert((scope, path.to_string()), Fate::Done);
        drop(content);
        if before == Some(Fate::Done) {
            self.violation(format!("{scope:?}: {path} was taken twice"));
        }
    }

    /// The newest version of the counter that anybody was told of.
    pub(super) fn newest_version(&self, scope: Scope) -> i32 {
        let content = self.content.lock();
        content.counters.get(&scope).and_then(|c| c.made.last().copied()).unwrap_or(0)
    }

    /// An increment was asked for: perhaps it takes effect.
    pub(super) fn increments(&self, scope: Scope) {
        let mut content = self.content.lock();
        Self::count_write(&mut content, "increments");
        content.counters.entry(scope).or_default().unknown += 1;
    }

    /// An increment was answered, with the version that it made if it took effect.
    pub(super) fn incremented(&self, scope: Scope, version: Option<i32>) {
        let mut content = self.content.lock();
        Self::count_answer(&mut content);
        let counter = content.counters.entry(scope).or_default();
        counter.unknown -= 1;
        if let Some(version) = version
            && !counter.made.insert(version)
        {
            drop(content);
            self.violation(format!("{scope:?} counter: two writes made version {version}"));
        }
    }

    /// An operation on a register was asked for; returns what [`History::operated`] must be told.
    pub(super) fn operates(&self, scope: Scope, key: &str, ask: Ask) -> usize {
        let asked = self.moment();
        let mut content = self.content.lock();
        Self::count_write(
            &mut content,
            if ask == Ask::Read { "reads after sync" } else { "register writes" },
        );
        let operations = content.registers.entry((scope, key.to_string())).or_default();
        operations.push(Operation { asked, answered: None, ask });
        operations.len() - 1
    }

    /// An operation on a register was answered.
    pub(super) fn operated(&self, scope: Scope, key: &str, number: usize, told: Told) {
        let answered = self.moment();
        let mut content = self.content.lock();
        Self::count_answer(&mut content);
        let operations = content.registers.entry((scope, key.to_string())).or_default();
        if let Some(operation) = operations.get_mut(number) {
            operation.answered = Some((answered, told));
        }
    }

    /// A number was seen in a znode whose writer writes rising ones.
    pub(super) fn rose(&self, scope: Scope, path: &str, mzxid: i64, number: u64) {
        let mut content = self.content.lock();
        let seen = content.rising.entry((scope, path.to_string())).or_default();
        let before = seen.range(..mzxid).next_back().is_some_and(|(_, before)| *before >= number);
        let after = seen.range(mzxid + 1..).next().is_some_and(|(_, after)| *after <= number);
        let other = seen.insert(mzxid, number).is_some_and(|other| other != number);
        drop(content);
        if before || after || other {
            self.violation(format!(
                "{scope:?}: {number}, written to {path} at {mzxid:#x}, is out of its session's order"
            ));
        }
    }

    /// A client was told that its session is closed.
    pub(super) fn closed(&self, session: i64) {
        self.content.lock().closed.insert(session);
        self.count("sessions closed");
    }

    /// The sessions of which clients were told that they are closed.
    pub(super) fn closed_sessions(&self) -> BTreeSet<i64> {
        self.content.lock().closed.clone()
    }

    /// Something strikes, or the last of what struck is over.
    pub(super) fn set_calm(&self, calm: bool) {
        let now_ms = self.wires.now_ms();
        self.content.lock().calm_since_ms = calm.then_some(now_ms);
    }

    /// A client learnt that its session has expired, which it had last heard of at a time.
    pub(super) fn expired(&self, client: &str, heard_ms: u64) {
        self.count("sessions expired");
        let calm_since_ms = self.content.lock().calm_since_ms;
        if calm_since_ms.is_some_and(|since_ms| since_ms + CALM_MS < heard_ms) {
            self.violation(format!("{client}: the session expired though only its servers were ever silent"));
        }
    }

    /// A client was told that it has a prize.
    pub(super) fn acquired(&self, scope: Scope, prize: Prize, client: &str, czxid: i64) {
        let from_ms = self.wires.now_ms();
        self.trace.note(from_ms, format_args!("{client} has the {prize:?} of {scope:?}, czxid {czxid:#x}"));
        let mut content = self.content.lock();
        let what = if prize == Prize::Lock { "locks held" } else { "elections won" };
        *content.counts.entry(what).or_default() += 1;
        let client = client.to_string();
        content.holdings.push(Holding { scope, prize, client, from_ms, to_ms: None, czxid });
    }

    /// A client gives up a prize, or was told that it may not have it.
    pub(super) fn lost(&self, scope: Scope, prize: Prize, client: &str, how: &str) {
        let now_ms = self.wires.now_ms();
        let mut content = self.content.lock();
        let open = |h: &&mut Holding| {
            h.scope == scope && h.prize == prize && h.client == client && h.to_ms.is_none()
        };
        if let Some(holding) = content.holdings.iter_mut().find(open) {
            holding.to_ms = Some(now_ms);
            self.trace.note(now_ms, format_args!("{client} loses the {prize:?} of {scope:?}: {how}"));
        }
    }

    /// Clients whose names begin so are gone, and with them whatever they believed.
    pub(super) fn died(&self, names: &str) {
        let now_ms = self.wires.now_ms();
        let mut content = self.content.lock();
        for holding in content.holdings.iter_mut().filter(|h| h.client.starts_with(names)) {
            holding.to_ms.get_or_insert(now_ms);
        }
    }

    /// Checks what can be checked without the servers.
    pub(super) fn check(&self) {
        self.check_prizes();
        let found = {
            let content = self.content.lock();
            let mut found = content.check_numbers();
            found.extend(content.check_registers());
            found
        };
        found.into_iter().for_each(|text| self.violation(text));
    }

    fn check_prizes(&self) {
        let mut holdings = self.content.lock().holdings.clone();
        holdings.sort_by_key(|h| (h.scope, h.prize, h.from_ms));
        for (at, earlier) in holdings.iter().enumerate() {
            let rivals = holdings.iter().skip(at + 1);
            for later in rivals.take_while(|h| (h.scope, h.prize) == (earlier.scope, earlier.prize)) {
                let what = format!("{:?} {:?}", earlier.scope, earlier.prize);
                if later.from_ms + SIMULTANEOUS_MS < earlier.to_ms.unwrap_or(u64::MAX) {
                    self.violation(format!(
                        "{what}: {} had it from {} to {:?}, {} from {}",
                        earlier.client, earlier.from_ms, earlier.to_ms, later.client, later.from_ms
                    ));
                }
                if later.czxid < earlier.czxid {
                    self.violation(format!(
                        "{what}: the czxid went back from {:#x} ({}) to {:#x} ({})",
                        earlier.czxid, earlier.client, later.czxid, later.client
                    ));
                }
            }
        }
    }

    /// Checks a region's final state against what its clients, and those of others, were told. What is homed is
    /// left out if its home is lost.
    pub(super) fn check_state(&self, region: usize, view: &View, home_is_lost: bool) {
        let found = {
            let content = self.content.lock();
            let concerns = |scope: Scope| scope.is_in(region) && !(home_is_lost && scope == Scope::Homed);
            let mut found = content.check_creates(&concerns, &view.state);
            found.extend(content.check_numbered(&concerns, &view.state));
            found.extend(content.check_counters(&concerns, &view.state));
            found
        };
        found.into_iter().for_each(|text| self.violation(format!("region {region}: {text}")));
    }
}

impl Content {
    /// Numbers never repeat, and what was asked for after another was made has a higher one.
    fn check_numbers(&self) -> Vec<String> {
        let mut found = Vec::new();
        // When each was asked for and made, and its path.
        type Made<'a> = Vec<(u64, u64, &'a str)>;
        let mut of_prefix: BTreeMap<(Scope, &str), Made<'_>> = BTreeMap::new();
        for Numbered { scope, prefix, asked, made, .. } in &self.numbered {
            if let Some((at, path)) = made {
                of_prefix.entry((*scope, prefix)).or_default().push((*asked, *at, path));
            }
        }
        for ((scope, _), mut made) in of_prefix {
            made.sort_unstable_by_key(|(_, at, _)| *at);
            let newest_by: Vec<(u64, &str)> = made
                .iter()
                .scan("", |newest, (_, at, path)| {
                    *newest = (*newest).max(path);
                    Some((*at, *newest))
                })
                .collect();
            for (asked, _, path) in &made {
                let before = newest_by.partition_point(|(at, _)| at < asked);
                if before > 0 && newest_by[before - 1].1 >= *path {
                    found.push(format!(
                        "{scope:?}: {path} was asked for after {} was made",
                        newest_by[before - 1].1
                    ));
                }
            }
            let mut paths: Vec<&str> = made.iter().map(|(_, _, path)| *path).collect();
            paths.sort_unstable();
            let twice = paths.windows(2).filter(|pair| pair[0] == pair[1]);
            found.extend(twice.map(|pair| format!("{scope:?}: {} was made twice", pair[0])));
        }
        found
    }

    fn check_registers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for ((scope, key), operations) in &self.registers {
            match linear::check(operations) {
                Verdict::Linearizable => {}
                Verdict::Undecided => found.push(format!("{scope:?} {key}: too long to check")),
                Verdict::Impossible(near) => {
                    let near: Vec<String> = near.iter().map(ToString::to_string).collect();
                    found.push(format!("{scope:?} {key} is not linearizable near: {}", near.join("; ")));
                }
            }
        }
        found
    }

    fn check_creates(&self, concerns: &impl Fn(Scope) -> bool, state: &State) -> Vec<String> {
        let lost = self.creates.iter().filter(|((scope, path), fate)| {
            concerns(*scope) && **fate == Fate::Done && state.tree.get(path).is_none()
        });
        lost.map(|((_, path), _)| format!("the acknowledged create of {path} is lost")).collect()
    }

    fn check_numbered(&self, concerns: &impl Fn(Scope) -> bool, state: &State) -> Vec<String> {
        let mut found = Vec::new();
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (path, znode) in state.tree.iter() {
            if path.contains("/seq-") || path.contains("/item-") {
                let data = znode.data.as_ref().map(|d| String::from_utf8_lossy(d).into_owned());
                *seen.entry(data.unwrap_or_default()).or_default() += 1;
            }
        }
        let lasting = |n: &&Numbered| n.prefix.ends_with("/seq-") || n.prefix.ends_with("/item-");
        for Numbered { scope, data, made, .. } in
            self.numbered.iter().filter(lasting).filter(|n| concerns(n.scope))
        {
            let count = seen.get(data).copied().unwrap_or(0);
            let taken = made.as_ref().and_then(|(_, path)| self.taken.get(&(*scope, path.clone())));
            let right = match (made, taken) {
                (_, Some(Fate::Done)) => count == 0,
                (Some(_), None) => count == 1,
                // Somebody may have taken it without its maker knowing its name.
                (_, Some(Fate::Unknown)) | (None, None) => count <= 1,
            };
            if !right {
                let made = made.as_ref().map(|(_, path)| path);
                found.push(format!(
                    "the create of {data} (told {made:?}, taken {taken:?}) is there {count} times"
                ));
            }
            let there = made.as_ref().and_then(|(_, path)| state.tree.get(path)?.data);
            if there.is_some_and(|there| there != data.as_bytes()) {
                found.push(format!("{made:?} was told to be {data}'s and is not"));
            }
        }
        found
    }

    fn check_counters(&self, concerns: &impl Fn(Scope) -> bool, state: &State) -> Vec<String> {
        let mut found = Vec::new();
        for (scope, counter) in self.counters.iter().filter(|(scope, _)| concerns(**scope)) {
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
