//! The memtable for benches, which are outside the crate: no part of the API.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::cursor::Cursor;
use crate::key::{EntryKind, SeqNo, hash};
use crate::memtable::{ArenaPool, Memtable};

/// A pool of arena chunks.
#[derive(Debug)]
pub struct Pool(Arc<ArenaPool>);

impl Pool {
    /// Chunks of `chunk_bytes`, of which `kept_bytes_max` are kept.
    #[must_use]
    pub fn new(chunk_bytes: usize, kept_bytes_max: usize) -> Pool {
        Pool(ArenaPool::new(chunk_bytes, kept_bytes_max, 256, 64 << 20))
    }
}

/// A memtable.
#[derive(Debug)]
pub struct Table(Arc<Memtable>);

impl Table {
    /// An empty one.
    #[must_use]
    pub fn new(pool: &Pool) -> Table {
        Table(Arc::new(Memtable::new(&pool.0)))
    }

    /// Inserts a put.
    #[inline]
    pub fn put(&self, key: &[u8], seqno: u64, value: &[u8]) {
        self.0.insert(key, SeqNo(seqno), EntryKind::Put, value);
    }

    /// Shows the newest value to `see`.
    #[inline]
    pub fn get(&self, key: &[u8], mut see: impl FnMut(&[u8])) {
        let _ = self.0.visit(key, hash(key), SeqNo::MAX, &mut |_, _, value| {
            see(value.bytes);
            ControlFlow::Break(())
        });
    }

    /// Shows up to `count` entries from `key` on.
    #[inline]
    pub fn scan(&self, key: &[u8], count: usize, mut see: impl FnMut(&[u8], &[u8])) {
        let mut cursor = self.0.cursor();
        let mut seen = 0;
        let mut moved = cursor.seek(key, SeqNo::MAX);
        while moved.is_ok() && cursor.valid() && seen < count {
            see(cursor.key(), cursor.value().bytes);
            seen += 1;
            moved = cursor.next();
        }
    }

    /// Shows all entries from the last to the first.
    pub fn scan_back(&self, mut see: impl FnMut(&[u8], &[u8])) {
        let mut cursor = self.0.cursor();
        let mut moved = cursor.seek_to_last();
        while moved.is_ok() && cursor.valid() {
            see(cursor.key(), cursor.value().bytes);
            moved = cursor.prev();
        }
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}
