//! Counters that are spread over shards: a read is what all merges together are, also while slots move,
//! after crashes at any call, and as of a snapshot; and their parts show nowhere else.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use esker::fs::sim::{Phase, SimFs};
use esker::runtime::Runtime;
use esker::{
    Append, Counter, ErrorKind, HotCounters, KeyspaceOptions, Max, Min, Partition, ShardedDb,
};

use super::{builder, open};
use crate::finally::Finally;

fn hot(db: &ShardedDb) -> HotCounters {
    db.hot_counters("hot", KeyspaceOptions::new().merge(Counter::wrapping())).unwrap()
}

fn value(counters: &HotCounters, key: &str) -> i64 {
    let value = counters.get(key).unwrap();
    value.map_or(0, |value| Counter::decode(&value).expect("a counter"))
}

#[test]
fn a_counter_is_the_sum_of_its_parts_wherever_they_are() {
    for partition in [Partition::whole_key(), Partition::before(b':'), Partition::before(b'c')] {
        let fs = SimFs::new();
        let db = builder(8).partition(partition);
        let db = db.open_on(Arc::new(fs.clone()), Runtime::threads()).unwrap();
        let counters = hot(&db);
        db.put("tenant:other", "x").unwrap();
        assert_eq!(counters.get("tenant:a").unwrap(), None);
        for n in 0..100 {
            counters.merge("tenant:a", n).unwrap();
            counters.merge("tenant:b", -1).unwrap();
        }
        let then = db.snapshot();
        counters.try_merge("tenant:a", 1).unwrap();
        assert_eq!((value(&counters, "tenant:a"), value(&counters, "tenant:b")), (4951, -100));
        let before = counters.get_at(&then, "tenant:a").unwrap().unwrap();
        assert_eq!(Counter::decode(&before), Some(4950));
        // In several shards, and in none of the keyspaces that are not theirs.
        let parts = db.keyspace("hot", KeyspaceOptions::new()).unwrap();
        let keys: Vec<_> = parts.iter().map(|entry| entry.unwrap().0).collect();
        let shards: std::collections::BTreeSet<_> =
            keys.iter().map(|key| db.shard_of(key).unwrap()).collect();
        assert!(keys.len() == 32 && shards.len() > 4, "{} keys in {shards:?}", keys.len());
        assert_eq!(db.iter().count(), 1);
        counters.delete("tenant:a").unwrap();
        assert_eq!(counters.get("tenant:a").unwrap(), None);
        assert_eq!(value(&counters, "tenant:b"), -100);
        drop((parts, counters, then));
        db.close().unwrap();
    }
}

#[test]
fn only_operators_that_fold_in_any_order_are_taken() {
    let db = open(&SimFs::new(), 3);
    let options = KeyspaceOptions::new;
    for refused in [
        options(),
        options().merge(Append),
        options().merge(Counter::saturating()),
        options().merge(Counter::checked()),
    ] {
        let error = db.hot_counters("new", refused).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
        assert_eq!(db.keyspace_names(), ["default"], "nothing was made");
    }
    db.keyspace("texts", options().merge(Append)).unwrap();
    assert!(db.hot_counters("texts", options()).is_err());
    let (max, min) = (options().merge(Max), options().merge(Min));
    let (max, min) = (db.hot_counters("max", max).unwrap(), db.hot_counters("min", min).unwrap());
    for n in [3, -7, 40, 12, 5] {
        max.merge("k", n).unwrap();
        min.merge("k", n).unwrap();
    }
    assert_eq!((value(&max, "k"), value(&min, "k")), (40, -7));
    // Opened again, the operator is known.
    assert_eq!(value(&db.hot_counters("max", options()).unwrap(), "k"), 40);
    assert_eq!(max.merge("k", "no number").unwrap_err().kind(), &ErrorKind::InvalidArgument);
}

/// In a batch a counter is merged into where the batch goes anyway, if it has a part there.
#[test]
fn a_batch_does_not_go_over_more_shards_for_a_counter() {
    let db = open(&SimFs::new(), 3);
    let counters = hot(&db);
    for n in 0..50 {
        let mut batch = db.batch();
        batch.put(&db, format!("key{n}"), "x");
        counters.merge_in(&mut batch, "all", 1);
        assert_eq!(batch.shard_count(), 1);
        batch.commit().unwrap();
    }
    let mut batch = db.batch();
    counters.merge_in(&mut batch, "all", 1);
    batch.commit().unwrap();
    assert_eq!(value(&counters, "all"), 51);
}

#[test]
fn nothing_is_lost_or_doubled_while_slots_move() {
    let fs = SimFs::new();
    let db = open(&fs, 3);
    let counters = hot(&db);
    let (added, left) = (AtomicI64::new(0), AtomicU64::new(3));
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (counters, added, left, db) = (&counters, &added, &left, &db);
            scope.spawn(move || {
                let _end = Finally(|| _ = left.fetch_sub(1, Ordering::SeqCst));
                for n in 0..1500 {
                    if n % 3 == 0 {
                        let mut batch = db.batch();
                        batch.put(db, format!("{thread}-{n}"), "x");
                        counters.merge_in(&mut batch, "one", n);
                        batch.commit().unwrap();
                    } else {
                        counters.merge("one", n).unwrap();
                    }
                    added.fetch_add(n, Ordering::SeqCst);
                }
            });
        }
        let mut splits = 0;
        while left.load(Ordering::SeqCst) > 0 {
            let before = added.load(Ordering::SeqCst);
            let found = value(&counters, "one");
            assert!(found >= before, "{found} after {before} were added");
            if splits < 4 {
                db.split(splits).unwrap();
                db.wait_for_moves().unwrap();
                splits += 1;
            }
        }
    });
    assert_eq!(value(&counters, "one"), added.load(Ordering::SeqCst));
    drop(counters);
    db.close().unwrap();
    assert_eq!(value(&hot(&open(&fs, 1)), "one"), added.load(Ordering::SeqCst));
}

/// After a kill the counter is what was merged, and what was begun at most; after a power cut no less than
/// what was on the disk; and every operand is there once, as each is a bit of its own.
#[test]
fn after_a_crash_every_operand_is_there_once_or_not_at_all() {
    let fs = SimFs::new();
    let (merged, durable) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
    let images = Arc::new(Mutex::new(Vec::new()));
    let (sink, to_kill, to_cut) = (images.clone(), merged.clone(), durable.clone());
    fs.on_call(Arc::new(move |disk: &SimFs, phase, call| {
        if phase != Phase::Before && call.changes() {
            // Slots move in a thread of their own: operands may be merged while this one looks.
            let promised = (to_kill.load(Ordering::SeqCst), to_cut.load(Ordering::SeqCst));
            let image = disk.snapshot();
            let begun = 2 * to_kill.load(Ordering::SeqCst) + 1;
            sink.lock().unwrap().push((call.to_string(), promised, begun, image));
        }
    }));
    {
        let db = open(&fs, 3);
        let counters = hot(&db);
        for bit in 0..40 {
            counters.merge("one", 1i64 << bit).unwrap();
            merged.store((2 << bit) - 1, Ordering::SeqCst);
            match bit {
                7 | 23 => {
                    db.sync().unwrap();
                    durable.store((2 << bit) - 1, Ordering::SeqCst);
                }
                11 => drop(db.split(0).unwrap()),
                15 => db.flush().unwrap(),
                30 => db.wait_for_moves().unwrap(),
                _ => {}
            }
        }
    }
    fs.clear_hook();
    let images = std::mem::take(&mut *images.lock().unwrap());
    let mut cases = 0;
    for (index, (call, (merged, durable), begun, image)) in images.iter().enumerate().step_by(5) {
        let survivals = image.survivals(0, 1, index as u64);
        for end in [None, Some(&survivals[index % survivals.len()])] {
            let disk = end.map_or_else(|| image.kill(), |survival| image.crash(survival));
            let db = open(&disk, 3);
            let what = format!("after {call}, {end:?}");
            for pass in 0..2 {
                let found = if db.keyspace_names().contains(&"hot".to_string()) {
                    value(&hot(&db), "one")
                } else {
                    0
                };
                match end {
                    None => assert!(
                        (*merged..=*begun).contains(&found) && found & (found + 1) == 0,
                        "{what}, pass {pass}: {found:b} of {merged:b} to {begun:b}"
                    ),
                    Some(_) => {
                        assert_eq!(found & durable, *durable, "{what}, pass {pass}: {found:b}");
                        assert_eq!(found & !begun, 0, "{what}, pass {pass}: {found:b}");
                    }
                }
                db.wait_for_moves().unwrap();
            }
            cases += 1;
        }
    }
    println!("{} calls, {cases} crashes", images.len());
    assert!(cases > 50);
}
