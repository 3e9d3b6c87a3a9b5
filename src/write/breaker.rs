//! The breaker: refuses writes after the disk has failed, while reads go on.
//!
//! ```text
//!   Closed --failure--> Open --probe or resume()--> HalfOpen --success--> Closed
//!                        ^                             |
//!                        +--------------failure--------+
//! ```
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
    state: AtomicU8,
    failure: Mutex<Option<Failure>>,
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
        match &*self.failure.lock() {
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
        let mut failure = self.failure.lock();
        let replace = match &*failure {
            None => true,
            Some(first) => first.cause == DegradedCause::NoSpace && cause != DegradedCause::NoSpace,
        };
        if replace {
            *failure = Some(Failure { cause, error: error.duplicate() });
        }
        self.state.store(OPEN, Ordering::Release);
    }

    /// Begins a repair. `None` if the breaker is closed or a repair is under way.
    pub fn half_open(&self) -> Option<DegradedCause> {
        let failure = self.failure.lock();
        let from_open =
            self.state.compare_exchange(OPEN, HALF_OPEN, Ordering::AcqRel, Ordering::Relaxed);
        from_open.ok().and(failure.as_ref().map(|failure| failure.cause))
    }

    /// The repair has failed: back to open.
    pub fn reopen(&self) {
        let _guard = self.failure.lock();
        self.state.store(OPEN, Ordering::Release);
    }

    /// The repair has succeeded: writes are taken again.
    pub fn close(&self) {
        let mut failure = self.failure.lock();
        *failure = None;
        self.state.store(CLOSED, Ordering::Release);
    }

    /// Closes the breaker if a full disk, and nothing graver, has opened it.
    pub fn close_if_no_space(&self) -> bool {
        let mut failure = self.failure.lock();
        let heals = failure.as_ref().is_some_and(|f| f.cause == DegradedCause::NoSpace)
            && self.state.load(Ordering::Acquire) == OPEN;
        if heals {
            *failure = None;
            self.state.store(CLOSED, Ordering::Release);
        }
        heals
    }

    /// State, and the cause unless closed.
    pub fn state(&self) -> (BreakerState, Option<DegradedCause>) {
        let failure = self.failure.lock();
        let state = match self.state.load(Ordering::Acquire) {
            CLOSED => BreakerState::Closed,
            OPEN => BreakerState::Open,
            _ => BreakerState::HalfOpen,
        };
        (state, failure.as_ref().map(|failure| failure.cause))
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
        breaker.close();
        assert!(breaker.check().is_ok());
        assert_eq!(breaker.state(), (BreakerState::Closed, None));
    }

    #[test]
    fn a_full_disk_heals_itself() {
        let breaker = Breaker::default();
        breaker.open(DegradedCause::NoSpace, &full());
        assert!(breaker.close_if_no_space());
        assert!(breaker.check().is_ok());
    }
}
