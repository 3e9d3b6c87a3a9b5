//! A disk that takes its time for every byte that is written, in virtual time: the same on every machine.

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
