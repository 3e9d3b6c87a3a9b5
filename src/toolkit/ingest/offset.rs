//! The consumer's offset: up to where a queue's events are applied, and where its log goes on.
//!
//! It is one entry of the hidden keyspace `"\0queues"`, written by the very commit that has the
//! effects, so after a crash both are there or neither. It is to the queue's log what the manifest
//! is to the database's: a log counts from the moment that an offset names its side.
//!
//! ```text
//! key    name of the queue
//! value  version u8 = 1, side u8, then varints: number of the last event that is applied,
//!        LSN where the next record begins, number of the log file that has it
//! ```

use crate::coding::{DecodeError, Decoded, Decoder, put_varint};
use crate::file::{FileNumber, Lsn};
use crate::key::SeqNo;

/// Name of the hidden keyspace.
pub(crate) const OFFSETS: &str = "\0queues";
const VERSION: u8 = 1;

/// One of the two directories that a queue's log may be in. A log that was begun anew, by an open or
/// a resume, lies in the other one than the log that it took over from, so the files of an attempt
/// that a crash cut short are never taken for those of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Side {
    #[default]
    A,
    B,
}

impl Side {
    pub fn other(self) -> Side {
        if self == Side::A { Side::B } else { Side::A }
    }

    /// Name of the directory within the queue's.
    pub fn name(self) -> &'static str {
        if self == Side::A { "a" } else { "b" }
    }
}

/// See the module's comment. The default is that of a queue that never was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offset {
    pub side: Side,
    pub applied: SeqNo,
    pub lsn: Lsn,
    pub log: FileNumber,
}

impl Offset {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, u8::from(self.side == Side::B)];
        put_varint(&mut out, self.applied.0);
        put_varint(&mut out, self.lsn.0);
        put_varint(&mut out, self.log.0);
        out
    }

    pub fn decode(bytes: &[u8]) -> Decoded<Offset> {
        let mut decoder = Decoder::new(bytes);
        if decoder.u8()? != VERSION {
            return Err(DecodeError("an offset of another version"));
        }
        let side = match decoder.u8()? {
            0 => Side::A,
            1 => Side::B,
            _ => return Err(DecodeError("an offset of no side")),
        };
        let (applied, lsn) = (SeqNo(decoder.varint()?), Lsn(decoder.varint()?));
        let log = FileNumber(decoder.varint()?);
        decoder.finish()?;
        if applied > SeqNo::MAX || !lsn.0.is_multiple_of(8) {
            return Err(DecodeError("an offset out of range"));
        }
        Ok(Offset { side, applied, lsn, log })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_and_nothing_else_is_taken_for_one() {
        let offset =
            Offset { side: Side::B, applied: SeqNo(300), lsn: Lsn(4096), log: FileNumber(7) };
        let bytes = offset.encode();
        assert_eq!(Offset::decode(&bytes), Ok(offset));
        assert_eq!(Offset::decode(&Offset::default().encode()), Ok(Offset::default()));
        for len in 0..bytes.len() {
            assert!(Offset::decode(&bytes[..len]).is_err());
        }
        assert!(Offset::decode(&[&bytes[..], &[0]].concat()).is_err());
        assert!(Offset::decode(&[2, 0, 0, 0, 0]).is_err());
        assert!(Offset::decode(&[1, 2, 0, 0, 0]).is_err());
        assert!(Offset::decode(&[1, 0, 0, 4, 0]).is_err());
    }
}
