//! Tests of the stepper: schedules repeat, differ, keep exclusion, jump in time, find deadlocks.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::runtime::{Condvar, Mutex, Priority, Runtime, Task, yield_point};

fn spawn(runtime: &Runtime, name: &str, f: impl FnOnce() + Send + 'static) -> Task {
    runtime.spawn(name, Priority::Background, f).unwrap()
}

/// A bounded queue between two producers and a consumer; returns the order of what was consumed.
fn pipeline(seed: u64) -> (Vec<u32>, (u64, u64), Duration) {
    let runtime = Runtime::stepper(seed);
    let shared = Arc::new((Mutex::new(Vec::new()), Condvar::new(), Condvar::new()));
    let producers = [0, 100].map(|first| {
        let (shared, own) = (Arc::clone(&shared), runtime.clone());
        spawn(&runtime, &format!("producer {first}"), move || {
            let (queue, room, filled) = &*shared;
            for i in first..first + 20 {
                let mut queue = queue.lock();
                while queue.len() >= 2 {
                    room.wait(&mut queue);
                }
                // With the lock held, so that others find it taken.
                own.yield_now();
                queue.push(i);
                filled.notify_one();
                drop(queue);
                own.yield_now();
            }
        })
    });
    let (queue, room, filled) = &*shared;
    let mut consumed = Vec::new();
    while consumed.len() < 40 {
        let mut queue = queue.lock();
        while queue.is_empty() {
            filled.wait(&mut queue);
        }
        consumed.append(&mut queue);
        room.notify_all();
    }
    producers.into_iter().for_each(Task::join);
    (consumed, runtime.schedule_hash(), runtime.now())
}

#[test]
fn a_seed_is_a_schedule() {
    let mut orders = BTreeSet::new();
    for seed in 0..50 {
        let first = pipeline(seed);
        assert_eq!(first, pipeline(seed), "seed {seed}");
        let mut sorted = first.0.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq((0..20).chain(100..120)), "seed {seed}");
        orders.insert(first.0);
    }
    assert!(orders.len() > 40, "only {} different schedules", orders.len());
}

#[test]
fn one_thread_runs_at_a_time_and_lost_updates_are_found() {
    // A counter that is read and written with a yield point between: without a lock some
    // schedules lose updates, with one none does.
    let total = |seed, locked: bool| {
        let runtime = Runtime::stepper(seed);
        let shared = Arc::new((Mutex::new(()), AtomicU64::new(0), AtomicU64::new(0)));
        let tasks = [0, 1, 2].map(|i| {
            let shared = Arc::clone(&shared);
            spawn(&runtime, &i.to_string(), move || {
                for _ in 0..5 {
                    let (lock, counter, running) = &*shared;
                    let _guard = locked.then(|| lock.lock());
                    assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0);
                    let read = counter.load(Ordering::SeqCst);
                    running.fetch_sub(1, Ordering::SeqCst);
                    yield_point();
                    counter.store(read + 1, Ordering::SeqCst);
                }
            })
        });
        tasks.into_iter().for_each(Task::join);
        shared.1.load(Ordering::SeqCst)
    };
    assert!((0..50).all(|seed| total(seed, true) == 15));
    assert!((0..50).any(|seed| total(seed, false) < 15));
}

#[test]
fn time_is_virtual() {
    let runtime = Runtime::stepper(1);
    let hour = Duration::from_secs(3600);
    let own = runtime.clone();
    let task = spawn(&runtime, "sleeper", move || own.sleep(hour));
    let (mutex, condvar) = (Mutex::new(()), Condvar::new());
    let timed_out = condvar.wait_for(&mut mutex.lock(), hour * 2);
    assert!(timed_out);
    assert!(task.is_finished(), "the sleeper woke before");
    task.join();
    assert!(runtime.now() >= hour * 2 && runtime.now() < hour * 2 + Duration::from_millis(1));
    assert!(condvar.wait_for(&mut mutex.lock(), Duration::ZERO), "a timeout of nothing");
    let huge = spawn(&runtime, "huge", {
        let own = runtime.clone();
        move || own.sleep(Duration::MAX)
    });
    drop(huge);
}

#[test]
fn a_notification_comes_before_the_timeout() {
    let runtime = Runtime::stepper(1);
    let shared = Arc::new((Mutex::new(false), Condvar::new()));
    let other = Arc::clone(&shared);
    let task = spawn(&runtime, "notifier", move || {
        *other.0.lock() = true;
        other.1.notify_one();
    });
    let mut done = shared.0.lock();
    while !*done {
        assert!(!shared.1.wait_for(&mut done, Duration::from_secs(1)));
    }
    drop(done);
    task.join();
    assert!(runtime.now() < Duration::from_secs(1));
}

/// The message of the panic of a whole stepper.
fn deadlock_of(f: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).unwrap_err();
    *panic.downcast::<String>().unwrap()
}

#[test]
fn a_deadlock_names_what_each_waits_for() {
    let message = deadlock_of(|| {
        let runtime = Runtime::stepper(1);
        let shared = Arc::new((Mutex::new(()), Condvar::new()));
        let other = Arc::clone(&shared);
        let waiter = spawn(&runtime, "waiter", move || other.1.wait(&mut other.0.lock()));
        spawn(&runtime, "ended", || {}).join();
        waiter.join();
    });
    assert!(message.contains("user waits for the end of waiter"), "{message}");
    assert!(message.contains("waiter waits for a condition at src/runtime/stepper/tests.rs"));
    assert!(message.contains("ended has ended"), "{message}");
}

#[test]
fn locks_taken_crosswise_are_a_deadlock() {
    let crosswise = |seed| {
        let runtime = Runtime::stepper(seed);
        let locks = Arc::new((Mutex::new(()), Mutex::new(())));
        let other = Arc::clone(&locks);
        let task = spawn(&runtime, "other", move || {
            let _second = other.1.lock();
            yield_point();
            let _first = other.0.lock();
        });
        {
            let _first = locks.0.lock();
            yield_point();
            let _second = locks.1.lock();
        }
        task.join();
    };
    let found = (0..20).find_map(|seed| catch_unwind(|| crosswise(seed)).err());
    let message = *found.expect("some schedule meets it").downcast::<String>().unwrap();
    assert!(message.contains("user wants a lock at src/runtime/stepper/tests.rs"), "{message}");
    assert!(message.contains("other wants a lock"), "{message}");
}

#[test]
fn the_end_of_the_last_runnable_thread_finds_the_deadlock_too() {
    let message = deadlock_of(|| {
        let runtime = Runtime::stepper(3);
        let (mutex, condvar) = (Mutex::new(()), Condvar::new());
        drop(spawn(&runtime, "forgets to notify", || {}));
        condvar.wait(&mut mutex.lock());
    });
    assert!(message.contains("user waits for a condition"), "{message}");
}

#[test]
fn a_panic_reaches_whoever_joins_and_the_others_go_on() {
    let runtime = Runtime::stepper(1);
    let task = spawn(&runtime, "panics", || {
        yield_point();
        panic!("of the task");
    });
    let panic = catch_unwind(AssertUnwindSafe(|| task.join())).unwrap_err();
    assert_eq!(*panic.downcast::<&str>().unwrap(), "of the task");
    spawn(&runtime, "later", yield_point).join();
}

#[test]
fn threads_left_behind_end_quietly() {
    struct Dropped(Arc<AtomicU64>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let count = Arc::new(AtomicU64::new(0));
    let runtime = Runtime::stepper(1);
    let dropped = Dropped(Arc::clone(&count));
    let left = spawn(&runtime, "left behind", move || {
        let _dropped = dropped;
        let (mutex, condvar) = (Mutex::new(()), Condvar::new());
        condvar.wait(&mut mutex.lock());
    });
    let busy = spawn(&runtime, "never ends by itself", || {
        loop {
            yield_point();
        }
    });
    // The thread leaves the first stepper by making the second.
    let other = Runtime::stepper(2);
    assert!(catch_unwind(AssertUnwindSafe(|| busy.join())).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| left.join())).is_err());
    assert_eq!(count.load(Ordering::SeqCst), 1, "it was unwound");
    spawn(&other, "of the second", yield_point).join();
}

#[test]
fn other_threads_use_the_same_locks_and_conditions() {
    let runtime = Runtime::stepper(5);
    let shared = Arc::new((Mutex::new(0), Condvar::new()));
    let (held, is_held) = std::sync::mpsc::channel();
    let other = Arc::clone(&shared);
    let stranger = std::thread::spawn(move || {
        let mut value = other.0.lock();
        held.send(()).unwrap();
        *value += 1;
        drop(value);
        // And it waits like any thread, woken by a participant.
        let mut value = other.0.lock();
        while *value < 2 {
            other.1.wait(&mut value);
        }
    });
    is_held.recv().unwrap();
    // Taken by the stranger or free again; either way this thread gets it.
    *shared.0.lock() += 1;
    shared.1.notify_one();
    stranger.join().unwrap();
    assert_eq!(*shared.0.lock(), 2);

    // A stranger's notification reaches a participant that has something else to do meanwhile.
    let (other, done) = (Arc::clone(&shared), Arc::new(AtomicU64::new(0)));
    let ended = Arc::clone(&done);
    let waiter = spawn(&runtime, "waiter", move || {
        let mut value = other.0.lock();
        while *value < 3 {
            other.1.wait(&mut value);
        }
        ended.store(1, Ordering::SeqCst);
    });
    let other = Arc::clone(&shared);
    let stranger = std::thread::spawn(move || {
        *other.0.lock() = 3;
        other.1.notify_all();
    });
    while done.load(Ordering::SeqCst) == 0 {
        runtime.yield_now();
    }
    waiter.join();
    stranger.join().unwrap();
}

#[test]
fn calls_to_a_simulated_file_system_are_yield_points() {
    use crate::fs::Fs;
    use crate::fs::sim::{Phase, SimFs};
    use std::path::Path;

    let run = |seed| {
        let runtime = Runtime::stepper(seed);
        let fs = SimFs::new();
        fs.on_call(Arc::new(|_, phase, _| {
            if phase != Phase::After {
                yield_point();
            }
        }));
        let order = Arc::new(Mutex::new(Vec::new()));
        let tasks = [0u8, 1].map(|i| {
            let (fs, order) = (fs.clone(), Arc::clone(&order));
            spawn(&runtime, &i.to_string(), move || {
                let log = fs.create_log(Path::new(&format!("/{i}")), 1024).unwrap();
                for at in 0..4 {
                    log.store(at * 64, &[i; 64]).unwrap();
                    order.lock().push(i);
                }
            })
        });
        tasks.into_iter().for_each(Task::join);
        let order = order.lock().clone();
        (order, fs.state_hash())
    };
    let runs: Vec<_> = (0..40).map(run).collect();
    assert_eq!(runs, (0..40).map(run).collect::<Vec<_>>());
    let orders: BTreeSet<_> = runs.iter().map(|(order, _)| order.clone()).collect();
    assert!(orders.len() > 10, "{} orders", orders.len());
    assert!(runs.iter().all(|(_, hash)| *hash == runs[0].1), "all end alike");
}
