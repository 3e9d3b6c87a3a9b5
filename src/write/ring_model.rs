//! A model of the commit ring: `ring.rs` compiled once more, over shuttle's threads, with three slots,
//! so that shuttle can try thousands of schedules of writers, readers and failures.
//!
//! Shuttle takes every access for sequentially consistent: it finds lost wake-ups and wrong orders
//! of steps, not too weak memory orderings. A schedule in which somebody sleeps for ever ends as a
//! deadlock.

use std::sync::Arc;

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, Runner, thread};

use self::ring::{Place, Ring};
use self::sync::{AtomicU64, Mutex, Ordering};
use crate::file::Lsn;
use crate::key::SeqNo;

#[path = "ring.rs"]
#[expect(dead_code, reason = "the model does not call everything that the engine does")]
#[expect(clippy::duplicate_mod, reason = "the same code over other primitives is the point")]
pub(crate) mod ring;

/// Shuttle's primitives with the engine's interface.
pub(crate) mod sync {
    use std::time::Duration;

    pub(crate) use shuttle::hint::spin_loop as spin;
    pub(crate) use shuttle::sync::atomic::{AtomicU64, Ordering};

    /// So few that three writers wrap around and run out.
    pub(crate) const SLOT_COUNT: u64 = 3;
    pub(crate) const SPIN_COUNT: u32 = 1;

    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    /// `None` only while its owner waits for a condition.
    pub(crate) struct MutexGuard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>, &'a Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Mutex<T> {
            Mutex(shuttle::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(self.0.lock().expect("no schedule goes on after a panic")), self)
        }
    }

    impl<T> std::ops::Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.0.as_ref().expect("not waiting")
        }
    }

    impl<T> std::ops::DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("not waiting")
        }
    }

    /// Goes on whenever it is looked at, so that nobody waits for a time that never comes.
    pub(crate) struct Clock(AtomicU64);

    impl Clock {
        pub fn new() -> Clock {
            Clock(AtomicU64::new(0))
        }

        /// The same twice, so that a sync may take no time, and a wait after it some.
        pub fn now(&self) -> Duration {
            Duration::from_millis(self.0.fetch_add(1, Ordering::SeqCst) / 2)
        }
    }

    pub(crate) struct Condvar(shuttle::sync::Condvar);

    impl Condvar {
        pub fn new() -> Condvar {
            Condvar(shuttle::sync::Condvar::new())
        }

        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let inner = guard.0.take().expect("not waiting");
            guard.0 = Some(self.0.wait(inner).expect("no schedule goes on after a panic"));
        }

        /// There is no time in a schedule: as if it were over at once.
        pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _: Duration) -> bool {
            let mutex = guard.1;
            drop(guard.0.take());
            shuttle::thread::yield_now();
            *guard = mutex.lock();
            true
        }

        pub fn notify_one(&self) {
            self.0.notify_one();
        }

        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }
}

/// Commits of each writer: twelve in all wrap around the ring four times.
const COMMIT_COUNT: u64 = 4;

/// A commit that has its place.
struct Commit {
    last_seqno: SeqNo,
    end_lsn: Lsn,
    /// 1 once its record is copied and its operations are inserted.
    ready: Arc<AtomicU64>,
}

/// What the pipeline has around its ring.
struct Model {
    ring: Ring,
    /// The commit lock: the commits in order.
    commits: Mutex<Vec<Commit>>,
    /// Opened before the ring fails, as the breaker is.
    broken: AtomicU64,
}

impl Model {
    fn new() -> Arc<Model> {
        let ring = Ring::new(SeqNo(10), Lsn(100));
        Arc::new(Model { ring, commits: Mutex::new(Vec::new()), broken: AtomicU64::new(0) })
    }

    /// Takes a place as `Pipeline::submit` does. `None` once the breaker is open.
    fn begin(&self, operation_count: u64) -> Option<(Place, Arc<AtomicU64>)> {
        loop {
            let mut commits = self.commits.lock();
            if self.broken.load(Ordering::SeqCst) != 0 {
                return None;
            }
            if !self.ring.has_room() {
                drop(commits);
                self.ring.wait_room();
                continue;
            }
            let (seqno, lsn) = match commits.last() {
                Some(last) => (last.last_seqno.0, last.end_lsn.0),
                None => (10, 100),
            };
            let (last_seqno, end_lsn) = (SeqNo(seqno + operation_count), Lsn(lsn + 8));
            let place = self.ring.push(last_seqno, end_lsn).expect("room was made");
            let ready = Arc::new(AtomicU64::new(0));
            commits.push(Commit { last_seqno, end_lsn, ready: ready.clone() });
            return Some((place, ready));
        }
    }

    /// Commits; true if it was acknowledged.
    fn commit(&self, operation_count: u64) -> bool {
        let Some((place, ready)) = self.begin(operation_count) else { return false };
        ready.store(1, Ordering::SeqCst);
        self.ring.finish(place);
        let published = self.ring.wait_published(place);
        assert_eq!(published, self.ring.visible() >= place.last_seqno);
        if published {
            assert!(self.ring.copied() >= place.end_lsn);
            self.check();
        }
        published
    }

    /// What is published is a prefix of the commits, and all of it is ready.
    fn check(&self) -> SeqNo {
        let visible = self.ring.visible();
        // Read after `visible`: whoever sees a commit may rely on its record being copied.
        let copied = self.ring.copied();
        let commits = self.commits.lock();
        let boundary = |commit: &Commit| commit.last_seqno == visible;
        assert!(visible == SeqNo(10) || commits.iter().any(boundary), "a part of a commit");
        let boundary = |commit: &Commit| commit.end_lsn == copied;
        assert!(copied == Lsn(100) || commits.iter().any(boundary), "a part of a record");
        for commit in commits.iter() {
            let is_published = commit.last_seqno <= visible;
            assert!(!is_published || commit.end_lsn <= copied, "visible before it was copied");
            if is_published || commit.end_lsn <= copied {
                assert_eq!(commit.ready.load(Ordering::SeqCst), 1, "published before it was ready");
            }
        }
        visible
    }
}

/// Runs `model` in many schedules, uniformly random ones and ones with few preemptions.
pub(crate) fn explore(model: fn()) {
    let config = || {
        let mut config = Config::new();
        config.silence_warnings = true;
        // The message of a failing schedule has what reruns it.
        config.failure_persistence = FailurePersistence::Print;
        config
    };
    let schedulers: [Box<dyn Scheduler + Send>; 2] = [
        Box::new(RandomScheduler::new_from_seed(7, 3_000)),
        Box::new(PctScheduler::new_from_seed(7, 3, 3_000)),
    ];
    for scheduler in schedulers {
        Runner::new(scheduler, config()).run(model);
    }
}

#[test]
fn what_is_published_is_a_prefix_of_the_commit_order() {
    explore(|| {
        let model = Model::new();
        let writers = (1..4).map(|operation_count| {
            let model = model.clone();
            thread::spawn(move || {
                for _ in 0..COMMIT_COUNT {
                    assert!(model.commit(operation_count));
                }
            })
        });
        let writers: Vec<_> = writers.collect();
        let reader = thread::spawn({
            let model = model.clone();
            move || {
                let mut last = SeqNo(10);
                for _ in 0..4 {
                    let visible = model.check();
                    assert!(visible >= last, "visible goes back");
                    last = visible;
                }
            }
        });
        for thread in writers.into_iter().chain([reader]) {
            thread.join().unwrap();
        }
        let all = COMMIT_COUNT * (1 + 2 + 3);
        assert_eq!(model.ring.visible(), SeqNo(10 + all));
        assert_eq!(model.ring.copied(), Lsn(100 + 8 * 3 * COMMIT_COUNT));
        assert!(model.ring.has_room());
    });
}

#[test]
fn whoever_waits_for_a_number_wakes_when_it_is_published() {
    explore(|| {
        let model = Model::new();
        let waiters = [11, 13].map(|seqno| {
            let model = model.clone();
            thread::spawn(move || {
                assert!(model.ring.wait_visible(SeqNo(seqno)));
                assert!(model.check() >= SeqNo(seqno));
            })
        });
        let writers = [0; 3].map(|_| {
            let model = model.clone();
            thread::spawn(move || assert!(model.commit(1)))
        });
        for thread in waiters.into_iter().chain(writers) {
            thread.join().unwrap();
        }
    });
}

#[test]
fn a_failure_stops_publication_and_wakes_everyone() {
    explore(|| {
        let model = Model::new();
        let failing = thread::spawn({
            let model = model.clone();
            move || {
                let (place, _) = model.begin(1).expect("nobody else breaks it");
                model.broken.store(1, Ordering::SeqCst);
                model.ring.fail();
                assert!(!model.ring.wait_published(place));
                place
            }
        });
        let writers = [2, 3, 4].map(|operation_count| {
            let model = model.clone();
            thread::spawn(move || {
                let mut refused = false;
                for _ in 0..2 {
                    let acknowledged = model.commit(operation_count);
                    assert!(!(refused && acknowledged), "acknowledged after a failure");
                    refused |= !acknowledged;
                }
            })
        });
        let waiter = thread::spawn({
            let model = model.clone();
            // Never reached.
            move || assert!(!model.ring.wait_visible(SeqNo(1000)))
        });
        let failed = failing.join().unwrap();
        for thread in writers.into_iter().chain([waiter]) {
            thread.join().unwrap();
        }
        assert!(model.check() < failed.last_seqno, "published past the failure");
        assert!(model.ring.copied() < failed.end_lsn);
    });
}

#[test]
fn a_reset_keeps_what_was_acknowledged_and_never_acknowledges_what_was_lost() {
    explore(|| {
        let model = Model::new();
        let failing = thread::spawn({
            let model = model.clone();
            move || {
                let (place, _) = model.begin(1).expect("nobody else breaks it");
                model.broken.store(1, Ordering::SeqCst);
                model.ring.abandon(place);
                model.ring.wait_published(place)
            }
        });
        // What each writer was told of its commit.
        let writers = [2, 3].map(|operation_count| {
            let model = model.clone();
            thread::spawn(move || {
                let (place, ready) = model.begin(operation_count)?;
                ready.store(1, Ordering::SeqCst);
                model.ring.finish(place);
                Some((place.last_seqno, model.ring.wait_published(place)))
            })
        });
        while model.broken.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        let (cut, last_seqno) = loop {
            let commits = model.commits.lock();
            if let Some(cut) = model.ring.drain() {
                let last = commits.last().expect("the one that failed").last_seqno;
                model.ring.reset(last, Lsn(1000));
                break (cut, last);
            }
            drop(commits);
            thread::yield_now();
        };
        assert!(!failing.join().unwrap(), "acknowledged what was lost");
        for writer in writers {
            if let Some((seqno, acknowledged)) = writer.join().unwrap() {
                assert_eq!(acknowledged, seqno <= cut, "{seqno:?}, cut at {cut:?}");
            }
        }
        // The ring goes on.
        let place = model.ring.push(SeqNo(last_seqno.0 + 1), Lsn(1008)).expect("it is empty");
        model.ring.finish(place);
        assert!(model.ring.wait_published(place));
    });
}
