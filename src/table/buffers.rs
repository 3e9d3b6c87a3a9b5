//! Buffers of flushes and compactions, kept for the next one: fresh memory costs a page fault for
//! every 4 KiB, and an allocator that sees megabytes come and go begins to keep them, uncounted.

use std::sync::Arc;

use parking_lot::Mutex;

/// Buffers that nobody uses at the moment. Safe to share.
#[derive(Debug)]
pub(crate) struct Buffers {
    kept_bytes_max: usize,
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// Keeps buffers of so many bytes together.
    pub fn new(kept_bytes_max: usize) -> Arc<Buffers> {
        Arc::new(Buffers { kept_bytes_max, free: Mutex::default() })
    }

    /// An empty buffer with room for so many bytes.
    pub fn take(&self, bytes: usize) -> Vec<u8> {
        let mut free = self.free.lock();
        let fits = (0..free.len()).filter(|&index| free[index].capacity() >= bytes);
        let smallest = fits.min_by_key(|&index| free[index].capacity());
        let found = smallest.map(|index| free.swap_remove(index));
        drop(free);
        found.unwrap_or_else(|| Vec::with_capacity(bytes))
    }

    /// Takes a buffer back.
    pub fn put(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut free = self.free.lock();
        let kept: usize = free.iter().map(Vec::capacity).sum();
        if buffer.capacity() > 0 && kept + buffer.capacity() <= self.kept_bytes_max {
            free.push(buffer);
        }
        // Otherwise it is freed after the lock is released: locals go first.
    }

    /// Bytes that are kept now.
    pub fn free_bytes(&self) -> usize {
        self.free.lock().iter().map(Vec::capacity).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_and_only_so_many_are_kept() {
        let buffers = Buffers::new(3000);
        let (mut large, small) = (buffers.take(2000), buffers.take(1000));
        large.extend_from_slice(b"abc");
        let (large_at, small_at) = (large.as_ptr(), small.as_ptr());
        buffers.put(large);
        buffers.put(small);
        buffers.put(vec![0; 100]);
        assert_eq!(buffers.free_bytes(), 3000, "the third is freed");
        let again = buffers.take(900);
        assert_eq!((again.as_ptr(), again.len()), (small_at, 0), "the smallest that has room");
        let again = buffers.take(900);
        assert_eq!((again.as_ptr(), again.len()), (large_at, 0));
        assert_eq!(buffers.take(900).capacity(), 900);
    }
}
