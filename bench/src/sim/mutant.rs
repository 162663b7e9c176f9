//! Worlds in which a promise of the world itself is broken, so that the servers can't keep theirs: a check
//! that finds nothing wrong there would find nothing anywhere.

use std::io;
use std::path::Path;
use std::sync::Arc;

use meridian_bridge::lease::LeaseTerms;
use meridian_seam::disk::testing::MemoryDisk;
use meridian_seam::disk::{Disk, DiskFile, DiskLock};
use meridian_seam::entropy::{Entropy, SeededEntropy};

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Mutant {
    /// Three syncs in four say that they are done and do nothing
    LyingDisk,
    /// A server that lost its power starts again with an empty disk
    WipedDisk,
    /// A server forgets how often it was started
    ForgottenStarts,
    /// The mesh takes a region's lease for over long before the region does
    ShortLease,
    /// The clocks of servers are up to a half wrong, beyond the bound
    WildClocks,
}

impl Mutant {
    /// By how much clocks are wrong at most, in parts per million.
    pub(super) fn drift_max_ppm(mutant: Option<Self>) -> i64 {
        if mutant == Some(Mutant::WildClocks) { 500_000 } else { 9_000 }
    }

    pub(super) fn lease(mutant: Option<Self>) -> LeaseTerms {
        match mutant {
            Some(Mutant::ShortLease) => {
                LeaseTerms { drift_max: -0.9, margin: std::time::Duration::ZERO, ..LeaseTerms::default() }
            }
            _ => LeaseTerms::default(),
        }
    }

    /// The disk that a server sees.
    pub(super) fn disk(
        mutant: Option<Self>,
        disk: &MemoryDisk,
        entropy: &Arc<SeededEntropy>,
    ) -> Arc<dyn Disk> {
        match mutant {
            Some(Mutant::LyingDisk) => Arc::new(LyingDisk { disk: disk.clone(), entropy: entropy.clone() }),
            _ => Arc::new(disk.clone()),
        }
    }
}

struct LyingDisk {
    disk: MemoryDisk,
    entropy: Arc<SeededEntropy>,
}

impl LyingDisk {
    fn lie(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(LyingFile { file, entropy: self.entropy.clone() })
    }
}

impl Disk for LyingDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.lie(self.disk.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.lie(self.disk.open(path)?))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.disk.free_bytes(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<DiskLock> {
        self.disk.lock(path)
    }
}

struct LyingFile {
    file: Box<dyn DiskFile>,
    entropy: Arc<SeededEntropy>,
}

impl DiskFile for LyingFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.entropy.next_u64().is_multiple_of(4) { self.file.sync_data() } else { Ok(()) }
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.file.allocate(len_bytes)
    }
}
