//! Makes a damaged database one that opens, from everything in it that can be read, and says what
//! was lost.
//!
//! 1. Survey, reading only: CURRENT and the manifests (manifest/salvage.rs), each table wholly, what
//!    is left of damaged ones (table/salvage.rs), the logs.
//! 2. Plan (plan.rs): which tables stay, which are written anew and from which; where replay begins.
//!    If nothing has to be changed, nothing is.
//! 3. Write the new tables, under new numbers, and sync their directory.
//! 4. Go on as an open does, in salvage mode (db/open.rs): replay the logs into tables, keep every
//!    file that is not used any more in `lost`, begin a manifest. CURRENT is the one atomic step: a
//!    crash before it leaves the database as it was, with some files more that nothing refers to,
//!    and the next repair finds the same. After it the database opens.
//! 5. Only then the names of files that are not used are removed; `lost` has them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::batch::Operations;
use crate::cursor::Cursor;
use crate::cursor::merge::MergeCursor;
use crate::db::jobs::table_config;
use crate::db::open::{Found, loss_of, mode_for, recover, refuse_foreign};
use crate::db::resources::Resources;
use crate::error::{Error, ErrorKind, Result};
use crate::file::{CURRENT, FileId, FileKind, FileNumber, LOST, Lsn, parse_name};
use crate::fs::{self, Fs, Lock, RealFs};
use crate::key::SeqNo;
use crate::loss::Loss;
use crate::manifest;
use crate::manifest::edit::{Edit, TableAdded};
use crate::manifest::salvage::{Known, as_loss};
use crate::manifest::state::State;
use crate::options::{Options, ReadMode, Recovery};
use crate::record::RecordKind;
use crate::record::chain::{LogChain, LogFile, Mode, Replay};
use crate::runtime::Runtime;
use crate::table::builder::TableBuilder;
use crate::table::cursor::Ahead;
use crate::table::salvage::{Remains, SalvageCursor};
use crate::table::{self, BlockCache, Buffers, Origin, Table, TableFacts};
use crate::tools::plan::{self, Group, KeyspacePlan, Plan};
use crate::tools::{no_database, read, take_lock};

/// Whether [`repair`] changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairMode {
    /// Only says what a repair would do.
    DryRun,
    /// Repairs.
    InPlace,
}

/// What [`repair`] did, or would do. `Display` is for people.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RepairReport {
    /// Something had to be repaired. Otherwise nothing was changed.
    pub needed: bool,
    /// No manifest could be read as a whole: keyspaces and levels were made out from the tables.
    pub rebuilt: bool,
    /// Keyspaces afterwards.
    pub keyspaces: u64,
    /// Tables that stayed as they were.
    pub tables_kept: u64,
    /// Tables that were written anew from what could be read of them and, after the loss of the
    /// manifest, of others with the same keys.
    pub tables_rewritten: u64,
    /// Commits that were read from the log.
    pub commits: u64,
    /// What was damaged, and with it lost.
    pub losses: Vec<Loss>,
    /// Names of the files that were moved to the directory `lost`.
    pub moved: Vec<String>,
}

impl fmt::Display for RepairReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.needed {
            return writeln!(f, "nothing to repair; nothing was changed");
        }
        for loss in &self.losses {
            writeln!(f, "lost: {loss}")?;
        }
        for name in &self.moved {
            writeln!(f, "moved to lost: {name}")?;
        }
        if self.rebuilt {
            writeln!(
                f,
                "the manifest was lost: keyspaces and levels are those the tables tell of"
            )?;
        }
        let RepairReport { keyspaces, tables_kept, tables_rewritten, commits, .. } = self;
        writeln!(f, "{keyspaces} keyspaces; {commits} commits from the log")?;
        writeln!(f, "{tables_kept} tables kept, {tables_rewritten} written anew from what was left")
    }
}

/// Repairs the database in `dir`, which nobody may have open: makes one that opens of everything
/// that can be read. `progress` gets the name of each file before it is read.
///
/// A database that needs no repair is not changed. What a repair does not use is moved to the
/// directory `lost` within the database's and never deleted. It needs as much free space as what
/// it writes anew, which after the loss of the manifest may be all tables.
///
/// What cannot be known: with a block or a table, tombstones and newer values are lost too, and older
/// values of the same keys may show. Without a manifest, a keyspace that was dropped, or a compaction
/// of which some inputs were removed already and no output exists, comes back if its files were
/// still there; and a keyspace that no table tells of is named `recovered-N`.
///
/// # Errors
/// `Locked` if the database is open; `InvalidArgument` if there is none; `Unsupported` if a newer
/// version wrote it; `Io` and `NoSpace`: the database is then as it was, and this may be tried
/// again. Damage is no error.
pub fn repair(
    dir: &Path,
    mode: RepairMode,
    progress: &mut dyn FnMut(&str),
) -> Result<RepairReport> {
    let fs: Arc<dyn Fs> = Arc::new(RealFs::new());
    repair_on(&fs, dir, mode, &Options::default(), progress)
}

/// [`repair`] on a file system of the caller's, with these sizes of tables: for tests.
///
/// # Errors
/// As [`repair`].
pub fn repair_on(
    fs: &Arc<dyn Fs>,
    dir: &Path,
    mode: RepairMode,
    options: &Options,
    progress: &mut dyn FnMut(&str),
) -> Result<RepairReport> {
    let names = fs.list(dir).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => no_database(dir),
        _ => Error::io("list", dir, error),
    })?;
    if !names.iter().any(|name| name == CURRENT || parse_name(name).is_some()) {
        return Err(no_database(dir));
    }
    refuse_foreign(fs, dir, &names)?;
    let lock = take_lock(fs, dir, &names, mode == RepairMode::InPlace)?;
    // Again, now that nobody can change it.
    let mut names = fs.list(dir).map_err(|e| Error::io("list", dir, e))?;
    names.sort();
    let mut repair = Repair {
        fs,
        dir,
        options: Options { recovery: Recovery::Salvage, create: true, ..options.clone() },
        names,
        progress,
        cache: BlockCache::new(0),
        damaged: BTreeMap::new(),
        report: RepairReport::default(),
    };
    let (plan, orderly) = repair.survey()?;
    repair.report.needed = !orderly || plan.changes();
    if !repair.report.needed {
        repair.report.losses.clear();
        return Ok(repair.report);
    }
    repair.report.moved = repair.unused(&plan);
    if let (RepairMode::InPlace, Some(lock)) = (mode, lock) {
        repair.carry_out(plan, lock)?;
    }
    Ok(repair.report)
}

/// A table as it was found.
pub(crate) struct Examined {
    /// The number in its name.
    pub(crate) number: FileNumber,
    /// Its id.
    pub(crate) id: FileId,
    /// True if every byte is as it was written.
    pub(crate) whole: bool,
    /// Where it says that it belongs.
    pub(crate) origin: Option<Origin>,
    /// Of the entries that can be read; `None` if none can.
    pub(crate) facts: Option<TableFacts>,
}

struct Repair<'a> {
    fs: &'a Arc<dyn Fs>,
    dir: &'a Path,
    options: Options,
    /// The names in the directory, sorted.
    names: Vec<String>,
    progress: &'a mut dyn FnMut(&str),
    cache: Arc<BlockCache>,
    /// Why tables are damaged, and what of them.
    damaged: BTreeMap<FileNumber, Vec<Loss>>,
    report: RepairReport,
}

impl Repair<'_> {
    /// What to do, and whether manifest and logs are in order.
    fn survey(&mut self) -> Result<(Plan, bool)> {
        (self.progress)(CURRENT);
        let remains = manifest::salvage::salvage(self.fs, self.dir)?;
        let mut orderly = remains.losses.is_empty();
        self.report.losses.extend(remains.losses);
        self.report.rebuilt = remains.state.is_none();
        let ids = ids_of(remains.state.as_ref(), &remains.known);
        let tables = self.examine_tables(&ids)?;
        let files = self.read_logs()?;
        let plan = match remains.state {
            Some(state) => {
                let plan = plan::trusting(&state, &tables);
                let name = |id| state.keyspaces().find(|k| k.facts.id == id).map(|k| &k.facts.name);
                let facts = state.tables().map(|(id, _, _, facts)| (name(id), facts));
                self.report_missing(&plan, facts);
                plan
            }
            None => {
                let keyspaces = self.keyspaces_in(&files)?;
                let logs: Vec<&LogFile> = files.iter().collect();
                let plan = plan::rebuilding(&remains.known, &tables, &logs, &keyspaces);
                let name = |id| remains.known.keyspaces.get(&id).map(|facts| &facts.name);
                let facts = remains.known.tables.values().map(|(id, facts)| (name(*id), facts));
                self.report_missing(&plan, facts);
                plan
            }
        };
        for (id, name) in &plan.named_anew {
            let what = format!("the name of keyspace {}, which is now {name:?}", id.0);
            self.report.losses.push(Loss::new(self.dir.join(CURRENT), 0, what));
        }
        for &number in &plan.unplaced {
            let path = FileKind::Table.path(self.dir, number);
            let what = "the whole table: nothing says to which keyspace it belongs";
            self.report.losses.push(Loss::new(path, 0, what));
        }
        self.report_damaged(&plan);
        orderly &= self.survey_log(files, &plan)?;
        self.report.keyspaces = plan.keyspaces.len() as u64;
        let groups = || plan.keyspaces.iter().flat_map(|keyspace| &keyspace.groups);
        self.report.tables_kept = groups().filter(|group| group.kept.is_some()).count() as u64;
        let anew = groups().filter(|group| group.kept.is_none());
        self.report.tables_rewritten = anew.map(|group| group.sources.len() as u64).sum();
        Ok((plan, orderly))
    }

    /// The numbers of the files of this kind, ascending.
    fn numbers(&self, kind: FileKind) -> Vec<FileNumber> {
        let parsed = self.names.iter().filter_map(|name| parse_name(name));
        let mut numbers: Vec<_> = parsed.filter(|(k, _)| *k == kind).map(|(_, n)| n).collect();
        numbers.sort_unstable();
        numbers
    }

    // Tables.

    fn examine_tables(&mut self, ids: &HashMap<FileNumber, FileId>) -> Result<Vec<Examined>> {
        let mut tables = Vec::new();
        for number in self.numbers(FileKind::Table) {
            (self.progress)(&FileKind::Table.name(number));
            let examined = match self.open_whole(number) {
                Ok((table, origin)) => {
                    let facts = Some(table.facts().clone());
                    Examined { number, id: table.facts().id, whole: true, origin, facts }
                }
                Err(error) if *error.kind() == ErrorKind::Unsupported => return Err(error),
                Err(error) => self.examine_damaged(number, ids.get(&number).copied(), error)?,
            };
            tables.push(examined);
        }
        Ok(tables)
    }

    fn open_whole(&self, number: FileNumber) -> Result<(Arc<Table>, Option<Origin>)> {
        let table = Table::open_alone(&**self.fs, self.dir, number, ReadMode::Pread, &self.cache)?;
        table.verify()?;
        let origin = table.read_origin()?;
        Ok((table, origin))
    }

    fn examine_damaged(
        &mut self,
        number: FileNumber,
        id: Option<FileId>,
        error: Error,
    ) -> Result<Examined> {
        let path = FileKind::Table.path(self.dir, number);
        let text = error.to_string();
        let why = as_loss(error).unwrap_or_else(|_| Loss::new(path, 0, text));
        let remains = self.salvage(number, id)?;
        let (id, origin, losses) = (remains.id, remains.origin.clone(), remains.losses.clone());
        let known = remains.facts.clone();
        let facts = facts_of(SalvageCursor::new(remains))?;
        let mut losses = match losses.is_empty() {
            // Only what describes the entries is damaged, or nothing says how many there were.
            true => vec![Loss { what: format!("no entries; {}", why.what), ..why }],
            false => losses,
        };
        if facts.is_none() {
            losses.truncate(1);
            losses[0].what = format!("the whole table: {}", losses[0].what);
        }
        if let Some(known) = &known {
            for loss in &mut losses {
                loss.seqno_first = Some(known.seqno_min.0);
                loss.seqno_last = Some(known.seqno_max.0);
            }
        }
        self.damaged.insert(number, losses);
        Ok(Examined { number, id, whole: false, origin, facts })
    }

    fn salvage(&self, number: FileNumber, id: Option<FileId>) -> Result<Remains> {
        table::salvage::salvage(&**self.fs, self.dir, number, id)
    }

    /// Tables that the manifest names and that are nowhere, or of which nothing is left.
    fn report_missing<'s>(
        &mut self,
        plan: &Plan,
        tables: impl Iterator<Item = (Option<&'s String>, &'s TableFacts)>,
    ) {
        let there = self.numbers(FileKind::Table);
        for (keyspace, facts) in tables.filter(|(_, f)| plan.missing.contains(&f.number)) {
            let path = FileKind::Table.path(self.dir, facts.number);
            let found = match there.contains(&facts.number) {
                true => "another table in its place",
                false => "no such file",
            };
            let lost = match self.damaged.remove(&facts.number) {
                Some(mut losses) => losses.swap_remove(0),
                None => Loss::new(path, 0, format!("the whole table: {found}")),
            };
            self.report.losses.push(Loss {
                keyspace: keyspace.cloned(),
                keys: Some((facts.smallest.clone(), facts.largest.clone())),
                seqno_first: Some(facts.seqno_min.0),
                seqno_last: Some(facts.seqno_max.0),
                ..lost
            });
        }
    }

    /// What is lost of tables that are needed.
    fn report_damaged(&mut self, plan: &Plan) {
        for (number, losses) in &self.damaged {
            let user = plan.keyspaces.iter().find(|keyspace| keyspace.uses(*number));
            if user.is_none() && plan.unneeded.contains(number) {
                continue;
            }
            let name = user.map(|keyspace| keyspace.facts.name.clone());
            let named = losses.iter().map(|loss| Loss { keyspace: name.clone(), ..loss.clone() });
            self.report.losses.extend(named);
        }
    }

    // The log.

    fn read_logs(&mut self) -> Result<Vec<LogFile>> {
        let mut files = Vec::new();
        for number in self.numbers(FileKind::Log) {
            (self.progress)(&FileKind::Log.name(number));
            let path = FileKind::Log.path(self.dir, number);
            let bytes = Bytes::from(read(self.fs, &path)?);
            let zeros_from = bytes.len() as u64;
            files.push(LogFile { path, number, bytes, zeros_from });
        }
        Ok(files)
    }

    fn replay(&self, from: Lsn, from_log: FileNumber, mode: Mode) -> Replay {
        let (dir, boot_id) = (self.dir.to_path_buf(), self.fs.boot_id());
        Replay { dir, from, from_log, begun: false, durable: Lsn(0), boot_id, mode }
    }

    /// The keyspaces that commits in these logs write to.
    fn keyspaces_in(&self, files: &[LogFile]) -> Result<plan::Logged> {
        let mut logged = plan::Logged::default();
        let oldest = plan::oldest_lsn(&files.iter().collect::<Vec<_>>());
        let replay = self.replay(oldest, FileNumber(0), Mode::Salvage);
        let mut chain = LogChain::new(files.to_vec(), replay)?;
        while let Some(record) = chain.next()? {
            if record.kind == RecordKind::Commit {
                logged.absorb(record.seqno, record.payload);
            }
        }
        Ok(logged)
    }

    /// Counts commits and reports what is lost of them; true if nothing is.
    fn survey_log(&mut self, files: Vec<LogFile>, plan: &Plan) -> Result<bool> {
        let mut replay = self.replay(plan.replay_from, plan.replay_log, Mode::Strict);
        replay.begun = plan.begun;
        replay.mode = mode_for(Recovery::Salvage, &files, &replay)?;
        let orderly = replay.mode == Mode::Strict;
        let mut chain = LogChain::new(files, replay)?;
        let (mut seen, mut last) = (0, SeqNo::ZERO);
        loop {
            let before = last;
            let upto = match chain.next()? {
                Some(record) => {
                    if record.kind == RecordKind::Commit {
                        self.report.commits += 1;
                        let count = Operations::new(record.payload).map_or(0, Iterator::count);
                        last = last.max(SeqNo(record.seqno.0 + (count as u64).saturating_sub(1)));
                    }
                    Some(record.seqno.0.saturating_sub(1))
                }
                None => None,
            };
            if !orderly {
                let lost = chain.breaks()[seen..].iter().map(|lost| loss_of(lost, before, upto));
                self.report.losses.extend(lost);
            }
            seen = chain.breaks().len();
            if upto.is_none() {
                return Ok(orderly);
            }
        }
    }

    // Carrying it out.

    /// Files that the repaired database does not have.
    fn unused(&self, plan: &Plan) -> Vec<String> {
        let unused = |name: &&String| match parse_name(name) {
            Some((FileKind::Table, number)) => !plan.keeps(number),
            Some((FileKind::Log | FileKind::Manifest, _)) => true,
            None => *name == CURRENT,
        };
        self.names.iter().filter(unused).cloned().collect()
    }

    fn carry_out(&mut self, plan: Plan, lock: Box<dyn Lock>) -> Result<()> {
        let mut next_file = plan.next_file.max(self.beyond_all_files()?);
        let mut edit = plan.edit();
        for keyspace in &plan.keyspaces {
            for group in &keyspace.groups {
                let facts = match &group.kept {
                    Some(facts) => vec![facts.clone()],
                    None => self.write(keyspace, group, &mut next_file)?,
                };
                let Group { level, run, .. } = *group;
                let keyspace = keyspace.facts.id;
                let added =
                    facts.into_iter().map(|facts| TableAdded { keyspace, level, run, facts });
                edit.tables_added.extend(added);
            }
        }
        if plan.changes() {
            // Else the new manifest can name tables that have no name.
            let _site = fs::site("repair.table.sync_dir");
            self.fs.sync_dir(self.dir).map_err(|e| Error::io("sync", self.dir, e))?;
        }
        edit.next_file = Some(next_file);
        let mut state = State::default();
        state.apply(&edit).map_err(|why| Error::invalid(format!("a bug of esker: {why}")))?;
        let (by_key, unused) = (plan.by_key, self.report.moved.clone());
        let found = Found { lock, state, by_key, unused, member: None, cut: Lsn(u64::MAX) };
        // Nothing runs in it, and it is dropped at once: what was wanted are its files.
        let resources = Resources::of(Runtime::threads(), &self.options);
        let options = self.options.clone();
        let engine = recover(self.fs.clone(), resources.shared(), self.dir, options, found)?;
        engine.remove_obsolete();
        Ok(())
    }

    /// A number that no file has, in `lost` neither.
    fn beyond_all_files(&self) -> Result<FileNumber> {
        let lost = match self.fs.list(&self.dir.join(LOST)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            listed => listed.map_err(|e| Error::io("list", self.dir.join(LOST), e))?,
        };
        let numbers = self.names.iter().chain(&lost).filter_map(|name| parse_name(name));
        Ok(FileNumber(numbers.map(|(_, number)| number.0 + 1).max().unwrap_or(1)))
    }

    /// Writes what the sources of a group have, in order, each entry once.
    fn write(
        &mut self,
        keyspace: &KeyspacePlan,
        group: &Group,
        next_file: &mut FileNumber,
    ) -> Result<Vec<TableFacts>> {
        let limits = self.options.limits();
        let bytes = limits.read_ahead_bytes(group.sources.len());
        let ahead = Ahead { bytes, buffers: Buffers::new(0) };
        let mut sources: Vec<Box<dyn Cursor>> = Vec::new();
        for source in &group.sources {
            let name = FileKind::Table.name(source.number);
            (self.progress)(&name);
            sources.push(match source.whole {
                true => {
                    Box::new(self.open_whole(source.number)?.0.compaction_cursor(ahead.clone()))
                }
                false => {
                    Box::new(SalvageCursor::new(self.salvage(source.number, Some(source.id))?))
                }
            });
        }
        let origin = Origin {
            keyspace: keyspace.facts.id,
            name: keyspace.facts.name.clone(),
            operator: keyspace.facts.operator.clone(),
            inputs: group.sources.iter().map(|source| source.number).collect(),
        };
        let config = table_config(&self.options, &limits, group.level);
        let mut begin = || {
            let number = *next_file;
            *next_file = FileNumber(number.0 + 1);
            let mut builder = TableBuilder::create(&**self.fs, self.dir, number, &config)?;
            builder.set_origin(origin.clone());
            Ok(builder)
        };
        write_entries(MergeCursor::new(sources), limits.table_bytes as u64, &mut begin)
    }
}

/// Writes entries into tables, each once; all versions of a key into the same one.
fn write_entries<'fs>(
    mut entries: impl Cursor,
    table_bytes: u64,
    begin: &mut dyn FnMut() -> Result<TableBuilder<'fs>>,
) -> Result<Vec<TableFacts>> {
    let (mut done, mut last) = (Vec::new(), None);
    let mut table: Option<TableBuilder<'_>> = None;
    entries.seek_to_first()?;
    while entries.valid() {
        let here = (entries.key().to_vec(), entries.seqno());
        if last.as_ref() != Some(&here) {
            let new_key = last.as_ref().is_none_or(|(key, _)| *key != here.0);
            if new_key && let Some(full) = table.take_if(|table| table.bytes() >= table_bytes) {
                done.push(full.finish()?);
            }
            if table.is_none() {
                table = Some(begin()?);
            }
            let builder = table.as_mut().expect("begun");
            builder.add(&here.0, here.1, entries.kind(), entries.value().bytes)?;
            last = Some(here);
        }
        entries.next()?;
    }
    if let Some(table) = table {
        done.push(table.finish()?);
    }
    Ok(done)
}

/// The facts of the entries of a cursor, as far as a plan needs them; `None` if there are none.
fn facts_of(mut entries: SalvageCursor) -> Result<Option<TableFacts>> {
    let mut facts: Option<TableFacts> = None;
    entries.seek_to_first()?;
    while entries.valid() {
        let (key, seqno) = (entries.key(), entries.seqno());
        let facts = facts.get_or_insert_with(|| TableFacts {
            number: FileNumber(0),
            id: FileId(0),
            bytes: 0,
            entries: 0,
            tombstones: 0,
            operands: 0,
            smallest: key.into(),
            largest: key.into(),
            seqno_min: seqno,
            seqno_max: seqno,
            raw_bytes: 0,
        });
        facts.entries += 1;
        facts.seqno_min = facts.seqno_min.min(seqno);
        facts.seqno_max = facts.seqno_max.max(seqno);
        facts.largest = key.into();
        entries.next()?;
    }
    Ok(facts)
}

/// The ids that the manifests give for tables.
fn ids_of(state: Option<&State>, known: &Known) -> HashMap<FileNumber, FileId> {
    let of_state = state.into_iter().flat_map(State::tables).map(|(.., facts)| facts);
    let facts = of_state.chain(known.tables.values().map(|(_, facts)| facts));
    facts.map(|facts| (facts.number, facts.id)).collect()
}

impl Plan {
    /// The repaired state as an edit, but for its tables and the next file number.
    fn edit(&self) -> Edit {
        Edit {
            keyspaces_created: self.keyspaces.iter().map(|k| k.facts.clone()).collect(),
            flushed_upto: self.keyspaces.iter().map(|k| (k.facts.id, k.flushed_upto)).collect(),
            replay_from: Some(self.replay_from),
            replay_log: Some(self.replay_log),
            seqno_lease: Some(self.seqno_lease),
            next_keyspace: Some(self.next_keyspace),
            ..Edit::default()
        }
    }
}
