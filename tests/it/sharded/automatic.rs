//! The automatic policy, in virtual time: it relieves a hot shard, and otherwise keeps still. That its
//! decisions do not swing is tried by `src/shard/policy.rs`, for hours and without a database.

use std::sync::Arc;
use std::time::Duration;

use esker::fs::sim::SimFs;
use esker::runtime::Runtime;
use esker::{Automatic, ErrorKind, MoveProgress, Options, ShardedDb};

/// Operations a second.
const RATE: u32 = 1_000;
const KEYS: u32 = 600;

struct World {
    runtime: Runtime,
    db: ShardedDb,
    random: fastrand::Rng,
    /// What was put last, by key.
    values: Vec<u32>,
}

fn policy() -> Automatic {
    let seconds = Duration::from_secs;
    Automatic::new().least_rate(100.0).lasting(seconds(5)).cooldown(seconds(10))
}

fn key(number: u32) -> String {
    format!("key{number}")
}

impl World {
    fn new(shards: usize, policy: Automatic) -> World {
        let runtime = Runtime::stepper(7);
        let mut options = Options::default();
        options.memory = 8 << 20;
        let builder = ShardedDb::builder("/db").options(options).shards(shards).slots(64);
        let db = builder.automatic(policy).open_on(Arc::new(SimFs::new()), runtime.clone());
        let db = db.unwrap();
        let random = fastrand::Rng::with_seed(11);
        World { runtime, db, random, values: vec![0; KEYS as usize] }
    }

    /// The keys that a shard has now.
    fn keys_of(&self, shard: usize) -> Vec<u32> {
        (0..KEYS).filter(|number| self.db.shard_of(key(*number)).unwrap() == shard).collect()
    }

    /// Puts and gets as many as there are, by turns, of keys that are picked.
    fn run(&mut self, seconds: u32, mut pick: impl FnMut(&mut fastrand::Rng) -> u32) {
        for n in 0..seconds * RATE {
            let number = pick(&mut self.random);
            if n % 2 == 0 {
                self.values[number as usize] = n + 1;
                self.db.put(key(number), (n + 1).to_string()).unwrap();
            } else {
                self.check(number);
            }
            self.runtime.sleep(Duration::from_secs(1) / RATE);
        }
    }

    fn check(&self, number: u32) {
        let value = self.db.get(key(number)).unwrap();
        let value = value.map_or(0, |value| std::str::from_utf8(&value).unwrap().parse().unwrap());
        assert_eq!(value, self.values[number as usize], "key {number}");
    }

    /// What each shard is asked for, as a multiple of the mean.
    fn shares(&self) -> Vec<f64> {
        let stats = self.db.stats();
        let rates: Vec<f64> = stats.shards.iter().map(|shard| shard.rate.total()).collect();
        let mean = rates.iter().sum::<f64>() / rates.len() as f64;
        assert!((mean * rates.len() as f64 - f64::from(RATE)).abs() < 150.0, "{rates:?}");
        rates.iter().map(|rate| rate / mean).collect()
    }

    fn heaviest(&self) -> f64 {
        self.shares().into_iter().fold(0.0, f64::max)
    }

    fn end(self) -> MoveProgress {
        (0..KEYS).for_each(|number| self.check(number));
        let moves = self.db.moves();
        assert_eq!(moves.failure, None);
        self.db.close().unwrap();
        moves
    }
}

/// Of five operations four are about these keys.
fn mostly(hot: &[u32]) -> impl FnMut(&mut fastrand::Rng) -> u32 {
    |random| match random.u8(..5) {
        0 => random.u32(..KEYS),
        _ => hot[random.usize(..hot.len())],
    }
}

#[test]
fn a_skewed_load_is_evened_out_and_then_left_alone() {
    let mut world = World::new(4, policy());
    let hot = world.keys_of(2);
    world.run(12, mostly(&hot));
    assert!(world.shares()[2] > 3.0, "{:?}", world.shares());
    assert_eq!(world.db.moves().automatic, 0, "it has not lasted yet");
    world.run(28, mostly(&hot));
    assert!(world.heaviest() < 1.3, "{:?}", world.shares());
    let there = world.keys_of(2).len();
    world.run(60, mostly(&hot));
    assert_eq!(world.keys_of(2).len(), there);
    let moves = world.end();
    assert_eq!(moves.automatic, 1);
    assert!(moves.slots_moved <= 16, "no more than the hot shard had: {moves:?}");
}

#[test]
fn an_even_load_moves_nothing() {
    let mut world = World::new(4, policy());
    world.run(60, |random| random.u32(..KEYS));
    assert!(world.heaviest() < 1.4, "{:?}", world.shares());
    let moves = world.end();
    assert_eq!((moves.automatic, moves.slots_moved), (0, 0));
}

#[test]
fn a_load_that_goes_to_and_fro_is_followed_a_few_times_at_most() {
    let mut world = World::new(2, policy());
    let (left, right) = (world.keys_of(0), world.keys_of(1));
    for _ in 0..2 {
        world.run(35, mostly(&left));
        world.run(35, mostly(&right));
    }
    let before = world.db.moves();
    assert!((1..=4).contains(&before.automatic), "{before:?}");
    for _ in 0..2 {
        world.run(35, mostly(&left));
        world.run(35, mostly(&right));
    }
    // By then both halves are divided.
    let moves = world.end();
    assert_eq!((moves.automatic, moves.slots_moved), (before.automatic, before.slots_moved));
}

#[test]
fn a_single_hot_key_is_named_and_not_moved_to_and_fro() {
    let mut world = World::new(2, policy());
    let hot = 77;
    let at = world.db.shard_of(key(hot)).unwrap();
    // Nothing else: moving it would make the other shard the hot one.
    world.run(40, |_| hot);
    assert_eq!(world.db.moves().automatic, 0);
    assert_eq!(world.db.shard_of(key(hot)).unwrap(), at);
    let stats = world.db.stats();
    assert_eq!(stats.keys.len(), 1, "{stats}");
    assert_eq!((&*stats.keys[0].keyspace, &*stats.keys[0].key), ("default", key(hot).as_bytes()));
    assert!((stats.keys[0].rate - f64::from(RATE)).abs() < 150.0, "{stats}");
    let (slot, heaviest) = stats.heaviest_slots(1)[0];
    assert_eq!((stats.slots[slot], heaviest.shard), (heaviest, at));
    assert!(stats.to_string().contains("key       \"default\" \"key77\": "), "{stats}");
    // With company, which may leave it, once.
    let mut with_company = |seconds| {
        world.run(seconds, |random| if random.bool() { hot } else { random.u32(..KEYS) });
        world.db.moves()
    };
    let before = with_company(60);
    assert!(before.automatic <= 1, "{before:?}");
    assert_eq!(with_company(60), before);
    world.end();
}

#[test]
fn shards_are_added_up_to_a_bound() {
    let mut world = World::new(1, policy().split_above(400.0, 3));
    world.run(30, |random| random.u32(..KEYS));
    assert!(world.db.shard_count() > 1);
    world.run(60, |random| random.u32(..KEYS));
    assert_eq!(world.db.shard_count(), 3);
    assert!(world.heaviest() < 1.3, "{:?}", world.shares());
    let moves = world.end();
    assert!((2..=3).contains(&moves.automatic), "{moves:?}");
}

#[test]
fn a_policy_that_makes_no_sense_is_refused() {
    let builder = ShardedDb::builder("/db").automatic(Automatic::new().factor(0.5));
    let error = builder.open_on(Arc::new(SimFs::new()), Runtime::threads()).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
}
