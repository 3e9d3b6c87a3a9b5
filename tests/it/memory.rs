//! draft
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use esker::{Counter, Db, KeyspaceOptions, Options};

const BUDGET: &str = "ESKER_MEMORY_BUDGET";

fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[derive(Default)]
struct Meter {
    peak: AtomicU64,
    at_peak: Mutex<String>,
    stop: AtomicBool,
}

#[test]
#[ignore = "role"]
fn child() {
    let Ok(budget) = std::env::var(BUDGET) else { return };
    let budget: usize = budget.parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let threads: usize = std::env::var("ESKER_MEMORY_THREADS").map_or(2, |t| t.parse().unwrap());
    let mut options = Options::default();
    options.memory = budget;
    options.threads = 2;
    if std::env::var("PREAD").is_ok() {
        options.read_mode = esker::ReadMode::Pread;
    }
    let before = anonymous_bytes();
    let db = Db::open_with(dir.path(), options).unwrap();
    let counts = db.keyspace("counts", KeyspaceOptions::new().merge(Counter::wrapping())).unwrap();
    let opened = anonymous_bytes();
    eprintln!("opened {}", (opened - before) >> 10);
    let meter = Arc::new(Meter::default());
    let sampler = {
        let (meter, db) = (meter.clone(), db.clone());
        std::thread::spawn(move || {
            while !meter.stop.load(Ordering::Relaxed) {
                let now = anonymous_bytes();
                if now > meter.peak.load(Ordering::Relaxed) + (1 << 20) {
                    meter.peak.store(now, Ordering::Relaxed);
                    let m = db.stats().memory;
                    *meter.at_peak.lock().unwrap() = format!(
                        "memtables {:.1} pool {:.1} cache {:.1} tables {:.1}",
                        m.memtables as f64 / 1048576.0,
                        m.arena_pool as f64 / 1048576.0,
                        m.block_cache as f64 / 1048576.0,
                        m.tables as f64 / 1048576.0
                    );
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        })
    };
    let only = std::env::var("ONLY").ok();
    let phase = |name: &str, run: &dyn Fn()| {
        if only.as_ref().is_some_and(|o| !o.split(',').any(|o| o == name)) {
            return;
        }
        meter.peak.store(0, Ordering::Relaxed);
        let began = Instant::now();
        run();
        std::thread::sleep(Duration::from_millis(20));
        let end = anonymous_bytes().saturating_sub(before) as f64 / 1048576.0;
        eprintln!(
            "{name:>10} {:>6.1?} peak {:>7.1} end {end:>7.1} MiB | {}",
            began.elapsed(),
            meter.peak.load(Ordering::Relaxed).saturating_sub(before) as f64 / 1048576.0,
            meter.at_peak.lock().unwrap()
        );
    };
    let volume = (budget as u64 * 5 / 2).max(200 << 20);
    let parallel = |work: &(dyn Fn(u64) + Sync)| {
        std::thread::scope(|scope| {
            for t in 0..threads as u64 {
                scope.spawn(move || work(t));
            }
        })
    };
    let fill = |bytes: usize, share: u64| {
        parallel(&|t| {
            let mut rng = fastrand::Rng::with_seed(t);
            let mut value = vec![0u8; bytes];
            for _ in 0..volume / share / threads as u64 / (bytes as u64 + 16) {
                rng.fill(&mut value[..bytes / 2]);
                db.put(format!("{:016x}", rng.u64(..)).as_bytes(), &value).unwrap();
            }
        })
    };
    phase("fill", &|| fill(100, 2));
    phase("fill1k", &|| fill(1000, 1));
    phase("settle", &|| db.flush().unwrap());
    phase("compact", &|| db.compact_range::<&[u8]>(..).unwrap());
    phase("reads", &|| {
        parallel(&|t| {
            let mut rng = fastrand::Rng::with_seed(t);
            let mut value = vec![0u8; 100];
            for _ in 0..200_000u64.min(volume / 2 / threads as u64 / 116) {
                rng.fill(&mut value[..50]);
                assert!(db.get(format!("{:016x}", rng.u64(..)).as_bytes()).unwrap().is_some());
            }
        })
    });
    phase("scan", &|| {
        let n = db.iter().count();
        eprintln!("{n} rows");
    });
    phase("merge", &|| {
        parallel(&|t| {
            let mut rng = fastrand::Rng::with_seed(t);
            for _ in 0..volume / 400 / threads as u64 {
                counts.merge(format!("{:08x}", rng.u32(..200_000)).as_bytes(), 1).unwrap();
            }
        })
    });
    phase("large", &|| fill(64 << 10, 1));
    phase("huge", &|| fill((budget / 64).min(3 << 20), 1));
    phase("batches", &|| {
        parallel(&|t| {
            let mut rng = fastrand::Rng::with_seed(t);
            for _ in 0..volume / 4 / threads as u64 / (1000 * 116) {
                let mut batch = db.batch();
                for _ in 0..1000 {
                    batch.put(&db, &rng.u64(..).to_be_bytes(), &[7; 100]);
                }
                batch.commit().unwrap();
            }
        })
    });
    phase("compact2", &|| {
        db.flush().unwrap();
        db.compact_range::<&[u8]>(..).unwrap()
    });
    #[allow(unsafe_code)]
    {
        unsafe extern "C" {
            fn malloc_stats();
            fn malloc_trim(pad: usize) -> i32;
        }
        if std::env::var("STATS").is_ok() {
            unsafe {
                malloc_stats();
            }
            phase("trim", &|| unsafe {
                malloc_trim(0);
            });
        }
    }
    phase("rest", &|| std::thread::sleep(Duration::from_millis(1500)));
    meter.stop.store(true, Ordering::Relaxed);
    sampler.join().unwrap();
}

#[test]
fn obeyed() {
    for budget in [32, 64, 256] {
        eprintln!("budget {budget}");
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "memory::child", "--ignored", "--nocapture"])
            .env(BUDGET, (budget << 20).to_string())
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    }
}
