//! An article that everybody reads: a hundred thousand views become a handful of writes, and the
//! page still shows every one of them.
//!
//! `cargo run --example coalescer`

use esker::{Coalescer, CoalescerOptions, Counter, Db, KeyspaceOptions};

const THREADS: i64 = 4;
const VIEWS: i64 = 25_000;

/// Public, so that `tests/it/examples.rs` runs it as well.
pub fn main() -> esker::Result<()> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let db = Db::open(dir.path().join("site"))?;
    let counters = db.keyspace("views", KeyspaceOptions::new().merge(Counter::default()))?;
    // A crash costs at most the views of the last second.
    let views = Coalescer::new(&db, &counters, CoalescerOptions::default())?;

    std::thread::scope(|scope| {
        let visit = || (0..VIEWS).try_for_each(|_| views.add("article:42", 1));
        let visitors: Vec<_> = (0..THREADS).map(|_| scope.spawn(visit)).collect();
        visitors.into_iter().try_for_each(|visitor| visitor.join().expect("no panic"))
    })?;
    let shown = views.get("article:42")?.and_then(|value| Counter::decode(&value));
    assert_eq!(shown, Some(THREADS * VIEWS), "also what is not written yet");

    views.flush()?;
    let stored = counters.get("article:42")?.and_then(|value| Counter::decode(&value));
    assert_eq!(stored, shown);
    let bytes = db.stats().user_bytes;
    assert!(bytes < 100_000, "far less than one write a view");
    println!("{} views were written as {bytes} bytes", THREADS * VIEWS);
    drop(views);

    // Where no crash may cost a view: each is kept in the log of a queue until it is written.
    let mut options = CoalescerOptions::default();
    options.queue = Some("views".to_string());
    let views = Coalescer::new(&db, &counters, options)?;
    views.add("article:42", 1)?;
    let shown = views.get("article:42")?.and_then(|value| Counter::decode(&value));
    assert_eq!(shown, Some(THREADS * VIEWS + 1));
    Ok(())
}
