//! Record framing, shared by the write-ahead log and the manifest: one record is one commit or
//! one edit, and its header says what was safe when it was written.
//!
//! - `mod`: the bytes of a record.
//! - `reader`: the records of one file, and what its end means.
//! - `chain`: the records of several log files as one log.
//!
//! ```text
//! file     header of 128 bytes (file.rs), then records, each at a multiple of 8 bytes
//!
//! record
//!   offset  size  field
//!        0     4  header checksum: of bytes 4..32, bound to (file id, LSN of the record)
//!        4     4  payload length in bytes
//!        8     4  payload checksum: plain CRC-32, so that it is computed outside every lock
//!       12     4  copied distance: (LSN - copied LSN) / 8
//!       16     4  durable distance: (LSN - durable LSN) / 8
//!       20     1  kind: 1 commit, 2 edit, 3 sync mark, 4 end of log
//!       21     3  zero
//!       24     8  first seqno of the commit; number of the edit in its manifest
//!       32     …  payload, then zeros to a multiple of 8 bytes
//!
//! LSN of a record = first LSN of the file + (its offset in the file - 128)
//! ```
//!
//! A commit's payload is a batch (batch.rs), an edit's is an edit (manifest/edit.rs). A sync mark
//! has no payload: it is there for its durable distance. An end of log has none either: nothing
//! follows it in this file, and the next log begins at the LSN after it.
//!
//! The distances are what tells damage from a torn tail (reader.rs). They are rounded up, and one
//! that does not fit (32 GiB) is stored as `u32::MAX`, which claims nothing at all: a distance
//! cut short would claim more than was true.
//!
//! Worked example: a sync mark at LSN 64 of the file with id 1, written when the log was copied
//! up to LSN 64 and durable up to LSN 8, before seqno 5:
//!
//! ```text
//!  0  ae 52 87 54  00 00 00 00  00 00 00 00  00 00 00 00
//! 16  07 00 00 00  03 00 00 00  05 00 00 00  00 00 00 00
//! ```

pub(crate) mod chain;
pub(crate) mod reader;

use crate::checksum::{self, Checksum};
use crate::coding::{DecodeError, Decoded};
use crate::file::Lsn;
use crate::key::SeqNo;

/// Bytes of a record's header.
pub(crate) const HEADER_BYTES: usize = 32;
/// Records begin at multiples of so many bytes, so that a search past damage is linear.
pub(crate) const ALIGNMENT: u64 = 8;
/// The longest payload in bytes. Writers enforce smaller limits of their own.
pub(crate) const PAYLOAD_BYTES_MAX: u64 = (1 << 31) - 1;
/// The distance that claims nothing.
const DISTANCE_UNKNOWN: u32 = u32::MAX;

/// What a record is. On disk: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum RecordKind {
    /// An atomic batch of operations.
    Commit = 1,
    /// An edit to the version, in a manifest.
    Edit = 2,
    /// Nothing but a header, written after a sync so that its distance bears witness.
    SyncMark = 3,
    /// The last record of a log file.
    End = 4,
}

impl RecordKind {
    /// The kind with this number on disk.
    fn from_u8(byte: u8) -> Option<RecordKind> {
        match byte {
            1 => Some(RecordKind::Commit),
            2 => Some(RecordKind::Edit),
            3 => Some(RecordKind::SyncMark),
            4 => Some(RecordKind::End),
            _ => None,
        }
    }

    /// True for the kinds that are nothing but a header.
    fn is_bare(self) -> bool {
        matches!(self, RecordKind::SyncMark | RecordKind::End)
    }
}

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    /// What the record is.
    pub kind: RecordKind,
    /// Length of the payload without padding. At most [`PAYLOAD_BYTES_MAX`].
    pub payload_bytes: u32,
    /// [`checksum::unbound`] of the payload.
    pub payload_checksum: u32,
    /// Everything before this LSN had been copied into the log when the record was written.
    /// Zero if unknown.
    pub copied: Lsn,
    /// Everything before this LSN had been made durable when the record was written. Zero if
    /// unknown.
    pub durable: Lsn,
    /// First seqno of a commit; for an edit, its number in the manifest.
    pub seqno: SeqNo,
}

/// Bytes of a whole record with a payload of this length: header, payload, padding.
#[inline]
#[must_use]
pub(crate) fn record_bytes(payload_bytes: u64) -> u64 {
    (HEADER_BYTES as u64 + payload_bytes).next_multiple_of(ALIGNMENT)
}

impl RecordHeader {
    /// The header of a record without payload.
    #[must_use]
    pub(crate) fn bare(kind: RecordKind, seqno: SeqNo, copied: Lsn, durable: Lsn) -> RecordHeader {
        assert!(kind.is_bare(), "{kind:?} records have a payload");
        RecordHeader { kind, payload_bytes: 0, payload_checksum: 0, copied, durable, seqno }
    }

    /// The header's bytes for the record at `lsn` of the file that `checksum` is bound to.
    ///
    /// Runs inside the commit lock: it hashes 36 bytes and does nothing else of note.
    #[inline]
    #[must_use]
    pub(crate) fn encode(&self, checksum: Checksum, lsn: Lsn) -> [u8; HEADER_BYTES] {
        assert!(lsn.0.is_multiple_of(ALIGNMENT), "a record begins at a multiple of 8");
        assert!(self.seqno <= SeqNo::MAX);
        debug_assert!(u64::from(self.payload_bytes) <= PAYLOAD_BYTES_MAX);
        debug_assert!(!self.kind.is_bare() || self.payload_bytes == 0);
        let mut out = [0; HEADER_BYTES];
        out[4..8].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[8..12].copy_from_slice(&self.payload_checksum.to_le_bytes());
        out[12..16].copy_from_slice(&distance(lsn, self.copied).to_le_bytes());
        out[16..20].copy_from_slice(&distance(lsn, self.durable).to_le_bytes());
        out[20] = self.kind as u8;
        out[24..32].copy_from_slice(&self.seqno.0.to_le_bytes());
        let sum = checksum.of(lsn.0, &out[4..]);
        out[..4].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads the header of a record that should begin at `lsn`.
    ///
    /// The cheap conditions come first: a search past damage calls this for every 8 bytes, most
    /// of which are turned down by the kind and the zeros beside it. All of them together with
    /// the checksum make a false header a matter of 2^-60.
    #[inline]
    pub(crate) fn decode(
        bytes: &[u8; HEADER_BYTES],
        checksum: Checksum,
        lsn: Lsn,
    ) -> Decoded<RecordHeader> {
        let header = RecordHeader::decode_known(bytes, lsn)?;
        let sum = u32::from_le_bytes(bytes[..4].try_into().expect("4"));
        if checksum.of(lsn.0, &bytes[4..]) != sum {
            return Err(DecodeError("a record header with a bad checksum"));
        }
        Ok(header)
    }

    /// The same of a header whose checksum is known to be right.
    #[inline]
    pub(crate) fn decode_known(bytes: &[u8; HEADER_BYTES], lsn: Lsn) -> Decoded<RecordHeader> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4"));
        let Some(kind) = RecordKind::from_u8(bytes[20]) else {
            return Err(DecodeError("a record of an unknown kind"));
        };
        if bytes[21..24] != [0; 3] {
            return Err(DecodeError("a record header with reserved bytes set"));
        }
        let seqno = SeqNo(u64::from_le_bytes(bytes[24..32].try_into().expect("8")));
        let (payload_bytes, payload_checksum) = (u32_at(4), u32_at(8));
        if u64::from(payload_bytes) > PAYLOAD_BYTES_MAX || seqno > SeqNo::MAX {
            return Err(DecodeError("a record header with a number out of range"));
        }
        if kind.is_bare() && (payload_bytes, payload_checksum) != (0, 0) {
            return Err(DecodeError("a payload where the record's kind has none"));
        }
        let copied = before(lsn, u32_at(12));
        let durable = before(lsn, u32_at(16));
        Ok(RecordHeader { kind, payload_bytes, payload_checksum, copied, durable, seqno })
    }
}

/// How far `position` lies before `lsn`, in units of 8 bytes rounded up.
fn distance(lsn: Lsn, position: Lsn) -> u32 {
    debug_assert!(position <= lsn, "{position:?} is not before {lsn:?}");
    let units = (lsn.0.saturating_sub(position.0)).div_ceil(ALIGNMENT);
    u32::try_from(units).unwrap_or(DISTANCE_UNKNOWN)
}

/// The position at this distance before `lsn`; zero, which claims nothing, if it is unknown.
fn before(lsn: Lsn, distance: u32) -> Lsn {
    if distance == DISTANCE_UNKNOWN {
        return Lsn(0);
    }
    Lsn(lsn.0.saturating_sub(u64::from(distance) * ALIGNMENT))
}

/// Appends a whole record to `out`, for writers that are not in a hurry. `header` gives kind,
/// positions and seqno; its length and checksum are taken from `payload`.
pub(crate) fn put_record(
    out: &mut Vec<u8>,
    checksum: Checksum,
    lsn: Lsn,
    header: RecordHeader,
    payload: &[u8],
) {
    assert!(payload.len() as u64 <= PAYLOAD_BYTES_MAX, "a payload of {} bytes", payload.len());
    let header = RecordHeader {
        payload_bytes: payload.len() as u32,
        payload_checksum: checksum::unbound(payload),
        ..header
    };
    let start = out.len();
    out.extend_from_slice(&header.encode(checksum, lsn));
    out.extend_from_slice(payload);
    out.resize(start + record_bytes(payload.len() as u64) as usize, 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::FileId;

    fn header() -> RecordHeader {
        RecordHeader {
            kind: RecordKind::Commit,
            payload_bytes: 100,
            payload_checksum: 0xdead_beef,
            copied: Lsn(800),
            durable: Lsn(72),
            seqno: SeqNo(77),
        }
    }

    #[test]
    fn header_round_trips_and_every_flipped_bit_is_seen() {
        let checksum = Checksum::new(FileId(9));
        let bytes = header().encode(checksum, Lsn(4096));
        assert_eq!(RecordHeader::decode(&bytes, checksum, Lsn(4096)), Ok(header()));
        for bit in 0..HEADER_BYTES * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(RecordHeader::decode(&bytes, checksum, Lsn(4096)).is_err(), "bit {bit}");
        }
        assert!(RecordHeader::decode(&bytes, checksum, Lsn(4104)).is_err(), "bound to the LSN");
        let other = Checksum::new(FileId(8));
        assert!(RecordHeader::decode(&bytes, other, Lsn(4096)).is_err(), "bound to the id");
    }

    #[test]
    fn a_distance_that_does_not_fit_claims_nothing() {
        let checksum = Checksum::new(FileId(9));
        let lsn = Lsn(1 << 40);
        let edge = Lsn(lsn.0 - 8 * (u64::from(u32::MAX) - 1));
        for (position, read) in
            [(lsn, lsn), (edge, edge), (Lsn(edge.0 - 8), Lsn(0)), (Lsn(8), Lsn(0))]
        {
            let header = RecordHeader { copied: position, durable: position, ..header() };
            let bytes = header.encode(checksum, lsn);
            let decoded = RecordHeader::decode(&bytes, checksum, lsn).unwrap();
            assert_eq!((decoded.copied, decoded.durable), (read, read), "{position:?}");
        }
    }

    #[test]
    fn a_sync_mark_is_as_the_module_comment_draws_it() {
        let mark = RecordHeader::bare(RecordKind::SyncMark, SeqNo(5), Lsn(64), Lsn(8));
        let bytes = mark.encode(Checksum::new(FileId(1)), Lsn(64));
        let drawn = [
            0xae, 0x52, 0x87, 0x54, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, //
            7, 0, 0, 0, 3, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(bytes, drawn, "{bytes:02x?}");
    }

    #[test]
    fn a_record_is_padded_with_zeros_to_a_multiple_of_8() {
        for len in 0..20 {
            let mut out = Vec::new();
            let checksum = Checksum::new(FileId(9));
            put_record(&mut out, checksum, Lsn(4096), header(), &vec![0xff; len]);
            assert_eq!(out.len() as u64, record_bytes(len as u64));
            assert!(out.len().is_multiple_of(8));
            assert!(out[HEADER_BYTES + len..].iter().all(|&byte| byte == 0));
        }
    }
}
