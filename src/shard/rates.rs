//! Rates: reads and writes a second as moving averages, for each slot, and so for each shard.
//!
//! 1. One operation in [`SAMPLE_EVERY`] is counted, for all of them ([`draw`]): the others pay for one
//!    decrement of a number of their thread's. The distance to the next one is drawn at random, or
//!    a thread that alternates between two verbs would have only one of them counted. The counter of
//!    a slot that is hit n times is off by about 4·√n.
//! 2. Who is drawn adds to the counters of its slot, for all that were not drawn.
//! 3. [`Rates::measure`], called now and then, turns what was counted since into averages, which forget
//!    by e in [`MEMORY`].
//!
//! Sums over slots are exact sums of what was counted, so a slot that moves takes its rate along.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::runtime::Mutex;

/// One operation in so many is counted.
pub(crate) const SAMPLE_EVERY: u64 = 16;
/// What happened so long ago counts a third, e⁻¹, of what happens now.
pub(crate) const MEMORY: Duration = Duration::from_secs(10);
/// More frequent measurings wait for the next: they would divide by next to nothing.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);
/// Who finds that the last measuring was so long ago measures.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

thread_local! {
    /// Operations of this thread until one is counted, and the generator of the distances.
    static LEFT: Cell<(u64, u64)> = const { Cell::new((1, 0x9e37_79b9_7f4a_7c15)) };
}

/// Whether this operation is counted, for [`SAMPLE_EVERY`] of them: mostly `None`; otherwise eight
/// random bits, for those who want to count still fewer.
#[inline]
pub(crate) fn draw() -> Option<u8> {
    LEFT.with(|left| {
        let (count, random) = left.get();
        if count > 1 {
            left.set((count - 1, random));
            return None;
        }
        let (distance, random) = next_distance(random);
        left.set((distance, random));
        Some((random >> 24) as u8)
    })
}

/// A distance from 1 to 2·SAMPLE_EVERY - 1, and the generator's next state. The same in every run:
/// each thread begins anew.
#[cold]
fn next_distance(random: u64) -> (u64, u64) {
    // Xorshift, by Marsaglia; its high bits are good enough for this.
    let random = random ^ random << 13;
    let random = random ^ random >> 7;
    let random = random ^ random << 17;
    (1 + (random >> 32) % (2 * SAMPLE_EVERY - 1), random)
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Read,
    Write,
}

/// Operations a second, averaged over the last ten seconds or so.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Rate {
    /// Keys that were looked up. Scans are not in it.
    pub reads: f64,
    /// Operations that were asked for, in batches or alone.
    pub writes: f64,
}

impl Rate {
    /// Both together.
    #[must_use]
    pub fn total(self) -> f64 {
        self.reads + self.writes
    }
}

impl std::iter::Sum for Rate {
    fn sum<I: Iterator<Item = Rate>>(rates: I) -> Rate {
        rates.fold(Rate::default(), |all, one| Rate {
            reads: all.reads + one.reads,
            writes: all.writes + one.writes,
        })
    }
}

/// The rates of all slots. See the module's comment.
pub(crate) struct Rates {
    /// Since the last measuring. No padding: one slot's writers are rarely another's neighbours, and
    /// only one operation in 16 comes here.
    counted: Box<[Counters]>,
    /// When it was last measured, in nanoseconds.
    measured_at: AtomicU64,
    averages: Mutex<Averages>,
}

#[derive(Default)]
struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
}

struct Averages {
    measured_at: Duration,
    /// How much of the average has been seen: rises from 0 to 1, so that the first seconds do not
    /// look like idle ones.
    weight: f64,
    /// Not yet divided by the weight.
    rates: Box<[Rate]>,
}

impl Rates {
    /// Nothing has happened in any of so many slots.
    pub fn new(slots: usize, now: Duration) -> Rates {
        let averages =
            Averages { measured_at: now, weight: 0.0, rates: vec![Rate::default(); slots].into() };
        Rates {
            counted: (0..slots).map(|_| Counters::default()).collect(),
            measured_at: AtomicU64::new(now.as_nanos() as u64),
            averages: Mutex::new(averages),
        }
    }

    /// Counts so many operations on a slot.
    #[inline]
    pub fn note(&self, slot: usize, verb: Verb, count: u64) {
        let counters = &self.counted[slot];
        let counter = match verb {
            Verb::Read => &counters.reads,
            Verb::Write => &counters.writes,
        };
        counter.fetch_add(count, Ordering::Relaxed);
    }

    /// Whether it is time to measure.
    pub fn is_due(&self, now: Duration) -> bool {
        let measured_at = Duration::from_nanos(self.measured_at.load(Ordering::Relaxed));
        now.saturating_sub(measured_at) >= MEASURE_EVERY
    }

    /// Takes what was counted into the averages. By what factor they have forgotten what was before;
    /// `None` if they were measured just now.
    pub fn measure(&self, now: Duration) -> Option<f64> {
        let mut averages = self.averages.lock();
        let took = now.saturating_sub(averages.measured_at);
        if took < LEAST_INTERVAL {
            return None;
        }
        self.measured_at.store(now.as_nanos() as u64, Ordering::Relaxed);
        averages.measured_at = now;
        let seconds = took.as_secs_f64();
        // The share of the past in the new average.
        let kept = (-seconds / MEMORY.as_secs_f64()).exp();
        averages.weight = averages.weight * kept + (1.0 - kept);
        for (rate, counters) in averages.rates.iter_mut().zip(&self.counted) {
            // Most are 0, and looking is cheaper than swapping.
            let take = |counter: &AtomicU64| match counter.load(Ordering::Relaxed) {
                0 => 0,
                _ => counter.swap(0, Ordering::Relaxed),
            };
            let mean = |counter: &AtomicU64| take(counter) as f64 / seconds;
            rate.reads = rate.reads * kept + mean(&counters.reads) * (1.0 - kept);
            rate.writes = rate.writes * kept + mean(&counters.writes) * (1.0 - kept);
        }
        Some(kept)
    }

    /// The rate of each slot, as of the last measuring.
    pub fn all(&self) -> Vec<Rate> {
        let averages = self.averages.lock();
        // Before the first measuring every rate is 0.
        let weight = if averages.weight > 0.0 { averages.weight } else { 1.0 };
        let seen = |rate: &Rate| Rate { reads: rate.reads / weight, writes: rate.writes / weight };
        averages.rates.iter().map(seen).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(rate: f64, expected: f64, tolerance: f64) {
        assert!((rate - expected).abs() <= tolerance * expected, "{rate}, not {expected}");
    }

    #[test]
    fn a_draw_counts_for_as_many_as_it_stands_for() {
        let bits: Vec<Option<u8>> = (0..1_000_000).map(|_| draw()).collect();
        let few = bits.iter().flatten().filter(|bits| bits.is_multiple_of(8)).count();
        near(few as f64, 1e6 / SAMPLE_EVERY as f64 / 8.0, 0.05);
        let count = |bits: &Option<u8>| if bits.is_some() { SAMPLE_EVERY } else { 0 };
        let drawn: Vec<u64> = bits.iter().map(count).collect();
        near(drawn.iter().sum::<u64>() as f64, 1e6, 0.01);
        // Every other operation is counted as often as the ones between.
        near(drawn.iter().step_by(2).sum::<u64>() as f64, 5e5, 0.02);
        near(drawn.iter().step_by(16).sum::<u64>() as f64, 62_500.0, 0.05);
    }

    #[test]
    fn a_steady_rate_is_right_from_the_first_measuring_on() {
        let second = Duration::from_secs(1);
        let rates = Rates::new(4, second * 100);
        assert_eq!(rates.all(), [Rate::default(); 4]);
        for at in 1..60 {
            rates.note(1, Verb::Read, 300);
            rates.note(1, Verb::Write, 100);
            rates.note(3, Verb::Write, 50);
            // Not always after the same time.
            let now = second * (100 + at);
            assert!(rates.is_due(now));
            assert!(rates.measure(now).is_some());
            assert!(!rates.is_due(now) && rates.measure(now).is_none());
            let all = rates.all();
            near(all[1].reads, 300.0, 1e-9);
            near(all[1].writes, 100.0, 1e-9);
            near(all.iter().copied().sum::<Rate>().total(), 450.0, 1e-9);
            assert_eq!(all[0], Rate::default());
        }
    }

    #[test]
    fn what_has_ended_is_forgotten_by_e_in_ten_seconds_however_it_is_measured() {
        for steps in [1, 7, 100] {
            let rates = Rates::new(1, Duration::ZERO);
            let mut now = Duration::ZERO;
            for _ in 0..100 {
                now += Duration::from_secs(1);
                rates.note(0, Verb::Write, 1000);
                rates.measure(now);
            }
            for _ in 0..steps {
                now += MEMORY / steps;
                rates.measure(now);
            }
            near(rates.all()[0].writes, 1000.0 / std::f64::consts::E, 1e-3);
        }
    }

    #[test]
    fn threads_lose_no_count() {
        let rates = Rates::new(2, Duration::ZERO);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| rates.note(1, Verb::Read, 1)));
            }
        });
        rates.measure(Duration::from_secs(4));
        near(rates.all()[1].reads, 10_000.0, 1e-9);
    }
}
