//! Why a run cannot go on, in words for a person.

use std::fmt;

/// See the module's comment.
#[derive(Debug)]
pub struct Failure(String);

/// What most functions here return.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// With these words.
    pub fn new(what: impl Into<String>) -> Failure {
        Failure(what.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Any error of an engine or of the system. `Failure` itself is no `Error`, as with `anyhow`, so
/// that this holds for all of them.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Failure(text)
    }
}
