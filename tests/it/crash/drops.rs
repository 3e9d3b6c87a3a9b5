//! Each single sync is dropped in turn, by a wrapper as anybody may write it, and the power cut at
//! every later moment in the strictest way: nothing un-synced survives.
//!
//! `sabotage` drops all syncs of a place; here the others of the same place happen, as with a disk that
//! loses one flush. Most of what is lost so is made durable by a later sync of the same file before
//! anything rests on it. Each place where that is so carries the argument: a drop that nobody notices
//! at a place without one fails the test. A table by place is printed and published in
//! `docs/TESTING.md`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use esker::fs::intercept::{Call, Intercepted, Interceptor, Verdict};
use esker::fs::sim::Survival;
use esker::fs::{Fs, current_site};
use esker::tools::dump_on;

use crate::crash::ends::End;
use crate::crash::enumerate::{bounds, explain};
use crate::crash::oracle::Reading;
use crate::crash::recovery::recover;
use crate::crash::setting;
use crate::crash::workload::{Run, Workload, dir};
use crate::settings;

/// Why a single sync of a place may be lost without harm, where another one follows in time.
const COVERED: [(&str, &str); 12] = [
    ("log.create.sync", "the first sync of its records makes the file's length durable, too"),
    (
        "log.create.sync_dir",
        "any later sync of the directory does it, and every flush, compaction and rotation has one; \
         it counts only once something in the file is promised",
    ),
    ("log.sync", "the next sync of the file does it, unless something was acknowledged as durable"),
    (
        "log.sync.older",
        "mostly noticed: the sync of the newer file promises it; not where a flush puts all that the \
         file has into tables before anything rests on it",
    ),
    (
        NAMED_AT_ONCE,
        "not covered, the table is named by an edit at once; unless it never is, since the job was cut \
         short",
    ),
    (
        "table.sync_dir",
        "a log or manifest that is created before the edit is durable syncs the directory",
    ),
    (
        "manifest.append.sync",
        "the next record's sync does it; logs and inputs are removed only after that one, so until \
         then a replay finds what the lost edit had",
    ),
    ("manifest.create.sync", "not covered: CURRENT names it at once"),
    ("manifest.create.sync_dir", "manifest.current.sync_dir follows before anything is appended"),
    ("manifest.current.sync", "not covered: CURRENT is renamed at once"),
    (
        "manifest.current.sync_dir",
        "the old manifest is removed later, and the directory is synced before it is gone for good",
    ),
    (
        "open.table.sync_dir",
        "log.create.sync_dir and manifest.create.sync_dir follow before CURRENT names the tables",
    ),
];

/// The sync of tables. One of a table that no edit names needs no other argument.
const NAMED_AT_ONCE: &str = "table.sync";

/// Drops the n-th sync of all.
#[derive(Debug)]
struct Dropper {
    nth: usize,
    /// Where the syncs came from, so far, and of what.
    syncs: Mutex<Vec<Sync>>,
}

type Sync = (&'static str, PathBuf);

impl Interceptor for Dropper {
    fn before(&self, call: &Call<'_>) -> Verdict {
        if !call.is_sync() {
            return Verdict::Proceed;
        }
        let mut syncs = self.syncs.lock().unwrap();
        syncs.push((current_site().unwrap_or("?"), call.path.to_path_buf()));
        if syncs.len() - 1 == self.nth { Verdict::Skip } else { Verdict::Proceed }
    }
}

/// A run without this sync, and all syncs of it.
fn run_without(workload: &Workload, nth: usize) -> (Run, Vec<Sync>) {
    let mut wrapper = None;
    let run = workload.run_behind(|disk| {
        let dropper = Dropper { nth, syncs: Mutex::default() };
        let fs = Intercepted::over(Arc::new(disk), dropper);
        wrapper = Some(fs.clone());
        Arc::new(fs)
    });
    let wrapper = wrapper.expect("it ran");
    let syncs = wrapper.interceptor().syncs.lock().unwrap().clone();
    (run, syncs)
}

/// True if a manifest named this table at some moment of the run.
fn was_named(run: &Run, table: &Path) -> bool {
    let stem = table.file_stem().and_then(|stem| stem.to_str()).expect("a name");
    let added = format!("+ table {} of", stem.trim_start_matches('0'));
    run.shots.iter().any(|shot| {
        let disk = shot.image.kill();
        let names = disk.list(dir()).unwrap_or_default();
        let fs: Arc<dyn Fs> = Arc::new(disk);
        names.iter().filter(|name| name.starts_with("manifest-")).any(|manifest| {
            let mut text = Vec::new();
            // One that is half written is shown as far as it goes.
            let _ = dump_on(&fs, &dir().join(manifest), &mut text);
            String::from_utf8_lossy(&text).contains(&added)
        })
    })
}

/// What is recovered from each disk: most are the same whichever sync was dropped.
type Known = HashMap<u64, Result<u64, String>>;

/// The first broken promise, with power cut at each moment and nothing un-synced left.
fn violation(run: &Run, known: &mut Known) -> Option<String> {
    let end = End::Power(Survival::NothingUnsynced);
    run.shots.iter().find_map(|shot| {
        let (lo, hi) = bounds(shot, &end)?;
        let disk = end.of(&shot.image);
        let found = known
            .entry(disk.state_hash())
            .or_insert_with(|| recover(&disk, Reading::Forward))
            .clone();
        match found {
            Ok(print) if run.oracle.admits(print, lo, hi) => None,
            Ok(_) => Some(explain(run, shot, &end)),
            Err(text) => Some(text),
        }
    })
}

#[derive(Default)]
struct Row {
    dropped: u64,
    noticed: u64,
    /// Not noticed, of a table that no edit names.
    unnamed: u64,
    first: Option<String>,
}

#[test]
fn each_single_sync_that_is_dropped_is_noticed_or_covered_by_a_later_one() {
    let actions = setting("ESKER_DROP_ACTIONS", 60) as usize;
    let mut table: BTreeMap<&'static str, Row> = BTreeMap::new();
    for seed in settings::seeds("ESKER_DROP_SEEDS", 2) {
        let workload = Workload::new(seed, actions);
        let mut known = Known::new();
        let (whole, syncs) = run_without(&workload, usize::MAX);
        assert_eq!(violation(&whole, &mut known), None, "seed {seed}, nothing dropped");
        for (nth, (site, _)) in syncs.iter().enumerate() {
            let (run, syncs) = run_without(&workload, nth);
            let found = violation(&run, &mut known);
            let row = table.entry(site).or_default();
            row.dropped += 1;
            row.noticed += u64::from(found.is_some());
            if found.is_none() && *site == NAMED_AT_ONCE && !was_named(&run, &syncs[nth].1) {
                row.unnamed += 1;
            }
            row.first = row.first.take().or(found);
        }
    }
    let mut unexplained = Vec::new();
    for (site, Row { dropped, noticed, unnamed, first }) in &table {
        let why = COVERED.iter().find(|(covered, _)| covered == site).map(|(_, why)| *why);
        println!("{site}: {noticed} of {dropped} noticed; {}", why.unwrap_or("no argument"));
        if let Some(first) = first {
            println!("    {}", first.lines().next().unwrap_or_default());
        }
        let covered = why.is_some_and(|why| !why.starts_with("not covered"));
        if noticed + unnamed < *dropped && !covered {
            unexplained.push(site);
        }
    }
    let sum = |of: fn(&Row) -> u64| table.values().map(of).sum::<u64>();
    let (dropped, noticed) = (sum(|row| row.dropped), sum(|row| row.noticed));
    println!("{noticed} of {dropped} dropped syncs noticed, the others covered by a later one");
    settings::tally(&[("single syncs dropped", dropped)]);
    assert!(unexplained.is_empty(), "dropped, not noticed, and no argument: {unexplained:?}");
    assert!(noticed > 0);
}
