//! Opening a damaged database in each mode: strict refuses and changes nothing, point-in-time gives
//! a moment of its history, salvage everything that can be read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use esker::fs::Fs;
use esker::fs::sim::SimFs;
use esker::runtime::Runtime;
use esker::{Counter, Db, Durability, Error, ErrorKind, KeyspaceOptions, Options, Recovery};

const DIR: &str = "/db";

/// Memtables large enough that nothing is flushed unasked.
fn open(disk: &SimFs, recovery: Recovery) -> Result<Db, Error> {
    let mut options = Options::default();
    (options.memory, options.recovery, options.threads) = (1 << 20, recovery, 1);
    Db::open_on(Arc::new(disk.clone()), Runtime::threads(), DIR, options)
}

/// What is left after the process ends here and now.
fn killed(disk: &SimFs) -> SimFs {
    disk.snapshot().kill()
}

fn put(db: &Db, i: usize) {
    db.put(format!("key {i:02}"), format!("value {i}")).unwrap();
}

/// Puts 0 to 19 in the log, the last of them durable.
fn twenty(disk: &SimFs) -> Db {
    let db = open(disk, Recovery::Strict).unwrap();
    (0..19).for_each(|i| put(&db, i));
    let mut batch = db.batch();
    batch.put(&db, "key 19", "value 19");
    batch.commit_with(Durability::Disk).unwrap();
    db
}

fn keys(db: &Db) -> Vec<usize> {
    let keys = db.iter().map(|entry| {
        let (key, value) = entry.unwrap();
        let i = String::from_utf8(key.to_vec()).unwrap()[4..].parse().unwrap();
        assert_eq!(&value[..], format!("value {i}").as_bytes());
        i
    });
    keys.collect()
}

fn named(disk: &SimFs, ending: &str) -> Vec<PathBuf> {
    let mut names = disk.list(Path::new(DIR)).unwrap();
    names.retain(|name| name.ends_with(ending));
    names.sort();
    names.into_iter().map(|name| Path::new(DIR).join(name)).collect()
}

/// Flips a bit of the value of key `i` in the log.
fn damage_record(disk: &SimFs, i: usize) -> (PathBuf, usize) {
    let wanted = format!("value {i}");
    for path in named(disk, ".log") {
        let mut bytes = disk.contents(&path).unwrap();
        let found = bytes.windows(wanted.len()).position(|window| window == wanted.as_bytes());
        if let Some(at) = found {
            bytes[at] ^= 1;
            disk.set_contents(&path, &bytes).unwrap();
            return (path, at);
        }
    }
    panic!("{wanted} is in no log");
}

#[track_caller]
fn assert_refused(disk: &SimFs, recovery: Recovery, path: &Path) {
    let before = disk.state_hash();
    let error = open(disk, recovery).unwrap_err();
    match error.kind() {
        ErrorKind::Corruption { file, .. } => assert_eq!(file, path, "{error}"),
        _ => panic!("{error}"),
    }
    assert_eq!(disk.state_hash(), before, "a refused open changed something");
}

fn lost(disk: &SimFs) -> Vec<String> {
    let mut names = disk.list(&Path::new(DIR).join("lost")).unwrap();
    names.sort();
    names
}

#[test]
fn a_damaged_log_is_refused_cut_or_left_out() {
    let disk = SimFs::new();
    let db = twenty(&disk);
    let whole = killed(&disk);
    drop(db);
    let (path, at) = damage_record(&whole, 7);
    assert_refused(&whole, Recovery::Strict, &path);
    let log = path.file_name().unwrap().to_str().unwrap().to_string();

    let cut = killed(&whole);
    let db = open(&cut, Recovery::PointInTime).unwrap();
    assert_eq!(keys(&db), (0..7).collect::<Vec<_>>(), "the first seven commits");
    let [loss] = db.losses() else { panic!("{:?}", db.losses()) };
    assert_eq!((&loss.file, loss.seqno_first, loss.seqno_last), (&path, Some(8), None));
    assert!((loss.offset as usize) < at && loss.offset as usize + 64 > at, "{loss}");
    put(&db, 30);
    db.close().unwrap();
    let db = open(&cut, Recovery::Strict).unwrap();
    assert_eq!(keys(&db), [0, 1, 2, 3, 4, 5, 6, 30]);
    assert!(db.losses().is_empty());
    assert_eq!(lost(&cut), std::slice::from_ref(&log));

    let salvaged = killed(&whole);
    let db = open(&salvaged, Recovery::Salvage).unwrap();
    assert_eq!(keys(&db), (0..20).filter(|i| *i != 7).collect::<Vec<_>>());
    let [loss] = db.losses() else { panic!("{:?}", db.losses()) };
    assert_eq!((loss.seqno_first, loss.seqno_last), (Some(8), Some(8)), "{loss}");
    drop(db);
    assert_eq!(lost(&salvaged), [log]);
    assert_eq!(keys(&open(&salvaged, Recovery::Strict).unwrap()).len(), 19);
}

#[test]
fn a_crashed_database_opens_alike_in_every_mode() {
    let disk = SimFs::new();
    let db = twenty(&disk);
    put(&db, 20);
    for recovery in [Recovery::Strict, Recovery::PointInTime, Recovery::Salvage] {
        let crashed = disk.snapshot().crash(&esker::fs::sim::Survival::NothingUnsynced);
        let db = open(&crashed, recovery).unwrap();
        assert_eq!(keys(&db), (0..20).collect::<Vec<_>>(), "{recovery:?}");
        assert!(
            db.losses().is_empty()
                && !crashed.list(Path::new(DIR)).unwrap().contains(&"lost".into())
        );
    }
}

#[test]
fn a_lost_log_is_a_gap() {
    let disk = SimFs::new();
    let db = open(&disk, Recovery::Strict).unwrap();
    // A keyspace that is not flushed needs all the logs that others fill meanwhile.
    let idle = db.keyspace("idle", KeyspaceOptions::new()).unwrap();
    idle.put("first", "1").unwrap();
    for i in 0..16 {
        db.put(format!("large {i:02}"), vec![b'x'; 200 << 10]).unwrap();
    }
    idle.put("last", "2").unwrap();
    db.sync().unwrap();
    let gap = killed(&disk);
    let mut logs = named(&gap, ".log");
    logs.retain(|log| gap.contents(log).unwrap().starts_with(b"eskerLOG"));
    assert!(logs.len() >= 3, "{logs:?}");
    gap.remove(&logs[1]).unwrap();
    assert!(open(&killed(&gap), Recovery::Strict).unwrap_err().is_corruption());
    assert!(open(&killed(&gap), Recovery::PointInTime).unwrap_err().is_corruption());
    let db = open(&gap, Recovery::Salvage).unwrap();
    let idle = db.keyspace("idle", KeyspaceOptions::new()).unwrap();
    assert_eq!(idle.iter().count(), 2);
    let [loss] = db.losses() else { panic!("{:?}", db.losses()) };
    assert!(loss.seqno_first > Some(1) && loss.seqno_last < Some(17), "{loss}");
}

#[test]
fn a_cut_that_is_no_moment_of_the_history_is_refused() {
    let disk = SimFs::new();
    let db = open(&disk, Recovery::Strict).unwrap();
    let other = db.keyspace("other", KeyspaceOptions::new()).unwrap();
    (0..10).for_each(|i| put(&db, i));
    other.put("x", "1").unwrap();
    (10..20).for_each(|i| put(&db, i));
    // Tables of `other` alone reach beyond the damage to come.
    other.put("y", "2").unwrap();
    other.flush().unwrap();
    db.sync().unwrap();
    let damaged = killed(&disk);
    let (path, _) = damage_record(&damaged, 5);
    assert_refused(&damaged, Recovery::Strict, &path);
    assert_refused(&damaged, Recovery::PointInTime, &path);
    let db = open(&damaged, Recovery::Salvage).unwrap();
    assert_eq!(keys(&db).len(), 19);
    assert_eq!(db.keyspace("other", KeyspaceOptions::new()).unwrap().iter().count(), 2);
}

/// Bug: with the newest log gone, or cut off, a strict open gave a database that never was: the later
/// commits of one keyspace from its tables, without the earlier ones of another. Cause: nothing but the
/// lost log itself bore witness that there had been more. Fix: each edit of the manifest says how far
/// the log was durable before it, which a flush has seen to where it outruns other keyspaces.
#[test]
fn a_log_that_ends_before_what_the_manifest_knows_is_corruption() {
    let disk = SimFs::new();
    let db = open(&disk, Recovery::Strict).unwrap();
    let other = db.keyspace("other", KeyspaceOptions::new()).unwrap();
    (0..10).for_each(|i| put(&db, i));
    other.put("x", "1").unwrap();
    other.flush().unwrap();
    let begun = |path: &PathBuf| disk.contents(path).unwrap().starts_with(b"eskerLOG");
    let logs: Vec<PathBuf> = named(&disk, ".log").into_iter().filter(begun).collect();
    let [log] = &logs[..] else { panic!("{logs:?}") };
    let bytes = disk.contents(log).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let marked = bytes[..used].windows(7).rposition(|window| window == b"value 9").unwrap();
    let spares: Vec<PathBuf> =
        named(&disk, ".log").into_iter().filter(|path| path != log).collect();
    // Up to the last commit before the flush. What ends it, and a mark, come after.
    for cut in (0..marked).rev().step_by(13).chain([0]) {
        let damaged = killed(&disk);
        damaged.set_contents(log, &bytes[..cut]).unwrap();
        assert_refused(&damaged, Recovery::Strict, log);
        assert_refused(&damaged, Recovery::PointInTime, log);
        let db = open(&damaged, Recovery::Salvage).unwrap();
        let found = keys(&db);
        assert_eq!(found, (0..found.len()).collect::<Vec<_>>(), "cut at {cut}");
        assert_eq!(db.keyspace("other", KeyspaceOptions::new()).unwrap().iter().count(), 1);
        assert!(!db.losses().is_empty(), "cut at {cut}");
        drop(db);
        let db = open(&damaged, Recovery::Strict).unwrap();
        (10..12).for_each(|i| put(&db, i));
        db.keyspace("other", KeyspaceOptions::new()).unwrap().flush().unwrap();
        drop(db);
        assert_eq!(
            keys(&open(&killed(&damaged), Recovery::Strict).unwrap()).len(),
            found.len() + 2
        );
    }
    let missing = killed(&disk);
    missing.remove(log).unwrap();
    let named_log = spares.first().unwrap_or(log);
    let error = open(&missing, Recovery::Strict).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Corruption { file, .. } if file == log || file == named_log)
    );
    assert!(!open(&missing, Recovery::Salvage).unwrap().losses().is_empty());
}

/// What one keyspace alone lost of its log is a shorter prefix, which point-in-time accepts.
#[test]
fn a_point_in_time_goes_on_without_a_lost_log_of_a_single_keyspace() {
    let disk = SimFs::new();
    let db = open(&disk, Recovery::Strict).unwrap();
    (0..5).for_each(|i| put(&db, i));
    db.flush().unwrap();
    (5..10).for_each(|i| put(&db, i));
    db.sync().unwrap();
    // An edit after the sync.
    db.keyspace("passing", KeyspaceOptions::new()).unwrap();
    db.drop_keyspace("passing").unwrap();
    let damaged = killed(&disk);
    for log in named(&damaged, ".log") {
        damaged.set_contents(&log, b"").unwrap();
    }
    let error = open(&killed(&damaged), Recovery::Strict).unwrap_err();
    assert!(error.is_corruption() && error.to_string().contains("durable"), "{error}");
    let db = open(&damaged, Recovery::PointInTime).unwrap();
    assert_eq!(keys(&db), [0, 1, 2, 3, 4]);
    let [loss] = db.losses() else { panic!("{:?}", db.losses()) };
    assert_eq!(loss.seqno_last, None, "{loss}");
}

#[test]
fn salvage_goes_on_without_a_table_that_cannot_be_opened() {
    let disk = SimFs::new();
    let db = twenty(&disk);
    db.flush().unwrap();
    let counts = KeyspaceOptions::new().merge(Counter::default());
    let counts = db.keyspace("counts", counts).unwrap();
    counts.merge("a", 5).unwrap();
    counts.flush().unwrap();
    db.close().unwrap();
    let tables = named(&disk, ".table");
    assert_eq!(tables.len(), 2);
    for how in ["missing", "short", "header"] {
        let damaged = killed(&disk);
        match how {
            "missing" => damaged.remove(&tables[0]).unwrap(),
            "short" => damaged.set_contents(&tables[0], b"eskerTBL").unwrap(),
            _ => {
                let mut bytes = disk.contents(&tables[0]).unwrap();
                bytes[20] ^= 1;
                damaged.set_contents(&tables[0], &bytes).unwrap();
            }
        }
        assert_refused(&damaged, Recovery::Strict, &tables[0]);
        assert_refused(&damaged, Recovery::PointInTime, &tables[0]);
        let db = open(&damaged, Recovery::Salvage).unwrap();
        assert_eq!(keys(&db), [0; 0], "{how}");
        let [loss] = db.losses() else { panic!("{:?}", db.losses()) };
        assert_eq!(loss.keyspace.as_deref(), Some("default"));
        assert_eq!((loss.seqno_first, loss.seqno_last), (Some(1), Some(20)), "{loss}");
        let (smallest, largest) = loss.keys.as_ref().unwrap();
        assert_eq!((&smallest[..], &largest[..]), (&b"key 00"[..], &b"key 19"[..]));
        let counts = db.keyspace("counts", KeyspaceOptions::new()).unwrap();
        assert_eq!(Counter::decode(&counts.get("a").unwrap().unwrap()), Some(5));
        drop(counts);
        db.close().unwrap();
        if how != "missing" {
            assert_eq!(lost(&damaged).len(), 1);
        }
        assert!(open(&damaged, Recovery::Strict).unwrap().losses().is_empty());
    }
}
