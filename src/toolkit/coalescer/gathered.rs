//! What a coalescer has gathered: operands that are pending, and those of the turn under way.
//!
//! A turn takes everything out of the shards at one moment: all of them are locked together. With a
//! queue an operand is appended to its log under the lock of its shard, so a turn has exactly the
//! events of the log up to some number: its *cut*.
//!
//! Lock order: the turn, then the shards in order.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::db::batch::Batch;
use crate::db::keyspace::Keyspace;
use crate::key;
use crate::operator::Quick;
use crate::runtime::{Mutex, MutexGuard};
use crate::slice::Slice;
use crate::toolkit::ingest::queue::{Cut, Turns};

/// Enough that as many threads rarely meet; each is locked for some 20 ns.
const SHARDS: usize = 16;
/// What a pending key costs beside its bytes: its place in the table.
const KEY_OVERHEAD_BYTES: usize = size_of::<Pending>() + 8;

/// See the module's comment.
pub(super) struct Gathered {
    pub keyspace: Keyspace,
    quick: Option<Quick>,
    shards: [Mutex<Shard>; SHARDS],
    /// Keys and bytes in the shards.
    key_count: AtomicUsize,
    bytes: AtomicUsize,
    pub turn: Mutex<TurnState>,
    /// Tells the tokens of this coalescer's turns from those of others; a turn adds its number.
    instance: [u8; 24],
}

/// Pending operands of some keys.
#[derive(Default)]
pub(super) struct Shard {
    keys: HashTable<Pending>,
    /// Where the last operand went in the log of the queue, if there is one.
    pub last: Option<Cut>,
}

/// The operands of a key.
struct Pending {
    hash: u64,
    key: Box<[u8]>,
    /// The oldest operand; the only one if the operator is quick.
    operand: SmallVec<[u8; 16]>,
    later: Vec<Box<[u8]>>,
}

#[derive(Default)]
pub(super) struct TurnState {
    pub under_way: Option<Arc<Turn>>,
    /// Of the last turn that was begun.
    number: u64,
    /// Turns that ended, and resets.
    pub ended_count: u64,
}

/// What is being written.
pub(super) struct Turn {
    shards: Vec<HashTable<Pending>>,
    pub token: [u8; 24],
    /// The last event of the queue's log that it has, if there is a queue.
    pub cut: Option<Cut>,
}

impl Pending {
    fn operands(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.operand[..]).chain(self.later.iter().map(|operand| &**operand))
    }
}

impl Shard {
    /// Folds an operand into one that is pending, where that takes no memory. False if it cannot.
    #[inline]
    pub fn fold(&mut self, quick: Option<Quick>, hash: u64, key: &[u8], operand: &[u8]) -> bool {
        if let Some(quick) = quick
            && let Some(pending) = self.keys.find_mut(hash, |pending| *pending.key == *key)
            // `append` grows.
            && quick != Quick::Append
        {
            quick.fold(&mut pending.operand, operand);
            return true;
        }
        false
    }

    /// True if a key has something pending.
    pub fn has(&self, hash: u64, key: &[u8]) -> bool {
        self.find(hash, key).is_some()
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<&Pending> {
        self.keys.find(hash, |pending| *pending.key == *key)
    }
}

impl Gathered {
    pub fn new(keyspace: Keyspace, quick: Option<Quick>) -> Gathered {
        let engine = &keyspace.handle.engine;
        let mut instance = [0; 24];
        instance[..16].copy_from_slice(&engine.runtime.unique_id().to_le_bytes());
        // Every turn takes a sequence number at least: even where a session draws the same number as
        // one before it, as with a stepper, none of its turns has the token of one that was applied.
        let number = engine.pipeline.ring.visible().0;
        Gathered {
            keyspace,
            quick,
            shards: Default::default(),
            key_count: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            turn: Mutex::new(TurnState { number, ..TurnState::default() }),
            instance,
        }
    }

    /// What an operand of a key that has none pending takes.
    pub fn bytes_of(key: &[u8], operand: &[u8]) -> usize {
        KEY_OVERHEAD_BYTES + key.len() + operand.len()
    }

    /// Keys that have something pending, and the bytes that takes.
    #[inline]
    pub fn pending(&self) -> (usize, usize) {
        (self.key_count.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// The shard of a key, locked.
    #[inline]
    pub fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        self.shards[index(hash)].lock()
    }

    /// Adds an operand to a locked shard. True if nothing at all was pending before.
    pub fn insert(&self, shard: &mut Shard, hash: u64, key: &[u8], operand: &[u8]) -> bool {
        match shard.keys.find_mut(hash, |pending| *pending.key == *key) {
            Some(pending) => {
                match self.quick {
                    Some(quick) => quick.fold(&mut pending.operand, operand),
                    None => pending.later.push(operand.into()),
                }
                self.bytes.fetch_add(operand.len(), Ordering::Relaxed);
                false
            }
            None => {
                let bytes = Gathered::bytes_of(key, operand);
                let operand = SmallVec::from_slice(operand);
                let pending = Pending { hash, key: key.into(), operand, later: Vec::new() };
                shard.keys.insert_unique(hash, pending, |pending| pending.hash);
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                self.key_count.fetch_add(1, Ordering::Relaxed) == 0
            }
        }
    }

    /// The pending operands of a key, oldest first.
    pub fn operands(&self, hash: u64, key: &[u8]) -> Vec<Slice> {
        let shard = self.shard(hash);
        let found = shard.find(hash, key);
        found.iter().flat_map(|found| found.operands()).map(Slice::from).collect()
    }

    /// Takes everything out of the shards for the next turn, which is then under way if there is
    /// anything.
    pub fn begin_turn(&self) -> Option<Arc<Turn>> {
        let mut turn = self.turn.lock();
        let (shards, cut) = self.take();
        if shards.iter().all(HashTable::is_empty) {
            return None;
        }
        turn.number += 1;
        let mut token = self.instance;
        token[16..].copy_from_slice(&turn.number.to_le_bytes());
        let begun = Arc::new(Turn { shards, token, cut });
        turn.under_way = Some(begun.clone());
        Some(begun)
    }

    /// Empties all shards at one moment; the last event of the log that went into one of them.
    fn take(&self) -> (Vec<HashTable<Pending>>, Option<Cut>) {
        let mut locked: Vec<_> = self.shards.iter().map(Mutex::lock).collect();
        self.key_count.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        let lasts = locked.iter_mut().filter_map(|shard| shard.last.take());
        let cut = lasts.max_by_key(|last| last.number);
        (locked.iter_mut().map(|shard| std::mem::take(&mut shard.keys)).collect(), cut)
    }

    /// The turn is written, or never will be.
    pub fn end_turn(&self) {
        let mut turn = self.turn.lock();
        turn.under_way = None;
        turn.ended_count += 1;
    }

    /// Puts one operand for each key into a batch, or all of a key that do not fold.
    pub fn put_into(&self, batch: &mut Batch, turn: &Turn) {
        for pending in turn.shards.iter().flat_map(HashTable::iter) {
            let operands: SmallVec<[&[u8]; 8]> = pending.operands().collect();
            put_folded(&self.keyspace, &pending.key, &operands, batch);
        }
    }
}

/// The queue's consumer writes turns, and forgets what was gathered where the log is read instead.
impl Turns for Arc<Gathered> {
    fn fill(&self, batch: &mut Batch) {
        // Operators are called here: no lock is held.
        let under_way = self.turn.lock().under_way.clone();
        if let Some(turn) = under_way {
            self.put_into(batch, &turn);
        }
    }

    fn reset(&self) {
        let mut turn = self.turn.lock();
        turn.under_way = None;
        turn.ended_count += 1;
        drop(self.take());
    }
}

impl Turn {
    /// The operands of a key, oldest first.
    pub fn operands(&self, hash: u64, key: &[u8]) -> Vec<Slice> {
        let found = self.shards[index(hash)].find(hash, |pending| *pending.key == *key);
        found.iter().flat_map(|found| found.operands()).map(Slice::from).collect()
    }
}

#[inline]
fn index(hash: u64) -> usize {
    (hash >> 60) as usize % SHARDS
}

/// Puts operands of a key, oldest first, into a batch: as one, if the operator folds them.
pub(super) fn put_folded(keyspace: &Keyspace, key: &[u8], operands: &[&[u8]], batch: &mut Batch) {
    if operands.len() > 1
        && let Some(operator) = keyspace.tree.operator()
    {
        let partial = AssertUnwindSafe(|| operator.partial(key, operands));
        if let Ok(Some(folded)) = catch_unwind(partial) {
            batch.merge(keyspace, key, &folded);
            return;
        }
    }
    for operand in operands {
        batch.merge(keyspace, key, *operand);
    }
}

/// A key of events, with its hash and its operands.
type OfKey<'a> = (u64, &'a [u8], Vec<&'a [u8]>);

/// Puts the operands of events that are read from the queue's log, oldest first, into a batch.
pub(super) fn put_events<'a>(
    keyspace: &Keyspace,
    events: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    batch: &mut Batch,
) {
    let mut keys: HashTable<OfKey<'_>> = HashTable::new();
    for (key, operand) in events {
        let hash = key::hash(key);
        let entry = keys.entry(hash, |(_, found, _)| *found == key, |(hash, ..)| *hash);
        let entry = entry.or_insert_with(|| (hash, key, Vec::new()));
        entry.into_mut().2.push(operand);
    }
    for (_, key, operands) in keys {
        put_folded(keyspace, key, &operands, batch);
    }
}
