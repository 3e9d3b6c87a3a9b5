//! A file system that writes down each call as a line of text, for tests that pin the order of
//! syncs.
//!
//! ```text
//! create_log 000007.log 4096
//! sync_dir
//! store 000007.log 128+160
//! sync 000007.log
//! rename CURRENT.tmp CURRENT
//! ! sync_dir: Interrupted         the call before it failed
//! -- memtable frozen              a note of the test or of the engine
//! ```

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::fs::Fs;
use crate::fs::intercept::{Call, Intercepted, Interceptor, Verdict};

/// Writes down calls.
#[derive(Debug, Default)]
pub struct Tracer {
    lines: Mutex<Vec<String>>,
    reads: bool,
}

impl Tracer {
    fn is_wanted(&self, call: &Call<'_>) -> bool {
        self.reads || call.changes()
    }
}

impl Interceptor for Tracer {
    fn before(&self, call: &Call<'_>) -> Verdict {
        if self.is_wanted(call) {
            self.lines.lock().push(call.to_string());
        }
        Verdict::Proceed
    }

    fn failed(&self, call: &Call<'_>, error: &io::Error) {
        if self.is_wanted(call) {
            self.lines.lock().push(format!("! {}: {:?}", call.name, error.kind()));
        }
    }
}

/// A file system that is written down.
pub type TraceFs = Intercepted<Tracer>;

impl TraceFs {
    /// Writes down the calls that change something.
    #[must_use]
    pub fn new(inner: Arc<dyn Fs>) -> TraceFs {
        Intercepted::over(inner, Tracer::default())
    }

    /// Writes down those that only read, too.
    #[must_use]
    pub fn with_reads(inner: Arc<dyn Fs>) -> TraceFs {
        Intercepted::over(inner, Tracer { reads: true, ..Tracer::default() })
    }

    /// Adds a line `-- text` of somebody else.
    pub fn note(&self, text: impl std::fmt::Display) {
        self.interceptor().lines.lock().push(format!("-- {text}"));
    }

    /// The lines since the last time.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.interceptor().lines.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::sim::SimFs;
    use std::path::Path;

    fn work(fs: &TraceFs) -> Vec<String> {
        let dir = Path::new("/db");
        fs.create_dir_all(dir).unwrap();
        let log = fs.create_log(&dir.join("000007.log"), 4096).unwrap();
        fs.sync_dir(dir).unwrap();
        log.store(128, &[0; 160]).unwrap();
        log.touch(0, 4096);
        log.sync().unwrap();
        fs.note("frozen");
        let file = fs.create(&dir.join("CURRENT.tmp")).unwrap();
        file.allocate(100).unwrap();
        file.write_at(0, b"x").unwrap();
        file.sync().unwrap();
        fs.rename(&dir.join("CURRENT.tmp"), &dir.join("CURRENT")).unwrap();
        fs.link(&dir.join("CURRENT"), &dir.join("copy")).unwrap();
        fs.remove(&dir.join("nothing")).unwrap_err();
        fs.open(&dir.join("copy")).unwrap().read_at(&mut [0], 0).unwrap();
        fs.take()
    }

    #[test]
    fn calls_are_written_down() {
        let expected = "create_dir_all db\ncreate_log 000007.log 4096\nsync_dir\n\
            store 000007.log 128+160\nsync 000007.log\n-- frozen\ncreate CURRENT.tmp\n\
            allocate CURRENT.tmp 100\nwrite CURRENT.tmp 0+1\nsync CURRENT.tmp\n\
            rename CURRENT.tmp CURRENT\nlink CURRENT copy\nremove nothing\n! remove: NotFound";
        let fs = TraceFs::new(Arc::new(SimFs::new()));
        assert_eq!(work(&fs).join("\n"), expected);
        assert!(fs.take().is_empty());
        let reads = work(&TraceFs::with_reads(Arc::new(SimFs::new()))).join("\n");
        assert_eq!(reads, format!("{expected}\nopen copy\nread copy 0+1"));
    }
}
