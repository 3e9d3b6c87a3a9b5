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
//! - The allowed rate is S·2^(8(0.75 − x)) from x = 0.5 to 0.95 and falls linearly to a trickle, S/60, just
//!   before 1, where it is 0. It crosses S at 0.75, so that is where it settles: no cliff, no limit cycle.
//! - A flush that waits for the disk may take half a second. So a little more memory than there should be is
//!   given out at that trickle: writers become slow, and none stands still meanwhile.
//! - Of several that share their memory, the one that holds the most feels the whole pressure of
//!   it, one that holds little feels none: each is asked what all would hold if none held more than
//!   it does. Only close to the end does everyone with more than an equal share feel it.
//! - S is user bytes a busy second of the background threads, smoothed. Busy seconds, because idle
//!   ones say nothing of what they could do.
//! - Every commit charges one virtual clock, also of short-lived writers and of asynchronous
//!   commits; who finds the clock ahead by a millisecond or more waits until it is reached. Writers pay
//!   after their commit, outside every lock.
//! - Who may not wait is refused while the clock is ahead, and told when to come back: a *slot*, after
//!   what is written is paid for and after the slots of those who were refused before. Without the
//!   latter all would come back at once, and all but the first be refused again. A slot that is due
//!   is honoured for whoever comes; others are let in only where they fit before the next one.
//! - Close to x = 1 the clock says little, since the rate is about to rise again: there the slots
//!   begin when the pressure will have eased, as long as that usually takes.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crate::error::{BusyCause, Error, Result};
use crate::runtime::{Condvar, Mutex, Runtime};

/// Who may not wait is not refused for less.
const GRAIN: Duration = Duration::from_micros(100);
/// Nobody sleeps for less: waking costs 60 to 80 µs by itself, and a few writers that wait for a millisecond
/// are better than many that wait for 200 µs.
const SLEEP_MIN: Duration = Duration::from_millis(1);
/// A slot is kept so long after its time. Who comes later is as good as new.
const SLOT_KEPT: Duration = Duration::from_millis(20);
/// Nobody's slot is later than so long after what is written is paid for, and there are no more of
/// them: others may have been refused and not come back.
const SLOTS_SPAN: Duration = Duration::from_secs(1);
const SLOTS_MAX: usize = 4096;
/// Below this part of the sustainable rate, the time until the pressure eases is told. x is 0.96.
const TIGHT: f64 = 0.25;
/// How long that takes before anything was measured.
const EASES_PRIOR: Duration = Duration::from_millis(20);
/// At least so often a sleeping writer looks whether the pressure has eased.
const SLEEP_MAX: Duration = Duration::from_millis(20);
/// S before anything was measured, and the least it is believed to be, in bytes a second.
const SUSTAINABLE_PRIOR: f64 = 64e6;
const SUSTAINABLE_FLOOR: f64 = 1e6;
const UNLIMITED: u64 = u64::MAX;
/// Of what is allowed at x = 0.95, what still is just before 1.
const TRICKLE: f64 = 1.0 / 20.0;
/// The pressure of memory that is given out at a trickle, beyond what memtables may have, and which part of
/// that it is: 4 MiB of 128, at 3.6 MB/s if 160 are sustained.
const TRICKLE_X: f64 = 0.999;
const TRICKLE_FRACTION: usize = 32;

/// What pressure is made of. Sizes in bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measures {
    /// Its own memtables.
    pub memtables_bytes: usize,
    /// All memtables of those who share their memory, if none held more than this one does.
    pub memtables_level_bytes: usize,
    /// All of them.
    pub memtables_total_bytes: usize,
    /// How many share it.
    pub sharers: usize,
    /// How many of them slow writers down at the same time, and share what is sustained.
    pub contenders: usize,
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
    fn memory(&self) -> f64 {
        // One full memtable is the ordinary state and no pressure.
        let (ordinary, most) = (self.memtable_bytes as f64, self.memtables_bytes_max as f64);
        let fair = fraction(self.memtables_level_bytes as f64, ordinary, most);
        // Who has the most keeps all below three quarters on the average.
        let share = ordinary / self.sharers.max(1) as f64;
        let has_share = fraction(self.memtables_bytes as f64, share / 2.0, share);
        let late = ordinary + 0.75 * (most - ordinary);
        let x = fair.max(has_share * fraction(self.memtables_total_bytes as f64, late, most));
        let has_trickle = self.memtables_total_bytes < self.trickle_end();
        if has_trickle { x.min(TRICKLE_X) } else { x }
    }

    fn trickle_end(&self) -> usize {
        self.memtables_bytes_max + self.memtables_bytes_max / TRICKLE_FRACTION
    }

    /// The pressure, and what makes it.
    fn reading(&self) -> (f64, BusyCause) {
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
            (self.memory(), BusyCause::Memory),
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
        x if x < 1.0 => Some(curve(0.95) * (TRICKLE + (1.0 - TRICKLE) * (1.0 - x) / 0.05)),
        _ => Some(0.0),
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

/// How close writers are to outrunning what is behind the entrance that was asked: the database, or a
/// part of the toolkit in front of it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Pressure {
    /// From 0 to 1. A database slows writers down from 0.5 on; a bounded queue is full at 1.
    pub value: f64,
    /// What makes it, or would first.
    pub cause: BusyCause,
    /// Bytes a second that what is behind this entrance sustains, as measured lately; 0 if nothing
    /// was yet.
    pub sustainable_rate: f64,
    /// Bytes a second that are let in now; `None` for any rate.
    pub allowed_rate: Option<u64>,
}

impl Pressure {
    /// With a queue in front that is full to this fraction.
    pub(crate) fn behind_queue(self, fraction: f64) -> Pressure {
        match fraction > self.value {
            true => Pressure { value: fraction.min(1.0), cause: BusyCause::Queue, ..self },
            false => self,
        }
    }
}

impl fmt::Display for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:?}); allowed ", self.value, self.cause)?;
        match self.allowed_rate {
            Some(rate) => write!(f, "{:.1} MB/s", rate as f64 / 1e6)?,
            None => f.write_str("any rate")?,
        }
        write!(f, ", sustainable {:.1} MB/s", self.sustainable_rate / 1e6)
    }
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
pub(crate) struct Throttle {
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
    slots: Slots,
    stopped: bool,
}

/// When those who were refused are to come back. Times in nanoseconds of the runtime's clock.
#[derive(Default)]
struct Slots {
    /// Those to come, and those just past that nobody has taken.
    due: VecDeque<u64>,
    /// Where the next one may begin.
    next: u64,
    /// Since when the rate has been below [`TIGHT`], and how long that usually lasts.
    tight_since: Option<u64>,
    tight_ns: u64,
}

impl Slots {
    /// The rate, as a part of the sustainable one, is this from now on.
    fn note_rate(&mut self, part: f64, now: u64) {
        match (self.tight_since, part < TIGHT) {
            (None, true) => self.tight_since = Some(now),
            (Some(since), false) => {
                let took = now - since;
                self.tight_ns =
                    if self.tight_ns == 0 { took } else { (3 * self.tight_ns + took) / 4 };
                self.tight_since = None;
            }
            _ => {}
        }
    }

    /// Nobody has to wait any more.
    fn clear(&mut self) {
        self.due.clear();
        self.next = 0;
    }

    /// Takes a slot that is due, if there is one.
    fn take(&mut self, now: u64) -> bool {
        let kept = SLOT_KEPT.as_nanos() as u64;
        while self.due.front().is_some_and(|slot| slot + kept < now) {
            self.due.pop_front();
        }
        let is_due = self.due.front().is_some_and(|slot| *slot <= now);
        if is_due {
            self.due.pop_front();
        }
        is_due
    }

    /// A slot for who takes `cost_ns`, when what is written is paid for after `owed_ns`.
    fn give(&mut self, now: u64, owed_ns: u64, cost_ns: u64) -> u64 {
        let begins = match self.tight_since {
            None => now + owed_ns,
            Some(since) => {
                let usual = match self.tight_ns {
                    0 => EASES_PRIOR.as_nanos() as u64,
                    // A quarter more: who comes late loses less than who comes too early.
                    usual => usual + usual / 4,
                };
                // Who read the clock before another thread noted the rate is behind that.
                let took = now.saturating_sub(since);
                // What takes longer than usual may well take so much longer again.
                now + usual.checked_sub(took).unwrap_or_else(|| (took - usual).max(usual / 4))
            }
        };
        let last = begins + SLOTS_SPAN.as_nanos() as u64;
        let slot = self.next.clamp(begins, last);
        // A tenth more than it takes: others come in between.
        self.next = slot + cost_ns + cost_ns / 10;
        if self.due.len() < SLOTS_MAX {
            let at = self.due.partition_point(|other| *other <= slot);
            self.due.insert(at, slot);
        }
        slot
    }
}

/// On no disk; the order of `Throttle::stalls`.
const CAUSES: [BusyCause; 5] = [
    BusyCause::Memory,
    BusyCause::Level0,
    BusyCause::CompactionDebt,
    BusyCause::LogBytes,
    BusyCause::DiskSpace,
];

impl Throttle {
    pub fn new(runtime: Runtime) -> Throttle {
        let stalls = CAUSES.map(|cause| StallStats { cause, count: 0, time: Duration::ZERO });
        Throttle {
            runtime,
            value: AtomicU64::new(0f64.to_bits()),
            cause: AtomicU8::new(0),
            rate: AtomicU64::new(UNLIMITED),
            paid_until: AtomicU64::new(0),
            state: Mutex::new(State {
                sustainable: SUSTAINABLE_PRIOR,
                stalls,
                slots: Slots::default(),
                stopped: false,
            }),
            eased: Condvar::new(),
        }
    }

    /// Sets pressure and rate by what was just measured.
    pub fn update(&self, measures: &Measures) {
        let (x, cause) = measures.reading();
        let mut state = self.state.lock();
        let sustainable = state.sustainable / measures.contenders.max(1) as f64;
        let rate = allowed_rate(x, sustainable).map_or(UNLIMITED, |rate| rate as u64);
        let part = rate as f64 / sustainable;
        state.slots.note_rate(part, self.now_ns());
        if rate == UNLIMITED {
            state.slots.clear();
        }
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

    /// The same with the rates.
    pub fn pressure(&self) -> Pressure {
        let (value, cause) = self.reading();
        let (sustainable_rate, allowed_rate) = (self.sustainable(), self.allowed());
        Pressure { value, cause, sustainable_rate, allowed_rate }
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

    /// Before a commit of `bytes`: refuses it if it would have to wait longer than it may.
    ///
    /// # Errors
    /// `Busy`; nothing was written.
    #[inline]
    pub fn admit(&self, bytes: u64, patience: Patience) -> Result<()> {
        if self.rate.load(Ordering::Relaxed) == UNLIMITED {
            return Ok(());
        }
        self.admit_limited(bytes, patience)
    }

    #[cold]
    fn admit_limited(&self, bytes: u64, patience: Patience) -> Result<()> {
        let now = self.runtime.now();
        let mut owed = self.owed(now);
        let may_wait = match patience {
            Patience::Wait => return Ok(()),
            Patience::Until(deadline) => deadline.saturating_sub(now),
            Patience::None => Duration::ZERO,
        };
        if !may_wait.is_zero() && owed <= may_wait {
            return Ok(());
        }
        let mut state = self.state.lock();
        let (pressure, cause) = self.reading();
        let now_ns = now.as_nanos() as u64;
        if pressure >= TRICKLE_X {
            // The trickle is for those who wait.
            owed = owed.max(SLEEP_MAX);
        } else if state.slots.take(now_ns) {
            return Ok(());
        }
        let cost_ns = self.cost_ns(bytes);
        let next = state.slots.due.front().copied().unwrap_or(u64::MAX);
        if owed <= GRAIN && (next == u64::MAX || now_ns + cost_ns <= next) {
            return Ok(());
        }
        let least = ((state.sustainable * TIGHT) as u64).max(1);
        let cost_ns = cost_ns.min((bytes as f64 / least as f64 * 1e9) as u64);
        let slot = state.slots.give(now_ns, owed.as_nanos() as u64, cost_ns);
        let wait = Duration::from_nanos(slot.saturating_sub(now_ns)).max(GRAIN);
        Err(Error::busy(cause, wait))
    }

    /// How far a write of `bytes` sets the clock forward.
    fn cost_ns(&self, bytes: u64) -> u64 {
        let rate = self.rate.load(Ordering::Relaxed).max(1);
        // At most a second for one commit: at rate 0 waiting until it rises does the rest.
        ((bytes as f64 / rate as f64) * 1e9).min(1e9) as u64
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
        let cost_ns = self.cost_ns(bytes);
        let now_ns = self.now_ns();
        let charge = |paid: u64| Some(paid.max(now_ns) + cost_ns);
        let _ = self.paid_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, charge);
        let began = self.runtime.now();
        if self.owed(began) < SLEEP_MIN {
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
    use crate::error::ErrorKind;

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

    /// Bug: a write that would not wait panicked, or was told to come back after centuries. Cause: it had
    /// read the clock before another thread noted that the rate is low, and the time since then was less
    /// than nothing. Fix: it is nothing.
    #[test]
    fn who_is_behind_the_last_measuring_gets_a_slot_too() {
        let mut slots = Slots::default();
        slots.note_rate(TIGHT / 2.0, 2_000);
        let slot = slots.give(1_000, 0, 10);
        let usual = EASES_PRIOR.as_nanos() as u64;
        assert_eq!(slot, 1_000 + usual);
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

    /// With so many bytes of memtables, and nobody to share the memory with.
    fn alone(bytes: usize) -> Measures {
        Measures {
            memtables_bytes: bytes,
            memtables_level_bytes: bytes,
            memtables_total_bytes: bytes,
            sharers: 1,
            ..calm()
        }
    }

    /// The pressure of each of those who hold so many bytes.
    fn together(bytes: &[usize]) -> Vec<f64> {
        let measures = |own: &usize| Measures {
            memtables_bytes: *own,
            memtables_level_bytes: bytes.iter().map(|other| other.min(own)).sum(),
            memtables_total_bytes: bytes.iter().sum(),
            sharers: bytes.len(),
            ..calm()
        };
        bytes.iter().map(|own| measures(own).reading().0).collect()
    }

    #[test]
    fn who_holds_the_most_of_a_shared_memory_feels_it() {
        // One memtable is 64 bytes, all may have 128.
        assert_eq!(together(&[96]), [0.5]);
        assert_eq!(together(&[24, 24, 24, 24]), [0.5; 4], "as one would");
        assert_eq!(together(&[100, 4, 4, 4]), [0.75, 0.0, 0.0, 0.0]);
        assert_eq!(together(&[50, 50, 8, 4]), [0.75, 0.75, 0.0, 0.0]);
        // At the end those who hold more than an equal share of a memtable, 16, feel it too.
        assert_eq!(together(&[98, 16, 10, 4]), [TRICKLE_X, TRICKLE_X, 0.25, 0.0]);
        assert_eq!(together(&[0, 128]), [0.0, TRICKLE_X]);
        assert_eq!(together(&[0, 131]), [0.0, TRICKLE_X]);
        assert_eq!(together(&[0, 132]), [0.0, 1.0], "and then nothing");
        // Whoever may still write, all together hold no more than a memtable too much.
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..500 {
            let count = random.usize(1..9);
            let mut bytes = vec![0; count];
            loop {
                let open = together(&bytes);
                let open: Vec<usize> = (0..count).filter(|at| open[*at] < 1.0).collect();
                let Some(at) = random.choice(open) else { break };
                bytes[at] += 1;
            }
            let total: usize = bytes.iter().sum();
            assert!((128..=132 + 64).contains(&total), "{bytes:?}");
        }
    }

    /// Bug: writers stood still for up to 670 ms while a flush waited for the disk. Cause: memory is counted by
    /// the mebibyte, and the last one took the rate from a tenth of the sustained one to nothing. Fix: a little
    /// more is given out at a trickle.
    #[test]
    fn who_waits_gets_on_at_a_trickle_and_who_does_not_is_told_when_there_is_more() {
        let pressure = Throttle::new(Runtime::alone());
        for bytes in [128, 131] {
            pressure.update(&alone(bytes));
            let rate = pressure.allowed().unwrap() as f64;
            let part = rate / SUSTAINABLE_PRIOR;
            assert!((1.0 / 60.0..1.0 / 40.0).contains(&part), "{part}");
            assert!(pressure.admit(100, Patience::Wait).is_ok());
            assert!(pressure.admit(100, Patience::Until(Duration::from_millis(1))).is_ok());
            let error = pressure.admit(100, Patience::None).unwrap_err();
            let ErrorKind::Busy { retry_after, .. } = error.kind() else { panic!("{error}") };
            assert!(*retry_after >= EASES_PRIOR, "{retry_after:?}");
        }
        pressure.update(&alone(132));
        assert_eq!(pressure.allowed(), Some(0));
        assert!(pressure.admit(100, Patience::Until(Duration::from_millis(1))).is_err());
    }

    #[test]
    fn who_slows_down_at_the_same_time_shares_what_is_sustained() {
        let pressure = Throttle::new(Runtime::alone());
        pressure.update(&Measures { debt_bytes: 75, contenders: 4, ..calm() });
        assert_eq!(pressure.allowed(), Some(SUSTAINABLE_PRIOR as u64 / 4));
    }

    #[test]
    fn each_measure_alone_makes_pressure() {
        assert_eq!(calm().reading().0, 0.0);
        let cases: [(Measures, f64, BusyCause); 5] = [
            (alone(112), 0.75, BusyCause::Memory),
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
    fn those_who_are_refused_are_told_to_come_one_after_the_other() {
        let pressure = Throttle::new(Runtime::alone());
        pressure.update(&Measures { debt_bytes: 75, ..calm() });
        let rate = pressure.allowed().unwrap();
        assert_eq!(rate, SUSTAINABLE_PRIOR as u64, "x is 0.75");
        // Time stands still: 10 ms of it are owed.
        pressure.pay(rate / 100, Patience::None, || false);
        let told = || {
            let error = pressure.admit(rate / 1000, Patience::None).unwrap_err();
            let ErrorKind::Busy { retry_after, .. } = error.kind() else { panic!("{error}") };
            retry_after.as_millis()
        };
        assert_eq!([told(), told(), told()], [10, 11, 12]);
        (0..2000).for_each(|_| _ = told());
        assert_eq!(told(), 1010, "but not without bound");
        pressure.update(&calm());
        assert!(pressure.admit(rate, Patience::None).is_ok());
        pressure.update(&Measures { debt_bytes: 75, ..calm() });
        assert!(pressure.admit(rate, Patience::None).is_ok(), "nothing is owed any more");
        pressure.pay(rate / 100, Patience::None, || false);
        assert!(pressure.admit(1, Patience::Until(Duration::from_millis(10))).is_ok());
    }

    /// Of virtual time.
    #[test]
    fn nobody_sleeps_for_less_than_a_millisecond_and_who_does_pays_for_all_before() {
        let pressure = Throttle::new(Runtime::stepper(1));
        pressure.update(&Measures { debt_bytes: 75, ..calm() });
        let rate = pressure.allowed().unwrap();
        let began = pressure.runtime.now();
        let us = |count| Duration::from_micros(count);
        // Each is 0.4 ms.
        let took = [(); 3].map(|()| {
            pressure.pay(rate / 2500, Patience::Wait, || false);
            pressure.runtime.now() - began
        });
        assert!(took[1] < us(100), "{took:?}");
        assert!(us(1200) <= took[2] && took[2] < us(1500), "{took:?}");
        assert_eq!(pressure.stalls().iter().map(|stall| stall.count).sum::<u64>(), 1);
    }

    #[test]
    fn a_slot_is_honoured_and_nobody_else_let_in_before() {
        let mut slots = Slots::default();
        slots.note_rate(1.0, 0);
        let ms = 1_000_000;
        assert_eq!([slots.give(0, 5 * ms, ms), slots.give(0, 5 * ms, ms)], [5 * ms, 61 * ms / 10]);
        assert!(!slots.take(4 * ms));
        assert!(slots.take(5 * ms) && !slots.take(5 * ms));
        assert!(slots.take(7 * ms), "a little late");
        slots.give(7 * ms, 0, ms);
        assert!(!slots.take(60 * ms), "too late");
        // The rate falls to nothing for 40 ms, then for as long again.
        slots.note_rate(0.1, 100 * ms);
        assert_eq!(slots.give(100 * ms, 900 * ms, 0), 120 * ms);
        slots.note_rate(1.0, 140 * ms);
        slots.note_rate(0.0, 200 * ms);
        assert_eq!(slots.give(210 * ms, 900 * ms, 0), 250 * ms);
        assert_eq!(slots.give(260 * ms, 900 * ms, 0), 272 * ms + ms / 2, "longer than usual");
    }

    #[test]
    fn who_may_not_wait_is_told_how_long_it_would_be() {
        let pressure = Throttle::new(Runtime::threads());
        assert!(pressure.admit(100, Patience::None).is_ok());
        pressure.update(&Measures { level0_runs: 24, ..calm() });
        let error = pressure.admit(100, Patience::None).unwrap_err();
        assert!(matches!(
            error.kind(),
            ErrorKind::Busy { cause: BusyCause::Level0, retry_after }
                if *retry_after > Duration::ZERO
        ));
        assert!(pressure.admit(100, Patience::Wait).is_ok());
        // Returns although the rate is 0, because it may not wait.
        pressure.pay(100, Patience::None, || false);
        // And because nothing would ease it.
        pressure.pay(100, Patience::Wait, || true);
        pressure.update(&calm());
        assert!(pressure.admit(100, Patience::None).is_ok());
    }
}
