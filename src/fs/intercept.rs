//! Stands between the engine and a file system: sees every call and may fail, skip, delay or cut
//! it. `fault`, `trace` and `sabotage` are three [`Interceptor`]s.
//!
//! Calls have these names, here and in the simulated file system:
//!
//! ```text
//! changing   create create_log create_dir_all rename link remove sync_dir lock
//!            write set_len allocate sync store
//! reading    open list free_bytes len read map
//! ```
//!
//! `create_dir_all` is one call here; the simulated file system sees what it consists of, as
//! `create_dir` and `sync_dir`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::fs::{File, Fs, Lock, LogRegion, current_site};

/// One call of the engine to its file system.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// How many calls came before it.
    pub index: u64,
    /// Its name, from the table at the top of this module.
    pub name: &'static str,
    /// What it is about. Of a `rename` or `link`: the old name.
    pub path: &'a Path,
    /// Of a `rename` or `link`: the new name.
    pub to: Option<&'a Path>,
    /// Of a `write`, `store` or `read`: where in the file.
    pub offset: u64,
    /// Of a `write`, `store`, `read`, `create_log`, `set_len` or `allocate`: how many bytes.
    pub bytes: u64,
}

impl<'a> Call<'a> {
    pub(crate) fn new(index: u64, name: &'static str, path: &'a Path) -> Call<'a> {
        Call { index, name, path, to: None, offset: 0, bytes: 0 }
    }

    /// True if a crash after the call can leave another state than one before it.
    #[must_use]
    pub fn changes(&self) -> bool {
        !["open", "list", "free_bytes", "len", "read", "map"].contains(&self.name)
    }

    /// True if it is `sync` or `sync_dir`.
    #[must_use]
    pub fn is_sync(&self) -> bool {
        matches!(self.name, "sync" | "sync_dir")
    }

    /// The last part of its path.
    #[must_use]
    pub fn file_name(&self) -> &'a str {
        file_name(self.path)
    }
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or("/")
}

impl fmt::Display for Call<'_> {
    /// `store 000007.log 128+160`: file names only, so that the text is the same in every
    /// directory.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name == "sync_dir" {
            return f.write_str("sync_dir");
        }
        write!(f, "{} {}", self.name, self.file_name())?;
        match (self.name, self.to) {
            (_, Some(to)) => write!(f, " {}", file_name(to)),
            ("write" | "store" | "read", _) => write!(f, " {}+{}", self.offset, self.bytes),
            ("create_log" | "set_len" | "allocate", _) => write!(f, " {}", self.bytes),
            _ => Ok(()),
        }
    }
}

/// Which calls something applies to: those that match everything that is given.
#[derive(Clone, Debug, Default)]
pub struct Select {
    name: Option<&'static str>,
    file: Option<String>,
    within: Option<String>,
    site: Option<&'static str>,
}

impl Select {
    /// Every call.
    #[must_use]
    pub fn all() -> Select {
        Select::default()
    }

    /// Calls of this name.
    #[must_use]
    pub fn name(self, name: &'static str) -> Select {
        Select { name: Some(name), ..self }
    }

    /// Calls about a file whose name contains this: `".log"`, `"manifest-"`, `"CURRENT.tmp"`.
    #[must_use]
    pub fn file(self, part: &str) -> Select {
        Select { file: Some(part.to_owned()), ..self }
    }

    /// Calls about a file or directory whose whole path contains this: `"queues/orders"`.
    #[must_use]
    pub fn within(self, part: &str) -> Select {
        Select { within: Some(part.to_owned()), ..self }
    }

    /// Calls from the place in the engine that has this name; see [`crate::fs::site`].
    #[must_use]
    pub fn site(self, site: &'static str) -> Select {
        Select { site: Some(site), ..self }
    }

    /// True if it applies to this call of this thread.
    #[must_use]
    pub fn matches(&self, call: &Call<'_>) -> bool {
        self.name.is_none_or(|name| name == call.name)
            && self.file.as_ref().is_none_or(|part| call.file_name().contains(part))
            && self.within.as_ref().is_none_or(|part| call.path.to_string_lossy().contains(part))
            && self.site.is_none_or(|site| Some(site) == current_site())
    }
}

/// What becomes of a call.
#[derive(Debug)]
pub enum Verdict {
    /// It is done.
    Proceed,
    /// It is not done, and reported as done. For calls that return nothing; others are done.
    Skip,
    /// It is reported as done, and done after the next call that changes something. For `sync`,
    /// `sync_dir` and `rename`; a panic for others.
    Delay,
    /// It is not done, and reported as failed.
    Fail(io::Error),
    /// A `write` or `store` of which only the first half is done, and reported as failed.
    Half(io::Error),
}

/// Decides about each call.
pub trait Interceptor: Send + Sync + fmt::Debug + 'static {
    /// Says what becomes of this call.
    fn before(&self, call: &Call<'_>) -> Verdict;

    /// Hears that a call was not done, or that the file system failed it.
    fn failed(&self, _call: &Call<'_>, _error: &io::Error) {}
}

/// A file system behind an interceptor. Clones share both.
pub struct Intercepted<I> {
    shared: Arc<Shared<I>>,
}

struct Shared<I> {
    inner: Arc<dyn Fs>,
    by: I,
    calls: AtomicU64,
    delayed: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
}

impl<I> Clone for Intercepted<I> {
    fn clone(&self) -> Intercepted<I> {
        Intercepted { shared: Arc::clone(&self.shared) }
    }
}

impl<I: fmt::Debug> fmt::Debug for Intercepted<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} over {:?}", self.shared.by, self.shared.inner)
    }
}

impl<I: Interceptor> Intercepted<I> {
    /// Puts `by` in front of `inner`.
    pub fn over(inner: Arc<dyn Fs>, by: I) -> Intercepted<I> {
        let (calls, delayed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        Intercepted { shared: Arc::new(Shared { inner, by, calls, delayed }) }
    }

    /// How many calls there were.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::Relaxed)
    }

    /// The interceptor.
    #[must_use]
    pub fn interceptor(&self) -> &I {
        &self.shared.by
    }

    fn inner(&self) -> &dyn Fs {
        &*self.shared.inner
    }

    fn call<'a>(&self, name: &'static str, path: &'a Path) -> Call<'a> {
        Call::new(self.shared.calls.fetch_add(1, Ordering::Relaxed), name, path)
    }

    /// A call that returns something, and so can only be done or failed.
    fn fetch<T>(&self, call: &Call<'_>, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let result = match self.shared.by.before(call) {
            Verdict::Fail(error) | Verdict::Half(error) => Err(error),
            Verdict::Proceed | Verdict::Skip | Verdict::Delay => self.perform(call, f),
        };
        result.inspect_err(|error| self.shared.by.failed(call, error))
    }

    /// A call that returns nothing. `half` is what a short write does.
    fn act(
        &self,
        call: &Call<'_>,
        f: impl FnOnce() -> io::Result<()>,
        half: impl FnOnce() -> io::Result<()>,
        later: impl FnOnce() -> Box<dyn FnOnce() + Send>,
    ) -> io::Result<()> {
        let result = match self.shared.by.before(call) {
            Verdict::Proceed => self.perform(call, f),
            Verdict::Skip => Ok(()),
            Verdict::Delay => {
                self.shared.delayed.lock().push(later());
                Ok(())
            }
            Verdict::Fail(error) => Err(error),
            Verdict::Half(error) => half().and(Err(error)),
        };
        result.inspect_err(|error| self.shared.by.failed(call, error))
    }

    /// Does a call, and after it what was delayed until such a call.
    fn perform<T>(&self, call: &Call<'_>, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let delayed = match call.changes() {
            true => std::mem::take(&mut *self.shared.delayed.lock()),
            false => Vec::new(),
        };
        let result = f();
        delayed.into_iter().for_each(|call| call());
        result
    }

    fn file(&self, path: &Path, inner: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(Handle { fs: self.clone(), path: path.to_path_buf(), inner })
    }
}

/// For calls that nobody delays: only syncs and renames are.
fn never() -> Box<dyn FnOnce() + Send> {
    unreachable!("only syncs and renames are delayed")
}

fn nothing() -> io::Result<()> {
    Ok(())
}

impl<I: Interceptor> Fs for Intercepted<I> {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let call = self.call("create", path);
        self.fetch(&call, || Ok(self.file(path, self.inner().create(path)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let call = self.call("open", path);
        self.fetch(&call, || Ok(self.file(path, self.inner().open(path)?)))
    }

    fn create_log(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn LogRegion>> {
        let call = Call { bytes, ..self.call("create_log", path) };
        self.fetch(&call, || {
            let inner = self.inner().create_log(path, bytes)?;
            let (fs, path) = (self.clone(), path.to_path_buf());
            Ok(Arc::new(Handle { fs, path, inner }) as Arc<dyn LogRegion>)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let call = Call { to: Some(to), ..self.call("rename", from) };
        let later = || {
            let (fs, from, to) =
                (Arc::clone(&self.shared.inner), from.to_path_buf(), to.to_path_buf());
            Box::new(move || drop(fs.rename(&from, &to))) as Box<dyn FnOnce() + Send>
        };
        self.act(&call, || self.inner().rename(from, to), nothing, later)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let call = Call { to: Some(to), ..self.call("link", from) };
        self.act(&call, || self.inner().link(from, to), nothing, never)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let call = self.call("remove", path);
        self.act(&call, || self.inner().remove(path), nothing, never)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let call = self.call("remove_dir", dir);
        self.act(&call, || self.inner().remove_dir(dir), nothing, never)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let call = self.call("list", dir);
        self.fetch(&call, || self.inner().list(dir))
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let call = self.call("create_dir_all", dir);
        self.act(&call, || self.inner().create_dir_all(dir), nothing, never)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let call = self.call("sync_dir", dir);
        let later = || {
            let (fs, dir): (_, PathBuf) = (Arc::clone(&self.shared.inner), dir.to_path_buf());
            Box::new(move || drop(fs.sync_dir(&dir))) as Box<dyn FnOnce() + Send>
        };
        self.act(&call, || self.inner().sync_dir(dir), nothing, later)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let call = self.call("lock", path);
        self.fetch(&call, || self.inner().lock(path))
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let call = self.call("free_bytes", dir);
        self.fetch(&call, || self.inner().free_bytes(dir))
    }

    fn boot_id(&self) -> u128 {
        self.inner().boot_id()
    }

    fn random_id(&self) -> u128 {
        self.inner().random_id()
    }
}

/// An open file or a log region behind an interceptor.
struct Handle<I, H: ?Sized> {
    fs: Intercepted<I>,
    path: PathBuf,
    inner: Arc<H>,
}

impl<I, H: ?Sized + fmt::Debug> fmt::Debug for Handle<I, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "intercepted {:?}", self.inner)
    }
}

impl<I: Interceptor> File for Handle<I, dyn File> {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let bytes = data.len() as u64;
        let call = Call { offset, bytes, ..self.fs.call("write", &self.path) };
        let half = || self.inner.write_at(offset, &data[..data.len() / 2]);
        self.fs.act(&call, || self.inner.write_at(offset, data), half, never)
    }

    fn sync(&self) -> io::Result<()> {
        let call = self.fs.call("sync", &self.path);
        let later = || {
            let file = Arc::clone(&self.inner);
            Box::new(move || drop(file.sync())) as Box<dyn FnOnce() + Send>
        };
        self.fs.act(&call, || self.inner.sync(), nothing, later)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let call = Call { bytes, ..self.fs.call("allocate", &self.path) };
        self.fs.act(&call, || self.inner.allocate(bytes), nothing, never)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let call = Call { bytes, ..self.fs.call("set_len", &self.path) };
        self.fs.act(&call, || self.inner.set_len(bytes), nothing, never)
    }

    fn len(&self) -> io::Result<u64> {
        let call = self.fs.call("len", &self.path);
        self.fs.fetch(&call, || self.inner.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = buf.len() as u64;
        let call = Call { offset, bytes, ..self.fs.call("read", &self.path) };
        self.fs.fetch(&call, || self.inner.read_at(buf, offset))
    }

    fn map(&self) -> io::Result<Bytes> {
        let call = self.fs.call("map", &self.path);
        self.fs.fetch(&call, || self.inner.map())
    }
}

impl<I: Interceptor> LogRegion for Handle<I, dyn LogRegion> {
    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }

    fn store(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let bytes = data.len() as u64;
        let call = Call { offset, bytes, ..self.fs.call("store", &self.path) };
        let half = || self.inner.store(offset, &data[..data.len() / 2]);
        self.fs.act(&call, || self.inner.store(offset, data), half, never)
    }

    fn sync(&self) -> io::Result<()> {
        let call = self.fs.call("sync", &self.path);
        let later = || {
            let log = Arc::clone(&self.inner);
            Box::new(move || drop(log.sync())) as Box<dyn FnOnce() + Send>
        };
        self.fs.act(&call, || self.inner.sync(), nothing, later)
    }

    fn touch(&self, offset: u64, bytes: u64) {
        self.inner.touch(offset, bytes);
    }

    fn end_at(&self, bytes: u64) -> io::Result<()> {
        let call = Call { bytes, ..self.fs.call("set_len", &self.path) };
        self.fs.act(&call, || self.inner.end_at(bytes), nothing, never)
    }
}
