//! SIGKILL while shards are split: writers whose batches go over shards, and slots on their way.
//!
//! Step n of a writer puts three keys, mostly of several shards, deletes those of a step before it now
//! and then, adds to a counter, and says how many steps there are: all in one batch. So what is found
//! says itself how far each writer was: exactly as far as was acknowledged, or one step further. It
//! must be precisely what so many steps leave, each key once; and the same again after the moves that
//! were under way have come to their end.
//!
//! `ESKER_SPLIT_SECONDS` is for how long processes are killed; `ESKER_SEED` sets the seed of the moments.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use esker::{Counter, KeyspaceOptions, Options, ShardedDb, ShardedKeyspace};

use super::{DATABASE, HOME, Rounds, end_with_the_parent, open_slots, read_slot, write_slot};
use crate::settings::{number, tally};

const SECONDS: u64 = 25;
const WRITERS: usize = 4;
/// Keys of a writer are used again after so many steps.
const WINDOW: u64 = 400;
/// Then another database is begun.
const SHARDS_MAX: usize = 12;

fn open(dir: &Path) -> (ShardedDb, ShardedKeyspace) {
    let mut options = Options::default();
    (options.memory, options.table_bytes, options.threads) = (4 << 20, 64 << 10, 2);
    let db = ShardedDb::builder(dir).options(options).shards(3).slots(64).open().unwrap();
    let counts = db.keyspace("counts", KeyspaceOptions::new().merge(Counter::default())).unwrap();
    (db, counts)
}

fn key(writer: usize, n: u64, part: u64) -> String {
    format!("{writer}:{part}:{:04}", n % WINDOW)
}

fn value(writer: usize, n: u64) -> String {
    format!("{writer} {n} {}", "x".repeat((n * 37 % 300) as usize))
}

/// The step whose keys step n deletes.
fn gone(n: u64) -> Option<u64> {
    (n % 8 == 3).then(|| n.checked_sub(10)).flatten()
}

#[test]
#[ignore = "a role of the test of this module, which starts it as a process of its own"]
fn writers() {
    let Some(home) = std::env::var_os(HOME) else { return };
    let dir = PathBuf::from(std::env::var_os(DATABASE).expect("set with the home"));
    end_with_the_parent();
    let slots = open_slots(Path::new(&home));
    let (db, counts) = open(&dir);
    // So slowly that a kill comes in the middle.
    db.set_move_rate(Some(400_000));
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (db, counts, slots) = (&db, &counts, &slots);
            scope.spawn(move || {
                for n in read_slot(slots, writer).. {
                    let mut batch = db.batch();
                    for part in 0..3 {
                        batch.put(db, key(writer, n, part), value(writer, n));
                        if let Some(gone) = gone(n) {
                            batch.delete(db, key(writer, gone, part));
                        }
                    }
                    batch.merge(counts, format!("count {writer}"), 1);
                    batch.put(counts, format!("steps {writer}"), (n as i64 + 1).to_le_bytes());
                    match n % 64 {
                        0 => batch.commit_with(esker::Durability::Disk).unwrap(),
                        5 => batch.commit_async().unwrap().wait().unwrap(),
                        _ => batch.commit().unwrap(),
                    }
                    write_slot(slots, writer, n + 1);
                }
            });
        }
        for turn in fastrand::usize(..3).. {
            match turn % 3 {
                0 if db.shard_count() < SHARDS_MAX => {
                    db.split(fastrand::usize(..db.shard_count())).unwrap();
                }
                1 if db.shard_count() < SHARDS_MAX => drop(db.add_shard(None).unwrap()),
                _ => db.rebalance().unwrap(),
            }
            if fastrand::u8(..8) == 0 {
                db.abort_moves();
            }
            db.wait_for_moves().unwrap();
        }
    });
}

/// What so many steps of each writer leave.
fn expected(steps: &[u64]) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (writer, steps) in steps.iter().enumerate() {
        for n in steps.saturating_sub(2 * WINDOW)..*steps {
            for part in 0..3 {
                all.insert(key(writer, n, part), value(writer, n));
                if let Some(gone) = gone(n) {
                    all.remove(&key(writer, gone, part));
                }
            }
        }
    }
    all
}

/// Whether the database is as it must be, and the steps that are in it.
fn check(db: &ShardedDb, counts: &ShardedKeyspace, slots: &File) -> Vec<u64> {
    let number = |key: String| {
        let value = counts.get(key).unwrap();
        value.map_or(0, |value| Counter::decode(&value).expect("a counter") as u64)
    };
    let steps: Vec<u64> = (0..WRITERS).map(|writer| number(format!("steps {writer}"))).collect();
    for (writer, steps) in steps.iter().enumerate() {
        let acknowledged = read_slot(slots, writer);
        let fits = (acknowledged..=acknowledged + 1).contains(steps);
        assert!(fits, "writer {writer}: {steps} steps, {acknowledged} were acknowledged");
        assert_eq!(number(format!("count {writer}")), *steps, "counted by writer {writer}");
    }
    let expected = expected(&steps);
    let mut rest = expected.iter();
    for entry in db.iter() {
        let (found, value) = entry.unwrap();
        let (key, as_written) = rest.next().expect("nothing more than was written");
        assert_eq!(found.escape_ascii().to_string(), *key, "in order, each once");
        assert!(*value == *as_written.as_bytes(), "the value of {key}");
        assert!(db.get(key).unwrap().as_deref() == Some(as_written.as_bytes()), "a get of {key}");
    }
    assert_eq!(rest.next(), None, "the scan ends too early");
    steps
}

#[test]
fn nothing_is_lost_or_doubled_by_a_kill_during_a_split() {
    let seconds = number("ESKER_SPLIT_SECONDS").unwrap_or(SECONDS);
    let seed = number("ESKER_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("ESKER_SEED={seed} ESKER_SPLIT_SECONDS={seconds}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (began, mut rounds) = (Instant::now(), Rounds::new(true, None));
    let (mut kills, mut moving, mut steps) = (0, 0, 0);
    while began.elapsed() < Duration::from_secs(seconds) || kills < 3 {
        let mut child = rounds.start_as("process::split::writers");
        std::thread::sleep(Duration::from_micros(random.u64(20_000..400_000)));
        rounds.kill(&mut child);
        kills += 1;
        let (dir, slots) = (rounds.dir.clone(), open_slots(rounds.home.path()));
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            assert!(!rounds.said().contains("panicked"), "a thread of it has ended");
            let (db, counts) = open(&dir);
            let found = check(&db, &counts, &slots);
            db.wait_for_moves().unwrap();
            let moves = db.moves();
            let was_moving = moves.slots_moved > 0 || moves.keys > 0;
            assert_eq!(check(&db, &counts, &slots), found, "after the moves");
            for (writer, steps) in found.iter().enumerate() {
                write_slot(&slots, writer, *steps);
            }
            let shards = db.shard_count();
            if random.bool() {
                db.close().unwrap();
            }
            (found, was_moving, shards)
        }));
        let Ok((found, was_moving, shards)) = checked else {
            rounds.home.disable_cleanup(true);
            let (kept, said) = (rounds.home.path().display(), rounds.said());
            panic!("after kill {kills}, ESKER_SEED={seed}: see {kept}\n{said}");
        };
        moving += u64::from(was_moving);
        steps += found.iter().sum::<u64>();
        if shards == SHARDS_MAX {
            rounds = Rounds::new(true, None);
        }
    }
    println!("{kills} kills, {moving} of them while slots moved, {steps} steps found");
    tally(&[("kills during splits", kills)]);
    assert!(moving > 0 && steps > kills, "{moving}, {steps}");
}
