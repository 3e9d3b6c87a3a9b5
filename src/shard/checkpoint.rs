//! A checkpoint of all shards at one moment.

use std::path::Path;

use crate::db::checkpoint::{build, capture};
use crate::error::{Error, Result};
use crate::file::FileId;
use crate::shard::map_file::{MapFile, NotStored, put_mark};
use crate::shard::opening::default_directory;
use crate::shard::root::Root;
use crate::shard::slots::ShardIndex;

impl Root {
    /// See [`ShardedDb::checkpoint`](crate::ShardedDb::checkpoint).
    pub fn checkpoint(&self, target: &Path) -> Result<()> {
        build(&*self.fs, target, |dir| self.write_checkpoint(dir))
            .map_err(|error| error.context(format!("checkpoint {}", target.display())))
    }

    fn write_checkpoint(&self, dir: &Path) -> Result<()> {
        let fs = &*self.fs;
        let (mut map, captured) = {
            // Slots are handed over and keyspaces come and go under it, so that both are of one moment.
            let catalog = self.catalog();
            self.check_open()?;
            let shards = self.shards().take(catalog.map.shard_count());
            (catalog.map.clone(), capture(&self.joints, shards)?)
        };
        // A database of its own, whose shards are not to be taken for those of this one.
        map.id = FileId(fs.random_id());
        map.directories = (0..map.shard_count()).map(default_directory).collect();
        for (number, captured) in captured.iter().enumerate() {
            let shard = number as ShardIndex;
            let dir = map.directory(dir, shard);
            fs.create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
            put_mark(fs, &dir, map.id, shard)?;
            captured.write(&dir)?;
        }
        // Last: before there is a map, nothing there is a database.
        MapFile::new(self.fs.clone(), dir).store(&map).map_err(NotStored::into_error)
    }
}
