//! The work of one engine in the background: which jobs it has, and what becomes of them. The
//! threads are the [crew's](crate::db::crew), but for the syncer ([`crate::write::syncer`]).
//!
//! A keyspace is flushed by one worker at a time; tables are in one compaction at a time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::compaction::dead::plan_dead;
use crate::compaction::picker::{self, ClaimId, Claims, Plan, RangeStep};
use crate::db::crew::{Aside, Urgency};
use crate::db::engine::Engine;
use crate::db::resources::Resources;
use crate::error::{DegradedCause, ErrorKind, Result};
use crate::file::{FileNumber, HEADER_BYTES};
use crate::key::{KeyspaceId, SeqNo};
use crate::memtable::Memtable;
use crate::options::Limits;
use crate::runtime::{Condvar, Mutex, MutexGuard, Priority, Task};
use crate::tree::{STEPPED_MIN, Tree};
use crate::version::Version;
use crate::write::commit::closed_error;

/// How often a full disk is probed, and free space looked at; how long an engine whose job failed
/// has none.
pub(crate) const PROBE: Duration = Duration::from_millis(200);
/// Nothing was committed for so long: the database rests.
const REST: Duration = Duration::from_secs(1);
/// After so long it begins to clear away tombstones, which cost a scan more than runs do.
const DENSE_REST: Duration = Duration::from_millis(200);
/// Level 0 of a database that rests is compacted at so many runs.
const LEVEL0_RUNS_AT_REST: usize = 2;
/// A memtable of tombstones is flushed at rest if it has reached this part of its size.
const DENSE_MEMTABLE_FRACTION: usize = 8;
/// What a sweep costs besides its entries, in entries: two or three syncs.
const SWEEP_FIXED_ENTRIES: u64 = 1 << 16;
/// Sweeping so many entries in the background is worth one step of a scan over a tombstone.
const SWEEP_ENTRIES_PER_STEP: u64 = 4;
/// Pages are made present so far ahead of the log's end.
const TOUCH_AHEAD_BYTES: u64 = 4 << 20;

/// What the background threads have to do and are doing.
#[derive(Debug)]
pub(crate) struct Work {
    state: Mutex<State>,
    /// A job ended, or one that somebody waits for never will.
    changed: Condvar,
    /// Held while a spare log is made. Lock order: before the catalog.
    preparing: Mutex<()>,
    /// The log was rotated or has moved on.
    log_wanted: AtomicBool,
    /// Up to where which log's pages are present. The log thread's alone.
    touched: Mutex<(FileNumber, u64)>,
    /// Free bytes of the file system, as last looked at.
    free_bytes: AtomicU64,
    /// The same as `State::stopped`, for those who look often.
    stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    running_jobs: usize,
    /// The log thread is at this engine's log.
    keeping_log: bool,
    /// Has no jobs until then, since the last one failed.
    rests_until: Duration,
    flushing: HashSet<KeyspaceId>,
    /// What compactions work on, by keyspace.
    claims: HashMap<KeyspaceId, Claims>,
    /// Somebody waits until nothing is left to do, removal of files included.
    settling: usize,
    /// The last number that was seen committed, and since when.
    committed: (SeqNo, Duration),
}

/// Something for a worker to do.
pub(crate) enum Job {
    Flush(Arc<Tree>),
    Compact(Arc<Tree>, Plan),
    /// Freeze the active memtable, this one.
    Freeze(Arc<Tree>, Arc<Memtable>),
    /// Remove files that nothing needs any more; with a record before, if one is missing.
    Clean,
    /// Remove those of them that may go without.
    Remove,
    /// See whether a full disk has space again.
    Probe,
}

/// A job that a worker has taken.
pub(crate) struct Running {
    engine: Arc<Engine>,
    job: Job,
    claim: Option<ClaimId>,
    failed: bool,
}

impl Default for Work {
    fn default() -> Work {
        Work {
            state: Mutex::default(),
            changed: Condvar::default(),
            preparing: Mutex::default(),
            log_wanted: AtomicBool::new(true),
            touched: Mutex::new((FileNumber(0), 0)),
            free_bytes: AtomicU64::new(u64::MAX),
            stopped: AtomicBool::new(false),
        }
    }
}

impl Work {
    /// Nobody else makes a spare log meanwhile. Lock order: before the catalog.
    pub fn hold_spares(&self) -> MutexGuard<'_, ()> {
        self.preparing.lock()
    }

    /// Ends what is waited for; jobs under way end soon, and no more begin.
    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Waits until the last job has ended.
    fn wait_ended(&self) {
        let mut state = self.state.lock();
        while state.running_jobs > 0 || state.keeping_log {
            self.changed.wait(&mut state);
        }
    }

    /// True once jobs under way should end early: the database closes.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    pub fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }
}

impl Running {
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Does the job. Gives back the engine it was one of.
    pub fn run(mut self, aside: &Aside<'_>) -> Arc<Engine> {
        self.failed = self.engine.run_job(&self.job, aside).is_err();
        self.engine.clone()
    }
}

impl Drop for Running {
    /// Also where the job panicked: who closes the engine waits for its end.
    fn drop(&mut self) {
        let work = &self.engine.work;
        let mut state = work.state.lock();
        state.release(&self.job, self.claim);
        if self.failed {
            // Whatever it was opened the breaker, or another attempt would fail the same way: do
            // not spin.
            state.rests_until = self.engine.runtime.now() + PROBE;
        }
        drop(state);
        work.changed.notify_all();
    }
}

impl Engine {
    /// Starts what goes on in the background.
    ///
    /// # Errors
    /// If the operating system has no more threads to give.
    pub fn spawn(self: &Arc<Engine>, resources: &Resources) -> std::io::Result<Task> {
        resources.join(self)?;
        let (pipeline, interval) = (self.pipeline.clone(), self.options.sync_interval);
        let run = move || pipeline.run_syncer(interval);
        let spawned = self.runtime.spawn("sync", Priority::Normal, run);
        if spawned.is_err() {
            self.end_jobs();
        }
        spawned
    }

    /// Ends it. Jobs under way end first.
    pub fn stop(&self, syncer: Task) {
        self.pressure.stop();
        self.pipeline.syncer.stop();
        for tree in self.trees.load().iter() {
            tree.mark_closed();
        }
        self.end_jobs();
        syncer.join();
        if let Some(member) = &self.pipeline.member {
            // What it leaves behind unsynced never will be.
            member.fail(&closed_error());
        }
        self.pipeline.breaker.changes.end();
    }

    fn end_jobs(&self) {
        self.work.stop();
        self.resources.leave(self);
        self.work.wait_ended();
    }

    /// There may be a job, or one that somebody waits for never comes.
    pub fn wake_workers(&self) {
        // Under the lock, or who is between a look and a wait would miss it.
        let state = self.work.state.lock();
        self.work.changed.notify_all();
        drop(state);
        self.resources.crew.wake();
    }

    /// The log was rotated or has moved on.
    pub fn wake_log_thread(&self) {
        self.work.log_wanted.store(true, Ordering::Relaxed);
        self.resources.crew.wake_log_thread();
    }

    /// Takes a job of this urgency, if there is one that nobody does yet.
    pub fn take_job(self: &Arc<Engine>, urgency: Urgency) -> Option<Running> {
        let mut state = self.work.state.lock();
        if state.stopped || self.runtime.now() < state.rests_until {
            return None;
        }
        let job = match urgency {
            Urgency::Small => self.find_small(&mut state),
            Urgency::Flush => self.find_flush(&state),
            Urgency::Level0 => self.find_compaction(&mut state, |plan| plan.from_level == 0),
            Urgency::Deeper => {
                let compaction = self.find_compaction(&mut state, |_| true);
                compaction.or_else(|| self.find_sweep(&mut state))
            }
        }?;
        Some(self.take(&mut state, job))
    }

    fn take(self: &Arc<Engine>, state: &mut State, job: Job) -> Running {
        let claim = state.claim(&job);
        Running { engine: self.clone(), job, claim, failed: false }
    }

    /// True while there is a reason to refuse all jobs but a probe.
    fn is_broken(&self) -> bool {
        self.pipeline.breaker.check().is_err()
    }

    /// Probes a full disk. Removes files that wait for nothing, as an open leaves them, and for a settler
    /// those that wait for the next edit, since a record of its own is an fsync.
    fn find_small(&self, state: &mut State) -> Option<Job> {
        if state.running_jobs > 0 {
            return None;
        }
        if let Err(error) = self.pipeline.breaker.check() {
            let full = matches!(error.kind(), ErrorKind::NoSpace);
            // A repair waits until no job runs; one probe after the other would keep it waiting.
            let may_probe = full && !self.pipeline.breaker.is_being_repaired();
            return may_probe.then_some(Job::Probe);
        }
        if self.has_removable() {
            return Some(Job::Remove);
        }
        let is_last = state.settling > 0
            && self.find_flush(state).is_none()
            && self.find_compaction(state, |_| true).is_none();
        (is_last && self.may_have_obsolete()).then_some(Job::Clean)
    }

    fn find_flush(&self, state: &State) -> Option<Job> {
        if self.is_broken() {
            return None;
        }
        let trees = self.trees.load();
        let frozen_bytes = |tree: &&Arc<Tree>| -> usize {
            tree.view().frozen.iter().map(|frozen| frozen.memtable.bytes()).sum()
        };
        let to_flush = trees
            .iter()
            .filter(|tree| !tree.view().frozen.is_empty() && !state.flushing.contains(&tree.id));
        to_flush.max_by_key(frozen_bytes).map(|tree| Job::Flush(tree.clone()))
    }

    fn find_compaction(&self, state: &mut State, wanted: impl Fn(&Plan) -> bool) -> Option<Job> {
        if self.is_broken() {
            return None;
        }
        let oldest = self.oldest_snapshot();
        self.trees.load().iter().find_map(|tree| {
            let claims = state.claims.entry(tree.id).or_default();
            let view = tree.view();
            let plan = picker::pick(&view.version, &self.limits, claims, oldest)
                .or_else(|| plan_dead(&view.version, claims, self.tokens.dead_tables(tree)?));
            plan.filter(&wanted).map(|plan| Job::Compact(tree.clone(), plan))
        })
    }

    /// A job that is worth its writes only because nobody else writes:
    ///
    /// - Runs of level 0 become one. Every read asks each of them, so that three runs beside the last
    ///   level cost a scan or a read of a missing key twice the time. Under load the next flush would
    ///   come in between.
    /// - Tombstones go where what they hide goes with them. After nine in ten records were deleted, a
    ///   scan stepped over nineteen entries for each row that it found.
    pub fn take_rest_job(self: &Arc<Engine>) -> Option<Running> {
        let mut state = self.work.state.lock();
        let (committed, now) = (self.pipeline.ring.visible(), self.runtime.now());
        if state.committed.0 != committed {
            state.committed = (committed, now);
        }
        let rests_for = now.saturating_sub(state.committed.1);
        let rests = rests_for >= DENSE_REST && state.running_jobs == 0;
        if !rests || state.stopped || now < state.rests_until || self.is_broken() {
            return None;
        }
        let oldest = self.oldest_snapshot();
        let job = self.trees.load().iter().find_map(|tree| {
            let view = tree.view();
            if self.is_worth_freezing(&view.active) {
                return Some(Job::Freeze(tree.clone(), view.active.clone()));
            }
            let dense = has_dense_level0(&view.version);
            if !dense && rests_for < REST {
                return None;
            }
            let runs = if dense { 1 } else { LEVEL0_RUNS_AT_REST };
            let claims = state.claims.entry(tree.id).or_default();
            let plan = picker::pick(&view.version, &self.eager_limits(runs), claims, oldest)?;
            Some(Job::Compact(tree.clone(), plan))
        })?;
        Some(self.take(&mut state, job))
    }

    /// A job that clears away tombstones which scans step over, whoever writes meanwhile. It is taken
    /// once the steps have cost as much as the job will, so that it never costs more than twice what
    /// there would have been to win; and then the count begins anew.
    ///
    /// First the active memtable is frozen, if it is mostly tombstones, then level 0 compacted; from
    /// there on tables of tombstones sink anyway.
    fn find_sweep(&self, state: &mut State) -> Option<Job> {
        if self.is_broken() {
            return None;
        }
        let oldest = self.oldest_snapshot();
        self.trees.load().iter().find_map(|tree| {
            let view = tree.view();
            let is_flushing = !view.frozen.is_empty() || state.flushing.contains(&tree.id);
            if tree.stepped.count() < STEPPED_MIN || is_flushing {
                return None;
            }
            let active = &view.active;
            let (entries, job) = if active.tombstones() * 2 > active.entries() {
                (active.entries() as u64, Job::Freeze(tree.clone(), active.clone()))
            } else {
                let claims = state.claims.entry(tree.id).or_default();
                let plan = has_dense_level0(&view.version)
                    .then(|| picker::pick(&view.version, &self.eager_limits(1), claims, oldest));
                let Some(plan) = plan.flatten() else {
                    tree.stepped.give_up();
                    return None;
                };
                let entries = plan.tables().map(|(_, table)| table.facts().entries).sum();
                (entries, Job::Compact(tree.clone(), plan))
            };
            let price = (entries + SWEEP_FIXED_ENTRIES) / SWEEP_ENTRIES_PER_STEP;
            if tree.stepped.count() < price {
                tree.stepped.await_count(price);
                return None;
            }
            tree.stepped.sweep();
            Some(job)
        })
    }

    /// Limits by which level 0 is compacted at so many runs, however large their entries.
    fn eager_limits(&self, level0_runs: usize) -> Limits {
        let level0_runs = self.limits.level0_runs.min(level0_runs);
        Limits { level0_runs, level0_patience_max: 1, ..self.limits.clone() }
    }

    /// Looks at the disk's free space if writers wait, and no job is due that would ease it; and at what
    /// reads have loaded of indexes and filters.
    pub fn look_around(&self) {
        self.note_tables();
        if self.is_slowed() {
            self.look_at_free_space();
            self.measure_pressure();
        }
    }

    /// True of a memtable that is mostly tombstones, and so many that it is worth a flush before its
    /// time.
    fn is_worth_freezing(&self, active: &Memtable) -> bool {
        !active.is_empty()
            && active.bytes() >= self.limits.memtable_bytes / DENSE_MEMTABLE_FRACTION
            && active.tombstones() * 2 > active.entries()
    }

    /// True if files wait for removal, or if that cannot be seen now: who fails under the catalog's
    /// lock takes that of the work, so it is only tried here.
    fn may_have_obsolete(&self) -> bool {
        self.catalog.try_lock().is_none_or(|catalog| catalog.has_obsolete())
    }

    /// True if files are seen that may be removed now.
    fn has_removable(&self) -> bool {
        self.catalog.try_lock().is_some_and(|catalog| catalog.has_removable())
    }

    fn run_job(&self, job: &Job, aside: &Aside<'_>) -> Result<()> {
        let began = self.runtime.now();
        let ran = match job {
            Job::Flush(tree) => self.flush_frozen(tree),
            Job::Compact(tree, plan) => self.compact(tree, plan, aside),
            Job::Freeze(tree, memtable) => {
                self.freeze(tree, Some(memtable));
                return Ok(());
            }
            Job::Clean => self.clean(),
            Job::Remove => {
                self.remove_obsolete();
                return Ok(());
            }
            Job::Probe => return self.probe(),
        };
        let busy = self.runtime.now().saturating_sub(began + aside.took());
        self.totals.busy_ns.fetch_add(busy.as_nanos() as u64, Ordering::Relaxed);
        self.look_at_free_space();
        self.measure_pressure();
        ran.inspect_err(|error| self.fail(DegradedCause::Table, error))
    }

    /// Waits until no flush, compaction or removal is due.
    ///
    /// # Errors
    /// If the breaker opens meanwhile.
    pub fn settle(&self) -> Result<()> {
        let mut state = self.work.state.lock();
        state.settling += 1;
        self.resources.crew.wake();
        let outcome = loop {
            let broken = self.pipeline.breaker.check();
            if broken.is_err() || state.stopped {
                break broken;
            }
            let is_idle = state.running_jobs == 0
                && self.find_flush(&state).is_none()
                && self.find_compaction(&mut state, |_| true).is_none();
            if is_idle && !self.may_have_obsolete() {
                break Ok(());
            }
            self.work.changed.wait_for(&mut state, PROBE);
        };
        state.settling -= 1;
        outcome
    }

    /// Claims the next step of a manual compaction; waits while others are in its way. `None` once
    /// nothing is left to do.
    ///
    /// # Errors
    /// If the breaker opens, or the database closes, meanwhile.
    pub fn claim_step(
        &self,
        tree: &Tree,
        next: &mut impl FnMut(&Claims) -> RangeStep,
    ) -> Result<Option<(Plan, ClaimId)>> {
        let mut state = self.work.state.lock();
        loop {
            self.pipeline.breaker.check()?;
            tree.check_live()?;
            let claims = state.claims.entry(tree.id).or_default();
            match next(claims) {
                RangeStep::Done => return Ok(None),
                RangeStep::Plan(plan) => {
                    let claim = claims.claim(&plan);
                    state.running_jobs += 1;
                    return Ok(Some((plan, claim)));
                }
                RangeStep::Wait => _ = self.work.changed.wait_for(&mut state, PROBE),
            }
        }
    }

    /// Ends a step that was claimed.
    pub fn end_step(&self, tree: &Tree, claim: ClaimId) {
        let mut state = self.work.state.lock();
        state.claims.entry(tree.id).or_default().release(claim);
        state.running_jobs -= 1;
        drop(state);
        self.wake_workers();
    }

    /// The oldest registered snapshot, or beyond every number without one.
    pub fn oldest_snapshot(&self) -> SeqNo {
        self.snapshots.boundaries().first().copied().unwrap_or(SeqNo::MAX)
    }

    /// Waits until no memtable of `tree` is frozen.
    ///
    /// # Errors
    /// If the breaker opens or the keyspace is dropped meanwhile.
    pub fn wait_flushed(&self, tree: &Tree) -> Result<()> {
        let mut state = self.work.state.lock();
        while !tree.view().frozen.is_empty() {
            self.pipeline.breaker.check()?;
            tree.check_live()?;
            if state.stopped {
                return Err(closed_error());
            }
            self.work.changed.wait_for(&mut state, PROBE);
        }
        Ok(())
    }

    /// Waits until no job is running but the caller's own. With the breaker not closed, none begins.
    pub fn wait_idle(&self, own_jobs: usize) {
        let mut state = self.work.state.lock();
        while state.running_jobs > own_jobs {
            self.work.changed.wait_for(&mut state, PROBE);
        }
    }

    pub fn look_at_free_space(&self) {
        if let Ok(bytes) = self.fs.free_bytes(&self.dir) {
            self.work.free_bytes.store(bytes, Ordering::Relaxed);
        }
    }

    /// Takes writes again if a full disk has space again.
    ///
    /// # Errors
    /// If it has not.
    fn probe(&self) -> Result<()> {
        self.look_at_free_space();
        let healed = self.work.free_bytes() > self.limits.reserve_bytes && {
            let breaker = &self.pipeline.breaker;
            // Where the full disk broke the log or the manifest, space alone mends nothing. The
            // probe is one job.
            breaker.close_if_no_space() || self.resume(1).is_ok()
        };
        if !healed {
            return Err(self.pipeline.breaker.error());
        }
        self.measure_pressure();
        Ok(())
    }

    // The log thread.

    /// What the log thread does when something may be wanted of it.
    pub fn keep_log(&self) {
        if !self.work.log_wanted.swap(false, Ordering::Relaxed) || self.is_broken() {
            return;
        }
        {
            let mut state = self.work.state.lock();
            if state.stopped {
                return;
            }
            state.keeping_log = true;
        }
        let keeping = KeepingLog(&self.work);
        // What writers need soonest first: the spare's sync may take 10 ms beside a flush.
        self.touch_ahead(&mut self.work.touched.lock());
        self.resources.arenas.prepare();
        // An error has opened the breaker; writers meet it there.
        let _ = self.prepare_spare(0);
        drop(keeping);
    }

    /// Sees to it that there is a spare log with room for a record of this size.
    pub fn prepare_spare(&self, record_bytes: u64) -> Result<()> {
        let logs = &self.pipeline.logs;
        // One at a time: numbers of log files rise with their positions.
        let _one_at_a_time = self.work.hold_spares();
        if logs.has_spare(record_bytes) {
            return Ok(());
        }
        let spare = logs.create_spare(self.next_file_number(), record_bytes);
        let spare = spare.inspect_err(|error| {
            let full = matches!(error.kind(), ErrorKind::NoSpace);
            let cause = if full { DegradedCause::NoSpace } else { DegradedCause::LogWrite };
            self.fail(cause, error);
        })?;
        if let Some(replaced) = logs.offer_spare(spare) {
            let path = crate::file::FileKind::Log.path(&self.dir, replaced.number);
            self.catalog.lock().retire(path);
        }
        Ok(())
    }

    /// Makes the pages ahead of the log's end present, so that writers do not fault on them.
    fn touch_ahead(&self, touched: &mut (FileNumber, u64)) {
        let (file, lsn) = {
            let state = self.pipeline.lock();
            (state.cursor().file().clone(), state.lsn())
        };
        let offset = lsn.0 - file.first_lsn.0 + HEADER_BYTES as u64;
        let from = if touched.0 == file.number { touched.1.max(offset) } else { offset };
        let upto = (offset + TOUCH_AHEAD_BYTES).min(file.region.bytes());
        if upto > from {
            file.region.touch(from, upto - from);
            *touched = (file.number, upto);
        }
    }
}

/// Says that the log thread is done with an engine, even if it panicked.
struct KeepingLog<'a>(&'a Work);

impl Drop for KeepingLog<'_> {
    fn drop(&mut self) {
        self.0.state.lock().keeping_log = false;
        self.0.changed.notify_all();
    }
}

impl State {
    /// Marks what a job works on as taken.
    fn claim(&mut self, job: &Job) -> Option<ClaimId> {
        self.running_jobs += 1;
        match job {
            Job::Flush(tree) => {
                self.flushing.insert(tree.id);
                None
            }
            Job::Compact(tree, plan) => Some(self.claims.entry(tree.id).or_default().claim(plan)),
            Job::Freeze(..) | Job::Clean | Job::Remove | Job::Probe => None,
        }
    }

    fn release(&mut self, job: &Job, claim: Option<ClaimId>) {
        self.running_jobs -= 1;
        match (job, claim) {
            (Job::Flush(tree), _) => _ = self.flushing.remove(&tree.id),
            (Job::Compact(tree, _), Some(claim)) => {
                self.claims.entry(tree.id).or_default().release(claim);
            }
            _ => {}
        }
    }
}

/// True if a table of level 0 is mostly tombstones.
fn has_dense_level0(version: &Version) -> bool {
    let mut tables = version.level0().iter().flat_map(|run| run.tables());
    tables.any(|table| table.facts().tombstones * 2 > table.facts().entries)
}
