//! Overload: puts at twice the rate that the engine sustains.

use std::thread;
use std::time::{Duration, Instant};

use crate::child::{Played, Scene, Writes};
use crate::failure::Result;
use crate::keys::key_of;
use crate::meter::Meter;
use crate::pauses::Watch;
use crate::report::short;
use crate::workload::Workload;

/// Puts between two looks at the clock for the next ones.
const PUTS_BETWEEN_LOOKS: u64 = 64;
/// Ahead of its time by less, nobody sleeps: it would be late.
const AHEAD: Duration = Duration::from_micros(500);
/// What comes in while a put is held back longer than this is lost: who produces so much a second does
/// not produce more afterwards.
const BACKLOG: Duration = Duration::from_millis(10);

/// Offers operations at a rate.
struct Pace {
    /// Between two looks.
    every: Duration,
    due: Instant,
}

impl Pace {
    fn new(per_second: f64) -> Pace {
        let every = Duration::from_secs_f64(PUTS_BETWEEN_LOOKS as f64 / per_second);
        Pace { every, due: Instant::now() + every }
    }

    /// Waits until the next puts are due; what comes then is measured from there.
    fn wait(&mut self, meter: &mut Meter<'_>) {
        let now = Instant::now();
        if self.due > now + AHEAD {
            thread::sleep(self.due - now);
            meter.skip();
        }
        self.due = self.due.max(now - BACKLOG) + self.every;
    }
}

impl Scene<'_> {
    /// Puts half of the records to find out what is sustained, and the other half at twice that rate.
    pub fn play_overload(&self) -> Result<()> {
        let (workload, count) = (Workload::Overload, self.order.count());
        let half = count / 2;
        let put = |number| self.engine.put(&key_of(self.order.at(number)), self.pool.value(number));
        let start = Instant::now();
        self.prepare("filling half, to see what is sustained", || {
            (0..half).try_for_each(put)?;
            self.engine.settle()
        })?;
        let offered = 2.0 * half as f64 / start.elapsed().as_secs_f64();
        self.measure(workload, half, Writes::Bytes(self.entry_bytes()), || {
            let watch = Watch::start();
            let tally = self.crew(workload, half, 1, |_, meter| {
                let mut pace = Pace::new(offered);
                for number in half..count {
                    put(number)?;
                    if !meter.end(1) {
                        break;
                    }
                    if number.is_multiple_of(PUTS_BETWEEN_LOOKS) {
                        pace.wait(meter);
                    }
                }
                Ok(())
            })?;
            let mut played = Played::from(tally);
            played.note = format!("{} a second offered", short(offered));
            if let Some(pauses) = watch.map(Watch::end) {
                let running = played.tally.long.iter().map(|span| pauses.without(*span)).max();
                // None was long.
                let longest = running.unwrap_or(Duration::from_nanos(played.tally.latencies.max()));
                played.max_running = Some(longest.as_secs_f64() * 1e6);
                played.note += &format!(
                    "; the machine paused {} times, {} ms at most, {} s in all",
                    pauses.count(),
                    pauses.longest().as_millis(),
                    short(pauses.total().as_secs_f64()),
                );
            }
            Ok(played)
        })?;
        Ok(())
    }
}
