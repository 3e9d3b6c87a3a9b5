//! From what a crash or a failure of the disk left of a queue to a log that takes events.
//!
//! A log that was written before is never written again: what of it is only in the kernel's memory a
//! failed sync may have left there for good. So an open, and a resume, begin a log anew:
//!
//! 1. The offset says which side the log is on, and where its first event is that is not applied.
//!    Files on the other side are of an attempt that a crash cut short: remove them.
//! 2. Begin a log on the other side and append every event that is not applied, in order. Sync it.
//! 3. Commit an offset that names the new log, durably. This is the one atomic step: a crash before
//!    it leaves the old log as it was, one after it finds the new one.
//! 4. Remove the files of the old log.
//!
//! An open reads the old log as the database's is read ([`crate::record::chain`]): strictly, unless
//! the database was opened in another mode. The consumer reads, and so applies, nothing that is not
//! durable in the queue's log, so everything before the offset is known to be.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::batch::Operations;
use crate::db::Db;
use crate::db::aside;
use crate::db::keyspace::Keyspace;
use crate::db::open::{loss_of, mode_for};
use crate::error::{Error, Result};
use crate::file::{self, FileKind, FileNumber, Lsn};
use crate::fs::{self, Fs};
use crate::key::SeqNo;
use crate::loss::Loss;
use crate::options::{Durability, Recovery};
use crate::record::RecordKind;
use crate::record::chain::{LogChain, LogFile, Mode, Replay};
use crate::slice::Slice;
use crate::toolkit::ingest::log::EventLog;
use crate::toolkit::ingest::offset::Offset;
use crate::toolkit::ingest::reader::{EventReader, Limits};
use crate::write::breaker::Changes;

/// Events that are carried over at a time from a log in use.
const CARRY: Limits = Limits { count: 1000, bytes: 1 << 20 };

/// Where a queue is kept.
pub(crate) struct Place<'a> {
    pub db: &'a Db,
    pub name: &'a str,
    /// Its directory within the database's.
    pub dir: &'a Path,
    /// The keyspace of offsets.
    pub offsets: &'a Keyspace,
    /// The changes of its breaker.
    pub changes: &'a Arc<Changes>,
}

/// A log that counts.
pub(crate) struct Begun {
    pub log: Arc<EventLog>,
    pub offset: Offset,
    /// What was left out for its damage.
    pub losses: Vec<Loss>,
}

impl Place<'_> {
    /// The offset as the database has it.
    ///
    /// # Errors
    /// `Corruption` if it is none.
    pub fn offset(&self) -> Result<Offset> {
        decode_offset(self.offsets.get(self.name)?, self.name, self.dir)
    }

    /// Begins the log anew from what its files hold.
    pub fn open(&self) -> Result<Begun> {
        let old = self.offset()?;
        let new = self.begin_other(&old)?;
        let losses = self.replay(&old, |key, event| new.append(key, event).map(|_| ()))?;
        self.install(&old, new, losses)
    }

    /// Begins the log anew from one that has failed and takes no more events. Its published events
    /// are read back, from the kernel's memory where they did not reach the disk.
    pub fn carry_over(&self, from: &Arc<EventLog>) -> Result<Begun> {
        let old = self.offset()?;
        if from.dir != self.dir.join(old.side.name()) {
            // An earlier attempt was carried out although it ended with an error.
            return self.open();
        }
        let new = self.begin_other(&old)?;
        let mut reader = EventReader::new(from.clone());
        reader.seek(old.lsn);
        let (upto, mut found) = (from.pipeline.ring.copied(), Vec::new());
        while reader.position() < upto {
            reader.read(upto, CARRY, &mut found)?;
            for one in found.iter().filter(|one| one.number > old.applied) {
                let (key, event) = reader.event(one);
                new.append(key, event)?;
            }
        }
        self.install(&old, new, Vec::new())
    }

    fn begin_other(&self, old: &Offset) -> Result<Arc<EventLog>> {
        let engine = self.db.engine();
        let dir = self.dir.join(old.side.other().name());
        let fs = &engine.fs;
        fs.create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
        remove_logs(&**fs, &dir)?;
        let next = SeqNo(old.applied.0 + 1);
        Ok(Arc::new(EventLog::begin(
            engine.runtime.clone(),
            fs.clone(),
            dir,
            engine.limits.log_bytes,
            next,
            self.changes.clone(),
        )?))
    }

    /// Gives every event of the old log that is not applied to `each`.
    fn replay(
        &self,
        old: &Offset,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<()>,
    ) -> Result<Vec<Loss>> {
        let engine = self.db.engine();
        let dir = self.dir.join(old.side.name());
        let files = read_logs(&*engine.fs, &dir)?;
        let replay = Replay {
            dir: dir.clone(),
            from: old.lsn,
            from_log: old.log,
            // A checkpoint of the database has the offset and no log.
            begun: false,
            durable: Lsn(0),
            boot_id: engine.fs.boot_id(),
            mode: Mode::Strict,
        };
        let mode = match engine.options.recovery {
            Recovery::Strict => Mode::Strict,
            recovery => mode_for(recovery, &files, &replay)?,
        };
        let names: Vec<_> = files.iter().map(|log| FileKind::Log.name(log.number)).collect();
        let mut chain = LogChain::new(files, Replay { mode, ..replay })?;
        let mut last = old.applied;
        while let Some(record) = chain.next()? {
            if record.kind != RecordKind::Commit {
                continue;
            }
            let bad = |why: crate::coding::DecodeError| {
                let expected = format!("an event at log position {}", record.lsn.0);
                Error::corruption(&dir, record.lsn.0, expected, why.0)
            };
            for (index, operation) in Operations::new(record.payload).map_err(bad)?.enumerate() {
                let operation = operation.map_err(bad)?;
                let number = SeqNo(record.seqno.0 + index as u64);
                if number > old.applied {
                    each(operation.key, operation.value)?;
                    last = number;
                }
            }
        }
        let breaks = chain.finish().breaks;
        if mode == Mode::Strict {
            return Ok(Vec::new());
        }
        aside::keep(&*engine.fs, &dir, &names)?;
        Ok(breaks.iter().map(|lost| loss_of(lost, last, None)).collect())
    }

    /// Steps 3 and 4: from now on the new log is the queue's.
    fn install(&self, old: &Offset, log: Arc<EventLog>, losses: Vec<Loss>) -> Result<Begun> {
        log.pipeline.wait_durable(log.pipeline.ring.copied())?;
        let (side, applied) = (old.side.other(), old.applied);
        let offset = Offset { side, applied, lsn: Lsn(0), log: FileNumber(1) };
        let mut batch = self.db.batch();
        batch.put(self.offsets, self.name, offset.encode());
        batch.commit_with(Durability::Disk)?;
        let dir = self.dir.join(old.side.name());
        match remove_logs(&*self.db.engine().fs, &dir) {
            // They are no part of the log any more; the next one that is begun there removes them.
            Ok(()) | Err(_) => Ok(Begun { log, offset, losses }),
        }
    }
}

/// The offset that is the entry of a queue; that of a queue that never was opened if there is none.
///
/// # Errors
/// `Corruption` if it is none.
pub(crate) fn decode_offset(entry: Option<Slice>, name: &str, dir: &Path) -> Result<Offset> {
    let Some(bytes) = entry else { return Ok(Offset::default()) };
    Offset::decode(&bytes)
        .map_err(|why| Error::corruption(dir, 0, format!("the offset of queue {name:?}"), why.0))
}

fn logs_in(fs: &dyn Fs, dir: &Path) -> Result<Vec<(FileNumber, PathBuf)>> {
    let names = match fs.list(dir) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", dir, error)),
    };
    let log = |name: &String| match file::parse_name(name)? {
        (FileKind::Log, number) => Some((number, dir.join(name))),
        _ => None,
    };
    Ok(names.iter().filter_map(log).collect())
}

fn remove_logs(fs: &dyn Fs, dir: &Path) -> Result<()> {
    for (_, path) in logs_in(fs, dir)? {
        fs.remove(&path).map_err(|e| Error::io("remove", &path, e))?;
    }
    Ok(())
}

fn read_logs(fs: &dyn Fs, dir: &Path) -> Result<Vec<LogFile>> {
    let mut files = Vec::new();
    for (number, path) in logs_in(fs, dir)? {
        let opened = fs.open(&path).map_err(|e| Error::io("open", &path, e))?;
        let (bytes, zeros_from) = fs::map_log(&*opened).map_err(|e| Error::io("map", &path, e))?;
        files.push(LogFile { path, number, bytes, zeros_from });
    }
    Ok(files)
}
