//! Checkpoints: a database as it was at one moment, complete and openable, in a directory of its own.
//!
//! 1. *Capture*, under the catalogs of all shards at once, so that no table comes or goes: a snapshot
//!    of all of them, and of each what its manifest says and its memtables. Its tables are kept from
//!    being removed from then on. Writers and readers go on; no lock is held over I/O.
//! 2. *Build* `NAME.checkpoint.tmp` beside the directory that is wanted: tables get second names there,
//!    or are copied where they cannot (another disk); what is in memory is written as tables up to the
//!    snapshot's number; then a manifest that says that the database was closed there.
//! 3. *Rename* it, after everything in it is durable.
//!
//! So there is no log in a checkpoint, and none of its shards has a part of a joint commit that
//! another lacks. A crash leaves the whole checkpoint or, under the other name, what the next attempt
//! removes; CURRENT, and the slot map of a database over several shards, come last in it, so what
//! opens there is complete as well.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::compaction::picker::flush_cuts;
use crate::compaction::run::Output;
use crate::db::Db;
use crate::db::catalog::Catalog;
use crate::db::engine::Engine;
use crate::db::jobs::table_config;
use crate::db::open::take_lock;
use crate::db::snapshot::Snapshot;
use crate::error::{Error, Result};
use crate::file::{
    self, CURRENT, FileKind, FileNumber, LOCK, SHARD_MARK, SHARD_PREFIX, SHARDS, TEMPORARY_ENDING,
};
use crate::flush::flush;
use crate::fs::{self, Fs};
use crate::manifest::edit::{Edit, TableAdded};
use crate::manifest::state::State;
use crate::manifest::writer::ManifestWriter;
use crate::table::{Origin, TableFacts};
use crate::tree::{Tree, View};
use crate::write::closing::Joints;
use crate::write::commit::closed_error;

/// What the name of a checkpoint ends with that is not complete.
const UNFINISHED_ENDING: &str = ".checkpoint.tmp";

/// An engine at one moment, and all that a copy of it is made of.
pub(crate) struct Captured {
    engine: Arc<Engine>,
    /// Keeps the versions that the memtables are to be written with.
    snapshot: Snapshot,
    state: State,
    views: Vec<(Arc<Tree>, Arc<View>)>,
    /// The tables, which are not removed as long as this lives.
    held: Option<Arc<BTreeSet<PathBuf>>>,
}

impl Drop for Captured {
    fn drop(&mut self) {
        self.held = None;
        // What would have been removed meanwhile.
        self.engine.remove_obsolete();
    }
}

/// Captures all shards of a database at one moment.
///
/// # Errors
/// `Closed` if one of them is.
pub(crate) fn capture<'a>(
    joints: &Joints,
    shards: impl Iterator<Item = &'a Db> + Clone,
) -> Result<Vec<Captured>> {
    // Nobody else holds two catalogs.
    let mut catalogs: Vec<_> = shards.clone().map(|db| Db::engine(db).catalog.lock()).collect();
    if shards.clone().any(|db| Db::engine(db).pipeline.lock().is_closed()) {
        return Err(closed_error());
    }
    let snapshots = Snapshot::of_shards(joints, shards.clone());
    let one = |((db, snapshot), catalog): ((&Db, Snapshot), &mut Catalog)| {
        let engine = Db::engine(db).clone();
        let state = catalog.state().clone();
        let path = |facts: &TableFacts| FileKind::Table.path(&engine.dir, facts.number);
        let held = Arc::new(state.tables().map(|(.., facts)| path(facts)).collect());
        catalog.hold(&held);
        // Loaded after the snapshot was taken, so that each has all that it sees; and the versions
        // have no more than that, as they were installed before.
        let views =
            engine.trees.load().iter().map(|tree| (tree.clone(), tree.view_arc())).collect();
        Captured { engine, snapshot, state, views, held: Some(held) }
    };
    let shards = shards.zip(snapshots).zip(catalogs.iter_mut().map(|catalog| &mut **catalog));
    Ok(shards.map(one).collect())
}

/// Builds a checkpoint, as `write` does it in the directory that it is given, and has it appear as
/// `target`.
///
/// # Errors
/// `InvalidArgument` if there is something of this name; `Locked` if another checkpoint of this name is
/// being built; as `write`. Nothing is left then, unless the file system fails again.
pub(crate) fn build(
    fs: &dyn Fs,
    target: &Path,
    write: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let Some(name) = target.file_name().and_then(|name| name.to_str()) else {
        let what = format!("{} does not name a new directory", target.display());
        return Err(Error::invalid(what));
    };
    match fs.list(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() != io::ErrorKind::NotADirectory => {
            return Err(Error::io("list", target, error));
        }
        _ => {
            let what = "exists; a checkpoint makes a directory of its own";
            return Err(Error::invalid(format!("{} {what}", target.display())));
        }
    }
    let unfinished = target.with_file_name(format!("{name}{UNFINISHED_ENDING}"));
    fs.create_dir_all(&unfinished).map_err(|e| Error::io("create", &unfinished, e))?;
    let lock = take_lock(fs, &unfinished)?;
    let built = clear(fs, &unfinished, true).and_then(|()| {
        write(&unfinished)?;
        {
            let _site = fs::site("checkpoint.rename");
            fs.rename(&unfinished, target).map_err(|e| Error::io("rename", &unfinished, e))?;
        }
        // Else what was made can be gone after a crash.
        let _site = fs::site("checkpoint.sync_parent");
        let parent = fs::parent_of(target);
        fs.sync_dir(parent).map_err(|e| Error::io("sync", parent, e))
    });
    if built.is_err() && fs.list(&unfinished).is_ok() {
        // The first error is the one to report.
        let _ = clear(fs, &unfinished, true);
        let _ = fs.remove(&unfinished.join(LOCK));
        let _ = fs.remove_dir(&unfinished);
    }
    drop(lock);
    built
}

/// Removes what an attempt has left in a directory, but for the lock if that is held.
///
/// # Errors
/// `InvalidArgument` if there is something that no attempt makes.
fn clear(fs: &dyn Fs, dir: &Path, is_locked: bool) -> Result<()> {
    let names = fs.list(dir).map_err(|e| Error::io("list", dir, e))?;
    for name in names.iter().filter(|name| !(is_locked && *name == LOCK)) {
        let path = dir.join(name);
        if name.starts_with(SHARD_PREFIX) {
            clear(fs, &path, false)?;
            fs.remove_dir(&path).map_err(|e| Error::io("remove", &path, e))?;
            continue;
        }
        let is_ours = file::parse_name(name).is_some()
            || [CURRENT, LOCK, SHARD_MARK, SHARDS].contains(&name.as_str())
            || name.ends_with(TEMPORARY_ENDING);
        if !is_ours {
            let what = format!("{} has a file {name:?}, which is not ours", dir.display());
            return Err(Error::invalid(what));
        }
        fs.remove(&path).map_err(|e| Error::io("remove", &path, e))?;
    }
    Ok(())
}

impl Captured {
    /// Makes a database of it in `dir`, an empty directory, durably but for the name of `dir`.
    ///
    /// # Errors
    /// From the file system.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let (fs, upto) = (&self.engine.fs, self.snapshot.seqno());
        for (.., facts) in self.state.tables() {
            self.take_over(dir, facts)?;
        }
        // Numbers that the database itself has not given out; its own go on with them for other files.
        let next_file = AtomicU64::new(self.state.next_file().0);
        let mut edit = Edit::default();
        for (tree, view) in &self.views {
            let run = self.state.tables().filter(|(id, ..)| *id == tree.id);
            let run = run.map(|(_, _, run, _)| run).max().unwrap_or(0) + 1;
            for facts in self.write_memtables(dir, tree, view, &next_file)? {
                edit.tables_added.push(TableAdded { keyspace: tree.id, level: 0, run, facts });
            }
            edit.flushed_upto.push((tree.id, upto));
        }
        let next_number = || FileNumber(next_file.fetch_add(1, Ordering::Relaxed));
        // As after an open that was cut short: the log that is named was never begun.
        let (manifest, log) = (next_number(), next_number());
        edit.replay_log = Some(log);
        // What was durable of the log is in no log here.
        edit.replay_from = Some(self.state.replay_from().max(self.state.log_durable()));
        edit.next_file = Some(FileNumber(next_file.load(Ordering::Relaxed)));
        // There are no logs that could name what was given up.
        edit.voids_settled = self.state.shard().is_some();
        let mut state = self.state.clone();
        state.apply(&edit).map_err(|why| Error::invalid(format!("a bug of esker: {why}")))?;
        // It syncs the directory before CURRENT names it, and with it the names of the tables.
        let mut writer = ManifestWriter::create(fs, dir, manifest, &state)?;
        writer.append(&Edit { clean_close: Some(upto), ..Edit::default() })
    }

    /// Gives a table a second name, or copies it.
    fn take_over(&self, dir: &Path, facts: &TableFacts) -> Result<()> {
        let fs = &*self.engine.fs;
        let from = FileKind::Table.path(&self.engine.dir, facts.number);
        let to = FileKind::Table.path(dir, facts.number);
        match fs.link(&from, &to) {
            Ok(()) => Ok(()),
            Err(error) if is_about_the_disk(error.kind()) => Err(Error::io("link", &from, error)),
            // Another disk, or a file system without second names.
            Err(_) => fs::copy(fs, &from, &to, "checkpoint.copy.sync")
                .map_err(|e| Error::io("copy", &from, e)),
        }
    }

    /// What is in memory of a keyspace, as tables, synced.
    fn write_memtables(
        &self,
        dir: &Path,
        tree: &Tree,
        view: &View,
        next_file: &AtomicU64,
    ) -> Result<Vec<TableFacts>> {
        let engine = &self.engine;
        let config = table_config(&engine.options, &engine.limits, 0);
        let origin = Origin {
            keyspace: tree.id,
            name: tree.name.clone(),
            operator: tree.operator_name().map(str::to_string),
            inputs: Vec::new(),
        };
        let output = Output {
            fs: &*engine.fs,
            dir,
            config: &config,
            origin: &origin,
            table_bytes: engine.limits.table_bytes as u64,
            job_bytes: engine.limits.job_bytes,
            buffers: &engine.resources.buffers,
            next_number: &|| FileNumber(next_file.fetch_add(1, Ordering::Relaxed)),
            cancelled: &|| false,
            progress: &|_| {},
        };
        let frozen = view.frozen.iter().map(|frozen| &frozen.memtable);
        let memtables = std::iter::once(&view.active).chain(frozen);
        let cuts = flush_cuts(&view.version, &engine.limits);
        let operator = tree.operator().cloned();
        flush(memtables, self.snapshot.seqno(), Vec::new(), operator, cuts, &output)
    }
}

/// True if a copy would fail as well.
fn is_about_the_disk(error: io::ErrorKind) -> bool {
    use io::ErrorKind::{NotFound, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    [NotFound, QuotaExceeded, ReadOnlyFilesystem, StorageFull].contains(&error)
}
