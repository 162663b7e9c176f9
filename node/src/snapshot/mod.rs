//! Snapshot files: a state machine's state up to an index, checked whenever it is read.
//!
//! # Files
//! A snapshot lies in one file named by its index and term. It is written under a temporary name and gets its own
//! when all of it is durable, so a file with a snapshot's name is complete, and what differs from what was written
//! is damage. Little endian:
//! ```text
//! header  8 bytes  magic
//!         u32      format version
//!         u32      length of the meta data
//!         u64      index
//!         u64      term
//!                  meta data
//!         u32      checksum of all this (CRC-32C)
//! chunk   u32      length of the data, not 0
//!         u32      checksum of the chunk's number (u64), length and data (CRC-32C)
//!                  data
//! footer  u32      0
//!         u32      checksum of the number of chunks (u64), length and digest (CRC-32C)
//!         u64      length of the body, that is of the data of all chunks
//!         u128     digest of the body (XXH3)
//! ```
//! The same bytes are sent to other servers ([`RawSnapshot`], [`SnapshotReceiver`]).

mod format;
mod read;
mod receive;
#[cfg(test)]
mod tests;
mod write;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use meridian_seam::disk::Disk;

pub use format::META_BYTES_MAX;
pub use read::{RawSnapshot, SnapshotReader};
pub use receive::SnapshotReceiver;
pub use write::{SnapshotWriter, Throttle};

/// The snapshots of a server, in a directory of their own. To be opened once at a time: the lock of the log in the
/// same data directory sees to that.
#[derive(Clone)]
pub struct SnapshotStore {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Transfers begun, to name their temporary files.
    transfers: Arc<AtomicU64>,
}

/// What a snapshot file's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotId {
    /// The last log index the snapshot covers.
    pub index: u64,
    /// The term of the entry at that index.
    pub term: u64,
}

/// Why a snapshot could not be written, read or taken over.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file is not as it was written.
    #[error(
        "snapshot {} is damaged at byte {offset}: {reason}. If an older snapshot and the log together cover the same \
         writes, it can be removed; otherwise restore this server from the other members of its ensemble",
        file.display()
    )]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong there.
        reason: &'static str,
    },

    /// A snapshot of a format that this version does not know.
    #[error("snapshot {} has format {version}; this server reads format {supported}", file.display())]
    Version {
        /// The snapshot's file.
        file: PathBuf,
        /// Its format.
        version: u32,
        /// The format of this version.
        supported: u32,
    },

    /// There is no snapshot of this index.
    #[error("there is no snapshot of index {index}")]
    Missing {
        /// The index asked for.
        index: u64,
    },

    /// The meta data or a received snapshot is longer than its bound.
    #[error("{what} of {bytes} bytes is longer than the {max} bytes allowed")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length, or as much as is known of it.
        bytes: u64,
        /// The bound.
        max: u64,
    },

    /// The disk reported an error.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
}

impl SnapshotStore {
    /// Opens the store in `dir`, creating it if missing, and removes what unfinished writers left.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<SnapshotStore, SnapshotError> {
        disk.create_dir_all(dir).map_err(|error| SnapshotError::io("create", dir, error))?;
        let store = SnapshotStore { disk, dir: dir.to_path_buf(), transfers: Arc::default() };
        for name in store.names()? {
            if name.ends_with(TEMPORARY_SUFFIX) {
                store.remove(&dir.join(name))?;
            }
        }
        Ok(store)
    }

    /// Starts a snapshot. `meta` is opaque and at most [`META_BYTES_MAX`] long. Nothing of it is to be seen until
    /// [`SnapshotWriter::finish`].
    pub fn create(&self, index: u64, term: u64, meta: Bytes) -> Result<SnapshotWriter, SnapshotError> {
        SnapshotWriter::create(self, SnapshotId { index, term }, &meta)
    }

    /// The snapshots there are, newest first, unverified.
    pub fn candidates(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        let mut found: Vec<SnapshotId> =
            self.names()?.iter().filter_map(|name| SnapshotId::parse(name)).collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        Ok(found)
    }

    /// Opens the snapshot of this index. What is read from it counts once [`SnapshotReader::check_rest`] has said so.
    pub fn read(&self, index: u64) -> Result<SnapshotReader, SnapshotError> {
        let path = self.file_of(index)?;
        let reader = SnapshotReader::open(&*self.disk, &path)?;
        if SnapshotId::parse_path(&path) != Some(reader.id()) {
            return Err(SnapshotError::corrupt(&path, 0, "it is another snapshot under this name"));
        }
        Ok(reader)
    }

    /// Opens the snapshot of this index as bytes to send to another server, whose [`SnapshotReceiver`] checks them.
    pub fn open_raw(&self, index: u64) -> Result<RawSnapshot, SnapshotError> {
        RawSnapshot::open(&*self.disk, &self.file_of(index)?)
    }

    /// Starts to take over the snapshot that another server announced as `id`, of at most `bytes_max` bytes.
    pub fn receive(&self, id: SnapshotId, bytes_max: u64) -> Result<SnapshotReceiver, SnapshotError> {
        SnapshotReceiver::create(self, id, bytes_max)
    }

    /// Removes all but the `count` newest snapshots, and never the newest. Returns how many were removed. Readers
    /// that are open go on.
    pub fn retain(&self, count: usize) -> Result<usize, SnapshotError> {
        let old: Vec<SnapshotId> = self.candidates()?.into_iter().skip(count.max(1)).collect();
        for id in &old {
            self.remove(&self.path_of(*id))?;
        }
        Ok(old.len())
    }

    /// Where a snapshot lies if there is one.
    pub fn path_of(&self, id: SnapshotId) -> PathBuf {
        self.dir.join(id.file_name())
    }

    fn names(&self) -> Result<Vec<String>, SnapshotError> {
        self.disk.list(&self.dir).map_err(|error| SnapshotError::io("list", &self.dir, error))
    }

    fn remove(&self, path: &Path) -> Result<(), SnapshotError> {
        self.disk.remove(path).map_err(|error| SnapshotError::io("remove", path, error))
    }

    fn file_of(&self, index: u64) -> Result<PathBuf, SnapshotError> {
        let found = self.candidates()?.into_iter().find(|id| id.index == index);
        found.map(|id| self.path_of(id)).ok_or(SnapshotError::Missing { index })
    }

    /// Gives a file that is complete and synced the name of its snapshot, durably.
    fn publish(&self, temporary: &Path, id: SnapshotId) -> Result<(), SnapshotError> {
        let path = self.path_of(id);
        self.disk
            .rename(temporary, &path)
            .and_then(|()| self.disk.sync_dir(&self.dir))
            .map_err(|error| SnapshotError::io("rename", &path, error))
    }
}

const TEMPORARY_SUFFIX: &str = ".tmp";

impl SnapshotId {
    fn file_name(&self) -> String {
        format!("{:020}-{:020}.snapshot", self.index, self.term)
    }

    fn parse(name: &str) -> Option<SnapshotId> {
        let (index, term) = name.strip_suffix(".snapshot")?.split_once('-')?;
        let id = SnapshotId { index: index.parse().ok()?, term: term.parse().ok()? };
        (id.file_name() == name).then_some(id)
    }

    fn parse_path(path: &Path) -> Option<SnapshotId> {
        Self::parse(path.file_name()?.to_str()?)
    }
}

impl SnapshotError {
    fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        SnapshotError::Io { operation, path: path.to_path_buf(), source }
    }

    fn corrupt(file: &Path, offset: u64, reason: &'static str) -> Self {
        SnapshotError::Corrupt { file: file.to_path_buf(), offset, reason }
    }
}
