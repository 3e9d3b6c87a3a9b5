//! Crashes of a database over several shards at every call, while batches go over shards, keyspaces
//! come and go, and slots move.
//!
//! Step n of the workload is one batch: it puts keys that no other step has, in one shard or in
//! several, and adds 1 to a counter. So what a crash has left says itself which steps are there:
//!
//! 1. Every step is there wholly or not at all, in whatever shards its keys are.
//! 2. What was acknowledged is there: after a kill everything, after a power cut what was on the disk.
//! 3. The counter is the number of the steps that are there: nothing was lost, counted twice or copied
//!    beside a move.
//! 4. If a step is not there, no later one of the same shard alone is.
//! 5. Scans find each key once, in order; and all of it is the same once the moves that were under way
//!    have been carried through, after another open, and after a crash at any call of the recovery and of
//!    these moves.
//!
//! `ESKER_CRASH_SEED` is the first seed, `ESKER_SHARDED_SECONDS` says for how long others are tried, and
//! `ESKER_SHARDED_EVERY` how many calls lie between two moments that are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use esker::fs::sim::{Image, Phase, SimFs, Survival};
use esker::runtime::{Runtime, yield_point};
use esker::{Counter, Durability, ShardedDb, ShardedKeyspace};

use super::{builder, counters};
use crate::settings;

pub const STEPS: u64 = 26;

#[derive(Clone, Default)]
pub struct Promise {
    /// Steps that a kill must leave.
    pub acknowledged: BTreeSet<u64>,
    /// Steps that a power cut must leave.
    pub durable: BTreeSet<u64>,
    /// The shard of each step of one shard.
    pub homes: BTreeMap<u64, usize>,
}

pub struct Moment {
    pub label: String,
    pub image: Image,
    pub promise: Promise,
}

pub fn keys_of(step: u64) -> Vec<String> {
    match step % 3 {
        0 => vec![format!("k{step}")],
        _ => (0..3).map(|part| format!("k{step}-{part}")).collect(),
    }
}

/// What was promised so far, and a moment for every call to the disk that changes it.
#[derive(Clone, Default)]
pub struct Watch {
    pub promise: Arc<Mutex<Promise>>,
    moments: Arc<Mutex<Vec<Moment>>>,
}

impl Watch {
    /// Watches this disk from now on, on which so much was promised already.
    pub fn over(disk: &SimFs, promise: Promise) -> Watch {
        let watch = Watch { promise: Arc::new(Mutex::new(promise)), ..Watch::default() };
        let Watch { promise, moments } = watch.clone();
        disk.on_call(Arc::new(move |disk: &SimFs, phase, call| {
            if phase != Phase::Before && call.changes() {
                let promise = promise.lock().unwrap().clone();
                let (label, image) = (call.to_string(), disk.snapshot());
                moments.lock().unwrap().push(Moment { label, image, promise });
            }
            if phase != Phase::After {
                yield_point();
            }
        }));
        watch
    }

    /// Commits a step.
    pub fn commit(&self, db: &ShardedDb, counts: &ShardedKeyspace, step: u64) {
        let mut batch = db.batch();
        for key in keys_of(step) {
            batch.put(db, key, step.to_string());
        }
        if !step.is_multiple_of(3) {
            batch.merge(counts, "steps", 1);
        }
        let only = step.is_multiple_of(3);
        let home = db.shard_of(&keys_of(step)[0]).unwrap();
        let durability = if step % 4 == 1 { Durability::Disk } else { Durability::Process };
        batch.commit_with(durability).unwrap();
        let mut promise = self.promise.lock().unwrap();
        promise.acknowledged.insert(step);
        if durability == Durability::Disk {
            promise.durable.insert(step);
        }
        if only && db.shard_of(&keys_of(step)[0]).unwrap() == home {
            promise.homes.insert(step, home);
        }
    }

    /// The moments so far. It goes on without them.
    pub fn take(&self) -> Vec<Moment> {
        std::mem::take(&mut *self.moments.lock().unwrap())
    }
}

/// Runs the steps, with moves in the middle; every call to the disk is a moment.
fn moments(shards: usize, seed: u64) -> Vec<Moment> {
    let disk = SimFs::new();
    let watch = Watch::over(&disk, Promise::default());
    let runtime = Runtime::stepper(seed);
    let db = builder(shards).open_on(Arc::new(disk.clone()), runtime).unwrap();
    let counts = counters(&db);
    for step in 0..STEPS {
        match step {
            5 | 15 => drop(db.split((step % 2) as usize % shards).unwrap()),
            9 => drop(db.keyspace("passing", esker::KeyspaceOptions::new()).unwrap()),
            12 => db.wait_for_moves().unwrap(),
            17 => db.drop_keyspace("passing").unwrap(),
            18 => db.abort_moves(),
            20 => db.rebalance().unwrap(),
            _ => {}
        }
        watch.commit(&db, &counts, step);
    }
    db.wait_for_moves().unwrap();
    db.flush().unwrap();
    drop((counts, db));
    disk.clear_hook();
    watch.take()
}

/// The steps that are there, and what is wrong.
pub fn check(db: &ShardedDb, promise: &Promise, killed: bool) -> Result<BTreeSet<u64>, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let mut last = None;
    for entry in db.iter() {
        let (key, value) = entry.map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let (key, value) = (text(&key), text(&value));
        if last.as_ref().is_some_and(|last| *last >= key) {
            return Err(format!("{key} after {last:?}"));
        }
        if db.get(&key).map_err(|error| error.to_string())?.as_deref() != Some(value.as_bytes()) {
            return Err(format!("{key} is in a scan, but not where it is read"));
        }
        last = Some(key.clone());
        found.insert(key, value);
    }
    let mut steps = BTreeSet::new();
    for step in 0..STEPS {
        let there = keys_of(step).iter().filter(|key| found.contains_key(*key)).count();
        match there {
            0 => {}
            all if all == keys_of(step).len() => _ = steps.insert(step),
            part => return Err(format!("{part} keys of step {step}")),
        }
    }
    let must = if killed { &promise.acknowledged } else { &promise.durable };
    if let Some(lost) = must.difference(&steps).next() {
        return Err(format!("step {lost} is lost"));
    }
    for (step, home) in &promise.homes {
        let later =
            promise.homes.iter().find(|(s, h)| *s > step && *h == home && steps.contains(s));
        if let (false, Some((later, _))) = (steps.contains(step), later) {
            return Err(format!(
                "step {later} is there, {step} before it in the same shard is not"
            ));
        }
    }
    let counted = steps.iter().filter(|step| **step % 3 != 0).count() as i64;
    if db.keyspace_names().iter().any(|name| name == "counters") {
        let value = counters(db).get("steps").map_err(|error| error.to_string())?;
        let value = value.map_or(0, |value| Counter::decode(&value).unwrap());
        if value != counted {
            return Err(format!("{value} were counted, {counted} steps are there"));
        }
    } else if counted > 0 {
        return Err("steps without their counter".to_string());
    }
    Ok(steps)
}

/// What was tried.
#[derive(Default)]
pub struct Tried {
    moments: usize,
    crashes: AtomicU64,
    /// Crashes of the recovery after a crash.
    again: AtomicU64,
}

/// Opens what a crash has left and sees that it is as promised; `deep` crashes that in turn.
pub fn crash(
    moment: &Moment,
    end: Option<&Survival>,
    shards: usize,
    deep: Option<&Tried>,
) -> Result<(), String> {
    let disk = end.map_or_else(|| moment.image.kill(), |survival| moment.image.crash(survival));
    let killed = end.is_none();
    let open = |disk: &SimFs| {
        let db = builder(shards).open_on(Arc::new(disk.clone()), Runtime::threads());
        db.map_err(|error| format!("open: {error}"))
    };
    let images = Arc::new(Mutex::new(Vec::new()));
    if deep.is_some() {
        let sink = images.clone();
        disk.on_call(Arc::new(move |disk: &SimFs, phase, call| {
            if phase != Phase::Before && call.changes() {
                sink.lock().unwrap().push((call.to_string(), disk.snapshot()));
            }
        }));
    }
    let db = open(&disk)?;
    let steps = check(&db, &moment.promise, killed)?;
    db.wait_for_moves().map_err(|error| error.to_string())?;
    disk.clear_hook();
    let same = |found: BTreeSet<u64>, when: &str| match found == steps {
        true => Ok(()),
        false => Err(format!("{when}: {found:?}, not {steps:?}")),
    };
    same(check(&db, &moment.promise, killed)?, "after the moves")?;
    db.put("after", "x").map_err(|error| error.to_string())?;
    db.delete("after").map_err(|error| error.to_string())?;
    drop(db);
    same(check(&open(&disk)?, &moment.promise, killed)?, "after another open")?;
    let Some(tried) = deep else { return Ok(()) };
    let images = std::mem::take(&mut *images.lock().unwrap());
    for (index, (call, image)) in images.iter().enumerate().step_by(AGAIN_EVERY) {
        let survivals = image.survivals(0, 1, index as u64);
        let survival = &survivals[index % survivals.len()];
        for (disk, killed_again) in [(image.kill(), true), (image.crash(survival), false)] {
            tried.again.fetch_add(1, Relaxed);
            let when = format!("crashed again after {call}, {survival:?}");
            let db = open(&disk).map_err(|error| format!("{when}: {error}"))?;
            let found = check(&db, &moment.promise, killed && killed_again);
            let found = found.map_err(|error| format!("{when}: {error}"))?;
            // What a kill has left is not on the disk yet, so a power cut may take some of it.
            if killed_again || !killed {
                same(found, &when)?;
            }
        }
    }
    Ok(())
}

/// Of the calls of a recovery that is crashed again every so many-th is.
const AGAIN_EVERY: usize = 23;
/// And every so many-th recovery is.
const DEEP_EVERY: u64 = 40;

fn crash_everywhere(shards: usize) {
    let first = settings::number("ESKER_CRASH_SEED").unwrap_or(1);
    let seconds = settings::number("ESKER_SHARDED_SECONDS").unwrap_or(0);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut tried = Tried::default();
    for seed in first.. {
        crash_seed(shards, seed, &mut tried);
        if Instant::now() >= until {
            break;
        }
    }
    let (cases, again) = (tried.crashes.into_inner(), tried.again.into_inner());
    println!("{shards} shards: {} moments, {cases} crashes, {again} in a row", tried.moments);
    settings::tally(&[("crash cases of several shards", cases + again)]);
    assert!(cases > 100 && again > 20, "{cases}, {again}");
}

fn crash_seed(shards: usize, seed: u64, tried: &mut Tried) {
    // Opening several engines with threads takes a while: a sample by default.
    let every = settings::number("ESKER_SHARDED_EVERY").unwrap_or(7) as usize;
    let moments = moments(shards, seed);
    tried.moments += moments.len();
    let (tried, next) = (&*tried, AtomicUsize::new(seed as usize % every));
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let index = next.fetch_add(every, Relaxed);
                let Some(moment) = moments.get(index) else { return };
                let survivals = moment.image.survivals(0, 1, index as u64);
                let sample = survivals.iter().skip(index % 3).step_by(3);
                for end in [None].into_iter().chain(sample.map(Some)) {
                    let count = tried.crashes.fetch_add(1, Relaxed);
                    let deep = count.is_multiple_of(DEEP_EVERY).then_some(tried);
                    if let Err(text) = crash(moment, end, shards, deep) {
                        let label = &moment.label;
                        panic!("{text}\nseed {seed}, moment {index}, after {label}\nend: {end:?}");
                    }
                }
            }
        };
        let workers: Vec<_> = (0..settings::workers()).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
    });
}

#[test]
fn one_shard() {
    crash_everywhere(1);
}

#[test]
fn three_shards() {
    crash_everywhere(3);
}

#[test]
fn eight_shards() {
    crash_everywhere(8);
}
