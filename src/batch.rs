//! An atomic batch of operations: the payload of a commit record, encoded once for the log, the
//! memtable and recovery.
//!
//! ```text
//! payload    section, section, …; the operations come first, and once
//!
//! section
//!   kind     1 byte: 1 operations, 2 tokens of idempotent commits, 3 offsets of consumers,
//!            4 participants of a batch across shards
//!   length   varint
//!   bytes
//!
//! operations: one after the other, each taking the next seqno
//!   kind     1 byte: 1 put, 2 delete, 3 merge (key.rs)
//!   keyspace varint, at most 32 bits
//!   key      varint length, bytes
//!   value    varint length, bytes; not for a delete
//! ```
//!
//! participants: one after the other, by rising shard; at the end of the payload
//!   shard    4 bytes LE: number of a shard (file.rs)
//!   LSN      8 bytes LE: where the record of this commit begins in that shard's log
//!
//! Each shard has a record of its own of a batch across shards, with its own operations and the same
//! participants, itself included. They are of fixed size, since they are written under the commit
//! locks, where the positions are given out; the payload's checksum is continued over them there.
//!
//! Readers refuse sections of unknown kinds below 128 and skip those from 128 on.
//!
//! Worked example: `put` of key "k" with value "v" in keyspace 0, and `delete` of "k" in 1:
//!
//! ```text
//! 01 0a  01 00 01 6b 01 76  02 01 01 6b
//! ```
//!
//! The same batch across shards 0 and 2, at LSN 64 of the one and 512 of the other, goes on with:
//!
//! ```text
//! 04 18  00 00 00 00  40 00 00 00 00 00 00 00  02 00 00 00  00 02 00 00 00 00 00 00
//! ```

use crate::checksum;
use crate::coding::{DecodeError, Decoded, Decoder, put_bytes, put_varint, varint_len};
use crate::file::{Lsn, ShardNumber};
use crate::key::{EntryKind, KEY_BYTES_MAX, KeyspaceId, VALUE_BYTES_MAX};

/// Kinds of sections. On disk: never renumber.
pub(crate) mod section {
    /// The operations.
    pub(crate) const OPERATIONS: u8 = 1;
    /// Tokens of idempotent commits.
    pub(crate) const TOKENS: u8 = 2;
    /// Offsets of consumers of an ingest queue.
    pub(crate) const OFFSETS: u8 = 3;
    /// Participants of a batch across shards.
    pub(crate) const PARTICIPANTS: u8 = 4;
    /// Sections of unknown kinds from here on are skipped.
    pub(crate) const SKIPPABLE: u8 = 128;
}

/// Room that a builder leaves in front of the payload for the header of its record.
pub(crate) const RECORD_HEADER_ROOM: usize = 32;
/// The region that a payload lies in is padded with zeros to a multiple of so many bytes.
const ALIGNMENT: usize = 8;
/// A section's kind and the longest varint of a length below 2^35.
const SECTION_HEADER_BYTES_MAX: usize = 1 + 5;
/// Bytes in front of the first operation.
const ROOM: usize = RECORD_HEADER_ROOM + SECTION_HEADER_BYTES_MAX;
/// Enough in one piece for the kind, the keyspace and both lengths of an operation.
const OPERATION_OVERHEAD_MAX: usize = 1 + 5 + 3 + 5;

/// Bytes of a participant: shard and LSN.
const PARTICIPANT_BYTES: usize = 4 + 8;

/// Where a batch across shards has its record in one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Participant {
    pub shard: ShardNumber,
    /// Where its record begins in that shard's log.
    pub lsn: Lsn,
}

/// Collects operations in one buffer, with room in front for the headers of section and record,
/// so that the finished record is stored from that buffer in one piece. Reused after
/// [`BatchBuilder::clear`], it does not allocate.
///
/// ```text
/// buffer: [room 38][operations][other sections][zeros to a multiple of 8]
///          finish() puts the section's header, 2 to 6 bytes, right before the operations;
///          the 32 bytes before that are for the record's header
/// ```
#[derive(Clone, Debug)]
pub(crate) struct BatchBuilder {
    buffer: Vec<u8>,
    /// The other sections with their headers; they follow the operations when finished.
    sections: Vec<u8>,
    /// Where the operations end in `buffer`; what lies behind is of an earlier `finish`.
    operations_end: usize,
    count: u32,
}

impl Default for BatchBuilder {
    fn default() -> BatchBuilder {
        BatchBuilder::new()
    }
}

/// A finished batch: the region `[header room 32][payload][zeros to a multiple of 8]`.
#[derive(Debug)]
pub(crate) struct Payload<'a> {
    region: &'a mut [u8],
    payload_bytes: u32,
    count: u32,
    /// Of the payload, without the participants that are still to be set.
    checksum: u32,
    /// How many participants are to be set at the payload's end.
    participants: usize,
}

impl BatchBuilder {
    /// An empty batch.
    #[must_use]
    pub(crate) fn new() -> BatchBuilder {
        let buffer = vec![0; ROOM];
        BatchBuilder { buffer, sections: Vec::new(), operations_end: ROOM, count: 0 }
    }

    /// Adds a put. Key and value must be within the limits of key.rs.
    #[inline]
    pub(crate) fn put(&mut self, keyspace: KeyspaceId, key: &[u8], value: &[u8]) {
        self.push(EntryKind::Put, keyspace, key, Some(value));
    }

    /// Adds a delete. The key must be within the limits of key.rs.
    #[inline]
    pub(crate) fn delete(&mut self, keyspace: KeyspaceId, key: &[u8]) {
        self.push(EntryKind::Delete, keyspace, key, None);
    }

    /// Adds an operand. Key and operand must be within the limits of key.rs.
    #[inline]
    pub(crate) fn merge(&mut self, keyspace: KeyspaceId, key: &[u8], operand: &[u8]) {
        self.push(EntryKind::Merge, keyspace, key, Some(operand));
    }

    #[inline]
    fn push(&mut self, kind: EntryKind, keyspace: KeyspaceId, key: &[u8], value: Option<&[u8]>) {
        assert!(key.len() <= KEY_BYTES_MAX, "callers check the length of keys");
        let value_bytes = value.map_or(0, <[u8]>::len);
        assert!(value_bytes <= VALUE_BYTES_MAX, "callers check the length of values");
        self.buffer.truncate(self.operations_end);
        self.buffer.reserve(OPERATION_OVERHEAD_MAX + key.len() + value_bytes);
        self.buffer.push(kind as u8);
        put_varint(&mut self.buffer, u64::from(keyspace.0));
        put_bytes(&mut self.buffer, key);
        if let Some(value) = value {
            put_bytes(&mut self.buffer, value);
        }
        self.operations_end = self.buffer.len();
        self.count += 1;
    }

    /// Adds a section of another kind than operations. Not counted by [`BatchBuilder::len`].
    #[cfg_attr(not(test), expect(dead_code, reason = "room in the format: tokens and offsets"))]
    pub(crate) fn section(&mut self, kind: u8, bytes: &[u8]) {
        assert!(is_known(kind) && kind != section::OPERATIONS, "section kind {kind}");
        self.sections.push(kind);
        put_bytes(&mut self.sections, bytes);
    }

    /// How many operations the batch has.
    #[inline]
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.count as usize
    }

    /// True if the batch has neither operations nor sections.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0 && self.sections.is_empty()
    }

    /// Bytes of the payload as it stands.
    #[inline]
    #[must_use]
    pub(crate) fn bytes(&self) -> usize {
        let operations = self.operations_end - ROOM;
        1 + varint_len(operations as u64) + operations + self.sections.len()
    }

    /// Empties the batch and keeps its buffers.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.buffer.truncate(ROOM);
        self.sections.clear();
        self.operations_end = ROOM;
        self.count = 0;
    }

    /// Adds the operations of another batch.
    pub(crate) fn append(&mut self, other: &BatchBuilder) {
        self.buffer.truncate(self.operations_end);
        self.buffer.extend_from_slice(&other.buffer[ROOM..other.operations_end]);
        self.operations_end = self.buffer.len();
        self.count += other.count;
    }

    /// The operations between two positions, as a batch of their own.
    pub(crate) fn piece(&self, from: (usize, u32), to: (usize, u32)) -> BatchBuilder {
        let mut piece = BatchBuilder::new();
        piece.buffer.extend_from_slice(&self.buffer[from.0..to.0]);
        piece.operations_end = piece.buffer.len();
        piece.count = to.1 - from.1;
        piece
    }

    /// Where the batch stands, for [`BatchBuilder::rewind`].
    pub(crate) fn position(&self) -> (usize, u32) {
        (self.operations_end, self.count)
    }

    /// Takes back the operations that were added since `position`.
    pub(crate) fn rewind(&mut self, (operations_end, count): (usize, u32)) {
        assert!(operations_end <= self.operations_end && count <= self.count, "goes back only");
        self.operations_end = operations_end;
        self.count = count;
    }

    /// Lets go of buffers larger than this, for builders that are kept for reuse.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        self.buffer.shrink_to(bytes);
        self.sections.shrink_to(bytes);
    }

    /// The batch as it is written. It may be added to and finished again.
    ///
    /// The payload must be shorter than 2 GiB: callers limit batches by [`BatchBuilder::bytes`].
    #[inline]
    pub(crate) fn finish(&mut self) -> Payload<'_> {
        self.finish_for(0)
    }

    /// The batch as one of the parts of a batch across so many shards, which are still to be set; as
    /// [`BatchBuilder::finish`] for none.
    pub(crate) fn finish_for(&mut self, participants: usize) -> Payload<'_> {
        let mut payload_bytes = self.bytes();
        self.buffer.truncate(self.operations_end);
        self.buffer.extend_from_slice(&self.sections);
        let open_bytes = participants * PARTICIPANT_BYTES;
        if participants > 0 {
            self.buffer.push(section::PARTICIPANTS);
            put_varint(&mut self.buffer, open_bytes as u64);
            payload_bytes += 1 + varint_len(open_bytes as u64) + open_bytes;
        }
        assert!(payload_bytes < 1 << 31, "callers limit the length of batches");

        let operations_bytes = (self.operations_end - ROOM) as u64;
        let payload_start = ROOM - 1 - varint_len(operations_bytes);
        self.buffer[payload_start] = section::OPERATIONS;
        write_varint(&mut self.buffer[payload_start + 1..ROOM], operations_bytes);

        let region_bytes = (RECORD_HEADER_ROOM + payload_bytes).next_multiple_of(ALIGNMENT);
        let region_start = payload_start - RECORD_HEADER_ROOM;
        self.buffer.resize(region_start + region_bytes, 0);
        let region = &mut self.buffer[region_start..];
        let closed = &region[RECORD_HEADER_ROOM..][..payload_bytes - open_bytes];
        let checksum = checksum::unbound(closed);
        let payload_bytes = payload_bytes as u32;
        Payload { region, payload_bytes, count: self.count, checksum, participants }
    }
}

/// Writes `value` as a varint that fills `out` exactly.
#[inline]
fn write_varint(out: &mut [u8], mut value: u64) {
    let last = out.len() - 1;
    for byte in &mut out[..last] {
        *byte = value as u8 | 0x80;
        value >>= 7;
    }
    debug_assert!(value < 0x80);
    out[last] = value as u8;
}

impl Payload<'_> {
    /// The payload.
    #[must_use]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.region[RECORD_HEADER_ROOM..][..self.payload_bytes as usize]
    }

    /// Length of the payload, without room and padding.
    #[must_use]
    pub(crate) fn payload_bytes(&self) -> u32 {
        self.payload_bytes
    }

    /// How many operations it has, and so how many seqnos it takes.
    #[must_use]
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// CRC-32 of the payload.
    #[must_use]
    pub(crate) fn checksum(&self) -> u32 {
        debug_assert_eq!(self.participants, 0, "not before the participants are set");
        self.checksum
    }

    /// Says where the parts of a batch across shards are, by rising shard.
    pub(crate) fn set_participants(&mut self, participants: &[Participant]) {
        assert_eq!(participants.len(), self.participants, "as many as there is room for");
        let end = RECORD_HEADER_ROOM + self.payload_bytes as usize;
        let open = &mut self.region[end - participants.len() * PARTICIPANT_BYTES..end];
        for (out, Participant { shard, lsn }) in
            open.chunks_exact_mut(PARTICIPANT_BYTES).zip(participants)
        {
            out[..4].copy_from_slice(&shard.0.to_le_bytes());
            out[4..].copy_from_slice(&lsn.0.to_le_bytes());
        }
        self.checksum = checksum::unbound_from(self.checksum, open);
        self.participants = 0;
    }

    /// Puts the record's header in front of the payload.
    #[inline]
    pub(crate) fn set_header(&mut self, header: &[u8; RECORD_HEADER_ROOM]) {
        self.region[..RECORD_HEADER_ROOM].copy_from_slice(header);
    }

    /// Header, payload and padding: what is stored in the log.
    #[must_use]
    pub(crate) fn region(&self) -> &[u8] {
        self.region
    }
}

/// The participants of a payload that was written across shards; `None` of any other.
///
/// # Errors
/// As [`Operations::new`], and if the participants are not as the module's comment says.
pub(crate) fn participants(payload: &[u8]) -> Decoded<Option<Vec<Participant>>> {
    let mut found = None;
    for section in Sections::new(payload) {
        let (kind, bytes) = section?;
        if kind != section::PARTICIPANTS {
            continue;
        }
        let (all, rest) = bytes.as_chunks::<PARTICIPANT_BYTES>();
        if found.is_some() || all.len() < 2 || !rest.is_empty() {
            return Err(DecodeError("participants that are none"));
        }
        let participant = |bytes: &[u8; PARTICIPANT_BYTES]| Participant {
            shard: ShardNumber(u32::from_le_bytes(bytes[..4].try_into().expect("4"))),
            lsn: Lsn(u64::from_le_bytes(bytes[4..].try_into().expect("8"))),
        };
        let all: Vec<Participant> = all.iter().map(participant).collect();
        if !all.is_sorted_by(|a, b| a.shard < b.shard) {
            return Err(DecodeError("participants out of order"));
        }
        found = Some(all);
    }
    Ok(found)
}

/// An operation of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation<'a> {
    /// The keyspace it goes to.
    pub keyspace: KeyspaceId,
    /// What it does.
    pub kind: EntryKind,
    /// The user key.
    pub key: &'a [u8],
    /// The value or operand; empty for a delete.
    pub value: &'a [u8],
}

/// The operations of a payload, in order.
///
/// After an error the iterator ends.
#[derive(Clone, Debug)]
pub(crate) struct Operations<'a> {
    decoder: Decoder<'a>,
}

impl<'a> Operations<'a> {
    /// The operations of `payload`.
    ///
    /// # Errors
    /// If the sections are not well-formed, or one is of an unknown kind below 128. Each
    /// operation is checked only as it is read.
    pub(crate) fn new(payload: &'a [u8]) -> Decoded<Operations<'a>> {
        let mut operations = None;
        for section in Sections::new(payload) {
            let (kind, bytes) = section?;
            match (kind, operations) {
                (section::OPERATIONS, None) => operations = Some(bytes),
                (section::OPERATIONS, Some(_)) => {
                    return Err(DecodeError("a second section of operations"));
                }
                (_, None) => return Err(DecodeError("a section before the operations")),
                (_, Some(_)) => {}
            }
        }
        let bytes = operations.ok_or(DecodeError("a batch without operations"))?;
        Ok(Operations { decoder: Decoder::new(bytes) })
    }

    /// How many operations follow; every one of them is checked.
    pub(crate) fn count_checked(&self) -> Decoded<u32> {
        let mut count = 0u32;
        for operation in self.clone() {
            operation?;
            count = count.checked_add(1).ok_or(DecodeError("over 2^32 operations"))?;
        }
        Ok(count)
    }

    fn read(&mut self) -> Decoded<Operation<'a>> {
        let decoder = &mut self.decoder;
        let Some(kind) = EntryKind::from_u8(decoder.u8()?) else {
            return Err(DecodeError("an operation of an unknown kind"));
        };
        let keyspace = KeyspaceId(decoder.varint_u32()?);
        let key = decoder.bytes()?;
        if key.len() > KEY_BYTES_MAX {
            return Err(DecodeError("a key over its limit"));
        }
        let value = match kind {
            EntryKind::Put | EntryKind::Merge => decoder.bytes()?,
            EntryKind::Delete => &[],
        };
        if value.len() > VALUE_BYTES_MAX {
            return Err(DecodeError("a value over its limit"));
        }
        Ok(Operation { keyspace, kind, key, value })
    }
}

impl<'a> Iterator for Operations<'a> {
    type Item = Decoded<Operation<'a>>;

    #[inline]
    fn next(&mut self) -> Option<Decoded<Operation<'a>>> {
        if self.decoder.is_empty() {
            return None;
        }
        let operation = self.read();
        if operation.is_err() {
            self.decoder = Decoder::new(&[]);
        }
        Some(operation)
    }
}

/// The sections of a payload in order, as (kind, bytes), without those that are to be skipped.
///
/// After an error the iterator ends.
#[derive(Clone, Debug)]
pub(crate) struct Sections<'a> {
    decoder: Decoder<'a>,
}

/// Kinds that this version knows.
fn is_known(kind: u8) -> bool {
    matches!(kind, section::OPERATIONS | section::TOKENS | section::OFFSETS | section::PARTICIPANTS)
}

impl<'a> Sections<'a> {
    /// The sections of `payload`.
    #[must_use]
    pub(crate) fn new(payload: &'a [u8]) -> Sections<'a> {
        Sections { decoder: Decoder::new(payload) }
    }

    fn read(&mut self) -> Decoded<(u8, &'a [u8])> {
        let kind = self.decoder.u8()?;
        if !is_known(kind) && kind < section::SKIPPABLE {
            return Err(DecodeError("a section of an unknown kind"));
        }
        Ok((kind, self.decoder.bytes()?))
    }
}

impl<'a> Iterator for Sections<'a> {
    type Item = Decoded<(u8, &'a [u8])>;

    fn next(&mut self) -> Option<Decoded<(u8, &'a [u8])>> {
        while !self.decoder.is_empty() {
            match self.read() {
                Ok((kind, _)) if kind >= section::SKIPPABLE => {}
                Ok(section) => return Some(Ok(section)),
                Err(error) => {
                    self.decoder = Decoder::new(&[]);
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Owned = (u32, EntryKind, Vec<u8>, Vec<u8>);

    fn owned(operation: Operation<'_>) -> Owned {
        let Operation { keyspace, kind, key, value } = operation;
        (keyspace.0, kind, key.to_vec(), value.to_vec())
    }

    fn add(builder: &mut BatchBuilder, operation: &Owned) {
        let (keyspace, kind, key, value) = operation;
        match kind {
            EntryKind::Put => builder.put(KeyspaceId(*keyspace), key, value),
            EntryKind::Delete => builder.delete(KeyspaceId(*keyspace), key),
            EntryKind::Merge => builder.merge(KeyspaceId(*keyspace), key, value),
        }
    }

    fn random_operation(rng: &mut fastrand::Rng) -> Owned {
        let bytes = |rng: &mut fastrand::Rng, long: usize| {
            let len = if rng.u8(..20) == 0 { rng.usize(..long) } else { rng.usize(..20) };
            (0..len).map(|_| rng.u8(..)).collect::<Vec<u8>>()
        };
        let kind = rng.choice([EntryKind::Put, EntryKind::Delete, EntryKind::Merge]).unwrap();
        let key = bytes(rng, 300);
        let value = if kind == EntryKind::Delete { Vec::new() } else { bytes(rng, 20_000) };
        (rng.u32(..) >> rng.u32(..32), kind, key, value)
    }

    /// A region is what a record of the payload looks like, apart from the header.
    fn check_region(payload: &Payload<'_>) {
        let region = payload.region();
        assert!(region.len().is_multiple_of(ALIGNMENT));
        let end = RECORD_HEADER_ROOM + payload.bytes().len();
        assert!(region.len() - end < ALIGNMENT);
        assert_eq!(&region[RECORD_HEADER_ROOM..end], payload.bytes());
        assert!(region[end..].iter().all(|&byte| byte == 0), "padding");
        assert_eq!(payload.checksum(), checksum::unbound(payload.bytes()));
    }

    #[test]
    fn the_example_of_the_module_comment() {
        let mut builder = BatchBuilder::new();
        builder.put(KeyspaceId(0), b"k", b"v");
        builder.delete(KeyspaceId(1), b"k");
        let drawn = [1, 0x0a, 1, 0, 1, b'k', 1, b'v', 2, 1, 1, b'k'];
        assert_eq!(builder.finish().bytes(), drawn);
    }

    fn across_shards() -> Vec<Participant> {
        let participant = |(shard, lsn)| Participant { shard: ShardNumber(shard), lsn: Lsn(lsn) };
        [(0, 64), (2, 512)].map(participant).to_vec()
    }

    #[test]
    fn participants_are_as_the_module_comment_draws_them() {
        let mut builder = BatchBuilder::new();
        builder.put(KeyspaceId(0), b"k", b"v");
        builder.delete(KeyspaceId(1), b"k");
        let alone = builder.finish().bytes().to_vec();
        assert_eq!(participants(&alone), Ok(None));
        let mut payload = builder.finish_for(2);
        payload.set_participants(&across_shards());
        check_region(&payload);
        assert_eq!(participants(payload.bytes()), Ok(Some(across_shards())));
        let (operations, section) = payload.bytes().split_at(alone.len());
        assert_eq!(operations, alone);
        let drawn =
            [4, 0x18, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0];
        assert_eq!(section, drawn, "{section:02x?}");
        assert_eq!(builder.finish().bytes(), alone, "it may be finished again");
    }

    #[test]
    fn participants_that_are_none_are_refused() {
        let section = |shards: &[u32]| {
            let mut payload = vec![section::OPERATIONS, 0, section::PARTICIPANTS];
            put_varint(&mut payload, 12 * shards.len() as u64);
            for shard in shards {
                payload.extend(shard.to_le_bytes());
                payload.extend([0; 8]);
            }
            payload
        };
        assert!(participants(&section(&[1, 2, 7])).unwrap().is_some());
        for shards in [&[][..], &[1], &[2, 1], &[1, 1]] {
            assert!(participants(&section(shards)).is_err(), "{shards:?}");
        }
        let twice = [section(&[1, 2]), section(&[1, 2])[2..].to_vec()].concat();
        assert!(participants(&twice).is_err());
        let mut short = section(&[1, 2]);
        short[3] = 23;
        short.pop();
        assert!(participants(&short).is_err());
    }

    #[test]
    fn random_batches_round_trip_in_one_reused_builder() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut builder = BatchBuilder::new();
        for _ in 0..200 {
            builder.clear();
            assert!(builder.is_empty());
            let count = rng.usize(..40);
            let operations: Vec<Owned> = (0..count).map(|_| random_operation(&mut rng)).collect();
            for operation in &operations {
                add(&mut builder, operation);
                if rng.u8(..8) == 0 {
                    check_region(&builder.finish());
                }
            }
            let with_section = rng.bool();
            if with_section {
                builder.section(section::OFFSETS, b"offset");
            }
            let bytes = builder.bytes();
            assert_eq!(builder.len(), count);
            let payload = builder.finish();
            check_region(&payload);
            assert_eq!(payload.bytes().len(), bytes);
            assert_eq!(payload.payload_bytes() as usize, bytes);
            assert_eq!(payload.count() as usize, count);
            let read = Operations::new(payload.bytes()).unwrap();
            assert_eq!(read.count_checked(), Ok(count as u32));
            let read: Vec<Owned> = read.map(|operation| owned(operation.unwrap())).collect();
            assert_eq!(read, operations);
            let mut others = Sections::new(payload.bytes()).skip(1);
            let expected = with_section.then_some(Ok((section::OFFSETS, &b"offset"[..])));
            assert_eq!(others.next(), expected);
            assert_eq!(others.next(), None);
        }
    }

    #[test]
    fn what_is_taken_back_was_never_there() {
        let mut builder = BatchBuilder::new();
        builder.put(KeyspaceId(0), b"k", b"v");
        let alone = builder.finish().bytes().to_vec();
        let position = builder.position();
        builder.delete(KeyspaceId(1), b"l");
        builder.finish();
        let (end, mut whole) = (builder.position(), BatchBuilder::new());
        let first = builder.piece(BatchBuilder::new().position(), position);
        whole.append(&first);
        whole.append(&builder.piece(position, end));
        assert_eq!(whole.finish().bytes(), builder.finish().bytes());
        builder.rewind(position);
        assert_eq!(builder.len(), 1);
        assert_eq!(builder.finish().bytes(), alone);
    }

    #[test]
    fn a_reused_builder_does_not_allocate() {
        let mut builder = BatchBuilder::new();
        builder.put(KeyspaceId(0), b"key", &[7; 100]);
        builder.finish();
        let before = (builder.buffer.as_ptr(), builder.buffer.capacity());
        for _ in 0..10 {
            builder.clear();
            builder.put(KeyspaceId(0), b"yek", &[8; 100]);
            builder.finish();
        }
        assert_eq!((builder.buffer.as_ptr(), builder.buffer.capacity()), before);
    }

    #[test]
    fn the_section_length_takes_one_to_five_bytes() {
        for value_bytes in [0, 100, 127, 128, 16_000, 17_000, 3 << 20] {
            let value = vec![3; value_bytes];
            let mut builder = BatchBuilder::new();
            builder.put(KeyspaceId(1), b"key", &value);
            let payload = builder.finish();
            check_region(&payload);
            let operation = Operations::new(payload.bytes()).unwrap().next().unwrap().unwrap();
            assert_eq!(operation.value, value);
        }
    }

    #[test]
    fn every_cut_and_every_flipped_bit_decodes_or_fails_without_a_panic() {
        let mut builder = BatchBuilder::new();
        builder.put(KeyspaceId(300), b"key", b"value");
        builder.merge(KeyspaceId(0), b"counter", &[1; 8]);
        builder.delete(KeyspaceId(2), b"");
        builder.section(section::TOKENS, b"token");
        let bytes = builder.finish().bytes().to_vec();
        let operations_end = bytes.len() - 7;
        for cut in 0..bytes.len() {
            let whole = cut == operations_end;
            assert_eq!(Operations::new(&bytes[..cut]).is_ok(), whole, "cut {cut}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(operations) = Operations::new(&bytes) {
                assert!(operations.count_checked().unwrap_or(0) < 100);
            }
        }
    }

    #[test]
    fn malformed_payloads_are_refused() {
        let refuse = |payload: &[u8], why: &str| {
            let result = Operations::new(payload).and_then(|operations| operations.count_checked());
            assert_eq!(result, Err(DecodeError(Box::leak(why.to_string().into_boxed_str()))));
        };
        refuse(&[], "a batch without operations");
        refuse(&[1, 0, 1, 0], "a second section of operations");
        refuse(&[2, 0, 1, 0], "a section before the operations");
        refuse(&[1, 0, 5, 0], "a section of an unknown kind");
        refuse(&[1, 0, 0, 0], "a section of an unknown kind");
        refuse(&[1, 1], "length past the end");
        refuse(&[1, 1, 4], "an operation of an unknown kind");
        refuse(&[1, 3, 2, 0, 1], "length past the end");
        let mut long = vec![2, 0];
        put_bytes(&mut long, &vec![0; KEY_BYTES_MAX + 1]);
        let mut payload = vec![section::OPERATIONS];
        put_bytes(&mut payload, &long);
        refuse(&payload, "a key over its limit");
        let skipped = [1, 4, 2, 0, 1, b'k', 128, 2, 9, 9];
        assert_eq!(Operations::new(&skipped).unwrap().count_checked(), Ok(1));
    }

    #[test]
    fn an_iterator_ends_after_its_first_error() {
        let payload = [1, 3, 9, 9, 9];
        let mut operations = Operations::new(&payload).unwrap();
        assert!(operations.next().unwrap().is_err());
        assert_eq!(operations.next(), None);
    }
}
