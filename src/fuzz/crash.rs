//! The bytes choose operations, the call at which the machine stops, and what survives; what opens
//! afterwards must be a state that was promised.
//!
//! One thread commits, so the states are those after each commit, in order: at least the last one
//! acknowledged as durable must be there after a power cut (after the end of the process, the last
//! one acknowledged at all), at most the one that had begun.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::db::Db;
use crate::db::keyspace::Keyspace;
use crate::fs::sim::{Hole, Image, Phase, SimFs, Survival, TEAR_UNITS};
use crate::fuzz::Input;
use crate::fuzz::operations::{Model, change, contents, open, options};
use crate::options::{Durability, Options};
use crate::runtime::{Runtime, yield_point};

/// More commits than this make an input slow and nothing else.
const COMMITS_MAX: usize = 120;

/// What was promised so far, as numbers of states.
#[derive(Default)]
struct Promised {
    begun: AtomicUsize,
    process: AtomicUsize,
    disk: AtomicUsize,
}

/// A moment: the disk, and what was promised.
struct Moment {
    image: Image,
    begun: usize,
    process: usize,
    disk: usize,
}

#[derive(Default)]
struct Watch {
    promised: Promised,
    /// Calls that are left until the machine stops.
    left: AtomicUsize,
    moment: Mutex<Option<Moment>>,
}

impl Watch {
    fn shoot(&self, disk: &SimFs) {
        let Promised { begun, process, disk: durable } = &self.promised;
        let moment = Moment {
            image: disk.snapshot(),
            begun: begun.load(Ordering::SeqCst),
            process: process.load(Ordering::SeqCst),
            disk: durable.load(Ordering::SeqCst),
        };
        self.moment.lock().expect("nobody panics with it").get_or_insert(moment);
    }

    fn is_over(&self) -> bool {
        self.moment.lock().expect("nobody panics with it").is_some()
    }
}

pub(super) fn run(input: &[u8]) {
    let mut input = Input(input);
    let (options, seed) = (options(input.u8()), u64::from(input.u8()));
    let (calls, survives) = (usize::from(input.u16()), survival(&mut input));
    let disk = SimFs::new();
    // The keyspaces are there before anything is watched.
    drop(open(&disk, Runtime::stepper(seed), &options));
    let watch = Arc::new(Watch { left: AtomicUsize::new(calls % 4096 + 1), ..Watch::default() });
    let hook = Arc::clone(&watch);
    disk.on_call(Arc::new(move |disk, phase, call| {
        let counts = phase != Phase::Before && call.changes();
        if counts && hook.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, minus_one) == Ok(1)
        {
            hook.shoot(disk);
        }
        yield_point();
    }));
    let states = commits(&mut input, &disk, &watch, seed, &options);
    disk.clear_hook();
    watch.shoot(&disk);
    let moment = watch.moment.lock().expect("nobody panics with it").take();
    let moment = moment.expect("taken at the end at the latest");
    let (left, at_least) = match &survives {
        None => (moment.image.kill(), moment.process),
        Some(survival) => (moment.image.crash(survival), moment.disk),
    };
    let (_db, keyspaces) = open(&left, Runtime::stepper(seed), &options);
    let found = keyspaces.each_ref().map(contents);
    let allowed = &states[at_least..=moment.begun];
    assert!(allowed.contains(&found), "{survives:?}: none of {at_least} to {}", moment.begun);
}

fn minus_one(left: usize) -> Option<usize> {
    left.checked_sub(1)
}

/// What survives; `None` if only the process ends.
fn survival(input: &mut Input<'_>) -> Option<Survival> {
    let (choice, detail) = (input.u8(), input.u16());
    let seed = u64::from(detail);
    Some(match choice % 9 {
        0 => return None,
        1 => Survival::NothingUnsynced,
        2 => Survival::Everything,
        3 => Survival::DirectoryOnly,
        4 => Survival::DataOnly,
        5 => Survival::LastDirectoryOperationOnly,
        6 => Survival::Subset { mask: seed },
        7 => Survival::AllBut { dropped: usize::from(detail) % 64 },
        _ => {
            let tear = TEAR_UNITS[usize::from(choice / 9) % TEAR_UNITS.len()];
            let hole = if choice & 64 == 0 { Hole::Zero } else { Hole::Garbage };
            Survival::Random { seed, tear, hole }
        }
    })
}

/// Commits until the machine stops; gives the state after each.
fn commits(
    input: &mut Input<'_>,
    disk: &SimFs,
    watch: &Watch,
    seed: u64,
    options: &Options,
) -> Vec<Model> {
    let runtime = Runtime::stepper(seed);
    let mut opened: Option<(Db, [Keyspace; 2])> = Some(open(disk, runtime.clone(), options));
    let mut states = vec![Model::default()];
    let promised = &watch.promised;
    while !input.is_empty() && !watch.is_over() && states.len() <= COMMITS_MAX {
        let (db, keyspaces) = opened.take().expect("it is put back below");
        let choice = input.u8();
        let done = match choice % 16 {
            0..12 => {
                let mut batch = db.batch();
                let mut model = states[states.len() - 1].clone();
                for _ in 0..=choice / 16 % 4 {
                    change(input, &keyspaces, &mut batch, &mut model);
                }
                states.push(model);
                let number = states.len() - 1;
                promised.begun.store(number, Ordering::SeqCst);
                let durable = choice.is_multiple_of(4);
                let durability = if durable { Durability::Disk } else { Durability::Process };
                let done = batch.commit_with(durability);
                promised.process.store(number, Ordering::SeqCst);
                if durable {
                    promised.disk.store(number, Ordering::SeqCst);
                }
                done
            }
            12 => db.flush(),
            13 => db.compact_range::<&[u8]>(..),
            14 => {
                let number = states.len() - 1;
                db.sync().inspect(|()| promised.disk.store(number, Ordering::SeqCst))
            }
            _ => {
                drop((db, keyspaces));
                opened = Some(open(disk, runtime.clone(), options));
                continue;
            }
        };
        done.unwrap_or_else(|error| panic!("{error}"));
        opened = Some((db, keyspaces));
    }
    states
}
