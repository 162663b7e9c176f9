//! Opening a log: what its files hold, and whether they can be trusted.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use meridian_seam::disk::{Disk, DiskFile};
use parking_lot::Mutex;

use super::reader::{Location, Locations};
use super::record::{ALIGNMENT_BYTES, Header, Record};
use super::segment::{self, Decoded, SegmentHeader};
use super::span::Span;
use super::{Active, GROUP_BYTES_MAX, Log, LogError, LogOptions, Sealed, Spare, Status};

/// What a log held when it was opened. All of it is durable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The entries with their indices: without gaps, and beginning right behind `purged` if there is one. They keep
    /// the bytes of their segments.
    pub entries: Vec<(u64, Bytes)>,
    /// The last vote.
    pub vote: Option<Bytes>,
    /// The last committed position written: at least this much was committed.
    pub committed: Option<Bytes>,
    /// The last index purged, and the position as the caller gave it.
    pub purged: Option<(u64, Bytes)>,
    /// Bytes cut from the end: a write that was under way at a crash and that nobody was told of.
    pub torn_bytes: u64,
}

pub(super) fn open(
    disk: Arc<dyn Disk>,
    dir: &Path,
    mut options: LogOptions,
) -> Result<(Log, Recovered), LogError> {
    options.segment_bytes = options.segment_bytes.clamp(SegmentHeader::BYTES, GROUP_BYTES_MAX);
    disk.create_dir_all(dir).map_err(|error| LogError::io("create", dir, error))?;
    let lock = disk.lock(&dir.join("LOCK")).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => LogError::Locked { dir: dir.to_path_buf() },
        _ => LogError::io("lock", dir, error),
    })?;

    let mut replay = Replay::default();
    let active = match replay.segments(&*disk, dir)? {
        Some(active) => active,
        None => first_segment(&*disk, dir, &options)?,
    };
    replay.check_complete(dir)?;
    if replay.state.torn_bytes > 0 {
        let bytes = replay.state.torn_bytes;
        tracing::info!(file = %active.path.display(), bytes, "cut the torn tail of the log");
    }
    let state = replay.state;
    let log = Log {
        disk,
        dir: dir.to_path_buf(),
        options,
        active,
        sealed: replay.sealed,
        spare: Spare::OnDemand,
        span: replay.span,
        vote: state.vote.clone(),
        committed: state.committed.clone(),
        purged: state.purged.clone(),
        locations: Arc::new(Mutex::new(replay.locations)),
        failure: None,
        status: Arc::new(Status::default()),
        buffer: Vec::new(),
        _lock: lock,
    };
    log.check_room();
    Ok((log, state))
}

/// Starts an empty log.
fn first_segment(disk: &dyn Disk, dir: &Path, options: &LogOptions) -> Result<Active, LogError> {
    let (sequence, len) = (1, options.segment_bytes);
    let path = segment::path(dir, sequence);
    let header = SegmentHeader { sequence, previous_end: 0, first_index: None, next_index: None };
    let mut bytes = Vec::new();
    header.encode(&mut bytes);
    let file = segment::create(disk, dir, sequence, len).map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull => LogError::Full { dir: dir.to_path_buf() },
        _ => LogError::io("create", &path, error),
    })?;
    file.write_at(&bytes, 0).map_err(|error| LogError::io("write", &path, error))?;
    file.sync_data().map_err(|error| LogError::io("sync", &path, error))?;
    let end = bytes.len() as u64;
    Ok(Active { sequence, path, file, len, end, durable: end, last_index: None })
}

/// A segment file, read.
struct Image {
    sequence: u64,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    bytes: Bytes,
    /// The length without the zeros at the end.
    used: usize,
    header: Option<SegmentHeader>,
}

/// The state of the log after the segments read so far.
#[derive(Default)]
struct Replay {
    state: Recovered,
    /// As in `state`, while entries come and go.
    entries: VecDeque<(u64, Bytes)>,
    locations: Locations,
    span: Span,
    sealed: VecDeque<Sealed>,
}

/// Where the readable records of a segment end.
struct Extent {
    end: usize,
    /// How far the last record says that the segment had been synced.
    durable: usize,
    last_index: Option<u64>,
}

impl Replay {
    /// Replays all segments in `dir`, and makes the last one in use ready to be continued, if there is one.
    fn segments(&mut self, disk: &dyn Disk, dir: &Path) -> Result<Option<Active>, LogError> {
        let mut sequences = sequences(disk, dir)?;
        let Some(last) = last_in_use(disk, dir, &mut sequences)? else { return Ok(None) };
        let mut images = sequences.iter().map(|sequence| Image::read(disk, dir, *sequence)).chain([Ok(last)]);
        let Some(mut image) = images.next().transpose()? else { return Ok(None) };
        let oldest = image.in_use()?;
        self.span = Span::starting_at(oldest.first_index, oldest.next_index);
        for next in images {
            let next = next?;
            self.sealed(&image, next.in_use()?)?;
            image = next;
        }
        let active = self.last(image)?;
        if oldest.sequence > 1 && self.state.purged.is_none() {
            let missing = segment::path(dir, oldest.sequence - 1);
            return Err(LogError::corrupt(&missing, 0, "the segment is missing"));
        }
        Ok(Some(active))
    }

    /// Replays a segment that has a successor: all of it must be readable, up to where the successor says.
    fn sealed(&mut self, image: &Image, next: SegmentHeader) -> Result<(), LogError> {
        let extent = self.records(image)?;
        if extent.end as u64 != next.previous_end {
            let reason = format!("records are unreadable; they go on up to byte {}", next.previous_end);
            return Err(LogError::corrupt(&image.path, extent.end as u64, reason));
        }
        if (self.span.first(), self.span.next()) != (next.first_index, next.next_index) {
            let reason = "the next segment does not continue its entries";
            return Err(LogError::corrupt(&image.path, extent.end as u64, reason));
        }
        self.sealed.push_back(Sealed { sequence: image.sequence, last_index: extent.last_index });
        Ok(())
    }

    /// Replays the last segment, cuts its torn tail, and makes durable what was recovered.
    fn last(&mut self, image: Image) -> Result<Active, LogError> {
        let extent = self.records(&image)?;
        image.check_tail(extent.end)?;
        let used = image.used;
        self.state.torn_bytes = used.saturating_sub(extent.end) as u64;

        // What may not be durable yet is written again and not just synced: after a failed sync the kernel may hold
        // it as clean though it never reached the disk. Zeros replace the torn tail, so that no part of it can ever
        // follow what is written next.
        let mut tail = image.bytes[extent.durable..extent.end].to_vec();
        tail.resize(used.max(extent.end) - extent.durable, 0);
        let Image { sequence, path, file, bytes, .. } = image;
        let rewritten = file.write_at(&tail, extent.durable as u64).and_then(|()| file.sync_data());
        rewritten.map_err(|error| LogError::io("sync", &path, error))?;

        let (len, end) = (bytes.len() as u64, extent.end as u64);
        Ok(Active { sequence, path, file, len, end, durable: end, last_index: extent.last_index })
    }

    /// Replays the records of a segment up to its end or the first unreadable one.
    fn records(&mut self, image: &Image) -> Result<Extent, LogError> {
        let mut extent = Extent { end: SegmentHeader::BYTES as usize, durable: 0, last_index: None };
        loop {
            let (bytes, offset) = (image.bytes.slice(extent.end.min(image.bytes.len())..), extent.end as u64);
            let Some(header) = Header::decode(&bytes, image.sequence, offset) else { break };
            let Some((record, len_bytes)) = header.record(&bytes) else { break };
            if let Err(error) = self.span.apply(&record) {
                return Err(LogError::corrupt(&image.path, extent.end as u64, error.to_string()));
            }
            if let Record::Entry { index, .. } = record {
                extent.last_index = extent.last_index.max(Some(index));
            }
            self.locations.apply(&record, Location { sequence: image.sequence, offset, len_bytes });
            self.apply(record);
            extent.durable = usize::try_from(header.durable).map_or(extent.end, |mark| mark.min(extent.end));
            extent.end += len_bytes;
        }
        Ok(extent)
    }

    fn apply(&mut self, record: Record) {
        match record {
            Record::Entry { index, payload } => self.entries.push_back((index, payload)),
            Record::TruncateFrom { index } => {
                while self.entries.back().is_some_and(|(last, _)| *last >= index) {
                    self.entries.pop_back();
                }
            }
            // What stays for long must not keep the segment's bytes.
            Record::Vote(vote) => self.state.vote = Some(Bytes::copy_from_slice(&vote)),
            Record::Committed(committed) => self.state.committed = Some(Bytes::copy_from_slice(&committed)),
            Record::Purged { index, payload } => {
                while self.entries.front().is_some_and(|(first, _)| *first <= index) {
                    self.entries.pop_front();
                }
                self.state.purged = Some((index, Bytes::copy_from_slice(&payload)));
            }
            Record::Closed => {}
        }
    }

    /// The entries must begin right behind what is purged: otherwise segments are missing at the front.
    fn check_complete(&mut self, dir: &Path) -> Result<(), LogError> {
        let first = self.entries.front().map(|(index, _)| *index).or(self.span.next());
        if let (Some((purged, _)), Some(first)) = (&self.state.purged, first)
            && first.checked_sub(1) != Some(*purged)
        {
            let reason = format!("entries up to {purged} are purged, but those kept begin at {first}");
            return Err(LogError::corrupt(dir, 0, reason));
        }
        self.state.entries = std::mem::take(&mut self.entries).into();
        Ok(())
    }
}

impl Image {
    fn read(disk: &dyn Disk, dir: &Path, sequence: u64) -> Result<Image, LogError> {
        let path = segment::path(dir, sequence);
        let file = disk.open(&path).map_err(|error| LogError::io("open", &path, error))?;
        let (mut bytes, used) = read_all(&*file, &path)?;
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT_BYTES), 0);
        let header = match SegmentHeader::decode(&bytes) {
            Decoded::Header(header) => Some(header),
            Decoded::Nothing => None,
            Decoded::Version(version) => {
                return Err(LogError::Version { file: path, version, supported: segment::VERSION });
            }
        };
        if header.is_some_and(|header| header.sequence != sequence) {
            return Err(LogError::corrupt(&path, 0, "the file is another segment under this name"));
        }
        Ok(Image { sequence, path, file, bytes: bytes.into(), used, header })
    }

    /// The header of a segment that must have one.
    fn in_use(&self) -> Result<SegmentHeader, LogError> {
        self.header.ok_or_else(|| LogError::corrupt(&self.path, 0, "the segment's header is unreadable"))
    }

    /// Checks that what can't be read at `end` is a torn tail: no record behind it says that it was synced.
    fn check_tail(&self, end: usize) -> Result<(), LogError> {
        for offset in (end..self.used).step_by(ALIGNMENT_BYTES) {
            if let Some(header) = Header::decode(&self.bytes[offset..], self.sequence, offset as u64)
                && header.durable > end as u64
            {
                let reason =
                    format!("an unreadable record, though it was synced before the record at byte {offset}");
                return Err(LogError::corrupt(&self.path, end as u64, reason));
            }
        }
        Ok(())
    }
}

/// The numbers of the segments in `dir`, which must be without gaps.
fn sequences(disk: &dyn Disk, dir: &Path) -> Result<Vec<u64>, LogError> {
    let names = disk.list(dir).map_err(|error| LogError::io("list", dir, error))?;
    let mut sequences: Vec<u64> = names.iter().filter_map(|name| segment::parse_name(name)).collect();
    sequences.sort_unstable();
    for pair in sequences.windows(2) {
        if pair[0].checked_add(1) != Some(pair[1]) {
            let missing = segment::path(dir, pair[0].saturating_add(1));
            return Err(LogError::corrupt(&missing, 0, "the segment is missing"));
        }
    }
    Ok(sequences)
}

/// Takes the last segment in use. Those behind it, which were allocated, or being started, but hold nothing that was
/// synced, are removed.
fn last_in_use(disk: &dyn Disk, dir: &Path, sequences: &mut Vec<u64>) -> Result<Option<Image>, LogError> {
    while let Some(last) = sequences.pop() {
        let image = Image::read(disk, dir, last)?;
        if image.header.is_some() {
            return Ok(Some(image));
        }
        image.check_tail(0)?;
        disk.remove(&image.path)
            .and_then(|()| disk.sync_dir(dir))
            .map_err(|error| LogError::io("remove", &image.path, error))?;
    }
    Ok(None)
}

/// A file's bytes, and their number without the zeros at the end.
fn read_all(file: &dyn DiskFile, path: &Path) -> Result<(Vec<u8>, usize), LogError> {
    let io = |error| LogError::io("read", path, error);
    let len = file.len().map_err(io)?;
    if len > segment::FILE_BYTES_MAX {
        return Err(LogError::corrupt(path, segment::FILE_BYTES_MAX, "the file is longer than any segment"));
    }
    let len = usize::try_from(len).map_err(|error| io(io::Error::other(error)))?;
    // Much of a segment may not be written yet: memory that stays untouched costs nothing.
    let (mut bytes, mut read, mut used) = (vec![0; len], 0, 0);
    let mut piece = vec![0; READ_BYTES.min(len)];
    while read < len {
        let count = file.read_at(&mut piece, read as u64).map_err(io)?.min(len - read);
        let piece = &piece[..count];
        // Not the first byte that differs: all of them are looked at, many at a time.
        if piece.iter().fold(0, |all, byte| all | byte) != 0 {
            bytes[read..read + count].copy_from_slice(piece);
            used = read + piece.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        }
        read += count;
        if count == 0 {
            break;
        }
    }
    bytes.truncate(read);
    Ok((bytes, used))
}

const READ_BYTES: usize = 256 << 10;
