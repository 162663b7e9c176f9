use super::*;

fn all(model: &Model) -> Vec<(u64, Bytes)> {
    model.entries.iter().cloned().collect()
}

#[test]
fn entries_are_read_while_the_log_is_written_and_after_it_was_reopened() {
    on_both_disks(|disk, dir| {
        let mut records = entries(7..=40);
        records.extend([Record::Vote("v".into()), Record::TruncateFrom { index: 30 }]);
        records.extend(entries(30..=33).into_iter().chain([purged(12), Record::Committed("c".into())]));
        records.extend(entries(34..=60).into_iter().chain([purged(80)]));
        records.extend(entries(81..=90));
        let (mut model, mut checked) = (Model::default(), 0);
        for group in records.chunks(6) {
            let (mut log, _) = Log::open(Arc::clone(&disk), dir, small()).unwrap();
            let reader = log.reader();
            write_synced(&mut log, group);
            group.iter().for_each(|record| model.apply(record));
            let Some(((first, _), (last, _))) = model.entries.front().zip(model.entries.back()) else {
                continue;
            };
            assert_eq!(reader.read(*first..=*last).unwrap(), Some(all(&model)));
            assert_eq!(
                reader.read(*last..=*last).unwrap(),
                Some(vec![model.entries.back().unwrap().clone()])
            );
            assert_eq!(reader.read(*first..=*last + 1).unwrap(), None, "not there yet");
            assert_eq!(reader.read(first - 1..=*last).unwrap(), None, "not there any more");
            checked += 1;
        }
        assert!(checked > 5);
    });
}

#[test]
fn a_reader_goes_on_reading_what_is_left_while_segments_are_removed() {
    on_both_disks(|disk, dir| {
        let (mut log, _) = Log::open(Arc::clone(&disk), dir, small()).unwrap();
        let reader = log.reader();
        entries(1..=60).chunks(5).for_each(|group| write_synced(&mut log, group));
        let before = segment_files(&*disk, dir).len();
        write_synced(&mut log, &[purged(40)]);
        assert!(segment_files(&*disk, dir).len() < before);
        assert_eq!(reader.read(40..=60).unwrap(), None);
        assert_eq!(reader.read(41..=60).unwrap().unwrap().len(), 20);
    });
}

#[test]
fn what_the_disk_does_not_return_as_it_was_written_is_an_error_that_names_the_file() {
    let memory = Arc::new(MemoryDisk::new());
    let (disk, dir): (Arc<dyn Disk>, _) = (memory.clone(), Path::new("/log"));
    let (mut log, _) = Log::open(Arc::clone(&disk), dir, small()).unwrap();
    let reader = log.reader();
    write_synced(&mut log, &entries(1..=5));
    let file = segment_files(&*disk, dir).remove(0);
    assert!(memory.flip_bit(&file, segment::SegmentHeader::BYTES + 60, 3));
    match reader.read(1..=5) {
        Err(LogError::Corrupt { file: named, .. }) => assert_eq!(named, file),
        other => panic!("{other:?}"),
    }
    assert_eq!(reader.read(2..=5).unwrap().unwrap().len(), 4, "the others are as they were");
}
