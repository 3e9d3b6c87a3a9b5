//! A skewed load before, while and after a database over shards splits by itself.
//!
//! Records belong to 100 tenants, drawn by Zipf's law with exponent 0.99: the first is asked for a fifth
//! of all. Two shards become four under it, in two splits, by the automatic policy. Afterwards every
//! record that was put must be there, once.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use esker::{Automatic, MovePhase, Partition, ShardedDb};
use serde::Serialize;

use crate::bench::Plan;
use crate::bench::keys::{Key, Live, Pool};
use crate::bench::meter::Tally;
use crate::bench::plot::Curve;
use crate::bench::report::{Printer, micros};
use crate::bench::subject::Subject;
use crate::bench::workload::Workload;
use crate::failure::{Failure, Result};
use crate::text::thousands;

const TENANTS: usize = 100;
const EXPONENT: f64 = 0.99;
/// Shards at first, and in the end.
const SHARDS: [usize; 2] = [2, 4];
/// It takes so long, unless --duration says something else.
const TIME: Duration = Duration::from_secs(30);
/// A point of the curves covers so much.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const PHASES: [&str; 3] = ["before", "during", "after"];

/// What was measured of one phase.
#[derive(Serialize)]
struct Row {
    workload: &'static str,
    phase: &'static str,
    shards: usize,
    puts: u64,
    seconds: f64,
    puts_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    /// The part of all puts that the heaviest shard had.
    heaviest_share: f64,
    /// Keys that were copied or deleted meanwhile.
    keys_moved: u64,
    slots_moved: usize,
}

/// What the writers and the watcher share.
struct Load {
    /// Puts of each tenant.
    puts: Vec<AtomicU64>,
    phase: AtomicUsize,
    ended: AtomicBool,
}

/// What the watcher saw.
#[derive(Default)]
struct Seen {
    /// Puts up to a moment: of all, then of each shard.
    curves: Vec<Vec<(f64, u64)>>,
    /// Of each phase: its seconds, its puts by shard, keys and slots moved.
    phases: [(f64, Vec<u64>, u64, usize); 3],
}

/// Runs `splitting`, on a database of its own; its curves.
pub fn measure(plan: &Plan, subject: &Subject, printer: &Printer) -> Result<Vec<Curve>> {
    let dir = subject.dir.join("splitting");
    let time = plan.duration.unwrap_or(TIME);
    let db = open(plan, &dir, time)?;
    let pool = Pool::new(plan.value_size, plan.seed);
    let puts = (0..TENANTS).map(|_| AtomicU64::new(0)).collect();
    let load = Load { puts, phase: AtomicUsize::new(0), ended: AtomicBool::new(false) };
    let bar = printer.bar(&Workload::Splitting.name(), None, Some(time));
    let (written, seen) = thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(plan, &db, &load, time, &bar));
        let (load, db, pool) = (&load, &db, &pool);
        let threads: Vec<_> = (0..plan.threads)
            .map(|writer| scope.spawn(move || write(plan, db, pool, load, writer)))
            .collect();
        let joined: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        // One that failed has ended the others. Before anything else: the watcher looks on until then.
        load.ended.store(true, Ordering::Relaxed);
        let written = joined.into_iter().map(|joined| joined.expect("a writer panicked"));
        let written = written.collect::<Result<Vec<_>>>();
        let seen = watcher.join().expect("the watcher panicked");
        Ok::<_, Failure>((written?, seen?))
    })?;
    bar.finish();
    db.wait_for_moves()?;
    let put = |record: u64| written.iter().any(|(_, live)| live.has(record));
    let (expected, found) =
        ((0..plan.records).filter(|record| put(*record)).count(), db.iter().count());
    if expected != found {
        return Err(Failure::new(format!("{expected} records were put, {found} are there")));
    }
    print(printer, &rows(&written, &seen, db.shard_count()))?;
    db.close()?;
    fs::remove_dir_all(&dir)?;
    let mut curves = Vec::new();
    for (number, curve) in seen.curves.into_iter().enumerate() {
        let name = match number {
            0 => "all shards".to_string(),
            _ => format!("shard {}", number - 1),
        };
        curves.push((name, curve));
    }
    Ok(curves)
}

/// Decides in the first and in the second quarter of the time.
fn open(plan: &Plan, dir: &Path, time: Duration) -> Result<ShardedDb> {
    let policy = Automatic::new().factor(1.2).split_above(1.0, SHARDS[1]);
    let policy = policy.cooldown(time / 4).lasting(Duration::from_secs(1));
    // The last two digits are the tenant.
    let tenant = Partition::by("tenant", |key| &key[key.len().saturating_sub(2)..]);
    let db = ShardedDb::builder(dir).options(plan.options()).shards(SHARDS[0]);
    Ok(db.partition(tenant).automatic(policy).open()?)
}

/// The tenants' parts of the load, summed up.
fn shares() -> Vec<f64> {
    let weight = |rank: usize| 1.0 / (rank as f64).powf(EXPONENT);
    let total: f64 = (1..=TENANTS).map(weight).sum();
    let sum = |sum: &mut f64, rank| {
        *sum += weight(rank) / total;
        Some(*sum)
    };
    (1..=TENANTS).scan(0.0, sum).collect()
}

/// Puts until the time is over.
fn write(
    plan: &Plan,
    db: &ShardedDb,
    pool: &Pool,
    load: &Load,
    writer: usize,
) -> Result<([Tally; 3], Live)> {
    let (mut key, mut values) = (Key::new(plan.key_size, plan.records), pool.values(writer));
    let mut random = fastrand::Rng::with_seed(plan.seed ^ (writer as u64 + 1) << 32);
    let shares = shares();
    let items = (plan.records / TENANTS as u64).max(1);
    let bytes = (plan.key_size + plan.value_size) as u64;
    let (mut tallies, mut live) = (PHASES.map(|_| Tally::new()), Live::none(plan.records));
    let mut last = Instant::now();
    while !load.ended.load(Ordering::Relaxed) {
        let point = random.f64();
        let tenant = shares.partition_point(|sum| *sum < point).min(TENANTS - 1);
        let record = random.u64(..items) * TENANTS as u64 + tenant as u64;
        if let Err(error) = db.put(key.of(record), values.next()) {
            load.ended.store(true, Ordering::Relaxed);
            return Err(error.into());
        }
        live.set(record, true);
        load.puts[tenant].fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        tallies[load.phase.load(Ordering::Relaxed)].time(now - last, 1, bytes);
        last = now;
    }
    Ok((tallies, live))
}

/// Looks at the load until the time is over, and says which phase it is.
fn watch(
    plan: &Plan,
    db: &ShardedDb,
    load: &Load,
    time: Duration,
    bar: &crate::bench::report::Bar,
) -> Result<Seen> {
    let began = Instant::now();
    let curves = vec![vec![(0.0, 0)]; 1 + SHARDS[1]];
    let mut seen = Seen { curves, ..Seen::default() };
    let mut key = Key::new(plan.key_size, plan.records);
    let (mut before, mut totals) = (vec![0; TENANTS], vec![0u64; SHARDS[1]]);
    let mut moved = db.moves();
    let mut at = 0.0;
    while began.elapsed() < time && !load.ended.load(Ordering::Relaxed) {
        thread::sleep(LOOK_EVERY.min(time / 8));
        let phase = load.phase.load(Ordering::Relaxed);
        let (seconds, by_shard, keys, slots) = &mut seen.phases[phase];
        by_shard.resize(SHARDS[1], 0);
        for (tenant, before) in before.iter_mut().enumerate() {
            let puts = load.puts[tenant].load(Ordering::Relaxed);
            let shard = db.shard_of(key.of(tenant as u64))?;
            by_shard[shard] += puts - *before;
            totals[shard] += puts - *before;
            *before = puts;
        }
        let (now, moves) = (began.elapsed().as_secs_f64(), db.moves());
        *seconds += now - at;
        *keys += moves.keys - moved.keys;
        *slots += moves.slots_moved - moved.slots_moved;
        at = now;
        let all: u64 = totals.iter().sum();
        for (curve, total) in seen.curves.iter_mut().zip([all].iter().chain(&totals)) {
            curve.push((now, *total));
        }
        let is_through = db.shard_count() == SHARDS[1] && moves.phase == MovePhase::Idle;
        let next = match (phase, moves.automatic) {
            (0, 0) => 0,
            (0 | 1, _) if !is_through => 1,
            _ => 2,
        };
        load.phase.store(next, Ordering::Relaxed);
        moved = moves;
        bar.show(all, began.elapsed());
    }
    load.ended.store(true, Ordering::Relaxed);
    Ok(seen)
}

fn rows(written: &[([Tally; 3], Live)], seen: &Seen, shard_count: usize) -> Vec<Row> {
    let row = |phase: usize| {
        let mut tally = Tally::new();
        written.iter().for_each(|(tallies, _)| tally.add(&tallies[phase]));
        let (seconds, by_shard, keys_moved, slots_moved) = &seen.phases[phase];
        let puts: u64 = by_shard.iter().sum();
        let micros = |quantile| tally.latencies.value_at_quantile(quantile) as f64 / 1e3;
        Row {
            workload: "splitting",
            phase: PHASES[phase],
            shards: if phase == 0 { SHARDS[0] } else { shard_count },
            puts,
            seconds: *seconds,
            puts_per_s: puts as f64 / seconds.max(1e-9),
            p50_us: micros(0.5),
            p99_us: micros(0.99),
            p999_us: micros(0.999),
            max_us: tally.max_ns as f64 / 1e3,
            heaviest_share: by_shard.iter().copied().fold(0, u64::max) as f64 / puts.max(1) as f64,
            keys_moved: *keys_moved,
            slots_moved: *slots_moved,
        }
    };
    (0..PHASES.len()).filter(|phase| seen.phases[*phase].0 > 0.0).map(row).collect()
}

fn print(printer: &Printer, rows: &[Row]) -> Result<()> {
    let mut out = io::stdout().lock();
    if printer.json {
        for row in rows {
            writeln!(out, "{}", serde_json::to_string(row).map_err(io::Error::from)?)?;
        }
        return Ok(out.flush()?);
    }
    writeln!(
        out,
        "splitting: {TENANTS} tenants by Zipf's law, {} shards become {} by themselves",
        SHARDS[0], SHARDS[1]
    )?;
    writeln!(
        out,
        "    phase   seconds      puts/s     p50     p99   p99.9      max  heaviest shard  moved"
    )?;
    for row in rows {
        writeln!(
            out,
            "    {:<7} {:>7.1} {:>11} {:>7} {:>7} {:>7} {:>8} {:>14.0}%  {} slots, {} keys",
            row.phase,
            row.seconds,
            thousands(row.puts_per_s as u64),
            micros(row.p50_us),
            micros(row.p99_us),
            micros(row.p999_us),
            micros(row.max_us),
            row.heaviest_share * 100.0,
            row.slots_moved,
            thousands(row.keys_moved),
        )?;
    }
    if rows.last().is_none_or(|row| row.phase != PHASES[2]) {
        writeln!(out, "    the splits were not through in the time; give a longer --duration")?;
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_tenant_has_a_fifth() {
        let shares = shares();
        assert!((0.18..0.21).contains(&shares[0]), "{}", shares[0]);
        assert!((shares[TENANTS - 1] - 1.0).abs() < 1e-9);
        assert!(shares.is_sorted());
    }
}
