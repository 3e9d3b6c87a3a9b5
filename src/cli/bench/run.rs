//! The threads of one workload, watched: a progress bar, a curve, and everything that is measured
//! around them.

use std::sync::Barrier;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use esker::{
    Batch, Batcher, BatcherOptions, Coalescer, CoalescerOptions, Db, Event, IngestOptions,
    IngestQueue, Stats,
};

use crate::bench::keys::Pool;
use crate::bench::machine::{Memory, cpu_time, disk_bytes, sync_time};
use crate::bench::meter::{Meter, Shared, Tally};
use crate::bench::overload::Overload;
use crate::bench::report::{Bar, Printer};
use crate::bench::subject::Subject;
use crate::bench::workload::{COALESCED_KEYS, Part, Scene, Workload};
use crate::bench::{Durability, Plan};
use crate::failure::{Failure, Result};

/// How often the threads are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is known about a workload once it ran.
pub struct Measured {
    pub workload: Workload,
    pub tally: Tally,
    /// Seconds since the start, and operations up to then.
    pub curve: Vec<(f64, u64)>,
    /// Operations a second of the writer of readwhilewriting.
    pub writer_rate: Option<f64>,
    /// A lone `fdatasync` of the disk at that time, where commits wait for it.
    pub sync_time: Option<Duration>,
    /// From the last operation until nothing was left to flush or compact.
    pub settle: Duration,
    /// Processor time of the process, settling included.
    pub cpu: Duration,
    /// Bytes of log and tables written for each byte of the user's; none without writes.
    pub write_amplification: Option<f64>,
    /// Bytes on disk for each live byte of the user's; none without any.
    pub space_amplification: Option<f64>,
    /// What the files take on the disk, preallocated space included.
    pub disk_bytes: u64,
    /// The most memory of the process, and the most without mapped files that was seen.
    pub memory: Memory,
    /// What the engine counts against its budget, before settling.
    pub counted_bytes: u64,
    /// How long writers were held back, summed over them.
    pub stalled: Duration,
    /// What else there is to say of overload.
    pub overload: Option<Overload>,
}

/// Runs a workload on the subject and brings the subject's books up to date.
pub fn measure(
    plan: &Plan,
    subject: &mut Subject,
    workload: Workload,
    round: usize,
    printer: &Printer,
) -> Result<Measured> {
    let synced =
        workload == Workload::Fillsync || workload.writes() && plan.durability == Durability::Disk;
    // An unsupported directory or a full disk will show in the workload itself.
    let sync_time = if synced { sync_time(&subject.dir).ok() } else { None };
    let pool = Pool::new(plan.value_size, plan.seed);
    let merges = matches!(workload, Workload::Mergerandom | Workload::Coalescing);
    let counters = if merges { Some(subject.counters_keyspace()?) } else { None };
    let (db, live) = (subject.db(), &subject.live);
    let batcher = match workload {
        Workload::Batching => {
            let mut options = BatcherOptions::default();
            options.count_max = usize::try_from(plan.batch).unwrap_or(usize::MAX);
            Some(Batcher::new(db, options)?)
        }
        _ => None,
    };
    let coalescer = match (&counters, workload) {
        (Some(counters), Workload::Coalescing) => {
            Some(Coalescer::new(db, counters, CoalescerOptions::default())?)
        }
        _ => None,
    };
    let queue = match workload {
        Workload::Ingest => Some(queue_into(db)?),
        _ => None,
    };
    let scene =
        Scene { plan, workload, round, db, counters, batcher, coalescer, queue, live, pool: &pool };
    let parts = Part::split(plan, workload);
    let bar = printer.bar(&workload.name(), workload.ops(plan, live), workload.limit(plan));

    Memory::forget_peak();
    let (before, cpu_before) = (db.stats(), cpu_time());
    let mut played = play(&scene, &parts, &bar)?;
    let counted_bytes = db.stats().memory.total();
    let settling = Instant::now();
    if workload.writes() {
        bar.settling();
        if let Some(queue) = &scene.queue {
            queue.close()?;
        }
        db.flush()?;
        db.settle()?;
    }
    let settle = if workload.writes() { settling.elapsed() } else { Duration::ZERO };
    let (after, cpu_after) = (db.stats(), cpu_time());
    bar.finish();

    for (part, tally) in &played.tallies {
        record(plan, subject, workload, round, part, tally.ops);
    }
    if merges {
        check_counters(subject)?;
    }
    let writer_rate = played.take_writer_rate();
    let live_bytes = subject.live_bytes(plan);
    let stored = after.table_bytes + after.log_bytes;
    Ok(Measured {
        workload,
        tally: played.total(),
        curve: played.curve,
        writer_rate,
        sync_time,
        settle,
        cpu: cpu_after - cpu_before,
        write_amplification: write_amplification(&before, &after),
        space_amplification: (live_bytes > 0).then(|| stored as f64 / live_bytes as f64),
        disk_bytes: disk_bytes(&subject.dir),
        memory: Memory { peak: Memory::now().peak, anonymous: played.anonymous_max },
        counted_bytes,
        stalled: stalled(&after).saturating_sub(stalled(&before)),
        overload: None,
    })
}

/// A queue whose events are records: the partition key is the record's.
fn queue_into(db: &Db) -> Result<IngestQueue> {
    let into = db.clone();
    let handler = move |events: &[Event<'_>], batch: &mut Batch| {
        events.iter().for_each(|event| _ = batch.put(&into, event.key, event.bytes));
        Ok(())
    };
    Ok(IngestQueue::open(db, "bench", IngestOptions::default(), handler)?)
}

fn write_amplification(before: &Stats, after: &Stats) -> Option<f64> {
    let written = |stats: &Stats| {
        stats.log_bytes_written + stats.flush_bytes_written + stats.compaction_bytes_written
    };
    let user = after.user_bytes - before.user_bytes;
    (user > 0).then(|| (written(after) - written(before)) as f64 / user as f64)
}

fn stalled(stats: &Stats) -> Duration {
    stats.stalls.iter().map(|stall| stall.time).sum()
}

/// What the threads brought back.
struct Played {
    tallies: Vec<(Part, Tally)>,
    curve: Vec<(f64, u64)>,
    anonymous_max: u64,
}

impl Played {
    /// Removes the writer beside the readers; its operations a second.
    fn take_writer_rate(&mut self) -> Option<f64> {
        let at = self.tallies.iter().position(|(part, _)| part.beside)?;
        let (_, tally) = self.tallies.remove(at);
        Some(tally.ops as f64 / tally.elapsed.as_secs_f64())
    }

    /// All threads together.
    fn total(&self) -> Tally {
        let mut total = Tally::new();
        self.tallies.iter().for_each(|(_, tally)| total.add(tally));
        total
    }
}

type Report = (Part, Tally, Result<()>);

/// Starts the threads together, watches them, and waits for the last one.
fn play(scene: &Scene<'_>, parts: &[Part], bar: &Bar) -> Result<Played> {
    let shared = Shared::default();
    let barrier = Barrier::new(parts.len() + 1);
    let limit = scene.workload.limit(scene.plan);
    thread::scope(|scope| {
        let (sender, reports) = mpsc::channel::<Report>();
        for part in parts {
            let (sender, shared, barrier) = (sender.clone(), &shared, &barrier);
            scope.spawn(move || {
                barrier.wait();
                // The writer beside the readers goes on until they are through.
                let limit = if part.beside { None } else { limit };
                let mut meter = Meter::start(shared, !part.beside, limit);
                let outcome = scene.play(part, &mut meter);
                // Nobody listens any more only if the watcher panicked.
                drop(sender.send((part.clone(), meter.finish(), outcome)));
            });
        }
        drop(sender);
        barrier.wait();
        watch(&shared, parts, &reports, bar)
    })
}

fn watch(shared: &Shared, parts: &[Part], reports: &Receiver<Report>, bar: &Bar) -> Result<Played> {
    let start = Instant::now();
    let mut workers = parts.iter().filter(|part| !part.beside).count();
    let mut played = Played { tallies: Vec::new(), curve: vec![(0.0, 0)], anonymous_max: 0 };
    let mut failure: Option<Failure> = None;
    let mut looked = start;
    loop {
        let report = reports.recv_timeout(LOOK_EVERY.saturating_sub(looked.elapsed()));
        if let Ok((part, tally, outcome)) = report {
            workers -= usize::from(!part.beside);
            played.tallies.push((part, tally));
            if let Err(first) = outcome {
                failure.get_or_insert(first);
            }
            if workers == 0 || failure.is_some() {
                shared.stop.store(true, Ordering::Relaxed);
            }
        } else if report.is_err_and(|error| error == RecvTimeoutError::Disconnected) {
            break;
        }
        if looked.elapsed() >= LOOK_EVERY {
            looked = Instant::now();
            let ops = shared.ops.load(Ordering::Relaxed);
            played.curve.push((start.elapsed().as_secs_f64(), ops));
            played.anonymous_max = played.anonymous_max.max(Memory::now().anonymous);
            bar.show(ops, start.elapsed());
        }
    }
    let ops = shared.ops.load(Ordering::Relaxed);
    played.curve.push((start.elapsed().as_secs_f64(), ops));
    played.anonymous_max = played.anonymous_max.max(Memory::now().anonymous);
    failure.map_or(Ok(played), Err)
}

/// Notes what a part wrote: what it drew is drawn once more.
fn record(
    plan: &Plan,
    subject: &mut Subject,
    workload: Workload,
    round: usize,
    part: &Part,
    ops: u64,
) {
    let (live, there) = match workload {
        Workload::Mergerandom | Workload::Coalescing => (&mut subject.counters, true),
        Workload::Deleterandom => (&mut subject.live, false),
        Workload::Readwhilewriting if !part.beside => return,
        _ if workload.writes() => (&mut subject.live, true),
        _ => return,
    };
    if let Workload::Fillseq | Workload::Fillbatch = workload {
        (part.records.start..part.records.start + ops).for_each(|record| live.set(record, true));
        return;
    }
    let mut draws = part.draws(plan, workload, round);
    let record_of = |drawn: u64| match workload {
        Workload::Coalescing => drawn % COALESCED_KEYS,
        _ => drawn,
    };
    (0..ops).for_each(|_| live.set(record_of(draws.next()), there));
    if let Workload::Mergerandom | Workload::Coalescing = workload {
        subject.counted += ops as i64;
    }
}

/// Every merge was counted exactly once, or the bench fails.
fn check_counters(subject: &Subject) -> Result<()> {
    let (sum, expected) = (subject.sum_counters()?, subject.counted);
    if sum == expected {
        return Ok(());
    }
    Err(Failure::new(format!("the counters sum up to {sum}, not to {expected}")))
}
