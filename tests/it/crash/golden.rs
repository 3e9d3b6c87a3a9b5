//! The order of syncs, pinned as text: `GOLDEN=write` writes it anew, and the diff is reviewed.

use std::sync::Arc;

use esker::fs::sim::SimFs;
use esker::fs::trace::TraceFs;
use esker::runtime::Runtime;
use esker::{Counter, Db, Durability, KeyspaceOptions, Options};

use crate::crash::workload::DIR;

/// One line for each call; reads are left out, and writes of a table after its first.
fn trace() -> String {
    let fs = TraceFs::new(Arc::new(SimFs::new()));
    let mut options = Options::tiny();
    options.threads = 1;
    let open = |seed| {
        let fs = Arc::new(fs.clone());
        Db::open_on(fs, Runtime::stepper(seed), DIR, options.clone()).unwrap()
    };
    fs.note("open a new database");
    let db = open(1);
    db.settle().unwrap();
    fs.note("put, acknowledged as Process");
    db.put("a", "1").unwrap();
    fs.note("put, acknowledged as Disk");
    db.batch().put(&db, "b", "2").commit_with(Durability::Disk).unwrap();
    fs.note("create a keyspace");
    let views = db.keyspace("views", KeyspaceOptions::new().merge(Counter::default())).unwrap();
    views.merge("article", 1).unwrap();
    fs.note("flush");
    db.flush().unwrap();
    db.settle().unwrap();
    fs.note("a commit that needs the next log");
    db.batch().put(&db, "large", vec![b'x'; 1500]).commit_with(Durability::Disk).unwrap();
    db.settle().unwrap();
    fs.note("compact");
    db.put("a", "3").unwrap();
    db.compact_range::<&[u8]>(..).unwrap();
    db.settle().unwrap();
    fs.note("drop a keyspace");
    views.merge("article", 1).unwrap();
    drop(views);
    db.drop_keyspace("views").unwrap();
    db.settle().unwrap();
    fs.note("drop the last handle");
    db.put("c", "4").unwrap();
    drop(db);
    fs.note("open, with a log to replay");
    let db = open(2);
    db.settle().unwrap();
    fs.note("close");
    db.close().unwrap();
    fs.note("open after a clean close");
    drop(open(3));
    fs.take().join("\n") + "\n"
}

#[test]
fn the_order_of_syncs_is_the_reviewed_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/golden/sync_order.txt");
    let found = trace();
    assert_eq!(found, trace(), "the same in every run");
    if std::env::var("GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::write(path, &found).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == expected, "the order of syncs changed:\n{found}");
}
