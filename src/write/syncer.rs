//! What of the log is durable, and who waits for it.
//!
//! A writer that finds no sync under way syncs the log itself: alone, that is the fastest. Those
//! that come meanwhile wait; when the sync ends and more is wanted, the syncer thread takes over
//! and syncs for all of them at once (measured 1.5 to 2 times the rate of handing over from
//! writer to writer at 8 to 32 writers). A sync waits a little for those whom the last one released
//! ([`gather`](super::gather)).
//!
//! In a shard, what is synced is durable only once the joint commits before it are closed
//! ([`closing`](super::closing)).
//!
//! The sync never runs under the commit lock. It samples what is copied, syncs the files oldest
//! first, and publishes exactly its sample as durable.

use std::task::Waker;
use std::time::Duration;

use super::closing::Peer;
use super::commit::Pipeline;
use super::gather::Gather;
use super::sync::{AtomicU64, Clock, Condvar, Mutex, MutexGuard, Ordering};

use crate::error::{DegradedCause, Error, Result};
use crate::file::Lsn;

/// How long the syncer thread waits for a commit that is being published before it looks again.
const PUBLICATION: Duration = Duration::from_micros(100);

/// See the module's comment.
pub(crate) struct Syncer {
    durable: AtomicU64,
    /// Everything before it is in the synced log, or in tables: durable but for joint commits.
    stable: AtomicU64,
    /// The log itself is durable up to here. Records bear witness of this, not of `durable`: what
    /// is in tables need not be in the log any more.
    synced: AtomicU64,
    state: Mutex<State>,
    /// A sync ended, or failed.
    done: Condvar,
    /// The syncer thread has work.
    work: Condvar,
    /// All have come for whom a sync waits.
    gathered: Condvar,
    clock: Clock,
}

#[derive(Default)]
struct State {
    /// A thread is syncing, or the syncer thread is about to. Never two at once: the kernel tells
    /// of a failed write-back once, so that the other would take what was lost for durable.
    running: bool,
    /// The syncer thread is the one that is about to.
    handed_over: bool,
    /// The largest position that somebody waits for.
    wanted: Lsn,
    /// Set once a sync has failed: nothing that is not durable will become so.
    failure: Option<Error>,
    /// It was a sync of this log, which is then never synced again.
    is_own: bool,
    /// Tickets that are awaited, with the position that each waits for.
    wakers: Vec<(Lsn, Waker)>,
    /// Those who wait in [`Pipeline::wait_durable`].
    gather: Gather,
    stopped: bool,
}

impl Syncer {
    pub fn new(durable: Lsn, clock: Clock) -> Syncer {
        Syncer {
            durable: AtomicU64::new(durable.0),
            stable: AtomicU64::new(durable.0),
            synced: AtomicU64::new(durable.0),
            state: Mutex::new(State::default()),
            done: Condvar::new(),
            work: Condvar::new(),
            gathered: Condvar::new(),
            clock,
        }
    }

    /// Every commit whose record lies before this position survives power loss.
    #[inline]
    pub fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }

    /// As [`Syncer::durable`], whatever became of the joint commits before it.
    #[inline]
    fn stable(&self) -> Lsn {
        Lsn(self.stable.load(Ordering::Acquire))
    }

    /// Every byte of the log from where its replay begins up to here survives power loss.
    #[inline]
    pub fn synced(&self) -> Lsn {
        Lsn(self.synced.load(Ordering::Acquire))
    }

    /// Asks the syncer thread for a sync through `lsn` without waiting for it.
    fn request(&self, lsn: Lsn) {
        if self.stable() >= lsn {
            return;
        }
        let mut state = self.state.lock();
        state.wanted = state.wanted.max(lsn);
        if !state.running && !state.stopped {
            state.running = true;
            state.handed_over = true;
            self.work.notify_one();
        }
    }

    /// Calls `waker` once the log is durable through `lsn` or cannot become so. True if that is
    /// the case already.
    pub fn wake_when_durable(&self, lsn: Lsn, waker: &Waker) -> bool {
        let mut state = self.state.lock();
        if self.durable() >= lsn || state.failure.is_some() || state.stopped {
            return true;
        }
        if !state.wakers.iter().any(|(at, known)| *at == lsn && known.will_wake(waker)) {
            state.wakers.push((lsn, waker.clone()));
        }
        false
    }

    /// Ends the syncer thread.
    pub fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        self.work.notify_all();
        self.gathered.notify_all();
        self.wake(&mut state);
    }

    fn wake_all(&self) {
        let mut state = self.state.lock();
        self.wake(&mut state);
    }

    fn wake(&self, state: &mut State) {
        let durable = self.durable();
        let all = state.failure.is_some() || state.stopped;
        state.wakers.retain(|(lsn, waker)| {
            let due = all || *lsn <= durable;
            if due {
                waker.wake_by_ref();
            }
            !due
        });
        self.done.notify_all();
    }
}

impl Pipeline {
    /// Waits until the log is durable through `lsn`, which must be published.
    ///
    /// # Errors
    /// If a sync has failed: what was not durable before is unknown until resume or reopen.
    pub fn wait_durable(&self, lsn: Lsn) -> Result<()> {
        let syncer = &self.syncer;
        if syncer.durable() >= lsn {
            return Ok(());
        }
        if let Some(member) = &self.member {
            // First, so that their syncs and this one's run side by side.
            member.request(lsn);
        }
        let mut state = syncer.state.lock();
        let mut has_arrived = false;
        loop {
            if syncer.durable() >= lsn {
                return Ok(());
            }
            if !std::mem::replace(&mut has_arrived, true) && state.gather.arrive() {
                syncer.gathered.notify_one();
            }
            if state.running {
                state.wanted = state.wanted.max(lsn);
                syncer.done.wait(&mut state);
                continue;
            }
            // After the turn: who hears of it may rely on the others having been told.
            if let Some(failure) = &state.failure {
                return Err(Error::degraded(DegradedCause::LogSync).context(failure.to_string()));
            }
            if syncer.stable() >= lsn {
                // Held back by other shards, which were asked.
                syncer.done.wait(&mut state);
                continue;
            }
            state.running = true;
            drop(state);
            state = self.sync_in_turn();
            if state.handed_over {
                syncer.work.notify_one();
            }
        }
    }

    /// True if a joint commit that is not closed begins before `lsn`.
    pub fn has_unclosed_before(&self, lsn: Lsn) -> bool {
        self.member.as_ref().is_some_and(|member| member.has_unclosed_before(lsn))
    }

    /// Asks for everything that makes the log durable through `lsn`, without waiting for it.
    pub fn request_durable(&self, lsn: Lsn) {
        self.syncer.request(lsn);
        if let Some(member) = &self.member {
            member.request(lsn);
        }
    }

    /// Everything before `lsn` is durable by other means: in tables that the manifest names.
    pub fn covered(&self, lsn: Lsn) {
        self.note_stable(lsn);
        self.syncer.wake_all();
    }

    /// Forgets a failure, after everything visible was made durable by other means through
    /// `durable`.
    pub fn reset_syncer(&self, durable: Lsn) {
        {
            let mut state = self.syncer.state.lock();
            (state.failure, state.is_own) = (None, false);
        }
        self.covered(durable);
    }

    fn note_stable(&self, lsn: Lsn) {
        self.syncer.stable.fetch_max(lsn.0, Ordering::AcqRel);
        match &self.member {
            None => _ = self.syncer.durable.fetch_max(lsn.0, Ordering::AcqRel),
            Some(member) => member.joints.settle(member.shard, self),
        }
    }

    /// The sync of whoever has the turn, and its outcome.
    fn sync_in_turn(&self) -> MutexGuard<'_, State> {
        self.gather();
        let synced = self.sync_once();
        if let (Ok(sample), Some(_)) = (&synced, &self.member) {
            // Not under the lock: it wakes waiters of other shards, under theirs.
            self.note_stable(*sample);
        }
        let mut state = self.syncer.state.lock();
        self.end_sync(&mut state, synced);
        if let (Some(failure), Some(member)) = (&state.failure, &self.member) {
            let failure = failure.duplicate();
            // Still this one's turn, for which a resume waits: told after it, the others would take
            // a log for failed that is well again.
            state.running = true;
            drop(state);
            member.fail(&failure);
            state = self.syncer.state.lock();
            state.running = false;
            self.syncer.wake(&mut state);
        }
        state
    }

    /// Waits for those for whom it is worth while, before a sync begins.
    fn gather(&self) {
        let syncer = &self.syncer;
        let mut state = syncer.state.lock();
        let mut now = syncer.clock.now();
        while !state.stopped
            && let Some(left) = state.gather.left(now)
        {
            syncer.gathered.wait_for(&mut state, left);
            now = syncer.clock.now();
        }
        state.gather.begin(now);
    }

    /// Waits until nobody syncs, and all whom a failure concerns were told.
    pub fn wait_no_sync(&self) {
        let mut state = self.syncer.state.lock();
        while state.running && !state.stopped {
            self.syncer.done.wait(&mut state);
        }
    }

    /// One sync of everything that is copied now.
    fn sync_once(&self) -> Result<Lsn> {
        let sample = self.ring.copied();
        self.logs.sync(sample)?;
        Ok(sample)
    }

    /// Publishes a sync's outcome; if more is wanted, the syncer thread is to go on.
    fn end_sync(&self, state: &mut State, synced: Result<Lsn>) {
        state.gather.end(self.syncer.clock.now());
        match synced {
            Ok(sample) => {
                self.syncer.synced.fetch_max(sample.0, Ordering::AcqRel);
                if self.member.is_none() {
                    self.note_stable(sample);
                }
                state.running = state.wanted > sample && !state.stopped;
                if state.running && self.ring.has_failed() {
                    // What is wanted will never be copied.
                    state.running = false;
                    state.failure.get_or_insert(self.breaker.error());
                }
                if !state.running {
                    // Without it, the group that was just synced has no witness until the next
                    // commit.
                    self.mark_synced();
                }
            }
            Err(error) => {
                state.running = false;
                // No commit that is not durable may be acknowledged as such, and no later sync
                // may be trusted: the kernel may have dropped what it could not write.
                self.breaker.open(DegradedCause::LogSync, &error);
                state.failure.get_or_insert(error);
                state.is_own = true;
            }
        }
        state.handed_over = state.running;
        self.syncer.wake(state);
    }

    /// True if all that could be synced now is, and what is wanted is not published yet: so it is of
    /// a joint commit of which another shard was asked to sync its part, between the two.
    fn awaits_publication(&self, state: &State) -> bool {
        let copied = self.ring.copied();
        let is_idle = copied <= self.syncer.stable() && copied < state.wanted;
        let may_come = !state.stopped && state.failure.is_none() && !self.ring.has_failed();
        state.handed_over && is_idle && may_come
    }

    /// The syncer thread: syncs whenever more is wanted, and at least once in `interval`.
    pub fn run_syncer(&self, interval: Option<Duration>) {
        let syncer = &self.syncer;
        let mut state = syncer.state.lock();
        loop {
            let mut due = false;
            // A sync of a writer's own that is under way serves the interval as well.
            while !state.handed_over && !state.stopped && (!due || state.running) {
                match interval {
                    Some(interval) => due = syncer.work.wait_for(&mut state, interval),
                    None => syncer.work.wait(&mut state),
                }
            }
            while self.awaits_publication(&state) {
                syncer.work.wait_for(&mut state, PUBLICATION);
            }
            let handed_over = std::mem::take(&mut state.handed_over);
            let behind = self.ring.copied() > syncer.stable();
            let is_needed = state.failure.is_none() && (handed_over || behind);
            if state.stopped || !is_needed {
                state.running &= !handed_over;
                syncer.done.notify_all();
                if state.stopped {
                    return;
                }
                continue;
            }
            state.running = true;
            drop(state);
            state = self.sync_in_turn();
        }
    }
}

impl Peer for Pipeline {
    fn stable(&self) -> Lsn {
        self.syncer.stable()
    }

    fn raise_durable(&self, durable: Lsn) -> bool {
        self.syncer.durable.fetch_max(durable.0, Ordering::AcqRel) < durable.0
    }

    fn wake(&self) {
        self.syncer.wake_all();
    }

    fn request(&self, lsn: Lsn) {
        self.syncer.request(lsn);
    }

    fn sync_through(&self, lsn: Lsn) -> Result<()> {
        let syncer = &self.syncer;
        let mut state = syncer.state.lock();
        while syncer.stable() < lsn {
            if state.is_own {
                let failure = state.failure.as_ref().map_or_else(String::new, Error::to_string);
                return Err(Error::degraded(DegradedCause::LogSync).context(failure));
            }
            if state.running {
                state.wanted = state.wanted.max(lsn);
                syncer.done.wait(&mut state);
                continue;
            }
            state.running = true;
            drop(state);
            state = self.sync_in_turn();
            if state.handed_over {
                syncer.work.notify_one();
            }
        }
        Ok(())
    }

    fn held_back(&self, error: &Error) {
        self.breaker.open(DegradedCause::LogSync, error);
        let mut state = self.syncer.state.lock();
        state.failure.get_or_insert(error.duplicate());
        self.syncer.wake(&mut state);
    }
}
