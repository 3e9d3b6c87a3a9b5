//! Choosing what to compact: pure functions from the metadata of a version to a [`Plan`].
//!
//! The shape that is aimed at: the last level has nearly all data; each level above may have a
//! ratio less than the one below it, but never less than `base_level_bytes`; levels whose share
//! would be smaller stay empty. The *base* level is the first that is used; level 0 is compacted
//! into it. (As RocksDB's `level_compaction_dynamic_level_bytes`.)
//!
//! What is done first:
//! 1. level 0 into the base level once it has `level0_runs` runs, more where entries are large
//!    or there is much data ([`level0_patience`]), unless the base level holds twice its target and
//!    is worse off: every run costs each read, and a base level that has outgrown its target makes
//!    each compaction into it dearer;
//! 2. the level that exceeds its target by the largest factor, by the tables that overlap the
//!    level below least, garbage counted in their favour;
//! 3. with nothing else to do: levels that are no longer needed, tables that are mostly
//!    tombstones, and tables of the last level whose tombstones no snapshot needs any more.
//!
//! Invariants of a plan, which [`Plan::check`] verifies:
//! - *newer never sinks below older*: if a table is an input, so is every table that overlaps it
//!   and lies behind it in the order of runs, down to and including the output level;
//! - outputs fit: every table of the output level within the hull of the inputs is an input; or,
//!   where tables are only moved, none overlaps a moved one;
//! - no table is an input of two plans, and the hulls of two plans that write to one level are
//!   disjoint ([`Claims`]), because an output may span any gap between the inputs.
//!
//! Level 0 is compacted in slices of the key range: a table of its oldest run, with what newer
//! runs have there as long as it stays small. So several slices can run at once, none takes
//! long, and oldest goes first.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::ops::{Bound, Range};
use std::sync::Arc;

use crate::compaction::run::Cuts;
use crate::compaction::survive::{Below, KeyRange};
use crate::file::FileNumber;
use crate::key::SeqNo;
use crate::options::Limits;
use crate::table::cursor::Ahead;
use crate::table::{Buffers, Table, TableFacts};
use crate::version::cursor::RunCursor;
use crate::version::run::Run;
use crate::version::{HasFacts, LEVEL_COUNT, LEVEL_LAST, Version};

/// A compaction takes in no more tables than these where it has the choice: at 32 MiB a table and
/// 400 MB/s about one second.
const INPUT_TABLES_MAX: u64 = 16;
/// An output, or a table that is moved, overlaps at most so many tables' bytes of the level below.
const OVERLAP_TABLES_MAX: u64 = 10;
/// Tables that one edit moves.
const MOVED_TABLES_MAX: usize = 64;
/// Up to twice so many bytes an entry, runs of level 0 count as they are.
const USUAL_ENTRY_BYTES: u64 = 1 << 10;
/// Level 0 may have so much of the data below before it is compacted, and so many times the usual runs.
const LEVEL0_FRACTION: f64 = 0.2;
const PATIENCE_BY_DATA_MAX: f64 = 3.0;
/// Pieces that a flush is cut into for the sake of slices: smaller ones would cost more files than
/// they save.
const FLUSH_PIECES_MAX: u64 = 16;

/// Why something is compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Level 0 has too many runs.
    Level0,
    /// A level exceeds its target.
    Size,
    /// The data has shrunk so far that the level is not needed any more.
    Unneeded,
    /// Most entries of a table are tombstones, or the last level has some that nobody needs.
    Tombstones,
    /// The user asked for it.
    Manual,
    /// Nothing in them counts any more.
    Dead,
}

/// Tables of one run.
#[derive(Clone, Debug)]
pub(crate) struct Input<T = Table> {
    pub(crate) level: u8,
    /// Number of the run, for level 0.
    pub(crate) run: u64,
    pub(crate) tables: Vec<Arc<T>>,
}

/// What to compact, and where to.
#[derive(Debug)]
pub(crate) struct Plan<T = Table> {
    #[cfg_attr(not(test), expect(dead_code, reason = "for people, who see it in the golden text"))]
    pub(crate) reason: Reason,
    /// The first level that inputs are from.
    pub(crate) from_level: u8,
    /// The level of the outputs.
    pub(crate) to_level: u8,
    /// Newest entries first.
    pub(crate) inputs: Vec<Input<T>>,
    /// The inputs become part of `to_level` as they are; nothing is written but the edit.
    pub(crate) trivial_move: bool,
    /// The inputs are dropped; nothing is written but the edit.
    pub(crate) delete_only: bool,
    /// Which keys may have older versions than those of the inputs.
    pub(crate) below: Below,
    /// Where outputs should end.
    pub(crate) cuts: Cuts,
    /// From the smallest to the largest key of all inputs.
    pub(crate) hull: KeyRange,
}

/// The inputs and output ranges of the plans that are being carried out.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    inputs: HashSet<FileNumber>,
    outputs: Vec<Claim>,
    next: u64,
}

/// Names a claim for its release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClaimId(u64);

#[derive(Debug)]
struct Claim {
    id: ClaimId,
    to_level: u8,
    hull: KeyRange,
    inputs: Vec<FileNumber>,
}

impl Claims {
    /// Marks the inputs and the output range of a plan as taken until [`Claims::release`], which
    /// follows the installation of its outputs or its failure.
    pub(crate) fn claim<T: HasFacts>(&mut self, plan: &Plan<T>) -> ClaimId {
        let id = ClaimId(self.next);
        self.next += 1;
        let inputs: Vec<FileNumber> = plan.tables().map(|(_, t)| t.facts().number).collect();
        for number in &inputs {
            assert!(self.inputs.insert(*number), "table {} is compacted twice", number.0);
        }
        assert!(
            !self.writes(plan.to_level, &plan.hull.0, &plan.hull.1) || plan.trivial_move,
            "two compactions write one range of level {}",
            plan.to_level
        );
        self.outputs.push(Claim { id, to_level: plan.to_level, hull: plan.hull.clone(), inputs });
        id
    }

    /// Ends a claim.
    pub(crate) fn release(&mut self, id: ClaimId) {
        let at = self.outputs.iter().position(|claim| claim.id == id).expect("a claim ends once");
        for number in self.outputs.swap_remove(at).inputs {
            self.inputs.remove(&number);
        }
    }

    /// True if no plan is being carried out.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.outputs.is_empty()
    }

    pub(super) fn has<T: HasFacts>(&self, table: &T) -> bool {
        self.inputs.contains(&table.facts().number)
    }

    pub(super) fn writes(&self, level: u8, smallest: &[u8], largest: &[u8]) -> bool {
        self.outputs.iter().any(|claim| {
            claim.to_level == level && *claim.hull.0 <= *largest && *smallest <= *claim.hull.1
        })
    }
}

impl<T: HasFacts> Plan<T> {
    /// All inputs with their level, newest first.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (u8, &Arc<T>)> {
        self.inputs.iter().flat_map(|input| input.tables.iter().map(|t| (input.level, t)))
    }

    /// Bytes of all inputs.
    pub(crate) fn bytes(&self) -> u64 {
        self.tables().map(|(_, table)| table.facts().bytes).sum()
    }

    /// The part of the edit that removes the inputs.
    pub(crate) fn removed(&self) -> Vec<(u8, FileNumber)> {
        self.tables().map(|(level, table)| (level, table.facts().number)).collect()
    }

    /// Verifies the invariants of the module against the version that the plan was made from.
    pub(crate) fn check(&self, version: &Version<T>) -> Result<(), String> {
        let inputs: HashSet<FileNumber> = self.removed().iter().map(|(_, n)| *n).collect();
        let order: Vec<(u8, &Arc<Run<T>>)> = version.runs().collect();
        let mut found = 0;
        for (position, (_, run)) in order.iter().enumerate() {
            let mine = run.tables().iter().filter(|t| inputs.contains(&t.facts().number));
            for TableFacts { number, smallest, largest, .. } in mine.map(|table| table.facts()) {
                found += 1;
                let older = order[position + 1..].iter().filter(|(l, _)| *l <= self.to_level);
                for other in
                    older.flat_map(|(_, run)| &run.tables()[run.overlapping(smallest, largest)])
                {
                    let other = other.facts().number;
                    if self.trivial_move || !inputs.contains(&other) {
                        return Err(format!("{} would sink below {}", number.0, other.0));
                    }
                }
            }
        }
        if found != inputs.len() {
            return Err("an input is not of this version".into());
        }
        if self.to_level > 0 && !self.trivial_move {
            let run = version.level(self.to_level);
            let within = &run.tables()[run.overlapping(&self.hull.0, &self.hull.1)];
            if let Some(table) = within.iter().find(|t| !inputs.contains(&t.facts().number)) {
                return Err(format!("outputs may overlap {}", table.facts().number.0));
            }
        }
        Ok(())
    }
}

impl Plan<Table> {
    /// A cursor for each input run, for the merge.
    pub(crate) fn cursors(&self, limits: &Limits, buffers: &Arc<Buffers>) -> Vec<RunCursor> {
        let run = |input: &Input| Arc::new(Run::new(input.run, input.tables.clone()));
        let bytes = limits.read_ahead_bytes(self.inputs.len());
        let ahead = Ahead { bytes, buffers: buffers.clone() };
        self.inputs.iter().map(|input| RunCursor::compaction(run(input), ahead.clone())).collect()
    }
}

/// One level as the picker sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct LevelScore {
    /// Bytes of its tables that are not being compacted away.
    pub(crate) bytes: u64,
    /// Bytes it should have at most; for level 0, those of `level0_runs` full runs.
    pub(crate) target: u64,
    /// From 1 on it is to be compacted.
    pub(crate) score: f64,
}

/// How far each level is from its target.
#[derive(Clone, Debug)]
pub(crate) struct Scores {
    /// The level that level 0 is compacted into.
    pub(crate) base: u8,
    pub(crate) levels: [LevelScore; LEVEL_COUNT],
    /// Levels above this one are not needed for data of this size, nor of twice of it.
    needed: u8,
}

impl Scores {
    /// The scores of `version`, inputs of plans being carried out left out.
    pub(crate) fn of<T: HasFacts>(
        version: &Version<T>,
        limits: &Limits,
        claims: &Claims,
    ) -> Scores {
        let unclaimed = |run: &Run<T>| -> u64 {
            let free = run.tables().iter().filter(|table| !claims.has(&***table));
            free.map(|table| table.facts().bytes).sum()
        };
        let deeper = 1..=LEVEL_LAST;
        let most = deeper.clone().map(|level| version.level_bytes(level)).max().unwrap_or(0);
        let (ideal, needed) = (base_for(most, limits), base_for(most.saturating_mul(2), limits));
        let first = deeper.clone().find(|level| version.level_bytes(*level) > 0);
        let base = first.map_or(ideal, |first| first.min(ideal));

        let mut levels = [LevelScore::default(); LEVEL_COUNT];
        let mut target = most.max(limits.base_level_bytes);
        for level in deeper.rev() {
            let bytes = unclaimed(version.level(level));
            let score = if level == LEVEL_LAST { 0.0 } else { bytes as f64 / target.max(1) as f64 };
            levels[usize::from(level)] = LevelScore { bytes, target, score };
            target = (target / limits.level_ratio.max(2)).max(limits.base_level_bytes);
        }
        let bytes = version.level0().iter().map(|run| unclaimed(run)).sum::<u64>();
        // Runs that are not wholly being compacted away.
        let level0_runs = version.level0().iter().filter(|run| unclaimed(run) > 0).count();
        let patience = level0_patience(version, limits);
        let by_runs = level0_runs as f64 / limits.level0_runs.max(1) as f64 / patience;
        let by_bytes = bytes as f64 / limits.base_level_bytes.max(1) as f64 / patience;
        // A lone run of level 0 costs reads no more than it would in the base level.
        let score = if level0_runs > 1 { by_runs.max(by_bytes) } else { by_runs };
        levels[0] = LevelScore { bytes, target: limits.base_level_bytes, score };
        Scores { base, levels, needed }
    }

    /// Bytes that have to be rewritten until no level exceeds its target: what leaves a level adds
    /// to the next.
    pub(crate) fn debt_bytes(&self) -> u64 {
        let level0 = self.levels[0];
        let mut incoming = if level0.score >= 1.0 { level0.bytes } else { 0 };
        let mut debt = incoming;
        for level in &self.levels[usize::from(self.base)..usize::from(LEVEL_LAST)] {
            incoming = (level.bytes + incoming).saturating_sub(level.target);
            debt += incoming;
        }
        debt
    }

    /// The levels to compact, the most urgent first.
    fn urgent(&self) -> Vec<u8> {
        let score = |level: u8| self.levels[usize::from(level)].score;
        let mut urgent: Vec<u8> = (0..LEVEL_LAST).filter(|level| score(*level) >= 1.0).collect();
        let base = score(self.base);
        let level0_waits = base > 2.0 && base > score(0);
        let rank = |level: u8| if level == 0 && !level0_waits { f64::MAX } else { score(level) };
        urgent.sort_by(|a, b| rank(*b).total_cmp(&rank(*a)));
        urgent
    }
}

/// How many runs of level 0 count as one, at least 1. What a run costs, each read pays, and less of it the
/// fewer entries there are; what a compaction costs goes by the bytes. So the larger the entries, the more
/// runs are worth waiting for, to be merged all at once.
///
/// The more data there is, the dearer is a compaction into it, and the less space do runs that wait take
/// in proportion: a fifth of it may, while writes go on; at rest level 0 is compacted anyway. Of 20 million
/// records in 256 MiB 6.1 bytes were written for each byte then, 6.6 to 7.0 before.
pub(crate) fn level0_patience<T: HasFacts>(version: &Version<T>, limits: &Limits) -> f64 {
    let tables = || version.level0().iter().flat_map(|run| run.tables()).map(|t| t.facts());
    let bytes: u64 = tables().map(|facts| facts.bytes).sum();
    let entries: u64 = tables().map(|facts| facts.entries).sum();
    let by_entries = bytes / (entries * USUAL_ENTRY_BYTES).max(1);
    // Those that are partly compacted away are smaller.
    let run_bytes = version.level0().iter().map(|run| run.bytes()).max().unwrap_or(0);
    let below: u64 = (1..=LEVEL_LAST).map(|level| version.level_bytes(level)).sum();
    let full_bytes = run_bytes.max(1) as f64 * limits.level0_runs.max(1) as f64;
    let by_data = (below as f64 * LEVEL0_FRACTION / full_bytes).min(PATIENCE_BY_DATA_MAX);
    (by_entries as f64).max(by_data).clamp(1.0, limits.level0_patience_max.max(1) as f64)
}

/// The level that the smallest share of data of this size belongs to.
fn base_for(mut bytes: u64, limits: &Limits) -> u8 {
    let mut level = LEVEL_LAST;
    while level > 1 && bytes > limits.base_level_bytes {
        bytes /= limits.level_ratio.max(2);
        level -= 1;
    }
    level
}

/// Where a flush should cut its tables, so that level 0 can be compacted in slices: at the
/// boundaries of the base level, some tables together where it has many.
pub(crate) fn flush_cuts<T: HasFacts>(version: &Version<T>, limits: &Limits) -> Cuts {
    let base = Scores::of(version, limits, &Claims::default()).base;
    let run = version.level(base);
    // Doubled, not divided into equal parts, so that most boundaries stay when the level grows.
    let mut piece_bytes = (limits.table_bytes as u64).max(1);
    while run.bytes() / piece_bytes >= FLUSH_PIECES_MAX {
        piece_bytes *= 2;
    }
    let (mut keys, mut bytes) = (Vec::new(), 0);
    for facts in run.tables().iter().map(|table| table.facts()) {
        bytes += facts.bytes;
        // Tables come out a little smaller or larger than their limit.
        if bytes >= piece_bytes - piece_bytes / 8 {
            keys.push(facts.largest.clone());
            bytes = 0;
        }
    }
    Cuts::behind(keys)
}

/// The most urgent compaction, or `None` if there is none that the claims leave room for.
///
/// Tombstones up to `oldest_snapshot` are visible to no snapshot in between; `SeqNo::MAX` if there
/// are no snapshots.
pub(crate) fn pick<T: HasFacts>(
    version: &Version<T>,
    limits: &Limits,
    claims: &Claims,
    oldest_snapshot: SeqNo,
) -> Option<Plan<T>> {
    let picker = Picker::new(version, limits, claims);
    let plan = picker.urgent().or_else(|| picker.unneeded()).or_else(|| {
        picker.tombstones().or_else(|| picker.last_level_garbage(oldest_snapshot, 4, &|_| true))
    });
    checked(plan, version)
}

/// A step of compacting a range of keys by hand.
#[derive(Debug)]
pub(crate) enum RangeStep<T = Table> {
    /// Carry this out, then ask again.
    Plan(Plan<T>),
    /// Something is left to do, but compactions in progress are in the way.
    Wait,
    /// All entries of the range up to the given sequence number lie in the last level, and that
    /// has no tombstones that could go.
    Done,
}

/// The next step towards all entries of `range` with sequence numbers up to `upto` in the last
/// level. Goes level by level, so that no step is large.
pub(crate) fn plan_range<T: HasFacts>(
    version: &Version<T>,
    range: (Bound<&[u8]>, Bound<&[u8]>),
    upto: SeqNo,
    limits: &Limits,
    claims: &Claims,
    oldest_snapshot: SeqNo,
) -> RangeStep<T> {
    let picker = Picker::new(version, limits, claims);
    let within = |facts: &TableFacts| {
        let begins = match range.1 {
            Bound::Unbounded => true,
            Bound::Included(key) => *facts.smallest <= *key,
            Bound::Excluded(key) => *facts.smallest < *key,
        };
        let ends = match range.0 {
            Bound::Unbounded => true,
            Bound::Included(key) => *facts.largest >= *key,
            Bound::Excluded(key) => *facts.largest > *key,
        };
        begins && ends && facts.seqno_min <= upto
    };
    let wanting = version.tables().filter(|(_, table)| within(table.facts()));
    let wanting = wanting.map(|(level, _)| level).filter(|level| *level < LEVEL_LAST);
    let mut levels: Vec<u8> = wanting.collect();
    levels.dedup();
    for level in &levels {
        let plan = match level {
            0 => picker.level0(Reason::Manual, &within),
            _ => picker.level(*level, Reason::Manual, 0, &within),
        };
        if let Some(plan) = checked(plan, version) {
            return RangeStep::Plan(plan);
        }
    }
    if !levels.is_empty() {
        return RangeStep::Wait;
    }
    let last = |facts: &TableFacts| within(facts) && facts.seqno_max <= upto;
    match picker.last_level_garbage(oldest_snapshot, u64::MAX, &last) {
        Some(plan) => checked(Some(plan), version).map_or(RangeStep::Wait, RangeStep::Plan),
        None => {
            let garbage = |table: &Arc<T>| {
                last(table.facts()) && table.facts().tombstones > 0 && claims.has(&**table)
            };
            let claimed = version.level(LEVEL_LAST).tables().iter().any(garbage);
            if claimed { RangeStep::Wait } else { RangeStep::Done }
        }
    }
}

fn checked<T: HasFacts>(plan: Option<Plan<T>>, version: &Version<T>) -> Option<Plan<T>> {
    if cfg!(debug_assertions)
        && let Some(plan) = &plan
    {
        let sound = plan.check(version);
        assert!(sound.is_ok(), "{sound:?}: {:?} of\n{version:?}", plan.removed());
    }
    plan
}

/// What a table must be for a compaction to start from it.
type Eligible<'a> = &'a dyn Fn(&TableFacts) -> bool;

struct Picker<'a, T> {
    version: &'a Version<T>,
    limits: &'a Limits,
    claims: &'a Claims,
    scores: Scores,
    /// All runs, newest entries first.
    order: Vec<(u8, &'a Arc<Run<T>>)>,
}

/// Tables that together may be compacted: positions in the order of runs, and their tables.
struct Set<'a> {
    parts: Vec<(usize, Range<usize>)>,
    smallest: &'a [u8],
    largest: &'a [u8],
    /// Bytes of the tables above the output level, and of those in it.
    upper_bytes: u64,
    lower_bytes: u64,
}

impl Set<'_> {
    fn bytes(&self) -> u64 {
        self.upper_bytes + self.lower_bytes
    }

    /// Bytes of the output level that have to be rewritten for each byte that moves down.
    fn cost(&self) -> f64 {
        self.lower_bytes as f64 / self.upper_bytes.max(1) as f64
    }
}

impl<'a, T: HasFacts> Picker<'a, T> {
    fn new(version: &'a Version<T>, limits: &'a Limits, claims: &'a Claims) -> Picker<'a, T> {
        let scores = Scores::of(version, limits, claims);
        Picker { version, limits, claims, scores, order: version.runs().collect() }
    }

    fn table_bytes(&self) -> u64 {
        self.limits.table_bytes as u64
    }

    fn urgent(&self) -> Option<Plan<T>> {
        self.scores.urgent().into_iter().find_map(|level| {
            if level == 0 {
                return self.level0(Reason::Level0, &|_| true);
            }
            let LevelScore { bytes, target, .. } = self.scores.levels[usize::from(level)];
            self.level(level, Reason::Size, bytes - target, &|_| true)
        })
    }

    fn unneeded(&self) -> Option<Plan<T>> {
        (1..self.scores.needed)
            .filter(|level| self.scores.levels[usize::from(*level)].bytes > 0)
            .find_map(|level| self.level(level, Reason::Unneeded, u64::MAX, &|_| true))
    }

    /// Tables that are mostly tombstones go down early: what they hide costs space and scans.
    fn tombstones(&self) -> Option<Plan<T>> {
        let dense = |facts: &TableFacts| facts.tombstones * 2 > facts.entries;
        (1..LEVEL_LAST).find_map(|level| self.level(level, Reason::Tombstones, 0, &dense))
    }

    /// A table of the last level of which one entry in `at_most_one_in` or more is a tombstone that
    /// vanishes when the table is rewritten. As nothing lies below it, all its tombstones do once
    /// the oldest snapshot has passed it; so this comes to an end.
    fn last_level_garbage(
        &self,
        oldest_snapshot: SeqNo,
        at_most_one_in: u64,
        eligible: Eligible<'_>,
    ) -> Option<Plan<T>> {
        let position = self.order.iter().position(|(level, _)| *level == LEVEL_LAST)?;
        let run = self.order[position].1;
        let seed = run.tables().iter().find(|table| {
            let facts = table.facts();
            facts.tombstones > 0
                && facts.tombstones.saturating_mul(at_most_one_in) >= facts.entries
                && facts.seqno_max <= oldest_snapshot
                && eligible(facts)
                && !self.claims.has(&***table)
        })?;
        let set = self.close(position, seed.facts(), LEVEL_LAST)?;
        Some(self.plan(Reason::Tombstones, LEVEL_LAST, set.parts, false))
    }

    /// The smallest set that has the tables of the run at `position` within these ranges' hull, and
    /// satisfies the invariants; `None` if something of it is claimed.
    ///
    /// Takes what overlaps the hull so far, run by run towards older entries. That is a little more
    /// than it must, as a table may lie in a gap of the hull, but outputs could span that gap.
    fn close_hull(
        &self,
        position: usize,
        smallest: &'a [u8],
        largest: &'a [u8],
        to_level: u8,
    ) -> Option<Set<'a>> {
        let (upper_bytes, lower_bytes) = (0, 0);
        let mut set = Set { parts: Vec::new(), smallest, largest, upper_bytes, lower_bytes };
        let runs = self.order.iter().enumerate().skip(position);
        for (at, (level, run)) in runs.take_while(|(_, (level, _))| *level <= to_level) {
            let range = run.overlapping(set.smallest, set.largest);
            let tables = &run.tables()[range.clone()];
            let (Some(first), Some(last)) = (tables.first(), tables.last()) else { continue };
            if tables.iter().any(|table| self.claims.has(&**table)) {
                return None;
            }
            set.smallest = set.smallest.min(&first.facts().smallest);
            set.largest = set.largest.max(&last.facts().largest);
            let bytes: u64 = tables.iter().map(|table| table.facts().bytes).sum();
            if *level < to_level {
                set.upper_bytes += bytes;
            } else {
                set.lower_bytes += bytes;
            }
            set.parts.push((at, range));
        }
        (!self.claims.writes(to_level, set.smallest, set.largest)).then_some(set)
    }

    fn close(&self, position: usize, seed: &'a TableFacts, to_level: u8) -> Option<Set<'a>> {
        self.close_hull(position, &seed.smallest, &seed.largest, to_level)
    }

    /// Level 0 into the base level: moves what overlaps nothing, or else merges a slice.
    fn level0(&self, reason: Reason, eligible: Eligible<'_>) -> Option<Plan<T>> {
        let count = self.version.level0().len();
        let to_level = self.scores.base;
        // Small tables are merged rather than moved, or the last level would fill with them.
        let worth = |facts: &TableFacts| facts.bytes >= self.table_bytes() / 8 && eligible(facts);
        let movable = (0..count).rev().flat_map(|at| self.movable(at, to_level, &worth));
        let moved: Vec<_> = movable.take(MOVED_TABLES_MAX).collect();
        if !moved.is_empty() {
            return Some(self.plan(reason, to_level, moved, true));
        }
        // The oldest run that has a slice to offer, and of its slices the cheapest.
        (0..count).rev().find_map(|at| {
            let seeds = self.order[at].1.tables().iter().map(|table| table.facts());
            let slices = seeds.filter(|facts| eligible(facts)).filter_map(|f| self.slice(at, f));
            let cheapest = slices.min_by(|a, b| a.1.cost().total_cmp(&b.1.cost()))?;
            let (from, set) = self.widen(cheapest, to_level);
            debug_assert!(from <= at, "a slice has its seed");
            Some(self.plan(reason, to_level, set.parts, false))
        })
    }

    /// The slice of level 0 around a table of the run at `position`: begins at the newest run with
    /// which it stays small, or at this run. Says also with which run it begins.
    fn slice(&self, position: usize, seed: &'a TableFacts) -> Option<(usize, Set<'a>)> {
        let to_level = self.scores.base;
        let small = self.table_bytes() * INPUT_TABLES_MAX;
        let sets = (0..=position).map(|from| (from, self.close(from, seed, to_level)));
        let sets = sets.filter_map(|(from, set)| Some((from, set?)));
        sets.into_iter().find(|(from, set)| *from == position || set.bytes() <= small)
    }

    /// Takes in the tables of level 0 to the right of a slice while that makes it no dearer: where
    /// flushes are small, many of their tables become one.
    fn widen(&self, slice: (usize, Set<'a>), to_level: u8) -> (usize, Set<'a>) {
        let (from, mut set) = slice;
        loop {
            let runs = self.order[from..].iter().take_while(|(level, _)| *level == 0);
            let beside = runs.filter_map(|(_, run)| {
                let at = run.tables().partition_point(|t| *t.facts().smallest <= *set.largest);
                run.tables().get(at).map(|table| &*table.facts().largest)
            });
            let Some(largest) = beside.min() else { return (from, set) };
            match self.close_hull(from, set.smallest, largest, to_level) {
                Some(wider)
                    if wider.bytes() <= self.table_bytes() * INPUT_TABLES_MAX / 4
                        && wider.cost() <= set.cost() =>
                {
                    set = wider;
                }
                _ => return (from, set),
            }
        }
    }

    /// The tables of the run at `position` that can be moved to `to_level` as they are.
    fn movable(
        &self,
        position: usize,
        to_level: u8,
        eligible: Eligible<'_>,
    ) -> Vec<(usize, Range<usize>)> {
        let tables = self.order[position].1.tables().iter().enumerate();
        let movable = tables.filter(|(_, table)| {
            let facts = table.facts();
            eligible(facts)
                && self
                    .close(position, facts, to_level)
                    .is_some_and(|set| set.parts.len() == 1 && set.parts[0].1.len() == 1)
                && self.overlap_bytes(to_level + 1, &facts.smallest, &facts.largest)
                    <= self.table_bytes() * OVERLAP_TABLES_MAX
                && !self.sheds_tombstones(facts, to_level)
        });
        movable.map(|(index, _)| (position, index..index + 1)).collect()
    }

    /// True if rewriting a table instead of moving it would drop many tombstones.
    fn sheds_tombstones(&self, facts: &TableFacts, to_level: u8) -> bool {
        let deeper = to_level + 1..=LEVEL_LAST;
        facts.tombstones * 4 >= facts.entries
            && facts.tombstones > 0
            && deeper.map(|l| self.overlap_bytes(l, &facts.smallest, &facts.largest)).sum::<u64>()
                == 0
    }

    fn overlap_bytes(&self, level: u8, smallest: &[u8], largest: &[u8]) -> u64 {
        if level > LEVEL_LAST {
            return 0;
        }
        let run = self.version.level(level);
        let tables = &run.tables()[run.overlapping(smallest, largest)];
        tables.iter().map(|table| table.facts().bytes).sum()
    }

    /// A level into the next: moves tables that overlap nothing, up to `excess` bytes of them, or
    /// else merges the one that is cheapest with what it overlaps.
    fn level(
        &self,
        level: u8,
        reason: Reason,
        excess: u64,
        eligible: Eligible<'_>,
    ) -> Option<Plan<T>> {
        let position = self.order.iter().position(|(l, _)| *l == level)?;
        let to_level = level + 1;
        let run = self.order[position].1;
        let mut moved_bytes = 0;
        let moved = self.movable(position, to_level, eligible).into_iter();
        let moved = moved.take(MOVED_TABLES_MAX).take_while(|(_, range)| {
            let enough = moved_bytes > excess;
            moved_bytes += run.tables()[range.start].facts().bytes;
            !enough
        });
        let moved: Vec<_> = moved.collect();
        if !moved.is_empty() {
            return Some(self.plan(reason, to_level, moved, true));
        }
        let seeds = run.tables().iter().map(|table| table.facts()).filter(|f| eligible(f));
        let priced = seeds.filter_map(|facts| {
            let set = self.close(position, facts, to_level)?;
            let garbage = (facts.tombstones + facts.operands) as f64 / facts.entries.max(1) as f64;
            Some((set.cost() / (1.0 + garbage), set))
        });
        let cheapest = priced.min_by(|a, b| a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal));
        let set = self.fill(position, cheapest?.1, to_level);
        Some(self.plan(reason, to_level, set.parts, false))
    }

    /// Adds the tables of the run at `position` that lie within the hull: they ride along without
    /// another table of the output level being rewritten.
    fn fill(&self, position: usize, set: Set<'a>, to_level: u8) -> Set<'a> {
        let run = self.order[position].1;
        let within = run.overlapping(set.smallest, set.largest);
        let tables = &run.tables()[within.clone()];
        let inside = |table: &&Arc<T>| {
            *table.facts().smallest >= *set.smallest && *table.facts().largest <= *set.largest
        };
        let (Some(first), Some(last)) =
            (tables.iter().find(inside), tables.iter().rev().find(inside))
        else {
            return set;
        };
        let (smallest, largest) = (&*first.facts().smallest, &*last.facts().largest);
        match self.close_hull(position, smallest, largest, to_level) {
            Some(filled)
                if filled.bytes() <= self.table_bytes() * INPUT_TABLES_MAX
                    && filled.lower_bytes <= set.lower_bytes =>
            {
                filled
            }
            _ => set,
        }
    }

    fn plan(
        &self,
        reason: Reason,
        to_level: u8,
        mut parts: Vec<(usize, Range<usize>)>,
        trivial_move: bool,
    ) -> Plan<T> {
        parts.sort_by_key(|(position, range)| (*position, range.start));
        let mut inputs: Vec<Input<T>> = Vec::new();
        for (position, range) in parts {
            let (level, run) = self.order[position];
            let tables = run.tables()[range].iter().cloned();
            match inputs.last_mut() {
                Some(input) if (input.level, input.run) == (level, run.number()) => {
                    input.tables.extend(tables);
                }
                _ => inputs.push(Input { level, run: run.number(), tables: tables.collect() }),
            }
        }
        let all = || inputs.iter().flat_map(|input| &input.tables).map(|table| table.facts());
        let smallest = all().map(|facts| &facts.smallest).min().expect("a plan has inputs");
        let largest = all().map(|facts| &facts.largest).max().expect("a plan has inputs");
        let hull = (smallest.clone(), largest.clone());
        let below = (to_level + 1..=LEVEL_LAST).map(|level| self.ranges(level, &hull));
        Plan {
            reason,
            from_level: inputs[0].level,
            to_level,
            trivial_move,
            delete_only: false,
            below: Below::runs(below.collect()),
            cuts: self.cuts(to_level + 1, &hull),
            hull,
            inputs,
        }
    }

    fn ranges(&self, level: u8, hull: &KeyRange) -> Vec<KeyRange> {
        let run = self.version.level(level);
        let tables = run.tables()[run.overlapping(&hull.0, &hull.1)].iter();
        tables.map(|t| (t.facts().smallest.clone(), t.facts().largest.clone())).collect()
    }

    fn cuts(&self, level: u8, hull: &KeyRange) -> Cuts {
        if level > LEVEL_LAST {
            return Cuts::default();
        }
        let run = self.version.level(level);
        let tables = run.tables()[run.overlapping(&hull.0, &hull.1)].iter();
        let fences = tables.map(|t| (t.facts().largest.clone(), t.facts().bytes)).collect();
        Cuts::new(fences, self.table_bytes() * OVERLAP_TABLES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;
    use crate::version::fixture::facts;

    /// Tables of 100 bytes, level 0 of two runs, a base level of 400, a ratio of 4.
    fn limits() -> Limits {
        Limits {
            table_bytes: 100,
            level0_runs: 2,
            base_level_bytes: 400,
            level_ratio: 4,
            ..Options::tiny().limits()
        }
    }

    /// Reads `12[a-f]:300!6@7`: table 12 from a to f, of 300 bytes (100 by default), with 6
    /// tombstones among its 10 entries, all of sequence number 7 (by default that of its place).
    fn table(word: &str, seqno: u64) -> TableFacts {
        let (number, rest) = word.split_once('[').expect("a number before [");
        let (range, rest) = rest.split_once(']').expect("a range before ]");
        let (rest, seqno) = match rest.split_once('@') {
            Some((rest, seqno)) => (rest, seqno.parse().unwrap()),
            None => (rest, seqno),
        };
        let (bytes, tombstones) = rest.split_once('!').unwrap_or((rest, "0"));
        let mut facts = facts(number.parse().unwrap(), range, seqno..=seqno);
        facts.bytes = bytes.strip_prefix(':').map_or(100, |bytes| bytes.parse().unwrap());
        facts.tombstones = tombstones.parse().unwrap();
        facts
    }

    /// Adds the tables of a line `L0.3: 1[a-f] 2[g-k]` or `L5: 3[a-z]`.
    fn add_run(version: &Version<TableFacts>, place: &str, tables: &str) -> Version<TableFacts> {
        let (level, run) = place[1..].split_once('.').unwrap_or((&place[1..], "0"));
        let (level, run): (u8, u64) = (level.parse().unwrap(), run.parse().unwrap());
        let seqno = if level == 0 { 10 + run } else { 9 - u64::from(level) };
        let tables = tables.split_whitespace().map(|w| (level, run, Arc::new(table(w, seqno))));
        version.apply(tables.collect(), &[]).unwrap()
    }

    /// `L0 to L6 (Level0): L0.2 3 4, L6 5 6`.
    fn show(plan: &Plan<TableFacts>) -> String {
        let inputs = plan.inputs.iter().map(|input| {
            let place = match input.level {
                0 => format!("L0.{}", input.run),
                level => format!("L{level}"),
            };
            let numbers = input.tables.iter().map(|t| t.number.0.to_string());
            format!("{place} {}", numbers.collect::<Vec<_>>().join(" "))
        });
        let inputs = inputs.collect::<Vec<_>>().join(", ");
        let Plan { reason, from_level, to_level, trivial_move, .. } = plan;
        let verb = if *trivial_move { "move" } else { "merge" };
        let bottom = if plan.below.is_nothing() { ", nothing below" } else { "" };
        format!("{verb} L{from_level} to L{to_level} ({reason:?}): {inputs}{bottom}")
    }

    /// Runs a script: lines of tables, then verbs, each of which answers with a line.
    fn run(script: &str) -> String {
        let (mut version, mut claims, mut out) = (Version::empty(), Claims::default(), Vec::new());
        let limits = limits();
        for line in script.lines() {
            let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
            if let Some(place) = verb.strip_suffix(':') {
                version = add_run(&version, place, rest);
                continue;
            }
            match verb {
                "pick" => {
                    let oldest = rest.parse().map_or(SeqNo::MAX, SeqNo);
                    let plan = pick(&version, &limits, &claims, oldest);
                    if let Some(plan) = &plan {
                        claims.claim(plan);
                    }
                    out.push(plan.as_ref().map_or("nothing".into(), show));
                }
                "range" => {
                    let mut words = rest.split_whitespace();
                    let mut word = || words.next().expect("range from to upto");
                    let (from, to, upto) = (word(), word(), word().parse().unwrap());
                    let bounds = (Bound::Included(from.as_bytes()), Bound::Excluded(to.as_bytes()));
                    let step =
                        plan_range(&version, bounds, SeqNo(upto), &limits, &claims, SeqNo::MAX);
                    if let RangeStep::Plan(plan) = &step {
                        claims.claim(plan);
                    }
                    out.push(match step {
                        RangeStep::Plan(plan) => show(&plan),
                        other => format!("{other:?}"),
                    });
                }
                "scores" => {
                    let scores = Scores::of(&version, &limits, &claims);
                    let levels = scores.levels.iter().enumerate().filter(|(_, l)| l.bytes > 0);
                    let levels = levels.map(|(level, score)| {
                        let LevelScore { bytes, target, score } = score;
                        format!("L{level} {bytes}/{target} {score:.2}")
                    });
                    let levels = levels.collect::<Vec<_>>().join(", ");
                    let debt = scores.debt_bytes();
                    out.push(format!("base L{}, debt {debt}: {levels}", scores.base));
                }
                _ => panic!("{verb} is no verb"),
            }
        }
        out.join("\n")
    }

    /// The cases of picker.golden; `GOLDEN=write` writes the answers anew.
    #[test]
    fn golden_plans() {
        let golden = include_str!("picker.golden");
        let mut now = String::new();
        for case in golden.split_terminator("\n\n") {
            let (script, _) = case.split_once("\n---").expect("a case has a line ---");
            let title = script.lines().take_while(|line| line.starts_with('#')).count();
            let lines: Vec<&str> = script.lines().skip(title).collect();
            now += &format!("{script}\n---\n{}\n\n", run(&lines.join("\n")));
        }
        if std::env::var_os("GOLDEN").is_some_and(|how| how == "write") {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/compaction/picker.golden");
            std::fs::write(path, now).unwrap();
        } else {
            assert_eq!(now.trim_end(), golden.trim_end());
        }
    }

    #[test]
    fn flushes_are_cut_where_the_base_level_is() {
        let tables = "1[a-b] 2[c-d]:50 3[e-f]:50 4[g-h]";
        let version = add_run(&Version::empty(), "L6:".trim_end_matches(':'), tables);
        let cuts = format!("{:?}", flush_cuts(&version, &limits()));
        let expected = Cuts::behind(vec![b"b"[..].into(), b"f"[..].into(), b"h"[..].into()]);
        assert_eq!(cuts, format!("{expected:?}"));
        let huge = Limits { table_bytes: 10, ..limits() };
        let cuts = format!("{:?}", flush_cuts(&version, &huge));
        let expected = Cuts::behind([b"b", b"d", b"f", b"h"].map(|k| k[..].into()).to_vec());
        assert_eq!(cuts, format!("{expected:?}"));
    }

    #[test]
    fn runs_of_large_entries_are_waited_for() {
        // Of ten entries each, of 10 bytes, just below 2 KiB, 2 KiB, 3 and 10.
        for (bytes, patience) in [(100, 1), (20_479, 1), (20_480, 2), (30_720, 3), (102_400, 4)] {
            let limits = Limits { level0_patience_max: 4, base_level_bytes: 1 << 20, ..limits() };
            let mut version = Version::empty();
            for run in 1..=7 {
                let tables = format!("{run}[a-z]:{bytes}");
                version = add_run(&version, &format!("L0.{run}"), &tables);
                assert_eq!(level0_patience(&version, &limits), f64::from(patience));
                let picked = pick(&version, &limits, &Claims::default(), SeqNo::MAX).is_some();
                let wanted = run >= patience as usize * limits.level0_runs;
                assert_eq!(picked, wanted, "{run} runs of {bytes} bytes");
            }
        }
    }

    #[test]
    fn with_much_data_below_more_runs_are_waited_for() {
        // Of two usual runs of 100 bytes each: a fifth of the data is as much, or more.
        for (bytes, wanted) in [(1, 2), (1_000, 2), (1_499, 3), (1_500, 3), (2_000, 4), (90_000, 6)]
        {
            let limits = Limits { level0_patience_max: 4, base_level_bytes: 1 << 20, ..limits() };
            let mut version = add_run(&Version::empty(), "L6", &format!("1[a-z]:{bytes}"));
            for run in 1..=6 {
                version = add_run(&version, &format!("L0.{run}"), &format!("{}[a-z]:100", run + 1));
                let picked = pick(&version, &limits, &Claims::default(), SeqNo::MAX).is_some();
                assert_eq!(picked, run >= wanted, "{run} runs over {bytes} bytes");
            }
            // One that is partly compacted away does not count for less.
            version = add_run(&version, "L0.7", "9[c-d]:1");
            let one_more = (bytes as f64 / 500.0 / limits.level0_runs as f64).clamp(1.0, 3.0);
            assert!((level0_patience(&version, &limits) - one_more).abs() < 1e-9, "{bytes}");
        }
    }

    #[test]
    fn an_unsound_plan_is_found_out() {
        let version = add_run(&Version::empty(), "L6", "1[a-c] 2[e-g] 3[i-k]");
        let version = add_run(&version, "L0.1", "4[a-f]");
        let version = add_run(&version, "L0.2", "5[b-d] 6[f-g] 7[x-z]");
        let claims = Claims::default();
        let limits = limits();
        let picker = Picker::new(&version, &limits, &claims);
        let check = |parts: Vec<(usize, Range<usize>)>, trivial| {
            picker.plan(Reason::Size, 6, parts, trivial).check(&version)
        };
        let fails = |parts, trivial, why: &str| {
            let error = check(parts, trivial).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        fails(vec![(0, 0..1)], false, "sink below 4");
        fails(vec![(0, 0..1), (1, 0..1)], false, "sink below 1");
        fails(vec![(1, 0..1), (2, 0..1)], false, "sink below 2");
        fails(vec![(0, 2..3), (1, 0..1), (2, 0..2)], false, "outputs may overlap 3");
        fails(vec![(1, 0..1)], true, "sink below 1");
        check(vec![(1, 0..1), (2, 0..2)], false).unwrap();
        check(vec![(0, 2..3)], true).unwrap();
    }
}
