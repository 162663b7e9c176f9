//! The codec of our own stored and sent records. No other module names bincode.
//!
//! An encoded record is one version byte followed by the bincode form of the value, and nothing after
//! it. Each record type has its own limit, without which a hostile length could make the decoder
//! allocate without bound.

use bincode::config::{Configuration, standard};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The version byte that this build writes. A reader refuses versions above it by name.
pub const VERSION: u8 = 1;

/// Upper bound of one encoded record in bytes, for every type: a snapshot chunk with its frame is the
/// largest. Callers bound the bytes they read before they hand them to [`decode`].
pub const RECORD_BYTES_MAX: usize = 64 << 20;

/// The versions of this build.
#[cfg(not(feature = "mutants"))]
mod build {
    use super::VERSION;

    pub(super) const fn written() -> u8 {
        VERSION
    }

    pub(super) const fn knows(version: u8) -> bool {
        version == VERSION
    }
}

/// The versions of the build that is simulated on this thread.
#[cfg(feature = "mutants")]
mod build {
    use std::cell::Cell;

    use super::VERSION;

    thread_local! {
        static NEWEST_KNOWN: Cell<u8> = const { Cell::new(VERSION) };
        static WRITTEN: Cell<u8> = const { Cell::new(VERSION) };
    }

    /// Runs as a build that knows the versions from this one's up to another, and writes one of them.
    pub fn simulate(newest_known: u8, written: u8) {
        NEWEST_KNOWN.set(newest_known);
        WRITTEN.set(written);
    }

    pub(super) fn written() -> u8 {
        WRITTEN.get()
    }

    pub(super) fn knows(version: u8) -> bool {
        (VERSION..=NEWEST_KNOWN.get()).contains(&version)
    }
}

#[cfg(feature = "mutants")]
pub use build::simulate as simulate_build;

/// Why bytes are not a record.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CodecError {
    /// No bytes at all.
    #[error("empty record")]
    Empty,
    /// Written by a newer build (or not a record).
    #[error(
        "record version {0} is not known to this build (it knows up to {VERSION}); upgrade this server first"
    )]
    Version(u8),
    /// The bytes are no value of the expected type.
    #[error("malformed record: {0}")]
    Malformed(String),
    /// Bytes are left after the value.
    #[error("{0} bytes after the end of the record")]
    Trailing(usize),
    /// The value encodes to more than [`RECORD_BYTES_MAX`].
    #[error("record is too large to encode: {0}")]
    TooLarge(String),
}

fn config() -> Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<RECORD_BYTES_MAX>,
> {
    standard().with_limit::<RECORD_BYTES_MAX>()
}

/// Encodes a record.
///
/// # Errors
/// [`CodecError::TooLarge`] if it exceeds [`RECORD_BYTES_MAX`].
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![build::written()];
    encode_onto(value, &mut bytes)?;
    Ok(bytes)
}

fn encode_onto<T: Serialize>(value: &T, bytes: &mut Vec<u8>) -> Result<(), CodecError> {
    struct Onto<'a>(&'a mut Vec<u8>);
    impl bincode::enc::write::Writer for Onto<'_> {
        fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }
    bincode::serde::encode_into_writer(value, Onto(bytes), standard())
        .map_err(|e| CodecError::TooLarge(e.to_string()))?;
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(CodecError::TooLarge(format!("{} bytes", bytes.len())));
    }
    Ok(())
}

/// Decodes a record that may borrow from `bytes`.
///
/// # Errors
/// Every byte string that [`encode`] did not make is an error, never a panic and never an allocation
/// beyond the limit.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    let (&version, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if !build::knows(version) {
        return Err(CodecError::Version(version));
    }
    if body.len() > RECORD_BYTES_MAX {
        return Err(CodecError::Malformed(format!(
            "{} bytes exceed the limit of {RECORD_BYTES_MAX}",
            body.len()
        )));
    }
    let (value, used) = bincode::serde::borrow_decode_from_slice(body, config())
        .map_err(|e| CodecError::Malformed(e.to_string()))?;
    match body.len() - used {
        0 => Ok(value),
        left => Err(CodecError::Trailing(left)),
    }
}

/// Reads a collection for `#[serde(deserialize_with)]`, of a type that would allocate for as many elements as the
/// bytes claim to have. A map is a sequence of pairs in the bincode form.
///
/// # Errors
/// If an element is malformed or missing.
pub fn collect<'de, D, C>(deserializer: D) -> Result<C, D::Error>
where
    D: serde::Deserializer<'de>,
    C: IntoIterator + FromIterator<<C as IntoIterator>::Item>,
    <C as IntoIterator>::Item: Deserialize<'de>,
{
    let elements = Vec::deserialize(deserializer)?;
    Ok(elements.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Sample<'a> {
        Small(u64),
        Bytes(#[serde(borrow)] &'a [u8]),
        List(Vec<String>),
    }

    /// The stored form must never change under a version number.
    #[test]
    fn golden_bytes() {
        assert_eq!(encode(&Sample::Small(300)).unwrap(), [1, 0, 251, 44, 1]);
        assert_eq!(encode(&Sample::Bytes(b"ab")).unwrap(), [1, 1, 2, b'a', b'b']);
        assert_eq!(encode(&Sample::List(vec!["x".into()])).unwrap(), [1, 2, 1, 1, b'x']);
    }

    #[test]
    fn hostile_lengths_and_trailing_bytes_are_errors() {
        let huge = [1, 2, 253, 255, 255, 255, 255, 255, 255, 255, 127];
        assert!(matches!(decode::<Sample>(&huge), Err(CodecError::Malformed(_))));
        assert_eq!(decode::<Sample>(&[1, 0, 5, 9]), Err(CodecError::Trailing(1)));
        assert_eq!(decode::<Sample>(&[2, 0, 5]), Err(CodecError::Version(2)));
        assert_eq!(decode::<Sample>(&[]), Err(CodecError::Empty));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Sample>(&bytes);
        }

        #[test]
        fn round_trip(list in proptest::collection::vec(".{0,20}", 0..20)) {
            let bytes = encode(&Sample::List(list.clone())).unwrap();
            prop_assert_eq!(decode::<Sample>(&bytes).unwrap(), Sample::List(list));
        }
    }
}
