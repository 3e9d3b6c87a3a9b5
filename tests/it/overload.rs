//! Every entrance, driven at three times what the disk sustains: memory stays bounded, throughput
//! steady, and who waits as long as `retry_after` says succeeds nine times of ten.
//!
//! The disk is a simulated one that takes its time for every byte, and time is virtual, so that this
//! is exact and the same on every machine. `ESKER_OVERLOAD_SECONDS` (8) is how long each entrance is
//! driven, in virtual seconds; `ESKER_SEED` chooses the first of three schedules.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use esker::fs::intercept::Intercepted;
use esker::fs::sim::SimFs;
use esker::runtime::{Priority, Runtime, Task};
use esker::{
    Append, Batcher, BatcherOptions, Coalescer, CoalescerOptions, Compression, Db, ErrorKind,
    IngestOptions, IngestQueue, KeyspaceOptions, Options, Pressure, Result,
};

use crate::settings;
use crate::slow_disk::SlowDisk;

/// Bytes a second that the disk writes.
const DISK_RATE: f64 = 40e6;
const VALUE_BYTES: usize = 1000;
const PRODUCERS: u64 = 8;
/// Windows in which the throughput is compared.
const WINDOWS: usize = 8;
/// Retries count from this one on: before, nobody can know how long a database waits that falls behind.
const WINDOW_LEARNT: u128 = 2;
/// Schedules of each entrance. All producers are refused together, some 20 times in one of them: a
/// share of so few says little.
const SCHEDULES: u64 = 3;

fn seeds() -> std::ops::Range<u64> {
    let first = std::env::var("ESKER_SEED").map_or(1, |seed| seed.parse().unwrap());
    first..first + SCHEDULES
}

fn slow_database(seed: u64) -> (Db, Runtime) {
    let runtime = Runtime::stepper(seed);
    let slow = SlowDisk::new(&runtime, DISK_RATE);
    let fs = Intercepted::over(Arc::new(SimFs::new()), slow);
    let mut options = Options::default();
    options.filter = settings::filter();
    (options.memory, options.threads) = (4 << 20, 2);
    (options.compression, options.table_bytes) = (Compression::None, 256 << 10);
    let db = Db::open_on(Arc::new(fs), runtime.clone(), "/db", options).unwrap();
    (db, runtime)
}

fn time_to_drive() -> Duration {
    let seconds = std::env::var("ESKER_OVERLOAD_SECONDS").map_or(8, |s| s.parse().unwrap());
    Duration::from_secs(seconds)
}

fn key(number: u64) -> [u8; 8] {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()
}

/// Writes a second that blocking writers get through.
fn sustained(seed: u64) -> f64 {
    let (db, runtime) = slow_database(seed);
    let (count, done) = (Arc::new(AtomicU64::new(0)), time_to_drive());
    let writer = |producer: u64| -> Task {
        let (db, runtime2, count) = (db.clone(), runtime.clone(), count.clone());
        let write = move || {
            while runtime2.now() < done {
                let number = count.fetch_add(1, Ordering::Relaxed);
                db.put(key(number * PRODUCERS + producer), [7; VALUE_BYTES]).unwrap();
            }
        };
        runtime.spawn("writer", Priority::Normal, write).unwrap()
    };
    (0..PRODUCERS).map(writer).collect::<Vec<_>>().into_iter().for_each(Task::join);
    count.load(Ordering::Relaxed) as f64 / runtime.now().as_secs_f64()
}

/// What producers saw.
#[derive(Default)]
struct Seen {
    /// First tries and those after a wait, and how many of the latter succeeded.
    offered: u64,
    retries: u64,
    retries_in: u64,
    accepted: [u64; WINDOWS],
    /// The longest that a try took.
    slowest: Duration,
    pressure_max: f64,
    memtables_max: u64,
    log_max: u64,
}

type Entrance = Arc<dyn Fn(u64) -> Result<()> + Send + Sync>;

/// Drives an entrance at `rate` tries a second, each as often as it takes.
fn drive(
    db: &Db,
    runtime: &Runtime,
    rate: f64,
    entrance: Entrance,
    pressure: Arc<dyn Fn() -> Pressure + Send + Sync>,
) -> Seen {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let (began, next) = (runtime.now(), Arc::new(AtomicU64::new(0)));
    let time = time_to_drive();
    let producer = |producer: u64| -> Task {
        let (db, clock, next) = (db.clone(), runtime.clone(), next.clone());
        let (seen, entrance, pressure) = (seen.clone(), entrance.clone(), pressure.clone());
        let run = move || {
            let interval = Duration::from_secs_f64(PRODUCERS as f64 / rate);
            let mut due = began + interval * producer as u32 / PRODUCERS as u32;
            let mut waited = false;
            loop {
                let now = clock.now();
                if now - began >= time {
                    return;
                }
                let tried = entrance(next.fetch_add(1, Ordering::Relaxed));
                let took = clock.now() - now;
                let mut all = seen.lock().unwrap();
                all.offered += u64::from(!waited);
                all.slowest = all.slowest.max(took);
                let window = (now - began).as_nanos() * WINDOWS as u128 / time.as_nanos();
                all.retries += u64::from(waited && window >= WINDOW_LEARNT);
                let wait = match tried {
                    Ok(()) => {
                        all.accepted[window as usize] += 1;
                        all.retries_in += u64::from(waited && window >= WINDOW_LEARNT);
                        let stats = db.stats();
                        all.memtables_max = all.memtables_max.max(stats.memory.memtables);
                        all.log_max = all.log_max.max(stats.log_bytes);
                        all.pressure_max = all.pressure_max.max(pressure().value);
                        waited = false;
                        due = (due + interval).max(now);
                        due.saturating_sub(clock.now())
                    }
                    Err(error) => {
                        let ErrorKind::Busy { retry_after, .. } = *error.kind() else {
                            panic!("{error}")
                        };
                        waited = true;
                        retry_after
                    }
                };
                drop(all);
                clock.sleep(wait);
            }
        };
        runtime.spawn("producer", Priority::Normal, run).unwrap()
    };
    (0..PRODUCERS).map(producer).collect::<Vec<_>>().into_iter().for_each(Task::join);
    Arc::try_unwrap(seen).ok().unwrap().into_inner().unwrap()
}

/// Drives an entrance in all schedules at three times what the database sustains, and checks what is
/// seen.
fn check(name: &str, overload: impl Fn(&Db, &Runtime, f64) -> Seen) {
    let (mut retries, mut retries_in) = (0, 0);
    for seed in seeds() {
        let sustained = sustained(seed);
        let (db, runtime) = slow_database(seed);
        let seen = overload(&db, &runtime, 3.0 * sustained);
        check_schedule(&format!("{name}, seed {seed}"), &seen, sustained);
        (retries, retries_in) = (retries + seen.retries, retries_in + seen.retries_in);
    }
    let share = 100.0 * retries_in as f64 / retries as f64;
    println!("{name}: {share:.1} % of {retries} retries were let in");
    assert!(share >= 90.0, "{name}: only {share:.1} % of {retries} retries were let in");
}

/// All that must hold in each schedule.
fn check_schedule(name: &str, seen: &Seen, sustained: f64) {
    let seconds = time_to_drive().as_secs_f64();
    // The first window is for the pressure to build up.
    let accepted: u64 = seen.accepted[1..].iter().sum();
    let rate = accepted as f64 / seconds * WINDOWS as f64 / (WINDOWS - 1) as f64;
    println!(
        "{name}: sustained {sustained:.0}/s, accepted {rate:.0}/s by window {:?}; {} first tries, {} \
         retries, {} of them let in; slowest try {:?}, pressure up to {:.2}, memtables up to {}, \
         logs up to {}",
        seen.accepted,
        seen.offered,
        seen.retries,
        seen.retries_in,
        seen.slowest,
        seen.pressure_max,
        seen.memtables_max,
        seen.log_max,
    );
    assert!(seen.retries > 50, "{name}: it was not overloaded");
    assert!(seen.memtables_max <= 4 << 20, "{name}: memtables of {} bytes", seen.memtables_max);
    assert!(seen.log_max <= 80 << 20, "{name}: logs of {} bytes", seen.log_max);
    assert!(rate >= 0.6 * sustained, "{name}: {rate:.0} of {sustained:.0} a second");
    let mean = accepted / (WINDOWS as u64 - 1);
    let least = seen.accepted[1..].iter().min().unwrap();
    assert!(*least * 3 >= mean, "{name}: {:?} is not steady", seen.accepted);
    // A try never waits, but for a sync or a file that is made.
    assert!(seen.slowest <= Duration::from_millis(100), "{name}: a try took {:?}", seen.slowest);
}

#[test]
fn the_database_under_three_times_its_load() {
    check("database", overload_database);
}

fn overload_database(db: &Db, runtime: &Runtime, rate: f64) -> Seen {
    let (put, of) = (db.clone(), db.clone());
    let entrance = Arc::new(move |number| put.try_put(key(number), [7; VALUE_BYTES]));
    drive(db, runtime, rate, entrance, Arc::new(move || of.pressure()))
}

#[test]
fn the_batcher_under_three_times_its_load() {
    check("batcher", overload_batcher);
}

fn overload_batcher(db: &Db, runtime: &Runtime, rate: f64) -> Seen {
    let mut options = BatcherOptions::default();
    (options.count_max, options.pending_bytes_max) = (100, 400 << 10);
    let batcher = Arc::new(Batcher::new(db, options).unwrap());
    let (add, of, make) = (batcher.clone(), batcher, db.clone());
    let entrance = Arc::new(move |number| {
        let mut item = make.batch();
        item.put(&make, key(number), [7; VALUE_BYTES]);
        add.try_add(&item).map(drop)
    });
    drive(db, runtime, rate, entrance, Arc::new(move || of.pressure()))
}

#[test]
fn the_coalescer_under_three_times_its_load() {
    check("coalescer", overload_coalescer);
}

fn overload_coalescer(db: &Db, runtime: &Runtime, rate: f64) -> Seen {
    let trails = db.keyspace("trails", KeyspaceOptions::new().merge(Append)).unwrap();
    let mut options = CoalescerOptions::default();
    options.bytes_max = 200 << 10;
    let coalescer = Arc::new(Coalescer::new(db, &trails, options).unwrap());
    let (add, of) = (coalescer.clone(), coalescer);
    // Keys that do not come back: nothing folds.
    let entrance = Arc::new(move |number| add.try_add(key(number), &[7; VALUE_BYTES][..]));
    drive(db, runtime, rate, entrance, Arc::new(move || of.pressure()))
}

#[test]
fn the_ingest_queue_under_three_times_its_load() {
    check("ingest queue", overload_ingest_queue);
}

fn overload_ingest_queue(db: &Db, runtime: &Runtime, rate: f64) -> Seen {
    let mut options = IngestOptions::default();
    (options.bytes_max, options.batch_count_max) = (1 << 20, 100);
    let into = db.clone();
    let handler = move |events: &[esker::Event<'_>], batch: &mut esker::Batch| {
        events.iter().for_each(|event| _ = batch.put(&into, event.key, event.bytes));
        Ok(())
    };
    let queue = Arc::new(IngestQueue::open(db, "events", options, handler).unwrap());
    let (push, of, watched) = (queue.clone(), queue.clone(), queue);
    let entrance = Arc::new(move |number| push.try_push(key(number), [7; VALUE_BYTES]));
    let seen = drive(db, runtime, rate, entrance, Arc::new(move || of.pressure()));
    println!("{}", watched.stats());
    assert!(watched.stats().depth_bytes <= 1 << 20, "{}", watched.stats());
    seen
}

/// What is drawn from the system, a token say, is other in every run; from the runtime, the same.
#[test]
fn a_schedule_of_an_entrance_is_the_same_in_every_run() {
    type Overload = fn(&Db, &Runtime, f64) -> Seen;
    let entrances: [(&str, Overload); 4] = [
        ("database", overload_database),
        ("batcher", overload_batcher),
        ("coalescer", overload_coalescer),
        ("ingest queue", overload_ingest_queue),
    ];
    for (name, overload) in entrances {
        let run = || {
            let (db, runtime) = slow_database(seeds().start);
            let seen = overload(&db, &runtime, 3.0 * DISK_RATE / VALUE_BYTES as f64);
            (runtime.schedule_hash(), seen.accepted, seen.memtables_max, seen.log_max)
        };
        // In a thread of its own: what a thread counts for itself, to sample, would go on.
        let run = || std::thread::scope(|scope| scope.spawn(run).join().unwrap());
        let first = run();
        assert!(first.1.iter().all(|accepted| *accepted > 0), "{name}: {first:?}");
        assert_eq!(first, run(), "{name}");
    }
}
