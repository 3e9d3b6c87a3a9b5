//! What survives a flush or a compaction: a pure function from entries, snapshots and what lies
//! below to the entries that are still needed, as a stream.
//!
//! The snapshots cut history into stripes; nobody can see between two entries of one stripe:
//!
//! ```text
//! snapshots            s1            s2
//! seqnos   0 ......... s1 | s1+1 ... s2 | s2+1 ...
//!          oldest stripe     stripe        newest stripe
//! ```
//!
//! Of one user key, newest version first:
//! 1. A put or a tombstone hides every older version in its stripe.
//! 2. A tombstone vanishes if no older version of its key is left: none in the input, in whatever
//!    stripe, and none in the levels below ([`Below`]).
//! 3. Operands of one stripe fold: onto the put or tombstone of the stripe that they end at, with
//!    `full`; onto nothing, with `full`, if no older version is left; otherwise with each other,
//!    with `partial`. The result has the sequence number of the newest operand in it. Operands
//!    never fold across a snapshot.
//! 4. Where the operator is missing, fails or panics, operands and what they end at are copied as
//!    they are. Only a tombstone under them may still vanish by rule 2.
//!
//! What every snapshot reads of every key, and what a reader after all of them reads, is the same
//! before and after. The snapshots given must therefore include every number at which somebody may
//! read from now on: the registered snapshots, and the visible sequence number of this moment if
//! the input may hold younger entries than that.
//!
//! Sequence numbers stay as they are. Setting those at the bottom to zero would save bytes only
//! where they are stored per entry, and would take from repair, the change feed and the order
//! checks the one fact that tells which of two entries is older.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::cursor::Cursor;
use crate::error::Result;
use crate::key::{EntryKind, SeqNo, VALUE_BYTES_MAX};
use crate::operator::{MergeOperator, Merged};

/// Operands of one key that are gathered before they are folded: a bound on memory, as a key may
/// have millions of them.
const GATHERED_BYTES_MAX: usize = 1 << 20;

/// Which user keys may have older versions below the output of a compaction, by the ranges of
/// the tables there.
#[derive(Clone, Debug)]
pub(crate) struct Below {
    /// Some key may be anywhere: nothing is known.
    anything: bool,
    /// For each run, the sorted disjoint ranges (smallest, largest) of its tables, and the first
    /// that does not end before the last key asked about.
    runs: Vec<(Vec<KeyRange>, usize)>,
}

/// Smallest and largest user key, both included.
pub(crate) type KeyRange = (Box<[u8]>, Box<[u8]>);

impl Below {
    /// Every key may have older versions. For flushes, which know nothing of what lies below.
    pub(crate) fn anything() -> Below {
        Below { anything: true, runs: Vec::new() }
    }

    /// Keys in these ranges may have older versions; each element is a run's sorted tables.
    pub(crate) fn runs(runs: Vec<Vec<KeyRange>>) -> Below {
        let nonempty = runs.into_iter().filter(|ranges| !ranges.is_empty());
        Below { anything: false, runs: nonempty.map(|ranges| (ranges, 0)).collect() }
    }

    /// True if no key has older versions.
    #[cfg(test)]
    pub(crate) fn is_nothing(&self) -> bool {
        !self.anything && self.runs.is_empty()
    }

    /// May `key` have older versions below? Asked with ascending keys.
    fn may_hold(&mut self, key: &[u8]) -> bool {
        self.anything
            || self.runs.iter_mut().any(|(ranges, at)| {
                while ranges.get(*at).is_some_and(|(_, largest)| **largest < *key) {
                    *at += 1;
                }
                ranges.get(*at).is_some_and(|(smallest, _)| **smallest <= *key)
            })
    }
}

/// An entry that survives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Survivor<'a> {
    /// The user key.
    pub(crate) key: &'a [u8],
    /// Its sequence number.
    pub(crate) seqno: SeqNo,
    /// What it does.
    pub(crate) kind: EntryKind,
    /// Value or operand.
    pub(crate) value: &'a [u8],
    /// True for the first survivor of its user key: a table may begin here.
    pub(crate) first: bool,
}

/// What happened to the entries, for the stats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SurvivorCounts {
    /// Entries read.
    pub(crate) read: u64,
    /// Entries that survived, folded ones counted once.
    pub(crate) survived: u64,
    /// Folds that the operator refused, by failing or by a panic; for a missing operator too.
    pub(crate) folds_failed: u64,
}

/// The survivors of the entries of a cursor, in order. An entry that survives as it is, is lent by
/// the source; nothing is allocated for it.
pub(crate) struct Survivors<C> {
    source: C,
    /// Ascending.
    snapshots: Vec<SeqNo>,
    below: Below,
    operator: Option<Arc<dyn MergeOperator>>,
    /// The user key of the last entry taken from the source, once there was one.
    key: Vec<u8>,
    started: bool,
    /// Versions of `key` from this number on are hidden; `u64::MAX` if none is.
    hidden_from: u64,
    /// True once an entry of `key` was lent.
    lent: bool,
    /// Entries of `key` that no longer are what the source stands on, newest first.
    held: Held,
    /// What is being lent.
    lending: Lending,
    counts: SurvivorCounts,
}

/// Where the survivor lent last is.
#[derive(Clone, Copy)]
enum Lending {
    /// Nowhere: the source stands on an entry that was not looked at yet, or is at its end.
    Nothing,
    /// The source stands on it.
    Source,
    /// `held` has it at this index; the source is ahead.
    Held(usize),
}

/// How a sequence of operands ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// At a put or tombstone of the same stripe, which is held as the last entry.
    Base,
    /// The input has no older version of the key.
    Key,
    /// An older version of the key follows, which may not be folded with these.
    Cut,
}

impl<C: Cursor> Survivors<C> {
    /// Goes to the first entry of `source`. `snapshots` in any order.
    pub(crate) fn new(
        mut source: C,
        mut snapshots: Vec<SeqNo>,
        below: Below,
        operator: Option<Arc<dyn MergeOperator>>,
    ) -> Result<Survivors<C>> {
        source.seek_to_first()?;
        snapshots.sort_unstable();
        let (counts, held) = (SurvivorCounts::default(), Held::default());
        Ok(Survivors {
            source,
            snapshots,
            below,
            operator,
            key: Vec::new(),
            started: false,
            hidden_from: u64::MAX,
            lent: false,
            held,
            lending: Lending::Nothing,
            counts,
        })
    }

    /// What happened so far.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests count what survives by them"))]
    pub(crate) fn counts(&self) -> SurvivorCounts {
        self.counts
    }

    /// The next survivor, lent until the next call. After an error there is nothing more.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<Survivor<'_>>> {
        if !self.advance()? {
            return Ok(None);
        }
        let first = !self.lent;
        self.lent = true;
        self.counts.survived += 1;
        let (seqno, kind, value) = match self.lending {
            Lending::Source => (self.source.seqno(), self.source.kind(), self.source.value().bytes),
            Lending::Held(index) => self.held.get(index),
            Lending::Nothing => unreachable!("advance found a survivor"),
        };
        Ok(Some(Survivor { key: &self.key, seqno, kind, value, first }))
    }

    #[inline]
    fn advance(&mut self) -> Result<bool> {
        match self.lending {
            Lending::Source => self.step()?,
            Lending::Held(index) if index + 1 < self.held.len() => {
                self.lending = Lending::Held(index + 1);
                return Ok(true);
            }
            _ => {}
        }
        self.lending = Lending::Nothing;
        while self.source.valid() {
            let seqno = self.source.seqno();
            if !self.in_key() {
                self.key.clear();
                self.key.extend_from_slice(self.source.key());
                (self.started, self.hidden_from, self.lent) = (true, u64::MAX, false);
            } else if seqno.0 >= self.hidden_from {
                self.step()?;
                continue;
            }
            let floor = stripe_floor(&self.snapshots, seqno);
            match self.source.kind() {
                EntryKind::Put => {
                    self.hidden_from = floor;
                    self.lending = Lending::Source;
                }
                EntryKind::Delete => {
                    self.held.clear();
                    self.settle_tombstone(seqno, floor)?;
                }
                EntryKind::Merge => self.fold(floor)?,
            }
            if !matches!(self.lending, Lending::Nothing) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    #[inline]
    fn step(&mut self) -> Result<()> {
        self.counts.read += 1;
        self.source.next()
    }

    /// True if the source stands on a version of the key being worked on.
    #[inline]
    fn in_key(&self) -> bool {
        self.started && self.source.key() == self.key
    }

    /// Rule 2: skips what a tombstone hides, and holds the tombstone behind what is held already
    /// if an older version of its key is left.
    fn settle_tombstone(&mut self, seqno: SeqNo, floor: u64) -> Result<()> {
        self.hidden_from = floor;
        while self.source.valid() && self.in_key() && self.source.seqno().0 >= floor {
            self.step()?;
        }
        let older = self.source.valid() && self.in_key();
        if older || self.below.may_hold(&self.key) {
            self.held.push(seqno, EntryKind::Delete, b"");
        }
        self.lend_held();
        Ok(())
    }

    fn lend_held(&mut self) {
        self.lending = if self.held.len() > 0 { Lending::Held(0) } else { Lending::Nothing };
    }

    /// Rules 3 and 4, from the newest operand on, on which the source stands.
    fn fold(&mut self, floor: u64) -> Result<()> {
        let newest = self.source.seqno();
        let end = self.gather(newest, floor)?;
        let base = (end == End::Base).then(|| self.held.len() - 1);
        if base.is_some() {
            self.hidden_from = floor;
        }
        let complete = end == End::Base || (end == End::Key && !self.below.may_hold(&self.key));
        let folded = if complete { self.fold_full(base) } else { self.fold_partial() };
        match folded {
            Some(Merged::Put(value)) => {
                let kind = if complete { EntryKind::Put } else { EntryKind::Merge };
                self.held.replace(newest, kind, value);
            }
            Some(Merged::Delete) => {
                self.held.clear();
                return self.settle_tombstone(newest, floor);
            }
            None if base.is_some_and(|base| self.held.get(base).1 == EntryKind::Delete) => {
                let (seqno, ..) = self.held.pop();
                return self.settle_tombstone(seqno, floor);
            }
            None => {}
        }
        self.lend_held();
        Ok(())
    }

    /// Holds the operands of this stripe, and the put or tombstone that they end at.
    fn gather(&mut self, newest: SeqNo, floor: u64) -> Result<End> {
        self.held.clear();
        while self.source.valid() && self.in_key() {
            if self.source.seqno().0 < floor {
                return Ok(End::Cut);
            }
            let (kind, value) = (self.source.kind(), self.source.value().bytes);
            let room = GATHERED_BYTES_MAX.saturating_sub(self.held.bytes.len());
            if kind == EntryKind::Merge && value.len() > room && self.held.len() > 0 {
                // Folding what there is may make room. Otherwise these go out and the older ones
                // fold on their own, which is as right.
                if let Some(Merged::Put(value)) = self.fold_partial() {
                    self.held.replace(newest, EntryKind::Merge, value);
                }
                if self.held.len() > 1 || self.held.bytes.len() > GATHERED_BYTES_MAX / 2 {
                    return Ok(End::Cut);
                }
            }
            self.held.push(self.source.seqno(), kind, self.source.value().bytes);
            self.step()?;
            if kind != EntryKind::Merge {
                return Ok(End::Base);
            }
        }
        Ok(End::Key)
    }

    /// Folds the held operands onto the base at this index, or onto nothing.
    fn fold_full(&mut self, base: Option<usize>) -> Option<Merged> {
        let operands = self.held.oldest_first(base.unwrap_or(self.held.len()));
        let base = base.map(|index| self.held.get(index));
        let base = base.and_then(|(_, kind, value)| (kind == EntryKind::Put).then_some(value));
        let folded = self.operator.as_ref().and_then(|operator| {
            let full = || operator.full(&self.key, base, &operands).ok();
            catch_unwind(AssertUnwindSafe(full)).unwrap_or(None)
        });
        let folded = folded.filter(fits);
        self.counts.folds_failed += u64::from(folded.is_none());
        folded
    }

    /// Folds the held operands with each other.
    fn fold_partial(&mut self) -> Option<Merged> {
        if self.held.len() < 2 {
            return None;
        }
        let operands = self.held.oldest_first(self.held.len());
        let partial = || self.operator.as_ref()?.partial(&self.key, &operands);
        let folded = catch_unwind(AssertUnwindSafe(partial));
        self.counts.folds_failed += u64::from(folded.is_err());
        folded.unwrap_or(None).map(Merged::Put).filter(fits)
    }
}

/// The smallest sequence number in the stripe of `seqno`.
#[inline]
fn stripe_floor(snapshots: &[SeqNo], seqno: SeqNo) -> u64 {
    match snapshots.partition_point(|snapshot| *snapshot < seqno) {
        0 => 0,
        older => snapshots[older - 1].0 + 1,
    }
}

/// A result that is too long for a value counts as a failure of the operator.
fn fits(merged: &Merged) -> bool {
    match merged {
        Merged::Put(value) => value.len() <= VALUE_BYTES_MAX,
        Merged::Delete => true,
    }
}

/// Entries of one user key, newest first, their values behind each other in one buffer.
#[derive(Default)]
struct Held {
    entries: Vec<(SeqNo, EntryKind, Range<usize>)>,
    bytes: Vec<u8>,
}

impl Held {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.bytes.clear();
        // One huge value must not stay for the rest of the compaction.
        self.bytes.shrink_to(2 * GATHERED_BYTES_MAX);
    }

    fn push(&mut self, seqno: SeqNo, kind: EntryKind, value: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.entries.push((seqno, kind, start..self.bytes.len()));
    }

    fn pop(&mut self) -> (SeqNo, EntryKind) {
        let (seqno, kind, range) = self.entries.pop().expect("an entry is held");
        self.bytes.truncate(range.start);
        (seqno, kind)
    }

    fn replace(&mut self, seqno: SeqNo, kind: EntryKind, value: Vec<u8>) {
        self.entries.clear();
        self.entries.push((seqno, kind, 0..value.len()));
        self.bytes = value;
    }

    fn get(&self, index: usize) -> (SeqNo, EntryKind, &[u8]) {
        let (seqno, kind, range) = &self.entries[index];
        (*seqno, *kind, &self.bytes[range.clone()])
    }

    /// The values of the first `count` entries, the oldest first.
    fn oldest_first(&self, count: usize) -> Vec<&[u8]> {
        let newest_first = self.entries[..count].iter();
        newest_first.rev().map(|(.., range)| &self.bytes[range.clone()]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cursor::merge::MergeCursor;
    use crate::operator::{Append, Counter, MergeError};
    use crate::version::fixture::{Entries, Entry, sort};

    /// Appends, but refuses whatever has a `!`, panics at a `?`, and deletes at a `-`.
    struct Moody;

    impl MergeOperator for Moody {
        fn name(&self) -> &str {
            "moody"
        }

        fn full(
            &self,
            key: &[u8],
            base: Option<&[u8]>,
            operands: &[&[u8]],
        ) -> std::result::Result<Merged, MergeError> {
            let all = [base.unwrap_or_default(), &operands.concat()].concat();
            if all.contains(&b'?') {
                // Not `panic!`, whose hook would print.
                std::panic::resume_unwind(Box::new("moody"));
            }
            if all.contains(&b'!') {
                return Err(MergeError("moody".into()));
            }
            match all.iter().rposition(|byte| *byte == b'-') {
                Some(at) if at + 1 == all.len() => Ok(Merged::Delete),
                Some(at) => Ok(Merged::Put(all[at + 1..].into())),
                None => Append.full(key, base, operands),
            }
        }

        fn partial(&self, _: &[u8], operands: &[&[u8]]) -> Option<Vec<u8>> {
            let all = operands.concat();
            if all.contains(&b'?') {
                std::panic::resume_unwind(Box::new("moody"));
            }
            (!all.contains(&b'!') && !all.contains(&b'-')).then_some(all)
        }
    }

    type Operator = Option<Arc<dyn MergeOperator>>;
    /// What a reader gets: a value or none, or a failed merge.
    type Reading = std::result::Result<Option<Vec<u8>>, ()>;

    fn put(key: &str, seqno: u64, value: &str) -> Entry {
        entry(key, seqno, EntryKind::Put, value)
    }

    fn delete(key: &str, seqno: u64) -> Entry {
        entry(key, seqno, EntryKind::Delete, "")
    }

    fn merge(key: &str, seqno: u64, operand: &str) -> Entry {
        entry(key, seqno, EntryKind::Merge, operand)
    }

    fn entry(key: &str, seqno: u64, kind: EntryKind, value: &str) -> Entry {
        Entry { key: key.into(), seqno: SeqNo(seqno), kind, value: value.into() }
    }

    /// The naive model: replays what the snapshot sees.
    fn read(entries: &[Entry], key: &[u8], snapshot: SeqNo, operator: &Operator) -> Reading {
        let mut operands: Vec<&[u8]> = Vec::new();
        let mut base = None;
        let mut versions: Vec<&Entry> =
            entries.iter().filter(|e| e.key == key && e.seqno <= snapshot).collect();
        versions.sort_by_key(|entry| std::cmp::Reverse(entry.seqno));
        for version in versions {
            match version.kind {
                EntryKind::Merge => operands.insert(0, &version.value),
                EntryKind::Put => {
                    base = Some(&version.value[..]);
                    break;
                }
                EntryKind::Delete => break,
            }
        }
        if operands.is_empty() {
            return Ok(base.map(<[u8]>::to_vec));
        }
        let operator = operator.as_ref().ok_or(())?;
        let full = || operator.full(key, base, &operands);
        match catch_unwind(AssertUnwindSafe(full)) {
            Ok(Ok(Merged::Put(value))) => Ok(Some(value)),
            Ok(Ok(Merged::Delete)) => Ok(None),
            _ => Err(()),
        }
    }

    fn survivors(
        sources: Vec<Vec<Entry>>,
        snapshots: &[u64],
        below: Below,
        operator: Operator,
    ) -> (Vec<Entry>, SurvivorCounts) {
        let source = MergeCursor::new(sources.into_iter().map(Entries::new));
        let snapshots = snapshots.iter().map(|s| SeqNo(*s)).collect();
        let mut survivors = Survivors::new(source, snapshots, below, operator).unwrap();
        let mut out: Vec<Entry> = Vec::new();
        while let Some(Survivor { key, seqno, kind, value, first }) = survivors.next().unwrap() {
            assert_eq!(first, out.last().is_none_or(|last| last.key != key));
            out.push(Entry { key: key.into(), seqno, kind, value: value.into() });
        }
        assert_eq!(survivors.counts().survived, out.len() as u64);
        (out, survivors.counts())
    }

    fn append(entries: &[Entry], snapshots: &[u64], below: Below) -> Vec<Entry> {
        survivors(vec![entries.to_vec()], snapshots, below, Some(Arc::new(Append))).0
    }

    fn nothing() -> Below {
        Below::runs(Vec::new())
    }

    #[test]
    fn of_a_stripe_the_newest_survives() {
        let history = [put("a", 1, "1"), put("a", 3, "3"), put("a", 5, "5"), put("b", 4, "4")];
        let newest = [put("a", 5, "5"), put("b", 4, "4")];
        assert_eq!(append(&history, &[], Below::anything()), newest);
        let both = [put("a", 5, "5"), put("a", 3, "3"), put("b", 4, "4")];
        assert_eq!(append(&history, &[3], Below::anything()), both);
        assert_eq!(append(&history, &[3, 4], Below::anything()), both);
    }

    #[test]
    fn tombstones_vanish_when_nothing_older_is_left() {
        let history = [put("a", 1, "1"), delete("a", 3), delete("b", 4)];
        assert_eq!(append(&history, &[], nothing()), []);
        assert_eq!(append(&history, &[], Below::anything()), [delete("a", 3), delete("b", 4)]);
        // The snapshot still reads a@1, which the tombstone hides from later readers.
        assert_eq!(append(&history, &[2], nothing()), [delete("a", 3), put("a", 1, "1")]);
        let range = |a: &str, b: &str| (a.as_bytes().into(), b.as_bytes().into());
        let below = Below::runs(vec![vec![range("0", "9"), range("b", "c")]]);
        assert!(!below.is_nothing());
        assert_eq!(append(&history, &[], below), [delete("b", 4)]);
    }

    #[test]
    fn operands_fold_within_their_stripe() {
        let history =
            [put("a", 1, "x"), merge("a", 2, "y"), merge("a", 5, "z"), merge("a", 6, "w")];
        assert_eq!(append(&history, &[], Below::anything()), [put("a", 6, "xyzw")]);
        let cut = [merge("a", 6, "zw"), put("a", 2, "xy")];
        assert_eq!(append(&history, &[3], nothing()), cut);
        let operands = &history[1..];
        assert_eq!(append(operands, &[], Below::anything()), [merge("a", 6, "yzw")]);
        assert_eq!(append(operands, &[], nothing()), [put("a", 6, "yzw")]);
        let deleted = [delete("a", 1), merge("a", 2, "y")];
        assert_eq!(append(&deleted, &[], Below::anything()), [put("a", 2, "y")]);
    }

    #[test]
    fn without_a_willing_operator_operands_are_copied() {
        let history = [put("a", 1, "0"), put("a", 2, "x"), merge("a", 3, "!"), merge("a", 4, "z")];
        let copied = [merge("a", 4, "z"), merge("a", 3, "!"), put("a", 2, "x")];
        for operator in [None, Some(Arc::new(Moody) as Arc<dyn MergeOperator>)] {
            let (out, counts) = survivors(vec![history.to_vec()], &[], nothing(), operator);
            assert_eq!(out, copied);
            assert_eq!(counts.folds_failed, 1);
            assert_eq!(counts.read, 4);
        }
        // The tombstone below them may go all the same, or rewriting it would never end.
        let history = [delete("a", 2), merge("a", 3, "!"), put("b", 4, "4")];
        let (out, _) = survivors(vec![history.to_vec()], &[], nothing(), None);
        assert_eq!(out, [merge("a", 3, "!"), put("b", 4, "4")]);
    }

    #[test]
    fn a_long_chain_of_operands_folds_in_pieces() {
        let piece = "p".repeat(GATHERED_BYTES_MAX / 4);
        let chain: Vec<Entry> = (1..=12).map(|seqno| merge("a", seqno, &piece)).collect();
        let whole = piece.repeat(12).into_bytes();
        for (operator, folds) in [(Some(Arc::new(Append) as _), true), (None, false)] {
            let (out, _) = survivors(vec![chain.clone()], &[], nothing(), operator);
            assert_eq!(out.len() < 12, folds);
            assert!(out.len() > 1, "the chain is longer than what is gathered");
            assert_eq!(
                read(&out, b"a", SeqNo::MAX, &Some(Arc::new(Append))),
                Ok(Some(whole.clone()))
            );
        }
        let counts: Vec<Entry> = (1..=300_000)
            .map(|seqno| Entry { value: 1i64.to_le_bytes().into(), ..merge("a", seqno, "") })
            .collect();
        let counter = Some(Arc::new(Counter::wrapping()) as _);
        let (out, _) = survivors(vec![counts], &[], Below::anything(), counter);
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].value, 300_000i64.to_le_bytes());
    }

    /// Random histories in random runs, snapshots that come and go, compactions of neighbouring
    /// runs over and over: no reader ever sees a difference.
    #[test]
    fn no_reader_sees_a_difference() {
        let operators: [Operator; 5] = [
            None,
            Some(Arc::new(Counter::wrapping())),
            Some(Arc::new(Counter::saturating())),
            Some(Arc::new(Append)),
            Some(Arc::new(Moody)),
        ];
        for seed in 0..3000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let operator = operators[seed as usize % operators.len()].clone();
            history(&mut rng, &operator, seed);
        }
    }

    fn random_value(rng: &mut fastrand::Rng, operator: &Operator) -> Vec<u8> {
        match operator {
            Some(operator) if operator.name().starts_with("esker.counter") => {
                [1, -1, i64::MAX, 7][rng.usize(..4)].to_le_bytes().into()
            }
            _ => vec![[b'!', b'?', b'-', b'a', b'b', b'c', b'd', b'e', b'f'][rng.usize(..9)]],
        }
    }

    fn history(rng: &mut fastrand::Rng, operator: &Operator, seed: u64) {
        let keys = rng.usize(1..5);
        let (mut all, mut snapshots) = (Vec::<Entry>::new(), Vec::<u64>::new());
        // Oldest run first.
        let mut runs: Vec<Vec<Entry>> = Vec::new();
        let merges = rng.u32(0..8);
        for _ in 0..rng.usize(2..10) {
            let mut run = Vec::new();
            for _ in 0..rng.usize(0..12) {
                let seqno = SeqNo(all.len() as u64 + 1);
                let kind = match rng.u32(..10) {
                    pick if pick < merges => EntryKind::Merge,
                    9 => EntryKind::Delete,
                    _ => EntryKind::Put,
                };
                let value = match kind {
                    EntryKind::Delete => Vec::new(),
                    _ => random_value(rng, operator),
                };
                let key = vec![b'a' + rng.usize(..keys) as u8];
                run.push(Entry { key, seqno, kind, value });
                all.extend(run.last().cloned());
                if rng.u32(..6) == 0 {
                    snapshots.push(seqno.0);
                }
            }
            runs.push(run);
            if !snapshots.is_empty() && rng.bool() {
                snapshots.remove(rng.usize(..snapshots.len()));
            }
            let from = rng.usize(..runs.len());
            let to = rng.usize(from + 1..=runs.len());
            compact(rng, &mut runs, from..to, &snapshots, operator);
            for snapshot in snapshots.iter().copied().chain([SeqNo::MAX.0]) {
                for key in 0..keys {
                    let key = [b'a' + key as u8];
                    let now = runs.concat();
                    let read = |entries| read(entries, &key, SeqNo(snapshot), operator);
                    assert_eq!(read(&now), read(&all), "seed {seed} key {key:?} @{snapshot}");
                }
            }
        }
        let (out, _) = survivors(runs, &[], nothing(), operator.clone());
        if operator.as_ref().is_some_and(|operator| operator.name() != "moody") {
            assert!(out.iter().all(|entry| entry.kind == EntryKind::Put), "seed {seed}");
            assert!(out.windows(2).all(|pair| pair[0].key < pair[1].key), "seed {seed}");
        }
    }

    fn compact(
        rng: &mut fastrand::Rng,
        runs: &mut Vec<Vec<Entry>>,
        which: Range<usize>,
        snapshots: &[u64],
        operator: &Operator,
    ) {
        let range = |entry: &Entry| (entry.key.clone().into(), entry.key.clone().into());
        let below = if rng.u32(..4) == 0 {
            Below::anything()
        } else {
            let mut older: Vec<Vec<Entry>> = runs[..which.start].to_vec();
            older.iter_mut().for_each(|run| sort(run));
            let ranges = older.iter().map(|run| {
                let mut ranges: Vec<KeyRange> = run.iter().map(range).collect();
                ranges.dedup();
                ranges
            });
            Below::runs(ranges.collect())
        };
        let mut shuffled = snapshots.to_vec();
        rng.shuffle(&mut shuffled);
        let inputs = runs[which.clone()].to_vec();
        let (out, _) = survivors(inputs, &shuffled, below, operator.clone());
        runs.splice(which, [out]);
    }
}
