//! Stand-in for the tables: entries in memory, written to a file of the simplest form.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::cursor::{Cursor, ValueRef};
use crate::error::{Error, Result};
use crate::file::{FileId, FileKind, FileNumber};
use crate::fs::{File, Fs};
use crate::key::{EntryKind, SeqNo};
use crate::options::{Filter, ReadMode};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TableFacts {
    pub(crate) number: FileNumber,
    pub(crate) id: FileId,
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    pub(crate) tombstones: u64,
    pub(crate) operands: u64,
    pub(crate) smallest: Box<[u8]>,
    pub(crate) largest: Box<[u8]>,
    pub(crate) seqno_min: SeqNo,
    pub(crate) seqno_max: SeqNo,
    pub(crate) raw_bytes: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct TableConfig {
    pub(crate) block_bytes: usize,
    pub(crate) lz4: bool,
    pub(crate) filter: Filter,
}

#[derive(Debug)]
pub(crate) struct BlockCache;

impl BlockCache {
    pub(crate) fn new(_: usize) -> BlockCache {
        BlockCache
    }
}

type Row = (Vec<u8>, SeqNo, EntryKind, Vec<u8>);

pub(crate) struct TableBuilder {
    file: Arc<dyn File>,
    out: Vec<u8>,
    facts: TableFacts,
    last: Vec<u8>,
}

impl TableBuilder {
    pub(crate) fn create(
        fs: &dyn Fs,
        dir: &Path,
        number: FileNumber,
        config: &TableConfig,
    ) -> Result<TableBuilder> {
        let _ = (config.block_bytes, config.lz4, config.filter);
        let path = FileKind::Table.path(dir, number);
        let file = fs.create(&path).map_err(|e| Error::io("create", &path, e))?;
        let facts = TableFacts {
            number,
            id: FileId(fs.random_id()),
            bytes: 0,
            entries: 0,
            tombstones: 0,
            operands: 0,
            smallest: Box::default(),
            largest: Box::default(),
            seqno_min: SeqNo::MAX,
            seqno_max: SeqNo::ZERO,
            raw_bytes: 0,
        };
        Ok(TableBuilder { file, out: Vec::new(), facts, last: Vec::new() })
    }

    pub(crate) fn add(
        &mut self,
        key: &[u8],
        seqno: SeqNo,
        kind: EntryKind,
        value: &[u8],
    ) -> Result<()> {
        let facts = &mut self.facts;
        if facts.entries == 0 {
            facts.smallest = key.into();
        }
        self.last.clear();
        self.last.extend_from_slice(key);
        facts.entries += 1;
        facts.tombstones += u64::from(kind == EntryKind::Delete);
        facts.operands += u64::from(kind == EntryKind::Merge);
        facts.seqno_min = facts.seqno_min.min(seqno);
        facts.seqno_max = facts.seqno_max.max(seqno);
        facts.raw_bytes += (key.len() + value.len()) as u64;
        for part in [key, value] {
            self.out.extend_from_slice(&(part.len() as u32).to_le_bytes());
            self.out.extend_from_slice(part);
        }
        self.out.extend_from_slice(&(seqno.0 << 8 | kind as u64).to_le_bytes());
        Ok(())
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.out.len() as u64
    }

    pub(crate) fn entries(&self) -> u64 {
        self.facts.entries
    }

    pub(crate) fn finish(mut self) -> Result<TableFacts> {
        let io = |e| Error::io("write", "table", e);
        self.file.write_at(0, &self.out).map_err(io)?;
        self.file.sync().map_err(io)?;
        self.facts.bytes = self.out.len() as u64;
        self.facts.largest = self.last.into();
        Ok(self.facts)
    }
}

#[derive(Debug)]
pub(crate) struct Table {
    facts: TableFacts,
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn open(
        fs: &dyn Fs,
        dir: &Path,
        facts: TableFacts,
        _: ReadMode,
        _: &Arc<BlockCache>,
    ) -> Result<Arc<Table>> {
        let path = FileKind::Table.path(dir, facts.number);
        let io = |e| Error::io("open", &path, e);
        let bytes = fs.open(&path).and_then(|file| file.map()).map_err(io)?;
        let mut rest = &bytes[..];
        let mut rows = Vec::new();
        let mut take = |n: usize| {
            let (a, b) = rest.split_at(n);
            rest = b;
            a.to_vec()
        };
        for _ in 0..facts.entries {
            let n = u32::from_le_bytes(take(4).try_into().unwrap()) as usize;
            let key = take(n);
            let n = u32::from_le_bytes(take(4).try_into().unwrap()) as usize;
            let value = take(n);
            let word = u64::from_le_bytes(take(8).try_into().unwrap());
            rows.push((key, SeqNo(word >> 8), EntryKind::from_u8(word as u8).unwrap(), value));
        }
        Ok(Arc::new(Table { facts, rows }))
    }

    pub(crate) fn facts(&self) -> &TableFacts {
        &self.facts
    }

    pub(crate) fn prefetch_filter(&self, _: u64) {}

    pub(crate) fn may_contain(&self, hash: u64) -> bool {
        self.rows.iter().any(|row| crate::key::hash(&row.0) == hash)
    }

    pub(crate) fn visit<F: FnMut(SeqNo, EntryKind, ValueRef<'_>) -> ControlFlow<()>>(
        &self,
        key: &[u8],
        snapshot: SeqNo,
        f: &mut F,
    ) -> Result<ControlFlow<()>> {
        for row in self.rows.iter().filter(|row| row.0 == key && row.1 <= snapshot) {
            if f(row.1, row.2, ValueRef { bytes: &row.3, owner: None }).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    pub(crate) fn cursor(self: &Arc<Self>) -> TableCursor {
        TableCursor { table: Arc::clone(self), at: usize::MAX }
    }

    pub(crate) fn compaction_cursor(self: &Arc<Self>) -> TableCursor {
        self.cursor()
    }
}

pub(crate) struct TableCursor {
    table: Arc<Table>,
    at: usize,
}

impl TableCursor {
    fn row(&self) -> &Row {
        &self.table.rows[self.at]
    }

    fn lower(&self, key: &[u8], seqno: SeqNo) -> usize {
        self.table
            .rows
            .partition_point(|row| crate::key::compare(&row.0, row.1, key, seqno).is_lt())
    }
}

impl Cursor for TableCursor {
    fn valid(&self) -> bool {
        self.at < self.table.rows.len()
    }
    fn seek_to_first(&mut self) -> Result<()> {
        self.at = 0;
        Ok(())
    }
    fn seek_to_last(&mut self) -> Result<()> {
        self.at = self.table.rows.len().wrapping_sub(1);
        Ok(())
    }
    fn seek(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        self.at = self.lower(key, seqno);
        Ok(())
    }
    fn seek_before(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        self.at = self.lower(key, seqno).wrapping_sub(1);
        Ok(())
    }
    fn next(&mut self) -> Result<()> {
        self.at += 1;
        Ok(())
    }
    fn prev(&mut self) -> Result<()> {
        self.at = self.at.wrapping_sub(1);
        Ok(())
    }
    fn key(&self) -> &[u8] {
        &self.row().0
    }
    fn seqno(&self) -> SeqNo {
        self.row().1
    }
    fn kind(&self) -> EntryKind {
        self.row().2
    }
    fn value(&self) -> ValueRef<'_> {
        ValueRef { bytes: &self.row().3, owner: None }
    }
}
