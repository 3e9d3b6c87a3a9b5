//! Opening a database over several shards.
//!
//! 1. Take the lock of the root directory, read the slot map.
//! 2. A database that is being created begins with a map that says that it is *forming*; only then
//!    are its shards made, and the next map says that they are. So a shard that is missing later,
//!    a disk that is not mounted, is never taken for one that is yet to be made.
//! 3. Open all shards, together: joint commits are whole or absent.
//! 4. Finish what a crash has left: keyspaces that the map does not know are dropped.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::db::Db;
use crate::db::joint::{self, ShardDir};
use crate::db::open::{DEFAULT_KEYSPACE, no_database, take_lock};
use crate::db::resources::Resources;
use crate::error::{Error, Result};
use crate::file::{
    CURRENT, FileId, LOCK, SHARD_MARK, SHARD_PREFIX, SHARDS, ShardNumber, TEMPORARY_ENDING,
};
use crate::fs::Fs;
use crate::options::Options;
use crate::shard::map::{SHARDS_MAX, SLOTS_MAX, SlotMap};
use crate::shard::map_file::{MapFile, NotStored, has_mark, put_mark};
use crate::shard::partition::Partition;
use crate::shard::root::{Parts, Root};
use crate::shard::slots::ShardIndex;
use crate::write::closing::Joints;

/// What a database is created with; of one that is there only the partition counts.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub shards: usize,
    pub slots: usize,
    pub partition: Option<Partition>,
    /// Of the first shards; the others lie in the root directory.
    pub directories: Vec<String>,
}

/// Opens or creates the database in the directory `dir`.
pub(crate) fn open(
    fs: Arc<dyn Fs>,
    resources: Resources,
    dir: &Path,
    options: Options,
    layout: Layout,
) -> Result<Root> {
    let has_map = look(&*fs, dir, options.create)?;
    fs.create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    let lock = take_lock(&*fs, dir)?;
    let file = MapFile::new(fs.clone(), dir);
    let mut map = match file.load()? {
        Some(map) => map,
        None if has_map || !options.create => return Err(no_database(dir)),
        None => {
            let map = new_map(&*fs, &layout)?;
            file.store(&map).map_err(NotStored::into_error)?;
            map
        }
    };
    let partition = Partition::resolve(layout.partition, &map.partition)?;
    for shard in 0..map.shard_count() as ShardIndex {
        check_mark(&*fs, dir, &map, shard)?;
    }
    let joints = Arc::<Joints>::default();
    let all = 0..map.shard_count() as ShardIndex;
    let dirs: Vec<_> = all.map(|shard| shard_dir(dir, &map, shard)).collect();
    let of_shards = Options { create: map.is_forming, ..options.clone() };
    let shards = joint::open_shards(&fs, &resources, &joints, &dirs, &of_shards)?;
    for (shard, db) in shards.iter().enumerate() {
        keep_keyspaces(db, &map, shard)?;
    }
    if map.is_forming {
        map.is_forming = false;
        map.version += 1;
        file.store(&map).map_err(NotStored::into_error)?;
    }
    let dir = dir.to_path_buf();
    Ok(Root::new(Parts { fs, resources, dir, options, partition, joints, shards, map, lock }))
}

/// Looks before anything is touched. True if there is a slot map.
fn look(fs: &dyn Fs, dir: &Path, create: bool) -> Result<bool> {
    let names = match fs.list(dir) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound && create => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(no_database(dir)),
        Err(error) => return Err(Error::io("list", dir, error)),
    };
    if names.iter().any(|name| name == SHARDS) {
        return Ok(true);
    }
    if names.iter().any(|name| name.starts_with(SHARD_PREFIX)) {
        // Never an empty database in place of one that has lost its map.
        return Err(Error::corruption(
            dir.join(SHARDS),
            0,
            "the slot map of the shards",
            "no file",
        ));
    }
    let ours =
        |name: &&String| *name == LOCK || name.ends_with(TEMPORARY_ENDING) || *name == "lost+found";
    match names.iter().find(|name| !ours(name)) {
        Some(foreign) => Err(Error::invalid(format!(
            "{} is not a database over several shards: it has a file {foreign:?}; choose an empty \
             directory",
            dir.display()
        ))),
        None if !create => Err(no_database(dir)),
        None => Ok(false),
    }
}

/// The directory of a shard for which none was chosen.
pub(crate) fn default_directory(shard: usize) -> String {
    format!("{SHARD_PREFIX}{shard:03}")
}

fn new_map(fs: &dyn Fs, layout: &Layout) -> Result<SlotMap> {
    if layout.shards == 0 || layout.shards > SHARDS_MAX {
        return Err(Error::invalid(format!("a database has 1 to {SHARDS_MAX} shards")));
    }
    if layout.slots < layout.shards || layout.slots > SLOTS_MAX {
        let what = format!("a database has at least one slot a shard, and at most {SLOTS_MAX}");
        return Err(Error::invalid(what));
    }
    let given = layout.directories.iter().take(layout.shards).cloned();
    let others = (layout.directories.len()..layout.shards).map(default_directory);
    let directories: Vec<String> = given.chain(others).collect();
    if directories.iter().collect::<BTreeSet<_>>().len() < directories.len() {
        return Err(Error::invalid("two shards cannot lie in one directory"));
    }
    let partition =
        layout.partition.as_ref().map_or(Partition::whole_key().name(), Partition::name);
    let id = FileId(fs.random_id());
    Ok(SlotMap::new(id, layout.slots, partition, directories, DEFAULT_KEYSPACE))
}

/// Sees that the directory of a shard is that, or makes it.
fn check_mark(fs: &dyn Fs, root: &Path, map: &SlotMap, shard: ShardIndex) -> Result<()> {
    let dir = map.directory(root, shard);
    if map.is_forming {
        return prepare(fs, &dir, map, shard);
    }
    if has_mark(fs, &dir, map.id, shard)? {
        return Ok(());
    }
    let expected = format!("the mark of shard {shard}");
    Err(Error::corruption(dir.join(SHARD_MARK), 0, expected, "no file"))
}

/// Makes the directory of a new shard.
///
/// # Errors
/// `InvalidArgument` if it is something else's.
pub(crate) fn prepare(fs: &dyn Fs, dir: &Path, map: &SlotMap, shard: ShardIndex) -> Result<()> {
    fs.create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    if has_mark(fs, dir, map.id, shard)? {
        return Ok(());
    }
    let names = fs.list(dir).map_err(|e| Error::io("list", dir, e))?;
    let foreign = |name: &&String| name.as_str() == CURRENT || !name.ends_with(TEMPORARY_ENDING);
    if let Some(name) = names.iter().find(|name| *name != "lost+found" && foreign(name)) {
        let what = format!("{} has a file {name:?}; a new shard wants an empty one", dir.display());
        return Err(Error::invalid(what));
    }
    put_mark(fs, dir, map.id, shard)
}

/// Where a shard lies.
pub(crate) fn shard_dir(root: &Path, map: &SlotMap, shard: ShardIndex) -> ShardDir {
    ShardDir { shard: ShardNumber(shard.into()), dir: map.directory(root, shard) }
}

/// Drops the keyspaces of a shard that the map does not know.
fn keep_keyspaces(db: &Db, map: &SlotMap, shard: usize) -> Result<()> {
    let names = db.keyspace_names();
    for name in names.iter().filter(|name| map.keyspaces.binary_search(name).is_err()) {
        db.drop_keyspace(name)?;
    }
    match map.keyspaces.iter().find(|name| !names.contains(name)) {
        None => Ok(()),
        Some(name) => {
            let expected = format!("keyspace {name:?} in shard {shard}");
            let path = db.engine().dir.join(CURRENT);
            Err(Error::corruption(path, 0, expected, "a shard without it"))
        }
    }
}
