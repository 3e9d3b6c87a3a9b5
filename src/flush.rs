//! Flush: frozen memtables of one keyspace become a run of level 0.
//!
//! Nothing here touches the manifest or a view; the outcome is handed back. Several frozen
//! memtables are merged into one run, oldest first in the order of their sequence numbers, and
//! folded on the way: of versions that no snapshot tells apart only the newest is written.

use std::sync::Arc;

use crate::compaction::run::{Cuts, Output, write_tables};
use crate::compaction::survive::{Below, Survivors};
use crate::cursor::Cursor;
use crate::cursor::merge::MergeCursor;
use crate::cursor::upto::Upto;
use crate::error::Result;
use crate::key::SeqNo;
use crate::memtable::Memtable;
use crate::operator::MergeOperator;
use crate::table::TableFacts;

/// Writes the entries of `memtables` up to the number `upto` that survive as tables, synced; their directory is not.
///
/// # Errors
/// From the file system; the tables begun are removed then.
pub(crate) fn flush<'a>(
    memtables: impl Iterator<Item = &'a Arc<Memtable>>,
    upto: SeqNo,
    snapshots: Vec<SeqNo>,
    operator: Option<Arc<dyn MergeOperator>>,
    cuts: Cuts,
    output: &Output<'_>,
) -> Result<Vec<TableFacts>> {
    let entries = |memtable: &Arc<Memtable>| Upto::new(memtable.cursor(), upto);
    let merged = MergeCursor::new(memtables.map(entries).collect());
    flush_sorted(merged, snapshots, operator, cuts, output)
}

/// Writes the entries of a cursor that survive as tables, as [`flush`] does.
///
/// # Errors
/// As [`flush`].
pub(crate) fn flush_sorted(
    entries: impl Cursor,
    snapshots: Vec<SeqNo>,
    operator: Option<Arc<dyn MergeOperator>>,
    cuts: Cuts,
    output: &Output<'_>,
) -> Result<Vec<TableFacts>> {
    let mut survivors = Survivors::new(entries, snapshots, Below::anything(), operator)?;
    write_tables(&mut survivors, cuts, output)
}
