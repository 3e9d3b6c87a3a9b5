//! A run: tables that do not overlap, sorted, and the fences that find the one for a key.
//!
//! ```text
//! prefix    what all keys of the run begin with
//! largest   u64 × tables: 8 bytes of each table's largest key, behind the prefix
//! smallest  u64 × tables: the same of the smallest key
//! ```
//!
//! A search touches the two arrays only; a table itself, three dependent cache misses away (its
//! reference count, its facts, the key), is touched only where 8 bytes do not decide. The common
//! prefix is left out because heads of keys like `user00000017` would otherwise all be the same.

use std::cmp::Ordering;
use std::ops::{Bound, Range};
use std::sync::Arc;

use crate::key::head;
use crate::table::TableFacts;
use crate::table::reader::Table;
use crate::version::{HasFacts, VersionError};

/// Disjoint tables, sorted.
pub(crate) struct Run<T = Table> {
    number: u64,
    tables: Box<[Arc<T>]>,
    prefix: Box<[u8]>,
    largest: Box<[u64]>,
    smallest: Box<[u64]>,
    bytes: u64,
}

impl<T: HasFacts> Run<T> {
    /// No tables.
    pub(crate) fn empty() -> Run<T> {
        Run::new(0, Vec::new())
    }

    /// These tables, in any order. Whether they are disjoint is for [`Run::check`] to say.
    pub(crate) fn new(number: u64, mut tables: Vec<Arc<T>>) -> Run<T> {
        tables.sort_unstable_by(|a, b| a.facts().smallest.cmp(&b.facts().smallest));
        let prefix: Box<[u8]> = match (tables.first(), tables.last()) {
            (Some(first), Some(last)) => {
                let (a, b) = (&first.facts().smallest, &last.facts().largest);
                let shared = a.iter().zip(b.iter()).take_while(|(a, b)| a == b).count();
                a[..shared].into()
            }
            _ => Box::default(),
        };
        // `get` because the ranges may yet turn out to be unsound.
        let behind = |key: &[u8]| head(key.get(prefix.len()..).unwrap_or_default());
        let largest = tables.iter().map(|table| behind(&table.facts().largest)).collect();
        let smallest = tables.iter().map(|table| behind(&table.facts().smallest)).collect();
        let bytes = tables.iter().map(|table| table.facts().bytes).sum();
        Run { number, tables: tables.into(), prefix, largest, smallest, bytes }
    }

    /// Verifies that the tables are sorted and disjoint.
    pub(crate) fn check(&self) -> Result<(), VersionError> {
        for table in &self.tables {
            let TableFacts { number, smallest, largest, seqno_min, seqno_max, .. } = table.facts();
            if smallest > largest || seqno_min > seqno_max {
                return Err(VersionError(format!("table {} ends before it begins", number.0)));
            }
        }
        for pair in self.tables.windows(2) {
            let (a, b) = (pair[0].facts(), pair[1].facts());
            if a.largest >= b.smallest {
                let (a, b) = (a.number.0, b.number.0);
                return Err(VersionError(format!("tables {a} and {b} of one run overlap")));
            }
        }
        Ok(())
    }

    /// Its number, for the order of level 0; 0 on the other levels.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Its tables, sorted.
    pub(crate) fn tables(&self) -> &[Arc<T>] {
        &self.tables
    }

    /// Bytes of its tables.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The table that has `key` if any table of the run does.
    #[inline]
    pub(crate) fn candidate(&self, key: &[u8]) -> Option<&T> {
        let index = self.reaching(key);
        let table = self.tables.get(index)?;
        // `reaching` is past the end for keys above the prefix; those below it come before all.
        let rest = self.behind_prefix(key)?;
        let begins = match self.smallest[index].cmp(&head(rest)) {
            Ordering::Less => true,
            Ordering::Equal => *table.facts().smallest <= *key,
            Ordering::Greater => false,
        };
        begins.then_some(&**table)
    }

    /// Index of the first table whose largest key is not less than `key`.
    #[inline]
    pub(crate) fn reaching(&self, key: &[u8]) -> usize {
        let Some(rest) = self.behind_prefix(key) else {
            return if *key < *self.prefix { 0 } else { self.tables.len() };
        };
        let head = head(rest);
        let start = self.largest.partition_point(|&fence| fence < head);
        if self.largest.get(start) != Some(&head) {
            return start;
        }
        let equal = self.largest[start..].partition_point(|&fence| fence == head);
        let equal = &self.tables[start..start + equal];
        start + equal.partition_point(|table| *table.facts().largest < *key)
    }

    /// The key without the prefix, if it has it.
    ///
    /// An empty prefix, which every empty level has, is not compared: its address is one where
    /// nothing is, and `memcmp` then takes 150 ns for no bytes at all where it loads by masks
    /// (AVX-512). Six empty levels were most of a read.
    #[inline]
    fn behind_prefix<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        if self.prefix.is_empty() { Some(key) } else { key.strip_prefix(&*self.prefix) }
    }

    /// Indices of the tables that have keys from `smallest` to `largest`, both included.
    pub(crate) fn overlapping(&self, smallest: &[u8], largest: &[u8]) -> Range<usize> {
        self.within((Bound::Included(smallest), Bound::Included(largest)))
    }

    /// Indices of the tables that may have keys in `range`.
    pub(crate) fn within(&self, range: (Bound<&[u8]>, Bound<&[u8]>)) -> Range<usize> {
        let from = match range.0 {
            Bound::Unbounded => 0,
            Bound::Included(key) => self.reaching(key),
            Bound::Excluded(key) => {
                let at = self.reaching(key);
                at + usize::from(self.tables.get(at).is_some_and(|t| *t.facts().largest == *key))
            }
        };
        let behind = &self.tables[from..];
        let count = match range.1 {
            Bound::Unbounded => behind.len(),
            Bound::Included(key) => behind.partition_point(|t| *t.facts().smallest <= *key),
            Bound::Excluded(key) => behind.partition_point(|t| *t.facts().smallest < *key),
        };
        from..from + count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::FileNumber;
    use crate::version::fixture::facts;

    /// Keys that share long prefixes, are prefixes of each other, and have equal heads.
    fn random_key(rng: &mut fastrand::Rng, prefix: &str) -> String {
        let tail: String = (0..rng.usize(..4)).map(|_| rng.choice(['a', 'b']).unwrap()).collect();
        let middle = if rng.bool() { "" } else { "01234567" };
        format!("{prefix}{middle}{tail}")
    }

    #[test]
    fn fences_find_what_a_linear_search_finds() {
        for seed in 0..2000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let prefix = ["", "p", "user0000"][rng.usize(..3)];
            let mut keys: Vec<String> =
                (0..rng.usize(..12)).map(|_| random_key(&mut rng, prefix)).collect();
            keys.sort();
            keys.dedup();
            let pairs = keys.chunks(2).enumerate();
            let tables: Vec<_> = pairs
                .map(|(index, pair)| {
                    let mut facts = facts(index as u64 + 1, "a-b", 1..=1);
                    facts.smallest = pair[0].as_bytes().into();
                    facts.largest = pair[pair.len() - 1].as_bytes().into();
                    Arc::new(facts)
                })
                .collect();
            let run = Run::new(0, tables.clone());
            run.check().unwrap();
            for _ in 0..40 {
                let (a, b) = (random_key(&mut rng, prefix), random_key(&mut rng, "user000"));
                for key in [&a, &b] {
                    let key = key.as_bytes();
                    let reaching = tables.iter().filter(|t| *t.largest < *key).count();
                    assert_eq!(run.reaching(key), reaching, "seed {seed}");
                    let has = |t: &&Arc<TableFacts>| *t.smallest <= *key && *key <= *t.largest;
                    let candidate: Option<FileNumber> = tables.iter().find(has).map(|t| t.number);
                    assert_eq!(run.candidate(key).map(|t| t.number), candidate, "seed {seed}");
                }
                let (low, high) = (a.as_bytes().min(b.as_bytes()), a.as_bytes().max(b.as_bytes()));
                let touches = |t: &&Arc<TableFacts>| *t.smallest <= *high && *t.largest >= *low;
                let overlapping = run.overlapping(low, high);
                assert_eq!(overlapping.len(), tables.iter().filter(touches).count());
                assert!(tables[overlapping].iter().all(|t| touches(&t)), "seed {seed}");
                let open = (Bound::Excluded(low), Bound::Excluded(high));
                let touches = |t: &&Arc<TableFacts>| *t.smallest < *high && *t.largest > *low;
                let within = run.within(open);
                if low < high {
                    assert_eq!(within.len(), tables.iter().filter(touches).count(), "seed {seed}");
                }
            }
        }
    }
}
