//! The options.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::engine::{Kind, WRITE_BUFFER_BYTES};
use crate::failure::{Failure, Result};
use crate::job::Plan;
use crate::keys::GROUP_RECORDS;
use crate::workload::Workload;

/// Run esker and its peers side by side, and print who is how fast
///
/// Each engine runs each group of workloads in a process of its own, on a database of its own,
/// with the same keys, values, threads and sizes. The result is Markdown on standard output, and
/// optionally JSON and a page of plots.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = "--help explains the workloads and the columns.",
    after_long_help = MANUAL
)]
pub struct Cli {
    /// What this process does if it is no parent
    #[command(subcommand)]
    pub child: Option<Child>,
    /// What a parent does
    #[command(flatten)]
    pub compare: Compare,
}

/// How a parent starts this program again.
#[derive(Subcommand)]
pub enum Child {
    /// Do one job and tell about it in lines of JSON
    #[command(hide = true)]
    RunOne {
        /// The job, in JSON
        job: String,
    },
}

/// See [`Cli`].
#[derive(Args)]
pub struct Compare {
    /// What to run; everything if none is named
    #[arg(value_enum, ignore_case = true)]
    workloads: Vec<Workload>,
    /// Which engines, separated by commas; all that were built if not given
    #[arg(long, value_enum, value_delimiter = ',', ignore_case = true, conflicts_with = "pair")]
    engines: Vec<Kind>,
    /// Two engines to run in turns; prints the median of the first over the second, and its range
    #[arg(long, value_enum, value_delimiter = ',', value_name = "A,B", ignore_case = true)]
    pair: Vec<Kind>,
    /// How often everything is run; results are medians. 5 with --pair, else 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Number of records; suffixes K and M. Rounded up to a multiple of 32
    #[arg(long, value_name = "N", value_parser = parse_count, default_value = "2M")]
    records: u64,
    /// Bytes of a value; keys have 16
    #[arg(long, value_name = "BYTES", default_value = "100",
        value_parser = clap::value_parser!(u32).range(8..=1_000_000))]
    value_size: u32,
    /// Cut off a workload after so long. Its rate then is of what was done, and is marked
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "30")]
    seconds: Duration,
    /// The budget of memory of each engine: a write buffer of 64 MiB, and the rest for its cache; esker has
    /// no other. Suffixes M and G
    #[arg(long, value_name = "BYTES", value_parser = parse_budget, default_value = "320M")]
    memory: u64,
    /// Most memory of an engine's process, its page cache included; suffixes M and G. By a control group
    /// made for it, which needs root
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory_limit: Option<u64>,
    /// Directory for the databases, which are removed again. On the disk that is to be measured
    #[arg(long, value_name = "DIR", default_value = "compare-data")]
    pub db: PathBuf,
    /// Of the random draws: the same one gives the same operations
    #[arg(long, value_name = "N", default_value = "42")]
    seed: u64,
    /// Write all rows as JSON into this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a page with plots into this file
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
}

const MANUAL: &str = "\
Settling:
  At the end of every workload that writes, memory is written out and background work is waited for. CPU,
  bytes written and space are taken after that. Before the next one, but for readcounters, tombseek10 and
  tombscan, the process is waited for until it has rested for 1.5 seconds.

Columns:
  ops/s      operations a second as the threads saw them; rows of a scan; milliseconds where the
             workload is a time. A * marks one that --seconds cut off
  settled/s  the same with the time to settle
  p50..max   latency in microseconds, every operation timed
  cpu        seconds of processor, all threads of the process, user and system, settling included;
             and microseconds of it an operation
  peak       most resident memory in MiB (VmHWM): with mapped files, which the kernel can take away
  anon       resident memory in MiB that is no file, at the end
  written    MiB that the kernel counts as written (write_bytes in /proc/self/io)
  w-amp      the same over the bytes of keys and values; and by the engine's own count
  disk       MiB of the database's files

Overload:
  Its longest put is told twice: as it was, and without the pauses of the machine itself, as seen by a
  watcher on each processor that does nothing but wake. For that it takes real-time priority, which needs
  root. A host stops a virtual machine that takes too much for tens of milliseconds.

Examples:
  compare --engines esker,rocksdb,fjall --report report.html
  compare fillrandom readrandom seek10 --records 200K
  compare --pair esker,rocksdb --rounds 5 fillrandom overwrite
  compare --db /mnt/fast --json rows.json";

impl Compare {
    /// Which engines run, in this order.
    pub fn kinds(&self) -> Result<Vec<Kind>> {
        if !self.pair.is_empty() && (self.pair.len() != 2 || self.pair[0] == self.pair[1]) {
            return Err(Failure::new("--pair takes two engines, say --pair esker,rocksdb"));
        }
        let all = Kind::value_variants();
        let given = if self.pair.is_empty() { &self.engines } else { &self.pair };
        if given.is_empty() {
            let usual = |kind: &Kind| kind.is_built() && !kind.is_variant();
            return Ok(all.iter().copied().filter(usual).collect());
        }
        let mut kinds = Vec::new();
        for &kind in given {
            if !kind.is_built() {
                let name = kind.name();
                return Err(Failure::new(format!(
                    "{name} is not in this binary: build it with --features {name}"
                )));
            }
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        Ok(kinds)
    }

    /// Whether ratios of two engines are asked for.
    pub fn is_pair(&self) -> bool {
        !self.pair.is_empty()
    }

    /// How often.
    pub fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.is_pair() { 5 } else { 1 }) as usize
    }

    /// What, in the order of [`Workload`].
    pub fn workloads(&self) -> Vec<Workload> {
        match self.workloads.is_empty() {
            true => Workload::value_variants().to_vec(),
            false => self.workloads.clone(),
        }
    }

    /// With which sizes.
    pub fn plan(&self) -> Plan {
        Plan {
            records: self.records.next_multiple_of(GROUP_RECORDS),
            value_bytes: self.value_size as usize,
            memory_bytes: self.memory as usize,
            limit: self.seconds,
            seed: self.seed,
        }
    }
}

/// From 10 thousand, below which rows are over before a clock can tell, to 10 billion.
fn parse_count(text: &str) -> std::result::Result<u64, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1000),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1_000_000),
        _ => (text, 1),
    };
    let count = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(factor));
    count
        .filter(|count| (10_000..=10_000_000_000).contains(count))
        .ok_or_else(|| "a number of records is 10K to 10000M".into())
}

/// At least 64 MiB: less than a write buffer would measure nothing.
fn parse_bytes(text: &str) -> std::result::Result<u64, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1 << 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(factor));
    bytes.filter(|bytes| *bytes >= 64 << 20).ok_or_else(|| "a limit is 64M or more".into())
}

/// Twice a write buffer at least: there is to be a cache.
fn parse_budget(text: &str) -> std::result::Result<u64, String> {
    let is_enough = |bytes: &u64| *bytes >= 2 * WRITE_BUFFER_BYTES as u64;
    parse_bytes(text).ok().filter(is_enough).ok_or_else(|| "a budget is 128M or more".into())
}

fn parse_seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.1..=86_400.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "a number of seconds is 0.1 to 86400, say 10 or 0.5".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_numbers_are_checked() {
        Cli::command().debug_assert();
        assert_eq!(parse_count("200k"), Ok(200_000));
        assert!(parse_count("9999").is_err() && parse_count("K").is_err());
        assert_eq!(parse_budget("320M"), Ok(320 << 20));
        assert!(parse_budget("127M").is_err() && parse_budget("M").is_err());
        assert!(parse_seconds("nan").is_err() && parse_seconds("0.5").is_ok());
    }
}
