//! Idempotent and conditional commits: an event takes effect once, and a guard holds at the
//! commit's own place in the order, against plain writes too.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use esker::fs::fault::{Fault, FaultFs, FaultKind};
use esker::fs::intercept::Select;
use esker::fs::sim::{Phase, SimFs};
use esker::runtime::{Priority, Runtime, yield_point};
use esker::{
    Append, Counter, Db, Durability, ErrorKind, EventId, Keyspace, KeyspaceOptions, Outcome,
    TokenWindow,
};

use crate::finally::Finally;
use crate::settings;

fn counters(db: &Db) -> Keyspace {
    db.keyspace("counters", KeyspaceOptions::new().merge(Counter::default())).unwrap()
}

fn count(counters: &Keyspace, key: &str) -> i64 {
    counters.get(key).unwrap().map_or(0, |value| Counter::decode(&value).unwrap())
}

/// Commits an event that adds 1 to a counter of its own and to that of all.
fn apply(db: &Db, counters: &Keyspace, event: EventId<'_>, key: &str) -> Outcome {
    let mut batch = db.batch();
    batch.merge(counters, key, 1).merge(counters, "all", 1);
    batch.commit_once(event).unwrap()
}

fn seed_of(name: &str) -> u64 {
    let seed =
        std::env::var("ESKER_SEED").map_or_else(|_| fastrand::u64(..), |s| s.parse().unwrap());
    println!("ESKER_SEED={seed} cargo test --all-features --test it once::{name}");
    seed
}

#[test]
fn an_event_takes_effect_once_also_after_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let event = EventId::new("orders", "0001");
    let first = {
        let db = Db::builder(dir.path()).filter(settings::filter()).open().unwrap();
        let counters = counters(&db);
        let first = apply(&db, &counters, event, "one");
        assert!(matches!(first, Outcome::Applied { .. }));
        assert_eq!(
            apply(&db, &counters, event, "one"),
            Outcome::Duplicate { seqno: first.seqno() }
        );
        assert!(!apply(&db, &counters, EventId::new("orders", "0002"), "two").is_duplicate());
        assert!(!apply(&db, &counters, EventId::new("refunds", "0001"), "three").is_duplicate());
        first
    };
    for _ in 0..2 {
        let db = Db::builder(dir.path()).filter(settings::filter()).open().unwrap();
        let counters = counters(&db);
        assert_eq!(
            apply(&db, &counters, event, "one"),
            Outcome::Duplicate { seqno: first.seqno() }
        );
        assert_eq!((count(&counters, "one"), count(&counters, "all")), (1, 3));
        db.close().unwrap();
    }
}

#[test]
fn a_growing_source_knows_its_last_number() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::builder(dir.path()).filter(settings::filter()).open().unwrap();
    let counters = counters(&db);
    let commit = |number| apply(&db, &counters, EventId::growing("sensor", number), "n");
    assert!(!commit(5).is_duplicate());
    let last = commit(9);
    for number in [0, 5, 7, 9] {
        assert_eq!(commit(number), Outcome::Duplicate { seqno: last.seqno() });
    }
    assert!(!commit(10).is_duplicate());
    assert_eq!(count(&counters, "all"), 3);
}

#[test]
fn tokens_are_hidden_and_cannot_be_reached() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::builder(dir.path()).filter(settings::filter()).open().unwrap();
    db.batch().commit_once(EventId::new("a", "b")).unwrap();
    assert_eq!(db.keyspace_names(), ["default"]);
    for name in ["\0tokens", "\0sources"] {
        assert!(db.keyspace(name, KeyspaceOptions::new()).is_err());
        assert!(db.drop_keyspace(name).is_err());
    }
    for (source, id) in [("", "id"), ("s", "")] {
        let long = "x".repeat(1025);
        let id = if id.is_empty() { long.as_str() } else { id };
        let error = db.batch().commit_once(EventId::new(source, id)).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
    }
}

/// What is refused, or a duplicate, leaves nothing behind in the batch.
#[test]
fn a_batch_that_was_not_committed_is_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::builder(dir.path()).filter(settings::filter()).open().unwrap();
    db.put("taken", "1").unwrap();
    let mut batch = db.batch();
    batch.require_absent(&db, "taken").put(&db, "k", "v");
    let error = batch.commit_once(EventId::new("s", "1")).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Conflict, "{error}");
    assert_eq!(batch.len(), 1);
    db.delete("taken").unwrap();
    batch.commit().unwrap();
    assert!(batch.is_empty());
    // The token was not part of it.
    let mut batch = db.batch();
    batch.put(&db, "k", "w");
    assert!(!batch.commit_once(EventId::new("s", "1")).unwrap().is_duplicate());
    batch.put(&db, "k", "x");
    assert!(batch.commit_once(EventId::new("s", "1")).unwrap().is_duplicate());
    assert!(batch.is_empty());
    assert_eq!(db.get("k").unwrap().unwrap(), *"w");
}

/// Every thread commits every event: one is first, all others hear of it.
fn race(open: impl Fn() -> Db, runtime: &Runtime, events: usize, threads: usize) {
    let db = open();
    let counters = counters(&db);
    let tasks: Vec<_> = (0..threads)
        .map(|thread| {
            let (db, counters) = (db.clone(), counters.clone());
            let (sender, outcomes) = std::sync::mpsc::channel();
            let task = runtime.spawn("racer", Priority::Normal, move || {
                for number in 0..events {
                    // Half of them in the opposite order.
                    let number = if thread % 2 == 0 { number } else { events - 1 - number };
                    let (id, key) = (number.to_be_bytes(), format!("event {number}"));
                    let outcome = apply(&db, &counters, EventId::new("source", &id), &key);
                    sender.send((number, outcome)).unwrap();
                }
            });
            (task.unwrap(), outcomes)
        })
        .collect();
    let mut of_events: HashMap<usize, Vec<Outcome>> = HashMap::new();
    for (task, outcomes) in tasks {
        task.join();
        outcomes.iter().for_each(|(number, o)| of_events.entry(number).or_default().push(o));
    }
    for (number, outcomes) in of_events {
        let first: Vec<_> = outcomes.iter().filter(|o| !o.is_duplicate()).collect();
        assert_eq!(first.len(), 1, "event {number}: {outcomes:?}");
        assert!(outcomes.iter().all(|o| o.seqno() == first[0].seqno()), "{outcomes:?}");
        assert_eq!(count(&counters, &format!("event {number}")), 1);
    }
    assert_eq!(count(&counters, "all"), events as i64);
}

#[test]
fn of_racing_threads_one_is_first() {
    let dir = tempfile::tempdir().unwrap();
    race(
        || Db::builder(dir.path()).filter(settings::filter()).open().unwrap(),
        &Runtime::threads(),
        3000,
        4,
    );
}

#[test]
fn of_racing_threads_one_is_first_in_every_schedule() {
    let first = seed_of("of_racing_threads_one_is_first_in_every_schedule");
    for seed in first..first + 40 {
        let runtime = Runtime::stepper(seed);
        let fs = SimFs::new();
        fs.on_call(Arc::new(|_, phase, _| {
            if phase == Phase::Before {
                yield_point();
            }
        }));
        let open = || {
            let fs = Arc::new(fs.clone());
            Db::open_on(fs, runtime.clone(), "/db", settings::tiny()).unwrap()
        };
        race(open, &runtime, 12, 3);
    }
}

/// Random events over random sessions, beside a map of what was first.
#[test]
fn tokens_agree_with_a_model() {
    let seed = seed_of("tokens_agree_with_a_model");
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut model: HashMap<(u8, Option<u8>), (u64, u64)> = HashMap::new();
    let mut effects = 0;
    for _ in 0..8 {
        let db = Db::open_with(dir.path(), settings::tiny()).unwrap();
        let counters = counters(&db);
        for _ in 0..400 {
            let (source, number) = (random.u8(..4), random.u8(..));
            let (name, is_growing) = (format!("source {source}"), source == 3);
            let id = [number];
            let event = match is_growing {
                true => EventId::growing(&name, u64::from(number)),
                false => EventId::new(&name, &id),
            };
            let outcome = apply(&db, &counters, event, "n");
            let key = (source, (!is_growing).then_some(number));
            let known = model.get(&key).filter(|(last, _)| u64::from(number) <= *last);
            assert_eq!(outcome.is_duplicate(), known.is_some(), "{event:?}");
            match known {
                Some((_, seqno)) => assert_eq!(outcome.seqno(), *seqno, "{event:?}"),
                None => {
                    effects += 1;
                    model.insert(key, (u64::from(number), outcome.seqno()));
                }
            }
        }
        assert_eq!(count(&counters, "all"), effects);
        if random.bool() {
            db.close().unwrap();
        }
    }
}

/// Tokens beyond the window go: by compactions that pass, and by dropping whole tables.
#[test]
fn tokens_beyond_their_window_are_collected() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = settings::tiny();
    options.token_window = TokenWindow::new(Duration::from_secs(3600), 160);
    let db = Db::open_with(dir.path(), options).unwrap();
    let commit = |id: u64| {
        // Ascending ids: old tables are never compacted again by themselves.
        db.batch().commit_once(EventId::new("source", &id.to_be_bytes())).unwrap()
    };
    for id in 0..4000 {
        assert!(!commit(id).is_duplicate());
    }
    for id in 3840..4000 {
        assert!(commit(id).is_duplicate(), "{id} is within the window");
    }
    assert!(!commit(0).is_duplicate(), "and 0 is not");
    db.flush().unwrap();
    db.settle().unwrap();
    let kept = |db: &Db| {
        let stats = db.stats();
        stats.keyspaces.iter().find(|k| k.name == "\0tokens").unwrap().table_entries
    };
    println!("{} of 4001 tokens are left", kept(&db));
    assert!(kept(&db) < 4001, "compactions leave out the dead");
    drop(db);

    // By time: everything is dead at once, and dropped unread.
    let runtime = Runtime::stepper(1);
    let fs = Arc::new(SimFs::new());
    let mut options = settings::tiny();
    options.token_window = TokenWindow::new(Duration::from_secs(16), u64::MAX);
    let db = Db::open_on(fs.clone(), runtime.clone(), "/db", options.clone()).unwrap();
    let commit = |db: &Db, id: u64| {
        db.batch().commit_once(EventId::new("source", &id.to_be_bytes())).unwrap()
    };
    let first = commit(&db, 0).seqno();
    for id in 1..300 {
        commit(&db, id);
    }
    runtime.sleep(Duration::from_secs(8));
    commit(&db, 300);
    drop(db);
    // The clock stands while the database is closed, and goes on from where it was.
    let runtime = Runtime::stepper(2);
    let db = Db::open_on(fs, runtime.clone(), "/db", options).unwrap();
    runtime.sleep(Duration::from_secs(3));
    assert_eq!(commit(&db, 0), Outcome::Duplicate { seqno: first });
    runtime.sleep(Duration::from_secs(2));
    commit(&db, 301);
    runtime.sleep(Duration::from_secs(16));
    commit(&db, 302);
    runtime.sleep(Duration::from_secs(2));
    commit(&db, 303);
    assert!(!commit(&db, 0).is_duplicate());
    db.flush().unwrap();
    db.settle().unwrap();
    println!("{} of 305 tokens are left", kept(&db));
    assert!(kept(&db) < 30);
}

/// An event whose outcome a failure left unknown is there once after it is committed again.
#[test]
fn a_commit_of_unknown_outcome_may_be_repeated() {
    let faults = [
        ("store", FaultKind::Io),
        ("store", FaultKind::ShortWrite),
        ("sync", FaultKind::FailedSync),
    ];
    for (name, kind) in faults {
        let mut unknown = 0;
        for nth in 0..12 {
            let sim = SimFs::new();
            let fs = FaultFs::over_sim(sim.clone());
            let on = Select::all().name(name).file(".log");
            let fault = Fault::new(kind).on(on).nth(nth);
            let db = Db::open_on(Arc::new(fs.clone()), Runtime::threads(), "/db", settings::tiny());
            let db = db.unwrap();
            let counters = counters(&db);
            let commit = |number: u64| {
                let mut batch = db.batch();
                batch.merge(&counters, "all", 1);
                batch.commit_once_with(EventId::new("s", &number.to_be_bytes()), Durability::Disk)
            };
            commit(0).unwrap();
            fs.arm(fault);
            for number in 1..8 {
                if commit(number).is_err() {
                    unknown += 1;
                    let _ = db.resume();
                    commit(number).unwrap();
                }
                assert!(commit(number).unwrap().is_duplicate());
            }
            assert_eq!(count(&counters, "all"), 8, "{name} {nth}");
        }
        println!("{name} {kind:?}: {unknown} commits failed and were repeated");
        assert!(unknown > 0);
    }
}

// Guards.

#[test]
fn guards_say_what_must_hold() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::builder(dir.path()).filter(settings::filter()).open().unwrap();
    let counters = counters(&db);
    let conflict = |result: esker::Result<()>| {
        assert_eq!(result.unwrap_err().kind(), &ErrorKind::Conflict);
    };
    db.put_if_absent("k", "1").unwrap();
    conflict(db.put_if_absent("k", "2"));
    db.compare_and_swap("k", Some(b"1"), Some(b"2")).unwrap();
    conflict(db.compare_and_swap("k", Some(b"1"), Some(b"3")));
    conflict(db.compare_and_swap("k", None, Some(b"3")));
    db.compare_and_swap("k", Some(b"2"), None).unwrap();
    assert_eq!(db.get("k").unwrap(), None);
    db.compare_and_swap("k", None, Some(b"4")).unwrap();

    counters.merge("c", 5).unwrap();
    counters.merge("c", 2).unwrap();
    counters.compare_and_swap("c", Some(&7i64.to_le_bytes()), None).unwrap();

    let snapshot = db.snapshot();
    let mut batch = db.batch();
    batch.require_unchanged(&db, "k", &snapshot).require_unchanged(&db, "new", &snapshot);
    batch.put(&db, "new", "1");
    batch.commit().unwrap();
    batch.require_unchanged(&db, "k", &snapshot).require_unchanged(&db, "new", &snapshot);
    batch.put(&db, "other", "1");
    conflict(batch.commit());
    assert_eq!((batch.len(), db.get("other").unwrap()), (1, None));
    batch.clear();
    // Without operations it is a question.
    batch.require_value(&db, "k", "4").commit().unwrap();
    batch.require_value(&db, "k", "5");
    conflict(batch.commit());
}

/// Plain writers and conditional ones on one key, each noting in the same batch what it did: a
/// conditional write must follow in the order exactly the value that it was conditional on.
fn contend(db: &Db, runtime: &Runtime, rounds: usize, threads: usize) -> usize {
    let log = db.keyspace("alog", KeyspaceOptions::new().merge(Append)).unwrap();
    db.put("k", "start").unwrap();
    log.merge("log", "|start").unwrap();
    let tasks: Vec<_> = (0..threads)
        .map(|thread| {
            let (db, log) = (db.clone(), log.clone());
            let task = runtime.spawn("contender", Priority::Normal, move || {
                for round in 0..rounds {
                    let (new, mut batch) = (format!("{thread}.{round}"), db.batch());
                    if thread == 0 {
                        batch.put(&db, "k", &new).merge(&log, "log", format!("|{new}").as_str());
                        batch.commit().unwrap();
                        continue;
                    }
                    let old = db.get("k").unwrap().unwrap();
                    batch.require_value(&db, "k", &old).put(&db, "k", &new);
                    let old = String::from_utf8(old.to_vec()).unwrap();
                    batch.merge(&log, "log", format!("|{old}>{new}").as_str());
                    match batch.commit() {
                        Ok(()) => {}
                        Err(error) => assert_eq!(error.kind(), &ErrorKind::Conflict, "{error}"),
                    }
                }
            });
            task.unwrap()
        })
        .collect();
    tasks.into_iter().for_each(esker::runtime::Task::join);
    let log = String::from_utf8(log.get("log").unwrap().unwrap().to_vec()).unwrap();
    let mut last = "";
    let mut swaps = 0;
    for entry in log.split('|').skip(1) {
        let (old, new) = entry.split_once('>').unwrap_or((last, entry));
        assert_eq!(old, last, "{entry} came after {last}");
        swaps += usize::from(entry.contains('>'));
        last = new;
    }
    assert_eq!(db.get("k").unwrap().unwrap(), *last);
    swaps
}

#[test]
fn a_guard_holds_at_the_commits_place_against_plain_writes() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::builder(dir.path()).filter(settings::filter()).open().unwrap();
    let swaps = contend(&db, &Runtime::threads(), 2000, 4);
    println!("{swaps} of 6000 swaps succeeded");
    assert!(swaps > 0);
}

#[test]
fn a_guard_holds_in_every_schedule() {
    let first = seed_of("a_guard_holds_in_every_schedule");
    let mut swaps = 0;
    for seed in first..first + 60 {
        let runtime = Runtime::stepper(seed);
        let fs = SimFs::new();
        fs.on_call(Arc::new(|_, phase, _| {
            if phase == Phase::Before {
                yield_point();
            }
        }));
        let db = Db::open_on(Arc::new(fs), runtime.clone(), "/db", settings::tiny()).unwrap();
        swaps += contend(&db, &runtime, 6, 3);
    }
    println!("{swaps} of 720 swaps succeeded");
    assert!(swaps > 0);
}

/// A hundred threads' worth of plain writers do not wait for guards, and guards come through.
#[test]
fn guards_come_through_beside_plain_writers() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::builder(dir.path()).filter(settings::filter()).open().unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                db.put(format!("plain {}", number % 100_000), "value").unwrap();
            }
        });
        let _end = Finally(|| stop.store(true, Ordering::Relaxed));
        for number in 0..2000u32 {
            db.put_if_absent(format!("slot {number}"), "mine").unwrap();
            assert!(db.put_if_absent(format!("slot {number}"), "theirs").is_err());
        }
    });
    assert_eq!(db.prefix("slot ").count(), 2000);
}

#[test]
fn an_event_may_be_committed_without_waiting_or_only_for_a_while() {
    let db =
        Db::open_on(Arc::new(SimFs::new()), Runtime::threads(), "/db", settings::tiny()).unwrap();
    let counters = counters(&db);
    let mut batch = db.batch();
    let event = EventId::new("source", "1");
    batch.merge(&counters, "k", 1);
    let (first, ticket) = batch.commit_once_async(event).unwrap();
    assert!(!first.is_duplicate() && batch.is_empty());
    ticket.wait().unwrap();
    batch.merge(&counters, "k", 1);
    let (again, ticket) = batch.commit_once_async(event).unwrap();
    ticket.wait().unwrap();
    assert_eq!(again, Outcome::Duplicate { seqno: first.seqno() });
    batch.merge(&counters, "k", 1);
    let again = batch.commit_once_within(event, Duration::from_secs(1)).unwrap();
    assert_eq!(again, Outcome::Duplicate { seqno: first.seqno() });
    batch.merge(&counters, "k", 1);
    let second = EventId::new("source", "2");
    assert!(!batch.commit_once_within(second, Duration::ZERO).unwrap().is_duplicate());
    assert_eq!(count(&counters, "k"), 2);
}
