//! Opening: after a SIGKILL, and after a close in good order. The process that opens is not the
//! one that wrote.

use std::time::Duration;

use crate::child::{Recorder, Scene, tell};
use crate::engine::{Durability, Order, Setup};
use crate::failure::{Failure, Result};
use crate::job::{Event, Job, Stage};
use crate::keys::key_of;
use crate::meter::{Meter, Shared};
use crate::workload::{Group, Workload};

/// Keys and values in the log when the process is killed.
const LOG_BYTES: u64 = 15 << 20;
/// How often a closed database is opened.
const OPENINGS: u64 = 5;
/// Opening is not cut off.
const FOREVER: Duration = Duration::from_secs(3600);
fn setup(job: &Job) -> Setup {
    let memory_bytes = job.plan.memory_bytes;
    Setup { durability: Durability::Process, counters: false, memory_bytes }
}

/// Runs one stage.
pub fn run(job: &Job) -> Result<()> {
    match (job.group, job.stage) {
        (Group::Recovery, Stage::Before) => write_and_die(job),
        (Group::Recovery, _) => recover(job),
        (_, Stage::Before) => {
            let scene = Scene::open(job)?;
            scene.complete(0)?;
            scene.engine.close()
        }
        _ => open_often(job),
    }
}

/// How many records make up the log.
fn logged(job: &Job) -> u64 {
    LOG_BYTES / (16 + job.plan.value_bytes as u64)
}

/// Writes the log, each record acknowledged, and kills this process as SIGKILL does.
fn write_and_die(job: &Job) -> Result<()> {
    let scene = Scene::open(job)?;
    scene.prepare("writing the log", || {
        (0..logged(job))
            .try_for_each(|record| scene.engine.put(&key_of(record), scene.pool.value(record)))
    })?;
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)?;
    Err(Failure::new("this process outlived its SIGKILL"))
}

fn recover(job: &Job) -> Result<()> {
    let recorder = Recorder::begin(job, Workload::Recovery);
    let shared = Shared::default();
    let mut meter = Meter::start(&shared, FOREVER);
    let engine = job.engine.open(&job.dir, setup(job))?;
    meter.end(1);
    let mut row = recorder.end(&meter.finish(), 1);
    let mut kept = 0;
    engine.scan(b"", Order::Forward, &mut |_, _| {
        kept += 1;
        true
    })?;
    let lost = logged(job) - kept;
    row.note = match lost {
        0 => "kept all that was acknowledged".to_owned(),
        _ => format!("LOST {lost} of {} acknowledged records", logged(job)),
    };
    tell(&Event::Row(Box::new(row)));
    engine.close()
}

fn open_often(job: &Job) -> Result<()> {
    let recorder = Recorder::begin(job, Workload::Open);
    let shared = Shared::default();
    let mut meter = Meter::start(&shared, FOREVER);
    let mut rng = fastrand::Rng::with_seed(job.plan.seed);
    for _ in 0..OPENINGS {
        meter.skip();
        let engine = job.engine.open(&job.dir, setup(job))?;
        let record = rng.u64(..job.plan.records);
        if !engine.get(&key_of(record), &mut |_| {})? {
            return Err(Failure::new(format!("record {record} is gone after a close")));
        }
        meter.end(1);
        engine.close()?;
    }
    tell(&Event::Row(Box::new(recorder.end(&meter.finish(), OPENINGS))));
    Ok(())
}
