//! The database: handles that users hold.
//!
//! - `mod`: [`Db`], opening and closing.
//! - `keyspace`: [`Keyspace`], the verbs of one keyspace.
//! - `batch`: [`Batch`], atomic commits.
//! - `guard`: conditional commits. `once`: idempotent ones, with `recent`, a filter
//!   of their tokens.
//! - `snapshot`: [`Snapshot`], reads as of one moment.
//! - `stats`: [`Stats`].
//! - `joint`: several engines as the shards of one database. `cut`: where their recovery ends each
//!   log.
//! - `resume`: taking writes again after a failure of the disk.
//! - `resources`: [`Resources`], what several databases share; `crew`: its threads.
//! - `engine`: what the handles share. `open`: from a directory to an engine. `replayed`: what it
//!   reads of the log. `aside`: keeping what
//!   a salvage goes on without. `checkpoint`: a copy of everything at one moment. `catalog`: the
//!   manifest in use. `worker`: what there is to do in the background. `jobs`: how it is done. `view_model`: what readers see
//!   while views are replaced, in schedules that shuttle tries.

pub(crate) mod aside;
pub(crate) mod batch;
pub(crate) mod catalog;
pub(crate) mod checkpoint;
pub(crate) mod crew;
pub(crate) mod cut;
pub(crate) mod engine;
pub(crate) mod guard;
pub(crate) mod jobs;
pub(crate) mod joint;
#[cfg(test)]
mod joint_crash;
pub(crate) mod keyspace;
pub(crate) mod once;
pub(crate) mod open;
pub(crate) mod recent;
pub(crate) mod replayed;
pub(crate) mod resources;
pub(crate) mod resume;
pub(crate) mod snapshot;
pub(crate) mod stats;
#[cfg(test)]
mod view_model;
pub(crate) mod worker;

use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::db::batch::Batch;
use crate::db::engine::Engine;
use crate::db::keyspace::{Keyspace, KeyspaceOptions};
use crate::db::open::DEFAULT_KEYSPACE;
use crate::db::resources::Resources;
use crate::db::snapshot::Snapshot;
use crate::db::stats::Stats;
use crate::error::{DegradedCause, Error, Result};
use crate::fs::Fs;
use crate::fs::RealFs;
use crate::loss::Loss;
use crate::manifest::edit::Edit;
use crate::options::{Compression, Durability, Filter, Options, ReadMode, Recovery, TokenWindow};
use crate::runtime::{Mutex, Runtime, Task};
use crate::write::breaker::{BreakerState, BreakerWatch};
use crate::write::closing::Joints;
use crate::write::pressure::Pressure;

/// An open database. Cheap to clone; all clones are the same database.
///
/// It dereferences to its default [`Keyspace`], so the verbs of a keyspace work on it, and `&db`
/// can be given where a `&Keyspace` is wanted.
///
/// Dropping the last handle syncs the logs and stops the background threads; [`Db::close`] also
/// flushes, which makes the next open fast. A [`Keyspace`], a [`Batch`] (a committed one too) and a
/// [`Snapshot`] are handles: as long as one is left the database is open, and opening it again
/// fails with `Locked`.
#[derive(Clone)]
pub struct Db {
    default: Keyspace,
}

/// What all handles of a database keep alive.
pub(crate) struct Handle {
    pub engine: Arc<Engine>,
    /// What there is to stop, until it is.
    running: Mutex<Option<(Task, Resources)>>,
}

impl Db {
    /// Opens the database in the directory `path`, and creates it if there is none.
    ///
    /// # Errors
    /// `Locked` if it is open elsewhere; `Corruption` if what is found there is not what was
    /// written; `Unsupported` if a newer version wrote it; `InvalidArgument` if the directory
    /// holds something else.
    pub fn open(path: impl AsRef<Path>) -> Result<Db> {
        Db::open_with(path, Options::default())
    }

    /// Opens a database with choices of your own: `Db::builder("data").memory(1 << 30).open()?`.
    pub fn builder(path: impl AsRef<Path>) -> DbBuilder {
        let path = path.as_ref().to_path_buf();
        DbBuilder { path, options: Options::default(), resources: None }
    }

    /// Opens a database with these options.
    ///
    /// # Errors
    /// As [`Db::open`].
    pub fn open_with(path: impl AsRef<Path>, options: Options) -> Result<Db> {
        let resources = Resources::of(Runtime::threads(), &options);
        Db::open_inner(Arc::new(RealFs::new()), resources, path.as_ref(), options)
    }

    /// Opens a database on a file system and a runtime of the caller's: for tests.
    ///
    /// `fs` may be the simulated disk of [`crate::fs::sim`], the real one, or a wrapper of the
    /// caller's that implements the three traits of [`crate::fs`]; `crate::fs` shows a whole check.
    /// With [`Runtime::stepper`] background work is done in turns on a seed's schedule, with
    /// [`Runtime::alone`] not at all, which is enough to open, read, and commit a little.
    ///
    /// # Errors
    /// As [`Db::open`].
    #[cfg(any(test, feature = "testing"))]
    pub fn open_on(
        fs: Arc<dyn Fs>,
        runtime: Runtime,
        path: impl AsRef<Path>,
        options: Options,
    ) -> Result<Db> {
        let resources = Resources::of(runtime, &options);
        Db::open_inner(fs, resources, path.as_ref(), options)
    }

    /// The same with resources that others may share.
    ///
    /// # Errors
    /// As [`Db::open`].
    #[cfg(any(test, feature = "testing"))]
    pub fn open_sharing(
        fs: Arc<dyn Fs>,
        resources: &Resources,
        path: impl AsRef<Path>,
        options: Options,
    ) -> Result<Db> {
        Db::open_inner(fs, resources.clone(), path.as_ref(), resources.adapt(options))
    }

    fn open_inner(
        fs: Arc<dyn Fs>,
        resources: Resources,
        dir: &Path,
        options: Options,
    ) -> Result<Db> {
        let engine = open::open(fs, resources.shared(), dir, options)
            .map_err(|error| error.context(format!("open {}", dir.display())))?;
        Db::start(engine, resources)
    }

    /// Starts what goes on in the background of an engine that was opened with these resources.
    fn start(engine: Arc<Engine>, resources: Resources) -> Result<Db> {
        let syncer = engine.spawn(&resources);
        let syncer = syncer.map_err(|e| Error::io("start threads for", &engine.dir, e))?;
        let tree = engine.tree(DEFAULT_KEYSPACE).expect("every database has it");
        engine.measure_pressure();
        let handle = Arc::new(Handle { engine, running: Mutex::new(Some((syncer, resources))) });
        Ok(Db { default: Keyspace::new(handle, tree) })
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.default.handle.engine
    }

    /// Opens the keyspace `name`, and creates it if there is none.
    ///
    /// # Errors
    /// `InvalidArgument` if the name is empty, longer than 255 bytes or has control characters,
    /// or if the keyspace exists with a merge operator of another name.
    pub fn keyspace(&self, name: &str, options: KeyspaceOptions) -> Result<Keyspace> {
        let tree = self.engine().open_keyspace(name, options)?;
        Ok(Keyspace::new(self.default.handle.clone(), tree))
    }

    /// The keyspace of this name, hidden or not, if there is one.
    pub(crate) fn existing_keyspace(&self, name: &str) -> Option<Keyspace> {
        let tree = self.engine().tree(name)?;
        Some(Keyspace::new(self.default.handle.clone(), tree))
    }

    /// Makes the hidden keyspaces of idempotent commits, if they are not there.
    pub(crate) fn open_hidden(&self) -> Result<()> {
        self.engine().open_tokens()
    }

    /// Names of all keyspaces, sorted. `default` is always there.
    #[must_use]
    pub fn keyspace_names(&self) -> Vec<String> {
        let trees = self.engine().trees.load();
        let shown = trees.iter().filter(|tree| !tree.is_hidden());
        let mut names: Vec<_> = shown.map(|tree| tree.name.clone()).collect();
        names.sort();
        names
    }

    /// Drops the keyspace `name` with everything in it, at once. Handles to it fail from then on
    /// with `Closed`; writes that race it get the same.
    ///
    /// # Errors
    /// `InvalidArgument` if there is none of this name, or for `default`.
    pub fn drop_keyspace(&self, name: &str) -> Result<()> {
        self.engine().drop_keyspace(name)
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch {
        Batch::new(self.default.handle.clone())
    }

    /// The database as it is now, for reading. Cheap: a number that pins no memory.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self)
    }

    /// How the database is doing. `Display` is for people.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::of(self.engine())
    }

    /// Writes the memtables of all keyspaces as tables, and waits until they are.
    ///
    /// # Errors
    /// `Degraded` or `NoSpace` if the disk fails; nothing is lost then.
    pub fn flush(&self) -> Result<()> {
        self.engine().flush_all()
    }

    /// Waits until no flush, compaction or removal of files is due. Does not flush what is in
    /// memory; see [`Db::flush`].
    ///
    /// # Errors
    /// `Degraded` or `NoSpace` if the disk fails.
    pub fn settle(&self) -> Result<()> {
        self.engine().settle()
    }

    /// Makes every commit so far survive power loss.
    ///
    /// # Errors
    /// `Degraded` if a sync fails: see [`Db::breaker`].
    pub fn sync(&self) -> Result<()> {
        self.engine().sync()
    }

    /// Makes a copy of the database as it is now, in the new directory `target`: complete, durable, and
    /// opened like any other. Reads and writes go on meanwhile.
    ///
    /// Tables are not copied but get a second name there, so that it takes little time and space; on
    /// another file system they are copied. What is in memory is written as tables. Events that an
    /// ingest queue has taken and not yet applied are not in it.
    ///
    /// After a crash `target` is there wholly or not at all. What is left of an attempt is called
    /// `target` with `.checkpoint.tmp`; the next one removes it.
    ///
    /// # Errors
    /// `InvalidArgument` if `target` exists; `Locked` while another checkpoint of this name is made;
    /// `NoSpace` or `Io`: there is no checkpoint then, or if the last sync failed perhaps a complete one.
    /// The database is as it was.
    pub fn checkpoint(&self, target: impl AsRef<Path>) -> Result<()> {
        let target = target.as_ref();
        let write = |dir: &Path| {
            let captured = checkpoint::capture(&Joints::default(), std::iter::once(self))?;
            captured.iter().try_for_each(|captured| captured.write(dir))
        };
        checkpoint::build(&*self.engine().fs, target, write)
            .map_err(|error| error.context(format!("checkpoint {}", target.display())))
    }

    /// Whether writes are taken, and if not, why not.
    #[must_use]
    pub fn breaker(&self) -> (BreakerState, Option<DegradedCause>) {
        self.engine().pipeline.breaker.state()
    }

    /// Hears of every change of [`Db::breaker`] from now on.
    #[must_use]
    pub fn watch_breaker(&self) -> BreakerWatch {
        self.engine().pipeline.breaker.changes.watch()
    }

    /// How close writers are to outrunning the disk, and what they may write.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        self.engine().pressure.pressure()
    }

    /// Takes writes again after a failure of the disk, once its cause is gone.
    ///
    /// Everything that readers see is written from memory into new tables and a new manifest, in
    /// one step; the log file that failed is never synced again. A commit that ended with an error
    /// is afterwards there wholly, if readers saw it, or gone for good.
    ///
    /// # Errors
    /// If the disk fails again: writes are still refused and this may be tried again. After
    /// corruption always: a person has to look.
    pub fn resume(&self) -> Result<()> {
        self.engine().resume(0)
    }

    /// What the open went on without, in another mode than [`Recovery::Strict`]; empty if nothing
    /// was damaged. The next open does not find it again: the files it was in are in the directory
    /// `lost` within the database's.
    #[must_use]
    pub fn losses(&self) -> &[Loss] {
        &self.engine().losses
    }

    /// Flushes everything, marks the database as closed cleanly, and lets go of it. Every other
    /// handle fails from then on with `Closed`.
    ///
    /// # Errors
    /// If the disk fails; everything acknowledged is still there at the next open.
    pub fn close(self) -> Result<()> {
        self.default.handle.close()
    }
}

impl Deref for Db {
    type Target = Keyspace;

    fn deref(&self) -> &Keyspace {
        &self.default
    }
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Db({})", self.engine().dir.display())
    }
}

impl Handle {
    fn close(&self) -> Result<()> {
        let engine = &self.engine;
        {
            let mut commit = engine.pipeline.lock();
            if commit.is_closed() {
                return Ok(());
            }
            commit.close();
        }
        let flushed = engine.flush_all();
        self.stop();
        flushed?;
        engine.end_cleanly()
    }

    /// Stops the background threads.
    fn stop(&self) {
        let Some((syncer, resources)) = self.running.lock().take() else { return };
        self.engine.stop(syncer);
        // The crew too, if nobody else needs it.
        drop(resources);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let pipeline = &self.engine.pipeline;
        let closed = {
            let mut commit = pipeline.lock();
            let closed = commit.is_closed();
            commit.close();
            closed
        };
        if !closed && pipeline.breaker.check().is_ok() {
            // Nobody is left to hear of an error; what was promised is promised by the log.
            let _ = pipeline.wait_durable(pipeline.ring.copied());
        }
        self.stop();
        // What no worker came to, or opens that are over soon would pile up logs.
        self.engine.remove_obsolete();
        // A thread that others share may still be about to let go of the engine.
        *self.engine.lock.lock() = None;
    }
}

impl Engine {
    /// Marks the database as closed cleanly: there is no log to replay.
    fn end_cleanly(&self) -> Result<()> {
        let mut catalog = self.catalog.lock();
        let (lsn, next_seqno) = {
            let commit = self.pipeline.lock();
            (commit.lsn(), commit.next_seqno())
        };
        let clean_close = Some(crate::key::SeqNo(next_seqno.0 - 1));
        let replay_log = Some(self.pipeline.logs.file_at(lsn));
        let edit = Edit { replay_from: Some(lsn), replay_log, clean_close, ..Edit::default() };
        self.append_edit(&mut catalog, edit)?;
        drop(catalog);
        self.remove_obsolete();
        self.pipeline.logs.trim(lsn);
        *self.lock.lock() = None;
        Ok(())
    }
}

/// Collects choices and opens a database. See [`Options`] for what they mean.
#[derive(Clone, Debug)]
#[must_use = "nothing happens until open()"]
pub struct DbBuilder {
    path: PathBuf,
    options: Options,
    resources: Option<Resources>,
}

impl DbBuilder {
    /// Bytes that memtables, caches, filters and queued commits may take together.
    pub fn memory(mut self, bytes: usize) -> DbBuilder {
        self.options.memory = bytes;
        self
    }

    /// Background threads for flush and compaction.
    pub fn threads(mut self, threads: usize) -> DbBuilder {
        self.options.threads = threads;
        self
    }

    /// Share these with other databases. Then [`DbBuilder::memory`] and [`DbBuilder::threads`] are
    /// theirs.
    pub fn resources(mut self, resources: &Resources) -> DbBuilder {
        self.resources = Some(resources.clone());
        self
    }

    /// The level of the verbs that name none.
    pub fn durability(mut self, durability: Durability) -> DbBuilder {
        self.options.durability = durability;
        self
    }

    /// Sync the log at least this often.
    pub fn sync_interval(mut self, interval: Option<Duration>) -> DbBuilder {
        self.options.sync_interval = interval;
        self
    }

    /// How blocks are compressed.
    pub fn compression(mut self, compression: Compression) -> DbBuilder {
        self.options.compression = compression;
        self
    }

    /// Which filter tables carry.
    pub fn filter(mut self, filter: Filter) -> DbBuilder {
        self.options.filter = filter;
        self
    }

    /// How tables are read.
    pub fn read_mode(mut self, mode: ReadMode) -> DbBuilder {
        self.options.read_mode = mode;
        self
    }

    /// Bytes after which a table is closed and the next begun.
    pub fn table_bytes(mut self, bytes: usize) -> DbBuilder {
        self.options.table_bytes = bytes;
        self
    }

    /// Whether to create the database if there is none.
    pub fn create(mut self, create: bool) -> DbBuilder {
        self.options.create = create;
        self
    }

    /// How long tokens of idempotent commits are kept.
    pub fn token_window(mut self, window: TokenWindow) -> DbBuilder {
        self.options.token_window = window;
        self
    }

    /// What to do where the database is damaged.
    pub fn recovery(mut self, recovery: Recovery) -> DbBuilder {
        self.options.recovery = recovery;
        self
    }

    /// Opens the database.
    ///
    /// # Errors
    /// As [`Db::open`].
    pub fn open(self) -> Result<Db> {
        let Some(resources) = self.resources else {
            return Db::open_with(self.path, self.options);
        };
        let options = resources.adapt(self.options);
        Db::open_inner(Arc::new(RealFs::new()), resources, &self.path, options)
    }
}
