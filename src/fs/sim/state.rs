//! The simulated disk and the kernel's memory of it: what is live, what is durable, and the
//! effects that lie between.
//!
//! For each file and each directory, `durable` with all its `pending` effects applied in order is
//! `live`, except for what a failed sync made the kernel forget, which only `live` has.
//! Everything is behind `Arc`s and duplicated when it changes, so that an image costs one
//! reference count and the next change little more.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::fs::sim::contents::Contents;
use crate::fs::sim::effects::{DataEffect, DirEffect, Entry, Pending};

/// Number of the root directory.
pub(super) const ROOT: u64 = 0;

#[derive(Clone)]
pub(super) struct State {
    pub(super) files: BTreeMap<u64, Arc<FileState>>,
    pub(super) dirs: BTreeMap<u64, Arc<DirState>>,
    /// The number of the next file or directory.
    next: u64,
    /// The place of the next effect.
    sequence: u64,
    pub(super) boots: u64,
    pub(super) ids: u64,
    /// What all files together may hold.
    pub(super) capacity: Option<u64>,
    /// `create_dir_all` does not sync what it makes.
    pub(super) forgets_dirs: bool,
}

#[derive(Clone)]
pub(super) struct FileState {
    pub(super) live: Contents,
    pub(super) durable: Contents,
    pub(super) pending: Pending<DataEffect>,
    /// A sync failed, so `live` has what will never be durable.
    forgot: bool,
    /// Bytes reserved by `allocate`.
    reserved: u64,
    /// `live` in one piece, once somebody asked for it.
    mapped: OnceLock<Bytes>,
    /// The hash of `live`, once somebody asked for it.
    hashed: OnceLock<u64>,
}

#[derive(Clone)]
pub(super) struct DirState {
    pub(super) live: Names,
    pub(super) durable: Names,
    pub(super) pending: Pending<DirEffect>,
}

pub(super) type Names = BTreeMap<Arc<str>, Entry>;

impl FileState {
    /// A file whose contents are durable.
    pub(super) fn settled(contents: Contents) -> FileState {
        let (live, durable) = (contents.clone(), contents);
        let (pending, mapped, hashed) = (Pending::new(), OnceLock::new(), OnceLock::new());
        FileState { live, durable, pending, forgot: false, reserved: 0, mapped, hashed }
    }

    /// True if a crash cannot change it.
    pub(super) fn is_settled(&self) -> bool {
        self.pending.count() == 0 && !self.forgot
    }

    pub(super) fn map(&self) -> Bytes {
        self.mapped.get_or_init(|| Bytes::from(self.live.to_vec())).clone()
    }

    /// A number for the bytes a reader would find.
    pub(super) fn hash(&self) -> u64 {
        *self.hashed.get_or_init(|| {
            let mut hasher = Xxh3::new();
            self.live.hash(&mut hasher);
            hasher.digest()
        })
    }

    fn used(&self) -> u64 {
        self.live.len().max(self.reserved)
    }

    fn sync(&mut self) {
        if self.forgot {
            self.pending.in_order().iter().for_each(|node| apply(&mut self.durable, &node.effect));
        } else {
            self.durable = self.live.clone();
        }
        self.pending = Pending::new();
    }
}

/// Does to the bytes what the effect says.
pub(super) fn apply(contents: &mut Contents, effect: &DataEffect) {
    match effect {
        DataEffect::Write { offset, data, .. } => contents.write(*offset, data),
        DataEffect::SetLen { bytes } => contents.set_len(*bytes),
    }
}

/// Does to the names what the effect says. Those it removes may be missing: the effect that made
/// them did not survive.
pub(super) fn apply_names(names: &mut Names, effect: &DirEffect) {
    match effect {
        DirEffect::Link { name, entry } => {
            names.insert(Arc::clone(name), *entry);
        }
        DirEffect::Unlink { name } => {
            names.remove(name);
        }
        DirEffect::Rename { from, to, entry } => {
            names.remove(from);
            names.insert(Arc::clone(to), *entry);
        }
    }
}

impl DirState {
    pub(super) fn settled(names: Names) -> DirState {
        DirState { live: names.clone(), durable: names, pending: Pending::new() }
    }
}

fn error<T>(kind: io::ErrorKind) -> io::Result<T> {
    Err(io::Error::from(kind))
}

impl State {
    /// An empty disk.
    pub(super) fn new() -> State {
        let root = Arc::new(DirState::settled(Names::new()));
        let dirs = BTreeMap::from([(ROOT, root)]);
        let files = BTreeMap::new();
        State {
            files,
            dirs,
            next: ROOT + 1,
            sequence: 0,
            boots: 1,
            ids: 0,
            capacity: None,
            forgets_dirs: false,
        }
    }

    // Finding things.

    /// The directory at this path. Relative paths begin at the root too.
    pub(super) fn dir(&self, path: &Path) -> io::Result<u64> {
        let mut at = ROOT;
        for component in path.components() {
            let name = match component {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => name.to_str(),
                Component::ParentDir | Component::Prefix(_) => None,
            };
            let name = name.ok_or(io::ErrorKind::InvalidInput)?;
            match self.dirs[&at].live.get(name) {
                Some(Entry::Dir(number)) => at = *number,
                Some(Entry::File(_)) => return error(io::ErrorKind::NotADirectory),
                None => return error(io::ErrorKind::NotFound),
            }
        }
        Ok(at)
    }

    /// The directory and the name within it.
    fn place(&self, path: &Path) -> io::Result<(u64, Arc<str>)> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = Arc::from(name.ok_or(io::ErrorKind::InvalidInput)?);
        Ok((self.dir(path.parent().unwrap_or(Path::new("/")))?, name))
    }

    fn entry(&self, path: &Path) -> io::Result<Entry> {
        let (dir, name) = self.place(path)?;
        let entry = self.dirs[&dir].live.get(&name).copied();
        entry.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    /// The file at this path.
    pub(super) fn file(&self, path: &Path) -> io::Result<u64> {
        match self.entry(path)? {
            Entry::File(number) => Ok(number),
            Entry::Dir(_) => error(io::ErrorKind::IsADirectory),
        }
    }

    /// Bytes that may still be written.
    pub(super) fn free(&self) -> u64 {
        let Some(capacity) = self.capacity else { return u64::MAX };
        let entries = self.dirs.values().flat_map(|dir| dir.live.values());
        let files: BTreeSet<u64> = entries.filter_map(file_number).collect();
        let used: u64 = files.iter().map(|number| self.files[number].used()).sum();
        capacity.saturating_sub(used)
    }

    /// Fails if a file that takes `now` bytes cannot take `then`.
    fn check_room(&self, now: u64, then: u64) -> io::Result<()> {
        match then > now && then - now > self.free() {
            true => error(io::ErrorKind::StorageFull),
            false => Ok(()),
        }
    }

    // Names.

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn affect_names(&mut self, dir: u64, effect: DirEffect) {
        let dir = Arc::make_mut(self.dirs.get_mut(&dir).expect("a directory that was found"));
        apply_names(&mut dir.live, &effect);
        dir.pending.push(self.sequence, effect);
        self.sequence += 1;
    }

    fn link_new(&mut self, path: &Path, make: fn(u64) -> Entry) -> io::Result<u64> {
        let (dir, name) = self.place(path)?;
        if self.dirs[&dir].live.contains_key(&name) {
            return error(io::ErrorKind::AlreadyExists);
        }
        let number = self.number();
        self.affect_names(dir, DirEffect::Link { name, entry: make(number) });
        Ok(number)
    }

    /// Makes an empty file.
    pub(super) fn create(&mut self, path: &Path) -> io::Result<u64> {
        let number = self.link_new(path, Entry::File)?;
        self.files.insert(number, Arc::new(FileState::settled(Contents::default())));
        Ok(number)
    }

    /// Makes a file of this length.
    pub(super) fn create_log(&mut self, path: &Path, bytes: u64) -> io::Result<u64> {
        self.check_room(0, bytes)?;
        let number = self.create(path)?;
        self.set_len(number, bytes)?;
        Ok(number)
    }

    pub(super) fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        let number = self.link_new(path, Entry::Dir)?;
        self.dirs.insert(number, Arc::new(DirState::settled(Names::new())));
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let entry = self.entry(from)?;
        let ((dir, from), (to_dir, to)) = (self.place(from)?, self.place(to)?);
        if dir != to_dir {
            // Atomic over two directories is more than this disk promises.
            return error(io::ErrorKind::CrossesDevices);
        }
        match (entry, self.dirs[&dir].live.get(&to)) {
            (_, None) | (Entry::File(_), Some(Entry::File(_))) => {}
            (_, Some(Entry::Dir(_))) => return error(io::ErrorKind::IsADirectory),
            (Entry::Dir(_), Some(Entry::File(_))) => return error(io::ErrorKind::NotADirectory),
        }
        if from != to {
            self.affect_names(dir, DirEffect::Rename { from, to, entry });
        }
        Ok(())
    }

    pub(super) fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let entry = Entry::File(self.file(from)?);
        let (dir, name) = self.place(to)?;
        if self.dirs[&dir].live.contains_key(&name) {
            return error(io::ErrorKind::AlreadyExists);
        }
        self.affect_names(dir, DirEffect::Link { name, entry });
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.file(path)?;
        let (dir, name) = self.place(path)?;
        self.affect_names(dir, DirEffect::Unlink { name });
        Ok(())
    }

    pub(super) fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        let number = self.dir(path)?;
        if !self.dirs[&number].live.is_empty() {
            return error(io::ErrorKind::DirectoryNotEmpty);
        }
        let (dir, name) = self.place(path)?;
        self.affect_names(dir, DirEffect::Unlink { name });
        Ok(())
    }

    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let dir = self.dir(path)?;
        let dir = Arc::make_mut(self.dirs.get_mut(&dir).expect("a directory that was found"));
        dir.durable = dir.live.clone();
        dir.pending = Pending::new();
        Ok(())
    }

    /// Drops the files that nothing can lead to any more: no name, live, durable or pending, and
    /// no open handle.
    pub(super) fn drop_unreachable(&mut self, is_open: impl Fn(u64) -> bool) {
        let mut reachable = BTreeSet::new();
        for dir in self.dirs.values() {
            reachable.extend(dir.live.values().chain(dir.durable.values()).filter_map(file_number));
            for node in dir.pending.in_order() {
                match &node.effect {
                    DirEffect::Link { entry, .. } | DirEffect::Rename { entry, .. } => {
                        reachable.extend(file_number(entry));
                    }
                    DirEffect::Unlink { .. } => {}
                }
            }
        }
        self.files.retain(|number, _| reachable.contains(number) || is_open(*number));
    }

    // Bytes.

    fn file_mut(&mut self, number: u64) -> &mut FileState {
        Arc::make_mut(self.files.get_mut(&number).expect("an open file is kept"))
    }

    /// Writes, and says which place the effect has. `begun` is the place of an effect that was
    /// the beginning of this one, and that it takes the place of.
    pub(super) fn write(
        &mut self,
        number: u64,
        offset: u64,
        data: &[u8],
        begun: Option<u64>,
    ) -> io::Result<u64> {
        let end = offset + data.len() as u64;
        let used = self.files[&number].used();
        self.check_room(used, end)?;
        let sequence = self.sequence;
        self.sequence += 1;
        let file = self.file_mut(number);
        if let Some(place) = begun {
            drop(file.pending.take_back(place));
        }
        // Also if the beginning grew it: what grows a file is begun at the front, so that the rest
        // grows it further.
        let grows = end > file.live.len();
        let effect = DataEffect::Write { offset, data: Bytes::copy_from_slice(data), grows };
        apply(&mut file.live, &effect);
        file.pending.push(sequence, effect);
        (file.mapped, file.hashed) = (OnceLock::new(), OnceLock::new());
        Ok(sequence)
    }

    pub(super) fn set_len(&mut self, number: u64, bytes: u64) -> io::Result<()> {
        let used = self.files[&number].used();
        self.check_room(used, bytes)?;
        let sequence = self.sequence;
        self.sequence += 1;
        let file = self.file_mut(number);
        let effect = DataEffect::SetLen { bytes };
        apply(&mut file.live, &effect);
        file.pending.push(sequence, effect);
        (file.mapped, file.hashed) = (OnceLock::new(), OnceLock::new());
        // What was reserved beyond is free again.
        file.reserved = file.reserved.min(bytes);
        Ok(())
    }

    pub(super) fn allocate(&mut self, number: u64, bytes: u64) -> io::Result<()> {
        let used = self.files[&number].used();
        self.check_room(used, bytes)?;
        let file = self.file_mut(number);
        file.reserved = file.reserved.max(bytes);
        Ok(())
    }

    pub(super) fn sync(&mut self, number: u64) {
        self.file_mut(number).sync();
    }

    /// A sync that fails: `durable` is what it had made durable before that, and the kernel takes
    /// everything else for written.
    pub(super) fn fail_sync(&mut self, number: u64, durable: Contents) {
        let file = self.file_mut(number);
        file.durable = durable;
        file.pending = Pending::new();
        file.forgot = true;
    }

    /// Replaces a file's bytes, durably.
    pub(super) fn settle(&mut self, number: u64, bytes: &[u8]) {
        let mut contents = Contents::default();
        contents.write(0, bytes);
        *self.file_mut(number) = FileState::settled(contents);
    }
}

pub(super) fn file_number(entry: &Entry) -> Option<u64> {
    match entry {
        Entry::File(number) => Some(*number),
        Entry::Dir(_) => None,
    }
}
