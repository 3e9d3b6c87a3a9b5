//! Every decoder of bytes from the disk.
//!
//! Almost any change of a file is caught by a checksum, which a fuzzer does not guess. So where a
//! format has checksums, the first byte of the input chooses: even, the bytes are what they are;
//! odd, the checksums are made right first, and what lies behind them has to stand for itself.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::batch::{BatchBuilder, Operations};
use crate::checksum::{self, Checksum};
use crate::cursor::Cursor;
use crate::dump::dump;
use crate::file::{CURRENT, FileHeader, FileId, FileKind, FileNumber, HEADER_BYTES, Lsn};
use crate::fs::Fs;
use crate::fs::sim::SimFs;
use crate::fuzz::Input;
use crate::key::{self, EntryKind, KeyspaceId, SeqNo};
use crate::manifest;
use crate::manifest::edit::{Edit, KeyspaceFacts, TableAdded};
use crate::manifest::state::State;
use crate::manifest::writer::ManifestWriter;
use crate::options::{Filter, ReadMode};
use crate::record::chain::{LogChain, LogFile, Mode, Replay};
use crate::record::{self, RecordHeader, RecordKind, record_bytes};
use crate::table::block::{Block, BlockBuilder};
use crate::table::builder::TableBuilder;
use crate::table::filter::{self, TableFilter};
use crate::table::layout::{FOOTER_BYTES, Layout};
use crate::table::reader::Table;
use crate::table::salvage::SalvageCursor;
use crate::table::{self, BlockCache, Origin, SEQNO_BEFORE_ALL, TableConfig};

const NUMBER: FileNumber = FileNumber(9);
const ID: FileId = FileId(0x1234_5678_9abc_def0_0fed_cba9_8765_4321);
const BOOT: u128 = 7;
/// More bytes than this make an input slow and nothing else.
const BYTES_MAX: usize = 64 << 10;

fn dir() -> &'static Path {
    Path::new("/db")
}

/// Puts the checksums of a log or manifest right, from the file header on, record by record.
fn mend_records(bytes: &mut [u8], header: &FileHeader) {
    let Some(front) = bytes.first_chunk_mut::<HEADER_BYTES>() else { return };
    *front = header.encode();
    let checksum = Checksum::new(header.id);
    let mut at = HEADER_BYTES;
    while bytes.len() - at >= record::HEADER_BYTES {
        let room = (bytes.len() - at - record::HEADER_BYTES) as u64;
        let fields = bytes[at..at + 32].to_vec();
        let kinds = [RecordKind::Commit, RecordKind::Edit, RecordKind::SyncMark, RecordKind::End];
        let kind = kinds[usize::from(fields[20].wrapping_sub(1) % 4)];
        let bare = matches!(kind, RecordKind::SyncMark | RecordKind::End);
        let wanted = u64::from(u16::from_le_bytes([fields[4], fields[5]]));
        let payload = if bare { 0 } else { wanted.min(room & !7) as usize };
        let start = at + record::HEADER_BYTES;
        let lsn = Lsn(header.first_lsn.0 + (at - HEADER_BYTES) as u64);
        let before = |units: u8| Lsn(lsn.0.saturating_sub(8 * u64::from(units)));
        let record = RecordHeader {
            kind,
            payload_bytes: payload as u32,
            payload_checksum: match bare {
                true => 0,
                false => checksum::unbound(&bytes[start..start + payload]),
            },
            copied: before(fields[12]),
            durable: before(fields[16]),
            seqno: SeqNo(u64::from(u16::from_le_bytes([fields[24], fields[25]]))),
        };
        bytes[at..start].copy_from_slice(&record.encode(checksum, lsn));
        let end = at + record_bytes(payload as u64) as usize;
        let padded = end.min(bytes.len());
        bytes[start + payload..padded].fill(0);
        at = end;
        if kind == RecordKind::End || at > bytes.len() {
            break;
        }
    }
}

/// One log, or two: the input is cut where its second byte says.
pub(super) fn log(input: &[u8]) {
    let [mode, cut, bytes @ ..] = input else { return };
    let bytes = &bytes[..bytes.len().min(BYTES_MAX)];
    let cut = (bytes.len() * usize::from(*cut) / 255) & !7;
    let (first, second) = if mode & 2 == 2 { bytes.split_at(cut) } else { (bytes, &[][..]) };
    let mut lsn = Lsn(800);
    let mut files = Vec::new();
    for (number, part) in [(3, first), (4, second)] {
        let mut bytes = part.to_vec();
        let mut header = FileHeader::new(FileKind::Log, FileId(number), FileNumber(number as u64));
        (header.first_lsn, header.boot_id) = (lsn, if mode & 4 == 0 { BOOT } else { 0 });
        if mode & 1 == 1 {
            mend_records(&mut bytes, &header);
        }
        lsn = Lsn(lsn.0 + (bytes.len().saturating_sub(HEADER_BYTES) as u64).next_multiple_of(8));
        let path = PathBuf::from(FileKind::Log.name(header.number));
        if let Ok(dump) = dump(&bytes, &path) {
            let _ = dump.to_string();
        }
        let zeros_from = bytes.len() as u64;
        files.push(LogFile { path, number: header.number, bytes: Bytes::from(bytes), zeros_from });
    }
    let strict = records_of(&files, Mode::Strict);
    let cut = records_of(&files, Mode::PointInTime);
    let salvaged = records_of(&files, Mode::Salvage);
    if let (Some(strict), Some(cut)) = (&strict, &cut) {
        assert_eq!(strict, cut, "where strict accepts, point-in-time reads the same");
    }
    if let (Some(cut), Some(salvaged)) = (&cut, &salvaged) {
        assert!(salvaged.len() >= cut.len(), "salvage reads no less");
    }
}

/// LSNs of the records of a log; `None` if it is refused.
fn records_of(files: &[LogFile], mode: Mode) -> Option<Vec<Lsn>> {
    let (dir, from) = (PathBuf::from("db"), Lsn(800));
    let replay = Replay {
        dir,
        from,
        from_log: FileNumber(0),
        begun: false,
        durable: Lsn(0),
        boot_id: BOOT,
        mode,
    };
    let refused = |error: crate::error::Error| {
        assert!(mode == Mode::Strict || !error.is_corruption(), "{mode:?} refuses: {error}");
    };
    let mut chain = LogChain::new(files.to_vec(), replay).map_err(refused).ok()?;
    let mut records = Vec::new();
    while let Some(record) = chain.next().map_err(refused).ok()? {
        assert!(records.last().is_none_or(|last| *last < record.lsn), "records ascend");
        assert!(record.end > record.lsn);
        if let Ok(operations) = Operations::new(record.payload) {
            let _ = operations.count_checked();
        }
        records.push(record.lsn);
    }
    let outcome = chain.finish();
    assert!(records.last().is_none_or(|last| *last < outcome.end));
    Some(records)
}

/// A commit's payload.
pub(super) fn batch(input: &[u8]) {
    let Ok(operations) = Operations::new(input) else { return };
    let counted = operations.count_checked();
    let mut builder = BatchBuilder::new();
    let mut count = 0;
    for operation in operations {
        let Ok(operation) = operation else {
            assert!(counted.is_err(), "an operation that cannot be read was counted");
            return;
        };
        let (keyspace, key) = (operation.keyspace, operation.key);
        match operation.kind {
            EntryKind::Put => builder.put(keyspace, key, operation.value),
            EntryKind::Delete => builder.delete(keyspace, key),
            EntryKind::Merge => builder.merge(keyspace, key, operation.value),
        }
        count += 1;
    }
    assert!(counted.is_err() || counted == Ok(count), "{counted:?} of {count}");
}

/// The content of a block.
pub(super) fn block(input: &[u8]) {
    let Ok(block) = Block::new(input) else { return };
    for seqno_max in [SeqNo::MAX.0, SEQNO_BEFORE_ALL] {
        if block.validate(seqno_max).is_err() {
            continue;
        }
        let mut builder = BlockBuilder::default();
        let mut rows = Vec::new();
        for index in 0..block.count() {
            let row = block.row(index).expect("a valid block can be read");
            let mut key = block.prefix().to_vec();
            row.put_suffix(&mut key, block.prefix().len());
            assert!(block.row_has_key(&row, &key));
            let found = block.lower_bound(&key, row.seqno).expect("a valid block can be searched");
            assert_eq!(found, index, "an entry is found where it is");
            builder.add(&key, row.seqno.0, row.kind, row.value);
            rows.push((key, row.seqno, row.kind, row.value.to_vec()));
        }
        if rows.is_empty() {
            continue;
        }
        let mut again = Vec::new();
        builder.finish(&mut again);
        let again = Block::new(&again).expect("what is built can be read");
        assert_eq!(again.count(), rows.len());
    }
    for index in 0..block.count().min(64) {
        let _ = block.row(index);
    }
    let _ = block.lower_bound(input, SeqNo(5));
}

/// The section of a filter.
pub(super) fn filter(input: &[u8]) {
    let Ok(decoded) = TableFilter::decode(&Bytes::copy_from_slice(input)) else { return };
    let _ = (decoded.describe(), decoded.memory_bytes(false));
    for key in [&b""[..], b"a", input] {
        let hash = key::hash(key);
        decoded.prefetch(hash);
        let _ = decoded.may_contain(hash);
    }
    for hash in [0, 1, u64::MAX, 0x8000_0000_0000_0000] {
        let _ = decoded.may_contain(hash);
    }
}

/// The end of a table: directory and footer.
pub(super) fn footer(input: &[u8]) {
    let [mode, bytes @ ..] = input else { return };
    let mut bytes = [&[0; HEADER_BYTES][..], &bytes[..bytes.len().min(BYTES_MAX)]].concat();
    let checksum = Checksum::new(ID);
    if mode & 1 == 1 && bytes.len() >= HEADER_BYTES + FOOTER_BYTES {
        let footer = bytes.len() - FOOTER_BYTES;
        // A directory of as many bytes as the first byte of the footer says.
        let start = footer - usize::from(bytes[footer]).min(footer - HEADER_BYTES);
        let directory = checksum.of(start as u64, &bytes[start..footer]);
        let end = &mut bytes[footer..];
        end[..8].copy_from_slice(&(start as u64).to_le_bytes());
        end[8..12].copy_from_slice(&((footer - start) as u32).to_le_bytes());
        end[12..16].copy_from_slice(&directory.to_le_bytes());
        end[16..20].fill(0);
        let sum = checksum.of(footer as u64, &end[..20]);
        end[20..24].copy_from_slice(&sum.to_le_bytes());
        end[24..].copy_from_slice(b"eskerEND");
    }
    let read = |range: std::ops::Range<u64>| {
        assert!(range.start <= range.end && range.end <= bytes.len() as u64, "{range:?}");
        Ok(&bytes[range.start as usize..range.end as usize])
    };
    let Ok(layout) = Layout::read(Path::new("x"), bytes.len() as u64, checksum, read) else {
        return;
    };
    let last = layout.sections.last().expect("three are required").range().end;
    let mut again = Vec::new();
    layout.encode(last, checksum, &mut again);
    assert_eq!(again, bytes[last as usize..], "it has one encoding");
}

/// An edit, and what it does to a state.
pub(super) fn edit(input: &[u8]) {
    let origin = Origin::decode(input);
    if let Ok(origin) = &origin {
        let mut again = Vec::new();
        origin.encode(&mut again);
        assert_eq!(Origin::decode(&again).as_ref(), Ok(origin));
    }
    let Ok(edit) = Edit::decode(input) else { return };
    let mut again = Vec::new();
    edit.encode(&mut again);
    assert_eq!(Edit::decode(&again).as_ref(), Ok(&edit));
    let mut state = State::default();
    if state.apply(&edit).is_err() {
        return;
    }
    state.check().expect("what applies keeps the invariants");
    let mut copy = State::default();
    copy.apply(&state.to_edit()).expect("a state is an edit");
    copy.check().expect("and keeps the invariants");
}

/// A directory with a manifest.
pub(super) fn manifest(input: &[u8]) {
    let [mode, bytes @ ..] = input else { return };
    let mut bytes = bytes[..bytes.len().min(BYTES_MAX)].to_vec();
    let header = FileHeader::new(FileKind::Manifest, ID, FileNumber(4));
    if mode & 1 == 1 {
        mend_records(&mut bytes, &header);
    }
    let disk = SimFs::new();
    disk.create_dir_all(dir()).expect("a simulated disk");
    let name = FileKind::Manifest.name(FileNumber(4));
    let line = format!("{name} {:08x}\n", Checksum::new(ID).of(0, name.as_bytes()));
    for (name, bytes) in [(CURRENT, line.as_bytes()), (&name, &bytes)] {
        let file = disk.create(&dir().join(name)).expect("a simulated disk");
        file.write_at(0, bytes).expect("a simulated disk");
    }
    let fs: Arc<dyn Fs> = Arc::new(disk);
    let loaded = manifest::reader::load(&fs, dir());
    let remains = manifest::salvage::salvage(&fs, dir());
    if let (Ok(Some(loaded)), Ok(remains)) = (&loaded, &remains) {
        assert_eq!(remains.state.as_ref(), Some(&loaded.state));
        assert!(remains.losses.is_empty());
    }
}

type Entries = BTreeMap<(Vec<u8>, std::cmp::Reverse<u64>), (EntryKind, Vec<u8>)>;

/// A table that the first part of the input describes, with some bytes of it changed as the rest
/// says.
pub(super) fn table(input: &[u8]) {
    let mut input = Input(input);
    let (mode, count) = (input.u8(), input.u8() % 64 + 1);
    let mut entries = Entries::new();
    for seqno in 1..=u64::from(count) {
        let key = input.bytes(12).to_vec();
        let kind =
            [EntryKind::Put, EntryKind::Delete, EntryKind::Merge][usize::from(input.u8() % 3)];
        let value = if kind == EntryKind::Delete { &[] } else { input.bytes(40) };
        entries.insert((key, std::cmp::Reverse(seqno)), (kind, value.to_vec()));
    }
    let disk = SimFs::new();
    disk.create_dir_all(dir()).expect("a simulated disk");
    build(&disk, mode, &entries);
    let path = FileKind::Table.path(dir(), NUMBER);
    let whole = disk.contents(&path).expect("it was built");
    let mut bytes = whole.clone();
    while !input.is_empty() {
        let at = usize::from(input.u16()) % bytes.len().max(1);
        match input.u8() {
            0 => bytes.truncate(at.max(1)),
            mask => bytes[at] ^= mask,
        }
    }
    let changed = bytes != whole;
    if mode & 1 == 1 {
        mend_table(&disk, &mut bytes);
    }
    disk.set_contents(&path, &bytes).expect("a simulated disk");
    // With its checksums right a changed table may say anything, but must say it.
    let exact = !changed || mode & 1 == 0;
    check_table(&disk, &entries, exact, changed);
}

fn build(disk: &SimFs, mode: u8, entries: &Entries) {
    let filters = [Filter::None, Filter::Bloom { bits_per_key: 10 }, Filter::BinaryFuse8];
    let filter = filters[usize::from(mode >> 2) % 3];
    let config = TableConfig { block_bytes: 128, lz4: mode & 2 == 2, filter };
    let mut builder = TableBuilder::create(disk, dir(), NUMBER, &config).expect("created");
    builder.set_origin(Origin { name: "fuzz".into(), ..Origin::default() });
    for ((key, seqno), (kind, value)) in entries {
        builder.add(key, SeqNo(seqno.0), *kind, value).expect("added");
    }
    builder.finish().expect("finished");
}

/// Puts the checksums right of the sections, and of the frames, of a table whose layout is that of
/// the one on the disk.
fn mend_table(disk: &SimFs, bytes: &mut Vec<u8>) {
    let cache = BlockCache::new(0);
    let table = Table::open_alone(disk, dir(), NUMBER, ReadMode::Pread, &cache).expect("whole");
    let checksum = Checksum::new(table.facts().id);
    let mut layout = table.layout().clone();
    let end = layout.sections.last().expect("there are some").range().end as usize;
    if bytes.len() < end {
        return;
    }
    let header = FileHeader::new(FileKind::Table, table.facts().id, NUMBER);
    bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    let index = table.index().expect("whole");
    for ordinal in 0..index.count() {
        let place = table.place(index, ordinal).expect("whole");
        let (start, end) = (place.start as usize, place.end as usize - 4);
        let sum = checksum.of(place.start, &bytes[start..end]);
        bytes[end..end + 4].copy_from_slice(&sum.to_le_bytes());
    }
    for section in layout.sections.iter_mut().skip(1) {
        let range = section.range();
        let content = &bytes[range.start as usize..range.end as usize];
        section.checksum = checksum.of(section.offset, content);
    }
    bytes.truncate(end);
    layout.encode(end as u64, checksum, bytes);
}

fn check_table(disk: &SimFs, entries: &Entries, exact: bool, changed: bool) {
    for mode in [ReadMode::Pread, ReadMode::Mapped] {
        let cache = BlockCache::new(1 << 16);
        let Ok(table) = Table::open_alone(disk, dir(), NUMBER, mode, &cache) else {
            assert!(changed, "a whole table opens");
            continue;
        };
        assert!(table.verify().is_ok() || changed, "a whole table is verified");
        for ((key, seqno), expected) in entries {
            let mut found = None;
            let mut note = |_, kind, value: crate::cursor::ValueRef<'_>| {
                found = Some((kind, value.bytes.to_vec()));
                ControlFlow::Break(())
            };
            let visited = table.visit(key, SeqNo(seqno.0), &mut note);
            if visited.is_ok() && exact {
                assert_eq!(found.as_ref(), Some(expected), "a wrong answer");
            }
        }
        let mut cursor = table.cursor();
        let mut seen = 0;
        let mut walked = cursor.seek_to_first();
        while walked.is_ok() && cursor.valid() {
            seen += 1;
            assert!(seen <= 1 << 16, "a table of some kilobytes has no so many entries");
            walked = cursor.next();
        }
        assert!(walked.is_err() || !exact || seen == entries.len(), "{seen} entries");
        let mut walked = cursor.seek_to_last();
        while walked.is_ok() && cursor.valid() && seen > 0 {
            seen -= 1;
            walked = cursor.prev();
        }
        let _ = table.read_origin();
    }
    let mut text = Vec::new();
    let _ = table::dump::dump(disk, dir(), NUMBER, &mut text);
    check_salvage(disk, entries, exact, changed);
}

fn check_salvage(disk: &SimFs, entries: &Entries, exact: bool, changed: bool) {
    let Ok(remains) = table::salvage::salvage(disk, dir(), NUMBER, None) else { return };
    let (left, losses) = (remains.entries, remains.losses.len());
    assert!(changed || (left == entries.len() as u64 && losses == 0), "all of a whole table");
    assert!(!exact || losses > 0 || left == entries.len() as u64, "{left} entries and no loss");
    let mut cursor = SalvageCursor::new(remains);
    let mut last: Option<(Vec<u8>, SeqNo)> = None;
    cursor.seek_to_first().expect("validated");
    while cursor.valid() {
        let here = (cursor.key().to_vec(), cursor.seqno());
        if let Some((key, seqno)) = &last {
            assert!(key::compare(key, *seqno, &here.0, here.1).is_lt(), "entries ascend");
        }
        if exact {
            let expected = entries.get(&(here.0.clone(), std::cmp::Reverse(here.1.0)));
            let found = (cursor.kind(), cursor.value().bytes.to_vec());
            assert_eq!(expected, Some(&found), "an entry that never was");
        }
        last = Some(here);
        cursor.next().expect("validated");
    }
}

/// A few inputs for each decoder, as the formats are written: (target, name, bytes).
pub fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut builder = BatchBuilder::new();
    builder.put(KeyspaceId(0), b"key", b"value");
    builder.merge(KeyspaceId(7), b"", b"operand");
    builder.delete(KeyspaceId(300), b"gone");
    let payload = builder.finish();
    let commit = payload.bytes().to_vec();
    seeds.push(("batch", "three", commit.clone()));

    let mut log = vec![0; HEADER_BYTES];
    for (kind, payload) in [(1, &commit[..]), (3, &[]), (1, b"not a batch"), (4, &[])] {
        let mut header = [0; record::HEADER_BYTES];
        header[4] = payload.len() as u8;
        (header[12], header[16], header[20], header[24]) = (1, 2, kind, 5);
        log.extend_from_slice(&header);
        log.extend_from_slice(payload);
        log.resize(log.len().next_multiple_of(8), 0);
    }
    for (name, mode, zeros) in [("one-file", 1, 0), ("two-files", 3, 0), ("zeros-behind", 5, 100)] {
        let bytes = [&[mode, 128][..], &log, &vec![0; zeros]].concat();
        seeds.push(("log", name, bytes));
    }

    let mut block = BlockBuilder::default();
    for (key, seqno) in [("prefix a", 9), ("prefix a", 3), ("prefix bcdefghijkl", 7)] {
        block.add(key.as_bytes(), seqno, EntryKind::Put, b"a value");
    }
    let mut bytes = Vec::new();
    block.finish(&mut bytes);
    seeds.push(("block", "three", bytes));

    for (name, kind) in
        [("bloom", Filter::Bloom { bits_per_key: 10 }), ("fuse", Filter::BinaryFuse8)]
    {
        let mut hashes: Vec<u64> = (0..20_u8).map(|i| key::hash(&[i])).collect();
        let mut bytes = Vec::new();
        filter::build(kind, &mut hashes, &mut bytes);
        seeds.push(("filter", name, bytes));
    }
    seeds.extend(file_seeds());
    seeds
}

/// Those that come out of whole files.
fn file_seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let disk = SimFs::new();
    disk.create_dir_all(dir()).expect("a simulated disk");
    let entry =
        |i: u8| ((vec![i], std::cmp::Reverse(u64::from(i) + 1)), (EntryKind::Put, vec![i; 9]));
    build(&disk, 2, &(0..30).map(entry).collect());
    let cache = BlockCache::new(0);
    let table = Table::open_alone(&disk, dir(), NUMBER, ReadMode::Pread, &cache).expect("whole");
    let edit = Edit {
        keyspaces_created: vec![KeyspaceFacts {
            id: KeyspaceId(0),
            name: "default".into(),
            operator: Some("max".into()),
        }],
        tables_added: vec![TableAdded {
            keyspace: KeyspaceId(0),
            level: 1,
            run: 0,
            facts: table.facts().clone(),
        }],
        flushed_upto: vec![(KeyspaceId(0), SeqNo(40))],
        replay_from: Some(Lsn(300)),
        seqno_lease: Some(SeqNo(100)),
        next_file: Some(FileNumber(12)),
        next_keyspace: Some(KeyspaceId(1)),
        ..Edit::default()
    };
    let mut encoded = Vec::new();
    edit.encode(&mut encoded);
    let mut state = State::default();
    state.apply(&edit).expect("it fits");
    let fs: Arc<dyn Fs> = Arc::new(disk.clone());
    let mut writer = ManifestWriter::create(&fs, dir(), FileNumber(4), &state).expect("begun");
    writer.append(&Edit { clean_close: Some(SeqNo(50)), ..Edit::default() }).expect("appended");
    let manifest = disk.contents(&FileKind::Manifest.path(dir(), FileNumber(4))).expect("there");
    let bytes = disk.contents(&FileKind::Table.path(dir(), NUMBER)).expect("built");
    let directory = bytes.len() - FOOTER_BYTES - 4 - 5 * 28;
    let directory_of = |mode: u8| {
        let mut seed = [&[mode][..], &bytes[directory..]].concat();
        let footer = seed.len() - FOOTER_BYTES;
        seed[footer] = 4 + 4 * 28;
        seed
    };
    let entries: Vec<u8> = (0..60_u8).flat_map(|i| [1, i, 0, 3, i, i, 7]).collect();
    let described = |mode: u8, patches: &[u8]| [&[mode, 59][..], &entries, patches].concat();
    vec![
        ("edit", "snapshot", encoded),
        ("manifest", "two-edits", [&[1][..], &manifest].concat()),
        ("footer", "five-sections", directory_of(1)),
        ("table", "whole", described(10, &[])),
        ("table", "a-bit-in-a-block", described(0, &[140, 0, 16])),
        ("table", "a-bit-behind-checksums", described(1, &[140, 0, 16])),
    ]
}
