//! fjall 3.

use std::path::Path;

use fjall::config::CompressionPolicy;
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};

use crate::engine::{
    BACKGROUND_THREADS, Change, Durability, Engine, Order, Setup, Visitor, WRITE_BUFFER_BYTES,
    decode_counter,
};
use crate::failure::Result;
use crate::keys::Key;
use crate::machine::{SETTLED, wait_until_idle};

/// In words.
pub const CONFIGURATION: &str = "max_memtable_size 64 MiB, cache the rest of the budget, two worker threads, no \
    compression of journal and tables; otherwise defaults. Process: PersistMode::Buffer for each \
    write (its default). Disk: PersistMode::SyncData for each commit. Counters: read and write \
    (it has no merge operator). Settled: memtable rotated and flushed, then idle.";

struct Fjall {
    db: Database,
    space: Keyspace,
    persist: PersistMode,
}

/// Opens or creates a database.
pub fn open(dir: &Path, setup: Setup) -> Result<Box<dyn Engine>> {
    let db = Database::builder(dir)
        .cache_size(setup.cache_bytes() as u64)
        .worker_threads(BACKGROUND_THREADS)
        .journal_compression(CompressionType::None)
        .open()?;
    let space = db.keyspace("default", || {
        KeyspaceCreateOptions::default()
            .max_memtable_size(WRITE_BUFFER_BYTES as u64)
            .data_block_compression_policy(CompressionPolicy::disabled())
    })?;
    let persist = match setup.durability {
        Durability::Process => PersistMode::Buffer,
        Durability::Disk => PersistMode::SyncData,
    };
    Ok(Box::new(Fjall { db, space, persist }))
}

impl Fjall {
    /// Shows the rows of an iterator.
    fn walk(rows: impl Iterator<Item = fjall::Guard>, visit: Visitor<'_>) -> Result<()> {
        for row in rows {
            let (key, value) = row.into_inner()?;
            if !visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }
}

impl Engine for Fjall {
    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        if self.persist == PersistMode::Buffer {
            return Ok(self.space.insert(key, value)?);
        }
        let mut batch = self.db.batch().durability(Some(self.persist));
        batch.insert(&self.space, key, value);
        Ok(batch.commit()?)
    }

    fn batch(&self, changes: &[Change<'_>]) -> Result<()> {
        let mut batch = self.db.batch().durability(Some(self.persist));
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&self.space, &key[..], *value),
                None => batch.remove(&self.space, &key[..]),
            }
        }
        Ok(batch.commit()?)
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        Ok(self.space.remove(key)?)
    }

    fn increment(&self, key: &[u8]) -> Result<()> {
        let old = self.space.get(key)?;
        let count = old.and_then(|value| decode_counter(&value)).unwrap_or(0);
        Ok(self.space.insert(key, (count + 1).to_le_bytes())?)
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.space.get(key)?.map(|value| visit(&value)).is_some())
    }

    fn multi(&self, keys: &[Key], visit: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let snapshot = self.db.snapshot();
        let mut found = 0;
        for key in keys {
            if let Some(value) = snapshot.get(&self.space, key)? {
                visit(&value);
                found += 1;
            }
        }
        Ok(found)
    }

    fn scan(&self, start: &[u8], order: Order, visit: Visitor<'_>) -> Result<()> {
        match order {
            Order::Forward => Fjall::walk(self.space.range(start..), visit),
            Order::Reverse => Fjall::walk(self.space.range(..=start).rev(), visit),
        }
    }

    fn prefix(&self, prefix: &[u8], visit: Visitor<'_>) -> Result<()> {
        Fjall::walk(self.space.prefix(prefix), visit)
    }

    fn settle(&self) -> Result<()> {
        self.space.rotate_memtable_and_wait()?;
        wait_until_idle(SETTLED, || {
            self.db.outstanding_flushes() == 0 && self.db.active_compactions() == 0
        });
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(self.db.persist(PersistMode::SyncAll)?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
