//! An edit: one atomic change of the version, the payload of a manifest record.
//!
//! ```text
//! edit     field, field, …; in any order, but written in that of the tags
//!
//! field
//!   tag    1 byte
//!   length varint
//!   bytes  as the tag says; no more and no fewer
//!
//! tag  bytes
//!   1  keyspace created: id varint, name (varint length, UTF-8), 1 byte: 1 if a merge operator's
//!      name (varint length, UTF-8) follows, else 0
//!   2  keyspace dropped: id varint
//!   3  table removed: keyspace varint, level 1 byte, file number varint
//!   4  table added: keyspace varint, level 1 byte, run varint, facts (table/mod.rs)
//!   5  flushed up to: keyspace varint, seqno varint
//!   6  replay from: LSN varint                                       at most once, as the rest
//!   7  seqno lease: varint
//!   8  next file number: varint
//!   9  next keyspace id: varint
//!  10  clean close: last seqno used, varint
//!  11  log file in which the replay begins: number, varint
//!  12  merge operator given: keyspace varint, name (varint length, UTF-8); any number of times
//!  13  shard of a database over several: number varint
//!  14  void: LSN varint, LSN varint; the log from the first up to the second was given up, and so was
//!      every part of a commit across shards that began there; any number of times
//!  15  voids settled: nothing; no shard has a record any more that names one of those before
//! 128  log durable: LSN varint; before the edit was written the log was durable up to there
//!
//! 13 to 15 occur only where the manifest's header has the feature bit of a shard (file.rs).
//! ```
//!
//! Unknown tags are refused below 128 and skipped from 128 on. A newer version that adds one
//! below 128 announces it by an incompatible feature bit in the file's header, so that a reader
//! which meets one without has met damage.
//!
//! Worked example: replay from LSN 300, next file 7: `06 02 ac 02  08 01 07`.

use crate::coding::{DecodeError, Decoded, Decoder, put_bytes, put_varint};
use crate::file::{FileNumber, Lsn, ShardNumber};
use crate::key::{KeyspaceId, SeqNo};
use crate::table::TableFacts;

/// A change of the version. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edit {
    /// New keyspaces.
    pub keyspaces_created: Vec<KeyspaceFacts>,
    /// Keyspaces that are gone, with all their tables.
    pub keyspaces_dropped: Vec<KeyspaceId>,
    /// Merge operators of keyspaces that had none.
    pub operators_given: Vec<(KeyspaceId, String)>,
    /// Tables that leave their level. Before those that come, so that a table can change levels.
    pub tables_removed: Vec<TableRemoved>,
    /// Tables that come to a level.
    pub tables_added: Vec<TableAdded>,
    /// Every operation of the keyspace up to this seqno is in tables: replay skips it.
    pub flushed_upto: Vec<(KeyspaceId, SeqNo)>,
    /// Replay begins at this LSN of the log; what is before it is not needed any more.
    pub replay_from: Option<Lsn>,
    /// The log file in which the replay begins; those with smaller numbers are no part of it.
    pub replay_log: Option<FileNumber>,
    /// The log was durable up to this LSN before the edit was written: what ends before has lost
    /// something, and not by a crash.
    pub log_durable: Option<Lsn>,
    /// No seqno beyond this one has been given out.
    pub seqno_lease: Option<SeqNo>,
    /// No file number from this one on has been given out.
    pub next_file: Option<FileNumber>,
    /// No keyspace id from this one on has been given out.
    pub next_keyspace: Option<KeyspaceId>,
    /// The database is this shard of one over several.
    pub shard: Option<ShardNumber>,
    /// Voids of before are of no interest any more. They go before those come that are new.
    pub voids_settled: bool,
    /// Parts of the log, from one LSN up to another, that were given up.
    pub voids: Vec<(Lsn, Lsn)>,
    /// The database was closed, everything flushed, with this as the last seqno used. Holds
    /// until the next edit.
    pub clean_close: Option<SeqNo>,
}

/// What is fixed when a keyspace is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyspaceFacts {
    /// Its id, never reused.
    pub id: KeyspaceId,
    /// Its name, unique among the keyspaces that exist.
    pub name: String,
    /// Name of its merge operator.
    pub operator: Option<String>,
}

/// A table that comes to a level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableAdded {
    /// The keyspace that it belongs to.
    pub keyspace: KeyspaceId,
    /// The level.
    pub level: u8,
    /// The run of level 0; a larger number is newer. 0 in deeper levels, which are one run each.
    pub run: u64,
    /// The table.
    pub facts: TableFacts,
}

/// A table that leaves a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableRemoved {
    /// The keyspace that it belongs to.
    pub keyspace: KeyspaceId,
    /// The level.
    pub level: u8,
    /// The table.
    pub number: FileNumber,
}

/// Tags of fields. On disk: never renumber.
mod tag {
    pub(super) const KEYSPACE_CREATED: u8 = 1;
    pub(super) const KEYSPACE_DROPPED: u8 = 2;
    pub(super) const TABLE_REMOVED: u8 = 3;
    pub(super) const TABLE_ADDED: u8 = 4;
    pub(super) const FLUSHED_UPTO: u8 = 5;
    pub(super) const REPLAY_FROM: u8 = 6;
    pub(super) const SEQNO_LEASE: u8 = 7;
    pub(super) const NEXT_FILE: u8 = 8;
    pub(super) const NEXT_KEYSPACE: u8 = 9;
    pub(super) const CLEAN_CLOSE: u8 = 10;
    pub(super) const REPLAY_LOG: u8 = 11;
    pub(super) const OPERATOR_GIVEN: u8 = 12;
    pub(super) const SHARD: u8 = 13;
    pub(super) const VOID: u8 = 14;
    pub(super) const VOIDS_SETTLED: u8 = 15;
    pub(super) const SKIPPABLE: u8 = 128;
    pub(super) const LOG_DURABLE: u8 = 128;
}

impl Edit {
    /// True if it creates or drops a keyspace or gives one an operator: such an edit is in no table and
    /// no log.
    #[must_use]
    pub(crate) fn changes_keyspaces(&self) -> bool {
        let Edit { keyspaces_created, keyspaces_dropped, operators_given, .. } = self;
        !keyspaces_created.is_empty()
            || !keyspaces_dropped.is_empty()
            || !operators_given.is_empty()
    }

    /// Appends the edit's bytes.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut fields = Fields { out, bytes: Vec::new() };
        for keyspace in &self.keyspaces_created {
            fields.put(tag::KEYSPACE_CREATED, |out| keyspace.encode(out));
        }
        for id in &self.keyspaces_dropped {
            fields.put(tag::KEYSPACE_DROPPED, |out| put_varint(out, u64::from(id.0)));
        }
        for table in &self.tables_removed {
            fields.put(tag::TABLE_REMOVED, |out| table.encode(out));
        }
        for table in &self.tables_added {
            fields.put(tag::TABLE_ADDED, |out| table.encode(out));
        }
        for (id, seqno) in &self.flushed_upto {
            fields.put(tag::FLUSHED_UPTO, |out| {
                put_varint(out, u64::from(id.0));
                put_varint(out, seqno.0);
            });
        }
        for (id, operator) in &self.operators_given {
            fields.put(tag::OPERATOR_GIVEN, |out| {
                put_varint(out, u64::from(id.0));
                put_bytes(out, operator.as_bytes());
            });
        }
        fields.put_number(tag::REPLAY_FROM, self.replay_from.map(|lsn| lsn.0));
        fields.put_number(tag::REPLAY_LOG, self.replay_log.map(|number| number.0));
        fields.put_number(tag::SEQNO_LEASE, self.seqno_lease.map(|seqno| seqno.0));
        fields.put_number(tag::NEXT_FILE, self.next_file.map(|number| number.0));
        fields.put_number(tag::NEXT_KEYSPACE, self.next_keyspace.map(|id| u64::from(id.0)));
        fields.put_number(tag::CLEAN_CLOSE, self.clean_close.map(|seqno| seqno.0));
        fields.put_number(tag::SHARD, self.shard.map(|shard| u64::from(shard.0)));
        for (from, to) in &self.voids {
            fields.put(tag::VOID, |out| {
                put_varint(out, from.0);
                put_varint(out, to.0);
            });
        }
        if self.voids_settled {
            fields.put(tag::VOIDS_SETTLED, |_| {});
        }
        fields.put_number(tag::LOG_DURABLE, self.log_durable.map(|lsn| lsn.0));
    }

    /// Reads an edit.
    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Edit> {
        let mut edit = Edit::default();
        let mut fields = Decoder::new(bytes);
        while !fields.is_empty() {
            let tag = fields.u8()?;
            let mut field = Decoder::new(fields.bytes()?);
            if tag < tag::SKIPPABLE || tag == tag::LOG_DURABLE {
                edit.decode_field(tag, &mut field)?;
                field.finish()?;
            }
        }
        Ok(edit)
    }

    fn decode_field(&mut self, tag: u8, field: &mut Decoder<'_>) -> Decoded<()> {
        match tag {
            tag::KEYSPACE_CREATED => self.keyspaces_created.push(KeyspaceFacts::decode(field)?),
            tag::KEYSPACE_DROPPED => self.keyspaces_dropped.push(keyspace_id(field)?),
            tag::TABLE_REMOVED => self.tables_removed.push(TableRemoved::decode(field)?),
            tag::TABLE_ADDED => self.tables_added.push(TableAdded::decode(field)?),
            tag::FLUSHED_UPTO => self.flushed_upto.push((keyspace_id(field)?, seqno(field)?)),
            tag::OPERATOR_GIVEN => self.operators_given.push((keyspace_id(field)?, text(field)?)),
            tag::REPLAY_FROM => set_once(&mut self.replay_from, Lsn(field.varint()?))?,
            tag::REPLAY_LOG => set_once(&mut self.replay_log, FileNumber(field.varint()?))?,
            tag::SEQNO_LEASE => set_once(&mut self.seqno_lease, seqno(field)?)?,
            tag::NEXT_FILE => set_once(&mut self.next_file, FileNumber(field.varint()?))?,
            tag::NEXT_KEYSPACE => set_once(&mut self.next_keyspace, keyspace_id(field)?)?,
            tag::CLEAN_CLOSE => set_once(&mut self.clean_close, seqno(field)?)?,
            tag::SHARD => set_once(&mut self.shard, ShardNumber(field.varint_u32()?))?,
            tag::VOID => self.voids.push((Lsn(field.varint()?), Lsn(field.varint()?))),
            tag::VOIDS_SETTLED if self.voids_settled => return Err(DecodeError("a field twice")),
            tag::VOIDS_SETTLED => self.voids_settled = true,
            tag::LOG_DURABLE => set_once(&mut self.log_durable, Lsn(field.varint()?))?,
            _ => return Err(DecodeError("a field of an unknown tag")),
        }
        Ok(())
    }
}

/// Appends fields, each assembled in `bytes` first, since its length comes before it.
struct Fields<'a> {
    out: &'a mut Vec<u8>,
    bytes: Vec<u8>,
}

impl Fields<'_> {
    fn put(&mut self, tag: u8, encode: impl FnOnce(&mut Vec<u8>)) {
        self.bytes.clear();
        encode(&mut self.bytes);
        self.out.push(tag);
        put_bytes(self.out, &self.bytes);
    }

    fn put_number(&mut self, tag: u8, number: Option<u64>) {
        if let Some(number) = number {
            self.put(tag, |out| put_varint(out, number));
        }
    }
}

fn keyspace_id(decoder: &mut Decoder<'_>) -> Decoded<KeyspaceId> {
    decoder.varint_u32().map(KeyspaceId)
}

fn seqno(decoder: &mut Decoder<'_>) -> Decoded<SeqNo> {
    let seqno = SeqNo(decoder.varint()?);
    if seqno > SeqNo::MAX {
        return Err(DecodeError("a seqno over 56 bits"));
    }
    Ok(seqno)
}

fn text(decoder: &mut Decoder<'_>) -> Decoded<String> {
    let text = std::str::from_utf8(decoder.bytes()?);
    text.map(str::to_string).map_err(|_| DecodeError("a name that is not UTF-8"))
}

fn set_once<T>(field: &mut Option<T>, value: T) -> Decoded<()> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(DecodeError("a field twice")),
    }
}

impl KeyspaceFacts {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, u64::from(self.id.0));
        put_bytes(out, self.name.as_bytes());
        out.push(u8::from(self.operator.is_some()));
        if let Some(operator) = &self.operator {
            put_bytes(out, operator.as_bytes());
        }
    }

    fn decode(decoder: &mut Decoder<'_>) -> Decoded<KeyspaceFacts> {
        let (id, name) = (keyspace_id(decoder)?, text(decoder)?);
        let operator = match decoder.u8()? {
            0 => None,
            1 => Some(text(decoder)?),
            _ => return Err(DecodeError("a flag that is neither 0 nor 1")),
        };
        Ok(KeyspaceFacts { id, name, operator })
    }
}

impl TableAdded {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, u64::from(self.keyspace.0));
        out.push(self.level);
        put_varint(out, self.run);
        self.facts.encode(out);
    }

    fn decode(decoder: &mut Decoder<'_>) -> Decoded<TableAdded> {
        Ok(TableAdded {
            keyspace: keyspace_id(decoder)?,
            level: decoder.u8()?,
            run: decoder.varint()?,
            facts: TableFacts::decode(decoder)?,
        })
    }
}

impl TableRemoved {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, u64::from(self.keyspace.0));
        out.push(self.level);
        put_varint(out, self.number.0);
    }

    fn decode(decoder: &mut Decoder<'_>) -> Decoded<TableRemoved> {
        Ok(TableRemoved {
            keyspace: keyspace_id(decoder)?,
            level: decoder.u8()?,
            number: FileNumber(decoder.varint()?),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::file::FileId;

    /// A table of 10 entries with this number, range of keys and range of seqnos.
    pub(crate) fn facts(number: u64, keys: [&str; 2], seqnos: [u64; 2]) -> TableFacts {
        TableFacts {
            number: FileNumber(number),
            id: FileId(u128::from(number) << 100 | 0xe5),
            bytes: 4096,
            entries: 10,
            tombstones: 2,
            operands: 1,
            smallest: keys[0].as_bytes().into(),
            largest: keys[1].as_bytes().into(),
            seqno_min: SeqNo(seqnos[0]),
            seqno_max: SeqNo(seqnos[1]),
            raw_bytes: 3000,
        }
    }

    /// A table of keyspace 0 that comes to a level.
    pub(crate) fn added(level: u8, run: u64, facts: TableFacts) -> TableAdded {
        TableAdded { keyspace: KeyspaceId(0), level, run, facts }
    }

    /// A table of keyspace 0 that leaves a level.
    pub(crate) fn removed(level: u8, number: u64) -> TableRemoved {
        TableRemoved { keyspace: KeyspaceId(0), level, number: FileNumber(number) }
    }

    /// A new keyspace.
    pub(crate) fn created(id: u32, name: &str, operator: Option<&str>) -> KeyspaceFacts {
        let (name, operator) = (name.to_string(), operator.map(str::to_string));
        KeyspaceFacts { id: KeyspaceId(id), name, operator }
    }

    /// An edit with every field.
    pub(crate) fn full() -> Edit {
        Edit {
            keyspaces_created: vec![created(0, "default", None), created(5, "ä", Some("max"))],
            keyspaces_dropped: vec![KeyspaceId(3), KeyspaceId(u32::MAX)],
            tables_removed: vec![removed(1, 9)],
            tables_added: vec![
                added(0, 300, facts(10, ["a", "k"], [1, 7])),
                added(2, 0, facts(11, ["", "\u{7f}"], [3, 3])),
            ],
            flushed_upto: vec![(KeyspaceId(0), SeqNo(7)), (KeyspaceId(5), SeqNo::MAX)],
            replay_from: Some(Lsn(300)),
            replay_log: Some(FileNumber(3)),
            log_durable: Some(Lsn(290)),
            operators_given: vec![(KeyspaceId(0), "min".into())],
            seqno_lease: Some(SeqNo::MAX),
            next_file: Some(FileNumber(12)),
            next_keyspace: Some(KeyspaceId(6)),
            shard: Some(ShardNumber(7)),
            voids_settled: true,
            voids: vec![(Lsn(8), Lsn(16)), (Lsn(300), Lsn(1 << 40))],
            clean_close: Some(SeqNo(7)),
        }
    }

    fn encoded(edit: &Edit) -> Vec<u8> {
        let mut out = Vec::new();
        edit.encode(&mut out);
        out
    }

    #[test]
    fn the_example_of_the_module_comment() {
        let (replay_from, next_file) = (Some(Lsn(300)), Some(FileNumber(7)));
        let edit = Edit { replay_from, next_file, ..Edit::default() };
        assert_eq!(encoded(&edit), [6, 2, 0xac, 2, 8, 1, 7]);
    }

    #[test]
    fn edits_round_trip() {
        for edit in [full(), Edit::default()] {
            assert_eq!(Edit::decode(&encoded(&edit)), Ok(edit));
        }
    }

    #[test]
    fn random_edits_round_trip() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..300 {
            let mut edit = full();
            edit.keyspaces_created.truncate(rng.usize(..3));
            edit.keyspaces_dropped.truncate(rng.usize(..3));
            edit.tables_removed.truncate(rng.usize(..2));
            edit.tables_added.truncate(rng.usize(..3));
            for table in &mut edit.tables_added {
                table.run = rng.u64(..) >> rng.u32(..64);
                table.level = rng.u8(..);
                table.facts.smallest = Box::default();
                table.facts.largest = (0..rng.usize(..200)).map(|_| rng.u8(..)).collect();
            }
            edit.flushed_upto.truncate(rng.usize(..3));
            edit.replay_from = rng.bool().then(|| Lsn(rng.u64(..)));
            edit.replay_log = rng.bool().then(|| FileNumber(rng.u64(..)));
            edit.log_durable = rng.bool().then(|| Lsn(rng.u64(..)));
            edit.seqno_lease = rng.bool().then(|| SeqNo(rng.u64(..=SeqNo::MAX.0)));
            edit.next_file = rng.bool().then(|| FileNumber(rng.u64(..)));
            edit.next_keyspace = rng.bool().then(|| KeyspaceId(rng.u32(..)));
            edit.clean_close = rng.bool().then(|| SeqNo(rng.u64(..=SeqNo::MAX.0)));
            edit.shard = rng.bool().then(|| ShardNumber(rng.u32(..)));
            edit.voids.truncate(rng.usize(..3));
            edit.voids_settled = rng.bool();
            assert_eq!(Edit::decode(&encoded(&edit)), Ok(edit));
        }
    }

    #[test]
    fn every_cut_and_every_flipped_bit_decodes_or_fails_without_a_panic() {
        let bytes = encoded(&full());
        for cut in 0..bytes.len() {
            if let Ok(edit) = Edit::decode(&bytes[..cut]) {
                assert_eq!(encoded(&edit), bytes[..cut], "cut between two fields");
            }
        }
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let _ = Edit::decode(&bytes);
        }
    }

    #[test]
    fn malformed_edits_are_refused() {
        let refuse = |bytes: &[u8], why| {
            assert_eq!(Edit::decode(bytes).unwrap_err().0, why, "{bytes:?}");
        };
        refuse(&[16, 0], "a field of an unknown tag");
        refuse(&[15, 0, 15, 0], "a field twice");
        refuse(&[0, 0], "a field of an unknown tag");
        refuse(&[2, 2, 1, 1], "bytes left over");
        refuse(&[2, 0], "varint without an end");
        refuse(&[6, 1, 1, 6, 1, 1], "a field twice");
        refuse(&[1, 3, 0, 0, 2], "a flag that is neither 0 nor 1");
        refuse(&[1, 4, 0, 1, 0xff, 0], "a name that is not UTF-8");
        refuse(&[7, 8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "varint without an end");
        refuse(&[7, 9, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1], "a seqno over 56 bits");
        assert_eq!(Edit::decode(&[200, 2, 1, 2]), Ok(Edit::default()), "skipped");
    }
}
