//! A model of joint commits: `closing.rs` compiled once more over shuttle's threads, and the rings of
//! [`ring_model`](crate::write::ring_model), with the steps of `joint.rs` around them.
//!
//! | in the model | in the engine |
//! |---|---|
//! | [`Model::commit`] | `joint::submit`: places under all commit locks, stores outside, publication under the gate; of one shard, `Pipeline::submit` |
//! | [`Model::sync`] | `Pipeline::sync_in_turn` |
//! | [`Model::look`] | `joint_snapshots` |
//!
//! What must hold in every schedule: nobody waits in a circle; a snapshot sees a joint commit in all
//! of its shards or in none; what is published in one shard is stored in all, with everything before
//! it; what is durable in one shard is on the disk in all, with everything joint before it.

use std::sync::Arc;

use shuttle::thread;

use self::closing::{Extent, Joints, Peer};
use self::sync::{AtomicU64, Mutex, Ordering};
use crate::error::Error;
use crate::file::{Lsn, ShardNumber};
use crate::key::SeqNo;
use crate::write::ring_model::ring::{Place, Ring};
use crate::write::ring_model::{explore, sync};

#[path = "closing.rs"]
#[expect(dead_code, reason = "the model does not call everything that the engine does")]
#[expect(clippy::duplicate_mod, reason = "the same code over other primitives is the point")]
mod closing;

const SHARDS: usize = 3;

struct Commit {
    /// Each shard that it has a part in, and the part's last number there.
    parts: Vec<(usize, SeqNo)>,
    /// 1 once its record in this shard is stored.
    stored: Arc<AtomicU64>,
}

struct Shard {
    ring: Ring,
    /// The commit lock: the commits in order, one number and 8 bytes each.
    commits: Mutex<Vec<Commit>>,
    stable: AtomicU64,
    durable: AtomicU64,
}

impl Peer for Shard {
    fn stable(&self) -> Lsn {
        Lsn(self.stable.load(Ordering::SeqCst))
    }

    fn raise_durable(&self, durable: Lsn) -> bool {
        self.durable.fetch_max(durable.0, Ordering::SeqCst) < durable.0
    }

    fn wake(&self) {}

    fn request(&self, _: Lsn) {}

    fn held_back(&self, _: &Error) {
        unreachable!("nothing fails in this model");
    }

    fn sync_through(&self, _: Lsn) -> Result<(), Error> {
        unreachable!("nothing fails in this model");
    }
}

struct Model {
    joints: Joints,
    shards: Vec<Arc<Shard>>,
}

fn number(shard: usize) -> ShardNumber {
    ShardNumber(shard as u32)
}

impl Model {
    fn new() -> Arc<Model> {
        let shard = |_| {
            Arc::new(Shard {
                ring: Ring::new(SeqNo(0), Lsn(0)),
                commits: Mutex::new(Vec::new()),
                stable: AtomicU64::new(0),
                durable: AtomicU64::new(0),
            })
        };
        let shards: Vec<Arc<Shard>> = (0..SHARDS).map(shard).collect();
        let joints = Joints::default();
        for (index, shard) in shards.iter().enumerate() {
            let peer = Arc::downgrade(shard);
            joints.join(number(index), peer);
        }
        Arc::new(Model { joints, shards })
    }

    /// Places in all of these shards at once.
    fn place(&self, among: &[usize]) -> Vec<(usize, Place, Arc<AtomicU64>)> {
        loop {
            let mut guards: Vec<_> =
                among.iter().map(|shard| self.shards[*shard].commits.lock()).collect();
            if let Some(full) = among.iter().find(|shard| !self.shards[**shard].ring.has_room()) {
                drop(guards);
                self.shards[*full].ring.wait_room();
                continue;
            }
            let next: Vec<u64> = guards.iter().map(|commits| commits.len() as u64 + 1).collect();
            let parts: Vec<(usize, SeqNo)> =
                among.iter().copied().zip(next.iter().map(|next| SeqNo(*next))).collect();
            let extent = |(shard, last): &(usize, SeqNo)| Extent {
                shard: number(*shard),
                lsn: Lsn((last.0 - 1) * 8),
                end_lsn: Lsn(last.0 * 8),
            };
            if parts.len() > 1 {
                let extents: Vec<Extent> = parts.iter().map(extent).collect();
                self.joints.place(&extents).expect("nothing fails");
            }
            let mut placed = Vec::new();
            for (commits, (shard, last)) in guards.iter_mut().zip(&parts) {
                let ring = &self.shards[*shard].ring;
                let place = ring.push(*last, Lsn(last.0 * 8)).expect("room was made");
                let stored = Arc::new(AtomicU64::new(0));
                commits.push(Commit { parts: parts.clone(), stored: stored.clone() });
                placed.push((*shard, place, stored));
            }
            return placed;
        }
    }

    fn commit(&self, among: &[usize]) {
        let placed = self.place(among);
        for (_, _, stored) in &placed {
            stored.store(1, Ordering::SeqCst);
        }
        if let [(shard, place, _)] = &placed[..] {
            self.shards[*shard].ring.finish(*place);
        } else {
            for (shard, place, _) in &placed {
                assert!(self.shards[*shard].ring.wait_past(SeqNo(place.last_seqno.0 - 1)));
            }
            let _gate = self.joints.gate();
            for (shard, place, _) in &placed {
                self.shards[*shard].ring.finish_first(*place);
            }
        }
        for (shard, place, _) in &placed {
            assert!(self.shards[*shard].ring.wait_published(*place));
        }
        self.check();
    }

    fn sync(&self, shard: usize) {
        let this = &self.shards[shard];
        let sample = this.ring.copied();
        this.stable.fetch_max(sample.0, Ordering::SeqCst);
        self.joints.settle(number(shard), &**this);
        self.check();
    }

    fn look(&self) {
        let seen: Vec<SeqNo> = {
            let _gate = self.joints.gate();
            self.shards.iter().map(|shard| shard.ring.visible()).collect()
        };
        for shard in &self.shards {
            for commit in shard.commits.lock().iter() {
                let is_seen = |(shard, last): &(usize, SeqNo)| seen[*shard] >= *last;
                let seen_in = commit.parts.iter().filter(|part| is_seen(part)).count();
                assert!(
                    seen_in == 0 || seen_in == commit.parts.len(),
                    "a part: {:?}",
                    commit.parts
                );
            }
        }
    }

    /// What is published is with the kernel in every shard, and what is durable on the disk.
    fn check(&self) {
        for shard in &self.shards {
            // Before what it is compared with, which only rises.
            let durable = shard.durable.load(Ordering::SeqCst);
            let visible = shard.ring.visible();
            let commits = shard.commits.lock();
            let (mut published, mut on_disk) = (Vec::new(), Vec::new());
            for (index, commit) in commits.iter().enumerate() {
                let last = index as u64 + 1;
                if SeqNo(last) <= visible {
                    published.extend(commit.parts.iter().copied());
                }
                if last * 8 <= durable {
                    on_disk.extend(commit.parts.iter().copied());
                }
            }
            drop(commits);
            for (shard, last) in published {
                let commits = self.shards[shard].commits.lock();
                let through = &commits[..last.0 as usize];
                assert!(through.iter().all(|c| c.stored.load(Ordering::SeqCst) == 1), "not stored");
            }
            for (shard, last) in on_disk {
                self.check_on_disk(shard, last);
            }
        }
    }

    fn check_on_disk(&self, shard: usize, last: SeqNo) {
        assert!(self.shards[shard].stable().0 >= last.0 * 8, "durable in one, lost in another");
        let before: Vec<(usize, SeqNo)> = {
            let commits = self.shards[shard].commits.lock();
            let joint = commits[..last.0 as usize - 1].iter().filter(|c| c.parts.len() > 1);
            joint.flat_map(|commit| commit.parts.iter().copied()).collect()
        };
        for (shard, last) in before {
            assert!(self.shards[shard].stable().0 >= last.0 * 8, "lost before one that is durable");
        }
    }
}

fn together(parts: &[fn(&Model)]) {
    let model = Model::new();
    let threads = parts.iter().map(|part| {
        let (model, part) = (model.clone(), *part);
        thread::spawn(move || part(&model))
    });
    let threads: Vec<_> = threads.collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    (0..SHARDS).for_each(|shard| model.sync(shard));
    for shard in &model.shards {
        let all = shard.commits.lock().len() as u64 * 8;
        assert_eq!(shard.durable.load(Ordering::SeqCst), all, "all is closed in the end");
    }
}

#[test]
fn joint_commits_are_published_together_and_nobody_waits_in_a_circle() {
    explore(|| {
        together(&[
            |model| (0..2).for_each(|_| model.commit(&[0, 1])),
            |model| (0..2).for_each(|_| model.commit(&[1, 2])),
            |model| {
                model.commit(&[0, 2]);
                model.commit(&[0]);
            },
            |model| (0..3).for_each(|_| model.look()),
        ]);
    });
}

#[test]
fn what_is_durable_in_one_shard_is_on_the_disk_in_all() {
    explore(|| {
        together(&[
            |model| {
                model.commit(&[0, 1]);
                model.commit(&[0]);
            },
            |model| {
                model.commit(&[1, 2]);
                model.commit(&[2]);
            },
            |model| (0..2).for_each(|_| model.sync(0)),
            |model| (0..2).for_each(|_| model.sync(1)),
            |model| model.sync(2),
        ]);
    });
}
