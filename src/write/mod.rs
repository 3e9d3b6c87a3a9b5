//! The write path: from an encoded batch to a published, durable commit.
//!
//! - `ring`: the order of commits under way, and what is published. `ring_model`: its schedules,
//!   tried by shuttle.
//! - `log`: the files of the write-ahead log.
//! - `commit`: the pipeline: sequence numbers, log space, memtables, publication.
//! - `stamps`: which keys were written lately, for commits that depend on what they read.
//! - `closing`: which commits across shards keep a synced log from being durable. `joint`: such a
//!   commit. `joint_model`: its schedules.
//! - `gather`: how long a sync waits for those whom the last one released.
//! - `syncer`: what of the log is durable, and who waits for it. `syncer_model`: its schedules.
//! - `ticket`: the handle of an asynchronous commit.
//! - `breaker`: refuses writes after a failure of the disk.
//! - `pressure`: slows writers down smoothly before the disk falls behind.

pub(crate) mod breaker;
pub(crate) mod closing;
pub(crate) mod commit;
mod gather;
pub(crate) mod joint;
#[cfg(test)]
mod joint_model;
pub(crate) mod log;
pub(crate) mod pressure;
pub(crate) mod ring;
#[cfg(test)]
pub(crate) mod ring_model;
pub(crate) mod stamps;
pub(crate) mod syncer;
#[cfg(test)]
mod syncer_model;
pub(crate) mod ticket;

/// What `ring` and `syncer` build on; their models put shuttle's in their place, and smaller numbers.
mod sync {
    pub(crate) use crate::runtime::{Condvar, Mutex, MutexGuard, Runtime as Clock};
    pub(crate) use std::hint::spin_loop as spin;
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

    /// Commits under way at once. Each is one thread inside `commit`, so this is no real limit.
    pub(crate) const SLOT_COUNT: u64 = 1024;
    /// Spins before a waiting writer sleeps. The predecessor is typically half a microsecond away.
    pub(crate) const SPIN_COUNT: u32 = 64;
}
