//! A table as text: its facts, sections, blocks and entries, for people and for golden tests.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use crate::cursor::Cursor as _;
use crate::error::{Error, Result};
use crate::file::{FileKind, FileNumber};
use crate::fs::Fs;
use crate::key::EntryName;
use crate::options::ReadMode;
use crate::table::Origin;
use crate::table::cache::BlockCache;
use crate::table::reader::{Source, Table};

/// Values longer than this are cut in the text.
const VALUE_BYTES_SHOWN: usize = 64;

/// Writes the table of this number in `dir` as text, up to the first damage.
pub(crate) fn dump(fs: &dyn Fs, dir: &Path, number: FileNumber, out: &mut dyn Write) -> Result<()> {
    let cache = BlockCache::new(0);
    let table = Table::open_alone(fs, dir, number, ReadMode::Pread, &cache)?;
    let path = FileKind::Table.path(dir, number);
    let mut lines = Lines { out, path: &path };
    let facts = table.facts();
    lines.line(format_args!(
        "table {} id {:?} bytes {} raw {}\n\
         entries {} tombstones {} operands {} seqnos {}..={}\n\
         keys \"{}\" ..= \"{}\"",
        facts.number.0,
        facts.id,
        facts.bytes,
        facts.raw_bytes,
        facts.entries,
        facts.tombstones,
        facts.operands,
        facts.seqno_min.0,
        facts.seqno_max.0,
        facts.smallest.escape_ascii(),
        facts.largest.escape_ascii(),
    ))?;
    for section in &table.layout().sections {
        let (name, offset, bytes) = (section.name(), section.offset, section.bytes);
        lines.line(format_args!("{offset:#08x} section {name} bytes {bytes}"))?;
    }
    if let Some(filter) = table.read_filter(Source::Pread)? {
        lines.line(format_args!("filter {}", filter.describe()))?;
    }
    if let Some(Origin { keyspace, name, operator, inputs }) = table.read_origin()? {
        let operator = operator.map_or(String::new(), |name| format!(" operator {name:?}"));
        let inputs: String = inputs.iter().map(|number| format!(" {}", number.0)).collect();
        lines.line(format_args!("origin {} {name:?}{operator} inputs{inputs}", keyspace.0))?;
    }
    dump_blocks(&table, &mut lines)
}

fn dump_blocks(table: &Arc<Table>, lines: &mut Lines<'_>) -> Result<()> {
    let mut cursor = table.verifying_cursor();
    let mut block = None;
    cursor.seek_to_first()?;
    while cursor.valid() {
        if block != Some(cursor.ordinal()) {
            block = Some(cursor.ordinal());
            let (ordinal, offset) = (cursor.ordinal(), cursor.offset());
            lines.line(format_args!("{offset:#08x} block {ordinal}"))?;
        }
        let name = EntryName(cursor.key(), cursor.seqno(), cursor.kind());
        let value = cursor.value().bytes;
        let shown = value[..value.len().min(VALUE_BYTES_SHOWN)].escape_ascii();
        if value.len() > VALUE_BYTES_SHOWN {
            lines.line(format_args!("  {name} = \"{shown}\"... {} bytes", value.len()))?;
        } else {
            lines.line(format_args!("  {name} = \"{shown}\""))?;
        }
        cursor.next()?;
    }
    Ok(())
}

/// Where the text goes.
struct Lines<'a> {
    out: &'a mut dyn Write,
    /// The table, for errors.
    path: &'a Path,
}

impl Lines<'_> {
    fn line(&mut self, text: std::fmt::Arguments<'_>) -> Result<()> {
        writeln!(self.out, "{text}").map_err(|e| Error::io("write the text of", self.path, e))
    }
}
