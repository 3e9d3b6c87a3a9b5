//! Bugs that other tests found, each in the smallest form: bug, cause, fix.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use esker::fs::fault::{Fault, FaultFs, FaultKind};
use esker::fs::intercept::Select;
use esker::fs::sim::{Phase, SimFs};
use esker::runtime::{Priority, Runtime, yield_point};
use esker::{
    BreakerState, BusyCause, Db, DegradedCause, ErrorKind, Keyspace, KeyspaceOptions, Options,
    ReadMode,
};

fn open(fs: &SimFs) -> Db {
    let fs = Arc::new(fs.clone());
    Db::open_on(fs, Runtime::threads(), "/db", Options::tiny()).unwrap()
}

/// Bug: after a clean close the database could not be opened: "the lease of seqnos goes back".
/// Cause: a batch that was refused had extended the lease beyond the numbers that were used, and
/// open leased from the last number used. Fix: open never leases less than was leased before.
#[test]
fn a_refused_batch_leaves_the_lease_ahead_of_the_numbers() {
    let fs = SimFs::new();
    let db = open(&fs);
    let passing = db.keyspace("passing", KeyspaceOptions::new()).unwrap();
    db.drop_keyspace("passing").unwrap();
    db.put("a", "1").unwrap();
    let mut batch = db.batch();
    for _ in 0..100 {
        batch.delete(&passing, "a");
    }
    assert_eq!(*batch.commit().unwrap_err().kind(), ErrorKind::Closed);
    db.close().unwrap();
    let db = open(&fs);
    assert_eq!(db.get("a").unwrap().unwrap(), *"1");
}

/// Bug: a flush never ended, and the syncer synced without end. Cause: the flush waited until the
/// log was durable up to its very end, where a sync mark or an end record lay; those are not
/// commits, so that position is never published and no sync ever reaches it. Fix: wait up to the
/// end of the last commit.
#[test]
fn a_flush_does_not_wait_for_a_mark_in_the_log() {
    let fs = SimFs::new();
    let db = open(&fs);
    let other = db.keyspace("other", KeyspaceOptions::new()).unwrap();
    // Something older that stays in memory, so that the flush has to sync the log.
    other.put("a", "1").unwrap();
    db.put("b", "2").unwrap();
    db.sync().unwrap();
    let (ended, end) = std::sync::mpsc::channel();
    let flushing = db.clone();
    let flush = std::thread::spawn(move || ended.send(Keyspace::flush(&flushing)).unwrap());
    let flushed = end.recv_timeout(Duration::from_secs(60));
    flushed.expect("the flush ends").unwrap();
    flush.join().unwrap();
}

/// Bug: a manifest that could not be written while somebody settled stopped the database for ever.
/// Cause: the search for a job took the catalog's lock under that of the work, and a failure under
/// the catalog's lock wakes the workers. Fix: the search only tries the lock.
#[test]
fn a_failing_manifest_does_not_lock_out_who_settles() {
    for seed in 0..40 {
        let sim = SimFs::new();
        sim.on_call(Arc::new(|_, _, _| yield_point()));
        let fs = FaultFs::over_sim(sim);
        let runtime = Runtime::stepper(seed);
        let db = Db::open_on(Arc::new(fs.clone()), runtime.clone(), "/db", Options::tiny());
        let db = db.unwrap();
        let settled = db.clone();
        let settler = runtime.spawn("settler", Priority::Normal, move || {
            while settled.settle().is_ok() {
                yield_point();
            }
        });
        fs.arm(Fault::new(FaultKind::Io).on(Select::all().name("sync").file("manifest")).nth(2));
        while db.keyspace("passing", KeyspaceOptions::new()).is_ok() {
            let Ok(()) = db.drop_keyspace("passing") else { break };
        }
        let cause = Some(DegradedCause::Manifest);
        assert_eq!(db.breaker(), (BreakerState::Open, cause), "seed {seed}");
        settler.unwrap().join();
    }
}

/// Bug: in a database of many keyspaces every write waited for ever. Cause: empty memtables counted
/// as memory that a flush would give back. Fix: they do not make pressure.
#[test]
fn many_idle_keyspaces_do_not_stop_writers() {
    let db = open(&SimFs::new());
    for i in 0..60 {
        let keyspace = db.keyspace(&format!("keyspace {i}"), KeyspaceOptions::new()).unwrap();
        keyspace.put("a", "1").unwrap();
        assert_eq!(keyspace.get("a").unwrap().unwrap(), *"1");
    }
    db.flush().unwrap();
    db.put("a", "1").unwrap();
}

/// Bug: writers that waited for space on the disk did so for ever, also once there was some. Cause:
/// free space was looked at after a job only, and no job was due. Fix: an idle worker looks while
/// writers wait.
#[test]
fn writers_that_wait_for_space_go_on_once_there_is_some() {
    let fs = SimFs::new();
    let runtime = Runtime::stepper(1);
    let mut options = Options::default();
    options.memory = 1 << 20;
    let db = Db::open_on(Arc::new(fs.clone()), runtime.clone(), "/db", options).unwrap();
    db.put("a", "1").unwrap();
    // Logs have 1 MiB each; half a megabyte is kept for flushes.
    fs.set_capacity(Some((2 << 20) + (400 << 10)));
    db.flush().unwrap();
    let busy = db.try_put("a", "2").unwrap_err();
    assert!(
        matches!(busy.kind(), ErrorKind::Busy { cause: BusyCause::DiskSpace, .. }),
        "{busy}: {}",
        db.stats()
    );
    let writer = db.clone();
    let writer = runtime.spawn("writer", Priority::Normal, move || writer.put("a", "3").unwrap());
    runtime.sleep(Duration::from_secs(10));
    fs.set_capacity(None);
    writer.unwrap().join();
    assert_eq!(db.get("a").unwrap().unwrap(), *"3");
    db.try_put("a", "4").unwrap();
}

/// Bug: writers waited for the disk although only another writer read from it. Cause: a leaf of the
/// memtable that dropped a tombstone asked the filters of tables first, and loaded one, under its lock.
/// Fix: it asks those that are loaded; the others are loaded by the writer once it has no lock.
#[test]
fn nobody_waits_for_a_disk_with_a_leaf_locked() {
    let disk = SimFs::new();
    let db = open(&disk);
    db.put("a", "1").unwrap();
    db.put("z", "1").unwrap();
    db.flush().unwrap();
    db.close().unwrap();
    // Now no filter is loaded.
    let mut options = Options::tiny();
    (options.memory, options.read_mode) = (16 << 20, ReadMode::Pread);
    let db = Db::open_on(Arc::new(disk.clone()), Runtime::threads(), "/db", options).unwrap();
    let (reads, read) = std::sync::mpsc::channel();
    let (goes_on, go_on) = std::sync::mpsc::channel();
    let go_on = Mutex::new(go_on);
    let reader = std::thread::current().id();
    disk.on_call(Arc::new(move |_, phase, call| {
        let by_reader = std::thread::current().id() == reader;
        if by_reader && phase == Phase::Before && call.name == "read" {
            reads.send(()).unwrap();
            let went_on = go_on.lock().unwrap().recv_timeout(Duration::from_secs(60));
            went_on.expect("another writer goes on meanwhile");
        }
    }));
    let other = db.clone();
    let writer = std::thread::spawn(move || {
        let mut count = 0;
        while let Ok(()) = read.recv() {
            other.put("m", "2").unwrap();
            count += 1;
            if goes_on.send(()).is_err() {
                break;
            }
        }
        count
    });
    for _ in 0..2_000 {
        db.put("m", "1").unwrap();
        db.delete("m").unwrap();
    }
    disk.clear_hook();
    assert!(writer.join().unwrap() > 0, "a filter was read");
}
