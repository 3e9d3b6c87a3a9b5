//! Binary fuse filters with three places a key and fingerprints of a byte, after Graf and Lemire, "Binary
//! Fuse Filters: Fast and Smaller Than Xor Filters" (ACM Journal of Experimental Algorithmics, 2022).
//!
//! ```text
//! descriptor      seed u64, segment length u32, its mask u32, segment count times length u32
//! fingerprints    one byte each: (count + 2) segments
//! ```
//!
//! It is the layout of the crate `xorf` 0.13, with which the tests compare. The construction is our own:
//! where two threads build, that crate's takes three times as long (docs/decisions/0023).
//!
//! A hash has a place in each of three neighbouring segments, and a filter has it if the fingerprints at
//! the three, combined, are its own. Building is peeling: a place that only one hash has left is that
//! one's, which is put on a pile and taken from its other places. Once all are on the pile, each is
//! given its fingerprint, from the top of the pile down, so that nothing given before changes.

use crate::coding::{Decoded, Decoder};

pub(super) const DESCRIPTOR_BYTES: usize = 8 + 3 * 4;
/// Segments are no longer than this.
const SEGMENT_MAX: u32 = 1 << 18;
/// So many seeds are tried; more than a few only if hashes are equal, or chosen.
const TRIES: u64 = 64;
/// What of a place's entry in `Peeling::counts` is not the count.
const PLACE_BITS: u32 = 2;
const ONE: u8 = 1 << PLACE_BITS;

/// Where the places of hashes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FuseShape {
    pub seed: u64,
    /// A power of two.
    pub segment_bytes: u32,
    /// One less.
    pub mask: u32,
    /// Of all segments in which a first place may be.
    pub segments_bytes: u32,
}

impl FuseShape {
    pub fn decode(descriptor: &[u8; DESCRIPTOR_BYTES]) -> Decoded<FuseShape> {
        let mut fields = Decoder::new(descriptor);
        Ok(FuseShape {
            seed: fields.u64()?,
            segment_bytes: fields.u32()?,
            mask: fields.u32()?,
            segments_bytes: fields.u32()?,
        })
    }

    fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.seed.to_le_bytes());
        for field in [self.segment_bytes, self.mask, self.segments_bytes] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }

    /// A shape for so many hashes, at most 2^31. The formulas are the paper's, which fitted them to what it
    /// measured; a `shorter` segment is what succeeds where a length has just been doubled.
    fn of(count: usize, shorter: bool) -> FuseShape {
        let ln = (count.max(2) as f64).ln();
        let exponent = if count < 2 { 2 } else { (ln / 3.33f64.ln() + 2.25).floor() as u32 };
        let segment = (1u32 << exponent).min(SEGMENT_MAX) >> u32::from(shorter && exponent > 3);
        let factor = f64::max(1.125, 0.875 + 0.25 * 1_000_000f64.ln() / ln);
        let places = if count < 2 { 0 } else { (count as f64 * factor).round() as u32 };
        let segments = places.div_ceil(segment).saturating_sub(2).max(1);
        let (mask, segments_bytes) = (segment - 1, segments * segment);
        FuseShape { seed: 0, segment_bytes: segment, mask, segments_bytes }
    }

    /// How many places there are.
    pub fn places_count(self) -> u64 {
        u64::from(self.segments_bytes) + 2 * u64::from(self.segment_bytes)
    }

    #[inline]
    fn mix(self, hash: u64) -> u64 {
        let mut mixed = hash.wrapping_add(self.seed);
        mixed = (mixed ^ mixed >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ mixed >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ mixed >> 33
    }

    #[inline]
    fn places_of(self, mixed: u64) -> [usize; 3] {
        let first = ((u128::from(mixed) * u128::from(self.segments_bytes)) >> 64) as u32;
        let second = first + self.segment_bytes;
        let third = second + self.segment_bytes;
        let places =
            [first, second ^ (mixed >> 18) as u32 & self.mask, third ^ mixed as u32 & self.mask];
        places.map(|place| place as usize)
    }

    /// The three places of a hash. All are below [`FuseShape::places_count`] if the segment's length is a
    /// power of two, the mask one less, and the segments' a multiple of it.
    #[inline]
    pub fn places(self, hash: u64) -> [usize; 3] {
        self.places_of(self.mix(hash))
    }

    /// True if these fingerprints are of a filter that has this hash, or look so: 0.4 % do.
    #[inline]
    pub fn contains(self, fingerprints: &[u8], hash: u64) -> bool {
        let mixed = self.mix(hash);
        let [a, b, c] = self.places_of(mixed);
        fingerprint(mixed) == fingerprints[a] ^ fingerprints[b] ^ fingerprints[c]
    }
}

#[inline]
fn fingerprint(mixed: u64) -> u8 {
    (mixed ^ mixed >> 32) as u8
}

/// Appends descriptor and fingerprints of a filter of these hashes; false, with nothing appended, if none is
/// found. Sorts them and drops equal ones if there may be any.
pub(super) fn build(hashes: &mut Vec<u64>, out: &mut Vec<u8>) -> bool {
    if hashes.len() > 1 << 30 {
        return false;
    }
    let mut peeling = Peeling::default();
    for number in 0..TRIES {
        let mut shape = FuseShape::of(hashes.len(), number % 2 == 1);
        // Any numbers do: these are the steps of SplitMix64.
        shape.seed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if peeling.peel(shape, hashes) {
            shape.encode(out);
            let at = out.len();
            out.resize(at + shape.places_count() as usize, 0);
            peeling.give(shape, &mut out[at..]);
            return true;
        }
        if number == 0 {
            // Equal ones can never be peeled; who chooses the keys can choose equal hashes.
            hashes.sort_unstable();
            hashes.dedup();
        }
    }
    false
}

/// Memory of a construction: 24 bytes a hash.
///
/// All of it is written before it is read. Fresh memory that is read first is the kernel's page of zeros, and
/// the write that follows has to tell every processor on which the program runs.
#[derive(Default)]
struct Peeling {
    /// Mixed hashes in the order of their first places, roughly; later the pile.
    hashes: Vec<u64>,
    /// Of each on the pile, which of its places is its own.
    own: Vec<u8>,
    /// Of each place: how many hashes have it, in the upper bits, and which of their places it is for them, in
    /// the lower ones, by exclusive or, as `sums`.
    counts: Vec<u8>,
    /// Of each place: the hashes that have it, by exclusive or. If it is one, that is it.
    sums: Vec<u64>,
    /// Places that had one hash when they were put here.
    alone: Vec<u32>,
}

impl Peeling {
    /// Puts all hashes on the pile; false if that does not succeed.
    fn peel(&mut self, shape: FuseShape, hashes: &[u64]) -> bool {
        self.order(shape, hashes);
        let places = shape.places_count() as usize;
        fill(&mut self.counts, places, 0);
        fill(&mut self.sums, places, 0);
        fill(&mut self.own, hashes.len(), 0);
        let (counts, sums) = (&mut self.counts[..], &mut self.sums[..places]);
        for &mixed in &self.hashes {
            for (which, place) in shape.places_of(mixed).into_iter().enumerate() {
                let Some(more) = counts[place].checked_add(ONE) else { return false };
                counts[place] = more ^ which as u8;
                sums[place] ^= mixed;
            }
        }
        self.alone.clear();
        let lone = counts.iter().enumerate().filter(|(_, count)| **count >> PLACE_BITS == 1);
        self.alone.extend(lone.map(|(place, _)| place as u32));
        let mut piled = 0;
        while let Some(place) = self.alone.pop() {
            let place = place as usize;
            if counts[place] >> PLACE_BITS != 1 {
                continue;
            }
            let (mixed, own) = (sums[place], counts[place] & (ONE - 1));
            self.hashes[piled] = mixed;
            self.own[piled] = own;
            piled += 1;
            for (which, place) in shape.places_of(mixed).into_iter().enumerate() {
                counts[place] = (counts[place] - ONE) ^ which as u8;
                sums[place] ^= mixed;
                if counts[place] >> PLACE_BITS == 1 {
                    self.alone.push(place as u32);
                }
            }
        }
        piled == hashes.len()
    }

    /// Mixes the hashes and puts them into the order of their segments, so that neighbours meet in the cache.
    fn order(&mut self, shape: FuseShape, hashes: &[u64]) {
        let segments = shape.segments_bytes / shape.segment_bytes;
        let shift = u64::BITS - segments.next_power_of_two().ilog2().max(1);
        let mut starts = vec![0usize; (1 << (u64::BITS - shift)) + 1];
        for &hash in hashes {
            starts[(shape.mix(hash) >> shift) as usize + 1] += 1;
        }
        for block in 1..starts.len() {
            starts[block] += starts[block - 1];
        }
        fill(&mut self.hashes, hashes.len(), 0);
        for &hash in hashes {
            let mixed = shape.mix(hash);
            let at = &mut starts[(mixed >> shift) as usize];
            self.hashes[*at] = mixed;
            *at += 1;
        }
    }

    /// Gives each hash its fingerprint. The fingerprints begin as zeros.
    fn give(&self, shape: FuseShape, fingerprints: &mut [u8]) {
        for (&mixed, &own) in self.hashes.iter().zip(&self.own).rev() {
            let places = shape.places_of(mixed);
            // The own one is still 0.
            let all = places.into_iter().fold(fingerprint(mixed), |all, at| all ^ fingerprints[at]);
            fingerprints[places[usize::from(own)]] = all;
        }
    }
}

/// Makes it so many of these values, by writing them.
fn fill<T: Copy>(items: &mut Vec<T>, count: usize, value: T) {
    items.clear();
    items.resize(count, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use xorf::{BinaryFuse8, BinaryFuse8Ref, DmaSerializable, Filter as _, FilterRef};

    fn hashes(count: u64) -> Vec<u64> {
        (0..count).map(|n| crate::key::hash(&n.to_le_bytes())).collect()
    }

    fn built(hashes: &[u64]) -> ([u8; DESCRIPTOR_BYTES], FuseShape, Vec<u8>) {
        let mut out = Vec::new();
        assert!(build(&mut hashes.to_vec(), &mut out));
        let (descriptor, fingerprints) = out.split_first_chunk().unwrap();
        let shape = FuseShape::decode(descriptor).unwrap();
        assert_eq!(fingerprints.len() as u64, shape.places_count());
        (*descriptor, shape, fingerprints.to_vec())
    }

    #[test]
    fn filters_of_the_crate_and_ours_are_read_alike() {
        for count in [1, 2, 3, 7, 50, 1000, 30_000] {
            let (keys, others) = (hashes(count), hashes(100_000));
            let (descriptor, shape, fingerprints) = built(&keys);
            let theirs = BinaryFuse8Ref::from_dma(&descriptor, &fingerprints);
            assert!(others.iter().all(|h| shape.contains(&fingerprints, *h) == theirs.contains(h)));

            let theirs = BinaryFuse8::try_from(&keys).unwrap();
            let mut descriptor = [0; DESCRIPTOR_BYTES];
            theirs.dma_copy_descriptor_to(&mut descriptor);
            let shape = FuseShape::decode(&descriptor).unwrap();
            let fingerprints = theirs.dma_fingerprints();
            assert!(others.iter().all(|h| shape.contains(fingerprints, *h) == theirs.contains(h)));
            assert!(keys.iter().all(|hash| shape.contains(fingerprints, *hash)));
        }
    }

    #[test]
    fn every_number_of_hashes_has_a_filter_soon_and_as_small_as_the_crates() {
        let mut rng = fastrand::Rng::with_seed(11);
        let sizes = (0..300).chain((0..60).map(|n| 300 + n * n * 30)).chain([200_000]);
        let mut tries = Vec::new();
        for count in sizes {
            let keys: Vec<u64> = (0..count).map(|_| rng.u64(..)).collect();
            let (_, shape, fingerprints) = built(&keys);
            assert!(keys.iter().all(|hash| shape.contains(&fingerprints, *hash)), "{count}");
            let theirs = BinaryFuse8::try_from(&keys).unwrap().fingerprints.len();
            assert!(fingerprints.len() <= theirs + theirs / 20, "{count}: {}", fingerprints.len());
            let number = shape.seed.wrapping_mul(0xf1de_83e1_9937_733d);
            tries.push(number);
        }
        println!("tries: {tries:?}");
        assert!(tries.iter().all(|tries| *tries <= 30));
        let all: u64 = tries.iter().sum();
        assert!(all < 3 * tries.len() as u64, "{all} of {}", tries.len());
    }

    #[test]
    fn equal_hashes_are_dropped_and_none_is_lost() {
        for (count, again) in [(1, 1), (2, 1), (100, 100), (5000, 1), (5000, 2500)] {
            let mut keys = hashes(count);
            keys.extend(hashes(again));
            keys.extend([7; 100]);
            let (_, shape, fingerprints) = built(&keys);
            assert!(keys.iter().all(|hash| shape.contains(&fingerprints, *hash)), "{count}");
        }
        let (_, shape, fingerprints) = built(&[]);
        assert!(!shape.contains(&fingerprints, 1));
    }

    #[test]
    fn places_are_those_that_are_read() {
        let keys = hashes(1000);
        let (_, shape, fingerprints) = built(&keys);
        for hash in keys {
            for place in shape.places(hash) {
                let mut other = fingerprints.clone();
                other[place] ^= 0x55;
                assert!(!shape.contains(&other, hash), "{place} is not read");
            }
        }
    }
}
