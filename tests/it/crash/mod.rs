//! Crash safety: every call to the file system as the last one.

mod damage;
mod enumerate;
mod faults;
mod golden;
mod oracle;
mod sabotage;
mod workload;

use std::time::Duration;

use crate::crash::enumerate::{Plan, enumerate, show_case};
use crate::crash::workload::Workload;

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn plan() -> Plan {
    Plan {
        random: 2,
        subsets_max: 4,
        singles: 1,
        again_every: 16,
        deeper_every: vec![4000, 4000],
        quota: Duration::from_secs(setting("ESKER_CRASH_SECONDS", 60)),
        threads: 2,
    }
}

fn actions() -> usize {
    setting("ESKER_CRASH_ACTIONS", 1000) as usize
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

#[test]
fn every_crash_leads_to_a_state_that_was_promised() {
    let seed = setting("ESKER_CRASH_SEED", 1);
    let began = std::time::Instant::now();
    let run = Workload::new(seed, actions()).run();
    println!(
        "seed {seed}: {} steps, {} calls, {} moments, in {:.1} s",
        run.oracle.len(),
        run.calls,
        run.shots.len(),
        began.elapsed().as_secs_f64(),
    );
    match enumerate(&run, seed, actions(), &plan()) {
        Ok(counts) => println!("{counts}"),
        Err(violation) => panic!("{}", violation.text),
    }
}

/// Shows one case: the text of a violation says how.
#[test]
fn one_case() {
    let Ok(case) = std::env::var("ESKER_CRASH_CASE") else { return };
    if let Some(violation) = show_case(&case, actions(), &plan()) {
        panic!("{}", violation.text);
    }
}
