//! The model test: long random sequences of every verb over several keyspaces, each answer compared
//! with a map's. Limits are so small that flush, compaction, log and manifest rotation happen all
//! the time.
//!
//! - `operation`: what a sequence does. `run`: the engine beside the model. `single`, `sharded`: what
//!   the engine is. `setting`: what a sequence runs on.
//!
//! `ESKER_SEQUENCES=100000 cargo test --release --all-features --test it model::` runs more of them;
//! `ESKER_FIRST_SEED` others, `ESKER_SEED` exactly one. A sequence that fails is made shorter before it is shown.

mod operation;
mod setting;
mod sharded;
mod single;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use esker::{Compression, Durability, Filter, Options, ReadMode};
use fastrand::Rng;

use crate::settings;

use operation::{Draw, Operation};
use setting::{Failure, Setting, Tally};

/// Operations of a sequence, on average.
const OPERATION_COUNT: usize = 160;
/// A failing sequence is shortened for at most so long.
const SHORTENING: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, PartialEq)]
enum Threads {
    Real,
    Stepped,
}

#[test]
fn with_threads() {
    test("with_threads", Threads::Real, 0, 2_000);
}

#[test]
fn one_shard() {
    test("one_shard", Threads::Stepped, 1, 250);
}

#[test]
fn three_shards() {
    test("three_shards", Threads::Stepped, 3, 250);
}

#[test]
fn three_shards_with_threads() {
    test("three_shards_with_threads", Threads::Real, 3, 250);
}

#[test]
fn eight_shards() {
    test("eight_shards", Threads::Stepped, 8, 150);
}

#[test]
fn with_stepper() {
    test("with_stepper", Threads::Stepped, 0, 2_000);
}

fn test(name: &str, threads: Threads, shards: usize, default_count: u64) {
    let seeds = settings::seeds("ESKER_SEQUENCES", default_count);
    let (count, began) = (seeds.end - seeds.start, Instant::now());
    let mut tally = Tally::default();
    seeds.for_each(|seed| tally += check(name, threads, shards, seed));
    println!("{name}: {count} sequences in {:.1?}: {tally:?}", began.elapsed());
    settings::tally(&[("model sequences", count)]);
    if settings::number("ESKER_SEED").is_some() {
        return;
    }
    // Or the limits are not tiny any more, and this tests memtables only.
    // Over many shards each has its own, smaller memtables to fill.
    assert!(tally.compactions > count / 2 && tally.flushes > 4 * count, "{tally:?}");
}

fn options(rng: &mut Rng) -> Options {
    let mut options = Options::tiny();
    options.filter = match rng.u8(..3) {
        0 => Filter::None,
        1 => Filter::Bloom { bits_per_key: rng.u8(4..16) },
        _ => Filter::BinaryFuse8,
    };
    options.read_mode = if rng.bool() { ReadMode::Mapped } else { ReadMode::Pread };
    options.compression = if rng.bool() { Compression::None } else { Compression::Lz4 };
    options.durability = if rng.u8(..4) > 0 { Durability::Process } else { Durability::Disk };
    options.sync_interval = (rng.u8(..4) == 0).then_some(Duration::from_millis(1));
    options.threads = rng.usize(1..4);
    options
}

/// Runs the sequence of this seed.
fn check(name: &str, threads: Threads, shards: usize, seed: u64) -> Tally {
    let mut draw = Draw::new(seed);
    let options = options(&mut draw.rng);
    let stepper = (threads == Threads::Stepped).then(|| draw.rng.u64(..));
    let setting = Setting { options, stepper, shards };
    let count = draw.rng.usize(OPERATION_COUNT / 2..OPERATION_COUNT * 3 / 2);
    let operations = draw.operations(count);
    let (failure, at) = match attempt(&setting, &operations) {
        Ok(tally) => return tally,
        Err(failed) => failed,
    };

    eprintln!("{name}: seed {seed} fails at operation {at}: {}\nshortening it", failure.0);
    let (shorter, last) = shorten(&setting, operations[..at.min(count)].to_vec());
    let mut trace = String::new();
    for operation in &shorter {
        trace.push_str(&format!("  {operation:?}\n"));
    }
    let failure = last.unwrap_or(failure).0;
    panic!(
        "seed {seed} fails: {failure}\n{setting:?}\nthe operations that lead there, then a check \
         of everything:\n{trace}run it again with\n  ESKER_SEED={seed} cargo test --all-features \
         --test it model::{name}\n"
    );
}

/// Runs the operations; if they fail, says how, and how many were begun.
fn attempt(setting: &Setting, operations: &[Operation]) -> Result<Tally, (Failure, usize)> {
    let mut begun_count = 0;
    let begun = |index| begun_count = index + 1;
    let run = || match setting.shards {
        0 => single::run::run(setting, operations, begun),
        _ => sharded::run::run(setting, operations, begun),
    };
    let failure = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(tally)) => return Ok(tally),
        Ok(Err(failure)) => failure,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or(panic.downcast_ref::<&str>().map(|text| text.to_string()));
            Failure(format!("panic: {}", text.unwrap_or_default()))
        }
    };
    Err((failure, begun_count))
}

/// Takes operations away as long as the rest still fails.
fn shorten(setting: &Setting, mut operations: Vec<Operation>) -> (Vec<Operation>, Option<Failure>) {
    let began = Instant::now();
    // With real threads a failure may need luck.
    let tries = if setting.stepper.is_some() { 1 } else { 3 };
    let fails =
        |operations: &[Operation]| (0..tries).find_map(|_| attempt(setting, operations).err());
    let mut last = None;
    let mut chunk = operations.len().div_ceil(2);
    while chunk > 0 {
        let mut from = 0;
        while from < operations.len() {
            if began.elapsed() > SHORTENING {
                return (operations, last);
            }
            let mut fewer = operations.clone();
            fewer.drain(from..(from + chunk).min(operations.len()));
            match fails(&fewer) {
                Some((failure, at)) => {
                    fewer.truncate(at);
                    operations = fewer;
                    last = Some(failure);
                }
                None => from += chunk,
            }
        }
        chunk /= 2;
    }
    (operations, last)
}
