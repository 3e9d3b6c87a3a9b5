//! Pressure: how close writers are to outrunning the disk, from 0 to 1, and what they pay for it.
//!
//! ```text
//!   allowed rate
//!   unlimited |------------.                      S: what the background work sustains
//!        4 S  |             \
//!          S  |              `-----.  <- equilibrium: x = 0.75
//!        S/3  |                     `---.
//!          0  +-----------+-----+------+--+
//!             0          0.5  0.75   0.95 1   pressure x
//! ```
//!
//! - x is the largest of several measures, each continuous: memory of memtables, runs of level 0,
//!   compaction debt, bytes of logs, disk space.
//! - The allowed rate is S·2^(8(0.75 − x)) from x = 0.5 to 0.95 and falls linearly to 0 at 1. It
//!   crosses S at 0.75, so that is where it settles: no cliff, no limit cycle.
//! - S is user bytes a busy second of the background threads, smoothed. Busy seconds, because idle
//!   ones say nothing of what they could do.
//! - Every commit charges one virtual clock, also of short-lived writers and of asynchronous
//!   commits; who finds the clock ahead by a grain or more waits until it is reached. Writers pay
//!   after their commit, outside every lock.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crate::error::{BusyCause, Error, Result};
use crate::runtime::{Condvar, Mutex, Runtime};

/// Nobody waits for less: sleeping costs about 60 µs by itself.
const GRAIN: Duration = Duration::from_micros(100);
/// At least so often a sleeping writer looks whether the pressure has eased.
const SLEEP_MAX: Duration = Duration::from_millis(20);
/// S before anything was measured, and the least it is believed to be, in bytes a second.
const SUSTAINABLE_PRIOR: f64 = 64e6;
const SUSTAINABLE_FLOOR: f64 = 1e6;
const UNLIMITED: u64 = u64::MAX;

/// What pressure is made of. Sizes in bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measures {
    pub memtables_bytes: usize,
    pub memtable_bytes: usize,
    pub memtables_bytes_max: usize,
    /// The most runs of level 0 in any keyspace.
    pub level0_runs: usize,
    pub level0_runs_trigger: usize,
    pub level0_runs_max: usize,
    pub debt_bytes: u64,
    pub debt_bytes_max: u64,
    pub logs_bytes: u64,
    pub logs_bytes_max: u64,
    pub free_bytes: u64,
    pub reserve_bytes: u64,
}

/// `value` between `from` and `to` as 0 to 1.
fn fraction(value: f64, from: f64, to: f64) -> f64 {
    if to <= from {
        return if value > from { 1.0 } else { 0.0 };
    }
    ((value - from) / (to - from)).clamp(0.0, 1.0)
}

impl Measures {
    /// The pressure, and what makes it.
    fn reading(&self) -> (f64, BusyCause) {
        // One full memtable is the ordinary state and no pressure.
        let memory = fraction(
            self.memtables_bytes as f64,
            self.memtable_bytes as f64,
            self.memtables_bytes_max as f64,
        );
        let level0 = fraction(
            self.level0_runs as f64,
            self.level0_runs_trigger as f64,
            self.level0_runs_max as f64,
        );
        let debt = fraction(self.debt_bytes as f64, 0.0, self.debt_bytes_max as f64);
        let logs = fraction(
            self.logs_bytes as f64,
            self.logs_bytes_max as f64 / 4.0,
            self.logs_bytes_max as f64,
        );
        let reserve = self.reserve_bytes as f64;
        let disk = 1.0 - fraction(self.free_bytes as f64, reserve, 3.0 * reserve);
        [
            (memory, BusyCause::Memory),
            (level0, BusyCause::Level0),
            (debt, BusyCause::CompactionDebt),
            (logs, BusyCause::LogBytes),
            (disk, BusyCause::DiskSpace),
        ]
        .into_iter()
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .expect("not empty")
    }
}

/// Bytes a second that writers may write at pressure `x`, or `None` for any rate.
fn allowed_rate(x: f64, sustainable: f64) -> Option<f64> {
    let curve = |x: f64| sustainable * (8.0 * (0.75 - x)).exp2();
    match x {
        x if x < 0.5 => None,
        x if x < 0.95 => Some(curve(x)),
        x => Some(curve(0.95) * ((1.0 - x) / 0.05).max(0.0)),
    }
}

/// How a write behaves under pressure.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    /// Waits as long as it takes.
    Wait,
    /// Waits at most until this time of the runtime's clock.
    Until(Duration),
    /// Fails at once.
    None,
}

/// Time that writers spent waiting for one cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StallStats {
    /// What they waited for.
    pub cause: BusyCause,
    /// Commits that waited.
    pub count: u64,
    /// How long, added up over writers.
    pub time: Duration,
}

/// See the module's comment.
pub(crate) struct Pressure {
    runtime: Runtime,
    /// Bits of an f64.
    value: AtomicU64,
    cause: AtomicU8,
    /// Bytes a second, or `UNLIMITED`.
    rate: AtomicU64,
    /// Nanoseconds of the runtime's clock until which everything written is paid for.
    paid_until: AtomicU64,
    state: Mutex<State>,
    eased: Condvar,
}

struct State {
    sustainable: f64,
    stalls: [StallStats; CAUSES.len()],
    stopped: bool,
}

/// On no disk; the order of `Pressure::stalls`.
const CAUSES: [BusyCause; 5] = [
    BusyCause::Memory,
    BusyCause::Level0,
    BusyCause::CompactionDebt,
    BusyCause::LogBytes,
    BusyCause::DiskSpace,
];

impl Pressure {
    pub fn new(runtime: Runtime) -> Pressure {
        let stalls = CAUSES.map(|cause| StallStats { cause, count: 0, time: Duration::ZERO });
        Pressure {
            runtime,
            value: AtomicU64::new(0f64.to_bits()),
            cause: AtomicU8::new(0),
            rate: AtomicU64::new(UNLIMITED),
            paid_until: AtomicU64::new(0),
            state: Mutex::new(State { sustainable: SUSTAINABLE_PRIOR, stalls, stopped: false }),
            eased: Condvar::new(),
        }
    }

    /// Sets pressure and rate by what was just measured.
    pub fn update(&self, measures: &Measures) {
        let (x, cause) = measures.reading();
        let state = self.state.lock();
        let rate = allowed_rate(x, state.sustainable).map_or(UNLIMITED, |rate| rate as u64);
        self.value.store(x.to_bits(), Ordering::Relaxed);
        let index = CAUSES.iter().position(|c| *c == cause).expect("a known cause");
        self.cause.store(index as u8, Ordering::Relaxed);
        let before = self.rate.swap(rate, Ordering::Relaxed);
        if rate > before {
            // The debt was reckoned at the lower rate; at the new one it would be too long.
            self.paid_until.fetch_min(self.now_ns(), Ordering::Relaxed);
            self.eased.notify_all();
        }
    }

    /// The background threads moved `user_bytes` on in `busy` seconds of their time.
    pub fn sustained(&self, user_bytes: u64, busy: Duration) {
        if busy.is_zero() || user_bytes == 0 {
            return;
        }
        let mut state = self.state.lock();
        let sample = (user_bytes as f64 / busy.as_secs_f64()).max(SUSTAINABLE_FLOOR);
        state.sustainable = 0.75 * state.sustainable + 0.25 * sample;
    }

    /// Pressure from 0 to 1, and its cause.
    pub fn reading(&self) -> (f64, BusyCause) {
        let cause = CAUSES[usize::from(self.cause.load(Ordering::Relaxed))];
        (f64::from_bits(self.value.load(Ordering::Relaxed)), cause)
    }

    /// Bytes a second that the background work sustains, as measured.
    pub fn sustainable(&self) -> f64 {
        self.state.lock().sustainable
    }

    /// Bytes a second that writers may write now; `None` for any rate.
    pub fn allowed(&self) -> Option<u64> {
        let rate = self.rate.load(Ordering::Relaxed);
        (rate != UNLIMITED).then_some(rate)
    }

    /// Before a commit: refuses it if it would have to wait longer than it may.
    ///
    /// # Errors
    /// `Busy`; nothing was written.
    #[inline]
    pub fn admit(&self, patience: Patience) -> Result<()> {
        if self.rate.load(Ordering::Relaxed) == UNLIMITED {
            return Ok(());
        }
        self.admit_limited(patience)
    }

    #[cold]
    fn admit_limited(&self, patience: Patience) -> Result<()> {
        let now = self.runtime.now();
        let owed = self.owed(now);
        let may_wait = match patience {
            Patience::Wait => return Ok(()),
            Patience::Until(deadline) => deadline.saturating_sub(now),
            Patience::None => Duration::ZERO,
        };
        if owed > may_wait.max(GRAIN) { Err(Error::busy(self.reading().1, owed)) } else { Ok(()) }
    }

    /// How far the virtual clock is ahead of `now`; at rate 0 at least a while.
    fn owed(&self, now: Duration) -> Duration {
        let ahead = self.paid_until.load(Ordering::Relaxed).saturating_sub(now.as_nanos() as u64);
        let ahead = Duration::from_nanos(ahead);
        match self.rate.load(Ordering::Relaxed) {
            0 => ahead.max(SLEEP_MAX),
            UNLIMITED => Duration::ZERO,
            _ => ahead,
        }
    }

    /// After a commit of `bytes`: charges it and waits until it is paid for, or until `is_broken`:
    /// while writes are refused nothing eases the pressure.
    #[inline]
    pub fn pay(&self, bytes: u64, patience: Patience, is_broken: impl Fn() -> bool) {
        if self.rate.load(Ordering::Relaxed) != UNLIMITED {
            self.pay_limited(bytes, patience, &is_broken);
        }
    }

    #[cold]
    fn pay_limited(&self, bytes: u64, patience: Patience, is_broken: &dyn Fn() -> bool) {
        let rate = self.rate.load(Ordering::Relaxed).max(1);
        // At most a second for one commit: at rate 0 the wait below does the rest.
        let cost_ns = ((bytes as f64 / rate as f64) * 1e9).min(1e9) as u64;
        let now_ns = self.now_ns();
        let charge = |paid: u64| Some(paid.max(now_ns) + cost_ns);
        let _ = self.paid_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, charge);
        let began = self.runtime.now();
        if self.owed(began) < GRAIN {
            return;
        }
        let cause = self.cause.load(Ordering::Relaxed);
        let mut state = self.state.lock();
        loop {
            let now = self.runtime.now();
            let mut owed = self.owed(now);
            if let Patience::Until(deadline) = patience {
                owed = owed.min(deadline.saturating_sub(now));
            }
            let may_not_wait = matches!(patience, Patience::None);
            if owed.is_zero() || state.stopped || may_not_wait || is_broken() {
                break;
            }
            self.eased.wait_for(&mut state, owed.min(SLEEP_MAX));
        }
        let stall = &mut state.stalls[usize::from(cause)];
        stall.count += 1;
        stall.time += self.runtime.now().saturating_sub(began);
    }

    /// Lets every waiting writer go: the database closes.
    pub fn stop(&self) {
        self.state.lock().stopped = true;
        self.eased.notify_all();
    }

    /// How often and how long writers waited, by cause.
    pub fn stalls(&self) -> Vec<StallStats> {
        self.state.lock().stalls.to_vec()
    }

    fn now_ns(&self) -> u64 {
        self.runtime.now().as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allowed_rate_has_no_cliff_and_crosses_the_sustainable_one_at_three_quarters() {
        assert_eq!(allowed_rate(0.49, 1e6), None);
        assert!((allowed_rate(0.75, 1e6).unwrap() - 1e6).abs() < 1.0);
        assert_eq!(allowed_rate(1.0, 1e6), Some(0.0));
        let rates: Vec<f64> =
            (500..=1000).map(|x| allowed_rate(f64::from(x) / 1000.0, 1e6).unwrap()).collect();
        for pair in rates.windows(2) {
            assert!(pair[1] < pair[0], "falls all the way");
            // No step takes away more than a fortieth of the sustainable rate.
            assert!(pair[0] - pair[1] < 0.025 * pair[0].max(1e6), "{pair:?}");
        }
    }

    fn calm() -> Measures {
        Measures {
            memtable_bytes: 64,
            memtables_bytes_max: 128,
            level0_runs_trigger: 4,
            level0_runs_max: 24,
            debt_bytes_max: 100,
            logs_bytes_max: 100,
            free_bytes: 1000,
            reserve_bytes: 10,
            ..Measures::default()
        }
    }

    #[test]
    fn each_measure_alone_makes_pressure() {
        assert_eq!(calm().reading().0, 0.0);
        let cases: [(Measures, f64, BusyCause); 5] = [
            (Measures { memtables_bytes: 112, ..calm() }, 0.75, BusyCause::Memory),
            (Measures { level0_runs: 14, ..calm() }, 0.5, BusyCause::Level0),
            (Measures { debt_bytes: 90, ..calm() }, 0.9, BusyCause::CompactionDebt),
            (Measures { logs_bytes: 100, ..calm() }, 1.0, BusyCause::LogBytes),
            (Measures { free_bytes: 20, ..calm() }, 0.5, BusyCause::DiskSpace),
        ];
        for (measures, x, cause) in cases {
            let (value, found) = measures.reading();
            assert!((value - x).abs() < 1e-9 && found == cause, "{measures:?}: {value} {found:?}");
        }
    }

    #[test]
    fn who_may_not_wait_is_told_how_long_it_would_be() {
        let pressure = Pressure::new(Runtime::threads());
        assert!(pressure.admit(Patience::None).is_ok());
        pressure.update(&Measures { level0_runs: 24, ..calm() });
        let error = pressure.admit(Patience::None).unwrap_err();
        assert!(matches!(
            error.kind(),
            crate::error::ErrorKind::Busy { cause: BusyCause::Level0, retry_after }
                if *retry_after > Duration::ZERO
        ));
        assert!(pressure.admit(Patience::Wait).is_ok());
        // Returns although the rate is 0, because it may not wait.
        pressure.pay(100, Patience::None, || false);
        // And because nothing would ease it.
        pressure.pay(100, Patience::Wait, || true);
        pressure.update(&calm());
        assert!(pressure.admit(Patience::None).is_ok());
    }
}
