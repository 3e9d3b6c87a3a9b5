//! Counters that are hotter than one shard takes: each is spread over sub-counters that mostly lie in
//! different shards, and a read folds them.
//!
//! A counter is these keys of a keyspace of its own, of which a sub-counter has the operands that were
//! merged into it:
//!
//! ```text
//!   4 letters   16 bits of the key's hash, four bits a letter
//!   2 letters   number of the sub-counter, 0 to 15
//!   1 byte      the partition's separator, or a colon
//!   the rest    the key
//! ```
//!
//! The letters are `a` to `p`, or `A` to `P` where one of those is the separator. So sub-counters have
//! different partitions whatever the key's own is, and lie in slots as different keys do.
//!
//! Merging costs what a merge of any key costs; a read looks up sixteen keys, as of one moment.

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::key;
use crate::operator::{MergeOperator, Merged, Operand};
use crate::shard::batch::ShardedBatch;
use crate::shard::keyspace::ShardedKeyspace;
use crate::shard::snapshot::{ShardedKeyspaceSnapshot, ShardedSnapshot};
use crate::slice::Slice;

/// Sub-counters of a counter. On disk: what has more would not be read wholly with fewer.
const WAYS: u8 = 16;

/// A keyspace of counters, or of whatever else a merge operator folds in any order, each of which can be
/// merged into by more writers than one shard takes. Cheap to clone.
///
/// Reads cost sixteen lookups, which go to all shards; so this is for the few keys that are merged into
/// all the time and read now and then. Others are better off in a [`ShardedKeyspace`].
#[derive(Clone)]
pub struct HotCounters {
    keyspace: ShardedKeyspace,
    operator: Arc<dyn MergeOperator>,
    separator: u8,
}

thread_local! {
    /// How often this thread has merged.
    static TURN: Cell<u32> = const { Cell::new(0) };
}

/// The sub-counter whose turn it is: each as often, also for who looks at every second turn only.
fn turn() -> u8 {
    let turn = TURN.replace(TURN.get().wrapping_add(1));
    (turn.wrapping_mul(0x9e37_79b9) >> 28) as u8
}

impl HotCounters {
    /// The counters in this keyspace.
    ///
    /// # Errors
    /// `InvalidArgument` if it has no operator, or one that does not fold in any order.
    pub(crate) fn new(keyspace: ShardedKeyspace) -> Result<HotCounters> {
        let operator = keyspace.space.at(0).tree.operator().cloned();
        let Some(operator) = operator.filter(|operator| operator.folds_in_any_order()) else {
            return Err(unfit(keyspace.name()));
        };
        let separator = keyspace.handle.root.partition.separator().unwrap_or(b':');
        Ok(HotCounters { keyspace, operator, separator })
    }

    /// The name of their keyspace.
    #[must_use]
    pub fn name(&self) -> &str {
        self.keyspace.name()
    }

    /// The key of a sub-counter.
    fn key(&self, key: &[u8], way: u8) -> Vec<u8> {
        let first = if (b'a'..=b'p').contains(&self.separator) { b'A' } else { b'a' };
        let hash = key::hash(key);
        let mut out = Vec::with_capacity(7 + key.len());
        out.extend((0..4).map(|nibble| first + (hash >> (4 * nibble) & 15) as u8));
        out.extend([first + (way >> 4), first + (way & 15), self.separator]);
        out.extend_from_slice(key);
        out
    }

    /// The sub-counters of a key, the one whose turn it is first.
    fn in_turn(&self, key: &[u8]) -> impl Iterator<Item = Vec<u8>> {
        let turn = turn();
        (0..WAYS).map(move |way| self.key(key, turn.wrapping_add(way) % WAYS))
    }

    fn next_key(&self, key: &[u8]) -> Vec<u8> {
        self.in_turn(key).next().expect("there are some")
    }

    /// Adds an operand to a counter.
    ///
    /// # Errors
    /// As [`ShardedKeyspace::merge`].
    pub fn merge<'a>(&self, key: impl AsRef<[u8]>, operand: impl Into<Operand<'a>>) -> Result<()> {
        self.keyspace.merge(self.next_key(key.as_ref()), operand)
    }

    /// [`HotCounters::merge`] that fails rather than wait. It does where all shards that have a part
    /// of this counter are busy.
    ///
    /// # Errors
    /// As [`ShardedKeyspace::try_merge`]; `Busy` with the time after which the first of them is not.
    pub fn try_merge<'a>(
        &self,
        key: impl AsRef<[u8]>,
        operand: impl Into<Operand<'a>>,
    ) -> Result<()> {
        let operand = operand.into();
        let mut soonest: Option<Error> = None;
        for key in self.in_turn(key.as_ref()) {
            match self.keyspace.try_merge(key, operand.as_bytes()) {
                Err(error) if error.is_busy() => {
                    let is_sooner = |before: &Error| retry_after(&error) < retry_after(before);
                    if soonest.as_ref().is_none_or(is_sooner) {
                        soonest = Some(error);
                    }
                }
                done => return done,
            }
        }
        Err(soonest.expect("all were busy"))
    }

    /// Adds an operand to a counter in a batch, in a shard that has a part in that batch already, if one
    /// of them has a part of the counter.
    pub fn merge_in<'a>(
        &self,
        batch: &mut ShardedBatch,
        key: impl AsRef<[u8]>,
        operand: impl Into<Operand<'a>>,
    ) {
        let key = key.as_ref();
        let at_hand = self.in_turn(key).find(|key| batch.reaches(key));
        batch.merge(&self.keyspace, at_hand.unwrap_or_else(|| self.next_key(key)), operand);
    }

    /// The value of a counter, as of now.
    ///
    /// # Errors
    /// As [`ShardedKeyspace::get`].
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        let key = key.as_ref();
        self.fold(key, self.keyspace.multi_get(&self.keys(key))?)
    }

    /// The value of a counter, as of this snapshot.
    ///
    /// # Errors
    /// As [`ShardedKeyspace::get`]; `InvalidArgument` if the snapshot is of another database.
    pub fn get_at(
        &self,
        snapshot: &ShardedSnapshot,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Slice>> {
        let key = key.as_ref();
        let then: ShardedKeyspaceSnapshot = snapshot.keyspace(&self.keyspace)?;
        self.fold(key, then.multi_get(&self.keys(key))?)
    }

    /// Removes a counter, in all shards at once.
    ///
    /// # Errors
    /// As [`ShardedBatch::commit`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        let mut batch = ShardedBatch::new(self.keyspace.handle.clone());
        for key in self.keys(key.as_ref()) {
            batch.delete(&self.keyspace, key);
        }
        batch.commit()
    }

    fn keys(&self, key: &[u8]) -> Vec<Vec<u8>> {
        (0..WAYS).map(|way| self.key(key, way)).collect()
    }

    /// What the values of all sub-counters are together.
    fn fold(&self, key: &[u8], values: Vec<Option<Slice>>) -> Result<Option<Slice>> {
        let values: Vec<Slice> = values.into_iter().flatten().collect();
        if values.is_empty() {
            return Ok(None);
        }
        let operands: Vec<&[u8]> = values.iter().map(|value| &**value).collect();
        let full = AssertUnwindSafe(|| self.operator.full(key, None, &operands));
        // A user's code: a panic in it becomes an error.
        match catch_unwind(full) {
            Ok(Ok(Merged::Put(value))) => Ok(Some(Slice::from(&value[..]))),
            Ok(Ok(Merged::Delete)) => Ok(None),
            Ok(Err(_)) | Err(_) => Err(Error::new(ErrorKind::MergeFailed { key: key.to_vec() })),
        }
    }
}

pub(crate) fn unfit(name: &str) -> Error {
    Error::invalid(format!(
        "keyspace {name:?} needs a merge operator that folds in any order, as wrapping counters, Max \
         and Min do"
    ))
}

/// How long a writer is told to wait.
fn retry_after(error: &Error) -> std::time::Duration {
    match error.kind() {
        ErrorKind::Busy { retry_after, .. } => *retry_after,
        _ => std::time::Duration::MAX,
    }
}

impl fmt::Debug for HotCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HotCounters({:?})", self.name())
    }
}
