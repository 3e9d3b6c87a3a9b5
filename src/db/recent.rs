//! Which tokens were committed lately: a filter in memory that spares most idempotent commits to look
//! for theirs.
//!
//! Nearly every event is new, and to see that, memtables and the filter of a table in every run had to
//! be asked: some five cache misses that wait for each other. Here it is one, of a line that has the
//! bits of a token:
//!
//! ```text
//! token --hash--> line of 512 bits, half of it for each generation
//!                   --hash--> 3 bits in each of 2 of the 4 words of a half; all set: perhaps, else: never
//! ```
//!
//! 1. Every token with a number above [`Noting::since`] is in the filter, before its commit takes a
//!    place. So of a token that it does not know, there is no entry above that number.
//! 2. There are two generations, side by side in each line, so that both are one miss. When the newer one is full the older one is forgotten, and `since`
//!    becomes the number up to which the newer one does not know all.
//! 3. Commits hold a read lock from before they are noted until they are published, and generations
//!    are changed under the write lock, so the tokens of a generation that is forgotten are all up to
//!    the number that was visible when the next one was begun. Nobody waits for the write lock: it is
//!    only tried.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};

use crate::key::SeqNo;
use crate::memtable::Words;
use crate::table::filter::prefetch;

/// With 6 bits of 16 a token, 1 of 500 is taken for known. In two words, not anywhere in the line: a
/// token is noted by two atomic operations.
const BITS_PER_TOKEN: usize = 16;
/// A line of the processor's cache.
const LINE_WORDS: usize = 8;
/// Words of a line that each of the generations has.
const HALF_WORDS: usize = LINE_WORDS / 2;

/// See the module's comment.
pub(crate) struct Recent {
    words: Words,
    generations: RwLock<Generations>,
    /// Tokens in the newer generation.
    count: AtomicU64,
}

struct Generations {
    /// Which half of the lines is the newer one.
    newer: usize,
    /// Every token above this number is in one of them.
    since: SeqNo,
    /// Every token above this number is in the newer one.
    newer_since: SeqNo,
}

/// The filter as long as a commit is under way.
pub(crate) struct Noting<'a> {
    words: &'a Words,
    generations: RwLockReadGuard<'a, Generations>,
}

impl Recent {
    /// A filter of about so many bytes, for tokens above `since`.
    pub fn new(bytes: usize, since: SeqNo) -> Recent {
        let words = Words::new((bytes / size_of::<[u64; LINE_WORDS]>()).max(1) * LINE_WORDS);
        let generations = Generations { newer: 0, since, newer_since: since };
        Recent { words, generations: RwLock::new(generations), count: AtomicU64::new(0) }
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.words)
    }

    /// Begins to load what will be looked at for a token of this hash.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.words, line(&self.words, hash).start);
    }

    /// Begins to note a token. Keep it until the commit is published, or has failed.
    pub fn noting(&self) -> Noting<'_> {
        Noting { words: &self.words, generations: self.generations.read() }
    }

    /// Notes that one more token is in, and forgets the oldest if there are too many; `visible` is a
    /// number that no token of a commit that begins from now on has.
    pub fn noted(&self, visible: impl FnOnce() -> SeqNo) {
        let capacity = (self.words.len() / 2 * 64 / BITS_PER_TOKEN) as u64;
        if self.count.fetch_add(1, Ordering::Relaxed) < capacity {
            return;
        }
        let Some(mut generations) = self.generations.try_write() else { return };
        if self.count.load(Ordering::Relaxed) < capacity {
            return;
        }
        self.count.store(0, Ordering::Relaxed);
        let Generations { newer, since, newer_since } = &mut *generations;
        *newer = 1 - *newer;
        let halves = self.words.chunks(HALF_WORDS).skip(*newer).step_by(2);
        halves.flatten().for_each(|word| word.store(0, Ordering::Relaxed));
        *since = *newer_since;
        *newer_since = visible();
    }
}

impl Noting<'_> {
    /// Every token above this number is known.
    pub fn since(&self) -> SeqNo {
        self.generations.since
    }

    /// False if there surely is no token of this hash above [`Noting::since`]. Load the number up to
    /// which that is asked for before this.
    pub fn may_know(&self, hash: u64) -> bool {
        let line = &self.words[line(self.words, hash)];
        let (older, newer) = line.split_at(HALF_WORDS);
        let has = |half: &[AtomicU64]| {
            let has =
                |(word, bits): (usize, u64)| half[word].load(Ordering::Acquire) & bits == bits;
            bits(hash).into_iter().all(has)
        };
        has(older) || has(newer)
    }

    /// Notes a token, before its commit takes a place.
    pub fn note(&self, hash: u64) {
        let line = &self.words[line(self.words, hash)];
        let half = &line[self.generations.newer * HALF_WORDS..][..HALF_WORDS];
        for (word, bits) in bits(hash) {
            half[word].fetch_or(bits, Ordering::AcqRel);
        }
    }
}

/// The line of a token, by the upper half of its hash.
fn line(words: &[AtomicU64], hash: u64) -> Range<usize> {
    let count = words.len() / LINE_WORDS;
    let index = ((u128::from(hash) * count as u128) >> 64) as usize;
    index * LINE_WORDS..(index + 1) * LINE_WORDS
}

/// Words of half a line and bits of them, by the lower 38 bits of the hash: one of the first two words and
/// one of the others, and 6 bits for each of its three.
fn bits(hash: u64) -> [(usize, u64); 2] {
    let bit = |shift: u32| 1 << (hash >> shift & 63);
    let first = (hash >> 36 & 1) as usize;
    let second = HALF_WORDS / 2 + (hash >> 37 & 1) as usize;
    [(first, bit(0) | bit(6) | bit(12)), (second, bit(18) | bit(24) | bit(30))]
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
