//! The threads of a workload: started together, watched, and stopped at the first failure.

use std::sync::Barrier;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::child::{Scene, tell};
use crate::failure::{Failure, Result};
use crate::job::Event;
use crate::meter::{Meter, Shared, Tally};
use crate::workload::Workload;

/// How often the parent is told how far it is.
const TELL_EVERY: Duration = Duration::from_millis(250);

impl Scene<'_> {
    /// Runs `body` in so many threads, each with its number and its meter.
    pub fn crew(
        &self,
        workload: Workload,
        target: u64,
        threads: usize,
        body: impl Fn(usize, &mut Meter<'_>) -> Result<()> + Sync,
    ) -> Result<Tally> {
        let (shared, barrier) = (Shared::default(), Barrier::new(threads));
        let limit = self.limit(workload);
        thread::scope(|scope| {
            let (sender, reports) = channel::<Result<Tally>>();
            for number in 0..threads {
                let (sender, shared, barrier, body) = (sender.clone(), &shared, &barrier, &body);
                scope.spawn(move || {
                    barrier.wait();
                    let mut meter = Meter::start(shared, limit);
                    let outcome = body(number, &mut meter).map(|()| meter.finish());
                    if outcome.is_err() {
                        shared.stop.store(true, Ordering::Relaxed);
                    }
                    // Nobody listens any more only if the watcher panicked.
                    drop(sender.send(outcome));
                });
            }
            drop(sender);
            let mut tallies = Vec::new();
            let mut failure: Option<Failure> = None;
            loop {
                match reports.recv_timeout(TELL_EVERY) {
                    Ok(Ok(tally)) => tallies.push(tally),
                    Ok(Err(first)) => drop(failure.get_or_insert(first)),
                    Err(RecvTimeoutError::Disconnected) => break,
                    Err(RecvTimeoutError::Timeout) => {
                        let ops = shared.ops.load(Ordering::Relaxed);
                        tell(&Event::Progress(workload, ops, target));
                    }
                }
            }
            failure.map_or_else(|| Ok(Tally::sum(tallies)), Err)
        })
    }

    /// One thread that does `count` operations of one entry each.
    pub fn solo(
        &self,
        workload: Workload,
        count: u64,
        operation: impl Fn(u64, &mut fastrand::Rng) -> Result<()> + Sync,
    ) -> Result<Tally> {
        self.team(workload, count, 1, operation)
    }

    /// Threads that share `count` operations of one entry each: the first does those whose number
    /// is 0, `threads`, twice `threads` and so on.
    pub fn team(
        &self,
        workload: Workload,
        count: u64,
        threads: usize,
        operation: impl Fn(u64, &mut fastrand::Rng) -> Result<()> + Sync,
    ) -> Result<Tally> {
        self.crew(workload, count, threads, |thread, meter| {
            let mut rng = self.rng(workload, thread);
            for number in (thread as u64..count).step_by(threads) {
                operation(number, &mut rng)?;
                if !meter.end(1) {
                    break;
                }
            }
            Ok(())
        })
    }
}
