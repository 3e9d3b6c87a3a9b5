//! Plain values that a user chooses when opening a database or a keyspace, and the limits that
//! follow from them. Nothing here knows the file system.

use std::time::Duration;

/// When a commit is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// Handed to the kernel: survives a SIGKILL of the process the moment it is acknowledged.
    /// Power loss may cost a suffix of the commits, never a hole.
    #[default]
    Process,
    /// On the disk: this commit and every earlier one of every keyspace survive power loss.
    Disk,
}

/// How blocks of tables are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// As they are; read in place from the mapping.
    None,
    /// None in the upper levels, which are rewritten soon, LZ4 in the last ones.
    #[default]
    Lz4,
}

/// Which filter tells that a table does not have a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Filter {
    /// No filter: every table whose range covers the key is searched.
    None,
    /// Bloom filter (crate `bloomfilter`), with so many bits a key.
    Bloom {
        /// 10 gives 0.83 % false positives.
        bits_per_key: u8,
    },
    /// Binary fuse filter: 9.1 bits a key, 0.4 % false positives.
    #[default]
    BinaryFuse8,
}

/// How tables are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReadMode {
    /// Through memory mappings, in place. Fastest. A sector that the disk cannot read is then a
    /// SIGBUS, and a page that rots after it was verified is not verified again.
    #[default]
    Mapped,
    /// With `pread` into the block cache, every block verified as it is read.
    Pread,
}

/// How long the tokens of [`Batch::commit_once`](crate::Batch::commit_once) are kept: a repeated
/// event is recognized at least as long as both bounds say, and a little longer.
///
/// Events of growing sources have no tokens but one number for each source, which is kept for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenWindow {
    /// Tokens younger than this are kept, while the next bound allows it. Counts while the
    /// database is open, in steps of a sixteenth or of a minute. Default 24 hours.
    pub time: Duration,
    /// Of each source so many tokens are kept, the newest; commits that are under way at the same
    /// moment count as one place. `u64::MAX` for no such bound. Default 1,000,000.
    pub per_source: u64,
}

impl Default for TokenWindow {
    fn default() -> TokenWindow {
        TokenWindow { time: Duration::from_secs(24 * 3600), per_source: 1_000_000 }
    }
}

impl TokenWindow {
    /// Keeps tokens for so long, and of each source so many.
    #[must_use]
    pub fn new(time: Duration, per_source: u64) -> TokenWindow {
        TokenWindow { time, per_source }
    }
}

/// What an open does where the database is damaged: where it finds something else than was written,
/// and a plain crash does not explain it.
///
/// The choice matters only for a damaged database; one that is whole, or that crashed, opens in
/// every mode to the same state. Files that a mode gives up are kept in the directory `lost` within
/// the database's; what they held is listed by [`Db::losses`](crate::Db::losses).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Recovery {
    /// Refuse with `Corruption`, which names file and offset, and change nothing.
    #[default]
    Strict,
    /// Cut the log at its first damage: the database becomes what it was after some first commits,
    /// and later ones are lost, intact or not. Refuses where that is no moment of its history:
    /// where a table of one of several keyspaces already has later commits, and where a table or
    /// the manifest is damaged.
    PointInTime,
    /// Leave out what cannot be read, and keep everything else: intact commits after a damaged part
    /// of the log too, and the tables that are left where one is missing or cannot be opened. The
    /// result may be no moment of the history: commits and operands are missing in the middle, and
    /// of keys in a lost table an older value, or one that was deleted, may show. Single commits
    /// are still whole or absent.
    ///
    /// Damaged blocks within a table are left as they are, and reading them still fails:
    /// [`tools::repair`](crate::tools::repair) takes them out, and mends a damaged manifest.
    Salvage,
}

/// Choices for a whole database. Make one with [`Options::default`] and change fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Bytes that memtables, caches, filters and queued commits may take together.
    /// At least 1 MiB. Default 256 MiB.
    pub memory: usize,
    /// Background threads for flush and compaction. Default: one for each core, at most 4.
    pub threads: usize,
    /// The level of `commit`, `put` and the other verbs that name none. Default `Process`.
    pub durability: Durability,
    /// Sync the log at least this often, so that power loss costs at most so much time of
    /// Process commits. Default: no such syncs.
    pub sync_interval: Option<Duration>,
    /// How blocks are compressed. Default LZ4 in the last levels.
    pub compression: Compression,
    /// Which filter tables carry. Default binary fuse.
    pub filter: Filter,
    /// How tables are read. Default mapped.
    pub read_mode: ReadMode,
    /// Bytes after which a table is closed and the next begun; an eighth of `memory` at most. Default
    /// 32 MiB.
    pub table_bytes: usize,
    /// Create the database if the directory has none. Default true.
    pub create: bool,
    /// How long tokens of idempotent commits are kept. Default 24 hours and a million a source.
    pub token_window: TokenWindow,
    /// What to do where the database is damaged. Default strict: refuse, and change nothing.
    pub recovery: Recovery,
    /// For tests: limits so small that a few entries reach every code path.
    pub(crate) limits: Option<Limits>,
}

impl Default for Options {
    fn default() -> Options {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Options {
            memory: 256 << 20,
            threads: cores.min(4),
            durability: Durability::Process,
            sync_interval: None,
            compression: Compression::default(),
            filter: Filter::default(),
            read_mode: ReadMode::default(),
            table_bytes: 32 << 20,
            create: true,
            token_window: TokenWindow::default(),
            recovery: Recovery::Strict,
            limits: None,
        }
    }
}

impl Options {
    /// For tests: limits so small that a few operations reach flush, compaction, log rotation and
    /// manifest rotation. 64-byte blocks, tables of 512 bytes, memtables of some entries.
    #[must_use]
    pub fn tiny() -> Options {
        Options {
            memory: 1 << 20,
            threads: 2,
            compression: Compression::None,
            table_bytes: 512,
            limits: Some(Limits::tiny()),
            ..Options::default()
        }
    }

    /// The sizes that follow from the choices.
    pub(crate) fn limits(&self) -> Limits {
        self.limits.clone().unwrap_or_else(|| {
            Limits::from_memory(self.memory, self.table_bytes, self.threads.max(1))
        })
    }
}

/// Sizes that follow from the memory budget; tests replace them.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// A memtable of so many bytes is frozen.
    pub memtable_bytes: usize,
    /// A leaf of a memtable is split at so many entries.
    pub leaf_slots: usize,
    /// All memtables together, active and frozen, of all keyspaces; beside what the block cache's share has
    /// free.
    pub memtables_bytes_max: usize,
    /// Size of a log file. A record that is larger gets a file of its own size.
    pub log_bytes: u64,
    /// Logs that are still needed hold at most about so much.
    pub logs_bytes_max: u64,
    /// Uncompressed size at which a data block is closed.
    pub block_bytes: usize,
    /// A table is closed at so many bytes.
    pub table_bytes: usize,
    /// Decompressed blocks that are kept, and what open tables and recent tokens take beside them.
    pub cache_bytes: usize,
    /// What one flush or compaction may take for itself: what it reads ahead, what it writes, and the
    /// filter that it builds.
    pub job_bytes: usize,
    /// Level 0 is compacted at so many runs.
    pub level0_runs: usize,
    /// Writers are stopped at so many runs of level 0; slowed down well before.
    pub level0_runs_max: usize,
    /// So many runs count as one, at most, where entries are large or there is much data.
    pub level0_patience_max: u64,
    /// Target of the smallest level below 0.
    pub base_level_bytes: u64,
    /// Each level's target is so many times the one above it.
    pub level_ratio: u64,
    /// The manifest is rewritten once it holds so many bytes more than its snapshot.
    pub manifest_bytes: u64,
    /// Disk space that writers leave for flush, compaction and deletes.
    pub reserve_bytes: u64,
}

impl Limits {
    fn from_memory(memory: usize, table_bytes: usize, threads: usize) -> Limits {
        let memtable_bytes = (memory / 4).clamp(256 << 10, 64 << 20);
        Limits {
            memtable_bytes,
            leaf_slots: 256,
            memtables_bytes_max: (memory / 2).max(2 * memtable_bytes),
            log_bytes: (memtable_bytes as u64).clamp(1 << 20, 64 << 20),
            logs_bytes_max: (memory as u64 * 2).max(64 << 20),
            block_bytes: 4 << 10,
            // What a compaction needs, for its filter above all, grows with the table that it writes.
            table_bytes: table_bytes.min((memory / 8).max(1 << 20)),
            // With a quarter, a process took a tenth more than the budget.
            cache_bytes: memory / 16 * 3,
            job_bytes: memory / 16 * 3 / threads,
            level0_runs: 4,
            level0_runs_max: 24,
            level0_patience_max: 4,
            base_level_bytes: 4 * memtable_bytes as u64,
            level_ratio: 10,
            manifest_bytes: 1 << 20,
            reserve_bytes: 2 * memtable_bytes as u64,
        }
    }

    /// How far each of so many inputs of a compaction is read ahead: together a third of what the job
    /// may take.
    pub fn read_ahead_bytes(&self, inputs: usize) -> usize {
        (self.job_bytes / 3 / inputs.max(1)).clamp(32 << 10, 1 << 20)
    }

    /// What flushes and compactions keep of buffers between them: what so many of them read ahead and
    /// write.
    pub fn buffers_bytes(&self, threads: usize) -> usize {
        self.job_bytes / 2 * threads.max(1)
    }

    fn tiny() -> Limits {
        Limits {
            // An arena's first chunk takes 4096; this is full after 9 small entries.
            memtable_bytes: 4700,
            leaf_slots: 4,
            memtables_bytes_max: 24 << 10,
            log_bytes: 1024,
            logs_bytes_max: 8192,
            block_bytes: 64,
            table_bytes: 512,
            cache_bytes: 4096,
            job_bytes: 64 << 10,
            level0_runs: 2,
            level0_runs_max: 6,
            level0_patience_max: 1,
            base_level_bytes: 2048,
            level_ratio: 4,
            manifest_bytes: 1024,
            reserve_bytes: 0,
        }
    }
}
