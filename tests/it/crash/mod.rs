//! Crash safety: every call to the file system as the last one, every call as the one that fails,
//! every byte as the one that rots.
//!
//! - `oracle`: which states a database may be in.
//! - `workload`: seeded programs, and what was promised at each of their calls.
//! - `enumerate`: crashes at every call, in every way; crashes of the recovery; three in a row.
//! - `sabotage`: every sync left out in turn, to show that `enumerate` can fail.
//! - `drops`: every single sync left out, one at a time.
//! - `faults`: every call fails once.
//! - `damage`: every bit flipped, every length.
//! - `golden`: the order of syncs as text.
//! - `toolkit`: what is promised exactly once, crashed everywhere. `ingest`: the same of the queue.
//!
//! Which of these tests fails without which rule says `docs/KNOWN_BUGS.md`.
//!
//! # Settings
//!
//! `ESKER_CRASH_SEED`, `ESKER_CRASH_ACTIONS` (1000); `ESKER_CRASH_STATES` (500,000) different states
//! of single crashes; `ESKER_CRASH_SECONDS` (45) of crashes in a row; `ESKER_CRASH_CASE` (printed
//! with a violation; shows it alone). `ESKER_FAULT_ACTIONS` (500), `ESKER_FAULT_SECONDS` (1800),
//! `ESKER_FAULT_CASE`. `ESKER_DAMAGE_SEED`, `ESKER_FLIP_SECONDS` (1800) for every bit as it is read by
//! default, `ESKER_FLIP_OTHERS_SECONDS` for each other pair of codec and read mode,
//! `ESKER_CUT_SECONDS` (1800), `ESKER_DAMAGE_CASE`. `ESKER_PROGRAM_VERBS` (2), `ESKER_PROGRAM_SEEDS` (8),
//! `ESKER_PROGRAM_SECONDS` (60) for what goes beyond all programs of so many verbs. Quotas are for a
//! quiet machine of two cores; what was covered within them is printed. That of the faults, of the flips as
//! they are read by default and of the cuts must be enough for all, if it is not set.

mod case;
pub mod damage;
mod drops;
mod ends;
mod enumerate;
mod faults;
mod golden;
mod ingest;
mod misplaced;
mod oracle;
mod programs;
mod recovery;
mod sabotage;
mod toolkit;
mod workload;

use std::time::{Duration, Instant};

use crate::crash::case::{reduced, show_case};
use crate::crash::enumerate::{Counts, Ledger, Plan, enumerate};
use crate::crash::workload::Workload;
use crate::settings;

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    settings::number(name).unwrap_or(default)
}

/// How long a regime with a share of the time goes on.
fn quota(name: &str, seconds: u64) -> Duration {
    Duration::from_secs(setting(name, seconds))
}

/// Every moment, crashed once.
fn plan() -> Plan {
    Plan {
        every: 1,
        random: 3,
        subsets_max: setting("ESKER_CRASH_SUBSETS", 4) as usize,
        thorough_every: 128,
        singles: 1,
        again_every: 12,
        deeper_every: Vec::new(),
        quota: Duration::MAX,
        threads: settings::workers(),
    }
}

/// A sample of moments, crashed up to three times in a row, for as long as there is time.
fn deep_plan() -> Plan {
    Plan {
        every: 7,
        deeper_every: vec![200, 2000],
        quota: quota("ESKER_CRASH_SECONDS", 45),
        ..plan()
    }
}

fn actions() -> usize {
    setting("ESKER_CRASH_ACTIONS", 1000) as usize
}

fn first_seed() -> u64 {
    setting("ESKER_CRASH_SEED", 1)
}

/// Crashes a workload everywhere; if that finds something, reduces it and panics with it.
fn must_hold(workload: &Workload, plan: &Plan, ledger: &Ledger) -> Counts {
    let run = workload.run();
    match enumerate(&run, workload, plan, ledger) {
        Ok(counts) => counts,
        Err(found) => {
            let quota = quota("ESKER_CRASH_REDUCE_SECONDS", 60);
            let found = reduced(workload, plan, found, quota);
            panic!("{}", found.text);
        }
    }
}

#[test]
fn runs_are_deterministic() {
    let first = Workload::new(7, 200).run();
    let second = Workload::new(7, 200).run();
    assert_eq!((first.calls, first.schedules), (second.calls, second.schedules));
    assert_eq!(first.disk.state_hash(), second.disk.state_hash());
    let labels = |run: &workload::Run| -> Vec<String> {
        run.shots.iter().map(|shot| shot.label.clone()).collect()
    };
    assert_eq!(labels(&first), labels(&second));
}

/// Every background job goes on in steps between which users commit, so that crashes find it half
/// done with newer commits beside it.
#[test]
fn users_commit_between_the_steps_of_every_background_job() {
    // What the calls of a job have in their labels; of two the first counts.
    const JOBS: [(&str, &str); 6] = [
        ("removal of files", " remove "),
        ("flush", "[flush]"),
        ("compaction", "[compaction]"),
        ("rotation of the log", "[log.create"),
        ("sync of the log", "[log.sync]"),
        ("rotation of the manifest", "[manifest.c"),
    ];
    let mut counts = JOBS.map(|_| (0, 0));
    for seed in 1..=30 {
        for shot in Workload::new(seed, 300).run().shots {
            let by_user = ["user", "writer"].iter().any(|name| shot.label.starts_with(name));
            let job = JOBS.iter().position(|(_, part)| shot.label.contains(part));
            if let Some(job) = job.filter(|_| !by_user) {
                counts[job].0 += 1;
                counts[job].1 += u64::from(shot.meanwhile > 0);
            }
        }
    }
    for ((job, _), (steps, between)) in JOBS.iter().zip(counts) {
        println!("{job}: {steps} steps in the background, before {between} users committed");
        assert!(between > 0, "{job}: never, of {steps}");
    }
}

/// One workload after the other, until enough different states were reached.
#[test]
fn every_crash_leads_to_a_state_that_was_promised() {
    let target = setting("ESKER_CRASH_STATES", 500_000);
    let (ledger, began, mut counts) = (Ledger::default(), Instant::now(), Counts::default());
    let mut seed = first_seed();
    while ledger.different() < target {
        let found = must_hold(&Workload::new(seed, actions()), &plan(), &ledger);
        println!("seed {seed}: {} different states at {} moments", found.states, found.moments);
        counts.add(&found);
        seed += 1;
    }
    println!("{counts}  {:.1} s with the runs themselves", began.elapsed().as_secs_f64());
    counts.tally("crash states");
    assert_eq!(counts.complete, counts.runs, "every moment was tried");
    assert_eq!(counts.states, ledger.different());
}

/// A crash, one during the recovery or soon after, and one during that one's recovery.
#[test]
fn crashes_in_a_row_lead_to_states_that_were_promised() {
    let plan = deep_plan();
    let (ledger, began, mut counts) = (Ledger::default(), Instant::now(), Counts::default());
    let mut seed = first_seed();
    while began.elapsed() < plan.quota {
        let plan = Plan { quota: plan.quota.saturating_sub(began.elapsed()), ..plan.clone() };
        counts.add(&must_hold(&Workload::new(seed, actions()), &plan, &ledger));
        seed += 1;
    }
    println!("{counts}");
    counts.tally("crash states after crashes in a row");
    assert!(counts.by_depth.len() == 3 || plan.quota < Duration::from_secs(20), "{counts}");
}

/// Shows one case: the text of a violation says how.
#[test]
fn one_case() {
    let Ok(case) = std::env::var("ESKER_CRASH_CASE") else { return };
    if let Some(text) = show_case(&case, &Workload::from_environment(first_seed(), actions())) {
        panic!("{text}");
    }
    println!("it passes");
}
