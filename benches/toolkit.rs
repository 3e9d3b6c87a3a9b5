//! The toolkit beside the plain verbs: idempotent and conditional commits, batching, coalescing,
//! ingest, backpressure, the circuit breaker.
//!
//! `cargo bench --features testing --bench toolkit`

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use esker::fs::fault::{Fault, FaultFs, FaultKind};
use esker::fs::intercept::Select;
use esker::fs::sim::SimFs;
use esker::runtime::Runtime;
use esker::{
    Batch, Batcher, BatcherOptions, Coalescer, CoalescerOptions, Compression, Counter, Db,
    Durability, Event, EventId, IngestOptions, IngestQueue, KeyspaceOptions, Options,
};

const VALUE: [u8; 100] = [b'v'; 100];
/// Tokens that are there before an idempotent commit is measured.
const LIVE_TOKENS: u64 = 1_000_000;
const KEYS: u64 = 1_000;

fn open(dir: &Path) -> Db {
    Db::builder(dir).compression(Compression::None).open().unwrap()
}

/// 16 bytes that look like an id drawn at random, and never repeat.
fn id(number: u64) -> [u8; 16] {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (u128::from(mixed) << 64 | u128::from(number)).to_be_bytes()
}

fn once(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let db = open(dir.path());
    let mut batch = db.batch();
    for number in 0..LIVE_TOKENS {
        batch.commit_once(EventId::new("orders", &id(number))).unwrap();
    }
    let mut random = fastrand::Rng::with_seed(1);
    let mut group = criterion.benchmark_group("once");
    group.throughput(Throughput::Elements(1));
    group.bench_function("plain batch of one put", |bencher| {
        bencher.iter(|| {
            batch.put(&db, id(random.u64(..LIVE_TOKENS)), VALUE);
            batch.commit().unwrap();
        });
    });
    let mut next = LIVE_TOKENS;
    group.bench_function("the same, idempotent", |bencher| {
        bencher.iter(|| {
            batch.put(&db, id(random.u64(..LIVE_TOKENS)), VALUE);
            next += 1;
            batch.commit_once(EventId::new("orders", &id(next))).unwrap();
        });
    });
    // Older ones may be beyond the window.
    let (last, recent) = (next, LIVE_TOKENS / 2);
    group.bench_function("the same, of a growing source", |bencher| {
        bencher.iter(|| {
            batch.put(&db, id(random.u64(..LIVE_TOKENS)), VALUE);
            next += 1;
            batch.commit_once(EventId::growing("sensor", next)).unwrap();
        });
    });
    group.bench_function("a duplicate", |bencher| {
        bencher.iter(|| {
            batch.put(&db, b"k", VALUE);
            let event = id(last - 1 - random.u64(..recent));
            assert!(batch.commit_once(EventId::new("orders", &event)).unwrap().is_duplicate());
        });
    });
    group.bench_function("compare and swap", |bencher| {
        db.put("swapped", VALUE).unwrap();
        bencher.iter(|| db.compare_and_swap("swapped", Some(&VALUE), Some(&VALUE)).unwrap());
    });
    group.bench_function("plain batch of one put beside guards", |bencher| {
        bencher.iter(|| {
            batch.put(&db, id(random.u64(..LIVE_TOKENS)), VALUE);
            batch.commit().unwrap();
        });
    });
}

fn batching(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let db = open(dir.path());
    let mut number = 0;
    let mut group = criterion.benchmark_group("batching");
    group.throughput(Throughput::Elements(1000)).sample_size(10);
    for count_max in [1, 100, 1000] {
        let mut options = BatcherOptions::default();
        (options.count_max, options.durability) = (count_max, Some(Durability::Disk));
        let batcher = Batcher::new(&db, options).unwrap();
        group.bench_function(
            format!("1000 writes to the disk, groups of {count_max}"),
            |bencher| {
                bencher.iter(|| {
                    for _ in 0..1000 {
                        number += 1;
                        drop(batcher.put(&db, id(number), VALUE).unwrap());
                    }
                    batcher.flush().unwrap();
                });
            },
        );
    }
}

fn coalescing(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let db = open(dir.path());
    let counters =
        db.keyspace("counters", KeyspaceOptions::new().merge(Counter::default())).unwrap();
    let views = Coalescer::new(&db, &counters, CoalescerOptions::default()).unwrap();
    let keys: Vec<[u8; 16]> = (0..KEYS).map(id).collect();
    let mut random = fastrand::Rng::with_seed(1);
    let mut group = criterion.benchmark_group("coalescing");
    group.throughput(Throughput::Elements(KEYS));
    group.bench_function("merge each", |bencher| {
        bencher.iter(|| {
            for _ in 0..KEYS {
                counters.merge(keys[random.usize(..keys.len())], 1).unwrap();
            }
        });
    });
    group.bench_function("add to a coalescer", |bencher| {
        bencher.iter(|| {
            for _ in 0..KEYS {
                views.add(keys[random.usize(..keys.len())], 1).unwrap();
            }
        });
    });
    group.bench_function("read through it", |bencher| {
        bencher.iter(|| {
            for key in &keys {
                black_box(views.get(key).unwrap());
            }
        });
    });
    let mut options = CoalescerOptions::default();
    options.queue = Some("views".to_string());
    let kept = Coalescer::new(&db, &counters, options).unwrap();
    group.bench_function("add to a coalescer with a queue", |bencher| {
        bencher.iter(|| {
            for _ in 0..KEYS {
                kept.add(keys[random.usize(..keys.len())], 1).unwrap();
            }
        });
    });
}

/// Events of 100 bytes: accepted, and drained beside the same puts in plain batches.
fn ingest(criterion: &mut Criterion) {
    const EVENTS: u64 = 100_000;
    let dir = tempfile::tempdir_in(".").unwrap();
    let db = open(dir.path());
    let into = db.clone();
    let handler = move |events: &[Event<'_>], batch: &mut Batch| {
        events.iter().for_each(|event| _ = batch.put(&into, event.key, event.bytes));
        Ok(())
    };
    let queue = IngestQueue::open(&db, "events", IngestOptions::default(), handler).unwrap();
    let mut number = 0;
    let mut group = criterion.benchmark_group("ingest");
    group.throughput(Throughput::Elements(EVENTS)).sample_size(10);
    group.bench_function("accept", |bencher| {
        queue.set_drain_rate(Some(0));
        let mut push = |_| {
            number += 1;
            queue.push(id(number), VALUE).unwrap();
        };
        bencher.iter_custom(|rounds| {
            let mut took = std::time::Duration::ZERO;
            for _ in 0..rounds {
                let began = std::time::Instant::now();
                (0..EVENTS).for_each(&mut push);
                took += began.elapsed();
                queue.set_drain_rate(None);
                queue.flush().unwrap();
                queue.set_drain_rate(Some(0));
            }
            took
        });
        queue.set_drain_rate(None);
    });
    let mut number = u64::from(u32::MAX);
    group.bench_function("drain", |bencher| {
        bencher.iter_custom(|rounds| {
            let mut took = std::time::Duration::ZERO;
            for _ in 0..rounds {
                queue.set_drain_rate(Some(0));
                for _ in 0..EVENTS {
                    number += 1;
                    queue.push(id(number), VALUE).unwrap();
                }
                let began = std::time::Instant::now();
                queue.set_drain_rate(None);
                queue.flush().unwrap();
                took += began.elapsed();
            }
            took
        });
    });
    group.bench_function("the same in plain batches of 1000", |bencher| {
        bencher.iter(|| {
            for _ in 0..EVENTS / 1000 {
                let mut batch = db.batch();
                for _ in 0..1000 {
                    number += 1;
                    batch.put(&db, id(number), VALUE);
                }
                batch.commit().unwrap();
            }
        });
    });
}

/// What asking costs where nothing is in the way: of one key, so that no flush makes pressure.
fn backpressure(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let db = open(dir.path());
    let mut group = criterion.benchmark_group("backpressure");
    group.throughput(Throughput::Elements(1));
    group.bench_function("put, which would wait", |bencher| {
        bencher.iter(|| db.put(b"key", VALUE).unwrap());
    });
    group.bench_function("put, which would say Busy", |bencher| {
        bencher.iter(|| db.try_put(b"key", VALUE).unwrap());
    });
    group.bench_function("read the pressure", |bencher| bencher.iter(|| db.pressure()));
}

fn breaker(criterion: &mut Criterion) {
    let fs = FaultFs::over_sim(SimFs::new());
    let db = Db::open_on(Arc::new(fs.clone()), Runtime::threads(), "/db", Options::default());
    let db = db.unwrap();
    let mut watch = db.watch_breaker();
    let mut group = criterion.benchmark_group("breaker");
    group.throughput(Throughput::Elements(1));
    group.bench_function("look at it", |bencher| bencher.iter(|| db.breaker()));
    group.bench_function("look for a change", |bencher| bencher.iter(|| watch.try_next()));
    fs.arm(Fault::new(FaultKind::FailedSync).on(Select::all().name("sync").file(".log")));
    let failed = db.put("k", "v").and_then(|()| db.sync());
    assert!(failed.is_err() && watch.try_next().is_some(), "it is open");
    group.bench_function("put that it refuses", |bencher| {
        bencher.iter(|| db.put(b"key", VALUE).unwrap_err());
    });
}

criterion_group!(benches, once, batching, coalescing, ingest, backpressure, breaker);
criterion_main!(benches);
