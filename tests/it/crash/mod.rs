//! Crash safety: every call to the file system as the last one, every call as the one that fails,
//! every byte as the one that rots.
//!
//! - `oracle`: which states a database may be in.
//! - `workload`: seeded programs, and what was promised at each of their calls.
//! - `enumerate`: crashes at every call, in every way; crashes of the recovery; three in a row.
//! - `sabotage`: every sync left out in turn, to show that `enumerate` can fail.
//! - `faults`: every call fails once.
//! - `damage`: every bit flipped, every length.
//! - `golden`: the order of syncs as text.
//! - `toolkit`: what is promised exactly once, crashed everywhere. `ingest`: the same of the queue.
//!
//! # What fails without each rule
//!
//! The rules are those of `docs/DURABILITY.md`. *enum* is
//! [`every_crash_leads_to_a_state_that_was_promised`]; a name in quotation marks is the place that
//! `sabotage` switches off to see *enum* fail.
//!
//! | rule | what notices |
//! |---|---|
//! | 1 the log is durable before an edit that outruns it | enum: "log.sync", "log.sync.older", "manifest.append.sync", "table.sync", "table.sync_dir" |
//! | 2 replay skips by sequence number; memtables in order | enum, by its counters and appends: an operand that is applied twice is another state |
//! | 3 reserved, copied, durable: prefixes; a failed write stops publication | enum with its bursts of threads; `faults` with `ShortWrite` and `Io` on "store" |
//! | 4 resume at one cut, in one edit | `faults`, where a full disk heals by itself; `resume.rs` |
//! | 5 views and snapshots agree with the visible number | not a matter of crashes: `model`, `concurrency.rs` |
//! | 6 torn tail or corruption; later logs are discarded | enum: no plain crash is refused; `damage`: what is witnessed is; "log.create.sync_dir", "log.create.sync" |
//! | 7 inputs are deleted one record later | `damage`: a flipped bit in the last edit leaves a database that opens; `golden` pins the order |
//! | 8 numbers are leased, never reused | enum over reopened sessions: two crashes in a row and more |
//! | 9 drops: in the order of commits, ids never reused | enum: keyspaces of the same names are created and dropped again and again |
//! | 10 idle keyspaces do not pin the log | not a matter of crashes: `model`, the engine's own tests |
//! | 11 large batches have a log of their size | enum: the action `large`, 800 to 6000 bytes where a log has 1024 |
//! | 12 the memtable's splits under readers | not a matter of crashes: the memtable's own tests |
//! | 13 checkpoints, 18 shards | do not exist yet |
//! | 15 the queue's log is cut only before what the database has on the disk, and is durable before its effects | `ingest` |
//! | 16 `commit_once`: token and effect in one record, a watermark decides what is too old | `toolkit`; `once.rs` |
//! | 14 the lock | `bad_input.rs`, the file systems' own tests |
//! | 17 stores into the log are calls, torn in the middle and written back in any order | enum takes a moment in the middle of each; policy 6 tears at 1, 16, 512 and 4096 bytes |
//!
//! # Settings
//!
//! `ESKER_CRASH_SEED`, `ESKER_CRASH_ACTIONS` (1000), `ESKER_CRASH_SECONDS` (30, for
//! crashes in a row), `ESKER_CRASH_CASE`
//! (printed with a violation; shows it alone); `ESKER_FAULT_ACTIONS` (300), `ESKER_FAULT_SECONDS`
//! (30), `ESKER_FAULT_CASE`; `ESKER_FLIP_ALL=1` for all pairs of codec and read mode.

mod case;
mod damage;
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
        singles: 1,
        again_every: 16,
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
