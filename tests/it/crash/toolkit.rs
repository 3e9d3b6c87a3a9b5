//! The parts of the toolkit that promise something over a crash, each crashed after every call
//! between acknowledgement and effect.
//!
//! A part is used by several threads of a stepper, on a simulated disk. What it promised so far is
//! noted with an image of the disk after every call that changes it. Each image is crashed in the
//! ways of [`ends`]; the database is opened again, the producers do again what producers do after a
//! crash, and then every event has taken effect exactly once.

use std::sync::{Arc, Mutex};

use esker::fs::sim::{Image, Phase, SimFs};
use esker::runtime::{Priority, Runtime, Task, yield_point};
use esker::{
    Batcher, BatcherOptions, Coalescer, CoalescerOptions, Counter, Db, Durability, EventId,
    Keyspace, KeyspaceOptions, Outcome,
};

use crate::crash::ends::{End, ends};
use crate::crash::recovery::panic_text;
use crate::crash::{plan, setting};
use crate::settings;

/// What was promised: of each event how, and with what answer.
pub type Promises = Vec<(u64, Durability, u64)>;

/// A moment to crash at.
pub struct Moment {
    image: Image,
    promised: Promises,
    label: String,
}

/// A run under watch.
#[derive(Clone)]
pub struct Watch {
    disk: SimFs,
    promised: Arc<Mutex<Promises>>,
    moments: Arc<Mutex<Vec<Moment>>>,
}

impl Watch {
    fn new(disk: &SimFs) -> Watch {
        let (promised, moments) = (Arc::default(), Arc::default());
        let watch = Watch { disk: disk.clone(), promised, moments };
        let hooked = watch.clone();
        disk.on_call(Arc::new(move |disk, phase, call| {
            if phase != Phase::Before && call.changes() {
                let half = if phase == Phase::Middle { " (half)" } else { "" };
                hooked.note(disk.snapshot(), format!("{call}{half}"));
            }
            yield_point();
        }));
        watch
    }

    fn note(&self, image: Image, label: String) {
        let promised = self.promised.lock().unwrap().clone();
        self.moments.lock().unwrap().push(Moment { image, promised, label });
    }

    pub fn promise(&self, event: u64, durability: Durability, answer: u64) {
        self.promised.lock().unwrap().push((event, durability, answer));
        self.note(self.disk.snapshot(), format!("-- event {event} acknowledged as {durability:?}"));
    }
}

/// Runs `part` on an empty disk, with threads of a stepper, and returns the moments of it.
pub fn moments_of(seed: u64, part: impl FnOnce(&Db, &Runtime, &Watch)) -> Vec<Moment> {
    let disk = SimFs::new();
    let watch = Watch::new(&disk);
    run_on(&disk, seed, |db, runtime| part(db, runtime, &watch));
    disk.clear_hook();
    std::mem::take(&mut *watch.moments.lock().unwrap())
}

pub fn run_on<T>(disk: &SimFs, seed: u64, part: impl FnOnce(&Db, &Runtime) -> T) -> T {
    let runtime = Runtime::stepper(seed);
    let fs = Arc::new(disk.clone());
    let db = Db::open_on(fs, runtime.clone(), super::workload::DIR, settings::tiny()).unwrap();
    part(&db, &runtime)
}

/// Crashes at every moment and lets `check` say what is wrong then. It gets what must have survived.
pub fn crash_all(
    name: &str,
    moments: &[Moment],
    check: impl Fn(&Db, &Runtime, &[(u64, u64)]) -> Result<(), String> + Sync,
) {
    let cases = std::sync::atomic::AtomicU64::new(0);
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let Some(moment) = moments.get(index) else { return };
                for (number, end) in ends(&moment.image, &plan(), index as u64).iter().enumerate() {
                    cases.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let must = |durability| *end == End::Kill || durability == Durability::Disk;
                    let promised = moment.promised.iter().filter(|(_, how, _)| must(*how));
                    let promised: Vec<_> = promised.map(|(e, _, answer)| (*e, *answer)).collect();
                    let disk = end.of(&moment.image);
                    let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        let seed = (index * 64 + number) as u64;
                        run_on(&disk, seed, |db, runtime| check(db, runtime, &promised))
                    }));
                    let checked = checked.unwrap_or_else(|panic| Err(panic_text(&*panic)));
                    if let Err(text) = checked {
                        let label = &moment.label;
                        panic!("{text}\nmoment {index}, after {label}\nend {number}: {end:?}");
                    }
                }
            }
        };
        let workers: Vec<_> = (0..plan().threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
    });
    let cases = cases.into_inner();
    println!("{name}: {} moments, {cases} crashes", moments.len());
    settings::tally(&[("crash cases of the toolkit", cases)]);
}

pub fn seed_of(name: &str) -> u64 {
    let seed = setting("ESKER_CRASH_SEED", 1);
    println!("ESKER_CRASH_SEED={seed} cargo test --all-features --test it crash::toolkit::{name}");
    seed
}

pub fn counters(db: &Db) -> Keyspace {
    db.keyspace("counters", KeyspaceOptions::new().merge(Counter::default())).unwrap()
}

pub fn number(counters: &Keyspace, key: &str) -> i64 {
    counters.get(key).unwrap().map_or(0, |value| Counter::decode(&value).unwrap())
}

pub fn durability_of(event: u64) -> Durability {
    if event.is_multiple_of(3) { Durability::Disk } else { Durability::Process }
}

// Idempotent commits.

const ONCE_EVENTS: u64 = 36;

/// Events of two sources: ids of their own, and numbers that grow.
fn commit_once(db: &Db, counters: &Keyspace, event: u64) -> Outcome {
    let mut batch = db.batch();
    batch.merge(counters, format!("{event}"), 1).merge(counters, "all", 1);
    batch.put(db, format!("{event}"), "seen");
    let id = event.to_be_bytes();
    // The even ones come from one thread, in order.
    let name = match event.is_multiple_of(2) {
        true => EventId::growing("numbered", event + 1),
        false => EventId::new("named", &id),
    };
    batch.commit_once_with(name, durability_of(event)).unwrap()
}

#[test]
fn an_idempotent_commit_takes_effect_once_whatever_crashes() {
    let seed = seed_of("an_idempotent_commit_takes_effect_once_whatever_crashes");
    let moments = moments_of(seed, |db, runtime, watch| {
        let counters = counters(db);
        let thread = |odd: u64| -> Task {
            let (db, counters, watch) = (db.clone(), counters.clone(), watch.clone());
            let task = runtime.spawn("producer", Priority::Normal, move || {
                for event in (0..ONCE_EVENTS).filter(|event| event % 2 == odd) {
                    let outcome = commit_once(&db, &counters, event);
                    assert!(!outcome.is_duplicate());
                    watch.promise(event, durability_of(event), outcome.seqno());
                }
            });
            task.unwrap()
        };
        let threads = [thread(0), thread(1)];
        threads.into_iter().for_each(Task::join);
    });
    crash_all("commit_once", &moments, |db, _, promised| {
        let counters = counters(db);
        let there = |event: u64| number(&counters, &format!("{event}")) == 1;
        let before: Vec<bool> = (0..ONCE_EVENTS).map(there).collect();
        for event in 0..ONCE_EVENTS {
            let outcome = commit_once(db, &counters, event);
            let first = promised.iter().find(|(promised, _)| *promised == event);
            if outcome.is_duplicate() != before[event as usize] {
                return Err(format!(
                    "event {event}: {outcome:?}, effect: {}",
                    before[event as usize]
                ));
            }
            if let Some((_, seqno)) = first
                && (!outcome.is_duplicate()
                    || !event.is_multiple_of(2) && outcome.seqno() != *seqno)
            {
                return Err(format!("event {event} was acknowledged as {seqno}: {outcome:?}"));
            }
            if number(&counters, &format!("{event}")) != 1
                || !db.contains(format!("{event}")).unwrap()
            {
                return Err(format!("event {event} is not there once"));
            }
        }
        match number(&counters, "all") == ONCE_EVENTS as i64 {
            true => Ok(()),
            false => Err(format!("{} effects", number(&counters, "all"))),
        }
    });
}

// The batcher.

const ITEMS: u64 = 40;

#[test]
fn an_item_whose_ticket_resolved_is_there_whole_whatever_crashes() {
    let seed = seed_of("an_item_whose_ticket_resolved_is_there_whole_whatever_crashes");
    let moments = moments_of(seed, |db, runtime, watch| {
        let counters = counters(db);
        let thread = |durability: Durability, first: u64| -> Task {
            let mut options = BatcherOptions::default();
            (options.count_max, options.durability) = (3, Some(durability));
            options.linger = std::time::Duration::from_micros(20);
            let batcher = Batcher::new(db, options).unwrap();
            let (db, counters, watch) = (db.clone(), counters.clone(), watch.clone());
            let task = runtime.spawn("producer", Priority::Normal, move || {
                let mut waiting = std::collections::VecDeque::new();
                for event in (first..ITEMS).step_by(2) {
                    let mut item = db.batch();
                    item.merge(&counters, format!("{event}"), 1).put(
                        &db,
                        format!("{event}"),
                        "seen",
                    );
                    waiting.push_back((event, batcher.add(&item).unwrap()));
                    while waiting.len() > 4 || waiting.front().is_some_and(|(_, t)| t.is_done()) {
                        let (event, ticket) = waiting.pop_front().unwrap();
                        ticket.wait().unwrap();
                        watch.promise(event, durability, 0);
                    }
                }
                // What is left is committed as the batcher is dropped.
            });
            task.unwrap()
        };
        let threads = [thread(Durability::Process, 0), thread(Durability::Disk, 1)];
        threads.into_iter().for_each(Task::join);
        assert_eq!(counters.iter().count() as u64, ITEMS);
    });
    crash_all("batcher", &moments, |db, _, promised| {
        let counters = counters(db);
        for event in 0..ITEMS {
            let (effects, other) =
                (number(&counters, &format!("{event}")), db.contains(format!("{event}")).unwrap());
            let is_promised = promised.iter().any(|(promised, _)| *promised == event);
            if effects != i64::from(other) || is_promised && !other {
                return Err(format!("item {event}: {effects} effects, {other}; {is_promised}"));
            }
        }
        Ok(())
    });
}

// The coalescer.

/// Noted as a promise: never more than so many.
const AT_MOST: u64 = 1000;

#[test]
fn what_a_coalescer_wrote_is_there_once_whatever_crashes() {
    let seed = seed_of("what_a_coalescer_wrote_is_there_once_whatever_crashes");
    let moments = moments_of(seed, |db, _, watch| {
        let mut options = CoalescerOptions::default();
        (options.keys_max, options.durability) = (3, Some(Durability::Disk));
        options.window = std::time::Duration::from_micros(30);
        let views = Coalescer::new(db, &counters(db), options).unwrap();
        let mut added = [0; 5];
        for event in 0..60u64 {
            let key = event * 7 % 5;
            added[key as usize] += 1;
            watch.promise(AT_MOST + key, Durability::Disk, added[key as usize]);
            views.add(format!("{key}"), 1).unwrap();
            if event % 9 == 8 {
                views.flush().unwrap();
                (0..5).for_each(|key| watch.promise(key, Durability::Disk, added[key as usize]));
            }
        }
    });
    crash_all("coalescer", &moments, |db, _, promised| {
        let counters = counters(db);
        for key in 0..5 {
            let last = |event| {
                let of_key = promised.iter().rev().find(|(promised, _)| *promised == event);
                of_key.map_or(0, |(_, count)| *count as i64)
            };
            let (least, most) = (last(key), last(AT_MOST + key));
            let found = number(&counters, &format!("{key}"));
            if !(least..=most).contains(&found) {
                return Err(format!("key {key}: {least} <= {found} <= {most} does not hold"));
            }
        }
        Ok(())
    });
}

#[test]
fn what_a_coalescer_with_a_queue_took_is_there_once_whatever_crashes() {
    let name = "what_a_coalescer_with_a_queue_took_is_there_once_whatever_crashes";
    let seed = seed_of(name);
    let open = |db: &Db| {
        let mut options = CoalescerOptions::default();
        (options.keys_max, options.queue) = (3, Some("views".into()));
        options.window = std::time::Duration::from_micros(30);
        Coalescer::new(db, &counters(db), options).unwrap()
    };
    let moments = moments_of(seed, |db, runtime, watch| {
        let views = Arc::new(open(db));
        let thread = |first: u64| -> Task {
            let (views, watch) = (views.clone(), watch.clone());
            let run = move || {
                for event in (first..ITEMS).step_by(2) {
                    views.add(format!("{event}"), 1).unwrap();
                    views.add("all", 1).unwrap();
                    watch.promise(event, Durability::Process, 0);
                }
            };
            runtime.spawn("adder", Priority::Normal, run).unwrap()
        };
        [thread(0), thread(1)].into_iter().for_each(Task::join);
        drop(views);
        open(db).flush().unwrap();
    });
    crash_all(name, &moments, |db, _, promised| {
        // What was not written is as the coalescer is made.
        drop(open(db));
        let counters = counters(db);
        let mut sum = 0;
        for event in 0..ITEMS {
            let count = number(&counters, &format!("{event}"));
            let is_promised = promised.iter().any(|(promised, _)| *promised == event);
            if count > 1 || is_promised && count != 1 {
                return Err(format!("operand {event} counts {count} times; {is_promised}"));
            }
            sum += count;
        }
        // Of each thread at most one is under way: its own key has it, or both have.
        let all = number(&counters, "all");
        if !(sum - 2..=sum).contains(&all) {
            return Err(format!("{sum} of single keys, {all} in all"));
        }
        Ok(())
    });
}
