//! Cursors: seek, next and prev over sorted entries, lending what they stand on.
//!
//! - `mod`: the trait, and the value that a cursor or a point read lends.
//! - `merge`: several cursors as one.
//! - `upto`: a cursor without the newest entries.

pub(crate) mod merge;
pub(crate) mod upto;

use bytes::Bytes;

use crate::error::Result;
use crate::key::{self, EntryKind, SeqNo};
use crate::slice::Slice;

/// A value lent by a memtable or a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ValueRef<'a> {
    /// The value's bytes.
    pub bytes: &'a [u8],
    /// What `bytes` lies in, if it may be kept alive by a reference count (a table's mapping or
    /// a cached block); `None` if it must be copied out (a memtable's arena).
    pub owner: Option<&'a Bytes>,
}

impl ValueRef<'_> {
    /// The value for the user: shares the owner, or copies.
    pub fn to_slice(self) -> Slice {
        match self.owner {
            Some(owner) if !self.bytes.is_empty() => Slice::from(owner.slice_ref(self.bytes)),
            _ => Slice::from(self.bytes),
        }
    }
}

/// A position in entries sorted by user key ascending, then sequence number descending; or off
/// either end, when `valid()` is false.
///
/// `key`, `seqno`, `kind` and `value` may be called only while `valid()`; `next` and `prev` too.
/// Moving off one end leaves the cursor invalid until the next seek. After an error the cursor is
/// invalid.
pub(crate) trait Cursor {
    /// True while the cursor stands on an entry.
    fn valid(&self) -> bool;
    /// Goes to the first entry.
    fn seek_to_first(&mut self) -> Result<()>;
    /// Goes to the last entry.
    fn seek_to_last(&mut self) -> Result<()>;
    /// Goes to the first entry at or after (key, seqno) in entry order. With `SeqNo::MAX` that
    /// is the newest version of the first key that is not less than `key`.
    fn seek(&mut self, key: &[u8], seqno: SeqNo) -> Result<()>;
    /// Says that [`Cursor::seek`] or [`Cursor::seek_before`] to here comes next, after those of other
    /// cursors: asks for the memory that it will read. Moves nothing.
    fn announce(&mut self, _key: &[u8], _seqno: SeqNo) {}
    /// Goes to the last entry before (key, seqno) in entry order. With `SeqNo::MAX` that is the
    /// oldest version of the last key that is less than `key`.
    fn seek_before(&mut self, key: &[u8], seqno: SeqNo) -> Result<()>;
    /// Goes to the next entry.
    fn next(&mut self) -> Result<()>;
    /// Goes to the entry before.
    fn prev(&mut self) -> Result<()>;
    /// The user key. Valid until the cursor moves.
    fn key(&self) -> &[u8];
    /// The first 16 bytes of the key as a number: [`key::long_head`].
    #[inline]
    fn head(&self) -> u128 {
        key::long_head(self.key())
    }
    /// The entry's sequence number.
    fn seqno(&self) -> SeqNo;
    /// What the entry does.
    fn kind(&self) -> EntryKind;
    /// The value or operand; empty for a tombstone. Valid until the cursor moves.
    fn value(&self) -> ValueRef<'_>;
}

/// For merging cursors of several kinds.
impl Cursor for Box<dyn Cursor> {
    fn valid(&self) -> bool {
        (**self).valid()
    }
    fn seek_to_first(&mut self) -> Result<()> {
        (**self).seek_to_first()
    }
    fn seek_to_last(&mut self) -> Result<()> {
        (**self).seek_to_last()
    }
    fn seek(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        (**self).seek(key, seqno)
    }
    fn seek_before(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        (**self).seek_before(key, seqno)
    }
    fn next(&mut self) -> Result<()> {
        (**self).next()
    }
    fn prev(&mut self) -> Result<()> {
        (**self).prev()
    }
    fn key(&self) -> &[u8] {
        (**self).key()
    }
    fn head(&self) -> u128 {
        (**self).head()
    }
    fn seqno(&self) -> SeqNo {
        (**self).seqno()
    }
    fn kind(&self) -> EntryKind {
        (**self).kind()
    }
    fn value(&self) -> ValueRef<'_> {
        (**self).value()
    }
}
