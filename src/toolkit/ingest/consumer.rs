//! The consumer: hands events to the handler in order, and commits what it makes of them.
//!
//! 1. Read the next events, as far as they are durable in the queue's log; ask for a sync of what is
//!    not, which goes on meanwhile.
//! 2. Call the handler with them and an empty batch, with no lock held.
//! 3. Add the offset after them to the batch and commit it: effects and offset are one record.
//! 4. Remove log files that lie before the offset, once the offset survives power loss.
//!
//! # What can go wrong
//! - The handler fails, or what it put into the batch is refused: of several events, each is tried
//!   again by itself; a lone one after a while, and after `tries_max` times it is a dead letter,
//!   committed with the offset after it like any effect.
//! - The database fails, or an error of it is what the handler returned: that is no fault of the
//!   event. The consumer waits until writes are taken again, and then asks the database which offset
//!   it has: a commit whose outcome was unknown took effect, or did not.
//! - The queue's own log fails: nothing more is read until a resume, which is done here, since
//!   nobody reads the log meanwhile then.

use std::error::Error as StdError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::db::batch::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::key::SeqNo;
use crate::toolkit::ingest::dead::{DeadLetter, dead_key};
use crate::toolkit::ingest::log::EventLog;
use crate::toolkit::ingest::offset::Offset;
use crate::toolkit::ingest::opening::Place;
use crate::toolkit::ingest::queue::{Cut, Queue, Turns, Wanted};
use crate::toolkit::ingest::reader::{EventReader, Found, Limits};
use crate::write::breaker::BreakerState;

/// After a failure of the database, or of its breaker, the consumer looks again after so long.
const RETRY: Duration = Duration::from_millis(50);

/// An event as the handler of an [`IngestQueue`](crate::IngestQueue) gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event<'a> {
    /// The partition key that it was pushed with.
    pub key: &'a [u8],
    /// What was pushed.
    pub bytes: &'a [u8],
}

/// What a handler returns: `?` turns any error into one of these.
pub type HandlerResult = std::result::Result<(), Box<dyn StdError + Send + Sync>>;

/// What fills a batch with the effects of events.
pub(crate) type Handler = Box<dyn FnMut(&[Event<'_>], &mut Batch) -> HandlerResult + Send>;

/// See the module's comment.
pub(crate) struct Consumer {
    queue: Arc<Queue>,
    handler: Handler,
    /// Where the effects of events are gathered as they are pushed; then the handler gets only those
    /// that are read from the log again.
    turns: Option<Box<dyn Turns>>,
    log: Arc<EventLog>,
    reader: EventReader,
    /// As the last commit left it.
    offset: Offset,
    batch: Batch,
    found: Vec<Found>,
    /// Events through this one are handed over one by one.
    singly_upto: SeqNo,
    /// How often the next event failed by itself.
    tries: u32,
    /// The time at which the drain rate lets the next batch through.
    due: Duration,
    /// When the batch under way began.
    began: Duration,
    /// A commit ended with an error: the database has to be asked which offset it has.
    is_unsure: bool,
}

/// How a batch ended.
enum Ended {
    Applied,
    /// Try again: the queue stops, or begins its log anew, before anything was done.
    Interrupted,
    /// The fault lies with the events.
    Fault(String),
    /// The fault lies with the database.
    Trouble(Error),
}

impl Consumer {
    pub fn new(
        queue: Arc<Queue>,
        offset: Offset,
        handler: Handler,
        turns: Option<Box<dyn Turns>>,
    ) -> Consumer {
        let log = queue.log.load_full();
        let mut reader = EventReader::new(log.clone());
        reader.seek(offset.lsn);
        let batch = queue.db.batch();
        Consumer {
            queue,
            handler,
            turns,
            log,
            reader,
            offset,
            batch,
            found: Vec::new(),
            singly_upto: SeqNo::ZERO,
            tries: 0,
            due: Duration::ZERO,
            began: Duration::ZERO,
            is_unsure: false,
        }
    }

    /// Applies events until the queue stops.
    pub fn run(mut self) {
        loop {
            let done = match self.queue.wait_work(&self.log, self.offset.lsn) {
                Wanted::Stop => break,
                Wanted::Resume => {
                    self.resume();
                    Ok(())
                }
                Wanted::Events => self.round(),
                Wanted::Turn(cut) => self.turn(&cut),
            };
            if let Err(error) = done {
                self.queue.note_failure(&error);
                if self.is_over(&error) {
                    break;
                }
                self.pause(RETRY);
            }
        }
        // Nobody applies events any more.
        self.log.pipeline.lock().close();
        self.queue.state.lock().ended = true;
        self.queue.settled.notify_all();
    }

    /// True if there is no use in trying again.
    fn is_over(&self, error: &Error) -> bool {
        let engine = self.queue.db.engine();
        if engine.pipeline.lock().is_closed() {
            return true;
        }
        // Who closes the queue waits, and would wait for a person to mend the disk.
        self.queue.state.lock().closing && !error.is_busy()
    }

    /// Waits so long, unless the queue stops or is resumed meanwhile.
    fn pause(&self, wait: Duration) {
        let (queue, until) = (&self.queue, self.queue.now() + wait);
        let mut state = queue.state.lock();
        loop {
            let left = until.saturating_sub(queue.now());
            let called = state.stopped || state.resumes_wanted > state.resumes_done;
            if left.is_zero() || called {
                return;
            }
            queue.work.wait_for(&mut state, left);
        }
    }

    /// Reads events and applies them.
    ///
    /// # Errors
    /// If the fault lies with a disk: nothing was skipped.
    fn round(&mut self) -> Result<()> {
        self.reload()?;
        let (pipeline, position) = (&self.log.pipeline, self.offset.lsn);
        let copied = pipeline.ring.copied();
        if pipeline.syncer.durable() <= position {
            pipeline.wait_durable(copied)?;
        } else if pipeline.breaker.check().is_ok() {
            pipeline.request_durable(copied);
        }
        let mut found = std::mem::take(&mut self.found);
        self.reader.seek(position);
        let read = self.reader.read(pipeline.syncer.durable(), self.limits(), &mut found);
        if let Err(error) = &read {
            pipeline.breaker.open(crate::error::DegradedCause::Corruption, error);
        }
        let applied = read.and_then(|()| {
            found.retain(|one| one.number > self.offset.applied);
            match found.is_empty() {
                // Nothing but marks.
                true => {
                    self.offset.lsn = self.reader.position();
                    Ok(())
                }
                false => self.apply(&found),
            }
        });
        self.found = found;
        applied
    }

    /// Applies a turn: what was gathered of all events up to a cut.
    ///
    /// # Errors
    /// If the fault lies with a disk: nothing was skipped.
    fn turn(&mut self, cut: &Cut) -> Result<()> {
        self.reload()?;
        if self.offset.applied >= cut.number {
            return Ok(());
        }
        let turns = self.turns.as_ref().expect("turns are gathered");
        let pipeline = &self.log.pipeline;
        pipeline.wait_durable(cut.lsn)?;
        let log = pipeline.logs.file_at(cut.lsn);
        let after = Offset { applied: cut.number, lsn: cut.lsn, log, ..self.offset };
        let count = cut.number.0 - self.offset.applied.0;
        self.began = self.queue.now();
        self.batch.clear();
        turns.fill(&mut self.batch);
        match self.commit(&after) {
            Ended::Applied => {
                self.queue.totals.applied.fetch_add(count, Ordering::Relaxed);
                self.advance(after);
                Ok(())
            }
            Ended::Trouble(error) => self.trouble(&error, RETRY),
            // The keyspace was dropped: nothing that comes later would help.
            Ended::Fault(text) => {
                self.batch.clear();
                match self.commit(&after) {
                    Ended::Applied => {
                        self.queue.totals.dead.fetch_add(count, Ordering::Relaxed);
                        self.advance(after);
                        let what = format!("{count} operands are lost with their keyspace: {text}");
                        self.queue.note_failure(&Error::new(ErrorKind::Closed).context(what));
                        Ok(())
                    }
                    Ended::Trouble(error) => self.trouble(&error, RETRY),
                    Ended::Fault(text) => Err(Error::invalid(text)),
                    Ended::Interrupted => Ok(()),
                }
            }
            Ended::Interrupted => Ok(()),
        }
    }

    fn limits(&self) -> Limits {
        let options = &self.queue.options;
        let singly = self.offset.applied < self.singly_upto;
        let rate = self.queue.state.lock().drain_rate;
        // A tenth of a second's at a time: the rate is to be even.
        let of_rate = rate.map_or(usize::MAX, |rate| (rate / 10).max(1) as usize);
        let count = if singly { 1 } else { options.batch_count_max.min(of_rate) };
        Limits { count, bytes: options.batch_bytes_max }
    }

    /// Has the effects of these events committed, or goes on without them.
    fn apply(&mut self, found: &[Found]) -> Result<()> {
        let last = found.last().expect("there are events");
        let mut after = Offset { applied: last.number, lsn: last.end, ..self.offset };
        self.reader.seek(last.end);
        after.log = self.reader.log_number();
        self.began = self.queue.now();
        match self.hand_over(found, &after) {
            Ended::Applied => {
                let count = found.len() as u64;
                self.queue.totals.applied.fetch_add(count, Ordering::Relaxed);
                self.advance(after);
                Ok(())
            }
            Ended::Interrupted => Ok(()),
            Ended::Trouble(error) => {
                let retry_after = match error.kind() {
                    ErrorKind::Busy { retry_after, .. } => *retry_after,
                    _ => RETRY,
                };
                self.trouble(&error, retry_after)
            }
            Ended::Fault(text) => {
                self.queue.totals.failed_tries.fetch_add(1, Ordering::Relaxed);
                self.fault(found, &after, text)
            }
        }
    }

    /// Calls the handler, and commits its batch with the offset.
    fn hand_over(&mut self, found: &[Found], after: &Offset) -> Ended {
        if !self.pace(found.len() as u64) {
            return Ended::Interrupted;
        }
        let events: Vec<Event<'_>> = found
            .iter()
            .map(|one| {
                let (key, bytes) = self.reader.event(one);
                Event { key, bytes }
            })
            .collect();
        let (handler, batch) = (&mut self.handler, &mut self.batch);
        batch.clear();
        match catch_unwind(AssertUnwindSafe(|| handler(&events, batch))) {
            Ok(Ok(())) => self.commit(after),
            Ok(Err(error)) => match error.downcast::<Error>() {
                Ok(error) => self.judge(*error),
                Err(error) => Ended::Fault(error.to_string()),
            },
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                Ended::Fault(format!("the handler panicked: {}", text.unwrap_or_default()))
            }
        }
    }

    fn commit(&mut self, after: &Offset) -> Ended {
        self.batch.put(&self.queue.offsets, &self.queue.name, after.encode());
        match self.batch.commit() {
            Ok(()) => Ended::Applied,
            Err(error) => self.judge(error),
        }
    }

    /// Whose fault an error of the database is, that the handler or a commit returned.
    fn judge(&self, error: Error) -> Ended {
        let is_fault = match error.kind() {
            ErrorKind::InvalidArgument | ErrorKind::Conflict | ErrorKind::MergeFailed { .. } => {
                true
            }
            // A keyspace was dropped that the handler goes on to use.
            ErrorKind::Closed => !self.queue.db.engine().pipeline.lock().is_closed(),
            _ => false,
        };
        if is_fault { Ended::Fault(error.to_string()) } else { Ended::Trouble(error) }
    }

    /// The handler did not take these events.
    fn fault(&mut self, found: &[Found], after: &Offset, text: String) -> Result<()> {
        if found.len() > 1 {
            self.singly_upto = after.applied;
            return Ok(());
        }
        self.tries += 1;
        let error = Error::invalid(format!("the handler failed an event: {text}"));
        if self.tries < self.queue.options.tries_max {
            self.queue.note_failure(&error);
            self.pause(self.queue.options.retry_delay);
            return Ok(());
        }
        let (key, event) = self.reader.event(&found[0]);
        let letter = DeadLetter::encode(key, event, &text, self.tries);
        self.batch.clear();
        self.batch.put(&self.queue.dead_letters, dead_key(found[0].number), letter);
        match self.commit(after) {
            Ended::Applied => {
                self.queue.totals.dead.fetch_add(1, Ordering::Relaxed);
                self.advance(*after);
                Ok(())
            }
            Ended::Trouble(error) => self.trouble(&error, RETRY),
            // The keyspace of dead letters was dropped, say. Nothing is skipped silently.
            Ended::Fault(text) => Err(Error::invalid(format!("writing a dead letter: {text}"))),
            Ended::Interrupted => Ok(()),
        }
    }

    /// The database has this offset.
    fn advance(&mut self, after: Offset) {
        (self.offset, self.tries) = (after, 0);
        let took = self.queue.now().saturating_sub(self.began);
        self.queue.note_applied(&self.log, after.lsn, after.applied, took);
        if self.log.pipeline.logs.has_before(after.lsn) {
            let pipeline = &self.queue.db.engine().pipeline;
            // Power loss must not take the database back to before what is removed. If this fails
            // the files stay until a later turn.
            if pipeline.wait_durable(pipeline.ring.copied()).is_ok() {
                self.log.remove_before(after.lsn);
            }
        }
    }

    /// Waits until the drain rate lets so many events through. False if the queue stops, or begins
    /// its log anew, first.
    fn pace(&mut self, events: u64) -> bool {
        let queue = &self.queue;
        let mut state = queue.state.lock();
        loop {
            if state.stopped || state.resumes_wanted > state.resumes_done {
                return false;
            }
            let now = queue.now();
            match state.drain_rate {
                None => return true,
                Some(0) => queue.work.wait(&mut state),
                Some(rate) if now >= self.due => {
                    let takes = Duration::from_secs_f64(events as f64 / rate as f64);
                    self.due = now.max(self.due) + takes;
                    return true;
                }
                Some(_) => _ = queue.work.wait_for(&mut state, self.due - now),
            }
        }
    }

    /// Waits until the database may have got over this.
    ///
    /// # Errors
    /// If it is closed, or the queue is to be closed meanwhile.
    fn trouble(&mut self, error: &Error, wait: Duration) -> Result<()> {
        self.is_unsure = true;
        self.queue.note_failure(error);
        loop {
            if self.is_over(error) {
                return Err(error.duplicate());
            }
            self.pause(wait);
            let state = self.queue.state.lock();
            let called = state.stopped || state.resumes_wanted > state.resumes_done;
            if called || self.queue.db.engine().pipeline.breaker.check().is_ok() {
                return Ok(());
            }
        }
    }

    /// After a commit of unknown outcome: goes on where the database says.
    ///
    /// # Errors
    /// While its breaker is open: then the outcome is not decided yet.
    fn reload(&mut self) -> Result<()> {
        if !self.is_unsure {
            return Ok(());
        }
        self.queue.db.engine().pipeline.breaker.check()?;
        let now = self.place().offset()?;
        self.is_unsure = false;
        if now.applied > self.offset.applied {
            let count = now.applied.0 - self.offset.applied.0;
            self.queue.totals.applied.fetch_add(count, Ordering::Relaxed);
            self.began = self.queue.now();
            self.advance(now);
        }
        Ok(())
    }

    fn place(&self) -> Place<'_> {
        let Queue { db, name, dir, offsets, changes, .. } = &*self.queue;
        Place { db, name, dir, offsets, changes }
    }

    // After a failure of the queue's log.

    fn resume(&mut self) {
        let resumed = self.begin_anew();
        let mut state = self.queue.state.lock();
        state.resumes_done = state.resumes_wanted;
        state.resume_failure = resumed.err();
        self.queue.settled.notify_all();
    }

    fn begin_anew(&mut self) -> Result<()> {
        let old = self.log.clone();
        let breaker = &old.pipeline.breaker;
        if breaker.check().is_ok() {
            return Ok(());
        }
        self.queue.db.engine().pipeline.breaker.check()?;
        self.reload()?;
        if breaker.half_open().is_none() {
            return Err(breaker.error());
        }
        let begun = self.take_over(&old);
        if begun.is_err() {
            breaker.reopen();
        }
        begun
    }

    fn take_over(&mut self, old: &Arc<EventLog>) -> Result<()> {
        let runtime = &self.queue.db.engine().runtime;
        loop {
            // Nobody takes a place in it any more.
            let mut commit = old.pipeline.lock();
            commit.close();
            if old.pipeline.ring.drain().is_some() {
                break;
            }
            drop(commit);
            runtime.yield_now();
        }
        let begun = self.place().carry_over(old)?;
        begun.log.spawn(runtime).inspect_err(|_| begun.log.stop())?;
        self.reader = EventReader::new(begun.log.clone());
        (self.log, self.offset) = (begun.log.clone(), begun.offset);
        if let Some(turns) = &self.turns {
            // In this order: who reads in between waits until the log was read.
            self.queue.read_again(begun.log.pipeline.ring.visible());
            turns.reset();
        }
        self.queue.replace_log(begun.log);
        self.queue.changes.note(BreakerState::Closed, None);
        old.stop();
        Ok(())
    }
}
