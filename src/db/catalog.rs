//! The manifest in use: every change to the set of tables and keyspaces goes through here, one
//! edit at a time, durable before anybody sees it.
//!
//! A file that an edit makes superfluous is removed only once a later manifest record is durable.
//! A damaged last record, the one thing that recovery cuts without proof, therefore never leaves a
//! database without its files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use crate::error::{DegradedCause, Error, Result};
use crate::file::{FileKind, FileNumber};
use crate::fs::Fs;
use crate::key::SeqNo;
use crate::manifest::edit::Edit;
use crate::manifest::state::State;
use crate::manifest::writer::ManifestWriter;

/// File numbers that are leased ahead with every edit.
const FILES_AHEAD: u64 = 256;

/// See the module's comment. Lock order: before the commit lock.
pub(crate) struct Catalog {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    writer: ManifestWriter,
    state: State,
    number: FileNumber,
    /// A manifest could not be begun: which of two CURRENT names is not known.
    torn: bool,
    /// How much it may grow before it is begun anew.
    growth_bytes_max: u64,
    /// Records appended so far, over all manifests of this session.
    record_count: u64,
    /// Superfluous files, with the record count after which they were.
    obsolete: Vec<(u64, PathBuf)>,
    /// Files that somebody is about to link or to copy.
    held: Vec<Weak<BTreeSet<PathBuf>>>,
}

impl Catalog {
    /// Begins a manifest that holds `state`.
    ///
    /// # Errors
    /// From the file system: the database is then as it was before.
    pub fn create(
        fs: Arc<dyn Fs>,
        dir: &Path,
        number: FileNumber,
        state: State,
        growth_bytes_max: u64,
    ) -> Result<Catalog> {
        let writer = ManifestWriter::create(&fs, dir, number, &state)?;
        Ok(Catalog {
            fs,
            dir: dir.to_path_buf(),
            writer,
            state,
            number,
            torn: false,
            growth_bytes_max,
            record_count: 1,
            obsolete: Vec::new(),
            held: Vec::new(),
        })
    }

    /// What the manifest says.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Makes `edit` durable. `next_file` is the smallest file number that was not given out.
    ///
    /// # Errors
    /// After one the edit is unknown until the database is opened again or a new manifest is
    /// begun, and every later call fails.
    pub fn append(&mut self, mut edit: Edit, next_file: FileNumber) -> Result<()> {
        if self.torn {
            return Err(Error::degraded(DegradedCause::Manifest));
        }
        let ahead = FileNumber(next_file.0 + FILES_AHEAD);
        edit.next_file = Some(ahead.max(self.state.next_file()));
        let mut state = self.state.clone();
        state.apply(&edit).map_err(|why| {
            Error::corruption(
                self.path(),
                self.writer.bytes(),
                "an edit that applies",
                why.to_string(),
            )
        })?;
        self.writer.append(&edit)?;
        self.state = state;
        self.record_count += 1;
        Ok(())
    }

    /// True once the manifest has grown so much that it should be begun anew.
    pub fn is_long(&self) -> bool {
        self.writer.bytes() > self.writer.snapshot_bytes() + self.growth_bytes_max
    }

    /// Begins a new manifest with the present state; the old one becomes obsolete.
    ///
    /// # Errors
    /// From the file system. Which of the two manifests is in use is then unknown, so both fail
    /// until [`Catalog::restart`] succeeds.
    pub fn rotate(&mut self, number: FileNumber) -> Result<()> {
        self.torn = true;
        self.writer = ManifestWriter::create(&self.fs, &self.dir, number, &self.state)?;
        self.torn = false;
        let old = std::mem::replace(&mut self.number, number);
        self.record_count += 1;
        self.retire(FileKind::Manifest.path(&self.dir, old));
        Ok(())
    }

    /// Begins a new manifest that holds the present state and `edit`, in one step: after a failure,
    /// whatever became of the old manifest's last record.
    ///
    /// # Errors
    /// From the file system; nothing has changed then, and this may be tried again.
    pub fn restart(&mut self, edit: &Edit, number: FileNumber) -> Result<()> {
        let mut state = self.state.clone();
        state.apply(edit).map_err(|why| Error::invalid(format!("a bug of esker: {why}")))?;
        let before = std::mem::replace(&mut self.state, state);
        let rotated = self.rotate(number);
        if rotated.is_err() {
            self.state = before;
        }
        rotated
    }

    /// The file is not needed any more, as of the last record.
    pub fn retire(&mut self, path: PathBuf) {
        self.obsolete.push((self.record_count, path));
    }

    /// The file was not needed any more before this manifest was begun.
    pub fn retire_found(&mut self, path: PathBuf) {
        self.obsolete.push((0, path));
    }

    /// Keeps these files from being removed, as long as the set lives.
    pub fn hold(&mut self, files: &Arc<BTreeSet<PathBuf>>) {
        self.held.push(Arc::downgrade(files));
    }

    /// True if files wait for a later record before they are removed.
    pub fn has_obsolete(&self) -> bool {
        self.has_obsolete_before(u64::MAX)
    }

    /// True if files may be removed now.
    pub fn has_removable(&self) -> bool {
        self.has_obsolete_before(self.record_count)
    }

    fn has_obsolete_before(&self, record_count: u64) -> bool {
        let held: Vec<_> = self.held.iter().filter_map(Weak::upgrade).collect();
        let is_held = |path| held.iter().any(|files| files.contains(path));
        self.obsolete.iter().any(|(at, path)| *at < record_count && !is_held(path))
    }

    /// Takes the files that may be removed now.
    pub fn take_removable(&mut self) -> Vec<PathBuf> {
        let record_count = self.record_count;
        self.held.retain(|files| files.strong_count() > 0);
        let held: Vec<_> = self.held.iter().filter_map(Weak::upgrade).collect();
        let removable = |(at, path): &mut (u64, PathBuf)| {
            *at < record_count && !held.iter().any(|files| files.contains(path))
        };
        self.obsolete.extract_if(.., removable).map(|(_, path)| path).collect()
    }

    /// File numbers below this one may be given out.
    pub fn file_lease(&self) -> FileNumber {
        self.state.next_file()
    }

    /// Sequence numbers up to this one may be given out.
    pub fn seqno_lease(&self) -> SeqNo {
        self.state.seqno_lease()
    }

    pub fn path(&self) -> PathBuf {
        FileKind::Manifest.path(&self.dir, self.number)
    }

    /// Number of the manifest in use.
    pub fn number(&self) -> FileNumber {
        self.number
    }
}
