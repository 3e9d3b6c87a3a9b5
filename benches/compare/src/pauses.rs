//! Pauses of the machine itself.
//!
//! A virtual machine that takes more of its host's processors than it may is stopped for tens of
//! milliseconds, every 100 ms for instance, whatever runs in it. Who looks for the longest of millions
//! of writes finds the host's longest pause.
//!
//! A watcher on each processor, at real-time priority so that nobody here comes before it, sleeps for half
//! a millisecond and notes when it woke late. A write is told with those moments and without them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::thread::CpuSet;
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

const SLEEP: Duration = Duration::from_micros(500);
/// Later than this a processor did not run. The timer itself is some 60 µs late.
const LATE: Duration = Duration::from_millis(1);

/// From one moment to a later one.
pub type Span = (Instant, Instant);

/// Watches every processor until it ends.
pub struct Watch {
    ends: Arc<AtomicBool>,
    watchers: Vec<JoinHandle<Vec<Span>>>,
}

/// When at least one processor did not run.
#[derive(Default)]
pub struct Pauses {
    /// Apart from each other, and rising.
    spans: Vec<Span>,
}

impl Watch {
    /// Starts to watch; `None` where a process may not have real-time priority.
    pub fn start() -> Option<Watch> {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let mut watch = Watch { ends: Arc::default(), watchers: Vec::new() };
        for processor in 0..processors {
            let (ends, (sender, started)) = (watch.ends.clone(), std::sync::mpsc::channel());
            watch.watchers.push(thread::spawn(move || {
                let is_ready = take_processor(processor);
                sender.send(is_ready).expect("the one who started this waits");
                let mut late = Vec::new();
                while is_ready && !ends.load(Ordering::Relaxed) {
                    let due = Instant::now() + SLEEP;
                    thread::sleep(SLEEP);
                    let now = Instant::now();
                    if now > due + LATE {
                        late.push((due, now));
                    }
                }
                late
            }));
            if !started.recv().unwrap_or(false) {
                watch.end();
                return None;
            }
        }
        Some(watch)
    }

    /// Ends it; what was seen.
    pub fn end(self) -> Pauses {
        self.ends.store(true, Ordering::Relaxed);
        let seen = self.watchers.into_iter().flat_map(|watcher| watcher.join().unwrap_or_default());
        Pauses::of(seen.collect())
    }
}

/// Whether this thread is bound to a processor, before all others there.
fn take_processor(processor: usize) -> bool {
    let mut set = CpuSet::new();
    set.set(processor);
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    let priority = ThreadPriority::Crossplatform(50_u8.try_into().expect("within 0 to 99"));
    rustix::thread::sched_setaffinity(None, &set).is_ok()
        && set_thread_priority_and_policy(thread_native_id(), priority, policy).is_ok()
}

impl Pauses {
    fn of(mut seen: Vec<Span>) -> Pauses {
        seen.sort_unstable();
        let mut spans: Vec<Span> = Vec::new();
        for (from, to) in seen {
            match spans.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => spans.push((from, to)),
            }
        }
        Pauses { spans }
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.spans.len()
    }

    /// The longest.
    pub fn longest(&self) -> Duration {
        self.spans.iter().map(|(from, to)| *to - *from).max().unwrap_or_default()
    }

    /// All together.
    pub fn total(&self) -> Duration {
        self.spans.iter().map(|(from, to)| *to - *from).sum()
    }

    /// How much of a span the machine ran.
    pub fn without(&self, (from, to): Span) -> Duration {
        let first = self.spans.partition_point(|pause| pause.1 <= from);
        let inside = self.spans[first..].iter().take_while(|pause| pause.0 < to);
        let paused: Duration = inside.map(|pause| pause.1.min(to) - pause.0.max(from)).sum();
        (to - from).saturating_sub(paused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_a_pause_is_taken_off_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let pauses = Pauses::of(vec![(at(30), at(40)), (at(10), at(20)), (at(15), at(25))]);
        assert_eq!((pauses.count(), pauses.longest()), (2, Duration::from_millis(15)));
        assert_eq!(pauses.total(), Duration::from_millis(25));
        let ms = |from, to| pauses.without((at(from), at(to))).as_millis();
        assert_eq!((ms(0, 9), ms(12, 18), ms(0, 50), ms(20, 35)), (9, 0, 25, 5));
    }
}
