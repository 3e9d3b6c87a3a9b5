//! What a person or a machine reads: the introduction, the progress bar, the table, JSON.

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::bench::machine::describe;
use crate::bench::run::Measured;
use crate::bench::subject::Subject;
use crate::bench::{Compression, Durability, Plan};
use crate::failure::Result;
use crate::text::{size, thousands};

/// Says on what and how is measured, and heads the table.
pub fn introduce(plan: &Plan, subject: &Subject) {
    let durability = match plan.durability {
        Durability::Process => "process: a write survives a kill of the process, not a power loss",
        Durability::Disk => "disk: a write is acknowledged once it survives a power loss",
    };
    let compression = match plan.compression {
        Compression::None => "no compression",
        Compression::Lz4 => "lz4 in the lower levels",
    };
    println!("esker {} on {}", env!("CARGO_PKG_VERSION"), describe());
    println!("{}", subject.describe());
    println!(
        "{} records of {} + {} bytes ({}), threads: {}, memory budget {}, {compression}, seed {}",
        thousands(plan.records),
        plan.key_size,
        plan.value_size,
        size(plan.user_bytes()),
        plan.threads,
        size(plan.memory as u64),
        plan.seed
    );
    println!("durability {durability}");
    if cfg!(debug_assertions) {
        println!("built without optimisation: these numbers mean nothing; use --release");
    }
    println!("latencies in µs; `esker bench --help` explains the columns\n");
    println!(
        "{:16} {:>10} {:>10} {:>6} {:>7} {:>7} {:>8} {:>9} {:>6} {:>6} {:>7} {:>6} {:>6} {:>7}",
        "workload",
        "ops/s",
        "settled/s",
        "MB/s",
        "p50",
        "p99",
        "p99.9",
        "max",
        "w-amp",
        "s-amp",
        "settle",
        "cpu",
        "rss",
        "counted"
    );
}

/// How results are printed.
pub struct Printer {
    /// JSON instead of the table.
    pub json: bool,
    /// Whether somebody watches standard error.
    pub watched: bool,
}

/// A workload's result for machines. Rates are a second, sizes bytes, times as their names say;
/// `null` is what does not apply.
#[derive(Serialize)]
struct Line {
    workload: String,
    threads: usize,
    records: u64,
    key_size: usize,
    value_size: usize,
    durability: String,
    compression: String,
    ops: u64,
    found: Option<u64>,
    seconds: f64,
    ops_per_s: f64,
    settled_ops_per_s: f64,
    mb_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    write_amplification: Option<f64>,
    space_amplification: Option<f64>,
    settle_s: f64,
    cpu_us_per_op: f64,
    stalled_s: f64,
    peak_rss_bytes: u64,
    peak_anonymous_bytes: u64,
    counted_memory_bytes: u64,
    disk_bytes: u64,
    writer_ops_per_s: Option<f64>,
    fdatasync_us: Option<f64>,
    offered_ops: Option<u64>,
    sustained_ops_per_s: Option<f64>,
    retries: Option<u64>,
    retries_let_in: Option<u64>,
}

impl Line {
    fn new(plan: &Plan, measured: &Measured) -> Line {
        let tally = &measured.tally;
        let seconds = tally.elapsed.as_secs_f64();
        let rate = |count: u64, seconds: f64| if count == 0 { 0.0 } else { count as f64 / seconds };
        // The histogram rounds up to three digits, which must not lead beyond the maximum.
        let percentile =
            |p: f64| round(tally.latencies.value_at_quantile(p).min(tally.max_ns) as f64 / 1e3);
        let name = measured.workload.name();
        let synced = plan.durability == Durability::Disk || name == "fillsync";
        // Of random reads, the keys and values are those that were found.
        let entry = (plan.key_size + plan.value_size) as u64;
        let reads = ["readrandom", "readmissing", "readwhilewriting", "seekrandom"];
        let found = reads.contains(&&*name).then_some(tally.found);
        let bytes = tally.bytes + found.unwrap_or(0) * entry;
        Line {
            workload: name,
            threads: plan.threads,
            records: plan.records,
            key_size: plan.key_size,
            value_size: plan.value_size,
            durability: if synced { "disk".into() } else { "process".into() },
            compression: format!("{:?}", plan.compression).to_ascii_lowercase(),
            ops: tally.ops,
            found,
            seconds: round(seconds),
            ops_per_s: round(rate(tally.ops, seconds)),
            settled_ops_per_s: round(rate(tally.ops, seconds + measured.settle.as_secs_f64())),
            mb_per_s: round(rate(bytes, seconds) / 1e6),
            p50_us: percentile(0.5),
            p99_us: percentile(0.99),
            p999_us: percentile(0.999),
            max_us: round(tally.max_ns as f64 / 1e3),
            write_amplification: measured.write_amplification.map(round),
            space_amplification: measured.space_amplification.map(round),
            settle_s: round(measured.settle.as_secs_f64()),
            cpu_us_per_op: round(measured.cpu.as_secs_f64() * 1e6 / tally.ops.max(1) as f64),
            stalled_s: round(measured.stalled.as_secs_f64()),
            peak_rss_bytes: measured.memory.peak,
            peak_anonymous_bytes: measured.memory.anonymous,
            counted_memory_bytes: measured.counted_bytes,
            disk_bytes: measured.disk_bytes,
            writer_ops_per_s: measured.writer_rate.map(round),
            fdatasync_us: measured.sync_time.map(|time| round(time.as_secs_f64() * 1e6)),
            offered_ops: measured.overload.as_ref().map(|overload| overload.offered),
            sustained_ops_per_s: measured.overload.as_ref().map(|all| round(all.sustained)),
            retries: measured.overload.as_ref().map(|overload| overload.retries),
            retries_let_in: measured.overload.as_ref().map(|overload| overload.retries_in),
        }
    }

    /// What the columns do not say.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(found) = self.found.filter(|_| self.workload != "readmissing") {
            let share = found as f64 * 100.0 / self.ops.max(1) as f64;
            notes.push(format!("{share:.1} % of the keys were there"));
        }
        if let Some(rate) = self.writer_ops_per_s {
            notes.push(format!("beside one writer at {} puts/s", thousands(rate as u64)));
        }
        if let Some(time) = self.fdatasync_us {
            notes.push(format!("a lone fdatasync takes {time:.0} µs here"));
        }
        if let (Some(offered), Some(sustained)) = (self.offered_ops, self.sustained_ops_per_s) {
            let (offered, sustained) = (thousands(offered), thousands(sustained as u64));
            notes.push(format!("{offered} were offered where {sustained} a second are sustained"));
        }
        if let (Some(retries @ 1..), Some(let_in)) = (self.retries, self.retries_let_in) {
            let share = let_in as f64 * 100.0 / retries as f64;
            notes.push(format!("{share:.1} % of {} came back and were let in", thousands(retries)));
        }
        if self.stalled_s > 0.0 {
            notes.push(format!("writers were held back for {:.2} s", self.stalled_s));
        }
        notes
    }
}

/// To a thousandth: what is behind it is noise.
fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

impl Printer {
    /// Prints a workload's line.
    pub fn print(&self, plan: &Plan, measured: &Measured) -> Result<()> {
        let line = Line::new(plan, measured);
        let mut out = io::stdout().lock();
        if self.json {
            let text = serde_json::to_string(&line).map_err(io::Error::from)?;
            return Ok(writeln!(out, "{text}")?);
        }
        let optional =
            |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:.2}"));
        let writes = measured.workload.writes();
        writeln!(
            out,
            "{:16} {:>10} {:>10} {:>6.0} {:>7} {:>7} {:>8} {:>9} {:>6} {:>6} {:>7} {:>6.2} {:>6} {:>7}",
            line.workload,
            thousands(line.ops_per_s as u64),
            if writes { thousands(line.settled_ops_per_s as u64) } else { "–".into() },
            line.mb_per_s,
            micros(line.p50_us),
            micros(line.p99_us),
            micros(line.p999_us),
            micros(line.max_us),
            optional(line.write_amplification),
            optional(line.space_amplification),
            optional(writes.then_some(line.settle_s)),
            line.cpu_us_per_op,
            line.peak_rss_bytes >> 20,
            line.counted_memory_bytes >> 20,
        )?;
        let notes = line.notes();
        if !notes.is_empty() {
            writeln!(out, "    {}", notes.join("; "))?;
        }
        Ok(out.flush()?)
    }

    /// A progress bar on standard error, if somebody watches it and no machine reads.
    pub fn bar(&self, name: &str, ops: Option<u64>, limit: Option<Duration>) -> Bar {
        let shown = self.watched && !self.json;
        let target =
            if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(1000), target);
        let style = ProgressStyle::with_template("{prefix:16} {bar:40} {elapsed:>4} {msg}");
        bar.set_style(style.expect("the template is right"));
        bar.set_prefix(name.to_owned());
        Bar { bar, ops, limit }
    }
}

/// Three digits or more of a latency.
pub fn micros(value: f64) -> String {
    match value {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => thousands(value.round() as u64),
    }
}

/// How far a workload is: by operations or by time, whichever is further.
pub struct Bar {
    bar: ProgressBar,
    ops: Option<u64>,
    limit: Option<Duration>,
}

impl Bar {
    /// Moves the bar.
    pub fn show(&self, ops: u64, elapsed: Duration) {
        let by_ops = self.ops.map_or(0.0, |all| ops as f64 / all.max(1) as f64);
        let by_time = self.limit.map_or(0.0, |limit| elapsed.as_secs_f64() / limit.as_secs_f64());
        self.bar.set_position((by_ops.max(by_time).min(1.0) * 1000.0) as u64);
        let rate = ops as f64 / elapsed.as_secs_f64().max(1e-3);
        self.bar.set_message(format!("{}/s", thousands(rate as u64)));
    }

    /// What the workload before left to do is being done.
    pub fn resting(&self) {
        self.bar.set_message("waiting for the database to rest");
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    /// The operations are done, flushes and compactions are not.
    pub fn settling(&self) {
        self.bar.set_position(1000);
        self.bar.set_message("settling");
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    /// Takes the bar away.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_keep_three_digits() {
        let texts = [0.123, 1.0, 45.67, 123.4, 1_234_567.0].map(micros);
        assert_eq!(texts, ["0.12", "1.00", "45.7", "123", "1,234,567"]);
    }
}
