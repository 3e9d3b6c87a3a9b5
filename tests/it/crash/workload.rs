//! Seeded programs that use every verb, and the run of one on a simulated disk: what was promised
//! when, and an image of the disk after every call and in the middle of every write.
//!
//! A commit takes its place in the one order when the store of its record into the log begins,
//! which is under the commit lock; so commits of several threads are ordered as the engine orders
//! them. Creating and dropping a keyspace take theirs when they are called, while nobody else
//! writes.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use esker::fs::Fs;
use esker::fs::sim::{Image, Phase, SimFs};
use esker::runtime::{Priority, Runtime, yield_point};
use esker::{
    Append, BreakerState, Compression, Counter, Db, Durability, Error, Filter, Keyspace,
    KeyspaceOptions, Options, ReadMode, Ticket,
};

use crate::crash::oracle::{
    Contents, Kind, Op, Oracle, Step, apply, contents_of, kind_of, print_of_contents,
};

/// Where the database lies.
pub const DIR: &str = "/db";

/// How many bytes of a store into a log make it a commit: bare records are 32 bytes long, and the
/// file's header lies before offset 128.
const BARE_BYTES: u64 = 32;
const FIRST_OFFSET: u64 = 128;

pub fn dir() -> &'static Path {
    Path::new(DIR)
}

/// What a run does.
#[derive(Clone, Debug)]
pub struct Workload {
    pub seed: u64,
    /// How many actions. Most are commits.
    pub actions: usize,
    /// Whether images are taken.
    pub watch: bool,
    /// Errors of the engine are expected: something fails its calls.
    pub faulty: bool,
}

/// Which states a crash may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The last step acknowledged at all: what a killed process keeps.
    pub kill: usize,
    /// The last step that a power cut must leave; `None` while it is not known, since what was
    /// found at the start may not be durable.
    pub power: Option<usize>,
    /// The last step begun.
    pub begun: usize,
}

/// A moment to crash at.
#[derive(Clone)]
pub struct Shot {
    pub image: Image,
    pub bounds: Bounds,
    /// The call, and who made it.
    pub label: String,
}

/// A run as it was.
pub struct Run {
    pub oracle: Oracle,
    pub shots: Vec<Shot>,
    /// At the end: nothing is open any more.
    pub disk: SimFs,
    pub bounds: Bounds,
    /// Errors that the user met. Empty unless something fails calls.
    pub errors: Vec<String>,
    pub calls: u64,
    /// Equal in every run of the same program.
    pub schedules: u64,
}

#[derive(Default)]
struct Progress {
    steps: Vec<Step>,
    /// The last step failed: it is there until the next one only if a crash comes before that.
    last_is_ghost: bool,
    kill: usize,
    power: Option<usize>,
}

thread_local! {
    /// The commit that this thread is about to make.
    static PENDING: RefCell<Option<Step>> = const { RefCell::new(None) };
    /// The place that it took.
    static PLACE: RefCell<Option<usize>> = const { RefCell::new(None) };
}

/// What the threads of a run share.
#[derive(Clone)]
struct Watch {
    progress: Arc<Mutex<Progress>>,
    shots: Arc<Mutex<Vec<Shot>>>,
    disk: SimFs,
    is_on: Arc<AtomicBool>,
}

impl Watch {
    fn bounds(&self) -> Bounds {
        let progress = self.progress.lock().unwrap();
        Bounds { kill: progress.kill, power: progress.power, begun: progress.steps.len() }
    }

    fn shoot(&self, image: Image, label: String) {
        if self.is_on.load(Ordering::Relaxed) {
            let name = std::thread::current().name().unwrap_or("user").to_string();
            let label = format!("{:16} {label}", name.trim_start_matches("esker-esker-"));
            let shot = Shot { image, bounds: self.bounds(), label };
            self.shots.lock().unwrap().push(shot);
        }
    }

    /// Gives a step its place in the order.
    fn begin(&self, step: Step) -> usize {
        let mut progress = self.progress.lock().unwrap();
        if std::mem::take(&mut progress.last_is_ghost) {
            progress.steps.pop();
        }
        progress.steps.push(step);
        progress.steps.len()
    }

    fn acknowledge(&self, place: usize, durability: Durability, what: &str) {
        {
            let mut progress = self.progress.lock().unwrap();
            progress.kill = progress.kill.max(place);
            if durability == Durability::Disk {
                progress.power = progress.power.max(Some(place));
            }
        }
        let image = self.disk.snapshot();
        self.shoot(image, format!("-- {what}: {place} acknowledged as {durability:?}"));
    }

    fn install(&self) {
        let watch = self.clone();
        self.disk.on_call(Arc::new(move |disk, phase, call| {
            let is_commit =
                call.name == "store" && call.offset >= FIRST_OFFSET && call.bytes > BARE_BYTES;
            if phase == Phase::Before
                && is_commit
                && let Some(step) = PENDING.take()
            {
                PLACE.set(Some(watch.begin(step)));
            }
            if phase != Phase::Before && call.changes() {
                let half = if phase == Phase::Middle { " (half)" } else { "" };
                watch.shoot(disk.snapshot(), format!("{call}{half}"));
            }
            yield_point();
        }));
    }
}

/// Makes a commit by calling `f` with the step noted; returns its place, if it took one.
fn commit<T>(
    step: Step,
    f: impl FnOnce() -> Result<T, Error>,
) -> (Option<usize>, Result<T, Error>) {
    PENDING.set(Some(step));
    PLACE.set(None);
    let result = f();
    PENDING.set(None);
    (PLACE.take(), result)
}

/// Options of a session. Everything is tiny; the rest is drawn.
fn options(random: &mut fastrand::Rng) -> Options {
    let mut options = Options::tiny();
    options.threads = random.usize(1..=2);
    options.sync_interval = random.bool().then_some(Duration::from_micros(300));
    options.compression = if random.bool() { Compression::Lz4 } else { Compression::None };
    options.read_mode = if random.bool() { ReadMode::Mapped } else { ReadMode::Pread };
    options.filter = match random.u8(..3) {
        0 => Filter::None,
        1 => Filter::Bloom { bits_per_key: 10 },
        _ => Filter::BinaryFuse8,
    };
    options
}

fn keyspace_options(name: &str) -> KeyspaceOptions {
    match kind_of(name) {
        Kind::Counter => KeyspaceOptions::new().merge(Counter::default()),
        Kind::Append => KeyspaceOptions::new().merge(Append),
        Kind::Plain => KeyspaceOptions::new(),
    }
}

/// The user of a run.
struct User {
    workload: Workload,
    random: fastrand::Rng,
    fs: Arc<dyn Fs>,
    watch: Watch,
    base: Contents,
    /// The state after every step that was begun.
    contents: Contents,
    /// How many steps `contents` has.
    applied: usize,
    db: Option<Db>,
    runtime: Option<Runtime>,
    schedules: u64,
    handles: BTreeMap<String, Keyspace>,
    tickets: VecDeque<(usize, Durability, Ticket)>,
    errors: Vec<String>,
    /// There was one in this session.
    failed: bool,
    serial: u64,
}

impl Workload {
    pub fn new(seed: u64, actions: usize) -> Workload {
        Workload { seed, actions, watch: true, faulty: false }
    }

    /// Runs on an empty disk.
    pub fn run(&self) -> Run {
        self.run_behind(|disk| Arc::new(disk))
    }

    /// Runs on an empty disk, through what `wrap` puts before it.
    pub fn run_behind(&self, wrap: impl FnOnce(SimFs) -> Arc<dyn Fs>) -> Run {
        let base = Contents::from([("default".into(), BTreeMap::new())]);
        self.run_on(SimFs::new(), base, false, wrap)
    }

    /// Runs on a disk that holds `base`, through what `wrap` puts before it. `killed` says that a
    /// power cut may still take some of it.
    pub fn run_on(
        &self,
        disk: SimFs,
        base: Contents,
        killed: bool,
        wrap: impl FnOnce(SimFs) -> Arc<dyn Fs>,
    ) -> Run {
        let watch = Watch {
            progress: Arc::default(),
            shots: Arc::default(),
            disk: disk.clone(),
            is_on: Arc::new(AtomicBool::new(self.watch)),
        };
        watch.progress.lock().unwrap().power = (!killed).then_some(0);
        watch.install();
        let mut user = User {
            workload: self.clone(),
            random: fastrand::Rng::with_seed(self.seed),
            fs: wrap(disk.clone()),
            watch: watch.clone(),
            base: base.clone(),
            contents: base.clone(),
            applied: 0,
            db: None,
            runtime: None,
            schedules: 0,
            handles: BTreeMap::new(),
            tickets: VecDeque::new(),
            errors: Vec::new(),
            failed: false,
            serial: 0,
        };
        user.run();
        disk.clear_hook();
        let (errors, schedules) = (user.errors, user.schedules);
        let bounds = watch.bounds();
        let steps = std::mem::take(&mut watch.progress.lock().unwrap().steps);
        let shots = std::mem::take(&mut *watch.shots.lock().unwrap());
        let calls = disk.calls();
        Run { oracle: Oracle::new(base, steps), shots, disk, bounds, errors, calls, schedules }
    }
}

impl User {
    fn run(&mut self) {
        if !self.open() {
            return;
        }
        for _ in 0..self.workload.actions {
            if self.db.is_none() && !self.open() {
                return;
            }
            self.act();
            self.catch_up();
        }
        let clean = self.random.bool();
        self.end_session(clean);
    }

    fn open(&mut self) -> bool {
        let runtime = Runtime::stepper(self.random.u64(..));
        let options = options(&mut self.random);
        let opened = Db::open_on(self.fs.clone(), runtime.clone(), DIR, options);
        self.runtime = Some(runtime);
        let Some(db) = self.note("open", opened) else {
            self.end_stepper();
            return false;
        };
        for name in db.keyspace_names() {
            let name = &name;
            match db.keyspace(name, keyspace_options(name)) {
                Ok(keyspace) => _ = self.handles.insert(name.clone(), keyspace),
                Err(error) => self.errors.push(format!("keyspace {name}: {error}")),
            }
        }
        if self.workload.faulty {
            self.settle_unknown(&db);
        }
        self.db = Some(db);
        self.failed = false;
        // What was found is in tables now.
        let begun = self.watch.bounds().begun;
        self.watch.acknowledge(begun, Durability::Disk, "open");
        true
    }

    /// Steps that failed are unknown until the database is opened: forgets those that are not
    /// there. (Those that are acknowledged must be, and the others only in order.)
    fn settle_unknown(&mut self, db: &Db) {
        // The fault may be one of a read; then the next attempt succeeds.
        let found = contents_of(db).or_else(|_| contents_of(db)).expect("a fault happens once");
        let Bounds { kill, begun, .. } = self.watch.bounds();
        let mut progress = self.watch.progress.lock().unwrap();
        let oracle = Oracle::new(self.base.clone(), progress.steps.clone());
        let Some(k) = oracle.find(print_of_contents(&found), kill, begun) else {
            let text = oracle.explain(&found, kill, begun);
            panic!("reopened after a fault: {text}\nerrors so far:\n{}", self.errors.join("\n"));
        };
        progress.steps.truncate(k);
        progress.last_is_ghost = false;
        (self.contents, self.applied) = (found, k);
    }

    fn end_stepper(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            let (hash, turns) = runtime.schedule_hash();
            self.schedules = self.schedules.rotate_left(9) ^ hash ^ turns;
        }
    }

    fn end_session(&mut self, clean: bool) {
        self.take_tickets(0);
        self.handles.clear();
        let Some(db) = self.db.take() else { return };
        if clean {
            let begun = self.all_so_far();
            let closed = db.close();
            if self.note("close", closed).is_some() {
                self.watch.acknowledge(begun, Durability::Disk, "close");
            }
        } else {
            drop(db);
        }
        self.end_stepper();
    }

    /// Notes an error; only a run with faults may meet any.
    fn note<T>(&mut self, what: &str, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let text = format!("{what}: {:?}: {error}", error.kind());
                if text.contains("over the limit") || text.contains("is the most with") {
                    return None; // Refused before it took a place.
                }
                assert!(self.workload.faulty, "seed {}: {text}", self.workload.seed);
                self.failed = true;
                if self.errors.last() != Some(&text) {
                    self.errors.push(text);
                }
                None
            }
        }
    }

    /// Brings the model up to the steps that were begun.
    fn catch_up(&mut self) {
        let progress = self.watch.progress.lock().unwrap();
        let upto = progress.steps.len() - usize::from(progress.last_is_ghost);
        for step in &progress.steps[self.applied..upto] {
            apply(&mut self.contents, step, &mut 0);
        }
        self.applied = upto;
    }

    fn act(&mut self) {
        match self.random.u32(..1000) {
            0..475 => self.single(),
            475..500 => self.large(),
            500..620 => self.batch(Durability::Process),
            620..700 => self.batch(Durability::Disk),
            700..800 => self.asynchronous(),
            800..830 => self.take_tickets(0),
            830..860 => self.burst(),
            860..885 => self.sync(),
            885..915 => self.create(),
            915..940 => self.drop_one(),
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
        let step = Step::Commit(vec![op.clone()]);
        let handles = &self.handles;
        let (place, result) = commit(step, || match &op {
            Op::Put(name, key, value) => handles[name].put(key, value),
            Op::Delete(name, key) => handles[name].delete(key),
            Op::Merge(name, key, operand) => handles[name].merge(key, operand),
        });
        self.acknowledged("single", place, result, Durability::Process);
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

    fn acknowledged(
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
        let mut batch = self.db().batch();
        fill(&mut batch, &self.handles, &ops);
        let (place, result) = commit(Step::Commit(ops), || batch.commit_with(durability));
        self.acknowledged("batch", place, result, durability);
    }

    fn asynchronous(&mut self) {
        let count = self.random.usize(1..4);
        let ops = self.ops(count);
        let durability = if self.random.bool() { Durability::Disk } else { Durability::Process };
        let mut batch = self.db().batch();
        fill(&mut batch, &self.handles, &ops);
        let (place, result) = commit(Step::Commit(ops), || batch.commit_async_with(durability));
        if let Some(ticket) = self.note("asynchronous", result) {
            let place = place.expect("a commit with a ticket was stored");
            self.tickets.push_back((place, durability, ticket));
        }
        let leave = self.random.usize(..5);
        self.take_tickets(leave);
    }

    /// Waits for tickets until `leave` are left.
    fn take_tickets(&mut self, leave: usize) {
        while self.tickets.len() > leave {
            let (place, durability, ticket) = self.tickets.pop_front().expect("some are left");
            if self.random.u8(..8) == 0 {
                continue; // Dropping a ticket cancels nothing.
            }
            let result = ticket.wait();
            self.acknowledged("ticket", Some(place), result, durability);
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
    fn all_so_far(&self) -> usize {
        let bounds = self.watch.bounds();
        if self.failed { bounds.kill } else { bounds.begun }
    }

    fn sync(&mut self) {
        let begun = self.all_so_far();
        let synced = self.db().sync();
        if self.note("sync", synced).is_some() {
            self.watch.acknowledge(begun, Durability::Disk, "sync");
        }
    }

    fn create(&mut self) {
        let name = format!("{}{}", ["p", "c", "a"][self.random.usize(..3)], self.random.u8(..2));
        if self.contents.contains_key(&name) {
            return self.single();
        }
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

    fn drop_one(&mut self) {
        let names: Vec<String> =
            self.handles.keys().filter(|name| *name != "default").cloned().collect();
        if names.is_empty() {
            return self.single();
        }
        let name = names[self.random.usize(..names.len())].clone();
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

    fn flush(&mut self) {
        let begun = self.all_so_far();
        let flushed = self.db().flush();
        if self.note("flush", flushed).is_some() {
            // More than the contract says, but what a flush means.
            self.watch.acknowledge(begun, Durability::Disk, "flush");
        }
    }

    fn compact(&mut self) {
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
