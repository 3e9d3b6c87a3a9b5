//! What services that write much build around their store, on top of the verbs of the database.
//!
//! - `batcher`: many producers, one commit.
//! - `coalescer`: many operands of a key, one write.
//! - `ingest`: a durable queue in front of the database.
//!
//! Idempotent and conditional commits are verbs of [`Batch`](crate::Batch) itself. `docs/toolkit`
//! says of each part what it may lose, what it costs and what it gains.

pub(crate) mod batcher;
pub(crate) mod coalescer;
pub(crate) mod ingest;
