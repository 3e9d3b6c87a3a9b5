//! Where an entry stands in the order of entries, as numbers that nearly always decide without
//! following a pointer.
//!
//! ```text
//! head   u128     the first 16 bytes of the key, big-endian, padded with zeros
//! rank   u64      length class << 56 | (SeqNo::MAX - seqno)
//!                 class 0..=16: the key's length; 0x40: longer than 16; 0x80: after every key
//! rest   &[u8]    the key from byte 16 on; empty unless the class is 0x40
//! ```
//!
//! Positions compare by head, then, only if both keys are longer than 16 bytes, by rest, then by
//! rank. That is the order of `key::compare`: of two keys with equal heads of which one is at most
//! 16 bytes long, the shorter is a prefix of the longer, so the lengths decide, and equal lengths
//! mean equal keys, so the sequence numbers do. Sixteen bytes and not eight, because the eight
//! first bytes of zero-padded numbers are all the same.

use std::cmp::Ordering;

use crate::key::SeqNo;

/// Length class of keys of more than [`HEAD_BYTES`] bytes.
const CLASS_LONG: u64 = 0x40;
/// Length class of [`Position::END`].
const CLASS_END: u64 = 0x80;
/// The bit of a rank that is set for keys of more than [`HEAD_BYTES`] bytes and for no others.
const LONG_BIT: u64 = CLASS_LONG << CLASS_SHIFT;
const CLASS_SHIFT: u32 = 56;

/// So many bytes of a key are in the head.
pub(super) const HEAD_BYTES: usize = 16;

/// A place between, or at, entries; see the module's comment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position<'a> {
    pub head: u128,
    pub rank: u64,
    pub rest: &'a [u8],
}

impl<'a> Position<'a> {
    /// Not after any entry.
    pub const START: Position<'static> = Position { head: 0, rank: 0, rest: &[] };
    /// After every entry.
    pub const END: Position<'static> =
        Position { head: u128::MAX, rank: CLASS_END << CLASS_SHIFT, rest: &[] };

    /// Where the entry (key, seqno) stands.
    #[inline]
    pub fn new(key: &'a [u8], seqno: SeqNo) -> Position<'a> {
        debug_assert!(seqno <= SeqNo::MAX, "sequence numbers have 56 bits");
        let age = SeqNo::MAX.0 - seqno.0;
        match key.split_first_chunk::<HEAD_BYTES>() {
            Some((head, rest)) => {
                let class = if rest.is_empty() { HEAD_BYTES as u64 } else { CLASS_LONG };
                let rank = class << CLASS_SHIFT | age;
                Position { head: u128::from_be_bytes(*head), rank, rest }
            }
            None => {
                let mut head = [0; HEAD_BYTES];
                head[..key.len()].copy_from_slice(key);
                let rank = (key.len() as u64) << CLASS_SHIFT | age;
                Position { head: u128::from_be_bytes(head), rank, rest: &[] }
            }
        }
    }

    /// The first position after this one: that of the key's next older version, or, after
    /// sequence number 0, of the next length class, which comes before every longer key.
    #[inline]
    pub fn successor(self) -> Position<'a> {
        Position { rank: self.rank + 1, ..self }
    }

    /// Where the versions of the key begin.
    #[inline]
    pub fn key_start(self) -> Position<'a> {
        Position { rank: self.rank >> CLASS_SHIFT << CLASS_SHIFT, ..self }
    }

    /// True if both are positions of one key.
    #[inline]
    pub fn same_key(&self, other: &Position<'_>) -> bool {
        // Empty rests are not compared: no bytes at an address where nothing is cost `memcmp` 150 ns
        // where it loads by masks (AVX-512).
        self.head == other.head
            && (self.rank ^ other.rank) >> CLASS_SHIFT == 0
            && (!is_long(self.rank) || self.rest == other.rest)
    }
}

/// True if both ranks belong to keys that are longer than the head.
#[inline]
pub(super) fn both_long(a_rank: u64, b_rank: u64) -> bool {
    a_rank & b_rank & LONG_BIT != 0
}

/// True if the rank belongs to a key that is longer than the head.
#[inline]
pub(super) fn is_long(rank: u64) -> bool {
    rank & LONG_BIT != 0
}

/// The sequence number in a rank.
#[inline]
pub(super) fn seqno(rank: u64) -> SeqNo {
    SeqNo(SeqNo::MAX.0 - (rank & SeqNo::MAX.0))
}

impl Ord for Position<'_> {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        if self.head != other.head {
            return self.head.cmp(&other.head);
        }
        if both_long(self.rank, other.rank) {
            return self.rest.cmp(other.rest).then(self.rank.cmp(&other.rank));
        }
        self.rank.cmp(&other.rank)
    }
}

impl PartialOrd for Position<'_> {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Position<'_> {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Position<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key;

    fn keys() -> Vec<Vec<u8>> {
        let mut keys = vec![vec![]];
        for len in [1usize, 2, 15, 16, 17, 18, 33] {
            for (fill, last) in [(0, 0), (0, 1), (b'a', b'a'), (b'a', 0), (0xff, 0xff), (0xff, 0)] {
                let mut key = vec![fill; len];
                key[len - 1] = last;
                keys.push(key);
            }
        }
        keys.sort();
        keys.dedup();
        keys
    }

    #[test]
    fn positions_sort_as_entries_do() {
        let seqnos = [SeqNo(0), SeqNo(1), SeqNo(7), SeqNo::MAX];
        for a in &keys() {
            for b in &keys() {
                for (i, j) in (0..4).flat_map(|i| (0..4).map(move |j| (i, j))) {
                    let (x, y) = (Position::new(a, seqnos[i]), Position::new(b, seqnos[j]));
                    let want = key::compare(a, seqnos[i], b, seqnos[j]);
                    assert_eq!(x.cmp(&y), want, "{a:?} {b:?} {i} {j}");
                    assert_eq!(x.same_key(&y), a == b);
                    assert!(Position::START <= x && x < Position::END);
                    assert_eq!(seqno(x.rank), seqnos[i]);
                }
            }
        }
    }

    #[test]
    fn nothing_stands_between_a_position_and_its_successor() {
        let seqnos = [SeqNo(0), SeqNo(1), SeqNo::MAX];
        let keys = keys();
        let all: Vec<_> =
            keys.iter().flat_map(|k| seqnos.iter().map(|&s| Position::new(k, s))).collect();
        for x in &all {
            assert!(*x < x.successor());
            for y in all.iter().filter(|y| *y > x) {
                assert!(x.successor() <= *y);
            }
        }
    }
}
