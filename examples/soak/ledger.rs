//! What a soak tried so far: a file of JSON lines, one for each step that came to its end.
//!
//! ```text
//! {"base":417000,"soak":1}
//! {"commit":"d4160fc","counts":{"crash states":60112},"held":true,"round":0,"seconds":31,
//!  "seed":417000,"step":"crashes",…}                                    (on one line)
//! ```
//!
//! A step that was interrupted has no line, and one that found a violation is not held: both are
//! the next to be tried when the soak goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

/// Counts by their names.
pub type Counts = BTreeMap<String, u64>;

/// What came of a step.
#[derive(Default)]
pub struct Outcome {
    pub held: bool,
    pub seconds: u64,
    /// What adds up over steps.
    pub counts: Counts,
    /// What is the most of all steps: the coverage that fuzzing reached.
    pub reached: Counts,
    /// Why something was left out.
    pub skipped: Vec<String>,
}

/// The sum of all lines.
#[derive(Default)]
pub struct Totals {
    pub steps: u64,
    pub rounds: u64,
    pub violations: u64,
    pub seconds: u64,
    pub counts: Counts,
    pub reached: Counts,
}

pub struct Ledger {
    file: File,
    pub base: u64,
    pub totals: Totals,
    /// Steps that were held, as (round, name).
    held: BTreeSet<(u64, String)>,
}

fn counts_of(line: &Value, name: &str) -> Counts {
    let counts = line[name].as_object().into_iter().flatten();
    counts.filter_map(|(name, count)| Some((name.clone(), count.as_u64()?))).collect()
}

impl Ledger {
    /// Opens the ledger, or begins one whose seeds begin at `seed`.
    pub fn open(path: &Path, seed: Option<u64>) -> Result<Ledger, String> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let fails = |error: std::io::Error| format!("{}: {error}", path.display());
        let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(fails)?;
        // The last line may have been cut off by the end of the machine.
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n").map_err(fails)?;
        }
        let lines: Vec<Value> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let base = lines.iter().find_map(|line| line["base"].as_u64());
        if let (Some(base), Some(seed)) = (base, seed)
            && base != seed
        {
            return Err(format!("{} was begun with --seed {base}", path.display()));
        }
        let (totals, held) = Default::default();
        let drawn = base.or(seed).unwrap_or_else(|| fastrand::u64(1..1_000_000) * 1000);
        let mut ledger = Ledger { file, base: drawn, totals, held };
        if base.is_none() {
            ledger.write(&json!({"soak": 1, "base": drawn}))?;
        }
        lines.iter().for_each(|line| ledger.add(line));
        Ok(ledger)
    }

    /// True if this step of this round needs not be tried again.
    pub fn is_done(&self, round: u64, step: &str) -> bool {
        self.held.contains(&(round, step.to_string()))
    }

    fn add(&mut self, line: &Value) {
        let (Some(step), Some(round)) = (line["step"].as_str(), line["round"].as_u64()) else {
            return;
        };
        let totals = &mut self.totals;
        totals.steps += 1;
        totals.rounds = totals.rounds.max(round + 1);
        totals.seconds += line["seconds"].as_u64().unwrap_or(0);
        for (name, count) in counts_of(line, "counts") {
            *totals.counts.entry(name).or_default() += count;
        }
        for (name, most) in counts_of(line, "reached") {
            let reached = totals.reached.entry(name).or_default();
            *reached = most.max(*reached);
        }
        if line["held"] == true {
            self.held.insert((round, step.to_string()));
        } else {
            totals.violations += 1;
        }
    }

    fn write(&mut self, line: &Value) -> Result<(), String> {
        let text = format!("{line}\n");
        self.file.write_all(text.as_bytes()).map_err(|error| format!("the ledger: {error}"))
    }

    /// Appends what came of a step.
    pub fn note(
        &mut self,
        commit: &str,
        round: u64,
        step: &crate::regimes::Step,
        outcome: &Outcome,
    ) -> Result<(), String> {
        let line = json!({
            "round": round,
            "step": step.name,
            "seed": step.seed,
            "commit": commit,
            "seconds": outcome.seconds,
            "held": outcome.held,
            "counts": outcome.counts,
            "reached": outcome.reached,
            "skipped": outcome.skipped,
            "again": step.again(),
        });
        self.add(&line);
        self.write(&line)
    }
}
