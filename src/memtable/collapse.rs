//! Leaving out, when a leaf is sorted anew, what nobody can see any more.
//!
//! A key that is written again and again would fill the memtable with versions that every read has
//! to pass: a counter reads as many operands as it has increments, and the head of a queue lies
//! behind all that was taken from it. A flush would fold them; here they go while they are in
//! memory.
//!
//! The *horizon* is a number below which nobody reads, now or later. Of the versions of one key in
//! one leaf that are not newer than the horizon
//! 1. a put or a tombstone hides every older one;
//! 2. a tombstone that hid one goes too if no older version can be left: the leaf has all of the
//!    key's versions in this memtable, and what lies below the memtable has none;
//! 3. [`FOLD_OPERANDS_MIN`] operands or more of an operator that adds up numbers, with the put or
//!    tombstone that they end at, become one entry with the number of the newest.
//!
//! Whoever reads at a number from the horizon on reads the same before and after. A reader whose
//! number is not registered may be older than the horizon by the time it gets here: a leaf notes
//! the horizon it was collapsed to, and such a reader is told to begin again
//! ([`super::Stopped::Stale`]).
//!
//! A reader takes the versions of a key in one leaf from one state of that leaf, never some before
//! and some after a collapse: point reads by their nature, and cursors because their windows end
//! between keys or at a fence. Across leaves the states may differ, since each leaf is collapsed
//! within itself, and leaves between which a key is divided are never merged.

use smallvec::SmallVec;

use crate::key::{EntryKind, SeqNo, hash};
use crate::memtable::leaf::{Run, Slot};
use crate::memtable::position::Position;
use crate::memtable::{Memtable, Surroundings};
use crate::operator::Quick;

/// Fewer operands than this stay as they are: folding them costs an entry, reading them little.
const FOLD_OPERANDS_MIN: usize = 8;

/// A run of which less than this fraction are older versions is left alone: with a few overwritten
/// keys, looking at all costs more (30 ns an insertion) than anybody gains.
const WORTHWHILE: usize = 8;

impl Memtable {
    /// The run without what nobody needs, and the horizon if anything was left out. `lower` and
    /// `upper` are the fences between which the run has everything that is in the memtable.
    pub(super) fn collapse(
        &self,
        run: &Run,
        lower: &Position<'_>,
        upper: &Position<'_>,
        around: &dyn Surroundings,
    ) -> Option<(Run, SeqNo)> {
        if run.older_versions() < (run.len() / WORTHWHILE).max(1) {
            return None;
        }
        let horizon = around.horizon();
        let mut collapsing = Collapsing {
            memtable: self,
            around,
            horizon,
            quick: around.quick(),
            kept: Run::with_capacity(run.len()),
        };
        for versions in run.keys() {
            let first = &run.slots()[versions.start];
            let divided = first.has_key_of(lower) && *lower != first.key_start();
            let whole = (versions.start > 0 || !divided)
                && (versions.end < run.len() || !first.has_key_of(upper));
            let tag = run.tag(versions.start);
            collapsing.key(&run.slots()[versions], tag, whole);
        }
        (collapsing.kept.len() < run.len()).then_some((collapsing.kept, horizon))
    }
}

struct Collapsing<'a> {
    memtable: &'a Memtable,
    around: &'a dyn Surroundings,
    horizon: SeqNo,
    quick: Option<Quick>,
    kept: Run,
}

impl Collapsing<'_> {
    /// Keeps what is needed of the versions of one key, newest first; `whole` if there are no
    /// others in the memtable.
    fn key(&mut self, versions: &[Slot], tag: u8, whole: bool) {
        let seen = versions.partition_point(|slot| slot.seqno() > self.horizon);
        let (newer, settled) = versions.split_at(seen);
        newer.iter().for_each(|slot| self.kept.push(*slot, tag));
        let Some((newest, older)) = settled.split_first() else { return };
        if older.is_empty() {
            // Whatever it is, it stays: to ask would be a cache miss.
            self.kept.push(*newest, tag);
            return;
        }
        match newest.kind() {
            EntryKind::Delete if whole => {
                let key = newest.key();
                if self.around.lies_below(self.memtable, key, hash(key)) {
                    self.kept.push(*newest, tag);
                }
            }
            EntryKind::Put | EntryKind::Delete => self.kept.push(*newest, tag),
            EntryKind::Merge => self.operands(settled, tag),
        }
    }

    /// Keeps what is needed of the settled versions of a key of which the newest is an operand.
    fn operands(&mut self, settled: &[Slot], tag: u8) {
        let is_operand = |slot: &&Slot| slot.kind() == EntryKind::Merge;
        let count = settled.iter().take_while(is_operand).count();
        let (operands, rest) = settled.split_at(count);
        let base = rest.first();
        if let Some(quick) = self.quick
            && count >= FOLD_OPERANDS_MIN
            && let Some(folded) = fold(quick, operands, base)
        {
            let kind = if base.is_some() { EntryKind::Put } else { EntryKind::Merge };
            let newest = &operands[0];
            let slot = self.memtable.write(&newest.position(), newest.key(), kind, &folded);
            self.kept.push(slot, tag);
            return;
        }
        operands.iter().chain(base).for_each(|slot| self.kept.push(*slot, tag));
    }
}

/// The value of numeric operands, newest first, on what they end at. `None` if one of them is no
/// number: reads shall fail as they did.
fn fold(quick: Quick, operands: &[Slot], base: Option<&Slot>) -> Option<SmallVec<[u8; 16]>> {
    let base = base.filter(|slot| slot.kind() == EntryKind::Put);
    let mut oldest_first = base.into_iter().chain(operands.iter().rev()).map(Slot::value);
    // Appending would copy a growing value over and over.
    let is_number = |value: &[u8]| value.len() == 8 && quick != Quick::Append;
    let mut folded = SmallVec::from_slice(oldest_first.next().filter(|value| is_number(value))?);
    for operand in oldest_first {
        if !is_number(operand) {
            return None;
        }
        quick.fold(&mut folded, operand);
    }
    Some(folded)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::ControlFlow;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    use super::*;
    use crate::cursor::{Cursor, ValueRef};
    use crate::memtable::{ArenaPool, Stopped};

    /// Everything up to a number is settled; keys that begin with `b` have older versions below.
    struct World(AtomicU64);

    impl Surroundings for World {
        fn horizon(&self) -> SeqNo {
            SeqNo(self.0.load(Ordering::SeqCst))
        }
        fn quick(&self) -> Option<Quick> {
            Some(Quick::Add)
        }
        fn lies_below(&self, _: &Memtable, key: &[u8], of_key: u64) -> bool {
            assert_eq!(hash(key), of_key);
            key.starts_with(b"b")
        }
    }

    /// What a key's versions, newest first, come to: a value, or nothing, or what is to be added
    /// to whatever lies below.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Sum {
        Value(i64),
        Absent,
        Added(i64),
    }

    fn sum(newest_first: impl IntoIterator<Item = (EntryKind, i64)>) -> Sum {
        let mut added = None;
        for (kind, number) in newest_first {
            match (kind, added) {
                (EntryKind::Put, _) => return Sum::Value(number + added.unwrap_or(0)),
                (EntryKind::Delete, None) => return Sum::Absent,
                (EntryKind::Delete, Some(added)) => return Sum::Value(added),
                (EntryKind::Merge, _) => added = Some(added.unwrap_or(0) + number),
            }
        }
        added.map_or(Sum::Absent, Sum::Added)
    }

    fn number(bytes: &[u8]) -> i64 {
        i64::from_le_bytes(bytes.try_into().unwrap())
    }

    fn visited(memtable: &Memtable, key: &[u8], at: u64) -> Result<Sum, Stopped> {
        let mut seen = Vec::new();
        let mut note = |_: SeqNo, kind: EntryKind, value: ValueRef<'_>| {
            let value = if kind == EntryKind::Delete { 0 } else { number(value.bytes) };
            seen.push((kind, value));
            ControlFlow::Continue(())
        };
        match memtable.visit(key, hash(key), SeqNo(at), &mut note) {
            ControlFlow::Break(stopped) => Err(stopped),
            ControlFlow::Continue(()) => Ok(sum(seen)),
        }
    }

    /// Every key of a memtable at a number, by a cursor in one direction.
    fn scanned(memtable: &Arc<Memtable>, at: u64, forward: bool) -> BTreeMap<Vec<u8>, Sum> {
        let mut versions: BTreeMap<Vec<u8>, Vec<(u64, EntryKind, i64)>> = BTreeMap::new();
        let mut cursor = memtable.cursor();
        match forward {
            true => cursor.seek_to_first().unwrap(),
            false => cursor.seek_to_last().unwrap(),
        }
        while cursor.valid() {
            if cursor.seqno().0 <= at {
                let kind = cursor.kind();
                let value =
                    if kind == EntryKind::Delete { 0 } else { number(cursor.value().bytes) };
                let of_key = versions.entry(cursor.key().to_vec()).or_default();
                of_key.push((cursor.seqno().0, kind, value));
            }
            if forward { cursor.next().unwrap() } else { cursor.prev().unwrap() }
        }
        let sum = |mut of_key: Vec<(u64, EntryKind, i64)>| {
            of_key.sort_by_key(|(seqno, ..)| std::cmp::Reverse(*seqno));
            assert!(of_key.array_windows().all(|[a, b]| a.0 > b.0), "each version once");
            sum(of_key.into_iter().map(|(_, kind, value)| (kind, value)))
        };
        versions.into_iter().map(|(key, of_key)| (key, sum(of_key))).collect()
    }

    fn put_random(
        memtable: &Memtable,
        world: &World,
        rng: &mut fastrand::Rng,
        seqno: u64,
        model: &mut BTreeMap<Vec<u8>, Vec<(u64, EntryKind, i64)>>,
    ) {
        let family = ["a", "b", "a key of more than sixteen bytes "][rng.usize(..3)];
        let key = format!("{family}{}", rng.u8(..9)).into_bytes();
        let kind = [EntryKind::Put, EntryKind::Delete, EntryKind::Merge, EntryKind::Merge];
        let (kind, value) = (kind[rng.usize(..4)], rng.i64(-9..9));
        let bytes = value.to_le_bytes();
        let bytes: &[u8] = if kind == EntryKind::Delete { &[] } else { &bytes };
        memtable.insert_within(&key, SeqNo(seqno), kind, bytes, Some(world));
        model.entry(key).or_default().insert(0, (seqno, kind, value));
    }

    #[test]
    fn reads_from_the_horizon_on_are_the_same_before_and_after() {
        let mut collapsed = 0;
        for (slots, seed) in
            [2, 4, 8, 32].into_iter().flat_map(|slots| (0..24).map(move |s| (slots, s)))
        {
            let rng = &mut fastrand::Rng::with_seed(seed);
            let memtable =
                Arc::new(Memtable::new(&ArenaPool::new(64 << 10, 1 << 20, slots, 64 << 10)));
            let (world, mut model) = (World(AtomicU64::new(0)), BTreeMap::new());
            for seqno in 1..2000 {
                put_random(&memtable, &world, rng, seqno, &mut model);
                if rng.u8(..4) == 0 {
                    let now = world.0.load(Ordering::SeqCst);
                    world.0.store(rng.u64(now..=seqno), Ordering::SeqCst);
                }
                if seqno % 97 > 0 {
                    continue;
                }
                memtable.check();
                let at = rng.u64(world.0.load(Ordering::SeqCst)..=seqno);
                let (forward, backward) =
                    (scanned(&memtable, at, true), scanned(&memtable, at, false));
                for (key, versions) in &model {
                    let seen = versions.iter().filter(|(seqno, ..)| *seqno <= at);
                    let alone = |sum| match sum {
                        // The tombstone that made it a value may be gone.
                        Sum::Added(value) if !key.starts_with(b"b") => Sum::Value(value),
                        sum => sum,
                    };
                    let want = alone(sum(seen.map(|(_, kind, value)| (*kind, *value))));
                    let context = format!("slots {slots} seed {seed} {key:?} at {at}");
                    assert_eq!(visited(&memtable, key, at).map(alone), Ok(want), "{context}");
                    let of = |scan: &BTreeMap<_, Sum>| scan.get(key).copied().map(alone);
                    assert_eq!(of(&forward).unwrap_or(Sum::Absent), want, "{context}");
                    assert_eq!(of(&backward).unwrap_or(Sum::Absent), want, "{context}");
                }
            }
            let left = {
                let mut cursor = memtable.cursor();
                cursor.seek_to_first().unwrap();
                let mut n = 0;
                while cursor.valid() {
                    n += 1;
                    cursor.next().unwrap();
                }
                n
            };
            collapsed += 2000 - left;
        }
        assert!(collapsed > 96 * 1000, "{collapsed}");
    }

    #[test]
    fn a_reader_below_the_horizon_is_told_so() {
        let memtable = Memtable::new(&ArenaPool::new(64 << 10, 1 << 20, 4, 64 << 10));
        let world = World(AtomicU64::new(0));
        let put = |seqno: u64| {
            memtable.insert_within(b"a", SeqNo(seqno), EntryKind::Put, &[0; 8], Some(&world));
            world.0.store(seqno, Ordering::SeqCst);
        };
        (1..=20).for_each(put);
        assert_eq!(visited(&memtable, b"a", 3), Err(Stopped::Stale));
        assert_eq!(visited(&memtable, b"a", 20), Ok(Sum::Value(0)));
        assert!(memtable.entries() == 20);
    }

    #[test]
    fn what_is_taken_from_a_queue_leaves_nothing_behind() {
        let memtable = Arc::new(Memtable::new(&ArenaPool::new(64 << 10, 1 << 20, 32, 64 << 10)));
        let world = World(AtomicU64::new(0));
        let mut seqno = 0;
        let mut write = |key: u64, kind, value: &[u8]| {
            seqno += 1;
            let key = format!("a{key:015}");
            memtable.insert_within(key.as_bytes(), SeqNo(seqno), kind, value, Some(&world));
            world.0.store(seqno, Ordering::SeqCst);
        };
        for tail in 0..20_000_u64 {
            write(tail, EntryKind::Put, &[1; 8]);
            if let Some(head) = tail.checked_sub(100) {
                write(head, EntryKind::Delete, &[]);
            }
        }
        memtable.check();
        let mut cursor = memtable.cursor();
        cursor.seek_to_first().unwrap();
        let mut passed = 0;
        while cursor.kind() == EntryKind::Delete || cursor.key() < &b"a000000000019900"[..] {
            passed += 1;
            cursor.next().unwrap();
        }
        assert!(passed < 200, "{passed} entries lie before the head");
        assert!(memtable.index.len() < 40, "{memtable:?}");
    }

    /// Counters that only grow, and keys that come and go in pairs, under readers at registered
    /// numbers: here the horizon follows the oldest of two readers.
    #[test]
    fn readers_see_whole_keys_while_leaves_collapse_and_merge() {
        const WRITES: u64 = 60_000;
        for slots in [4, 16, 256] {
            let memtable =
                Arc::new(Memtable::new(&ArenaPool::new(64 << 10, 1 << 20, slots, 64 << 10)));
            let (visible, done) = (AtomicU64::new(0), AtomicBool::new(false));
            let reading = [const { AtomicU64::new(u64::MAX) }; 2];
            let lock = parking_lot::Mutex::new(());
            struct Readers<'a>(&'a AtomicU64, &'a [AtomicU64; 2], &'a parking_lot::Mutex<()>);
            impl Surroundings for Readers<'_> {
                fn horizon(&self) -> SeqNo {
                    let _lock = self.2.lock();
                    let oldest = self.1.iter().map(|number| number.load(Ordering::SeqCst)).min();
                    SeqNo(self.0.load(Ordering::SeqCst).min(oldest.unwrap()))
                }
                fn quick(&self) -> Option<Quick> {
                    Some(Quick::Add)
                }
                fn lies_below(&self, _: &Memtable, _: &[u8], _: u64) -> bool {
                    false
                }
            }
            thread::scope(|scope| {
                scope.spawn(|| {
                    let around = Readers(&visible, &reading, &lock);
                    let write = |key: String, seqno, kind, value: &[u8]| {
                        let seqno = SeqNo(seqno);
                        memtable.insert_within(key.as_bytes(), seqno, kind, value, Some(&around));
                        visible.store(seqno.0, Ordering::SeqCst);
                    };
                    for seqno in (1..WRITES).step_by(4) {
                        let one = 1_i64.to_le_bytes();
                        write(format!("c{}", seqno % 3), seqno, EntryKind::Merge, &one);
                        write(format!("c{}", seqno % 3), seqno + 1, EntryKind::Merge, &one);
                        // A pair that is there at one number only.
                        write(format!("q{seqno:09}"), seqno + 2, EntryKind::Put, &one);
                        write(format!("q{seqno:09}"), seqno + 3, EntryKind::Delete, &[]);
                    }
                    done.store(true, Ordering::SeqCst);
                });
                for (reader, mine) in reading.iter().enumerate() {
                    let (memtable, visible, done, lock) = (&memtable, &visible, &done, &lock);
                    scope.spawn(move || {
                        while !done.load(Ordering::SeqCst) {
                            let at = {
                                let _lock = lock.lock();
                                let at = visible.load(Ordering::SeqCst);
                                mine.store(at, Ordering::SeqCst);
                                at
                            };
                            let sums = match reader {
                                0 => scanned(memtable, at, at.is_multiple_of(2)),
                                _ => (0..3)
                                    .map(|c| format!("c{c}").into_bytes())
                                    .map(|key| (key.clone(), visited(memtable, &key, at).unwrap()))
                                    .collect(),
                            };
                            let count = |key: &Vec<u8>, sum: &Sum| match (key[0], sum) {
                                (b'c', Sum::Added(count)) => *count,
                                (b'c', Sum::Absent) => 0,
                                (_, Sum::Absent) => 0,
                                (b'q', Sum::Value(1)) if at % 4 == 3 => 0,
                                _ => panic!("{key:?} {sum:?} at {at}"),
                            };
                            let sum: i64 = sums.iter().map(|(key, sum)| count(key, sum)).sum();
                            let want = at / 4 * 2 + (at % 4).min(2);
                            assert_eq!(sum, want as i64, "at {at} of {slots} slots");
                        }
                    });
                }
            });
            memtable.check();
        }
    }
}
