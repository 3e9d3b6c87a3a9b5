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
