//! CRC-32 bound to a place: every checksum hashes the file's id and the byte offset with the
//! data, so that a block that lands in the wrong file or at the wrong offset fails its check.
//!
//! ```text
//! checksum = crc32(id: 16 bytes LE, offset: 8 bytes LE, data)
//! ```

use std::fmt;

/// Random identity of a file; checksums are bound to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId(pub u128);

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Checksums for one file. Copy it freely: it holds the CRC state after the file's id.
#[derive(Clone, Copy, Debug)]
pub struct Checksum {
    state_after_id: u32,
}

/// Data up to this size are joined to their offset before they are hashed.
const SHORT_BYTES: usize = 32;

impl Checksum {
    /// Checksums bound to the file with this id.
    #[must_use]
    pub fn new(id: FileId) -> Checksum {
        Checksum { state_after_id: crc32fast::hash(&id.0.to_le_bytes()) }
    }

    /// The checksum of `data` at byte `offset` of the file.
    #[inline]
    #[must_use]
    pub fn of(self, offset: u64, data: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.state_after_id);
        // A record's header in one go, since a short update costs much the same as a shorter one.
        let mut joined = [0; 8 + SHORT_BYTES];
        joined[..8].copy_from_slice(&offset.to_le_bytes());
        if data.len() <= SHORT_BYTES {
            joined[8..8 + data.len()].copy_from_slice(data);
            hasher.update(&joined[..8 + data.len()]);
        } else {
            hasher.update(&joined[..8]);
            hasher.update(data);
        }
        hasher.finalize()
    }

    /// A checksum of data at byte `offset` that grows byte by byte, for a search for its end.
    #[must_use]
    pub fn growing(self, offset: u64) -> crc32fast::Hasher {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.state_after_id);
        hasher.update(&offset.to_le_bytes());
        hasher
    }

    /// The checksum of data that lies in several pieces, as if they were one.
    #[must_use]
    pub fn of_parts(self, offset: u64, parts: &[&[u8]]) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.state_after_id);
        hasher.update(&offset.to_le_bytes());
        for part in parts {
            hasher.update(part);
        }
        hasher.finalize()
    }
}

/// A plain checksum of `data`, for a payload whose place is bound by its header's checksum.
#[inline]
#[must_use]
pub fn unbound(data: &[u8]) -> u32 {
    crc32fast::hash(data)
}

/// The plain checksum of data of which that of everything before `data` is `before`.
#[inline]
#[must_use]
pub fn unbound_from(before: u32, data: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(before);
    hasher.update(data);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_offset_and_data_all_matter() {
        let a = Checksum::new(FileId(1));
        let b = Checksum::new(FileId(2));
        let base = a.of(64, b"data");
        assert_eq!(base, a.of(64, b"data"));
        assert_ne!(base, b.of(64, b"data"));
        assert_ne!(base, a.of(65, b"data"));
        assert_ne!(base, a.of(64, b"date"));
        assert_eq!(base, a.of_parts(64, &[b"d", b"", b"ata"]));
        let mut bytes = 1u128.to_le_bytes().to_vec();
        bytes.extend_from_slice(&64u64.to_le_bytes());
        bytes.extend_from_slice(b"data");
        assert_eq!(base, crc32fast::hash(&bytes), "as the module comment draws it");
        assert_eq!(base, unbound_from(unbound(&bytes[..20]), &bytes[20..]));
    }
}
