//! A collector that must not block: `try_put` never waits for a database that is behind. It says
//! `Busy`, why, and when to try again, and the collector keeps the events meanwhile, or sheds
//! those that matter least.
//!
//! `cargo run --example backpressure`

use std::collections::VecDeque;
use std::time::Instant;

use esker::{Db, ErrorKind};

const EVENTS: u32 = 20_000;
/// So many events are kept in memory while the database is busy. Then debug events are shed.
const BACKLOG_MAX: usize = 500;

struct Event {
    number: u32,
    is_debug: bool,
}

#[derive(Default)]
struct Collector {
    backlog: VecDeque<Event>,
    not_before: Option<Instant>,
    stored: u32,
    shed: u32,
    busy: u32,
}

impl Collector {
    /// Takes an event without ever waiting for the disk, except for one that must not be shed.
    fn take(&mut self, db: &Db, event: Event) -> esker::Result<()> {
        self.backlog.push_back(event);
        if self.not_before.is_none_or(|time| Instant::now() >= time) {
            self.drain(db)?;
        }
        if self.backlog.len() > BACKLOG_MAX {
            let before = self.backlog.len();
            self.backlog.retain(|event| !event.is_debug);
            self.shed += (before - self.backlog.len()) as u32;
        }
        if self.backlog.len() > BACKLOG_MAX {
            self.finish(db)?;
        }
        Ok(())
    }

    /// Stores events until the database has had enough.
    fn drain(&mut self, db: &Db) -> esker::Result<()> {
        self.not_before = None;
        while let Some(event) = self.backlog.front() {
            match db.try_put(event.number.to_be_bytes(), [b'.'; 200]) {
                Ok(()) => {
                    self.backlog.pop_front();
                    self.stored += 1;
                }
                Err(error) => match error.kind() {
                    // Nothing was written. The event stays where it is.
                    ErrorKind::Busy { retry_after, .. } => {
                        self.busy += 1;
                        self.not_before = Some(Instant::now() + *retry_after);
                        return Ok(());
                    }
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Stores what is left: plain `put` waits as long as it takes.
    fn finish(&mut self, db: &Db) -> esker::Result<()> {
        while let Some(event) = self.backlog.pop_front() {
            db.put(event.number.to_be_bytes(), [b'.'; 200])?;
            self.stored += 1;
        }
        Ok(())
    }
}

/// Public, so that `tests/it/examples.rs` runs it as well.
pub fn main() -> esker::Result<()> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // The least memory there may be, so that writers outrun the disk soon.
    let db = Db::builder(dir.path().join("events")).memory(1 << 20).open()?;
    let mut collector = Collector::default();
    for number in 0..EVENTS {
        collector.take(&db, Event { number, is_debug: number % 4 == 0 })?;
    }
    collector.finish(&db)?;

    let Collector { stored, shed, busy, .. } = collector;
    assert_eq!(stored + shed, EVENTS, "every event was stored or knowingly shed");
    assert_eq!(db.iter().count() as u32, stored);
    for number in (0..EVENTS).filter(|number| number % 4 != 0) {
        assert!(db.contains(number.to_be_bytes())?, "event {number} matters and is there");
    }
    println!("{stored} events stored, {shed} shed; the database was busy {busy} times");
    Ok(())
}
