//! db_bench's workloads on esker: what is asked for, and the run through the list.
//!
//! - `mod`: the options, and the run.
//! - `keys`: record numbers as keys, values, random draws, and which records are there.
//! - `machine`: what the numbers were measured on.
//! - `meter`: one thread's clock, counters and latencies.
//! - `subject`: the database under measurement.
//! - `workload`: what each workload does.
//! - `opening`: the workloads that open databases. `overload`: more than a database sustains.
//! - `sharding`: databases over several shards. `splitting`: one that splits under a skewed load.
//! - `run`: the threads of one workload, watched.
//! - `report`: the table, and JSON.
//! - `plot`: operations a second over time, as SVG.

mod keys;
mod machine;
mod meter;
mod opening;
mod overload;
mod plot;
mod report;
mod run;
mod sharding;
mod splitting;
mod subject;
mod workload;

pub use crate::bench::subject::wait_if_interrupted;

use std::io::{self, IsTerminal};
use std::mem;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::bench::machine::wait_until_idle;
use crate::bench::report::Printer;
use crate::bench::subject::Subject;
use crate::bench::workload::Workload;
use crate::failure::{Failure, Result};
use crate::text::{parse_bytes, parse_count, size, thousands};

/// Measure how fast this machine writes and reads: db_bench's workloads
///
/// Each fill (fillseq, fillbatch, fillsync, fillrandom) starts from an empty database. The other
/// workloads use the one that the last fill left, after all its background work is done. Without
/// any workload named, all of them but sharding and splitting run, in the order below, for about a
/// minute.
#[derive(Args)]
#[command(after_long_help = MANUAL, after_help = "--help explains the workloads and the columns.")]
pub struct Bench {
    /// What to run, in this order; everything but sharding and splitting if none is named
    #[arg(value_enum, ignore_case = true)]
    workloads: Vec<Workload>,
    /// Directory of the database; it stays, and later runs without a fill use it again. Without
    /// this option: a temporary directory inside the current one, removed at the end
    #[arg(long, value_name = "DIR")]
    db: Option<PathBuf>,
    /// Number of records, and of operations; suffixes K, M and G
    #[arg(long, value_name = "N", value_parser = parse_count, default_value = "2M")]
    records: u64,
    /// Bytes of a key: the record's number in decimal, zeros in front
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(8..), default_value = "16")]
    key_size: u16,
    /// Bytes of a value: random, compressible to a half
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "100")]
    value_size: usize,
    /// Threads that write or read; they share the operations among them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), default_value = "1")]
    threads: u16,
    /// Entries of a commit in fillbatch, and of a group in batching
    #[arg(long, value_name = "N", value_parser = parse_count, default_value = "1000")]
    batch: u64,
    /// What an acknowledged write survives, in all workloads but fillsync
    #[arg(long, value_enum, default_value_t = Durability::Process)]
    durability: Durability,
    /// Compression of tables
    #[arg(long, value_enum, default_value_t = Compression::Lz4)]
    compression: Compression,
    /// Memory budget of the database; suffixes K, M and G
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "256M")]
    memory: usize,
    /// Seed of the random draws: the same one gives the same operations
    #[arg(long, value_name = "N", default_value = "42")]
    seed: u64,
    /// Run each random workload for so long instead of N operations, and end the others, whose
    /// records run out, at the latest then. fillsync alone ends after 5 seconds without this
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    duration: Option<Duration>,
    /// Print one JSON object for each workload and line, and nothing else
    #[arg(long)]
    json: bool,
    /// Draw operations a second over time of the workloads that write into this SVG file; of
    /// overload what was offered and accepted, and latencies, and of splitting each shard, into files
    /// beside it or, alone, into this
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// The process has been idle for so long before a workload begins that follows one that writes: longer than
/// the second after which a database merges what it left for later.
const REST: Duration = Duration::from_millis(1500);

const MANUAL: &str = "\
Latency:
  Every operation is timed with one reading of the clock (about 25 ns, part of the result), so that
  max is the longest there was; making the key and choosing the value are part of it (about 20 ns).
  fillbatch counts entries, and times whole commits. batching, coalescing and ingest time the
  handing over of an item; their ops/s are of that, too, settled/s is with everything written.
  overload times from the first refusal of a write until it is let in. readseq and readreverse time
  groups of 64 rows: their percentiles are of a group's mean, their max is the whole of the longest
  group.

  A workload that follows one that writes begins once the process has rested for 1.5 s: a second after
  the last write a database merges what it left for later.

Columns:
  ops/s      operations, or entries, a second, as the threads saw it
  settled/s  the same with the time until nothing was left to flush or compact: what the machine
             can keep up
  MB/s       keys and values, in 1,000,000 bytes a second
  p50 .. max latency of an operation in microseconds
  w-amp      bytes written to log and tables until settled, for each byte of key and value
  s-amp      bytes on disk once settled, for each byte of the keys and values that are there
  settle     seconds from the last operation until nothing is left to flush or compact
  cpu        microseconds of processor an operation, background work included
  rss        peak resident memory in MiB: with the table files that are mapped
  counted    what the database itself counts against its memory budget at the end, in MiB

Examples:
  esker bench
  esker bench fillrandom overwrite readrandom --records 10M --threads 2
  esker bench fillsync --threads 8 --duration 10
  esker bench fillrandom --durability disk --db /mnt/fast/bench --json
  esker bench fillrandom --duration 60 --plot fill.svg
  esker bench splitting --threads 2 --plot splits.svg";

/// `esker::Durability`, as it is written here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Durability {
    /// A kill of the process, not a power loss
    Process,
    /// Power loss, too
    Disk,
}

/// `esker::Compression`, as it is written here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Compression {
    /// Blocks as they are
    None,
    /// LZ4 in the lower levels
    Lz4,
}

/// What all workloads of a run have in common.
#[derive(Clone, Copy)]
struct Plan {
    records: u64,
    key_size: usize,
    value_size: usize,
    threads: usize,
    batch: u64,
    durability: Durability,
    compression: Compression,
    memory: usize,
    seed: u64,
    duration: Option<Duration>,
}

impl Bench {
    /// Runs the workloads and prints what they measured.
    pub fn run(self) -> Result<()> {
        let plan = self.plan()?;
        let all = Workload::value_variants().iter().copied();
        let workloads: Vec<Workload> = match self.workloads.is_empty() {
            true => all.filter(|workload| !workload.is_extra()).collect(),
            false => self.workloads.clone(),
        };
        let mut subject = Subject::at(self.db.as_deref(), &plan)?;
        let printer = Printer { json: self.json, watched: io::stderr().is_terminal() };
        if !self.json {
            report::introduce(&plan, &subject);
        }
        let (mut curves, mut overloaded, mut splits) = (Vec::new(), None, Vec::new());
        // One that was there already may have been left in the middle of something.
        let mut is_restless = subject.is_open();
        for (round, &workload) in workloads.iter().enumerate() {
            if workload.is_fill() {
                subject.make_fresh(&plan)?;
                is_restless = false;
            } else if !subject.is_open() && !workload.has_its_own() {
                eprintln!("esker: no fill before {}: filling at random first", workload.name());
                subject.make_fresh(&plan)?;
                let filler = workloads.len();
                run::measure(&plan, &mut subject, Workload::Fillrandom, filler, &printer)?;
                is_restless = true;
            }
            if mem::replace(&mut is_restless, workload.writes()) {
                let bar = printer.bar(&workload.name(), None, None);
                bar.resting();
                wait_until_idle(REST);
                bar.finish();
            }
            let measured = match workload {
                Workload::Sharding => {
                    sharding::measure(&plan, &subject, &printer)?;
                    continue;
                }
                Workload::Splitting => {
                    splits = splitting::measure(&plan, &subject, &printer)?;
                    continue;
                }
                Workload::Overload => overload::measure(&plan, &subject, &printer)?,
                _ if workload.opens() => opening::measure(&plan, &mut subject, workload, &printer)?,
                _ => run::measure(&plan, &mut subject, workload, round, &printer)?,
            };
            printer.print(&plan, &measured)?;
            overloaded = measured.overload.or(overloaded);
            if workload.writes() {
                curves.push((workload.name(), measured.curve));
            }
        }
        if let Some(file) = &self.plot {
            if !splits.is_empty() {
                let own = file.with_extension("splitting.svg");
                let is_alone = curves.is_empty() && overloaded.is_none();
                plot::draw(if is_alone { file } else { &own }, &splits)?;
            }
            if let Some(overload) = &overloaded {
                let own = file.with_extension("overload.svg");
                plot::draw_overload(if curves.is_empty() { file } else { &own }, overload)?;
            }
            if !curves.is_empty() || overloaded.is_none() && splits.is_empty() {
                plot::draw(file, &curves)?;
            }
        }
        subject.close()
    }

    /// Checks what the options say together.
    fn plan(&self) -> Result<Plan> {
        let key_size = usize::from(self.key_size);
        if keys::digits(self.records) > key_size {
            return Err(Failure::new(format!(
                "{} records do not fit keys of {key_size} bytes: give a larger --key-size",
                thousands(self.records)
            )));
        }
        if self.value_size > 1 << 30 {
            return Err(Failure::new("--value-size is at most 1G"));
        }
        if self.memory < 1 << 20 {
            let given = size(self.memory as u64);
            return Err(Failure::new(format!("--memory is at least 1M, not {given}")));
        }
        Ok(Plan {
            records: self.records,
            key_size,
            value_size: self.value_size,
            threads: usize::from(self.threads),
            batch: self.batch,
            durability: self.durability,
            compression: self.compression,
            memory: self.memory,
            seed: self.seed,
            duration: self.duration,
        })
    }
}

impl Plan {
    /// Keys and values of all records.
    fn user_bytes(&self) -> u64 {
        self.records.saturating_mul((self.key_size + self.value_size) as u64)
    }

    /// How the database is opened.
    fn options(&self) -> esker::Options {
        let mut options = esker::Options::default();
        options.memory = self.memory;
        options.durability = match self.durability {
            Durability::Process => esker::Durability::Process,
            Durability::Disk => esker::Durability::Disk,
        };
        options.compression = match self.compression {
            Compression::None => esker::Compression::None,
            Compression::Lz4 => esker::Compression::Lz4,
        };
        options
    }
}

fn parse_seconds(text: &str) -> std::result::Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .filter(|seconds| *seconds > 0.0)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "a duration is a number of seconds above 0, say 10 or 0.5".into())
}
