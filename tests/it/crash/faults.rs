//! Every call fails once: the engine neither panics nor hangs, its errors have a kind, reads go
//! on, and what was acknowledged is found when the database is opened again.
//!
//! After a fault the steps that got a place in the order are those that may be in the log. Those
//! before the last acknowledged one, after a crash, are all there: an error in the middle that the
//! engine recovered from by itself left no step behind.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use esker::fs::fault::{Fault, FaultFs, FaultKind};
use esker::fs::sim::{SimFs, Survival};

use crate::crash::enumerate::{found_on, panic_text, recover};
use crate::crash::oracle::Reading;
use crate::crash::setting;
use crate::crash::workload::{Run, Workload};

const SEED: u64 = 3;

fn run(actions: usize, fault: Option<Fault>) -> (Run, u64) {
    // A single case is watched, to show what led to it.
    let watch = std::env::var("ESKER_FAULT_CASE").is_ok();
    let workload = Workload { watch, faulty: true, ..Workload::new(SEED, actions) };
    let mut fired = None;
    let run = workload.run_behind(|disk: SimFs| {
        let fs = FaultFs::over_sim(disk);
        fault.into_iter().for_each(|fault| fs.arm(fault));
        fired = Some(fs.clone());
        Arc::new(fs)
    });
    (run, fired.map_or(0, |fs| fs.fired()))
}

/// Runs with a fault; says what went wrong, or `None` if the fault did not fit its call.
fn check(actions: usize, kind: FaultKind, call: u64, left: Survival) -> Result<Option<bool>, String> {
    let fault = Fault::new(kind).nth(call).leaving(left);
    let (sender, receiver) = mpsc::channel();
    // In a thread of its own, so that a hang is seen.
    std::thread::spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(|| run(actions, Some(fault))));
        let _ = sender.send(result.map_err(|panic| panic_text(&*panic)));
    });
    let result = receiver.recv_timeout(Duration::from_secs(8)).map_err(|_| "hangs".to_string())?;
    let (run, fired) = result.map_err(|text| format!("panics: {text}"))?;
    if fired == 0 {
        return Ok(None);
    }
    for error in &run.errors {
        let typed = ["Degraded", "NoSpace", "Io(", "Corruption", "Closed"].iter().any(|k| error.contains(k));
        if !typed {
            return Err(format!("an error without a fitting kind: {error}"));
        }
    }
    for shot in run.shots.iter().filter(|shot| shot.label.contains("--")) {
        println!("{:?} {}", shot.bounds, shot.label);
    }
    let image = run.disk.snapshot();
    let begun = run.bounds.begun;
    let mut ends = vec![("kill", image.kill(), run.bounds.kill)];
    // A sync that lies breaks every promise about power, and none about a killed process.
    let power = run.bounds.power.filter(|_| kind != FaultKind::DroppedSync).unwrap_or(0);
    if kind != FaultKind::DroppedSync {
        for survival in [Survival::NothingUnsynced, Survival::Everything, Survival::DataOnly] {
            ends.push(("power", image.crash(&survival), power));
        }
    }
    for (end, disk, lo) in ends {
        let again = disk.snapshot();
        let print = recover(&disk, Reading::Gets)
            .map_err(|text| format!("{end}: {text}\n{}", run.errors[..run.errors.len().min(6)].join("\n")))?;
        if !run.oracle.admits(print, lo, begun) {
            let found = found_on(&again.kill())?;
            let (text, errors) = (run.oracle.explain(&found, lo, begun), run.errors[..run.errors.len().min(6)].join("\n"));
            return Err(format!("{end}: {text}\n{errors}"));
        }
    }
    Ok(Some(run.errors.is_empty()))
}

#[test]
fn every_call_may_fail_once() {
    let actions = setting("ESKER_FAULT_ACTIONS", 300) as usize;
    let quota = Duration::from_secs(setting("ESKER_FAULT_SECONDS", 40));
    let (whole, _) = run(actions, None);
    assert_eq!(whole.errors, [""; 0]);
    let began = Instant::now();
    let mut counts: BTreeMap<String, [u64; 3]> = BTreeMap::new();
    let mut cases: Vec<(FaultKind, u64)> = (0..whole.calls)
        .flat_map(|call| FaultKind::ALL.into_iter().map(move |kind| (kind, call)))
        .collect();
    fastrand::Rng::with_seed(SEED).shuffle(&mut cases);
    let only = std::env::var("ESKER_FAULT_CASE").ok();
    let mut failures: BTreeMap<String, String> = BTreeMap::new();
    let (mut done, total) = (0, cases.len());
    for (kind, call) in cases {
        let case = format!("{kind:?}:{call}");
        if only.as_ref().is_some_and(|only| *only != case) {
            continue;
        }
        if began.elapsed() > quota {
            break;
        }
        let left = match call % 3 {
            0 => Survival::NothingUnsynced,
            1 => Survival::Everything,
            _ => Survival::Random { seed: call, tear: 16, hole: esker::fs::sim::Hole::Garbage },
        };
        done += 1;
        let entry = counts.entry(format!("{kind:?}")).or_default();
        match check(actions, kind, call, left) {
            Ok(None) => {}
            Ok(Some(quiet)) => {
                entry[0] += 1;
                entry[1] += u64::from(quiet);
            }
            Err(text) => {
                entry[2] += 1;
                let short: String = text.chars().filter(|c| !c.is_ascii_digit()).take(90).collect();
                failures.entry(short).or_insert(format!("ESKER_FAULT_CASE={case}: {text}"));
            }
        }
    }
    println!("{done} of {total} cases in {:.1} s", began.elapsed().as_secs_f64());
    for (kind, [fired, quiet, failed]) in &counts {
        println!("{fired:7} {kind}, of which the user noticed nothing of {quiet}; {failed} failed");
    }
    assert!(failures.is_empty(), "{}", failures.into_values().collect::<Vec<_>>().join("\n\n"));
}
