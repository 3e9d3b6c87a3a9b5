//! What becomes of a database under three times its load.
//!
//! 1. Writers that wait put records drawn at random, as fast as they are let: half of the operations,
//!    or of the time. What they get through is the sustained rate.
//! 2. Then three times as much is offered, by the clock, to writers that do not wait. Who is told
//!    `Busy` comes back after `retry_after`, and what is offered to it meanwhile is shed.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use esker::{Db, ErrorKind};

use crate::bench::Plan;
use crate::bench::keys::{Key, Pool};
use crate::bench::machine::{Memory, cpu_time, disk_bytes};
use crate::bench::meter::Tally;
use crate::bench::report::Printer;
use crate::bench::run::Measured;
use crate::bench::subject::Subject;
use crate::bench::workload::{Part, Workload};
use crate::failure::Result;

/// How many times the sustained rate is offered.
const LOAD: f64 = 3.0;
/// A point of the curves covers so much.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Who is ahead of the clock by less does not sleep: that takes 60 µs by itself.
const GRAIN: Duration = Duration::from_micros(200);

/// What was offered, and what became of it.
pub struct Overload {
    /// Writes a second that writers who wait got through.
    pub sustained: f64,
    pub offered: u64,
    /// Tries after a wait of `retry_after`, and how many of them were let in.
    pub retries: u64,
    pub retries_in: u64,
    pub points: Vec<Point>,
}

/// A moment of it.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Seconds since more was offered than is sustained.
    pub at: f64,
    /// Up to then.
    pub offered: u64,
    pub accepted: u64,
    /// The longest wait of a write that was let in, its waits for `retry_after` included, since the
    /// point before, in milliseconds.
    pub slowest_ms: f64,
}

#[derive(Default)]
struct Load {
    offered: AtomicU64,
    accepted: AtomicU64,
    retries: AtomicU64,
    retries_in: AtomicU64,
    slowest_ns: AtomicU64,
    ended: AtomicBool,
}

/// Runs `overload`, on a database of its own.
pub fn measure(plan: &Plan, subject: &Subject, printer: &Printer) -> Result<Measured> {
    let workload = Workload::Overload;
    let bar = printer.bar(&workload.name(), Some(plan.records), plan.duration);
    let dir = subject.dir.join("overload");
    let db = Db::open_with(&dir, plan.options())?;
    let pool = Pool::new(plan.value_size, plan.seed);
    let cpu_before = cpu_time();
    Memory::forget_peak();
    let began = Instant::now();
    let parts = Part::split(plan, workload);
    let sustained = saturate(plan, &db, &pool, &parts)?;
    let load = Load::default();
    let (tally, points) = drive(plan, &db, &pool, &parts, sustained * LOAD, &load)?;
    let counted_bytes = db.stats().memory.total();
    bar.finish();
    let stalled = db.stats().stalls.iter().map(|stall| stall.time).sum();
    let settling = Instant::now();
    db.flush()?;
    db.settle()?;
    let settle = settling.elapsed();
    let disk_bytes = disk_bytes(&dir);
    db.close()?;
    fs::remove_dir_all(&dir)?;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Ok(Measured {
        workload,
        tally,
        curve: vec![(0.0, 0), (began.elapsed().as_secs_f64(), count(&load.accepted))],
        writer_rate: None,
        sync_time: None,
        settle,
        cpu: cpu_time() - cpu_before,
        write_amplification: None,
        space_amplification: None,
        disk_bytes,
        memory: Memory::now(),
        counted_bytes,
        stalled,
        overload: Some(Overload {
            sustained,
            offered: count(&load.offered),
            retries: count(&load.retries),
            retries_in: count(&load.retries_in),
            points,
        }),
    })
}

/// Writes a second that writers who wait get through.
fn saturate(plan: &Plan, db: &Db, pool: &Pool, parts: &[Part]) -> Result<f64> {
    let began = Instant::now();
    let until = plan.duration.map(|duration| began + duration / 2);
    let write = |part: &Part| -> Result<u64> {
        let (mut key, mut values) =
            (Key::new(plan.key_size, plan.records), pool.values(part.thread));
        let mut draws = part.draws(plan, Workload::Overload, 0);
        let most = (part.records.end - part.records.start).div_ceil(2);
        let mut count = 0;
        while until.map_or(count < most, |until| Instant::now() < until) {
            db.put(key.of(draws.next()), values.next())?;
            count += 1;
        }
        Ok(count)
    };
    let counts = thread::scope(|scope| {
        let threads: Vec<_> = parts.iter().map(|part| scope.spawn(|| write(part))).collect();
        let joined = threads.into_iter().map(|thread| thread.join().expect("a writer panicked"));
        joined.collect::<Result<Vec<u64>>>()
    })?;
    Ok(counts.iter().sum::<u64>() as f64 / began.elapsed().as_secs_f64())
}

/// Offers `rate` writes a second.
fn drive(
    plan: &Plan,
    db: &Db,
    pool: &Pool,
    parts: &[Part],
    rate: f64,
    load: &Load,
) -> Result<(Tally, Vec<Point>)> {
    let began = Instant::now();
    let looked = || {
        let mut points = vec![Point { at: 0.0, offered: 0, accepted: 0, slowest_ms: 0.0 }];
        while !load.ended.load(Ordering::Relaxed) {
            thread::sleep(LOOK_EVERY.min(plan.duration.unwrap_or(LOOK_EVERY) / 4));
            points.push(load.look(began));
        }
        points
    };
    thread::scope(|scope| {
        let watcher = scope.spawn(looked);
        let offer = |part| offer(plan, db, pool, part, rate / parts.len() as f64, load, began);
        let threads: Vec<_> = parts.iter().map(|part| scope.spawn(move || offer(part))).collect();
        let joined: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        // Before anything else: the watcher looks on until then.
        load.ended.store(true, Ordering::Relaxed);
        let tallies = joined.into_iter().map(|joined| joined.expect("a writer panicked"));
        let tallies: Result<Vec<Tally>> = tallies.collect();
        let points = watcher.join().expect("the watcher panicked");
        let mut total = Tally::new();
        tallies?.iter().for_each(|tally| total.add(tally));
        total.elapsed = began.elapsed();
        Ok((total, points))
    })
}

/// One thread's part of what is offered.
fn offer(
    plan: &Plan,
    db: &Db,
    pool: &Pool,
    part: &Part,
    rate: f64,
    load: &Load,
    began: Instant,
) -> Result<Tally> {
    let (mut key, mut values) = (Key::new(plan.key_size, plan.records), pool.values(part.thread));
    let mut draws = part.draws(plan, Workload::Overload, 1);
    let most = (part.records.end - part.records.start).div_ceil(2);
    let bytes = (plan.key_size + plan.value_size) as u64;
    let mut tally = Tally::new();
    let (mut not_before, mut refused_at) = (began, None);
    for number in 0.. {
        let now = Instant::now();
        let is_over = plan.duration.map_or(number >= most, |d| now - began >= d / 2);
        // At least one is let in, so that there is something to report.
        if is_over && tally.ops > 0 {
            break;
        }
        let due = began + Duration::from_secs_f64(number as f64 / rate);
        let wait = due.saturating_duration_since(now);
        if wait > GRAIN {
            thread::sleep(wait);
        }
        load.offered.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        if now < not_before {
            continue;
        }
        let is_retry = refused_at.is_some();
        load.retries.fetch_add(u64::from(is_retry), Ordering::Relaxed);
        match db.try_put(key.of(draws.next()), values.next()) {
            Ok(()) => {
                load.retries_in.fetch_add(u64::from(is_retry), Ordering::Relaxed);
                load.accepted.fetch_add(1, Ordering::Relaxed);
                let took = refused_at.take().unwrap_or(now).elapsed();
                load.slowest_ns.fetch_max(took.as_nanos() as u64, Ordering::Relaxed);
                tally.time(took, 1, bytes);
            }
            Err(error) => match error.kind() {
                ErrorKind::Busy { retry_after, .. } => {
                    refused_at.get_or_insert(now);
                    not_before = now + *retry_after;
                }
                _ => return Err(error.into()),
            },
        }
    }
    Ok(tally)
}

impl Load {
    fn look(&self, began: Instant) -> Point {
        Point {
            at: began.elapsed().as_secs_f64(),
            offered: self.offered.load(Ordering::Relaxed),
            accepted: self.accepted.load(Ordering::Relaxed),
            slowest_ms: self.slowest_ns.swap(0, Ordering::Relaxed) as f64 / 1e6,
        }
    }
}
