use std::io;
use std::path::{Path, PathBuf};

/// Why a log could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Records that were synced can't be read any more.
    #[error(
        "log file {} is damaged at byte {offset}: {reason}. Writes this server has acknowledged may be gone, so it \
         does not run. Restore it from the other members of its ensemble: stop it, remove it from the ensemble, \
         move its data directory away, and add it again with an empty one; one server at a time, and only while a \
         majority of the others is healthy",
        file.display()
    )]
    Corrupt {
        /// The damaged, or missing, file.
        file: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },

    /// A segment of a format that this version does not know.
    #[error("log file {} has format {version}; this server reads format {supported}. Start the version that wrote it", file.display())]
    Version {
        /// The segment.
        file: PathBuf,
        /// Its format.
        version: u32,
        /// The format of this version.
        supported: u32,
    },

    /// Another process has the log open.
    #[error("the log in {} is in use by another process; two servers must not share a data directory", dir.display())]
    Locked {
        /// The log's directory.
        dir: PathBuf,
    },

    /// There is no room for a new segment. Not final: nothing was written.
    #[error("the disk of {} has no room for another log segment; free some space", dir.display())]
    Full {
        /// The log's directory.
        dir: PathBuf,
    },

    /// The caller's records do not follow those of the log. Not final: nothing was written.
    #[error("log index {index} is out of order: {reason}")]
    OutOfOrder {
        /// The index of the offending record.
        index: u64,
        /// What would have been in order.
        reason: String,
    },

    /// A record is longer than the bound. Not final: nothing was written.
    #[error("a log record of {bytes} bytes is longer than the {max} bytes allowed")]
    TooLong {
        /// The payload's length.
        bytes: usize,
        /// The bound.
        max: usize,
    },

    /// The disk reported an error. In a write or sync it is final.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
}

impl LogError {
    /// Whether the log takes no more writes after this error.
    pub fn is_final(&self) -> bool {
        !matches!(self, LogError::Full { .. } | LogError::OutOfOrder { .. } | LogError::TooLong { .. })
    }

    pub(super) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        LogError::Io { operation, path: path.to_path_buf(), source }
    }

    pub(super) fn corrupt(file: &Path, offset: u64, reason: impl Into<String>) -> Self {
        LogError::Corrupt { file: file.to_path_buf(), offset, reason: reason.into() }
    }
}
