//! Reads the records of one file in order, and says what the place where they end means: an
//! ordinary end, a tail that a crash tore, or damage to what had been safe.
//!
//! # Torn tail or corruption
//! A crash leaves any part of what was not yet durable, so a bad record at X may be an ordinary
//! thing. It is corruption if something proves that X had been safe. Proof is, and only is:
//!
//! 1. **A durable LSN beyond X**: that of any valid record header found anywhere after X, in this
//!    file or a later one, or one that the caller knows of (the manifest).
//! 2. **A copied LSN beyond X** of such a header, if the file that it lies in was created under
//!    the boot id of now: what was handed to the kernel since the machine booted is still there.
//!
//! The search tries every multiple of 8 bytes. A header's checksum is bound to the file's random
//! id and to the LSN, so neither a stale record nor user data that looks like one is taken for a
//! witness. A valid record after X that claims neither proves nothing: un-synced pages reach the
//! disk in any order. Nor does the existence of a later file, or the first LSN in its header.
//!
//! Durable and copied LSNs lie between records, so one beyond X covers all of the record at X.
//!
//! # The stated exception
//! Damage that nothing of the above bears witness against is cut like a torn tail, and reported
//! as [`Tail::Torn`]. It is:
//!
//! - the records after the largest durable LSN that a valid header names: those of the last sync,
//!   until a sync mark or a commit is written after it. On the boot that wrote them, those after
//!   the largest copied LSN likewise.
//! - in a manifest, the last edit. (Hence inputs of an edit are deleted one edit later.)
//! - a file that was cut exactly between two records, if no later file and no caller knows more.
//! - zeros up to the end of the file, which is how the unwritten part of a log reads.
//! - the file header of the newest log, if it differs by more than one bit from a valid one: so
//!   looks a log that was being created (chain.rs).

use std::fmt;
use std::path::{Path, PathBuf};

use crate::checksum::{self, Checksum};
use crate::error::Error;
use crate::file::{self, FileHeader, Lsn};
use crate::key::SeqNo;
use crate::record::{ALIGNMENT, HEADER_BYTES, RecordHeader, RecordKind, record_bytes};

/// An intact record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// Where it begins.
    pub lsn: Lsn,
    /// Where the next one begins.
    pub end: Lsn,
    /// What it is.
    pub kind: RecordKind,
    /// First seqno of a commit; number of an edit.
    pub seqno: SeqNo,
    /// Its payload, of which length and checksum are right.
    pub payload: &'a [u8],
    /// Everything before this LSN had been copied when the record was written. Zero if unknown.
    pub copied: Lsn,
    /// Everything before this LSN was durable when the record was written. Zero if unknown.
    pub durable: Lsn,
}

/// Where an intact record lies, without borrowing the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    offset: u64,
    /// Where the record begins.
    pub lsn: Lsn,
    /// Where the next one begins.
    pub end: Lsn,
    /// The record's header.
    pub header: RecordHeader,
}

impl Place {
    /// The record itself. `bytes` are those of the file in which it was found.
    pub(crate) fn record(self, bytes: &[u8]) -> Record<'_> {
        let start = self.offset as usize + HEADER_BYTES;
        let payload = &bytes[start..start + self.header.payload_bytes as usize];
        let RecordHeader { kind, seqno, copied, durable, .. } = self.header;
        Record { lsn: self.lsn, end: self.end, kind, seqno, payload, copied, durable }
    }
}

/// Why there is no further record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// An end-of-log record came before.
    End,
    /// The bytes end exactly after the last record.
    Full,
    /// Nothing but zeros follows: the unwritten part of a log.
    Zeros,
    /// Something else than a record is there.
    Bad(Fault),
}

/// What was expected where a record is bad, and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

/// What the end of a file's records means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// The records end where the writer left off.
    End,
    /// A plain crash explains the bad record at this LSN: everything from there on is to be cut.
    Torn {
        /// Where the first bad record begins.
        at: Lsn,
        /// What is bad about it.
        fault: Fault,
    },
}

/// A record header that proves something safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Witness {
    /// The file that it lies in.
    pub path: PathBuf,
    /// Its offset in that file.
    pub offset: u64,
    /// Everything before this LSN was safe when it was written.
    pub safe: Lsn,
    /// How safe.
    pub safety: Safety,
}

/// What a [`Witness`] vouches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Safety {
    /// Durable on the disk.
    Durable,
    /// Handed to the kernel, and the machine has not booted since.
    Copied,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}, found {}", self.expected, self.found)
    }
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Witness { path, offset, safe, safety } = self;
        let safety = match safety {
            Safety::Durable => "durable",
            Safety::Copied => "copied, on this boot,",
        };
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        write!(f, "{name} at offset {offset} says {safety} up to LSN {}", safe.0)
    }
}

impl Stop {
    /// The stop as a fault, for a place where more records should follow.
    pub(crate) fn into_fault(self) -> Fault {
        let found = match self {
            Stop::Bad(fault) => return fault,
            Stop::End => "an end-of-log record before it",
            Stop::Full => "the end of the file",
            Stop::Zeros => "zeros up to the end of the file",
        };
        Fault { expected: "a record".to_string(), found: found.to_string() }
    }
}

/// Walks the records of one file.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    checksum: Checksum,
    first_lsn: Lsn,
    /// Offset of the next record.
    offset: u64,
    /// An end-of-log record has been read.
    ended: bool,
    /// From here on there are only zeros, which need not be looked at.
    zeros_from: u64,
}

impl<'a> Reader<'a> {
    /// A reader of the file with this header and these bytes, the header's included, that begins
    /// at the record at `from`, which must not be before the file's first LSN.
    #[must_use]
    pub(crate) fn new(header: &FileHeader, bytes: &'a [u8], from: Lsn) -> Reader<'a> {
        Reader::with(Checksum::new(header.id), header, bytes, from)
    }

    /// The same, given the checksums of the file.
    #[must_use]
    pub(crate) fn with(
        checksum: Checksum,
        header: &FileHeader,
        bytes: &'a [u8],
        from: Lsn,
    ) -> Reader<'a> {
        assert!(from >= header.first_lsn, "{from:?} is before {:?}", header.first_lsn);
        let offset = offset_of(header, from);
        let zeros_from = bytes.len() as u64;
        Reader { bytes, checksum, first_lsn: header.first_lsn, offset, ended: false, zeros_from }
    }

    /// The same for a file that holds only zeros from this offset on. Without it the unwritten
    /// part of a log is read, 64 MiB of it, to see that it is.
    #[must_use]
    pub(crate) fn with_zeros_from(self, offset: u64) -> Reader<'a> {
        Reader { zeros_from: offset.min(self.zeros_from), ..self }
    }

    /// Where the next record begins, or where the reader stopped.
    #[must_use]
    pub(crate) fn lsn(&self) -> Lsn {
        self.lsn_at(self.offset)
    }

    /// The same as an offset in the file.
    #[must_use]
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    fn lsn_at(&self, offset: u64) -> Lsn {
        Lsn(self.first_lsn.0.saturating_add(offset - file::HEADER_BYTES as u64))
    }

    /// The next record, or why there is none. A stopped reader stays where it is.
    pub(crate) fn next(&mut self) -> Result<Record<'a>, Stop> {
        self.step().map(|place| place.record(self.bytes))
    }

    /// As [`Reader::next`], without borrowing the file.
    pub(crate) fn step(&mut self) -> Result<Place, Stop> {
        if self.ended {
            return Err(Stop::End);
        }
        let rest = usize::try_from(self.offset).ok().and_then(|at| self.bytes.get(at..));
        let Some(rest) = rest else {
            return Err(bad("a file that reaches so far", format!("{} bytes", self.bytes.len())));
        };
        if rest.is_empty() {
            return Err(Stop::Full);
        }
        let written = self.zeros_from.saturating_sub(self.offset).min(rest.len() as u64);
        let written = &rest[..written as usize];
        let place = self.intact(self.offset).map_err(|fault| match all_zeros(written) {
            true => Stop::Zeros,
            false => Stop::Bad(fault),
        })?;
        self.offset += record_bytes(u64::from(place.header.payload_bytes));
        self.ended = place.header.kind == RecordKind::End;
        Ok(place)
    }

    /// The record where the reader stands, which is known to be intact; `None` if it looks otherwise.
    pub(crate) fn known(&self) -> Option<Place> {
        let rest = self.bytes.get(usize::try_from(self.offset).ok()?..)?;
        let (header, rest) = rest.split_first_chunk()?;
        let lsn = self.lsn();
        let header = RecordHeader::decode_known(header, lsn).ok()?;
        let bytes = record_bytes(u64::from(header.payload_bytes));
        let end = self.lsn_at(self.offset + bytes);
        let fits = bytes - HEADER_BYTES as u64 <= rest.len() as u64;
        fits.then_some(Place { offset: self.offset, lsn, end, header })
    }

    /// The record at `offset`, header, payload and padding checked.
    fn intact(&self, offset: u64) -> Result<Place, Fault> {
        let lsn = self.lsn_at(offset);
        let rest = usize::try_from(offset).ok().and_then(|at| self.bytes.get(at..));
        let Some((header, rest)) = rest.and_then(|rest| rest.split_first_chunk::<HEADER_BYTES>())
        else {
            let found = format!("{} bytes", rest.map_or(0, <[u8]>::len));
            return Err(fault("a record header of 32 bytes", found));
        };
        let header = RecordHeader::decode(header, self.checksum, lsn)
            .map_err(|error| fault(format!("a record header for LSN {}", lsn.0), error.0))?;
        let len = header.payload_bytes as usize;
        let Some((payload, rest)) = rest.split_at_checked(len) else {
            return Err(fault(format!("a payload of {len} bytes"), format!("{}", rest.len())));
        };
        let found = checksum::unbound(payload);
        if found != header.payload_checksum {
            let expected = format!("payload checksum {:08x}", header.payload_checksum);
            return Err(fault(expected, format!("{found:08x}")));
        }
        let padding = record_bytes(len as u64) as usize - HEADER_BYTES - len;
        match rest.get(..padding) {
            Some(zeros) if all_zeros(zeros) => {}
            Some(_) => return Err(fault("zeros after the payload", "other bytes")),
            None => return Err(fault("zeros after the payload", "the end of the file")),
        }
        let end = self.lsn_at(offset + record_bytes(len as u64));
        Ok(Place { offset, lsn, end, header })
    }

    /// Goes to the first intact record at or after this offset. False if there is none.
    pub(crate) fn seek(&mut self, offset: u64) -> bool {
        self.offset = offset.next_multiple_of(ALIGNMENT);
        self.is_intact() || self.skip()
    }

    /// True if an intact record begins where the reader stopped.
    pub(crate) fn is_intact(&self) -> bool {
        self.intact(self.offset).is_ok()
    }

    /// Goes on to the first intact record after the place where the reader stopped, for salvage.
    /// False if there is none; the reader then stays where it is.
    pub(crate) fn skip(&mut self) -> bool {
        let next = self.headers_after(self.offset).find(|&(at, _)| self.intact(at).is_ok());
        if let Some((offset, _)) = next {
            self.offset = offset;
        }
        next.is_some()
    }

    /// Every valid record header after `offset`, whether or not it lies in a payload.
    fn headers_after(&self, offset: u64) -> impl Iterator<Item = (u64, RecordHeader)> {
        let first =
            offset.saturating_add(1).checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX);
        let last = (self.bytes.len() as u64).saturating_sub(HEADER_BYTES as u64);
        let last = last.min(self.zeros_from);
        (first..=last).step_by(ALIGNMENT as usize).filter_map(|at| {
            let bytes = self.bytes[at as usize..].first_chunk()?;
            Some((at, RecordHeader::decode(bytes, self.checksum, self.lsn_at(at)).ok()?))
        })
    }

    /// A valid header after `offset` that proves that everything before an LSN beyond `at` was
    /// safe. `path` is that of this file; `same_boot` says that it was created on this boot.
    pub(crate) fn witness(
        &self,
        offset: u64,
        at: Lsn,
        path: &Path,
        same_boot: bool,
    ) -> Option<Witness> {
        let witness = |offset, safe, safety| {
            let path = path.to_path_buf();
            Some(Witness { path, offset, safe, safety })
        };
        self.headers_after(offset).find_map(|(offset, header)| {
            if header.durable > at {
                witness(offset, header.durable, Safety::Durable)
            } else if same_boot && header.copied > at {
                witness(offset, header.copied, Safety::Copied)
            } else {
                None
            }
        })
    }

    /// What it means that the reader stopped for this reason, in a file that stands alone (a
    /// manifest). Everything before `durable` is known to have been durable from elsewhere.
    ///
    /// # Errors
    /// `Corruption` if something proves that what should follow was safe.
    pub(crate) fn tail(&self, stop: Stop, path: &Path, durable: Lsn) -> Result<Tail, Error> {
        let at = self.lsn();
        let witness = self.witness(self.offset, at, path, false);
        if witness.is_some() || durable > at {
            let fault = stop.into_fault();
            return Err(safe_but_bad(path, self.offset, fault, durable, witness));
        }
        match stop {
            Stop::Bad(fault) => Ok(Tail::Torn { at, fault }),
            Stop::End | Stop::Full | Stop::Zeros => Ok(Tail::End),
        }
    }
}

/// The offset in a file with this header of the record at `lsn`.
pub(crate) fn offset_of(header: &FileHeader, lsn: Lsn) -> u64 {
    (lsn.0 - header.first_lsn.0).saturating_add(file::HEADER_BYTES as u64)
}

/// The error for a record that is bad although it had been safe.
pub(crate) fn safe_but_bad(
    path: &Path,
    offset: u64,
    fault: Fault,
    durable: Lsn,
    witness: Option<Witness>,
) -> Error {
    let proof = match witness {
        Some(witness) => witness.to_string(),
        None => format!("known to be durable up to LSN {}", durable.0),
    };
    Error::corruption(path, offset, format!("{} ({proof})", fault.expected), fault.found)
}

fn fault(expected: impl Into<String>, found: impl Into<String>) -> Fault {
    Fault { expected: expected.into(), found: found.into() }
}

fn bad(expected: impl Into<String>, found: impl Into<String>) -> Stop {
    Stop::Bad(fault(expected, found))
}

fn all_zeros(bytes: &[u8]) -> bool {
    // By chunks, which the compiler makes vectors of: 8 times as fast as stopping at each byte.
    bytes.chunks(256).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::file::{FileId, FileKind, FileNumber};
    use crate::record::put_record;

    /// Builds a log file, record by record.
    pub(crate) struct LogBuilder {
        pub(crate) header: FileHeader,
        pub(crate) bytes: Vec<u8>,
    }

    impl LogBuilder {
        pub(crate) fn new(number: u64, first_lsn: Lsn, boot_id: u128) -> LogBuilder {
            let id = FileId(u128::from(number) << 64 | 0xe5ce5);
            let mut header = FileHeader::new(FileKind::Log, id, FileNumber(number));
            (header.first_lsn, header.boot_id) = (first_lsn, boot_id);
            LogBuilder { bytes: header.encode().to_vec(), header }
        }

        pub(crate) fn lsn(&self) -> Lsn {
            Lsn(self.header.first_lsn.0 + self.bytes.len() as u64 - file::HEADER_BYTES as u64)
        }

        /// Appends a commit; gives its LSN.
        pub(crate) fn commit(&mut self, payload: &[u8], copied: Lsn, durable: Lsn) -> Lsn {
            let lsn = self.lsn();
            let header = RecordHeader {
                kind: RecordKind::Commit,
                payload_bytes: 0,
                payload_checksum: 0,
                copied,
                durable,
                seqno: SeqNo(lsn.0 / 8),
            };
            let checksum = Checksum::new(self.header.id);
            put_record(&mut self.bytes, checksum, lsn, header, payload);
            lsn
        }

        /// Appends a sync mark or an end of log.
        pub(crate) fn bare(&mut self, kind: RecordKind, copied: Lsn, durable: Lsn) -> Lsn {
            let lsn = self.lsn();
            let header = RecordHeader::bare(kind, SeqNo(lsn.0 / 8), copied, durable);
            put_record(&mut self.bytes, Checksum::new(self.header.id), lsn, header, &[]);
            lsn
        }

        pub(crate) fn zeros(&mut self, bytes: usize) {
            self.bytes.resize(self.bytes.len() + bytes, 0);
        }
    }

    /// What reading a file gives: the LSNs and payloads of its records, and its tail.
    type Read = (Vec<(Lsn, Vec<u8>)>, Result<Tail, Error>);

    fn read(header: &FileHeader, bytes: &[u8], from: Lsn) -> Read {
        let mut reader = Reader::new(header, bytes, from);
        let mut records = Vec::new();
        loop {
            match reader.next() {
                Ok(record) => records.push((record.lsn, record.payload.to_vec())),
                Err(stop) => {
                    return (records, reader.tail(stop, Path::new("000007.log"), Lsn(0)));
                }
            }
        }
    }

    const PAYLOADS: [&[u8]; 5] = [b"", b"one", b"twotwotw", b"three three", &[0; 40]];

    /// A log of which every record was durable when the next one was written.
    fn synced_log() -> (LogBuilder, Vec<(Lsn, Vec<u8>)>) {
        let mut log = LogBuilder::new(7, Lsn(800), 1);
        let records = PAYLOADS
            .iter()
            .map(|payload| (log.commit(payload, log.lsn(), log.lsn()), payload.to_vec()))
            .collect();
        (log, records)
    }

    #[test]
    fn records_come_back_from_the_beginning_and_from_the_middle() {
        let (mut log, records) = synced_log();
        for (index, &(lsn, _)) in records.iter().enumerate() {
            let (found, tail) = read(&log.header, &log.bytes, lsn);
            assert_eq!(found, records[index..]);
            assert_eq!(tail.unwrap(), Tail::End);
        }
        log.zeros(100);
        let (found, tail) = read(&log.header, &log.bytes, Lsn(800));
        assert_eq!((found, tail.unwrap()), (records, Tail::End));
    }

    #[test]
    fn a_record_keeps_what_was_safe_when_it_was_written() {
        let mut log = LogBuilder::new(7, Lsn(800), 1);
        log.commit(b"a", Lsn(792), Lsn(16));
        let mut reader = Reader::new(&log.header, &log.bytes, Lsn(800));
        let record = reader.next().unwrap();
        assert_eq!((record.copied, record.durable), (Lsn(792), Lsn(16)));
        assert_eq!((record.lsn, record.end), (Lsn(800), Lsn(840)));
        assert_eq!((record.kind, record.seqno), (RecordKind::Commit, SeqNo(100)));
    }

    #[test]
    fn nothing_is_read_past_an_end_of_log() {
        let mut log = LogBuilder::new(7, Lsn(0), 1);
        log.commit(b"a", Lsn(0), Lsn(0));
        log.bare(RecordKind::End, Lsn(0), Lsn(0));
        log.commit(b"never", Lsn(0), Lsn(0));
        let mut reader = Reader::new(&log.header, &log.bytes, Lsn(0));
        assert_eq!(reader.next().unwrap().kind, RecordKind::Commit);
        assert_eq!(reader.next().unwrap().kind, RecordKind::End);
        assert_eq!(reader.next(), Err(Stop::End));
        assert_eq!(reader.next(), Err(Stop::End));
    }

    #[test]
    fn every_truncation_gives_the_right_prefix() {
        let (log, records) = synced_log();
        let ends: Vec<usize> = records[1..]
            .iter()
            .map(|(lsn, _)| offset_of(&log.header, *lsn) as usize)
            .chain([log.bytes.len()])
            .collect();
        for len in file::HEADER_BYTES..log.bytes.len() {
            let whole = ends.iter().filter(|&&end| end <= len).count();
            let (found, tail) = read(&log.header, &log.bytes[..len], Lsn(800));
            assert_eq!(found, records[..whole], "length {len}");
            match tail.unwrap() {
                Tail::End => {
                    let at = whole.checked_sub(1).map_or(file::HEADER_BYTES, |i| ends[i]);
                    assert!(all_zeros(&log.bytes[at..len]), "length {len}");
                }
                Tail::Torn { at, .. } => assert_eq!(at, records[whole].0, "length {len}"),
            }
        }
    }

    #[test]
    fn every_flipped_bit_below_what_was_durable_is_corruption() {
        let (log, records) = synced_log();
        let last = records.len() - 1;
        let last_offset = offset_of(&log.header, records[last].0) as usize;
        for bit in file::HEADER_BYTES * 8..log.bytes.len() * 8 {
            let mut bytes = log.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let (found, tail) = read(&log.header, &bytes, Lsn(800));
            assert_eq!(found, records[..found.len()], "bit {bit}: never a wrong record");
            if bit / 8 < last_offset {
                assert!(found.len() < last);
                let error = tail.unwrap_err();
                assert!(error.is_corruption() && error.to_string().contains("durable"), "{error}");
            } else {
                assert_eq!(found.len(), last, "bit {bit}");
                let at = records[last].0;
                assert!(matches!(tail.unwrap(), Tail::Torn { at: torn, .. } if torn == at));
            }
        }
    }

    #[test]
    fn a_bad_record_that_nothing_proves_durable_is_torn() {
        let mut log = LogBuilder::new(7, Lsn(0), 1);
        log.commit(b"synced", Lsn(0), Lsn(0));
        let synced = log.lsn();
        let bad = log.commit(b"bad", log.lsn(), synced);
        let witness = log.commit(b"witness", log.lsn(), synced);
        let offset = offset_of(&log.header, bad) as usize;
        log.bytes[offset + HEADER_BYTES] ^= 1;
        let (found, tail) = read(&log.header, &log.bytes, Lsn(0));
        assert_eq!(found.len(), 1);
        assert!(matches!(tail.unwrap(), Tail::Torn { at, .. } if at == bad));

        let reader = Reader::new(&log.header, &log.bytes, Lsn(0));
        let path = Path::new("x");
        assert_eq!(reader.witness(offset as u64, bad, path, false), None);
        let found = reader.witness(offset as u64, bad, path, true).unwrap();
        assert_eq!((found.safe, found.safety), (witness, Safety::Copied), "on the same boot");

        log.bare(RecordKind::SyncMark, log.lsn(), witness);
        let (_, tail) = read(&log.header, &log.bytes, Lsn(0));
        assert!(tail.unwrap_err().is_corruption(), "the sync mark bears witness");
    }

    #[test]
    fn what_is_known_from_elsewhere_is_proof() {
        let (log, records) = synced_log();
        let mut reader = Reader::new(&log.header, &log.bytes, records[4].0);
        let end = log.lsn();
        assert!(reader.next().is_ok());
        let stop = reader.next().unwrap_err();
        let path = Path::new("x");
        assert_eq!(reader.tail(stop.clone(), path, end).unwrap(), Tail::End);
        assert!(reader.tail(stop, path, Lsn(end.0 + 1)).unwrap_err().is_corruption());
    }

    #[test]
    fn any_valid_prefix_with_garbage_after_it_gives_that_prefix() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..300 {
            let mut log = LogBuilder::new(7, Lsn(8 * rng.u64(..1000)), 1);
            let first = log.lsn();
            let mut expected = Vec::new();
            for _ in 0..rng.usize(..10) {
                let payload: Vec<u8> = (0..rng.usize(..100)).map(|_| rng.u8(..)).collect();
                expected.push((log.commit(&payload, log.lsn(), log.lsn()), payload));
            }
            let at = log.lsn();
            let mut garbage: Vec<u8> = (0..rng.usize(1..500)).map(|_| rng.u8(..)).collect();
            garbage[0] |= 1;
            // Records of another file, or of this one at another place, are garbage too.
            let mut other = LogBuilder::new(7 + rng.u64(..2), Lsn(1 << 20), 1);
            other.commit(b"stale", Lsn(1 << 20), Lsn(1 << 20));
            if rng.bool() {
                garbage = other.bytes.split_off(file::HEADER_BYTES);
            }
            log.bytes.extend_from_slice(&garbage);
            let (found, tail) = read(&log.header, &log.bytes, first);
            assert_eq!(found, expected);
            assert!(matches!(tail.unwrap(), Tail::Torn { at: torn, .. } if torn == at));
        }
    }

    #[test]
    fn skip_finds_the_next_intact_record() {
        let (mut log, records) = synced_log();
        let offset = offset_of(&log.header, records[1].0) as usize;
        log.bytes[offset] ^= 1;
        let mut reader = Reader::new(&log.header, &log.bytes, records[1].0);
        assert!(matches!(reader.next(), Err(Stop::Bad(_))));
        assert!(reader.skip());
        assert_eq!(reader.next().unwrap().lsn, records[2].0);
        let mut reader = Reader::new(&log.header, &log.bytes, records[4].0);
        assert!(!reader.skip());
        assert_eq!(reader.lsn(), records[4].0);
    }

    #[test]
    fn a_start_past_the_end_is_bad_and_does_not_panic() {
        let mut log = LogBuilder::new(7, Lsn(0), 1);
        log.commit(b"a", Lsn(0), Lsn(0));
        for from in [log.lsn().0 + 8, u64::MAX - 7, u64::MAX] {
            let mut reader = Reader::new(&log.header, &log.bytes, Lsn(from));
            assert!(matches!(reader.next(), Err(Stop::Bad(_))));
            assert!(!reader.skip());
        }
    }
}
