//! Operations of a log that is replayed, in the order of the tables that they become.
//!
//! They are not copied out of the log, whose files stay mapped meanwhile, and not put into a memtable:
//! nobody reads them before they are in tables, so they are sorted once, where a memtable is sorted
//! all the time. That takes less than half the time of a replay (docs/decisions/0003).

use std::cmp::Ordering;

use bytes::Bytes;

use crate::cursor::{Cursor, ValueRef};
use crate::error::Result;
use crate::key::{EntryKind, SeqNo};
use crate::table::filter::prefetch;

/// So many bytes of a key are compared before the key itself is looked at.
const HEAD_BYTES: usize = 16;
/// An entry so many places ahead is fetched while one is written: its bytes lie anywhere in the log.
const AHEAD: usize = 8;

/// Operations of one keyspace.
#[derive(Default)]
pub(crate) struct Replayed<'a> {
    entries: Vec<Entry<'a>>,
}

struct Entry<'a> {
    /// The first bytes of the key, zeros behind it if it is shorter.
    head: [u64; 2],
    key: &'a [u8],
    value: &'a [u8],
    seqno: SeqNo,
    kind: EntryKind,
}

impl Entry<'_> {
    /// By key, then from the newest to the oldest.
    fn compare(&self, other: &Entry<'_>) -> Ordering {
        self.head
            .cmp(&other.head)
            .then_with(|| self.key.cmp(other.key))
            .then_with(|| other.seqno.cmp(&self.seqno))
    }
}

impl<'a> Replayed<'a> {
    pub fn push(&mut self, key: &'a [u8], seqno: SeqNo, kind: EntryKind, value: &'a [u8]) {
        let mut bytes = [0; HEAD_BYTES];
        let len = key.len().min(HEAD_BYTES);
        bytes[..len].copy_from_slice(&key[..len]);
        let head = u128::from_be_bytes(bytes);
        let head = [(head >> 64) as u64, head as u64];
        self.entries.push(Entry { head, key, value, seqno, kind });
    }

    /// What they take, with the room that a growing list leaves.
    pub fn memory_bytes(&self) -> usize {
        2 * self.entries.len() * size_of::<Entry<'_>>()
    }

    /// A cursor over them, sorted.
    pub fn sorted(&mut self) -> ReplayedCursor<'_> {
        self.entries.sort_unstable_by(Entry::compare);
        ReplayedCursor { entries: &self.entries, at: None }
    }
}

/// See [`Replayed::sorted`].
pub(crate) struct ReplayedCursor<'a> {
    entries: &'a [Entry<'a>],
    at: Option<usize>,
}

impl ReplayedCursor<'_> {
    fn entry(&self) -> &Entry<'_> {
        &self.entries[self.at.expect("it is valid")]
    }

    fn go_to(&mut self, at: usize) {
        self.at = Some(at).filter(|at| *at < self.entries.len());
    }

    /// How many entries come before (key, seqno).
    fn count_before(&self, key: &[u8], seqno: SeqNo) -> usize {
        self.entries.partition_point(|entry| {
            entry.key.cmp(key).then_with(|| seqno.cmp(&entry.seqno)) == Ordering::Less
        })
    }
}

impl Cursor for ReplayedCursor<'_> {
    fn valid(&self) -> bool {
        self.at.is_some()
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.go_to(0);
        Ok(())
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.at = self.entries.len().checked_sub(1);
        Ok(())
    }

    fn seek(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        self.go_to(self.count_before(key, seqno));
        Ok(())
    }

    fn seek_before(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        self.at = self.count_before(key, seqno).checked_sub(1);
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        let at = self.at.expect("it is valid") + 1;
        if let Some(ahead) = self.entries.get(at + AHEAD) {
            prefetch(ahead.key, 0);
            prefetch(ahead.value, 0);
        }
        self.go_to(at);
        Ok(())
    }

    fn prev(&mut self) -> Result<()> {
        self.at = self.at.expect("it is valid").checked_sub(1);
        Ok(())
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.entry().key
    }

    #[inline]
    fn seqno(&self) -> SeqNo {
        self.entry().seqno
    }

    #[inline]
    fn kind(&self) -> EntryKind {
        self.entry().kind
    }

    #[inline]
    fn value(&self) -> ValueRef<'_> {
        ValueRef { bytes: self.entry().value, owner: None }
    }
}

/// A part of one of these files, for as long as they are there.
///
/// # Panics
/// If it is of none of them.
pub(crate) fn within<'a>(files: &'a [Bytes], part: &[u8]) -> &'a [u8] {
    let of = |file: &'a Bytes| {
        let from = part.as_ptr().addr().checked_sub(file.as_ptr().addr())?;
        file.get(from..from.checked_add(part.len())?)
    };
    // Most likely it is of the same file as the part before, and few files have more to come.
    files.iter().find_map(of).expect("it is of one of the files")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key;

    #[test]
    fn entries_come_in_the_order_of_tables_both_ways() {
        let rng = &mut fastrand::Rng::with_seed(7);
        let families =
            ["", "a", "a\0", "sixteen bytes of", "sixteen bytes of\0", "sixteen bytes ofa"];
        let mut model: Vec<(Vec<u8>, SeqNo)> = Vec::new();
        for seqno in 1..2000 {
            let key = format!("{}{}", families[rng.usize(..6)], ["", "\0", "x"][rng.usize(..3)]);
            model.push((key.into_bytes(), SeqNo(seqno)));
        }
        let mut replayed = Replayed::default();
        for (key, seqno) in &model {
            replayed.push(key, *seqno, EntryKind::Put, key);
        }
        let sorted_by =
            |a: &(Vec<u8>, SeqNo), b: &(Vec<u8>, SeqNo)| key::compare(&a.0, a.1, &b.0, b.1);
        let mut expected = model.clone();
        expected.sort_by(sorted_by);
        let mut cursor = replayed.sorted();
        for forward in [true, false] {
            let mut found = Vec::new();
            if forward {
                cursor.seek_to_first().unwrap()
            } else {
                cursor.seek_to_last().unwrap()
            }
            while cursor.valid() {
                assert_eq!((cursor.value().bytes, cursor.kind()), (cursor.key(), EntryKind::Put));
                found.push((cursor.key().to_vec(), cursor.seqno()));
                if forward { cursor.next().unwrap() } else { cursor.prev().unwrap() }
            }
            if !forward {
                found.reverse();
            }
            assert!(found == expected);
        }
        for (key, seqno) in model.iter().step_by(50) {
            cursor.seek(key, *seqno).unwrap();
            assert_eq!((cursor.key(), cursor.seqno()), (&key[..], *seqno));
            cursor.seek_before(key, *seqno).unwrap();
            let before =
                expected.iter().rposition(|entry| sorted_by(entry, &(key.clone(), *seqno)).is_lt());
            assert_eq!(cursor.valid().then(|| cursor.seqno()), before.map(|at| expected[at].1));
        }
    }

    #[test]
    fn parts_are_found_in_their_files() {
        let files = [Bytes::from(vec![1; 100]), Bytes::from(vec![2; 50])];
        for file in &files {
            for part in [&file[..], &file[10..20], &file[49..50], &file[5..5]] {
                assert_eq!(within(&files, part).as_ptr(), part.as_ptr());
            }
        }
        let other = [3; 4];
        assert!(std::panic::catch_unwind(|| within(&files, &other)).is_err());
    }
}
