//! The memtable against `crossbeam_skiplist::SkipMap`, in ns an operation: a million entries of a
//! 16-byte zero-padded decimal key and a 100-byte value.
//!
//! `cargo bench --features testing --bench memtable [-- rounds]`. Other load distorts single
//! figures, so every round measures both and the medians are printed with their ratio.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crossbeam_skiplist::SkipMap;
use esker::internals::memtable::{Pool, Table};

const COUNT: usize = 1_000_000;
const SHORT_SCANS: usize = 100_000;
const VALUE: [u8; 100] = [7; 100];

/// What both offer.
trait Map: Sync {
    fn put(&self, key: &[u8; 16], seqno: u64);
    fn get(&self, key: &[u8; 16]) -> usize;
    /// Bytes seen in `count` entries from `key` on.
    fn scan(&self, key: &[u8; 16], count: usize) -> usize;
    fn scan_back(&self) -> usize;
    fn bytes(&self) -> Option<usize>;
}

impl Map for Table {
    fn put(&self, key: &[u8; 16], seqno: u64) {
        Table::put(self, key, seqno, &VALUE);
    }

    fn get(&self, key: &[u8; 16]) -> usize {
        let mut seen = 0;
        Table::get(self, key, |value| seen += value.len() + value[0] as usize);
        seen
    }

    fn scan(&self, key: &[u8; 16], count: usize) -> usize {
        let mut seen = 0;
        Table::scan(self, key, count, |key, value| seen += key[0] as usize + value[0] as usize);
        seen
    }

    fn scan_back(&self) -> usize {
        let mut seen = 0;
        Table::scan_back(self, |key, value| seen += key[0] as usize + value[0] as usize);
        seen
    }

    fn bytes(&self) -> Option<usize> {
        Some(Table::bytes(self))
    }
}

impl Map for SkipMap<Vec<u8>, Vec<u8>> {
    fn put(&self, key: &[u8; 16], _: u64) {
        self.insert(key.to_vec(), VALUE.to_vec());
    }

    fn get(&self, key: &[u8; 16]) -> usize {
        let entry = SkipMap::get(self, &key[..]).expect("every key was put");
        entry.value().len() + entry.value()[0] as usize
    }

    fn scan(&self, key: &[u8; 16], count: usize) -> usize {
        let range = self.range(key.to_vec()..).take(count);
        range.map(|entry| entry.key()[0] as usize + entry.value()[0] as usize).sum()
    }

    fn scan_back(&self) -> usize {
        self.iter().rev().map(|entry| entry.key()[0] as usize + entry.value()[0] as usize).sum()
    }

    fn bytes(&self) -> Option<usize> {
        None
    }
}

fn keys(rng: &mut fastrand::Rng, ordered: bool) -> Vec<[u8; 16]> {
    let mut numbers: Vec<u64> = (0..COUNT as u64).map(|n| n * 7).collect();
    if !ordered {
        rng.shuffle(&mut numbers);
    }
    let key = |number| format!("{number:016}").into_bytes().try_into().expect("16 digits");
    numbers.into_iter().map(key).collect()
}

fn timed(count: usize, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as f64 / count as f64
}

fn measure<M: Map>(new: impl Fn() -> M, rng: &mut fastrand::Rng) -> Vec<(&'static str, f64)> {
    let random = keys(rng, false);
    let other = keys(rng, false);
    let ordered = keys(rng, true);
    let fill = |map: &M, keys: &[[u8; 16]]| {
        for (seqno, key) in keys.iter().enumerate() {
            map.put(key, seqno as u64 + 1);
        }
    };
    let mut figures = Vec::new();
    let map = new();
    figures.push(("insert, random", timed(COUNT, || fill(&map, &random))));
    let get = || {
        for key in &other {
            black_box(map.get(key));
        }
    };
    figures.push(("get, random", timed(COUNT, get)));
    let scan = || {
        black_box(map.scan(&[0; 16], COUNT));
    };
    figures.push(("scan, an entry", timed(COUNT, scan)));
    let back = || {
        black_box(map.scan_back());
    };
    figures.push(("scan back, an entry", timed(COUNT, back)));
    for (name, count) in [("seek", 1), ("seek and 10 entries", 10), ("seek and 100", 100)] {
        let short = || {
            for key in &other[..SHORT_SCANS] {
                black_box(map.scan(key, count));
            }
        };
        figures.push((name, timed(SHORT_SCANS, short)));
    }
    if let Some(bytes) = map.bytes() {
        figures.push(("bytes an entry", bytes as f64 / COUNT as f64));
    }
    figures.push(("drop, an entry", timed(COUNT, || drop(map))));
    let map = new();
    figures.push(("insert, ordered", timed(COUNT, || fill(&map, &ordered))));
    drop(map);
    let map = new();
    figures.push(("insert, 2 threads, wall", timed(COUNT, || fill_by_two(&map, &random))));
    figures
}

fn fill_by_two(map: &impl Map, keys: &[[u8; 16]]) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1000, Ordering::Relaxed);
                    let Some(some) = keys.get(at..at + 1000) else { return };
                    for (offset, key) in some.iter().enumerate() {
                        map.put(key, (at + offset) as u64 + 1);
                    }
                }
            });
        }
    });
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn main() {
    let rounds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(3);
    let mut rng = fastrand::Rng::with_seed(1);
    let pool = Pool::new(2 << 20, 1 << 30);
    // The first round also fills the pool, as a database that runs has done.
    let mut tables = Vec::new();
    let mut maps = Vec::new();
    for _ in 0..=rounds {
        tables.push(measure(|| Table::new(&pool), &mut rng));
        maps.push(measure(SkipMap::<Vec<u8>, Vec<u8>>::new, &mut rng));
    }
    println!("{:26} {:>10} {:>10} {:>7}", "", "memtable", "SkipMap", "ratio");
    for (name, first) in &tables[0] {
        let of = |rounds: &[Vec<(&str, f64)>]| -> Vec<f64> {
            let named = rounds.iter().skip(1).flatten().filter(|figure| figure.0 == *name);
            named.map(|figure| figure.1).collect()
        };
        let (table, map) = (median(of(&tables)), of(&maps));
        if map.is_empty() {
            println!("{name:26} {table:10.1}");
        } else {
            let map = median(map);
            let ratio = map / table;
            println!("{name:26} {table:10.1} {map:10.1} {ratio:7.1}   (first round {first:.1})");
        }
    }
}
