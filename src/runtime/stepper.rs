//! A seeded scheduler for tests: of all threads that take part exactly one runs at a time.
//!
//! The threads are real, but each waits for its *turn*. The thread that has the turn gives it up
//! at a *yield point*: an explicit one, a lock that is taken, a wait, a sleep, the end. A seeded
//! generator then picks among the threads that can run. The same seed and program give the same
//! schedule, as long as the program takes its other random numbers from seeds too.
//!
//! Time is virtual. A yield point takes a microsecond; when nobody can run, the clock jumps to the
//! next timeout.
//!
//! 1. The thread that makes the stepper is its first participant, "user"; those that are spawned
//!    are the others. A thread leaves when it ends, the user also by making another stepper.
//! 2. When no participant can run and none has a timeout, all of them panic, naming what each
//!    waits for. When the user leaves, the others unwind quietly at their next yield point.
//! 3. Other threads may use the same locks and conditions. While all participants find locks taken
//!    the stepper gives such threads half a second of real time before it speaks of a deadlock.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::panic::Location;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::runtime::{Priority, threads};

/// What a yield point takes of virtual time.
const YIELD_TAKES: Duration = Duration::from_micros(1);
/// Milliseconds of real time for which all participants may find locks taken.
const PATIENCE_MS: u32 = 500;

/// Whose turn it is, and why the others have not got it.
pub(crate) struct Stepper {
    schedule: Mutex<Schedule>,
}

struct Schedule {
    random: fastrand::Rng,
    /// Chance of 16 that a thread that can go on does. Drawn from the seed too: bugs that need
    /// many switches and bugs that need few are found by different schedules.
    stay: u8,
    clock: Duration,
    turn: usize,
    participants: Vec<Participant>,
    picks: u64,
    hash: u64,
    fruitless_ms: u32,
    stopped: Option<Stop>,
}

struct Participant {
    name: String,
    status: Status,
    timed_out: bool,
    /// It found a lock taken, and nobody has done anything since.
    is_futile: bool,
    turn_came: Arc<Condvar>,
}

enum Status {
    Ready { lock: Option<&'static Location<'static>> },
    Waiting { on: On, deadline: Option<Duration> },
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum On {
    Condition { address: usize, place: &'static Location<'static> },
    End { of: usize },
    Time,
}

#[derive(Clone)]
enum Stop {
    Deadlock(String),
    UserLeft,
}

/// What a participant unwinds with once the user has left.
struct Quiet;

/// A thread's part in a stepper. Leaves when it drops.
struct Seat {
    stepper: Arc<Stepper>,
    index: usize,
}

thread_local! {
    static SEAT: RefCell<Option<Seat>> = const { RefCell::new(None) };
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.stepper.leave(self.index);
    }
}

/// The stepper this thread takes part in, and its number there.
fn seat() -> Option<(Arc<Stepper>, usize)> {
    let seat = SEAT.try_with(|seat| {
        seat.borrow().as_ref().map(|seat| (Arc::clone(&seat.stepper), seat.index))
    });
    seat.ok().flatten()
}

fn take_seat(seat: Option<Seat>) {
    let earlier = SEAT.with(|own| std::mem::replace(&mut *own.borrow_mut(), seat));
    drop(earlier);
}

impl Schedule {
    fn add(&mut self, name: &str) -> usize {
        self.participants.push(Participant {
            name: name.to_owned(),
            status: Status::Ready { lock: None },
            timed_out: false,
            is_futile: false,
            turn_came: Arc::new(Condvar::new()),
        });
        self.participants.len() - 1
    }

    /// Somebody did something: who found a lock taken may find it free.
    fn progress(&mut self) {
        self.participants.iter_mut().for_each(|one| one.is_futile = false);
        self.fruitless_ms = 0;
    }

    fn can_run(&self) -> Vec<usize> {
        let all = self.participants.iter().enumerate();
        let able = all.filter(|(_, p)| matches!(p.status, Status::Ready { .. }) && !p.is_futile);
        able.map(|(index, _)| index).collect()
    }

    fn expire(&mut self) {
        let clock = self.clock;
        for one in &mut self.participants {
            if matches!(one.status, Status::Waiting { deadline: Some(at), .. } if at <= clock) {
                one.status = Status::Ready { lock: None };
                one.timed_out = true;
            }
        }
    }

    fn next_deadline(&self) -> Option<Duration> {
        let deadlines = self.participants.iter().filter_map(|one| match one.status {
            Status::Waiting { deadline, .. } => deadline,
            _ => None,
        });
        deadlines.min()
    }

    /// Picks who runs next, moving the clock if need be. `None`: nobody can.
    fn pick(&mut self, me: usize) -> Option<usize> {
        self.expire();
        let mut able = self.can_run();
        if able.is_empty() {
            self.clock = self.next_deadline()?.max(self.clock);
            self.expire();
            able = self.can_run();
        }
        let stays = able.contains(&me) && self.random.u8(..16) < self.stay;
        let next = if stays { me } else { able[self.random.usize(..able.len())] };
        self.picks += 1;
        let mixed = (self.hash ^ next as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.hash = mixed.rotate_left(23);
        Some(next)
    }

    fn wake(&mut self, wanted: impl Fn(&On) -> bool, all: bool) {
        let waiters = self.participants.iter().enumerate();
        let mut waiters: Vec<usize> = waiters
            .filter(|(_, p)| matches!(&p.status, Status::Waiting { on, .. } if wanted(on)))
            .map(|(index, _)| index)
            .collect();
        if !all && !waiters.is_empty() {
            waiters = vec![waiters[self.random.usize(..waiters.len())]];
        }
        for index in waiters {
            self.participants[index].status = Status::Ready { lock: None };
        }
    }

    /// Ends the stepper: everybody panics when the turn comes, which is now.
    fn stop(&mut self) {
        let stop = match self.participants[0].status {
            Status::Done => Stop::UserLeft,
            _ => Stop::Deadlock(format!("deadlock:{self}")),
        };
        self.stopped = Some(stop);
        self.participants.iter().for_each(|one| {
            one.turn_came.notify_one();
        });
    }

    fn give_turn(&mut self, next: usize) {
        self.turn = next;
        self.participants[next].turn_came.notify_one();
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for one in &self.participants {
            write!(f, "\n  {} ", one.name)?;
            match &one.status {
                Status::Ready { lock: None } => write!(f, "can run"),
                Status::Ready { lock: Some(at) } => write!(f, "wants a lock at {at}"),
                Status::Waiting { on: On::Condition { place, .. }, .. } => {
                    write!(f, "waits for a condition at {place}")
                }
                Status::Waiting { on: On::End { of }, .. } => {
                    write!(f, "waits for the end of {}", self.participants[*of].name)
                }
                Status::Waiting { on: On::Time, .. } => write!(f, "sleeps"),
                Status::Done => write!(f, "has ended"),
            }?;
        }
        Ok(())
    }
}

impl Stepper {
    /// A stepper whose only participant is the calling thread, which has the turn.
    pub(crate) fn new(seed: u64) -> Arc<Stepper> {
        let mut random = fastrand::Rng::with_seed(seed);
        let stay = [0, 8, 14, 15][random.usize(..4)];
        let mut schedule = Schedule {
            random,
            stay,
            clock: Duration::ZERO,
            turn: 0,
            participants: Vec::new(),
            picks: 0,
            hash: 0,
            fruitless_ms: 0,
            stopped: None,
        };
        let index = schedule.add("user");
        let stepper = Arc::new(Stepper { schedule: Mutex::new(schedule) });
        take_seat(Some(Seat { stepper: Arc::clone(&stepper), index }));
        stepper
    }

    pub(crate) fn spawn(
        self: &Arc<Stepper>,
        name: &str,
        f: impl FnOnce() + Send + 'static,
    ) -> io::Result<(JoinHandle<()>, usize)> {
        let index = self.schedule.lock().add(name);
        let seat = Seat { stepper: Arc::clone(self), index };
        let thread = threads::spawn(name, Priority::Normal, move || {
            struct Leave;
            impl Drop for Leave {
                fn drop(&mut self) {
                    take_seat(None);
                }
            }
            let stepper = Arc::clone(&seat.stepper);
            take_seat(Some(seat));
            let _leave = Leave;
            stepper.await_turn(index, stepper.schedule.lock());
            f();
        })?;
        Ok((thread, index))
    }

    pub(crate) fn now(&self) -> Duration {
        self.schedule.lock().clock
    }

    pub(crate) fn unique_id(&self) -> u128 {
        self.schedule.lock().random.u128(..)
    }

    /// A number for the schedule so far, and how many turns it had.
    pub(crate) fn schedule_hash(&self) -> (u64, u64) {
        let schedule = self.schedule.lock();
        (schedule.hash, schedule.picks)
    }

    fn yield_now(&self, me: usize) {
        let mut schedule = self.schedule.lock();
        schedule.clock += YIELD_TAKES;
        schedule.progress();
        self.pass_turn(me, schedule);
    }

    /// Says that a lock was found taken; returns when it may be worth another try. `again` says
    /// that this thread did nothing since it said so last. False: the stepper has stopped, and
    /// this thread is unwinding.
    fn found_taken(&self, me: usize, place: &'static Location<'static>, again: bool) -> bool {
        let mut schedule = self.schedule.lock();
        if !again {
            schedule.progress();
        }
        let own = &mut schedule.participants[me];
        own.status = Status::Ready { lock: Some(place) };
        own.is_futile = true;
        let Some(mut schedule) = self.pass_turn(me, schedule) else { return false };
        schedule.participants[me].status = Status::Ready { lock: None };
        true
    }

    /// Makes this thread wait from now on; [`Stepper::wait`] gives up the turn.
    fn begin_wait(&self, me: usize, on: On, timeout: Option<Duration>) {
        let mut schedule = self.schedule.lock();
        schedule.clock += YIELD_TAKES;
        schedule.progress();
        let deadline = timeout.map(|timeout| schedule.clock.saturating_add(timeout));
        schedule.participants[me].status = Status::Waiting { on, deadline };
        schedule.participants[me].timed_out = false;
    }

    /// Returns true if the time ran out.
    fn wait(&self, me: usize) -> bool {
        let schedule = self.pass_turn(me, self.schedule.lock());
        schedule.is_some_and(|schedule| schedule.participants[me].timed_out)
    }

    pub(crate) fn notify(&self, address: usize, all: bool) {
        let condition =
            |on: &On| matches!(on, On::Condition { address: theirs, .. } if *theirs == address);
        self.schedule.lock().wake(condition, all);
    }

    fn leave(&self, me: usize) {
        let mut schedule = self.schedule.lock();
        schedule.participants[me].status = Status::Done;
        if me == 0 && schedule.stopped.is_none() {
            schedule.stop();
        }
        schedule.progress();
        schedule.wake(|on| *on == On::End { of: me }, true);
        let over = schedule.participants.iter().all(|p| matches!(p.status, Status::Done));
        // Who leaves without the turn never had one: the thread could not be made.
        if !over && schedule.stopped.is_none() && schedule.turn == me {
            drop(self.find_next(me, schedule));
        }
    }

    /// Gives the turn to somebody who can run, maybe to `me`, or stops the stepper.
    fn find_next<'a>(
        &'a self,
        me: usize,
        mut schedule: MutexGuard<'a, Schedule>,
    ) -> MutexGuard<'a, Schedule> {
        loop {
            if let Some(next) = schedule.pick(me) {
                schedule.give_turn(next);
                return schedule;
            }
            let anyone_futile = schedule.participants.iter().any(|p| p.is_futile);
            if !anyone_futile || schedule.fruitless_ms == PATIENCE_MS {
                schedule.stop();
                return schedule;
            }
            // All who are not waiting want locks. If another thread has one, it will give it back.
            let fruitless_ms = schedule.fruitless_ms + 1;
            MutexGuard::unlocked(&mut schedule, || std::thread::sleep(Duration::from_millis(1)));
            schedule.progress();
            schedule.fruitless_ms = fruitless_ms;
        }
    }

    /// Lets somebody else run and returns when it is this thread's turn again: with `None` if the
    /// stepper has stopped and this thread is unwinding.
    fn pass_turn<'a>(
        &'a self,
        me: usize,
        schedule: MutexGuard<'a, Schedule>,
    ) -> Option<MutexGuard<'a, Schedule>> {
        match schedule.stopped {
            None => self.await_turn(me, self.find_next(me, schedule)),
            Some(_) => self.await_turn(me, schedule),
        }
    }

    fn await_turn<'a>(
        &'a self,
        me: usize,
        mut schedule: MutexGuard<'a, Schedule>,
    ) -> Option<MutexGuard<'a, Schedule>> {
        let turn_came = Arc::clone(&schedule.participants[me].turn_came);
        while schedule.turn != me && schedule.stopped.is_none() {
            turn_came.wait(&mut schedule);
        }
        let Some(stop) = schedule.stopped.clone() else { return Some(schedule) };
        let waits = matches!(schedule.participants[me].status, Status::Waiting { .. });
        drop(schedule);
        match stop {
            // A destructor that yields or wants a lock can go on. One that waits would do so for
            // ever: the user's thread ends the process, the message having been printed; others
            // stay where they are.
            _ if std::thread::panicking() && !waits => None,
            _ if std::thread::panicking() && me != 0 => loop {
                std::thread::park();
            },
            Stop::Deadlock(message) => panic!("{message}"),
            Stop::UserLeft => std::panic::resume_unwind(Box::new(Quiet)),
        }
    }
}

// What the seam calls, in whichever thread.

/// A yield point, if this thread takes part in a stepper.
pub(crate) fn yield_point() {
    if let Some((stepper, me)) = seat() {
        stepper.yield_now(me);
    }
}

/// Sleeps in the virtual time of `stepper`. A thread that takes no part in it goes on at once.
pub(crate) fn sleep(stepper: &Arc<Stepper>, duration: Duration) {
    if let Some((own, me)) = seat()
        && Arc::ptr_eq(&own, stepper)
    {
        own.begin_wait(me, On::Time, Some(duration));
        own.wait(me);
    }
}

/// Waits until the participant `of` has ended, if this thread takes part in its stepper. False: it
/// may never end, since the stepper has stopped and this thread is unwinding.
pub(crate) fn await_end(stepper: &Arc<Stepper>, of: usize) -> bool {
    let Some((own, me)) = seat() else { return true };
    if !Arc::ptr_eq(&own, stepper) || has_ended(stepper, of) {
        return true;
    }
    if std::thread::panicking() && stepper.schedule.lock().stopped.is_some() {
        return false;
    }
    own.begin_wait(me, On::End { of }, None);
    own.wait(me);
    true
}

/// True if this participant has ended.
pub(crate) fn has_ended(stepper: &Stepper, index: usize) -> bool {
    matches!(stepper.schedule.lock().participants[index].status, Status::Done)
}

/// Takes a lock that was found taken.
#[track_caller]
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    let Some((stepper, me)) = seat() else { return mutex.lock() };
    let place = Location::caller();
    let mut again = false;
    loop {
        let goes_on = stepper.found_taken(me, place, again);
        if let Some(guard) = mutex.try_lock() {
            return guard;
        }
        if !goes_on {
            // The holder is unwinding too, or stays where it is for ever.
            let guard = mutex.try_lock_for(Duration::from_millis(PATIENCE_MS.into()));
            return guard.expect("the stepper has stopped, and a destructor wants a lock");
        }
        again = true;
    }
}

/// Waits for a condition, if this thread takes part in a stepper: tells `note` which, and returns
/// whether the time ran out.
#[track_caller]
pub(crate) fn wait<T: ?Sized>(
    address: usize,
    guard: &mut MutexGuard<'_, T>,
    timeout: Option<Duration>,
    note: impl FnOnce(&Arc<Stepper>),
) -> Option<bool> {
    let (stepper, me) = seat()?;
    let place = Location::caller();
    note(&stepper);
    // Before the lock is free, so that no notification by another thread is missed.
    stepper.begin_wait(me, On::Condition { address, place }, timeout);
    let mutex = MutexGuard::mutex(guard);
    Some(MutexGuard::unlocked(guard, || {
        let timed_out = stepper.wait(me);
        let mut again = false;
        // Once it is seen free, no other participant can take it before this thread does.
        while mutex.is_locked() && stepper.found_taken(me, place, again) {
            again = true;
        }
        timed_out
    }))
}

#[cfg(test)]
mod tests;
