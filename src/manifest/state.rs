//! What all edits of a manifest so far add up to.
//!
//! Invariants, which every edit is checked against:
//! - Ids of keyspaces are below `next_keyspace`, numbers of tables below `next_file`, and seqnos
//!   at most `seqno_lease`. None of the three goes back, nor does `replay_from`, `log_durable` or a
//!   keyspace's `flushed_upto`: what was given out once is never given out again, not even over two crashes.
//! - A keyspace's id was never used before; its name is its own among those that exist.
//! - A shard stays the one it is. Its voids rise, apart from each other, and end at most where the
//!   replay begins: what was given up is never read again.
//! - A table is in one place. Tables of a run are sorted and share no user key. Levels below 0
//!   have run 0 only.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::file::{FileNumber, Lsn, ShardNumber};
use crate::key::{KeyspaceId, SeqNo};
use crate::manifest::edit::{Edit, KeyspaceFacts, TableAdded, TableRemoved};
use crate::table::TableFacts;

/// All keyspaces with their tables, and what has been given out. The default is that of a
/// database to be created.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    keyspaces: BTreeMap<KeyspaceId, KeyspaceState>,
    /// The tables of all keyspaces.
    numbers: BTreeSet<FileNumber>,
    replay_from: Lsn,
    replay_log: FileNumber,
    log_durable: Lsn,
    seqno_lease: SeqNo,
    next_file: FileNumber,
    next_keyspace: KeyspaceId,
    clean_close: Option<SeqNo>,
    shard: Option<ShardNumber>,
    voids: Vec<(Lsn, Lsn)>,
    /// How many edits were added up.
    edits: u64,
}

/// A keyspace that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyspaceState {
    /// Id, name and operator.
    pub facts: KeyspaceFacts,
    /// Every operation up to this seqno is in tables.
    pub flushed_upto: SeqNo,
    /// Tables by level and run, sorted by key. No run is empty.
    runs: BTreeMap<(u8, u64), Vec<TableFacts>>,
}

/// Why an edit does not fit the state: a bug of ours, or in a manifest that is read, corruption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Misfit(pub String);

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `Err(Misfit)` with a text as of `format!`.
macro_rules! misfit {
    ($($text:tt)*) => { Err(Misfit(format!($($text)*))) };
}

impl State {
    /// Adds an edit.
    ///
    /// # Errors
    /// If it does not fit. The state is then neither the old nor the new one: drop it.
    pub(crate) fn apply(&mut self, edit: &Edit) -> Result<(), Misfit> {
        let first_new_keyspace = self.next_keyspace;
        self.apply_numbers(edit)?;
        for facts in &edit.keyspaces_created {
            self.create(facts, first_new_keyspace)?;
        }
        for (id, operator) in &edit.operators_given {
            self.give_operator(*id, operator)?;
        }
        for &id in &edit.keyspaces_dropped {
            self.drop_keyspace(id)?;
        }
        for table in &edit.tables_removed {
            self.remove(table)?;
        }
        for table in &edit.tables_added {
            self.add(table)?;
        }
        for &(id, seqno) in &edit.flushed_upto {
            self.flush(id, seqno)?;
        }
        self.apply_shard(edit)?;
        self.clean_close = edit.clean_close;
        self.edits += 1;
        if self.clean_close > Some(self.seqno_lease) {
            return misfit!("closed at a seqno beyond the lease");
        }
        if cfg!(debug_assertions) { self.check() } else { Ok(()) }
    }

    /// The state as one edit on the default state, for the beginning of a manifest. It does not
    /// say that the database was closed: who begins a manifest has it open.
    #[must_use]
    pub(crate) fn to_edit(&self) -> Edit {
        let tables = self.tables().map(|(keyspace, level, run, facts)| TableAdded {
            keyspace,
            level,
            run,
            facts: facts.clone(),
        });
        Edit {
            keyspaces_created: self.keyspaces.values().map(|k| k.facts.clone()).collect(),
            keyspaces_dropped: Vec::new(),
            operators_given: Vec::new(),
            tables_removed: Vec::new(),
            tables_added: tables.collect(),
            flushed_upto: self.keyspaces.iter().map(|(&id, k)| (id, k.flushed_upto)).collect(),
            replay_from: Some(self.replay_from),
            replay_log: Some(self.replay_log),
            log_durable: (self.log_durable > Lsn(0)).then_some(self.log_durable),
            seqno_lease: Some(self.seqno_lease),
            next_file: Some(self.next_file),
            next_keyspace: Some(self.next_keyspace),
            shard: self.shard,
            voids_settled: false,
            voids: self.voids.clone(),
            clean_close: None,
        }
    }

    /// The keyspaces that exist, by id.
    pub(crate) fn keyspaces(&self) -> impl Iterator<Item = &KeyspaceState> {
        self.keyspaces.values()
    }

    /// The keyspace of this id, if it exists.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn keyspace(&self, id: KeyspaceId) -> Option<&KeyspaceState> {
        self.keyspaces.get(&id)
    }

    /// The tables of all keyspaces, as (keyspace, level, run, table), sorted so.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (KeyspaceId, u8, u64, &TableFacts)> {
        self.keyspaces.iter().flat_map(|(&id, keyspace)| {
            keyspace.tables().map(move |(level, run, facts)| (id, level, run, facts))
        })
    }

    /// True if a table of this number is in use.
    #[must_use]
    pub(crate) fn has_table(&self, number: FileNumber) -> bool {
        self.numbers.contains(&number)
    }

    /// Where the replay of the log begins.
    #[must_use]
    pub(crate) fn replay_from(&self) -> Lsn {
        self.replay_from
    }

    /// The log file in which the replay begins.
    #[must_use]
    pub(crate) fn replay_log(&self) -> FileNumber {
        self.replay_log
    }

    /// The log has been durable up to this position: it must still be there, from where the replay
    /// begins. 0 in manifests of before this was recorded.
    #[must_use]
    pub(crate) fn log_durable(&self) -> Lsn {
        self.log_durable
    }

    /// No seqno beyond this one has been given out.
    #[must_use]
    pub(crate) fn seqno_lease(&self) -> SeqNo {
        self.seqno_lease
    }

    /// No file number from this one on has been given out.
    #[must_use]
    pub(crate) fn next_file(&self) -> FileNumber {
        self.next_file
    }

    /// No keyspace id from this one on has been given out.
    #[must_use]
    pub(crate) fn next_keyspace(&self) -> KeyspaceId {
        self.next_keyspace
    }

    /// The last seqno used, if the last edit closed the database.
    #[must_use]
    pub(crate) fn clean_close(&self) -> Option<SeqNo> {
        self.clean_close
    }

    /// True if the log in which the replay begins was there, its name durable, before the last edit: it
    /// is begun after the first edit of a manifest and before the second.
    #[must_use]
    pub(crate) fn has_begun_log(&self) -> bool {
        self.edits > 1 && self.clean_close.is_none()
    }

    /// Which shard of a database over several it is, if it is one.
    #[must_use]
    pub(crate) fn shard(&self) -> Option<ShardNumber> {
        self.shard
    }

    /// True if this position of the log, before the replay begins, was given up and may still be
    /// named by another shard.
    #[must_use]
    pub(crate) fn is_void(&self, lsn: Lsn) -> bool {
        self.voids.iter().any(|(from, to)| (*from..*to).contains(&lsn))
    }

    /// Verifies the invariants of the module's comment.
    pub(crate) fn check(&self) -> Result<(), Misfit> {
        let mut names = BTreeSet::new();
        let mut numbers = BTreeSet::new();
        for (&id, keyspace) in &self.keyspaces {
            if id >= self.next_keyspace || keyspace.facts.id != id {
                return misfit!("keyspace {} is not below the next id", id.0);
            }
            if !names.insert(&keyspace.facts.name) {
                return misfit!("two keyspaces are named {:?}", keyspace.facts.name);
            }
            if keyspace.flushed_upto > self.seqno_lease {
                return misfit!("keyspace {} is flushed beyond the lease", id.0);
            }
            for (&(level, run), tables) in &keyspace.runs {
                self.check_run(level, run, tables)?;
                numbers.extend(tables.iter().map(|facts| facts.number));
            }
        }
        let count = self.tables().count();
        if numbers != self.numbers || count != numbers.len() {
            return misfit!("{count} tables have {} numbers", self.numbers.len());
        }
        Ok(())
    }

    fn check_run(&self, level: u8, run: u64, tables: &[TableFacts]) -> Result<(), Misfit> {
        if tables.is_empty() || (level > 0 && run != 0) {
            return misfit!("level {level} has a run {run} of {} tables", tables.len());
        }
        for pair in tables.windows(2) {
            if pair[0].largest >= pair[1].smallest {
                let (a, b) = (pair[0].number.0, pair[1].number.0);
                return misfit!("tables {a} and {b} of level {level} run {run} overlap");
            }
        }
        match tables.iter().find(|facts| {
            facts.number >= self.next_file
                || facts.seqno_max > self.seqno_lease
                || facts.smallest > facts.largest
        }) {
            Some(facts) => misfit!("table {} is out of its bounds", facts.number.0),
            None => Ok(()),
        }
    }

    fn apply_numbers(&mut self, edit: &Edit) -> Result<(), Misfit> {
        raise(&mut self.replay_from, edit.replay_from, "the start of the replay")?;
        raise(&mut self.replay_log, edit.replay_log, "the log of the replay")?;
        raise(&mut self.log_durable, edit.log_durable, "what is durable of the log")?;
        raise(&mut self.seqno_lease, edit.seqno_lease, "the lease of seqnos")?;
        raise(&mut self.next_file, edit.next_file, "the next file number")?;
        raise(&mut self.next_keyspace, edit.next_keyspace, "the next keyspace id")
    }

    fn apply_shard(&mut self, edit: &Edit) -> Result<(), Misfit> {
        if let Some(shard) = edit.shard
            && *self.shard.get_or_insert(shard) != shard
        {
            return misfit!("{:?} becomes {shard:?}", self.shard);
        }
        if edit.voids_settled {
            self.voids.clear();
        }
        for &(from, to) in &edit.voids {
            let end = self.voids.last().map_or(Lsn(0), |(_, end)| *end);
            if from < end || to < from || to > self.replay_from || self.shard.is_none() {
                return misfit!("a void from {from:?} to {to:?}");
            }
            match self.voids.last_mut() {
                Some((_, end)) if *end == from => *end = to,
                _ => self.voids.push((from, to)),
            }
        }
        Ok(())
    }

    fn create(&mut self, facts: &KeyspaceFacts, first_new: KeyspaceId) -> Result<(), Misfit> {
        let id = facts.id;
        if id < first_new || self.keyspaces.contains_key(&id) {
            return misfit!("keyspace id {} was used before", id.0);
        }
        if id >= self.next_keyspace {
            return misfit!("keyspace id {} is not below the next id", id.0);
        }
        if facts.name.is_empty() || self.keyspaces().any(|k| k.facts.name == facts.name) {
            return misfit!("a keyspace cannot be named {:?}, or is already", facts.name);
        }
        let (facts, runs) = (facts.clone(), BTreeMap::new());
        self.keyspaces.insert(id, KeyspaceState { facts, flushed_upto: SeqNo::ZERO, runs });
        Ok(())
    }

    fn give_operator(&mut self, id: KeyspaceId, name: &str) -> Result<(), Misfit> {
        let keyspace = self.existing(id)?;
        match &keyspace.facts.operator {
            Some(operator) => misfit!("keyspace {} has the merge operator {operator:?}", id.0),
            None => {
                keyspace.facts.operator = Some(name.to_string());
                Ok(())
            }
        }
    }

    fn drop_keyspace(&mut self, id: KeyspaceId) -> Result<(), Misfit> {
        let Some(keyspace) = self.keyspaces.remove(&id) else {
            return misfit!("there is no keyspace {} to drop", id.0);
        };
        for (_, _, facts) in keyspace.tables() {
            self.numbers.remove(&facts.number);
        }
        Ok(())
    }

    fn existing(&mut self, id: KeyspaceId) -> Result<&mut KeyspaceState, Misfit> {
        match self.keyspaces.get_mut(&id) {
            Some(keyspace) => Ok(keyspace),
            None => misfit!("there is no keyspace {}", id.0),
        }
    }

    fn remove(&mut self, table: &TableRemoved) -> Result<(), Misfit> {
        let TableRemoved { keyspace, level, number } = *table;
        let runs = &mut self.existing(keyspace)?.runs;
        let mut of_level = runs.range_mut((level, 0)..=(level, u64::MAX));
        let found = of_level.find_map(|(&key, tables)| {
            let index = tables.iter().position(|facts| facts.number == number)?;
            tables.remove(index);
            Some((key, tables.is_empty()))
        });
        match found {
            Some((key, true)) => drop(runs.remove(&key)),
            Some((_, false)) => {}
            None => return misfit!("table {} is not in level {level}", number.0),
        }
        self.numbers.remove(&number);
        Ok(())
    }

    fn add(&mut self, table: &TableAdded) -> Result<(), Misfit> {
        let TableAdded { keyspace, level, run, facts } = table;
        let number = facts.number;
        if number >= self.next_file {
            return misfit!("table {} is not below the next file number", number.0);
        }
        if facts.seqno_max > self.seqno_lease {
            return misfit!("table {} has seqnos beyond the lease", number.0);
        }
        if facts.smallest > facts.largest {
            return misfit!("the keys of table {} are out of order", number.0);
        }
        if *level > 0 && *run != 0 {
            return misfit!("table {} is in run {run} of level {level}", number.0);
        }
        if !self.numbers.insert(number) {
            return misfit!("table {} is there already", number.0);
        }
        let tables = self.existing(*keyspace)?.runs.entry((*level, *run)).or_default();
        let index = tables.partition_point(|other| other.smallest < facts.smallest);
        let before = index.checked_sub(1).map(|index| &tables[index]);
        let overlapped = before
            .filter(|before| before.largest >= facts.smallest)
            .or(tables.get(index).filter(|after| after.smallest <= facts.largest));
        if let Some(other) = overlapped {
            let other = other.number.0;
            return misfit!("tables {other} and {} of level {level} overlap", number.0);
        }
        tables.insert(index, facts.clone());
        Ok(())
    }

    fn flush(&mut self, id: KeyspaceId, seqno: SeqNo) -> Result<(), Misfit> {
        if seqno > self.seqno_lease {
            return misfit!("keyspace {} is flushed beyond the lease", id.0);
        }
        let keyspace = self.existing(id)?;
        raise(&mut keyspace.flushed_upto, Some(seqno), "the end of what is flushed")
    }
}

/// Sets a number that must not go back.
fn raise<T: Copy + Ord + fmt::Debug>(
    number: &mut T,
    to: Option<T>,
    what: &str,
) -> Result<(), Misfit> {
    match to {
        Some(to) if to < *number => misfit!("{what} goes back from {number:?} to {to:?}"),
        Some(to) => {
            *number = to;
            Ok(())
        }
        None => Ok(()),
    }
}

impl KeyspaceState {
    /// The tables as (level, run, table), sorted so and by key within a run.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (u8, u64, &TableFacts)> {
        self.runs
            .iter()
            .flat_map(|(&(level, run), tables)| tables.iter().map(move |f| (level, run, f)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::manifest::edit::tests::{added, created, facts, removed};

    /// Two keyspaces and five tables.
    pub(crate) fn populated() -> State {
        let mut state = State::default();
        state
            .apply(&Edit {
                keyspaces_created: vec![created(0, "default", None), created(1, "n", Some("c"))],
                tables_added: vec![
                    added(0, 1, facts(10, ["a", "k"], [11, 20])),
                    added(0, 2, facts(11, ["b", "c"], [21, 30])),
                    added(0, 2, facts(12, ["d", "e"], [21, 30])),
                    added(1, 0, facts(14, ["m", "p"], [1, 10])),
                    added(1, 0, facts(13, ["a", "k"], [1, 10])),
                ],
                flushed_upto: vec![(KeyspaceId(0), SeqNo(30))],
                replay_from: Some(Lsn(800)),
                seqno_lease: Some(SeqNo(100)),
                next_file: Some(FileNumber(20)),
                next_keyspace: Some(KeyspaceId(2)),
                ..Edit::default()
            })
            .unwrap();
        state
    }

    fn numbers(state: &State) -> Vec<(u8, u64, u64)> {
        state.tables().map(|(_, level, run, facts)| (level, run, facts.number.0)).collect()
    }

    #[test]
    fn edits_add_up() {
        let mut state = populated();
        assert_eq!(numbers(&state), [(0, 1, 10), (0, 2, 11), (0, 2, 12), (1, 0, 13), (1, 0, 14)]);
        let edit = Edit {
            tables_removed: vec![removed(0, 10), removed(1, 13), removed(1, 14)],
            tables_added: vec![
                added(1, 0, facts(15, ["a", "o"], [1, 20])),
                added(2, 0, facts(14, ["m", "p"], [1, 10])),
            ],
            flushed_upto: vec![(KeyspaceId(0), SeqNo(31)), (KeyspaceId(1), SeqNo(31))],
            replay_from: Some(Lsn(900)),
            clean_close: Some(SeqNo(31)),
            ..Edit::default()
        };
        state.apply(&edit).unwrap();
        assert_eq!(numbers(&state), [(0, 2, 11), (0, 2, 12), (1, 0, 15), (2, 0, 14)]);
        assert!(state.has_table(FileNumber(14)) && !state.has_table(FileNumber(13)));
        assert_eq!(state.clean_close(), Some(SeqNo(31)));
        assert_eq!(state.keyspace(KeyspaceId(1)).unwrap().flushed_upto, SeqNo(31));
        state.apply(&Edit::default()).unwrap();
        assert_eq!(state.clean_close(), None, "holds until the next edit");
    }

    #[test]
    fn voids_add_up_until_they_are_settled() {
        let mut state = populated();
        let void = |from, to| Edit { voids: vec![(Lsn(from), Lsn(to))], ..Edit::default() };
        assert!(state.clone().apply(&void(8, 16)).is_err(), "of no shard");
        let shard = |number| Edit { shard: Some(ShardNumber(number)), ..Edit::default() };
        state.apply(&shard(3)).unwrap();
        assert!(state.clone().apply(&shard(4)).is_err());
        for edit in [void(8, 16), void(16, 24), void(100, 200)] {
            state.apply(&edit).unwrap();
        }
        let is_void = |state: &State, lsn| state.is_void(Lsn(lsn));
        assert_eq!(
            [0, 8, 16, 24, 100, 200].map(|lsn| is_void(&state, lsn)),
            [false, true, true, false, true, false]
        );
        for edit in [void(150, 300), void(300, 299), void(792, 808)] {
            assert!(state.clone().apply(&edit).is_err(), "{edit:?}");
        }
        let mut again = State::default();
        again.apply(&state.to_edit()).unwrap();
        assert_eq!(again.to_edit(), state.to_edit());
        state.apply(&Edit { voids_settled: true, ..void(300, 400) }).unwrap();
        assert!(!is_void(&state, 100) && is_void(&state, 300));
    }

    #[test]
    fn a_state_is_its_snapshot() {
        let state = populated();
        let mut again = State::default();
        again.apply(&state.to_edit()).unwrap();
        assert_eq!(again.to_edit(), state.to_edit());
        let mut closed = state.clone();
        closed.apply(&Edit { clean_close: Some(SeqNo(40)), ..Edit::default() }).unwrap();
        assert_eq!(closed.to_edit(), state.to_edit());
    }

    #[test]
    fn a_dropped_keyspace_takes_its_tables_along_and_its_id_is_not_reused() {
        let mut state = populated();
        let drop = Edit { keyspaces_dropped: vec![KeyspaceId(0)], ..Edit::default() };
        state.apply(&drop).unwrap();
        assert_eq!(state.tables().count(), 0);
        assert!(!state.has_table(FileNumber(10)));
        assert!(state.apply(&drop).is_err());
        let create = |id: u32, next: u32| Edit {
            keyspaces_created: vec![created(id, "default", None)],
            next_keyspace: Some(KeyspaceId(next)),
            ..Edit::default()
        };
        assert!(state.clone().apply(&create(0, 2)).is_err());
        assert!(state.clone().apply(&create(0, 3)).is_err());
        state.apply(&create(2, 3)).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refuse = |edit: Edit, why: &str| {
            let misfit = populated().apply(&edit).unwrap_err();
            assert_eq!(misfit.0, why);
        };
        let add = |level, run, facts| Edit {
            tables_added: vec![added(level, run, facts)],
            ..Edit::default()
        };
        let remove = |level, number| Edit {
            tables_removed: vec![removed(level, number)],
            ..Edit::default()
        };
        let create = |id, name| Edit {
            keyspaces_created: vec![created(id, name, None)],
            next_keyspace: Some(KeyspaceId(3)),
            ..Edit::default()
        };
        refuse(add(2, 0, facts(10, ["a", "b"], [1, 2])), "table 10 is there already");
        refuse(
            add(2, 0, facts(20, ["a", "b"], [1, 2])),
            "table 20 is not below the next file number",
        );
        refuse(add(2, 0, facts(15, ["a", "b"], [1, 101])), "table 15 has seqnos beyond the lease");
        refuse(add(2, 0, facts(15, ["b", "a"], [1, 2])), "the keys of table 15 are out of order");
        refuse(add(1, 1, facts(15, ["z", "z"], [1, 2])), "table 15 is in run 1 of level 1");
        for keys in [["k", "l"], ["l", "m"], ["0", "a"], ["b", "c"], ["a", "z"], ["p", "z"]] {
            let misfit = populated().apply(&add(1, 0, facts(15, keys, [1, 2]))).unwrap_err();
            assert!(misfit.0.contains("overlap"), "{keys:?}: {misfit}");
        }
        populated().apply(&add(1, 0, facts(15, ["l", "l"], [1, 2]))).unwrap();
        refuse(remove(0, 13), "table 13 is not in level 0");
        refuse(remove(1, 15), "table 15 is not in level 1");
        refuse(create(1, "x"), "keyspace id 1 was used before");
        refuse(create(3, "x"), "keyspace id 3 is not below the next id");
        refuse(create(2, ""), "a keyspace cannot be named \"\", or is already");
        refuse(create(2, "n"), "a keyspace cannot be named \"n\", or is already");
        let drop = Edit { keyspaces_dropped: vec![KeyspaceId(7)], ..Edit::default() };
        refuse(drop, "there is no keyspace 7 to drop");
        let flush = |id, seqno| Edit {
            flushed_upto: vec![(KeyspaceId(id), SeqNo(seqno))],
            ..Edit::default()
        };
        refuse(flush(7, 1), "there is no keyspace 7");
        refuse(flush(0, 101), "keyspace 0 is flushed beyond the lease");
        refuse(flush(0, 29), "the end of what is flushed goes back from SeqNo(30) to SeqNo(29)");
        let back = Edit { replay_from: Some(Lsn(799)), ..Edit::default() };
        refuse(back, "the start of the replay goes back from Lsn(800) to Lsn(799)");
        let back = Edit { seqno_lease: Some(SeqNo(99)), ..Edit::default() };
        refuse(back, "the lease of seqnos goes back from SeqNo(100) to SeqNo(99)");
        let back = Edit { next_file: Some(FileNumber(19)), ..Edit::default() };
        refuse(back, "the next file number goes back from FileNumber(20) to FileNumber(19)");
        let back = Edit { next_keyspace: Some(KeyspaceId(1)), ..Edit::default() };
        refuse(back, "the next keyspace id goes back from KeyspaceId(2) to KeyspaceId(1)");
        let close = Edit { clean_close: Some(SeqNo(101)), ..Edit::default() };
        refuse(close, "closed at a seqno beyond the lease");
        let mut elsewhere = add(0, 1, facts(15, ["a", "b"], [1, 2]));
        elsewhere.tables_added[0].keyspace = KeyspaceId(9);
        refuse(elsewhere, "there is no keyspace 9");
    }
}
