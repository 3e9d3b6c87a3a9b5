//! Many threads at once, with values that check themselves.
//!
//! The first workload runs twice: with real threads on the real file system, and in seeded
//! schedules on the simulated one (`ESKER_SEED` reruns one, `ESKER_SCHEDULES` says how many).

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Barrier, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use esker::fs::intercept::Intercepted;
use esker::fs::sim::{Phase, SimFs, Survival};
use esker::runtime::{Condvar, Mutex, Priority, Runtime, yield_point};
use esker::{
    Append, Counter, Db, Durability, ErrorKind, Filter, Keyspace, KeyspaceOptions, MergeError,
    MergeOperator, Merged, Options, Slice, Ticket,
};

use crate::settings;
use crate::slow_disk::SlowSyncs;

const WRITER_COUNT: usize = 3;
/// Keys of each of two keyspaces that one batch gives one stamp.
const STAMPED_COUNT: usize = 5;

fn counters(db: &Db) -> Keyspace {
    db.keyspace("counters", KeyspaceOptions::new().merge(Counter::default())).unwrap()
}

/// What all threads of the workload share.
struct Workload {
    db: Db,
    second: Keyspace,
    counters: Keyspace,
    rounds: u64,
    /// Acknowledged increments.
    incremented: AtomicU64,
    pace: Pace,
}

/// Lets the threads that look do so once after each step of those that write: more would only
/// take the processor from the background threads, which have the lowest priority.
#[derive(Default)]
struct Pace {
    /// Steps so far; `u64::MAX` once the writers have ended.
    steps: Mutex<u64>,
    changed: Condvar,
}

impl Pace {
    fn step(&self) {
        let mut steps = self.steps.lock();
        *steps = steps.saturating_add(1);
        self.changed.notify_all();
    }

    /// Waits until there was a step since the last call with this `seen`. False after the last.
    fn follow(&self, seen: &mut u64) -> bool {
        let mut steps = self.steps.lock();
        while *steps == *seen && *steps != u64::MAX {
            self.changed.wait(&mut steps);
        }
        *seen = *steps;
        *steps != u64::MAX
    }
}

/// Ends the threads that look, also when this one panics.
struct EndsAll<'a>(&'a Pace);

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        *self.0.steps.lock() = u64::MAX;
        self.0.changed.notify_all();
    }
}

fn stamped(i: usize) -> String {
    format!("stamped {i}")
}

/// A value says what it belongs to, so that one that surfaces elsewhere is found.
fn value(key: &str, writer: usize, round: u64) -> String {
    format!("{key}|{writer}|{round:08}|{}", "x".repeat((round % 40) as usize))
}

fn parse(key: &str, value: &[u8]) -> (usize, u64) {
    let text = std::str::from_utf8(value).unwrap();
    let parts: Vec<&str> = text.split('|').collect();
    assert_eq!(parts[0], key, "the value of another key");
    let round = parts[2].parse().unwrap();
    assert_eq!(parts[3].len(), (round % 40) as usize, "a torn value");
    (parts[1].parse().unwrap(), round)
}

impl Workload {
    fn write(&self, writer: usize) {
        let mine = format!("own {writer}");
        for round in 1..=self.rounds {
            let mut batch = self.db.batch();
            for i in 0..STAMPED_COUNT {
                let key = stamped(i);
                batch.put(&self.db, &key, value(&key, writer, round));
                batch.put(&self.second, &key, value(&key, writer, round));
            }
            match round % 3 {
                0 => batch.commit().unwrap(),
                1 => batch.commit_async().unwrap().wait().unwrap(),
                _ => drop(batch.commit_async().unwrap()),
            }
            self.db.put(&mine, value(&mine, writer, round)).unwrap();
            let found = self.db.get(&mine).unwrap().expect("what was acknowledged is seen");
            assert_eq!(parse(&mine, &found), (writer, round));
            self.counters.merge("sum", 1).unwrap();
            self.counters.merge(format!("sum {}", round % 7), 1).unwrap();
            self.incremented.fetch_add(1, SeqCst);
            self.pace.step();
            yield_point();
        }
    }

    /// Never sees a value go back.
    fn read(&self) {
        let mut seen = [0; WRITER_COUNT];
        let mut sum = 0;
        let mut step = 0;
        while self.pace.follow(&mut step) {
            for (writer, seen) in seen.iter_mut().enumerate() {
                let mine = format!("own {writer}");
                let read = self.db.get_with(&mine, |value| parse(&mine, value)).unwrap();
                let round = read.map_or(0, |(_, round)| round);
                assert!(round >= *seen, "{mine} went back from {seen} to {round}");
                *seen = round;
            }
            let acknowledged = self.incremented.load(SeqCst) as i64;
            let read = self.counters.get_with("sum", |value| Counter::decode(value).unwrap());
            let read = read.unwrap().unwrap_or(0);
            assert!(read >= sum && read >= acknowledged, "{read} after {sum}, {acknowledged}");
            sum = read;
        }
    }

    /// Never sees a part of a batch.
    fn scan(&self, backward: bool) {
        let stamps = |entries: Vec<(Slice, Slice)>| {
            let stamps =
                entries.iter().map(|(key, value)| parse(std::str::from_utf8(key).unwrap(), value));
            stamps.collect::<Vec<_>>()
        };
        let mut step = 0;
        while self.pace.follow(&mut step) {
            let snapshot = self.db.snapshot();
            let mut both = Vec::new();
            let second = snapshot.keyspace(&self.second).unwrap();
            for scan in [snapshot.prefix("stamped"), second.prefix("stamped")] {
                let entries: Result<Vec<_>, _> =
                    if backward { scan.rev().collect() } else { scan.collect() };
                both.extend(stamps(entries.unwrap()));
            }
            assert!(both.is_empty() || both.len() == 2 * STAMPED_COUNT, "{both:?}");
            assert!(both.windows(2).all(|pair| pair[0] == pair[1]), "{both:?}");

            let now: Result<Vec<_>, _> = self.second.prefix("stamped").collect();
            let now = stamps(now.unwrap());
            assert!(now.windows(2).all(|pair| pair[0] == pair[1]), "{now:?}");

            let keys: Vec<_> = (0..STAMPED_COUNT).map(stamped).collect();
            let values = self.db.multi_get(&keys).unwrap();
            let values = values.iter().zip(&keys);
            let now: Vec<_> = values.map(|(v, key)| v.as_ref().map(|v| parse(key, v))).collect();
            assert!(now.windows(2).all(|pair| pair[0] == pair[1]), "{now:?}");
        }
    }

    /// A snapshot shows the same for as long as it is held.
    fn hold_snapshots(&self) {
        let mut step = 0;
        while self.pace.follow(&mut step) {
            let snapshot = self.db.snapshot();
            let look = || {
                let mut all = BTreeMap::new();
                for keyspace in [&*self.db, &self.second, &self.counters] {
                    let entries: Result<BTreeMap<_, _>, _> =
                        snapshot.keyspace(keyspace).unwrap().iter().collect();
                    all.insert(keyspace.name().to_string(), entries.unwrap());
                }
                all
            };
            let first = look();
            for _ in 0..5 {
                self.pace.follow(&mut step);
                assert_eq!(look(), first);
            }
        }
    }

    fn upkeep(&self) {
        let mut step = 0;
        while self.pace.follow(&mut step) {
            self.second.flush().unwrap();
            self.counters.compact_range::<&str>(..).unwrap();
            self.db.compact_range("own".."stamped 3").unwrap();
            self.db.flush().unwrap();
            self.db.settle().unwrap();
        }
    }

    fn check_end(&self) {
        let total = self.rounds as i64 * WRITER_COUNT as i64;
        let number = |value: Slice| Counter::decode(&value).unwrap();
        let sum = self.counters.get("sum").unwrap().map(number);
        assert_eq!(sum, Some(total));
        let parts = self.counters.prefix("sum ").map(|entry| number(entry.unwrap().1));
        assert_eq!(parts.sum::<i64>(), total);
        for writer in 0..WRITER_COUNT {
            let mine = format!("own {writer}");
            let found = self.db.get(&mine).unwrap().unwrap();
            assert_eq!(parse(&mine, &found), (writer, self.rounds));
        }
    }
}

fn run_workload(open: impl Fn() -> Db, runtime: &Runtime, rounds: u64) {
    let workload = |db: Db| {
        let second = db.keyspace("second", KeyspaceOptions::new()).unwrap();
        let (incremented, pace) = (AtomicU64::new(0), Pace::default());
        Arc::new(Workload { second, counters: counters(&db), db, rounds, incremented, pace })
    };
    let shared = workload(open());
    let spawn = |name: &str, work: Box<dyn FnOnce(&Workload) + Send>| {
        let shared = shared.clone();
        runtime.spawn(name, Priority::Normal, move || work(&shared)).unwrap()
    };
    {
        let ends = EndsAll(&shared.pace);
        let others = [
            spawn("reader", Box::new(Workload::read)),
            spawn("scanner", Box::new(|workload| workload.scan(false))),
            spawn("reverse", Box::new(|workload| workload.scan(true))),
            spawn("holder", Box::new(Workload::hold_snapshots)),
            spawn("upkeep", Box::new(Workload::upkeep)),
        ];
        let writers: Vec<_> = (0..WRITER_COUNT)
            .map(|writer| spawn("writer", Box::new(move |workload| workload.write(writer))))
            .collect();
        writers.into_iter().for_each(|task| task.join());
        drop(ends);
        others.into_iter().for_each(|task| task.join());
    }
    shared.check_end();
    drop(Arc::into_inner(shared).expect("every thread has ended"));
    let again = workload(open());
    again.check_end();
    let again = Arc::into_inner(again).expect("no thread was started");
    again.db.close().unwrap();
}

#[test]
fn everything_at_once_on_the_real_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::threads();
    run_workload(|| Db::open_with(dir.path(), Options::tiny()).unwrap(), &runtime, 100);
}

#[test]
fn everything_at_once_with_limits_of_a_megabyte() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::threads();
    let bloom = Filter::Bloom { bits_per_key: 10 };
    let builder = || Db::builder(dir.path()).memory(1 << 20).table_bytes(16 << 10);
    let open = || builder().filter(bloom).open().unwrap();
    run_workload(open, &runtime, 1_000);
}

#[test]
fn everything_at_once_in_seeded_schedules() {
    let seeds = settings::seeds("ESKER_SCHEDULES", 100);
    let count = seeds.end - seeds.start;
    for seed in seeds {
        println!(
            "ESKER_SEED={seed} cargo test --all-features --test it concurrency::everything_at_once"
        );
        let fs = SimFs::new();
        fs.on_call(Arc::new(|_, phase, _| {
            if phase == Phase::Before {
                yield_point();
            }
        }));
        let runtime = Runtime::stepper(seed);
        let mut options = Options::tiny();
        if seed % 2 == 1 {
            options.filter = Filter::Bloom { bits_per_key: 10 };
        }
        let open = || {
            let fs = Arc::new(fs.clone());
            Db::open_on(fs, runtime.clone(), "/db", options.clone()).unwrap()
        };
        run_workload(open, &runtime, 8);
    }
    settings::tally(&[("schedules", count)]);
}

// Tickets and durability.

fn open_sim(fs: &SimFs) -> Db {
    Db::open_on(Arc::new(fs.clone()), Runtime::threads(), "/db", Options::tiny()).unwrap()
}

#[test]
fn tickets_of_one_level_resolve_in_commit_order() {
    for durability in [Durability::Process, Durability::Disk] {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open_with(dir.path(), Options::tiny()).unwrap();
        for _ in 0..20 {
            let mut tickets: Vec<Ticket> = Vec::new();
            for i in 0..20 {
                let mut batch = db.batch();
                batch.put(&db, format!("key {i}"), "value");
                tickets.push(batch.commit_async_with(durability).unwrap());
            }
            loop {
                // From the last to the first: one that is done has only such before it.
                let done: Vec<bool> = tickets.iter().rev().map(Ticket::is_done).collect();
                let first_done = done.iter().position(|done| *done).unwrap_or(done.len());
                assert!(done[first_done..].iter().all(|done| *done), "{done:?}");
                if first_done == 0 {
                    break;
                }
                thread::yield_now();
            }
            tickets.into_iter().rev().for_each(|ticket| ticket.wait().unwrap());
        }
    }
}

/// Wakes a thread; counts.
struct Unpark {
    thread: Thread,
    count: AtomicU64,
}

impl Wake for Unpark {
    fn wake(self: Arc<Unpark>) {
        self.count.fetch_add(1, SeqCst);
        self.thread.unpark();
    }
}

/// Runs a future on this thread; how often it was woken.
fn block_on<T>(future: impl Future<Output = T>) -> (T, u64) {
    let unpark = Arc::new(Unpark { thread: thread::current(), count: AtomicU64::new(0) });
    let waker = Waker::from(unpark.clone());
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return (output, unpark.count.load(SeqCst));
        }
        thread::park();
    }
}

#[test]
fn tickets_are_awaited_without_a_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open_with(dir.path(), Options::tiny()).unwrap();
    thread::scope(|scope| {
        for writer in 0..4 {
            let db = &db;
            scope.spawn(move || {
                for round in 0..50 {
                    let key = format!("{writer} {round}");
                    let (first, second) = block_on(async {
                        let mut batch = db.batch();
                        let first = batch.put(db, &key, "1").commit_async().unwrap();
                        let second = batch.put(db, &key, "2").commit_async_with(Durability::Disk);
                        (first.await, second.unwrap().await)
                    })
                    .0;
                    first.unwrap();
                    second.unwrap();
                    assert_eq!(db.get(&key).unwrap().unwrap(), *"2");
                }
            });
        }
    });
    let empty = db.batch().commit_async().unwrap();
    block_on(empty).0.unwrap();
    let ticket = db.batch().put(&db, "last", "1").commit_async_with(Durability::Disk).unwrap();
    db.close().unwrap();
    // Closing flushed it: whoever still awaits it learns that it is durable.
    block_on(ticket).0.unwrap();
}

/// Ends the writers, also when this thread panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn what_eight_threads_were_told_is_durable_survives_power_loss() {
    let fs = SimFs::new();
    let db = open_sim(&fs);
    let acknowledged: [AtomicU64; 8] = Default::default();
    let over = AtomicBool::new(false);
    let key = |writer: usize, round: u64| format!("{writer} {round:05}");
    thread::scope(|scope| {
        for (writer, acknowledged) in acknowledged.iter().enumerate() {
            let (db, over) = (&db, &over);
            scope.spawn(move || {
                for round in 1.. {
                    if over.load(SeqCst) {
                        break;
                    }
                    let mut batch = db.batch();
                    batch.put(db, key(writer, round), round.to_le_bytes());
                    batch.commit_with(Durability::Disk).unwrap();
                    acknowledged.store(round, SeqCst);
                }
            });
        }
        let _ends = Over(&over);
        for _ in 0..40 {
            thread::yield_now();
            let promised: Vec<u64> = acknowledged.iter().map(|count| count.load(SeqCst)).collect();
            let crashed = fs.snapshot().crash(&Survival::NothingUnsynced);
            let found = open_sim(&crashed);
            for (writer, promised) in promised.into_iter().enumerate() {
                let count = found.prefix(format!("{writer} ")).count() as u64;
                assert!(count >= promised, "writer {writer}: {count} of {promised}");
                let last = found.contains(key(writer, count)).unwrap();
                assert!(count == 0 || last, "writer {writer} has a hole");
            }
        }
    });
}

// Keyspaces that go away.

#[test]
fn writers_that_race_a_drop_get_closed_and_nothing_else() {
    let fs = SimFs::new();
    let db = open_sim(&fs);
    for round in 0..200 {
        let passing = db.keyspace("passing", KeyspaceOptions::new().merge(Append)).unwrap();
        let start = Barrier::new(4);
        thread::scope(|scope| {
            for writer in 0..3 {
                let (db, passing, start) = (&db, &passing, &start);
                scope.spawn(move || {
                    start.wait();
                    for i in 0.. {
                        let key = format!("{round} {writer} {i}");
                        let written = match i % 3 {
                            0 => passing.put(&key, "value"),
                            1 => passing.merge(&key, "value"),
                            _ => db.batch().put(passing, &key, "1").put(db, &key, "1").commit(),
                        };
                        let Err(error) = written else {
                            // The other keyspace has what the batch wrote, and only then.
                            assert_eq!(db.contains(&key).unwrap(), i % 3 == 2);
                            continue;
                        };
                        assert_eq!(*error.kind(), ErrorKind::Closed, "{error}");
                        assert!(!db.contains(&key).unwrap(), "a part of a refused batch");
                        break;
                    }
                    assert_eq!(*passing.put("a", "b").unwrap_err().kind(), ErrorKind::Closed);
                    assert_eq!(*passing.get("a").unwrap_err().kind(), ErrorKind::Closed);
                    assert_eq!(*passing.flush().unwrap_err().kind(), ErrorKind::Closed);
                    let compacted = passing.compact_range::<&str>(..);
                    assert_eq!(*compacted.unwrap_err().kind(), ErrorKind::Closed);
                });
            }
            let flusher = scope.spawn(|| {
                while let Ok(()) = passing.flush() {
                    thread::yield_now();
                }
            });
            start.wait();
            (0..round % 5).for_each(|_| thread::yield_now());
            db.drop_keyspace("passing").unwrap();
            flusher.join().unwrap();
        });
    }
    drop(db);
    let db = open_sim(&fs);
    assert_eq!(db.keyspace_names(), ["default"]);
    let passing = db.keyspace("passing", KeyspaceOptions::new()).unwrap();
    assert_eq!(passing.iter().count(), 0, "nothing comes back");
}

// Operators that misbehave.

/// Appends; does what the key says.
#[derive(Clone, Default)]
struct Odd {
    db: Arc<OnceLock<Db>>,
}

impl Odd {
    fn behave(&self, key: &[u8]) -> Result<(), MergeError> {
        match key {
            b"panics" => panic!("an operator that panics"),
            b"fails" => Err(MergeError("an operator that fails".into())),
            b"calls" => {
                let db = self.db.get().expect("set before the first merge");
                assert_eq!(db.get("known").unwrap().unwrap(), *"value");
                assert_eq!(db.iter().count(), 1);
                let _ = (db.stats(), db.snapshot(), db.keyspace_names());
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl MergeOperator for Odd {
    fn name(&self) -> &str {
        "test.odd"
    }

    fn check(&self, operand: &[u8]) -> Result<(), MergeError> {
        self.behave(operand)
    }

    fn full(&self, key: &[u8], base: Option<&[u8]>, ops: &[&[u8]]) -> Result<Merged, MergeError> {
        self.behave(key)?;
        Ok(Merged::Put([base.unwrap_or_default(), &ops.concat()].concat()))
    }

    fn partial(&self, key: &[u8], operands: &[&[u8]]) -> Option<Vec<u8>> {
        self.behave(key).ok()?;
        Some(operands.concat())
    }
}

#[test]
fn an_operator_that_panics_fails_or_calls_back_harms_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let odd = Odd::default();
    let keys = ["calls", "fails", "fine", "panics"];
    let check = |db: &Db, odds: &Keyspace, count: usize| {
        for key in keys {
            match key {
                "fails" | "panics" => {
                    let expected = ErrorKind::MergeFailed { key: key.into() };
                    assert_eq!(*odds.get(key).unwrap_err().kind(), expected);
                    assert_eq!(*odds.multi_get(&[key]).unwrap_err().kind(), expected);
                    let error = odds.range(key..).next().unwrap().unwrap_err();
                    assert_eq!(*error.kind(), expected);
                    let error = odds.range(..=key).next_back().unwrap().unwrap_err();
                    assert_eq!(*error.kind(), expected);
                }
                _ => assert_eq!(odds.get(key).unwrap().unwrap(), *"x".repeat(count)),
            }
        }
        assert_eq!(db.get("known").unwrap().unwrap(), *"value");
    };
    {
        let db = Db::open_with(dir.path(), Options::tiny()).unwrap();
        db.put("known", "value").unwrap();
        assert!(odd.db.set(db.clone()).is_ok());
        let odds = db.keyspace("odd", KeyspaceOptions::new().merge(odd.clone())).unwrap();
        for round in 1..=40 {
            for key in keys {
                odds.merge(key, "x").unwrap();
            }
            if round % 10 == 0 {
                odds.flush().unwrap();
            }
        }
        check(&db, &odds, 40);
        // The operands that cannot be folded go through flush and compaction as they are.
        odds.compact_range::<&str>(..).unwrap();
        db.settle().unwrap();
        check(&db, &odds, 40);
        for operand in ["panics", "fails"] {
            let error = odds.merge("fine", operand).unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::InvalidArgument, "{error}");
            let error = db.batch().merge(&odds, "fine", operand).commit().unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::InvalidArgument, "{error}");
        }
        odds.merge("fine", "calls").unwrap();
        odds.delete("fine").unwrap();
        for _ in 0..40 {
            odds.merge("fine", "x").unwrap();
        }
        // User code in a closure: also where it writes.
        let nested = db.get_with("known", |value| db.put("nested", value)).unwrap();
        nested.unwrap().unwrap();
        assert_eq!(db.get("nested").unwrap().unwrap(), *"value");
        // Or flushes and compacts what it reads from, or panics.
        for flushed in [false, true] {
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                db.get_with("known", |value| {
                    db.put("nested", value).unwrap();
                    db.compact_range::<&str>(..).unwrap();
                    assert_ne!(value, b"value", "{flushed}");
                })
            }));
            assert!(panicked.is_err());
            assert_eq!(db.get("nested").unwrap().unwrap(), *"value");
        }
        db.delete("nested").unwrap();
        db.close().unwrap();
    }
    drop(odd);
    // A good operator of the same name reads all of it: nothing was lost.
    struct Good;
    impl MergeOperator for Good {
        fn name(&self) -> &str {
            "test.odd"
        }
        fn full(
            &self,
            key: &[u8],
            base: Option<&[u8]>,
            operands: &[&[u8]],
        ) -> Result<Merged, MergeError> {
            Append.full(key, base, operands)
        }
    }
    let db = Db::open_with(dir.path(), Options::tiny()).unwrap();
    // Not registered yet: the database opens, other keyspaces work, compaction copies through.
    let odds = db.keyspace("odd", KeyspaceOptions::new()).unwrap();
    let unregistered = odds.get("panics").unwrap_err();
    assert!(matches!(unregistered.kind(), ErrorKind::MergeFailed { .. }), "{unregistered}");
    odds.compact_range::<&str>(..).unwrap();
    let odds = db.keyspace("odd", KeyspaceOptions::new().merge(Good)).unwrap();
    for key in keys {
        assert_eq!(odds.get(key).unwrap().unwrap(), *"x".repeat(40), "{key}");
    }
}

/// Rule 11: else as many large batches as there are writers are in memory and in logs of their size at
/// once, beyond what the budget has for any.
#[test]
fn of_large_batches_one_at_a_time_is_written() {
    let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
    let counts = Arc::new((now, most));
    let disk = SimFs::new();
    let seen = counts.clone();
    disk.on_call(Arc::new(move |_, phase, call| {
        if call.name != "store" || call.bytes < 1 << 20 {
            return;
        }
        match phase {
            Phase::Before => {
                let now = seen.0.fetch_add(1, SeqCst) + 1;
                seen.1.fetch_max(now, SeqCst);
                // Time for another to come in, if it may.
                thread::sleep(Duration::from_millis(2));
            }
            Phase::Middle => {}
            Phase::After => _ = seen.0.fetch_sub(1, SeqCst),
        }
    }));
    let mut options = Options::default();
    options.memory = 64 << 20;
    let db = Db::open_on(Arc::new(disk), Runtime::threads(), "/db", options).unwrap();
    let (writers, batches, parts) = (4_u8, 5_u8, 15_u8);
    let begun = Barrier::new(writers.into());
    let mut most_counted = 0;
    thread::scope(|scope| {
        let write = |writer| {
            let (db, begun) = (&db, &begun);
            scope.spawn(move || {
                begun.wait();
                for number in 0..batches {
                    let mut batch = db.batch();
                    for part in 0..parts {
                        batch.put(db, [writer, number, part], vec![part; 100_000]);
                    }
                    batch.commit().unwrap();
                    db.put([writer, number], vec![number; 2 << 20]).unwrap();
                }
            })
        };
        let threads: Vec<_> = (0..writers).map(write).collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            most_counted = most_counted.max(db.stats().memory.commits);
            thread::yield_now();
        }
    });
    assert_eq!(counts.1.load(SeqCst), 1, "at a time");
    assert!(most_counted > 2 << 20, "one that is written and some that wait: {most_counted}");
    assert_eq!(db.stats().memory.commits, 0);
    assert_eq!(counts.0.load(SeqCst), 0, "all were written");
    let all = usize::from(writers) * usize::from(batches) * (usize::from(parts) + 1);
    assert_eq!(db.iter().count(), all);
}

/// Bug: a large write that would not wait waited for another large one that did. Cause: the second kept the
/// turn of the large ones while it was held back after its write. Fix: it has the turn for the write only.
#[test]
fn a_large_write_in_a_hurry_waits_for_nobody_who_waits_for_memory() {
    let disk = SimFs::new();
    let held = Arc::new((std::sync::Mutex::new(true), std::sync::Condvar::new()));
    let hold = held.clone();
    disk.on_call(Arc::new(move |_, phase, call| {
        if phase == Phase::Before
            && call.name == "write"
            && call.path.extension().is_some_and(|kind| kind == "table")
        {
            let held = hold.0.lock().unwrap();
            drop(hold.1.wait_while(held, |held| *held).unwrap());
        }
    }));
    let mut options = Options::default();
    options.memory = 64 << 20;
    let db = Db::open_on(Arc::new(disk), Runtime::threads(), "/db", options).unwrap();
    let value = vec![7; 2 << 20];
    let written = AtomicU64::new(0);
    let release = || {
        *held.0.lock().unwrap() = false;
        held.1.notify_all();
    };
    thread::scope(|scope| {
        let (db, value, written) = (&db, &value, &written);
        let patient = scope.spawn(move || {
            (0..30_u8).try_for_each(|n| {
                written.fetch_add(1, SeqCst);
                db.put([n], value)
            })
        });
        let (told, tell) = std::sync::mpsc::channel();
        scope.spawn(move || {
            // Until the other one, begun, waits as long as it takes, and is not only held back a little.
            let mut before = 0;
            loop {
                thread::sleep(Duration::from_millis(500));
                let now = written.load(SeqCst);
                if now > 0 && now == before {
                    break;
                }
                before = now;
            }
            let _ = told.send(db.try_put("in a hurry", value));
        });
        let answer = tell.recv_timeout(Duration::from_secs(60));
        release();
        let refused = answer.expect("it is told at once").unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::Busy { .. }), "{refused}");
        patient.join().unwrap().unwrap();
    });
}

/// Writers that commit durably one commit after the other are released together; each sync is one for all
/// of them, and not for every other half in turns. A lone one syncs each commit and waits for nobody.
#[test]
fn writers_that_come_back_share_their_syncs() {
    const COMMITS: u64 = 25;
    let takes = Duration::from_millis(1);
    for seed in 0..20 {
        for writers in [1, 2, 8] {
            let runtime = Runtime::stepper(seed);
            let disk = SlowSyncs::new(&runtime, takes);
            let fs = Intercepted::over(Arc::new(SimFs::new()), disk.clone());
            // So large that no log ends meanwhile, which is a sync more.
            let mut options = Options::default();
            options.memory = 4 << 20;
            let db = Db::open_on(Arc::new(fs), runtime.clone(), "/db", options).unwrap();
            let (syncs, began) = (disk.of_logs(), runtime.now());
            let write = |writer: u64| {
                let db = db.clone();
                let write = move || {
                    for commit in 0..COMMITS {
                        let mut batch = db.batch();
                        batch.put(&db, [writer as u8, commit as u8], "durable");
                        batch.commit_with(Durability::Disk).unwrap();
                    }
                };
                runtime.spawn("writer", Priority::Normal, write).unwrap()
            };
            let tasks: Vec<_> = (0..writers).map(write).collect();
            tasks.into_iter().for_each(|task| task.join());
            let (syncs, took) = (disk.of_logs() - syncs, runtime.now() - began);
            println!("seed {seed}, {writers} writers: {syncs} syncs in {took:?}");
            assert!(syncs >= COMMITS, "a commit was told of before its sync");
            // In turns it would be twice as many. The first of all comes alone, the last ones need not come
            // together, and a spare log is synced once.
            assert!(
                syncs <= COMMITS + 5,
                "{syncs} syncs for {COMMITS} commits of each of {writers}"
            );
            let syncs = u32::try_from(syncs).unwrap();
            assert!(writers > 1 || took < takes * syncs + takes, "a lone writer waited: {took:?}");
        }
    }
}
