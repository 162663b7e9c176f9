//! The content of snapshots: a region's whole state, and the part that one orderer orders.
//!
//! Both are sequences of bounded records, so that neither side ever holds a second copy of everything
//! in encoded form, and both end in counts and digests that must agree before anything is replaced: an
//! incomplete source deletes nothing.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use meridian_bridge::mesh::{Mesh, Orderer, SubtreeId};
use meridian_bridge::state::{Federation, GlobalEntry, Order, Outbox, Pending, Staging};
use meridian_seam::codec::{self, CodecError};
use meridian_seam::limits;
use meridian_seam::mutant::{self, Mutant};
use meridian_wire::EventType;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Policy;
use super::ensemble::Ensemble;
use super::import::ImportedZnode;
use super::request::Event;
use super::state::{Session, State};
use crate::tree::{Acl, Planting, Times, Tree, ZnodeRef};

/// Why a snapshot can't be used.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// A record does not decode.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The records are not all there or do not belong together.
    #[error("incomplete or inconsistent snapshot: {0}")]
    Incomplete(&'static str),
}

const REPEATED: SnapshotError = SnapshotError::Incomplete("a znode comes twice");

/// A znode with its path.
#[derive(Debug, Serialize, Deserialize)]
struct ZnodeRecord<'a> {
    path: &'a str,
    subtree: SubtreeId,
    #[serde(borrow)]
    data: Option<&'a serde_bytes::Bytes>,
    #[serde(borrow)]
    acl: Vec<AclRecord<'a>>,
    owner: i64,
    times: Times,
}

/// An entry of an ACL.
#[derive(Debug, Serialize, Deserialize)]
struct AclRecord<'a> {
    perms: i32,
    scheme: &'a str,
    id: &'a str,
}

impl PartialEq<Acl> for AclRecord<'_> {
    fn eq(&self, other: &Acl) -> bool {
        (self.perms, self.scheme, self.id) == (other.perms, &*other.scheme, &*other.id)
    }
}

impl<'a> ZnodeRecord<'a> {
    fn new((path, znode): (&'a str, ZnodeRef<'a>)) -> Self {
        let entry = |acl: &'a Acl| AclRecord { perms: acl.perms, scheme: &acl.scheme, id: &acl.id };
        Self {
            path,
            subtree: znode.subtree,
            data: znode.data.map(serde_bytes::Bytes::new),
            acl: znode.acl.iter().map(entry).collect(),
            owner: znode.owner,
            times: znode.times,
        }
    }

    /// About the length of the encoded record, for cutting batches.
    fn weight(&self) -> usize {
        let acl: usize = self.acl.iter().map(|a| a.scheme.len() + a.id.len() + 8).sum();
        self.path.len() + self.data.map_or(0, |data| data.len()) + acl + 64
    }
}

/// Adds znodes to a tree. Most have the same ACL as the one before.
fn plant(tree: &mut Planting, records: &[ZnodeRecord<'_>]) {
    let owned =
        |entry: &AclRecord<'_>| Acl { perms: entry.perms, scheme: entry.scheme.into(), id: entry.id.into() };
    let mut acls: Vec<Arc<[Acl]>> = Vec::new();
    for record in records {
        match acls.last() {
            Some(last) if record.acl == **last => acls.push(last.clone()),
            _ => acls.push(record.acl.iter().map(owned).collect()),
        }
    }
    tree.add(records.iter().zip(&acls).map(|(record, acl)| {
        let ZnodeRecord { path, subtree, data, owner, times, .. } = *record;
        let data = data.map(|data| &**data);
        (path, ZnodeRef { subtree, data, acl, owner, times, children: 0 })
    }));
}

/// About the bytes that a znode takes.
pub(super) fn weight_of(path: &str, data: Option<&Bytes>, acl: &[Acl]) -> usize {
    let acl: usize = acl.iter().map(|a| a.scheme.len() + a.id.len() + 8).sum();
    path.len() + data.map_or(0, Bytes::len) + acl + 64
}

/// Cuts items into batches of about [`limits::SNAPSHOT_CHUNK_BYTES`].
pub(crate) fn batches<T>(
    items: impl Iterator<Item = T>,
    weight: impl Fn(&T) -> usize,
) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.peekable();
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let mut batch = Vec::new();
        while let Some(item) =
            items.next_if(|item| batch.is_empty() || bytes + weight(item) <= limits::SNAPSHOT_CHUNK_BYTES)
        {
            bytes += weight(&item);
            batch.push(item);
        }
        (!batch.is_empty()).then_some(batch)
    })
}

/// The content of everything that one orderer orders, at one position of its order.
#[derive(Debug)]
pub struct SubtreeSnapshot {
    /// Whose content.
    pub orderer: Orderer,
    /// The position.
    pub order: Order,
    tree: Tree,
}

#[derive(Debug, Serialize, Deserialize)]
enum SubtreeRecord<'a> {
    Header {
        orderer: Orderer,
        order: Order,
        znodes: u64,
        digests: Vec<(SubtreeId, u128)>,
    },
    #[serde(borrow)]
    Znodes(Vec<ZnodeRecord<'a>>),
}

impl SubtreeSnapshot {
    /// Writes the content of what an orderer orders, as pieces for another region.
    ///
    /// # Errors
    /// If the state has no such order.
    pub fn write(state: &State, orderer: Orderer) -> Result<Vec<Bytes>, SnapshotError> {
        let order =
            state.federation.orders.get(&orderer).ok_or(SnapshotError::Incomplete("no such order"))?;
        let concerns = |subtree| state.is_ordered_by(subtree, orderer);
        let znodes = || state.tree.iter().filter(|(_, z)| concerns(z.subtree));
        let digests: Vec<_> = state
            .mesh
            .subtrees()
            .filter(|(id, _)| concerns(*id))
            .map(|(id, _)| (id, state.tree.digest(id)))
            .collect();
        let header =
            SubtreeRecord::Header { orderer, order: order.clone(), znodes: znodes().count() as u64, digests };
        let mut pieces = vec![codec::encode(&header)?.into()];
        for batch in batches(znodes().map(ZnodeRecord::new), ZnodeRecord::weight) {
            pieces.push(codec::encode(&SubtreeRecord::Znodes(batch))?.into());
        }
        Ok(pieces)
    }

    /// Reads and verifies what [`SubtreeSnapshot::write`] made.
    ///
    /// # Errors
    /// If any of it is missing or differs.
    pub fn read(pieces: &[Bytes]) -> Result<Self, SnapshotError> {
        let (first, rest) = pieces.split_first().ok_or(SnapshotError::Incomplete("no pieces"))?;
        let SubtreeRecord::Header { orderer, order, znodes: count, digests } = codec::decode(first)? else {
            return Err(SnapshotError::Incomplete("no header"));
        };
        let mut planting = Planting::default();
        for piece in rest {
            let SubtreeRecord::Znodes(batch) = codec::decode(piece)? else {
                return Err(SnapshotError::Incomplete("a second header"));
            };
            plant(&mut planting, &batch);
        }
        let tree = planting.finish().ok_or(REPEATED)?;
        if mutant::is(Mutant::DeletionOnEmptySource) {
            return Ok(Self { orderer, order, tree });
        }
        if tree.len() as u64 != count {
            return Err(SnapshotError::Incomplete("znodes are missing"));
        }
        if digests.iter().any(|(subtree, digest)| tree.digest(*subtree) != *digest) {
            return Err(SnapshotError::Incomplete("the digest differs"));
        }
        Ok(Self { orderer, order, tree })
    }

    /// Whether all of it is what an orderer orders by a mesh's table.
    pub(super) fn is_of(&self, orderer: Orderer, mesh: &Mesh) -> bool {
        let ordered = |path: &str, subtree| {
            mesh.subtree_of(path) == subtree && mesh.orderer_of(subtree) == Some(orderer)
        };
        self.orderer == orderer && self.tree.iter().all(|(path, znode)| ordered(path, znode.subtree))
    }

    /// Replaces the content in a tree; `events` gets what has changed by it.
    pub fn install(&self, tree: &mut Tree, mesh: &Mesh, events: &mut Vec<Event>) {
        let before = tree.clone();
        let subtrees = mesh.subtrees().filter(|(id, _)| mesh.orderer_of(*id) == Some(self.orderer));
        let replaced: Vec<SubtreeId> = subtrees.map(|(id, _)| id).collect();
        for subtree in &replaced {
            tree.remove_subtree(*subtree);
        }
        tree.extend(self.tree.iter());
        tree.recount_quotas();
        tree.write_quota_stats();
        let mut paths: Vec<&str> =
            before.iter().filter(|(_, z)| replaced.contains(&z.subtree)).map(|(p, _)| p).collect();
        paths.extend(self.tree.iter().map(|(path, _)| path).filter(|path| !before.contains(path)));
        paths.sort_unstable();
        for path in paths {
            push_difference(path, before.get(path), tree.get(path), events);
        }
    }
}

pub(super) fn push_difference(
    path: &str,
    before: Option<ZnodeRef<'_>>,
    after: Option<ZnodeRef<'_>>,
    events: &mut Vec<Event>,
) {
    let Some(acl) = after.or(before).map(|znode| znode.acl) else { return };
    let mut push = |kind| events.push(Event::new(kind, path, acl));
    match (before, after) {
        (Some(old), Some(new)) => {
            let same_life = old.times.czxid == new.times.czxid;
            if !same_life {
                push(EventType::NodeDeleted);
                push(EventType::NodeCreated);
            } else if old.times.mzxid != new.times.mzxid {
                push(EventType::NodeDataChanged);
            }
            if old.times.pzxid != new.times.pzxid {
                push(EventType::NodeChildrenChanged);
            }
        }
        (Some(_), None) => push(EventType::NodeDeleted),
        (None, Some(_)) => push(EventType::NodeCreated),
        (None, None) => {}
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum RegionRecord<'a> {
    Header {
        region: u8,
        mesh: Mesh,
        zxid: i64,
        term: u64,
        time_ms: i64,
        cursors: Vec<(u8, u32, u64)>,
        /// Without its large parts, which follow as records of their own.
        federation: Box<Federation>,
    },
    Sessions(Vec<(i64, Session)>),
    #[serde(borrow)]
    Znodes(Vec<ZnodeRecord<'a>>),
    GlobalLog(Vec<GlobalEntry>),
    Outbox {
        orderer: Orderer,
        last: u64,
        requests: Vec<(u64, Pending)>,
    },
    Mirror {
        subtree: SubtreeId,
        first: u64,
        records: Vec<Bytes>,
    },
    StagedPiece {
        orderer: Orderer,
        transfer: u64,
        piece: Bytes,
    },
    End {
        sessions: u64,
        znodes: u64,
        digests: Vec<(SubtreeId, u128)>,
    },
    Ensemble(Ensemble),
    /// Missing in snapshots of earlier builds.
    Policy(Policy),
    /// Part of a restore that is under way.
    Restoring {
        transfer: u64,
        znodes: Vec<ImportedZnode>,
    },
}

/// Writes a region's whole state.
///
/// # Errors
/// If the writer fails.
pub fn write_region(state: &State, out: &mut impl Write) -> Result<(), SnapshotError> {
    if mutant::is(Mutant::SnapshotIncomplete) {
        return write_whole_region(&without_the_newest_znode(state), out);
    }
    write_whole_region(state, out)
}

/// For [`Mutant::SnapshotIncomplete`].
fn without_the_newest_znode(state: &State) -> State {
    let mut state = state.clone();
    let leaves = state.tree.iter().filter(|(_, znode)| znode.children == 0);
    let newest = leaves.max_by_key(|(path, znode)| (znode.times.czxid, path.to_string()));
    if let Some(path) = newest.map(|(path, _)| path.to_string()) {
        state.tree.delete(&path, 0);
    }
    state
}

fn write_whole_region(state: &State, out: &mut impl Write) -> Result<(), SnapshotError> {
    let federation = &state.federation;
    let mut small = federation.clone();
    small.global.log = imbl::OrdMap::new();
    small.outboxes = imbl::OrdMap::new();
    small.mirrors = imbl::OrdMap::new();
    small.staging = None;
    put(
        out,
        &RegionRecord::Header {
            region: state.region,
            mesh: Mesh::clone(&state.mesh),
            zxid: state.zxid,
            term: state.term,
            time_ms: state.time_ms,
            cursors: state.cursors.iter().map(|(server, (boot, last))| (*server, *boot, *last)).collect(),
            federation: Box::new(small),
        },
    )?;
    put(out, &RegionRecord::Policy(state.policy))?;
    let transfer = state.restoring.transfer;
    // A restore that has just begun has no znodes yet, and goes on all the same.
    if transfer != 0 {
        put(out, &RegionRecord::Restoring { transfer, znodes: Vec::new() })?;
    }
    for znodes in batches(state.restoring.znodes.values().cloned(), ImportedZnode::weight) {
        put(out, &RegionRecord::Restoring { transfer, znodes })?;
    }
    for batch in batches(state.sessions.iter().map(|(id, s)| (*id, s.clone())), |_| 64) {
        put(out, &RegionRecord::Sessions(batch))?;
    }
    for batch in batches(state.tree.iter().map(ZnodeRecord::new), ZnodeRecord::weight) {
        put(out, &RegionRecord::Znodes(batch))?;
    }
    write_federation(federation, out)?;
    put(out, &RegionRecord::Ensemble(state.ensemble.clone()))?;
    let subtrees = std::iter::once(0).chain(state.mesh.subtrees().map(|(id, _)| id));
    put(
        out,
        &RegionRecord::End {
            sessions: state.sessions.len() as u64,
            znodes: state.tree.len() as u64,
            digests: subtrees.map(|id| (id, state.tree.digest(id))).collect(),
        },
    )
}

fn write_federation(federation: &Federation, out: &mut impl Write) -> Result<(), SnapshotError> {
    let entry_weight = |entry: &GlobalEntry| match &entry.payload {
        meridian_bridge::state::GlobalPayload::Command(bytes) => bytes.len() + 32,
        _ => 1_024,
    };
    for batch in batches(federation.global.log.values().cloned(), entry_weight) {
        put(out, &RegionRecord::GlobalLog(batch))?;
    }
    for (orderer, outbox) in &federation.outboxes {
        // An empty outbox still counts: its numbers never start again.
        put(out, &RegionRecord::Outbox { orderer: *orderer, last: outbox.last, requests: Vec::new() })?;
        let requests = outbox.requests.iter().map(|(n, p)| (*n, p.clone()));
        for requests in batches(requests, |(_, p)| p.request.len() + 32) {
            put(out, &RegionRecord::Outbox { orderer: *orderer, last: outbox.last, requests })?;
        }
    }
    for (subtree, mirror) in &federation.mirrors {
        let mut first = mirror.first;
        for records in batches(mirror.records.iter().cloned(), |r| r.len() + 8) {
            let count = records.len() as u64;
            put(out, &RegionRecord::Mirror { subtree: *subtree, first, records })?;
            first += count;
        }
    }
    if let Some(Staging { orderer, transfer, pieces }) = &federation.staging {
        for piece in pieces {
            let record =
                RegionRecord::StagedPiece { orderer: *orderer, transfer: *transfer, piece: piece.clone() };
            put(out, &record)?;
        }
    }
    Ok(())
}

fn put(out: &mut impl Write, record: &RegionRecord<'_>) -> Result<(), SnapshotError> {
    let bytes = codec::encode(record)?;
    let length =
        u32::try_from(bytes.len()).map_err(|_| SnapshotError::Incomplete("a record is too large"))?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&bytes)?;
    Ok(())
}

/// Reads and verifies what [`write_region`] wrote.
///
/// # Errors
/// If any of it is missing or differs.
pub fn read_region(input: &mut impl Read) -> Result<State, SnapshotError> {
    let header = take(input)?;
    let RegionRecord::Header { region, mesh, zxid, term, time_ms, cursors, federation } =
        codec::decode(&header)?
    else {
        return Err(SnapshotError::Incomplete("no header"));
    };
    let mut state = State::new(region);
    let mut planting = Planting::default();
    state.mesh = Arc::new(mesh);
    (state.zxid, state.term, state.time_ms) = (zxid, term, time_ms);
    state.cursors = cursors.into_iter().map(|(server, boot, last)| (server, (boot, last))).collect();
    state.federation = *federation;
    loop {
        let record = take(input)?;
        match codec::decode(&record)? {
            RegionRecord::Header { .. } => return Err(SnapshotError::Incomplete("a second header")),
            RegionRecord::Ensemble(ensemble) => state.ensemble = ensemble,
            RegionRecord::Policy(policy) => state.policy = policy,
            RegionRecord::Restoring { transfer, znodes } => {
                state.restoring.transfer = transfer;
                state.restoring.znodes.extend(znodes.into_iter().map(|z| (Arc::from(&*z.path), z)));
            }
            RegionRecord::Sessions(batch) => state.sessions.extend(batch),
            RegionRecord::Znodes(batch) => plant(&mut planting, &batch),
            RegionRecord::End { sessions, znodes, digests } => {
                state.tree = planting.finish().ok_or(REPEATED)?;
                let whole = state.sessions.len() as u64 == sessions
                    && state.tree.len() as u64 == znodes
                    && digests.iter().all(|(subtree, digest)| state.tree.digest(*subtree) == *digest);
                state.tree.recount_quotas();
                return if whole {
                    Ok(state)
                } else {
                    Err(SnapshotError::Incomplete("counts or digests differ"))
                };
            }
            other => read_federation(&mut state.federation, other),
        }
    }
}

fn read_federation(federation: &mut Federation, record: RegionRecord<'_>) {
    match record {
        RegionRecord::GlobalLog(entries) => {
            federation.global.log.extend(entries.into_iter().map(|e| (e.id.index, e)));
        }
        RegionRecord::Outbox { orderer, last, requests } => {
            let outbox: &mut Outbox = federation.outboxes.entry(orderer).or_default();
            outbox.last = last;
            outbox.bytes += requests.iter().map(|(_, p)| p.request.len()).sum::<usize>();
            outbox.requests.extend(requests);
        }
        RegionRecord::Mirror { subtree, first, records } => {
            let mirror = federation.mirrors.entry(subtree).or_default();
            if mirror.records.is_empty() {
                mirror.first = first;
            }
            mirror.bytes += records.iter().map(Bytes::len).sum::<usize>();
            mirror.records.extend(records);
        }
        RegionRecord::StagedPiece { orderer, transfer, piece } => {
            let staging = federation.staging.get_or_insert(Staging { orderer, transfer, pieces: Vec::new() });
            staging.pieces.push(piece);
        }
        RegionRecord::Header { .. }
        | RegionRecord::Ensemble(_)
        | RegionRecord::Sessions(_)
        | RegionRecord::Znodes(_)
        | RegionRecord::Policy(_)
        | RegionRecord::Restoring { .. }
        | RegionRecord::End { .. } => {}
    }
}

/// The bytes of the next record.
fn take(input: &mut impl Read) -> Result<Vec<u8>, SnapshotError> {
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > codec::RECORD_BYTES_MAX {
        return Err(SnapshotError::Incomplete("a record is too large"));
    }
    let mut bytes = Vec::new();
    input.by_ref().take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() != length {
        return Err(SnapshotError::Incomplete("it ends in the middle of a record"));
    }
    Ok(bytes)
}
