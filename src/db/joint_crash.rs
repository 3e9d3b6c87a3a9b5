//! Crashes of several engines that commit together, at every call and in many ways.
//!
//! Runs of odd seeds use one keyspace, so that flushes leave nothing behind that they would have to
//! sync the log for; the others use two.
//!
//! Writers commit on one shard and on several, while memtables are flushed and the shards closed and
//! opened again. Each commit puts its own key, with the shards that it wrote to as the value, and
//! adds one to a counter, in each of its shards. An image of the disk is taken after every call that
//! changes it. What must hold of what is recovered from each:
//!
//! 1. each shard holds a prefix of its commits, each of them once;
//! 2. a commit over several shards is in all of them or in none;
//! 3. what was acknowledged is there: as `Process` after a kill, as `Disk` after power loss too;
//! 4. power loss at any call of the recovery itself leads to the same state.
//!
//! And while it runs, snapshots of all shards never see a part of a commit. A rule of the
//! protocol can be left out, to see whether this notices.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::batch::BatchBuilder;
use crate::db::Db;
use crate::db::joint::{
    JointPart, ShardDir, acknowledge_joint, commit_joint, joint_snapshots, open_shards,
};
use crate::db::keyspace::{Keyspace, KeyspaceOptions};
use crate::db::resources::Resources;
use crate::db::snapshot::Snapshot;
use crate::error::Result;
use crate::file::ShardNumber;
use crate::fs::Fs;
use crate::fs::sim::{Image, Phase, SimFs, Survival};
use crate::operator::Counter;
use crate::options::{Durability, Options};
use crate::runtime::{Priority, Runtime, Task, yield_point};
use crate::tree::Tree;
use crate::write::closing::{Joints, Rule};
use crate::write::pressure::Patience;

/// Shards that are open together. Each has two keyspaces: `default`, and `other` with the counter.
struct Shards {
    joints: Arc<Joints>,
    dbs: Vec<Db>,
    others: Vec<Keyspace>,
    /// Commits write to both keyspaces.
    both: bool,
}

/// Of a shard: its commits by id, each with the shards that it wrote to; and its counter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Contents {
    commits: BTreeMap<u64, Vec<usize>>,
    count: i64,
}

impl Shards {
    fn open(fs: Arc<dyn Fs>, runtime: &Runtime, program: &Program) -> Result<Shards> {
        let Program { seed, shards: count, rule, .. } = *program;
        let joints = Arc::new(Joints::without(rule));
        let dir = |n| Path::new("/db").join(format!("shard-{n}"));
        let shards = (0..count as u32).map(|n| ShardDir { shard: ShardNumber(n), dir: dir(n) });
        let shards: Vec<ShardDir> = shards.collect();
        let options = Options::tiny();
        let resources = Resources::on(runtime.clone(), &options);
        let dbs = open_shards(&fs, &resources, &joints, &shards, &options)?;
        let counter = || KeyspaceOptions::new().merge(Counter::default());
        let others: Result<_> = dbs.iter().map(|db| db.keyspace("other", counter())).collect();
        Ok(Shards { joints, dbs, others: others?, both: seed.is_multiple_of(2) })
    }

    /// Opens what a crash left, without threads, so without making anything.
    fn contents_on(disk: &SimFs, program: &Program) -> Result<Vec<Contents>> {
        let shards = Shards::open(Arc::new(disk.clone()), &Runtime::alone(), program)?;
        shards.dbs.iter().zip(&shards.others).map(|(db, other)| contents(db, other)).collect()
    }

    /// The place of the commit in each of its shards.
    fn commit(&self, id: u64, among: &[usize], durability: Durability) -> Result<Vec<u64>> {
        let value = among.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let key = format!("c{id:06}");
        let mut builders = vec![BatchBuilder::new(); among.len()];
        let trees =
            |shard: &usize| -> [&Tree; 2] { [&self.dbs[*shard].tree, &self.others[*shard].tree] };
        let trees: Vec<[&Tree; 2]> = among.iter().map(trees).collect();
        for ((builder, trees), shard) in builders.iter_mut().zip(&trees).zip(among) {
            // Now in one keyspace, now in the other, so that one is flushed before the other.
            let tree = trees[(id as usize / 3 + shard) % 2 * usize::from(self.both)];
            let key = if tree.name == "other" { format!("\0{key}") } else { key.clone() };
            match tree.name.as_str() {
                "other" => builder.merge(tree.id, key.as_bytes(), &1_i64.to_le_bytes()),
                _ => builder.put(tree.id, key.as_bytes(), value.as_bytes()),
            }
            if self.both {
                builder.merge(trees[1].id, b"count", &1_i64.to_le_bytes());
            }
            // What makes a memtable full.
            builder.put(trees[0].id, b"filler", &[b'x'; 400]);
            builder.put(trees[0].id, format!("v{id:06}").as_bytes(), value.as_bytes());
        }
        let mut parts = Vec::new();
        for ((shard, builder), trees) in among.iter().zip(&mut builders).zip(&trees) {
            parts.push(JointPart { engine: self.dbs[*shard].engine(), builder, trees });
        }
        let places = commit_joint(&self.joints, &mut parts, None, Patience::Wait)?;
        let places = places.expect("nothing was checked");
        let bytes = vec![10; among.len()];
        acknowledge_joint(&parts, &places, &bytes, durability, Patience::Wait)?;
        Ok(places.iter().map(|place| place.expect("it wrote").last_seqno.0).collect())
    }

    /// What is wrong with snapshots of all shards, taken now.
    fn look(&self) -> Option<String> {
        let snapshots = joint_snapshots(&self.joints, &self.dbs);
        let found = snapshots.iter().map(seen).collect::<Result<Vec<_>>>().unwrap();
        not_whole(&found)
    }
}

fn parsed(value: &[u8]) -> Vec<usize> {
    let text = std::str::from_utf8(value).unwrap();
    text.split(',').map(|shard| shard.parse().unwrap()).collect()
}

fn contents(db: &Db, other: &Keyspace) -> Result<Contents> {
    let mut found = Contents::default();
    for entry in db.prefix("v") {
        let (key, value) = entry?;
        let id = std::str::from_utf8(&key[1..]).unwrap().parse().unwrap();
        found.commits.insert(id, parsed(&value));
    }
    let number = |value: &[u8]| i64::from_le_bytes(value.try_into().unwrap());
    found.count = other.get_with("count", number)?.unwrap_or(0);
    // The keys of its own of each commit, in whichever keyspace, once.
    let own = db.prefix("c").map(|entry| entry.map(|(key, _)| key[1..].to_vec()));
    let own_in_other = other.prefix("\0c").map(|entry| {
        entry.map(|(key, value)| {
            assert_eq!(number(&value), 1, "an operand twice");
            key[2..].to_vec()
        })
    });
    let own: Result<BTreeSet<Vec<u8>>> = own.chain(own_in_other).collect();
    let ids: BTreeSet<Vec<u8>> =
        found.commits.keys().map(|id| format!("{id:06}").into_bytes()).collect();
    assert_eq!(own?, ids, "a commit is not whole in one shard");
    Ok(found)
}

fn seen(snapshot: &Snapshot) -> Result<Contents> {
    let mut found = Contents::default();
    for entry in snapshot.prefix("v") {
        let (key, value) = entry?;
        let id = std::str::from_utf8(&key[1..]).unwrap().parse().unwrap();
        found.commits.insert(id, parsed(&value));
    }
    Ok(found)
}

fn not_whole(found: &[Contents]) -> Option<String> {
    for (shard, contents) in found.iter().enumerate() {
        for (id, among) in &contents.commits {
            if let Some(other) = among.iter().find(|s| !found[**s].commits.contains_key(id)) {
                return Some(format!("commit {id} of {among:?} is in {shard} and not in {other}"));
            }
        }
    }
    None
}

/// What was promised so far: each commit that was acknowledged.
type Promises = Vec<(u64, Durability)>;

struct Moment {
    image: Image,
    promised: Promises,
    label: String,
}

#[derive(Default)]
struct Log {
    promised: Promises,
    moments: Vec<Moment>,
    /// Of each shard, which commit has which place.
    places: Vec<BTreeMap<u64, u64>>,
    /// Seen while it ran.
    wrong: Option<String>,
}

#[derive(Clone)]
struct Watch {
    disk: SimFs,
    log: Arc<Mutex<Log>>,
    next_id: Arc<AtomicU64>,
}

impl Watch {
    fn note(&self, image: Image, label: String) {
        let mut log = self.log.lock();
        let promised = log.promised.clone();
        log.moments.push(Moment { image, promised, label });
    }

    fn commit(&self, shards: &Shards, among: &[usize], durability: Durability) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let places = shards.commit(id, among, durability).unwrap();
        let mut log = self.log.lock();
        for (shard, place) in among.iter().zip(places) {
            log.places[*shard].insert(place, id);
        }
        log.promised.push((id, durability));
        drop(log);
        let image = self.disk.snapshot();
        self.note(image, format!("-- {id} in {among:?} acknowledged as {durability:?}"));
    }
}

/// A run on an empty disk.
struct Program {
    seed: u64,
    shards: usize,
    rounds: usize,
    /// What the engines leave out.
    rule: Option<Rule>,
}

impl Program {
    fn run(&self) -> Log {
        let disk = SimFs::new();
        let log = Arc::new(Mutex::new(Log::default()));
        log.lock().places.resize(self.shards, BTreeMap::new());
        let watch = Watch { disk: disk.clone(), log: log.clone(), next_id: Arc::default() };
        let hooked = watch.clone();
        disk.on_call(Arc::new(move |disk, phase, call| {
            if phase != Phase::Before && call.changes() {
                let half = if phase == Phase::Middle { " (half)" } else { "" };
                hooked.note(disk.snapshot(), format!("{call}{half}"));
            }
            yield_point();
        }));
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut left = self.rounds;
        while left > 0 {
            let session = left.min(random.usize(2..6));
            left -= session;
            self.session(&watch, &mut random, session);
        }
        disk.clear_hook();
        std::mem::take(&mut *log.lock())
    }

    fn session(&self, watch: &Watch, random: &mut fastrand::Rng, rounds: usize) {
        let runtime = Runtime::stepper(random.u64(..));
        let fs = Arc::new(watch.disk.clone());
        let shards = Shards::open(fs, &runtime, self).unwrap();
        {
            // What was found is in tables.
            let mut log = watch.log.lock();
            log.promised.iter_mut().for_each(|(_, durability)| *durability = Durability::Disk);
        }
        let shards = Arc::new(shards);
        for _ in 0..rounds {
            self.round(watch, random, &runtime, &shards);
        }
        let shards = Arc::into_inner(shards).expect("the writers have ended");
        if random.bool() {
            drop(shards.others);
            shards.dbs.into_iter().for_each(|db| db.close().unwrap());
        }
    }

    fn round(
        &self,
        watch: &Watch,
        random: &mut fastrand::Rng,
        runtime: &Runtime,
        shards: &Arc<Shards>,
    ) {
        let writer = |mut random: fastrand::Rng| -> Task {
            let (watch, shards, count) = (watch.clone(), shards.clone(), self.shards);
            let task = runtime.spawn("writer", Priority::Normal, move || {
                for _ in 0..random.usize(1..4) {
                    let durability = match random.u8(..4) {
                        0 => Durability::Disk,
                        _ => Durability::Process,
                    };
                    let mut among = random.choose_multiple(0..count, random.clone().usize(1..4));
                    among.sort_unstable();
                    watch.commit(&shards, &among, durability);
                }
            });
            task.unwrap()
        };
        let mut tasks: Vec<Task> = (0..random.usize(1..4)).map(|_| writer(random.fork())).collect();
        let (looked, looker) = (watch.clone(), shards.clone());
        let look = runtime.spawn("reader", Priority::Normal, move || {
            for _ in 0..3 {
                if let Some(wrong) = looker.look() {
                    looked.log.lock().wrong.get_or_insert(wrong);
                }
                yield_point();
            }
        });
        tasks.push(look.unwrap());
        let shard = random.usize(..self.shards);
        match random.u8(..5) {
            0 => shards.dbs[shard].flush().unwrap(),
            1 => shards.dbs[shard].default.flush().unwrap(),
            2 => shards.others[shard].flush().unwrap(),
            3 => shards.dbs[shard].sync().unwrap(),
            _ => {}
        }
        tasks.into_iter().for_each(Task::join);
    }
}

/// Counts what was tried.
#[derive(Debug, Default)]
struct Counts {
    moments: usize,
    cases: usize,
    opens: usize,
    again: usize,
}

/// The first violation after a crash of this run.
fn crash(program: &Program, log: &Log, counts: &mut Counts) -> Option<String> {
    if let Some(wrong) = &log.wrong {
        return Some(format!("a snapshot while it ran: {wrong}"));
    }
    let mut known: HashMap<(u64, bool), std::result::Result<Vec<Contents>, String>> =
        HashMap::new();
    for (index, moment) in log.moments.iter().enumerate() {
        counts.moments += 1;
        let seed = program.seed << 20 | index as u64;
        let power = moment.image.survivals(3, 1, seed).into_iter().map(Some);
        for survival in [None].into_iter().chain(power) {
            counts.cases += 1;
            let disk = match &survival {
                None => moment.image.kill(),
                Some(survival) => moment.image.crash(survival),
            };
            let key = (disk.state_hash(), survival.is_none());
            let found = known.entry(key).or_insert_with(|| {
                counts.opens += 1;
                let deep = counts.opens.is_multiple_of(97) && survival.is_some();
                recover(program, &disk, deep.then_some(counts))
            });
            let wrong = match found {
                Ok(found) => violation(program, log, moment, survival.as_ref(), found),
                Err(text) => Some(text.clone()),
            };
            if let Some(wrong) = wrong {
                let before = log.moments[index.saturating_sub(12)..=index].iter();
                let calls: String = before.map(|moment| format!("  {}\n", moment.label)).collect();
                let pending = moment.image.describe_pending().join("\n  ");
                let (seed, shards) = (program.seed, program.shards);
                return Some(format!(
                    "seed {seed}, {shards} shards, moment {index}, {survival:?}: {wrong}\n\
                     last calls:\n{calls}pending:\n  {pending}"
                ));
            }
        }
    }
    None
}

/// What is recovered from a disk; and, with `deep`, from crashes of that recovery.
fn recover(
    program: &Program,
    disk: &SimFs,
    deep: Option<&mut Counts>,
) -> std::result::Result<Vec<Contents>, String> {
    let images = Arc::new(Mutex::new(Vec::new()));
    if deep.is_some() {
        let sink = images.clone();
        disk.on_call(Arc::new(move |disk, phase, call| {
            if phase != Phase::Before && call.changes() {
                sink.lock().push((disk.snapshot(), call.to_string()));
            }
        }));
    }
    let open = |disk: &SimFs| {
        let found = catch_unwind(AssertUnwindSafe(|| Shards::contents_on(disk, program)));
        match found {
            Ok(found) => found.map_err(|error| format!("open failed: {error}")),
            Err(panic) => Err(format!("panicked: {:?}", panic.downcast_ref::<String>())),
        }
    };
    let found = open(disk)?;
    disk.clear_hook();
    let Some(counts) = deep else { return Ok(found) };
    for (index, (image, call)) in images.lock().iter().enumerate() {
        for survival in image.survivals(2, 1, index as u64) {
            counts.again += 1;
            let again = open(&image.crash(&survival));
            if again.as_ref() != Ok(&found) {
                return Err(format!(
                    "a crash of the recovery, after {call}, {survival:?}, leads to {again:?} \
                     instead of {found:?}"
                ));
            }
        }
    }
    Ok(found)
}

fn violation(
    program: &Program,
    log: &Log,
    moment: &Moment,
    survival: Option<&Survival>,
    found: &[Contents],
) -> Option<String> {
    for (shard, contents) in found.iter().enumerate() {
        let order: Vec<u64> = log.places[shard].values().copied().collect();
        let count = contents.commits.len();
        if order.len() < count || !order[..count].iter().all(|id| contents.commits.contains_key(id))
        {
            let ids: Vec<_> = contents.commits.keys().collect();
            return Some(format!("shard {shard} has {ids:?}, no prefix of {order:?}"));
        }
        let counted = if program.seed.is_multiple_of(2) { count as i64 } else { 0 };
        if contents.count != counted {
            return Some(format!("shard {shard} counts {} of {count}", contents.count));
        }
    }
    let is_there = |id: &u64| found.iter().any(|contents| contents.commits.contains_key(id));
    let must_be = |durability: Durability| survival.is_none() || durability == Durability::Disk;
    let lost =
        moment.promised.iter().find(|(id, durability)| must_be(*durability) && !is_there(id));
    if let Some((id, durability)) = lost {
        return Some(format!("commit {id} was acknowledged as {durability:?} and is lost"));
    }
    not_whole(found)
}

/// Crashes as many runs as `ESKER_JOINT_SEEDS` says, or so many.
fn crash_all(shards: usize, seeds: u64, rounds: usize) {
    let more = std::env::var("ESKER_JOINT_SEEDS").ok();
    let seeds = more.map_or(seeds, |seeds| seeds.parse().expect("a number"));
    let mut counts = Counts::default();
    for seed in 0..seeds {
        let program = Program { seed, shards, rounds, rule: None };
        let log = program.run();
        if let Some(wrong) = crash(&program, &log, &mut counts) {
            panic!("{wrong}");
        }
    }
    println!("{shards} shards: {counts:?}");
    assert!(counts.moments > 100 && counts.again > 100, "{counts:?}");
}

#[test]
fn one_engine_keeps_a_prefix() {
    crash_all(1, 1, 4);
}

#[test]
fn three_engines_keep_prefixes_and_whole_commits() {
    crash_all(3, 2, 4);
}

#[test]
fn eight_engines_keep_prefixes_and_whole_commits() {
    crash_all(8, 1, 3);
}

/// Leaves out a rule, in as many runs as it takes until that is noticed: those that are noticed soon, or
/// the one that `ESKER_JOINT_RULE` names. The others take minutes.
#[test]
fn a_rule_that_is_left_out_is_noticed() {
    let all = [Rule::Closed, Rule::Cut, Rule::Void, Rule::Flush, Rule::First, Rule::Gate];
    let chosen = match std::env::var("ESKER_JOINT_RULE") {
        Ok(name) => vec![all.into_iter().find(|rule| format!("{rule:?}") == name).expect("a rule")],
        Err(_) => all[..3].to_vec(),
    };
    for rule in chosen {
        let mut counts = Counts::default();
        let noticed = (0..40).find_map(|seed| {
            let program = Program { seed, shards: 3, rounds: 10, rule: Some(rule) };
            let log = catch_unwind(AssertUnwindSafe(|| program.run()));
            match log {
                Ok(log) => crash(&program, &log, &mut counts),
                Err(_) => Some("the run itself failed".to_string()),
            }
        });
        let text = noticed.unwrap_or_else(|| panic!("{rule:?} is left out and not noticed"));
        println!("{rule:?}, {} cases: {}", counts.cases, text.lines().next().unwrap());
    }
}
