//! What a user chooses when opening an ingest queue.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::options::Durability;

/// Choices for an [`IngestQueue`](crate::IngestQueue). Make one with `default()` and change fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct IngestOptions {
    /// When a pushed event counts as accepted. Default: the level that the database was opened with.
    pub durability: Option<Durability>,
    /// Events that are not applied take at most so many bytes of log; who pushes more waits, or gets
    /// `Busy`, until a little of it is applied. Default 1 GiB.
    pub bytes_max: u64,
    /// No more events are taken while the oldest one has waited longer than this for its effect, its
    /// age counted from the open if it was accepted before. Default 1 h.
    pub age_max: Duration,
    /// The handler gets at most so many events at a time. Default 1000.
    pub batch_count_max: usize,
    /// The handler gets at most so many bytes of events at a time, but always one event. Default
    /// 1 MiB.
    pub batch_bytes_max: usize,
    /// An event that the handler failed so often, by itself, goes to the dead letters. Default 5.
    pub tries_max: u32,
    /// The handler gets a failed event again after so long. Default 100 ms.
    pub retry_delay: Duration,
    /// The handler gets at most so many events a second; 0 for none until
    /// [`IngestQueue::set_drain_rate`](crate::IngestQueue::set_drain_rate). Default: any number.
    pub drain_rate: Option<u64>,
    /// Keyspace of the dead letters. Default: the queue's name and `.dead`.
    pub dead_letters: Option<String>,
}

impl Default for IngestOptions {
    fn default() -> IngestOptions {
        IngestOptions {
            durability: None,
            bytes_max: 1 << 30,
            age_max: Duration::from_secs(3600),
            batch_count_max: 1000,
            batch_bytes_max: 1 << 20,
            tries_max: 5,
            retry_delay: Duration::from_millis(100),
            drain_rate: None,
            dead_letters: None,
        }
    }
}

impl IngestOptions {
    /// # Errors
    /// `InvalidArgument` if a bound leaves no room for anything.
    pub(crate) fn check(&self) -> Result<()> {
        let least = [self.bytes_max, self.batch_count_max as u64, self.batch_bytes_max as u64];
        if least.contains(&0) || self.tries_max == 0 || self.age_max.is_zero() {
            return Err(Error::invalid("the bounds of an ingest queue are at least 1"));
        }
        Ok(())
    }
}

/// # Errors
/// `InvalidArgument` if `name`, which becomes that of a directory, is none that every file system
/// takes.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(Error::invalid(format!(
            "the name of a queue has 1 to 100 letters, digits, '-', '_' and '.', and begins with no \
             dot, unlike {name:?}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for name in ["a", "orders", "Orders-2.eu_west", &"x".repeat(100)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", ".a", "a/b", "a b", "ü", "a\0", &"x".repeat(101)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
