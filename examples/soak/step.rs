//! Runs one step, and reads what it counted.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::Value;

use crate::ledger::{Counts, Outcome};
use crate::regimes::{Programs, Runs, Step};

/// How often the child is looked at: seldom enough not to disturb it.
const LOOKS: Duration = Duration::from_millis(100);

/// Where a step writes to, in the build directory.
pub struct Places {
    tally: PathBuf,
    pub output: PathBuf,
}

impl Places {
    pub fn new(folder: &Path) -> Places {
        Places { tally: folder.join("tally.jsonl"), output: folder.join("output.txt") }
    }
}

/// Waits for the child, or ends it if the soak is to stop. True if it succeeded; `None` if it was
/// ended.
fn wait(child: &mut Child, bar: &ProgressBar, stop: &AtomicBool) -> std::io::Result<Option<bool>> {
    loop {
        if let Some(status) = child.try_wait()? {
            // The terminal's interrupt ends the child as well.
            return Ok((!stop.load(Ordering::SeqCst)).then_some(status.success()));
        }
        if stop.load(Ordering::SeqCst) {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        bar.tick();
        std::thread::sleep(LOOKS);
    }
}

/// Runs the step. `None` if it was interrupted.
pub fn run(
    step: &Step,
    programs: &Programs,
    places: &Places,
    bar: &ProgressBar,
    stop: &AtomicBool,
) -> Result<Option<Outcome>, String> {
    let _ = std::fs::remove_file(&places.tally);
    let Some(mut command) = step.command(programs, &places.tally) else {
        let skipped = vec!["skipped: the fuzz targets are not built".to_string()];
        return Ok(Some(Outcome { held: true, skipped, ..Outcome::default() }));
    };
    let fails = |error: std::io::Error| format!("{command:?}: {error}");
    let output = File::create(&places.output).map_err(fails)?;
    let errors = output.try_clone().map_err(fails)?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    let began = Instant::now();
    let mut child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
    let ended = wait(&mut child, bar, stop).map_err(|error| format!("{command:?}: {error}"))?;
    let Some(held) = ended else { return Ok(None) };
    let text = std::fs::read(&places.output).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut outcome = Outcome { held, seconds: began.elapsed().as_secs(), ..Outcome::default() };
    match step.runs {
        Runs::Tests { .. } => outcome.counts = tallied(&places.tally),
        Runs::Fuzz { target, .. } => fuzzed(target, &text, &mut outcome),
    }
    let skipped = text.lines().filter(|line| line.starts_with("skipped: "));
    outcome.skipped = skipped.map(String::from).collect();
    if held && outcome.counts.is_empty() && outcome.skipped.is_empty() {
        return Err(format!("{} tried nothing: {}", step.name, step.again()));
    }
    Ok(Some(outcome))
}

fn tallied(path: &Path) -> Counts {
    let mut counts = Counts::new();
    let text = std::fs::read_to_string(path).unwrap_or_default();
    for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        for (name, count) in line.as_object().into_iter().flatten() {
            *counts.entry(name.clone()).or_default() += count.as_u64().unwrap_or(0);
        }
    }
    counts
}

/// Reads libFuzzer's figures: `stat::number_of_executed_units: 123`, and the last `cov: 4 ft: 5`.
fn fuzzed(target: &str, text: &str, outcome: &mut Outcome) {
    let after = |line: &str, name: &str| {
        let rest = &line[line.find(name)? + name.len()..];
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    let executed = text.lines().find_map(|line| after(line, "stat::number_of_executed_units:"));
    outcome.counts.insert(format!("executions of fuzz {target}"), executed.unwrap_or(0));
    for (name, shown) in [("cov: ", "edges"), ("ft: ", "features")] {
        if let Some(most) = text.lines().filter_map(|line| after(line, name)).max() {
            outcome.reached.insert(format!("{shown} of fuzz {target}"), most);
        }
    }
}
