//! How a database over several shards is doing: its engines, what is asked of them, and what moves.

use std::fmt;
use std::path::PathBuf;

use crate::db::stats::Stats;
use crate::shard::mover::MoveProgress;
use crate::shard::rates::Rate;
use crate::shard::root::Root;
use crate::shard::slots;

/// How many heavy keys are named at most.
const KEYS_NAMED: usize = 16;
/// How many slots and keys are shown as text.
const LINES_SHOWN: usize = 5;

/// How a database over several shards is doing. Shown with `{}`.
///
/// Rates are moving averages over ten seconds, from a sample: one operation in 16 is counted, and of
/// these one in eight for its key. Scans, and what moves copy, are not in them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShardedStats {
    /// Each shard, by number.
    pub shards: Vec<ShardStats>,
    /// Each slot, by number. See also [`ShardedStats::heaviest_slots`].
    pub slots: Vec<SlotStats>,
    /// The keys that most operations are about, the heaviest first; at most 16, and only those with
    /// more than one in 256 of all operations. Under an even load, none.
    pub keys: Vec<HeavyKey>,
    /// How far the moves of slots have come.
    pub moves: MoveProgress,
}

/// How one shard is doing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShardStats {
    /// Where it lies.
    pub directory: PathBuf,
    /// How many slots it has.
    pub slot_count: usize,
    /// What is asked of these slots.
    pub rate: Rate,
    /// Its engine.
    pub stats: Stats,
}

/// What is asked of one slot.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct SlotStats {
    /// The number of the shard that has it.
    pub shard: usize,
    /// What is asked of it. A slot that moves takes its rate along.
    pub rate: Rate,
}

/// A key that many operations are about.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct HeavyKey {
    /// Its keyspace.
    pub keyspace: String,
    /// The key; of a long one the first 252 bytes.
    pub key: Vec<u8>,
    /// Reads and writes a second, at most, as far as a sample tells.
    pub rate: f64,
    /// It may be so much less.
    pub error: f64,
}

impl ShardedStats {
    pub(crate) fn of(root: &Root) -> ShardedStats {
        root.load.measure(root.runtime.now());
        let map = root.routing.load().map.clone();
        let slot = |(rate, owner): (Rate, &u16)| SlotStats { shard: (*owner).into(), rate };
        let slots: Vec<SlotStats> =
            root.load.of_slots().into_iter().zip(&map.owners).map(slot).collect();
        let counts = slots::counts(&map.owners, map.shard_count());
        let shards = root.shards().zip(counts).enumerate().map(|(number, (shard, slot_count))| {
            let own = slots.iter().filter(|slot| slot.shard == number);
            ShardStats {
                directory: shard.engine().dir.clone(),
                slot_count,
                rate: own.map(|slot| slot.rate).sum(),
                stats: shard.stats(),
            }
        });
        let shards = shards.collect();
        let spaces = root.spaces();
        let named = |key: crate::shard::load::KeyLoad| {
            // Of one that was dropped nobody wants to know.
            let space = spaces.iter().find(|space| space.id == key.space)?;
            let (keyspace, error) = (space.name.clone(), key.error);
            Some(HeavyKey { keyspace, key: key.key, rate: key.rate, error })
        };
        let keys = root.load.of_keys(KEYS_NAMED).into_iter().filter_map(named).collect();
        ShardedStats { shards, slots, keys, moves: root.mover.progress() }
    }

    /// The `count` slots of which most is asked, with their numbers, the heaviest first; none of which
    /// nothing is.
    #[must_use]
    pub fn heaviest_slots(&self, count: usize) -> Vec<(usize, SlotStats)> {
        let asked = |(_, slot): &(usize, SlotStats)| slot.rate.total() > 0.0;
        let mut slots: Vec<_> = self.slots.iter().copied().enumerate().filter(asked).collect();
        slots.sort_by(|a, b| b.1.rate.total().total_cmp(&a.1.rate.total()));
        slots.truncate(count);
        slots
    }
}

impl fmt::Display for ShardedStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, shard) in self.shards.iter().enumerate() {
            let ShardStats { directory, slot_count, rate, stats } = shard;
            writeln!(f, "shard     {number} in {}: {slot_count} slots", directory.display())?;
            writeln!(f, "asked     {rate}")?;
            writeln!(f, "{stats}\n")?;
        }
        for (number, SlotStats { shard, rate }) in self.heaviest_slots(LINES_SHOWN) {
            writeln!(f, "slot      {number} in shard {shard}: {rate}")?;
        }
        for HeavyKey { keyspace, key, rate, .. } in self.keys.iter().take(LINES_SHOWN) {
            writeln!(f, "key       {keyspace:?} \"{}\": {rate:.0} a second", key.escape_ascii())?;
        }
        let MoveProgress { phase, slots_left, slots_moved, automatic, failure, .. } = &self.moves;
        write!(
            f,
            "moves     {phase:?}: {slots_left} slots left, {slots_moved} moved, {automatic} times by \
             the policy"
        )?;
        failure.as_ref().map_or(Ok(()), |failure| write!(f, "; {failure}"))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} reads and {:.0} writes a second", self.reads, self.writes)
    }
}
