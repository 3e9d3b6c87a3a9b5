//! A joint commit: one atomic commit over several shards, without a coordinator and without a sync of
//! its own. A commit of one shard pays nothing for it.
//!
//! 1. The commit locks of all participants are held at once, taken in ascending order. Whatever one
//!    of them lacks (a lease, log space, a slot) is supplied without any lock, and everything begins
//!    anew: no I/O under the locks. So two joint commits have the same order in every shard that
//!    they share, and nobody can wait in a circle in step 3.
//! 2. Each record says where all parts are ([`crate::batch`]): what recovery needs to tell that one
//!    is missing.
//! 3. Outside the locks all parts are stored and inserted. Then, in every participant, everything
//!    before the part is awaited, and only then are the parts published, under the gate
//!    ([`crate::write::closing`]). So no later commit of any participant is acknowledged before all
//!    parts, and everything before them, are with the kernel: a kill loses none of it.
//! 4. If a part cannot be stored, or something before it was not, no part is published, and every
//!    participant refuses writes until it is repaired: its log has a commit that is not whole.

use smallvec::SmallVec;

use crate::batch::{Participant, Payload};
use crate::error::{DegradedCause, Error, Result};
use crate::file::ShardNumber;
use crate::key::SeqNo;
use crate::runtime::{MutexGuard, yield_point};
use crate::tree::Tree;
use crate::write::closing::{Extent, Joints, Rule};
use crate::write::commit::{CommitState, Memtables, Pipeline, Placed, Supplies};
use crate::write::ring::Place;
use crate::write::stamps::{Check, Stripes};

/// What is committed in one shard.
pub(crate) struct Part<'a> {
    pub shard: ShardNumber,
    pub pipeline: &'a Pipeline,
    pub supplies: &'a dyn Supplies,
    /// `None` takes part with its check only.
    pub commit: Option<Payload<'a>>,
    /// Every keyspace that the commit names.
    pub trees: &'a [&'a Tree],
    /// What must hold at the commit's place.
    pub check: Option<&'a Check>,
}

/// For each part its place, unless it only took part with its check.
pub(crate) type Places = SmallVec<[Option<Place>; 4]>;

type Guards<'a> = SmallVec<[MutexGuard<'a, CommitState>; 4]>;

/// Commits all parts, which are of different shards in ascending order, as one; all are published
/// then. With a check that does not hold nothing is done and the answer is `None`.
///
/// `insert` gets the index of a part, its first sequence number, the memtables of its trees in their
/// order, and its payload.
///
/// # Errors
/// As [`Pipeline::submit`]. After an error of a log all participants are degraded, and the commit is
/// unknown until they are resumed or reopened; then it is there in all of them, or in none.
pub(crate) fn submit(
    joints: &Joints,
    parts: &mut [Part<'_>],
    mut insert: impl FnMut(usize, SeqNo, &Memtables, &[u8]),
) -> Result<Option<Places>> {
    assert!(parts.is_sorted_by(|a, b| a.shard < b.shard), "parts of different shards, ascending");
    let Some(placed) = place(joints, parts)? else { return Ok(None) };
    let places = placed.iter().map(|placed| placed.as_ref().map(|placed| placed.place)).collect();
    if let Err(error) = store(parts, &placed) {
        abandon(parts, &placed, &error);
        return Err(error);
    }
    for (index, (part, placed)) in parts.iter().zip(&placed).enumerate() {
        if let (Some(commit), Some(placed)) = (&part.commit, placed) {
            insert(index, placed.first_seqno, &placed.memtables, commit.bytes());
        }
    }
    if joints.keeps(Rule::First)
        && let Err(error) = wait_first(parts, &placed)
    {
        abandon(parts, &placed, &error);
        return Err(error);
    }
    publish(joints, parts, &placed);
    Ok(Some(places))
}

/// Steps 1 and 2: places in the order of the parts.
fn place(joints: &Joints, parts: &mut [Part<'_>]) -> Result<Option<SmallVec<[Option<Placed>; 4]>>> {
    let stripes = |part: &Part<'_>| part.pipeline.stripes_of(part.commit.as_ref()?);
    let mut stripes: SmallVec<[Option<Stripes>; 4]> = parts.iter().map(stripes).collect();
    let pipelines: SmallVec<[&Pipeline; 4]> = parts.iter().map(|part| part.pipeline).collect();
    let mut guards = lock_with_room(&pipelines, parts)?;
    for (part, state) in parts.iter().zip(&guards) {
        state.check_trees(part.trees)?;
    }
    let fails = |part: &Part<'_>| part.check.is_some_and(|c| !part.pipeline.stamps.holds(c));
    if parts.iter().any(fails) {
        return Ok(None);
    }
    let extent = |(part, state): (&Part<'_>, &MutexGuard<'_, CommitState>)| {
        let end_lsn = state.lsn_after(part.commit.as_ref()?);
        Some(Extent { shard: part.shard, lsn: state.lsn(), end_lsn })
    };
    let extents: SmallVec<[Extent; 4]> = parts.iter().zip(&guards).filter_map(extent).collect();
    if extents.len() > 1 {
        joints.place(&extents)?;
        let participant = |extent: &Extent| Participant { shard: extent.shard, lsn: extent.lsn };
        let participants: SmallVec<[Participant; 4]> = extents.iter().map(participant).collect();
        for commit in parts.iter_mut().filter_map(|part| part.commit.as_mut()) {
            commit.set_participants(&participants);
        }
    }
    let place =
        |((part, state), stripes): ((&mut Part<'_>, &mut MutexGuard<'_, CommitState>), _)| {
            let commit = part.commit.as_mut()?;
            Some(part.pipeline.place(state, commit, part.trees, part.check, stripes))
        };
    let all = parts.iter_mut().zip(&mut guards).zip(stripes.drain(..));
    Ok(Some(all.map(place).collect()))
}

/// The commit locks of all parts, with a lease, log space and a slot for each.
fn lock_with_room<'a>(pipelines: &[&'a Pipeline], parts: &[Part<'_>]) -> Result<Guards<'a>> {
    'again: loop {
        let mut guards: Guards<'a> = pipelines.iter().map(|pipeline| pipeline.lock()).collect();
        for (part, state) in parts.iter().zip(&mut guards) {
            let Some(commit) = &part.commit else {
                part.pipeline.breaker.check()?;
                continue;
            };
            if let Some(lack) = part.pipeline.lack(state, commit)? {
                drop(guards);
                part.pipeline.supply(part.supplies, lack, commit)?;
                continue 'again;
            }
        }
        return Ok(guards);
    }
}

fn writers<'p, 'a>(
    parts: &'p [Part<'a>],
    placed: &'p [Option<Placed>],
) -> impl Iterator<Item = (&'p Part<'a>, &'p Placed)> {
    parts.iter().zip(placed).filter_map(|(part, placed)| Some((part, placed.as_ref()?)))
}

fn store(parts: &[Part<'_>], placed: &[Option<Placed>]) -> Result<()> {
    for (part, placed) in writers(parts, placed) {
        let commit = part.commit.as_ref().expect("it has a place");
        let stored = placed.reserved.store(commit.region());
        stored.map_err(|source| part.pipeline.not_stored(&placed.reserved, source))?;
    }
    Ok(())
}

/// Waits until everything before the parts is published.
fn wait_first(parts: &[Part<'_>], placed: &[Option<Placed>]) -> Result<()> {
    for (part, placed) in writers(parts, placed) {
        if !part.pipeline.ring.wait_past(SeqNo(placed.first_seqno.0 - 1)) {
            return Err(part.pipeline.breaker.error());
        }
    }
    Ok(())
}

/// Publishes all parts, everything before which is published.
fn publish(joints: &Joints, parts: &[Part<'_>], placed: &[Option<Placed>]) {
    let _gate = joints.keeps(Rule::Gate).then(|| joints.gate());
    for (part, placed) in writers(parts, placed) {
        if joints.keeps(Rule::First) {
            part.pipeline.ring.finish_first(placed.place);
        } else {
            part.pipeline.ring.finish(placed.place);
        }
        yield_point();
    }
}

/// Publishes none of the parts, and nothing after any.
#[cold]
fn abandon(parts: &[Part<'_>], placed: &[Option<Placed>], error: &Error) {
    let why = error.duplicate().context("a commit over several shards is not whole");
    for (part, placed) in writers(parts, placed) {
        part.pipeline.breaker.open(DegradedCause::LogWrite, &why);
        part.pipeline.ring.abandon(placed.place);
    }
}
