//! What a careless caller or a bad disk may hand to esker: each gets a typed error, and nothing that
//! was acknowledged is lost.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use esker::fs::Fs;
use esker::fs::intercept::{Call, Intercepted, Interceptor, Verdict};
use esker::fs::sim::SimFs;
use esker::runtime::Runtime;
use esker::tools::{RepairMode, repair_on, verify_on};
use esker::{Append, BusyCause, Counter, Db, Error, ErrorKind, KeyspaceOptions, Options, Recovery};

const DIR: &str = "/db";

fn open_on(fs: impl Fs) -> esker::Result<Db> {
    Db::open_on(Arc::new(fs), Runtime::threads(), DIR, Options::tiny())
}

fn key(i: u32) -> String {
    format!("key {i:05}")
}

fn fill(db: &Db, count: u32) {
    for i in 0..count {
        db.put(key(i), format!("value {i}")).unwrap();
    }
}

/// Exactly these keys are there.
fn check(db: &Db, count: u32) {
    let all: Result<Vec<_>, _> = db.iter().collect();
    let all = all.unwrap();
    assert_eq!(all.len(), count as usize);
    for (i, (found, value)) in (0..count).zip(all) {
        assert_eq!((&found[..], &value[..]), (key(i).as_bytes(), format!("value {i}").as_bytes()));
    }
}

#[track_caller]
fn invalid<T: std::fmt::Debug>(result: esker::Result<T>, mentions: &str) {
    let error = result.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(error.to_string().contains(mentions), "{error}");
}

// Arguments.

#[test]
fn keys_and_values_out_of_bounds_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::builder(dir.path()).memory(1 << 20).open().unwrap();
    let texts = db.keyspace("texts", KeyspaceOptions::new().merge(Append)).unwrap();
    let (longest, too_long) = (vec![b'k'; 64 << 10], vec![b'k'; (64 << 10) + 1]);
    // Half of what the memtables may take together.
    let (largest, too_large) = (vec![b'v'; 256 << 10], vec![b'v'; (256 << 10) + 1]);
    db.put("", "the empty key").unwrap();
    db.put("empty value", "").unwrap();
    db.put(&longest, "the longest key").unwrap();
    db.put("largest", &largest).unwrap();
    invalid(db.put(&too_long, "v"), "65537");
    invalid(db.delete(&too_long), "65537");
    invalid(texts.merge(&too_long, "v"), "65537");
    invalid(db.put("k", &too_large), "262145");
    invalid(texts.merge("k", &too_large), "262145");
    let mut batch = db.batch();
    batch.put(&db, "not this either", "v").put(&db, &too_long, "v");
    invalid(batch.commit(), "65537");
    invalid(batch.commit_async(), "65537");
    batch.clear();
    batch.put(&db, "after clear", "v").commit().unwrap();

    // Reading what cannot be there is no error.
    assert_eq!(db.get(&too_long).unwrap(), None);
    assert_eq!(db.multi_get(&[&too_long, &longest]).unwrap()[0], None);
    assert_eq!(db.range(&too_long[..]..).count(), 1, "only \"largest\" sorts after it");
    assert_eq!(db.prefix(&too_long).count(), 0);
    assert_eq!(db.range("z".."a").count(), 0, "bounds the wrong way round");
    assert_eq!(db.range("a".."a").count(), 0);
    invalid(db.merge("k", 1), "merge operator");

    for _ in 0..2 {
        assert_eq!(db.get("").unwrap().unwrap(), *"the empty key");
        assert_eq!(db.get("empty value").unwrap().unwrap(), *"");
        assert_eq!(db.get(&longest).unwrap().unwrap(), *"the longest key");
        assert_eq!(db.get("largest").unwrap().unwrap(), largest);
        assert_eq!(db.get("after clear").unwrap().unwrap(), *"v");
        assert!(!db.contains("not this either").unwrap());
        db.compact_range::<&str>(..).unwrap();
    }
}

#[test]
fn a_value_of_more_than_a_gibibyte_is_refused_whatever_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::builder(dir.path()).memory(8 << 30).open().unwrap();
    // Zeros that nobody touches take no memory.
    let too_large = vec![0; (1 << 30) + 1];
    invalid(db.put("k", &too_large), "1073741825");
    let mut batch = db.batch();
    batch.put(&db, "k", &too_large[..1 << 20]).put(&db, "k", &too_large);
    invalid(batch.commit(), "1073741825");
    assert_eq!(db.get("k").unwrap(), None);
}

#[test]
fn a_batch_over_its_limit_is_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::builder(dir.path()).memory(1 << 20).open().unwrap();
    fill(&db, 10);
    let mut batch = db.batch();
    for i in 0..9_000 {
        batch.put(&db, format!("batch {i}"), [b'v'; 32]);
    }
    invalid(batch.commit(), "split it");
    batch.clear();
    check(&db, 10);
    // One just below the limit is larger than a memtable.
    for i in 0..4_000 {
        batch.put(&db, format!("batch {i}"), [b'v'; 32]);
    }
    batch.commit().unwrap();
    assert_eq!(db.prefix("batch").count(), 4_000);
}

#[test]
fn operands_and_keyspaces_of_another_kind_are_refused() {
    let fs = SimFs::new();
    let db = open_on(fs.clone()).unwrap();
    let other = open_on(SimFs::new()).unwrap();
    let counts = db.keyspace("counts", KeyspaceOptions::new().merge(Counter::default())).unwrap();
    invalid(counts.merge("k", "not a number"), "8 bytes");
    invalid(db.batch().put(&db, "a", "1").put(&other, "b", "1").commit(), "another database");
    invalid(db.snapshot().keyspace(&other), "another database");
    let appending = || KeyspaceOptions::new().merge(Append);
    invalid(db.keyspace("counts", appending()), "esker.counter.wrapping");
    // One without an operator may be given one, once.
    db.keyspace("default", appending()).unwrap();
    let counting = || KeyspaceOptions::new().merge(Counter::default());
    invalid(db.keyspace("default", counting()), "esker.append");
    counts.merge("k", 7).unwrap();
    drop((db, counts));

    let db = open_on(fs).unwrap();
    invalid(db.keyspace("counts", appending()), "esker.counter.wrapping");
    invalid(db.keyspace("default", counting()), "esker.append");
    let counts = db.keyspace("counts", KeyspaceOptions::new()).unwrap();
    assert_eq!(Counter::decode(&counts.get("k").unwrap().unwrap()), Some(7));
    assert!(!db.contains("a").unwrap());
}

#[test]
fn names_of_keyspaces_are_kept_as_they_are_or_refused() {
    let fs = SimFs::new();
    let db = open_on(fs.clone()).unwrap();
    let longest = "n".repeat(255);
    let odd = [" ", "..", "/", "CURRENT", "Default", "a/b\\c", "\u{1f980} ñ", "%00", &longest];
    for name in odd {
        let keyspace = db.keyspace(name, KeyspaceOptions::new()).unwrap();
        keyspace.put("name", name).unwrap();
    }
    for name in ["", "a\0b", "line\nbreak", "\u{7f}", &"n".repeat(256), &"ñ".repeat(128)] {
        invalid(db.keyspace(name, KeyspaceOptions::new()), "name of a keyspace");
        invalid(db.drop_keyspace(name), "name of a keyspace");
    }
    invalid(db.drop_keyspace("default"), "cannot be dropped");
    invalid(db.drop_keyspace("none"), "no keyspace");
    drop(db);
    let db = open_on(fs).unwrap();
    let mut expected: Vec<&str> = odd.into_iter().chain(["default"]).collect();
    expected.sort();
    assert_eq!(db.keyspace_names(), expected);
    for name in odd {
        let keyspace = db.keyspace(name, KeyspaceOptions::new()).unwrap();
        assert_eq!(keyspace.get("name").unwrap().unwrap(), *name);
    }
}

#[test]
fn a_memory_budget_that_is_too_small_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    invalid(Db::builder(dir.path()).memory((1 << 20) - 1).open(), "1 MiB");
}

// Directories.

#[test]
fn a_second_handle_in_this_process_is_locked_out() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open_with(dir.path(), Options::tiny()).unwrap();
    fill(&db, 10);
    assert_eq!(*Db::open(dir.path()).unwrap_err().kind(), ErrorKind::Locked);
    let another_path = dir.path().join(".");
    assert_eq!(*Db::open(another_path).unwrap_err().kind(), ErrorKind::Locked);
    check(&db, 10);
    // A snapshot keeps it open, closing does not wait for it.
    let snapshot = db.snapshot();
    drop(db);
    assert_eq!(*Db::open(dir.path()).unwrap_err().kind(), ErrorKind::Locked);
    drop(snapshot);
    let db = Db::open(dir.path()).unwrap();
    let snapshot = db.snapshot();
    db.close().unwrap();
    check(&Db::open(dir.path()).unwrap(), 10);
    assert_eq!(*snapshot.get("k").unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn another_process_is_locked_out() {
    const VARIABLE: &str = "ESKER_BAD_INPUT_DIR";
    if let Some(dir) = std::env::var_os(VARIABLE) {
        // The other process: its exit status tells.
        let outcome = Db::open(PathBuf::from(dir));
        let locked = outcome.is_err_and(|error| *error.kind() == ErrorKind::Locked);
        std::process::exit(if locked { 17 } else { 18 });
    }
    let dir = tempfile::tempdir().unwrap();
    let open_elsewhere = || {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "bad_input::another_process_is_locked_out"]);
        child.env(VARIABLE, dir.path()).output().unwrap().status.code()
    };
    let db = Db::open_with(dir.path(), Options::tiny()).unwrap();
    fill(&db, 10);
    assert_eq!(open_elsewhere(), Some(17));
    check(&db, 10);
    db.close().unwrap();
    assert_eq!(open_elsewhere(), Some(18));
    check(&Db::open(dir.path()).unwrap(), 10);
}

#[test]
fn what_is_not_a_database_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes.txt");
    std::fs::write(&file, "not yours").unwrap();
    invalid(Db::open(&file), "is a file");
    invalid(Db::open(file.join("below")), "within one");
    invalid(Db::open(dir.path()), "notes.txt");
    let names = |dir: &Path| {
        let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(dir.path()), ["notes.txt"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"not yours");

    let missing = dir.path().join("missing");
    invalid(Db::builder(&missing).create(false).open(), "no database");
    assert!(!missing.exists());
    // An empty directory is none either.
    std::fs::create_dir(&missing).unwrap();
    invalid(Db::builder(&missing).create(false).open(), "no database");
    assert!(Db::open(&missing).is_ok());
    assert!(Db::builder(&missing).create(false).open().is_ok());

    // Another engine of this kind has files of the same names.
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let theirs = [("CURRENT", "MANIFEST-000004\n"), ("LOCK", ""), ("000003.log", "theirs")];
    theirs.iter().for_each(|(name, text)| std::fs::write(other.join(name), text).unwrap());
    invalid(Db::open(&other), "is not a database of esker");
    invalid(Db::builder(&other).create(false).open(), "is not a database of esker");
    invalid(esker::tools::verify(&other, &mut |_| {}), "is not a database of esker");
    for mode in [RepairMode::DryRun, RepairMode::InPlace] {
        invalid(esker::tools::repair(&other, mode, &mut |_| {}), "is not a database of esker");
    }
    assert_eq!(names(&other).len(), theirs.len());
    for (name, text) in theirs {
        assert_eq!(std::fs::read(other.join(name)).unwrap(), text.as_bytes());
    }
    // Files that are numbered are no sign of a database either.
    std::fs::remove_file(other.join("CURRENT")).unwrap();
    invalid(
        esker::tools::repair(&other, RepairMode::InPlace, &mut |_| {}),
        "is not a database of esker",
    );
    assert_eq!(names(&other).len(), theirs.len() - 1);
}

/// Fails every call that would change something.
#[derive(Debug)]
struct ReadOnly {
    errno: i32,
}

impl Interceptor for ReadOnly {
    fn before(&self, call: &Call<'_>) -> Verdict {
        match call.changes() {
            true => Verdict::Fail(io::Error::from_raw_os_error(self.errno)),
            false => Verdict::Proceed,
        }
    }
}

#[test]
fn a_directory_that_cannot_be_written_is_an_io_error() {
    const EACCES: i32 = 13;
    const EROFS: i32 = 30;
    let fs = SimFs::new();
    let db = open_on(fs.clone()).unwrap();
    fill(&db, 100);
    drop(db);
    let before = fs.state_hash();
    let cases =
        [(EACCES, io::ErrorKind::PermissionDenied), (EROFS, io::ErrorKind::ReadOnlyFilesystem)];
    for (errno, kind) in cases {
        let opened = open_on(Intercepted::over(Arc::new(fs.clone()), ReadOnly { errno }));
        assert_eq!(*opened.unwrap_err().kind(), ErrorKind::Io(kind));
        assert_eq!(fs.state_hash(), before);
    }
    check(&open_on(fs).unwrap(), 100);
}

// Files that are damaged, missing or of the future.

/// A database with tables, a log to replay and a manifest; nobody has it open.
fn database() -> SimFs {
    let fs = SimFs::new();
    let db = open_on(fs.clone()).unwrap();
    fill(&db, 60);
    db.flush().unwrap();
    db.settle().unwrap();
    // Not enough for a flush.
    db.put(key(60), "value 60").unwrap();
    drop(db);
    fs
}

fn files(fs: &SimFs, part: &str) -> Vec<PathBuf> {
    let names = fs.list(Path::new(DIR)).unwrap().into_iter();
    let mut names: Vec<String> = names.filter(|name| name.contains(part)).collect();
    names.sort();
    assert!(!names.is_empty(), "no file of {part}");
    names.into_iter().map(|name| Path::new(DIR).join(name)).collect()
}

/// Sets a bit of a feature word in the header and mends its checksum; see `src/file.rs`.
fn set_feature(file: &mut [u8], word_at: usize) {
    file[word_at + 3] |= 0x80;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&file[16..32]);
    hasher.update(&0u64.to_le_bytes());
    hasher.update(&file[..124]);
    file[124..128].copy_from_slice(&hasher.finalize().to_le_bytes());
}

#[test]
fn files_of_a_newer_format_are_refused_and_kept() {
    const COMPATIBLE_AT: usize = 8;
    const INCOMPATIBLE_AT: usize = 12;
    for part in [".table", ".log", "manifest-"] {
        let fs = database();
        let last = files(&fs, part).pop().unwrap();
        // The last log is a spare without a header: it has nothing to say.
        let with_header = |path: &PathBuf| fs.contents(path).unwrap()[0] != 0;
        let path = files(&fs, part).into_iter().rfind(with_header).unwrap_or(last);
        let good = fs.contents(&path).unwrap();
        let mut newer = good.clone();
        set_feature(&mut newer, INCOMPATIBLE_AT);
        fs.set_contents(&path, &newer).unwrap();
        let error = open_on(fs.clone()).unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Unsupported, "{error}");
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(fs.contents(&path).unwrap(), newer);

        let mut compatible = good;
        set_feature(&mut compatible, COMPATIBLE_AT);
        fs.set_contents(&path, &compatible).unwrap();
        check(&open_on(fs.clone()).unwrap(), 61);
    }
}

#[test]
fn a_file_that_is_gone_is_corruption_that_names_it() {
    // One database and copies of it: how many tables there are depends on when a compaction ran.
    let origin = database();
    for part in [".table", "manifest-", "CURRENT"] {
        for path in files(&origin, part) {
            let fs = origin.snapshot().kill();
            let bytes = fs.contents(&path).unwrap();
            fs.remove(&path).unwrap();
            let error = open_on(fs.clone()).unwrap_err();
            assert!(error.is_corruption(), "{}: {error}", path.display());
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(error.to_string().contains(name), "{error}");
            // Who does not want one created is told the same, not that there is none.
            let mut options = Options::tiny();
            options.create = false;
            let fs_again = Arc::new(fs.clone());
            let again = Db::open_on(fs_again, Runtime::threads(), DIR, options).unwrap_err();
            assert!(again.is_corruption() && again.to_string().contains(name), "{again}");
            // Nothing was made worse: with the file back, everything is there.
            let file = fs.create(&path).unwrap();
            file.write_at(0, &bytes).unwrap();
            drop(file);
            check(&open_on(fs).unwrap(), 61);
        }
    }
}

#[test]
fn a_log_that_is_gone_is_corruption_even_before_the_first_flush() {
    let fs = SimFs::new();
    let db = open_on(fs.clone()).unwrap();
    // Of an empty database as well: the log was there, so there may have been something in it.
    let images = [fs.snapshot(), {
        db.put("a", "b").unwrap();
        fs.snapshot()
    }];
    for (image, expected) in images.into_iter().zip([None, Some(&b"b"[..])]) {
        let fs = image.kill();
        let logs = files(&fs, ".log");
        let kept: Vec<_> = logs.iter().map(|path| fs.contents(path).unwrap()).collect();
        logs.iter().for_each(|path| fs.remove(path).unwrap());
        let name = logs[0].file_name().unwrap().to_str().unwrap();
        for _ in 0..2 {
            let error = open_on(fs.clone()).unwrap_err();
            assert!(error.is_corruption() && error.to_string().contains(name), "{error}");
        }
        let arc: Arc<dyn Fs> = Arc::new(fs.clone());
        let report = verify_on(&arc, Path::new(DIR), &mut |_| {}).unwrap();
        assert!(report.damage.iter().any(|damage| damage.file == logs[0]), "{report}");
        // Nothing was made worse: with the files back, everything is there.
        let whole = image.kill();
        for (path, bytes) in logs.iter().zip(&kept) {
            assert_eq!(whole.contents(path).unwrap(), *bytes);
        }
        assert_eq!(open_on(whole).unwrap().get("a").unwrap().as_deref(), expected);
        // Who asks for it gets what there is, and is told what there is not.
        for recovery in [Recovery::PointInTime, Recovery::Salvage] {
            let mut options = Options::tiny();
            options.recovery = recovery;
            let other = Arc::new(fs.snapshot().kill());
            let db = Db::open_on(other, Runtime::threads(), DIR, options).unwrap();
            assert_eq!(db.get("a").unwrap(), None);
            assert!(db.losses().iter().any(|loss| loss.file == logs[0]), "{:?}", db.losses());
        }
        let mut progress = |_: &str| {};
        let (options, mode) = (Options::tiny(), RepairMode::InPlace);
        let report = repair_on(&arc, Path::new(DIR), mode, &options, &mut progress).unwrap();
        assert!(report.losses.iter().any(|loss| loss.file == logs[0]), "{report}");
        assert_eq!(open_on(fs).unwrap().get("a").unwrap(), None);
    }
}

// Full disks.

/// Puts until the disk is full; how many were acknowledged.
fn put_until_full(db: &Db, from: u32) -> u32 {
    for i in from.. {
        // Not as long as it takes: before any call fails, it may be seen that there is no space left.
        match db.put_within(key(i), format!("value {i}"), Duration::from_secs(1)) {
            Ok(()) => {}
            Err(error) if is_full(&error) => return i,
            Err(error) => panic!("put {i}: {error}"),
        }
    }
    unreachable!("no disk is that large");
}

/// A full disk shows as such, to who waits for a while only as busy, and, where its breaker needs a
/// hand, as degraded.
fn is_full(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::NoSpace | ErrorKind::Degraded { .. } => true,
        ErrorKind::Busy { cause, .. } => *cause == BusyCause::DiskSpace,
        _ => false,
    }
}

/// Puts until it succeeds, once there is space again. The commit that failed first is unknown until
/// then; it is written again with the same value.
fn put_once_there_is_space(db: &Db, i: u32, mut wait: impl FnMut()) {
    for _ in 0..1_000 {
        match db.put(key(i), format!("value {i}")) {
            Ok(()) => return,
            Err(error) if *error.kind() == ErrorKind::NoSpace => wait(),
            // The manifest or a sync met the full disk: that needs a word.
            Err(error) if is_full(&error) => match db.resume() {
                Ok(()) => {}
                Err(error) => assert!(is_full(&error), "resume: {error}"),
            },
            Err(error) => panic!("put {i}: {error}"),
        }
    }
    panic!("{:?} although there is space: {:?}", db.breaker(), db.put("a", "b"));
}

#[test]
fn a_full_disk_refuses_writes_and_heals_in_the_same_process() {
    for seed in 0..10 {
        let fs = SimFs::new();
        let runtime = Runtime::stepper(seed);
        let open =
            || Db::open_on(Arc::new(fs.clone()), runtime.clone(), DIR, Options::tiny()).unwrap();
        let db = open();
        let mut count = 0;
        for round in 1..4 {
            fs.set_capacity(Some(round * 20_000 + 3_111 * seed));
            let full = put_until_full(&db, count);
            check_but_one(&db, full);
            assert!(is_full(&db.put_within("a", "b", Duration::from_secs(1)).unwrap_err()));
            fs.set_capacity(None);
            put_once_there_is_space(&db, full, || runtime.sleep(Duration::from_millis(50)));
            count = full + 1;
            check(&db, count);
        }
        drop(db);
        check(&open(), count);
    }
}

/// The keys below `count` are there, and maybe that one, whose put failed.
fn check_but_one(db: &Db, count: u32) {
    let found = db.iter().count() as u32;
    assert!(found == count || found == count + 1, "{found} of {count}");
    check(db, found);
}

/// A tmpfs of this size, unmounted when it drops. `None` without the right to mount one.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount(bytes: u64) -> Option<Tmpfs> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "esker-test"]).arg(dir.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then_some(Tmpfs(dir))
    }

    fn remount(&self, option: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{option}")]).arg(self.0.path());
        assert!(mount.output().unwrap().status.success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).output();
    }
}

#[test]
fn a_real_file_system_that_fills_up_and_one_that_is_read_only() {
    let Some(tmpfs) = Tmpfs::mount(2 << 20) else {
        println!("skipped: no right to mount a tmpfs here");
        return;
    };
    let dir = tmpfs.0.path().join("db");
    let db = Db::open_with(&dir, Options::tiny()).unwrap();
    let ballast = tmpfs.0.path().join("ballast");
    let mut count = 0;
    for round in 0..2 {
        let fill_disk = std::fs::File::create(&ballast).unwrap();
        let mut bytes = 4 << 20;
        // What is left of the disk, but for a few pages.
        while bytes > 4096 {
            let at = fill_disk.metadata().unwrap().len();
            if io::copy(&mut io::Read::take(io::repeat(1), bytes), &mut &fill_disk).is_err() {
                let whole = fill_disk.metadata().unwrap().len();
                fill_disk.set_len(whole.max(at)).unwrap();
                bytes /= 2;
            }
        }
        fill_disk
            .set_len(fill_disk.metadata().unwrap().len() - ((100 + 60 * round) << 10))
            .unwrap();
        let full = put_until_full(&db, count);
        check_but_one(&db, full);
        drop(fill_disk);
        std::fs::remove_file(&ballast).unwrap();
        put_once_there_is_space(&db, full, || std::thread::sleep(Duration::from_millis(20)));
        count = full + 1;
        check(&db, count);
    }
    drop(db);
    tmpfs.remount("ro");
    let error = Db::open(&dir).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Io(io::ErrorKind::ReadOnlyFilesystem), "{error}");
    tmpfs.remount("rw");
    check(&Db::open_with(&dir, Options::tiny()).unwrap(), count);
}
