//! Looking into a database from outside, without opening it; and repairing one.
//!
//! - `dump`: any file of a database as text.
//! - `verify`: checks everything that can be checked, and reports; changes nothing.
//! - `repair`: makes a damaged database one that opens. `plan`: how.

mod dump;
mod plan;
mod repair;
#[cfg(test)]
mod tests;
mod verify;

pub use crate::tools::dump::dump;
pub use crate::tools::repair::{RepairMode, RepairReport, repair};
pub use crate::tools::verify::{Finding, VerifyReport, verify};
#[cfg(any(test, feature = "testing"))]
pub use crate::tools::{dump::dump_on, repair::repair_on, verify::verify_on};

use std::io;

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::file::{HEADER_BYTES, LOCK};
use crate::fs::{self, File, Fs, Lock};

/// The whole of a file.
fn read(fs: &Arc<dyn Fs>, path: &Path) -> Result<Vec<u8>> {
    let file = fs.open(path).map_err(|e| Error::io("open", path, e))?;
    let len = file.len().map_err(|e| Error::io("measure", path, e))?;
    read_start(&*file, path, len)
}

fn read_start(file: &dyn File, path: &Path, len: u64) -> Result<Vec<u8>> {
    fs::read_first(file, len).map_err(|e| Error::io("read", path, e))
}

/// The bytes of a file where its header should be, fewer if it is shorter.
fn read_header(fs: &Arc<dyn Fs>, path: &Path) -> Result<Vec<u8>> {
    let file = fs.open(path).map_err(|e| Error::io("open", path, e))?;
    let len = file.len().map_err(|e| Error::io("measure", path, e))?;
    read_start(&*file, path, len.min(HEADER_BYTES as u64))
}

#[cold]
fn no_database(dir: &Path) -> Error {
    Error::invalid(format!("there is no database in {}; check the path", dir.display()))
}

/// The database's lock. `None` if that needs no taking, where it is not to be created: whoever opens
/// a database creates the file first.
fn take_lock(
    fs: &Arc<dyn Fs>,
    dir: &Path,
    names: &[String],
    create: bool,
) -> Result<Option<Box<dyn Lock>>> {
    if !create && !names.iter().any(|name| name == LOCK) {
        return Ok(None);
    }
    let path = dir.join(LOCK);
    match fs.lock(&path) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(Error::new(ErrorKind::Locked).context(dir.display().to_string()))
        }
        // Nobody can have opened it for writing.
        Err(error) if !create && error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(None),
        Err(error) => Err(Error::io("lock", &path, error)),
    }
}
