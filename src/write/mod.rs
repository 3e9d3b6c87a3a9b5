//! The write path: from an encoded batch to a published, durable commit.
//!
//! - `ring`: the order of commits under way, and what is published.
//! - `log`: the files of the write-ahead log.
//! - `commit`: the pipeline: sequence numbers, log space, memtables, publication.
//! - `syncer`: what of the log is durable, and who waits for it.
//! - `ticket`: the handle of an asynchronous commit.
//! - `breaker`: refuses writes after a failure of the disk.
//! - `pressure`: slows writers down smoothly before the disk falls behind.

pub(crate) mod breaker;
pub(crate) mod commit;
pub(crate) mod log;
pub(crate) mod pressure;
pub(crate) mod ring;
pub(crate) mod syncer;
pub(crate) mod ticket;

/// What `ring` builds on; its model in the tests puts shuttle's in their place.
mod sync {
    pub(crate) use crate::runtime::{Condvar, Mutex};
    pub(crate) use std::hint::spin_loop as spin;
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
}
