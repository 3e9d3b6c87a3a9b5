//! What every engine has to do, and the engines that do it, one file each.
//!
//! The trait is the common ground: each call is the one that the engine's documentation
//! recommends for it, with the freshest view (a read sees every write that was acknowledged
//! before it). Reads lend the value to a visitor, so that an engine that can hand it out in place
//! need not copy it, and one that cannot pays for its own copy.

#[cfg(feature = "canopydb")]
mod canopydb;
mod esker;
#[cfg(feature = "fjall")]
mod fjall;
#[cfg(feature = "heed")]
mod heed;
#[cfg(feature = "redb")]
mod redb;
#[cfg(feature = "rocksdb")]
mod rocksdb;
#[cfg(feature = "sled")]
mod sled;
#[cfg(feature = "surrealkv")]
mod surrealkv;

use std::path::Path;

use ::esker::ReadMode;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};
use crate::keys::Key;

/// The size at which a memtable, or what comes closest to one, is written out.
pub const WRITE_BUFFER_BYTES: usize = 64 << 20;
/// Threads for flush and compaction, where an engine lets that be chosen.
pub const BACKGROUND_THREADS: usize = 2;

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Durability {
    /// Handed to the kernel: survives a SIGKILL of the process.
    Process,
    /// Synced: survives a power loss.
    Disk,
}

/// How an engine is opened; everything else is fixed in its file.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Of every write.
    pub durability: Durability,
    /// Whether the database holds counters, for engines that say so when opening.
    pub counters: bool,
    /// The budget of memory: a write buffer and a cache.
    pub memory_bytes: usize,
}

impl Setup {
    /// What may be kept of the tables or pages that were read.
    pub fn cache_bytes(self) -> usize {
        self.memory_bytes - WRITE_BUFFER_BYTES
    }
}

/// Which way a scan goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Ascending, from the start key on.
    Forward,
    /// Descending, from the last key not above the start key on.
    Reverse,
}

/// A key and its new value; without one it is removed.
pub type Change<'a> = (Key, Option<&'a [u8]>);

/// Takes rows of a scan, keys and values; false ends it.
pub type Visitor<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> bool;

/// An open database. Threads share it.
pub trait Engine: Send + Sync {
    /// Sets the value of one key, acknowledged as the setup says.
    fn put(&self, key: &[u8], value: &[u8]) -> Result<()>;

    /// Sets the values of several keys, or removes those without one; all or none.
    fn batch(&self, changes: &[Change<'_>]) -> Result<()>;

    /// Removes one key.
    fn delete(&self, key: &[u8]) -> Result<()>;

    /// Adds one to an eight-byte little-endian counter; a missing one is zero.
    fn increment(&self, key: &[u8]) -> Result<()>;

    /// Shows the value of a key to the visitor; false if there is none.
    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool>;

    /// Shows the values of the keys that are there, all as of one moment where the engine can;
    /// how many there were.
    fn multi(&self, keys: &[Key], visit: &mut dyn FnMut(&[u8])) -> Result<usize>;

    /// Shows rows from `start` on until the visitor has enough. Forward from the empty key is
    /// from the first one.
    fn scan(&self, start: &[u8], order: Order, visit: Visitor<'_>) -> Result<()>;

    /// Shows the rows whose keys begin with `prefix`.
    fn prefix(&self, prefix: &[u8], visit: Visitor<'_>) -> Result<()>;

    /// Writes out what is in memory and waits until no background work is due.
    fn settle(&self) -> Result<()>;

    /// Makes all that was acknowledged survive a power loss.
    fn sync(&self) -> Result<()>;

    /// Bytes written to log and tables since the database was opened, if the engine counts them.
    fn written_bytes(&self) -> Option<u64> {
        None
    }

    /// Closes the database in good order.
    fn close(self: Box<Self>) -> Result<()>;
}

/// Which engines there are.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// This repository's engine, an LSM tree
    Esker,
    /// The same, reading its tables by pread through its block cache; only if it is named
    EskerPread,
    /// RocksDB through the crate rocksdb, an LSM tree
    Rocksdb,
    /// An LSM tree
    Fjall,
    /// An LSM tree
    Surrealkv,
    /// A B+tree with a write-ahead log
    Canopydb,
    /// LMDB through the crate heed, a copy-on-write B+tree
    #[value(alias = "lmdb")]
    Heed,
    /// The same, writing its map in place; only if it is named
    #[value(alias = "lmdb-writemap")]
    HeedWritemap,
    /// A copy-on-write B+tree
    Redb,
    /// A Bw-tree over a log
    Sled,
}

impl Kind {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Esker => "esker",
            Kind::EskerPread => "esker-pread",
            Kind::Rocksdb => "rocksdb",
            Kind::Fjall => "fjall",
            Kind::Surrealkv => "surrealkv",
            Kind::Canopydb => "canopydb",
            Kind::Heed => "heed",
            Kind::HeedWritemap => "heed-writemap",
            Kind::Redb => "redb",
            Kind::Sled => "sled",
        }
    }

    /// Whether it only runs if it is named: another way to use one that runs anyway.
    pub fn is_variant(self) -> bool {
        matches!(self, Kind::EskerPread | Kind::HeedWritemap)
    }

    /// Whether it is this repository's engine.
    pub fn is_ours(self) -> bool {
        matches!(self, Kind::Esker | Kind::EskerPread)
    }

    /// Whether this binary was built with it.
    pub fn is_built(self) -> bool {
        match self {
            Kind::Esker | Kind::EskerPread => true,
            Kind::Rocksdb => cfg!(feature = "rocksdb"),
            Kind::Fjall => cfg!(feature = "fjall"),
            Kind::Surrealkv => cfg!(feature = "surrealkv"),
            Kind::Canopydb => cfg!(feature = "canopydb"),
            Kind::Heed | Kind::HeedWritemap => cfg!(feature = "heed"),
            Kind::Redb => cfg!(feature = "redb"),
            Kind::Sled => cfg!(feature = "sled"),
        }
    }

    /// Opens or creates a database.
    pub fn open(self, dir: &Path, setup: Setup) -> Result<Box<dyn Engine>> {
        match self {
            Kind::Esker => esker::open(dir, setup, ReadMode::Mapped),
            Kind::EskerPread => esker::open(dir, setup, ReadMode::Pread),
            #[cfg(feature = "rocksdb")]
            Kind::Rocksdb => rocksdb::open(dir, setup),
            #[cfg(feature = "fjall")]
            Kind::Fjall => fjall::open(dir, setup),
            #[cfg(feature = "surrealkv")]
            Kind::Surrealkv => surrealkv::open(dir, setup),
            #[cfg(feature = "canopydb")]
            Kind::Canopydb => canopydb::open(dir, setup),
            #[cfg(feature = "heed")]
            Kind::Heed => heed::open(dir, setup, false),
            #[cfg(feature = "heed")]
            Kind::HeedWritemap => heed::open(dir, setup, true),
            #[cfg(feature = "redb")]
            Kind::Redb => redb::open(dir, setup),
            #[cfg(feature = "sled")]
            Kind::Sled => sled::open(dir, setup),
            #[cfg_attr(
                all(
                    feature = "rocksdb",
                    feature = "fjall",
                    feature = "surrealkv",
                    feature = "canopydb",
                    feature = "heed",
                    feature = "redb",
                    feature = "sled"
                ),
                expect(unreachable_patterns, reason = "all engines are built")
            )]
            kind => Err(Failure::new(format!("this binary was built without {}", kind.name()))),
        }
    }

    /// What is chosen when it is opened, in words: the same numbers as in its file.
    pub fn configuration(self) -> &'static str {
        match self {
            Kind::Esker => esker::CONFIGURATION,
            Kind::EskerPread => esker::CONFIGURATION_PREAD,
            #[cfg(feature = "rocksdb")]
            Kind::Rocksdb => rocksdb::CONFIGURATION,
            #[cfg(feature = "fjall")]
            Kind::Fjall => fjall::CONFIGURATION,
            #[cfg(feature = "surrealkv")]
            Kind::Surrealkv => surrealkv::CONFIGURATION,
            #[cfg(feature = "canopydb")]
            Kind::Canopydb => canopydb::CONFIGURATION,
            #[cfg(feature = "heed")]
            Kind::Heed => heed::CONFIGURATION,
            #[cfg(feature = "heed")]
            Kind::HeedWritemap => heed::CONFIGURATION_WRITEMAP,
            #[cfg(feature = "redb")]
            Kind::Redb => redb::CONFIGURATION,
            #[cfg(feature = "sled")]
            Kind::Sled => sled::CONFIGURATION,
            #[cfg_attr(
                all(
                    feature = "rocksdb",
                    feature = "fjall",
                    feature = "surrealkv",
                    feature = "canopydb",
                    feature = "heed",
                    feature = "redb",
                    feature = "sled"
                ),
                expect(unreachable_patterns, reason = "all engines are built")
            )]
            _ => "not built",
        }
    }
}

/// The counter in a value that `increment` wrote.
pub fn decode_counter(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_le_bytes)
}
