//! Batches over several shards.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use smallvec::SmallVec;

use crate::batch::{BatchBuilder, Operations};
use crate::db::batch::{Batch, Insides};
use crate::db::engine::Engine;
use crate::db::guard::Must;
use crate::db::joint::{JointPart, commit_joint, commit_joint_checked};
use crate::db::once::{Draft, EventId, Once, Outcome, TOKENS};
use crate::error::{Error, ErrorKind, Result};
use crate::key::EntryKind;
use crate::operator::Operand;
use crate::options::Durability;
use crate::shard::Handle;
use crate::shard::keyspace::ShardedKeyspace;
use crate::shard::map::SlotMap;
use crate::shard::rates::Verb;
use crate::shard::root::{Root, Space};
use crate::shard::routing::{Entered, Pass, SOURCES_SPACE, SpaceId, TOKENS_SPACE};
use crate::shard::slots::{ShardIndex, Slot};
use crate::shard::snapshot::{Moment, ShardedSnapshot};
use crate::tree::Tree;
use crate::write::joint::Places;
use crate::write::pressure::Patience;
use crate::write::ring::Place;
use crate::write::stamps::Check;
use crate::write::ticket::Ticket;

/// Operations that are committed together, over however many shards: after a crash all of them are
/// there or none, and no snapshot ever sees a part of them. If all keys lie in one shard it costs
/// what a [`Batch`] costs.
///
/// Operations apply in the order they were added. One that is at fault (a key too large, a
/// keyspace of another database) is reported by the commit, and nothing is committed then.
#[must_use = "a batch does nothing until it is committed"]
pub struct ShardedBatch {
    handle: Arc<Handle>,
    /// By which the operations are divided.
    map: Arc<SlotMap>,
    /// By shard, ascending.
    parts: SmallVec<[Part; 1]>,
    /// Of all operations and guards; some may be named more than once.
    slots: Vec<Slot>,
    /// The keyspaces with operations or guards, each once.
    spaces: SmallVec<[Arc<Space>; 2]>,
    /// What the snapshots were that guards speak of.
    since: Vec<Since>,
    fault: Option<Error>,
}

/// What is committed in one shard.
struct Part {
    shard: ShardIndex,
    batch: Batch,
}

/// A key that must not have been written since a snapshot.
struct Since {
    moment: Arc<Moment>,
    space: Arc<Space>,
    slot: Slot,
    key: Box<[u8]>,
}

/// A key to be noted as written: see [`Pass::note`].
type Written = Vec<(SpaceId, Slot, Box<[u8]>)>;

impl ShardedBatch {
    pub(crate) fn new(handle: Arc<Handle>) -> ShardedBatch {
        let map = handle.root.gate.pass().map.clone();
        ShardedBatch {
            handle,
            map,
            parts: SmallVec::new(),
            slots: Vec::new(),
            spaces: SmallVec::new(),
            since: Vec::new(),
            fault: None,
        }
    }

    /// Sets the value of a key.
    pub fn put(
        &mut self,
        keyspace: &ShardedKeyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> &mut ShardedBatch {
        let key = key.as_ref();
        if let Some((shard, _)) = self.admit(keyspace, key, Verb::Write) {
            self.part(shard).put(keyspace.space.at(shard), key, value);
        }
        self
    }

    /// Removes a key.
    pub fn delete(
        &mut self,
        keyspace: &ShardedKeyspace,
        key: impl AsRef<[u8]>,
    ) -> &mut ShardedBatch {
        let key = key.as_ref();
        if let Some((shard, _)) = self.admit(keyspace, key, Verb::Write) {
            self.part(shard).delete(keyspace.space.at(shard), key);
        }
        self
    }

    /// Adds an operand to a key.
    pub fn merge<'a>(
        &mut self,
        keyspace: &ShardedKeyspace,
        key: impl AsRef<[u8]>,
        operand: impl Into<Operand<'a>>,
    ) -> &mut ShardedBatch {
        let key = key.as_ref();
        if let Some((shard, _)) = self.admit(keyspace, key, Verb::Write) {
            self.part(shard).merge(keyspace.space.at(shard), key, operand);
        }
        self
    }

    /// Commits only if the key has no value. See [`Batch::require_absent`].
    pub fn require_absent(
        &mut self,
        keyspace: &ShardedKeyspace,
        key: impl AsRef<[u8]>,
    ) -> &mut ShardedBatch {
        let key = key.as_ref();
        if let Some((shard, _)) = self.admit(keyspace, key, Verb::Read) {
            self.part(shard).require_absent(keyspace.space.at(shard), key);
        }
        self
    }

    /// Commits only if the key has this value, operands folded. See [`Batch::require_absent`].
    pub fn require_value(
        &mut self,
        keyspace: &ShardedKeyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> &mut ShardedBatch {
        let key = key.as_ref();
        if let Some((shard, _)) = self.admit(keyspace, key, Verb::Read) {
            self.part(shard).require_value(keyspace.space.at(shard), key, value);
        }
        self
    }

    /// Commits only if nobody wrote the key since the snapshot, which the batch holds meanwhile. A
    /// key whose slot has gone to another shard since counts as written. See
    /// [`Batch::require_unchanged`].
    pub fn require_unchanged(
        &mut self,
        keyspace: &ShardedKeyspace,
        key: impl AsRef<[u8]>,
        snapshot: &ShardedSnapshot,
    ) -> &mut ShardedBatch {
        let key = key.as_ref();
        let moment = snapshot.moment();
        if !moment.is_of(&self.handle) {
            self.fault.get_or_insert_with(|| Error::invalid("the snapshot is of another database"));
        }
        if let Some((shard, slot)) = self.admit(keyspace, key, Verb::Read) {
            let (moment, space) = (moment.clone(), keyspace.space.clone());
            if moment.map().owner(slot) == shard {
                let seen = moment.shard(shard).clone();
                self.part(shard).require_unchanged(keyspace.space.at(shard), key, &seen);
            }
            self.since.push(Since { moment, space, slot, key: key.into() });
        }
        self
    }

    /// The shard and slot of an operation or a guard; notes its fault if it has one.
    fn admit(
        &mut self,
        keyspace: &ShardedKeyspace,
        key: &[u8],
        verb: Verb,
    ) -> Option<(ShardIndex, Slot)> {
        if self.fault.is_some() {
            return None;
        }
        if !Arc::ptr_eq(&self.handle, &keyspace.handle) {
            let what = format!("keyspace {:?} is of another database", keyspace.name());
            self.fault = Some(Error::invalid(what));
            return None;
        }
        if let Err(error) = keyspace.space.at(0).tree.check_live() {
            self.fault = Some(error);
            return None;
        }
        let slot = match self.handle.root.slot(&self.map, key) {
            Ok(slot) => slot,
            Err(error) => {
                self.fault = Some(error);
                return None;
            }
        };
        let root = &self.handle.root;
        root.load.note(verb, slot, keyspace.space.id, key, &root.runtime);
        if !self.spaces.iter().any(|space| space.id == keyspace.space.id) {
            self.spaces.push(keyspace.space.clone());
        }
        if self.slots.last() != Some(&slot) {
            self.slots.push(slot);
        }
        Some((self.map.owner(slot), slot))
    }

    /// True if something is committed in the shard of this key already.
    pub(crate) fn reaches(&self, key: &[u8]) -> bool {
        let slot = self.handle.root.slot(&self.map, key);
        let is_of = |shard: ShardIndex| {
            self.parts.iter().any(|part| part.shard == shard && !part.batch.is_empty())
        };
        slot.is_ok_and(|slot| is_of(self.map.owner(slot)))
    }

    /// What is committed in this shard.
    fn part(&mut self, shard: ShardIndex) -> &mut Batch {
        let at = self.parts.binary_search_by_key(&shard, |part| part.shard);
        let at = at.unwrap_or_else(|at| {
            let batch = self.handle.root.shard(shard).batch();
            self.parts.insert(at, Part { shard, batch });
            at
        });
        &mut self.parts[at].batch
    }

    /// How many operations it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.batch.len()).sum()
    }

    /// True if it has no operations.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Over how many shards it is committed, as keys lie now.
    #[must_use]
    pub fn shard_count(&self) -> usize {
        self.parts.iter().filter(|part| !part.batch.is_empty()).count()
    }

    /// Takes all operations and guards out, and keeps some of the memory for others.
    pub fn clear(&mut self) {
        self.parts.truncate(1);
        self.parts.iter_mut().for_each(|part| part.batch.clear());
        self.slots.clear();
        self.spaces.clear();
        self.since.clear();
        self.fault = None;
    }

    // Commits.

    fn durability(&self) -> Durability {
        self.handle.root.options.durability
    }

    /// Commits with the durability that the database was opened with. Empties the batch.
    ///
    /// # Errors
    /// As [`Batch::commit`].
    pub fn commit(&mut self) -> Result<()> {
        self.commit_as(self.durability(), Patience::Wait)
    }

    /// Commits with this durability. Empties the batch.
    ///
    /// # Errors
    /// As [`Batch::commit`].
    pub fn commit_with(&mut self, durability: Durability) -> Result<()> {
        self.commit_as(durability, Patience::Wait)
    }

    /// [`ShardedBatch::commit`] that fails at once where it would have to wait for a disk to keep up;
    /// the batch then still has its operations.
    ///
    /// # Errors
    /// As [`Batch::try_commit`].
    pub fn try_commit(&mut self) -> Result<()> {
        self.commit_as(self.durability(), Patience::None)
    }

    /// [`ShardedBatch::commit`] that waits at most so long for the disks to keep up; the batch then
    /// still has its operations.
    ///
    /// # Errors
    /// As [`Batch::try_commit`].
    pub fn commit_within(&mut self, wait: Duration) -> Result<()> {
        let patience = self.handle.root.deadline(wait);
        self.commit_as(self.durability(), patience)
    }

    /// Commits without waiting, with the durability that the database was opened with. The ticket
    /// tells when the commit is acknowledged. Empties the batch.
    ///
    /// # Errors
    /// As [`Batch::commit_async`].
    pub fn commit_async(&mut self) -> Result<ShardedTicket> {
        self.commit_async_with(self.durability())
    }

    /// Commits without waiting, with this durability. Empties the batch.
    ///
    /// # Errors
    /// As [`Batch::commit_async`].
    pub fn commit_async_with(&mut self, durability: Durability) -> Result<ShardedTicket> {
        let places = self.submit(Patience::Wait)?;
        let ticket = ShardedTicket::new(&self.parts, &places, durability);
        self.charge(Patience::Wait);
        self.clear();
        Ok(ticket)
    }

    /// Commits the batch and the token of `event` together, unless the token is there: then nothing
    /// is done, and the outcome is that of the first time. Empties the batch in both cases. See
    /// [`Batch::commit_once`].
    ///
    /// The token lies where the source of the event lies, as if that were a key. If the batch has
    /// keys of other shards the commit goes over several; with a partition by tenants, name the
    /// source so that it has the tenant's part.
    ///
    /// # Errors
    /// As [`Batch::commit_once`].
    pub fn commit_once(&mut self, event: EventId<'_>) -> Result<Outcome> {
        self.once(event, self.durability(), Patience::Wait)
    }

    /// [`ShardedBatch::commit_once`] with this durability.
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

    /// [`ShardedBatch::commit_once`] that fails at once where it would have to wait for a disk to keep
    /// up; the batch then still has its operations.
    ///
    /// # Errors
    /// As [`Batch::try_commit_once`].
    pub fn try_commit_once(&mut self, event: EventId<'_>) -> Result<Outcome> {
        self.once(event, self.durability(), Patience::None)
    }

    /// [`ShardedBatch::commit_once`] that waits at most so long for the disks to keep up; the batch
    /// then still has its operations.
    ///
    /// # Errors
    /// As [`Batch::try_commit_once`].
    pub fn commit_once_within(&mut self, event: EventId<'_>, wait: Duration) -> Result<Outcome> {
        let patience = self.handle.root.deadline(wait);
        self.once(event, self.durability(), patience)
    }

    /// [`ShardedBatch::commit_once`] without waiting until it is acknowledged: the outcome is known at
    /// once, and the ticket tells when it, the first time of a duplicate too, has the durability that
    /// the database was opened with.
    ///
    /// # Errors
    /// As [`Batch::commit_once_async`].
    pub fn commit_once_async(&mut self, event: EventId<'_>) -> Result<(Outcome, ShardedTicket)> {
        let durability = self.durability();
        let (outcome, places) = self.submit_once(event, Patience::Wait)?;
        let ticket = ShardedTicket::new(&self.parts, &places, durability);
        if !outcome.is_duplicate() {
            self.charge(Patience::Wait);
        }
        self.clear();
        Ok((outcome, ticket))
    }

    fn commit_as(&mut self, durability: Durability, patience: Patience) -> Result<()> {
        let places = self.submit(patience)?;
        self.acknowledge(&places, durability, patience)
    }

    fn once(
        &mut self,
        event: EventId<'_>,
        durability: Durability,
        patience: Patience,
    ) -> Result<Outcome> {
        let (outcome, places) = self.submit_once(event, patience)?;
        if outcome.is_duplicate() {
            let ticket = ShardedTicket::new(&self.parts, &places, durability);
            self.clear();
            ticket.wait()?;
        } else {
            self.acknowledge(&places, durability, patience)?;
        }
        Ok(outcome)
    }

    /// Waits until the commit is published, durable if asked for, and paid for; empties the batch.
    fn acknowledge(
        &mut self,
        places: &Places,
        durability: Durability,
        patience: Patience,
    ) -> Result<()> {
        let mut acknowledged = Ok(());
        for (part, place) in self.parts.iter_mut().zip(places) {
            let Insides { engine, user_bytes, .. } = part.batch.insides();
            if let Some(place) = place {
                let paid = engine.acknowledge(*place, user_bytes, durability, patience);
                acknowledged = acknowledged.and(paid);
            }
        }
        self.clear();
        acknowledged
    }

    fn charge(&mut self, patience: Patience) {
        for part in &mut self.parts {
            let Insides { engine, user_bytes, .. } = part.batch.insides();
            engine.charge(user_bytes, patience);
        }
    }

    /// Enters with the slots of this batch, divides it by the map of the pass, and sees that nothing
    /// is at fault.
    fn enter(&mut self, patience: Patience) -> Result<Entered> {
        if let Some(fault) = &self.fault {
            return Err(fault.duplicate());
        }
        let handle = self.handle.clone();
        let root = &handle.root;
        let pass = root.gate.enter_slowly(&self.slots, patience, &root.runtime)?;
        if !Arc::ptr_eq(&pass.map, &self.map) {
            self.divide_by(pass.map.clone())?;
        }
        // Memory that was kept, for a shard that has no part this time.
        self.parts.retain(|part| !part.batch.is_idle());
        for part in &self.parts {
            part.batch.check_fault()?;
        }
        for Since { moment, space, slot, key } in &self.since {
            if moment.map().owner(*slot) != pass.map.owner(*slot) {
                let (name, key) = (&space.name, key.escape_ascii());
                let what = format!("key {key} of keyspace {name:?} has moved since the snapshot");
                return Err(Error::new(ErrorKind::Conflict).context(what));
            }
        }
        Ok(pass)
    }

    /// Divides the operations anew if this map has one of them elsewhere.
    fn divide_by(&mut self, map: Arc<SlotMap>) -> Result<()> {
        let before = std::mem::replace(&mut self.map, map);
        if self.slots.iter().all(|slot| before.owner(*slot) == self.map.owner(*slot)) {
            return Ok(());
        }
        let root = &self.handle.root;
        let mut parts = std::mem::take(&mut self.parts);
        let mut moved = Vec::new();
        let mut divided: Vec<Part> = Vec::new();
        let mut at = |shard: ShardIndex| -> usize {
            divided.iter().position(|part| part.shard == shard).unwrap_or_else(|| {
                divided.push(Part { shard, batch: root.shard(shard).batch() });
                divided.len() - 1
            })
        };
        let mut operations = Vec::new();
        for part in &mut parts {
            part.batch.check_fault()?;
            let of_part =
                |id| self.spaces.iter().position(|space| space.at(part.shard).tree.id == id);
            let Insides { builder, guards, .. } = part.batch.insides();
            let payload = builder.finish();
            for operation in Operations::new(payload.bytes()).expect("encoded by ourselves") {
                let operation = operation.expect("encoded by ourselves");
                let space = of_part(operation.keyspace).expect("every keyspace is named");
                let slot = root.slot(&self.map, operation.key)?;
                let (key, value): (Vec<u8>, Vec<u8>) =
                    (operation.key.into(), operation.value.into());
                operations.push((at(self.map.owner(slot)), space, operation.kind, key, value));
            }
            for guard in guards {
                let space = of_part(guard.tree.id).expect("every keyspace is named");
                let shard = self.map.owner(root.slot(&self.map, &guard.key)?);
                let must = match &guard.must {
                    Must::BeUnchangedSince(_) if shard != part.shard => continue,
                    must => must.clone(),
                };
                at(shard);
                moved.push((shard, self.spaces[space].clone(), guard.key.clone(), must));
            }
        }
        for (at, space, kind, key, value) in operations {
            let Part { shard, batch } = &mut divided[at];
            let keyspace = self.spaces[space].at(*shard);
            match kind {
                EntryKind::Put => batch.put(keyspace, key, value),
                EntryKind::Delete => batch.delete(keyspace, key),
                EntryKind::Merge => batch.merge(keyspace, key, value.as_slice()),
            };
        }
        divided.sort_by_key(|part| part.shard);
        self.parts = divided.into();
        for (shard, space, key, must) in moved {
            self.part(shard).require(space.at(shard), &key, must);
        }
        Ok(())
    }

    /// The keys that are to be noted in the dirty set of a move, with what it has of an event.
    fn moving_keys(&mut self, pass: &Pass) -> Result<Written> {
        let mut written = Vec::new();
        let Some(moving) = &pass.moving else { return Ok(written) };
        if !self.slots.iter().any(|slot| moving.slots.contains(*slot)) {
            return Ok(written);
        }
        for part in self.parts.iter_mut().filter(|part| part.shard == moving.from) {
            let Insides { builder, .. } = part.batch.insides();
            let payload = builder.finish();
            for operation in Operations::new(payload.bytes()).expect("encoded by ourselves") {
                let operation = operation.expect("encoded by ourselves");
                let slot = self.handle.root.slot(&pass.map, operation.key)?;
                let of_it =
                    |space: &&Arc<Space>| space.at(part.shard).tree.id == operation.keyspace;
                let space = self.spaces.iter().find(of_it).expect("every keyspace is named");
                written.push((space.id, slot, operation.key.into()));
            }
        }
        Ok(written)
    }

    /// Gives the parts their places; of each part its place if it has operations.
    fn submit(&mut self, patience: Patience) -> Result<Places> {
        let pass = self.enter(patience)?;
        let written = self.moving_keys(&pass)?;
        let places = match &mut self.parts[..] {
            [] => Ok(Places::new()),
            [only] => only.batch.submit(patience).map(|place| Places::from_iter([place])),
            parts => submit_joint(&self.handle.root, parts, patience),
        };
        let published = places.and_then(|places| self.wait_published(&places).map(|()| places));
        note(&pass, &written);
        published
    }

    /// Keys are noted, and the pass let go of, once the commits are published.
    fn wait_published(&mut self, places: &Places) -> Result<()> {
        for (part, place) in self.parts.iter_mut().zip(places) {
            if let Some(place) = place {
                part.batch.insides().engine.pipeline.wait_published(*place)?;
            }
        }
        Ok(())
    }

    /// The same with the token of an event; of a duplicate the places are those of all that was
    /// published before.
    fn submit_once(&mut self, event: EventId<'_>, patience: Patience) -> Result<(Outcome, Places)> {
        let slot = self.handle.root.slot(&self.map, event.source())?;
        self.slots.push(slot);
        let pass = self.enter(patience)?;
        let mut written = self.moving_keys(&pass)?;
        let home = pass.map.owner(slot);
        self.part(home);
        let at = self.parts.iter().position(|part| part.shard == home).expect("just made");
        let (name, key) = event.entry();
        let space = if name == TOKENS { TOKENS_SPACE } else { SOURCES_SPACE };
        written.push((space, slot, key.into()));
        let handle = self.handle.clone();
        let submitted = submit_once_at(&handle.root, &mut self.parts, at, event, patience);
        let published = submitted
            .and_then(|(once, places)| self.wait_published(&places).map(|()| (once, places)));
        note(&pass, &written);
        let (once, places) = published?;
        match once {
            Once::Placed(place) => Ok((Outcome::Applied { seqno: place.last_seqno.0 }, places)),
            Once::Duplicate(first) => Ok((Outcome::Duplicate { seqno: first.0 }, places)),
        }
    }
}

fn note(pass: &Pass, written: &Written) {
    written.iter().for_each(|(space, slot, key)| pass.note(*space, *slot, key));
}

/// The parts as [`commit_joint`] wants them, and the guards of each.
fn submit_joint(root: &Root, parts: &mut [Part], patience: Patience) -> Result<Places> {
    let insides: Vec<Insides<'_>> = parts.iter_mut().map(|part| part.batch.insides()).collect();
    let trees: Vec<SmallVec<[&Tree; 4]>> =
        insides.iter().map(|part| part.trees.iter().map(|tree| &**tree).collect()).collect();
    let mut guards = Vec::new();
    let mut joint: Vec<JointPart<'_>> = Vec::new();
    for (part, trees) in insides.into_iter().zip(&trees) {
        let Insides { engine, builder, guards: of_part, .. } = part;
        guards.push(of_part);
        joint.push(JointPart { engine, builder, trees });
    }
    if guards.iter().all(|guards| guards.is_empty()) {
        let places = commit_joint(&root.joints, &mut joint, None, patience)?;
        return Ok(places.expect("nothing was checked"));
    }
    let engines: Vec<&Engine> = joint.iter().map(|part| part.engine).collect();
    let look = |index: usize, check: &mut Check| {
        engines[index].look_at(guards[index], check).map(ControlFlow::Continue)
    };
    let committed = commit_joint_checked(&root.joints, &mut joint, patience, look)?;
    let ControlFlow::<std::convert::Infallible, Places>::Continue(places) = committed;
    Ok(places)
}

/// Commits with a token in the part at `home`.
fn submit_once_at(
    root: &Root,
    parts: &mut [Part],
    home: usize,
    event: EventId<'_>,
    patience: Patience,
) -> Result<(Once, Places)> {
    let published = |engine: &Engine| Some(engine.pipeline.ring.published_place());
    if parts.len() == 1 {
        let Insides { engine, builder, trees, guards, .. } = parts[0].batch.insides();
        let once = engine.write_once(&event, Draft { builder, trees, guards, patience })?;
        let place = match &once {
            Once::Placed(place) => Some(*place),
            Once::Duplicate(_) => published(engine),
        };
        return Ok((once, Places::from_iter([place])));
    }
    let part_count = parts.len();
    let mut insides: Vec<Insides<'_>> = parts.iter_mut().map(|part| part.batch.insides()).collect();
    let Insides { engine: at_home, builder, trees, guards, .. } = insides.remove(home);
    let mut others: Vec<(&Engine, &mut BatchBuilder, SmallVec<[&Tree; 4]>)> = Vec::new();
    let mut other_guards = Vec::new();
    for Insides { engine, builder, trees, guards, .. } in insides {
        others.push((engine, builder, trees.iter().map(|tree| &**tree).collect()));
        other_guards.push(guards);
    }
    let mut all_places = Places::new();
    let draft = Draft { builder, trees, guards, patience };
    let once = at_home.write_once_by(&event, draft, &mut |builder, trees, patience, look| {
        let mut joint: Vec<JointPart<'_>> = others
            .iter_mut()
            .map(|(engine, builder, trees)| JointPart { engine, builder, trees })
            .collect();
        joint.insert(home, JointPart { engine: at_home, builder, trees });
        let engines: Vec<&Engine> = joint.iter().map(|part| part.engine).collect();
        let look_all = |index: usize, check: &mut Check| {
            if index == home {
                return look(check);
            }
            let guards = other_guards[index - usize::from(index > home)];
            engines[index].look_at(guards, check).map(ControlFlow::Continue)
        };
        let committed = commit_joint_checked(&root.joints, &mut joint, patience, look_all)?;
        Ok(match committed {
            ControlFlow::Break(first) => ControlFlow::Break(first),
            ControlFlow::Continue(places) => {
                let place = places[home].expect("the token is an operation");
                all_places = places;
                ControlFlow::Continue(place)
            }
        })
    })?;
    if let Once::Duplicate(_) = once {
        all_places = Places::from_elem(None, part_count);
        all_places[home] = published(at_home);
    }
    Ok((once, all_places))
}

impl fmt::Debug for ShardedBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shards: BTreeSet<ShardIndex> = self.parts.iter().map(|part| part.shard).collect();
        write!(f, "ShardedBatch({} operations in shards {shards:?})", self.len())
    }
}

/// Resolves when its commit has the durability it asked for, in every shard that it went to.
///
/// Wait with [`ShardedTicket::wait`], or `await` it: no runtime is needed. Dropping a ticket cancels
/// nothing.
#[must_use = "dropping a ticket cancels nothing, but then nobody learns how the commit ended"]
#[derive(Debug)]
pub struct ShardedTicket {
    tickets: SmallVec<[Ticket; 1]>,
}

impl ShardedTicket {
    fn new(parts: &[Part], places: &[Option<Place>], durability: Durability) -> ShardedTicket {
        let ticket = |(part, place): (&Part, &Option<Place>)| {
            Some(Ticket::new(part.batch.engine().pipeline.clone(), (*place)?, durability))
        };
        ShardedTicket { tickets: parts.iter().zip(places).filter_map(ticket).collect() }
    }

    /// Blocks until the commit is acknowledged.
    ///
    /// # Errors
    /// As [`Ticket::wait`].
    pub fn wait(self) -> Result<()> {
        self.tickets.into_iter().map(Ticket::wait).fold(Ok(()), Result::and)
    }

    /// True if [`ShardedTicket::wait`] would not block.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.tickets.iter().all(Ticket::is_done)
    }
}

impl Future for ShardedTicket {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        while let Some(last) = self.tickets.last_mut() {
            match Pin::new(last).poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => drop(self.tickets.pop()),
            }
        }
        Poll::Ready(Ok(()))
    }
}
