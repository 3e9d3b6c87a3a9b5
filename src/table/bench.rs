//! What the criterion benches under `benches/` reach of the crate's inside. Not an interface.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::cursor::Cursor;
use crate::cursor::merge::MergeCursor;
use crate::error::Result;
use crate::file::FileNumber;
use crate::fs::RealFs;
use crate::key::{self, EntryKind, SeqNo};
use crate::options::{Filter, ReadMode};
use crate::table::TableConfig;
use crate::table::block::{Block, BlockBuilder};
use crate::table::builder::TableBuilder;
use crate::table::cache::BlockCache;
use crate::table::filter::{self, TableFilter};
use crate::table::reader::Table;

/// Tables in a directory, for `benches/table.rs`.
pub struct Tables<'a> {
    fs: RealFs,
    dir: &'a Path,
    cache: Arc<BlockCache>,
}

/// An open table.
pub struct OpenTable(Arc<Table>);

impl<'a> Tables<'a> {
    /// Tables in `dir`, with a block cache of so many bytes.
    #[must_use]
    pub fn new(dir: &'a Path, cache_bytes: usize) -> Tables<'a> {
        Tables { fs: RealFs::new(), dir, cache: BlockCache::new(cache_bytes) }
    }

    /// Builds table `number` of sorted puts, and opens it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn build<'e>(
        &self,
        number: u64,
        lz4: bool,
        filter: Filter,
        mode: ReadMode,
        entries: impl Iterator<Item = (&'e [u8], u64, &'e [u8])>,
    ) -> Result<OpenTable> {
        let config = TableConfig { block_bytes: 4096, lz4, filter };
        let number = FileNumber(number);
        let mut builder = TableBuilder::create(&self.fs, self.dir, number, &config)?;
        for (key, seqno, value) in entries {
            builder.add(key, SeqNo(seqno), EntryKind::Put, value)?;
        }
        let facts = builder.finish()?;
        Ok(OpenTable(Table::open(&self.fs, self.dir, facts, mode, &self.cache)?))
    }

    /// Opens a table of this directory a second time.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open_again(&self, table: &OpenTable, mode: ReadMode) -> Result<OpenTable> {
        let facts = table.0.facts().clone();
        Ok(OpenTable(Table::open(&self.fs, self.dir, facts, mode, &self.cache)?))
    }

    /// Merges `sources` into table `number`, as a compaction does; gives its length.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn compact(&self, sources: &[OpenTable], number: u64, filter: Filter) -> Result<u64> {
        let config = TableConfig { block_bytes: 4096, lz4: false, filter };
        let number = FileNumber(number);
        let mut builder = TableBuilder::create(&self.fs, self.dir, number, &config)?;
        let sources = sources.iter().map(|table| table.0.verifying_cursor());
        let mut cursor = MergeCursor::new(sources);
        cursor.seek_to_first()?;
        while cursor.valid() {
            builder.add(cursor.key(), cursor.seqno(), cursor.kind(), cursor.value().bytes)?;
            cursor.next()?;
        }
        Ok(builder.finish()?.bytes)
    }
}

impl OpenTable {
    /// Looks a key up without the filter; gives its value's length.
    ///
    /// # Errors
    /// Those of a read.
    pub fn get(&self, key: &[u8]) -> Result<Option<usize>> {
        let mut found = None;
        let _ = self.0.visit(key, SeqNo::MAX, &mut |_, _, value| {
            found = Some(value.bytes.len());
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// Walks the whole table; gives a sum over keys and values.
    ///
    /// # Errors
    /// Those of a read.
    pub fn scan(&self) -> Result<u64> {
        walk(self.0.cursor())
    }

    /// The same with the cursor of compactions.
    ///
    /// # Errors
    /// Those of a read.
    pub fn compaction_scan(&self) -> Result<u64> {
        walk(self.0.verifying_cursor())
    }

    /// Walks several tables as one.
    ///
    /// # Errors
    /// Those of a read.
    pub fn merged_scan(tables: &[OpenTable]) -> Result<u64> {
        walk(MergeCursor::new(tables.iter().map(|t| t.0.cursor())))
    }
}

fn walk(mut cursor: impl Cursor) -> Result<u64> {
    let mut sum = 0;
    cursor.seek_to_first()?;
    while cursor.valid() {
        sum += u64::from(cursor.key().last().copied().unwrap_or(0));
        sum += u64::from(cursor.value().bytes.first().copied().unwrap_or(0));
        cursor.next()?;
    }
    Ok(sum)
}

/// A block of its own, outside a table.
pub struct BenchBlock(Vec<u8>);

impl BenchBlock {
    /// The block of these sorted puts.
    #[must_use]
    pub fn new<'e>(entries: impl Iterator<Item = (&'e [u8], u64, &'e [u8])>) -> BenchBlock {
        let mut builder = BlockBuilder::default();
        entries.for_each(|(key, seqno, value)| builder.add(key, seqno, EntryKind::Put, value));
        let mut bytes = Vec::new();
        builder.finish(&mut bytes);
        BenchBlock(bytes)
    }

    /// The index of the first row at or after this key.
    ///
    /// # Panics
    /// If the block is not well formed, which [`BenchBlock::new`] sees to.
    #[must_use]
    pub fn search(&self, key: &[u8]) -> usize {
        let block = Block::new(&self.0).expect("just built");
        block.lower_bound(key, SeqNo(u64::MAX >> 8)).expect("just built")
    }
}

/// A filter of its own, outside a table.
pub struct BenchFilter(TableFilter);

impl BenchFilter {
    /// Builds the filter of these keys.
    ///
    /// # Panics
    /// If `kind` is none.
    #[must_use]
    pub fn new(kind: Filter, hashes: &[u64]) -> BenchFilter {
        let mut section = Vec::new();
        assert!(filter::build(kind, &mut hashes.to_vec(), &mut section), "some filter");
        BenchFilter(TableFilter::decode(&section.into()).expect("just built"))
    }

    /// Whether the key of this hash may be in it.
    #[must_use]
    pub fn may_contain(&self, hash: u64) -> bool {
        self.0.may_contain(hash)
    }
}

/// The hash of a user key.
#[must_use]
pub fn hash(key: &[u8]) -> u64 {
    key::hash(key)
}
