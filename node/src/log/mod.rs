//! The durable half of a consensus log: a segmented write-ahead log that is written, synced and recovered here, while
//! the newest entries are kept in memory elsewhere.
//!
//! [`Log`] is the synchronous core; [`LogHandle`] puts it behind a queue with group commit; a [`LogReader`] reads older
//! entries back.
//!
//! # Files
//! A log is a directory of segments, `0000000000000001.log` and so on without gaps. A segment is allocated with
//! zeros, so that writing to it changes no file system metadata. It starts with a header and with the vote, the
//! committed position and the purged position of that moment, so that older segments can be removed once all their
//! entries are purged. Then come records: a header with its own checksum, which covers the payload's checksum and
//! is mixed with the segment's number and the record's offset, so that no stale or misplaced bytes pass.
//!
//! # What recovery can tell apart
//! Each record says up to where the segment had been synced when it was written, and each segment where its
//! predecessor ended. An unreadable record that nothing vouches for is the torn tail of a write that was never
//! acknowledged, whatever else of that write reached the disk; it is cut. An unreadable record that was synced
//! according to a later one is damage, and opening fails with [`LogError::Corrupt`] rather than forget it. Damage
//! to the very last write before a crash can't be told from a torn tail; [`Log::close`] adds a record that vouches
//! for it.

mod error;
mod handle;
mod reader;
mod record;
mod recovery;
mod segment;
mod span;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use meridian_seam::disk::{Disk, DiskFile, DiskLock};
use meridian_seam::mutant::{self, Mutant};
use parking_lot::Mutex;

use crate::summary::Summary;

pub use error::LogError;
pub use handle::{Done, LogHandle, Rejected, RejectedReason};
pub use reader::LogReader;
pub use record::{PAYLOAD_BYTES_MAX, Record};
pub use recovery::Recovered;

use reader::{Location, Locations};
use record::Place;
use segment::SegmentHeader;
use span::Span;

/// How a log lays out its files and bounds its queue.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// Size of a segment. A group of records that is longer gets a segment of its own length. Default 64 MiB: at a
    /// few MB/s a new file every ten seconds or more, and recovery reads a segment at a time. At most 1 GiB.
    pub segment_bytes: u64,
    /// Free space below which [`Log::has_room`] turns false, so that writes are refused while the log itself can
    /// still go on. Default 256 MiB: the next segments and the end of a snapshot under way.
    pub reserve_bytes: u64,
    /// Records that may wait in a [`LogHandle`]. Default 65,536.
    pub queue_records: usize,
    /// Bytes of records that may wait in a [`LogHandle`], and so the longest group but for a single larger
    /// submission. Default 16 MiB: what a slow disk writes in a fraction of a second.
    pub queue_bytes: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            reserve_bytes: 256 << 20,
            queue_records: 65_536,
            queue_bytes: 16 << 20,
        }
    }
}

/// The most bytes written at once, and the longest segment configured. Far beyond a queue's bound, and it keeps
/// every segment below [`segment::FILE_BYTES_MAX`].
const GROUP_BYTES_MAX: u64 = 1 << 30;

/// A segmented write-ahead log. Opening it locks its directory until it is dropped.
///
/// The first failed write or sync is final: every later call returns the same error, because nobody knows what the
/// disk still holds, and a sync that is tried again may succeed without having saved anything. Errors that are not
/// final ([`LogError::is_final`]) have written nothing.
pub struct Log {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: LogOptions,
    active: Active,
    sealed: VecDeque<Sealed>,
    spare: Spare,
    span: Span,
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    purged: Option<(u64, Bytes)>,
    locations: Arc<Mutex<Locations>>,
    failure: Option<Arc<LogError>>,
    status: Arc<Status>,
    buffer: Vec<u8>,
    _lock: DiskLock,
}

/// The segment that is being written.
struct Active {
    sequence: u64,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    /// Bytes allocated.
    len: u64,
    /// Where the next record goes.
    end: u64,
    /// Everything before has been synced.
    durable: u64,
    /// The highest index of an entry ever written to it.
    last_index: Option<u64>,
}

/// A complete segment, kept until its entries are purged.
struct Sealed {
    sequence: u64,
    last_index: Option<u64>,
}

/// The segment after the active one.
enum Spare {
    /// Allocated when it is needed.
    OnDemand,
    /// Will be allocated ahead of need, in a thread.
    Ahead,
    /// Is being allocated, or ready.
    Under(JoinHandle<io::Result<Box<dyn DiskFile>>>),
}

/// What observers of a log see while its writer works.
#[derive(Debug, Default)]
pub(crate) struct Status {
    full: AtomicBool,
    metrics: LogMetrics,
}

/// Counters of a log since it was opened.
#[derive(Debug, Default)]
pub struct LogMetrics {
    /// Syncs of segment data.
    pub syncs: AtomicU64,
    /// Time that each group took from the start of the write to the end of the sync, in microseconds.
    pub sync_us: Summary,
    /// Records of each group.
    pub group_records: Summary,
    /// Bytes written to segments, headers included.
    pub written_bytes: AtomicU64,
    /// Records written.
    pub records: AtomicU64,
    /// Segments started.
    pub segments_created: AtomicU64,
    /// Segments removed because all their entries were purged.
    pub segments_removed: AtomicU64,
}

impl LogMetrics {
    /// Starts the summaries anew; what the log has done in all stays.
    pub fn reset(&self) {
        self.sync_us.reset();
        self.group_records.reset();
    }
}

impl Log {
    /// Opens the log in `dir`, creating both where missing, and returns what it holds.
    ///
    /// # Errors
    /// [`LogError::Locked`] when another process has it open, [`LogError::Corrupt`] and [`LogError::Version`] when
    /// its files can't be trusted or read, [`LogError::Full`] and [`LogError::Io`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: LogOptions) -> Result<(Log, Recovered), LogError> {
        recovery::open(disk, dir, options)
    }

    /// Appends the records, in order, with one write; they are durable after [`Log::sync`].
    ///
    /// # Errors
    /// Not final, nothing written: [`LogError::OutOfOrder`], [`LogError::TooLong`], [`LogError::Full`] (no room
    /// for a new segment). Any other error is final.
    pub fn write(&mut self, records: &[Record]) -> Result<(), Arc<LogError>> {
        self.check()?;
        if records.is_empty() {
            return Ok(());
        }
        let mut span = self.span;
        let mut batch_bytes = 0;
        for record in records {
            record.check_len().map_err(Arc::new)?;
            span.apply(record).map_err(Arc::new)?;
            batch_bytes += record.encoded_len_bytes();
        }
        if batch_bytes > GROUP_BYTES_MAX {
            let (bytes, max) = (batch_bytes as usize, GROUP_BYTES_MAX as usize);
            return Err(Arc::new(LogError::TooLong { bytes, max }));
        }
        self.buffer.clear();
        if self.active.end + batch_bytes > self.active.len {
            self.rotate(batch_bytes)?;
        }
        self.append(records)?;
        self.span = span;
        self.remember(records);
        self.allocate_ahead();
        Ok(())
    }

    /// Makes everything written durable, and removes the segments that hold nothing but purged entries.
    ///
    /// # Errors
    /// All are final.
    pub fn sync(&mut self) -> Result<(), Arc<LogError>> {
        self.check()?;
        self.sync_active()?;
        self.remove_purged();
        Ok(())
    }

    /// Syncs, and adds a record by which the next recovery can tell damage to the last write from a torn tail.
    /// Dropping a log without closing it loses nothing that was synced.
    pub fn close(mut self) -> Result<(), Arc<LogError>> {
        self.sync()?;
        match self.write(&[Record::Closed]) {
            Err(error) if error.is_final() => Err(error),
            _ => self.sync(),
        }
    }

    /// Reads entries while this log is open.
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.disk), self.dir.clone(), Arc::clone(&self.locations))
    }

    /// Whether the disk has more room than the reserve, as of the last check: at each new segment and each
    /// [`Log::check_room`].
    pub fn has_room(&self) -> bool {
        self.status.has_room()
    }

    /// Asks the file system for its free space (one system call) and returns [`Log::has_room`].
    pub fn check_room(&self) -> bool {
        match self.disk.free_bytes(&self.dir) {
            Ok(free) => self.status.full.store(free < self.options.reserve_bytes, Ordering::Relaxed),
            Err(error) => tracing::warn!(dir = %self.dir.display(), %error, "free space is unknown"),
        }
        self.has_room()
    }

    /// The error that ended this log, if one has.
    pub fn failure(&self) -> Option<&Arc<LogError>> {
        self.failure.as_ref()
    }

    /// The counters since the log was opened.
    pub fn metrics(&self) -> &LogMetrics {
        &self.status.metrics
    }

    fn check(&self) -> Result<(), Arc<LogError>> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn fail(&mut self, error: LogError) -> Arc<LogError> {
        let error = Arc::new(error);
        if error.is_final() {
            tracing::error!(%error, "the log has failed");
            self.failure = Some(Arc::clone(&error));
        }
        error
    }

    /// Writes the buffer, which may hold the start of a new segment, and the records behind it.
    fn append(&mut self, records: &[Record]) -> Result<(), Arc<LogError>> {
        let start = self.active.end;
        let mut locations = self.locations.lock();
        for record in records {
            let (sequence, before) = (self.active.sequence, self.buffer.len());
            let offset = start + before as u64;
            record.encode(self.active.place(offset), &mut self.buffer);
            locations.apply(record, Location { sequence, offset, len_bytes: self.buffer.len() - before });
        }
        drop(locations);
        if let Err(error) = self.active.file.write_at(&self.buffer, start) {
            let error = LogError::io("write", &self.active.path, error);
            return Err(self.fail(error));
        }
        self.active.end += self.buffer.len() as u64;
        let metrics = &self.status.metrics;
        metrics.written_bytes.fetch_add(self.buffer.len() as u64, Ordering::Relaxed);
        metrics.records.fetch_add(records.len() as u64, Ordering::Relaxed);
        self.buffer.shrink_to(self.options.queue_bytes);
        Ok(())
    }

    fn sync_active(&mut self) -> Result<(), Arc<LogError>> {
        if self.active.durable == self.active.end {
            return Ok(());
        }
        if let Err(error) = self.active.file.sync_data()
            && !mutant::is(Mutant::FsyncFailureIgnored)
        {
            let error = LogError::io("sync", &self.active.path, error);
            return Err(self.fail(error));
        }
        self.active.durable = self.active.end;
        self.status.metrics.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Keeps what the start of the next segment must repeat.
    fn remember(&mut self, records: &[Record]) {
        for record in records {
            match record {
                Record::Entry { index, .. } => self.active.note_entry(*index),
                Record::Vote(vote) => self.vote = Some(vote.clone()),
                Record::Committed(committed) => self.committed = Some(committed.clone()),
                Record::Purged { index, payload } => self.purged = Some((*index, payload.clone())),
                Record::TruncateFrom { .. } | Record::Closed => {}
            }
        }
    }

    /// Makes a new segment the active one, with its header and preamble in the buffer, not yet written. The old
    /// one is synced first, so that a segment that has a successor is complete.
    fn rotate(&mut self, batch_bytes: u64) -> Result<(), Arc<LogError>> {
        let sequence = self.active.sequence + 1;
        let preamble = self.preamble();
        let preamble_bytes: u64 = preamble.iter().map(Record::encoded_len_bytes).sum();
        let needed_bytes = SegmentHeader::BYTES + preamble_bytes + batch_bytes;
        let (file, len) = self.next_segment(sequence, needed_bytes).map_err(|error| self.fail(error))?;
        self.sync_active()?;

        let header = SegmentHeader {
            sequence,
            previous_end: self.active.end,
            first_index: self.span.first(),
            next_index: self.span.next(),
        };
        let path = segment::path(&self.dir, sequence);
        let next = Active { sequence, path, file, len, end: 0, durable: 0, last_index: None };
        let old = std::mem::replace(&mut self.active, next);
        self.sealed.push_back(Sealed { sequence: old.sequence, last_index: old.last_index });
        header.encode(&mut self.buffer);
        for record in &preamble {
            let place = self.active.place(self.buffer.len() as u64);
            record.encode(place, &mut self.buffer);
        }
        self.status.metrics.segments_created.fetch_add(1, Ordering::Relaxed);
        self.check_room();
        Ok(())
    }

    fn preamble(&self) -> Vec<Record> {
        let vote = self.vote.clone().map(Record::Vote);
        let committed = self.committed.clone().map(Record::Committed);
        let purged = self.purged.clone().map(|(index, payload)| Record::Purged { index, payload });
        vote.into_iter().chain(committed).chain(purged).collect()
    }

    /// The file of the next segment and its length: the one allocated ahead, or else a new one.
    fn next_segment(
        &mut self,
        sequence: u64,
        needed_bytes: u64,
    ) -> Result<(Box<dyn DiskFile>, u64), LogError> {
        let path = segment::path(&self.dir, sequence);
        let len = needed_bytes.max(self.options.segment_bytes);
        let ahead = match std::mem::replace(&mut self.spare, Spare::Ahead) {
            Spare::Under(thread) => thread.join().ok().and_then(Result::ok),
            Spare::Ahead => None,
            Spare::OnDemand => {
                self.spare = Spare::OnDemand;
                None
            }
        };
        let create = || segment::create(&*self.disk, &self.dir, sequence, len);
        let allocated = match ahead {
            Some(file) => file.allocate(len).map(|()| file),
            None => create(),
        };
        match allocated {
            Ok(file) => Ok((file, len)),
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                self.status.full.store(true, Ordering::Relaxed);
                Err(LogError::Full { dir: self.dir.clone() })
            }
            Err(error) => Err(LogError::io("allocate", &path, error)),
        }
    }

    /// From now on allocates segments before they are needed, in threads of their own.
    fn allocate_segments_ahead(&mut self) {
        if matches!(self.spare, Spare::OnDemand) {
            self.spare = Spare::Ahead;
        }
    }

    /// Has the next segment allocated beside the writing from the middle of this one. If that fails, it is tried
    /// again, and the error reported, when the segment is needed.
    fn allocate_ahead(&mut self) {
        if !matches!(self.spare, Spare::Ahead) || self.active.end < self.active.len / 2 {
            return;
        }
        let (disk, dir) = (Arc::clone(&self.disk), self.dir.clone());
        let (sequence, len) = (self.active.sequence + 1, self.options.segment_bytes);
        let thread = std::thread::Builder::new().name("log-allocate".into());
        match thread.spawn(move || segment::create(&*disk, &dir, sequence, len)) {
            Ok(thread) => self.spare = Spare::Under(thread),
            Err(error) => tracing::warn!(%error, "the next segment is not allocated ahead"),
        }
    }

    /// Removes complete segments from the oldest on while all their entries are purged. A segment that can't be
    /// removed does no harm and is tried again after a later sync.
    fn remove_purged(&mut self) {
        let Some(purged) = self.span.purged() else { return };
        while let Some(oldest) = self.sealed.front() {
            if oldest.last_index.is_some_and(|last| last > purged) {
                return;
            }
            let path = segment::path(&self.dir, oldest.sequence);
            // One at a time, so that no crash leaves a gap between the segments.
            let removed = match self.disk.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => self.disk.sync_dir(&self.dir),
            };
            if let Err(error) = removed {
                tracing::warn!(file = %path.display(), %error, "a purged segment is not removed yet");
                return;
            }
            self.sealed.pop_front();
            self.status.metrics.segments_removed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Log {
    /// Waits for a segment being allocated, which must not appear once the lock is free.
    fn drop(&mut self) {
        if let Spare::Under(thread) = std::mem::replace(&mut self.spare, Spare::OnDemand)
            && thread.join().is_err()
        {
            tracing::warn!("the allocation of the next segment panicked");
        }
    }
}

impl Active {
    fn place(&self, offset: u64) -> Place {
        Place { sequence: self.sequence, offset, durable: self.durable }
    }

    fn note_entry(&mut self, index: u64) {
        self.last_index = self.last_index.max(Some(index));
    }
}

impl Status {
    fn has_room(&self) -> bool {
        !self.full.load(Ordering::Relaxed)
    }
}
