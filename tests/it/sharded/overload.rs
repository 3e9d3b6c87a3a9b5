//! One shard is written to faster than its disk takes it. Only its writers are told to wait, and what they
//! are told is true: after that time the write goes through, or most of the time has passed.
//!
//! The disk takes its time for every byte and time is virtual, so this is the same on every machine.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use esker::fs::intercept::{Call, Intercepted, Interceptor, Verdict};
use esker::fs::sim::SimFs;
use esker::runtime::{Priority, Runtime};
use esker::{Compression, ErrorKind, Options, ShardedDb};

use crate::slow_disk::SlowDisk;

/// Bytes a second that the disk of each shard writes.
const DISK_RATE: f64 = 20e6;

/// The disk of each shard.
#[derive(Clone, Debug)]
struct Disks([SlowDisk; 3]);

impl Interceptor for Disks {
    fn before(&self, call: &Call<'_>) -> Verdict {
        let path = call.path.to_string_lossy();
        let shard = (0..3).find(|shard| path.contains(&format!("shard-00{shard}")));
        shard.map_or(Verdict::Proceed, |shard: usize| self.0[shard].before(call))
    }
}

#[derive(Debug, Default)]
struct Seen {
    puts: u64,
    refused: u64,
    /// Refused again after the time that they were told to wait.
    refused_again: u64,
    longest: Duration,
    within: u64,
    within_refused: u64,
    batches_refused: u64,
}

#[test]
fn only_writers_of_the_shard_under_load_are_told_to_wait() {
    let runtime = Runtime::stepper(1);
    let disks = Disks([(); 3].map(|()| SlowDisk::new(&runtime, DISK_RATE)));
    let fs = Arc::new(Intercepted::over(Arc::new(SimFs::new()), disks));
    let mut options = Options::default();
    (options.memory, options.threads) = (6 << 20, 2);
    (options.compression, options.table_bytes) = (Compression::None, 256 << 10);
    let db = ShardedDb::builder("/db").options(options).shards(3).slots(64);
    let db = db.open_on(fs, runtime.clone()).unwrap();
    let keys = |shard: usize| -> Vec<String> {
        let all = (0..6000).map(|n| format!("key{n:05}"));
        all.filter(|key| db.shard_of(key).unwrap() == shard).collect()
    };
    let (hot, quiet) = (keys(0), keys(1));
    let done = Duration::from_secs(3);
    let seen = Arc::new(Mutex::new(Seen::default()));
    let mut tasks = Vec::new();
    for writer in 0..3 {
        let (db, clock, seen, hot) = (db.clone(), runtime.clone(), seen.clone(), hot.clone());
        let task = move || {
            let mut n = writer;
            while clock.now() < done {
                let key = &hot[n % hot.len()];
                n += 3;
                let mut waited = false;
                while let Err(error) = db.try_put(key, [7; 1000]) {
                    let ErrorKind::Busy { retry_after, .. } = *error.kind() else {
                        panic!("{error}")
                    };
                    assert!(retry_after > Duration::ZERO);
                    {
                        let mut seen = seen.lock().unwrap();
                        seen.refused += 1;
                        seen.refused_again += u64::from(waited);
                        seen.longest = seen.longest.max(retry_after);
                    }
                    waited = true;
                    clock.sleep(retry_after);
                }
                seen.lock().unwrap().puts += 1;
                if n % 60 < 3 {
                    let began = clock.now();
                    let wait = Duration::from_millis(5);
                    let within = db.put_within(key, [8; 1000], wait);
                    let took = clock.now() - began;
                    assert!(took < wait + Duration::from_millis(5), "{took:?}");
                    let mut seen = seen.lock().unwrap();
                    seen.within += 1;
                    if let Err(error) = within {
                        assert!(error.is_busy(), "{error}");
                        seen.within_refused += 1;
                    }
                }
            }
        };
        tasks.push(runtime.spawn("hot", Priority::Normal, task).unwrap());
    }
    let (quiet_db, quiet_runtime, in_quiet, noted) =
        (db.clone(), runtime.clone(), quiet, seen.clone());
    let hot_key = hot[0].clone();
    let task = move || {
        let mut n = 0;
        while quiet_runtime.now() < done {
            for _ in 0..2 {
                let key = &in_quiet[n % in_quiet.len()];
                n += 1;
                quiet_db.try_put(key, [9; 100]).expect("the quiet shard's writers never wait");
                let wait = Duration::from_millis(1);
                quiet_db.put_within(key, [9; 100], wait).expect("nor do these");
            }
            // A batch with a part in the hot shard is refused as that is, and then nowhere.
            let key = &in_quiet[n % in_quiet.len()];
            let before = quiet_db.get(key).unwrap();
            let mut batch = quiet_db.batch();
            batch.put(&quiet_db, key, "in both").put(&quiet_db, &hot_key, "in both");
            match batch.try_commit() {
                Ok(()) => {}
                Err(error) => {
                    assert!(error.is_busy(), "{error}");
                    assert_eq!(batch.len(), 2, "it still has its operations");
                    assert_eq!(quiet_db.get(key).unwrap(), before);
                    noted.lock().unwrap().batches_refused += 1;
                }
            }
            quiet_runtime.sleep(Duration::from_millis(10));
        }
    };
    tasks.push(runtime.spawn("quiet", Priority::Normal, task).unwrap());
    tasks.into_iter().for_each(esker::runtime::Task::join);
    let seen = Arc::into_inner(seen).unwrap().into_inner().unwrap();
    println!("{seen:?}, pressure {:?}", db.pressure());
    assert!(seen.refused > 50 && seen.batches_refused > 5, "it was not overloaded: {seen:?}");
    assert!(seen.within_refused < seen.within, "{seen:?}");
    // Three writers come back at different times: whoever was told to wait is mostly taken then.
    assert!(seen.refused_again * 2 < seen.refused, "what they were told was not true: {seen:?}");
    assert!(seen.longest < Duration::from_secs(1), "{seen:?}");
    let stalled = |shard: usize| -> Duration {
        let stats = db.stats();
        stats.shards[shard].stats.stalls.iter().map(|stall| stall.time).sum()
    };
    assert_eq!((stalled(1), stalled(2)), (Duration::ZERO, Duration::ZERO));
}
