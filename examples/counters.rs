//! Page views counted by several threads, without reading what is there: merge operands are as
//! cheap as puts, concurrent like them, and folded when they are read or compacted.
//!
//! `cargo run --example counters`

use esker::{Append, Counter, Db, ErrorKind, KeyspaceOptions, Max};

const THREADS: i64 = 4;
const VIEWS: i64 = 10_000;
const PAGES: i64 = 10;

/// Public, so that `tests/it/examples.rs` runs it as well.
pub fn main() -> esker::Result<()> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("analytics");

    // The operator belongs to the keyspace; its name is kept, and checked at every open.
    let db = Db::open(&path)?;
    let views = db.keyspace("views", KeyspaceOptions::new().merge(Counter::default()))?;
    let slowest = db.keyspace("slowest", KeyspaceOptions::new().merge(Max))?;
    let trail = db.keyspace("trail", KeyspaceOptions::new().merge(Append))?;

    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (views, slowest) = (views.clone(), slowest.clone());
                scope.spawn(move || -> esker::Result<()> {
                    for view in 0..VIEWS {
                        let page = format!("page:{}", view % PAGES);
                        views.merge(&page, 1)?;
                        slowest.merge(&page, thread * VIEWS + view)?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no panic"))
    })?;
    trail.merge("visitor:7", "/home")?;
    trail.merge("visitor:7", "/pricing")?;

    // A counter takes numbers and nothing else: the call fails, not a read a month later.
    let error = views.merge("page:0", "one").expect_err("no number");
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
    drop((views, slowest, trail));
    db.close()?;

    // The operators are built in, so that their keyspaces need not name them again.
    let db = Db::open(&path)?;
    let views = db.keyspace("views", KeyspaceOptions::new())?;
    for page in views.prefix("page:") {
        let (page, count) = page?;
        assert_eq!(Counter::decode(&count), Some(THREADS * VIEWS / PAGES), "{page:?}");
    }
    let slowest = db.keyspace("slowest", KeyspaceOptions::new())?;
    let last = slowest.get_with("page:9", Counter::decode)?.flatten();
    assert_eq!(last, Some(THREADS * VIEWS - 1));
    let trail = db.keyspace("trail", KeyspaceOptions::new())?;
    assert_eq!(trail.get("visitor:7")?.as_deref(), Some(&b"/home/pricing"[..]));
    println!("{} views of {PAGES} pages, none lost", THREADS * VIEWS);
    Ok(())
}
