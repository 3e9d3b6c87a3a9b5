//! Rot: every length and every bit of every file of a small database.
//!
//! A damaged database gives the right answer or `Corruption`, never a wrong value and never a
//! panic. The stated exceptions, and nothing else, are a *shorter prefix*: damage to the last group
//! of the log that nothing written later bears witness to, and to the last edit of the manifest.
//! A file that was cut off is the same thing: what bears witness may be cut with it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use esker::fs::Fs;
use esker::fs::sim::{Image, SimFs, Survival};
use esker::runtime::Runtime;
use esker::{
    Append, Compression, Counter, Db, Durability, ErrorKind, KeyspaceOptions, Options, ReadMode,
};

use crate::crash::enumerate::panic_text;
use crate::crash::oracle::{Reading, print_of};
use crate::crash::setting;
use crate::crash::workload::{DIR, dir};

/// A database at rest, and the prints of the states that it went through.
struct Subject {
    image: Image,
    prints: Vec<u64>,
    options: Options,
}

fn subject(compression: Compression, read_mode: ReadMode) -> Subject {
    let mut options = Options::tiny();
    (options.compression, options.read_mode, options.threads) = (compression, read_mode, 1);
    let disk = SimFs::new();
    let mut prints = Vec::new();
    let image = {
        let db = Db::open_on(Arc::new(disk.clone()), Runtime::stepper(5), DIR, options.clone());
        let db = db.unwrap();
        let note = |prints: &mut Vec<u64>| prints.push(print_of(&db, Reading::Forward).unwrap());
        note(&mut prints);
        let counters = KeyspaceOptions::new().merge(Counter::default());
        let counters = db.keyspace("counters", counters).unwrap();
        note(&mut prints);
        for i in 0..16 {
            db.put(format!("key {:02}", i % 12), format!("a value that repeats {i}")).unwrap();
            note(&mut prints);
            counters.merge(format!("c{}", i % 3), 1 << i).unwrap();
            note(&mut prints);
            if i == 10 {
                db.flush().unwrap();
                db.compact_range::<&[u8]>(..).unwrap();
                counters.compact_range::<&[u8]>(..).unwrap();
                let notes = KeyspaceOptions::new().merge(Append);
                db.keyspace("notes", notes).unwrap();
                note(&mut prints);
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
            note(&mut prints);
        }
        // As if all of it had reached the disk at this moment.
        disk.snapshot().crash(&Survival::Everything).snapshot()
    };
    Subject { image, prints, options }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Right,
    Corruption,
    Shorter,
}

impl Subject {
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let disk = self.image.kill();
        let mut names = disk.list(dir()).unwrap();
        names.sort();
        let paths = names.into_iter().map(|name| dir().join(name));
        paths.map(|path| (path.clone(), disk.contents(&path).unwrap())).collect()
    }

    /// What becomes of a database with one file replaced.
    fn outcome(&self, path: &std::path::Path, bytes: &[u8]) -> Result<Outcome, String> {
        let disk = self.image.kill();
        disk.set_contents(path, bytes).unwrap();
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

/// Damages every file in every way; `may_be_shorter` says where a prefix is allowed.
fn check(
    subject: &Subject,
    damages: impl Fn(&[u8]) -> usize + Sync,
    damage: impl Fn(&[u8], usize) -> Vec<u8> + Sync,
    only: impl Fn(&str) -> bool,
) -> BTreeMap<(String, Outcome), u64> {
    let files: Vec<_> = subject
        .files()
        .into_iter()
        .filter(|(path, _)| only(path.file_name().unwrap().to_str().unwrap()))
        .collect();
    let cases: Vec<(usize, usize)> = (0..files.len())
        .flat_map(|file| (0..damages(&files[file].1)).map(move |i| (file, i)))
        .collect();
    let (next, counts) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(&(file, i)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (path, bytes) = &files[file];
                    let name = path.file_name().unwrap().to_str().unwrap();
                    let is_log_or_manifest = name.ends_with(".log") || name.starts_with("manifest");
                    let outcome = subject.outcome(path, &damage(bytes, i));
                    match outcome {
                        Ok(Outcome::Shorter) if !is_log_or_manifest => {
                            failures.lock().unwrap().push(format!("{name}, {i}: a shorter prefix"));
                        }
                        Ok(outcome) => {
                            let kind = name.trim_matches(|c: char| c.is_ascii_digit() || c == '-');
                            let key = (kind.to_string(), outcome);
                            *counts.lock().unwrap().entry(key).or_insert(0) += 1;
                        }
                        Err(text) => failures.lock().unwrap().push(format!("{name}, {i}: {text}")),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    let shown = failures.len().min(10);
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures[..shown].join("\n"));
    counts.into_inner().unwrap()
}

fn show(what: &str, counts: &BTreeMap<(String, Outcome), u64>) {
    println!("{what}: {} damages", counts.values().sum::<u64>());
    for ((kind, outcome), count) in counts {
        println!("{count:8} {kind}: {outcome:?}");
    }
}

#[test]
fn every_length_of_every_log_and_manifest_gives_a_prefix_or_corruption() {
    let subject = subject(Compression::None, ReadMode::Mapped);
    let cut = |bytes: &[u8], len: usize| bytes[..len].to_vec();
    let counts = check(&subject, <[u8]>::len, cut, |name| {
        name.ends_with(".log") || name.starts_with("manifest") || name == "CURRENT"
    });
    show("every length", &counts);
    let shorter = counts.get(&(".log".to_string(), Outcome::Shorter));
    assert!(shorter.is_some_and(|count| *count > 50), "the log has a tail to lose: {counts:?}");
}

#[test]
fn every_length_of_every_table_gives_corruption() {
    let subject = subject(Compression::None, ReadMode::Mapped);
    let cut = |bytes: &[u8], len: usize| bytes[..len].to_vec();
    let counts = check(&subject, <[u8]>::len, cut, |name| name.ends_with(".table"));
    show("every length of tables", &counts);
    // Those that the manifest does not name any more may be anything.
    let is_needed = |(path, _): &&(PathBuf, Vec<u8>)| {
        let is_table = path.extension().is_some_and(|ending| ending == "table");
        is_table && subject.outcome(path, b"") == Ok(Outcome::Corruption)
    };
    let files = subject.files();
    let needed: usize = files.iter().filter(is_needed).map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(counts[&(".table".to_string(), Outcome::Corruption)], needed as u64, "{counts:?}");
}

#[test]
fn every_flipped_bit_gives_the_right_answer_or_corruption() {
    // Both codecs and both ways to read; all four pairs in the soak.
    let all = setting("ESKER_FLIP_ALL", 0) == 1;
    for (i, compression) in [Compression::None, Compression::Lz4].into_iter().enumerate() {
        for (j, read_mode) in [ReadMode::Mapped, ReadMode::Pread].into_iter().enumerate() {
            if i != j && !all {
                continue;
            }
            let subject = subject(compression, read_mode);
            let bits = |bytes: &[u8]| bytes.len() * 8;
            let flip = |bytes: &[u8], bit: usize| {
                let mut bytes = bytes.to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                bytes
            };
            let counts = check(&subject, bits, flip, |_| true);
            show(&format!("every bit, {compression:?}, {read_mode:?}"), &counts);
        }
    }
}
