//! Counters: incremented in the engine's best way, read, and checked in the end.

use crate::child::{Scene, Writes};
use crate::engine::decode_counter;
use crate::failure::{Failure, Result};
use crate::keys::{Key, key_of};
use crate::meter::Tally;
use crate::workload::Workload;

impl Scene<'_> {
    /// Increments, or reads after increments.
    pub fn play_counters(&self, workload: Workload) -> Result<()> {
        let counters = match workload {
            Workload::Counters1m => 1_000_000,
            _ => 1000,
        };
        let count = self.order.count();
        if workload != Workload::Readcounters {
            // An increment is one of eight bytes.
            let bytes = Writes::Bytes(size_of::<Key>() as u64 + 8);
            let done = self.measure(workload, count, bytes, || {
                Ok(self.increment(workload, counters)?.into())
            })?;
            return self.check_counters(counters, done);
        }
        let mut done = 0;
        self.prepare("counting", || {
            done = self.increment(workload, counters)?.ops;
            Ok(())
        })?;
        self.measure(workload, count, Writes::Nothing, || {
            let tally = self.solo(workload, count, |_, rng| {
                // One that was never drawn is not there.
                self.engine.get(&key_of(rng.u64(..counters)), &mut |_| {})?;
                Ok(())
            })?;
            Ok(tally.into())
        })?;
        self.check_counters(counters, done)
    }

    fn increment(&self, workload: Workload, counters: u64) -> Result<Tally> {
        let count = self.order.count();
        self.solo(workload, count, |_, rng| self.engine.increment(&key_of(rng.u64(..counters))))
    }

    /// Every increment was counted exactly once.
    fn check_counters(&self, counters: u64, expected: u64) -> Result<()> {
        let mut sum = 0;
        self.prepare("checking the counters", || {
            for counter in 0..counters {
                self.engine.get(&key_of(counter), &mut |value| {
                    sum += decode_counter(value).unwrap_or(0);
                })?;
            }
            Ok(())
        })?;
        match sum == expected {
            true => Ok(()),
            false => Err(Failure::new(format!("the counters sum up to {sum}, not {expected}"))),
        }
    }
}
