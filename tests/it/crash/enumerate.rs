//! Crashes a run at every moment, in many ways, and checks what is recovered.
//!
//! What is checked of each crash state, with [lo, hi] the steps that may be there at that moment:
//!
//! 1. Opening succeeds, strictly: a plain crash is never mistaken for corruption. In doing so it
//!    opens every table that the manifest names.
//! 2. All keyspaces together are S_k for one k in [lo, hi].
//! 3. No file is there that the database does not need, and none is missing.
//! 4. On a sample, a second open finds the same S_k; then it is written on, the power cut, and
//!    S_k found with what was written.
//! 5. On a sample, a run goes on from there: it recovers, commits, flushes, compacts, closes; and
//!    is crashed at each of *its* calls in the same ways. During the recovery of a disk after a
//!    power cut lo = hi = k: a second crash leads to exactly the same state. During that of a
//!    killed process the same holds for another kill; a power cut may still take what was never
//!    promised, so it is checked only from the moment that open returned, from when on everything
//!    that was found is promised.
//! 6. The same once more, on a smaller sample: three crashes in a row.
//!
//! States that are equal byte by byte are recovered once, over all runs that share a [`Ledger`];
//! every case is compared.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use esker::fs::sim::{Image, SimFs};
use xxhash_rust::xxh3::xxh3_64;

use crate::crash::case::{Case, report};
use crate::crash::ends::{End, ends};
use crate::crash::oracle::Reading;
use crate::crash::recovery::{found_on, recover, write_on};
use crate::crash::workload::{Run, Shot, Workload};

/// How thoroughly a run is enumerated.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of the first run's moments, one in so many.
    pub every: usize,
    /// Torn survivals of each moment.
    pub random: usize,
    /// All subsets of the pending effects are tried where there are at most so many.
    pub subsets_max: usize,
    /// One in so many moments gets all subsets of up to ten effects, and of more each single drop and
    /// keep. None if it is 0.
    pub thorough_every: usize,
    /// Otherwise so many single drops and as many single keeps.
    pub singles: usize,
    /// One in so many states is opened a second time, and written on.
    pub again_every: usize,
    /// One in so many cases goes on and is crashed again; by depth.
    pub deeper_every: Vec<usize>,
    /// Ends early after this, and says so.
    pub quota: Duration,
    pub threads: usize,
}

/// What was tried.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub cases: BTreeMap<&'static str, u64>,
    /// Disks that were not in the ledger before.
    pub states: u64,
    pub opens: u64,
    /// States that were written on after their recovery, apart from crashes in a row.
    pub written_on: u64,
    pub by_depth: Vec<u64>,
    pub moments: u64,
    pub runs: u64,
    /// Runs that were not cut short by their quota.
    pub complete: u64,
    pub took: Duration,
}

impl Counts {
    pub fn total(&self) -> u64 {
        self.cases.values().sum()
    }

    /// Reports these counts, the states by this name.
    pub fn tally(&self, states: &str) {
        let at = |depth: usize| self.by_depth.get(depth).copied().unwrap_or(0);
        crate::settings::tally(&[
            (states, self.states),
            ("crash cases", self.total()),
            ("second crashes", at(1)),
            ("third crashes", at(2)),
            ("states written on after the recovery", self.written_on),
        ]);
    }

    /// Adds what another run, or another worker, tried.
    pub fn add(&mut self, other: &Counts) {
        for (policy, count) in &other.cases {
            *self.cases.entry(policy).or_default() += count;
        }
        self.states += other.states;
        self.opens += other.opens;
        self.written_on += other.written_on;
        self.moments += other.moments;
        self.runs += other.runs;
        self.complete += other.complete;
        self.took += other.took;
        self.by_depth.resize(self.by_depth.len().max(other.by_depth.len()), 0);
        other.by_depth.iter().enumerate().for_each(|(i, n)| self.by_depth[i] += n);
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (total, kills) = (self.total(), self.cases.get("kill").copied().unwrap_or(0));
        let seconds = self.took.as_secs_f64();
        writeln!(
            f,
            "{} different crash states, in {total} cases at {} moments of {} runs ({} complete); \
             {} opens, in {seconds:.1} s ({:.0} different states a second)",
            self.states,
            self.moments,
            self.runs,
            self.complete,
            self.opens,
            self.states as f64 / seconds,
        )?;
        writeln!(f, "  crashes in a row: {:?} cases with 1, 2, 3", self.by_depth)?;
        writeln!(f, "  {:9}  written on after the recovery, and cut off again", self.written_on)?;
        writeln!(f, "  {kills:9}  held what was acknowledged as Process")?;
        writeln!(f, "  {:9}  held what was acknowledged as Disk", total - kills)?;
        for (policy, count) in &self.cases {
            writeln!(f, "  {count:9}  {policy}")?;
        }
        Ok(())
    }
}

/// What was recovered from each disk so far. Shared by the runs of a test, so that a state counts
/// once however many runs lead to it.
#[derive(Default)]
pub struct Ledger {
    /// By the hash of the disk, in 32 parts; for another boot and for the same one.
    known: [Mutex<HashMap<u64, Known>>; PARTS],
    different: AtomicU64,
}

const PARTS: usize = 32;
type Known = [Option<Result<u64, String>>; 2];

impl Ledger {
    /// How many disks that differ in a name or a byte were recovered.
    pub fn different(&self) -> u64 {
        self.different.load(Ordering::Relaxed)
    }

    fn find(&self, disk: u64, same_boot: bool) -> Option<Result<u64, String>> {
        let known = self.known[disk as usize % PARTS].lock().unwrap();
        known.get(&disk)?[usize::from(same_boot)].clone()
    }

    /// True if the disk is new.
    fn note(&self, disk: u64, same_boot: bool, found: Result<u64, String>) -> bool {
        let mut known = self.known[disk as usize % PARTS].lock().unwrap();
        let is_new = !known.contains_key(&disk);
        known.entry(disk).or_default()[usize::from(same_boot)] = Some(found);
        self.different.fetch_add(u64::from(is_new), Ordering::Relaxed);
        is_new
    }
}

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    pub case: Case,
    pub text: String,
}

struct Shared<'a> {
    plan: &'a Plan,
    workload: &'a Workload,
    ledger: &'a Ledger,
    counts: Mutex<Counts>,
    stop: AtomicBool,
}

/// Crashes the run that `workload` made everywhere.
///
/// # Errors
/// A violation: of those found, the one at the earliest moment.
pub fn enumerate(
    run: &Run,
    workload: &Workload,
    plan: &Plan,
    ledger: &Ledger,
) -> Result<Counts, Violation> {
    let counts = Mutex::default();
    let (began, stop) = (Instant::now(), AtomicBool::new(false));
    let shared = Shared { plan, workload, ledger, counts, stop };
    let next = AtomicUsize::new(0);
    let count = run.shots.len().div_ceil(plan.every);
    assert!(!count.is_multiple_of(7919) || count == 0, "the order is a permutation");
    let violation = Mutex::new(None::<Violation>);
    std::thread::scope(|scope| {
        for _ in 0..plan.threads {
            scope.spawn(|| {
                let mut worker = Worker { shared: &shared, counts: Counts::default() };
                while !shared.stop.load(Ordering::Relaxed) && began.elapsed() <= plan.quota {
                    let taken = next.fetch_add(1, Ordering::Relaxed);
                    if taken >= count {
                        break;
                    }
                    // In an order of its own, so that a quota leaves a fair sample: 7919 is prime.
                    let index = taken * 7919 % count * plan.every;
                    if let Err(found) = worker.crash_at(run, index, &vec![], workload.seed) {
                        shared.stop.store(true, Ordering::Relaxed);
                        let mut first = violation.lock().unwrap();
                        if first.as_ref().is_none_or(|first| found.case[0].1 < first.case[0].1) {
                            *first = Some(found);
                        }
                    }
                }
                shared.counts.lock().unwrap().add(&worker.counts);
            });
        }
    });
    if let Some(violation) = violation.into_inner().unwrap() {
        return Err(violation);
    }
    let mut counts = shared.counts.into_inner().unwrap();
    (counts.runs, counts.took) = (1, began.elapsed());
    counts.complete = u64::from(counts.by_depth.is_empty() || next.into_inner() >= count);
    Ok(counts)
}

struct Worker<'a> {
    shared: &'a Shared<'a>,
    counts: Counts,
}

impl Worker<'_> {
    /// Tries every end at one moment of a run.
    fn crash_at(
        &mut self,
        run: &Run,
        index: usize,
        before: &Case,
        seed: u64,
    ) -> Result<(), Violation> {
        let plan = self.shared.plan;
        let shot = &run.shots[index];
        let depth = before.len();
        self.counts.moments += 1;
        self.counts.by_depth.resize(self.counts.by_depth.len().max(depth + 1), 0);
        for (number, end) in ends(&shot.image, plan, draw(seed, index, 0)).iter().enumerate() {
            let Some((lo, hi)) = bounds(shot, end) else { continue };
            let drawn = draw(seed, index, 1 + number);
            *self.counts.cases.entry(end.policy()).or_default() += 1;
            self.counts.by_depth[depth] += 1;
            let mut case = before.clone();
            case.push((seed, index, end.clone()));
            let disk = end.of(&shot.image);
            let wrong = match self.recover(&disk, *end == End::Kill, drawn) {
                Ok(print) if run.oracle.admits(print, lo, hi) => None,
                Ok(_) => Some(explain(run, shot, end)),
                Err(text) => Some(text),
            };
            if let Some(text) = wrong {
                let text = report(run, &case, self.shared.workload, &text);
                return Err(Violation { case, text });
            }
            let every = plan.deeper_every.get(depth).copied().unwrap_or(0);
            if every > 0 && drawn.is_multiple_of(every as u64) {
                let next = go_on_run(end, &shot.image, drawn >> 8);
                for index in 0..next.shots.len() {
                    self.crash_at(&next, index, &case, drawn >> 8)?;
                }
            }
        }
        Ok(())
    }

    /// Recovers a disk: what the database holds then.
    fn recover(&mut self, disk: &SimFs, same_boot: bool, drawn: u64) -> Result<u64, String> {
        let (hash, ledger) = (disk.state_hash(), self.shared.ledger);
        if let Some(known) = ledger.find(hash, same_boot) {
            return known;
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
            self.counts.opens += 3;
            self.counts.written_on += 1;
            found = recover(disk, Reading::Forward).and_then(|second| match second == first {
                true => write_on(disk, first).map(|()| first),
                false => Err("a second open finds another state".to_string()),
            });
        }
        self.counts.states += u64::from(ledger.note(hash, same_boot, found.clone()));
        found
    }
}

/// What is wrong with what was recovered from this end, or that it is right.
pub fn explain(run: &Run, shot: &Shot, end: &End) -> String {
    let (lo, hi) = bounds(shot, end).expect("something was promised");
    let found = found_on(&end.of(&shot.image));
    found.map_or_else(|error| error, |found| run.oracle.explain(&found, lo, hi))
}

/// A run that goes on from what a crash left.
pub fn go_on_run(end: &End, image: &Image, seed: u64) -> Run {
    let base = found_on(&end.of(image)).expect("it was recovered before");
    let workload = Workload::new(seed, 4 + (seed % 8) as usize);
    workload.run_on(end.of(image), base, *end == End::Kill, |disk| std::sync::Arc::new(disk))
}

/// Which steps may be there; `None` if nothing is known.
pub fn bounds(shot: &Shot, end: &End) -> Option<(usize, usize)> {
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
