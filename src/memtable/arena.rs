//! The memory that entries live in: chunks, filled from the front, never moved, given back all at
//! once; and the pool from which memtables take them and to which they return.
//!
//! An entry in a chunk, at a multiple of 8 bytes:
//!
//! ```text
//! offset  bytes       field
//! 0       8           kind << 56 | key length << 32 | value length   (a u64 of this machine)
//! 8       key length  key
//! ..      value len.  value
//! ```
//!
//! The sequence number is in the slot that points here (see `leaf`), not in the entry. With
//! 16-byte keys and 100-byte values an entry then fills two cache lines.
//!
//! Chunks are reused because the first touch of fresh pages costs 1.6 to 5 µs per 4 KiB, which is
//! more than the entries written to them. A chunk of the pool's size is 2 MiB where the memory
//! budget allows it. The first chunks of an arena are smaller, each four times the one before,
//! and come from the allocator, so that a hundred nearly empty keyspaces cost little.

#![expect(unsafe_code, reason = "entries lie in raw memory that lives as long as the arena")]

use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::key::{EntryKind, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::memtable::filter::FilterPool;
use crate::memtable::memory::Memory;

/// Size of an arena's first chunk.
const FIRST_CHUNK_BYTES: usize = 4 << 10;
/// Chunks that are made before somebody needs them.
const FREE_CHUNKS_AHEAD: usize = 4;
/// Entries start at multiples of this.
const ENTRY_ALIGN: usize = 8;
const ENTRY_HEADER_BYTES: usize = 8;

/// Chunks that no memtable uses at the moment, kept for the next one.
#[derive(Debug)]
pub(crate) struct ArenaPool {
    chunk_bytes: usize,
    leaf_slots: usize,
    /// While there are more bytes than this, used ones, free ones and filters, chunks that come back are
    /// freed: what memtables give up is not to be held on top of what they have.
    kept_bytes_max: AtomicUsize,
    filters: Arc<FilterPool>,
    pooled: Mutex<Pooled>,
}

#[derive(Debug, Default)]
struct Pooled {
    /// In chunks and large entries.
    used_bytes: usize,
    free: Vec<Memory>,
}

impl ArenaPool {
    /// A pool of chunks of `chunk_bytes` each that keeps some for reuse while they are at most
    /// `kept_bytes_max`, those in use, large entries and filters included, for memtables of about
    /// `memtable_bytes` whose leaves are split at `leaf_slots` entries.
    ///
    /// # Panics
    /// If `chunk_bytes` is not in 4 KiB..=16 MiB.
    pub fn new(
        chunk_bytes: usize,
        kept_bytes_max: usize,
        leaf_slots: usize,
        memtable_bytes: usize,
    ) -> Arc<ArenaPool> {
        assert!((FIRST_CHUNK_BYTES..=16 << 20).contains(&chunk_bytes));
        let (filters, pooled) = (Arc::new(FilterPool::new(memtable_bytes)), Mutex::default());
        let kept_bytes_max = AtomicUsize::new(kept_bytes_max);
        Arc::new(ArenaPool { chunk_bytes, leaf_slots, kept_bytes_max, filters, pooled })
    }

    /// Keeps chunks while they are at most so many bytes from now on.
    pub fn keep_at_most(&self, bytes: usize) {
        if self.kept_bytes_max.swap(bytes, Ordering::Relaxed) > bytes {
            let given_up = self.give_up(&mut self.pooled.lock());
            drop(given_up);
        }
    }

    /// Memtables split their leaves at so many entries.
    pub fn leaf_slots(&self) -> usize {
        self.leaf_slots
    }

    /// Size of a chunk.
    pub(super) fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }

    /// Where memtables take their filters from.
    pub(super) fn filters(&self) -> &Arc<FilterPool> {
        &self.filters
    }

    /// Bytes that no memtable counts: in chunks that none uses, and in all filters.
    pub fn free_bytes(&self) -> usize {
        let free = self.pooled.lock().free.len();
        free * self.chunk_bytes + self.filters.bytes()
    }

    pub(super) fn take(&self) -> Memory {
        let reused = {
            let mut pooled = self.pooled.lock();
            pooled.used_bytes += self.chunk_bytes;
            pooled.free.pop()
        };
        reused.unwrap_or_else(|| Memory::new(self.chunk_bytes))
    }

    /// Makes chunks for those who write now, so that they need not wait for the pages: half a millisecond
    /// for a mebibyte. Only where memtables are past their first, smaller chunks, and there is room.
    pub fn prepare(&self) {
        while self.lacks_chunks() {
            let memory = Memory::new(self.chunk_bytes);
            self.pooled.lock().free.push(memory);
        }
    }

    fn lacks_chunks(&self) -> bool {
        let pooled = self.pooled.lock();
        let few = pooled.free.len() < FREE_CHUNKS_AHEAD;
        let is_filling = pooled.used_bytes >= self.chunk_bytes;
        few && is_filling && self.has_room(&pooled)
    }

    pub(super) fn put(&self, memory: Memory) {
        debug_assert_eq!(memory.bytes(), self.chunk_bytes);
        let mut pooled = self.pooled.lock();
        pooled.used_bytes -= self.chunk_bytes;
        if self.has_room(&pooled) {
            pooled.free.push(memory);
        }
        // Otherwise the parameter is dropped after the lock is released: locals go first.
    }

    /// Memory for one large entry, in place of free chunks where both together are too much.
    fn take_large(&self, bytes: usize) -> Memory {
        let given_up: Vec<Memory> = {
            let mut pooled = self.pooled.lock();
            pooled.used_bytes += bytes;
            self.give_up(&mut pooled)
        };
        drop(given_up);
        Memory::new(bytes)
    }

    /// Free chunks that are too many, to be freed once the lock is released.
    fn give_up(&self, pooled: &mut Pooled) -> Vec<Memory> {
        let kept_bytes_max = self.kept_bytes_max.load(Ordering::Relaxed);
        let over = self.held_bytes(pooled).saturating_sub(kept_bytes_max);
        let kept = pooled.free.len().saturating_sub(over.div_ceil(self.chunk_bytes));
        pooled.free.drain(kept..).collect()
    }

    /// True if a chunk more may be kept.
    fn has_room(&self, pooled: &Pooled) -> bool {
        let bytes = self.held_bytes(pooled) + self.chunk_bytes;
        bytes <= self.kept_bytes_max.load(Ordering::Relaxed)
    }

    fn held_bytes(&self, pooled: &Pooled) -> usize {
        pooled.used_bytes + pooled.free.len() * self.chunk_bytes + self.filters.bytes()
    }
}

/// A chunk that entries are cut from. Its address is stable: it is boxed.
#[derive(Debug)]
struct Chunk {
    /// Entries cut << 32 | bytes cut. One word, so that counting entries costs no second
    /// contended instruction. The bytes may run past the end: whoever finds that takes its claim
    /// back and gets a new chunk.
    cut: AtomicU64,
    memory: Memory,
}

/// What a claim of `bytes` for so many entries adds to `Chunk::cut`.
fn claim(bytes: usize, entries: u64) -> u64 {
    entries << 32 | bytes as u64
}

/// Bump-allocated entries of one memtable, freed together when the arena is dropped.
#[derive(Debug)]
pub(super) struct Arena {
    pool: Arc<ArenaPool>,
    /// The chunk that is being filled, one of `chunks`; null before the first.
    current: AtomicPtr<Chunk>,
    chunks: Mutex<Chunks>,
    /// Bytes of all chunks. Beside them, because writers look at it after every write.
    held_bytes: AtomicUsize,
}

#[derive(Debug, Default)]
struct Chunks {
    #[expect(clippy::vec_box, reason = "`current` points at a chunk while the vector grows")]
    shared: Vec<Box<Chunk>>,
    /// One large entry in each.
    large: Vec<Memory>,
}

impl Arena {
    pub fn new(pool: &Arc<ArenaPool>) -> Arena {
        Arena {
            pool: Arc::clone(pool),
            current: AtomicPtr::new(ptr::null_mut()),
            chunks: Mutex::new(Chunks::default()),
            held_bytes: AtomicUsize::new(0),
        }
    }

    /// Bytes of all chunks, used or not.
    #[inline]
    pub fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// How many entries have been written.
    pub fn entry_count(&self) -> usize {
        let chunks = self.chunks.lock();
        let cut = |chunk: &Chunk| (chunk.cut.load(Ordering::Relaxed) >> 32) as usize;
        chunks.large.len() + chunks.shared.iter().map(|chunk| cut(chunk)).sum::<usize>()
    }

    /// True until the first entry is written.
    pub fn is_empty(&self) -> bool {
        self.held_bytes() == 0
    }

    /// Copies an entry into the arena.
    ///
    /// # Panics
    /// If key or value is longer than the limits in `crate::key`.
    #[inline]
    pub fn write(&self, key: &[u8], kind: EntryKind, value: &[u8]) -> Entry {
        assert!(key.len() <= KEY_BYTES_MAX && value.len() <= VALUE_BYTES_MAX);
        let bytes = ENTRY_HEADER_BYTES + key.len() + value.len();
        let start = self.allocate(bytes.next_multiple_of(ENTRY_ALIGN), 1);
        let header = u64::from(kind as u8) << 56 | (key.len() as u64) << 32 | value.len() as u64;
        // SAFETY: `allocate` gave `bytes` bytes at this 8-aligned address to nobody else.
        unsafe { start.cast::<u64>().write(header) };
        // SAFETY: within the allocated bytes.
        let key_at = unsafe { start.add(ENTRY_HEADER_BYTES) };
        // SAFETY: within the allocated bytes, or at their end if key and value are empty.
        let value_at = unsafe { key_at.add(key.len()) };
        // SAFETY: `key.len()` allocated bytes are at `key_at`; the caller's key is elsewhere.
        unsafe { ptr::copy_nonoverlapping(key.as_ptr(), key_at.as_ptr(), key.len()) };
        // SAFETY: `value.len()` allocated bytes are at `value_at`; the value is elsewhere.
        unsafe { ptr::copy_nonoverlapping(value.as_ptr(), value_at.as_ptr(), value.len()) };
        // The next entry most likely goes behind this one, and its lines are not in the cache.
        if bytes <= AHEAD_BYTES_MAX {
            prefetch_for_writing(start.as_ptr().wrapping_add(bytes), bytes);
        }
        Entry(start)
    }

    /// Room of `bytes` bytes, a multiple of 8 and at most a quarter of a chunk, for something else than
    /// an entry; 8-aligned.
    pub fn room(&self, bytes: usize) -> NonNull<u8> {
        assert!(bytes <= self.pool.chunk_bytes / 4);
        self.allocate(bytes, 0)
    }

    /// `bytes` bytes, 8-aligned, that nobody else has, for one entry or none.
    #[inline]
    fn allocate(&self, bytes: usize, entries: u64) -> NonNull<u8> {
        // A quarter, so that closing a chunk early wastes no more than that of it.
        if bytes > self.pool.chunk_bytes / 4 {
            return self.allocate_large(bytes);
        }
        loop {
            let current = self.current.load(Ordering::Acquire);
            // SAFETY: null, or a boxed chunk that lives until the arena is dropped; `&self`
            // holds that off.
            if let Some(chunk) = unsafe { current.as_ref() }
                && let Some(start) = chunk.cut(bytes, entries)
            {
                return start;
            }
            self.next_chunk(current, bytes);
        }
    }

    #[cold]
    fn allocate_large(&self, bytes: usize) -> NonNull<u8> {
        let memory = self.pool.take_large(bytes);
        let start = memory.start();
        let mut chunks = self.chunks.lock();
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        chunks.large.push(memory);
        start
    }

    /// Installs a chunk in which `bytes` fit, unless another thread has replaced `full` already.
    #[cold]
    fn next_chunk(&self, full: *mut Chunk, bytes: usize) {
        let mut chunks = self.chunks.lock();
        if self.current.load(Ordering::Relaxed) != full {
            return;
        }
        let last_bytes = chunks.shared.last().map(|chunk| chunk.memory.bytes());
        let grown = last_bytes.map_or(FIRST_CHUNK_BYTES, |bytes| bytes * 4);
        let wanted = grown.max(bytes.next_power_of_two());
        let pool_bytes = self.pool.chunk_bytes;
        let memory = if wanted >= pool_bytes { self.pool.take() } else { Memory::new(wanted) };
        assert!(memory.bytes() >= bytes);
        self.held_bytes.fetch_add(memory.bytes(), Ordering::Relaxed);
        let mut chunk = Box::new(Chunk { cut: AtomicU64::new(0), memory });
        // Release: whoever loads the pointer sees the chunk's fields.
        self.current.store(&raw mut *chunk, Ordering::Release);
        chunks.shared.push(chunk);
    }
}

impl Chunk {
    #[inline]
    fn cut(&self, bytes: usize, entries: u64) -> Option<NonNull<u8>> {
        debug_assert!(bytes.is_multiple_of(ENTRY_ALIGN));
        let before = self.cut.fetch_add(claim(bytes, entries), Ordering::Relaxed);
        let offset = before as u32 as usize;
        if offset + bytes > self.memory.bytes() {
            // So the low half exceeds the chunk by at most one claim per thread, each of at most
            // a quarter of a chunk: it would take a thousand threads to reach 4 GiB.
            self.cut.fetch_sub(claim(bytes, entries), Ordering::Relaxed);
            return None;
        }
        // SAFETY: `offset + bytes` is within the chunk's memory, checked above.
        Some(unsafe { self.memory.start().add(offset) })
    }
}

// SAFETY: the raw pointer is to a chunk that the arena owns; all shared state is atomic or locked.
unsafe impl Send for Arena {}
// SAFETY: as above; `write` hands each byte to one caller only.
unsafe impl Sync for Arena {}

impl Drop for Arena {
    fn drop(&mut self) {
        let chunks = self.chunks.get_mut();
        let large: usize = chunks.large.iter().map(Memory::bytes).sum();
        if large > 0 {
            self.pool.pooled.lock().used_bytes -= large;
        }
        for chunk in chunks.shared.drain(..) {
            if chunk.memory.bytes() == self.pool.chunk_bytes {
                self.pool.put(chunk.memory);
            }
        }
    }
}

/// Points at an entry in an arena. The methods that follow it are unsafe: the caller keeps the
/// arena alive for as long as what they return.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry(NonNull<u8>);

impl Entry {
    #[inline]
    unsafe fn header(self) -> u64 {
        // SAFETY: `Arena::write` wrote it there, and the caller keeps the arena alive.
        unsafe { self.0.cast::<u64>().read() }
    }

    /// # Safety
    /// The arena lives for `'a` at least.
    #[inline]
    pub unsafe fn key<'a>(self) -> &'a [u8] {
        // SAFETY: the caller's promise.
        let header = unsafe { self.header() };
        // SAFETY: the key begins here, inside the entry or at its end.
        let start = unsafe { self.0.add(ENTRY_HEADER_BYTES) };
        // SAFETY: `Arena::write` wrote a key of this length, and nothing writes to it again.
        unsafe { slice::from_raw_parts(start.as_ptr(), key_len(header)) }
    }

    /// # Safety
    /// The arena lives for `'a` at least.
    #[inline]
    pub unsafe fn value<'a>(self) -> &'a [u8] {
        // SAFETY: the caller's promise.
        let header = unsafe { self.header() };
        // SAFETY: the value begins here, inside the entry or at its end.
        let start = unsafe { self.0.add(ENTRY_HEADER_BYTES + key_len(header)) };
        // SAFETY: `Arena::write` wrote a value of this length, and nothing writes to it again.
        unsafe { slice::from_raw_parts(start.as_ptr(), header as u32 as usize) }
    }

    /// # Safety
    /// The arena is alive.
    #[inline]
    pub unsafe fn kind(self) -> EntryKind {
        // SAFETY: the caller's promise.
        let header = unsafe { self.header() };
        EntryKind::from_u8((header >> 56) as u8).expect("Arena::write wrote a kind")
    }

    /// Begins to load the entry's first two cache lines.
    #[inline]
    pub fn prefetch(self) {
        prefetch(self.0.as_ptr());
        prefetch(self.0.as_ptr().wrapping_add(64));
    }
}

fn key_len(header: u64) -> usize {
    (header >> 32) as usize & 0xff_ffff
}

/// Entries up to this size have the place of the next one loaded ahead.
const AHEAD_BYTES_MAX: usize = 512;

/// Begins to load the cache lines of `bytes` bytes at `address` for writing; they need not be valid.
#[inline]
fn prefetch_for_writing(address: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..bytes).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        let at = address.wrapping_add(line).cast();
        // SAFETY: a prefetch has no effect but on the cache, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(at) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, bytes);
}

/// Begins to load the cache line at `address`, which need not be valid.
#[inline]
pub(super) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch has no effect but on the cache, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(entry: Entry, _arena: &Arena) -> (&[u8], EntryKind, &[u8]) {
        // SAFETY: what is returned borrows `_arena`, and the tests pass the entry's own.
        let key = unsafe { entry.key() };
        // SAFETY: as above.
        let kind = unsafe { entry.kind() };
        // SAFETY: as above.
        (key, kind, unsafe { entry.value() })
    }

    #[test]
    fn entries_of_every_size_come_back() {
        let pool = ArenaPool::new(64 << 10, 1 << 20, 256, 1 << 20);
        let arena = Arena::new(&pool);
        assert!(arena.is_empty());
        assert_eq!(arena.held_bytes(), 0);
        let mut rng = fastrand::Rng::with_seed(1);
        let mut wrote = Vec::new();
        let sizes = [0, 1, 7, 8, 9, 100, 4000, 4096, 16_000, 16_384, 70_000, 1 << 20];
        for round in 0..600 {
            let key_len = [0, 1, 8, 16, 17, 300, 65_536][round % 7];
            let key: Vec<u8> = (0..key_len).map(|_| rng.u8(..)).collect();
            let value_len = sizes[rng.usize(..if round % 50 == 0 { 12 } else { 8 })];
            let value: Vec<u8> = (0..value_len).map(|_| rng.u8(..)).collect();
            let kind = [EntryKind::Put, EntryKind::Delete, EntryKind::Merge][round % 3];
            wrote.push((arena.write(&key, kind, &value), key, kind, value));
        }
        let total: usize = wrote.iter().map(|w| w.1.len() + w.3.len()).sum();
        assert!(arena.held_bytes() >= total);
        assert_eq!(arena.entry_count(), 600);
        for (entry, key, kind, value) in &wrote {
            assert_eq!(read(*entry, &arena), (&key[..], *kind, &value[..]));
        }
    }

    #[test]
    fn a_small_arena_holds_little_and_chunks_are_reused() {
        let pool = ArenaPool::new(64 << 10, 100 << 10, 256, 1 << 20);
        let arena = Arena::new(&pool);
        arena.write(b"k", EntryKind::Put, b"v");
        assert_eq!(arena.held_bytes(), FIRST_CHUNK_BYTES);
        for _ in 0..300 {
            arena.write(b"k", EntryKind::Put, &[7; 1000]);
        }
        assert_eq!(pool.free_bytes(), 0);
        drop(arena);
        assert_eq!(pool.free_bytes(), 64 << 10, "only as many as the pool may keep");
        let arena = Arena::new(&pool);
        while pool.free_bytes() > 0 {
            arena.write(b"k", EntryKind::Put, &[7; 1000]);
        }
        let other = Arena::new(&pool);
        (0..300).for_each(|_| _ = other.write(b"k", EntryKind::Put, &[7; 1000]));
        drop(other);
        assert_eq!(pool.free_bytes(), 0, "what is used counts");
        drop(arena);
        assert_eq!(pool.free_bytes(), 64 << 10);
        pool.keep_at_most(60 << 10);
        assert_eq!(pool.free_bytes(), 0, "given up as fewer may be kept");
    }

    #[test]
    fn chunks_are_made_ahead_for_those_who_fill_them_and_within_the_bounds() {
        const CHUNK: usize = 64 << 10;
        let pool = ArenaPool::new(CHUNK, 7 * CHUNK, 256, 1 << 20);
        let room = 7 * CHUNK - pool.free_bytes();
        pool.prepare();
        assert_eq!(pool.free_bytes(), 7 * CHUNK - room, "nobody writes");
        let arena = Arena::new(&pool);
        let fill = |chunks: usize| {
            // The first chunks are smaller, and together a third of one.
            while arena.held_bytes() < chunks * CHUNK {
                arena.write(b"k", EntryKind::Put, &[7; 1000]);
            }
        };
        let free_chunks = || (pool.free_bytes() - (7 * CHUNK - room)) / CHUNK;
        arena.write(b"k", EntryKind::Put, b"v");
        pool.prepare();
        assert_eq!(free_chunks(), 0, "a small memtable has small chunks");
        fill(1);
        pool.prepare();
        assert_eq!(free_chunks(), FREE_CHUNKS_AHEAD);
        fill(2);
        assert_eq!(free_chunks(), FREE_CHUNKS_AHEAD - 1, "it is taken");
        pool.prepare();
        let used = (arena.held_bytes() / CHUNK) * CHUNK;
        assert_eq!(free_chunks(), FREE_CHUNKS_AHEAD.min((room - used) / CHUNK));
        fill(6);
        pool.prepare();
        assert_eq!(free_chunks(), (room - 6 * CHUNK) / CHUNK, "no more than there is room for");
    }

    #[test]
    fn threads_never_share_bytes() {
        let pool = ArenaPool::new(4 << 10, 0, 256, 1 << 20);
        let arena = Arena::new(&pool);
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let arena = &arena;
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(u64::from(thread));
                    let wrote: Vec<_> = (0..2000)
                        .map(|_| {
                            let value = vec![thread; rng.usize(..1200)];
                            (arena.write(&[thread; 3], EntryKind::Put, &value), value)
                        })
                        .collect();
                    for (entry, value) in wrote {
                        let want = (&[thread; 3][..], EntryKind::Put, &value[..]);
                        assert_eq!(read(entry, arena), want);
                    }
                });
            }
        });
        assert_eq!(arena.entry_count(), 8000);
    }
}
