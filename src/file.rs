//! The files of a database directory: their names, their ids, and the header they all begin with.
//!
//! ```text
//! CURRENT                 name of the live manifest, one line; replaced by rename
//! LOCK                    flock'ed by the process that has the database open
//! manifest-000004         log of edits to the version
//! 000007.log              write-ahead log
//! 000009.table            sorted table
//! *.tmp                   being written; removed at open
//! lost/                   files that a salvage or repair gave up; never read
//! SHARD                   whose shard this is, if it is one; see `shard::map_file`
//! queues/NAME/            an ingest queue: LOCK, and logs in a/ or b/
//!
//! header, 128 bytes, at offset 0 of every log, table and manifest
//!   offset  size  field
//!        0     8  magic: "eskerLOG", "eskerTBL" or "eskerMAN"
//!        8     4  compatible feature bits: unknown ones are ignored
//!       12     4  incompatible feature bits: unknown ones are refused
//!       16    16  file id, random, recorded in the manifest for tables
//!       32     8  file number
//!       40    84  fields of the kind, the rest zero
//!                   log: first LSN u64, boot id u128
//!      124     4  checksum of bytes 0..124, bound to (file id, offset 0)
//! ```
//!
//! File numbers are never reused within a database; ids differ even between clones.

use std::path::{Path, PathBuf};

use crate::checksum::Checksum;
pub(crate) use crate::checksum::FileId;
use crate::error::{Error, ErrorKind, Result};

/// Number of a file, unique within its database for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileNumber(pub u64);

/// Position in the write-ahead log in bytes, cumulative over log files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// Number of a shard among those of a database over several, for ever. On disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardNumber(pub u32);

/// What a file of the database is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// Write-ahead log.
    Log,
    /// Sorted table.
    Table,
    /// Log of edits.
    Manifest,
}

impl FileKind {
    /// The first 8 bytes of such a file. On disk: never change.
    #[must_use]
    pub fn magic(self) -> &'static [u8; 8] {
        match self {
            FileKind::Log => b"eskerLOG",
            FileKind::Table => b"eskerTBL",
            FileKind::Manifest => b"eskerMAN",
        }
    }

    /// The file's name within the database directory.
    #[must_use]
    pub fn name(self, number: FileNumber) -> String {
        match self {
            FileKind::Log => format!("{:06}.log", number.0),
            FileKind::Table => format!("{:06}.table", number.0),
            FileKind::Manifest => format!("manifest-{:06}", number.0),
        }
    }

    /// The file's path in `dir`.
    #[must_use]
    pub fn path(self, dir: &Path, number: FileNumber) -> PathBuf {
        dir.join(self.name(number))
    }
}

/// Name of the file that names the live manifest.
pub const CURRENT: &str = "CURRENT";
/// Name of the lock file.
pub const LOCK: &str = "LOCK";
/// Name of the file that marks the directory as a shard of a larger database.
pub const SHARD_MARK: &str = "SHARD";
/// Name of the file with the slot map of a database over several shards.
pub const SHARDS: &str = "SHARDS";
/// What names of directories of shards begin with that lie in the database's own.
pub const SHARD_PREFIX: &str = "shard-";
/// Name of the directory for what a salvage or repair gave up.
pub const LOST: &str = "lost";
/// Name of the directory for the logs of ingest queues.
pub const QUEUES: &str = "queues";
/// Ending of files that are being written and are removed at open.
pub const TEMPORARY_ENDING: &str = ".tmp";

/// What `name` is, if it is a log, table or manifest as [`FileKind::name`] writes them.
#[must_use]
pub fn parse_name(name: &str) -> Option<(FileKind, FileNumber)> {
    let (kind, digits) = if let Some(digits) = name.strip_suffix(".log") {
        (FileKind::Log, digits)
    } else if let Some(digits) = name.strip_suffix(".table") {
        (FileKind::Table, digits)
    } else {
        (FileKind::Manifest, name.strip_prefix("manifest-")?)
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number = FileNumber(digits.parse().ok()?);
    // "7.log" and "0000007.log" are nobody's: only the canonical spelling is ours.
    (kind.name(number) == name).then_some((kind, number))
}

/// Incompatible feature bits that this version knows. On disk: never renumber.
pub mod feature {
    /// The manifest is that of a shard: its edits may say so, and which log positions are void.
    pub const SHARD: u32 = 1;
}

/// Bytes of the header that every log, table and manifest begins with.
pub const HEADER_BYTES: usize = 128;
const KIND_FIELDS: std::ops::Range<usize> = 40..124;

/// The header of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// What the file is.
    pub kind: FileKind,
    /// Feature bits that a reader may ignore.
    pub compatible: u32,
    /// Feature bits that a reader must know.
    pub incompatible: u32,
    /// Random identity.
    pub id: FileId,
    /// The number in its name.
    pub number: FileNumber,
    /// Log only: LSN of the byte at offset [`HEADER_BYTES`]. Zero elsewhere.
    pub first_lsn: Lsn,
    /// Log only: the boot during which the file was created. Zero elsewhere.
    pub boot_id: u128,
}

impl FileHeader {
    /// A header of format version 1 without feature bits.
    #[must_use]
    pub fn new(kind: FileKind, id: FileId, number: FileNumber) -> FileHeader {
        let (first_lsn, boot_id) = (Lsn(0), 0);
        FileHeader { kind, compatible: 0, incompatible: 0, id, number, first_lsn, boot_id }
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..8].copy_from_slice(self.kind.magic());
        out[8..12].copy_from_slice(&self.compatible.to_le_bytes());
        out[12..16].copy_from_slice(&self.incompatible.to_le_bytes());
        out[16..32].copy_from_slice(&self.id.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.number.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.first_lsn.0.to_le_bytes());
        out[48..64].copy_from_slice(&self.boot_id.to_le_bytes());
        let checksum = Checksum::new(self.id).of(0, &out[..KIND_FIELDS.end]);
        out[KIND_FIELDS.end..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Reads the header of `path` (for the error text) that should be of this kind.
    ///
    /// # Errors
    /// `Corruption` if the magic, the checksum or the length is wrong, `Unsupported` if it
    /// carries an incompatible feature bit that this version does not know.
    pub fn decode(bytes: &[u8], kind: FileKind, path: &Path) -> Result<FileHeader> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            let found = format!("{} bytes", bytes.len());
            return Err(Error::corruption(path, 0, "a header of 128 bytes", found));
        };
        if &bytes[..8] != kind.magic() {
            let expected = format!("magic {:?}", kind.magic().escape_ascii().to_string());
            let found = format!("{:?}", bytes[..8].escape_ascii().to_string());
            return Err(Error::corruption(path, 0, expected, found));
        }
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8"));
        let u128_at = |at: usize| u128::from_le_bytes(bytes[at..at + 16].try_into().expect("16"));
        let header = FileHeader {
            kind,
            compatible: u32_at(8),
            incompatible: u32_at(12),
            id: FileId(u128_at(16)),
            number: FileNumber(u64_at(32)),
            first_lsn: Lsn(u64_at(40)),
            boot_id: u128_at(48),
        };
        let expected = Checksum::new(header.id).of(0, &bytes[..KIND_FIELDS.end]);
        let found = u32_at(KIND_FIELDS.end);
        if expected != found {
            let (expected, found) =
                (format!("header checksum {expected:08x}"), format!("{found:08x}"));
            return Err(Error::corruption(path, KIND_FIELDS.end as u64, expected, found));
        }
        if header.incompatible & !feature::SHARD != 0 {
            let what = format!("{}: feature bits {:#x}", path.display(), header.incompatible);
            return Err(Error::new(ErrorKind::Unsupported).context(what));
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> FileHeader {
        let mut header = FileHeader::new(FileKind::Log, FileId(0xabcd), FileNumber(7));
        header.first_lsn = Lsn(99);
        header.boot_id = 42;
        header
    }

    #[test]
    fn header_round_trips_and_every_flipped_bit_is_seen() {
        let bytes = header().encode();
        let path = Path::new("000007.log");
        assert_eq!(FileHeader::decode(&bytes, FileKind::Log, path).unwrap(), header());
        for bit in 0..HEADER_BYTES * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = FileHeader::decode(&bytes, FileKind::Log, path).unwrap_err();
            assert!(error.is_corruption(), "bit {bit}: {error}");
        }
        for len in 0..HEADER_BYTES {
            assert!(FileHeader::decode(&bytes[..len], FileKind::Log, path).is_err());
        }
        assert!(FileHeader::decode(&bytes, FileKind::Table, path).is_err());
    }

    #[test]
    fn an_unknown_incompatible_bit_is_unsupported() {
        let bytes = FileHeader { incompatible: 1 << 31, ..header() }.encode();
        let error = FileHeader::decode(&bytes, FileKind::Log, Path::new("x")).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Unsupported);
    }

    #[test]
    fn only_canonical_names_are_ours() {
        for kind in [FileKind::Log, FileKind::Table, FileKind::Manifest] {
            for number in [1, 999_999, 1_000_000] {
                let number = FileNumber(number);
                assert_eq!(parse_name(&kind.name(number)), Some((kind, number)));
            }
        }
        for name in ["7.log", "0000007.log", ".log", "manifest-", "000007.sst", "+00007.log"] {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }
}
