//! The slot map on the disk: replaced as a whole, and the marks by which shards say whose they are.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checksum::{Checksum, FileId};
use crate::error::{Error, Result};
use crate::file::{SHARD_MARK, SHARDS, TEMPORARY_ENDING};
use crate::fs::{self, Fs};
use crate::shard::map::SlotMap;
use crate::shard::slots::ShardIndex;

/// The file `SHARDS` of a root directory.
pub(crate) struct MapFile {
    fs: Arc<dyn Fs>,
    root: PathBuf,
}

/// Why a map could not be replaced.
pub(crate) enum NotStored {
    /// The one before is still there.
    Unchanged(Error),
    /// Either one is there after a crash.
    Unknown(Error),
}

impl NotStored {
    pub fn into_error(self) -> Error {
        let (NotStored::Unchanged(error) | NotStored::Unknown(error)) = self;
        error
    }
}

impl MapFile {
    pub fn new(fs: Arc<dyn Fs>, root: &Path) -> MapFile {
        MapFile { fs, root: root.to_path_buf() }
    }

    fn path(&self) -> PathBuf {
        self.root.join(SHARDS)
    }

    /// The map that is there; `None` if there is none.
    ///
    /// # Errors
    /// `Corruption` if it is not as it was written; `Unsupported`; from the file system.
    pub fn load(&self) -> Result<Option<SlotMap>> {
        let path = self.path();
        let file = match self.fs.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        let bytes = file.map().map_err(|e| Error::io("map", &path, e))?;
        SlotMap::decode(&bytes, &path).map(Some)
    }

    /// Replaces the map, durably.
    pub fn store(&self, map: &SlotMap) -> std::result::Result<(), NotStored> {
        let (path, bytes) = (self.path(), map.encode());
        let temporary = self.root.join(format!("{SHARDS}{TEMPORARY_ENDING}"));
        self.write(&temporary, &bytes).map_err(NotStored::Unchanged)?;
        {
            let _site = fs::site("shards.rename");
            let renamed = self.fs.rename(&temporary, &path);
            renamed.map_err(|e| NotStored::Unknown(Error::io("rename", &temporary, e)))?;
        }
        // Else a crash can bring the map before back, under which the keys were elsewhere.
        let _site = fs::site("shards.sync_dir");
        let synced = self.fs.sync_dir(&self.root);
        synced.map_err(|e| NotStored::Unknown(Error::io("sync", &self.root, e)))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let file = fs::create_anew(&*self.fs, path).map_err(|e| Error::io("create", path, e))?;
        file.write_at(0, bytes).map_err(|e| Error::io("write", path, e))?;
        // Else the map can be empty after the rename.
        let _site = fs::site("shards.sync");
        file.sync().map_err(|e| Error::io("sync", path, e))
    }
}

const MARK_MAGIC: &[u8; 8] = b"eskerSHD";

/// The mark in a shard's directory, by which directories are told apart that were mixed up:
///
/// ```text
///   offset  size  field
///        0     8  magic "eskerSHD"
///        8    16  id of the database
///       24     4  number of the shard
///       28     4  checksum of all before, bound to (id, offset 0)
/// ```
fn mark(id: FileId, shard: ShardIndex) -> Vec<u8> {
    let mut out = MARK_MAGIC.to_vec();
    out.extend_from_slice(&id.0.to_le_bytes());
    out.extend_from_slice(&u32::from(shard).to_le_bytes());
    out.extend_from_slice(&Checksum::new(id).of(0, &out).to_le_bytes());
    out
}

/// Whether the directory of a shard has its mark: `false` if it has none at all.
///
/// # Errors
/// `Corruption` if it has another one.
pub(crate) fn has_mark(fs: &dyn Fs, dir: &Path, id: FileId, shard: ShardIndex) -> Result<bool> {
    let path = dir.join(SHARD_MARK);
    let file = match fs.open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("open", &path, error)),
    };
    let bytes = file.map().map_err(|e| Error::io("map", &path, e))?;
    if bytes[..] == mark(id, shard) {
        return Ok(true);
    }
    let expected = format!("the mark of shard {shard} of database {id:?}");
    let found = match bytes.get(8..28) {
        Some(fields) if bytes.len() == 32 && bytes[..8] == *MARK_MAGIC => {
            let id = u128::from_le_bytes(fields[..16].try_into().expect("sixteen"));
            let number = u32::from_le_bytes(fields[16..].try_into().expect("four"));
            format!("that of shard {number} of database {:?}", FileId(id))
        }
        _ => format!("{} other bytes", bytes.len()),
    };
    Err(Error::corruption(path, 0, expected, found))
}

/// Puts its mark into the directory of a shard, durably.
pub(crate) fn put_mark(fs: &dyn Fs, dir: &Path, id: FileId, shard: ShardIndex) -> Result<()> {
    let path = dir.join(SHARD_MARK);
    let temporary = dir.join(format!("{SHARD_MARK}{TEMPORARY_ENDING}"));
    let file = fs::create_anew(fs, &temporary).map_err(|e| Error::io("create", &temporary, e))?;
    file.write_at(0, &mark(id, shard)).map_err(|e| Error::io("write", &temporary, e))?;
    {
        let _site = fs::site("shard.mark.sync");
        file.sync().map_err(|e| Error::io("sync", &temporary, e))?;
    }
    {
        let _site = fs::site("shard.mark.rename");
        fs.rename(&temporary, &path).map_err(|e| Error::io("rename", &temporary, e))?;
    }
    let _site = fs::site("shard.mark.sync_dir");
    fs.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::fs::sim::SimFs;
    use crate::shard::map::PartitionName;

    fn map(version: u64) -> SlotMap {
        let directories = vec!["a".to_string(), "b".to_string()];
        let mut map = SlotMap::new(FileId(9), 64, PartitionName::WholeKey, directories, "default");
        map.version = version;
        map
    }

    #[test]
    fn a_map_is_replaced_as_a_whole_at_every_crash() {
        let disk = SimFs::new();
        let file = MapFile::new(Arc::new(disk.clone()), Path::new("/"));
        assert!(file.load().unwrap().is_none());
        let images = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let sink = images.clone();
        let stored = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let promised = stored.clone();
        disk.on_call(Arc::new(move |disk, _, _| {
            let promised = promised.load(std::sync::atomic::Ordering::SeqCst);
            sink.lock().push((promised, disk.snapshot()));
        }));
        for version in 1..=3 {
            assert!(file.store(&map(version)).is_ok());
            stored.store(version, std::sync::atomic::Ordering::SeqCst);
            assert_eq!(file.load().unwrap(), Some(map(version)));
        }
        let mut count = 0;
        for (promised, image) in &*images.lock() {
            for survival in image.survivals(10, 20, 1) {
                let after = MapFile::new(Arc::new(image.crash(&survival)), Path::new("/"));
                let found = after.load().unwrap().map_or(0, |map| map.version);
                assert!((*promised..=promised + 1).contains(&found), "{found}, not {promised}");
                // A crash may have left a temporary file.
                assert!(after.store(&map(9)).is_ok());
                count += 1;
            }
        }
        assert!(count > 100, "{count}");
    }

    #[test]
    fn marks_tell_directories_apart() {
        let disk = SimFs::new();
        let dir = Path::new("/");
        assert!(!has_mark(&disk, dir, FileId(7), 1).unwrap());
        put_mark(&disk, dir, FileId(7), 1).unwrap();
        assert!(has_mark(&disk, dir, FileId(7), 1).unwrap());
        for (id, shard) in [(8, 1), (7, 2)] {
            let error = has_mark(&disk, dir, FileId(id), shard).unwrap_err();
            let found = "that of shard 1 of database 00000000000000000000000000000007";
            let ErrorKind::Corruption { found: text, .. } = error.kind() else { panic!("{error}") };
            assert_eq!(text, found);
        }
    }
}
