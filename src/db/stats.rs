//! What a database says of itself: few numbers, each explained, for machines and for people.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::compaction::picker::{Claims, Scores};
use crate::db::engine::Engine;
use crate::error::{BusyCause, DegradedCause};
use crate::tree::Tree;
use crate::version::LEVEL_COUNT;
use crate::write::breaker::BreakerState;
use crate::write::pressure::StallStats;

/// How a database is doing. Counts of bytes moved are since it was opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// Each keyspace, by id.
    pub keyspaces: Vec<KeyspaceStats>,
    /// What the memory budget is spent on.
    pub memory: MemoryStats,
    /// Keys and values accepted.
    pub user_bytes: u64,
    /// Records written to the log.
    pub log_bytes_written: u64,
    /// Tables written by flushes.
    pub flush_bytes_written: u64,
    /// Flushes.
    pub flush_count: u64,
    /// Tables read by compactions.
    pub compaction_bytes_read: u64,
    /// Tables written by compactions.
    pub compaction_bytes_written: u64,
    /// Compactions, trivial moves not counted.
    pub compaction_count: u64,
    /// Blocks that reads found in the block cache.
    pub block_cache_hits: u64,
    /// Blocks that reads had to read and decompress, or only to read.
    pub block_cache_misses: u64,
    /// Tables on disk that the database refers to.
    pub table_bytes: u64,
    /// Log files on disk that are still needed.
    pub log_bytes: u64,
    /// From 0 to 1: how close writers are to outrunning the disk.
    pub pressure: f64,
    /// What makes the pressure.
    pub pressure_cause: BusyCause,
    /// User bytes a second that the background threads sustain, as measured.
    pub sustainable_rate: f64,
    /// Bytes a second that writers may write now; `None` for any rate.
    pub allowed_rate: Option<u64>,
    /// How often and how long writers waited, by cause.
    pub stalls: Vec<StallStats>,
    /// Whether writes are taken.
    pub breaker: BreakerState,
    /// Why not.
    pub breaker_cause: Option<DegradedCause>,
    /// Snapshots that are held.
    pub snapshot_count: usize,
    /// How long the oldest snapshot has been held.
    pub oldest_snapshot_age: Option<Duration>,
}

/// One keyspace.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KeyspaceStats {
    /// Its name.
    pub name: String,
    /// From level 0 to the last.
    pub levels: Vec<LevelStats>,
    /// Entries in tables: versions, tombstones and operands counted each.
    pub table_entries: u64,
    /// Keys and values in tables, uncompressed.
    pub raw_bytes: u64,
    /// Runs that a read may have to visit.
    pub run_count: usize,
    /// Bytes that compactions are behind.
    pub debt_bytes: u64,
}

/// One level of a keyspace.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LevelStats {
    /// Tables.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How full it is: from 1 on it is compacted.
    pub score: f64,
    /// Bytes read by compactions into it.
    pub read_bytes: u64,
    /// Bytes written to it by flushes and compactions.
    pub written_bytes: u64,
    /// The same for each byte that the keyspace has flushed: level 0 has 1, and the sum over all
    /// levels is what the tables contribute to write amplification. 0 before the first flush.
    pub write_amplification: f64,
}

/// Bytes of memory by what they are for. Of a database that shares
/// [`Resources`](crate::Resources), memtables and tables are its own; the rest is of all of them.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct MemoryStats {
    /// The budget.
    pub budget: u64,
    /// Memtables, active and frozen.
    pub memtables: u64,
    /// Arena chunks kept for the next memtables, and the filters of memtables.
    pub arena_pool: u64,
    /// Blocks in the cache.
    pub block_cache: u64,
    /// Buffers kept for the next flushes and compactions.
    pub buffers: u64,
    /// Filters and indexes of open tables, as far as they are copied to the heap.
    pub tables: u64,
    /// The filter of recent tokens of idempotent commits, once there was one.
    pub tokens: u64,
    /// Commits of more than 16 KiB each that are being written, or wait for it.
    pub commits: u64,
}

impl Stats {
    pub(crate) fn of(engine: &Engine) -> Stats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let trees = engine.trees.load();
        let keyspaces: Vec<_> = trees.iter().map(|tree| KeyspaceStats::of(engine, tree)).collect();
        let levels = keyspaces.iter().flat_map(|keyspace| &keyspace.levels);
        let table_bytes = levels.map(|level| level.bytes).sum();
        let totals = &engine.totals;
        let (pressure, pressure_cause) = engine.pressure.reading();
        let (breaker, breaker_cause) = engine.pipeline.breaker.state();
        let (snapshot_count, oldest) = engine.snapshots.summary(engine.runtime.now());
        Stats {
            memory: MemoryStats::of(engine),
            user_bytes: load(&totals.user_bytes),
            log_bytes_written: load(&totals.log_bytes),
            flush_bytes_written: load(&totals.flush_bytes),
            flush_count: load(&totals.flush_count),
            compaction_bytes_read: load(&totals.compaction_read_bytes),
            compaction_bytes_written: load(&totals.compaction_written_bytes),
            compaction_count: load(&totals.compaction_count),
            block_cache_hits: engine.cache.hits(),
            block_cache_misses: engine.cache.misses(),
            table_bytes,
            log_bytes: engine.pipeline.logs.live_bytes(),
            pressure,
            pressure_cause,
            sustainable_rate: engine.pressure.sustainable(),
            allowed_rate: engine.pressure.allowed(),
            stalls: engine.pressure.stalls(),
            breaker,
            breaker_cause,
            snapshot_count,
            oldest_snapshot_age: oldest.map(|(_, age)| age),
            keyspaces,
        }
    }

    /// Bytes written to the disk for each byte that the user wrote: log, flushes and compactions.
    #[must_use]
    pub fn write_amplification(&self) -> f64 {
        let written =
            self.log_bytes_written + self.flush_bytes_written + self.compaction_bytes_written;
        written as f64 / self.user_bytes.max(1) as f64
    }
}

impl KeyspaceStats {
    fn of(engine: &Engine, tree: &Tree) -> KeyspaceStats {
        let view = tree.view();
        let scores = Scores::of(&view.version, &engine.limits, &Claims::default());
        let written = |level: usize| tree.traffic[level].written_bytes.load(Ordering::Relaxed);
        let flushed = written(0);
        let level = |level: usize| LevelStats {
            files: view.version.tables().filter(|(at, _)| usize::from(*at) == level).count() as u64,
            bytes: view.version.level_bytes(level as u8),
            score: scores.levels[level].score,
            read_bytes: tree.traffic[level].read_bytes.load(Ordering::Relaxed),
            written_bytes: written(level),
            write_amplification: if flushed == 0 {
                0.0
            } else {
                written(level) as f64 / flushed as f64
            },
        };
        let facts = || view.version.tables().map(|(_, table)| table.facts());
        KeyspaceStats {
            name: tree.name.clone(),
            levels: (0..LEVEL_COUNT).map(level).collect(),
            table_entries: facts().map(|facts| facts.entries).sum(),
            raw_bytes: facts().map(|facts| facts.raw_bytes).sum(),
            run_count: view.version.run_count(),
            debt_bytes: scores.debt_bytes(),
        }
    }
}

impl MemoryStats {
    fn of(engine: &Engine) -> MemoryStats {
        MemoryStats {
            memtables: engine.memtables_bytes() as u64,
            tables: engine.tables_memory_bytes() as u64,
            tokens: engine.tokens.recent_bytes() as u64,
            commits: engine.commits_bytes.load(Ordering::Relaxed) as u64,
            ..engine.resources.memory_stats()
        }
    }

    /// All of it together.
    #[must_use]
    pub fn total(&self) -> u64 {
        let caches = self.block_cache + self.buffers + self.tables + self.tokens;
        self.memtables + self.arena_pool + caches + self.commits
    }
}

/// Bytes as people read them.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let text = match unit {
            0 => format!("{value} {}", UNITS[unit]),
            _ => format!("{value:.1} {}", UNITS[unit]),
        };
        f.pad(&text)
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for keyspace in &self.keyspaces {
            writeln!(f, "{keyspace}")?;
        }
        let memory = &self.memory;
        writeln!(
            f,
            "memory    {} of {}: memtables {}, arena pool {}, block cache {}, buffers {}, \
             tables {}, tokens {}, commits {}",
            Bytes(memory.total()),
            Bytes(memory.budget),
            Bytes(memory.memtables),
            Bytes(memory.arena_pool),
            Bytes(memory.block_cache),
            Bytes(memory.buffers),
            Bytes(memory.tables),
            Bytes(memory.tokens),
            Bytes(memory.commits),
        )?;
        let (hits, misses) = (self.block_cache_hits, self.block_cache_misses);
        writeln!(f, "reads     block cache {hits} hits, {misses} misses")?;
        writeln!(
            f,
            "on disk   tables {}, logs {}",
            Bytes(self.table_bytes),
            Bytes(self.log_bytes)
        )?;
        write!(
            f,
            "written   user {}, log {}, {} flushes {}, {} compactions {} (read {})",
            Bytes(self.user_bytes),
            Bytes(self.log_bytes_written),
            self.flush_count,
            Bytes(self.flush_bytes_written),
            self.compaction_count,
            Bytes(self.compaction_bytes_written),
            Bytes(self.compaction_bytes_read),
        )?;
        match self.user_bytes {
            0 => writeln!(f)?,
            _ => writeln!(f, "; write amplification {:.2}", self.write_amplification())?,
        }
        let allowed = match self.allowed_rate {
            Some(rate) => format!("{}/s", Bytes(rate)),
            None => "any rate".to_string(),
        };
        writeln!(
            f,
            "pressure  {:.2} ({:?}); allowed {allowed}, sustainable {}/s",
            self.pressure,
            self.pressure_cause,
            Bytes(self.sustainable_rate as u64),
        )?;
        for stall in self.stalls.iter().filter(|stall| stall.count > 0) {
            let StallStats { cause, count, time } = stall;
            writeln!(f, "stalls    {cause:?}: {count} commits, {time:.1?}")?;
        }
        write!(f, "writes    {:?}", self.breaker)?;
        if let Some(cause) = self.breaker_cause {
            write!(f, " ({cause:?})")?;
        }
        if let Some(age) = self.oldest_snapshot_age {
            write!(f, "\nsnapshots {}, the oldest held for {age:.1?}", self.snapshot_count)?;
        }
        Ok(())
    }
}

impl fmt::Display for KeyspaceStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "keyspace  {:?}: {} entries, {} of keys and values, {} runs, compaction debt {}",
            self.name,
            self.table_entries,
            Bytes(self.raw_bytes),
            self.run_count,
            Bytes(self.debt_bytes),
        )?;
        write!(f, "  level  files       bytes  score        read     written  w-amp")?;
        for (number, level) in self.levels.iter().enumerate() {
            if level.files == 0 && level.written_bytes == 0 {
                continue;
            }
            write!(
                f,
                "\n  {number:>5}  {:>5}  {:>10}  {:>5.2}  {:>10}  {:>10}  {:>5.2}",
                level.files,
                Bytes(level.bytes),
                level.score,
                Bytes(level.read_bytes),
                Bytes(level.written_bytes),
                level.write_amplification,
            )?;
        }
        Ok(())
    }
}
