//! The score: every place that syncs, renames, sets a length or checks one is left out in turn, and some
//! test must notice. A place that none notices carries the argument why it is redundant.

use std::collections::BTreeSet;

use esker::fs::LENGTH_CHECKS;
use esker::fs::sabotage::Damage;

use crate::layers::sources;

/// The test that leaves a place out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scored {
    /// `crash::sabotage`
    Engine,
    /// `sharded::sabotage`
    Shards,
    /// `checkpoint`
    Checkpoint,
    /// `repair`
    Repair,
}

/// Every place in the engine that syncs, renames or sets a length, and what it calls.
const PLACES: [(Scored, &str, &str); 31] = [
    (Scored::Engine, "log.create.sync", "sync"),
    (Scored::Engine, "log.create.sync_dir", "sync_dir"),
    (Scored::Engine, "log.sync", "sync"),
    (Scored::Engine, "log.sync.older", "sync"),
    (Scored::Engine, "log.trim", "set_len"),
    (Scored::Engine, "manifest.append.sync", "sync"),
    (Scored::Engine, "manifest.create.sync", "sync"),
    (Scored::Engine, "manifest.create.sync_dir", "sync_dir"),
    (Scored::Engine, "manifest.current.rename", "rename"),
    (Scored::Engine, "manifest.current.sync", "sync"),
    (Scored::Engine, "manifest.current.sync_dir", "sync_dir"),
    (Scored::Engine, "open.table.sync_dir", "sync_dir"),
    (Scored::Engine, "table.sync", "sync"),
    (Scored::Engine, "table.sync_dir", "sync_dir"),
    (Scored::Engine, "table.truncate", "set_len"),
    (Scored::Shards, "open.joint.rename", "rename"),
    (Scored::Shards, "open.joint.set_len", "set_len"),
    (Scored::Shards, "open.joint.sync", "sync"),
    (Scored::Shards, "open.joint.sync_dir", "sync_dir"),
    (Scored::Shards, "shard.mark.rename", "rename"),
    (Scored::Shards, "shard.mark.sync", "sync"),
    (Scored::Shards, "shard.mark.sync_dir", "sync_dir"),
    (Scored::Shards, "shards.rename", "rename"),
    (Scored::Shards, "shards.sync", "sync"),
    (Scored::Shards, "shards.sync_dir", "sync_dir"),
    (Scored::Checkpoint, "checkpoint.copy.sync", "sync"),
    (Scored::Checkpoint, "checkpoint.rename", "rename"),
    (Scored::Checkpoint, "checkpoint.sync_parent", "sync_dir"),
    (Scored::Repair, "lost.sync", "sync"),
    (Scored::Repair, "lost.sync_dir", "sync_dir"),
    (Scored::Repair, "repair.table.sync_dir", "sync_dir"),
];

/// What the tests made of every place so far.
pub struct Score {
    /// Places whose loss no crash can show, and why.
    redundant: &'static [(&'static str, &'static str)],
    seen: Vec<String>,
    argued: Vec<String>,
    blind: Vec<String>,
}

impl Score {
    pub fn new(redundant: &'static [(&'static str, &'static str)]) -> Score {
        Score { redundant, seen: Vec::new(), argued: Vec::new(), blind: Vec::new() }
    }

    /// Tries every place of this test with `without`: how many calls of the place it came to, and the
    /// first violation if there was any.
    pub fn leave_out(
        &mut self,
        of: Scored,
        without: impl Fn(&'static str, &'static str, Damage) -> (u64, Option<String>),
    ) {
        for (_, site, call) in PLACES.iter().filter(|place| place.0 == of) {
            let damages: &[Damage] = match *call {
                // Its order with the sync that makes it durable is what counts. That of a sync with
                // the next call is mostly free: a file may be synced before or after its name.
                "rename" => &[Damage::Skip, Damage::Delay],
                _ => &[Damage::Skip],
            };
            for damage in damages {
                let (calls, noticed) = without(site, call, *damage);
                assert!(calls > 0, "the test never comes to {site}");
                self.note(format!("{site} {call} {damage:?}"), &format!("{calls} calls"), noticed);
            }
        }
    }

    /// Prints the line of a place, which was tried so often.
    pub fn note(&mut self, name: String, count: &str, noticed: Option<String>) {
        let why = self.redundant.iter().find(|(redundant, _)| *redundant == name);
        match (noticed, why) {
            (Some(text), _) => {
                let first = text.lines().next().unwrap_or_default();
                println!("noticed    {name} ({count}): {first}");
                self.seen.push(name);
            }
            (None, Some((_, why))) => {
                println!("redundant  {name} ({count}): {why}");
                self.argued.push(name);
            }
            (None, None) => {
                println!("NOT SEEN   {name} ({count})");
                self.blind.push(name);
            }
        }
    }

    /// Prints the score.
    ///
    /// # Panics
    /// If a place is not noticed and no argument says why, or an argument is not that of such a place.
    pub fn check(self) {
        let (seen, argued) = (self.seen.len(), self.argued.len());
        println!(
            "score: {seen} of {} noticed, {argued} redundant, {} not seen",
            seen + argued + self.blind.len(),
            self.blind.len()
        );
        let stale = self.redundant.iter().find(|(name, _)| !self.argued.iter().any(|n| n == name));
        assert_eq!(stale, None, "said to be redundant, and noticed or not there");
        assert!(self.blind.is_empty(), "left out and not noticed: {:?}", self.blind);
    }
}

/// True if the score has this place, whichever of the tests it is that leaves it out.
pub fn has_place(site: Option<&str>, call: &str) -> bool {
    PLACES.iter().any(|place| Some(place.1) == site && place.2 == call)
}

/// The names in quotes of this code.
fn quoted(code: &str) -> impl Iterator<Item = &str> {
    code.split('"').skip(1).step_by(2)
}

/// Names of whole jobs, within which the calls have names of their own.
const JOBS: [&str; 2] = ["compaction", "flush"];

#[test]
fn every_place_that_syncs_renames_or_sets_a_length_is_in_a_score() {
    const CALLS: [&str; 5] =
        [".sync().map_err(", ".sync_dir(", ".rename(", ".set_len(", ".region.end_at("];
    let (mut named, mut checked, mut calls) = (BTreeSet::new(), BTreeSet::new(), 0);
    for source in sources() {
        let lines: Vec<&str> = source.code.lines().collect();
        let checks = lines.iter().filter(|line| line.contains("length_fits("));
        checked.extend(checks.flat_map(|line| quoted(line)).map(str::to_string));
        if source.module.first().is_some_and(|module| module == "fs") {
            // It is what stands between the engine and the disk.
            continue;
        }
        for (at, line) in lines.iter().enumerate() {
            if line.contains("site = ") || line.contains("fs::copy(") {
                named.extend(quoted(line).map(str::to_string));
            }
            if CALLS.iter().any(|call| line.contains(call)) {
                calls += 1;
                let before = &lines[at.saturating_sub(2)..at];
                let has_name = before.iter().any(|line| line.contains("site = "));
                assert!(has_name, "{}: a call without a name: {line}", source.path.display());
            }
        }
    }
    let scored: BTreeSet<String> = PLACES.iter().map(|place| place.1.to_string()).collect();
    named.retain(|name| !JOBS.contains(&name.as_str()));
    assert_eq!(named, scored);
    assert_eq!(checked, LENGTH_CHECKS.map(str::to_string).into());
    assert!(calls + 4 >= PLACES.len(), "only {calls} calls were found");
}
