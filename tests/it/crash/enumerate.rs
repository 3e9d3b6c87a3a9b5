//! Crashes a run at every moment, in many ways, and checks what is recovered.
//!
//! What is checked of each crash state, with [lo, hi] the steps that may be there at that moment:
//!
//! 1. Opening succeeds, strictly: a plain crash is never mistaken for corruption. In doing so it
//!    opens every table that the manifest names.
//! 2. All keyspaces together are S_k for one k in [lo, hi].
//! 3. No file is there that the database does not need, and none is missing.
//! 4. A second open finds the same S_k.
//! 5. On a sample, a run goes on from there: it recovers, commits, flushes, compacts, closes; and
//!    is crashed at each of *its* calls in the same ways. During the recovery of a disk after a
//!    power cut lo = hi = k: a second crash leads to exactly the same state. During that of a
//!    killed process the same holds for another kill; a power cut may still take what was never
//!    promised, so it is checked only from the moment that open returned, from when on everything
//!    that was found is promised.
//! 6. The same once more, on a smaller sample: three crashes in a row.
//!
//! States that are equal byte by byte are recovered once; every case is compared.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use esker::fs::Fs;
use esker::fs::sim::{Hole, Image, SimFs, Survival, TEAR_UNITS};
use esker::fs::trace::TraceFs;
use esker::runtime::Runtime;
use esker::{Db, Options};
use xxhash_rust::xxh3::xxh3_64;

use crate::crash::oracle::{Contents, Reading, check_files, contents_of, print_of};
use crate::crash::workload::{DIR, Run, Shot, Workload, dir};

/// How thoroughly a run is enumerated.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of the first run's moments, one in so many.
    pub every: usize,
    /// Torn survivals of each moment.
    pub random: usize,
    /// All subsets of the pending effects are tried where there are at most so many.
    pub subsets_max: usize,
    /// Otherwise so many single drops and as many single keeps.
    pub singles: usize,
    /// One in so many cases is opened a second time.
    pub again_every: usize,
    /// One in so many cases goes on and is crashed again; by depth.
    pub deeper_every: Vec<usize>,
    /// Ends early after this, and says so.
    pub quota: Duration,
    pub threads: usize,
}

/// How a process or a machine ends.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    Kill,
    Power(Survival),
}

impl End {
    /// What it is counted as.
    fn policy(&self) -> &'static str {
        match self {
            End::Kill => "kill",
            End::Power(Survival::NothingUnsynced) => "1 nothing un-synced",
            End::Power(Survival::Everything) => "2 everything",
            End::Power(Survival::DirectoryOnly) => "3 directory operations only",
            End::Power(Survival::DataOnly) => "4 data only",
            End::Power(Survival::LastDirectoryOperationOnly) => "5 last directory operation only",
            End::Power(Survival::Random { .. }) => "6 torn at random",
            End::Power(Survival::Subset { .. }) => "7 all subsets",
            End::Power(Survival::Only { .. } | Survival::AllBut { .. }) => {
                "7 single keeps and drops"
            }
        }
    }

    pub fn of(&self, image: &Image) -> SimFs {
        match self {
            End::Kill => image.kill(),
            End::Power(survival) => image.crash(survival),
        }
    }
}

/// The ends worth trying on an image. The same seed gives the same list.
pub fn ends(image: &Image, plan: &Plan, seed: u64) -> Vec<End> {
    let mut all = vec![End::Kill, End::Power(Survival::NothingUnsynced)];
    let count = image.pending_effects();
    if count == 0 {
        return all;
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let mut power = |survival| all.push(End::Power(survival));
    power(Survival::Everything);
    power(Survival::DirectoryOnly);
    power(Survival::DataOnly);
    power(Survival::LastDirectoryOperationOnly);
    if count <= plan.subsets_max {
        (1..(1 << count) - 1).for_each(|mask| power(Survival::Subset { mask }));
    } else {
        let some = random.choose_multiple(0..count, plan.singles);
        some.into_iter().for_each(|dropped| power(Survival::AllBut { dropped }));
        let some = random.choose_multiple(0..count, plan.singles);
        some.into_iter().for_each(|kept| power(Survival::Only { kept }));
    }
    for _ in 0..plan.random {
        let tear = TEAR_UNITS[random.usize(..TEAR_UNITS.len())];
        let hole = if random.bool() { Hole::Zero } else { Hole::Garbage };
        power(Survival::Random { seed: random.u64(..), tear, hole });
    }
    all
}

/// What was tried.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub cases: BTreeMap<&'static str, u64>,
    /// Different disks.
    pub states: usize,
    pub opens: u64,
    pub by_depth: Vec<u64>,
    pub moments: u64,
    pub complete: bool,
    pub took: Duration,
}

impl Counts {
    pub fn total(&self) -> u64 {
        self.cases.values().sum()
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.took.as_secs_f64();
        writeln!(
            f,
            "{} crash states checked, {} of them different, at {} moments, {} opens, in {seconds:.1} s \
             ({:.0} a second); by depth {:?}; {}",
            self.total(),
            self.states,
            self.moments,
            self.opens,
            self.total() as f64 / seconds,
            self.by_depth,
            if self.complete { "complete" } else { "cut short by the time quota" },
        )?;
        for (policy, count) in &self.cases {
            writeln!(f, "  {count:9}  {policy}")?;
        }
        Ok(())
    }
}

/// Which case: for each crash in a row the run's seed, the moment, and the end.
pub type Path = Vec<(u64, usize, usize)>;

fn path_text(path: &Path) -> String {
    let parts = path.iter().map(|(seed, shot, end)| format!("{seed}:{shot}:{end}"));
    parts.collect::<Vec<_>>().join("/")
}

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    pub path: Path,
    pub text: String,
}

struct Shared<'a> {
    plan: &'a Plan,
    actions: usize,
    /// What is recovered from a disk: by its hash and whether the boot is the same.
    known: Mutex<HashMap<(u64, bool), Result<u64, String>>>,
    counts: Mutex<Counts>,
    began: Instant,
    stop: AtomicBool,
}

/// Crashes `run` everywhere. `actions` is what the run was made with, for the text of a failure.
///
/// # Errors
/// The first violation.
pub fn enumerate(run: &Run, seed: u64, actions: usize, plan: &Plan) -> Result<Counts, Violation> {
    let shared = Shared {
        plan,
        actions,
        known: Mutex::default(),
        counts: Mutex::default(),
        began: Instant::now(),
        stop: AtomicBool::new(false),
    };
    let next = AtomicUsize::new(0);
    let count = run.shots.len().div_ceil(plan.every);
    assert!(!count.is_multiple_of(7919), "the order is a permutation");
    let violation = Mutex::new(None::<Violation>);
    std::thread::scope(|scope| {
        for _ in 0..plan.threads {
            scope.spawn(|| {
                let mut worker = Worker { shared: &shared, counts: Counts::default() };
                while !shared.stop.load(Ordering::Relaxed) {
                    let taken = next.fetch_add(1, Ordering::Relaxed);
                    if taken >= count {
                        break;
                    }
                    // In an order of its own, so that a quota leaves a fair sample: 7919 is prime.
                    let index = taken * 7919 % count * plan.every;
                    if let Err(found) = worker.crash_at(run, index, &vec![], seed) {
                        shared.stop.store(true, Ordering::Relaxed);
                        let mut first = violation.lock().unwrap();
                        if first.as_ref().is_none_or(|first| found.path < first.path) {
                            *first = Some(found);
                        }
                    }
                    if shared.began.elapsed() > plan.quota {
                        break;
                    }
                }
                worker.hand_in();
            });
        }
    });
    if let Some(violation) = violation.into_inner().unwrap() {
        return Err(violation);
    }
    let mut counts = shared.counts.into_inner().unwrap();
    counts.states = shared.known.lock().unwrap().len();
    counts.complete = next.into_inner() >= count;
    counts.took = shared.began.elapsed();
    Ok(counts)
}

struct Worker<'a> {
    shared: &'a Shared<'a>,
    counts: Counts,
}

impl Worker<'_> {
    fn hand_in(self) {
        let mut all = self.shared.counts.lock().unwrap();
        for (policy, count) in self.counts.cases {
            *all.cases.entry(policy).or_default() += count;
        }
        all.opens += self.counts.opens;
        all.moments += self.counts.moments;
        let depth = all.by_depth.len().max(self.counts.by_depth.len());
        all.by_depth.resize(depth, 0);
        self.counts.by_depth.iter().enumerate().for_each(|(i, n)| all.by_depth[i] += n);
    }

    /// Tries every end at one moment of a run.
    fn crash_at(
        &mut self,
        run: &Run,
        index: usize,
        path: &Path,
        seed: u64,
    ) -> Result<(), Violation> {
        let plan = self.shared.plan;
        let shot = &run.shots[index];
        let depth = path.len();
        self.counts.moments += 1;
        self.counts.by_depth.resize(self.counts.by_depth.len().max(depth + 1), 0);
        for (number, end) in ends(&shot.image, plan, draw(seed, index, 0)).iter().enumerate() {
            let mut path = path.clone();
            path.push((seed, index, number));
            let Some((lo, hi)) = bounds(shot, end) else { continue };
            let disk = end.of(&shot.image);
            let drawn = draw(seed, index, 1 + number);
            *self.counts.cases.entry(end.policy()).or_default() += 1;
            self.counts.by_depth[depth] += 1;
            let fail = |text: String| {
                let text = report(&path, self.shared.actions, shot, end, &text);
                Violation { path: path.clone(), text }
            };
            let print = self.recover(&disk, *end == End::Kill, drawn).map_err(fail)?;
            if !run.oracle.admits(print, lo, hi) {
                let found = found_on(&end.of(&shot.image));
                let text = found.map(|found| run.oracle.explain(&found, lo, hi));
                return Err(fail(text.unwrap_or_else(|error| error)));
            }
            let every = plan.deeper_every.get(depth).copied().unwrap_or(0);
            if every > 0 && drawn.is_multiple_of(every as u64) {
                self.go_on(end, &shot.image, &path, drawn >> 8)?;
            }
        }
        Ok(())
    }

    /// Lets a run go on from what a crash left, and crashes that everywhere.
    fn go_on(&mut self, end: &End, image: &Image, path: &Path, seed: u64) -> Result<(), Violation> {
        let next = go_on_run(end, image, seed);
        for index in 0..next.shots.len() {
            self.crash_at(&next, index, path, seed)?;
        }
        Ok(())
    }

    /// Recovers a disk: what the database holds then.
    fn recover(&mut self, disk: &SimFs, same_boot: bool, drawn: u64) -> Result<u64, String> {
        let key = (disk.state_hash(), same_boot);
        if let Some(known) = self.shared.known.lock().unwrap().get(&key) {
            return known.clone();
        }
        self.counts.opens += 1;
        let reading = match drawn % 16 {
            0..3 => Reading::Reverse,
            3 => Reading::Gets,
            _ => Reading::Forward,
        };
        let mut found = recover(disk, reading);
        if (drawn >> 4).is_multiple_of(self.shared.plan.again_every as u64)
            && let Ok(first) = found
        {
            self.counts.opens += 1;
            found = recover(disk, Reading::Forward).and_then(|second| match second == first {
                true => Ok(first),
                false => Err("a second open finds another state".to_string()),
            });
        }
        self.shared.known.lock().unwrap().insert(key, found.clone());
        found
    }
}

/// A run that goes on from what a crash left.
fn go_on_run(end: &End, image: &Image, seed: u64) -> Run {
    let base = found_on(&end.of(image)).expect("it was recovered before");
    let workload = Workload::new(seed, 4 + (seed % 8) as usize);
    workload.run_on(end.of(image), base, *end == End::Kill, |disk| Arc::new(disk))
}

/// Which steps may be there; `None` if nothing is known.
fn bounds(shot: &Shot, end: &End) -> Option<(usize, usize)> {
    let lo = if *end == End::Kill { Some(shot.bounds.kill) } else { shot.bounds.power };
    lo.map(|lo| (lo, shot.bounds.begun))
}

fn draw(seed: u64, index: usize, number: usize) -> u64 {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&index.to_le_bytes());
    bytes[16..].copy_from_slice(&number.to_le_bytes());
    xxh3_64(&bytes)
}

/// Opens, checks and closes.
pub fn recover(disk: &SimFs, reading: Reading) -> Result<u64, String> {
    let result = catch_unwind(AssertUnwindSafe(|| {
        let db = open(Arc::new(disk.clone())).map_err(|error| format!("open failed: {error}"))?;
        check_files(&db, disk, dir())?;
        print_of(&db, reading).map_err(|error| format!("reading failed: {error}"))
    }));
    result.unwrap_or_else(|panic| Err(format!("panicked: {}", panic_text(&*panic))))
}

pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}

/// Opens without threads.
pub fn open(fs: Arc<dyn Fs>) -> esker::Result<Db> {
    // Made once: it asks the operating system how many cores there are.
    static OPTIONS: LazyLock<Options> = LazyLock::new(Options::tiny);
    Db::open_on(fs, Runtime::alone(), DIR, OPTIONS.clone())
}

/// Everything that a database on this disk holds.
pub fn found_on(disk: &SimFs) -> Result<Contents, String> {
    let result = catch_unwind(AssertUnwindSafe(|| {
        let db = open(Arc::new(disk.clone()))?;
        contents_of(&db)
    }));
    match result {
        Ok(found) => found.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("panicked: {}", panic_text(&*panic))),
    }
}

fn report(path: &Path, actions: usize, shot: &Shot, end: &End, text: &str) -> String {
    format!(
        "{text}\nafter: {}\nend: {end:?}\nbounds: {:?}\nto see it alone:\n  \
         ESKER_CRASH_CASE={} ESKER_CRASH_ACTIONS={actions} cargo test --features testing --test it \
         crash::one_case -- --nocapture\n",
        shot.label.trim(),
        shot.bounds,
        path_text(path),
    )
}

/// Runs one case again, with everything that led to it. `None` if it passes.
pub fn show_case(case: &str, actions: usize, plan: &Plan) -> Option<Violation> {
    let parts: Path = case
        .split('/')
        .map(|part| {
            let numbers: Vec<u64> = part.split(':').map(|n| n.parse().unwrap()).collect();
            (numbers[0], numbers[1] as usize, numbers[2] as usize)
        })
        .collect();
    let mut run = Workload::new(parts[0].0, actions).run();
    for (depth, &(seed, index, number)) in parts.iter().enumerate() {
        let shot = &run.shots[index];
        let end = ends(&shot.image, plan, draw(seed, index, 0))[number].clone();
        println!("--- run {depth}, seed {seed}: the calls up to moment {index}");
        for (i, before) in run.shots[..=index].iter().enumerate().skip(index.saturating_sub(60)) {
            let bounds = before.bounds;
            println!(
                "{i:5} {:?} {:?} {:3} {}",
                bounds.kill, bounds.power, bounds.begun, before.label
            );
        }
        println!("--- pending:\n{}", shot.image.describe_pending().join("\n"));
        println!("--- then: {end:?}");
        if depth + 1 < parts.len() {
            run = go_on_run(&end, &shot.image, parts[depth + 1].0);
            continue;
        }
        println!("--- the recovery:");
        let disk = end.of(&shot.image);
        let trace = TraceFs::with_reads(Arc::new(disk.clone()));
        let opened = catch_unwind(AssertUnwindSafe(|| open(Arc::new(trace.clone())).map(drop)));
        println!("{}\n{opened:?}", trace.take().join("\n"));
        let (lo, hi) = bounds(shot, &end)?;
        let disk = end.of(&shot.image);
        let text = match recover(&disk, Reading::Forward) {
            Err(error) => error,
            Ok(print) if run.oracle.admits(print, lo, hi) => return None,
            Ok(_) => run.oracle.explain(&found_on(&end.of(&shot.image)).unwrap(), lo, hi),
        };
        return Some(Violation { path: parts.clone(), text });
    }
    None
}
