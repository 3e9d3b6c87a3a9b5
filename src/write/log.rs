//! The write-ahead log as a sequence of files: which one takes records now, which one is ready to
//! follow, which ones are still needed.
//!
//! ```text
//!   live:   000007.log   000009.log   000012.log     spare: 000014.log
//!           [ended.....] [ended.....] [records|    ]        [            ]
//!   LSN     1000      9000        17000    ^cursor          first LSN is given when it is taken
//! ```
//!
//! - Log positions (LSN) are bytes, cumulative over files. The file after one that ended at LSN e
//!   has first LSN e; there are no gaps.
//! - Every file keeps room for an end record, so that it always ends with one once the next file
//!   is begun; an open file ends in zeros.
//! - A spare is created, and its name made durable, before it is needed and outside every lock;
//!   taking it costs one store of its header.
//! - Syncing goes through the files in order of age, so that what is durable is a prefix.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::file::{FileHeader, FileId, FileKind, FileNumber, HEADER_BYTES, Lsn};
use crate::fs::{self, Fs, LogRegion};
use crate::key::SeqNo;
use crate::record::{self, RecordHeader, RecordKind};
use crate::runtime::Mutex;

/// A log file that was created and has no records yet.
#[derive(Debug)]
pub(crate) struct Spare {
    pub number: FileNumber,
    id: FileId,
    region: Arc<dyn LogRegion>,
}

/// A log file that takes or has taken records.
#[derive(Debug)]
pub(crate) struct LogFile {
    pub number: FileNumber,
    pub checksum: Checksum,
    pub region: Arc<dyn LogRegion>,
    pub first_lsn: Lsn,
}

impl LogFile {
    /// Offset in the file of a log position.
    fn offset(&self, lsn: Lsn) -> u64 {
        lsn.0 - self.first_lsn.0 + HEADER_BYTES as u64
    }
}

#[derive(Debug)]
struct Live {
    file: Arc<LogFile>,
    /// Where it ended; `None` for the last one, which still takes records.
    end: Option<Lsn>,
    /// Its end is durable.
    synced: bool,
}

/// The end of the log, where the next record goes. Guarded by the commit lock.
#[derive(Debug)]
pub(crate) struct LogCursor {
    file: Arc<LogFile>,
    lsn: Lsn,
}

/// A record's place in the log.
#[derive(Clone, Debug)]
pub(crate) struct Reserved {
    pub file: Arc<LogFile>,
    pub lsn: Lsn,
}

impl Reserved {
    /// Stores a record, header included.
    pub fn store(&self, record: &[u8]) -> io::Result<()> {
        self.file.region.store(self.file.offset(self.lsn), record)
    }
}

/// Files of the log. Lock order: commit, then this.
#[derive(Debug)]
pub(crate) struct Logs {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    /// Size of an ordinary file.
    file_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    live: VecDeque<Live>,
    spare: Option<Spare>,
}

impl Logs {
    pub fn new(fs: Arc<dyn Fs>, dir: PathBuf, file_bytes: u64) -> Logs {
        // Room for at least the header, one small record and the end record.
        let file_bytes = file_bytes.max(512).next_multiple_of(8);
        Logs { fs, dir, file_bytes, state: Mutex::new(State::default()) }
    }

    /// The size that a spare needs so that a record of `record_bytes` fits.
    fn bytes_for(&self, record_bytes: u64) -> u64 {
        let least = HEADER_BYTES as u64 + record_bytes + record::HEADER_BYTES as u64;
        self.file_bytes.max(least.next_multiple_of(8))
    }

    /// Creates a log file for records of up to `record_bytes` and makes its name durable.
    /// Call it without locks.
    pub fn create_spare(&self, number: FileNumber, record_bytes: u64) -> Result<Spare> {
        let path = FileKind::Log.path(&self.dir, number);
        let bytes = self.bytes_for(record_bytes);
        let region =
            self.fs.create_log(&path, bytes).map_err(|e| Error::io("create log", &path, e))?;
        // Its length, before a manifest says that a replay begins in it: recovery takes a log that
        // is shorter than that for damaged.
        let site = fs::site("log.create.sync");
        region.sync().map_err(|e| Error::io("sync", &path, e))?;
        drop(site);
        // Its name, before a record in it counts: a log without one takes its records with it.
        let site = fs::site("log.create.sync_dir");
        self.fs.sync_dir(&self.dir).map_err(|e| Error::io("sync", &self.dir, e))?;
        drop(site);
        Ok(Spare { number, id: FileId(self.fs.random_id()), region })
    }

    /// Keeps a spare for later, and gives back the one that was kept before.
    pub fn offer_spare(&self, spare: Spare) -> Option<Spare> {
        self.state.lock().spare.replace(spare)
    }

    /// True if a record of this size can be begun in the spare.
    pub fn has_spare(&self, record_bytes: u64) -> bool {
        let state = self.state.lock();
        let needed = HEADER_BYTES as u64 + record_bytes + record::HEADER_BYTES as u64;
        state.spare.as_ref().is_some_and(|spare| spare.region.bytes() >= needed)
    }

    /// Forgets every file but the last, after a failure; their numbers are returned for removal.
    pub fn abandon_older(&self) -> Vec<FileNumber> {
        let mut state = self.state.lock();
        let older = state.live.len().saturating_sub(1);
        state.live.drain(..older).map(|log| log.file.number).collect()
    }

    /// The position at the end of the live files, beyond every record in them.
    pub fn capacity_end(&self) -> Lsn {
        let state = self.state.lock();
        let end = |log: &Live| log.file.first_lsn.0 + log.file.region.bytes() - HEADER_BYTES as u64;
        Lsn(state.live.iter().map(end).max().unwrap_or(0))
    }

    /// The file that has the record at `lsn`, or will have it.
    pub fn file_at(&self, lsn: Lsn) -> FileNumber {
        let state = self.state.lock();
        let begun = state.live.iter().rev().find(|log| log.file.first_lsn <= lsn);
        begun.expect("live files reach back to all that is needed").file.number
    }

    /// Takes the spare.
    pub fn take_spare(&self) -> Option<Spare> {
        self.state.lock().spare.take()
    }

    /// Begins the log of this session in `spare`, at `first_lsn`.
    pub fn begin(&self, spare: Spare, first_lsn: Lsn) -> Result<LogCursor> {
        let file = self.activate(spare, first_lsn)?;
        self.state.lock().live.push_back(Live { file: file.clone(), end: None, synced: false });
        Ok(LogCursor { file, lsn: first_lsn })
    }

    /// Writes the header that makes a spare a log.
    fn activate(&self, spare: Spare, first_lsn: Lsn) -> Result<Arc<LogFile>> {
        let mut header = FileHeader::new(FileKind::Log, spare.id, spare.number);
        header.first_lsn = first_lsn;
        header.boot_id = self.fs.boot_id();
        spare
            .region
            .store(0, &header.encode())
            .map_err(|e| Error::io("write", FileKind::Log.path(&self.dir, spare.number), e))?;
        let checksum = Checksum::new(spare.id);
        let Spare { number, region, .. } = spare;
        Ok(Arc::new(LogFile { number, checksum, region, first_lsn }))
    }

    /// Ends the file at `cursor` and goes on in the spare, if there is one that is large enough.
    /// False without one. Call it under the commit lock.
    pub fn rotate(&self, cursor: &mut LogCursor, record_bytes: u64, marks: Marks) -> Result<bool> {
        if !self.has_spare(record_bytes) {
            return Ok(false);
        }
        let end = RecordHeader::bare(RecordKind::End, marks.seqno, marks.copied, marks.durable);
        let at = Reserved { file: cursor.file.clone(), lsn: cursor.lsn };
        at.store(&end.encode(cursor.file.checksum, cursor.lsn))
            .map_err(|e| Error::io("write", self.path(&cursor.file), e))?;
        let end_lsn = Lsn(cursor.lsn.0 + record::HEADER_BYTES as u64);

        let Some(spare) = self.state.lock().spare.take() else { return Ok(false) };
        let file = self.activate(spare, end_lsn)?;
        let mut state = self.state.lock();
        state.live.back_mut().expect("the cursor's file is live").end = Some(end_lsn);
        state.live.push_back(Live { file: file.clone(), end: None, synced: false });
        *cursor = LogCursor { file, lsn: end_lsn };
        Ok(true)
    }

    /// Makes the log durable up to `upto`, which must have been copied, oldest file first.
    /// Call it without locks, from one thread at a time.
    pub fn sync(&self, upto: Lsn) -> Result<()> {
        let unsynced: Vec<(Arc<LogFile>, Option<Lsn>)> = {
            let state = self.state.lock();
            let behind = state.live.iter().filter(|log| !log.synced && log.file.first_lsn < upto);
            behind.map(|log| (log.file.clone(), log.end)).collect()
        };
        for (file, end) in unsynced {
            let site = fs::site(if end.is_some() { "log.sync.older" } else { "log.sync" });
            file.region.sync().map_err(|e| Error::io("sync", self.path(&file), e))?;
            drop(site);
            // A file that ended is synced for good only if everything in it was copied.
            if end.is_some_and(|end| end <= upto) {
                let mut state = self.state.lock();
                if let Some(log) = state.live.iter_mut().find(|log| log.file.number == file.number)
                {
                    log.synced = true;
                }
            }
        }
        Ok(())
    }

    /// True if [`Logs::forget_before`] would forget a file.
    pub fn has_before(&self, needed_from: Lsn) -> bool {
        let state = self.state.lock();
        state.live.front().is_some_and(|log| log.end.is_some_and(|end| end <= needed_from))
    }

    /// Forgets the files that lie wholly before `needed_from`, and returns their numbers for
    /// removal.
    pub fn forget_before(&self, needed_from: Lsn) -> Vec<FileNumber> {
        let mut state = self.state.lock();
        let mut numbers = Vec::new();
        while let Some(log) = state.live.front() {
            if log.end.is_none_or(|end| end > needed_from) {
                break;
            }
            numbers.push(log.file.number);
            state.live.pop_front();
        }
        numbers
    }

    /// Shortens the last file to what it holds, up to `lsn`, and removes the spare, once nothing is
    /// written any more: the next open has less to look through and to remove. Its failure costs
    /// only that.
    pub fn trim(&self, lsn: Lsn) {
        let mut state = self.state.lock();
        if let Some(last) = state.live.back() {
            let _site = fs::site("log.trim");
            let _ = last.file.region.end_at(last.file.offset(lsn));
        }
        if let Some(spare) = state.spare.take() {
            let _ = self.fs.remove(&FileKind::Log.path(&self.dir, spare.number));
        }
    }

    /// Bytes of the live files.
    pub fn live_bytes(&self) -> u64 {
        self.state.lock().live.iter().map(|log| log.file.region.bytes()).sum()
    }

    /// Numbers of every log file that exists, the spare included.
    pub fn numbers(&self) -> Vec<FileNumber> {
        let state = self.state.lock();
        let spare = state.spare.as_ref().map(|spare| spare.number);
        state.live.iter().map(|log| log.file.number).chain(spare).collect()
    }

    pub fn path(&self, file: &LogFile) -> PathBuf {
        FileKind::Log.path(&self.dir, file.number)
    }
}

/// What a record says of the log before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marks {
    pub seqno: SeqNo,
    pub copied: Lsn,
    pub durable: Lsn,
}

impl LogCursor {
    /// Where the next record goes.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The file that takes records.
    pub fn file(&self) -> &Arc<LogFile> {
        &self.file
    }

    /// True if a record of this size fits before the end record.
    pub fn fits(&self, record_bytes: u64) -> bool {
        let end = self.file.offset(self.lsn) + record_bytes + record::HEADER_BYTES as u64;
        end <= self.file.region.bytes()
    }

    /// Takes the next `record_bytes` bytes, which must fit.
    pub fn reserve(&mut self, record_bytes: u64) -> Reserved {
        assert!(self.fits(record_bytes), "the log was rotated before");
        assert!(record_bytes.is_multiple_of(8), "records are aligned");
        let reserved = Reserved { file: self.file.clone(), lsn: self.lsn };
        self.lsn.0 += record_bytes;
        reserved
    }
}
