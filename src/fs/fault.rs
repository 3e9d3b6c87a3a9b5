//! A file system that fails the calls it is told to fail, once or until it is healed.
//!
//! ```
//! # #[cfg(feature = "testing")] {
//! # use std::{path::Path, sync::Arc};
//! # use esker::fs::{Fs, fault::{Fault, FaultFs, FaultKind}, intercept::Select, sim::SimFs};
//! let fs = FaultFs::over_sim(SimFs::new());
//! fs.arm(Fault::new(FaultKind::NoSpace).on(Select::all().name("create")).nth(1).until_healed());
//! assert!(fs.create(Path::new("/a")).is_ok());
//! assert!(fs.create(Path::new("/b")).is_err());
//! fs.heal();
//! assert!(fs.create(Path::new("/b")).is_ok());
//! # }
//! ```

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::fs::Fs;
use crate::fs::intercept::{Call, Intercepted, Interceptor, Select, Verdict};
use crate::fs::sim::{SimFs, Survival};

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// EIO. As a failed `sync`, see [`FaultKind::FailedSync`].
    Io,
    /// ENOSPC. As a failed `sync`, see [`FaultKind::FailedSync`].
    NoSpace,
    /// The first half of a `write` or `store` is written, then EIO.
    ShortWrite,
    /// EINTR: nothing was done.
    Interrupted,
    /// A `sync` or `sync_dir` that reports success and does nothing.
    DroppedSync,
    /// EIO from `sync` or `sync_dir`. What the file had pending is forgotten, as Linux does: over
    /// a simulated file system no later sync makes it durable.
    FailedSync,
}

impl FaultKind {
    /// All six, for sweeps.
    pub const ALL: [FaultKind; 6] = [
        FaultKind::Io,
        FaultKind::NoSpace,
        FaultKind::ShortWrite,
        FaultKind::Interrupted,
        FaultKind::DroppedSync,
        FaultKind::FailedSync,
    ];

    fn fits(self, call: &Call<'_>) -> bool {
        match self {
            FaultKind::Io | FaultKind::NoSpace | FaultKind::Interrupted => true,
            FaultKind::ShortWrite => matches!(call.name, "write" | "store"),
            FaultKind::DroppedSync | FaultKind::FailedSync => call.is_sync(),
        }
    }

    fn verdict(self) -> Verdict {
        // EIO has no kind of its own in io::ErrorKind; this is its errno on every Unix.
        let eio = || io::Error::from_raw_os_error(5);
        match self {
            FaultKind::Io | FaultKind::FailedSync => Verdict::Fail(eio()),
            FaultKind::NoSpace => Verdict::Fail(io::ErrorKind::StorageFull.into()),
            FaultKind::ShortWrite => Verdict::Half(eio()),
            FaultKind::Interrupted => Verdict::Fail(io::ErrorKind::Interrupted.into()),
            FaultKind::DroppedSync => Verdict::Skip,
        }
    }
}

/// What fails and when.
#[derive(Clone, Debug)]
pub struct Fault {
    kind: FaultKind,
    on: Select,
    nth: u64,
    until_healed: bool,
    left: Survival,
}

impl Fault {
    /// Fails the first call, once.
    #[must_use]
    pub fn new(kind: FaultKind) -> Fault {
        let left = Survival::NothingUnsynced;
        Fault { kind, on: Select::all(), nth: 0, until_healed: false, left }
    }

    /// Counts only these calls.
    #[must_use]
    pub fn on(self, on: Select) -> Fault {
        Fault { on, ..self }
    }

    /// Fails the k-th of the calls it counts, from 0 and from [`FaultFs::arm`] on. A call that
    /// this fault cannot happen to is counted and done.
    #[must_use]
    pub fn nth(self, k: u64) -> Fault {
        Fault { nth: k, ..self }
    }

    /// Fails also all later ones, until [`FaultFs::heal`].
    #[must_use]
    pub fn until_healed(self) -> Fault {
        Fault { until_healed: true, ..self }
    }

    /// What a failed sync leaves on a simulated disk; otherwise nothing of what was pending.
    #[must_use]
    pub fn leaving(self, left: Survival) -> Fault {
        Fault { left, ..self }
    }
}

/// Decides which calls fail.
#[derive(Debug, Default)]
pub struct Faults {
    armed: Mutex<Vec<Armed>>,
    sim: Option<SimFs>,
}

#[derive(Debug)]
struct Armed {
    fault: Fault,
    counted: u64,
    fired: u64,
}

impl Armed {
    fn counts(&mut self, call: &Call<'_>) -> bool {
        if !self.fault.on.matches(call) {
            return false;
        }
        let index = self.counted;
        self.counted += 1;
        let due = index == self.fault.nth || (self.fault.until_healed && index > self.fault.nth);
        due && self.fault.kind.fits(call)
    }
}

impl Interceptor for Faults {
    fn before(&self, call: &Call<'_>) -> Verdict {
        let mut fires = None;
        for armed in &mut *self.armed.lock() {
            // All count the call, also when one of them has fired.
            if armed.counts(call) && fires.is_none() {
                armed.fired += 1;
                fires = Some(armed.fault.clone());
            }
        }
        let Some(fault) = fires else { return Verdict::Proceed };
        if let Some(sim) = &self.sim
            && call.name == "sync"
            && matches!(fault.kind, FaultKind::Io | FaultKind::NoSpace | FaultKind::FailedSync)
        {
            // A file without a name has nothing that a crash could leave.
            let _ = sim.fail_sync(call.path, &fault.left);
        }
        fault.kind.verdict()
    }
}

/// A file system with faults.
pub type FaultFs = Intercepted<Faults>;

impl FaultFs {
    /// Without faults yet.
    #[must_use]
    pub fn new(inner: Arc<dyn Fs>) -> FaultFs {
        Intercepted::over(inner, Faults::default())
    }

    /// The same over a simulated file system, which is told to forget what a failed sync lost.
    #[must_use]
    pub fn over_sim(sim: SimFs) -> FaultFs {
        let armed = Mutex::default();
        Intercepted::over(Arc::new(sim.clone()), Faults { armed, sim: Some(sim) })
    }

    /// Adds a fault. Several may be armed; of those due at one call the first wins.
    pub fn arm(&self, fault: Fault) {
        self.interceptor().armed.lock().push(Armed { fault, counted: 0, fired: 0 });
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        self.interceptor().armed.lock().clear();
    }

    /// How many calls the armed faults have failed.
    #[must_use]
    pub fn fired(&self) -> u64 {
        self.interceptor().armed.lock().iter().map(|armed| armed.fired).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const EIO: Option<i32> = Some(5);

    fn log_path() -> &'static Path {
        Path::new("/000001.log")
    }

    #[test]
    fn fails_the_kth_matching_call_once_or_until_healed() {
        for until_healed in [false, true] {
            let fs = FaultFs::over_sim(SimFs::new());
            let file = fs.create(log_path()).unwrap();
            let other = fs.create(Path::new("/x")).unwrap();
            let mut fault =
                Fault::new(FaultKind::Io).on(Select::all().name("write").file("log")).nth(2);
            if until_healed {
                fault = fault.until_healed();
            }
            fs.arm(fault);
            let outcomes: Vec<bool> = (0..5)
                .map(|i| {
                    other.write_at(0, b"a").unwrap();
                    file.sync().unwrap();
                    file.write_at(i, b"a").is_ok()
                })
                .collect();
            let later = !until_healed;
            assert_eq!(outcomes, [true, true, false, later, later]);
            assert_eq!(fs.fired(), if until_healed { 3 } else { 1 });
            fs.heal();
            file.write_at(9, b"a").unwrap();
        }
    }

    #[test]
    fn each_kind_does_what_it_says() {
        let sim = SimFs::new();
        let fs = FaultFs::over_sim(sim.clone());
        let log = fs.create_log(log_path(), 64).unwrap();
        fs.sync_dir(Path::new("/")).unwrap();
        log.sync().unwrap();
        let armed = |kind| {
            fs.heal();
            fs.arm(Fault::new(kind));
        };

        armed(FaultKind::ShortWrite);
        assert_eq!(log.store(0, b"abcd").unwrap_err().raw_os_error(), EIO);
        assert_eq!(&sim.contents(log_path()).unwrap()[..4], b"ab\0\0");
        armed(FaultKind::Io);
        assert_eq!(log.store(4, b"abcd").unwrap_err().raw_os_error(), EIO);
        armed(FaultKind::NoSpace);
        assert_eq!(log.store(4, b"abcd").unwrap_err().kind(), io::ErrorKind::StorageFull);
        armed(FaultKind::Interrupted);
        assert_eq!(log.store(4, b"abcd").unwrap_err().kind(), io::ErrorKind::Interrupted);
        assert_eq!(&sim.contents(log_path()).unwrap()[4..8], [0; 4], "nothing was done");

        let durable = || {
            let after = sim.snapshot().crash(&Survival::NothingUnsynced);
            after.contents(log_path()).unwrap()[..4].to_vec()
        };
        armed(FaultKind::DroppedSync);
        log.sync().unwrap();
        assert_eq!(durable(), [0; 4]);
        log.sync().unwrap();
        assert_eq!(durable(), b"ab\0\0", "a dropped sync loses nothing for ever");
        log.store(0, b"cd").unwrap();
        armed(FaultKind::FailedSync);
        assert_eq!(log.sync().unwrap_err().raw_os_error(), EIO);
        log.store(2, b"ef").unwrap();
        log.sync().unwrap();
        assert_eq!(durable(), b"abef", "a failed one does");
        assert_eq!(&sim.contents(log_path()).unwrap()[..4], b"cdef", "though it is read");
    }

    #[test]
    fn a_fault_that_does_not_fit_does_not_fire() {
        let fs = FaultFs::over_sim(SimFs::new());
        for kind in [FaultKind::ShortWrite, FaultKind::DroppedSync, FaultKind::FailedSync] {
            fs.arm(Fault::new(kind).until_healed());
        }
        let file = fs.create(log_path()).unwrap();
        assert_eq!(file.len().unwrap(), 0);
        assert_eq!(fs.fired(), 0);
        assert_eq!(fs.calls(), 2);
    }

    #[test]
    fn every_method_can_fail() {
        let sim = SimFs::new();
        let fs = FaultFs::over_sim(sim);
        let (file, log) = (fs.create(Path::new("/f")).unwrap(), fs.create_log(log_path(), 8));
        let log = log.unwrap();
        fs.arm(Fault::new(FaultKind::Io).until_healed());
        let path = Path::new("/f");
        let results = [
            fs.create(path).err(),
            fs.open(path).err(),
            fs.create_log(path, 1).err(),
            fs.rename(path, path).err(),
            fs.link(path, path).err(),
            fs.remove(path).err(),
            fs.list(path).err(),
            fs.create_dir_all(path).err(),
            fs.sync_dir(path).err(),
            fs.lock(path).err(),
            fs.free_bytes(path).err(),
            file.write_at(0, b"").err(),
            file.sync().err(),
            file.allocate(1).err(),
            file.set_len(1).err(),
            file.len().err(),
            file.read_at(&mut [], 0).err(),
            file.map().err(),
            log.store(0, b"").err(),
            log.sync().err(),
        ];
        for (i, error) in results.iter().enumerate() {
            assert_eq!(error.as_ref().and_then(io::Error::raw_os_error), EIO, "method {i}");
        }
        assert_eq!(fs.fired(), results.len() as u64);
    }
}
