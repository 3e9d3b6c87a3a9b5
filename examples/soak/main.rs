//! The soak: every regime of the tests, round after round, each with new seeds, until it is told to
//! stop or a promise is broken.
//!
//! ```sh
//! cargo soak                 # without end; goes on where the ledger ends
//! cargo soak --for 8h        # a night
//! cargo soak --totals        # what was tried so far
//! ```
//!
//! - `regimes`: what a round consists of.
//! - `ledger`: what was tried, in `soak.jsonl`, with seeds and commit.
//! - `step`: one step as a process of its own, so that an abort or a hang is a finding too.
//!
//! It builds the test binary and, where `cargo fuzz` is installed, the fuzz targets; keeps copies of
//! both, so that work in the tree does not disturb it; and stops at the first violation, with the
//! command that runs it again. Once that is mended the same command goes on.

mod ledger;
mod regimes;
mod step;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::ledger::{Ledger, Outcome};
use crate::regimes::{Programs, Step, steps};
use crate::step::Places;

/// Runs every regime of esker's tests, round after round.
#[derive(Parser)]
struct Arguments {
    /// Begins no step after so long, such as 90s, 45m, 8h
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    lasting: Option<Duration>,
    /// Where counts, seeds and commits are kept
    #[arg(long, value_name = "FILE", default_value = "soak.jsonl")]
    ledger: PathBuf,
    /// The first seed of a new ledger
    #[arg(long)]
    seed: Option<u64>,
    /// Threads among which a step divides its cases
    #[arg(long, default_value_t = 1)]
    workers: u64,
    /// Only steps whose name contains this
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Also cut a loop-mounted ext4 off: needs root
    #[arg(long)]
    power_cuts: bool,
    /// Prints what was tried so far, and ends
    #[arg(long)]
    totals: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let number: u64 = number.parse().map_err(|_| "a number and s, m or h, such as 45m")?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("a number and s, m or h, such as 45m".to_string()),
    };
    Ok(Duration::from_secs(number * seconds))
}

fn main() -> ExitCode {
    match soak(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::from(2)
        }
    }
}

/// False if a promise was broken.
fn soak(arguments: &Arguments) -> Result<bool, String> {
    let mut ledger = Ledger::open(&arguments.ledger, arguments.seed)?;
    if arguments.totals {
        show_totals(&ledger);
        return Ok(true);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    let handler = move || asked.store(true, Ordering::SeqCst);
    ctrlc::set_handler(handler).map_err(|error| error.to_string())?;
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("target/soak-run");
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let (commit, programs) = (commit(&root), build(&root, &folder)?);
    let (places, began) = (Places::new(&folder), Instant::now());
    let is_over = || {
        stop.load(Ordering::SeqCst) || arguments.lasting.is_some_and(|most| began.elapsed() > most)
    };
    let style = ProgressStyle::with_template("{spinner} {msg}, {elapsed}").expect("it is right");
    for round in 0.. {
        let mut steps = steps(ledger.base, round, arguments.workers, arguments.power_cuts);
        steps.retain(|step| arguments.only.as_ref().is_none_or(|only| step.name.contains(only)));
        if steps.is_empty() {
            return Err("no step has that name".to_string());
        }
        steps.retain(|step| !ledger.is_done(round, &step.name));
        if steps.is_empty() {
            continue;
        }
        for step in steps {
            if is_over() {
                break;
            }
            let bar = ProgressBar::new_spinner().with_style(style.clone());
            bar.set_message(format!("round {round}, {}", step.name));
            let ended = step::run(&step, &programs, &places, &bar, &stop)?;
            bar.finish_and_clear();
            let Some(outcome) = ended else { break };
            ledger.note(&commit, round, &step, &outcome)?;
            if !outcome.held {
                show_violation(arguments, round, &step, &places)?;
                return Ok(false);
            }
            show_step(round, &step, &outcome);
        }
        show_totals(&ledger);
        if is_over() {
            break;
        }
    }
    Ok(true)
}

/// The commit, with a `+` if the tree differs from it.
fn commit(root: &Path) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).current_dir(root).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_default();
    let changed = git(&["status", "--porcelain", "-uno"]).is_ok_and(|files| !files.is_empty());
    format!("{commit}{}", if changed { "+" } else { "" })
}

/// Builds what the steps run, and copies it.
fn build(root: &Path, folder: &Path) -> Result<Programs, String> {
    eprintln!("building the tests");
    let arguments = ["test", "--profile", "soak", "--all-features", "--test", "it", "--no-run"];
    let built = Command::new("cargo")
        .args(arguments)
        .args(["--quiet", "--message-format=json"])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    let lines = String::from_utf8_lossy(&built.stdout);
    let messages = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut tests = messages.filter(|message| message["target"]["name"] == "it");
    let executable = tests.find_map(|message| Some(message["executable"].as_str()?.to_string()));
    let executable = executable.ok_or("the tests do not build: cargo test says why")?;
    copy(Path::new(&executable), &folder.join("it"))?;
    let fuzz = build_fuzz(root, folder);
    if let Err(reason) = &fuzz {
        eprintln!("without fuzzing: {reason}");
    }
    Ok(Programs { root: root.to_path_buf(), tests: folder.join("it"), fuzz: fuzz.ok() })
}

fn build_fuzz(root: &Path, folder: &Path) -> Result<PathBuf, String> {
    eprintln!("building the fuzz targets");
    // What libFuzzer needs of the compiler is not stable; this lets any toolchain do it.
    let status = Command::new("cargo")
        .args(["fuzz", "build", "-s", "none"])
        .env("RUSTC_BOOTSTRAP", "1")
        .current_dir(root.join("fuzz"))
        .status();
    if !status.is_ok_and(|status| status.success()) {
        return Err("cargo fuzz build fails; cargo install cargo-fuzz".to_string());
    }
    let copies = folder.join("fuzz");
    std::fs::create_dir_all(&copies).map_err(|error| format!("{}: {error}", copies.display()))?;
    for (target, _) in regimes::FUZZED {
        let built = root.join("fuzz/target/x86_64-unknown-linux-gnu/release").join(target);
        copy(&built, &copies.join(target))?;
    }
    Ok(copies)
}

/// Copies a program; the one before may still be running.
fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let _ = std::fs::remove_file(to);
    let copied = std::fs::copy(from, to);
    copied.map(|_| ()).map_err(|error| format!("{} to {}: {error}", from.display(), to.display()))
}

fn show_step(round: u64, step: &Step, outcome: &Outcome) {
    let counts = outcome.counts.iter().chain(&outcome.reached);
    let counts: Vec<_> = counts.map(|(name, count)| format!("{count} {name}")).collect();
    println!("round {round}, {}, {} s: {}", step.name, outcome.seconds, counts.join(", "));
    outcome.skipped.iter().for_each(|reason| println!("  {reason}"));
}

fn show_totals(ledger: &Ledger) {
    let totals = &ledger.totals;
    let (hours, minutes) = (totals.seconds / 3600, totals.seconds / 60 % 60);
    println!(
        "{} steps of {} rounds in {hours} h {minutes} min, {} violations",
        totals.steps, totals.rounds, totals.violations
    );
    for (name, count) in totals.counts.iter().chain(&totals.reached) {
        println!("{count:14}  {name}");
    }
}

fn show_violation(
    arguments: &Arguments,
    round: u64,
    step: &Step,
    places: &Places,
) -> Result<(), String> {
    let kept = format!("soak-violation-{round}-{}.txt", step.name.replace(' ', "-"));
    let kept = arguments.ledger.with_file_name(kept);
    std::fs::copy(&places.output, &kept).map_err(|e| format!("{}: {e}", kept.display()))?;
    let text = std::fs::read(&kept).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    println!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
    println!("\na violation in round {round}, {}: all of it is in {}", step.name, kept.display());
    println!("to try the same again:\n  {}", step.again());
    Ok(())
}
