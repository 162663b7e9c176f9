//! ZooKeeper's client protocol: jute records and frames.
//!
//! A connection carries frames: a big-endian 4-byte length, then that many bytes ([`cut_frame`],
//! [`begin_frame`], [`finish_frame`]). The first frame each way is a [`ConnectRequest`] and a
//! [`ConnectResponse`]; every later one is a header and a body: [`RequestHeader`] and [`Request`] from
//! the client, [`ReplyHeader`] and [`Response`] (or, at xid [`xid::NOTIFICATION`], a [`WatcherEvent`])
//! from the server. The numbers and field orders are those of Apache ZooKeeper 3.9.
//!
//! Decoded records borrow from the frame: strings are checked to be UTF-8, data is not touched.
//! Whatever a peer sends, decoding answers with a value or a [`WireError`], and allocates no more than
//! a small multiple of the bytes it was given. Bytes left over after a body are ignored, as Java's
//! jute ignores them.
//!
//! The crate does no I/O, reads no clock and draws no random number.
//!
//! ```
//! use bytes::BytesMut;
//! use meridian_wire::{DEFAULT_MAX_BUFFER, OpCode, Request, RequestHeader, cut_frame};
//!
//! let mut connection = BytesMut::new();
//! Request::GetData { path: "/app", watch: false }.encode_frame(7, &mut connection)?;
//!
//! let frame = cut_frame(&mut connection, DEFAULT_MAX_BUFFER)?.expect("a whole frame is there");
//! let (header, body) = RequestHeader::decode(&frame)?;
//! let request = Request::decode(OpCode::try_from(header.op)?, body)?;
//! assert_eq!((header.xid, request.path()), (7, Some("/app")));
//! # Ok::<(), meridian_wire::WireError>(())
//! ```

mod code;
mod error;
mod frame;
mod jute;
mod path;
mod record;
mod request;
mod response;

pub use code::{AddWatchMode, CreateMode, ErrorCode, EventType, KeeperState, OpCode, WatcherType, xid};
pub use error::WireError;
pub use frame::{DEFAULT_MAX_BUFFER, FrameStart, begin_frame, cut_frame, finish_frame};
pub use jute::Input;
pub use path::{PathError, validate_path, validate_sequential_path};
pub use record::{
    Acl, AuthPacket, ClientInfo, ConnectRequest, ConnectResponse, PASSWORD_LENGTH, ReplyHeader,
    RequestHeader, Stat, WatcherEvent, perms,
};
pub use request::{Create, Request, SetWatches};
pub use response::{OpResult, Response, encode_names};
