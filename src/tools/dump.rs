//! Any file of a database as text: which kind it is says its name, or if that is none of ours,
//! its first bytes.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use crate::dump;
use crate::error::{Error, Result};
use crate::file::{self, CURRENT, FileHeader, FileKind, FileNumber, LOCK};
use crate::fs::{Fs, RealFs};
use crate::manifest::reader::load;
use crate::table;
use crate::tools::{read, read_header};

/// Writes a file of a database as text: a log, a table, a manifest, CURRENT or LOCK. One line for
/// each record, operation, part of an edit, block or entry, with hexadecimal offsets; long keys
/// and values are cut.
///
/// The database may be open meanwhile; of a file that is being written, the text shows some part.
/// What is damaged within a log or a manifest is shown as such, and the text goes on after it.
///
/// # Errors
/// `Corruption` if the header of the file, or anything in a table, is damaged; `Unsupported` if a
/// newer version wrote it; `InvalidArgument` if it is no file of a database; `Io`, also of `out`.
pub fn dump(path: &Path, out: &mut dyn Write) -> Result<()> {
    let fs: Arc<dyn Fs> = Arc::new(RealFs::new());
    dump_on(&fs, path, out)
}

/// [`dump`] on a file system of the caller's: for tests.
///
/// # Errors
/// As [`dump`].
pub fn dump_on(fs: &Arc<dyn Fs>, path: &Path, out: &mut dyn Write) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let kind = match file::parse_name(&name) {
        Some((FileKind::Table, number)) => return dump_table(fs, path, number, out),
        Some((kind, _)) => kind,
        None if name == CURRENT => return dump_current(fs, path, out),
        None if name == LOCK => {
            let text = "lock: flock'ed by the process that has the database open\n";
            return written(path, out.write_all(text.as_bytes()));
        }
        None => kind_of(fs, path)?,
    };
    let bytes = read(fs, path)?;
    if kind == FileKind::Log && bytes.iter().all(|byte| *byte == 0) {
        let text = format!("spare log: {} zeros\n", bytes.len());
        return written(path, out.write_all(text.as_bytes()));
    }
    let text = dump::dump(&bytes, path)?;
    written(path, write!(out, "{text}"))
}

/// What a file is whose name says nothing.
fn kind_of(fs: &Arc<dyn Fs>, path: &Path) -> Result<FileKind> {
    let bytes = read_header(fs, path)?;
    let begins = |kind: &FileKind| bytes.starts_with(kind.magic());
    match [FileKind::Log, FileKind::Manifest, FileKind::Table].into_iter().find(begins) {
        Some(FileKind::Table) => {
            let header = FileHeader::decode(&bytes, FileKind::Table, path)?;
            let name = FileKind::Table.name(header.number);
            Err(Error::invalid(format!("{} is a table: name it {name}", path.display())))
        }
        Some(kind) => Ok(kind),
        None => Err(Error::invalid(format!("{} is no file of a database", path.display()))),
    }
}

fn dump_table(
    fs: &Arc<dyn Fs>,
    path: &Path,
    number: FileNumber,
    out: &mut dyn Write,
) -> Result<()> {
    table::dump::dump(&**fs, directory_of(path), number, out)
}

/// CURRENT as it is, and what the manifest adds up to that it names.
fn dump_current(fs: &Arc<dyn Fs>, path: &Path, out: &mut dyn Write) -> Result<()> {
    let line = read(fs, path)?;
    written(path, writeln!(out, "current \"{}\"", line.escape_ascii()))?;
    let written_summary = match load(fs, directory_of(path)) {
        Ok(Some(loaded)) => {
            let (state, number) = (&loaded.state, loaded.number.0);
            let (keyspaces, tables) = (state.keyspaces().count(), state.tables().count());
            let (from, lease) = (state.replay_from().0, state.seqno_lease().0);
            writeln!(
                out,
                "manifest {number}: {keyspaces} keyspaces, {tables} tables, replay from lsn \
                 {from}, seqno lease {lease}, next file {}, next keyspace {}",
                state.next_file().0,
                state.next_keyspace().0
            )
        }
        Ok(None) => writeln!(out, "bad: it is gone"),
        Err(error) => writeln!(out, "bad: {error}"),
    };
    written(path, written_summary)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// The error if the text could not be written.
fn written(path: &Path, outcome: io::Result<()>) -> Result<()> {
    outcome.map_err(|e| Error::io("write the text of", path, e))
}
