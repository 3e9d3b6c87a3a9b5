//! Several databases that share resources: a busy one does not starve the flushes of another, only
//! writers of the one that holds the memory wait, all together keep to the budget, and each can
//! fail or close alone.
//!
//! The disk is a simulated one that takes its time for every byte, and time is virtual: the same on
//! every machine. `ESKER_SEED` chooses the schedule.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use esker::fs::intercept::{Call, Intercepted, Interceptor, Verdict};
use esker::fs::sim::SimFs;
use esker::fs::{Fs, RealFs};
use esker::runtime::{Priority, Runtime, Task};
use esker::{
    BreakerState, BusyCause, Compression, Db, ErrorKind, Options, ReadMode, Resources, StallStats,
};

use crate::slow_disk::SlowDisk;

/// Bytes a second that the disk writes.
const DISK_RATE: f64 = 40e6;
const MEMORY: usize = 4 << 20;
const VALUE: [u8; 1000] = [7; 1000];

/// A disk that takes its time to write, and fails to under one directory once told so.
#[derive(Clone, Debug)]
struct Disk {
    slow: SlowDisk,
    broken: Arc<AtomicBool>,
}

impl Interceptor for Disk {
    fn before(&self, call: &Call<'_>) -> Verdict {
        let fails = call.path.starts_with("/broken") && self.broken.load(Ordering::Relaxed);
        if fails && call.name == "write" {
            return Verdict::Fail(std::io::Error::other("broken"));
        }
        self.slow.before(call)
    }
}

struct Shared {
    fs: Arc<dyn Fs>,
    disk: Disk,
    runtime: Runtime,
    options: Options,
    resources: Resources,
}

impl Shared {
    fn new(threads: usize) -> Shared {
        let seed = std::env::var("ESKER_SEED").map_or(1, |seed| seed.parse().unwrap());
        let runtime = Runtime::stepper(seed);
        let disk = Disk { slow: SlowDisk::new(&runtime, DISK_RATE), broken: Arc::default() };
        let fs = Arc::new(Intercepted::over(Arc::new(SimFs::new()), disk.clone()));
        let mut options = Options::default();
        (options.memory, options.threads) = (MEMORY, threads);
        (options.compression, options.table_bytes) = (Compression::None, 256 << 10);
        let resources = Resources::on(runtime.clone(), &options);
        Shared { fs, disk, runtime, options, resources }
    }

    fn open(&self, name: &str) -> Db {
        let path = Path::new("/").join(name);
        Db::open_sharing(self.fs.clone(), &self.resources, path, self.options.clone()).unwrap()
    }

    fn spawn(&self, run: impl FnOnce() + Send + 'static) -> Task {
        self.runtime.spawn("user", Priority::Normal, run).unwrap()
    }

    /// Writers that put as fast as they are let, until `done`; how many records.
    fn drive(&self, db: &Db, writers: u64, done: Duration) -> (Vec<Task>, Arc<AtomicU64>) {
        let count = Arc::new(AtomicU64::new(0));
        let writer = |_| {
            let (db, runtime, count) = (db.clone(), self.runtime.clone(), count.clone());
            self.spawn(move || {
                while runtime.now() < done {
                    db.put(key(count.fetch_add(1, Ordering::Relaxed)), VALUE).unwrap();
                }
            })
        };
        ((0..writers).map(writer).collect(), count)
    }
}

fn key(number: u64) -> [u8; 8] {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()
}

fn stalled(db: &Db) -> Duration {
    db.stats().stalls.iter().map(|StallStats { time, .. }| *time).sum()
}

/// A hot database and a quiet one: how long the quiet one's writes and flushes take at most.
fn beside_a_hot_one(threads: usize) {
    let shared = Shared::new(threads);
    let (hot, quiet) = (shared.open("hot"), shared.open("quiet"));
    let done = Duration::from_secs(2);
    let (tasks, count) = shared.drive(&hot, 4, done);
    let (runtime, db) = (shared.runtime.clone(), quiet.clone());
    let slowest = Arc::new(Mutex::new([Duration::ZERO; 2]));
    let seen = slowest.clone();
    let writer = shared.spawn(move || {
        let mut number = 0;
        while runtime.now() < done {
            let began = runtime.now();
            // Ten a flush: a hundredth of what the hot one writes.
            for _ in 0..10 {
                db.try_put(key(number), VALUE).expect("the quiet one is never told to wait");
                number += 1;
            }
            let put = runtime.now();
            if put > Duration::from_millis(500) {
                db.flush().unwrap();
            }
            let mut slowest = seen.lock().unwrap();
            slowest[0] = slowest[0].max(put - began);
            slowest[1] = slowest[1].max(runtime.now() - put);
            drop(slowest);
            runtime.sleep(Duration::from_millis(20));
        }
    });
    tasks.into_iter().chain([writer]).for_each(Task::join);
    let [puts, flush] = *slowest.lock().unwrap();
    let count = count.load(Ordering::Relaxed);
    println!(
        "{threads} threads: hot {count} records, waited {:?}; quiet: ten puts at most {puts:?}, a flush \
         at most {flush:?}; {} compactions",
        stalled(&hot),
        hot.stats().compaction_count,
    );
    assert!(stalled(&hot) > Duration::from_millis(500), "the hot one was not overloaded");
    assert!(hot.stats().compaction_count > 10, "there was nothing to be starved by");
    assert_eq!(stalled(&quiet), Duration::ZERO);
    assert!(puts < Duration::from_millis(5), "ten puts took {puts:?}");
    // A flush of the hot one may be before it: half a memtable takes 13 ms to write.
    assert!(flush < Duration::from_millis(60), "a flush took {flush:?}");
    quiet.close().unwrap();
    hot.close().unwrap();
}

#[test]
fn a_hot_database_does_not_starve_a_quiet_one() {
    beside_a_hot_one(2);
}

#[test]
fn nor_does_it_with_a_single_thread() {
    beside_a_hot_one(1);
}

#[test]
fn eight_databases_under_load_keep_to_one_budget() {
    let shared = Shared::new(2);
    let all: Vec<Db> = (0..8).map(|number| shared.open(&number.to_string())).collect();
    let done = Duration::from_secs(2);
    // All under load at first; then one more and more, while others end.
    let mut tasks = Vec::new();
    let mut counts = Vec::new();
    for (number, db) in all.iter().enumerate() {
        let (more, count) = shared.drive(db, 1 + number as u64 / 3, done / (8 - number as u32));
        tasks.extend(more);
        counts.push(count);
    }
    let (runtime, resources, dbs) = (shared.runtime.clone(), shared.resources.clone(), all.clone());
    let seen = Arc::new(Mutex::new((0, 0)));
    let most = seen.clone();
    tasks.push(shared.spawn(move || {
        while runtime.now() < done {
            let memory = resources.memory();
            let own: u64 = dbs.iter().map(|db| db.stats().memory.memtables).sum();
            assert!(own.abs_diff(memory.memtables) < 1 << 20, "{own} is not {memory:?}");
            let mut most = most.lock().unwrap();
            *most = (most.0.max(memory.memtables), most.1.max(memory.total()));
            drop(most);
            runtime.sleep(Duration::from_millis(5));
        }
    }));
    tasks.into_iter().for_each(Task::join);
    let (memtables, total) = *seen.lock().unwrap();
    let counts: Vec<u64> = counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    println!("memtables up to {memtables}, all of it up to {total}; records {counts:?}");
    assert!(all.iter().map(stalled).sum::<Duration>() > Duration::from_secs(1), "no overload");
    // Half of the budget, the share of the empty cache, and a memtable more: those below an equal share are
    // not held back.
    assert!(
        memtables <= (MEMORY / 2 + MEMORY / 16 * 3 + MEMORY / 4) as u64,
        "memtables of {memtables} bytes"
    );
    assert!(total <= MEMORY as u64, "{total} bytes");
    // Those with one writer had the same share of the time when all were there.
    assert!(counts.iter().all(|count| *count > 100), "{counts:?}");
    for db in all {
        db.close().unwrap();
    }
}

#[test]
fn memory_pressure_is_of_who_holds_the_memory() {
    let shared = Shared::new(1);
    let (large, small) = (shared.open("large"), shared.open("small"));
    small.put(key(0), VALUE).unwrap();
    let mut number = 0;
    while large.pressure().allowed_rate.is_none() {
        large.try_put(key(number), VALUE).unwrap();
        number += 1;
    }
    assert_eq!(large.pressure().cause, BusyCause::Memory);
    small.try_put(key(1), VALUE).unwrap();
    assert_eq!(small.pressure().value, 0.0, "{}", small.pressure());
    assert!(shared.resources.memory().memtables > MEMORY as u64 / 4);
    large.flush().unwrap();
    assert_eq!(large.pressure().allowed_rate, None);
}

#[test]
fn one_fails_and_the_others_go_on() {
    let shared = Shared::new(1);
    let (broken, whole) = (shared.open("broken"), shared.open("whole"));
    shared.disk.broken.store(true, Ordering::Relaxed);
    broken.put(b"k", b"v").unwrap();
    broken.flush().unwrap_err();
    assert_eq!(broken.breaker().0, BreakerState::Open);
    let began = shared.runtime.now();
    for number in 0..20 {
        whole.put(key(number), VALUE).unwrap();
        whole.flush().unwrap();
    }
    let took = shared.runtime.now() - began;
    assert!(took < Duration::from_millis(150), "20 flushes took {took:?}");
    shared.disk.broken.store(false, Ordering::Relaxed);
    broken.resume().unwrap();
    broken.flush().unwrap();
    broken.close().unwrap();
    whole.close().unwrap();
}

#[test]
fn databases_come_and_go() {
    // Real threads first: who has taken part in a stepper goes on waiting in it.
    for threads in [true, false] {
        let runtime = if threads { Runtime::threads() } else { Runtime::stepper(5) };
        let dir = tempfile::tempdir().unwrap();
        let (fs, root): (Arc<dyn Fs>, _) = match threads {
            true => (Arc::new(RealFs::new()), dir.path().to_path_buf()),
            false => (Arc::new(SimFs::new()), Path::new("/root").to_path_buf()),
        };
        let options = Options::tiny();
        let resources = Resources::on(runtime.clone(), &options);
        let open = |name: u32| {
            let path = root.join(name.to_string());
            Db::open_sharing(fs.clone(), &resources, path, options.clone()).unwrap()
        };
        let mut random = fastrand::Rng::with_seed(3);
        let mut dbs: Vec<Option<Db>> = (0..5).map(|name| Some(open(name))).collect();
        for round in 0..400u64 {
            let at = random.usize(..5);
            match dbs[at].take() {
                Some(db) if random.u8(..20) == 0 => db.close().unwrap(),
                // Its lock is free at once.
                Some(db) if random.u8(..20) == 0 => drop(db),
                found => {
                    let db = found.unwrap_or_else(|| open(at as u32));
                    db.put(key(round), [at as u8; 100]).unwrap();
                    dbs[at] = Some(db);
                }
            }
        }
        for (at, db) in dbs.into_iter().enumerate() {
            let db = db.unwrap_or_else(|| open(at as u32));
            for entry in db.iter() {
                assert_eq!(*entry.unwrap().1, [at as u8; 100]);
            }
            // Some outlive the last clone of the resources that the user has.
            if at < 3 {
                db.settle().unwrap();
                db.close().unwrap();
            }
        }
        drop(resources);
    }
}

#[test]
fn databases_that_share_are_opened_through_the_builder() {
    let dir = tempfile::tempdir().unwrap();
    let resources = Resources::new(64 << 20, 1);
    let open = |name: &str| {
        Db::builder(dir.path().join(name)).memory(1 << 30).resources(&resources).open().unwrap()
    };
    let (a, b) = (open("a"), open("b"));
    drop(resources);
    for number in 0..1000 {
        a.put(key(number), VALUE).unwrap();
        b.put(key(number), b"b").unwrap();
    }
    assert_eq!(a.stats().memory.budget, 64 << 20);
    a.flush().unwrap();
    a.close().unwrap();
    b.flush().unwrap();
    assert_eq!(b.get(key(7)).unwrap().as_deref(), Some(&b"b"[..]));
    assert!(b.stats().flush_count > 0);
    b.close().unwrap();
}

/// What an open leaves to the workers is done when none of them came to it.
#[test]
fn opens_that_are_over_soon_pile_up_no_files() {
    let disk = SimFs::new();
    for round in 0..30 {
        let fs = Arc::new(disk.clone());
        let runtime = Runtime::stepper(round);
        let db = Db::open_on(fs, runtime, "/db", Options::tiny()).unwrap();
        db.put(format!("{round}"), "value").unwrap();
        drop(db);
        let names = disk.list(Path::new("/db")).unwrap();
        let others = names.iter().filter(|name| !name.ends_with(".table")).collect::<Vec<_>>();
        // The manifest, CURRENT and LOCK, the log and one that is made ahead.
        assert!(others.len() <= 5, "{others:?}");
    }
}

/// Puts until it is refused for want of memory, on a disk that is too slow; what the memtables hold then.
fn fill_until_refused(db: &Db, next: &mut u64) -> u64 {
    loop {
        *next += 1;
        if let Err(error) = db.try_put(key(*next), VALUE) {
            let ErrorKind::Busy { cause: BusyCause::Memory, .. } = error.kind() else {
                panic!("{error}")
            };
            return db.stats().memory.memtables;
        }
    }
}

#[test]
fn memtables_are_lent_what_the_block_cache_does_not_use() {
    let mut shared = Shared::new(1);
    shared.options.read_mode = ReadMode::Pread;
    let db = shared.open("db");
    let memory = MEMORY as u64;
    // The pressure is measured every 256 KiB, and memory comes in chunks.
    let grain = 320 << 10;
    let (half, share) = (memory / 2, memory / 16 * 3);
    // Writers are slowed down halfway between a memtable and what all may take.
    let slowed_at = |most: u64| u64::midpoint(memory / 4, most);

    let mut count = 0;
    let held = fill_until_refused(&db, &mut count);
    let lent = slowed_at(half + share * 7 / 8);
    assert!((lent..lent + grain).contains(&held), "{held} bytes, the cache being empty");

    db.flush().unwrap();
    db.settle().unwrap();
    (1..count).for_each(|number| assert!(db.get(key(number)).unwrap().is_some()));
    let cached = db.stats().memory.block_cache;
    assert!(cached > share * 3 / 4, "{cached} of {share} bytes are cached");
    let held = fill_until_refused(&db, &mut count);
    let own = slowed_at(half);
    assert!((own..own + grain).contains(&held), "{held} bytes, the cache being full");
    assert!(db.stats().memory.block_cache > share * 3 / 4, "nobody's cache is emptied for writes");
    db.close().unwrap();
}

#[test]
fn memtables_and_caches_have_no_more_than_their_shares_together() {
    let mut shared = Shared::new(1);
    shared.options.read_mode = ReadMode::Pread;
    let db = shared.open("db");
    let memory = MEMORY as u64;
    // The trickle that those who wait are given, and what is taken between two looks.
    let most = memory / 2 + memory / 16 * 3 + memory / 64 + (256 << 10);
    let (tasks, count) = shared.drive(&db, 4, Duration::from_secs(2));
    let (mut rng, mut cached_most, mut memtables_most) = (fastrand::Rng::with_seed(1), 0, 0);
    while shared.runtime.now() < Duration::from_secs(2) {
        let written = count.load(Ordering::Relaxed);
        (0..20).for_each(|_| _ = db.get(key(rng.u64(..written + 1))).unwrap());
        let now = db.stats().memory;
        let taken = now.memtables + now.arena_pool + now.block_cache + now.tables;
        assert!(taken <= most, "{taken} of {most} bytes: {now:?}");
        cached_most = cached_most.max(now.block_cache);
        memtables_most = memtables_most.max(now.memtables);
        shared.runtime.sleep(Duration::from_millis(1));
    }
    tasks.into_iter().for_each(Task::join);
    assert!(memtables_most > memory / 8 * 3 && cached_most > memory / 16, "both were in use");
    db.close().unwrap();
}

#[test]
fn a_memtable_of_large_values_goes_to_the_disk_before_it_is_full() {
    let shared = Shared::new(1);
    let half_a_memtable = MEMORY / 4 / 2;
    // Those of usual size wait until it is full, which is a run less for who reads.
    for (name, value, flushes) in [("large", 20 << 10, true), ("usual", 1 << 10, false)] {
        let db = shared.open(name);
        for number in 0..half_a_memtable / value {
            db.put(key(number as u64), vec![7; value]).unwrap();
        }
        shared.runtime.sleep(Duration::from_millis(100));
        assert_eq!(db.stats().flush_count > 0, flushes, "{name}");
        for number in 0..half_a_memtable / value {
            assert_eq!(db.get(key(number as u64)).unwrap().unwrap().len(), value);
        }
        db.close().unwrap();
    }
}
