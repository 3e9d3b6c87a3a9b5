//! Opens what a crash left, checks it, and says what it holds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use esker::fs::Fs;
use esker::fs::sim::{SimFs, Survival};
use esker::runtime::Runtime;
use esker::{Db, Durability, Options};

use crate::crash::oracle::{Contents, Reading, check_files, contents_of, print_of, print_of_entry};
use crate::crash::workload::{DIR, dir};

/// Opens, checks and closes.
pub fn recover(disk: &SimFs, reading: Reading) -> Result<u64, String> {
    let result = catch_unwind(AssertUnwindSafe(|| {
        let db = open(Arc::new(disk.clone())).map_err(|error| format!("open failed: {error}"))?;
        check_files(&db, disk, dir())?;
        print_of(&db, reading).map_err(|error| format!("reading failed: {error}"))
    }));
    result.unwrap_or_else(|panic| Err(format!("panicked: {}", panic_text(&*panic))))
}

/// Opens what was recovered before, which was `print`; commits, loses power, opens: what was there
/// must be there still, and the commit.
pub fn write_on(disk: &SimFs, print: u64) -> Result<(), String> {
    let (key, value) = (b"written on", b"after the recovery");
    let result = catch_unwind(AssertUnwindSafe(|| {
        // With threads: pressure makes the commit wait for what only they can do.
        let db = open_in(Runtime::stepper(print), Arc::new(disk.clone()));
        let db = db.map_err(|error| format!("not again: {error}"))?;
        let mut batch = db.batch();
        let committed = batch.put(&db, key, value).commit_with(Durability::Disk);
        committed.map_err(|error| format!("a commit after the recovery failed: {error}"))
    }));
    result.unwrap_or_else(|panic| Err(format!("panicked: {}", panic_text(&*panic))))?;
    let after = disk.snapshot().crash(&Survival::NothingUnsynced);
    match recover(&after, Reading::Forward)? == print ^ print_of_entry("default", key, value) {
        true => Ok(()),
        false => Err("a commit after the recovery, or what was there before, is lost".to_string()),
    }
}

pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}

/// Opens without threads.
pub fn open(fs: Arc<dyn Fs>) -> esker::Result<Db> {
    open_in(Runtime::alone(), fs)
}

fn open_in(runtime: Runtime, fs: Arc<dyn Fs>) -> esker::Result<Db> {
    // Made once: it asks the operating system how many cores there are.
    static OPTIONS: LazyLock<Options> = LazyLock::new(Options::tiny);
    Db::open_on(fs, runtime, DIR, OPTIONS.clone())
}

/// Everything that a database on this disk holds.
pub fn found_on(disk: &SimFs) -> Result<Contents, String> {
    let result = catch_unwind(AssertUnwindSafe(|| {
        let db = open(Arc::new(disk.clone()))?;
        contents_of(&db)
    }));
    match result {
        Ok(found) => found.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("panicked: {}", panic_text(&*panic))),
    }
}
