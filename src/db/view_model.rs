//! A model of what replaces a view, and of who reads meanwhile: the switch of the memtable, a flush,
//! a compaction, reads and snapshots, each with the steps of the engine in their order, over
//! shuttle's threads and the real commit ring.
//!
//! | here | the engine |
//! |---|---|
//! | [`Model::commit`] | `Pipeline::submit`: place and memtable under the commit lock, insertion outside |
//! | [`Model::freeze`] | `CommitState::freeze`: the new view is in place before the lock is let go |
//! | [`Model::flush`] | `Engine::flush_frozen`, `install_flush` |
//! | [`Model::compact`] | `Engine::claim_step`, `compact` |
//! | [`Model::read`] | `Engine::pin`, and a point read |
//! | [`Model::read_snapshot`] | `Snapshot::new`, and a read of it in the view of later |
//!
//! What must hold: a read at a number finds, of every key, the newest operation up to it in the one
//! order of commits, whatever is switched, folded and dropped meanwhile. Tables are lists, keys are
//! numbers, and nothing fails: that is what the simulated disk and the stepper are for.

use std::sync::Arc;

use shuttle::thread;

use crate::file::Lsn;
use crate::key::SeqNo;
use crate::write::ring_model::explore;
use crate::write::ring_model::ring::{Place, Ring};
use crate::write::ring_model::sync::Mutex;

/// Operations on few keys, so that they hide each other.
const KEYS: u64 = 2;

/// An operation: its key, and its place in the order.
type Entry = (u64, SeqNo);

struct Memtable(Mutex<Vec<Entry>>);

impl Memtable {
    fn new() -> Arc<Memtable> {
        Arc::new(Memtable(Mutex::new(Vec::new())))
    }
}

#[derive(Clone)]
struct Frozen {
    memtable: Arc<Memtable>,
    last_seqno: SeqNo,
}

/// What a reader pins.
#[derive(Clone)]
struct View {
    active: Arc<Memtable>,
    /// Newest first.
    frozen: Vec<Frozen>,
    /// Newest first.
    tables: Vec<Arc<Vec<Entry>>>,
}

impl View {
    fn newest(&self, key: u64, at: SeqNo) -> Option<SeqNo> {
        let of_memtable = |memtable: &Memtable| newest(&memtable.0.lock(), key, at);
        // In the order of a point read, which stops at the first that is found.
        let active = || of_memtable(&self.active);
        let frozen = || self.frozen.iter().find_map(|frozen| of_memtable(&frozen.memtable));
        let tables = || self.tables.iter().find_map(|table| newest(table, key, at));
        active().or_else(frozen).or_else(tables)
    }
}

fn newest(entries: &[Entry], key: u64, at: SeqNo) -> Option<SeqNo> {
    let seen = entries.iter().filter(|(k, seqno)| *k == key && *seqno <= at);
    seen.map(|(_, seqno)| *seqno).max()
}

/// Of each key, the newest operation in each gap between two boundaries.
fn fold(entries: impl Iterator<Item = Entry>, boundaries: &[SeqNo]) -> Vec<Entry> {
    let all: Vec<Entry> = entries.collect();
    let is_seen = |(key, seqno): &Entry| {
        let ends = boundaries.iter().copied().chain([SeqNo::MAX]);
        ends.into_iter().any(|end| newest(&all, *key, end) == Some(*seqno))
    };
    all.iter().copied().filter(is_seen).collect()
}

struct Commits {
    next_seqno: SeqNo,
    active: Arc<Memtable>,
    /// The keys of all operations, in order.
    keys: Vec<u64>,
}

struct Model {
    ring: Ring,
    commits: Mutex<Commits>,
    view: Mutex<Arc<View>>,
    /// Registered numbers.
    snapshots: Mutex<Vec<SeqNo>>,
}

impl Model {
    fn new() -> Arc<Model> {
        let active = Memtable::new();
        let view = View { active: active.clone(), frozen: Vec::new(), tables: Vec::new() };
        Arc::new(Model {
            ring: Ring::new(SeqNo(0), Lsn(0)),
            commits: Mutex::new(Commits { next_seqno: SeqNo(1), active, keys: Vec::new() }),
            view: Mutex::new(Arc::new(view)),
            snapshots: Mutex::new(Vec::new()),
        })
    }

    fn view(&self) -> Arc<View> {
        self.view.lock().clone()
    }

    fn place(&self, key: u64) -> (Place, Arc<Memtable>) {
        loop {
            let mut commits = self.commits.lock();
            if !self.ring.has_room() {
                drop(commits);
                self.ring.wait_room();
                continue;
            }
            let seqno = commits.next_seqno;
            let place = self.ring.push(seqno, Lsn(seqno.0 * 8)).expect("room was made");
            commits.next_seqno = SeqNo(seqno.0 + 1);
            commits.keys.push(key);
            return (place, commits.active.clone());
        }
    }

    fn commit(&self, key: u64) {
        let (place, memtable) = self.place(key);
        memtable.0.lock().push((key, place.last_seqno));
        self.ring.finish(place);
        assert!(self.ring.wait_published(place));
        // Whoever was told of it reads it.
        assert!(self.read() >= place.last_seqno);
    }

    fn freeze(&self) {
        let fresh = Memtable::new();
        let mut commits = self.commits.lock();
        let last_seqno = SeqNo(commits.next_seqno.0 - 1);
        let memtable = std::mem::replace(&mut commits.active, fresh.clone());
        let view = self.view();
        let mut frozen = vec![Frozen { memtable, last_seqno }];
        frozen.extend(view.frozen.iter().cloned());
        *self.view.lock() = Arc::new(View { active: fresh, frozen, tables: view.tables.clone() });
    }

    /// One flush at a time.
    fn flush(&self) {
        let view = self.view();
        let Some(newest) = view.frozen.first() else { return };
        assert!(self.ring.wait_visible(newest.last_seqno));
        let boundaries = self.snapshots.lock().clone();
        let entries = view.frozen.iter().flat_map(|frozen| frozen.memtable.0.lock().clone());
        let table = Arc::new(fold(entries, &boundaries));
        let _commits = self.commits.lock();
        let now = self.view();
        let later = now.frozen.iter().filter(|frozen| frozen.last_seqno > newest.last_seqno);
        let (active, frozen) = (now.active.clone(), later.cloned().collect());
        let tables = [table].into_iter().chain(now.tables.iter().cloned()).collect();
        *self.view.lock() = Arc::new(View { active, frozen, tables });
    }

    /// Folds all tables into one; one compaction at a time.
    fn compact(&self) {
        let inputs = self.view().tables.clone();
        let boundaries = self.snapshots.lock().clone();
        let entries = inputs.iter().flat_map(|table| table.iter().copied());
        let output = Arc::new(fold(entries, &boundaries));
        let _commits = self.commits.lock();
        let now = self.view();
        let is_input =
            |table: &Arc<Vec<Entry>>| inputs.iter().any(|input| Arc::ptr_eq(input, table));
        let newer = now.tables.iter().filter(|table| !is_input(table)).cloned();
        let (active, frozen) = (now.active.clone(), now.frozen.clone());
        let tables = newer.chain([output]).collect();
        *self.view.lock() = Arc::new(View { active, frozen, tables });
    }

    fn pin(&self) -> (Arc<View>, SeqNo) {
        loop {
            let view = self.view();
            let visible = self.ring.visible();
            if Arc::ptr_eq(&view, &self.view()) {
                return (view, visible);
            }
        }
    }

    /// Reads every key; the number at which it was read.
    fn read(&self) -> SeqNo {
        let (view, visible) = self.pin();
        self.check(&view, visible);
        visible
    }

    fn read_snapshot(&self) {
        let seqno = {
            let mut snapshots = self.snapshots.lock();
            let visible = self.ring.visible();
            snapshots.push(visible);
            visible
        };
        for _ in 0..2 {
            thread::yield_now();
            self.check(&self.view(), seqno);
        }
        let mut snapshots = self.snapshots.lock();
        let at = snapshots.iter().position(|other| *other == seqno).expect("registered");
        snapshots.swap_remove(at);
    }

    fn check(&self, view: &View, at: SeqNo) {
        let found: Vec<_> = (0..KEYS).map(|key| view.newest(key, at)).collect();
        let commits = self.commits.lock();
        for (key, found) in (0..KEYS).zip(found) {
            let before = commits.keys[..at.0 as usize].iter().rposition(|other| *other == key);
            let expected = before.map(|index| SeqNo(index as u64 + 1));
            assert_eq!(found, expected, "key {key} at {at:?}");
        }
    }
}

/// Runs these in threads of a model, in many schedules.
fn together(parts: &[fn(&Model)]) {
    let model = Model::new();
    let threads = parts.iter().map(|part| {
        let (model, part) = (model.clone(), *part);
        thread::spawn(move || part(&model))
    });
    let threads: Vec<_> = threads.collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    model.read();
}

fn commits_everything(model: &Model) {
    (0..4).for_each(|i| model.commit(i % KEYS));
}

fn overwrites(model: &Model) {
    (0..3).for_each(|_| model.commit(0));
}

#[test]
fn reads_are_right_while_the_memtable_is_switched() {
    explore(|| {
        together(&[
            commits_everything,
            overwrites,
            |model| (0..3).for_each(|_| model.freeze()),
            |model| (0..3).for_each(|_| _ = model.read()),
        ]);
    });
}

#[test]
fn reads_are_right_while_versions_are_published() {
    explore(|| {
        together(&[
            commits_everything,
            overwrites,
            |model| {
                for _ in 0..2 {
                    model.freeze();
                    model.flush();
                }
            },
            |model| (0..2).for_each(|_| model.compact()),
            |model| (0..3).for_each(|_| _ = model.read()),
        ]);
    });
}

/// Few threads and few steps each, so that a schedule that needs three switches is met.
#[test]
fn a_snapshot_sees_its_moment_whatever_is_folded_later() {
    explore(|| {
        together(&[
            |model| {
                overwrite_and_flush(model);
                overwrite_and_flush(model);
                model.compact();
            },
            Model::read_snapshot,
        ]);
    });
    explore(|| {
        let model = Model::new();
        overwrite_and_flush(&model);
        let parts = [overwrite_and_flush, Model::compact, Model::read_snapshot];
        let threads = parts.map(|part| {
            let model = model.clone();
            thread::spawn(move || part(&model))
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

fn overwrite_and_flush(model: &Model) {
    model.commit(0);
    model.freeze();
    model.flush();
}
