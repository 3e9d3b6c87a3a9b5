//! Snapshots: reads as of one moment of all shards.

use std::fmt;
use std::ops::{Deref, RangeBounds};
use std::sync::Arc;

use crate::db::snapshot::{KeyspaceSnapshot, Snapshot};
use crate::error::{Error, Result};
use crate::read::iter::Pinned as _;
use crate::read::range::KeyRange;
use crate::shard::Handle;
use crate::shard::keyspace::ShardedKeyspace;
use crate::shard::map::SlotMap;
use crate::shard::rates::Verb;
use crate::shard::root::{Root, Space};
use crate::shard::scan::{Own, PinnedShards, ShardedCursor, ShardedIter};
use crate::shard::slots::{ShardIndex, Slot};
use crate::slice::Slice;

/// The database as it was when the snapshot was taken, over all shards: a batch that was committed
/// over several of them is seen wholly or not at all, and what was acknowledged before another
/// write began is seen if that one is.
///
/// It dereferences to the [`ShardedKeyspaceSnapshot`] of the default keyspace. It holds a number
/// of each shard, and pins no memory.
#[derive(Clone)]
pub struct ShardedSnapshot {
    default: ShardedKeyspaceSnapshot,
}

/// A keyspace as it was when a [`ShardedSnapshot`] was taken.
#[derive(Clone)]
pub struct ShardedKeyspaceSnapshot {
    moment: Arc<Moment>,
    space: Arc<Space>,
}

/// One moment of all shards, and where keys were then.
pub(crate) struct Moment {
    handle: Arc<Handle>,
    map: Arc<SlotMap>,
    shards: Vec<Snapshot>,
}

impl Root {
    /// Where keys are, and snapshots of all shards that agree with it.
    fn moment(&self) -> (Arc<SlotMap>, Vec<Snapshot>) {
        loop {
            let map = self.routing.load().map.clone();
            let shards = Snapshot::of_shards(&self.joints, self.shards().take(map.shard_count()));
            // If slots were handed over meanwhile, writes may have gone to their new place already
            // that belong to this moment.
            if Arc::ptr_eq(&map, &self.routing.load().map) {
                return (map, shards);
            }
        }
    }
}

impl Moment {
    pub fn new(handle: &Arc<Handle>) -> Arc<Moment> {
        let (map, shards) = handle.root.moment();
        Arc::new(Moment { handle: handle.clone(), map, shards })
    }

    pub fn map(&self) -> &SlotMap {
        &self.map
    }

    /// What this shard was.
    pub fn shard(&self, shard: ShardIndex) -> &Snapshot {
        &self.shards[usize::from(shard)]
    }

    pub fn is_of(&self, handle: &Arc<Handle>) -> bool {
        Arc::ptr_eq(&self.handle, handle)
    }
}

impl ShardedSnapshot {
    pub(crate) fn new(handle: &Arc<Handle>, space: Arc<Space>) -> ShardedSnapshot {
        ShardedSnapshot { default: ShardedKeyspaceSnapshot::new(Moment::new(handle), space) }
    }

    pub(crate) fn moment(&self) -> &Arc<Moment> {
        &self.default.moment
    }

    /// Another keyspace of the same database, as of the same moment.
    ///
    /// # Errors
    /// `InvalidArgument` if it is of another database.
    pub fn keyspace(&self, keyspace: &ShardedKeyspace) -> Result<ShardedKeyspaceSnapshot> {
        let moment = self.default.moment.clone();
        if !moment.is_of(&keyspace.handle) {
            let what = format!("keyspace {:?} is of another database", keyspace.name());
            return Err(Error::invalid(what));
        }
        Ok(ShardedKeyspaceSnapshot::new(moment, keyspace.space.clone()))
    }
}

impl Deref for ShardedSnapshot {
    type Target = ShardedKeyspaceSnapshot;

    fn deref(&self) -> &ShardedKeyspaceSnapshot {
        &self.default
    }
}

impl ShardedKeyspaceSnapshot {
    pub(crate) fn new(moment: Arc<Moment>, space: Arc<Space>) -> ShardedKeyspaceSnapshot {
        ShardedKeyspaceSnapshot { moment, space }
    }

    fn root(&self) -> &Root {
        &self.moment.handle.root
    }

    fn at(&self, shard: ShardIndex) -> KeyspaceSnapshot {
        let keyspace = self.moment.shard(shard).keyspace(self.space.at(shard));
        keyspace.expect("it is of the same shard")
    }

    /// The shard of a key that is looked up.
    fn shard_of(&self, key: &[u8]) -> Result<ShardIndex> {
        let (root, map) = (self.root(), &self.moment.map);
        let slot = root.slot(map, key)?;
        root.load.note(Verb::Read, slot, self.space.id, key, &root.runtime);
        Ok(map.owner(slot))
    }

    /// The value of a key. See [`ShardedKeyspace::get`].
    ///
    /// # Errors
    /// As [`ShardedKeyspace::get`].
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        let key = key.as_ref();
        self.at(self.shard_of(key)?).get(key)
    }

    /// Calls `f` with the value of a key, in place. See [`ShardedKeyspace::get_with`].
    ///
    /// # Errors
    /// As [`ShardedKeyspace::get`].
    pub fn get_with<R>(
        &self,
        key: impl AsRef<[u8]>,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>> {
        let key = key.as_ref();
        self.at(self.shard_of(key)?).get_with(key, f)
    }

    /// The values of several keys, in the order of `keys`.
    ///
    /// # Errors
    /// As [`ShardedKeyspace::get`].
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Slice>>> {
        let shard_count = self.moment.shards.len();
        let mut by_shard: Vec<Vec<usize>> = vec![Vec::new(); shard_count];
        for (index, key) in keys.iter().enumerate() {
            by_shard[usize::from(self.shard_of(key.as_ref())?)].push(index);
        }
        let mut values = vec![None; keys.len()];
        for (shard, indexes) in by_shard.iter().enumerate().filter(|(_, i)| !i.is_empty()) {
            let of_it: Vec<&[u8]> = indexes.iter().map(|index| keys[*index].as_ref()).collect();
            let found = self.at(shard as ShardIndex).multi_get(&of_it)?;
            indexes.iter().zip(found).for_each(|(index, value)| values[*index] = value);
        }
        Ok(values)
    }

    /// True if the key has a value.
    ///
    /// # Errors
    /// As [`ShardedKeyspace::get`].
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.get_with(key, |_| ())?.is_some())
    }

    /// The keys of a range with their values, from both ends. See [`ShardedKeyspace::range`].
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> ShardedIter {
        let range = KeyRange::new(range);
        let common = range.common_prefix();
        self.scan(&common, range)
    }

    /// The keys that begin with `prefix` with their values, from both ends.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> ShardedIter {
        self.scan(prefix.as_ref(), KeyRange::prefix(prefix.as_ref()))
    }

    /// All keys with their values, from both ends.
    #[must_use]
    pub fn iter(&self) -> ShardedIter {
        self.scan(&[], KeyRange::all())
    }

    /// A cursor that lends keys and values.
    #[must_use]
    pub fn cursor(&self) -> ShardedCursor {
        self.pinned(None).open(&KeyRange::all())
    }

    /// Scans a range of keys that all begin with `common`.
    fn scan(&self, common: &[u8], range: KeyRange) -> ShardedIter {
        let only = self.root().partition.slot_of_prefix(common, self.moment.map.slot_count());
        ShardedIter::new(self.pinned(only), range)
    }

    /// What scans read from: all shards, or that of one slot.
    fn pinned(&self, only: Option<Slot>) -> PinnedShards {
        let map = &self.moment.map;
        let partition = &self.root().partition;
        let own = |shard| Own { map: map.clone(), partition: partition.clone(), shard };
        let with_own =
            |shard: ShardIndex| (self.at(shard).pinned(), map.has_strangers().then(|| own(shard)));
        match only {
            // What it has of this slot is its own.
            Some(slot) => PinnedShards(vec![(self.at(map.owner(slot)).pinned(), None)]),
            None => PinnedShards((0..map.shard_count() as ShardIndex).map(with_own).collect()),
        }
    }
}

impl fmt::Debug for ShardedSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardedSnapshot({:?})", self.moment().shards)
    }
}

impl fmt::Debug for ShardedKeyspaceSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardedKeyspaceSnapshot({:?} {:?})", self.space.name, self.moment.shards)
    }
}
