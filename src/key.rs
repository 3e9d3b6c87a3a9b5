//! What identifies an entry: user key, sequence number, kind; and the one order of entries.
//!
//! Entries sort by user key ascending (bytewise), then by sequence number descending, so that the
//! newest version of a key comes first. No two operations share a sequence number, so the kind
//! never decides.

use std::cmp::Ordering;
use std::fmt;

/// Position of an operation in the database-wide order of commits. 0 is before every operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqNo(pub u64);

impl SeqNo {
    /// Before every operation.
    pub const ZERO: SeqNo = SeqNo(0);
    /// The largest number; 56 bits, so that a kind fits beside it in a u64.
    pub const MAX: SeqNo = SeqNo((1 << 56) - 1);
}

/// Identifies a keyspace for ever: ids are never reused, not even after a drop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyspaceId(pub u32);

/// What an entry does to its key. On disk: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// The key has this value.
    Put = 1,
    /// The key has no value (a tombstone).
    Delete = 2,
    /// An operand to be folded into what came before.
    Merge = 3,
    // 4 range tombstone, 5 blob pointer, 6 put with expiry: reserved, readers refuse them until
    // an incompatible feature bit announces them.
}

impl EntryKind {
    /// The kind with this number on disk, or `None` for one this version does not know.
    #[inline]
    #[must_use]
    pub fn from_u8(byte: u8) -> Option<EntryKind> {
        match byte {
            1 => Some(EntryKind::Put),
            2 => Some(EntryKind::Delete),
            3 => Some(EntryKind::Merge),
            _ => None,
        }
    }
}

/// The longest user key in bytes.
pub const KEY_BYTES_MAX: usize = 64 << 10;
/// The longest value in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 30;

/// Orders two entries: user key ascending, then sequence number descending.
#[inline]
#[must_use]
pub fn compare(a_key: &[u8], a_seqno: SeqNo, b_key: &[u8], b_seqno: SeqNo) -> Ordering {
    a_key.cmp(b_key).then_with(|| b_seqno.cmp(&a_seqno))
}

/// The first 8 bytes of `key` as a number that sorts as the bytes do; shorter keys are padded
/// with zeros, so equal heads decide nothing.
#[inline]
#[must_use]
pub fn head(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(bytes) => u64::from_be_bytes(*bytes),
        None => {
            let mut bytes = [0; 8];
            bytes[..key.len()].copy_from_slice(key);
            u64::from_be_bytes(bytes)
        }
    }
}

/// So many bytes of a key are in its long head.
pub const LONG_HEAD_BYTES: usize = 16;

/// As [`head`], of the first 16 bytes.
#[inline]
#[must_use]
pub fn long_head(key: &[u8]) -> u128 {
    match key.first_chunk::<LONG_HEAD_BYTES>() {
        Some(bytes) => u128::from_be_bytes(*bytes),
        None => {
            let mut bytes = [0; LONG_HEAD_BYTES];
            bytes[..key.len()].copy_from_slice(key);
            u128::from_be_bytes(bytes)
        }
    }
}

/// The one hash of a user key, taken once a read and once a write: filters, memtable tags and
/// the sharding of caches all use it. On disk (in filters): never change.
#[inline]
#[must_use]
pub fn hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// An entry's identity for `Debug` output: `apple#7,PUT`.
pub struct EntryName<'a>(pub &'a [u8], pub SeqNo, pub EntryKind);

impl fmt::Display for EntryName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.2 {
            EntryKind::Put => "PUT",
            EntryKind::Delete => "DEL",
            EntryKind::Merge => "MERGE",
        };
        write!(f, "{}#{},{kind}", self.0.escape_ascii(), self.1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_versions_come_first() {
        assert_eq!(compare(b"a", SeqNo(2), b"a", SeqNo(1)), Ordering::Less);
        assert_eq!(compare(b"a", SeqNo(1), b"b", SeqNo(2)), Ordering::Less);
        assert_eq!(compare(b"a", SeqNo(1), b"a", SeqNo(1)), Ordering::Equal);
    }

    #[test]
    fn heads_sort_as_keys_do() {
        let keys: [&[u8]; 7] = [b"", b"\0", b"a", b"a\0", b"ab", b"abcdefgh", b"abcdefghi"];
        for pair in keys.windows(2) {
            assert!(pair[0] < pair[1]);
            assert!(head(pair[0]) <= head(pair[1]));
            assert!(long_head(pair[0]) <= long_head(pair[1]));
            assert_eq!((long_head(pair[0]) >> 64) as u64, head(pair[0]));
        }
        assert_eq!(head(b"abcdefgh"), u64::from_be_bytes(*b"abcdefgh"));
    }
}
