//! Reads the events of a log that is being written, up to where it is durable, in windows.
//!
//! A window is a piece of a log file that begins at a record. To the reader of records it is a file
//! of its own whose first LSN is that record's: checksums are bound to the file's id and to the LSN,
//! so nothing is lost by that.
//!
//! ```text
//! buffer: [room 128][window of the file, from `start` on ..........]
//!                    ^ first record                  ^ position
//! ```

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::batch::Operations;
use crate::error::{Error, Result};
use crate::file::{FileHeader, FileKind, FileNumber, HEADER_BYTES, Lsn};
use crate::fs::File;
use crate::key::SeqNo;
use crate::record::RecordKind;
use crate::record::reader::{Reader, Stop};
use crate::toolkit::ingest::log::EventLog;

/// Bytes that are read at once, unless a record is longer.
const WINDOW_BYTES: u64 = 1 << 20;

/// An event in the reader's window.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub number: SeqNo,
    key: Range<usize>,
    event: Range<usize>,
    /// Where its record ends.
    pub end: Lsn,
}

/// See the module's comment.
pub(crate) struct EventReader {
    log: Arc<EventLog>,
    file: Option<OpenFile>,
    buffer: Vec<u8>,
    /// What part of the log is in the buffer.
    window: Range<u64>,
    /// Where the next record begins.
    position: Lsn,
}

struct OpenFile {
    file: Arc<dyn File>,
    path: PathBuf,
    header: FileHeader,
    /// The first position after it.
    end: u64,
}

/// Bounds of one call of [`EventReader::read`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub count: usize,
    pub bytes: usize,
}

impl EventReader {
    /// A reader from the beginning of `log`.
    pub fn new(log: Arc<EventLog>) -> EventReader {
        let buffer = vec![0; HEADER_BYTES];
        EventReader { log, file: None, buffer, window: 0..0, position: Lsn(0) }
    }

    /// Where the next record begins.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Goes on at the record that begins at `lsn`.
    pub fn seek(&mut self, lsn: Lsn) {
        self.position = lsn;
    }

    /// The number of the file that has the next record, or will have it.
    pub fn log_number(&self) -> FileNumber {
        self.log.pipeline.logs.file_at(self.position)
    }

    /// Partition key and event.
    pub fn event(&self, found: &Found) -> (&[u8], &[u8]) {
        (&self.buffer[found.key.clone()], &self.buffer[found.event.clone()])
    }

    /// The next events before `upto`, at least one if there is one; `found` is emptied before.
    ///
    /// # Errors
    /// `Corruption` if the log is damaged before `upto`.
    pub fn read(&mut self, upto: Lsn, limits: Limits, found: &mut Vec<Found>) -> Result<()> {
        found.clear();
        let mut window_bytes = WINDOW_BYTES;
        let mut bytes = 0;
        while self.position < upto && found.len() < limits.count && bytes < limits.bytes {
            if !self.window.contains(&self.position.0) {
                if !found.is_empty() {
                    break;
                }
                self.load(upto, window_bytes)?;
            }
            match self.step(found) {
                Ok(more) => bytes += more,
                // It may go on behind the window.
                Err(_) if self.window.end < self.available(upto) => {
                    if !found.is_empty() {
                        break;
                    }
                    window_bytes *= 2;
                    self.window = 0..0;
                }
                Err(stop) => return Err(self.damage(stop)),
            }
        }
        Ok(())
    }

    /// The end of what may be read of the open file.
    fn available(&self, upto: Lsn) -> u64 {
        self.file.as_ref().map_or(0, |file| file.end.min(upto.0))
    }

    /// Reads a window that begins at the position.
    fn load(&mut self, upto: Lsn, window_bytes: u64) -> Result<()> {
        let number = self.log_number();
        if self.file.as_ref().is_none_or(|file| file.header.number != number) {
            self.file = Some(self.open(number)?);
        }
        let start = self.position.0;
        let file = self.file.as_ref().expect("opened");
        let end = self.available(upto).min(start + window_bytes);
        assert!(start < end, "a record begins before {upto:?} at {start} of {number:?}");
        self.buffer.resize(HEADER_BYTES + (end - start) as usize, 0);
        let offset = start - file.header.first_lsn.0 + HEADER_BYTES as u64;
        self.window = 0..0;
        file.file
            .read_at(&mut self.buffer[HEADER_BYTES..], offset)
            .map_err(|error| Error::io("read", &file.path, error))?;
        self.window = start..end;
        Ok(())
    }

    fn open(&self, number: FileNumber) -> Result<OpenFile> {
        let path = FileKind::Log.path(&self.log.dir, number);
        let file = self.log.fs.open(&path).map_err(|error| Error::io("open", &path, error))?;
        let mut bytes = [0; HEADER_BYTES];
        file.read_at(&mut bytes, 0).map_err(|error| Error::io("read", &path, error))?;
        let header = FileHeader::decode(&bytes, FileKind::Log, &path)?;
        let len = file.len().map_err(|error| Error::io("look at", &path, error))?;
        let end = header.first_lsn.0 + len.saturating_sub(HEADER_BYTES as u64);
        Ok(OpenFile { file, path, header, end })
    }

    /// Reads the record at the position, which is in the window; gives the bytes of its events.
    fn step(&mut self, found: &mut Vec<Found>) -> std::result::Result<usize, Stop> {
        let file = self.file.as_ref().expect("there is a window of it");
        let header = FileHeader { first_lsn: Lsn(self.window.start), ..file.header.clone() };
        let mut reader = Reader::new(&header, &self.buffer, self.position);
        let place = reader.step()?;
        let mut bytes = 0;
        if place.header.kind == RecordKind::Commit {
            let (record, at) = (place.record(&self.buffer), self.buffer.as_ptr().addr());
            let range = |part: &[u8]| {
                let from = part.as_ptr().addr() - at;
                from..from + part.len()
            };
            // Checked when it was taken, and the checksum is right.
            let operations = Operations::new(record.payload).into_iter().flatten().flatten();
            for (index, operation) in operations.enumerate() {
                let number = SeqNo(record.seqno.0 + index as u64);
                let (key, event) = (range(operation.key), range(operation.value));
                bytes += key.len() + event.len();
                found.push(Found { number, key, event, end: place.end });
            }
        }
        if place.header.kind == RecordKind::End {
            // What follows is in the next file.
            self.window = 0..0;
        }
        self.position = place.end;
        Ok(bytes)
    }

    #[cold]
    fn damage(&self, stop: Stop) -> Error {
        let file = self.file.as_ref().expect("there is a window of it");
        let offset = self.position.0 - file.header.first_lsn.0 + HEADER_BYTES as u64;
        let fault = stop.into_fault();
        Error::corruption(&file.path, offset, fault.expected, fault.found)
    }
}
