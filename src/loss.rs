//! What could not be read of a damaged database, told exactly: which file, which place, which keys
//! and sequence numbers, as far as these are known.

use std::fmt;
use std::path::PathBuf;

/// A part of a database that an open in another mode than strict, or a repair, went on without.
/// `Display` is for people, one line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loss {
    /// The file.
    pub file: PathBuf,
    /// The byte at which the damage begins; 0 also if the file as a whole is lost.
    pub offset: u64,
    /// What is lost, and what was found in its place.
    pub what: String,
    /// The keyspace, if it is known to be only one.
    pub keyspace: Option<String>,
    /// The keys among which some are lost: smallest and largest, both included.
    #[expect(clippy::type_complexity, reason = "a pair of keys is plain enough without a name")]
    pub keys: Option<(Box<[u8]>, Box<[u8]>)>,
    /// The smallest sequence number that may be lost.
    pub seqno_first: Option<u64>,
    /// The largest sequence number that may be lost; `None` if all after the smallest may be.
    pub seqno_last: Option<u64>,
}

impl Loss {
    pub(crate) fn new(file: PathBuf, offset: u64, what: impl Into<String>) -> Loss {
        let what = what.into();
        let (keyspace, keys, seqno_first, seqno_last) = (None, None, None, None);
        Loss { file, offset, what, keyspace, keys, seqno_first, seqno_last }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}: {}", self.file.display(), self.offset, self.what)?;
        if let Some(keyspace) = &self.keyspace {
            write!(f, "; keyspace {keyspace:?}")?;
        }
        if let Some((smallest, largest)) = &self.keys {
            let (smallest, largest) = (smallest.escape_ascii(), largest.escape_ascii());
            write!(f, "; keys \"{smallest}\" to \"{largest}\"")?;
        }
        match (self.seqno_first, self.seqno_last) {
            (Some(first), Some(last)) => write!(f, "; seqnos {first} to {last}"),
            (Some(first), None) => write!(f, "; seqnos from {first} on"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_says_what_is_known() {
        let mut loss = Loss::new("db/000007.log".into(), 160, "a record");
        assert_eq!(loss.to_string(), "db/000007.log at 0xa0: a record");
        loss.keyspace = Some("views".into());
        loss.keys = Some((b"a"[..].into(), b"\x00"[..].into()));
        loss.seqno_first = Some(7);
        let text = "db/000007.log at 0xa0: a record; keyspace \"views\"; keys \"a\" to \"\\x00\"; \
                    seqnos from 7 on";
        assert_eq!(loss.to_string(), text);
        loss.seqno_last = Some(9);
        assert!(loss.to_string().ends_with("seqnos 7 to 9"), "{loss}");
    }
}
