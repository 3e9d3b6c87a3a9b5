//! Logs and manifests as text, for people and for tests: one line for each record, and one for
//! each operation or part of an edit in it.
//!
//! ```text
//! log 7 id … first lsn 800 boot …                        the file's header
//! 0x000080 commit lsn 800 seqno 100 payload 12 copied 792 durable 16
//!     put 0 "key" = "value"                              verb, keyspace, key, value
//! 0x0000b0 bad: expected …, found …                      then on at the next intact record
//! 0x0000e0 zeros
//! ```
//!
//! Damage is shown, not judged: whether a bad record is a torn tail or corruption depends on
//! other files (record/reader.rs).

use std::fmt;
use std::path::Path;

use crate::batch::{self, Operations};
use crate::error::Result;
use crate::file::{FileHeader, FileKind};
use crate::key::EntryKind;
use crate::manifest::edit::Edit;
use crate::record::reader::{Reader, Record, Stop};
use crate::record::{self, RecordKind};

/// Keys and values are shown up to so many bytes.
const SHOWN_BYTES: usize = 64;

// The siblings batch and record cannot see each other; this is the first layer that sees both.
const _: () = assert!(batch::RECORD_HEADER_ROOM == record::HEADER_BYTES);

/// A log or a manifest; its `Display` is the text.
#[derive(Debug)]
pub(crate) struct Dump<'a> {
    header: FileHeader,
    bytes: &'a [u8],
}

/// The text of the log or manifest with these bytes. `path` is for the error.
///
/// # Errors
/// If the file's header is damaged, or that of neither, or of a newer version.
pub(crate) fn dump<'a>(bytes: &'a [u8], path: &Path) -> Result<Dump<'a>> {
    let kind = match bytes.starts_with(FileKind::Manifest.magic()) {
        true => FileKind::Manifest,
        false => FileKind::Log,
    };
    Ok(Dump { header: FileHeader::decode(bytes, kind, path)?, bytes })
}

impl fmt::Display for Dump<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FileHeader { kind, id, number, first_lsn, boot_id, .. } = &self.header;
        match kind {
            FileKind::Log => writeln!(
                f,
                "log {} id {id:?} first lsn {} boot {boot_id:032x}",
                number.0, first_lsn.0
            )?,
            _ => writeln!(f, "manifest {} id {id:?}", number.0)?,
        }
        let mut reader = Reader::new(&self.header, self.bytes, *first_lsn);
        loop {
            let offset = reader.offset();
            match reader.next() {
                Ok(record) => write_record(f, offset, &record)?,
                Err(Stop::Bad(fault)) => {
                    writeln!(f, "{offset:#08x} bad: {fault}")?;
                    if !reader.skip() {
                        return Ok(());
                    }
                }
                Err(Stop::Zeros) => return writeln!(f, "{offset:#08x} zeros"),
                Err(Stop::Full | Stop::End) => return Ok(()),
            }
        }
    }
}

fn write_record(f: &mut fmt::Formatter<'_>, offset: u64, record: &Record<'_>) -> fmt::Result {
    let Record { lsn, kind, seqno, payload, copied, durable, .. } = record;
    let (name, number) = match kind {
        RecordKind::Commit => ("commit", "seqno"),
        RecordKind::Edit => ("edit", "number"),
        RecordKind::SyncMark => ("sync mark", "seqno"),
        RecordKind::End => ("end of log", "seqno"),
    };
    write!(f, "{offset:#08x} {name} lsn {} {number} {}", lsn.0, seqno.0)?;
    writeln!(f, " payload {} copied {} durable {}", payload.len(), copied.0, durable.0)?;
    match kind {
        RecordKind::Commit => write_batch(f, payload),
        RecordKind::Edit => match Edit::decode(payload) {
            Ok(edit) => write_edit(f, &edit),
            Err(error) => writeln!(f, "    bad: {}", error.0),
        },
        RecordKind::SyncMark | RecordKind::End => Ok(()),
    }
}

fn write_batch(f: &mut fmt::Formatter<'_>, payload: &[u8]) -> fmt::Result {
    let operations = match Operations::new(payload) {
        Ok(operations) => operations,
        Err(error) => return writeln!(f, "    bad: {}", error.0),
    };
    for operation in operations {
        let operation = match operation {
            Ok(operation) => operation,
            Err(error) => return writeln!(f, "    bad: {}", error.0),
        };
        let (keyspace, key) = (operation.keyspace.0, Shown(operation.key));
        let value = Shown(operation.value);
        match operation.kind {
            EntryKind::Put => writeln!(f, "    put {keyspace} {key} = {value}")?,
            EntryKind::Delete => writeln!(f, "    delete {keyspace} {key}")?,
            EntryKind::Merge => writeln!(f, "    merge {keyspace} {key} + {value}")?,
        }
    }
    for (kind, bytes) in batch::Sections::new(payload).flatten().skip(1) {
        writeln!(f, "    section {kind} {}", Shown(bytes))?;
    }
    Ok(())
}

fn write_edit(f: &mut fmt::Formatter<'_>, edit: &Edit) -> fmt::Result {
    for keyspace in &edit.keyspaces_created {
        write!(f, "    + keyspace {} {:?}", keyspace.id.0, keyspace.name)?;
        match &keyspace.operator {
            Some(operator) => writeln!(f, " operator {operator:?}")?,
            None => writeln!(f)?,
        }
    }
    for id in &edit.keyspaces_dropped {
        writeln!(f, "    - keyspace {}", id.0)?;
    }
    for (id, operator) in &edit.operators_given {
        writeln!(f, "    keyspace {} operator {operator:?}", id.0)?;
    }
    for table in &edit.tables_removed {
        let (number, keyspace) = (table.number.0, table.keyspace.0);
        writeln!(f, "    - table {number} of keyspace {keyspace} level {}", table.level)?;
    }
    for table in &edit.tables_added {
        let facts = &table.facts;
        write!(f, "    + table {} of keyspace {}", facts.number.0, table.keyspace.0)?;
        write!(f, " level {} run {}: ", table.level, table.run)?;
        write!(f, "{} to {}", Shown(&facts.smallest), Shown(&facts.largest))?;
        write!(f, " seqno {} to {}", facts.seqno_min.0, facts.seqno_max.0)?;
        writeln!(f, ", {} entries, {} bytes", facts.entries, facts.bytes)?;
    }
    for (id, seqno) in &edit.flushed_upto {
        writeln!(f, "    keyspace {} flushed up to {}", id.0, seqno.0)?;
    }
    let numbers = [
        ("replay from lsn", edit.replay_from.map(|lsn| lsn.0)),
        ("replay from log", edit.replay_log.map(|number| number.0)),
        ("log durable to lsn", edit.log_durable.map(|lsn| lsn.0)),
        ("seqno lease", edit.seqno_lease.map(|seqno| seqno.0)),
        ("next file", edit.next_file.map(|number| number.0)),
        ("next keyspace", edit.next_keyspace.map(|id| u64::from(id.0))),
        ("clean close at seqno", edit.clean_close.map(|seqno| seqno.0)),
        ("shard", edit.shard.map(|shard| u64::from(shard.0))),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            writeln!(f, "    {name} {number}")?;
        }
    }
    if edit.voids_settled {
        writeln!(f, "    earlier voids are settled")?;
    }
    for (from, to) in &edit.voids {
        writeln!(f, "    void from lsn {} to {}", from.0, to.0)?;
    }
    Ok(())
}

/// Bytes as quoted text, shortened.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(SHOWN_BYTES)];
        write!(f, "\"{}\"", shown.escape_ascii())?;
        if shown.len() < self.0.len() {
            write!(f, "… of {} bytes", self.0.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, section};
    use crate::file::{FileNumber, Lsn};
    use crate::key::KeyspaceId;
    use crate::manifest::edit::tests::full;
    use crate::manifest::state::tests::populated;
    use crate::manifest::writer::ManifestWriter;
    use crate::manifest::writer::tests::{TracingFs, dir, some_edit};
    use crate::record::reader::tests::LogBuilder;

    #[track_caller]
    fn assert_dump(bytes: &[u8], expected: &str) {
        let text = dump(bytes, Path::new("x")).unwrap().to_string();
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn a_log() {
        let mut log = LogBuilder::new(7, Lsn(800), 0xb007);
        let mut batch = BatchBuilder::new();
        batch.put(KeyspaceId(0), b"apple", b"red\n");
        batch.merge(KeyspaceId(300), b"count", &[1, 0, 0]);
        batch.delete(KeyspaceId(0), &[b'k'; 70]);
        batch.section(section::TOKENS, b"once");
        log.commit(batch.finish().bytes(), Lsn(800), Lsn(16));
        log.bare(RecordKind::SyncMark, log.lsn(), log.lsn());
        log.commit(&[1, 1, 9], log.lsn(), Lsn(0));
        let bad = log.bytes.len();
        log.commit(b"bad", log.lsn(), Lsn(0));
        log.bytes[bad] ^= 1;
        log.commit(&[1, 0], log.lsn(), Lsn(0));
        log.zeros(64);
        let expected = "\
log 7 id 000000000000000700000000000e5ce5 first lsn 800 boot 0000000000000000000000000000b007
0x000080 commit lsn 800 seqno 100 payload 107 copied 800 durable 16
    put 0 \"apple\" = \"red\\n\"
    merge 300 \"count\" + \"\\x01\\x00\\x00\"
    delete 0 \"kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk\"… of 70 bytes
    section 2 \"once\"
0x000110 sync mark lsn 944 seqno 118 payload 0 copied 944 durable 944
0x000130 commit lsn 976 seqno 122 payload 3 copied 976 durable 0
    bad: an operation of an unknown kind
0x000158 bad: expected a record header for LSN 1016, found a record header with a bad checksum
0x000180 commit lsn 1056 seqno 132 payload 2 copied 1056 durable 0
0x0001a8 zeros
";
        assert_dump(&log.bytes, expected);
        let whole = log.bytes.len() - 64 - 8;
        let text = dump(&log.bytes[..whole], Path::new("x")).unwrap().to_string();
        assert_eq!(text.lines().count(), 10, "ends with the bad record: {text}");
    }

    #[test]
    fn an_ended_log() {
        let mut log = LogBuilder::new(8, Lsn(0), 0);
        log.bare(RecordKind::End, Lsn(0), Lsn(0));
        log.zeros(64);
        let expected = "\
log 8 id 000000000000000800000000000e5ce5 first lsn 0 boot 00000000000000000000000000000000
0x000080 end of log lsn 0 seqno 0 payload 0 copied 0 durable 0
";
        assert_dump(&log.bytes, expected);
    }

    #[test]
    fn a_manifest() {
        let fs = TracingFs::default();
        let mut writer =
            ManifestWriter::create(&fs.shared(), dir(), FileNumber(4), &populated()).unwrap();
        writer.append(&some_edit(1)).unwrap();
        writer.append(&full()).unwrap();
        let expected = "\
manifest 4 id 00000000000000010000000000000000
0x000080 edit lsn 0 number 0 payload 219 copied 0 durable 0
    + keyspace 0 \"default\"
    + keyspace 1 \"n\" operator \"c\"
    + table 10 of keyspace 0 level 0 run 1: \"a\" to \"k\" seqno 11 to 20, 10 entries, 4096 bytes
    + table 11 of keyspace 0 level 0 run 2: \"b\" to \"c\" seqno 21 to 30, 10 entries, 4096 bytes
    + table 12 of keyspace 0 level 0 run 2: \"d\" to \"e\" seqno 21 to 30, 10 entries, 4096 bytes
    + table 13 of keyspace 0 level 1 run 0: \"a\" to \"k\" seqno 1 to 10, 10 entries, 4096 bytes
    + table 14 of keyspace 0 level 1 run 0: \"m\" to \"p\" seqno 1 to 10, 10 entries, 4096 bytes
    keyspace 0 flushed up to 30
    keyspace 1 flushed up to 0
    replay from lsn 800
    replay from log 0
    seqno lease 100
    next file 20
    next keyspace 2
0x000180 edit lsn 256 number 1 payload 3 copied 256 durable 256
    next file 21
0x0001a8 edit lsn 296 number 2 payload 179 copied 296 durable 296
    + keyspace 0 \"default\"
    + keyspace 5 \"ä\" operator \"max\"
    - keyspace 3
    - keyspace 4294967295
    keyspace 0 operator \"min\"
    - table 9 of keyspace 0 level 1
    + table 10 of keyspace 0 level 0 run 300: \"a\" to \"k\" seqno 1 to 7, 10 entries, 4096 bytes
    + table 11 of keyspace 0 level 2 run 0: \"\" to \"\\x7f\" seqno 3 to 3, 10 entries, 4096 bytes
    keyspace 0 flushed up to 7
    keyspace 5 flushed up to 72057594037927935
    replay from lsn 300
    replay from log 3
    log durable to lsn 290
    seqno lease 72057594037927935
    next file 12
    next keyspace 6
    clean close at seqno 7
    shard 7
    earlier voids are settled
    void from lsn 8 to 16
    void from lsn 300 to 1099511627776
";
        assert_dump(&fs.get("manifest-000004").unwrap(), expected);
    }

    #[test]
    fn a_table_and_a_damaged_header_are_errors() {
        let log = LogBuilder::new(8, Lsn(0), 0);
        for at in [0, 20] {
            let mut bytes = log.bytes.clone();
            bytes[at] ^= 1;
            assert!(dump(&bytes, Path::new("x")).unwrap_err().is_corruption());
        }
    }
}
