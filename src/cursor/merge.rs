//! Stand-in: several cursors as one, linear.

use crate::cursor::{Cursor, ValueRef};
use crate::error::Result;
use crate::key::{EntryKind, SeqNo};

pub(crate) struct MergeCursor<C> {
    sources: Vec<C>,
    at: Option<usize>,
}

impl<C: Cursor> MergeCursor<C> {
    pub(crate) fn new(sources: Vec<C>) -> MergeCursor<C> {
        MergeCursor { sources, at: None }
    }

    fn pick(&mut self) {
        let valid = self.sources.iter().enumerate().filter(|(_, source)| source.valid());
        self.at = valid
            .min_by(|(_, a), (_, b)| crate::key::compare(a.key(), a.seqno(), b.key(), b.seqno()))
            .map(|(index, _)| index);
    }

    fn here(&self) -> &C {
        &self.sources[self.at.unwrap()]
    }
}

impl<C: Cursor> Cursor for MergeCursor<C> {
    fn valid(&self) -> bool {
        self.at.is_some()
    }
    fn seek_to_first(&mut self) -> Result<()> {
        self.sources.iter_mut().try_for_each(C::seek_to_first)?;
        self.pick();
        Ok(())
    }
    fn seek_to_last(&mut self) -> Result<()> {
        unimplemented!()
    }
    fn seek(&mut self, _: &[u8], _: SeqNo) -> Result<()> {
        unimplemented!()
    }
    fn seek_before(&mut self, _: &[u8], _: SeqNo) -> Result<()> {
        unimplemented!()
    }
    fn next(&mut self) -> Result<()> {
        let at = self.at.unwrap();
        self.sources[at].next()?;
        self.pick();
        Ok(())
    }
    fn prev(&mut self) -> Result<()> {
        unimplemented!()
    }
    fn key(&self) -> &[u8] {
        self.here().key()
    }
    fn seqno(&self) -> SeqNo {
        self.here().seqno()
    }
    fn kind(&self) -> EntryKind {
        self.here().kind()
    }
    fn value(&self) -> ValueRef<'_> {
        self.here().value()
    }
}
