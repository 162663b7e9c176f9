//! What a region's log says: entries, commands in them, and clients' requests in those. Two servers that apply
//! the same bytes are in the same state, also if one of them goes on from a snapshot.
#![no_main]

use std::cell::LazyCell;

use libfuzzer_sys::fuzz_target;
use meridian_bridge::mesh::{Mesh, Mode, Subtree};
use meridian_node::txn::snapshot::{read_region, write_region};
use meridian_node::txn::{Batch, Caller, ClientRequest, Command, Effects, Me, State};
use meridian_seam::codec;

const SESSION: i64 = 1 << 56 | 1;
const ME: Me = Me { server: 1, boot: 1 };
/// Numbers that no operation has.
const ENTRY: i8 = 127;
const COMMAND: i8 = 126;

thread_local! {
    static FORMED: LazyCell<State> = const { LazyCell::new(formed) };
}

/// Region 1 of two, with a subtree of each kind and an open session.
fn formed() -> State {
    let mut state = State::new(1);
    let subtrees = vec![
        Subtree { path: "/global".into(), mode: Mode::Global },
        Subtree { path: "/homed".into(), mode: Mode::Homed { home: 1 } },
        Subtree { path: "/away".into(), mode: Mode::Homed { home: 2 } },
    ];
    let mesh = Mesh { regions: vec!["a".into(), "b".into()], subtrees };
    let caller = Caller { server: 1, boot: 1, sequence: 1 };
    let open = Command::OpenSession {
        caller,
        session: SESSION,
        connection: 1,
        timeout_ms: 1_000,
        password: [0; 16],
    };
    for command in [Command::FormMesh { mesh }, open] {
        state.apply(1, &entry_of(&codec::encode(&command).unwrap()), ME, &mut Effects::default());
    }
    state
}

fn entry_of(command: &[u8]) -> Vec<u8> {
    Batch::encode(1_000, &[command.to_vec().into()]).unwrap().to_vec()
}

/// Cuts the input into entries of a log. Each piece is an entry, a command or the body of a request, by its first
/// byte, behind two bytes of length.
fn entries(mut data: &[u8]) -> Vec<Vec<u8>> {
    let mut entries = Vec::new();
    let mut sequence = 1;
    while let [kind, low, high, rest @ ..] = data {
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let (bytes, after) = rest.split_at(length.min(rest.len()));
        data = after;
        entries.push(match kind.cast_signed() {
            ENTRY => bytes.to_vec(),
            COMMAND => entry_of(bytes),
            op => {
                sequence += 1;
                let caller = Caller { server: 1, boot: 1, sequence };
                let (op, identities) = (i32::from(op), &[][..]);
                let request =
                    ClientRequest { caller, session: SESSION, connection: 1, identities, op, body: bytes };
                entry_of(&codec::encode(&Command::Client(request)).unwrap())
            }
        });
    }
    entries
}

fn snapshot(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_region(state, &mut bytes).unwrap();
    bytes
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let entries = entries(data);
    let state = if choice % 2 == 0 { FORMED.with(|formed| State::clone(formed)) } else { State::new(1) };
    let mut states = [state.clone(), state];
    for (index, entry) in entries.iter().enumerate() {
        if index == entries.len() / 2 {
            states[1] = read_region(&mut &snapshot(&states[1])[..]).unwrap();
        }
        let mut effects = [Effects::default(), Effects::default()];
        for (state, effects) in states.iter_mut().zip(&mut effects) {
            state.apply(2, entry, ME, effects);
        }
        let [first, second] = effects;
        assert_eq!(
            (first.events, first.answers, first.outcomes),
            (second.events, second.answers, second.outcomes)
        );
    }
    for subtree in 0..=3 {
        assert_eq!(states[0].tree.digest(subtree), states[1].tree.digest(subtree));
    }
    assert_eq!(states[0].zxid, states[1].zxid);
    assert_eq!(states[0].sessions, states[1].sessions);
});
