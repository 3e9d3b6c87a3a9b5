//! The coalescer: operands of the same key are folded in memory, then written as one.
//!
//! ```text
//! add --> [ shard ] [ shard ] ... --window over, or full--> [ turn ] --one batch--> the keyspace
//!          one folded operand a key                          under way, with its token
//! ```
//!
//! 1. An operand is folded into the one of its key that is pending. Operators of the engine fold in
//!    place, under the lock of a shard. A user's operator is code that runs under no lock: its
//!    operands are kept as they came, and folded by `partial` when they are written.
//! 2. Once the window is over, or too much is pending, the thread takes everything out of the
//!    shards: this is a *turn*. It is committed as one batch by an idempotent commit, so a turn whose
//!    outcome a failure of the disk left unknown is simply committed again.
//! 3. While a turn is under way, pending operands gather anew.
//!
//! # Reading through it
//! What a key is worth is what a snapshot has, and the operands of the turn unless the snapshot saw
//! its token, and what is pending. To take all three as of one moment: note how many turns have
//! ended, take the snapshot, then, under the lock that begins and ends turns, look whether another
//! one has ended since; if so, start over.
//!
//! Lock order: the state, then the turn, then a shard.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::db::Db;
use crate::db::batch::Batch;
use crate::db::keyspace::Keyspace;
use crate::db::once::EventId;
use crate::error::{BusyCause, Error, ErrorKind, Result};
use crate::key;
use crate::operator::{Merged, Operand, Quick};
use crate::options::Durability;
use crate::read::get::fold;
use crate::runtime::{Condvar, Mutex, Priority, Task};
use crate::slice::Slice;
use crate::write::pressure::{Patience, Pressure};

/// Enough that as many threads rarely meet; each is locked for some 20 ns.
const SHARDS: usize = 16;
/// What a pending key costs beside its bytes: its place in the table.
const KEY_OVERHEAD_BYTES: usize = size_of::<Pending>() + 8;
/// The source of the tokens of turns.
const SOURCE: &str = "\0coalescer";
/// A turn that could not be committed is tried again so often.
const RETRY: Duration = Duration::from_millis(100);

/// Choices for a [`Coalescer`]. Make one with `default()` and change fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CoalescerOptions {
    /// Pending operands are written at the latest so long after the first of them came: what a
    /// crash may cost, together with the time of a commit. Default 1 s.
    pub window: Duration,
    /// Pending operands are written once they have so many keys. Default 100,000.
    pub keys_max: usize,
    /// Pending operands are written once they take so many bytes; who adds more than twice as much
    /// waits, or gets `Busy`. At most an eighth of what the memory budget has for memtables.
    /// Default 8 MiB.
    pub bytes_max: usize,
    /// What a write survives. Default: the level that the database was opened with.
    pub durability: Option<Durability>,
}

impl Default for CoalescerOptions {
    fn default() -> CoalescerOptions {
        let (window, keys_max) = (Duration::from_secs(1), 100_000);
        CoalescerOptions { window, keys_max, bytes_max: 8 << 20, durability: None }
    }
}

/// Folds operands of the same key in memory and writes one for each key and window. Share it by
/// reference or in an `Arc`.
///
/// A crash loses what was added since the last write: at most the window and the time of a commit.
/// What is written is written once. Dropping the coalescer writes what is pending and waits for it;
/// who needs to know how that ended calls [`Coalescer::flush`].
///
/// Operands keep their order for each key if one thread adds them; between them and operands that
/// are merged past the coalescer there is no order.
pub struct Coalescer {
    shared: Arc<Shared>,
    task: Option<Task>,
}

struct Shared {
    db: Db,
    keyspace: Keyspace,
    options: CoalescerOptions,
    durability: Durability,
    quick: Option<Quick>,
    shards: [Mutex<HashTable<Pending>>; SHARDS],
    /// Tells the tokens of this coalescer's turns from those of others; a turn adds its number.
    instance: [u8; 24],
    /// Keys and bytes in the shards.
    key_count: AtomicUsize,
    bytes: AtomicUsize,
    turn: Mutex<TurnState>,
    state: Mutex<State>,
    /// Something became pending or too much is, a flush is wanted, or the coalescer closes.
    work: Condvar,
    /// A turn ended.
    ended: Condvar,
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
struct TurnState {
    under_way: Option<Arc<Turn>>,
    /// Turns that were begun.
    number: u64,
    ended_count: u64,
}

/// What is being written.
struct Turn {
    shards: Vec<HashTable<Pending>>,
    token: [u8; 24],
}

#[derive(Default)]
struct State {
    /// When the first of what is pending came.
    since: Option<Duration>,
    is_full: bool,
    wanted_count: u64,
    flushed_count: u64,
    failure: Option<Error>,
    /// How long a turn takes, smoothed, and when the one under way began, if one is.
    turn_time: Duration,
    turn_began: Option<Duration>,
    /// Whether somebody was refused meanwhile, and how long turns took during which that was so:
    /// about the longest of late. They are the ones that the database held back.
    has_refused: bool,
    full_time: Duration,
    closed: bool,
}

impl Pending {
    fn bytes(key: &[u8], operand: &[u8]) -> usize {
        KEY_OVERHEAD_BYTES + key.len() + operand.len()
    }

    fn operands(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.operand[..]).chain(self.later.iter().map(|operand| &**operand))
    }
}

impl Coalescer {
    /// A coalescer in front of `keyspace`, which has a merge operator.
    ///
    /// # Errors
    /// `InvalidArgument` if it has none, or a bound is 0; `Io` if no thread can be started.
    pub fn new(db: &Db, keyspace: &Keyspace, options: CoalescerOptions) -> Result<Coalescer> {
        let engine = db.engine();
        if !Arc::ptr_eq(&db.handle, &keyspace.handle) {
            let what = format!("keyspace {:?} is of another database", keyspace.name());
            return Err(Error::invalid(what));
        }
        if options.keys_max == 0 || options.bytes_max == 0 {
            return Err(Error::invalid("the bounds of a coalescer are at least 1"));
        }
        let Some(operator) = keyspace.tree.operator() else {
            let name = keyspace.name();
            return Err(Error::invalid(format!("keyspace {name:?} has no merge operator")));
        };
        let bytes_max = options.bytes_max.min(engine.limits.memtables_bytes_max / 8);
        let mut instance = [0; 24];
        instance[..16].copy_from_slice(&fastrand::u128(..).to_le_bytes());
        let shared = Arc::new(Shared {
            db: db.clone(),
            keyspace: keyspace.clone(),
            durability: options.durability.unwrap_or(engine.options.durability),
            quick: Quick::of(operator.name()),
            options: CoalescerOptions { bytes_max, ..options },
            shards: Default::default(),
            instance,
            key_count: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            turn: Mutex::default(),
            state: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
        });
        let running = shared.clone();
        let task = engine.runtime.spawn("coalescer", Priority::Normal, move || running.run());
        let task = task.map_err(|error| Error::io("start a thread for", &engine.dir, error))?;
        Ok(Coalescer { shared, task: Some(task) })
    }

    /// Adds an operand. Waits while too much is pending; an operand that folds into a pending one of
    /// the same size never does.
    ///
    /// # Errors
    /// `InvalidArgument` if key or operand is too large or the operator refuses it.
    #[inline]
    pub fn add<'a>(&self, key: impl AsRef<[u8]>, operand: impl Into<Operand<'a>>) -> Result<()> {
        self.shared.add(key.as_ref(), operand.into().as_bytes(), Patience::Wait)
    }

    /// [`Coalescer::add`] that fails at once where it would have to wait.
    ///
    /// # Errors
    /// As [`Coalescer::add`], and `Busy` with the time after which to try again.
    pub fn try_add<'a>(
        &self,
        key: impl AsRef<[u8]>,
        operand: impl Into<Operand<'a>>,
    ) -> Result<()> {
        self.shared.add(key.as_ref(), operand.into().as_bytes(), Patience::None)
    }

    /// [`Coalescer::add`] that waits at most so long.
    ///
    /// # Errors
    /// As [`Coalescer::try_add`].
    pub fn add_within<'a>(
        &self,
        key: impl AsRef<[u8]>,
        operand: impl Into<Operand<'a>>,
        wait: Duration,
    ) -> Result<()> {
        let patience = self.shared.db.engine().deadline(wait);
        self.shared.add(key.as_ref(), operand.into().as_bytes(), patience)
    }

    /// The value of a key with everything that was added before this call.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        self.shared.get(key.as_ref())
    }

    /// Writes everything that was added before this call, and waits until it is.
    ///
    /// # Errors
    /// The first failure since the last flush. What could not be written for the disk's sake stays
    /// pending and is tried again; after `Closed` it is lost with its keyspace.
    pub fn flush(&self) -> Result<()> {
        let mut state = self.shared.state.lock();
        state.wanted_count += 1;
        let wanted = state.wanted_count;
        self.shared.work.notify_one();
        while state.flushed_count < wanted && state.failure.is_none() {
            self.shared.ended.wait(&mut state);
        }
        state.failure.take().map_or(Ok(()), Err)
    }

    /// How full it is, or how close the database is to being outrun, whichever is more.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        let pending = self.pending().1 as f64 / (2 * self.shared.options.bytes_max) as f64;
        self.shared.db.pressure().behind_queue(pending)
    }

    /// Keys that have something pending, and the bytes that takes, without what is being written.
    #[must_use]
    pub fn pending(&self) -> (usize, usize) {
        let Shared { key_count, bytes, .. } = &*self.shared;
        (key_count.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed))
    }
}

impl Drop for Coalescer {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.work.notify_one();
        if let Some(task) = self.task.take() {
            task.join();
        }
    }
}

impl fmt::Debug for Coalescer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((keys, bytes), name) = (self.pending(), self.shared.keyspace.name());
        write!(f, "Coalescer({name:?}, {keys} keys of {bytes} bytes pending)")
    }
}

impl Shared {
    #[inline]
    fn shard(hash: u64) -> usize {
        (hash >> 60) as usize % SHARDS
    }

    #[inline]
    fn add(&self, key: &[u8], operand: &[u8], patience: Patience) -> Result<()> {
        if !self.quick.is_some_and(|quick| quick.takes(operand)) {
            self.keyspace.tree.check_operand(operand)?;
        }
        let hash = key::hash(key);
        let mut shard = self.shards[Shared::shard(hash)].lock();
        if let Some(quick) = self.quick
            && let Some(pending) = shard.find_mut(hash, |pending| *pending.key == *key)
            // `append` grows.
            && quick != Quick::Append
        {
            quick.fold(&mut pending.operand, operand);
            return Ok(());
        }
        drop(shard);
        self.add_more(hash, key, operand, patience)
    }

    /// Adds what takes memory.
    #[cold]
    fn add_more(&self, hash: u64, key: &[u8], operand: &[u8], patience: Patience) -> Result<()> {
        self.db.engine().check_sizes(key, operand)?;
        self.wait_room(Pending::bytes(key, operand), patience)?;
        let mut shard = self.shards[Shared::shard(hash)].lock();
        let is_first = match shard.find_mut(hash, |pending| *pending.key == *key) {
            Some(pending) => {
                match self.quick {
                    Some(quick) => quick.fold(&mut pending.operand, operand),
                    None => pending.later.push(operand.into()),
                }
                self.bytes.fetch_add(operand.len(), Ordering::Relaxed);
                false
            }
            None => {
                let operand = SmallVec::from_slice(operand);
                let bytes = Pending::bytes(key, &operand);
                let pending = Pending { hash, key: key.into(), operand, later: Vec::new() };
                shard.insert_unique(hash, pending, |pending| pending.hash);
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                self.key_count.fetch_add(1, Ordering::Relaxed) == 0
            }
        };
        drop(shard);
        let is_full = self.key_count.load(Ordering::Relaxed) >= self.options.keys_max
            || self.bytes.load(Ordering::Relaxed) >= self.options.bytes_max;
        if is_first || is_full {
            let now = self.db.engine().runtime.now();
            let mut state = self.state.lock();
            state.since.get_or_insert(now);
            state.is_full |= is_full;
            self.work.notify_one();
        }
        Ok(())
    }

    /// Waits until so many bytes more may become pending.
    fn wait_room(&self, bytes: usize, patience: Patience) -> Result<()> {
        let has_room = || {
            let pending = self.bytes.load(Ordering::Relaxed);
            pending == 0 || pending + bytes <= 2 * self.options.bytes_max
        };
        if has_room() {
            return Ok(());
        }
        let mut state = self.state.lock();
        while !has_room() {
            let busy = |state: &mut State| Error::busy(BusyCause::Queue, self.retry_after(state));
            match patience {
                Patience::Wait => _ = self.ended.wait_for(&mut state, RETRY),
                Patience::None => return Err(busy(&mut state)),
                Patience::Until(deadline) => {
                    let left = deadline.saturating_sub(self.db.engine().runtime.now());
                    if left.is_zero() {
                        return Err(busy(&mut state));
                    }
                    self.ended.wait_for(&mut state, left.min(RETRY));
                }
            }
        }
        Ok(())
    }

    /// When the next turn will take everything out: once the one under way has ended, and a half of
    /// its time later.
    fn retry_after(&self, state: &mut State) -> Duration {
        state.has_refused = true;
        let Some(began) = state.turn_began else { return RETRY };
        let usual = state.turn_time.max(state.full_time);
        let usual = usual + usual / 2;
        let took = self.db.engine().runtime.now().saturating_sub(began);
        // What takes longer than usual may well take so much longer again.
        let left = usual.checked_sub(took).unwrap_or(took);
        left.max(Duration::from_micros(100))
    }

    // Reads.

    fn get(&self, key: &[u8]) -> Result<Option<Slice>> {
        let hash = key::hash(key);
        loop {
            let before = self.turn.lock().ended_count;
            let snapshot = self.db.snapshot();
            let turn = self.turn.lock();
            if turn.ended_count != before {
                continue;
            }
            let (mut pending, under_way) = (Vec::new(), turn.under_way.clone());
            let shard = self.shards[Shared::shard(hash)].lock();
            let found = shard.find(hash, |pending| *pending.key == *key);
            pending.extend(found.iter().flat_map(|found| found.operands()).map(Slice::from));
            drop((shard, turn));

            let mut operands: Vec<Slice> = Vec::new();
            let of_turn = under_way.as_ref().and_then(|turn| turn.find(hash, key));
            if let (Some(turn), Some(found)) = (&under_way, of_turn) {
                let saw = self.db.engine().saw(&turn.event(), snapshot.seqno())?;
                operands.extend(found.operands().filter(|_| !saw).map(Slice::from));
            }
            operands.extend(pending);
            let base = snapshot.keyspace(&self.keyspace)?.get(key)?;
            if operands.is_empty() {
                return Ok(base);
            }
            operands.reverse();
            return match fold(&self.keyspace.tree, key, base.as_deref(), &operands)? {
                Merged::Put(value) => Ok(Some(Slice::from(&value[..]))),
                Merged::Delete => Ok(None),
            };
        }
    }

    // The thread.

    fn run(&self) {
        let mut batch = self.db.batch();
        let mut is_stuck = false;
        while let Some(wanted) = self.wait_due(is_stuck) {
            let runtime = &self.db.engine().runtime;
            let began_at = runtime.now();
            self.state.lock().turn_began = Some(began_at);
            let began = self.begin_turn(&mut batch);
            // There is room again.
            self.ended.notify_all();
            let committed = self.commit_turn(&mut batch);
            is_stuck = self.turn.lock().under_way.is_some();
            let took = runtime.now().saturating_sub(began_at);
            let mut state = self.state.lock();
            state.turn_time = (state.turn_time * 3 + took) / 4;
            state.turn_began = None;
            if std::mem::take(&mut state.has_refused) {
                state.full_time = took.max((state.full_time * 15 + took) / 16);
            }
            match committed {
                // What is pending beside a turn that was stuck comes with the next one.
                Ok(()) if !began => {}
                Ok(()) => state.flushed_count = wanted,
                Err(error) => _ = state.failure.get_or_insert(error),
            }
            self.ended.notify_all();
            if is_stuck && state.closed {
                // The loss that the window states.
                return;
            }
        }
    }

    /// Waits until something is to be written: how many flushes have been asked for by then. `None`
    /// once the coalescer is closed and nothing is left.
    fn wait_due(&self, is_stuck: bool) -> Option<u64> {
        let runtime = &self.db.engine().runtime;
        let mut state = self.state.lock();
        if is_stuck {
            if !state.closed {
                self.work.wait_for(&mut state, RETRY);
            }
            return Some(state.wanted_count);
        }
        loop {
            if state.closed && self.key_count.load(Ordering::Relaxed) == 0 {
                return None;
            }
            let age = |since: Duration| runtime.now().saturating_sub(since);
            let left = state.since.map(|since| self.options.window.saturating_sub(age(since)));
            let wanted = state.wanted_count > state.flushed_count;
            if state.closed || state.is_full || wanted || left == Some(Duration::ZERO) {
                return Some(state.wanted_count);
            }
            match left {
                Some(left) => _ = self.work.wait_for(&mut state, left),
                None => self.work.wait(&mut state),
            }
        }
    }

    /// Takes everything out of the shards, and puts it into the batch. False if an earlier turn is
    /// still under way.
    fn begin_turn(&self, batch: &mut Batch) -> bool {
        {
            let mut state = self.state.lock();
            let turn = self.turn.lock();
            if turn.under_way.is_some() {
                return false;
            }
            (state.is_full, state.since) = (false, None);
        }
        let mut turn = self.turn.lock();
        let taken = self.shards.iter().map(|shard| std::mem::take(&mut *shard.lock()));
        let shards: Vec<HashTable<Pending>> = taken.collect();
        let pendings = || shards.iter().flat_map(HashTable::iter);
        let keys = pendings().count();
        let bytes = |pending: &Pending| {
            let operands: usize = pending.operands().map(<[u8]>::len).sum();
            Pending::bytes(&pending.key, &[]) + operands
        };
        self.bytes.fetch_sub(pendings().map(bytes).sum(), Ordering::Relaxed);
        let left = self.key_count.fetch_sub(keys, Ordering::Relaxed) - keys;
        if keys > 0 {
            turn.number += 1;
            let mut token = self.instance;
            token[16..].copy_from_slice(&turn.number.to_le_bytes());
            let begun = Arc::new(Turn { shards, token });
            turn.under_way = Some(begun.clone());
            drop(turn);
            batch.clear();
            // Operators are called here: no lock is held.
            let all = begun.shards.iter().flat_map(HashTable::iter);
            all.for_each(|pending| self.put_into(batch, pending));
        }
        if left > 0 {
            // It came while the shards were emptied, and did not look like the first.
            let now = self.db.engine().runtime.now();
            self.state.lock().since.get_or_insert(now);
        }
        true
    }

    fn put_into(&self, batch: &mut Batch, pending: &Pending) {
        let operands: Vec<&[u8]> = pending.operands().collect();
        if operands.len() > 1
            && let Some(operator) = self.keyspace.tree.operator()
        {
            let partial = AssertUnwindSafe(|| operator.partial(&pending.key, &operands));
            if let Ok(Some(folded)) = catch_unwind(partial) {
                batch.merge(&self.keyspace, &pending.key, &folded);
                return;
            }
        }
        for operand in operands {
            batch.merge(&self.keyspace, &pending.key, operand);
        }
    }

    /// Commits the turn that is under way, if one is.
    fn commit_turn(&self, batch: &mut Batch) -> Result<()> {
        let under_way = self.turn.lock().under_way.clone();
        let Some(begun) = under_way else { return Ok(()) };
        // Once it was placed the batch is empty, and committing it again only asks for its token.
        let committed = batch.commit_once_with(begun.event(), self.durability);
        let is_over = match &committed {
            Ok(_) => true,
            // Nothing that comes later would help.
            Err(error) => matches!(error.kind(), ErrorKind::Closed | ErrorKind::InvalidArgument),
        };
        if is_over {
            batch.clear();
            let mut turn = self.turn.lock();
            turn.under_way = None;
            turn.ended_count += 1;
        }
        committed.map(|_| ())
    }
}

impl Turn {
    fn event(&self) -> EventId<'_> {
        EventId::new(SOURCE, &self.token)
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<&Pending> {
        self.shards[Shared::shard(hash)].find(hash, |pending| *pending.key == *key)
    }
}
