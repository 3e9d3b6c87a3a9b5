//! Records as keys and values, and the orders in which they are drawn.
//!
//! A record is a number. Its key is 16 decimal digits: 13 of its group, which has 32 records, and
//! 3 of its place in the group, so that the first 13 are the prefix of 32 keys. Keys sort as their
//! records do. A value is cut from a pool of random bytes.

/// A key.
pub type Key = [u8; 16];

/// Bytes of the prefix that the records of a group have in common.
pub const PREFIX_BYTES: usize = 13;
/// Records of a group.
pub const GROUP_RECORDS: u64 = 32;

/// The key of a record.
pub fn key_of(record: u64) -> Key {
    let mut key = [b'0'; 16];
    write_digits(&mut key[PREFIX_BYTES..], record % GROUP_RECORDS);
    write_digits(&mut key[..PREFIX_BYTES], record / GROUP_RECORDS);
    key
}

/// A key that is nowhere, right behind the one of `record`.
pub fn missing_key_of(record: u64) -> [u8; 17] {
    let mut key = [b'.'; 17];
    key[..16].copy_from_slice(&key_of(record));
    key
}

fn write_digits(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        if number == 0 {
            break;
        }
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// The pool that values are cut from: random, so that nobody could compress them.
pub struct Pool {
    bytes: Vec<u8>,
    value_bytes: usize,
}

impl Pool {
    /// 1 MiB and one value: beyond a core's second-level cache no engine would profit.
    pub fn new(value_bytes: usize, seed: u64) -> Pool {
        let mut bytes = vec![0; value_bytes + (1 << 20)];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        Pool { bytes, value_bytes }
    }

    /// The `number`-th value; they come again after about a mebibyte.
    pub fn value(&self, number: u64) -> &[u8] {
        let places = ((self.bytes.len() - self.value_bytes) / 64) as u64;
        let at = (number.wrapping_mul(0x9e37_79b9) % places) as usize * 64;
        &self.bytes[at..at + self.value_bytes]
    }
}

/// All numbers below a bound in a random order, each once, without a table of them: a Feistel
/// network of four rounds on the next even number of bits, walked until it is within the bound.
#[derive(Clone)]
pub struct Permutation {
    count: u64,
    half_bits: u32,
    rounds: [u64; 4],
}

impl Permutation {
    /// Of the numbers below `count`.
    pub fn new(count: u64, seed: u64) -> Permutation {
        let bits = u64::BITS - count.max(2).saturating_sub(1).leading_zeros();
        let mut rng = fastrand::Rng::with_seed(seed);
        let rounds = std::array::from_fn(|_| rng.u64(..));
        Permutation { count, half_bits: bits.div_ceil(2), rounds }
    }

    /// How many numbers.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The number at `place`, which is below the bound.
    pub fn at(&self, place: u64) -> u64 {
        debug_assert!(place < self.count);
        let mut number = self.shuffle(place);
        while number >= self.count {
            number = self.shuffle(number);
        }
        number
    }

    fn shuffle(&self, number: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (number >> self.half_bits, number & mask);
        for round in self.rounds {
            let mixed = (right ^ round).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (left, right) = (right, left ^ (mixed >> 32) & mask);
        }
        left << self.half_bits | right
    }
}

/// Ranks with Zipf's distribution at 0.99, as YCSB draws them (Gray et al., "Quickly generating
/// billion-record synthetic databases", 1994): rank 0 most often.
#[derive(Clone)]
pub struct Zipf {
    count: f64,
    zeta: f64,
    alpha: f64,
    eta: f64,
}

const THETA: f64 = 0.99;

impl Zipf {
    /// Of so many ranks. Sums up a series of as many terms: 40 ms for 2 million.
    pub fn new(count: u64) -> Zipf {
        let zeta: f64 = (1..=count).map(|rank| (rank as f64).powf(-THETA)).sum();
        let zeta_two = 1.0 + 0.5_f64.powf(THETA);
        let count = count as f64;
        let eta = (1.0 - (2.0 / count).powf(1.0 - THETA)) / (1.0 - zeta_two / zeta);
        Zipf { count, zeta, alpha: 1.0 / (1.0 - THETA), eta }
    }

    /// The next rank.
    pub fn next(&self, rng: &mut fastrand::Rng) -> u64 {
        let draw = rng.f64();
        let scaled = draw * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(THETA) {
            return 1;
        }
        let rank = self.count * (self.eta * draw - self.eta + 1.0).powf(self.alpha);
        (rank as u64).min(self.count as u64 - 1)
    }
}

/// Reads one byte of each cache line of a value.
///
/// The sum is one that no compiler turns into vectors: gathered byte by byte they take so many
/// instructions that a processor sees half as many lines ahead, and reading costs twice as much.
pub fn touch(value: &[u8]) -> u8 {
    value.iter().step_by(64).fold(0, |sum: u8, byte| sum.rotate_left(1) ^ byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_like_records_and_share_the_prefix_of_their_group() {
        assert_eq!(&key_of(0), b"0000000000000000");
        assert_eq!(&key_of(31), b"0000000000000031");
        assert_eq!(&key_of(32 * 62_499 + 31), b"0000000062499031");
        assert!((0..5000).all(|record| key_of(record) < key_of(record + 1)));
        assert!(missing_key_of(40)[..] > key_of(40)[..] && missing_key_of(40)[..] < key_of(41)[..]);
    }

    #[test]
    fn a_permutation_has_every_number_once() {
        for count in [1, 2, 3, 1000, 4097] {
            let order = Permutation::new(count, 7);
            let mut seen: Vec<u64> = (0..count).map(|place| order.at(place)).collect();
            assert!(count < 100 || seen.windows(2).filter(|two| two[0] < two[1]).count() < 2500);
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..count), "{count}");
        }
    }

    #[test]
    fn zipf_prefers_low_ranks_as_much_as_it_should() {
        let (zipf, mut rng) = (Zipf::new(1000), fastrand::Rng::with_seed(1));
        let mut counts = vec![0; 1000];
        (0..100_000).for_each(|_| counts[zipf.next(&mut rng) as usize] += 1);
        // 1 / zeta(1000, 0.99) is 13 %.
        assert!((12_000..14_500).contains(&counts[0]), "{}", counts[0]);
        assert!(counts[0] > counts[1] && counts[1] > counts[10] && counts[10] > counts[500]);
    }

    #[test]
    fn values_have_their_size() {
        let pool = Pool::new(4096, 3);
        assert!((0..100_000).all(|number| pool.value(number).len() == 4096));
        assert_ne!(pool.value(1), pool.value(2));
    }
}
