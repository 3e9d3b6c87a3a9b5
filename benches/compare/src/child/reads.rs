//! Reads and scans of a settled database. Every one checks what it finds.

use std::hint::black_box;

use crate::child::{Scene, Writes};
use crate::engine::Order;
use crate::failure::{Failure, Result};
use crate::keys::{GROUP_RECORDS, Key, PREFIX_BYTES, Zipf, key_of, missing_key_of, touch};
use crate::meter::Tally;
use crate::workload::Workload;

/// Rows behind the last start of a short scan, so that none runs into the end.
const TAIL_ROWS: u64 = 2000;
/// Records of a multiget.
const MULTIGET: usize = 100;
/// Rows of a full scan between two readings of the clock.
const SCAN_GROUP: u64 = 256;
/// How often a full scan goes over all rows.
const SCAN_PASSES: u64 = 5;

impl Scene<'_> {
    /// The workloads on what fillrandom left.
    pub fn play_records(&self) -> Result<()> {
        use Workload::*;
        let mut workloads = self.job.workloads.as_slice();
        let mut done = 0;
        if let Some((Fillrandom, rest)) = workloads.split_first() {
            done = self.fill(Fillrandom)?;
            workloads = rest;
        }
        if !workloads.is_empty() {
            self.complete(done)?;
        }
        for &workload in workloads {
            match workload {
                Overwrite => drop(self.overwrite()?),
                Readwhilewriting | YcsbA | YcsbB | YcsbC | YcsbD | YcsbE | YcsbF => {
                    self.mix(workload)?;
                }
                _ => self.read(workload)?,
            }
        }
        Ok(())
    }

    /// Measures a workload that only reads.
    pub fn read(&self, workload: Workload) -> Result<()> {
        use Workload::*;
        let count = self.order.count();
        let reads = match workload {
            Seek10 | Tombseek10 => count / 4,
            Seek100 | Reverse100 => count / 16,
            Prefix30 => count / 8,
            Scan => count * SCAN_PASSES,
            // As many bytes as there are, several times over.
            Read4k | Read64k => count * 10,
            _ => count,
        };
        self.measure(workload, reads, Writes::Nothing, || {
            let tally = match workload {
                Readzipf => self.read_zipf(reads),
                Readmissing => self.read_missing(reads),
                Multiget100 => self.read_many(reads),
                Seek10 | Tombseek10 => self.seek(workload, reads, 10, Order::Forward),
                Seek100 => self.seek(workload, reads, 100, Order::Forward),
                Reverse100 => self.seek(workload, reads, 100, Order::Reverse),
                Prefix30 => self.read_prefixes(reads),
                Scan => self.read_all(workload, count, SCAN_PASSES),
                Readrandom2 => self.read_random(workload, reads, 2),
                _ => self.read_random(workload, reads, 1),
            };
            Ok(tally?.into())
        })?;
        Ok(())
    }

    /// Gets a record that has to be there.
    pub fn get(&self, record: u64) -> Result<()> {
        let bytes = self.pool.value(0).len();
        let mut right = false;
        self.engine.get(&key_of(record), &mut |value| {
            black_box(touch(value));
            right = value.len() == bytes;
        })?;
        match right {
            true => Ok(()),
            false => Err(Failure::new(format!("record {record} is not there as it was written"))),
        }
    }

    fn read_random(&self, workload: Workload, reads: u64, threads: usize) -> Result<Tally> {
        let count = self.order.count();
        self.team(workload, reads, threads, |_, rng| self.get(rng.u64(..count)))
    }

    fn read_zipf(&self, reads: u64) -> Result<Tally> {
        let zipf = Zipf::new(self.order.count());
        self.solo(Workload::Readzipf, reads, |_, rng| self.get(self.order.at(zipf.next(rng))))
    }

    fn read_missing(&self, reads: u64) -> Result<Tally> {
        let count = self.order.count();
        self.solo(Workload::Readmissing, reads, |_, rng| {
            let record = rng.u64(..count);
            match self.engine.get(&missing_key_of(record), &mut |_| {})? {
                true => Err(Failure::new(format!("found what was never put, behind {record}"))),
                false => Ok(()),
            }
        })
    }

    fn read_many(&self, reads: u64) -> Result<Tally> {
        let (workload, count) = (Workload::Multiget100, self.order.count());
        self.crew(workload, reads, 1, |thread, meter| {
            let mut rng = self.rng(workload, thread);
            for _ in 0..reads.div_ceil(MULTIGET as u64) {
                let keys: [Key; MULTIGET] = std::array::from_fn(|_| key_of(rng.u64(..count)));
                let found = self.engine.multi(&keys, &mut |value| {
                    black_box(touch(value));
                })?;
                if found != MULTIGET {
                    return Err(Failure::new(format!("{found} of {MULTIGET} records are there")));
                }
                if !meter.end(MULTIGET as u64) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Reads `rows` rows from the key of `record` on.
    pub fn walk(&self, record: u64, rows: u64, order: Order) -> Result<()> {
        let mut left = rows;
        self.engine.scan(&key_of(record), order, &mut |_, value| {
            black_box(touch(value));
            left -= 1;
            left > 0
        })?;
        match left {
            0 => Ok(()),
            _ => Err(Failure::new(format!("{left} of {rows} rows are missing from {record}"))),
        }
    }

    fn seek(&self, workload: Workload, seeks: u64, rows: u64, order: Order) -> Result<Tally> {
        let places = self.order.count().saturating_sub(TAIL_ROWS).max(1);
        self.solo(workload, seeks, |_, rng| {
            let start = match order {
                Order::Forward => rng.u64(..places),
                Order::Reverse => rng.u64(..places) + TAIL_ROWS - 1,
            };
            self.walk(start, rows, order)
        })
    }

    fn read_prefixes(&self, reads: u64) -> Result<Tally> {
        let groups = self.order.count() / GROUP_RECORDS;
        self.solo(Workload::Prefix30, reads, |_, rng| {
            let key = key_of(rng.u64(..groups) * GROUP_RECORDS);
            let mut rows = 0;
            self.engine.prefix(&key[..PREFIX_BYTES], &mut |_, value| {
                black_box(touch(value));
                rows += 1;
                true
            })?;
            match rows {
                GROUP_RECORDS => Ok(()),
                _ => Err(Failure::new(format!("{rows} of {GROUP_RECORDS} rows have a prefix"))),
            }
        })
    }

    /// Reads all `rows` rows, several times; looks at the clock now and then.
    pub fn read_all(&self, workload: Workload, rows: u64, passes: u64) -> Result<Tally> {
        self.crew(workload, rows * passes, 1, |_, meter| {
            for _ in 0..passes {
                let (mut seen, mut in_time) = (0, true);
                self.engine.scan(b"", Order::Forward, &mut |_, value| {
                    black_box(touch(value));
                    seen += 1;
                    if seen % SCAN_GROUP == 0 {
                        in_time = meter.end(SCAN_GROUP);
                    }
                    in_time
                })?;
                if !in_time {
                    break;
                }
                if seen != rows {
                    return Err(Failure::new(format!("a scan met {seen} of {rows} rows")));
                }
                meter.end(seen % SCAN_GROUP);
            }
            Ok(())
        })
    }
}
