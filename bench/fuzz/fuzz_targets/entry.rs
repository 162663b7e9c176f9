//! What a region's log says: entries, commands in them, and clients' requests in those. Two servers that apply
//! the same bytes are in the same state.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meridian_bridge::mesh::{Mesh, Mode, Subtree};
use meridian_node::txn::{Batch, Caller, ClientRequest, Command, Effects, Me, State};
use meridian_seam::codec;

const SESSION: i64 = 1 << 56 | 1;

fn formed() -> State {
    let mut state = State::new(1);
    let subtrees = vec![
        Subtree { path: "/global".into(), mode: Mode::Global },
        Subtree { path: "/homed".into(), mode: Mode::Homed { home: 1 } },
    ];
    let mesh = Mesh { regions: vec!["a".into(), "b".into()], subtrees };
    let caller = Caller { server: 1, boot: 1, sequence: 1 };
    let open = Command::OpenSession { caller, session: SESSION, connection: 1, timeout_ms: 1_000, password: [0; 16] };
    apply(&mut state, &[codec::encode(&Command::FormMesh { mesh }).unwrap(), codec::encode(&open).unwrap()]);
    state
}

fn apply(state: &mut State, commands: &[Vec<u8>]) {
    let commands: Vec<bytes::Bytes> = commands.iter().cloned().map(Into::into).collect();
    let batch = Batch::encode(1_000, &commands).unwrap();
    state.apply(1, &batch, Me { server: 1, boot: 1 }, &mut Effects::default());
}

fuzz_target!(|data: &[u8]| {
    let mut states = [formed(), formed()];
    for state in &mut states {
        state.apply(2, data, Me { server: 1, boot: 1 }, &mut Effects::default());
        apply(state, &[data.to_vec()]);
        // Requests of a client: an operation's number, a length, a body.
        let mut rest = data;
        let mut sequence = 1;
        while let [op, length, body @ ..] = rest {
            let (body, after) = body.split_at(usize::from(*length).min(body.len()));
            rest = after;
            sequence += 1;
            let caller = Caller { server: 1, boot: 1, sequence };
            let (op, identities) = (i32::from(*op), &[][..]);
            let request = ClientRequest { caller, session: SESSION, connection: 1, identities, op, body };
            apply(state, &[codec::encode(&Command::Client(request)).unwrap()]);
        }
    }
    for subtree in 0..=2 {
        assert_eq!(states[0].tree.digest(subtree), states[1].tree.digest(subtree));
    }
    assert_eq!(states[0].zxid, states[1].zxid);
});
