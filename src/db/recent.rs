//! Which tokens were committed lately: a filter in memory that spares most idempotent commits to look
//! for theirs.
//!
//! Nearly every event is new, and to see that, memtables and the filter of a table in every run had to
//! be asked: some five cache misses that wait for each other. Here it is one, of a line that has the
//! bits of a token:
//!
//! ```text
//! token --hash--> line of 512 bits --hash--> 3 bits in each of 2 of its 8 words;
//!                                            all set: perhaps, else: never
//! ```
//!
//! 1. Every token with a number above [`Noting::since`] is in the filter, before its commit takes a
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
use crate::table::filter::prefetch;

/// With 6 bits of 16 a token, 1 of 500 is taken for known. In two words, not anywhere in the line: a
/// token is noted by two atomic operations.
const BITS_PER_TOKEN: usize = 16;
const LINE_WORDS: usize = 8;

/// A line of the processor's cache.
#[repr(align(64))]
#[derive(Default)]
struct Line([AtomicU64; LINE_WORDS]);

/// See the module's comment.
pub(crate) struct Recent {
    lines: [Box<[Line]>; 2],
    generations: RwLock<Generations>,
    /// Tokens in the newer generation.
    count: AtomicU64,
}

struct Generations {
    /// Which of the lines are the newer ones.
    newer: usize,
    /// Every token above this number is in one of them.
    since: SeqNo,
    /// Every token above this number is in the newer one.
    newer_since: SeqNo,
}

/// The filter as long as a commit is under way.
pub(crate) struct Noting<'a> {
    lines: &'a [Box<[Line]>; 2],
    generations: RwLockReadGuard<'a, Generations>,
}

impl Recent {
    /// A filter of about so many bytes, for tokens above `since`.
    pub fn new(bytes: usize, since: SeqNo) -> Recent {
        let line_count = (bytes / 2 / size_of::<Line>()).max(1);
        let lines = [(); 2].map(|()| (0..line_count).map(|_| Line::default()).collect());
        let generations = Generations { newer: 0, since, newer_since: since };
        Recent { lines, generations: RwLock::new(generations), count: AtomicU64::new(0) }
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.lines.iter().map(|lines| size_of_val(&**lines)).sum()
    }

    /// Begins to load what will be looked at for a token of this hash.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.lines.iter().for_each(|lines| prefetch(lines, line(hash, lines.len())));
    }

    /// Begins to note a token. Keep it until the commit is published, or has failed.
    pub fn noting(&self) -> Noting<'_> {
        Noting { lines: &self.lines, generations: self.generations.read() }
    }

    /// Notes that one more token is in, and forgets the oldest if there are too many; `visible` is a
    /// number that no token of a commit that begins from now on has.
    pub fn noted(&self, visible: impl FnOnce() -> SeqNo) {
        let capacity = (self.lines[0].len() * LINE_WORDS * 64 / BITS_PER_TOKEN) as u64;
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
        let words = self.lines[*newer].iter().flat_map(|line| &line.0);
        words.for_each(|word| word.store(0, Ordering::Relaxed));
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
        let [first, second] = self.lines.each_ref().map(|lines| {
            let line = &lines[line(hash, lines.len())];
            let [first, second] =
                bits(hash).map(|(word, bits)| line.0[word].load(Ordering::Acquire) & bits == bits);
            first & second
        });
        // Both, whatever the first says: no branch waits for a line.
        first | second
    }

    /// Notes a token, before its commit takes a place.
    pub fn note(&self, hash: u64) {
        let lines = &self.lines[self.generations.newer];
        let line = &lines[line(hash, lines.len())];
        for (word, bits) in bits(hash) {
            line.0[word].fetch_or(bits, Ordering::AcqRel);
        }
    }
}

/// By the upper half of the hash.
fn line(hash: u64, count: usize) -> usize {
    ((u128::from(hash) * count as u128) >> 64) as usize
}

/// Words of a line and bits of them, by the lower 40 bits of the hash: one word of each half, and 6
/// bits for each of its three.
fn bits(hash: u64) -> [(usize, u64); 2] {
    let bit = |shift: u32| 1 << (hash >> shift & 63);
    let first = (hash >> 36 & 3) as usize;
    let second = LINE_WORDS / 2 + (hash >> 38 & 3) as usize;
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
