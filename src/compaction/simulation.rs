//! Flushes and compactions by the thousand, without files: tables are lists of entries, but the
//! picker, the version, the survival rules and the cuts are the real ones. Several compactions
//! run at once and end in any order.
//!
//! After every edit the order of entries holds everywhere and the newest version of each key is
//! what was written last; in the end every level is within its target. The write amplification
//! of each workload is printed (`--nocapture`) and bounded.

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::compaction::picker::{
    ClaimId, Claims, Plan, RangeStep, Scores, flush_cuts, pick, plan_range,
};
use crate::compaction::run::Cuts;
use crate::compaction::survive::{Below, Survivor, Survivors};
use crate::cursor::merge::MergeCursor;
use crate::file::FileNumber;
use crate::key::{EntryKind, SeqNo};
use crate::options::{Limits, Options};
use crate::table::TableFacts;
use crate::version::fixture::{Entries, Entry, facts};
use crate::version::{Added, HasFacts, LEVEL_LAST, Version};

/// Bytes of an entry, whatever it is.
const ENTRY_BYTES: u64 = 100;
/// Compactions that run at once.
const THREADS: usize = 3;

struct Table {
    facts: TableFacts,
    entries: Vec<Entry>,
}

impl HasFacts for Table {
    fn facts(&self) -> &TableFacts {
        &self.facts
    }
}

struct Running {
    plan: Plan<Table>,
    claim: ClaimId,
    outputs: Vec<Arc<Table>>,
}

struct Simulation {
    rng: fastrand::Rng,
    limits: Limits,
    version: Version<Table>,
    claims: Claims,
    running: Vec<Running>,
    /// The newest operation of each key.
    model: HashMap<Vec<u8>, (SeqNo, EntryKind)>,
    seqno: u64,
    next: u64,
    flushed: u64,
    written: u64,
    level0_most: usize,
    seed: u64,
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let limits = Limits {
            table_bytes: 50 * ENTRY_BYTES as usize,
            level0_runs: 4,
            base_level_bytes: 800 * ENTRY_BYTES,
            level_ratio: 10,
            ..Options::tiny().limits()
        };
        Simulation {
            rng: fastrand::Rng::with_seed(seed),
            limits,
            version: Version::empty(),
            claims: Claims::default(),
            running: Vec::new(),
            model: HashMap::new(),
            seqno: 0,
            next: 0,
            flushed: 0,
            written: 0,
            level0_most: 0,
            seed,
        }
    }

    /// Writes what survives of `inputs` into tables, as the write loop cuts them.
    fn write(&mut self, inputs: Vec<Vec<Entry>>, below: Below, mut cuts: Cuts) -> Vec<Arc<Table>> {
        let source = MergeCursor::new(inputs.into_iter().map(Entries::new));
        let mut survivors = Survivors::new(source, Vec::new(), below, None).unwrap();
        let mut tables: Vec<Vec<Entry>> = Vec::new();
        let full = self.limits.table_bytes;
        while let Some(Survivor { key, seqno, kind, first, .. }) = survivors.next().unwrap() {
            let bytes = tables.last().map_or(0, |table| table.len() * ENTRY_BYTES as usize);
            assert!(first, "without snapshots one version of a key survives");
            if cuts.cut(key, bytes >= full / 2) || bytes >= full || tables.is_empty() {
                cuts.begin();
                tables.push(Vec::new());
            }
            let entry = Entry { key: key.into(), seqno, kind, value: Vec::new() };
            tables.last_mut().unwrap().push(entry);
        }
        tables.into_iter().map(|entries| self.table(entries)).collect()
    }

    fn table(&mut self, entries: Vec<Entry>) -> Arc<Table> {
        self.next += 1;
        let seqnos = || entries.iter().map(|entry| entry.seqno.0);
        let mut facts = facts(self.next, "a-b", seqnos().min().unwrap()..=seqnos().max().unwrap());
        facts.smallest = entries[0].key.clone().into();
        facts.largest = entries[entries.len() - 1].key.clone().into();
        facts.entries = entries.len() as u64;
        facts.bytes = facts.entries * ENTRY_BYTES;
        let tombstones = entries.iter().filter(|entry| entry.kind == EntryKind::Delete);
        facts.tombstones = tombstones.count() as u64;
        self.written += facts.bytes;
        Arc::new(Table { facts, entries })
    }

    fn flush(&mut self, operations: Vec<(u64, EntryKind)>) {
        self.flushed += operations.len() as u64 * ENTRY_BYTES;
        let mut entries = Vec::new();
        for (key, kind) in operations {
            self.seqno += 1;
            let (key, seqno) = (format!("{key:09}").into_bytes(), SeqNo(self.seqno));
            self.model.insert(key.clone(), (seqno, kind));
            entries.push(Entry { key, seqno, kind, value: Vec::new() });
        }
        let cuts = flush_cuts(&self.version, &self.limits);
        let run = self.seqno;
        let tables = self.write(vec![entries], Below::anything(), cuts);
        self.edit(tables.into_iter().map(|table| (0, run, table)).collect(), &[]);
        self.level0_most = self.level0_most.max(self.version.level0().len());
    }

    fn edit(&mut self, added: Vec<Added<Table>>, removed: &[(u8, FileNumber)]) {
        // Checks itself, in tests.
        self.version = self.version.apply(added, removed).unwrap();
    }

    /// Starts a plan: its outputs are made at once, and installed when it ends.
    fn start(&mut self, plan: Plan<Table>) {
        plan.check(&self.version).unwrap();
        let claim = self.claims.claim(&plan);
        let outputs = if plan.trivial_move {
            plan.tables().map(|(_, table)| Arc::clone(table)).collect()
        } else {
            let tables = plan.tables();
            let inputs = tables.map(|(_, table)| table.entries.clone()).collect();
            self.write(inputs, plan.below.clone(), plan.cuts.clone())
        };
        self.running.push(Running { plan, claim, outputs });
    }

    fn fill_threads(&mut self) {
        while self.running.len() < THREADS {
            let plan = pick(&self.version, &self.limits, &self.claims, SeqNo::MAX);
            let Some(plan) = plan else { return };
            self.start(plan);
        }
    }

    fn end_one(&mut self) {
        let which = self.rng.usize(..self.running.len());
        let Running { plan, claim, outputs } = self.running.swap_remove(which);
        let added = outputs.into_iter().map(|table| (plan.to_level, 0, table)).collect();
        self.edit(added, &plan.removed());
        self.claims.release(claim);
    }

    /// Lets the compactions keep up with the flushes, by stopping those as backpressure would.
    fn work(&mut self) {
        self.fill_threads();
        while !self.running.is_empty() && (self.version.level0().len() > 8 || self.rng.bool()) {
            self.end_one();
            self.fill_threads();
        }
    }

    fn drain(&mut self) {
        self.fill_threads();
        while !self.running.is_empty() {
            self.end_one();
            self.fill_threads();
        }
        assert!(self.claims.is_empty());
        let scores = Scores::of(&self.version, &self.limits, &self.claims);
        assert!(scores.levels.iter().all(|level| level.score < 1.0), "{scores:?}");
        assert_eq!(scores.debt_bytes(), 0);
        self.check();
    }

    /// Newer entries lie before older ones, and the newest are those of the model.
    fn check(&self) {
        let mut last: HashMap<&[u8], SeqNo> = HashMap::new();
        let mut newest: HashMap<&[u8], (SeqNo, EntryKind)> = HashMap::new();
        for entry in self.version.tables().flat_map(|(_, table)| &table.entries) {
            newest.entry(&entry.key).or_insert((entry.seqno, entry.kind));
            if let Some(newer) = last.insert(&entry.key, entry.seqno) {
                let name = entry.key.escape_ascii();
                assert!(newer > entry.seqno, "seed {}: {name} is out of order", self.seed);
            }
        }
        for (key, written) in &self.model {
            let gone = written.1 == EntryKind::Delete && !newest.contains_key(&key[..]);
            let name = key.escape_ascii();
            assert!(gone || newest[&key[..]] == *written, "seed {}: {name} is lost", self.seed);
        }
    }

    fn amplification(&self) -> f64 {
        self.written as f64 / self.flushed as f64
    }

    /// Flushes so often, draws the operations of each flush with `draw`, and drains.
    fn run(
        &mut self,
        flushes: u64,
        mut draw: impl FnMut(&mut fastrand::Rng, u64) -> Vec<(u64, EntryKind)>,
    ) {
        for flush in 0..flushes {
            let operations = draw(&mut self.rng, flush);
            self.flush(operations);
            self.work();
            if flush % 50 == 0 {
                self.check();
            }
        }
        self.drain();
    }

    fn report(&self, name: &str) {
        let levels = (0..=LEVEL_LAST).map(|level| self.version.level_bytes(level) / ENTRY_BYTES);
        let (tables, levels) = (self.version.tables().count(), levels.collect::<Vec<_>>());
        let amplification = self.amplification();
        let most = self.level0_most;
        println!(
            "{name}: write amplification {amplification:.2}, entries {levels:?} in {tables} \
             tables, at most {most} runs in level 0"
        );
    }
}

fn puts(keys: impl Iterator<Item = u64>) -> Vec<(u64, EntryKind)> {
    keys.map(|key| (key, EntryKind::Put)).collect()
}

#[test]
fn sequential_fills_are_written_once() {
    let mut simulation = Simulation::new(1);
    simulation.run(400, |_, flush| puts(flush * 200..(flush + 1) * 200));
    simulation.report("sequential");
    assert!(simulation.amplification() < 1.01);
    assert!(simulation.version.level0().len() < 4);
}

#[test]
fn backwards_too() {
    let mut simulation = Simulation::new(2);
    simulation.run(200, |_, flush| puts((200 - flush) * 200..(201 - flush) * 200));
    simulation.report("backwards");
    assert!(simulation.amplification() < 1.2);
}

#[test]
fn uniform_writes_stay_within_the_amplification_of_the_shape() {
    let mut simulation = Simulation::new(0);
    simulation.run(500, |rng, _| puts((0..200).map(|_| rng.u64(..80_000))));
    simulation.report("uniform");
    // Each of the three levels below 0 could cost the ratio; partial overlap and neighbours that
    // ride along leave less than a third of that.
    assert!(simulation.amplification() < 10.0);
    assert!(simulation.level0_most <= 9);
}

#[test]
fn small_sequential_flushes_make_no_small_tables() {
    let mut simulation = Simulation::new(3);
    simulation.run(800, |_, flush| puts(flush * 5..(flush + 1) * 5));
    simulation.report("small sequential");
    assert!(simulation.amplification() < 4.0);
    assert!(simulation.version.tables().count() < 800 / 2);
}

#[test]
fn skewed_writes() {
    let mut simulation = Simulation::new(4);
    simulation.run(300, |rng, _| {
        // A tenth of the keys gets most writes, in a place that moves.
        let hot = rng.u64(..10) * 5000;
        puts(
            (0..200)
                .map(|_| if rng.u32(..10) > 0 { hot + rng.u64(..5000) } else { rng.u64(..50_000) }),
        )
    });
    simulation.report("skewed");
    assert!(simulation.amplification() < 9.0);
}

#[test]
fn what_is_deleted_goes_away() {
    let mut simulation = Simulation::new(5);
    simulation.run(300, |rng, _| puts((0..200).map(|_| rng.u64(..20_000))));
    simulation.run(150, |rng, flush| {
        let _ = rng;
        (flush * 200..(flush + 1) * 200).map(|key| (key, EntryKind::Delete)).collect()
    });
    simulation.report("deleted");
    // All that was there was deleted: what is left are runs of level 0 that nothing hurries.
    let left: u64 = (1..=LEVEL_LAST).map(|level| simulation.version.level_bytes(level)).sum();
    assert!(left < 1000 * ENTRY_BYTES, "{left}");
}

#[test]
fn a_queue_stays_small() {
    let mut simulation = Simulation::new(6);
    simulation.run(400, |_, flush| {
        let mut operations = puts(flush * 100..(flush + 1) * 100);
        let done = flush.saturating_sub(5) * 100..flush.saturating_sub(4) * 100;
        operations.extend(done.map(|key| (key, EntryKind::Delete)));
        operations
    });
    simulation.report("queue");
    let left: u64 = (1..=LEVEL_LAST).map(|level| simulation.version.level_bytes(level)).sum();
    assert!(left < 3000 * ENTRY_BYTES, "{left}");
}

/// Flushes of any size and place, and compactions by hand in between that always come to an end.
#[test]
fn anything_goes() {
    for seed in 0..30 {
        let mut simulation = Simulation::new(seed);
        for _ in 0..8 {
            simulation.run(20, |rng, _| {
                let (start, width) = (rng.u64(..3000), rng.u64(1..3000));
                let deletes = rng.u32(..4);
                (0..rng.u64(1..400))
                    .map(|_| {
                        let kind =
                            if rng.u32(..6) < deletes { EntryKind::Delete } else { EntryKind::Put };
                        (start + rng.u64(..width), kind)
                    })
                    .collect()
            });
            let key = |rng: &mut fastrand::Rng| format!("{:09}", rng.u64(..4000)).into_bytes();
            let (a, b) = (key(&mut simulation.rng), key(&mut simulation.rng));
            compact_range(&mut simulation, &a.clone().min(b.clone()), &a.max(b));
        }
        simulation.drain();
    }
}

fn compact_range(simulation: &mut Simulation, from: &[u8], to: &[u8]) {
    let upto = SeqNo(simulation.seqno);
    let range = (Bound::Included(from), Bound::Excluded(to));
    for step in 0.. {
        assert!(step < 10_000, "seed {}: no end", simulation.seed);
        let Simulation { version, limits, claims, .. } = &*simulation;
        match plan_range(version, range, upto, limits, claims, SeqNo::MAX) {
            RangeStep::Plan(plan) => simulation.start(plan),
            RangeStep::Wait => simulation.end_one(),
            RangeStep::Done => break,
        }
        if simulation.rng.u32(..10) == 0 {
            let key = simulation.rng.u64(..4000);
            simulation.flush(puts(key..key + 50));
        }
    }
    let left = simulation.version.tables().filter(|(level, table)| {
        let TableFacts { smallest, largest, seqno_min, tombstones, .. } = table.facts();
        let within = **smallest < *to && **largest >= *from && *seqno_min <= upto;
        within && (*level < LEVEL_LAST || (*tombstones > 0 && table.facts.seqno_max <= upto))
    });
    assert_eq!(left.count(), 0, "seed {}", simulation.seed);
    simulation.check();
}
