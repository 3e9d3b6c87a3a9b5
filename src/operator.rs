//! Merge operators: how the operands of `merge` become a value.
//!
//! An operator folds operands that were written separately, oldest first, onto the value before
//! them. It must be a pure function: it runs at reads and in compactions, in any grouping that
//! [`MergeOperator::partial`] allows, and again after every restart. Its name is persisted with
//! the keyspace and checked at open.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

/// What a full merge leaves of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merged {
    /// The key has this value.
    Put(Vec<u8>),
    /// The key has no value.
    Delete,
}

/// Why an operator refuses operands; it becomes `ErrorKind::MergeFailed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeError(pub String);

/// How the operands of a keyspace are folded. See the module's comment for the laws.
pub trait MergeOperator: Send + Sync + 'static {
    /// The persisted name. Change it whenever the meaning of the operands changes.
    fn name(&self) -> &str;

    /// Checks an operand when it is written, so that a bad one never gets in.
    ///
    /// # Errors
    /// What is wrong with it; the write then fails with `InvalidArgument`.
    fn check(&self, operand: &[u8]) -> Result<(), MergeError> {
        let _ = operand;
        Ok(())
    }

    /// Folds `operands`, oldest first, onto `base`, the value before them if there is one.
    ///
    /// # Errors
    /// The read of this key then fails with `MergeFailed`; a compaction copies the operands
    /// through, so that nothing is lost.
    fn full(
        &self,
        key: &[u8],
        base: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> Result<Merged, MergeError>;

    /// Folds `operands`, oldest first, at least two, into one that has the same effect on any
    /// base, or `None` if that cannot be done. The default never does.
    fn partial(&self, key: &[u8], operands: &[&[u8]]) -> Option<Vec<u8>> {
        let _ = (key, operands);
        None
    }

    /// True if operands have the same effect in any order and any grouping, and what
    /// [`MergeOperator::full`] makes of some of them without a base is an operand with their effect. Then
    /// a hot key can be spread over several: see `HotCounters`. The default says no.
    fn folds_in_any_order(&self) -> bool {
        false
    }
}

impl fmt::Debug for dyn MergeOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MergeOperator({})", self.name())
    }
}

/// An operand as bytes. Integers become 8 bytes little-endian, as the built-in operators take
/// them; anything that is bytes already stays as it is.
pub struct Operand<'a>(Repr<'a>);

enum Repr<'a> {
    Number([u8; 8]),
    Bytes(&'a [u8]),
}

impl Operand<'_> {
    /// The operand's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Number(bytes) => bytes,
            Repr::Bytes(bytes) => bytes,
        }
    }
}

impl From<i64> for Operand<'_> {
    fn from(value: i64) -> Self {
        Operand(Repr::Number(value.to_le_bytes()))
    }
}

impl<'a> From<&'a [u8]> for Operand<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Operand(Repr::Bytes(bytes))
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Operand<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Operand(Repr::Bytes(bytes))
    }
}

impl<'a> From<&'a Vec<u8>> for Operand<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Operand(Repr::Bytes(bytes))
    }
}

impl<'a> From<&'a str> for Operand<'a> {
    fn from(text: &'a str) -> Self {
        Operand(Repr::Bytes(text.as_bytes()))
    }
}

/// Reads a value or operand of the number operators.
fn number(bytes: &[u8]) -> Result<i64, MergeError> {
    match bytes.try_into() {
        Ok(bytes) => Ok(i64::from_le_bytes(bytes)),
        Err(_) => Err(MergeError(format!("a number has 8 bytes, this has {}", bytes.len()))),
    }
}

/// What a counter does when the sum does not fit an i64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Overflow {
    #[default]
    Wrap,
    Saturate,
    Fail,
}

/// Adds i64 operands to an i64 value (8 bytes little-endian; a missing value is 0).
///
/// [`Counter::default`] wraps around at the ends of i64; see also [`Counter::saturating`] and
/// [`Counter::checked`]. A value that was `put` with another length makes reads fail.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counter {
    overflow: Overflow,
}

impl Counter {
    /// Wraps around at the ends of i64. The same as `Counter::default()`.
    #[must_use]
    pub const fn wrapping() -> Counter {
        Counter { overflow: Overflow::Wrap }
    }

    /// Stops at the ends of i64. Each operand is applied to the running value in turn, so
    /// operands of mixed sign are not folded ahead of the base.
    #[must_use]
    pub const fn saturating() -> Counter {
        Counter { overflow: Overflow::Saturate }
    }

    /// Fails the read of a key whose sum leaves i64.
    #[must_use]
    pub const fn checked() -> Counter {
        Counter { overflow: Overflow::Fail }
    }

    /// The number in a counter's value, or `None` if it is not 8 bytes long.
    #[must_use]
    pub fn decode(value: &[u8]) -> Option<i64> {
        number(value).ok()
    }
}

impl MergeOperator for Counter {
    fn name(&self) -> &str {
        match self.overflow {
            Overflow::Wrap => "esker.counter.wrapping",
            Overflow::Saturate => "esker.counter.saturating",
            Overflow::Fail => "esker.counter.checked",
        }
    }

    fn check(&self, operand: &[u8]) -> Result<(), MergeError> {
        number(operand).map(|_| ())
    }

    fn full(
        &self,
        _: &[u8],
        base: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> Result<Merged, MergeError> {
        let start = base.map_or(Ok(0), number)?;
        let sum = match self.overflow {
            Overflow::Wrap => {
                let add = |sum: i64, op: &&[u8]| Ok(sum.wrapping_add(number(op)?));
                operands.iter().try_fold(start, add)?
            }
            Overflow::Saturate => {
                let add = |sum: i64, op: &&[u8]| Ok(sum.saturating_add(number(op)?));
                operands.iter().try_fold(start, add)?
            }
            Overflow::Fail => {
                // Summed in 128 bits, so that only the result has to fit: the outcome then does
                // not depend on how compactions grouped the operands.
                let add = |sum: i128, op: &&[u8]| Ok(sum + i128::from(number(op)?));
                let sum = operands.iter().try_fold(i128::from(start), add)?;
                i64::try_from(sum).map_err(|_| MergeError(format!("{sum} does not fit an i64")))?
            }
        };
        Ok(Merged::Put(sum.to_le_bytes().to_vec()))
    }

    fn partial(&self, _: &[u8], operands: &[&[u8]]) -> Option<Vec<u8>> {
        let mut sum = 0i64;
        let mut sign = 0i64;
        for operand in operands {
            let operand = number(operand).ok()?;
            match self.overflow {
                Overflow::Wrap => sum = sum.wrapping_add(operand),
                Overflow::Fail => sum = sum.checked_add(operand)?,
                Overflow::Saturate => {
                    // Saturating addition is associative only among operands of one sign.
                    if sign * operand.signum() < 0 {
                        return None;
                    }
                    sign = if sign == 0 { operand.signum() } else { sign };
                    sum = sum.checked_add(operand)?;
                }
            }
        }
        Some(sum.to_le_bytes().to_vec())
    }

    /// Only where sums wrap around: a part of the operands may leave i64 though all together do not.
    fn folds_in_any_order(&self) -> bool {
        self.overflow == Overflow::Wrap
    }
}

/// Keeps the largest i64 (8 bytes little-endian).
#[derive(Clone, Copy, Debug, Default)]
pub struct Max;

/// Keeps the smallest i64 (8 bytes little-endian).
#[derive(Clone, Copy, Debug, Default)]
pub struct Min;

fn extreme(
    base: Option<&[u8]>,
    operands: &[&[u8]],
    pick: fn(i64, i64) -> i64,
) -> Result<i64, MergeError> {
    let mut values = base.into_iter().chain(operands.iter().copied()).map(number);
    let first = values.next().unwrap_or_else(|| Err(MergeError("no operands".into())))?;
    values.try_fold(first, |best, value| Ok(pick(best, value?)))
}

impl MergeOperator for Max {
    fn name(&self) -> &str {
        "esker.max"
    }

    fn check(&self, operand: &[u8]) -> Result<(), MergeError> {
        number(operand).map(|_| ())
    }

    fn full(
        &self,
        _: &[u8],
        base: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> Result<Merged, MergeError> {
        extreme(base, operands, i64::max).map(|value| Merged::Put(value.to_le_bytes().to_vec()))
    }

    fn partial(&self, _: &[u8], operands: &[&[u8]]) -> Option<Vec<u8>> {
        extreme(None, operands, i64::max).ok().map(|value| value.to_le_bytes().to_vec())
    }

    fn folds_in_any_order(&self) -> bool {
        true
    }
}

impl MergeOperator for Min {
    fn name(&self) -> &str {
        "esker.min"
    }

    fn check(&self, operand: &[u8]) -> Result<(), MergeError> {
        number(operand).map(|_| ())
    }

    fn full(
        &self,
        _: &[u8],
        base: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> Result<Merged, MergeError> {
        extreme(base, operands, i64::min).map(|value| Merged::Put(value.to_le_bytes().to_vec()))
    }

    fn partial(&self, _: &[u8], operands: &[&[u8]]) -> Option<Vec<u8>> {
        extreme(None, operands, i64::min).ok().map(|value| value.to_le_bytes().to_vec())
    }

    fn folds_in_any_order(&self) -> bool {
        true
    }
}

/// Appends each operand to the value, with nothing in between.
#[derive(Clone, Copy, Debug, Default)]
pub struct Append;

impl MergeOperator for Append {
    fn name(&self) -> &str {
        "esker.append"
    }

    fn full(
        &self,
        _: &[u8],
        base: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> Result<Merged, MergeError> {
        Ok(Merged::Put([base.unwrap_or_default(), &operands.concat()].concat()))
    }

    fn partial(&self, _: &[u8], operands: &[&[u8]]) -> Option<Vec<u8>> {
        Some(operands.concat())
    }
}

/// The built-in operator with this persisted name.
#[must_use]
pub fn built_in(name: &str) -> Option<Arc<dyn MergeOperator>> {
    let all: [Arc<dyn MergeOperator>; 6] = [
        Arc::new(Counter::wrapping()),
        Arc::new(Counter::saturating()),
        Arc::new(Counter::checked()),
        Arc::new(Max),
        Arc::new(Min),
        Arc::new(Append),
    ];
    all.into_iter().find(|operator| operator.name() == name)
}

/// How operands of a built-in operator fold where they are: the sum of what `partial` does, without
/// its allocation. No user's code, so it may run under a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quick {
    Add,
    Max,
    Min,
    Append,
}

impl Quick {
    /// For the operator of this name, if every two of its operands fold into one.
    pub fn of(name: &str) -> Option<Quick> {
        match name {
            "esker.counter.wrapping" => Some(Quick::Add),
            "esker.max" => Some(Quick::Max),
            "esker.min" => Some(Quick::Min),
            "esker.append" => Some(Quick::Append),
            _ => None,
        }
    }

    /// The same, if its operands are numbers; then their order does not matter.
    #[inline]
    pub fn of_numbers(name: &str) -> Option<Quick> {
        Quick::of(name).filter(|quick| *quick != Quick::Append)
    }

    /// True if the operator takes this operand.
    #[inline]
    pub fn takes(self, operand: &[u8]) -> bool {
        self == Quick::Append || operand.len() == 8
    }

    /// Folds an operand that it takes into one that it took before.
    #[inline]
    pub fn fold(self, pending: &mut SmallVec<[u8; 16]>, operand: &[u8]) {
        if self == Quick::Append {
            return pending.extend_from_slice(operand);
        }
        let number = |bytes: &[u8]| bytes.try_into().expect("it was taken");
        let folded = self.fold_numbers(number(pending), number(operand));
        pending.copy_from_slice(&folded);
    }

    /// Folds two operands, or an operand and the value before it, of an operator of numbers: in
    /// whatever order.
    #[inline]
    pub fn fold_numbers(self, a: [u8; 8], b: [u8; 8]) -> [u8; 8] {
        let (a, b) = (i64::from_le_bytes(a), i64::from_le_bytes(b));
        let folded = match self {
            Quick::Add => a.wrapping_add(b),
            Quick::Max => a.max(b),
            Quick::Min => a.min(b),
            Quick::Append => unreachable!("appends bytes"),
        };
        folded.to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(operator: &dyn MergeOperator, base: Option<i64>, operands: &[i64]) -> Option<i64> {
        let base = base.map(i64::to_le_bytes);
        let operands: Vec<_> = operands.iter().map(|op| op.to_le_bytes()).collect();
        let operands: Vec<&[u8]> = operands.iter().map(|op| &op[..]).collect();
        match operator.full(b"k", base.as_ref().map(|b| &b[..]), &operands) {
            Ok(Merged::Put(value)) => Counter::decode(&value),
            _ => None,
        }
    }

    #[test]
    fn counters_differ_at_the_ends_of_i64() {
        let max = i64::MAX;
        assert_eq!(full(&Counter::wrapping(), Some(max), &[1]), Some(i64::MIN));
        assert_eq!(full(&Counter::saturating(), Some(max), &[1, -1]), Some(max - 1));
        assert_eq!(full(&Counter::checked(), Some(max), &[1]), None);
        assert_eq!(full(&Counter::checked(), Some(max), &[1, -1]), Some(max));
        assert_eq!(full(&Counter::default(), None, &[2, 3]), Some(5));
        assert_eq!(full(&Max, Some(2), &[7, 3]), Some(7));
        assert_eq!(full(&Min, None, &[7, 3]), Some(3));
    }

    /// The law that lets compactions group operands as they like.
    #[test]
    fn a_partial_fold_never_changes_the_outcome() {
        let numbers = [i64::MIN, i64::MIN + 1, -5, -1, 0, 1, 5, i64::MAX - 1, i64::MAX];
        let mut rng = fastrand::Rng::with_seed(7);
        for name in ["wrapping", "saturating", "checked"].map(|n| format!("esker.counter.{n}")) {
            let operator = built_in(&name).unwrap();
            for _ in 0..20_000 {
                let mut pick = || numbers[rng.usize(..numbers.len())].to_le_bytes();
                let (base, ops) = (pick(), [pick(), pick(), pick()]);
                let ops: Vec<&[u8]> = ops.iter().map(|op| &op[..]).collect();
                let whole = operator.full(b"k", Some(&base), &ops);
                if let Some(folded) = operator.partial(b"k", &ops[..2]) {
                    let grouped = operator.full(b"k", Some(&base), &[&folded, ops[2]]);
                    assert_eq!(whole.ok(), grouped.ok(), "{name} {base:?} {ops:?}");
                }
            }
        }
    }

    #[test]
    fn operands_of_another_length_are_refused_when_written() {
        assert!(Counter::default().check(b"1").is_err());
        assert!(Max.check(&7i64.to_le_bytes()).is_ok());
        assert!(Append.check(b"anything").is_ok());
        assert_eq!(Append.partial(b"k", &[b"a", b"b"]), Some(b"ab".to_vec()));
        assert!(built_in("esker.nothing").is_none());
    }

    #[test]
    fn folding_in_place_is_folding() {
        let operators: [Arc<dyn MergeOperator>; 6] = [
            Arc::new(Counter::wrapping()),
            Arc::new(Counter::saturating()),
            Arc::new(Counter::checked()),
            Arc::new(Max),
            Arc::new(Min),
            Arc::new(Append),
        ];
        for operator in operators {
            let Some(quick) = Quick::of(operator.name()) else {
                assert!(operator.name().starts_with("esker.counter"), "{}", operator.name());
                continue;
            };
            let operands = [i64::MAX, 1, -7, 0, i64::MIN].map(i64::to_le_bytes);
            let mut folded = SmallVec::from_slice(&operands[0]);
            for operand in &operands[1..] {
                assert!(quick.takes(operand) && operator.check(operand).is_ok());
                let expected = operator.partial(b"k", &[&folded, operand]).unwrap();
                quick.fold(&mut folded, operand);
                assert_eq!(folded[..], expected, "{}", operator.name());
            }
            assert_eq!(quick.takes(b"short"), operator.check(b"short").is_ok());
        }
    }
}
