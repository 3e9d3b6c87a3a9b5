//! Scans: a cursor over the live keys of a keyspace at a snapshot.
//!
//! Underneath lie all versions of all keys, in entry order (see [`crate::key`]), merged from
//! memtables and runs. Forward, a key's newest version comes first: the first one that the
//! snapshot sees decides, and the rest are skipped. Backward, the oldest comes first, so a key is
//! resolved only once all its versions were passed.
//!
//! ```text
//!   position     the merge cursor stands                       key and value lie
//!   Off          anywhere                                      nowhere
//!   Lent         on the version that decided                   in the merge cursor
//!   Ahead        after the operands that were folded           in `key` and `value`
//!   Behind       on an entry before all versions of the key    in `key` and `value`
//! ```

use std::sync::Arc;

use bytes::Bytes;

use crate::cursor::merge::MergeCursor;
use crate::cursor::{Cursor as _, ValueRef};
use crate::error::Result;
use crate::key::{EntryKind, LONG_HEAD_BYTES, SeqNo};
use crate::memtable::MemtableCursor;
use crate::operator::Merged;
use crate::read::get::fold;
use crate::read::range::KeyRange;
use crate::slice::Slice;
use crate::snapshots::Reading;
use crate::tree::{Tree, View};
use crate::version::RunCursor;

/// Versions of one key that are stepped over before a seek is cheaper.
const SKIP_COUNT_MAX: usize = 16;
/// A seek that steps over fewer tombstones does not suffer, and says nothing of it.
const STEPPED_COUNT_MIN: u64 = 8;
/// A value up to this size is copied when a backward scan passes it; larger ones are shared.
const COPY_BYTES_MAX: usize = 4 << 10;

/// One sorted source of entries.
#[expect(
    clippy::large_enum_variant,
    reason = "they lie in one vector: a box each is a malloc a seek"
)]
enum Source {
    Memtable(MemtableCursor),
    Run(RunCursor),
}

macro_rules! delegate {
    ($self:ident, $cursor:ident => $call:expr) => {
        match $self {
            Source::Memtable($cursor) => $call,
            Source::Run($cursor) => $call,
        }
    };
}

impl crate::cursor::Cursor for Source {
    fn valid(&self) -> bool {
        delegate!(self, cursor => cursor.valid())
    }
    fn seek_to_first(&mut self) -> Result<()> {
        delegate!(self, cursor => cursor.seek_to_first())
    }
    fn seek_to_last(&mut self) -> Result<()> {
        delegate!(self, cursor => cursor.seek_to_last())
    }
    fn seek(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        delegate!(self, cursor => cursor.seek(key, seqno))
    }
    fn announce(&mut self, key: &[u8], seqno: SeqNo) {
        delegate!(self, cursor => cursor.announce(key, seqno));
    }
    fn seek_before(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        delegate!(self, cursor => cursor.seek_before(key, seqno))
    }
    #[inline]
    fn next(&mut self) -> Result<()> {
        delegate!(self, cursor => cursor.next())
    }
    #[inline]
    fn prev(&mut self) -> Result<()> {
        delegate!(self, cursor => cursor.prev())
    }
    #[inline]
    fn key(&self) -> &[u8] {
        delegate!(self, cursor => cursor.key())
    }
    #[inline]
    fn head(&self) -> u128 {
        delegate!(self, cursor => cursor.head())
    }
    #[inline]
    fn seqno(&self) -> SeqNo {
        delegate!(self, cursor => cursor.seqno())
    }
    #[inline]
    fn kind(&self) -> EntryKind {
        delegate!(self, cursor => cursor.kind())
    }
    #[inline]
    fn value(&self) -> ValueRef<'_> {
        delegate!(self, cursor => cursor.value())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Off,
    Lent,
    Ahead,
    Behind,
}

/// A cursor over the live keys of a keyspace, as they were when it was made.
///
/// It lends keys and values without copying them. `key` and `value` may be called only while
/// [`Cursor::valid`]; moving off either end makes it invalid until the next seek.
///
/// A cursor keeps the memtables and tables that it reads from going away; let go of it when it is
/// not needed any more.
pub struct Cursor {
    tree: Arc<Tree>,
    /// Keeps memtables and tables alive. Dropped after `merge`.
    merge: MergeCursor<Source>,
    _view: Arc<View>,
    snapshot: SeqNo,
    /// Keeps what the snapshot sees in the memtables.
    _reading: Arc<Reading>,
    position: Position,
    key: Vec<u8>,
    value: Saved,
    /// Tombstones that were stepped over since the last seek.
    stepped: u64,
}

/// A key that the merge cursor has passed.
enum Passed {
    /// Its head is all of it.
    Short { head: u128, bytes: usize },
    /// It lies in the cursor's `key`.
    Saved,
}

/// A value that the merge cursor has passed.
enum Saved {
    Copied(Vec<u8>),
    Shared(Bytes),
}

impl Saved {
    fn save(&mut self, value: ValueRef<'_>) {
        if let Some(owner) = value.owner
            && value.bytes.len() > COPY_BYTES_MAX
        {
            *self = Saved::Shared(owner.slice_ref(value.bytes));
            return;
        }
        match self {
            Saved::Copied(copy) => {
                copy.clear();
                copy.extend_from_slice(value.bytes);
            }
            Saved::Shared(_) => *self = Saved::Copied(value.bytes.to_vec()),
        }
    }

    fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Saved::Copied(copy) => ValueRef { bytes: copy, owner: None },
            Saved::Shared(bytes) => ValueRef { bytes, owner: Some(bytes) },
        }
    }
}

impl Cursor {
    pub(crate) fn new(
        tree: Arc<Tree>,
        view: Arc<View>,
        reading: Arc<Reading>,
        range: &KeyRange,
    ) -> Cursor {
        let frozen = view.frozen.iter().map(|frozen| &frozen.memtable);
        let memtables = std::iter::once(&view.active).chain(frozen).filter(|m| !m.is_empty());
        let memtables = memtables.map(|memtable| Source::Memtable(memtable.cursor()));
        let runs = view.version.cursors(range.bounds()).map(Source::Run);
        let merge = MergeCursor::new(memtables.chain(runs));
        let (key, value) = (Vec::new(), Saved::Copied(Vec::new()));
        let snapshot = reading.seqno;
        Cursor {
            tree,
            merge,
            _view: view,
            snapshot,
            _reading: reading,
            position: Position::Off,
            key,
            value,
            stepped: 0,
        }
    }

    /// Says what was stepped over since the last seek.
    fn tell_stepped(&mut self) {
        let stepped = std::mem::take(&mut self.stepped);
        if stepped >= STEPPED_COUNT_MIN {
            self.tree.stepped.add(stepped);
        }
    }

    /// True while the cursor stands on a key.
    #[inline]
    #[must_use]
    pub fn valid(&self) -> bool {
        self.position != Position::Off
    }

    /// The key. Only while [`Cursor::valid`].
    #[inline]
    #[must_use]
    pub fn key(&self) -> &[u8] {
        match self.position {
            Position::Lent => self.merge.key(),
            Position::Ahead | Position::Behind => &self.key,
            Position::Off => panic!("the cursor is not on a key: look at valid() first"),
        }
    }

    /// The value. Only while [`Cursor::valid`].
    #[inline]
    #[must_use]
    pub fn value(&self) -> &[u8] {
        self.value_ref().bytes
    }

    #[inline]
    pub(crate) fn value_ref(&self) -> ValueRef<'_> {
        match self.position {
            Position::Lent => self.merge.value(),
            Position::Ahead | Position::Behind => self.value.as_ref(),
            Position::Off => panic!("the cursor is not on a key: look at valid() first"),
        }
    }

    /// Goes to the first key.
    ///
    /// # Errors
    /// `Corruption` or `Io` from a table; `MergeFailed` where operands cannot be folded. The
    /// cursor is then invalid.
    pub fn seek_to_first(&mut self) -> Result<()> {
        self.tell_stepped();
        self.position = Position::Off;
        self.merge.seek_to_first()?;
        self.find_forward()
    }

    /// Goes to the last key.
    ///
    /// # Errors
    /// As [`Cursor::seek_to_first`].
    pub fn seek_to_last(&mut self) -> Result<()> {
        self.tell_stepped();
        self.position = Position::Off;
        self.merge.seek_to_last()?;
        self.find_backward()
    }

    /// Goes to the first key that is not less than `key`.
    ///
    /// # Errors
    /// As [`Cursor::seek_to_first`].
    pub fn seek(&mut self, key: impl AsRef<[u8]>) -> Result<()> {
        self.tell_stepped();
        self.position = Position::Off;
        // Straight to the version that the snapshot sees, past newer ones.
        self.merge.seek(key.as_ref(), self.snapshot)?;
        self.find_forward()
    }

    /// Goes to the last key that is less than `key`.
    ///
    /// # Errors
    /// As [`Cursor::seek_to_first`].
    pub fn seek_before(&mut self, key: impl AsRef<[u8]>) -> Result<()> {
        self.tell_stepped();
        self.position = Position::Off;
        self.merge.seek_before(key.as_ref(), SeqNo::MAX)?;
        self.find_backward()
    }

    /// Goes to the next key. Only while [`Cursor::valid`].
    ///
    /// # Errors
    /// As [`Cursor::seek_to_first`].
    #[inline]
    #[expect(clippy::should_implement_trait, reason = "a lending cursor is no iterator")]
    pub fn next(&mut self) -> Result<()> {
        let position = std::mem::replace(&mut self.position, Position::Off);
        match position {
            Position::Off => panic!("the cursor is not on a key: look at valid() first"),
            Position::Lent => {
                let passed = self.pass();
                self.merge.next()?;
                // Mostly it is another key, and has a value.
                if self.is_on(&passed) {
                    self.skip_versions(&passed)?;
                }
            }
            Position::Ahead => self.skip_versions(&Passed::Saved)?,
            Position::Behind => {
                self.merge.seek(&self.key, SeqNo::ZERO)?;
                self.skip_versions(&Passed::Saved)?;
            }
        }
        if self.is_on_visible_put() {
            self.position = Position::Lent;
            return Ok(());
        }
        self.find_forward()
    }

    /// Goes to the key before. Only while [`Cursor::valid`].
    ///
    /// # Errors
    /// As [`Cursor::seek_to_first`].
    pub fn prev(&mut self) -> Result<()> {
        let position = std::mem::replace(&mut self.position, Position::Off);
        match position {
            Position::Off => panic!("the cursor is not on a key: look at valid() first"),
            Position::Lent => {
                self.save_key();
                self.merge.seek_before(&self.key, SeqNo::MAX)?;
            }
            Position::Ahead => self.merge.seek_before(&self.key, SeqNo::MAX)?,
            Position::Behind => {}
        }
        self.find_backward()
    }

    #[inline]
    fn save_key(&mut self) {
        self.key.clear();
        self.key.extend_from_slice(self.merge.key());
    }

    fn is_on_saved_key(&self) -> bool {
        self.merge.valid() && self.merge.key() == self.key.as_slice()
    }

    /// Notes the key that the merge cursor stands on and is about to leave. Short ones need no copy.
    #[inline]
    fn pass(&mut self) -> Passed {
        let passed = self.here();
        if let Passed::Saved = passed {
            self.save_key();
        }
        passed
    }

    /// The key that the merge cursor stands on, to be saved if it is long.
    #[inline]
    fn here(&self) -> Passed {
        match self.merge.key().len() {
            bytes @ ..=LONG_HEAD_BYTES => Passed::Short { head: self.merge.head(), bytes },
            _ => Passed::Saved,
        }
    }

    #[inline]
    fn is_on(&self, passed: &Passed) -> bool {
        match passed {
            Passed::Short { head, bytes } => {
                self.merge.valid() && self.merge.head() == *head && self.merge.key().len() == *bytes
            }
            Passed::Saved => self.is_on_saved_key(),
        }
    }

    #[inline]
    fn is_on_visible_put(&self) -> bool {
        self.merge.valid()
            && self.merge.seqno() <= self.snapshot
            && self.merge.kind() == EntryKind::Put
    }

    /// Moves past the versions of a key.
    fn skip_versions(&mut self, passed: &Passed) -> Result<()> {
        let mut skipped = 0;
        while self.is_on(passed) {
            skipped += 1;
            if skipped == SKIP_COUNT_MAX {
                self.save_key();
                self.merge.seek(&self.key, SeqNo::ZERO)?;
            } else {
                self.merge.next()?;
            }
        }
        Ok(())
    }

    /// From the merge cursor's entry on, finds the first key that has a value.
    fn find_forward(&mut self) -> Result<()> {
        while self.merge.valid() {
            if self.merge.seqno() > self.snapshot {
                self.merge.next()?;
                continue;
            }
            match self.merge.kind() {
                EntryKind::Put => {
                    self.position = Position::Lent;
                    return Ok(());
                }
                EntryKind::Delete => {
                    self.stepped += 1;
                    let passed = self.pass();
                    self.merge.next()?;
                    self.skip_versions(&passed)?;
                }
                EntryKind::Merge => {
                    if self.fold_forward()? {
                        return Ok(());
                    }
                    self.skip_versions(&Passed::Saved)?;
                }
            }
        }
        Ok(())
    }

    /// Folds the operands from the merge cursor's entry on. True if that leaves a value.
    fn fold_forward(&mut self) -> Result<bool> {
        self.save_key();
        let mut newest_first = Vec::new();
        let mut base = None;
        while self.is_on_saved_key() {
            match self.merge.kind() {
                EntryKind::Merge => newest_first.push(self.merge.value().to_slice()),
                EntryKind::Put => {
                    base = Some(self.merge.value().to_slice());
                    break;
                }
                EntryKind::Delete => break,
            }
            self.merge.next()?;
        }
        match fold(&self.tree, &self.key, base.as_deref(), &newest_first)? {
            Merged::Put(value) => {
                self.value = Saved::Copied(value);
                self.position = Position::Ahead;
                Ok(true)
            }
            Merged::Delete => Ok(false),
        }
    }

    /// From the merge cursor's entry back, finds the first key that has a value.
    fn find_backward(&mut self) -> Result<()> {
        let mut newest_last = Vec::new();
        while self.merge.valid() {
            self.save_key();
            let passed = self.here();
            newest_last.clear();
            let mut has_base = false;
            while self.is_on(&passed) {
                if self.merge.seqno() <= self.snapshot {
                    match self.merge.kind() {
                        EntryKind::Merge => newest_last.push(self.merge.value().to_slice()),
                        EntryKind::Delete => {
                            newest_last.clear();
                            has_base = false;
                        }
                        EntryKind::Put => {
                            newest_last.clear();
                            has_base = true;
                            self.value.save(self.merge.value());
                        }
                    }
                }
                self.merge.prev()?;
            }
            if self.resolve_backward(has_base, &mut newest_last)? {
                self.position = Position::Behind;
                return Ok(());
            }
            self.stepped += 1;
        }
        Ok(())
    }

    /// Folds operands, oldest first, onto the saved value. True if that leaves a value.
    fn resolve_backward(&mut self, has_base: bool, operands: &mut [Slice]) -> Result<bool> {
        if operands.is_empty() {
            return Ok(has_base);
        }
        operands.reverse();
        let base = has_base.then(|| self.value.as_ref().bytes);
        match fold(&self.tree, &self.key, base, operands)? {
            Merged::Put(value) => {
                self.value = Saved::Copied(value);
                Ok(true)
            }
            Merged::Delete => Ok(false),
        }
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.tell_stepped();
    }
}
