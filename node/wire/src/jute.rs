//! Jute's primitive types: big-endian numbers, and buffers, strings and vectors behind a length.

use bytes::{BufMut, BytesMut};

use crate::WireError;

/// Reads jute fields off the front of a record.
pub struct Input<'a> {
    rest: &'a [u8],
    /// Whether a string that is none reads as [`UNREADABLE`].
    takes_any_string: bool,
}

/// What a client's string that is not UTF-8 reads as. Java's servers put U+FFFD where they can't read a character,
/// and no znode may be named so: it is the path of no znode, and no scheme or identity.
const UNREADABLE: &str = "/\u{fffd}";

impl<'a> Input<'a> {
    /// Reads a record from its beginning.
    pub fn new(record: &'a [u8]) -> Self {
        Self { rest: record, takes_any_string: false }
    }

    /// Reads a client's request: a string that is not UTF-8 is answered like one that names nothing.
    pub(crate) fn of_client(record: &'a [u8]) -> Self {
        Self { rest: record, takes_any_string: true }
    }

    /// The bytes not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Four bytes.
    ///
    /// # Errors
    /// As for all of these: if the record ends before the field, or the field is malformed.
    pub fn int(&mut self) -> Result<i32, WireError> {
        self.array().map(i32::from_be_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// See [`Input::int`].
    pub fn long(&mut self) -> Result<i64, WireError> {
        self.array().map(i64::from_be_bytes)
    }

    /// One byte.
    ///
    /// # Errors
    /// See [`Input::int`].
    pub fn byte(&mut self) -> Result<u8, WireError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    /// Any byte but zero is true, as in Java.
    ///
    /// # Errors
    /// See [`Input::int`].
    pub fn boolean(&mut self) -> Result<bool, WireError> {
        let [byte] = self.array()?;
        Ok(byte != 0)
    }

    /// Bytes behind their length; `None` for null.
    ///
    /// # Errors
    /// See [`Input::int`].
    pub fn buffer(&mut self) -> Result<Option<&'a [u8]>, WireError> {
        match self.length()? {
            None => Ok(None),
            Some(length) => self.take(length).map(Some),
        }
    }

    /// A string; `None` for null.
    ///
    /// # Errors
    /// See [`Input::int`].
    pub fn nullable_string(&mut self) -> Result<Option<&'a str>, WireError> {
        match self.buffer()?.map(std::str::from_utf8).transpose() {
            Err(_) if self.takes_any_string => Ok(Some(UNREADABLE)),
            read => read.map_err(|_| WireError::NotUtf8),
        }
    }

    /// A string; null reads as empty.
    ///
    /// # Errors
    /// See [`Input::int`].
    pub fn string(&mut self) -> Result<&'a str, WireError> {
        Ok(self.nullable_string()?.unwrap_or_default())
    }

    /// A vector whose elements take at least `element_bytes_min` (> 0) each; null reads as empty.
    ///
    /// A count that the rest of the record can't hold is refused before anything is allocated.
    ///
    /// # Errors
    /// See [`Input::int`].
    pub fn vector<T>(
        &mut self,
        element_bytes_min: usize,
        mut element: impl FnMut(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let count = self.length()?.unwrap_or(0);
        let needed = count.saturating_mul(element_bytes_min);
        if needed > self.rest.len() {
            return Err(self.truncated(needed));
        }
        let mut elements = Vec::with_capacity(count);
        for _ in 0..count {
            elements.push(element(self)?);
        }
        Ok(elements)
    }

    /// A vector of strings.
    ///
    /// # Errors
    /// See [`Input::int`].
    pub fn strings(&mut self) -> Result<Vec<&'a str>, WireError> {
        self.vector(LENGTH_BYTES, Self::string)
    }

    fn length(&mut self) -> Result<Option<usize>, WireError> {
        match self.int()? {
            NULL => Ok(None),
            length => usize::try_from(length).map(Some).map_err(|_| WireError::NegativeLength(length)),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.truncated(length))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| self.truncated(N))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn truncated(&self, needed: usize) -> WireError {
        WireError::Truncated { needed, remaining: self.rest.len() }
    }
}

/// The length of a null buffer, string or vector.
const NULL: i32 = -1;

/// The length in front of every string, buffer and vector.
pub(crate) const LENGTH_BYTES: usize = 4;

pub(crate) fn put_boolean(value: bool, out: &mut BytesMut) {
    out.put_u8(u8::from(value));
}

pub(crate) fn put_buffer(value: &[u8], out: &mut BytesMut) {
    out.reserve(LENGTH_BYTES + value.len());
    put_length(value.len(), out);
    out.extend_from_slice(value);
}

pub(crate) fn put_nullable_buffer(value: Option<&[u8]>, out: &mut BytesMut) {
    match value {
        Some(value) => put_buffer(value, out),
        None => out.put_i32(NULL),
    }
}

pub(crate) fn put_string(value: &str, out: &mut BytesMut) {
    put_buffer(value.as_bytes(), out);
}

pub(crate) fn put_nullable_string(value: Option<&str>, out: &mut BytesMut) {
    put_nullable_buffer(value.map(str::as_bytes), out);
}

/// Writes a vector of as many elements as the iterator turns out to have.
pub(crate) fn put_vector<T>(
    elements: impl IntoIterator<Item = T>,
    out: &mut BytesMut,
    mut put: impl FnMut(T, &mut BytesMut),
) {
    let count_at = out.len();
    out.put_i32(0);
    let mut count = 0_i32;
    for element in elements {
        put(element, out);
        count = count.saturating_add(1);
    }
    if let Some(field) = out.get_mut(count_at..count_at + LENGTH_BYTES) {
        field.copy_from_slice(&count.to_be_bytes());
    }
}

/// A length past `i32::MAX` is never sent: `finish_frame` refuses the frame that holds it.
fn put_length(length: usize, out: &mut BytesMut) {
    out.put_i32(i32::try_from(length).unwrap_or(i32::MAX));
}
