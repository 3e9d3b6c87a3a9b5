//! Looking at the files of a database.

use std::fmt;
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// What a verification found.
#[derive(Debug)]
pub struct VerifyReport {
    problems: Vec<Error>,
}

impl VerifyReport {
    /// True if nothing was found.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problems.iter().try_for_each(|problem| writeln!(f, "{problem}"))
    }
}

/// Writes a log or manifest as text.
///
/// # Errors
/// If it cannot be read.
pub fn dump(path: &Path, out: &mut dyn Write) -> Result<()> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let text = crate::dump::dump(&bytes, path)?;
    write!(out, "{text}").map_err(|e| Error::io("write", path, e))
}

/// Checks a database.
///
/// # Errors
/// If it cannot be read.
pub fn verify(dir: &Path, progress: &mut dyn FnMut(&str)) -> Result<VerifyReport> {
    progress("open");
    let opened = crate::Db::builder(dir).create(false).open();
    Ok(VerifyReport { problems: opened.err().into_iter().collect() })
}
