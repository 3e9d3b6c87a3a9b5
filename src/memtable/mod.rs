//! The sorted, concurrent buffer of recent writes: a skiplist over leaves of entries, or a pile of them.
//!
//! - `position`: where an entry stands in the order, compared without following pointers.
//! - `memory`: pieces of raw memory, from the allocator or from the kernel.
//! - `arena`: the memory of the entries, and the pool it comes from.
//! - `blocks`: the memory of the leaves, from the same pool.
//! - `leaf`: some hundred slots that point at entries.
//! - `filter`: tells of most keys that they are not here.
//! - `collapse`: what a leaf that is sorted anew may leave out.
//! - `cursor`: walks the leaves.
//! - `pile`: entries in the order they came, instead of leaves, where hardly anything is looked for.
//!
//! A skiplist with a node per entry is bound by cache misses: one per comparison, 2 to 3 µs per
//! insert into a million entries. Here crossbeam's skiplist is only the index: it has a node per
//! leaf, so it is some hundred times smaller and stays in the second-level cache, and what is left
//! is one miss for the leaf and one for the place in it.
//!
//! # Structure
//! The index maps a *lower fence* to a node; the node has a lock and points at its current leaf;
//! the leaf has an *upper fence*. Fences are positions (key and sequence number), so the versions
//! of one key may span leaves. In every state that a reader can see:
//! 1. A leaf's upper fence is the lower fence of a node in the index, or `Position::END`.
//! 2. A node's lower fence never changes.
//! 3. A leaf has exactly the entries from its node's lower fence up to its upper fence that were
//!    inserted before it was replaced, without those that were collapsed (see `collapse`).
//! 4. A node that was removed has a leaf without entries whose upper fence is the node's lower one,
//!    so that whoever still holds it looks into the index again.
//!
//! # Writers
//! 1. Find the node with the greatest lower fence that is not after the entry; lock it.
//! 2. If the entry is not before the leaf's upper fence, the leaf was split meanwhile: start over;
//!    the index has the right node now.
//! 3. Append to the leaf. If it has no room, sort it into a new one and swap that in, or:
//! 4. Split: put the right half, in a node that is *locked*, into the index; swap the left half in;
//!    unlock the right node, then the left one.
//!
//! 5. A leaf that a collapse has made much smaller is merged into the one on its left, if both are
//!    small and that one's lock is free: with both locked, swap what both hold into the left node, take the right
//!    one out of the index, and only then swap the leaf of invariant 4 into it.
//!
//! An inserter holds one lock, a splitter besides it only that of the node it makes, and nobody
//! waits for the lock of a left neighbour, so nothing can wait in a circle. Replaced leaves are freed by epoch once no reader can stand in them.
//!
//! # Readers
//! They take no lock, and see every entry whose insertion was complete when the read began (the
//! layer above publishes a sequence number only then). Let E be such an entry and P the node in
//! whose leaf it was put.
//! - The reader's index lookup for E's position finds P, or a node made later by splitting P, or,
//!   when P itself came of a split, never one before it: P was in the index when E was inserted.
//!   If P was merged away, it finds the node that took E over, or P while that is going on, and P's
//!   leaf still has E until the index leads to the other one.
//! - The leaf loaded from that node has E, or an upper fence that is not after E, and then the
//!   index has another node for E (1, 4), to which the reader moves on.
//! - A scan that loads the leaf of a node Q before P does not skip E either: it takes what the leaf
//!   holds only up to its upper fence, and that is not after P's lower fence, because Q's half was
//!   swapped in before P was unlocked, so before E was inserted. This is what the lock on the right
//!   node is for: a stale left leaf would hide E from a scan, though not from a point read.

mod arena;
#[cfg(feature = "testing")]
pub mod bench;
mod blocks;
mod collapse;
mod cursor;
mod filter;
mod leaf;
mod memory;
mod pile;
mod position;
#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::fmt;
use std::ops::{Bound, ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crossbeam_epoch::{self as epoch, Guard};
use crossbeam_skiplist::base::{self, SkipList};
use parking_lot::RawMutex;
use parking_lot::lock_api::{self, RawMutex as _};

pub(crate) use crate::memtable::arena::ArenaPool;
pub(crate) use crate::memtable::cursor::MemtableCursor;
pub(crate) use crate::memtable::memory::Words;

use crate::cursor::ValueRef;
use crate::key::{EntryKind, SeqNo, hash};
use crate::memtable::arena::{Arena, prefetch};
use crate::memtable::blocks::Blocks;
use crate::memtable::filter::Filter;
use crate::memtable::leaf::{Header, LeafRef, OwnedLeaf, Run, Slot, TAIL_SLOTS_MAX};
use crate::memtable::pile::Pile;
use crate::memtable::position::Position;
use crate::operator::Quick;

/// How large leaves get.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// A leaf that is sorted anew is split if it has more slots than this.
    slots_max: usize,
    /// A leaf is sorted anew when it has so many unsorted slots; at most [`TAIL_SLOTS_MAX`].
    tail_max: usize,
}

impl Shape {
    /// The shape with leaves of so many slots; 256 in production.
    ///
    /// Measured with a million random 16-byte keys: 384 and 512 slots insert and get alike (their
    /// leaves are sorted anew for longer, the index is smaller). A tail of 32 makes a seek 15 %
    /// faster and an insert 5 to 10 % slower; writes decide.
    fn of(slots: usize) -> Shape {
        Shape { slots_max: slots, tail_max: (slots / 4).clamp(1, TAIL_SLOTS_MAX) }
    }
}

/// A leaf of which a collapse leaves out this fraction or more is merged into the one on its left, if
/// both together are small: looking costs a cache miss or two, so a few overwritten keys are no
/// occasion.
const MERGE_FRACTION: usize = 4;

/// A leaf that is made anew has room for so many more slots at least: of a key that is written again and
/// again all but one are collapsed each time.
const ROOM_MIN: usize = 16;

/// A pile has so many blocks for the slots of a leaf.
const LEAF_BLOCKS: usize = 16;

/// What a memtable is told of the world in order to collapse versions.
pub(crate) trait Surroundings {
    /// A number below which nobody reads now or later; every commit up to it is in the memtable.
    fn horizon(&self) -> SeqNo;
    /// How operands fold, if they may be folded here.
    fn quick(&self) -> Option<Quick>;
    /// May what is older than this memtable have a version of this key? Asked with a number of the
    /// key that is not above the last horizon given.
    fn lies_below(&self, memtable: &Memtable, key: &[u8], hash: u64) -> bool;
}

/// Why a visit ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// The visitor had enough.
    Enough,
    /// Versions that this number sees may be missing: the number is not registered, and newer
    /// commits have taken their place since it was read. Read at a newer number.
    Stale,
}

/// Entries of one keyspace, sorted. Insertions and reads are concurrent; readers never wait.
pub(crate) struct Memtable {
    index: SkipList<Lower, Node>,
    arena: Arena,
    filter: Filter,
    /// What has the entries instead of leaves and filter, if it is a pile.
    pile: Option<Pile>,
    shape: Shape,
    /// Where leaves lie once there are enough of them.
    blocks: Arc<Blocks>,
    /// Bytes of the current leaves and the index. Replaced leaves that are not freed yet do not
    /// count: a few per thread.
    leaves_bytes: AtomicUsize,
    tombstones: AtomicUsize,
}

/// A lower fence, the index's key.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Lower(Position<'static>);

impl<'a> Borrow<Position<'a>> for Lower {
    #[inline]
    fn borrow(&self) -> &Position<'a> {
        &self.0
    }
}

/// What the index has for each leaf.
struct Node {
    /// Held while the leaf is appended to or replaced.
    lock: RawMutex,
    /// Changed by the holder of `lock`, read by anyone with an epoch guard.
    leaf: AtomicPtr<Header>,
}

/// Where an entry is to go, as of a moment ago: the leaf may have been split since.
pub(crate) struct Found<'g, 'k> {
    key: &'k [u8],
    hash: u64,
    position: Position<'k>,
    /// The lower fence, and the node; `None` in a pile.
    node: Option<(&'g Position<'static>, &'g Node)>,
}

impl Found<'_, '_> {
    /// Begins to load the place in the leaf, which [`Memtable::find`] has begun to load.
    #[inline]
    pub fn prefetch(&self, guard: &Guard) {
        if let Some((_, node)) = self.node {
            node.leaf(guard).prefetch_room();
        }
    }
}

/// Keeps what is found in any memtable from being freed.
pub(crate) fn pin() -> Guard {
    epoch::pin()
}

/// About what a node takes in the index: key, value, counts, a tower of two, the allocator's word.
const NODE_BYTES: usize = size_of::<Lower>() + size_of::<Node>() + 8 + 16 + 8;

/// The byte of a key's hash that its slot's tag is.
#[inline]
fn tag(hash: u64) -> u8 {
    (hash >> 56) as u8
}

impl Memtable {
    /// An empty memtable that takes its memory from `pool`.
    pub fn new(pool: &Arc<ArenaPool>) -> Memtable {
        Memtable::with_shape(pool, Shape::of(pool.leaf_slots()))
    }

    /// An empty memtable in the form of a pile: entries are added at a fraction of the cost, a lookup takes
    /// a microsecond, and the first scan after an insertion sorts all of it.
    pub fn piled(pool: &Arc<ArenaPool>) -> Memtable {
        let pile = Pile::new((pool.leaf_slots() / LEAF_BLOCKS).max(1));
        Memtable { pile: Some(pile), ..Memtable::new(pool) }
    }

    fn with_shape(pool: &Arc<ArenaPool>, shape: Shape) -> Memtable {
        assert!(shape.slots_max >= 2 && (1..=TAIL_SLOTS_MAX).contains(&shape.tail_max));
        let index = SkipList::new(epoch::default_collector().clone());
        let (arena, filter) = (Arena::new(pool), Filter::new(pool.filters()));
        let (leaves_bytes, tombstones) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let blocks = Blocks::new(pool);
        let pile = None;
        let memtable =
            Memtable { index, arena, filter, pile, shape, blocks, leaves_bytes, tombstones };
        let room = shape.slots_max.min(8);
        let first = memtable.make_leaf(&Run::default(), 0..0, room, Position::END, SeqNo::ZERO);
        memtable.add_node(Lower(Position::START), Node::new(memtable.count(first)), &epoch::pin());
        memtable
    }

    /// Adds an entry. No entry with this key and sequence number may have been added before.
    ///
    /// A reader sees it if its read begins after this returns.
    ///
    /// # Panics
    /// If key or value is longer than the limits in `crate::key`.
    #[cfg(any(test, feature = "testing"))]
    pub fn insert(&self, key: &[u8], seqno: SeqNo, kind: EntryKind, value: &[u8]) {
        self.insert_within(key, seqno, kind, value, None);
    }

    /// As `insert`; versions that nobody needs by what is `around` may go at this occasion.
    pub fn insert_within(
        &self,
        key: &[u8],
        seqno: SeqNo,
        kind: EntryKind,
        value: &[u8],
        around: Option<&dyn Surroundings>,
    ) {
        let guard = &pin();
        self.insert_at(self.find(key, seqno, guard), kind, value, around, guard);
    }

    /// Looks up where an entry is to go, and begins to load what is there: whoever has several to
    /// insert finds the next ones before, so that their cache misses are waited for together.
    #[inline]
    pub fn find<'g, 'k>(&'g self, key: &'k [u8], seqno: SeqNo, guard: &'g Guard) -> Found<'g, 'k> {
        let hash = hash(key);
        let position = Position::new(key, seqno);
        if self.pile.is_some() {
            return Found { key, hash, position, node: None };
        }
        let (lower, node) = self.node_at(&position, guard);
        // They are rarely in the cache, and arrive while other things are being done.
        node.leaf(guard).prefetch_header();
        prefetch(self.filter.place(hash));
        Found { key, hash, position, node: Some((lower, node)) }
    }

    /// As `insert_within`, of the entry that was looked up, with the guard of then.
    pub fn insert_at<'g>(
        &'g self,
        found: Found<'g, '_>,
        kind: EntryKind,
        value: &[u8],
        around: Option<&dyn Surroundings>,
        guard: &'g Guard,
    ) {
        if kind == EntryKind::Delete {
            self.tombstones.fetch_add(1, Ordering::Relaxed);
        }
        let Found { key, hash, position, node } = found;
        let Some((mut lower, mut node)) = node else {
            let pile = self.pile.as_ref().expect("nothing else has no nodes");
            let entry = self.arena.write(key, kind, value);
            return pile.push(hash, position::seqno(position.rank), entry, &self.arena);
        };
        let slot = self.write(&position, key, kind, value);
        self.filter.add(hash, self.arena.held_bytes());
        race(RacePoint::Found);
        loop {
            let locked = node.lock();
            let leaf = node.leaf(guard);
            if position < *leaf.upper() {
                if !locked.append(leaf, slot, tag(hash), self.shape.tail_max) {
                    self.rebuild(&locked, lower, (slot, tag(hash)), around, guard);
                }
                return;
            }
            drop(locked);
            (lower, node) = self.node_at(&position, guard);
        }
    }

    /// Calls `f` with the versions of `key` that are not newer than `snapshot`, newest first,
    /// until it breaks. `hash` is that of the key. A `snapshot` that is registered is never stale.
    ///
    /// No lock is held meanwhile: `f` may call back into the memtable.
    pub fn visit<F>(
        &self,
        key: &[u8],
        hash: u64,
        snapshot: SeqNo,
        f: &mut F,
    ) -> ControlFlow<Stopped>
    where
        F: FnMut(SeqNo, EntryKind, ValueRef<'_>) -> ControlFlow<()>,
    {
        debug_assert_eq!(hash, crate::key::hash(key));
        let target = Position::new(key, snapshot);
        let mut visit = |slot: &Slot| {
            f(slot.seqno(), slot.kind(), ValueRef { bytes: slot.value(), owner: None })
        };
        if let Some(pile) = &self.pile {
            let visited = pile.versions(&target, hash).iter().try_for_each(visit);
            return visited.map_break(|()| Stopped::Enough);
        }
        if !self.filter.may_have(hash) {
            return ControlFlow::Continue(());
        }
        let guard = &epoch::pin();
        let mut from = target;
        loop {
            let leaf = self.leaf_at(&from, guard);
            if snapshot < leaf.collapsed() {
                return ControlFlow::Break(Stopped::Stale);
            }
            if leaf.visit(&target, tag(hash), &mut visit).is_break() {
                return ControlFlow::Break(Stopped::Enough);
            }
            if !leaf.upper().same_key(&target) {
                return ControlFlow::Continue(());
            }
            from = *leaf.upper();
        }
    }

    /// Begins to load what [`Memtable::visit`] looks at first, for the key of this hash.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch(self.filter.place(hash));
    }

    /// A cursor over everything; on no entry until a seek.
    ///
    /// After a seek it shows every entry whose insertion was complete when the seek began, and
    /// perhaps newer ones.
    pub fn cursor(self: &Arc<Self>) -> MemtableCursor {
        MemtableCursor::new(Arc::clone(self))
    }

    /// How large it is: entries, leaves and an estimate of the index. The filter, less than a hundredth
    /// of that, counts in its pool.
    pub fn bytes(&self) -> usize {
        self.arena.held_bytes() + self.leaves_bytes.load(Ordering::Relaxed) + self.pile_bytes()
    }

    fn pile_bytes(&self) -> usize {
        self.pile.as_ref().map_or(0, Pile::bytes)
    }

    /// Bytes of memory held, those of free blocks included: of uniform keys all leaves grow at once, and
    /// what they lay in before is free until they are split.
    pub fn held_bytes(&self) -> usize {
        let leaves_bytes = self.leaves_bytes.load(Ordering::Relaxed);
        self.arena.held_bytes() + leaves_bytes.max(self.blocks.held_bytes()) + self.pile_bytes()
    }

    /// How many entries were added, versions counted singly.
    pub fn entries(&self) -> usize {
        self.arena.entry_count()
    }

    /// How many of them are tombstones, those counted that were collapsed since.
    pub fn tombstones(&self) -> usize {
        self.tombstones.load(Ordering::Relaxed)
    }

    /// True if nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.arena.is_empty()
    }

    #[expect(unsafe_code, reason = "slots hold pointers into the arena")]
    #[inline]
    fn write(&self, position: &Position<'_>, key: &[u8], kind: EntryKind, value: &[u8]) -> Slot {
        let entry = self.arena.write(key, kind, value);
        // SAFETY: the entry has the key of `position`. Its arena lives as long as this memtable;
        // slots, and fences made of them, are only in the memtable's index and leaves, lent to
        // methods that borrow it, and in cursors, which own a reference to it. (Leaves that the
        // epoch frees after that are freed without a look at their slots.)
        unsafe { Slot::new(position, entry) }
    }

    /// The node with the greatest lower fence that is not after `at`, and that fence.
    #[inline]
    fn node_at<'g>(
        &'g self,
        at: &Position<'_>,
        guard: &'g Guard,
    ) -> (&'g Position<'static>, &'g Node) {
        let found = self.index.upper_bound(Bound::Included(at), guard);
        let found = found.expect("the first lower fence is Position::START");
        (&found.key().0, found.value())
    }

    /// The leaf in whose range `at` lies.
    #[inline]
    fn leaf_at<'g>(&'g self, at: &Position<'_>, guard: &'g Guard) -> LeafRef<'g> {
        loop {
            let (_, node) = self.node_at(at, guard);
            race(RacePoint::Found);
            let leaf = node.leaf(guard);
            leaf.prefetch_tags();
            if at < leaf.upper() {
                return leaf;
            }
        }
    }

    /// The leaf with what is just before `before`, which is not `Position::START`, and its lower
    /// fence. Its upper fence is at or after `before`.
    fn leaf_before<'g>(
        &'g self,
        before: &Position<'_>,
        guard: &'g Guard,
    ) -> (&'g Position<'static>, LeafRef<'g>) {
        loop {
            let (lower, node) = self.node_before(before, guard);
            race(RacePoint::Found);
            let leaf = node.leaf(guard);
            // If it is less, the leaf was split after the lookup, and the index has the other half.
            if before <= leaf.upper() {
                return (lower, leaf);
            }
        }
    }

    /// The node with the greatest lower fence that is before `before`, and that fence.
    fn node_before<'g>(
        &'g self,
        before: &Position<'_>,
        guard: &'g Guard,
    ) -> (&'g Position<'static>, &'g Node) {
        let found = self.index.upper_bound(Bound::Excluded(before), guard);
        let found = found.expect("the first lower fence is Position::START");
        (&found.key().0, found.value())
    }

    /// Replaces the full leaf of a locked node by one or two that have also `slot`, without what
    /// can be collapsed.
    #[cold]
    fn rebuild(
        &self,
        node: &Locked<'_>,
        lower: &Position<'static>,
        slot: (Slot, u8),
        around: Option<&dyn Surroundings>,
        guard: &Guard,
    ) {
        let old = node.leaf(guard);
        let (mut run, in_order) = old.sorted_with(Some(slot));
        let mut collapsed = old.collapsed();
        if let Some(around) = around
            && let Some((rest, horizon)) = self.collapse(&run, lower, old.upper(), around)
        {
            let shrunk = run.len() - rest.len() >= run.len() / MERGE_FRACTION;
            (run, collapsed) = (rest, collapsed.max(horizon));
            if shrunk && self.merge_left(node, lower, &run, collapsed, around, guard) {
                return;
            }
        }
        let len = run.len();
        if len <= self.shape.slots_max {
            let new = self.make_leaf(&run, 0..len, self.room(len), *old.upper(), collapsed);
            node.replace(self.count(new), guard);
        } else if in_order {
            // Keys arrive in order: leave the left leaf full, and expect more behind it.
            let capacity = self.shape.slots_max + self.shape.tail_max;
            self.split(node, &run, collapsed, [len - 1, len - 1], [len, capacity], guard);
        } else {
            let left = len / 2;
            let room = [self.room(left), self.room(len - left)];
            self.split(node, &run, collapsed, [left, room[0]], [len, room[1]], guard);
        }
        self.leaves_bytes.fetch_sub(old.bytes(), Ordering::Relaxed);
    }

    /// The capacity of a leaf that has `len` slots when it is made.
    fn room(&self, len: usize) -> usize {
        len + (len / 2).clamp(ROOM_MIN.min(self.shape.tail_max), self.shape.tail_max)
    }

    /// Puts `run`, what a locked node shall hold, into the node on its left, if that is not locked
    /// and has room, and removes the node. See "Writers". False if nothing was done.
    fn merge_left(
        &self,
        node: &Locked<'_>,
        lower: &Position<'static>,
        run: &Run,
        collapsed: SeqNo,
        around: &dyn Surroundings,
        guard: &Guard,
    ) -> bool {
        if *lower == Position::START {
            return false;
        }
        let (left_lower, left) = self.node_before(lower, guard);
        let Some(left) = left.try_lock() else { return false };
        let (left_leaf, old) = (left.leaf(guard), node.leaf(guard));
        // Otherwise it was split or merged away since.
        if left_leaf.upper() != lower {
            return false;
        }
        // Half, so that the next entries do not split it again.
        if left_leaf.lens().len + run.len() > self.shape.slots_max / 2 {
            return false;
        }
        let (mut all, _) = left_leaf.sorted_with(None);
        // A fence within a key stays for ever: a reader may have taken the versions on one side of it.
        if all.slots().last().is_some_and(|last| last.has_key_of(lower)) {
            return false;
        }
        let mut collapsed = collapsed.max(left_leaf.collapsed());
        if let Some((rest, horizon)) = self.collapse(&all, left_lower, lower, around) {
            (all, collapsed) = (rest, collapsed.max(horizon));
        }
        all.append(run);
        let len = all.len();
        let merged = self.make_leaf(&all, 0..len, self.room(len), *old.upper(), collapsed);
        left.replace(self.count(merged), guard);
        race(RacePoint::Merged);
        let entry = self.index.get(lower, guard).expect("only the holder of its lock removes it");
        assert!(entry.remove(), "only the holder of its lock removes it");
        race(RacePoint::Unlinked);
        let gone = NODE_BYTES + old.bytes() + left_leaf.bytes();
        let nothing = OwnedLeaf::new(&Run::default(), 0..0, 1, *lower, collapsed, None);
        node.replace(nothing, guard);
        self.leaves_bytes.fetch_sub(gone, Ordering::Relaxed);
        true
    }

    /// Divides `run` between the locked node and a new one; each half is given by the index of
    /// its end in `run` and by its capacity.
    fn split(
        &self,
        node: &Locked<'_>,
        run: &Run,
        collapsed: SeqNo,
        [left_end, left_capacity]: [usize; 2],
        [right_end, right_capacity]: [usize; 2],
        guard: &Guard,
    ) {
        let fence = run.fence(left_end);
        let upper = *node.leaf(guard).upper();
        let left = self.make_leaf(run, 0..left_end, left_capacity, fence, collapsed);
        let right = self.make_leaf(run, left_end..right_end, right_capacity, upper, collapsed);
        let (left, right) = (self.count(left), Node::new(self.count(right)));
        // Locked before anyone can see it, until the left half is in its place; see "Readers".
        let token = Some(right.lock.lock());
        let right = self.add_node(Lower(fence), right, guard);
        let right = Locked { node: right.value(), token };
        race(RacePoint::Linked);
        node.replace(left, guard);
        drop(right);
    }

    /// Adds a node to the index.
    fn add_node<'g>(
        &'g self,
        lower: Lower,
        node: Node,
        guard: &'g Guard,
    ) -> base::Entry<'g, 'g, Lower, Node> {
        let position = lower.0;
        self.leaves_bytes.fetch_add(NODE_BYTES, Ordering::Relaxed);
        self.index.insert(lower, node, guard).release(guard);
        let added = self.index.get(&position, guard);
        added.expect("nobody else can have its lock, without which it is not removed")
    }

    /// A leaf, as [`OwnedLeaf::new`] makes it, in a block if the memtable has enough for them.
    fn make_leaf(
        &self,
        run: &Run,
        range: Range<usize>,
        capacity: usize,
        upper: Position<'static>,
        collapsed: SeqNo,
    ) -> OwnedLeaf {
        let leaves_bytes = self.leaves_bytes.load(Ordering::Relaxed);
        let blocks = self.blocks.are_worth(leaves_bytes).then_some(&self.blocks);
        OwnedLeaf::new(run, range, capacity, upper, collapsed, blocks)
    }

    /// Counts a new leaf's bytes.
    fn count(&self, leaf: OwnedLeaf) -> OwnedLeaf {
        self.leaves_bytes.fetch_add(leaf.bytes(), Ordering::Relaxed);
        leaf
    }

    /// Panics if the invariants of the structure do not hold. No writer may be at work.
    #[cfg(test)]
    fn check(&self) {
        let guard = &epoch::pin();
        let mut expected = Position::START;
        let mut bytes = 0;
        for entry in self.index.iter(guard) {
            assert_eq!(entry.key().0, expected, "a lower fence is the upper fence before it");
            let leaf = entry.value().leaf(guard);
            leaf.check(&expected);
            assert!(expected < *leaf.upper());
            expected = *leaf.upper();
            bytes += leaf.bytes() + NODE_BYTES;
        }
        assert_eq!(expected, Position::END);
        assert_eq!(bytes, self.leaves_bytes.load(Ordering::Relaxed));
    }
}

/// Where threads may overtake each other; tests make them do so here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RacePoint {
    /// A node was found; its leaf is not loaded yet, its lock not taken.
    Found,
    /// A split has put the right node into the index; the left node still has the whole leaf.
    Linked,
    /// A merge has put everything into the left node; the right one is still in the index.
    Merged,
    /// A merge has removed the right node; it still has its leaf.
    Unlinked,
}

#[inline]
fn race(_point: RacePoint) {
    #[cfg(test)]
    tests::race(_point);
}

impl fmt::Debug for Memtable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memtable")
            .field("entries", &self.entries())
            .field("leaves", &self.index.len())
            .field("bytes", &self.bytes())
            .finish()
    }
}

impl Node {
    fn new(leaf: OwnedLeaf) -> Node {
        Node { lock: RawMutex::INIT, leaf: AtomicPtr::new(leaf.into_raw()) }
    }

    #[expect(unsafe_code, reason = "the leaf is replaced while others read it")]
    #[inline]
    fn leaf<'g>(&self, _guard: &'g Guard) -> LeafRef<'g> {
        // Acquire: what the leaf was made of is seen, and so is the node at its upper fence.
        let leaf = self.leaf.load(Ordering::Acquire);
        // SAFETY: `replace` retires a leaf by epoch after it has been swapped out, and it was
        // loaded under this guard, so it is not freed before the guard is dropped. The node itself
        // is dropped when nobody reads: with the memtable, or by epoch after its removal.
        unsafe { LeafRef::from_raw(leaf) }
    }

    #[inline]
    fn lock(&self) -> Locked<'_> {
        Locked { node: self, token: Some(self.lock.lock()) }
    }

    fn try_lock(&self) -> Option<Locked<'_>> {
        let token = self.lock.try_lock()?;
        Some(Locked { node: self, token: Some(token) })
    }
}

#[expect(unsafe_code, reason = "the node owns its leaf through a raw pointer")]
impl Drop for Node {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `OwnedLeaf::into_raw`.
        let leaf = unsafe { LeafRef::from_raw(*self.leaf.get_mut()) };
        // SAFETY: the node is dropped with the memtable, or by the epoch after it was removed from
        // the index, so nobody reads the leaf; of leaves only those that were swapped out are
        // freed by the epoch.
        unsafe { leaf.free() };
    }
}

/// A node whose lock this thread holds, until the drop.
struct Locked<'a> {
    node: &'a Node,
    /// What `lock` gave, for `unlock`; there until the drop.
    token: Option<<RawMutex as lock_api::RawMutex>::Guard>,
}

impl Locked<'_> {
    #[inline]
    fn leaf<'g>(&self, guard: &'g Guard) -> LeafRef<'g> {
        self.node.leaf(guard)
    }

    #[expect(unsafe_code, reason = "only the holder of the lock may append")]
    #[inline]
    fn append(&self, leaf: LeafRef<'_>, slot: Slot, tag: u8, tail_max: usize) -> bool {
        // SAFETY: the lock is held by `self`; the caller compared the slot with the fence, which
        // `append` asserts in debug builds.
        unsafe { leaf.append(slot, tag, tail_max) }
    }

    /// Swaps a new leaf in; the old one is freed once nobody can be reading it.
    #[expect(unsafe_code, reason = "leaves are freed by hand")]
    fn replace(&self, new: OwnedLeaf, guard: &Guard) {
        // Release: whoever loads the leaf sees what is in it, and the node at its upper fence.
        let old = self.node.leaf.swap(new.into_raw(), Ordering::AcqRel);
        let free = move || {
            // SAFETY: the pointer came from `OwnedLeaf::into_raw`.
            let old = unsafe { LeafRef::from_raw(old) };
            // SAFETY: run when no guard is left that was there at the swap; `old` was swapped out
            // by the lock's holder, so it is retired once.
            unsafe { old.free() };
        };
        // SAFETY: the closure owns the leaf, and what it frees has no thread affinity.
        unsafe { guard.defer_unchecked(free) };
    }
}

#[expect(unsafe_code, reason = "a raw lock is unlocked by hand")]
impl Drop for Locked<'_> {
    #[inline]
    fn drop(&mut self) {
        let token = self.token.take().expect("there until the drop");
        // SAFETY: the token is of this lock: whoever makes a `Locked` has just taken it.
        unsafe { self.node.lock.unlock(token) };
    }
}
