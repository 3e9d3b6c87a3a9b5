//! A queue: keys in order, put behind the last and deleted at the first.

use crate::child::{Scene, Writes};
use crate::engine::Order;
use crate::failure::{Failure, Result};
use crate::keys::{Key, key_of};
use crate::workload::Workload;

/// Entries that wait in it.
const WAITING: u64 = 1000;

impl Scene<'_> {
    /// Measures pairs of push and pop, a tenth as many as records.
    pub fn play_queue(&self) -> Result<()> {
        let (workload, pairs) = (Workload::Queue, self.order.count() / 10);
        let put = |number| self.engine.put(&key_of(number), self.pool.value(number));
        self.prepare("filling the queue", || (0..WAITING).try_for_each(put))?;
        // A pair writes an entry and a tombstone.
        let bytes = Writes::Bytes(self.entry_bytes() + size_of::<Key>() as u64);
        self.measure(workload, pairs, bytes, || {
            let tally = self.solo(workload, pairs, |number, _| {
                put(WAITING + number)?;
                self.pop(number)
            })?;
            Ok(tally.into())
        })?;
        Ok(())
    }

    /// Seeks to the first entry, which has to be `expected`, and deletes it.
    fn pop(&self, expected: u64) -> Result<()> {
        let expected_key = key_of(expected);
        let mut is_expected = false;
        self.engine.scan(b"", Order::Forward, &mut |key, _| {
            is_expected = key == expected_key;
            false
        })?;
        match is_expected {
            true => self.engine.delete(&expected_key),
            false => Err(Failure::new(format!("entry {expected} is not the queue's head"))),
        }
    }
}
