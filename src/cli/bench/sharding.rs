//! What a database over several shards gives: puts a second by shards and writers, and what a batch
//! over several of them costs.
//!
//! Each cell of the tables is an empty start of its own, and what it left to flush and compact is no
//! part of it. Cells that wait for the disk are measured in turns, since a disk can change its ways for
//! half an hour, and beside a lone `fdatasync`.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use esker::{Partition, ShardedDb};
use serde::Serialize;

use crate::bench::keys::{Draws, Key, Pool};
use crate::bench::machine::{cpu_time, sync_time};
use crate::bench::report::Printer;
use crate::bench::subject::Subject;
use crate::bench::workload::Workload;
use crate::bench::{Durability, Plan};
use crate::failure::Result;
use crate::text::thousands;

/// Shards, and writers.
const COUNTS: [usize; 4] = [1, 2, 4, 8];
/// A cell takes so long, unless --duration says something else.
const CELL: Duration = Duration::from_secs(1);
/// Turns in which cells that wait for the disk are measured.
const TURNS: u32 = 3;
/// Puts of a batch.
const BATCH: usize = 8;

/// What was measured of so many shards and writers.
#[derive(Clone, Default, Serialize)]
struct Cell {
    workload: &'static str,
    durability: &'static str,
    shards: usize,
    writers: usize,
    puts: u64,
    seconds: f64,
    cpu_seconds: f64,
    /// A lone `fdatasync` meanwhile, in microseconds.
    fdatasync_us: Option<f64>,
}

impl Cell {
    fn rate(&self) -> f64 {
        self.puts as f64 / self.seconds.max(1e-9)
    }
}

/// What was measured of batches over so many of eight shards, by one writer.
#[derive(Serialize)]
struct Batches {
    workload: &'static str,
    durability: &'static str,
    batch_shards: usize,
    batches: u64,
    seconds: f64,
}

/// Measures all cells, and prints them.
pub fn measure(plan: &Plan, subject: &Subject, printer: &Printer) -> Result<()> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    for durability in [Durability::Process, Durability::Disk] {
        let turns = if durability == Durability::Disk { TURNS } else { 1 };
        let time = plan.duration.unwrap_or(CELL) / turns;
        let mut cells: Vec<Cell> = Vec::new();
        for turn in 0..turns {
            for (at, (shards, writers)) in pairs().enumerate() {
                let measured = cell(plan, &subject.dir, durability, shards, writers, time)?;
                if turn == 0 {
                    cells.push(measured);
                    continue;
                }
                cells[at].puts += measured.puts;
                cells[at].seconds += measured.seconds;
                cells[at].cpu_seconds += measured.cpu_seconds;
            }
        }
        print(printer, cores, &cells)?;
        let mut batches: Vec<Batches> = Vec::new();
        for turn in 0..turns {
            for (at, shards) in COUNTS.into_iter().enumerate() {
                let measured = batch_cell(plan, &subject.dir, durability, shards, time)?;
                if turn == 0 {
                    batches.push(measured);
                    continue;
                }
                batches[at].batches += measured.batches;
                batches[at].seconds += measured.seconds;
            }
        }
        print_batches(printer, &batches)?;
    }
    Ok(())
}

/// An empty database of so many shards.
fn open(
    plan: &Plan,
    dir: &Path,
    durability: Durability,
    shards: usize,
    partition: Partition,
) -> Result<ShardedDb> {
    let options = Plan { durability, ..*plan }.options();
    let db = ShardedDb::builder(dir).options(options).shards(shards).partition(partition);
    Ok(db.open()?)
}

fn name_of(durability: Durability) -> &'static str {
    match durability {
        Durability::Process => "process",
        Durability::Disk => "disk",
    }
}

fn batch_cell(
    plan: &Plan,
    dir: &Path,
    durability: Durability,
    batch_shards: usize,
    time: Duration,
) -> Result<Batches> {
    let dir = dir.join("sharding");
    let shards = COUNTS[COUNTS.len() - 1];
    let db = open(plan, &dir, durability, shards, Partition::before(b':'))?;
    // A part of keys for each shard.
    let mut parts = vec![None; shards];
    for number in 0.. {
        let part = format!("{number}:");
        let shard = db.shard_of(&part)?;
        parts[shard].get_or_insert(part);
        if parts.iter().all(Option::is_some) {
            break;
        }
    }
    let parts: Vec<String> = parts.into_iter().take(batch_shards).flatten().collect();
    let pool = Pool::new(plan.value_size, plan.seed);
    let (mut key, mut values) = (Key::new(plan.key_size, plan.records), pool.values(0));
    // Of a thread that is none of the writers.
    let mut draws = Draws::new(plan.records, plan.seed, Workload::Sharding as u8, shards, shards);
    let (began, mut batches, mut batch) = (Instant::now(), 0, db.batch());
    let mut named = Vec::new();
    while began.elapsed() < time {
        for put in 0..BATCH {
            named.clear();
            named.extend_from_slice(parts[put % batch_shards].as_bytes());
            named.extend_from_slice(key.of(draws.next()));
            batch.put(&db, &named, values.next());
        }
        batch.commit()?;
        batches += 1;
    }
    let seconds = began.elapsed().as_secs_f64();
    drop(batch);
    drop(db);
    fs::remove_dir_all(&dir)?;
    let durability = name_of(durability);
    Ok(Batches { workload: "sharding", durability, batch_shards, batches, seconds })
}

fn pairs() -> impl Iterator<Item = (usize, usize)> {
    COUNTS.into_iter().flat_map(|shards| COUNTS.into_iter().map(move |writers| (shards, writers)))
}

fn cell(
    plan: &Plan,
    dir: &Path,
    durability: Durability,
    shards: usize,
    writers: usize,
    time: Duration,
) -> Result<Cell> {
    let dir = dir.join("sharding");
    let db = open(plan, &dir, durability, shards, Partition::whole_key())?;
    let fdatasync_us = match durability {
        Durability::Process => None,
        Durability::Disk => sync_time(&dir).ok().map(|time| time.as_secs_f64() * 1e6),
    };
    let pool = Pool::new(plan.value_size, plan.seed);
    let ended = AtomicBool::new(false);
    let write = |writer: usize| -> Result<u64> {
        let (mut key, mut values) = (Key::new(plan.key_size, plan.records), pool.values(writer));
        let mut draws =
            Draws::new(plan.records, plan.seed, Workload::Sharding as u8, shards, writer);
        let mut count = 0;
        while !ended.load(Ordering::Relaxed) {
            db.put(key.of(draws.next()), values.next())?;
            count += 1;
        }
        Ok(count)
    };
    let (began, cpu_before) = (Instant::now(), cpu_time());
    let counts = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..writers).map(|writer| scope.spawn(move || write(writer))).collect();
        thread::sleep(time);
        ended.store(true, Ordering::Relaxed);
        let joined = threads.into_iter().map(|thread| thread.join().expect("a writer panicked"));
        joined.collect::<Result<Vec<u64>>>()
    })?;
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_time() - cpu_before);
    drop(db);
    fs::remove_dir_all(&dir)?;
    Ok(Cell {
        workload: "sharding",
        durability: name_of(durability),
        shards,
        writers,
        puts: counts.iter().sum(),
        seconds,
        cpu_seconds: cpu.as_secs_f64(),
        fdatasync_us,
    })
}

fn print(printer: &Printer, cores: usize, cells: &[Cell]) -> Result<()> {
    let mut out = io::stdout().lock();
    if printer.json {
        for cell in cells {
            writeln!(out, "{}", serde_json::to_string(cell).map_err(io::Error::from)?)?;
        }
        return Ok(out.flush()?);
    }
    let durability = cells.first().map_or("", |cell| cell.durability);
    writeln!(out, "sharding, durability {durability}: puts/s (and µs of processor a put)")?;
    write!(out, "    shards")?;
    COUNTS.iter().try_for_each(|writers| write!(out, "   {writers:>2} writers       "))?;
    writeln!(out)?;
    for row in cells.chunks(COUNTS.len()) {
        write!(out, "    {:>6}", row[0].shards)?;
        for cell in row {
            let cpu = cell.cpu_seconds * 1e6 / cell.puts.max(1) as f64;
            write!(out, "  {:>10} {:<8}", thousands(cell.rate() as u64), format!("({cpu:.2})"))?;
        }
        writeln!(out)?;
    }
    let syncs: Vec<f64> = cells.iter().filter_map(|cell| cell.fdatasync_us).collect();
    if !syncs.is_empty() {
        let (least, most) = syncs
            .iter()
            .fold((f64::MAX, 0.0f64), |(least, most), sync| (least.min(*sync), most.max(*sync)));
        writeln!(out, "    a lone fdatasync took {least:.0} to {most:.0} µs meanwhile")?;
    }
    if cores < COUNTS[COUNTS.len() - 1] {
        writeln!(
            out,
            "    {cores} cores: more writers than that share them, with each other and with flushes and \
             compactions; what shards give where there are more is no part of this"
        )?;
    }
    Ok(out.flush()?)
}

fn print_batches(printer: &Printer, cells: &[Batches]) -> Result<()> {
    let mut out = io::stdout().lock();
    if printer.json {
        for cell in cells {
            writeln!(out, "{}", serde_json::to_string(cell).map_err(io::Error::from)?)?;
        }
        return Ok(out.flush()?);
    }
    writeln!(out, "    batches of {BATCH} puts, by one writer, over so many of eight shards:")?;
    for cell in cells {
        let rate = cell.batches as f64 / cell.seconds.max(1e-9);
        let (shards, micros) = (cell.batch_shards, 1e6 / rate.max(1e-9));
        writeln!(out, "    {shards:>6}  {:>10}/s, {micros:.1} µs each", thousands(rate as u64))?;
    }
    Ok(out.flush()?)
}
