//! Resources: memory, block cache, arena chunks and background threads, of one engine or shared by
//! several.
//!
//! # Memory
//!
//! There is one budget, divided as for a single engine ([`Limits`]), and one pool of what it is
//! spent on: one block cache (its keys are ids of files, which are random, so those of two engines
//! never meet), one pool of arena chunks, and buffers for flushes and compactions. What indexes and
//! filters of tables take on the heap is taken from the block cache's share.
//!
//! ```text
//! | memtables: a half          | block cache, indexes, filters | jobs | what nobody counts |
//! | .......................... | .... -> lent to memtables     | .... |                    |
//! ```
//!
//! - What the block cache's share has free is lent to memtables: a burst of writes then is not held back
//!   for the flush as soon (decision 29). While they have some of it the cache cannot grow into it;
//!   what it grows into before that they may not have.
//! - When all active memtables together reach the size of one, the largest is frozen, whosever it is.
//! - Pressure: each engine is asked what all would hold if none held more than it does (max-min
//!   fairness). So the engine that holds most feels the whole of it, those that hold little feel
//!   none, and equal ones feel the same. Near the end, everybody with more than an equal share feels
//!   it ([`Measures`](crate::write::pressure::Measures)).
//!
//! # Threads
//!
//! See [`crate::db::crew`]. Engines that slow their writers down at the same time share what the
//! threads sustain.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::db::crew::{Crew, spawn};
use crate::db::engine::Engine;
use crate::db::stats::MemoryStats;
use crate::memtable::ArenaPool;
use crate::options::{Limits, Options};
use crate::runtime::{Mutex, Runtime, Task};
use crate::table::{BlockCache, Buffers};

/// An engine that shares its memory with no other measures its pressure every so many bytes of log,
/// as a power of two.
const MEASURE_SHIFT_MAX: u32 = 18;
const MEASURE_SHIFT_MIN: u32 = 12;
/// Each of several engines may keep a memtable of so many bytes, whatever the budget: with less,
/// all they did would be to flush.
const LEAST_MEMTABLE_BYTES: usize = 16 << 10;

/// A memory budget, a block cache and background threads that several databases share:
///
/// ```
/// use esker::{Db, Resources};
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// let resources = Resources::new(512 << 20, 4);
/// let users = Db::builder(dir.join("users")).resources(&resources).open()?;
/// let events = Db::builder(dir.join("events")).resources(&resources).open()?;
/// # users.close()?;
/// # events.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// The background threads serve all of them in turn: flushes first, then compactions of level 0, then
/// others, so that a busy database does not starve the flushes of another. When memory runs short,
/// it is the writers of those that hold the most that wait.
///
/// Cheap to clone; all clones are the same. The threads start when the first database is opened, and
/// end when the last one and the last clone are gone.
#[derive(Clone)]
pub struct Resources {
    threads: Arc<Threads>,
}

/// The threads of the crew; they end when nobody needs them any more.
struct Threads {
    shared: Arc<Shared>,
    tasks: Mutex<Vec<Task>>,
}

/// What the engines share.
pub(crate) struct Shared {
    pub runtime: Runtime,
    /// The budget in bytes.
    pub memory: usize,
    /// How many workers there are.
    pub threads: usize,
    pub crew: Crew,
    pub cache: Arc<BlockCache>,
    pub arenas: Arc<ArenaPool>,
    /// Those of flushes and compactions.
    pub buffers: Arc<Buffers>,
    limits: Limits,
    measure_shift: AtomicU32,
}

/// What an engine holds of the memory, as it last said.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    /// Bytes of its memtables with entries.
    pub memtables: AtomicUsize,
    /// Those of its active ones.
    pub actives: AtomicUsize,
    /// Bytes of its tables' indexes and filters.
    pub tables: AtomicUsize,
}

/// What an engine holds beside what the others do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    /// What all would hold if none held more than this one does.
    pub level_bytes: usize,
    /// What all hold.
    pub total_bytes: usize,
    /// All active memtables.
    pub actives_bytes: usize,
    /// How many they are.
    pub sharers: usize,
    /// How many slow their writers down, this one taken to be one of them.
    pub contenders: usize,
    /// All memtables together may take so much.
    pub memtables_bytes_max: usize,
    /// Active ones are frozen when together they reach this.
    pub actives_bytes_max: usize,
}

impl Resources {
    /// `memory` bytes for memtables, caches, filters and queued commits of all databases together,
    /// at least 1 MiB and 64 KiB for each; and so many background threads for flush and compaction,
    /// at least one.
    #[must_use]
    pub fn new(memory: usize, threads: usize) -> Resources {
        let options = Options { memory, threads, ..Options::default() };
        Resources::of(Runtime::threads(), &options)
    }

    /// Those that options ask for, on a runtime of the caller's: for tests.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn on(runtime: Runtime, options: &Options) -> Resources {
        Resources::of(runtime, options)
    }

    /// Those that the options of a database ask for.
    pub(crate) fn of(runtime: Runtime, options: &Options) -> Resources {
        let limits = options.limits();
        let chunk_bytes = (limits.memtable_bytes / 16).clamp(4 << 10, 1 << 20);
        let arenas = ArenaPool::new(
            chunk_bytes,
            limits.memtables_bytes_max,
            limits.leaf_slots,
            limits.memtable_bytes,
        );
        let shared = Arc::new(Shared {
            runtime,
            memory: options.memory,
            threads: options.threads.max(1),
            crew: Crew::default(),
            cache: BlockCache::new(limits.cache_bytes),
            buffers: Buffers::new(limits.buffers_bytes(options.threads)),
            arenas,
            limits,
            measure_shift: AtomicU32::new(MEASURE_SHIFT_MAX),
        });
        Resources { threads: Arc::new(Threads { shared, tasks: Mutex::default() }) }
    }

    /// The options of a database that shares these.
    pub(crate) fn adapt(&self, options: Options) -> Options {
        let Shared { memory, threads, .. } = **self.shared();
        Options { memory, threads, ..options }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.threads.shared
    }

    /// Has the jobs of an engine done; starts the threads if nobody has.
    ///
    /// # Errors
    /// If the operating system has no more threads to give.
    pub(crate) fn join(&self, engine: &Arc<Engine>) -> io::Result<()> {
        let shared = self.shared();
        debug_assert!(Arc::ptr_eq(shared, &engine.resources));
        {
            let mut tasks = self.threads.tasks.lock();
            while tasks.len() <= shared.threads {
                let task = spawn(shared, tasks.len())?;
                tasks.push(task);
            }
        }
        shared.crew.join(engine);
        shared.set_measure_shift();
        shared.fit_cache();
        Ok(())
    }

    /// What the budget is spent on now, by all databases together.
    #[must_use]
    pub fn memory(&self) -> MemoryStats {
        let members = self.shared().crew.members();
        let tables = |member: &Arc<Engine>| member.holding.tables.load(Ordering::Relaxed) as u64;
        let commits = |member: &Arc<Engine>| member.commits_bytes.load(Ordering::Relaxed) as u64;
        MemoryStats {
            commits: members.iter().map(commits).sum(),
            tokens: members.iter().map(|member| member.tokens.recent_bytes() as u64).sum(),
            memtables: members.iter().map(|member| member.memtables_bytes() as u64).sum(),
            tables: members.iter().map(tables).sum(),
            ..self.shared().memory_stats()
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.crew.stop();
        for task in self.tasks.get_mut().drain(..) {
            task.join();
        }
    }
}

impl fmt::Debug for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { memory, threads, .. } = **self.shared();
        write!(f, "Resources({memory} bytes, {threads} threads)")
    }
}

impl Shared {
    /// Gives the crew no more jobs of an engine. Does not wait for those under way.
    pub fn leave(&self, engine: &Engine) {
        self.crew.leave(engine);
        self.set_measure_shift();
    }

    /// An engine measures its pressure every so many bytes of log, as a power of two.
    #[inline]
    pub fn measure_shift(&self) -> u32 {
        self.measure_shift.load(Ordering::Relaxed)
    }

    /// What none has said since its last measuring has to be little beside what all may hold.
    fn set_measure_shift(&self) {
        let shift = match self.crew.members().len() {
            0 | 1 => MEASURE_SHIFT_MAX,
            count => {
                let bytes = self.limits.memtable_bytes / (4 * count);
                bytes.max(1).ilog2().clamp(MEASURE_SHIFT_MIN, MEASURE_SHIFT_MAX)
            }
        };
        self.measure_shift.store(shift, Ordering::Relaxed);
    }

    /// What `engine` holds beside the others.
    pub fn shares(&self, engine: &Engine) -> Shares {
        let own = engine.holding.memtables.load(Ordering::Relaxed);
        let actives = engine.holding.actives.load(Ordering::Relaxed);
        let mut shares = Shares {
            level_bytes: own,
            total_bytes: own,
            actives_bytes: actives,
            sharers: 1,
            contenders: 1,
            memtables_bytes_max: 0,
            actives_bytes_max: 0,
        };
        let members = self.crew.members();
        for other in members.iter().filter(|other| !std::ptr::eq(&***other, engine)) {
            let bytes = other.holding.memtables.load(Ordering::Relaxed);
            shares.level_bytes += bytes.min(own);
            shares.total_bytes += bytes;
            shares.actives_bytes += other.holding.actives.load(Ordering::Relaxed);
            shares.sharers += 1;
            shares.contenders += usize::from(other.contends());
        }
        let tables: usize = members.iter().map(|member| member.cached_bytes()).sum();
        let lent = self.lend(tables, shares.total_bytes);
        let limits = &self.limits;
        let least = limits.memtable_bytes.min(LEAST_MEMTABLE_BYTES) * shares.sharers;
        shares.actives_bytes_max = limits.memtable_bytes.max(least);
        let memtables = limits.memtables_bytes_max / limits.memtable_bytes.max(1);
        shares.memtables_bytes_max = limits.memtables_bytes_max.max(least * memtables) + lent;
        shares
    }

    /// Freezes the largest active memtable of all engines.
    pub fn freeze_largest(&self, of: &Engine) {
        let actives = |engine: &Engine| engine.holding.actives.load(Ordering::Relaxed);
        let members = self.crew.members();
        let largest = members.iter().max_by_key(|member| actives(member)).map(|member| &**member);
        match largest.filter(|largest| actives(largest) > actives(of)) {
            Some(other) => other.freeze_largest(),
            None => of.freeze_largest(),
        }
    }

    /// Divides the block cache's share anew.
    pub fn fit_cache(&self) {
        let members = self.crew.members();
        let memtables = |member: &Arc<Engine>| member.holding.memtables.load(Ordering::Relaxed);
        let tables = members.iter().map(|member| member.cached_bytes()).sum();
        self.lend(tables, members.iter().map(memtables).sum());
    }

    /// Divides the block cache's share among indexes, filters and tokens of `tables` bytes, which have
    /// what they need, memtables of `memtables` bytes, as far as they are beyond their own share, and the
    /// cache. Returns what memtables may have of it.
    fn lend(&self, tables: usize, memtables: usize) -> usize {
        let (share, least) = (self.limits.cache_bytes, self.limits.cache_bytes / 8);
        let own = self.limits.memtables_bytes_max;
        let left = |taken: usize| share.saturating_sub(tables + taken);
        let lent = left(self.cache.used_bytes().max(least));
        self.arenas.keep_at_most(own + lent);
        self.cache.resize(left(memtables.saturating_sub(own)).max(least));
        lent
    }

    /// What belongs to no engine alone.
    pub fn memory_stats(&self) -> MemoryStats {
        MemoryStats {
            budget: self.memory as u64,
            arena_pool: self.arenas.free_bytes() as u64,
            block_cache: self.cache.used_bytes() as u64,
            buffers: self.buffers.free_bytes() as u64,
            ..MemoryStats::default()
        }
    }
}
