//! Reads what is left of a damaged table, block by block.
//!
//! 1. With an index, each block is where it says; a damaged block is left out, and the index has
//!    bounds for the keys in it.
//! 2. Without one (or without the directory that says where it is) blocks are found by their
//!    checksums: from the beginning of a block, the first length at which the checksum is right is
//!    its length. A block that is damaged then ends the search, since nothing says where the next
//!    one begins.
//!
//! Everything is checked as in a whole table; a sector that the disk cannot read counts as zeros.
//! The whole file is held in memory.

use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::checksum::Checksum;
use crate::coding::{DecodeError, Decoded, Decoder};
use crate::cursor::{Cursor, ValueRef};
use crate::error::{Error, ErrorKind, Result};
use crate::file::{FileHeader, FileId, FileKind, FileNumber, HEADER_BYTES};
use crate::fs::{File, Fs};
use crate::key::{self, EntryKind, SeqNo};
use crate::loss::Loss;
use crate::table::block::Block;
use crate::table::layout::{Layout, section_kind};
use crate::table::reader::{Index, decompress};
use crate::table::{CODEC_LZ4, CODEC_NONE, Origin, TRAILER_BYTES, TableFacts};

/// What cannot be read in pieces of the first size is tried in such of the second.
const PIECE_BYTES: [u64; 2] = [1 << 20, 4 << 10];

/// What is left of a table.
#[derive(Debug)]
pub(crate) struct Remains {
    /// The number in its name.
    pub number: FileNumber,
    /// Its id, as the header or whoever asked says.
    pub id: FileId,
    /// Where it belongs, if that can be read.
    pub origin: Option<Origin>,
    /// What it says of itself, if that can be read.
    pub facts: Option<TableFacts>,
    /// Blocks that can be read, in order.
    blocks: Vec<Bytes>,
    /// How many entries these have.
    pub entries: u64,
    /// What cannot be read.
    pub losses: Vec<Loss>,
}

/// Reads what is left of table `number`. `id` is what its id should be, if that is known.
///
/// # Errors
/// `Unsupported` if a newer version wrote it, and those of the file system but for failed reads.
pub(crate) fn salvage(
    fs: &dyn Fs,
    dir: &Path,
    number: FileNumber,
    id: Option<FileId>,
) -> Result<Remains> {
    let path = FileKind::Table.path(dir, number);
    let file = fs.open(&path).map_err(|e| Error::io("open", &path, e))?;
    let bytes = Bytes::from(read_what_can_be(&*file, &path)?);
    let id = match FileHeader::decode(&bytes, FileKind::Table, &path) {
        Ok(header) => header.id,
        Err(error) if *error.kind() == ErrorKind::Unsupported => return Err(error),
        Err(_) => id.unwrap_or_else(|| id_at_its_place(&bytes)),
    };
    let (blocks, losses) = (Vec::new(), Vec::new());
    let mut remains = Remains { number, id, origin: None, facts: None, blocks, entries: 0, losses };
    let mut salvage = Salvage { path, checksum: Checksum::new(id), bytes, remains: &mut remains };
    salvage.run()?;
    Ok(remains)
}

/// The id that a damaged header still has, right or not: every checksum will tell.
fn id_at_its_place(bytes: &[u8]) -> FileId {
    let id = bytes.get(16..32).and_then(|id| id.first_chunk());
    FileId(id.map_or(0, |id| u128::from_le_bytes(*id)))
}

/// The whole file, with zeros where it cannot be read.
fn read_what_can_be(file: &dyn File, path: &Path) -> Result<Vec<u8>> {
    let len = file.len().map_err(|e| Error::io("measure", path, e))?;
    let mut bytes = Vec::new();
    // A length that is wrong must not end the process.
    let reserved = bytes.try_reserve_exact(usize::try_from(len).unwrap_or(usize::MAX));
    reserved.map_err(|_| Error::io("read", path, std::io::ErrorKind::OutOfMemory.into()))?;
    bytes.resize(len as usize, 0);
    read_pieces(file, 0..len, &mut bytes, &PIECE_BYTES);
    Ok(bytes)
}

fn read_pieces(file: &dyn File, range: Range<u64>, bytes: &mut [u8], sizes: &[u64]) {
    let Some((&size, smaller)) = sizes.split_first() else { return };
    let mut at = range.start;
    while at < range.end {
        let end = (at + size).min(range.end);
        let piece = &mut bytes[at as usize..end as usize];
        if file.read_at(piece, at).is_err() {
            piece.fill(0);
            read_pieces(file, at..end, bytes, smaller);
        }
        at = end;
    }
}

struct Salvage<'a> {
    path: PathBuf,
    checksum: Checksum,
    bytes: Bytes,
    remains: &'a mut Remains,
}

impl Salvage<'_> {
    fn run(&mut self) -> Result<()> {
        let len = self.bytes.len() as u64;
        let read = |range: Range<u64>| {
            let (start, end) = (range.start as usize, range.end as usize);
            let bytes = self.bytes.get(start..end);
            bytes.ok_or_else(|| Error::corruption(&self.path, range.start, "a section", "none"))
        };
        let layout = match Layout::read(&self.path, len, self.checksum, read) {
            Ok(layout) => Some(layout),
            Err(error) if *error.kind() == ErrorKind::Unsupported => return Err(error),
            Err(_) => None,
        };
        let section = |kind| layout.as_ref().and_then(|layout| self.section(layout, kind));
        let data = layout.as_ref().map(|layout| layout.required(section_kind::DATA).range());
        let (origin, index) = (section(section_kind::ORIGIN), section(section_kind::INDEX));
        let facts = section(section_kind::PROPERTIES).and_then(|bytes| self.facts(&bytes).ok());
        self.remains.origin = origin.and_then(|bytes| Origin::decode(&bytes).ok());
        self.remains.facts = facts;
        match data.clone().zip(index).and_then(|(data, bytes)| Index::decode(bytes, data).ok()) {
            Some(index) => self.read_by_index(&index),
            None => self.read_by_checksum(data),
        }
        Ok(())
    }

    /// A section, if it is there and its checksum is right.
    fn section(&self, layout: &Layout, kind: u32) -> Option<Bytes> {
        let section = layout.find(kind)?;
        let range = section.range();
        let inside = range.end <= self.bytes.len() as u64;
        let bytes = inside.then(|| self.bytes.slice(range.start as usize..range.end as usize))?;
        (self.checksum.of(section.offset, &bytes) == section.checksum).then_some(bytes)
    }

    fn facts(&self, bytes: &[u8]) -> Decoded<TableFacts> {
        let len = self.bytes.len() as u64;
        TableFacts::decode_properties(&mut Decoder::new(bytes), self.remains.number, len)
    }

    fn read_by_index(&mut self, index: &Index) {
        let mut before = None;
        for ordinal in 0..index.count() {
            let bound = index.block().row(ordinal).map(|row| {
                let mut key = index.block().prefix().to_vec();
                row.put_suffix(&mut key, index.block().prefix().len());
                key
            });
            let place = index.place(ordinal);
            // Both were read when the index was decoded.
            let (Ok(bound), Ok(place)) = (bound, place) else { continue };
            match self.block(place.clone()) {
                Ok(block) => self.take(block, place.start),
                Err(fault) => {
                    let smallest = before.take().or_else(|| self.smallest());
                    let bytes = place.end - place.start;
                    let what = format!("a block of {bytes} bytes: {}", fault.0);
                    let keys = Some((smallest.unwrap_or_default(), bound.as_slice().into()));
                    let lost = Loss { keys, ..Loss::new(self.path.clone(), place.start, what) };
                    self.remains.losses.push(lost);
                }
            }
            before = Some(Box::from(bound));
        }
    }

    fn smallest(&self) -> Option<Box<[u8]>> {
        self.remains.facts.as_ref().map(|facts| facts.smallest.clone())
    }

    /// Reads blocks from the beginning on, each as long as its checksum says; `data` is where they
    /// lie, if that is known.
    fn read_by_checksum(&mut self, data: Option<Range<u64>>) {
        let mut at = HEADER_BYTES as u64;
        let end = data.as_ref().map_or(self.bytes.len() as u64, |data| data.end);
        let end = end.min(self.bytes.len() as u64);
        while let Some((block, next)) = self.block_at(at, end) {
            self.take(block, at);
            at = next;
        }
        // What follows the last block is the index, or a block that is damaged.
        let expected = self.remains.facts.as_ref().map(|facts| facts.entries);
        let whole =
            data.is_some_and(|data| data.end == at) || expected == Some(self.remains.entries);
        if !whole {
            let entries = expected.map_or_else(
                || format!("what follows {} entries", self.remains.entries),
                |all| format!("{} of {all} entries", all.saturating_sub(self.remains.entries)),
            );
            let what = format!("{entries}, if any: no index says where the next block is");
            let largest = self.remains.facts.as_ref().map(|facts| facts.largest.clone());
            let keys = self.last_key().or_else(|| self.smallest()).zip(largest);
            self.remains.losses.push(Loss { keys, ..Loss::new(self.path.clone(), at, what) });
        }
    }

    /// The block whose frame begins at `at`, and where it ends.
    fn block_at(&self, at: u64, end: u64) -> Option<(Bytes, u64)> {
        let rest = self.bytes.get(at as usize..end as usize)?;
        let mut growing = self.checksum.growing(at);
        for length in 1..rest.len().saturating_sub(3) {
            growing.update(&rest[length - 1..length]);
            let found = rest[length..].first_chunk().map(|found| u32::from_le_bytes(*found));
            if length >= 2 && found == Some(growing.clone().finalize()) {
                let end = at + length as u64 + 4;
                if let Ok(block) = self.block(at..end) {
                    return Some((block, end));
                }
            }
        }
        None
    }

    /// The content of the frame at this place, checked.
    fn block(&self, place: Range<u64>) -> Decoded<Bytes> {
        let inside = place.end <= self.bytes.len() as u64 && place.start <= place.end;
        let bytes = place.end.saturating_sub(place.start) as usize;
        if !inside || bytes <= TRAILER_BYTES {
            return Err(DecodeError("past the end of the file"));
        }
        let frame = self.bytes.slice(place.start as usize..place.end as usize);
        let (checked, found) = frame.split_at(bytes - 4);
        if self.checksum.of(place.start, checked).to_le_bytes() != *found {
            return Err(DecodeError("a bad checksum"));
        }
        let content = frame.slice(..bytes - TRAILER_BYTES);
        let content = match frame[bytes - TRAILER_BYTES] {
            CODEC_NONE => content,
            CODEC_LZ4 => Bytes::from(decompress(&content)?),
            _ => return Err(DecodeError("unknown codec")),
        };
        Block::new(&content)?.validate(SeqNo::MAX.0)?;
        Ok(content)
    }

    /// Takes a block over, if its entries come after those before it.
    fn take(&mut self, block: Bytes, at: u64) {
        let (Some((first, seqno)), count) = (entry_key(&block, 0), count(&block)) else { return };
        let last = self.remains.blocks.last().and_then(|last| entry_key(last, count_last(last)));
        let follows =
            last.is_none_or(|(key, last)| key::compare(&key, last, &first, seqno).is_lt());
        if follows {
            self.remains.entries += count as u64;
            self.remains.blocks.push(block);
        } else {
            let what = "a block whose entries do not follow those before it";
            self.remains.losses.push(Loss::new(self.path.clone(), at, what));
        }
    }

    fn last_key(&self) -> Option<Box<[u8]>> {
        let last = self.remains.blocks.last()?;
        entry_key(last, count_last(last)).map(|(key, _)| key.into())
    }
}

fn count(block: &[u8]) -> usize {
    Block::new(block).map_or(0, |block| block.count())
}

fn count_last(block: &[u8]) -> usize {
    count(block).saturating_sub(1)
}

/// Key and seqno of an entry of a block.
fn entry_key(block: &[u8], index: usize) -> Option<(Vec<u8>, SeqNo)> {
    let block = Block::new(block).ok()?;
    let row = block.row(index).ok()?;
    let mut key = block.prefix().to_vec();
    row.put_suffix(&mut key, block.prefix().len());
    Some((key, row.seqno))
}

/// Walks the entries that are left.
pub(crate) struct SalvageCursor {
    remains: Remains,
    /// The block and the row in it; off the end where there is no such block.
    at: (usize, usize),
    key: Vec<u8>,
    seqno: SeqNo,
    kind: EntryKind,
    value: Range<usize>,
}

impl SalvageCursor {
    /// A cursor on no entry yet.
    pub(crate) fn new(remains: Remains) -> SalvageCursor {
        let at = (remains.blocks.len(), 0);
        let (seqno, kind, value) = (SeqNo::ZERO, EntryKind::Put, 0..0);
        SalvageCursor { remains, at, key: Vec::new(), seqno, kind, value }
    }

    /// Stands on this row, or off the end.
    fn stand(&mut self, block: usize, row: usize) -> Result<()> {
        self.at = (block, row);
        let Some(bytes) = self.remains.blocks.get(block) else { return Ok(()) };
        let read = Block::new(bytes).and_then(|block| {
            let row = block.row(row)?;
            self.key.clear();
            self.key.extend_from_slice(block.prefix());
            row.put_suffix(&mut self.key, block.prefix().len());
            let start = row.value.as_ptr() as usize - bytes.as_ptr() as usize;
            (self.seqno, self.kind) = (row.seqno, row.kind);
            self.value = start..start + row.value.len();
            Ok(())
        });
        // It was validated when it was taken over.
        read.map_err(|e| Error::invalid(format!("a bug of esker: {}", e.0)))
    }

    /// The first entry that is not before (key, seqno), as block and row.
    fn bound(&self, key: &[u8], seqno: SeqNo) -> (usize, usize) {
        let before = |bytes: &Bytes, row| {
            entry_key(bytes, row).is_some_and(|(k, s)| key::compare(&k, s, key, seqno).is_lt())
        };
        let blocks = &self.remains.blocks;
        let block = blocks.partition_point(|bytes| before(bytes, count_last(bytes)));
        let rows = blocks
            .get(block)
            .map_or(0, |bytes| (0..count(bytes)).take_while(|row| before(bytes, *row)).count());
        (block, rows)
    }

    fn before(&self, (block, row): (usize, usize)) -> (usize, usize) {
        match (block, row) {
            (block, row) if row > 0 => (block, row - 1),
            (0, _) => (self.remains.blocks.len(), 0),
            (block, _) => (block - 1, count_last(&self.remains.blocks[block - 1])),
        }
    }
}

impl Cursor for SalvageCursor {
    fn valid(&self) -> bool {
        self.at.0 < self.remains.blocks.len()
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.stand(0, 0)
    }

    fn seek_to_last(&mut self) -> Result<()> {
        let (block, row) = self.before((self.remains.blocks.len(), 0));
        self.stand(block, row)
    }

    fn seek(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        let (block, row) = self.bound(key, seqno);
        self.stand(block, row)
    }

    fn seek_before(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        let (block, row) = self.before(self.bound(key, seqno));
        self.stand(block, row)
    }

    fn next(&mut self) -> Result<()> {
        let (block, row) = self.at;
        match row + 1 < count(&self.remains.blocks[block]) {
            true => self.stand(block, row + 1),
            false => self.stand(block + 1, 0),
        }
    }

    fn prev(&mut self) -> Result<()> {
        let (block, row) = self.before(self.at);
        self.stand(block, row)
    }

    fn key(&self) -> &[u8] {
        &self.key
    }

    fn seqno(&self) -> SeqNo {
        self.seqno
    }

    fn kind(&self) -> EntryKind {
        self.kind
    }

    fn value(&self) -> ValueRef<'_> {
        let block = &self.remains.blocks[self.at.0];
        ValueRef { bytes: &block[self.value.clone()], owner: Some(block) }
    }
}
