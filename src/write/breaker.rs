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

use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{DegradedCause, Error, ErrorKind, Result};
use crate::runtime::Mutex;

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

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const HALF_OPEN: u8 = 2;

/// See the module's comment.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// Written under the lock of `inner` only.
    state: AtomicU8,
    inner: Mutex<Inner>,
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
    /// # Errors
    /// `Degraded` or `NoSpace` unless the breaker is closed.
    #[inline]
    pub fn check(&self) -> Result<()> {
        if self.state.load(Ordering::Acquire) == CLOSED { Ok(()) } else { Err(self.error()) }
    }

    /// What writers get.
    #[cold]
    pub fn error(&self) -> Error {
        match &self.inner.lock().failure {
            Some(failure) if failure.is_for_want_of_space() => {
                Error::new(ErrorKind::NoSpace).context(failure.error.to_string())
            }
            Some(failure) => {
                Error::degraded(failure.cause).context(format!("after: {}", failure.error))
            }
            // Closed between the caller's look and ours: the caller may try again.
            None => Error::degraded(DegradedCause::LogWrite),
        }
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
        self.state.store(OPEN, Ordering::Release);
    }

    /// Begins a repair. `None` if the breaker is closed or a repair is under way.
    pub fn half_open(&self) -> Option<DegradedCause> {
        let mut inner = self.inner.lock();
        if inner.repairing {
            return None;
        }
        let cause = inner.failure.as_ref().map(|failure| failure.cause)?;
        inner.repairing = true;
        self.state.store(HALF_OPEN, Ordering::Release);
        Some(cause)
    }

    /// What was under way when the repair began has ended: it repairs the failures up to here.
    pub fn half_open_again(&self) -> Option<DegradedCause> {
        let inner = self.inner.lock();
        assert!(inner.repairing, "a repair is under way");
        self.state.store(HALF_OPEN, Ordering::Release);
        inner.failure.as_ref().map(|failure| failure.cause)
    }

    /// The repair has failed: back to open.
    pub fn reopen(&self) {
        let mut inner = self.inner.lock();
        inner.repairing = false;
        self.state.store(OPEN, Ordering::Release);
    }

    /// The repair has succeeded: writes are taken again, and it is true, unless something failed
    /// meanwhile.
    pub fn close(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.repairing = false;
        let closes = self.state.load(Ordering::Acquire) == HALF_OPEN;
        if closes {
            inner.failure = None;
            self.state.store(CLOSED, Ordering::Release);
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
            self.state.store(CLOSED, Ordering::Release);
        }
        heals
    }

    /// State, and the cause unless closed.
    pub fn state(&self) -> (BreakerState, Option<DegradedCause>) {
        let inner = self.inner.lock();
        let state = match self.state.load(Ordering::Acquire) {
            CLOSED => BreakerState::Closed,
            OPEN => BreakerState::Open,
            _ => BreakerState::HalfOpen,
        };
        (state, inner.failure.as_ref().map(|failure| failure.cause))
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
}
