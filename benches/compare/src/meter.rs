//! One thread's clock, counters and latencies.
//!
//! The clock is read once an operation: the end of one is the beginning of the next. That costs
//! about 25 ns, the same for every engine, and leaves no operation untimed, so that the maximum is
//! one. A latency goes into one histogram, that of the tick; at its end it is added to the others. Rows of a full scan are cheaper than the clock and are timed in groups.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::pauses::Span;

/// How often a thread tells how far it is.
const SAY_EVERY: Duration = Duration::from_millis(5);
/// Operations of at least so long are noted with their time.
const LONG: Duration = Duration::from_millis(1);
/// Not more of them: where most are long, each of them says little.
const LONG_MAX: usize = 1 << 20;
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
    /// End of the last operation; this and what follows in nanoseconds since the start.
    last: u64,
    /// When to say how far it is.
    next: u64,
    tick_end: u64,
    deadline: u64,
    ops_said: u64,
    /// Operations before this tick.
    ops_before: u64,
    /// Latencies in this tick, in nanoseconds, to three digits.
    current: Histogram<u64>,
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
    /// The long operations.
    pub long: Vec<Span>,
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
        let (capped, elapsed) = (false, Duration::ZERO);
        let (long, ticks) = (Vec::new(), Vec::new());
        Tally { latencies: latencies(), ops: 0, capped, elapsed, long, ticks }
    }

    /// Of all threads, which ran in the same time.
    pub fn sum(tallies: Vec<Tally>) -> Tally {
        let mut sum = Tally::new();
        for tally in tallies {
            sum.latencies.add(&tally.latencies).expect("histograms of the same bounds");
            sum.ops += tally.ops;
            sum.capped |= tally.capped;
            sum.elapsed = sum.elapsed.max(tally.elapsed);
            sum.long.extend(&tally.long);
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

/// Up to an hour, in 280 KiB.
fn latencies() -> Histogram<u64> {
    let latencies = Histogram::new_with_bounds(1, 3_600_000_000_000, 3);
    latencies.expect("the bounds are in order and the digits at most 5")
}

fn tick() -> (u64, Histogram<u32>) {
    let latencies = Histogram::new_with_bounds(100, 3_600_000_000_000, 1);
    (0, latencies.expect("the bounds are in order and the digits at most 5"))
}

impl<'a> Meter<'a> {
    /// Starts the clock.
    pub fn start(shared: &'a Shared, limit: Duration) -> Meter<'a> {
        let nanoseconds = |time: Duration| time.as_nanos() as u64;
        Meter {
            shared,
            start: Instant::now(),
            last: 0,
            next: nanoseconds(SAY_EVERY),
            tick_end: nanoseconds(TICK),
            deadline: nanoseconds(limit),
            ops_said: 0,
            ops_before: 0,
            current: latencies(),
            tally: Tally::new(),
        }
    }

    /// Nanoseconds since the start.
    #[inline]
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Ends an operation of so many entries; false if it is time to stop.
    #[inline]
    pub fn end(&mut self, entries: u64) -> bool {
        let now = self.now();
        let latency = now - self.last;
        self.last = now;
        if now >= self.tick_end {
            self.end_tick(now);
        }
        self.current.saturating_record(latency);
        self.tally.ops += entries;
        if latency >= LONG.as_nanos() as u64 {
            self.note_long(latency);
        }
        now < self.next || self.say(now)
    }

    #[cold]
    fn note_long(&mut self, latency: u64) {
        let end = self.start + Duration::from_nanos(self.last);
        if self.tally.long.len() < LONG_MAX {
            self.tally.long.push((end - Duration::from_nanos(latency), end));
        }
    }

    /// Begins an operation now: what was since the last one does not count.
    pub fn skip(&mut self) {
        self.last = self.now();
    }

    /// Adds what was recorded as a tick, and those in which nothing ended.
    #[cold]
    fn end_tick(&mut self, now: u64) {
        while now >= self.tick_end {
            self.tick_end += TICK.as_nanos() as u64;
            let mut tick = tick();
            tick.0 = self.tally.ops - self.ops_before;
            self.ops_before = self.tally.ops;
            for value in self.current.iter_recorded() {
                let latency = value.value_iterated_to();
                tick.1.saturating_record_n(latency, value.count_at_value() as u32);
            }
            self.tally.ticks.push(tick);
            self.tally.latencies.add(&self.current).expect("histograms of the same bounds");
            self.current.clear();
        }
    }

    /// Tells how far this thread is, and asks whether to go on.
    #[cold]
    fn say(&mut self, now: u64) -> bool {
        self.next = now + SAY_EVERY.as_nanos() as u64;
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
        self.end_tick(self.tick_end);
        self.tally.elapsed = Duration::from_nanos(self.last);
        self.tally
    }
}
