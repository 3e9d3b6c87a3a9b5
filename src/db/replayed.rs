//! Operations of a log that is replayed, in the order of the tables that they become.
//!
//! They are not copied out of the log, whose files stay mapped meanwhile, and not put into a memtable:
//! nobody reads them before they are in tables, so they are sorted once, where a memtable is sorted
//! all the time. That takes less than half the time of a replay (docs/decisions/0013).

use std::cmp::Ordering;

use bytes::Bytes;

use crate::cursor::{Cursor, ValueRef};
use crate::error::Result;
use crate::key::{EntryKind, SeqNo};
use crate::table::filter::prefetch;

/// So many bytes of a key are sorted at a time.
const HEAD_BYTES: usize = 8;
/// And so many times, before whole keys are compared.
const HEADS_MAX: usize = 8;
/// So many with equal heads are sorted by comparing their keys.
const ALIKE_MIN: usize = 16;
/// Places of so many entries are filled again when keys turn out to have less in common. Those of more wait
/// for the end, since each byte of a key may do that.
const AGAIN_MAX: usize = 1024;
/// An entry so many places ahead is fetched while one is written: its bytes lie anywhere in the log.
const AHEAD: usize = 8;

/// Operations of one keyspace.
#[derive(Default)]
pub(crate) struct Replayed<'a> {
    /// In the order of the log.
    entries: Vec<Entry<'a>>,
    /// All keys begin with so many bytes that are the same.
    common_bytes: usize,
    /// Keys and values.
    user_bytes: u64,
    /// To be sorted; those of all entries, or none since the keys were found to have less in common.
    places: Vec<Place>,
}

struct Entry<'a> {
    key: &'a [u8],
    value: &'a [u8],
    seqno: SeqNo,
    kind: EntryKind,
}

/// One of the entries, and what is sorted in their stead: 16 bytes for 48.
#[derive(Clone, Copy)]
struct Place {
    /// The 8 bytes of the key behind what all keys begin with, zeros behind its end.
    head: u64,
    index: u32,
}

impl<'a> Replayed<'a> {
    pub fn push(&mut self, key: &'a [u8], seqno: SeqNo, kind: EntryKind, value: &'a [u8]) {
        match self.entries.first() {
            None => self.common_bytes = key.len(),
            Some(first) => {
                let common = &first.key[..self.common_bytes];
                if !key.starts_with(common) {
                    self.common_bytes = key.iter().zip(common).take_while(|(a, b)| a == b).count();
                    self.places.clear();
                    if self.entries.len() <= AGAIN_MAX {
                        self.fill_places();
                    }
                }
            }
        }
        if self.places.len() == self.entries.len() {
            // Now, while the key is in the cache.
            let head = head_of(&key[self.common_bytes..]);
            self.places.push(Place { head, index: self.places.len() as u32 });
        }
        self.entries.push(Entry { key, value, seqno, kind });
        self.user_bytes += (key.len() + value.len()) as u64;
    }

    /// True if it should not take the operations of another commit.
    pub fn is_full(&self) -> bool {
        self.entries.len() > (u32::MAX / 2) as usize
    }

    /// Bytes of their keys and values.
    pub fn user_bytes(&self) -> u64 {
        self.user_bytes
    }

    /// What they take, with the room that a growing list leaves.
    pub fn memory_bytes(&self) -> usize {
        self.entries.len() * 2 * (size_of::<Entry<'_>>() + size_of::<Place>())
    }

    /// All of them. Either this or the halves, and once: sorting them changes what they are sorted by.
    pub fn whole(&mut self) -> Part<'_, 'a> {
        self.fill_places();
        Part { places: &mut self.places, entries: &self.entries, common_bytes: self.common_bytes }
    }

    /// Two parts of about as many operations each, the smaller keys in the first one. It may have fewer,
    /// or none, since keys with the same head are all in one part.
    pub fn halves(&mut self) -> (Part<'_, 'a>, Part<'_, 'a>) {
        self.fill_places();
        let mut middle = self.places.len() / 2;
        if middle > 0 {
            let (before, at, _) = self.places.select_nth_unstable_by_key(middle, |p| p.head);
            // Those of the same head: together to the other half.
            let mut end = before.len();
            for i in (0..end).rev() {
                if before[i].head == at.head {
                    end -= 1;
                    before.swap(i, end);
                }
            }
            middle = end;
        }
        let (first, second) = self.places.split_at_mut(middle);
        let (entries, common_bytes) = (&self.entries[..], self.common_bytes);
        let part = |places| Part { places, entries, common_bytes };
        (part(first), part(second))
    }

    fn fill_places(&mut self) {
        let place = |(index, entry): (usize, &Entry<'_>)| {
            let head = head_of(&entry.key[self.common_bytes..]);
            Place { head, index: index as u32 }
        };
        if self.places.len() < self.entries.len() {
            self.places.clear();
            self.places.extend(self.entries.iter().enumerate().map(place));
        }
    }
}

/// The first bytes as a number, zeros behind them if there are fewer.
fn head_of(key: &[u8]) -> u64 {
    let mut head = [0; HEAD_BYTES];
    let len = key.len().min(HEAD_BYTES);
    head[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(head)
}

/// Operations that become tables together. See [`Replayed::halves`].
pub(crate) struct Part<'s, 'a> {
    places: &'s mut [Place],
    entries: &'s [Entry<'a>],
    common_bytes: usize,
}

impl<'s, 'a> Part<'s, 'a> {
    /// A cursor over them, sorted: by key, then from the newest to the oldest.
    pub fn sorted(self) -> ReplayedCursor<'s, 'a> {
        sort(self.places, self.entries, self.common_bytes, HEADS_MAX);
        ReplayedCursor { places: self.places, entries: self.entries, at: None }
    }
}

/// Sorts places whose keys are alike up to `from`, where their heads are from; then those with equal
/// heads by what follows, `heads` times at most.
fn sort(places: &mut [Place], entries: &[Entry<'_>], from: usize, heads: usize) {
    let entry = |place: &Place| &entries[place.index as usize];
    let compare = |a: &Place, b: &Place| {
        let (a, b) = (entry(a), entry(b));
        a.key[from..].cmp(&b.key[from..]).then_with(|| b.seqno.cmp(&a.seqno))
    };
    places.sort_unstable_by_key(|place| place.head);
    let next = from + HEAD_BYTES;
    for alike in places.chunk_by_mut(|a, b| a.head == b.head) {
        let goes_on = |place: &Place| entry(place).key.len() > next;
        if alike.len() > ALIKE_MIN && heads > 1 && alike.iter().all(goes_on) {
            alike.iter_mut().for_each(|place| place.head = head_of(&entry(place).key[next..]));
            sort(alike, entries, next, heads - 1);
        } else if alike.len() > 1 {
            alike.sort_unstable_by(compare);
        }
    }
}

/// See [`Part::sorted`].
pub(crate) struct ReplayedCursor<'s, 'a> {
    places: &'s [Place],
    entries: &'s [Entry<'a>],
    at: Option<usize>,
}

impl<'a> ReplayedCursor<'_, 'a> {
    fn entry_at(&self, at: usize) -> &Entry<'a> {
        &self.entries[self.places[at].index as usize]
    }

    fn entry(&self) -> &Entry<'a> {
        self.entry_at(self.at.expect("it is valid"))
    }

    fn go_to(&mut self, at: usize) {
        self.at = Some(at).filter(|at| *at < self.places.len());
    }

    /// How many entries come before (key, seqno).
    fn count_before(&self, key: &[u8], seqno: SeqNo) -> usize {
        self.places.partition_point(|place| {
            let entry = &self.entries[place.index as usize];
            entry.key.cmp(key).then_with(|| seqno.cmp(&entry.seqno)) == Ordering::Less
        })
    }
}

impl Cursor for ReplayedCursor<'_, '_> {
    fn valid(&self) -> bool {
        self.at.is_some()
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.go_to(0);
        Ok(())
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.at = self.places.len().checked_sub(1);
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
        if let Some(place) = self.places.get(at + 2 * AHEAD) {
            prefetch(self.entries, place.index as usize);
        }
        if at + AHEAD < self.places.len() {
            let ahead = self.entry_at(at + AHEAD);
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
        let long = "x".repeat(HEAD_BYTES * (HEADS_MAX + 2));
        let families =
            ["", "a", "a\0", "sixteen bytes of", "sixteen bytes of\0", "sixteen bytes ofa", &long];
        let mut model: Vec<(Vec<u8>, SeqNo)> = Vec::new();
        for seqno in 1..2000 {
            let key = format!("{}{}", families[rng.usize(..7)], ["", "\0", "x"][rng.usize(..3)]);
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
        let mut cursor = replayed.whole().sorted();
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
    fn halves_are_all_of_it_and_share_no_key() {
        let rng = &mut fastrand::Rng::with_seed(8);
        for keys in [0, 1, 2, 3, 100, 5000] {
            let names: Vec<_> = (0..keys).map(|i| format!("a key of some length {i}")).collect();
            let mut replayed = Replayed::default();
            let mut model: Vec<(Vec<u8>, SeqNo)> = Vec::new();
            for seqno in 1..=if keys == 0 { 0 } else { 2000 } {
                let key = &names[rng.usize(..keys)];
                replayed.push(key.as_bytes(), SeqNo(seqno), EntryKind::Put, b"value");
                model.push((key.clone().into_bytes(), SeqNo(seqno)));
            }
            model.sort_by(|a, b| key::compare(&a.0, a.1, &b.0, b.1));
            let bytes: usize = model.iter().map(|(key, _)| key.len() + 5).sum();
            assert_eq!(replayed.user_bytes(), bytes as u64);
            let (first, second) = replayed.halves();
            let (mut found, mut sizes) = (Vec::new(), Vec::new());
            for mut cursor in [first.sorted(), second.sorted()] {
                let before = found.len();
                cursor.seek_to_first().unwrap();
                while cursor.valid() {
                    found.push((cursor.key().to_vec(), cursor.seqno()));
                    cursor.next().unwrap();
                }
                sizes.push(found.len() - before);
            }
            assert!(found == model, "{keys} keys");
            let at = sizes[0];
            assert!(at == 0 || at == found.len() || found[at - 1].0 != found[at].0, "{keys} keys");
            if keys >= 100 {
                assert!(sizes[0].abs_diff(sizes[1]) < 100, "{keys} keys: {sizes:?}");
            }
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
