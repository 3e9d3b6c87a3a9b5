//! The version: which tables a keyspace consists of, level by level, immutable once made.
//!
//! ```text
//! level 0     runs, newest first; one for each flush, each split into tables
//! level 1..5  one run each, the upper ones empty while the data is small
//! level 6     one run, the oldest entries
//! ```
//!
//! Invariants, which [`Version::check`] verifies as far as the facts of tables show them:
//! - the tables of a run are sorted and their ranges of user keys are disjoint, so that a key has
//!   one candidate in a run and all versions of a key within a run lie in one table;
//! - of two entries of one user key, the newer one lies in the same run or in an earlier one in
//!   the order: level 0 by descending run number, level 1, level 2, …; a read may therefore stop
//!   at the first run that decides;
//! - the runs of level 0 have disjoint intervals of sequence numbers, in the order of the runs.
//!
//! - `mod`: [`Version`], its edits, the point read.
//! - `run`: the tables of one run and their fences.
//! - `cursor`: a cursor over one run.

pub(crate) mod cursor;
#[cfg(test)]
pub(crate) mod fixture;
pub(crate) mod run;

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use crate::cursor::ValueRef;
use crate::error::Result;
use crate::file::FileNumber;
use crate::key::{EntryKind, SeqNo};
use crate::table::{Table, TableFacts};
pub(crate) use crate::version::cursor::RunCursor;
use crate::version::run::Run;

/// Levels 0 to 6.
pub(crate) const LEVEL_COUNT: usize = 7;
/// The level with the oldest entries.
pub(crate) const LEVEL_LAST: u8 = LEVEL_COUNT as u8 - 1;

/// Candidates whose filters are prefetched together in a point read. Level 0 rarely has more than
/// ten runs; beyond the batch the read goes on with the next one.
const CANDIDATES: usize = 16;

/// Something that has the facts of a table: an open table, or in the tests of the picker the bare
/// facts.
pub(crate) trait HasFacts {
    /// The facts the manifest records of the table.
    fn facts(&self) -> &TableFacts;
}

impl HasFacts for Table {
    fn facts(&self) -> &TableFacts {
        Table::facts(self)
    }
}

impl HasFacts for TableFacts {
    fn facts(&self) -> &TableFacts {
        self
    }
}

/// A table that an edit adds: its level, its run (for level 0; elsewhere ignored), the table.
pub(crate) type Added<T> = (u8, u64, Arc<T>);

/// Why tables do not form a version: a bug of ours, or in a replayed manifest corruption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VersionError(pub String);

impl fmt::Display for VersionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The levels of one keyspace. Shared by `Arc`; an edit makes a new one that shares the runs that
/// it did not touch.
pub(crate) struct Version<T = Table> {
    /// Newest first, none empty.
    level0: Vec<Arc<Run<T>>>,
    /// Levels 1 to 6, possibly empty.
    deeper: [Arc<Run<T>>; LEVEL_COUNT - 1],
}

impl<T: HasFacts> Version<T> {
    /// No tables.
    pub(crate) fn empty() -> Version<T> {
        Version { level0: Vec::new(), deeper: std::array::from_fn(|_| Arc::new(Run::empty())) }
    }

    /// This version without the tables of `removed` and with those of `added`.
    ///
    /// Fails if a removed table is not there or the result breaks the order within a run; debug
    /// builds also run [`Version::check`].
    pub(crate) fn apply(
        &self,
        added: Vec<Added<T>>,
        removed: &[(u8, FileNumber)],
    ) -> std::result::Result<Version<T>, VersionError> {
        let mut level0 = self.level0.clone();
        let mut deeper = self.deeper.clone();
        for level in 0..LEVEL_COUNT as u8 {
            let gone: HashSet<FileNumber> =
                removed.iter().filter(|(l, _)| *l == level).map(|(_, number)| *number).collect();
            let new: Vec<&Added<T>> = added.iter().filter(|(l, ..)| *l == level).collect();
            if gone.is_empty() && new.is_empty() {
                continue;
            }
            let old = if level == 0 {
                std::mem::take(&mut level0)
            } else {
                vec![Arc::clone(&deeper[usize::from(level) - 1])]
            };
            let runs = edit_level(level, old, &new, &gone)?;
            if level == 0 {
                level0 = runs;
            } else {
                deeper[usize::from(level) - 1] =
                    runs.into_iter().next().unwrap_or_else(|| Arc::new(Run::empty()));
            }
        }
        if let Some((level, ..)) = added.iter().find(|(l, ..)| *l > LEVEL_LAST) {
            return Err(VersionError(format!("there is no level {level}")));
        }
        if let Some((level, number)) = removed.iter().find(|(l, _)| *l > LEVEL_LAST) {
            return Err(VersionError(format!("table {} is removed from level {level}", number.0)));
        }
        let version = Version { level0, deeper };
        if cfg!(debug_assertions) {
            version.check()?;
        }
        Ok(version)
    }

    /// Verifies the invariants of the module as far as facts show them.
    pub(crate) fn check(&self) -> std::result::Result<(), VersionError> {
        let mut numbers = HashSet::new();
        for (level, run) in self.runs() {
            run.check().map_err(|e| VersionError(format!("level {level}: {e}")))?;
            for table in run.tables() {
                let number = table.facts().number;
                if !numbers.insert(number) {
                    return Err(VersionError(format!("table {} is there twice", number.0)));
                }
            }
        }
        for pair in self.level0.windows(2) {
            let (newer, older) = (&pair[0], &pair[1]);
            if newer.number() <= older.number() {
                return Err(VersionError(format!(
                    "run {} stands before run {}",
                    newer.number(),
                    older.number()
                )));
            }
            let min = newer.tables().iter().map(|table| table.facts().seqno_min).min();
            let max = older.tables().iter().map(|table| table.facts().seqno_max).max();
            if min <= max {
                return Err(VersionError(format!(
                    "run {} begins at sequence number {min:?}, the older run {} ends at {max:?}",
                    newer.number(),
                    older.number()
                )));
            }
        }
        Ok(())
    }

    /// The runs of level 0, newest first.
    pub(crate) fn level0(&self) -> &[Arc<Run<T>>] {
        &self.level0
    }

    /// The run of a level below 0.
    pub(crate) fn level(&self, level: u8) -> &Arc<Run<T>> {
        assert!(level > 0, "level 0 has many runs");
        &self.deeper[usize::from(level) - 1]
    }

    /// The runs that have tables, newest entries first, each with its level.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (u8, &Arc<Run<T>>)> {
        let level0 = self.level0.iter().map(|run| (0, run));
        let deeper = self.deeper.iter().enumerate().map(|(index, run)| (index as u8 + 1, run));
        level0.chain(deeper.filter(|(_, run)| !run.tables().is_empty()))
    }

    /// Runs a read may have to visit.
    pub(crate) fn run_count(&self) -> usize {
        self.runs().count()
    }

    /// Bytes of the tables of a level.
    pub(crate) fn level_bytes(&self, level: u8) -> u64 {
        match level {
            0 => self.level0.iter().map(|run| run.bytes()).sum(),
            _ => self.level(level).bytes(),
        }
    }

    /// All tables with their level, newest runs first.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (u8, &Arc<T>)> {
        self.runs().flat_map(|(level, run)| run.tables().iter().map(move |table| (level, table)))
    }
}

impl Version<Table> {
    /// Calls `f` with the versions of `key` that `snapshot` sees, newest first, until it breaks.
    /// `hash` is `key::hash(key)`. Allocates nothing.
    ///
    /// The candidates of all runs are found first, by the fences alone, and their filters are
    /// prefetched together: independent cache misses cost a fifteenth of dependent ones.
    pub(crate) fn visit<F>(
        &self,
        key: &[u8],
        hash: u64,
        snapshot: SeqNo,
        f: &mut F,
    ) -> Result<ControlFlow<()>>
    where
        F: FnMut(SeqNo, EntryKind, ValueRef<'_>) -> ControlFlow<()>,
    {
        let mut runs = self.nonempty();
        loop {
            let mut candidates: [Option<&Table>; CANDIDATES] = [None; CANDIDATES];
            let mut count = 0;
            while count < CANDIDATES
                && let Some(run) = runs.next()
            {
                if let Some(table) = run.candidate(key) {
                    candidates[count] = Some(table);
                    count += 1;
                }
            }
            if count == 0 {
                return Ok(ControlFlow::Continue(()));
            }
            let mut candidates = &candidates[..count];
            let oldest = if count < CANDIDATES && Finds::are_likely() {
                candidates.split_off_last().copied().flatten()
            } else {
                None
            };
            let filtered = candidates.iter().flatten();
            filtered.clone().for_each(|table| table.prefetch_filter(hash));
            let mut found = false;
            for table in filtered {
                found = table.may_contain(hash) && table.visit(key, snapshot, f)?.is_break();
                if found {
                    break;
                }
            }
            if let Some(oldest) = oldest
                && !found
            {
                found = oldest.visit(key, snapshot, f)?.is_break();
            }
            if count < CANDIDATES {
                Finds::note(found);
            }
            if found {
                return Ok(ControlFlow::Break(()));
            }
        }
    }

    /// Asks for what [`Version::visit`] will read of this key first: the misses of several keys
    /// then overlap.
    pub(crate) fn announce(&self, key: &[u8], hash: u64, snapshot: SeqNo) {
        let likely = Finds::are_likely();
        let mut runs = self.nonempty().peekable();
        while let Some(run) = runs.next() {
            if let Some(table) = run.candidate(key) {
                if likely && runs.peek().is_none() {
                    table.prefetch_block(key, snapshot);
                } else {
                    table.prefetch_filter(hash);
                }
            }
        }
    }

    /// May a table have a version of this key? By ranges and filters, of which it reads none from the
    /// disk: `None` if one that is not loaded decides.
    pub(crate) fn may_hold(&self, key: &[u8], hash: u64) -> Option<bool> {
        let mut unread = false;
        for table in self.nonempty().filter_map(|run| run.candidate(key)) {
            match table.loaded_filter() {
                Some(filter) if filter.may_contain(hash) => return Some(true),
                Some(_) => {}
                None => unread = true,
            }
        }
        (!unread).then_some(false)
    }

    /// Loads the filters that decide whether a table may have a version of this key.
    pub(crate) fn load_filters(&self, key: &[u8], hash: u64) {
        for table in self.nonempty().filter_map(|run| run.candidate(key)) {
            table.may_contain(hash);
        }
    }

    /// The runs that have tables, newest entries first.
    #[inline]
    fn nonempty(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.level0.iter().chain(self.deeper.iter().filter(|run| !run.tables().is_empty()))
    }

    /// A cursor for each run that has tables in `range`, over those tables, newest runs first.
    pub(crate) fn cursors<'a>(
        &'a self,
        range: (Bound<&'a [u8]>, Bound<&'a [u8]>),
    ) -> impl Iterator<Item = RunCursor> + 'a {
        let within = self.nonempty().map(move |run| (run, run.within(range)));
        let nonempty = within.filter(|(_, tables)| !tables.is_empty());
        nonempty.map(|(run, tables)| RunCursor::new(Arc::clone(run), tables))
    }
}

thread_local! {
    static FINDS: Cell<u8> = const { Cell::new(0) };
}

/// Whether the reads of this thread find what they look for: then the filter of the last table that
/// can have the key, which will say yes, costs more than it saves. It is three cache misses.
struct Finds;

impl Finds {
    const MAX: u8 = 64;
    /// A read in vain costs as much as so many filters, about.
    const IN_VAIN: u8 = 16;

    /// True if fewer than one read in seventeen was in vain lately.
    #[inline]
    fn are_likely() -> bool {
        FINDS.get() > Finds::MAX / 2
    }

    #[inline]
    fn note(found: bool) {
        let finds = FINDS.get();
        FINDS.set(if found {
            Finds::MAX.min(finds + 1)
        } else {
            finds.saturating_sub(Finds::IN_VAIN)
        });
    }
}

/// The runs of one level after an edit, newest first, none empty.
fn edit_level<T: HasFacts>(
    level: u8,
    old: Vec<Arc<Run<T>>>,
    added: &[&Added<T>],
    removed: &HashSet<FileNumber>,
) -> std::result::Result<Vec<Arc<Run<T>>>, VersionError> {
    let number_of = |run: u64| if level == 0 { run } else { 0 };
    let mut found = 0;
    let mut runs = Vec::with_capacity(old.len() + 1);
    let mut new: Vec<u64> = added.iter().map(|(_, run, _)| number_of(*run)).collect();
    new.sort_unstable();
    new.dedup();
    for run in old {
        let gone = |table: &&Arc<T>| removed.contains(&table.facts().number);
        let lost = run.tables().iter().filter(gone).count();
        let grows = new.contains(&run.number());
        found += lost;
        if lost == 0 && !grows {
            runs.push(run);
            continue;
        }
        let mut tables: Vec<Arc<T>> =
            run.tables().iter().filter(|table| !gone(table)).cloned().collect();
        if grows {
            new.retain(|number| *number != run.number());
            let joining = added.iter().filter(|(_, r, _)| number_of(*r) == run.number());
            tables.extend(joining.map(|(.., table)| Arc::clone(table)));
        }
        runs.push(Arc::new(Run::new(run.number(), tables)));
    }
    if found != removed.len() {
        return Err(VersionError(format!("a table removed from level {level} is not there")));
    }
    for number in new {
        let tables = added.iter().filter(|(_, r, _)| number_of(*r) == number);
        let tables = tables.map(|(.., table)| Arc::clone(table)).collect();
        runs.push(Arc::new(Run::new(number, tables)));
    }
    runs.retain(|run| !run.tables().is_empty());
    runs.sort_unstable_by_key(|run| std::cmp::Reverse(run.number()));
    runs.iter().try_for_each(|run| run.check())?;
    Ok(runs)
}

impl<T: HasFacts> fmt::Debug for Version<T> {
    /// One line for a run: `L0.7: 12[a-f] 13[g-k]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (level, run) in self.runs() {
            match level {
                0 => write!(f, "L0.{}:", run.number())?,
                _ => write!(f, "L{level}:")?,
            }
            for table in run.tables() {
                let facts = table.facts();
                let (smallest, largest) =
                    (facts.smallest.escape_ascii(), facts.largest.escape_ascii());
                write!(f, " {}[{smallest}-{largest}]", facts.number.0)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::fixture::{Dir, facts};

    fn numbers(version: &Version<TableFacts>) -> String {
        format!("{version:?}").trim_end().to_owned()
    }

    fn added(level: u8, run: u64, facts: TableFacts) -> Added<TableFacts> {
        (level, run, Arc::new(facts))
    }

    #[test]
    fn edits_keep_runs_sorted_and_newest_first() {
        let version = Version::empty();
        let edit = vec![
            added(0, 1, facts(2, "g-k", 1..=9)),
            added(0, 1, facts(1, "a-f", 1..=9)),
            added(0, 2, facts(3, "a-z", 10..=19)),
            added(6, 0, facts(4, "a-z", 1..=1)),
        ];
        let version = version.apply(edit, &[]).unwrap();
        assert_eq!(numbers(&version), "L0.2: 3[a-z]\nL0.1: 1[a-f] 2[g-k]\nL6: 4[a-z]");
        assert_eq!(version.run_count(), 3);
        assert_eq!(version.level_bytes(0), 300);
        let removed = [(0, FileNumber(3)), (0, FileNumber(1)), (6, FileNumber(4))];
        let edit = vec![added(6, 9, facts(5, "a-f", 1..=19)), added(6, 8, facts(6, "g-z", 1..=19))];
        let version = version.apply(edit, &removed).unwrap();
        assert_eq!(numbers(&version), "L0.1: 2[g-k]\nL6: 5[a-f] 6[g-z]");
        let version = version.apply(vec![], &[(0, FileNumber(2)), (6, FileNumber(5))]).unwrap();
        assert_eq!(numbers(&version), "L6: 6[g-z]");
    }

    #[test]
    fn unsound_edits_are_refused() {
        let start = vec![
            added(0, 4, facts(1, "c-f", 10..=19)),
            added(5, 0, facts(2, "c-f", 1..=9)),
            added(5, 0, facts(3, "g-h", 1..=9)),
        ];
        let version = Version::empty().apply(start, &[]).unwrap();
        let refused = |added: Vec<Added<TableFacts>>, removed: &[(u8, FileNumber)], why: &str| {
            let error = version.apply(added, removed).unwrap_err();
            assert!(error.0.contains(why), "{error}");
        };
        refused(vec![], &[(0, FileNumber(2))], "not there");
        refused(vec![], &[(7, FileNumber(2))], "level 7");
        refused(vec![added(7, 0, facts(9, "a-b", 1..=1))], &[], "no level 7");
        refused(vec![added(5, 0, facts(9, "a-c", 1..=1))], &[], "overlap");
        refused(vec![added(5, 0, facts(9, "f-g", 1..=1))], &[], "overlap");
        refused(vec![added(6, 0, facts(2, "a-b", 1..=1))], &[], "twice");
        refused(vec![added(6, 0, facts(9, "b-a", 1..=1))], &[], "ends before");
        refused(vec![added(0, 3, facts(9, "a-b", 15..=29))], &[], "sequence number");
        refused(vec![added(0, 5, facts(9, "x-z", 19..=29))], &[], "sequence number");
    }

    /// Random tables in random places, against a model that is all entries in a list.
    #[test]
    fn point_reads_see_what_the_model_sees() {
        for seed in 0..40 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let dir = Dir::new();
            let (version, entries) = dir.random_version(&mut rng);
            for _ in 0..300 {
                let key = format!("key{:03}", rng.u32(..70)).into_bytes();
                let snapshot = SeqNo(rng.u64(..2000));
                let want = rng.usize(1..4);
                let mut seen = Vec::new();
                let flow = version.visit(
                    &key,
                    crate::key::hash(&key),
                    snapshot,
                    &mut |seqno, kind, value| {
                        seen.push((seqno, kind, value.bytes.to_vec()));
                        if seen.len() == want {
                            ControlFlow::Break(())
                        } else {
                            ControlFlow::Continue(())
                        }
                    },
                );
                let expected: Vec<_> = entries
                    .iter()
                    .filter(|entry| entry.key == key && entry.seqno <= snapshot)
                    .map(|entry| (entry.seqno, entry.kind, entry.value.clone()))
                    .take(want)
                    .collect();
                assert_eq!(seen, expected, "seed {seed} key {}", key.escape_ascii());
                assert_eq!(flow.unwrap().is_break(), expected.len() == want, "seed {seed}");
            }
        }
    }

    #[test]
    fn a_read_goes_on_past_a_full_batch_of_candidates() {
        let dir = Dir::new();
        let mut added = Vec::new();
        for run in 1..=3 * CANDIDATES as u64 {
            let table = dir.table(&[("k", run, EntryKind::Merge, "x")]);
            added.push((0, run, table));
        }
        let version = Version::empty().apply(added, &[]).unwrap();
        let mut seen = Vec::new();
        let mut count = |seqno: SeqNo, _, _: ValueRef<'_>| {
            seen.push(seqno.0);
            ControlFlow::Continue(())
        };
        let flow = version.visit(b"k", crate::key::hash(b"k"), SeqNo::MAX, &mut count).unwrap();
        assert!(flow.is_continue());
        assert!(seen.iter().copied().eq((1..=3 * CANDIDATES as u64).rev()), "{seen:?}");
    }
}
