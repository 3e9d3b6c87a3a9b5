//! The bytes choose operations on a tiny database with stepped threads; a map says what each must
//! read.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::db::Db;
use crate::db::batch::Batch;
use crate::db::keyspace::{Keyspace, KeyspaceOptions};
use crate::db::snapshot::Snapshot;
use crate::error::Result;
use crate::fs::sim::SimFs;
use crate::fuzz::Input;
use crate::operator::Append;
use crate::options::{Compression, Durability, Filter, Options, ReadMode};
use crate::read::iter::Iter;
use crate::runtime::Runtime;

/// More operations than this make an input slow and nothing else.
const OPERATIONS_MAX: usize = 400;
/// Keyspaces: one of plain values, one that appends.
pub(super) const NAMES: [&str; 2] = ["default", "notes"];

pub(super) type Map = BTreeMap<Vec<u8>, Vec<u8>>;
pub(super) type Model = [Map; 2];

/// Options that the input chooses.
pub(super) fn options(choice: u8) -> Options {
    let mut options = Options::tiny();
    options.threads = 1 + usize::from(choice & 1);
    options.read_mode = if choice & 2 == 0 { ReadMode::Mapped } else { ReadMode::Pread };
    options.compression = if choice & 4 == 0 { Compression::None } else { Compression::Lz4 };
    options.filter = match choice >> 3 & 3 {
        0 => Filter::None,
        1 => Filter::Bloom { bits_per_key: 10 },
        _ => Filter::BinaryFuse8,
    };
    options
}

pub(super) fn open(disk: &SimFs, runtime: Runtime, options: &Options) -> (Db, [Keyspace; 2]) {
    let db = Db::open_on(Arc::new(disk.clone()), runtime, "/db", options.clone());
    let db = db.unwrap_or_else(|error| panic!("{error}"));
    let notes = db.keyspace(NAMES[1], KeyspaceOptions::new().merge(Append));
    let keyspaces = [(*db).clone(), notes.unwrap_or_else(|error| panic!("{error}"))];
    (db, keyspaces)
}

/// Few keys, so that they meet.
pub(super) fn key(input: &mut Input<'_>) -> Vec<u8> {
    match input.u8() {
        byte @ 0..240 => vec![b'a' + byte % 16, b'a' + byte / 16 % 3],
        byte => vec![b'k'; usize::from(byte - 240) * 9],
    }
}

pub(super) fn value(input: &mut Input<'_>) -> Vec<u8> {
    match input.u8() {
        byte @ 0..250 => vec![byte; usize::from(byte % 24)],
        byte => vec![byte; usize::from(byte - 249) * 190],
    }
}

/// One change of one key: to the model, and to a batch.
pub(super) fn change(
    input: &mut Input<'_>,
    keyspaces: &[Keyspace; 2],
    batch: &mut Batch,
    model: &mut Model,
) {
    let choice = input.u8();
    let which = usize::from(choice & 1);
    let (keyspace, map, key) = (&keyspaces[which], &mut model[which], key(input));
    match choice >> 1 & 3 {
        0 => {
            batch.delete(keyspace, &key);
            map.remove(&key);
        }
        1 if which == 1 => {
            let operand = value(input);
            batch.merge(keyspace, &key, &operand[..]);
            map.entry(key).or_default().extend_from_slice(&operand);
        }
        _ => {
            let value = value(input);
            batch.put(keyspace, &key, &value);
            map.insert(key, value);
        }
    }
}

struct Run<'a> {
    input: Input<'a>,
    disk: SimFs,
    options: Options,
    runtime: Runtime,
    db: Option<(Db, [Keyspace; 2])>,
    model: Model,
    snapshots: Vec<(Snapshot, Model)>,
}

pub(super) fn run(input: &[u8]) {
    let mut input = Input(input);
    let (options, seed) = (options(input.u8()), u64::from(input.u8()));
    let (disk, runtime) = (SimFs::new(), Runtime::stepper(seed));
    let db = Some(open(&disk, runtime.clone(), &options));
    let (model, snapshots) = (Model::default(), Vec::new());
    let mut run = Run { input, disk, options, runtime, db, model, snapshots };
    for _ in 0..OPERATIONS_MAX {
        if run.input.is_empty() {
            break;
        }
        run.step();
    }
    run.compare();
    run.reopen(true);
    run.compare();
    run.snapshots.clear();
    run.db = None;
}

impl Run<'_> {
    fn db(&self) -> &(Db, [Keyspace; 2]) {
        self.db.as_ref().expect("it is closed only while it is opened again")
    }

    fn step(&mut self) {
        let (db, keyspaces) = self.db().clone();
        let done = match self.input.u8() % 32 {
            0..16 => self.commit(&db, &keyspaces, 1),
            16..20 => {
                let count = self.input.u8() % 8 + 1;
                self.commit(&db, &keyspaces, count)
            }
            20 => db.flush(),
            21 => {
                let rest = || keyspaces[1].compact_range(&b"b"[..]..);
                db.compact_range::<&[u8]>(..).and_then(|()| rest())
            }
            22 => db.settle(),
            23 => {
                let clean = self.input.u8() & 1 == 1;
                drop((db, keyspaces));
                self.reopen(clean);
                Ok(())
            }
            24 => {
                self.snapshots.push((db.snapshot(), self.model.clone()));
                Ok(())
            }
            25 => {
                let index = usize::from(self.input.u8());
                if !self.snapshots.is_empty() {
                    self.snapshots.swap_remove(index % self.snapshots.len());
                }
                Ok(())
            }
            26..30 => {
                self.get(&keyspaces);
                Ok(())
            }
            _ => {
                self.scan(&keyspaces);
                Ok(())
            }
        };
        done.unwrap_or_else(|error| panic!("{error}"));
    }

    fn commit(&mut self, db: &Db, keyspaces: &[Keyspace; 2], count: u8) -> Result<()> {
        let mut batch = db.batch();
        for _ in 0..count {
            change(&mut self.input, keyspaces, &mut batch, &mut self.model);
        }
        match count {
            1 => batch.commit(),
            _ => batch.commit_with(Durability::Disk),
        }
    }

    /// Closes or drops the database, and opens it again.
    fn reopen(&mut self, clean: bool) {
        // Their numbers belong to the handle that is let go of.
        self.snapshots.clear();
        let (db, keyspaces) = self.db.take().expect("open");
        drop(keyspaces);
        match clean {
            true => db.close().unwrap_or_else(|error| panic!("{error}")),
            false => drop(db),
        }
        self.db = Some(open(&self.disk, self.runtime.clone(), &self.options));
    }

    fn get(&mut self, keyspaces: &[Keyspace; 2]) {
        let which = usize::from(self.input.u8() & 1);
        let key = key(&mut self.input);
        let found = keyspaces[which].get(&key).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(found.as_deref(), self.model[which].get(&key).map(Vec::as_slice));
        if let Some((snapshot, model)) = self.snapshots.last() {
            let view = snapshot.keyspace(&keyspaces[which]).unwrap_or_else(|e| panic!("{e}"));
            let found = view.get(&key).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(found.as_deref(), model[which].get(&key).map(Vec::as_slice));
        }
    }

    /// A range, from both ends in turns.
    fn scan(&mut self, keyspaces: &[Keyspace; 2]) {
        let choice = self.input.u8();
        let which = usize::from(choice & 1);
        let (from, to) = (key(&mut self.input), key(&mut self.input));
        let (from, to) = (from.clone().min(to.clone()), from.max(to));
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let mut expected = self.model[which].range(bounds.clone());
        let mut found = keyspaces[which].range(bounds);
        let mut turns = choice >> 1;
        loop {
            turns = turns.rotate_left(1);
            let (found, expected) = match turns & 1 {
                0 => (found.next(), expected.next()),
                _ => (found.next_back(), expected.next_back()),
            };
            let found = found.map(|entry| entry.unwrap_or_else(|error| panic!("{error}")));
            match (found, expected) {
                (None, None) => break,
                (Some((key, value)), Some((k, v))) => {
                    assert!(key[..] == k[..] && value[..] == v[..], "{key:?} {k:?}");
                }
                (found, expected) => panic!("{found:?}, not {expected:?}"),
            }
        }
    }

    /// Everything, in every keyspace and snapshot.
    fn compare(&self) {
        let (_, keyspaces) = self.db();
        for (keyspace, expected) in keyspaces.iter().zip(&self.model) {
            assert_eq!(&contents(keyspace), expected);
        }
        for (snapshot, model) in &self.snapshots {
            for (keyspace, expected) in keyspaces.iter().zip(model) {
                let view = snapshot.keyspace(keyspace).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(&collect(view.iter()), expected);
            }
        }
    }
}

pub(super) fn contents(keyspace: &Keyspace) -> Map {
    collect(keyspace.iter())
}

fn collect(entries: Iter) -> Map {
    let entries = entries.map(|entry| {
        let (key, value) = entry.unwrap_or_else(|error| panic!("{error}"));
        (key.to_vec(), value.to_vec())
    });
    entries.collect()
}
