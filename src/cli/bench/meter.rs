//! One thread's clock, counters and latencies.
//!
//! The clock is read once an operation: the end of one is the beginning of the next. That costs
//! about 25 ns and leaves no operation untimed, so that the maximum is one; sampling would be
//! cheaper and miss the stalls. Rows of a scan are cheaper than the clock and are timed in groups.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// How often a thread says how far it is and asks whether to stop. Rare enough to cost nothing,
/// often enough for a curve of 100 ms steps.
const SAY_EVERY: Duration = Duration::from_millis(1);

/// What the threads of a workload share.
#[derive(Default)]
pub struct Shared {
    /// Told to every thread to stop: another one failed, or the readers are through.
    pub stop: AtomicBool,
    /// Operations so far, of all threads that count, a millisecond late at most.
    pub ops: AtomicU64,
}

/// See the module's comment.
pub struct Meter<'a> {
    shared: &'a Shared,
    /// Whether this thread's operations are the workload's, not those of the writer beside it.
    counts: bool,
    start: Instant,
    /// End of the last operation.
    last: Instant,
    said: Instant,
    ops_said: u64,
    deadline: Option<Instant>,
    tally: Tally,
}

/// What a thread, or all of a workload, did.
pub struct Tally {
    /// Latencies in nanoseconds, to three digits.
    pub latencies: Histogram<u64>,
    /// The longest operation in nanoseconds.
    pub max_ns: u64,
    /// Operations, or entries.
    pub ops: u64,
    /// Keys and values that they wrote or read.
    pub bytes: u64,
    /// Reads that found their key.
    pub found: u64,
    /// From the common start to the end of the last operation.
    pub elapsed: Duration,
}

impl Tally {
    /// Nothing yet. The histogram reaches to an hour, in 280 KiB.
    pub fn new() -> Tally {
        let latencies = Histogram::new_with_bounds(1, 3_600_000_000_000, 3);
        let latencies = latencies.expect("the bounds are in order and the digits at most 5");
        Tally { latencies, max_ns: 0, ops: 0, bytes: 0, found: 0, elapsed: Duration::ZERO }
    }

    /// Adds something that was timed as a whole.
    pub fn time(&mut self, elapsed: Duration, ops: u64, bytes: u64) {
        let ns = elapsed.as_nanos() as u64;
        self.latencies.saturating_record(ns);
        self.max_ns = self.max_ns.max(ns);
        self.ops += ops;
        self.bytes += bytes;
        self.elapsed += elapsed;
    }

    /// Adds what another thread did in the same time.
    pub fn add(&mut self, other: &Tally) {
        self.latencies.add(&other.latencies).expect("histograms of the same bounds");
        self.max_ns = self.max_ns.max(other.max_ns);
        self.ops += other.ops;
        self.bytes += other.bytes;
        self.found += other.found;
        self.elapsed = self.elapsed.max(other.elapsed);
    }
}

impl<'a> Meter<'a> {
    /// Starts the clock.
    pub fn start(shared: &'a Shared, counts: bool, limit: Option<Duration>) -> Meter<'a> {
        let start = Instant::now();
        let deadline = limit.map(|limit| start + limit);
        let tally = Tally::new();
        Meter { shared, counts, start, last: start, said: start, ops_said: 0, deadline, tally }
    }

    /// Ends an operation of so many entries and bytes; false if it is time to stop.
    pub fn end(&mut self, entries: u64, bytes: u64) -> bool {
        self.end_group(entries, bytes, 1)
    }

    /// Ends a group of `rows` rows that were too fast to time one by one. Each counts with their
    /// mean, but the maximum takes the whole: no row was longer than that.
    pub fn end_rows(&mut self, rows: u64, bytes: u64) -> bool {
        self.end_group(rows, bytes, rows)
    }

    #[inline]
    fn end_group(&mut self, entries: u64, bytes: u64, timings: u64) -> bool {
        let now = Instant::now();
        let ns = now.duration_since(self.last).as_nanos() as u64;
        self.last = now;
        self.tally.latencies.saturating_record_n(ns / timings, timings);
        self.tally.max_ns = self.tally.max_ns.max(ns);
        self.tally.ops += entries;
        self.tally.bytes += bytes;
        let stop = now.duration_since(self.said) >= SAY_EVERY && self.say(now);
        !stop && self.deadline.is_none_or(|deadline| now < deadline)
    }

    /// Counts a read that found its key.
    pub fn found(&mut self) {
        self.tally.found += 1;
    }

    /// Entries so far.
    pub fn ops(&self) -> u64 {
        self.tally.ops
    }

    /// Says how far this thread is; true if it is to stop.
    #[cold]
    fn say(&mut self, now: Instant) -> bool {
        self.said = now;
        if self.counts {
            self.shared.ops.fetch_add(self.tally.ops - self.ops_said, Ordering::Relaxed);
            self.ops_said = self.tally.ops;
        }
        self.shared.stop.load(Ordering::Relaxed)
    }

    /// What the thread did.
    pub fn finish(mut self) -> Tally {
        self.say(self.last);
        self.tally.elapsed = self.last.duration_since(self.start);
        self.tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_timed_and_the_longest_kept() {
        let shared = Shared::default();
        let mut meter = Meter::start(&shared, true, None);
        for _ in 0..10 {
            assert!(meter.end(1, 116));
        }
        assert!(meter.end_rows(64, 64 * 116));
        meter.found();
        let mut tally = meter.finish();
        assert_eq!((tally.ops, tally.bytes, tally.found), (74, 74 * 116, 1));
        assert_eq!(tally.latencies.len(), 74);
        assert_eq!(shared.ops.load(Ordering::Relaxed), 74);
        let other = Meter::start(&shared, false, None);
        tally.add(&other.finish());
        assert_eq!((tally.ops, tally.latencies.len()), (74, 74));
    }

    #[test]
    fn a_thread_stops_when_told_or_at_its_deadline() {
        let shared = Shared::default();
        let mut meter = Meter::start(&shared, true, Some(Duration::ZERO));
        assert!(!meter.end(1, 1));
        let mut meter = Meter::start(&shared, true, None);
        shared.stop.store(true, Ordering::Relaxed);
        while meter.end(1, 1) {}
    }
}
