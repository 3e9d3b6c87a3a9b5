//! The breaker: refuses writes after the disk has failed, while reads go on.
//!
//! ```text
//!   Closed --failure--> Open --probe or resume()--> HalfOpen --success--> Closed
//!                        ^                             |
//!                        +--------------failure--------+
//! ```
//!
//! A failure while half-open opens it too: the repair that is under way then does not close it, and
//! no second one begins before that one has ended.
//!
//! A full disk heals itself: the background work probes for free space and closes the breaker.
//! Everything else needs `Db::resume`, and corruption needs a person.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::error::{DegradedCause, Error, ErrorKind, Result};
use crate::runtime::{Condvar, Mutex};

/// Changes that are kept for those who watch and are slow.
const CHANGES_MAX: usize = 256;

/// Whether writes are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// Writes are taken.
    #[default]
    Closed,
    /// Writes are refused at once.
    Open,
    /// A repair is being tried; writes are refused until it has succeeded.
    HalfOpen,
}

/// A change of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BreakerChange {
    /// The state from then on.
    pub state: BreakerState,
    /// What failed, unless it closed.
    pub cause: Option<DegradedCause>,
}

/// Hears of every change of a breaker from the moment that it was made, in order and without
/// polling: as an iterator it waits for the next one, and ends when what it watches is closed. It
/// keeps nothing open.
///
/// Who is more than 256 changes behind misses the oldest.
pub struct BreakerWatch {
    changes: Arc<Changes>,
    /// The number of the next change.
    next: u64,
}

/// The changes of a breaker, for those who watch it.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    history: Mutex<History>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct History {
    /// The last ones.
    list: VecDeque<BreakerChange>,
    /// How many there were.
    count: u64,
    ended: bool,
}

impl Changes {
    /// A watch from now on.
    pub fn watch(self: &Arc<Changes>) -> BreakerWatch {
        let next = self.history.lock().count;
        BreakerWatch { changes: self.clone(), next }
    }

    /// Notes how a breaker is now, if that is a change.
    pub fn note(&self, state: BreakerState, cause: Option<DegradedCause>) {
        let change = BreakerChange { state, cause };
        let mut history = self.history.lock();
        let before = history.list.back().copied();
        let closed = BreakerChange { state: BreakerState::Closed, cause: None };
        if before.unwrap_or(closed) == change {
            return;
        }
        if history.list.len() == CHANGES_MAX {
            history.list.pop_front();
        }
        history.list.push_back(change);
        history.count += 1;
        self.changed.notify_all();
    }

    /// There will be no more changes.
    pub fn end(&self) {
        self.history.lock().ended = true;
        self.changed.notify_all();
    }
}

impl BreakerWatch {
    /// The next change if there is one already.
    pub fn try_next(&mut self) -> Option<BreakerChange> {
        let changes = self.changes.clone();
        self.take(&changes.history.lock())
    }

    /// The next change, if there is one within this time; `None` also once what it watches is closed.
    pub fn next_within(&mut self, wait: Duration) -> Option<BreakerChange> {
        self.wait(Some(wait))
    }

    fn take(&mut self, history: &History) -> Option<BreakerChange> {
        let first = history.count - history.list.len() as u64;
        self.next = self.next.max(first);
        let change = history.list.get((self.next - first) as usize).copied();
        self.next += u64::from(change.is_some());
        change
    }

    fn wait(&mut self, wait: Option<Duration>) -> Option<BreakerChange> {
        let changes = self.changes.clone();
        let mut history = changes.history.lock();
        let mut is_over = false;
        loop {
            let change = self.take(&history);
            if change.is_some() || history.ended || is_over {
                return change;
            }
            match wait {
                None => changes.changed.wait(&mut history),
                Some(wait) => is_over = changes.changed.wait_for(&mut history, wait),
            }
        }
    }
}

impl Iterator for BreakerWatch {
    type Item = BreakerChange;

    fn next(&mut self) -> Option<BreakerChange> {
        self.wait(None)
    }
}

impl fmt::Debug for BreakerWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BreakerWatch(next: {})", self.next)
    }
}

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const HALF_OPEN: u8 = 2;

/// See the module's comment.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// Written under the lock of `inner` only.
    state: AtomicU8,
    inner: Mutex<Inner>,
    pub changes: Arc<Changes>,
}

#[derive(Debug, Default)]
struct Inner {
    /// `None` only while closed.
    failure: Option<Failure>,
    /// A repair is under way.
    repairing: bool,
}

#[derive(Debug)]
struct Failure {
    cause: DegradedCause,
    error: Error,
}

impl Failure {
    /// Freed space heals it. ENOSPC out of a sync counts as a failed sync, which it does not.
    fn is_for_want_of_space(&self) -> bool {
        *self.error.kind() == ErrorKind::NoSpace && self.cause != DegradedCause::LogSync
    }
}

impl Breaker {
    /// A closed breaker whose changes go on those of another one, which it replaces.
    pub fn continuing(changes: Arc<Changes>) -> Breaker {
        Breaker { changes, ..Breaker::default() }
    }

    /// Sets the state; call it under the lock of `inner`, which is this.
    fn set(&self, inner: &Inner, state: u8) {
        self.state.store(state, Ordering::Release);
        self.changes.note(state_of(state), inner.failure.as_ref().map(|failure| failure.cause));
    }

    /// # Errors
    /// `Degraded` or `NoSpace` unless the breaker is closed.
    #[inline]
    pub fn check(&self) -> Result<()> {
        if self.state.load(Ordering::Acquire) == CLOSED {
            return Ok(());
        }
        // Unless it was closed since then.
        self.refusal().map_or(Ok(()), Err)
    }

    /// What writers get that were let in before it opened.
    #[cold]
    pub fn error(&self) -> Error {
        // Closed since then: the caller may try again.
        self.refusal().unwrap_or_else(|| Error::degraded(DegradedCause::LogWrite))
    }

    #[cold]
    fn refusal(&self) -> Option<Error> {
        let inner = self.inner.lock();
        let failure = inner.failure.as_ref()?;
        Some(if failure.is_for_want_of_space() {
            Error::new(ErrorKind::NoSpace).context(failure.error.to_string())
        } else {
            Error::degraded(failure.cause).context(format!("after: {}", failure.error))
        })
    }

    /// Opens the breaker. A graver cause replaces a full disk; otherwise the first one stays.
    pub fn open(&self, cause: DegradedCause, error: &Error) {
        let mut inner = self.inner.lock();
        let replace = match &inner.failure {
            None => true,
            Some(first) => first.cause == DegradedCause::NoSpace && cause != DegradedCause::NoSpace,
        };
        if replace {
            inner.failure = Some(Failure { cause, error: error.duplicate() });
        }
        self.set(&inner, OPEN);
    }

    /// Begins a repair. `None` if the breaker is closed or a repair is under way.
    pub fn half_open(&self) -> Option<DegradedCause> {
        let mut inner = self.inner.lock();
        if inner.repairing {
            return None;
        }
        let cause = inner.failure.as_ref().map(|failure| failure.cause)?;
        inner.repairing = true;
        self.set(&inner, HALF_OPEN);
        Some(cause)
    }

    /// What was under way when the repair began has ended: it repairs the failures up to here.
    pub fn half_open_again(&self) -> Option<DegradedCause> {
        let inner = self.inner.lock();
        assert!(inner.repairing, "a repair is under way");
        self.set(&inner, HALF_OPEN);
        inner.failure.as_ref().map(|failure| failure.cause)
    }

    /// True while a repair is under way.
    pub fn is_being_repaired(&self) -> bool {
        self.inner.lock().repairing
    }

    /// The repair has failed: back to open.
    pub fn reopen(&self) {
        let mut inner = self.inner.lock();
        inner.repairing = false;
        self.set(&inner, OPEN);
    }

    /// The repair has succeeded: writes are taken again, and it is true, unless something failed
    /// meanwhile.
    pub fn close(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.repairing = false;
        let closes = self.state.load(Ordering::Acquire) == HALF_OPEN;
        if closes {
            inner.failure = None;
            self.set(&inner, CLOSED);
        }
        closes
    }

    /// Closes the breaker if a full disk, and nothing graver, has opened it.
    pub fn close_if_no_space(&self) -> bool {
        let mut inner = self.inner.lock();
        let is_full = |failure: &Failure| failure.cause == DegradedCause::NoSpace;
        let heals = inner.failure.as_ref().is_some_and(is_full) && !inner.repairing;
        if heals {
            inner.failure = None;
            self.set(&inner, CLOSED);
        }
        heals
    }

    /// State, and the cause unless closed.
    pub fn state(&self) -> (BreakerState, Option<DegradedCause>) {
        let inner = self.inner.lock();
        (
            state_of(self.state.load(Ordering::Acquire)),
            inner.failure.as_ref().map(|failure| failure.cause),
        )
    }
}

fn state_of(state: u8) -> BreakerState {
    match state {
        CLOSED => BreakerState::Closed,
        OPEN => BreakerState::Open,
        _ => BreakerState::HalfOpen,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> Error {
        Error::io("sync", "000001.log", std::io::Error::other("EIO"))
    }

    fn full() -> Error {
        Error::new(ErrorKind::NoSpace)
    }

    /// Bug: on a disk that was full and had space again, a writer was told of a log that could not be
    /// written. Cause: the breaker closed between the look at its state and that at the reason. Fix: then
    /// it is closed.
    #[test]
    fn who_meets_it_as_it_closes_is_told_of_no_other_cause() {
        let (breaker, ended) = (Breaker::default(), std::sync::atomic::AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..200_000 {
                    breaker.open(DegradedCause::NoSpace, &full());
                    breaker.close_if_no_space();
                }
                ended.store(true, Ordering::Relaxed);
            });
            while !ended.load(Ordering::Relaxed) {
                if let Err(error) = breaker.check() {
                    assert_eq!(error.kind(), &ErrorKind::NoSpace);
                }
            }
        });
    }

    #[test]
    fn opens_with_the_first_cause_and_closes_by_a_repair() {
        let breaker = Breaker::default();
        assert!(breaker.check().is_ok());
        breaker.open(DegradedCause::NoSpace, &full());
        assert_eq!(breaker.check().unwrap_err().kind(), &ErrorKind::NoSpace);
        breaker.open(DegradedCause::LogSync, &failure());
        breaker.open(DegradedCause::Table, &failure());
        let expected = ErrorKind::Degraded { cause: DegradedCause::LogSync };
        assert_eq!(breaker.check().unwrap_err().kind(), &expected);
        assert!(!breaker.close_if_no_space());
        assert_eq!(breaker.half_open(), Some(DegradedCause::LogSync));
        assert_eq!(breaker.half_open(), None);
        assert!(breaker.check().is_err());
        assert!(breaker.close());
        assert!(breaker.check().is_ok());
        assert_eq!(breaker.state(), (BreakerState::Closed, None));
    }

    /// Bug: a database never took writes again, half-open without a cause. Cause: a failure during
    /// a repair let a second one begin; the first closed the breaker, the second, failing, opened
    /// it again without a cause. Fix: one repair at a time, which closes only what nothing opened
    /// meanwhile.
    #[test]
    fn a_failure_during_a_repair_keeps_it_open() {
        let breaker = Breaker::default();
        breaker.open(DegradedCause::LogSync, &failure());
        assert!(breaker.half_open().is_some());
        breaker.open(DegradedCause::Manifest, &failure());
        assert_eq!(breaker.half_open(), None);
        assert!(!breaker.close());
        assert_eq!(breaker.state(), (BreakerState::Open, Some(DegradedCause::LogSync)));
        assert!(breaker.half_open().is_some());
        breaker.open(DegradedCause::Table, &failure());
        assert!(breaker.half_open_again().is_some());
        assert!(breaker.close());
        breaker.open(DegradedCause::LogSync, &failure());
        assert!(breaker.half_open().is_some());
        breaker.reopen();
        assert!(breaker.half_open().is_some());
    }

    #[test]
    fn a_full_disk_heals_itself() {
        let breaker = Breaker::default();
        breaker.open(DegradedCause::NoSpace, &full());
        assert!(breaker.close_if_no_space());
        assert!(breaker.check().is_ok());
    }

    #[test]
    fn a_watch_hears_every_change_in_order() {
        let breaker = Breaker::default();
        let mut early = breaker.changes.watch();
        breaker.open(DegradedCause::LogSync, &failure());
        breaker.open(DegradedCause::LogSync, &failure());
        let mut late = breaker.changes.watch();
        breaker.half_open();
        breaker.reopen();
        breaker.half_open();
        breaker.close();
        let all: Vec<_> = std::iter::from_fn(|| early.try_next()).map(|c| c.state).collect();
        let [open, half] = [BreakerState::Open, BreakerState::HalfOpen];
        assert_eq!(all, [open, half, open, half, BreakerState::Closed]);
        assert_eq!(late.try_next().unwrap().cause, Some(DegradedCause::LogSync));
        assert_eq!(late.next_within(Duration::ZERO).unwrap().state, open);
        breaker.changes.end();
        assert_eq!(late.map(|c| c.state).collect::<Vec<_>>(), [half, BreakerState::Closed]);
        assert_eq!(early.next(), None);
        for _ in 0..CHANGES_MAX {
            breaker.open(DegradedCause::NoSpace, &full());
            assert!(breaker.close_if_no_space());
        }
        assert_eq!(early.count(), CHANGES_MAX, "the oldest are missed");
    }
}
