//! The state of one keyspace: its memtables and its version, pinned together as a view.
//!
//! A [`View`] is immutable and replaced as a whole. Readers load it without a lock. It is replaced
//! only under the commit lock (freeze, flush, compaction), always after the manifest record that
//! it follows is durable, so no reader or writer ever waits for the disk here.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};

use crate::error::{Error, ErrorKind, Result};
use crate::file::Lsn;
use crate::key::{self, KeyspaceId, SeqNo};
use crate::memtable::Memtable;
use crate::operator::MergeOperator;
use crate::runtime::Mutex;
use crate::version::{LEVEL_COUNT, Version};

/// A memtable that takes no new commits.
pub(crate) struct Frozen {
    pub memtable: Arc<Memtable>,
    /// Position of the oldest record that has an operation in it.
    pub first_lsn: Lsn,
    /// Every record that has an operation in it lies before this position.
    pub end_lsn: Lsn,
    /// No operation in it is newer; the next memtable's are.
    pub last_seqno: SeqNo,
}

/// What a reader sees of a keyspace: memtables and version, pinned together.
pub(crate) struct View {
    pub active: Arc<Memtable>,
    /// Newest first.
    pub frozen: Vec<Arc<Frozen>>,
    pub version: Arc<Version>,
}

/// What names of hidden keyspaces begin with: no character that a user's name may have.
pub(crate) const HIDDEN: char = '\0';

const LIVE: u8 = 0;
const DROPPED: u8 = 1;
const CLOSED: u8 = 2;

/// One keyspace.
pub(crate) struct Tree {
    pub id: KeyspaceId,
    pub name: String,
    /// Where the commit pipeline keeps this keyspace's active memtable.
    pub slot: usize,
    /// The persisted name of the merge operator.
    operator_name: OnceLock<String>,
    /// The operator, once it is known.
    operator: OnceLock<Arc<dyn MergeOperator>>,
    /// Replaced only under the commit lock.
    view: ArcSwap<View>,
    /// LIVE, DROPPED or CLOSED.
    life: AtomicU8,
    /// Bytes that compactions are behind, as of the last version.
    pub debt_bytes: AtomicU64,
    pub traffic: [LevelTraffic; LEVEL_COUNT],
    /// What tombstones have cost scans.
    pub stepped: Stepped,
    /// Whose filters a memtable has missed.
    pub unread: Unread,
}

/// A key of which a memtable could not tell whether tables have it, since their filters were not loaded.
/// Whoever has no lock loads them.
#[derive(Default)]
pub(crate) struct Unread {
    is_some: AtomicBool,
    key: Mutex<Option<Box<[u8]>>>,
}

impl Unread {
    pub fn note(&self, key: &[u8]) {
        if !self.is_some() {
            *self.key.lock() = Some(key.into());
            self.is_some.store(true, Ordering::Relaxed);
        }
    }

    #[inline]
    pub fn is_some(&self) -> bool {
        self.is_some.load(Ordering::Relaxed)
    }

    fn take(&self) -> Option<Box<[u8]>> {
        self.is_some.store(false, Ordering::Relaxed);
        self.key.lock().take()
    }
}

/// Bytes that flushes and compactions moved, by the level they wrote to.
#[derive(Default)]
pub(crate) struct LevelTraffic {
    pub read_bytes: AtomicU64,
    pub written_bytes: AtomicU64,
}

/// Tombstones that scans have stepped over since the last sweep (see `db::worker`), and who is to be
/// told of it.
pub(crate) struct Stepped {
    count: AtomicU64,
    /// At so many the workers are told.
    tell_at: AtomicU64,
    untold: AtomicBool,
}

/// Fewer are no reason to look for a sweep: they took a scan less than a millisecond.
pub(crate) const STEPPED_MIN: u64 = 1 << 14;
/// The workers are not told at more than this, or they would hear too late of a sweep that has become
/// possible.
const STEPPED_TELL_MAX: u64 = 1 << 24;

impl Default for Stepped {
    fn default() -> Stepped {
        let (count, tell_at) = (AtomicU64::new(0), AtomicU64::new(STEPPED_MIN));
        Stepped { count, tell_at, untold: AtomicBool::new(false) }
    }
}

impl Stepped {
    /// A scan has stepped over so many.
    pub fn add(&self, count: u64) {
        let before = self.count.fetch_add(count, Ordering::Relaxed);
        let tell_at = self.tell_at.load(Ordering::Relaxed);
        if before < tell_at && tell_at <= before + count {
            self.untold.store(true, Ordering::Relaxed);
        }
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// True, once, if the workers are to be told.
    #[inline]
    pub fn is_untold(&self) -> bool {
        self.untold.load(Ordering::Relaxed) && self.untold.swap(false, Ordering::Relaxed)
    }

    /// The workers want to hear of it again at so many.
    pub fn await_count(&self, count: u64) {
        self.tell_at.store(count, Ordering::Relaxed);
        if self.count() >= count {
            self.untold.store(true, Ordering::Relaxed);
        }
    }

    /// Something is done about them.
    pub fn sweep(&self) {
        self.count.store(0, Ordering::Relaxed);
        self.await_count(STEPPED_MIN);
    }

    /// Nothing can be done about them now.
    pub fn give_up(&self) {
        self.count.store(0, Ordering::Relaxed);
        let tell_at = self.tell_at.load(Ordering::Relaxed);
        self.await_count((2 * tell_at).min(STEPPED_TELL_MAX));
    }
}

impl Tree {
    pub fn new(
        id: KeyspaceId,
        name: String,
        slot: usize,
        operator_name: Option<String>,
        operator: Option<Arc<dyn MergeOperator>>,
        view: View,
    ) -> Tree {
        Tree {
            id,
            name,
            slot,
            operator_name: operator_name.map_or_else(OnceLock::new, OnceLock::from),
            operator: operator.map_or_else(OnceLock::new, OnceLock::from),
            view: ArcSwap::from_pointee(view),
            life: AtomicU8::new(LIVE),
            debt_bytes: AtomicU64::new(0),
            traffic: Default::default(),
            stepped: Stepped::default(),
            unread: Unread::default(),
        }
    }

    /// Loads the filters that a memtable has missed.
    #[cold]
    pub fn load_filters(&self) {
        if let Some(key) = self.unread.take() {
            self.view_arc().version.load_filters(&key, key::hash(&key));
        }
    }

    /// The current view, without a reference count. Do not keep it over a blocking call.
    #[inline]
    pub fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// The current view, to be kept.
    pub fn view_arc(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Replaces the view. Call it under the commit lock only.
    pub fn replace_view(&self, view: View) {
        self.view.store(Arc::new(view));
    }

    /// True for a keyspace of the engine's own: users can neither open nor drop nor name one.
    pub fn is_hidden(&self) -> bool {
        self.name.starts_with(HIDDEN)
    }

    /// Bytes of its tables.
    pub fn table_bytes(&self) -> u64 {
        let view = self.view();
        view.version.tables().map(|(_, table)| table.facts().bytes).sum()
    }

    /// The merge operator, if it is known.
    #[inline]
    pub fn operator(&self) -> Option<&Arc<dyn MergeOperator>> {
        self.operator.get()
    }

    /// The persisted name of the merge operator, if it has one.
    pub fn operator_name(&self) -> Option<&str> {
        self.operator_name.get().map(String::as_str)
    }

    /// Supplies the operator of this keyspace; one that is known already stays.
    ///
    /// # Errors
    /// `InvalidArgument` if the keyspace has one of another name.
    pub fn supply_operator(&self, operator: Arc<dyn MergeOperator>) -> Result<()> {
        let name = self.operator_name.get_or_init(|| operator.name().to_string());
        if name != operator.name() {
            return Err(Error::invalid(format!(
                "keyspace {:?} has the merge operator {name:?}; it cannot be opened with {:?}",
                self.name,
                operator.name()
            )));
        }
        let _ = self.operator.set(operator);
        Ok(())
    }

    pub fn mark_dropped(&self) {
        self.life.store(DROPPED, Ordering::Release);
    }

    /// True once it was dropped; a keyspace of a closed database was not.
    pub fn is_dropped(&self) -> bool {
        self.life.load(Ordering::Acquire) == DROPPED
    }

    /// The whole database is closed.
    pub fn mark_closed(&self) {
        let _ = self.life.compare_exchange(LIVE, CLOSED, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// # Errors
    /// `Closed` once the keyspace is dropped or the database closed.
    #[inline]
    pub fn check_live(&self) -> Result<()> {
        if self.life.load(Ordering::Acquire) == LIVE { Ok(()) } else { Err(self.gone()) }
    }

    /// What a call on a keyspace that is gone gets.
    #[cold]
    pub fn gone(&self) -> Error {
        let what = match self.life.load(Ordering::Acquire) {
            CLOSED => "the database is closed".to_string(),
            _ => format!("keyspace {:?} was dropped", self.name),
        };
        Error::new(ErrorKind::Closed).context(what)
    }
}
