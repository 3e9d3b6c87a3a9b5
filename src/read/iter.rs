//! A double-ended iterator over a range of keys: two cursors that come towards each other.

use std::ops::Bound;
use std::sync::Arc;

use crate::cursor::ValueRef;
use crate::error::Result;
use crate::read::range::KeyRange;
use crate::read::scan::Cursor;
use crate::slice::Slice;
use crate::snapshots::Reading;
use crate::tree::{Tree, View};

/// A cursor over keys that have values: what [`Ends`] is made of.
pub(crate) trait KeyCursor {
    fn valid(&self) -> bool;
    fn key(&self) -> &[u8];
    fn value_ref(&self) -> ValueRef<'_>;
    fn seek_to_first(&mut self) -> Result<()>;
    fn seek_to_last(&mut self) -> Result<()>;
    fn seek(&mut self, key: &[u8]) -> Result<()>;
    fn seek_before(&mut self, key: &[u8]) -> Result<()>;
    fn next(&mut self) -> Result<()>;
    fn prev(&mut self) -> Result<()>;
}

impl KeyCursor for Cursor {
    #[inline]
    fn valid(&self) -> bool {
        self.valid()
    }
    #[inline]
    fn key(&self) -> &[u8] {
        self.key()
    }
    #[inline]
    fn value_ref(&self) -> ValueRef<'_> {
        self.value_ref()
    }
    fn seek_to_first(&mut self) -> Result<()> {
        self.seek_to_first()
    }
    fn seek_to_last(&mut self) -> Result<()> {
        self.seek_to_last()
    }
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.seek(key)
    }
    fn seek_before(&mut self, key: &[u8]) -> Result<()> {
        self.seek_before(key)
    }
    #[inline]
    fn next(&mut self) -> Result<()> {
        self.next()
    }
    #[inline]
    fn prev(&mut self) -> Result<()> {
        self.prev()
    }
}

/// What the two ends of an iterator read from: one moment of something sorted.
pub(crate) trait Pinned {
    type Cursor: KeyCursor;
    /// A cursor for keys of this range, not yet on any.
    fn open(&self, range: &KeyRange) -> Self::Cursor;
}

/// The keys of a range with their values, taken from both ends.
pub(crate) struct Ends<P: Pinned> {
    source: P,
    range: KeyRange,
    front: End<P::Cursor>,
    back: End<P::Cursor>,
    done: bool,
}

/// One end of an iterator: made at its first use.
struct End<C> {
    cursor: Option<Box<C>>,
    /// The key it yielded last.
    last: Option<Slice>,
}

impl<C> Default for End<C> {
    fn default() -> End<C> {
        End { cursor: None, last: None }
    }
}

impl<P: Pinned> Ends<P> {
    pub fn new(source: P, range: KeyRange) -> Ends<P> {
        Ends { source, range, front: End::default(), back: End::default(), done: false }
    }

    fn open(&self) -> Box<P::Cursor> {
        Box::new(self.source.open(&self.range))
    }

    fn step_front(&mut self) -> Result<Option<Entry>> {
        let mut cursor = match self.front.cursor.take() {
            Some(mut cursor) => {
                cursor.next()?;
                cursor
            }
            None => {
                let mut cursor = self.open();
                match &self.range.lower {
                    Bound::Unbounded => cursor.seek_to_first()?,
                    Bound::Included(lower) | Bound::Excluded(lower) => cursor.seek(lower)?,
                }
                cursor
            }
        };
        // The tables were chosen without an excluded bound, so what is found of that key itself means
        // nothing; in a scan over shards more than one may seem to have it.
        while cursor.valid() && !self.range.is_above_lower(cursor.key()) {
            cursor.next()?;
        }
        let met = |key: &[u8]| self.back.last.as_ref().is_some_and(|last| key >= &last[..]);
        if !cursor.valid() || !self.range.is_below_upper(cursor.key()) || met(cursor.key()) {
            return Ok(None);
        }
        let key = Slice::from(cursor.key());
        let value = cursor.value_ref().to_slice();
        self.front = End { cursor: Some(cursor), last: Some(key.clone()) };
        Ok(Some((key, value)))
    }

    fn step_back(&mut self) -> Result<Option<Entry>> {
        let cursor = match self.back.cursor.take() {
            Some(mut cursor) => {
                cursor.prev()?;
                cursor
            }
            None => {
                let mut cursor = self.open();
                match &self.range.upper {
                    Bound::Unbounded => cursor.seek_to_last()?,
                    Bound::Excluded(upper) => cursor.seek_before(upper)?,
                    Bound::Included(upper) => {
                        // The last key before the one that follows `upper` at once.
                        let after = [upper.as_slice(), &[0]].concat();
                        cursor.seek_before(&after)?;
                    }
                }
                cursor
            }
        };
        let met = |key: &[u8]| self.front.last.as_ref().is_some_and(|last| key <= &last[..]);
        if !cursor.valid() || !self.range.is_above_lower(cursor.key()) || met(cursor.key()) {
            return Ok(None);
        }
        let key = Slice::from(cursor.key());
        let value = cursor.value_ref().to_slice();
        self.back = End { cursor: Some(cursor), last: Some(key.clone()) };
        Ok(Some((key, value)))
    }

    fn finish(&mut self, step: Result<Option<Entry>>) -> Option<Result<Entry>> {
        let item = step.transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

impl<P: Pinned> Iterator for Ends<P> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        if self.done {
            return None;
        }
        let step = self.step_front();
        self.finish(step)
    }
}

impl<P: Pinned> DoubleEndedIterator for Ends<P> {
    fn next_back(&mut self) -> Option<Result<Entry>> {
        if self.done {
            return None;
        }
        let step = self.step_back();
        self.finish(step)
    }
}

/// Keys and values of a range, as they were when it was made; from both ends.
///
/// Yields an error once, where it occurs, and then ends.
pub struct Iter(Ends<PinnedTree>);

/// One moment of a keyspace. Keeps no database open.
pub(crate) struct PinnedTree {
    pub tree: Arc<Tree>,
    pub view: Arc<View>,
    pub reading: Arc<Reading>,
}

impl Pinned for PinnedTree {
    type Cursor = Cursor;

    fn open(&self, range: &KeyRange) -> Cursor {
        Cursor::new(self.tree.clone(), self.view.clone(), self.reading.clone(), range)
    }
}

/// A key and its value.
pub type Entry = (Slice, Slice);

impl Iter {
    pub(crate) fn new(
        tree: Arc<Tree>,
        view: Arc<View>,
        reading: Arc<Reading>,
        range: KeyRange,
    ) -> Iter {
        Iter(Ends::new(PinnedTree { tree, view, reading }, range))
    }
}

impl Iterator for Iter {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        self.0.next()
    }
}

impl DoubleEndedIterator for Iter {
    fn next_back(&mut self) -> Option<Result<Entry>> {
        self.0.next_back()
    }
}

impl std::iter::FusedIterator for Iter {}
