//! Finds the live manifest of a directory and adds up its edits.
//!
//! What the parts found mean is said in the module's comment (mod.rs).

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::file::{CURRENT, FileHeader, FileKind, FileNumber, Lsn, parse_name};
use crate::fs::{self, Fs};
use crate::manifest::current_line;
use crate::manifest::edit::Edit;
use crate::manifest::state::State;
use crate::record::RecordKind;
use crate::record::reader::{Reader, Record, Stop, Tail, offset_of};

/// CURRENT is a line of some 24 bytes; numbers have up to 20 digits.
pub(super) const CURRENT_BYTES_MAX: u64 = 64;

/// The live manifest.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// What its edits add up to.
    pub state: State,
    /// Its number.
    pub number: FileNumber,
    /// Whether its last edit was torn, and cut.
    pub tail: Tail,
    /// Length of its valid part.
    pub bytes: u64,
}

/// The edits of a manifest, added up.
#[derive(Debug)]
struct Sum {
    state: State,
    edits: u64,
    tail: Tail,
    bytes: u64,
}

/// Reads the live manifest of `dir`; `None` if there is no database yet.
///
/// # Errors
/// `Corruption` where a plain crash does not explain what is found, `Unsupported` if a newer
/// version wrote it, and those of the file system.
pub(crate) fn load(fs: &Arc<dyn Fs>, dir: &Path) -> Result<Option<Loaded>> {
    let names = match fs.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(|e| Error::io("list", dir, e))?,
    };
    if !names.iter().any(|name| name == CURRENT) {
        refuse_if_begun(fs, dir, &names)?;
        return Ok(None);
    }
    let current = dir.join(CURRENT);
    let line = read(fs, &current, CURRENT_BYTES_MAX)?;
    let bad_current = |expected: &str| {
        let found = format!("{:?}", line.escape_ascii().to_string());
        Error::corruption(&current, 0, expected, found)
    };
    let number = named_manifest(&line).ok_or_else(|| bad_current("the name of a manifest"))?;
    let name = FileKind::Manifest.name(number);
    if !names.contains(&name) {
        return Err(bad_current("the name of a manifest that exists"));
    }
    let path = dir.join(name);
    let bytes = read(fs, &path, u64::MAX)?;
    let header = read_header(&bytes, number, &path)?;
    if line != current_line(number, header.id).as_bytes() {
        return Err(bad_current(&format!("{:?}", current_line(number, header.id))));
    }
    let Sum { state, tail, bytes, .. } = add_up(&header, &bytes, &path)?;
    Ok(Some(Loaded { state, number, tail, bytes }))
}

/// Reads the manifest of this number, live or not.
///
/// # Errors
/// As [`load`].
pub(super) fn load_one(fs: &Arc<dyn Fs>, dir: &Path, number: FileNumber) -> Result<State> {
    let path = FileKind::Manifest.path(dir, number);
    let bytes = read(fs, &path, u64::MAX)?;
    let header = read_header(&bytes, number, &path)?;
    Ok(add_up(&header, &bytes, &path)?.state)
}

/// Fails if a directory without CURRENT had one.
fn refuse_if_begun(fs: &Arc<dyn Fs>, dir: &Path, names: &[String]) -> Result<()> {
    let lost = |found: String| {
        let expected = "the name of the live manifest";
        Err(Error::corruption(dir.join(CURRENT), 0, expected, found))
    };
    for name in names {
        match parse_name(name) {
            Some((FileKind::Log | FileKind::Table, _)) => {
                return lost(format!("no such file, but {name}"));
            }
            Some((FileKind::Manifest, number)) if has_edits(fs, &dir.join(name), number)? => {
                return lost(format!("no such file, but {name} with edits"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// True if a manifest has more than the snapshot of an empty database, and so was live once.
fn has_edits(fs: &Arc<dyn Fs>, path: &Path, number: FileNumber) -> Result<bool> {
    let bytes = read(fs, path, u64::MAX)?;
    let sum = read_header(&bytes, number, path).and_then(|header| add_up(&header, &bytes, path));
    match sum {
        Ok(sum) => Ok(sum.edits > 1 || sum.state.tables().next().is_some()),
        // Torn while it was being begun.
        Err(error) if error.is_corruption() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The manifest that a line of CURRENT names, if it begins as one should.
pub(super) fn named_manifest(line: &[u8]) -> Option<FileNumber> {
    let (name, _) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    match parse_name(name)? {
        (FileKind::Manifest, number) => Some(number),
        _ => None,
    }
}

/// The whole of a file that is at most so long.
pub(super) fn read(fs: &Arc<dyn Fs>, path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let file = fs.open(path).map_err(|e| Error::io("open", path, e))?;
    let len = file.len().map_err(|e| Error::io("measure", path, e))?;
    if !fs::length_fits("current.bytes", len <= bytes_max) {
        let expected = format!("at most {bytes_max} bytes");
        return Err(Error::corruption(path, 0, expected, format!("{len}")));
    }
    fs::read_first(&*file, len).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            Error::corruption(path, 0, format!("{len} bytes, as its length says"), "fewer")
        }
        _ => Error::io("read", path, error),
    })
}

fn read_header(bytes: &[u8], number: FileNumber, path: &Path) -> Result<FileHeader> {
    let header = FileHeader::decode(bytes, FileKind::Manifest, path)?;
    if header.number != number {
        let found = format!("{:?}", header.number);
        return Err(Error::corruption(path, 32, format!("{number:?}"), found));
    }
    Ok(header)
}

/// Adds up the edits of a manifest.
fn add_up(header: &FileHeader, bytes: &[u8], path: &Path) -> Result<Sum> {
    let mut reader = Reader::new(header, bytes, Lsn(0));
    let mut state = State::default();
    let mut edits = 0;
    let stop = loop {
        match reader.next() {
            Ok(record) => add(&mut state, &record, edits, header, path)?,
            // Nobody ends a manifest, nor allocates one ahead: what follows was torn.
            Err(stop @ (Stop::Zeros | Stop::End)) => break Stop::Bad(stop.into_fault()),
            Err(stop) => break stop,
        }
        edits += 1;
    };
    // The snapshot was durable before CURRENT named the file.
    let durable = Lsn(1);
    let tail = reader.tail(stop, path, durable)?;
    Ok(Sum { state, edits, tail, bytes: reader.offset() })
}

/// Applies the edit of a record, which must be the one of this number.
fn add(
    state: &mut State,
    record: &Record<'_>,
    number: u64,
    header: &FileHeader,
    path: &Path,
) -> Result<()> {
    let corruption = |expected: &str, found: String| {
        Error::corruption(path, offset_of(header, record.lsn), expected, found)
    };
    if record.kind != RecordKind::Edit || record.seqno.0 != number {
        let found = format!("{:?} {}", record.kind, record.seqno.0);
        return Err(corruption(&format!("edit {number}"), found));
    }
    let edit = Edit::decode(record.payload);
    let edit = edit.map_err(|error| corruption("an edit", error.0.to_string()))?;
    state.apply(&edit).map_err(|misfit| corruption("an edit that fits", misfit.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::Checksum;
    use crate::key::SeqNo;
    use crate::manifest::state::tests::populated;
    use crate::manifest::writer::ManifestWriter;
    use crate::manifest::writer::tests::{TracingFs, dir, some_edit};
    use crate::record::{RecordHeader, put_record};

    const MANIFEST: &str = "manifest-000004";

    /// A directory with a manifest of a snapshot and three edits; the state after each record,
    /// and where each record ends.
    fn database() -> (TracingFs, Vec<State>, Vec<u64>) {
        let fs = TracingFs::default();
        let mut states = vec![populated()];
        let mut writer =
            ManifestWriter::create(&fs.shared(), dir(), FileNumber(4), &states[0]).unwrap();
        let mut ends = vec![writer.bytes()];
        for n in 0..3 {
            let mut state = states[states.len() - 1].clone();
            state.apply(&some_edit(n)).unwrap();
            writer.append(&some_edit(n)).unwrap();
            states.push(state);
            ends.push(writer.bytes());
        }
        (fs, states, ends)
    }

    fn loaded(fs: &TracingFs) -> Result<Option<Loaded>> {
        load(&fs.shared(), dir())
    }

    fn assert_corrupt(fs: &TracingFs, text: &str) {
        let error = loaded(fs).unwrap_err();
        assert!(error.is_corruption() && error.to_string().contains(text), "{error}");
    }

    #[test]
    fn a_manifest_is_read_back() {
        let (fs, states, ends) = database();
        let found = loaded(&fs).unwrap().unwrap();
        assert_eq!((&found.state, found.tail), (&states[3], Tail::End));
        assert_eq!((found.number, found.bytes), (FileNumber(4), ends[3]));
        let close = Edit { clean_close: Some(SeqNo(50)), ..Edit::default() };
        let mut writer =
            ManifestWriter::create(&fs.shared(), dir(), FileNumber(21), &found.state).unwrap();
        writer.append(&close).unwrap();
        let found = loaded(&fs).unwrap().unwrap();
        assert_eq!((found.number, found.state.clean_close()), (FileNumber(21), Some(SeqNo(50))));
    }

    #[test]
    fn every_truncation_is_a_prefix_or_corruption() {
        let (fs, states, ends) = database();
        let whole = fs.get(MANIFEST).unwrap();
        for len in 0..whole.len() {
            fs.set(MANIFEST, &whole[..len]);
            let records = ends.iter().filter(|&&end| end <= len as u64).count();
            match loaded(&fs) {
                Ok(found) => {
                    let found = found.unwrap();
                    assert_eq!(found.state, states[records - 1], "length {len}");
                    assert_eq!(found.bytes, ends[records - 1]);
                    assert_eq!(found.tail == Tail::End, len as u64 == found.bytes);
                }
                Err(error) => assert!(records == 0 && error.is_corruption(), "{len}: {error}"),
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_corruption_but_in_the_last_edit() {
        let (fs, states, ends) = database();
        let whole = fs.get(MANIFEST).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs.set(MANIFEST, &bytes);
            match loaded(&fs) {
                Ok(found) => {
                    let found = found.unwrap();
                    assert!(bit as u64 / 8 >= ends[2], "bit {bit}");
                    assert_eq!(found.state, states[2]);
                    assert!(matches!(found.tail, Tail::Torn { .. }));
                }
                Err(error) => {
                    assert!(error.is_corruption() && (bit as u64 / 8) < ends[2], "{bit}: {error}");
                }
            }
        }
    }

    #[test]
    fn a_torn_append_is_cut() {
        let (fs, states, ends) = database();
        let whole = fs.get(MANIFEST).unwrap();
        for tail in [&[0; 8][..], &[0; 100], &[7; 100]] {
            fs.set(MANIFEST, &[&whole, tail].concat());
            let found = loaded(&fs).unwrap().unwrap();
            assert_eq!((&found.state, found.bytes), (&states[3], ends[3]));
            assert!(matches!(found.tail, Tail::Torn { at, .. } if at.0 + 128 == ends[3]));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_of_current_is_corruption() {
        let (fs, states, _) = database();
        let whole = fs.get(CURRENT).unwrap();
        // Others that CURRENT might be made to name.
        for number in [0, 5, 6, 12, 14, 20, 24] {
            fs.set(&FileKind::Manifest.name(FileNumber(number)), &fs.get(MANIFEST).unwrap());
        }
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs.set(CURRENT, &bytes);
            assert!(loaded(&fs).unwrap_err().is_corruption(), "bit {bit}");
        }
        for len in 0..whole.len() {
            fs.set(CURRENT, &whole[..len]);
            assert!(loaded(&fs).unwrap_err().is_corruption(), "length {len}");
        }
        fs.set(CURRENT, &[b'x'; 100]);
        assert_corrupt(&fs, "at most 64 bytes");
        fs.set(CURRENT, &whole);
        assert_eq!(loaded(&fs).unwrap().unwrap().state, states[3]);
    }

    #[test]
    fn a_missing_manifest_and_one_of_another_database_are_corruption() {
        let (fs, ..) = database();
        let (other, ..) = database();
        let writer = ManifestWriter::create(&other.shared(), dir(), FileNumber(5), &populated());
        drop(writer.unwrap());
        let own = fs.get(MANIFEST).unwrap();
        fs.delete(MANIFEST);
        assert_corrupt(&fs, "the name of a manifest that exists");
        fs.set(MANIFEST, &other.get("manifest-000005").unwrap());
        assert_corrupt(&fs, "FileNumber(4)");
        fs.set(MANIFEST, &own);
        fs.set(CURRENT, b"manifest-000004 00000000\n");
        assert_corrupt(&fs, "CURRENT");
    }

    #[test]
    fn a_directory_without_current_is_fresh_only_if_nothing_was_ever_in_it() {
        let fs = TracingFs::default();
        assert!(loaded(&fs).unwrap().is_none());
        for foreign in ["notes.txt", "7.log", "LOCK", "CURRENT.tmp", "x.table"] {
            fs.set(foreign, b"?");
            assert!(loaded(&fs).unwrap().is_none(), "{foreign}");
        }
        // A crash before the first CURRENT leaves the first manifest, whole or torn.
        let writer = ManifestWriter::create(&fs.shared(), dir(), FileNumber(1), &State::default());
        drop(writer.unwrap());
        fs.delete(CURRENT);
        let whole = fs.get("manifest-000001").unwrap();
        for len in 0..=whole.len() {
            fs.set("manifest-000001", &whole[..len]);
            assert!(loaded(&fs).unwrap().is_none(), "length {len}");
        }
        for ours in ["000007.log", "000008.table"] {
            fs.set(ours, b"");
            assert_corrupt(&fs, ours);
            fs.delete(ours);
        }
        let (lost, ..) = database();
        fs.set(MANIFEST, &lost.get(MANIFEST).unwrap());
        assert_corrupt(&fs, "manifest-000004 with edits");
    }

    #[test]
    fn an_edit_that_does_not_fit_or_is_none_is_corruption() {
        for (edit, text) in [
            (Edit { next_file: Some(FileNumber(1)), ..Edit::default() }, "goes back"),
            (some_edit(0), "table 15 is there already"),
        ] {
            let fs = TracingFs::default();
            let mut writer =
                ManifestWriter::create(&fs.shared(), dir(), FileNumber(4), &populated()).unwrap();
            writer.append(&some_edit(0)).unwrap();
            writer.append(&edit).unwrap();
            assert_corrupt(&fs, text);
        }
    }

    #[test]
    fn a_record_that_is_not_the_next_edit_is_corruption() {
        for (kind, number) in [
            (RecordKind::Edit, 2),
            (RecordKind::Edit, 4),
            (RecordKind::Commit, 3),
            (RecordKind::Edit, 3),
        ] {
            let (fs, ..) = database();
            let mut bytes = fs.get(MANIFEST).unwrap();
            let header =
                read_header(&fs.get(MANIFEST).unwrap(), FileNumber(4), Path::new(MANIFEST));
            let header = header.unwrap();
            // Three edits and the snapshot are there, so the next one is edit 4.
            let lsn = Lsn(bytes.len() as u64 - 128);
            let record = RecordHeader {
                kind,
                payload_bytes: 0,
                payload_checksum: 0,
                copied: lsn,
                durable: lsn,
                seqno: SeqNo(number),
            };
            put_record(&mut bytes, Checksum::new(header.id), lsn, record, &[]);
            fs.set(MANIFEST, &bytes);
            match (kind, number) {
                (RecordKind::Edit, 4) => assert!(loaded(&fs).is_ok()),
                _ => assert_corrupt(&fs, "expected edit 4"),
            }
        }
    }
}
