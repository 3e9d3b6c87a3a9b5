//! Snapshots: reads as of one moment, over all keyspaces.

use std::fmt;
use std::ops::{Deref, RangeBounds};
use std::sync::Arc;

use crate::db::keyspace::{Keyspace, multi_get};
use crate::db::{Db, Handle};
use crate::error::{Error, Result};
use crate::key::SeqNo;
use crate::read::get::get_with;
use crate::read::iter::{Iter, Pinned as _, PinnedTree};
use crate::read::range::KeyRange;
use crate::read::scan::Cursor;
use crate::runtime::MutexGuard;
use crate::slice::Slice;
use crate::snapshots::Reading;
use crate::tree::Tree;
use crate::write::closing::Joints;
use crate::write::commit::CommitState;

/// The database as it was when the snapshot was taken.
///
/// It dereferences to the [`KeyspaceSnapshot`] of the default keyspace. A snapshot is a number: it
/// pins no memory, but compactions keep the versions that it sees until it is dropped.
#[derive(Clone)]
pub struct Snapshot {
    default: KeyspaceSnapshot,
}

/// A keyspace as it was when a [`Snapshot`] was taken.
#[derive(Clone)]
pub struct KeyspaceSnapshot {
    registered: Arc<Registered>,
    tree: Arc<Tree>,
}

/// A registered number, released when the last handle to it is dropped.
struct Registered {
    handle: Arc<Handle>,
    seqno: SeqNo,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.handle.engine.snapshots.release(self.seqno);
    }
}

impl Snapshot {
    pub(crate) fn new(db: &Db) -> Snapshot {
        let engine = db.engine();
        let visible = || engine.pipeline.ring.visible();
        let seqno = engine.snapshots.register(engine.runtime.now(), visible);
        let registered = Arc::new(Registered { handle: db.handle.clone(), seqno });
        Snapshot { default: KeyspaceSnapshot { registered, tree: db.tree.clone() } }
    }

    /// Snapshots of shards of one database, at one moment.
    ///
    /// While the commit locks of all shards are held, the numbers given out are noted. So a joint
    /// commit is in all of them or in none, as it is placed under these locks; and what was
    /// acknowledged before another commit began is, if that one is. The visible numbers, read one
    /// after the other, would not do: of two writes, one after the other to two shards, the second
    /// could be seen alone.
    pub(crate) fn of_shards<'a>(
        joints: &Joints,
        shards: impl Iterator<Item = &'a Db> + Clone,
    ) -> Vec<Snapshot> {
        let locks: Vec<_> = shards.clone().map(|db| db.engine().pipeline.lock()).collect();
        let register = |(db, commit): (&Db, &MutexGuard<'_, CommitState>)| {
            let engine = Db::engine(db);
            let last = SeqNo(commit.next_seqno().0 - 1);
            // At least what is visible, so nothing that it sees is gone already.
            let seqno = engine.snapshots.register(engine.runtime.now(), || last);
            let registered = Arc::new(Registered { handle: db.handle.clone(), seqno });
            Snapshot { default: KeyspaceSnapshot { registered, tree: db.tree.clone() } }
        };
        let snapshots: Vec<Snapshot> = shards.clone().zip(&locks).map(register).collect();
        drop(locks);
        let see = |(db, snapshot): (&Db, &Snapshot)| {
            Db::engine(db).pipeline.ring.wait_past(snapshot.seqno())
        };
        if shards.clone().zip(&snapshots).all(see) {
            return snapshots;
        }
        // A log has failed, so some of these numbers will never be seen. What is visible now is
        // whole, and stays.
        let _gate = joints.gate();
        shards.map(Snapshot::new).collect()
    }

    /// The number of the last operation that it sees.
    pub(crate) fn seqno(&self) -> SeqNo {
        self.default.registered.seqno
    }

    /// True if it is of the database of this handle.
    pub(crate) fn is_of(&self, handle: &Arc<Handle>) -> bool {
        Arc::ptr_eq(&self.default.registered.handle, handle)
    }

    /// Another keyspace of the same database, as of the same moment.
    ///
    /// # Errors
    /// `InvalidArgument` if it is of another database.
    pub fn keyspace(&self, keyspace: &Keyspace) -> Result<KeyspaceSnapshot> {
        let registered = self.default.registered.clone();
        if !Arc::ptr_eq(&registered.handle, &keyspace.handle) {
            let what = format!("keyspace {:?} is of another database", keyspace.name());
            return Err(Error::invalid(what));
        }
        Ok(KeyspaceSnapshot { registered, tree: keyspace.tree.clone() })
    }
}

impl Deref for Snapshot {
    type Target = KeyspaceSnapshot;

    fn deref(&self) -> &KeyspaceSnapshot {
        &self.default
    }
}

impl KeyspaceSnapshot {
    /// The value of a key. See [`Keyspace::get`].
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        self.tree.check_live()?;
        let (tree, seqno) = (&self.tree, self.registered.seqno);
        get_with(tree, &tree.view(), key.as_ref(), seqno, |value| value.to_slice())
    }

    /// Calls `f` with the value of a key, in place. See [`Keyspace::get_with`].
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn get_with<R>(
        &self,
        key: impl AsRef<[u8]>,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>> {
        self.tree.check_live()?;
        let (tree, seqno) = (&self.tree, self.registered.seqno);
        get_with(tree, &tree.view(), key.as_ref(), seqno, |value| f(value.bytes))
    }

    /// The values of several keys, in the order of `keys`.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Slice>>> {
        self.tree.check_live()?;
        multi_get(&self.tree, &self.tree.view_arc(), self.registered.seqno, keys)
    }

    /// True if the key has a value.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.get_with(key, |_| ())?.is_some())
    }

    /// The keys of a range with their values, from both ends. See [`Keyspace::range`].
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Iter {
        self.scan(KeyRange::new(range))
    }

    /// The keys that begin with `prefix` with their values, from both ends.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Iter {
        self.scan(KeyRange::prefix(prefix.as_ref()))
    }

    /// All keys with their values, from both ends.
    #[must_use]
    pub fn iter(&self) -> Iter {
        self.scan(KeyRange::all())
    }

    /// A cursor that lends keys and values.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.pinned().open(&KeyRange::all())
    }

    /// What scans read from, also once this is gone.
    pub(crate) fn pinned(&self) -> PinnedTree {
        let (tree, view) = (self.tree.clone(), self.tree.view_arc());
        PinnedTree { tree, view, reading: self.reading() }
    }

    /// For what may outlive this snapshot.
    fn reading(&self) -> Arc<Reading> {
        let Registered { handle, seqno } = &*self.registered;
        Arc::new(handle.engine.keep_reading(*seqno))
    }

    fn scan(&self, range: KeyRange) -> Iter {
        Iter::new(self.tree.clone(), self.tree.view_arc(), self.reading(), range)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Snapshot(#{})", self.default.registered.seqno.0)
    }
}

impl fmt::Debug for KeyspaceSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyspaceSnapshot({:?} #{})", self.tree.name, self.registered.seqno.0)
    }
}
