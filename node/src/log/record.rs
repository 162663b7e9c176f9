//! Records and their bytes.
//!
//! ```text
//!  0  u32  checksum of the bytes 4..32, the segment's number and the record's offset (CRC-32C)
//!  4  u32  length of the payload
//!  8  u32  checksum of the payload (CRC-32C)
//! 12  u32  kind
//! 16  u64  index
//! 24  u64  offset up to which the segment was synced when the record was written
//! 32       payload, and zeros up to a multiple of 8
//! ```
//! Little endian. No kind is zero, so that zeros are never a record.

use bytes::Bytes;
use meridian_seam::mutant::{self, Mutant};

use super::LogError;

/// The longest payload of a record, in bytes. A group of client requests is a few MiB at most; what is longer is
/// not of our writing.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;

pub(super) const HEADER_BYTES: usize = 32;
pub(super) const ALIGNMENT_BYTES: usize = 8;

/// One change of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Appends an entry; its index follows the last one (or the purged one). A log that is empty and was never
    /// purged may begin at any index.
    Entry {
        /// Position in the log.
        index: u64,
        /// The entry, opaque.
        payload: Bytes,
    },
    /// Removes the entries from this index on; 0 removes all. May not reach into what is purged.
    TruncateFrom {
        /// The first index removed.
        index: u64,
    },
    /// Replaces the vote.
    Vote(Bytes),
    /// Replaces the committed position. Alone it is not worth a sync: see [`super::LogHandle::note_committed`].
    Committed(Bytes),
    /// Removes the entries up to this index, which may be beyond the last one, and replaces the purged position.
    Purged {
        /// The last index removed.
        index: u64,
        /// The purged position in the caller's terms, opaque.
        payload: Bytes,
    },
    /// Changes nothing, but vouches for everything before it. Written by [`super::Log::close`].
    Closed,
}

/// Where a record is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) sequence: u64,
    pub(super) offset: u64,
    pub(super) durable: u64,
}

impl Record {
    /// The space the record takes in a segment.
    pub(super) fn encoded_len_bytes(&self) -> u64 {
        (HEADER_BYTES + self.payload_len().next_multiple_of(ALIGNMENT_BYTES)) as u64
    }

    fn payload_len(&self) -> usize {
        self.payload().map_or(0, Bytes::len)
    }

    pub(super) fn check_len(&self) -> Result<(), LogError> {
        match self.payload_len() {
            bytes if bytes > PAYLOAD_BYTES_MAX => Err(LogError::TooLong { bytes, max: PAYLOAD_BYTES_MAX }),
            _ => Ok(()),
        }
    }

    pub(super) fn encode(&self, place: Place, out: &mut Vec<u8>) {
        let empty = Bytes::new();
        let payload = self.payload().unwrap_or(&empty);
        let mut header = [0; HEADER_BYTES];
        header[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        header[8..12].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        header[12..16].copy_from_slice(&self.kind().to_le_bytes());
        header[16..24].copy_from_slice(&self.index().to_le_bytes());
        header[24..32].copy_from_slice(&place.durable.to_le_bytes());
        let checksum = header_checksum(&header, place.sequence, place.offset);
        header[0..4].copy_from_slice(&checksum.to_le_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(payload);
        let padding = payload.len().next_multiple_of(ALIGNMENT_BYTES) - payload.len();
        out.extend_from_slice(&[0; ALIGNMENT_BYTES][..padding]);
    }

    fn payload(&self) -> Option<&Bytes> {
        match self {
            Record::Entry { payload, .. } | Record::Purged { payload, .. } => Some(payload),
            Record::Vote(payload) | Record::Committed(payload) => Some(payload),
            Record::TruncateFrom { .. } | Record::Closed => None,
        }
    }

    fn index(&self) -> u64 {
        match self {
            Record::Entry { index, .. } | Record::TruncateFrom { index } | Record::Purged { index, .. } => {
                *index
            }
            Record::Vote(_) | Record::Committed(_) | Record::Closed => 0,
        }
    }

    fn kind(&self) -> u32 {
        match self {
            Record::Entry { .. } => 1,
            Record::TruncateFrom { .. } => 2,
            Record::Vote(_) => 3,
            Record::Committed(_) => 4,
            Record::Purged { .. } => 5,
            Record::Closed => 6,
        }
    }

    fn new(kind: u32, index: u64, payload: Bytes) -> Option<Record> {
        Some(match kind {
            1 => Record::Entry { index, payload },
            2 => Record::TruncateFrom { index },
            3 => Record::Vote(payload),
            4 => Record::Committed(payload),
            5 => Record::Purged { index, payload },
            6 => Record::Closed,
            _ => return None,
        })
    }
}

/// A record's header whose checksum is right.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    payload_len: usize,
    payload_checksum: u32,
    kind: u32,
    index: u64,
    pub(super) durable: u64,
}

impl Header {
    /// Reads the header that `bytes`, which stand at `offset` of a segment, begin with; `None` unless all of it is as
    /// it was written there.
    pub(super) fn decode(bytes: &[u8], sequence: u64, offset: u64) -> Option<Header> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        // A cheap look first: most of what is tried here is zeros.
        if u32_at(header, 12) == 0 || u32_at(header, 0) != header_checksum(header, sequence, offset) {
            return None;
        }
        let payload_len = usize::try_from(u32_at(header, 4)).ok().filter(|len| *len <= PAYLOAD_BYTES_MAX)?;
        Some(Header {
            payload_len,
            payload_checksum: u32_at(header, 8),
            kind: u32_at(header, 12),
            index: u64_at(header, 16),
            durable: u64_at(header, 24),
        })
    }

    /// Reads the rest of the record that `bytes` begin with; `None` if it is cut off, damaged or of an unknown kind.
    /// Also returns the record's length.
    pub(super) fn record(&self, bytes: &Bytes) -> Option<(Record, usize)> {
        let place = HEADER_BYTES..HEADER_BYTES + self.payload_len;
        if crc32c::crc32c(bytes.get(place.clone())?) != self.payload_checksum
            && !mutant::is(Mutant::ChecksumUnchecked)
        {
            return None;
        }
        let record = Record::new(self.kind, self.index, bytes.slice(place))?;
        Some((record, HEADER_BYTES + self.payload_len.next_multiple_of(ALIGNMENT_BYTES)))
    }
}

fn header_checksum(header: &[u8; HEADER_BYTES], sequence: u64, offset: u64) -> u32 {
    let checksum = crc32c::crc32c(&header[4..]);
    let checksum = crc32c::crc32c_append(checksum, &sequence.to_le_bytes());
    crc32c::crc32c_append(checksum, &offset.to_le_bytes())
}

/// Reads a number at a constant offset of a fixed header.
pub(super) fn u32_at<const N: usize>(header: &[u8; N], offset: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&header[offset..offset + 4]);
    u32::from_le_bytes(bytes)
}

/// Reads a number at a constant offset of a fixed header.
pub(super) fn u64_at<const N: usize>(header: &[u8; N], offset: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&header[offset..offset + 8]);
    u64::from_le_bytes(bytes)
}
