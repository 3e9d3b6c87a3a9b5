//! A file system in memory that can lose power at any moment.
//!
//! - `state`: what is live, what is durable, and the pending effects between them.
//! - `effects`: one pending effect; the list of them.
//! - `contents`: the bytes of a file, in shared chunks.
//! - `crash`: [`Image`] and [`Survival`]: what a power cut leaves.
//!
//! Its rules are the weakest that esker builds on:
//!
//! 1. `sync` makes a file's bytes and length durable, `sync_dir` a directory's names, and nothing
//!    else makes anything durable: not a sync of another file, not the sync of a file its name.
//! 2. What is not durable survives a power cut or does not, each effect for itself and in any
//!    order; writes are torn at any byte.
//! 3. A rename within a directory is one effect. Between directories it fails.
//! 4. A file without a surviving name is gone; a surviving name leads to the durable bytes of its
//!    file, which may be none.
//! 5. After a failed sync the bytes are read as they were written, and no later sync makes them
//!    durable.
//!
//! It is deterministic: the same calls give the same ids, the same images and the same hashes.

mod contents;
mod crash;
mod effects;
mod state;

pub use crate::fs::sim::crash::{Hole, Image, Survival, TEAR_UNITS};

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

use crate::fs::intercept::Call;
use crate::fs::sim::state::{FileState, ROOT, State};
use crate::fs::{File, Fs, Lock, LogRegion};

/// Writes and stores longer than this are seen half done by the hook.
const WHOLE_BYTES: usize = 16;

/// An in-memory file system that can crash. Clones are the same file system.
#[derive(Clone)]
pub struct SimFs {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<Arc<State>>,
    /// Open handles of each file.
    handles: Mutex<BTreeMap<u64, usize>>,
    /// Files whose lock is held.
    locked: Mutex<BTreeSet<u64>>,
    hook: Mutex<Option<Hook>>,
    calls: AtomicU64,
}

/// Hears of every call. See [`SimFs::on_call`].
pub type Hook = Arc<dyn Fn(&SimFs, Phase, &Call<'_>) + Send + Sync>;

/// When a [`Hook`] is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before the call.
    Before,
    /// A write or a store is half done.
    Middle,
    /// After the call, also if it failed.
    After,
}

impl fmt::Debug for SimFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimFs")
    }
}

impl Default for SimFs {
    fn default() -> SimFs {
        SimFs::new()
    }
}

impl SimFs {
    /// An empty file system: its only directory is the root.
    #[must_use]
    pub fn new() -> SimFs {
        SimFs::from_state(Arc::new(State::new()))
    }

    fn from_state(state: Arc<State>) -> SimFs {
        let shared = Shared {
            state: Mutex::new(state),
            handles: Mutex::default(),
            locked: Mutex::default(),
            hook: Mutex::new(None),
            calls: AtomicU64::new(0),
        };
        SimFs { shared: Arc::new(shared) }
    }

    /// The file system as it is now, to crash it later.
    #[must_use]
    pub fn snapshot(&self) -> Image {
        Image::of(Arc::clone(&self.shared.state.lock()))
    }

    /// Calls `hook` before and after each call, and in the middle of each write and store of more
    /// than 16 bytes, with no lock held. It may take snapshots, and hand the turn to another
    /// thread of a stepper; calls it makes to the file system are reported to it again.
    ///
    /// A store's middle has some part of the beginning or of the end, since a copy into a mapping
    /// may begin at either; a write's has some part of the beginning.
    pub fn on_call(&self, hook: Hook) {
        *self.shared.hook.lock() = Some(hook);
    }

    /// Ends [`SimFs::on_call`].
    pub fn clear_hook(&self) {
        *self.shared.hook.lock() = None;
    }

    /// How many calls there were. Those about directories count one for each directory.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::Relaxed)
    }

    /// Limits the bytes that all files together may have; what would exceed it fails with
    /// `StorageFull`.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.change(|state| state.capacity = bytes);
    }

    /// Lets `create_dir_all` make directories without syncing those they are in, to show that some test
    /// sees it.
    pub fn set_forgets_directories(&self, forgets: bool) {
        self.change(|state| state.forgets_dirs = forgets);
    }

    /// A number for all names and bytes that a reader would find. Equal states have equal ones.
    #[must_use]
    pub fn state_hash(&self) -> u64 {
        let mut hasher = Xxh3::new();
        crash::hash_tree(&self.shared.state.lock(), ROOT, &mut hasher);
        hasher.digest()
    }

    /// What a sync of this file that fails does: `left` says which of its pending effects had
    /// reached the disk; the others will never, though they are read as long as the machine runs.
    ///
    /// # Errors
    /// `NotFound` if there is no such file.
    pub fn fail_sync(&self, path: &Path, left: &Survival) -> io::Result<()> {
        self.change(|state| {
            let number = state.file(path)?;
            let durable = crash::contents_after(state, number, left);
            state.fail_sync(number, durable);
            Ok(())
        })
    }

    /// The bytes of a file. Not a call: nobody hears of it.
    ///
    /// # Errors
    /// `NotFound` if there is no such file.
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.shared.state.lock();
        Ok(state.files[&state.file(path)?].live.to_vec())
    }

    /// Replaces the bytes of an existing file, durably: to flip bits and cut files short. Not a
    /// call: nobody hears of it.
    ///
    /// # Errors
    /// `NotFound` if there is no such file.
    pub fn set_contents(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.change(|state| {
            let number = state.file(path)?;
            state.settle(number, bytes);
            Ok(())
        })
    }

    fn change<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(Arc::make_mut(&mut *self.shared.state.lock()))
    }

    fn tell(&self, phase: Phase, call: &Call<'_>) {
        let hook = self.shared.hook.lock().clone();
        if let Some(hook) = hook {
            hook(self, phase, call);
        }
    }

    fn call<'a>(&self, name: &'static str, path: &'a Path) -> Call<'a> {
        Call::new(self.shared.calls.fetch_add(1, Ordering::Relaxed), name, path)
    }

    /// Does something that the hook hears of before and after.
    fn perform<T>(&self, call: &Call<'_>, f: impl FnOnce() -> T) -> T {
        self.tell(Phase::Before, call);
        let result = f();
        self.tell(Phase::After, call);
        result
    }

    fn handle(&self, number: u64, path: &Path, writable: bool) -> Handle {
        *self.shared.handles.lock().entry(number).or_default() += 1;
        Handle { fs: self.clone(), number, path: path.to_path_buf(), writable }
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let call = self.call("create_dir", dir);
        self.perform(&call, || self.change(|state| state.create_dir(dir)))
    }
}

/// The parent of a path, the root of what has none.
fn parent_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

impl Fs for SimFs {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let call = self.call("create", path);
        self.perform(&call, || {
            let number = self.change(|state| state.create(path))?;
            Ok(Arc::new(self.handle(number, path, true)) as Arc<dyn File>)
        })
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let call = self.call("open", path);
        self.perform(&call, || {
            let number = self.shared.state.lock().file(path)?;
            Ok(Arc::new(self.handle(number, path, false)) as Arc<dyn File>)
        })
    }

    fn create_log(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn LogRegion>> {
        let call = Call { bytes, ..self.call("create_log", path) };
        self.perform(&call, || {
            let number = self.change(|state| state.create_log(path, bytes))?;
            let handle = self.handle(number, path, true);
            Ok(Arc::new(Log { handle, bytes }) as Arc<dyn LogRegion>)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let call = Call { to: Some(to), ..self.call("rename", from) };
        self.perform(&call, || self.change(|state| state.rename(from, to)))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let call = Call { to: Some(to), ..self.call("link", from) };
        self.perform(&call, || self.change(|state| state.link(from, to)))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let call = self.call("remove", path);
        self.perform(&call, || self.change(|state| state.remove(path)))
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let call = self.call("remove_dir", dir);
        self.perform(&call, || self.change(|state| state.remove_dir(dir)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let call = self.call("list", dir);
        self.perform(&call, || {
            let state = self.shared.state.lock();
            let names = &state.dirs[&state.dir(dir)?].live;
            Ok(names.keys().map(ToString::to_string).collect())
        })
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let exists = |dir: &Path| self.shared.state.lock().dir(dir);
        let (mut missing, mut at) = (Vec::new(), dir);
        loop {
            match exists(at) {
                Ok(_) => break,
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                Err(_) => {
                    missing.push(at);
                    at = parent_of(at);
                }
            }
        }
        let forgets = self.shared.state.lock().forgets_dirs;
        let sync = |dir| if forgets { Ok(()) } else { self.sync_dir(dir) };
        // As the real one does: a process may have been killed between making and syncing it.
        sync(parent_of(at))?;
        for dir in missing.into_iter().rev() {
            self.create_dir(dir)?;
            sync(parent_of(dir))?;
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let call = self.call("sync_dir", dir);
        self.perform(&call, || {
            let handles = self.shared.handles.lock();
            self.change(|state| {
                state.sync_dir(dir)?;
                state.drop_unreachable(|number| handles.contains_key(&number));
                Ok(())
            })
        })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let call = self.call("lock", path);
        self.perform(&call, || {
            let number = self.change(|state| match state.create(path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => state.file(path),
                other => other,
            })?;
            match self.shared.locked.lock().insert(number) {
                true => Ok(Box::new(Held { handle: self.handle(number, path, false) }) as _),
                false => Err(io::Error::from(io::ErrorKind::WouldBlock)),
            }
        })
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let call = self.call("free_bytes", dir);
        self.perform(&call, || {
            let state = self.shared.state.lock();
            state.dir(dir).map(|_| state.free())
        })
    }

    fn boot_id(&self) -> u128 {
        let boots = self.shared.state.lock().boots;
        xxh3_128(&[b"boot".as_slice(), &boots.to_le_bytes()].concat())
    }

    fn random_id(&self) -> u128 {
        let (boots, ids) = self.change(|state| {
            state.ids += 1;
            (state.boots, state.ids)
        });
        xxh3_128(&[boots.to_le_bytes(), ids.to_le_bytes()].concat())
    }
}

/// An open file.
struct Handle {
    fs: SimFs,
    number: u64,
    path: PathBuf,
    writable: bool,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulated {}", self.path.display())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut handles = self.fs.shared.handles.lock();
        let count = handles.get_mut(&self.number).expect("a handle is counted");
        *count -= 1;
        if *count == 0 {
            handles.remove(&self.number);
        }
    }
}

impl Handle {
    fn call(&self, name: &'static str) -> Call<'_> {
        self.fs.call(name, &self.path)
    }

    /// Does something to the file that a crash can undo.
    fn change<T>(
        &self,
        call: &Call<'_>,
        f: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        self.fs.perform(call, || {
            self.check_writable()?;
            self.fs.change(f)
        })
    }

    fn check_writable(&self) -> io::Result<()> {
        match self.writable {
            true => Ok(()),
            false => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
        }
    }

    fn read<T>(&self, f: impl FnOnce(&FileState) -> T) -> T {
        let file = Arc::clone(&self.fs.shared.state.lock().files[&self.number]);
        f(&file)
    }

    /// Writes `data`; where somebody watches, the part `first` of it first.
    fn write(&self, call: &Call<'_>, data: &[u8], first: Range<usize>) -> io::Result<()> {
        let put = |offset: u64, data: &[u8], begun| {
            self.fs.change(|state| state.write(self.number, offset, data, begun))
        };
        self.fs.perform(call, || {
            self.check_writable()?;
            let mut begun = None;
            if data.len() > WHOLE_BYTES && self.fs.shared.hook.lock().is_some() {
                begun = Some(put(call.offset + first.start as u64, &data[first], None)?);
                self.fs.tell(Phase::Middle, call);
            }
            put(call.offset, data, begun).map(drop)
        })
    }
}

impl File for Handle {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let call = Call { offset, bytes: data.len() as u64, ..self.call("write") };
        let (cut, _) = middle(call.index, data.len());
        self.write(&call, data, 0..cut)
    }

    fn sync(&self) -> io::Result<()> {
        let call = self.call("sync");
        self.fs.perform(&call, || {
            self.fs.change(|state| state.sync(self.number));
            Ok(())
        })
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let call = Call { bytes, ..self.call("allocate") };
        self.change(&call, |state| state.allocate(self.number, bytes))
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let call = Call { bytes, ..self.call("set_len") };
        self.change(&call, |state| state.set_len(self.number, bytes))
    }

    fn len(&self) -> io::Result<u64> {
        let call = self.call("len");
        self.fs.perform(&call, || Ok(self.read(|file| file.live.len())))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = buf.len() as u64;
        let call = Call { offset, bytes, ..self.call("read") };
        self.fs.perform(&call, || {
            self.read(|file| match offset.checked_add(bytes) {
                Some(end) if end <= file.live.len() => {
                    file.live.read(buf, offset);
                    Ok(())
                }
                _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            })
        })
    }

    fn map(&self) -> io::Result<Bytes> {
        let call = self.call("map");
        self.fs.perform(&call, || Ok(self.read(FileState::map)))
    }
}

/// Where a write of `bytes` bytes is halfway, and whether it began at its end.
fn middle(index: u64, bytes: usize) -> (usize, bool) {
    let drawn = xxh3_64(&index.to_le_bytes());
    let cut = 1 + (drawn >> 1) as usize % bytes.saturating_sub(1).max(1);
    (cut.min(bytes), drawn & 1 == 1)
}

/// A log region.
struct Log {
    handle: Handle,
    bytes: u64,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handle.fmt(f)
    }
}

impl LogRegion for Log {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn store(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let room = self.bytes.checked_sub(offset).expect("an offset within the log");
        assert!(data.len() as u64 <= room, "a store beyond the log's end");
        let call = Call { offset, bytes: data.len() as u64, ..self.handle.call("store") };
        let first = match middle(call.index, data.len()) {
            (cut, false) => 0..cut,
            (cut, true) => cut..data.len(),
        };
        self.handle.write(&call, data, first)
    }

    fn sync(&self) -> io::Result<()> {
        self.handle.sync()
    }

    fn touch(&self, _offset: u64, _bytes: u64) {}

    fn end_at(&self, bytes: u64) -> io::Result<()> {
        self.handle.set_len(bytes)
    }
}

/// A lock that is held.
#[derive(Debug)]
struct Held {
    handle: Handle,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.handle.fs.shared.locked.lock().remove(&self.handle.number);
    }
}

impl Lock for Held {}

#[cfg(test)]
mod tests;
