//! Requests of clients.

use bytes::{BufMut, BytesMut};

use crate::jute::{
    Input, put_boolean, put_buffer, put_nullable_buffer, put_nullable_string, put_string, put_vector,
};
use crate::{Acl, AuthPacket, OpCode, RequestHeader, WireError, begin_frame, finish_frame};

/// A request's body, borrowed from its frame.
///
/// A null string reads as empty where ZooKeeper makes no difference (an empty path is refused later,
/// as a bad one), and a null list as an empty one. Numbers that name something (create modes, watch
/// modes, watcher types) stay numbers here: what is wrong with them is for the server to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<'a> {
    /// Creates a znode; the reply has its path.
    Create(Create<'a>),
    /// Creates a znode; the reply has its path and stat.
    Create2(Create<'a>),
    /// Creates a container.
    CreateContainer(Create<'a>),
    /// Creates a znode that expires unless written.
    CreateTtl {
        /// The znode.
        create: Create<'a>,
        /// Its time to live in ms.
        ttl_ms: i64,
    },
    /// Deletes a znode.
    Delete {
        /// The znode.
        path: &'a str,
        /// The version it must have, or -1.
        version: i32,
    },
    /// Reads a znode's stat.
    Exists {
        /// The znode.
        path: &'a str,
        /// Leave a watch?
        watch: bool,
    },
    /// Reads a znode's data.
    GetData {
        /// The znode.
        path: &'a str,
        /// Leave a watch?
        watch: bool,
    },
    /// Writes a znode's data.
    SetData {
        /// The znode.
        path: &'a str,
        /// The data; null stays null when read back.
        data: Option<&'a [u8]>,
        /// The version it must have, or -1.
        version: i32,
    },
    /// Reads a znode's ACL.
    GetAcl {
        /// The znode.
        path: &'a str,
    },
    /// Writes a znode's ACL.
    SetAcl {
        /// The znode.
        path: &'a str,
        /// The entries.
        acl: Vec<Acl<'a>>,
        /// The ACL version it must have, or -1.
        version: i32,
    },
    /// Lists a znode's children.
    GetChildren {
        /// The znode.
        path: &'a str,
        /// Leave a watch?
        watch: bool,
    },
    /// Lists a znode's children and reads its stat.
    GetChildren2 {
        /// The znode.
        path: &'a str,
        /// Leave a watch?
        watch: bool,
    },
    /// Waits until the server has caught up with the leader.
    Sync {
        /// Echoed in the reply.
        path: &'a str,
    },
    /// Keeps the session alive.
    Ping,
    /// Compares a znode's version; only within [`Request::Multi`].
    Check {
        /// The znode.
        path: &'a str,
        /// The version it must have, or -1.
        version: i32,
    },
    /// Several writes, all or none: creates of any kind, `Delete`, `SetData` and `Check`.
    Multi(Vec<Request<'a>>),
    /// Several reads: `GetChildren` and `GetData`.
    MultiRead(Vec<Request<'a>>),
    /// Changes the ensemble's members.
    Reconfig {
        /// Servers to add.
        joining: Option<&'a str>,
        /// Servers to remove.
        leaving: Option<&'a str>,
        /// All members, instead of the other two.
        new_members: Option<&'a str>,
        /// The configuration it must follow, or -1.
        config_id: i64,
    },
    /// Asks whether the session has such watches.
    CheckWatches {
        /// The znode.
        path: &'a str,
        /// A [`crate::WatcherType`].
        kind: i32,
    },
    /// Removes watches of the session.
    RemoveWatches {
        /// The znode.
        path: &'a str,
        /// A [`crate::WatcherType`].
        kind: i32,
    },
    /// Adds a persistent watch.
    AddWatch {
        /// The znode.
        path: &'a str,
        /// A [`crate::AddWatchMode`].
        mode: i32,
    },
    /// Sets watches again after a reconnect; `persistent` and `recursive` are not sent.
    SetWatches(SetWatches<'a>),
    /// Sets watches again after a reconnect.
    SetWatches2(SetWatches<'a>),
    /// Adds credentials to the session.
    Auth(AuthPacket<'a>),
    /// A step of a SASL exchange.
    Sasl {
        /// The client's token.
        token: &'a [u8],
    },
    /// Lists the session's ephemeral znodes.
    GetEphemerals {
        /// The prefix of their paths.
        prefix: &'a str,
    },
    /// Counts a znode's descendants.
    GetAllChildrenNumber {
        /// The znode.
        path: &'a str,
    },
    /// Lists the session's identities.
    WhoAmI,
    /// Ends the session.
    CloseSession,
}

/// The znode that a create asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create<'a> {
    /// Its path; the server appends ten digits if it is sequential.
    pub path: &'a str,
    /// Its data; null stays null when read back.
    pub data: Option<&'a [u8]>,
    /// Its ACL.
    pub acl: Vec<Acl<'a>>,
    /// A [`crate::CreateMode`].
    pub flags: i32,
}

/// The watches that a client had when it lost its connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetWatches<'a> {
    /// The newest zxid that the client has seen: what changed since fires at once.
    pub relative_zxid: i64,
    /// Znodes with a watch of their data.
    pub data: Vec<&'a str>,
    /// Znodes, absent then, with a watch of their existence.
    pub exist: Vec<&'a str>,
    /// Znodes with a watch of their list of children.
    pub child: Vec<&'a str>,
    /// Znodes with a persistent watch.
    pub persistent: Vec<&'a str>,
    /// Znodes with a persistent recursive watch.
    pub recursive: Vec<&'a str>,
}

impl<'a> Request<'a> {
    /// Reads the body of a request; further bytes are ignored, as Java's servers do. A string that is not UTF-8
    /// reads as one that names nothing.
    ///
    /// Operations that are not a client's to ask ([`OpCode::Notification`],
    /// [`OpCode::DeleteContainer`], [`OpCode::CreateSession`], [`OpCode::Error`]) are
    /// [`WireError::NotARequest`].
    pub fn decode(op: OpCode, body: &'a [u8]) -> Result<Self, WireError> {
        let mut input = Input::of_client(body);
        match op {
            OpCode::Multi | OpCode::MultiRead => Self::read_multi(op, &mut input),
            _ => Self::read(op, &mut input),
        }
    }

    /// Appends the body.
    ///
    /// The operations within a multi are written as they are; a decoder refuses those that may not
    /// be there.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Create(create) | Self::Create2(create) | Self::CreateContainer(create) => {
                create.encode(out);
            }
            Self::CreateTtl { create, ttl_ms } => {
                create.encode(out);
                out.put_i64(*ttl_ms);
            }
            Self::SetData { path, data, version } => {
                put_string(path, out);
                put_nullable_buffer(*data, out);
                out.put_i32(*version);
            }
            Self::SetAcl { path, acl, version } => {
                put_string(path, out);
                put_vector(acl, out, Acl::encode);
                out.put_i32(*version);
            }
            Self::Exists { path, watch }
            | Self::GetData { path, watch }
            | Self::GetChildren { path, watch }
            | Self::GetChildren2 { path, watch } => {
                put_string(path, out);
                put_boolean(*watch, out);
            }
            Self::Delete { path, version: number }
            | Self::Check { path, version: number }
            | Self::CheckWatches { path, kind: number }
            | Self::RemoveWatches { path, kind: number }
            | Self::AddWatch { path, mode: number } => {
                put_string(path, out);
                out.put_i32(*number);
            }
            Self::GetAcl { path }
            | Self::Sync { path }
            | Self::GetEphemerals { prefix: path }
            | Self::GetAllChildrenNumber { path } => put_string(path, out),
            Self::Multi(operations) | Self::MultiRead(operations) => put_multi(operations, out),
            Self::Reconfig { joining, leaving, new_members, config_id } => {
                put_nullable_string(*joining, out);
                put_nullable_string(*leaving, out);
                put_nullable_string(*new_members, out);
                out.put_i64(*config_id);
            }
            Self::SetWatches(watches) => watches.encode(out),
            Self::SetWatches2(watches) => watches.encode2(out),
            Self::Auth(packet) => packet.encode(out),
            Self::Sasl { token } => put_buffer(token, out),
            Self::Ping | Self::WhoAmI | Self::CloseSession => {}
        }
    }

    /// Appends a whole frame: length, header and body.
    pub fn encode_frame(&self, xid: i32, out: &mut BytesMut) -> Result<(), WireError> {
        let start = begin_frame(out);
        RequestHeader { xid, op: self.op().into() }.encode(out);
        self.encode(out);
        finish_frame(start, out)
    }

    /// The operation that it asks for.
    pub fn op(&self) -> OpCode {
        match self {
            Self::Create(_) => OpCode::Create,
            Self::Create2(_) => OpCode::Create2,
            Self::CreateContainer(_) => OpCode::CreateContainer,
            Self::CreateTtl { .. } => OpCode::CreateTtl,
            Self::Delete { .. } => OpCode::Delete,
            Self::Exists { .. } => OpCode::Exists,
            Self::GetData { .. } => OpCode::GetData,
            Self::SetData { .. } => OpCode::SetData,
            Self::GetAcl { .. } => OpCode::GetAcl,
            Self::SetAcl { .. } => OpCode::SetAcl,
            Self::GetChildren { .. } => OpCode::GetChildren,
            Self::GetChildren2 { .. } => OpCode::GetChildren2,
            Self::Sync { .. } => OpCode::Sync,
            Self::Ping => OpCode::Ping,
            Self::Check { .. } => OpCode::Check,
            Self::Multi(_) => OpCode::Multi,
            Self::MultiRead(_) => OpCode::MultiRead,
            Self::Reconfig { .. } => OpCode::Reconfig,
            Self::CheckWatches { .. } => OpCode::CheckWatches,
            Self::RemoveWatches { .. } => OpCode::RemoveWatches,
            Self::AddWatch { .. } => OpCode::AddWatch,
            Self::SetWatches(_) => OpCode::SetWatches,
            Self::SetWatches2(_) => OpCode::SetWatches2,
            Self::Auth(_) => OpCode::Auth,
            Self::Sasl { .. } => OpCode::Sasl,
            Self::GetEphemerals { .. } => OpCode::GetEphemerals,
            Self::GetAllChildrenNumber { .. } => OpCode::GetAllChildrenNumber,
            Self::WhoAmI => OpCode::WhoAmI,
            Self::CloseSession => OpCode::CloseSession,
        }
    }

    /// The one path that it is about, if there is one.
    pub fn path(&self) -> Option<&'a str> {
        match self {
            Self::Create(create)
            | Self::Create2(create)
            | Self::CreateContainer(create)
            | Self::CreateTtl { create, .. } => Some(create.path),
            Self::Delete { path, .. }
            | Self::Exists { path, .. }
            | Self::GetData { path, .. }
            | Self::SetData { path, .. }
            | Self::GetAcl { path }
            | Self::SetAcl { path, .. }
            | Self::GetChildren { path, .. }
            | Self::GetChildren2 { path, .. }
            | Self::Sync { path }
            | Self::Check { path, .. }
            | Self::CheckWatches { path, .. }
            | Self::RemoveWatches { path, .. }
            | Self::AddWatch { path, .. }
            | Self::GetEphemerals { prefix: path }
            | Self::GetAllChildrenNumber { path } => Some(path),
            Self::Ping
            | Self::Multi(_)
            | Self::MultiRead(_)
            | Self::Reconfig { .. }
            | Self::SetWatches(_)
            | Self::SetWatches2(_)
            | Self::Auth(_)
            | Self::Sasl { .. }
            | Self::WhoAmI
            | Self::CloseSession => None,
        }
    }

    /// Reads one operation that is not a multi.
    fn read(op: OpCode, input: &mut Input<'a>) -> Result<Self, WireError> {
        Ok(match op {
            OpCode::Create => Self::Create(Create::read(input)?),
            OpCode::Create2 => Self::Create2(Create::read(input)?),
            OpCode::CreateContainer => Self::CreateContainer(Create::read(input)?),
            OpCode::CreateTtl => Self::CreateTtl { create: Create::read(input)?, ttl_ms: input.long()? },
            OpCode::Delete => Self::Delete { path: input.string()?, version: input.int()? },
            OpCode::Exists => Self::Exists { path: input.string()?, watch: input.boolean()? },
            OpCode::GetData => Self::GetData { path: input.string()?, watch: input.boolean()? },
            OpCode::SetData => {
                Self::SetData { path: input.string()?, data: input.buffer()?, version: input.int()? }
            }
            OpCode::GetAcl => Self::GetAcl { path: input.string()? },
            OpCode::SetAcl => {
                Self::SetAcl { path: input.string()?, acl: read_acl(input)?, version: input.int()? }
            }
            OpCode::GetChildren => Self::GetChildren { path: input.string()?, watch: input.boolean()? },
            OpCode::GetChildren2 => Self::GetChildren2 { path: input.string()?, watch: input.boolean()? },
            OpCode::Sync => Self::Sync { path: input.string()? },
            OpCode::Ping => Self::Ping,
            OpCode::Check => Self::Check { path: input.string()?, version: input.int()? },
            OpCode::Reconfig => Self::Reconfig {
                joining: input.nullable_string()?,
                leaving: input.nullable_string()?,
                new_members: input.nullable_string()?,
                config_id: input.long()?,
            },
            OpCode::CheckWatches => Self::CheckWatches { path: input.string()?, kind: input.int()? },
            OpCode::RemoveWatches => Self::RemoveWatches { path: input.string()?, kind: input.int()? },
            OpCode::AddWatch => Self::AddWatch { path: input.string()?, mode: input.int()? },
            OpCode::SetWatches => Self::SetWatches(SetWatches::read(input)?),
            OpCode::SetWatches2 => Self::SetWatches2(SetWatches::read2(input)?),
            OpCode::Auth => Self::Auth(AuthPacket::read(input)?),
            OpCode::Sasl => Self::Sasl { token: input.buffer()?.unwrap_or_default() },
            OpCode::GetEphemerals => Self::GetEphemerals { prefix: input.string()? },
            OpCode::GetAllChildrenNumber => Self::GetAllChildrenNumber { path: input.string()? },
            OpCode::WhoAmI => Self::WhoAmI,
            OpCode::CloseSession => Self::CloseSession,
            OpCode::Multi
            | OpCode::MultiRead
            | OpCode::Notification
            | OpCode::DeleteContainer
            | OpCode::CreateSession
            | OpCode::Error => return Err(WireError::NotARequest(op)),
        })
    }

    fn read_multi(multi: OpCode, input: &mut Input<'a>) -> Result<Self, WireError> {
        let mut operations = Vec::new();
        loop {
            let header = MultiHeader::read(input)?;
            if header.done {
                break;
            }
            let refused = WireError::NotInMulti { operation: header.op, multi };
            let op = OpCode::try_from(header.op).map_err(|_| refused)?;
            if !may_be_in(multi, op) {
                return Err(refused);
            }
            operations.push(Self::read(op, input)?);
        }
        Ok(if multi == OpCode::Multi { Self::Multi(operations) } else { Self::MultiRead(operations) })
    }
}

/// Writes and reads don't mix within one multi.
fn may_be_in(multi: OpCode, op: OpCode) -> bool {
    match op {
        OpCode::Create
        | OpCode::Create2
        | OpCode::CreateContainer
        | OpCode::CreateTtl
        | OpCode::Delete
        | OpCode::SetData
        | OpCode::Check => multi == OpCode::Multi,
        OpCode::GetChildren | OpCode::GetData => multi == OpCode::MultiRead,
        _ => false,
    }
}

fn put_multi(operations: &[Request<'_>], out: &mut BytesMut) {
    for operation in operations {
        // Java's client writes -1 here; servers ignore it.
        MultiHeader { op: operation.op().into(), done: false, error: -1 }.encode(out);
        operation.encode(out);
    }
    MultiHeader::END.encode(out);
}

/// In front of every operation and every result of a multi, and after the last.
pub(crate) struct MultiHeader {
    pub(crate) op: i32,
    pub(crate) done: bool,
    pub(crate) error: i32,
}

impl MultiHeader {
    pub(crate) const END: Self = Self { op: -1, done: true, error: -1 };

    pub(crate) fn read(input: &mut Input<'_>) -> Result<Self, WireError> {
        Ok(Self { op: input.int()?, done: input.boolean()?, error: input.int()? })
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_i32(self.op);
        put_boolean(self.done, out);
        out.put_i32(self.error);
    }
}

impl<'a> Create<'a> {
    fn read(input: &mut Input<'a>) -> Result<Self, WireError> {
        Ok(Self { path: input.string()?, data: input.buffer()?, acl: read_acl(input)?, flags: input.int()? })
    }

    fn encode(&self, out: &mut BytesMut) {
        put_string(self.path, out);
        put_nullable_buffer(self.data, out);
        put_vector(&self.acl, out, Acl::encode);
        out.put_i32(self.flags);
    }
}

fn read_acl<'a>(input: &mut Input<'a>) -> Result<Vec<Acl<'a>>, WireError> {
    input.vector(Acl::LENGTH_MIN, Acl::read)
}

impl<'a> SetWatches<'a> {
    fn read(input: &mut Input<'a>) -> Result<Self, WireError> {
        Ok(Self {
            relative_zxid: input.long()?,
            data: input.strings()?,
            exist: input.strings()?,
            child: input.strings()?,
            ..Self::default()
        })
    }

    fn read2(input: &mut Input<'a>) -> Result<Self, WireError> {
        let watches = Self::read(input)?;
        Ok(Self { persistent: input.strings()?, recursive: input.strings()?, ..watches })
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put_i64(self.relative_zxid);
        for paths in [&self.data, &self.exist, &self.child] {
            put_vector(paths, out, |path, out| put_string(path, out));
        }
    }

    fn encode2(&self, out: &mut BytesMut) {
        self.encode(out);
        for paths in [&self.persistent, &self.recursive] {
            put_vector(paths, out, |path, out| put_string(path, out));
        }
    }
}
