//! A crash check of one's own, as one writes it from outside with the feature `testing`: a program whose
//! every call is the last one before the power goes, over a disk that drops syncs and lies about lengths.
//!
//! `cargo run --release --features testing --example crash_check`
//!
//! 1. An honest disk: after each call of the program, and each way a power cut may end, the database has
//!    what was promised, and of what was begun all or nothing, in order.
//! 2. The same where all syncs of one kind of file are dropped in silence: the check has to notice.
//! 3. A disk that is honest but for one call, which tells a wrong length or gives too few bytes: the
//!    database opens with a part of what was written that is as if the power had gone earlier, or says
//!    what is wrong. It never shows anything else.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use esker::fs::sim::{Image, Phase, SimFs, Survival};
use esker::fs::{File, Fs, Lock, LogRegion};
use esker::runtime::{Runtime, yield_point};
use esker::{Db, Durability, ErrorKind, Options};

type Failure = Box<dyn std::error::Error>;

/// What the disk does to its user.
#[derive(Clone, Debug, Default)]
struct Vice {
    /// Syncs of files whose names contain this are dropped.
    drops_syncs_of: Option<&'static str>,
    /// The so many-th call that tells or gives bytes gives so much less than there is, or more.
    lies_at: Option<(u64, i64)>,
}

/// A disk with a vice. Clones are the same disk.
#[derive(Clone, Debug)]
struct Liar {
    disk: SimFs,
    vice: Vice,
    told: Arc<AtomicU64>,
    dropped: Arc<AtomicU64>,
}

impl Liar {
    fn new(disk: SimFs, vice: Vice) -> Liar {
        Liar { disk, vice, told: Arc::default(), dropped: Arc::default() }
    }

    /// True if this sync is to be dropped.
    fn drops(&self, path: &Path) -> bool {
        let name = path.file_name().map_or("/".into(), |name| name.to_string_lossy());
        let drops = self.vice.drops_syncs_of.is_some_and(|part| name.contains(part));
        self.dropped.fetch_add(u64::from(drops), SeqCst);
        drops
    }

    /// So much more than there is this call is to tell.
    fn lie(&self) -> i64 {
        let call = self.told.fetch_add(1, SeqCst);
        self.vice.lies_at.filter(|(at, _)| *at == call).map_or(0, |(_, by)| by)
    }

    fn file(&self, path: &Path, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(LiarsFile { fs: self.clone(), path: path.to_path_buf(), file })
    }
}

impl Fs for Liar {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.file(path, self.disk.create(path)?))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.file(path, self.disk.open(path)?))
    }
    fn create_log(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn LogRegion>> {
        let log = self.disk.create_log(path, bytes)?;
        Ok(Arc::new(LiarsLog { fs: self.clone(), path: path.to_path_buf(), log }))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.link(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.remove_dir(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if self.drops(Path::new("directory")) { Ok(()) } else { self.disk.sync_dir(dir) }
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        self.disk.lock(path)
    }
    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.disk.free_bytes(dir)
    }
    fn boot_id(&self) -> u128 {
        self.disk.boot_id()
    }
    fn random_id(&self) -> u128 {
        self.disk.random_id()
    }
}

#[derive(Debug)]
struct LiarsFile {
    fs: Liar,
    path: PathBuf,
    file: Arc<dyn File>,
}

impl File for LiarsFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, data)
    }
    fn sync(&self) -> io::Result<()> {
        if self.fs.drops(&self.path) { Ok(()) } else { self.file.sync() }
    }
    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.file.allocate(bytes)
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.len()?.saturating_add_signed(self.fs.lie()))
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buf, offset)
    }
    fn map(&self) -> io::Result<Bytes> {
        let bytes = self.file.map()?;
        let told = (bytes.len() as u64).saturating_add_signed(self.fs.lie()) as usize;
        Ok(match told.checked_sub(bytes.len()) {
            Some(more) => [&bytes[..], &vec![0; more]].concat().into(),
            None => bytes.slice(..told),
        })
    }
}

#[derive(Debug)]
struct LiarsLog {
    fs: Liar,
    path: PathBuf,
    log: Arc<dyn LogRegion>,
}

impl LogRegion for LiarsLog {
    fn bytes(&self) -> u64 {
        self.log.bytes()
    }
    fn store(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.log.store(offset, data)
    }
    fn sync(&self) -> io::Result<()> {
        if self.fs.drops(&self.path) { Ok(()) } else { self.log.sync() }
    }
    fn touch(&self, offset: u64, bytes: u64) {
        self.log.touch(offset, bytes);
    }
    fn end_at(&self, bytes: u64) -> io::Result<()> {
        self.log.end_at(bytes)
    }
}

const STEPS: u64 = 60;

/// How many steps were acknowledged at all, and how many as durable.
#[derive(Clone, Copy, Debug, Default)]
struct Promise {
    acknowledged: u64,
    durable: u64,
}

/// A moment of the program: the call, what was promised until then, and the disk.
type Moment = (String, Promise, Image);

/// Step n puts n under a key of its own and under one that all share, in one batch.
fn step(db: &Db, n: u64) -> esker::Result<Durability> {
    let durability = if n % 5 == 4 { Durability::Disk } else { Durability::Process };
    let mut batch = db.batch();
    batch.put(db, format!("step {n:03}"), n.to_string()).put(db, "last", n.to_string());
    batch.commit_with(durability)?;
    Ok(durability)
}

/// Every moment of the program, on a disk with this vice.
fn moments(vice: Vice) -> Result<(Vec<Moment>, Liar), Failure> {
    let disk = SimFs::new();
    let promise = Arc::new(Mutex::new(Promise::default()));
    let moments = Arc::new(Mutex::new(Vec::new()));
    let (sink, promised) = (moments.clone(), promise.clone());
    disk.on_call(Arc::new(move |disk: &SimFs, phase, call| {
        if phase != Phase::Before && call.changes() {
            let moment = (call.to_string(), *promised.lock().unwrap(), disk.snapshot());
            sink.lock().unwrap().push(moment);
        }
        if phase != Phase::After {
            yield_point();
        }
    }));
    let fs = Liar::new(disk.clone(), vice);
    let db = Db::open_on(Arc::new(fs.clone()), Runtime::stepper(1), "/db", Options::tiny())?;
    for n in 0..STEPS {
        let durability = step(&db, n)?;
        let mut promise = promise.lock().unwrap();
        promise.acknowledged = n + 1;
        if durability == Durability::Disk {
            promise.durable = n + 1;
        }
        drop(promise);
        match n {
            20 => db.flush()?,
            40 => db.compact_range::<&[u8]>(..)?,
            _ => {}
        }
    }
    db.close()?;
    disk.clear_hook();
    let moments = std::mem::take(&mut *moments.lock().unwrap());
    Ok((moments, fs))
}

/// How many of the steps there are, which must be the first ones and nothing else.
fn steps(db: &Db) -> Result<u64, String> {
    let mut count = 0u64;
    for entry in db.prefix("step ") {
        let (key, value) = entry.map_err(|error| error.to_string())?;
        let expected = (format!("step {count:03}"), count.to_string());
        if (&*key, &*value) != (expected.0.as_bytes(), expected.1.as_bytes()) {
            return Err(format!("{:?} where {expected:?} was expected", (key, value)));
        }
        count += 1;
    }
    let last = db.get("last").map_err(|error| error.to_string())?;
    match count.checked_sub(1).map(|last| last.to_string()) == last.as_deref().map(text) {
        true => Ok(count),
        false => Err(format!("{count} steps, the last of which says {last:?}")),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What is wrong after one of these moments, if anything is; and how many crashes were tried.
fn violation(moments: &[Moment]) -> (u64, Option<String>) {
    let mut tried = 0;
    for (call, promise, image) in moments {
        let survivals = image.survivals(4, 3, tried);
        for end in [None].into_iter().chain(survivals.iter().map(Some)) {
            tried += 1;
            if let Err(what) = check(image, end, *promise) {
                return (tried, Some(format!("after {call}, {end:?}: {what}")));
            }
        }
    }
    (tried, None)
}

fn check(image: &Image, end: Option<&Survival>, promise: Promise) -> Result<(), String> {
    let (disk, least) = match end {
        None => (image.kill(), promise.acknowledged),
        Some(survival) => (image.crash(survival), promise.durable),
    };
    let db = Db::open_on(Arc::new(disk), Runtime::alone(), "/db", Options::tiny());
    let found = steps(&db.map_err(|error| error.to_string())?)?;
    match (least..=promise.acknowledged + 1).contains(&found) {
        true => Ok(()),
        false => Err(format!("{found} steps, not {least} to {}", promise.acknowledged + 1)),
    }
}

/// Opens and reads on a disk that lies once, at this call; `None` if it had no occasion to. True if the
/// lie was found out.
fn with_a_lie(image: &Image, at: u64, by: i64) -> Result<Option<bool>, String> {
    let fs = Liar::new(image.kill(), Vice { lies_at: Some((at, by)), ..Vice::default() });
    let opened = Db::open_on(Arc::new(fs.clone()), Runtime::alone(), "/db", Options::tiny());
    let found = match opened {
        // What is read later may be of a file that was opened by its false length.
        Ok(db) => match steps(&db) {
            Ok(found) => Ok(found),
            Err(what) if db.iter().any(|entry| entry.is_err()) => Err(what),
            Err(what) => return Err(format!("call {at}, {by:+} bytes: {what}")),
        },
        Err(error) => match error.kind() {
            ErrorKind::Corruption { .. } | ErrorKind::Io(_) => Err(error.to_string()),
            other => return Err(format!("call {at}, {by:+} bytes: {error}: {other:?}")),
        },
    };
    Ok((fs.told.load(SeqCst) > at).then_some(found != Ok(STEPS)))
}

/// The three checks.
pub fn main() -> Result<(), Failure> {
    let (honest, _) = moments(Vice::default())?;
    let (tried, violation_of_honest) = violation(&honest);
    println!("honest: {} moments, {tried} crashes", honest.len());
    assert_eq!(violation_of_honest, None);

    for part in [".log", ".table", "manifest", "CURRENT", "directory"] {
        let (moments, fs) = moments(Vice { drops_syncs_of: Some(part), ..Vice::default() })?;
        let dropped = fs.dropped.load(SeqCst);
        let (tried, violation) = violation(&moments);
        let what = violation.unwrap_or_else(|| "NOT NOTICED".to_string());
        println!("without the {dropped} syncs of {part}, {tried} crashes: {what}");
        assert!(what != "NOT NOTICED" && dropped > 0);
    }

    let (_, _, last) = honest.last().expect("it made calls");
    let (mut lies, mut found_out) = (0, 0);
    for by in [-4096, -40, -1, 1, 40, 4096] {
        for at in 0.. {
            let Some(noticed) = with_a_lie(last, at, by)? else { break };
            (lies, found_out) = (lies + 1, found_out + u64::from(noticed));
        }
    }
    println!("{lies} lies about lengths, {found_out} of which were found out, none was believed");
    assert!(found_out > 0);
    Ok(())
}
