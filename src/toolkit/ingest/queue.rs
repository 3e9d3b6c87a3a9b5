//! What producers and the consumer of a queue share: the log, its bounds, and who waits for what.
//!
//! # Bounds
//! A queue is *full* once its backlog, or the age of its oldest event, is over its bound, and stays
//! so until the consumer has brought it down by an eighth. Without the gap, producers that were told
//! when to come back would find the room taken again by those that came a moment before; with it,
//! all of them are let in together, and for a while.
//!
//! # Wakes
//! The consumer says that it is idle and then looks at the log once more; a producer publishes its
//! event and then looks whether the consumer is idle. One of the two sees the other.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::db::Db;
use crate::db::batch::Batch;
use crate::db::keyspace::Keyspace;
use crate::db::snapshot::Snapshot;
use crate::error::{BusyCause, DegradedCause, Error, ErrorKind, Result};
use crate::file::Lsn;
use crate::fs::Lock;
use crate::key::{KEY_BYTES_MAX, SeqNo, VALUE_BYTES_MAX};
use crate::loss::Loss;
use crate::options::Durability;
use crate::record::{HEADER_BYTES, record_bytes};
use crate::runtime::{Condvar, Mutex};
use crate::toolkit::ingest::dead;
use crate::toolkit::ingest::log::EventLog;
use crate::toolkit::ingest::opening::decode_offset;
use crate::toolkit::ingest::options::IngestOptions;
use crate::write::breaker::{BreakerState, Changes};
use crate::write::pressure::{Patience, Pressure};
use crate::write::ring::Place;

/// Marks of age that are kept at most. Beyond, every other one is let go of.
const MARKS_MAX: usize = 1024;
/// The rate of draining is measured over at least so long.
const MEASURE: Duration = Duration::from_millis(20);
/// What is told to wait for at least, and, while nothing is applied at all, at most.
const RETRY_MIN: Duration = Duration::from_millis(1);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// See the module's comment.
pub(crate) struct Queue {
    pub db: Db,
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    pub options: IngestOptions,
    pub durability: Durability,
    pub offsets: Keyspace,
    pub dead_letters: Keyspace,
    pub losses: Vec<Loss>,
    /// The changes of the breaker of every log that the queue has.
    pub changes: Arc<Changes>,
    pub log: ArcSwap<EventLog>,
    pub state: Mutex<State>,
    /// The consumer may have something to do.
    pub work: Condvar,
    /// Something was applied, or will not be.
    pub settled: Condvar,
    pub totals: Totals,
    is_full: AtomicBool,
    is_idle: AtomicBool,
    /// Nanoseconds of the runtime's clock when the oldest event that is not applied came; `u64::MAX`
    /// without one. Changed under the lock of the state.
    oldest_ns: AtomicU64,
    /// The next event that comes after this is marked with its time.
    mark_due_ns: AtomicU64,
    /// Held until the queue is closed.
    pub lock: Mutex<Option<Box<dyn Lock>>>,
}

/// Events since the queue was opened.
#[derive(Default)]
pub(crate) struct Totals {
    pub accepted: AtomicU64,
    pub applied: AtomicU64,
    pub dead: AtomicU64,
    pub failed_tries: AtomicU64,
    pub refused: AtomicU64,
}

pub(crate) struct State {
    /// Apply everything, then end.
    pub closing: bool,
    /// End after the batch under way.
    pub stopped: bool,
    /// The consumer has ended.
    pub ended: bool,
    /// A resume was asked for so often, and carried out so often.
    pub resumes_wanted: u64,
    pub resumes_done: u64,
    pub resume_failure: Option<Error>,
    /// Why the consumer does not get on; cleared when it does.
    pub failure: Option<Error>,
    /// Events a second; `None` for any number.
    pub drain_rate: Option<u64>,
    /// The last event that is applied.
    pub applied: SeqNo,
    /// Where effects are gathered, events are read only up to this one, and the turn that is to be
    /// applied next ends here.
    gathers: bool,
    read_upto: SeqNo,
    cut: Option<Cut>,
    pub drained: Drained,
    /// Since when the queue is full, and how long that lasts: about the longest of late.
    full_since: Option<Duration>,
    full_time: Duration,
    /// When events came that end at or before these positions, oldest first.
    marks: VecDeque<(Lsn, Duration)>,
}

/// How fast events are applied, measured over the time that the consumer works.
#[derive(Default)]
pub(crate) struct Drained {
    /// Smoothed, in bytes of log and in events a second; 0 before anything was measured.
    pub bytes_rate: f64,
    pub events_rate: f64,
    took: Duration,
    bytes: u64,
    events: u64,
}

impl Drained {
    fn note(&mut self, took: Duration, bytes: u64, events: u64) {
        self.took += took;
        (self.bytes, self.events) = (self.bytes + bytes, self.events + events);
        if self.took < MEASURE {
            return;
        }
        let seconds = self.took.as_secs_f64();
        let smooth = |old: f64, count: u64| {
            let sample = count as f64 / seconds;
            if old == 0.0 { sample } else { 0.7 * old + 0.3 * sample }
        };
        self.bytes_rate = smooth(self.bytes_rate, self.bytes);
        self.events_rate = smooth(self.events_rate, self.events);
        (self.took, self.bytes, self.events) = (Duration::ZERO, 0, 0);
    }
}

impl State {
    fn new(options: &IngestOptions, applied: SeqNo, gathers: bool, read_upto: SeqNo) -> State {
        State {
            closing: false,
            stopped: false,
            ended: false,
            resumes_wanted: 0,
            resumes_done: 0,
            resume_failure: None,
            failure: None,
            drain_rate: options.drain_rate,
            applied,
            gathers,
            read_upto,
            cut: None,
            drained: Drained::default(),
            full_since: None,
            full_time: Duration::ZERO,
            marks: VecDeque::new(),
        }
    }
}

/// The last event of a turn.
#[derive(Clone)]
pub(crate) struct Cut {
    pub number: SeqNo,
    /// Where its record ends, in this log.
    pub lsn: Lsn,
    pub log: Arc<EventLog>,
}

/// Effects that were gathered where events are pushed, so that the log need not be read for them: a
/// *turn* has those of all events up to its cut.
pub(crate) trait Turns: Send {
    /// Fills a batch with the turn that is under way.
    fn fill(&self, batch: &mut Batch);

    /// Forgets everything that was gathered: the log is read instead.
    fn reset(&self);
}

/// What a queue is made of, once its log was begun.
pub(crate) struct Parts {
    pub db: Db,
    pub name: String,
    pub dir: PathBuf,
    pub options: IngestOptions,
    pub offsets: Keyspace,
    pub dead_letters: Keyspace,
    pub losses: Vec<Loss>,
    pub log: Arc<EventLog>,
    /// The last event that is applied.
    pub applied: SeqNo,
    /// Effects are gathered: [`Turns`].
    pub gathers: bool,
    pub lock: Box<dyn Lock>,
}

impl Queue {
    pub fn new(parts: Parts) -> Queue {
        let engine = parts.db.engine();
        let now = engine.runtime.now();
        let read_upto = parts.log.pipeline.ring.visible();
        let mut state = State::new(&parts.options, parts.applied, parts.gathers, read_upto);
        let mut oldest_ns = u64::MAX;
        if parts.log.backlog_bytes() > 0 {
            state.marks.push_back((parts.log.pipeline.ring.copied(), now));
            oldest_ns = now.as_nanos() as u64;
        }
        Queue {
            durability: parts.options.durability.unwrap_or(engine.options.durability),
            db: parts.db,
            name: parts.name,
            dir: parts.dir,
            options: parts.options,
            offsets: parts.offsets,
            dead_letters: parts.dead_letters,
            losses: parts.losses,
            changes: parts.log.pipeline.breaker.changes.clone(),
            log: ArcSwap::new(parts.log),
            state: Mutex::new(state),
            work: Condvar::new(),
            settled: Condvar::new(),
            totals: Totals::default(),
            is_full: AtomicBool::new(false),
            is_idle: AtomicBool::new(false),
            oldest_ns: AtomicU64::new(oldest_ns),
            mark_due_ns: AtomicU64::new(0),
            lock: Mutex::new(Some(parts.lock)),
        }
    }

    pub fn now(&self) -> Duration {
        self.db.engine().runtime.now()
    }

    // Producers.

    /// Appends an event, once there is room for it.
    pub fn push(
        &self,
        key: &[u8],
        event: &[u8],
        patience: Patience,
    ) -> Result<(Arc<EventLog>, Place)> {
        let now = self.admit(key, event, patience)?;
        self.append(key, event, now)
    }

    /// Waits until there is room for an event; when it came.
    pub fn admit(&self, key: &[u8], event: &[u8], patience: Patience) -> Result<Duration> {
        self.check_sizes(key, event)?;
        // With what goes with it: the operation's lengths, a mark, the end of a file.
        let bytes = record_bytes((key.len() + event.len()) as u64 + 16) + 2 * HEADER_BYTES as u64;
        let now = self.now();
        if self.is_full.load(Ordering::Relaxed) || self.is_over(&self.log.load(), bytes, now) {
            self.wait_room(bytes, patience)?;
        }
        Ok(now)
    }

    /// Appends an event that was admitted at this time.
    pub fn append(
        &self,
        key: &[u8],
        event: &[u8],
        now: Duration,
    ) -> Result<(Arc<EventLog>, Place)> {
        let log = self.log.load_full();
        let place = log.append(key, event)?;
        self.totals.accepted.fetch_add(1, Ordering::Relaxed);
        if now.as_nanos() as u64 >= self.mark_due_ns.load(Ordering::Relaxed) {
            self.mark(place.end_lsn, now);
        }
        // See the module's comment.
        fence(Ordering::SeqCst);
        if self.is_idle.load(Ordering::Relaxed) {
            let _state = self.state.lock();
            self.work.notify_one();
        }
        Ok((log, place))
    }

    fn check_sizes(&self, key: &[u8], event: &[u8]) -> Result<()> {
        if key.len() > KEY_BYTES_MAX {
            let (found, most) = (key.len(), KEY_BYTES_MAX);
            return Err(Error::invalid(format!(
                "a partition key of {found} bytes; {most} is the most"
            )));
        }
        // It has to fit a dead letter, too.
        let value_bytes_max = VALUE_BYTES_MAX.min(self.db.engine().limits.memtables_bytes_max / 2);
        let bytes_max = value_bytes_max.saturating_sub(dead::OVERHEAD_BYTES);
        let bytes = key.len() + event.len();
        if bytes > bytes_max {
            return Err(Error::invalid(format!(
                "an event of {bytes} bytes, its partition key included; {bytes_max} is the most with \
                 this memory budget"
            )));
        }
        Ok(())
    }

    /// True if there is no room for so many bytes more.
    fn is_over(&self, log: &EventLog, bytes: u64, now: Duration) -> bool {
        let backlog = log.backlog_bytes();
        let oldest_ns = self.oldest_ns.load(Ordering::Relaxed);
        let age = Duration::from_nanos((now.as_nanos() as u64).saturating_sub(oldest_ns));
        // A lone event may be larger than the bound.
        backlog > 0 && (backlog + bytes > self.options.bytes_max || age > self.options.age_max)
    }

    #[cold]
    fn wait_room(&self, bytes: u64, patience: Patience) -> Result<()> {
        let mut state = self.state.lock();
        loop {
            let (log, now) = (self.log.load(), self.now());
            if self.is_over(&log, bytes, now) {
                self.is_full.store(true, Ordering::Relaxed);
                state.full_since.get_or_insert(now);
                // The last event may have been applied just before.
                self.note_room(&mut state);
            }
            if !self.is_full.load(Ordering::Relaxed) {
                return Ok(());
            }
            log.pipeline.breaker.check()?;
            if state.ended {
                return Err(state.failure.as_ref().map_or_else(ended_error, Error::duplicate));
            }
            let busy = || {
                self.totals.refused.fetch_add(1, Ordering::Relaxed);
                Error::busy(BusyCause::Queue, self.retry_after(&state))
            };
            match patience {
                Patience::Wait => self.settled.wait(&mut state),
                Patience::None => return Err(busy()),
                Patience::Until(deadline) => {
                    let left = deadline.saturating_sub(now);
                    if left.is_zero() {
                        return Err(busy());
                    }
                    self.settled.wait_for(&mut state, left);
                }
            }
        }
    }

    /// True if the consumer will get on, as far as the queue's log is concerned.
    pub fn is_readable(&self) -> bool {
        let log = self.log.load();
        is_readable(&log, log.applied())
    }

    /// When the queue will have been brought down by an eighth, as far as that is known.
    pub fn retry_after(&self, state: &State) -> Duration {
        let (log, now) = (self.log.load(), self.now());
        let took = now.saturating_sub(state.full_since.unwrap_or(now));
        let usual = match state.full_time {
            Duration::ZERO => self.drain_time(state, log.backlog_bytes()),
            time => time,
        };
        // Twice as long again: who comes too early is told to wait again, who comes late loses little. Under
        // three times the load 88 to 100 % were let in with once as long, 94 to 100 with this.
        let usual = usual * 3;
        // What takes longer than usual may well take so much longer again.
        let left = usual.checked_sub(took).unwrap_or(took);
        left.clamp(RETRY_MIN, RETRY_MAX)
    }

    /// How long it takes to apply an eighth of what a full queue has, at the rate of late.
    fn drain_time(&self, state: &State, backlog: u64) -> Duration {
        let rate = match state.drained.bytes_rate {
            // Nothing was measured yet.
            0.0 => self.db.pressure().sustainable_rate,
            rate => rate,
        };
        let low = self.options.bytes_max - self.options.bytes_max / 8;
        let excess = backlog.saturating_sub(low).max(backlog / 8).max(1) as f64;
        Duration::try_from_secs_f64(excess / rate.max(1.0)).unwrap_or(RETRY_MAX)
    }

    /// How full the queue is, and what it can take.
    pub fn pressure(&self) -> Pressure {
        let backlog = self.log.load().backlog_bytes() as f64 / self.options.bytes_max as f64;
        let age = self.age(self.now()).unwrap_or_default();
        let age = age.as_secs_f64() / self.options.age_max.as_secs_f64();
        let sustainable_rate = self.state.lock().drained.bytes_rate;
        let is_full = self.is_full.load(Ordering::Relaxed);
        Pressure {
            value: if is_full { 1.0 } else { backlog.max(age).min(1.0) },
            cause: BusyCause::Queue,
            sustainable_rate,
            allowed_rate: is_full.then_some(sustainable_rate as u64),
        }
    }

    /// Notes when an event came.
    #[cold]
    fn mark(&self, end: Lsn, now: Duration) {
        let mut state = self.state.lock();
        let applied = self.log.load().applied();
        while state.marks.front().is_some_and(|(end, _)| *end <= applied) {
            state.marks.pop_front();
        }
        if end <= applied {
            // The consumer was faster. The next event is marked.
            return;
        }
        let step =
            (self.options.age_max / 64).clamp(Duration::from_millis(1), Duration::from_secs(1));
        self.mark_due_ns.store((now + step).as_nanos() as u64, Ordering::Relaxed);
        if state.marks.is_empty() {
            self.oldest_ns.store(now.as_nanos() as u64, Ordering::Relaxed);
        }
        if state.marks.back().is_none_or(|(last, _)| *last < end) {
            state.marks.push_back((end, now));
        }
        if state.marks.len() > MARKS_MAX {
            // Of two neighbours the older one's time with the younger one's position.
            let marks: Vec<_> = state.marks.drain(..).collect();
            let pairs = marks.chunks(2).map(|pair| (pair[pair.len() - 1].0, pair[0].1));
            state.marks = pairs.collect();
        }
    }

    // The consumer.

    /// Everything before `lsn`, and through event `number`, is applied; the last of it took so long.
    pub fn note_applied(&self, log: &EventLog, lsn: Lsn, number: SeqNo, took: Duration) {
        let now = self.now();
        let bytes = lsn.0 - log.applied().0;
        log.set_applied(lsn);
        let mut state = self.state.lock();
        let events = number.0 - state.applied.0;
        state.failure = None;
        state.applied = number;
        state.cut.take_if(|cut| cut.number <= number);
        state.drained.note(took, bytes, events);
        while state.marks.front().is_some_and(|(end, _)| *end <= lsn) {
            state.marks.pop_front();
        }
        self.set_oldest(&mut state, log, now);
        self.note_room(&mut state);
        self.settled.notify_all();
    }

    /// The time of the oldest event, from the marks; if none is left of events that are there, they
    /// came between the last mark and now.
    fn set_oldest(&self, state: &mut State, log: &EventLog, now: Duration) {
        if state.marks.is_empty() {
            if log.backlog_bytes() > 0 {
                state.marks.push_back((log.pipeline.ring.copied(), now));
            } else {
                self.mark_due_ns.store(0, Ordering::Relaxed);
            }
        }
        let oldest = state.marks.front().map_or(u64::MAX, |(_, came)| came.as_nanos() as u64);
        self.oldest_ns.store(oldest, Ordering::Relaxed);
    }

    /// Ends being full, if it is brought down by an eighth.
    fn note_room(&self, state: &mut State) {
        if !self.is_full.load(Ordering::Relaxed) {
            return;
        }
        let (log, now) = (self.log.load(), self.now());
        let (bytes_max, age_max) = (self.options.bytes_max, self.options.age_max);
        let has_room = log.backlog_bytes() <= bytes_max - bytes_max.div_ceil(8)
            && self.age(now).is_none_or(|age| age <= age_max - age_max / 8);
        if has_room || log.backlog_bytes() == 0 {
            self.is_full.store(false, Ordering::Relaxed);
            let took = now.saturating_sub(state.full_since.take().unwrap_or(now));
            state.full_time = took.max((state.full_time * 15 + took) / 16);
        }
    }

    /// How long the oldest event has waited.
    pub fn age(&self, now: Duration) -> Option<Duration> {
        let oldest_ns = self.oldest_ns.load(Ordering::Relaxed);
        (oldest_ns != u64::MAX).then(|| now.saturating_sub(Duration::from_nanos(oldest_ns)))
    }

    /// Where effects are gathered: from now on the log is read for them, up to this event.
    pub fn read_again(&self, upto: SeqNo) {
        self.state.lock().read_upto = upto;
    }

    /// The log was begun anew with these events, none of which is applied.
    pub fn replace_log(&self, log: Arc<EventLog>) {
        let now = self.now();
        let mut state = self.state.lock();
        let came = state.marks.front().map_or(now, |(_, came)| *came);
        state.marks.clear();
        if log.backlog_bytes() > 0 {
            state.marks.push_back((log.pipeline.ring.copied(), came));
        }
        // It is of the old log.
        state.cut = None;
        self.log.store(log.clone());
        self.set_oldest(&mut state, &log, now);
        self.note_room(&mut state);
        self.settled.notify_all();
    }

    /// Waits for work; see [`Wanted`].
    pub fn wait_work(&self, log: &EventLog, position: Lsn) -> Wanted {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return Wanted::Stop;
            }
            if state.resumes_wanted > state.resumes_done {
                return Wanted::Resume;
            }
            let reads = !state.gathers || state.applied < state.read_upto;
            if reads && is_readable(log, position) {
                return Wanted::Events;
            }
            if let Some(cut) = state.cut.as_ref().filter(|_| !reads) {
                return Wanted::Turn(cut.clone());
            }
            if state.closing {
                return Wanted::Stop;
            }
            if !reads {
                self.work.wait(&mut state);
                continue;
            }
            self.is_idle.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if !is_readable(log, position) {
                self.work.wait(&mut state);
            }
            self.is_idle.store(false, Ordering::Relaxed);
        }
    }

    // Where effects are gathered.

    /// Has the consumer apply the turn with this cut, and waits until it has.
    ///
    /// # Errors
    /// Why it has not: it may be tried again. `Closed` if it never will, and nobody reads it.
    pub fn apply_turn(&self, cut: &Cut) -> Result<()> {
        let mut state = self.state.lock();
        loop {
            if state.applied >= cut.number {
                // The consumer had to skip it.
                return state.failure.take().map_or(Ok(()), Err);
            }
            // What the cut was of was forgotten.
            let is_read = !Arc::ptr_eq(&cut.log, &self.log.load());
            if is_read && state.applied >= state.read_upto {
                return Ok(());
            }
            if state.ended {
                return Err(state.failure.take().unwrap_or_else(ended_error));
            }
            if !is_read && state.cut.is_none() {
                state.cut = Some(cut.clone());
                self.work.notify_all();
            }
            // It stays until the consumer gets on.
            if let Some(error) = &state.failure {
                return Err(error.duplicate());
            }
            self.settled.wait(&mut state);
        }
    }

    /// Waits until everything is applied that the log is read for.
    ///
    /// # Errors
    /// While the database or the log fails: then that may take until a resume.
    pub fn wait_replayed(&self) -> Result<()> {
        let mut state = self.state.lock();
        while state.applied < state.read_upto {
            if state.ended {
                return Err(state.failure.as_ref().map_or_else(ended_error, Error::duplicate));
            }
            self.db.engine().pipeline.breaker.check()?;
            if let (Err(error), false) =
                (self.log.load().pipeline.breaker.check(), self.is_readable())
            {
                return Err(error);
            }
            self.settled.wait(&mut state);
        }
        Ok(())
    }

    /// The last event whose effects a snapshot has.
    pub fn applied_at(&self, snapshot: &Snapshot) -> Result<SeqNo> {
        let entry = snapshot.keyspace(&self.offsets)?.get(&self.name)?;
        Ok(decode_offset(entry, &self.name, &self.dir)?.applied)
    }

    /// Why the consumer does not get on.
    pub fn note_failure(&self, error: &Error) {
        self.state.lock().failure = Some(error.duplicate());
        self.settled.notify_all();
    }
}

/// True if the consumer can read on at this position.
fn is_readable(log: &EventLog, position: Lsn) -> bool {
    let pipeline = &log.pipeline;
    match pipeline.breaker.state() {
        (BreakerState::Closed, _) => pipeline.ring.copied() > position,
        (_, Some(DegradedCause::Corruption)) => false,
        // What is not durable is not read, and nothing more becomes so with a failed log.
        _ => pipeline.syncer.durable() > position,
    }
}

/// What the consumer is to do next.
pub(crate) enum Wanted {
    Events,
    /// Apply the turn with this cut.
    Turn(Cut),
    /// Begin the log anew after a failure of it.
    Resume,
    Stop,
}

#[cold]
pub(crate) fn ended_error() -> Error {
    Error::new(ErrorKind::Closed).context("the queue is closed")
}
