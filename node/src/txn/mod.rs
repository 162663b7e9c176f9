//! Transactions: what the entries of a region's log do to the region's state.
//!
//! An entry is a [`Batch`] of [`Command`]s with one time. [`State::apply`] is deterministic: every server
//! of the region, observers included, gets the same tree, sessions and federation state from the same
//! log, and every server learns from the [`Effects`] which of its own clients to answer and which
//! watches to fire.
//!
//! A client's request goes one of three ways, by the subtree of its path: it is applied at once (local),
//! ordered here and recorded for the mirrors (this region is the subtree's home), or put into the outbox
//! for its orderer and applied when it comes back in that order. The last two end in the same
//! [`request::apply`].

pub mod acl;
pub mod ensemble;
pub mod import;
pub mod reap;
pub mod request;
pub mod restore;
pub mod snapshot;
mod state;
#[cfg(test)]
mod tests;

pub use state::{
    Answer, ClosedSession, Effects, Me, Owner, Position, Session, Sessions, State, makes_ephemeral, route,
    sessions_of_region,
};

use std::sync::Arc;

use bytes::Bytes;
use meridian_bridge::mesh::Mesh;
use meridian_bridge::state as federation;
use meridian_seam::codec::{self, CodecError};
use meridian_wire::{ErrorCode, PASSWORD_LENGTH, Stat};
use serde::{Deserialize, Serialize};

pub use meridian_bridge::state::Caller;

/// One entry of a region's log.
#[derive(Debug, Serialize, Deserialize)]
pub struct Batch<'a> {
    /// The leader's time, ms since the Unix epoch. Time never goes back: an earlier one counts as the
    /// time before it.
    pub time_ms: i64,
    /// Encoded [`Command`]s.
    #[serde(borrow)]
    pub commands: Vec<&'a serde_bytes::Bytes>,
}

impl Batch<'_> {
    /// Encodes a batch of encoded commands.
    ///
    /// # Errors
    /// If it is larger than a record may be.
    pub fn encode(time_ms: i64, commands: &[Bytes]) -> Result<Bytes, CodecError> {
        let commands = commands.iter().map(|c| serde_bytes::Bytes::new(c)).collect();
        Ok(codec::encode(&Batch { time_ms, commands })?.into())
    }
}

/// A change of a region's state.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Command<'a> {
    /// A client's write.
    #[serde(borrow)]
    Client(ClientRequest<'a>),
    /// Opens a session.
    OpenSession {
        /// Whom to answer.
        caller: Caller,
        /// The new session's identifier, unique for ever.
        session: i64,
        /// The connection that opens it, a number of the caller's.
        connection: u64,
        /// The negotiated timeout.
        timeout_ms: u32,
        /// What a client must know to take it up again.
        password: [u8; PASSWORD_LENGTH],
    },
    /// Takes a session up again from another connection.
    MoveSession {
        /// Whom to answer.
        caller: Caller,
        /// The session.
        session: i64,
        /// The connection that takes it up, a number of the caller's.
        connection: u64,
        /// The password given.
        password: [u8; PASSWORD_LENGTH],
        /// The timeout negotiated anew.
        timeout_ms: u32,
    },
    /// Ends sessions that have not been heard of for their timeout.
    ExpireSessions {
        /// The sessions, each with the owner that the leader last knew: one that has moved since lives.
        sessions: Vec<(i64, Owner)>,
    },
    /// Fixes the mesh's table, once.
    FormMesh {
        /// The table.
        mesh: Mesh,
    },
    /// A change of the federation's state.
    Bridge(federation::Command),
    /// Fixes the first members, once.
    FormEnsemble {
        /// The members.
        members: ensemble::Members,
    },
    /// An operator asks for other members; dropped if they have changed since, or a change is under way.
    ChangeMembers {
        /// The version of the members that it was made for.
        version: i64,
        /// The members that there are to be.
        members: ensemble::Members,
    },
    /// The leader has carried out a change of members, or can't.
    MembersChanged {
        /// Which change.
        id: i64,
        /// An [`ErrorCode`] if it came to nothing.
        error: i32,
    },
    /// Deletes znodes that go by themselves, if they are due: see [`reap`].
    Reap {
        /// The paths.
        paths: Vec<Box<str>>,
        /// How long a container stays that never had children, in ms; 0 is for ever.
        never_used_ms: i64,
    },
    /// What the leader's configuration says about clients' requests.
    SetPolicy(Policy),
    /// Takes znodes of another ensemble over.
    Import(import::Import),
    /// A write of a client whose session only its server knows.
    LocalClient(ClientRequest<'a>),
    /// Replaces the region's own znodes by those of a snapshot.
    Restore(restore::Restore),
}

/// What the servers of a region must agree on to judge requests alike. The leader's configuration counts, as in
/// ZooKeeper, where the leader judges all requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Whether znodes may have a time to live (`extendedTypesEnabled`).
    pub extended_types: bool,
    /// Whether hard limits of quotas refuse writes (`enforceQuota`).
    pub enforce_quota: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { extended_types: true, enforce_quota: false }
    }
}

/// A client's write, as it stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientRequest<'a> {
    /// Whom to answer.
    pub caller: Caller,
    /// The session.
    pub session: i64,
    /// The connection it came on, a number of the caller's.
    pub connection: u64,
    /// Who the client has proved to be: encoded [`acl::Identities`], empty for nobody in particular.
    #[serde(with = "serde_bytes")]
    pub identities: &'a [u8],
    /// A [`meridian_wire::OpCode`].
    pub op: i32,
    /// The request's body as the client sent it.
    #[serde(with = "serde_bytes")]
    pub body: &'a [u8],
}

/// A request that is ordered for several regions, as the orderers carry it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum SharedRequest<'a> {
    /// A client's write.
    Client {
        /// The session.
        session: i64,
        /// The lease epoch that the session's region knew when it sent the request.
        lease_epoch: u64,
        /// Whether the session may own ephemerals that the orderer orders: then it has ended if its region has
        /// lost that lease since.
        may_own: bool,
        /// Who the client has proved to be.
        #[serde(with = "serde_bytes")]
        identities: &'a [u8],
        /// A [`meridian_wire::OpCode`].
        op: i32,
        /// The request's body as the client sent it.
        #[serde(with = "serde_bytes")]
        body: &'a [u8],
    },
    /// A session has ended: its ephemerals go.
    CloseSession {
        /// The session.
        session: i64,
    },
    /// Znodes that go by themselves are due.
    Reap {
        /// The paths.
        #[serde(borrow)]
        paths: Vec<&'a str>,
        /// See [`Command::Reap`].
        never_used_ms: i64,
    },
}

/// What a request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// [`ErrorCode::Ok`] or why it had no effect.
    pub error: ErrorCode,
    /// What the client gets besides.
    pub reply: Reply,
}

/// The body of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing besides the header.
    Empty,
    /// A path: of create and sync.
    Path(Arc<str>),
    /// A path and a stat: of create2.
    PathStat(Arc<str>, Stat),
    /// A stat: of setData and setACL.
    Stat(Stat),
    /// The members in force and the stat of the znode that tells them: of reconfig.
    Members(Bytes, Stat),
    /// One for each operation of a multi.
    Multi(Vec<MultiResult>),
    /// A session opened or taken up, with its timeout in ms.
    Session(u32),
}

/// The result of one operation of a multi.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MultiResult {
    /// It took effect.
    Created(Arc<str>, Option<Stat>),
    /// It took effect.
    Set(Stat),
    /// It took effect (delete) or held (check).
    Done(meridian_wire::OpCode),
    /// It failed, or had no effect because another did.
    Failed(ErrorCode),
}

impl Outcome {
    /// Success.
    pub fn ok(reply: Reply) -> Self {
        Self { error: ErrorCode::Ok, reply }
    }

    /// Failure.
    pub fn error(error: ErrorCode) -> Self {
        Self { error, reply: Reply::Empty }
    }
}
