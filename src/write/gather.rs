//! How long a sync waits for those whom the last one released.
//!
//! Writers that wait for the disk one commit after the other are released together, and would come back one by
//! one: too late for the sync that begins at once for those who came meanwhile.
//!
//! ```text
//! at once       | sync for A | sync for B | sync for A | ...      a commit waits for two syncs
//! gathered      | sync for A and B | .. | sync for A and B | ...  for one, and until all are back
//! ```
//!
//! So a sync waits until as many have come as the last one released, but no longer than half of what that
//! one took, counted from its end. If that was in vain, the next ones do not wait, one of them at first, 64
//! after seven times in a row. A lone writer is all that was released, and waits for nobody.
//!
//! Known from the group commit of PostgreSQL (`commit_delay`, `commit_siblings`) and MySQL
//! (`binlog_group_commit_sync_delay`), which have to be told how long.

use std::time::Duration;

/// The part of a sync's time that the next one waits at most.
const PATIENCE_FRACTION: u32 = 2;
/// The longest pause after vain waits: 2^6 syncs.
const PAUSE_SHIFT_MAX: u32 = 6;

/// Who has come to wait for a sync, and who is to come. Times on any clock that does not go back.
#[derive(Debug, Default)]
pub(super) struct Gather {
    /// How many have come so far.
    arrived: u64,
    /// The same when the last sync began.
    sampled: u64,
    /// Those for whom it began.
    served: u64,
    /// `arrived` once all whom the last sync released are back.
    target: u64,
    began: Duration,
    /// Nobody is waited for from then on.
    until: Duration,
    /// This sync has waited.
    waited: bool,
    /// So many waits in a row were in vain.
    failures: u32,
    /// So many syncs do not wait.
    pause: u32,
}

impl Gather {
    /// Somebody has come. True if it was the last one that is waited for.
    pub fn arrive(&mut self) -> bool {
        self.arrived += 1;
        self.waited && self.arrived == self.target
    }

    /// How much longer the sync that is about to begin waits; `None` if not at all.
    pub fn left(&mut self, now: Duration) -> Option<Duration> {
        let left = self.until.saturating_sub(now);
        if self.arrived >= self.target || left.is_zero() || self.pause > 0 {
            return None;
        }
        self.waited = true;
        Some(left)
    }

    /// A sync begins for all who have come.
    pub fn begin(&mut self, now: Duration) {
        self.pause = self.pause.saturating_sub(1);
        if std::mem::take(&mut self.waited) {
            let in_vain = self.arrived < self.target;
            self.failures = if in_vain { self.failures + 1 } else { 0 };
            if in_vain {
                self.pause = 1 << (self.failures - 1).min(PAUSE_SHIFT_MAX);
            }
        }
        self.served = self.arrived - std::mem::replace(&mut self.sampled, self.arrived);
        self.began = now;
    }

    /// It ends, and releases those for whom it began.
    pub fn end(&mut self, now: Duration) {
        self.target = self.arrived + self.served;
        self.until = now + now.saturating_sub(self.began) / PATIENCE_FRACTION;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sync of 100 µs from `now` on, before which `before` come, and meanwhile `meanwhile`.
    fn sync(gather: &mut Gather, now: u64, before: usize, meanwhile: usize) {
        (0..before).for_each(|_| _ = gather.arrive());
        gather.begin(micros(now));
        (0..meanwhile).for_each(|_| _ = gather.arrive());
        gather.end(micros(now + 100));
    }

    fn micros(now: u64) -> Duration {
        Duration::from_micros(now)
    }

    #[test]
    fn a_lone_writer_waits_for_nobody() {
        let mut gather = Gather::default();
        for round in 0..10 {
            assert!(!gather.arrive());
            assert_eq!(gather.left(micros(round * 110)), None);
            gather.begin(micros(round * 110));
            gather.end(micros(round * 110 + 100));
        }
    }

    #[test]
    fn a_sync_waits_until_those_whom_the_last_one_released_are_back() {
        let mut gather = Gather::default();
        sync(&mut gather, 0, 3, 2);
        assert_eq!(gather.left(micros(110)), Some(micros(40)), "two are there, three are to come");
        assert!(!gather.arrive());
        assert!(!gather.arrive());
        assert_eq!(gather.left(micros(120)), Some(micros(30)));
        assert!(gather.arrive(), "the last");
        assert_eq!(gather.left(micros(120)), None);
        // All five are released by this one, and none came meanwhile: the first to come back waits.
        sync(&mut gather, 120, 0, 0);
        assert!(!gather.arrive());
        assert_eq!(gather.left(micros(225)), Some(micros(45)));
    }

    #[test]
    fn nobody_is_waited_for_longer_than_half_of_a_sync() {
        let mut gather = Gather::default();
        sync(&mut gather, 0, 3, 2);
        assert_eq!(gather.left(micros(149)), Some(micros(1)));
        assert_eq!(gather.left(micros(150)), None);
        // Who comes later still is not made to wait for the others at all.
        let mut gather = Gather::default();
        sync(&mut gather, 0, 3, 0);
        gather.arrive();
        assert_eq!(gather.left(micros(1000)), None);
    }

    #[test]
    fn who_waits_in_vain_waits_ever_less_often_and_again_once_it_helps() {
        let mut gather = Gather::default();
        let (mut now, mut waits) = (0, Vec::new());
        for round in 0..400 {
            sync(&mut gather, now, 1, 1);
            now += 100;
            if gather.left(micros(now)).is_some() {
                waits.push(round);
                now += 50;
            }
        }
        let pauses: Vec<_> = waits.windows(2).map(|pair| pair[1] - pair[0]).collect();
        // The first sync served one, who came back; all others serve two.
        assert_eq!(pauses, [1, 2, 3, 5, 9, 17, 33, 65, 65, 65, 65, 65]);
        // Those come back who are waited for.
        while gather.left(micros(now)).is_none() {
            sync(&mut gather, now, 1, 1);
            now += 100;
        }
        assert!(!gather.arrive());
        assert!(gather.arrive());
        sync(&mut gather, now, 0, 1);
        assert!(gather.left(micros(now + 100)).is_some());
    }
}
