//! A keyspace over several shards: the verbs of [`Keyspace`](crate::Keyspace), each in the shard that
//! has the key.

use std::fmt;
use std::ops::RangeBounds;
use std::sync::Arc;
use std::time::Duration;

use crate::db::keyspace::Keyspace;
use crate::error::Result;
use crate::key::EntryKind;
use crate::operator::Operand;
use crate::shard::Handle;
use crate::shard::batch::ShardedBatch;
use crate::shard::rates::Verb;
use crate::shard::root::{Root, Space};
use crate::shard::scan::{ShardedCursor, ShardedIter};
use crate::shard::snapshot::{Moment, ShardedKeyspaceSnapshot};
use crate::slice::Slice;
use crate::write::pressure::Patience;

/// A keyspace of an open [`ShardedDb`](crate::ShardedDb). Cheap to clone.
#[derive(Clone)]
pub struct ShardedKeyspace {
    pub(crate) handle: Arc<Handle>,
    pub(crate) space: Arc<Space>,
}

impl ShardedKeyspace {
    pub(crate) fn new(handle: Arc<Handle>, space: Arc<Space>) -> ShardedKeyspace {
        ShardedKeyspace { handle, space }
    }

    #[inline]
    fn root(&self) -> &Root {
        &self.handle.root
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.space.name
    }

    /// The persisted name of its merge operator.
    #[must_use]
    pub fn operator_name(&self) -> Option<&str> {
        self.space.at(0).operator_name()
    }

    // Writes.

    /// Sets the value of a key.
    ///
    /// # Errors
    /// `InvalidArgument` if key or value is too large; `Degraded` or `NoSpace` while the disk of
    /// the key's shard fails; `Closed` if the keyspace was dropped.
    #[inline]
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.write(EntryKind::Put, key.as_ref(), value.as_ref(), Patience::Wait)
    }

    /// Removes a key. It need not be there.
    ///
    /// # Errors
    /// As [`ShardedKeyspace::put`].
    #[inline]
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.write(EntryKind::Delete, key.as_ref(), &[], Patience::Wait)
    }

    /// Adds an operand to a key, to be folded by the keyspace's operator when it is read.
    ///
    /// # Errors
    /// As [`ShardedKeyspace::put`]; `InvalidArgument` too if the keyspace has no operator or the
    /// operator refuses the operand.
    #[inline]
    pub fn merge<'a>(&self, key: impl AsRef<[u8]>, operand: impl Into<Operand<'a>>) -> Result<()> {
        self.merge_with(key.as_ref(), &operand.into(), Patience::Wait)
    }

    /// [`ShardedKeyspace::put`] that fails at once where it would have to wait.
    ///
    /// # Errors
    /// As [`ShardedKeyspace::put`], and `Busy` with the time after which to try again.
    pub fn try_put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.write(EntryKind::Put, key.as_ref(), value.as_ref(), Patience::None)
    }

    /// [`ShardedKeyspace::delete`] that fails at once where it would have to wait.
    ///
    /// # Errors
    /// As [`ShardedKeyspace::try_put`].
    pub fn try_delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.write(EntryKind::Delete, key.as_ref(), &[], Patience::None)
    }

    /// [`ShardedKeyspace::merge`] that fails at once where it would have to wait.
    ///
    /// # Errors
    /// As [`ShardedKeyspace::merge`] and [`ShardedKeyspace::try_put`].
    pub fn try_merge<'a>(
        &self,
        key: impl AsRef<[u8]>,
        operand: impl Into<Operand<'a>>,
    ) -> Result<()> {
        self.merge_with(key.as_ref(), &operand.into(), Patience::None)
    }

    /// [`ShardedKeyspace::put`] that waits at most so long.
    ///
    /// # Errors
    /// As [`ShardedKeyspace::try_put`].
    pub fn put_within(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        wait: Duration,
    ) -> Result<()> {
        let patience = self.root().deadline(wait);
        self.write(EntryKind::Put, key.as_ref(), value.as_ref(), patience)
    }

    /// Sets the value of a key that has none. For several keys, or effects on others, see
    /// [`ShardedBatch::require_absent`].
    ///
    /// # Errors
    /// As [`ShardedKeyspace::put`], and `Conflict` if the key has a value; nothing was written then.
    pub fn put_if_absent(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        let mut batch = ShardedBatch::new(self.handle.clone());
        batch.require_absent(self, &key).put(self, &key, value);
        batch.commit()
    }

    /// Replaces `expected` by `value`, where `None` is no value.
    ///
    /// # Errors
    /// As [`ShardedKeyspace::put`], and `Conflict` if the key has another value than `expected`;
    /// nothing was written then.
    pub fn compare_and_swap(
        &self,
        key: impl AsRef<[u8]>,
        expected: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<()> {
        let mut batch = ShardedBatch::new(self.handle.clone());
        match expected {
            Some(expected) => batch.require_value(self, &key, expected),
            None => batch.require_absent(self, &key),
        };
        match value {
            Some(value) => batch.put(self, &key, value),
            None => batch.delete(self, &key),
        };
        batch.commit()
    }

    #[inline]
    fn write(&self, kind: EntryKind, key: &[u8], value: &[u8], patience: Patience) -> Result<()> {
        let root = self.root();
        // The number of slots never changes, so any map will do.
        let slot = root.slot(&root.routing.load().map, key)?;
        root.load.note(Verb::Write, slot, self.space.id, key, &root.runtime);
        let pass = root.gate.enter(slot, patience, &root.runtime)?;
        let Keyspace { handle, tree } = self.space.at(pass.map.owner(slot));
        let written = handle.engine.write_one(tree, kind, key, value, patience);
        pass.note(self.space.id, slot, key);
        written
    }

    fn merge_with(&self, key: &[u8], operand: &Operand<'_>, patience: Patience) -> Result<()> {
        self.space.at(0).tree.check_operand(operand.as_bytes())?;
        self.write(EntryKind::Merge, key, operand.as_bytes(), patience)
    }

    // Reads.

    /// The value of a key. Large values are not copied.
    ///
    /// # Errors
    /// `Corruption` or `Io` from a table; `MergeFailed` if its operands cannot be folded.
    #[inline]
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        self.read(key.as_ref(), |keyspace, key| keyspace.get(key))
    }

    /// Calls `f` with the value of a key, in place: neither copied nor reference-counted.
    ///
    /// # Errors
    /// As [`ShardedKeyspace::get`].
    #[inline]
    pub fn get_with<R>(
        &self,
        key: impl AsRef<[u8]>,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>> {
        self.read(key.as_ref(), |keyspace, key| keyspace.get_with(key, f))
    }

    /// Reads in the shard that has the key, which keeps it as long as the routing is held.
    #[inline]
    fn read<R>(&self, key: &[u8], f: impl FnOnce(&Keyspace, &[u8]) -> Result<R>) -> Result<R> {
        let root = self.root();
        let routing = root.routing.load();
        let slot = root.slot(&routing.map, key)?;
        root.load.note(Verb::Read, slot, self.space.id, key, &root.runtime);
        f(self.space.at(routing.map.owner(slot)), key)
    }

    /// The values of several keys, all as of one moment, in the order of `keys`.
    ///
    /// # Errors
    /// As [`ShardedKeyspace::get`].
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Slice>>> {
        let root = self.root();
        let routing = root.routing.load();
        let slot = |key: &K| root.slot(&routing.map, key.as_ref());
        let slots = keys.iter().map(slot).collect::<Result<Vec<_>>>()?;
        let Some(first) = slots.first().map(|slot| routing.map.owner(*slot)) else {
            return Ok(Vec::new());
        };
        if slots.iter().any(|slot| routing.map.owner(*slot) != first) {
            return self.now().multi_get(keys);
        }
        for (slot, key) in slots.iter().zip(keys) {
            root.load.note(Verb::Read, *slot, self.space.id, key.as_ref(), &root.runtime);
        }
        self.space.at(first).multi_get(keys)
    }

    /// True if the key has a value.
    ///
    /// # Errors
    /// As [`ShardedKeyspace::get`].
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.get_with(key, |_| ())?.is_some())
    }

    /// The keys of a range with their values, in order, from both ends, as of now.
    ///
    /// Every shard is asked, unless the database is partitioned by what comes before a separator
    /// and both bounds begin with the same part and the separator.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> ShardedIter {
        self.now().range(range)
    }

    /// The keys that begin with `prefix` with their values, in order, from both ends, as of now.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> ShardedIter {
        self.now().prefix(prefix)
    }

    /// All keys with their values, in order, from both ends, as of now.
    #[must_use]
    pub fn iter(&self) -> ShardedIter {
        self.now().iter()
    }

    /// A cursor that lends keys and values without copying them, as of now.
    #[must_use]
    pub fn cursor(&self) -> ShardedCursor {
        self.now().cursor()
    }

    fn now(&self) -> ShardedKeyspaceSnapshot {
        ShardedKeyspaceSnapshot::new(Moment::new(&self.handle), self.space.clone())
    }

    // Upkeep.

    /// Writes this keyspace's memtables as tables, in every shard, and waits until they are.
    ///
    /// # Errors
    /// `Degraded` or `NoSpace` if the disk fails; nothing is lost then.
    pub fn flush(&self) -> Result<()> {
        self.space.shards().map(Keyspace::flush).fold(Ok(()), Result::and)
    }

    /// Rewrites the tables of a range down to the last level, in every shard: tombstones and
    /// overwritten values that no snapshot needs are gone afterwards. Flushes first.
    ///
    /// # Errors
    /// As [`ShardedKeyspace::flush`].
    pub fn compact_range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<()> {
        let own = |bound: std::ops::Bound<&K>| bound.map(|key| key.as_ref().to_vec());
        let range = (own(range.start_bound()), own(range.end_bound()));
        self.space
            .shards()
            .map(|keyspace| keyspace.compact_range(range.clone()))
            .fold(Ok(()), Result::and)
    }
}

impl fmt::Debug for ShardedKeyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardedKeyspace({:?})", self.name())
    }
}
