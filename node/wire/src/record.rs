//! Records that requests and replies are made of, and the headers in front of them.

use bytes::{BufMut, BytesMut};

use crate::jute::{Input, LENGTH_BYTES, put_boolean, put_buffer, put_string};
use crate::{ErrorCode, EventType, KeeperState, WireError};

/// The bits of [`Acl::perms`].
pub mod perms {
    /// Read data, list children.
    pub const READ: i32 = 1;
    /// Write data.
    pub const WRITE: i32 = 2;
    /// Create children.
    pub const CREATE: i32 = 4;
    /// Delete children.
    pub const DELETE: i32 = 8;
    /// Write the ACL.
    pub const ADMIN: i32 = 16;
    /// All of them.
    pub const ALL: i32 = READ | WRITE | CREATE | DELETE | ADMIN;
}

/// What is known of a znode beside its data: 68 bytes on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Stat {
    /// Zxid of the creation.
    pub czxid: i64,
    /// Zxid of the last write of the data.
    pub mzxid: i64,
    /// Time of the creation in ms since 1970.
    pub ctime: i64,
    /// Time of the last write of the data in ms since 1970.
    pub mtime: i64,
    /// Writes of the data.
    pub version: i32,
    /// Creations and deletions of children.
    pub cversion: i32,
    /// Writes of the ACL.
    pub aversion: i32,
    /// The session that an ephemeral znode belongs to, else 0.
    pub ephemeral_owner: i64,
    /// Length of the data in bytes.
    pub data_length: i32,
    /// Number of children.
    pub num_children: i32,
    /// Zxid of the last creation or deletion of a child.
    pub pzxid: i64,
}

impl Stat {
    /// Its length on the wire in bytes.
    pub const LENGTH: usize = 68;

    /// Appends the record.
    pub fn encode(&self, out: &mut BytesMut) {
        out.reserve(Self::LENGTH);
        out.put_i64(self.czxid);
        out.put_i64(self.mzxid);
        out.put_i64(self.ctime);
        out.put_i64(self.mtime);
        out.put_i32(self.version);
        out.put_i32(self.cversion);
        out.put_i32(self.aversion);
        out.put_i64(self.ephemeral_owner);
        out.put_i32(self.data_length);
        out.put_i32(self.num_children);
        out.put_i64(self.pzxid);
    }

    pub(crate) fn read(input: &mut Input<'_>) -> Result<Self, WireError> {
        Ok(Self {
            czxid: input.long()?,
            mzxid: input.long()?,
            ctime: input.long()?,
            mtime: input.long()?,
            version: input.int()?,
            cversion: input.int()?,
            aversion: input.int()?,
            ephemeral_owner: input.long()?,
            data_length: input.int()?,
            num_children: input.int()?,
            pzxid: input.long()?,
        })
    }
}

/// One entry of an access control list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Acl<'a> {
    /// What it allows: [`perms`].
    pub perms: i32,
    /// How the identity is proven: `world`, `auth`, `digest`, `ip`, `x509`, `sasl`, `super`.
    pub scheme: &'a str,
    /// Whom it allows.
    pub id: &'a str,
}

impl<'a> Acl<'a> {
    /// Everything to everyone.
    pub const OPEN: Acl<'static> = Acl { perms: perms::ALL, scheme: "world", id: "anyone" };

    pub(crate) const LENGTH_MIN: usize = 3 * LENGTH_BYTES;

    pub(crate) fn read(input: &mut Input<'a>) -> Result<Self, WireError> {
        Ok(Self { perms: input.int()?, scheme: input.string()?, id: input.string()? })
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_i32(self.perms);
        put_string(self.scheme, out);
        put_string(self.id, out);
    }
}

/// An identity of a session, as told by `whoAmI`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientInfo<'a> {
    /// How the identity was proven.
    pub scheme: &'a str,
    /// The identity, without its secret.
    pub user: &'a str,
}

impl<'a> ClientInfo<'a> {
    pub(crate) const LENGTH_MIN: usize = 2 * LENGTH_BYTES;

    pub(crate) fn read(input: &mut Input<'a>) -> Result<Self, WireError> {
        Ok(Self { scheme: input.string()?, user: input.string()? })
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        put_string(self.scheme, out);
        put_string(self.user, out);
    }
}

/// The length of a session password in bytes.
pub const PASSWORD_LENGTH: usize = 16;

/// The first frame of a client: it opens a session, or takes one up again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectRequest<'a> {
    /// Always 0.
    pub protocol_version: i32,
    /// The newest zxid that the client has seen.
    pub last_zxid_seen: i64,
    /// The session timeout asked for in ms.
    pub timeout_ms: i32,
    /// The session to take up, or 0 for a new one.
    pub session_id: i64,
    /// The session's password; zeros for a new one.
    pub password: &'a [u8],
    /// Would a server in read-only mode do? `None` if the client left the byte out, as old ones do: the
    /// reply then leaves it out as well.
    pub read_only: Option<bool>,
}

impl<'a> ConnectRequest<'a> {
    /// Reads the record; further bytes are ignored.
    pub fn decode(frame: &'a [u8]) -> Result<Self, WireError> {
        let mut input = Input::new(frame);
        Ok(Self {
            protocol_version: input.int()?,
            last_zxid_seen: input.long()?,
            timeout_ms: input.int()?,
            session_id: input.long()?,
            password: input.buffer()?.unwrap_or_default(),
            read_only: read_read_only(&mut input)?,
        })
    }

    /// Appends the record.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_i32(self.protocol_version);
        out.put_i64(self.last_zxid_seen);
        out.put_i32(self.timeout_ms);
        out.put_i64(self.session_id);
        put_buffer(self.password, out);
        put_read_only(self.read_only, out);
    }
}

/// The first frame of a server: 37 bytes, or 36 for a client that left out the read-only byte.
///
/// A session that can't be taken up again is told by a timeout of 0 and a session of 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectResponse<'a> {
    /// Always 0.
    pub protocol_version: i32,
    /// The session timeout agreed on in ms.
    pub timeout_ms: i32,
    /// The session.
    pub session_id: i64,
    /// The session's password.
    pub password: &'a [u8],
    /// Is the server in read-only mode?
    pub read_only: Option<bool>,
}

impl<'a> ConnectResponse<'a> {
    /// Reads the record; further bytes are ignored.
    pub fn decode(frame: &'a [u8]) -> Result<Self, WireError> {
        let mut input = Input::new(frame);
        Ok(Self {
            protocol_version: input.int()?,
            timeout_ms: input.int()?,
            session_id: input.long()?,
            password: input.buffer()?.unwrap_or_default(),
            read_only: read_read_only(&mut input)?,
        })
    }

    /// Appends the record.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_i32(self.protocol_version);
        out.put_i32(self.timeout_ms);
        out.put_i64(self.session_id);
        put_buffer(self.password, out);
        put_read_only(self.read_only, out);
    }
}

fn read_read_only(input: &mut Input<'_>) -> Result<Option<bool>, WireError> {
    if input.rest().is_empty() { Ok(None) } else { input.boolean().map(Some) }
}

fn put_read_only(read_only: Option<bool>, out: &mut BytesMut) {
    if let Some(read_only) = read_only {
        put_boolean(read_only, out);
    }
}

/// In front of every request but the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// The client's number for the request; [`crate::xid`] has those with a meaning.
    pub xid: i32,
    /// An [`crate::OpCode`], or a number that is none: the reply to that needs the xid too.
    pub op: i32,
}

impl RequestHeader {
    /// Splits a frame into its header and the body.
    pub fn decode(frame: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let mut input = Input::new(frame);
        let header = Self { xid: input.int()?, op: input.int()? };
        Ok((header, input.rest()))
    }

    /// Appends the record.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_i32(self.xid);
        out.put_i32(self.op);
    }
}

/// In front of every reply but the first, and of every watch event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyHeader {
    /// The number of the request; [`crate::xid`] has those with a meaning.
    pub xid: i32,
    /// The newest zxid that the server had applied.
    pub zxid: i64,
    /// The outcome; a reply with an error has no body.
    pub error: ErrorCode,
}

impl ReplyHeader {
    /// Splits a frame into its header and the body.
    pub fn decode(frame: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let mut input = Input::new(frame);
        let header =
            Self { xid: input.int()?, zxid: input.long()?, error: ErrorCode::try_from(input.int()?)? };
        Ok((header, input.rest()))
    }

    /// Appends the record.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_i32(self.xid);
        out.put_i64(self.zxid);
        out.put_i32(self.error.into());
    }
}

/// Credentials added to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthPacket<'a> {
    /// Always 0; servers ignore it.
    pub kind: i32,
    /// The authentication scheme, such as `digest`.
    pub scheme: &'a str,
    /// The credentials, such as `user:password`.
    pub auth: &'a [u8],
}

impl<'a> AuthPacket<'a> {
    pub(crate) fn read(input: &mut Input<'a>) -> Result<Self, WireError> {
        Ok(Self { kind: input.int()?, scheme: input.string()?, auth: input.buffer()?.unwrap_or_default() })
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_i32(self.kind);
        put_string(self.scheme, out);
        put_buffer(self.auth, out);
    }
}

/// The body behind a header of xid [`crate::xid::NOTIFICATION`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatcherEvent<'a> {
    /// What happened.
    pub event: EventType,
    /// The connection's state.
    pub state: KeeperState,
    /// The znode that it happened to.
    pub path: &'a str,
}

impl<'a> WatcherEvent<'a> {
    /// Reads the record; further bytes are ignored.
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut input = Input::new(body);
        Ok(Self {
            event: EventType::try_from(input.int()?)?,
            state: KeeperState::try_from(input.int()?)?,
            path: input.string()?,
        })
    }

    /// Appends the record.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_i32(self.event.into());
        out.put_i32(self.state.into());
        put_string(self.path, out);
    }
}
