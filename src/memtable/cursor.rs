//! Walks a memtable in both directions, over a copy of one leaf's slots at a time.
//!
//! The cursor holds no epoch guard between calls, so that one that is left standing keeps no
//! replaced leaf alive; it copies the slots it will stand on next into a *window*, in order, and
//! reads the entries in the arena. A window is complete between two positions, and the next one
//! begins exactly where it ends, so every entry is shown once, however leaves are split meanwhile.
//! Windows start small, so that a seek copies little, and grow to whole leaves. Of a pile they are taken
//! from a sorted copy that was made at the seek.

use std::ops::Range;
use std::sync::Arc;

use crossbeam_epoch as epoch;

use crate::cursor::{Cursor, ValueRef};
use crate::error::Result;
use crate::key::{EntryKind, SeqNo};
use crate::memtable::Memtable;
use crate::memtable::leaf::Slot;
use crate::memtable::pile::{Pile, Sorted};
use crate::memtable::position::Position;

/// How many sorted slots the first window after a seek takes.
const FIRST_WINDOW_SLOTS: usize = 16;
/// The next one takes so many times as many,
const WINDOW_GROWTH: usize = 4;
/// up to more than a leaf has.
const WINDOW_SLOTS_MAX: usize = 1 << 10;
/// Entries are loaded into the cache so many steps ahead.
const PREFETCH_AHEAD: usize = 6;

/// A [`Cursor`] over a memtable. Its operations never fail.
#[derive(Debug)]
pub(crate) struct MemtableCursor {
    memtable: Arc<Memtable>,
    /// Of a pile: everything in it, in order, since the last seek.
    sorted: Option<Arc<Sorted>>,
    /// Slots in order; all that were there between `covered.start` and `covered.end`.
    window: Vec<Slot>,
    covered: Range<Position<'static>>,
    /// The slot that the cursor stands on; past the end of `window` if it stands on none.
    index: usize,
    /// How many sorted slots the next window takes.
    window_slots: usize,
}

impl MemtableCursor {
    pub(super) fn new(memtable: Arc<Memtable>) -> MemtableCursor {
        MemtableCursor {
            memtable,
            sorted: None,
            window: Vec::new(),
            covered: Position::START..Position::START,
            index: 0,
            window_slots: FIRST_WINDOW_SLOTS,
        }
    }

    /// Begins a seek.
    fn begin(&mut self) {
        self.window_slots = FIRST_WINDOW_SLOTS;
        self.sorted = self.memtable.pile.as_ref().map(Pile::sorted);
    }

    /// Stands on the first entry at or after `from`.
    fn enter_forward(&mut self, from: &Position<'_>) {
        let guard = &epoch::pin();
        let mut from = *from;
        self.index = 0;
        self.window.clear();
        while from != Position::END {
            let (count, window) = (self.window_slots, &mut self.window);
            let upper = match &self.sorted {
                Some(sorted) => sorted.read_forward(&from, count, window),
                None => self.memtable.leaf_at(&from, guard).read_forward(&from, count, window),
            };
            if let Some(first) = self.window.first() {
                self.covered = first.position()..upper;
                break;
            }
            from = upper;
        }
        self.window_slots = (self.window_slots * WINDOW_GROWTH).min(WINDOW_SLOTS_MAX);
        self.window.iter().take(PREFETCH_AHEAD).for_each(Slot::prefetch);
    }

    /// Stands on the last entry before `before`.
    fn enter_backward(&mut self, before: &Position<'_>) {
        let guard = &epoch::pin();
        let mut before = *before;
        self.window.clear();
        while before != Position::START {
            let (count, window) = (self.window_slots, &mut self.window);
            let lower = match &self.sorted {
                Some(sorted) => sorted.read_backward(&before, count, window),
                None => {
                    let (lower, leaf) = self.memtable.leaf_before(&before, guard);
                    leaf.read_backward(lower, &before, count, window)
                }
            };
            if let Some(last) = self.window.last() {
                self.covered = lower..last.position().successor();
                break;
            }
            before = lower;
        }
        self.index = self.window.len().wrapping_sub(1);
        self.window_slots = (self.window_slots * WINDOW_GROWTH).min(WINDOW_SLOTS_MAX);
        self.window.iter().rev().take(PREFETCH_AHEAD).for_each(Slot::prefetch);
    }

    fn slot(&self) -> &Slot {
        &self.window[self.index]
    }
}

impl Cursor for MemtableCursor {
    #[inline]
    fn valid(&self) -> bool {
        self.index < self.window.len()
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.begin();
        self.enter_forward(&Position::START);
        Ok(())
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.begin();
        self.enter_backward(&Position::END);
        Ok(())
    }

    fn seek(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        self.begin();
        self.enter_forward(&Position::new(key, seqno));
        Ok(())
    }

    fn seek_before(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        self.begin();
        self.enter_backward(&Position::new(key, seqno));
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        assert!(self.valid(), "next() on a cursor that stands on no entry");
        self.index += 1;
        if let Some(ahead) = self.window.get(self.index + PREFETCH_AHEAD) {
            ahead.prefetch();
        } else if self.index == self.window.len() {
            let end = self.covered.end;
            self.enter_forward(&end);
        }
        Ok(())
    }

    #[inline]
    fn prev(&mut self) -> Result<()> {
        assert!(self.valid(), "prev() on a cursor that stands on no entry");
        if self.index == 0 {
            let start = self.covered.start;
            self.enter_backward(&start);
            return Ok(());
        }
        self.index -= 1;
        if let Some(ahead) = self.index.checked_sub(PREFETCH_AHEAD) {
            self.window[ahead].prefetch();
        }
        Ok(())
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.slot().key()
    }

    #[inline]
    fn seqno(&self) -> SeqNo {
        self.slot().seqno()
    }

    #[inline]
    fn kind(&self) -> EntryKind {
        self.slot().kind()
    }

    #[inline]
    fn value(&self) -> ValueRef<'_> {
        ValueRef { bytes: self.slot().value(), owner: None }
    }
}
