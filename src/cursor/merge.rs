//! Several cursors as one, in entry order.
//!
//! The cursor stands where one of its sources stands, the *winner*. Going forward, every other
//! source stands on its first entry after the winner's, or has ended; going backward, on its last
//! entry before it. A change of direction seeks all the others.
//!
//! Most entries come from the largest source, many in a row. So the *bar* is kept, the head of the
//! first key that another source has: a winner that stays before it after its step has won again, by one
//! comparison, however many sources there are. Otherwise, up to four sources are all looked at; above,
//! a tree of losers asks log2(k) times. All compare the first 16 bytes of the keys as numbers and look
//! at whole keys only where these are equal and a key is longer. (Of eight bytes, those of numbers
//! written out are often all the same.)

use std::cmp::Ordering;

use crate::cursor::{Cursor, ValueRef};
use crate::error::Result;
use crate::key::{self, EntryKind, SeqNo};

/// Up to so many sources are searched one after the other.
const LINEAR_SOURCES_MAX: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

/// The entries of all sources, which must not share a (key, seqno).
pub(crate) struct MergeCursor<C> {
    sources: Vec<Source<C>>,
    direction: Direction,
    /// The source that the cursor stands on, while it is valid.
    winner: usize,
    valid: bool,
    /// The head that comes first in the cursor's direction of all other sources; one that no head comes
    /// behind if there are none.
    bar: u128,
    /// With more than four sources: `losers[0]` is unused; node n has the children 2n and 2n + 1,
    /// where k + i is source i; it holds the source that lost the comparison there.
    losers: Vec<usize>,
}

struct Source<C> {
    cursor: C,
    /// The head of its key; meaningless where `ended`.
    head: u128,
    ended: bool,
}

impl<C: Cursor> MergeCursor<C> {
    /// A cursor over these sources, not yet on any entry.
    pub fn new(sources: impl IntoIterator<Item = C>) -> MergeCursor<C> {
        let source = |cursor| Source { cursor, head: 0, ended: true };
        let sources: Vec<_> = sources.into_iter().map(source).collect();
        let count = sources.len();
        MergeCursor {
            losers: vec![0; if count > LINEAR_SOURCES_MAX { count } else { 0 }],
            sources,
            direction: Direction::Forward,
            winner: 0,
            valid: false,
            bar: 0,
        }
    }

    /// The first 16 bytes of the key, as [`key::long_head`] gives them. Only while valid.
    #[inline]
    pub fn head(&self) -> u128 {
        debug_assert!(self.valid);
        self.sources[self.winner].head
    }

    /// Moves every source by `go` and stands on the winner.
    fn start(&mut self, direction: Direction, go: impl Fn(&mut C) -> Result<()>) -> Result<()> {
        self.valid = false;
        self.direction = direction;
        for source in &mut self.sources {
            go(&mut source.cursor)?;
            source.note();
        }
        self.choose();
        Ok(())
    }

    /// Lets the misses of all sources overlap, before they seek one after the other.
    #[inline]
    fn announce(&mut self, key: &[u8], seqno: SeqNo) {
        if self.sources.len() > 1 {
            self.sources.iter_mut().for_each(|source| source.cursor.announce(key, seqno));
        }
    }

    /// True if source `a` comes before source `b` in the cursor's direction; the ended come last.
    #[inline]
    fn beats(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.sources[a], &self.sources[b]);
        if a.ended || b.ended {
            return !a.ended;
        }
        let order = a.head.cmp(&b.head).then_with(|| compare_behind_heads(&a.cursor, &b.cursor));
        match self.direction {
            Direction::Forward => order == Ordering::Less,
            Direction::Backward => order == Ordering::Greater,
        }
    }

    /// Finds the winner after all sources have moved.
    fn choose(&mut self) {
        if self.losers.is_empty() {
            self.choose_among_few();
        } else {
            self.winner = self.play(1);
            self.note_winner();
        }
    }

    /// Finds the winner after only the last one has moved.
    #[inline]
    fn choose_again(&mut self) {
        let source = &self.sources[self.winner];
        let stays = match self.direction {
            Direction::Forward => source.head < self.bar,
            Direction::Backward => source.head > self.bar,
        };
        if stays && !source.ended {
            self.valid = true;
        } else if self.losers.is_empty() {
            self.choose_among_few();
        } else {
            self.climb();
        }
    }

    fn choose_among_few(&mut self) {
        let (mut best, mut bar) = (0, self.no_bar());
        for index in 1..self.sources.len() {
            let behind =
                if self.beats(index, best) { std::mem::replace(&mut best, index) } else { index };
            bar = self.nearer(bar, behind);
        }
        self.winner = best;
        self.bar = bar;
        self.valid = self.sources.get(best).is_some_and(|source| !source.ended);
    }

    /// Plays the matches between the last winner and the root of the tree again.
    fn climb(&mut self) {
        let mut winner = self.winner;
        let mut node = (self.sources.len() + winner) / 2;
        while node > 0 {
            let other = self.losers[node];
            if self.beats(other, winner) {
                self.losers[node] = winner;
                winner = other;
            }
            node /= 2;
        }
        self.winner = winner;
        self.note_winner();
    }

    /// Notes what follows from who won in the tree: the second lost to the winner itself.
    fn note_winner(&mut self) {
        let mut bar = self.no_bar();
        let mut node = (self.sources.len() + self.winner) / 2;
        while node > 0 {
            bar = self.nearer(bar, self.losers[node]);
            node /= 2;
        }
        self.bar = bar;
        self.valid = !self.sources[self.winner].ended;
    }

    /// The bar where no other source has an entry.
    fn no_bar(&self) -> u128 {
        match self.direction {
            Direction::Forward => u128::MAX,
            Direction::Backward => 0,
        }
    }

    /// The bar, or the head of this source if that comes before it.
    #[inline]
    fn nearer(&self, bar: u128, source: usize) -> u128 {
        let source = &self.sources[source];
        match self.direction {
            _ if source.ended => bar,
            Direction::Forward => bar.min(source.head),
            Direction::Backward => bar.max(source.head),
        }
    }

    /// Plays the matches below `node` and at it; gives the winner, keeps the loser.
    fn play(&mut self, node: usize) -> usize {
        if node >= self.sources.len() {
            return node - self.sources.len();
        }
        let left = self.play(2 * node);
        let right = self.play(2 * node + 1);
        let left_wins = self.beats(left, right);
        let (winner, loser) = if left_wins { (left, right) } else { (right, left) };
        self.losers[node] = loser;
        winner
    }

    /// Moves all sources but the winner to the other side of its entry.
    fn turn(&mut self, direction: Direction) -> Result<()> {
        let key = self.key().to_vec();
        let seqno = self.seqno();
        let winner = self.winner;
        let others = self.sources.iter_mut().enumerate().filter(|(index, _)| *index != winner);
        for (_, source) in others {
            match direction {
                Direction::Forward => source.cursor.seek(&key, seqno)?,
                Direction::Backward => source.cursor.seek_before(&key, seqno)?,
            }
            source.note();
        }
        self.direction = direction;
        Ok(())
    }

    /// Goes one entry in this direction.
    #[inline]
    fn advance(&mut self, direction: Direction) -> Result<()> {
        debug_assert!(self.valid);
        let turned = self.direction != direction;
        let turning = if turned { self.turn(direction) } else { Ok(()) };
        self.valid = false;
        turning?;
        let source = &mut self.sources[self.winner];
        match direction {
            Direction::Forward => source.cursor.next()?,
            Direction::Backward => source.cursor.prev()?,
        }
        source.note();
        if turned {
            self.choose();
        } else {
            self.choose_again();
        }
        Ok(())
    }

    #[inline]
    fn here(&self) -> &C {
        debug_assert!(self.valid);
        &self.sources[self.winner].cursor
    }
}

impl<C: Cursor> Source<C> {
    /// Notes where the source stands now.
    #[inline]
    fn note(&mut self) {
        self.ended = !self.cursor.valid();
        if !self.ended {
            self.head = self.cursor.head();
        }
    }
}

/// Orders two entries whose keys have equal heads.
#[inline]
fn compare_behind_heads<C: Cursor>(a: &C, b: &C) -> Ordering {
    let (a_key, b_key) = (a.key(), b.key());
    let by_key = if a_key.len() <= key::LONG_HEAD_BYTES || b_key.len() <= key::LONG_HEAD_BYTES {
        // The shorter one is what the other begins with.
        a_key.len().cmp(&b_key.len())
    } else {
        a_key[key::LONG_HEAD_BYTES..].cmp(&b_key[key::LONG_HEAD_BYTES..])
    };
    by_key.then_with(|| b.seqno().cmp(&a.seqno()))
}

impl<C: Cursor> Cursor for MergeCursor<C> {
    #[inline]
    fn valid(&self) -> bool {
        self.valid
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.start(Direction::Forward, C::seek_to_first)
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.start(Direction::Backward, C::seek_to_last)
    }

    fn seek(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        self.announce(key, seqno);
        self.start(Direction::Forward, |source| source.seek(key, seqno))
    }

    fn seek_before(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
        self.announce(key, seqno);
        self.start(Direction::Backward, |source| source.seek_before(key, seqno))
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        self.advance(Direction::Forward)
    }

    #[inline]
    fn prev(&mut self) -> Result<()> {
        self.advance(Direction::Backward)
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.here().key()
    }

    #[inline]
    fn seqno(&self) -> SeqNo {
        self.here().seqno()
    }

    #[inline]
    fn kind(&self) -> EntryKind {
        self.here().kind()
    }

    #[inline]
    fn value(&self) -> ValueRef<'_> {
        self.here().value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cursor over a sorted Vec that fails its `fail_at`-th move.
    struct VecCursor {
        entries: Vec<(Vec<u8>, SeqNo)>,
        at: Option<usize>,
        fail_at: Option<usize>,
    }

    impl VecCursor {
        fn new(mut entries: Vec<(Vec<u8>, SeqNo)>) -> VecCursor {
            entries.sort_by(|a, b| key::compare(&a.0, a.1, &b.0, b.1));
            VecCursor { entries, at: None, fail_at: None }
        }

        fn go(&mut self, at: Option<usize>) -> Result<()> {
            self.at = at.filter(|&at| at < self.entries.len());
            if let Some(moves) = &mut self.fail_at {
                if *moves == 0 {
                    self.at = None;
                    return Err(crate::error::Error::invalid("a failing source"));
                }
                *moves -= 1;
            }
            Ok(())
        }

        fn bound(&self, key: &[u8], seqno: SeqNo) -> usize {
            self.entries.partition_point(|e| key::compare(&e.0, e.1, key, seqno).is_lt())
        }
    }

    impl Cursor for VecCursor {
        fn valid(&self) -> bool {
            self.at.is_some()
        }
        fn seek_to_first(&mut self) -> Result<()> {
            self.go(Some(0))
        }
        fn seek_to_last(&mut self) -> Result<()> {
            self.go(self.entries.len().checked_sub(1))
        }
        fn seek(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
            self.go(Some(self.bound(key, seqno)))
        }
        fn seek_before(&mut self, key: &[u8], seqno: SeqNo) -> Result<()> {
            self.go(self.bound(key, seqno).checked_sub(1))
        }
        fn next(&mut self) -> Result<()> {
            self.go(Some(self.at.unwrap() + 1))
        }
        fn prev(&mut self) -> Result<()> {
            self.go(self.at.unwrap().checked_sub(1))
        }
        fn key(&self) -> &[u8] {
            &self.entries[self.at.unwrap()].0
        }
        fn seqno(&self) -> SeqNo {
            self.entries[self.at.unwrap()].1
        }
        fn kind(&self) -> EntryKind {
            EntryKind::Put
        }
        fn value(&self) -> ValueRef<'_> {
            ValueRef { bytes: self.key(), owner: None }
        }
    }

    fn random_key(random: &mut fastrand::Rng) -> Vec<u8> {
        // Heads that are all ones as well, behind which none comes.
        let prefixes: [&[u8]; 5] =
            [b"common/prefix/", b"common/prefix/of", b"common/prefix/of/them", b"", &[0xff; 16]];
        let prefix = prefixes[random.usize(..5)];
        let tail = (0..random.usize(0..3)).map(|_| random.u8(0..3));
        prefix.iter().copied().chain(tail).collect()
    }

    fn position<C: Cursor>(cursor: &C) -> Option<(Vec<u8>, SeqNo)> {
        cursor.valid().then(|| (cursor.key().to_vec(), cursor.seqno()))
    }

    #[test]
    fn agrees_with_one_sorted_vec_whatever_the_moves() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for round in 0..400 {
            let count = round % 13;
            let mut parts = vec![Vec::new(); count];
            let mut all = Vec::new();
            for seqno in 0..random.u64(0..60) {
                if count > 0 {
                    let entry = (random_key(&mut random), SeqNo(seqno));
                    parts[random.usize(..count)].push(entry.clone());
                    all.push(entry);
                }
            }
            let mut model = VecCursor::new(all);
            let mut merged = MergeCursor::new(parts.into_iter().map(VecCursor::new));
            for _ in 0..200 {
                let (key, seqno) = (random_key(&mut random), SeqNo(random.u64(0..61)));
                match random.u8(0..12) {
                    0 => (model.seek_to_first().unwrap(), merged.seek_to_first().unwrap()),
                    1 => (model.seek_to_last().unwrap(), merged.seek_to_last().unwrap()),
                    2 => (model.seek(&key, seqno).unwrap(), merged.seek(&key, seqno).unwrap()),
                    3 => (
                        model.seek_before(&key, seqno).unwrap(),
                        merged.seek_before(&key, seqno).unwrap(),
                    ),
                    4..8 if model.valid() => (model.next().unwrap(), merged.next().unwrap()),
                    8.. if model.valid() => (model.prev().unwrap(), merged.prev().unwrap()),
                    _ => continue,
                };
                assert_eq!(position(&merged), position(&model), "round {round}");
            }
        }
    }

    #[test]
    fn is_invalid_after_an_error_and_recovers_at_the_next_seek() {
        for count in [2, 6] {
            for fail_at in 0..12 {
                let source = |n: u64| {
                    let keys = (0..8).map(|i| (vec![i as u8], SeqNo(i * 10 + n)));
                    VecCursor::new(keys.collect())
                };
                let mut merged = MergeCursor::new((0..count).map(source));
                merged.sources[1].cursor.fail_at = Some(fail_at);
                let mut moved = merged.seek_to_first();
                while moved.is_ok() && merged.valid() {
                    moved =
                        if merged.key() < [6].as_slice() { merged.next() } else { merged.prev() };
                }
                assert!(moved.is_err() && !merged.valid(), "{count} {fail_at}");
                merged.sources[1].cursor.fail_at = None;
                merged.seek_to_first().unwrap();
                let mut seen = 0;
                while merged.valid() {
                    seen += 1;
                    merged.next().unwrap();
                }
                assert_eq!(seen, 8 * count);
            }
        }
    }
}
