//! Databases over several shards: what no single engine has. The verbs themselves are tried by
//! `model`, on one, three and eight shards.
//!
//! - `automatic`: slots that move without being asked, in virtual time.
//! - `crash`: crashes at every call, with joint commits, keyspaces that come and go, and moves.
//! - `hot`: counters that are spread over shards.
//! - `faults`: calls that fail, in the same run, and one shard that fails alone.
//! - `sabotage`: every sync, rename and length check that only several shards have left out in turn.
//! - `overload`: only the writers of the shard that has too much to do are told to wait.

mod automatic;
mod crash;
mod faults;
mod hot;
mod overload;
mod sabotage;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use esker::fs::Fs;
use esker::fs::sim::SimFs;
use esker::runtime::Runtime;
use esker::{
    Counter, Db, ErrorKind, EventId, KeyspaceOptions, Options, Partition, ShardedDb,
    ShardedDbBuilder,
};

use crate::finally::Finally;

fn builder(shards: usize) -> ShardedDbBuilder {
    ShardedDb::builder("/db").options(Options::tiny()).shards(shards).slots(64)
}

fn open(fs: &SimFs, shards: usize) -> ShardedDb {
    builder(shards).open_on(Arc::new(fs.clone()), Runtime::threads()).unwrap()
}

fn counters(db: &ShardedDb) -> esker::ShardedKeyspace {
    db.keyspace("counters", KeyspaceOptions::new().merge(Counter::default())).unwrap()
}

#[test]
fn tenants_lie_in_one_shard_and_their_scans_ask_only_that() {
    let fs = SimFs::new();
    let with = || builder(8).partition(Partition::before(b':'));
    let db = with().open_on(Arc::new(fs.clone()), Runtime::threads()).unwrap();
    for tenant in 0..20 {
        let mut batch = db.batch();
        for item in 0..10 {
            batch.put(&db, format!("t{tenant}:{item}"), "x");
        }
        assert_eq!(batch.shard_count(), 1);
        batch.commit().unwrap();
    }
    assert_eq!(db.prefix("t7:").count(), 10);
    assert_eq!(db.range("t7:3".."t7:6").count(), 3);
    assert_eq!(db.iter().count(), 200);
    let keys: Vec<_> = db.iter().rev().map(|entry| entry.unwrap().0.to_vec()).collect();
    assert!(keys.is_sorted_by(|a, b| a > b));
    drop(db);
    let other = builder(8).partition(Partition::before(b'/'));
    let refused = other.open_on(Arc::new(fs.clone()), Runtime::threads()).unwrap_err();
    assert_eq!(refused.kind(), &ErrorKind::InvalidArgument);
    // What was persisted is known.
    assert_eq!(open(&fs, 1).prefix("t7:").count(), 10);
}

#[test]
fn guards_hold_over_several_shards() {
    let db = open(&SimFs::new(), 8);
    for key in 0..16 {
        db.put(format!("k{key}"), "0").unwrap();
    }
    let mut batch = db.batch();
    for key in 0..16 {
        batch.require_value(&db, format!("k{key}"), "0").put(&db, format!("k{key}"), "1");
    }
    assert!(batch.shard_count() > 4);
    batch.commit().unwrap();
    let before = db.snapshot();
    let mut batch = db.batch();
    batch.put(&db, "k1", "2").put(&db, "k2", "2").require_absent(&db, "k15");
    assert_eq!(batch.commit().unwrap_err().kind(), &ErrorKind::Conflict);
    assert_eq!(&*db.get("k1").unwrap().unwrap(), b"1");
    batch.clear();
    batch.require_unchanged(&db, "k3", &before).require_unchanged(&db, "k4", &before);
    batch.put(&db, "k3", "2").put(&db, "k4", "2").commit().unwrap();
    batch.require_unchanged(&db, "k3", &before).put(&db, "k4", "3");
    assert_eq!(batch.commit().unwrap_err().kind(), &ErrorKind::Conflict);
    assert_eq!(&*before.get("k3").unwrap().unwrap(), b"1");
    assert_eq!(db.put_if_absent("k3", "9").unwrap_err().kind(), &ErrorKind::Conflict);
    db.compare_and_swap("k3", Some(b"2"), None).unwrap();
    assert_eq!(db.get("k3").unwrap(), None);
}

/// Every event once, though its slot moves in between.
#[test]
fn events_take_effect_once_wherever_their_tokens_are() {
    let fs = SimFs::new();
    let db = open(&fs, 3);
    let counts = counters(&db);
    let commit = |db: &ShardedDb, counts: &esker::ShardedKeyspace, source: u64, id: u64| {
        let (source, id) = (format!("source{source}"), id.to_string());
        let mut batch = db.batch();
        // Most of these lie in another shard than the token.
        batch.merge(counts, format!("{source}/a"), 1).merge(counts, format!("{source}/b"), 1);
        batch.commit_once(EventId::new(&source, &id)).unwrap().is_duplicate()
    };
    for source in 0..10 {
        for id in 0..5 {
            assert!(!commit(&db, &counts, source, id));
        }
        let mut batch = db.batch();
        batch.merge(&counts, format!("source{source}/a"), 1);
        let name = format!("growing{source}");
        assert!(!batch.commit_once(EventId::growing(&name, 7)).unwrap().is_duplicate());
    }
    let again = |db: &ShardedDb, counts: &esker::ShardedKeyspace| {
        for source in 0..10 {
            for id in 0..5 {
                assert!(commit(db, counts, source, id), "{source} {id}");
            }
            let mut batch = db.batch();
            batch.merge(counts, format!("source{source}/a"), 1);
            let name = format!("growing{source}");
            assert!(batch.commit_once(EventId::growing(&name, 7)).unwrap().is_duplicate());
            let value = counts.get(format!("source{source}/a")).unwrap().unwrap();
            assert_eq!(Counter::decode(&value), Some(6));
        }
    };
    again(&db, &counts);
    db.split(0).unwrap();
    db.split(1).unwrap();
    db.add_shard(None).unwrap();
    db.wait_for_moves().unwrap();
    assert_eq!(db.shard_count(), 6);
    again(&db, &counts);
    db.close().unwrap();
    let db = open(&fs, 1);
    again(&db, &counters(&db));
}

/// Of two writes of one thread, to two shards, a snapshot never sees only the second.
#[test]
fn a_snapshot_sees_what_was_acknowledged_before() {
    let db = open(&SimFs::new(), 3);
    let (a, b) = ("a", (0..).map(|n| format!("b{n}")));
    let home = db.shard_of(a).unwrap();
    let b = b.into_iter().find(|key| db.shard_of(key).unwrap() != home).unwrap();
    let stop = AtomicBool::new(false);
    let number = |value: Option<esker::Slice>| -> u64 {
        value.map_or(0, |value| std::str::from_utf8(&value).unwrap().parse().unwrap())
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _end = Finally(|| stop.store(true, Ordering::Relaxed));
            for n in 1..4_000u64 {
                db.put(a, n.to_string()).unwrap();
                db.put(&b, n.to_string()).unwrap();
            }
        });
        while !stop.load(Ordering::Relaxed) {
            let snapshot = db.snapshot();
            let (first, second) =
                (number(snapshot.get(a).unwrap()), number(snapshot.get(&b).unwrap()));
            assert!(second <= first && first <= second + 1, "{first} {second}");
        }
    });
}

/// Counters that several threads merge into while shards are split under them: nothing is lost and
/// nothing counted twice, and every scan is of one moment.
#[test]
fn moves_go_on_under_readers_and_writers() {
    const THREADS: u64 = 3;
    let fs = SimFs::new();
    let db = open(&fs, 2);
    let counts = counters(&db);
    let (stop, merged) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (db, counts, stop, merged) = (&db, &counts, &stop, &merged);
            scope.spawn(move || {
                let mut n = thread;
                while !stop.load(Ordering::Relaxed) {
                    let mut batch = db.batch();
                    batch.merge(counts, format!("key{}", n % 97), 1);
                    batch.merge(counts, format!("key{}", n % 53), 1);
                    batch.commit().unwrap();
                    counts.merge(format!("key{}", n % 31), 2).unwrap();
                    db.put(format!("own{thread}"), n.to_string()).unwrap();
                    let own = db.get(format!("own{thread}")).unwrap().unwrap();
                    assert_eq!(&*own, n.to_string().as_bytes(), "one's own write is seen");
                    merged.fetch_add(4, Ordering::Relaxed);
                    n += THREADS;
                }
            });
        }
        let _end = Finally(|| stop.store(true, Ordering::Relaxed));
        for round in 0..6 {
            match round {
                0 | 3 => drop(db.split(round / 3).unwrap()),
                1 | 4 => drop(db.add_shard(None).unwrap()),
                _ => db.rebalance().unwrap(),
            }
            for entry in counts.iter() {
                entry.unwrap();
            }
            db.wait_for_moves().unwrap();
        }
    });
    let sum = |db: &ShardedDb| -> i64 {
        let counts = counters(db);
        let values = counts.iter().map(|entry| Counter::decode(&entry.unwrap().1).unwrap());
        values.sum()
    };
    let expected = merged.load(Ordering::Relaxed) as i64;
    assert_eq!(sum(&db), expected);
    let moved = db.moves();
    assert!(moved.slots_moved > 30 && moved.keys > 0, "{moved:?}");
    assert_eq!(db.shard_count(), 6);
    let stats = db.stats();
    assert!(stats.shards.iter().all(|shard| shard.slot_count > 0), "{stats}");
    db.close().unwrap();
    assert_eq!(sum(&open(&fs, 1)), expected);
}

#[test]
fn a_move_that_is_given_up_leaves_everything_where_it_was() {
    let db = open(&SimFs::new(), 2);
    for n in 0..400 {
        db.put(format!("key{n}"), "x".repeat(20)).unwrap();
    }
    let homes: Vec<_> = (0..400).map(|n| db.shard_of(format!("key{n}")).unwrap()).collect();
    // So slowly that it does not end by itself.
    db.set_move_rate(Some(500));
    db.split(0).unwrap();
    db.abort_moves();
    db.set_move_rate(None);
    db.wait_for_moves().unwrap();
    let after: Vec<_> = (0..400).map(|n| db.shard_of(format!("key{n}")).unwrap()).collect();
    assert_eq!(homes, after);
    assert_eq!(db.iter().count(), 400);
    let stats = db.stats();
    assert_eq!(stats.shards[2].slot_count, 0);
}

#[test]
fn shards_are_told_apart() {
    let fs = SimFs::new();
    let db = open(&fs, 3);
    db.put("a", "b").unwrap();
    db.close().unwrap();
    let alone =
        Db::open_on(Arc::new(fs.clone()), Runtime::threads(), "/db/shard-001", Options::tiny());
    assert_eq!(alone.unwrap_err().kind(), &ErrorKind::InvalidArgument);
    let whole = Db::open_on(Arc::new(fs.clone()), Runtime::threads(), "/db", Options::tiny());
    assert_eq!(whole.unwrap_err().kind(), &ErrorKind::InvalidArgument);
    // Two marks that were mixed up.
    let [a, b] = ["/db/shard-000/SHARD", "/db/shard-001/SHARD"].map(Path::new);
    let bytes = fs.open(b).unwrap().map().unwrap();
    fs.remove(a).unwrap();
    fs.create(a).unwrap().write_at(0, &bytes).unwrap();
    let error = builder(3).open_on(Arc::new(fs.clone()), Runtime::threads()).unwrap_err();
    assert!(error.is_corruption(), "{error}");
    fs.remove(a).unwrap();
    let error = builder(3).open_on(Arc::new(fs.clone()), Runtime::threads()).unwrap_err();
    assert!(error.is_corruption(), "{error}");
}

/// Never an empty database in place of a damaged one.
#[test]
fn a_damaged_slot_map_is_refused_at_every_byte() {
    let fs = SimFs::new();
    let db = open(&fs, 3);
    db.put("a", "b").unwrap();
    db.close().unwrap();
    let path = Path::new("/db/SHARDS");
    let bytes = fs.open(path).unwrap().map().unwrap().to_vec();
    let refuses = |contents: Option<&[u8]>, what: &str| {
        fs.remove(path).unwrap();
        if let Some(contents) = contents {
            fs.create(path).unwrap().write_at(0, contents).unwrap();
        }
        let opened = builder(3).open_on(Arc::new(fs.clone()), Runtime::threads());
        let error = opened.expect_err(what);
        assert!(error.is_corruption(), "{what}: {error}");
        if contents.is_none() {
            fs.create(path).unwrap();
        }
    };
    for length in 0..bytes.len() {
        refuses(Some(&bytes[..length]), &format!("{length} bytes"));
    }
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refuses(Some(&flipped), &format!("bit {bit}"));
    }
    refuses(None, "no file");
    fs.remove(path).unwrap();
    fs.create(path).unwrap().write_at(0, &bytes).unwrap();
    assert_eq!(&*open(&fs, 3).get("a").unwrap().unwrap(), b"b");
}
