//! What a repair makes of what it found: a pure function from manifests and tables to a plan.
//!
//! # With a manifest that is whole
//! Its state is right. Each table stays, or is written anew at its place from what can be read of
//! it, or from the file of another name that has its id; or it is missing.
//!
//! # Without one
//! Tables tell their keyspaces, but not their levels (a table changes these without being written),
//! and some may be left over:
//!
//! 1. A table that lists inputs which are all still there is the output of a compaction (or a
//!    replay) of which nobody knows that it was installed: it is left out, since its inputs have
//!    all that it has.
//! 2. If one of its inputs is gone, it was installed: then those that are left are superseded, and
//!    what they superseded, in turn, is too. Logs among them are not replayed.
//! 3. Tables that an edit removed, and those of keyspaces that one dropped, are left out. Of two
//!    keyspaces of one name the one with the smaller id was dropped: ids rise.
//! 4. In each keyspace, tables whose ranges of keys overlap are merged into new ones, keeping every
//!    version of every key: an order among them that is right for every key need not exist. The
//!    others stay as they are. All together are one run of the last level.
//! 5. Operations in the log are in tables already if the tables have a version of the key that is not
//!    older: flushes take whole keys, in the order of sequence numbers (db/open.rs, `by_key`).

use std::collections::{BTreeMap, BTreeSet};

use crate::batch::Operations;
use crate::file::{FileHeader, FileId, FileKind, FileNumber, Lsn};
use crate::key::{KeyspaceId, SeqNo};
use crate::manifest::edit::KeyspaceFacts;
use crate::manifest::salvage::Known;
use crate::manifest::state::State;
use crate::record::chain::LogFile;
use crate::table::{Origin, TableFacts};
use crate::tools::repair::Examined;
use crate::version::LEVEL_LAST;

/// Keyspace 0, which every database has.
const DEFAULT: &str = "default";

/// What a repair is to do.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// The keyspaces that there will be.
    pub(crate) keyspaces: Vec<KeyspacePlan>,
    /// Where the replay begins.
    pub(crate) replay_from: Lsn,
    /// The log in which it does.
    pub(crate) replay_log: FileNumber,
    /// That log was there.
    pub(crate) begun: bool,
    /// No seqno beyond this one is known to have been given out.
    pub(crate) seqno_lease: SeqNo,
    /// No file number from this one on is known to have been.
    pub(crate) next_file: FileNumber,
    /// No keyspace id from this one on is known to have been.
    pub(crate) next_keyspace: KeyspaceId,
    /// Operations in the log are skipped by key.
    pub(crate) by_key: bool,
    /// Tables that should be there and are not.
    pub(crate) missing: BTreeSet<FileNumber>,
    /// Tables that are there and not needed, damaged or not.
    pub(crate) unneeded: BTreeSet<FileNumber>,
    /// Tables with entries of which nothing says to which keyspace they belong.
    pub(crate) unplaced: Vec<FileNumber>,
    /// Keyspaces whose name is lost, and the one they get.
    pub(crate) named_anew: Vec<(KeyspaceId, String)>,
}

/// What becomes of a keyspace.
#[derive(Debug)]
pub(crate) struct KeyspacePlan {
    /// Its name and operator.
    pub(crate) facts: KeyspaceFacts,
    /// Everything up to this seqno is in tables.
    pub(crate) flushed_upto: SeqNo,
    /// Its tables.
    pub(crate) groups: Vec<Group>,
}

/// Tables that become one or more at the same place.
#[derive(Debug)]
pub(crate) struct Group {
    /// The level that it goes to.
    pub(crate) level: u8,
    /// And the run.
    pub(crate) run: u64,
    /// The only source stays as it is.
    pub(crate) kept: Option<TableFacts>,
    /// What it is made of.
    pub(crate) sources: Vec<Source>,
}

/// A file that entries are read from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    /// The number in its name.
    pub(crate) number: FileNumber,
    /// Its id.
    pub(crate) id: FileId,
    /// All of it can be read.
    pub(crate) whole: bool,
}

impl Plan {
    /// True if tables are written anew, or are missing.
    pub(crate) fn changes(&self) -> bool {
        let mut groups = self.keyspaces.iter().flat_map(|keyspace| &keyspace.groups);
        !self.missing.is_empty() || groups.any(|group| group.kept.is_none())
    }

    /// True if this table stays as it is.
    pub(crate) fn keeps(&self, number: FileNumber) -> bool {
        let mut groups = self.keyspaces.iter().flat_map(|keyspace| &keyspace.groups);
        groups.any(|group| group.kept.as_ref().is_some_and(|facts| facts.number == number))
    }
}

impl KeyspacePlan {
    /// True if entries of this table are in the keyspace.
    pub(crate) fn uses(&self, number: FileNumber) -> bool {
        let mut sources = self.groups.iter().flat_map(|group| &group.sources);
        sources.any(|source| source.number == number)
    }
}

impl Examined {
    fn source(&self) -> Source {
        Source { number: self.number, id: self.id, whole: self.whole }
    }
}

/// The plan where the state is known.
pub(crate) fn trusting(state: &State, tables: &[Examined]) -> Plan {
    let mut plan = Plan {
        replay_from: state.replay_from(),
        replay_log: state.replay_log(),
        begun: state.has_begun_log(),
        // Beyond what a clean close leaves of it: numbers are not used twice.
        seqno_lease: state.seqno_lease(),
        next_file: state.next_file(),
        next_keyspace: state.next_keyspace(),
        ..Plan::default()
    };
    for keyspace in state.keyspaces() {
        let mut groups = Vec::new();
        for (level, run, facts) in keyspace.tables() {
            let named = |table: &&Examined| table.number == facts.number && table.id == facts.id;
            let moved = |table: &&Examined| table.id == facts.id;
            let found = tables.iter().find(named).or_else(|| tables.iter().find(moved));
            match found.filter(|table| table.facts.is_some()) {
                Some(table) => {
                    let kept =
                        (table.whole && table.facts.as_ref() == Some(facts)).then(|| facts.clone());
                    groups.push(Group { level, run, kept, sources: vec![table.source()] });
                }
                None => {
                    plan.missing.insert(facts.number);
                }
            }
        }
        let (facts, flushed_upto) = (keyspace.facts.clone(), keyspace.flushed_upto);
        plan.keyspaces.push(KeyspacePlan { facts, flushed_upto, groups });
    }
    let needed = |table: &&Examined| !state.has_table(table.number);
    plan.unneeded = tables.iter().filter(needed).map(|table| table.number).collect();
    plan
}

/// What logs tell of keyspaces and numbers.
#[derive(Debug, Default)]
pub(crate) struct Logged {
    /// Keyspaces that are written to.
    keyspaces: BTreeSet<KeyspaceId>,
    /// The last seqno.
    last_seqno: SeqNo,
}

impl Logged {
    /// Takes over what a commit tells.
    pub(crate) fn absorb(&mut self, first: SeqNo, payload: &[u8]) {
        let Ok(operations) = Operations::new(payload) else { return };
        for (index, operation) in operations.flatten().enumerate() {
            self.keyspaces.insert(operation.keyspace);
            self.last_seqno = self.last_seqno.max(SeqNo(first.0 + index as u64));
        }
    }
}

/// Where the oldest of these logs begins.
pub(crate) fn oldest_lsn(logs: &[&LogFile]) -> Lsn {
    let begins = logs.iter().filter_map(|log| {
        let header = FileHeader::decode(&log.bytes, FileKind::Log, &log.path).ok()?;
        (header.number == log.number).then_some(header.first_lsn)
    });
    begins.min().unwrap_or_default()
}

/// The plan where no manifest is whole.
pub(crate) fn rebuilding(
    known: &Known,
    tables: &[Examined],
    logs: &[&LogFile],
    logged: &Logged,
) -> Plan {
    let left_out = left_out(tables, logs);
    let replay_log = logs.iter().map(|log| log.number).filter(|n| left_out.contains(n)).max();
    let replay_log = FileNumber(replay_log.map_or(0, |number| number.0 + 1));
    let needed: Vec<&LogFile> = logs.iter().filter(|l| l.number >= replay_log).copied().collect();
    let mut plan = Plan {
        replay_from: oldest_lsn(&needed),
        replay_log,
        by_key: true,
        next_file: known.next_file,
        ..Plan::default()
    };
    let mut names = keyspaces_of(known, tables);
    names.entry(KeyspaceId(0)).or_insert_with(|| KeyspaceFacts {
        id: KeyspaceId(0),
        name: DEFAULT.to_string(),
        operator: None,
    });
    let dropped = drop_namesakes(known, &mut names);
    for &id in logged.keyspaces.iter().filter(|id| !dropped.contains(id)) {
        names.entry(id).or_insert_with(|| {
            let name = format!("recovered-{}", id.0);
            plan.named_anew.push((id, name.clone()));
            KeyspaceFacts { id, name, operator: None }
        });
    }
    let mut of: BTreeMap<KeyspaceId, Vec<&Examined>> = BTreeMap::new();
    for table in tables {
        let out = left_out.contains(&table.number) || known.obsolete.contains(&table.number);
        match keyspace_of(known, table) {
            Some(id) if out || !names.contains_key(&id) => {
                plan.unneeded.insert(table.number);
            }
            None if out => {
                plan.unneeded.insert(table.number);
            }
            // Nothing of it is left.
            _ if table.facts.is_none() => {}
            Some(id) => of.entry(id).or_default().push(table),
            None => plan.unplaced.push(table.number),
        }
    }
    let there = |number: &FileNumber| tables.iter().any(|table| table.number == *number);
    let gone = known.tables.keys().filter(|n| !there(n) && !left_out.contains(n));
    plan.missing = gone.copied().collect();
    let ids = names.keys().chain(&dropped).map(|id| id.0 + 1).max();
    plan.next_keyspace = known.next_keyspace.max(KeyspaceId(ids.unwrap_or(1)));
    let seqnos = tables.iter().filter_map(|table| table.facts.as_ref().map(|f| f.seqno_max));
    let flushed = known.flushed_upto.values().copied();
    let seqnos = seqnos.chain(flushed).chain([logged.last_seqno, known.seqno_lease]);
    plan.seqno_lease = seqnos.max().unwrap_or_default();
    for (id, facts) in names {
        let groups = groups(of.remove(&id).unwrap_or_default());
        let flushed_upto = known.flushed_upto.get(&id).copied().unwrap_or_default();
        plan.keyspaces.push(KeyspacePlan { facts, flushed_upto, groups });
    }
    plan
}

/// The files that rules 1 and 2 leave out.
fn left_out(tables: &[Examined], logs: &[&LogFile]) -> BTreeSet<FileNumber> {
    let there: BTreeSet<FileNumber> =
        tables.iter().map(|t| t.number).chain(logs.iter().map(|log| log.number)).collect();
    let mut out = BTreeSet::new();
    // Outputs have larger numbers than their inputs.
    let mut newest_first: Vec<&Examined> = tables.iter().collect();
    newest_first.sort_by_key(|table| std::cmp::Reverse(table.number));
    let mut superseded: BTreeSet<FileNumber> = BTreeSet::new();
    for table in newest_first {
        let inputs = table.origin.as_ref().map_or(&[][..], |origin| &origin.inputs);
        if superseded.contains(&table.number) {
            superseded.extend(inputs);
        } else if !inputs.is_empty() && inputs.iter().all(|input| there.contains(input)) {
            out.insert(table.number);
        } else {
            superseded.extend(inputs);
        }
    }
    out.extend(superseded);
    out
}

/// The keyspace of a table, as the manifest says or the table itself.
fn keyspace_of(known: &Known, table: &Examined) -> Option<KeyspaceId> {
    let named = known.tables.get(&table.number).filter(|(_, facts)| facts.id == table.id);
    let told = table.origin.as_ref().map(|origin| origin.keyspace);
    named.map(|(id, _)| *id).or(told)
}

/// The keyspaces that manifests and tables tell of.
fn keyspaces_of(known: &Known, tables: &[Examined]) -> BTreeMap<KeyspaceId, KeyspaceFacts> {
    let mut names = known.keyspaces.clone();
    for Origin { keyspace, name, operator, .. } in tables.iter().filter_map(|t| t.origin.as_ref()) {
        if known.dropped.contains(keyspace) {
            continue;
        }
        let (id, name) = (*keyspace, name.clone());
        let facts = names.entry(id).or_insert(KeyspaceFacts { id, name, operator: None });
        // One may have been given later, and is not taken away again.
        facts.operator = facts.operator.take().or_else(|| operator.clone());
    }
    names
}

/// Removes all but the newest keyspace of each name; gives all that are known to be dropped.
fn drop_namesakes(
    known: &Known,
    names: &mut BTreeMap<KeyspaceId, KeyspaceFacts>,
) -> BTreeSet<KeyspaceId> {
    let newest: BTreeMap<String, KeyspaceId> =
        names.values().map(|facts| (facts.name.clone(), facts.id)).collect();
    let mut dropped = known.dropped.clone();
    names.retain(|id, facts| {
        let live = newest[&facts.name] == *id;
        if !live {
            dropped.insert(*id);
        }
        live
    });
    dropped
}

/// Tables that share keys become one group, the others one each.
fn groups(mut tables: Vec<&Examined>) -> Vec<Group> {
    let facts = |table: &Examined| table.facts.clone().expect("only those with entries are here");
    tables.sort_by_key(|table| (facts(table).smallest, table.number));
    let mut groups: Vec<(Vec<&Examined>, Box<[u8]>)> = Vec::new();
    for table in tables {
        let TableFacts { smallest, largest, .. } = facts(table);
        match groups.last_mut().filter(|(_, end)| smallest <= *end) {
            Some((members, end)) => {
                members.push(table);
                *end = largest.max(std::mem::take(end));
            }
            None => groups.push((vec![table], largest)),
        }
    }
    let plan = |(members, _): (Vec<&Examined>, _)| {
        let kept = match &members[..] {
            [only] if only.whole => only.facts.clone(),
            _ => None,
        };
        let sources = members.into_iter().map(Examined::source).collect();
        Group { level: LEVEL_LAST, run: 0, kept, sources }
    };
    groups.into_iter().map(plan).collect()
}
