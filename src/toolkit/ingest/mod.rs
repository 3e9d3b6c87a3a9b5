//! The ingest queue: events are accepted into a log of the queue's own, and take effect in the
//! database exactly once, later.
//!
//! ```text
//! producers --push--> [ queues/NAME/a/000001.log 000002.log ... ] --consumer--> handler
//!            <-ack--   one record an event; group sync                            | fills a batch
//!                                                                                 v
//!                      database: [ effects | offset after the events ]  one record, atomic
//! ```
//!
//! - `options`: [`IngestOptions`].
//! - `log`: the queue's log. `reader`: events of a log in use. `offset`: where the consumer is.
//! - `opening`: from files to a log that takes events.
//! - `queue`: what producers and consumer share: bounds and waits.
//! - `consumer`: hands events to the handler and commits what it makes of them.
//! - `dead`: events that were given up. `stats`: [`QueueStats`].

pub(crate) mod consumer;
pub(crate) mod dead;
pub(crate) mod log;
pub(crate) mod offset;
pub(crate) mod opening;
pub(crate) mod options;
pub(crate) mod queue;
pub(crate) mod reader;
pub(crate) mod stats;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::db::Db;
use crate::db::batch::Batch;
use crate::db::keyspace::{Keyspace, KeyspaceOptions};
use crate::error::{BusyCause, DegradedCause, Error, ErrorKind, Result};
use crate::file::{LOCK, QUEUES};
use crate::loss::Loss;
use crate::options::Durability;
use crate::runtime::{Mutex, Priority, Task};
use crate::toolkit::ingest::consumer::{Consumer, Event, Handler, HandlerResult};
use crate::toolkit::ingest::dead::DeadLetter;
use crate::toolkit::ingest::offset::OFFSETS;
use crate::toolkit::ingest::opening::{Begun, Place};
use crate::toolkit::ingest::options::{IngestOptions, check_name};
use crate::toolkit::ingest::queue::{Parts, Queue, Turns};
use crate::toolkit::ingest::stats::QueueStats;
use crate::write::breaker::{BreakerState, BreakerWatch};
use crate::write::pressure::{Patience, Pressure};
use crate::write::ticket::Ticket;

/// Accepts events durably, at the speed of a log, and applies them to the database in the background,
/// each exactly once, in the order in which they were accepted. Share it by reference or in an `Arc`.
///
/// A push is acknowledged when the event is in the queue's own log: also while the database stalls,
/// is behind with compactions, or refuses writes after a failure. What waits is bounded by
/// [`IngestOptions::bytes_max`] and [`IngestOptions::age_max`]; beyond, producers wait or get `Busy`.
///
/// Dropping the queue leaves what is not applied in the log, for the next open;
/// [`IngestQueue::close`] applies it first. The queue keeps its database open.
pub struct IngestQueue {
    pub(crate) queue: Arc<Queue>,
    consumer: Mutex<Option<Task>>,
}

impl IngestQueue {
    /// Opens the queue `name` of a database, and creates it if there is none. What an earlier
    /// session accepted and did not apply goes to the handler first.
    ///
    /// The handler gets the next events and fills a batch with their effects, which is committed with
    /// the queue's place in one record: both survive a crash or neither does. It runs on a thread of
    /// the queue, with no lock held, one call at a time. What it does besides filling the batch may
    /// be done twice. It must not commit the batch itself, nor wait for the queue. If it fails, see
    /// [`IngestOptions::tries_max`]; an error of the database itself (`Busy`, `Degraded`, …) that it
    /// passes on counts as no try.
    ///
    /// # Errors
    /// `InvalidArgument` if the name or a bound cannot be; `Locked` if the queue is open already;
    /// `Corruption` if its log is damaged otherwise than by a crash; `Degraded` or `NoSpace` while the
    /// database refuses writes.
    pub fn open(
        db: &Db,
        name: &str,
        options: IngestOptions,
        handler: impl FnMut(&[Event<'_>], &mut Batch) -> HandlerResult + Send + 'static,
    ) -> Result<IngestQueue> {
        IngestQueue::begin(db, name, options, Box::new(handler), None)
    }

    /// A queue whose effects are gathered where its events are pushed: `handler` gets those that were
    /// accepted before this call, or that have to be read again after a failure of the log.
    pub(crate) fn gathering(
        db: &Db,
        name: &str,
        options: IngestOptions,
        turns: impl Turns + 'static,
        handler: impl FnMut(&[Event<'_>], &mut Batch) -> HandlerResult + Send + 'static,
    ) -> Result<IngestQueue> {
        IngestQueue::begin(db, name, options, Box::new(handler), Some(Box::new(turns)))
    }

    fn begin(
        db: &Db,
        name: &str,
        options: IngestOptions,
        handler: Handler,
        turns: Option<Box<dyn Turns>>,
    ) -> Result<IngestQueue> {
        check_name(name)?;
        options.check()?;
        let engine = db.engine();
        let dir = engine.dir.join(QUEUES).join(name);
        engine.fs.create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
        let lock = engine.fs.lock(&dir.join(LOCK)).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                Error::new(ErrorKind::Locked).context(format!("queue {name:?}"))
            }
            _ => Error::io("lock", &dir, error),
        })?;
        let tree = engine.open_named(OFFSETS, KeyspaceOptions::new())?;
        let offsets = Keyspace::new(db.handle.clone(), tree);
        let dead_letters = options.dead_letters.clone().unwrap_or_else(|| format!("{name}.dead"));
        let dead_letters = db.keyspace(&dead_letters, KeyspaceOptions::new())?;
        let changes = Arc::default();
        let place = Place { db, name, dir: &dir, offsets: &offsets, changes: &changes };
        let Begun { log, offset, losses } =
            place.open().map_err(|error| error.context(format!("open queue {name:?}")))?;
        log.spawn(&engine.runtime).inspect_err(|_| log.stop())?;
        let (db, name, applied) = (db.clone(), name.to_string(), offset.applied);
        let gathers = turns.is_some();
        let parts = Parts {
            db,
            name,
            dir,
            options,
            offsets,
            dead_letters,
            losses,
            log,
            applied,
            gathers,
            lock,
        };
        let queue = Arc::new(Queue::new(parts));
        let consumer = Consumer::new(queue.clone(), offset, handler, turns);
        let runtime = &queue.db.engine().runtime;
        let task = runtime.spawn("queue", Priority::Normal, move || consumer.run());
        let task = task.map_err(|e| Error::io("start a thread for", &queue.dir, e));
        let task = task.inspect_err(|_| queue.log.load().stop())?;
        Ok(IngestQueue { queue, consumer: Mutex::new(Some(task)) })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.queue.name
    }

    // Producers.

    /// Pushes an event, and waits until it is accepted with the durability that the queue was opened
    /// with. Waits before while the queue is full.
    ///
    /// Events take effect in the order in which they were accepted, so those of one partition key
    /// that are pushed one after the other do too.
    ///
    /// # Errors
    /// `InvalidArgument` if the event is too large; `Degraded` or `NoSpace` while the queue's own log
    /// fails; `Closed` if queue or database were closed. After an error of the log it is unknown
    /// whether the event was accepted, until [`IngestQueue::resume`] or the next open.
    pub fn push(&self, key: impl AsRef<[u8]>, event: impl AsRef<[u8]>) -> Result<()> {
        self.push_with(key, event, self.queue.durability)
    }

    /// [`IngestQueue::push`] with this durability.
    ///
    /// # Errors
    /// As [`IngestQueue::push`].
    pub fn push_with(
        &self,
        key: impl AsRef<[u8]>,
        event: impl AsRef<[u8]>,
        durability: Durability,
    ) -> Result<()> {
        self.push_as(key.as_ref(), event.as_ref(), durability, Patience::Wait)?.wait()
    }

    /// [`IngestQueue::push`] that fails at once while the queue is full.
    ///
    /// # Errors
    /// As [`IngestQueue::push`], and `Busy` with the time after which to try again.
    pub fn try_push(&self, key: impl AsRef<[u8]>, event: impl AsRef<[u8]>) -> Result<()> {
        let durability = self.queue.durability;
        self.push_as(key.as_ref(), event.as_ref(), durability, Patience::None)?.wait()
    }

    /// [`IngestQueue::push`] that waits at most so long for room.
    ///
    /// # Errors
    /// As [`IngestQueue::try_push`].
    pub fn push_within(
        &self,
        key: impl AsRef<[u8]>,
        event: impl AsRef<[u8]>,
        wait: Duration,
    ) -> Result<()> {
        let patience = self.queue.db.engine().deadline(wait);
        self.push_as(key.as_ref(), event.as_ref(), self.queue.durability, patience)?.wait()
    }

    /// Pushes an event without waiting until it is accepted; the ticket tells when it is. Waits
    /// before while the queue is full.
    ///
    /// # Errors
    /// As [`IngestQueue::push`], for what is known at once.
    pub fn push_async(&self, key: impl AsRef<[u8]>, event: impl AsRef<[u8]>) -> Result<Ticket> {
        let durability = self.queue.durability;
        self.push_as(key.as_ref(), event.as_ref(), durability, Patience::Wait)
    }

    fn push_as(
        &self,
        key: &[u8],
        event: &[u8],
        durability: Durability,
        patience: Patience,
    ) -> Result<Ticket> {
        let (log, place) = self.queue.push(key, event, patience)?;
        Ok(Ticket::new(log.pipeline.clone(), place, durability))
    }

    /// Makes every event that was accepted so far survive power loss.
    ///
    /// # Errors
    /// As [`IngestQueue::push`].
    pub fn sync(&self) -> Result<()> {
        let log = self.queue.log.load_full();
        log.pipeline.breaker.check()?;
        log.pipeline.wait_durable(log.pipeline.ring.copied())
    }

    // The consumer.

    /// Waits until every event that was accepted before this call is applied, or a dead letter.
    ///
    /// # Errors
    /// What the consumer waits for, if that is the disk's recovery or a person's help; and `Closed`.
    pub fn flush(&self) -> Result<()> {
        self.flush_until(None)
    }

    /// [`IngestQueue::flush`] that waits at most so long.
    ///
    /// # Errors
    /// As [`IngestQueue::flush`], and `Busy` if the time is over.
    pub fn flush_within(&self, wait: Duration) -> Result<()> {
        self.flush_until(Some(self.queue.now() + wait))
    }

    fn flush_until(&self, deadline: Option<Duration>) -> Result<()> {
        let queue = &self.queue;
        let upto = queue.log.load().pipeline.ring.visible();
        let mut state = queue.state.lock();
        while state.applied < upto {
            if state.ended {
                return Err(state.failure.take().unwrap_or_else(queue::ended_error));
            }
            queue.db.engine().pipeline.breaker.check()?;
            if let (Err(error), false) =
                (queue.log.load().pipeline.breaker.check(), queue.is_readable())
            {
                return Err(error);
            }
            match deadline.map(|deadline| deadline.saturating_sub(queue.now())) {
                None => queue.settled.wait(&mut state),
                Some(Duration::ZERO) => {
                    return Err(Error::busy(BusyCause::Queue, queue.retry_after(&state)));
                }
                Some(left) => _ = queue.settled.wait_for(&mut state, left),
            }
        }
        Ok(())
    }

    /// From now on the handler gets at most so many events a second: any number for `None`, and 0
    /// holds it until the rate is set again.
    pub fn set_drain_rate(&self, rate: Option<u64>) {
        self.queue.state.lock().drain_rate = rate;
        self.queue.work.notify_all();
    }

    /// Events that were given up, oldest first. They are entries of the keyspace
    /// [`IngestOptions::dead_letters`]; who has dealt with one deletes it there.
    pub fn dead_letters(&self) -> impl Iterator<Item = Result<DeadLetter>> + use<> {
        self.queue.dead_letters.iter().map(|entry| DeadLetter::decode(&entry?.1))
    }

    /// The keyspace of the dead letters.
    #[must_use]
    pub fn dead_letters_keyspace(&self) -> &Keyspace {
        &self.queue.dead_letters
    }

    // How it is doing.

    /// How the queue is doing. `Display` is for people.
    #[must_use]
    pub fn stats(&self) -> QueueStats {
        QueueStats::of(&self.queue)
    }

    /// What the open went on without, in another mode than
    /// [`Recovery::Strict`](crate::Recovery::Strict).
    #[must_use]
    pub fn losses(&self) -> &[Loss] {
        &self.queue.losses
    }

    /// Whether events are taken, and if not, why not. This is the breaker of the queue's own log; the
    /// database has one of its own ([`Db::breaker`]), and events are taken while that is open.
    #[must_use]
    pub fn breaker(&self) -> (BreakerState, Option<DegradedCause>) {
        self.queue.log.load().pipeline.breaker.state()
    }

    /// Hears of every change of [`IngestQueue::breaker`] from now on.
    #[must_use]
    pub fn watch_breaker(&self) -> BreakerWatch {
        self.queue.changes.watch()
    }

    /// How full the queue is, in bytes or age, and how fast events are applied, in bytes of log.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        self.queue.pressure()
    }

    /// Takes events again after a failure of the queue's log, once its cause is gone. A full disk
    /// needs none of this.
    ///
    /// The log that failed is never synced again. Every event that was accepted and is not applied
    /// is read back from it and written to a new one. A push that ended with an error is afterwards
    /// there wholly, or gone for good.
    ///
    /// # Errors
    /// `Degraded` or `NoSpace` if the disk fails again, or the database refuses writes: resume that
    /// first. `Corruption` if an event cannot be read back.
    pub fn resume(&self) -> Result<()> {
        let queue = &self.queue;
        let mut state = queue.state.lock();
        state.resumes_wanted += 1;
        let wanted = state.resumes_wanted;
        queue.work.notify_all();
        while state.resumes_done < wanted {
            if state.ended {
                return Err(queue::ended_error());
            }
            queue.settled.wait(&mut state);
        }
        state.resume_failure.as_ref().map_or(Ok(()), |error| Err(error.duplicate()))
    }

    /// Takes no more events, applies those that were accepted, and lets go of the queue's files.
    ///
    /// # Errors
    /// Why events could not be applied; they wait for the next open.
    pub fn close(&self) -> Result<()> {
        let queue = &self.queue;
        queue.log.load().pipeline.lock().close();
        let upto = queue.log.load().pipeline.ring.visible();
        queue.state.lock().closing = true;
        queue.work.notify_all();
        self.end();
        let mut state = queue.state.lock();
        match state.applied >= upto {
            true => Ok(()),
            false => Err(state.failure.take().unwrap_or_else(queue::ended_error)),
        }
    }

    /// Waits until the consumer has ended, and lets go of the log.
    fn end(&self) {
        let Some(task) = self.consumer.lock().take() else { return };
        task.join();
        let log = self.queue.log.load_full();
        if log.pipeline.breaker.check().is_ok() {
            // Nobody is left to hear of an error; what was promised is promised by the log.
            let _ = log.pipeline.wait_durable(log.pipeline.ring.copied());
        }
        log.stop();
        self.queue.changes.end();
        *self.queue.lock.lock() = None;
    }
}

impl Drop for IngestQueue {
    fn drop(&mut self) {
        self.queue.state.lock().stopped = true;
        self.queue.work.notify_all();
        self.end();
    }
}

impl fmt::Debug for IngestQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.queue.log.load().backlog_bytes();
        write!(f, "IngestQueue({:?}, {bytes} bytes pending)", self.name())
    }
}
