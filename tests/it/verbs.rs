//! Every verb once, over flush and reopen, on the real file system.

use esker::{Counter, Db, ErrorKind, KeyspaceOptions, Max, MergeOperator, Min};

fn key(i: u32) -> Vec<u8> {
    format!("{i:016}").into_bytes()
}

#[test]
fn a_database_keeps_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    {
        let db = Db::open(dir.path()).unwrap();
        for i in 0..1000 {
            db.put(key(i), format!("value {i}")).unwrap();
        }
        db.delete(key(7)).unwrap();
        assert_eq!(db.get(key(8)).unwrap().unwrap(), *"value 8");
        assert_eq!(db.get(key(7)).unwrap(), None);
        db.flush().unwrap();
        assert_eq!(db.get(key(8)).unwrap().unwrap(), *"value 8");
        assert_eq!(db.get(key(7)).unwrap(), None);
        db.put(key(8), "again").unwrap();
        let views = db.keyspace("views", KeyspaceOptions::new().merge(Counter::default())).unwrap();
        for _ in 0..10 {
            views.merge("article", 2).unwrap();
        }
        assert_eq!(Counter::decode(&views.get("article").unwrap().unwrap()), Some(20));
    }
    for _ in 0..2 {
        let db = Db::open(dir.path()).unwrap();
        assert_eq!(db.get(key(8)).unwrap().unwrap(), *"again");
        assert_eq!(db.get(key(7)).unwrap(), None);
        assert_eq!(db.iter().count(), 999);
        assert_eq!(db.iter().rev().count(), 999);
        let views = db.keyspace("views", KeyspaceOptions::new()).unwrap();
        assert_eq!(Counter::decode(&views.get("article").unwrap().unwrap()), Some(20));
        db.close().unwrap();
    }
}

/// Whether the operands lie in memory, in tables or in both, on a value, a tombstone or nothing; and a
/// value that is no number is still the operator's to refuse.
#[test]
fn numbers_fold_wherever_they_are() {
    fn check(operator: impl MergeOperator, fold: fn(i64, i64) -> i64) {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(dir.path()).unwrap();
        let numbers = db.keyspace("numbers", KeyspaceOptions::new().merge(operator)).unwrap();
        numbers.put("on a value", 5_i64.to_le_bytes()).unwrap();
        numbers.put("on a tombstone", 99_i64.to_le_bytes()).unwrap();
        numbers.delete("on a tombstone").unwrap();
        numbers.put("on a text", "abc").unwrap();
        for round in 0..3 {
            for operand in [7, -3, 4] {
                for key in ["on a value", "on a tombstone", "on nothing", "on a text"] {
                    numbers.merge(key, operand + round).unwrap();
                }
            }
            let folded = (0..=round).flat_map(|round| [7, -3, 4].map(|operand| operand + round));
            let folded = folded.reduce(fold).unwrap();
            let read = |key: &str| Counter::decode(&numbers.get(key).unwrap().unwrap()).unwrap();
            for flush in [false, true] {
                assert_eq!(read("on a value"), fold(5, folded), "{round} {flush}");
                assert_eq!(read("on a tombstone"), folded, "{round} {flush}");
                assert_eq!(read("on nothing"), folded, "{round} {flush}");
                let refused = numbers.get("on a text").unwrap_err();
                assert!(matches!(refused.kind(), ErrorKind::MergeFailed { .. }), "{refused}");
                if flush {
                    db.flush().unwrap();
                }
            }
        }
    }
    check(Counter::default(), i64::wrapping_add);
    check(Counter::saturating(), i64::saturating_add);
    check(Max, i64::max);
    check(Min, i64::min);
}

/// Two runs of level 0 are no reason for a compaction while somebody writes, but once nobody does.
#[cfg(feature = "testing")]
#[test]
fn a_database_that_rests_merges_its_level_0() {
    use esker::fs::sim::SimFs;
    use esker::runtime::Runtime;

    let (fs, runtime) = (std::sync::Arc::new(SimFs::new()), Runtime::stepper(1));
    let options = esker::Options::default();
    let db = Db::open_on(fs, runtime.clone(), "/db", options).unwrap();
    for round in 0..2 {
        (0..10).for_each(|key| db.put(format!("{key}"), format!("{round}")).unwrap());
        db.flush().unwrap();
    }
    db.settle().unwrap();
    let level0 = || db.stats().keyspaces[0].levels[0].files;
    assert_eq!(level0(), 2, "nothing is due");
    runtime.sleep(std::time::Duration::from_secs(3));
    assert_eq!(level0(), 0);
    assert_eq!(db.get("3").unwrap().unwrap(), *"1");
}

/// Tombstones that nobody steps over stay while somebody writes; those that scans step over go once
/// that has cost as much as to clear them away.
#[cfg(feature = "testing")]
#[test]
fn tombstones_that_scans_step_over_are_swept_beside_writes() {
    use esker::fs::sim::SimFs;
    use esker::runtime::Runtime;

    const KEYS: u32 = 20_000;
    let (fs, runtime) = (std::sync::Arc::new(SimFs::new()), Runtime::stepper(1));
    let db = Db::open_on(fs, runtime.clone(), "/db", esker::Options::default()).unwrap();
    (0..KEYS).for_each(|i| db.put(key(i), "value").unwrap());
    db.compact_range::<&str>(..).unwrap();
    let is_kept = |i: &u32| i.is_multiple_of(10);
    (0..KEYS).filter(|i| !is_kept(i)).for_each(|i| db.delete(key(i)).unwrap());

    // Never at rest.
    let write = || {
        runtime.sleep(std::time::Duration::from_millis(20));
        db.put(key(0), "value").unwrap();
    };
    let entries = || db.stats().keyspaces[0].table_entries;
    (0..30).for_each(|_| write());
    assert_eq!(entries(), u64::from(KEYS), "nobody has stepped over any");
    let scan = |forward: bool| {
        let mut cursor = db.cursor();
        let mut rows = 0;
        if forward { cursor.seek_to_first() } else { cursor.seek_to_last() }.unwrap();
        while cursor.valid() {
            rows += 1;
            if forward { cursor.next() } else { cursor.prev() }.unwrap();
        }
        assert_eq!(rows, KEYS / 10);
    };
    scan(true);
    write();
    assert_eq!(entries(), u64::from(KEYS), "one scan has not cost as much as a sweep");
    for round in 0..6 {
        scan(round % 2 == 0);
        write();
    }
    assert_eq!(entries(), u64::from(KEYS) / 10);
}

/// Each number of the stats is of what was done, and the text has them.
#[cfg(feature = "testing")]
#[test]
fn stats_say_what_each_level_holds_and_cost() {
    use esker::fs::sim::SimFs;
    use esker::runtime::Runtime;

    let (fs, runtime) = (std::sync::Arc::new(SimFs::new()), Runtime::stepper(1));
    let db = Db::open_on(fs, runtime, "/db", esker::Options::default()).unwrap();
    let mut user_bytes = 0;
    for round in 0..2 {
        for i in 0..1000 {
            let value = format!("value {i} of round {round}");
            user_bytes += (key(i).len() + value.len()) as u64;
            db.put(key(i), value).unwrap();
        }
        let memory = db.stats().memory;
        assert!(memory.memtables > user_bytes / 2 && memory.budget == 256 << 20, "{memory:?}");
        assert!(memory.total() >= memory.memtables, "{memory:?}");
        db.flush().unwrap();
    }
    db.settle().unwrap();
    let stats = db.stats();
    assert_eq!((stats.user_bytes, stats.flush_count, stats.memory.memtables), (user_bytes, 2, 0));
    assert!(stats.log_bytes_written > user_bytes && stats.write_amplification() > 1.0);
    let [level0, below @ ..] = &stats.keyspaces[0].levels[..] else { panic!("{stats}") };
    assert_eq!((level0.files, level0.bytes), (2, stats.table_bytes));
    assert_eq!((level0.written_bytes, level0.read_bytes), (stats.flush_bytes_written, 0));
    assert_eq!((level0.score, level0.write_amplification), (0.5, 1.0));
    assert!(below.iter().all(|level| level.files == 0 && level.written_bytes == 0), "{stats}");

    db.compact_range::<&str>(..).unwrap();
    db.settle().unwrap();
    let stats = db.stats();
    let keyspace = &stats.keyspaces[0];
    let [level0, below @ ..] = &keyspace.levels[..] else { panic!("{stats}") };
    assert_eq!((level0.files, level0.bytes, keyspace.table_entries), (0, 0, 1000));
    let sum = |of: fn(&esker::LevelStats) -> u64| below.iter().map(of).sum::<u64>();
    assert_eq!(sum(|level| level.files), 1);
    assert_eq!(sum(|level| level.read_bytes), stats.compaction_bytes_read);
    assert_eq!(sum(|level| level.written_bytes), stats.compaction_bytes_written);
    assert!(stats.compaction_bytes_read > 0 && stats.compaction_bytes_written > 0, "{stats}");
    let written = stats.compaction_bytes_written as f64 / stats.flush_bytes_written as f64;
    let amplification: f64 = below.iter().map(|level| level.write_amplification).sum();
    assert!((amplification - written).abs() < 1e-9, "{stats}");

    let text = stats.to_string();
    for part in ["\"default\": 1000 entries", "  score ", " w-amp", "memtables 0 B", "2 flushes"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// A keyspace that rests does not keep the logs that others fill: its memtable is written for them.
#[cfg(feature = "testing")]
#[test]
fn a_keyspace_that_rests_gives_up_the_logs_that_it_holds() {
    use esker::fs::sim::SimFs;
    use esker::runtime::Runtime;

    let (fs, runtime) = (std::sync::Arc::new(SimFs::new()), Runtime::stepper(1));
    let mut options = esker::Options::default();
    // Memtables of 256 KiB, which none but the other keyspace fills; logs of 64 MiB at most.
    options.memory = 1 << 20;
    let db = Db::open_on(fs, runtime, "/db", options).unwrap();
    let resting = db.keyspace("resting", KeyspaceOptions::new()).unwrap();
    resting.put("a", "1").unwrap();
    let is_written = || {
        let stats = db.stats();
        let found = stats.keyspaces.iter().find(|keyspace| keyspace.name == "resting").unwrap();
        found.table_entries > 0
    };
    for round in 0..40 {
        (0..1000).for_each(|i| db.put(key(i), [b'x'; 1000]).unwrap());
        db.settle().unwrap();
        if is_written() {
            assert!(round > 2, "not for the logs' sake");
            return;
        }
    }
    panic!("it keeps them: {}", db.stats());
}
