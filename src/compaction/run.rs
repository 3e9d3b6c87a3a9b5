//! The loop that writes survivors into tables, for flushes and compactions alike.
//!
//! A table is cut
//! 1. when it has reached its size, or the filter over its keys would take too much memory to build;
//! 2. where it would overlap too much of the level below its own ([`Cuts`]), so that compacting it
//!    further stays cheap;
//! 3. at the end of a table of that level, once it is half full: then fewer tables straddle;
//!
//! and never between two versions of a user key. A read asks one table of a run for a key, fences
//! hold user keys only, and a compaction that took the newer half of a key's versions down without
//! the older would turn their order around.
//!
//! A table is synced while later ones are written, [`UNSYNCED_MAX`] tables after it was finished: by
//! then the disk has most of it. All are before the loop ends. The directory is not: the caller does
//! that once, before the edit that names them.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use crate::compaction::survive::{Survivor, Survivors};
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::file::{FileKind, FileNumber};
use crate::fs::Fs;
use crate::table::builder::{TableBuilder, UnsyncedTable};
use crate::table::{Buffers, Origin, TableConfig, TableFacts};

/// Between two looks at the cancel flag: at 80 ns an entry, some 80 µs.
const ENTRIES_BETWEEN_CHECKS: u32 = 1024;

/// So many tables may be finished and not synced yet: each takes a descriptor, and has pages that
/// wait for the disk.
const UNSYNCED_MAX: usize = 4;

/// Where tables should end, beside their size: the tables of the level below the output.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cuts {
    /// Largest key and bytes of each, sorted.
    fences: Vec<(Box<[u8]>, u64)>,
    /// An output may pass fences of so many bytes together.
    overlap_bytes_max: u64,
    /// The first fence not yet passed.
    at: usize,
    /// Bytes of the fences that the current output has passed.
    overlap_bytes: u64,
}

impl Cuts {
    /// For outputs above tables with these largest keys and bytes, sorted.
    pub(crate) fn new(fences: Vec<(Box<[u8]>, u64)>, overlap_bytes_max: u64) -> Cuts {
        Cuts { fences, overlap_bytes_max, at: 0, overlap_bytes: 0 }
    }

    /// Cuts behind each of these sorted keys.
    pub(crate) fn behind(keys: Vec<Box<[u8]>>) -> Cuts {
        Cuts::new(keys.into_iter().map(|key| (key, 1)).collect(), 0)
    }

    /// Should a table begin at `key`, given that the current one is half full? Asked with
    /// ascending user keys.
    #[inline]
    pub(super) fn cut(&mut self, key: &[u8], half_full: bool) -> bool {
        let mut passed = false;
        while let Some((largest, bytes)) = self.fences.get(self.at)
            && **largest < *key
        {
            self.overlap_bytes += bytes;
            self.at += 1;
            passed = true;
        }
        passed && (half_full || self.overlap_bytes > self.overlap_bytes_max)
    }

    /// An output begins at the key asked about last.
    pub(super) fn begin(&mut self) {
        self.overlap_bytes = 0;
    }
}

/// Where tables go, and how.
pub(crate) struct Output<'a> {
    /// The file system.
    pub(crate) fs: &'a dyn Fs,
    /// The database directory.
    pub(crate) dir: &'a Path,
    /// Encoding of the tables.
    pub(crate) config: &'a TableConfig,
    /// Where the tables belong.
    pub(crate) origin: &'a Origin,
    /// A table is closed at so many bytes.
    pub(crate) table_bytes: u64,
    /// What the job may take; two thirds are for what is written.
    pub(crate) job_bytes: usize,
    /// What is written is collected in one of these.
    pub(crate) buffers: &'a Arc<Buffers>,
    /// Gives each file its number.
    pub(crate) next_number: &'a dyn Fn() -> FileNumber,
    /// Asked now and then: true ends the loop with `ErrorKind::Closed`.
    pub(crate) cancelled: &'a dyn Fn() -> bool,
    /// Told now and then how many bytes were written since it was told last.
    pub(crate) progress: &'a dyn Fn(u64),
}

/// Writes the survivors into tables and returns the facts of these, in order; none if nothing
/// survived. After an error, or when cancelled, the tables made are removed again.
pub(crate) fn write_tables<C: Cursor>(
    survivors: &mut Survivors<C>,
    cuts: Cuts,
    output: &Output<'_>,
) -> Result<Vec<TableFacts>> {
    let mut writer = Writer {
        output,
        cuts,
        table: None,
        made: Vec::new(),
        unsynced: VecDeque::new(),
        done: Vec::new(),
    };
    let outcome = writer.write(survivors);
    if outcome.is_err() {
        writer.remove();
    }
    outcome.map(|()| writer.done)
}

struct Writer<'a> {
    output: &'a Output<'a>,
    cuts: Cuts,
    /// The table being written, and its bytes that were told to `progress`.
    table: Option<(TableBuilder<'a>, u64)>,
    /// Numbers of the files that were begun.
    made: Vec<FileNumber>,
    /// The tables that are finished, the oldest first.
    unsynced: VecDeque<UnsyncedTable>,
    /// Those that are synced as well.
    done: Vec<TableFacts>,
}

impl Writer<'_> {
    fn write<C: Cursor>(&mut self, survivors: &mut Survivors<C>) -> Result<()> {
        loop {
            if (self.output.cancelled)() {
                return Err(Error::new(ErrorKind::Closed).context("cancelled"));
            }
            for _ in 0..ENTRIES_BETWEEN_CHECKS {
                let Some(survivor) = survivors.next()? else {
                    self.finish()?;
                    return self.sync_all_but(0);
                };
                self.add(survivor)?;
            }
            self.report();
        }
    }

    #[inline]
    fn add(&mut self, survivor: Survivor<'_>) -> Result<()> {
        let Survivor { key, seqno, kind, value, first } = survivor;
        if first {
            let bytes = self.table.as_ref().map_or(0, |(builder, _)| builder.bytes());
            let cut = self.cuts.cut(key, bytes >= self.output.table_bytes / 2);
            let full = |(builder, _): &(TableBuilder<'_>, u64)| {
                bytes >= self.output.table_bytes || builder.has_keys_enough()
            };
            if cut || self.table.as_ref().is_none_or(full) {
                self.begin()?;
            }
        }
        let (builder, _) = self.table.as_mut().expect("a key's first version begins a table");
        builder.add(key, seqno, kind, value)
    }

    #[cold]
    fn begin(&mut self) -> Result<()> {
        self.finish()?;
        self.sync_all_but(UNSYNCED_MAX)?;
        self.cuts.begin();
        let Output { fs, dir, config, next_number, .. } = *self.output;
        let number = next_number();
        self.made.push(number);
        let mut builder = TableBuilder::create(fs, dir, number, config)?;
        builder.set_origin(self.output.origin.clone());
        builder.limit_memory(self.output.job_bytes / 6, self.output.job_bytes / 2);
        builder.use_buffers(self.output.buffers);
        self.table = Some((builder, 0));
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        if let Some((builder, told)) = self.table.take() {
            let table = builder.finish_unsynced()?;
            (self.output.progress)(table.bytes().saturating_sub(told));
            self.unsynced.push_back(table);
        }
        Ok(())
    }

    /// Syncs the oldest until so many are left.
    fn sync_all_but(&mut self, count: usize) -> Result<()> {
        while self.unsynced.len() > count
            && let Some(table) = self.unsynced.pop_front()
        {
            self.done.push(table.sync()?);
        }
        Ok(())
    }

    fn report(&mut self) {
        if let Some((builder, told)) = &mut self.table {
            let bytes = builder.bytes();
            (self.output.progress)(bytes.saturating_sub(*told));
            *told = bytes;
        }
    }

    /// Removes what was made. A file that cannot be removed now is an orphan, which the next open
    /// removes.
    fn remove(&mut self) {
        self.table = None;
        self.unsynced.clear();
        for number in self.made.drain(..) {
            let path = FileKind::Table.path(self.output.dir, number);
            let _ = self.output.fs.remove(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::compaction::survive::Below;
    use crate::cursor::merge::MergeCursor;
    use crate::fs::trace::TraceFs;
    use crate::key::{EntryKind, SeqNo};
    use crate::version::fixture::{Dir, Entries, Entry, sort};

    fn put(key: &str, seqno: u64) -> Entry {
        let (key, value) = (key.into(), vec![b'v'; 20]);
        Entry { key, seqno: SeqNo(seqno), kind: EntryKind::Put, value }
    }

    /// Writes with every snapshot taken, so that all entries survive.
    fn write(
        dir: &Dir,
        entries: &[Entry],
        cuts: Cuts,
        table_bytes: u64,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<TableFacts>> {
        write_on(&dir.fs, dir, entries, cuts, table_bytes, cancelled)
    }

    fn write_on(
        fs: &dyn Fs,
        dir: &Dir,
        entries: &[Entry],
        cuts: Cuts,
        table_bytes: u64,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<TableFacts>> {
        let halves = entries.iter().enumerate().partition::<Vec<_>, _>(|(index, _)| index % 2 == 0);
        let strip = |half: Vec<(usize, &Entry)>| half.into_iter().map(|(_, e)| e.clone()).collect();
        let source =
            MergeCursor::new(vec![Entries::new(strip(halves.0)), Entries::new(strip(halves.1))]);
        let snapshots = entries.iter().map(|entry| entry.seqno).collect();
        let mut survivors = Survivors::new(source, snapshots, Below::anything(), None)?;
        let told = Cell::new(0);
        let facts = write_tables(
            &mut survivors,
            cuts,
            &Output {
                fs,
                dir: dir.path(),
                config: &Dir::config(),
                origin: &Origin::default(),
                table_bytes,
                job_bytes: 1 << 20,
                buffers: &Buffers::new(1 << 20),
                next_number: &|| dir.next_number(),
                cancelled,
                progress: &|bytes| told.set(told.get() + bytes),
            },
        )?;
        assert_eq!(told.get(), facts.iter().map(|facts| facts.bytes).sum::<u64>());
        Ok(facts)
    }

    fn ranges(facts: &[TableFacts]) -> Vec<String> {
        let text = |key: &[u8]| String::from_utf8(key.to_vec()).unwrap();
        facts.iter().map(|f| format!("{}-{}", text(&f.smallest), text(&f.largest))).collect()
    }

    fn letters(count: u8) -> Vec<Entry> {
        (0..count).map(|i| put(&char::from(b'a' + i).to_string(), u64::from(i) + 1)).collect()
    }

    #[test]
    fn outputs_end_at_the_cuts() {
        let dir = Dir::new();
        let go = |cuts| ranges(&write(&dir, &letters(8), cuts, 1 << 20, &|| false).unwrap());
        assert_eq!(go(Cuts::default()), ["a-h"]);
        assert_eq!(
            go(Cuts::behind(vec![b"b"[..].into(), b"ee"[..].into()])),
            ["a-b", "c-e", "f-h"]
        );
        // A fence passed between two outputs, or several at once, gives no empty output.
        let behind = vec![b"0"[..].into(), b"c"[..].into(), b"cc"[..].into(), b"z"[..].into()];
        assert_eq!(go(Cuts::behind(behind)), ["a-c", "d-h"]);
        let fences = (0..8).map(|i| (Box::from(&[b'a' + i][..]), 10));
        assert_eq!(go(Cuts::new(fences.collect(), 25)), ["a-c", "d-f", "g-h"]);
    }

    #[test]
    fn tables_end_at_their_size_but_never_within_a_key() {
        for seed in 0..60 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let dir = Dir::new();
            let mut entries: Vec<Entry> = (1..rng.u64(2..300))
                .map(|seqno| put(&format!("key{:03}", rng.u32(..40)), seqno))
                .collect();
            sort(&mut entries);
            let facts = write(&dir, &entries, Cuts::default(), 256, &|| false).unwrap();
            let tables: Vec<_> = facts.iter().map(|facts| dir.open(facts.clone())).collect();
            let read: Vec<Entry> = tables.iter().flat_map(|table| dir.entries(table)).collect();
            assert_eq!(read, entries, "seed {seed}");
            for pair in facts.windows(2) {
                assert!(pair[0].largest < pair[1].smallest, "seed {seed}");
                assert!(pair[0].number < pair[1].number, "seed {seed}");
                assert!(pair[0].bytes >= 256, "seed {seed}");
            }
        }
    }

    #[test]
    fn nothing_makes_no_table() {
        let dir = Dir::new();
        assert_eq!(write(&dir, &[], Cuts::default(), 256, &|| false).unwrap(), []);
    }

    #[test]
    fn cancelling_removes_what_was_made() {
        let dir = Dir::new();
        let entries: Vec<Entry> =
            (1..20_000).map(|seqno| put(&format!("{seqno:09}"), seqno)).collect();
        for after in [0, 3, 10] {
            let asked = Cell::new(0);
            let cancelled = || asked.replace(asked.get() + 1) == after;
            let error = write(&dir, &entries, Cuts::default(), 9000, &cancelled).unwrap_err();
            assert_eq!(error.kind(), &ErrorKind::Closed);
            assert_eq!(dir.files(), 0);
        }
    }

    #[test]
    fn tables_are_synced_behind_the_one_that_is_written_and_all_in_the_end() {
        let dir = Dir::new();
        let trace = TraceFs::new(Arc::new(dir.fs.clone()));
        let behind = || Cuts::behind((b'a'..b'k').map(|letter| Box::from([letter])).collect());
        let facts = write_on(&trace, &dir, &letters(10), behind(), 1 << 20, &|| false).unwrap();
        assert_eq!(facts.len(), 10);
        let (mut unsynced, mut most) = (Vec::new(), 0);
        for line in trace.take() {
            let mut words = line.split(' ').map(str::to_string);
            match (words.next().as_deref(), words.next()) {
                (Some("create"), Some(table)) => unsynced.push(table),
                (Some("sync"), table) => assert_eq!(table, Some(unsynced.remove(0)), "in order"),
                _ => {}
            }
            most = most.max(unsynced.len());
        }
        assert_eq!((unsynced.len(), most), (0, UNSYNCED_MAX + 1));
    }

    /// Each call to the disk fails once: nothing stays behind.
    #[test]
    fn a_failure_removes_what_was_made() {
        let dir = Dir::new();
        let entries: Vec<Entry> =
            (1..200).map(|seqno| put(&format!("{seqno:09}"), seqno)).collect();
        let before = dir.calls();
        write(&dir, &entries, Cuts::default(), 1000, &|| false).unwrap();
        let (calls, files) = (dir.calls() - before, dir.files());
        let mut failed = 0;
        for nth in 0..calls {
            dir.fail_after(nth);
            let outcome = write(&dir, &entries, Cuts::default(), 1000, &|| false);
            if outcome.is_err() {
                failed += 1;
                assert_eq!(dir.files(), files, "after failure of call {nth}");
            } else {
                // Only hints may fail without harm.
                assert_eq!(dir.files() % files, 0);
            }
        }
        assert!(failed > 20 && failed * 2 > calls, "{failed} of {calls}");
    }
}
