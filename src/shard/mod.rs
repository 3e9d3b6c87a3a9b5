//! Many engines, one database.
//!
//! - `mod`: [`ShardedDb`], opening and closing.
//! - `keyspace`, `batch`, `snapshot`, `scan`: the verbs.
//! - `hot`: counters that are hotter than one shard takes.
//! - `checkpoint`: a copy of all of it at one moment.
//! - `root`: what the handles share. `opening`: from directories to a root.
//! - `mover`: moving slots between shards.
//! - `slots`: sets and assignments of slots. `map`: the slot map and its bytes. `map_file`: the map on
//!   the disk. `partition`: which part of a key decides its slot. `routing`: what readers and writers
//!   go by.
//! - `rates`: reads and writes a second, by slot. `sketch`: the heaviest keys. `load`: both, as the verbs
//!   count. `policy`: when slots move without being asked. `stats`: what is told of it all.

pub(crate) mod slots;

pub(crate) mod map;

pub(crate) mod map_file;
pub(crate) mod partition;
pub(crate) mod routing;

pub(crate) mod load;
pub(crate) mod policy;
pub(crate) mod rates;
pub(crate) mod sketch;

pub(crate) mod batch;
pub(crate) mod checkpoint;
pub(crate) mod hot;
pub(crate) mod keyspace;
pub(crate) mod mover;
pub(crate) mod opening;
pub(crate) mod root;
pub(crate) mod scan;
pub(crate) mod snapshot;
pub(crate) mod stats;

use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::db::Db;
use crate::db::keyspace::KeyspaceOptions;
use crate::db::resources::Resources;
use crate::error::{DegradedCause, Error, Result};
use crate::fs::{Fs, RealFs};
use crate::options::{Durability, Options};
use crate::runtime::{Mutex, Priority, Runtime, Task};
use crate::shard::batch::ShardedBatch;
use crate::shard::hot::HotCounters;
use crate::shard::keyspace::ShardedKeyspace;
use crate::shard::map::SLOTS_DEFAULT;
use crate::shard::mover::MoveProgress;
use crate::shard::opening::Layout;
use crate::shard::partition::Partition;
use crate::shard::policy::Automatic;
use crate::shard::root::Root;
use crate::shard::snapshot::ShardedSnapshot;
use crate::shard::stats::ShardedStats;
use crate::write::breaker::BreakerState;
use crate::write::pressure::Pressure;

/// An open database over several shards: engines with logs and directories of their own. Cheap to
/// clone; all clones are the same database.
///
/// It has the verbs of [`Db`], and dereferences to its default [`ShardedKeyspace`]. What differs:
/// durability is a prefix of each shard's commits, and a batch over several shards is there wholly
/// or not at all; an order over all shards is not promised.
///
/// Dropping the last handle syncs the logs and stops the background threads;
/// [`ShardedDb::close`] also flushes.
#[derive(Clone)]
pub struct ShardedDb {
    default: ShardedKeyspace,
}

/// What all handles of a database keep alive.
pub(crate) struct Handle {
    pub root: Arc<Root>,
    /// The thread that moves slots.
    mover: Mutex<Option<Task>>,
}

impl ShardedDb {
    /// Opens the database in the directory `path`; creates it, with one shard, if there is none.
    ///
    /// # Errors
    /// As [`Db::open`]; `Corruption` too if a shard is missing or is another one.
    pub fn open(path: impl AsRef<Path>) -> Result<ShardedDb> {
        ShardedDb::builder(path).open()
    }

    /// Opens a database with choices of your own:
    /// `ShardedDb::builder("data").shards(4).partition(Partition::before(b':')).open()?`.
    pub fn builder(path: impl AsRef<Path>) -> ShardedDbBuilder {
        let layout =
            Layout { shards: 1, slots: SLOTS_DEFAULT, partition: None, directories: Vec::new() };
        let (path, options) = (path.as_ref().to_path_buf(), Options::default());
        ShardedDbBuilder { path, options, layout, resources: None, automatic: None }
    }

    fn open_inner(
        fs: Arc<dyn Fs>,
        resources: Resources,
        dir: &Path,
        options: Options,
        layout: Layout,
        automatic: Option<Automatic>,
    ) -> Result<ShardedDb> {
        automatic.as_ref().map_or(Ok(()), Automatic::check)?;
        let root = opening::open(fs, resources, dir, options, layout)
            .map_err(|error| error.context(format!("open {}", dir.display())))?;
        let space = root.default_space();
        let root = Arc::new(root);
        // What a crash or a close has left to be moved goes on.
        root.mover.wake();
        let thread = root.clone();
        let task = root
            .runtime
            .spawn("esker-move", Priority::Background, move || thread.run_mover(automatic))
            .map_err(|e| Error::io("start threads for", dir, e))?;
        let handle = Arc::new(Handle { root, mover: Mutex::new(Some(task)) });
        Ok(ShardedDb { default: ShardedKeyspace::new(handle, space) })
    }

    fn root(&self) -> &Root {
        &self.default.handle.root
    }

    /// Opens the keyspace `name`, and creates it if there is none.
    ///
    /// # Errors
    /// As [`Db::keyspace`].
    pub fn keyspace(&self, name: &str, options: KeyspaceOptions) -> Result<ShardedKeyspace> {
        let space = self.root().open_keyspace(name, options)?;
        Ok(ShardedKeyspace::new(self.default.handle.clone(), space))
    }

    /// Opens the keyspace `name` for counters that are hotter than one shard takes, and creates it if
    /// there is none. It is theirs alone: opened as an ordinary keyspace it shows their parts.
    ///
    /// # Errors
    /// As [`Db::keyspace`]; `InvalidArgument` too if it has no merge operator that folds in any order.
    pub fn hot_counters(&self, name: &str, options: KeyspaceOptions) -> Result<HotCounters> {
        // Before it is made, or given an operator that will not do.
        let fits = match options.operator() {
            Some(operator) => operator.folds_in_any_order(),
            None => self.root().space(name).is_some(),
        };
        if !fits {
            return Err(hot::unfit(name));
        }
        HotCounters::new(self.keyspace(name, options)?)
    }

    /// Names of all keyspaces, sorted. `default` is always there.
    #[must_use]
    pub fn keyspace_names(&self) -> Vec<String> {
        self.root().spaces().iter().map(|space| space.name.clone()).collect()
    }

    /// Drops the keyspace `name` with everything in it, at once. Handles to it fail from then on
    /// with `Closed`; writes that race it get the same.
    ///
    /// # Errors
    /// As [`Db::drop_keyspace`].
    pub fn drop_keyspace(&self, name: &str) -> Result<()> {
        self.root().drop_keyspace(name)
    }

    /// An empty batch.
    pub fn batch(&self) -> ShardedBatch {
        ShardedBatch::new(self.default.handle.clone())
    }

    /// The database as it is now, over all shards, for reading.
    #[must_use]
    pub fn snapshot(&self) -> ShardedSnapshot {
        ShardedSnapshot::new(&self.default.handle, self.default.space.clone())
    }

    /// How many shards it has.
    #[must_use]
    pub fn shard_count(&self) -> usize {
        self.root().routing.load().map.shard_count()
    }

    /// The number of the shard that has this key now.
    ///
    /// # Errors
    /// `InvalidArgument` if the partition's function panics.
    pub fn shard_of(&self, key: impl AsRef<[u8]>) -> Result<usize> {
        let routing = self.root().routing.load();
        let slot = self.root().slot(&routing.map, key.as_ref())?;
        Ok(routing.map.owner(slot).into())
    }

    // Moving slots. All of it goes on in the background, while reads and writes do, and after a crash
    // or a close at the next open.

    /// Adds a shard, in this directory or in one of its own in the database's, and gives it its fair
    /// share: 1/N of the slots, and nothing else moves. Its number.
    ///
    /// # Errors
    /// `InvalidArgument` if the directory is not empty, or the operator of a keyspace is not
    /// registered; from the file system.
    pub fn add_shard(&self, directory: Option<&Path>) -> Result<usize> {
        self.root().grow(directory)
    }

    /// Adds a shard, which gets half of the slots of this one. Its number.
    ///
    /// # Errors
    /// As [`ShardedDb::add_shard`]; `InvalidArgument` if there is no such shard.
    pub fn split(&self, shard: usize) -> Result<usize> {
        self.root().split(shard)
    }

    /// Has all shards get about as many slots, moving as few as that takes.
    ///
    /// # Errors
    /// From the file system.
    pub fn rebalance(&self) -> Result<()> {
        self.root().rebalance()
    }

    /// How far the moves have come.
    #[must_use]
    pub fn moves(&self) -> MoveProgress {
        self.root().mover.progress()
    }

    /// Waits until nothing is to be moved any more.
    ///
    /// # Errors
    /// If a step fails. It is tried again in the background; this may be called again.
    pub fn wait_for_moves(&self) -> Result<()> {
        self.root().mover.wait()
    }

    /// Gives up what is to be moved: slots that were not handed over stay where they are, and their
    /// copies are deleted.
    pub fn abort_moves(&self) {
        self.root().abort_moves();
    }

    /// Copies and deletes at most so many bytes a second. Default: as many as the shards take.
    pub fn set_move_rate(&self, bytes_per_second: Option<u64>) {
        self.root().mover.set_rate(bytes_per_second);
    }

    /// How the shards are doing.
    #[must_use]
    pub fn stats(&self) -> ShardedStats {
        ShardedStats::of(self.root())
    }

    /// Writes the memtables of all keyspaces of all shards as tables, and waits until they are.
    ///
    /// # Errors
    /// As [`Db::flush`].
    pub fn flush(&self) -> Result<()> {
        self.root().for_all(Db::flush)
    }

    /// Waits until no flush, compaction or removal of files is due in any shard.
    ///
    /// # Errors
    /// As [`Db::settle`].
    pub fn settle(&self) -> Result<()> {
        self.root().for_all(Db::settle)
    }

    /// Makes every commit so far survive power loss.
    ///
    /// # Errors
    /// As [`Db::sync`].
    pub fn sync(&self) -> Result<()> {
        self.root().for_all(Db::sync)
    }

    /// Makes a copy of the database as it is now, of all shards at one moment, in the new directory
    /// `target`, which then has all shards in it. Reads, writes and moves go on meanwhile; moves that
    /// are under way go on in the copy too, when it is opened. See [`Db::checkpoint`].
    ///
    /// # Errors
    /// As [`Db::checkpoint`].
    pub fn checkpoint(&self, target: impl AsRef<Path>) -> Result<()> {
        self.root().checkpoint(target.as_ref())
    }

    /// Whether all shards take writes, and if not, why the first that does not, does not. Those that do
    /// go on.
    #[must_use]
    pub fn breaker(&self) -> (BreakerState, Option<DegradedCause>) {
        if self.root().gate.pass().refused.is_some() {
            return (BreakerState::Open, Some(DegradedCause::Manifest));
        }
        let states = self.root().shards().map(Db::breaker);
        let mut open = states.filter(|(state, _)| *state != BreakerState::Closed);
        open.next().unwrap_or((BreakerState::Closed, None))
    }

    /// The pressure of the shard that has most of it. Only its own writers wait.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        let all = self.root().shards().map(Db::pressure);
        all.max_by(|a, b| a.value.total_cmp(&b.value)).expect("at least one shard")
    }

    /// Takes writes again, in every shard that refuses them, once the cause is gone. See
    /// [`Db::resume`].
    ///
    /// # Errors
    /// As [`Db::resume`].
    pub fn resume(&self) -> Result<()> {
        self.root().resume()
    }

    /// Flushes everything, marks all shards as closed cleanly, and lets go of them. Every other
    /// handle fails from then on with `Closed`.
    ///
    /// # Errors
    /// If a disk fails; everything acknowledged is still there at the next open.
    pub fn close(self) -> Result<()> {
        self.default.handle.close()
    }
}

impl Handle {
    fn close(&self) -> Result<()> {
        self.stop_mover();
        // One shard after the other: what a joint commit has in the last ones is durable before the
        // first one ends.
        self.root.for_all(|shard| {
            if shard.breaker().0 == BreakerState::Closed { shard.sync() } else { Ok(()) }
        })?;
        let closed = self.root.for_all(|shard| shard.clone().close());
        *self.root.lock.lock() = None;
        closed
    }
}

impl Handle {
    fn stop_mover(&self) {
        self.root.mover.stop();
        if let Some(task) = self.mover.lock().take() {
            task.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop_mover();
        for shard in self.root.shards() {
            // Nobody is left to hear of an error; what was promised is promised by the logs.
            let _ = shard.sync();
        }
    }
}

impl Deref for ShardedDb {
    type Target = ShardedKeyspace;

    fn deref(&self) -> &ShardedKeyspace {
        &self.default
    }
}

impl fmt::Debug for ShardedDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardedDb({}, {} shards)", self.root().dir.display(), self.shard_count())
    }
}

/// Collects choices and opens a database over several shards.
#[derive(Clone, Debug)]
#[must_use = "nothing happens until open()"]
pub struct ShardedDbBuilder {
    path: PathBuf,
    options: Options,
    layout: Layout,
    resources: Option<Resources>,
    automatic: Option<Automatic>,
}

impl ShardedDbBuilder {
    /// How many shards a database has that is created now, up to 256. One that is there keeps its own.
    pub fn shards(mut self, shards: usize) -> ShardedDbBuilder {
        self.layout.shards = shards;
        self
    }

    /// How many slots a database has that is created now: the finest parts that can be moved between
    /// shards. Default 1,024.
    pub fn slots(mut self, slots: usize) -> ShardedDbBuilder {
        self.layout.slots = slots;
        self
    }

    /// Which part of a key decides its shard, in a database that is created now; of one that is there
    /// it must be the same.
    pub fn partition(mut self, partition: Partition) -> ShardedDbBuilder {
        self.layout.partition = Some(partition);
        self
    }

    /// Directories of the first shards of a database that is created now, on other disks for
    /// instance. The others lie in the database's own.
    pub fn directories<P: AsRef<Path>>(
        mut self,
        directories: impl IntoIterator<Item = P>,
    ) -> ShardedDbBuilder {
        let text = |directory: P| directory.as_ref().to_string_lossy().into_owned();
        self.layout.directories = directories.into_iter().map(text).collect();
        self
    }

    /// All other choices at once. The memory is that of all shards together.
    pub fn options(mut self, options: Options) -> ShardedDbBuilder {
        self.options = options;
        self
    }

    /// Bytes that memtables, caches, filters and queued commits of all shards may take together.
    pub fn memory(mut self, bytes: usize) -> ShardedDbBuilder {
        self.options.memory = bytes;
        self
    }

    /// Background threads for flush and compaction, of all shards together.
    pub fn threads(mut self, threads: usize) -> ShardedDbBuilder {
        self.options.threads = threads;
        self
    }

    /// Share these with other databases. Then [`ShardedDbBuilder::memory`] and
    /// [`ShardedDbBuilder::threads`] are theirs.
    pub fn resources(mut self, resources: &Resources) -> ShardedDbBuilder {
        self.resources = Some(resources.clone());
        self
    }

    /// Has the database move slots by itself when one shard is asked for much more than the others.
    /// Not unless this is called; and for this opening only.
    pub fn automatic(mut self, policy: Automatic) -> ShardedDbBuilder {
        self.automatic = Some(policy);
        self
    }

    /// The level of the verbs that name none.
    pub fn durability(mut self, durability: Durability) -> ShardedDbBuilder {
        self.options.durability = durability;
        self
    }

    /// Sync the logs at least this often.
    pub fn sync_interval(mut self, interval: Option<Duration>) -> ShardedDbBuilder {
        self.options.sync_interval = interval;
        self
    }

    /// Whether to create the database if there is none.
    pub fn create(mut self, create: bool) -> ShardedDbBuilder {
        self.options.create = create;
        self
    }

    /// Opens the database.
    ///
    /// # Errors
    /// As [`ShardedDb::open`].
    pub fn open(self) -> Result<ShardedDb> {
        self.open_inner(Arc::new(RealFs::new()), Runtime::threads())
    }

    /// Opens it on a file system and a runtime of the caller's: for tests.
    ///
    /// # Errors
    /// As [`ShardedDb::open`].
    #[cfg(any(test, feature = "testing"))]
    pub fn open_on(self, fs: Arc<dyn Fs>, runtime: Runtime) -> Result<ShardedDb> {
        self.open_inner(fs, runtime)
    }

    fn open_inner(self, fs: Arc<dyn Fs>, runtime: Runtime) -> Result<ShardedDb> {
        let ShardedDbBuilder { path, options, layout, resources, automatic } = self;
        let resources = resources.unwrap_or_else(|| Resources::of(runtime, &options));
        let options = resources.adapt(options);
        ShardedDb::open_inner(fs, resources, &path, options, layout, automatic)
    }
}
