//! Opening a database: what the directory holds becomes an engine.
//!
//! 1. Look before touching: a directory with other files than ours is refused.
//! 2. Take the lock.
//! 3. Load the manifest; open the tables that it names.
//! 4. Replay the log from where the manifest says, skipping by sequence number what is in tables;
//!    what is replayed is sorted and becomes tables of level 0 when it is much, and at the end.
//! 5. Begin a new manifest that names the new tables, the number of a log to come, and a position
//!    beyond every log found. Its CURRENT is the one atomic step: a crash before it leaves
//!    everything as it was, and one after it finds a database without a log to replay. So the cut
//!    of a torn log is durable before the first new write. Then begin that log.
//! 6. One more record, so that the manifest's first is not its last, and which says that the log was
//!    begun: without it, it is lost from now on. What is superfluous then, the workers remove.
//!
//! The shards of a database over several are all locked, and their logs read, before the first of them
//! is recovered: where a commit over several of them is not whole, their replays end early
//! ([`crate::db::cut`]).
//!
//! In another mode than strict ([`crate::Recovery`]) the log is first read as strictly as ever. Only
//! if that finds damage, step 4 reads it in that mode; the logs are then kept in `lost` before step
//! 5, since the damage, and what lies behind it, is in them. Salvage goes on without tables that
//! cannot be opened, in the same way.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::batch::{self, Operations, Participant};
use crate::compaction::picker::flush_cuts;
use crate::compaction::run::Output;
use crate::cursor::ValueRef;
use crate::db::aside;
use crate::db::catalog::Catalog;
use crate::db::engine::{Engine, Parts};
use crate::db::jobs::table_config;
use crate::db::once::fresh_memtable;
use crate::db::replayed::{Part, Replayed, within};
use crate::db::resources::Shared;
use crate::error::{Error, ErrorKind, Result};
use crate::file::{
    self, FileHeader, FileKind, FileNumber, HEADER_BYTES, LOCK, LOST, Lsn, SHARD_MARK,
    TEMPORARY_ENDING,
};
use crate::flush::flush_sorted;
use crate::fs::{self, Fs, Lock};
use crate::key::{self, KeyspaceId, SeqNo};
use crate::loss::Loss;
use crate::manifest::edit::{Edit, KeyspaceFacts, TableAdded, TableRemoved};
use crate::manifest::reader::load;
use crate::manifest::state::{KeyspaceState, State};
use crate::operator::{MergeOperator, built_in};
use crate::options::{Limits, Options, Recovery};
use crate::record::RecordKind;
use crate::record::chain::{Break, LogChain, LogFile, Mode, Outcome, Replay};
use crate::record::reader::Record;
use crate::table::{Origin, Table, TableFacts};
use crate::tree::{Tree, View};
use crate::version::{Added, Version};
use crate::write::closing::{Member, Rule};
use crate::write::commit::Pipeline;
use crate::write::log::Logs;

/// Name of the keyspace that every database has.
pub(crate) const DEFAULT_KEYSPACE: &str = "default";
const DEFAULT_ID: KeyspaceId = KeyspaceId(0);
/// From this part of a memtable on, a log is checked, and what was replayed is sorted and written, by two
/// threads.
const HALVED_FRACTION: usize = 8;

/// A log that is being read.
struct Reading<'a> {
    chain: LogChain,
    mode: Mode,
    logs: &'a [Bytes],
    /// How many of the chain's breaks are noted.
    breaks: usize,
    replayed: BTreeMap<KeyspaceId, Replayed<'a>>,
}

/// Opens or creates the database in `dir`.
pub(crate) fn open(
    fs: Arc<dyn Fs>,
    resources: &Arc<Shared>,
    dir: &Path,
    options: Options,
) -> Result<Arc<Engine>> {
    let prepared = prepare(&fs, dir, &options)?;
    if let Some(shard) = prepared.state.shard() {
        let what = format!("{} is shard {} of a database over several", dir.display(), shard.0);
        return Err(Error::invalid(what));
    }
    let found = Found::new(prepared);
    recover(fs, resources, dir, options, found)
}

/// A database that is locked and of which nothing but the manifest was read.
pub(crate) struct Prepared {
    lock: Box<dyn Lock>,
    pub(crate) state: State,
}

/// Steps 1 to 3 of the module's comment, but for the tables.
pub(crate) fn prepare(fs: &Arc<dyn Fs>, dir: &Path, options: &Options) -> Result<Prepared> {
    if options.memory < 1 << 20 {
        return Err(Error::invalid("the memory budget must be at least 1 MiB"));
    }
    look(fs, dir, options.create)?;
    fs.create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    let lock = take_lock(&**fs, dir)?;
    let loaded = load(fs, dir)?;
    if loaded.is_none() && !options.create {
        return Err(no_database(dir));
    }
    let state = match loaded {
        Some(loaded) => loaded.state,
        None => fresh_state()?,
    };
    Ok(Prepared { lock, state })
}

/// What the log of a shard holds, as far as the other shards matter for it.
#[derive(Default)]
pub(crate) struct JointLog {
    /// Where it ends.
    pub end: Lsn,
    /// Where each part of a joint commit begins, and all its participants.
    pub parts: Vec<(Lsn, Vec<Participant>)>,
    /// The first seqno of each.
    pub seqnos: Vec<SeqNo>,
    /// Where the last of them ends.
    pub parts_end: Lsn,
    /// The log itself had been synced up to here, as its records say. What the manifest says does not
    /// count: that may be in tables instead.
    pub synced: Lsn,
}

/// Reads the log of a shard and changes nothing.
pub(crate) fn read_joint_log(
    fs: &dyn Fs,
    dir: &Path,
    recovery: Recovery,
    state: &State,
) -> Result<JointLog> {
    let names = fs.list(dir).map_err(|e| Error::io("list", dir, e))?;
    let files = read_logs(fs, dir, &names)?;
    let mut replay = replay_of(fs, dir, state);
    replay.mode = mode_for(recovery, &files, &replay)?;
    let mut chain = LogChain::new(files, replay)?;
    let mut found = JointLog::default();
    while let Some(record) = chain.next()? {
        found.synced = found.synced.max(record.durable);
        if record.kind != RecordKind::Commit {
            continue;
        }
        let participants = batch::participants(record.payload).map_err(|e| {
            let expected = format!("a commit at log position {}", record.lsn.0);
            Error::corruption(dir.join("log"), record.lsn.0, expected, e.0)
        })?;
        if let Some(participants) = participants {
            found.parts.push((record.lsn, participants));
            found.parts_end = record.end;
            found.seqnos.push(record.seqno);
        }
    }
    found.end = chain.finish().end;
    Ok(found)
}

/// What a recovery begins with.
pub(crate) struct Found {
    /// The database's lock.
    pub(crate) lock: Box<dyn Lock>,
    /// What is in tables, and where the replay begins.
    pub(crate) state: State,
    /// Which operations are in tables is not known by number for each keyspace: skip those on keys
    /// of which the tables have a version that is not older.
    pub(crate) by_key: bool,
    /// Files to keep in `lost`.
    pub(crate) unused: Vec<String>,
    /// Of a shard: what it shares with the others.
    pub(crate) member: Option<Member>,
    /// Commits whose records begin here or later are given up: not all shards have them.
    pub(crate) cut: Lsn,
}

impl Found {
    /// What an ordinary recovery begins with.
    pub(crate) fn new(Prepared { lock, state }: Prepared) -> Found {
        let (by_key, unused, member, cut) = (false, Vec::new(), None, Lsn(u64::MAX));
        Found { lock, state, by_key, unused, member, cut }
    }
}

/// Steps 3 to 6 of the module's comment.
pub(crate) fn recover(
    fs: Arc<dyn Fs>,
    resources: &Arc<Shared>,
    dir: &Path,
    options: Options,
    found: Found,
) -> Result<Arc<Engine>> {
    let Found { lock, mut state, by_key, unused, member, cut } = found;
    let mut recovery = Recovering::new(fs, dir, options, resources.clone(), &state)?;
    recovery.by_key = by_key;
    recovery.unused.extend(unused);
    recovery.edit.shard = member.as_ref().map(|member| member.shard);
    recovery.member = member;
    recovery.cut = cut;
    recovery.replay(&state)?;
    let next_seqno = recovery.next_seqno(&state);
    let first_lsn = recovery.first_free_lsn(&state);
    let lease = SeqNo(next_seqno.0 + Engine::seqnos_ahead(&recovery.limits));
    // A refused commit may have extended the old lease further than the numbers that were used.
    let lease = lease.max(state.seqno_lease());
    recovery.edit.replay_from = Some(first_lsn);
    let given_up = recovery.read_upto.min(first_lsn);
    let says = |member: &Member| member.joints.keeps(Rule::Void);
    if recovery.member.as_ref().is_some_and(says) && given_up < first_lsn {
        recovery.edit.voids = vec![(given_up, first_lsn)];
    }
    recovery.edit.seqno_lease = Some(lease);
    recovery.finish(&mut state, lock, next_seqno, first_lsn)
}

/// What `dir` holds, before anything is created there.
fn look(fs: &Arc<dyn Fs>, dir: &Path, create: bool) -> Result<()> {
    let names = match fs.list(dir) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound && create => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(no_database(dir)),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            let what = "is a file, or within one; a database is a directory";
            let what = format!("{} {what}", dir.display());
            return Err(Error::invalid(what));
        }
        Err(error) => return Err(Error::io("list", dir, error)),
    };
    let ours = |name: &String| {
        name == file::CURRENT
            || name == LOCK
            || name.ends_with(TEMPORARY_ENDING)
            || name == "lost+found"
            || name == LOST
            || name == SHARD_MARK
            || file::parse_name(name).is_some()
    };
    let has_current = names.iter().any(|name| name == file::CURRENT);
    // What is left of a database without CURRENT is for the manifest's reader to judge.
    let left = |name: &String| name == file::CURRENT || file::parse_name(name).is_some();
    if !create && !names.iter().any(left) {
        return Err(no_database(dir));
    }
    match names.iter().find(|name| !ours(name)) {
        Some(foreign) if !has_current => Err(Error::invalid(format!(
            "{} is not a database of esker: it has a file {foreign:?}; choose an empty directory",
            dir.display()
        ))),
        // Before the lock file is made: a directory without a database stays as it is.
        _ if !has_current && !create => load(fs, dir).and_then(|_| Err(no_database(dir))),
        _ if has_current => refuse_foreign(fs, dir, &names),
        _ => Ok(()),
    }
}

/// Fails if the files in `dir` are called like esker's, and none of them is one: other engines use such
/// names too.
///
/// One is enough, and half of its first bytes, so that a damaged database is not taken for another
/// program's.
///
/// # Errors
/// `InvalidArgument`, and those of the file system.
pub(crate) fn refuse_foreign(fs: &Arc<dyn Fs>, dir: &Path, names: &[String]) -> Result<()> {
    let begins = |name: &String, expected: &[u8]| {
        let path = dir.join(name);
        let file = fs.open(&path).map_err(|e| Error::io("open", &path, e))?;
        let bytes = file.len().map_err(|e| Error::io("measure", &path, e))?;
        let first = fs::read_first(&*file, bytes.min(expected.len() as u64));
        let first = first.map_err(|e| Error::io("read", &path, e))?;
        let alike = first.iter().zip(expected).filter(|(a, b)| a == b).count();
        Ok(alike * 2 >= expected.len())
    };
    let is_current = |name: &&String| **name == file::CURRENT;
    for name in names.iter().filter(is_current).chain(names.iter().filter(|n| !is_current(n))) {
        let expected = match file::parse_name(name) {
            Some((kind, _)) => kind.magic().as_slice(),
            None if name == file::CURRENT => b"manifest-",
            None => continue,
        };
        if begins(name, expected)? {
            return Ok(());
        }
    }
    Err(Error::invalid(format!(
        "{} is not a database of esker: no file in it begins as one of esker's does",
        dir.display()
    )))
}

#[cold]
pub(crate) fn no_database(dir: &Path) -> Error {
    Error::new(ErrorKind::InvalidArgument)
        .context(format!("there is no database in {}; check the path", dir.display()))
}

pub(crate) fn take_lock(fs: &dyn Fs, dir: &Path) -> Result<Box<dyn Lock>> {
    let path = dir.join(LOCK);
    fs.lock(&path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            Error::new(ErrorKind::Locked).context(dir.display().to_string())
        }
        _ => Error::io("lock", &path, error),
    })
}

/// The state of a database that is being created: one keyspace.
fn fresh_state() -> Result<State> {
    let mut state = State::default();
    let facts =
        KeyspaceFacts { id: DEFAULT_ID, name: DEFAULT_KEYSPACE.to_string(), operator: None };
    let edit = Edit {
        keyspaces_created: vec![facts],
        next_keyspace: Some(KeyspaceId(1)),
        next_file: Some(FileNumber(1)),
        ..Edit::default()
    };
    state.apply(&edit).map_err(|why| Error::invalid(format!("a bug of esker: {why}")))?;
    Ok(state)
}

/// A database that is being opened.
struct Recovering<'a> {
    fs: Arc<dyn Fs>,
    dir: &'a Path,
    options: Options,
    limits: Limits,
    resources: Arc<Shared>,
    names: Vec<String>,
    next_file: AtomicU64,
    keyspaces: BTreeMap<KeyspaceId, Recovered>,
    /// What the new manifest says beyond the old one.
    edit: Edit,
    /// The logs that are replayed.
    logs: Vec<FileNumber>,
    /// End of the last log file found.
    logs_end: Lsn,
    last_seqno: SeqNo,
    /// See [`Found`].
    by_key: bool,
    /// Files to keep in `lost`, since they are given up.
    unused: Vec<String>,
    losses: Vec<Loss>,
    member: Option<Member>,
    /// See [`Found`].
    cut: Lsn,
    /// Where the part of the log ends that was replayed.
    read_upto: Lsn,
}

/// A keyspace that is being recovered.
struct Recovered {
    facts: KeyspaceFacts,
    flushed_upto: SeqNo,
    operator: Option<Arc<dyn MergeOperator>>,
    version: Version,
    next_run: u64,
}

impl<'a> Recovering<'a> {
    fn new(
        fs: Arc<dyn Fs>,
        dir: &'a Path,
        options: Options,
        resources: Arc<Shared>,
        state: &State,
    ) -> Result<Recovering<'a>> {
        let names = fs.list(dir).map_err(|e| Error::io("list", dir, e))?;
        // A number that a lost edit gave out may be on a file that is still there.
        let found = names.iter().filter_map(|name| file::parse_name(name));
        let beyond = found.map(|(_, number)| number.0 + 1).max().unwrap_or(1);
        let next_file = AtomicU64::new(state.next_file().0.max(beyond));
        let limits = options.limits();
        let mut recovery = Recovering {
            fs,
            dir,
            options,
            limits,
            resources,
            names,
            next_file,
            keyspaces: BTreeMap::new(),
            edit: Edit::default(),
            logs: Vec::new(),
            logs_end: Lsn(0),
            last_seqno: SeqNo::ZERO,
            by_key: false,
            unused: Vec::new(),
            losses: Vec::new(),
            member: None,
            cut: Lsn(u64::MAX),
            read_upto: Lsn(0),
        };
        for keyspace in state.keyspaces() {
            let recovered = recovery.open_keyspace(keyspace)?;
            recovery.keyspaces.insert(keyspace.facts.id, recovered);
        }
        Ok(recovery)
    }

    fn open_keyspace(&mut self, keyspace: &KeyspaceState) -> Result<Recovered> {
        let mut added: Vec<Added<Table>> = Vec::new();
        for (level, run, facts) in keyspace.tables() {
            match self.open_table(level, run, facts.clone()) {
                Ok(table) => added.push(table),
                Err(error) if self.options.recovery == Recovery::Salvage => {
                    self.give_up_table(keyspace, level, facts, error)?;
                }
                Err(error) => return Err(error),
            }
        }
        let runs = added.iter().map(|(_, run, _)| *run);
        let next_run = runs.max().unwrap_or(0) + 1;
        let version = Version::empty().apply(added, &[]).map_err(|why| {
            let what = format!("tables of keyspace {:?} that form levels", keyspace.facts.name);
            Error::corruption(self.dir.join(file::CURRENT), 0, what, why.to_string())
        })?;
        Ok(Recovered {
            facts: keyspace.facts.clone(),
            flushed_upto: keyspace.flushed_upto,
            operator: keyspace.facts.operator.as_deref().and_then(built_in),
            version,
            next_run,
        })
    }

    fn open_table(&self, level: u8, run: u64, facts: TableFacts) -> Result<Added<Table>> {
        let (number, bytes, mode) = (facts.number, facts.bytes, self.options.read_mode);
        let opened = Table::open(&*self.fs, self.dir, facts, mode, &self.resources.cache);
        let table = opened.map_err(|error| match error.kind() {
            ErrorKind::Io(io::ErrorKind::NotFound) => {
                let path = FileKind::Table.path(self.dir, number);
                let expected = format!("a table of {bytes} bytes that the manifest names");
                Error::corruption(path, 0, expected, "no file")
            }
            _ => error,
        })?;
        Ok((level, run, table))
    }

    /// Goes on without a table that cannot be opened because it is damaged or missing.
    fn give_up_table(
        &mut self,
        keyspace: &KeyspaceState,
        level: u8,
        facts: &TableFacts,
        error: Error,
    ) -> Result<()> {
        let ErrorKind::Corruption { file, offset, expected, found } = error.kind() else {
            return Err(error);
        };
        let what = format!("the whole table: expected {expected}, found {found}");
        self.losses.push(Loss {
            keyspace: Some(keyspace.facts.name.clone()),
            keys: Some((facts.smallest.clone(), facts.largest.clone())),
            seqno_first: Some(facts.seqno_min.0),
            seqno_last: Some(facts.seqno_max.0),
            ..Loss::new(file.clone(), *offset, what)
        });
        let (keyspace, number) = (keyspace.facts.id, facts.number);
        self.edit.tables_removed.push(TableRemoved { keyspace, level, number });
        let name = FileKind::Table.name(number);
        if self.names.contains(&name) {
            self.unused.push(name);
        }
        Ok(())
    }

    // Replay.

    /// Replays the log into memtables and tables.
    fn replay(&mut self, state: &State) -> Result<()> {
        let files = read_logs(&*self.fs, self.dir, &self.names)?;
        for log in &files {
            if let Ok(header) = FileHeader::decode(&log.bytes, FileKind::Log, &log.path) {
                // Exactly its end, not beyond: the reader asks of a log that it reaches to where
                // the replay begins.
                let end = header.first_lsn.0 + (log.bytes.len() - HEADER_BYTES) as u64;
                let end = Lsn(end - end % 8);
                self.logs_end = self.logs_end.max(end);
            }
        }
        let needed = files.iter().filter(|log| log.number >= state.replay_log());
        self.logs = needed.map(|log| log.number).collect();
        let mut replay = replay_of(&*self.fs, self.dir, state);
        replay.mode = mode_for(self.options.recovery, &files, &replay)?;
        let mode = replay.mode;
        if mode != Mode::Strict {
            self.unused.extend(logs_with_contents(&files, replay.from_log));
        }
        let logs: Vec<Bytes> = files.iter().map(|log| log.bytes.clone()).collect();
        let chain = LogChain::new(files, replay)?;
        let mut reading =
            Reading { chain, mode, logs: &logs, breaks: 0, replayed: BTreeMap::new() };
        let bytes_min = (self.limits.memtable_bytes / HALVED_FRACTION) as u64;
        let ahead = reading.chain.ahead(bytes_min).filter(|_| self.options.threads > 1);
        if let Some(ahead) = ahead {
            let runtime = self.resources.runtime.clone();
            let read = || self.read_until(ahead.middle(), &mut reading, state);
            let (checked, read) = runtime.join(|| ahead.check(), read);
            read?;
            reading.chain.take_checked(checked);
        }
        self.read_until(Lsn(u64::MAX), &mut reading, state)?;
        let Reading { chain, breaks, mut replayed, .. } = reading;
        if mode != Mode::Strict {
            self.note_breaks(&chain.breaks()[breaks..], self.last_seqno, None);
        }
        let Outcome { end, breaks, .. } = chain.finish();
        if let (Mode::PointInTime, Some(cut)) = (mode, breaks.last()) {
            self.check_prefix(state, cut)?;
        }
        self.logs_end = self.logs_end.max(end);
        self.read_upto = end.min(self.cut);
        self.flush_all(&mut replayed)
    }

    /// Reads the records that begin before `upto`.
    fn read_until(
        &mut self,
        upto: Lsn,
        Reading { chain, mode, logs, breaks, replayed }: &mut Reading<'_>,
        state: &State,
    ) -> Result<()> {
        while chain.lsn() < upto
            && let Some(record) = chain.next()?
        {
            let before = self.last_seqno;
            if record.kind == RecordKind::Commit && record.lsn < self.cut {
                let record = Record { payload: within(logs, record.payload), ..record };
                self.replay_commit(&record, state, *mode, replayed)?;
            }
            let seqno_end = Some(record.seqno.0.saturating_sub(1));
            self.note_breaks(&chain.breaks()[*breaks..], before, seqno_end);
            *breaks = chain.breaks().len();
            let bytes: usize = replayed.values().map(Replayed::memory_bytes).sum();
            let is_full = replayed.values().any(Replayed::is_full);
            if is_full || bytes > self.limits.memtables_bytes_max / 2 {
                self.flush_all(replayed)?;
            }
        }
        Ok(())
    }

    /// Notes what was lost after seqno `after`, in another mode than strict.
    fn note_breaks(&mut self, breaks: &[Break], after: SeqNo, upto: Option<u64>) {
        self.losses.extend(breaks.iter().map(|lost| loss_of(lost, after, upto)));
    }

    /// Fails if the log was cut so early that the database would be no moment of its history.
    ///
    /// Everything up to the last commit that was read is there, and so is, in each keyspace,
    /// everything up to its `flushed_upto`. If tables of one have more, what others wrote meanwhile
    /// is lost; only where there are no others that does no harm.
    fn check_prefix(&self, state: &State, cut: &Break) -> Result<()> {
        let floor = state.keyspaces().map(|keyspace| keyspace.flushed_upto).min();
        let upto = self.last_seqno.max(floor.unwrap_or(SeqNo::ZERO));
        let ahead = state.tables().find(|(.., facts)| facts.seqno_max > upto);
        match ahead {
            Some((.., facts)) if state.keyspaces().count() > 1 => {
                let table = FileKind::Table.name(facts.number);
                let last = facts.seqno_max.0;
                let expected = format!("commits up to seqno {last}, which {table} has");
                let found = format!("damage after seqno {}; salvage or repair it", upto.0);
                Err(Error::corruption(&cut.path, cut.offset, expected, found))
            }
            _ => Ok(()),
        }
    }

    /// True if the tables have a version of this key that is not older.
    fn is_in_tables(keyspace: &Recovered, key: &[u8], seqno: SeqNo) -> Result<bool> {
        let mut newest = SeqNo::ZERO;
        let mut note = |found, _, _: ValueRef<'_>| {
            newest = found;
            ControlFlow::Break(())
        };
        let _ = keyspace.version.visit(key, key::hash(key), SeqNo::MAX, &mut note)?;
        Ok(newest >= seqno)
    }

    fn replay_commit<'r>(
        &mut self,
        record: &Record<'r>,
        state: &State,
        mode: Mode,
        replayed: &mut BTreeMap<KeyspaceId, Replayed<'r>>,
    ) -> Result<()> {
        let dir = self.dir;
        let bad = |found: &str| {
            let expected = format!("a commit at log position {}", record.lsn.0);
            Error::corruption(dir.join("log"), record.lsn.0, expected, found)
        };
        let operations = Operations::new(record.payload).map_err(|e| bad(e.0))?;
        let mut seqno = record.seqno;
        for operation in operations {
            let operation = operation.map_err(|e| bad(e.0))?;
            match self.keyspaces.get(&operation.keyspace) {
                Some(keyspace)
                    if seqno > keyspace.flushed_upto
                        && !(self.by_key
                            && Self::is_in_tables(keyspace, operation.key, seqno)?) =>
                {
                    let of_keyspace = replayed.entry(operation.keyspace).or_default();
                    of_keyspace.push(operation.key, seqno, operation.kind, operation.value);
                }
                // In tables already.
                Some(_) => {}
                // Dropped: ids are never used again.
                None if operation.keyspace < state.next_keyspace() => {}
                // Nobody can have written it: what it was to be is lost.
                None if mode == Mode::Salvage => {}
                None => return Err(bad("an operation on a keyspace that never was")),
            }
            self.last_seqno = self.last_seqno.max(seqno);
            seqno = SeqNo(seqno.0 + 1);
        }
        Ok(())
    }

    /// Makes tables of what was replayed.
    fn flush_all(&mut self, replayed: &mut BTreeMap<KeyspaceId, Replayed<'_>>) -> Result<()> {
        let mut keyspaces = std::mem::take(&mut self.keyspaces);
        let flushed = std::mem::take(replayed).into_iter().try_for_each(|(id, replayed)| {
            let keyspace = keyspaces.get_mut(&id).expect("it was replayed for");
            self.flush(keyspace, replayed)
        });
        self.keyspaces = keyspaces;
        flushed
    }

    fn flush(&mut self, keyspace: &mut Recovered, mut replayed: Replayed<'_>) -> Result<()> {
        let config = table_config(&self.options, &self.limits, 0);
        let origin = Origin {
            keyspace: keyspace.facts.id,
            name: keyspace.facts.name.clone(),
            operator: keyspace.facts.operator.clone(),
            inputs: self.logs.clone(),
        };
        let write = |part: Part<'_, '_>| {
            let output = Output {
                fs: &*self.fs,
                dir: self.dir,
                config: &config,
                origin: &origin,
                table_bytes: self.limits.table_bytes as u64,
                job_bytes: self.limits.job_bytes,
                buffers: &self.resources.buffers,
                next_number: &|| self.next_number(),
                cancelled: &|| false,
                progress: &|_| {},
            };
            let cuts = flush_cuts(&keyspace.version, &self.limits);
            flush_sorted(part.sorted(), Vec::new(), keyspace.operator.clone(), cuts, &output)
        };
        let least = (self.limits.memtable_bytes / HALVED_FRACTION) as u64;
        let facts = if self.options.threads > 1 && replayed.user_bytes() >= least {
            let (first, second) = replayed.halves();
            let (first, second) = self.resources.runtime.join(|| write(first), || write(second));
            [first?, second?].concat()
        } else {
            write(replayed.whole())?
        };
        let run = keyspace.next_run;
        keyspace.next_run += 1;
        for facts in &facts {
            let (keyspace, facts) = (keyspace.facts.id, facts.clone());
            self.edit.tables_added.push(TableAdded { keyspace, level: 0, run, facts });
        }
        let added: Result<Vec<_>> =
            facts.into_iter().map(|facts| self.open_table(0, run, facts)).collect();
        let applied = keyspace.version.apply(added?, &[]);
        keyspace.version =
            applied.map_err(|why| Error::invalid(format!("a bug of esker: {why}")))?;
        keyspace.flushed_upto = self.last_seqno;
        Ok(())
    }

    // What follows.

    fn next_number(&self) -> FileNumber {
        FileNumber(self.next_file.fetch_add(1, Ordering::Relaxed))
    }

    /// The first number that no operation, lost ones included, ever had.
    fn next_seqno(&self, state: &State) -> SeqNo {
        let last = state.clean_close().unwrap_or(state.seqno_lease()).max(self.last_seqno);
        SeqNo(last.0 + 1)
    }

    /// The end of every log that was found, and of one that is lost, so that none of them is ever read
    /// again.
    fn first_free_lsn(&self, state: &State) -> Lsn {
        self.logs_end.max(state.replay_from()).max(state.log_durable())
    }

    fn finish(
        mut self,
        state: &mut State,
        lock: Box<dyn Lock>,
        next_seqno: SeqNo,
        first_lsn: Lsn,
    ) -> Result<Arc<Engine>> {
        if !self.edit.tables_added.is_empty() {
            let _site = fs::site("open.table.sync_dir");
            self.fs.sync_dir(self.dir).map_err(|e| Error::io("sync", self.dir, e))?;
        }
        self.unused.sort();
        self.unused.dedup();
        aside::keep(&*self.fs, self.dir, &self.unused)?;
        let (manifest_number, log_number) = (self.next_number(), self.next_number());
        let next_file = FileNumber(self.next_file.load(Ordering::Relaxed));

        // Everything that was replayed is in tables.
        let replayed = SeqNo(next_seqno.0 - 1);
        self.edit.flushed_upto = self.keyspaces.keys().map(|id| (*id, replayed)).collect();
        self.edit.next_file = Some(next_file);
        self.edit.replay_log = Some(log_number);
        state.apply(&self.edit).map_err(|why| Error::invalid(format!("a bug of esker: {why}")))?;
        let lease = state.seqno_lease();
        let growth = self.limits.manifest_bytes;
        let logs = Logs::new(self.fs.clone(), self.dir.to_path_buf(), self.limits.log_bytes);
        let mut catalog =
            Catalog::create(self.fs.clone(), self.dir, manifest_number, state.clone(), growth)?;
        // The log comes after the manifest: a log without CURRENT is what a damaged database has.
        let cursor = logs.begin(logs.create_spare(log_number, 0)?, first_lsn)?;
        // And before its second record, which says that the log is there.
        catalog.append(Edit::default(), next_file)?;

        let runtime = self.resources.runtime.clone();
        let mut pipeline = Pipeline::new(runtime, logs, cursor, next_seqno, lease);
        pipeline.member = self.member.take();
        let next_run = self.keyspaces.values().map(|keyspace| keyspace.next_run).max();
        let trees = self.make_trees(&pipeline);
        self.retire_superfluous(&mut catalog, &pipeline);
        let engine = Engine::new(Parts {
            fs: self.fs,
            dir: self.dir.to_path_buf(),
            resources: self.resources,
            options: self.options,
            pipeline,
            catalog,
            trees,
            next_file,
            next_run: next_run.unwrap_or(1),
            losses: self.losses,
            lock,
        });
        if !engine.runtime.runs_threads() {
            // There will be no worker to do it.
            engine.remove_obsolete();
        }
        Ok(Arc::new(engine))
    }

    fn make_trees(&mut self, pipeline: &Pipeline) -> Vec<Arc<Tree>> {
        let mut commit = pipeline.lock();
        let keyspaces = std::mem::take(&mut self.keyspaces);
        let trees = keyspaces.into_values().map(|keyspace| {
            let active = fresh_memtable(&keyspace.facts.name, &self.resources.arenas);
            let slot = commit.add_slot(active.clone());
            let version = Arc::new(keyspace.version);
            let view = View { active, frozen: Vec::new(), version };
            let KeyspaceFacts { id, name, operator } = keyspace.facts;
            Arc::new(Tree::new(id, name, slot, operator, keyspace.operator, view))
        });
        trees.collect()
    }

    /// Has the workers remove what neither the manifest nor the log needs: for a log of 64 MiB that
    /// takes up to 13 ms. What cannot be removed stays an orphan until the next open.
    fn retire_superfluous(&self, catalog: &mut Catalog, pipeline: &Pipeline) {
        let logs: HashSet<FileNumber> = pipeline.logs.numbers().into_iter().collect();
        for name in &self.names {
            let superfluous = match file::parse_name(name) {
                Some((FileKind::Log, number)) => !logs.contains(&number),
                Some((FileKind::Table, number)) => !catalog.state().has_table(number),
                Some((FileKind::Manifest, number)) => number != catalog.number(),
                None => name.ends_with(TEMPORARY_ENDING),
            };
            if superfluous {
                catalog.retire_found(self.dir.join(name));
            }
        }
    }
}

/// The log files among these names.
pub(crate) fn read_logs(fs: &dyn Fs, dir: &Path, names: &[String]) -> Result<Vec<LogFile>> {
    let mut files = Vec::new();
    for name in names {
        let Some((FileKind::Log, number)) = file::parse_name(name) else { continue };
        let path = dir.join(name);
        let opened = fs.open(&path).map_err(|e| Error::io("open", &path, e))?;
        let (bytes, zeros_from) = fs::map_log(&*opened).map_err(|e| Error::io("map", &path, e))?;
        files.push(LogFile { path, number, bytes, zeros_from });
    }
    Ok(files)
}

/// What of the log is to be replayed on this state, strictly.
fn replay_of(fs: &dyn Fs, dir: &Path, state: &State) -> Replay {
    Replay {
        dir: dir.to_path_buf(),
        from: state.replay_from(),
        from_log: state.replay_log(),
        begun: state.has_begun_log(),
        durable: state.log_durable(),
        boot_id: fs.boot_id(),
        mode: Mode::Strict,
    }
}

/// How the log is to be read: strictly, unless that finds damage and something else was chosen.
pub(crate) fn mode_for(recovery: Recovery, files: &[LogFile], replay: &Replay) -> Result<Mode> {
    let mode = match recovery {
        Recovery::Strict => return Ok(Mode::Strict),
        Recovery::PointInTime => Mode::PointInTime,
        Recovery::Salvage => Mode::Salvage,
    };
    let strictly = || {
        let mut chain = LogChain::new(files.to_vec(), replay.clone())?;
        while chain.next()?.is_some() {}
        Ok(Mode::Strict)
    };
    strictly().or_else(|error: Error| if error.is_corruption() { Ok(mode) } else { Err(error) })
}

/// Names of the logs from this number on that were begun.
fn logs_with_contents(files: &[LogFile], from: FileNumber) -> Vec<String> {
    let begun = |log: &&LogFile| log.number >= from && log.bytes.iter().any(|byte| *byte != 0);
    files.iter().filter(begun).map(|log| FileKind::Log.name(log.number)).collect()
}

/// A lost part of the log between seqno `after` and, if a commit follows, the one before it.
pub(crate) fn loss_of(lost: &Break, after: SeqNo, upto: Option<u64>) -> Loss {
    let bytes = match lost.to {
        Some(to) => format!("log of {} bytes", to.0 - lost.from.0),
        None => "log up to its end".to_string(),
    };
    Loss {
        seqno_first: Some(after.0 + 1),
        seqno_last: upto,
        ..Loss::new(lost.path.clone(), lost.offset, format!("{bytes}: {}", lost.fault))
    }
}
