//! The block cache: contents of blocks that were decompressed, or read with `pread`, by where they
//! are. Blocks read in place from a mapping never come here.
//!
//! A block is verified and validated before it is put in, so a hit needs no check.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use crate::file::FileId;

/// What an entry costs beside its bytes: about what the map and the allocator take.
const ENTRY_OVERHEAD_BYTES: u64 = 128;
/// For sizing the map: the usual block.
const BLOCK_BYTES_USUAL: usize = 4 << 10;

/// Where a block is: its file by id, since numbers repeat in clones, and its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BlockPlace {
    /// The low half of the file's random id.
    file: u64,
    offset: u64,
}

impl BlockPlace {
    /// The block at `offset` of the file with this id.
    pub fn new(file: FileId, offset: u64) -> BlockPlace {
        BlockPlace { file: file.0 as u64, offset }
    }
}

/// Blocks by place, up to a number of bytes. Safe to share.
pub(crate) struct BlockCache {
    blocks: Cache<BlockPlace, Bytes, BlockWeighter, PlaceHashBuilder>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl BlockCache {
    /// A cache of about `bytes` bytes; of 0 it keeps nothing.
    pub fn new(bytes: usize) -> Arc<BlockCache> {
        let options = OptionsBuilder::new()
            .estimated_items_capacity((bytes / BLOCK_BYTES_USUAL).max(1))
            .weight_capacity(bytes as u64)
            .build()
            .expect("both capacities are set");
        let lifecycle = DefaultLifecycle::default();
        let blocks = Cache::with_options(options, BlockWeighter, PlaceHashBuilder, lifecycle);
        Arc::new(BlockCache { blocks, hits: AtomicU64::new(0), misses: AtomicU64::new(0) })
    }

    /// Keeps about `bytes` bytes from now on. A change of less than an eighth is none, since it costs
    /// locks of every part.
    pub fn resize(&self, bytes: usize) {
        let now = self.blocks.capacity();
        if now.abs_diff(bytes as u64) > now / 8 {
            self.blocks.set_capacity(bytes as u64);
        }
    }

    /// The block at `place`, if it is here.
    pub fn get(&self, place: BlockPlace) -> Option<Bytes> {
        let found = self.blocks.get(&place);
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Keeps `block`, which has been verified and validated, for a while.
    pub fn insert(&self, place: BlockPlace, block: Bytes) {
        self.blocks.insert(place, block);
    }

    /// Bytes that the cache takes now.
    pub fn used_bytes(&self) -> usize {
        self.blocks.weight() as usize
    }

    /// How many lookups found their block.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// How many did not.
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Copy)]
struct BlockWeighter;

impl Weighter<BlockPlace, Bytes> for BlockWeighter {
    fn weight(&self, _: &BlockPlace, block: &Bytes) -> u64 {
        block.len() as u64 + ENTRY_OVERHEAD_BYTES
    }
}

/// Hashes a place by two multiplications: ids are random already.
#[derive(Clone, Copy)]
struct PlaceHashBuilder;

#[derive(Default)]
struct PlaceHasher(u64);

impl BuildHasher for PlaceHashBuilder {
    type Hasher = PlaceHasher;

    fn build_hasher(&self) -> PlaceHasher {
        PlaceHasher::default()
    }
}

impl Hasher for PlaceHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_fits_and_counts() {
        let cache = BlockCache::new(1 << 20);
        let place = |offset| BlockPlace::new(FileId(7), offset);
        for block in 0..10_000u64 {
            cache.insert(place(block * 4096), Bytes::from(vec![block as u8; 4096]));
        }
        assert!(cache.used_bytes() <= 1 << 20);
        assert!(cache.used_bytes() > 1 << 18, "{}", cache.used_bytes());
        let found = (0..10_000u64).filter(|block| {
            let found = cache.get(place(block * 4096));
            found.is_some_and(|bytes| {
                assert_eq!(bytes[0], *block as u8);
                true
            })
        });
        let found = found.count() as u64;
        assert!(found > 50, "{found}");
        assert_eq!((cache.hits(), cache.misses()), (found, 10_000 - found));
        assert!(cache.get(BlockPlace::new(FileId(8), 0)).is_none());
    }

    #[test]
    fn a_cache_that_is_to_take_less_lets_go_of_blocks() {
        let cache = BlockCache::new(1 << 20);
        for block in 0..1000u64 {
            cache.insert(BlockPlace::new(FileId(7), block * 4096), Bytes::from(vec![0; 4096]));
        }
        assert!(cache.used_bytes() > 256 << 10);
        cache.resize(64 << 10);
        assert!(cache.used_bytes() <= 64 << 10, "{}", cache.used_bytes());
    }

    #[test]
    fn a_cache_of_no_bytes_keeps_nothing() {
        let cache = BlockCache::new(0);
        cache.insert(BlockPlace::new(FileId(1), 0), Bytes::from_static(b"x"));
        assert!(cache.get(BlockPlace::new(FileId(1), 0)).is_none());
        assert_eq!(cache.used_bytes(), 0);
    }
}
