//! A cursor over one run: the cursors of its tables, one after the other, each opened only when it
//! is entered.

use std::ops::Range;
use std::sync::Arc;

use crate::cursor::{Cursor, ValueRef};
use crate::error::Result;
use crate::key::{EntryKind, SeqNo};
use crate::table::cursor::{Ahead, TableCursor};
use crate::version::run::Run;

/// Stands on an entry of some tables of a run. Keeps the run, and so its tables, alive.
pub(crate) struct RunCursor {
    run: Arc<Run>,
    /// The tables it walks; it knows no entries beyond them.
    tables: Range<usize>,
    /// Reads for compaction, so far ahead: by pread, every block verified, past the cache.
    ahead: Option<Ahead>,
    /// The index of the table entered last, and its cursor.
    open: Option<(usize, TableCursor)>,
}

impl RunCursor {
    /// Over these tables of the run, for reads.
    pub(crate) fn new(run: Arc<Run>, tables: Range<usize>) -> RunCursor {
        RunCursor { run, tables, ahead: None, open: None }
    }

    /// Over the whole run, for compaction, reading so far ahead.
    pub(crate) fn compaction(run: Arc<Run>, ahead: Ahead) -> RunCursor {
        let tables = 0..run.tables().len();
        RunCursor { run, tables, ahead: Some(ahead), open: None }
    }

    /// The cursor of the table at `index`, unpositioned; `None` if it is not one of ours, which
    /// leaves this cursor invalid.
    fn enter(&mut self, index: usize) -> Option<&mut TableCursor> {
        if !self.tables.contains(&index) {
            self.open = None;
        } else if self.open.as_ref().is_none_or(|(open, _)| *open != index) {
            let table = &self.run.tables()[index];
            let cursor = match &self.ahead {
                Some(ahead) => table.compaction_cursor(ahead.clone()),
                None => table.cursor(),
            };
            self.open = Some((index, cursor));
        }
        self.open.as_mut().map(|(_, cursor)| cursor)
    }

    /// Where the entered table has no entry left in the direction of the walk, the next one does.
    fn step_over(&mut self, forwards: bool) -> Result<()> {
        while let Some((index, cursor)) = &self.open
            && !cursor.valid()
        {
            let beside = if forwards { index + 1 } else { index.wrapping_sub(1) };
            match self.enter(beside) {
                Some(cursor) if forwards => cursor.seek_to_first()?,
                Some(cursor) => cursor.seek_to_last()?,
                None => {}
            }
        }
        Ok(())
    }

    /// The table's cursor; for calls that need `valid()`.
    #[inline]
    fn here(&self) -> &TableCursor {
        &self.open.as_ref().expect("the cursor is valid").1
    }
}

impl Cursor for RunCursor {
    #[inline]
    fn valid(&self) -> bool {
        self.open.as_ref().is_some_and(|(_, cursor)| cursor.valid())
    }

    fn seek_to_first(&mut self) -> Result<()> {
        if let Some(cursor) = self.enter(self.tables.start) {
            cursor.seek_to_first()?;
        }
        self.step_over(true)
    }

    fn seek_to_last(&mut self) -> Result<()> {
        if let Some(cursor) = self.enter(self.tables.end.wrapping_sub(1)) {
            cursor.seek_to_last()?;
        }
        self.step_over(false)
    }

    fn seek(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        let index = self.run.reaching(key).max(self.tables.start);
        if let Some(cursor) = self.enter(index) {
            cursor.seek(key, seqno)?;
        }
        self.step_over(true)
    }

    fn announce(&mut self, key: &[u8], seqno: SeqNo) {
        let index = self.run.reaching(key).max(self.tables.start);
        if let Some(cursor) = self.enter(index) {
            cursor.announce(key, seqno);
        }
    }

    fn seek_before(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        // All versions of a key are in one table: the one that reaches the key has the entry
        // before it, or begins with it, and then the table before ends with what is sought.
        let index = self.run.reaching(key).min(self.tables.end.wrapping_sub(1));
        if let Some(cursor) = self.enter(index) {
            cursor.seek_before(key, seqno)?;
        }
        self.step_over(false)
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        let (_, cursor) = self.open.as_mut().expect("the cursor is valid");
        cursor.next()?;
        if cursor.valid() { Ok(()) } else { self.step_over(true) }
    }

    #[inline]
    fn prev(&mut self) -> Result<()> {
        let (_, cursor) = self.open.as_mut().expect("the cursor is valid");
        cursor.prev()?;
        if cursor.valid() { Ok(()) } else { self.step_over(false) }
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.here().key()
    }

    #[inline]
    fn head(&self) -> u128 {
        self.here().head()
    }

    #[inline]
    fn seqno(&self) -> SeqNo {
        self.here().seqno()
    }

    #[inline]
    fn kind(&self) -> EntryKind {
        self.here().kind()
    }

    #[inline]
    fn value(&self) -> ValueRef<'_> {
        self.here().value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::fixture::{Dir, Entry};

    fn at(cursor: &RunCursor) -> Option<(Vec<u8>, SeqNo)> {
        cursor.valid().then(|| (cursor.key().to_vec(), cursor.seqno()))
    }

    /// Random walks over random runs and windows of their tables, against a sorted list.
    #[test]
    fn walks_as_over_a_sorted_list() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let dir = Dir::new();
            let (version, _) = dir.random_version(&mut rng);
            for (_, run) in version.runs() {
                let from = rng.usize(..=run.tables().len());
                let to = rng.usize(from..=run.tables().len());
                let entries: Vec<Entry> =
                    run.tables()[from..to].iter().flat_map(|t| dir.entries(t)).collect();
                let mut cursor = RunCursor::new(Arc::clone(run), from..to);
                walk(&mut cursor, &entries, &mut rng, seed);
            }
        }
    }

    fn walk(cursor: &mut RunCursor, entries: &[Entry], rng: &mut fastrand::Rng, seed: u64) {
        let mut model: Option<usize> = None;
        for step in 0..60 {
            let key = format!("key{:03}", rng.u32(..70)).into_bytes();
            let seqno = if rng.bool() { SeqNo::MAX } else { SeqNo(rng.u64(..2000)) };
            let lower = entries.partition_point(|entry| {
                crate::key::compare(&entry.key, entry.seqno, &key, seqno).is_lt()
            });
            match rng.u32(..10) {
                0 => {
                    cursor.seek_to_first().unwrap();
                    model = Some(0);
                }
                1 => {
                    cursor.seek_to_last().unwrap();
                    model = entries.len().checked_sub(1);
                }
                2 => {
                    cursor.seek(&key, seqno).unwrap();
                    model = Some(lower);
                }
                3 => {
                    cursor.seek_before(&key, seqno).unwrap();
                    model = lower.checked_sub(1);
                }
                pick => {
                    if cursor.valid() {
                        let index = model.unwrap();
                        if pick % 2 == 0 {
                            cursor.next().unwrap();
                            model = Some(index + 1);
                        } else {
                            cursor.prev().unwrap();
                            model = index.checked_sub(1);
                        }
                    }
                }
            }
            model = model.filter(|index| *index < entries.len());
            let expected = model.map(|index| (entries[index].key.clone(), entries[index].seqno));
            assert_eq!(at(cursor), expected, "seed {seed} step {step}");
        }
    }
}
