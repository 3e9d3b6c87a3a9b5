//! A database of format version 1, kept in `tests/fixtures/v1`: every later version opens it and
//! finds all of it.
//!
//! It has tables with either filter and either codec, several versions of a key, tombstones,
//! operands that are not folded, a keyspace that was dropped, and commits that are in the log only.
//! `tests/fixtures/v1.txt` is the text of all its files as `esker dump` prints them, so that what
//! the bytes mean is pinned too.
//!
//! ```sh
//! GOLDEN=write cargo test --all-features --test it fixture::regenerate -- --ignored
//! ```
//!
//! writes both anew, from a simulated disk and stepped threads: the same code writes the same
//! bytes. Once a version was released its fixture is never written again; the next format gets a
//! folder of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use esker::fs::{Fs, sim::SimFs};
use esker::runtime::Runtime;
use esker::{
    Append, Compression, Counter, Db, Filter, Keyspace, KeyspaceOptions, Options, ReadMode, tools,
};

/// More would be a burden on every clone.
const BYTES_MAX: usize = 64 << 10;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1")
}

fn text_path() -> PathBuf {
    fixture().with_extension("txt")
}

struct Opened {
    db: Db,
    counts: Keyspace,
    notes: Keyspace,
}

impl Opened {
    fn new(db: Db) -> Opened {
        let counts = KeyspaceOptions::new().merge(Counter::default());
        let counts = db.keyspace("counts", counts).unwrap();
        let notes = db.keyspace("notes ä", KeyspaceOptions::new().merge(Append)).unwrap();
        Opened { db, counts, notes }
    }
}

fn key(i: u32) -> Vec<u8> {
    format!("key {i:04}").into_bytes()
}

fn value(i: u32, version: u32) -> Vec<u8> {
    let mut value = format!("version {version} of {i}: ").into_bytes();
    value.resize(100 + (i as usize * 7) % 90, b'.');
    value
}

// What is written.

fn write(disk: &SimFs) {
    first_session(disk);
    second_session(disk);
}

fn session(disk: &SimFs, filter: Filter, compression: Compression) -> Opened {
    let mut options = Options::default();
    options.memory = 1 << 20;
    options.threads = 1;
    options.filter = filter;
    options.compression = compression;
    let fs: Arc<dyn Fs> = Arc::new(disk.clone());
    Opened::new(Db::open_on(fs, Runtime::stepper(1), "/db", options).unwrap())
}

/// Leaves tables in the last level: LZ4, Bloom filters.
fn first_session(disk: &SimFs) {
    let Opened { db, counts, notes } =
        session(disk, Filter::Bloom { bits_per_key: 10 }, Compression::Lz4);
    for i in 0..80 {
        db.put(key(i), value(i, 1)).unwrap();
        counts.merge(format!("count {}", i % 5), i64::from(i)).unwrap();
    }
    notes.merge("day 1", "rain, ").unwrap();
    db.flush().unwrap();
    for keyspace in [&*db, &counts, &notes] {
        keyspace.compact_range::<&[u8]>(..).unwrap();
    }
    db.close().unwrap();
}

/// Leaves tables in level 0: as they are, binary fuse filters; and a log.
fn second_session(disk: &SimFs) {
    let Opened { db, counts, notes } = session(disk, Filter::BinaryFuse8, Compression::None);
    for i in 0..20 {
        db.put(key(4 * i), value(4 * i, 2)).unwrap();
    }
    // Until the flush, so that it keeps the versions on either side.
    let before = db.snapshot();
    for i in 0..10 {
        db.put(key(8 * i), value(8 * i, 3)).unwrap();
        db.delete(key(8 * i + 1)).unwrap();
    }
    counts.merge("count 0", -7).unwrap();
    notes.merge("day 1", "sun").unwrap();
    notes.put("day 2", "snow").unwrap();
    notes.delete("day 3").unwrap();
    db.flush().unwrap();
    drop(before);
    let gone = db.keyspace("gone", KeyspaceOptions::new()).unwrap();
    gone.put("key", "never to be seen again").unwrap();
    db.drop_keyspace("gone").unwrap();
    let mut batch = db.batch();
    batch.put(&db, key(900), value(900, 4)).delete(&db, key(2));
    batch.merge(&counts, "count 1", 1000).merge(&notes, "day 2", " and ice");
    batch.commit().unwrap();
    db.put(key(901), b"").unwrap();
    db.delete(key(79)).unwrap();
    db.put(b"", b"the empty key").unwrap();
}

// What is there.

fn expected_values() -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut values: BTreeMap<_, _> = (0..80).map(|i| (key(i), value(i, 1))).collect();
    for i in 0..20 {
        values.insert(key(4 * i), value(4 * i, 2));
    }
    for i in 0..10 {
        values.insert(key(8 * i), value(8 * i, 3));
        values.remove(&key(8 * i + 1));
    }
    values.insert(key(900), value(900, 4));
    values.insert(key(901), Vec::new());
    values.remove(&key(2));
    values.remove(&key(79));
    values.insert(Vec::new(), b"the empty key".to_vec());
    values
}

fn expected_counts() -> BTreeMap<Vec<u8>, i64> {
    let mut counts = BTreeMap::new();
    for i in 0..80_i64 {
        *counts.entry(format!("count {}", i % 5).into_bytes()).or_default() += i;
    }
    *counts.get_mut(&b"count 0"[..]).unwrap() -= 7;
    *counts.get_mut(&b"count 1"[..]).unwrap() += 1000;
    counts
}

#[track_caller]
fn assert_whole(opened: &Opened) {
    let Opened { db, counts, notes } = opened;
    assert_eq!(db.keyspace_names(), ["counts", "default", "notes ä"]);
    let all = |keyspace: &Keyspace| -> BTreeMap<Vec<u8>, Vec<u8>> {
        let entries = keyspace.iter().map(|entry| entry.unwrap());
        entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    };
    let expected = expected_values();
    assert_eq!(all(db), expected);
    assert_eq!(db.iter().rev().count(), expected.len());
    for i in 0..1000 {
        let found = db.get(key(i)).unwrap();
        assert_eq!(found.as_deref(), expected.get(&key(i)).map(Vec::as_slice), "{i}");
    }
    let found = all(counts);
    let found: BTreeMap<_, _> =
        found.into_iter().map(|(key, value)| (key, Counter::decode(&value).unwrap())).collect();
    assert_eq!(found, expected_counts());
    let days = [("day 1", "rain, sun"), ("day 2", "snow and ice")];
    let days = days.map(|(day, note)| (day.as_bytes().to_vec(), note.as_bytes().to_vec()));
    assert_eq!(all(notes), BTreeMap::from(days));
}

/// A copy of the fixture that may be written to.
fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

#[test]
fn a_database_of_version_1_opens_with_everything_in_it() {
    for mode in [ReadMode::Mapped, ReadMode::Pread] {
        let dir = copy();
        for session in 0..3 {
            let db = Db::builder(dir.path()).create(false).read_mode(mode).open().unwrap();
            let opened = Opened::new(db);
            assert_whole(&opened);
            let wrong = opened.db.keyspace("counts", KeyspaceOptions::new().merge(Append));
            wrong.expect_err("an operator of another name");
            opened.db.put(key(10), b"written since").unwrap();
            assert_eq!(opened.db.get(key(10)).unwrap().unwrap(), *b"written since");
            opened.db.put(key(10), value(10, 1)).unwrap();
            if session == 1 {
                opened.db.flush().unwrap();
                opened.db.compact_range::<&[u8]>(..).unwrap();
                assert_whole(&opened);
            }
            opened.db.close().unwrap();
        }
    }
}

#[test]
fn a_database_of_version_1_verifies() {
    let dir = copy();
    let report = tools::verify(dir.path(), &mut |_| {}).unwrap();
    assert!(report.is_ok(), "{report}");
    assert_eq!((report.keyspaces, report.commits, report.operations), (3, 5, 8), "{report}");
    assert!(report.tables >= 4, "{report}");
}

#[test]
fn a_database_of_version_1_has_this_text() {
    let found = text(&fixture());
    let expected = std::fs::read_to_string(text_path()).unwrap();
    assert_eq!(found, expected, "{found}");
    for part in [
        "filter bloom",
        "filter binary fuse",
        ",DEL",
        ",MERGE",
        "#",
        "put 0 \"key 0900\"",
        "operator",
        "- keyspace",
    ] {
        assert!(found.contains(part), "no {part:?} in\n{found}");
    }
}

/// The text of every file.
fn text(dir: &Path) -> String {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let mut out = Vec::new();
    for name in names {
        out.extend(format!("== {name}\n").into_bytes());
        tools::dump(&dir.join(&name), &mut out).unwrap();
    }
    String::from_utf8(out).unwrap()
}

#[test]
#[ignore = "writes tests/fixtures/v1 anew: see the module's comment"]
fn regenerate() {
    assert_eq!(std::env::var("GOLDEN").as_deref(), Ok("write"), "see the module's comment");
    let disk = SimFs::new();
    write(&disk);
    let _ = std::fs::remove_dir_all(fixture());
    std::fs::create_dir_all(fixture()).unwrap();
    let mut total = 0;
    for name in disk.list(Path::new("/db")).unwrap() {
        let mut bytes = disk.contents(&Path::new("/db").join(&name)).unwrap();
        if name.ends_with(".log") {
            // Of a megabyte that is allocated, some zeros are as good as all.
            let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            bytes.truncate((end.next_multiple_of(8) + 64).max(192));
        }
        total += bytes.len();
        std::fs::write(fixture().join(name), bytes).unwrap();
    }
    assert!(total <= BYTES_MAX, "{total} bytes");
    std::fs::write(text_path(), text(&fixture())).unwrap();
}
