//! A value handed to the user: bytes that either lie in a table's mapping or a cached block, kept
//! alive by a reference count, or were copied out of a memtable.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

/// Immutable bytes, cheap to clone. Dereferences to `[u8]`.
///
/// A slice of a large value keeps the table it lies in mapped; `to_vec()` lets go of it.
#[derive(Clone, Default, Eq, PartialOrd, Ord, Hash)]
pub struct Slice(Bytes);

impl Slice {
    /// The bytes as a [`Bytes`], without copying.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl From<Bytes> for Slice {
    fn from(bytes: Bytes) -> Slice {
        Slice(bytes)
    }
}

impl From<Vec<u8>> for Slice {
    fn from(bytes: Vec<u8>) -> Slice {
        Slice(Bytes::from(bytes))
    }
}

impl From<&[u8]> for Slice {
    fn from(bytes: &[u8]) -> Slice {
        Slice(Bytes::copy_from_slice(bytes))
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Slice {
    fn eq(&self, other: &T) -> bool {
        self.0 == other.as_ref()
    }
}
