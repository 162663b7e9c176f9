//! A log on a damaged disk: what is read back is what was written, up to some point, or an error.
#![no_main]

use std::path::Path;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use meridian_node::log::{Log, LogOptions, Record};
use meridian_seam::disk::Disk;
use meridian_seam::disk::testing::MemoryDisk;

fuzz_target!(|data: &[u8]| {
    let directory = Path::new("/log");
    let disk = MemoryDisk::new();
    let options = LogOptions { segment_bytes: 8 << 10, ..LogOptions::default() };
    let Some((count, data)) = data.split_first() else { return };
    let (mut log, _) = Log::open(Arc::new(disk.clone()), directory, options.clone()).unwrap();
    for (index, payload) in (1..).zip(data.chunks(usize::from(*count) + 1).take(200)) {
        let payload = payload.to_vec().into();
        log.write(&[Record::Entry { index, payload }]).unwrap();
        log.sync().unwrap();
    }
    drop(log);
    // Single bits: where and which comes from the input's end.
    let files: Vec<String> = disk.list(directory).unwrap();
    for place in data.rchunks(4).take(4) {
        let [file, high, low, bit] = place else { continue };
        let Some(name) = files.get(usize::from(*file) % files.len().max(1)) else { continue };
        let offset = u64::from(*high) << 8 | u64::from(*low);
        disk.flip_bit(&directory.join(name), offset, u32::from(*bit) % 8);
    }
    if let Ok((mut log, _)) = Log::open(Arc::new(disk.clone()), directory, options) {
        let _ = log.sync();
    }
    // And bytes that are no log at all.
    let disk = MemoryDisk::new();
    disk.create_dir_all(directory).unwrap();
    let file = disk.create(&directory.join("0000000000000001.log")).unwrap();
    file.write_at(data, 0).unwrap();
    file.sync_data().unwrap();
    let _ = Log::open(Arc::new(disk), directory, LogOptions::default());
});
