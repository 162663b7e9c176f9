//! Frames: a 4-byte big-endian length, then that many bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::WireError;

/// ZooKeeper's default for `jute.maxbuffer`: the longest frame in bytes.
pub const DEFAULT_MAX_BUFFER: usize = 0xf_ffff;

const LENGTH_BYTES: usize = 4;

/// Cuts the next whole frame, without its length, from what a connection has received.
///
/// `None` means that more bytes are needed. The frame shares the buffer's memory. A negative length
/// or one above `max_length` is an error that leaves the buffer as it was: nothing is allocated, and
/// the caller may still find a four-letter word in these bytes.
pub fn cut_frame(received: &mut BytesMut, max_length: usize) -> Result<Option<Bytes>, WireError> {
    let Some(prefix) = received.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let announced = i32::from_be_bytes(*prefix);
    let length = match usize::try_from(announced) {
        Ok(length) if length <= max_length => length,
        _ => return Err(WireError::FrameLength { length: announced, max: max_length }),
    };
    if received.len() - LENGTH_BYTES < length {
        return Ok(None);
    }
    received.advance(LENGTH_BYTES);
    Ok(Some(received.split_to(length).freeze()))
}

/// Where a frame under construction starts; [`finish_frame`] takes it.
#[derive(Debug)]
#[must_use = "a frame that is begun must be finished"]
pub struct FrameStart(usize);

/// Begins a frame: what is written to `out` until [`finish_frame`] is its content.
pub fn begin_frame(out: &mut BytesMut) -> FrameStart {
    let start = FrameStart(out.len());
    out.put_i32(0);
    start
}

/// Ends the frame begun at `start` by writing its length.
///
/// A frame too long for its length field is taken back from `out` whole. This also catches any
/// single string, buffer or list that is too long for its own length field.
pub fn finish_frame(start: FrameStart, out: &mut BytesMut) -> Result<(), WireError> {
    let FrameStart(start) = start;
    let length = out.len().saturating_sub(start + LENGTH_BYTES);
    let Ok(announced) = i32::try_from(length) else {
        out.truncate(start);
        return Err(WireError::FrameTooLong { length });
    };
    if let Some(prefix) = out.get_mut(start..start + LENGTH_BYTES) {
        prefix.copy_from_slice(&announced.to_be_bytes());
    }
    Ok(())
}
