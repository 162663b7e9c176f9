//! A persistent hash table from strings to small byte strings: cheap to clone, cheap to change, and lean.
//!
//! It is a trie over the hash of the key. Its leaves are pages: blocks of bytes with about a dozen records each.
//! Changing a record that a clone shares copies one page, a `memcpy` of a kilobyte, and the few branches above
//! it; nothing is counted or allocated record by record. That is what a million znodes need: with a node of
//! references for every 32 znodes, a write spent most of its time counting references to its neighbours.
//!
//! The last byte of a key chooses no way: names that are counted up lie together, ten to a page, so that the pages of
//! a write are still in the processor's cache from the writes before.
//!
//! Estimate: beyond its bytes a record costs 5 of its page's tables and about 10 for the page and the branches.

use std::sync::Arc;

use integer_encoding::VarInt;
use xxhash_rust::xxh3::xxh3_64;

/// Ways of a branch, and the bits of the hash that choose one.
const WAYS: usize = 8;
const WAY_BITS: u32 = 3;
/// A larger page is split, unless one record fills it or its keys differ in nothing but their last bytes.
const PAGE_BYTES_MAX: usize = 2048;

/// The table. Iteration has no particular order, but the same content that came about in the same way has the
/// same order everywhere.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    root: Slot,
    len: usize,
}

#[derive(Clone, Debug, Default)]
enum Slot {
    #[default]
    Empty,
    Page(Page),
    Branch(Arc<[Slot; WAYS]>),
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        let hash = hash_of(key.as_bytes());
        let (mut slot, mut depth) = (&self.root, 0);
        loop {
            match slot {
                Slot::Empty => return None,
                Slot::Page(page) => return page.find(key).map(|at| page.record(at).1),
                Slot::Branch(branch) => slot = &branch[way(hash, depth)],
            }
            depth += 1;
        }
    }

    /// Gives a key a value.
    pub(super) fn insert(&mut self, key: &str, value: &[u8]) {
        let is_new = self.root.insert(&Record { hash: hash_of(key.as_bytes()), key, value }, 0);
        self.len += usize::from(is_new);
    }

    /// Gives many keys their values, and tells how many of them are new. Where there was nothing each page is made
    /// once, which is much faster than to insert one by one. A key that comes twice gets either value.
    pub(super) fn extend<'a>(&mut self, entries: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> usize {
        let record = |(key, value): (&'a str, _)| Record { hash: hash_of(key.as_bytes()), key, value };
        let mut records: Vec<_> = entries.into_iter().map(record).collect();
        records.sort_unstable_by(|a, b| (a.hash, a.key).cmp(&(b.hash, b.key)));
        records.dedup_by(|a, b| a.hash == b.hash && a.key == b.key);
        let new = self.root.extend(&records, 0);
        self.len += new;
        new
    }

    /// Removes a key, and tells whether it was there.
    pub(super) fn remove(&mut self, key: &str) -> bool {
        // To look first spares the copies if there is nothing to remove.
        let found = self.get(key).is_some();
        if found {
            self.root.remove(key, hash_of(key.as_bytes()), 0);
            self.len -= 1;
        }
        found
    }

    /// All keys with their values: in the order of the keys' hashes but for keys that lie in one page, so that
    /// [`Table::extend`] with them is fast.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let mut left = vec![&self.root];
        let pages = std::iter::from_fn(move || {
            loop {
                match left.pop()? {
                    Slot::Empty => {}
                    Slot::Page(page) => return Some(page),
                    Slot::Branch(branch) => left.extend(branch.iter().rev()),
                }
            }
        });
        // Keys were strings when they came.
        pages.flat_map(Page::records).map(|(key, value)| (str::from_utf8(key).unwrap_or_default(), value))
    }
}

/// The hash that chooses the ways to a key.
fn hash_of(key: &[u8]) -> u64 {
    xxh3_64(key.split_last().map_or(key, |(_, rest)| rest))
}

/// The branch's way to a record: the hash's bits from the highest on.
fn way(hash: u64, depth: u32) -> usize {
    hash.rotate_left((depth + 1) * WAY_BITS) as usize % WAYS
}

/// A record on its way into a page.
struct Record<'a> {
    hash: u64,
    key: &'a str,
    value: &'a [u8],
}

impl Record<'_> {
    fn len_bytes(&self) -> usize {
        self.key.len().required_space() + self.key.len() + self.value.len()
    }

    fn push_to(&self, bytes: &mut Vec<u8>) {
        let mut key_len = [0; 10];
        let prefix = self.key.len().encode_var(&mut key_len);
        for part in [&key_len[..prefix], self.key.as_bytes(), self.value] {
            bytes.extend_from_slice(part);
        }
    }
}

/// The records of each way, where all are in the order of their hashes.
fn split<'r, 'a>(records: &'r [Record<'a>], depth: u32) -> [&'r [Record<'a>]; WAYS] {
    let mut left = records;
    std::array::from_fn(|wanted| {
        let (own, rest) = left.split_at(left.partition_point(|record| way(record.hash, depth) <= wanted));
        left = rest;
        own
    })
}

impl Slot {
    /// Whether the key is new.
    fn insert(&mut self, record: &Record<'_>, depth: u32) -> bool {
        match self {
            Self::Empty => {
                *self = Self::Page(Page::default().with(None, record));
                true
            }
            Self::Branch(branch) => Arc::make_mut(branch)[way(record.hash, depth)].insert(record, depth + 1),
            Self::Page(page) => {
                let found = page.find(record.key);
                if !found.is_some_and(|at| page.overwrite(at, record.value)) {
                    *self = page.with(found, record).settle(depth);
                }
                found.is_none()
            }
        }
    }

    /// Records in the order of their hashes.
    fn of(records: &[Record<'_>], depth: u32) -> Self {
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return Self::Empty };
        // Hashes that differ part ways before their bits are used up.
        if first.hash == last.hash || Page::len_bytes_of(records) <= PAGE_BYTES_MAX {
            return Self::Page(Page::of(records));
        }
        Self::Branch(Arc::new(split(records, depth).map(|records| Self::of(records, depth + 1))))
    }

    /// How many of the keys are new. They come in the order of their hashes, each once.
    fn extend(&mut self, records: &[Record<'_>], depth: u32) -> usize {
        if records.is_empty() {
            return 0;
        }
        match self {
            Self::Empty => {
                *self = Self::of(records, depth);
                records.len()
            }
            Self::Branch(branch) => {
                let ways = Arc::make_mut(branch).iter_mut().zip(split(records, depth));
                ways.map(|(slot, records)| slot.extend(records, depth + 1)).sum()
            }
            Self::Page(_) => records.iter().map(|record| usize::from(self.insert(record, depth))).sum(),
        }
    }

    fn remove(&mut self, key: &str, hash: u64, depth: u32) {
        match self {
            Self::Empty => {}
            Self::Page(page) => {
                if let Some(at) = page.find(key) {
                    *self = match page.len() {
                        1 => Self::Empty,
                        _ => Self::Page(page.without(at)),
                    };
                }
            }
            Self::Branch(branch) => {
                let ways = Arc::make_mut(branch);
                ways[way(hash, depth)].remove(key, hash, depth + 1);
                if let Some(merged) = merged(ways) {
                    *self = merged;
                }
            }
        }
    }
}

/// What a branch becomes whose pages have shrunk so much that they fit into half of one.
fn merged(ways: &[Slot; WAYS]) -> Option<Slot> {
    let mut bytes = 0;
    for slot in ways {
        match slot {
            Slot::Empty => {}
            Slot::Page(page) => bytes += page.bytes.len(),
            Slot::Branch(_) => return None,
        }
        if bytes > PAGE_BYTES_MAX / 2 {
            return None;
        }
    }
    let pages = || {
        ways.iter().filter_map(|slot| match slot {
            Slot::Page(page) => Some(page),
            _ => None,
        })
    };
    if bytes == 0 {
        return Some(Slot::Empty);
    }
    let tags = pages().flat_map(|page| page.tags().iter().copied());
    Some(Slot::Page(Page::build(tags, pages().flat_map(Page::raw_records))))
}

/// Records side by side: their number, a byte of the hash of each, where each ends, then the records: the key's
/// length, the key, the value. Numbers are little-endian and of four bytes.
#[derive(Clone)]
struct Page {
    bytes: Arc<[u8]>,
}

const NUMBER: usize = size_of::<u32>();

impl Default for Page {
    fn default() -> Self {
        Self { bytes: Arc::new([0; NUMBER]) }
    }
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy;
        f.debug_map().entries(self.records().map(|(key, value)| (text(key), text(value)))).finish()
    }
}

/// What tells most keys of a page apart at a glance.
fn tag(key: &[u8]) -> u8 {
    xxh3_64(key) as u8
}

impl Page {
    fn number(&self, at: usize) -> usize {
        let bytes = self.bytes.get(at..at + NUMBER).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes) as usize
    }

    fn len(&self) -> usize {
        self.number(0)
    }

    fn tags(&self) -> &[u8] {
        &self.bytes[NUMBER..NUMBER + self.len()]
    }

    /// Where the records begin.
    fn body_at(&self) -> usize {
        NUMBER + self.len() * (1 + NUMBER)
    }

    /// Where a record ends, from where the records begin.
    fn end(&self, at: usize) -> usize {
        self.number(NUMBER + self.len() + at * NUMBER)
    }

    fn start(&self, at: usize) -> usize {
        at.checked_sub(1).map_or(0, |before| self.end(before))
    }

    /// A record as it stands.
    fn raw(&self, at: usize) -> &[u8] {
        let body = self.body_at();
        &self.bytes[body + self.start(at)..body + self.end(at)]
    }

    fn raw_records(&self) -> impl Iterator<Item = &[u8]> + Clone {
        (0..self.len()).map(|at| self.raw(at))
    }

    /// A record's key and value.
    fn record(&self, at: usize) -> (&[u8], &[u8]) {
        parse(self.raw(at))
    }

    fn records(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.raw_records().map(parse)
    }

    fn find(&self, key: &str) -> Option<usize> {
        let tag = tag(key.as_bytes());
        let same_tag = self.tags().iter().enumerate().filter(|(_, found)| **found == tag);
        same_tag.map(|(at, _)| at).find(|at| self.record(*at).0 == key.as_bytes())
    }

    /// Changes a value in place, if it keeps its length and no clone has the page.
    fn overwrite(&mut self, at: usize, value: &[u8]) -> bool {
        let end = self.body_at() + self.end(at);
        if self.record(at).1.len() != value.len() {
            return false;
        }
        let Some(bytes) = Arc::get_mut(&mut self.bytes) else { return false };
        bytes[end - value.len()..end].copy_from_slice(value);
        true
    }

    /// The page with a record in the place of another, or with one more.
    fn with(&self, replaced: Option<usize>, record: &Record<'_>) -> Self {
        let len = self.len() + usize::from(replaced.is_none());
        let at = replaced.unwrap_or(self.len());
        let body = &self.bytes[self.body_at()..];
        let (before, after) = match replaced {
            Some(at) => (&body[..self.start(at)], &body[self.end(at)..]),
            None => (body, &[][..]),
        };
        let mut bytes = Vec::with_capacity(self.bytes.len() + record.len_bytes() + 1 + NUMBER);
        bytes.extend(number(len));
        bytes.extend(self.tags());
        if replaced.is_none() {
            bytes.push(tag(record.key.as_bytes()));
        }
        (0..at).for_each(|i| bytes.extend(number(self.end(i))));
        let end = before.len() + record.len_bytes();
        bytes.extend(number(end));
        (at + 1..len).for_each(|i| bytes.extend(number(self.end(i) - self.end(at) + end)));
        bytes.extend_from_slice(before);
        record.push_to(&mut bytes);
        bytes.extend_from_slice(after);
        Self { bytes: bytes.into() }
    }

    /// How long a page of these records is.
    fn len_bytes_of(records: &[Record<'_>]) -> usize {
        NUMBER + records.iter().map(|record| 1 + NUMBER + record.len_bytes()).sum::<usize>()
    }

    fn of(records: &[Record<'_>]) -> Self {
        let mut bytes = Vec::with_capacity(Self::len_bytes_of(records));
        let tags = records.iter().map(|record| tag(record.key.as_bytes()));
        Self::push_head(&mut bytes, tags, records.iter().map(Record::len_bytes));
        records.iter().for_each(|record| record.push_to(&mut bytes));
        Self { bytes: bytes.into() }
    }

    /// What comes before the records: their number, their tags, their ends.
    fn push_head(bytes: &mut Vec<u8>, tags: impl Iterator<Item = u8>, lens: impl Iterator<Item = usize>) {
        bytes.extend([0; NUMBER]);
        bytes.extend(tags);
        let len = bytes.len() - NUMBER;
        bytes[..NUMBER].copy_from_slice(&number(len));
        let mut end = 0;
        for len in lens {
            end += len;
            bytes.extend(number(end));
        }
    }

    fn without(&self, at: usize) -> Self {
        let stay = (0..self.len()).filter(|i| *i != at);
        Self::build(stay.clone().map(|i| self.tags()[i]), stay.map(|i| self.raw(i)))
    }

    fn build<'a>(tags: impl Iterator<Item = u8>, raw: impl Iterator<Item = &'a [u8]> + Clone) -> Self {
        let mut bytes = Vec::new();
        Self::push_head(&mut bytes, tags, raw.clone().map(<[u8]>::len));
        raw.for_each(|record| bytes.extend_from_slice(record));
        Self { bytes: bytes.into() }
    }

    /// The page, or the branch into which it must be split.
    fn settle(self, depth: u32) -> Slot {
        if self.bytes.len() <= PAGE_BYTES_MAX {
            return Slot::Page(self);
        }
        let hashes: Vec<u64> = self.records().map(|(key, _)| hash_of(key)).collect();
        // Hashes that differ part ways before their bits are used up.
        if hashes.iter().all(|hash| *hash == hashes[0]) {
            return Slot::Page(self);
        }
        Slot::Branch(Arc::new(std::array::from_fn(|wanted| {
            let goes = (0..self.len()).filter(|at| way(hashes[*at], depth) == wanted);
            if goes.clone().next().is_none() {
                return Slot::Empty;
            }
            Self::build(goes.clone().map(|at| self.tags()[at]), goes.map(|at| self.raw(at))).settle(depth + 1)
        })))
    }
}

/// A page stays far below the 4 GB that a number can tell: it holds one record of the size of a frame, or a few
/// kilobytes.
fn number(value: usize) -> [u8; NUMBER] {
    (value as u32).to_le_bytes()
}

/// A record's key and value.
fn parse(raw: &[u8]) -> (&[u8], &[u8]) {
    let (key_len, prefix) = usize::decode_var(raw).unwrap_or((0, 0));
    raw[prefix..].split_at(key_len)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn content(table: &Table) -> BTreeMap<String, Vec<u8>> {
        table.iter().map(|(key, value)| (key.to_string(), value.to_vec())).collect()
    }

    proptest! {
        /// It does what a map of the standard library does, and clones keep what they had.
        #[test]
        fn it_is_a_map(ops in proptest::collection::vec((0u8..4, 0u16..300, 0usize..400), 0..300)) {
            let mut table = Table::default();
            let mut model = BTreeMap::new();
            let mut clones = Vec::new();
            for (op, key, len) in ops {
                let key = format!("/some/path/{key}");
                if op == 3 {
                    let value = vec![op; len];
                    let keys: Vec<String> = (0..len).map(|i| format!("{key}{}", i * i)).collect();
                    let new = keys.iter().filter(|key| model.insert(key.to_string(), value.clone()).is_none()).count();
                    prop_assert_eq!(table.extend(keys.iter().map(|key| (key.as_str(), &value[..]))), new);
                } else if op == 0 {
                    prop_assert_eq!(table.remove(&key), model.remove(&key).is_some());
                } else {
                    let value = vec![op; len];
                    table.insert(&key, &value);
                    model.insert(key.clone(), value);
                }
                prop_assert_eq!(table.get(&key), model.get(&key).map(Vec::as_slice));
                prop_assert_eq!(table.len(), model.len());
                if len % 50 == 0 {
                    clones.push((table.clone(), model.clone()));
                }
            }
            clones.push((table, model));
            for (table, model) in clones {
                prop_assert_eq!(content(&table), model);
            }
        }
    }

    #[test]
    fn what_is_emptied_is_small_again() {
        let mut table = Table::default();
        for i in 0..10_000 {
            table.insert(&format!("{i}"), &[7; 50]);
        }
        assert!(matches!(table.root, Slot::Branch(_)));
        (1..10_000).for_each(|i| assert!(table.remove(&format!("{i}"))));
        assert!(matches!(table.root, Slot::Page(_)));
        assert!(table.remove("0") && !table.remove("0"));
        assert!(matches!(table.root, Slot::Empty) && table.is_empty());
    }

    #[test]
    fn records_larger_than_a_page_have_one_of_their_own() {
        let mut table = Table::default();
        for i in 0..20 {
            table.insert(&format!("{i}"), &vec![i; 3 * PAGE_BYTES_MAX]);
        }
        assert_eq!(table.iter().count(), 20);
        assert_eq!(table.get("19"), Some(&vec![19; 3 * PAGE_BYTES_MAX][..]));
    }

    #[test]
    fn keys_that_differ_in_their_last_bytes_share_a_page_of_any_size() {
        let mut table = Table::default();
        for last in 'a'..='z' {
            table.insert(&format!("{}{last}", "k".repeat(200)), b"");
        }
        let Slot::Page(page) = &table.root else { panic!("not a page") };
        assert_eq!((page.len(), page.find(&format!("{}q", "k".repeat(200)))), (26, Some(16)));
        table.insert("another", b"");
        assert!(matches!(table.root, Slot::Branch(_)));
        assert_eq!(table.len(), 27);
    }
}
