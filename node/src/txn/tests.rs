//! A mesh of region states without a network: the test itself carries requests from outboxes to orderers
//! and orders back to regions, and can repeat, lose and delay them.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use meridian_bridge::mesh::{Mesh, Mode, Orderer, Subtree};
use meridian_bridge::state::{
    self as federation, GlobalChange, GlobalCommand, GlobalEntry, GlobalLogId, GlobalPayload, Outcome,
};
use meridian_seam::codec;
use meridian_wire::{Acl, Create, CreateMode, ErrorCode, EventType, OpCode, Request};

use super::restore::{self, Restore};
use super::{
    Answer, Batch, Caller, ClientRequest, Command, Effects, Me, MultiResult, Policy, Reply, State, import,
    reap, snapshot,
};

const EPHEMERAL: i32 = 1;
const SEQUENTIAL: i32 = 2;

/// One region with one server and one session.
struct Region {
    state: State,
    me: Me,
    sequence: u64,
    session: i64,
    effects: Effects,
}

fn mesh() -> Mesh {
    Mesh {
        regions: vec!["a".into(), "b".into(), "c".into()],
        subtrees: vec![
            Subtree { path: "/global".into(), mode: Mode::Global },
            Subtree { path: "/shared".into(), mode: Mode::Homed { home: 1 } },
        ],
    }
}

impl Region {
    fn new(number: u8) -> Self {
        let mut region = Self::unformed(number);
        region.apply(&Command::FormMesh { mesh: mesh() });
        region
    }

    fn unformed(number: u8) -> Self {
        let me = Me { server: 1, boot: 1 };
        let session = i64::from(number) << 56 | 5;
        let mut region =
            Self { state: State::new(number), me, sequence: 0, session, effects: Effects::default() };
        let caller = region.caller();
        let password = [1; 16];
        region.apply(&Command::OpenSession { caller, session, connection: 1, timeout_ms: 9_000, password });
        region
    }

    fn caller(&mut self) -> Caller {
        self.sequence += 1;
        Caller { server: 1, boot: 1, sequence: self.sequence }
    }

    fn apply(&mut self, command: &Command<'_>) {
        let bytes = codec::encode(command).unwrap().into();
        let batch = Batch::encode(1_000, &[bytes]).unwrap();
        self.state.apply(1, &batch, self.me, &mut self.effects);
    }

    fn federation(&mut self, command: federation::Command) -> Outcome {
        self.apply(&Command::Bridge(command));
        self.effects.outcomes.pop().unwrap()
    }

    fn send(&mut self, request: &Request<'_>) {
        let caller = self.caller();
        self.send_as(caller, request);
    }

    fn send_as(&mut self, caller: Caller, request: &Request<'_>) {
        let mut body = BytesMut::new();
        request.encode(&mut body);
        let session = self.session;
        let op = request.op() as i32;
        self.apply(&Command::Client(ClientRequest {
            caller,
            session,
            connection: 1,
            identities: &[],
            op,
            body: &body,
        }));
    }

    fn create(&mut self, path: &str, flags: i32) {
        self.send(&Request::Create(Create { path, data: Some(b"x"), acl: vec![Acl::OPEN], flags }));
    }

    /// The answers since the last call.
    fn answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.effects.answers)
    }

    fn errors(&mut self) -> Vec<ErrorCode> {
        self.answers().into_iter().map(|a| a.outcome.error).collect()
    }

    fn has(&self, path: &str) -> bool {
        self.state.tree.get(path).is_some()
    }

    fn outbox(&self, orderer: Orderer) -> Vec<(u64, Bytes)> {
        let outbox = self.state.federation.outboxes.get(&orderer);
        let requests = outbox.into_iter().flat_map(|o| o.requests.iter());
        requests.map(|(number, pending)| (*number, pending.request.clone())).collect()
    }

    fn forward(&self) -> Option<GlobalCommand> {
        let waiting = self.outbox(Orderer::Global);
        let first = waiting.first()?.0;
        let requests = waiting.into_iter().map(|(_, request)| request).collect();
        Some(GlobalCommand::Forward { region: self.state.region, first, time_ms: 2_000, requests })
    }
}

/// The log of the global group, as agreed on.
#[derive(Default)]
struct GlobalLog(Vec<GlobalEntry>);

impl GlobalLog {
    fn agree(&mut self, command: &GlobalCommand) {
        let id = GlobalLogId { term: 3, index: self.0.len() as u64 };
        let payload = GlobalPayload::Command(codec::encode(command).unwrap().into());
        self.0.push(GlobalEntry { id, payload });
    }

    /// Lets a region store and apply everything.
    fn teach(&self, region: &mut Region) {
        let incarnation = region.state.federation.incarnation;
        let known = region.state.federation.global.last().map_or(0, |id| id.index + 1);
        let missing = self.0[known as usize..].to_vec();
        let change = |change| federation::Command::Global { incarnation, change };
        assert_eq!(region.federation(change(GlobalChange::Append(missing))), Outcome::Applied);
        let upto = self.0.len() as u64 - 1;
        assert_eq!(region.federation(change(GlobalChange::Commit(upto))), Outcome::Applied);
    }
}

fn regions() -> [Region; 3] {
    [Region::new(1), Region::new(2), Region::new(3)]
}

fn assert_equal(regions: &[Region], subtree: u16) {
    let digest = regions[0].state.tree.digest(subtree);
    for region in regions {
        assert_eq!(region.state.tree.digest(subtree), digest, "region {}", region.state.region);
    }
}

#[test]
fn a_global_write_is_answered_once_it_comes_back_in_order() {
    let [mut a, mut b, mut c] = regions();
    a.answers();
    a.create("/global/n-", SEQUENTIAL);
    b.create("/global/n-", SEQUENTIAL);
    assert!(a.answers().is_empty() && !a.has("/global/n-0000000000"));
    let mut log = GlobalLog::default();
    log.agree(&b.forward().unwrap());
    log.agree(&a.forward().unwrap());
    for region in [&mut a, &mut b, &mut c] {
        log.teach(region);
    }
    let answers = a.answers();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].outcome.reply, Reply::Path("/global/n-0000000001".into()));
    assert!(a.outbox(Orderer::Global).is_empty());
    let stat = c.state.tree.get("/global/n-0000000001").unwrap().stat();
    assert_eq!(stat.czxid, 3 << 32 | 2, "the subtree's own zxid: epoch of the group and counter");
    assert_equal(&[a, b, c], 1);
}

#[test]
fn repeated_and_overtaking_forwards_take_effect_exactly_once() {
    let [mut a, mut b, _] = regions();
    a.create("/global/one", 0);
    let early = a.forward().unwrap();
    a.create("/global/two", 0);
    let both = a.forward().unwrap();
    let late = match both.clone() {
        GlobalCommand::Forward { region, time_ms, requests, .. } => {
            GlobalCommand::Forward { region, first: 2, time_ms, requests: requests[1..].to_vec() }
        }
        other => other,
    };
    let mut log = GlobalLog::default();
    for command in [&late, &early, &both, &both, &early] {
        log.agree(command);
    }
    a.answers();
    log.teach(&mut a);
    log.teach(&mut b);
    // The one that overtook is dropped; what comes again is taken once.
    assert_eq!(a.errors(), [ErrorCode::Ok, ErrorCode::Ok]);
    assert_eq!(b.state.federation.orders[&Orderer::Global].position, 2);
    assert_equal(&[a, b], 1);
}

#[test]
fn requests_of_a_server_take_effect_exactly_once_and_in_order() {
    let mut a = Region::new(1);
    a.answers();
    let (first, second) = (a.caller(), a.caller());
    let set = Request::SetData { path: "/n", data: None, version: -1 };
    let create = Request::Create(Create { path: "/n", data: None, acl: vec![Acl::OPEN], flags: 0 });
    a.send_as(second, &set);
    assert!(a.answers().is_empty(), "a gap is not taken");
    for _ in 0..2 {
        a.send_as(first, &create);
        a.send_as(second, &set);
    }
    assert_eq!(a.errors(), [ErrorCode::Ok, ErrorCode::Ok]);
    assert_eq!(a.state.tree.get("/n").unwrap().times.version, 1);
    // A later start of the server begins anew, and an earlier one is forgotten.
    a.send_as(Caller { server: 1, boot: 2, sequence: 1 }, &set);
    a.send_as(Caller { server: 1, boot: 1, sequence: 4 }, &set);
    assert_eq!(a.state.tree.get("/n").unwrap().times.version, 1, "the session belongs to the old start");
    assert_eq!(a.state.cursors[&1], (2, 1));
}

#[test]
fn a_homed_write_is_ordered_at_home_and_mirrored() {
    let [mut a, mut b, mut c] = regions();
    a.answers();
    a.create("/shared/home", 0);
    assert_eq!(a.errors(), [ErrorCode::Ok], "the home answers at once");
    b.create("/shared/away", 0);
    let orderer = Orderer::Home(2);
    let requests: Vec<Bytes> = b.outbox(orderer).into_iter().map(|(_, r)| r).collect();
    let forward = federation::Command::Forward { subtree: 2, region: 2, first: 1, requests };
    for _ in 0..2 {
        assert_eq!(a.federation(forward.clone()), Outcome::Applied);
    }
    assert_eq!(c.federation(forward), Outcome::Refused, "only the home orders");
    let records = a.state.federation.mirrors[&2].from(1, usize::MAX).unwrap();
    assert_eq!(records.len(), 2);
    let mirror = |records: &[Bytes]| federation::Command::Mirror { subtree: 2, records: records.to_vec() };
    assert_eq!(b.federation(mirror(&records[1..])), Outcome::Gap);
    b.answers();
    for region in [&mut b, &mut c] {
        for _ in 0..2 {
            assert_eq!(region.federation(mirror(&records)), Outcome::Applied);
        }
        assert_eq!(region.federation(mirror(&[])), Outcome::Applied, "an empty source deletes nothing");
        assert!(region.has("/shared/home") && region.has("/shared/away"));
    }
    assert_eq!(b.errors(), [ErrorCode::Ok]);
    assert_equal(&[a, b, c], 2);
}

#[test]
fn a_region_that_loses_its_lease_loses_its_ephemerals_and_sessions() {
    let [mut a, mut b, mut c] = regions();
    let mut log = GlobalLog::default();
    c.create("/global/holder", EPHEMERAL);
    log.agree(&c.forward().unwrap());
    for region in [&mut a, &mut b, &mut c] {
        log.teach(region);
    }
    assert!(c.state.owns_ephemerals_elsewhere(c.session));
    // The region is cut off: its own side ends first.
    c.create("/global/too-late", EPHEMERAL);
    let too_late = c.forward().unwrap();
    assert_eq!(c.federation(federation::Command::LapseLease { lease_epoch: 0 }), Outcome::Applied);
    assert!(!c.state.sessions.contains_key(&c.session));
    assert_eq!(c.effects.closed.len(), 1);
    log.agree(&GlobalCommand::ExpireRegion { region: 3, lease_epoch: 0, time_ms: 0 });
    log.agree(&GlobalCommand::ExpireRegion { region: 3, lease_epoch: 0, time_ms: 0 });
    for region in [&mut a, &mut b] {
        log.teach(region);
        assert!(!region.has("/global/holder"));
        let deleted = region.effects.events.iter().filter(|e| e.kind == EventType::NodeDeleted);
        assert_eq!(deleted.count(), 1);
    }
    // It comes back: what it had asked for before it knew has no effect any more.
    log.agree(&too_late);
    log.agree(&c.forward().unwrap());
    for region in [&mut a, &mut b, &mut c] {
        log.teach(region);
        assert!(!region.has("/global/too-late") && !region.has("/global/holder"));
    }
    assert_eq!(c.federation(federation::Command::LapseLease { lease_epoch: 0 }), Outcome::Refused);
    assert_equal(&[a, b, c], 1);
}

/// Everything that a home has ordered.
fn mirror(home: &Region, region: &mut Region) {
    let records = home.state.federation.mirrors[&2].from(1, usize::MAX).unwrap();
    assert_eq!(region.federation(federation::Command::Mirror { subtree: 2, records }), Outcome::Applied);
}

/// Hands a region the content of an order as another one has it.
fn install(from: &Region, to: &mut Region, orderer: Orderer) {
    let pieces = snapshot::SubtreeSnapshot::write(&from.state, orderer).unwrap();
    for (piece, bytes) in (0..).zip(pieces) {
        to.federation(federation::Command::Stage { orderer, transfer: 9, piece, bytes });
    }
    to.federation(federation::Command::Install { orderer, transfer: 9, global: None });
}

/// In region `c`: a znode of a session of its own, homed in `a`.
fn hold_at_home(a: &mut Region, c: &mut Region) {
    c.create("/shared/holder", EPHEMERAL);
    let requests: Vec<Bytes> = c.outbox(Orderer::Home(2)).into_iter().map(|(_, r)| r).collect();
    a.federation(federation::Command::Forward { subtree: 2, region: c.state.region, first: 1, requests });
    mirror(a, c);
    assert!(c.has("/shared/holder") && c.state.sessions.contains_key(&c.session));
}

#[test]
fn a_lost_lease_ends_holders_of_what_is_homed_elsewhere_before_their_mirror_says_so() {
    let [mut a, _, mut c] = regions();
    hold_at_home(&mut a, &mut c);
    let mut log = GlobalLog::default();
    log.agree(&GlobalCommand::ExpireRegion { region: 3, lease_epoch: 0, time_ms: 0 });
    log.teach(&mut a);
    assert!(!a.has("/shared/holder"), "free for others");
    log.teach(&mut c);
    assert!(c.has("/shared/holder"), "the mirror lags");
    assert!(!c.state.sessions.contains_key(&c.session));
}

#[test]
fn what_a_home_orders_as_its_own_sessions_end_comes_after_what_it_has_ordered_before() {
    let [mut a, mut b, mut c] = regions();
    a.create("/global/mine", EPHEMERAL);
    let mut log = GlobalLog::default();
    log.agree(&a.forward().unwrap());
    log.teach(&mut a);
    a.create("/shared/mine", EPHEMERAL);
    hold_at_home(&mut a, &mut b);
    for region in [1, 2] {
        log.agree(&GlobalCommand::ExpireRegion { region, lease_epoch: 0, time_ms: 0 });
    }
    log.teach(&mut a);
    assert!(!a.has("/shared/mine") && !a.has("/shared/holder"));
    mirror(&a, &mut c);
    assert_equal(&[a, c], 2);
}

#[test]
fn a_lost_lease_ends_holders_however_their_region_learns_of_it() {
    let [mut a, mut b, mut c] = regions();
    hold_at_home(&mut a, &mut c);
    b.state = c.state.clone();
    (b.state.region, b.session) = (3, c.session);
    let mut log = GlobalLog::default();
    log.agree(&GlobalCommand::ExpireRegion { region: 3, lease_epoch: 0, time_ms: 0 });
    log.teach(&mut a);
    for (region, orderer) in [(&mut c, Orderer::Global), (&mut b, Orderer::Home(2))] {
        install(&a, region, orderer);
        assert!(!region.state.sessions.contains_key(&region.session), "{orderer:?}");
    }
}

#[test]
fn a_new_holder_waits_until_the_home_knows_that_its_regions_old_lease_has_ended() {
    let [mut a, _, mut c] = regions();
    let mut log = GlobalLog::default();
    log.agree(&GlobalCommand::ExpireRegion { region: 3, lease_epoch: 0, time_ms: 0 });
    log.teach(&mut c);
    c.answers();
    // The home would take it for one of the old holders.
    c.create("/shared/lock", EPHEMERAL);
    assert_eq!(c.errors(), [ErrorCode::ConnectionLoss]);
    c.create("/shared/plain", 0);
    assert_eq!(c.outbox(Orderer::Home(2)).len(), 1, "which nobody takes away");
    log.teach(&mut a);
    mirror(&a, &mut c);
    hold_at_home(&mut a, &mut c);
    assert!(a.has("/shared/plain") && c.has("/shared/plain"));
}

#[test]
fn a_home_takes_ephemerals_away_however_it_learns_that_their_lease_has_ended() {
    let [mut a, mut b, mut c] = regions();
    hold_at_home(&mut a, &mut c);
    let mut log = GlobalLog::default();
    log.agree(&GlobalCommand::ExpireRegion { region: 3, lease_epoch: 0, time_ms: 0 });
    log.teach(&mut b);
    install(&b, &mut a, Orderer::Global);
    assert!(!a.has("/shared/holder"));
    mirror(&a, &mut b);
    assert_equal(&[a, b], 2);
}

#[test]
fn a_home_that_missed_the_end_of_a_lease_makes_up_for_it_under_its_next_leader() {
    let [mut a, _, mut c] = regions();
    hold_at_home(&mut a, &mut c);
    let order = a.state.federation.orders.get_mut(&Orderer::Global).unwrap();
    order.lease_epochs.insert(3, 1);
    a.federation(federation::Command::AcquireGlobal { incarnation: u64::MAX });
    assert!(!a.has("/shared/holder"));
}

#[test]
fn a_request_counts_as_of_its_place_however_many_are_applied_at_once() {
    let [mut a, mut b, mut c] = regions();
    let mut log = GlobalLog::default();
    c.create("/global/holder", EPHEMERAL);
    log.agree(&c.forward().unwrap());
    // One region applies the lock and the loss of its region's lease one by one, the others at once.
    log.teach(&mut a);
    assert!(a.has("/global/holder"));
    log.agree(&GlobalCommand::ExpireRegion { region: 3, lease_epoch: 0, time_ms: 0 });
    for region in [&mut a, &mut b, &mut c] {
        log.teach(region);
        assert!(!region.has("/global/holder"));
    }
    assert_equal(&[a, b, c], 1);
}

#[test]
fn a_late_request_of_a_holder_that_lost_its_lease_does_not_hit_the_next_holder() {
    let [mut a, mut b, mut c] = regions();
    let mut log = GlobalLog::default();
    c.create("/global/lock", EPHEMERAL);
    log.agree(&c.forward().unwrap());
    for region in [&mut a, &mut b, &mut c] {
        log.teach(region);
    }
    // The holder lets go while its region is cut off; its lease ends and another takes the lock.
    c.send(&Request::Delete { path: "/global/lock", version: -1 });
    let too_late = c.forward().unwrap();
    log.agree(&GlobalCommand::ExpireRegion { region: 3, lease_epoch: 0, time_ms: 0 });
    log.teach(&mut a);
    a.create("/global/lock", EPHEMERAL);
    log.agree(&a.forward().unwrap());
    log.agree(&too_late);
    for region in [&mut a, &mut b, &mut c] {
        log.teach(region);
        assert!(region.has("/global/lock"));
    }
    assert_equal(&[a, b, c], 1);
}

#[test]
fn a_closed_sessions_ephemerals_go_everywhere_and_none_comes_after() {
    let [mut a, mut b, _] = regions();
    b.create("/global/mine", EPHEMERAL);
    b.answers();
    b.send(&Request::CloseSession);
    assert!(b.answers().is_empty(), "answered when the ephemerals are gone everywhere");
    b.create("/global/after", EPHEMERAL);
    let mut log = GlobalLog::default();
    log.agree(&b.forward().unwrap());
    for region in [&mut a, &mut b] {
        log.teach(region);
        assert!(!region.has("/global/mine") && !region.has("/global/after"));
    }
    assert_eq!(b.errors().last(), Some(&ErrorCode::Ok));
    assert_equal(&[a, b], 1);
}

#[test]
fn old_incarnations_are_shut_out() {
    let mut a = Region::new(1);
    assert_eq!(a.federation(federation::Command::AcquireGlobal { incarnation: 7 }), Outcome::Applied);
    for old in [6, 7] {
        let acquire = federation::Command::AcquireGlobal { incarnation: old };
        assert_eq!(a.federation(acquire), Outcome::Fenced, "no two tenures share a number");
    }
    let vote = |incarnation| federation::Command::Global {
        incarnation,
        change: GlobalChange::Vote(Bytes::from_static(b"v")),
    };
    assert_eq!(a.federation(vote(6)), Outcome::Fenced);
    assert!(a.state.federation.global.vote.is_none());
    assert_eq!(a.federation(vote(7)), Outcome::Applied);
}

#[test]
fn a_multi_over_two_orderers_is_refused_as_a_whole() {
    let mut a = Region::new(1);
    a.answers();
    let create = |path| Request::Create(Create { path, data: None, acl: vec![Acl::OPEN], flags: 0 });
    a.send(&Request::Multi(vec![create("/local"), create("/global/x")]));
    a.send(&Request::Multi(vec![create("/p"), create("/p/q"), create("/p")]));
    let answers = a.answers();
    assert_eq!(answers[0].outcome.error, ErrorCode::BadArguments);
    assert!(matches!(&answers[1].outcome.reply, Reply::Multi(results) if results.len() == 3));
    assert!(!a.has("/local") && !a.has("/p") && a.outbox(Orderer::Global).is_empty());
}

#[test]
fn a_snapshot_of_an_order_brings_a_region_up_to_date_and_a_damaged_one_does_nothing() {
    let [mut a, mut b, _] = regions();
    let mut log = GlobalLog::default();
    a.create("/global/one", 0);
    b.create("/global/two", EPHEMERAL);
    b.answers();
    log.agree(&a.forward().unwrap());
    log.agree(&b.forward().unwrap());
    log.teach(&mut a);
    let pieces = snapshot::SubtreeSnapshot::write(&a.state, Orderer::Global).unwrap();
    let stage = |region: &mut Region, pieces: &[Bytes]| {
        for (piece, bytes) in (0..).zip(pieces) {
            let bytes = bytes.clone();
            let stage = federation::Command::Stage { orderer: Orderer::Global, transfer: 9, piece, bytes };
            assert_eq!(region.federation(stage), Outcome::Applied);
        }
        let global = Some(federation::GlobalInstall {
            incarnation: 0,
            applied: GlobalLogId { term: 3, index: 1 },
            membership: Bytes::new(),
        });
        region.federation(federation::Command::Install { orderer: Orderer::Global, transfer: 9, global })
    };
    stage(&mut b, &pieces[..1]);
    assert!(!b.has("/global/one") && b.has("/global"), "half a snapshot is refused and deletes nothing");
    assert_eq!(stage(&mut b, &pieces), Outcome::Applied);
    assert!(b.has("/global/one") && b.has("/global/two"));
    assert_eq!(b.errors(), [ErrorCode::ConnectionLoss], "the result of what it covers is not known");
    assert!(b.effects.events.iter().any(|e| &*e.path == "/global/one" && e.kind == EventType::NodeCreated));
    log.teach(&mut b);
    assert_equal(&[a, b], 1);
}

#[test]
fn a_region_snapshot_restores_everything() {
    let [mut a, mut b, _] = regions();
    let mut log = GlobalLog::default();
    a.create("/local", 0);
    a.create("/global/mine", EPHEMERAL);
    a.create("/shared/x", 0);
    log.agree(&a.forward().unwrap());
    log.teach(&mut a);
    a.create("/global/waiting", 0);
    b.create("/shared/waiting", 0);
    for region in [&a, &b] {
        let mut bytes = Vec::new();
        snapshot::write_region(&region.state, &mut bytes).unwrap();
        let restored = snapshot::read_region(&mut &bytes[..]).unwrap();
        let mut again = Vec::new();
        snapshot::write_region(&restored, &mut again).unwrap();
        let state = &region.state;
        assert_eq!(
            (restored.zxid, restored.time_ms, restored.tree.len()),
            (state.zxid, state.time_ms, state.tree.len())
        );
        assert_eq!(restored.sessions, state.sessions);
        assert_eq!(format!("{:?}", restored.federation), format!("{:?}", state.federation));
        for subtree in 0..3 {
            assert_eq!(restored.tree.digest(subtree), state.tree.digest(subtree));
        }
        for cut in [0, 3, bytes.len() / 2, bytes.len() - 1] {
            assert!(snapshot::read_region(&mut &bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}

#[test]
fn the_first_epoch_is_the_first_whatever_the_first_term() {
    let mut state = State::new(1);
    for (term, epoch) in [(3, 1), (3, 1), (4, 2), (7, 5)] {
        state.apply(
            term,
            &Batch::encode(0, &[]).unwrap(),
            Me { server: 1, boot: 1 },
            &mut Effects::default(),
        );
        assert_eq!(state.zxid, epoch << 32, "term {term}");
    }
    // As of an import: what goes on above the terms' epochs still rises with every leader.
    state.catch_up_with(9 << 32 | 7);
    state.apply(8, &Batch::encode(0, &[]).unwrap(), Me { server: 1, boot: 1 }, &mut Effects::default());
    assert_eq!(state.zxid, 10 << 32);
}

#[test]
fn zxids_never_go_back_over_terms() {
    let mut a = Region::new(1);
    let mut seen = BTreeMap::new();
    for (term, epoch) in [(1, 1), (1, 1), (2, 2), (5, 5), (5, 5), (6, 6)] {
        let caller = a.caller();
        let path = format!("/n{}", caller.sequence);
        let mut body = BytesMut::new();
        Request::Create(Create { path: &path, data: None, acl: vec![Acl::OPEN], flags: 0 }).encode(&mut body);
        let (session, op) = (a.session, OpCode::Create as i32);
        let command = Command::Client(ClientRequest {
            caller,
            session,
            connection: 1,
            identities: &[],
            op,
            body: &body,
        });
        let batch = Batch::encode(0, &[codec::encode(&command).unwrap().into()]).unwrap();
        a.state.apply(term, &batch, a.me, &mut a.effects);
        let zxid = a.state.tree.get(&path).unwrap().times.czxid;
        assert_eq!(zxid >> 32, epoch, "every leader has an epoch of its own");
        assert_eq!(seen.insert(zxid, path), None);
        assert_eq!(seen.last_key_value().map(|(z, _)| *z), Some(zxid));
    }
}

#[test]
fn snapshots_of_earlier_builds_are_read() {
    let state = snapshot::read_region(&mut &include_bytes!("golden/region-1.snapshot")[..]).unwrap();
    assert_eq!((state.region, state.policy, state.mesh.regions.len()), (1, Policy::default(), 3));
    let mut paths: Vec<_> = state.tree.iter().map(|(path, _)| path).collect();
    paths.sort_unstable();
    let zookeeper = ["/zookeeper", "/zookeeper/config", "/zookeeper/quota"];
    let own = ["/", "/global", "/global/mine", "/local", "/local/n-0000000000", "/shared", "/shared/x"];
    assert_eq!(paths, [&own[..], &zookeeper[..]].concat());
    assert_eq!(state.tree.get("/global/mine").unwrap().stat().ephemeral_owner, 1 << 56 | 5);
    assert_eq!(state.federation.outboxes[&Orderer::Global].requests.len(), 1);
}

impl Region {
    fn create_as(&mut self, path: &str, mode: CreateMode, ttl_ms: Option<i64>) {
        let create = Create { path, data: None, acl: vec![Acl::OPEN], flags: mode as i32 };
        self.send(&match ttl_ms {
            Some(ttl_ms) => Request::CreateTtl { create, ttl_ms },
            None => Request::CreateContainer(create),
        });
    }

    /// Proposes the deletion of everything that is due at a time, as a leader does.
    fn reap(&mut self, time_ms: i64, never_used_ms: i64) -> Vec<String> {
        let paths: Vec<Box<str>> =
            reap::due(&self.state.tree, time_ms, never_used_ms).map(|path| Box::from(&**path)).collect();
        let due = paths.iter().map(|path| path.to_string()).collect();
        let command = codec::encode(&Command::Reap { paths, never_used_ms }).unwrap().into();
        let batch = Batch::encode(time_ms, &[command]).unwrap();
        self.state.apply(1, &batch, self.me, &mut self.effects);
        due
    }
}

#[test]
fn containers_go_once_emptied_and_others_when_their_time_is_over() {
    let mut a = Region::new(1);
    for path in ["/used", "/unused", "/full"] {
        a.create_as(path, CreateMode::Container, None);
    }
    a.create("/used/child", 0);
    a.create("/full/child", 0);
    a.send(&Request::Delete { path: "/used/child", version: -1 });
    a.create_as("/short", CreateMode::PersistentWithTtl, Some(500));
    a.create_as("/parent", CreateMode::PersistentWithTtl, Some(500));
    a.create_as("/n-", CreateMode::PersistentSequentialWithTtl, Some(5_000));
    a.create("/parent/child", 0);
    assert!(a.errors().iter().all(|error| *error == ErrorCode::Ok));
    assert_eq!(a.state.tree.get("/short").unwrap().stat().ephemeral_owner, 0);
    // Everything was made at 1,000 ms.
    assert_eq!(a.reap(1_500, 0), ["/used"]);
    assert!(!a.has("/used") && a.has("/unused") && a.has("/full"));
    assert_eq!(a.reap(1_501, 502), ["/short"]);
    a.send(&Request::SetData { path: "/n-0000000005", data: None, version: -1 });
    assert_eq!(a.reap(6_501, 5_000), ["/unused"], "a change of the data starts the time anew");
    assert_eq!(a.reap(6_502, 0), ["/n-0000000005"]);
    assert!(a.has("/parent/child") && a.has("/full/child"));
    let deleted = a.effects.events.iter().filter(|e| e.kind == EventType::NodeDeleted);
    let deleted: Vec<&str> = deleted.map(|e| &*e.path).collect();
    assert_eq!(deleted, ["/used/child", "/used", "/short", "/unused", "/n-0000000005"]);
}

#[test]
fn what_is_due_is_judged_again_where_it_is_deleted() {
    let mut a = Region::new(1);
    a.create_as("/c", CreateMode::Container, None);
    a.create_as("/t", CreateMode::PersistentWithTtl, Some(500));
    let reap = |never_used_ms| Command::Reap { paths: vec!["/c".into(), "/t".into()], never_used_ms };
    a.apply(&reap(1));
    assert!(a.has("/c") && a.has("/t"), "the time of the entry counts");
    a.create("/c/child", 0);
    a.send(&Request::Delete { path: "/c/child", version: -1 });
    a.create("/c/another", 0);
    a.apply(&reap(0));
    assert!(a.has("/c"), "it has a child again");
    a.create("/p", 0);
    a.apply(&Command::Reap { paths: vec!["/p".into(), "/".into(), "/none".into()], never_used_ms: 1 });
    assert!(a.has("/p"), "persistent znodes stay");
}

#[test]
fn shared_znodes_go_in_the_order_of_their_subtree_and_once() {
    let [mut a, mut b, mut c] = regions();
    let mut log = GlobalLog::default();
    a.create_as("/global/t", CreateMode::PersistentWithTtl, Some(500));
    log.agree(&a.forward().unwrap());
    for region in [&mut a, &mut b, &mut c] {
        log.teach(region);
    }
    a.create_as("/shared/t", CreateMode::PersistentWithTtl, Some(500));
    // Requests are put in order at 2,000 ms.
    assert_eq!(a.reap(3_000, 0), ["/global/t", "/shared/t"]);
    assert!(a.has("/global/t") && !a.has("/shared/t"), "here the home, there one of several");
    assert_eq!(b.reap(3_000, 0), ["/global/t"]);
    for region in [&a, &b] {
        let Some(GlobalCommand::Forward { region, first, requests, .. }) = region.forward() else { panic!() };
        log.agree(&GlobalCommand::Forward { region, first, time_ms: 3_000, requests });
    }
    for region in [&mut a, &mut b, &mut c] {
        log.teach(region);
        assert!(!region.has("/global/t"));
        let events = region.effects.events.iter();
        let deleted = events.filter(|e| e.kind == EventType::NodeDeleted && &*e.path == "/global/t");
        assert_eq!(deleted.count(), 1);
    }
    assert_equal(&[a, b, c], 1);
}

#[test]
fn a_bad_time_to_live_is_refused_and_the_policy_may_forbid_all() {
    let mut a = Region::new(1);
    a.answers();
    for (mode, ttl_ms) in [
        (CreateMode::PersistentWithTtl, 0),
        (CreateMode::PersistentWithTtl, -1),
        (CreateMode::PersistentWithTtl, 1 << 40),
        (CreateMode::Persistent, 5),
        (CreateMode::Container, 5),
    ] {
        a.create_as("/x", mode, Some(ttl_ms));
    }
    a.create("/x", CreateMode::PersistentWithTtl as i32);
    assert_eq!(a.errors(), [ErrorCode::BadArguments; 6]);
    a.create_as("/longest", CreateMode::PersistentWithTtl, Some((1 << 40) - 1));
    a.create_as("/plain", CreateMode::Persistent, Some(-1));
    a.create("/flag-alone", CreateMode::Container as i32);
    assert_eq!(a.errors(), [ErrorCode::Ok; 3]);
    a.apply(&Command::SetPolicy(Policy { extended_types: false, ..Policy::default() }));
    let create = Create { path: "/y", data: None, acl: vec![Acl::OPEN], flags: 5 };
    let timed = Request::CreateTtl { create, ttl_ms: 9 };
    a.send(&timed);
    a.create_as("/c2", CreateMode::Container, None);
    assert_eq!(a.errors(), [ErrorCode::Unimplemented, ErrorCode::Ok]);
    a.send(&Request::Multi(vec![Request::Check { path: "/", version: -1 }, timed]));
    let failed = [MultiResult::Failed(ErrorCode::Ok), MultiResult::Failed(ErrorCode::Unimplemented)];
    assert_eq!(a.answers()[0].outcome.reply, Reply::Multi(failed.into()));
}

#[test]
fn sequences_count_creations_alone() {
    let mut a = Region::new(1);
    a.answers();
    a.create("/p", 0);
    for _ in 0..3 {
        a.create("/p/n-", SEQUENTIAL);
        let path = match &a.answers().last().unwrap().outcome.reply {
            Reply::Path(path) => path.to_string(),
            other => panic!("{other:?}"),
        };
        a.send(&Request::Delete { path: &path, version: -1 });
    }
    a.create("/p/n-", SEQUENTIAL);
    assert!(a.has("/p/n-0000000003"));
    assert_eq!(a.state.tree.get("/p").unwrap().stat().cversion, 7, "a stat counts deletions too");
}

impl Region {
    fn set_quota(&mut self, path: &str, limits: &str) {
        self.create(&format!("/zookeeper/quota{path}"), 0);
        for (name, data) in [("zookeeper_limits", limits), ("zookeeper_stats", "count=-1,bytes=-1")] {
            let path = format!("/zookeeper/quota{path}/{name}");
            let (data, acl) = (Some(data.as_bytes()), vec![Acl::OPEN]);
            self.send(&Request::Create(Create { path: &path, data, acl, flags: 0 }));
        }
    }

    fn quota_stats(&self, path: &str) -> String {
        let znode = self.state.tree.get(&format!("/zookeeper/quota{path}/zookeeper_stats")).unwrap();
        String::from_utf8_lossy(znode.data.unwrap()).into_owned()
    }

    fn set(&mut self, path: &str, data: &[u8]) {
        self.send(&Request::SetData { path, data: Some(data), version: -1 });
    }
}

#[test]
fn quotas_are_counted_and_their_hard_limits_kept_if_enforced() {
    let mut a = Region::new(1);
    a.create("/q", 0);
    a.set_quota("/q", "count=-1,bytes=-1;byteHardLimit=8;countHardLimit=3");
    a.create("/q/1", 0);
    a.set("/q/1", b"1234567");
    a.create("/q/2", 0);
    a.create("/q/3", 0);
    assert!(a.errors().iter().all(|error| *error == ErrorCode::Ok), "not enforced");
    assert_eq!(a.quota_stats("/q"), "count=4,bytes=10");
    a.apply(&Command::SetPolicy(Policy { enforce_quota: true, ..Policy::default() }));
    a.create("/q/4", 0);
    a.set("/q/1", b"12345678");
    a.set("/q/1", b"123456");
    assert_eq!(a.errors(), [ErrorCode::QuotaExceeded, ErrorCode::QuotaExceeded, ErrorCode::QuotaExceeded]);
    a.set("/q/1", b"");
    a.set("/q/2", b"22");
    a.send(&Request::Delete { path: "/q/3", version: -1 });
    a.send(&Request::Delete { path: "/q/2", version: -1 });
    a.create("/elsewhere", 0);
    assert_eq!(a.errors(), [ErrorCode::Ok; 5]);
    let create = |path| Request::Create(Create { path, data: None, acl: vec![Acl::OPEN], flags: 0 });
    a.send(&Request::Multi(vec![create("/q/5"), create("/q/6")]));
    let failed = [MultiResult::Failed(ErrorCode::Ok), MultiResult::Failed(ErrorCode::QuotaExceeded)];
    assert_eq!(a.answers()[0].outcome.reply, Reply::Multi(failed.into()));
    assert_eq!(a.quota_stats("/q"), "count=2,bytes=1", "what is taken back does not count");
    for end in ["/zookeeper_limits", "/zookeeper_stats", ""] {
        a.send(&Request::Delete { path: &format!("/zookeeper/quota/q{end}"), version: -1 });
    }
    a.create("/q/7", 0);
    a.create("/q/8", 0);
    assert_eq!(a.errors(), [ErrorCode::Ok; 5], "a quota may be removed");
}

#[test]
fn a_quota_of_a_shared_subtree_is_kept_by_the_region_that_asks() {
    let [mut a, mut b, _] = regions();
    a.set_quota("/global", "count=2,bytes=-1;countHardLimit=2");
    a.apply(&Command::SetPolicy(Policy { enforce_quota: true, ..Policy::default() }));
    let mut log = GlobalLog::default();
    a.create("/global/1", 0);
    log.agree(&a.forward().unwrap());
    log.teach(&mut a);
    log.teach(&mut b);
    assert_eq!(a.quota_stats("/global"), "count=2,bytes=1");
    a.answers();
    a.create("/global/2", 0);
    assert_eq!(a.errors(), [ErrorCode::QuotaExceeded]);
    b.create("/global/2", 0);
    log.agree(&b.forward().unwrap());
    log.teach(&mut a);
    log.teach(&mut b);
    assert_eq!(a.quota_stats("/global"), "count=3,bytes=2", "others have quotas of their own");
    assert_equal(&[a, b], 1);
}

#[test]
fn sequence_numbers_run_over_as_zookeepers_do() {
    let mut a = Region::new(1);
    a.create("/p", 0);
    a.state.tree.change("/p", |znode| znode.times.cversion = i32::MAX);
    a.answers();
    for _ in 0..3 {
        a.create("/p/n", SEQUENTIAL);
    }
    let path = |answer: Answer| match answer.outcome.reply {
        Reply::Path(path) => path.to_string(),
        other => panic!("{other:?}"),
    };
    let paths: Vec<String> = a.answers().into_iter().map(path).collect();
    assert_eq!(paths, ["/p/n2147483647", "/p/n-2147483648", "/p/n-2147483647"]);
}

fn restore_steps(state: &State, transfer: u64) -> Vec<Restore> {
    let znodes: Vec<_> = restore::restorable(state).collect();
    let count = znodes.len() as u64;
    let mut steps = vec![Restore::Begin { transfer }];
    steps.extend(znodes.chunks(2).map(|some| Restore::Put { transfer, znodes: some.to_vec() }));
    steps.push(Restore::Finish { transfer, znodes: count, zxid: state.zxid });
    steps
}

#[test]
fn a_restore_replaces_the_regions_own_znodes_and_nothing_else() {
    let [mut a, _, _] = regions();
    let mut log = GlobalLog::default();
    a.create("/kept", 0);
    a.create("/kept/child", 0);
    a.create("/gone-later", 0);
    a.set_quota("/kept", "count=9,bytes=-1");
    a.create("/global/x", 0);
    log.agree(&a.forward().unwrap());
    log.teach(&mut a);
    let taken = a.state.clone();
    let digest = a.state.tree.digest(1);
    a.set("/kept/child", b"changed");
    a.create("/kept/child/live", EPHEMERAL);
    a.create("/new", 0);
    a.create("/new/live", EPHEMERAL);
    a.send(&Request::Delete { path: "/gone-later", version: -1 });
    a.answers();
    let newest = a.state.zxid;
    let mut steps = restore_steps(&taken, 7);
    let last = steps.pop().unwrap();
    for step in steps {
        a.apply(&Command::Restore(step));
    }
    assert!(a.has("/new") && !a.has("/gone-later"), "nothing changes before it is whole");
    let mut bytes = Vec::new();
    snapshot::write_region(&a.state, &mut bytes).unwrap();
    let reread = snapshot::read_region(&mut &bytes[..]).unwrap();
    assert_eq!(reread.restoring.znodes, a.state.restoring.znodes, "a snapshot has what has come so far");
    a.effects.events.clear();
    a.apply(&Command::Restore(last.clone()));
    assert!(a.has("/gone-later") && !a.has("/new") && !a.has("/new/live"));
    assert!(a.has("/kept/child/live"), "what a live session owns stays where it can");
    assert_eq!(a.state.tree.get("/kept/child").unwrap().data, Some(&b"x"[..]));
    assert_eq!((a.has("/global/x"), a.state.tree.digest(1)), (true, digest));
    assert_eq!(a.quota_stats("/kept"), "count=3,bytes=3");
    assert!(a.state.zxid > newest && a.state.restoring.znodes.is_empty());
    let told: Vec<(EventType, &str)> = a.effects.events.iter().map(|e| (e.kind, &*e.path)).collect();
    for event in [
        (EventType::NodeDeleted, "/new"),
        (EventType::NodeCreated, "/gone-later"),
        (EventType::NodeDataChanged, "/kept/child"),
    ] {
        assert!(told.contains(&event), "{event:?} of {told:?}");
    }
    assert!(!told.iter().any(|(_, path)| *path == "/global/x"));
    a.apply(&Command::Restore(last));
    assert!(a.has("/kept"), "said twice it changes nothing");
}

#[test]
fn a_restore_goes_on_from_a_snapshot_wherever_it_was_taken() {
    let mut a = Region::new(1);
    a.create("/a", 0);
    let steps = restore_steps(&a.state, 3);
    a.create("/b", 0);
    for taken_after in 0..steps.len() {
        let mut b = Region { state: a.state.clone(), effects: Effects::default(), ..Region::new(1) };
        for (index, step) in steps.iter().enumerate() {
            b.apply(&Command::Restore(step.clone()));
            if index == taken_after {
                let mut bytes = Vec::new();
                snapshot::write_region(&b.state, &mut bytes).unwrap();
                b.state = snapshot::read_region(&mut &bytes[..]).unwrap();
            }
        }
        assert!(!b.has("/b"), "taken after step {taken_after}");
    }
}

#[test]
fn a_restore_that_is_not_whole_changes_nothing() {
    let mut a = Region::new(1);
    a.create("/a", 0);
    let steps = restore_steps(&a.state, 3);
    a.create("/b", 0);
    for lost in 1..steps.len() - 1 {
        for (index, step) in steps.iter().enumerate() {
            if index != lost {
                a.apply(&Command::Restore(step.clone()));
            }
        }
        assert!(a.has("/b"), "without step {lost}");
    }
    a.apply(&Command::Restore(Restore::Begin { transfer: 4 }));
    for step in &steps[1..] {
        a.apply(&Command::Restore(step.clone()));
    }
    assert!(a.has("/b"), "of another restore");
    for step in steps {
        a.apply(&Command::Restore(step));
    }
    assert!(!a.has("/b") && a.has("/a") && a.has("/zookeeper/config") && a.has("/zookeeper/quota"));
}

/// A state can be saved and comes back as it was.
fn assert_can_be_saved(state: &State) {
    let mut bytes = Vec::new();
    snapshot::write_region(state, &mut bytes).unwrap();
    snapshot::read_region(&mut &bytes[..]).unwrap();
}

#[test]
fn a_mesh_is_not_formed_over_znodes_that_are_already_there() {
    let mut a = Region::unformed(1);
    a.create("/shared", 0);
    a.create("/shared/x", 0);
    a.apply(&Command::FormMesh { mesh: mesh() });
    assert!(a.state.mesh.regions.is_empty() && a.has("/shared/x"));
    assert_eq!(a.state.in_the_way_of(&mesh()), Some("/shared"));
    assert_can_be_saved(&a.state);
    a.send(&Request::Delete { path: "/shared/x", version: -1 });
    a.send(&Request::SetData { path: "/shared", data: None, version: -1 });
    a.apply(&Command::FormMesh { mesh: mesh() });
    assert_eq!(*a.state.mesh, mesh());
    assert_can_be_saved(&a.state);
}

#[test]
fn a_snapshot_of_an_order_brings_nothing_that_is_ordered_elsewhere() {
    let [mut a, mut b, _] = regions();
    b.create("/private", 0);
    let mut znode = super::state::bare_znode(1);
    znode.owner = b.session;
    a.state.tree.put("/private", znode.as_ref());
    let before = b.state.tree.digest(0);
    install(&a, &mut b, Orderer::Global);
    assert_eq!((b.state.tree.get("/private").unwrap().owner, b.state.tree.digest(0)), (0, before));
    assert_can_be_saved(&b.state);
}

#[test]
fn numbers_at_the_end_of_their_range_are_refused() {
    let mut a = Region::new(1);
    let mut b = Region::new(2);
    let forward = |first| federation::Command::Forward {
        subtree: 2,
        region: 2,
        first,
        requests: vec![Bytes::new(), Bytes::new()],
    };
    assert_eq!(a.federation(forward(u64::MAX)), Outcome::Gap);
    let content = federation::Content::Request { region: 3, sequence: u64::MAX, request: Bytes::new() };
    let record = |position| {
        let content = content.clone();
        let record = federation::MirrorRecord { position, zxid: 1, time_ms: 1, content };
        Bytes::from(codec::encode(&record).unwrap())
    };
    let mirror = |position| federation::Command::Mirror { subtree: 2, records: vec![record(position)] };
    assert_eq!(b.federation(mirror(1)), Outcome::Applied);
    assert_eq!(b.federation(mirror(u64::MAX)), Outcome::Gap);
    b.state.federation.orders.get_mut(&Orderer::Home(2)).unwrap().home = 2;
    let from_3 = federation::Command::Forward {
        subtree: 2,
        region: 3,
        first: 0,
        requests: vec![Bytes::new(), Bytes::new()],
    };
    assert_eq!(b.federation(from_3), Outcome::Applied, "all of it is old");
}

#[test]
fn the_last_entry_that_there_can_be_is_applied_once() {
    let mut a = Region::new(1);
    let global = |change| federation::Command::Global { incarnation: 0, change };
    let mut log = GlobalLog::default();
    log.agree(&GlobalCommand::ExpireRegion { region: 2, lease_epoch: u64::MAX, time_ms: 1 });
    log.0[0].id.index = u64::MAX;
    let order = a.state.federation.orders.get_mut(&Orderer::Global).unwrap();
    order.lease_epochs.insert(2, u64::MAX);
    a.state.federation.global.applied = Some(GlobalLogId { term: 1, index: u64::MAX - 1 });
    assert_eq!(a.federation(global(GlobalChange::Append(log.0))), Outcome::Applied);
    for _ in 0..2 {
        assert_eq!(a.federation(global(GlobalChange::Commit(u64::MAX))), Outcome::Applied);
    }
    assert_eq!(a.state.federation.orders[&Orderer::Global].lease_epoch(2), u64::MAX);
}

#[test]
fn zxids_of_elsewhere_leave_room_for_more() {
    let mut a = Region::new(1);
    let import = import::Import { zxid: i64::MAX, znodes: Vec::new() };
    a.apply(&Command::Import(import));
    let zxid = a.state.zxid;
    a.create("/a", 0);
    assert!(zxid > 0 && a.state.zxid > zxid);
    a.apply(&Command::Restore(Restore::Begin { transfer: 1 }));
    a.apply(&Command::Restore(Restore::Finish { transfer: 1, znodes: 0, zxid: i64::MAX }));
    assert!(a.state.zxid > zxid);
}

#[test]
fn a_count_that_no_record_can_hold_is_an_error() {
    /// Fields up to a collection, all zero but for what is given, then a count of 2^40.
    fn refused<T: serde::de::DeserializeOwned>(zeros_before: usize) {
        let count = [&[253][..], &(1u64 << 40).to_le_bytes()].concat();
        let record = [&[codec::VERSION][..], &vec![0; zeros_before], &count, &[0; 64]].concat();
        assert!(codec::decode::<T>(&record).is_err());
    }
    refused::<federation::Order>(4);
    refused::<federation::Order>(5);
    refused::<federation::Outbox>(1);
    refused::<federation::MirrorLog>(1);
    refused::<federation::GlobalStore>(1);
    for zeros_before in 7..10 {
        refused::<federation::Federation>(zeros_before);
    }
    refused::<super::Session>(20);
}
