//! Checks everything that can be checked of a database that nobody has open, and changes nothing.
//!
//! 1. CURRENT and the manifest: every record, every edit, and the state they add up to.
//! 2. The levels: order and disjointness within runs, seqnos between the runs of level 0, and that
//!    no table has entries beyond what its keyspace counts as flushed (or a replay would apply
//!    them twice).
//! 3. Each table, wholly, with `pread`: all checksums, the order of the entries, the facts that the
//!    manifest repeats, the filter.
//! 4. The log from where a replay would begin, as strictly as an open reads it; each operation.
//! 5. What is missing, and what is there besides.
//!
//! What a plain crash leaves behind and the next open clears away is a remark, not damage: a torn
//! tail, files that nothing refers to.
//!
//! If the manifest is damaged, tables are checked by themselves and the log from its oldest file
//! on, to show what could be salvaged.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::batch::Operations;
use crate::db::open::refuse_foreign;
use crate::error::{Error, ErrorKind, Result};
use crate::file::{
    self, CURRENT, FileHeader, FileKind, FileNumber, LOCK, LOST, Lsn, QUEUES, TEMPORARY_ENDING,
};
use crate::fs::{Fs, RealFs};
use crate::key::SeqNo;
use crate::manifest::reader::load;
use crate::manifest::state::State;
use crate::options::ReadMode;
use crate::record::RecordKind;
use crate::record::chain::{LogChain, LogFile, Mode, Replay};
use crate::record::reader::{Record, Tail, offset_of};
use crate::table::{BlockCache, Table, TableFacts};
use crate::tools::{no_database, read, take_lock};
use crate::version::Version;

/// Something that is not as it was written, or not needed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The file.
    pub file: PathBuf,
    /// The byte in it; 0 also if it is about the file as a whole.
    pub offset: u64,
    /// What should be there and what is.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}: {}", self.file.display(), self.offset, self.what)
    }
}

/// What [`verify`] found. `Display` is for people.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Keyspaces that the manifest names.
    pub keyspaces: u64,
    /// Tables that were checked.
    pub tables: u64,
    /// Their bytes.
    pub table_bytes: u64,
    /// Entries in them: versions, tombstones and operands counted each.
    pub entries: u64,
    /// Log files.
    pub logs: u64,
    /// Their bytes.
    pub log_bytes: u64,
    /// Commits in the log that a replay would read.
    pub commits: u64,
    /// Operations in those commits.
    pub operations: u64,
    /// Damage.
    pub damage: Vec<Finding>,
    /// What a plain crash leaves behind; the next open clears it away.
    pub remarks: Vec<Finding>,
}

impl VerifyReport {
    /// True if there is no damage.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.damage.is_empty()
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} keyspaces", self.keyspaces)?;
        let VerifyReport { tables, entries, table_bytes, .. } = self;
        writeln!(f, "{tables} tables: {entries} entries, {table_bytes} bytes")?;
        let VerifyReport { logs, commits, operations, log_bytes, .. } = self;
        write!(f, "{logs} logs: {commits} commits of {operations} operations to replay, ")?;
        writeln!(f, "{log_bytes} bytes")?;
        for remark in &self.remarks {
            writeln!(f, "remark: {remark}")?;
        }
        for damage in &self.damage {
            writeln!(f, "damage: {damage}")?;
        }
        match self.damage.len() {
            0 => writeln!(f, "ok"),
            1 => writeln!(f, "damaged in 1 place"),
            places => writeln!(f, "damaged in {places} places"),
        }
    }
}

/// Checks the database in `dir`, which nobody may have open, and changes nothing. `progress` gets
/// the name of each file before it is read.
///
/// Log files are read as a whole, one after the other; that takes as much memory as they have
/// bytes.
///
/// # Errors
/// `Locked` if the database is open; `InvalidArgument` if there is none; `Unsupported` if a newer
/// version wrote its manifest; `Io` if the directory cannot be read. Damage is no error: see
/// [`VerifyReport::is_ok`].
pub fn verify(dir: &Path, progress: &mut dyn FnMut(&str)) -> Result<VerifyReport> {
    let fs: Arc<dyn Fs> = Arc::new(RealFs::new());
    verify_on(&fs, dir, progress)
}

/// [`verify`] on a file system of the caller's: for tests.
///
/// # Errors
/// As [`verify`].
pub fn verify_on(
    fs: &Arc<dyn Fs>,
    dir: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<VerifyReport> {
    let names = fs.list(dir).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => no_database(dir),
        _ => Error::io("list", dir, error),
    })?;
    if names.iter().any(|name| name == CURRENT) {
        refuse_foreign(fs, dir, &names)?;
    }
    let _lock = take_lock(fs, dir, &names, false)?;
    // Again, now that nobody can change it.
    let mut names = fs.list(dir).map_err(|e| Error::io("list", dir, e))?;
    names.sort();
    let report = VerifyReport::default();
    let mut check = Check { fs, dir, names, progress, report };
    check.run()?;
    Ok(check.report)
}

/// A verification under way.
struct Check<'a> {
    fs: &'a Arc<dyn Fs>,
    dir: &'a Path,
    /// The names in the directory, sorted.
    names: Vec<String>,
    progress: &'a mut dyn FnMut(&str),
    report: VerifyReport,
}

/// Where a log begins.
struct LogStart {
    header: FileHeader,
    path: PathBuf,
}

impl Check<'_> {
    fn run(&mut self) -> Result<()> {
        let (state, manifest) = match load(self.fs, self.dir) {
            Ok(None) => return Err(no_database(self.dir)),
            Ok(Some(loaded)) => {
                let path = FileKind::Manifest.path(self.dir, loaded.number);
                if let Tail::Torn { .. } = loaded.tail {
                    let what = "a torn last edit, which the next open cuts";
                    self.remark(&path, loaded.bytes, what);
                }
                (Some(loaded.state), Some(loaded.number))
            }
            Err(error) if error.is_corruption() => {
                self.damage(&self.dir.join(CURRENT), &error);
                (None, None)
            }
            Err(error) => return Err(error),
        };
        if let (Some(state), Some(manifest)) = (&state, manifest) {
            (self.progress)(&FileKind::Manifest.name(manifest));
            self.check_levels(state, &FileKind::Manifest.path(self.dir, manifest));
        }
        self.check_tables(state.as_ref());
        self.check_logs(state.as_ref());
        self.check_names(state.as_ref(), manifest);
        Ok(())
    }

    fn damage(&mut self, path: &Path, error: &Error) {
        let finding = match error.kind() {
            ErrorKind::Corruption { file, offset, expected, found } => {
                let what = format!("expected {expected}, found {found}");
                Finding { file: file.clone(), offset: *offset, what }
            }
            _ => Finding { file: path.to_path_buf(), offset: 0, what: error.to_string() },
        };
        self.report.damage.push(finding);
    }

    fn remark(&mut self, path: &Path, offset: u64, what: &str) {
        let finding = Finding { file: path.to_path_buf(), offset, what: what.to_string() };
        self.report.remarks.push(finding);
    }

    // Levels and tables.

    fn check_levels(&mut self, state: &State, manifest: &Path) {
        if let Err(why) = state.check() {
            self.damage(manifest, &Error::corruption(manifest, 0, "a state", why.to_string()));
        }
        for keyspace in state.keyspaces() {
            self.report.keyspaces += 1;
            let name = &keyspace.facts.name;
            let tables = keyspace.tables().map(|(level, run, facts)| {
                let facts = Arc::new(facts.clone());
                (level, run, facts)
            });
            let version = Version::<TableFacts>::empty().apply(tables.collect(), &[]);
            if let Err(why) = version.and_then(|version| version.check()) {
                let expected = format!("tables of keyspace {name:?} that form levels");
                self.damage(manifest, &Error::corruption(manifest, 0, expected, why.to_string()));
            }
            for (_, _, facts) in keyspace.tables() {
                if facts.seqno_max > keyspace.flushed_upto {
                    let upto = keyspace.flushed_upto.0;
                    let expected = format!("entries that are flushed, up to seqno {upto}");
                    let found = format!("table {} up to {}", facts.number.0, facts.seqno_max.0);
                    self.damage(manifest, &Error::corruption(manifest, 0, expected, found));
                }
            }
        }
    }

    fn check_tables(&mut self, state: Option<&State>) {
        let cache = BlockCache::new(0);
        match state {
            Some(state) => {
                for (_, _, _, facts) in state.tables() {
                    let open = |fs: &dyn Fs, dir: &Path| {
                        Table::open(fs, dir, facts.clone(), ReadMode::Pread, &cache)
                    };
                    self.check_table(facts.number, Some(facts.bytes), open);
                }
            }
            None => {
                for number in self.numbers(FileKind::Table) {
                    let open = |fs: &dyn Fs, dir: &Path| {
                        Table::open_alone(fs, dir, number, ReadMode::Pread, &cache)
                    };
                    self.check_table(number, None, open);
                }
            }
        }
    }

    fn check_table(
        &mut self,
        number: FileNumber,
        bytes: Option<u64>,
        open: impl FnOnce(&dyn Fs, &Path) -> Result<Arc<Table>>,
    ) {
        (self.progress)(&FileKind::Table.name(number));
        let path = FileKind::Table.path(self.dir, number);
        let opened = open(&**self.fs, self.dir);
        let checked = opened.and_then(|table| table.verify().map(|()| table));
        match checked {
            Ok(table) => {
                self.report.tables += 1;
                self.report.table_bytes += table.facts().bytes;
                self.report.entries += table.facts().entries;
            }
            Err(error) => match (error.kind(), bytes) {
                (ErrorKind::Io(io::ErrorKind::NotFound), Some(bytes)) => {
                    let expected = format!("a table of {bytes} bytes that the manifest names");
                    let missing = Error::corruption(&path, 0, expected, "no file");
                    self.damage(&path, &missing);
                }
                _ => self.damage(&path, &error),
            },
        }
    }

    /// The numbers of the files of this kind, ascending.
    fn numbers(&self, kind: FileKind) -> Vec<FileNumber> {
        let parsed = self.names.iter().filter_map(|name| file::parse_name(name));
        let mut numbers: Vec<_> = parsed.filter(|(k, _)| *k == kind).map(|(_, n)| n).collect();
        numbers.sort_unstable();
        numbers
    }

    // The log.

    fn check_logs(&mut self, state: Option<&State>) {
        let mut files = Vec::new();
        for number in self.numbers(FileKind::Log) {
            (self.progress)(&FileKind::Log.name(number));
            let path = FileKind::Log.path(self.dir, number);
            match read(self.fs, &path) {
                Ok(bytes) => {
                    self.report.logs += 1;
                    self.report.log_bytes += bytes.len() as u64;
                    let zeros_from = bytes.len() as u64;
                    files.push(LogFile { path, number, bytes: Bytes::from(bytes), zeros_from });
                }
                Err(error) => self.damage(&path, &error),
            }
        }
        let starts = log_starts(&files);
        let oldest = starts.first().map_or(Lsn(0), |start| start.header.first_lsn);
        let replay = Replay {
            dir: self.dir.to_path_buf(),
            from: state.map_or(oldest, State::replay_from),
            from_log: state.map_or(FileNumber(0), State::replay_log),
            begun: state.is_some_and(State::has_begun_log),
            durable: state.map_or(Lsn(0), State::log_durable),
            boot_id: self.fs.boot_id(),
            mode: Mode::Strict,
        };
        for path in superfluous(&starts, &replay) {
            self.remark(&path, 0, "a log that is not needed; the next open removes it");
        }
        if let Err(error) = self.read_log(&files, &replay, &starts, state) {
            self.damage(self.dir, &error);
            self.report_breaks(files, replay);
        }
    }

    /// Reads the log as strictly as an open does, and checks each commit.
    fn read_log(
        &mut self,
        files: &[LogFile],
        replay: &Replay,
        starts: &[LogStart],
        state: Option<&State>,
    ) -> Result<()> {
        let mut chain = LogChain::new(files.to_vec(), replay.clone())?;
        let mut last = SeqNo::ZERO;
        while let Some(record) = chain.next()? {
            if record.kind != RecordKind::Commit {
                continue;
            }
            match check_commit(&record, last, state) {
                Ok(operations) => {
                    self.report.commits += 1;
                    self.report.operations += operations;
                    last = SeqNo(record.seqno.0 + operations - 1);
                }
                Err((expected, found)) => {
                    let (path, offset) = place_of(starts, record.lsn, self.dir);
                    let error = Error::corruption(&path, offset, expected, found);
                    self.damage(&path, &error);
                }
            }
        }
        let outcome = chain.finish();
        for cut in outcome.breaks {
            let what = format!("a torn tail, which the next open cuts: {}", cut.fault);
            self.remark(&cut.path, cut.offset, &what);
        }
        for path in outcome.discarded {
            let spare = |file: &LogFile| file.path == path && file.bytes.iter().all(|b| *b == 0);
            if !files.iter().any(spare) {
                self.remark(&path, 0, "past the end of the log; the next open removes it");
            }
        }
        Ok(())
    }

    /// Where else a log is broken that a strict reading refused.
    fn report_breaks(&mut self, files: Vec<LogFile>, replay: Replay) {
        let replay = Replay { mode: Mode::Salvage, ..replay };
        let Ok(mut chain) = LogChain::new(files, replay) else { return };
        while let Ok(Some(_)) = chain.next() {}
        for lost in chain.finish().breaks {
            let known = |d: &Finding| d.file == lost.path && d.offset == lost.offset;
            if !self.report.damage.iter().any(known) {
                let (file, offset) = (lost.path, lost.offset);
                let what = lost.fault.to_string();
                self.report.damage.push(Finding { file, offset, what });
            }
        }
    }

    // The directory.

    fn check_names(&mut self, state: Option<&State>, manifest: Option<FileNumber>) {
        for name in self.names.clone() {
            let path = self.dir.join(&name);
            match file::parse_name(&name) {
                Some((FileKind::Table, number)) => {
                    if state.is_some_and(|state| !state.has_table(number)) {
                        let what = "a table that is not needed; the next open removes it";
                        self.remark(&path, 0, what);
                    }
                }
                Some((FileKind::Manifest, number)) => {
                    if manifest.is_some_and(|live| live != number) {
                        let what = "a manifest that is not live; the next open removes it";
                        self.remark(&path, 0, what);
                    }
                }
                Some((FileKind::Log, _)) => {}
                None if [CURRENT, LOCK, LOST, QUEUES, "lost+found"].contains(&name.as_str()) => {}
                None if name.ends_with(TEMPORARY_ENDING) => {
                    self.remark(&path, 0, "was being written; the next open removes it");
                }
                None => self.remark(&path, 0, "no file of a database"),
            }
        }
    }
}

/// The logs with a valid header, by first LSN.
fn log_starts(files: &[LogFile]) -> Vec<LogStart> {
    let start = |file: &LogFile| {
        let header = FileHeader::decode(&file.bytes, FileKind::Log, &file.path).ok()?;
        Some(LogStart { header, path: file.path.clone() })
    };
    let mut starts: Vec<_> = files.iter().filter_map(start).collect();
    starts.sort_by_key(|start| start.header.first_lsn);
    starts
}

/// The logs that end before the replay begins, or are older than the log in which it does.
fn superfluous(starts: &[LogStart], replay: &Replay) -> Vec<PathBuf> {
    let (old, starts): (Vec<_>, Vec<_>) =
        starts.iter().partition(|start| start.header.number < replay.from_log);
    let begun = starts.partition_point(|start| start.header.first_lsn <= replay.from);
    let ended = starts[..begun.saturating_sub(1)].iter();
    old.iter().chain(ended).map(|start| start.path.clone()).collect()
}

/// The file and offset of the record at this LSN.
fn place_of(starts: &[LogStart], lsn: Lsn, dir: &Path) -> (PathBuf, u64) {
    match starts.iter().rfind(|start| start.header.first_lsn <= lsn) {
        Some(start) => (start.path.clone(), offset_of(&start.header, lsn)),
        None => (dir.to_path_buf(), 0),
    }
}

/// How many operations a commit has; or what was expected of it, and what was found.
fn check_commit(
    record: &Record<'_>,
    last: SeqNo,
    state: Option<&State>,
) -> std::result::Result<u64, (String, String)> {
    let bad = |found: &str| ("a commit".to_string(), found.to_string());
    let operations = Operations::new(record.payload).map_err(|e| bad(e.0))?;
    let count = u64::from(operations.count_checked().map_err(|e| bad(e.0))?);
    if count == 0 {
        return Err(bad("one without operations"));
    }
    if record.seqno <= last {
        let expected = format!("a commit after seqno {}", last.0);
        return Err((expected, format!("seqno {}", record.seqno.0)));
    }
    let Some(state) = state else { return Ok(count) };
    let end = SeqNo(record.seqno.0.saturating_add(count - 1));
    if end > state.seqno_lease() {
        let expected = format!("seqnos within the lease, up to {}", state.seqno_lease().0);
        return Err((expected, format!("seqno {}", end.0)));
    }
    for operation in operations.flatten() {
        if operation.keyspace >= state.next_keyspace() {
            return Err(bad("an operation on a keyspace that never was"));
        }
    }
    Ok(count)
}
