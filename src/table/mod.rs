//! Sorted, immutable tables.

use crate::coding::{DecodeError, Decoded, Decoder, put_bytes, put_varint};
use crate::file::{FileId, FileNumber};
use crate::key::{KEY_BYTES_MAX, SeqNo};

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

fn decode_key(decoder: &mut Decoder<'_>) -> Decoded<Box<[u8]>> {
    let key = decoder.bytes()?;
    if key.len() > KEY_BYTES_MAX {
        return Err(DecodeError("a key over 64 KiB"));
    }
    Ok(key.into())
}
