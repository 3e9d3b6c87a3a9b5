//! Every kind of damage is found and named, in a small database on a simulated disk.

use std::path::PathBuf;

use super::*;
use crate::db::Db;
use crate::db::keyspace::KeyspaceOptions;
use crate::error::ErrorKind;
use crate::file::{FileHeader, FileKind, FileNumber, parse_name};
use crate::fs::sim::SimFs;
use crate::key::SeqNo;
use crate::manifest::edit::{Edit, TableAdded};
use crate::manifest::reader::load;
use crate::manifest::writer::ManifestWriter;
use crate::operator::Counter;
use crate::options::{Compression, Filter, Limits, Options};
use crate::record::reader::offset_of;
use crate::runtime::Runtime;
use crate::table::TableFacts;

fn dir() -> &'static Path {
    Path::new("/db")
}

fn open(disk: &SimFs, filter: Filter) -> Db {
    // Memtables that hold the last round's few entries without being full.
    let limits = Limits { memtable_bytes: 16 << 10, table_bytes: 1024, ..Options::tiny().limits() };
    let compression = Compression::Lz4;
    let options = Options { filter, compression, limits: Some(limits), ..Options::tiny() };
    Db::open_on(Arc::new(disk.clone()), Runtime::threads(), dir(), options).unwrap()
}

/// A database with tables on several levels, both filters, two keyspaces, and a log to replay.
fn database() -> SimFs {
    let disk = SimFs::new();
    for (round, filter) in
        [Filter::BinaryFuse8, Filter::Bloom { bits_per_key: 10 }].into_iter().enumerate()
    {
        let db = open(&disk, filter);
        let counts = db.keyspace("counts", KeyspaceOptions::new().merge(Counter::default()));
        let counts = counts.unwrap();
        for i in 0..150 {
            db.put(format!("key {:03}", i * 7 % 200), format!("value {round} {i:030}")).unwrap();
            counts.merge(format!("count {:02}", i % 50), 1).unwrap();
        }
        db.delete("key 007").unwrap();
        db.flush().unwrap();
        db.settle().unwrap();
        for i in 0..4 {
            db.put(format!("late {i}"), "in the log only").unwrap();
        }
    }
    disk
}

fn check(disk: &SimFs) -> Result<VerifyReport> {
    let fs: Arc<dyn Fs> = Arc::new(disk.clone());
    verify_on(&fs, dir(), &mut |_| {})
}

/// The text of the report on a database that is not whole.
#[track_caller]
fn damage(disk: &SimFs) -> String {
    let before = disk.state_hash();
    let report = check(disk).unwrap();
    assert_eq!(disk.state_hash(), before, "verify changed something");
    assert!(!report.is_ok(), "no damage found");
    report.to_string()
}

#[track_caller]
fn assert_damage(disk: &SimFs, expected: &[&str]) {
    let text = damage(disk);
    for expected in expected {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
}

fn files(disk: &SimFs, kind: FileKind) -> Vec<PathBuf> {
    let mut names = disk.list(dir()).unwrap();
    names.retain(|name| parse_name(name).is_some_and(|(found, _)| found == kind));
    names.sort();
    names.into_iter().map(|name| dir().join(name)).collect()
}

/// The tables that the manifest names.
fn live_tables(disk: &SimFs) -> Vec<PathBuf> {
    let fs: Arc<dyn Fs> = Arc::new(disk.clone());
    let state = load(&fs, dir()).unwrap().unwrap().state;
    let paths = state.tables().map(|(.., facts)| FileKind::Table.path(dir(), facts.number));
    paths.collect()
}

fn flip(disk: &SimFs, path: &Path, at: usize) {
    let mut bytes = disk.contents(path).unwrap();
    bytes[at] ^= 0x10;
    disk.set_contents(path, &bytes).unwrap();
}

#[test]
fn a_healthy_database_is_ok_and_is_not_touched() {
    let disk = database();
    let before = disk.state_hash();
    let mut seen = Vec::new();
    let fs: Arc<dyn Fs> = Arc::new(disk.clone());
    let report = verify_on(&fs, dir(), &mut |name| seen.push(name.to_string())).unwrap();
    assert!(report.is_ok(), "{report}");
    assert_eq!(disk.state_hash(), before);
    assert_eq!(report.keyspaces, 2);
    assert!(report.tables > 5 && report.entries > 200, "{report}");
    assert!(report.commits >= 4 && report.operations >= 4, "{report}");
    assert_eq!(report.tables as usize, live_tables(&disk).len());
    assert!(
        live_tables(&disk).iter().all(|path| {
            seen.contains(&path.file_name().unwrap().to_string_lossy().into_owned())
        })
    );
    assert!(report.to_string().ends_with("ok\n"), "{report}");

    open(&disk, Filter::None).close().unwrap();
    let report = check(&disk).unwrap();
    assert!(report.is_ok() && report.commits == 0, "{report}");
}

#[test]
fn an_open_database_is_locked_and_an_empty_directory_is_none() {
    let disk = SimFs::new();
    let db = open(&disk, Filter::None);
    assert_eq!(check(&disk).unwrap_err().kind(), &ErrorKind::Locked);
    drop(db);
    assert!(check(&disk).unwrap().is_ok());
    let fs: Arc<dyn Fs> = Arc::new(disk);
    for nothing in ["/none", "/empty"] {
        if nothing == "/empty" {
            fs.create_dir_all(Path::new(nothing)).unwrap();
        }
        let error = verify_on(&fs, Path::new(nothing), &mut |_| {}).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
        assert!(
            fs.list(Path::new(nothing)).is_ok_and(|names| names.is_empty()) || nothing == "/none"
        );
    }
}

#[test]
fn a_database_without_its_lock_file_is_not_given_one() {
    let disk = database();
    disk.remove(&dir().join("LOCK")).unwrap();
    assert!(check(&disk).unwrap().is_ok());
    assert!(!disk.list(dir()).unwrap().contains(&"LOCK".to_string()));
}

#[test]
fn every_flipped_byte_of_a_table_is_found() {
    let disk = database();
    let path = live_tables(&disk)[0].clone();
    for at in 0..disk.contents(&path).unwrap().len() {
        flip(&disk, &path, at);
        assert_damage(&disk, &[&format!("damage: {}", path.display()), "damaged in 1 place"]);
        flip(&disk, &path, at);
    }
    assert!(check(&disk).unwrap().is_ok());
}

#[test]
fn tables_that_are_missing_short_swapped_or_misplaced_are_named() {
    let disk = database();
    let tables = live_tables(&disk);
    let (first, second) = (&tables[0], &tables[1]);
    let contents = disk.contents(first).unwrap();
    disk.set_contents(first, &contents[..contents.len() - 1]).unwrap();
    assert_damage(&disk, &[&format!("damage: {}", first.display())]);
    disk.set_contents(first, &disk.contents(second).unwrap()).unwrap();
    assert_damage(&disk, &[&format!("damage: {}", first.display()), "that the manifest names"]);
    disk.remove(first).unwrap();
    disk.remove(second).unwrap();
    let missing = format!("damage: {} at 0x0: expected a table of", first.display());
    assert_damage(&disk, &[&missing, "found no file", "damaged in 2 places"]);
}

#[test]
fn a_lost_or_damaged_current_is_found_and_the_rest_is_still_checked() {
    let disk = database();
    let current = dir().join("CURRENT");
    let line = disk.contents(&current).unwrap();
    let table = live_tables(&disk)[0].clone();
    for at in 0..line.len() {
        flip(&disk, &current, at);
        assert_damage(&disk, &["damage: /db/CURRENT at 0x0", "damaged in 1 place"]);
        flip(&disk, &current, at);
    }
    flip(&disk, &table, 200);
    disk.remove(&current).unwrap();
    let named = format!("damage: {}", table.display());
    assert_damage(&disk, &["damage: /db/CURRENT at 0x0", &named, "damaged in 2 places"]);
}

#[test]
fn a_damaged_manifest_is_found() {
    let disk = database();
    let manifest = files(&disk, FileKind::Manifest).pop().unwrap();
    for at in [3, 20, 130, 170] {
        flip(&disk, &manifest, at);
        assert_damage(&disk, &[&format!("damage: {}", manifest.display()), "tables: "]);
        flip(&disk, &manifest, at);
    }
    disk.remove(&manifest).unwrap();
    assert_damage(&disk, &["damage: /db/CURRENT", "a manifest that exists"]);
}

#[test]
fn a_torn_last_edit_and_a_torn_log_are_remarks() {
    let disk = database();
    let manifest = files(&disk, FileKind::Manifest).pop().unwrap();
    let mut bytes = disk.contents(&manifest).unwrap();
    bytes.extend([7; 20]);
    disk.set_contents(&manifest, &bytes).unwrap();
    let log = last_log(&disk);
    let mut bytes = disk.contents(&log).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[end] ^= 1;
    disk.set_contents(&log, &bytes).unwrap();
    let report = check(&disk).unwrap();
    assert!(report.is_ok(), "{report}");
    let text = report.to_string();
    assert!(text.contains(&format!("remark: {}", manifest.display())), "{text}");
    assert!(text.contains(&format!("remark: {}", log.display())), "{text}");
}

/// The log that takes records: the last one that is not a spare.
fn last_log(disk: &SimFs) -> PathBuf {
    let mut logs = files(disk, FileKind::Log);
    logs.retain(|path| disk.contents(path).unwrap().iter().any(|byte| *byte != 0));
    logs.pop().unwrap()
}

#[test]
fn a_log_damaged_before_records_that_prove_it_was_whole_is_found() {
    let disk = database();
    let log = last_log(&disk);
    let bytes = disk.contents(&log).unwrap();
    let fs: Arc<dyn Fs> = Arc::new(disk.clone());
    let from = load(&fs, dir()).unwrap().unwrap().state.replay_from();
    let header = FileHeader::decode(&bytes, FileKind::Log, &log).unwrap();
    let at = offset_of(&header, from.max(header.first_lsn)) as usize;
    flip(&disk, &log, at + 1);
    let named = format!("damage: {} at {at:#x}", log.display());
    assert_damage(&disk, &[&named, "damaged in 1 place"]);
}

#[test]
fn what_is_not_needed_is_a_remark() {
    let disk = database();
    for name in ["000001.table", "manifest-000000", "CURRENT.tmp", "notes"] {
        let path = dir().join(name);
        assert!(!disk.list(dir()).unwrap().contains(&name.to_string()), "{name}");
        disk.create(&path).unwrap().write_at(0, b"x").unwrap();
        let report = check(&disk).unwrap();
        let text = report.to_string();
        assert!(report.is_ok() && text.contains(&format!("remark: /db/{name}")), "{text}");
        disk.remove(&path).unwrap();
    }
}

/// Puts a manifest in place whose state has one edit more than the live one.
fn edit(disk: &SimFs, change: impl FnOnce(&mut Edit)) {
    let fs: Arc<dyn Fs> = Arc::new(disk.clone());
    let mut state = load(&fs, dir()).unwrap().unwrap().state;
    let number = FileNumber(state.next_file().0 + 10);
    let next_file = Some(FileNumber(number.0 + 10));
    state.apply(&Edit { next_file, ..Edit::default() }).unwrap();
    let mut edit = Edit::default();
    change(&mut edit);
    let mut writer = ManifestWriter::create(&fs, dir(), number, &state).unwrap();
    writer.append(&edit).unwrap();
}

#[test]
fn levels_that_are_none_are_found() {
    let disk = database();
    let fs: Arc<dyn Fs> = Arc::new(disk.clone());
    let state = load(&fs, dir()).unwrap().unwrap().state;
    let (keyspace, _, _, facts) = state.tables().next().unwrap();
    // Two runs of level 0 that share their seqnos, in a table that is missing besides; beyond
    // what is flushed.
    let number = FileNumber(state.next_file().0 + 11);
    let seqno_max = SeqNo(state.seqno_lease().0);
    let facts = TableFacts { seqno_max, ..facts.clone() };
    edit(&disk, |edit| {
        for (run, number) in [(1 << 40, number), (1 << 41, FileNumber(number.0 + 1))] {
            let facts = TableFacts { number, ..facts.clone() };
            edit.tables_added.push(TableAdded { keyspace, level: 0, run, facts });
        }
    });
    let missing = FileKind::Table.path(dir(), number);
    let missing = format!("damage: {}", missing.display());
    assert_damage(&disk, &["that form levels", "entries that are flushed", &missing]);
}

// Dumps.

fn text(disk: &SimFs, path: &Path) -> Result<String> {
    let fs: Arc<dyn Fs> = Arc::new(disk.clone());
    let mut out = Vec::new();
    dump_on(&fs, path, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn every_file_of_a_database_has_a_text() {
    let disk = database();
    for name in disk.list(dir()).unwrap() {
        let text = text(&disk, &dir().join(&name)).unwrap();
        let begins = match parse_name(&name) {
            Some((FileKind::Log, _)) => ["log ", "spare log: "].as_slice(),
            Some((FileKind::Table, _)) => &["table "],
            Some((FileKind::Manifest, _)) => &["manifest "],
            None if name == "CURRENT" => &["current \"manifest-"],
            None => &["lock: "],
        };
        assert!(begins.iter().any(|begins| text.starts_with(begins)), "{name}:\n{text}");
        assert!(text.ends_with('\n') && !text.contains("bad:"), "{name}:\n{text}");
    }
    let log = text(&disk, &last_log(&disk)).unwrap();
    assert!(log.contains("put 0 \"late 3\" = \"in the log only\""), "{log}");
}

#[test]
fn a_file_of_another_name_is_known_by_its_first_bytes() {
    let disk = database();
    let log = disk.contents(&last_log(&disk)).unwrap();
    let table = disk.contents(&live_tables(&disk)[0]).unwrap();
    let path = Path::new("/db/copy");
    let file = disk.create(path).unwrap();
    file.write_at(0, &log).unwrap();
    assert_eq!(text(&disk, path).unwrap(), text(&disk, &last_log(&disk)).unwrap());
    disk.set_contents(path, &table).unwrap();
    let error = text(&disk, path).unwrap_err().to_string();
    let name = live_tables(&disk)[0].file_name().unwrap().to_string_lossy().into_owned();
    assert!(error.contains(&format!("is a table: name it {name}")), "{error}");
    disk.set_contents(path, b"something else").unwrap();
    assert_eq!(text(&disk, path).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    let missing = text(&disk, Path::new("/db/none")).unwrap_err();
    assert_eq!(missing.kind(), &ErrorKind::Io(io::ErrorKind::NotFound));
}

#[test]
fn a_dump_of_a_damaged_table_shows_what_comes_before() {
    let disk = database();
    let path = live_tables(&disk)[0].clone();
    let whole = text(&disk, &path).unwrap();
    flip(&disk, &path, 130);
    let fs: Arc<dyn Fs> = Arc::new(disk.clone());
    let mut out = Vec::new();
    let error = dump_on(&fs, &path, &mut out).unwrap_err();
    assert!(error.is_corruption(), "{error}");
    assert!(out.len() > 100 && whole.as_bytes().starts_with(&out));
    disk.set_contents(&dir().join("CURRENT"), b"nothing").unwrap();
    let current = text(&disk, &dir().join("CURRENT")).unwrap();
    assert!(current.starts_with("current \"nothing\"\nbad: corruption in "), "{current}");
}
