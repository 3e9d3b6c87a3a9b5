//! Tenants over several shards: each lies in one, and shards are added while they work.
//!
//! `cargo run --example shards`

use esker::{Counter, EventId, KeyspaceOptions, Partition, ShardedDb};

/// Public, so that `tests/it/examples.rs` runs it as well.
pub fn main() -> esker::Result<()> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // What comes before the colon decides the shard.
    let db = ShardedDb::builder(dir.path())
        .shards(2)
        .partition(Partition::before(b':'))
        .memory(64 << 20)
        .open()?;
    let usage = db.keyspace("usage", KeyspaceOptions::new().merge(Counter::default()))?;

    // An order of one tenant is a commit of one shard, with nothing to pay for the others.
    for tenant in ["acme", "globex", "initech"] {
        for order in 1..=3 {
            let mut batch = db.batch();
            batch.put(&db, format!("{tenant}:order:{order}"), "3 anvils");
            batch.merge(&usage, format!("{tenant}:orders"), 1);
            assert_eq!(batch.shard_count(), 1);
            // The source has the tenant's part too, so its token lies in the same shard.
            let (source, id) = (format!("{tenant}:shop"), order.to_string());
            batch.commit_once(EventId::new(&source, &id))?;
        }
    }

    // One over several tenants is atomic all the same.
    let mut transfer = db.batch();
    transfer.merge(&usage, "acme:credit", -50).merge(&usage, "globex:credit", 50);
    transfer.commit()?;

    // A third shard gets a third of the slots, while reads and writes go on.
    db.add_shard(None)?;
    usage.merge("acme:orders", 1)?;
    db.wait_for_moves()?;
    assert_eq!(db.shard_count(), 3);

    // A tenant's scan asks its own shard, any other all of them, in the order of keys.
    assert_eq!(db.prefix("acme:order:").count(), 3);
    assert_eq!(db.iter().count(), 9);
    let orders = usage.get("acme:orders")?.expect("there are some");
    assert_eq!(Counter::decode(&orders), Some(4));
    db.close()?;
    Ok(())
}
