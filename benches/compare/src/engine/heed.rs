//! LMDB through the crate `heed`.

use std::ops::Bound;
use std::path::Path;

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, RwTxn};

use crate::engine::{Change, Durability, Engine, Order, Setup, Visitor, decode_counter};
use crate::failure::Result;
use crate::keys::Key;

/// In words.
pub const CONFIGURATION: &str = "map of 64 GiB; a transaction for each operation. Process: NOSYNC, so \
    that a commit is in the page cache: kept on SIGKILL, but a power loss may damage the whole file, \
    where a log loses its tail at most. Disk: commits with fsync. Its cache is the page cache, not \
    limited here. Counters: read and write in one transaction. Settled: nothing to do.";

/// In words, where the map is written in place.
pub const CONFIGURATION_WRITEMAP: &str = "as heed, but Process with WRITEMAP: pages are changed in the \
    map, with no write(2), and a stray pointer of the program changes them too.";

/// Of keys.
type Range<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// More than any run needs; the file is sparse.
const MAP_BYTES: usize = 64 << 30;

struct Lmdb {
    env: Env,
    records: Database<'static, Bytes, Bytes>,
}

/// Opens or creates a database.
pub fn open(dir: &Path, setup: Setup, in_place: bool) -> Result<Box<dyn Engine>> {
    std::fs::create_dir_all(dir)?;
    let mut options = EnvOpenOptions::new();
    options.map_size(MAP_BYTES).max_readers(256);
    if setup.durability == Durability::Process {
        #[expect(unsafe_code, reason = "heed leaves LMDB's conditions to the caller")]
        // SAFETY: no other process has this file, and a damaged one is given up with the run.
        unsafe {
            options.flags(match in_place {
                true => EnvFlags::NO_SYNC | EnvFlags::WRITE_MAP,
                false => EnvFlags::NO_SYNC,
            })
        };
    }
    #[expect(unsafe_code, reason = "heed leaves LMDB's conditions to the caller")]
    // SAFETY: nothing else opens, maps or changes the files while the environment is open.
    let env = unsafe { options.open(dir)? };
    let records = env
        .create_databases_and_commit(env.write_txn()?, |opener, transaction| {
            let records = opener.create_database::<Bytes, Bytes>(transaction, None)?;
            Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(records))
        })?
        .unwrap_commit();
    Ok(Box::new(Lmdb { env, records }))
}

impl Lmdb {
    fn write(&self, change: impl FnOnce(&mut RwTxn<'_>) -> Result<()>) -> Result<()> {
        let mut transaction = self.env.write_txn()?;
        change(&mut transaction)?;
        Ok(transaction.commit()?)
    }
}

impl Engine for Lmdb {
    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.write(|transaction| Ok(self.records.put(transaction, key, value)?))
    }

    fn batch(&self, changes: &[Change<'_>]) -> Result<()> {
        self.write(|transaction| {
            for (key, value) in changes {
                match value {
                    Some(value) => self.records.put(transaction, key, value)?,
                    None => drop(self.records.delete(transaction, key)?),
                }
            }
            Ok(())
        })
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        self.write(|transaction| {
            self.records.delete(transaction, key)?;
            Ok(())
        })
    }

    fn increment(&self, key: &[u8]) -> Result<()> {
        self.write(|transaction| {
            let old = self.records.get(transaction, key)?;
            let count = old.and_then(decode_counter).unwrap_or(0);
            Ok(self.records.put(transaction, key, &(count + 1).to_le_bytes())?)
        })
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let view = self.env.read_txn()?;
        Ok(self.records.get(&view, key)?.map(visit).is_some())
    }

    fn multi(&self, keys: &[Key], visit: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let view = self.env.read_txn()?;
        let mut found = 0;
        for key in keys {
            if let Some(value) = self.records.get(&view, key)? {
                visit(value);
                found += 1;
            }
        }
        Ok(found)
    }

    fn scan(&self, start: &[u8], order: Order, visit: Visitor<'_>) -> Result<()> {
        let view = self.env.read_txn()?;
        match order {
            Order::Forward => {
                let range: Range<'_> = match start {
                    // LMDB takes no empty key, not even to seek to.
                    [] => (Bound::Unbounded, Bound::Unbounded),
                    _ => (Bound::Included(start), Bound::Unbounded),
                };
                walk(self.records.range(&view, &range)?, visit)
            }
            Order::Reverse => {
                let range: Range<'_> = (Bound::Unbounded, Bound::Included(start));
                walk(self.records.rev_range(&view, &range)?, visit)
            }
        }
    }

    fn prefix(&self, prefix: &[u8], visit: Visitor<'_>) -> Result<()> {
        let view = self.env.read_txn()?;
        walk(self.records.prefix_iter(&view, prefix)?, visit)
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(self.env.force_sync()?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        let closing = self.env.prepare_for_closing();
        closing.wait();
        Ok(())
    }
}

/// Shows the rows of an iterator.
fn walk<'a>(
    rows: impl Iterator<Item = heed::Result<(&'a [u8], &'a [u8])>>,
    visit: Visitor<'_>,
) -> Result<()> {
    for row in rows {
        let (key, value) = row?;
        if !visit(key, value) {
            break;
        }
    }
    Ok(())
}
