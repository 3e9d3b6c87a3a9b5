//! Runs a sequence on the engine and on the model beside it, and compares every answer.
//!
//! The model of a keyspace is a map; that of a moment is the maps as they were then. Maps are
//! shared and copied when they change, so that every moment that somebody holds, by a snapshot, a
//! cursor or a scan, keeps its own.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use esker::fs::sim::{Phase, SimFs};
use esker::runtime::{Runtime, yield_point};
use esker::{Append, Counter, Durability, ErrorKind, KeyspaceOptions, Slice};

use super::{Cursor, Db, Iter, Keyspace, KeyspaceSnapshot, Snapshot};
use crate::model::operation::{
    Commit, Ends, Key, Leave, Move, Operation, Range, Read, Reshard, SPACES, Space, When, Write,
};
use crate::model::setting::{Failure, Setting, Tally};

type Outcome = Result<(), Failure>;

fn expect<T: PartialEq + Debug>(found: T, expected: T, what: impl Debug) -> Outcome {
    if found == expected {
        return Ok(());
    }
    Err(Failure(format!("{what:?}\n    found    {found:?}\n    expected {expected:?}")))
}

/// The call must fail because the keyspace or the database is gone.
fn expect_closed<T: Debug>(result: esker::Result<T>, what: &str) -> Outcome {
    match result {
        Err(error) if *error.kind() == ErrorKind::Closed => Ok(()),
        other => Err(Failure(format!("{what} on what is gone gave {other:?}"))),
    }
}

/// Keys and values of one keyspace at one moment.
type Contents = Arc<BTreeMap<Vec<u8>, Vec<u8>>>;

/// All keyspaces at one moment, in the order of `SPACES`.
#[derive(Clone, Default)]
struct Moment {
    contents: [Contents; 4],
    /// Which creation of `Passing` this was, while it existed.
    passing: Option<u32>,
}

impl Moment {
    fn apply(&mut self, write: Write) {
        let map = Arc::make_mut(&mut self.contents[write.space() as usize]);
        match write {
            Write::Put(_, key, value) => _ = map.insert(key.bytes(), value.bytes()),
            Write::Delete(_, key) => _ = map.remove(&key.bytes()),
            Write::Merge(Space::Counters, key, value) => {
                let sum = map.entry(key.bytes()).or_insert_with(|| vec![0; 8]);
                let number = |bytes: &[u8]| Counter::decode(bytes).expect("8 bytes");
                let added = number(sum).wrapping_add(number(&value.bytes()));
                *sum = added.to_le_bytes().to_vec();
            }
            Write::Merge(_, key, value) => {
                map.entry(key.bytes()).or_default().extend(value.bytes());
            }
        }
    }
}

struct HeldCursor {
    cursor: Cursor,
    contents: Contents,
    at: Option<Vec<u8>>,
}

struct HeldScan {
    scan: Iter,
    rest: VecDeque<(Vec<u8>, Vec<u8>)>,
}

/// A sequence that is running.
struct Run {
    tally: Tally,
    fs: SimFs,
    runtime: Runtime,
    setting: Setting,
    db: Option<Db>,
    /// In the order of `SPACES`.
    spaces: [Option<Keyspace>; 4],
    /// A handle to `Passing` from before it was dropped.
    stale: Option<Keyspace>,
    creations: u32,
    checkpoints: u32,
    now: Moment,
    snapshots: Vec<(Snapshot, Moment)>,
    cursors: Vec<HeldCursor>,
    scans: Vec<HeldScan>,
}

/// Runs the operations. Calls `begun` before each with its number.
pub fn run(
    setting: &Setting,
    operations: &[Operation],
    mut begun: impl FnMut(usize),
) -> Result<Tally, Failure> {
    let fs = SimFs::new();
    let runtime = match setting.stepper {
        Some(seed) => {
            fs.on_call(Arc::new(|_, phase, _| {
                if phase != Phase::After {
                    yield_point();
                }
            }));
            Runtime::stepper(seed)
        }
        None => Runtime::threads(),
    };
    let mut run = Run {
        tally: Tally::default(),
        fs,
        runtime,
        setting: setting.clone(),
        db: None,
        spaces: Default::default(),
        stale: None,
        creations: 0,
        checkpoints: 0,
        now: Moment::default(),
        snapshots: Vec::new(),
        cursors: Vec::new(),
        scans: Vec::new(),
    };
    run.open()?;
    for (index, operation) in operations.iter().enumerate() {
        begun(index);
        run.tally.operations += 1;
        run.perform(operation)?;
    }
    begun(operations.len());
    run.check_everything()?;
    run.leave(Leave::Close)?;
    run.open()?;
    run.check_everything()?;
    run.leave(Leave::Drop)?;
    Ok(run.tally)
}

fn key_options(space: Space) -> KeyspaceOptions {
    match space {
        Space::Default => KeyspaceOptions::new(),
        Space::Counters => KeyspaceOptions::new().merge(Counter::default()),
        Space::Texts | Space::Passing => KeyspaceOptions::new().merge(Append),
    }
}

fn name(space: Space) -> &'static str {
    match space {
        Space::Default => "default",
        Space::Counters => "counters",
        Space::Texts => "texts",
        Space::Passing => "passing",
    }
}

impl Run {
    fn db(&self) -> &Db {
        self.db.as_ref().expect("open between operations")
    }

    fn perform(&mut self, operation: &Operation) -> Outcome {
        match operation {
            Operation::Write(write) => self.write(*write, false),
            Operation::TryWrite(write) => self.write(*write, true),
            Operation::Batch(writes, commit) => self.batch(writes, *commit),
            Operation::Read(when, space, read) => self.read(*when, *space, read),
            Operation::OpenCursor(when, space) => self.open_cursor(*when, *space),
            Operation::MoveCursor(index, moves) => self.move_cursor(*index, moves),
            Operation::DropCursor(index) => {
                drop_one(&mut self.cursors, *index);
                Ok(())
            }
            Operation::OpenScan(when, space, range) => self.open_scan(*when, *space, *range),
            Operation::StepScan(index, count, ends) => self.step_scan(*index, *count, *ends),
            Operation::DropScan(index) => {
                drop_one(&mut self.scans, *index);
                Ok(())
            }
            Operation::TakeSnapshot => {
                self.snapshots.push((self.db().snapshot(), self.now.clone()));
                Ok(())
            }
            Operation::DropSnapshot(index) => {
                drop_one(&mut self.snapshots, *index);
                Ok(())
            }
            Operation::Flush => Ok(self.db().flush()?),
            Operation::FlushSpace(space) => match &self.spaces[*space as usize] {
                Some(keyspace) => Ok(keyspace.flush()?),
                None => Ok(()),
            },
            Operation::Compact(space, range) => self.compact(*space, *range),
            Operation::Settle => Ok(self.db().settle()?),
            Operation::Sync => Ok(self.db().sync()?),
            Operation::Reshard(reshard) => Ok(super::reshard(self.db(), *reshard)?),
            Operation::Checkpoint => self.checkpoint(),
            Operation::CreatePassing => self.create_passing(),
            Operation::DropPassing => self.drop_passing(),
            Operation::Reopen(leave) => {
                self.leave(*leave)?;
                self.open()?;
                self.check_scans()
            }
        }
    }

    // Life.

    fn open(&mut self) -> Outcome {
        let db = super::open(self.fs.clone(), self.runtime.clone(), &self.setting, "/db")?;
        for space in SPACES {
            let exists = space != Space::Passing || self.now.passing.is_some();
            let open = || db.keyspace(name(space), key_options(space));
            self.spaces[space as usize] = exists.then(open).transpose()?;
        }
        self.db = Some(db);
        self.check_names()
    }

    fn leave(&mut self, leave: Leave) -> Outcome {
        let db = self.db.take().expect("open between operations");
        let (flushes, compactions) = super::counts(&db);
        self.tally.opens += 1;
        self.tally.flushes += flushes;
        self.tally.compactions += compactions;
        match leave {
            Leave::Close => {
                db.close()?;
                let keyspace = self.spaces[0].take().expect("always there");
                expect_closed(keyspace.put("a", "b"), "put")?;
                expect_closed(keyspace.get("a"), "get")?;
                if let Some((snapshot, _)) = self.snapshots.first() {
                    expect_closed(snapshot.get("a"), "get from a snapshot")?;
                }
            }
            Leave::Drop => drop(db),
        }
        self.snapshots.clear();
        self.spaces = Default::default();
        self.stale = None;
        Ok(())
    }

    /// Makes a checkpoint, which has what there is now, and goes its own way from then on.
    fn checkpoint(&mut self) -> Outcome {
        self.checkpoints += 1;
        let dir = format!("/checkpoint-{}", self.checkpoints);
        self.db().checkpoint(&dir)?;
        let copy = super::open(self.fs.clone(), self.runtime.clone(), &self.setting, &dir)?;
        expect(copy.keyspace_names(), self.db().keyspace_names(), "names in a checkpoint")?;
        for pass in 0..2 {
            for space in SPACES.into_iter().filter(|s| self.spaces[*s as usize].is_some()) {
                let keyspace = copy.keyspace(name(space), key_options(space))?;
                let found = keyspace.iter().map(|entry| {
                    let (key, value) = entry?;
                    Ok((key.to_vec(), value.to_vec()))
                });
                let found = found.collect::<esker::Result<BTreeMap<_, _>>>()?;
                let contents = &self.now.contents[space as usize];
                expect(&found, &**contents, format!("{space:?} in a checkpoint, pass {pass}"))?;
            }
            // What was under way goes on there.
            super::reshard(&copy, Reshard::Wait)?;
        }
        copy.put("only in the copy", "x")?;
        Ok(copy.close()?)
    }

    fn create_passing(&mut self) -> Outcome {
        if self.now.passing.is_none() {
            self.creations += 1;
            self.now.passing = Some(self.creations);
            self.now.contents[Space::Passing as usize] = Contents::default();
        }
        // Opening one that exists changes nothing.
        let keyspace = self.db().keyspace(name(Space::Passing), key_options(Space::Passing))?;
        self.spaces[Space::Passing as usize] = Some(keyspace);
        self.check_names()
    }

    fn drop_passing(&mut self) -> Outcome {
        let dropped = self.db().drop_keyspace(name(Space::Passing));
        if self.now.passing.take().is_none() {
            let kind = dropped.map_err(|error| error.kind().clone());
            return expect(kind, Err(ErrorKind::InvalidArgument), "drop of no keyspace");
        }
        dropped?;
        self.now.contents[Space::Passing as usize] = Contents::default();
        self.stale = self.spaces[Space::Passing as usize].take();
        self.check_names()
    }

    fn check_names(&self) -> Outcome {
        let mut names = vec!["counters", "default"];
        names.extend(self.now.passing.map(|_| "passing"));
        names.push("texts");
        expect(self.db().keyspace_names(), names.iter().map(|n| n.to_string()).collect(), "names")
    }

    fn compact(&self, space: Space, range: Range) -> Outcome {
        let Some(keyspace) = &self.spaces[space as usize] else { return Ok(()) };
        match range {
            Range::All => keyspace.compact_range::<&[u8]>(..)?,
            Range::Prefix(key, _) => keyspace.compact_range(key.bytes()..)?,
            Range::Bounds(lower, upper) => keyspace.compact_range(bytes(lower, upper))?,
        }
        Ok(())
    }

    // Writes.

    fn write(&mut self, write: Write, may_be_busy: bool) -> Outcome {
        let Some(keyspace) = &self.spaces[write.space() as usize] else {
            return match &self.stale {
                Some(stale) => expect_closed(perform_write(stale, write), "a write"),
                None => Ok(()),
            };
        };
        if may_be_busy {
            match try_write(keyspace, write) {
                Err(error) if error.is_busy() => return Ok(()),
                other => other?,
            }
        } else {
            perform_write(keyspace, write)?;
        }
        self.now.apply(write);
        Ok(())
    }

    fn batch(&mut self, writes: &[Write], commit: Commit) -> Outcome {
        let mut batch = self.db().batch();
        let mut gone = false;
        for write in writes {
            let live = self.spaces[write.space() as usize].as_ref();
            let Some(keyspace) = live.or(self.stale.as_ref()) else { continue };
            gone |= live.is_none();
            match *write {
                Write::Put(_, key, value) => batch.put(keyspace, key.bytes(), value.bytes()),
                Write::Delete(_, key) => batch.delete(keyspace, key.bytes()),
                Write::Merge(_, key, value) => batch.merge(keyspace, key.bytes(), &value.bytes()),
            };
        }
        if gone {
            // None of it may be there afterwards, nor of its other keyspaces.
            return expect_closed(batch.commit(), "a batch");
        }
        match commit {
            Commit::Plain => batch.commit()?,
            Commit::Disk => batch.commit_with(Durability::Disk)?,
            Commit::Ticket => batch.commit_async()?.wait()?,
            Commit::DiskTicket => batch.commit_async_with(Durability::Disk)?.wait()?,
            Commit::DroppedTicket => drop(batch.commit_async()?),
            Commit::Try | Commit::Within => {
                let tried = match commit {
                    Commit::Try => batch.try_commit(),
                    _ => batch.commit_within(Duration::from_millis(1)),
                };
                match tried {
                    // It still has its operations.
                    Err(error) if error.is_busy() => batch.commit()?,
                    other => other?,
                }
            }
        }
        expect(batch.is_empty(), true, "a batch is empty after its commit")?;
        let live = |write: &&Write| self.spaces[write.space() as usize].is_some();
        for write in writes.iter().filter(live) {
            self.now.apply(*write);
        }
        Ok(())
    }

    // Reads.

    /// A keyspace at a moment, and what it had then; `None` if it does not exist.
    fn look(&self, when: When, space: Space) -> Result<Option<(Reader<'_>, Contents)>, Failure> {
        let Some(keyspace) = &self.spaces[space as usize] else { return Ok(None) };
        let (reader, moment) = match when {
            When::Snapshot(index) if !self.snapshots.is_empty() => {
                let (snapshot, moment) = &self.snapshots[index % self.snapshots.len()];
                (Reader::Then(snapshot.keyspace(keyspace)?), moment)
            }
            _ => (Reader::Now(keyspace), &self.now),
        };
        let contents = if space == Space::Passing && moment.passing != self.now.passing {
            // What had the name then was another keyspace.
            Contents::default()
        } else {
            moment.contents[space as usize].clone()
        };
        Ok(Some((reader, contents)))
    }

    fn read(&self, when: When, space: Space, read: &Read) -> Outcome {
        let Some((reader, contents)) = self.look(when, space)? else {
            return match &self.stale {
                Some(stale) => {
                    expect_closed(stale.get("a"), "get")?;
                    expect_closed(stale.multi_get(&["a"]), "multi_get")
                }
                None => Ok(()),
            };
        };
        let value = |key: &Key| contents.get(&key.bytes()).cloned();
        match read {
            Read::Get(key) => expect(reader.get(*key)?.map(|v| v.to_vec()), value(key), read),
            Read::GetWith(key) => expect(reader.get_with(*key)?, value(key), read),
            Read::Contains(key) => expect(reader.contains(*key)?, value(key).is_some(), read),
            Read::MultiGet(keys) => {
                let found = reader.multi_get(keys)?;
                let found: Vec<_> = found.into_iter().map(|v| v.map(|v| v.to_vec())).collect();
                expect(found, keys.iter().map(value).collect(), read)
            }
            Read::Scan(range, ends) => {
                let rest = entries(&contents, *range);
                let mut held = HeldScan { scan: reader.scan(*range), rest };
                held.step(usize::MAX, *ends)
            }
        }
    }

    fn open_scan(&mut self, when: When, space: Space, range: Range) -> Outcome {
        let Some((reader, contents)) = self.look(when, space)? else { return Ok(()) };
        let held = HeldScan { scan: reader.scan(range), rest: entries(&contents, range) };
        self.scans.push(held);
        Ok(())
    }

    fn step_scan(&mut self, index: usize, count: u8, ends: Ends) -> Outcome {
        let Some(index) = index.checked_rem(self.scans.len()) else { return Ok(()) };
        self.scans[index].step(count.into(), ends)
    }

    fn open_cursor(&mut self, when: When, space: Space) -> Outcome {
        let Some((reader, contents)) = self.look(when, space)? else { return Ok(()) };
        let held = HeldCursor { cursor: reader.cursor(), contents, at: None };
        self.cursors.push(held);
        Ok(())
    }

    fn move_cursor(&mut self, index: usize, moves: &[Move]) -> Outcome {
        let Some(index) = index.checked_rem(self.cursors.len()) else { return Ok(()) };
        moves.iter().try_for_each(|one| self.cursors[index].go(*one))
    }

    fn check_scans(&self) -> Outcome {
        for space in SPACES {
            for ends in [Ends(0), Ends(u64::MAX)] {
                self.read(When::Now, space, &Read::Scan(Range::All, ends))?;
            }
        }
        Ok(())
    }

    fn check_everything(&mut self) -> Outcome {
        self.check_scans()?;
        for space in SPACES {
            for key in (0..60).map(Key) {
                self.read(When::Now, space, &Read::Get(key))?;
            }
            for index in 0..self.snapshots.len() {
                let read = Read::Scan(Range::All, Ends(0x55));
                self.read(When::Snapshot(index), space, &read)?;
            }
        }
        for scan in &mut self.scans {
            scan.step(usize::MAX, Ends(0xaaaa))?;
        }
        for cursor in &mut self.cursors {
            cursor.go(Move::Last)?;
            while cursor.at.is_some() {
                cursor.go(Move::Prev)?;
            }
        }
        Ok(())
    }
}

fn drop_one<T>(held: &mut Vec<T>, index: usize) {
    if let Some(index) = index.checked_rem(held.len()) {
        held.swap_remove(index);
    }
}

fn perform_write(keyspace: &Keyspace, write: Write) -> esker::Result<()> {
    match write {
        Write::Put(_, key, value) => keyspace.put(key.bytes(), value.bytes()),
        Write::Delete(_, key) => keyspace.delete(key.bytes()),
        Write::Merge(_, key, value) => keyspace.merge(key.bytes(), &value.bytes()),
    }
}

fn try_write(keyspace: &Keyspace, write: Write) -> esker::Result<()> {
    match write {
        Write::Put(_, key, value) => keyspace.try_put(key.bytes(), value.bytes()),
        Write::Delete(_, key) => keyspace.try_delete(key.bytes()),
        Write::Merge(_, key, value) => keyspace.try_merge(key.bytes(), &value.bytes()),
    }
}

fn bytes(lower: Bound<Key>, upper: Bound<Key>) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    (lower.map(Key::bytes), upper.map(Key::bytes))
}

fn prefix(key: Key, length: usize) -> Vec<u8> {
    let mut bytes = key.bytes();
    bytes.truncate(length);
    bytes
}

/// What a range of these contents has. Bounds may be the wrong way round: then nothing.
fn entries(contents: &Contents, range: Range) -> VecDeque<(Vec<u8>, Vec<u8>)> {
    let within = |key: &[u8]| match range {
        Range::All => true,
        Range::Prefix(of, length) => key.starts_with(&prefix(of, length)),
        Range::Bounds(lower, upper) => {
            let above = match lower.map(Key::bytes) {
                Bound::Unbounded => true,
                Bound::Included(lower) => *key >= lower[..],
                Bound::Excluded(lower) => *key > lower[..],
            };
            above
                && match upper.map(Key::bytes) {
                    Bound::Unbounded => true,
                    Bound::Included(upper) => *key <= upper[..],
                    Bound::Excluded(upper) => *key < upper[..],
                }
        }
    };
    let all = contents.iter().filter(|(key, _)| within(key));
    all.map(|(key, value)| (key.clone(), value.clone())).collect()
}

impl HeldScan {
    /// Takes up to `count` entries; after the last one, sees that both ends are at the end.
    fn step(&mut self, count: usize, ends: Ends) -> Outcome {
        for step in 0..count {
            let back = ends.0 >> (step % 64) & 1 == 1;
            let (found, expected) = if back {
                (self.scan.next_back(), self.rest.pop_back())
            } else {
                (self.scan.next(), self.rest.pop_front())
            };
            let found = found.transpose()?.map(|(key, value)| (key.to_vec(), value.to_vec()));
            let ended = expected.is_none();
            expect(found, expected, if back { "next_back of a scan" } else { "next of a scan" })?;
            if ended {
                expect(self.scan.next().is_none(), true, "the front has ended")?;
                return expect(self.scan.next_back().is_none(), true, "the back has ended");
            }
        }
        Ok(())
    }
}

impl HeldCursor {
    fn go(&mut self, to: Move) -> Outcome {
        let map = &self.contents;
        let before = |key: &[u8]| {
            let range = (Bound::Unbounded, Bound::Excluded(key));
            map.range::<[u8], _>(range).next_back().map(|(key, _)| key.clone())
        };
        let from = |bound: Bound<&[u8]>| {
            let range = (bound, Bound::Unbounded);
            map.range::<[u8], _>(range).next().map(|(key, _)| key.clone())
        };
        let at = match (to, &self.at) {
            (Move::First, _) => {
                self.cursor.seek_to_first()?;
                map.keys().next().cloned()
            }
            (Move::Last, _) => {
                self.cursor.seek_to_last()?;
                map.keys().next_back().cloned()
            }
            (Move::Seek(key), _) => {
                self.cursor.seek(key.bytes())?;
                from(Bound::Included(&key.bytes()))
            }
            (Move::SeekBefore(key), _) => {
                self.cursor.seek_before(key.bytes())?;
                before(&key.bytes())
            }
            // Moving from nowhere is the caller's error.
            (Move::Next | Move::Prev, None) => return Ok(()),
            (Move::Next, Some(at)) => {
                self.cursor.next()?;
                from(Bound::Excluded(at))
            }
            (Move::Prev, Some(at)) => {
                self.cursor.prev()?;
                before(at)
            }
        };
        let expected = at.as_ref().map(|key| (key.clone(), map[key].clone()));
        let cursor = &self.cursor;
        let found = cursor.valid().then(|| (cursor.key().to_vec(), cursor.value().to_vec()));
        let what = format!("{to:?} of a cursor from {:?}", self.at.as_deref().map(Slice::from));
        self.at = at;
        expect(found, expected, what)
    }
}

/// The verbs that the present and a snapshot have in common.
enum Reader<'a> {
    Now(&'a Keyspace),
    Then(KeyspaceSnapshot),
}

macro_rules! both {
    ($self:ident, $reader:ident => $call:expr) => {
        match $self {
            Reader::Now($reader) => $call,
            Reader::Then($reader) => $call,
        }
    };
}

impl Reader<'_> {
    fn get(&self, key: Key) -> esker::Result<Option<Slice>> {
        both!(self, reader => reader.get(key.bytes()))
    }

    fn get_with(&self, key: Key) -> esker::Result<Option<Vec<u8>>> {
        both!(self, reader => reader.get_with(key.bytes(), <[u8]>::to_vec))
    }

    fn contains(&self, key: Key) -> esker::Result<bool> {
        both!(self, reader => reader.contains(key.bytes()))
    }

    fn multi_get(&self, keys: &[Key]) -> esker::Result<Vec<Option<Slice>>> {
        let keys: Vec<_> = keys.iter().map(|key| key.bytes()).collect();
        both!(self, reader => reader.multi_get(&keys))
    }

    fn scan(&self, range: Range) -> Iter {
        match range {
            Range::All => both!(self, reader => reader.iter()),
            Range::Prefix(key, length) => {
                both!(self, reader => reader.prefix(prefix(key, length)))
            }
            Range::Bounds(lower, upper) => {
                both!(self, reader => reader.range(bytes(lower, upper)))
            }
        }
    }

    fn cursor(&self) -> Cursor {
        both!(self, reader => reader.cursor())
    }
}
