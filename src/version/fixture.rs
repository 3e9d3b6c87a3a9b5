//! For tests: tables and versions made of a few literals, in a directory in memory.

use std::ops::{Bound, RangeInclusive};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cursor::{Cursor, ValueRef};
use crate::error::Result;
use crate::file::{FileId, FileNumber};
use crate::fs::Fs;
use crate::fs::fault::{Fault, FaultFs, FaultKind};
use crate::fs::sim::SimFs;
use crate::key::{EntryKind, SeqNo};
use crate::options::{Filter, ReadMode};
use crate::table::builder::TableBuilder;
use crate::table::cache::BlockCache;
use crate::table::reader::Table;
use crate::table::{TableConfig, TableFacts};
use crate::version::Version;

/// Facts of a table of 100 bytes and 10 entries with the keys of `range`, say `a-f`.
pub(crate) fn facts(number: u64, range: &str, seqnos: RangeInclusive<u64>) -> TableFacts {
    let (smallest, largest) = range.split_once('-').expect("a range like a-f");
    TableFacts {
        number: FileNumber(number),
        id: FileId(u128::from(number)),
        bytes: 100,
        entries: 10,
        tombstones: 0,
        operands: 0,
        smallest: smallest.as_bytes().into(),
        largest: largest.as_bytes().into(),
        seqno_min: SeqNo(*seqnos.start()),
        seqno_max: SeqNo(*seqnos.end()),
        raw_bytes: 100,
    }
}

/// One entry of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: Vec<u8>,
    pub(crate) seqno: SeqNo,
    pub(crate) kind: EntryKind,
    pub(crate) value: Vec<u8>,
}

/// All entries of a cursor.
pub(crate) fn collect(cursor: &mut impl Cursor) -> Vec<Entry> {
    let mut entries = Vec::new();
    cursor.seek_to_first().unwrap();
    while cursor.valid() {
        let (key, value) = (cursor.key().to_vec(), cursor.value().bytes.to_vec());
        entries.push(Entry { key, seqno: cursor.seqno(), kind: cursor.kind(), value });
        cursor.next().unwrap();
    }
    entries
}

/// A directory in memory with tables.
pub(crate) struct Dir {
    sim: SimFs,
    pub(crate) fs: FaultFs,
    cache: Arc<BlockCache>,
    next: AtomicU64,
}

impl Dir {
    pub(crate) fn new() -> Dir {
        let sim = SimFs::new();
        let fs = FaultFs::over_sim(sim.clone());
        let dir = Dir { sim, fs, cache: BlockCache::new(1 << 20), next: AtomicU64::new(1) };
        dir.fs.create_dir_all(dir.path()).unwrap();
        dir
    }

    pub(crate) fn path(&self) -> &Path {
        Path::new("/db")
    }

    pub(crate) fn next_number(&self) -> FileNumber {
        FileNumber(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// How many files there are.
    pub(crate) fn files(&self) -> usize {
        self.fs.list(self.path()).unwrap().len()
    }

    /// How many calls the file system has seen.
    pub(crate) fn calls(&self) -> u64 {
        self.sim.calls()
    }

    /// Fails the call after the next `calls` ones.
    pub(crate) fn fail_after(&self, calls: u64) {
        self.fs.heal();
        self.fs.arm(Fault::new(FaultKind::Io).nth(calls));
    }

    pub(crate) fn config() -> TableConfig {
        TableConfig { block_bytes: 64, lz4: false, filter: Filter::BinaryFuse8 }
    }

    pub(crate) fn open(&self, facts: TableFacts) -> Arc<Table> {
        Table::open(&self.fs, self.path(), facts, ReadMode::Mapped, &self.cache).unwrap()
    }

    /// A table of these entries, which are sorted.
    pub(crate) fn table_of(&self, entries: &[Entry]) -> Arc<Table> {
        let number = self.next_number();
        let mut builder =
            TableBuilder::create(&self.fs, self.path(), number, &Dir::config()).unwrap();
        for entry in entries {
            builder.add(&entry.key, entry.seqno, entry.kind, &entry.value).unwrap();
        }
        self.open(builder.finish().unwrap())
    }

    /// A table of literals (key, seqno, kind, value).
    pub(crate) fn table(&self, entries: &[(&str, u64, EntryKind, &str)]) -> Arc<Table> {
        let entry = |&(key, seqno, kind, value): &(&str, u64, EntryKind, &str)| Entry {
            key: key.into(),
            seqno: SeqNo(seqno),
            kind,
            value: value.into(),
        };
        self.table_of(&entries.iter().map(entry).collect::<Vec<_>>())
    }

    pub(crate) fn entries(&self, table: &Arc<Table>) -> Vec<Entry> {
        collect(&mut table.cursor())
    }

    /// Some runs on level 0, some levels below, of keys `key000` to `key069`; and all entries.
    pub(crate) fn random_version(&self, rng: &mut fastrand::Rng) -> (Version, Vec<Entry>) {
        let mut places: Vec<(u8, u64)> =
            (1..7u8).rev().filter(|_| rng.bool()).map(|level| (level, 0)).collect();
        places.extend((1..=rng.u64(..4)).map(|run| (0, run)));
        let (mut added, mut all, mut seqno) = (Vec::new(), Vec::new(), 0);
        for (level, run) in places {
            let mut entries: Vec<Entry> = (0..rng.usize(1..120))
                .map(|_| {
                    seqno += rng.u64(1..4);
                    random_entry(rng, seqno)
                })
                .collect();
            sort(&mut entries);
            let cut =
                |a: &Entry, b: &Entry| a.key == b.key || !(a.key[5] + b.key[5]).is_multiple_of(3);
            added.extend(entries.chunk_by(cut).map(|table| (level, run, self.table_of(table))));
            all.extend(entries);
        }
        sort(&mut all);
        (Version::empty().apply(added, &[]).unwrap(), all)
    }
}

pub(crate) fn sort(entries: &mut [Entry]) {
    entries.sort_by(|a, b| crate::key::compare(&a.key, a.seqno, &b.key, b.seqno));
}

fn random_entry(rng: &mut fastrand::Rng, seqno: u64) -> Entry {
    let key = format!("key{:03}", rng.u32(..70)).into_bytes();
    let kind = [EntryKind::Put, EntryKind::Delete, EntryKind::Merge][rng.usize(..3)];
    let value =
        if kind == EntryKind::Delete { Vec::new() } else { format!("v{seqno}").into_bytes() };
    Entry { key, seqno: SeqNo(seqno), kind, value }
}

#[test]
fn the_cursors_of_a_version_cover_their_range() {
    for seed in 0..50 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let dir = Dir::new();
        let (version, entries) = dir.random_version(&mut rng);
        let key = |rng: &mut fastrand::Rng| format!("key{:03}", rng.u32(..70)).into_bytes();
        let (a, b) = (key(&mut rng), key(&mut rng));
        let (low, high) = (a.clone().min(b.clone()), a.max(b));
        let within = |entry: &&Entry| low <= entry.key && entry.key < high;
        let range = (Bound::Included(&low[..]), Bound::Excluded(&high[..]));
        let mut seen: Vec<Entry> = version
            .cursors(range)
            .flat_map(|mut cursor| collect(&mut cursor))
            .filter(|e| within(&e))
            .collect();
        sort(&mut seen);
        let expected: Vec<Entry> = entries.iter().filter(within).cloned().collect();
        assert_eq!(seen, expected, "seed {seed}");
    }
}

/// A cursor over entries in memory, forwards only: the input of merges in tests.
pub(crate) struct Entries {
    entries: Vec<Entry>,
    at: usize,
}

impl Entries {
    pub(crate) fn new(mut entries: Vec<Entry>) -> Entries {
        sort(&mut entries);
        Entries { at: entries.len(), entries }
    }
}

impl Cursor for Entries {
    fn valid(&self) -> bool {
        self.at < self.entries.len()
    }
    fn seek_to_first(&mut self) -> Result<()> {
        self.at = 0;
        Ok(())
    }
    fn seek_to_last(&mut self) -> Result<()> {
        unreachable!("forwards only")
    }
    fn seek(&mut self, _: &[u8], _: SeqNo) -> Result<()> {
        unreachable!("forwards only")
    }
    fn seek_before(&mut self, _: &[u8], _: SeqNo) -> Result<()> {
        unreachable!("forwards only")
    }
    fn next(&mut self) -> Result<()> {
        self.at += 1;
        Ok(())
    }
    fn prev(&mut self) -> Result<()> {
        unreachable!("forwards only")
    }
    fn key(&self) -> &[u8] {
        &self.entries[self.at].key
    }
    fn seqno(&self) -> SeqNo {
        self.entries[self.at].seqno
    }
    fn kind(&self) -> EntryKind {
        self.entries[self.at].kind
    }
    fn value(&self) -> ValueRef<'_> {
        ValueRef { bytes: &self.entries[self.at].value, owner: None }
    }
}
