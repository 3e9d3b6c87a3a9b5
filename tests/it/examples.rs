//! The examples run, each asserts its own outcome, and the README shows the first of them.

use std::fs;
use std::path::Path;

#[path = "../../examples/async_commits.rs"]
mod async_commits;
#[path = "../../examples/backpressure.rs"]
mod backpressure;
#[path = "../../examples/batch.rs"]
mod batch;
#[path = "../../examples/batcher.rs"]
mod batcher;
#[path = "../../examples/coalescer.rs"]
mod coalescer;
#[path = "../../examples/counters.rs"]
mod counters;
#[cfg(feature = "testing")]
#[path = "../../examples/crash_check.rs"]
mod crash_check;
#[path = "../../examples/hot_counters.rs"]
mod hot_counters;
#[path = "../../examples/http.rs"]
pub mod http;
#[path = "../../examples/idempotent.rs"]
mod idempotent;
#[path = "../../examples/ingest.rs"]
mod ingest;
#[path = "../../examples/quickstart.rs"]
mod quickstart;
#[path = "../../examples/scaling.rs"]
mod scaling;
#[path = "../../examples/scan.rs"]
mod scan;
#[path = "../../examples/shards.rs"]
mod shards;

#[test]
fn quickstart_runs() {
    quickstart::main().unwrap();
}

#[test]
fn counters_runs() {
    counters::main().unwrap();
}

#[cfg(feature = "testing")]
#[test]
fn crash_check_runs() {
    crash_check::main().unwrap();
}

#[test]
fn batch_runs() {
    batch::main().unwrap();
}

#[test]
fn async_commits_runs() {
    async_commits::main().unwrap();
}

#[test]
fn hot_counters_runs() {
    hot_counters::main().unwrap();
}

#[test]
fn scaling_runs() {
    scaling::main().unwrap();
}

#[test]
fn scan_runs() {
    scan::main().unwrap();
}

#[test]
fn shards_runs() {
    shards::main().unwrap();
}

#[test]
fn backpressure_runs() {
    backpressure::main().unwrap();
}

#[test]
fn batcher_runs() {
    batcher::main().unwrap();
}

#[test]
fn coalescer_runs() {
    coalescer::main().unwrap();
}

#[test]
fn idempotent_runs() {
    idempotent::main().unwrap();
}

#[test]
fn ingest_runs() {
    ingest::main().unwrap();
}

#[test]
fn http_runs() {
    http::main().unwrap();
}

/// The README's first Rust block is the quickstart, but for the directory.
#[test]
fn the_readme_shows_the_quickstart() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let shown = readme.split("```rust\n").nth(1).unwrap().split("```").next().unwrap();
    let example = fs::read_to_string(root.join("examples/quickstart.rs")).unwrap();
    let body = example.split("esker::Result<()> {\n").last().unwrap();
    let lines = body.lines().take_while(|line| line.trim() != "Ok(())");
    let run: Vec<_> = lines.map(|line| line.replace("open(path)", "open(\"data\")")).collect();
    let run: Vec<_> = run.iter().map(|line| line.strip_prefix("    ").unwrap_or(line)).collect();
    assert_eq!(shown.lines().collect::<Vec<_>>(), run);
}

/// Every example is run by a test above; a folder is a program of its own (the soak).
#[test]
fn no_example_is_forgotten() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let this = fs::read_to_string(root.join("tests/it/examples.rs")).unwrap();
    for entry in fs::read_dir(root.join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(this.contains(&format!("{name}::main()")), "{name}");
    }
}
