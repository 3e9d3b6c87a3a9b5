//! surrealkv 1.

use std::path::Path;

use surrealkv::{LSMIterator, Mode, Options, Transaction, Tree, TreeBuilder};
use tokio::runtime::{Builder, Runtime};

use crate::engine::{
    BACKGROUND_THREADS, Change, Durability, Engine, Order, Setup, Visitor, WRITE_BUFFER_BYTES,
    decode_counter,
};
use crate::failure::Result;
use crate::keys::Key;
use crate::machine::{SETTLED, wait_until_idle};

/// In words.
pub const CONFIGURATION: &str = "max_memtable_size 64 MiB, block cache the rest of the budget, no compression; \
    otherwise defaults; a transaction for each operation, write-only where it only writes, \
    committed by block_on of one tokio runtime with two workers. Process: Durability::Eventual. Disk: \
    Durability::Immediate. Counters: read and write in one transaction. Settled: idle (it has no \
    public flush, so that reads may meet a memtable).";

struct Surreal {
    /// Drives background work, and commits on the threads that wait for them.
    runtime: Runtime,
    tree: Tree,
    durability: surrealkv::Durability,
}

/// Opens or creates a database.
pub fn open(dir: &Path, setup: Setup) -> Result<Box<dyn Engine>> {
    let options = Options::new()
        .with_path(dir.to_path_buf())
        .with_max_memtable_size(WRITE_BUFFER_BYTES)
        .with_block_cache_capacity(setup.cache_bytes() as u64)
        .without_compression();
    let runtime = Builder::new_multi_thread().worker_threads(BACKGROUND_THREADS).build()?;
    let tree = runtime.block_on(async { TreeBuilder::with_options(options).build() })?;
    let durability = match setup.durability {
        Durability::Process => surrealkv::Durability::Eventual,
        Durability::Disk => surrealkv::Durability::Immediate,
    };
    Ok(Box::new(Surreal { runtime, tree, durability }))
}

impl Surreal {
    fn write(&self, mode: Mode, change: impl FnOnce(&mut Transaction) -> Result<()>) -> Result<()> {
        let mut transaction = self.tree.begin_with_mode(mode)?;
        transaction.set_durability(self.durability);
        change(&mut transaction)?;
        self.runtime.block_on(transaction.commit())?;
        Ok(())
    }

    fn read(&self) -> Result<Transaction> {
        Ok(self.tree.begin_with_mode(Mode::ReadOnly)?)
    }
}

/// Shows rows from where the iterator stands.
fn walk(rows: &mut impl LSMIterator, order: Order, visit: Visitor<'_>) -> Result<()> {
    while rows.valid() {
        let value = rows.value()?;
        if !visit(rows.key().user_key(), &value) {
            break;
        }
        match order {
            Order::Forward => rows.next()?,
            Order::Reverse => rows.prev()?,
        };
    }
    Ok(())
}

impl Engine for Surreal {
    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.write(Mode::WriteOnly, |transaction| Ok(transaction.set(key, value)?))
    }

    fn batch(&self, changes: &[Change<'_>]) -> Result<()> {
        self.write(Mode::WriteOnly, |transaction| {
            for (key, value) in changes {
                match value {
                    Some(value) => transaction.set(&key[..], *value)?,
                    None => transaction.delete(&key[..])?,
                }
            }
            Ok(())
        })
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        self.write(Mode::WriteOnly, |transaction| Ok(transaction.delete(key)?))
    }

    fn increment(&self, key: &[u8]) -> Result<()> {
        self.write(Mode::ReadWrite, |transaction| {
            let old = transaction.get(key)?;
            let count = old.and_then(|value| decode_counter(&value)).unwrap_or(0);
            Ok(transaction.set(key, &(count + 1).to_le_bytes()[..])?)
        })
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.read()?.get(key)?.map(|value| visit(&value)).is_some())
    }

    fn multi(&self, keys: &[Key], visit: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let view = self.read()?;
        let mut found = 0;
        for key in keys {
            if let Some(value) = view.get(&key[..])? {
                visit(&value);
                found += 1;
            }
        }
        Ok(found)
    }

    fn scan(&self, start: &[u8], order: Order, visit: Visitor<'_>) -> Result<()> {
        let view = self.read()?;
        match order {
            Order::Forward => {
                let mut rows = view.range(start, &[0xff; 17][..])?;
                rows.seek_first()?;
                walk(&mut rows, order, visit)
            }
            Order::Reverse => {
                // The end is excluded.
                let end = [start, &[0]].concat();
                let mut rows = view.range(&b""[..], &end[..])?;
                rows.seek_last()?;
                walk(&mut rows, order, visit)
            }
        }
    }

    fn prefix(&self, prefix: &[u8], visit: Visitor<'_>) -> Result<()> {
        let view = self.read()?;
        // The keys here are digits, so that this ends behind all that begin with the prefix.
        let end = [prefix, &[0xff]].concat();
        let mut rows = view.range(prefix, &end[..])?;
        rows.seek_first()?;
        walk(&mut rows, Order::Forward, visit)
    }

    fn settle(&self) -> Result<()> {
        wait_until_idle(SETTLED, || true);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(self.tree.flush_wal(true)?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.runtime.block_on(self.tree.close())?;
        Ok(())
    }
}
