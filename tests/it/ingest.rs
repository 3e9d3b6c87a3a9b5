//! The ingest queue: order, bounds, failures of the handler, of the database and of its own log, and
//! what an open finds. Crashes are in `crash::ingest`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use esker::fs::Fs;
use esker::fs::fault::{Fault, FaultFs, FaultKind};
use esker::fs::intercept::Select;
use esker::fs::sim::{Phase, SimFs};
use esker::runtime::{Priority, Runtime, Task, yield_point};
use esker::{
    Append, Batch, BreakerState, BusyCause, Counter, Db, DegradedCause, Durability, ErrorKind,
    Event, HandlerResult, IngestOptions, IngestQueue, Keyspace, KeyspaceOptions,
};

use crate::settings;

/// A database on this disk, whose threads take turns at every call.
fn stepped_on(disk: &SimFs, seed: u64) -> (Db, Runtime) {
    let runtime = Runtime::stepper(seed);
    disk.on_call(Arc::new(|_, phase, _| {
        if phase == Phase::Before {
            yield_point();
        }
    }));
    let fs = Arc::new(disk.clone());
    let db = Db::open_on(fs, runtime.clone(), "/db", settings::tiny()).unwrap();
    (db, runtime)
}

fn stepped(seed: u64) -> (Db, Runtime) {
    stepped_on(&SimFs::new(), seed)
}

fn seed_for(name: &str) -> u64 {
    let seed =
        std::env::var("ESKER_SEED").map_or_else(|_| fastrand::u64(..), |s| s.parse().unwrap());
    println!("ESKER_SEED={seed} cargo test --all-features --test it ingest::{name}");
    seed
}

fn trails(db: &Db) -> Keyspace {
    db.keyspace("trails", KeyspaceOptions::new().merge(Append)).unwrap()
}

/// Appends each event to the trail of its partition.
fn append(db: &Db) -> impl FnMut(&[Event<'_>], &mut Batch) -> HandlerResult + Send + 'static {
    let trails = trails(db);
    move |events, batch| {
        for event in events {
            batch.merge(&trails, event.key, event.bytes).merge(&trails, event.key, " ");
        }
        Ok(())
    }
}

fn trail(db: &Db, partition: &str) -> Vec<String> {
    let text = trails(db).get(partition).unwrap().map_or(Vec::new(), |text| text.to_vec());
    String::from_utf8(text).unwrap().split_whitespace().map(str::to_string).collect()
}

fn options(change: impl FnOnce(&mut IngestOptions)) -> IngestOptions {
    let mut options = IngestOptions::default();
    options.batch_count_max = 7;
    change(&mut options);
    options
}

fn queue(db: &Db, change: impl FnOnce(&mut IngestOptions)) -> IngestQueue {
    IngestQueue::open(db, "events", options(change), append(db)).unwrap()
}

fn numbers(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[test]
fn events_are_applied_in_order_and_what_is_left_by_the_next_session() {
    let disk = SimFs::new();
    let (db, _runtime) = stepped_on(&disk, 1);
    let first = queue(&db, |_| {});
    assert_eq!(first.name(), "events");
    for event in 0..100 {
        first.push("p", format!("{event}")).unwrap();
    }
    first.flush().unwrap();
    assert_eq!(trail(&db, "p"), numbers(0..100));
    let stats = first.stats();
    assert_eq!((stats.accepted, stats.applied, stats.depth), (100, 100, 0));
    assert!(stats.log_bytes <= 3 * 1024, "what was applied is removed: {stats}");
    first.set_drain_rate(Some(0));
    for event in 100..160 {
        first.push("p", format!("{event}")).unwrap();
    }
    assert_eq!(first.stats().depth, 60);
    assert!(first.flush_within(Duration::from_millis(1)).unwrap_err().is_busy());
    drop(first);
    drop(db);
    let (db, _runtime) = stepped_on(&disk, 2);
    let second = queue(&db, |_| {});
    second.push("p", "160").unwrap();
    second.close().unwrap();
    assert_eq!(trail(&db, "p"), numbers(0..161));
    assert_eq!(second.push("p", "late").unwrap_err().kind(), &ErrorKind::Closed);
    second.close().unwrap();
    drop(second);
    db.close().unwrap();
    let names = |dir: &str| disk.list(Path::new(dir)).unwrap();
    assert!(names("/db/queues/events/a").len() + names("/db/queues/events/b").len() <= 2);
}

#[test]
fn queues_have_names_are_apart_and_open_once() {
    let (db, _runtime) = stepped(3);
    let orders = IngestQueue::open(&db, "orders", options(|_| {}), append(&db)).unwrap();
    let visits = queue(&db, |_| {});
    orders.push("o", "1").unwrap();
    visits.push("v", "2").unwrap();
    orders.flush().unwrap();
    visits.flush().unwrap();
    assert_eq!((trail(&db, "o"), trail(&db, "v")), (numbers(1..2), numbers(2..3)));
    let again = IngestQueue::open(&db, "orders", options(|_| {}), append(&db)).unwrap_err();
    assert_eq!(again.kind(), &ErrorKind::Locked);
    drop(orders);
    drop(IngestQueue::open(&db, "orders", options(|_| {}), append(&db)).unwrap());
    let invalid = |name: &str, change: fn(&mut IngestOptions)| {
        let opened = IngestQueue::open(&db, name, options(change), append(&db));
        assert_eq!(opened.unwrap_err().kind(), &ErrorKind::InvalidArgument);
    };
    invalid("../a", |_| {});
    invalid("a", |options| options.bytes_max = 0);
    invalid("a", |options| options.tries_max = 0);
    let large = visits.push("v", vec![7; 12 << 10]).unwrap_err();
    assert_eq!(large.kind(), &ErrorKind::InvalidArgument);
    assert_eq!(visits.push(vec![7; 70_000], "").unwrap_err().kind(), &ErrorKind::InvalidArgument);
    assert_eq!(db.keyspace_names(), ["default", "events.dead", "orders.dead", "trails"]);
}

/// Producers on several threads, in many schedules; the database is closed and opened meanwhile.
#[test]
fn every_event_is_applied_once_and_in_order_in_every_schedule() {
    let seed = seed_for("every_event_is_applied_once_and_in_order_in_every_schedule");
    for seed in seed..seed.saturating_add(30) {
        let mut random = fastrand::Rng::with_seed(seed);
        let disk = SimFs::new();
        let mut pushed = 0;
        for session in 0..3 {
            let (db, runtime) = stepped_on(&disk, seed + session);
            let queue = Arc::new(queue(&db, |options| options.bytes_max = 2000));
            let count = random.u64(1..30);
            let producer = |partition: char| -> Task {
                let queue = queue.clone();
                let durability =
                    if partition == 'a' { Durability::Disk } else { Durability::Process };
                let push = move || {
                    for event in pushed..pushed + count {
                        let partition = partition.to_string();
                        queue.push_with(&partition, format!("{event}"), durability).unwrap();
                    }
                };
                runtime.spawn("producer", Priority::Normal, push).unwrap()
            };
            ['a', 'b', 'c'].map(producer).into_iter().for_each(Task::join);
            pushed += count;
            match random.u8(..3) {
                0 => queue.flush().unwrap(),
                1 => queue.close().unwrap(),
                _ => {}
            }
            drop(queue);
            if random.bool() {
                db.close().unwrap();
            }
        }
        let (db, _runtime) = stepped_on(&disk, seed);
        queue(&db, |_| {}).close().unwrap();
        for partition in ["a", "b", "c"] {
            assert_eq!(trail(&db, partition), numbers(0..pushed), "seed {seed}");
        }
    }
}

#[test]
fn a_full_queue_says_busy_and_keeps_its_word() {
    let (db, runtime) = stepped(4);
    let queue = queue(&db, |options| options.bytes_max = 3000);
    queue.set_drain_rate(Some(1000));
    let mut busy = Vec::new();
    for event in 0..200 {
        while let Err(error) = queue.try_push("p", format!("{event}")) {
            let ErrorKind::Busy { cause: BusyCause::Queue, retry_after } = *error.kind() else {
                panic!("{error}")
            };
            assert_eq!(queue.pressure().value, 1.0);
            busy.push(event);
            runtime.sleep(retry_after);
        }
        assert!(queue.stats().depth_bytes <= 3000);
    }
    busy.dedup();
    assert!(busy.len() >= 2, "it filled up again after it was let down by an eighth: {busy:?}");
    assert!(queue.stats().refused <= 3 * busy.len() as u64, "{}", queue.stats());
    queue.set_drain_rate(Some(0));
    let error = loop {
        match queue.push_within("p", "more", Duration::from_millis(1)) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert!(error.is_busy());
    queue.set_drain_rate(None);
    queue.push("p", "waits for room").unwrap();
    queue.close().unwrap();
    assert_eq!(trail(&db, "p")[..200], numbers(0..200));
}

#[test]
fn no_events_are_taken_while_the_oldest_is_too_old() {
    let (db, runtime) = stepped(5);
    let queue = queue(&db, |options| options.age_max = Duration::from_secs(60));
    queue.set_drain_rate(Some(0));
    queue.try_push("p", "0").unwrap();
    runtime.sleep(Duration::from_secs(50));
    queue.try_push("p", "1").unwrap();
    let lag = queue.stats().lag.unwrap();
    assert!(lag >= Duration::from_secs(50) && lag < Duration::from_secs(51), "{lag:?}");
    runtime.sleep(Duration::from_secs(11));
    assert!(queue.try_push("p", "2").unwrap_err().is_busy());
    queue.set_drain_rate(None);
    queue.push("p", "2").unwrap();
    queue.flush().unwrap();
    assert_eq!((queue.stats().lag, trail(&db, "p")), (None, numbers(0..3)));
    runtime.sleep(Duration::from_secs(100));
    queue.try_push("p", "3").expect("an empty queue has no age");
}

#[test]
fn the_drain_rate_is_kept() {
    let (db, runtime) = stepped(6);
    let queue = queue(&db, |options| options.drain_rate = Some(50));
    for event in 0..100 {
        queue.push("p", format!("{event}")).unwrap();
    }
    let began = runtime.now();
    queue.flush().unwrap();
    let took = (runtime.now() - began).as_secs_f64();
    assert!((1.8..2.3).contains(&took), "{took}");
    let stats = queue.stats();
    assert!((40.0..60.0).contains(&stats.drain_rate), "{stats}");
}

#[test]
fn poison_goes_to_the_dead_letters_and_holds_nothing_else_up() {
    let (db, _runtime) = stepped(7);
    let mut good = append(&db);
    let tries = Arc::new(AtomicU64::new(0));
    let counted = tries.clone();
    let handler = move |events: &[Event<'_>], batch: &mut Batch| -> HandlerResult {
        good(events, batch)?;
        if events.iter().any(|event| event.bytes == b"5") {
            counted.fetch_add(u64::from(events.len() == 1), Ordering::SeqCst);
            return Err("no fives".into());
        }
        assert!(!events.iter().any(|event| event.bytes == b"6"), "six");
        if events.iter().any(|event| event.bytes == b"7") {
            batch.put(&trails_of_nobody(), "k", "v");
        }
        Ok(())
    };
    let queue = IngestQueue::open(&db, "events", options(|o| o.tries_max = 3), handler).unwrap();
    for event in 0..10 {
        queue.push("p", format!("{event}")).unwrap();
    }
    queue.flush().unwrap();
    assert_eq!(trail(&db, "p"), ["0", "1", "2", "3", "4", "8", "9"]);
    assert_eq!(tries.load(Ordering::SeqCst), 3);
    let dead: Vec<_> = queue.dead_letters().map(Result::unwrap).collect();
    let events: Vec<_> = dead.iter().map(|letter| letter.event.as_slice()).collect();
    assert_eq!(events, [b"5", b"6", b"7"]);
    assert!(dead[0].error == "no fives" && dead[0].key == b"p" && dead[0].tries == 3);
    assert!(dead[1].error.contains("panicked: six"), "{}", dead[1].error);
    assert!(dead[2].error.contains("another database"), "{}", dead[2].error);
    let stats = queue.stats();
    assert_eq!((stats.applied, stats.dead, stats.depth, stats.failure), (7, 3, 0, None));
    assert_eq!(queue.dead_letters_keyspace().iter().count(), 3);
}

/// A keyspace of another database.
fn trails_of_nobody() -> Keyspace {
    thread_local! {
        static OTHER: Db = Db::open_on(
            Arc::new(SimFs::new()), Runtime::alone(), "/other", settings::tiny()).unwrap();
    }
    OTHER.with(|db| (**db).clone())
}

/// A database with a disk that can be told to fail.
fn faulty() -> (FaultFs, Db) {
    let fs = FaultFs::over_sim(SimFs::new());
    let db =
        Db::open_on(Arc::new(fs.clone()), Runtime::threads(), "/db", settings::tiny()).unwrap();
    (fs, db)
}

#[test]
fn events_are_taken_while_the_database_refuses_writes() {
    for (name, kind) in [("store", FaultKind::Io), ("sync", FaultKind::FailedSync)] {
        let (fs, db) = faulty();
        let queue = queue(&db, |_| {});
        queue.push("p", "0").unwrap();
        queue.flush().unwrap();
        let mut watch = db.watch_breaker();
        let log = Select::all().name(name).file(".log").within("/db/0");
        fs.arm(Fault::new(kind).on(log));
        let _ = db.put("k", "v").and_then(|()| db.sync());
        assert_eq!(watch.next().unwrap().state, BreakerState::Open);
        assert!(db.put("k", "v").is_err());
        for event in 1..50 {
            queue.push_with("p", format!("{event}"), Durability::Disk).unwrap();
        }
        assert_eq!(queue.breaker().0, BreakerState::Closed);
        let stuck = queue.flush().unwrap_err();
        assert!(matches!(stuck.kind(), ErrorKind::Degraded { .. }), "{stuck}");
        db.resume().unwrap();
        let states: Vec<_> = std::iter::from_fn(|| watch.try_next()).map(|c| c.state).collect();
        assert_eq!(states, [BreakerState::HalfOpen, BreakerState::Closed]);
        queue.flush().unwrap();
        assert_eq!(trail(&db, "p"), numbers(0..50));
        queue.close().unwrap();
        drop(queue);
        db.close().unwrap();
        assert_eq!(watch.next(), None, "the database is closed");
    }
}

/// The commit of a batch fails, so that its outcome is unknown: it takes effect once all the same.
#[test]
fn a_batch_of_unknown_outcome_is_applied_once() {
    for (name, kind) in [
        ("store", FaultKind::Io),
        ("store", FaultKind::ShortWrite),
        ("sync", FaultKind::FailedSync),
    ] {
        for nth in 0..12 {
            let fs = FaultFs::over_sim(SimFs::new());
            let mut options = settings::tiny();
            options.durability = Durability::Disk;
            let disk = Arc::new(fs.clone());
            let db = Db::open_on(disk, Runtime::threads(), "/db", options).unwrap();
            let queue = queue(&db, |options| options.batch_count_max = 3);
            let log = Select::all().name(name).file(".log").within("/db/0");
            fs.arm(Fault::new(kind).on(log).nth(nth));
            for event in 0..40 {
                queue.push("p", format!("{event}")).unwrap();
            }
            while queue.flush().is_err() {
                let _ = db.resume();
            }
            assert_eq!(trail(&db, "p"), numbers(0..40), "{name} {kind:?} {nth}");
        }
    }
}

/// The queue's own log fails: what was accepted is applied once, what was not, once or never.
#[test]
fn a_failure_of_the_queues_log_loses_nothing_that_was_accepted() {
    for (name, kind) in [
        ("store", FaultKind::Io),
        ("store", FaultKind::ShortWrite),
        ("sync", FaultKind::FailedSync),
        ("create_log", FaultKind::Io),
        ("sync_dir", FaultKind::Io),
    ] {
        for nth in 0..12 {
            let (fs, db) = faulty();
            let queue = queue(&db, |options| options.durability = Some(Durability::Disk));
            let mut watch = queue.watch_breaker();
            fs.arm(Fault::new(kind).on(Select::all().name(name).within("queues/")).nth(nth));
            let (mut accepted, mut unknown) = (Vec::new(), Vec::new());
            for event in 0..60 {
                let event = format!("{event}");
                match queue.push("p", &event) {
                    Ok(()) => accepted.push(event),
                    Err(_) => {
                        unknown.push(event);
                        assert_eq!(watch.next().unwrap().state, BreakerState::Open);
                        assert!(queue.push("p", "refused").is_err());
                        db.put("other", "writes go on").unwrap();
                        queue.resume().unwrap();
                        let last = std::iter::from_fn(|| watch.try_next()).last().unwrap();
                        assert_eq!((last.state, last.cause), (BreakerState::Closed, None));
                    }
                }
            }
            let case = format!("{name} {kind:?} {nth}");
            queue.flush().unwrap();
            let found = trail(&db, "p");
            let known: Vec<_> = found.iter().filter(|e| !unknown.contains(e)).cloned().collect();
            assert_eq!(known, accepted, "{case}");
            assert!(found.len() - known.len() <= unknown.len(), "{case}: {found:?}");
            queue.close().unwrap();
        }
    }
}

#[test]
fn a_full_disk_heals_itself() {
    let disk = SimFs::new();
    let fs = FaultFs::over_sim(disk.clone());
    let db =
        Db::open_on(Arc::new(fs.clone()), Runtime::threads(), "/db", settings::tiny()).unwrap();
    let queue = queue(&db, |_| {});
    let mut watch = queue.watch_breaker();
    let make = Select::all().name("create_log").within("queues/");
    fs.arm(Fault::new(FaultKind::NoSpace).on(make).until_healed());
    let mut accepted = 0;
    let full = loop {
        match queue.push("p", format!("{accepted}")) {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), &ErrorKind::NoSpace);
    assert_eq!(watch.next().unwrap().cause, Some(DegradedCause::NoSpace));
    fs.heal();
    assert_eq!(watch.next().unwrap().state, BreakerState::Closed);
    loop {
        // The probe is optimistic: the disk may have been full again meanwhile.
        match queue.push("p", format!("{accepted}")) {
            Ok(()) => break,
            Err(error) => assert_eq!(error.kind(), &ErrorKind::NoSpace),
        }
    }
    queue.close().unwrap();
    assert_eq!(trail(&db, "p"), numbers(0..accepted + 1));
}

/// An error of the database that the handler passes on is no fault of the event.
#[test]
fn trouble_of_the_database_within_the_handler_counts_as_no_try() {
    let (db, _runtime) = stepped(8);
    let left = Arc::new(AtomicU64::new(20));
    let (mut good, counted) = (append(&db), left.clone());
    let handler = move |events: &[Event<'_>], batch: &mut Batch| -> HandlerResult {
        if counted.load(Ordering::SeqCst) > 0 {
            counted.fetch_sub(1, Ordering::SeqCst);
            return Err(esker::Error::busy(BusyCause::Memory, Duration::from_micros(10)).into());
        }
        good(events, batch)
    };
    let queue = IngestQueue::open(&db, "events", options(|o| o.tries_max = 1), handler).unwrap();
    queue.push("p", "0").unwrap();
    queue.flush().unwrap();
    assert_eq!((trail(&db, "p"), queue.stats().dead), (numbers(0..1), 0));
    assert_eq!(left.load(Ordering::SeqCst), 0);
}

#[test]
fn a_dropped_keyspace_of_the_handler_makes_dead_letters_and_a_closed_database_none() {
    let (db, _runtime) = stepped(9);
    let queue = queue(&db, |options| options.retry_delay = Duration::from_micros(5));
    queue.push("p", "0").unwrap();
    queue.flush().unwrap();
    db.drop_keyspace("trails").unwrap();
    queue.push("p", "1").unwrap();
    queue.flush().unwrap();
    assert_eq!(queue.stats().dead, 1);
    queue.set_drain_rate(Some(0));
    queue.push("p", "2").unwrap();
    db.clone().close().unwrap();
    queue.set_drain_rate(None);
    assert_eq!(queue.flush().unwrap_err().kind(), &ErrorKind::Closed);
    assert_eq!(queue.push("p", "3").unwrap_err().kind(), &ErrorKind::Closed);
}

/// Damage to the log where a plain crash does not explain it is refused, in every byte.
#[test]
fn every_flipped_bit_of_a_log_is_seen_or_harmless() {
    let disk = SimFs::new();
    let (db, _runtime) = stepped_on(&disk, 10);
    let first = queue(&db, |options| options.drain_rate = Some(0));
    for event in 0..4 {
        first.push_with("p", format!("{event}"), Durability::Disk).unwrap();
    }
    drop(first);
    db.close().unwrap();
    disk.clear_hook();
    let image = disk.snapshot();
    let dir = ["a", "b"].map(|side| format!("/db/queues/events/{side}"));
    let dir = dir.iter().find(|dir| disk.list(Path::new(dir)).is_ok_and(|all| !all.is_empty()));
    let path = Path::new(dir.unwrap()).join("000001.log");
    let bytes = disk.contents(&path).unwrap();
    let (mut refused, mut cut) = (0, 0);
    for bit in (0..bytes.len().min(600) * 8).step_by(3) {
        let disk = image.crash(&esker::fs::sim::Survival::Everything);
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        disk.set_contents(&path, &bytes).unwrap();
        let (db, _runtime) = stepped_on(&disk, bit as u64);
        match IngestQueue::open(&db, "events", options(|_| {}), append(&db)) {
            Err(error) => {
                assert!(error.is_corruption(), "bit {bit}: {error}");
                refused += 1;
            }
            Ok(queue) => {
                queue.flush().unwrap();
                let found = trail(&db, "p");
                assert_eq!(found, numbers(0..found.len() as u64), "bit {bit}");
                assert!(found.len() >= 3, "bit {bit}: only the last group has no witness");
                cut += u64::from(found.len() == 3);
            }
        }
    }
    println!("{refused} refused, {cut} cut");
    assert!(refused > 100, "{refused} of {cut}");
}

#[test]
fn tickets_and_syncs_of_a_queue() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::builder(dir.path()).filter(settings::filter()).open().unwrap();
    let seen = Arc::new(Mutex::new(0u64));
    let counters = db.keyspace("c", KeyspaceOptions::new().merge(Counter::default())).unwrap();
    let (counted, busy) = (seen.clone(), Arc::new(AtomicBool::new(false)));
    let handler = move |events: &[Event<'_>], batch: &mut Batch| -> HandlerResult {
        assert!(!busy.swap(true, Ordering::SeqCst), "one call at a time");
        *counted.lock().unwrap() += events.len() as u64;
        events.iter().for_each(|event| _ = batch.merge(&counters, event.key, 1));
        busy.store(false, Ordering::SeqCst);
        Ok(())
    };
    let mut options = IngestOptions::default();
    options.durability = Some(Durability::Disk);
    let queue = IngestQueue::open(&db, "events", options, handler).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let queue = &queue;
            scope.spawn(move || {
                let tickets: Vec<_> = (0..500)
                    .map(|_| queue.push_async(format!("{thread}"), [7; 100]).unwrap())
                    .collect();
                tickets.into_iter().for_each(|ticket| ticket.wait().unwrap());
            });
        }
    });
    queue.sync().unwrap();
    queue.close().unwrap();
    assert_eq!(*seen.lock().unwrap(), 2000);
    let text = queue.stats().to_string();
    assert!(text.contains("2000 accepted") && text.contains("2000 applied"), "{text}");
}
