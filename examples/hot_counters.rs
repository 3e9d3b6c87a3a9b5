//! A counter that many writers add to at once, in one key and spread over shards; and a checkpoint of it.
//!
//! `cargo run --release --example hot_counters -- 2` prints merges a second, for two seconds each.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use esker::{Counter, KeyspaceOptions, ShardedDb};

fn counter() -> KeyspaceOptions {
    KeyspaceOptions::new().merge(Counter::wrapping())
}

fn open(dir: &Path) -> esker::Result<ShardedDb> {
    ShardedDb::builder(dir).shards(4).memory(128 << 20).open()
}

/// How many merges a second so many threads make in this time.
fn rate(threads: usize, time: Duration, merge: impl Fn() -> esker::Result<()> + Sync) -> f64 {
    let (stop, count) = (AtomicBool::new(false), AtomicI64::new(0));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut own = 0;
                while !stop.load(Ordering::Relaxed) {
                    merge().expect("the disk takes it");
                    own += 1;
                }
                count.fetch_add(own, Ordering::Relaxed);
            });
        }
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
    });
    count.into_inner() as f64 / began.elapsed().as_secs_f64()
}

fn measure(dir: &Path, time: Duration) -> esker::Result<()> {
    let db = open(dir)?;
    let (plain, hot) = (db.keyspace("plain", counter())?, db.hot_counters("hot", counter())?);
    for threads in [1, 2, 4] {
        let one = rate(threads, time, || plain.merge("front page", 1));
        let spread = rate(threads, time, || hot.merge("front page", 1));
        println!("{threads} threads: {one:.0} merges a second into one key, {spread:.0} spread");
    }
    let reads = |get: &dyn Fn() -> esker::Result<()>| -> esker::Result<Duration> {
        let began = Instant::now();
        (0..10_000).try_for_each(|_| get())?;
        Ok(began.elapsed() / 10_000)
    };
    let one = reads(&|| plain.get("front page").map(drop))?;
    let spread = reads(&|| hot.get("front page").map(drop))?;
    println!("a read takes {one:?} of one key, {spread:?} of a counter that is spread");
    Ok(())
}

/// Public, so that `tests/it/examples.rs` runs it as well.
pub fn main() -> esker::Result<()> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    if let Some(seconds) = std::env::args().nth(1).and_then(|text| text.parse().ok()) {
        return measure(&dir.path().join("measured"), Duration::from_secs_f64(seconds));
    }
    let db = open(&dir.path().join("db"))?;
    let views = db.hot_counters("views", counter())?;
    let number = |value: Option<esker::Slice>| value.and_then(|value| Counter::decode(&value));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope
                .spawn(|| (0..250).for_each(|_| views.merge("front page", 1).expect("it is open")));
        }
    });
    assert_eq!(number(views.get("front page")?), Some(1000));

    // A copy of all shards at this moment, which is a database of its own.
    db.checkpoint(dir.path().join("copy"))?;
    views.merge("front page", 1)?;
    let copy = ShardedDb::open(dir.path().join("copy"))?;
    let copied = copy.hot_counters("views", counter())?;
    assert_eq!(number(copied.get("front page")?), Some(1000));
    assert_eq!(number(views.get("front page")?), Some(1001));
    drop((views, copied));
    copy.close()?;
    db.close()?;
    Ok(())
}
