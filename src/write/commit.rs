//! The commit pipeline: an encoded record gets its sequence numbers, its place in the log and its
//! memtables in one short critical section; everything else happens outside.
//!
//! 1. Outside: the batch is encoded and its payload's checksum computed; whatever can fail has.
//! 2. Under the commit lock: look at breaker and lease, rotate the log if the record does not
//!    fit, take a slot on the ring, sequence numbers and log space, choose the memtables, seal the
//!    record's header. Records up to [`INLINE_BYTES_MAX`] are copied to the log here, since a copy
//!    into mapped memory (26 ns for 130 bytes) costs less than a second look at the slot.
//! 3. Outside: copy a large record, insert into the memtables, concurrently with others.
//! 4. Publish in order ([`Ring::finish`]).
//!
//! Lock order: commit, then the log files. No file is created, synced or waited for under the
//! commit lock.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::batch::Payload;
use crate::error::{DegradedCause, Error, ErrorKind, Result};
use crate::file::Lsn;
use crate::key::SeqNo;
use crate::memtable::Memtable;
use crate::record::{self, RecordHeader, RecordKind};
use crate::runtime::{Mutex, MutexGuard, Runtime};
use crate::tree::{Frozen, Tree, View};
use crate::write::breaker::Breaker;
use crate::write::closing::Member;
use crate::write::log::{LogCursor, Logs, Marks, Reserved};
use crate::write::ring::{Place, Ring};
use crate::write::stamps::{Check, Stamps, Stripes};
use crate::write::syncer::Syncer;

/// Records up to this size are copied to the log inside the critical section.
const INLINE_BYTES_MAX: usize = 4 << 10;

/// The memtables of a commit, in the order of its trees.
pub(crate) type Memtables = SmallVec<[Arc<Memtable>; 2]>;

/// What the pipeline asks of the engine, always without holding a lock.
pub(crate) trait Supplies {
    /// Makes a log spare for a record of so many bytes, and offers it to the log.
    fn create_spare(&self, record_bytes: u64) -> Result<()>;
    /// Extends the lease of sequence numbers beyond `past`.
    fn extend_lease(&self, past: SeqNo) -> Result<()>;
    /// The log went on in another file: another spare will be needed.
    fn log_rotated(&self);
}

/// See the module's comment.
pub(crate) struct Pipeline {
    state: Mutex<CommitState>,
    pub ring: Ring,
    pub stamps: Stamps,
    pub logs: Logs,
    pub syncer: Syncer,
    pub breaker: Breaker,
    /// Of a shard: what it shares with the others.
    pub member: Option<Member>,
}

/// What a commit waits for before it can have its place.
pub(crate) enum Lack {
    /// A lease of sequence numbers through this one.
    Lease(SeqNo),
    /// The log has just been rotated: look again.
    Rotated,
    /// A spare log.
    Spare,
    /// A slot on the ring.
    Slot,
}

/// A commit that has its place, and is not stored yet.
pub(crate) struct Placed {
    pub place: Place,
    pub reserved: Reserved,
    pub first_seqno: SeqNo,
    /// In the order of the commit's trees.
    pub memtables: Memtables,
}

/// Guarded by the commit lock.
pub(crate) struct CommitState {
    /// The next operation's number.
    next_seqno: SeqNo,
    /// Numbers up to this one, inclusive, may be given out.
    lease_end: SeqNo,
    cursor: LogCursor,
    /// Where the last commit's record ends. Marks and end records may follow it: they are not
    /// published, so nobody may wait for a position after them.
    commits_end: Lsn,
    /// By [`Tree::slot`]; `None` once the keyspace is dropped.
    actives: Vec<Option<Active>>,
    /// What [`CommitState::needed_from`] says of dropped keyspaces, by slot: a drop that fails
    /// before its edit is durable leaves a keyspace that the next open finds, and replays.
    dropped: BTreeMap<usize, Lsn>,
    closed: bool,
}

struct Active {
    memtable: Arc<Memtable>,
    /// Position of the first record with an operation in it.
    first_lsn: Option<Lsn>,
}

impl Pipeline {
    pub fn new(
        runtime: Runtime,
        logs: Logs,
        cursor: LogCursor,
        next_seqno: SeqNo,
        lease_end: SeqNo,
    ) -> Pipeline {
        let lsn = cursor.lsn();
        let state = CommitState {
            next_seqno,
            lease_end,
            cursor,
            commits_end: lsn,
            actives: Vec::new(),
            dropped: BTreeMap::new(),
            closed: false,
        };
        Pipeline {
            state: Mutex::new(state),
            ring: Ring::new(SeqNo(next_seqno.0 - 1), lsn),
            stamps: Stamps::default(),
            logs,
            syncer: Syncer::new(lsn, runtime),
            breaker: Breaker::default(),
            member: None,
        }
    }

    /// The commit lock.
    pub fn lock(&self) -> MutexGuard<'_, CommitState> {
        self.state.lock()
    }

    /// Takes the commit into the log and the memtables and publishes it, in order; does not wait
    /// until it is published or durable.
    ///
    /// `insert` gets the first sequence number, the memtables of `trees` in their order, and the
    /// payload. With a `check` that does not hold at the commit's place, nothing is done and the
    /// answer is `None`; without one it never is.
    ///
    /// # Errors
    /// `Degraded` or `NoSpace` while the breaker is open, `Closed` if a keyspace was dropped or
    /// the database closed: nothing was written. An error of the log itself opens the breaker;
    /// the commit is then unknown until resume or reopen.
    pub fn submit(
        &self,
        supplies: &dyn Supplies,
        mut commit: Payload<'_>,
        trees: &[&Tree],
        check: Option<&Check>,
        insert: impl FnOnce(SeqNo, &Memtables, &[u8]),
    ) -> Result<Option<Place>> {
        debug_assert!(commit.count() > 0, "an empty commit has no place in the order");
        // Outside the lock, unless stamps are turned on just now.
        let stripes = self.stripes_of(&commit);
        let mut state = self.lock_with_room(supplies, &commit)?;
        state.check_trees(trees)?;
        if check.is_some_and(|check| !self.stamps.holds(check)) {
            return Ok(None);
        }
        let placed = self.place(&mut state, &mut commit, trees, check, stripes);
        let stored = if commit.region().len() <= INLINE_BYTES_MAX {
            let stored = placed.reserved.store(commit.region());
            drop(state);
            stored
        } else {
            drop(state);
            placed.reserved.store(commit.region())
        };
        let place = placed.place;
        if let Err(source) = stored {
            let error = self.not_stored(&placed.reserved, source);
            self.ring.abandon(place);
            return Err(error);
        }
        insert(placed.first_seqno, &placed.memtables, commit.bytes());
        self.ring.finish(place);
        Ok(Some(place))
    }

    /// The stripes of a commit's keys, if commits stamp them.
    #[inline]
    pub fn stripes_of(&self, commit: &Payload<'_>) -> Option<Stripes> {
        self.stamps.since().map(|_| Stamps::stripes_of(commit))
    }

    /// Gives a commit its place: sequence numbers, log space and memtables, and its record's header.
    /// Everything was checked and there is room.
    #[inline]
    pub fn place(
        &self,
        state: &mut CommitState,
        commit: &mut Payload<'_>,
        trees: &[&Tree],
        check: Option<&Check>,
        mut stripes: Option<Stripes>,
    ) -> Placed {
        let first_seqno = state.next_seqno;
        let last_seqno = SeqNo(first_seqno.0 + u64::from(commit.count()) - 1);
        let record_bytes = commit.region().len() as u64;
        let end_lsn = state.lsn_after(commit);
        if let Some(check) = check {
            self.stamps.stamp(&check.written, last_seqno);
        }
        if self.stamps.since().is_some() {
            let stripes = stripes.get_or_insert_with(|| Stamps::stripes_of(commit));
            self.stamps.stamp(stripes, last_seqno);
        }
        let place = self.ring.push(last_seqno, end_lsn).expect("room was made");
        let reserved = state.cursor.reserve(record_bytes);
        state.next_seqno = SeqNo(last_seqno.0 + 1);
        state.commits_end = end_lsn;

        let memtables = trees.iter().map(|tree| state.choose(tree.slot, reserved.lsn)).collect();
        let header = RecordHeader {
            kind: RecordKind::Commit,
            payload_bytes: commit.payload_bytes(),
            payload_checksum: commit.checksum(),
            seqno: first_seqno,
            copied: self.ring.copied(),
            durable: self.syncer.synced(),
        };
        commit.set_header(&header.encode(reserved.file.checksum, reserved.lsn));
        Placed { place, reserved, first_seqno, memtables }
    }

    /// Has every commit from now on stamp its keys, and waits until those before are over: what is
    /// read afterwards is either seen or stamped.
    pub fn stamp_keys(&self) {
        let since = match self.stamps.since() {
            Some(since) => since,
            None => {
                let state = self.state.lock();
                self.stamps.turn_on(state.next_seqno);
                self.stamps.since().expect("turned on")
            }
        };
        if self.ring.visible().0 + 1 < since.0 {
            // If a failure holds them back for good, the commit itself will meet it.
            self.ring.wait_past(SeqNo(since.0 - 1));
        }
    }

    /// After a check that did not hold: waits until what it missed is published, so that another
    /// look finds it.
    ///
    /// # Errors
    /// If it never will be: the log has failed.
    pub fn wait_for_missed(&self, check: &Check) -> Result<()> {
        if self.ring.wait_past(self.stamps.newest(check)) {
            Ok(())
        } else {
            Err(self.breaker.error())
        }
    }

    /// The commit lock, with a lease, log space and a slot for this commit.
    fn lock_with_room(
        &self,
        supplies: &dyn Supplies,
        commit: &Payload<'_>,
    ) -> Result<MutexGuard<'_, CommitState>> {
        loop {
            let mut state = self.state.lock();
            match self.lack(&mut state, commit)? {
                None => return Ok(state),
                Some(lack) => {
                    drop(state);
                    self.supply(supplies, lack, commit)?;
                }
            }
        }
    }

    /// What this commit lacks to have its place now.
    ///
    /// # Errors
    /// If it cannot have any: the breaker is open, or the database closed.
    #[inline]
    pub fn lack(&self, state: &mut CommitState, commit: &Payload<'_>) -> Result<Option<Lack>> {
        self.breaker.check()?;
        if state.closed {
            return Err(closed_error());
        }
        let last_seqno = SeqNo(state.next_seqno.0 + u64::from(commit.count()) - 1);
        if last_seqno > state.lease_end {
            return Ok(Some(Lack::Lease(last_seqno)));
        }
        let record_bytes = commit.region().len() as u64;
        if !state.cursor.fits(record_bytes) {
            let rotated = self.rotate_locked(state, record_bytes)?;
            return Ok(Some(if rotated { Lack::Rotated } else { Lack::Spare }));
        }
        Ok((!self.ring.has_room()).then_some(Lack::Slot))
    }

    /// Supplies what a commit lacked. Call it without locks.
    ///
    /// # Errors
    /// From the disk.
    #[cold]
    pub fn supply(&self, supplies: &dyn Supplies, lack: Lack, commit: &Payload<'_>) -> Result<()> {
        match lack {
            Lack::Lease(past) => supplies.extend_lease(past)?,
            Lack::Rotated => supplies.log_rotated(),
            Lack::Spare => supplies.create_spare(commit.region().len() as u64)?,
            Lack::Slot => self.ring.wait_room(),
        }
        Ok(())
    }

    /// Appends a record that says up to where the log is synced, if there is room for it.
    pub fn mark_synced(&self) {
        let mut state = self.state.lock();
        if !state.cursor.fits(record::HEADER_BYTES as u64) || self.ring.has_failed() {
            return;
        }
        let (seqno, copied) = (state.next_seqno, self.ring.copied());
        let mark = RecordHeader::bare(RecordKind::SyncMark, seqno, copied, self.syncer.synced());
        let reserved = state.cursor.reserve(record::HEADER_BYTES as u64);
        let stored = reserved.store(&mark.encode(reserved.file.checksum, reserved.lsn));
        if let Err(source) = stored {
            self.log_failed(&Error::io("write", self.logs.path(&reserved.file), source));
        }
    }

    fn rotate_locked(&self, state: &mut CommitState, record_bytes: u64) -> Result<bool> {
        let marks = Marks {
            seqno: state.next_seqno,
            copied: self.ring.copied(),
            durable: self.syncer.synced(),
        };
        self.logs
            .rotate(&mut state.cursor, record_bytes, marks)
            .inspect_err(|error| self.log_failed(error))
    }

    /// A record could not be stored: its error, after the breaker was opened with it.
    #[cold]
    pub fn not_stored(&self, reserved: &Reserved, source: std::io::Error) -> Error {
        let error = Error::io("write", self.logs.path(&reserved.file), source);
        self.log_failed(&error);
        error
    }

    /// The log cannot be written any more: nothing that is not published will be.
    fn log_failed(&self, error: &Error) {
        self.breaker.open(DegradedCause::LogWrite, error);
        self.ring.fail();
    }

    /// Waits until the commit is visible to every reader.
    ///
    /// # Errors
    /// If it, or one before it, could not be written: then it is unknown until resume or reopen.
    #[inline]
    pub fn wait_published(&self, place: Place) -> Result<()> {
        if self.ring.wait_published(place) { Ok(()) } else { Err(self.breaker.error()) }
    }
}

#[cold]
pub(crate) fn closed_error() -> Error {
    Error::new(ErrorKind::Closed).context("the database is closed")
}

impl CommitState {
    /// # Errors
    /// `Closed` if one of the keyspaces was dropped.
    #[inline]
    pub fn check_trees(&self, trees: &[&Tree]) -> Result<()> {
        match trees.iter().find(|tree| self.actives[tree.slot].is_none()) {
            Some(tree) => Err(tree.gone()),
            None => Ok(()),
        }
    }

    /// The active memtable of a slot, for a record at `lsn`.
    fn choose(&mut self, slot: usize, lsn: Lsn) -> Arc<Memtable> {
        let active = self.actives[slot].as_mut().expect("checked before");
        active.first_lsn.get_or_insert(lsn);
        active.memtable.clone()
    }

    /// Goes on in another log, after a failure. Nothing is under way and nothing pins the old one.
    pub fn restart(&mut self, cursor: LogCursor) {
        self.commits_end = cursor.lsn();
        self.cursor = cursor;
    }

    /// Replaces the active memtable, whose contents are in tables as far as they count.
    pub fn replace_active(&mut self, slot: usize, memtable: Arc<Memtable>) {
        if let Some(active) = &mut self.actives[slot] {
            *active = Active { memtable, first_lsn: None };
        }
    }

    /// Gives a keyspace its slot.
    pub fn add_slot(&mut self, memtable: Arc<Memtable>) -> usize {
        self.actives.push(Some(Active { memtable, first_lsn: None }));
        self.actives.len() - 1
    }

    /// Takes no more commits for this keyspace.
    pub fn drop_slot(&mut self, tree: &Tree) {
        if let Some(needed) = self.needed_from(tree, SeqNo::ZERO) {
            self.dropped.insert(tree.slot, needed);
        }
        self.actives[tree.slot] = None;
    }

    /// Takes no more commits at all.
    pub fn close(&mut self) {
        self.closed = true;
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    pub fn next_seqno(&self) -> SeqNo {
        self.next_seqno
    }

    pub fn lease_end(&self) -> SeqNo {
        self.lease_end
    }

    pub fn set_lease_end(&mut self, lease_end: SeqNo) {
        assert!(lease_end >= self.lease_end, "leases only grow");
        self.lease_end = lease_end;
    }

    pub fn lsn(&self) -> Lsn {
        self.cursor.lsn()
    }

    /// Where the record of this commit would end.
    pub fn lsn_after(&self, commit: &Payload<'_>) -> Lsn {
        Lsn(self.cursor.lsn().0 + commit.region().len() as u64)
    }

    pub fn cursor(&self) -> &LogCursor {
        &self.cursor
    }

    /// Freezes the active memtable of `tree` and puts `fresh` in its place, unless it has no
    /// operations or, with `only`, is not that one any more. The new view is in place before
    /// anything is published into `fresh`.
    pub fn freeze(
        &mut self,
        tree: &Tree,
        fresh: Arc<Memtable>,
        only: Option<&Arc<Memtable>>,
    ) -> bool {
        let (end_lsn, last_seqno) = (self.commits_end, SeqNo(self.next_seqno.0 - 1));
        let Some(active) = self.actives[tree.slot].as_mut() else { return false };
        if only.is_some_and(|only| !Arc::ptr_eq(only, &active.memtable)) {
            return false;
        }
        let Some(first_lsn) = active.first_lsn.take() else { return false };
        let memtable = std::mem::replace(&mut active.memtable, fresh.clone());
        let view = tree.view();
        let mut frozen = vec![Arc::new(Frozen { memtable, first_lsn, end_lsn, last_seqno })];
        frozen.extend(view.frozen.iter().cloned());
        let version = view.version.clone();
        tree.replace_view(View { active: fresh, frozen, version });
        true
    }

    /// Position of the oldest record in the active memtable of this keyspace.
    pub fn active_from(&self, tree: &Tree) -> Option<Lsn> {
        self.actives[tree.slot].as_ref()?.first_lsn
    }

    /// Lets go of the frozen memtables through `upto` of a keyspace that was dropped.
    pub fn forget_frozen(&mut self, tree: &Tree, upto: SeqNo) {
        let view = tree.view_arc();
        let frozen = view.frozen.iter().filter(|frozen| frozen.last_seqno > upto);
        let frozen = frozen.cloned().collect();
        let (active, version) = (view.active.clone(), view.version.clone());
        tree.replace_view(View { active, frozen, version });
    }

    /// Position of the oldest record of this keyspace that is in no table, if its frozen
    /// memtables through `flushed` are.
    pub fn needed_from(&self, tree: &Tree, flushed: SeqNo) -> Option<Lsn> {
        let Some(active) = &self.actives[tree.slot] else {
            return self.dropped.get(&tree.slot).copied();
        };
        let active = active.first_lsn;
        let view = tree.view();
        let frozen = view.frozen.iter().filter(|frozen| frozen.last_seqno > flushed);
        frozen.map(|frozen| frozen.first_lsn).chain(active).min()
    }
}
