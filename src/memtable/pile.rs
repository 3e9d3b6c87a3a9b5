//! Entries in the order they came: the form of a memtable that takes keys in no order, of which hardly
//! any is looked for before it is flushed.
//!
//! ```text
//! shard, by hash     cells, 16 in a block: entry 8, sequence number 8
//!                    tags, one for each cell: 2 bytes of the hash of its key
//! ```
//!
//! 1. An insertion appends a cell and a tag to a shard, under its lock. That touches lines that are in
//!    the cache, where a place in a sorted structure is three or four that are not.
//! 2. A lookup reads the tags of a shard, one after the other: at most some 13,000, which takes about a
//!    microsecond. (An index by hash was made at first, at the first lookup. A stranger that the filter
//!    of recent tokens takes for known is looked for too, so all that came was entered sooner or later,
//!    and that took as long as a sorted place.)
//! 3. A scan, as that of a flush, sorts a copy, which is kept as long as nothing is inserted.
//!
//! A cell's tag and its place in that copy are charged when the cell is, so that a flush needs no memory
//! that nobody counted. Nothing is collapsed here.

#![expect(unsafe_code, reason = "cells lie in the arena, and sorted slots in raw memory")]

use std::cmp::Ordering::{Greater, Less};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::key::SeqNo;
use crate::memtable::arena::{Arena, Entry};
use crate::memtable::leaf::Slot;
use crate::memtable::memory::Memory;
use crate::memtable::position::Position;

/// So many that a lookup has few tags to read, and that the lines that are appended to stay in the cache.
const SHARD_COUNT: usize = 64;
/// Tags are compared so many at a time.
const TAG_BLOCK: usize = 32;
/// What is charged for each cell beside its own bytes: a slot of the sorted copy, and a tag in a vector
/// that may have grown to twice what it needs.
const CHARGED_BYTES: usize = size_of::<Slot>() + 2 * size_of::<u16>();

/// Where an entry lies, and its number.
#[derive(Clone, Copy, Debug)]
struct Cell {
    entry: Entry,
    seqno: SeqNo,
}

/// See the module's comment. The arena that its methods are given is always the same one, which has
/// the entries and the cells.
#[derive(Debug)]
pub(super) struct Pile {
    shards: Box<[Shard]>,
    /// Cells in a block.
    block_cells: usize,
    block_count: AtomicUsize,
    /// Of everything there was when it was made. Lock order: before the shards.
    sorted: Mutex<Option<Arc<Sorted>>>,
}

/// A line of the processor's cache of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard(Mutex<Cells>);

#[derive(Debug, Default)]
struct Cells {
    blocks: Vec<NonNull<Cell>>,
    /// As many as there are cells.
    tags: Vec<u16>,
}

// SAFETY: blocks are only touched through this, and entries are shared and never change.
unsafe impl Send for Cells {}

/// Slots in order.
#[derive(Debug)]
pub(super) struct Sorted {
    memory: Memory,
    len: usize,
}

// SAFETY: nobody writes to it once it is made.
unsafe impl Sync for Sorted {}

impl Pile {
    /// A pile that takes memory for so many cells of a shard at once.
    pub fn new(block_cells: usize) -> Pile {
        let shards = (0..SHARD_COUNT).map(|_| Shard::default()).collect();
        Pile { shards, block_cells, block_count: AtomicUsize::new(0), sorted: Mutex::new(None) }
    }

    /// Bytes of memory, beyond what the arena counts.
    pub fn bytes(&self) -> usize {
        self.block_count.load(Ordering::Relaxed) * self.block_cells * CHARGED_BYTES
    }

    #[inline]
    fn shard(&self, hash: u64) -> &Mutex<Cells> {
        &self.shards[(hash >> 32) as usize % SHARD_COUNT].0
    }

    /// Adds an entry, whose key has this hash.
    #[inline]
    pub fn push(&self, hash: u64, seqno: SeqNo, entry: Entry, arena: &Arena) {
        let mut cells = self.shard(hash).lock();
        let index = cells.tags.len();
        if index == cells.blocks.len() * self.block_cells {
            cells.blocks.push(arena.room(self.block_cells * size_of::<Cell>()).cast());
            self.block_count.fetch_add(1, Ordering::Relaxed);
        }
        let at = cells.at(index, self.block_cells);
        // SAFETY: it is in the last block, which has room for it, and nobody else has it.
        unsafe { at.write(Cell { entry, seqno }) };
        cells.tags.push(tag(hash));
    }

    /// The versions of the key of `target` that are at or after it, in order.
    pub fn versions(&self, target: &Position<'_>, hash: u64) -> SmallVec<[Slot; 2]> {
        let cells = self.shard(hash).lock();
        let candidates = matches(&cells.tags, tag(hash));
        let slots = candidates.map(|index| cells.cell(index, self.block_cells).slot());
        let mut found: SmallVec<[Slot; 2]> = slots
            .filter(|slot| slot.has_key_of(target) && !slot.is_before_position(target))
            .collect();
        found.sort_unstable_by(|a, b| if a.is_before(b) { Less } else { Greater });
        found
    }

    /// Everything that was added before this was called, in order.
    pub fn sorted(&self) -> Arc<Sorted> {
        let mut sorted = self.sorted.lock();
        // What comes while it is made is left out.
        let lens: Vec<usize> = self.shards.iter().map(|shard| shard.0.lock().tags.len()).collect();
        let len = lens.iter().sum();
        if let Some(sorted) = sorted.as_ref().filter(|sorted| sorted.len == len) {
            return sorted.clone();
        }
        // The old one goes first, if nobody walks it.
        *sorted = None;
        let mut new = Sorted::with_capacity(len);
        for (shard, len) in self.shards.iter().zip(lens) {
            let cells = shard.0.lock();
            (0..len).for_each(|index| new.push(cells.cell(index, self.block_cells).slot()));
        }
        new.sort();
        sorted.insert(Arc::new(new)).clone()
    }
}

impl Cells {
    /// Where the cell at `index` lies, whose block there is.
    #[inline]
    fn at(&self, index: usize, block_cells: usize) -> NonNull<Cell> {
        let block = self.blocks[index / block_cells];
        // SAFETY: within the block.
        unsafe { block.add(index % block_cells) }
    }

    #[inline]
    fn cell(&self, index: usize, block_cells: usize) -> Cell {
        assert!(index < self.tags.len());
        let at = self.at(index, block_cells);
        // SAFETY: `push` wrote a cell for each tag.
        unsafe { at.read() }
    }
}

/// The lowest bytes of the hash: the shard is chosen by others.
#[inline]
fn tag(hash: u64) -> u16 {
    hash as u16
}

/// Indices at which `tags` has `tag`.
fn matches(tags: &[u16], tag: u16) -> impl Iterator<Item = usize> {
    let has =
        move |(_, tags): &(usize, &[u16])| tags.iter().fold(false, |has, t| has | (*t == tag));
    let within = move |(block, tags): (usize, &'_ [u16])| {
        let at = move |(index, t): (usize, &u16)| (*t == tag).then_some(block * TAG_BLOCK + index);
        tags.iter().enumerate().filter_map(at).collect::<SmallVec<[usize; 2]>>()
    };
    tags.chunks(TAG_BLOCK).enumerate().filter(has).flat_map(within)
}

impl Cell {
    /// The key, as long as the arena lives, which every caller is lent.
    fn key(&self) -> &'static [u8] {
        // SAFETY: the memtable has pile and arena, and lends what comes of this as `Slot::new` says.
        unsafe { self.entry.key() }
    }

    fn slot(&self) -> Slot {
        let position = Position::new(self.key(), self.seqno);
        // SAFETY: the entry has the key of the position; for the arena see `key`.
        unsafe { Slot::new(&position, self.entry) }
    }
}

impl Sorted {
    fn with_capacity(len: usize) -> Sorted {
        Sorted { memory: Memory::new((len * size_of::<Slot>()).max(1)), len: 0 }
    }

    fn push(&mut self, slot: Slot) {
        assert!((self.len + 1) * size_of::<Slot>() <= self.memory.bytes());
        // SAFETY: within the memory, asserted above.
        let at = unsafe { self.memory.start().cast::<Slot>().add(self.len) };
        // SAFETY: as above; memory is aligned to cache lines, and nobody else has it yet.
        unsafe { at.write(slot) };
        self.len += 1;
    }

    fn sort(&mut self) {
        // SAFETY: `push` wrote so many slots, and this is the only reference.
        let slots =
            unsafe { slice::from_raw_parts_mut(self.memory.start().cast().as_ptr(), self.len) };
        slots.sort_unstable_by(|a: &Slot, b| if a.is_before(b) { Less } else { Greater });
    }

    pub fn slots(&self) -> &[Slot] {
        // SAFETY: `push` wrote so many slots, aligned to cache lines, and nobody writes any more.
        unsafe { slice::from_raw_parts(self.memory.start().cast().as_ptr(), self.len) }
    }

    /// Fills `window` with the entries from `from` on, so many at most, and returns up to where it is
    /// complete.
    pub fn read_forward(
        &self,
        from: &Position<'_>,
        count_max: usize,
        window: &mut Vec<Slot>,
    ) -> Position<'static> {
        let slots = self.slots();
        let start = slots.partition_point(|slot| slot.is_before_position(from));
        let end = slots.len().min(start + count_max);
        window.clear();
        window.extend_from_slice(&slots[start..end]);
        slots.get(end).map_or(Position::END, Slot::position)
    }

    /// Fills `window` with the entries before `before`, so many at most from the end, and returns from
    /// where on it is complete.
    pub fn read_backward(
        &self,
        before: &Position<'_>,
        count_max: usize,
        window: &mut Vec<Slot>,
    ) -> Position<'static> {
        let slots = self.slots();
        let end = slots.partition_point(|slot| slot.is_before_position(before));
        let start = end.saturating_sub(count_max);
        window.clear();
        window.extend_from_slice(&slots[start..end]);
        if start == 0 { Position::START } else { slots[start].position() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{EntryKind, hash};
    use crate::memtable::ArenaPool;

    #[test]
    fn every_tag_is_found_wherever_it_is() {
        for len in [0, 1, TAG_BLOCK - 1, TAG_BLOCK, TAG_BLOCK + 1, 5 * TAG_BLOCK + 3] {
            let tags: Vec<u16> = (0..len).map(|index| index as u16 % 40).collect();
            for tag in 0..41 {
                let expected = (0..len).filter(|index| tags[*index] == tag);
                assert!(matches(&tags, tag).eq(expected), "{tag} of {len}");
            }
        }
    }

    #[test]
    fn the_sorted_copy_is_made_anew_after_an_insertion_only() {
        let (arena, pile) =
            (Arena::new(&ArenaPool::new(64 << 10, 1 << 20, 256, 1 << 20)), Pile::new(4));
        let push = |key: &[u8], seqno| {
            let entry = arena.write(key, EntryKind::Put, b"");
            pile.push(hash(key), SeqNo(seqno), entry, &arena);
        };
        (0..1000u64).for_each(|number| push(&(number * 7 % 1000).to_be_bytes(), number));
        let first = pile.sorted();
        assert!(Arc::ptr_eq(&first, &pile.sorted()));
        push(&500u64.to_be_bytes(), 1000);
        let second = pile.sorted();
        assert_eq!((first.slots().len(), second.slots().len()), (1000, 1001));
        assert!(second.slots().is_sorted_by(Slot::is_before));
        assert_eq!(second.slots()[500].seqno(), SeqNo(1000), "the newest version comes first");
    }
}
