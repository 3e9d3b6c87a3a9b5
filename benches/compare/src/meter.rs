//! One thread's clock, counters and latencies.
//!
//! The clock is read once an operation: the end of one is the beginning of the next. That costs
//! about 25 ns, the same for every engine, and leaves no operation untimed, so that the maximum is
//! one. Rows of a full scan are cheaper than the clock and are timed in groups.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// How often a thread tells how far it is.
const SAY_EVERY: Duration = Duration::from_millis(5);
/// Width of a point of the curve.
pub const TICK: Duration = Duration::from_millis(100);

/// What the threads of a workload share.
#[derive(Default)]
pub struct Shared {
    /// Told to every thread to stop: another one failed, or the readers are through.
    pub stop: AtomicBool,
    /// Operations so far, a few milliseconds late.
    pub ops: AtomicU64,
}

/// See the module's comment.
pub struct Meter<'a> {
    shared: &'a Shared,
    start: Instant,
    /// End of the last operation.
    last: Instant,
    said: Instant,
    ops_said: u64,
    tick_end: Instant,
    deadline: Instant,
    tally: Tally,
}

/// What a thread, or all threads of a workload, did.
pub struct Tally {
    /// Latencies in nanoseconds, to three digits.
    pub latencies: Histogram<u64>,
    /// Operations, or entries.
    pub ops: u64,
    /// Whether the time was up before the work was done.
    pub capped: bool,
    /// From the start to the end of the last operation.
    pub elapsed: Duration,
    /// Operations and latencies in nanoseconds, to one digit, of each tick.
    ticks: Vec<(u64, Histogram<u32>)>,
}

/// A tick of all threads.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Point {
    /// End of the tick.
    pub seconds: f64,
    /// Operations a second.
    pub rate: f64,
    /// Microseconds; 0 if nothing ended in the tick.
    pub p99_us: f64,
}

impl Tally {
    fn new() -> Tally {
        // Up to an hour, in 280 KiB.
        let latencies = Histogram::new_with_bounds(1, 3_600_000_000_000, 3);
        let latencies = latencies.expect("the bounds are in order and the digits at most 5");
        let (capped, elapsed) = (false, Duration::ZERO);
        Tally { latencies, ops: 0, capped, elapsed, ticks: vec![tick()] }
    }

    /// Of all threads, which ran in the same time.
    pub fn sum(tallies: Vec<Tally>) -> Tally {
        let mut sum = Tally::new();
        for tally in tallies {
            sum.latencies.add(&tally.latencies).expect("histograms of the same bounds");
            sum.ops += tally.ops;
            sum.capped |= tally.capped;
            sum.elapsed = sum.elapsed.max(tally.elapsed);
            sum.ticks.resize_with(sum.ticks.len().max(tally.ticks.len()), tick);
            for (total, (ops, latencies)) in sum.ticks.iter_mut().zip(&tally.ticks) {
                total.0 += ops;
                total.1.add(latencies).expect("histograms of the same bounds");
            }
        }
        sum
    }

    /// Throughput and latency over time.
    pub fn curve(&self) -> Vec<Point> {
        let whole = (self.elapsed.as_nanos() / TICK.as_nanos()) as usize;
        let point = |(at, (ops, latencies)): (usize, &(u64, Histogram<u32>))| Point {
            seconds: (at + 1) as f64 * TICK.as_secs_f64(),
            rate: *ops as f64 / TICK.as_secs_f64(),
            p99_us: latencies.value_at_quantile(0.99) as f64 / 1000.0,
        };
        // The last tick is cut off by the end.
        self.ticks.iter().take(whole).enumerate().map(point).collect()
    }
}

fn tick() -> (u64, Histogram<u32>) {
    let latencies = Histogram::new_with_bounds(100, 3_600_000_000_000, 1);
    (0, latencies.expect("the bounds are in order and the digits at most 5"))
}

impl<'a> Meter<'a> {
    /// Starts the clock.
    pub fn start(shared: &'a Shared, limit: Duration) -> Meter<'a> {
        let start = Instant::now();
        Meter {
            shared,
            start,
            last: start,
            said: start,
            ops_said: 0,
            tick_end: start + TICK,
            deadline: start + limit,
            tally: Tally::new(),
        }
    }

    /// Ends an operation of so many entries; false if it is time to stop.
    #[inline]
    pub fn end(&mut self, entries: u64) -> bool {
        let now = Instant::now();
        let latency = (now - self.last).as_nanos() as u64;
        self.last = now;
        while now >= self.tick_end {
            self.tick_end += TICK;
            self.tally.ticks.push(tick());
        }
        self.tally.latencies.saturating_record(latency);
        self.tally.ops += entries;
        let tick = self.tally.ticks.last_mut().expect("there is one from the start");
        tick.0 += entries;
        tick.1.saturating_record(latency);
        now - self.said < SAY_EVERY || self.say(now)
    }

    /// Begins an operation now: what was since the last one does not count.
    pub fn skip(&mut self) {
        self.last = Instant::now();
    }

    /// Tells how far this thread is, and asks whether to go on.
    fn say(&mut self, now: Instant) -> bool {
        self.said = now;
        self.shared.ops.fetch_add(self.tally.ops - self.ops_said, Ordering::Relaxed);
        self.ops_said = self.tally.ops;
        if now >= self.deadline {
            self.tally.capped = true;
            return false;
        }
        !self.shared.stop.load(Ordering::Relaxed)
    }

    /// What this thread did.
    pub fn finish(mut self) -> Tally {
        self.tally.elapsed = self.last - self.start;
        self.tally
    }
}
