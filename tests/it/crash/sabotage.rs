//! Can the harness fail? Every place in the engine that syncs, renames or sets a length is switched
//! off in turn, renames also put out of order with the call that follows them, and every check of a
//! length switched off: the enumeration of a short run, or of truncations, must notice.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use esker::fs::intercept::Select;
use esker::fs::sabotage::{Damage, Place, SabotageFs};
use esker::fs::sim::{SimFs, Survival};
use esker::fs::{Fs, LENGTH_CHECKS, without_length_check};
use esker::runtime::Runtime;
use esker::{Compression, Db, Options, ReadMode};

use crate::crash::damage::{Outcome, Subject, in_parallel, subject};
use crate::crash::enumerate::{Ledger, Plan, enumerate};
use crate::crash::workload::Workload;
use crate::score::{Score, Scored, has_place};

/// Places whose loss no crash can show, and why.
const REDUNDANT: [(&str, &str); 2] = [
    (
        "log.trim set_len Skip",
        "all that the log holds is in tables by then: a log that stays long costs the next open time",
    ),
    (
        "open.table.sync_dir sync_dir Skip",
        "before CURRENT names the manifest that names the tables, the directory is synced again, \
         for the names of the log and of that manifest: log.create.sync_dir, \
         manifest.create.sync_dir",
    ),
];

/// Checks of lengths whose loss no damage can show, and why.
const REDUNDANT_CHECKS: [(&str, &str); 5] = [
    (
        "length current.bytes",
        "it bounds the memory for a CURRENT that cannot be right: the line is compared with the \
         only one that is",
    ),
    (
        "length table.bytes.least",
        "a table that is so short has no whole header, or ends in bytes that are no footer",
    ),
    (
        "length table.bytes.manifest",
        "the footer is found from the end of the file and its checksum is bound to its offset, so \
         a table of another length has none",
    ),
    (
        "length log.bytes",
        "what is mapped is as long as the file on a disk that tells the truth: one that does not \
         is in the unit tests of fs, which leave the check out too",
    ),
    (
        "length block.lz4",
        "it bounds the memory for a block whose checksum is right already: only a bug of the \
         writer could get there",
    ),
];

const ACTIONS: usize = 120;
const SEEDS: u64 = 4;

fn plan() -> Plan {
    Plan {
        every: 1,
        random: 1,
        subsets_max: 3,
        thorough_every: 0,
        singles: 1,
        again_every: 4,
        deeper_every: vec![300],
        quota: Duration::from_secs(20),
        threads: crate::settings::workers(),
    }
}

/// The places that sync, rename or set a length in runs of these seeds, and how often.
fn places() -> BTreeMap<Place, u64> {
    let mut all = BTreeMap::new();
    for seed in 0..SEEDS {
        let seen = Arc::new(Mutex::new(None));
        let kept = seen.clone();
        Workload { watch: false, ..Workload::new(seed, ACTIONS) }.run_behind(move |disk: SimFs| {
            let fs = SabotageFs::none(Arc::new(disk));
            *kept.lock().unwrap() = Some(fs.clone());
            Arc::new(fs) as Arc<dyn Fs>
        });
        let fs: SabotageFs = seen.lock().unwrap().take().expect("it ran");
        for (place, count) in fs.seen() {
            if matches!(place.1, "sync" | "sync_dir" | "rename" | "set_len") {
                *all.entry(place).or_default() += count;
            }
        }
    }
    all
}

/// The first violation with this place damaged, of any seed.
fn noticed(site: &'static str, call: &'static str, damage: Damage) -> Option<String> {
    let select = Select::all().site(site).name(call);
    (0..SEEDS).find_map(|seed| {
        let select = select.clone();
        let workload = Workload::new(seed, ACTIONS);
        let run = std::panic::catch_unwind(|| {
            workload
                .run_behind(move |disk| Arc::new(SabotageFs::all(Arc::new(disk), damage, select)))
        });
        match run {
            Ok(run) => {
                let found = enumerate(&run, &workload, &plan(), &Ledger::default());
                found.err().map(|found| found.text)
            }
            Err(_) => Some("the run itself failed".to_string()),
        }
    })
}

/// The same for a table that is longer than a chunk, as those of the workload are not. Its place on the
/// disk is reserved before; what it did not need is to be free again.
fn noticed_of_large_table(
    site: &'static str,
    call: &'static str,
    damage: Damage,
) -> (u64, Option<String>) {
    let (disk, dir) = (SimFs::new(), Path::new("/db"));
    let fs = SabotageFs::all(Arc::new(disk.clone()), damage, Select::all().site(site).name(call));
    let mut options = Options::default();
    (options.compression, options.threads) = (Compression::None, 1);
    let db = Db::open_on(Arc::new(fs.clone()), Runtime::stepper(1), dir, options).unwrap();
    (0..3000).for_each(|n| db.put(format!("{n}"), [n as u8; 1000]).unwrap());
    db.close().unwrap();
    let len = |name: &String| disk.contents(&dir.join(name)).unwrap().len() as u64;
    let long: u64 = disk.list(dir).unwrap().iter().map(len).sum();
    const CAPACITY: u64 = 1 << 40;
    disk.set_capacity(Some(CAPACITY));
    let taken = CAPACITY - disk.free_bytes(dir).unwrap();
    let wasted = (taken != long).then(|| format!("{long} bytes of files take {taken}"));
    (fs.damaged(), wasted)
}

/// The same for the directories of a new database, whose syncs are below the seam.
fn noticed_of_directories(forgets: bool) -> Option<String> {
    let (disk, dir) = (SimFs::new(), Path::new("/a/db"));
    disk.set_forgets_directories(forgets);
    let open = |disk: SimFs, create: bool| {
        let (fs, mut options) = (Arc::new(disk), Options::tiny());
        options.create = create;
        Db::open_on(fs, Runtime::threads(), dir, options)
    };
    let db = open(disk.clone(), true).unwrap();
    db.put("key", "value").unwrap();
    db.sync().unwrap();
    let after = open(disk.snapshot().crash(&Survival::NothingUnsynced), false);
    let found = after.and_then(|db| db.get("key"));
    (!matches!(&found, Ok(Some(_)))).then(|| format!("of what was synced: {found:?}"))
}

#[test]
fn every_sync_and_rename_that_is_left_out_or_late_is_noticed() {
    let places = places();
    let unknown = places.keys().find(|place| !has_place(place.0, place.1));
    assert_eq!(unknown, None, "every place has a name and is in the score");
    let whole = noticed_of_large_table("none", "set_len", Damage::Skip);
    assert_eq!(whole, (0, None), "nothing was left out");
    let mut score = Score::new(&REDUNDANT);
    score.leave_out(Scored::Engine, |site, call, damage| {
        if site == "table.truncate" {
            return noticed_of_large_table(site, call, damage);
        }
        let calls = places.get(&(Some(site), call)).copied().unwrap_or(0);
        (calls, noticed(site, call, damage))
    });
    assert_eq!(noticed_of_directories(false), None, "nothing was left out");
    score.note("create_dir_all sync_dir Skip".to_string(), "2 calls", noticed_of_directories(true));
    score.check();
}

/// What becomes of a database with a file of every other length, with or without a check.
fn outcomes(subject: &Subject, off: Option<&'static str>) -> Vec<Result<Outcome, String>> {
    let files = subject.files();
    let lens = |bytes: &[u8]| bytes.len() + 80;
    let all: Vec<(usize, usize)> = (0..files.len())
        .flat_map(|file| (0..lens(&files[file].1)).map(move |len| (file, len)))
        .collect();
    let outcomes = Mutex::new(vec![Ok(Outcome::Right); all.len()]);
    in_parallel(all.len(), Duration::MAX, |number| {
        let (path, bytes) = &files[all[number].0];
        let mut bytes = bytes.clone();
        bytes.resize(all[number].1, 0);
        let outcome = || subject.outcome_with(&[(path.clone(), bytes)]);
        let outcome = match off {
            Some(name) => without_length_check(name, outcome),
            None => outcome(),
        };
        outcomes.lock().unwrap()[number] = outcome;
    });
    outcomes.into_inner().unwrap()
}

/// A length check is noticed if without it damage that was refused is accepted, or worse.
#[test]
fn every_length_check_that_is_left_out_is_noticed() {
    let mut score = Score::new(&REDUNDANT_CHECKS);
    let codecs = [(Compression::None, ReadMode::Pread), (Compression::Lz4, ReadMode::Mapped)];
    let subjects = codecs.map(|(compression, mode)| subject(5, 16, compression, mode));
    let right: Vec<_> = subjects.iter().map(|subject| outcomes(subject, None)).collect();
    // Those of the slot map and of repairs are left out where these are.
    let of_engine = |name: &&str| !["lost.", "shards."].iter().any(|with| name.starts_with(with));
    for name in LENGTH_CHECKS.into_iter().filter(of_engine) {
        let noticed = subjects.iter().zip(&right).find_map(|(subject, right)| {
            let without = outcomes(subject, Some(name));
            let mut worse = right.iter().zip(&without).filter(|(right, without)| {
                matches!(right, Ok(Outcome::Corruption)) && right != without
            });
            let first = worse.next()?;
            Some(format!("{:?} instead of {:?}, and {} more", first.1, first.0, worse.count()))
        });
        let count: usize = right.iter().map(Vec::len).sum();
        score.note(format!("length {name}"), &format!("{count} lengths"), noticed);
    }
    score.check();
}
