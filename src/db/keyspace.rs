//! A keyspace: sorted keys and values with a merge operator of their own.

use std::fmt;
use std::ops::RangeBounds;
use std::sync::Arc;
use std::time::Duration;

use crate::compaction::picker::{self, RangeStep};
use crate::db::Handle;
use crate::db::batch::Batch;
use crate::db::crew::Aside;
use crate::db::engine::Engine;
use crate::db::once::fresh_memtable;
use crate::db::open::DEFAULT_KEYSPACE;
use crate::error::{Error, Result};
use crate::file::FileKind;
use crate::key::{EntryKind, KeyspaceId, SeqNo};
use crate::manifest::edit::{Edit, KeyspaceFacts};
use crate::operator::{MergeOperator, Operand};
use crate::read::get::{announce, get_with};
use crate::read::iter::Iter;
use crate::read::range::KeyRange;
use crate::read::scan::Cursor;
use crate::slice::Slice;
use crate::tree::{Tree, View};
use crate::version::Version;
use crate::write::pressure::Patience;

/// A keyspace of an open database. Cheap to clone.
#[derive(Clone)]
pub struct Keyspace {
    pub(crate) handle: Arc<Handle>,
    pub(crate) tree: Arc<Tree>,
}

/// Choices for a keyspace.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct KeyspaceOptions {
    operator: Option<Arc<dyn MergeOperator>>,
}

impl KeyspaceOptions {
    /// No merge operator.
    #[must_use]
    pub fn new() -> KeyspaceOptions {
        KeyspaceOptions::default()
    }

    /// The choices by which this keyspace has become what it is.
    ///
    /// # Errors
    /// `InvalidArgument` if its operator is not registered.
    pub(crate) fn of(tree: &Tree) -> Result<KeyspaceOptions> {
        if tree.operator_name().is_some() && tree.operator().is_none() {
            tree.check_operand(&[])?;
        }
        Ok(KeyspaceOptions { operator: tree.operator().cloned() })
    }

    pub(crate) fn operator(&self) -> Option<&dyn MergeOperator> {
        self.operator.as_deref()
    }

    pub(crate) fn operator_name(&self) -> Option<&str> {
        self.operator().map(MergeOperator::name)
    }

    /// `merge` folds operands with this operator. Its name is persisted, and checked whenever the
    /// keyspace is opened with one; a keyspace without one may be given one later.
    #[must_use]
    pub fn merge(mut self, operator: impl MergeOperator) -> KeyspaceOptions {
        self.operator = Some(Arc::new(operator));
        self
    }
}

impl Keyspace {
    pub(crate) fn new(handle: Arc<Handle>, tree: Arc<Tree>) -> Keyspace {
        Keyspace { handle, tree }
    }

    #[inline]
    fn engine(&self) -> &Engine {
        &self.handle.engine
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.tree.name
    }

    /// The persisted name of its merge operator.
    #[must_use]
    pub fn operator_name(&self) -> Option<&str> {
        self.tree.operator_name()
    }

    // Writes.

    /// Sets the value of a key.
    ///
    /// # Errors
    /// `InvalidArgument` if key or value is too large; `Degraded` or `NoSpace` while the disk
    /// fails; `Closed` if the keyspace was dropped.
    #[inline]
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.write(EntryKind::Put, key.as_ref(), value.as_ref(), Patience::Wait)
    }

    /// Removes a key. It need not be there.
    ///
    /// # Errors
    /// As [`Keyspace::put`].
    #[inline]
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.write(EntryKind::Delete, key.as_ref(), &[], Patience::Wait)
    }

    /// Adds an operand to a key, to be folded by the keyspace's operator when it is read.
    ///
    /// # Errors
    /// As [`Keyspace::put`]; `InvalidArgument` too if the keyspace has no operator or the
    /// operator refuses the operand.
    #[inline]
    pub fn merge<'a>(&self, key: impl AsRef<[u8]>, operand: impl Into<Operand<'a>>) -> Result<()> {
        self.merge_with(key.as_ref(), &operand.into(), Patience::Wait)
    }

    /// [`Keyspace::put`] that fails at once where it would have to wait.
    ///
    /// # Errors
    /// As [`Keyspace::put`], and `Busy` with the time after which to try again.
    pub fn try_put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.write(EntryKind::Put, key.as_ref(), value.as_ref(), Patience::None)
    }

    /// [`Keyspace::delete`] that fails at once where it would have to wait.
    ///
    /// # Errors
    /// As [`Keyspace::try_put`].
    pub fn try_delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.write(EntryKind::Delete, key.as_ref(), &[], Patience::None)
    }

    /// [`Keyspace::merge`] that fails at once where it would have to wait.
    ///
    /// # Errors
    /// As [`Keyspace::merge`] and [`Keyspace::try_put`].
    pub fn try_merge<'a>(
        &self,
        key: impl AsRef<[u8]>,
        operand: impl Into<Operand<'a>>,
    ) -> Result<()> {
        self.merge_with(key.as_ref(), &operand.into(), Patience::None)
    }

    /// [`Keyspace::put`] that waits at most so long.
    ///
    /// # Errors
    /// As [`Keyspace::try_put`].
    pub fn put_within(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        wait: Duration,
    ) -> Result<()> {
        let patience = self.engine().deadline(wait);
        self.write(EntryKind::Put, key.as_ref(), value.as_ref(), patience)
    }

    /// Sets the value of a key that has none. For several keys, or effects on others, see
    /// [`Batch::require_absent`].
    ///
    /// # Errors
    /// As [`Keyspace::put`], and `Conflict` if the key has a value; nothing was written then.
    pub fn put_if_absent(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        let mut batch = Batch::new(self.handle.clone());
        batch.require_absent(self, &key).put(self, &key, value);
        batch.commit()
    }

    /// Replaces `expected` by `value`, where `None` is no value.
    ///
    /// # Errors
    /// As [`Keyspace::put`], and `Conflict` if the key has another value than `expected`; nothing
    /// was written then.
    pub fn compare_and_swap(
        &self,
        key: impl AsRef<[u8]>,
        expected: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<()> {
        let mut batch = Batch::new(self.handle.clone());
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
        self.engine().write_one(&self.tree, kind, key, value, patience)
    }

    fn merge_with(&self, key: &[u8], operand: &Operand<'_>, patience: Patience) -> Result<()> {
        self.tree.check_operand(operand.as_bytes())?;
        self.write(EntryKind::Merge, key, operand.as_bytes(), patience)
    }

    // Reads.

    /// The value of a key. Large values are not copied.
    ///
    /// # Errors
    /// `Corruption` or `Io` from a table; `MergeFailed` if its operands cannot be folded.
    #[inline]
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        self.engine().get(&self.tree, key.as_ref())
    }

    /// Calls `f` with the value of a key, in place: neither copied nor reference-counted. `f` runs with
    /// no lock held and may call the database; if it panics, that goes on to the caller, and does
    /// the database no harm.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    #[inline]
    pub fn get_with<R>(
        &self,
        key: impl AsRef<[u8]>,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>> {
        self.engine().get_with(&self.tree, key.as_ref(), |value| f(value.bytes))
    }

    /// The values of several keys, all as of one moment, in the order of `keys`.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Slice>>> {
        self.tree.check_live()?;
        let (view, reading) = self.engine().pin(&self.tree);
        multi_get(&self.tree, &view, reading.seqno, keys)
    }

    /// True if the key has a value.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.get_with(key, |_| ())?.is_some())
    }

    /// The keys of a range with their values, from both ends, as of now.
    ///
    /// `db.range("a".."m")`, `db.range("k"..)`, `db.range::<&str>(..)`, and, with any bounds,
    /// `db.range::<&str>((Bound::Excluded("a"), Bound::Unbounded))`.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Iter {
        self.scan(KeyRange::new(range))
    }

    /// The keys that begin with `prefix` with their values, from both ends, as of now.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Iter {
        self.scan(KeyRange::prefix(prefix.as_ref()))
    }

    /// All keys with their values, from both ends, as of now.
    #[must_use]
    pub fn iter(&self) -> Iter {
        self.scan(KeyRange::all())
    }

    /// A cursor that lends keys and values without copying them, as of now.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        let (view, reading) = self.engine().pin_for_scan(&self.tree);
        Cursor::new(self.tree.clone(), view, Arc::new(reading), &KeyRange::all())
    }

    fn scan(&self, range: KeyRange) -> Iter {
        let (view, reading) = self.engine().pin_for_scan(&self.tree);
        Iter::new(self.tree.clone(), view, Arc::new(reading), range)
    }

    // Upkeep.

    /// Writes this keyspace's memtables as tables, and waits until they are.
    ///
    /// # Errors
    /// `Degraded` or `NoSpace` if the disk fails; nothing is lost then.
    pub fn flush(&self) -> Result<()> {
        self.tree.check_live()?;
        self.engine().freeze(&self.tree, None);
        self.engine().wait_flushed(&self.tree)
    }

    /// Rewrites the tables of a range down to the last level: tombstones and overwritten values
    /// that no snapshot needs are gone afterwards. Flushes first.
    ///
    /// # Errors
    /// As [`Keyspace::flush`].
    pub fn compact_range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<()> {
        self.flush()?;
        self.engine().compact_range(&self.tree, &KeyRange::new(range))
    }
}

impl fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyspace({:?})", self.name())
    }
}

/// So many keys' misses overlap: about as many as a core has under way at once.
const ANNOUNCED_KEYS: usize = 16;

/// The values of several keys in one view. The keys are visited in order, so that neighbours find
/// what they share in the processor's cache.
pub(crate) fn multi_get<K: AsRef<[u8]>>(
    tree: &Tree,
    view: &View,
    snapshot: SeqNo,
    keys: &[K],
) -> Result<Vec<Option<Slice>>> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_unstable_by(|a, b| keys[*a].as_ref().cmp(keys[*b].as_ref()));
    let mut values = vec![None; keys.len()];
    for group in order.chunks(ANNOUNCED_KEYS) {
        announce(view, group.iter().map(|index| keys[*index].as_ref()), snapshot);
        for &index in group {
            let key = keys[index].as_ref();
            values[index] = get_with(tree, view, key, snapshot, |value| value.to_slice())?;
        }
    }
    Ok(values)
}

impl Tree {
    /// # Errors
    /// `InvalidArgument` if the operand may not be merged into this keyspace.
    pub(crate) fn check_operand(&self, operand: &[u8]) -> Result<()> {
        let Some(operator) = self.operator() else {
            return Err(Error::invalid(match self.operator_name() {
                Some(name) => format!(
                    "merge operator {name:?} of keyspace {:?} is not registered: give it to \
                     Db::keyspace",
                    self.name
                ),
                None => format!(
                    "keyspace {:?} has no merge operator: create one with \
                     KeyspaceOptions::new().merge(…)",
                    self.name
                ),
            }));
        };
        // A user's code: a panic in it becomes an error.
        let check = std::panic::AssertUnwindSafe(|| operator.check(operand));
        let refusal = match std::panic::catch_unwind(check) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(refusal)) => refusal.0,
            Err(_) => "panicked".to_string(),
        };
        Err(Error::invalid(format!("operator {:?}: {refusal}", operator.name())))
    }
}

impl Engine {
    /// Opens or creates a keyspace.
    pub(crate) fn open_keyspace(&self, name: &str, options: KeyspaceOptions) -> Result<Arc<Tree>> {
        check_name(name)?;
        self.open_named(name, options)
    }

    /// Opens or creates a keyspace that may be hidden.
    pub(crate) fn open_named(&self, name: &str, options: KeyspaceOptions) -> Result<Arc<Tree>> {
        let mut catalog = self.catalog.lock();
        if let Some(tree) = self.tree(name) {
            tree.check_live()?;
            if let Some(operator) = options.operator {
                if tree.operator_name().is_none() {
                    // It has no operands yet, so any operator may come. The name is durable before
                    // the first of them.
                    self.pipeline.breaker.check()?;
                    let operators_given = vec![(tree.id, operator.name().to_string())];
                    let edit = Edit { operators_given, ..Edit::default() };
                    self.append_edit(&mut catalog, edit)?;
                }
                tree.supply_operator(operator)?;
            }
            return Ok(tree);
        }
        self.pipeline.breaker.check()?;
        // The one order of commits: what came before is durable before the keyspace is.
        self.pipeline.wait_durable(self.pipeline.ring.copied())?;
        let id = catalog.state().next_keyspace();
        let operator_name = options.operator.as_ref().map(|operator| operator.name().to_string());
        let facts = KeyspaceFacts { id, name: name.to_string(), operator: operator_name.clone() };
        let edit = Edit {
            keyspaces_created: vec![facts],
            next_keyspace: Some(KeyspaceId(id.0 + 1)),
            ..Edit::default()
        };
        self.append_edit(&mut catalog, edit)?;
        let active = fresh_memtable(name, &self.pool);
        let version = Arc::new(Version::empty());
        let view = View { active: active.clone(), frozen: Vec::new(), version };
        let mut commit = self.pipeline.lock();
        let slot = commit.add_slot(active);
        let tree = Tree::new(id, name.to_string(), slot, operator_name, options.operator, view);
        let tree = Arc::new(tree);
        let trees = self.trees.load_full();
        let all: Vec<Arc<Tree>> = trees.iter().cloned().chain([tree.clone()]).collect();
        self.trees.store(Arc::new(all));
        Ok(tree)
    }

    /// Drops a keyspace: no more commits, then the edit, then its files.
    pub(crate) fn drop_keyspace(&self, name: &str) -> Result<()> {
        if name == DEFAULT_KEYSPACE {
            return Err(Error::invalid("the keyspace \"default\" cannot be dropped"));
        }
        check_name(name)?;
        let mut catalog = self.catalog.lock();
        let Some(tree) = self.tree(name) else {
            return Err(Error::invalid(format!("there is no keyspace {name:?}")));
        };
        tree.check_live()?;
        self.pipeline.breaker.check()?;
        let (last, lsn) = {
            let mut commit = self.pipeline.lock();
            commit.drop_slot(&tree);
            tree.mark_dropped();
            (SeqNo(commit.next_seqno().0 - 1), commit.lsn())
        };
        // The one order of commits: what came before is durable before the drop is.
        if !self.pipeline.ring.wait_past(last) {
            return Err(self.pipeline.breaker.error());
        }
        self.pipeline.wait_durable(self.pipeline.ring.copied().min(lsn))?;
        let edit = Edit { keyspaces_dropped: vec![tree.id], ..Edit::default() };
        self.append_edit(&mut catalog, edit)?;
        for (_, table) in tree.view().version.tables() {
            catalog.retire(FileKind::Table.path(&self.dir, table.facts().number));
        }
        let trees = self.trees.load_full();
        let rest: Vec<_> = trees.iter().filter(|other| other.id != tree.id).cloned().collect();
        self.trees.store(Arc::new(rest));
        drop(catalog);
        // Who waits for its flush waits in vain.
        self.wake_workers();
        self.remove_obsolete();
        self.measure_pressure();
        Ok(())
    }

    /// Freezes and flushes every keyspace.
    pub(crate) fn flush_all(&self) -> Result<()> {
        let trees = self.trees.load_full();
        for tree in trees.iter() {
            self.freeze(tree, None);
        }
        for tree in trees.iter() {
            match self.wait_flushed(tree) {
                Err(error) if tree.check_live().is_ok() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Compacts a range, step by step, until all of it lies in the last level.
    fn compact_range(&self, tree: &Arc<Tree>, range: &KeyRange) -> Result<()> {
        let upto = self.pipeline.ring.visible();
        self.run_steps(tree, |claims| {
            let oldest = self.snapshots.boundaries().first().copied().unwrap_or(SeqNo::MAX);
            let view = tree.view();
            picker::plan_range(&view.version, range.bounds(), upto, &self.limits, claims, oldest)
        })
    }

    fn run_steps(
        &self,
        tree: &Arc<Tree>,
        mut next: impl FnMut(&picker::Claims) -> RangeStep,
    ) -> Result<()> {
        while let Some((plan, claim)) = self.claim_step(tree, &mut next)? {
            let ran = self.compact(tree, &plan, &Aside::never());
            self.end_step(tree, claim);
            ran.inspect_err(|error| self.fail(crate::error::DegradedCause::Table, error))?;
        }
        Ok(())
    }
}

pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > 255 {
        return Err(Error::invalid("the name of a keyspace has 1 to 255 bytes"));
    }
    if name.chars().any(char::is_control) {
        let what = format!("the name of a keyspace has no control characters: {name:?}");
        return Err(Error::invalid(what));
    }
    Ok(())
}
