//! A leaf: some hundred slots that point at entries; first a sorted part, then a short unsorted
//! tail to which writers append while readers read.
//!
//! ```text
//! offset   bytes               field
//! 0        4                   sorted << 16 | len, atomic: so many slots in order, so many in all
//! 4        4                   capacity
//! 8        8                   collapsed: versions that only reads below it need may be missing
//! 16       48                  upper fence: every entry of the leaf is before it
//! 64       capacity, up to 64  tags: a byte of each key's hash
//! ..       32 * capacity       slots
//! ..       8                   the `Blocks` that it is a block of; null if it is the allocator's
//! ```
//!
//! Invariants:
//! - Slots and tags below `len` never change; the sorted part never shrinks. `len` is stored with
//!   Release after the slot and loaded with Acquire before it, so readers need no lock.
//! - Only the holder of the node's lock appends.
//! - At most [`TAIL_SLOTS_MAX`] slots are unsorted.
//! - When a leaf is full, new ones are made of it (`Run`) and it is retired by epoch; it never
//!   grows.
//!
//! Tags make a point read cost three dependent cache misses (leaf, slot, entry) where a binary
//! search of the slots costs one per step; they lie right behind the header so that they are
//! loaded together with it.

#![expect(unsafe_code, reason = "slots are read while others are appended behind them")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cmp::Ordering::{Greater, Less};
use std::marker::PhantomData;
use std::ops::{ControlFlow, Range};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use smallvec::SmallVec;

use crate::key::{EntryKind, SeqNo};
use crate::memtable::arena::{Entry, prefetch};
use crate::memtable::blocks::{Blocks, SIZE_COUNT};
use crate::memtable::position::{self, HEAD_BYTES, Position};

/// No leaf has more unsorted slots.
pub(super) const TAIL_SLOTS_MAX: usize = 64;
/// Tags are compared so many at a time.
const TAG_BLOCK: usize = 16;
const CACHE_LINE: usize = 64;

/// Where an entry stands in the order, and where it lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    head: u128,
    rank: u64,
    entry: Entry,
}

// SAFETY: a slot gives shared access to an immutable entry of an arena that is Sync, and whoever
// holds the slot keeps that arena alive (`Slot::new`).
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

impl Slot {
    /// The slot of `entry`, which stands at `position`.
    ///
    /// # Safety
    /// `entry` has the key that `position` was made of, and its arena outlives every use of the
    /// slot, its copies, and what its methods return. (The memtable keeps this promise: slots are
    /// in its leaves and in cursors that own a reference to it.)
    #[inline]
    pub unsafe fn new(position: &Position<'_>, entry: Entry) -> Slot {
        Slot { head: position.head, rank: position.rank, entry }
    }

    /// Where the entry stands. `'static` stands for "as long as the arena", see `new`.
    #[inline]
    pub fn position(&self) -> Position<'static> {
        let rest: &[u8] =
            if position::is_long(self.rank) { &self.key()[HEAD_BYTES..] } else { &[] };
        Position { head: self.head, rank: self.rank, rest }
    }

    /// The user key.
    #[inline]
    pub fn key(&self) -> &'static [u8] {
        // SAFETY: the promise made to `new`.
        unsafe { self.entry.key() }
    }

    #[inline]
    pub fn seqno(&self) -> SeqNo {
        position::seqno(self.rank)
    }

    #[inline]
    pub fn kind(&self) -> EntryKind {
        // SAFETY: the promise made to `new`.
        unsafe { self.entry.kind() }
    }

    #[inline]
    pub fn value(&self) -> &'static [u8] {
        // SAFETY: the promise made to `new`.
        unsafe { self.entry.value() }
    }

    /// Begins to load the entry.
    #[inline]
    pub fn prefetch(&self) {
        self.entry.prefetch();
    }

    #[inline]
    pub fn is_before(&self, other: &Slot) -> bool {
        if self.head == other.head && position::both_long(self.rank, other.rank) {
            return self.position() < other.position();
        }
        (self.head, self.rank) < (other.head, other.rank)
    }

    #[inline]
    pub fn is_before_position(&self, other: &Position<'_>) -> bool {
        if self.head == other.head && position::both_long(self.rank, other.rank) {
            return self.position() < *other;
        }
        (self.head, self.rank) < (other.head, other.rank)
    }

    /// Where the versions of the key begin.
    pub fn key_start(&self) -> Position<'static> {
        self.position().key_start()
    }

    #[inline]
    fn has_same_key(&self, other: &Slot) -> bool {
        self.has_key_of(&other.position())
    }

    #[inline]
    pub fn has_key_of(&self, other: &Position<'_>) -> bool {
        self.head == other.head && self.position().same_key(other)
    }
}

/// Sorted slots and their tags, on the way from one leaf to the next.
#[derive(Debug, Default)]
pub(super) struct Run {
    slots: Vec<Slot>,
    tags: Vec<u8>,
}

impl Run {
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// The fence of a leaf that begins with the slot at `index`: where its key begins, so that later
    /// versions of it come to the same leaf, or within the key if it has to be divided.
    pub fn fence(&self, index: usize) -> Position<'static> {
        let slot = &self.slots[index];
        let divides = index > 0 && slot.has_same_key(&self.slots[index - 1]);
        if divides { slot.position() } else { slot.key_start() }
    }

    pub fn with_capacity(capacity: usize) -> Run {
        Run { slots: Vec::with_capacity(capacity), tags: Vec::with_capacity(capacity) }
    }

    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The tag of the slot at `index`.
    pub fn tag(&self, index: usize) -> u8 {
        self.tags[index]
    }

    /// How many versions are not the newest of their key here.
    pub fn older_versions(&self) -> usize {
        (1..self.len()).filter(|&index| self.has_key_of_last(index)).count()
    }

    /// True if the slot at `index` has the key of the one before it. The tags are looked at first:
    /// comparing keys that are longer than a head costs a cache miss each.
    fn has_key_of_last(&self, index: usize) -> bool {
        self.tags[index] == self.tags[index - 1]
            && self.slots[index].has_same_key(&self.slots[index - 1])
    }

    /// The slots of each key.
    pub fn keys(&self) -> impl Iterator<Item = Range<usize>> {
        let mut end = 0;
        std::iter::from_fn(move || {
            let start = end;
            end += usize::from(start < self.len());
            while end < self.len() && self.has_key_of_last(end) {
                end += 1;
            }
            (start < end).then_some(start..end)
        })
    }

    /// Puts `more`, which comes after everything in this run, behind it.
    pub fn append(&mut self, more: &Run) {
        self.slots.extend_from_slice(&more.slots);
        self.tags.extend_from_slice(&more.tags);
    }

    pub fn push(&mut self, slot: Slot, tag: u8) {
        debug_assert!(self.slots.last().is_none_or(|last| last.is_before(&slot)));
        self.slots.push(slot);
        self.tags.push(tag);
    }
}

/// An owned leaf, not yet or no longer shared.
#[derive(Debug)]
pub(super) struct OwnedLeaf(NonNull<Header>);

/// A leaf that stays allocated for `'g`, usually because an epoch guard says so.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeafRef<'g> {
    header: NonNull<Header>,
    lifetime: PhantomData<&'g ()>,
}

#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Header {
    /// Sorted slots << 16 | all slots.
    lens: AtomicU32,
    capacity: u32,
    collapsed: SeqNo,
    upper: Position<'static>,
}

/// How many slots of a leaf are in order, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lens {
    pub sorted: usize,
    pub len: usize,
}

impl Lens {
    fn pack(self) -> u32 {
        (self.sorted << 16 | self.len) as u32
    }

    fn unpack(word: u32) -> Lens {
        Lens { sorted: (word >> 16) as usize, len: (word & 0xffff) as usize }
    }
}

/// The layout of a leaf, and where its slots begin.
fn layout(capacity: usize) -> (Layout, usize) {
    let tags = capacity.next_multiple_of(CACHE_LINE);
    let slots_at = size_of::<Header>() + tags;
    let bytes = slots_at + capacity * size_of::<Slot>() + size_of::<*const Blocks>();
    (Layout::from_size_align(bytes, CACHE_LINE).expect("a leaf is small"), slots_at)
}

/// Leaves with room for so many more slots than others are in larger blocks.
const BLOCK_STEP: usize = 64;

/// Which size of block a leaf needs, if there is one for it, and the bytes of such a block.
fn block_size(capacity: usize) -> Option<(usize, usize)> {
    let size = capacity.checked_sub(1)? / BLOCK_STEP;
    let bytes = layout((size + 1) * BLOCK_STEP).0.size().next_multiple_of(CACHE_LINE);
    // The smallest leaves would waste most of a block.
    (capacity > BLOCK_STEP / 2 && size < SIZE_COUNT).then_some((size, bytes))
}

impl OwnedLeaf {
    /// A leaf with the slots `range` of `run`, all before `upper`, and room for `capacity`. Versions
    /// that only reads below `collapsed` need may be missing. It is one of the blocks, if any are given
    /// and they have its size.
    pub fn new(
        run: &Run,
        range: Range<usize>,
        capacity: usize,
        upper: Position<'static>,
        collapsed: SeqNo,
        blocks: Option<&Arc<Blocks>>,
    ) -> OwnedLeaf {
        let len = range.len();
        assert!(len <= capacity && capacity <= u16::MAX as usize);
        debug_assert!(len == 0 || run.slots[range.end - 1].is_before_position(&upper));
        let (layout, _) = layout(capacity);
        let (memory, owner) = match (blocks, block_size(capacity)) {
            (Some(blocks), Some((size, bytes))) => {
                (blocks.allocate(size, bytes), Arc::as_ptr(blocks))
            }
            _ => {
                // SAFETY: the size is at least that of the header.
                let memory = unsafe { alloc(layout) };
                let memory = NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout));
                (memory, ptr::null())
            }
        };
        let header = memory.cast();
        let lens = AtomicU32::new(Lens { sorted: len, len }.pack());
        // SAFETY: freshly allocated with the alignment and at least the size of a header.
        unsafe { header.write(Header { lens, capacity: capacity as u32, collapsed, upper }) };
        let owned = OwnedLeaf(header);
        let leaf = owned.borrow();
        // SAFETY: the last word of the allocation, aligned as the slots before it are.
        unsafe { leaf.owner_at().write(owner) };
        let slots = run.slots[range.clone()].as_ptr();
        // SAFETY: `len` slots fit, since len <= capacity; the run's vector is elsewhere.
        unsafe { ptr::copy_nonoverlapping(slots, leaf.slots_start(), len) };
        // SAFETY: `len` tags fit for the same reason.
        unsafe { ptr::copy_nonoverlapping(run.tags[range].as_ptr(), leaf.tags_start(), len) };
        owned
    }

    /// The leaf as a pointer; `LeafRef::free` frees it.
    pub fn into_raw(self) -> *mut Header {
        self.0.as_ptr()
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.borrow().bytes()
    }

    fn borrow(&self) -> LeafRef<'_> {
        LeafRef { header: self.0, lifetime: PhantomData }
    }
}

impl<'g> LeafRef<'g> {
    /// The leaf at `header`.
    ///
    /// # Safety
    /// `header` came from `OwnedLeaf::into_raw` and is not freed during `'g`.
    #[inline]
    pub unsafe fn from_raw(header: *mut Header) -> LeafRef<'g> {
        // SAFETY: `into_raw` never gives null.
        let header = unsafe { NonNull::new_unchecked(header) };
        LeafRef { header, lifetime: PhantomData }
    }

    /// Frees the leaf. The entries stay.
    ///
    /// # Safety
    /// Nobody uses the leaf any more, and nobody frees it again.
    pub unsafe fn free(self) {
        let owner = self.owner();
        if owner.is_null() {
            let (layout, _) = layout(self.capacity());
            // SAFETY: allocated with this layout; the caller is the last to use it. Nothing in the
            // header needs a destructor.
            unsafe { dealloc(self.header.cast().as_ptr(), layout) };
        } else {
            let (size, _) = block_size(self.capacity()).expect("it has a block");
            // SAFETY: these blocks gave it with this size; the caller is the last to use it.
            unsafe { Blocks::free(owner, size, self.header.cast()) };
        }
    }

    /// Where the last word is.
    fn owner_at(self) -> *mut *const Blocks {
        // SAFETY: it follows the slots in the same allocation.
        unsafe { self.slots_start().add(self.capacity()).cast() }
    }

    /// The blocks that it is one of, or null.
    fn owner(self) -> *const Blocks {
        // SAFETY: written when the leaf was made, and never again.
        unsafe { self.owner_at().read() }
    }

    #[inline]
    fn header(self) -> &'g Header {
        // SAFETY: the header is initialised and lives for 'g; all that changes in it is atomic.
        unsafe { self.header.as_ref() }
    }

    #[inline]
    pub fn upper(self) -> &'g Position<'static> {
        &self.header().upper
    }

    /// A reader at a smaller number may miss versions here.
    #[inline]
    pub fn collapsed(self) -> SeqNo {
        self.header().collapsed
    }

    #[inline]
    pub fn capacity(self) -> usize {
        self.header().capacity as usize
    }

    /// Bytes of memory.
    pub fn bytes(self) -> usize {
        layout(self.capacity()).0.size()
    }

    #[inline]
    pub fn lens(self) -> Lens {
        Lens::unpack(self.header().lens.load(Ordering::Acquire))
    }

    #[inline]
    fn tags_start(self) -> *mut u8 {
        // SAFETY: the tags follow the header in the same allocation.
        unsafe { self.header.add(1).cast().as_ptr() }
    }

    #[inline]
    fn slots_start(self) -> *mut Slot {
        let (_, slots_at) = layout(self.capacity());
        // SAFETY: the slots begin here in the same allocation; 64 divides `slots_at`.
        unsafe { self.header.byte_add(slots_at).cast().as_ptr() }
    }

    /// The first `lens.len` slots.
    #[inline]
    fn slots(self, lens: Lens) -> &'g [Slot] {
        debug_assert!(lens.len <= self.capacity());
        // SAFETY: `lens` was loaded from this leaf with Acquire, or under the lock of its writers,
        // so so many slots are written; they never change, writers only touch those behind them.
        unsafe { slice::from_raw_parts(self.slots_start(), lens.len) }
    }

    /// The first `lens.len` tags.
    #[inline]
    fn tags(self, lens: Lens) -> &'g [u8] {
        // SAFETY: as for `slots`.
        unsafe { slice::from_raw_parts(self.tags_start(), lens.len) }
    }

    /// Begins to load the header and the tags.
    #[inline]
    pub fn prefetch_tags(self) {
        for line in 0..6 {
            prefetch(self.header.as_ptr().wrapping_byte_add(line * CACHE_LINE).cast());
        }
    }

    /// Begins to load the header.
    #[inline]
    pub fn prefetch_header(self) {
        prefetch(self.header.as_ptr().cast());
    }

    /// Begins to load where the next slot and its tag go. Waits for the header if need be.
    #[inline]
    pub fn prefetch_room(self) {
        let len = self.lens().len;
        prefetch(self.slots_start().wrapping_add(len).cast());
        prefetch(self.tags_start().wrapping_add(len));
    }

    /// Appends a slot if there is room for it: in the leaf, and, if it is out of order, among at
    /// most `tail_max` unsorted ones.
    ///
    /// # Safety
    /// The caller holds the lock of the leaf's node, and the slot is before `upper`.
    #[inline]
    pub unsafe fn append(self, slot: Slot, tag: u8, tail_max: usize) -> bool {
        debug_assert!(tail_max <= TAIL_SLOTS_MAX && slot.is_before_position(self.upper()));
        let Lens { mut sorted, len } = Lens::unpack(self.header().lens.load(Ordering::Relaxed));
        if len == self.capacity() {
            return false;
        }
        let last = self.slots(Lens { sorted, len }).last();
        if sorted == len && last.is_none_or(|last| last.is_before(&slot)) {
            sorted += 1;
        } else if len - sorted >= tail_max {
            return false;
        }
        // SAFETY: `len` is within the capacity.
        let slot_at = unsafe { self.slots_start().add(len) };
        // SAFETY: within the capacity, and unread until `lens` says so.
        unsafe { slot_at.write(slot) };
        // SAFETY: `len` is within the capacity.
        let tag_at = unsafe { self.tags_start().add(len) };
        // SAFETY: as for the slot.
        unsafe { tag_at.write(tag) };
        self.header().lens.store(Lens { sorted, len: len + 1 }.pack(), Ordering::Release);
        true
    }

    /// All slots, and one more if there is one, in order; and whether that took no sorting, the new
    /// slot being the last. The caller holds the lock of the leaf's node, so that no slot is
    /// appended meanwhile.
    pub fn sorted_with(self, more: Option<(Slot, u8)>) -> (Run, bool) {
        let lens = self.lens();
        let (sorted, tail) = self.slots(lens).split_at(lens.sorted);
        let (sorted_tags, tail_tags) = self.tags(lens).split_at(lens.sorted);
        let tail = tail.iter().copied().zip(tail_tags.iter().copied());
        let mut fresh: SmallVec<[(Slot, u8); 2 * TAIL_SLOTS_MAX]> = tail.chain(more).collect();
        fresh.sort_unstable_by(|a, b| if a.0.is_before(&b.0) { Less } else { Greater });
        let is_behind = |slot: &Slot| sorted.last().is_none_or(|last| last.is_before(slot));
        // A slot is appended unsorted only if it is before one that is there.
        let in_order =
            lens.sorted == lens.len && fresh.first().is_none_or(|(slot, _)| is_behind(slot));
        let mut run = Run::with_capacity(sorted.len() + fresh.len());
        let mut old = 0;
        for (slot, tag) in fresh {
            while old < sorted.len() && sorted[old].is_before(&slot) {
                run.push(sorted[old], sorted_tags[old]);
                old += 1;
            }
            run.push(slot, tag);
        }
        run.slots.extend_from_slice(&sorted[old..]);
        run.tags.extend_from_slice(&sorted_tags[old..]);
        (run, in_order)
    }

    /// Calls `visit` with the versions of the key of `target` that are at or after it, in order.
    #[inline]
    pub fn visit(
        self,
        target: &Position<'_>,
        tag: u8,
        visit: &mut impl FnMut(&Slot) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let lens = self.lens();
        let (sorted, tail) = self.slots(lens).split_at(lens.sorted);
        let (sorted_tags, tail_tags) = self.tags(lens).split_at(lens.sorted);
        let wanted = |slot: &Slot| slot.rank >= target.rank && slot.has_key_of(target);

        let mut found = [0u8; TAIL_SLOTS_MAX];
        let mut found_count = 0;
        for index in matches(tail_tags, tag) {
            if wanted(&tail[index]) {
                found[found_count] = index as u8;
                found_count += 1;
            }
        }
        let found = &mut found[..found_count];
        // Of one key, so the ranks decide; most often the oldest came first.
        found.reverse();
        found.sort_unstable_by_key(|&index| tail[usize::from(index)].rank);
        let mut found = found.iter().map(|&index| &tail[usize::from(index)]).peekable();

        let same_key = matches(sorted_tags, tag).find(|&index| sorted[index].has_key_of(target));
        if let Some(first) = same_key {
            let versions = &sorted[first..];
            let newer = match versions[0].is_before_position(target) {
                true => versions.partition_point(|slot| slot.is_before_position(target)),
                false => 0,
            };
            for slot in versions[newer..].iter().take_while(|slot| slot.has_key_of(target)) {
                while let Some(newer) = found.next_if(|tail| tail.rank < slot.rank) {
                    visit(newer)?;
                }
                visit(slot)?;
            }
        }
        found.try_for_each(visit)
    }

    /// Fills `window` with the entries from `from` on, about `sorted_max` and what is unsorted
    /// among them, and returns up to where it is complete: the leaf's upper fence, or where a key
    /// begins, so that all versions of a key in this leaf come from this state of it.
    pub fn read_forward(
        self,
        from: &Position<'_>,
        sorted_max: usize,
        window: &mut Vec<Slot>,
    ) -> Position<'static> {
        let lens = self.lens();
        let (sorted, tail) = self.slots(lens).split_at(lens.sorted);
        let start = lower_bound(sorted, from);
        let mut end = sorted.len().min(start + sorted_max);
        while end > start && end < sorted.len() && sorted[end].has_same_key(&sorted[end - 1]) {
            end += 1;
        }
        let upper = sorted.get(end).map_or(*self.upper(), Slot::key_start);
        fill(window, &sorted[start..end], tail, from, &upper);
        upper
    }

    /// Fills `window` with the entries from `lower`, the leaf's lower fence, and before `before`,
    /// about `sorted_max` from the end, and returns from where on it is complete: `lower`, or where
    /// a key begins.
    pub fn read_backward(
        self,
        lower: &Position<'static>,
        before: &Position<'_>,
        sorted_max: usize,
        window: &mut Vec<Slot>,
    ) -> Position<'static> {
        let lens = self.lens();
        let (sorted, tail) = self.slots(lens).split_at(lens.sorted);
        let end = lower_bound(sorted, before);
        let mut start = end.saturating_sub(sorted_max);
        while start > 0 && start < end && sorted[start].has_same_key(&sorted[start - 1]) {
            start -= 1;
        }
        let lower = if start == 0 { *lower } else { sorted[start].key_start() };
        fill(window, &sorted[start..end], tail, &lower, before);
        lower
    }

    /// Panics if slots that should be in order are not, or lie outside `lower..upper`.
    #[cfg(test)]
    pub fn check(self, lower: &Position<'_>) {
        let lens = self.lens();
        let slots = self.slots(lens);
        assert!(lens.sorted <= lens.len && lens.len <= self.capacity());
        assert!(lens.len - lens.sorted <= TAIL_SLOTS_MAX);
        assert!(slots[..lens.sorted].is_sorted_by(Slot::is_before));
        assert!(slots.iter().all(|slot| !slot.is_before_position(lower)));
        assert!(slots.iter().all(|slot| slot.is_before_position(self.upper())));
        for (slot, &tag) in slots.iter().zip(self.tags(lens)) {
            assert_eq!(tag, super::tag(crate::key::hash(slot.key())));
        }
    }
}

/// How many of `sorted` are before `at`.
///
/// A plain binary search of a leaf that is not in the cache waits for a miss at nearly every step.
/// This one waits twice: for sixteen pivots that are loaded together, and for what lies between two
/// of them.
fn lower_bound(sorted: &[Slot], at: &Position<'_>) -> usize {
    let before = |slot: &Slot| slot.is_before_position(at);
    let step = sorted.len() / 16;
    if step < 2 {
        return sorted.partition_point(before);
    }
    let pivots = || sorted.iter().step_by(step).take(16);
    pivots().for_each(|slot| prefetch(ptr::from_ref(slot).cast()));
    let block = [8, 4, 2, 1].into_iter().fold(0, |block, bit| {
        if before(&sorted[(block + bit) * step]) { block + bit } else { block }
    });
    let start = block * step;
    let end = if block == 15 { sorted.len() } else { start + step };
    let rest = &sorted[start..end];
    rest.iter().step_by(2).for_each(|slot| prefetch(ptr::from_ref(slot).cast()));
    start + rest.partition_point(before)
}

/// Fills `window` with `sorted` and those of `tail` that are in `from..upper`, in order.
fn fill(
    window: &mut Vec<Slot>,
    sorted: &[Slot],
    tail: &[Slot],
    from: &Position<'_>,
    upper: &Position<'_>,
) {
    let mut found = [0u8; TAIL_SLOTS_MAX];
    let mut found_count = 0;
    for (index, slot) in tail.iter().enumerate() {
        if !slot.is_before_position(from) && slot.is_before_position(upper) {
            found[found_count] = index as u8;
            found_count += 1;
        }
    }
    let found = &mut found[..found_count];
    let at = |index: u8| &tail[usize::from(index)];
    found.sort_unstable_by(|&a, &b| if at(a).is_before(at(b)) { Less } else { Greater });
    window.clear();
    window.reserve(sorted.len() + found.len());
    let mut rest = sorted;
    for &index in &*found {
        let slot = at(index);
        let older = rest.partition_point(|sorted| sorted.is_before(slot));
        window.extend_from_slice(&rest[..older]);
        window.push(*slot);
        rest = &rest[older..];
    }
    window.extend_from_slice(rest);
}

/// Indices at which `tags` has `tag`.
#[inline]
fn matches(tags: &[u8], tag: u8) -> impl Iterator<Item = usize> {
    let (blocks, rest) = tags.as_chunks::<TAG_BLOCK>();
    let in_block = move |(block, tags): (usize, &[u8; TAG_BLOCK])| Bits {
        bits: equal_bytes(tags, tag),
        start: block * TAG_BLOCK,
    };
    let rest_start = blocks.len() * TAG_BLOCK;
    let in_rest = move |(index, &other): (usize, &u8)| (other == tag).then_some(rest_start + index);
    let in_blocks = blocks.iter().enumerate().flat_map(in_block);
    in_blocks.chain(rest.iter().enumerate().filter_map(in_rest))
}

/// One bit for each byte of `tags` that is `tag`. The compiler makes three instructions of it.
#[inline]
fn equal_bytes(tags: &[u8; TAG_BLOCK], tag: u8) -> u32 {
    let mut bits = 0;
    for (index, &other) in tags.iter().enumerate() {
        bits |= u32::from(other == tag) << index;
    }
    bits
}

/// The set bits of a word, as indices from `start`.
struct Bits {
    bits: u32,
    start: usize,
}

impl Iterator for Bits {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.bits == 0 {
            return None;
        }
        let index = self.bits.trailing_zeros() as usize;
        self.bits &= self.bits - 1;
        Some(self.start + index)
    }
}
