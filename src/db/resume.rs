//! Taking writes again after a failure of the disk.
//!
//! What the kernel made of a log that could not be written or synced is not known, and asking
//! again proves nothing: it may have dropped the pages and marked them clean. But everything that
//! readers see is in memory. So:
//!
//! 1. The breaker goes to half-open: no commits, no jobs, no new keyspaces. Wait until those under
//!    way have ended.
//! 2. The cut is the last published commit. Write every memtable of every keyspace as tables, up
//!    to the cut; what lies beyond belongs to commits that failed and was never visible.
//! 3. Begin a new manifest, in one step: the old state, these tables, `flushed_upto` = cut for
//!    all, and a position to replay from that lies beyond every log there is.
//! 4. Replace every view.
//! 5. Begin a new log at that position. Let numbers go on beyond all that were given out, then
//!    close the breaker.
//!
//! In a shard, the parts that other shards have of the commits over several that it shows are made
//! durable before step 2, so that a crash never finds the one without the other; and the manifest of
//! step 3 says up to where the old log was given up, since other shards' logs may name a part in it.
//!
//! A failure before step 3 is through leaves everything as it was, a later one leaves nothing in
//! memory that is not in tables; either way the breaker opens again, and another resume begins at
//! step 1.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::compaction::picker::flush_cuts;
use crate::db::crew::Aside;
use crate::db::engine::Engine;
use crate::db::once::fresh_memtable;
use crate::error::{DegradedCause, Result};
use crate::file::{FileKind, FileNumber, Lsn};
use crate::flush::flush;
use crate::key::SeqNo;
use crate::manifest::edit::{Edit, TableAdded};
use crate::table::Table;
use crate::tree::{Tree, View};
use crate::version::Added;

impl Engine {
    /// See the module's comment. The caller runs `own_jobs` of the jobs itself.
    pub(crate) fn resume(&self, own_jobs: usize) -> Result<()> {
        if self.pipeline.breaker.check().is_ok() {
            return Ok(());
        }
        let breaker = &self.pipeline.breaker;
        let Some(cause) = breaker.half_open() else { return Err(breaker.error()) };
        let repaired = match cause {
            DegradedCause::Corruption => Err(breaker.error()),
            _ => self.repair(own_jobs),
        };
        match repaired {
            Ok(()) => {
                if !breaker.close() {
                    return Err(breaker.error());
                }
                self.look_at_free_space();
                self.measure_pressure();
                self.wake_workers();
                self.wake_log_thread();
                Ok(())
            }
            Err(error) => {
                breaker.reopen();
                Err(error)
            }
        }
    }

    fn repair(&self, own_jobs: usize) -> Result<()> {
        self.wait_idle(own_jobs);
        let cut = loop {
            let drained = {
                let _commit = self.pipeline.lock();
                self.pipeline.ring.drain()
            };
            match drained {
                Some(cut) => break cut,
                None => self.runtime.yield_now(),
            }
        };
        if self.pipeline.breaker.half_open_again() == Some(DegradedCause::Corruption) {
            return Err(self.pipeline.breaker.error());
        }
        self.pipeline.wait_no_sync();
        let copied = self.pipeline.ring.copied();
        if let Some(member) = &self.pipeline.member {
            member.prepare_resume(copied)?;
        }
        // Whoever creates or drops a keyspace looked at the breaker under this lock.
        drop(self.catalog.lock());
        let trees = self.trees.load_full();
        let mut rescued = Vec::new();
        for tree in trees.iter().filter(|tree| !tree.is_dropped()) {
            rescued.push((tree.clone(), self.rescue(tree, cut)?));
        }
        self.install_rescued(cut, copied, rescued)
    }

    /// Writes what the memtables of a keyspace hold up to `cut` as tables.
    fn rescue(&self, tree: &Tree, cut: SeqNo) -> Result<Vec<Added<Table>>> {
        let view = tree.view_arc();
        let frozen = view.frozen.iter().map(|frozen| &frozen.memtable);
        let memtables = std::iter::once(&view.active).chain(frozen);
        let cuts = flush_cuts(&view.version, &self.limits);
        let (boundaries, operator) = (self.snapshots.boundaries(), tree.operator().cloned());
        let aside = Aside::never();
        let facts = self.with_output(tree, 0, Vec::new(), &aside, |output| {
            flush(memtables, cut, boundaries, operator, cuts, output)
        })?;
        self.sync_tables(&facts)?;
        self.open_tables(0, self.next_run(), facts)
    }

    fn install_rescued(
        &self,
        cut: SeqNo,
        copied: Lsn,
        rescued: Vec<(Arc<Tree>, Vec<Added<Table>>)>,
    ) -> Result<()> {
        // A spare that was being made now would have a lower number than the log begun here, and
        // follow it: then the replay would go back.
        let _no_other_spare = self.work.hold_spares();
        let mut catalog = self.catalog.lock();
        let logs = &self.pipeline.logs;
        let first_lsn = logs.capacity_end();
        let spare = match logs.take_spare() {
            Some(spare) => spare,
            None => logs.create_spare(self.take_file_number(), 0)?,
        };
        let mut edit = Edit {
            replay_from: Some(first_lsn),
            replay_log: Some(spare.number),
            next_file: Some(FileNumber(self.next_file().0 + 1).max(catalog.file_lease())),
            ..Edit::default()
        };
        if self.pipeline.member.is_some() {
            edit.voids_settled = self.voids_settled.swap(false, Ordering::Relaxed);
            edit.voids = vec![(copied.min(first_lsn), first_lsn)];
        }
        for (tree, added) in &rescued {
            edit.flushed_upto.push((tree.id, cut));
            edit.tables_added.extend(added.iter().map(|(level, run, table)| TableAdded {
                keyspace: tree.id,
                level: *level,
                run: *run,
                facts: table.facts().clone(),
            }));
        }
        // A drop whose edit failed is carried out now: its handles have been dead since.
        let alive = |id| rescued.iter().any(|(tree, _)| tree.id == id);
        let state = catalog.state();
        let lost = state.keyspaces().map(|keyspace| keyspace.facts.id).filter(|id| !alive(*id));
        edit.keyspaces_dropped = lost.collect();
        catalog.restart(&edit, self.take_file_number())?;
        self.note_file_lease(&catalog);

        // At once, before anything else can fail: the manifest names these tables, and another
        // resume must not write what is in them again.
        for (tree, added) in rescued {
            let mut commit = self.pipeline.lock();
            let view = tree.view_arc();
            let version = self.apply(&view.version, added, &[])?;
            let active = fresh_memtable(&tree.name, &self.pool);
            commit.replace_active(tree.slot, active.clone());
            tree.replace_view(View { active, frozen: Vec::new(), version });
        }
        let number = spare.number;
        let begun = logs.begin(spare, first_lsn);
        if begun.is_err() {
            catalog.retire(FileKind::Log.path(&self.dir, number));
        }
        let cursor = begun?;
        {
            let mut commit = self.pipeline.lock();
            commit.restart(cursor);
            let last_seqno = SeqNo(commit.next_seqno().0 - 1);
            self.pipeline.ring.reset(last_seqno, first_lsn);
        }
        if let Some(member) = &self.pipeline.member {
            member.resumed(copied);
        }
        self.pipeline.reset_syncer(first_lsn);
        for number in logs.abandon_older() {
            catalog.retire(FileKind::Log.path(&self.dir, number));
        }
        let live: Vec<_> =
            self.trees.load().iter().filter(|tree| !tree.is_dropped()).cloned().collect();
        self.trees.store(Arc::new(live));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use crate::KeyspaceOptions;
    use crate::db::Db;
    use crate::error::{DegradedCause, Error, ErrorKind};
    use crate::fs::sim::{Phase, SimFs};
    use crate::options::Options;
    use crate::runtime::Runtime;

    fn open(fs: &SimFs) -> Db {
        Db::open_on(Arc::new(fs.clone()), Runtime::threads(), "db", Options::tiny()).unwrap()
    }

    /// Bug: a keyspace that was created while a full disk healed was gone after the next open, with all
    /// that was put in it. Cause: a repair that had looked at the keyspaces before took this one for
    /// one whose drop had failed. Fix: it waits for whoever was let in before the breaker opened.
    #[test]
    fn a_keyspace_that_is_created_during_a_repair_stays() {
        let fs = SimFs::new();
        let db = open(&fs);
        db.put("before", "1").unwrap();
        std::thread::scope(|scope| {
            let (engine, began) = (db.engine().clone(), std::sync::Once::new());
            let (told, repairs) = std::sync::mpsc::channel();
            fs.on_call(Arc::new(move |_, phase, call| {
                let is_manifest = call.file_name().starts_with("manifest");
                if phase == Phase::Before && call.is_sync() && is_manifest {
                    // In the midst of the creation; time enough for the repair to come to the lock.
                    began.call_once(|| {
                        told.send(()).unwrap();
                        std::thread::sleep(Duration::from_millis(100));
                    });
                }
            }));
            let repair = scope.spawn(move || {
                repairs.recv().unwrap();
                let full = Error::new(ErrorKind::NoSpace);
                engine.pipeline.breaker.open(DegradedCause::NoSpace, &full);
                engine.resume(0)
            });
            let created = db.keyspace("new", KeyspaceOptions::new()).unwrap();
            fs.clear_hook();
            _ = repair.join().unwrap();
            // Its own worker may have been the one that repairs it.
            while created.put("k", "v").is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        db.close().unwrap();
        let new = open(&fs).keyspace("new", KeyspaceOptions::new()).unwrap();
        assert_eq!(&*new.get("k").unwrap().unwrap(), b"v");
    }
}
