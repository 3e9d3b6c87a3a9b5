//! The memtable against a `BTreeMap`, and against threads.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

use super::*;
use crate::cursor::Cursor;

/// From leaves that split after two entries to those of production.
const SHAPES: [Shape; 4] = [
    Shape { slots_max: 2, tail_max: 1 },
    Shape { slots_max: 4, tail_max: 3 },
    Shape { slots_max: 24, tail_max: 8 },
    Shape { slots_max: 256, tail_max: 64 },
];

type Model = BTreeMap<(Vec<u8>, Reverse<u64>), (EntryKind, Vec<u8>)>;
type Id = (Vec<u8>, Reverse<u64>);

const KINDS: [EntryKind; 3] = [EntryKind::Put, EntryKind::Delete, EntryKind::Merge];

fn memtable(shape: Shape) -> Arc<Memtable> {
    Arc::new(Memtable::with_shape(&ArenaPool::new(64 << 10, 1 << 20, 256, 64 << 10), shape))
}

/// In the form of a pile, with some blocks to each shard.
fn pile() -> Arc<Memtable> {
    Arc::new(Memtable::piled(&ArenaPool::new(64 << 10, 1 << 20, 32, 64 << 10)))
}

/// Keys that share prefixes on both sides of the 16-byte head, with zeros in and around it.
fn random_key(rng: &mut fastrand::Rng) -> Vec<u8> {
    match rng.u8(..10) {
        0 => vec![0; rng.usize(..20)],
        1 => format!("{:016}", rng.u32(..300)).into_bytes(),
        2 => vec![b"\0a\xff"[rng.usize(..3)]; rng.usize(..4)],
        3 => {
            let mut key = b"common prefix of 26 bytes ".to_vec();
            key.extend((0..rng.usize(..3)).map(|_| rng.u8(..3)));
            key
        }
        4 => {
            let mut key = vec![b'x'; rng.usize(14..19)];
            *key.last_mut().unwrap() = rng.u8(..2);
            key
        }
        5 => vec![rng.u8(..4); rng.usize(..300)],
        6 => vec![0xff; rng.usize(15..18)],
        _ => rng.u32(..200).to_be_bytes()[2..].to_vec(),
    }
}

fn random_value(rng: &mut fastrand::Rng) -> Vec<u8> {
    let len = match rng.u16(..2000) {
        0 => rng.usize(..1 << 20),
        1..20 => rng.usize(..40_000),
        _ => rng.usize(..60),
    };
    vec![rng.u8(..); len]
}

fn visited(memtable: &Memtable, key: &[u8], snapshot: u64) -> Vec<(u64, EntryKind, Vec<u8>)> {
    let mut seen = Vec::new();
    let flow = memtable.visit(key, hash(key), SeqNo(snapshot), &mut |seqno, kind, value| {
        seen.push((seqno.0, kind, value.bytes.to_vec()));
        ControlFlow::Continue(())
    });
    assert!(flow.is_continue());
    seen
}

fn check_visit(memtable: &Memtable, model: &Model, key: &[u8], snapshot: u64) {
    let from = (key.to_vec(), Reverse(snapshot));
    let to = (key.to_vec(), Reverse(0));
    let want: Vec<_> =
        model.range(from..=to).map(|(id, (kind, value))| (id.1.0, *kind, value.clone())).collect();
    assert_eq!(visited(memtable, key, snapshot), want, "{key:?} at {snapshot}");
    // Breaking after the first stops there.
    let mut count = 0;
    let flow = memtable.visit(key, hash(key), SeqNo(snapshot), &mut |_, _, _| {
        count += 1;
        ControlFlow::Break(())
    });
    assert_eq!((flow.is_break(), count), (!want.is_empty(), want.len().min(1)));
}

fn check_on(cursor: &MemtableCursor, model: &Model, at: Option<&Id>) {
    assert_eq!(cursor.valid(), at.is_some(), "{at:?}");
    if let Some(id) = at {
        let (kind, value) = &model[id];
        assert_eq!((cursor.key(), cursor.seqno().0), (&id.0[..], id.1.0));
        assert_eq!((cursor.kind(), cursor.value().bytes), (*kind, &value[..]));
    }
}

/// Moves a cursor and a place in the model alike.
fn check_walk(cursor: &mut MemtableCursor, model: &Model, rng: &mut fastrand::Rng, steps: usize) {
    let mut at: Option<Id> = None;
    let mut forward = true;
    for _ in 0..steps {
        let target = (random_key(rng), Reverse(rng.u64(..model.len() as u64 + 2)));
        let seqno = SeqNo(target.1.0);
        if rng.u8(..20) == 0 {
            forward = !forward;
        }
        match (rng.u8(..30), at.take()) {
            (0, _) => {
                cursor.seek_to_first().unwrap();
                at = model.keys().next().cloned();
            }
            (1, _) => {
                cursor.seek_to_last().unwrap();
                at = model.keys().next_back().cloned();
            }
            (2 | 3, _) => {
                cursor.seek(&target.0, seqno).unwrap();
                at = model.range(target..).next().map(|e| e.0.clone());
            }
            (4, _) => {
                cursor.seek(&target.0, SeqNo::MAX).unwrap();
                let target = (target.0, Reverse(SeqNo::MAX.0));
                at = model.range(target..).next().map(|e| e.0.clone());
            }
            (_, None) | (5 | 6, _) => {
                cursor.seek_before(&target.0, seqno).unwrap();
                at = model.range(..target).next_back().map(|e| e.0.clone());
            }
            (_, Some(id)) if forward => {
                cursor.next().unwrap();
                let after = (Bound::Excluded(id), Bound::Unbounded);
                at = model.range(after).next().map(|e| e.0.clone());
            }
            (_, Some(id)) => {
                cursor.prev().unwrap();
                at = model.range(..id).next_back().map(|e| e.0.clone());
            }
        }
        check_on(cursor, model, at.as_ref());
    }
}

fn check_scans(memtable: &Arc<Memtable>, model: &Model) {
    let mut cursor = memtable.cursor();
    assert!(!cursor.valid());
    cursor.seek_to_first().unwrap();
    for id in model.keys() {
        check_on(&cursor, model, Some(id));
        cursor.next().unwrap();
    }
    assert!(!cursor.valid());
    cursor.seek_to_last().unwrap();
    for id in model.keys().rev() {
        check_on(&cursor, model, Some(id));
        cursor.prev().unwrap();
    }
    assert!(!cursor.valid());
}

#[test]
fn does_what_a_btreemap_does() {
    let forms = || SHAPES.map(memtable).into_iter().chain([pile()]);
    for (round, memtable) in (0..4).flat_map(|_| forms()).enumerate() {
        let seed = round as u64;
        println!("seed {seed}, {:?}, {}", memtable.shape, memtable.pile.is_some());
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut model = Model::new();
        check_scans(&memtable, &model);
        let mut standing = memtable.cursor();
        for seqno in 0..1500 {
            let (key, value) = (random_key(&mut rng), random_value(&mut rng));
            let kind = KINDS[rng.usize(..3)];
            // Not in order of seqno, as with concurrent writers.
            let seqno = seqno ^ 5;
            memtable.insert(&key, SeqNo(seqno), kind, &value);
            model.insert((key.clone(), Reverse(seqno)), (kind, value));
            check_visit(&memtable, &model, &key, SeqNo::MAX.0);
            check_visit(&memtable, &model, &random_key(&mut rng), rng.u64(..seqno + 2));
            if rng.u8(..30) == 0 {
                check_walk(&mut standing, &model, &mut rng, 60);
            }
        }
        memtable.check();
        check_scans(&memtable, &model);
        check_walk(&mut standing, &model, &mut rng, 3000);
        assert_eq!(memtable.entries(), model.len());
        let payload: usize = model.iter().map(|(id, value)| id.0.len() + value.1.len()).sum();
        assert!(memtable.bytes() > payload);
    }
}

#[test]
fn versions_of_one_key_span_leaves() {
    for form in 0..=SHAPES.len() {
        for key in [&b"hot"[..], b"", b"sixteen bytes!!!", b"a key of more than sixteen bytes"] {
            let memtable = SHAPES.get(form).map_or_else(pile, |shape| memtable(*shape));
            let mut rng = fastrand::Rng::with_seed(3);
            let mut seqnos: Vec<u64> = (0..1500).collect();
            rng.shuffle(&mut seqnos);
            let mut model = Model::new();
            for seqno in seqnos {
                let key = if seqno % 10 == 0 { &[key, b"\0"].concat() } else { key };
                memtable.insert(key, SeqNo(seqno), EntryKind::Merge, b"1");
                let value = (EntryKind::Merge, b"1".to_vec());
                model.insert((key.to_vec(), Reverse(seqno)), value);
            }
            memtable.check();
            for snapshot in [0, 1, 2, 700, 1498, 1499, 1500, SeqNo::MAX.0] {
                check_visit(&memtable, &model, key, snapshot);
            }
            check_scans(&memtable, &model);
            check_walk(&mut memtable.cursor(), &model, &mut rng, 1000);
        }
    }
}

#[test]
fn ordered_inserts_fill_leaves_from_either_end() {
    for shape in SHAPES {
        for descending in [false, true] {
            let memtable = memtable(shape);
            let mut model = Model::new();
            for number in 0..3000u64 {
                let number = if descending { 3000 - number } else { number };
                let key = format!("{number:016}").into_bytes();
                memtable.insert(&key, SeqNo(number), EntryKind::Put, b"v");
                model.insert((key, Reverse(number)), (EntryKind::Put, b"v".to_vec()));
            }
            memtable.check();
            check_scans(&memtable, &model);
            if !descending && shape.slots_max == SHAPES[3].slots_max {
                let per_leaf = 3000 / memtable.index.len();
                assert!(per_leaf >= 256, "{per_leaf} entries a leaf");
            }
        }
    }
}

#[test]
fn an_empty_memtable_is_small_and_empty() {
    let memtable = memtable(SHAPES[3]);
    assert!(memtable.is_empty());
    assert!(memtable.bytes() < 1024);
    assert_eq!(visited(&memtable, b"", SeqNo::MAX.0), []);
    memtable.insert(b"", SeqNo(1), EntryKind::Delete, b"");
    assert!(!memtable.is_empty());
    assert_eq!(visited(&memtable, b"", 0), []);
    assert_eq!(visited(&memtable, b"", 1), [(1, EntryKind::Delete, vec![])]);
    assert_eq!(format!("{:?}", &*memtable).split(',').next(), Some("Memtable { entries: 1"));
}

#[test]
fn a_callback_may_call_back() {
    for memtable in [memtable(SHAPES[0]), pile()] {
        memtable.insert(b"k", SeqNo(1), EntryKind::Put, b"1");
        let _ = memtable.visit(b"k", hash(b"k"), SeqNo(1), &mut |_, _, value| {
            for seqno in 2..50 {
                memtable.insert(b"k", SeqNo(seqno), EntryKind::Put, value.bytes);
            }
            ControlFlow::Continue(())
        });
        assert_eq!(visited(&memtable, b"k", 100).len(), 49);
    }
}

/// Bug: in a keyspace of one key that is written again and again nearly every write made a leaf anew. Cause:
/// what was left after a collapse, one entry, got room for one more. Fix: there is room for sixteen.
#[test]
fn a_key_that_is_written_again_and_again_has_room() {
    let memtable = memtable(SHAPES[3]);
    for len in [0, 1, 5, 40, 256] {
        let room = memtable.room(len) - len;
        assert!((ROOM_MIN..=SHAPES[3].tail_max).contains(&room), "{room} beyond {len}");
    }
}

/// A pile counts what it will need to be sorted, and nothing in it as an entry that is none.
#[test]
fn a_pile_counts_its_entries_and_all_the_memory_that_they_need() {
    let pile = pile();
    assert!(pile.is_empty() && pile.bytes() < 1024);
    for number in 0..10_000u64 {
        pile.insert(&number.to_be_bytes(), SeqNo(number), EntryKind::Put, b"");
    }
    pile.insert(b"gone", SeqNo(10_000), EntryKind::Delete, b"");
    assert_eq!((pile.entries(), pile.tombstones()), (10_001, 1));
    let least = 10_001 * (16 + 16 + size_of::<Slot>());
    assert!((least..least * 5 / 4).contains(&pile.bytes()), "{} for {least}", pile.bytes());
    assert_eq!(pile.held_bytes(), pile.bytes());
}

#[test]
fn a_cursor_outlives_its_makers_handle() {
    let memtable = memtable(SHAPES[1]);
    for number in 0..100u64 {
        memtable.insert(&number.to_be_bytes(), SeqNo(number), EntryKind::Put, b"v");
    }
    let mut cursor = memtable.cursor();
    drop(memtable);
    cursor.seek_to_first().unwrap();
    let mut count = 0;
    while cursor.valid() {
        assert_eq!(cursor.key(), (count as u64).to_be_bytes());
        count += 1;
        cursor.next().unwrap();
    }
    assert_eq!(count, 100);
}

type Hook = Box<dyn FnMut(RacePoint)>;

thread_local! {
    /// What this thread does at race points; without one it yields now and then.
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

pub(super) fn race(point: RacePoint) {
    // Taken out meanwhile, so that what the hook does runs into no hook.
    let hook = HOOK.with(|hook| hook.borrow_mut().take());
    match hook {
        Some(mut run) => {
            run(point);
            HOOK.with(|hook| *hook.borrow_mut() = Some(run));
        }
        None if fastrand::u8(..64) == 0 => {
            (0..fastrand::u8(..50)).for_each(|_| thread::yield_now())
        }
        None => {}
    }
}

fn with_hook<R>(hook: impl FnMut(RacePoint) + 'static, body: impl FnOnce() -> R) -> R {
    let outer = HOOK.with(|slot| slot.borrow_mut().replace(Box::new(hook)));
    let result = body();
    HOOK.with(|slot| *slot.borrow_mut() = outer);
    result
}

/// While a split has linked the right node but the left leaf is still whole, everything is found,
/// once, and nobody can insert into the right node.
#[test]
fn a_split_half_done_shows_everything_and_admits_no_writer() {
    for shape in SHAPES {
        let memtable = memtable(shape);
        let splits = Arc::new(AtomicU64::new(0));
        let (table, count) = (Arc::clone(&memtable), Arc::clone(&splits));
        let look = move |point| {
            if point != RacePoint::Linked {
                return;
            }
            let guard = &epoch::pin();
            let mut upper = Position::START;
            let mut overlaps = 0;
            for entry in table.index.iter(guard) {
                if entry.key().0 != upper {
                    overlaps += 1;
                    assert!(entry.value().lock.is_locked());
                }
                upper = *entry.value().leaf(guard).upper();
            }
            assert_eq!(overlaps, 1);
            // The entry that causes the split may or may not be seen; it has the highest number.
            let inserted = table.entries() as u64 - 1;
            let mut cursor = table.cursor();
            let mut ids = Vec::new();
            cursor.seek_to_first().unwrap();
            while cursor.valid() {
                if cursor.seqno().0 < inserted {
                    ids.push((cursor.key().to_vec(), Reverse(cursor.seqno().0)));
                }
                cursor.next().unwrap();
            }
            assert!(ids.is_sorted());
            assert_eq!(ids.len() as u64, inserted);
            cursor.seek_to_last().unwrap();
            while cursor.valid() {
                if cursor.seqno().0 < inserted {
                    let (key, Reverse(seqno)) = ids.pop().unwrap();
                    assert_eq!((cursor.key(), cursor.seqno().0), (&key[..], seqno));
                    assert_eq!(visited(&table, &key, seqno).len(), 1);
                }
                cursor.prev().unwrap();
            }
            assert!(ids.is_empty());
            count.fetch_add(1, Ordering::Relaxed);
        };
        with_hook(look, || {
            for seqno in 0..700 {
                let key = mixed(seqno).to_be_bytes();
                memtable.insert(&key, SeqNo(seqno), EntryKind::Put, b"");
            }
        });
        assert!(splits.load(Ordering::Relaxed) > 1);
    }
}

/// A reader that has found a node and is overtaken by splits of that node's leaf sees everything
/// that was there when it began, once.
#[test]
fn splits_between_lookup_and_load_hide_nothing() {
    for shape in SHAPES {
        for round in 0..3 {
            let memtable = memtable(shape);
            for number in 0..200u64 {
                memtable.insert(&(number << 8).to_be_bytes(), SeqNo(1), EntryKind::Put, b"");
            }
            let table = Arc::clone(&memtable);
            let mut rng = fastrand::Rng::with_seed(round);
            let mut seqno = 1;
            let overtake = move |point| {
                assert_eq!(point, RacePoint::Found);
                for _ in 0..if seqno < 4000 { 40 } else { 0 } {
                    seqno += 1;
                    let key = rng.u64(..200 << 8).to_be_bytes();
                    table.insert(&key, SeqNo(seqno), EntryKind::Put, b"");
                }
            };
            with_hook(overtake, || {
                let mut cursor = memtable.cursor();
                cursor.seek_to_last().unwrap();
                for number in (0..200u64).rev() {
                    while cursor.seqno() != SeqNo(1) {
                        cursor.prev().unwrap();
                    }
                    assert_eq!(cursor.key(), (number << 8).to_be_bytes());
                    cursor.prev().unwrap();
                }
                cursor.seek_to_first().unwrap();
                for number in 0..200u64 {
                    while cursor.seqno() != SeqNo(1) {
                        cursor.next().unwrap();
                    }
                    let key = (number << 8).to_be_bytes();
                    assert_eq!(cursor.key(), key);
                    assert_eq!(visited(&memtable, &key, 1).len(), 1);
                    cursor.next().unwrap();
                }
            });
            memtable.check();
        }
    }
}

/// A writer that has found a node and is overtaken by splits puts its entry where it belongs.
#[test]
fn splits_between_lookup_and_lock_misplace_nothing() {
    for shape in SHAPES {
        let memtable = memtable(shape);
        let table = Arc::clone(&memtable);
        let mut rng = fastrand::Rng::with_seed(5);
        let mut seqno = 1 << 20;
        let overtake = move |point| {
            for _ in 0..if point == RacePoint::Found { 40 } else { 0 } {
                seqno += 1;
                table.insert(&rng.u64(..).to_be_bytes(), SeqNo(seqno), EntryKind::Put, b"");
            }
        };
        let mut rng = fastrand::Rng::with_seed(6);
        with_hook(overtake, || {
            for number in 0..150 {
                let key = rng.u64(..).to_be_bytes();
                memtable.insert(&key, SeqNo(number), EntryKind::Put, b"");
            }
        });
        memtable.check();
        assert_eq!(memtable.entries(), 150 * 41);
    }
}

/// Commits under threads: each takes the next sequence number, inserts, and publishes in order.
/// What is written is a function of the sequence number, so readers know what they must see.
struct Commits {
    memtable: Arc<Memtable>,
    next: AtomicU64,
    published: AtomicU64,
    done: AtomicBool,
    failed: AtomicBool,
    last: u64,
    key_of: fn(u64) -> Vec<u8>,
}

impl Commits {
    fn write(&self) {
        let _flag = FailedIfPanicking(&self.failed);
        loop {
            let seqno = self.next.fetch_add(1, Ordering::Relaxed);
            if seqno > self.last {
                return;
            }
            let key = (self.key_of)(seqno);
            self.memtable.insert(&key, SeqNo(seqno), EntryKind::Put, &seqno.to_le_bytes());
            while self.published.load(Ordering::Acquire) != seqno - 1 {
                assert!(!self.failed.load(Ordering::Relaxed), "another writer panicked");
                thread::yield_now();
            }
            self.published.store(seqno, Ordering::Release);
        }
    }

    /// Everything that is not newer than `watermark`, in order.
    fn expected(&self, watermark: u64) -> Vec<Id> {
        let mut ids: Vec<Id> =
            (1..=watermark).map(|seqno| ((self.key_of)(seqno), Reverse(seqno))).collect();
        ids.sort();
        ids
    }

    fn check_entry(&self, cursor: &MemtableCursor, watermark: u64, seen: &mut Vec<Id>) {
        let seqno = cursor.seqno().0;
        assert_eq!(cursor.key(), (self.key_of)(seqno));
        assert_eq!(cursor.value().bytes, seqno.to_le_bytes());
        if seqno <= watermark {
            seen.push((cursor.key().to_vec(), Reverse(seqno)));
        }
    }

    fn read(&self, rng: &mut fastrand::Rng) {
        let mut cursor = self.memtable.cursor();
        loop {
            let done = self.done.load(Ordering::Acquire);
            let watermark = self.published.load(Ordering::Acquire);
            let mut seen = Vec::new();
            cursor.seek_to_first().unwrap();
            while cursor.valid() {
                self.check_entry(&cursor, watermark, &mut seen);
                cursor.next().unwrap();
            }
            let expected = self.expected(watermark);
            assert_eq!(seen, expected);
            let watermark = self.published.load(Ordering::Acquire);
            seen.clear();
            cursor.seek_to_last().unwrap();
            while cursor.valid() {
                self.check_entry(&cursor, watermark, &mut seen);
                cursor.prev().unwrap();
            }
            let expected = self.expected(watermark);
            assert!(seen.iter().eq(expected.iter().rev()));
            self.read_from_places(rng, watermark, &expected);
            if done {
                return;
            }
        }
    }

    fn read_from_places(&self, rng: &mut fastrand::Rng, watermark: u64, expected: &[Id]) {
        let mut cursor = self.memtable.cursor();
        for _ in 0..20.min(watermark) {
            let place = rng.usize(..expected.len());
            let (key, Reverse(seqno)) = &expected[place];
            let versions = expected.iter().filter(|id| id.0 == *key).map(|id| id.1.0);
            let mut seen = visited(&self.memtable, key, watermark);
            assert!(seen.drain(..).map(|version| version.0).eq(versions));
            let mut seen = Vec::new();
            cursor.seek(key, SeqNo(*seqno)).unwrap();
            while cursor.valid() && seen.len() < 30 {
                self.check_entry(&cursor, watermark, &mut seen);
                cursor.next().unwrap();
            }
            assert!(seen.iter().eq(expected[place..].iter().take(30)));
            seen.clear();
            cursor.seek_before(key, SeqNo(*seqno)).unwrap();
            while cursor.valid() && seen.len() < 30 {
                self.check_entry(&cursor, watermark, &mut seen);
                cursor.prev().unwrap();
            }
            assert!(seen.iter().eq(expected[..place].iter().rev().take(30)));
        }
    }
}

/// Lets the other threads end when one fails, instead of waiting for it for ever.
struct FailedIfPanicking<'a>(&'a AtomicBool);

impl Drop for FailedIfPanicking<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

fn stress(shape: Shape, writers: usize, last: u64, key_of: fn(u64) -> Vec<u8>) {
    stress_memtable(memtable(shape), writers, last, key_of);
}

fn stress_memtable(memtable: Arc<Memtable>, writers: usize, last: u64, key_of: fn(u64) -> Vec<u8>) {
    let commits = Commits {
        memtable,
        next: AtomicU64::new(1),
        published: AtomicU64::new(0),
        done: AtomicBool::new(false),
        failed: AtomicBool::new(false),
        last,
        key_of,
    };
    thread::scope(|scope| {
        let commits = &commits;
        for reader in 0..2 {
            scope.spawn(move || commits.read(&mut fastrand::Rng::with_seed(reader)));
        }
        let writers: Vec<_> = (0..writers).map(|_| scope.spawn(|| commits.write())).collect();
        let results: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        commits.done.store(true, Ordering::Release);
        assert!(results.iter().all(Result::is_ok));
    });
    commits.memtable.check();
    assert_eq!(commits.memtable.entries() as u64, last);
    let left = Arc::strong_count(&commits.memtable);
    assert_eq!(left, 1, "no cursor is left");
}

fn mixed(seqno: u64) -> u64 {
    seqno.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}

#[test]
fn readers_see_what_was_published_of_disjoint_keys() {
    for shape in SHAPES {
        stress(shape, 3, 3000, |seqno| format!("{:016}", mixed(seqno)).into_bytes());
    }
}

#[test]
fn readers_see_what_was_published_of_shared_keys() {
    for shape in SHAPES {
        stress(shape, 3, 3000, |seqno| vec![b'k'; (mixed(seqno) % 40) as usize]);
        stress(shape, 3, 3000, |seqno| vec![b'k'; (mixed(seqno) % 2) as usize]);
    }
}

#[test]
fn readers_see_what_was_published_of_ordered_keys() {
    for shape in SHAPES {
        stress(shape, 3, 3000, |seqno| seqno.to_be_bytes().to_vec());
        stress(shape, 3, 3000, |seqno| ((seqno % 3) << 32 | seqno).to_be_bytes().to_vec());
    }
}

#[test]
fn readers_see_what_was_published_in_a_pile() {
    stress_memtable(pile(), 3, 3000, |seqno| format!("{:016}", mixed(seqno)).into_bytes());
    stress_memtable(pile(), 3, 3000, |seqno| vec![b'k'; (mixed(seqno) % 40) as usize]);
    stress_memtable(pile(), 3, 3000, |seqno| seqno.to_be_bytes().to_vec());
}
