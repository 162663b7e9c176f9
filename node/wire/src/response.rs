//! Replies of servers.

use bytes::{BufMut, BytesMut};

use crate::jute::{Input, put_nullable_buffer, put_string, put_vector};
use crate::request::MultiHeader;
use crate::{Acl, ClientInfo, ErrorCode, OpCode, ReplyHeader, Stat, WireError, begin_frame, finish_frame};

/// A reply's body, borrowed from the server's tree or from the client's frame.
///
/// A reply whose header has an error has no body ([`Response::Empty`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response<'a> {
    /// To all that answer with their header alone: delete, ping, auth, setting, checking and removing
    /// watches, and closing the session.
    Empty,
    /// To `create` and to `sync`.
    Path(&'a str),
    /// To `create2`, `createContainer` and `createTTL`.
    Create2 {
        /// The path, with the digits of a sequential znode.
        path: &'a str,
        /// The new znode's stat.
        stat: Stat,
    },
    /// To `exists`, `setData` and `setACL`.
    Stat(Stat),
    /// To `getData` and `reconfig`.
    Data {
        /// The data, or null.
        data: Option<&'a [u8]>,
        /// The znode's stat.
        stat: Stat,
    },
    /// To `getACL`.
    Acl {
        /// The entries.
        acl: Vec<Acl<'a>>,
        /// The znode's stat.
        stat: Stat,
    },
    /// To `getChildren` (the children's names) and `getEphemerals` (the paths). A server need not
    /// collect them: [`encode_names`].
    Names(Vec<&'a str>),
    /// To `getChildren2`. A server need not collect the names: [`encode_names`], then [`Stat::encode`].
    Children2 {
        /// The children's names.
        children: Vec<&'a str>,
        /// The znode's stat.
        stat: Stat,
    },
    /// To `getAllChildrenNumber`.
    Number(i32),
    /// To `addWatch`.
    Error(ErrorCode),
    /// To `sasl`.
    Token(Option<&'a [u8]>),
    /// To `whoAmI`.
    Clients(Vec<ClientInfo<'a>>),
    /// To `multi` and `multiRead`, in the order of the operations. In the reply to a failed `multi` all
    /// are [`OpResult::Error`], while the header says success.
    Results(Vec<OpResult<'a>>),
}

/// The result of one operation of a multi.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResult<'a> {
    /// Of `create`: the path.
    Create(&'a str),
    /// Of `create2`, `createContainer` and `createTTL`.
    Create2 {
        /// The path, with the digits of a sequential znode.
        path: &'a str,
        /// The new znode's stat.
        stat: Stat,
    },
    /// Of `delete`.
    Delete,
    /// Of `setData`.
    SetData(Stat),
    /// Of `check`.
    Check,
    /// Of `getChildren`.
    GetChildren(Vec<&'a str>),
    /// Of `getData`.
    GetData {
        /// The data, or null.
        data: Option<&'a [u8]>,
        /// The znode's stat.
        stat: Stat,
    },
    /// Of any operation: in a failed `multi` [`ErrorCode::Ok`] before the one that failed, its error, and
    /// [`ErrorCode::RuntimeInconsistency`] after it; in a `multiRead` each read's own error.
    Error(ErrorCode),
}

impl<'a> Response<'a> {
    /// Reads the body of a successful reply to `op`; further bytes are ignored.
    pub fn decode(op: OpCode, body: &'a [u8]) -> Result<Self, WireError> {
        let input = &mut Input::new(body);
        Ok(match op {
            OpCode::Create | OpCode::Sync => Self::Path(input.string()?),
            OpCode::Create2 | OpCode::CreateContainer | OpCode::CreateTtl => {
                Self::Create2 { path: input.string()?, stat: Stat::read(input)? }
            }
            OpCode::Exists | OpCode::SetData | OpCode::SetAcl => Self::Stat(Stat::read(input)?),
            OpCode::GetData | OpCode::Reconfig => {
                Self::Data { data: input.buffer()?, stat: Stat::read(input)? }
            }
            OpCode::GetAcl => {
                Self::Acl { acl: input.vector(Acl::LENGTH_MIN, Acl::read)?, stat: Stat::read(input)? }
            }
            OpCode::GetChildren | OpCode::GetEphemerals => Self::Names(input.strings()?),
            OpCode::GetChildren2 => Self::Children2 { children: input.strings()?, stat: Stat::read(input)? },
            OpCode::GetAllChildrenNumber => Self::Number(input.int()?),
            OpCode::AddWatch => Self::Error(ErrorCode::try_from(input.int()?)?),
            OpCode::Sasl => Self::Token(input.buffer()?),
            OpCode::WhoAmI => Self::Clients(input.vector(ClientInfo::LENGTH_MIN, ClientInfo::read)?),
            OpCode::Multi | OpCode::MultiRead => Self::Results(read_results(op, input)?),
            OpCode::Delete
            | OpCode::Ping
            | OpCode::CheckWatches
            | OpCode::RemoveWatches
            | OpCode::Auth
            | OpCode::SetWatches
            | OpCode::SetWatches2
            | OpCode::CloseSession => Self::Empty,
            OpCode::Notification
            | OpCode::Check
            | OpCode::DeleteContainer
            | OpCode::CreateSession
            | OpCode::Error => return Err(WireError::NotARequest(op)),
        })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Empty => {}
            Self::Path(path) => put_string(path, out),
            Self::Create2 { path, stat } => {
                put_string(path, out);
                stat.encode(out);
            }
            Self::Stat(stat) => stat.encode(out),
            Self::Data { data, stat } => {
                put_nullable_buffer(*data, out);
                stat.encode(out);
            }
            Self::Acl { acl, stat } => {
                put_vector(acl, out, Acl::encode);
                stat.encode(out);
            }
            Self::Names(names) => encode_names(names.iter().copied(), out),
            Self::Children2 { children, stat } => {
                encode_names(children.iter().copied(), out);
                stat.encode(out);
            }
            Self::Number(number) => out.put_i32(*number),
            Self::Error(error) => out.put_i32((*error).into()),
            Self::Token(token) => put_nullable_buffer(*token, out),
            Self::Clients(clients) => put_vector(clients, out, ClientInfo::encode),
            Self::Results(results) => {
                results.iter().for_each(|result| result.encode(out));
                MultiHeader::END.encode(out);
            }
        }
    }

    /// Appends a whole frame: length, header and body.
    pub fn encode_frame(&self, header: ReplyHeader, out: &mut BytesMut) -> Result<(), WireError> {
        let start = begin_frame(out);
        header.encode(out);
        self.encode(out);
        finish_frame(start, out)
    }
}

/// Appends a list of strings without collecting them first: the body of a `getChildren` reply, and the
/// first part of a `getChildren2` reply.
pub fn encode_names<'n>(names: impl IntoIterator<Item = &'n str>, out: &mut BytesMut) {
    put_vector(names, out, put_string);
}

impl OpResult<'_> {
    fn encode(&self, out: &mut BytesMut) {
        let (op, error) = match self {
            Self::Create(_) => (OpCode::Create, ErrorCode::Ok),
            Self::Create2 { .. } => (OpCode::Create2, ErrorCode::Ok),
            Self::Delete => (OpCode::Delete, ErrorCode::Ok),
            Self::SetData(_) => (OpCode::SetData, ErrorCode::Ok),
            Self::Check => (OpCode::Check, ErrorCode::Ok),
            Self::GetChildren(_) => (OpCode::GetChildren, ErrorCode::Ok),
            Self::GetData { .. } => (OpCode::GetData, ErrorCode::Ok),
            Self::Error(error) => (OpCode::Error, *error),
        };
        MultiHeader { op: op.into(), done: false, error: error.into() }.encode(out);
        match self {
            Self::Create(path) => put_string(path, out),
            Self::Create2 { path, stat } => {
                put_string(path, out);
                stat.encode(out);
            }
            Self::Delete | Self::Check => {}
            Self::SetData(stat) => stat.encode(out),
            Self::GetChildren(children) => encode_names(children.iter().copied(), out),
            Self::GetData { data, stat } => {
                put_nullable_buffer(*data, out);
                stat.encode(out);
            }
            Self::Error(error) => out.put_i32((*error).into()),
        }
    }
}

fn read_results<'a>(multi: OpCode, input: &mut Input<'a>) -> Result<Vec<OpResult<'a>>, WireError> {
    let mut results = Vec::new();
    loop {
        let header = MultiHeader::read(input)?;
        if header.done {
            return Ok(results);
        }
        results.push(match OpCode::try_from(header.op)? {
            OpCode::Create => OpResult::Create(input.string()?),
            OpCode::Create2 => OpResult::Create2 { path: input.string()?, stat: Stat::read(input)? },
            OpCode::Delete => OpResult::Delete,
            OpCode::SetData => OpResult::SetData(Stat::read(input)?),
            OpCode::Check => OpResult::Check,
            OpCode::GetChildren => OpResult::GetChildren(input.strings()?),
            OpCode::GetData => OpResult::GetData { data: input.buffer()?, stat: Stat::read(input)? },
            OpCode::Error => OpResult::Error(ErrorCode::try_from(input.int()?)?),
            _ => return Err(WireError::NotInMulti { operation: header.op, multi }),
        });
    }
}
