//! Disks that take their time, for every byte that is written or for every sync, in virtual time: the same
//! on every machine.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use esker::fs::intercept::{Call, Interceptor, Verdict};
use esker::runtime::Runtime;

/// Writes one request after the other. All clones are the same disk.
#[derive(Clone, Debug)]
pub struct SlowDisk {
    runtime: Runtime,
    bytes_per_second: f64,
    free_at: Arc<Mutex<Duration>>,
}

impl SlowDisk {
    pub fn new(runtime: &Runtime, bytes_per_second: f64) -> SlowDisk {
        SlowDisk { runtime: runtime.clone(), bytes_per_second, free_at: Arc::default() }
    }
}

impl Interceptor for SlowDisk {
    fn before(&self, call: &Call<'_>) -> Verdict {
        if call.name == "write" {
            let now = self.runtime.now();
            let until = {
                let mut free_at = self.free_at.lock().unwrap();
                let takes = Duration::from_secs_f64(call.bytes as f64 / self.bytes_per_second);
                *free_at = now.max(*free_at) + takes;
                *free_at
            };
            self.runtime.sleep(until - now);
        }
        Verdict::Proceed
    }
}

/// Takes the same time for every sync, and counts those of logs.
#[derive(Clone, Debug)]
pub struct SlowSyncs {
    runtime: Runtime,
    takes: Duration,
    of_logs: Arc<AtomicU64>,
}

impl SlowSyncs {
    pub fn new(runtime: &Runtime, takes: Duration) -> SlowSyncs {
        SlowSyncs { runtime: runtime.clone(), takes, of_logs: Arc::default() }
    }

    pub fn of_logs(&self) -> u64 {
        self.of_logs.load(Ordering::SeqCst)
    }
}

impl Interceptor for SlowSyncs {
    fn before(&self, call: &Call<'_>) -> Verdict {
        if call.name == "sync" {
            let is_log = call.path.extension().is_some_and(|extension| extension == "log");
            self.of_logs.fetch_add(u64::from(is_log), Ordering::SeqCst);
            self.runtime.sleep(self.takes);
        }
        Verdict::Proceed
    }
}
