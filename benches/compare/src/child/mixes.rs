//! Reads and writes at once: readwhilewriting, and YCSB's six.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::child::{Played, Scene, Writes};
use crate::engine::Order;
use crate::failure::{Failure, Result};
use crate::keys::{Zipf, key_of, touch};
use crate::meter::{Meter, Shared};
use crate::workload::Workload;

/// YCSB's threads here.
const THREADS: usize = 2;
/// Rows that YCSB's E reads at most.
const SCAN_ROWS_MAX: u64 = 100;

impl Scene<'_> {
    /// Measures one of them.
    pub fn mix(&self, workload: Workload) -> Result<()> {
        let count = self.order.count();
        let operations = if workload == Workload::YcsbE { count / 8 } else { count };
        let writes = match workload {
            Workload::YcsbC => Writes::Nothing,
            _ => Writes::Mixed,
        };
        self.measure(workload, operations, writes, || match workload {
            Workload::Readwhilewriting => self.read_while_writing(operations),
            _ => self.ycsb(workload, operations),
        })?;
        Ok(())
    }

    fn read_while_writing(&self, reads: u64) -> Result<Played> {
        let (workload, count) = (Workload::Readwhilewriting, self.order.count());
        let beside = Shared::default();
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut rng = self.rng(workload, usize::MAX >> 32);
                // It goes on until the readers are through, which have a limit.
                let mut meter = Meter::start(&beside, 2 * self.limit(workload));
                loop {
                    let record = rng.u64(..count);
                    self.engine.put(&key_of(record), self.pool.value(record + 2))?;
                    if !meter.end(1) {
                        return Ok(meter.finish());
                    }
                }
            });
            let outcome = self.solo(workload, reads, |_, rng| self.get(rng.u64(..count)));
            beside.stop.store(true, Ordering::Relaxed);
            let written = writer.join().map_err(|_| Failure::new("the writer panicked"))?;
            let (tally, written): (_, Result<_>) = (outcome?, written);
            let written = written?;
            let rate = written.ops as f64 / written.elapsed.as_secs_f64();
            Ok(Played { writer_rate: Some(rate), ..tally.into() })
        })
    }

    fn ycsb(&self, workload: Workload, operations: u64) -> Result<Played> {
        let zipf = Zipf::new(self.order.count());
        // Inserts of D and of E go to the same new records: E's find those of D there.
        let end = AtomicU64::new(self.order.count());
        let tally = self.team(workload, operations, THREADS, |number, rng| {
            self.ycsb_operation(workload, number, &zipf, &end, rng)
        })?;
        Ok(tally.into())
    }

    fn ycsb_operation(
        &self,
        workload: Workload,
        number: u64,
        zipf: &Zipf,
        end: &AtomicU64,
        rng: &mut fastrand::Rng,
    ) -> Result<()> {
        let record = self.order.at(zipf.next(rng));
        let is_write = rng.u8(..100) < share_of_writes(workload);
        let put = |record| self.engine.put(&key_of(record), self.pool.value(number + 3));
        match (workload, is_write) {
            (Workload::YcsbD | Workload::YcsbE, true) => put(end.fetch_add(1, Ordering::Relaxed)),
            (Workload::YcsbD, false) => {
                // The other thread may be about to put it: then it is not there yet.
                let latest = end.load(Ordering::Relaxed) - 1 - zipf.next(rng);
                self.engine.get(&key_of(latest), &mut |value| {
                    std::hint::black_box(touch(value));
                })?;
                Ok(())
            }
            (Workload::YcsbE, false) => {
                let rows = rng.u64(1..=SCAN_ROWS_MAX);
                self.walk(record.min(self.order.count() - rows), rows, Order::Forward)
            }
            (Workload::YcsbF, true) => {
                self.get(record)?;
                put(record)
            }
            (_, true) => put(record),
            (_, false) => self.get(record),
        }
    }
}

/// In percent.
fn share_of_writes(workload: Workload) -> u8 {
    match workload {
        Workload::YcsbA | Workload::YcsbF => 50,
        Workload::YcsbC => 0,
        _ => 5,
    }
}
