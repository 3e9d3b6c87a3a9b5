//! The sequence numbers that readers want kept: each registered snapshot is a number, and pins no
//! memory by itself.
//!
//! Registering a snapshot and choosing the boundaries of a compaction happen under one lock, so
//! that a compaction never drops what a snapshot registered before it still needs; one that is
//! registered later is at least as new as everything the compaction reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::key::SeqNo;
use crate::runtime::Mutex;

/// See the module's comment.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    live: Mutex<BTreeMap<SeqNo, Holders>>,
}

#[derive(Debug)]
struct Holders {
    count: usize,
    /// When the first of them registered, on the runtime's clock.
    since: Duration,
}

impl Snapshots {
    /// Registers the number that `visible` returns, read under the lock.
    pub fn register(&self, now: Duration, visible: impl FnOnce() -> SeqNo) -> SeqNo {
        let mut live = self.live.lock();
        let seqno = visible();
        live.entry(seqno).or_insert(Holders { count: 0, since: now }).count += 1;
        seqno
    }

    /// A number below which nobody registers from now on, nor is registered now: the number that
    /// `visible` returns, or less.
    pub fn horizon(&self, visible: impl FnOnce() -> SeqNo) -> SeqNo {
        let live = self.live.lock();
        // Under the lock: who registers after this reads a number that is at least this one.
        let visible = visible();
        live.first_key_value().map_or(visible, |(oldest, _)| visible.min(*oldest))
    }

    pub fn release(&self, seqno: SeqNo) {
        let mut live = self.live.lock();
        let holders = live.get_mut(&seqno).expect("was registered");
        holders.count -= 1;
        if holders.count == 0 {
            live.remove(&seqno);
        }
    }

    /// The registered numbers, ascending: versions of a key in one gap between two of them are
    /// told apart by nobody.
    pub fn boundaries(&self) -> Vec<SeqNo> {
        self.live.lock().keys().copied().collect()
    }

    /// How many are registered, the oldest number, and how long the oldest has been held.
    pub fn summary(&self, now: Duration) -> (usize, Option<(SeqNo, Duration)>) {
        let live = self.live.lock();
        let count = live.values().map(|holders| holders.count).sum();
        let oldest = live.first_key_value();
        (count, oldest.map(|(seqno, holders)| (*seqno, now.saturating_sub(holders.since))))
    }
}

/// A number at which somebody reads, registered as long as this lives.
#[derive(Debug)]
pub(crate) struct Reading {
    /// `None` where there is nothing that could go meanwhile.
    readers: Option<Arc<Snapshots>>,
    pub seqno: SeqNo,
}

impl Reading {
    /// Registers the number that `visible` returns with the readers.
    pub fn new(readers: &Arc<Snapshots>, visible: impl FnOnce() -> SeqNo) -> Reading {
        // Nobody asks how long a reader has been reading.
        let seqno = readers.register(Duration::ZERO, visible);
        Reading { readers: Some(readers.clone()), seqno }
    }

    /// Reads at a number that need not be registered.
    pub fn unregistered(seqno: SeqNo) -> Reading {
        Reading { readers: None, seqno }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(readers) = &self.readers {
            readers.release(self.seqno);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_boundary_until_its_last_holder_lets_go() {
        let snapshots = Snapshots::default();
        let at = |seqno: u64| snapshots.register(Duration::from_secs(seqno), || SeqNo(seqno));
        at(7);
        at(3);
        at(7);
        assert_eq!(snapshots.boundaries(), [SeqNo(3), SeqNo(7)]);
        let oldest = Some((SeqNo(3), Duration::from_secs(6)));
        assert_eq!(snapshots.summary(Duration::from_secs(9)), (3, oldest));
        snapshots.release(SeqNo(7));
        snapshots.release(SeqNo(3));
        assert_eq!(snapshots.boundaries(), [SeqNo(7)]);
        snapshots.release(SeqNo(7));
        assert!(snapshots.boundaries().is_empty());
    }

    #[test]
    fn nobody_reads_below_the_horizon() {
        let snapshots = Arc::new(Snapshots::default());
        assert_eq!(snapshots.horizon(|| SeqNo(9)), SeqNo(9));
        let old = Reading::new(&snapshots, || SeqNo(4));
        let new = Reading::new(&snapshots, || SeqNo(8));
        drop(Reading::unregistered(SeqNo(1)));
        assert_eq!(snapshots.horizon(|| SeqNo(9)), SeqNo(4));
        drop(old);
        assert_eq!(snapshots.horizon(|| SeqNo(9)), SeqNo(8));
        drop(new);
        assert_eq!(snapshots.horizon(|| SeqNo(9)), SeqNo(9));
    }
}
