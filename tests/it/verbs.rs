//! Every verb once, over flush and reopen, on the real file system.

use esker::{Counter, Db, KeyspaceOptions};

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
