//! Tables against a model: a sorted Vec of entries.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::checksum::Checksum;
use crate::coding::Decoder;
use crate::cursor::Cursor;
use crate::error::Result;
use crate::file::{FileHeader, FileId, FileKind, FileNumber, HEADER_BYTES};
use crate::fs::sim::SimFs;
use crate::fs::{Fs, RealFs};
use crate::key::{self, EntryKind, SeqNo};
use crate::options::{Filter, ReadMode};
use crate::table::block::{Block, BlockBuilder};
use crate::table::builder::TableBuilder;
use crate::table::cache::BlockCache;
use crate::table::cursor::TableCursor;
use crate::table::dump::dump;
use crate::table::layout::section_kind;
use crate::table::reader::Table;
use crate::table::{SEQNO_BEFORE_ALL, TableConfig, TableFacts};

type Entry = (Vec<u8>, SeqNo, EntryKind, Vec<u8>);

const FILTERS: [Filter; 3] =
    [Filter::None, Filter::Bloom { bits_per_key: 10 }, Filter::BinaryFuse8];
const MODES: [ReadMode; 2] = [ReadMode::Mapped, ReadMode::Pread];
const NUMBER: FileNumber = FileNumber(9);

fn dir() -> &'static Path {
    Path::new("db")
}

fn path() -> std::path::PathBuf {
    FileKind::Table.path(dir(), NUMBER)
}

fn sim() -> SimFs {
    let fs = SimFs::new();
    fs.create_dir_all(dir()).unwrap();
    fs
}

fn build(fs: &SimFs, config: &TableConfig, entries: &[Entry]) -> TableFacts {
    build_in(fs, dir(), config, entries)
}

fn build_in(fs: &dyn Fs, dir: &Path, config: &TableConfig, entries: &[Entry]) -> TableFacts {
    let mut builder = TableBuilder::create(fs, dir, NUMBER, config).unwrap();
    builder.reserve(1 << 20).unwrap();
    for (key, seqno, kind, value) in entries {
        builder.add(key, *seqno, *kind, value).unwrap();
    }
    assert_eq!(builder.entries(), entries.len() as u64);
    builder.finish().unwrap()
}

fn random_seed() -> fastrand::Rng {
    let seed = std::env::var("ESKER_SEED").ok().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("ESKER_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Keys of few letters, shared prefixes and zero bytes, so that they collide, nest and tie.
fn random_key(random: &mut fastrand::Rng) -> Vec<u8> {
    const PREFIXES: [&[u8]; 5] =
        [b"", b"\0\0", b"user:0000", b"user:0000\0\0\0\0\0\0\0\0\0", b"\xff"];
    let mut key = PREFIXES[random.usize(..PREFIXES.len())].to_vec();
    let bytes = match random.u8(0..100) {
        0 => random.usize(0..300),
        1..30 => random.usize(0..20),
        _ => random.usize(0..4),
    };
    key.extend((0..bytes).map(|_| b"\0a\xff"[random.usize(0..3)]));
    key
}

fn random_entries(random: &mut fastrand::Rng, count: usize) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let start = if random.bool() { 0 } else { SeqNo::MAX.0 - 10_000 };
    for seqno in 0..count as u64 {
        // Often another version of a key that is there.
        let key = match entries.len() {
            len if len > 0 && random.u8(0..3) == 0 => entries[random.usize(..len)].0.clone(),
            _ => random_key(random),
        };
        let kind = [EntryKind::Put, EntryKind::Delete, EntryKind::Merge][random.usize(0..3)];
        let bytes = match random.u8(0..50) {
            0 => random.usize(0..2000),
            _ => random.usize(0..40),
        };
        let value = if kind == EntryKind::Delete { 0 } else { bytes };
        let letter = random.u8(..);
        let value = (0..value).map(|n| letter.wrapping_add((n / 9) as u8)).collect();
        entries.push((key, SeqNo(start + seqno), kind, value));
    }
    sort(&mut entries);
    entries
}

fn sort(entries: &mut [Entry]) {
    entries.sort_by(|a, b| key::compare(&a.0, a.1, &b.0, b.1));
}

fn bound(entries: &[Entry], key: &[u8], seqno: SeqNo) -> usize {
    entries.partition_point(|e| key::compare(&e.0, e.1, key, seqno).is_lt())
}

fn here(cursor: &TableCursor) -> Option<Entry> {
    cursor.valid().then(|| {
        let value = cursor.value();
        // The owner really holds the bytes.
        assert_eq!(&*value.to_slice(), value.bytes);
        (cursor.key().to_vec(), cursor.seqno(), cursor.kind(), value.bytes.to_vec())
    })
}

fn visit(table: &Table, key: &[u8], snapshot: SeqNo, most: usize) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    let flow = table.visit(key, snapshot, &mut |seqno, kind, value| {
        assert_eq!(&*value.to_slice(), value.bytes);
        found.push((key.to_vec(), seqno, kind, value.bytes.to_vec()));
        if found.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    assert_eq!(flow.is_break(), found.len() == most);
    Ok(found)
}

fn check_all(table: &Arc<Table>, entries: &[Entry], random: &mut fastrand::Rng) {
    for mut cursor in [table.cursor(), table.verifying_cursor()] {
        assert!(!cursor.valid());
        cursor.seek_to_first().unwrap();
        for entry in entries {
            assert_eq!(here(&cursor).as_ref(), Some(entry));
            cursor.next().unwrap();
        }
        assert!(!cursor.valid());
        cursor.seek_to_last().unwrap();
        for entry in entries.iter().rev() {
            assert_eq!(here(&cursor).as_ref(), Some(entry));
            cursor.prev().unwrap();
        }
        assert!(!cursor.valid());
        random_moves(&mut cursor, entries, random);
    }
    for _ in 0..200 {
        let (key, snapshot) = random_target(entries, random);
        let most = random.usize(1..5);
        let model: Vec<Entry> = entries[bound(entries, &key, snapshot)..]
            .iter()
            .take_while(|entry| entry.0 == key)
            .take(most)
            .cloned()
            .collect();
        if !model.is_empty() {
            let hash = key::hash(&key);
            table.prefetch_filter(hash);
            assert!(table.may_contain(hash));
        }
        assert_eq!(visit(table, &key, snapshot, most).unwrap(), model);
    }
}

/// An entry's place, one beside it, or any.
fn random_target(entries: &[Entry], random: &mut fastrand::Rng) -> (Vec<u8>, SeqNo) {
    let (mut key, mut seqno) = (random_key(random), SeqNo(random.u64(0..=SeqNo::MAX.0)));
    if random.u8(0..4) > 0 {
        let entry = &entries[random.usize(..entries.len())];
        key.clone_from(&entry.0);
        seqno = match random.u8(0..5) {
            0 => SeqNo::ZERO,
            1 => SeqNo(entry.1.0.saturating_sub(1)),
            2 => SeqNo((entry.1.0 + 1).min(SeqNo::MAX.0)),
            3 => SeqNo::MAX,
            _ => entry.1,
        };
        match random.u8(0..8) {
            0 => key.push(0),
            1 => drop(key.pop()),
            _ => {}
        }
    }
    (key, seqno)
}

fn random_moves(cursor: &mut TableCursor, entries: &[Entry], random: &mut fastrand::Rng) {
    let mut at: Option<usize> = None;
    for _ in 0..300 {
        let (key, seqno) = random_target(entries, random);
        match (random.u8(0..20), at) {
            (0, _) => (at, _) = (Some(0), cursor.seek_to_first().unwrap()),
            (1, _) => (at, _) = (Some(entries.len() - 1), cursor.seek_to_last().unwrap()),
            (2..5, _) => {
                cursor.seek(&key, seqno).unwrap();
                at = Some(bound(entries, &key, seqno)).filter(|&at| at < entries.len());
            }
            (5..8, _) => {
                cursor.seek_before(&key, seqno).unwrap();
                at = bound(entries, &key, seqno).checked_sub(1);
            }
            (8..14, Some(here)) => {
                cursor.next().unwrap();
                at = Some(here + 1).filter(|&at| at < entries.len());
            }
            (_, Some(here)) => {
                cursor.prev().unwrap();
                at = here.checked_sub(1);
            }
            (_, None) => continue,
        }
        assert_eq!(here(cursor), at.map(|at| entries[at].clone()));
    }
}

fn expected_facts(facts: &TableFacts, entries: &[Entry], file_bytes: usize) -> TableFacts {
    let kinds = |kind| entries.iter().filter(|e| e.2 == kind).count() as u64;
    TableFacts {
        number: NUMBER,
        id: facts.id,
        bytes: file_bytes as u64,
        entries: entries.len() as u64,
        tombstones: kinds(EntryKind::Delete),
        operands: kinds(EntryKind::Merge),
        smallest: entries[0].0.as_slice().into(),
        largest: entries.last().unwrap().0.as_slice().into(),
        seqno_min: entries.iter().map(|e| e.1).min().unwrap(),
        seqno_max: entries.iter().map(|e| e.1).max().unwrap(),
        raw_bytes: entries.iter().map(|e| (e.0.len() + e.3.len()) as u64).sum(),
    }
}

#[test]
fn tables_agree_with_a_sorted_vec() {
    let mut random = random_seed();
    for round in 0..60 {
        let count = [1, 2, 3, 30, 300][random.usize(0..5)];
        let entries = random_entries(&mut random, count);
        let config = TableConfig {
            block_bytes: [1, 64, 300, 4096, 1 << 20][random.usize(0..5)],
            lz4: round % 2 == 0,
            filter: FILTERS[round % 3],
        };
        let fs = sim();
        let facts = build(&fs, &config, &entries);
        assert_eq!(facts, expected_facts(&facts, &entries, fs.contents(&path()).unwrap().len()));
        for mode in MODES {
            let cache = BlockCache::new(random.usize(0..2) << 16);
            let table = Table::open(&fs, dir(), facts.clone(), mode, &cache).unwrap();
            check_all(&table, &entries, &mut random);
            table.verify().unwrap();
            assert!(table.memory_bytes() > 0);
        }
    }
}

#[test]
fn long_keys_and_a_value_beyond_a_chunk() {
    let mut random = random_seed();
    let mut entries = Vec::new();
    for (n, bytes) in [0, 1, 7, 8, 9, 14, 15, 16, 23, 4096, 65_535, 65_536].into_iter().enumerate()
    {
        for last in 0..3 {
            let mut key = vec![b'k'; bytes];
            if let Some(byte) = key.last_mut() {
                *byte = last;
            }
            let seqno = SeqNo(100 - 3 * n as u64 - u64::from(last));
            let value = vec![last; n * usize::from(last) * 50];
            entries.push((key, seqno, EntryKind::Put, value));
        }
    }
    let big = (0..3 << 20).map(|n: u32| (n >> 3) as u8).collect();
    entries.push((b"kbig".to_vec(), SeqNo(200), EntryKind::Merge, big));
    entries.push((b"kbig".to_vec(), SeqNo(199), EntryKind::Put, vec![1; 70_000]));
    entries.push((b"kbig2".to_vec(), SeqNo(198), EntryKind::Put, vec![2; 2 << 20]));
    sort(&mut entries);
    for (lz4, block_bytes) in [(false, 4096), (true, 4096), (false, 8 << 20), (true, 64)] {
        let config = TableConfig { block_bytes, lz4, filter: Filter::BinaryFuse8 };
        let fs = sim();
        let facts = build(&fs, &config, &entries);
        for mode in MODES {
            let table =
                Table::open(&fs, dir(), facts.clone(), mode, &BlockCache::new(1 << 20)).unwrap();
            check_all(&table, &entries, &mut random);
            table.verify().unwrap();
        }
    }
}

#[test]
fn on_a_real_disk_nothing_that_was_reserved_is_left() {
    let mut random = random_seed();
    let folder = tempfile::tempdir().unwrap();
    let fs = RealFs::new();
    let entries = random_entries(&mut random, 3000);
    for (mode, lz4) in [(ReadMode::Mapped, false), (ReadMode::Pread, true)] {
        let config = TableConfig { block_bytes: 4096, lz4, filter: Filter::BinaryFuse8 };
        let facts = build_in(&fs, folder.path(), &config, &entries);
        let path = FileKind::Table.path(folder.path(), NUMBER);
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), facts.bytes);
        let blocks = std::os::unix::fs::MetadataExt::blocks(&metadata);
        assert!(blocks * 512 < facts.bytes + 8192, "{blocks} blocks for {}", facts.bytes);
        let table =
            Table::open(&fs, folder.path(), facts, mode, &BlockCache::new(1 << 20)).unwrap();
        check_all(&table, &entries, &mut random);
        table.verify().unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn many_versions_of_a_key_over_many_blocks() {
    let mut entries = Vec::new();
    for key in [b"a".as_slice(), b"counter", b"counter\0", b"d"] {
        for seqno in 0..200 {
            entries.push((key.to_vec(), SeqNo(seqno * 3), EntryKind::Merge, vec![1; 3]));
        }
    }
    sort(&mut entries);
    let config = TableConfig { block_bytes: 64, lz4: false, filter: Filter::None };
    let fs = sim();
    let facts = build(&fs, &config, &entries);
    let table = Table::open(&fs, dir(), facts, ReadMode::Mapped, &BlockCache::new(0)).unwrap();
    assert!(table.index().unwrap().count() > 80);
    for snapshot in (0..610).map(SeqNo) {
        for key in [b"a".as_slice(), b"counter", b"counter\0", b"d", b"c", b"e", b""] {
            let model: Vec<_> = entries[bound(&entries, key, snapshot)..]
                .iter()
                .take_while(|e| e.0 == key)
                .cloned()
                .collect();
            assert_eq!(visit(&table, key, snapshot, usize::MAX).unwrap(), model);
        }
    }
}

#[test]
fn facts_round_trip_and_any_bytes_are_facts_or_an_error() {
    let fs = sim();
    let config = TableConfig { block_bytes: 64, lz4: false, filter: Filter::None };
    let facts = build(&fs, &config, &random_entries(&mut fastrand::Rng::with_seed(1), 40));
    let mut bytes = Vec::new();
    facts.encode(&mut bytes);
    assert_eq!(TableFacts::decode(&mut Decoder::new(&bytes)), Ok(facts));
    for cut in 0..bytes.len() {
        assert!(TableFacts::decode(&mut Decoder::new(&bytes[..cut])).is_err());
    }
}

#[test]
fn a_dropped_builder_removes_its_file_but_not_somebody_elses() {
    let fs = sim();
    let config = TableConfig { block_bytes: 64, lz4: false, filter: Filter::None };
    let mut builder = TableBuilder::create(&fs, dir(), NUMBER, &config).unwrap();
    builder.add(b"a", SeqNo(1), EntryKind::Put, b"").unwrap();
    assert!(TableBuilder::create(&fs, dir(), NUMBER, &config).is_err());
    assert_eq!(fs.list(dir()).unwrap().len(), 1);
    drop(builder);
    assert!(fs.list(dir()).unwrap().is_empty());
}

#[test]
#[should_panic(expected = "ascending order")]
fn entries_out_of_order_are_a_bug_of_the_caller() {
    let fs = sim();
    let config = TableConfig { block_bytes: 64, lz4: false, filter: Filter::None };
    let mut builder = TableBuilder::create(&fs, dir(), NUMBER, &config).unwrap();
    builder.add(b"a", SeqNo(1), EntryKind::Put, b"").unwrap();
    builder.add(b"a", SeqNo(1), EntryKind::Put, b"").unwrap();
}

#[test]
fn the_estimate_of_the_size_is_near() {
    let mut random = fastrand::Rng::with_seed(3);
    for filter in FILTERS {
        let config = TableConfig { block_bytes: 4096, lz4: false, filter };
        let fs = sim();
        let mut builder = TableBuilder::create(&fs, dir(), NUMBER, &config).unwrap();
        for n in 0..20_000u64 {
            let value: Vec<u8> = (0..100).map(|_| random.u8(..)).collect();
            builder.add(&n.to_be_bytes(), SeqNo(n), EntryKind::Put, &value).unwrap();
        }
        let estimate = builder.bytes();
        let bytes = builder.finish().unwrap().bytes;
        assert!(estimate.abs_diff(bytes) < bytes / 50, "{filter:?}: {estimate} for {bytes}");
    }
}

/// Small tables of each codec, filter and a few block sizes, with the entries in them.
fn small_tables() -> Vec<(SimFs, TableFacts, Vec<Entry>)> {
    let mut tables = Vec::new();
    for (n, filter) in FILTERS.into_iter().enumerate() {
        for lz4 in [false, true] {
            let mut entries = random_entries(&mut fastrand::Rng::with_seed(n as u64), 20);
            for n in 0..8u8 {
                let key = [b"zz".as_slice(), &[n / 3]].concat();
                entries.push((key, SeqNo(90 - u64::from(n)), EntryKind::Put, vec![n; 60]));
            }
            entries.retain(|entry| entry.0.len() + entry.3.len() < 100);
            sort(&mut entries);
            let block_bytes = if lz4 { 256 } else { 100 };
            let fs = sim();
            let facts = build(&fs, &TableConfig { block_bytes, lz4, filter }, &entries);
            tables.push((fs, facts, entries));
        }
    }
    tables
}

/// Every way to read the table gives what was written or says that it is damaged; `verify` and
/// the compaction's cursor say so always, if `damaged`.
fn check_damage(fs: &SimFs, facts: &TableFacts, entries: &[Entry], damaged: bool) {
    for mode in MODES {
        let cache = BlockCache::new(1 << 16);
        let table = match Table::open(fs, dir(), facts.clone(), mode, &cache) {
            Ok(table) => table,
            Err(error) => {
                assert!(damaged && error.is_corruption(), "{error}");
                continue;
            }
        };
        for (key, seqno, ..) in entries {
            let model: Vec<Entry> = entries[bound(entries, key, *seqno)..]
                .iter()
                .take_while(|entry| entry.0 == *key)
                .cloned()
                .collect();
            assert!(table.may_contain(key::hash(key)));
            match visit(&table, key, *seqno, usize::MAX) {
                Ok(found) => assert_eq!(found, model),
                Err(error) => assert!(damaged && error.is_corruption(), "{error}"),
            }
        }
        for mut cursor in [table.cursor(), table.verifying_cursor()] {
            let mut moved = cursor.seek_to_first();
            let mut model = entries.iter();
            while moved.is_ok() && cursor.valid() {
                assert_eq!(here(&cursor).as_ref(), model.next());
                moved = cursor.next();
            }
            match moved {
                Ok(()) => assert!(model.next().is_none()),
                Err(error) => assert!(damaged && error.is_corruption(), "{error}"),
            }
            assert!(!cursor.valid());
        }
        match table.verify() {
            Ok(()) => assert!(!damaged, "damage that verify does not see"),
            Err(error) => assert!(damaged && error.is_corruption(), "{error}"),
        }
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    for (fs, facts, entries) in small_tables() {
        check_damage(&fs, &facts, &entries, false);
        let good = fs.contents(&path()).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs.set_contents(&path(), &bad).unwrap();
            check_damage(&fs, &facts, &entries, true);
        }
    }
}

#[test]
fn truncation_at_every_length_and_growth_are_noticed() {
    for (fs, facts, entries) in small_tables() {
        let good = fs.contents(&path()).unwrap();
        for len in 0..good.len() {
            fs.set_contents(&path(), &good[..len]).unwrap();
            check_damage(&fs, &facts, &entries, true);
        }
        fs.set_contents(&path(), &[&good[..], &[0]].concat()).unwrap();
        check_damage(&fs, &facts, &entries, true);
    }
}

#[test]
fn blocks_at_another_place_or_from_another_file_are_noticed() {
    let entries: Vec<Entry> = (0..40u8)
        .map(|n| (vec![b'k', n], SeqNo(u64::from(n)), EntryKind::Put, vec![n; 20]))
        .collect();
    let config = TableConfig { block_bytes: 80, lz4: false, filter: Filter::None };
    let fs = sim();
    let other = build(&fs, &config, &entries);
    let other_bytes = fs.contents(&path()).unwrap();
    fs.remove(&path()).unwrap();
    let facts = build(&fs, &config, &entries);
    assert_ne!(facts.id, other.id);
    let good = fs.contents(&path()).unwrap();
    let cache = BlockCache::new(0);
    let table = Table::open(&fs, dir(), facts.clone(), ReadMode::Pread, &cache).unwrap();
    let index = table.index().unwrap();
    let places: Vec<_> = (0..index.count()).map(|n| table.place(index, n).unwrap()).collect();
    let range = |n: usize| places[n].start as usize..places[n].end as usize;

    let mut swapped = good.clone();
    assert_eq!(range(3).len(), range(7).len());
    swapped[range(3)].copy_from_slice(&good[range(7)]);
    swapped[range(7)].copy_from_slice(&good[range(3)]);
    fs.set_contents(&path(), &swapped).unwrap();
    check_damage(&fs, &facts, &entries, true);

    let mut mixed = good.clone();
    mixed[range(3)].copy_from_slice(&other_bytes[range(3)]);
    fs.set_contents(&path(), &mixed).unwrap();
    check_damage(&fs, &facts, &entries, true);

    // The whole of another file that has the same name and the same entries.
    fs.set_contents(&path(), &other_bytes).unwrap();
    check_damage(&fs, &facts, &entries, true);
}

/// Fixes every checksum of the table, as a fuzzer does, where the structure lets it find them.
fn fix_checksums(bytes: &mut [u8]) -> Option<()> {
    let fix = |bytes: &mut [u8], checksum: Checksum, start: usize, end: usize, at: usize| {
        let sum = checksum.of(start as u64, bytes.get(start..end)?).to_le_bytes();
        bytes.get_mut(at..at + 4)?.copy_from_slice(&sum);
        Some(())
    };
    let id = FileId(u128::from_le_bytes(bytes.get(16..32)?.try_into().ok()?));
    let checksum = Checksum::new(id);
    fix(bytes, checksum, 0, 124, 124)?;
    let footer = bytes.len().checked_sub(32)?;
    let directory = u64::from_le_bytes(bytes[footer..footer + 8].try_into().ok()?) as usize;
    let count = u32::from_le_bytes(bytes.get(directory..)?.get(..4)?.try_into().ok()?);
    for n in 0..(count as usize).min(8) {
        let entry = directory + 4 + 28 * n;
        let field = |at: usize| -> Option<usize> {
            Some(u64::from_le_bytes(bytes.get(entry + at..)?.get(..8)?.try_into().ok()?) as usize)
        };
        let kind = *bytes.get(entry)?;
        let (offset, length) = (field(8)?, field(16)?);
        let end = offset.checked_add(length)?;
        if kind != section_kind::DATA as u8 {
            fix(bytes, checksum, offset, end, entry + 24);
        }
        if kind == section_kind::INDEX as u8 {
            fix_frames(bytes, offset, end, checksum);
        }
    }
    fix(bytes, checksum, directory, footer, footer + 12)?;
    fix(bytes, checksum, footer, footer + 20, footer + 20)
}

fn fix_frames(bytes: &mut [u8], index: usize, index_end: usize, checksum: Checksum) -> Option<()> {
    let index = bytes.get(index..index_end)?.to_vec();
    let block = Block::new(&index).ok()?;
    for n in 0..block.count().min(1000) {
        let Ok(row) = block.row(n) else { continue };
        let mut place = Decoder::new(row.value);
        let (start, len) = (place.u64().ok()? as usize, place.u32().ok()? as usize);
        let end = start.checked_add(len)?.checked_sub(4)?;
        let Some(frame) = bytes.get(start..end) else { continue };
        let sum = checksum.of(start as u64, frame).to_le_bytes();
        if let Some(at) = bytes.get_mut(end..end + 4) {
            at.copy_from_slice(&sum);
        }
    }
    Some(())
}

#[test]
fn bytes_under_right_checksums_never_panic_or_run_away() {
    let mut random = random_seed();
    let mut opened = 0;
    for (fs, facts, entries) in small_tables() {
        let good = fs.contents(&path()).unwrap();
        let mut same = good.clone();
        fix_checksums(&mut same).unwrap();
        assert_eq!(same, good, "what is right stays as it is");
        for _ in 0..3000 {
            let mut bad = good.clone();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(HEADER_BYTES..bad.len());
                bad[at] = match random.u8(0..3) {
                    0 => random.u8(..),
                    1 => bad[at] ^ 1 << random.u8(0..8),
                    _ => [0, 1, 0x7f, 0xff][random.usize(0..4)],
                };
            }
            fix_checksums(&mut bad);
            fs.set_contents(&path(), &bad).unwrap();
            let mode = MODES[random.usize(0..2)];
            let cache = BlockCache::new(1 << 16);
            let Ok(table) = Table::open(&fs, dir(), facts.clone(), mode, &cache) else { continue };
            opened += 1;
            for (key, ..) in &entries {
                table.prefetch_filter(key::hash(key));
                table.may_contain(key::hash(key));
                let _ = visit(&table, key, SeqNo::MAX, usize::MAX);
            }
            for mut cursor in [table.cursor(), table.verifying_cursor()] {
                let mut moved = cursor.seek_to_first();
                while moved.is_ok() && cursor.valid() {
                    moved = cursor.next();
                }
                let mut moved = cursor.seek_to_last();
                while moved.is_ok() && cursor.valid() {
                    moved = cursor.prev();
                }
            }
            let _ = table.verify();
            let _ = dump(&fs, dir(), NUMBER, &mut std::io::sink());
        }
    }
    assert!(opened > 1000, "{opened} of the damaged tables got past open");
}

#[test]
fn a_block_of_any_bytes_is_validated_or_refused() {
    let mut random = random_seed();
    let mut sound = 0;
    for _ in 0..20_000 {
        let entries = random_entries(&mut fastrand::Rng::with_seed(random.u64(0..20)), 12);
        let mut builder = BlockBuilder::default();
        for (key, seqno, kind, value) in &entries {
            builder.add(key, seqno.0, *kind, value);
        }
        let mut bytes = Vec::new();
        builder.finish(&mut bytes);
        Block::new(&bytes).unwrap().validate(SEQNO_BEFORE_ALL).unwrap();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        bytes.truncate(random.usize(bytes.len() / 2..=bytes.len() * 9 / 8).min(bytes.len()));
        let Ok(block) = Block::new(&bytes) else { continue };
        // Also what was not validated must not panic: a page can rot afterwards.
        for index in 0..block.count() {
            let _ = block.row(index);
        }
        for (key, seqno, ..) in &entries {
            let _ = block.lower_bound(key, *seqno);
        }
        sound += usize::from(block.validate(SeqNo::MAX.0).is_ok());
    }
    assert!(sound > 10, "{sound} damaged blocks were still blocks");
}

#[test]
fn rows_out_of_order_or_twice_are_refused() {
    for (first, second) in [
        (("ab", 5), ("aa", 6)),
        (("aa", 5), ("aa", 6)),
        (("aa", 5), ("aa", 5)),
        (("ax", 5), ("a", 5)),
    ] {
        for tail in ["", "-and-so-on", "-and-s"] {
            let mut builder = BlockBuilder::default();
            for (key, seqno) in [first, second] {
                builder.add(format!("{key}{tail}").as_bytes(), seqno, EntryKind::Put, b"v");
            }
            let mut bytes = Vec::new();
            builder.finish(&mut bytes);
            let block = Block::new(&bytes).unwrap();
            assert_eq!(block.validate(SeqNo::MAX.0).unwrap_err().0, "rows out of order");
        }
    }
}

#[test]
fn keys_that_tie_in_the_largest_head() {
    let keys: Vec<Vec<u8>> = (0..40).map(|n| vec![0xff; n]).collect();
    let mut builder = BlockBuilder::default();
    for key in &keys {
        for seqno in [9, 4] {
            builder.add(key, seqno, EntryKind::Put, b"");
        }
    }
    let mut bytes = Vec::new();
    builder.finish(&mut bytes);
    let block = Block::new(&bytes).unwrap();
    block.validate(SeqNo::MAX.0).unwrap();
    for (n, key) in keys.iter().enumerate() {
        for (seqno, row) in [(10, 0), (9, 0), (8, 1), (4, 1), (3, 2)] {
            assert_eq!(block.lower_bound(key, SeqNo(seqno)), Ok(2 * n + row), "{n} {seqno}");
        }
    }
}

#[test]
fn the_block_of_the_drawing() {
    let mut builder = BlockBuilder::default();
    builder.add(b"apple", 7, EntryKind::Put, b"x");
    let mut bytes = Vec::new();
    builder.finish(&mut bytes);
    let drawn = "01000000 0500 00 00 0700000000000000 6170706c65 0000000000000000 0000 01 78";
    assert_eq!(hex(&bytes), drawn.replace(' ', ""));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fruit(fs: &SimFs, lz4: bool) -> TableFacts {
    let mut entries = vec![
        (b"apple".to_vec(), SeqNo(7), EntryKind::Put, b"red".to_vec()),
        (b"apple".to_vec(), SeqNo(3), EntryKind::Delete, vec![]),
        (b"apricot".to_vec(), SeqNo(9), EntryKind::Put, b"\0\xff".to_vec()),
        (b"banana".to_vec(), SeqNo(4), EntryKind::Merge, b"+1".to_vec()),
        (b"banana split".to_vec(), SeqNo(5), EntryKind::Put, vec![b'y'; 200]),
        (b"cherry".to_vec(), SeqNo(8), EntryKind::Put, b"dark".to_vec()),
    ];
    sort(&mut entries);
    build(fs, &TableConfig { block_bytes: 64, lz4, filter: Filter::BinaryFuse8 }, &entries)
}

/// Compares with a file of this folder; `GOLDEN=write` rewrites it, for a review as a diff.
fn golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/table/golden").join(name);
    if std::env::var_os("GOLDEN").is_some_and(|how| how == "write") {
        std::fs::write(&path, found).unwrap();
    }
    assert_eq!(found, std::fs::read_to_string(&path).unwrap(), "{name}:\n{found}");
}

#[test]
fn golden_dump() {
    let fs = sim();
    fruit(&fs, true);
    let mut text = Vec::new();
    dump(&fs, dir(), NUMBER, &mut text).unwrap();
    golden("fruit.txt", std::str::from_utf8(&text).unwrap());
}

#[test]
fn golden_bytes() {
    let fs = sim();
    fruit(&fs, false);
    let bytes = fs.contents(&path()).unwrap();
    FileHeader::decode(&bytes, FileKind::Table, &path()).unwrap();
    let lines: Vec<String> = bytes.chunks(32).map(hex).collect();
    golden("fruit.hex", &lines.join("\n"));
}
