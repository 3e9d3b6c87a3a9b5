//! The ingest queue, crashed after every call between acknowledgement and effect: every event that
//! was acknowledged takes effect, none does twice, and those of one partition in order.
//!
//! The table of rules in [`super`] names rule 15: what the queue's log loses to a power cut, and what
//! is removed from it, the database must not know of, and must have, respectively.

use std::time::Duration;

use esker::runtime::{Priority, Runtime, Task};
use esker::{Append, Db, Event, HandlerResult, IngestOptions, IngestQueue, KeyspaceOptions};

use crate::crash::toolkit::{
    Moment, Watch, counters, crash_all, durability_of, moments_of, number, seed_of,
};

const PRODUCERS: u64 = 3;
const EVENTS: u64 = 36;
/// The handler fails it always.
const POISON: u64 = 17;

fn partition(event: u64) -> String {
    format!("{}", event % PRODUCERS)
}

/// A queue whose events each add one to a counter and themselves to the trail of their partition.
fn open(db: &Db) -> IngestQueue {
    let counters = counters(db);
    let trails = db.keyspace("trails", KeyspaceOptions::new().merge(Append)).unwrap();
    let mut options = IngestOptions::default();
    (options.batch_count_max, options.tries_max) = (5, 2);
    options.retry_delay = Duration::from_micros(10);
    let handler = move |events: &[Event<'_>], batch: &mut esker::Batch| -> HandlerResult {
        for event in events {
            let text = std::str::from_utf8(event.bytes)?;
            if text == format!("{POISON}") {
                return Err("poison".into());
            }
            batch.merge(&counters, text, 1);
            batch.merge(&trails, event.key, format!("{text} ").as_str());
        }
        Ok(())
    };
    IngestQueue::open(db, "events", options, handler).unwrap()
}

fn produce(queue: &IngestQueue, watch: &Watch, producer: u64) {
    for event in (producer..EVENTS).step_by(PRODUCERS as usize) {
        let durability = durability_of(event / PRODUCERS);
        queue.push_with(partition(event), format!("{event}"), durability).unwrap();
        watch.promise(event, durability, 0);
    }
}

/// Three producers; then the queue is dropped with events in it, opened again, closed, and
/// opened a third time.
fn moments(seed: u64) -> Vec<Moment> {
    moments_of(seed, |db: &Db, runtime: &Runtime, watch: &Watch| {
        let queue = std::sync::Arc::new(open(db));
        let thread = |producer: u64| -> Task {
            let (queue, watch) = (queue.clone(), watch.clone());
            let run = move || produce(&queue, &watch, producer);
            runtime.spawn("producer", Priority::Normal, run).unwrap()
        };
        (0..PRODUCERS).map(thread).collect::<Vec<_>>().into_iter().for_each(Task::join);
        drop(queue);
        let queue = open(db);
        queue.flush().unwrap();
        db.flush().unwrap();
        queue.close().unwrap();
        drop(queue);
        // On the first side again, under names that were there before.
        drop(open(db));
    })
}

/// What is wrong with what a crash left, once everything that was in the queue is applied.
fn check(db: &Db, promised: &[(u64, u64)]) -> Result<(), String> {
    let text = |error: esker::Error| error.to_string();
    let queue = open(db);
    queue.flush().map_err(text)?;
    let counters = counters(db);
    let trails = db.keyspace("trails", KeyspaceOptions::new().merge(Append)).unwrap();
    let dead: Vec<_> = queue.dead_letters().collect::<Result<_, _>>().map_err(text)?;
    for event in 0..EVENTS {
        let count = match event {
            POISON => dead.len() as i64,
            _ => number(&counters, &format!("{event}")),
        };
        let is_promised = promised.iter().any(|(promised, _)| *promised == event);
        if count > 1 || is_promised && count != 1 {
            return Err(format!(
                "event {event} took effect {count} times; promised: {is_promised}"
            ));
        }
    }
    for producer in 0..PRODUCERS {
        let trail =
            trails.get(partition(producer)).map_err(text)?.map_or(Vec::new(), |t| t.to_vec());
        let trail = String::from_utf8(trail).unwrap();
        let numbers: Vec<u64> = trail.split_whitespace().map(|n| n.parse().unwrap()).collect();
        if !numbers.is_sorted_by(|a, b| a < b) {
            return Err(format!("partition {producer} is out of order: {trail}"));
        }
        // No hole: what a producer pushed before something that is there is there.
        let all = (producer..EVENTS).step_by(PRODUCERS as usize).filter(|event| *event != POISON);
        if !all.zip(&numbers).all(|(a, b)| a == *b) {
            return Err(format!("partition {producer} has a hole: {trail}"));
        }
    }
    queue.close().map_err(text)
}

#[test]
fn an_accepted_event_takes_effect_once_and_in_order_whatever_crashes() {
    let seed = seed_of("an_accepted_event_takes_effect_once_and_in_order_whatever_crashes");
    let moments = moments(seed);
    crash_all("ingest", &moments, |db, _, promised| check(db, promised));
}
