//! Writes a table, entry by entry, front to back.
//!
//! 1. [`TableBuilder::add`] collects entries into a block and one hash of each user key.
//! 2. A full block is encoded right into the chunk that is being written, compressed if that pays,
//!    and framed with its checksum; its bound goes into the index once the next key is known. A value
//!    that fills a block by itself goes into the chunk at once.
//! 3. [`TableBuilder::finish`] writes index, filter, properties, origin, directory and footer, and syncs.
//!
//! The file is written in chunks of 1 MiB, at multiples of 1 MiB, or less where memory is scarce: the page
//! cache takes large pages for it, which cost a fraction of small ones to write and to map. Chunks of 2
//! MiB would be mapped by huge pages (59 to 110 ns to touch a page at random, 1,383 in a file written by
//! 4 KiB), but cost up to ten times as much to write: decision 21.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::file::{FileHeader, FileId, FileKind, FileNumber};
use crate::fs::{self, File, Fs};
use crate::key::{self, EntryKind, KEY_BYTES_MAX, SeqNo, VALUE_BYTES_MAX};
use crate::options::Filter;
use crate::table::block::{BlockBuilder, shared_prefix};
use crate::table::filter;
use crate::table::layout::{FLAG_OPTIONAL, Layout, Section, section_kind};
use crate::table::{
    Buffers, CODEC_LZ4, CODEC_NONE, Origin, SEQNO_BEFORE_ALL, TableConfig, TableFacts,
};

/// The file is written in pieces of so many bytes, and not of fewer than the next. Not of 2 MiB or more:
/// the page cache then takes huge pages, which a virtual machine may have to get back from its host
/// (decision 21).
const CHUNK_BYTES: usize = 1 << 20;
const CHUNK_BYTES_MIN: usize = 64 << 10;
/// A value of so many bytes is written by itself.
const HUGE_BYTES: usize = 2 << 20;
/// And blocks of the disk are reserved in pieces of so many: what is written then takes two thirds of the
/// time (2 MiB 0.33 ms, 0.47 ms without), since the file system has nothing to decide page by page.
const RESERVED_BYTES: u64 = 8 << 20;

/// Room for so many hashes at first.
const HASHES_FIRST: usize = 512;

/// Builds one table. After an error it can only be dropped, which removes the file.
pub(crate) struct TableBuilder<'fs> {
    fs: &'fs dyn Fs,
    config: TableConfig,
    out: ChunkWriter,
    checksum: Checksum,
    block: BlockBuilder,
    index: BlockBuilder,
    /// Where the last finished block is, while its bound waits for the next key.
    unbounded: Option<(u64, u32)>,
    /// One of each user key, in order of the keys.
    hashes: Vec<u64>,
    /// There are to be no more of them.
    keys_max: usize,
    buffers: Option<Arc<Buffers>>,
    compressor: Compressor,
    last_key: Vec<u8>,
    last_seqno: SeqNo,
    facts: TableFacts,
    origin: Option<Origin>,
    finished: bool,
}

impl<'fs> TableBuilder<'fs> {
    /// Creates the file of table `number` in `dir`; the name is durable once the caller has
    /// synced the directory.
    pub fn create(
        fs: &'fs dyn Fs,
        dir: &Path,
        number: FileNumber,
        config: &TableConfig,
    ) -> Result<TableBuilder<'fs>> {
        assert!(config.block_bytes <= 1 << 30, "offsets within blocks have 32 bits");
        let path = FileKind::Table.path(dir, number);
        let file = fs.create(&path).map_err(|e| Error::io("create", &path, e))?;
        let id = FileId(fs.random_id());
        let mut out = ChunkWriter {
            file,
            path,
            chunk_bytes: CHUNK_BYTES,
            buffer: Vec::new(),
            written: 0,
            reserved: 0,
        };
        out.buffer.extend_from_slice(&FileHeader::new(FileKind::Table, id, number).encode());
        let facts = TableFacts {
            number,
            id,
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
        Ok(TableBuilder {
            fs,
            config: config.clone(),
            out,
            checksum: Checksum::new(id),
            block: BlockBuilder::default(),
            index: BlockBuilder::default(),
            unbounded: None,
            hashes: Vec::new(),
            keys_max: usize::MAX,
            buffers: None,
            compressor: Compressor::default(),
            last_key: Vec::new(),
            last_seqno: SeqNo::ZERO,
            facts,
            origin: None,
            finished: false,
        })
    }

    /// Reserves disk space for a table of about `bytes` bytes. What is not used is given back.
    #[cfg(test)]
    pub fn reserve(&mut self, bytes: u64) -> Result<()> {
        self.out.reserve(bytes)
    }

    /// Lets the table say where it belongs.
    pub fn set_origin(&mut self, origin: Origin) {
        self.origin = Some(origin);
    }

    /// Lets it take about so much for what is to be written, and so much for building the filter.
    pub fn limit_memory(&mut self, chunk_bytes: usize, filter_bytes: usize) {
        let chunk_bytes = chunk_bytes.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES);
        self.out.chunk_bytes = 1 << chunk_bytes.ilog2();
        if self.config.filter != Filter::None {
            self.keys_max = (filter_bytes / filter::BUILD_BYTES_PER_KEY).max(1);
        }
    }

    /// Lets it collect what is to be written in one of these.
    pub fn use_buffers(&mut self, buffers: &Arc<Buffers>) {
        // What a block adds beyond the chunk must not make it grow, which would double it.
        let mut buffer = buffers.take(self.out.chunk_bytes + self.out.chunk_bytes / 8);
        buffer.extend_from_slice(&self.out.buffer);
        self.out.buffer = buffer;
        self.buffers = Some(Arc::clone(buffers));
    }

    /// True once there are as many keys as the filter may have: time for another table.
    #[inline]
    pub fn has_keys_enough(&self) -> bool {
        self.hashes.len() >= self.keys_max
    }

    /// Adds an entry, which must come after the ones before in entry order.
    pub fn add(&mut self, key: &[u8], seqno: SeqNo, kind: EntryKind, value: &[u8]) -> Result<()> {
        assert!(key.len() <= KEY_BYTES_MAX && value.len() <= VALUE_BYTES_MAX);
        assert!(seqno <= SeqNo::MAX, "56 bits");
        assert!(kind != EntryKind::Delete || value.is_empty(), "tombstones have no value");
        let first = self.facts.entries == 0;
        let new_key = first || key > self.last_key.as_slice();
        assert!(
            new_key || (key == self.last_key && seqno < self.last_seqno),
            "entries are added in ascending order"
        );
        let huge = value.len() >= HUGE_BYTES;
        let alone = huge || value.len() >= self.config.block_bytes;
        let full = self.block.bytes_estimate() + key.len() + value.len() > self.config.block_bytes;
        if (full || alone) && !self.block.is_empty() {
            self.finish_block()?;
        }
        if self.unbounded.is_some() {
            self.bound_before(key);
        }
        if new_key {
            if self.config.filter != Filter::None {
                if self.hashes.len() == self.hashes.capacity() {
                    // Not doubled: half of that would be for nothing.
                    self.hashes.reserve_exact((self.hashes.len() / 4).max(HASHES_FIRST));
                }
                self.hashes.push(key::hash(key));
            }
            self.last_key.clear();
            self.last_key.extend_from_slice(key);
        }
        self.last_seqno = seqno;
        self.count(first, key, seqno, kind, value);
        if huge {
            return self.write_through(key, seqno, kind, value);
        }
        if alone {
            return self.add_alone(key, seqno, kind, value);
        }
        self.block.add(key, seqno.0, kind, value);
        Ok(())
    }

    /// About how large the file would be if it were finished now.
    pub fn bytes(&self) -> u64 {
        let filter = match self.config.filter {
            Filter::None => 0,
            Filter::Bloom { bits_per_key } => self.hashes.len() * usize::from(bits_per_key) / 8,
            Filter::BinaryFuse8 => self.hashes.len() * 9 / 8,
        };
        let rest = self.block.bytes_estimate() + self.index.bytes_estimate() + filter;
        self.out.position() + rest as u64
    }

    /// How many entries were added.
    #[cfg(test)]
    pub fn entries(&self) -> u64 {
        self.facts.entries
    }

    /// Writes what is left and syncs the file, not its directory. There must be an entry.
    pub fn finish(self) -> Result<TableFacts> {
        self.finish_unsynced()?.sync()
    }

    /// Writes what is left. There must be an entry.
    pub fn finish_unsynced(mut self) -> Result<UnsyncedTable> {
        assert!(self.facts.entries > 0, "a table has an entry");
        if !self.block.is_empty() {
            self.finish_block()?;
        }
        let (offset, bytes) = self.unbounded.take().expect("the last block has no bound yet");
        self.facts.largest = self.last_key.as_slice().into();
        let mut seqno = self.last_seqno.0;
        if self.last_key.len() < KEY_BYTES_MAX {
            // Just after all versions of the last key. With a seqno like the other bounds', the
            // rows of the index mostly need no seqno field: 7 bytes a block saved.
            self.last_key.push(0);
            seqno = SEQNO_BEFORE_ALL;
        }
        put_bound(&mut self.index, &self.last_key, seqno, offset, bytes);

        let data_offset = crate::file::HEADER_BYTES as u64;
        let data = Section {
            kind: section_kind::DATA,
            flags: 0,
            offset: data_offset,
            bytes: self.out.position() - data_offset,
            checksum: 0,
        };
        let mut layout = Layout { sections: vec![data] };
        let start = self.out.buffer.len();
        self.index.finish(&mut self.out.buffer);
        self.close_section(&mut layout, section_kind::INDEX, 0, start)?;
        let start = self.out.buffer.len();
        if filter::build(self.config.filter, &mut self.hashes, &mut self.out.buffer) {
            self.close_section(&mut layout, section_kind::FILTER, FLAG_OPTIONAL, start)?;
        }
        let start = self.out.buffer.len();
        self.facts.encode_properties(&mut self.out.buffer);
        self.close_section(&mut layout, section_kind::PROPERTIES, 0, start)?;
        if let Some(origin) = self.origin.take() {
            let start = self.out.buffer.len();
            origin.encode(&mut self.out.buffer);
            self.close_section(&mut layout, section_kind::ORIGIN, FLAG_OPTIONAL, start)?;
        }
        layout.encode(self.out.position(), self.checksum, &mut self.out.buffer);
        self.out.finish()?;
        self.facts.bytes = self.out.position();
        self.finished = true;
        let (file, path) = (self.out.file.clone(), self.out.path.clone());
        Ok(UnsyncedTable { file, path, facts: self.facts.clone() })
    }

    fn count(&mut self, first: bool, key: &[u8], seqno: SeqNo, kind: EntryKind, value: &[u8]) {
        let facts = &mut self.facts;
        if first {
            facts.smallest = key.into();
        }
        facts.entries += 1;
        facts.tombstones += u64::from(kind == EntryKind::Delete);
        facts.operands += u64::from(kind == EntryKind::Merge);
        facts.seqno_min = facts.seqno_min.min(seqno);
        facts.seqno_max = facts.seqno_max.max(seqno);
        facts.raw_bytes += (key.len() + value.len()) as u64;
    }

    /// Encodes the block that was collected, into the chunk.
    fn finish_block(&mut self) -> Result<()> {
        let offset = self.out.position();
        let buffer = &mut self.out.buffer;
        let start = buffer.len();
        self.block.finish(buffer);
        self.frame(offset, start)
    }

    /// Encodes a block of one entry, whose value is copied once only.
    fn add_alone(&mut self, key: &[u8], seqno: SeqNo, kind: EntryKind, value: &[u8]) -> Result<()> {
        assert!(self.block.is_empty(), "a large value closes the block before it");
        let offset = self.out.position();
        let buffer = &mut self.out.buffer;
        let start = buffer.len();
        // The value is the rest of the row: a row with an empty value is all that precedes it.
        self.block.add(key, seqno.0, kind, b"");
        self.block.finish(buffer);
        buffer.extend_from_slice(value);
        self.frame(offset, start)
    }

    /// Makes the block that begins at `start` in the chunk, and at `offset` in the file, a frame.
    fn frame(&mut self, offset: u64, start: usize) -> Result<()> {
        let buffer = &mut self.out.buffer;
        let mut codec = CODEC_NONE;
        if self.config.lz4 && self.compressor.compress_from(buffer, start) {
            codec = CODEC_LZ4;
        }
        buffer.push(codec);
        let checksum = self.checksum.of(offset, &buffer[start..]);
        buffer.extend_from_slice(&checksum.to_le_bytes());
        let bytes = u32::try_from(buffer.len() - start).expect("frames end below 4 GiB");
        self.unbounded = Some((offset, bytes));
        self.out.write_chunks()
    }

    /// Writes a block of one entry whose value is not copied through the chunk, and not
    /// compressed: values of megabytes mostly are already.
    fn write_through(
        &mut self,
        key: &[u8],
        seqno: SeqNo,
        kind: EntryKind,
        value: &[u8],
    ) -> Result<()> {
        assert!(self.block.is_empty(), "a huge value closes the block before it");
        let offset = self.out.position();
        let start = self.out.buffer.len();
        // The value is the rest of the row: a row with an empty value is all that precedes it.
        self.block.add(key, seqno.0, kind, b"");
        self.block.finish(&mut self.out.buffer);
        let parts = [&self.out.buffer[start..], value, &[CODEC_NONE]];
        let checksum = self.checksum.of_parts(offset, &parts);
        let bytes = self.out.buffer.len() - start + value.len() + crate::table::TRAILER_BYTES;
        self.out.write_through(value)?;
        self.out.buffer.push(CODEC_NONE);
        self.out.buffer.extend_from_slice(&checksum.to_le_bytes());
        let bytes = u32::try_from(bytes).expect("values end at 1 GiB");
        self.unbounded = Some((offset, bytes));
        Ok(())
    }

    /// Writes the bound of the last block, now that the key after it is known.
    fn bound_before(&mut self, next_key: &[u8]) {
        let (offset, bytes) = self.unbounded.take().expect("there is a block without a bound");
        if next_key == self.last_key {
            put_bound(&mut self.index, &self.last_key, self.last_seqno.0, offset, bytes);
        } else {
            let shared = shared_prefix(&self.last_key, next_key);
            // `next_key` is greater, so it has a byte after what it shares.
            let bound = &next_key[..=shared];
            put_bound(&mut self.index, bound, SEQNO_BEFORE_ALL, offset, bytes);
        }
    }

    /// Notes the section that was appended to the chunk from `start` on.
    fn close_section(
        &mut self,
        layout: &mut Layout,
        kind: u32,
        flags: u32,
        start: usize,
    ) -> Result<()> {
        let content = &self.out.buffer[start..];
        let bytes = content.len() as u64;
        let offset = self.out.position() - bytes;
        let checksum = self.checksum.of(offset, content);
        layout.sections.push(Section { kind, flags, offset, bytes, checksum });
        self.out.write_chunks()
    }
}

impl Drop for TableBuilder<'_> {
    fn drop(&mut self) {
        if let Some(buffers) = &self.buffers {
            buffers.put(std::mem::take(&mut self.out.buffer));
        }
        if !self.finished {
            // Best effort: open removes files that no manifest names.
            let _ = self.fs.remove(&self.out.path);
        }
    }
}

fn put_bound(index: &mut BlockBuilder, key: &[u8], seqno: u64, offset: u64, bytes: u32) {
    let mut place = [0; 12];
    place[..8].copy_from_slice(&offset.to_le_bytes());
    place[8..].copy_from_slice(&bytes.to_le_bytes());
    index.add(key, seqno, EntryKind::Put, &place);
}

/// LZ4 with memory that is used again.
struct Compressor {
    table: CompressTable,
    scratch: Vec<u8>,
}

impl Default for Compressor {
    fn default() -> Compressor {
        Compressor { table: CompressTable::small(), scratch: Vec::new() }
    }
}

impl Compressor {
    /// Replaces what `buffer` holds from `start` on by its length and its compression, and says
    /// true, if that is smaller by an eighth at least.
    fn compress_from(&mut self, buffer: &mut Vec<u8>, start: usize) -> bool {
        let content = &buffer[start..];
        let room = get_maximum_output_size(content.len());
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
        let Ok(length) = compress_into_with_table(content, &mut self.scratch, &mut self.table)
        else {
            return false;
        };
        if length + 4 > content.len() - content.len() / 8 {
            return false;
        }
        let content_bytes = u32::try_from(content.len()).expect("blocks end below 4 GiB");
        buffer.truncate(start);
        buffer.extend_from_slice(&content_bytes.to_le_bytes());
        buffer.extend_from_slice(&self.scratch[..length]);
        true
    }
}

/// A table that is written and may not be named by the manifest yet.
#[must_use]
pub(crate) struct UnsyncedTable {
    file: Arc<dyn File>,
    path: PathBuf,
    facts: TableFacts,
}

impl UnsyncedTable {
    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.facts.bytes
    }

    /// Syncs the file, not its directory.
    pub fn sync(self) -> Result<TableFacts> {
        // Else a table that the manifest names can lack what was written (LevelDB #333).
        let _site = fs::site("table.sync");
        self.file.sync().map_err(|e| Error::io("sync", &self.path, e))?;
        Ok(self.facts)
    }
}

/// Appends to a file in chunks.
struct ChunkWriter {
    file: Arc<dyn File>,
    path: PathBuf,
    /// A power of two.
    chunk_bytes: usize,
    /// What comes after the `written` bytes.
    buffer: Vec<u8>,
    written: u64,
    reserved: u64,
}

impl ChunkWriter {
    fn position(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    fn reserve(&mut self, bytes: u64) -> Result<()> {
        self.file.allocate(bytes).map_err(|e| Error::io("allocate", &self.path, e))?;
        self.reserved = self.reserved.max(bytes);
        Ok(())
    }

    /// Writes the whole chunks that the buffer holds, up to a multiple of the chunk's size.
    #[inline]
    fn write_chunks(&mut self) -> Result<()> {
        let chunk_bytes = self.chunk_bytes;
        let missing = chunk_bytes - (self.written % chunk_bytes as u64) as usize;
        if self.buffer.len() < missing {
            return Ok(());
        }
        let whole = missing + (self.buffer.len() - missing) / chunk_bytes * chunk_bytes;
        let end = self.written + whole as u64;
        if end > self.reserved {
            self.reserve(end.next_multiple_of(RESERVED_BYTES))?;
        }
        self.write_front(whole)
    }

    fn write_front(&mut self, bytes: usize) -> Result<()> {
        write(&*self.file, &self.path, self.written, &self.buffer[..bytes])?;
        if bytes >= self.chunk_bytes {
            // The disk is busy with it while the next chunk is made, not only in the sync.
            self.file.write_back(self.written, bytes as u64);
        }
        self.written += bytes as u64;
        self.buffer.drain(..bytes);
        Ok(())
    }

    /// Writes the buffer and then `value`, without copying the value.
    fn write_through(&mut self, value: &[u8]) -> Result<()> {
        self.write_front(self.buffer.len())?;
        for chunk in value.chunks(CHUNK_BYTES) {
            write(&*self.file, &self.path, self.written, chunk)?;
            self.written += chunk.len() as u64;
        }
        Ok(())
    }

    /// Writes what is left and gives back what was reserved beyond.
    fn finish(&mut self) -> Result<()> {
        self.write_front(self.buffer.len())?;
        if self.reserved > self.written {
            // Else the blocks beyond its end stay reserved; the length is right already.
            let _site = fs::site("table.truncate");
            self.file.set_len(self.written).map_err(|e| Error::io("truncate", &self.path, e))?;
        }
        Ok(())
    }
}

fn write(file: &dyn File, path: &Path, offset: u64, data: &[u8]) -> Result<()> {
    file.write_at(offset, data).map_err(|e| Error::io("write", path, e))
}
