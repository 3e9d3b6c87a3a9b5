//! Every call fails once: the engine neither panics nor hangs, its errors have a kind, reads go
//! on, and what was acknowledged is found when the database is opened again.
//!
//! A run of 500 actions is cut into sessions of 25, between which the database is opened anew. A
//! case begins where a session began, on the disk that the sessions before left, has its fault
//! there, and ends some actions into the next session: a twentieth of the work of the whole run.
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

use crate::crash::oracle::Reading;
use crate::crash::recovery::{found_on, panic_text, recover};
use crate::crash::workload::{DIR, Run, Session, Workload};
use crate::crash::{quota, setting};
use crate::settings;

/// After the session of the fault.
const ACTIONS_AFTER: usize = 6;
const SESSION_ACTIONS: usize = 25;
/// A case takes some tens of milliseconds; one that takes so long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(30);

/// One fault: in which session, which of its calls, and how.
#[derive(Clone, Debug, PartialEq)]
struct Case {
    session: usize,
    call: u64,
    kind: FaultKind,
    name: String,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{:?}", self.session, self.call, self.kind)
    }
}

impl Case {
    /// What a sync that fails leaves.
    fn left(&self) -> Survival {
        match self.call % 3 {
            0 => Survival::NothingUnsynced,
            1 => Survival::Everything,
            _ => Survival::Random { seed: self.call, tear: 16, hole: Hole::Garbage },
        }
    }
}

/// The run without faults, and where its sessions begin.
struct Sweep {
    workload: Workload,
    sessions: Vec<Session>,
}

impl Sweep {
    fn new(seed: u64, actions: usize) -> Sweep {
        let session_actions = SESSION_ACTIONS;
        let workload = Workload { watch: false, session_actions, ..Workload::new(seed, actions) };
        let sessions = workload.run().sessions;
        Sweep { workload, sessions }
    }

    /// The actions of a session, and so many of the next.
    fn actions(&self, session: usize, after: usize) -> Vec<usize> {
        let (first, all) = (self.sessions[session].action, self.workload.actions);
        let next = self.sessions.get(session + 1).map_or(all, |next| next.action + after);
        (first..next.min(all)).collect()
    }

    fn cases(&self) -> Vec<Case> {
        let sessions = 0..self.sessions.len();
        sessions.flat_map(|session| self.cases_of(session)).collect()
    }

    /// Each call that the session makes, with each way in which it can fail.
    fn cases_of(&self, session: usize) -> Vec<Case> {
        let only = Some(self.actions(session, 0));
        let workload = Workload { only, ..self.workload.clone() };
        let mut trace = None;
        workload.run_from(&self.sessions[session], |disk: SimFs| {
            let fs = TraceFs::with_reads(Arc::new(disk));
            trace = Some(fs.clone());
            Arc::new(fs)
        });
        let lines = trace.expect("it ran").take();
        // Some calls fail by nature: a name that is taken, a directory that is missing.
        let calls = lines.into_iter().filter(|line| !line.starts_with('!')).zip(0..);
        calls
            .flat_map(|(line, call)| {
                let name = line.split(' ').next().unwrap_or_default().to_string();
                let case = move |kind| Case { session, call, kind, name: name.clone() };
                kinds_for(line.split(' ').next().unwrap_or_default()).into_iter().map(case)
            })
            .collect()
    }

    fn run(&self, case: &Case, watch: bool) -> (Run, u64) {
        let only = Some(self.actions(case.session, ACTIONS_AFTER));
        let workload = Workload { only, watch, faulty: true, ..self.workload.clone() };
        let mut fired = None;
        let run = workload.run_from(&self.sessions[case.session], |disk: SimFs| {
            let fs = FaultFs::over_sim(disk);
            fs.arm(Fault::new(case.kind).nth(case.call).leaving(case.left()));
            fired = Some(fs.clone());
            Arc::new(fs)
        });
        (run, fired.map_or(0, |fs| fs.fired()))
    }

    /// Runs with a fault; says what went wrong, or `None` if the fault did not fit its call, or
    /// whether the user met no error.
    fn check(self: &Arc<Sweep>, case: &Case, watch: bool) -> Result<Option<bool>, String> {
        let (sender, receiver) = mpsc::channel();
        let (sweep, its) = (self.clone(), case.clone());
        // In a thread of its own, so that a hang is seen.
        std::thread::spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| sweep.run(&its, watch)));
            let _ = sender.send(result.map_err(|panic| panic_text(&*panic)));
        });
        // Second by second, so that a process that was stopped for a while is not said to hang.
        let mut waits = (0..HANGS_AFTER.as_secs())
            .filter_map(|_| receiver.recv_timeout(Duration::from_secs(1)).ok());
        let result = waits.next().ok_or("hangs")?;
        let (run, fired) = result.map_err(|text| format!("panics: {text}"))?;
        for shot in &run.shots {
            println!("{:?} {}", shot.bounds, shot.label);
        }
        if fired == 0 {
            return Ok(None);
        }
        check_errors(&run.errors)?;
        check_ends(&run, case.kind).map_err(|text| {
            format!("{text}\n{}", run.errors[..run.errors.len().min(6)].join("\n"))
        })?;
        Ok(Some(run.errors.is_empty()))
    }
}

fn check_errors(errors: &[String]) -> Result<(), String> {
    let kinds = ["Degraded", "NoSpace", "Io(", "Corruption", "Closed"];
    let untyped = errors.iter().find(|error| !kinds.iter().any(|kind| error.contains(kind)));
    untyped.map_or(Ok(()), |error| Err(format!("an error without a fitting kind: {error}")))
}

/// What a kill and power cuts at the end leave.
fn check_ends(run: &Run, kind: FaultKind) -> Result<(), String> {
    let (image, bounds) = (run.disk.snapshot(), run.bounds);
    let mut ends = vec![("kill", image.kill(), bounds.kill)];
    // A sync that lies breaks every promise about power, and none about a killed process.
    if kind != FaultKind::DroppedSync {
        for survival in [Survival::NothingUnsynced, Survival::Everything, Survival::DataOnly] {
            ends.push(("power", image.crash(&survival), bounds.power.unwrap_or(0)));
        }
    }
    for (end, disk, lo) in ends {
        let again = disk.snapshot();
        let print = recover(&disk, Reading::Gets).map_err(|text| format!("{end}: {text}"))?;
        if !run.oracle.admits(print, lo, bounds.begun) {
            let found = found_on(&again.kill())?;
            return Err(format!("{end}: {}", run.oracle.explain(&found, lo, bounds.begun)));
        }
    }
    Ok(())
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
    /// The calls that failed at least once, by name.
    calls: BTreeMap<String, u64>,
    failures: BTreeMap<String, String>,
}

#[test]
fn every_call_may_fail_once() {
    let actions = setting("ESKER_FAULT_ACTIONS", 500) as usize;
    let (seed, quota) = (setting("ESKER_FAULT_SEED", 3), quota("ESKER_FAULT_SECONDS", 1800));
    let only = std::env::var("ESKER_FAULT_CASE").ok();
    let began = Instant::now();
    let sweep = Arc::new(Sweep::new(seed, actions));
    let mut cases = sweep.cases();
    cases.retain(|case| only.as_ref().is_none_or(|only| *only == case.to_string()));
    // In an order of its own, so that a quota leaves a fair sample.
    fastrand::Rng::with_seed(seed).shuffle(&mut cases);
    let (next, tally) = (AtomicUsize::new(0), Mutex::new(Tally::default()));
    std::thread::scope(|scope| {
        for _ in 0..settings::workers() {
            scope.spawn(|| {
                while began.elapsed() < quota
                    && let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let result = sweep.check(case, only.is_some());
                    note(&mut tally.lock().unwrap(), case, result);
                }
            });
        }
    });
    let (done, tally) = (next.into_inner().min(cases.len()), tally.into_inner().unwrap());
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{done} faults of {} in {seconds:.1} s, over {actions} actions in {} sessions; seed {seed}",
        cases.len(),
        sweep.sessions.len(),
    );
    for (kind, [fired, quiet, failed]) in &tally.counts {
        println!("{fired:7} {kind}: the user met no error in {quiet}; {failed} broke a promise");
    }
    for (call, count) in &tally.calls {
        println!("{count:7} at a call of {call}");
    }
    let fired = tally.counts.values().map(|[fired, ..]| fired).sum();
    settings::tally(&[("faults", fired)]);
    let failures: Vec<_> = tally.failures.into_values().collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    let complete = done == cases.len() || settings::number("ESKER_FAULT_SECONDS").is_some();
    assert!(complete, "not every call was tried: allow more ESKER_FAULT_SECONDS");
}

fn note(tally: &mut Tally, case: &Case, result: Result<Option<bool>, String>) {
    let counts = tally.counts.entry(format!("{:?}", case.kind)).or_default();
    match result {
        Ok(None) => return,
        Ok(Some(quiet)) => {
            counts[0] += 1;
            counts[1] += u64::from(quiet);
        }
        Err(text) => {
            counts[2] += 1;
            let short: String = text.chars().filter(|c| !c.is_ascii_digit()).take(90).collect();
            let text = format!(
                "{text}\nto see it alone:\n  ESKER_FAULT_CASE={case} \\\n  \
                 cargo test --all-features --test it crash::faults::every -- --nocapture"
            );
            tally.failures.entry(short).or_insert(text);
        }
    }
    *tally.calls.entry(case.name.clone()).or_default() += 1;
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

/// Bug: a keyspace whose drop failed came back with a hole: its later commits without its earlier
/// ones. Cause: it did not pin its logs any more from the moment when the drop began, so a flush
/// of another keyspace let them go though the drop was never durable. Fix: it pins them until it
/// is.
#[test]
fn a_keyspace_whose_drop_failed_comes_back_whole() {
    let (mut failed, mut came_back) = (0, 0);
    for seed in 0..150 {
        let disk = SimFs::new();
        disk.on_call(Arc::new(|_, _, _| esker::runtime::yield_point()));
        let fs = FaultFs::over_sim(disk.clone());
        let runtime = Runtime::stepper(seed);
        let mut options = Options::tiny();
        options.threads = 1;
        let db = Db::open_on(Arc::new(fs.clone()), runtime, DIR, options).unwrap();
        let more = db.keyspace("more", KeyspaceOptions::new()).unwrap();
        more.put("first", "1").unwrap();
        // Some memtables of the other keyspace are being flushed now.
        (0..12 + seed % 8).for_each(|i| db.put(format!("{i}"), vec![b'x'; 300]).unwrap());
        more.put("second", "2").unwrap();
        drop(more);
        fs.arm(Fault::new(FaultKind::Io).on(Select::all().name("sync").site("log.sync")));
        failed += u64::from(db.drop_keyspace("more").is_err());
        drop(db);
        let found = found_on(&disk.snapshot().kill()).expect("it opens");
        if let Some(found) = found.get("more") {
            came_back += 1;
            assert_eq!(found.len(), 2, "seed {seed}: {found:?}");
        }
    }
    assert!(failed > 20 && came_back > 20, "{failed} drops failed, {came_back} keyspaces are back");
}
