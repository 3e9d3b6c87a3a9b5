//! Stamps: which keys were written since a moment, roughly and without asking writers to wait.
//!
//! A conditional commit reads keys, and may be committed only if nobody wrote them between the
//! read and its own place in the order. Plain writers take no latch for that. Instead every key
//! belongs to one of [`STRIPE_COUNT`] stripes, and a commit stamps the stripes of its keys with
//! its last sequence number, under the commit lock that it holds anyway:
//!
//! ```text
//!   conditional:  v = visible;  read the keys at v        lock: every stripe <= v ?  yes: commit
//!   plain:                            lock: stripe(k) = s                             no: look anew
//! ```
//!
//! - A commit that the read at `v` does not see has a number above `v`, so its stamp shows it.
//!   Two keys that share a stripe cost a second look, never a wrong answer.
//! - Stamps only grow, and are written and checked under the commit lock: no other order is needed.
//! - Plain writers stamp from the first guarded commit of a session on ([`Stamps::turn_on`]); before
//!   that they pay one load. Writers of tokens stamp always: nobody else writes those keys.

use std::sync::atomic::{AtomicU64, Ordering};

use smallvec::SmallVec;

use crate::batch::{Operations, Payload};
use crate::key::{self, KeyspaceId, SeqNo};
use crate::table::filter::prefetch;

/// 64 KiB of stamps: they stay in the second-level cache, and at a million plain writes a second a
/// look of 2 µs meets a stranger's stamp once in 4,000 times.
const STRIPE_COUNT: usize = 8192;

/// A stripe of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stripe(u16);

impl Stripe {
    /// The stripe of a key.
    #[inline]
    pub fn of(keyspace: KeyspaceId, key: &[u8]) -> Stripe {
        Stripe::of_hash(keyspace, key::hash(key))
    }

    /// The stripe of a key with this hash.
    #[inline]
    pub fn of_hash(keyspace: KeyspaceId, hash: u64) -> Stripe {
        let mixed = hash ^ u64::from(keyspace.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Stripe((mixed % STRIPE_COUNT as u64) as u16)
    }
}

/// Stripes of a commit.
pub(crate) type Stripes = SmallVec<[Stripe; 8]>;

/// What a commit rests on: it may take its place only if nobody wrote these stripes since.
#[derive(Debug, Default)]
pub(crate) struct Check {
    /// Stripes that were read, each with the moment of the read.
    pub read: SmallVec<[(Stripe, SeqNo); 4]>,
    /// Stripes that the commit writes and that plain commits never write.
    pub written: SmallVec<[Stripe; 2]>,
}

/// See the module's comment.
pub(crate) struct Stamps {
    /// Commits from this number on stamp their keys; 0 while none has to.
    since: AtomicU64,
    stripes: Box<[AtomicU64]>,
}

impl Default for Stamps {
    fn default() -> Stamps {
        let stripes = (0..STRIPE_COUNT).map(|_| AtomicU64::new(0)).collect();
        Stamps { since: AtomicU64::new(0), stripes }
    }
}

impl Stamps {
    /// The first number from which on commits stamp their keys, if they do.
    #[inline]
    pub fn since(&self) -> Option<SeqNo> {
        let since = self.since.load(Ordering::Acquire);
        (since > 0).then_some(SeqNo(since))
    }

    /// Every commit from `next` on stamps its keys. Call it under the commit lock.
    pub fn turn_on(&self, next: SeqNo) {
        let _ = self.since.compare_exchange(0, next.0, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// The stripes of the keys of a commit.
    pub fn stripes_of(commit: &Payload<'_>) -> Stripes {
        let operations = Operations::new(commit.bytes()).expect("encoded by ourselves");
        let stripe =
            |operation: crate::batch::Operation<'_>| Stripe::of(operation.keyspace, operation.key);
        operations.map(|operation| stripe(operation.expect("encoded by ourselves"))).collect()
    }

    /// Begins to load the stamp of a stripe.
    #[inline]
    pub fn prefetch(&self, stripe: Stripe) {
        prefetch(&self.stripes, usize::from(stripe.0));
    }

    /// True if nobody wrote what was read. Call it under the commit lock.
    pub fn holds(&self, check: &Check) -> bool {
        check.read.iter().all(|(stripe, read_at)| self.last(*stripe) <= *read_at)
    }

    /// Notes what a commit writes. Call it under the commit lock.
    #[inline]
    pub fn stamp(&self, stripes: &[Stripe], last_seqno: SeqNo) {
        for stripe in stripes {
            self.stripes[usize::from(stripe.0)].store(last_seqno.0, Ordering::Relaxed);
        }
    }

    /// The newest commit that wrote anything of what was read.
    pub fn newest(&self, check: &Check) -> SeqNo {
        let stamps = check.read.iter().map(|(stripe, _)| self.last(*stripe));
        stamps.max().unwrap_or(SeqNo::ZERO)
    }

    fn last(&self, stripe: Stripe) -> SeqNo {
        SeqNo(self.stripes[usize::from(stripe.0)].load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::BatchBuilder;

    #[test]
    fn a_check_holds_until_one_of_its_stripes_is_written_later() {
        let stamps = Stamps::default();
        let stripe = |key: &str| Stripe::of(KeyspaceId(3), key.as_bytes());
        let mut check = Check::default();
        check.read.push((stripe("a"), SeqNo(10)));
        check.read.push((stripe("b"), SeqNo(20)));
        stamps.stamp(&[stripe("a")], SeqNo(10));
        stamps.stamp(&[stripe("b"), stripe("c")], SeqNo(20));
        assert!(stamps.holds(&check), "what was written is what was read");
        assert_eq!(stamps.newest(&check), SeqNo(20));
        stamps.stamp(&[stripe("a")], SeqNo(11));
        assert!(!stamps.holds(&check));
    }

    #[test]
    fn every_key_of_a_commit_is_stamped_and_keyspaces_are_told_apart() {
        let mut builder = BatchBuilder::new();
        builder.put(KeyspaceId(0), b"k", b"v");
        builder.delete(KeyspaceId(1), b"k");
        builder.merge(KeyspaceId(0), b"l", b"1");
        let stripes = Stamps::stripes_of(&builder.finish());
        let expected = [(0, "k"), (1, "k"), (0, "l")]
            .map(|(id, key)| Stripe::of(KeyspaceId(id), key.as_bytes()));
        assert_eq!(stripes[..], expected);
        assert_ne!(expected[0], expected[1]);
    }

    #[test]
    fn it_is_turned_on_once() {
        let stamps = Stamps::default();
        assert_eq!(stamps.since(), None);
        stamps.turn_on(SeqNo(7));
        stamps.turn_on(SeqNo(9));
        assert_eq!(stamps.since(), Some(SeqNo(7)));
    }
}
