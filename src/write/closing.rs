//! Commits across shards that are not closed yet: what keeps a shard's log from counting as durable
//! though it was synced.
//!
//! A *joint* commit has a part in each of several shards. It is *closed* once each part, and every
//! joint commit that lies before one of them in its shard, survives power loss: then no recovery
//! can find one part and miss another, nor cut anything before one. So:
//!
//! ```text
//! stable(A)   everything before it is in A's synced log, or in A's tables
//! durable(A)  = min(stable(A), where the first joint commit of A begins that is not closed)
//! ```
//!
//! Whoever waits for durability in A, acknowledgements and edits of the manifest alike, waits for
//! `durable(A)`; and asks the shards that hold it back for a sync. Shards that write nothing together
//! never wait for each other.
//!
//! 1. [`Joints::place`], under the commit locks of all participants at once, puts a joint commit at
//!    the end of the list. So two joint commits have the same order in the list and in every shard
//!    that they share, and one can only be held back by earlier ones: nobody waits in a circle.
//! 2. [`Joints::settle`], whenever `stable` of a shard has risen, goes through the list once, takes
//!    out what is closed and raises `durable` of every shard.
//! 3. [`Joints::fail`]: a log that cannot be synced never becomes stable. What it holds back is
//!    never closed, so the shards that it holds back fail too, and those that they hold back. They
//!    are repaired together ([`crate::db::resume`]).
//!
//! The *gate* is held while the parts of a joint commit are published, and while a snapshot reads
//! the visible numbers of several shards: it never sees a part of a joint commit.
//!
//! Lock order: the gate, and the list, are leaves but for the syncers' numbers, which are atomic; the
//! list is taken under commit locks, and never the other way round.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};

use smallvec::SmallVec;

use super::sync::{AtomicU64, Mutex, MutexGuard, Ordering};

use crate::error::Error;
use crate::file::{Lsn, ShardNumber};

/// What the shards of one database share. See the module's comment.
pub(crate) struct Joints {
    gate: Mutex<()>,
    /// How many joint commits are not closed: who reads 0 need not look at the list.
    unclosed_count: AtomicU64,
    state: Mutex<State>,
    #[cfg(test)]
    left_out: Option<Rule>,
}

#[derive(Default)]
struct State {
    shards: BTreeMap<ShardNumber, Shard>,
    /// In the order in which they were placed.
    unclosed: VecDeque<Joint>,
}

struct Shard {
    peer: Weak<dyn Peer>,
    /// Why nothing in it becomes stable any more.
    failure: Option<Error>,
}

type Joint = SmallVec<[Extent; 4]>;

/// Where a part of a joint commit lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub shard: ShardNumber,
    pub lsn: Lsn,
    pub end_lsn: Lsn,
}

/// What the list asks of a shard.
pub(crate) trait Peer: Send + Sync {
    /// Everything before this position is in the synced log, or in tables.
    fn stable(&self) -> Lsn;
    /// Everything before `durable` survives power loss, joint commits too. True if that is news.
    /// Wakes nobody.
    fn raise_durable(&self, durable: Lsn) -> bool;
    /// Wakes everybody whom [`Peer::raise_durable`] may concern.
    fn wake(&self);
    /// Asks for a sync through `lsn` without waiting for it.
    fn request(&self, lsn: Lsn);
    /// Nothing that is not durable will become so: another shard's failure holds it back.
    fn held_back(&self, error: &Error);
}

/// A rule of joint commits, which a test may leave out to see that others notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Nothing is durable before what holds it back is closed.
    Closed,
    /// A flush waits for what it holds to be closed.
    Flush,
    /// Parts are published after everything before all of them.
    First,
    /// Parts are published under the gate.
    Gate,
    /// A recovery cuts what is not whole.
    Cut,
    /// A recovery says what it gave up.
    Void,
}

/// A shard's own end of [`Joints`].
#[derive(Clone)]
pub(crate) struct Member {
    pub joints: Arc<Joints>,
    pub shard: ShardNumber,
}

impl Member {
    /// Asks the other shards for what keeps this one from being durable through `lsn`.
    pub fn request(&self, lsn: Lsn) {
        self.joints.request(self.shard, lsn);
    }

    /// True if a joint commit that is not closed begins before `lsn` in this shard.
    pub fn has_unclosed_before(&self, lsn: Lsn) -> bool {
        self.joints.has_unclosed_before(self.shard, lsn)
    }

    /// This shard's log is not synced any more: `error` says why.
    pub fn fail(&self, error: &Error) {
        self.joints.fail(self.shard, error);
    }
}

impl Default for Joints {
    fn default() -> Joints {
        Joints {
            gate: Mutex::new(()),
            unclosed_count: AtomicU64::new(0),
            state: Mutex::new(State::default()),
            #[cfg(test)]
            left_out: None,
        }
    }
}

impl Joints {
    /// All rules but one.
    #[cfg(test)]
    pub fn without(rule: Option<Rule>) -> Joints {
        Joints { left_out: rule, ..Joints::default() }
    }

    /// True, but in a test that leaves the rule out.
    #[inline]
    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "a test has rules left out"))]
    pub fn keeps(&self, rule: Rule) -> bool {
        #[cfg(test)]
        return self.left_out != Some(rule);
        #[cfg(not(test))]
        {
            let _ = rule;
            true
        }
    }

    /// Adds a shard that is open from now on.
    pub fn join(&self, shard: ShardNumber, peer: Weak<dyn Peer>) {
        let before = self.state.lock().shards.insert(shard, Shard { peer, failure: None });
        assert!(before.is_none_or(|before| before.peer.strong_count() == 0), "{shard:?} twice");
    }

    /// Keeps the parts of joint commits from being published, as long as it is held.
    pub fn gate(&self) -> MutexGuard<'_, ()> {
        self.gate.lock()
    }

    /// Takes a joint commit into the list. Call it under the commit locks of all its shards.
    ///
    /// # Errors
    /// The failure of a shard that is never synced again; nothing was done then.
    pub fn place(&self, parts: &[Extent]) -> Result<(), Error> {
        let mut state = self.state.lock();
        let failure = |part: &Extent| state.shards.get(&part.shard)?.failure.as_ref();
        if let Some(error) = parts.iter().find_map(failure) {
            return Err(error.duplicate());
        }
        state.unclosed.push_back(Joint::from_slice(parts));
        self.unclosed_count.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Raises what is durable after `stable` of `peer` has risen. Who waits in `peer` itself is woken
    /// by the caller.
    ///
    /// Who reads that all are closed may take `stable` for durable without a look at the list: a
    /// joint commit before it is published, so it was taken into the list before that.
    pub fn settle(&self, shard: ShardNumber, peer: &dyn Peer) {
        if self.unclosed_count.load(Ordering::Acquire) == 0 || !self.keeps(Rule::Closed) {
            peer.raise_durable(peer.stable());
            return;
        }
        let mut to_wake = Vec::new();
        {
            let mut state = self.state.lock();
            state.close();
            self.unclosed_count.store(state.unclosed.len() as u64, Ordering::Release);
            for (&other, peer) in &state.peers() {
                let barrier = state.first_unclosed(other);
                let durable = peer.stable().min(barrier.unwrap_or(Lsn(u64::MAX)));
                if peer.raise_durable(durable) && other != shard {
                    to_wake.push(peer.clone());
                }
            }
        }
        to_wake.iter().for_each(|peer| peer.wake());
    }

    /// Asks for every sync that `shard` needs of others to be durable through `lsn`, which must be
    /// published.
    pub fn request(&self, shard: ShardNumber, lsn: Lsn) {
        if self.unclosed_count.load(Ordering::Acquire) == 0 {
            return;
        }
        let (needed, peers) = {
            let state = self.state.lock();
            (state.needed_for(shard, lsn), state.peers())
        };
        for (other, upto) in needed {
            let peer = peers.get(&other).filter(|_| other != shard);
            if let Some(peer) = peer.filter(|peer| peer.stable() < upto) {
                peer.request(upto);
            }
        }
    }

    fn has_unclosed_before(&self, shard: ShardNumber, lsn: Lsn) -> bool {
        self.unclosed_count.load(Ordering::Acquire) > 0
            && self.keeps(Rule::Flush)
            && self.state.lock().first_unclosed(shard).is_some_and(|first| first < lsn)
    }

    /// The log of `shard` is never synced again. Everybody whom that holds back is told.
    pub fn fail(&self, shard: ShardNumber, error: &Error) {
        let told: Vec<Arc<dyn Peer>> = {
            let mut state = self.state.lock();
            let peers = state.peers();
            let held_back = state.fail(shard, error);
            held_back.iter().filter_map(|shard| peers.get(shard).cloned()).collect()
        };
        for peer in told {
            peer.held_back(error);
        }
    }
}

impl State {
    /// The shards that are open.
    fn peers(&self) -> BTreeMap<ShardNumber, Arc<dyn Peer>> {
        let open = |(&number, shard): (&ShardNumber, &Shard)| Some((number, shard.peer.upgrade()?));
        self.shards.iter().filter_map(open).collect()
    }

    /// Takes out what is closed.
    fn close(&mut self) {
        let peers = self.peers();
        let mut held_back = BTreeSet::new();
        self.unclosed.retain(|joint| {
            let is_stable =
                |part: &Extent| peers.get(&part.shard).is_some_and(|p| p.stable() >= part.end_lsn);
            let closed =
                joint.iter().all(|part| is_stable(part) && !held_back.contains(&part.shard));
            if !closed {
                held_back.extend(joint.iter().map(|part| part.shard));
            }
            !closed
        });
    }

    fn first_unclosed(&self, shard: ShardNumber) -> Option<Lsn> {
        let of_shard = |joint: &Joint| joint.iter().find(|part| part.shard == shard).copied();
        self.unclosed.iter().find_map(of_shard).map(|part| part.lsn)
    }

    /// Through where each shard must be stable for `shard` to be durable through `lsn`. Backwards, so
    /// that one look at each suffices: only earlier joint commits hold one back.
    fn needed_for(&self, shard: ShardNumber, lsn: Lsn) -> BTreeMap<ShardNumber, Lsn> {
        let mut needed = BTreeMap::from([(shard, lsn)]);
        for joint in self.unclosed.iter().rev() {
            let holds =
                |part: &Extent| needed.get(&part.shard).is_some_and(|upto| part.lsn < *upto);
            if joint.iter().any(holds) {
                for part in joint {
                    let upto = needed.entry(part.shard).or_default();
                    *upto = part.end_lsn.max(*upto);
                }
            }
        }
        needed
    }

    /// Marks a shard as failed, and every shard that it holds back, which are returned.
    fn fail(&mut self, shard: ShardNumber, error: &Error) -> BTreeSet<ShardNumber> {
        let peers = self.peers();
        let mut held_back = BTreeSet::new();
        let mut failed = vec![shard];
        while let Some(next) = failed.pop() {
            match self.shards.get_mut(&next) {
                Some(shard) if shard.failure.is_none() => shard.failure = Some(error.duplicate()),
                _ => continue,
            }
            let is_failed = |part: &Extent| {
                let stable = peers.get(&part.shard).is_some_and(|p| p.stable() >= part.end_lsn);
                !stable && self.shards.get(&part.shard).is_none_or(|s| s.failure.is_some())
            };
            let mut behind = BTreeSet::new();
            for joint in &self.unclosed {
                if joint.iter().any(|part| is_failed(part) || behind.contains(&part.shard)) {
                    behind.extend(joint.iter().map(|part| part.shard));
                }
            }
            behind.remove(&shard);
            failed.extend(behind.iter().copied());
            held_back.extend(behind);
        }
        held_back
    }
}
