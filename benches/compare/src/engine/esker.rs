//! esker as it comes, with the memory that gives a write buffer of the peers' size.

use std::path::Path;

use esker::{Batch, Compression, Counter, Db, Keyspace, KeyspaceOptions, Options, ReadMode};

use crate::engine::{Change, Durability, Engine, Order, Setup, Visitor};
use crate::failure::Result;
use crate::keys::Key;

/// In words.
pub const CONFIGURATION: &str = "memory: the whole budget, in which everything has to fit (active and \
    frozen memtables, filters, block cache, jobs); no compression; otherwise defaults (mapped \
    tables, binary fuse filters). Process: acknowledged once it is in the mapped log. Disk: \
    fdatasync, shared by concurrent commits. Counters: merge with the built-in Counter.";

/// In words, where tables are not mapped.
pub const CONFIGURATION_PREAD: &str = "as esker, but for its tables, which are read by pread into \
    the block cache: what is left of the memory.";

struct Esker {
    db: Db,
    space: Keyspace,
}

/// Opens or creates a database.
pub fn open(dir: &Path, setup: Setup, read_mode: ReadMode) -> Result<Box<dyn Engine>> {
    let mut options = Options::default();
    options.memory = setup.memory_bytes;
    options.compression = Compression::None;
    options.read_mode = read_mode;
    options.durability = match setup.durability {
        Durability::Process => esker::Durability::Process,
        Durability::Disk => esker::Durability::Disk,
    };
    let db = Db::open_with(dir, options)?;
    let space = match setup.counters {
        true => db.keyspace("counters", KeyspaceOptions::new().merge(Counter::default()))?,
        false => Keyspace::clone(&db),
    };
    Ok(Box::new(Esker { db, space }))
}

impl Engine for Esker {
    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        Ok(self.space.put(key, value)?)
    }

    fn batch(&self, changes: &[Change<'_>]) -> Result<()> {
        let mut batch: Batch = self.db.batch();
        for (key, value) in changes {
            match value {
                Some(value) => batch.put(&self.space, key, value),
                None => batch.delete(&self.space, key),
            };
        }
        Ok(batch.commit()?)
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        Ok(self.space.delete(key)?)
    }

    fn increment(&self, key: &[u8]) -> Result<()> {
        Ok(self.space.merge(key, 1)?)
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.space.get_with(key, visit)?.is_some())
    }

    fn multi(&self, keys: &[Key], visit: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let values = self.space.multi_get(keys)?;
        Ok(values.iter().flatten().map(|value| visit(value)).count())
    }

    fn scan(&self, start: &[u8], order: Order, visit: Visitor<'_>) -> Result<()> {
        let mut cursor = self.space.cursor();
        match order {
            Order::Forward => cursor.seek(start)?,
            // The last key that is less than the one right behind `start`.
            Order::Reverse => cursor.seek_before([start, &[0]].concat())?,
        }
        while cursor.valid() && visit(cursor.key(), cursor.value()) {
            match order {
                Order::Forward => cursor.next()?,
                Order::Reverse => cursor.prev()?,
            }
        }
        Ok(())
    }

    fn prefix(&self, prefix: &[u8], visit: Visitor<'_>) -> Result<()> {
        let mut cursor = self.space.cursor();
        cursor.seek(prefix)?;
        while cursor.valid()
            && cursor.key().starts_with(prefix)
            && visit(cursor.key(), cursor.value())
        {
            cursor.next()?;
        }
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        self.db.flush()?;
        Ok(self.db.settle()?)
    }

    fn sync(&self) -> Result<()> {
        Ok(self.db.sync()?)
    }

    fn written_bytes(&self) -> Option<u64> {
        let stats = self.db.stats();
        Some(stats.log_bytes_written + stats.flush_bytes_written + stats.compaction_bytes_written)
    }

    fn close(self: Box<Self>) -> Result<()> {
        let Esker { db, space } = *self;
        drop(space);
        Ok(db.close()?)
    }
}
