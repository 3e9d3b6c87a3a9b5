//! Bugs that other tests found, each in the smallest form: bug, cause, fix.

use std::sync::Arc;

use esker::fs::sim::SimFs;
use esker::runtime::Runtime;
use esker::{Db, ErrorKind, KeyspaceOptions, Options};

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
