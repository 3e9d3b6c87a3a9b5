//! What all handles of a database over several shards share: the shards, where keys go, and the
//! slot map on the disk.
//!
//! Lock order, outermost first: the steps of a move (`shard::mover`) · catalog · those of the
//! engines.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::db::Db;
use crate::db::joint::resume_shards;
use crate::db::keyspace::{Keyspace, KeyspaceOptions, check_name};
use crate::db::open::DEFAULT_KEYSPACE;
use crate::db::resources::Resources;
use crate::error::{DegradedCause, Error, Result};
use crate::fs::{Fs, Lock};
use crate::options::Options;
use crate::runtime::{Mutex, MutexGuard, Runtime};
use crate::shard::load::Load;
use crate::shard::map::{SHARDS_MAX, SlotMap};
use crate::shard::map_file::{MapFile, NotStored};
use crate::shard::mover::Mover;
use crate::shard::partition::Partition;
use crate::shard::routing::{Gate, Pass, Routes, SpaceId};
use crate::shard::slots::{ShardIndex, Slot};
use crate::write::closing::Joints;
use crate::write::commit::closed_error;
use crate::write::pressure::Patience;

/// See the module's comment.
pub(crate) struct Root {
    pub fs: Arc<dyn Fs>,
    pub runtime: Runtime,
    /// What the shards share.
    pub resources: Resources,
    pub dir: PathBuf,
    pub options: Options,
    pub partition: Partition,
    pub joints: Arc<Joints>,
    /// By number. Filled before the routing names a shard, and never changed.
    shards: Box<[OnceLock<Db>]>,
    pub routing: Routes,
    pub gate: Gate,
    /// What is asked of the slots.
    pub load: Load,
    pub mover: Mover,
    /// The keyspaces that are not dropped, by name. Replaced under the catalog lock.
    spaces: ArcSwap<Vec<Arc<Space>>>,
    next_space: AtomicU32,
    catalog: Mutex<Catalog>,
    /// Held until the database is closed.
    pub lock: Mutex<Option<Box<dyn Lock>>>,
}

/// The slot map in use. The routing follows it, after it is durable.
pub(crate) struct Catalog {
    pub map: SlotMap,
    file: MapFile,
}

/// A keyspace over all shards.
pub(crate) struct Space {
    pub id: SpaceId,
    pub name: String,
    /// By number of the shard, as in [`Root`].
    shards: Box<[OnceLock<Keyspace>]>,
}

impl Space {
    fn new(id: SpaceId, name: &str) -> Space {
        let shards = (0..SHARDS_MAX).map(|_| OnceLock::new()).collect();
        Space { id, name: name.to_string(), shards }
    }

    /// The keyspace in this shard. A shard that was added after the keyspace was dropped does not
    /// have it; then it is that of the first one, which says `Closed`.
    #[inline]
    pub fn at(&self, shard: ShardIndex) -> &Keyspace {
        let there = self.shards[usize::from(shard)].get().or_else(|| self.shards[0].get());
        there.expect("the first shard has every keyspace")
    }

    /// The shards that have it.
    pub fn shards(&self) -> impl Iterator<Item = &Keyspace> {
        self.shards.iter().map_while(OnceLock::get)
    }

    pub fn add(&self, shard: ShardIndex, keyspace: Keyspace) {
        let added = self.shards[usize::from(shard)].set(keyspace);
        assert!(added.is_ok(), "a shard is added once");
    }
}

/// What [`Root::new`] is made of.
pub(crate) struct Parts {
    pub fs: Arc<dyn Fs>,
    pub resources: Resources,
    pub dir: PathBuf,
    pub options: Options,
    pub partition: Partition,
    pub joints: Arc<Joints>,
    pub shards: Vec<Db>,
    pub map: SlotMap,
    pub lock: Box<dyn Lock>,
}

impl Root {
    pub fn new(parts: Parts) -> Root {
        let map = Arc::new(parts.map.clone());
        let runtime = parts.resources.shared().runtime.clone();
        let shards: Box<[OnceLock<Db>]> = (0..SHARDS_MAX).map(|_| OnceLock::new()).collect();
        let root = Root {
            catalog: Mutex::new(Catalog {
                map: parts.map,
                file: MapFile::new(parts.fs.clone(), &parts.dir),
            }),
            fs: parts.fs,
            runtime: runtime.clone(),
            resources: parts.resources,
            dir: parts.dir,
            options: parts.options,
            partition: parts.partition,
            joints: parts.joints,
            shards,
            routing: Routes::new(map.clone()),
            load: Load::new(map.slot_count(), runtime.now()),
            gate: Gate::new(Pass::plain(map)),
            mover: Mover::default(),
            spaces: ArcSwap::default(),
            next_space: AtomicU32::new(0),
            lock: Mutex::new(Some(parts.lock)),
        };
        for (number, db) in parts.shards.into_iter().enumerate() {
            root.add_shard(number as ShardIndex, db);
        }
        let mut catalog = root.catalog.lock();
        for name in catalog.map.keyspaces.clone() {
            let space = root.new_space(&name);
            for (number, shard) in root.shards().enumerate() {
                let keyspace = shard.existing_keyspace(&name).expect("opening saw to it");
                space.add(number as ShardIndex, keyspace);
            }
            root.add_space(&mut catalog, space);
        }
        drop(catalog);
        root
    }

    // Shards.

    #[inline]
    pub fn shard(&self, shard: ShardIndex) -> &Db {
        self.shards[usize::from(shard)].get().expect("a shard that the routing names is open")
    }

    /// All shards that are open, by number.
    pub fn shards(&self) -> impl Iterator<Item = &Db> + Clone {
        self.shards.iter().map_while(OnceLock::get)
    }

    pub fn add_shard(&self, shard: ShardIndex, db: Db) {
        let added = self.shards[usize::from(shard)].set(db);
        assert!(added.is_ok(), "a shard is opened once");
    }

    /// The slot of a key.
    ///
    /// # Errors
    /// `InvalidArgument` if the user's partition panics.
    #[inline]
    pub fn slot(&self, map: &SlotMap, key: &[u8]) -> Result<Slot> {
        self.partition.slot(key, map.slot_count())
    }

    /// When a write of this patience gives up.
    pub fn deadline(&self, wait: Duration) -> Patience {
        Patience::Until(self.runtime.now() + wait)
    }

    // The map.

    pub fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock()
    }

    /// Replaces the slot map on the disk, where it may be given up.
    ///
    /// # Errors
    /// From the file system: the map is as it was then, or the database refuses writes until
    /// [`Root::mend`], since another map may be there after a crash.
    pub fn store(&self, catalog: &mut Catalog, mut map: SlotMap) -> Result<()> {
        map.version = catalog.map.version + 1;
        match catalog.file.store(&map) {
            Ok(()) => {
                catalog.map = map;
                Ok(())
            }
            Err(NotStored::Unchanged(error)) => Err(error),
            Err(NotStored::Unknown(error)) => {
                // A later version with what was there before puts an end to the doubt.
                let again = SlotMap { version: map.version + 1, ..catalog.map.clone() };
                match catalog.file.store(&again) {
                    Ok(()) => catalog.map = again,
                    Err(_) => self.refuse(catalog, &error),
                }
                Err(error)
            }
        }
    }

    /// Takes no more writes.
    fn refuse(&self, catalog: &Catalog, error: &Error) {
        let refused = Error::degraded(DegradedCause::Manifest)
            .context(format!("after: {error}; the slot map"));
        let pass = Pass { refused: Some(refused), ..Pass::plain(Arc::new(catalog.map.clone())) };
        self.gate.replace(pass, &self.runtime);
    }

    /// Takes writes again after the slot map could not be written, if it can be now. Does nothing
    /// otherwise.
    ///
    /// # Errors
    /// If it cannot.
    pub fn mend(&self) -> Result<()> {
        let mut catalog = self.catalog.lock();
        if self.gate.pass().refused.is_none() {
            return Ok(());
        }
        let again = SlotMap { version: catalog.map.version + 2, ..catalog.map.clone() };
        catalog.file.store(&again).map_err(NotStored::into_error)?;
        catalog.map = again;
        let map = Arc::new(catalog.map.clone());
        self.routing.replace(map.clone());
        self.gate.replace(Pass::plain(map), &self.runtime);
        Ok(())
    }

    // Keyspaces.

    /// The keyspace of this name.
    pub fn space(&self, name: &str) -> Option<Arc<Space>> {
        self.spaces.load().iter().find(|space| space.name == name).cloned()
    }

    pub fn spaces(&self) -> Arc<Vec<Arc<Space>>> {
        self.spaces.load_full()
    }

    pub fn default_space(&self) -> Arc<Space> {
        self.space(DEFAULT_KEYSPACE).expect("every database has it")
    }

    fn new_space(&self, name: &str) -> Space {
        Space::new(self.next_space.fetch_add(1, Ordering::Relaxed), name)
    }

    fn add_space(&self, _catalog: &mut Catalog, space: Space) -> Arc<Space> {
        let space = Arc::new(space);
        let mut spaces = self.spaces.load_full().to_vec();
        spaces.push(space.clone());
        spaces.sort_by(|a, b| a.name.cmp(&b.name));
        self.spaces.store(Arc::new(spaces));
        space
    }

    /// Opens or creates a keyspace: in all shards first, then in the map. What a crash in between
    /// has left in some shards is dropped at the next open.
    pub fn open_keyspace(&self, name: &str, options: KeyspaceOptions) -> Result<Arc<Space>> {
        check_name(name)?;
        let mut catalog = self.catalog.lock();
        self.check_open()?;
        if let Some(space) = self.space(name) {
            for shard in self.shards() {
                shard.keyspace(name, options.clone())?;
            }
            return Ok(space);
        }
        if let Some(refused) = &self.gate.pass().refused {
            return Err(refused.duplicate());
        }
        let space = self.new_space(name);
        for (number, shard) in self.shards().enumerate() {
            // One that an attempt before this has left may have another operator.
            let known = shard.existing_keyspace(name);
            if known.is_some_and(|known| known.operator_name() != options.operator_name()) {
                shard.drop_keyspace(name)?;
            }
            space.add(number as ShardIndex, shard.keyspace(name, options.clone())?);
        }
        let mut map = catalog.map.clone();
        map.keyspaces.push(name.to_string());
        map.keyspaces.sort();
        self.store(&mut catalog, map)?;
        Ok(self.add_space(&mut catalog, space))
    }

    /// Drops a keyspace: from the map first, then from all shards. What a crash in between has left
    /// is dropped at the next open.
    pub fn drop_keyspace(&self, name: &str) -> Result<()> {
        if name == DEFAULT_KEYSPACE {
            return Err(Error::invalid("the keyspace \"default\" cannot be dropped"));
        }
        check_name(name)?;
        let mut catalog = self.catalog.lock();
        self.check_open()?;
        if self.space(name).is_none() {
            return Err(Error::invalid(format!("there is no keyspace {name:?}")));
        }
        for shard in self.shards() {
            shard.engine().pipeline.breaker.check()?;
            // What was acknowledged before must not be lost if the keyspace is still there after a
            // crash, nor survive in one shard only.
            shard.sync()?;
        }
        let mut map = catalog.map.clone();
        map.keyspaces.retain(|other| other != name);
        self.store(&mut catalog, map)?;
        let spaces = self.spaces.load_full();
        let rest: Vec<_> = spaces.iter().filter(|space| space.name != name).cloned().collect();
        self.spaces.store(Arc::new(rest));
        // In every shard, whatever becomes of one: at the next open it is gone anyway.
        let mut first = Ok(());
        for shard in self.shards() {
            first = first.and(shard.drop_keyspace(name));
        }
        first
    }

    /// # Errors
    /// `Closed` once the database is.
    pub fn check_open(&self) -> Result<()> {
        if self.lock.lock().is_some() { Ok(()) } else { Err(closed_error()) }
    }

    // What is done to every shard.

    /// Calls `f` with every shard, one after the other.
    ///
    /// # Errors
    /// The first one, by number of the shard; `f` was called for all of them.
    pub fn for_all(&self, f: impl Fn(&Db) -> Result<()>) -> Result<()> {
        self.shards().map(f).fold(Ok(()), Result::and)
    }

    /// Takes writes again in every shard that refuses them.
    pub fn resume(&self) -> Result<()> {
        resume_shards(self.shards())?;
        self.mend()
    }
}
