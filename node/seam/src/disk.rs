//! The disk as the log and the snapshots see it: files written at offsets, made durable by an explicit sync, in
//! directories that need a sync of their own.
//!
//! A new or renamed file is durable when both its data ([`DiskFile::sync_data`]) and its directory
//! ([`Disk::sync_dir`]) have been synced. Until then a crash may lose it, keep it, or keep parts of it.

mod real;
pub mod testing;
#[cfg(test)]
mod tests;

pub use real::RealDisk;

use std::any::Any;
use std::io;
use std::path::Path;

/// A file system: what the storage layer needs of it and no more. All calls block.
///
/// Errors are those of [`std::io`]: in particular a full disk is [`io::ErrorKind::StorageFull`].
pub trait Disk: Send + Sync + 'static {
    /// Creates the directory and its missing parents, durably. An existing directory is not an error.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Creates an empty file for reading and writing; an existing one is an error
    /// ([`io::ErrorKind::AlreadyExists`]).
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// The names of the files in `dir`, sorted. Directories and names that are not UTF-8 are left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Renames a file within its directory, replacing a file that has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes the creations, removals and renames in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that may still be allocated on the file system that holds `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// Takes the advisory lock `path` (created if missing) for as long as the returned guard lives. When another
    /// holder has it, fails at once with [`io::ErrorKind::WouldBlock`].
    fn lock(&self, path: &Path) -> io::Result<DiskLock>;
}

/// Holds an advisory lock; dropping it (or the end of the process) releases it.
pub type DiskLock = Box<dyn Any + Send + Sync>;

/// An open file. All calls block and may be made from several threads.
#[allow(clippy::len_without_is_empty, reason = "emptiness of a file is asked by nobody")]
pub trait DiskFile: Send + Sync {
    /// Writes all of `bytes` at `offset`, extending the file where needed. Not durable before [`Self::sync_data`];
    /// after an error any part of it may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Reads at `offset` until `buffer` is full or the file ends; returns the number of bytes read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Makes everything written so far, and the length of the file, durable. After an error nothing is known of
    /// what was written since the last success, and calling again does not help: the kernel may have dropped it.
    fn sync_data(&self) -> io::Result<()>;

    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Extends the file to `len_bytes` with zeros that occupy their space, so that writes into it need no more. A
    /// longer file is left as it is. Durable after [`Self::sync_data`].
    fn allocate(&self, len_bytes: u64) -> io::Result<()>;
}
