//! What is wrong with bytes that are not the protocol.

use crate::OpCode;

/// Bytes that are not what the protocol says, or a frame that it can't carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A frame announces a negative length or more than the limit (`jute.maxbuffer`).
    #[error("frame length {length} is not between 0 and {max}")]
    FrameLength {
        /// The announced length in bytes.
        length: i32,
        /// The limit in bytes.
        max: usize,
    },
    /// A frame to be sent would be longer than its 4-byte length can say.
    #[error("a frame of {length} bytes does not fit its 4-byte length")]
    FrameTooLong {
        /// The length in bytes.
        length: usize,
    },
    /// The record ends before its last field.
    #[error("record is cut short: a field of {needed} bytes, {remaining} bytes left")]
    Truncated {
        /// Bytes that the next field needs at least.
        needed: usize,
        /// Bytes that are left.
        remaining: usize,
    },
    /// A length or count below -1 (-1 means null).
    #[error("negative length {0}")]
    NegativeLength(i32),
    /// A string that is not UTF-8.
    #[error("string is not UTF-8")]
    NotUtf8,
    /// A number that names nothing.
    #[error("{value} is no known {what}")]
    UnknownCode {
        /// What the number should have named.
        what: &'static str,
        /// The number.
        value: i32,
    },
    /// An operation that servers use among themselves, or only ever send.
    #[error("{0:?} is not a request of a client")]
    NotARequest(OpCode),
    /// An operation that may not stand in a `multi` or a `multiRead`.
    #[error("operation {operation} may not be part of a {multi:?}")]
    NotInMulti {
        /// The operation's number.
        operation: i32,
        /// [`OpCode::Multi`] or [`OpCode::MultiRead`].
        multi: OpCode,
    },
}
