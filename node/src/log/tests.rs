mod crash;
mod damage;
mod handle;
mod reader;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use meridian_seam::disk::testing::MemoryDisk;
use meridian_seam::disk::{Disk, RealDisk};

use super::{Log, LogError, LogOptions, Record, Recovered, segment};

/// Small enough that a handful of records changes segments.
fn small() -> LogOptions {
    LogOptions { segment_bytes: 2048, reserve_bytes: 4096, queue_records: 8, queue_bytes: 4096 }
}

fn entry(index: u64, payload: impl Into<Bytes>) -> Record {
    Record::Entry { index, payload: payload.into() }
}

/// Entries whose payloads tell their index.
fn entries(indices: std::ops::RangeInclusive<u64>) -> Vec<Record> {
    indices.map(|index| entry(index, format!("{index:0100}"))).collect()
}

fn purged(index: u64) -> Record {
    Record::Purged { index, payload: format!("purged {index}").into() }
}

fn write_synced(log: &mut Log, records: &[Record]) {
    log.write(records).unwrap();
    log.sync().unwrap();
}

fn reopen(disk: &Arc<dyn Disk>, dir: &Path) -> Recovered {
    Log::open(Arc::clone(disk), dir, small()).unwrap().1
}

fn indices(recovered: &Recovered) -> Vec<u64> {
    recovered.entries.iter().map(|(index, _)| *index).collect()
}

fn segment_files(disk: &dyn Disk, dir: &Path) -> Vec<PathBuf> {
    let names = disk.list(dir).unwrap();
    names.iter().filter(|name| segment::parse_name(name).is_some()).map(|name| dir.join(name)).collect()
}

/// Runs a test over the file system and over memory.
fn on_both_disks(test: impl Fn(Arc<dyn Disk>, &Path)) {
    let directory = tempfile::tempdir().unwrap();
    test(Arc::new(RealDisk), &directory.path().join("data/log"));
    test(Arc::new(MemoryDisk::new()), Path::new("/data/log"));
}

/// What a log should hold.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    entries: VecDeque<(u64, Bytes)>,
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    purged: Option<(u64, Bytes)>,
}

impl Model {
    fn of(records: &[Record]) -> Model {
        let mut model = Model::default();
        records.iter().for_each(|record| model.apply(record));
        model
    }

    fn apply(&mut self, record: &Record) {
        match record.clone() {
            Record::Entry { index, payload } => self.entries.push_back((index, payload)),
            Record::TruncateFrom { index } => self.entries.retain(|(at, _)| *at < index),
            Record::Vote(vote) => self.vote = Some(vote),
            Record::Committed(committed) => self.committed = Some(committed),
            Record::Purged { index, payload } => {
                self.entries.retain(|(at, _)| *at > index);
                self.purged = Some((index, payload));
            }
            Record::Closed => {}
        }
    }
}

impl From<Recovered> for Model {
    fn from(recovered: Recovered) -> Model {
        let Recovered { entries, vote, committed, purged, .. } = recovered;
        Model { entries: entries.into(), vote, committed, purged }
    }
}

#[test]
fn what_is_written_is_recovered() {
    on_both_disks(|disk, dir| {
        let mut records = vec![Record::Vote("v1".into()), entry(0, ""), entry(1, "one")];
        records.extend(entries(2..=40));
        records.extend([Record::Committed("c".into()), Record::TruncateFrom { index: 30 }, entry(30, "new")]);
        records.extend([purged(12), Record::Vote("v2".into())]);
        let (mut log, recovered) = Log::open(Arc::clone(&disk), dir, small()).unwrap();
        assert_eq!(recovered, Recovered::default());
        for group in records.chunks(3) {
            write_synced(&mut log, group);
        }
        drop(log);
        let recovered = reopen(&disk, dir);
        assert_eq!(recovered.torn_bytes, 0);
        assert_eq!(Model::from(recovered), Model::of(&records));
    });
}

#[test]
fn a_reopened_log_goes_on() {
    on_both_disks(|disk, dir| {
        for round in 0..6 {
            let (mut log, recovered) = Log::open(Arc::clone(&disk), dir, small()).unwrap();
            assert_eq!(indices(&recovered), (1..=round * 7).collect::<Vec<_>>());
            write_synced(&mut log, &entries(round * 7 + 1..=round * 7 + 7));
            if round % 2 == 0 {
                log.close().unwrap();
            }
        }
    });
}

#[test]
fn purged_segments_are_removed() {
    on_both_disks(|disk, dir| {
        let (mut log, _) = Log::open(Arc::clone(&disk), dir, small()).unwrap();
        write_synced(&mut log, &[Record::Vote("vote".into()), Record::Committed("committed".into())]);
        for index in 1..=100 {
            write_synced(&mut log, &entries(index..=index));
        }
        let before = segment_files(&*disk, dir).len();
        write_synced(&mut log, &[purged(90)]);
        let after = segment_files(&*disk, dir).len();
        assert!(before > 5 && after <= 2, "{before} segments before, {after} after");
        assert_eq!(log.metrics().segments_removed.load(Ordering::Relaxed), (before - after) as u64);
        drop(log);
        let recovered = reopen(&disk, dir);
        assert_eq!(indices(&recovered), (91..=100).collect::<Vec<_>>());
        assert_eq!(recovered.vote, Some("vote".into()));
        assert_eq!(recovered.committed, Some("committed".into()));
        assert_eq!(recovered.purged, Some((90, "purged 90".into())));
    });
}

#[test]
fn a_purge_beyond_the_end_restarts_behind_it() {
    on_both_disks(|disk, dir| {
        let (mut log, _) = Log::open(Arc::clone(&disk), dir, small()).unwrap();
        write_synced(&mut log, &entries(1..=5));
        write_synced(&mut log, &[purged(1000)]);
        assert!(matches!(*log.write(&entries(6..=6)).unwrap_err(), LogError::OutOfOrder { .. }));
        write_synced(&mut log, &entries(1001..=1002));
        drop(log);
        assert_eq!(indices(&reopen(&disk, dir)), [1001, 1002]);
    });
}

#[test]
fn a_group_longer_than_a_segment_gets_its_own() {
    on_both_disks(|disk, dir| {
        let (mut log, _) = Log::open(Arc::clone(&disk), dir, small()).unwrap();
        let records = [entry(1, vec![7; 10_000]), entry(2, vec![8; 3]), entry(3, vec![9; 5000])];
        write_synced(&mut log, &records[..2]);
        write_synced(&mut log, &records[2..]);
        drop(log);
        assert_eq!(Model::from(reopen(&disk, dir)), Model::of(&records));
    });
}

#[test]
fn records_out_of_order_are_refused_and_the_log_goes_on() {
    on_both_disks(|disk, dir| {
        let (mut log, _) = Log::open(Arc::clone(&disk), dir, small()).unwrap();
        write_synced(&mut log, &entries(1..=5));
        write_synced(&mut log, &[purged(2)]);
        let wrong = [
            vec![entry(7, "gap")],
            vec![entry(5, "again")],
            vec![entry(6, ""), entry(6, "")],
            vec![Record::TruncateFrom { index: 2 }],
            vec![purged(1)],
            vec![purged(u64::MAX)],
            vec![purged(u64::MAX - 1)],
        ];
        for records in wrong {
            let error = log.write(&records).unwrap_err();
            assert!(matches!(*error, LogError::OutOfOrder { .. }), "{records:?}: {error}");
        }
        let long = Bytes::from(vec![0; super::PAYLOAD_BYTES_MAX + 1]);
        assert!(matches!(*log.write(&[entry(6, long)]).unwrap_err(), LogError::TooLong { .. }));
        write_synced(&mut log, &entries(6..=6));
        drop(log);
        assert_eq!(indices(&reopen(&disk, dir)), [3, 4, 5, 6]);
    });
}

#[test]
fn a_directory_is_opened_once() {
    on_both_disks(|disk, dir| {
        let (log, _) = Log::open(Arc::clone(&disk), dir, small()).unwrap();
        let error = Log::open(Arc::clone(&disk), dir, small()).err().unwrap();
        assert!(matches!(error, LogError::Locked { .. }));
        assert!(error.to_string().contains(dir.to_str().unwrap()));
        drop(log);
        reopen(&disk, dir);
    });
}

#[test]
fn a_failed_sync_is_final() {
    let memory = MemoryDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(memory.clone());
    let dir = Path::new("/log");
    let (mut log, _) = Log::open(Arc::clone(&disk), dir, small()).unwrap();
    write_synced(&mut log, &entries(1..=2));
    log.write(&entries(3..=3)).unwrap();
    memory.fail_next_sync();
    let first = log.sync().unwrap_err();
    assert!(first.is_final());
    assert!(Arc::ptr_eq(&first, &log.sync().unwrap_err()));
    assert!(Arc::ptr_eq(&first, &log.write(&entries(4..=4)).unwrap_err()));
    assert!(Arc::ptr_eq(&first, &log.close().unwrap_err()));

    // The server starts again on the same kernel, which still shows what it could not write. Once recovered, it
    // counts as written: it must be on the disk from then on.
    assert_eq!(indices(&reopen(&disk, dir)), [1, 2, 3]);
    memory.crash(|_| 0);
    assert_eq!(indices(&reopen(&disk, dir)), [1, 2, 3]);
}

#[test]
fn a_full_disk_ends_nothing() {
    let memory = MemoryDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(memory.clone());
    let dir = Path::new("/log");
    let (mut log, _) = Log::open(Arc::clone(&disk), dir, small()).unwrap();
    assert!(log.has_room());
    memory.set_capacity_bytes(Some(3 * 2048));

    let mut next = 1;
    let mut refused_at = None;
    let error = loop {
        match log.write(&entries(next..=next)) {
            Ok(()) => log.sync().unwrap(),
            Err(error) => break error,
        }
        if !log.has_room() {
            refused_at.get_or_insert(next);
        }
        next += 1;
    };
    assert!(matches!(*error, LogError::Full { .. }) && !error.is_final());
    assert!(refused_at.is_some_and(|at| at < next), "has_room turns false before the log is full");
    write_synced(&mut log, &[Record::Vote("fits in what is allocated".into())]);

    memory.set_capacity_bytes(None);
    assert!(log.check_room());
    write_synced(&mut log, &entries(next..=next + 20));
    drop(log);
    assert_eq!(indices(&reopen(&disk, dir)), (1..=next + 20).collect::<Vec<_>>());
}
