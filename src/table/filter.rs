//! Filters: from one hash of a user key, whether a table may have the key.
//!
//! ```text
//! kind u32          1 Bloom, 2 binary fuse; sections of another kind are as if there were none
//!
//! 1: the rest       as the crate `bloomfilter` 3 lays it out: version u8 (1), bytes of bits u64,
//!                   hash functions u32, seed of 32 bytes, bits
//! 2: the rest       see `fuse`
//! ```
//!
//! The keys of both are `crate::key::hash` of the user keys, one for each distinct key.
//!
//! Binary fuse is the default: 0.40 % false positives at 9.1 bits a key and 35 ns a probe, where
//! the Bloom filter has 0.83 % at 10 bits and 57 ns, and half its time when cold, because it
//! touches three lines that can be prefetched together. Its fingerprints are used where they lie
//! in the mapping. Bloom takes any keys and is what remains where a binary fuse filter cannot be
//! built.

use bloomfilter::Bloom;
use bytes::Bytes;

use crate::coding::{DecodeError, Decoded, Decoder};
use crate::options::Filter;
use crate::table::fuse::{self, FuseShape};

/// On disk: never renumber.
const KIND_BLOOM: u32 = 1;
/// On disk: never renumber.
const KIND_BINARY_FUSE8: u32 = 2;

const KIND_BYTES: usize = 4;
/// Bloom header: version, bytes of bits, hash functions, seed.
const BLOOM_HEADER_BYTES: usize = 1 + 8 + 4 + 32;
/// More hash functions than the most bits a key (255) call for are damage; they cost time.
const BLOOM_HASHES_MAX: u32 = 177;
/// What a filter of this kind gets if a binary fuse filter cannot be built.
const BLOOM_BITS_INSTEAD: u8 = 10;
/// The two halves must differ: with equal ones the crate's two hashes are one, and the false
/// positives rise to 3.3 %.
const BLOOM_SEED: &[u8; 32] = b"esker bloom 1st.esker bloom 2nd.";

/// What building a filter takes for each key, beside what remains: the hash, and what a binary fuse filter
/// takes to place 1.14 fingerprints.
pub(crate) const BUILD_BYTES_PER_KEY: usize = 34;

/// A filter that has been read from a table.
pub(crate) enum TableFilter {
    /// There is none, or one of a kind that this version does not know.
    None,
    /// On the heap: the crate owns its bits.
    Bloom(Bloom<u64>),
    /// Used where it lies.
    BinaryFuse8 { shape: FuseShape, fingerprints: Bytes },
}

/// Appends the filter section to `out`; false if there is to be none. May reorder `hashes` and
/// drop equal ones.
pub(crate) fn build(kind: Filter, hashes: &mut Vec<u64>, out: &mut Vec<u8>) -> bool {
    match kind {
        Filter::None => false,
        Filter::Bloom { bits_per_key } => {
            put_bloom(bits_per_key, hashes, out);
            true
        }
        Filter::BinaryFuse8 => {
            out.extend_from_slice(&KIND_BINARY_FUSE8.to_le_bytes());
            if !fuse::build(hashes, out) {
                out.truncate(out.len() - KIND_BYTES);
                put_bloom(BLOOM_BITS_INSTEAD, hashes, out);
            }
            true
        }
    }
}

fn put_bloom(bits_per_key: u8, hashes: &[u64], out: &mut Vec<u8>) {
    let bits = hashes.len() * usize::from(bits_per_key.max(1));
    let mut bloom = Bloom::new_with_seed(bits.div_ceil(8).max(1), hashes.len(), BLOOM_SEED)
        .expect("a bit and a key at least");
    for hash in hashes {
        bloom.set(hash);
    }
    out.extend_from_slice(&KIND_BLOOM.to_le_bytes());
    out.extend_from_slice(bloom.as_slice());
}

impl TableFilter {
    /// The filter in a section, whose checksum the caller has compared.
    pub fn decode(section: &Bytes) -> Decoded<TableFilter> {
        let mut decoder = Decoder::new(section);
        match decoder.u32()? {
            KIND_BLOOM => decode_bloom(decoder.rest()),
            KIND_BINARY_FUSE8 => decode_fuse(&section.slice(KIND_BYTES..)),
            _ => Ok(TableFilter::None),
        }
    }

    /// False only if no key of the table has this hash.
    #[inline]
    pub fn may_contain(&self, hash: u64) -> bool {
        match self {
            TableFilter::None => true,
            TableFilter::Bloom(bloom) => bloom.check(&hash),
            TableFilter::BinaryFuse8 { shape, fingerprints } => shape.contains(fingerprints, hash),
        }
    }

    /// Asks for the cache lines that [`TableFilter::may_contain`] is going to read.
    ///
    /// Only a binary fuse filter can say which ones before it has done most of the work: the
    /// places of a Bloom filter come out of two SipHashes, half of the cost of a probe.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        if let TableFilter::BinaryFuse8 { shape, fingerprints } = self {
            for place in shape.places(hash) {
                prefetch(fingerprints, place);
            }
        }
    }

    /// Bytes on the heap, where `mapped` says whether sections lie in a mapping.
    pub fn memory_bytes(&self, mapped: bool) -> usize {
        match self {
            TableFilter::None => 0,
            TableFilter::Bloom(bloom) => bloom.as_slice().len(),
            TableFilter::BinaryFuse8 { fingerprints, .. } => {
                if mapped {
                    0
                } else {
                    fingerprints.len()
                }
            }
        }
    }

    /// The filter's kind and size, for people.
    pub fn describe(&self) -> String {
        match self {
            TableFilter::None => "of an unknown kind".to_owned(),
            TableFilter::Bloom(bloom) => {
                format!("bloom, {} bits, {} hashes", bloom.len(), bloom.number_of_hash_functions())
            }
            TableFilter::BinaryFuse8 { fingerprints, .. } => {
                format!("binary fuse, {} fingerprints", fingerprints.len())
            }
        }
    }
}

fn decode_bloom(bytes: &[u8]) -> Decoded<TableFilter> {
    let mut header = Decoder::new(bytes);
    header.u8()?;
    let bits_bytes = header.u64()?;
    let hashes = header.u32()?;
    if bits_bytes == 0 || bytes.len() <= BLOOM_HEADER_BYTES {
        return Err(DecodeError("a Bloom filter without bits"));
    }
    if hashes > BLOOM_HASHES_MAX {
        return Err(DecodeError("a Bloom filter with too many hashes"));
    }
    Bloom::from_slice(bytes).map(TableFilter::Bloom).map_err(DecodeError)
}

fn decode_fuse(bytes: &Bytes) -> Decoded<TableFilter> {
    let Some((descriptor, _)) = bytes.split_first_chunk() else {
        return Err(DecodeError("a binary fuse filter without its descriptor"));
    };
    let shape = FuseShape::decode(descriptor)?;
    let fingerprints = bytes.slice(descriptor.len()..);
    // Then every place is one: nobody asks again.
    let end = shape.places_count();
    if !shape.segment_bytes.is_power_of_two()
        || shape.mask != shape.segment_bytes - 1
        || shape.segments_bytes == 0
        || shape.segments_bytes & shape.mask != 0
        || end != fingerprints.len() as u64
        || end > u64::from(u32::MAX)
    {
        return Err(DecodeError("a binary fuse filter whose sizes disagree"));
    }
    Ok(TableFilter::BinaryFuse8 { shape, fingerprints })
}

/// Asks for the line that `items` has the item at `place` in, or its beginning, if there is one.
#[inline]
#[cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "independent misses cost 15 times less than dependent ones")
)]
pub(crate) fn prefetch<T>(items: &[T], place: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(item) = items.get(place) {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE, which _mm_prefetch needs, is part of x86_64; the instruction reads nothing
        // and does not fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(item).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (items, place);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(count: u64) -> Vec<u64> {
        (0..count).map(|n| crate::key::hash(&n.to_le_bytes())).collect()
    }

    fn section(kind: Filter, mut hashes: Vec<u64>) -> Bytes {
        let mut out = Vec::new();
        assert!(build(kind, &mut hashes, &mut out));
        Bytes::from(out)
    }

    const KINDS: [Filter; 3] = [
        Filter::Bloom { bits_per_key: 10 },
        Filter::Bloom { bits_per_key: 0 },
        Filter::BinaryFuse8,
    ];

    #[test]
    fn no_key_is_missed() {
        for kind in KINDS {
            for count in [1, 2, 3, 4, 5, 10, 100, 1000, 20_000] {
                let filter = TableFilter::decode(&section(kind, hashes(count))).unwrap();
                for hash in hashes(count) {
                    filter.prefetch(hash);
                    assert!(filter.may_contain(hash), "{kind:?} {count}");
                }
            }
        }
    }

    #[test]
    fn false_positives_are_as_few_as_promised() {
        for (kind, most) in
            [(Filter::Bloom { bits_per_key: 10 }, 1_100), (Filter::BinaryFuse8, 500)]
        {
            let filter = TableFilter::decode(&section(kind, hashes(50_000))).unwrap();
            let others = (1_000_000..1_100_000u64).map(|n| crate::key::hash(&n.to_le_bytes()));
            let found = others.filter(|&hash| filter.may_contain(hash)).count();
            assert!(found < most, "{kind:?}: {found} of 100,000");
        }
    }

    #[test]
    fn equal_hashes_do_no_harm() {
        let mut many = hashes(5_000);
        many.extend(hashes(2_500));
        many.extend(vec![7; 100]);
        for kind in KINDS {
            let filter = TableFilter::decode(&section(kind, many.clone())).unwrap();
            assert!(many.iter().all(|&hash| filter.may_contain(hash)), "{kind:?}");
        }
    }

    #[test]
    fn any_bytes_are_a_filter_or_an_error() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for kind in KINDS {
            let good = section(kind, hashes(50));
            for cut in 0..good.len() {
                let _ = TableFilter::decode(&good.slice(..cut)).map(|f| f.may_contain(1));
            }
            for _ in 0..20_000 {
                let mut bad = good.to_vec();
                for _ in 0..random.usize(1..4) {
                    let at = random.usize(..bad.len().min(60));
                    bad[at] = random.u8(..);
                }
                if let Ok(filter) = TableFilter::decode(&Bytes::from(bad)) {
                    for _ in 0..20 {
                        let hash = random.u64(..);
                        filter.prefetch(hash);
                        filter.may_contain(hash);
                    }
                }
            }
        }
    }

    #[test]
    fn an_unknown_kind_is_no_filter() {
        let filter = TableFilter::decode(&Bytes::from_static(&[9, 0, 0, 0, 1, 2])).unwrap();
        assert!(filter.may_contain(1));
    }
}
