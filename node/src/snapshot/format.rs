//! The fixed parts of a snapshot file.

use super::SnapshotId;

/// The longest meta data of a snapshot, in bytes: membership and positions, far less than this.
pub const META_BYTES_MAX: usize = 1 << 20;

/// The longest data of a chunk. What is read is held in memory a chunk at a time.
pub(super) const CHUNK_BYTES_MAX: usize = 128 << 10;

pub(super) const VERSION: u32 = 1;
pub(super) const HEADER_BYTES: usize = 32;
pub(super) const CHECKSUM_BYTES: usize = 4;
pub(super) const CHUNK_HEADER_BYTES: usize = 8;
pub(super) const FOOTER_BYTES: usize = 24;

const MAGIC: [u8; 8] = *b"MRDNSNP\0";

/// The start of a file, before the meta data.
pub(super) struct Header {
    pub(super) meta_len: usize,
    pub(super) id: SnapshotId,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.meta_len as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.id.index.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.id.term.to_le_bytes());
        bytes
    }

    /// `Err` holds the version of a header of another format, if it is a header at all.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, Option<u32>> {
        if bytes[0..8] != MAGIC {
            return Err(None);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(Some(version));
        }
        let meta_len = u32_at(bytes, 12) as usize;
        if meta_len > META_BYTES_MAX {
            return Err(None);
        }
        Ok(Header { meta_len, id: SnapshotId { index: u64_at(bytes, 16), term: u64_at(bytes, 24) } })
    }
}

/// The end of a file, behind its own chunk header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) body_bytes: u64,
    pub(super) digest: u128,
}

impl Footer {
    pub(super) fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut bytes = [0; FOOTER_BYTES];
        bytes[0..8].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.digest.to_le_bytes());
        bytes
    }
}

/// The start of a chunk, and of the footer, whose `len` is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkHeader {
    pub(super) len: usize,
    pub(super) checksum: u32,
}

impl ChunkHeader {
    /// The header of the chunk, or footer, with this number and these bytes.
    pub(super) fn new(number: u64, len: usize, bytes: &[u8]) -> ChunkHeader {
        let checksum = crc32c::crc32c(&number.to_le_bytes());
        let checksum = crc32c::crc32c_append(checksum, &(len as u32).to_le_bytes());
        ChunkHeader { len, checksum: crc32c::crc32c_append(checksum, bytes) }
    }

    pub(super) fn encode(&self) -> [u8; CHUNK_HEADER_BYTES] {
        let mut bytes = [0; CHUNK_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&(self.len as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; CHUNK_HEADER_BYTES]) -> ChunkHeader {
        ChunkHeader { len: u32_at(bytes, 0) as usize, checksum: u32_at(bytes, 4) }
    }
}

fn u32_at<const N: usize>(bytes: &[u8; N], offset: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(number)
}

fn u64_at<const N: usize>(bytes: &[u8; N], offset: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(number)
}
