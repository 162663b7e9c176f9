//! Damaged, torn and missing files.

use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

use meridian_seam::disk::Disk;
use meridian_seam::disk::testing::MemoryDisk;

use proptest::prelude::*;

use super::{
    Model, Record, entries, entry, indices, on_both_disks, purged, reopen, segment_files, small, write_synced,
};
use crate::log::record::{Header, Place};
use crate::log::{Log, LogError};

const DIR: &str = "/log";

/// A log of a few segments that was closed.
fn closed_log() -> (MemoryDisk, Arc<dyn Disk>, Model) {
    let memory = MemoryDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(memory.clone());
    let mut records = vec![Record::Vote("vote".into())];
    records.extend(entries(1..=20));
    records.extend([purged(3), Record::TruncateFrom { index: 18 }, entry(18, "odd length")]);
    for record in entries(19..=32) {
        // So that some segments end in what is not counted.
        records.extend([record, Record::Vote("vote".into()), Record::Vote("another vote".into())]);
    }
    let (mut log, _) = Log::open(Arc::clone(&disk), Path::new(DIR), small()).unwrap();
    for group in records.chunks(2) {
        write_synced(&mut log, group);
    }
    log.close().unwrap();
    (memory, disk, Model::of(&records))
}

#[test]
fn no_flipped_bit_loses_a_record_silently() {
    let (memory, disk, expected) = closed_log();
    let files = segment_files(&*disk, Path::new(DIR));
    assert!(files.len() >= 3);
    let mut damage_found = 0;
    for file in &files {
        for offset in 0..memory.read(file).unwrap().len() as u64 {
            let bit = (offset % 8) as u32;
            assert!(memory.flip_bit(file, offset, bit));
            match Log::open(Arc::clone(&disk), Path::new(DIR), small()) {
                // Padding, unused space, and the closing record itself; which the opening repairs.
                Ok((_, recovered)) => {
                    assert_eq!(Model::from(recovered), expected, "{} {offset}", file.display())
                }
                Err(LogError::Corrupt { file: named, .. } | LogError::Version { file: named, .. }) => {
                    assert_eq!(&named, file, "at {offset}");
                    assert!(memory.flip_bit(file, offset, bit));
                    damage_found += 1;
                }
                Err(error) => panic!("{error}"),
            }
            if memory.read(file).is_none() {
                panic!("{} was removed after a flip at {offset}", file.display());
            }
        }
    }
    assert!(damage_found > 4000, "{damage_found}");
}

#[test]
fn a_record_is_valid_only_in_its_place() {
    let (record, mut bytes) = (entry(1, "payload"), Vec::new());
    record.encode(Place { sequence: 5, offset: 64, durable: 64 }, &mut bytes);
    let bytes = Bytes::from(bytes);
    let (read, len_bytes) = Header::decode(&bytes, 5, 64).unwrap().record(&bytes).unwrap();
    assert_eq!((read, len_bytes), (record, bytes.len()));
    assert!(Header::decode(&bytes, 6, 64).is_none(), "in another segment");
    assert!(Header::decode(&bytes, 5, 56).is_none(), "at another offset");
    assert!(Header::decode(&bytes[..16], 5, 64).is_none(), "cut off");
}

proptest! {
    /// Whatever lies in the files, opening ends with a log or an error, and what it accepts can be continued.
    #[test]
    fn any_bytes_are_opened_or_refused(
        damage in prop::collection::vec((0..8_usize, 0..2048_u64, prop::collection::vec(any::<u8>(), 1..64)), 1..6),
        removed in prop::option::weighted(0.2, 0..8_usize),
    ) {
        let (_, disk, _) = closed_log();
        let files = segment_files(&*disk, Path::new(DIR));
        for (file, offset, bytes) in damage {
            disk.open(&files[file % files.len()]).unwrap().write_at(&bytes, offset).unwrap();
        }
        if let Some(file) = removed {
            disk.remove(&files[file % files.len()]).unwrap();
        }
        if let Ok((log, recovered)) = Log::open(Arc::clone(&disk), Path::new(DIR), small()) {
            drop(log);
            prop_assert_eq!(Model::from(reopen(&disk, Path::new(DIR))), Model::from(recovered));
        }
    }
}

#[test]
fn damage_is_reported_with_what_to_do() {
    let (memory, disk, _) = closed_log();
    let file = &segment_files(&*disk, Path::new(DIR))[1];
    memory.flip_bit(file, 100, 0);
    let message = Log::open(disk, Path::new(DIR), small()).err().unwrap().to_string();
    assert!(message.contains(file.to_str().unwrap()), "{message}");
    assert!(message.contains("Restore it from the other members"), "{message}");
}

#[test]
fn damage_at_the_end_of_a_complete_segment_is_found() {
    let memory = MemoryDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(memory.clone());
    let (mut log, _) = Log::open(Arc::clone(&disk), Path::new(DIR), small()).unwrap();
    write_synced(&mut log, &entries(1..=5));
    // Without these two the log would look whole, with an entry that was replaced.
    let replacement = [Record::TruncateFrom { index: 5 }, entry(5, "replacement")];
    let start = 48 + 5 * entry(1, vec![0; 100]).encoded_len_bytes();
    write_synced(&mut log, &replacement);
    write_synced(&mut log, &[entry(6, vec![0; 1900])]);
    drop(log);
    let files = segment_files(&*disk, Path::new(DIR));
    assert_eq!(files.len(), 2);
    memory.flip_bit(&files[0], start, 0);
    let error = Log::open(disk, Path::new(DIR), small()).err().unwrap();
    assert!(matches!(error, LogError::Corrupt { file, offset, .. } if file == files[0] && offset == start));
}

#[test]
fn a_missing_segment_is_damage() {
    let (memory, disk, _) = closed_log();
    let files = segment_files(&*disk, Path::new(DIR));
    for missing in &files[..files.len() - 1] {
        let content = memory.read(missing).unwrap();
        disk.remove(missing).unwrap();
        let error = Log::open(Arc::clone(&disk), Path::new(DIR), small()).err();
        assert!(matches!(error, Some(LogError::Corrupt { .. })), "without {}: {error:?}", missing.display());
        disk.create(missing).unwrap().write_at(&content, 0).unwrap();
    }
    reopen(&disk, Path::new(DIR));
}

#[test]
fn a_segment_under_another_name_is_damage() {
    let (memory, disk, _) = closed_log();
    let files = segment_files(&*disk, Path::new(DIR));
    let content = memory.read(&files[0]).unwrap();
    disk.open(&files[1]).unwrap().write_at(&content, 0).unwrap();
    let error = Log::open(disk, Path::new(DIR), small()).err().unwrap();
    assert!(matches!(error, LogError::Corrupt { file, .. } if file == files[1]));
}

#[test]
fn a_torn_tail_is_cut_and_never_returns() {
    on_both_disks(|disk, dir| {
        let (mut log, _) = Log::open(Arc::clone(&disk), dir, small()).unwrap();
        write_synced(&mut log, &entries(1..=2));
        log.write(&entries(3..=5)).unwrap();
        drop(log);
        // Of three records written at once, the middle one did not reach the disk.
        let path = segment_files(&*disk, dir)[0].clone();
        let record_bytes = entry(1, vec![0; 100]).encoded_len_bytes();
        disk.open(&path).unwrap().write_at(&[0; 50], 48 + 3 * record_bytes + 20).unwrap();

        let (mut log, recovered) = Log::open(Arc::clone(&disk), dir, small()).unwrap();
        assert_eq!(indices(&recovered), [1, 2, 3]);
        assert!(recovered.torn_bytes > record_bytes, "{}", recovered.torn_bytes);
        // A new fourth record of the same length leads exactly to where the old fifth one was.
        write_synced(&mut log, &entries(4..=4));
        drop(log);
        assert_eq!(indices(&reopen(&disk, dir)), [1, 2, 3, 4]);
    });
}

#[test]
fn a_segment_that_was_never_started_is_no_damage() {
    for content in [vec![], vec![0; 2048], vec![0xA5; 20]] {
        on_both_disks(|disk, dir| {
            let (mut log, _) = Log::open(Arc::clone(&disk), dir, small()).unwrap();
            write_synced(&mut log, &entries(1..=3));
            drop(log);
            let last = dir.join("0000000000000002.log");
            disk.create(&last).unwrap().write_at(&content, 0).unwrap();
            assert_eq!(indices(&reopen(&disk, dir)), [1, 2, 3]);
        });
    }
}

#[test]
fn an_empty_first_segment_is_a_new_log() {
    on_both_disks(|disk, dir| {
        disk.create_dir_all(dir).unwrap();
        disk.create(&dir.join("0000000000000001.log")).unwrap();
        let (mut log, recovered) = Log::open(Arc::clone(&disk), dir, small()).unwrap();
        assert_eq!(indices(&recovered), [0; 0]);
        write_synced(&mut log, &entries(1..=1));
        drop(log);
        assert_eq!(indices(&reopen(&disk, dir)), [1]);
    });
}
