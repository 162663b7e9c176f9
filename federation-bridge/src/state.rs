//! The federation's part of a region's replicated state.
//!
//! Every server of a region applies the same [`Command`]s from the region's log to its [`Federation`]
//! and gets the same [`Delivery`]s to apply to its tree. There are three kinds of content:
//!
//! * **Orders.** An [`Order`] is the position of one orderer's sequence that this region has applied. It
//!   is equal in all regions that have applied the same position.
//! * **Outboxes.** A request that another region (or the global group) must order waits in an
//!   [`Outbox`] of the region's log until it comes back in that order. Its sequence number makes it
//!   exactly-once: the order keeps the number reached for each region, a repeated number is dropped and
//!   a number after a gap is refused.
//! * **Storage of the global group.** A region is one voter of the global group; what a voter must not
//!   forget (vote, log) is [`GlobalStore`]. Writes of a leader that has been replaced are refused by
//!   their [`Incarnation`].

use bytes::Bytes;
use imbl::{OrdMap, Vector};
use serde::{Deserialize, Serialize};

use meridian_seam::mutant::{self, Mutant};
use meridian_seam::{codec, limits};

use crate::mesh::{Mesh, Mode, Orderer, RegionId, SubtreeId};

/// The number of a regional leader's tenure; a later leader has a higher one.
pub type Incarnation = u64;

/// The federation's part of a region's replicated state. Cloning is cheap.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Federation {
    /// This region.
    pub region: RegionId,
    /// The highest incarnation that may write the global group's storage.
    pub incarnation: Incarnation,
    /// The global group's storage in this region.
    pub global: GlobalStore,
    /// How far each orderer's sequence is applied.
    #[serde(deserialize_with = "codec::collect")]
    pub orders: OrdMap<Orderer, Order>,
    /// Requests that wait to be ordered elsewhere.
    #[serde(deserialize_with = "codec::collect")]
    pub outboxes: OrdMap<Orderer, Outbox>,
    /// Records of subtrees that this region is home of, for regions that lag.
    #[serde(deserialize_with = "codec::collect")]
    pub mirrors: OrdMap<SubtreeId, MirrorLog>,
    /// A snapshot that is arriving piece by piece.
    pub staging: Option<Staging>,
}

/// The position of an orderer's sequence; equal in all regions at the same position.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The region that orders (homed subtrees only; 0 for the global group).
    pub home: RegionId,
    /// Rises with every change of who orders.
    pub epoch: u32,
    /// Transactions of the epoch: the low half of the zxid.
    pub counter: u32,
    /// Requests of all epochs.
    pub position: u64,
    /// The last outbox number applied from each region.
    #[serde(deserialize_with = "codec::collect")]
    pub cursors: OrdMap<RegionId, u64>,
    /// The lease epoch of each region whose ephemerals were last taken away as a whole. A request that would make an
    /// ephemeral carries the number its region knew, and has no effect if it is an old one.
    #[serde(deserialize_with = "codec::collect")]
    pub lease_epochs: OrdMap<RegionId, u64>,
}

impl Order {
    /// The zxid of the transaction last applied: `epoch << 32 | counter`.
    pub fn zxid(&self) -> i64 {
        i64::from(self.epoch) << 32 | i64::from(self.counter)
    }

    /// How often this region's ephemerals were taken away.
    pub fn lease_epoch(&self, region: RegionId) -> u64 {
        self.lease_epochs.get(&region).copied().unwrap_or(0)
    }

    fn enter_epoch(&mut self, epoch: u32) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.counter = 0;
        }
    }

    /// Takes the next zxid. The epoch rises when the counter is used up, so that zxids never repeat.
    fn next_zxid(&mut self) -> i64 {
        self.position = self.position.saturating_add(1);
        match self.counter.checked_add(1) {
            Some(counter) => self.counter = counter,
            None => {
                self.epoch = self.epoch.saturating_add(1);
                self.counter = 1;
            }
        }
        self.zxid()
    }

    /// What a position changes of the order itself.
    fn take_note_of(&mut self, content: &Content) {
        match content {
            Content::Request { region, sequence, .. } if *sequence > 0 => {
                self.cursors.insert(*region, *sequence);
            }
            Content::Request { .. } => {}
            Content::ExpireRegion { region, lease_epoch } => {
                self.lease_epochs.insert(*region, *lease_epoch);
            }
            Content::MoveHome { to, lease_epoch } => {
                self.lease_epochs.insert(self.home, *lease_epoch);
                self.home = *to;
                self.enter_epoch(self.epoch.saturating_add(1));
            }
        }
    }

    /// Whether the request `sequence` of `region` is the next one: moves the cursor if so.
    fn admit(&mut self, region: RegionId, sequence: u64) -> Admission {
        let cursor = self.cursors.get(&region).copied().unwrap_or(0);
        if sequence <= cursor && mutant::is(Mutant::ResentForwardApplied) {
            Admission::Next
        } else if sequence <= cursor {
            Admission::Repeated
        } else if sequence - 1 == cursor {
            self.cursors.insert(region, sequence);
            Admission::Next
        } else {
            Admission::Gap
        }
    }
}

#[derive(PartialEq, Eq)]
enum Admission {
    Next,
    Repeated,
    Gap,
}

/// Requests of this region that wait to be ordered elsewhere.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outbox {
    /// Number of the last request put in.
    pub last: u64,
    /// Those not yet seen in the order, by number.
    #[serde(deserialize_with = "codec::collect")]
    pub requests: OrdMap<u64, Pending>,
    /// Sum of their lengths.
    pub bytes: usize,
}

/// A request in an outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Whom to answer; opaque here.
    pub caller: Caller,
    /// The request; opaque here.
    pub request: Bytes,
}

/// The server of this region that waits for an answer, and its number for the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The server.
    pub server: u8,
    /// The start of that server, so that answers never reach a later one.
    pub boot: u32,
    /// The server's own number for the request, from 1; 0 if nobody waits.
    pub sequence: u64,
}

impl Caller {
    /// Whether there is one.
    pub fn waits(&self) -> bool {
        self.sequence != 0
    }
}

impl Outbox {
    /// Puts a request in and returns its number; refuses when the outbox is full.
    fn push(&mut self, caller: Caller, request: Bytes) -> Option<u64> {
        let full = self.requests.len() >= limits::OUTBOX_REQUESTS_MAX
            || self.bytes + request.len() > limits::OUTBOX_BYTES_MAX;
        // What the region itself must say (a session is gone) may not be lost to a full outbox.
        if full && caller.waits() {
            return None;
        }
        self.last = self.last.checked_add(1)?;
        self.bytes += request.len();
        self.requests.insert(self.last, Pending { caller, request });
        Some(self.last)
    }

    /// Takes the request `sequence` out, which has been ordered.
    fn settle(&mut self, sequence: u64) -> Option<Pending> {
        let pending = self.requests.remove(&sequence)?;
        self.bytes -= pending.request.len();
        Some(pending)
    }
}

/// The records that a home keeps for its mirrors.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MirrorLog {
    /// Position of the first record kept.
    pub first: u64,
    /// Encoded [`MirrorRecord`]s.
    #[serde(deserialize_with = "codec::collect")]
    pub records: Vector<Bytes>,
    /// Sum of their lengths.
    pub bytes: usize,
}

impl MirrorLog {
    fn push(&mut self, position: u64, record: Bytes) {
        if self.records.is_empty() {
            self.first = position;
        }
        self.bytes += record.len();
        self.records.push_back(record);
        while self.records.len() > limits::mirror_records_max() || self.bytes > limits::MIRROR_BYTES_MAX {
            let Some(old) = self.records.pop_front() else { break };
            self.bytes -= old.len();
            self.first = self.first.saturating_add(1);
        }
    }

    /// The records from `position` on, at most `bytes_max` of them; `None` if they are no longer kept.
    pub fn from(&self, position: u64, bytes_max: usize) -> Option<Vec<Bytes>> {
        let end = self.first.saturating_add(self.records.len() as u64);
        if position >= end {
            return Some(Vec::new());
        }
        let skip = usize::try_from(position.checked_sub(self.first)?).ok()?;
        let mut budget = bytes_max;
        let mut taken = Vec::new();
        for record in self.records.skip(skip) {
            if record.len() > budget && !taken.is_empty() {
                break;
            }
            budget = budget.saturating_sub(record.len());
            taken.push(record);
        }
        Some(taken)
    }
}

/// One position of a homed subtree's order, as its home decided it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorRecord {
    /// The position.
    pub position: u64,
    /// The zxid it got.
    pub zxid: i64,
    /// The home's time, ms since the Unix epoch.
    pub time_ms: i64,
    /// What it does.
    pub content: Content,
}

/// What a position of an order does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// A request.
    Request {
        /// The region that it came from.
        region: RegionId,
        /// Its outbox number there; 0 if it came from the orderer's own clients.
        sequence: u64,
        /// The request; opaque here.
        request: Bytes,
    },
    /// All ephemerals of a region's sessions go: the region lost its lease.
    ExpireRegion {
        /// The region.
        region: RegionId,
        /// Its lease epoch from then on.
        lease_epoch: u64,
    },
    /// From the next position on another region orders.
    MoveHome {
        /// The new home.
        to: RegionId,
        /// The lease epoch of the old home, whose own ephemerals were its own affair so far.
        lease_epoch: u64,
    },
}

/// What the global group agrees on in one log entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GlobalCommand {
    /// Requests from a region's outbox.
    Forward {
        /// The region.
        region: RegionId,
        /// The number of the first; the others follow without a gap.
        first: u64,
        /// The proposer's time, ms since the Unix epoch.
        time_ms: i64,
        /// The requests.
        requests: Vec<Bytes>,
    },
    /// A region did not renew its lease in time.
    ExpireRegion {
        /// The region.
        region: RegionId,
        /// Its lease epoch; a repeated command with an old one has no effect.
        lease_epoch: u64,
        /// The proposer's time, ms since the Unix epoch.
        time_ms: i64,
    },
}

/// What a voter of the global group must not forget, kept in its region's replicated state.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GlobalStore {
    /// The vote, in the engine glue's encoding.
    pub vote: Option<Bytes>,
    /// Log entries by index.
    #[serde(deserialize_with = "codec::collect")]
    pub log: OrdMap<u64, GlobalEntry>,
    /// The entry up to which the log is purged.
    pub purged: Option<GlobalLogId>,
    /// The entry up to which this region has applied.
    pub applied: Option<GlobalLogId>,
    /// The group's members as of `applied`, in the engine glue's encoding.
    pub membership: Option<Bytes>,
}

/// Identity of an entry of the global group's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalLogId {
    /// The term of the leader that proposed it.
    pub term: u64,
    /// The index.
    pub index: u64,
}

/// An entry of the global group's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalEntry {
    /// Its identity.
    pub id: GlobalLogId,
    /// Its content.
    pub payload: GlobalPayload,
}

/// The content of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GlobalPayload {
    /// A new leader's first entry.
    Blank,
    /// An encoded [`GlobalCommand`].
    Command(Bytes),
    /// A change of members, in the engine glue's encoding.
    Membership(Bytes),
}

/// A snapshot that arrives in pieces, each in a log entry of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staging {
    /// Whose content.
    pub orderer: Orderer,
    /// Tells one transfer from another.
    pub transfer: u64,
    /// The pieces so far.
    pub pieces: Vec<Bytes>,
}

/// A change of a region's federation state: what the bridge proposes in its region's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A new regional leader takes over the global group's storage.
    AcquireGlobal {
        /// Its incarnation.
        incarnation: Incarnation,
    },
    /// A change of the global group's storage.
    Global {
        /// Must be the current one.
        incarnation: Incarnation,
        /// The change.
        change: GlobalChange,
    },
    /// Requests from another region for a subtree that this region is home of.
    Forward {
        /// The subtree.
        subtree: SubtreeId,
        /// Where they come from.
        region: RegionId,
        /// The outbox number of the first; the others follow without a gap.
        first: u64,
        /// The requests.
        requests: Vec<Bytes>,
    },
    /// Records from the home of a subtree: encoded [`MirrorRecord`]s in order.
    Mirror {
        /// The subtree.
        subtree: SubtreeId,
        /// The records.
        records: Vec<Bytes>,
    },
    /// A piece of a snapshot of an order's content.
    Stage {
        /// Whose content.
        orderer: Orderer,
        /// Tells one transfer from another.
        transfer: u64,
        /// Number of the piece, from 0.
        piece: u32,
        /// The bytes.
        bytes: Bytes,
    },
    /// All pieces are there: install them.
    Install {
        /// Whose content.
        orderer: Orderer,
        /// The transfer.
        transfer: u64,
        /// For the global group: who installs, and the members and entry that the snapshot stands at.
        global: Option<GlobalInstall>,
    },
    /// This region could not renew its lease: its sessions with shared ephemerals end.
    LapseLease {
        /// The lease that lapsed; an old number has no effect.
        lease_epoch: u64,
    },
    /// This region hands a subtree that it is home of to another.
    MoveHome {
        /// The subtree.
        subtree: SubtreeId,
        /// The new home.
        to: RegionId,
    },
}

/// The engine's view of a snapshot of the global order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalInstall {
    /// Who installs.
    pub incarnation: Incarnation,
    /// The entry that the snapshot stands at.
    pub applied: GlobalLogId,
    /// The members at that entry.
    pub membership: Bytes,
}

/// A change of the global group's storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GlobalChange {
    /// Remembers a vote.
    Vote(Bytes),
    /// Appends entries.
    Append(Vec<GlobalEntry>),
    /// Removes the entries after this index; without one, all of them.
    TruncateAfter(Option<u64>),
    /// Removes all entries up to this one.
    Purge(GlobalLogId),
    /// Everything up to this index is agreed on by the group: apply it.
    Commit(u64),
}

/// What a [`Command`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It took effect (or had done so before).
    Applied,
    /// A later incarnation has taken over: this one must stop.
    Fenced,
    /// Something before it is missing: send again from the position reached.
    Gap,
    /// It can't be applied here, for instance because this region is not the subtree's home.
    Refused,
}

/// What the tree must do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Apply a request with the zxid and time its order gave it.
    Request {
        /// Who ordered it.
        orderer: Orderer,
        /// The zxid it has everywhere.
        zxid: i64,
        /// The time it has everywhere, ms since the Unix epoch.
        time_ms: i64,
        /// The region that it came from.
        region: RegionId,
        /// That region's lease epoch at this place of the order.
        lease_epoch: u64,
        /// The request.
        request: Bytes,
        /// Who in this region waits for the answer.
        caller: Option<Caller>,
    },
    /// Remove the ephemerals of a region's sessions from what the orderer orders. If the region is this
    /// one, its sessions that had such ephemerals have ended.
    ExpireRegion {
        /// Who ordered it.
        orderer: Orderer,
        /// The zxid it has everywhere.
        zxid: i64,
        /// The time, ms since the Unix epoch.
        time_ms: i64,
        /// The region.
        region: RegionId,
    },
    /// End this region's sessions that have ephemerals in subtrees ordered elsewhere.
    LapseLease,
    /// Replace the content of what the orderer orders by this complete snapshot.
    Install {
        /// Whose content.
        orderer: Orderer,
        /// The pieces, in order.
        pieces: Vec<Bytes>,
        /// Passed back to [`Federation::installed`].
        global: Option<GlobalInstall>,
    },
}

impl Federation {
    /// The state of a region that has just been formed.
    pub fn new(region: RegionId, mesh: &Mesh) -> Self {
        let mut federation = Self { region, ..Self::default() };
        if !mesh.regions.is_empty() {
            federation.orders.insert(Orderer::Global, Order::default());
        }
        for (id, subtree) in mesh.subtrees() {
            if let Mode::Homed { home } = subtree.mode {
                federation.orders.insert(Orderer::Home(id), Order { home, epoch: 1, ..Order::default() });
            }
        }
        federation
    }

    /// Whether this region puts the orderer's requests in order by itself.
    pub fn orders_here(&self, orderer: Orderer) -> bool {
        matches!(orderer, Orderer::Home(_))
            && self.orders.get(&orderer).is_some_and(|o| o.home == self.region)
    }

    /// Puts a request of this region's own clients into the outbox for its orderer; `false` if the
    /// outbox is full.
    pub fn send(&mut self, orderer: Orderer, caller: Caller, request: Bytes) -> bool {
        self.outboxes.entry(orderer).or_default().push(caller, request).is_some()
    }

    /// Orders something for a subtree that this region is home of.
    pub fn order(&mut self, subtree: SubtreeId, time_ms: i64, content: Content) -> Option<Delivery> {
        let orderer = Orderer::Home(subtree);
        if !self.orders_here(orderer) {
            return None;
        }
        let order = self.orders.get_mut(&orderer)?;
        let zxid = order.next_zxid();
        let record = MirrorRecord { position: order.position, zxid, time_ms, content };
        order.take_note_of(&record.content);
        // A record is bounded by the client frame it came in, so it always encodes.
        let bytes = codec::encode(&record).ok()?;
        self.mirrors.entry(subtree).or_default().push(record.position, bytes.into());
        self.deliver(orderer, zxid, time_ms, record.content)
    }

    /// Whether the group has ended a lease of this region of which the home of a subtree has not told yet. Until then
    /// it would take new ephemerals of this region's sessions for those of the lost lease, and take them away.
    pub fn awaits_end_of_lease(&self, orderer: Orderer) -> bool {
        !self.orders_here(orderer) && self.own_lease_epoch(orderer) < self.own_lease_epoch(Orderer::Global)
    }

    /// This region's lease, as of what it knows of an order.
    pub fn own_lease_epoch(&self, orderer: Orderer) -> u64 {
        self.orders.get(&orderer).map_or(0, |order| order.lease_epoch(self.region))
    }

    /// Takes the ephemerals of all regions whose leases have ended away from the subtrees that this region orders, as
    /// far as that was not done before.
    pub fn expire_regions_in_own_subtrees(&mut self, time_ms: i64) -> Vec<Delivery> {
        let ended: Vec<(RegionId, u64)> =
            self.orders.get(&Orderer::Global).iter().flat_map(|o| o.lease_epochs.clone()).collect();
        let mut deliveries = Vec::new();
        for (region, lease_epoch) in ended {
            self.expire_region_in_own_subtrees(region, lease_epoch, time_ms, &mut deliveries);
        }
        deliveries
    }

    /// What a region owes a subtree that it has just become home of: it orders what waits in its own outbox,
    /// and takes away the ephemerals of regions whose leases ended while the home was on its way.
    pub fn begin_home(&mut self, subtree: SubtreeId, time_ms: i64) -> Vec<Delivery> {
        let orderer = Orderer::Home(subtree);
        if !self.orders_here(orderer) {
            return Vec::new();
        }
        // Records of an earlier time as home do not join on to those that come now.
        self.mirrors.remove(&subtree);
        let mut deliveries = self.expire_regions_in_own_subtrees(time_ms);
        let waiting: Vec<(u64, Bytes)> = self
            .outboxes
            .get(&orderer)
            .iter()
            .flat_map(|outbox| outbox.requests.iter().map(|(n, p)| (*n, p.request.clone())))
            .collect();
        // An outbox has no gaps, so that all are ordered that were not ordered before.
        self.order_requests(subtree, self.region, waiting, time_ms, &mut deliveries);
        deliveries
    }

    fn move_home(&mut self, subtree: SubtreeId, to: RegionId, time_ms: i64) -> (Outcome, Vec<Delivery>) {
        if !self.orders_here(Orderer::Home(subtree)) || to == self.region || to == 0 {
            return (Outcome::Refused, Vec::new());
        }
        let lease_epoch = self.own_lease_epoch(Orderer::Global);
        self.order(subtree, time_ms, Content::MoveHome { to, lease_epoch });
        (Outcome::Applied, Vec::new())
    }

    /// Applies a command of the region's log.
    pub fn apply(&mut self, command: Command, time_ms: i64) -> (Outcome, Vec<Delivery>) {
        match command {
            Command::AcquireGlobal { incarnation } if incarnation > self.incarnation => {
                self.incarnation = incarnation;
                // Nothing is left to do, unless an end was missed: other regions' holders wait for it.
                (Outcome::Applied, self.expire_regions_in_own_subtrees(time_ms))
            }
            Command::AcquireGlobal { .. } => (Outcome::Fenced, Vec::new()),
            Command::Global { incarnation, change }
                if incarnation == self.incarnation || mutant::is(Mutant::UnfencedIncarnation) =>
            {
                self.apply_global(change, time_ms)
            }
            Command::Global { .. } => (Outcome::Fenced, Vec::new()),
            Command::Forward { subtree, region, first, requests } => {
                self.apply_forward(subtree, region, first, requests, time_ms)
            }
            Command::Mirror { subtree, records } => self.apply_mirror(subtree, &records, time_ms),
            Command::Stage { orderer, transfer, piece, bytes } => {
                (self.apply_stage(orderer, transfer, piece, bytes), Vec::new())
            }
            Command::Install { orderer, transfer, global } => self.apply_install(orderer, transfer, global),
            Command::LapseLease { lease_epoch } => {
                let current = self.own_lease_epoch(Orderer::Global);
                if lease_epoch == current {
                    (Outcome::Applied, vec![Delivery::LapseLease])
                } else {
                    (Outcome::Refused, Vec::new())
                }
            }
            Command::MoveHome { subtree, to } => self.move_home(subtree, to, time_ms),
        }
    }

    fn apply_global(&mut self, change: GlobalChange, time_ms: i64) -> (Outcome, Vec<Delivery>) {
        match change {
            GlobalChange::Vote(vote) => self.global.vote = Some(vote),
            GlobalChange::Append(entries) => {
                for entry in entries {
                    self.global.log.insert(entry.id.index, entry);
                }
            }
            GlobalChange::TruncateAfter(index) => self.global.truncate_after(index),
            GlobalChange::Purge(id) => self.global.purge(id),
            GlobalChange::Commit(upto) => return self.commit_global(upto, time_ms),
        }
        (Outcome::Applied, Vec::new())
    }

    fn commit_global(&mut self, upto: u64, time_ms: i64) -> (Outcome, Vec<Delivery>) {
        let mut deliveries = Vec::new();
        // None follows the last index that there can be.
        let mut next = self.global.applied.map_or(Some(0), |id| id.index.checked_add(1));
        while let Some(index) = next.filter(|index| *index <= upto) {
            let Some(entry) = self.global.log.get(&index).cloned() else { return (Outcome::Gap, deliveries) };
            self.apply_global_entry(&entry, time_ms, &mut deliveries);
            self.global.applied = Some(entry.id);
            next = index.checked_add(1);
        }
        (Outcome::Applied, deliveries)
    }

    fn apply_global_entry(&mut self, entry: &GlobalEntry, time_ms: i64, deliveries: &mut Vec<Delivery>) {
        let order = self.orders.entry(Orderer::Global).or_default();
        order.enter_epoch(u32::try_from(entry.id.term).unwrap_or(u32::MAX));
        match &entry.payload {
            GlobalPayload::Blank => {}
            GlobalPayload::Membership(members) => self.global.membership = Some(members.clone()),
            GlobalPayload::Command(bytes) => match codec::decode(bytes) {
                Ok(command) => self.apply_global_command(command, time_ms, deliveries),
                // Every region decodes the same bytes with the same result, so they stay equal.
                Err(error) => tracing::error!(%error, index = entry.id.index, "global entry skipped"),
            },
        }
    }

    fn apply_global_command(&mut self, command: GlobalCommand, now_ms: i64, deliveries: &mut Vec<Delivery>) {
        let order = self.orders.entry(Orderer::Global).or_default();
        match command {
            GlobalCommand::Forward { region, first, time_ms, requests } => {
                for (sequence, request) in numbered(first, requests) {
                    let order = self.orders.entry(Orderer::Global).or_default();
                    match order.admit(region, sequence) {
                        Admission::Repeated => continue,
                        Admission::Gap => break,
                        Admission::Next => {}
                    }
                    let zxid = order.next_zxid();
                    let content = Content::Request { region, sequence, request };
                    deliveries.extend(self.deliver(Orderer::Global, zxid, time_ms, content));
                }
            }
            GlobalCommand::ExpireRegion { region, lease_epoch, time_ms } => {
                if order.lease_epoch(region) != lease_epoch {
                    return;
                }
                let Some(lease_epoch) = lease_epoch.checked_add(1) else { return };
                let zxid = order.next_zxid();
                let content = Content::ExpireRegion { region, lease_epoch };
                order.take_note_of(&content);
                deliveries.extend(self.deliver(Orderer::Global, zxid, time_ms, content));
                self.expire_region_in_own_subtrees(region, lease_epoch, now_ms, deliveries);
            }
        }
    }

    /// A region that lost its lease also loses its ephemerals in the subtrees that this region orders.
    fn expire_region_in_own_subtrees(
        &mut self,
        region: RegionId,
        lease_epoch: u64,
        time_ms: i64,
        deliveries: &mut Vec<Delivery>,
    ) {
        let subtrees: Vec<SubtreeId> = self
            .orders
            .iter()
            .filter_map(|(orderer, order)| match orderer {
                Orderer::Home(subtree) if order.home == self.region => Some(*subtree),
                _ => None,
            })
            .collect();
        for subtree in subtrees {
            deliveries.extend(self.expire_in(subtree, region, lease_epoch, time_ms));
        }
    }

    /// Takes the ephemerals of another region away, unless that was done for this lease before.
    fn expire_in(
        &mut self,
        subtree: SubtreeId,
        region: RegionId,
        lease_epoch: u64,
        time_ms: i64,
    ) -> Option<Delivery> {
        let known = self.orders.get(&Orderer::Home(subtree))?.lease_epoch(region);
        if region == self.region || known >= lease_epoch {
            return None;
        }
        self.order(subtree, time_ms, Content::ExpireRegion { region, lease_epoch })
    }

    fn apply_forward(
        &mut self,
        subtree: SubtreeId,
        region: RegionId,
        first: u64,
        requests: Vec<Bytes>,
        time_ms: i64,
    ) -> (Outcome, Vec<Delivery>) {
        let orderer = Orderer::Home(subtree);
        if !self.orders_here(orderer) || region == self.region {
            return (Outcome::Refused, Vec::new());
        }
        let mut deliveries = Vec::new();
        let outcome =
            self.order_requests(subtree, region, numbered(first, requests), time_ms, &mut deliveries);
        (outcome, deliveries)
    }

    /// Orders the requests of a region, each once and none before those that come before it.
    fn order_requests(
        &mut self,
        subtree: SubtreeId,
        region: RegionId,
        requests: impl IntoIterator<Item = (u64, Bytes)>,
        time_ms: i64,
        deliveries: &mut Vec<Delivery>,
    ) -> Outcome {
        for (sequence, request) in requests {
            let Some(order) = self.orders.get_mut(&Orderer::Home(subtree)) else { return Outcome::Refused };
            match order.admit(region, sequence) {
                Admission::Repeated => continue,
                Admission::Gap => return Outcome::Gap,
                Admission::Next => {}
            }
            deliveries.extend(self.order(subtree, time_ms, Content::Request { region, sequence, request }));
        }
        Outcome::Applied
    }

    fn apply_mirror(
        &mut self,
        subtree: SubtreeId,
        records: &[Bytes],
        time_ms: i64,
    ) -> (Outcome, Vec<Delivery>) {
        let was_home = self.orders_here(Orderer::Home(subtree));
        let mut deliveries = Vec::new();
        let outcome = self.apply_records(subtree, records, &mut deliveries);
        if !was_home && self.orders_here(Orderer::Home(subtree)) {
            deliveries.extend(self.begin_home(subtree, time_ms));
        }
        (outcome, deliveries)
    }

    fn apply_records(
        &mut self,
        subtree: SubtreeId,
        records: &[Bytes],
        deliveries: &mut Vec<Delivery>,
    ) -> Outcome {
        let orderer = Orderer::Home(subtree);
        for bytes in records {
            let Ok(record) = codec::decode::<MirrorRecord>(bytes) else { return Outcome::Refused };
            let Some(order) = self.orders.get_mut(&orderer).filter(|o| o.home != self.region) else {
                return Outcome::Refused;
            };
            if record.position <= order.position {
                if mutant::is(Mutant::MirrorAppliedTwice) {
                    deliveries.extend(self.deliver(orderer, record.zxid, record.time_ms, record.content));
                }
                continue;
            }
            if record.position - 1 != order.position {
                return Outcome::Gap;
            }
            order.position = record.position;
            order.epoch = u32::try_from(record.zxid >> 32).unwrap_or(order.epoch);
            order.counter = u32::try_from(record.zxid & 0xffff_ffff).unwrap_or(order.counter);
            order.take_note_of(&record.content);
            deliveries.extend(self.deliver(orderer, record.zxid, record.time_ms, record.content));
        }
        Outcome::Applied
    }

    /// Turns a position of an order into what the tree must do, and settles the outbox.
    fn deliver(&mut self, orderer: Orderer, zxid: i64, time_ms: i64, content: Content) -> Option<Delivery> {
        Some(match content {
            Content::MoveHome { .. } => return None,
            Content::ExpireRegion { region, .. } => Delivery::ExpireRegion { orderer, zxid, time_ms, region },
            Content::Request { region, sequence, request } => {
                let settled = (region == self.region && sequence > 0)
                    .then(|| self.outboxes.get_mut(&orderer)?.settle(sequence))
                    .flatten();
                let caller = settled.map(|p| p.caller).filter(Caller::waits);
                // As of this place: an expiry that follows in the same entry of the region's log comes later.
                let lease_epoch = self.orders.get(&orderer).map_or(0, |o| o.lease_epoch(region));
                Delivery::Request { orderer, zxid, time_ms, region, lease_epoch, request, caller }
            }
        })
    }

    fn apply_stage(&mut self, orderer: Orderer, transfer: u64, piece: u32, bytes: Bytes) -> Outcome {
        if piece == 0 {
            self.staging = Some(Staging { orderer, transfer, pieces: Vec::new() });
        }
        match &mut self.staging {
            Some(s) if s.orderer == orderer && s.transfer == transfer && s.pieces.len() == piece as usize => {
                s.pieces.push(bytes);
                Outcome::Applied
            }
            _ => Outcome::Gap,
        }
    }

    fn apply_install(
        &mut self,
        orderer: Orderer,
        transfer: u64,
        global: Option<GlobalInstall>,
    ) -> (Outcome, Vec<Delivery>) {
        if global.as_ref().is_some_and(|g| g.incarnation != self.incarnation) {
            return (Outcome::Fenced, Vec::new());
        }
        match self.staging.take() {
            Some(s) if s.orderer == orderer && s.transfer == transfer => {
                (Outcome::Applied, vec![Delivery::Install { orderer, pieces: s.pieces, global }])
            }
            _ => (Outcome::Gap, Vec::new()),
        }
    }

    /// The content of a snapshot has been verified and has replaced the tree's: takes over its order.
    /// Returns those whose requests were ordered at positions that the snapshot covers: their results
    /// are not known here.
    pub fn installed(
        &mut self,
        orderer: Orderer,
        order: Order,
        global: Option<GlobalInstall>,
    ) -> Vec<Caller> {
        let cursor = order.cursors.get(&self.region).copied().unwrap_or(0);
        self.orders.insert(orderer, order);
        if let Some(global) = global {
            self.global.purge(global.applied);
            self.global.applied = Some(global.applied);
            self.global.membership = Some(global.membership);
        }
        let Some(outbox) = self.outboxes.get_mut(&orderer) else { return Vec::new() };
        let settled: Vec<u64> = outbox.requests.keys().copied().take_while(|s| *s <= cursor).collect();
        settled.into_iter().filter_map(|s| outbox.settle(s)).map(|p| p.caller).filter(Caller::waits).collect()
    }
}

/// Requests with their numbers, from the first on; numbers don't run over.
fn numbered(first: u64, requests: Vec<Bytes>) -> impl Iterator<Item = (u64, Bytes)> {
    let number = move |(after, request)| Some((first.checked_add(after)?, request));
    (0..).zip(requests).map_while(number)
}

impl GlobalStore {
    /// The last entry of the log, or the one up to which it is purged.
    pub fn last(&self) -> Option<GlobalLogId> {
        self.log.get_max().map(|(_, entry)| entry.id).or(self.purged)
    }

    fn truncate_after(&mut self, index: Option<u64>) {
        let Some(index) = index else {
            self.log.clear();
            return;
        };
        let (mut kept, at, _) = self.log.split_lookup(&index);
        if let Some(entry) = at {
            kept.insert(index, entry);
        }
        self.log = kept;
    }

    fn purge(&mut self, id: GlobalLogId) {
        let (_, rest) = self.log.split(&id.index);
        self.log = rest;
        self.purged = Some(id);
    }
}
