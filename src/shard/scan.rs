//! Scans over several shards: their cursors as one, without the keys that a shard has but does not
//! own.

use std::fmt;
use std::sync::Arc;

use crate::cursor::merge::MergeCursor;
use crate::cursor::{Cursor as _, ValueRef};
use crate::error::Result;
use crate::key::{EntryKind, SeqNo};
use crate::read::iter::{Ends, Entry, KeyCursor, Pinned, PinnedTree};
use crate::read::range::KeyRange;
use crate::read::scan::Cursor;
use crate::shard::map::SlotMap;
use crate::shard::partition::Partition;
use crate::shard::slots::ShardIndex;

/// The live keys of one shard, as far as they are its own. A key lies in one shard only, so their
/// merge never has to tell two of them apart by number.
struct Source {
    cursor: Cursor,
    own: Option<Own>,
}

/// What of a shard's keys is its own, while it has others.
#[derive(Clone)]
pub(crate) struct Own {
    pub map: Arc<SlotMap>,
    pub partition: Partition,
    pub shard: ShardIndex,
}

impl Source {
    fn is_own(&self) -> Result<bool> {
        let Some(Own { map, partition, shard }) = &self.own else { return Ok(true) };
        let slot = partition.slot(self.cursor.key(), map.slot_count())?;
        Ok(map.owner(slot) == *shard)
    }

    fn skip_forward(&mut self) -> Result<()> {
        while self.cursor.valid() && !self.is_own()? {
            self.cursor.next()?;
        }
        Ok(())
    }

    fn skip_backward(&mut self) -> Result<()> {
        while self.cursor.valid() && !self.is_own()? {
            self.cursor.prev()?;
        }
        Ok(())
    }
}

impl crate::cursor::Cursor for Source {
    #[inline]
    fn valid(&self) -> bool {
        self.cursor.valid()
    }
    fn seek_to_first(&mut self) -> Result<()> {
        self.cursor.seek_to_first()?;
        self.skip_forward()
    }
    fn seek_to_last(&mut self) -> Result<()> {
        self.cursor.seek_to_last()?;
        self.skip_backward()
    }
    fn seek(&mut self, key: &[u8], _: SeqNo) -> Result<()> {
        self.cursor.seek(key)?;
        self.skip_forward()
    }
    fn seek_before(&mut self, key: &[u8], _: SeqNo) -> Result<()> {
        self.cursor.seek_before(key)?;
        self.skip_backward()
    }
    #[inline]
    fn next(&mut self) -> Result<()> {
        self.cursor.next()?;
        self.skip_forward()
    }
    #[inline]
    fn prev(&mut self) -> Result<()> {
        self.cursor.prev()?;
        self.skip_backward()
    }
    #[inline]
    fn key(&self) -> &[u8] {
        self.cursor.key()
    }
    #[inline]
    fn seqno(&self) -> SeqNo {
        SeqNo::ZERO
    }
    #[inline]
    fn kind(&self) -> EntryKind {
        EntryKind::Put
    }
    #[inline]
    fn value(&self) -> ValueRef<'_> {
        self.cursor.value_ref()
    }
}

/// A cursor over the live keys of a keyspace in all shards, as they were when it was made. See
/// [`Cursor`].
pub struct ShardedCursor {
    merge: MergeCursor<Source>,
}

impl ShardedCursor {
    /// True while the cursor stands on a key.
    #[inline]
    #[must_use]
    pub fn valid(&self) -> bool {
        self.merge.valid()
    }

    /// The key. Only while [`ShardedCursor::valid`].
    #[inline]
    #[must_use]
    pub fn key(&self) -> &[u8] {
        assert!(self.merge.valid(), "the cursor is not on a key: look at valid() first");
        self.merge.key()
    }

    /// The value. Only while [`ShardedCursor::valid`].
    #[inline]
    #[must_use]
    pub fn value(&self) -> &[u8] {
        self.value_ref().bytes
    }

    fn value_ref(&self) -> ValueRef<'_> {
        assert!(self.merge.valid(), "the cursor is not on a key: look at valid() first");
        self.merge.value()
    }

    /// Goes to the first key.
    ///
    /// # Errors
    /// As [`Cursor::seek_to_first`]. The cursor is then invalid.
    pub fn seek_to_first(&mut self) -> Result<()> {
        self.merge.seek_to_first()
    }

    /// Goes to the last key.
    ///
    /// # Errors
    /// As [`ShardedCursor::seek_to_first`].
    pub fn seek_to_last(&mut self) -> Result<()> {
        self.merge.seek_to_last()
    }

    /// Goes to the first key that is not less than `key`.
    ///
    /// # Errors
    /// As [`ShardedCursor::seek_to_first`].
    pub fn seek(&mut self, key: impl AsRef<[u8]>) -> Result<()> {
        self.merge.seek(key.as_ref(), SeqNo::MAX)
    }

    /// Goes to the last key that is less than `key`.
    ///
    /// # Errors
    /// As [`ShardedCursor::seek_to_first`].
    pub fn seek_before(&mut self, key: impl AsRef<[u8]>) -> Result<()> {
        self.merge.seek_before(key.as_ref(), SeqNo::MAX)
    }

    /// Goes to the next key. Only while [`ShardedCursor::valid`].
    ///
    /// # Errors
    /// As [`ShardedCursor::seek_to_first`].
    #[expect(clippy::should_implement_trait, reason = "a lending cursor is no iterator")]
    pub fn next(&mut self) -> Result<()> {
        assert!(self.merge.valid(), "the cursor is not on a key: look at valid() first");
        self.merge.next()
    }

    /// Goes to the key before. Only while [`ShardedCursor::valid`].
    ///
    /// # Errors
    /// As [`ShardedCursor::seek_to_first`].
    pub fn prev(&mut self) -> Result<()> {
        assert!(self.merge.valid(), "the cursor is not on a key: look at valid() first");
        self.merge.prev()
    }
}

impl KeyCursor for ShardedCursor {
    fn valid(&self) -> bool {
        self.valid()
    }
    fn key(&self) -> &[u8] {
        self.key()
    }
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
    fn next(&mut self) -> Result<()> {
        self.next()
    }
    fn prev(&mut self) -> Result<()> {
        self.prev()
    }
}

/// One moment of a keyspace in some shards: of each what it sees, and what of that is its own.
pub(crate) struct PinnedShards(pub Vec<(PinnedTree, Option<Own>)>);

impl Pinned for PinnedShards {
    type Cursor = ShardedCursor;

    fn open(&self, range: &KeyRange) -> ShardedCursor {
        let source = |(tree, own): &(PinnedTree, Option<Own>)| Source {
            cursor: tree.open(range),
            own: own.clone(),
        };
        ShardedCursor { merge: MergeCursor::new(self.0.iter().map(source)) }
    }
}

/// Keys and values of a range in all shards, in the order of keys, as they were when it was made;
/// from both ends.
///
/// Yields an error once, where it occurs, and then ends.
pub struct ShardedIter(Ends<PinnedShards>);

impl ShardedIter {
    pub(crate) fn new(pinned: PinnedShards, range: KeyRange) -> ShardedIter {
        ShardedIter(Ends::new(pinned, range))
    }
}

impl Iterator for ShardedIter {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        self.0.next()
    }
}

impl DoubleEndedIterator for ShardedIter {
    fn next_back(&mut self) -> Option<Result<Entry>> {
        self.0.next_back()
    }
}

impl std::iter::FusedIterator for ShardedIter {}

impl fmt::Debug for ShardedCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardedCursor(valid: {})", self.valid())
    }
}

impl fmt::Debug for ShardedIter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShardedIter")
    }
}
