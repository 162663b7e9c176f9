//! ZooKeeper's snapshot and transaction log files.
//!
//! The formats are those of `FileSnap`, `SerializeUtils`, `DataTree` and `FileTxnLog` of the 3.4 to 3.9
//! releases: jute records behind a header with the magic `ZKSN` or `ZKLG`. A snapshot was written while
//! transactions went on, so that those from its name's zxid on are applied again; each brings about the
//! same state however often it is applied.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use meridian_wire::{Input, OpCode, WireError};
use thiserror::Error;

use super::Found;
use crate::tree::{Acl, Lifetime, TTL_MS_MAX, Times, split_path};
use crate::txn::import::ImportedZnode;

const SNAPSHOT_MAGIC: i32 = i32::from_be_bytes(*b"ZKSN");
const LOG_MAGIC: i32 = i32::from_be_bytes(*b"ZKLG");
/// Follows every transaction of a log.
const END_OF_RECORD: u8 = 0x42;

/// Why files can't be read.
#[derive(Debug, Error)]
pub enum FilesError {
    /// A file or directory can't be read.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// A file is not what it should be.
    #[error("{0}: {1}")]
    Malformed(PathBuf, String),
    /// There is nothing to read.
    #[error("{0} holds neither snapshots nor logs of ZooKeeper; give the directory `version-2` of dataDir")]
    Nothing(PathBuf),
}

/// Reads the newest usable snapshot of `directory` and the logs of `log_directory` (the same, unless
/// dataLogDir was set) from there on.
///
/// # Errors
/// See [`FilesError`]. A torn end of the last log is none: nobody was told of what it holds.
pub fn read(directory: &Path, log_directory: &Path) -> Result<Found, FilesError> {
    let (directory, log_directory) = (versioned(directory), versioned(log_directory));
    let snapshots = files_of(&directory, "snapshot.")?;
    let logs = files_of(&log_directory, "log.")?;
    if snapshots.is_empty() && logs.is_empty() {
        return Err(FilesError::Nothing(directory));
    }
    let mut replay = Replay::default();
    let mut from = 0;
    for (zxid, file) in snapshots.iter().rev() {
        match replay.read_snapshot(file) {
            Ok(()) => {
                replay.zxid = *zxid;
                from = *zxid;
                break;
            }
            Err(error) => {
                replay.notes.push(format!("a snapshot is not usable, an older one is: {error}"));
                replay.znodes.clear();
            }
        }
    }
    // The last log that starts at or before the snapshot may hold the transactions after it.
    let first = logs.iter().rposition(|(zxid, _)| *zxid <= from).unwrap_or(0);
    let needed = &logs[first..];
    if from == 0 && !snapshots.is_empty() && logs.first().is_none_or(|(zxid, _)| *zxid > 1) {
        let reason =
            "none of the snapshots is usable and the logs do not reach back to the beginning".to_string();
        return Err(FilesError::Malformed(directory, reason));
    }
    for (index, (_, file)) in needed.iter().enumerate() {
        replay.read_log(file, from, index + 1 == needed.len())?;
    }
    Ok(replay.finish())
}

/// The directory itself, or `version-2` in it.
fn versioned(directory: &Path) -> PathBuf {
    let inner = directory.join("version-2");
    if inner.is_dir() { inner } else { directory.to_path_buf() }
}

/// The files that begin with `prefix`, with the zxid in their names, in its order.
fn files_of(directory: &Path, prefix: &str) -> Result<Vec<(i64, PathBuf)>, FilesError> {
    let failed = |error| FilesError::Io(directory.to_path_buf(), error);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(suffix) = name.strip_prefix(prefix) else { continue };
        if suffix.ends_with(".gz") || suffix.ends_with(".snappy") {
            let reason = "is compressed: unpack it first (gunzip), or import live from the running ensemble";
            return Err(FilesError::Malformed(path, reason.into()));
        }
        if let Ok(zxid) = i64::from_str_radix(suffix, 16) {
            found.push((zxid, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The state that files bring about.
#[derive(Default)]
struct Replay {
    znodes: BTreeMap<Box<str>, ImportedZnode>,
    zxid: i64,
    notes: Vec<String>,
}

impl Replay {
    fn read_snapshot(&mut self, file: &Path) -> Result<(), FilesError> {
        let bytes = fs::read(file).map_err(|error| FilesError::Io(file.to_path_buf(), error))?;
        let malformed = |error: String| FilesError::Malformed(file.to_path_buf(), error);
        let mut input = Input::new(&bytes);
        header(&mut input, SNAPSHOT_MAGIC).map_err(malformed)?;
        self.read_tree(&mut input).map_err(|error| malformed(error.to_string()))
    }

    /// Sessions, ACLs, znodes; what follows (digest and checksum) is not needed.
    fn read_tree(&mut self, input: &mut Input<'_>) -> Result<(), WireError> {
        for _ in 0..input.int()? {
            input.long()?;
            input.int()?;
        }
        let mut acls = BTreeMap::new();
        for _ in 0..input.int()? {
            let number = input.long()?;
            acls.insert(number, acl(input)?);
        }
        loop {
            let path = input.string()?;
            if path == "/" {
                return Ok(());
            }
            let data = input.buffer()?.map(Bytes::copy_from_slice);
            let acl = input.long()?;
            let (czxid, mzxid, ctime, mtime) = (input.long()?, input.long()?, input.long()?, input.long()?);
            let (version, cversion, aversion) = (input.int()?, input.int()?, input.int()?);
            let (owner, pzxid) = (input.long()?, input.long()?);
            let times = Times { czxid, mzxid, pzxid, ctime, mtime, version, cversion, aversion };
            // -1 stands for the open ACL.
            let acl = acls.get(&acl).cloned().unwrap_or_else(|| vec![Acl::open()]);
            let path: Box<str> = if path.is_empty() { "/".into() } else { path.into() };
            self.znodes.insert(path.clone(), ImportedZnode { path, data, acl, owner, times });
        }
    }

    fn read_log(&mut self, file: &Path, from: i64, is_last: bool) -> Result<(), FilesError> {
        let bytes = fs::read(file).map_err(|error| FilesError::Io(file.to_path_buf(), error))?;
        let malformed = |error: String| FilesError::Malformed(file.to_path_buf(), error);
        let mut input = Input::new(&bytes);
        if let Err(error) = header(&mut input, LOG_MAGIC) {
            // A server that died while it began a log leaves an empty one.
            return if bytes.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(malformed(error)) };
        }
        loop {
            match next_transaction(&mut input) {
                Ok(Some(transaction)) => {
                    self.apply_record(transaction, from).map_err(|error| malformed(error.to_string()))?;
                }
                Ok(None) => return Ok(()),
                Err(error) if is_last => {
                    self.notes
                        .push(format!("{} ends in the middle of a transaction: {error}", file.display()));
                    return Ok(());
                }
                Err(error) => return Err(malformed(error)),
            }
        }
    }

    fn apply_record(&mut self, record: &[u8], from: i64) -> Result<(), WireError> {
        let mut input = Input::new(record);
        let (session, _cxid, zxid) = (input.long()?, input.int()?, input.long()?);
        let (time, kind) = (input.long()?, input.int()?);
        if zxid <= from {
            return Ok(());
        }
        self.zxid = self.zxid.max(zxid);
        self.apply(kind, &mut input, At { session, zxid, time })
    }

    /// Applies a transaction; one whose effect is already there changes nothing.
    fn apply(&mut self, kind: i32, input: &mut Input<'_>, at: At) -> Result<(), WireError> {
        match kind {
            1 | 15 | 19 | 21 => {
                let path: Box<str> = input.string()?.into();
                let data = input.buffer()?.map(Bytes::copy_from_slice);
                let acl = acl(input)?;
                let lifetime = match kind {
                    19 => Lifetime::Container,
                    21 => Lifetime::Persistent,
                    _ if input.boolean()? => Lifetime::Ephemeral(at.session),
                    _ => Lifetime::Persistent,
                };
                let parent_cversion = input.int()?;
                let lifetime =
                    if kind == 21 { Lifetime::Ttl(input.long()?.clamp(0, TTL_MS_MAX)) } else { lifetime };
                self.create(path, data, acl, lifetime, parent_cversion, at);
            }
            2 | 20 => self.delete(input.string()?, at.zxid),
            5 | 16 => {
                let (path, data, version) = (input.string()?, input.buffer()?, input.int()?);
                if let Some(znode) = self.znodes.get_mut(path) {
                    znode.data = data.map(Bytes::copy_from_slice);
                    (znode.times.version, znode.times.mzxid, znode.times.mtime) = (version, at.zxid, at.time);
                }
            }
            7 => {
                let path = input.string()?;
                let (acl, version) = (acl(input)?, input.int()?);
                if let Some(znode) = self.znodes.get_mut(path) {
                    (znode.acl, znode.times.aversion) = (acl, version);
                }
            }
            14 => {
                for (kind, body) in input.vector(8, |input| Ok((input.int()?, input.buffer()?)))? {
                    // ZooKeeper writes none within another, and each would take its part of the stack.
                    if kind == 14 {
                        return Err(WireError::NotInMulti { operation: kind, multi: OpCode::Multi });
                    }
                    self.apply(kind, &mut Input::new(body.unwrap_or_default()), at)?;
                }
            }
            -11 => self.close_session(at),
            // Sessions opened, errors, checks: nothing in the tree.
            _ => {}
        }
        Ok(())
    }

    fn create(
        &mut self,
        path: Box<str>,
        data: Option<Bytes>,
        acl: Vec<Acl>,
        lifetime: Lifetime,
        parent_cversion: i32,
        at: At,
    ) {
        if let Some((parent, _)) = split_path(&path)
            && let Some(parent) = self.znodes.get_mut(parent)
            && parent_cversion > parent.times.cversion
        {
            (parent.times.cversion, parent.times.pzxid) = (parent_cversion, at.zxid);
        }
        if self.znodes.contains_key(&path) {
            return;
        }
        let times = Times {
            czxid: at.zxid,
            mzxid: at.zxid,
            pzxid: at.zxid,
            ctime: at.time,
            mtime: at.time,
            ..Times::default()
        };
        let owner = lifetime.to_owner();
        self.znodes.insert(path.clone(), ImportedZnode { path, data, acl, owner, times });
    }

    fn delete(&mut self, path: &str, zxid: i64) {
        if self.znodes.remove(path).is_some()
            && let Some((parent, _)) = split_path(path)
            && let Some(parent) = self.znodes.get_mut(parent)
        {
            parent.times.pzxid = parent.times.pzxid.max(zxid);
        }
    }

    fn close_session(&mut self, at: At) {
        let owner = Lifetime::Ephemeral(at.session).to_owner();
        let ephemerals: Vec<Box<str>> =
            self.znodes.values().filter(|z| z.owner == owner).map(|z| z.path.clone()).collect();
        ephemerals.iter().for_each(|path| self.delete(path, at.zxid));
    }

    fn finish(self) -> Found {
        let mut found = Found { znodes: self.znodes, zxid: self.zxid, ephemerals: 0, notes: self.notes };
        found.keep_what_lasts();
        found
    }
}

/// Where a transaction stands in the order.
#[derive(Clone, Copy)]
struct At {
    session: i64,
    zxid: i64,
    time: i64,
}

fn header(input: &mut Input<'_>, magic: i32) -> Result<(), String> {
    let found = (input.int(), input.int(), input.long());
    match found {
        (Ok(found), Ok(2), Ok(_)) if found == magic => Ok(()),
        (Ok(found), Ok(version), Ok(_)) if found == magic => Err(format!("is of version {version}, not 2")),
        _ => Err("does not begin as a file of ZooKeeper's".into()),
    }
}

/// The bytes of the next transaction, checked; `None` at the end, which may be filled with zeros.
fn next_transaction<'a>(input: &mut Input<'a>) -> Result<Option<&'a [u8]>, String> {
    if input.rest().is_empty() {
        return Ok(None);
    }
    let checksum = input.long().map_err(|error| error.to_string())?;
    let record = input.buffer().map_err(|error| error.to_string())?.unwrap_or_default();
    if record.is_empty() {
        return Ok(None);
    }
    let end = input.byte().map_err(|error| error.to_string())?;
    if i64::from(adler2::adler32_slice(record)) != checksum || end != END_OF_RECORD {
        return Err("a transaction's checksum is wrong".into());
    }
    Ok(Some(record))
}

fn acl(input: &mut Input<'_>) -> Result<Vec<Acl>, WireError> {
    input.vector(12, |input| {
        Ok(Acl { perms: input.int()?, scheme: input.string()?.into(), id: input.string()?.into() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files that a ZooKeeper 3.8.0 wrote, cut after their last transaction.
    fn golden() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/import/testdata")
    }

    #[test]
    fn what_zookeeper_wrote_is_read_as_its_clients_saw_it() {
        let found = read(&golden(), &golden()).unwrap();
        let znode = |path: &str| found.znodes.get(path).unwrap();
        assert_eq!(found.notes, [""; 0]);
        let multi = znode("/multi");
        assert_eq!((multi.data.as_deref(), multi.times.version), (Some(&b"2"[..]), 1));
        assert_eq!((multi.times.czxid, multi.times.mzxid, multi.times.ctime), (321, 321, 1_795_166_968_938));
        // Five sequential children were created, one was deleted.
        assert_eq!(znode("/seq").times.cversion, 5);
        assert!(!found.znodes.contains_key("/seq/n-0000000002"));
        let children = found.znodes.keys().filter(|path| path.starts_with("/app/config/")).count();
        assert_eq!(children, 160);
        assert_eq!(znode("/app/config/k003").data.as_deref(), Some(&b"w3"[..]));
        assert_eq!((&*znode("/secret").acl[0].scheme, &*znode("/null").acl[0].id), ("digest", "127.0.0.1"));
        assert!(!found.znodes.contains_key("/eph"), "its session has ended");
        assert!(!found.znodes.keys().any(|path| path.starts_with("/zookeeper")));
    }

    #[test]
    fn parents_come_before_their_children() {
        let found = read(&golden(), &golden()).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for path in found.znodes.keys() {
            assert!(split_path(path).is_none_or(|(parent, _)| seen.contains(parent)), "{path}");
            seen.insert(&**path);
        }
    }

    #[test]
    fn damaged_files_are_errors_and_a_torn_end_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let copy = |name: &str| {
            let bytes = fs::read(golden().join("version-2").join(name)).unwrap();
            fs::write(dir.path().join(name), &bytes).unwrap();
            bytes
        };
        let snapshot = copy("snapshot.fc");
        let log = copy("log.fe");
        for end in (0..log.len()).step_by(7) {
            fs::write(dir.path().join("log.fe"), &log[..end]).unwrap();
            // Torn within the header it is no log; after it, what is whole counts.
            assert_eq!(read(dir.path(), dir.path()).is_ok(), end == 0 || end >= 16, "cut at {end}");
        }
        for end in (0..snapshot.len() - 60).step_by(97) {
            fs::write(dir.path().join("snapshot.fc"), &snapshot[..end]).unwrap();
            assert!(read(dir.path(), dir.path()).is_err(), "cut at {end}");
        }
        let nothing = tempfile::tempdir().unwrap();
        let error = read(nothing.path(), nothing.path()).unwrap_err().to_string();
        assert!(error.contains("version-2"), "{error}");
    }

    #[test]
    fn a_transaction_within_itself_is_an_error() {
        let mut record = vec![0; 32];
        (record[19], record[31]) = (1, 14);
        let multi = |body: &[u8]| {
            let length = i32::try_from(body.len()).unwrap().to_be_bytes();
            [&1i32.to_be_bytes()[..], &14i32.to_be_bytes(), &length, body].concat()
        };
        record.extend(multi(&multi(&[0; 4])));
        let mut log = [&b"ZKLG\0\0\0\x02"[..], &[0; 8]].concat();
        log.extend(i64::from(adler2::adler32_slice(&record)).to_be_bytes());
        log.extend(i32::try_from(record.len()).unwrap().to_be_bytes());
        log.extend(&record);
        log.push(END_OF_RECORD);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("log.1"), log).unwrap();
        let error = read(dir.path(), dir.path()).unwrap_err().to_string();
        assert!(error.contains("log.1"), "{error}");
    }
}
