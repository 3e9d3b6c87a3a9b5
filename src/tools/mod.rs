//! Looking into a database from outside, without opening it and without changing anything.
//!
//! - `dump`: any file of a database as text.
//! - `verify`: checks everything that can be checked, and reports.

mod dump;
#[cfg(test)]
mod tests;
mod verify;

pub use crate::tools::dump::dump;
pub use crate::tools::verify::{Finding, VerifyReport, verify};
#[cfg(any(test, feature = "testing"))]
pub use crate::tools::{dump::dump_on, verify::verify_on};

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::file::HEADER_BYTES;
use crate::fs::{File, Fs};

/// The whole of a file, read and not mapped: a sector that the disk cannot read is then an error
/// and not a signal.
fn read(fs: &Arc<dyn Fs>, path: &Path) -> Result<Vec<u8>> {
    let file = fs.open(path).map_err(|e| Error::io("open", path, e))?;
    let len = file.len().map_err(|e| Error::io("measure", path, e))?;
    read_start(&*file, path, len)
}

fn read_start(file: &dyn File, path: &Path, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, 0).map_err(|e| Error::io("read", path, e))?;
    Ok(bytes)
}

/// The bytes of a file where its header should be, fewer if it is shorter.
fn read_header(fs: &Arc<dyn Fs>, path: &Path) -> Result<Vec<u8>> {
    let file = fs.open(path).map_err(|e| Error::io("open", path, e))?;
    let len = file.len().map_err(|e| Error::io("measure", path, e))?;
    read_start(&*file, path, len.min(HEADER_BYTES as u64))
}
