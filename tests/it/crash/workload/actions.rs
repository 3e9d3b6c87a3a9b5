//! What a run does: one action of each kind, drawn by the run's generator.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use esker::runtime::Priority;
use esker::{BreakerState, Db, Durability, Error, Keyspace};

use crate::crash::oracle::{Kind, Op, Step, kind_of};
use crate::crash::workload::{Held, User, commit, keyspace_options};

impl User {
    pub(super) fn act(&mut self) {
        match self.random.u32(..1000) {
            0..455 => self.single(),
            455..475 => self.snapshot(),
            475..500 => self.large(),
            500..620 => self.batch(Durability::Process),
            620..700 => self.batch(Durability::Disk),
            700..800 => self.asynchronous(),
            800..830 => self.take_tickets(0),
            830..860 => self.burst(),
            860..885 => self.sync(),
            885..915 => self.create_some(),
            915..940 => self.drop_some(),
            940..955 => self.flush(),
            955..965 => self.compact(),
            965..975 => self.settle(),
            975..985 => {
                let clean = self.random.bool();
                self.end_session(clean);
            }
            _ => self.overwrite(),
        }
    }

    fn db(&self) -> Db {
        self.db.clone().expect("open")
    }

    // What is written.

    fn value(&mut self) -> Vec<u8> {
        self.serial += 1;
        let mut value = format!("{}:", self.serial).into_bytes();
        let padding = match self.random.u8(..20) {
            0..14 => self.random.usize(..24),
            14..19 => self.random.usize(..160),
            _ => self.random.usize(300..900),
        };
        value.resize(value.len() + padding, b'.');
        value
    }

    fn key(&mut self) -> Vec<u8> {
        match self.random.u8(..40) {
            0 => Vec::new(),
            1 => [b"long".as_slice(), &[b'k'; 80]].concat(),
            _ => format!("k{:02}", self.random.u8(..30)).into_bytes(),
        }
    }

    /// An operation on one of these keyspaces.
    fn op(&mut self, names: &[String]) -> Op {
        let name = names[self.random.usize(..names.len())].clone();
        let (key, kind) = (self.key(), kind_of(&name));
        let random = self.random.u8(..10);
        match (kind, random) {
            (_, 0..2) => Op::Delete(name, key),
            (Kind::Plain, _) => Op::Put(name, key, self.value()),
            (Kind::Counter, 2) => {
                let number = i64::from(self.random.i32(..)).to_le_bytes();
                Op::Put(name, key, number.to_vec())
            }
            (Kind::Counter, _) => {
                self.serial += 1;
                let delta = (self.serial as i64) << self.random.u8(..20);
                Op::Merge(name, key, delta.to_le_bytes().to_vec())
            }
            (Kind::Append, 2) => Op::Put(name, key, self.value()),
            (Kind::Append, _) => {
                self.serial += 1;
                Op::Merge(name, key, format!("+{}", self.serial).into_bytes())
            }
        }
    }

    fn ops(&mut self, count: usize) -> Vec<Op> {
        let names: Vec<String> = self.handles.keys().cloned().collect();
        (0..count).map(|_| self.op(&names)).collect()
    }

    // Actions.

    fn single(&mut self) {
        let op = self.ops(1).remove(0);
        self.commit_one(op);
    }

    /// One key again and again, so that compactions have something to fold.
    fn overwrite(&mut self) {
        for _ in 0..self.random.usize(2..6) {
            self.single();
            self.catch_up();
        }
    }

    /// One that fits no ordinary log file.
    fn large(&mut self) {
        let value = [self.value(), vec![b'l'; self.random.usize(800..6000)]].concat();
        let ops = vec![Op::Put("default".into(), self.key(), value)];
        let mut batch = self.db().batch();
        fill(&mut batch, &self.handles, &ops);
        let result = commit(Step::Commit(ops), || batch.commit_with(Durability::Disk));
        self.acknowledged("large", result.0, result.1, Durability::Disk);
    }

    pub(super) fn acknowledged(
        &mut self,
        what: &str,
        place: Option<usize>,
        result: Result<(), Error>,
        durability: Durability,
    ) {
        if self.note(what, result).is_some() {
            let place = place.expect("an acknowledged commit was stored");
            self.watch.acknowledge(place, durability, what);
        }
    }

    fn batch(&mut self, durability: Durability) {
        let count = self.random.usize(1..8);
        let ops = self.ops(count);
        self.batch_of(ops, durability);
    }

    pub(super) fn batch_of(&mut self, ops: Vec<Op>, durability: Durability) {
        let mut batch = self.db().batch();
        fill(&mut batch, &self.handles, &ops);
        let (place, result) = commit(Step::Commit(ops), || batch.commit_with(durability));
        self.acknowledged("batch", place, result, durability);
    }

    fn asynchronous(&mut self) {
        let count = self.random.usize(1..4);
        let ops = self.ops(count);
        let durability = if self.random.bool() { Durability::Disk } else { Durability::Process };
        self.asynchronous_of(ops, durability);
        let leave = self.random.usize(..5);
        self.take_tickets(leave);
    }

    pub(super) fn asynchronous_of(&mut self, ops: Vec<Op>, durability: Durability) {
        let mut batch = self.db().batch();
        fill(&mut batch, &self.handles, &ops);
        let (place, result) = commit(Step::Commit(ops), || batch.commit_async_with(durability));
        if let Some(ticket) = self.note("asynchronous", result) {
            let place = place.expect("a commit with a ticket was stored");
            self.tickets.push_back((place, durability, ticket));
        }
    }

    /// Waits for tickets until `leave` are left.
    pub(super) fn take_tickets(&mut self, leave: usize) {
        while self.tickets.len() > leave {
            let (place, durability, ticket) = self.tickets.pop_front().expect("some are left");
            if self.random.u8(..8) == 0 {
                continue; // Dropping a ticket cancels nothing.
            }
            let result = ticket.wait();
            self.acknowledged("ticket", Some(place), result, durability);
        }
    }

    /// Holds what is there now, so that compactions must keep it; lets older ones go.
    fn snapshot(&mut self) {
        if !self.failed {
            let (handles, contents) = (self.handles.clone(), self.contents.clone());
            self.snapshots.push_back(Held { snapshot: self.db().snapshot(), handles, contents });
        }
        let leave = self.random.usize(..4);
        self.release_snapshots(leave);
    }

    /// Lets snapshots go until `leave` are left; each must show what it showed at first.
    pub(super) fn release_snapshots(&mut self, leave: usize) {
        while self.snapshots.len() > leave {
            let held = self.snapshots.pop_front().expect("some are left");
            // A drop takes a keyspace from snapshots too.
            for (name, keyspace) in held.handles.iter().filter(|(_, k)| k.contains("").is_ok()) {
                let found = held.snapshot.keyspace(keyspace).and_then(|view| {
                    view.iter().map(|e| e.map(|(k, v)| (k.to_vec(), v.to_vec()))).collect()
                });
                if let Some(found) = self.note::<BTreeMap<_, _>>("snapshot", found) {
                    assert_eq!(held.contents[name], found, "a snapshot of {name} changed");
                }
            }
        }
    }

    /// Several threads commit at once.
    fn burst(&mut self) {
        let runtime = self.runtime.clone().expect("open");
        let errors = Arc::new(Mutex::new(Vec::new()));
        let tasks: Vec<_> = (0..self.random.usize(2..4))
            .map(|_| {
                let count = self.random.usize(1..5);
                let commits: Vec<(Vec<Op>, Durability)> = (0..count)
                    .map(|_| {
                        let disk = self.random.u8(..3) == 0;
                        let durability = if disk { Durability::Disk } else { Durability::Process };
                        let count = self.random.usize(1..4);
                        (self.ops(count), durability)
                    })
                    .collect();
                let (db, handles) = (self.db(), self.handles.clone());
                let (watch, errors) = (self.watch.clone(), errors.clone());
                let write = move || {
                    for (ops, durability) in commits {
                        let mut batch = db.batch();
                        fill(&mut batch, &handles, &ops);
                        let step = Step::Commit(ops);
                        let (place, result) = commit(step, || batch.commit_with(durability));
                        match result {
                            Ok(()) => {
                                let place = place.expect("an acknowledged commit was stored");
                                watch.acknowledge(place, durability, "burst");
                            }
                            Err(error) => errors.lock().unwrap().push(error),
                        }
                    }
                };
                runtime.spawn("writer", Priority::Normal, write).expect("a thread")
            })
            .collect();
        tasks.into_iter().for_each(esker::runtime::Task::join);
        for error in std::mem::take(&mut *errors.lock().unwrap()) {
            self.note("burst", Err::<(), _>(error));
        }
    }

    /// The last step that a sync or a flush covers. After an error some may be unknown.
    pub(super) fn all_so_far(&self) -> usize {
        let bounds = self.watch.bounds();
        if self.failed { bounds.kill } else { bounds.begun }
    }

    pub(super) fn sync(&mut self) {
        let begun = self.all_so_far();
        let synced = self.db().sync();
        if self.note("sync", synced).is_some() {
            self.watch.acknowledge(begun, Durability::Disk, "sync");
        }
    }

    fn create_some(&mut self) {
        let name = format!("{}{}", ["p", "c", "a"][self.random.usize(..3)], self.random.u8(..2));
        match self.contents.contains_key(&name) {
            true => self.single(),
            false => self.create(&name),
        }
    }

    pub(super) fn create(&mut self, name: &str) {
        let name = name.to_string();
        if self.is_refusing() {
            let created = self.db().keyspace(&name, keyspace_options(&name));
            if let Some(keyspace) = self.note("create", created) {
                // Healed meanwhile.
                let place = self.watch.begin(Step::Create(name.clone()));
                self.handles.insert(name, keyspace);
                self.watch.acknowledge(place, Durability::Disk, "create");
            }
            return;
        }
        let place = self.watch.begin(Step::Create(name.clone()));
        let created = self.db().keyspace(&name, keyspace_options(&name));
        if created.is_err() {
            // Writes go on only after a repair, which leaves it out.
            self.watch.progress.lock().unwrap().last_is_ghost = true;
        }
        if let Some(keyspace) = self.note("create", created) {
            self.handles.insert(name, keyspace);
            self.watch.acknowledge(place, Durability::Disk, "create");
        }
    }

    fn drop_some(&mut self) {
        let names: Vec<String> =
            self.handles.keys().filter(|name| *name != "default").cloned().collect();
        if names.is_empty() {
            return self.single();
        }
        let name = names[self.random.usize(..names.len())].clone();
        self.drop_one(&name);
    }

    pub(super) fn drop_one(&mut self, name: &str) {
        let name = name.to_string();
        if self.is_refusing() {
            let dropped = self.db().drop_keyspace(&name);
            if self.note("drop", dropped).is_some() {
                self.handles.remove(&name);
                let place = self.watch.begin(Step::Drop(name));
                self.watch.acknowledge(place, Durability::Disk, "drop");
            }
            return;
        }
        let place = self.watch.begin(Step::Drop(name.clone()));
        let handle = self.handles.remove(&name).expect("one of them");
        let dropped = self.db().drop_keyspace(&name);
        // If its handles are dead, a repair will carry it out. Otherwise it was refused.
        if dropped.is_err() && handle.contains("").is_ok() {
            self.watch.progress.lock().unwrap().steps.truncate(place - 1);
            self.handles.insert(name, handle);
        }
        if self.note("drop", dropped).is_some() {
            self.watch.acknowledge(place, Durability::Disk, "drop");
        }
    }

    /// The breaker is open already: what is begun now takes no place.
    fn is_refusing(&self) -> bool {
        self.db().breaker().0 != BreakerState::Closed
    }

    pub(super) fn flush(&mut self) {
        let begun = self.all_so_far();
        let flushed = self.db().flush();
        if self.note("flush", flushed).is_some() {
            // More than the contract says, but what a flush means.
            self.watch.acknowledge(begun, Durability::Disk, "flush");
        }
    }

    pub(super) fn compact(&mut self) {
        let names: Vec<&Keyspace> = self.handles.values().collect();
        let keyspace = names[self.random.usize(..names.len())].clone();
        let compacted = keyspace.compact_range::<&[u8]>(..);
        self.note("compact", compacted);
    }

    fn settle(&mut self) {
        let settled = self.db().settle();
        self.note("settle", settled);
    }
}

fn fill(batch: &mut esker::Batch, handles: &BTreeMap<String, Keyspace>, ops: &[Op]) {
    for op in ops {
        match op {
            Op::Put(name, key, value) => batch.put(&handles[name], key, value),
            Op::Delete(name, key) => batch.delete(&handles[name], key),
            Op::Merge(name, key, operand) => batch.merge(&handles[name], key, operand),
        };
    }
}
