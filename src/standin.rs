//! A stand-in for the engine, with its public signatures: a `BTreeMap` behind one lock, written to
//! a single file when the last handle drops. It lets the program, the examples and their tests run
//! before the engine is there, and goes when it is.
#![allow(missing_docs, reason = "goes when the engine is there")]

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::future::Future;
use std::io::Write;
use std::ops::{Bound, Deref, RangeBounds};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::RwLock;

use crate::error::{BusyCause, Error, ErrorKind, Result};
use crate::operator::{self, MergeOperator, Merged, Operand};
use crate::options::{Compression, Durability, Filter, Options, ReadMode};
use crate::slice::Slice;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

struct Space {
    map: Arc<Map>,
    operator: Option<Arc<dyn MergeOperator>>,
}

struct Inner {
    path: PathBuf,
    spaces: RwLock<BTreeMap<String, Space>>,
    tries: AtomicU64,
    user_bytes: AtomicU64,
    saved: AtomicBool,
    memory: usize,
    _lock: fs::File,
}

const FILE: &str = "STANDIN";

impl Inner {
    fn open(path: &Path, options: &Options) -> Result<Inner> {
        let file = path.join(FILE);
        if !path.exists() {
            if !options.create {
                return Err(Error::invalid(format!("{}: no database here", path.display())));
            }
            fs::create_dir_all(path).map_err(|e| Error::io("create", path, e))?;
        }
        let empty = fs::read_dir(path).map_err(|e| Error::io("list", path, e))?.next().is_none();
        if !file.exists() && (!empty || !options.create) {
            let text = format!("{}: not a directory of an esker database", path.display());
            return Err(Error::invalid(text));
        }
        let lock = fs::File::create(path.join("LOCK")).map_err(|e| Error::io("open", path, e))?;
        if lock.try_lock().is_err() {
            return Err(Error::new(ErrorKind::Locked).context(path.display().to_string()));
        }
        let mut spaces = match fs::read(&file) {
            Ok(bytes) => load(&file, &bytes)?,
            Err(_) => BTreeMap::new(),
        };
        let new = || Space { map: Arc::default(), operator: None };
        spaces.entry("default".to_owned()).or_insert_with(new);
        let inner = Inner {
            path: path.to_path_buf(),
            spaces: RwLock::new(spaces),
            tries: AtomicU64::new(0),
            user_bytes: AtomicU64::new(0),
            saved: AtomicBool::new(false),
            memory: options.memory,
            _lock: lock,
        };
        inner.save()?;
        inner.saved.store(false, Ordering::Relaxed);
        Ok(inner)
    }

    fn save(&self) -> Result<()> {
        let mut bytes = Vec::new();
        let mut field = |field: &[u8]| {
            bytes.extend_from_slice(&(field.len() as u32).to_le_bytes());
            bytes.extend_from_slice(field);
        };
        for (name, space) in &*self.spaces.read() {
            field(name.as_bytes());
            field(space.operator.as_ref().map_or("", |op| op.name()).as_bytes());
            field(&(space.map.len() as u64).to_le_bytes());
            for (key, value) in &*space.map {
                field(key);
                field(value);
            }
        }
        let mut whole = crc32fast::hash(&bytes).to_le_bytes().to_vec();
        whole.append(&mut bytes);
        let file = self.path.join(FILE);
        self.saved.store(true, Ordering::Relaxed);
        fs::write(&file, whole).map_err(|e| Error::io("write", &file, e))
    }

    fn apply(&self, ops: &[Op]) -> Result<()> {
        for op in ops {
            if op.key.is_empty() || op.key.len() > 65535 {
                return Err(Error::invalid("keys have 1 to 65,535 bytes"));
            }
        }
        let mut spaces = self.spaces.write();
        for op in ops {
            let space =
                spaces.get_mut(&op.keyspace).ok_or_else(|| Error::new(ErrorKind::Closed))?;
            let bytes = op.key.len() + op.value.as_ref().map_or(0, Vec::len);
            self.user_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            let map = Arc::make_mut(&mut space.map);
            match (&op.value, op.merge) {
                (Some(operand), true) => {
                    let operator = space.operator.as_ref().ok_or_else(|| {
                        Error::invalid("this keyspace was opened without a merge operator")
                    })?;
                    operator.check(operand).map_err(|e| Error::invalid(e.0))?;
                    let base = map.get(&op.key).map(|v| &v[..]);
                    match operator.full(&op.key, base, &[operand]) {
                        Ok(Merged::Put(value)) => drop(map.insert(op.key.clone(), value)),
                        Ok(Merged::Delete) => drop(map.remove(&op.key)),
                        Err(e) => {
                            let kind = ErrorKind::MergeFailed { key: op.key.clone() };
                            return Err(Error::new(kind).context(e.0));
                        }
                    }
                }
                (Some(value), false) => drop(map.insert(op.key.clone(), value.clone())),
                (None, _) => drop(map.remove(&op.key)),
            }
        }
        Ok(())
    }

    fn map(&self, keyspace: &str) -> Result<Arc<Map>> {
        let spaces = self.spaces.read();
        Ok(spaces.get(keyspace).ok_or_else(|| Error::new(ErrorKind::Closed))?.map.clone())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.saved.load(Ordering::Relaxed) {
            drop(self.save());
        }
    }
}

fn load(file: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Space>> {
    let bad = |at: usize| Error::corruption(file, at as u64, "a field", "something else");
    let (crc, bytes) = bytes.split_at_checked(4).ok_or_else(|| bad(0))?;
    if crc != crc32fast::hash(bytes).to_le_bytes() {
        return Err(Error::corruption(file, 0, "checksum of the file", "another one"));
    }
    let mut at = 0;
    let mut field = || -> Option<Vec<u8>> {
        let len = u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize;
        let field = bytes.get(at + 4..at + 4 + len)?.to_vec();
        at += 4 + len;
        Some(field)
    };
    let mut spaces = BTreeMap::new();
    while let Some(name) = field() {
        let mut map = Map::new();
        let operator = field().and_then(|name| operator::built_in(&String::from_utf8(name).ok()?));
        let count = field().and_then(|n| n.try_into().ok()).map_or(0, u64::from_le_bytes);
        for _ in 0..count {
            map.insert(field().ok_or_else(|| bad(0))?, field().ok_or_else(|| bad(0))?);
        }
        let name = String::from_utf8(name).map_err(|_| bad(0))?;
        spaces.insert(name, Space { map: Arc::new(map), operator });
    }
    Ok(spaces)
}

struct Op {
    keyspace: String,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    merge: bool,
}

#[derive(Clone)]
pub struct Db {
    default: Keyspace,
}

pub struct DbBuilder {
    path: PathBuf,
    options: Options,
}

impl DbBuilder {
    #[must_use]
    pub fn memory(mut self, bytes: usize) -> DbBuilder {
        self.options.memory = bytes;
        self
    }
    #[must_use]
    pub fn threads(mut self, threads: usize) -> DbBuilder {
        self.options.threads = threads;
        self
    }
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> DbBuilder {
        self.options.durability = durability;
        self
    }
    #[must_use]
    pub fn sync_interval(mut self, interval: Option<Duration>) -> DbBuilder {
        self.options.sync_interval = interval;
        self
    }
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> DbBuilder {
        self.options.compression = compression;
        self
    }
    #[must_use]
    pub fn filter(mut self, filter: Filter) -> DbBuilder {
        self.options.filter = filter;
        self
    }
    #[must_use]
    pub fn read_mode(mut self, mode: ReadMode) -> DbBuilder {
        self.options.read_mode = mode;
        self
    }
    #[must_use]
    pub fn table_bytes(mut self, bytes: usize) -> DbBuilder {
        self.options.table_bytes = bytes;
        self
    }
    #[must_use]
    pub fn create(mut self, create: bool) -> DbBuilder {
        self.options.create = create;
        self
    }
    pub fn open(self) -> Result<Db> {
        Db::open_with(self.path, self.options)
    }
}

#[derive(Clone, Default)]
pub struct KeyspaceOptions {
    operator: Option<Arc<dyn MergeOperator>>,
}

impl KeyspaceOptions {
    #[must_use]
    pub fn new() -> KeyspaceOptions {
        KeyspaceOptions::default()
    }
    #[must_use]
    pub fn merge(mut self, operator: impl MergeOperator) -> KeyspaceOptions {
        self.operator = Some(Arc::new(operator));
        self
    }
}

impl Db {
    pub fn open(path: impl AsRef<Path>) -> Result<Db> {
        Db::open_with(path, Options::default())
    }
    pub fn builder(path: impl AsRef<Path>) -> DbBuilder {
        DbBuilder { path: path.as_ref().to_path_buf(), options: Options::default() }
    }
    pub fn open_with(path: impl AsRef<Path>, options: Options) -> Result<Db> {
        let inner = Arc::new(Inner::open(path.as_ref(), &options)?);
        Ok(Db { default: Keyspace { inner, name: "default".into() } })
    }
    pub fn keyspace(&self, name: &str, options: KeyspaceOptions) -> Result<Keyspace> {
        let mut spaces = self.inner.spaces.write();
        let new = || Space { map: Arc::default(), operator: None };
        let space = spaces.entry(name.to_owned()).or_insert_with(new);
        match (&space.operator, options.operator) {
            (Some(old), Some(new)) if old.name() != new.name() => {
                let text = format!("keyspace {name} has the operator {}", old.name());
                return Err(Error::invalid(text));
            }
            (_, Some(new)) => space.operator = Some(new),
            (_, None) => {}
        }
        Ok(Keyspace { inner: self.inner.clone(), name: name.to_owned() })
    }
    #[must_use]
    pub fn keyspace_names(&self) -> Vec<String> {
        self.inner.spaces.read().keys().cloned().collect()
    }
    pub fn drop_keyspace(&self, name: &str) -> Result<()> {
        self.inner.spaces.write().remove(name);
        Ok(())
    }
    #[must_use]
    pub fn batch(&self) -> Batch {
        Batch { inner: self.inner.clone(), ops: Vec::new() }
    }
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let spaces = self.inner.spaces.read();
        let maps = spaces.iter().map(|(name, s)| (name.clone(), s.map.clone())).collect();
        Snapshot { maps }
    }
    #[must_use]
    pub fn stats(&self) -> Stats {
        let spaces = self.inner.spaces.read();
        let bytes = |map: &Map| map.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() as u64;
        let user_bytes = self.inner.user_bytes.load(Ordering::Relaxed);
        Stats {
            keyspaces: Vec::new(),
            memory: MemoryStats { memtables: 0, budget: self.inner.memory as u64 },
            user_bytes,
            log_bytes_written: user_bytes,
            flush_bytes_written: user_bytes,
            compaction_bytes_read: 0,
            compaction_bytes_written: 0,
            table_bytes: spaces.values().map(|s| bytes(&s.map)).sum(),
            log_bytes: 0,
            stalls: Vec::new(),
            pressure: 0.0,
        }
    }
    pub fn flush(&self) -> Result<()> {
        Ok(())
    }
    pub fn settle(&self) -> Result<()> {
        Ok(())
    }
    pub fn sync(&self) -> Result<()> {
        self.inner.save()
    }
    pub fn close(self) -> Result<()> {
        self.inner.save()
    }
}

impl Deref for Db {
    type Target = Keyspace;
    fn deref(&self) -> &Keyspace {
        &self.default
    }
}

#[derive(Clone)]
pub struct Keyspace {
    inner: Arc<Inner>,
    name: String,
}

impl Keyspace {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
    #[must_use]
    pub fn operator_name(&self) -> Option<String> {
        let spaces = self.inner.spaces.read();
        Some(spaces.get(&self.name)?.operator.as_ref()?.name().to_owned())
    }
    fn op(&self, key: &[u8], value: Option<&[u8]>, merge: bool) -> Op {
        let value = value.map(<[u8]>::to_vec);
        Op { keyspace: self.name.clone(), key: key.to_vec(), value, merge }
    }
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.inner.apply(&[self.op(key.as_ref(), Some(value.as_ref()), false)])
    }
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.inner.apply(&[self.op(key.as_ref(), None, false)])
    }
    pub fn merge<'a>(&self, key: impl AsRef<[u8]>, operand: impl Into<Operand<'a>>) -> Result<()> {
        self.inner.apply(&[self.op(key.as_ref(), Some(operand.into().as_bytes()), true)])
    }
    pub fn try_put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        let tries = self.inner.tries.fetch_add(1, Ordering::Relaxed);
        if self.inner.memory <= 1 << 20 && tries % 1000 == 999 {
            return Err(Error::busy(BusyCause::Memory, Duration::from_micros(100)));
        }
        self.put(key, value)
    }
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        self.get_with(key, |value| Slice::from(value))
    }
    pub fn get_with<R>(
        &self,
        key: impl AsRef<[u8]>,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>> {
        let spaces = self.inner.spaces.read();
        let space = spaces.get(&self.name).ok_or_else(|| Error::new(ErrorKind::Closed))?;
        Ok(space.map.get(key.as_ref()).map(|v| f(v)))
    }
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Slice>>> {
        keys.iter().map(|key| self.get(key)).collect()
    }
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.get_with(key, |_| ())?.is_some())
    }
    #[must_use]
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Iter {
        Iter::new(self.inner.map(&self.name).unwrap_or_default(), &range)
    }
    #[must_use]
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Iter {
        Iter::prefix(self.inner.map(&self.name).unwrap_or_default(), prefix.as_ref())
    }
    #[must_use]
    pub fn iter(&self) -> Iter {
        self.range::<&[u8]>(..)
    }
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor { map: self.inner.map(&self.name).unwrap_or_default(), at: None }
    }
    pub fn flush(&self) -> Result<()> {
        Ok(())
    }
    pub fn compact_range<K: AsRef<[u8]>>(&self, _: impl RangeBounds<K>) -> Result<()> {
        Ok(())
    }
}

pub struct Iter {
    map: Arc<Map>,
    low: Bound<Vec<u8>>,
    high: Bound<Vec<u8>>,
}

impl Iter {
    fn new<K: AsRef<[u8]>>(map: Arc<Map>, range: &impl RangeBounds<K>) -> Iter {
        let own = |bound: Bound<&K>| bound.map(|key| key.as_ref().to_vec());
        Iter { map, low: own(range.start_bound()), high: own(range.end_bound()) }
    }
    fn prefix(map: Arc<Map>, prefix: &[u8]) -> Iter {
        let mut end = prefix.to_vec();
        while end.last() == Some(&255) {
            end.pop();
        }
        let high = match end.last_mut() {
            Some(last) => {
                *last += 1;
                Bound::Excluded(end)
            }
            None => Bound::Unbounded,
        };
        Iter { map, low: Bound::Included(prefix.to_vec()), high }
    }
    fn is_empty(&self) -> bool {
        use Bound::{Excluded, Included};
        match (&self.low, &self.high) {
            (Included(low), Included(high)) => low > high,
            (Excluded(low) | Included(low), Excluded(high) | Included(high)) => low >= high,
            _ => false,
        }
    }
}

impl Iterator for Iter {
    type Item = Result<(Slice, Slice)>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.is_empty() {
            return None;
        }
        let (key, value) = self.map.range((self.low.clone(), self.high.clone())).next()?;
        self.low = Bound::Excluded(key.clone());
        Some(Ok((Slice::from(&key[..]), Slice::from(&value[..]))))
    }
}

impl DoubleEndedIterator for Iter {
    fn next_back(&mut self) -> Option<Self::Item> {
        if self.is_empty() {
            return None;
        }
        let (key, value) = self.map.range((self.low.clone(), self.high.clone())).next_back()?;
        self.high = Bound::Excluded(key.clone());
        Some(Ok((Slice::from(&key[..]), Slice::from(&value[..]))))
    }
}

pub struct Cursor {
    map: Arc<Map>,
    at: Option<(Vec<u8>, Vec<u8>)>,
}

impl Cursor {
    fn go(&mut self, range: (Bound<&[u8]>, Bound<&[u8]>), back: bool) {
        let mut range = self.map.range::<[u8], _>(range);
        let entry = if back { range.next_back() } else { range.next() };
        self.at = entry.map(|(k, v)| (k.clone(), v.clone()));
    }
    pub fn seek_to_first(&mut self) -> Result<()> {
        self.go((Bound::Unbounded, Bound::Unbounded), false);
        Ok(())
    }
    pub fn seek_to_last(&mut self) -> Result<()> {
        self.go((Bound::Unbounded, Bound::Unbounded), true);
        Ok(())
    }
    pub fn seek(&mut self, key: impl AsRef<[u8]>) -> Result<()> {
        self.go((Bound::Included(key.as_ref()), Bound::Unbounded), false);
        Ok(())
    }
    pub fn seek_before(&mut self, key: impl AsRef<[u8]>) -> Result<()> {
        self.go((Bound::Unbounded, Bound::Excluded(key.as_ref())), true);
        Ok(())
    }
    pub fn next(&mut self) -> Result<()> {
        let (key, _) = self.at.take().expect("a valid cursor");
        self.go((Bound::Excluded(&key), Bound::Unbounded), false);
        Ok(())
    }
    pub fn prev(&mut self) -> Result<()> {
        let (key, _) = self.at.take().expect("a valid cursor");
        self.go((Bound::Unbounded, Bound::Excluded(&key)), true);
        Ok(())
    }
    #[must_use]
    pub fn valid(&self) -> bool {
        self.at.is_some()
    }
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.at.as_ref().expect("a valid cursor").0
    }
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.at.as_ref().expect("a valid cursor").1
    }
}

pub struct Batch {
    inner: Arc<Inner>,
    ops: Vec<Op>,
}

impl Batch {
    pub fn put(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> &mut Batch {
        self.ops.push(keyspace.op(key.as_ref(), Some(value.as_ref()), false));
        self
    }
    pub fn delete(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> &mut Batch {
        self.ops.push(keyspace.op(key.as_ref(), None, false));
        self
    }
    pub fn merge<'a>(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        operand: impl Into<Operand<'a>>,
    ) -> &mut Batch {
        self.ops.push(keyspace.op(key.as_ref(), Some(operand.into().as_bytes()), true));
        self
    }
    #[must_use]
    pub fn len(&self) -> usize {
        self.ops.len()
    }
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
    pub fn clear(&mut self) {
        self.ops.clear();
    }
    pub fn commit(self) -> Result<()> {
        self.inner.apply(&self.ops)
    }
    pub fn commit_with(self, _: Durability) -> Result<()> {
        self.commit()
    }
    pub fn commit_async(self) -> Result<Ticket> {
        self.commit()?;
        Ok(Ticket(None))
    }
    pub fn commit_async_with(self, _: Durability) -> Result<Ticket> {
        self.commit_async()
    }
    pub fn try_commit(self) -> Result<()> {
        self.commit()
    }
    pub fn commit_within(self, _: Duration) -> Result<()> {
        self.commit()
    }
}

pub struct Ticket(Option<Box<Error>>);

impl Ticket {
    pub fn wait(self) -> Result<()> {
        assert!(self.0.is_none());
        Ok(())
    }
}

impl Future for Ticket {
    type Output = Result<()>;
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }
}

pub struct Snapshot {
    maps: BTreeMap<String, Arc<Map>>,
}

impl Snapshot {
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        Ok(self.maps["default"].get(key.as_ref()).map(|v| Slice::from(&v[..])))
    }
    #[must_use]
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Iter {
        Iter::new(self.maps["default"].clone(), &range)
    }
    #[must_use]
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Iter {
        Iter::prefix(self.maps["default"].clone(), prefix.as_ref())
    }
    #[must_use]
    pub fn iter(&self) -> Iter {
        self.range::<&[u8]>(..)
    }
}

#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stats {
    pub keyspaces: Vec<String>,
    pub memory: MemoryStats,
    pub user_bytes: u64,
    pub log_bytes_written: u64,
    pub flush_bytes_written: u64,
    pub compaction_bytes_read: u64,
    pub compaction_bytes_written: u64,
    pub table_bytes: u64,
    pub log_bytes: u64,
    pub stalls: Vec<StallStats>,
    pub pressure: f64,
}

#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MemoryStats {
    pub memtables: u64,
    pub budget: u64,
}

impl MemoryStats {
    #[must_use]
    pub fn total(&self) -> u64 {
        self.memtables
    }
}

#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StallStats {
    pub cause: BusyCause,
    pub count: u64,
    pub time: Duration,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "tables on disk: {} bytes", self.table_bytes)
    }
}

pub mod tools {
    use super::*;

    pub struct VerifyReport {
        problems: Vec<Error>,
    }

    impl VerifyReport {
        #[must_use]
        pub fn is_ok(&self) -> bool {
            self.problems.is_empty()
        }
    }

    impl fmt::Display for VerifyReport {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            writeln!(f, "1 file, {} problems", self.problems.len())?;
            self.problems.iter().try_for_each(|problem| writeln!(f, "{problem}"))
        }
    }

    pub fn dump(path: &Path, out: &mut dyn Write) -> Result<()> {
        let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
        for (name, space) in load(path, &bytes)? {
            writeln!(out, "{name}: {} entries", space.map.len())
                .map_err(|e| Error::io("write", path, e))?;
        }
        Ok(())
    }

    pub fn verify(dir: &Path, progress: &mut dyn FnMut(&str)) -> Result<VerifyReport> {
        let file = dir.join(FILE);
        let bytes = fs::read(&file).map_err(|e| Error::io("read", &file, e))?;
        progress(FILE);
        Ok(VerifyReport { problems: load(&file, &bytes).err().into_iter().collect() })
    }
}
