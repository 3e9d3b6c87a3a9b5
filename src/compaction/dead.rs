//! Entries that count no more although nothing hides them: tokens older than their window.
//!
//! Whether an entry is dead follows from its sequence number and a watermark that is persisted
//! elsewhere, never from whether it is still there, so it may go at any time and nobody has to look
//! for it:
//!
//! - [`Living`] leaves the dead out of what a compaction reads anyway;
//! - [`plan_dead`] finds tables that are dead as a whole by their facts: they are dropped unread.
//!
//! Nobody holds a snapshot of such entries, and an older version of a dead entry is dead too.

use std::sync::Arc;

use crate::compaction::picker::{Claims, Input, Plan, Reason};
use crate::compaction::run::Cuts;
use crate::compaction::survive::Below;
use crate::cursor::{Cursor, ValueRef};
use crate::error::Result;
use crate::key::{EntryKind, SeqNo};
use crate::table::TableFacts;
use crate::version::{HasFacts, Version};

/// The entries of a cursor that are not dead.
pub(crate) struct Living<C, F> {
    source: C,
    is_dead: F,
}

impl<C: Cursor, F: FnMut(&[u8], SeqNo) -> Result<bool>> Living<C, F> {
    /// `is_dead` is asked about the key and number of every entry, in the order of the cursor.
    pub(crate) fn new(source: C, is_dead: F) -> Living<C, F> {
        Living { source, is_dead }
    }

    fn skip(&mut self, step: impl Fn(&mut C) -> Result<()>) -> Result<()> {
        while self.source.valid() && (self.is_dead)(self.source.key(), self.source.seqno())? {
            step(&mut self.source)?;
        }
        Ok(())
    }
}

impl<C: Cursor, F: FnMut(&[u8], SeqNo) -> Result<bool>> Cursor for Living<C, F> {
    fn valid(&self) -> bool {
        self.source.valid()
    }
    fn seek_to_first(&mut self) -> Result<()> {
        self.source.seek_to_first()?;
        self.skip(C::next)
    }
    fn seek_to_last(&mut self) -> Result<()> {
        self.source.seek_to_last()?;
        self.skip(C::prev)
    }
    fn seek(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        self.source.seek(key, seqno)?;
        self.skip(C::next)
    }
    fn seek_before(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        self.source.seek_before(key, seqno)?;
        self.skip(C::prev)
    }
    fn next(&mut self) -> Result<()> {
        self.source.next()?;
        self.skip(C::next)
    }
    fn prev(&mut self) -> Result<()> {
        self.source.prev()?;
        self.skip(C::prev)
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

/// Tables of one run that are dead as a whole, by their facts, to be dropped as they are. The oldest
/// run first.
pub(crate) fn plan_dead<T: HasFacts>(
    version: &Version<T>,
    claims: &Claims,
    is_dead: impl Fn(&TableFacts) -> bool,
) -> Option<Plan<T>> {
    let runs: Vec<_> = version.runs().collect();
    runs.into_iter().rev().find_map(|(level, run)| {
        let is_free = |table: &Arc<T>| {
            let facts = table.facts();
            !claims.has(&**table) && !claims.writes(level, &facts.smallest, &facts.largest)
        };
        // One table at a time is enough where a hull of several would get into others' way.
        let dead = run.tables().iter().filter(|table| is_dead(table.facts()));
        let mut dead = dead.filter(|table| is_free(table));
        let mut tables = vec![dead.next()?.clone()];
        let smallest = tables[0].facts().smallest.clone();
        let more =
            dead.take_while(|table| !claims.writes(level, &smallest, &table.facts().largest));
        tables.extend(more.cloned());
        let largest = tables.last().expect("at least one").facts().largest.clone();
        Some(Plan {
            reason: Reason::Dead,
            from_level: level,
            to_level: level,
            inputs: vec![Input { level, run: run.number(), tables }],
            trivial_move: false,
            delete_only: true,
            below: Below::anything(),
            cuts: Cuts::default(),
            hull: (smallest, largest),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::fixture::{Entries, Entry, facts};

    #[test]
    fn the_dead_are_left_out() {
        let entry = |key: &str, seqno| Entry {
            key: key.into(),
            seqno: SeqNo(seqno),
            kind: EntryKind::Put,
            value: Vec::new(),
        };
        let entries =
            vec![entry("a", 1), entry("b", 9), entry("b", 2), entry("c", 3), entry("d", 8)];
        let dead = |_: &[u8], seqno: SeqNo| Ok(seqno <= SeqNo(3));
        let mut living = Living::new(Entries::new(entries), dead);
        let mut seen = Vec::new();
        living.seek_to_first().unwrap();
        while living.valid() {
            seen.push((living.key().to_vec(), living.seqno().0));
            living.next().unwrap();
        }
        assert_eq!(seen, [(b"b".to_vec(), 9), (b"d".to_vec(), 8)]);
    }

    #[test]
    fn tables_that_are_dead_as_a_whole_are_planned_oldest_run_first() {
        let added = vec![
            (0, 7, Arc::new(facts(1, "a-m", 40..=60))),
            (6, 0, Arc::new(facts(2, "a-f", 1..=20))),
            (6, 0, Arc::new(facts(3, "g-k", 21..=39))),
            (6, 0, Arc::new(facts(4, "l-p", 2..=9))),
        ];
        let version = Version::empty().apply(added, &[]).unwrap();
        let mut claims = Claims::default();
        let numbers = |plan: &Plan<_>| -> Vec<u64> {
            plan.removed().iter().map(|(_, number)| number.0).collect()
        };
        let plan_upto = |upto: u64, claims: &Claims| {
            plan_dead(&version, claims, |facts| facts.seqno_max <= SeqNo(upto))
        };
        assert!(plan_upto(8, &claims).is_none());
        let plan = plan_upto(20, &claims).unwrap();
        assert_eq!((numbers(&plan), plan.delete_only), (vec![2, 4], true));
        let claim = claims.claim(&plan);
        assert!(plan_upto(39, &claims).is_none(), "within the hull of another");
        claims.release(claim);
        assert_eq!(numbers(&plan_upto(60, &claims).unwrap()), [2, 3, 4]);
    }
}
