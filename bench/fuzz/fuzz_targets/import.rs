//! Another system's files: a snapshot, or a log behind a valid beginning.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let (name, magic) = if kind % 2 == 0 { ("snapshot.1", b"ZKSN") } else { ("log.1", b"ZKLG") };
    let mut bytes = magic.to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
    if kind % 4 < 2 {
        bytes.clear();
    }
    bytes.extend_from_slice(data);
    std::fs::write(directory.path().join(name), bytes).unwrap();
    let _ = meridian_node::import::files::read(directory.path(), directory.path());
});
