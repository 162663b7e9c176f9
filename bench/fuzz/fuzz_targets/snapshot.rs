//! Snapshots of a region and of a subtree: damaged ones are refused, whole ones are read as they were written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meridian_node::txn::State;
use meridian_node::txn::snapshot::{SubtreeSnapshot, read_region, write_region};

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    if choice % 2 == 0 {
        if let Ok(state) = read_region(&mut &data[..]) {
            written_again(&state);
        }
    } else {
        let _ = SubtreeSnapshot::read(&pieces(data));
    }
});

fn written_again(state: &State) {
    let mut bytes = Vec::new();
    write_region(state, &mut bytes).unwrap();
    let again = read_region(&mut &bytes[..]).unwrap();
    let subtrees = std::iter::once(0).chain(state.mesh.subtrees().map(|(subtree, _)| subtree));
    for subtree in subtrees {
        assert_eq!(again.tree.digest(subtree), state.tree.digest(subtree));
    }
    assert_eq!((again.zxid, again.term, again.time_ms), (state.zxid, state.term, state.time_ms));
    assert_eq!(again.sessions, state.sessions);
    assert_eq!(again.cursors, state.cursors);
    assert_eq!(again.federation.orders, state.federation.orders);
}

/// Cuts the input into pieces, each behind four bytes of length.
fn pieces(mut data: &[u8]) -> Vec<bytes::Bytes> {
    let mut pieces = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (piece, after) = rest.split_at(length.min(rest.len()));
        data = after;
        pieces.push(piece.to_vec().into());
    }
    pieces
}
