//! A model of the hand-over between writers that sync the log themselves and the syncer thread:
//! `syncer.rs` compiled once more over shuttle's threads, with a disk that is a number.
//!
//! What must hold in every schedule: whoever is told that a position is durable is told the truth;
//! everybody is told in the end; no two threads sync at once; and after a failed sync the log is
//! never synced again.

use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Duration;

use shuttle::thread;

use self::commit::Pipeline;
use self::sync::{AtomicU64, Clock, Condvar, Mutex, Ordering};
use crate::error::Error;
use crate::file::Lsn;
use crate::write::ring_model::{explore, sync};

#[path = "closing.rs"]
#[expect(dead_code, reason = "the model does not call everything that the engine does")]
#[expect(clippy::duplicate_mod, reason = "the same code over other primitives is the point")]
mod closing;

#[path = "gather.rs"]
#[expect(clippy::duplicate_mod, reason = "the same code over other primitives is the point")]
mod gather;

#[path = "syncer.rs"]
#[expect(dead_code, reason = "the model does not call everything that the engine does")]
#[expect(clippy::duplicate_mod, reason = "the same code over other primitives is the point")]
mod syncer;

/// What the syncer has around it.
mod commit {
    use super::closing::Member;
    use super::syncer::Syncer;
    use super::{AtomicU64, Clock, Error, Lsn, Mutex, Ordering};
    use crate::error::{DegradedCause, Result};

    pub(super) struct Pipeline {
        pub syncer: Syncer,
        pub ring: Ring,
        pub logs: Logs,
        pub breaker: Breaker,
        /// Marks after a sync.
        pub marks: AtomicU64,
        pub member: Option<Member>,
    }

    pub(super) struct Ring {
        pub copied: AtomicU64,
        pub failed: AtomicU64,
    }

    impl Ring {
        pub fn copied(&self) -> Lsn {
            Lsn(self.copied.load(Ordering::SeqCst))
        }

        pub fn has_failed(&self) -> bool {
            self.failed.load(Ordering::SeqCst) != 0
        }
    }

    /// The disk.
    pub(super) struct Logs {
        pub durable: AtomicU64,
        /// Threads inside `sync`.
        inside: AtomicU64,
        /// Syncs that still succeed.
        pub good: AtomicU64,
        pub failed: AtomicU64,
    }

    impl Logs {
        pub fn sync(&self, upto: Lsn) -> Result<()> {
            assert_eq!(self.inside.fetch_add(1, Ordering::SeqCst), 0, "two syncs at once");
            assert_eq!(self.failed.load(Ordering::SeqCst), 0, "a sync after a failed one");
            let fails = self.good.fetch_sub(1, Ordering::SeqCst) == 0;
            if fails {
                self.failed.store(1, Ordering::SeqCst);
            } else {
                self.durable.fetch_max(upto.0, Ordering::SeqCst);
            }
            self.inside.fetch_sub(1, Ordering::SeqCst);
            match fails {
                true => Err(Error::degraded(DegradedCause::LogSync)),
                false => Ok(()),
            }
        }
    }

    /// How often it was opened.
    pub(super) struct Breaker(pub Mutex<u64>);

    impl Breaker {
        pub fn open(&self, _: DegradedCause, _: &Error) {
            *self.0.lock() += 1;
        }

        pub fn error(&self) -> Error {
            Error::degraded(DegradedCause::LogWrite)
        }
    }

    impl Pipeline {
        /// `good` syncs succeed, then one fails.
        pub fn new(good: u64) -> Pipeline {
            let number = AtomicU64::new;
            Pipeline {
                syncer: Syncer::new(Lsn(0), Clock::new()),
                ring: Ring { copied: number(0), failed: number(0) },
                logs: Logs {
                    durable: number(0),
                    inside: number(0),
                    good: number(good),
                    failed: number(0),
                },
                breaker: Breaker(Mutex::new(0)),
                marks: number(0),
                member: None,
            }
        }

        pub fn mark_synced(&self) {
            self.marks.fetch_add(1, Ordering::SeqCst);
        }

        /// Commits a record; where it ends.
        pub fn commit(&self) -> Lsn {
            Lsn(self.ring.copied.fetch_add(8, Ordering::SeqCst) + 8)
        }

        pub fn is_on_disk(&self, lsn: Lsn) -> bool {
            self.logs.durable.load(Ordering::SeqCst) >= lsn.0
        }
    }
}

/// Syncs that succeed in a model where none fails.
const ALWAYS: u64 = 1 << 40;

fn start(pipeline: &Arc<Pipeline>, interval: Option<Duration>) -> thread::JoinHandle<()> {
    let pipeline = pipeline.clone();
    thread::spawn(move || pipeline.run_syncer(interval))
}

/// Threads that each commit and wait so often; gives how many waits failed.
fn writers(
    pipeline: &Arc<Pipeline>,
    count: usize,
    commits: usize,
) -> Vec<thread::JoinHandle<usize>> {
    let writer = |_| {
        let pipeline = pipeline.clone();
        thread::spawn(move || {
            let mut failed = 0;
            for _ in 0..commits {
                let lsn = pipeline.commit();
                match pipeline.wait_durable(lsn) {
                    Ok(()) => assert!(pipeline.is_on_disk(lsn), "told of what is not durable"),
                    Err(_) => failed += 1,
                }
            }
            failed
        })
    };
    (0..count).map(writer).collect()
}

fn join_all(writers: Vec<thread::JoinHandle<usize>>) -> usize {
    writers.into_iter().map(|writer| writer.join().unwrap()).sum()
}

/// An executor's thread: sleeps until it is woken.
struct Sleeper {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Sleeper {
    fn new() -> Arc<Sleeper> {
        Arc::new(Sleeper { woken: Mutex::new(false), changed: Condvar::new() })
    }

    fn sleep(&self) {
        let mut woken = self.woken.lock();
        while !*woken {
            self.changed.wait(&mut woken);
        }
        *woken = false;
    }
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        *self.woken.lock() = true;
        self.changed.notify_all();
    }
}

/// Bug: two threads synced the log at once, and where the disk failed one of them could take what was
/// lost for durable: the kernel tells one of two syncs. Cause: the syncer thread took a sync that a
/// writer did by itself, when it began, stopped or met its interval meanwhile, for one that was
/// handed over to it. Fix: the state says whose turn it is.
#[test]
fn everyone_who_waits_is_told_the_truth() {
    explore(|| {
        let pipeline = Arc::new(Pipeline::new(ALWAYS));
        let syncer = start(&pipeline, None);
        assert_eq!(join_all(writers(&pipeline, 3, 2)), 0);
        assert!(pipeline.marks.load(Ordering::SeqCst) > 0, "the last group has its witness");
        pipeline.syncer.stop();
        syncer.join().unwrap();
    });
}

#[test]
fn a_ticket_is_woken_by_whoever_syncs() {
    explore(|| {
        let pipeline = Arc::new(Pipeline::new(ALWAYS));
        let syncer = start(&pipeline, None);
        let waiter = thread::spawn({
            let pipeline = pipeline.clone();
            move || {
                let lsn = pipeline.commit();
                pipeline.request_durable(lsn);
                let sleeper = Sleeper::new();
                let waker = Waker::from(sleeper.clone());
                while !pipeline.syncer.wake_when_durable(lsn, &waker) {
                    sleeper.sleep();
                }
                assert!(pipeline.is_on_disk(lsn));
            }
        });
        let writers = writers(&pipeline, 2, 1);
        waiter.join().unwrap();
        assert_eq!(join_all(writers), 0);
        pipeline.syncer.stop();
        syncer.join().unwrap();
    });
}

#[test]
fn after_a_failed_sync_nothing_is_synced_and_everyone_is_told() {
    explore(|| {
        let pipeline = Arc::new(Pipeline::new(1));
        let syncer = start(&pipeline, None);
        let failed = join_all(writers(&pipeline, 3, 2));
        let missed = pipeline.ring.copied() > pipeline.syncer.durable();
        assert_eq!(failed > 0, missed, "a commit is durable or its writer was told");
        assert_eq!(*pipeline.breaker.0.lock(), u64::from(missed), "the breaker opens once");
        if missed {
            // As `resume` does once all that is visible is in tables.
            let all = pipeline.ring.copied();
            pipeline.logs.durable.fetch_max(all.0, Ordering::SeqCst);
            pipeline.logs.failed.store(0, Ordering::SeqCst);
            pipeline.logs.good.store(ALWAYS, Ordering::SeqCst);
            pipeline.reset_syncer(all);
        }
        assert_eq!(join_all(writers(&pipeline, 2, 1)), 0, "it goes on");
        pipeline.syncer.stop();
        syncer.join().unwrap();
    });
}

#[test]
fn writers_go_on_by_themselves_once_the_syncer_thread_has_ended() {
    explore(|| {
        let pipeline = Arc::new(Pipeline::new(ALWAYS));
        let syncer = start(&pipeline, None);
        let writers = writers(&pipeline, 2, 2);
        pipeline.syncer.stop();
        syncer.join().unwrap();
        assert_eq!(join_all(writers), 0);
    });
}

#[test]
fn what_nobody_waits_for_is_synced_within_the_interval() {
    explore(|| {
        let pipeline = Arc::new(Pipeline::new(ALWAYS));
        let syncer = start(&pipeline, Some(Duration::from_millis(1)));
        let writers = writers(&pipeline, 2, 1);
        (0..2).for_each(|_| _ = pipeline.commit());
        let last = pipeline.commit();
        while pipeline.syncer.durable() < last {
            thread::yield_now();
        }
        assert!(pipeline.is_on_disk(last));
        assert_eq!(join_all(writers), 0);
        pipeline.syncer.stop();
        syncer.join().unwrap();
    });
}
