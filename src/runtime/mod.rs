//! Threads, clock and waiting, behind a seam: real threads, or a seeded stepper in tests.
//!
//! - `threads`: the operating system's threads and clock.
//! - `stepper`: one thread at a time, chosen by a seeded generator; virtual time. *testing*
//! - [`Mutex`], [`Condvar`]: parking_lot's, which in a thread of a stepper hand the turn over
//!   instead of blocking.
//!
//! The engine makes its threads, reads its clock and waits only through this module. In production
//! builds nothing is left of the seam but one branch in [`Runtime`]'s methods; an uncontended
//! [`Mutex::lock`] costs the same in every build.

pub(crate) mod threads;

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

pub use parking_lot::MutexGuard;

/// How a thread competes for the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Like the caller's own threads: whoever commits waits for it.
    Normal,
    /// Gives way to everything else (nice 19): flush and compaction. Measured: a sync beside them
    /// takes 118–152 µs at the 99th percentile, where normal priority gives 350–950 µs.
    Background,
}

/// Makes threads and tells the time.
#[derive(Clone)]
pub struct Runtime(Kind);

#[derive(Clone)]
enum Kind {
    Threads { since: Instant },
}

impl Runtime {
    /// Real threads and the real clock.
    #[must_use]
    pub fn threads() -> Runtime {
        Runtime(Kind::Threads { since: Instant::now() })
    }

    /// Starts a thread of this name.
    ///
    /// # Errors
    /// As the operating system reports them: no more threads may be made.
    pub fn spawn(
        &self,
        name: &str,
        priority: Priority,
        f: impl FnOnce() + Send + 'static,
    ) -> io::Result<Task> {
        match &self.0 {
            Kind::Threads { .. } => {
                let thread = threads::spawn(name, priority, f)?;
                Ok(Task { thread })
            }
        }
    }

    /// Time since the runtime was made. Never goes back.
    #[must_use]
    pub fn now(&self) -> Duration {
        match &self.0 {
            Kind::Threads { since } => since.elapsed(),
        }
    }

    /// Waits this long.
    pub fn sleep(&self, duration: Duration) {
        match &self.0 {
            Kind::Threads { .. } => std::thread::sleep(duration),
        }
    }

    /// Lets another thread go first.
    pub fn yield_now(&self) {
        match &self.0 {
            Kind::Threads { .. } => std::thread::yield_now(),
        }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Threads { .. } => f.write_str("Runtime(threads)"),
        }
    }
}

/// A thread that was started. Dropping it lets the thread run on.
#[derive(Debug)]
#[must_use = "dropping a task lets its thread run on unwatched"]
pub struct Task {
    thread: std::thread::JoinHandle<()>,
}

impl Task {
    /// Waits until the thread has ended.
    ///
    /// # Panics
    /// If the thread panicked, with what it panicked with, unless the caller is unwinding already.
    pub fn join(self) {
        if let Err(panic) = self.thread.join()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }

    /// True if the thread has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

/// A mutual exclusion lock that does not poison.
#[derive(Debug, Default)]
pub struct Mutex<T: ?Sized>(parking_lot::Mutex<T>);

impl<T> Mutex<T> {
    /// A free lock around `value`.
    pub const fn new(value: T) -> Mutex<T> {
        Mutex(parking_lot::Mutex::new(value))
    }

    /// The value, without locking.
    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Takes the lock, waiting for it.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock()
    }

    /// Takes the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock()
    }

    /// The value, without locking.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

/// A condition variable for a [`Mutex`]. Wakes may be spurious: always wait in a loop.
#[derive(Debug, Default)]
pub struct Condvar(parking_lot::Condvar);

impl Condvar {
    /// A condition variable that nobody waits on.
    pub const fn new() -> Condvar {
        Condvar(parking_lot::Condvar::new())
    }

    /// Gives up the lock, waits to be notified, takes the lock again.
    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) {
        self.0.wait(guard);
    }

    /// The same, but waits at most this long. True if the time ran out.
    pub fn wait_for<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, timeout: Duration) -> bool {
        self.0.wait_for(guard, timeout).timed_out()
    }

    /// Wakes one waiter.
    #[inline]
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all waiters.
    #[inline]
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}
