//! Which part of a key decides its slot.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::key;
use crate::shard::map::PartitionName;
use crate::shard::slots::Slot;

/// The part of a key that decides its shard: keys with equal parts lie in one shard always.
///
/// It is chosen when the database is created and persisted; another one is refused later.
#[derive(Clone)]
pub struct Partition(Kind);

#[derive(Clone)]
enum Kind {
    WholeKey,
    Before(u8),
    By(Arc<str>, Arc<PartitionFn>),
}

type PartitionFn = dyn for<'k> Fn(&'k [u8]) -> &'k [u8] + Send + Sync;

impl Partition {
    /// The whole key: the most even, and what a database has that says nothing else.
    #[must_use]
    pub fn whole_key() -> Partition {
        Partition(Kind::WholeKey)
    }

    /// What comes before the first `separator`, or the whole key where there is none. The keys of
    /// one tenant, `tenant:…`, then lie in one shard: a batch of them is committed by one shard
    /// alone, and scans within the tenant ask only that one.
    #[must_use]
    pub fn before(separator: u8) -> Partition {
        Partition(Kind::Before(separator))
    }

    /// What `function` takes out of the key: a pure function, the same for ever. Its name is
    /// persisted and checked at open. A panic in it is an error of the verb that called it.
    #[must_use]
    pub fn by(
        name: impl Into<String>,
        function: impl for<'k> Fn(&'k [u8]) -> &'k [u8] + Send + Sync + 'static,
    ) -> Partition {
        Partition(Kind::By(name.into().into(), Arc::new(function)))
    }

    pub(crate) fn name(&self) -> PartitionName {
        match &self.0 {
            Kind::WholeKey => PartitionName::WholeKey,
            Kind::Before(separator) => PartitionName::Before(*separator),
            Kind::By(name, _) => PartitionName::Named(name.to_string()),
        }
    }

    /// The one that a database was created with, given what its owner says now.
    ///
    /// # Errors
    /// `InvalidArgument` if that is another one, or a function that is not given.
    pub(crate) fn resolve(
        given: Option<Partition>,
        persisted: &PartitionName,
    ) -> Result<Partition> {
        match (given, persisted) {
            (Some(given), persisted) if given.name() == *persisted => Ok(given),
            (Some(given), persisted) => Err(Error::invalid(format!(
                "the database partitions its keys by {persisted:?}, not by {:?}",
                given.name()
            ))),
            (None, PartitionName::WholeKey) => Ok(Partition::whole_key()),
            (None, PartitionName::Before(separator)) => Ok(Partition::before(*separator)),
            (None, PartitionName::Named(name)) => Err(Error::invalid(format!(
                "the database partitions its keys by the function {name:?}: give it with \
                 ShardedDbBuilder::partition"
            ))),
        }
    }

    /// The part of `key` that decides.
    ///
    /// # Errors
    /// `InvalidArgument` if the user's function panics.
    #[inline]
    fn of<'k>(&self, key: &'k [u8]) -> Result<&'k [u8]> {
        match &self.0 {
            Kind::WholeKey => Ok(key),
            Kind::Before(separator) => Ok(before(*separator, key).unwrap_or(key)),
            Kind::By(name, function) => catch_unwind(AssertUnwindSafe(|| function(key)))
                .map_err(|_| Error::invalid(format!("the partition {name:?} panicked"))),
        }
    }

    /// The slot of a key, of so many.
    ///
    /// # Errors
    /// `InvalidArgument` if the user's function panics.
    #[inline]
    pub(crate) fn slot(&self, key: &[u8], slot_count: usize) -> Result<Slot> {
        Ok((key::hash(self.of(key)?) % slot_count as u64) as Slot)
    }

    /// What parts the deciding part of a key from the rest, if one byte does.
    pub(crate) fn separator(&self) -> Option<u8> {
        match self.0 {
            Kind::Before(separator) => Some(separator),
            Kind::WholeKey | Kind::By(..) => None,
        }
    }

    /// The slot of all keys that begin with `prefix`, if that is known to be one.
    pub(crate) fn slot_of_prefix(&self, prefix: &[u8], slot_count: usize) -> Option<Slot> {
        let Kind::Before(separator) = &self.0 else { return None };
        let part = before(*separator, prefix)?;
        Some((key::hash(part) % slot_count as u64) as Slot)
    }
}

/// What comes before the first `separator`, if there is one.
#[inline]
fn before(separator: u8, key: &[u8]) -> Option<&[u8]> {
    let at = key.iter().position(|byte| *byte == separator)?;
    Some(&key[..at])
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_one_tenant_have_one_slot() {
        let partition = Partition::before(b':');
        let slot = |key: &str| partition.slot(key.as_bytes(), 1024).unwrap();
        assert_eq!(slot("acme:1"), slot("acme:2:x"));
        assert_eq!(slot("acme:1"), slot("acme"));
        assert_eq!(partition.slot_of_prefix(b"acme:", 1024), Some(slot("acme:1")));
        assert_eq!(partition.slot_of_prefix(b"acme", 1024), None, "acme2: begins so too");
        let whole = Partition::whole_key();
        assert_eq!(whole.slot_of_prefix(b"acme:", 1024), None);
        assert_ne!(whole.slot(b"acme:1", 1024).unwrap(), whole.slot(b"acme:2", 1024).unwrap());
    }

    #[test]
    fn a_panic_of_the_users_function_is_an_error() {
        let partition = Partition::by("third byte", |key| &key[2..3]);
        assert!(partition.slot(b"abc", 8).is_ok());
        assert!(partition.slot(b"ab", 8).is_err());
    }

    #[test]
    fn another_partition_is_refused() {
        let persisted = PartitionName::Named("mine".to_string());
        assert!(Partition::resolve(None, &persisted).is_err());
        assert!(Partition::resolve(Some(Partition::by("mine", |key| key)), &persisted).is_ok());
        assert!(Partition::resolve(Some(Partition::by("other", |key| key)), &persisted).is_err());
        let persisted = PartitionName::Before(b'/');
        assert!(Partition::resolve(None, &persisted).is_ok());
        assert!(Partition::resolve(Some(Partition::before(b':')), &persisted).is_err());
        assert!(Partition::resolve(Some(Partition::whole_key()), &persisted).is_err());
    }
}
