//! A child process: one engine, one database, the workloads of one group.
//!
//! 1. Open an empty database.
//! 2. Fill it, measured if asked for, else in batches.
//! 3. Each workload: wait until the engine rests from what the one before wrote, take the kernel's
//!    counters, run, settle, take the counters again, tell the row.
//!
//! Results are checked as they come: a read that should find its record and does not, a scan with
//! a row too few, a counter that is off ends the child with an error.

mod counters;
mod crew;
mod deletes;
mod fills;
mod mixes;
mod opening;
mod overload;
mod queue;
mod reads;

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::engine::{Durability, Engine, Setup};
use crate::failure::Result;
use crate::job::{Event, Job, Latency, Row, Stage};
use crate::keys::{Permutation, Pool};
use crate::machine::{Usage, disk_bytes, wait_until_idle};
use crate::meter::Tally;
use crate::workload::{Group, Workload};

/// A sync costs 0.1 to 4 ms: more seconds of it show nothing new.
const SYNC_LIMIT: Duration = Duration::from_secs(5);

/// An engine rests once its process has done nothing for so long. Some begin to tidy up only when nobody
/// writes: esker after a second.
const REST: Duration = Duration::from_millis(1500);

/// Does the job and tells about it on standard output. True if all went well.
pub fn run(job: &Job) -> bool {
    let outcome = match job.stage {
        Stage::Before | Stage::After => opening::run(job),
        Stage::Whole => Scene::open(job).and_then(Scene::play),
    };
    if let Err(failure) = &outcome {
        tell(&Event::Failed(failure.to_string()));
    }
    outcome.is_ok()
}

/// Tells the parent. It reads line by line, so that a line is written in one piece.
fn tell(event: &Event) {
    let mut line = serde_json::to_vec(event).expect("events are plain data");
    line.push(b'\n');
    // Without a parent there is nobody to tell, and its end ends this process as well.
    drop(std::io::stdout().lock().write_all(&line));
}

/// An open database and what is drawn from.
struct Scene<'a> {
    job: &'a Job,
    engine: Box<dyn Engine>,
    /// The order of random fills: the `n`-th put is of this record.
    order: Permutation,
    pool: Pool,
    /// Something was written, after which nobody has waited until the process rests.
    wrote: AtomicBool,
}

/// What an operation writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writes {
    /// Nothing, so that there is nothing to settle.
    Nothing,
    /// So many bytes of key and value.
    Bytes(u64),
    /// Some operations write, others do not.
    Mixed,
}

/// What the threads of a workload did.
struct Played {
    tally: Tally,
    writer_rate: Option<f64>,
    max_running: Option<f64>,
    note: String,
}

impl From<Tally> for Played {
    fn from(tally: Tally) -> Played {
        Played { tally, writer_rate: None, max_running: None, note: String::new() }
    }
}

impl<'a> Scene<'a> {
    fn open(job: &'a Job) -> Result<Scene<'a>> {
        let disk = |workload| {
            use Workload::*;
            matches!(workload, Fillsync1 | Fillsync2 | Fillsync8 | Fillsync32)
        };
        let durability = match job.group {
            Group::Fill(workload) if disk(workload) => Durability::Disk,
            _ => Durability::Process,
        };
        let counters = matches!(job.group, Group::Counters(_));
        let setup = Setup { durability, counters, memory_bytes: job.plan.memory_bytes };
        Ok(Scene {
            job,
            engine: job.engine.open(&job.dir, setup)?,
            order: Permutation::new(job.records(), job.plan.seed),
            pool: Pool::new(job.value_bytes(), job.plan.seed),
            wrote: AtomicBool::new(false),
        })
    }

    /// Runs the workloads.
    fn play(self) -> Result<()> {
        match self.job.group {
            Group::Fill(Workload::Overload) => self.play_overload()?,
            Group::Sequential | Group::Fill(_) => {
                self.job
                    .workloads
                    .iter()
                    .try_for_each(|workload| self.fill(*workload).map(drop))?;
            }
            Group::Records => self.play_records()?,
            Group::Counters(workload) => self.play_counters(workload)?,
            Group::Queue => self.play_queue()?,
            Group::Deletes => self.play_deletes()?,
            Group::Tombstones => self.play_tombstones()?,
            Group::Values4k => self.play_values(Workload::Fill4k, Workload::Read4k)?,
            Group::Values64k => self.play_values(Workload::Fill64k, Workload::Read64k)?,
            Group::Recovery | Group::Open => unreachable!("these have stages"),
        }
        self.engine.close()
    }

    /// Whether the workload was asked for.
    fn wants(&self, workload: Workload) -> bool {
        self.job.workloads.contains(&workload)
    }

    /// Runs one workload, settles if it writes, and tells the row; how many operations it
    /// did.
    fn measure(
        &self,
        workload: Workload,
        target: u64,
        writes: Writes,
        run: impl FnOnce() -> Result<Played>,
    ) -> Result<u64> {
        let is_just_after =
            matches!(workload, Workload::Readcounters | Workload::Tombseek10 | Workload::Tombscan);
        if !is_just_after && self.wrote.swap(false, Ordering::Relaxed) {
            tell(&Event::Doing("resting".to_owned()));
            wait_until_idle(REST, || true);
        }
        tell(&Event::Progress(workload, 0, target));
        let recorder = Recorder::begin(self.job, workload);
        let written = self.engine.written_bytes();
        let played = run()?;
        self.wrote.fetch_or(writes != Writes::Nothing, Ordering::Relaxed);
        let settle_start = Instant::now();
        if writes != Writes::Nothing {
            self.engine.settle()?;
        }
        let settled_after = settle_start.elapsed();
        let mut row = recorder.end(&played.tally, target);
        if writes != Writes::Nothing {
            row.settle_seconds = settled_after.as_secs_f64();
            let now = self.engine.written_bytes();
            row.engine_written_bytes = now.zip(written).map(|(now, before)| now - before);
        }
        if let Writes::Bytes(bytes) = writes {
            row.user_bytes = played.tally.ops * bytes;
        }
        row.writer_rate = played.writer_rate;
        row.latency.max_running = played.max_running;
        row.note = played.note;
        tell(&Event::Row(Box::new(row)));
        Ok(played.tally.ops)
    }

    /// Does what is not measured.
    fn prepare(&self, what: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
        tell(&Event::Doing(what.to_owned()));
        run()
    }

    /// How long a workload may take.
    fn limit(&self, workload: Workload) -> Duration {
        use Workload::*;
        match workload {
            Fillsync1 | Fillsync2 | Fillsync8 | Fillsync32 => self.job.plan.limit.min(SYNC_LIMIT),
            _ => self.job.plan.limit,
        }
    }

    /// Random draws of one thread of a workload: the same for every engine, others for every
    /// workload and thread.
    fn rng(&self, workload: Workload, thread: usize) -> fastrand::Rng {
        let stream = (workload as u64 + 1) << 32 | thread as u64;
        fastrand::Rng::with_seed(self.job.plan.seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// Takes the kernel's counters around a workload.
struct Recorder<'a> {
    job: &'a Job,
    workload: Workload,
    before: Usage,
}

impl<'a> Recorder<'a> {
    fn begin(job: &'a Job, workload: Workload) -> Recorder<'a> {
        Recorder { job, workload, before: Usage::begin() }
    }

    fn end(self, tally: &Tally, target: u64) -> Row {
        let us = |quantile| tally.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        Row {
            engine: self.job.engine,
            workload: self.workload,
            round: 0,
            ops: tally.ops,
            capped: tally.capped && tally.ops < target,
            seconds: tally.elapsed.as_secs_f64(),
            settle_seconds: 0.0,
            latency: Latency {
                p50: us(0.5),
                p99: us(0.99),
                p999: us(0.999),
                max: tally.latencies.max() as f64 / 1000.0,
                max_running: None,
            },
            user_bytes: 0,
            usage: Usage::now().since(self.before),
            engine_written_bytes: None,
            disk_bytes: disk_bytes(&self.job.dir),
            writer_rate: None,
            note: String::new(),
            curve: tally.curve(),
        }
    }
}
