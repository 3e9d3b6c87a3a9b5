//! The commit ring: the order of commits that are under way, and what of them is published.
//!
//! ```text
//!            head                         tail
//!             v                            v
//!   ... done | done | under way | done | (free)          slot i of commit number i
//!             \_ published next  \_ holds the rest back
//! ```
//!
//! 1. [`Ring::push`], under the commit lock, gives a commit its place: its last sequence number
//!    and the log position after its record.
//! 2. Outside the lock the writer copies its record to the log and inserts into the memtables,
//!    in any order with other writers.
//! 3. [`Ring::finish`] marks the slot done and then publishes: whoever finds the slot at `head`
//!    done moves `head` on by a compare-and-swap and ratchets the two counters, `visible` and
//!    `copied`. So both are always a prefix of the commit order, without a lock.
//! 4. A writer whose predecessors are not done waits in [`Ring::wait_published`]; it spins
//!    briefly, then sleeps.
//!
//! A slot that fails ([`Ring::fail`]) is never passed: nothing after it is published, which is
//! what recovery will find as well. The structure is that of Pebble's commit pipeline
//! (`commit.go`), with the log position added.

use super::sync::{AtomicU64, Condvar, Mutex, Ordering, SLOT_COUNT, SPIN_COUNT, spin};

use crate::file::Lsn;
use crate::key::SeqNo;

/// Added to what [`Slot::done`] has of a commit that will never be done.
const ABANDONED: u64 = 1 << 63;
/// One slot less than there are: that of the commit published last keeps its positions, which
/// [`Ring::drain`] needs.
const PLACE_COUNT: u64 = SLOT_COUNT - 1;

/// A commit's place in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    index: u64,
    /// The sequence number of the commit's last operation.
    pub last_seqno: SeqNo,
    /// The log position after its record.
    pub end_lsn: Lsn,
}

#[derive(Default)]
struct Slot {
    /// Number of the commit + 1 once it is done, with `ABANDONED` if it never will be.
    done: AtomicU64,
    last_seqno: AtomicU64,
    end_lsn: AtomicU64,
}

/// See the module's comment.
pub(crate) struct Ring {
    slots: Box<[Slot]>,
    /// Number of the oldest commit that is not published.
    head: AtomicU64,
    /// Number of the next commit. Written under the commit lock.
    tail: AtomicU64,
    visible: AtomicU64,
    copied: AtomicU64,
    /// 1 once a commit has failed: nothing after it will be published.
    failed: AtomicU64,
    /// The last number that a failure lost, or 0: for who need not look into `lost`.
    lost_upto: AtomicU64,
    /// What each failure lost: the numbers after the first and through the second.
    lost: Mutex<Vec<(SeqNo, SeqNo)>>,
    /// Threads in the slow path of a wait.
    sleeper_count: AtomicU64,
    sleepers: Mutex<()>,
    published: Condvar,
}

impl Ring {
    /// A ring whose next commit follows these positions.
    pub fn new(visible: SeqNo, copied: Lsn) -> Ring {
        Ring {
            slots: (0..SLOT_COUNT).map(|_| Slot::default()).collect(),
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            visible: AtomicU64::new(visible.0),
            copied: AtomicU64::new(copied.0),
            failed: AtomicU64::new(0),
            lost_upto: AtomicU64::new(0),
            lost: Mutex::new(Vec::new()),
            sleeper_count: AtomicU64::new(0),
            sleepers: Mutex::new(()),
            published: Condvar::new(),
        }
    }

    /// Every operation up to this one, and none after, may be read.
    #[inline]
    pub fn visible(&self) -> SeqNo {
        SeqNo(self.visible.load(Ordering::Acquire))
    }

    /// Every byte of the log before this one has been handed to the kernel.
    #[inline]
    pub fn copied(&self) -> Lsn {
        Lsn(self.copied.load(Ordering::Acquire))
    }

    /// A place that is published already.
    pub fn published_place(&self) -> Place {
        Place { index: 0, last_seqno: SeqNo::ZERO, end_lsn: self.copied() }
    }

    /// True once a commit has failed.
    #[inline]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire) != 0
    }

    /// The place of the next commit, or `None` if too many are under way: then let go of the
    /// commit lock, [`Ring::wait_room`], and try again.
    ///
    /// Call it under the commit lock only, with positions that never go back.
    pub fn push(&self, last_seqno: SeqNo, end_lsn: Lsn) -> Option<Place> {
        let index = self.tail.load(Ordering::Relaxed);
        if index - self.head.load(Ordering::Acquire) == PLACE_COUNT {
            return None;
        }
        let slot = self.slot(index);
        slot.last_seqno.store(last_seqno.0, Ordering::Relaxed);
        slot.end_lsn.store(end_lsn.0, Ordering::Relaxed);
        self.tail.store(index + 1, Ordering::Release);
        Some(Place { index, last_seqno, end_lsn })
    }

    /// The commit's record is copied and its operations are inserted: publish what can be.
    pub fn finish(&self, place: Place) {
        self.slot(place.index).done.store(place.index + 1, Ordering::Release);
        self.publish();
    }

    /// As [`Ring::finish`] of a commit whose predecessors are all published: it is too on return.
    pub fn finish_first(&self, place: Place) {
        self.finish(place);
        debug_assert!(self.head.load(Ordering::SeqCst) > place.index, "its predecessors are out");
        // Somebody else may have moved `head` past it and not have come to these yet.
        self.copied.fetch_max(place.end_lsn.0, Ordering::AcqRel);
        self.visible.fetch_max(place.last_seqno.0, Ordering::SeqCst);
    }

    /// The commit's record could not be written: it will not be finished. Publication stops before
    /// it for good.
    pub fn abandon(&self, place: Place) {
        self.slot(place.index).done.store(ABANDONED | (place.index + 1), Ordering::Release);
        self.fail();
    }

    /// No later commit will be published. Wakes everyone who waits for one.
    pub fn fail(&self) {
        self.failed.store(1, Ordering::SeqCst);
        let _guard = self.sleepers.lock();
        self.published.notify_all();
    }

    /// The last published number, once nobody writes for any commit any more and all that can be
    /// published is; `None` before. Call it under the commit lock, while no commits are taken.
    pub fn drain(&self) -> Option<SeqNo> {
        let (head, tail) = (self.head.load(Ordering::SeqCst), self.tail.load(Ordering::Relaxed));
        let is_over = |index: u64| {
            let done = self.slot(index).done.load(Ordering::Acquire);
            done & !ABANDONED == index + 1
        };
        if !(head..tail).all(is_over) {
            return None;
        }
        // A thread may have marked its slot done and not have published it yet, or have moved
        // `head` on and not `visible`: both are done for it here.
        self.publish();
        let last = self.head.load(Ordering::SeqCst).checked_sub(1).map(|index| self.slot(index));
        if let Some(slot) = last {
            self.copied.fetch_max(slot.end_lsn.load(Ordering::Relaxed), Ordering::AcqRel);
            self.visible.fetch_max(slot.last_seqno.load(Ordering::Relaxed), Ordering::SeqCst);
        }
        Some(self.visible())
    }

    /// Begins anew after a failure, with nothing under way: what was not published never will be,
    /// and who waits for it is told so also after this. The next number follows `last_seqno`.
    /// Call it under the commit lock, drained, after every view was replaced.
    pub fn reset(&self, last_seqno: SeqNo, copied: Lsn) {
        let visible = self.drain().expect("no commits are under way");
        if last_seqno > visible {
            self.lost.lock().push((visible, last_seqno));
            self.lost_upto.store(last_seqno.0, Ordering::SeqCst);
        }
        self.head.store(self.tail.load(Ordering::Relaxed), Ordering::SeqCst);
        self.copied.fetch_max(copied.0, Ordering::AcqRel);
        self.visible.fetch_max(last_seqno.0, Ordering::SeqCst);
        self.failed.store(0, Ordering::SeqCst);
        let _guard = self.sleepers.lock();
        self.published.notify_all();
    }

    /// True if a failure lost this number, though it is not beyond `visible` any more.
    fn is_lost(&self, seqno: SeqNo) -> bool {
        seqno.0 <= self.lost_upto.load(Ordering::Acquire)
            && self.lost.lock().iter().any(|(after, upto)| *after < seqno && seqno <= *upto)
    }

    fn slot(&self, index: u64) -> &Slot {
        &self.slots[(index % SLOT_COUNT) as usize]
    }

    fn publish(&self) {
        let mut published = false;
        loop {
            let head = self.head.load(Ordering::Acquire);
            let slot = self.slot(head);
            if slot.done.load(Ordering::Acquire) != head + 1 {
                break;
            }
            // If the exchange succeeds, the slot was still that of commit `head` when it was
            // read: a slot is used again only after `head` has passed it, and `head` never
            // goes back.
            let last_seqno = slot.last_seqno.load(Ordering::Relaxed);
            let end_lsn = slot.end_lsn.load(Ordering::Relaxed);
            let next =
                self.head.compare_exchange(head, head + 1, Ordering::SeqCst, Ordering::Acquire);
            if next.is_ok() {
                // `copied` first: whoever sees a commit may rely on its record being copied.
                self.copied.fetch_max(end_lsn, Ordering::AcqRel);
                self.visible.fetch_max(last_seqno, Ordering::SeqCst);
                published = true;
            }
        }
        // Pairs with `sleep_until`: it raises the count before it looks at `visible`.
        if published && self.sleeper_count.load(Ordering::SeqCst) > 0 {
            let _guard = self.sleepers.lock();
            self.published.notify_all();
        }
    }

    /// Waits until the commit is published. False if it never will be, because it or a commit
    /// before it failed.
    pub fn wait_published(&self, place: Place) -> bool {
        for _ in 0..SPIN_COUNT {
            if self.visible() >= place.last_seqno {
                return !self.is_lost(place.last_seqno);
            }
            spin();
        }
        self.wait_visible(place.last_seqno)
    }

    /// Waits until every operation through `seqno` is published, or the ring has failed.
    pub fn wait_visible(&self, seqno: SeqNo) -> bool {
        self.wait_past(seqno) && !self.is_lost(seqno)
    }

    /// Waits until nothing through `seqno` is under way any more: it is published, or a failure
    /// before the last reset has lost it. False if the ring has failed.
    pub fn wait_past(&self, seqno: SeqNo) -> bool {
        self.sleep_until(|ring| ring.visible.load(Ordering::SeqCst) >= seqno.0);
        self.visible() >= seqno
    }

    /// True if [`Ring::push`] will succeed. Call it under the commit lock.
    pub fn has_room(&self) -> bool {
        self.tail.load(Ordering::Relaxed) - self.head.load(Ordering::Acquire) < PLACE_COUNT
    }

    /// Waits until [`Ring::push`] may succeed, or the ring has failed.
    pub fn wait_room(&self) {
        self.sleep_until(|ring| {
            // In this order: read the other way round, `head` may have passed that `tail`.
            let head = ring.head.load(Ordering::SeqCst);
            ring.tail.load(Ordering::SeqCst) - head < PLACE_COUNT
        });
    }

    fn sleep_until(&self, reached: impl Fn(&Ring) -> bool) {
        if reached(self) {
            return;
        }
        self.sleeper_count.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.sleepers.lock();
        while !reached(self) && !self.has_failed() {
            self.published.wait(&mut guard);
        }
        drop(guard);
        self.sleeper_count.fetch_sub(1, Ordering::SeqCst);
    }
}
