//! The heaviest keys of a stream, with bounds, in little memory: the space-saving sketch of Metwally,
//! Agrawal and El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams"
//! (2005), with weights.
//!
//! A sketch has so many *counters*, each for one key. A key without one takes over that of the lightest
//! key, and begins with its count, which it may not deserve: that is its *error*. So of a stream of
//! weight N and a sketch of m counters
//!
//! - the weight of a key lies between its count less its error, and its count;
//! - no error is above N / m, and every key that is heavier than that has a counter.
//!
//! [`HeavyKeys`] divides the keys among several sketches by their hash, so that threads do not meet at
//! one lock; the bounds then hold of each key's own sketch. It forgets ([`HeavyKeys::fade`]): counts,
//! errors and N are all multiplied by the same factor, and the bounds hold of the faded weights.
//!
//! Slots need none of this: there are few enough of them to count each ([`crate::shard::rates`]).

use std::collections::HashMap;

use crate::key;
use crate::runtime::Mutex;

/// Keys are divided among so many sketches.
const STRIPES: usize = 8;
/// Counters of each. The lightest is found by looking at all of them, only when a key has none.
const COUNTERS: usize = 32;
/// Of longer keys only so much is kept and told apart.
const KEY_BYTES_KEPT: usize = 256;

/// A heavy key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Heavy {
    /// The key, or its first 256 bytes.
    pub key: Box<[u8]>,
    /// Its weight is not above this, and below it by the error at most.
    pub count: f64,
    pub error: f64,
}

impl Heavy {
    /// The weight that it has at least.
    pub fn certain(&self) -> f64 {
        self.count - self.error
    }
}

/// See the module's comment.
pub(crate) struct Sketch {
    counters_max: usize,
    counters: Vec<Heavy>,
    /// Where each key's counter is.
    places: HashMap<Box<[u8]>, usize>,
}

impl Sketch {
    /// A sketch of so many counters, at least one.
    pub fn new(counters_max: usize) -> Sketch {
        assert!(counters_max > 0);
        Sketch { counters_max, counters: Vec::new(), places: HashMap::new() }
    }

    /// Adds to the weight of a key.
    pub fn note(&mut self, key: &[u8], weight: f64) {
        if let Some(at) = self.places.get(key) {
            self.counters[*at].count += weight;
            return;
        }
        let at = match self.counters.len() < self.counters_max {
            true => {
                self.counters.push(Heavy { key: key.into(), count: 0.0, error: 0.0 });
                self.counters.len() - 1
            }
            false => {
                let at = self.lightest();
                let counter = &mut self.counters[at];
                self.places.remove(&counter.key);
                counter.key = key.into();
                counter.error = counter.count;
                at
            }
        };
        self.counters[at].count += weight;
        self.places.insert(key.into(), at);
    }

    fn lightest(&self) -> usize {
        let counts = self.counters.iter().enumerate();
        let lightest = counts.min_by(|a, b| a.1.count.total_cmp(&b.1.count));
        lightest.map(|(at, _)| at).expect("a sketch that is full has counters")
    }

    /// Multiplies all weights by `factor`.
    pub fn fade(&mut self, factor: f64) {
        for counter in &mut self.counters {
            counter.count *= factor;
            counter.error *= factor;
        }
    }
}

/// The heaviest keys that several threads count. See the module's comment.
pub(crate) struct HeavyKeys {
    sketches: [Mutex<Sketch>; STRIPES],
}

impl Default for HeavyKeys {
    fn default() -> HeavyKeys {
        HeavyKeys { sketches: std::array::from_fn(|_| Mutex::new(Sketch::new(COUNTERS))) }
    }
}

impl HeavyKeys {
    /// Adds to the weight of a key.
    pub fn note(&self, key: &[u8], weight: u64) {
        let key = &key[..key.len().min(KEY_BYTES_KEPT)];
        let stripe = (key::hash(key) >> 32) as usize % STRIPES;
        self.sketches[stripe].lock().note(key, weight as f64);
    }

    /// Multiplies all weights by `factor`, below 1: what was heavy once need not be now.
    pub fn fade(&self, factor: f64) {
        self.sketches.iter().for_each(|sketch| sketch.lock().fade(factor));
    }

    /// The `count` heaviest keys, the heaviest first, and the weight of all keys together.
    pub fn heaviest(&self, count: usize) -> (Vec<Heavy>, f64) {
        let counters = self.sketches.iter().flat_map(|sketch| sketch.lock().counters.clone());
        let mut counters: Vec<Heavy> = counters.collect();
        let total = counters.iter().map(|heavy| heavy.count).sum();
        // A key that has just taken over a counter has nothing of its own.
        counters
            .sort_by(|a, b| b.certain().total_cmp(&a.certain()).then_with(|| a.key.cmp(&b.key)));
        counters.truncate(count);
        (counters, total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws key numbers with weights like 1/n, and some at random.
    fn stream(random: &mut fastrand::Rng, length: usize) -> Vec<([u8; 4], u64)> {
        let one = |random: &mut fastrand::Rng| {
            let number = match random.u8(..4) {
                0 => random.u32(..5000),
                _ => (5000f64.powf(random.f64())) as u32,
            };
            (number.to_be_bytes(), random.u64(1..20))
        };
        (0..length).map(|_| one(random)).collect()
    }

    #[test]
    fn the_bounds_hold_for_every_key_of_random_streams() {
        for seed in 0..40 {
            let random = &mut fastrand::Rng::with_seed(seed);
            let counters = random.usize(1..100);
            let mut sketch = Sketch::new(counters);
            let mut weights: HashMap<[u8; 4], f64> = HashMap::new();
            let mut total = 0.0;
            let length = random.usize(..4000);
            for (key, weight) in stream(random, length) {
                sketch.note(&key, weight as f64);
                *weights.entry(key).or_default() += weight as f64;
                total += weight as f64;
                if random.u16(..500) == 0 {
                    sketch.fade(0.75);
                    weights.values_mut().for_each(|weight| *weight *= 0.75);
                    total *= 0.75;
                }
            }
            let few = total * 1e-9;
            let bound = total / counters as f64 + few;
            let sum: f64 = sketch.counters.iter().map(|heavy| heavy.count).sum();
            assert!((sum - total).abs() <= few, "{sum} is not {total}");
            for Heavy { key, count, error } in &sketch.counters {
                let weight = weights[&**key];
                assert!(*error <= bound, "seed {seed}: {error} above {bound}");
                assert!(count - error <= weight + few && weight <= count + few, "seed {seed}");
            }
            for (key, weight) in &weights {
                let has_counter = sketch.places.contains_key(&key[..]);
                assert!(has_counter || *weight <= bound, "seed {seed}: {weight} above {bound}");
            }
            assert!(sketch.counters.len() <= counters);
            assert_eq!(sketch.counters.len(), sketch.places.len());
            for (key, at) in &sketch.places {
                assert_eq!(sketch.counters[*at].key, *key);
            }
        }
    }

    #[test]
    fn the_heaviest_come_first_and_fade() {
        let heavy = HeavyKeys::default();
        let random = &mut fastrand::Rng::with_seed(7);
        for (key, weight) in stream(random, 50_000) {
            heavy.note(&key, weight);
            heavy.note(b"hot", weight / 2);
        }
        let (first, total) = heavy.heaviest(3);
        let all: f64 = heavy.heaviest(usize::MAX).0.iter().map(|heavy| heavy.count).sum();
        assert_eq!(total, all);
        assert_eq!(first.len(), 3);
        assert_eq!(&*first[0].key, b"hot");
        assert!(first[0].error < first[0].count / 10.0);
        heavy.fade(0.01);
        (0..5000).for_each(|_| heavy.note(b"new", 16));
        let (now, _) = heavy.heaviest(2);
        assert_eq!((&*now[0].key, &*now[1].key), (&b"new"[..], &b"hot"[..]));
        assert!((now[1].count - first[0].count * 0.01).abs() < 1.0);
    }

    #[test]
    fn long_keys_are_told_apart_by_their_beginning() {
        let heavy = HeavyKeys::default();
        let mut long = vec![1; 1000];
        heavy.note(&long, 5);
        long[999] = 2;
        heavy.note(&long, 5);
        let (found, _) = heavy.heaviest(9);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].key.len(), found[0].count), (256, 10.0));
    }
}
