//! What the fuzz targets under `fuzz/` do with their bytes. Not an interface.
//!
//! - `decoders`: a target for every decoder: bytes are refused or read, never a panic, a hang or an
//!   answer that contradicts another.
//! - `operations`: the bytes choose operations; a map says what must be read.
//! - `crash`: the bytes choose operations, the moment of a crash and what survives it.
//!
//! The bodies live here, and not beside libFuzzer, so that the tests replay every input that was
//! committed (`tests/it/corpus.rs`) without it. A violation is a panic.

mod crash;
mod decoders;
mod operations;

/// A target: what it does with its bytes.
type Target = fn(&[u8]);

/// Every target: its name, and what it does.
pub const TARGETS: &[(&str, Target)] = &[
    ("log", decoders::log),
    ("batch", decoders::batch),
    ("block", decoders::block),
    ("table", decoders::table),
    ("edit", decoders::edit),
    ("manifest", decoders::manifest),
    ("filter", decoders::filter),
    ("footer", decoders::footer),
    ("operations", operations::run),
    ("crash", crash::run),
];

/// Runs the target of this name.
///
/// # Panics
/// On a violation, and if there is no such target.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(target, _)| *target == name);
    let (_, run) = target.unwrap_or_else(|| panic!("no target is named {name}"));
    run(bytes);
}

pub use crate::fuzz::decoders::seeds;

/// Takes choices from the front of the input; when it is used up, all are zero.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn u8(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    /// At most so many bytes, as one says.
    fn bytes(&mut self, most: usize) -> &'a [u8] {
        let len = usize::from(self.u8()) % (most + 1);
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
