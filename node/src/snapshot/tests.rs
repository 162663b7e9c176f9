use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use meridian_seam::disk::testing::MemoryDisk;
use meridian_seam::disk::{Disk, RealDisk};
use proptest::prelude::*;

use super::format::CHUNK_BYTES_MAX;
use super::{META_BYTES_MAX, SnapshotError, SnapshotId, SnapshotStore};

const DIR: &str = "/data/snapshot";

fn on_both_disks(test: impl Fn(Arc<dyn Disk>, &Path)) {
    let directory = tempfile::tempdir().unwrap();
    test(Arc::new(RealDisk), &directory.path().join("data/snapshot"));
    test(Arc::new(MemoryDisk::new()), Path::new(DIR));
}

fn body(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn write(store: &SnapshotStore, index: u64, body: &[u8]) -> Result<SnapshotId, SnapshotError> {
    let mut writer = store.create(index, 3, format!("meta {index}").into())?;
    writer.write_all(body).map_err(|error| SnapshotError::io("write", Path::new("body"), error))?;
    writer.finish()
}

/// Reads all of a snapshot only to check it.
fn check(store: &SnapshotStore, index: u64) -> Result<(), SnapshotError> {
    store.read(index)?.check_rest()
}

fn memory_store() -> (MemoryDisk, SnapshotStore) {
    let disk = MemoryDisk::new();
    let store = SnapshotStore::open(Arc::new(disk.clone()), Path::new(DIR)).unwrap();
    (disk, store)
}

fn path_of(id: SnapshotId) -> std::path::PathBuf {
    Path::new(DIR).join(id.file_name())
}

#[test]
fn what_is_written_is_read() {
    on_both_disks(|disk, dir| {
        let store = SnapshotStore::open(disk, dir).unwrap();
        assert_eq!(store.candidates().unwrap(), []);
        for (index, bytes) in [0, 1, CHUNK_BYTES_MAX, 3 * CHUNK_BYTES_MAX + 5].into_iter().enumerate() {
            let index = index as u64 + 10;
            let id = write(&store, index, &body(bytes)).unwrap();
            assert_eq!(id, SnapshotId { index, term: 3 });
            assert_eq!(store.candidates().unwrap().first(), Some(&id));
            let mut reader = store.read(index).unwrap();
            assert_eq!(reader.id(), id);
            assert_eq!(reader.meta(), &format!("meta {index}"));
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            assert!(read == body(bytes), "a body of {bytes} bytes");
        }
    });
}

#[test]
fn the_newest_are_kept() {
    on_both_disks(|disk, dir| {
        let store = SnapshotStore::open(disk, dir).unwrap();
        for index in [5, 100, 20, 9] {
            write(&store, index, b"body").unwrap();
        }
        let indices = || store.candidates().unwrap().iter().map(|id| id.index).collect::<Vec<_>>();
        assert_eq!(indices(), [100, 20, 9, 5]);
        assert_eq!(store.retain(2).unwrap(), 2);
        assert_eq!(indices(), [100, 20]);
        assert_eq!(store.retain(0).unwrap(), 1);
        assert_eq!(indices(), [100]);
        assert!(matches!(store.read(20).err(), Some(SnapshotError::Missing { index: 20 })));
    });
}

#[test]
fn unfinished_snapshots_leave_nothing() {
    on_both_disks(|disk, dir| {
        let store = SnapshotStore::open(Arc::clone(&disk), dir).unwrap();
        let mut writer = store.create(1, 1, "".into()).unwrap();
        writer.write_all(&body(CHUNK_BYTES_MAX * 2)).unwrap();
        assert_eq!(disk.list(dir).unwrap().len(), 1);
        drop(writer);
        assert_eq!(disk.list(dir).unwrap(), [""; 0]);
        // The process died before it could clean up.
        std::mem::forget(store.create(1, 1, "".into()).unwrap());
        assert_eq!(disk.list(dir).unwrap().len(), 1);
        assert_eq!(store.candidates().unwrap(), []);
        SnapshotStore::open(Arc::clone(&disk), dir).unwrap();
        assert_eq!(disk.list(dir).unwrap(), [""; 0]);
    });
}

#[test]
fn no_flipped_bit_and_no_cut_goes_unnoticed() {
    let (disk, store) = memory_store();
    let id = write(&store, 7, &body(300)).unwrap();
    let path = path_of(id);
    let content = disk.read(&path).unwrap();
    for offset in 0..content.len() as u64 {
        disk.flip_bit(&path, offset, (offset % 8) as u32);
        let error = check(&store, 7).err().unwrap_or_else(|| panic!("a flip at {offset} goes unnoticed"));
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        disk.flip_bit(&path, offset, (offset % 8) as u32);
    }
    for len in 0..content.len() {
        disk.remove(&path).unwrap();
        disk.create(&path).unwrap().write_at(&content[..len], 0).unwrap();
        assert!(matches!(check(&store, 7), Err(SnapshotError::Corrupt { .. })), "cut to {len} bytes");
    }
    disk.open(&path).unwrap().write_at(&content, 0).unwrap();
    check(&store, 7).unwrap();
    disk.open(&path).unwrap().write_at(&[0], content.len() as u64).unwrap();
    assert!(matches!(check(&store, 7), Err(SnapshotError::Corrupt { .. })));
}

#[test]
fn damage_after_the_opening_is_an_error_of_the_reader() {
    let (disk, store) = memory_store();
    let id = write(&store, 7, &body(3 * CHUNK_BYTES_MAX)).unwrap();
    let mut reader = store.read(7).unwrap();
    disk.flip_bit(&path_of(id), 2 * CHUNK_BYTES_MAX as u64, 1);
    let mut read = Vec::new();
    let error = reader.read_to_end(&mut read).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(read == body(CHUNK_BYTES_MAX), "only what was checked is returned");
}

#[test]
fn an_older_snapshot_can_stand_in_for_a_damaged_one() {
    let (disk, store) = memory_store();
    write(&store, 5, b"older").unwrap();
    let newest = write(&store, 9, b"newest").unwrap();
    disk.flip_bit(&path_of(newest), 50, 0);
    assert!(matches!(check(&store, 9), Err(SnapshotError::Corrupt { .. })));
    let older = store.candidates().unwrap()[1];
    let mut read = String::new();
    store.read(older.index).unwrap().read_to_string(&mut read).unwrap();
    assert_eq!(read, "older");
}

#[test]
fn a_snapshot_is_sent_and_received() {
    on_both_disks(|disk, dir| {
        let sender = SnapshotStore::open(Arc::clone(&disk), &dir.join("sender")).unwrap();
        let receiver = SnapshotStore::open(Arc::clone(&disk), &dir.join("receiver")).unwrap();
        let id = write(&sender, 42, &body(CHUNK_BYTES_MAX * 2 + 9)).unwrap();
        let mut raw = sender.open_raw(42).unwrap();
        let mut incoming = receiver.receive(id, raw.len()).unwrap();
        // Interrupted and resumed where the receiver was.
        io::copy(&mut (&mut raw).take(1000), &mut incoming).unwrap();
        let mut raw = sender.open_raw(42).unwrap();
        raw.seek(incoming.received_bytes());
        io::copy(&mut raw, &mut incoming).unwrap();
        assert_eq!(receiver.candidates().unwrap(), []);
        assert_eq!(incoming.finish().unwrap(), id);
        let mut read = Vec::new();
        receiver.read(42).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == body(CHUNK_BYTES_MAX * 2 + 9));
    });
}

#[test]
fn a_received_snapshot_is_bounded_and_checked() {
    let (disk, store) = memory_store();
    let id = write(&store, 42, &body(1000)).unwrap();
    let mut bytes = Vec::new();
    store.open_raw(42).unwrap().read_to_end(&mut bytes).unwrap();
    let other = SnapshotStore::open(Arc::new(disk.clone()), Path::new("/other")).unwrap();

    let mut incoming = other.receive(id, bytes.len() as u64 - 1).unwrap();
    assert_eq!(incoming.write_all(&bytes).unwrap_err().kind(), io::ErrorKind::InvalidData);
    drop(incoming);

    let mut damaged = bytes.clone();
    damaged[500] ^= 1;
    let wrong_id = SnapshotId { index: 43, term: 3 };
    for (announced, bytes) in
        [(id, &damaged), (id, &bytes[..900].to_vec()), (id, &vec![]), (wrong_id, &bytes)]
    {
        let mut incoming = other.receive(announced, 10_000).unwrap();
        incoming.write_all(bytes).unwrap();
        assert!(matches!(incoming.finish(), Err(SnapshotError::Corrupt { .. })));
        assert_eq!(disk.list(Path::new("/other")).unwrap(), [""; 0]);
    }
}

#[test]
fn a_full_disk_leaves_the_older_snapshot() {
    let (disk, store) = memory_store();
    write(&store, 1, &body(1000)).unwrap();
    disk.set_capacity_bytes(Some(CHUNK_BYTES_MAX as u64));
    let mut writer = store.create(2, 1, "".into()).unwrap();
    let error = writer.write_all(&body(CHUNK_BYTES_MAX * 3)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(writer.finish().is_err());
    assert_eq!(store.candidates().unwrap(), [SnapshotId { index: 1, term: 3 }]);
    check(&store, 1).unwrap();
    assert_eq!(disk.list(Path::new(DIR)).unwrap().len(), 1);
}

#[test]
fn the_writer_is_throttled_chunk_by_chunk() {
    let (_, store) = memory_store();
    let chunks = Arc::new(AtomicUsize::new(0));
    let mut writer = store.create(1, 1, "".into()).unwrap();
    let counter = Arc::clone(&chunks);
    writer.throttle(Box::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    writer.write_all(&body(CHUNK_BYTES_MAX + 10)).unwrap();
    assert_eq!(chunks.load(Ordering::Relaxed), 1);
    writer.finish().unwrap();
    assert_eq!(chunks.load(Ordering::Relaxed), 2);
}

#[test]
fn long_meta_data_is_refused() {
    let (_, store) = memory_store();
    let meta = vec![0; META_BYTES_MAX + 1];
    assert!(matches!(store.create(1, 1, meta.into()).err(), Some(SnapshotError::TooLong { .. })));
}

proptest! {
    /// After a crash anywhere the finished snapshots are there and whole, the one being finished is whole or not
    /// there, and nothing else is.
    #[test]
    fn a_crash_leaves_whole_snapshots(changes in 0..24_u64, bytes in 0..5000_usize, keep in any::<u64>()) {
        let (disk, store) = memory_store();
        disk.cut_power_after(changes);
        let mut finished = 0;
        while finished < 3 && write(&store, finished + 1, &body(bytes)).is_ok() {
            finished += 1;
        }
        let mut seed = keep;
        disk.crash(|below| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % below
        });
        let store = SnapshotStore::open(Arc::new(disk.clone()), Path::new(DIR)).unwrap();
        let found = store.candidates().unwrap();
        prop_assert!(found.len() as u64 == finished || found.len() as u64 == finished + 1);
        for id in &found {
            check(&store, id.index).unwrap();
        }
        prop_assert_eq!(disk.list(Path::new(DIR)).unwrap().len(), found.len());
    }
}
