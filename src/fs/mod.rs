//! The only way to the disk: a trait, so that tests can crash it, fail it and watch it.
//!
//! - `mod`: the traits [`Fs`], [`File`], [`LogRegion`], and [`site`].
//! - `real`: the operating system.
//! - `sim`: in memory, crashable: keeps durable contents and pending effects apart. *testing*
//! - `intercept`: a wrapper that sees every call and decides what becomes of it. *testing*
//! - `fault`: fails the k-th call. *testing*
//! - `trace`: writes down every call as text. *testing*
//! - `sabotage`: ignores the calls made at one site. *testing*
//!
//! What esker assumes of a disk, and nothing else: `File::sync` makes that file's contents and
//! length durable; `sync_dir` makes a directory's entries durable; `rename` is atomic.
//!
//! # A crash check of your own
//!
//! With the feature `testing`, whatever is written against [`Fs`] can be crashed at every call:
//!
//! 1. Run the program once over a `SimFs` whose hook takes an image after each call that changes
//!    something, and in the middle of each store, along with what was promised so far.
//! 2. For each image and each survival worth trying, open what the power cut left, and compare it
//!    with the promise: at least what was promised, at most what was begun, nothing else.
//! 3. Images of the recovery can be crashed again in the same way.
//! 4. Sabotage every sync in turn, to see that step 2 can fail.
//!
//! This register keeps one number. It writes a new file, syncs it, renames it over the old one,
//! and promises the number only when the directory is synced:
//!
//! ```
//! # #[cfg(feature = "testing")] {
//! use std::path::Path;
//! use std::sync::{Arc, Mutex};
//! use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
//! use esker::fs::{Fs, intercept::Select, sabotage::{Damage, SabotageFs}, sim::{Phase, SimFs}};
//!
//! fn set(fs: &dyn Fs, number: u8) -> std::io::Result<()> {
//!     let (dir, new, old) = (Path::new("/"), Path::new("/new"), Path::new("/number"));
//!     let _ = fs.remove(new); // A crash may have left one.
//!     let file = fs.create(new)?;
//!     file.write_at(0, &[number])?;
//!     file.sync()?;
//!     fs.rename(new, old)?;
//!     fs.sync_dir(dir)
//! }
//!
//! fn get(fs: &dyn Fs) -> Option<u8> {
//!     let file = fs.open(Path::new("/number")).ok()?;
//!     file.map().ok()?.first().copied().or(Some(255)) // An empty file is none of our numbers.
//! }
//!
//! /// Returns the first violation, given what stands between the program and the disk.
//! fn violation(wrap: impl Fn(SimFs) -> Arc<dyn Fs>) -> Option<String> {
//!     let disk = SimFs::new();
//!     let promised = Arc::new(AtomicU8::new(0));
//!     let images = Arc::new(Mutex::new(Vec::new()));
//!     let (sink, bound) = (Arc::clone(&images), Arc::clone(&promised));
//!     disk.on_call(Arc::new(move |disk, phase, call| {
//!         if phase != Phase::Before && call.changes() {
//!             sink.lock().unwrap().push((call.to_string(), bound.load(SeqCst), disk.snapshot()));
//!         }
//!     }));
//!     let fs = wrap(disk);
//!     for number in 1..=3 {
//!         set(&*fs, number).unwrap();
//!         promised.store(number, SeqCst);
//!     }
//!     for (call, promised, image) in &*images.lock().unwrap() {
//!         for survival in image.survivals(10, 20, 1) {
//!             let found = get(&image.crash(&survival)).unwrap_or(0);
//!             if !(*promised..=promised + 1).contains(&found) {
//!                 return Some(format!("after {call}, {survival:?}: {found}, not {promised}"));
//!             }
//!         }
//!     }
//!     None
//! }
//!
//! assert_eq!(violation(|disk| Arc::new(disk)), None);
//! for name in ["sync", "sync_dir"] {
//!     let on = Select::all().name(name);
//!     let skip = |disk: SimFs| SabotageFs::all(Arc::new(disk), Damage::Skip, on.clone());
//!     assert!(violation(|disk| Arc::new(skip(disk))).is_some(), "{name} is needed");
//! }
//! # }
//! ```
//!
//! `fault::FaultFs` fails calls instead of crashing after them; `runtime::Runtime::stepper` with
//! a hook that calls `runtime::yield_point` makes threads take turns at every call.

#[cfg(any(test, feature = "testing"))]
pub mod fault;
#[cfg(any(test, feature = "testing"))]
pub mod intercept;
mod real;
#[cfg(any(test, feature = "testing"))]
pub mod sabotage;
#[cfg(any(test, feature = "testing"))]
pub mod sim;
#[cfg(any(test, feature = "testing"))]
pub mod trace;

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::MmapMut;

pub use crate::fs::real::RealFs;

/// A file system. Paths are whole paths.
///
/// Every method reports the operating system's error as it is; callers add the path.
pub trait Fs: Send + Sync + fmt::Debug + 'static {
    /// Creates a file for writing and reading; `AlreadyExists` if there is one of this name.
    /// The name is durable only after [`Fs::sync_dir`].
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Opens an existing file for reading.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Creates a log file of exactly `bytes` bytes, allocated and reading as zeros, whose stores
    /// go to the kernel at once. `AlreadyExists` if there is one of this name.
    fn create_log(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn LogRegion>>;
    /// Renames atomically, replacing what `to` names. Durable only after [`Fs::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes a second name for a file. Durable only after [`Fs::sync_dir`].
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a name. Durable only after [`Fs::sync_dir`].
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory without entries. Durable only after [`Fs::sync_dir`] of its parent.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names in a directory, in no order, without "." and "..".
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Creates a directory and its parents where they are missing, durably in their parents.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes the entries of a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the lock of this file, creating it where it is missing; held until the value drops.
    /// `WouldBlock` if another handle, of this process or another, has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>>;
    /// Bytes that may still be written on the file system that has `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
    /// A number that is the same until the machine (or the simulated one) boots again: what was
    /// handed to the kernel under the same boot id is still there.
    fn boot_id(&self) -> u128;
    /// 128 random bits for a file's id. Simulated file systems give the same ones every run.
    fn random_id(&self) -> u128;
}

#[expect(clippy::len_without_is_empty, reason = "a file is not a collection")]
/// An open file. Safe to use from several threads.
pub trait File: Send + Sync + fmt::Debug {
    /// Writes all of `data` at `offset`, extending the file as needed. A failed write may have
    /// written any part.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes contents and length durable. Never retried by callers on the same file.
    fn sync(&self) -> io::Result<()>;
    /// Begins to write this range to the disk, and does not wait for it: the sync to come then has less
    /// to wait for. A hint.
    fn write_back(&self, _offset: u64, _bytes: u64) {}
    /// Reserves disk space for `bytes` bytes without changing the length. A hint: file systems
    /// that cannot do it succeed; a full disk fails with `StorageFull`.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// Sets the length.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// The length.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buf` from `offset`; `UnexpectedEof` if the file ends before.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// The whole file as memory. Only for files that are not written any more: tables, and logs
    /// at recovery. Keeps the file's contents alive after its name was removed.
    fn map(&self) -> io::Result<Bytes>;
    /// The same for whoever looks here and there: where the operating system would bring in what lies
    /// around a page that is not there, it brings in that page alone. See [`File::read_ahead`].
    fn map_for_lookups(&self) -> io::Result<Bytes> {
        self.map()
    }
    /// Begins to read this range into the page cache, and does not wait for it. A hint.
    fn read_ahead(&self, _offset: u64, _bytes: u64) {}
    /// An offset from which on the file is known to hold only zeros; its length if nothing is
    /// known. A hint that spares reading what was preallocated and never written.
    fn zeros_from(&self) -> io::Result<u64> {
        self.len()
    }
}

/// A log file that is being written: a fixed range of bytes into which records are stored.
pub trait LogRegion: Send + Sync + fmt::Debug {
    /// Its size in bytes, fixed at creation.
    fn bytes(&self) -> u64;
    /// Stores `data` at `offset` so that it survives the end of the process. Stores to disjoint
    /// ranges may run in parallel. `offset + data.len()` is at most [`LogRegion::bytes`].
    ///
    /// # Errors
    /// Only where it is written rather than copied to mapped memory. Any part may have been stored.
    fn store(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes every store that returned before this call durable. After an error the file must
    /// not be synced again: the kernel may have dropped what it could not write.
    fn sync(&self) -> io::Result<()>;
    /// Makes the pages of this range present, so that stores to them do not fault. A hint.
    fn touch(&self, offset: u64, bytes: u64);
    /// Shortens the file to `bytes`. Nothing is stored into it afterwards.
    ///
    /// # Errors
    /// The file may have either length then.
    fn end_at(&self, bytes: u64) -> io::Result<()>;
}

/// Holds a lock until it drops.
pub trait Lock: Send + Sync + fmt::Debug {}

/// A whole file is read in pieces of so many bytes.
const PIECE_BYTES: u64 = 1 << 20;
/// Zeros at the end of a log are looked for in pieces of so many bytes.
const PAGE_BYTES: usize = 4096;

/// The first `bytes` bytes of a file, read and not mapped: a sector that the disk cannot read is an
/// error then, and no signal. Takes memory only as the bytes arrive, so that a length that is
/// wrong costs an error and not all the memory there is.
///
/// # Errors
/// `UnexpectedEof` if the file has fewer bytes, and those of the file system.
pub(crate) fn read_first(file: &dyn File, bytes: u64) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    while (all.len() as u64) < bytes {
        let at = all.len();
        all.resize(at + (bytes - at as u64).min(PIECE_BYTES) as usize, 0);
        file.read_at(&mut all[at..], at as u64)?;
    }
    Ok(all)
}

/// The whole of a log as memory, and where its zeros begin: see [`File::zeros_from`]; here what was made
/// present ahead of the log's end is known to be zeros as well.
///
/// # Errors
/// `UnexpectedEof` if the file is not as long as it says, and those of the file system.
pub(crate) fn map_log(file: &dyn File) -> io::Result<(Bytes, u64)> {
    // Before it is mapped: pages that are present count as data.
    let zeros_from = file.zeros_from()?;
    let len = file.len()?;
    // A look at the first byte of a spare log would have 8 MiB of its pages made.
    let spare = if zeros_from == 0 && len > 0 { zeros(len) } else { None };
    if let Some(zeros) = spare {
        return Ok((zeros, 0));
    }
    let bytes = file.map()?;
    // What lies beyond a length that is too short would be taken for zeros.
    if !length_fits("log.bytes", bytes.len() as u64 == len) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // A disk that lies may say that they begin beyond the end.
    let begun = &bytes[..usize::try_from(zeros_from).unwrap_or(usize::MAX).min(bytes.len())];
    let pages = begun.chunks(PAGE_BYTES);
    let is_zeros = |page: &[u8]| page.iter().fold(0, |all, byte| all | byte) == 0;
    let used = pages.rev().skip_while(|page| is_zeros(page)).count();
    let zeros_from = begun.len().min(used * PAGE_BYTES) as u64;
    Ok((bytes, zeros_from))
}

/// So many zeros, which take no memory until they are read; `None` if there is no room even so.
fn zeros(len: u64) -> Option<Bytes> {
    let zeros = MmapMut::map_anon(usize::try_from(len).ok()?).ok()?;
    Some(Bytes::from_owner(zeros.make_read_only().ok()?))
}

/// Copies a file; the copy, which must not be there yet, is synced at the site of this name, and its
/// directory is not.
///
/// # Errors
/// Those of the file system.
pub(crate) fn copy(fs: &dyn Fs, from: &Path, to: &Path, sync_site: &'static str) -> io::Result<()> {
    let (from, to) = (fs.open(from)?, fs.create(to)?);
    let len = from.len()?;
    to.allocate(len)?;
    let mut at = 0;
    while at < len {
        let mut piece = vec![0; (len - at).min(PIECE_BYTES) as usize];
        from.read_at(&mut piece, at)?;
        to.write_at(at, &piece)?;
        at += PIECE_BYTES;
    }
    let _site = site(sync_site);
    to.sync()
}

/// The directory that an entry is in.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// Creates a file in place of the one that a crash may have left under this name.
pub(crate) fn create_anew(fs: &dyn Fs, path: &Path) -> io::Result<Arc<dyn File>> {
    match fs.create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs.remove(path)?;
            fs.create(path)
        }
        result => result,
    }
}

#[cfg(any(test, feature = "testing"))]
thread_local! {
    static SITE: std::cell::Cell<Option<&'static str>> = const { std::cell::Cell::new(None) };
    static LENGTH_CHECK_OFF: std::cell::Cell<Option<&'static str>> =
        const { std::cell::Cell::new(None) };
}

/// Names the place in the engine that the following calls of this thread come from, until the
/// value drops: `let _site = fs::site("manifest.rotate.sync_dir");`
///
/// `sabotage` switches off one site at a time, to show that some test sees it. Costs nothing in
/// production builds.
#[inline]
pub fn site(name: &'static str) -> Site {
    #[cfg(any(test, feature = "testing"))]
    return Site { outer: SITE.replace(Some(name)), _of_this_thread: PhantomData };
    #[cfg(not(any(test, feature = "testing")))]
    {
        let _ = name;
        Site { _of_this_thread: PhantomData }
    }
}

/// Whether a length is as it must be: `fits`, unless a test has switched this check off with
/// [`without_length_check`]. Costs nothing in production builds.
#[inline]
#[must_use]
pub(crate) fn length_fits(name: &'static str, fits: bool) -> bool {
    #[cfg(any(test, feature = "testing"))]
    if LENGTH_CHECK_OFF.get() == Some(name) {
        return true;
    }
    let _ = name;
    fits
}

/// Calls `f` while the length check of this name is switched off for this thread, to show that
/// some test sees it. Their names are in [`LENGTH_CHECKS`].
#[cfg(any(test, feature = "testing"))]
pub fn without_length_check<T>(name: &'static str, f: impl FnOnce() -> T) -> T {
    let before = LENGTH_CHECK_OFF.replace(Some(name));
    let result = f();
    LENGTH_CHECK_OFF.set(before);
    result
}

/// The length checks that [`without_length_check`] switches off.
#[cfg(any(test, feature = "testing"))]
pub const LENGTH_CHECKS: [&str; 8] = [
    "current.bytes",
    "table.bytes.least",
    "table.bytes.manifest",
    "log.bytes",
    "log.reach",
    "block.lz4",
    "lost.bytes",
    "shards.bytes",
];

/// The site that this thread's calls come from, if one was named by [`site`].
#[cfg(any(test, feature = "testing"))]
#[must_use]
pub fn current_site() -> Option<&'static str> {
    SITE.get()
}

/// Ends a [`site`] when it drops.
#[derive(Debug)]
#[must_use = "the site ends when this drops"]
pub struct Site {
    #[cfg(any(test, feature = "testing"))]
    outer: Option<&'static str>,
    _of_this_thread: PhantomData<*const ()>,
}

impl Drop for Site {
    #[inline]
    fn drop(&mut self) {
        #[cfg(any(test, feature = "testing"))]
        SITE.set(self.outer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bug: an open took memory for as many bytes as a manifest was said to have, and aborted.
    /// Cause: the buffer was made before anything was read. Fix: it grows with what arrives.
    #[test]
    fn a_length_that_is_wrong_costs_an_error_and_no_memory() {
        let disk = sim::SimFs::new();
        let file = disk.create(Path::new("/a")).unwrap();
        let bytes: Vec<u8> = (0..3 << 20).map(|i: u32| (i >> 7) as u8).collect();
        file.write_at(0, &bytes).unwrap();
        for len in [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 << 20] {
            assert!(read_first(&*file, len).unwrap() == bytes[..len as usize], "{len}");
        }
        for len in [(3 << 20) + 1, 1 << 40, u64::MAX] {
            let error = read_first(&*file, len).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    /// Says that it is eight bytes shorter than it is.
    #[derive(Debug)]
    struct Short(Arc<dyn File>);

    impl File for Short {
        fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.write_at(offset, data)
        }
        fn sync(&self) -> io::Result<()> {
            self.0.sync()
        }
        fn allocate(&self, bytes: u64) -> io::Result<()> {
            self.0.allocate(bytes)
        }
        fn set_len(&self, bytes: u64) -> io::Result<()> {
            self.0.set_len(bytes)
        }
        fn len(&self) -> io::Result<u64> {
            Ok(self.0.len()? - 8)
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.0.read_at(buf, offset)
        }
        fn map(&self) -> io::Result<Bytes> {
            self.0.map()
        }
    }

    /// Bug: of a log whose length was said to be shorter than it is, the rest was taken for zeros,
    /// and its commits were lost without a word. Cause: where nothing is known of zeros, they are
    /// said to begin at the length, which was not compared with what was mapped. Fix: it is.
    #[test]
    fn a_log_that_is_longer_than_it_says_is_not_taken_for_zeros() {
        let disk = sim::SimFs::new();
        let file = disk.create(Path::new("/a")).unwrap();
        file.write_at(0, &[1; 64]).unwrap();
        assert_eq!(map_log(&*file).unwrap(), (Bytes::from(vec![1; 64]), 64));
        let short = Short(file);
        assert_eq!(map_log(&short).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        without_length_check("log.bytes", || assert_eq!(map_log(&short).unwrap().1, 56));
    }

    #[test]
    fn zeros_of_a_log_begin_at_the_page_behind_its_last_byte() {
        let disk = sim::SimFs::new();
        let file = disk.create(Path::new("/a")).unwrap();
        for (written, expected) in [(1, 4096), (4096, 4096), (4097, 8192), (20_000, 20_000)] {
            file.set_len(20_000).unwrap();
            file.write_at(written - 1, &[1]).unwrap();
            let (bytes, zeros_from) = map_log(&*file).unwrap();
            assert_eq!((bytes.len(), zeros_from), (20_000, expected));
        }
        let real = RealFs::new();
        let directory = tempfile::tempdir().unwrap();
        let spare = directory.path().join("spare");
        real.create_log(&spare, 1 << 20).unwrap();
        let (bytes, zeros_from) = map_log(&*real.open(&spare).unwrap()).unwrap();
        assert!(bytes.len() == 1 << 20 && bytes.iter().all(|byte| *byte == 0));
        assert!(zeros_from <= 4096, "{zeros_from}");
        // One that is damaged may be longer than memory, on file systems that have such files.
        let long = real.create(&directory.path().join("long")).unwrap();
        if long.set_len(1 << 42).is_ok() {
            let (bytes, zeros_from) = map_log(&*long).unwrap();
            assert!(bytes.len() == 1 << 42 && (zeros_from == 0 || zeros_from == 1 << 42));
        }
    }

    #[test]
    fn sites_nest() {
        assert_eq!(current_site(), None);
        let outer = site("outer");
        {
            let _inner = site("inner");
            assert_eq!(current_site(), Some("inner"));
        }
        assert_eq!(current_site(), Some("outer"));
        drop(outer);
        assert_eq!(current_site(), None);
    }
}
