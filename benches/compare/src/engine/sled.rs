//! sled 0.34.

use std::path::Path;

use sled::{Batch, Config, Db};

use crate::engine::{Change, Durability, Engine, Order, Setup, Visitor, decode_counter};
use crate::failure::Result;
use crate::keys::Key;

/// In words.
pub const CONFIGURATION: &str = "cache_capacity the rest of the budget, no compression; otherwise defaults. \
    Process: written and synced in the background every 500 ms (its default), which LOSES the \
    last writes on a SIGKILL: less than the other engines promise. Disk: flush() after each \
    write. Counters: its merge operator. Settled: flush().";

struct Sled {
    db: Db,
    durability: Durability,
}

/// Opens or creates a database.
pub fn open(dir: &Path, setup: Setup) -> Result<Box<dyn Engine>> {
    let db = Config::new().path(dir).cache_capacity(setup.cache_bytes() as u64).open()?;
    if setup.counters {
        db.set_merge_operator(add);
    }
    Ok(Box::new(Sled { db, durability: setup.durability }))
}

/// Sums what is there and the operand.
fn add(_key: &[u8], old: Option<&[u8]>, operand: &[u8]) -> Option<Vec<u8>> {
    let sum = old.map_or(Some(0), decode_counter)? + decode_counter(operand)?;
    Some(sum.to_le_bytes().to_vec())
}

impl Sled {
    /// Waits for the disk where the setup says so.
    fn acknowledge(&self) -> Result<()> {
        if self.durability == Durability::Disk {
            self.db.flush()?;
        }
        Ok(())
    }

    /// Shows the rows of an iterator.
    fn walk(
        rows: impl Iterator<Item = sled::Result<(sled::IVec, sled::IVec)>>,
        visit: Visitor<'_>,
    ) -> Result<()> {
        for row in rows {
            let (key, value) = row?;
            if !visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }
}

impl Engine for Sled {
    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.db.insert(key, value)?;
        self.acknowledge()
    }

    fn batch(&self, changes: &[Change<'_>]) -> Result<()> {
        let mut batch = Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&key[..], *value),
                None => batch.remove(&key[..]),
            }
        }
        self.db.apply_batch(batch)?;
        self.acknowledge()
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        self.db.remove(key)?;
        self.acknowledge()
    }

    fn increment(&self, key: &[u8]) -> Result<()> {
        self.db.merge(key, 1_u64.to_le_bytes())?;
        self.acknowledge()
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.db.get(key)?.map(|value| visit(&value)).is_some())
    }

    fn multi(&self, keys: &[Key], visit: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let mut found = 0;
        for key in keys {
            found += usize::from(self.get(key, visit)?);
        }
        Ok(found)
    }

    fn scan(&self, start: &[u8], order: Order, visit: Visitor<'_>) -> Result<()> {
        match order {
            Order::Forward => Sled::walk(self.db.range(start..), visit),
            Order::Reverse => Sled::walk(self.db.range(..=start).rev(), visit),
        }
    }

    fn prefix(&self, prefix: &[u8], visit: Visitor<'_>) -> Result<()> {
        Sled::walk(self.db.scan_prefix(prefix), visit)
    }

    fn settle(&self) -> Result<()> {
        self.sync()
    }

    fn sync(&self) -> Result<()> {
        self.db.flush()?;
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.sync()
    }
}
