//! Intact bytes in the wrong place: files that are stale, swapped or another database's, and
//! blocks that a disk wrote to another offset, to another file, or not at all.
//!
//! Each has right checksums over itself, so only what binds a checksum to its file and offset, and
//! the manifest to its files, can tell. The answer must be right, or a typed error; or, where only
//! the end of the log or of the manifest is concerned, a shorter prefix, as with any other damage
//! to it.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use esker::{Compression, ReadMode};

use crate::crash::damage::{Subject, Tally, files_of, in_parallel, seed};

/// Operations of the database.
const COUNT: u32 = 16;

type Files = Vec<(PathBuf, Vec<u8>)>;

fn here() -> Subject {
    database(seed())
}

fn database(seed: u64) -> Subject {
    crate::crash::damage::subject(seed, COUNT, Compression::None, ReadMode::Mapped)
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("a name")
}

/// What a case puts where: its name, and the files it replaces or adds.
struct Case {
    name: String,
    files: Files,
}

fn case(name: String, files: &[(&PathBuf, &[u8])]) -> Case {
    let files = files.iter().map(|(path, bytes)| ((*path).clone(), bytes.to_vec())).collect();
    Case { name, files }
}

/// Tries every case, or the one that the environment names.
fn check(what: &str, subject: &Subject, cases: &[Case]) {
    let only = std::env::var("ESKER_DAMAGE_CASE").ok();
    let tally = Mutex::new(Tally::default());
    in_parallel(cases.len(), Duration::MAX, |number| {
        let Case { name: case, files } = &cases[number];
        if only.as_ref().is_none_or(|only| only == case) {
            let outcome = subject.outcome_with(files);
            // Counted as the file with the weakest promise.
            let weak = |path: &Path| name(path).contains("log") || name(path).contains("manifest");
            let path = files.iter().map(|(path, _)| path).find(|path| weak(path));
            tally.lock().unwrap().note(path.unwrap_or(&files[0].0), case, outcome);
        }
    });
    let tally = tally.into_inner().unwrap();
    tally.show(what);
    crate::settings::tally(&[("misplaced files and blocks", tally.total())]);
}

#[test]
fn a_stale_file_is_noticed_or_harmless() {
    let subject = here();
    let now = subject.files();
    let mut cases = Vec::new();
    for (moment, image) in subject.history.iter().enumerate() {
        let then = files_of(image);
        let changed = |(path, bytes): &&(PathBuf, Vec<u8>)| {
            now.iter().all(|(other, now)| (other, now) != (path, bytes))
        };
        for (path, bytes) in then.iter().filter(changed) {
            cases.push(case(format!("stale-{moment}-{}", name(path)), &[(path, bytes)]));
        }
        // Together with what names it.
        let live = |(path, _): &&(PathBuf, Vec<u8>)| {
            name(path) == "CURRENT" || name(path).starts_with("manifest")
        };
        let both: Vec<_> =
            then.iter().filter(live).map(|(path, bytes)| (path, &bytes[..])).collect();
        cases.push(case(format!("stale-{moment}-manifest-and-current"), &both));
    }
    check("stale files", &subject, &cases);
}

#[test]
fn files_in_the_place_of_others_are_noticed_or_harmless() {
    let subject = here();
    let files = subject.files();
    let mut cases = Vec::new();
    for (a, a_bytes) in &files {
        for (b, b_bytes) in files.iter().filter(|(b, _)| b != a) {
            cases.push(case(format!("copied-{}-{}", name(a), name(b)), &[(b, a_bytes)]));
            if a < b {
                let swapped: [(&PathBuf, &[u8]); 2] = [(a, b_bytes), (b, a_bytes)];
                cases.push(case(format!("swapped-{}-{}", name(a), name(b)), &swapped));
            }
        }
    }
    check("swapped and copied files", &subject, &cases);
}

#[test]
fn files_of_another_database_are_noticed_or_harmless() {
    let subject = here();
    let (files, foreign) = (subject.files(), database(seed() + 1).files());
    let mut cases = Vec::new();
    for (from, bytes) in &foreign {
        for (path, _) in &files {
            cases.push(case(format!("foreign-{}-{}", name(from), name(path)), &[(path, bytes)]));
        }
        if !files.iter().any(|(path, _)| path == from) {
            cases.push(case(format!("foreign-{}-new", name(from)), &[(from, bytes)]));
        }
    }
    check("files of another database", &subject, &cases);
}

/// Every block over every other one, in all files; and zeros over every one.
#[test]
fn misdirected_and_lost_blocks_are_noticed_or_harmless() {
    let subject = here();
    let files = subject.files();
    for unit in [512, 64] {
        let mut cases = Vec::new();
        for (path, bytes) in &files {
            for at in (0..bytes.len()).step_by(unit) {
                let mut write = |what: &str, block: &[u8]| {
                    let mut changed = bytes.clone();
                    let end = (at + block.len()).min(changed.len());
                    changed[at..end].copy_from_slice(&block[..end - at]);
                    if changed != *bytes {
                        let name = format!("{what}-{unit}-to-{}-{at}", name(path));
                        cases.push(case(name, &[(path, &changed)]));
                    }
                };
                write("zeros", &vec![0; unit]);
                for (from, source) in &files {
                    for (i, block) in source.chunks(unit).enumerate() {
                        write(&format!("block-{}-{}", name(from), i * unit), block);
                    }
                }
            }
        }
        check(&format!("misdirected blocks of {unit}"), &subject, &cases);
    }
}
