use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use meridian_seam::disk::{Disk, DiskFile};
use xxhash_rust::xxh3::Xxh3;

use super::format::{
    CHECKSUM_BYTES, CHUNK_BYTES_MAX, CHUNK_HEADER_BYTES, ChunkHeader, FOOTER_BYTES, Footer, HEADER_BYTES,
    Header, VERSION,
};
use super::{SnapshotError, SnapshotId};

/// Reads the body of a snapshot, a chunk at a time. Each chunk is checked before any of it is returned; damage is
/// an error of kind [`io::ErrorKind::InvalidData`] that wraps [`SnapshotError`]. After the last byte the end was
/// checked too.
pub struct SnapshotReader {
    source: Source,
    id: SnapshotId,
    meta: Bytes,
    chunk: Vec<u8>,
    /// How much of the chunk has been returned.
    taken: usize,
    chunks: u64,
    body_bytes: u64,
    digest: Xxh3,
    ended: bool,
}

/// A snapshot file as it is, to be sent. Reads from its start to its end.
pub struct RawSnapshot {
    source: Source,
    len: u64,
}

/// A file read in sequence.
struct Source {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    offset: u64,
}

impl SnapshotReader {
    pub(super) fn open(disk: &dyn Disk, path: &Path) -> Result<SnapshotReader, SnapshotError> {
        let mut source = Source::open(disk, path)?;
        let (id, meta) = source.header()?;
        Ok(SnapshotReader {
            source,
            id,
            meta,
            chunk: Vec::new(),
            taken: 0,
            chunks: 0,
            body_bytes: 0,
            digest: Xxh3::new(),
            ended: false,
        })
    }

    /// Index and term.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// The meta data given when the snapshot was created.
    pub fn meta(&self) -> &Bytes {
        &self.meta
    }

    /// Reads what is left only to check it: then all that was read is the whole of what was written.
    pub fn check_rest(&mut self) -> Result<(), SnapshotError> {
        while !self.ended {
            self.next_chunk()?;
        }
        Ok(())
    }

    fn next_chunk(&mut self) -> Result<(), SnapshotError> {
        let start = self.source.offset;
        let mut header = [0; CHUNK_HEADER_BYTES];
        self.source.read_exact(&mut header)?;
        let header = ChunkHeader::decode(&header);
        if header.len == 0 {
            return self.end(start, header);
        }
        if header.len > CHUNK_BYTES_MAX {
            let reason = "a chunk is longer than any that is written";
            return Err(SnapshotError::corrupt(&self.source.path, start, reason));
        }
        self.taken = 0;
        self.chunk.resize(header.len, 0);
        if let Err(error) = self.source.read_exact(&mut self.chunk) {
            self.chunk.clear();
            return Err(error);
        }
        if header != ChunkHeader::new(self.chunks, header.len, &self.chunk) {
            self.chunk.clear();
            return Err(SnapshotError::corrupt(&self.source.path, start, "the checksum of a chunk is wrong"));
        }
        self.digest.update(&self.chunk);
        self.chunks += 1;
        self.body_bytes += header.len as u64;
        Ok(())
    }

    /// Checks the footer, and that nothing follows it.
    fn end(&mut self, start: u64, header: ChunkHeader) -> Result<(), SnapshotError> {
        self.chunk.clear();
        self.taken = 0;
        let mut footer = [0; FOOTER_BYTES];
        self.source.read_exact(&mut footer)?;
        let path = &self.source.path;
        if header != ChunkHeader::new(self.chunks, 0, &footer) {
            return Err(SnapshotError::corrupt(path, start, "the checksum of the end is wrong"));
        }
        let expected = Footer { body_bytes: self.body_bytes, digest: self.digest.digest128() };
        if footer != expected.encode() {
            return Err(SnapshotError::corrupt(path, start, "length or digest of the whole is wrong"));
        }
        if self.source.len()? != self.source.offset {
            return Err(SnapshotError::corrupt(path, self.source.offset, "the file goes on behind its end"));
        }
        self.ended = true;
        Ok(())
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.chunk.len() && !self.ended {
            self.next_chunk()?;
        }
        let count = buffer.len().min(self.chunk.len() - self.taken);
        buffer[..count].copy_from_slice(&self.chunk[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

impl RawSnapshot {
    pub(super) fn open(disk: &dyn Disk, path: &Path) -> Result<RawSnapshot, SnapshotError> {
        let source = Source::open(disk, path)?;
        let len = source.len()?;
        Ok(RawSnapshot { source, len })
    }

    /// The length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a snapshot file is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Continues at this offset, to resume an interrupted transfer.
    pub fn seek(&mut self, offset: u64) {
        self.source.offset = offset;
    }
}

impl Read for RawSnapshot {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.source.read(buffer)
    }
}

impl Source {
    fn open(disk: &dyn Disk, path: &Path) -> Result<Source, SnapshotError> {
        let file = disk.open(path).map_err(|error| SnapshotError::io("open", path, error))?;
        Ok(Source { path: path.to_path_buf(), file, offset: 0 })
    }

    fn header(&mut self) -> Result<(SnapshotId, Bytes), SnapshotError> {
        let mut bytes = [0; HEADER_BYTES];
        self.read_exact(&mut bytes)?;
        let header = Header::decode(&bytes).map_err(|version| match version {
            Some(version) => SnapshotError::Version { file: self.path.clone(), version, supported: VERSION },
            None => SnapshotError::corrupt(&self.path, 0, "the header is unreadable"),
        })?;
        let mut meta = vec![0; header.meta_len];
        self.read_exact(&mut meta)?;
        let mut checksum = [0; CHECKSUM_BYTES];
        self.read_exact(&mut checksum)?;
        if u32::from_le_bytes(checksum) != crc32c::crc32c_append(crc32c::crc32c(&bytes), &meta) {
            return Err(SnapshotError::corrupt(&self.path, 0, "the checksum of the header is wrong"));
        }
        Ok((header.id, meta.into()))
    }

    fn len(&self) -> Result<u64, SnapshotError> {
        self.file.len().map_err(|error| SnapshotError::io("read", &self.path, error))
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), SnapshotError> {
        let start = self.offset;
        let count = self.read(buffer).map_err(|error| SnapshotError::io("read", &self.path, error))?;
        if count < buffer.len() {
            return Err(SnapshotError::corrupt(&self.path, start, "the file ends too early"));
        }
        Ok(())
    }
}

impl From<SnapshotError> for io::Error {
    fn from(error: SnapshotError) -> io::Error {
        let kind = match &error {
            SnapshotError::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}
