//! Rot: every length and every bit of every file of a small database.
//!
//! A damaged database gives the right answer or `Corruption`, never a wrong value and never a
//! panic. The stated exceptions, and nothing else, are a *shorter prefix*: damage to the last group
//! of the log that nothing written later bears witness to, and to the last edit of the manifest.
//! A file that was cut off is the same thing: what bears witness may be cut with it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use esker::fs::Fs;
use esker::fs::sim::{Image, SimFs, Survival};
use esker::runtime::Runtime;
use esker::{
    Append, Compression, Counter, Db, Durability, ErrorKind, KeyspaceOptions, Options, ReadMode,
};

use crate::crash::oracle::{Reading, print_of};
use crate::crash::recovery::{panic_text, recover};
use crate::crash::workload::{Bounds, DIR, Workload, dir};
use crate::crash::{quota, setting};
use crate::settings;

/// A database at rest, and the prints of the states that it went through.
pub struct Subject {
    pub image: Image,
    prints: Vec<u64>,
    options: Options,
    /// What the disk held after each of these states.
    pub history: Vec<Image>,
}

/// Operations of a small database. Files of some 7 KiB.
const SMALL: u32 = 16;
/// Operations of one of 64 KiB.
const LARGE: u32 = 42;

/// Of the database that is damaged.
pub fn seed() -> u64 {
    setting("ESKER_DAMAGE_SEED", 5)
}

pub fn subject(seed: u64, count: u32, compression: Compression, read_mode: ReadMode) -> Subject {
    let mut options = Options::tiny();
    (options.compression, options.read_mode, options.threads) = (compression, read_mode, 1);
    let disk = SimFs::new();
    // Simulated ids are the same in every run; those of two databases differ.
    (0..seed % 64 * 1000).for_each(|_| _ = disk.random_id());
    let (mut prints, mut history) = (Vec::new(), Vec::new());
    {
        let runtime = Runtime::stepper(seed);
        let db = Db::open_on(Arc::new(disk.clone()), runtime, DIR, options.clone()).unwrap();
        let mut note = || {
            prints.push(print_of(&db, Reading::Forward).unwrap());
            // As if all of it had reached the disk at this moment.
            history.push(disk.snapshot().crash(&Survival::Everything).snapshot());
        };
        note();
        let counters = KeyspaceOptions::new().merge(Counter::default());
        let counters = db.keyspace("counters", counters).unwrap();
        note();
        for i in 0..count {
            // Some values fill a table by themselves, so that a large database has few.
            let bytes = if i % 3 == 1 && count > SMALL { 3600 } else { 20 };
            let mut random = fastrand::Rng::with_seed(seed << 32 | u64::from(i));
            let value: Vec<u8> = (0..bytes).map(|_| random.alphanumeric() as u8).collect();
            db.put(format!("key {:02}", i % (count - count / 8)), value).unwrap();
            note();
            counters.merge(format!("c{}", i % 3), 1 << (i % 60)).unwrap();
            note();
            if i == 10 {
                db.flush().unwrap();
                db.compact_range::<&[u8]>(..).unwrap();
                counters.compact_range::<&[u8]>(..).unwrap();
                let notes = KeyspaceOptions::new().merge(Append);
                db.keyspace("notes", notes).unwrap();
                note();
            }
        }
        db.flush().unwrap();
        db.settle().unwrap();
        // The log has something to replay: synced, witnessed, and neither.
        for i in 0..3_i64 {
            let mut batch = db.batch();
            batch.delete(&db, format!("key {i:02}")).merge(&counters, "c0", i);
            let durability = if i == 0 { Durability::Disk } else { Durability::Process };
            batch.commit_with(durability).unwrap();
            note();
        }
    }
    let image = history.last().expect("it was noted").clone();
    Subject { image, prints, options, history }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Right,
    Corruption,
    Shorter,
}

impl Subject {
    pub fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        files_of(&self.image)
    }

    /// What becomes of a database with one file replaced.
    fn outcome(&self, path: &Path, bytes: &[u8]) -> Result<Outcome, String> {
        self.outcome_with(&[(path.to_path_buf(), bytes.to_vec())])
    }

    /// What becomes of it with these files replaced, or added.
    pub fn outcome_with(&self, files: &[(PathBuf, Vec<u8>)]) -> Result<Outcome, String> {
        let disk = self.image.kill();
        for (path, bytes) in files {
            if disk.contents(path).is_err() {
                drop(disk.create(path).unwrap());
            }
            disk.set_contents(path, bytes).unwrap();
        }
        let read = catch_unwind(AssertUnwindSafe(|| {
            let fs: Arc<dyn Fs> = Arc::new(disk);
            let db = Db::open_on(fs, Runtime::alone(), DIR, self.options.clone())?;
            print_of(&db, Reading::Gets)
        }));
        match read {
            Err(panic) => Err(format!("panicked: {}", panic_text(&*panic))),
            Ok(Ok(print)) if Some(&print) == self.prints.last() => Ok(Outcome::Right),
            Ok(Ok(print)) if self.prints.contains(&print) => Ok(Outcome::Shorter),
            Ok(Ok(_)) => Err("a state that never was".to_string()),
            Ok(Err(error)) => match error.kind() {
                // A feature bit that this version does not know, or an unknown format, cannot be
                // told from a newer version's file before its checksum is known to be right.
                ErrorKind::Corruption { .. } | ErrorKind::Unsupported => Ok(Outcome::Corruption),
                kind => Err(format!("not a corruption but {kind:?}: {error}")),
            },
        }
    }
}

/// The files of a database, by path.
pub fn files_of(image: &Image) -> Vec<(PathBuf, Vec<u8>)> {
    let disk = image.kill();
    let mut names = disk.list(dir()).unwrap();
    names.sort();
    let paths = names.into_iter().map(|name| dir().join(name));
    paths.map(|path| (path.clone(), disk.contents(&path).unwrap())).collect()
}

/// What came of a number of damages.
#[derive(Default)]
pub struct Tally {
    /// By kind of file and outcome.
    pub counts: BTreeMap<(String, Outcome), u64>,
    /// Every damage was tried: there was time for all of them, and nobody asked for one only.
    complete: bool,
    failures: Vec<String>,
}

impl Tally {
    /// Notes what came of damage to this file. `case` reruns it.
    pub fn note(&mut self, path: &Path, case: &str, outcome: Result<Outcome, String>) {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let may_be_shorter = name.ends_with(".log") || name.starts_with("manifest");
        match outcome {
            Ok(Outcome::Shorter) if !may_be_shorter => {
                self.failures.push(format!("ESKER_DAMAGE_CASE={case}: a shorter prefix"));
            }
            Ok(outcome) => {
                let kind = name.trim_matches(|c: char| c.is_ascii_digit() || c == '-');
                *self.counts.entry((kind.to_string(), outcome)).or_insert(0) += 1;
            }
            Err(text) => self.failures.push(format!("ESKER_DAMAGE_CASE={case}: {text}")),
        }
    }

    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Prints the counts; panics if there was a failure.
    pub fn show(&self, what: &str) {
        println!("{what}: {} damages", self.total());
        for ((kind, outcome), count) in &self.counts {
            println!("{count:8} {kind}: {outcome:?}");
        }
        let (count, shown) = (self.failures.len(), self.failures.len().min(10));
        assert!(count == 0, "{count} failures:\n{}", self.failures[..shown].join("\n"));
    }
}

/// Does `check` with the numbers below `count` on several threads, in an order of its own so that a
/// quota leaves a fair sample; says how many were done.
pub fn in_parallel(count: usize, quota: Duration, check: impl Fn(usize) + Sync) -> usize {
    let (next, began) = (AtomicUsize::new(0), Instant::now());
    // A prime that does not divide the count makes the order a permutation.
    let stride = if count.is_multiple_of(1_000_003) { 1 } else { 1_000_003 };
    std::thread::scope(|scope| {
        for _ in 0..settings::workers() {
            scope.spawn(|| {
                while began.elapsed() < quota {
                    let taken = next.fetch_add(1, Ordering::Relaxed);
                    if taken >= count {
                        break;
                    }
                    check(taken * stride % count);
                }
            });
        }
    });
    next.into_inner().min(count)
}

/// Damages every file in every way.
fn check(
    what: &str,
    subject: &Subject,
    quota: Duration,
    damages: impl Fn(&[u8]) -> usize + Sync,
    damage: impl Fn(&[u8], usize) -> Vec<u8> + Sync,
) -> Tally {
    let files = subject.files();
    let all: Vec<(usize, usize)> = (0..files.len())
        .flat_map(|file| (0..damages(&files[file].1)).map(move |i| (file, i)))
        .collect();
    let (tally, only) = (Mutex::new(Tally::default()), std::env::var("ESKER_DAMAGE_CASE").ok());
    let (began, bytes) =
        (Instant::now(), files.iter().map(|(_, bytes)| bytes.len()).sum::<usize>());
    let done = in_parallel(all.len(), quota, |number| {
        let (file, i) = all[number];
        let (path, bytes) = &files[file];
        let case = format!("{}:{i}", path.file_name().and_then(|name| name.to_str()).unwrap());
        if only.as_ref().is_none_or(|only| *only == case) {
            let outcome = subject.outcome(path, &damage(bytes, i));
            tally.lock().unwrap().note(path, &case, outcome);
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    let all = all.len();
    println!("{what}: {done} of {all} in {} files, {bytes} bytes, {seconds:.1} s", files.len());
    let mut tally = tally.into_inner().unwrap();
    tally.show(what);
    tally.complete = tally.total() == all as u64 || only.is_some();
    tally
}

#[test]
fn every_length_of_every_file_gives_a_prefix_or_corruption() {
    let subject = subject(seed(), LARGE, Compression::None, ReadMode::Mapped);
    let cut = |bytes: &[u8], len: usize| bytes[..len].to_vec();
    let quota = quota("ESKER_CUT_SECONDS", 1800);
    let tally = check("every length", &subject, quota, <[u8]>::len, cut);
    let complete = tally.complete || settings::number("ESKER_CUT_SECONDS").is_some();
    assert!(complete, "not every length was tried: allow more ESKER_CUT_SECONDS");
    let (total, counts) = (tally.total(), tally.counts);
    settings::tally(&[("lengths", total)]);
    let shorter = counts.get(&(".log".to_string(), Outcome::Shorter));
    let has_tail = shorter.is_some_and(|count| *count > total / 1000);
    assert!(has_tail, "the log has a tail to lose: {counts:?}");
}

/// Bug: where the last edit of the manifest was damaged, and so cut, a keyspace that it had created or
/// dropped was missed or back, beside commits that came later: no state that ever was.
/// Cause: nothing later bore witness to that edit, though more than files hung on it.
/// Fix: an edit that changes keyspaces is followed by a record that says nothing else.
///
/// Other edits may be cut: a file that one of them made superfluous is removed only once a later record
/// is durable (rule 7), so that everything is found as of the edit before.
#[test]
fn a_damaged_last_edit_leaves_a_database_with_all_its_files() {
    let mut moments = 0_u64;
    for seed in 0..6 {
        let run = Workload::new(seed, 150).run();
        // Of each manifest how long it was before its last edit and with it; an edit is one write.
        let mut lengths: BTreeMap<PathBuf, (usize, usize)> = BTreeMap::new();
        for shot in &run.shots {
            let disk = shot.image.kill();
            let Some(path) = live_manifest(&disk) else { continue };
            let Ok(bytes) = disk.contents(&path) else { continue };
            let (before, with) = lengths.entry(path.clone()).or_insert((0, bytes.len()));
            if *with != bytes.len() {
                (*before, *with) = (*with, bytes.len());
            }
            if *before == 0 {
                continue; // Its first edit, which holds everything, is no exception.
            }
            moments += 1;
            let mut damaged = bytes.clone();
            damaged[*before + (moments as usize * 7) % (*with - *before)] ^= 1 << (moments % 8);
            disk.set_contents(&path, &damaged).unwrap();
            // Without that edit everything is in the tables and logs of the one before.
            let Bounds { kill, begun, .. } = shot.bounds;
            match recover(&disk, Reading::Forward) {
                Ok(print) if run.oracle.admits(print, kill, begun) => {}
                Ok(_) => panic!("seed {seed}, {}: not within {kill}..={begun}", shot.label),
                Err(text) => panic!("seed {seed}, {}: {text}", shot.label),
            }
        }
    }
    println!("{moments} moments");
    assert!(moments > 1000, "{moments}");
}

/// The manifest that CURRENT names.
fn live_manifest(disk: &SimFs) -> Option<PathBuf> {
    let line = disk.contents(&dir().join("CURRENT")).ok()?;
    let line = String::from_utf8(line).ok()?;
    Some(dir().join(line.split(' ').next()?))
}

#[test]
fn every_length_of_every_table_gives_corruption() {
    let subject = subject(seed(), SMALL, Compression::None, ReadMode::Mapped);
    // Those that the manifest does not name any more may be anything.
    let is_needed = |path: &Path| subject.outcome(path, b"") == Ok(Outcome::Corruption);
    let tables =
        subject.files().into_iter().filter(|(path, _)| path.to_str().unwrap().ends_with(".table"));
    let needed: usize =
        tables.filter(|(path, _)| is_needed(path)).map(|(_, bytes)| bytes.len()).sum();
    let cut = |bytes: &[u8], len: usize| bytes[..len].to_vec();
    let counts = check("every length", &subject, Duration::MAX, <[u8]>::len, cut).counts;
    assert_eq!(counts[&(".table".to_string(), Outcome::Corruption)], needed as u64, "{counts:?}");
}

#[test]
fn every_flipped_bit_gives_the_right_answer_or_corruption() {
    // Every bit where blocks are read in place; of the others as many as there is time for.
    let pairs = [
        (Compression::None, ReadMode::Mapped, quota("ESKER_FLIP_SECONDS", 1800)),
        (Compression::Lz4, ReadMode::Pread, quota("ESKER_FLIP_OTHERS_SECONDS", 20)),
        (Compression::None, ReadMode::Pread, quota("ESKER_FLIP_OTHERS_SECONDS", 10)),
        (Compression::Lz4, ReadMode::Mapped, quota("ESKER_FLIP_OTHERS_SECONDS", 10)),
    ];
    for (compression, read_mode, quota) in pairs {
        let subject = subject(seed(), LARGE, compression, read_mode);
        let bits = |bytes: &[u8]| bytes.len() * 8;
        let flip = |bytes: &[u8], bit: usize| {
            let mut bytes = bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        };
        let what = format!("every bit, {compression:?}, {read_mode:?}");
        let tally = check(&what, &subject, quota, bits, flip);
        let all = (compression, read_mode) == (Compression::None, ReadMode::Mapped)
            && settings::number("ESKER_FLIP_SECONDS").is_none();
        assert!(tally.complete || !all, "not every bit was tried: allow more ESKER_FLIP_SECONDS");
        settings::tally(&[("flipped bits", tally.total())]);
    }
}
