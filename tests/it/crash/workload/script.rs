//! Short programs: a fixed alphabet of verbs, for trying all sequences of them.
//!
//! A program begins with a database at rest that has the keyspace `c0` and a few entries, all of
//! it durable. A verb that makes no sense where it stands, such as the drop of what was dropped,
//! does nothing.

use esker::Durability;

use crate::crash::oracle::{Op, Step};
use crate::crash::workload::{User, commit};

/// One verb of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// A key that is new.
    Put,
    /// A key that is there.
    Overwrite,
    Delete,
    /// Into a counter.
    Merge,
    /// Over both keyspaces, acknowledged as Disk.
    Batch,
    /// Over both keyspaces, with a ticket that is not waited for yet.
    Async,
    Sync,
    Flush,
    Compact,
    Create,
    Drop,
    /// A clean close, and open.
    Close,
    /// The last handle drops without a close, and open.
    Reopen,
}

impl Verb {
    pub const ALL: [Verb; 13] = [
        Verb::Put,
        Verb::Overwrite,
        Verb::Delete,
        Verb::Merge,
        Verb::Batch,
        Verb::Async,
        Verb::Sync,
        Verb::Flush,
        Verb::Compact,
        Verb::Create,
        Verb::Drop,
        Verb::Close,
        Verb::Reopen,
    ];
}

/// A program as text: `put,flush`.
pub fn text(script: &[Verb]) -> String {
    let names: Vec<String> = script.iter().map(|v| format!("{v:?}").to_lowercase()).collect();
    names.join(",")
}

/// A program from its text.
pub fn parsed(script: &str) -> Vec<Verb> {
    let named = |name: &str| {
        let verb = Verb::ALL.into_iter().find(|v| text(&[*v]) == name);
        verb.unwrap_or_else(|| panic!("{name:?} is none of {}", text(&Verb::ALL)))
    };
    script.split(',').filter(|name| !name.is_empty()).map(named).collect()
}

const COUNTER: &str = "c0";

fn put(key: &str, serial: u64) -> Op {
    Op::Put("default".into(), key.into(), format!("{serial}").into_bytes())
}

impl User {
    /// Runs a program. The empty one watches how its database is made.
    pub(super) fn perform_all(&mut self, script: &[Verb]) {
        self.watch.watch(script.is_empty());
        self.open(0);
        self.create(COUNTER);
        for op in [put("k", 1), put("l", 2), put("m", 3), self.increment()] {
            self.commit_one(op);
        }
        self.catch_up();
        self.end_session(true);
        self.open(0);
        self.watch.watch(true);
        for (i, verb) in script.iter().enumerate() {
            self.begin_action(1 + i);
            self.perform(*verb);
            self.catch_up();
        }
        self.end_session(false);
    }

    fn increment(&self) -> Op {
        let delta = (self.serial as i64 + 7).to_le_bytes().to_vec();
        Op::Merge(COUNTER.into(), b"k".to_vec(), delta)
    }

    /// Some operations, on the counters too if they are there.
    fn several(&self) -> Vec<Op> {
        let mut ops = vec![put("b", self.serial), Op::Delete("default".into(), b"l".to_vec())];
        ops.extend(self.handles.contains_key(COUNTER).then(|| self.increment()));
        ops
    }

    fn perform(&mut self, verb: Verb) {
        let has_counter = self.handles.contains_key(COUNTER);
        match verb {
            Verb::Put => self.commit_one(put(&format!("n{}", self.serial), self.serial)),
            Verb::Overwrite => self.commit_one(put("k", self.serial)),
            Verb::Delete => self.commit_one(Op::Delete("default".into(), b"k".to_vec())),
            Verb::Merge if has_counter => self.commit_one(self.increment()),
            Verb::Batch => self.batch_of(self.several(), Durability::Disk),
            Verb::Async => self.asynchronous_of(self.several(), Durability::Disk),
            Verb::Sync => self.sync(),
            Verb::Flush => self.flush(),
            Verb::Compact => self.compact(),
            Verb::Create if !self.contents.contains_key("p1") => self.create("p1"),
            Verb::Drop if has_counter => self.drop_one(COUNTER),
            Verb::Close | Verb::Reopen => {
                self.end_session(verb == Verb::Close);
                self.open(0);
            }
            Verb::Merge | Verb::Create | Verb::Drop => {}
        }
    }

    /// A commit of one operation by the verb of a keyspace.
    pub(super) fn commit_one(&mut self, op: Op) {
        let handles = &self.handles;
        let (place, result) = commit(Step::Commit(vec![op.clone()]), || match &op {
            Op::Put(name, key, value) => handles[name].put(key, value),
            Op::Delete(name, key) => handles[name].delete(key),
            Op::Merge(name, key, operand) => handles[name].merge(key, operand),
        });
        self.acknowledged("single", place, result, Durability::Process);
    }
}

#[test]
fn programs_are_read_as_they_are_written() {
    assert_eq!(parsed(&text(&Verb::ALL)), Verb::ALL);
    assert_eq!(parsed(""), []);
}
