//! Replays every committed input of the fuzz targets, without libFuzzer.
//!
//! `ESKER_CORPUS=fuzz/found` replays another directory of the same shape: one folder a target.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use esker::fuzz::{TARGETS, run, seeds};

fn corpus() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join(std::env::var("ESKER_CORPUS").unwrap_or_else(|_| "fuzz/corpus".to_string()))
}

fn inputs(target: &str) -> Vec<PathBuf> {
    let Ok(listed) = std::fs::read_dir(corpus().join(target)) else { return Vec::new() };
    let mut paths: Vec<_> = listed.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_committed_input_is_survived() {
    let mut counts = BTreeMap::new();
    for (target, _) in TARGETS {
        for path in inputs(target) {
            let bytes = std::fs::read(&path).unwrap();
            let survived = catch_unwind(AssertUnwindSafe(|| run(target, &bytes)));
            assert!(survived.is_ok(), "{target} fails on {}", path.display());
            *counts.entry(*target).or_insert(0) += 1;
        }
    }
    println!("{counts:?}");
    let committed = std::env::var("ESKER_CORPUS").is_err();
    assert!(!committed || counts.len() == TARGETS.len(), "a target without inputs: {counts:?}");
}

/// The corpus holds the formats as they are now; `GOLDEN=write` writes these inputs anew.
#[test]
fn the_seeds_of_the_decoders_are_committed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let write = std::env::var("GOLDEN").is_ok_and(|golden| golden == "write");
    for (target, name, bytes) in seeds() {
        let path = root.join(target).join(format!("seed-{name}"));
        if write {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        let committed = std::fs::read(&path).unwrap_or_default();
        assert!(committed == bytes, "{}: GOLDEN=write writes it anew", path.display());
        run(target, &bytes);
    }
}
