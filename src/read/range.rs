//! A range of keys.

use std::ops::{Bound, RangeBounds};

/// A range of keys, owned.
#[derive(Clone, Debug)]
pub(crate) struct KeyRange {
    pub lower: Bound<Vec<u8>>,
    pub upper: Bound<Vec<u8>>,
}

impl KeyRange {
    pub fn all() -> KeyRange {
        KeyRange { lower: Bound::Unbounded, upper: Bound::Unbounded }
    }

    pub fn new<K: AsRef<[u8]>>(range: impl RangeBounds<K>) -> KeyRange {
        let own = |bound: Bound<&K>| bound.map(|key| key.as_ref().to_vec());
        KeyRange { lower: own(range.start_bound()), upper: own(range.end_bound()) }
    }

    /// The keys that begin with `prefix`.
    pub fn prefix(prefix: &[u8]) -> KeyRange {
        let mut after = prefix.to_vec();
        while let Some(last) = after.last_mut() {
            if *last < 0xff {
                *last += 1;
                break;
            }
            after.pop();
        }
        let upper = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) };
        KeyRange { lower: Bound::Included(prefix.to_vec()), upper }
    }

    pub fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        (self.lower.as_ref().map(Vec::as_slice), self.upper.as_ref().map(Vec::as_slice))
    }

    /// What all keys of the range begin with.
    pub fn common_prefix(&self) -> Vec<u8> {
        let (Bound::Included(lower) | Bound::Excluded(lower)) = &self.lower else { return vec![] };
        let (Bound::Included(upper) | Bound::Excluded(upper)) = &self.upper else { return vec![] };
        let common = lower.iter().zip(upper).take_while(|(a, b)| a == b).count();
        lower[..common].to_vec()
    }

    pub fn is_below_upper(&self, key: &[u8]) -> bool {
        match &self.upper {
            Bound::Unbounded => true,
            Bound::Included(upper) => key <= upper.as_slice(),
            Bound::Excluded(upper) => key < upper.as_slice(),
        }
    }

    pub fn is_above_lower(&self, key: &[u8]) -> bool {
        match &self.lower {
            Bound::Unbounded => true,
            Bound::Included(lower) => key >= lower.as_slice(),
            Bound::Excluded(lower) => key > lower.as_slice(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_range_begin_alike() {
        let common = |range: std::ops::Range<&str>| KeyRange::new(range).common_prefix();
        assert_eq!(common("a:b".."a:c"), b"a:");
        assert_eq!(common("a:".."a;"), b"a");
        assert_eq!(KeyRange::new("a".."b").common_prefix(), b"");
        assert_eq!(KeyRange::new("a"..).common_prefix(), b"");
    }

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(KeyRange::prefix(b"ab").upper, Bound::Excluded(b"ac".to_vec()));
        assert_eq!(KeyRange::prefix(b"a\xff\xff").upper, Bound::Excluded(b"b".to_vec()));
        assert_eq!(KeyRange::prefix(b"\xff").upper, Bound::Unbounded);
        assert_eq!(KeyRange::prefix(b"").upper, Bound::Unbounded);
    }
}
