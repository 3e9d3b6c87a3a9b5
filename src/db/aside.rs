//! Keeping files that a salvage or a repair goes on without: they get a second name in the
//! directory `lost`, durably, before anything removes the first one.

use std::io;
use std::path::Path;

use crate::error::{Error, Result};
use crate::file::LOST;
use crate::fs::{self, File, Fs};

/// Files are compared in pieces of so many bytes.
const PIECE_BYTES: usize = 1 << 20;

/// Gives each of these files of `dir` a name in `dir/lost` too, and makes it durable. A file that is
/// there already, say from an attempt that a crash cut short, is not kept twice.
///
/// # Errors
/// From the file system. The files are where they were.
pub(crate) fn keep(fs: &dyn Fs, dir: &Path, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let lost = dir.join(LOST);
    fs.create_dir_all(&lost).map_err(|e| Error::io("create", &lost, e))?;
    for name in names {
        keep_one(fs, &dir.join(name), &lost, name)?;
    }
    // Else the first names can be gone and the second ones not yet there.
    let _site = fs::site("lost.sync_dir");
    fs.sync_dir(&lost).map_err(|e| Error::io("sync", &lost, e))
}

fn keep_one(fs: &dyn Fs, from: &Path, lost: &Path, name: &str) -> Result<()> {
    let mut to = lost.join(name);
    for attempt in 1.. {
        match fs.link(from, &to) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if same(fs, from, &to).map_err(|e| Error::io("compare", from, e))? {
                    return Ok(());
                }
                to = lost.join(format!("{name}.{attempt}"));
            }
            // Some file systems have no second names.
            Err(_) => {
                let copied = fs::copy(fs, from, &to, "lost.sync");
                return copied.map_err(|e| Error::io("copy", from, e));
            }
        }
    }
    unreachable!("a number is free before 2^31 files are")
}

/// True if two files have the same contents.
fn same(fs: &dyn Fs, a: &Path, b: &Path) -> io::Result<bool> {
    let (a, b) = (fs.open(a)?, fs.open(b)?);
    let len = a.len()?;
    let other_len = b.len()?;
    if !fs::length_fits("lost.bytes", other_len == len) {
        return Ok(false);
    }
    let mut at = 0;
    while at < len {
        if piece(&*a, at, len)? != piece(&*b, at, len)? {
            return Ok(false);
        }
        at += PIECE_BYTES as u64;
    }
    Ok(true)
}

fn piece(file: &dyn File, at: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; (len - at).min(PIECE_BYTES as u64) as usize];
    file.read_at(&mut bytes, at)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::fault::{Fault, FaultFs, FaultKind};
    use crate::fs::intercept::Select;
    use crate::fs::sim::{SimFs, Survival};

    fn file(fs: &dyn Fs, path: &str, contents: &[u8]) {
        let file = fs.create(Path::new(path)).unwrap();
        file.write_at(0, contents).unwrap();
        file.sync().unwrap();
    }

    fn listed(fs: &dyn Fs) -> Vec<String> {
        let mut names = fs.list(Path::new("/db/lost")).unwrap();
        names.sort();
        names
    }

    fn disk() -> SimFs {
        let disk = SimFs::new();
        disk.create_dir_all(Path::new("/db")).unwrap();
        file(&disk, "/db/a", b"one");
        disk.sync_dir(Path::new("/db")).unwrap();
        disk
    }

    #[test]
    fn what_is_kept_survives_power_loss_and_is_kept_once() {
        let disk = disk();
        let names = ["a".to_string()];
        for _ in 0..2 {
            keep(&disk, Path::new("/db"), &names).unwrap();
        }
        let left = disk.snapshot().crash(&Survival::NothingUnsynced);
        assert_eq!(listed(&left), ["a"]);
        left.remove(Path::new("/db/a")).unwrap();
        file(&left, "/db/a", b"two");
        keep(&left, Path::new("/db"), &names).unwrap();
        assert_eq!(listed(&left), ["a", "a.1"]);
        assert_eq!(left.contents(Path::new("/db/lost/a")).unwrap(), b"one");
    }

    #[test]
    fn without_links_files_are_copied() {
        let disk = disk();
        let fs = FaultFs::over_sim(disk.clone());
        fs.arm(Fault::new(FaultKind::Io).on(Select::all().name("link")).until_healed());
        keep(&fs, Path::new("/db"), &["a".to_string()]).unwrap();
        assert_eq!(listed(&disk), ["a"]);
        let left = disk.snapshot().crash(&Survival::NothingUnsynced);
        assert_eq!(left.contents(Path::new("/db/lost/a")).unwrap(), b"one");
    }
}
