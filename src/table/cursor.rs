//! Walks a table: a block at a time, putting each key together in a buffer.
//!
//! The same cursor serves users and compactions; they differ in where blocks come from. Users'
//! blocks lie in the mapping or the block cache. Compactions read large chunks with `pread`
//! while they go forward, verify index and blocks each time, so that rot is never copied under a
//! fresh checksum, and leave the cache to the users.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::cursor::{Cursor, ValueRef};
use crate::error::Result;
use crate::key::{self, EntryKind, SeqNo};
use crate::table::block::{Block, Shape};
use crate::table::layout::section_kind;
use crate::table::reader::{Content, Index, Source, Table, prefetch_front};
use crate::table::{Buffers, SEQNO_BEFORE_ALL};

/// Keys up to this length are put together without allocating again. A suffix is copied in pieces
/// of 8 bytes, the last of which may run over.
const USUAL_KEY_BYTES: usize = 48;
/// A cursor that goes backward asks for the row so many before the one it leaves: the processor's own
/// prefetchers follow best what goes forward.
const ROWS_AHEAD_BACKWARD: usize = 8;
/// A users' cursor that has gone on to the next block so many times in a row reads ahead in the mapping. To
/// ask costs 1 µs where nothing is missing, an eighth of a scan of 100 entries: those are over before.
const STEPS_BEFORE_AHEAD: u32 = 4;
/// First so far, and each time twice as far, up to the second.
const AHEAD_BYTES: u64 = 64 << 10;
const AHEAD_BYTES_MAX: u64 = 1 << 20;

/// A position in a table.
pub(crate) struct TableCursor {
    table: Arc<Table>,
    access: Access,
    /// The content of the block that the cursor is in.
    block: Bytes,
    shape: Shape,
    ordinal: usize,
    row: usize,
    valid: bool,
    key: Vec<u8>,
    /// The first 16 bytes of the key, and of the prefix that all keys of the block share.
    head: u128,
    prefix_head: u128,
    seqno: SeqNo,
    kind: EntryKind,
    value: Range<usize>,
}

/// Where blocks come from.
enum Access {
    Shared(Going),
    ReadAhead(ReadAhead),
}

/// How a compaction's cursor reads ahead.
#[derive(Clone)]
pub(crate) struct Ahead {
    /// So far.
    pub bytes: usize,
    /// Into one of these.
    pub buffers: Arc<Buffers>,
}

/// How far a users' cursor has gone one way without a jump.
#[derive(Default)]
struct Going {
    backwards: bool,
    steps: u32,
    /// What was asked for the last time, and up to where.
    bytes: u64,
    until: u64,
}

struct ReadAhead {
    ahead: Ahead,
    /// Its own copy: the table's may lie in a mapping that rots after it was verified.
    index: Option<Index>,
    chunk: Bytes,
    chunk_at: u64,
    /// The block that a cursor going forward asks for next.
    next_ordinal: usize,
}

impl TableCursor {
    pub fn shared(table: Arc<Table>) -> TableCursor {
        TableCursor::new(table, Access::Shared(Going::default()))
    }

    pub fn reading_ahead(table: Arc<Table>, ahead: Ahead) -> TableCursor {
        let (chunk, chunk_at) = (Bytes::new(), 0);
        let ahead = ReadAhead { ahead, index: None, chunk, chunk_at, next_ordinal: 0 };
        TableCursor::new(table, Access::ReadAhead(ahead))
    }

    fn new(table: Arc<Table>, access: Access) -> TableCursor {
        TableCursor {
            table,
            access,
            block: Bytes::new(),
            shape: Shape::default(),
            ordinal: 0,
            row: 0,
            valid: false,
            key: Vec::with_capacity(USUAL_KEY_BYTES),
            head: 0,
            prefix_head: 0,
            seqno: SeqNo::ZERO,
            kind: EntryKind::Put,
            value: 0..0,
        }
    }

    /// Where the block that the cursor is in begins in the file; for the text of an error.
    pub fn offset(&self) -> u64 {
        let place = self.index().and_then(|index| self.table.place(index, self.ordinal));
        place.map_or(0, |place| place.start)
    }

    /// Which data block the cursor is in.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Checks that the entry lies between the bounds that the index has for its block.
    pub fn check_bounds(&self) -> Result<()> {
        let bound = |ordinal: usize| -> Result<(Vec<u8>, SeqNo)> {
            let block = self.index()?.block();
            let row = block.row(ordinal).map_err(|e| self.table.index_corruption(e))?;
            let mut key = block.prefix().to_vec();
            row.put_suffix(&mut key, block.prefix().len());
            Ok((key, row.seqno))
        };
        let (upper, upper_seqno) = bound(self.ordinal)?;
        let mut within = key::compare(&self.key, self.seqno, &upper, upper_seqno).is_le();
        if self.ordinal > 0 {
            let (lower, lower_seqno) = bound(self.ordinal - 1)?;
            within &= key::compare(&lower, lower_seqno, &self.key, self.seqno).is_lt();
        }
        if !within {
            let found = format!("{}", key::EntryName(&self.key, self.seqno, self.kind));
            return Err(self.table.damaged(self.offset(), "entries within the index", &found));
        }
        debug_assert!(self.seqno.0 < SEQNO_BEFORE_ALL);
        Ok(())
    }

    fn index(&self) -> Result<&Index> {
        match &self.access {
            Access::ReadAhead(ReadAhead { index: Some(index), .. }) => Ok(index),
            _ => self.table.index(),
        }
    }

    /// The index, after the copy of its own that reading ahead works with was read.
    fn loaded_index(&mut self) -> Result<&Index> {
        if let Access::ReadAhead(ahead) = &mut self.access
            && ahead.index.is_none()
        {
            ahead.index = Some(self.table.read_index(Source::Pread)?);
        }
        self.index()
    }

    /// Enters block `ordinal`. Does not choose a row.
    fn enter(&mut self, ordinal: usize) -> Result<()> {
        // A seek within the block that the cursor is in needs nothing: it stays verified.
        if self.block.is_empty() || self.ordinal != ordinal {
            self.block = match &mut self.access {
                Access::Shared(going) => {
                    let index = self.table.index()?;
                    let place = self.table.place(index, ordinal)?;
                    let data = self.table.layout().required(section_kind::DATA).range();
                    let ahead = going.on(self.ordinal, ordinal, &place, &data);
                    if !ahead.is_empty() {
                        self.table.read_ahead(&ahead);
                    }
                    if !going.is_far() {
                        self.table.read_ahead_unverified(index, ordinal, &place);
                    }
                    match self.table.content(index, ordinal, &place)? {
                        Content::Mapped(content) => {
                            prefetch_front(content);
                            let content =
                                place.start..place.end - crate::table::TRAILER_BYTES as u64;
                            self.table.read(content, Source::Shared)?
                        }
                        Content::Shared(bytes) => bytes,
                    }
                }
                Access::ReadAhead(ahead) => {
                    // Lets go of the chunk, so that it can be filled again.
                    self.block = Bytes::new();
                    ahead.content(&self.table, ordinal)?
                }
            };
            self.ordinal = ordinal;
            match Block::new(&self.block) {
                Ok(block) => self.shape = block.shape(),
                Err(error) => {
                    self.block = Bytes::new();
                    return Err(self.table.corruption(self.offset(), "a block", error));
                }
            }
        }
        self.key.clear();
        self.key.extend_from_slice(Block::with_shape(&self.block, self.shape).prefix());
        self.prefix_head = key::long_head(&self.key);
        Ok(())
    }

    /// Stands on row `row` of the block that was entered.
    #[inline]
    fn stand_on(&mut self, row: usize) -> Result<()> {
        self.stand(row, None)
    }

    /// Stands on row `row`, which begins there if that is known.
    #[inline(always)]
    fn stand(&mut self, row: usize, start: Option<usize>) -> Result<()> {
        let block = Block::with_shape(&self.block, self.shape);
        let found = match start {
            Some(start) => block.row_from(row, start),
            None => block.row_in_place(row),
        };
        match found {
            Ok(found) => {
                let prefix_bytes = block.prefix().len();
                self.head = found.long_head(self.prefix_head, prefix_bytes);
                found.put_suffix(&mut self.key, prefix_bytes);
                self.seqno = found.seqno;
                self.kind = found.kind;
                self.value = found.value_at..found.value_at + found.value.len();
                self.row = row;
                self.valid = true;
                Ok(())
            }
            Err(error) => Err(self.table.corruption(self.offset(), "a block", error)),
        }
    }

    fn enter_first_of(&mut self, ordinal: usize) -> Result<()> {
        if ordinal < self.loaded_index()?.count() {
            self.enter(ordinal)?;
            self.stand_on(0)?;
        }
        Ok(())
    }

    fn enter_last_of(&mut self, ordinal: usize) -> Result<()> {
        self.enter(ordinal)?;
        let last = self.shape.count - 1;
        Block::with_shape(&self.block, self.shape).prefetch_walk(last, false);
        self.stand_on(last)
    }

    /// Enters the block that has, or is followed by, the first entry at or after (key, seqno);
    /// gives the row of that entry, or the count of rows. `None` if the table ends before.
    fn find(&mut self, key: &[u8], seqno: SeqNo, forwards: bool) -> Result<Option<usize>> {
        let index = self.loaded_index()?;
        let count = index.count();
        let found = index.find(key, seqno);
        let ordinal = found.map_err(|e| self.table.index_corruption(e))?;
        if ordinal == count {
            return Ok(None);
        }
        self.enter(ordinal)?;
        let block = Block::with_shape(&self.block, self.shape);
        let row = block.lower_bound(key, seqno);
        if let Ok(row) = row {
            block.prefetch_walk(row, forwards);
        }
        row.map(Some).map_err(|e| self.table.corruption(self.offset(), "a block", e))
    }
}

impl Cursor for TableCursor {
    #[inline]
    fn valid(&self) -> bool {
        self.valid
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.valid = false;
        self.enter_first_of(0)
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.valid = false;
        let last = self.loaded_index()?.count() - 1;
        self.enter_last_of(last)
    }

    fn seek(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        self.valid = false;
        match self.find(key, seqno, true)? {
            Some(row) if row < self.shape.count => self.stand_on(row),
            Some(_) => self.enter_first_of(self.ordinal + 1),
            None => Ok(()),
        }
    }

    fn announce(&mut self, key: &[u8], seqno: SeqNo) {
        if let Access::Shared(_) = self.access {
            self.table.prefetch_block(key, seqno);
        }
    }

    fn seek_before(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        self.valid = false;
        match self.find(key, seqno, false)? {
            Some(0) if self.ordinal == 0 => Ok(()),
            Some(0) => self.enter_last_of(self.ordinal - 1),
            Some(row) => self.stand_on(row - 1),
            None => self.seek_to_last(),
        }
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        debug_assert!(self.valid);
        self.valid = false;
        if self.row + 1 < self.shape.count {
            // The value is the last of a row, and there are no gaps.
            self.stand(self.row + 1, Some(self.value.end))
        } else {
            self.enter_first_of(self.ordinal + 1)
        }
    }

    #[inline]
    fn prev(&mut self) -> Result<()> {
        debug_assert!(self.valid);
        self.valid = false;
        if self.row > 0 {
            if let Some(ahead) = self.row.checked_sub(ROWS_AHEAD_BACKWARD) {
                Block::with_shape(&self.block, self.shape).prefetch_row(ahead);
            }
            self.stand_on(self.row - 1)
        } else if self.ordinal > 0 {
            self.enter_last_of(self.ordinal - 1)
        } else {
            Ok(())
        }
    }

    #[inline]
    fn key(&self) -> &[u8] {
        debug_assert!(self.valid);
        &self.key
    }

    #[inline]
    fn head(&self) -> u128 {
        debug_assert!(self.valid);
        debug_assert_eq!(self.head, key::long_head(&self.key));
        self.head
    }

    #[inline]
    fn seqno(&self) -> SeqNo {
        debug_assert!(self.valid);
        self.seqno
    }

    #[inline]
    fn kind(&self) -> EntryKind {
        debug_assert!(self.valid);
        self.kind
    }

    #[inline]
    fn value(&self) -> ValueRef<'_> {
        debug_assert!(self.valid);
        ValueRef { bytes: &self.block[self.value.clone()], owner: Some(&self.block) }
    }
}

impl Going {
    /// The cursor goes from one block to another, which is at `place` of the blocks' range. What is to be
    /// read ahead now, which is empty most of the time.
    fn on(&mut self, from: usize, to: usize, place: &Range<u64>, data: &Range<u64>) -> Range<u64> {
        let backwards = to + 1 == from;
        if !backwards && to != from + 1 || backwards != self.backwards {
            *self = Going { backwards, ..Going::default() };
        }
        self.steps += 1;
        if self.is_far() { self.more(place, data) } else { 0..0 }
    }

    /// Whether it has gone so far that it reads ahead.
    fn is_far(&self) -> bool {
        self.steps > STEPS_BEFORE_AHEAD
    }

    /// Asks for more as soon as half of what was asked for last is behind; for the whole block at least.
    fn more(&mut self, place: &Range<u64>, data: &Range<u64>) -> Range<u64> {
        let first = self.bytes == 0;
        let left = if self.backwards {
            place.start.saturating_sub(self.until)
        } else {
            self.until.saturating_sub(place.end)
        };
        if !first && left >= self.bytes / 2 {
            return 0..0;
        }
        self.bytes = (self.bytes * 2).clamp(AHEAD_BYTES, AHEAD_BYTES_MAX);
        if self.backwards {
            let end = if first { place.end } else { place.end.min(self.until) };
            self.until = end.saturating_sub(self.bytes).max(data.start).min(place.start);
            self.until..end
        } else {
            let start = place.start.max(self.until);
            self.until = (start + self.bytes).min(data.end).max(place.end);
            start..self.until
        }
    }
}

impl ReadAhead {
    /// The content of block `ordinal`, from the chunk, which is read if it does not have it.
    fn content(&mut self, table: &Table, ordinal: usize) -> Result<Bytes> {
        let index = self.index.as_ref().expect("read before the first block is entered");
        let place = table.place(index, ordinal)?;
        let chunk_end = self.chunk_at + self.chunk.len() as u64;
        if place.start < self.chunk_at || place.end > chunk_end {
            let data_end = table.layout().required(section_kind::DATA).range().end;
            let end = if ordinal == self.next_ordinal {
                place.end.max(data_end.min(place.start + self.ahead.bytes as u64))
            } else {
                place.end
            };
            self.fill(table, place.start..end)?;
        }
        self.next_ordinal = ordinal + 1;
        let start = (place.start - self.chunk_at) as usize;
        let frame = self.chunk.slice(start..start + (place.end - place.start) as usize);
        table.unpack(frame, place.start)
    }

    /// Reads `range`, into the memory of the last chunk if nobody else holds it: a fresh
    /// megabyte costs 256 page faults.
    fn fill(&mut self, table: &Table, range: Range<u64>) -> Result<()> {
        let bytes = (range.end - range.start) as usize;
        let chunk = std::mem::take(&mut self.chunk).try_into_mut().map(Vec::from);
        let mut chunk = match chunk {
            Ok(chunk) if chunk.capacity() >= bytes => chunk,
            _ => self.ahead.buffers.take(bytes.max(self.ahead.bytes)),
        };
        chunk.resize(bytes, 0);
        table.read_into(&mut chunk, range.start)?;
        self.chunk = Bytes::from(chunk);
        self.chunk_at = range.start;
        Ok(())
    }
}

impl Drop for TableCursor {
    fn drop(&mut self) {
        if let Access::ReadAhead(ahead) = &mut self.access {
            // Of an uncompressed block it may be a slice.
            self.block = Bytes::new();
            if let Ok(chunk) = std::mem::take(&mut ahead.chunk).try_into_mut() {
                ahead.ahead.buffers.put(Vec::from(chunk));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of these sizes, one after the other.
    fn places(sizes: impl Iterator<Item = u64>) -> Vec<Range<u64>> {
        let mut end = 128;
        let next = |bytes| {
            end += bytes;
            end - bytes..end
        };
        sizes.map(next).collect()
    }

    #[test]
    fn who_goes_on_finds_every_block_asked_for_once_and_no_other_bytes() {
        for bytes in [100, 4_000, 5_000, 70_000, 3 << 20] {
            let places = places((0..3_000).map(|n| bytes + n % 7));
            let data = 128..places.last().unwrap().end;
            for backwards in [false, true] {
                let mut walk: Vec<usize> = (0..places.len()).collect();
                if backwards {
                    walk.reverse();
                }
                let mut going = Going::default();
                let mut asked: Vec<Range<u64>> = Vec::new();
                for step in walk.windows(2) {
                    let place = &places[step[1]];
                    let more = going.on(step[0], step[1], place, &data);
                    let within = data.start <= more.start && more.end <= data.end;
                    assert!(more.is_empty() || within, "{more:?}");
                    if !more.is_empty() {
                        let most = AHEAD_BYTES_MAX.max(place.end - place.start);
                        assert!(more.end - more.start <= most, "{more:?}");
                        let apart =
                            |other: &Range<u64>| other.end <= more.start || more.end <= other.start;
                        assert!(asked.iter().rev().take(2).all(apart), "{more:?} {asked:?}");
                        asked.push(more);
                    }
                    let has = |at: u64| asked.iter().rev().take(3).any(|asked| asked.contains(&at));
                    let whole = has(place.start) && has(place.end - 1);
                    assert_eq!(whole, going.is_far(), "{place:?} {asked:?}");
                }
                let first = asked.first().map(|first| first.end - first.start);
                assert!(
                    first >= Some(AHEAD_BYTES) && first < Some(AHEAD_BYTES + bytes),
                    "{first:?}"
                );
            }
        }
    }

    #[test]
    fn a_jump_or_a_turn_begins_anew() {
        let places = places((0..100).map(|_| 4_000));
        let data = 128..places[99].end;
        let mut going = Going::default();
        let mut walk = |steps: &[usize]| {
            steps
                .windows(2)
                .fold(0..0, |_, step| going.on(step[0], step[1], &places[step[1]], &data))
        };
        assert!(walk(&[0, 7, 8, 9, 10]).is_empty(), "a seek and three steps");
        assert_eq!(walk(&[10, 11]), places[11].start..places[11].start + AHEAD_BYTES);
        assert!(walk(&[11, 12]).is_empty(), "there is enough");
        assert!(walk(&[12, 11, 10, 9, 8]).is_empty(), "it turned");
        assert_eq!(walk(&[8, 7]), 128..places[7].end, "to the beginning");
        assert!(walk(&[7, 50, 51, 52, 51, 52]).is_empty(), "to and fro");
    }
}
