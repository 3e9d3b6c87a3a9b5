//! Threads, clock and waiting, behind a seam: real threads, or a seeded stepper in tests.
//!
//! - `threads`: the operating system's threads and clock.
//! - `stepper`: one thread at a time, chosen by a seeded generator; virtual time. *testing*
//! - [`Mutex`], [`Condvar`]: parking_lot's, which in a thread of a stepper hand the turn over
//!   instead of blocking.
//!
//! The engine makes its threads, reads its clock and waits only through this module. In production
//! builds nothing is left of the seam; an uncontended [`Mutex::lock`] costs the same in every build.

#[cfg(any(test, feature = "testing"))]
mod stepper;
mod threads;

use std::fmt;
use std::io;
#[cfg(any(test, feature = "testing"))]
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

pub use parking_lot::MutexGuard;

/// How a thread competes for the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Like the caller's own threads: whoever commits waits for it.
    Normal,
    /// Gives way to everything else: flush and compaction. Measured at nice 19: a sync beside them
    /// takes 118–152 µs at the 99th percentile, where normal priority gives 350–950 µs.
    Background,
}

/// Makes threads and tells the time.
#[derive(Clone)]
pub struct Runtime(Kind);

#[derive(Clone)]
enum Kind {
    Threads {
        since: Instant,
        /// The same on the clock of [`Runtime::now_coarsely`].
        #[cfg(target_os = "linux")]
        since_coarsely: Duration,
    },
    #[cfg(any(test, feature = "testing"))]
    Stepper(Arc<stepper::Stepper>),
    #[cfg(any(test, feature = "testing"))]
    Alone,
}

impl Runtime {
    /// Real threads and the real clock.
    #[must_use]
    pub fn threads() -> Runtime {
        Runtime(Kind::Threads {
            since: Instant::now(),
            #[cfg(target_os = "linux")]
            since_coarsely: threads::coarse_clock(),
        })
    }

    /// Threads that take turns, drawn from this seed, and virtual time. The calling thread is the
    /// first of them; it leaves the stepper it took part in before. See the `stepper` module.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn stepper(seed: u64) -> Runtime {
        Runtime(Kind::Stepper(stepper::Stepper::new(seed)))
    }

    /// No threads: those that are spawned never run, and time stands still. Enough to open a
    /// database and read it, at a tenth of the cost; whoever waits for background work waits for
    /// ever.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn alone() -> Runtime {
        Runtime(Kind::Alone)
    }

    /// A number for the schedule of a stepper so far, and how many turns it had: equal in every
    /// run of the same program and seed. Zeros for real threads.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn schedule_hash(&self) -> (u64, u64) {
        match &self.0 {
            Kind::Threads { .. } | Kind::Alone => (0, 0),
            Kind::Stepper(stepper) => stepper.schedule_hash(),
        }
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
                Ok(Task {
                    thread: Some(thread),
                    #[cfg(any(test, feature = "testing"))]
                    seat: None,
                })
            }
            #[cfg(any(test, feature = "testing"))]
            Kind::Stepper(stepper) => {
                let (thread, index) = stepper.spawn(name, f)?;
                Ok(Task { thread: Some(thread), seat: Some((Arc::clone(stepper), index)) })
            }
            #[cfg(any(test, feature = "testing"))]
            Kind::Alone => Ok(Task { thread: None, seat: None }),
        }
    }

    /// False if threads that are started never run.
    #[must_use]
    pub fn runs_threads(&self) -> bool {
        match &self.0 {
            Kind::Threads { .. } => true,
            #[cfg(any(test, feature = "testing"))]
            Kind::Stepper(_) => true,
            #[cfg(any(test, feature = "testing"))]
            Kind::Alone => false,
        }
    }

    /// Runs both and returns when both have ended: at the same time if they are threads of the
    /// operating system, else one after the other.
    ///
    /// # Panics
    /// If one of them does.
    pub fn join<A: Send, B>(&self, a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B) -> (A, B) {
        match &self.0 {
            Kind::Threads { .. } => threads::join(a, b),
            #[cfg(any(test, feature = "testing"))]
            Kind::Stepper(_) | Kind::Alone => (a(), b()),
        }
    }

    /// Time since the runtime was made. Never goes back.
    #[must_use]
    pub fn now(&self) -> Duration {
        match &self.0 {
            Kind::Threads { since, .. } => since.elapsed(),
            #[cfg(any(test, feature = "testing"))]
            Kind::Stepper(stepper) => stepper.now(),
            #[cfg(any(test, feature = "testing"))]
            Kind::Alone => Duration::ZERO,
        }
    }

    /// As [`Runtime::now`], some milliseconds off, at a fraction of the cost.
    #[must_use]
    pub fn now_coarsely(&self) -> Duration {
        match &self.0 {
            #[cfg(target_os = "linux")]
            Kind::Threads { since_coarsely, .. } => {
                threads::coarse_clock().saturating_sub(*since_coarsely)
            }
            #[cfg(any(not(target_os = "linux"), test, feature = "testing"))]
            _ => self.now(),
        }
    }

    /// Waits this long.
    pub fn sleep(&self, duration: Duration) {
        match &self.0 {
            Kind::Threads { .. } => std::thread::sleep(duration),
            #[cfg(any(test, feature = "testing"))]
            Kind::Stepper(stepper) => stepper::sleep(stepper, duration),
            #[cfg(any(test, feature = "testing"))]
            Kind::Alone => {}
        }
    }

    /// A number that nobody else draws; with a stepper, nobody else of the same stepper, and the same in
    /// every run of the same program and seed.
    #[must_use]
    pub fn unique_id(&self) -> u128 {
        match &self.0 {
            #[cfg(any(test, feature = "testing"))]
            Kind::Stepper(stepper) => stepper.unique_id(),
            _ => fastrand::u128(..),
        }
    }

    /// Lets another thread go first.
    pub fn yield_now(&self) {
        match &self.0 {
            Kind::Threads { .. } => std::thread::yield_now(),
            #[cfg(any(test, feature = "testing"))]
            Kind::Stepper(_) => stepper::yield_point(),
            #[cfg(any(test, feature = "testing"))]
            Kind::Alone => {}
        }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Threads { .. } => f.write_str("Runtime(threads)"),
            #[cfg(any(test, feature = "testing"))]
            Kind::Stepper(_) => f.write_str("Runtime(stepper)"),
            #[cfg(any(test, feature = "testing"))]
            Kind::Alone => f.write_str("Runtime(alone)"),
        }
    }
}

/// A place where another thread of a stepper may run, for code without locks or calls to the file
/// system whose interleavings matter. Nothing in production builds, and in other threads.
#[inline]
pub fn yield_point() {
    #[cfg(any(test, feature = "testing"))]
    stepper::yield_point();
}

/// A thread that was started. Dropping it lets the thread run on.
#[must_use = "dropping a task lets its thread run on unwatched"]
pub struct Task {
    /// `None` if it never runs.
    thread: Option<std::thread::JoinHandle<()>>,
    #[cfg(any(test, feature = "testing"))]
    seat: Option<(Arc<stepper::Stepper>, usize)>,
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.thread.as_ref().and_then(|thread| thread.thread().name());
        write!(f, "Task({})", name.unwrap_or_default())
    }
}

impl Task {
    /// Waits until the thread has ended.
    ///
    /// # Panics
    /// If the thread panicked, with what it panicked with, unless the caller is unwinding already.
    pub fn join(self) {
        #[cfg(any(test, feature = "testing"))]
        if let Some((stepper, index)) = &self.seat
            && !stepper::await_end(stepper, *index)
        {
            return;
        }
        if let Some(Err(panic)) = self.thread.map(std::thread::JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }

    /// True if the thread has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        #[cfg(any(test, feature = "testing"))]
        if let Some((stepper, index)) = &self.seat {
            return stepper::has_ended(stepper, *index);
        }
        self.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished)
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
    #[cfg_attr(any(test, feature = "testing"), track_caller)]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        #[cfg(any(test, feature = "testing"))]
        return match self.0.try_lock() {
            Some(guard) => guard,
            None => stepper::lock(&self.0),
        };
        #[cfg(not(any(test, feature = "testing")))]
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
pub struct Condvar {
    inner: parking_lot::Condvar,
    /// The stepper whose threads may be waiting.
    #[cfg(any(test, feature = "testing"))]
    waiting: parking_lot::Mutex<Weak<stepper::Stepper>>,
}

impl Condvar {
    /// A condition variable that nobody waits on.
    pub const fn new() -> Condvar {
        Condvar {
            inner: parking_lot::Condvar::new(),
            #[cfg(any(test, feature = "testing"))]
            waiting: parking_lot::Mutex::new(Weak::new()),
        }
    }

    /// Gives up the lock, waits to be notified, takes the lock again.
    #[cfg_attr(any(test, feature = "testing"), track_caller)]
    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) {
        #[cfg(any(test, feature = "testing"))]
        if self.wait_in_stepper(guard, None).is_some() {
            return;
        }
        self.inner.wait(guard);
    }

    /// The same, but waits at most this long. True if the time ran out.
    #[cfg_attr(any(test, feature = "testing"), track_caller)]
    pub fn wait_for<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, timeout: Duration) -> bool {
        #[cfg(any(test, feature = "testing"))]
        if let Some(timed_out) = self.wait_in_stepper(guard, Some(timeout)) {
            return timed_out;
        }
        self.inner.wait_for(guard, timeout).timed_out()
    }

    /// Wakes one waiter.
    #[inline]
    pub fn notify_one(&self) {
        #[cfg(any(test, feature = "testing"))]
        self.notify_in_stepper(false);
        self.inner.notify_one();
    }

    /// Wakes all waiters.
    #[inline]
    pub fn notify_all(&self) {
        #[cfg(any(test, feature = "testing"))]
        self.notify_in_stepper(true);
        self.inner.notify_all();
    }
}

#[cfg(any(test, feature = "testing"))]
impl Condvar {
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    #[track_caller]
    fn wait_in_stepper<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        timeout: Option<Duration>,
    ) -> Option<bool> {
        let note = |stepper: &Arc<_>| *self.waiting.lock() = Arc::downgrade(stepper);
        stepper::wait(self.address(), guard, timeout, note)
    }

    fn notify_in_stepper(&self, all: bool) {
        let waiting = self.waiting.lock().upgrade();
        if let Some(stepper) = waiting {
            stepper.notify(self.address(), all);
        }
    }
}
