//! The model test's sequences on a [`Db`].

use std::sync::Arc;

use esker::fs::sim::SimFs;
use esker::runtime::Runtime;
pub use esker::{Cursor, Db, Iter, Keyspace, KeyspaceSnapshot, Snapshot};

use super::operation::Reshard;
use super::setting::Setting;

#[path = "run.rs"]
pub mod run;

fn open(fs: SimFs, runtime: Runtime, setting: &Setting, dir: &str) -> esker::Result<Db> {
    Db::open_on(Arc::new(fs), runtime, dir, setting.options.clone())
}

/// Flushes and compactions so far.
fn counts(db: &Db) -> (u64, u64) {
    let stats = db.stats();
    (stats.flush_count, stats.compaction_count)
}

/// There is nothing to move.
fn reshard(_: &Db, _: Reshard) -> esker::Result<()> {
    Ok(())
}
