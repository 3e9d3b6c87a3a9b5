//! Sorted tables: immutable files of entries in entry order.
//!
//! - `mod`: the file format, and the facts of a table that the manifest repeats.
//! - `layout`: the directory of sections and the footer.
//! - `block`: the encoding of data blocks and of the index.
//! - `filter`: tells that a table does not have a key.
//! - `cache`: decompressed blocks, and blocks read with `pread`.
//! - `builder`: writes a table.
//! - `reader`: opens one, looks up keys, verifies it.
//! - `cursor`: walks one.
//! - `salvage`: reads what is left of a damaged one.
//! - `dump`: describes one as text.
//!
//! ```text
//! header        128 bytes, see crate::file
//! data          data blocks, one after the other, each in a frame
//! index         one block, see below
//! filter        absent if the table has none; see table/filter.rs; optional
//! properties    see below
//! origin        see below; optional
//! directory
//! footer        32 bytes
//!
//! frame         content: a block as table/block.rs draws it, or with codec 1 its length as u32
//!               and then its LZ4 compression
//!               codec u8: 0 none, 1 LZ4
//!               checksum u32 of content and codec, bound to (file id, offset of the frame)
//!
//! index         a block with a row for each data block, in their order
//!                 key, seqno   a bound: at or after the last entry of the block, and before the
//!                              first entry of the next one. Where the next block begins with
//!                              another user key, the shortest prefix of that key that is greater
//!                              than this block's last key, with seqno 2^56: before all of its
//!                              versions. In the last row, the last key and a zero byte, with seqno
//!                              2^56. Otherwise, or if that were too long a key, the last entry.
//!                 kind         PUT
//!                 value        offset u64 and length u32 of the block's frame
//!
//! properties    id of the file u128, then as varints: entries, tombstones, operands, smallest seqno,
//!               largest seqno, raw bytes; then smallest and largest user key as bytes
//!
//! origin        where the table belongs, for a repair that has lost the manifest: keyspace varint, its
//!               name as bytes, 1 byte: 1 if the name of its merge operator as bytes follows, else 0;
//!               count of inputs varint, then each as varint: numbers of the files (tables, or logs)
//!               whose contents the table took over. If one of them is gone, the table was
//!               installed, and those that are left are superseded; if all are there, it may be
//!               one that nobody installed, and is not needed.
//!
//! directory     count u32, then for each section in the order of the file:
//!                 kind u32       1 data, 2 index, 3 properties, 4 filter, 5 origin
//!                 flags u32      bit 0 = optional: readers that do not know the kind ignore it;
//!                                unknown sections without it are refused
//!                 offset u64     the first one is 128, the others begin where the one before ends
//!                 bytes u64
//!                 checksum u32   of the section, bound to its offset; 0 for data
//!
//! footer        offset of the directory u64, bytes of the directory u32, its checksum u32, zero u32
//!               checksum u32 of the 20 bytes before, bound to the footer's offset
//!               magic "eskerEND"
//! ```
//!
//! There is no padding: every byte is either under a checksum or compared with a constant.

#[cfg(feature = "testing")]
pub mod bench;
pub(crate) mod block;
pub(crate) mod buffers;
pub(crate) mod builder;
pub(crate) mod cache;
pub(crate) mod cursor;
pub(crate) mod dump;
pub(crate) mod filter;
mod fuse;
pub(crate) mod layout;
pub(crate) mod reader;
pub(crate) mod salvage;

pub(crate) use crate::table::buffers::Buffers;
pub(crate) use crate::table::cache::BlockCache;
pub(crate) use crate::table::reader::Table;

#[cfg(test)]
mod tests;

use crate::coding::{DecodeError, Decoded, Decoder, put_bytes, put_varint};
use crate::file::{FileId, FileNumber};
use crate::key::{KEY_BYTES_MAX, KeyspaceId, SeqNo};
use crate::options::Filter;

/// The seqno of an index bound that comes before all versions of its key; above every real one.
pub(crate) const SEQNO_BEFORE_ALL: u64 = SeqNo::MAX.0 + 1;
/// Bytes that follow a block's content in its frame.
pub(crate) const TRAILER_BYTES: usize = 5;
/// Frame codec: the content is the block. On disk: never renumber.
pub(crate) const CODEC_NONE: u8 = 0;
/// Frame codec: the block's length as u32, then its LZ4 compression. On disk: never renumber.
pub(crate) const CODEC_LZ4: u8 = 1;

/// How tables are built.
#[derive(Clone, Debug)]
pub(crate) struct TableConfig {
    /// A data block is closed before it would be larger than this, uncompressed.
    pub block_bytes: usize,
    /// Compress the blocks that shrink by an eighth or more.
    pub lz4: bool,
    /// The kind of the filter.
    pub filter: Filter,
}

/// What is known of a table without opening it; the manifest records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableFacts {
    /// The number in its name.
    pub number: FileNumber,
    /// The id in its header.
    pub id: FileId,
    /// The file's length.
    pub bytes: u64,
    /// How many entries it has, at least 1.
    pub entries: u64,
    /// How many of them are tombstones.
    pub tombstones: u64,
    /// How many of them are operands.
    pub operands: u64,
    /// The smallest user key, which the table has.
    pub smallest: Box<[u8]>,
    /// The largest user key, which the table has.
    pub largest: Box<[u8]>,
    /// The smallest seqno.
    pub seqno_min: SeqNo,
    /// The largest seqno.
    pub seqno_max: SeqNo,
    /// Bytes of keys and values as the user wrote them.
    pub raw_bytes: u64,
}

impl TableFacts {
    /// Appends number and length as varints, then the properties.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.number.0);
        put_varint(out, self.bytes);
        self.encode_properties(out);
    }

    /// Reads what [`TableFacts::encode`] wrote.
    pub fn decode(decoder: &mut Decoder<'_>) -> Decoded<TableFacts> {
        let number = FileNumber(decoder.varint()?);
        let bytes = decoder.varint()?;
        TableFacts::decode_properties(decoder, number, bytes)
    }

    /// Appends what the file itself records: everything but its name and length.
    pub fn encode_properties(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.0.to_le_bytes());
        let numbers = [self.entries, self.tombstones, self.operands];
        let sizes = [self.seqno_min.0, self.seqno_max.0, self.raw_bytes];
        for number in numbers.into_iter().chain(sizes) {
            put_varint(out, number);
        }
        put_bytes(out, &self.smallest);
        put_bytes(out, &self.largest);
    }

    /// Reads what [`TableFacts::encode_properties`] wrote.
    pub fn decode_properties(
        decoder: &mut Decoder<'_>,
        number: FileNumber,
        bytes: u64,
    ) -> Decoded<TableFacts> {
        let facts = TableFacts {
            number,
            bytes,
            id: FileId(decoder.u128()?),
            entries: decoder.varint()?,
            tombstones: decoder.varint()?,
            operands: decoder.varint()?,
            seqno_min: SeqNo(decoder.varint()?),
            seqno_max: SeqNo(decoder.varint()?),
            raw_bytes: decoder.varint()?,
            smallest: decode_key(decoder)?,
            largest: decode_key(decoder)?,
        };
        facts.check()?;
        Ok(facts)
    }

    /// Facts that no table can have are damage.
    fn check(&self) -> Decoded<()> {
        if self.smallest > self.largest {
            return Err(DecodeError("a smallest key above the largest"));
        }
        if self.seqno_min > self.seqno_max || self.seqno_max > SeqNo::MAX {
            return Err(DecodeError("seqnos out of order or over 56 bits"));
        }
        let known = self.tombstones.checked_add(self.operands);
        if self.entries == 0 || known.is_none_or(|known| known > self.entries) {
            return Err(DecodeError("fewer entries than tombstones and operands"));
        }
        Ok(())
    }
}

/// Where a table belongs, as the table itself says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// Its name.
    pub name: String,
    /// The name of its merge operator.
    pub operator: Option<String>,
    /// The files whose contents it took over.
    pub inputs: Vec<FileNumber>,
}

impl Origin {
    /// Appends the bytes of the section.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, u64::from(self.keyspace.0));
        put_bytes(out, self.name.as_bytes());
        out.push(u8::from(self.operator.is_some()));
        if let Some(operator) = &self.operator {
            put_bytes(out, operator.as_bytes());
        }
        put_varint(out, self.inputs.len() as u64);
        for input in &self.inputs {
            put_varint(out, input.0);
        }
    }

    /// Reads what [`Origin::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Decoded<Origin> {
        let mut decoder = Decoder::new(bytes);
        let text = |bytes: &[u8]| {
            let text = std::str::from_utf8(bytes).map(str::to_string);
            text.map_err(|_| DecodeError("a name that is not UTF-8"))
        };
        let keyspace = KeyspaceId(decoder.varint_u32()?);
        let name = text(decoder.bytes()?)?;
        let operator = match decoder.u8()? {
            0 => None,
            1 => Some(text(decoder.bytes()?)?),
            _ => return Err(DecodeError("a flag that is neither 0 nor 1")),
        };
        let count = decoder.varint()?;
        // Each takes a byte at least, so no more is allocated than is there.
        if count > decoder.rest().len() as u64 {
            return Err(DecodeError("more inputs than bytes"));
        }
        let inputs = (0..count).map(|_| decoder.varint().map(FileNumber));
        let inputs = inputs.collect::<Decoded<Vec<FileNumber>>>()?;
        decoder.finish()?;
        Ok(Origin { keyspace, name, operator, inputs })
    }
}

fn decode_key(decoder: &mut Decoder<'_>) -> Decoded<Box<[u8]>> {
    let key = decoder.bytes()?;
    if key.len() > KEY_BYTES_MAX {
        return Err(DecodeError("a key over 64 KiB"));
    }
    Ok(key.into())
}
