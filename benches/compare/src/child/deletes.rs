//! Deletes of 9 records in 10, and reads across what they leave before it settles.

use crate::child::{Scene, Writes};
use crate::engine::Change;
use crate::failure::Result;
use crate::keys::{Key, key_of};
use crate::workload::Workload;

/// How often the scan goes over the rows that are left.
const PASSES: u64 = 5;

impl Scene<'_> {
    /// How many records go: the first of the random order.
    fn deleted(&self) -> u64 {
        self.order.count() / 10 * 9
    }

    /// Measures deletes, each for itself.
    pub fn play_deletes(&self) -> Result<()> {
        self.complete(0)?;
        let (workload, count) = (Workload::Deleterandom, self.deleted());
        self.measure(workload, count, Writes::Bytes(size_of::<Key>() as u64), || {
            let delete = |number, _: &mut _| self.engine.delete(&key_of(self.order.at(number)));
            Ok(self.solo(workload, count, delete)?.into())
        })?;
        Ok(())
    }

    /// Measures reads just after deletes in batches.
    pub fn play_tombstones(&self) -> Result<()> {
        self.complete(0)?;
        self.prepare("deleting", || {
            let change = |number| -> Change<'_> { (key_of(self.order.at(number)), None) };
            for first in (0..self.deleted()).step_by(1000) {
                let end = (first + 1000).min(self.deleted());
                self.engine.batch(&(first..end).map(change).collect::<Vec<_>>())?;
            }
            Ok(())
        })?;
        if self.wants(Workload::Tombseek10) {
            self.read(Workload::Tombseek10)?;
        }
        if self.wants(Workload::Tombscan) {
            let (workload, left) = (Workload::Tombscan, self.order.count() - self.deleted());
            self.measure(workload, left * PASSES, Writes::Nothing, || {
                Ok(self.read_all(workload, left, PASSES)?.into())
            })?;
        }
        Ok(())
    }
}
