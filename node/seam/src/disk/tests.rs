use std::io;
use std::path::Path;

use super::testing::MemoryDisk;
use super::{Disk, RealDisk};

fn on_both_disks(test: impl Fn(&dyn Disk, &Path)) {
    let directory = tempfile::tempdir().unwrap();
    test(&RealDisk, &directory.path().join("a/b"));
    test(&MemoryDisk::new(), Path::new("/a/b"));
}

fn kind<T>(result: io::Result<T>) -> io::ErrorKind {
    result.map(|_| ()).unwrap_err().kind()
}

#[test]
fn files_are_created_written_and_read() {
    on_both_disks(|disk, dir| {
        assert_eq!(kind(disk.create(&dir.join("x"))), io::ErrorKind::NotFound);
        disk.create_dir_all(dir).unwrap();
        disk.create_dir_all(dir).unwrap();
        let file = disk.create(&dir.join("x")).unwrap();
        assert_eq!(kind(disk.create(&dir.join("x"))), io::ErrorKind::AlreadyExists);
        file.write_at(b"hello", 3).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(dir).unwrap();
        let mut buffer = [9; 10];
        assert_eq!(disk.open(&dir.join("x")).unwrap().read_at(&mut buffer, 2).unwrap(), 6);
        assert_eq!(&buffer, b"\0hello\x09\x09\x09\x09");
        assert_eq!(file.read_at(&mut buffer, 100).unwrap(), 0);
        file.allocate(200_000).unwrap();
        file.allocate(10).unwrap();
        assert_eq!(file.len().unwrap(), 200_000);
        assert_eq!(file.read_at(&mut buffer, 3).unwrap(), 10);
        assert_eq!(&buffer, b"hello\0\0\0\0\0");
        assert!(disk.free_bytes(dir).unwrap() > 0);
    });
}

#[test]
fn names_change() {
    on_both_disks(|disk, dir| {
        disk.create_dir_all(&dir.join("directory")).unwrap();
        for name in ["c", "a", "b"] {
            disk.create(&dir.join(name)).unwrap().write_at(name.as_bytes(), 0).unwrap();
        }
        assert_eq!(disk.list(dir).unwrap(), ["a", "b", "c"]);
        disk.rename(&dir.join("a"), &dir.join("b")).unwrap();
        disk.remove(&dir.join("c")).unwrap();
        assert_eq!(disk.list(dir).unwrap(), ["b"]);
        let mut content = [0];
        disk.open(&dir.join("b")).unwrap().read_at(&mut content, 0).unwrap();
        assert_eq!(&content, b"a");
        assert_eq!(kind(disk.open(&dir.join("a"))), io::ErrorKind::NotFound);
        assert_eq!(kind(disk.remove(&dir.join("a"))), io::ErrorKind::NotFound);
    });
}

#[test]
fn a_lock_has_one_holder() {
    on_both_disks(|disk, dir| {
        disk.create_dir_all(dir).unwrap();
        let held = disk.lock(&dir.join("LOCK")).unwrap();
        assert_eq!(kind(disk.lock(&dir.join("LOCK"))), io::ErrorKind::WouldBlock);
        drop(held);
        disk.lock(&dir.join("LOCK")).unwrap();
    });
}

#[test]
fn a_crash_loses_what_was_not_synced() {
    let disk = MemoryDisk::new();
    let dir = Path::new("/d");
    disk.create_dir_all(dir).unwrap();
    let kept = disk.create(&dir.join("kept")).unwrap();
    disk.sync_dir(dir).unwrap();
    kept.write_at(&[1; 2048], 0).unwrap();
    kept.sync_data().unwrap();
    kept.write_at(&[2; 2048], 0).unwrap();
    disk.create(&dir.join("lost")).unwrap().sync_data().unwrap();

    let mut sector = 0;
    let copy = |disk: &MemoryDisk| disk.read(&dir.join("kept")).unwrap();
    disk.crash(|_| {
        sector += 1;
        sector % 2
    });
    // The first choice is about the name, which is kept, and then every other sector is.
    assert_eq!(disk.list(dir).unwrap(), ["kept", "lost"]);
    let torn = [vec![1; 512], vec![2; 512], vec![1; 512], vec![2; 512]].concat();
    assert!(copy(&disk) == torn);
    assert!(kept.write_at(b"x", 0).is_err(), "opened before the crash");

    disk.remove(&dir.join("lost")).unwrap();
    disk.crash(|_| 0);
    assert_eq!(disk.list(dir).unwrap(), ["kept", "lost"]);
}

#[test]
fn what_a_failed_sync_dropped_is_gone() {
    let disk = MemoryDisk::new();
    let path = Path::new("/x");
    disk.create_dir_all(Path::new("/")).unwrap();
    let file = disk.create(path).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    file.write_at(b"lost", 0).unwrap();
    disk.fail_next_sync();
    assert!(file.sync_data().is_err());
    file.sync_data().unwrap();
    assert_eq!(disk.read(path).unwrap(), b"lost");
    disk.crash(|_| 1);
    assert_eq!(disk.read(path).unwrap(), b"");
}

#[test]
fn a_full_disk_refuses_only_growth() {
    let disk = MemoryDisk::new();
    disk.create_dir_all(Path::new("/")).unwrap();
    let file = disk.create(Path::new("/x")).unwrap();
    file.allocate(100).unwrap();
    disk.set_capacity_bytes(Some(100));
    assert_eq!(disk.free_bytes(Path::new("/")).unwrap(), 0);
    file.write_at(&[1; 100], 0).unwrap();
    assert_eq!(kind(file.write_at(&[1; 100], 1)), io::ErrorKind::StorageFull);
    assert_eq!(kind(file.allocate(101)), io::ErrorKind::StorageFull);
}
