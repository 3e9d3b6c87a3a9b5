//! The records of several log files as one log, and where it ends.
//!
//! Log n + 1 begins at the LSN where log n ended. Reading goes so:
//!
//! 1. Files are sorted by first LSN. The last one that begins at or before the LSN where the
//!    replay begins is the first to be read; those before it are not looked at, damaged or not.
//! 2. Records are yielded until there is none at an LSN X. If the next file begins at X, the
//!    reading goes on there, whatever lies at X in this one: X is where an earlier recovery cut
//!    this file, or where the writer went on to the next.
//! 3. Otherwise, if there is no next file and this one ends with an end-of-log record, exactly at
//!    its end or with zeros, that is the end of the log.
//! 4. Otherwise the log is broken at X: a bad record, or a missing file. [`Mode::Strict`] asks
//!    for proof that X had been safe (reader.rs), looking in the rest of this file and in every
//!    later one. With proof it is corruption. Without, the log is cut at X, and every later file
//!    is to be discarded, durably, before anything is written at X.
//!
//! A file whose own header cannot be read was being created, or is damaged. It is no part of the
//! log, so if anything was written after it, a gap shows and the rule above decides. If it is the
//! newest, nothing comes after it; then the header with one bit flipped back, if one of those is
//! valid, is used to search the file for witnesses (never to replay it). What is left of the
//! exception is a newest log file whose header is damaged in more than one bit: it looks exactly
//! like one whose creation a power loss cut short, and is discarded, unless the manifest knows that
//! the log was durable further ([`Replay::durable`]).
//!
//! A file whose header names another number than its name does, files whose numbers and first
//! LSNs are in different orders, and an intact record where the next file has already begun,
//! cannot come from a crash: they are corruption. (So a writer that needs a larger file than the
//! one made ready takes a new number, and removes the ready one.)

use std::path::PathBuf;

use bytes::Bytes;

use crate::checksum::Checksum;
use crate::error::Error;
use crate::file::{FileHeader, FileKind, FileNumber, HEADER_BYTES, Lsn};
use crate::fs;
use crate::record::reader::{Fault, Place, Reader, Record, Stop, Witness, offset_of, safe_but_bad};
use crate::record::{ALIGNMENT, RecordKind};

/// A log file as it was found.
#[derive(Clone, Debug)]
pub(crate) struct LogFile {
    /// Its path.
    pub path: PathBuf,
    /// The number in its name.
    pub number: FileNumber,
    /// Everything in it.
    pub bytes: Bytes,
    /// From this offset on it is known to hold only zeros; its length if nothing is known.
    pub zeros_from: u64,
}

/// What to do where the log is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Refuse if something proves that what is missing was safe, else cut.
    #[default]
    Strict,
    /// Cut, whatever the proof.
    PointInTime,
    /// Skip to the next intact record. What was read must then be flushed and the replay begin at
    /// the end of it, or the next strict open finds the same damage again.
    Salvage,
}

/// Where a replay begins and what is known beforehand.
#[derive(Clone, Debug)]
pub(crate) struct Replay {
    /// The directory of the files, for error texts where there is no file to name.
    pub dir: PathBuf,
    /// LSN of the first record to read. A record begins there, if it was written; it need not be
    /// durable.
    pub from: Lsn,
    /// The file in which that record is, or would be. Those with smaller numbers are no part of
    /// the replay, whatever is in them: their names may outlive what came after them.
    pub from_log: FileNumber,
    /// That file was there once, its name durable: without it, what it had is lost.
    pub begun: bool,
    /// Everything before this LSN is known from elsewhere to have been durable.
    pub durable: Lsn,
    /// The boot id of now.
    pub boot_id: u128,
    /// What to do where the log is broken.
    pub mode: Mode,
}

/// A part of the log that is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Break {
    /// The file in which it begins.
    pub path: PathBuf,
    /// The offset in that file.
    pub offset: u64,
    /// Where it begins.
    pub from: Lsn,
    /// Where the next record that was read begins; `None` if the log was cut at `from`.
    pub to: Option<Lsn>,
    /// What is bad there.
    pub fault: Fault,
}

/// How the log ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Where the next log file must begin.
    pub end: Lsn,
    /// What was cut or skipped; empty after a clean shutdown or a crash that tore nothing.
    pub breaks: Vec<Break>,
    /// Files that are no part of the log and must be removed, durably, before anything is
    /// written at `end`.
    pub discarded: Vec<PathBuf>,
}

/// A log file with a valid header.
#[derive(Clone, Debug)]
struct Link {
    path: PathBuf,
    header: FileHeader,
    checksum: Checksum,
    bytes: Bytes,
    zeros_from: u64,
}

impl Link {
    fn new(header: FileHeader, LogFile { path, bytes, zeros_from, .. }: LogFile) -> Link {
        let checksum = Checksum::new(header.id);
        Link { path, header, checksum, bytes, zeros_from }
    }

    /// A reader of the records from `lsn` on, up to this many bytes of the file.
    fn reader(&self, end: usize, lsn: Lsn) -> Reader<'_> {
        Reader::with(self.checksum, &self.header, &self.bytes[..end], lsn)
            .with_zeros_from(self.zeros_from)
    }
}

/// A log file without one.
#[derive(Clone, Debug)]
struct Unreadable {
    path: PathBuf,
    number: FileNumber,
    /// The file under its header with one bit flipped back, if that makes it valid.
    repaired: Option<Link>,
}

/// Records of one link that lie one after the other and were found intact ahead of the reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    link: usize,
    /// Where the first one begins.
    from: Lsn,
    /// Where the last one ends.
    to: Lsn,
}

/// Checks the records of the later half of a long log while the earlier one is read.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// With their indexes, and up to where they are read.
    links: Vec<(usize, Link, usize)>,
    /// Where the later half begins; a record need not.
    middle: Lsn,
}

impl Ahead {
    /// Read so far meanwhile.
    pub(crate) fn middle(&self) -> Lsn {
        self.middle
    }

    /// What of it is intact. Where it is not, the reading will find out why.
    pub(crate) fn check(&self) -> Vec<Checked> {
        let mut checked = Vec::new();
        for (index, link, end) in &self.links {
            let first = link.header.first_lsn;
            let mut reader = link.reader(*end, self.middle.max(first));
            if self.middle > first && !reader.seek(reader.offset()) {
                continue;
            }
            let from = reader.lsn();
            while reader.step().is_ok() {}
            if reader.lsn() > from {
                checked.push(Checked { link: *index, from, to: reader.lsn() });
            }
        }
        checked
    }
}

/// Yields the records of a sequence of log files.
#[derive(Debug)]
pub(crate) struct LogChain {
    replay: Replay,
    /// Sorted by first LSN, rising.
    links: Vec<Link>,
    /// Sorted by number. None was written before the first of `links`.
    unreadable: Vec<Unreadable>,
    /// The file in which the replay begins is gone, and there was one.
    missing: bool,
    /// The link that is being read; `None` as long as none begins at or before `lsn`.
    current: Option<usize>,
    /// Where the next record begins.
    lsn: Lsn,
    /// An end-of-log record of the current link has been read.
    ended: bool,
    /// What need not be checked any more.
    checked: Vec<Checked>,
    /// The one of them within which the next record begins.
    within: Option<Checked>,
    breaks: Vec<Break>,
    outcome: Option<Outcome>,
}

impl LogChain {
    /// The log made of these files, in any order.
    ///
    /// # Errors
    /// `Corruption` if the files cannot be what a crash left, `Unsupported` if one is of a newer
    /// version.
    pub(crate) fn new(files: Vec<LogFile>, replay: Replay) -> Result<LogChain, Error> {
        let is_first = |file: &LogFile| file.number == replay.from_log;
        let missing = replay.begun && !files.iter().any(is_first);
        let files = files.into_iter().filter(|file| file.number >= replay.from_log).collect();
        let (mut links, mut unreadable) = sort_out(files, replay.mode)?;
        if replay.mode == Mode::Salvage {
            let (repaired, rest) = unreadable.into_iter().partition(|file| file.repaired.is_some());
            unreadable = rest;
            links.extend(Vec::into_iter(repaired).filter_map(|file: Unreadable| file.repaired));
        }
        links.sort_by_key(|link| (link.header.first_lsn, link.header.number));
        let begun = links.partition_point(|link| link.header.first_lsn <= replay.from);
        links.drain(..begun.saturating_sub(1));
        let current = (begun > 0).then_some(0);
        if current.is_some() {
            unreadable.retain(|file| file.number > links[0].header.number);
        }
        unreadable.sort_by_key(|file| file.number);
        if replay.mode == Mode::Strict {
            check_order(&links)?;
        }
        let missing = missing && current.is_none();
        let (lsn, breaks, outcome) = (replay.from, Vec::new(), None);
        Ok(LogChain {
            replay,
            links,
            unreadable,
            missing,
            current,
            lsn,
            ended: false,
            checked: Vec::new(),
            within: None,
            breaks,
            outcome,
        })
    }

    /// What checks the later half of the records that are still to be read, if they have at least so many
    /// bytes. Not where damage is skipped.
    pub(crate) fn ahead(&self, bytes_min: u64) -> Option<Ahead> {
        let current = self.current.filter(|_| self.replay.mode != Mode::Salvage)?;
        let link = |index| {
            let link: &Link = &self.links[index];
            let end = self.end_of(index);
            let from = offset_of(&link.header, self.lsn.max(link.header.first_lsn));
            (index, end, link.zeros_from.min(end as u64).saturating_sub(from))
        };
        let links: Vec<_> = (current..self.links.len()).map(link).collect();
        let bytes: u64 = links.iter().map(|(.., bytes)| bytes).sum();
        let mut half = bytes / 2;
        let of_middle = links.iter().position(|(.., bytes)| {
            let is_here = half < *bytes;
            half -= if is_here { 0 } else { *bytes };
            is_here
        });
        let of_middle = of_middle.filter(|_| bytes >= bytes_min)?;
        let first = self.lsn.max(self.links[links[of_middle].0].header.first_lsn);
        let links = links[of_middle..].iter();
        let links = links.map(|(index, end, _)| (*index, self.links[*index].clone(), *end));
        Some(Ahead { links: links.collect(), middle: Lsn(first.0 + half) })
    }

    /// Takes these records as intact.
    pub(crate) fn take_checked(&mut self, checked: Vec<Checked>) {
        self.checked = checked;
    }

    /// Where the next record begins.
    #[must_use]
    pub(crate) fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The next commit or sync mark; `None` at the end of the log.
    ///
    /// # Errors
    /// `Corruption` where the log is broken and [`Mode::Strict`] has proof that it was safe.
    pub(crate) fn next(&mut self) -> Result<Option<Record<'_>>, Error> {
        let place = self.advance()?;
        Ok(place.map(|(index, place)| place.record(&self.links[index].bytes)))
    }

    /// The parts that were lost so far.
    #[must_use]
    pub(crate) fn breaks(&self) -> &[Break] {
        self.outcome.as_ref().map_or(&self.breaks, |outcome| &outcome.breaks)
    }

    /// How the log ended. Only after [`LogChain::next`] gave `None`.
    #[must_use]
    pub(crate) fn finish(self) -> Outcome {
        self.outcome.expect("the log has been read to its end")
    }

    /// Steps over the next record that is not an end of log.
    fn advance(&mut self) -> Result<Option<(usize, Place)>, Error> {
        while self.outcome.is_none() {
            self.within = self.within.filter(|checked| self.lsn < checked.to);
            if self.within.is_none() && !self.checked.is_empty() {
                // Only from its first record on: what begins elsewhere was not looked at.
                let begins = |checked: &&Checked| {
                    Some(checked.link) == self.current && checked.from == self.lsn
                };
                self.within = self.checked.iter().find(begins).copied();
            }
            match self.step() {
                Ok((index, place)) => {
                    self.lsn = place.end;
                    self.ended = place.header.kind == RecordKind::End;
                    if !self.ended {
                        return Ok(Some((index, place)));
                    }
                }
                Err(stop) => self.stopped(stop)?,
            }
        }
        Ok(None)
    }

    fn step(&self) -> Result<(usize, Place), Stop> {
        let index = match self.current {
            Some(_) if self.ended => return Err(Stop::End),
            Some(index) => index,
            None => return Err(Stop::Full),
        };
        let mut reader = self.links[index].reader(self.end_of(index), self.lsn);
        let is_checked = self.within.is_some_and(|checked| checked.link == index);
        if let Some(place) = is_checked.then(|| reader.known()).flatten() {
            return Ok((index, place));
        }
        Ok((index, reader.step()?))
    }

    /// How many bytes of a link are read: what lies past the first LSN of the next file was cut from it.
    fn end_of(&self, index: usize) -> usize {
        let link = &self.links[index];
        let end = match self.links.get(index + 1) {
            Some(next) => offset_of(&link.header, next.header.first_lsn),
            None => u64::MAX,
        };
        usize::try_from(end).unwrap_or(usize::MAX).min(link.bytes.len())
    }

    /// Decides what follows where the current link has no further record.
    fn stopped(&mut self, stop: Stop) -> Result<(), Error> {
        let next = self.current.map_or(0, |index| index + 1);
        let next_lsn = self.links.get(next).map(|link| link.header.first_lsn);
        if next_lsn.is_some() && self.replay.mode == Mode::Strict {
            self.check_superseded(next)?;
        }
        if next_lsn == Some(self.lsn) {
            self.enter(next);
            return Ok(());
        }
        // A log without a next file may end in any of the ordinary ways, but not before what was durable,
        // nor before it begins.
        let ordinary = next_lsn.is_none()
            && !matches!(stop, Stop::Bad(_))
            && self.lsn >= self.replay.durable
            && !self.is_lost();
        match self.replay.mode {
            Mode::Strict => self.refuse_if_safe(&stop)?,
            Mode::PointInTime => {}
            Mode::Salvage if ordinary => {}
            Mode::Salvage => {
                self.skip(next, stop);
                return Ok(());
            }
        }
        if !ordinary {
            self.record_break(None, stop);
        }
        self.end(next);
        Ok(())
    }

    /// True if what was to be read first is gone.
    fn is_lost(&self) -> bool {
        self.missing && self.current.is_none()
    }

    /// Goes on reading at the beginning of this link.
    fn enter(&mut self, index: usize) {
        self.current = Some(index);
        self.lsn = self.links[index].header.first_lsn;
        self.ended = false;
    }

    /// Ends the log at the current LSN; links from `next` on are no part of it.
    fn end(&mut self, next: usize) {
        let later = self.links[next..].iter().map(|link| link.path.clone());
        let unreadable = self.unreadable.iter().map(|file| file.path.clone());
        let discarded = later.chain(unreadable).collect();
        let breaks = std::mem::take(&mut self.breaks);
        self.outcome = Some(Outcome { end: self.lsn, breaks, discarded });
    }

    /// Salvage: goes on at the next intact record, in this link or at the beginning of the next.
    fn skip(&mut self, next: usize, stop: Stop) {
        let found = self.current.filter(|_| !self.ended).and_then(|index| {
            let link = &self.links[index];
            let mut reader = link.reader(link.bytes.len(), self.lsn);
            reader.skip().then(|| reader.lsn())
        });
        let next_lsn = self.links.get(next).map(|link| link.header.first_lsn);
        match (found, next_lsn) {
            (Some(lsn), None) => {
                self.record_break(Some(lsn), stop);
                self.lsn = lsn;
            }
            (Some(lsn), Some(next_lsn)) if lsn < next_lsn => {
                self.record_break(Some(lsn), stop);
                self.lsn = lsn;
            }
            (_, Some(next_lsn)) => {
                self.record_break(Some(next_lsn), stop);
                self.enter(next);
            }
            (None, None) => {
                self.record_break(None, stop);
                self.end(next);
            }
        }
    }

    fn record_break(&mut self, to: Option<Lsn>, stop: Stop) {
        let (path, offset) = self.place();
        self.breaks.push(Break { path, offset, from: self.lsn, to, fault: self.fault(stop) });
    }

    /// The file and offset where the log is broken.
    fn place(&self) -> (PathBuf, u64) {
        match self.current.map(|index| &self.links[index]) {
            Some(link) => (link.path.clone(), offset_of(&link.header, self.lsn)),
            None => match (self.unreadable.first(), self.links.first()) {
                (Some(file), _) => (file.path.clone(), 0),
                (None, Some(link)) => (link.path.clone(), 0),
                (None, None) => (FileKind::Log.path(&self.replay.dir, self.replay.from_log), 0),
            },
        }
    }

    fn fault(&self, stop: Stop) -> Fault {
        let expected = match (self.current, &stop) {
            (_, Stop::Bad(_)) => return stop.into_fault(),
            (Some(_), Stop::End) | (None, _) => format!("a log file at LSN {}", self.lsn.0),
            (Some(_), _) => format!("a record at LSN {}", self.lsn.0),
        };
        let found = match self.current {
            Some(_) => stop.into_fault().found,
            None => "none".to_string(),
        };
        Fault { expected, found }
    }

    /// An intact record where, or across where, the next file begins cannot be: a recovery cuts
    /// a file only where a record is bad, and a writer goes on only after its last record.
    fn check_superseded(&self, next: usize) -> Result<(), Error> {
        let Some(link) = self.current.filter(|_| !self.ended).map(|index| &self.links[index])
        else {
            return Ok(());
        };
        let reader = link.reader(link.bytes.len(), self.lsn);
        if !reader.is_intact() {
            return Ok(());
        }
        let next = &self.links[next];
        let name = FileKind::Log.name(next.header.number);
        let expected = format!("nothing at or past LSN {}, where {name} begins", self.lsn.0);
        Err(Error::corruption(&link.path, reader.offset(), expected, "an intact record"))
    }

    /// Fails if something proves that the log had been safe beyond the current LSN.
    fn refuse_if_safe(&self, stop: &Stop) -> Result<(), Error> {
        if self.is_lost() {
            let path = FileKind::Log.path(&self.replay.dir, self.replay.from_log);
            let fault = self.fault(stop.clone());
            return Err(Error::corruption(path, 0, fault.expected, "no file"));
        }
        let (path, offset) = self.place();
        let length = self.current.map(|index| self.links[index].bytes.len() as u64);
        let reaches = length.is_none_or(|length| length >= offset);
        if !fs::length_fits("log.reach", reaches) {
            // Only the first file can be so short: the reading began past its end.
            let expected = format!("a file that reaches to LSN {}", self.replay.from.0);
            let found = format!("{} bytes", length.unwrap_or(0));
            return Err(Error::corruption(path, offset, expected, found));
        }
        let witness = self.witness(stop);
        if witness.is_none() && self.replay.durable <= self.lsn {
            return Ok(());
        }
        let fault = self.fault(stop.clone());
        Err(safe_but_bad(&path, offset, fault, self.replay.durable, witness))
    }

    /// Proof, in any file, that the log had been safe beyond the current LSN.
    fn witness(&self, stop: &Stop) -> Option<Witness> {
        let rest = match (self.current, stop) {
            // After the other stops there is nothing in this file.
            (Some(index), Stop::Bad(_)) => {
                let offset = offset_of(&self.links[index].header, self.lsn);
                self.witness_in(&self.links[index], offset)
            }
            _ => None,
        };
        let next = self.current.map_or(0, |index| index + 1);
        let repaired = self.unreadable.iter().filter_map(|file| file.repaired.as_ref());
        let mut later = self.links[next..].iter().chain(repaired);
        let before_first = HEADER_BYTES as u64 - ALIGNMENT;
        rest.or_else(|| later.find_map(|link| self.witness_in(link, before_first)))
    }

    fn witness_in(&self, link: &Link, offset: u64) -> Option<Witness> {
        let same_boot = link.header.boot_id == self.replay.boot_id;
        let reader = link.reader(link.bytes.len(), link.header.first_lsn);
        reader.witness(offset, self.lsn, &link.path, same_boot)
    }
}

/// Tells the files with a valid header from those without.
fn sort_out(files: Vec<LogFile>, mode: Mode) -> Result<(Vec<Link>, Vec<Unreadable>), Error> {
    let mut links = Vec::new();
    let mut unreadable = Vec::new();
    for file in files {
        let (path, number) = (file.path.clone(), file.number);
        match FileHeader::decode(&file.bytes, FileKind::Log, &path) {
            Ok(header) if header.number == number => links.push(Link::new(header, file)),
            // Which of the two numbers is wrong is not known: it is no part of the log.
            Ok(_) if mode != Mode::Strict => {
                unreadable.push(Unreadable { path, number, repaired: None });
            }
            Ok(header) => {
                let (expected, found) = (format!("{number:?}"), format!("{:?}", header.number));
                return Err(Error::corruption(path, 32, expected, found));
            }
            Err(error) if error.is_corruption() => {
                let repaired = repair(&file);
                unreadable.push(Unreadable { path, number, repaired });
            }
            Err(error) => return Err(error),
        }
    }
    Ok((links, unreadable))
}

/// The file under its header with one bit flipped back, if that makes it a valid one. A CRC-32
/// over 124 bytes tells any two headers apart that differ in up to 3 bits, so at most one is.
fn repair(file: &LogFile) -> Option<Link> {
    let damaged = file.bytes.first_chunk::<HEADER_BYTES>()?;
    if *damaged == [0; HEADER_BYTES] {
        // A spare that was never begun, as every open finds one: a thousand vain attempts.
        return None;
    }
    // What a header of this file begins with is known: where that differs by more than a bit, as
    // in most torn headers, none of the thousand attempts below can succeed.
    let differing = |at: usize, known: &[u8; 8]| -> u32 {
        damaged[at..].iter().zip(known).map(|(a, b)| (a ^ b).count_ones()).sum()
    };
    if differing(0, FileKind::Log.magic()) + differing(32, &file.number.0.to_le_bytes()) > 1 {
        return None;
    }
    for bit in 0..HEADER_BYTES * 8 {
        let mut candidate = *damaged;
        candidate[bit / 8] ^= 1 << (bit % 8);
        match FileHeader::decode(&candidate, FileKind::Log, &file.path) {
            Ok(header) if header.number == file.number => {
                return Some(Link::new(header, file.clone()));
            }
            _ => {}
        }
    }
    None
}

/// File numbers rise with first LSNs, or files were renamed or restored.
fn check_order(links: &[Link]) -> Result<(), Error> {
    for pair in links.windows(2) {
        let [before, after] = pair else { unreachable!("windows of two") };
        if before.header.number >= after.header.number {
            let name = FileKind::Log.name(before.header.number);
            let expected = format!("a first LSN before that of {name}");
            let found = format!("{:?}", after.header.first_lsn);
            return Err(Error::corruption(&after.path, 40, expected, found));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
