//! One failing case: its name, the report of it, its reduction to less, and its rerun.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use esker::fs::trace::TraceFs;

use crate::crash::ends::{End, simpler};
use crate::crash::enumerate::{Ledger, Plan, Violation, bounds, enumerate, explain, go_on_run};
use crate::crash::oracle::Reading;
use crate::crash::recovery::{open, recover, write_on};
use crate::crash::workload::{Run, Shot, Workload};

/// Which case: for each crash in a row the run's seed, the moment, and the end.
pub type Case = Vec<(u64, usize, End)>;

fn case_text(case: &Case) -> String {
    let parts = case.iter().map(|(seed, shot, end)| format!("{seed}:{shot}:{end}"));
    parts.collect::<Vec<_>>().join("/")
}

fn parsed(case: &str) -> Case {
    let part = |part: &str| {
        let [seed, shot, end] = part.split(':').collect::<Vec<_>>()[..] else {
            panic!("a case is seed:moment:end/…, not {part:?}");
        };
        (seed.parse().unwrap(), shot.parse().unwrap(), end.parse().unwrap())
    };
    case.split('/').map(part).collect()
}

/// What is left of this moment if a simpler end fails too.
fn simplest(run: &Run, shot: &Shot, end: &End) -> End {
    let fails = |end: &End| {
        let Some((lo, hi)) = bounds(shot, end) else { return false };
        let found = recover(&end.of(&shot.image), Reading::Forward);
        !found.is_ok_and(|print| run.oracle.admits(print, lo, hi))
    };
    simpler(&shot.image, end).into_iter().find(fails).unwrap_or_else(|| end.clone())
}

/// The text of a violation: what is wrong, the calls that led to it, what was pending, and the
/// command that shows it alone.
pub fn report(run: &Run, case: &Case, workload: &Workload, text: &str) -> String {
    let mut case = case.clone();
    let (_, index, end) = case.last_mut().expect("at least one crash");
    let shot = &run.shots[*index];
    let simple = simplest(run, shot, end);
    let text = match simple == *end {
        true => text.to_string(),
        false => explain(run, shot, &simple),
    };
    let index = *index;
    *end = simple.clone();
    format!(
        "{text}\nlast calls, with the steps a kill and a power cut must leave, and those begun:\n{}\
         pending:\n  {}\nend: {simple:?}\nto see it alone:\n  ESKER_CRASH_CASE={} {} \\\n  \
         cargo test --all-features --test it crash::one_case -- --nocapture\n",
        calls_before(run, index, 12),
        shot.image.describe_pending().join("\n  "),
        case_text(&case),
        workload.settings(),
    )
}

fn calls_before(run: &Run, index: usize, count: usize) -> String {
    let first = (index + 1).saturating_sub(count);
    let shots = run.shots[first..=index].iter().enumerate();
    let line = |(i, shot): (usize, &Shot)| {
        let bounds = shot.bounds;
        let power = bounds.power.map_or("-".to_string(), |power| power.to_string());
        format!("{:6} {:4} {power:>4} {:4}  {}\n", first + i, bounds.kill, bounds.begun, shot.label)
    };
    shots.map(line).collect()
}

/// Reduces the workload behind a violation to fewer actions, as long as there is time: a violation
/// of what is left, if any, instead.
pub fn reduced(workload: &Workload, plan: &Plan, found: Violation, quota: Duration) -> Violation {
    let (began, mut least) = (Instant::now(), found);
    let mut actions: Vec<usize> =
        workload.only.clone().unwrap_or_else(|| (0..workload.actions).collect());
    let plan = Plan { deeper_every: Vec::new(), quota: quota / 8, ..plan.clone() };
    let mut part = actions.len().div_ceil(2);
    while part > 0 && began.elapsed() < quota {
        let mut at = 0;
        while at < actions.len() && began.elapsed() < quota {
            let mut fewer = actions.clone();
            fewer.drain(at..(at + part).min(actions.len()));
            let workload = Workload { only: Some(fewer.clone()), ..workload.clone() };
            let Ok(run) = catch_unwind(AssertUnwindSafe(|| workload.run())) else {
                at += part;
                continue;
            };
            match enumerate(&run, &workload, &plan, &Ledger::default()) {
                Err(violation) => (actions, least) = (fewer, violation),
                Ok(_) => at += part,
            }
        }
        part = if part == 1 { 0 } else { part.div_ceil(2) };
    }
    least
}

/// Runs one case again, with everything that led to it. `None` if it passes.
pub fn show_case(case: &str, workload: &Workload) -> Option<String> {
    let case = parsed(case);
    let mut run = Workload { seed: case[0].0, ..workload.clone() }.run();
    for (depth, (seed, index, end)) in case.iter().enumerate() {
        let shot = &run.shots[*index];
        println!("--- run {depth}, seed {seed}: the calls up to moment {index}");
        println!("{}", calls_before(&run, *index, 60));
        println!("--- pending:\n{}", shot.image.describe_pending().join("\n"));
        println!("--- then: {end:?}");
        if let Some((seed, ..)) = case.get(depth + 1) {
            run = go_on_run(end, &shot.image, *seed);
            continue;
        }
        println!("--- the recovery:");
        let trace = TraceFs::with_reads(Arc::new(end.of(&shot.image)));
        let opened = catch_unwind(AssertUnwindSafe(|| open(Arc::new(trace.clone())).map(drop)));
        println!("{}\n{opened:?}", trace.take().join("\n"));
        let (lo, hi) = bounds(shot, end)?;
        let disk = end.of(&shot.image);
        return match recover(&disk, Reading::Gets) {
            Err(error) => Some(error),
            // What the enumeration does on a sample: it may be there that it failed.
            Ok(print) if run.oracle.admits(print, lo, hi) => write_on(&disk, print).err(),
            Ok(_) => Some(explain(&run, shot, end)),
        };
    }
    None
}
