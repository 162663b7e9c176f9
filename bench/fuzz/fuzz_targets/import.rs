//! Another system's files: a snapshot, a log, or both; of the log also the transactions alone, so that their
//! checksums are in nobody's way. What is found can be put into a region.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use meridian_node::import::files;
use meridian_node::txn::import::Import;
use meridian_node::txn::{Batch, Command, Effects, Me, State};
use meridian_seam::codec;

/// Version 2, database 0.
const AFTER_MAGIC: [u8; 12] = [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0];

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let write =
        |name: &str, parts: &[&[u8]]| std::fs::write(directory.path().join(name), parts.concat()).unwrap();
    match kind % 5 {
        0 => write("snapshot.1", &[data]),
        1 => write("log.1", &[data]),
        2 => write("snapshot.1", &[b"ZKSN", &AFTER_MAGIC, data]),
        3 => write("log.1", &[b"ZKLG", &AFTER_MAGIC, &transactions(data)]),
        _ => {
            let (snapshot, log) = data.split_at(data.len() / 2);
            write("snapshot.1", &[b"ZKSN", &AFTER_MAGIC, snapshot]);
            write("log.1", &[b"ZKLG", &AFTER_MAGIC, &transactions(log)]);
        }
    }
    take(directory.path());
});

/// Cuts the input into transactions, each behind two bytes of length, and seals them.
fn transactions(mut data: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::new();
    while let [high, low, rest @ ..] = data {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (record, after) = rest.split_at(length.min(rest.len()));
        data = after;
        sealed.extend_from_slice(&i64::from(adler2::adler32_slice(record)).to_be_bytes());
        sealed.extend_from_slice(&(record.len() as u32).to_be_bytes());
        sealed.extend_from_slice(record);
        sealed.push(0x42);
    }
    sealed
}

fn take(directory: &Path) {
    let Ok(found) = files::read(directory, directory) else { return };
    let import = Import { zxid: found.zxid, znodes: found.znodes.into_values().collect() };
    let command = codec::encode(&Command::Import(import)).unwrap();
    let entry = Batch::encode(1_000, &[command.into()]).unwrap();
    State::new(1).apply(1, &entry, Me { server: 1, boot: 1 }, &mut Effects::default());
}
