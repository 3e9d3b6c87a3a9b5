//! Every call fails once: the engine neither panics nor hangs, its errors have a kind, reads go
//! on, and what was acknowledged is found when the database is opened again.
//!
//! After a fault the steps that got a place in the order are those that may be in the log. Those
//! before the last acknowledged one, after a crash, are all there: an error in the middle that the
//! engine recovered from by itself left no step behind.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use esker::fs::fault::{Fault, FaultFs, FaultKind};
use esker::fs::intercept::Select;
use esker::fs::sim::{Hole, SimFs, Survival};
use esker::fs::trace::TraceFs;
use esker::runtime::Runtime;
use esker::{Db, ErrorKind, KeyspaceOptions, Options};

use crate::crash::enumerate::{found_on, panic_text, recover};
use crate::crash::oracle::Reading;
use crate::crash::setting;
use crate::crash::workload::{DIR, Run, Workload};

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
fn check(
    actions: usize,
    kind: FaultKind,
    call: u64,
    left: Survival,
) -> Result<Option<bool>, String> {
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
        let typed = ["Degraded", "NoSpace", "Io(", "Corruption", "Closed"]
            .iter()
            .any(|k| error.contains(k));
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
        let print = recover(&disk, Reading::Gets).map_err(|text| {
            format!("{end}: {text}\n{}", run.errors[..run.errors.len().min(6)].join("\n"))
        })?;
        if !run.oracle.admits(print, lo, begun) {
            let found = found_on(&again.kill())?;
            let (text, errors) = (
                run.oracle.explain(&found, lo, begun),
                run.errors[..run.errors.len().min(6)].join("\n"),
            );
            return Err(format!("{end}: {text}\n{errors}"));
        }
    }
    Ok(Some(run.errors.is_empty()))
}

/// The names of the calls that a run without faults makes, in order.
fn calls(actions: usize) -> Vec<String> {
    let workload = Workload { watch: false, ..Workload::new(SEED, actions) };
    let mut trace = None;
    workload.run_behind(|disk: SimFs| {
        let fs = TraceFs::with_reads(Arc::new(disk));
        trace = Some(fs.clone());
        Arc::new(fs)
    });
    let lines = trace.expect("it ran").take();
    // Some calls fail by nature: a name that is taken, a directory that is missing.
    let calls = lines.into_iter().filter(|line| !line.starts_with('!'));
    calls.map(|line| line.split(' ').next().unwrap_or_default().to_string()).collect()
}

fn kinds_for(name: &str) -> Vec<FaultKind> {
    let mut kinds = vec![FaultKind::Io, FaultKind::NoSpace, FaultKind::Interrupted];
    match name {
        "write" | "store" => kinds.push(FaultKind::ShortWrite),
        "sync" | "sync_dir" => kinds.extend([FaultKind::DroppedSync, FaultKind::FailedSync]),
        // Reads fail in one way only, and their space is not full.
        "open" | "list" | "free_bytes" | "len" | "read" | "map" => kinds.truncate(1),
        _ => {}
    }
    kinds
}

#[derive(Default)]
struct Tally {
    /// By kind: fired, unnoticed, failed.
    counts: BTreeMap<String, [u64; 3]>,
    failures: BTreeMap<String, String>,
}

#[test]
fn every_call_may_fail_once() {
    let actions = setting("ESKER_FAULT_ACTIONS", 300) as usize;
    let quota = Duration::from_secs(setting("ESKER_FAULT_SECONDS", 30));
    let only = std::env::var("ESKER_FAULT_CASE").ok();
    let mut cases: Vec<(FaultKind, u64)> = (0..)
        .zip(calls(actions))
        .flat_map(|(call, name)| kinds_for(&name).into_iter().map(move |kind| (kind, call)))
        .filter(|(kind, call)| only.as_ref().is_none_or(|only| *only == format!("{kind:?}:{call}")))
        .collect();
    // In an order of its own, so that a quota leaves a fair sample.
    fastrand::Rng::with_seed(SEED).shuffle(&mut cases);
    let (began, next, tally) = (Instant::now(), AtomicUsize::new(0), Mutex::new(Tally::default()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while began.elapsed() < quota {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&(kind, call)) = cases.get(index) else { return };
                    try_case(actions, kind, call, &tally);
                }
            });
        }
    });
    let (done, tally) = (next.into_inner().min(cases.len()), tally.into_inner().unwrap());
    let seconds = began.elapsed().as_secs_f64();
    println!("{done} faults of {} in {seconds:.1} s, over {actions} actions", cases.len());
    for (kind, [fired, quiet, failed]) in &tally.counts {
        println!("{fired:7} {kind}: the user met no error in {quiet}; {failed} broke a promise");
    }
    let failures: Vec<_> = tally.failures.into_values().collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

fn try_case(actions: usize, kind: FaultKind, call: u64, tally: &Mutex<Tally>) {
    let left = match call % 3 {
        0 => Survival::NothingUnsynced,
        1 => Survival::Everything,
        _ => Survival::Random { seed: call, tear: 16, hole: Hole::Garbage },
    };
    let result = check(actions, kind, call, left);
    let mut tally = tally.lock().unwrap();
    let counts = tally.counts.entry(format!("{kind:?}")).or_default();
    match result {
        Ok(None) => {}
        Ok(Some(quiet)) => {
            counts[0] += 1;
            counts[1] += u64::from(quiet);
        }
        Err(text) => {
            counts[2] += 1;
            let short: String = text.chars().filter(|c| !c.is_ascii_digit()).take(90).collect();
            tally
                .failures
                .entry(short)
                .or_insert(format!("ESKER_FAULT_CASE={kind:?}:{call}: {text}"));
        }
    }
}

/// Bug: a database whose last handle was dropped while a full disk healed came back without any of
/// its keyspaces. Cause: the repair carries out drops that had failed, and took the keyspaces of a
/// database that closes for dropped. Fix: it asks whether they were dropped, not whether they live.
#[test]
fn a_repair_while_the_database_closes_drops_nothing() {
    for seed in 0..40 {
        let disk = SimFs::new();
        // 1 once the log has failed, 2 once the repair writes its first table.
        let stage = Arc::new((esker::runtime::Mutex::new(0), esker::runtime::Condvar::new()));
        let seen = stage.clone();
        disk.on_call(Arc::new(move |_, _, call| {
            let mut stage = seen.0.lock();
            if *stage == 1 && call.name == "create" {
                *stage = 2;
                seen.1.notify_all();
            }
            drop(stage);
            esker::runtime::yield_point();
        }));
        let fs = FaultFs::over_sim(disk.clone());
        let runtime = Runtime::stepper(seed);
        let db = Db::open_on(Arc::new(fs.clone()), runtime, DIR, Options::tiny()).unwrap();
        let more = db.keyspace("more", KeyspaceOptions::new()).unwrap();
        more.put("a", "1").unwrap();
        db.put("a", "1").unwrap();
        fs.arm(Fault::new(FaultKind::NoSpace).on(Select::all().name("store")));
        assert_eq!(db.put("b", "2").unwrap_err().kind(), &ErrorKind::NoSpace);
        {
            let mut at = stage.0.lock();
            *at = 1;
            while *at == 1 {
                stage.1.wait(&mut at);
            }
        }
        drop((more, db));
        let found = found_on(&disk).expect("it opens");
        let one = BTreeMap::from([(b"a".to_vec(), b"1".to_vec())]);
        assert_eq!(found.get("more"), Some(&one), "seed {seed}");
        assert_eq!(found.get("default"), Some(&one), "seed {seed}");
    }
}
