//! What the verbs ask of slots and keys: rates of all slots, and the heaviest keys.
//!
//! - One operation in [`SAMPLE_EVERY`] is counted for its slot, and one in eight of these for its key.
//!   The others pay for one decrement of a number of their thread's.
//! - Averages are taken by whoever is drawn and finds that the last were taken a second ago, and by
//!   those who want to know. There is no thread for it.
//! - Scans, and what a move copies, are not counted.

use std::time::Duration;

use smallvec::SmallVec;

use crate::runtime::Runtime;
use crate::shard::rates::{self, Rate, Rates, SAMPLE_EVERY, Verb};
use crate::shard::routing::SpaceId;
use crate::shard::sketch::HeavyKeys;
use crate::shard::slots::Slot;

/// Of the operations that are counted, one in so many is for its key, too. A key that is looked up
/// in vain costs a look at all counters of its sketch, and two allocations.
const KEYS_EVERY: u8 = 8;
/// A key that was drawn less often is none to be named.
const LEAST_DRAWN: f64 = 4.0;
/// Nor is one with less than one operation in so many: what a sketch can tell apart.
const LEAST_SHARE: f64 = 1.0 / 256.0;
/// Bytes of the keyspace's id before a key in the sketch.
const ID_BYTES: usize = size_of::<SpaceId>();

/// See the module's comment.
pub(crate) struct Load {
    rates: Rates,
    /// Each key with the id of its keyspace before it.
    keys: HeavyKeys,
}

/// A key that many operations are about.
pub(crate) struct KeyLoad {
    pub space: SpaceId,
    pub key: Vec<u8>,
    /// Operations a second, at most, and how many fewer it may be.
    pub rate: f64,
    pub error: f64,
}

impl Load {
    /// Nothing has happened in any of so many slots.
    pub fn new(slot_count: usize, now: Duration) -> Load {
        Load { rates: Rates::new(slot_count, now), keys: HeavyKeys::default() }
    }

    /// An operation was asked for.
    #[inline]
    pub fn note(&self, verb: Verb, slot: Slot, space: SpaceId, key: &[u8], runtime: &Runtime) {
        if let Some(bits) = rates::draw() {
            self.count(verb, slot, (space, key), bits, runtime);
        }
    }

    #[cold]
    fn count(
        &self,
        verb: Verb,
        slot: Slot,
        (space, key): (SpaceId, &[u8]),
        bits: u8,
        runtime: &Runtime,
    ) {
        self.rates.note(slot.into(), verb, SAMPLE_EVERY);
        if bits.is_multiple_of(KEYS_EVERY) {
            let mut named: SmallVec<[u8; 128]> = SmallVec::from_slice(&space.to_le_bytes());
            named.extend_from_slice(key);
            self.keys.note(&named, 1);
            let now = runtime.now();
            if self.rates.is_due(now) {
                self.measure(now);
            }
        }
    }

    /// Takes what was counted into the averages.
    pub fn measure(&self, now: Duration) {
        if let Some(kept) = self.rates.measure(now) {
            self.keys.fade(kept);
        }
    }

    /// The rate of each slot, as of the last measuring.
    pub fn of_slots(&self) -> Vec<Rate> {
        self.rates.all()
    }

    /// The `count` heaviest keys, the heaviest first. There may be fewer: under an even load, none.
    pub fn of_keys(&self, count: usize) -> Vec<KeyLoad> {
        let (keys, drawn) = self.keys.heaviest(count);
        let total: f64 = self.of_slots().into_iter().map(Rate::total).sum();
        let is_heavy = |certain: f64| certain >= LEAST_DRAWN.max(drawn * LEAST_SHARE);
        let heavy = keys.into_iter().take_while(|heavy| is_heavy(heavy.certain()));
        let named = |heavy: crate::shard::sketch::Heavy| {
            let (id, key) = heavy.key.split_at(ID_BYTES);
            KeyLoad {
                space: SpaceId::from_le_bytes(id.try_into().expect("it was put before the key")),
                key: key.to_vec(),
                rate: heavy.count / drawn * total,
                error: heavy.error / drawn * total,
            }
        };
        heavy.map(named).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heavy_key_is_named_with_its_rate_and_an_even_load_names_none() {
        let runtime = Runtime::alone();
        let second = Duration::from_secs(1);
        let load = Load::new(64, Duration::ZERO);
        let random = &mut fastrand::Rng::with_seed(3);
        for at in 1..=20 {
            for _ in 0..20_000 {
                let key = random.u32(..100_000).to_be_bytes();
                load.note(Verb::Read, random.u16(..64), 1, &key, &runtime);
            }
            load.measure(second * at);
        }
        assert_eq!(load.of_keys(9).len(), 0);
        for at in 21..=60 {
            for _ in 0..20_000 {
                let key = random.u32(..100_000).to_be_bytes();
                load.note(Verb::Read, random.u16(..64), 1, &key, &runtime);
                if random.u8(..4) == 0 {
                    load.note(Verb::Write, 7, 2, b"hot", &runtime);
                }
            }
            load.measure(second * at);
        }
        let slots = load.of_slots();
        let total: f64 = slots.iter().copied().map(Rate::total).sum();
        assert!((total - 25_000.0).abs() < 500.0, "{total}");
        assert!((slots[7].writes - 5_000.0).abs() < 300.0, "{}", slots[7].writes);
        let keys = load.of_keys(9);
        assert_eq!(keys.len(), 1);
        let KeyLoad { space, key, rate, error } = &keys[0];
        assert_eq!((*space, &key[..]), (2, &b"hot"[..]));
        assert!((rate - 5_000.0).abs() < 500.0 + error && *error < 100.0, "{rate} {error}");
        // Long ago.
        load.measure(second * 600);
        assert_eq!(load.of_keys(9).len(), 0);
    }
}
