//! Snapshots of a region and of a subtree: damaged ones are refused, whole ones are read as they were written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meridian_node::txn::snapshot::{SubtreeSnapshot, read_region, write_region};

fuzz_target!(|data: &[u8]| {
    if let Ok(state) = read_region(&mut &data[..]) {
        let mut bytes = Vec::new();
        write_region(&state, &mut bytes).unwrap();
        let again = read_region(&mut &bytes[..]).unwrap();
        assert_eq!(again.tree.digest(0), state.tree.digest(0));
    }
    let pieces: Vec<bytes::Bytes> = data.chunks(64).map(|piece| piece.to_vec().into()).collect();
    let _ = SubtreeSnapshot::read(&pieces);
});
