//! RocksDB through the crate `rocksdb`, built without any compression library.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DBRawIterator, MergeOperands, Options,
    ReadOptions, WaitForCompactOptions, WriteBatch, WriteOptions,
};

use crate::engine::{
    BACKGROUND_THREADS, Change, Durability, Engine, Order, Setup, Visitor, WRITE_BUFFER_BYTES,
};
use crate::failure::Result;
use crate::keys::Key;

/// In words.
pub const CONFIGURATION: &str = "write_buffer_size 64 MiB, two of them; LRU block cache the rest of the budget; \
    Bloom filter of 10 bits a key; blocks of 4 KiB; max_background_jobs 2, level compaction; no \
    compression; otherwise defaults. Process: write-ahead log, sync = false (one write(2) per \
    group). Disk: sync = true. Counters: an associative merge operator.";

struct Rocks {
    db: DB,
    write: WriteOptions,
}

/// The only one.
const FAMILY: &str = "default";

/// Opens or creates a database.
pub fn open(dir: &Path, setup: Setup) -> Result<Box<dyn Engine>> {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(setup.cache_bytes()));
    table.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_background_jobs(BACKGROUND_THREADS as i32);
    options.set_compression_type(DBCompressionType::None);
    if setup.counters {
        options.set_merge_operator_associative("sum", add);
    }
    let mut write = WriteOptions::default();
    write.set_sync(setup.durability == Durability::Disk);
    // Its batched get wants the handle of a family, which this way of opening keeps.
    let families = [(FAMILY, options.clone())];
    Ok(Box::new(Rocks { db: DB::open_cf_with_opts(&options, dir, families)?, write }))
}

/// Sums what is there and the operands.
fn add(_key: &[u8], old: Option<&[u8]>, operands: &MergeOperands) -> Option<Vec<u8>> {
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
    let mut sum = old.map_or(Some(0), number)?;
    for operand in operands {
        sum = sum.wrapping_add(number(operand)?);
    }
    Some(sum.to_le_bytes().to_vec())
}

/// Shows rows from where the iterator stands.
fn walk(rows: &mut DBRawIterator<'_>, order: Order, visit: Visitor<'_>) -> Result<()> {
    while let Some((key, value)) = rows.item() {
        if !visit(key, value) {
            break;
        }
        match order {
            Order::Forward => rows.next(),
            Order::Reverse => rows.prev(),
        }
    }
    Ok(rows.status()?)
}

impl Engine for Rocks {
    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        Ok(self.db.put_opt(key, value, &self.write)?)
    }

    fn batch(&self, changes: &[Change<'_>]) -> Result<()> {
        let mut batch = WriteBatch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        Ok(self.db.write_opt(batch, &self.write)?)
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        Ok(self.db.delete_opt(key, &self.write)?)
    }

    fn increment(&self, key: &[u8]) -> Result<()> {
        Ok(self.db.merge_opt(key, 1_u64.to_le_bytes(), &self.write)?)
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.db.get_pinned(key)?.map(|value| visit(&value)).is_some())
    }

    fn multi(&self, keys: &[Key], visit: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let family = self.db.cf_handle(FAMILY).expect("it was opened with it");
        let mut found = 0;
        for value in self.db.batched_multi_get_cf(&family, keys, false) {
            if let Some(value) = value? {
                visit(&value);
                found += 1;
            }
        }
        Ok(found)
    }

    fn scan(&self, start: &[u8], order: Order, visit: Visitor<'_>) -> Result<()> {
        let mut rows = self.db.raw_iterator();
        match order {
            Order::Forward => rows.seek(start),
            Order::Reverse => rows.seek_for_prev(start),
        }
        walk(&mut rows, order, visit)
    }

    fn prefix(&self, prefix: &[u8], visit: Visitor<'_>) -> Result<()> {
        let mut options = ReadOptions::default();
        options.set_iterate_range(rocksdb::PrefixRange(prefix));
        let mut rows = self.db.raw_iterator_opt(options);
        rows.seek(prefix);
        walk(&mut rows, Order::Forward, visit)
    }

    fn settle(&self) -> Result<()> {
        let mut options = WaitForCompactOptions::default();
        options.set_flush(true);
        Ok(self.db.wait_for_compact(&options)?)
    }

    fn sync(&self) -> Result<()> {
        Ok(self.db.flush_wal(true)?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.db.cancel_all_background_work(true);
        Ok(())
    }
}
