//! What the simulator must find: production code broken on purpose ([`meridian_seam::mutant`]), and worlds in which a
//! promise of the world itself is broken, so that the servers can't keep theirs. Checks that find nothing wrong there
//! would find nothing anywhere.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use meridian_bridge::lease::LeaseTerms;
use meridian_seam::disk::testing::MemoryDisk;
use meridian_seam::disk::{Disk, DiskFile, DiskLock};
use meridian_seam::entropy::{Entropy, SeededEntropy};
use meridian_seam::mutant::Mutant as Code;

use super::faults::Kind;
use super::run::Scenario;

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    Code(Code),
    World(World),
}

/// A promise that the world breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum World {
    /// Three syncs in four say that they are done and do nothing
    LyingDisk,
    /// A server that lost its power starts again with an empty disk
    WipedDisk,
    /// A server forgets how often it was started
    ForgottenStarts,
    /// The mesh takes a region's lease for over long before the region does
    ShortLease,
    /// The clocks of servers are up to four fifths wrong, beyond the bound
    WildClocks,
}

impl Mutant {
    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let code = Code::ALL.iter().map(|code| Self::Code(*code));
        code.chain(World::value_variants().iter().map(|world| Self::World(*world)))
    }

    /// Its name on the command line.
    pub(super) fn name(self) -> String {
        match self {
            Mutant::Code(code) => code.name().into(),
            Mutant::World(world) => {
                world.to_possible_value().map(|value| value.get_name().into()).unwrap_or_default()
            }
        }
    }

    /// Reads a name.
    pub(super) fn parse(name: &str) -> Result<Self, String> {
        let known = || Self::all().map(Self::name).collect::<Vec<_>>().join(", ");
        Self::all()
            .find(|mutant| mutant.name() == name)
            .ok_or_else(|| format!("it must be one of {}", known()))
    }

    /// Where it can be found, if not everywhere.
    pub(super) fn scenario(self) -> Option<Scenario> {
        match self {
            Mutant::Code(Code::ObserverInQuorum | Code::ResentWriteApplied | Code::SessionMovedUnchecked) => {
                Some(Scenario::Region)
            }
            Mutant::Code(Code::UnfencedIncarnation) => Some(Scenario::LargeMesh),
            Mutant::Code(
                Code::GlobalAckBeforeCommit
                | Code::ResentForwardApplied
                | Code::MirrorAppliedTwice
                | Code::DeletionOnEmptySource
                | Code::LeaseFromReceipt
                | Code::SilentServersForgotten
                | Code::LeaseIgnored
                | Code::StaleLeaseEpoch
                | Code::OrderersOvertake,
            )
            | Mutant::World(World::ShortLease | World::WildClocks) => Some(Scenario::Mesh),
            _ => None,
        }
    }

    /// The kinds of faults under which it shows, where all kinds together would take very many seeds.
    pub(super) fn faults(self) -> &'static [Kind] {
        match self {
            Mutant::Code(Code::ExpiryAfterPause) => &[Kind::PauseRegion],
            Mutant::Code(Code::UnfencedIncarnation) => {
                &[Kind::IsolateLeader, Kind::CutServers, Kind::CutRegions]
            }
            Mutant::Code(Code::GlobalAckBeforeCommit) => &[Kind::SlowDisk, Kind::Crash],
            Mutant::Code(Code::MirrorAppliedTwice) => &[Kind::SlowDisk, Kind::Crash],
            Mutant::Code(Code::LeaseFromReceipt) => &[Kind::Unheard],
            Mutant::Code(Code::SilentServersForgotten) => &[Kind::Blackout, Kind::Wall],
            Mutant::Code(Code::StaleLeaseEpoch) => &[Kind::RegionInTrouble, Kind::CutRegions],
            Mutant::World(World::WildClocks) => &[Kind::RegionInTrouble, Kind::CutRegions],
            _ => &[],
        }
    }

    /// It is found within so many seeds.
    pub(super) fn seeds_max(self) -> u64 {
        400
    }

    /// The production code that is broken.
    pub(super) fn code(mutant: Option<Self>) -> Option<Code> {
        match mutant {
            Some(Mutant::Code(code)) => Some(code),
            _ => None,
        }
    }

    pub(super) fn world(mutant: Option<Self>) -> Option<World> {
        match mutant {
            Some(Mutant::World(world)) => Some(world),
            _ => None,
        }
    }
}

impl World {
    /// By how much clocks are wrong at most, in parts per million.
    pub(super) fn drift_max_ppm(world: Option<Self>) -> i64 {
        if world == Some(World::WildClocks) { 800_000 } else { 9_000 }
    }

    /// Shorter than by default, so that leases end within a run; some sessions are longer still.
    pub(super) fn lease(world: Option<Self>) -> LeaseTerms {
        let terms = LeaseTerms {
            duration: Duration::from_secs(6),
            session_timeout_max: Duration::from_secs(8),
            ..LeaseTerms::default()
        };
        match world {
            Some(World::ShortLease) => LeaseTerms { drift_max: -0.9, margin: Duration::ZERO, ..terms },
            _ => terms,
        }
    }

    /// The disk that a server sees.
    pub(super) fn disk(
        world: Option<Self>,
        disk: &MemoryDisk,
        entropy: &Arc<SeededEntropy>,
    ) -> Arc<dyn Disk> {
        match world {
            Some(World::LyingDisk) => Arc::new(LyingDisk { disk: disk.clone(), entropy: entropy.clone() }),
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
