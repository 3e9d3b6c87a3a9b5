//! Where keys go: what readers go by, what writers go by, and how both are changed under them.
//!
//! Readers and writers load what they go by without a lock, and hold it while they are at it:
//!
//! - Readers hold [`Routing`]. Once it is replaced and nobody holds an old one any more, no read is
//!   under way that looks for a key at its old place.
//! - Writers hold [`Pass`] from before they choose a shard until after they are published. Once it
//!   is replaced and nobody holds the old one, no commit is under way that was routed by it.
//!
//! That is all the counting that handing slots over needs: `arc_swap` pays the debts of everybody
//! who has loaded a pointer before the swap returns, so the reference count of what was replaced
//! is exact. A writer pays for one load.
//!
//! # A move
//! ```text
//!   pass: moving            writers commit to `from`, then note the key in the dirty set
//!   pass: moving, closing   writers of these slots wait; those of the pass before are awaited
//!   routing: new owner      readers go to `to`, which has everything that was committed
//!   pass: new owner         writers go to `to`
//! ```
//! A key is noted after its commit is published, so that who finds it there reads that commit.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};

use crate::error::{BusyCause, Error, Result};
use crate::runtime::{Condvar, Mutex, Runtime};
use crate::shard::map::SlotMap;
use crate::shard::slots::{ShardIndex, Slot, SlotSet};
use crate::write::pressure::Patience;

/// How long a writer that will not wait is told to stay away from slots that are handed over.
const RETRY_AFTER: Duration = Duration::from_millis(2);
/// A dirty set of so many bytes has its writers wait.
const DIRTY_BYTES_MAX: usize = 4 << 20;
/// Bytes that a key in the dirty set takes besides itself.
const DIRTY_OVERHEAD: usize = 64;

/// What readers go by.
pub(crate) struct Routing {
    pub map: Arc<SlotMap>,
}

/// The routing in use, and those before it that somebody may still go by.
pub(crate) struct Routes {
    current: ArcSwap<Routing>,
    replaced: Mutex<Vec<Arc<Routing>>>,
}

impl Routes {
    pub fn new(map: Arc<SlotMap>) -> Routes {
        let current = ArcSwap::from_pointee(Routing { map });
        Routes { current, replaced: Mutex::default() }
    }

    /// What a reader goes by, for as long as this is held.
    #[inline]
    pub fn load(&self) -> Guard<Arc<Routing>> {
        self.current.load()
    }

    /// Has readers go by another map from now on.
    pub fn replace(&self, map: Arc<SlotMap>) {
        let before = self.current.swap(Arc::new(Routing { map }));
        let mut replaced = self.replaced.lock();
        replaced.push(before);
        // Whoever else is gone need not be waited for.
        replaced.retain(|routing| Arc::strong_count(routing) > 1);
    }

    /// Waits until nobody goes by a routing that was replaced before: the last one alone does not do,
    /// a reader may have been held up for several.
    pub fn wait_for_replaced(&self, runtime: &Runtime) {
        let replaced = std::mem::take(&mut *self.replaced.lock());
        replaced.into_iter().for_each(|routing| wait_alone(routing, runtime));
        // What those did who were gone already comes before what follows.
        fence(Ordering::Acquire);
    }
}

/// What writers go by.
pub(crate) struct Pass {
    pub map: Arc<SlotMap>,
    pub moving: Option<Arc<Moving>>,
    /// Writers of the slots of the move wait.
    pub closing: bool,
    /// Why nobody may write.
    pub refused: Option<Error>,
}

/// The move that writers know of.
pub(crate) struct Moving {
    pub from: ShardIndex,
    pub to: ShardIndex,
    pub slots: SlotSet,
    dirty: Mutex<HashSet<DirtyKey>>,
    dirty_bytes: AtomicUsize,
}

/// A key that was written since the move began: the id of its keyspace, and the key.
pub(crate) type DirtyKey = (SpaceId, Box<[u8]>);

/// Tells the keyspaces of a database apart while it is open.
pub(crate) type SpaceId = u32;
/// The hidden keyspaces of idempotent commits.
pub(crate) const TOKENS_SPACE: SpaceId = SpaceId::MAX;
pub(crate) const SOURCES_SPACE: SpaceId = SpaceId::MAX - 1;

impl Moving {
    pub fn new(from: ShardIndex, to: ShardIndex, slots: SlotSet) -> Moving {
        Moving { from, to, slots, dirty: Mutex::default(), dirty_bytes: AtomicUsize::new(0) }
    }

    fn note(&self, space: SpaceId, key: &[u8]) {
        let bytes = key.len() + DIRTY_OVERHEAD;
        let is_new = self.dirty.lock().insert((space, key.into()));
        if is_new {
            self.dirty_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Takes the keys out that were written since this was last called.
    pub fn take_dirty(&self) -> HashSet<DirtyKey> {
        let mut dirty = self.dirty.lock();
        self.dirty_bytes.store(0, Ordering::Relaxed);
        std::mem::take(&mut *dirty)
    }

    fn is_full(&self) -> bool {
        self.dirty_bytes.load(Ordering::Relaxed) >= DIRTY_BYTES_MAX
    }
}

impl Pass {
    /// A pass without anything special.
    pub fn plain(map: Arc<SlotMap>) -> Pass {
        Pass { map, moving: None, closing: false, refused: None }
    }

    /// After a commit of this key, whether it succeeded or not, is published.
    #[inline]
    pub fn note(&self, space: SpaceId, slot: Slot, key: &[u8]) {
        if let Some(moving) = &self.moving
            && moving.slots.contains(slot)
        {
            moving.note(space, key);
        }
    }

    /// Whether a writer of this slot has to wait.
    fn holds_up(&self, slot: Slot) -> bool {
        let moving = self.moving.as_ref().filter(|moving| moving.slots.contains(slot));
        moving.is_some_and(|moving| self.closing || moving.is_full())
    }
}

/// Where writers enter.
pub(crate) struct Gate {
    pass: ArcSwap<Pass>,
    /// Counts the changes, for those who wait for one.
    changes: Mutex<u64>,
    changed: Condvar,
}

impl Gate {
    pub fn new(pass: Pass) -> Gate {
        Gate { pass: ArcSwap::from_pointee(pass), changes: Mutex::new(0), changed: Condvar::new() }
    }

    /// The pass of a writer of one slot; to be held until its commit is published.
    ///
    /// # Errors
    /// `Busy` where it would have to wait longer than it wants to; `Degraded` if nobody may write.
    #[inline]
    pub fn enter(&self, slot: Slot, patience: Patience, runtime: &Runtime) -> Result<Entered> {
        let pass = self.pass.load();
        if pass.moving.is_none() && pass.refused.is_none() {
            return Ok(pass);
        }
        drop(pass);
        self.enter_slowly(&[slot], patience, runtime)
    }

    /// The pass of a writer of several slots.
    ///
    /// # Errors
    /// As [`Gate::enter`].
    pub fn enter_slowly(
        &self,
        slots: &[Slot],
        patience: Patience,
        runtime: &Runtime,
    ) -> Result<Entered> {
        loop {
            let seen = *self.changes.lock();
            let pass = self.pass.load();
            if let Some(error) = &pass.refused {
                return Err(error.duplicate());
            }
            if !slots.iter().any(|slot| pass.holds_up(*slot)) {
                return Ok(pass);
            }
            // Who waits must not be waited for.
            drop(pass);
            let left = match patience {
                Patience::None => Duration::ZERO,
                Patience::Until(deadline) => deadline.saturating_sub(runtime.now()),
                Patience::Wait => Duration::MAX,
            };
            if left.is_zero() {
                return Err(Error::busy(BusyCause::Move, RETRY_AFTER));
            }
            let mut changes = self.changes.lock();
            if *changes == seen {
                match patience {
                    Patience::Wait => self.changed.wait(&mut changes),
                    _ => drop(self.changed.wait_for(&mut changes, left)),
                }
            }
        }
    }

    /// What writers go by now.
    pub fn pass(&self) -> Arc<Pass> {
        self.pass.load_full()
    }

    /// Has writers go by another pass from now on, and waits until nobody goes by the one before.
    pub fn replace(&self, pass: Pass, runtime: &Runtime) {
        let before = self.pass.swap(Arc::new(pass));
        self.wake();
        wait_alone(before, runtime);
    }

    /// Has those who wait look again.
    pub fn wake(&self) {
        *self.changes.lock() += 1;
        self.changed.notify_all();
    }
}

/// A pass that is held.
pub(crate) type Entered = Guard<Arc<Pass>>;

/// Waits until nobody else holds this, which was replaced and cannot be loaded any more.
fn wait_alone<T>(replaced: Arc<T>, runtime: &Runtime) {
    let mut pause = Duration::from_micros(20);
    while Arc::strong_count(&replaced) > 1 {
        runtime.sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(2));
    }
    // What those did who let go comes before what follows.
    fence(Ordering::Acquire);
}
