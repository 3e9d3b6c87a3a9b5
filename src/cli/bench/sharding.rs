//! What several engines give where one does: puts a second by shards and writers.
//!
//! The shards are databases of their own with one memory budget and one crew of background threads;
//! records are dealt to them by hash. Each cell of the tables is an empty start of its own, and what it
//! left to flush and compact is no part of it. Cells that wait for the disk are measured in turns, since
//! a disk can change its ways for half an hour, and beside a lone `fdatasync`.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use esker::{Db, Resources};
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
    }
    Ok(())
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
    let plan = Plan { durability, ..*plan };
    let options = plan.options();
    let resources = Resources::new(options.memory, options.threads);
    fs::create_dir_all(&dir)?;
    let open = |shard: usize| {
        let shard = Db::builder(dir.join(shard.to_string())).resources(&resources);
        shard.durability(options.durability).compression(options.compression).open()
    };
    let dbs = (0..shards).map(open).collect::<esker::Result<Vec<Db>>>()?;
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
            let record = draws.next();
            // By bits that are not those of the key's order.
            let hash = record.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
            dbs[hash as usize % shards].put(key.of(record), values.next())?;
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
    drop(dbs);
    fs::remove_dir_all(&dir)?;
    Ok(Cell {
        workload: "sharding",
        durability: match durability {
            Durability::Process => "process",
            Durability::Disk => "disk",
        },
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
