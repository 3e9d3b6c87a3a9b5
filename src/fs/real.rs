//! The operating system as a file system (Linux first).
//!
//! A log region is stored into in one of two ways, chosen when it is created:
//!
//! 1. *Mapped*: a shared writable mapping of a file whose blocks raw `fallocate` has reserved, on a
//!    file system known to keep that promise: ext4, XFS, tmpfs. A record of 130 bytes costs 26 ns
//!    instead of the 800 ns of `write(2)`, and survives SIGKILL as well as that does. Copy-on-write
//!    file systems are left out: a store there can need a new block, and on a full disk that is a
//!    SIGBUS.
//! 2. *Written*: `pwrite` elsewhere.
//!
//! Both are synced by `fdatasync` on the descriptor, never by `msync`: through a mapping a sync
//! took 310 µs against 105 µs. A log is never written in large chunks before it is mapped: a store
//! into a large folio dirties all of it.
//!
//! All mappings are kept out of forked children (`MADV_DONTFORK`), and all descriptors are closed
//! on exec. A forked child's database handle is inert: it must not be used. The lock is `flock`'s,
//! which belongs to the open file: the parent unlocks it by name, and if it ends without, the lock
//! lasts until the child has closed it too.

use std::fs::{File as OsFile, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use memmap2::{Advice, Mmap, MmapRaw};
use rustix::fs::{FallocateFlags, SeekFrom};

use crate::fs::{File, Fs, Lock, LogRegion, parent_of};

/// The operating system's files.
#[derive(Debug)]
pub struct RealFs {
    boot_id: u128,
    may_map_logs: bool,
}

/// Magic numbers of `statfs(2)` for which a fallocated block is never asked for twice.
const EXT4: u64 = 0xEF53;
const XFS: u64 = 0x5846_5342;
const TMPFS: u64 = 0x0102_1994;

impl RealFs {
    /// The operating system's files, logs mapped where that is safe.
    #[must_use]
    pub fn new() -> RealFs {
        RealFs { boot_id: read_boot_id().unwrap_or_else(random_u128), may_map_logs: true }
    }

    /// The same, but logs are written by `pwrite` everywhere: for tests of what other file systems get.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn with_written_logs() -> RealFs {
        RealFs { may_map_logs: false, ..RealFs::new() }
    }
}

impl Default for RealFs {
    fn default() -> RealFs {
        RealFs::new()
    }
}

/// The kernel's id of this boot; `None` where /proc is not there, and then a random number says
/// that nothing is known to have survived.
fn read_boot_id() -> Option<u128> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()
}

fn random_u128() -> u128 {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system has random bytes");
    u128::from_le_bytes(bytes)
}

impl Fs for RealFs {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile(create_exclusively(path)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile(OsFile::open(path)?)))
    }

    fn create_log(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn LogRegion>> {
        let file = create_exclusively(path)?;
        prepare_log(file, bytes, self.may_map_logs).inspect_err(|_| {
            // The name would stand in the way of the next attempt; the first error is the one to
            // report.
            let _ = std::fs::remove_file(path);
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::remove_dir(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            // A name that is not UTF-8 is not ours.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut missing = Vec::new();
        let mut existing = dir.to_path_buf();
        while !existing.is_dir() {
            let parent = parent_of(&existing).to_path_buf();
            missing.push(std::mem::replace(&mut existing, parent));
        }
        // The deepest directory that exists may be the unfinished work of a process that was
        // killed between making it and syncing its parent. Where the parent may not be read, we
        // cannot have been the ones.
        match self.sync_dir(parent_of(&existing)) {
            Err(e) if e.kind() != io::ErrorKind::PermissionDenied => return Err(e),
            _ => {}
        }
        for dir in missing.into_iter().rev() {
            match std::fs::create_dir(&dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => self.sync_dir(parent_of(&dir))?,
            }
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        OsFile::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        loop {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            file.try_lock()?;
            // Between the open and the lock the file may have been removed or replaced; the lock
            // on a file without this name would keep nobody out.
            if is_named(&file, path)? {
                return Ok(Box::new(RealLock { file, process: std::process::id() }));
            }
        }
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn boot_id(&self) -> u128 {
        self.boot_id
    }

    fn random_id(&self) -> u128 {
        random_u128()
    }
}

fn create_exclusively(path: &Path) -> io::Result<OsFile> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

/// True if this open file is what `path` names.
fn is_named(file: &OsFile, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// True if the file system cannot reserve blocks, rather than has none left.
fn cannot_allocate(e: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    [Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL].contains(&e)
}

/// The first pages of a log, which an open stores into before anything has touched them.
const FIRST_PAGES_BYTES: usize = 16 << 10;

fn prepare_log(file: OsFile, bytes: u64, may_map: bool) -> io::Result<Arc<dyn LogRegion>> {
    // The raw call, since the C library's posix_fallocate writes zeros where it is not supported.
    // Setting the size here saves each fdatasync the update of a growing length: 105 µs, not 152.
    let allocated = rustix::io::retry_on_intr(|| {
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)
    });
    let may_map = match allocated {
        Ok(()) => may_map && stores_need_no_new_blocks(&file),
        Err(e) if cannot_allocate(e) => {
            file.set_len(bytes)?;
            false
        }
        Err(e) => return Err(e.into()),
    };
    // Where mapping fails, say for want of address space, writing still works.
    if may_map && let Ok(mapping) = MmapRaw::map_raw(&file) {
        mapping.advise(Advice::DontFork)?;
        // Without this the header's store reads ahead as far as the disk likes to, 8 MiB here: 1.8 ms
        // of every open. What follows is touched by the log's own thread, and may be read ahead.
        let _ = mapping.advise_range(Advice::Random, 0, FIRST_PAGES_BYTES.min(mapping.len()));
        return Ok(Arc::new(MappedLog { file, mapping, written: AtomicBool::new(false) }));
    }
    Ok(Arc::new(WrittenLog { file, bytes }))
}

fn stores_need_no_new_blocks(file: &OsFile) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|stat| [EXT4, XFS, TMPFS].contains(&(stat.f_type as u64)))
}

/// A file by its descriptor.
#[derive(Debug)]
struct RealFile(OsFile);

impl File for RealFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write_back(&self, offset: u64, bytes: u64) {
        #[cfg(target_os = "linux")]
        {
            use std::os::fd::AsRawFd;
            let (offset, bytes) = (offset as libc::off64_t, bytes as libc::off64_t);
            #[expect(unsafe_code, reason = "rustix does not have it")]
            // An error is the sync's to tell: without a flag to wait this takes none from it.
            // SAFETY: the descriptor is open as long as `self` lives; no memory is passed.
            let _ = unsafe {
                libc::sync_file_range(
                    self.0.as_raw_fd(),
                    offset,
                    bytes,
                    libc::SYNC_FILE_RANGE_WRITE,
                )
            };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (offset, bytes);
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let allocated = rustix::io::retry_on_intr(|| {
            rustix::fs::fallocate(&self.0, FallocateFlags::KEEP_SIZE, 0, bytes)
        });
        match allocated {
            Err(e) if !cannot_allocate(e) => Err(e.into()),
            _ => Ok(()),
        }
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn zeros_from(&self) -> io::Result<u64> {
        let len = self.len()?;
        let (mut at, mut end) = (0, 0);
        while at < len {
            match rustix::fs::seek(&self.0, SeekFrom::Data(at)) {
                Ok(data) => {
                    at = rustix::fs::seek(&self.0, SeekFrom::Hole(data))?;
                    end = at;
                }
                Err(rustix::io::Errno::NXIO) => break,
                // Not every file system can tell.
                Err(_) => return Ok(len),
            }
        }
        Ok(end)
    }

    fn map(&self) -> io::Result<Bytes> {
        self.mapping(None)
    }

    fn map_for_lookups(&self) -> io::Result<Bytes> {
        self.mapping(Some(Advice::Random))
    }

    fn read_ahead(&self, offset: u64, bytes: u64) {
        // None would be all that follows.
        if let Some(bytes) = NonZeroU64::new(bytes) {
            // An error is told to whoever reads then.
            let _ = rustix::fs::fadvise(&self.0, offset, Some(bytes), rustix::fs::Advice::WillNeed);
        }
    }
}

impl RealFile {
    fn mapping(&self, advice: Option<Advice>) -> io::Result<Bytes> {
        if self.len()? == 0 {
            return Ok(Bytes::new());
        }
        #[expect(unsafe_code, reason = "a table is read in place: a value costs no copy")]
        // SAFETY: the bytes behind the mapping do not change while it lives. `File::map` is
        // documented to be for files that are not written any more, tables are made under
        // names that are never reused, and esker's lock keeps its other processes out. What a
        // stranger does to the files is outside of what any mapping can promise.
        let mapping = unsafe { Mmap::map(&self.0) }?;
        mapping.advise(Advice::DontFork)?;
        if let Some(advice) = advice {
            mapping.advise(advice)?;
        }
        Ok(Bytes::from_owner(mapping))
    }
}

/// A log region stored into through a shared mapping; large records by `pwrite`.
#[derive(Debug)]
struct MappedLog {
    file: OsFile,
    mapping: MmapRaw,
    /// The last record was written: its successors will not need their pages present.
    written: AtomicBool,
}

/// Records of this size and above are written. A page that is written as a whole costs the kernel about 1 µs,
/// one that is made present to be copied to 1 to 4: it is zeroed first, and each has its fault.
const WRITTEN_BYTES_MIN: usize = 32 << 10;

impl LogRegion for MappedLog {
    fn bytes(&self) -> u64 {
        self.mapping.len() as u64
    }

    #[inline]
    fn store(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let bytes = self.mapping.len();
        let offset = usize::try_from(offset).expect("an offset within the mapping");
        assert!(offset <= bytes && data.len() <= bytes - offset, "a store beyond the log's end");
        let written = data.len() >= WRITTEN_BYTES_MIN;
        if self.written.load(Ordering::Relaxed) != written {
            self.written.store(written, Ordering::Relaxed);
        }
        if written {
            // The same pages of the page cache: what is written and what is copied are one file.
            return self.file.write_all_at(data, offset as u64);
        }
        #[expect(unsafe_code, reason = "26 ns a record instead of 800 by write(2)")]
        // SAFETY: `offset` is at most the mapping's length, as just checked.
        let to = unsafe { self.mapping.as_mut_ptr().add(offset) };
        #[expect(unsafe_code, reason = "26 ns a record instead of 800 by write(2)")]
        // SAFETY: `to` has room for `data.len()` bytes, as just checked, and lives as long as
        // `self`; `data` cannot overlap it because this region is never lent out. Callers store
        // to disjoint ranges (`LogRegion::store`), so that no two threads write one byte, and
        // nobody reads them through this mapping. The blocks were reserved by fallocate, so
        // that the store finds room on disk.
        unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
        }
        if data.len() <= AHEAD_BYTES_MAX {
            load_for_writing(to.wrapping_add(data.len()), data.len());
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn touch(&self, offset: u64, bytes: u64) {
        let end = offset.saturating_add(bytes).min(self.bytes());
        if offset < end && !self.written.load(Ordering::Relaxed) {
            // Touching by load and store instead would race stores and lose bytes. memmap2 rounds
            // down to the page. Kernels before 5.14 refuse; then stores fault, as they did.
            let (offset, bytes) = (offset as usize, (end - offset) as usize);
            let _ = self.mapping.advise_range(Advice::PopulateWrite, offset, bytes);
        }
    }

    fn end_at(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
}

/// Records up to this size have the place of the next one loaded into the cache ahead.
const AHEAD_BYTES_MAX: usize = 512;

/// Begins to load the cache lines of `bytes` bytes at `address` for writing; they need not be valid.
/// The pages have just been made present, by another thread, and no record was near them yet.
#[inline]
fn load_for_writing(address: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..bytes).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        let at = address.wrapping_add(line).cast();
        #[expect(unsafe_code, reason = "three misses a record less under the commit lock")]
        // SAFETY: a prefetch has no effect but on the cache, whatever the address.
        unsafe {
            _mm_prefetch::<_MM_HINT_ET0>(at);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, bytes);
}

/// A log region stored into by `pwrite`.
#[derive(Debug)]
struct WrittenLog {
    file: OsFile,
    bytes: u64,
}

impl LogRegion for WrittenLog {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn store(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let room = self.bytes.checked_sub(offset).expect("an offset within the log");
        assert!(data.len() as u64 <= room, "a store beyond the log's end");
        self.file.write_all_at(data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn touch(&self, _offset: u64, _bytes: u64) {}

    fn end_at(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
}

/// Has the lock until it drops.
#[derive(Debug)]
struct RealLock {
    file: OsFile,
    /// The process that took it.
    process: u32,
}

impl Lock for RealLock {}

impl Drop for RealLock {
    /// Unlocks by name. Closing alone would leave the lock to a child that another thread is just
    /// forking, until it execs, and the next open of this process would find the database locked.
    /// A forked child that drops its copy must not unlock for its parent.
    fn drop(&mut self) {
        if self.process == std::process::id() {
            let _ = self.file.unlock();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> [RealFs; 2] {
        [RealFs::new(), RealFs::with_written_logs()]
    }

    #[test]
    fn a_file_is_created_once_written_read_and_mapped() {
        let (fs, dir) = (RealFs::new(), tempfile::tempdir().unwrap());
        let path = dir.path().join("a");
        let file = fs.create(&path).unwrap();
        assert_eq!(fs.create(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(file.map().unwrap().is_empty());
        file.allocate(0).unwrap();
        file.allocate(1 << 20).unwrap();
        assert_eq!(file.len().unwrap(), 0, "allocate keeps the length");
        file.write_at(3, b"def").unwrap();
        file.write_at(0, b"abc").unwrap();
        file.sync().unwrap();
        assert_eq!(file.len().unwrap(), 6);
        let again = fs.open(&path).unwrap();
        let mut buf = [0; 4];
        again.read_at(&mut buf, 2).unwrap();
        assert_eq!(&buf, b"cdef");
        let past = again.read_at(&mut buf, 3).unwrap_err();
        assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
        file.set_len(5).unwrap();
        let map = again.map().unwrap();
        fs.remove(&path).unwrap();
        assert_eq!(&map[..], b"abcde", "alive without a name");
        assert_eq!(fs.open(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn names_are_renamed_linked_listed_and_removed() {
        let (fs, dir) = (RealFs::new(), tempfile::tempdir().unwrap());
        let path = |name: &str| dir.path().join(name);
        for name in ["a", "b"] {
            fs.create(&path(name)).unwrap().write_at(0, name.as_bytes()).unwrap();
        }
        fs.rename(&path("a"), &path("b")).unwrap();
        fs.link(&path("b"), &path("c")).unwrap();
        fs.sync_dir(dir.path()).unwrap();
        let mut names = fs.list(dir.path()).unwrap();
        names.sort();
        assert_eq!(names, ["b", "c"]);
        assert_eq!(&fs.open(&path("c")).unwrap().map().unwrap()[..], b"a");
        fs.remove(&path("b")).unwrap();
        assert_eq!(fs.list(dir.path()).unwrap(), ["c"]);
        assert!(fs.link(&path("b"), &path("d")).is_err());
        assert!(fs.rename(&path("b"), &path("d")).is_err());
        assert!(fs.remove(&path("b")).is_err());
        assert!(fs.list(&path("nowhere")).is_err());
        assert!(fs.sync_dir(&path("nowhere")).is_err());
    }

    #[test]
    fn directories_are_created_with_their_parents() {
        let (fs, dir) = (RealFs::new(), tempfile::tempdir().unwrap());
        let deep = dir.path().join("x/y/z");
        fs.create_dir_all(&deep).unwrap();
        fs.create_dir_all(&deep).unwrap();
        fs.create(&deep.join("f")).unwrap();
        let through_a_file = fs.create_dir_all(&deep.join("f/g")).unwrap_err();
        assert_ne!(through_a_file.kind(), io::ErrorKind::NotFound);
        assert!(fs.free_bytes(&deep).unwrap() > 0);
        assert_eq!(parent_of(Path::new("data")), Path::new("."));
        assert_eq!(parent_of(Path::new("/")), Path::new("/"));
    }

    #[test]
    fn log_regions_mapped_and_written_hold_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let mut contents = Vec::new();
        for (i, fs) in both().iter().enumerate() {
            let path = dir.path().join(i.to_string());
            let log = fs.create_log(&path, 10_000).unwrap();
            assert_eq!(
                fs.create_log(&path, 1).unwrap_err().kind(),
                io::ErrorKind::AlreadyExists,
                "and the first one is still there"
            );
            assert_eq!(log.bytes(), 10_000);
            log.touch(0, 4096);
            log.touch(9_999, u64::MAX);
            log.touch(20_000, 1);
            let mut random = fastrand::Rng::with_seed(7);
            let mut offset = 0;
            while offset < 9_000 {
                let data: Vec<u8> = (0..random.usize(0..300)).map(|_| random.u8(..)).collect();
                log.store(offset, &data).unwrap();
                offset += data.len() as u64;
            }
            log.store(9_999, &[7]).unwrap();
            log.store(10_000, &[]).unwrap();
            log.sync().unwrap();
            contents.push(std::fs::read(&path).unwrap());
        }
        assert_eq!(contents[0].len(), 10_000);
        assert_eq!(contents[0][9_999], 7);
        assert_eq!(contents[0][9_998], 0, "fresh bytes are zeros");
        assert_eq!(contents[0], contents[1]);
    }

    #[test]
    fn small_records_between_large_ones_are_all_there() {
        let dir = tempfile::tempdir().unwrap();
        let sizes =
            [100, WRITTEN_BYTES_MIN - 1, WRITTEN_BYTES_MIN, 5000, 3 * WRITTEN_BYTES_MIN + 7];
        for (i, fs) in both().iter().enumerate() {
            let path = dir.path().join(i.to_string());
            let log = fs.create_log(&path, 1 << 20).unwrap();
            let mut expected = Vec::new();
            // They begin and end within pages, so that neighbours share one.
            for (size, fill) in sizes.iter().cycle().zip(1..20u8) {
                log.touch(expected.len() as u64, 1 << 18);
                if expected.len() + size > 1 << 20 {
                    break;
                }
                log.store(expected.len() as u64, &vec![fill; *size]).unwrap();
                expected.resize(expected.len() + size, fill);
                if fill % 4 == 0 {
                    log.sync().unwrap();
                }
            }
            assert!(expected.len() > 1 << 19, "{}", expected.len());
            let found = std::fs::read(&path).unwrap();
            assert!(found[..expected.len()] == expected[..]);
            assert!(found[expected.len()..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn logs_are_mapped_where_the_tests_run() {
        // Otherwise the tests of mapped logs test nothing. /dev/shm is tmpfs on every Linux.
        let (fs, dir) = (RealFs::new(), tempfile::tempdir_in("/dev/shm").unwrap());
        let log = fs.create_log(&dir.path().join("a"), 4096).unwrap();
        assert!(format!("{log:?}").contains("Mapped"), "{log:?}");
        let written = RealFs::with_written_logs().create_log(&dir.path().join("b"), 1).unwrap();
        assert!(format!("{written:?}").contains("Written"), "{written:?}");
    }

    #[test]
    fn several_threads_store_to_disjoint_ranges() {
        let dir = tempfile::tempdir().unwrap();
        for (i, fs) in both().iter().enumerate() {
            let path = dir.path().join(i.to_string());
            let large_at = 1023 * 64;
            let large = large_at as u64..(large_at + 8 * WRITTEN_BYTES_MIN) as u64;
            let log = fs.create_log(&path, large.end).unwrap();
            std::thread::scope(|scope| {
                for thread in 0..4u8 {
                    let log = &log;
                    scope.spawn(move || {
                        for slot in (u64::from(thread)..1023).step_by(4) {
                            log.store(slot * 64, &[thread + 1; 64]).unwrap();
                            if slot % 128 == 0 {
                                log.touch(slot * 64, 8192);
                                log.sync().unwrap();
                            }
                        }
                    });
                }
                // Written beside what is copied, and into the last page of that.
                scope.spawn(|| {
                    for offset in large.clone().step_by(WRITTEN_BYTES_MIN) {
                        log.store(offset, &[9; WRITTEN_BYTES_MIN]).unwrap();
                    }
                });
            });
            let bytes = std::fs::read(&path).unwrap();
            let (small, large) = bytes.split_at(large_at);
            assert!(small.chunks(64).enumerate().all(|(i, c)| c == [(i % 4) as u8 + 1; 64]));
            assert!(large.iter().all(|byte| *byte == 9));
        }
    }

    #[test]
    #[should_panic(expected = "beyond the log's end")]
    fn a_store_beyond_a_mapped_log_is_a_bug() {
        let dir = tempfile::tempdir().unwrap();
        let log = RealFs::new().create_log(&dir.path().join("a"), 100).unwrap();
        let _ = log.store(99, b"ab");
    }

    #[test]
    #[should_panic(expected = "beyond the log's end")]
    fn a_store_beyond_a_written_log_is_a_bug() {
        let dir = tempfile::tempdir().unwrap();
        let log = RealFs::with_written_logs().create_log(&dir.path().join("a"), 100).unwrap();
        let _ = log.store(99, b"ab");
    }

    #[test]
    fn a_log_too_large_for_the_disk_is_an_error_and_leaves_no_name() {
        let (fs, dir) = (RealFs::new(), tempfile::tempdir().unwrap());
        let path = dir.path().join("a");
        // Beyond the largest file, not only beyond what is free: ext4 would take all that is free
        // before it gives up, and every other test would meet a full disk meanwhile.
        let too_much = 1 << 50;
        let error = fs.create_log(&path, too_much).unwrap_err();
        let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::FileTooLarge];
        assert!(kinds.contains(&error.kind()), "{error:?}");
        assert!(!path.exists());
    }

    #[test]
    fn what_is_mapped_for_lookups_is_the_file_whatever_is_read_ahead() {
        let (fs, dir) = (RealFs::new(), tempfile::tempdir().unwrap());
        let path = dir.path().join("a table");
        let contents: Vec<u8> = (0..100_000_u32).map(|n| (n >> 3) as u8).collect();
        std::fs::write(&path, &contents).unwrap();
        let file = fs.open(&path).unwrap();
        let bytes = file.map_for_lookups().unwrap();
        for (offset, len) in [(0, 0), (4095, 2), (0, 100_000), (99_999, 1 << 40), (u64::MAX, 1)] {
            file.read_ahead(offset, len);
        }
        assert!(bytes == contents);
        #[cfg(target_os = "linux")]
        {
            let flags = mapping_flags(&path).unwrap();
            assert!(flags.contains(" rr") && flags.contains(" dc"), "{flags}");
        }
        std::fs::write(&path, []).unwrap();
        assert!(fs.open(&path).unwrap().map_for_lookups().unwrap().is_empty());
    }

    /// What the kernel says of the mapping of this file.
    #[cfg(target_os = "linux")]
    fn mapping_flags(path: &Path) -> Option<String> {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (_, rest) = maps.split_once(path.to_str().unwrap())?;
        rest.lines().find(|line| line.starts_with("VmFlags:")).map(str::to_owned)
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn no_mapping_is_there_in_a_forked_child() {
        let (fs, dir) = (RealFs::new(), tempfile::tempdir().unwrap());
        let (log, table) = (dir.path().join("a log"), dir.path().join("a table"));
        let region = fs.create_log(&log, 1 << 16).unwrap();
        std::fs::write(&table, [7; 5000]).unwrap();
        let bytes = fs.open(&table).unwrap().map().unwrap();
        let flags = mapping_flags(&table).expect("it is mapped");
        assert!(flags.split(' ').any(|flag| flag == "dc"), "copied by a fork: {flags}");
        // Not every file system lets a log be mapped.
        if let Some(flags) = mapping_flags(&log) {
            assert!(flags.split(' ').any(|flag| flag == "dc"), "copied by a fork: {flags}");
        }
        drop((region, bytes));
    }

    #[test]
    fn a_lock_is_let_go_even_if_a_child_has_it_open_and_never_by_the_child() {
        let (fs, dir) = (RealFs::new(), tempfile::tempdir().unwrap());
        let path = dir.path().join("LOCK");
        for (process, locked) in [(std::process::id(), false), (std::process::id() + 1, true)] {
            let file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
            file.try_lock().unwrap();
            // What a fork leaves in the child.
            let copy = file.try_clone().unwrap();
            drop(RealLock { file, process });
            let taken = fs.lock(&path).map_err(|error| error.kind());
            assert_eq!(taken.err(), locked.then_some(io::ErrorKind::WouldBlock));
            drop(copy);
        }
    }

    #[test]
    fn a_lock_is_held_once_until_it_drops() {
        let (fs, dir) = (RealFs::new(), tempfile::tempdir().unwrap());
        let path = dir.path().join("LOCK");
        let lock = fs.lock(&path).unwrap();
        assert_eq!(fs.lock(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(RealFs::new().lock(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        let lock = fs.lock(&path).unwrap();
        let file = OsFile::open(&path).unwrap();
        assert!(is_named(&file, &path).unwrap());
        std::fs::remove_file(&path).unwrap();
        assert!(!is_named(&file, &path).unwrap(), "no file has the name");
        let other = fs.lock(&path).expect("the old lock is on a file without this name");
        assert!(!is_named(&file, &path).unwrap(), "another file has it");
        drop((lock, other));
    }

    #[test]
    fn ids() {
        let fs = RealFs::new();
        assert_eq!(fs.boot_id(), RealFs::new().boot_id(), "same boot");
        assert_ne!(fs.boot_id(), 0);
        assert_ne!(fs.random_id(), fs.random_id());
    }
}
