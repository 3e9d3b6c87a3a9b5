//! The operating system's threads.

use std::io;
use std::thread::{Builder, JoinHandle, ScopedJoinHandle};
#[cfg(target_os = "linux")]
use std::time::Duration;

use parking_lot::Mutex;

use crate::runtime::Priority;

/// Behind the users' threads, but not at their mercy: at 19, the lowest priority, compactions starved
/// beside a reader and a writer on two cores, level 0 grew, and both were slower (97,000 reads and
/// 561,000 puts a second here, 80,000 and 244,000 there, on a busy machine).
const NICE_OF_BACKGROUND: i32 = 5;

/// Starts a thread.
pub(crate) fn spawn(
    name: &str,
    priority: Priority,
    f: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    // Linux shows 15 bytes of the name, in top and in core dumps.
    Builder::new().name(format!("esker-{name}")).spawn(move || {
        if priority == Priority::Background {
            // On Linux the nice value is the calling thread's own. Without permission, or
            // elsewhere, the thread runs at normal priority.
            let _ = rustix::process::setpriority_process(None, NICE_OF_BACKGROUND);
        }
        f();
    })
}

/// Runs `a` in a thread of its own and `b` here; both here if no thread may be made.
pub(crate) fn join<A: Send, B>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B) -> (A, B) {
    let waiting = Mutex::new(Some(a));
    let take = || waiting.lock().take();
    std::thread::scope(|scope| {
        let thread = Builder::new().name("esker-join".to_string());
        let thread = thread.spawn_scoped(scope, || take().map(|a| a()));
        let b = b();
        let a = match thread.map(ScopedJoinHandle::join) {
            Ok(Ok(a)) => a,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => take().map(|a| a()),
        };
        (a.expect("nobody else takes it"), b)
    })
}

/// The time of the kernel's last tick, of every 1 to 10 ms: reading it does not read the processor's
/// counter. (Not by rustix, whose way to the clock ends a program that runs under valgrind.)
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "the standard library has no such clock")]
pub(crate) fn coarse_clock() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the address is that of a timespec of our own.
    let read = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    assert_eq!(read, 0, "every Linux has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use crate::runtime::threads::NICE_OF_BACKGROUND;
    use crate::runtime::{Condvar, Mutex, Priority, Runtime};
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn two_run_at_the_same_time_and_a_panic_of_either_comes_out() {
        let runtime = Runtime::threads();
        let both = std::sync::Barrier::new(2);
        let (one, two) = runtime.join(|| both.wait().is_leader(), || both.wait().is_leader());
        assert_ne!(one, two);
        let died =
            |a: fn(), b: fn()| std::panic::catch_unwind(|| Runtime::threads().join(a, b)).is_err();
        assert!(died(|| panic!("the first one"), || {}));
        assert!(died(|| {}, || panic!("the second one")));
        let (one, two) = Runtime::alone().join(|| 1, || "two");
        assert_eq!((one, two), (1, "two"));
    }

    #[test]
    fn a_task_runs_and_joins_and_has_its_own_priority() {
        let runtime = Runtime::threads();
        let nice = Arc::new(Mutex::new(Vec::new()));
        for priority in [Priority::Background, Priority::Normal] {
            let nice = Arc::clone(&nice);
            let task = runtime.spawn("test", priority, move || {
                nice.lock().push(rustix::process::getpriority_process(None).unwrap());
            });
            task.unwrap().join();
        }
        let own = rustix::process::getpriority_process(None).unwrap();
        assert_eq!(*nice.lock(), [NICE_OF_BACKGROUND, own]);
    }

    #[test]
    fn a_panic_reaches_whoever_joins() {
        let task = Runtime::threads().spawn("test", Priority::Normal, || panic!("of the task"));
        let task = std::panic::AssertUnwindSafe(task.unwrap());
        let joined = std::panic::catch_unwind(|| { task }.0.join());
        assert_eq!(*joined.unwrap_err().downcast::<&str>().unwrap(), "of the task");
    }

    #[test]
    fn a_condition_is_waited_for_and_times_out() {
        let runtime = Runtime::threads();
        let shared = Arc::new((Mutex::new(false), Condvar::new()));
        let other = Arc::clone(&shared);
        let task = runtime.spawn("test", Priority::Normal, move || {
            *other.0.lock() = true;
            other.1.notify_one();
        });
        let mut done = shared.0.lock();
        while !*done {
            shared.1.wait(&mut done);
        }
        assert!(shared.0.try_lock().is_none(), "held after the wait");
        let timed_out = shared.1.wait_for(&mut done, Duration::from_nanos(1));
        assert!(timed_out);
        drop(done);
        task.unwrap().join();
        assert!(runtime.now() > Duration::ZERO);
    }
}
