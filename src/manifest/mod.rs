//! The manifest: the log of edits to the version, and the file CURRENT that names the live one.
//!
//! - `edit`: what an edit says, and its bytes.
//! - `state`: what all edits so far add up to.
//! - `writer`: begins a manifest and appends to it.
//! - `reader`: finds the live manifest and adds up its edits.
//! - `salvage`: what damaged manifests still say.
//!
//! ```text
//! manifest-000004   file header of 128 bytes (file.rs), then records (record/mod.rs) of kind 2.
//!                   The first is a snapshot of the state, the others each change it. Their
//!                   numbers count from 0. LSNs are offsets behind the header; copied and
//!                   durable distance are 0, since a record is appended only once the one
//!                   before it is synced.
//!
//! CURRENT           "manifest-000004 1a2b3c4d\n": the live manifest's name, and the CRC-32 of
//!                   that name bound to (id of that manifest, offset 0), in hexadecimal. A
//!                   flipped bit cannot make it name another manifest, and it cannot name one
//!                   of another database.
//! ```
//!
//! # What a crash can leave
//! - A last edit that is torn: its append was never acknowledged. It is cut.
//! - A manifest that CURRENT does not name: it was being begun. It is ignored.
//! - At the very first open, a manifest and no CURRENT: the database does not exist yet. It has
//!   no tables and no logs then, because those are created only once CURRENT is durable. A
//!   directory that has any, and no CURRENT, has lost it: that is corruption, never an empty
//!   database.
//!
//! Anything else is corruption: CURRENT with other bytes, or naming a manifest that is missing;
//! a manifest whose header or snapshot is bad (both were durable before CURRENT named it); a bad
//! edit with a valid record after it; an edit that does not fit the state.
//!
//! A manifest whose tail is torn must not be appended to, so open always begins a new one.

pub(crate) mod edit;
pub(crate) mod reader;
pub(crate) mod salvage;
pub(crate) mod state;
pub(crate) mod writer;

use crate::checksum::Checksum;
use crate::file::{FileId, FileKind, FileNumber};

/// What CURRENT says if this manifest is the live one.
fn current_line(number: FileNumber, id: FileId) -> String {
    let name = FileKind::Manifest.name(number);
    let checksum = Checksum::new(id).of(0, name.as_bytes());
    format!("{name} {checksum:08x}\n")
}
