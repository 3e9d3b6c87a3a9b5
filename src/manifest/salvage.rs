//! What manifests still say of which not every edit can be read, for a repair.
//!
//! 1. If CURRENT and the manifest that it names are whole, their state is.
//! 2. If only CURRENT is lost, the manifest of the largest number is the live one, or one that was
//!    about to be and says the same; if it is whole, its state is trusted. Not if CURRENT names a
//!    larger number: then the live one is lost, and what is left is old.
//! 3. Otherwise every edit that can be read, of every manifest in the order of their numbers, is
//!    taken for what it says by itself ([`Known`]): a keyspace exists, a table was removed. An edit
//!    in between may be missing, so what follows is hints and not a state.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::file::{CURRENT, FileHeader, FileKind, FileNumber, Lsn, parse_name};
use crate::fs::Fs;
use crate::key::{KeyspaceId, SeqNo};
use crate::loss::Loss;
use crate::manifest::edit::{Edit, KeyspaceFacts};
use crate::manifest::reader::{CURRENT_BYTES_MAX, load, load_one, named_manifest, read};
use crate::manifest::state::State;
use crate::record::RecordKind;
use crate::record::reader::{Reader, Stop};
use crate::table::TableFacts;

/// What is left of the manifests of a directory.
#[derive(Debug)]
pub(crate) struct Remains {
    /// The state of the database, if it is known for certain.
    pub state: Option<State>,
    /// What single edits say, if it is not.
    pub known: Known,
    /// What of CURRENT and the manifests is damaged; empty if nothing is.
    pub losses: Vec<Loss>,
}

/// What edits say by themselves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Keyspaces that exist.
    pub keyspaces: BTreeMap<KeyspaceId, KeyspaceFacts>,
    /// Keyspaces that were dropped.
    pub dropped: BTreeSet<KeyspaceId>,
    /// Tables that are in use, and their keyspaces.
    pub tables: BTreeMap<FileNumber, (KeyspaceId, TableFacts)>,
    /// Tables that are not in use any more.
    pub obsolete: BTreeSet<FileNumber>,
    /// Everything up to this seqno is in tables.
    pub flushed_upto: BTreeMap<KeyspaceId, SeqNo>,
    /// No seqno beyond it had been given out when this was written.
    pub seqno_lease: SeqNo,
    /// No file number from this one on had been.
    pub next_file: FileNumber,
    /// No keyspace id from this one on had been.
    pub next_keyspace: KeyspaceId,
}

/// Reads CURRENT and the manifests of `dir` as far as they can be read.
///
/// # Errors
/// `Unsupported` if a newer version wrote them, and those of the file system.
pub(crate) fn salvage(fs: &Arc<dyn Fs>, dir: &Path) -> Result<Remains> {
    let mut losses = Vec::new();
    let lost = match load(fs, dir) {
        Ok(Some(loaded)) => {
            return Ok(Remains { state: Some(loaded.state), known: Known::default(), losses });
        }
        Ok(None) => Loss::new(dir.join(CURRENT), 0, "the name of the live manifest: no such file"),
        Err(error) => as_loss(error)?,
    };
    losses.push(lost);
    let numbers = manifests(fs, dir)?;
    if let Some(&newest) = numbers.last()
        && named(fs, dir).is_none_or(|named| named <= newest)
    {
        match load_one(fs, dir, newest) {
            Ok(state) => {
                return Ok(Remains { state: Some(state), known: Known::default(), losses });
            }
            Err(error) => {
                let lost = as_loss(error)?;
                if !losses.contains(&lost) {
                    losses.push(lost);
                }
            }
        }
    }
    let mut known = Known::default();
    for number in numbers {
        absorb_manifest(fs, dir, number, &mut known)?;
    }
    Ok(Remains { state: None, known, losses })
}

/// The loss that an error tells of; an error of another kind as it is.
pub(crate) fn as_loss(error: Error) -> Result<Loss> {
    match error.kind() {
        ErrorKind::Corruption { file, offset, expected, found } => {
            let what = format!("expected {expected}, found {found}");
            Ok(Loss::new(file.clone(), *offset, what))
        }
        _ => Err(error),
    }
}

/// Numbers of the manifests, ascending.
fn manifests(fs: &Arc<dyn Fs>, dir: &Path) -> Result<Vec<FileNumber>> {
    let names = fs.list(dir).map_err(|e| Error::io("list", dir, e))?;
    let parsed = names.iter().filter_map(|name| parse_name(name));
    let manifests = parsed.filter(|(kind, _)| *kind == FileKind::Manifest);
    let mut numbers: Vec<_> = manifests.map(|(_, number)| number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The manifest that CURRENT names, checked or not.
fn named(fs: &Arc<dyn Fs>, dir: &Path) -> Option<FileNumber> {
    named_manifest(&read(fs, &dir.join(CURRENT), CURRENT_BYTES_MAX).ok()?)
}

fn absorb_manifest(
    fs: &Arc<dyn Fs>,
    dir: &Path,
    number: FileNumber,
    known: &mut Known,
) -> Result<()> {
    let path = FileKind::Manifest.path(dir, number);
    let bytes = read(fs, &path, u64::MAX)?;
    let header = match FileHeader::decode(&bytes, FileKind::Manifest, &path) {
        Ok(header) if header.number == number => header,
        Err(error) if !error.is_corruption() => return Err(error),
        // Its checksums are bound to the id in the header: no record can be told from garbage.
        _ => return Ok(()),
    };
    let mut reader = Reader::new(&header, &bytes, Lsn(0));
    loop {
        match reader.next() {
            Ok(record) if record.kind == RecordKind::Edit => {
                if let Ok(edit) = Edit::decode(record.payload) {
                    known.absorb(edit, record.seqno == SeqNo::ZERO);
                }
            }
            Ok(_) => {}
            Err(Stop::Bad(_)) if reader.skip() => {}
            Err(_) => return Ok(()),
        }
    }
}

impl Known {
    /// Takes over what `edit` says; `snapshot` if it says everything.
    fn absorb(&mut self, edit: Edit, snapshot: bool) {
        if snapshot {
            self.obsolete.extend(std::mem::take(&mut self.tables).into_keys());
            self.dropped.extend(std::mem::take(&mut self.keyspaces).into_keys());
        }
        for facts in edit.keyspaces_created {
            self.dropped.remove(&facts.id);
            self.keyspaces.insert(facts.id, facts);
        }
        for (id, operator) in edit.operators_given {
            if let Some(facts) = self.keyspaces.get_mut(&id) {
                facts.operator = Some(operator);
            }
        }
        for id in edit.keyspaces_dropped {
            self.keyspaces.remove(&id);
            self.dropped.insert(id);
        }
        for table in edit.tables_removed {
            self.tables.remove(&table.number);
            self.obsolete.insert(table.number);
        }
        for table in edit.tables_added {
            // One that changes its level is removed and added by the same edit.
            self.obsolete.remove(&table.facts.number);
            self.tables.insert(table.facts.number, (table.keyspace, table.facts));
        }
        for (id, seqno) in edit.flushed_upto {
            let upto = self.flushed_upto.entry(id).or_default();
            *upto = seqno.max(*upto);
        }
        self.seqno_lease = self.seqno_lease.max(edit.seqno_lease.unwrap_or_default());
        self.next_file = self.next_file.max(edit.next_file.unwrap_or_default());
        self.next_keyspace = self.next_keyspace.max(edit.next_keyspace.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::edit::tests::{added, created, facts, removed};

    #[test]
    fn hints_follow_what_edits_say() {
        let mut known = Known::default();
        let first = Edit {
            keyspaces_created: vec![created(0, "default", None), created(1, "old", None)],
            tables_added: vec![
                added(0, 1, facts(5, ["a", "b"], [1, 2])),
                added(0, 2, facts(6, ["a", "b"], [3, 4])),
            ],
            next_keyspace: Some(KeyspaceId(2)),
            flushed_upto: vec![(KeyspaceId(0), SeqNo(4))],
            ..Edit::default()
        };
        known.absorb(first, true);
        let moved = Edit {
            tables_removed: vec![removed(0, 5), removed(0, 6)],
            tables_added: vec![added(1, 0, facts(6, ["a", "b"], [3, 4]))],
            operators_given: vec![(KeyspaceId(0), "max".into())],
            flushed_upto: vec![(KeyspaceId(0), SeqNo(3))],
            ..Edit::default()
        };
        known.absorb(moved, false);
        assert_eq!(known.obsolete, BTreeSet::from([FileNumber(5)]));
        assert_eq!(known.keyspaces[&KeyspaceId(0)].operator.as_deref(), Some("max"));
        assert_eq!(known.flushed_upto[&KeyspaceId(0)], SeqNo(4));
        let snapshot =
            Edit { keyspaces_created: vec![created(0, "default", None)], ..Edit::default() };
        known.absorb(snapshot, true);
        assert_eq!(known.dropped, BTreeSet::from([KeyspaceId(1)]));
        assert!(known.tables.is_empty() && known.obsolete.contains(&FileNumber(6)));
        assert_eq!(known.next_keyspace, KeyspaceId(2));
    }
}
