//! canopydb 0.2.

use std::path::Path;

use canopydb::{Bytes, Database, DbOptions, EnvOptions, ReadTransaction, Tree};

use crate::engine::{
    Change, Durability, Engine, Order, Setup, Visitor, WRITE_BUFFER_BYTES, decode_counter,
};
use crate::failure::{Failure, Result};
use crate::keys::Key;
use crate::machine::{SETTLED, wait_until_idle};

/// In words.
pub const CONFIGURATION: &str = "page cache the rest of the budget, checkpoint target 64 MiB (its default), \
    write-ahead log; otherwise defaults; a transaction for each operation. Process: commits \
    without sync. Disk: commits with sync. Counters: read and write in one transaction. Settled: \
    a checkpoint, then idle.";

const TREE: &[u8] = b"records";

struct Canopy {
    db: Database,
}

/// Opens or creates a database.
pub fn open(dir: &Path, setup: Setup) -> Result<Box<dyn Engine>> {
    std::fs::create_dir_all(dir)?;
    let mut env = EnvOptions::new(dir);
    env.page_cache_size = setup.cache_bytes();
    let mut options = DbOptions::default();
    options.checkpoint_target_size = WRITE_BUFFER_BYTES;
    options.default_commit_sync = setup.durability == Durability::Disk;
    let db = Database::with_options(env, options)?;
    // Readers need the tree.
    let creation = db.begin_write()?;
    drop(creation.get_or_create_tree(TREE)?);
    creation.commit()?;
    Ok(Box::new(Canopy { db }))
}

impl Canopy {
    fn write(&self, change: impl FnOnce(&mut Tree<'_>) -> Result<()>) -> Result<()> {
        let transaction = self.db.begin_write()?;
        let mut tree = transaction.get_or_create_tree(TREE)?;
        change(&mut tree)?;
        drop(tree);
        transaction.commit()?;
        Ok(())
    }
}

fn tree(view: &ReadTransaction) -> Result<Tree<'_>> {
    view.get_tree(TREE)?.ok_or_else(|| Failure::new("the tree is gone"))
}

/// Shows the rows of an iterator.
fn walk(
    rows: impl Iterator<Item = std::result::Result<(Bytes, Bytes), canopydb::Error>>,
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

impl Engine for Canopy {
    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.write(|tree| Ok(tree.insert(key, value)?))
    }

    fn batch(&self, changes: &[Change<'_>]) -> Result<()> {
        self.write(|tree| {
            for (key, value) in changes {
                match value {
                    Some(value) => tree.insert(key, value)?,
                    None => drop(tree.delete(key)?),
                }
            }
            Ok(())
        })
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        self.write(|tree| {
            tree.delete(key)?;
            Ok(())
        })
    }

    fn increment(&self, key: &[u8]) -> Result<()> {
        self.write(|tree| {
            let count = tree.get(key)?.and_then(|old| decode_counter(&old)).unwrap_or(0);
            Ok(tree.insert(key, &(count + 1).to_le_bytes())?)
        })
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let view = self.db.begin_read()?;
        Ok(tree(&view)?.get(key)?.map(|value| visit(&value)).is_some())
    }

    fn multi(&self, keys: &[Key], visit: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let view = self.db.begin_read()?;
        let tree = tree(&view)?;
        let mut found = 0;
        for key in keys {
            if let Some(value) = tree.get(key)? {
                visit(&value);
                found += 1;
            }
        }
        Ok(found)
    }

    fn scan(&self, start: &[u8], order: Order, visit: Visitor<'_>) -> Result<()> {
        let view = self.db.begin_read()?;
        match order {
            Order::Forward => walk(tree(&view)?.range(start..)?, visit),
            Order::Reverse => walk(tree(&view)?.range(..=start)?.rev(), visit),
        }
    }

    fn prefix(&self, prefix: &[u8], visit: Visitor<'_>) -> Result<()> {
        let view = self.db.begin_read()?;
        walk(tree(&view)?.prefix(&prefix)?, visit)
    }

    fn settle(&self) -> Result<()> {
        self.db.checkpoint()?;
        wait_until_idle(SETTLED, || true);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(self.db.sync()?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
