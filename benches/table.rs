//! Tables: building, lookups, scans, merges, filters; 16-byte random keys, 100-byte values.
//!
//! `cargo bench --features testing --bench table`. Each figure is for a whole pass; divide by the
//! elements that criterion prints as throughput.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use esker::internals::table::{BenchBlock, BenchFilter, OpenTable, Tables, hash};
use esker::{Filter, ReadMode};

/// A table of about 32 MiB.
const TABLE_ENTRIES: usize = 270_000;
/// About 256 MiB, more than any cache.
const COLD_ENTRIES: usize = 2_100_000;
const FILTERS: [(&str, Filter); 3] = [
    ("none", Filter::None),
    ("bloom", Filter::Bloom { bits_per_key: 10 }),
    ("fuse", Filter::BinaryFuse8),
];

/// Sorted random keys, each with a seqno, and bytes to cut values out of.
struct Data {
    keys: Vec<([u8; 16], u64)>,
    bytes: Vec<u8>,
}

impl Data {
    fn new(count: usize) -> Data {
        let mut random = fastrand::Rng::with_seed(count as u64);
        let mut keys: Vec<_> =
            (0..count as u64).map(|n| (random.u128(..).to_be_bytes(), n)).collect();
        keys.sort_unstable();
        keys.dedup_by_key(|key| key.0);
        // Runs of 50 equal bytes and 50 random ones: compressible by half.
        let bytes = (0..1 << 20).map(|n| if n / 50 % 2 == 0 { b'a' } else { random.u8(..) });
        Data { keys, bytes: bytes.collect() }
    }

    /// Every `step`-th entry from `first` on.
    fn entries(&self, first: usize, step: usize) -> impl Iterator<Item = (&[u8], u64, &[u8])> {
        let keys = self.keys.iter().enumerate().skip(first).step_by(step);
        keys.map(|(n, (key, seqno))| {
            let at = n * 37 % (self.bytes.len() - 100);
            (key.as_slice(), *seqno, &self.bytes[at..at + 100])
        })
    }
}

fn build(criterion: &mut Criterion) {
    let data = Data::new(TABLE_ENTRIES);
    let mut group = criterion.benchmark_group("build");
    group.sample_size(10).throughput(Throughput::Elements(TABLE_ENTRIES as u64));
    for (name, filter) in FILTERS {
        for lz4 in [false, true] {
            let name = format!("{name}{}", if lz4 { "+lz4" } else { "" });
            group.bench_function(name, |bencher| {
                bencher.iter_batched(
                    || tempfile::tempdir().unwrap(),
                    |folder| {
                        let tables = Tables::new(folder.path(), 0);
                        let entries = data.entries(0, 1);
                        tables.build(1, lz4, filter, ReadMode::Mapped, entries).unwrap();
                        folder
                    },
                    BatchSize::PerIteration,
                );
            });
        }
    }
}

fn read(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let tables = Tables::new(folder.path(), 512 << 20);
    for (size, count) in [("1 MiB", 8_000), ("256 MiB", COLD_ENTRIES)] {
        let data = Data::new(count);
        for (how, mode, lz4) in [
            ("mapped", ReadMode::Mapped, false),
            ("cached", ReadMode::Pread, false),
            ("lz4", ReadMode::Mapped, true),
        ] {
            let number = count as u64 + u64::from(lz4) + 2 * u64::from(mode == ReadMode::Pread);
            let entries = data.entries(0, 1);
            let table = tables.build(number, lz4, Filter::BinaryFuse8, mode, entries).unwrap();
            table.scan().unwrap();
            let mut group = criterion.benchmark_group(format!("read {size} {how}"));
            let mut random = fastrand::Rng::with_seed(7);
            group.throughput(Throughput::Elements(1)).bench_function("get", |bencher| {
                bencher.iter_batched(
                    || data.keys[random.usize(..data.keys.len())].0,
                    |key| table.get(&key).unwrap(),
                    BatchSize::SmallInput,
                );
            });
            group.sample_size(10).throughput(Throughput::Elements(count as u64));
            group.bench_function("scan", |bencher| bencher.iter(|| table.scan().unwrap()));
            group.bench_function("compaction scan", |bencher| {
                bencher.iter(|| table.compaction_scan().unwrap());
            });
            group.throughput(Throughput::Elements(1)).bench_function("open", |bencher| {
                bencher.iter(|| tables.open_again(&table, mode).unwrap());
            });
        }
    }
}

fn merge(criterion: &mut Criterion) {
    let data = Data::new(400_000);
    let mut group = criterion.benchmark_group("merge");
    group.sample_size(10).throughput(Throughput::Elements(data.keys.len() as u64));
    for count in [1, 2, 4, 8, 16] {
        let folder = tempfile::tempdir().unwrap();
        let tables = Tables::new(folder.path(), 0);
        let build = |n| {
            let entries = data.entries(n, count);
            tables.build(n as u64 + 1, false, Filter::None, ReadMode::Mapped, entries).unwrap()
        };
        let sources: Vec<OpenTable> = (0..count).map(build).collect();
        group.bench_function(format!("scan {count}"), |bencher| {
            bencher.iter(|| OpenTable::merged_scan(&sources).unwrap());
        });
        let mut number = 100;
        group.bench_function(format!("compact {count}"), |bencher| {
            bencher.iter(|| {
                number += 1;
                let bytes = tables.compact(&sources, number, Filter::BinaryFuse8).unwrap();
                std::fs::remove_file(folder.path().join(format!("{number:06}.table"))).unwrap();
                bytes
            });
        });
    }
}

fn filter(criterion: &mut Criterion) {
    let data = Data::new(TABLE_ENTRIES);
    let hashes: Vec<u64> = data.keys.iter().map(|(key, _)| hash(key)).collect();
    for (name, kind) in &FILTERS[1..] {
        let mut group = criterion.benchmark_group(format!("filter {name}"));
        group.throughput(Throughput::Elements(hashes.len() as u64)).sample_size(10);
        group.bench_function("build", |bencher| bencher.iter(|| BenchFilter::new(*kind, &hashes)));
        let filter = BenchFilter::new(*kind, &hashes);
        let probe = |hashes: &[u64]| hashes.iter().filter(|&&h| filter.may_contain(h)).count();
        group.bench_function("hit", |bencher| bencher.iter(|| black_box(probe(&hashes))));
        let others: Vec<u64> = hashes.iter().map(|hash| hash.rotate_left(17)).collect();
        group.bench_function("miss", |bencher| bencher.iter(|| black_box(probe(&others))));
    }
}

/// One search in a block of about 4 KiB that is in the cache.
fn block(criterion: &mut Criterion) {
    let data = Data::new(36);
    let block = BenchBlock::new(data.entries(0, 1));
    let mut next = 0;
    criterion.bench_function("block/search", |bencher| {
        bencher.iter(|| {
            next = (next + 7) % data.keys.len();
            black_box(block.search(&data.keys[next].0))
        });
    });
}

criterion_group!(benches, build, read, merge, filter, block);
criterion_main!(benches);
