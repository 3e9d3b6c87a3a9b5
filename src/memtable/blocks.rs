//! The memory that leaves lie in: blocks of a few sizes, cut from the pool's chunks and used again
//! within one memtable.
//!
//! Leaves come and go while a memtable fills, four for each that stays, and with small entries they
//! are more than half of it. From the allocator they would stay on the heap of whichever thread made
//! them when the memtable has gone, between others that are in use: 40 MiB more than counted, with a
//! budget of 64. Here a memtable's chunks go back to the pool together.
//!
//! A leaf that was replaced is freed by epoch, perhaps after its memtable was dropped, so each block
//! in use keeps its `Blocks` alive.

#![expect(unsafe_code, reason = "leaves lie in raw memory and are freed by hand")]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::memtable::arena::ArenaPool;
use crate::memtable::memory::Memory;

/// How many sizes there are.
pub(super) const SIZE_COUNT: usize = 5;
/// Blocks of 11 KiB are not cut from smaller chunks: too much would be left over at the end.
const CHUNK_BYTES_MIN: usize = 64 << 10;

/// The blocks of one memtable.
#[derive(Debug)]
pub(super) struct Blocks {
    pool: Arc<ArenaPool>,
    state: Mutex<State>,
    /// Bytes of the chunks. Beside them, because writers look at it after every write.
    held_bytes: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    chunks: Vec<Memory>,
    /// Bytes that were cut from the last chunk.
    cut: usize,
    /// Of each size the block that was freed last; it begins with the one freed before.
    free: [Option<NonNull<u8>>; SIZE_COUNT],
}

// SAFETY: the pointers are to blocks of `chunks`, which the state owns and nobody else uses.
unsafe impl Send for State {}

impl Blocks {
    pub fn new(pool: &Arc<ArenaPool>) -> Arc<Blocks> {
        let (pool, state) = (Arc::clone(pool), Mutex::default());
        Arc::new(Blocks { pool, state, held_bytes: AtomicUsize::new(0) })
    }

    /// Bytes of all chunks, used or not.
    #[inline]
    pub fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// True if a memtable with so many bytes of leaves is large enough for a chunk of blocks.
    pub fn are_worth(&self, leaves_bytes: usize) -> bool {
        let chunk_bytes = self.pool.chunk_bytes();
        chunk_bytes >= CHUNK_BYTES_MIN && (self.held_bytes() > 0 || leaves_bytes >= chunk_bytes / 4)
    }

    /// A block of `bytes`, a multiple of 64 and always the same for this `size`, aligned to 64. It
    /// keeps these blocks alive until it is given back.
    pub fn allocate(self: &Arc<Self>, size: usize, bytes: usize) -> NonNull<u8> {
        debug_assert!(bytes.is_multiple_of(64) && bytes <= self.pool.chunk_bytes());
        let block = self.state.lock().allocate(self, size, bytes);
        let _kept_by_the_block = Arc::into_raw(Arc::clone(self));
        block
    }

    /// Takes a block back.
    ///
    /// # Safety
    /// `blocks` is where [`Blocks::allocate`] gave `block` with this `size`; nobody uses the block any
    /// more, and nobody gives it back again.
    pub unsafe fn free(blocks: *const Blocks, size: usize, block: NonNull<u8>) {
        // SAFETY: the block has kept its `Blocks` alive, by a reference that ends here.
        let blocks = unsafe { Arc::from_raw(blocks) };
        let mut state = blocks.state.lock();
        let next = state.free[size].replace(block);
        // SAFETY: a block is at least 64 bytes, aligned to 64, and it is ours again.
        unsafe { block.cast::<Option<NonNull<u8>>>().write(next) };
    }
}

impl State {
    fn allocate(&mut self, blocks: &Blocks, size: usize, bytes: usize) -> NonNull<u8> {
        if let Some(block) = self.free[size] {
            // SAFETY: `Blocks::free` wrote there which block was freed before.
            self.free[size] = unsafe { block.cast::<Option<NonNull<u8>>>().read() };
            return block;
        }
        if self.chunks.last().is_none_or(|chunk| self.cut + bytes > chunk.bytes()) {
            self.chunks.push(blocks.pool.take());
            self.cut = 0;
            blocks.held_bytes.fetch_add(blocks.pool.chunk_bytes(), Ordering::Relaxed);
        }
        let chunk = self.chunks.last().expect("just pushed");
        // SAFETY: within the chunk, looked at above.
        let block = unsafe { chunk.start().add(self.cut) };
        self.cut += bytes;
        block
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        for chunk in self.state.get_mut().chunks.drain(..) {
            self.pool.put(chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_overlap_are_used_again_and_outlive_their_memtable() {
        let pool = ArenaPool::new(64 << 10, 1 << 20, 256, 1 << 20);
        let blocks = Blocks::new(&pool);
        assert!(!blocks.are_worth(0) && blocks.are_worth(16 << 10));
        assert!(!Blocks::new(&ArenaPool::new(32 << 10, 1 << 20, 256, 1 << 20)).are_worth(16 << 10));
        let sizes = [2240, 4352, 6464];
        let mut random = fastrand::Rng::with_seed(3);
        let mut used: Vec<(usize, NonNull<u8>)> = Vec::new();
        for _ in 0..2000 {
            if used.len() < 40 || random.bool() && used.len() < 100 {
                let size = random.usize(..sizes.len());
                let block = blocks.allocate(size, sizes[size]);
                for (other, at) in &used {
                    let (start, at) = (block.addr().get(), at.addr().get());
                    assert!(start + sizes[size] <= at || at + sizes[*other] <= start);
                }
                // SAFETY: the block has so many bytes, and is ours.
                unsafe { block.write_bytes(0xee, sizes[size]) };
                used.push((size, block));
            } else {
                let (size, block) = used.swap_remove(random.usize(..used.len()));
                // SAFETY: it came from these blocks with this size, and is not used again.
                unsafe { Blocks::free(Arc::as_ptr(&blocks), size, block) };
            }
        }
        // At most 100 blocks of each size were in use at once.
        assert!(blocks.held_bytes() <= 100 * sizes.iter().sum::<usize>() + (64 << 10));
        assert_eq!(pool.free_bytes(), 0);
        let at = Arc::as_ptr(&blocks);
        drop(blocks);
        assert_eq!(pool.free_bytes(), 0, "the blocks keep them");
        for (size, block) in used {
            // SAFETY: as above; the last one is the last that keeps the blocks.
            unsafe { Blocks::free(at, size, block) };
        }
        assert!(pool.free_bytes() > 0);
    }
}
