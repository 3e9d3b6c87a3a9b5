//! The database under measurement: where it is, which records it has, and when it may be replaced.
//!
//! A given directory is only ever emptied if it holds a database that this program filled: that
//! one has a keyspace of its own that says so and with which sizes. Anything else there is left
//! alone and refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use esker::{Counter, Db, ErrorKind, Keyspace, KeyspaceOptions};
use tempfile::TempDir;

use crate::bench::Plan;
use crate::bench::keys::{Key, Live};
use crate::bench::machine::{file_system, free_bytes};
use crate::failure::{Failure, Result};
use crate::text::size;

/// The keyspace that marks a database of this program.
const MARK: &str = "esker-bench";
/// The keyspace of mergerandom.
const COUNTERS: &str = "counters";

/// See the module's comment. The database drops before the directory it is in.
pub struct Subject {
    db: Option<Db>,
    /// The records that are there.
    pub live: Live,
    /// The counters that are there.
    pub counters: Live,
    /// The sum over all counters.
    pub counted: i64,
    /// The database's directory.
    pub dir: PathBuf,
    temporary: Option<TempDir>,
}

impl Subject {
    /// In the given directory, where a database of an earlier run is taken up, or in a temporary
    /// one inside the current directory, which unlike /tmp is on a real disk on most machines.
    pub fn at(dir: Option<&Path>, plan: &Plan) -> Result<Subject> {
        let (dir, temporary) = match dir {
            Some(dir) => (dir.to_path_buf(), None),
            None => {
                let temporary = make_temporary()?;
                (temporary.path().to_path_buf(), Some(temporary))
            }
        };
        let mut subject = Subject {
            db: None,
            live: Live::none(plan.records),
            counters: Live::none(plan.records),
            counted: 0,
            dir,
            temporary,
        };
        if subject.temporary.is_none() {
            subject.take_up(plan)?;
        }
        subject.check_space(plan)?;
        Ok(subject)
    }

    /// Whether there is a database with records.
    pub fn is_open(&self) -> bool {
        self.db.is_some()
    }

    /// The database.
    pub fn db(&self) -> &Db {
        self.db.as_ref().expect("a fill, or an earlier run, comes first")
    }

    /// The keyspace of mergerandom.
    pub fn counters_keyspace(&self) -> Result<Keyspace> {
        Ok(self.db().keyspace(COUNTERS, KeyspaceOptions::new().merge(Counter::default()))?)
    }

    /// Whether the directory goes at the end.
    pub fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    /// Keys and values that are there: what the disk has to hold at least.
    pub fn live_bytes(&self, plan: &Plan) -> u64 {
        self.live.count() * (plan.key_size + plan.value_size) as u64
            + self.counters.count() * (plan.key_size + 8) as u64
    }

    /// Replaces the database by an empty one.
    pub fn make_fresh(&mut self, plan: &Plan) -> Result<()> {
        wait_if_interrupted();
        if let Some(db) = self.db.take() {
            db.close()?;
            empty(&self.dir)?;
        }
        let db = Db::open_with(&self.dir, plan.options())?;
        let mark = db.keyspace(MARK, KeyspaceOptions::new())?;
        mark.put("sizes", sizes(plan))?;
        self.db = Some(db);
        self.live = Live::none(plan.records);
        self.counters = Live::none(plan.records);
        self.counted = 0;
        Ok(())
    }

    /// Closes the database; [`Subject::take_over`] follows.
    pub fn close_only(&mut self) -> Result<()> {
        self.db.take().map_or(Ok(()), |db| Ok(db.close()?))
    }

    /// Goes on with the database that was opened in the directory.
    pub fn take_over(&mut self, db: Db) {
        self.db = Some(db);
    }

    /// Closes the database, and removes a temporary one.
    pub fn close(mut self) -> Result<()> {
        if let Some(db) = self.db.take() {
            db.close()?;
        }
        match self.temporary.take() {
            Some(temporary) => {
                temporary.close().map_err(|e| at(&self.dir, "removing the directory", &e))
            }
            None => Ok(()),
        }
    }

    /// Opens what an earlier run left in the given directory, if there is anything.
    fn take_up(&mut self, plan: &Plan) -> Result<()> {
        let dir = self.dir.display();
        fs::create_dir_all(&self.dir).map_err(|e| at(&self.dir, "creating the directory", &e))?;
        let entries = fs::read_dir(&self.dir).map_err(|e| at(&self.dir, "reading it", &e))?;
        if entries.count() == 0 {
            return Ok(());
        }
        let foreign = || {
            let text = "is not empty and holds no database of esker bench: give a new directory";
            Failure::new(format!("{dir} {text}"))
        };
        // The bench has options of its own, so first see whose database it is without them.
        let db =
            Db::builder(&self.dir).create(false).open().map_err(|error| match error.kind() {
                ErrorKind::InvalidArgument | ErrorKind::Unsupported => foreign(),
                _ => Failure::from(error),
            })?;
        if !db.keyspace_names().iter().any(|name| name == MARK) {
            return Err(foreign());
        }
        let mark = db.keyspace(MARK, KeyspaceOptions::new())?;
        let found = mark.get("sizes")?.unwrap_or_default();
        drop(mark);
        db.close()?;
        if found != sizes(plan) {
            return Err(Failure::new(format!(
                "{dir} was filled with {}: give the same sizes, or another directory",
                String::from_utf8_lossy(&found)
            )));
        }
        let mut options = plan.options();
        options.create = false;
        self.db = Some(Db::open_with(&self.dir, options)?);
        self.count_live(plan)
    }

    /// Finds out by a scan which records are there.
    fn count_live(&mut self, plan: &Plan) -> Result<()> {
        let record_of = |key: &[u8]| {
            let record = std::str::from_utf8(key).ok().and_then(|key| key.parse().ok());
            record.filter(|record| *record < plan.records).ok_or_else(|| {
                Failure::new(format!("{} is no key of esker bench", key.escape_ascii()))
            })
        };
        for entry in self.db().clone().iter() {
            self.live.set(record_of(&entry?.0)?, true);
        }
        if self.db().keyspace_names().iter().any(|name| name == COUNTERS) {
            for entry in self.counters_keyspace()?.iter() {
                let (key, value) = entry?;
                self.counters.set(record_of(&key)?, true);
                self.counted += Counter::decode(&value).unwrap_or(0);
            }
        }
        Ok(())
    }

    /// The sum over all counters, as the database has it.
    pub fn sum_counters(&self) -> Result<i64> {
        let sum = |sum: Result<i64>, entry: esker::Result<(_, esker::Slice)>| {
            Ok(sum? + Counter::decode(&entry?.1).unwrap_or(0))
        };
        self.counters_keyspace()?.iter().fold(Ok(0), sum)
    }

    /// Refuses to begin what would fill the disk: a fill and its compactions take up to three
    /// times the keys and values.
    fn check_space(&self, plan: &Plan) -> Result<()> {
        let need = plan.user_bytes().saturating_mul(3);
        let free = free_bytes(&self.dir).map_err(|e| at(&self.dir, "asking for free space", &e))?;
        if need <= free {
            return Ok(());
        }
        Err(Failure::new(format!(
            "this needs about {} on disk, {} has {} free: choose fewer --records or another --db",
            size(need),
            self.dir.display(),
            size(free)
        )))
    }

    /// One line about the place.
    pub fn describe(&self) -> String {
        let kind = file_system(&self.dir);
        let memory = if kind == "tmpfs" || kind == "ramfs" { " (memory, not a disk!)" } else { "" };
        let fate = if self.is_temporary() { "removed at the end" } else { "stays" };
        let free = size(free_bytes(&self.dir).unwrap_or(0));
        format!("database in {} on {kind}{memory}, {free} free; {fate}", self.dir.display())
    }
}

/// What the mark says, and has to say if a database is to be used again.
fn sizes(plan: &Plan) -> Vec<u8> {
    // The key of the end shows how records are written as keys.
    let mut key = Key::new(plan.key_size, plan.records);
    let end = key.of(plan.records).escape_ascii().to_string();
    format!(
        "--records {} --key-size {} --value-size {} (keys below {end})",
        plan.records, plan.key_size, plan.value_size
    )
    .into_bytes()
}

/// Set by Ctrl-C, whose handler then ends the process.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// After Ctrl-C, leaves the end to its handler: a bench whose files go away fails, which is no news.
pub fn wait_if_interrupted() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        thread::park();
    }
}

/// Makes a temporary directory inside the current one that goes also on Ctrl-C.
fn make_temporary() -> Result<TempDir> {
    let current = std::env::current_dir();
    let make = |dir| tempfile::Builder::new().prefix("esker-bench-").tempdir_in(dir);
    let temporary = current.and_then(make).map_err(|e| {
        let text = format!("no temporary directory in the current one ({e}): give one with --db");
        Failure::new(text)
    })?;
    let dir = temporary.path().to_path_buf();
    // The engine may be making files meanwhile, and a database anew in place of one that is gone: so
    // until nothing comes back.
    let remove = move || {
        INTERRUPTED.store(true, Ordering::SeqCst);
        let mut gone = 0;
        for _ in 0..1000 {
            let _ = fs::remove_dir_all(&dir);
            thread::sleep(Duration::from_millis(5));
            gone = if dir.exists() { 0 } else { gone + 1 };
            if gone == 5 {
                break;
            }
        }
        exit(130);
    };
    ctrlc::set_handler(remove).map_err(|e| Failure::new(format!("catching Ctrl-C: {e}")))?;
    Ok(temporary)
}

/// Removes everything in a directory but not itself: it may be a mount point.
fn empty(dir: &Path) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(|e| at(dir, "reading it", &e))?;
    for entry in entries.flatten() {
        let path = entry.path();
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|e| at(&path, "removing it", &e))?;
    }
    Ok(())
}

fn at(path: &Path, what: &str, error: &std::io::Error) -> Failure {
    Failure::new(format!("{}: {what}: {error}", path.display()))
}
