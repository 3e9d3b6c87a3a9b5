//! The model test's sequences on a [`ShardedDb`], with splits and moves in the middle.

use std::sync::Arc;

use esker::fs::sim::SimFs;
use esker::runtime::Runtime;
pub use esker::{
    ShardedCursor as Cursor, ShardedDb as Db, ShardedIter as Iter, ShardedKeyspace as Keyspace,
    ShardedKeyspaceSnapshot as KeyspaceSnapshot, ShardedSnapshot as Snapshot,
};

use super::operation::Reshard;
use super::setting::Setting;

#[path = "run.rs"]
#[expect(clippy::duplicate_mod, reason = "the same sequences, on the same verbs of another type")]
pub mod run;

fn open(fs: SimFs, runtime: Runtime, setting: &Setting, dir: &str) -> esker::Result<Db> {
    let builder = Db::builder(dir).options(setting.options.clone());
    builder.shards(setting.shards).slots(32).open_on(Arc::new(fs), runtime)
}

/// Flushes and compactions so far.
fn counts(db: &Db) -> (u64, u64) {
    let stats = db.stats();
    let sum = |of: fn(&esker::Stats) -> u64| stats.shards.iter().map(|s| of(&s.stats)).sum();
    (sum(|stats| stats.flush_count), sum(|stats| stats.compaction_count))
}

/// The most shards of a sequence.
const SHARDS_MAX: usize = 10;

fn reshard(db: &Db, reshard: Reshard) -> esker::Result<()> {
    match reshard {
        Reshard::Split(index) if db.shard_count() < SHARDS_MAX => {
            db.split(index % db.shard_count()).map(drop)
        }
        Reshard::Split(_) | Reshard::Wait => db.wait_for_moves(),
        Reshard::Rebalance => db.rebalance(),
        Reshard::Abort => {
            db.abort_moves();
            Ok(())
        }
    }
}
