//! The one error type: what failed, where, and what the caller can do about it.
//!
//! [`Error`] is a thin pointer so that `Result<(), Error>` stays one word on the hot path.
//! [`Error::kind`] says what the caller can do; the `Display` text names file and offset where
//! there is one, and ends with the advice.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The result of every fallible operation of esker.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong; see [`Error::kind`] for what to do about it.
pub struct Error(Box<Repr>);

struct Repr {
    kind: ErrorKind,
    /// What esker was doing, for the text only.
    context: Option<String>,
    source: Option<io::Error>,
}

/// Why writers are slowed down or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BusyCause {
    /// The memtables of the memory budget are full; a flush is behind.
    Memory,
    /// Level 0 has more runs than reads should have to visit.
    Level0,
    /// Compaction is further behind than it should be.
    CompactionDebt,
    /// The logs that are still needed hold too many bytes.
    LogBytes,
    /// The disk is nearly full.
    DiskSpace,
    /// The key is being handed over to another shard.
    Move,
    /// A bounded queue in front of the engine is full.
    Queue,
}

/// Why the breaker is open and writes are refused while reads go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DegradedCause {
    /// The disk is full. Heals itself once space is freed.
    NoSpace,
    /// A write to the log failed or was short.
    LogWrite,
    /// A sync of the log failed; what was not durable is known from memory only.
    LogSync,
    /// The manifest could not be written or synced.
    Manifest,
    /// A flush or compaction could not write or sync a table.
    Table,
    /// A file is damaged; a person has to look.
    Corruption,
}

/// What the caller can do about an [`Error`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Writers outrun the disk. Wait `retry_after` and try again; nothing was written.
    Busy {
        /// The resource that binds.
        cause: BusyCause,
        /// After this long a retry is likely to succeed.
        retry_after: Duration,
    },
    /// A guard of a conditional commit did not hold; nothing was written.
    Conflict,
    /// Writes are refused after a failure of the disk; reads go on. See `Db::resume`.
    Degraded {
        /// What failed.
        cause: DegradedCause,
    },
    /// The disk is full. Free space; the same process then takes writes again.
    NoSpace,
    /// Bytes on disk are not what was written. `esker verify` shows the extent.
    Corruption {
        /// The damaged file.
        file: PathBuf,
        /// Byte offset in that file.
        offset: u64,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The call's arguments are at fault; nothing was done.
    InvalidArgument,
    /// The merge operator of the keyspace refused the operands of this key, or is not registered.
    MergeFailed {
        /// The user key whose operands cannot be folded.
        key: Vec<u8>,
    },
    /// Another process, or another handle of this one, has the database open.
    Locked,
    /// The keyspace was dropped, or the database was closed.
    Closed,
    /// The file was written by a newer esker with a format this one does not know.
    Unsupported,
    /// The operating system reported an error.
    Io(io::ErrorKind),
}

impl Error {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// An error of this kind without further context.
    #[must_use]
    pub fn new(kind: ErrorKind) -> Error {
        Error(Box::new(Repr { kind, context: None, source: None }))
    }

    /// The arguments of a call are at fault; `what` says which and what would be right.
    #[must_use]
    pub fn invalid(what: impl Into<String>) -> Error {
        Error::new(ErrorKind::InvalidArgument).context(what)
    }

    /// Writers outrun the disk.
    #[must_use]
    pub fn busy(cause: BusyCause, retry_after: Duration) -> Error {
        Error::new(ErrorKind::Busy { cause, retry_after })
    }

    /// The breaker is open.
    #[must_use]
    pub fn degraded(cause: DegradedCause) -> Error {
        Error::new(ErrorKind::Degraded { cause })
    }

    /// `file` holds something else at `offset` than was written there.
    #[must_use]
    pub fn corruption(
        file: impl AsRef<Path>,
        offset: u64,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Error {
        Error::new(ErrorKind::Corruption {
            file: file.as_ref().to_path_buf(),
            offset,
            expected: expected.into(),
            found: found.into(),
        })
    }

    /// An operating-system error while doing `what` (say "write", "sync") to `path`.
    ///
    /// A full disk or an exceeded quota becomes [`ErrorKind::NoSpace`].
    #[must_use]
    pub fn io(what: &str, path: impl AsRef<Path>, source: io::Error) -> Error {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            other => ErrorKind::Io(other),
        };
        let context = format!("{what} {}", path.as_ref().display());
        Error(Box::new(Repr { kind, context: Some(context), source: Some(source) }))
    }

    /// The same error, saying also what esker was doing.
    #[must_use]
    pub fn context(mut self, what: impl Into<String>) -> Error {
        let what = what.into();
        self.0.context = Some(match self.0.context.take() {
            Some(inner) => format!("{what}: {inner}"),
            None => what,
        });
        self
    }

    /// True if this is [`ErrorKind::Corruption`].
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        matches!(self.kind(), ErrorKind::Corruption { .. })
    }

    /// True if this is [`ErrorKind::Busy`].
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self.kind(), ErrorKind::Busy { .. })
    }

    /// A second error that says the same, for handing one failure to several waiters.
    ///
    /// The operating system's error is kept by its kind and text only.
    #[must_use]
    pub fn duplicate(&self) -> Error {
        let source = self.0.source.as_ref().map(|e| io::Error::new(e.kind(), e.to_string()));
        Error(Box::new(Repr { kind: self.0.kind.clone(), context: self.0.context.clone(), source }))
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ErrorKind::Busy { cause, retry_after } => {
                write!(f, "busy ({cause:?}): retry after {retry_after:?}")
            }
            ErrorKind::Conflict => f.write_str("a guard of the commit does not hold"),
            ErrorKind::Degraded { cause } => write!(
                f,
                "writes are refused after a disk failure ({cause:?}); reads go on; \
                 see Db::resume"
            ),
            ErrorKind::NoSpace => {
                f.write_str("the disk is full: free space, then writes are taken again")
            }
            ErrorKind::Corruption { file, offset, expected, found } => write!(
                f,
                "corruption in {} at offset {offset}: expected {expected}, found {found}; \
                 see `esker verify`",
                file.display()
            ),
            ErrorKind::InvalidArgument => f.write_str("invalid argument"),
            ErrorKind::MergeFailed { key } => {
                write!(f, "the operands of key {} cannot be merged", key.escape_ascii())
            }
            ErrorKind::Locked => f.write_str("the database is open elsewhere"),
            ErrorKind::Closed => f.write_str("closed or dropped"),
            ErrorKind::Unsupported => {
                f.write_str("written by a newer version of esker; upgrade to read it")
            }
            ErrorKind::Io(kind) => write!(f, "{kind}"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(context) = &self.0.context {
            write!(f, "{context}: ")?;
        }
        match (&self.0.kind, &self.0.source) {
            (ErrorKind::Io(_), Some(source)) => write!(f, "{source}"),
            (kind, Some(source)) => write!(f, "{kind} ({source})"),
            (kind, None) => write!(f, "{kind}"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({self})")
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_file_offset_and_advice() {
        let error = Error::corruption("db/000001.log", 96, "checksum 1", "checksum 2");
        let text = error.to_string();
        assert!(text.contains("db/000001.log at offset 96"), "{text}");
        assert!(text.contains("esker verify"), "{text}");
    }

    #[test]
    fn a_full_disk_is_no_space() {
        let error = Error::io("write", "x", io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(error.kind(), &ErrorKind::NoSpace);
        assert_eq!(error.duplicate().kind(), &ErrorKind::NoSpace);
    }

    #[test]
    fn result_is_one_word() {
        assert_eq!(size_of::<Result<()>>(), size_of::<usize>());
    }
}
