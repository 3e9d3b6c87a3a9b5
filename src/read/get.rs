//! Point reads: the newest version of a key at a snapshot, operands folded.
//!
//! A key's versions are visited newest first: active memtable, frozen memtables, level 0 from its
//! newest run on, then the deeper levels. A put or a tombstone ends the visit; operands are
//! collected until one of them, or the end of history, and folded oldest first.

use std::ops::ControlFlow;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::cursor::ValueRef;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{self, EntryKind, SeqNo};
use crate::memtable::{Memtable, Stopped};
use crate::operator::{MergeOperator, Merged, Quick};
use crate::slice::Slice;
use crate::tree::{Tree, View};

/// What a read at a number found that nobody registered.
pub(crate) enum Answer<R, F> {
    /// The value, if there is one.
    Value(Option<R>),
    /// The number is too old by now: pin a newer one, and read again with this.
    Stale(F),
}

/// Reads `key` at `snapshot`, which is registered, from `view` and gives its value to `found`, in
/// place if it is not merged from operands. `None` if there is no value.
///
/// # Errors
/// `Corruption` or `Io` from a table; `MergeFailed` if the operands cannot be folded.
#[inline]
pub(crate) fn get_with<R>(
    tree: &Tree,
    view: &View,
    key: &[u8],
    snapshot: SeqNo,
    found: impl FnOnce(ValueRef<'_>) -> R,
) -> Result<Option<R>> {
    match try_get_with(tree, view, key, snapshot, found)? {
        Answer::Value(value) => Ok(value),
        Answer::Stale(_) => unreachable!("the number is registered"),
    }
}

/// As [`get_with`], for a number that is not registered.
///
/// # Errors
/// As [`get_with`].
#[inline]
pub(crate) fn try_get_with<R, F: FnOnce(ValueRef<'_>) -> R>(
    tree: &Tree,
    view: &View,
    key: &[u8],
    snapshot: SeqNo,
    found: F,
) -> Result<Answer<R, F>> {
    let found = Some(found);
    let (operands, sum) = (SmallVec::new(), None);
    let mut lookup = Lookup { tree, key, operands, sum, found, outcome: Ok(None) };
    let mut step = |_: SeqNo, kind, value: ValueRef<'_>| lookup.step(kind, value);
    if visit_versions(view, key, key::hash(key), snapshot, &mut step)? == Seen::Stale {
        return Ok(Answer::Stale(lookup.found.expect("only at the end of a visit is it taken")));
    }
    if lookup.has_operands() {
        lookup.fold(None);
    }
    lookup.outcome.map(Answer::Value)
}

/// Asks for what reads of these keys will look at in tables, so that their misses overlap.
pub(crate) fn announce<'k>(view: &View, keys: impl Iterator<Item = &'k [u8]>, snapshot: SeqNo) {
    keys.for_each(|key| view.version.announce(key, key::hash(key), snapshot));
}

/// Gives the newest version of `key` at `snapshot`, which is registered, a tombstone too, to
/// `found`: not folded, so no operator is needed. `None` if the key has no version.
///
/// # Errors
/// `Corruption` or `Io` from a table.
pub(crate) fn newest_with<R>(
    view: &View,
    key: &[u8],
    snapshot: SeqNo,
    found: impl FnOnce(SeqNo, EntryKind, &[u8]) -> R,
) -> Result<Option<R>> {
    match try_newest_with(view, key, snapshot, found)? {
        Answer::Value(newest) => Ok(newest),
        Answer::Stale(_) => unreachable!("the number is registered"),
    }
}

/// As [`newest_with`], for a number that is not registered.
///
/// # Errors
/// As [`newest_with`].
pub(crate) fn try_newest_with<R, F: FnOnce(SeqNo, EntryKind, &[u8]) -> R>(
    view: &View,
    key: &[u8],
    snapshot: SeqNo,
    found: F,
) -> Result<Answer<R, F>> {
    let (mut found, mut outcome) = (Some(found), None);
    let mut step = |seqno: SeqNo, kind, value: ValueRef<'_>| {
        outcome = found.take().map(|found| found(seqno, kind, value.bytes));
        ControlFlow::Break(())
    };
    let seen = visit_versions(view, key, key::hash(key), snapshot, &mut step)?;
    Ok(match (seen, found) {
        (Seen::Stale, Some(found)) => Answer::Stale(found),
        _ => Answer::Value(outcome),
    })
}

/// A point read under way.
struct Lookup<'a, F, R> {
    tree: &'a Tree,
    key: &'a [u8],
    /// Operands that wait for their base, newest first.
    operands: SmallVec<[Slice; 8]>,
    /// Instead of `operands`: what those add up to, all being numbers.
    sum: Option<(Quick, [u8; 8])>,
    found: Option<F>,
    outcome: Result<Option<R>>,
}

impl<F: FnOnce(ValueRef<'_>) -> R, R> Lookup<'_, F, R> {
    #[inline]
    fn step(&mut self, kind: EntryKind, value: ValueRef<'_>) -> ControlFlow<()> {
        match kind {
            EntryKind::Merge => {
                self.operand(value);
                return ControlFlow::Continue(());
            }
            EntryKind::Put if !self.has_operands() => self.found(value),
            EntryKind::Delete if !self.has_operands() => {}
            EntryKind::Put => self.fold(Some(value.bytes)),
            EntryKind::Delete => self.fold(None),
        }
        ControlFlow::Break(())
    }

    #[inline]
    fn has_operands(&self) -> bool {
        self.sum.is_some() || !self.operands.is_empty()
    }

    /// Takes one more operand, older than those before. Numbers are folded at once, for operators
    /// that do not care for their order.
    #[inline]
    fn operand(&mut self, value: ValueRef<'_>) {
        if let Ok(number) = value.bytes.try_into() {
            if let Some((quick, sum)) = &mut self.sum {
                *sum = quick.fold_numbers(*sum, number);
                return;
            }
            let quick = self.tree.operator_name().and_then(Quick::of_numbers);
            if let Some(quick) = quick.filter(|_| self.operands.is_empty()) {
                self.sum = Some((quick, number));
                return;
            }
        }
        if let Some((_, sum)) = self.sum.take() {
            self.operands.push(Slice::from(&sum[..]));
        }
        self.operands.push(value.to_slice());
    }

    fn found(&mut self, value: ValueRef<'_>) {
        self.outcome = Ok(self.found.take().map(|found| found(value)));
    }

    fn fold(&mut self, base: Option<&[u8]>) {
        if let Some((quick, sum)) = self.sum.take() {
            let folded = match base.map(TryInto::try_into) {
                None => Some(sum),
                Some(Ok(base)) => Some(quick.fold_numbers(base, sum)),
                // The operator will say what is wrong with the base.
                Some(Err(_)) => None,
            };
            if let Some(folded) = folded {
                return self.found(ValueRef { bytes: &folded, owner: None });
            }
            self.operands.push(Slice::from(&sum[..]));
        }
        match fold(self.tree, self.key, base, &self.operands) {
            Ok(Merged::Put(value)) => self.found(ValueRef { bytes: &value, owner: None }),
            Ok(Merged::Delete) => {}
            Err(error) => self.outcome = Err(error),
        }
        self.operands.clear();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// All that the visitor wanted.
    All,
    /// Versions are missing; see [`Stopped::Stale`].
    Stale,
}

/// Visits the versions of `key` that are not newer than `snapshot`, newest first.
#[inline]
fn visit_versions<F>(
    view: &View,
    key: &[u8],
    hash: u64,
    snapshot: SeqNo,
    step: &mut F,
) -> Result<Seen>
where
    F: FnMut(SeqNo, EntryKind, ValueRef<'_>) -> ControlFlow<()>,
{
    let frozen = view.frozen.iter().map(|frozen| &frozen.memtable);
    // An entry that the snapshot sees was in its memtable before the number was read.
    let filled = |memtable: &&Arc<Memtable>| !memtable.is_empty();
    // Their misses overlap.
    frozen.clone().for_each(|memtable| memtable.prefetch(hash));
    for memtable in std::iter::once(&view.active).chain(frozen).filter(filled) {
        match memtable.visit(key, hash, snapshot, step) {
            ControlFlow::Continue(()) => {}
            ControlFlow::Break(Stopped::Enough) => return Ok(Seen::All),
            ControlFlow::Break(Stopped::Stale) => return Ok(Seen::Stale),
        }
    }
    view.version.visit(key, hash, snapshot, step).map(|_| Seen::All)
}

/// Folds operands, newest first, onto `base`.
///
/// # Errors
/// `MergeFailed` if the operator is not known, refuses, or panics.
pub(crate) fn fold(
    tree: &Tree,
    key: &[u8],
    base: Option<&[u8]>,
    newest_first: &[Slice],
) -> Result<Merged> {
    let Some(operator) = tree.operator() else {
        let name = tree.operator_name().unwrap_or("none");
        return Err(merge_failed(key, &format!("merge operator {name:?} is not registered")));
    };
    let oldest_first: SmallVec<[&[u8]; 8]> =
        newest_first.iter().rev().map(|operand| &operand[..]).collect();
    call_operator(&**operator, key, base, &oldest_first)
}

/// Runs a user's operator; a panic in it becomes an error.
fn call_operator(
    operator: &dyn MergeOperator,
    key: &[u8],
    base: Option<&[u8]>,
    operands: &[&[u8]],
) -> Result<Merged> {
    let run = std::panic::AssertUnwindSafe(|| operator.full(key, base, operands));
    match std::panic::catch_unwind(run) {
        Ok(Ok(merged)) => Ok(merged),
        Ok(Err(refusal)) => {
            Err(merge_failed(key, &format!("operator {:?}: {}", operator.name(), refusal.0)))
        }
        Err(_) => Err(merge_failed(key, &format!("operator {:?} panicked", operator.name()))),
    }
}

#[cold]
fn merge_failed(key: &[u8], why: &str) -> Error {
    Error::new(ErrorKind::MergeFailed { key: key.to_vec() }).context(why)
}
