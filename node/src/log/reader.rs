//! Entries read back from the segments while the writer goes on.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use meridian_seam::disk::{Disk, DiskFile};
use parking_lot::Mutex;

use super::record::{Header, Record};
use super::{LogError, segment};

/// Reads the entries of a log that is open. Clones share it; it keeps no log open.
#[derive(Clone)]
pub struct LogReader {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    locations: Arc<Mutex<Locations>>,
}

impl LogReader {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: PathBuf, locations: Arc<Mutex<Locations>>) -> Self {
        Self { disk, dir, locations }
    }

    /// The entries with these indices, which must have been written; `None` if some of them have been purged or
    /// truncated by now. One read for each. Blocks.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] if the disk does not return what was written, [`LogError::Io`].
    pub fn read(&self, indices: RangeInclusive<u64>) -> Result<Option<Vec<(u64, Bytes)>>, LogError> {
        let Some(locations) = self.locations.lock().get(indices.clone()) else { return Ok(None) };
        let mut open: Option<(u64, Box<dyn DiskFile>)> = None;
        let mut entries = Vec::with_capacity(locations.len());
        for (index, location) in indices.clone().zip(locations) {
            match self.entry(index, location, &mut open) {
                Ok(payload) => entries.push((index, payload)),
                // Its segment may have been removed since.
                Err(_) if self.locations.lock().get(indices.clone()).is_none() => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(entries))
    }

    fn entry(
        &self,
        index: u64,
        location: Location,
        open: &mut Option<(u64, Box<dyn DiskFile>)>,
    ) -> Result<Bytes, LogError> {
        let Location { sequence, offset, len_bytes } = location;
        let path = segment::path(&self.dir, sequence);
        let file = match open.take() {
            Some((opened, file)) if opened == sequence => file,
            _ => self.disk.open(&path).map_err(|error| LogError::io("open", &path, error))?,
        };
        let mut bytes = vec![0; len_bytes];
        let read = file.read_at(&mut bytes, offset).map_err(|error| LogError::io("read", &path, error))?;
        bytes.truncate(read);
        *open = Some((sequence, file));
        let bytes = Bytes::from(bytes);
        let record = Header::decode(&bytes, sequence, offset).and_then(|header| header.record(&bytes));
        match record {
            Some((Record::Entry { index: found, payload }, _)) if found == index => Ok(payload),
            _ => Err(LogError::corrupt(&path, offset, format!("entry {index} is unreadable"))),
        }
    }
}

/// Where the entries of a log stand.
#[derive(Debug, Default)]
pub(super) struct Locations {
    /// The index of the first of them.
    first: u64,
    locations: VecDeque<Location>,
}

/// A record's segment and place in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Location {
    pub(super) sequence: u64,
    pub(super) offset: u64,
    pub(super) len_bytes: usize,
}

impl Locations {
    /// Follows a record of the log, which stands at `location`.
    pub(super) fn apply(&mut self, record: &Record, location: Location) {
        match record {
            Record::Entry { index, .. } => {
                if self.locations.is_empty() {
                    self.first = *index;
                }
                self.locations.push_back(location);
            }
            Record::TruncateFrom { index } => self.locations.truncate(self.before(*index)),
            Record::Purged { index, .. } => {
                let purged = self.before(index.saturating_add(1));
                self.locations.drain(..purged);
                self.first += purged as u64;
            }
            Record::Vote(_) | Record::Committed(_) | Record::Closed => {}
        }
    }

    /// How many entries there are before this index.
    fn before(&self, index: u64) -> usize {
        let before = usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX);
        before.min(self.locations.len())
    }

    /// All of these, or `None`.
    fn get(&self, indices: RangeInclusive<u64>) -> Option<Vec<Location>> {
        let (first, last) = (*indices.start(), *indices.end());
        if first < self.first {
            return None;
        }
        let wanted = self.before(first)..self.before(last.saturating_add(1));
        let all = last.checked_sub(first).is_some_and(|more| wanted.len() as u64 == more + 1);
        all.then(|| self.locations.range(wanted).copied().collect())
    }
}
