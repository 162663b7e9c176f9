//! A log on a damaged disk: what is read back is what was written, up to some point, or an error. And segments
//! that somebody else wrote, whose checksums are right.
#![no_main]

use std::path::Path;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use meridian_node::log::{Log, LogOptions, Record};
use meridian_seam::disk::Disk;
use meridian_seam::disk::testing::MemoryDisk;

const DIRECTORY: &str = "/log";

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    match choice % 3 {
        0 => damaged(data),
        1 => forged(data),
        _ => open_twice(&disk_with([data.to_vec()])),
    }
});

fn options() -> LogOptions {
    LogOptions { segment_bytes: 4 << 10, ..LogOptions::default() }
}

/// Written by a log, then single bits flipped: where and which comes from the input's end.
fn damaged(data: &[u8]) {
    let Some((count, data)) = data.split_first() else { return };
    let disk = disk_with([]);
    let (mut log, _) = Log::open(Arc::new(disk.clone()), Path::new(DIRECTORY), options()).unwrap();
    let payloads: Vec<&[u8]> = data.chunks(usize::from(*count) + 1).take(200).collect();
    for (index, payload) in (1..).zip(&payloads) {
        log.write(&[Record::Entry { index, payload: payload.to_vec().into() }]).unwrap();
        log.sync().unwrap();
    }
    drop(log);
    let files: Vec<String> = disk.list(Path::new(DIRECTORY)).unwrap();
    for place in data.rchunks(4).take(4) {
        let [file, high, low, bit] = place else { continue };
        let Some(name) = files.get(usize::from(*file) % files.len().max(1)) else { continue };
        let offset = u64::from(u16::from_be_bytes([*high, *low])) % options().segment_bytes;
        disk.flip_bit(&Path::new(DIRECTORY).join(name), offset, u32::from(*bit) % 8);
    }
    if let Ok((_, recovered)) = Log::open(Arc::new(disk), Path::new(DIRECTORY), options()) {
        assert!(recovered.entries.len() <= payloads.len());
        for ((index, payload), (expected, written)) in recovered.entries.iter().zip((1..).zip(payloads)) {
            assert_eq!((*index, &payload[..]), (expected, written));
        }
    }
}

/// Up to three segments of records as the input wants them.
fn forged(data: &[u8]) {
    let mut segments: Vec<Vec<u8>> = Vec::new();
    let mut rest = data;
    while let Some((piece, after)) = rest.split_first_chunk::<8>() {
        rest = after;
        let [kind, index @ .., durable, length] = *piece;
        let index = u64::from(u32::from_le_bytes([index[0], index[1], index[2], index[3]]));
        // The last of the indices are as interesting as the first.
        let index = if index >> 31 == 0 { index } else { u64::MAX - (index & 0x7fff_ffff) };
        let count = segments.len();
        let sequence = count as u64;
        match segments.last_mut() {
            Some(segment) if kind < 0xf0 => {
                let (payload, after) = rest.split_at(usize::from(length).min(rest.len()));
                rest = after;
                put_record(segment, sequence, kind.into(), index, u64::from(durable) * 8, payload);
            }
            _ if count == 3 => break,
            last => {
                let previous_end = last.map_or(0, |segment| segment.len() as u64);
                let first = if length == 0 { u64::MAX } else { u64::from(length) };
                segments.push(segment_header(sequence + 1, previous_end, first, index));
            }
        }
    }
    open_twice(&disk_with(segments));
}

fn segment_header(sequence: u64, previous_end: u64, first: u64, next: u64) -> Vec<u8> {
    let mut header = b"MRDNLOG\0\x01\0\0\0\0\0\0\0".to_vec();
    for field in [sequence, previous_end, first, next] {
        header.extend_from_slice(&field.to_le_bytes());
    }
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..]);
    header[12..16].copy_from_slice(&checksum.to_le_bytes());
    header
}

fn put_record(segment: &mut Vec<u8>, sequence: u64, kind: u32, index: u64, durable: u64, payload: &[u8]) {
    let offset = segment.len() as u64;
    let mut fields = (payload.len() as u32).to_le_bytes().to_vec();
    fields.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    fields.extend_from_slice(&kind.to_le_bytes());
    fields.extend_from_slice(&index.to_le_bytes());
    fields.extend_from_slice(&durable.to_le_bytes());
    let mut covered = fields.clone();
    covered.extend_from_slice(&sequence.to_le_bytes());
    covered.extend_from_slice(&offset.to_le_bytes());
    segment.extend_from_slice(&crc32c::crc32c(&covered).to_le_bytes());
    segment.extend_from_slice(&fields);
    segment.extend_from_slice(payload);
    segment.resize(segment.len().next_multiple_of(8), 0);
}

fn disk_with(segments: impl IntoIterator<Item = Vec<u8>>) -> MemoryDisk {
    let disk = MemoryDisk::new();
    disk.create_dir_all(Path::new(DIRECTORY)).unwrap();
    for (number, bytes) in (1..).zip(segments) {
        let file = disk.create(&Path::new(DIRECTORY).join(format!("{number:016}.log"))).unwrap();
        file.write_at(&bytes, 0).unwrap();
        file.sync_data().unwrap();
    }
    disk
}

/// What is recovered once is recovered again, and can be continued.
fn open_twice(disk: &MemoryDisk) {
    let open = || Log::open(Arc::new(disk.clone()), Path::new(DIRECTORY), options());
    let Ok((log, mut first)) = open() else { return };
    drop(log);
    let (mut log, second) = open().unwrap();
    first.torn_bytes = 0;
    assert_eq!(first, second);
    let (last, purged) =
        (second.entries.last().map(|(last, _)| *last), second.purged.map(|(purged, _)| purged));
    let Some(index) = last.max(purged).unwrap_or(0).checked_add(1) else { return };
    let payload = b"continued".as_slice().into();
    if log.write(&[Record::Entry { index, payload }]).is_ok() {
        log.close().unwrap();
        let (_, third) = open().unwrap();
        assert_eq!(third.entries.len(), second.entries.len() + 1);
    }
}
