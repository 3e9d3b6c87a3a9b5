//! The part of the score for the places that only a database over several shards comes to: the slot map,
//! the marks of its shards, and the logs that an open writes anew. Each is left out in turn, or a rename
//! put after the next call, while a database is created, splits a shard, makes a checkpoint, is killed,
//! opened again and written to; the crashes of [`crash`](super::crash), at every call of all this, must
//! notice.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use esker::ShardedDb;
use esker::fs::intercept::Select;
use esker::fs::sabotage::{Damage, SabotageFs};
use esker::fs::sim::{Image, SimFs};
use esker::fs::{Fs, LENGTH_CHECKS, without_length_check};
use esker::runtime::Runtime;

use super::crash::{Moment, Promise, Watch, check, crash};
use super::{builder, counters, open};
use crate::crash::damage::in_parallel;
use crate::score::{Score, Scored, has_place};

const SHARDS: usize = 3;
const COPY: &str = "/copy";
const STEPS: u64 = 20;
/// The process is killed after these steps: with joint commits that no disk has, before, in and after
/// moves.
const KILLED_AFTER: [u64; 4] = [2, 7, 14, 19];
/// So many steps follow when it was opened again.
const STEPS_AFTER: u64 = 4;

/// What a run came to, and all that is to be crashed.
#[derive(Default)]
struct Run {
    disks: Vec<SabotageFs>,
    moments: Vec<Moment>,
    /// When the checkpoint was said to be there, and what is in it.
    copied: Option<(Image, Promise)>,
    killed: Vec<(Image, Promise, u64)>,
}

impl Run {
    fn wrap(&mut self, disk: &SimFs, wrap: &impl Fn(SimFs) -> SabotageFs) -> Arc<dyn Fs> {
        let fs = wrap(disk.clone());
        self.disks.push(fs.clone());
        Arc::new(fs)
    }

    fn damaged(&self) -> u64 {
        self.disks.iter().map(SabotageFs::damaged).sum()
    }

    /// From nothing to the last step.
    fn create(&mut self, seed: u64, wrap: &impl Fn(SimFs) -> SabotageFs) {
        let disk = SimFs::new();
        let watch = Watch::over(&disk, Promise::default());
        let fs = self.wrap(&disk, wrap);
        let db = builder(SHARDS).open_on(fs, Runtime::stepper(seed)).unwrap();
        let counts = counters(&db);
        let promised = || watch.promise.lock().unwrap().clone();
        for step in 0..STEPS {
            match step {
                5 => drop(db.split(0).unwrap()),
                9 => db.wait_for_moves().unwrap(),
                11 => {
                    db.checkpoint(COPY).unwrap();
                    self.copied = Some((disk.snapshot(), promised()));
                }
                12 => drop(db.split(1).unwrap()),
                16 => db.wait_for_moves().unwrap(),
                _ => {}
            }
            watch.commit(&db, &counts, step);
            if KILLED_AFTER.contains(&step) {
                self.killed.push((disk.snapshot(), promised(), step));
            }
        }
        disk.clear_hook();
        self.moments.extend(watch.take());
        drop((counts, db));
    }

    /// From a kill until some more steps are done.
    fn open_again(&mut self, killed: usize, seed: u64, wrap: &impl Fn(SimFs) -> SabotageFs) {
        let (image, promise, step) = self.killed[killed].clone();
        let disk = image.kill();
        let watch = Watch::over(&disk, promise);
        let fs = self.wrap(&disk, wrap);
        let db = builder(SHARDS).open_on(fs, Runtime::stepper(seed)).unwrap();
        let counts = counters(&db);
        for step in step + 1..=step + STEPS_AFTER {
            watch.commit(&db, &counts, step);
        }
        db.wait_for_moves().unwrap();
        disk.clear_hook();
        self.moments.extend(watch.take());
        drop((counts, db));
    }
}

/// Runs it all behind such disks, as far as it comes; false if something fails on the way.
fn run(wrap: impl Fn(SimFs) -> SabotageFs + Sync) -> (Run, bool) {
    let run = Mutex::new(Run::default());
    // A thread that the stepper does not know, as each of these does not know that of another.
    let on_a_thread = |what: &(dyn Fn(&mut Run) + Sync)| {
        let work = || what(&mut run.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        std::thread::scope(|scope| scope.spawn(work).join().is_ok())
    };
    let mut is_done = on_a_thread(&|run| run.create(1, &wrap));
    for killed in 0..KILLED_AFTER.len() {
        is_done = is_done && on_a_thread(&|run| run.open_again(killed, 2 + killed as u64, &wrap));
    }
    (run.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()), is_done)
}

/// The first violation that a crash shows, and how many crashes were tried.
fn violation(run: &Run) -> (usize, Option<String>) {
    let (first, cases) = (Mutex::new(None), Mutex::new(0));
    let try_all = |at: usize| {
        let moment = &run.moments[at];
        let survivals = moment.image.survivals(2, 1, at as u64);
        for end in [None].into_iter().chain(survivals.iter().map(Some)) {
            if first.lock().unwrap().is_some() {
                return;
            }
            *cases.lock().unwrap() += 1;
            if let Err(text) = crash(moment, end, SHARDS, None) {
                let text = format!("{text}; moment {at}, after {}, {end:?}", moment.label);
                first.lock().unwrap().get_or_insert(text);
            }
        }
    };
    in_parallel(run.moments.len(), Duration::MAX, try_all);
    let first = first.into_inner().unwrap();
    let first = first.or_else(|| run.copied.as_ref().and_then(violation_of_copy));
    (cases.into_inner().unwrap(), first)
}

/// A checkpoint that was said to be there is, whatever happens.
fn violation_of_copy((image, promise): &(Image, Promise)) -> Option<String> {
    image.survivals(4, 4, 1).iter().find_map(|survival| {
        let disk: Arc<dyn Fs> = Arc::new(image.crash(survival));
        let copy = ShardedDb::builder(COPY).options(esker::Options::tiny()).create(false);
        let copy = copy.open_on(disk, Runtime::threads()).map_err(|error| error.to_string());
        let found = copy.and_then(|copy| check(&copy, promise, true));
        Some(format!("{COPY}: {}, {survival:?}", found.err()?))
    })
}

#[test]
fn every_sync_and_rename_of_several_shards_that_is_left_out_or_late_is_noticed() {
    let (whole, is_done) = run(|disk| SabotageFs::none(Arc::new(disk)));
    assert!(is_done);
    for place in whole.disks.iter().flat_map(SabotageFs::seen).map(|(place, _)| place) {
        let counts = matches!(place.1, "sync" | "sync_dir" | "rename" | "set_len");
        assert!(!counts || has_place(place.0, place.1), "not in a score: {place:?}");
    }
    let (cases, noticed) = violation(&whole);
    println!("{} moments, {cases} crashes", whole.moments.len());
    assert_eq!(noticed, None, "nothing was left out");

    let mut score = Score::new(&[]);
    score.leave_out(Scored::Shards, |site, call, damage: Damage| {
        let on = Select::all().site(site).name(call);
        let (run, is_done) = run(|disk| SabotageFs::all(Arc::new(disk), damage, on.clone()));
        let noticed = violation(&run).1;
        (run.damaged(), noticed.or_else(|| (!is_done).then(|| "the run itself failed".to_string())))
    });
    score.check();
}

/// A length check is noticed if without it a slot map of another length is accepted, or worse.
#[test]
fn every_length_check_of_a_slot_map_that_is_left_out_is_noticed() {
    let disk = SimFs::new();
    drop(open(&disk, SHARDS));
    let path = Path::new("/db/SHARDS");
    let bytes = disk.contents(path).unwrap();
    let lens = (0..bytes.len() + 80).filter(|len| *len != bytes.len());
    let accepted = |len: usize| {
        let mut bytes = bytes.clone();
        bytes.resize(len, 0);
        let disk = disk.snapshot().kill();
        disk.set_contents(path, &bytes).unwrap();
        let opened = catch_unwind(AssertUnwindSafe(|| {
            builder(SHARDS).open_on(Arc::new(disk), Runtime::threads()).map(drop)
        }));
        match opened {
            Ok(Err(error)) if error.is_corruption() => None,
            Ok(other) => Some(format!("{len} bytes: {other:?} instead of Corruption")),
            Err(_) => Some(format!("{len} bytes: a panic instead of Corruption")),
        }
    };
    assert_eq!(lens.clone().find_map(accepted), None, "with all checks");
    let mut score = Score::new(&[]);
    for name in LENGTH_CHECKS.into_iter().filter(|name| name.starts_with("shards.")) {
        // From the longest one: those that are too long are accepted.
        let noticed = without_length_check(name, || lens.clone().rev().find_map(accepted));
        score.note(format!("length {name}"), &format!("{} lengths", lens.clone().count()), noticed);
    }
    score.check();
}
