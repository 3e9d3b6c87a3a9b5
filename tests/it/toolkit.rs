//! The batcher and the coalescer: bounds, results, what readers see meanwhile, and failures.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use esker::fs::fault::{Fault, FaultFs, FaultKind};
use esker::fs::intercept::Select;
use esker::fs::sim::{Phase, SimFs};
use esker::runtime::{Priority, Runtime, Task, yield_point};
use esker::{
    Append, Batcher, BatcherOptions, BusyCause, Coalescer, CoalescerOptions, Counter, Db,
    ErrorKind, IngestOptions, IngestQueue, ItemTicket, Keyspace, KeyspaceOptions, Max, MergeError,
    MergeOperator, Merged,
};

use crate::settings;

/// A database on a simulated disk, whose threads take turns at every call.
fn stepped(seed: u64) -> (Db, Runtime) {
    let (fs, runtime) = (SimFs::new(), Runtime::stepper(seed));
    fs.on_call(Arc::new(|_, phase, _| {
        if phase == Phase::Before {
            yield_point();
        }
    }));
    let db = Db::open_on(Arc::new(fs), runtime.clone(), "/db", settings::tiny()).unwrap();
    (db, runtime)
}

fn seeds(name: &str, count: u64) -> std::ops::Range<u64> {
    let seed =
        std::env::var("ESKER_SEED").map_or_else(|_| fastrand::u64(..), |s| s.parse().unwrap());
    println!("ESKER_SEED={seed} cargo test --all-features --test it toolkit::{name}");
    seed..seed.saturating_add(count)
}

fn counters(db: &Db) -> Keyspace {
    db.keyspace("counters", KeyspaceOptions::new().merge(Counter::default())).unwrap()
}

fn number(value: Option<impl AsRef<[u8]>>) -> i64 {
    value.map_or(0, |value| Counter::decode(value.as_ref()).unwrap())
}

fn batcher(db: &Db, change: impl FnOnce(&mut BatcherOptions)) -> Batcher {
    let mut options = BatcherOptions::default();
    // Far beyond any test, so that what is meant to begin a commit is what does.
    options.linger = Duration::from_secs(3600);
    change(&mut options);
    Batcher::new(db, options).unwrap()
}

// Batcher.

#[test]
fn a_group_is_committed_by_count_by_bytes_by_linger_and_on_demand() {
    let (db, runtime) = stepped(1);
    let there = |key: &str| db.contains(key).unwrap();
    let by_count = batcher(&db, |options| options.count_max = 3);
    let first = by_count.put(&db, "a", "1").unwrap();
    drop(by_count.put(&db, "b", "1").unwrap());
    assert!(!first.is_done() && !there("a"));
    by_count.put(&db, "c", "1").unwrap().wait().unwrap();
    assert!(first.is_done() && there("a") && there("b"));
    first.wait().unwrap();
    assert_eq!(by_count.pending(), (0, 0));

    let by_bytes = batcher(&db, |options| options.bytes_max = 100);
    let first = by_bytes.put(&db, "d", [7; 60]).unwrap();
    // Does not fit beside it: the first group is closed.
    let second = by_bytes.put(&db, "e", [7; 60]).unwrap();
    first.wait().unwrap();
    assert!(!second.is_done());
    by_bytes.put(&db, "f", [7; 500]).unwrap().wait().unwrap();
    second.wait().unwrap();

    let by_linger = batcher(&db, |options| options.linger = Duration::from_secs(5));
    let before = runtime.now();
    by_linger.put(&db, "g", "1").unwrap().wait().unwrap();
    assert!(runtime.now() - before >= Duration::from_secs(5));

    let on_demand = batcher(&db, |_| {});
    let ticket = on_demand.put(&db, "h", "1").unwrap();
    on_demand.flush().unwrap();
    assert!(ticket.is_done() && there("h"));
    drop(on_demand.put(&db, "i", "1").unwrap());
    drop(on_demand);
    assert!(there("i"), "dropping it commits what is pending");
}

#[test]
fn an_item_is_committed_whole_and_a_bad_one_fails_alone() {
    let (db, _runtime) = stepped(2);
    let (counters, other) = (counters(&db), db.keyspace("other", KeyspaceOptions::new()).unwrap());
    let batcher = batcher(&db, |_| {});
    let mut item = db.batch();
    item.put(&db, "a", "1").merge(&counters, "n", 1);
    let first = batcher.add(&item).unwrap();
    let bad = batcher.merge(&counters, "n", b"not a number").unwrap_err();
    assert_eq!(bad.kind(), &ErrorKind::InvalidArgument);
    let mut guarded = db.batch();
    guarded.require_absent(&db, "x").put(&db, "x", "1");
    assert_eq!(batcher.add(&guarded).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    // The keyspace goes away between the item and its commit.
    let mut item = db.batch();
    item.put(&other, "b", "1").merge(&counters, "n", 1);
    let second = batcher.add(&item).unwrap();
    let third = batcher.merge(&counters, "n", 1).unwrap();
    db.drop_keyspace("other").unwrap();
    assert_eq!(batcher.flush().unwrap_err().kind(), &ErrorKind::Closed);
    first.wait().unwrap();
    assert_eq!(second.wait().unwrap_err().kind(), &ErrorKind::Closed);
    third.wait().unwrap();
    assert_eq!(number(counters.get("n").unwrap()), 2);
    batcher.flush().unwrap();
    batcher.add(&db.batch()).unwrap().wait().unwrap();
}

#[test]
fn a_full_batcher_says_busy_waits_or_waits_a_while() {
    let (db, runtime) = stepped(3);
    let linger = Duration::from_secs(9);
    let batcher = batcher(&db, |options| {
        (options.pending_bytes_max, options.linger) = (200, linger);
    });
    let mut item = db.batch();
    item.put(&db, "k", [7; 120]);
    drop(batcher.add(&item).unwrap());
    let error = batcher.try_add(&item).unwrap_err();
    let ErrorKind::Busy { cause: BusyCause::Queue, retry_after } = *error.kind() else {
        panic!("{error}")
    };
    assert!(batcher.add_within(&item, Duration::from_secs(1)).unwrap_err().is_busy());
    runtime.sleep(retry_after);
    batcher.try_add(&item).expect("it told the truth").wait().unwrap();
    for _ in 0..3 {
        drop(batcher.add(&item).unwrap());
    }
    batcher.flush().unwrap();
}

/// Producers on several threads: every item is there once, and those of one producer in order.
#[test]
fn many_producers_lose_nothing_in_every_schedule() {
    for seed in seeds("many_producers_lose_nothing_in_every_schedule", 30) {
        let (db, runtime) = stepped(seed);
        let log = db.keyspace("log", KeyspaceOptions::new().merge(Append)).unwrap();
        let batcher = Arc::new(batcher(&db, |options| {
            options.linger = Duration::from_micros(50);
            (options.count_max, options.pending_bytes_max) = (4, 300);
        }));
        let produce = |producer: char| {
            let (batcher, log) = (batcher.clone(), log.clone());
            let task = runtime.spawn("producer", Priority::Normal, move || {
                let add =
                    |item: u32| batcher.merge(&log, "log", format!("{producer}{item};").as_str());
                let tickets: Vec<ItemTicket> = (0..10).map(|item| add(item).unwrap()).collect();
                tickets.into_iter().for_each(|ticket| ticket.wait().unwrap());
            });
            task.unwrap()
        };
        ['a', 'b', 'c'].map(produce).into_iter().for_each(Task::join);
        let text = String::from_utf8(log.get("log").unwrap().unwrap().to_vec()).unwrap();
        for producer in ['a', 'b', 'c'] {
            let items: Vec<_> = text.split(';').filter(|item| item.starts_with(producer)).collect();
            let expected: Vec<_> = (0..10).map(|item| format!("{producer}{item}")).collect();
            assert_eq!(items, expected, "{text}");
        }
    }
}

#[test]
fn a_failure_of_the_disk_reaches_every_ticket() {
    let fs = FaultFs::over_sim(SimFs::new());
    let runtime = Runtime::threads();
    let db = Db::open_on(Arc::new(fs.clone()), runtime, "/db", settings::tiny()).unwrap();
    let batcher = batcher(&db, |_| {});
    let tickets: Vec<_> = (0..3).map(|i| batcher.put(&db, format!("{i}"), "v").unwrap()).collect();
    fs.arm(Fault::new(FaultKind::Io).on(Select::all().name("store").file(".log")));
    assert!(batcher.flush().is_err());
    assert!(tickets.into_iter().all(|ticket| ticket.wait().is_err()));
    db.resume().unwrap();
    drop(batcher.put(&db, "after", "v").unwrap());
    batcher.flush().unwrap();
    assert!(db.contains("after").unwrap() && !db.contains("1").unwrap());
}

// Coalescer.

fn coalescer(
    db: &Db,
    keyspace: &Keyspace,
    change: impl FnOnce(&mut CoalescerOptions),
) -> Coalescer {
    let mut options = CoalescerOptions::default();
    options.window = Duration::from_secs(3600);
    change(&mut options);
    Coalescer::new(db, keyspace, options).unwrap()
}

#[test]
fn many_operands_of_a_key_become_one_write() {
    many_operands_become_one(None);
}

#[test]
fn many_operands_of_a_key_become_one_write_with_a_queue() {
    many_operands_become_one(Some("views"));
}

fn many_operands_become_one(queue: Option<&str>) {
    let (db, runtime) = stepped(4);
    let counters = counters(&db);
    let views = coalescer(&db, &counters, |options| {
        (options.window, options.queue) = (Duration::from_secs(1), queue.map(String::from));
    });
    counters.merge("article", 5).unwrap();
    let before = db.stats().user_bytes;
    for _ in 0..1000 {
        views.add("article", 1).unwrap();
    }
    assert_eq!(number(counters.get("article").unwrap()), 5, "nothing is written yet");
    assert_eq!(number(views.get("article").unwrap()), 1005, "but can be read");
    assert_eq!(views.pending().0, 1);
    runtime.sleep(Duration::from_secs(2));
    assert_eq!(number(counters.get("article").unwrap()), 1005);
    assert_eq!(views.pending(), (0, 0));
    let written = db.stats().user_bytes - before;
    assert!(written < 100, "{written} bytes for 1000 operands");

    let full = coalescer(&db, &counters, |options| options.keys_max = 3);
    for key in ["a", "b", "c"] {
        full.add(key, 1).unwrap();
    }
    full.add("d", 1).unwrap();
    drop((views, full));
    let keys = ["a", "b", "c", "d"];
    assert!(keys.iter().all(|key| number(counters.get(key).unwrap()) == 1));
}

/// What a thousand views a second of one article cost: on the clock of the stepper, ten seconds of them.
#[test]
fn a_thousand_operands_a_second_on_one_key_are_one_write_a_second() {
    const SECONDS: u64 = 10;
    let (db, runtime) = stepped(9);
    let counters = counters(&db);
    let views = Coalescer::new(&db, &counters, CoalescerOptions::default()).unwrap();
    let (began, before) = (runtime.now(), db.stats().user_bytes);
    for view in 0..SECONDS * 1000 {
        views.add("article:42", 1).unwrap();
        let due = began + Duration::from_millis(view + 1);
        runtime.sleep(due.saturating_sub(runtime.now()));
    }
    let took = (runtime.now() - began).as_secs();
    let bytes_each = ("article:42".len() + size_of::<i64>()) as u64;
    let written = (db.stats().user_bytes - before) / bytes_each;
    println!("{SECONDS},000 views within {took} s were {written} writes");
    assert!((SECONDS - 2..=took + 1).contains(&written), "{written} writes in {took} s");
    views.flush().unwrap();
    assert_eq!(number(counters.get("article:42").unwrap()), 1000 * SECONDS as i64);
}

/// Joins operands with commas, and folds them too: a user's operator. Refuses "bad", panics at "panic".
struct Commas;

impl MergeOperator for Commas {
    fn name(&self) -> &str {
        "test.commas"
    }
    fn check(&self, operand: &[u8]) -> Result<(), MergeError> {
        if operand == b"bad" { Err(MergeError("bad".into())) } else { Ok(()) }
    }
    fn full(&self, _: &[u8], base: Option<&[u8]>, ops: &[&[u8]]) -> Result<Merged, MergeError> {
        let all: Vec<&[u8]> = base.into_iter().chain(ops.iter().copied()).collect();
        Ok(Merged::Put(all.join(&b',')))
    }
    fn partial(&self, _: &[u8], operands: &[&[u8]]) -> Option<Vec<u8>> {
        assert!(!operands.contains(&&b"panic"[..]), "of the operator");
        Some(operands.join(&b','))
    }
}

#[test]
fn every_operator_is_coalesced_in_order() {
    every_operator_is_coalesced(false);
}

#[test]
fn every_operator_is_coalesced_in_order_with_a_queue() {
    every_operator_is_coalesced(true);
}

fn every_operator_is_coalesced(queue: bool) {
    let (db, _runtime) = stepped(5);
    let keyspace = |name: &str, options: KeyspaceOptions| db.keyspace(name, options).unwrap();
    let commas = keyspace("commas", KeyspaceOptions::new().merge(Commas));
    let slowest = keyspace("slowest", KeyspaceOptions::new().merge(Max));
    let trail = keyspace("trail", KeyspaceOptions::new().merge(Append));
    let capped = keyspace("capped", KeyspaceOptions::new().merge(Counter::saturating()));
    let [a, b, c, d] = [&commas, &slowest, &trail, &capped].map(|keyspace| {
        coalescer(&db, keyspace, |options| {
            options.queue = queue.then(|| keyspace.name().to_string());
        })
    });
    for word in ["one", "two", "panic", "three"] {
        a.add("k", word).unwrap();
        c.add("k", word).unwrap();
    }
    assert_eq!(a.add("k", "bad").unwrap_err().kind(), &ErrorKind::InvalidArgument);
    assert_eq!(b.add("k", "short").unwrap_err().kind(), &ErrorKind::InvalidArgument);
    [3, 9, 4].into_iter().for_each(|n| b.add("k", n).unwrap());
    [i64::MAX, 5, -7].into_iter().for_each(|n| d.add("k", n).unwrap());
    for flushed in [false, true] {
        assert_eq!(a.get("k").unwrap().unwrap(), *"one,two,panic,three", "{flushed}");
        assert_eq!(number(b.get("k").unwrap()), 9);
        assert_eq!(c.get("k").unwrap().unwrap(), *"onetwopanicthree");
        assert_eq!(number(d.get("k").unwrap()), i64::MAX - 7);
        [&a, &b, &c, &d].into_iter().for_each(|coalescer| coalescer.flush().unwrap());
    }
    let plain = keyspace("plain", KeyspaceOptions::new());
    assert!(Coalescer::new(&db, &plain, CoalescerOptions::default()).is_err());
}

/// A reader never sees less than was added before its read, nor more than was added at all, however
/// turns begin and end meanwhile.
#[test]
fn reads_through_it_are_exact_in_every_schedule() {
    reads_are_exact("reads_through_it_are_exact_in_every_schedule", None);
}

#[test]
fn reads_are_exact_in_every_schedule_with_a_queue() {
    reads_are_exact("reads_are_exact_in_every_schedule_with_a_queue", Some("views"));
}

fn reads_are_exact(name: &str, queue: Option<&str>) {
    for seed in seeds(name, 40) {
        let (db, runtime) = stepped(seed);
        let counters = counters(&db);
        let views = Arc::new(coalescer(&db, &counters, |options| {
            options.window = Duration::from_micros(20);
            (options.keys_max, options.queue) = (2, queue.map(String::from));
        }));
        let (begun, done) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
        let writer = || {
            let (views, begun, done) = (views.clone(), begun.clone(), done.clone());
            let task = runtime.spawn("adder", Priority::Normal, move || {
                for i in 0..20 {
                    begun.fetch_add(1, Ordering::SeqCst);
                    views.add("k", 1).unwrap();
                    done.fetch_add(1, Ordering::SeqCst);
                    if i % 4 == 0 {
                        views.add(format!("other {i}"), 1).unwrap();
                    }
                    yield_point();
                }
            });
            task.unwrap()
        };
        let writers = [writer(), writer()];
        for _ in 0..40 {
            let least = done.load(Ordering::SeqCst);
            let seen = number(views.get("k").unwrap());
            let most = begun.load(Ordering::SeqCst);
            assert!((least..=most).contains(&seen), "{least} <= {seen} <= {most}");
        }
        writers.into_iter().for_each(Task::join);
        views.flush().unwrap();
        assert_eq!(number(counters.get("k").unwrap()), 40);
    }
}

#[test]
fn threads_that_add_at_once_lose_nothing() {
    threads_add_at_once(None);
}

#[test]
fn threads_that_add_at_once_lose_nothing_with_a_queue() {
    threads_add_at_once(Some("views"));
}

fn threads_add_at_once(queue: Option<&str>) {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::builder(dir.path()).filter(settings::filter()).open().unwrap();
    let counters = counters(&db);
    let views = coalescer(&db, &counters, |options| {
        (options.window, options.keys_max) = (Duration::from_millis(1), 20);
        options.queue = queue.map(String::from);
    });
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let views = &views;
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread);
                (0..50_000).for_each(|_| views.add(format!("{}", random.u8(..50)), 1).unwrap());
            });
        }
    });
    views.flush().unwrap();
    let sum: i64 = (0..50).map(|key| number(counters.get(format!("{key}")).unwrap())).sum();
    assert_eq!(sum, 200_000);
}

/// What a failing disk left unknown is written once all the same.
#[test]
fn a_turn_of_unknown_outcome_is_written_once() {
    for (name, kind) in [("store", FaultKind::Io), ("sync", FaultKind::FailedSync)] {
        for nth in 0..10 {
            let fs = FaultFs::over_sim(SimFs::new());
            let runtime = Runtime::threads();
            let db = Db::open_on(Arc::new(fs.clone()), runtime, "/db", settings::tiny()).unwrap();
            let counters = counters(&db);
            let views = coalescer(&db, &counters, |options| {
                options.durability = Some(esker::Durability::Disk);
            });
            views.add("k", 1).unwrap();
            views.flush().unwrap();
            fs.arm(Fault::new(kind).on(Select::all().name(name).file(".log")).nth(nth));
            let mut failed = 0;
            for round in 0..6 {
                views.add("k", 1).unwrap();
                views.add("l", 1).unwrap();
                if views.flush().is_err() {
                    failed += 1;
                    // Readers go on, and see what is pending.
                    assert_eq!(number(views.get("k").unwrap()), round + 2);
                    db.resume().unwrap();
                }
            }
            while views.flush().is_err() {}
            assert_eq!(number(counters.get("k").unwrap()), 7, "{name} {nth}, {failed} failed");
            assert_eq!(number(counters.get("l").unwrap()), 6);
        }
    }
}

#[test]
fn a_full_coalescer_says_busy() {
    let fs = FaultFs::over_sim(SimFs::new());
    let db =
        Db::open_on(Arc::new(fs.clone()), Runtime::threads(), "/db", settings::tiny()).unwrap();
    let counters = counters(&db);
    let views = coalescer(&db, &counters, |options| options.bytes_max = 2000);
    views.add("k", 1).unwrap();
    fs.arm(Fault::new(FaultKind::Io).on(Select::all().name("store").file(".log")));
    assert!(views.flush().is_err(), "nothing can be written from now on");
    let mut taken = 1;
    let busy = loop {
        match views.try_add(format!("key {taken}"), 1) {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 1000, "it is bounded");
    };
    assert!(busy.is_busy());
    views.add("key 1", 1).expect("what folds takes no room");
    assert!(views.add_within("another", 1, Duration::from_millis(5)).unwrap_err().is_busy());
    db.resume().unwrap();
    views.add("another", 1).unwrap();
    while views.flush().is_err() {}
    assert_eq!(number(counters.get("key 1").unwrap()), 2);
    assert_eq!(counters.iter().count(), taken + 1);
}

/// What is pending when the last handle goes, with nothing written, is there at the next session, once.
#[test]
fn what_a_queue_keeps_is_written_by_the_next_session() {
    let fs = FaultFs::over_sim(SimFs::new());
    let open = || {
        let fs = Arc::new(fs.clone());
        Db::open_on(fs, Runtime::threads(), "/db", settings::tiny()).unwrap()
    };
    for round in 1..4 {
        let db = open();
        let counters = counters(&db);
        let views = kept(&db, &counters);
        assert_eq!(number(counters.get("k").unwrap()), 20 * (round - 1), "written by the open");
        assert_eq!(views.queue().unwrap().stats().depth, 0);
        // The log of the database fails: what is pending cannot be written.
        let stores = Select::all().name("store").file(".log").within("/db/0");
        fs.arm(Fault::new(FaultKind::Io).on(stores));
        db.put("this fails", "").unwrap_err();
        (0..20).for_each(|_| views.add("k", 1).unwrap());
        assert_eq!(number(views.get("k").unwrap()), 20 * round);
        assert!(views.flush().is_err());
        assert_eq!(number(views.get("k").unwrap()), 20 * round);
        drop((views, counters, db));
        fs.heal();
    }
    let db = open();
    let views = kept(&db, &counters(&db));
    assert_eq!(number(views.get("k").unwrap()), 60);
    let plain = IngestQueue::open(&db, "views", IngestOptions::default(), |_, _| Ok(()));
    assert_eq!(*plain.unwrap_err().kind(), ErrorKind::Locked);
}

fn kept(db: &Db, counters: &Keyspace) -> Coalescer {
    coalescer(db, counters, |options| options.queue = Some("views".into()))
}

/// Reads stay exact, and every operand that was acknowledged counts once, over failures of the log of
/// the queue, of that of the database, and their resumes.
#[test]
fn a_queue_behind_a_coalescer_gets_over_failures_of_both_logs() {
    let logs = ["queues/", "/db/0"];
    for (name, kind) in [("store", FaultKind::Io), ("sync", FaultKind::FailedSync)] {
        for (log, nth) in logs.into_iter().flat_map(|log| (0..12).map(move |nth| (log, nth))) {
            let fs = FaultFs::over_sim(SimFs::new());
            let runtime = Runtime::threads();
            let db = Db::open_on(Arc::new(fs.clone()), runtime, "/db", settings::tiny()).unwrap();
            let counters = counters(&db);
            let views = coalescer(&db, &counters, |options| {
                options.queue = Some("views".into());
                options.durability = Some(esker::Durability::Disk);
                options.keys_max = 4;
            });
            views.add("k", 1).unwrap();
            views.flush().unwrap();
            fs.arm(Fault::new(kind).on(Select::all().name(name).within(log)).nth(nth));
            let (mut least, mut most) = (1, 1);
            let case = format!("{name} of {log}, the {nth}th");
            for round in 0..30 {
                most += 1;
                match views.add("k", 1) {
                    Ok(()) => least += 1,
                    Err(_) => views.queue().unwrap().resume().unwrap(),
                }
                _ = views.add(format!("{}", round % 5), 1);
                if round % 4 == 0 && views.flush().is_err() {
                    db.resume().unwrap();
                    views.queue().unwrap().resume().unwrap();
                }
                let seen = number(views.get("k").unwrap());
                assert!((least..=most).contains(&seen), "{case}: {least} <= {seen} <= {most}");
            }
            while views.flush().is_err() {
                db.resume().unwrap();
                views.queue().unwrap().resume().unwrap();
            }
            let written = number(counters.get("k").unwrap());
            assert!((least..=most).contains(&written), "{case}: {least} <= {written} <= {most}");
            assert_eq!(number(views.get("k").unwrap()), written, "{case}");
        }
    }
}

#[test]
fn a_coalescer_of_a_dropped_keyspace_says_so_and_ends() {
    for queue in [None, Some("views".to_string())] {
        let (db, _runtime) = stepped(7);
        let counters = counters(&db);
        let views = coalescer(&db, &counters, |options| options.queue = queue);
        views.add("k", 1).unwrap();
        db.drop_keyspace("counters").unwrap();
        assert_eq!(*views.get("k").unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(*views.flush().unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(views.pending(), (0, 0));
        views.flush().unwrap();
    }
}
