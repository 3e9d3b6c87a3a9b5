//! The stages of the engine, one at a time and together: appending to the log, the memtable, a
//! commit at both durabilities, point reads and scans of a settled database.
//!
//! `cargo bench --features testing --bench engine`. The stages of a table (block search, filters,
//! merging) are in `table`; the memtable beside a plain skiplist is in `memtable`.

use std::hint::black_box;
use std::path::Path;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use esker::fs::{Fs, RealFs};
use esker::internals::memtable::{Pool, Table};
use esker::{Compression, Db, Durability};

const VALUE: [u8; 100] = [b'v'; 100];
/// A commit of a 16-byte key and a 100-byte value takes so much log.
const RECORD_BYTES: usize = 160;
const RECORDS: u64 = 500_000;

fn key(number: u64) -> [u8; 16] {
    let mut key = [b'0'; 16];
    for (digit, at) in (0..16).rev().enumerate() {
        key[at] = b'0' + (number / 10u64.pow(digit as u32) % 10) as u8;
    }
    key
}

fn open(dir: &Path) -> Db {
    Db::builder(dir).compression(Compression::None).open().unwrap()
}

/// Records copied into a log file, mapped where the file system allows it.
fn log(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let fs = RealFs::new();
    let bytes = 64 << 20;
    let region = fs.create_log(&dir.path().join("000001.log"), bytes).unwrap();
    region.touch(0, bytes);
    let record = [7; RECORD_BYTES];
    let mut offset = 0;
    let mut group = criterion.benchmark_group("log");
    group.throughput(Throughput::Bytes(RECORD_BYTES as u64));
    group.bench_function("append", |bencher| {
        bencher.iter(|| {
            if offset + RECORD_BYTES as u64 > bytes {
                offset = 0;
            }
            region.store(offset, &record).unwrap();
            offset += RECORD_BYTES as u64;
        });
    });
}

fn memtable(criterion: &mut Criterion) {
    let pool = Pool::new(1 << 20, 512 << 20);
    let mut rng = fastrand::Rng::with_seed(1);
    let mut group = criterion.benchmark_group("memtable");
    group.throughput(Throughput::Elements(RECORDS)).sample_size(10);
    for (name, ordered) in [("insert in order", true), ("insert at random", false)] {
        let mut keys: Vec<_> = (0..RECORDS).map(key).collect();
        if !ordered {
            rng.shuffle(&mut keys);
        }
        group.bench_function(name, |bencher| {
            let fill = |table: Table| {
                for (seqno, key) in keys.iter().enumerate() {
                    table.put(key, seqno as u64 + 1, &VALUE);
                }
                table
            };
            bencher.iter_batched(|| Table::new(&pool), fill, BatchSize::PerIteration);
        });
    }
    let table = Table::new(&pool);
    (0..RECORDS).for_each(|number| table.put(&key(number), number + 1, &VALUE));
    group.throughput(Throughput::Elements(1)).bench_function("get", |bencher| {
        bencher.iter(|| table.get(&key(rng.u64(..RECORDS)), |value| _ = black_box(value[0])));
    });
}

fn commit(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let db = open(dir.path());
    let mut rng = fastrand::Rng::with_seed(2);
    let mut group = criterion.benchmark_group("commit");
    group.throughput(Throughput::Elements(1)).bench_function("put", |bencher| {
        bencher.iter(|| db.put(key(rng.u64(..RECORDS)), VALUE).unwrap());
    });
    group.throughput(Throughput::Elements(100)).bench_function("batch of 100", |bencher| {
        bencher.iter(|| {
            let mut batch = db.batch();
            for _ in 0..100 {
                batch.put(&db, key(rng.u64(..RECORDS)), VALUE);
            }
            batch.commit().unwrap();
        });
    });
    group.throughput(Throughput::Elements(1)).bench_function("put to the disk", |bencher| {
        bencher.iter(|| {
            let mut batch = db.batch();
            batch.put(&db, key(rng.u64(..RECORDS)), VALUE);
            batch.commit_with(Durability::Disk).unwrap();
        });
    });
}

fn read(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let db = open(dir.path());
    let mut rng = fastrand::Rng::with_seed(3);
    // Even numbers, so that odd ones are missing.
    for number in 0..RECORDS {
        db.put(key(2 * number), VALUE).unwrap();
    }
    db.flush().unwrap();
    db.settle().unwrap();
    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Elements(1));
    group.bench_function("get", |bencher| {
        bencher.iter(|| db.get_with(key(2 * rng.u64(..RECORDS)), |value| value[50]).unwrap());
    });
    group.bench_function("get what is missing", |bencher| {
        bencher.iter(|| db.contains(key(2 * rng.u64(..RECORDS) + 1)).unwrap());
    });
    group.bench_function("seek", |bencher| {
        let mut cursor = db.cursor();
        bencher.iter(|| cursor.seek(key(rng.u64(..2 * RECORDS - 1))).unwrap());
    });
    group.throughput(Throughput::Elements(RECORDS)).sample_size(10);
    group.bench_function("scan", |bencher| {
        bencher.iter(|| {
            let mut cursor = db.cursor();
            let mut seen = 0;
            cursor.seek_to_first().unwrap();
            while cursor.valid() {
                seen += usize::from(cursor.value()[0]) + cursor.key().len();
                cursor.next().unwrap();
            }
            black_box(seen)
        });
    });
    group.bench_function("scan backward", |bencher| {
        bencher.iter(|| {
            let mut cursor = db.cursor();
            let mut seen = 0;
            cursor.seek_to_last().unwrap();
            while cursor.valid() {
                seen += usize::from(cursor.value()[0]) + cursor.key().len();
                cursor.prev().unwrap();
            }
            black_box(seen)
        });
    });
}

criterion_group!(benches, log, memtable, commit, read);
criterion_main!(benches);
