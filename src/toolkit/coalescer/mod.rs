//! The coalescer: operands of the same key are folded in memory, then written as one.
//!
//! ```text
//! add --> [ shard ] [ shard ] ... --window over, or full--> [ turn ] --one batch--> the keyspace
//!   |      one folded operand a key                          under way
//!   +--> [ log of a queue ], if there is one: what is not written survives a crash
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
//! With a queue an operand is first an event of its log, and acknowledged when that is. A turn is
//! then committed by the queue's consumer, with the offset after its last event in the same record.
//! The log is read only where something was lost from memory: at an open, and after a resume.
//!
//! # Reading through it
//! What a key is worth is what a snapshot has, and the operands of the turn unless the snapshot saw
//! its token, or its offset, and what is pending. To take all three as of one moment: note how many
//! turns have ended, take the snapshot, then, under the lock that begins and ends turns, look whether
//! another one has ended since; if so, start over.
//!
//! Lock order: the state, then the turn, then a shard, then the log of the queue.

mod gathered;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::db::Db;
use crate::db::batch::Batch;
use crate::db::keyspace::Keyspace;
use crate::db::once::EventId;
use crate::db::snapshot::Snapshot;
use crate::error::{BusyCause, Error, ErrorKind, Result};
use crate::key;
use crate::operator::{Merged, Operand, Quick};
use crate::options::Durability;
use crate::read::get::fold;
use crate::runtime::{Condvar, Mutex, Priority, Task};
use crate::slice::Slice;
use crate::toolkit::coalescer::gathered::{Gathered, Turn, put_events};
use crate::toolkit::ingest::IngestQueue;
use crate::toolkit::ingest::options::IngestOptions;
use crate::toolkit::ingest::queue::Cut;
use crate::write::pressure::{Patience, Pressure};
use crate::write::ticket::Ticket;

/// The source of the tokens of turns.
const SOURCE: &str = "\0coalescer";
/// A turn that could not be committed is tried again so often.
const RETRY: Duration = Duration::from_millis(100);
/// The log of a queue holds at most so much that is not written; a turn begins at an eighth of it.
const LOG_BYTES_MAX: u64 = 256 << 20;

/// Choices for a [`Coalescer`]. Make one with `default()` and change fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CoalescerOptions {
    /// Pending operands are written at the latest so long after the first of them came: what a
    /// crash may cost, together with the time of a commit, unless there is a `queue`. Default 1 s.
    pub window: Duration,
    /// Pending operands are written once they have so many keys. Default 100,000.
    pub keys_max: usize,
    /// Pending operands are written once they take so many bytes; who adds more than twice as much
    /// waits, or gets `Busy`. At most an eighth of what the memory budget has for memtables.
    /// Default 8 MiB.
    pub bytes_max: usize,
    /// What a write survives; with a `queue`, what an operand survives from the moment that it is
    /// added. Default: the level that the database was opened with.
    pub durability: Option<Durability>,
    /// Keep every operand in the log of the [`IngestQueue`] of this name until it is written: then
    /// no crash costs one that was added. Default: none, nothing is kept.
    pub queue: Option<String>,
}

impl Default for CoalescerOptions {
    fn default() -> CoalescerOptions {
        let (window, keys_max) = (Duration::from_secs(1), 100_000);
        CoalescerOptions { window, keys_max, bytes_max: 8 << 20, durability: None, queue: None }
    }
}

/// Folds operands of the same key in memory and writes one for each key and window. Share it by
/// reference or in an `Arc`.
///
/// A crash loses what was added since the last write: at most the window and the time of a commit;
/// with [`CoalescerOptions::queue`] nothing: what was not written comes back when a coalescer with
/// the same queue is made. What is written is written once. Dropping the coalescer writes what is
/// pending and waits for it; who needs to know how that ended calls [`Coalescer::flush`].
///
/// Operands keep their order for each key if one thread adds them; between them and operands that
/// are merged past the coalescer there is no order.
pub struct Coalescer {
    shared: Arc<Shared>,
    task: Option<Task>,
}

struct Shared {
    db: Db,
    options: CoalescerOptions,
    durability: Durability,
    quick: Option<Quick>,
    gathered: Arc<Gathered>,
    queue: Option<IngestQueue>,
    state: Mutex<State>,
    /// Something became pending or too much is, a flush is wanted, or the coalescer closes.
    work: Condvar,
    /// A turn ended.
    ended: Condvar,
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

impl Coalescer {
    /// A coalescer in front of `keyspace`, which has a merge operator. With a queue, what an earlier
    /// session added and did not write is written first.
    ///
    /// # Errors
    /// `InvalidArgument` if it has none, or a bound is 0; `Io` if no thread can be started. With a
    /// queue, as [`IngestQueue::open`].
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
        let quick = Quick::of(operator.name());
        let gathered = Arc::new(Gathered::new(keyspace.clone(), quick));
        let queue = match &options.queue {
            Some(name) => Some(open_queue(db, name, &options, &gathered)?),
            None => None,
        };
        let shared = Arc::new(Shared {
            db: db.clone(),
            durability: options.durability.unwrap_or(engine.options.durability),
            quick,
            options: CoalescerOptions { bytes_max, ..options },
            gathered,
            queue,
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
    /// the same size never does, unless there is a queue, whose log it takes room in.
    ///
    /// # Errors
    /// `InvalidArgument` if key or operand is too large or the operator refuses it. With a queue, as
    /// [`IngestQueue::push`].
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

    /// The queue that keeps what is pending, if there is one: its statistics, its breaker, and
    /// [`IngestQueue::resume`] after a failure of its log.
    #[must_use]
    pub fn queue(&self) -> Option<&IngestQueue> {
        self.shared.queue.as_ref()
    }

    /// How full it is, or how close the database is to being outrun, whichever is more.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        let pending = self.pending().1 as f64 / (2 * self.shared.options.bytes_max) as f64;
        let log = self.shared.queue.as_ref().map_or(0.0, |queue| queue.pressure().value);
        self.shared.db.pressure().behind_queue(pending.max(log))
    }

    /// Keys that have something pending, and the bytes that takes, without what is being written.
    #[must_use]
    pub fn pending(&self) -> (usize, usize) {
        self.shared.gathered.pending()
    }
}

impl Drop for Coalescer {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.work.notify_one();
        if let Some(task) = self.task.take() {
            task.join();
        }
        // What could not be written stays in the queue, whose consumer ends with it.
    }
}

impl fmt::Debug for Coalescer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((keys, bytes), name) = (self.pending(), self.shared.gathered.keyspace.name());
        write!(f, "Coalescer({name:?}, {keys} keys of {bytes} bytes pending)")
    }
}

/// Opens the queue of a coalescer, and has what an earlier session left in it written.
fn open_queue(
    db: &Db,
    name: &str,
    options: &CoalescerOptions,
    gathered: &Arc<Gathered>,
) -> Result<IngestQueue> {
    let mut of_queue = IngestOptions::default();
    (of_queue.durability, of_queue.bytes_max) = (options.durability, LOG_BYTES_MAX);
    let keyspace = gathered.keyspace.clone();
    let queue =
        IngestQueue::gathering(db, name, of_queue, gathered.clone(), move |events, batch| {
            put_events(&keyspace, events.iter().map(|event| (event.key, event.bytes)), batch);
            Ok(())
        })?;
    queue.flush()?;
    Ok(queue)
}

impl Shared {
    #[inline]
    fn add(&self, key: &[u8], operand: &[u8], patience: Patience) -> Result<()> {
        if !self.quick.is_some_and(|quick| quick.takes(operand)) {
            self.gathered.keyspace.tree.check_operand(operand)?;
        }
        let hash = key::hash(key);
        if self.queue.is_none() && self.gathered.shard(hash).fold(self.quick, hash, key, operand) {
            return Ok(());
        }
        self.add_more(hash, key, operand, patience)
    }

    /// Adds what takes memory, or room in the log of the queue.
    #[cold]
    fn add_more(&self, hash: u64, key: &[u8], operand: &[u8], patience: Patience) -> Result<()> {
        self.db.engine().check_sizes(key, operand)?;
        let Some(queue) = &self.queue else {
            self.wait_room(Gathered::bytes_of(key, operand), patience)?;
            let mut shard = self.gathered.shard(hash);
            let is_first = self.gathered.insert(&mut shard, hash, key, operand);
            drop(shard);
            self.note_pending(is_first);
            return Ok(());
        };
        if !self.gathered.shard(hash).has(hash, key) {
            self.wait_room(Gathered::bytes_of(key, operand), patience)?;
        }
        let now = queue.queue.admit(key, operand, patience)?;
        let mut shard = self.gathered.shard(hash);
        let (log, place) = queue.queue.append(key, operand, now)?;
        let folds = shard.fold(self.quick, hash, key, operand);
        let is_first = !folds && self.gathered.insert(&mut shard, hash, key, operand);
        let pipeline = log.pipeline.clone();
        shard.last = Some(Cut { number: place.last_seqno, lsn: place.end_lsn, log });
        drop(shard);
        self.note_pending(is_first);
        Ticket::new(pipeline, place, self.durability).wait()
    }

    /// Sees to it that what became pending is written in time.
    fn note_pending(&self, is_first: bool) {
        let (keys, bytes) = self.gathered.pending();
        let log_bytes =
            self.queue.as_ref().map_or(0, |queue| queue.queue.log.load().backlog_bytes());
        let is_full = keys >= self.options.keys_max
            || bytes >= self.options.bytes_max
            || log_bytes >= LOG_BYTES_MAX / 8;
        if is_first || is_full {
            let now = self.db.engine().runtime.now();
            let mut state = self.state.lock();
            state.since.get_or_insert(now);
            state.is_full |= is_full;
            self.work.notify_one();
        }
    }

    /// Waits until so many bytes more may become pending.
    fn wait_room(&self, bytes: usize, patience: Patience) -> Result<()> {
        let has_room = || {
            let pending = self.gathered.pending().1;
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

    /// When the next turn will take everything out: once the one under way has ended, and its time
    /// later.
    fn retry_after(&self, state: &mut State) -> Duration {
        state.has_refused = true;
        let Some(began) = state.turn_began else { return RETRY };
        let usual = state.turn_time.max(state.full_time);
        let usual = usual * 2;
        let took = self.db.engine().runtime.now().saturating_sub(began);
        // What takes longer than usual may well take so much longer again.
        let left = usual.checked_sub(took).unwrap_or(took);
        left.max(Duration::from_micros(100))
    }

    // Reads.

    fn get(&self, key: &[u8]) -> Result<Option<Slice>> {
        let (hash, keyspace) = (key::hash(key), &self.gathered.keyspace);
        loop {
            let before = self.gathered.turn.lock().ended_count;
            if let Some(queue) = &self.queue {
                queue.queue.wait_replayed()?;
            }
            let snapshot = self.db.snapshot();
            let turn = self.gathered.turn.lock();
            if turn.ended_count != before {
                continue;
            }
            let under_way = turn.under_way.clone();
            let pending = self.gathered.operands(hash, key);
            drop(turn);

            let of_turn = under_way.as_ref().map(|turn| turn.operands(hash, key));
            let mut operands = of_turn.unwrap_or_default();
            if let (Some(turn), false) = (&under_way, operands.is_empty())
                && self.saw(turn, &snapshot)?
            {
                operands.clear();
            }
            operands.extend(pending);
            let base = snapshot.keyspace(keyspace)?.get(key)?;
            if operands.is_empty() {
                return Ok(base);
            }
            operands.reverse();
            return match fold(&keyspace.tree, key, base.as_deref(), &operands)? {
                Merged::Put(value) => Ok(Some(Slice::from(&value[..]))),
                Merged::Delete => Ok(None),
            };
        }
    }

    /// True if a snapshot has what this turn wrote.
    fn saw(&self, turn: &Turn, snapshot: &Snapshot) -> Result<bool> {
        match (&self.queue, &turn.cut) {
            (Some(queue), Some(cut)) => Ok(queue.queue.applied_at(snapshot)? >= cut.number),
            _ => self.db.engine().saw(&event(turn), snapshot.seqno()),
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
            is_stuck = self.gathered.turn.lock().under_way.is_some();
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
                // The loss that the window states, unless there is a queue.
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
            if state.closed && self.gathered.pending().0 == 0 {
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

    /// Begins a turn, and fills the batch with it unless the queue's consumer will. False if an
    /// earlier turn is still under way.
    fn begin_turn(&self, batch: &mut Batch) -> bool {
        {
            let mut state = self.state.lock();
            if self.gathered.turn.lock().under_way.is_some() {
                return false;
            }
            (state.is_full, state.since) = (false, None);
        }
        let begun = self.gathered.begin_turn();
        if let (Some(turn), None) = (&begun, &self.queue) {
            batch.clear();
            // Operators are called here: no lock is held.
            self.gathered.put_into(batch, turn);
        }
        true
    }

    /// Commits the turn that is under way, if one is.
    fn commit_turn(&self, batch: &mut Batch) -> Result<()> {
        let under_way = self.gathered.turn.lock().under_way.clone();
        let Some(begun) = under_way else { return Ok(()) };
        let committed = match (&self.queue, &begun.cut) {
            (Some(queue), Some(cut)) => queue.queue.apply_turn(cut),
            // Once it was placed the batch is empty, and committing it again only asks for its token.
            _ => batch.commit_once_with(event(&begun), self.durability).map(|_| ()),
        };
        let is_over = match &committed {
            Ok(()) => true,
            // Nothing that comes later would help.
            Err(error) => matches!(error.kind(), ErrorKind::Closed | ErrorKind::InvalidArgument),
        };
        if is_over {
            batch.clear();
            self.gathered.end_turn();
        }
        committed
    }
}

fn event(turn: &Turn) -> EventId<'_> {
    EventId::new(SOURCE, &turn.token)
}
