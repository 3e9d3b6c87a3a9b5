//! The parent: starts this program again for each engine and database, and collects the rows.
//!
//! Engines take turns group by group, and their order is reversed in every other round, so that
//! none always runs on the disk that another has just filled. Before each child the kernel writes
//! out what the one before left, and memory is claimed from the host.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::Compare;
use crate::engine::Kind;
use crate::failure::{Failure, Result};
use crate::job::{Event, Job, Row, Stage};
use crate::keys::Key;
use crate::machine::{self, MemoryLimit};
use crate::report::{self, Results};
use crate::workload::{Group, Workload};

/// As often an LSM tree may have each byte in the page cache: log, flush, compactions.
const WRITTEN_TIMES: u64 = 5;
/// Caches and write buffers.
const CLAIMED_BYTES_MIN: u64 = 512 << 20;
/// SIGKILL, by which the writer of the recovery workload ends itself.
const KILLED: i32 = 9;

/// Runs everything and reports. False if a child failed.
pub fn run(compare: &Compare) -> Result<bool> {
    let (kinds, plan) = (compare.kinds()?, compare.plan());
    let place = Place::make(&compare.db)?;
    let limit = compare.memory_limit.map(MemoryLimit::make).transpose()?;
    let limited = compare.memory_limit.map(|bytes| format!("; {} MiB a process", bytes >> 20));
    let mut results = Results {
        kinds: kinds.clone(),
        plan: plan.clone(),
        machine: machine::describe() + &limited.unwrap_or_default(),
        load: machine::load_average(),
        sync_us: machine::sync_time(&place.0)?.as_secs_f64() * 1e6,
        rounds: compare.rounds(),
        rows: Vec::new(),
        failures: Vec::new(),
    };
    let bar = ProgressBar::new_spinner();
    let style = "{spinner} {elapsed} {prefix} {wide_msg}";
    bar.set_style(ProgressStyle::with_template(style).expect("a constant template"));
    let groups = Group::of(&compare.workloads());
    let total = results.rounds * groups.len() * kinds.len();
    let mut turn = 0;
    for round in 0..results.rounds {
        for (group, workloads) in &groups {
            let mut order = kinds.clone();
            if round % 2 == 1 {
                order.reverse();
            }
            for engine in order {
                turn += 1;
                bar.set_prefix(format!("[{turn}/{total}] {}", engine.name()));
                let job = Job {
                    engine,
                    group: *group,
                    stage: Stage::Whole,
                    workloads: workloads.clone(),
                    plan: plan.clone(),
                    dir: place.0.join(engine.name()),
                };
                play(job, limit.as_ref(), round, &bar, &mut results)?;
            }
        }
    }
    bar.finish_and_clear();
    results.load = format!("{} before, {} after", results.load, machine::load_average());
    report::print(&results, compare.is_pair())?;
    if let Some(file) = &compare.json {
        report::write_json(&results, file)?;
    }
    if let Some(file) = &compare.report {
        report::write_html(&results, file)?;
    }
    Ok(results.failures.is_empty())
}

/// Runs the stages of one group on one engine.
fn play(
    job: Job,
    limit: Option<&MemoryLimit>,
    round: usize,
    bar: &ProgressBar,
    results: &mut Results,
) -> Result<()> {
    let stages: &[Stage] = match job.group {
        Group::Recovery | Group::Open => &[Stage::Before, Stage::After],
        _ => &[Stage::Whole],
    };
    // Otherwise the disk still writes what the last database left.
    rustix::fs::sync();
    let bytes = job.records() * (size_of::<Key>() + job.value_bytes()) as u64;
    machine::claim_memory(WRITTEN_TIMES * bytes + CLAIMED_BYTES_MIN);
    for &stage in stages {
        let job = Job { stage, ..job.clone() };
        let (engine, group) = (job.engine, job.group);
        if let Err(failure) = start(&job, limit, round, bar, &mut results.rows) {
            let text = format!("{} in {group:?}: {failure}", engine.name());
            bar.suspend(|| eprintln!("compare: {text}"));
            results.failures.push(text);
            break;
        }
    }
    remove(&job.dir)
}

/// Runs one child to its end.
fn start(
    job: &Job,
    limit: Option<&MemoryLimit>,
    round: usize,
    bar: &ProgressBar,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("run-one")
        .arg(serde_json::to_string(job)?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    // It has hardly begun.
    if let Some(Err(failure)) = limit.map(|limit| limit.put(child.id())) {
        child.kill()?;
        child.wait()?;
        return Err(failure);
    }
    let output = child.stdout.take().expect("it is piped");
    let told = listen(output, round, bar, rows);
    let status = child.wait()?;
    told?;
    let may_be_killed = job.group == Group::Recovery && job.stage == Stage::Before;
    match may_be_killed && status.signal() == Some(KILLED) || status.success() {
        true => Ok(()),
        false => Err(Failure::new(format!("the child ended with {status}"))),
    }
}

/// Takes what a child tells until it ends.
fn listen(output: ChildStdout, round: usize, bar: &ProgressBar, rows: &mut Vec<Row>) -> Result<()> {
    let mut failure = None;
    for line in BufReader::new(output).lines() {
        match serde_json::from_str(&line?)? {
            Event::Doing(what) => bar.set_message(what),
            Event::Progress(workload, ops, target) => {
                let percent = 100 * ops / target.max(1);
                bar.set_message(format!("{} {percent} %", workload.name()));
            }
            Event::Row(mut row) => {
                row.round = round;
                // A hidden bar is in no terminal, but in a log.
                if bar.is_hidden() {
                    eprintln!("{}", report::line(&row));
                }
                rows.push(*row);
            }
            Event::Failed(text) => failure = Some(Failure::new(text)),
        }
        bar.tick();
    }
    failure.map_or(Ok(()), Err)
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}

/// A directory of this run inside the given one; removed at the end with what is in it.
struct Place(PathBuf);

impl Place {
    fn make(parent: &Path) -> Result<Place> {
        let place = parent.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&place)
            .map_err(|error| Failure::new(format!("creating {}: {error}", place.display())))?;
        Ok(Place(place))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
        // Stays if there is anything else in it.
        if let Some(parent) = self.0.parent() {
            drop(fs::remove_dir(parent));
        }
    }
}

impl Results {
    /// The row with the median result of all rounds.
    pub fn median(&self, engine: Kind, workload: Workload) -> Option<&Row> {
        let mut rows: Vec<&Row> = self.rounds_of(engine, workload).collect();
        rows.sort_by(|one, other| one.value().total_cmp(&other.value()));
        rows.get(rows.len() / 2).copied()
    }

    /// The rows of all rounds.
    pub fn rounds_of(&self, engine: Kind, workload: Workload) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.engine == engine && row.workload == workload)
    }

    /// The workloads with rows, in order.
    pub fn workloads(&self) -> Vec<Workload> {
        let mut workloads: Vec<_> = self.rows.iter().map(|row| row.workload).collect();
        workloads.sort_unstable();
        workloads.dedup();
        workloads
    }
}
