//! esker: a standalone LSM-tree storage engine for applications that write more than a B-tree can
//! take, with every crash point tried.

// Layers, from the bottom up; each may import only from those above it in this list.
// tests/it/layers.rs holds it.
pub(crate) mod coding;
mod error;

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

pub(crate) mod version;

pub(crate) mod compaction;

#[doc(hidden)]
#[cfg(feature = "testing")]
pub mod bench_seams;

pub use crate::error::{BusyCause, DegradedCause, Error, ErrorKind, Result};
pub use crate::operator::{Append, Counter, Max, MergeError, MergeOperator, Merged, Min, Operand};
pub use crate::options::{Compression, Durability, Filter, Options, ReadMode};
pub use crate::slice::Slice;
