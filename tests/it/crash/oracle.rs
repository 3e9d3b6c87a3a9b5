//! What a database must hold: the states S_0, S_1, … that its commits lead through, in their one
//! order.
//!
//! A state is known by its *print*: the exclusive or of a hash of every keyspace and of every
//! entry, so that the print of S_k follows from that of S_k-1, and that of a database from one
//! scan, without keeping a copy of either.

use std::collections::{BTreeMap, HashMap};

use esker::fs::Fs;
use esker::fs::sim::SimFs;
use esker::{Db, KeyspaceOptions};
use xxhash_rust::xxh3::Xxh3;

/// All keyspaces with their entries.
pub type Contents = BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>;

/// One operation of a commit.
#[derive(Clone)]
pub enum Op {
    Put(String, Vec<u8>, Vec<u8>),
    Delete(String, Vec<u8>),
    /// What it does is said by the first letter of the keyspace's name; see [`kind_of`].
    Merge(String, Vec<u8>, Vec<u8>),
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let head = |bytes: &[u8]| bytes[..bytes.len().min(12)].escape_ascii().to_string();
        match self {
            Op::Put(name, key, value) => write!(f, "{name}/{} = {}", head(key), head(value)),
            Op::Delete(name, key) => write!(f, "{name}/{} deleted", head(key)),
            Op::Merge(name, key, operand) => write!(f, "{name}/{} + {}", head(key), head(operand)),
        }
    }
}

/// What has a place in the order.
#[derive(Clone, Debug)]
pub enum Step {
    Commit(Vec<Op>),
    Create(String),
    Drop(String),
}

/// How operands of a keyspace fold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Plain,
    Counter,
    Append,
}

/// A keyspace's operator follows from its name.
pub fn kind_of(keyspace: &str) -> Kind {
    match keyspace.as_bytes()[0] {
        b'c' => Kind::Counter,
        b'a' => Kind::Append,
        _ => Kind::Plain,
    }
}

/// The states that a sequence of steps leads through.
#[derive(Clone)]
pub struct Oracle {
    base: Contents,
    steps: Vec<Step>,
    /// The k of each print of an S_k.
    by_print: HashMap<u64, Vec<usize>>,
}

impl Oracle {
    pub fn new(base: Contents, steps: Vec<Step>) -> Oracle {
        let mut contents = base.clone();
        let mut print = print_of_contents(&contents);
        let mut prints = vec![print];
        for step in &steps {
            apply(&mut contents, step, &mut print);
            prints.push(print);
        }
        debug_assert_eq!(print, print_of_contents(&contents));
        let mut by_print: HashMap<u64, Vec<usize>> = HashMap::new();
        for (k, print) in prints.iter().enumerate() {
            by_print.entry(*print).or_default().push(k);
        }
        Oracle { base, steps, by_print }
    }

    /// True if the print is that of some S_k with `lo <= k <= hi`.
    pub fn admits(&self, print: u64, lo: usize, hi: usize) -> bool {
        let found = self.by_print.get(&print);
        found.is_some_and(|ks| ks.iter().any(|k| (lo..=hi).contains(k)))
    }

    /// The largest such k.
    pub fn find(&self, print: u64, lo: usize, hi: usize) -> Option<usize> {
        self.by_print.get(&print)?.iter().rev().find(|k| (lo..=hi).contains(k)).copied()
    }

    /// How many steps there are.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// S_k itself.
    pub fn contents(&self, k: usize) -> Contents {
        let mut contents = self.base.clone();
        let mut print = 0;
        for step in &self.steps[..k] {
            apply(&mut contents, step, &mut print);
        }
        contents
    }

    /// Says how `found` differs from what was promised.
    pub fn explain(&self, found: &Contents, lo: usize, hi: usize) -> String {
        let print = print_of_contents(found);
        if let Some(ks) = self.by_print.get(&print) {
            return format!("found S_{ks:?}, which is not in {lo}..={hi}");
        }
        let nearest = (lo.saturating_sub(3)..=(hi + 1).min(self.len()))
            .map(|k| (differences(&self.contents(k), found), k))
            .min_by_key(|(lines, _)| lines.len());
        let (lines, k) = nearest.expect("there is at least one state");
        let steps = (k.saturating_sub(12)..(k + 2).min(self.len()))
            .map(|i| format!("  S_{}: {:?}\n", i + 1, self.steps[i]));
        let (steps, shown) = (steps.collect::<String>(), lines.len().min(12));
        format!(
            "found no S_k with k in {lo}..={hi}; nearest is S_{k}:\n  {}\nsteps around it:\n{steps}",
            lines[..shown].join("\n  ")
        )
    }
}

fn differences(expected: &Contents, found: &Contents) -> Vec<String> {
    let mut lines = Vec::new();
    let text = |value: Option<&Vec<u8>>| value.map(|value| value.escape_ascii().to_string());
    let empty = BTreeMap::new();
    let mut names: Vec<_> = expected.keys().chain(found.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        if expected.contains_key(name) != found.contains_key(name) {
            lines.push(format!("keyspace {name}: there only in one of them"));
        }
        let (a, b) = (expected.get(name).unwrap_or(&empty), found.get(name).unwrap_or(&empty));
        let mut keys: Vec<_> = a.keys().chain(b.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            if a.get(key) != b.get(key) {
                let (expected, found) = (text(a.get(key)), text(b.get(key)));
                let key = key.escape_ascii();
                lines.push(format!("{name}/{key}: expected {expected:?}, found {found:?}"));
            }
        }
    }
    lines
}

/// Does a step, and keeps `print` that of `contents`.
pub fn apply(contents: &mut Contents, step: &Step, print: &mut u64) {
    match step {
        Step::Commit(ops) => ops.iter().for_each(|op| apply_op(contents, op, print)),
        Step::Create(name) => {
            contents.insert(name.clone(), BTreeMap::new());
            *print ^= print_of_name(name);
        }
        Step::Drop(name) => {
            let entries = contents.remove(name).expect("only what is there is dropped");
            *print ^= print_of_name(name);
            for (key, value) in entries {
                *print ^= print_of_entry(name, &key, &value);
            }
        }
    }
}

fn apply_op(contents: &mut Contents, op: &Op, print: &mut u64) {
    let (Op::Put(name, key, _) | Op::Delete(name, key) | Op::Merge(name, key, _)) = op;
    let entries = contents.get_mut(name).expect("only what is there is written");
    let before = entries.remove(key);
    let after = match op {
        Op::Put(_, _, value) => Some(value.clone()),
        Op::Delete(..) => None,
        Op::Merge(_, _, operand) => Some(fold(kind_of(name), before.as_deref(), operand)),
    };
    if let Some(value) = before {
        *print ^= print_of_entry(name, key, &value);
    }
    if let Some(value) = after {
        *print ^= print_of_entry(name, key, &value);
        entries.insert(key.clone(), value);
    }
}

fn fold(kind: Kind, base: Option<&[u8]>, operand: &[u8]) -> Vec<u8> {
    let number = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    match kind {
        Kind::Counter => {
            let sum = base.map_or(0, number).wrapping_add(number(operand));
            sum.to_le_bytes().to_vec()
        }
        Kind::Append => [base.unwrap_or_default(), operand].concat(),
        Kind::Plain => unreachable!("plain keyspaces are not merged into"),
    }
}

fn print_of_name(name: &str) -> u64 {
    print_of_entry(name, b"\0keyspace", b"")
}

pub fn print_of_entry(name: &str, key: &[u8], value: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    for part in [name.as_bytes(), key, value] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.digest()
}

pub fn print_of_contents(contents: &Contents) -> u64 {
    let mut print = 0;
    for (name, entries) in contents {
        print ^= print_of_name(name);
        for (key, value) in entries {
            print ^= print_of_entry(name, key, value);
        }
    }
    print
}

/// How a database is read to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    Forward,
    Reverse,
    /// Forward, and every key again by `get`.
    Gets,
}

/// The print of everything that is in the database.
pub fn print_of(db: &Db, reading: Reading) -> esker::Result<u64> {
    let mut print = 0;
    for name in db.keyspace_names() {
        let keyspace = db.keyspace(&name, KeyspaceOptions::new())?;
        print ^= print_of_name(&name);
        let mut entry = |entry: esker::Result<esker::Entry>| {
            let (key, value) = entry?;
            if reading == Reading::Gets {
                let got = keyspace.get(&key)?;
                assert_eq!(got.as_deref(), Some(&*value), "a get and a scan differ at {key:?}");
            }
            print ^= print_of_entry(&name, &key, &value);
            Ok(())
        };
        match reading {
            Reading::Forward | Reading::Gets => keyspace.iter().try_for_each(&mut entry)?,
            Reading::Reverse => keyspace.iter().rev().try_for_each(&mut entry)?,
        }
    }
    Ok(print)
}

/// Everything that is in the database.
pub fn contents_of(db: &Db) -> esker::Result<Contents> {
    let mut contents = Contents::new();
    for name in db.keyspace_names() {
        let keyspace = db.keyspace(&name, KeyspaceOptions::new())?;
        let entries = keyspace.iter().map(|e| e.map(|(k, v)| (k.to_vec(), v.to_vec())));
        contents.insert(name, entries.collect::<esker::Result<_>>()?);
    }
    Ok(contents)
}

/// Fails if the directory of a database that was just opened has files that it does not need, or
/// lacks some. (That tables which the manifest names exist is seen by the open itself.)
pub fn check_files(db: &Db, disk: &SimFs, dir: &std::path::Path) -> Result<(), String> {
    let names = disk.list(dir).map_err(|error| error.to_string())?;
    let count = |end: &str| names.iter().filter(|name| name.ends_with(end)).count() as u64;
    let stats = db.stats();
    let levels = stats.keyspaces.iter().flat_map(|keyspace| &keyspace.levels);
    let tables: u64 = levels.map(|level| level.files).sum();
    let manifests = names.iter().filter(|name| name.starts_with("manifest-")).count();
    let found = (count(".table"), count(".log"), manifests, count(".tmp"));
    match found == (tables, 1, 1, 0) {
        true => Ok(()),
        false => Err(format!(
            "orphans or missing files: (tables, logs, manifests, temporary files) should be \
             {:?}, are {found:?}: {names:?}",
            (tables, 1, 1, 0)
        )),
    }
}
