//! A cursor without the entries newer than a sequence number.

use crate::cursor::{Cursor, ValueRef};
use crate::error::Result;
use crate::key::{EntryKind, SeqNo};

/// The entries of a cursor up to a sequence number, inclusive.
pub(crate) struct Upto<C> {
    source: C,
    upto: SeqNo,
}

impl<C: Cursor> Upto<C> {
    pub fn new(source: C, upto: SeqNo) -> Upto<C> {
        Upto { source, upto }
    }

    fn skip_forward(&mut self) -> Result<()> {
        while self.source.valid() && self.source.seqno() > self.upto {
            self.source.next()?;
        }
        Ok(())
    }

    fn skip_backward(&mut self) -> Result<()> {
        while self.source.valid() && self.source.seqno() > self.upto {
            self.source.prev()?;
        }
        Ok(())
    }
}

impl<C: Cursor> Cursor for Upto<C> {
    fn valid(&self) -> bool {
        self.source.valid()
    }
    fn seek_to_first(&mut self) -> Result<()> {
        self.source.seek_to_first()?;
        self.skip_forward()
    }
    fn seek_to_last(&mut self) -> Result<()> {
        self.source.seek_to_last()?;
        self.skip_backward()
    }
    fn seek(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        self.source.seek(key, seqno)?;
        self.skip_forward()
    }
    fn seek_before(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        self.source.seek_before(key, seqno)?;
        self.skip_backward()
    }
    fn next(&mut self) -> Result<()> {
        self.source.next()?;
        self.skip_forward()
    }
    fn prev(&mut self) -> Result<()> {
        self.source.prev()?;
        self.skip_backward()
    }
    fn key(&self) -> &[u8] {
        self.source.key()
    }
    fn seqno(&self) -> SeqNo {
        self.source.seqno()
    }
    fn kind(&self) -> EntryKind {
        self.source.kind()
    }
    fn value(&self) -> ValueRef<'_> {
        self.source.value()
    }
}
