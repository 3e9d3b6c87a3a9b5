//! All short programs, crashed at every call under all subsets of what is pending.
//!
//! Most crash bugs of the field need three operations or fewer (OSDI'18). What random workloads
//! reach by luck is tried here by plan: every sequence of verbs up to a length, on a database that
//! has something to lose, each crashed after every call and in the middle of every write.

use std::time::{Duration, Instant};

use crate::crash::enumerate::{Counts, Ledger, Plan};
use crate::crash::workload::{Verb, Workload};
use crate::crash::{first_seed, must_hold, quota, setting};
use crate::settings;

fn plan() -> Plan {
    Plan {
        every: 1,
        random: 2,
        subsets_max: 10,
        thorough_every: 0,
        singles: 4,
        again_every: 12,
        deeper_every: Vec::new(),
        quota: Duration::MAX,
        threads: settings::workers(),
    }
}

/// All programs of exactly so many verbs.
fn programs(len: u64) -> Vec<Vec<Verb>> {
    let mut all = vec![Vec::new()];
    for _ in 0..len {
        let longer = |program: &Vec<Verb>| {
            let program = program.clone();
            Verb::ALL.map(|verb| [program.clone(), vec![verb]].concat())
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

/// Verbs of the longest program in a slice.
const SLICED_VERBS: u64 = 4;

/// All programs of at most four verbs are too many for one run: `ESKER_PROGRAM_SLICE=FROM` tries
/// `ESKER_PROGRAM_COUNT` (300) of them, from that number on, the short ones first; past the last
/// one it begins anew with another seed.
#[test]
fn a_slice_of_the_programs_survives_every_crash() {
    let Some(from) = settings::number("ESKER_PROGRAM_SLICE") else { return };
    let count = setting("ESKER_PROGRAM_COUNT", 300);
    let mut all: Vec<Vec<Verb>> = Vec::new();
    for len in 0..=SLICED_VERBS {
        let mut of_len = programs(len);
        // In an order of its own, so that a slice is a fair sample.
        fastrand::Rng::with_seed(len).shuffle(&mut of_len);
        all.append(&mut of_len);
    }
    let (ledger, mut counts) = (Ledger::default(), Counts::default());
    for number in from..from + count {
        let seed = first_seed() + number / all.len() as u64;
        let verbs = all[(number % all.len() as u64) as usize].clone();
        counts.add(&must_hold(&Workload::scripted(seed, verbs), &plan(), &ledger));
    }
    println!("programs {from} to {} of {}\n{counts}", from + count, all.len());
    counts.tally("crash states of short programs");
    settings::tally(&[("programs", count)]);
}

/// Every program of so many verbs under one seed, in an order of its own; fewer if a quota of time
/// is over before.
fn try_all(len: u64, seed: u64, quota: Duration, ledger: &Ledger) -> Tried {
    let mut all = programs(len);
    fastrand::Rng::with_seed(seed << 8 | len).shuffle(&mut all);
    let (began, mut counts, mut programs) = (Instant::now(), Counts::default(), 0);
    for verbs in &all {
        if began.elapsed() > quota {
            break;
        }
        let workload = Workload::scripted(seed, verbs.clone());
        counts.add(&must_hold(&workload, &plan(), ledger));
        programs += 1;
    }
    println!("programs of {len} verbs, seed {seed}: {programs} of {}", all.len());
    Tried { counts, programs }
}

struct Tried {
    counts: Counts,
    programs: u64,
}

/// Programs of at most two verbs: all of them, however long it takes. After that, as long as there
/// is time: the same under other seeds, which draw other options and schedules of the background
/// threads, and programs of three.
#[test]
fn every_short_program_survives_every_crash() {
    let verbs = setting("ESKER_PROGRAM_VERBS", 2);
    let (seed, seeds) = (first_seed(), setting("ESKER_PROGRAM_SEEDS", 8));
    let quota = quota("ESKER_PROGRAM_SECONDS", 60);
    let (ledger, mut counts, mut programs) = (Ledger::default(), Counts::default(), 0);
    let began = Instant::now();
    let left = || quota.saturating_sub(began.elapsed());
    let mut note = |tried: Tried| {
        counts.add(&tried.counts);
        programs += tried.programs;
    };
    (0..=verbs).for_each(|len| note(try_all(len, seed, Duration::MAX, &ledger)));
    for seed in seed + 1..seed + seeds {
        (1..=verbs).for_each(|len| note(try_all(len, seed, left(), &ledger)));
    }
    note(try_all(verbs + 1, seed, left(), &ledger));
    println!("{programs} programs\n{counts}");
    counts.tally("crash states of short programs");
    settings::tally(&[("programs", programs)]);
}
