//! The jobs of the background threads: flush, compaction, removal of files; each ends with one
//! edit of the manifest and a new view.
//!
//! The order of syncs in a flush, and what each protects from:
//!
//! 1. the tables, then their directory: before an edit names them;
//! 2. the log through the last flushed record, if any record before it is in no table: or the
//!    flushed commit would survive power loss and an earlier one of another keyspace would not; or
//!    if it has a part of a joint commit that is not closed, whose other parts might be lost;
//! 3. the edit, with `flushed_upto` and the position from which to replay;
//! 4. then, and only then, the view;
//! 5. logs and inputs are removed once a later record of the manifest is durable.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::compaction::dead::Living;
use crate::compaction::picker::{Claims, Plan, Scores, flush_cuts};
use crate::compaction::run::{Output, write_tables};
use crate::compaction::survive::Survivors;
use crate::cursor::Cursor;
use crate::cursor::merge::MergeCursor;
use crate::db::crew::Aside;
use crate::db::engine::Engine;
use crate::error::{Error, Result};
use crate::file::{FileKind, FileNumber, Lsn};
use crate::flush::flush;
use crate::fs;
use crate::key::SeqNo;
use crate::manifest::edit::{Edit, TableAdded, TableRemoved};
use crate::options::{Compression, Limits, Options};
use crate::table::{Origin, Table, TableConfig, TableFacts};
use crate::tree::{Frozen, Tree, View};
use crate::version::{Added, LEVEL_LAST, Version};

impl Engine {
    /// Writes all frozen memtables of a keyspace as one run of level 0.
    pub fn flush_frozen(&self, tree: &Arc<Tree>) -> Result<()> {
        let _site = fs::site("flush");
        let view = tree.view_arc();
        let Some(newest) = view.frozen.first() else { return Ok(()) };
        // Their last commits may still be inserting.
        if !self.pipeline.ring.wait_visible(newest.last_seqno) {
            return Err(self.pipeline.breaker.error());
        }
        let cuts = flush_cuts(&view.version, &self.limits);
        let memtables = view.frozen.iter().map(|frozen| &frozen.memtable);
        let (boundaries, operator) = (self.snapshots.boundaries(), tree.operator().cloned());
        let aside = Aside::never();
        let facts = self.with_output(tree, 0, Vec::new(), &aside, |output| {
            flush(memtables, newest.last_seqno, boundaries, operator, cuts, output)
        })?;
        let written: u64 = facts.iter().map(|facts| facts.bytes).sum();
        self.totals.flush_bytes.fetch_add(written, Ordering::Relaxed);
        self.totals.flush_count.fetch_add(1, Ordering::Relaxed);
        tree.traffic[0].written_bytes.fetch_add(written, Ordering::Relaxed);
        self.sync_tables(&facts)?;
        self.install_flush(tree, &view.frozen, facts)
    }

    fn install_flush(
        &self,
        tree: &Arc<Tree>,
        frozen: &[Arc<Frozen>],
        facts: Vec<TableFacts>,
    ) -> Result<()> {
        let newest = frozen.first().expect("something was flushed");
        let upto = newest.last_seqno;
        if self.needed_from(Some((tree, upto))) < newest.end_lsn
            || self.pipeline.has_unclosed_before(newest.end_lsn)
        {
            self.pipeline.wait_durable(newest.end_lsn)?;
        }
        let added = self.open_tables(0, self.next_run(), facts)?;
        let mut catalog = self.catalog.lock();
        if tree.is_dropped() {
            // Dropped meanwhile: the tables belong to nothing.
            for (_, _, table) in added {
                catalog.retire(FileKind::Table.path(&self.dir, table.facts().number));
            }
            self.pipeline.lock().forget_frozen(tree, upto);
            return Ok(());
        }
        // Maybe beyond what is durable: the length of every log is, from its creation on, and a
        // replay that finds nothing there ends there.
        let replay_from = self.needed_from(Some((tree, upto)));
        let edit = Edit {
            tables_added: added.iter().map(|added| table_added(tree, added)).collect(),
            flushed_upto: vec![(tree.id, upto)],
            replay_from: Some(replay_from),
            replay_log: Some(self.pipeline.logs.file_at(replay_from)),
            ..Edit::default()
        };
        self.append_edit(&mut catalog, edit)?;
        {
            let _commit = self.pipeline.lock();
            let view = tree.view_arc();
            let version = self.apply(&view.version, added, &[])?;
            let frozen =
                view.frozen.iter().filter(|frozen| frozen.last_seqno > upto).cloned().collect();
            tree.replace_view(View { active: view.active.clone(), frozen, version });
        }
        self.pipeline.covered(replay_from);
        for number in self.pipeline.logs.forget_before(replay_from) {
            catalog.retire(FileKind::Log.path(&self.dir, number));
        }
        drop(catalog);
        self.note_version(tree);
        self.remove_obsolete();
        let user_bytes = frozen.iter().map(|frozen| frozen.memtable.bytes() as u64).sum();
        self.note_sustained(user_bytes);
        Ok(())
    }

    /// Where a replay must begin if the keyspace and number of `flushed` are in tables.
    fn needed_from(&self, flushed: Option<(&Arc<Tree>, SeqNo)>) -> Lsn {
        let trees = self.trees.load();
        let state = self.pipeline.lock();
        let needed = trees.iter().filter_map(|tree| {
            let upto = flushed.filter(|(flushed, _)| flushed.id == tree.id).map(|(_, upto)| upto);
            state.needed_from(tree, upto.unwrap_or(SeqNo::ZERO))
        });
        needed.min().unwrap_or(state.lsn())
    }

    /// Runs a compaction that was planned.
    pub fn compact(&self, tree: &Arc<Tree>, plan: &Plan, aside: &Aside<'_>) -> Result<()> {
        let _site = fs::site("compaction");
        let facts = if plan.delete_only {
            self.sync_before_removal()?;
            Vec::new()
        } else if plan.trivial_move {
            plan.tables().map(|(_, table)| table.facts().clone()).collect()
        } else {
            self.rewrite(tree, plan, aside)?
        };
        let mut catalog = self.catalog.lock();
        if tree.is_dropped() {
            if !plan.trivial_move {
                for facts in &facts {
                    catalog.retire(FileKind::Table.path(&self.dir, facts.number));
                }
            }
            return Ok(());
        }
        let added: Vec<Added<Table>> = if plan.trivial_move {
            plan.tables().map(|(_, table)| (plan.to_level, 0, table.clone())).collect()
        } else {
            self.open_tables(plan.to_level, 0, facts)?
        };
        let removed = plan.removed();
        let edit = Edit {
            tables_added: added.iter().map(|added| table_added(tree, added)).collect(),
            tables_removed: removed
                .iter()
                .map(|(level, number)| TableRemoved {
                    keyspace: tree.id,
                    level: *level,
                    number: *number,
                })
                .collect(),
            ..Edit::default()
        };
        self.append_edit(&mut catalog, edit)?;
        {
            let _commit = self.pipeline.lock();
            let view = tree.view_arc();
            let version = self.apply(&view.version, added, &removed)?;
            let (active, frozen) = (view.active.clone(), view.frozen.clone());
            tree.replace_view(View { active, frozen, version });
        }
        if !plan.trivial_move {
            for (_, number) in removed {
                catalog.retire(FileKind::Table.path(&self.dir, number));
            }
        }
        drop(catalog);
        self.note_version(tree);
        self.remove_obsolete();
        Ok(())
    }

    /// Merges the inputs of a compaction into new tables.
    fn rewrite(&self, tree: &Tree, plan: &Plan, aside: &Aside<'_>) -> Result<Vec<TableFacts>> {
        let merged = MergeCursor::new(plan.cursors(&self.limits, &self.resources.buffers));
        let facts = match self.dead_entries(tree)? {
            Some(is_dead) => self.write_survivors(tree, plan, Living::new(merged, is_dead), aside),
            None => self.write_survivors(tree, plan, merged, aside),
        }?;
        self.sync_tables(&facts)?;
        let read = plan.bytes();
        let written: u64 = facts.iter().map(|facts| facts.bytes).sum();
        self.totals.compaction_read_bytes.fetch_add(read, Ordering::Relaxed);
        self.totals.compaction_written_bytes.fetch_add(written, Ordering::Relaxed);
        self.totals.compaction_count.fetch_add(1, Ordering::Relaxed);
        let traffic = &tree.traffic[usize::from(plan.to_level)];
        traffic.read_bytes.fetch_add(read, Ordering::Relaxed);
        traffic.written_bytes.fetch_add(written, Ordering::Relaxed);
        Ok(facts)
    }

    fn write_survivors(
        &self,
        tree: &Tree,
        plan: &Plan,
        entries: impl Cursor,
        aside: &Aside<'_>,
    ) -> Result<Vec<TableFacts>> {
        let (boundaries, below) = (self.snapshots.boundaries(), plan.below.clone());
        let mut survivors = Survivors::new(entries, boundaries, below, tree.operator().cloned())?;
        let inputs = plan.removed().into_iter().map(|(_, number)| number).collect();
        self.with_output(tree, plan.to_level, inputs, aside, |output| {
            write_tables(&mut survivors, plan.cuts.clone(), output)
        })
    }

    /// Removes superfluous files, after a record that makes the one that retired them not the
    /// last.
    pub fn clean(&self) -> Result<()> {
        let mut catalog = self.catalog.lock();
        if catalog.has_obsolete() {
            self.append_edit(&mut catalog, Edit::default())?;
        }
        drop(catalog);
        self.remove_obsolete();
        Ok(())
    }

    /// Removes the files that may be. One that cannot be removed is an orphan for the next open.
    pub fn remove_obsolete(&self) {
        let removable = self.catalog.lock().take_removable();
        for path in removable {
            let _ = self.fs.remove(&path);
        }
    }

    /// Calls `write` with where and how tables of this level are written that take over the
    /// contents of `inputs`; it steps aside now and then.
    pub(crate) fn with_output<T>(
        &self,
        tree: &Tree,
        level: u8,
        inputs: Vec<FileNumber>,
        aside: &Aside<'_>,
        write: impl FnOnce(&Output<'_>) -> Result<T>,
    ) -> Result<T> {
        let config = table_config(&self.options, &self.limits, level);
        let (keyspace, name) = (tree.id, tree.name.clone());
        let operator = tree.operator_name().map(str::to_string);
        let origin = Origin { keyspace, name, operator, inputs };
        write(&Output {
            fs: &*self.fs,
            dir: &self.dir,
            config: &config,
            origin: &origin,
            table_bytes: self.limits.table_bytes as u64,
            job_bytes: self.limits.job_bytes,
            buffers: &self.resources.buffers,
            next_number: &|| self.next_file_number(),
            cancelled: &|| {
                aside.step();
                self.work.is_stopped()
            },
            progress: &|_| {},
        })
    }

    /// Makes the names of new tables durable.
    pub(crate) fn sync_tables(&self, facts: &[TableFacts]) -> Result<()> {
        if facts.is_empty() {
            return Ok(());
        }
        let _site = fs::site("table.sync_dir");
        self.fs.sync_dir(&self.dir).map_err(|e| Error::io("sync", &self.dir, e))
    }

    pub(crate) fn open_tables(
        &self,
        level: u8,
        run: u64,
        facts: Vec<TableFacts>,
    ) -> Result<Vec<Added<Table>>> {
        let open = |facts| {
            let mode = self.options.read_mode;
            Ok((level, run, Table::open(&*self.fs, &self.dir, facts, mode, &self.cache)?))
        };
        facts.into_iter().map(open).collect()
    }

    pub(crate) fn apply(
        &self,
        version: &Version,
        added: Vec<Added<Table>>,
        removed: &[(u8, FileNumber)],
    ) -> Result<Arc<Version>> {
        let applied = version.apply(added, removed);
        applied.map(Arc::new).map_err(|why| Error::invalid(format!("a bug of esker: {why}")))
    }

    fn note_version(&self, tree: &Tree) {
        let scores = Scores::of(&tree.view().version, &self.limits, &Claims::default());
        tree.debt_bytes.store(scores.debt_bytes(), Ordering::Relaxed);
        self.note_tables();
    }

    /// What the background threads sustain: user bytes flushed since the last call, by their busy
    /// time.
    fn note_sustained(&self, user_bytes: u64) {
        let busy = self.totals.busy_ns.swap(0, Ordering::Relaxed);
        let threads = self.options.threads.max(1) as u64;
        self.pressure.sustained(user_bytes, std::time::Duration::from_nanos(busy / threads));
    }
}

/// How tables of this level are encoded.
pub(crate) fn table_config(options: &Options, limits: &Limits, level: u8) -> TableConfig {
    let lz4 = match options.compression {
        Compression::None => false,
        Compression::Lz4 => level + 1 >= LEVEL_LAST,
    };
    TableConfig { block_bytes: limits.block_bytes, lz4, filter: options.filter }
}

fn table_added(tree: &Tree, (level, run, table): &Added<Table>) -> TableAdded {
    TableAdded { keyspace: tree.id, level: *level, run: *run, facts: table.facts().clone() }
}
