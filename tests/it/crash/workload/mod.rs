//! Seeded programs that use every verb, and the run of one on a simulated disk: what was promised
//! when, and an image of the disk after every call and in the middle of every write.
//!
//! A commit takes its place in the one order when the store of its record into the log begins,
//! which is under the commit lock; so commits of several threads are ordered as the engine orders
//! them. Creating and dropping a keyspace take theirs when they are called, while nobody else
//! writes.

mod actions;
mod script;

pub use crate::crash::workload::script::Verb;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use esker::fs::intercept::Select;
use esker::fs::sabotage::{Damage, SabotageFs};
use esker::fs::sim::{Image, Phase, SimFs};
use esker::fs::{Fs, current_site};
use esker::runtime::{Runtime, yield_point};
use esker::{
    Append, Compression, Counter, Db, Durability, Error, Filter, Keyspace, KeyspaceOptions,
    Options, ReadMode, Snapshot, Ticket,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::crash::oracle::{
    Contents, Kind, Oracle, Step, apply, contents_of, kind_of, print_of_contents,
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
    /// Only these of them: what a failure is reduced to. Each action draws from a generator of its
    /// own, so that leaving out some does not change the others.
    pub only: Option<Vec<usize>>,
    /// These verbs instead of drawn actions.
    pub script: Option<Vec<Verb>>,
    /// The database is closed and opened again after so many actions, if not before.
    pub session_actions: usize,
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
    /// The call, who made it, and the place in the engine that it comes from.
    pub label: String,
    /// How many steps were begun while the call was waiting for its turn.
    pub meanwhile: usize,
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
    /// What each session began with.
    pub sessions: Vec<Session>,
}

/// What a database held when it was opened, to begin there again.
#[derive(Clone)]
pub struct Session {
    /// The action during which it was opened.
    pub action: usize,
    pub image: Image,
    pub contents: Contents,
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
    /// How many steps were begun when this thread's call was.
    static BEGUN: Cell<usize> = const { Cell::new(0) };
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
            let bounds = self.bounds();
            let meanwhile = bounds.begun.saturating_sub(BEGUN.get());
            self.shots.lock().unwrap().push(Shot { image, bounds, label, meanwhile });
        }
    }

    /// Takes images from now on, or no more.
    fn watch(&self, is_on: bool) {
        self.is_on.store(is_on, Ordering::Relaxed);
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
            if phase == Phase::Before {
                BEGUN.set(watch.bounds().begun);
            } else if call.changes() {
                let half = if phase == Phase::Middle { " (half)" } else { "" };
                let place = current_site().map(|site| format!(" [{site}]")).unwrap_or_default();
                watch.shoot(disk.snapshot(), format!("{call}{half}{place}"));
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

/// What an action draws from.
fn generator_of(seed: u64, action: usize) -> fastrand::Rng {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..].copy_from_slice(&(action as u64).to_le_bytes());
    fastrand::Rng::with_seed(xxh3_64(&bytes))
}

/// A snapshot that a run holds, and what it must show.
struct Held {
    snapshot: Snapshot,
    handles: BTreeMap<String, Keyspace>,
    contents: Contents,
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
    snapshots: VecDeque<Held>,
    errors: Vec<String>,
    /// There was one in this session.
    failed: bool,
    serial: u64,
    sessions: Vec<Session>,
    /// Actions of this session so far.
    acted: usize,
}

impl Workload {
    pub fn new(seed: u64, actions: usize) -> Workload {
        Workload {
            seed,
            actions,
            only: None,
            script: None,
            session_actions: usize::MAX,
            watch: true,
            faulty: false,
        }
    }

    /// A program of these verbs; the seed draws options and schedules.
    pub fn scripted(seed: u64, script: Vec<Verb>) -> Workload {
        Workload { script: Some(script), ..Workload::new(seed, 0) }
    }

    /// What the environment says, over a seed and a number of actions.
    pub fn from_environment(seed: u64, actions: usize) -> Workload {
        let text = |name| std::env::var(name).ok();
        let only = text("ESKER_CRASH_ONLY");
        let only = only.map(|only| only.split(',').map(|n| n.parse().unwrap()).collect());
        let script = text("ESKER_CRASH_SCRIPT").map(|script| script::parsed(&script));
        Workload { only, script, ..Workload::new(seed, actions) }
    }

    /// The variables that make it again, with its seed.
    pub fn settings(&self) -> String {
        if let Some(script) = &self.script {
            return format!("ESKER_CRASH_SCRIPT={}", script::text(script));
        }
        let mut text = format!("ESKER_CRASH_ACTIONS={}", self.actions);
        if let Some(only) = &self.only {
            let numbers: Vec<String> = only.iter().map(ToString::to_string).collect();
            text += &format!(" ESKER_CRASH_ONLY={}", numbers.join(","));
        }
        text
    }

    /// Runs on an empty disk. With `ESKER_CRASH_WITHOUT=table.sync` that place in the engine syncs
    /// nothing: to see what a failure looks like.
    pub fn run(&self) -> Run {
        let without = std::env::var("ESKER_CRASH_WITHOUT").ok();
        self.run_behind(|disk| match without {
            Some(site) => {
                let select = Select::all().site(String::leak(site));
                Arc::new(SabotageFs::all(Arc::new(disk), Damage::Skip, select))
            }
            None => Arc::new(disk),
        })
    }

    /// Runs on an empty disk, through what `wrap` puts before it.
    pub fn run_behind(&self, wrap: impl FnOnce(SimFs) -> Arc<dyn Fs>) -> Run {
        let base = Contents::from([("default".into(), BTreeMap::new())]);
        self.run_on(SimFs::new(), base, false, wrap)
    }

    /// Runs from where a session of another run of this workload began.
    pub fn run_from(&self, session: &Session, wrap: impl FnOnce(SimFs) -> Arc<dyn Fs>) -> Run {
        self.run_on(session.image.kill(), session.contents.clone(), false, wrap)
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
            snapshots: VecDeque::new(),
            errors: Vec::new(),
            failed: false,
            serial: 0,
            sessions: Vec::new(),
            acted: 0,
        };
        user.run();
        disk.clear_hook();
        let (errors, schedules, sessions) = (user.errors, user.schedules, user.sessions);
        let bounds = watch.bounds();
        let steps = std::mem::take(&mut watch.progress.lock().unwrap().steps);
        let shots = std::mem::take(&mut *watch.shots.lock().unwrap());
        let calls = disk.calls();
        let oracle = Oracle::new(base, steps);
        Run { oracle, shots, disk, bounds, errors, calls, schedules, sessions }
    }
}

impl User {
    fn run(&mut self) {
        if let Some(script) = self.workload.script.clone() {
            return self.perform_all(&script);
        }
        let all = || (0..self.workload.actions).collect();
        for action in self.workload.only.clone().unwrap_or_else(all) {
            self.begin_action(action);
            if self.db.is_none() && !self.open(action) {
                return;
            }
            self.act();
            self.catch_up();
            self.acted += 1;
            if self.acted >= self.workload.session_actions {
                let clean = self.random.bool();
                self.end_session(clean);
            }
        }
        let clean = self.random.bool();
        self.end_session(clean);
    }

    fn begin_action(&mut self, action: usize) {
        self.random = generator_of(self.workload.seed, action);
        // So that no value is written twice, whichever actions are left out.
        self.serial = action as u64 * 1000;
    }

    fn open(&mut self, action: usize) -> bool {
        let (image, contents) = (self.watch.disk.snapshot(), self.contents.clone());
        self.sessions.push(Session { action, image, contents });
        self.acted = 0;
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
        self.release_snapshots(0);
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
}
