//! A disk in memory for tests, which knows what has been synced and can lose the rest.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, DiskFile, DiskLock};

/// What a disk writes in one piece: a crash keeps or loses an unsynced sector as a whole.
const SECTOR_BYTES: u64 = 512;

/// A [`Disk`] in memory. Clones share the same disk.
///
/// Files opened and locks taken before a [`MemoryDisk::crash`] are dead after it.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Raised by a crash; handles of an earlier life are dead.
    life: u64,
    files: HashMap<u64, Content>,
    next_file: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    /// Creations, removals and renames since the last sync of their directory, oldest first.
    unsynced_names: Vec<NameChange>,
    dirs: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    capacity_bytes: Option<u64>,
    fail_next_sync: bool,
    /// Changes that still succeed before the power is cut.
    changes_left: Option<u64>,
}

#[derive(Default)]
struct Content {
    /// What a read returns.
    visible: Vec<u8>,
    /// What a crash leaves if it keeps nothing else.
    durable: Vec<u8>,
    /// Written since the last sync, oldest first.
    unsynced: Vec<(u64, Vec<u8>)>,
}

enum NameChange {
    Link(PathBuf, u64),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, u64),
}

impl NameChange {
    fn path(&self) -> &Path {
        match self {
            NameChange::Link(path, _) | NameChange::Unlink(path) | NameChange::Rename(_, path, _) => path,
        }
    }

    fn apply(self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            NameChange::Link(path, file) => {
                names.insert(path, file);
            }
            NameChange::Unlink(path) => {
                names.remove(&path);
            }
            NameChange::Rename(from, to, file) => {
                names.remove(&from);
                names.insert(to, file);
            }
        }
    }
}

impl MemoryDisk {
    /// An empty disk without limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Loses power: each sector of an unsynced write, and each unsynced name change, survives if `choose`, asked for a
    /// number below its argument 2, returns 1. `|_| 0` loses everything unsynced.
    pub fn crash(&self, mut choose: impl FnMut(usize) -> usize) {
        let mut state = self.state.lock();
        let changes = std::mem::take(&mut state.unsynced_names);
        for change in changes {
            if choose(2) == 1 {
                change.apply(&mut state.durable_names);
            }
        }
        state.names = state.durable_names.clone();
        let mut ids: Vec<u64> = state.files.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            if let Some(content) = state.files.get_mut(&id) {
                content.crash(&mut choose);
            }
        }
        let linked: BTreeSet<u64> = state.names.values().copied().collect();
        state.files.retain(|id, _| linked.contains(id));
        state.life += 1;
        state.locks.clear();
        state.fail_next_sync = false;
        state.changes_left = None;
    }

    /// Cuts the power after `changes` more successful changes (writes, syncs, allocations, name changes): all
    /// later ones fail, until [`MemoryDisk::crash`] or [`MemoryDisk::restore_power`].
    pub fn cut_power_after(&self, changes: u64) {
        self.state.lock().changes_left = Some(changes);
    }

    /// Ends a cut of the power as if only the process had died: nothing unsynced is lost.
    pub fn restore_power(&self) {
        let mut state = self.state.lock();
        state.changes_left = None;
        state.fail_next_sync = false;
    }

    /// Makes the next sync of a file or directory fail. What it should have made durable stays readable, and is
    /// lost by the next crash even when a later sync succeeds, as on a kernel that drops what it could not write.
    pub fn fail_next_sync(&self) {
        self.state.lock().fail_next_sync = true;
    }

    /// Limits the sum of all file lengths; `None` lifts the limit.
    pub fn set_capacity_bytes(&self, capacity_bytes: Option<u64>) {
        self.state.lock().capacity_bytes = capacity_bytes;
    }

    /// Inverts one bit of a file, as bit rot does: durably and without a write. Returns whether there is such a bit.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u32) -> bool {
        let mut state = self.state.lock();
        let Some(content) = state.names.get(path).copied().and_then(|id| state.files.get_mut(&id)) else {
            return false;
        };
        let mask = 1 << (bit % 8);
        let mut found = false;
        for bytes in [&mut content.visible, &mut content.durable] {
            if let Some(byte) = bytes.get_mut(offset as usize) {
                *byte ^= mask;
                found = true;
            }
        }
        found
    }

    /// The sum of all file lengths.
    pub fn used_bytes(&self) -> u64 {
        self.state.lock().used_bytes()
    }

    /// The readable content of a file.
    pub fn read(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state.lock();
        state.names.get(path).and_then(|id| state.files.get(id)).map(|content| content.visible.clone())
    }

    fn file(&self, state: &State, id: u64) -> Box<dyn DiskFile> {
        Box::new(MemoryFile { disk: self.clone(), life: state.life, id })
    }
}

impl Content {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        put(&mut self.visible, offset, bytes);
        self.unsynced.push((offset, bytes.to_vec()));
    }

    fn sync(&mut self) {
        for (offset, bytes) in self.unsynced.drain(..) {
            put(&mut self.durable, offset, &bytes);
        }
    }

    fn crash(&mut self, choose: &mut impl FnMut(usize) -> usize) {
        for (offset, bytes) in std::mem::take(&mut self.unsynced) {
            let mut start = 0;
            while start < bytes.len() {
                let at = offset + start as u64;
                let sector_end = (at / SECTOR_BYTES + 1) * SECTOR_BYTES;
                let end = bytes.len().min(start + (sector_end - at) as usize);
                if choose(2) == 1 {
                    put(&mut self.durable, at, &bytes[start..end]);
                }
                start = end;
            }
        }
        self.visible = self.durable.clone();
    }
}

fn put(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let end = offset as usize + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset as usize..end].copy_from_slice(bytes);
}

impl State {
    /// Counts a change against the power that is left.
    fn change(&mut self) -> io::Result<()> {
        match &mut self.changes_left {
            Some(0) => Err(io::Error::other("the power is cut")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn sync_fails(&mut self) -> bool {
        std::mem::take(&mut self.fail_next_sync)
    }

    fn used_bytes(&self) -> u64 {
        self.files.values().map(|content| content.visible.len() as u64).sum()
    }

    fn check_room(&self, more_bytes: u64) -> io::Result<()> {
        match self.capacity_bytes {
            Some(capacity) if more_bytes > 0 && self.used_bytes() + more_bytes > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    fn content(&mut self, id: u64) -> io::Result<&mut Content> {
        self.files.get_mut(&id).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn unlink(&mut self, path: &Path) -> io::Result<u64> {
        self.names.remove(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for MemoryDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.change()?;
        state.dirs.extend(dir.ancestors().map(Path::to_path_buf));
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state.lock();
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !path.parent().is_some_and(|dir| state.dirs.contains(dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change()?;
        let id = state.next_file;
        state.next_file += 1;
        state.files.insert(id, Content::default());
        state.names.insert(path.to_path_buf(), id);
        state.unsynced_names.push(NameChange::Link(path.to_path_buf(), id));
        Ok(self.file(&state, id))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let state = self.state.lock();
        match state.names.get(path) {
            Some(id) => Ok(self.file(&state, *id)),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.change()?;
        let id = state.unlink(path)?;
        if let Some(content) = state.files.get_mut(&id) {
            content.visible = Vec::new();
        }
        state.unsynced_names.push(NameChange::Unlink(path.to_path_buf()));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.change()?;
        let id = state.unlink(from)?;
        state.names.insert(to.to_path_buf(), id);
        state.unsynced_names.push(NameChange::Rename(from.to_path_buf(), to.to_path_buf(), id));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.change()?;
        if state.sync_fails() {
            return Err(io::Error::other("sync failed"));
        }
        let changes = std::mem::take(&mut state.unsynced_names);
        let (synced, kept): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|change| change.path().parent() == Some(dir));
        state.unsynced_names = kept;
        for change in synced {
            change.apply(&mut state.durable_names);
        }
        Ok(())
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let state = self.state.lock();
        Ok(state.capacity_bytes.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used_bytes())))
    }

    fn lock(&self, path: &Path) -> io::Result<DiskLock> {
        let mut state = self.state.lock();
        if !state.locks.insert(path.to_path_buf()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let guard: Box<dyn Any + Send + Sync> =
            Box::new(MemoryLock { disk: self.clone(), life: state.life, path: path.to_path_buf() });
        Ok(guard)
    }
}

struct MemoryLock {
    disk: MemoryDisk,
    life: u64,
    path: PathBuf,
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        let mut state = self.disk.state.lock();
        if state.life == self.life {
            state.locks.remove(&self.path);
        }
    }
}

struct MemoryFile {
    disk: MemoryDisk,
    life: u64,
    id: u64,
}

impl MemoryFile {
    fn with<T>(&self, act: impl FnOnce(&mut State, u64) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state.lock();
        if state.life != self.life {
            return Err(io::Error::other("the file was opened before the crash"));
        }
        act(&mut state, self.id)
    }
}

impl DiskFile for MemoryFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(|state, id| {
            let growth =
                (offset + bytes.len() as u64).saturating_sub(state.content(id)?.visible.len() as u64);
            state.check_room(growth)?;
            let powered = state.change();
            // A write under way when the power goes may still reach the disk in part.
            state.content(id)?.write(offset, bytes);
            powered
        })
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|state, id| {
            let visible = &state.content(id)?.visible;
            let start = visible.len().min(offset as usize);
            let count = buffer.len().min(visible.len() - start);
            buffer[..count].copy_from_slice(&visible[start..start + count]);
            Ok(count)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|state, id| {
            state.change()?;
            if state.sync_fails() {
                state.content(id)?.unsynced.clear();
                return Err(io::Error::other("sync failed"));
            }
            state.content(id)?.sync();
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|state, id| Ok(state.content(id)?.visible.len() as u64))
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.with(|state, id| {
            state.change()?;
            let end = state.content(id)?.visible.len() as u64;
            let growth = len_bytes.saturating_sub(end);
            state.check_room(growth)?;
            state.content(id)?.write(end, &vec![0; growth as usize]);
            Ok(())
        })
    }
}
