//! Sets of slots, and whole assignments of slots to shards: pure decisions.

use std::collections::BTreeSet;

use crate::coding::{DecodeError, Decoded, Decoder, put_varint};

/// Number of a slot: the hash of a key's partition, modulo how many there are.
pub(crate) type Slot = u16;
/// Number of a shard: where it is in the slot map.
pub(crate) type ShardIndex = u16;

/// Some of the slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlotSet {
    /// A bit for each slot; no zero word at the end.
    words: Vec<u64>,
}

impl SlotSet {
    #[inline]
    pub fn contains(&self, slot: Slot) -> bool {
        let word = self.words.get(usize::from(slot) / 64).copied().unwrap_or(0);
        word >> (slot % 64) & 1 == 1
    }

    pub fn insert(&mut self, slot: Slot) {
        let word = usize::from(slot) / 64;
        self.words.resize(self.words.len().max(word + 1), 0);
        self.words[word] |= 1 << (slot % 64);
    }

    pub fn remove(&mut self, slot: Slot) {
        if let Some(word) = self.words.get_mut(usize::from(slot) / 64) {
            *word &= !(1 << (slot % 64));
        }
        while self.words.pop_if(|word| *word == 0).is_some() {}
    }

    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Ascending.
    pub fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        (0..self.words.len() * 64).map(|slot| slot as Slot).filter(|slot| self.contains(*slot))
    }

    /// How many stretches, then of each: slots left out before it, and its slots, which are at
    /// least one.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut stretches: Vec<(u64, u64)> = Vec::new();
        for slot in self.iter().map(u64::from) {
            match stretches.last_mut() {
                Some((_, to)) if *to == slot => *to = slot + 1,
                _ => stretches.push((slot, slot + 1)),
            }
        }
        put_varint(out, stretches.len() as u64);
        let mut before = 0;
        for (from, to) in stretches {
            put_varint(out, from - before);
            put_varint(out, to - from);
            before = to;
        }
    }

    pub fn decode(decoder: &mut Decoder<'_>, slot_count: usize) -> Decoded<SlotSet> {
        let mut set = SlotSet::default();
        let mut at = 0u64;
        for stretch in 0..decoder.varint()? {
            let (gap, length) = (decoder.varint()?, decoder.varint()?);
            if length == 0 || (stretch > 0 && gap == 0) {
                return Err(DecodeError("an empty stretch of slots"));
            }
            let from = at.checked_add(gap).filter(|from| *from < slot_count as u64);
            let from = from.ok_or(DecodeError("a slot beyond the last"))?;
            let to = from.checked_add(length).filter(|to| *to <= slot_count as u64);
            at = to.ok_or(DecodeError("a slot beyond the last"))?;
            (from..at).for_each(|slot| set.insert(slot as Slot));
        }
        Ok(set)
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> SlotSet {
        let mut set = SlotSet::default();
        slots.into_iter().for_each(|slot| set.insert(slot));
        set
    }
}

/// A fresh assignment: stretches of equal length.
pub(crate) fn even(slot_count: usize, shard_count: usize) -> Vec<ShardIndex> {
    (0..slot_count).map(|slot| (slot * shard_count / slot_count) as ShardIndex).collect()
}

/// The assignment in which shards without slots have got their fair share, from every other shard
/// its own, and nothing else has changed.
///
/// Of each shard the slots go that hash highest together with the shard that gets them, so that the
/// choice is the same everywhere.
pub(crate) fn share_with(owners: &[ShardIndex], to: ShardIndex) -> Vec<ShardIndex> {
    let shards = owners.iter().map(|owner| usize::from(*owner) + 1).max().unwrap_or(0);
    let shards = shards.max(usize::from(to) + 1);
    let counts = counts(owners, shards);
    let sharing = counts.iter().filter(|count| **count > 0).count();
    let is_new = counts[usize::from(to)] == 0;
    if sharing == 0 || !is_new {
        return owners.to_vec();
    }
    let fair = owners.len() / (sharing + 1);
    // How many each gives: in proportion to what it has, the remainders by shard number.
    let mut gives: Vec<usize> = counts.iter().map(|count| count * fair / owners.len()).collect();
    let mut missing = fair - gives.iter().sum::<usize>();
    let mut by_size: Vec<usize> = (0..shards).collect();
    by_size.sort_by_key(|shard| std::cmp::Reverse(counts[*shard]));
    for shard in by_size {
        if missing > 0 && gives[shard] < counts[shard] {
            gives[shard] += 1;
            missing -= 1;
        }
    }
    let mut next = owners.to_vec();
    for (shard, count) in gives.into_iter().enumerate() {
        for slot in chosen(owners, shard as ShardIndex, to, count) {
            next[usize::from(slot)] = to;
        }
    }
    next
}

/// The assignment in which every second slot of `from` has gone to `to`.
pub(crate) fn halve(owners: &[ShardIndex], from: ShardIndex, to: ShardIndex) -> Vec<ShardIndex> {
    let count = owners.iter().filter(|owner| **owner == from).count() / 2;
    let mut next = owners.to_vec();
    for slot in chosen(owners, from, to, count) {
        next[usize::from(slot)] = to;
    }
    next
}

/// The assignment in which every shard of `loads` has about the same load, with as few slots moved
/// as a greedy choice finds: from the fullest shard the heaviest slot that makes neither the fuller.
///
/// `loads` has a number for each slot: what it costs its shard. Ends when the fullest shard has at
/// most `1 + tolerance` times the mean.
pub(crate) fn balance(
    owners: &[ShardIndex],
    shard_count: usize,
    loads: &[f64],
    tolerance: f64,
) -> Vec<ShardIndex> {
    let mut next = owners.to_vec();
    let mut totals = vec![0.0; shard_count];
    for (slot, owner) in next.iter().enumerate() {
        totals[usize::from(*owner)] += loads[slot];
    }
    let mean = totals.iter().sum::<f64>() / shard_count.max(1) as f64;
    // Those that may still be moved, by their load. Numbers above 0 are ordered as their bits are.
    let mut movable = vec![BTreeSet::new(); shard_count];
    for (slot, owner) in next.iter().enumerate().filter(|(slot, _)| loads[*slot] > 0.0) {
        movable[usize::from(*owner)].insert((loads[slot].to_bits(), slot));
    }
    // Each step moves one slot for good, so they are bounded by the slots.
    for _ in 0..owners.len() {
        let order = |a: &usize, b: &usize| totals[*a].total_cmp(&totals[*b]);
        let (Some(fullest), Some(emptiest)) =
            ((0..shard_count).max_by(order), (0..shard_count).min_by(order))
        else {
            break;
        };
        if totals[fullest] <= mean * (1.0 + tolerance) {
            break;
        }
        let room = totals[fullest] - totals[emptiest];
        let Some(slot) = closest(&movable[fullest], room / 2.0).filter(|slot| loads[*slot] < room)
        else {
            break;
        };
        movable[fullest].remove(&(loads[slot].to_bits(), slot));
        next[slot] = emptiest as ShardIndex;
        totals[fullest] -= loads[slot];
        totals[emptiest] += loads[slot];
    }
    next
}

/// The slot whose load is closest to this one, of several the first.
fn closest(by_load: &BTreeSet<(u64, usize)>, load: f64) -> Option<usize> {
    let bits = load.to_bits();
    let below = by_load.range(..(bits, 0)).next_back().map(|(bits, _)| *bits);
    let below = below.and_then(|bits| by_load.range((bits, 0)..).next());
    let above = by_load.range((bits, 0)..).next();
    let distance = |found: &&(u64, usize)| (f64::from_bits(found.0) - load).abs();
    let by_distance = |a: &&(u64, usize), b: &&(u64, usize)| {
        distance(a).total_cmp(&distance(b)).then(a.1.cmp(&b.1))
    };
    below.into_iter().chain(above).min_by(by_distance).map(|(_, slot)| *slot)
}

/// How many slots each shard has.
pub(crate) fn counts(owners: &[ShardIndex], shard_count: usize) -> Vec<usize> {
    let mut counts = vec![0; shard_count];
    owners.iter().for_each(|owner| counts[usize::from(*owner)] += 1);
    counts
}

/// `count` slots of `from`, chosen by their hash with `to`.
fn chosen(owners: &[ShardIndex], from: ShardIndex, to: ShardIndex, count: usize) -> Vec<Slot> {
    let of_it = (0..owners.len()).filter(|slot| owners[*slot] == from).map(|slot| slot as Slot);
    let mut slots: Vec<Slot> = of_it.collect();
    slots.sort_by_key(|slot| {
        let seed = [slot.to_le_bytes(), to.to_le_bytes()].concat();
        (crate::key::hash(&seed), *slot)
    });
    slots.truncate(count);
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(set: &SlotSet, slot_count: usize) {
        let mut bytes = Vec::new();
        set.encode(&mut bytes);
        let mut decoder = Decoder::new(&bytes);
        assert_eq!(SlotSet::decode(&mut decoder, slot_count).as_ref(), Ok(set));
        assert!(decoder.is_empty());
        for cut in 0..bytes.len() {
            assert!(SlotSet::decode(&mut Decoder::new(&bytes[..cut]), slot_count).is_err());
        }
        if let Some(max) = set.iter().last() {
            let too_few = usize::from(max);
            assert!(SlotSet::decode(&mut Decoder::new(&bytes), too_few).is_err());
        }
    }

    #[test]
    fn sets_of_slots_round_trip() {
        round_trip(&SlotSet::default(), 1);
        round_trip(&(0..1024).collect(), 1024);
        round_trip(&(0..1024).step_by(2).collect(), 1024);
        let set: SlotSet = [0, 1, 2, 63, 64, 65, 700, 65535].into_iter().collect();
        round_trip(&set, 65536);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 1, 2, 63, 64, 65, 700, 65535]);
        assert_eq!(set.len(), 8);
        let mut set = set;
        set.iter().collect::<Vec<_>>().into_iter().for_each(|slot| set.remove(slot));
        assert_eq!(set, SlotSet::default());
    }

    #[test]
    fn a_new_shard_gets_its_share_and_nothing_else_moves() {
        let mut owners = even(1024, 1);
        for shard in 1..9 {
            let next = share_with(&owners, shard);
            let changed = owners.iter().zip(&next).filter(|(before, after)| before != after);
            assert!(changed.clone().all(|(_, after)| *after == shard));
            assert_eq!(changed.count(), 1024 / (usize::from(shard) + 1));
            let counts = counts(&next, usize::from(shard) + 1);
            let (min, max) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(max - min <= 8, "{counts:?}");
            owners = next;
        }
        assert_eq!(share_with(&owners, 3), owners, "it has its share");
    }

    #[test]
    fn halving_moves_half_of_one_shard() {
        let owners = even(1024, 3);
        let next = halve(&owners, 1, 3);
        assert_eq!(counts(&next, 4), [342, 171, 341, 170]);
        let changed = owners.iter().zip(&next).filter(|(before, after)| before != after);
        assert!(changed.clone().all(|(before, after)| (*before, *after) == (1, 3)));
    }

    #[test]
    fn balance_moves_little_and_ends_even() {
        let owners = even(1024, 4);
        // Shard 0 has ten times the load of the others.
        let loads: Vec<f64> =
            owners.iter().map(|owner| if *owner == 0 { 10.0 } else { 1.0 }).collect();
        let next = balance(&owners, 4, &loads, 0.1);
        let mut totals = [0.0; 4];
        next.iter().zip(&loads).for_each(|(owner, load)| totals[usize::from(*owner)] += load);
        let mean = totals.iter().sum::<f64>() / 4.0;
        assert!(totals.iter().all(|total| *total < mean * 1.11), "{totals:?}");
        let moved = owners.iter().zip(&next).filter(|(before, after)| before != after).count();
        assert!(moved < 200, "{moved}");
        // One slot that is heavier than all others together cannot be divided.
        let loads: Vec<f64> = (0..1024).map(|slot| if slot == 5 { 1e6 } else { 0.0 }).collect();
        assert_eq!(balance(&owners, 4, &loads, 0.1), owners);
        assert_eq!(balance(&owners, 4, &[0.0; 1024], 0.1), owners);
    }

    #[test]
    fn the_closest_load_is_found() {
        let mut random = fastrand::Rng::with_seed(7);
        assert_eq!(closest(&BTreeSet::new(), 1.0), None);
        for _ in 0..2000 {
            let loads: Vec<f64> = (0..random.usize(1..8)).map(|_| random.u8(1..9).into()).collect();
            let by_load = loads.iter().enumerate().map(|(slot, load)| (load.to_bits(), slot));
            let wanted = f64::from(random.u8(1..19)) / 2.0;
            let distance = |slot: &usize| (loads[*slot] - wanted).abs();
            let all = 0..loads.len();
            let expected = all.min_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.cmp(b)));
            assert_eq!(closest(&by_load.collect(), wanted), expected, "{loads:?}, {wanted}");
        }
    }
}
