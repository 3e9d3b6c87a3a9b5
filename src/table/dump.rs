//! A table as text: its facts, sections, blocks and entries, for people and for golden tests.

use std::fmt::Write as _;
use std::path::Path;

use crate::cursor::Cursor as _;
use crate::error::Result;
use crate::file::FileNumber;
use crate::fs::Fs;
use crate::key::EntryName;
use crate::options::ReadMode;
use crate::table::cache::BlockCache;
use crate::table::reader::{Source, Table};

/// Values longer than this are cut in the text.
const VALUE_BYTES_SHOWN: usize = 64;

/// Describes the table of this number in `dir`.
pub(crate) fn dump(fs: &dyn Fs, dir: &Path, number: FileNumber) -> Result<String> {
    let cache = BlockCache::new(0);
    let table = Table::open_alone(fs, dir, number, ReadMode::Pread, &cache)?;
    let facts = table.facts();
    let mut out = format!(
        "table {} id {:?} bytes {} raw {}\n\
         entries {} tombstones {} operands {} seqnos {}..={}\n\
         keys \"{}\" ..= \"{}\"\n",
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
    );
    for section in &table.layout().sections {
        let (name, offset, bytes) = (section.name(), section.offset, section.bytes);
        line(&mut out, format_args!("section {name} at {offset} bytes {bytes}"));
    }
    if let Some(filter) = table.read_filter(Source::Pread)? {
        line(&mut out, format_args!("filter {}", filter.describe()));
    }
    dump_blocks(&table, &mut out)?;
    Ok(out)
}

fn dump_blocks(table: &std::sync::Arc<Table>, out: &mut String) -> Result<()> {
    let mut cursor = table.compaction_cursor();
    let mut block = None;
    cursor.seek_to_first()?;
    while cursor.valid() {
        if block != Some(cursor.ordinal()) {
            block = Some(cursor.ordinal());
            let (ordinal, offset) = (cursor.ordinal(), cursor.offset());
            line(out, format_args!("block {ordinal} at {offset}"));
        }
        let name = EntryName(cursor.key(), cursor.seqno(), cursor.kind());
        let value = cursor.value().bytes;
        let shown = value[..value.len().min(VALUE_BYTES_SHOWN)].escape_ascii();
        if value.len() > VALUE_BYTES_SHOWN {
            line(out, format_args!("  {name} = \"{shown}\"... {} bytes", value.len()));
        } else {
            line(out, format_args!("  {name} = \"{shown}\""));
        }
        cursor.next()?;
    }
    Ok(())
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("a String takes any text");
}
