//! Opens a table, looks up keys in it, and verifies it.
//!
//! Opening reads header, footer, directory and properties only, whose facts must be those that
//! the manifest has. Index and filter are verified when they are first used. Each block is
//! verified before it is used: read in place from a mapping, once for each open table, which a
//! bitmap remembers; otherwise whenever it is brought into the block cache.

use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::checksum::Checksum;
use crate::coding::{DecodeError, Decoded, Decoder};
use crate::cursor::{Cursor as _, ValueRef};
use crate::error::{Error, Result};
use crate::file::{FileHeader, FileKind, FileNumber, HEADER_BYTES};
use crate::fs::{self, File, Fs};
use crate::key::{self, EntryKind, SeqNo};
use crate::options::ReadMode;
use crate::table::block::{Block, Shape, first_at_least};
use crate::table::cache::{BlockCache, BlockPlace};
use crate::table::cursor::{Ahead, TableCursor};
use crate::table::filter::{TableFilter, prefetch};
use crate::table::layout::{Layout, Section, section_kind};
use crate::table::{
    Buffers, CODEC_LZ4, CODEC_NONE, Origin, SEQNO_BEFORE_ALL, TRAILER_BYTES, TableFacts,
};

/// LZ4 makes at most 255 bytes of one; a block that says more is damage, found before its memory
/// is allocated.
const LZ4_RATIO_MAX: u64 = 255;

/// A block of 4 KiB with 116-byte entries has 16 bytes of header, 33 heads and as many offsets.
const PREFETCHED_LINES: usize = 6;

/// What a page fault brings in.
const PAGE_BYTES: u64 = 4 << 10;

/// A cache line of heads.
const SAMPLED_HEADS: usize = 8;

/// An open table. Safe to use from several threads.
pub(crate) struct Table {
    path: PathBuf,
    facts: TableFacts,
    file: Arc<dyn File>,
    /// The whole file, in mapped mode.
    mapping: Option<Bytes>,
    checksum: Checksum,
    layout: Layout,
    index: OnceLock<Index>,
    filter: OnceLock<TableFilter>,
    cache: Arc<BlockCache>,
}

/// The index block, verified and validated.
pub(crate) struct Index {
    bytes: Bytes,
    shape: Shape,
    /// The last of every [`SAMPLED_HEADS`] heads. They are a byte for each block and stay in the
    /// cache, so that a search misses it once, not at every step.
    samples: Box<[u64]>,
    /// A bit for each data block that was verified in place.
    verified: Box<[AtomicU64]>,
}

/// A data block's content: in the mapping, or kept alive by itself.
pub(crate) enum Content<'a> {
    Mapped(&'a [u8]),
    Shared(Bytes),
}

/// Whether bytes come from the mapping if there is one, or always with `pread`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Shared,
    Pread,
}

impl Table {
    /// Opens the table of these facts, which must be what the file says of itself.
    pub fn open(
        fs: &dyn Fs,
        dir: &Path,
        facts: TableFacts,
        mode: ReadMode,
        cache: &Arc<BlockCache>,
    ) -> Result<Arc<Table>> {
        let path = FileKind::Table.path(dir, facts.number);
        let table = Table::open_unchecked(fs, path, facts.number, mode, cache)?;
        let same_length = fs::length_fits("table.bytes.manifest", table.facts.bytes == facts.bytes);
        let named = TableFacts { bytes: table.facts.bytes, ..facts.clone() };
        if !same_length || table.facts != named {
            let expected = format!("the table that the manifest names, {facts:?}");
            let found = format!("{:?}", table.facts);
            return Err(Error::corruption(&table.path, 0, expected, found));
        }
        Ok(Arc::new(table))
    }

    /// Opens a table that no manifest describes, for tools: its facts are what it says itself.
    pub fn open_alone(
        fs: &dyn Fs,
        dir: &Path,
        number: FileNumber,
        mode: ReadMode,
        cache: &Arc<BlockCache>,
    ) -> Result<Arc<Table>> {
        let path = FileKind::Table.path(dir, number);
        Ok(Arc::new(Table::open_unchecked(fs, path, number, mode, cache)?))
    }

    fn open_unchecked(
        fs: &dyn Fs,
        path: PathBuf,
        number: FileNumber,
        mode: ReadMode,
        cache: &Arc<BlockCache>,
    ) -> Result<Table> {
        let file = fs.open(&path).map_err(|e| Error::io("open", &path, e))?;
        let file_bytes = file.len().map_err(|e| Error::io("measure", &path, e))?;
        let mapping = match mode {
            ReadMode::Mapped => {
                Some(file.map_for_lookups().map_err(|e| Error::io("map", &path, e))?)
            }
            ReadMode::Pread => None,
        };
        // The mapping was made after the length was read: a file is never shorter than it was.
        let file_bytes = mapping.as_ref().map_or(file_bytes, |mapping| mapping.len() as u64);
        let read = |range| read_range(&path, &*file, mapping.as_ref(), range);
        let header = read(0..file_bytes.min(HEADER_BYTES as u64))?;
        let header = FileHeader::decode(&header, FileKind::Table, &path)?;
        let checksum = Checksum::new(header.id);
        let layout = Layout::read(&path, file_bytes, checksum, read)?;
        let section = *layout.required(section_kind::PROPERTIES);
        let properties = read(section.range())?;
        check_section(&path, checksum, &section, &properties)?;
        let facts = decode_properties(&properties, number, file_bytes, &header)
            .map_err(|e| Error::corruption(&path, section.offset, "a table's properties", e.0))?;
        let (index, filter) = (OnceLock::new(), OnceLock::new());
        let cache = Arc::clone(cache);
        Ok(Table { path, facts, file, mapping, checksum, layout, index, filter, cache })
    }

    /// What the manifest knows of this table.
    pub fn facts(&self) -> &TableFacts {
        &self.facts
    }

    /// The sections of the file.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Asks for the memory that [`Table::may_contain`] will read, so that the misses of several
    /// tables overlap.
    #[inline]
    pub fn prefetch_filter(&self, hash: u64) {
        if let Some(filter) = self.filter.get() {
            filter.prefetch(hash);
        }
    }

    /// False only if the table has no key with this hash (`crate::key::hash`).
    ///
    /// A filter that is damaged or cannot be read is not used: every key may be there then, which
    /// is slow but right. [`Table::verify`] reports it.
    #[inline]
    pub fn may_contain(&self, hash: u64) -> bool {
        self.filter.get().unwrap_or_else(|| self.load_filter()).may_contain(hash)
    }

    /// The filter, if it was asked before.
    pub fn loaded_filter(&self) -> Option<&TableFilter> {
        self.filter.get()
    }

    #[cold]
    fn load_filter(&self) -> &TableFilter {
        let filter = self.read_filter(Source::Shared).ok().flatten().unwrap_or(TableFilter::None);
        self.filter.get_or_init(|| filter)
    }

    /// The filter, verified, if the table has one.
    pub fn read_filter(&self, source: Source) -> Result<Option<TableFilter>> {
        let Some(section) = self.layout.find(section_kind::FILTER) else { return Ok(None) };
        let bytes = self.read_section(section, source)?;
        let filter = TableFilter::decode(&bytes)
            .map_err(|e| self.corruption(section.offset, "a filter", e))?;
        Ok(Some(filter))
    }

    /// Where the table says that it belongs, if it does.
    pub fn read_origin(&self) -> Result<Option<Origin>> {
        let Some(section) = self.layout.find(section_kind::ORIGIN) else { return Ok(None) };
        let bytes = self.read_section(section, Source::Pread)?;
        let origin = Origin::decode(&bytes);
        origin.map(Some).map_err(|e| self.corruption(section.offset, "a table's origin", e))
    }

    /// Calls `f` with the versions of `key` that are not newer than `snapshot`, newest first,
    /// until it breaks. Does not ask the filter.
    pub fn visit<F>(&self, key: &[u8], snapshot: SeqNo, f: &mut F) -> Result<ControlFlow<()>>
    where
        F: FnMut(SeqNo, EntryKind, ValueRef<'_>) -> ControlFlow<()>,
    {
        let index = self.index()?;
        let mut ordinal = index.find(key, snapshot).map_err(|e| self.index_corruption(e))?;
        let mut first = true;
        while ordinal < index.count() {
            let place = self.place(index, ordinal)?;
            self.read_ahead_unverified(index, ordinal, &place);
            let content = self.content(index, ordinal, &place)?;
            let (bytes, owner) = match &content {
                Content::Mapped(bytes) => {
                    prefetch_front(bytes);
                    (*bytes, self.mapping.as_ref())
                }
                Content::Shared(bytes) => (&bytes[..], Some(bytes)),
            };
            let visited = visit_block(bytes, owner, key, snapshot, first, f)
                .map_err(|e| self.corruption(place.start, "a block", e))?;
            if visited.is_break() {
                return Ok(visited);
            }
            if !index.continues(ordinal, key).map_err(|e| self.index_corruption(e))? {
                break;
            }
            ordinal += 1;
            first = false;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Asks for the front of the block that a lookup of (key, seqno) will read, where it lies in the
    /// mapping.
    pub fn prefetch_block(&self, key: &[u8], seqno: SeqNo) {
        if let (Some(index), Some(mapping)) = (self.index.get(), &self.mapping)
            && let Ok(place) = index.find(key, seqno).and_then(|ordinal| index.place(ordinal))
            && let Some(block) = mapping.get(place.start as usize..)
        {
            prefetch_front(block);
        }
    }

    /// A cursor for users' scans: in place where the file is mapped, else through the cache.
    pub fn cursor(self: &Arc<Self>) -> TableCursor {
        TableCursor::shared(Arc::clone(self))
    }

    /// A cursor for compactions: reads ahead so far with `pread`, verifies every byte that it reads,
    /// and leaves the cache alone.
    pub fn compaction_cursor(self: &Arc<Self>, ahead: Ahead) -> TableCursor {
        TableCursor::reading_ahead(Arc::clone(self), ahead)
    }

    /// The same for whoever reads nothing else meanwhile.
    pub fn verifying_cursor(self: &Arc<Self>) -> TableCursor {
        self.compaction_cursor(Ahead { bytes: 1 << 20, buffers: Buffers::new(0) })
    }

    /// Bytes on the heap that this open table holds: index, filter, bitmap.
    pub fn memory_bytes(&self) -> usize {
        let mapped = self.mapping.is_some();
        let index = self.index.get().map_or(0, |index| {
            let block = if mapped { 0 } else { index.bytes.len() };
            block + index.samples.len() * 8 + index.verified.len() * 8
        });
        let filter = self.filter.get().map_or(0, |filter| filter.memory_bytes(mapped));
        size_of::<Table>() + index + filter
    }

    /// Reads the whole file with `pread` and checks everything that can be checked: all
    /// checksums, the order of the entries, that each is within the bounds of the index, that
    /// the facts agree, and that the filter has every key.
    pub fn verify(self: &Arc<Self>) -> Result<()> {
        let header = self.read(0..HEADER_BYTES as u64, Source::Pread)?;
        FileHeader::decode(&header, FileKind::Table, &self.path)?;
        let layout = Layout::read(&self.path, self.facts.bytes, self.checksum, |range| {
            self.read(range, Source::Pread)
        })?;
        if layout != self.layout {
            let found = format!("{layout:?}");
            return Err(self.damaged(0, "the directory as it was at open", &found));
        }
        for section in layout.sections.iter().filter(|s| s.kind != section_kind::DATA) {
            self.read_section(section, Source::Pread)?;
        }
        self.read_origin()?;
        let filter = self.read_filter(Source::Pread)?.unwrap_or(TableFilter::None);
        let found = self.recount(&filter)?;
        if found != self.facts {
            let expected = format!("entries as in the properties, {:?}", self.facts);
            return Err(self.damaged(HEADER_BYTES as u64, &expected, &format!("{found:?}")));
        }
        Ok(())
    }

    /// The facts as its entries have them, checking order, bounds and filter on the way.
    fn recount(self: &Arc<Self>, filter: &TableFilter) -> Result<TableFacts> {
        let mut facts = TableFacts {
            entries: 0,
            tombstones: 0,
            operands: 0,
            smallest: Box::default(),
            largest: Box::default(),
            seqno_min: SeqNo::MAX,
            seqno_max: SeqNo::ZERO,
            raw_bytes: 0,
            ..self.facts
        };
        let mut last: Option<(Vec<u8>, SeqNo)> = None;
        let mut cursor = self.verifying_cursor();
        cursor.seek_to_first()?;
        while cursor.valid() {
            let (key, seqno) = (cursor.key(), cursor.seqno());
            if let Some((last_key, last_seqno)) = &last {
                if key::compare(last_key, *last_seqno, key, seqno).is_ge() {
                    let found = format!("{}", key::EntryName(key, seqno, cursor.kind()));
                    return Err(self.damaged(cursor.offset(), "entries in order", &found));
                }
            } else {
                facts.smallest = key.into();
            }
            cursor.check_bounds()?;
            if !filter.may_contain(key::hash(key)) {
                let found = format!("none for {}", key.escape_ascii());
                return Err(self.damaged(cursor.offset(), "every key in the filter", &found));
            }
            facts.entries += 1;
            facts.tombstones += u64::from(cursor.kind() == EntryKind::Delete);
            facts.operands += u64::from(cursor.kind() == EntryKind::Merge);
            facts.seqno_min = facts.seqno_min.min(seqno);
            facts.seqno_max = facts.seqno_max.max(seqno);
            facts.raw_bytes += (key.len() + cursor.value().bytes.len()) as u64;
            let (last_key, last_seqno) = last.get_or_insert_default();
            last_key.clear();
            last_key.extend_from_slice(key);
            *last_seqno = seqno;
            cursor.next()?;
        }
        facts.largest = last.unwrap_or_default().0.into();
        Ok(facts)
    }

    /// The index, verified when it is first used.
    #[inline]
    pub fn index(&self) -> Result<&Index> {
        match self.index.get() {
            Some(index) => Ok(index),
            None => {
                let index = self.read_index(Source::Shared)?;
                Ok(self.index.get_or_init(|| index))
            }
        }
    }

    /// Reads and checks the index.
    #[cold]
    pub fn read_index(&self, source: Source) -> Result<Index> {
        let section = self.layout.required(section_kind::INDEX);
        let bytes = self.read_section(section, source)?;
        Index::decode(bytes, self.layout.required(section_kind::DATA).range())
            .map_err(|e| self.index_corruption(e))
    }

    /// Where the frame of block `ordinal` is.
    pub fn place(&self, index: &Index, ordinal: usize) -> Result<Range<u64>> {
        index.place(ordinal).map_err(|e| self.index_corruption(e))
    }

    /// The content of block `ordinal`, whose frame is at `place`, verified and validated.
    pub fn content<'a>(
        &'a self,
        index: &Index,
        ordinal: usize,
        place: &Range<u64>,
    ) -> Result<Content<'a>> {
        if let Some(mapping) = &self.mapping {
            let frame = mapping
                .get(place.start as usize..place.end as usize)
                .filter(|frame| frame.len() > TRAILER_BYTES);
            let Some(frame) = frame else {
                let what = DecodeError("a block past the end of the data");
                return Err(self.index_corruption(what));
            };
            let content_bytes = frame.len() - TRAILER_BYTES;
            // A block whose bit is set is uncompressed: its codec, a cache line further on, is not
            // looked at again.
            if index.is_verified(ordinal) {
                return Ok(Content::Mapped(&frame[..content_bytes]));
            }
            if frame[content_bytes] == CODEC_NONE {
                self.check_frame(frame, place.start)?;
                self.validate(&frame[..content_bytes], place.start)?;
                index.set_verified(ordinal);
                return Ok(Content::Mapped(&frame[..content_bytes]));
            }
        }
        let key = BlockPlace::new(self.facts.id, place.start);
        if let Some(content) = self.cache.get(key) {
            return Ok(Content::Shared(content));
        }
        let frame = self.read(place.clone(), Source::Shared)?;
        let content = self.unpack(frame, place.start)?;
        self.cache.insert(key, content.clone());
        Ok(Content::Shared(content))
    }

    /// The content in a frame, verified and validated.
    pub fn unpack(&self, frame: Bytes, offset: u64) -> Result<Bytes> {
        let codec = self.check_frame(&frame, offset)?;
        let content = frame.slice(..frame.len() - TRAILER_BYTES);
        let content = match codec {
            CODEC_NONE => content,
            CODEC_LZ4 => decompress(&content)
                .map(Bytes::from)
                .map_err(|e| self.corruption(offset, "an LZ4 block", e))?,
            _ => return Err(self.corruption(offset, "a block", DecodeError("unknown codec"))),
        };
        self.validate(&content, offset)?;
        Ok(content)
    }

    /// Compares the checksum of a frame; gives its codec.
    fn check_frame(&self, frame: &[u8], offset: u64) -> Result<u8> {
        let Some((checked, found)) = frame.split_last_chunk::<4>() else {
            return Err(self.corruption(offset, "a block", DecodeError("ends early")));
        };
        let Some(&codec) = checked.last() else {
            return Err(self.corruption(offset, "a block", DecodeError("ends early")));
        };
        let expected = self.checksum.of(offset, checked);
        let found = u32::from_le_bytes(*found);
        if expected != found {
            let expected = format!("block checksum {expected:08x}");
            return Err(self.damaged(offset, &expected, &format!("{found:08x}")));
        }
        Ok(codec)
    }

    fn validate(&self, content: &[u8], offset: u64) -> Result<()> {
        Block::new(content)
            .and_then(|block| block.validate(SeqNo::MAX.0))
            .map_err(|e| self.corruption(offset, "a block", e))
    }

    /// Begins to bring a range of the mapping into the page cache, if there is a mapping: its faults bring
    /// in single pages.
    pub fn read_ahead(&self, range: &Range<u64>) {
        if self.mapping.is_some() {
            self.file.read_ahead(range.start, range.end - range.start);
        }
    }

    /// The same for a block that was not looked at yet, and so perhaps never read: all its pages at once, and
    /// not one fault after the other.
    #[inline]
    pub fn read_ahead_unverified(&self, index: &Index, ordinal: usize, place: &Range<u64>) {
        if self.mapping.is_some()
            && !index.is_verified(ordinal)
            && place.start / PAGE_BYTES != (place.end - 1) / PAGE_BYTES
        {
            self.read_ahead(place);
        }
    }

    fn read_section(&self, section: &Section, source: Source) -> Result<Bytes> {
        if source == Source::Shared {
            self.read_ahead(&section.range());
        }
        let bytes = self.read(section.range(), source)?;
        check_section(&self.path, self.checksum, section, &bytes)?;
        Ok(bytes)
    }

    /// A range of the file that lies within it.
    pub fn read(&self, range: Range<u64>, source: Source) -> Result<Bytes> {
        let mapping = self.mapping.as_ref().filter(|_| source == Source::Shared);
        read_range(&self.path, &*self.file, mapping, range)
    }

    /// Fills `buffer` from `offset` with `pread`.
    pub fn read_into(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_at(buffer, offset).map_err(|e| Error::io("read", &self.path, e))
    }

    pub fn index_corruption(&self, error: DecodeError) -> Error {
        let offset = self.layout.required(section_kind::INDEX).offset;
        self.corruption(offset, "a table's index", error)
    }

    pub fn corruption(&self, offset: u64, expected: &str, error: DecodeError) -> Error {
        self.damaged(offset, expected, error.0)
    }

    pub fn damaged(&self, offset: u64, expected: &str, found: &str) -> Error {
        Error::corruption(&self.path, offset, expected, found)
    }
}

impl Index {
    pub(super) fn decode(bytes: Bytes, data: Range<u64>) -> Decoded<Index> {
        let block = Block::new(&bytes)?;
        let mut end = data.start;
        block.validate_each(SEQNO_BEFORE_ALL, |row| {
            let place = decode_place(row.value)?;
            let empty = place.end - place.start <= TRAILER_BYTES as u64;
            if row.kind != EntryKind::Put || place.start != end || empty {
                return Err(DecodeError("data blocks that do not follow each other"));
            }
            end = place.end;
            Ok(())
        })?;
        if end != data.end {
            return Err(DecodeError("data blocks that do not end with the section"));
        }
        let shape = block.shape();
        let lines = block.heads().chunks_exact(SAMPLED_HEADS);
        let samples = lines.map(|line| u64::from_le_bytes(line[SAMPLED_HEADS - 1])).collect();
        let verified = (0..shape.count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Index { bytes, shape, samples, verified })
    }

    #[inline]
    pub fn block(&self) -> Block<'_> {
        Block::with_shape(&self.bytes, self.shape)
    }

    /// How many data blocks there are.
    #[inline]
    pub fn count(&self) -> usize {
        self.shape.count
    }

    /// The first block whose bound is at or after (key, seqno): if the table has an entry at or
    /// after that, the first one is in this block, or begins the next one.
    #[inline]
    pub fn find(&self, key: &[u8], seqno: SeqNo) -> Decoded<usize> {
        let block = self.block();
        block.lower_bound_by(key, seqno, |heads, head| {
            let before = first_at_least(self.samples.len(), head, |at| self.samples[at]);
            let start = before * SAMPLED_HEADS;
            block.prefetch_rows(start, SAMPLED_HEADS);
            let line = &heads[start..heads.len().min(start + SAMPLED_HEADS)];
            let less = |found: &&[u8; 8]| u64::from_le_bytes(**found) < head;
            start + line.iter().filter(less).count()
        })
    }

    /// True if the block after `ordinal` begins with versions of `key` too.
    #[inline]
    fn continues(&self, ordinal: usize, key: &[u8]) -> Decoded<bool> {
        let row = self.block().row(ordinal)?;
        Ok(row.seqno.0 != SEQNO_BEFORE_ALL && self.block().row_has_key(&row, key))
    }

    #[inline]
    pub(super) fn place(&self, ordinal: usize) -> Decoded<Range<u64>> {
        decode_place(self.block().row(ordinal)?.value)
    }

    #[inline]
    fn is_verified(&self, ordinal: usize) -> bool {
        self.verified[ordinal / 64].load(Ordering::Relaxed) & 1 << (ordinal % 64) != 0
    }

    #[inline]
    fn set_verified(&self, ordinal: usize) {
        self.verified[ordinal / 64].fetch_or(1 << (ordinal % 64), Ordering::Relaxed);
    }
}

/// Calls `f` with the versions of `key` in one block; `first` if none of them was visited in the
/// block before.
#[inline]
fn visit_block<F>(
    bytes: &[u8],
    owner: Option<&Bytes>,
    key: &[u8],
    snapshot: SeqNo,
    first: bool,
    f: &mut F,
) -> Decoded<ControlFlow<()>>
where
    F: FnMut(SeqNo, EntryKind, ValueRef<'_>) -> ControlFlow<()>,
{
    let block = Block::new(bytes)?;
    let start = if first { block.lower_bound(key, snapshot)? } else { 0 };
    block.prefetch_row(start);
    for index in start..block.count() {
        let row = block.row(index)?;
        if !block.row_has_key(&row, key) {
            break;
        }
        if f(row.seqno, row.kind, ValueRef { bytes: row.value, owner }).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Asks at once for the lines that a search in a block reads one after the other: its header,
/// heads and offsets.
#[inline]
pub(super) fn prefetch_front(block: &[u8]) {
    for line in 0..PREFETCHED_LINES {
        prefetch(block, line * 64);
    }
}

fn decode_place(value: &[u8]) -> Decoded<Range<u64>> {
    let mut decoder = Decoder::new(value);
    let start = decoder.u64()?;
    let bytes = decoder.u32()?;
    decoder.finish()?;
    let end = start.checked_add(u64::from(bytes)).ok_or(DecodeError("a block past the end"))?;
    Ok(start..end)
}

fn decode_properties(
    bytes: &[u8],
    number: FileNumber,
    file_bytes: u64,
    header: &FileHeader,
) -> Decoded<TableFacts> {
    let mut decoder = Decoder::new(bytes);
    let facts = TableFacts::decode_properties(&mut decoder, number, file_bytes)?;
    decoder.finish()?;
    if facts.id != header.id {
        return Err(DecodeError("another id than the header's"));
    }
    Ok(facts)
}

pub(super) fn decompress(content: &[u8]) -> Decoded<Vec<u8>> {
    let mut decoder = Decoder::new(content);
    let bytes = decoder.u32()? as usize;
    let compressed = decoder.rest();
    let can_be = bytes as u64 <= compressed.len() as u64 * LZ4_RATIO_MAX;
    if !fs::length_fits("block.lz4", can_be) {
        return Err(DecodeError("a length that LZ4 cannot reach"));
    }
    let mut block = vec![0; bytes];
    match lz4_flex::block::decompress_into(compressed, &mut block) {
        Ok(length) if length == bytes => Ok(block),
        Ok(_) => Err(DecodeError("shorter than it says")),
        Err(_) => Err(DecodeError("bytes that LZ4 does not make")),
    }
}

fn check_section(path: &Path, checksum: Checksum, section: &Section, bytes: &[u8]) -> Result<()> {
    let found = checksum.of(section.offset, bytes);
    if found != section.checksum {
        let expected = format!("{} checksum {:08x}", section.name(), section.checksum);
        return Err(Error::corruption(path, section.offset, expected, format!("{found:08x}")));
    }
    Ok(())
}

/// A range that lies within the file, from its mapping or with `pread`.
fn read_range(
    path: &Path,
    file: &dyn File,
    mapping: Option<&Bytes>,
    range: Range<u64>,
) -> Result<Bytes> {
    if let Some(mapping) = mapping {
        return Ok(mapping.slice(range.start as usize..range.end as usize));
    }
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.read_at(&mut bytes, range.start).map_err(|e| Error::io("read", path, e))?;
    Ok(Bytes::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::block::BlockBuilder;

    fn index_of(places: &[(u64, u32)]) -> Bytes {
        let mut builder = BlockBuilder::default();
        for (n, (offset, bytes)) in places.iter().enumerate() {
            let place = [&offset.to_le_bytes()[..], &bytes.to_le_bytes()].concat();
            builder.add(&[n as u8], SEQNO_BEFORE_ALL, EntryKind::Put, &place);
        }
        let mut bytes = Vec::new();
        builder.finish(&mut bytes);
        Bytes::from(bytes)
    }

    #[test]
    fn an_index_names_every_byte_of_the_data_once() {
        let good = [(128, 40), (168, 30), (198, 6)];
        assert_eq!(Index::decode(index_of(&good), 128..204).map(|index| index.count()), Ok(3));
        let bad = [
            (&good[..], 128..205),
            (&good, 128..203),
            (&good, 127..204),
            (&[(128, 40), (169, 35)], 128..204),
            (&[(128, 71), (199, 5)], 128..204),
            (&[(u64::MAX, 5)], u64::MAX..u64::MAX),
        ];
        for (places, data) in bad {
            assert!(Index::decode(index_of(places), data.clone()).is_err(), "{places:?} {data:?}");
        }
    }

    #[test]
    fn a_length_that_lz4_cannot_reach_is_refused_before_memory_is_taken() {
        let bomb = [&u32::MAX.to_le_bytes()[..], &[0xff; 1000]].concat();
        assert_eq!(decompress(&bomb), Err(DecodeError("a length that LZ4 cannot reach")));
        let zeros = vec![0; 1 << 20];
        let compressed = lz4_flex::block::compress(&zeros);
        let frame = [&(zeros.len() as u32).to_le_bytes()[..], &compressed].concat();
        assert_eq!(decompress(&frame), Ok(zeros));
    }
}
