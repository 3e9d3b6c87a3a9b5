//! The batcher: items of many producers are committed together, by a thread of its own.
//!
//! ```text
//! producers --add--> [ open group ] --full, or older than linger--> [ group ] --commit--> tickets
//!                    \_______________ pending_bytes_max _______________/
//! ```
//!
//! 1. An item is checked by its producer, outside the lock, so that a bad one fails alone.
//! 2. It joins the last group, or begins one if that has no room for it.
//! 3. The thread commits groups oldest first, each as one atomic batch. While it syncs one, the next
//!    fills: under load groups grow by themselves.
//! 4. A group that fails because a keyspace was dropped meanwhile is committed again item by item,
//!    so that only those fail whose keyspace it was. Any other failure is that of all its items.
//!
//! Until its ticket resolves an item is in memory only.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::db::Db;
use crate::db::batch::Batch;
use crate::db::keyspace::Keyspace;
use crate::error::{BusyCause, Error, ErrorKind, Result};
use crate::operator::Operand;
use crate::options::Durability;
use crate::runtime::{Condvar, Mutex, MutexGuard, Priority, Task};
use crate::write::pressure::{Patience, Pressure};

/// Choices for a [`Batcher`]. Make one with `default()` and change fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BatcherOptions {
    /// A group is committed once it has so many items. Default 1000.
    pub count_max: usize,
    /// A group is committed once its operations take so many bytes; a larger item is a group of its
    /// own. Default 1 MiB.
    pub bytes_max: usize,
    /// A group is committed at the latest so long after its first item came. Default 1 ms.
    pub linger: Duration,
    /// Items that are not committed take at most so many bytes together; who adds more waits, or
    /// gets `Busy`. Default 16 MiB.
    pub pending_bytes_max: usize,
    /// When a group counts as committed. Default: the level that the database was opened with.
    pub durability: Option<Durability>,
}

impl Default for BatcherOptions {
    fn default() -> BatcherOptions {
        BatcherOptions {
            count_max: 1000,
            bytes_max: 1 << 20,
            linger: Duration::from_millis(1),
            pending_bytes_max: 16 << 20,
            durability: None,
        }
    }
}

/// Commits items of many producers in groups, each group as one atomic batch. Share it by
/// reference or in an `Arc`.
///
/// Items of one producer are committed in the order in which it added them. Dropping the batcher
/// commits what is pending and waits for it; who needs to know how that ended calls
/// [`Batcher::flush`] or keeps the tickets.
pub struct Batcher {
    shared: Arc<Shared>,
    task: Option<Task>,
}

struct Shared {
    db: Db,
    options: BatcherOptions,
    durability: Durability,
    state: Mutex<State>,
    /// A group began or is full, a flush is wanted, or the batcher closes.
    work: Condvar,
    /// A group was settled.
    settled: Condvar,
}

#[derive(Default)]
struct State {
    /// Oldest first; the last one takes items.
    groups: VecDeque<Group>,
    /// Bytes of all items that are not settled, those being committed included.
    pending_bytes: usize,
    added_count: u64,
    settled_count: u64,
    /// Items up to this one are to be committed without lingering.
    wanted_count: u64,
    /// The first failure since the last flush.
    failure: Option<Error>,
    /// How long a commit takes, smoothed.
    commit_time: Duration,
    /// When the one under way began, if one is, and whether somebody was refused meanwhile.
    commit_began: Option<Duration>,
    has_refused: bool,
    /// How long those took during which somebody was refused: about the longest of late. They are
    /// the ones that the database held back, and far longer than most.
    full_time: Duration,
    /// An emptied batch, kept for its memory.
    spare: Option<Batch>,
    closed: bool,
}

struct Group {
    batch: Batch,
    /// Where each item ends in the batch.
    ends: Vec<(usize, u32)>,
    /// What its items count as, together.
    bytes: usize,
    began: Duration,
    outcome: Arc<Outcome>,
}

/// How a group ended, for its tickets.
#[derive(Default)]
struct Outcome {
    state: Mutex<OutcomeState>,
    done: Condvar,
}

#[derive(Default)]
struct OutcomeState {
    ended: Option<Ended>,
    wakers: Vec<Waker>,
}

enum Ended {
    Together(Result<()>),
    /// By the number of the item.
    Each(Vec<Result<()>>),
}

/// Resolves once an item of a [`Batcher`] is committed, or has failed. Dropping it cancels nothing.
#[must_use = "dropping a ticket cancels nothing, but then only Batcher::flush tells of a failure"]
pub struct ItemTicket {
    outcome: Arc<Outcome>,
    index: usize,
}

impl Batcher {
    /// A batcher in front of `db`.
    ///
    /// # Errors
    /// `InvalidArgument` if a bound is 0; `Io` if no thread can be started.
    pub fn new(db: &Db, options: BatcherOptions) -> Result<Batcher> {
        if options.count_max == 0 || options.bytes_max == 0 || options.pending_bytes_max == 0 {
            return Err(Error::invalid("the bounds of a batcher are at least 1"));
        }
        let engine = db.engine();
        let durability = options.durability.unwrap_or(engine.options.durability);
        let shared = Arc::new(Shared {
            db: db.clone(),
            options,
            durability,
            state: Mutex::default(),
            work: Condvar::new(),
            settled: Condvar::new(),
        });
        let running = shared.clone();
        let task = engine.runtime.spawn("batcher", Priority::Normal, move || running.run());
        let task = task.map_err(|error| Error::io("start a thread for", &engine.dir, error))?;
        Ok(Batcher { shared, task: Some(task) })
    }

    /// Adds an item of one put. Waits while too much is pending.
    ///
    /// # Errors
    /// `InvalidArgument` if key or value is too large or the keyspace is of another database.
    pub fn put(
        &self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<ItemTicket> {
        let mut item = self.shared.db.batch();
        item.put(keyspace, key, value);
        self.add(&item)
    }

    /// Adds an item of one operand. Waits while too much is pending.
    ///
    /// # Errors
    /// As [`Batcher::put`], and if the keyspace's operator refuses the operand.
    pub fn merge<'a>(
        &self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        operand: impl Into<Operand<'a>>,
    ) -> Result<ItemTicket> {
        let mut item = self.shared.db.batch();
        item.merge(keyspace, key, operand);
        self.add(&item)
    }

    /// Adds an item: all operations of a batch, which may be cleared and used again. Waits while too
    /// much is pending.
    ///
    /// # Errors
    /// `InvalidArgument` if one of its operations is at fault, or it has guards.
    pub fn add(&self, item: &Batch) -> Result<ItemTicket> {
        self.shared.add(item, Patience::Wait)
    }

    /// [`Batcher::add`] that fails at once where it would have to wait.
    ///
    /// # Errors
    /// As [`Batcher::add`], and `Busy` with the time after which to try again.
    pub fn try_add(&self, item: &Batch) -> Result<ItemTicket> {
        self.shared.add(item, Patience::None)
    }

    /// [`Batcher::add`] that waits at most so long.
    ///
    /// # Errors
    /// As [`Batcher::try_add`].
    pub fn add_within(&self, item: &Batch, wait: Duration) -> Result<ItemTicket> {
        self.shared.add(item, self.shared.db.engine().deadline(wait))
    }

    /// Commits everything that was added before this call, and waits until it is.
    ///
    /// # Errors
    /// The first failure of any item since the last flush, whoever added it.
    pub fn flush(&self) -> Result<()> {
        let mut state = self.shared.state.lock();
        let upto = state.added_count;
        state.wanted_count = state.wanted_count.max(upto);
        self.shared.work.notify_one();
        while state.settled_count < upto {
            self.shared.settled.wait(&mut state);
        }
        state.failure.take().map_or(Ok(()), Err)
    }

    /// How full it is, or how close the database is to being outrun, whichever is more.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        let pending = self.pending().1 as f64 / self.shared.options.pending_bytes_max as f64;
        self.shared.db.pressure().behind_queue(pending)
    }

    /// Items and their bytes that were added and are not committed.
    #[must_use]
    pub fn pending(&self) -> (u64, usize) {
        let state = self.shared.state.lock();
        (state.added_count - state.settled_count, state.pending_bytes)
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.work.notify_one();
        if let Some(task) = self.task.take() {
            task.join();
        }
    }
}

impl fmt::Debug for Batcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, bytes) = self.pending();
        write!(f, "Batcher({count} items of {bytes} bytes pending)")
    }
}

impl Shared {
    fn add(&self, item: &Batch, patience: Patience) -> Result<ItemTicket> {
        let engine = self.db.engine();
        item.check_appendable(&self.db.handle)?;
        if item.is_empty() {
            let outcome = Arc::new(Outcome::default());
            outcome.end(Ended::Together(Ok(())));
            return Ok(ItemTicket { outcome, index: 0 });
        }
        let bytes = item.bytes();
        let mut state = self.state.lock();
        // A lone item may be larger than the bound.
        while state.pending_bytes > 0
            && state.pending_bytes + bytes > self.options.pending_bytes_max
        {
            let retry_after = self.retry_after(&mut state);
            match patience {
                Patience::Wait => self.settled.wait(&mut state),
                Patience::None => return Err(Error::busy(BusyCause::Queue, retry_after)),
                Patience::Until(deadline) => {
                    let left = deadline.saturating_sub(engine.runtime.now());
                    if left.is_zero() {
                        return Err(Error::busy(BusyCause::Queue, retry_after));
                    }
                    self.settled.wait_for(&mut state, left);
                }
            }
        }
        state.pending_bytes += bytes;
        state.added_count += 1;
        let takes = |group: &Group| {
            !self.is_full(group) && group.batch.bytes() + bytes <= self.options.bytes_max
        };
        let begins = !state.groups.back().is_some_and(takes);
        if begins {
            let batch = state.spare.take().unwrap_or_else(|| self.db.batch());
            let (began, outcome) = (engine.runtime.now(), Arc::default());
            state.groups.push_back(Group { batch, ends: Vec::new(), bytes: 0, began, outcome });
        }
        let group = state.groups.back_mut().expect("there is one");
        group.bytes += bytes;
        group.batch.append(item);
        group.ends.push(group.batch.position());
        let ticket = ItemTicket { outcome: group.outcome.clone(), index: group.ends.len() - 1 };
        // Its clock begins to run, or there is nothing left to wait for.
        if begins || self.is_full(group) {
            self.work.notify_one();
        }
        Ok(ticket)
    }

    fn is_full(&self, group: &Group) -> bool {
        group.ends.len() >= self.options.count_max || group.batch.bytes() >= self.options.bytes_max
    }

    /// Until the group being committed has ended there will be no room: the time that is left of it,
    /// and as long again, so that everybody who was refused meanwhile comes when there is room again.
    fn retry_after(&self, state: &mut State) -> Duration {
        state.has_refused = true;
        let usual = state.commit_time.max(state.full_time);
        let usual = usual * 2;
        let left = match state.commit_began {
            Some(began) => {
                let took = self.db.engine().runtime.now().saturating_sub(began);
                // What takes longer than usual may well take so much longer again.
                usual.checked_sub(took).unwrap_or(took)
            }
            None if state.groups.len() > 1 => usual,
            None => usual + self.options.linger,
        };
        left.max(Duration::from_micros(100))
    }

    /// Commits groups until the batcher closes and none is left.
    fn run(&self) {
        let mut state = self.state.lock();
        while let Some(group) = self.next_group(&mut state) {
            drop(state);
            let (count, bytes) = (group.ends.len() as u64, group.bytes);
            let runtime = &self.db.engine().runtime;
            let began = runtime.now();
            self.state.lock().commit_began = Some(began);
            let (batch, failure) = self.commit(group);
            let took = runtime.now().saturating_sub(began);
            state = self.state.lock();
            state.commit_began = None;
            if std::mem::take(&mut state.has_refused) {
                state.full_time = took.max((state.full_time * 15 + took) / 16);
            }
            state.commit_time = (state.commit_time * 3 + took) / 4;
            state.pending_bytes -= bytes;
            state.settled_count += count;
            if state.failure.is_none() {
                state.failure = failure;
            }
            state.spare = Some(batch);
            self.settled.notify_all();
        }
    }

    /// The oldest group, once it is due; `None` once the batcher is closed and empty.
    fn next_group(&self, state: &mut MutexGuard<'_, State>) -> Option<Group> {
        loop {
            let Some(oldest) = state.groups.front() else {
                if state.closed {
                    return None;
                }
                self.work.wait(state);
                continue;
            };
            let wanted = state.closed || state.wanted_count > state.settled_count;
            let age = self.db.engine().runtime.now().saturating_sub(oldest.began);
            let left = self.options.linger.saturating_sub(age);
            if wanted || state.groups.len() > 1 || self.is_full(oldest) || left.is_zero() {
                return state.groups.pop_front();
            }
            self.work.wait_for(state, left);
        }
    }

    /// Commits a group and tells its tickets. Returns its batch, emptied, and the first failure.
    fn commit(&self, group: Group) -> (Batch, Option<Error>) {
        let Group { mut batch, ends, outcome, .. } = group;
        let start = self.db.batch().position();
        // Refused for a keyspace that was dropped, it still has its operations.
        let committed = batch.commit_with(self.durability);
        let dropped = committed.as_ref().is_err_and(|error| *error.kind() == ErrorKind::Closed);
        let ended = if dropped && ends.len() > 1 {
            let pieces = ends.iter().scan(start, |from, to| {
                let piece = batch.piece(*from, *to);
                *from = *to;
                Some(piece)
            });
            Ended::Each(pieces.map(|mut piece| piece.commit_with(self.durability)).collect())
        } else {
            Ended::Together(committed)
        };
        let failure = match &ended {
            Ended::Together(result) => result.as_ref().err(),
            Ended::Each(results) => results.iter().find_map(|result| result.as_ref().err()),
        };
        let failure = failure.map(Error::duplicate);
        outcome.end(ended);
        batch.clear();
        (batch, failure)
    }
}

impl Outcome {
    fn end(&self, ended: Ended) {
        let mut state = self.state.lock();
        state.ended = Some(ended);
        let wakers = std::mem::take(&mut state.wakers);
        self.done.notify_all();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl OutcomeState {
    fn of(&self, index: usize) -> Option<Result<()>> {
        let result = match self.ended.as_ref()? {
            Ended::Together(result) => result,
            Ended::Each(results) => &results[index],
        };
        Some(result.as_ref().copied().map_err(Error::duplicate))
    }
}

impl ItemTicket {
    /// Blocks until the item is committed.
    ///
    /// # Errors
    /// As [`Batch::commit_with`] of the group that it was in.
    pub fn wait(self) -> Result<()> {
        let mut state = self.outcome.state.lock();
        loop {
            if let Some(result) = state.of(self.index) {
                return result;
            }
            self.outcome.done.wait(&mut state);
        }
    }

    /// True if [`ItemTicket::wait`] would not block.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.outcome.state.lock().ended.is_some()
    }
}

impl Future for ItemTicket {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = self.outcome.state.lock();
        if let Some(result) = state.of(self.index) {
            return Poll::Ready(result);
        }
        if !state.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            state.wakers.push(context.waker().clone());
        }
        Poll::Pending
    }
}

impl fmt::Debug for ItemTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ItemTicket(done: {})", self.is_done())
    }
}
