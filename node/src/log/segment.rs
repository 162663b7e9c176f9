//! Segment files: their names, their headers, their creation.
//!
//! ```text
//!  0  8 bytes  magic
//!  8  u32      format version
//! 12  u32      checksum of the other bytes (CRC-32C)
//! 16  u64      sequence number, as in the file's name
//! 24  u64      offset at which the previous segment ended
//! 32  u64      index of the oldest entry of the log at that moment, or 2^64 - 1 where there is none
//! 40  u64      index of the next entry, or 2^64 - 1 where the log may begin anywhere
//! ```

use std::io;
use std::path::{Path, PathBuf};

use meridian_seam::disk::{Disk, DiskFile};

use super::record::{u32_at, u64_at};

const MAGIC: [u8; 8] = *b"MRDNLOG\0";
const HEADER_BYTES: usize = 48;
/// What stands for no index.
pub(super) const NO_INDEX: u64 = u64::MAX;

/// The format that this version writes and reads.
pub(super) const VERSION: u32 = 1;

/// A segment file longer than this is not of our writing: a segment is as long as configured, or as its first
/// group of records.
pub(super) const FILE_BYTES_MAX: u64 = 4 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) sequence: u64,
    pub(super) previous_end: u64,
    pub(super) first_index: Option<u64>,
    pub(super) next_index: Option<u64>,
}

/// What stands where a header should be.
pub(super) enum Decoded {
    Header(SegmentHeader),
    /// A header of another format.
    Version(u32),
    /// No header, or a damaged one.
    Nothing,
}

impl SegmentHeader {
    pub(super) const BYTES: u64 = HEADER_BYTES as u64;

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let mut header = [0; HEADER_BYTES];
        header[0..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        header[24..32].copy_from_slice(&self.previous_end.to_le_bytes());
        header[32..40].copy_from_slice(&self.first_index.unwrap_or(NO_INDEX).to_le_bytes());
        header[40..48].copy_from_slice(&self.next_index.unwrap_or(NO_INDEX).to_le_bytes());
        let checksum = checksum(&header);
        header[12..16].copy_from_slice(&checksum.to_le_bytes());
        out.extend_from_slice(&header);
    }

    pub(super) fn decode(segment: &[u8]) -> Decoded {
        let Some(header) = segment.first_chunk::<HEADER_BYTES>() else { return Decoded::Nothing };
        if header[0..8] != MAGIC {
            return Decoded::Nothing;
        }
        // Before the checksum, which another format may have elsewhere.
        let version = u32_at(header, 8);
        if version != VERSION {
            return Decoded::Version(version);
        }
        if u32_at(header, 12) != checksum(header) {
            return Decoded::Nothing;
        }
        let index_at = |offset| Some(u64_at(header, offset)).filter(|index| *index != NO_INDEX);
        Decoded::Header(SegmentHeader {
            sequence: u64_at(header, 16),
            previous_end: u64_at(header, 24),
            first_index: index_at(32),
            next_index: index_at(40),
        })
    }
}

fn checksum(header: &[u8; HEADER_BYTES]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[0..12]), &header[16..])
}

/// The file of the segment with this number.
pub(super) fn path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{sequence:016}.log"))
}

/// The number of the segment with this file name; `None` if it is not a segment's.
pub(super) fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log").filter(|digits| digits.len() == 16)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Creates a segment file of zeros, durably. What an earlier attempt left under its name is replaced; after an
/// error nothing stays that takes up space.
pub(super) fn create(disk: &dyn Disk, dir: &Path, sequence: u64, len: u64) -> io::Result<Box<dyn DiskFile>> {
    let path = path(dir, sequence);
    let file = match disk.create(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove(&path)?;
            disk.create(&path)?
        }
        result => result?,
    };
    let allocated = file.allocate(len).and_then(|()| file.sync_data()).and_then(|()| disk.sync_dir(dir));
    if let Err(error) = allocated {
        if let Err(error) = disk.remove(&path) {
            tracing::warn!(file = %path.display(), %error, "an unfinished segment stays");
        }
        return Err(error);
    }
    Ok(file)
}
