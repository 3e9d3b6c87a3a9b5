//! Fills and overwrites.

use std::sync::atomic::Ordering;

use crate::child::{Scene, Writes};
use crate::engine::Change;
use crate::failure::Result;
use crate::keys::{Key, key_of};
use crate::meter::Tally;
use crate::workload::Workload;

/// Records of a batch where nothing is measured.
const SILENT_BATCH: u64 = 1000;

impl Scene<'_> {
    /// Keys and values that an operation writes.
    pub fn entry_bytes(&self) -> u64 {
        (size_of::<Key>() + self.pool.value(0).len()) as u64
    }

    /// Measures a fill of all records; how many were put before the time was up.
    pub fn fill(&self, workload: Workload) -> Result<u64> {
        use Workload::*;
        let count = self.order.count();
        let put = |record, number| self.engine.put(&key_of(record), self.pool.value(number));
        self.measure(workload, count, Writes::Bytes(self.entry_bytes()), || {
            let shuffled = |number, _: &mut fastrand::Rng| put(self.order.at(number), number);
            let team = |threads| self.team(workload, count, threads, shuffled);
            let tally = match workload {
                Fillseq => self.solo(workload, count, |number, _| put(number, number)),
                Fillbatch100 => self.fill_in_batches(workload, 100),
                Fillbatch1000 => self.fill_in_batches(workload, 1000),
                Writers2 | Fillsync2 => team(2),
                Writers4 => team(4),
                Writers8 | Fillsync8 => team(8),
                Fillsync32 => team(32),
                _ => team(1),
            };
            Ok(tally?.into())
        })
    }

    fn fill_in_batches(&self, workload: Workload, size: u64) -> Result<Tally> {
        let count = self.order.count();
        self.crew(workload, count, 1, |_, meter| {
            for first in (0..count).step_by(size as usize) {
                let end = (first + size).min(count);
                self.put_batch(first, end)?;
                if !meter.end(end - first) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Puts the records of the random order from `first` to before `end`.
    fn put_batch(&self, first: u64, end: u64) -> Result<()> {
        let change = |number| -> Change<'_> {
            (key_of(self.order.at(number)), Some(self.pool.value(number)))
        };
        self.engine.batch(&(first..end).map(change).collect::<Vec<_>>())
    }

    /// Puts the rest of the records after the first `done` of the random order, unmeasured, and
    /// settles.
    pub fn complete(&self, done: u64) -> Result<()> {
        let count = self.order.count();
        if done == count {
            return Ok(());
        }
        self.wrote.store(true, Ordering::Relaxed);
        self.prepare("filling", || {
            for first in (done..count).step_by(SILENT_BATCH as usize) {
                self.put_batch(first, (first + SILENT_BATCH).min(count))?;
            }
            self.engine.settle()
        })
    }

    /// Overwrites random records, as many as there are.
    pub fn overwrite(&self) -> Result<u64> {
        let (workload, count) = (Workload::Overwrite, self.order.count());
        self.measure(workload, count, Writes::Bytes(self.entry_bytes()), || {
            let put = |number, rng: &mut fastrand::Rng| {
                let record = rng.u64(..count);
                self.engine.put(&key_of(record), self.pool.value(number + 1))
            };
            Ok(self.solo(workload, count, put)?.into())
        })
    }

    /// Fills with large values, and reads them.
    pub fn play_values(&self, fill: Workload, read: Workload) -> Result<()> {
        let done = if self.wants(fill) { self.fill(fill)? } else { 0 };
        if self.wants(read) {
            self.complete(done)?;
            self.read(read)?;
        }
        Ok(())
    }
}
