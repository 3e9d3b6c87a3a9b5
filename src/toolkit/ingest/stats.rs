//! What a queue says of itself.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::DegradedCause;
use crate::toolkit::ingest::queue::Queue;
use crate::write::breaker::BreakerState;

/// How an [`IngestQueue`](crate::IngestQueue) is doing. Counts are since it was opened. `Display` is
/// for people.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct QueueStats {
    /// Its name.
    pub name: String,
    /// Events that were accepted.
    pub accepted: u64,
    /// Events whose effects were committed.
    pub applied: u64,
    /// Events that became dead letters.
    pub dead: u64,
    /// How often the handler failed, or what it made was refused.
    pub failed_tries: u64,
    /// Pushes that were refused with `Busy`.
    pub refused: u64,
    /// Events that are not applied.
    pub depth: u64,
    /// The same in bytes of log.
    pub depth_bytes: u64,
    /// The bound of that.
    pub depth_bytes_max: u64,
    /// How long the oldest event has waited, to within a second or a 64th of
    /// [`IngestOptions::age_max`](crate::IngestOptions::age_max).
    pub lag: Option<Duration>,
    /// Events applied a second, as measured lately while there were any; 0 before that.
    pub drain_rate: f64,
    /// The bound of that.
    pub drain_rate_max: Option<u64>,
    /// Log files on the disk, a spare one left out.
    pub log_bytes: u64,
    /// Whether events are taken.
    pub breaker: BreakerState,
    /// Why not.
    pub breaker_cause: Option<DegradedCause>,
    /// Why the consumer does not get on at the moment.
    pub failure: Option<String>,
}

impl QueueStats {
    pub(crate) fn of(queue: &Queue) -> QueueStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (log, totals) = (queue.log.load(), &queue.totals);
        let (breaker, breaker_cause) = log.pipeline.breaker.state();
        let (published, lag) = (log.pipeline.ring.visible(), queue.age(queue.now()));
        let state = queue.state.lock();
        QueueStats {
            name: queue.name.clone(),
            accepted: load(&totals.accepted),
            applied: load(&totals.applied),
            dead: load(&totals.dead),
            failed_tries: load(&totals.failed_tries),
            refused: load(&totals.refused),
            depth: published.0.saturating_sub(state.applied.0),
            depth_bytes: log.backlog_bytes(),
            depth_bytes_max: queue.options.bytes_max,
            lag,
            drain_rate: state.drained.events_rate,
            drain_rate_max: state.drain_rate,
            log_bytes: log.pipeline.logs.live_bytes(),
            breaker,
            breaker_cause,
            failure: state.failure.as_ref().map(ToString::to_string),
        }
    }
}

impl fmt::Display for QueueStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "queue     {:?}: {} events ({} of {} bytes) wait",
            self.name, self.depth, self.depth_bytes, self.depth_bytes_max
        )?;
        if let Some(lag) = self.lag {
            write!(f, ", the oldest for {lag:.1?}")?;
        }
        writeln!(
            f,
            "\nevents    {} accepted, {} refused, {} applied, {} dead; {} failed tries",
            self.accepted, self.refused, self.applied, self.dead, self.failed_tries
        )?;
        write!(f, "drain     {:.0} events/s", self.drain_rate)?;
        if let Some(rate) = self.drain_rate_max {
            write!(f, ", at most {rate}")?;
        }
        write!(f, "; log {} bytes\naccepts   {:?}", self.log_bytes, self.breaker)?;
        if let Some(cause) = self.breaker_cause {
            write!(f, " ({cause:?})")?;
        }
        if let Some(failure) = &self.failure {
            write!(f, "\nstuck     {failure}")?;
        }
        Ok(())
    }
}
