//! Tells of most keys that a memtable does not have them.
//!
//! A read asks every memtable, and most do not have its key. To find that in the index and a leaf
//! costs four or five cache misses; here it is one, or none: each key sets three bits of one word,
//! and 64 MiB of entries have half a mebibyte of words. Nothing is ever taken out: a memtable that
//! collapsed all versions of a key may be asked in vain.
//!
//! The first entries go into a small part of its own, so that a keyspace with hardly any writes
//! does not hold memory for many. A key is in the part that was current when it was inserted.
//!
//! Parts are memory of the arenas' kind: glibc, seeing half a mebibyte come and go, would keep on the
//! heap whatever is smaller from then on.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::memtable::memory::Words;

/// Bytes of entries for each byte of a part: 8 bits for an entry of 128 bytes.
const ENTRY_BYTES_PER_BYTE: usize = 128;
/// The small part is for so small a fraction of a memtable's bytes.
const SMALL_FRACTION: usize = 512;
/// Words of the smallest part.
const WORDS_MIN: usize = 8;
/// Large parts that are kept for reuse: zeroing them anew costs less than fresh pages.
const KEPT_MAX: usize = 4;

/// How large filters are, and large parts that none uses at the moment.
#[derive(Debug)]
pub(super) struct FilterPool {
    small_words: usize,
    large_words: usize,
    /// Large parts that there are, used and free.
    large_count: AtomicUsize,
    free: Mutex<Vec<Words>>,
}

impl FilterPool {
    /// For memtables that are frozen at about `memtable_bytes`.
    pub fn new(memtable_bytes: usize) -> FilterPool {
        let words = |bytes: usize| (bytes / ENTRY_BYTES_PER_BYTE / size_of::<u64>()).max(WORDS_MIN);
        FilterPool {
            small_words: words(memtable_bytes / SMALL_FRACTION),
            large_words: words(memtable_bytes),
            large_count: AtomicUsize::new(0),
            free: Mutex::default(),
        }
    }

    /// Bytes of all large parts, used and free.
    pub fn bytes(&self) -> usize {
        self.large_count.load(Ordering::Relaxed) * self.large_words * size_of::<u64>()
    }

    fn take(&self) -> Words {
        let kept = self.free.lock().pop();
        kept.unwrap_or_else(|| {
            self.large_count.fetch_add(1, Ordering::Relaxed);
            Words::new(self.large_words)
        })
    }

    fn put(&self, mut part: Words) {
        part.clear();
        let mut free = self.free.lock();
        if free.len() < KEPT_MAX {
            free.push(part);
        } else {
            self.large_count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The filter of one memtable.
#[derive(Debug)]
pub(super) struct Filter {
    pool: Arc<FilterPool>,
    small: Words,
    large: OnceLock<Words>,
}

impl Filter {
    pub fn new(pool: &Arc<FilterPool>) -> Filter {
        Filter {
            pool: Arc::clone(pool),
            small: Words::new(pool.small_words),
            large: OnceLock::new(),
        }
    }

    /// Adds a key, by its hash. Whoever sees what was published after this returned finds it.
    /// `held_bytes` are those of all entries so far.
    #[inline]
    pub fn add(&self, hash: u64, held_bytes: usize) {
        let small_bytes = self.small.len() * size_of::<u64>() * ENTRY_BYTES_PER_BYTE;
        let current = match self.large.get() {
            Some(large) => large,
            None if held_bytes <= small_bytes => &self.small,
            None => self.large.get_or_init(|| self.pool.take()),
        };
        let (word, bits) = (word(current, hash), bits(hash));
        // A look is cheaper than the locked instruction, and a key that is written again and again
        // needs only that.
        if word.load(Ordering::Relaxed) & bits != bits {
            word.fetch_or(bits, Ordering::Relaxed);
        }
    }

    /// False if no key of this hash was added.
    #[inline]
    pub fn may_have(&self, hash: u64) -> bool {
        let bits = bits(hash);
        let has = |part: &Words| word(part, hash).load(Ordering::Relaxed) & bits == bits;
        self.large.get().is_some_and(has) || has(&self.small)
    }

    /// What [`Filter::may_have`] and [`Filter::add`] look at first, to be loaded ahead.
    #[inline]
    pub fn place(&self, hash: u64) -> *const u8 {
        let part = self.large.get().unwrap_or(&self.small);
        std::ptr::from_ref(word(part, hash)).cast()
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        if let Some(large) = self.large.take() {
            self.pool.put(large);
        }
    }
}

/// The word of a hash, by its low half.
#[inline]
fn word(part: &Words, hash: u64) -> &AtomicU64 {
    let index = (u64::from(hash as u32) * part.len() as u64) >> 32;
    &part[index as usize]
}

/// The bits of a hash, by its high half; the highest byte is the slot's tag.
#[inline]
fn bits(hash: u64) -> u64 {
    let bit = |shift: u32| 1 << (hash >> shift & 63);
    bit(32) | bit(38) | bit(44)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::hash;

    fn key(number: u64) -> u64 {
        hash(format!("{number:016}").as_bytes())
    }

    #[test]
    fn keys_of_both_parts_are_found_and_few_others() {
        let pool = Arc::new(FilterPool::new(8 << 20));
        let filter = Filter::new(&pool);
        let count = (8 << 20) / 128;
        for number in 0..count {
            filter.add(key(number), number as usize * 128);
        }
        assert!((0..count).all(|number| filter.may_have(key(number))));
        let small = filter.small.iter().filter(|word| word.load(Ordering::Relaxed) != 0).count();
        assert!(small > 0, "the first keys went into the small part");
        assert_eq!(pool.bytes(), (8 << 20) / 128);
        let wrong = (count..2 * count).filter(|number| filter.may_have(key(*number))).count();
        // 6.8 %: words of eight keys on average, some of twice as many.
        assert!(wrong < count as usize / 12, "{wrong} of {count}");
    }

    #[test]
    fn a_small_memtable_has_no_large_part() {
        let pool = Arc::new(FilterPool::new(64 << 20));
        let filter = Filter::new(&pool);
        filter.add(key(1), 4096);
        assert_eq!(pool.bytes(), 0);
        assert!(filter.may_have(key(1)) && !filter.may_have(key(2)));
    }

    #[test]
    fn a_part_comes_back_empty() {
        let pool = Arc::new(FilterPool::new(1 << 20));
        let filter = Filter::new(&pool);
        (0..1000).for_each(|number| filter.add(key(number), 1 << 20));
        drop(filter);
        assert_eq!(pool.free.lock().len(), 1);
        let filter = Filter::new(&pool);
        filter.add(key(0), 1 << 20);
        assert_eq!(pool.bytes(), 8 << 10, "it is used again");
        assert!(!(1..1000).any(|number| filter.may_have(key(number))));
    }
}
