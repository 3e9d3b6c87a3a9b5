//! The queue's own log: a commit pipeline without memtables.
//!
//! Format, order, group sync, torn tails and breaker are those of the database's log, because it is
//! the same code: an event is a record with one put, its key the partition key, its value the event,
//! its sequence number the event's. Only what the pipeline asks of an engine is done here: log files
//! are made ahead of need by a thread of the log's own, and what lies before the consumer's offset is
//! removed.
//!
//! Nothing of it depends on the state of the database: it takes events while the database stalls, is
//! behind with compactions, or refuses writes.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::batch::BatchBuilder;
use crate::error::{DegradedCause, Error, ErrorKind, Result};
use crate::file::{FileKind, FileNumber, HEADER_BYTES, Lsn};
use crate::fs::Fs;
use crate::key::{KeyspaceId, SeqNo};
use crate::runtime::{Condvar, Mutex, Priority, Runtime, Task};
use crate::write::breaker::{Breaker, Changes};
use crate::write::commit::{Pipeline, Supplies};
use crate::write::log::Logs;
use crate::write::ring::Place;

/// The keyspace that operations of a queue's log name: none of the database's.
const EVENTS: KeyspaceId = KeyspaceId(0);
/// How often a full disk is probed.
const PROBE: Duration = Duration::from_millis(200);
/// Every so many bytes the pages ahead are made present, so many bytes ahead.
const TOUCH_BYTES: u64 = 1 << 20;
const TOUCH_AHEAD_BYTES: u64 = 4 << 20;
/// A buffer that has grown larger than this is not kept.
const BUFFER_BYTES_MAX: usize = 1 << 20;

/// See the module's comment.
pub(crate) struct EventLog {
    pub fs: Arc<dyn Fs>,
    pub dir: PathBuf,
    pub pipeline: Arc<Pipeline>,
    segment_bytes: u64,
    next_file: AtomicU64,
    /// Everything before is applied, as the database has it.
    applied: AtomicU64,
    /// Held while a spare file is made.
    preparing: Mutex<()>,
    keeper: Mutex<Keeper>,
    keeper_changed: Condvar,
    tasks: Mutex<Vec<Task>>,
}

#[derive(Default)]
struct Keeper {
    wanted: bool,
    stopped: bool,
}

thread_local! {
    /// Where events are encoded.
    static BUILDER: RefCell<BatchBuilder> = RefCell::new(BatchBuilder::new());
}

impl EventLog {
    /// Begins a log in a directory that has none. Its breaker goes on with the changes of an earlier
    /// log's.
    pub fn begin(
        runtime: Runtime,
        fs: Arc<dyn Fs>,
        dir: PathBuf,
        segment_bytes: u64,
        next_number: SeqNo,
        changes: Arc<Changes>,
    ) -> Result<EventLog> {
        let first = FileNumber(1);
        let logs = Logs::new(fs.clone(), dir.clone(), segment_bytes);
        let cursor = logs.begin(logs.create_spare(first, 0)?, Lsn(0))?;
        let mut pipeline = Pipeline::new(runtime, logs, cursor, next_number, SeqNo::MAX);
        pipeline.breaker = Breaker::continuing(changes);
        Ok(EventLog {
            fs,
            dir,
            pipeline: Arc::new(pipeline),
            segment_bytes,
            next_file: AtomicU64::new(first.0 + 1),
            applied: AtomicU64::new(0),
            preparing: Mutex::default(),
            keeper: Mutex::default(),
            keeper_changed: Condvar::new(),
            tasks: Mutex::default(),
        })
    }

    /// Starts its threads.
    pub fn spawn(self: &Arc<EventLog>, runtime: &Runtime) -> Result<()> {
        let failed = |error| Error::io("start threads for", &self.dir, error);
        let pipeline = self.pipeline.clone();
        let run = move || pipeline.run_syncer(None);
        let syncer = runtime.spawn("queue-sync", Priority::Normal, run).map_err(failed)?;
        self.tasks.lock().push(syncer);
        let log = self.clone();
        let keeper = runtime.spawn("queue-log", Priority::Normal, move || log.run_keeper());
        self.tasks.lock().push(keeper.map_err(failed)?);
        Ok(())
    }

    /// Ends its threads.
    pub fn stop(&self) {
        self.pipeline.syncer.stop();
        self.keeper.lock().stopped = true;
        self.keeper_changed.notify_all();
        for task in std::mem::take(&mut *self.tasks.lock()) {
            task.join();
        }
    }

    /// Appends an event. It is neither published nor durable yet.
    pub fn append(&self, key: &[u8], event: &[u8]) -> Result<Place> {
        BUILDER.with_borrow_mut(|builder| {
            builder.clear();
            builder.put(EVENTS, key, event);
            let payload = builder.finish();
            let record_bytes = payload.region().len() as u64;
            let place = self.pipeline.submit(self, payload, &[], None, |_, _, _| {})?;
            if builder.bytes() > BUFFER_BYTES_MAX {
                builder.clear();
                builder.shrink_to(BUFFER_BYTES_MAX);
            }
            let place = place.expect("nothing was checked");
            if (place.end_lsn.0 - record_bytes) / TOUCH_BYTES != place.end_lsn.0 / TOUCH_BYTES {
                self.wake_keeper();
            }
            Ok(place)
        })
    }

    /// Bytes that are published and not applied.
    pub fn backlog_bytes(&self) -> u64 {
        self.pipeline.ring.copied().0.saturating_sub(self.applied().0)
    }

    /// Everything before this position is applied.
    pub fn applied(&self) -> Lsn {
        Lsn(self.applied.load(Ordering::Acquire))
    }

    /// See [`EventLog::applied`].
    pub fn set_applied(&self, lsn: Lsn) {
        self.applied.store(lsn.0, Ordering::Release);
    }

    /// Removes the files before this position. What cannot be removed is no part of the log all the
    /// same, and goes when the next one is begun in its directory.
    pub fn remove_before(&self, lsn: Lsn) {
        for number in self.pipeline.logs.forget_before(lsn) {
            let _ = self.fs.remove(&FileKind::Log.path(&self.dir, number));
        }
    }

    fn wake_keeper(&self) {
        self.keeper.lock().wanted = true;
        self.keeper_changed.notify_one();
    }

    fn run_keeper(&self) {
        let mut touched = (FileNumber(0), 0);
        loop {
            let is_full = match self.pipeline.breaker.check() {
                Ok(()) => {
                    // An error has opened the breaker; producers meet it there.
                    let _ = self.prepare_spare(0);
                    self.touch_ahead(&mut touched);
                    false
                }
                Err(error) => *error.kind() == ErrorKind::NoSpace,
            };
            if is_full {
                self.probe();
            }
            let mut keeper = self.keeper.lock();
            while !keeper.wanted && !keeper.stopped {
                if is_full {
                    self.keeper_changed.wait_for(&mut keeper, PROBE);
                    break;
                }
                self.keeper_changed.wait(&mut keeper);
            }
            if keeper.stopped {
                return;
            }
            keeper.wanted = false;
        }
    }

    /// Takes events again if a full disk has space again.
    fn probe(&self) {
        let has_room = |bytes| bytes >= 2 * self.segment_bytes;
        if self.fs.free_bytes(&self.dir).is_ok_and(has_room) {
            self.pipeline.breaker.close_if_no_space();
        }
    }

    /// Sees to it that there is a spare file with room for a record of this size.
    fn prepare_spare(&self, record_bytes: u64) -> Result<()> {
        let logs = &self.pipeline.logs;
        // One at a time: numbers of log files rise with their positions.
        let _one_at_a_time = self.preparing.lock();
        if logs.has_spare(record_bytes) {
            return Ok(());
        }
        let number = FileNumber(self.next_file.fetch_add(1, Ordering::Relaxed));
        let spare = logs.create_spare(number, record_bytes).inspect_err(|error| {
            let full = *error.kind() == ErrorKind::NoSpace;
            let cause = if full { DegradedCause::NoSpace } else { DegradedCause::LogWrite };
            self.pipeline.breaker.open(cause, error);
            self.wake_keeper();
        })?;
        if let Some(replaced) = logs.offer_spare(spare) {
            let _ = self.fs.remove(&FileKind::Log.path(&self.dir, replaced.number));
        }
        Ok(())
    }

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

impl Supplies for EventLog {
    fn create_spare(&self, record_bytes: u64) -> Result<()> {
        self.prepare_spare(record_bytes)
    }

    fn extend_lease(&self, _past: SeqNo) -> Result<()> {
        unreachable!("a queue's numbers are leased to the last one");
    }

    fn log_rotated(&self) {
        self.wake_keeper();
    }
}
