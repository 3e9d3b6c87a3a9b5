//! Which tokens were committed lately: a filter in memory that spares most idempotent commits to look
//! for theirs.
//!
//! Nearly every event is new, and to see that, memtables and the filter of a table in every run had to
//! be asked: some five cache misses that wait for each other. Here it is one, of a line that has the
//! bits of a token:
//!
//! ```text
//! token --hash--> line of 512 bits --hash--> 6 of its bits; all set: perhaps, else: never
//! ```
//!
//! 1. Every token with a number above [`Recent::since`] is in the filter, before its commit takes a
//!    place. So of a token that it does not know, there is no entry above that number.
//! 2. There are two generations. When the newer one is full the older one is forgotten, and `since`
//!    becomes the number up to which the newer one does not know all.
//! 3. Commits hold a read lock from before they are noted until they are published, and generations
//!    are changed under the write lock, so the tokens of a generation that is forgotten are all up to
//!    the number that was visible when the next one was begun. Nobody waits for the write lock: it is
//!    only tried.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};

use crate::key::SeqNo;

/// With 6 bits of 16 a token, and tokens spread unevenly over lines, 1 of 500 is taken for known.
const BITS_PER_TOKEN: usize = 16;
const BITS_SET: u32 = 6;
const LINE_WORDS: usize = 8;

/// A line of the processor's cache.
#[repr(align(64))]
#[derive(Default)]
struct Line([AtomicU64; LINE_WORDS]);

/// See the module's comment.
pub(crate) struct Recent {
    generations: RwLock<Generations>,
    line_count: usize,
    /// Tokens in the newer generation.
    count: AtomicU64,
}

struct Generations {
    older: Box<[Line]>,
    newer: Box<[Line]>,
    /// Every token above this number is in one of them.
    since: SeqNo,
    /// Every token above this number is in the newer one.
    newer_since: SeqNo,
}

/// The filter as long as a commit is under way.
pub(crate) struct Noting<'a>(RwLockReadGuard<'a, Generations>);

impl Recent {
    /// A filter of about so many bytes, for tokens above `since`.
    pub fn new(bytes: usize, since: SeqNo) -> Recent {
        let line_count = (bytes / 2 / size_of::<Line>()).max(1);
        let generations = Generations {
            older: lines(line_count),
            newer: lines(line_count),
            since,
            newer_since: since,
        };
        Recent { generations: RwLock::new(generations), line_count, count: AtomicU64::new(0) }
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        2 * self.line_count * size_of::<Line>()
    }

    /// Begins to note a token. Keep it until the commit is published, or has failed.
    pub fn noting(&self) -> Noting<'_> {
        Noting(self.generations.read())
    }

    /// Notes that one more token is in, and forgets the oldest if there are too many; `visible` is a
    /// number that no token of a commit that begins from now on has.
    pub fn noted(&self, visible: impl FnOnce() -> SeqNo) {
        let capacity = (self.line_count * LINE_WORDS * 64 / BITS_PER_TOKEN) as u64;
        if self.count.fetch_add(1, Ordering::Relaxed) < capacity {
            return;
        }
        let Some(mut generations) = self.generations.try_write() else { return };
        if self.count.load(Ordering::Relaxed) < capacity {
            return;
        }
        self.count.store(0, Ordering::Relaxed);
        let Generations { older, newer, since, newer_since } = &mut *generations;
        std::mem::swap(older, newer);
        newer.iter_mut().flat_map(|line| &mut line.0).for_each(|word| *word.get_mut() = 0);
        *since = *newer_since;
        *newer_since = visible();
    }
}

fn lines(count: usize) -> Box<[Line]> {
    (0..count).map(|_| Line::default()).collect()
}

impl Noting<'_> {
    /// Every token above this number is known.
    pub fn since(&self) -> SeqNo {
        self.0.since
    }

    /// False if there surely is no token of this hash above [`Noting::since`]. Load the number up to
    /// which that is asked for before this.
    pub fn may_know(&self, hash: u64) -> bool {
        let has_all = |generation: &[Line]| {
            let line = &generation[line(hash, generation.len())];
            bits(hash).all(|(word, bit)| line.0[word].load(Ordering::Acquire) & bit != 0)
        };
        has_all(&self.0.newer) || has_all(&self.0.older)
    }

    /// Notes a token, before its commit takes a place.
    pub fn note(&self, hash: u64) {
        let line = &self.0.newer[line(hash, self.0.newer.len())];
        for (word, bit) in bits(hash) {
            line.0[word].fetch_or(bit, Ordering::AcqRel);
        }
    }
}

/// By the upper half of the hash.
fn line(hash: u64, count: usize) -> usize {
    ((u128::from(hash) * count as u128) >> 64) as usize
}

/// By the lower 54 bits, 9 for each.
fn bits(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    (0..BITS_SET).map(move |index| {
        let bit = (hash >> (9 * index)) & 511;
        ((bit >> 6) as usize, 1 << (bit & 63))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::hash;

    fn token(number: u64) -> u64 {
        hash(&number.to_le_bytes())
    }

    /// Commits token `number` with that number.
    fn commit(recent: &Recent, number: u64) {
        {
            let noting = recent.noting();
            noting.note(token(number));
        }
        recent.noted(|| SeqNo(number));
    }

    #[test]
    fn what_is_above_since_is_known_and_little_else() {
        let recent = Recent::new(64 << 10, SeqNo(0));
        assert_eq!(recent.bytes(), 64 << 10);
        let mut since = SeqNo(0);
        for number in 1..100_000 {
            since = since.max(recent.noting().since());
            commit(&recent, number);
            if number % 1000 == 0 {
                let noting = recent.noting();
                let all = noting.since().0 + 1..=number;
                assert!(all.clone().all(|number| noting.may_know(token(number))), "{all:?}");
                assert!(number - noting.since().0 <= 2 * (32 << 10) * 8 / 16, "it is forgotten");
            }
        }
        assert!(since.0 > 50_000);
        let noting = recent.noting();
        let wrong = (1 << 32..(1 << 32) + 100_000).filter(|number| noting.may_know(token(*number)));
        let wrong = wrong.count();
        assert!((1..1500).contains(&wrong), "{wrong} of 100,000 are taken for known");
    }

    #[test]
    fn nothing_is_forgotten_while_a_commit_is_under_way() {
        let recent = Recent::new(128, SeqNo(5));
        let under_way = recent.noting();
        under_way.note(token(1));
        (2..200).for_each(|number| commit(&recent, number));
        assert!(under_way.may_know(token(1)));
        assert_eq!(under_way.since(), SeqNo(5));
        drop(under_way);
        (200..300).for_each(|number| commit(&recent, number));
        assert!(recent.noting().since() > SeqNo(5));
    }
}
