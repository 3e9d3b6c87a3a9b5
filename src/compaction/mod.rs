//! Flush and compaction: what to merge, what survives, and writing it.
//!
//! - `dead`: entries that a watermark says count no more.
//! - `picker`: from a version to a plan; pure.
//! - `survive`: from entries and snapshots to the entries that are still needed; pure.
//! - `run`: the loop that writes survivors into tables.

pub(crate) mod dead;
pub(crate) mod picker;
pub(crate) mod run;
#[cfg(test)]
mod simulation;
pub(crate) mod survive;
