//! Batches: several operations, on several keyspaces, that become visible and durable together.

use std::convert::Infallible;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::batch::{BatchBuilder, Operations};
use crate::db::Handle;
use crate::db::engine::Engine;
use crate::db::guard::{Guard, Must};
use crate::db::keyspace::Keyspace;
use crate::db::once::{Draft, EventId, Once, Outcome};
use crate::db::snapshot::Snapshot;
use crate::error::{Error, Result};
use crate::operator::Operand;
use crate::options::Durability;
use crate::tree::Tree;
use crate::write::pressure::Patience;
use crate::write::ring::Place;
use crate::write::stamps::Check;
use crate::write::ticket::Ticket;

/// Operations that are committed together: after a crash all of them are there or none, and no
/// reader ever sees a part of them.
///
/// Operations apply in the order they were added. One that is at fault (a key too large, a
/// keyspace of another database) is reported by the commit, and nothing is committed then.
#[must_use = "a batch does nothing until it is committed"]
pub struct Batch {
    handle: Arc<Handle>,
    builder: BatchBuilder,
    /// The keyspaces with operations, each once.
    trees: SmallVec<[Arc<Tree>; 2]>,
    /// What must hold for it to be committed.
    guards: Vec<Guard>,
    /// Bytes of keys and values.
    user_bytes: u64,
    /// The first operation that is at fault.
    fault: Option<Error>,
}

/// What a batch consists of, for one that is committed together with those of other shards.
pub(crate) struct Insides<'a> {
    pub engine: &'a Engine,
    pub builder: &'a mut BatchBuilder,
    /// The keyspaces with operations.
    pub trees: &'a [Arc<Tree>],
    pub guards: &'a [Guard],
    /// Bytes of keys and values.
    pub user_bytes: u64,
}

impl Batch {
    pub(crate) fn new(handle: Arc<Handle>) -> Batch {
        let (builder, trees) = (BatchBuilder::new(), SmallVec::new());
        Batch { handle, builder, trees, guards: Vec::new(), user_bytes: 0, fault: None }
    }

    /// Sets the value of a key.
    pub fn put(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> &mut Batch {
        let (key, value) = (key.as_ref(), value.as_ref());
        if self.admit(keyspace, key, value) {
            self.builder.put(keyspace.tree.id, key, value);
        }
        self
    }

    /// Removes a key.
    pub fn delete(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> &mut Batch {
        let key = key.as_ref();
        if self.admit(keyspace, key, &[]) {
            self.builder.delete(keyspace.tree.id, key);
        }
        self
    }

    /// Adds an operand to a key.
    pub fn merge<'a>(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        operand: impl Into<Operand<'a>>,
    ) -> &mut Batch {
        let (key, operand) = (key.as_ref(), operand.into());
        let operand = operand.as_bytes();
        if let Err(error) = keyspace.tree.check_operand(operand) {
            self.fault.get_or_insert(error);
        } else if self.admit(keyspace, key, operand) {
            self.builder.merge(keyspace.tree.id, key, operand);
        }
        self
    }

    /// Commits only if the key has no value. As every guard, it holds at the commit's own place in
    /// the order of all commits, plain ones included; if it does not, the commit fails with
    /// `Conflict` and has no effect. What the batch itself does to the key does not count.
    pub fn require_absent(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> &mut Batch {
        self.require(keyspace, key.as_ref(), Must::BeAbsent)
    }

    /// Commits only if the key has this value, operands folded. See [`Batch::require_absent`].
    pub fn require_value(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> &mut Batch {
        self.require(keyspace, key.as_ref(), Must::Equal(value.as_ref().into()))
    }

    /// Commits only if nobody wrote the key since the snapshot, which the batch holds meanwhile. A
    /// key that was not there, and was put and deleted again since, may count as unchanged. See
    /// [`Batch::require_absent`].
    pub fn require_unchanged(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        snapshot: &Snapshot,
    ) -> &mut Batch {
        if !snapshot.is_of(&self.handle) {
            self.fault.get_or_insert_with(|| Error::invalid("the snapshot is of another database"));
        }
        self.require(keyspace, key.as_ref(), Must::BeUnchangedSince(snapshot.clone()))
    }

    pub(crate) fn require(&mut self, keyspace: &Keyspace, key: &[u8], must: Must) -> &mut Batch {
        if self.accepts(keyspace, key, &[]) {
            self.guards.push(Guard { tree: keyspace.tree.clone(), key: key.into(), must });
        }
        self
    }

    /// Notes the fault of an operation, if it has one.
    fn accepts(&mut self, keyspace: &Keyspace, key: &[u8], value: &[u8]) -> bool {
        if self.fault.is_some() {
            return false;
        }
        if !Arc::ptr_eq(&self.handle, &keyspace.handle) {
            let what = format!("keyspace {:?} is of another database", keyspace.name());
            self.fault = Some(Error::invalid(what));
            return false;
        }
        if let Err(error) = self.handle.engine.check_sizes(key, value) {
            self.fault = Some(error);
            return false;
        }
        true
    }

    /// Notes the keyspace of an operation, or its fault.
    fn admit(&mut self, keyspace: &Keyspace, key: &[u8], value: &[u8]) -> bool {
        if !self.accepts(keyspace, key, value) {
            return false;
        }
        if !self.trees.iter().any(|tree| tree.id == keyspace.tree.id) {
            self.trees.push(keyspace.tree.clone());
        }
        self.user_bytes += (key.len() + value.len()) as u64;
        true
    }

    /// How many operations it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.builder.len()
    }

    /// True if it has no operations.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.builder.is_empty()
    }

    /// Takes all operations and guards out, and keeps the memory for others.
    pub fn clear(&mut self) {
        self.builder.clear();
        self.trees.clear();
        self.guards.clear();
        self.user_bytes = 0;
        self.fault = None;
    }

    // For batches over several shards.

    /// What is committed in this shard.
    pub(crate) fn insides(&mut self) -> Insides<'_> {
        let Batch { handle, builder, trees, guards, user_bytes, .. } = self;
        Insides { engine: &handle.engine, builder, trees, guards, user_bytes: *user_bytes }
    }

    /// True if there is nothing to commit, and nothing to look at.
    pub(crate) fn is_idle(&self) -> bool {
        self.builder.is_empty() && self.guards.is_empty() && self.fault.is_none()
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.handle.engine
    }

    /// # Errors
    /// If an operation is at fault.
    pub(crate) fn check_fault(&self) -> Result<()> {
        self.fault.as_ref().map_or(Ok(()), |fault| Err(fault.duplicate()))
    }

    // For the toolkit.

    /// Where the batch stands: for [`Batch::piece`].
    pub(crate) fn position(&self) -> (usize, u32) {
        self.builder.position()
    }

    /// Bytes of the operations as they are written.
    pub(crate) fn bytes(&self) -> usize {
        self.builder.bytes()
    }

    /// Whether its operations may become part of another batch of `db`.
    ///
    /// # Errors
    /// If one of them is at fault, and `InvalidArgument` if the batch has guards or is of another
    /// database.
    pub(crate) fn check_appendable(&self, db: &Handle) -> Result<()> {
        if let Some(fault) = &self.fault {
            return Err(fault.duplicate());
        }
        if !self.guards.is_empty() {
            return Err(Error::invalid("a batch with guards is committed by itself"));
        }
        if !std::ptr::eq(&*self.handle, db) {
            return Err(Error::invalid("the batch is of another database"));
        }
        Ok(())
    }

    /// Adds the operations of another batch that [`Batch::check_appendable`] was asked about.
    pub(crate) fn append(&mut self, other: &Batch) {
        self.builder.append(&other.builder);
        for tree in &other.trees {
            if !self.trees.iter().any(|known| known.id == tree.id) {
                self.trees.push(tree.clone());
            }
        }
        self.user_bytes += other.user_bytes;
    }

    /// The operations between two positions, as a batch of their own.
    pub(crate) fn piece(&self, from: (usize, u32), to: (usize, u32)) -> Batch {
        let mut piece = Batch::new(self.handle.clone());
        piece.builder = self.builder.piece(from, to);
        let payload = piece.builder.finish();
        let mut user_bytes = 0;
        for operation in Operations::new(payload.bytes()).expect("encoded by ourselves") {
            let operation = operation.expect("encoded by ourselves");
            user_bytes += (operation.key.len() + operation.value.len()) as u64;
            if !piece.trees.iter().any(|known| known.id == operation.keyspace) {
                let named = self.trees.iter().find(|tree| tree.id == operation.keyspace);
                piece.trees.push(named.expect("every keyspace of a batch is named").clone());
            }
        }
        piece.user_bytes = user_bytes;
        piece
    }

    // Commits.

    /// Commits with the durability that the database was opened with. Empties the batch.
    ///
    /// # Errors
    /// `InvalidArgument` if an operation is at fault or the batch is too large for the memory
    /// budget; `Conflict` if a guard does not hold, and the batch then still has its operations;
    /// `Degraded` or `NoSpace` while the disk fails; `Closed` if a keyspace was dropped.
    pub fn commit(&mut self) -> Result<()> {
        let durability = self.handle.engine.options.durability;
        self.commit_as(durability, Patience::Wait)
    }

    /// Commits with this durability. Empties the batch.
    ///
    /// # Errors
    /// As [`Batch::commit`].
    pub fn commit_with(&mut self, durability: Durability) -> Result<()> {
        self.commit_as(durability, Patience::Wait)
    }

    /// [`Batch::commit`] that fails at once where it would have to wait for the disk to keep up;
    /// the batch then still has its operations.
    ///
    /// # Errors
    /// As [`Batch::commit`], and `Busy` with the time after which to try again.
    pub fn try_commit(&mut self) -> Result<()> {
        let durability = self.handle.engine.options.durability;
        self.commit_as(durability, Patience::None)
    }

    /// [`Batch::commit`] that waits at most so long for the disk to keep up; the batch then still
    /// has its operations.
    ///
    /// # Errors
    /// As [`Batch::try_commit`].
    pub fn commit_within(&mut self, wait: Duration) -> Result<()> {
        let engine = &self.handle.engine;
        let (durability, patience) = (engine.options.durability, engine.deadline(wait));
        self.commit_as(durability, patience)
    }

    /// Commits without waiting, with the durability that the database was opened with. The ticket
    /// tells when the commit is acknowledged. Empties the batch.
    ///
    /// # Errors
    /// As [`Batch::commit`], for what is known at once.
    pub fn commit_async(&mut self) -> Result<Ticket> {
        self.commit_async_with(self.handle.engine.options.durability)
    }

    /// Commits without waiting, with this durability. Empties the batch.
    ///
    /// # Errors
    /// As [`Batch::commit_async`].
    pub fn commit_async_with(&mut self, durability: Durability) -> Result<Ticket> {
        let Some(place) = self.submit(Patience::Wait)? else {
            return Ok(Ticket::done(self.handle.engine.pipeline.clone()));
        };
        let user_bytes = self.user_bytes;
        self.clear();
        let engine = &self.handle.engine;
        engine.charge(user_bytes, Patience::Wait);
        Ok(Ticket::new(engine.pipeline.clone(), place, durability))
    }

    /// Commits the batch and the token of `event` together, unless the token is there: then nothing
    /// is done, and the outcome is that of the first time. Empties the batch in both cases.
    ///
    /// It does not matter whether the first time was by another thread a moment ago, ended with an
    /// error that left its outcome unknown, or came before a crash: the event takes effect once. An
    /// `Applied` survives what the durability says, and so does what a `Duplicate` speaks of. How
    /// long events are remembered is said by [`TokenWindow`](crate::TokenWindow). A batch without
    /// operations may be committed too: it leaves the token alone.
    ///
    /// The first call of a database makes two hidden keyspaces, which takes some syncs.
    ///
    /// # Errors
    /// As [`Batch::commit`]; the event may then be committed again. `InvalidArgument` too if source
    /// or id are too long.
    pub fn commit_once(&mut self, event: EventId<'_>) -> Result<Outcome> {
        let durability = self.handle.engine.options.durability;
        self.once(event, durability, Patience::Wait)
    }

    /// [`Batch::commit_once`] with this durability.
    ///
    /// # Errors
    /// As [`Batch::commit_once`].
    pub fn commit_once_with(
        &mut self,
        event: EventId<'_>,
        durability: Durability,
    ) -> Result<Outcome> {
        self.once(event, durability, Patience::Wait)
    }

    /// [`Batch::commit_once`] that fails at once where it would have to wait for the disk to keep up;
    /// the batch then still has its operations.
    ///
    /// # Errors
    /// As [`Batch::commit_once`], and `Busy` with the time after which to try again.
    pub fn try_commit_once(&mut self, event: EventId<'_>) -> Result<Outcome> {
        let durability = self.handle.engine.options.durability;
        self.once(event, durability, Patience::None)
    }

    /// [`Batch::commit_once`] that waits at most so long for the disk to keep up; the batch then still
    /// has its operations.
    ///
    /// # Errors
    /// As [`Batch::try_commit_once`].
    pub fn commit_once_within(&mut self, event: EventId<'_>, wait: Duration) -> Result<Outcome> {
        let engine = &self.handle.engine;
        let (durability, patience) = (engine.options.durability, engine.deadline(wait));
        self.once(event, durability, patience)
    }

    /// [`Batch::commit_once`] without waiting until it is acknowledged: the outcome is known at once,
    /// and the ticket tells when it, the first time of a duplicate too, has the durability that the
    /// database was opened with.
    ///
    /// # Errors
    /// As [`Batch::commit_once`], for what is known at once.
    pub fn commit_once_async(&mut self, event: EventId<'_>) -> Result<(Outcome, Ticket)> {
        let durability = self.handle.engine.options.durability;
        let (once, user_bytes) = self.submit_once(event, Patience::Wait)?;
        let engine = &self.handle.engine;
        let (outcome, place) = match once {
            Once::Placed(place) => {
                engine.charge(user_bytes, Patience::Wait);
                (Outcome::Applied { seqno: place.last_seqno.0 }, place)
            }
            // It is published, so its record lies before this.
            Once::Duplicate(first) => {
                (Outcome::Duplicate { seqno: first.0 }, engine.pipeline.ring.published_place())
            }
        };
        Ok((outcome, Ticket::new(engine.pipeline.clone(), place, durability)))
    }

    fn once(
        &mut self,
        event: EventId<'_>,
        durability: Durability,
        patience: Patience,
    ) -> Result<Outcome> {
        let (once, user_bytes) = self.submit_once(event, patience)?;
        let engine = &self.handle.engine;
        match once {
            Once::Placed(place) => {
                engine.acknowledge(place, user_bytes, durability, patience)?;
                Ok(Outcome::Applied { seqno: place.last_seqno.0 })
            }
            Once::Duplicate(first) => {
                if durability == Durability::Disk {
                    // It is published, so its record lies before this.
                    engine.pipeline.wait_durable(engine.pipeline.ring.copied())?;
                }
                Ok(Outcome::Duplicate { seqno: first.0 })
            }
        }
    }

    /// Gives the batch and its token their place in the order, unless the token is there; and the
    /// bytes to be paid for.
    fn submit_once(&mut self, event: EventId<'_>, patience: Patience) -> Result<(Once, u64)> {
        if let Some(fault) = &self.fault {
            return Err(fault.duplicate());
        }
        let Batch { builder, trees, guards, .. } = self;
        let draft = Draft { builder, trees, guards, patience };
        let once = self.handle.engine.write_once(&event, draft)?;
        let user_bytes = self.user_bytes;
        self.clear();
        Ok((once, user_bytes))
    }

    fn commit_as(&mut self, durability: Durability, patience: Patience) -> Result<()> {
        let Some(place) = self.submit(patience)? else { return Ok(()) };
        let user_bytes = self.user_bytes;
        self.clear();
        self.handle.engine.acknowledge(place, user_bytes, durability, patience)
    }

    /// Gives the batch its place in the order; `None` if it has no operations.
    pub(crate) fn submit(&mut self, patience: Patience) -> Result<Option<Place>> {
        if let Some(fault) = &self.fault {
            return Err(fault.duplicate());
        }
        let engine = &self.handle.engine;
        if self.builder.is_empty() {
            return engine.look_at(&self.guards, &mut Check::default()).map(|()| None);
        }
        let trees: SmallVec<[&Tree; 2]> = self.trees.iter().map(|tree| &**tree).collect();
        if self.guards.is_empty() {
            return engine.write_batch(&mut self.builder, &trees, patience).map(Some);
        }
        let guards = &self.guards;
        let look = |check: &mut Check| engine.look_at(guards, check).map(ControlFlow::Continue);
        let written = engine.write_checked(&mut self.builder, &trees, patience, look)?;
        let ControlFlow::<Infallible, Place>::Continue(place) = written;
        Ok(Some(place))
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} operations)", self.len())
    }
}
