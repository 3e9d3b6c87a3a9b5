//! esker: a standalone LSM-tree storage engine for applications that write more than a B-tree can
//! take, with every crash point tried.

// Layers, from the bottom up; each may import only from those above it in this list.
// tests/it/layers.rs holds it.
pub(crate) mod coding;
mod error;
mod loss;

pub(crate) mod checksum;
pub(crate) mod file;
pub(crate) mod key;
mod operator;
mod options;
mod slice;

pub mod fs;

pub(crate) mod cursor;
pub mod runtime;

pub(crate) mod batch;
pub(crate) mod record;
pub(crate) mod table;

pub(crate) mod manifest;
pub(crate) mod memtable;

pub(crate) mod dump;

pub(crate) mod version;

pub(crate) mod compaction;
mod snapshots;

mod tree;

mod flush;
mod read;
mod write;

mod db;

mod shard;

mod toolkit;

pub mod tools;

#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzz;

pub use crate::db::batch::Batch;
pub use crate::db::keyspace::{Keyspace, KeyspaceOptions};
pub use crate::db::once::{EventId, Outcome};
pub use crate::db::resources::Resources;
pub use crate::db::snapshot::{KeyspaceSnapshot, Snapshot};
pub use crate::db::stats::{KeyspaceStats, LevelStats, MemoryStats, Stats};
pub use crate::db::{Db, DbBuilder};
pub use crate::error::{BusyCause, DegradedCause, Error, ErrorKind, Result};
pub use crate::loss::Loss;
pub use crate::operator::{Append, Counter, Max, MergeError, MergeOperator, Merged, Min, Operand};
pub use crate::options::{
    Compression, Durability, Filter, Options, ReadMode, Recovery, TokenWindow,
};
pub use crate::read::iter::{Entry, Iter};
pub use crate::read::scan::Cursor;
pub use crate::shard::batch::{ShardedBatch, ShardedTicket};
pub use crate::shard::hot::HotCounters;
pub use crate::shard::keyspace::ShardedKeyspace;
pub use crate::shard::mover::{MovePhase, MoveProgress};
pub use crate::shard::partition::Partition;
pub use crate::shard::policy::Automatic;
pub use crate::shard::rates::Rate;
pub use crate::shard::scan::{ShardedCursor, ShardedIter};
pub use crate::shard::snapshot::{ShardedKeyspaceSnapshot, ShardedSnapshot};
pub use crate::shard::stats::{HeavyKey, ShardStats, ShardedStats, SlotStats};
pub use crate::shard::{ShardedDb, ShardedDbBuilder};
pub use crate::slice::Slice;
pub use crate::toolkit::batcher::{Batcher, BatcherOptions, ItemTicket};
pub use crate::toolkit::coalescer::{Coalescer, CoalescerOptions};
pub use crate::toolkit::ingest::IngestQueue;
pub use crate::toolkit::ingest::consumer::{Event, HandlerResult};
pub use crate::toolkit::ingest::dead::DeadLetter;
pub use crate::toolkit::ingest::options::IngestOptions;
pub use crate::toolkit::ingest::stats::QueueStats;
pub use crate::write::breaker::{BreakerChange, BreakerState, BreakerWatch};
pub use crate::write::pressure::{Pressure, StallStats};
pub use crate::write::ticket::Ticket;

/// What the benches reach of the inside; no part of the API.
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod internals {
    pub use crate::memtable::bench as memtable;
    pub use crate::table::bench as table;
}
