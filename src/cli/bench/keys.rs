//! Records as keys and values, random draws of records, and which records are there.
//!
//! A record is a number below N. Its key is that number in decimal with zeros in front, as
//! db_bench makes it. A value is cut from a pool of bytes that compress to a half, as db_bench's
//! are: each 100 bytes of the pool are 50 random ones, twice.

/// How many decimal digits a number has.
pub fn digits(number: u64) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

/// The key of one record after the other, made in place.
pub struct Key {
    /// The key, and a `.` behind it.
    bytes: Vec<u8>,
    /// How many digits can be other than zero.
    digits: usize,
}

impl Key {
    /// For records up to and including `records`, which is the end of them as a bound.
    pub fn new(size: usize, records: u64) -> Key {
        let digits = digits(records);
        assert!(digits <= size, "the plan was checked");
        let mut bytes = vec![b'0'; size + 1];
        bytes[size] = b'.';
        Key { bytes, digits }
    }

    /// The key of `record`.
    pub fn of(&mut self, mut record: u64) -> &[u8] {
        let size = self.bytes.len() - 1;
        for digit in self.bytes[size - self.digits..size].iter_mut().rev() {
            *digit = b'0' + (record % 10) as u8;
            record /= 10;
        }
        &self.bytes[..size]
    }

    /// A key that is nowhere, right behind the one of `record`: a `.` follows it.
    pub fn missing(&mut self, record: u64) -> &[u8] {
        self.of(record);
        &self.bytes
    }
}

/// The pool that values are cut from.
pub struct Pool {
    bytes: Vec<u8>,
    value_size: usize,
}

impl Pool {
    /// 1 MiB, or more where a value is larger than that.
    pub fn new(value_size: usize, seed: u64) -> Pool {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut bytes = Vec::new();
        while bytes.len() < value_size + (1 << 20) {
            let half: [u8; 50] = std::array::from_fn(|_| rng.u8(b' '..=b'~'));
            bytes.extend_from_slice(&half);
            bytes.extend_from_slice(&half);
        }
        Pool { bytes, value_size }
    }

    /// Values, one after the other, for one thread.
    pub fn values(&self, thread: usize) -> Values<'_> {
        let at = thread.wrapping_mul(7919 * 100) % (self.bytes.len() - self.value_size);
        Values { pool: self, at }
    }
}

/// See [`Pool::values`].
pub struct Values<'a> {
    pool: &'a Pool,
    at: usize,
}

impl<'a> Values<'a> {
    /// The next value.
    pub fn next(&mut self) -> &'a [u8] {
        let size = self.pool.value_size;
        if self.at + size > self.pool.bytes.len() {
            self.at = 0;
        }
        let value = &self.pool.bytes[self.at..self.at + size];
        self.at += size;
        value
    }
}

/// Records drawn uniformly and with replacement, as db_bench does: N draws meet about 63 % of N
/// records. The same arguments give the same draws, which is how it is known afterwards what a
/// workload wrote, without keeping book while it runs.
pub struct Draws {
    rng: fastrand::Rng,
    records: u64,
}

impl Draws {
    /// The draws of one thread of a workload, the `round`-th of the run. Another workload in the
    /// same round of another run draws others, or it would read in the order of the writes.
    pub fn new(records: u64, seed: u64, workload: u8, round: usize, thread: usize) -> Draws {
        let stream = u64::from(workload) << 48 | (round as u64) << 24 | thread as u64;
        let mixed = (stream + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Draws { rng: fastrand::Rng::with_seed(seed ^ mixed), records }
    }

    /// The next record.
    pub fn next(&mut self) -> u64 {
        self.rng.u64(..self.records)
    }
}

/// Which records are there: a bit for each.
pub struct Live {
    words: Vec<u64>,
}

impl Live {
    /// None of `records` records.
    pub fn none(records: u64) -> Live {
        Live { words: vec![0; records.div_ceil(64) as usize] }
    }

    /// Adds or removes a record.
    pub fn set(&mut self, record: u64, there: bool) {
        let (word, bit) = (&mut self.words[(record / 64) as usize], 1 << (record % 64));
        if there { *word |= bit } else { *word &= !bit }
    }

    /// Whether it is there.
    pub fn has(&self, record: u64) -> bool {
        self.words[(record / 64) as usize] & 1 << (record % 64) != 0
    }

    /// How many are there.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// How many are there of the records in `range`.
    pub fn count_in(&self, range: std::ops::Range<u64>) -> u64 {
        range.filter(|record| self.has(*record)).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_padded_numbers_and_sort_like_them() {
        let mut key = Key::new(16, 2_000_000);
        assert_eq!(key.of(1_999_999), b"0000000001999999");
        assert_eq!(key.of(7), b"0000000000000007");
        assert_eq!(key.missing(7), b"0000000000000007.");
        assert_eq!(key.of(2_000_000), b"0000000002000000");
        assert_eq!(Key::new(8, 99_999_999).of(99_999_999), b"99999999");
        assert_eq!((digits(0), digits(9), digits(10)), (1, 1, 2));
    }

    #[test]
    fn values_have_their_size_and_compress_to_a_half() {
        for size in [0, 1, 100, 3_000_000] {
            let pool = Pool::new(size, 1);
            let mut values = pool.values(3);
            assert!((0..100).all(|_| values.next().len() == size));
        }
        let pool = Pool::new(100, 1);
        let packed = lz4_flex::compress(&pool.bytes[..4096]).len();
        assert!((1800..2600).contains(&packed), "{packed}");
    }

    #[test]
    fn draws_come_again_and_differ_by_workload_round_and_thread() {
        let draw = |workload, round, thread| {
            let mut draws = Draws::new(1 << 40, 42, workload, round, thread);
            [draws.next(), draws.next()]
        };
        assert_eq!(draw(0, 1, 2), draw(0, 1, 2));
        assert_ne!(draw(0, 1, 2), draw(0, 2, 1));
        assert_ne!(draw(0, 0, 1), draw(0, 0, 0));
        assert_ne!(draw(0, 0, 0), draw(1, 0, 0));
    }

    #[test]
    fn live_records_are_counted() {
        let mut live = Live::none(130);
        for record in [0, 63, 64, 129] {
            live.set(record, true);
        }
        live.set(63, false);
        assert!(live.has(129) && !live.has(63));
        assert_eq!((live.count(), live.count_in(1..130)), (3, 2));
    }
}
