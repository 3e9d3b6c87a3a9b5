//! The crew: the background threads that do the jobs of all engines of one
//! [`Resources`](crate::db::resources::Resources).
//!
//! - *workers* take the most urgent job of any engine: first what is small and may heal one, then
//!   flushes, then compactions of level 0, then deeper ones; within a class the engines take turns.
//!   So an engine that always has something to do delays another's flush by no more than the
//!   flushes under way.
//! - A compaction steps aside for another engine's flush that nobody else is free to do: it looks every
//!   thousand entries, runs the flush in its place and goes on. So a flush does not wait for the second
//!   that another engine's compaction may take either, with however few threads. Not for its own
//!   engine's: under load that starved the compactions, and level 0 cost a seventh of the throughput.
//! - The *log thread* keeps a spare log ready for each engine, the pages ahead of its log's end present,
//!   and chunks for its memtable.
//!
//! An engine joins once it is recovered and leaves when it is closed; leaving waits for the jobs
//! under way. A job that fails keeps its own engine from having jobs for a while, not the thread.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::db::engine::Engine;
use crate::db::resources::Shared;
use crate::db::worker::{PROBE, Running};
use crate::runtime::{Condvar, Mutex, Priority, Task};

/// How urgent a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Probing a full disk; removal of files that somebody waits for.
    Small,
    Flush,
    /// A compaction of level 0.
    Level0,
    /// Any compaction.
    Deeper,
}

const URGENCIES: [Urgency; 4] = [Urgency::Small, Urgency::Flush, Urgency::Level0, Urgency::Deeper];

/// See the module's comment. Its lock is a leaf.
pub(crate) struct Crew {
    /// Replaced under `state`.
    members: ArcSwap<Vec<Arc<Engine>>>,
    /// Changes when there may be a job that was none before. Written under `state`, or a worker
    /// between its look and its wait would miss it.
    news: AtomicU64,
    /// Workers that wait for a job. Written under `state`.
    idle: AtomicUsize,
    /// Where the next search begins, by urgency: behind the engine that was served last.
    next: [AtomicUsize; URGENCIES.len()],
    state: Mutex<State>,
    /// There may be a job.
    changed: Condvar,
    /// A log was rotated or has moved on.
    log_changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    log_wanted: bool,
}

impl Default for Crew {
    fn default() -> Crew {
        Crew {
            members: ArcSwap::default(),
            news: AtomicU64::new(0),
            idle: AtomicUsize::new(0),
            next: Default::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            log_changed: Condvar::new(),
        }
    }
}

impl Crew {
    /// Has the jobs of `engine` done from now on.
    pub fn join(&self, engine: &Arc<Engine>) {
        let mut state = self.state.lock();
        let members = self.members.load_full();
        self.members.store(Arc::new(members.iter().chain([engine]).cloned().collect()));
        state.log_wanted = true;
        drop(state);
        self.log_changed.notify_one();
        self.wake();
    }

    /// Gives the crew no more jobs of `engine`. Does not wait for those under way.
    pub fn leave(&self, engine: &Engine) {
        let _state = self.state.lock();
        let members = self.members.load_full();
        let others = members.iter().filter(|member| !std::ptr::eq(&***member, engine));
        self.members.store(Arc::new(others.cloned().collect()));
    }

    /// The engines that have joined. Keep it for a moment only: an engine that is closed should go.
    pub fn members(&self) -> arc_swap::Guard<Arc<Vec<Arc<Engine>>>> {
        self.members.load()
    }

    /// There may be a job.
    pub fn wake(&self) {
        let state = self.state.lock();
        self.news.fetch_add(1, Ordering::Relaxed);
        drop(state);
        self.changed.notify_all();
    }

    /// A member wants something of the log thread.
    pub fn wake_log_thread(&self) {
        self.state.lock().log_wanted = true;
        self.log_changed.notify_one();
    }

    /// Ends the threads. Nobody is a member any more.
    pub fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
        self.log_changed.notify_all();
    }

    /// Takes the most urgent job that nobody does yet.
    fn take(&self, members: &[Arc<Engine>]) -> Option<Running> {
        URGENCIES.into_iter().find_map(|urgency| self.take_of(members, urgency))
    }

    fn take_of(&self, members: &[Arc<Engine>], urgency: Urgency) -> Option<Running> {
        // A lone engine's compactions are all deeper ones: it has an order of its own for them.
        if urgency == Urgency::Level0 && members.len() == 1 {
            return None;
        }
        let next = &self.next[urgency as usize];
        let from = next.load(Ordering::Relaxed);
        (0..members.len()).find_map(|step| {
            let at = (from + step) % members.len();
            let running = members[at].take_job(urgency)?;
            next.store(at + 1, Ordering::Relaxed);
            Some(running)
        })
    }

    fn run_worker(&self, shared: &Shared) {
        let mut idle = false;
        loop {
            let seen = self.news.load(Ordering::Acquire);
            let members = self.members.load_full();
            let mut running = self.take(&members);
            let rests = running.is_none() && std::mem::take(&mut idle);
            if rests {
                running = members.iter().find_map(Engine::take_rest_job);
            }
            drop(members);
            if let Some(running) = running {
                let aside = Aside::of(shared, running.engine());
                self.run(running, &aside);
                // If they still rest there may be more of the kind, at once.
                idle = rests;
                continue;
            }
            let mut state = self.state.lock();
            if state.stopped {
                return;
            }
            if self.news.load(Ordering::Relaxed) != seen {
                continue;
            }
            self.idle.fetch_add(1, Ordering::Relaxed);
            idle = self.changed.wait_for(&mut state, PROBE);
            self.idle.fetch_sub(1, Ordering::Relaxed);
            drop(state);
            if idle {
                self.members().iter().for_each(|member| member.look_around());
                // Reads may have filled the block cache since.
                shared.fit_cache();
            }
        }
    }

    fn run(&self, running: Running, aside: &Aside<'_>) {
        let engine = running.run(aside);
        // What one engine gave back of the memory is there for those that wait.
        let members = self.members();
        let others = members.iter().filter(|member| !Arc::ptr_eq(member, &engine));
        others.filter(|other| other.is_slowed()).for_each(|other| other.measure_pressure());
        drop(members);
        drop(engine);
        self.wake();
    }

    fn run_log(&self) {
        loop {
            let members = self.members.load_full();
            members.iter().for_each(|member| member.keep_log());
            drop(members);
            let mut state = self.state.lock();
            while !state.log_wanted && !state.stopped {
                self.log_changed.wait(&mut state);
            }
            if state.stopped {
                return;
            }
            state.log_wanted = false;
        }
    }
}

/// Starts thread number `index` of the crew: the workers, then the log thread.
///
/// # Errors
/// If the operating system has no more threads to give.
pub(crate) fn spawn(shared: &Arc<Shared>, index: usize) -> io::Result<Task> {
    let theirs = shared.clone();
    if index == shared.threads {
        let run = move || theirs.crew.run_log();
        return shared.runtime.spawn("log", Priority::Normal, run);
    }
    let run = move || theirs.crew.run_worker(&theirs);
    shared.runtime.spawn(&format!("work-{index}"), Priority::Background, run)
}

/// How a long job steps aside for flushes of other engines.
pub(crate) struct Aside<'a> {
    /// `None` if it does not.
    shared: Option<&'a Shared>,
    /// Where its own engine is.
    own: *const Engine,
    /// What was seen of [`Crew::news`].
    seen: Cell<u64>,
    took: Cell<Duration>,
}

impl Aside<'_> {
    /// For the job of a worker.
    fn of<'a>(shared: &'a Shared, own: &Arc<Engine>) -> Aside<'a> {
        let seen = Cell::new(shared.crew.news.load(Ordering::Relaxed));
        Aside { shared: Some(shared), own: Arc::as_ptr(own), seen, took: Cell::default() }
    }

    /// For jobs that do not step aside: flushes themselves, and those of a user's thread.
    pub fn never() -> Aside<'static> {
        let (seen, took) = (Cell::default(), Cell::default());
        Aside { shared: None, own: std::ptr::null(), seen, took }
    }

    /// Runs the flushes that are due and that no idle worker is about to take. Called without locks.
    #[inline]
    pub fn step(&self) {
        if let Some(shared) = self.shared
            && shared.crew.news.load(Ordering::Relaxed) != self.seen.get()
        {
            self.step_for(shared);
        }
    }

    #[cold]
    fn step_for(&self, shared: &Shared) {
        let crew = &shared.crew;
        if crew.idle.load(Ordering::Relaxed) > 0 {
            return;
        }
        self.seen.set(crew.news.load(Ordering::Relaxed));
        let began = shared.runtime.now();
        loop {
            let members = crew.members();
            let others = members.iter().filter(|member| Arc::as_ptr(member) != self.own);
            let others: Vec<Arc<Engine>> = others.cloned().collect();
            drop(members);
            let Some(running) = crew.take_of(&others, Urgency::Flush) else { break };
            drop(others);
            crew.run(running, &Aside::never());
        }
        self.took.set(self.took.get() + shared.runtime.now().saturating_sub(began));
    }

    /// Time that other jobs took meanwhile.
    pub fn took(&self) -> Duration {
        self.took.get()
    }
}
