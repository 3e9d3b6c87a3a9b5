//! Repair: every kind of damage gives a database that opens and has everything that could be read;
//! a crash at any call of a repair leaves one that the next repair makes the same of.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use esker::fs::fault::{Fault, FaultFs, FaultKind};
use esker::fs::intercept::Select;
use esker::fs::sabotage::SabotageFs;
use esker::fs::sim::{Image, Phase, SimFs, Survival};
use esker::fs::{Fs, LENGTH_CHECKS, without_length_check};
use esker::runtime::Runtime;
use esker::tools::{RepairMode, RepairReport, repair_on, verify_on};
use esker::{Append, Counter, Db, Durability, KeyspaceOptions, Options};

use crate::score::{Score, Scored};

const DIR: &str = "/db";

type Contents = BTreeMap<(String, Vec<u8>), Vec<u8>>;

fn dir() -> &'static Path {
    Path::new(DIR)
}

fn open(disk: &SimFs) -> esker::Result<Db> {
    let mut options = Options::tiny();
    options.threads = 1;
    Db::open_on(Arc::new(disk.clone()), Runtime::stepper(3), DIR, options)
}

/// Tables on several levels with overwrites, tombstones, operands and a dropped keyspace; then a log
/// to replay.
fn database() -> (Image, Contents) {
    let disk = SimFs::new();
    {
        let db = open(&disk).unwrap();
        let gone = db.keyspace("gone", KeyspaceOptions::new()).unwrap();
        let counts = KeyspaceOptions::new().merge(Counter::default());
        let counts = db.keyspace("counts", counts).unwrap();
        let notes = db.keyspace("notes", KeyspaceOptions::new().merge(Append)).unwrap();
        for i in 0..120_u64 {
            db.put(format!("key {:02}", i * 7 % 40), format!("value {i}")).unwrap();
            counts.merge(format!("c{}", i % 5), 1).unwrap();
            if i % 9 == 0 {
                db.delete(format!("key {:02}", i % 40)).unwrap();
                notes.merge("all", format!("{i},").as_bytes()).unwrap();
                let _ = gone.put(format!("gone {i}"), "gone");
            }
            if i == 60 {
                db.drop_keyspace("gone").unwrap();
                db.compact_range::<&[u8]>(..).unwrap();
            }
        }
        db.flush().unwrap();
        db.settle().unwrap();
        for i in 0..4 {
            let mut batch = db.batch();
            batch.put(&db, format!("late {i}"), "in the log only").merge(&counts, "c0", 100_i64);
            batch.commit_with(Durability::Disk).unwrap();
        }
    }
    let contents = contents(&open(&disk.snapshot().kill()).unwrap());
    assert!(contents.len() > 40, "{contents:?}");
    (disk.snapshot().kill().snapshot(), contents)
}

fn contents(db: &Db) -> Contents {
    let mut all = Contents::new();
    for name in db.keyspace_names() {
        let keyspace = db.keyspace(&name, KeyspaceOptions::new()).unwrap();
        for entry in keyspace.iter() {
            let (key, value) = entry.unwrap_or_else(|error| panic!("{name}: {error}"));
            all.insert((name.clone(), key.to_vec()), value.to_vec());
        }
    }
    all
}

fn repair(disk: &SimFs, mode: RepairMode) -> esker::Result<RepairReport> {
    let fs: Arc<dyn Fs> = Arc::new(disk.clone());
    repair_on(&fs, dir(), mode, &Options::tiny(), &mut |_| {})
}

/// Repairs; what a dry run says is what is done, and changes nothing; a second repair has nothing
/// to do; the result is whole.
#[track_caller]
fn repaired(disk: &SimFs) -> (RepairReport, Contents) {
    let before = disk.state_hash();
    let dry = repair(disk, RepairMode::DryRun).unwrap();
    assert_eq!(disk.state_hash(), before, "a dry run changed something");
    let names = disk.list(dir()).unwrap();
    let report = repair(disk, RepairMode::InPlace).unwrap();
    assert_eq!(report.to_string(), dry.to_string());
    assert!(report.needed, "{report}");
    for name in &report.moved {
        assert!(names.contains(name), "{name} was not there");
        let lost = dir().join("lost").join(name);
        assert!(disk.contents(&lost).is_ok(), "{name} is not in lost");
        assert!(name == "CURRENT" || !disk.list(dir()).unwrap().contains(name), "{name}");
    }
    let fs: Arc<dyn Fs> = Arc::new(disk.clone());
    let verified = verify_on(&fs, dir(), &mut |_| {}).unwrap();
    assert!(verified.is_ok(), "{verified}\n{report}");
    let foreign = verified.remarks.iter().all(|remark| remark.what == "no file of a database");
    assert!(foreign, "{verified}");
    let hash = disk.state_hash();
    let again = repair(disk, RepairMode::InPlace).unwrap();
    assert!(!again.needed && disk.state_hash() == hash, "{again}");
    let db = open(disk).unwrap();
    let found = contents(&db);
    db.put("written", "afterwards").unwrap();
    db.close().unwrap();
    assert_eq!(contents(&open(disk).unwrap()).len(), found.len() + 1);
    (report, found)
}

fn named(disk: &SimFs, part: &str) -> Vec<PathBuf> {
    let mut names = disk.list(dir()).unwrap();
    names.retain(|name| name.contains(part));
    names.sort();
    names.into_iter().map(|name| dir().join(name)).collect()
}

fn flip(disk: &SimFs, path: &Path, at: usize) {
    let mut bytes = disk.contents(path).unwrap();
    bytes[at] ^= 0x10;
    disk.set_contents(path, &bytes).unwrap();
}

fn remove_all(disk: &SimFs, part: &str) {
    for path in named(disk, part) {
        disk.remove(&path).unwrap();
    }
    disk.sync_dir(dir()).unwrap();
}

#[test]
fn a_whole_database_is_left_alone() {
    let (image, _) = database();
    let disk = image.kill();
    let report = repair(&disk, RepairMode::InPlace).unwrap();
    assert!(!report.needed && report.losses.is_empty(), "{report}");
    assert_eq!(disk.state_hash(), image.kill().state_hash());
    let nothing = SimFs::new();
    nothing.create_dir_all(dir()).unwrap();
    assert!(repair(&nothing, RepairMode::InPlace).is_err(), "an empty directory is none");
    assert!(nothing.list(dir()).unwrap().is_empty());
    let db = open(&disk).unwrap();
    let locked = repair(&disk, RepairMode::InPlace).unwrap_err();
    assert_eq!(locked.kind(), &esker::ErrorKind::Locked);
    drop(db);
}

#[test]
fn nothing_is_lost_with_current_or_the_manifest() {
    let (image, expected) = database();
    for (what, gone) in [
        ("CURRENT", &["CURRENT"][..]),
        ("the manifest", &["manifest"]),
        ("both", &["CURRENT", "manifest"]),
        ("everything but tables and logs", &["CURRENT", "manifest", "LOCK"]),
    ] {
        let disk = image.kill();
        gone.iter().for_each(|part| remove_all(&disk, part));
        assert!(open(&disk).is_err(), "strict opens without {what}");
        let (report, found) = repaired(&disk);
        assert_eq!(found, expected, "without {what}:\n{report}");
        assert_eq!(report.rebuilt, gone.contains(&"manifest"), "{report}");
        assert!(report.losses.len() == 1, "{report}");
    }
}

#[test]
fn nothing_is_lost_wherever_current_or_the_manifest_is_damaged() {
    let (image, expected) = database();
    let mut rebuilt = 0;
    for path in [named(&image.kill(), "CURRENT"), named(&image.kill(), "manifest")].concat() {
        let len = image.kill().contents(&path).unwrap().len();
        for at in (0..len).step_by(if len < 100 { 1 } else { 23 }) {
            let disk = image.kill();
            flip(&disk, &path, at);
            if open(&disk.snapshot().kill()).is_ok() {
                continue; // The last edit: a torn tail.
            }
            let (report, found) = repaired(&disk);
            assert_eq!(found, expected, "{} at {at}:\n{report}", path.display());
            rebuilt += u32::from(report.rebuilt);
        }
    }
    assert!(rebuilt > 10, "only {rebuilt} rebuilt");
}

/// True if the report admits that something may be wrong with this key.
fn admitted(report: &RepairReport, (keyspace, key): &(String, Vec<u8>)) -> bool {
    report.losses.iter().any(|loss| {
        let within =
            loss.keys.as_ref().is_none_or(|(a, b)| (&**a..=&**b).contains(&key.as_slice()));
        loss.keyspace.as_ref().is_none_or(|name| name == keyspace) && within
    })
}

#[track_caller]
fn assert_all_but_admitted(report: &RepairReport, found: &Contents, expected: &Contents) {
    let keys = found.keys().chain(expected.keys());
    for key in keys.filter(|key| found.get(*key) != expected.get(*key)) {
        assert!(admitted(report, key), "{key:?} is wrong and not admitted:\n{report}");
    }
}

#[test]
fn of_a_damaged_table_the_other_blocks_are_kept() {
    let (image, expected) = database();
    let (mut partly, mut wholly, mut unharmed) = (0, 0, 0);
    for path in named(&image.kill(), ".table") {
        let len = image.kill().contents(&path).unwrap().len();
        for at in (0..len).step_by(37) {
            let disk = image.kill();
            flip(&disk, &path, at);
            let dry = repair(&disk, RepairMode::DryRun).unwrap();
            if !dry.needed {
                continue; // A table that is superfluous.
            }
            let (report, found) = repaired(&disk);
            assert_all_but_admitted(&report, &found, &expected);
            assert!(!report.losses.is_empty(), "{report}");
            assert_eq!(report.losses[0].file, path, "{report}");
            let missing = expected.keys().filter(|key| !found.contains_key(*key)).count();
            partly += u32::from(missing > 0 && report.tables_rewritten > 0);
            wholly += u32::from(report.tables_rewritten == 0);
            unharmed += u32::from(found == expected);
        }
    }
    println!("{partly} partly lost, {wholly} wholly, {unharmed} without loss");
    assert!(partly > 5 && unharmed > 20, "{partly} {wholly} {unharmed}");
}

#[test]
fn tables_that_are_missing_or_swapped_are_told() {
    let (image, expected) = database();
    let whole = image.kill();
    let mut swapped = 0;
    let tables = named(&whole, ".table");
    for pair in tables.windows(2) {
        let disk = image.kill();
        disk.remove(&pair[0]).unwrap();
        if open(&disk.snapshot().kill()).is_err() {
            let (report, found) = repaired(&disk);
            let [loss] = &report.losses[..] else { panic!("{report}") };
            assert!(loss.keyspace.is_some() && loss.keys.is_some() && loss.seqno_last.is_some());
            assert_eq!(loss.file, pair[0]);
            assert_all_but_admitted(&report, &found, &expected);
        }
        let disk = image.kill();
        let (a, b) = (whole.contents(&pair[0]).unwrap(), whole.contents(&pair[1]).unwrap());
        disk.set_contents(&pair[0], &b).unwrap();
        disk.set_contents(&pair[1], &a).unwrap();
        if open(&disk.snapshot().kill()).is_err() {
            let (report, found) = repaired(&disk);
            assert_eq!(found, expected, "{report}");
            swapped += 1;
        }
    }
    assert!(swapped > 0);
}

#[test]
fn without_manifest_and_with_a_damaged_table_the_rest_is_kept() {
    let (image, expected) = database();
    for path in named(&image.kill(), ".table") {
        for at in [150, 300] {
            let disk = image.kill();
            remove_all(&disk, "manifest");
            flip(&disk, &path, at);
            let (report, found) = repaired(&disk);
            // That CURRENT names nothing admits nothing about keys.
            let mut report = report;
            report.losses.retain(|loss| loss.file != dir().join("CURRENT"));
            assert_all_but_admitted(&report, &found, &expected);
        }
    }
}

#[test]
fn of_a_log_damaged_in_the_middle_the_other_commits_are_kept() {
    let (image, expected) = database();
    let disk = image.kill();
    let (path, at) = named(&disk, ".log")
        .into_iter()
        .find_map(|path| {
            let bytes = disk.contents(&path).unwrap();
            let at = bytes.windows(6).position(|window| window == b"late 1")?;
            Some((path, at))
        })
        .unwrap();
    flip(&disk, &path, at);
    assert!(open(&disk.snapshot().kill()).unwrap_err().is_corruption());
    let (report, found) = repaired(&disk);
    let [loss] = &report.losses[..] else { panic!("{report}") };
    assert_eq!((&loss.file, loss.seqno_last), (&path, loss.seqno_first.map(|first| first + 1)));
    let mut rest = expected;
    rest.remove(&("default".into(), b"late 1".to_vec()));
    let c0 = rest.get_mut(&("counts".to_string(), b"c0".to_vec())).unwrap();
    *c0 = (Counter::decode(c0).unwrap() - 100).to_le_bytes().to_vec();
    assert_eq!(found, rest, "{report}");
}

#[test]
fn foreign_files_stay_where_they_are() {
    let (image, expected) = database();
    let disk = image.kill();
    for name in ["notes.txt", "7.log", "999999.table", "888888.log"] {
        let file = disk.create(&dir().join(name)).unwrap();
        file.write_at(0, b"nobody's").unwrap();
    }
    remove_all(&disk, "CURRENT");
    let (report, found) = repaired(&disk);
    assert_eq!(found, expected, "{report}");
    let names = disk.list(dir()).unwrap();
    for (name, stays) in
        [("notes.txt", true), ("7.log", true), ("999999.table", false), ("888888.log", false)]
    {
        assert_eq!(names.contains(&name.to_string()), stays, "{name}");
        assert_eq!(report.moved.contains(&name.to_string()), !stays, "{name}");
    }
}

/// Every call of a repair as the last one, what a second repair makes of what is left, and whether
/// what was given up is still there. `wrap` stands between the first repair and the disk.
fn crash_everywhere(damaged: &SimFs, wrap: &dyn Fn(SimFs) -> Arc<dyn Fs>) -> Result<usize, String> {
    // All of it is on the disk, so that what is lost was lost by the repair.
    let damaged = damaged.snapshot().crash(&Survival::Everything);
    let through = |fs: Arc<dyn Fs>| {
        repair_on(&fs, dir(), RepairMode::InPlace, &Options::tiny(), &mut |_| {}).unwrap()
    };
    let (expected, given_up) = {
        let disk = damaged.snapshot().kill();
        let report = repair(&disk, RepairMode::InPlace).unwrap();
        let bytes = |name: &String| damaged.contents(&dir().join(name)).unwrap();
        let given_up: Vec<Vec<u8>> = report.moved.iter().map(bytes).collect();
        (contents(&open(&disk).unwrap()), given_up)
    };
    let disk = damaged.snapshot().kill();
    let images = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&images);
    disk.on_call(Arc::new(move |disk, phase, call| {
        if phase != Phase::Before && call.changes() {
            sink.lock().unwrap().push((call.to_string(), disk.snapshot()));
        }
    }));
    through(wrap(disk.clone()));
    disk.clear_hook();
    let images = images.lock().unwrap();
    let mut states = 0;
    for (i, (call, image)) in images.iter().enumerate() {
        for survival in image.survivals(4, 4, i as u64) {
            let when = format!("after {call}, {survival:?}");
            let left = image.crash(&survival);
            let again = repair(&left, RepairMode::InPlace).map_err(|e| format!("{when}: {e}"))?;
            let db = open(&left).map_err(|e| format!("{when}: {e}\n{again}"))?;
            if contents(&db) != expected {
                return Err(format!("{when}: other contents\n{again}"));
            }
            let lost = dir().join("lost");
            let names = left.list(&lost).unwrap_or_default();
            let kept: Vec<_> =
                names.iter().map(|n| left.contents(&lost.join(n)).unwrap()).collect();
            if !given_up.iter().all(|bytes| kept.contains(bytes)) {
                return Err(format!("{when}: what was given up is not in lost\n{again}"));
            }
            states += 1;
        }
    }
    Ok(states)
}

/// Databases to repair, by what is wrong with them.
fn damaged() -> [(&'static str, SimFs); 3] {
    let (image, _) = database();
    let lost = image.kill();
    remove_all(&lost, "manifest");
    let table = named(&image.kill(), ".table").pop().unwrap();
    let damaged = image.kill();
    flip(&damaged, &table, 140);
    let both = image.kill();
    remove_all(&both, "CURRENT");
    remove_all(&both, "manifest");
    flip(&both, &table, 140);
    [("no manifest", lost), ("a damaged table", damaged), ("both", both)]
}

#[test]
fn a_crash_at_any_call_of_a_repair_is_repaired_to_the_same() {
    for (what, disk) in damaged() {
        let states = crash_everywhere(&disk, &|disk| Arc::new(disk)).unwrap();
        println!("{what}: {states} crashes");
    }
}

/// Places of a repair whose loss no crash can show, and why.
const REDUNDANT: [(&str, &str); 1] = [(
    "repair.table.sync_dir sync_dir Skip",
    "before CURRENT names the manifest that names the tables, the directory is synced again, for the \
     names of the log and of that manifest: as open.table.sync_dir",
)];

/// Files are copied where they cannot be linked.
fn without_links(disk: Arc<dyn Fs>) -> FaultFs {
    let fs = FaultFs::new(disk);
    fs.arm(Fault::new(FaultKind::Io).on(Select::all().name("link")).until_healed());
    fs
}

/// The part of the score for the places that only repairs come to.
#[test]
fn every_sync_of_a_repair_that_is_left_out_is_noticed() {
    let disks = damaged();
    let mut score = Score::new(&REDUNDANT);
    score.leave_out(Scored::Repair, |site, call, damage| {
        let calls = Cell::new(0);
        let noticed = disks.iter().find_map(|(_, damaged)| {
            let seen = Cell::new(None);
            let wrap = |disk: SimFs| -> Arc<dyn Fs> {
                let on = Select::all().site(site).name(call);
                let no_links = Arc::new(without_links(Arc::new(disk)));
                let sabotage = SabotageFs::all(no_links, damage, on);
                seen.set(Some(sabotage.clone()));
                Arc::new(sabotage)
            };
            let outcome = crash_everywhere(damaged, &wrap);
            calls.update(|calls| calls + seen.take().expect("it ran").damaged());
            outcome.err()
        });
        (calls.get(), noticed)
    });
    score.check();
}

/// A copy in `lost` that a crash has cut short is not taken for the file.
#[test]
fn every_length_check_of_a_repair_that_is_left_out_is_noticed() {
    let disks = damaged();
    let mut score = Score::new(&[]);
    for name in LENGTH_CHECKS.into_iter().filter(|name| name.starts_with("lost.")) {
        let crashes = || {
            let through = |disk: SimFs| Arc::new(without_links(Arc::new(disk))) as Arc<dyn Fs>;
            disks.iter().find_map(|(_, damaged)| crash_everywhere(damaged, &through).err())
        };
        assert_eq!(crashes(), None, "with all checks");
        let noticed = without_length_check(name, crashes);
        score.note(format!("length {name}"), &format!("{} repairs", disks.len()), noticed);
    }
    score.check();
}
