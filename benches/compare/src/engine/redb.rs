//! redb 4.

use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::engine::{Change, Durability, Engine, Order, Setup, Visitor, decode_counter};
use crate::failure::Result;
use crate::keys::Key;

/// In words.
pub const CONFIGURATION: &str = "cache the rest of the budget; otherwise defaults; a transaction for each \
    operation. Process: Durability::None, the only level without fsync, which LOSES on a SIGKILL \
    all commits since the last Immediate one: less than the other engines promise. Disk: \
    Durability::Immediate. Counters: read and write in one transaction. Settled: nothing to do.";

const TABLE: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");

struct Redb {
    db: Database,
    durability: redb::Durability,
}

/// Opens or creates a database.
pub fn open(dir: &Path, setup: Setup) -> Result<Box<dyn Engine>> {
    std::fs::create_dir_all(dir)?;
    let db =
        Database::builder().set_cache_size(setup.cache_bytes()).create(dir.join("data.redb"))?;
    // Readers need the table.
    let creation = db.begin_write()?;
    creation.open_table(TABLE)?;
    creation.commit()?;
    let durability = match setup.durability {
        Durability::Process => redb::Durability::None,
        Durability::Disk => redb::Durability::Immediate,
    };
    Ok(Box::new(Redb { db, durability }))
}

/// The table of a write transaction.
type Records<'txn> = redb::Table<'txn, &'static [u8], &'static [u8]>;

impl Redb {
    fn write(&self, change: impl FnOnce(&mut Records<'_>) -> Result<()>) -> Result<()> {
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(self.durability)?;
        change(&mut transaction.open_table(TABLE)?)?;
        Ok(transaction.commit()?)
    }

    fn records(&self) -> Result<redb::ReadOnlyTable<&'static [u8], &'static [u8]>> {
        Ok(self.db.begin_read()?.open_table(TABLE)?)
    }
}

impl Engine for Redb {
    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.write(|records| {
            records.insert(key, value)?;
            Ok(())
        })
    }

    fn batch(&self, changes: &[Change<'_>]) -> Result<()> {
        self.write(|records| {
            for (key, value) in changes {
                match value {
                    Some(value) => records.insert(&key[..], *value)?,
                    None => records.remove(&key[..])?,
                };
            }
            Ok(())
        })
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        self.write(|records| {
            records.remove(key)?;
            Ok(())
        })
    }

    fn increment(&self, key: &[u8]) -> Result<()> {
        self.write(|records| {
            let count = match records.get(key)? {
                Some(old) => decode_counter(old.value()).unwrap_or(0),
                None => 0,
            };
            records.insert(key, &(count + 1).to_le_bytes()[..])?;
            Ok(())
        })
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.records()?.get(key)?.map(|value| visit(value.value())).is_some())
    }

    fn multi(&self, keys: &[Key], visit: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let records = self.records()?;
        let mut found = 0;
        for key in keys {
            if let Some(value) = records.get(&key[..])? {
                visit(value.value());
                found += 1;
            }
        }
        Ok(found)
    }

    fn scan(&self, start: &[u8], order: Order, visit: Visitor<'_>) -> Result<()> {
        let records = self.records()?;
        let mut rows = match order {
            Order::Forward => records.range(start..)?,
            Order::Reverse => records.range(..=start)?,
        };
        loop {
            let row = match order {
                Order::Forward => rows.next(),
                Order::Reverse => rows.next_back(),
            };
            let Some((key, value)) = row.transpose()? else { return Ok(()) };
            if !visit(key.value(), value.value()) {
                return Ok(());
            }
        }
    }

    fn prefix(&self, prefix: &[u8], visit: Visitor<'_>) -> Result<()> {
        for row in self.records()?.range(prefix..)? {
            let (key, value) = row?;
            if !key.value().starts_with(prefix) || !visit(key.value(), value.value()) {
                break;
            }
        }
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        // An empty Immediate commit makes those before it durable.
        Ok(self.db.begin_write()?.commit()?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.db.close()?)
    }
}
