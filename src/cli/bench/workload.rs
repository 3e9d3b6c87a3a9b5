//! What each workload does: one function a workload, run by each of its threads on its part.
//!
//! Every read is checked: a record that should be there and is not, or the other way round, or a
//! value of another length, ends the bench with an error.

use std::hint::black_box;
use std::ops::Range;
use std::time::Duration;

use clap::ValueEnum;
use esker::{Batcher, Coalescer, Db, Durability, EventId, IngestQueue, Keyspace};

use crate::bench::Plan;
use crate::bench::keys::{Draws, Key, Live, Pool, Values};
use crate::bench::meter::Meter;
use crate::failure::{Failure, Result};

/// db_bench's workloads, by its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub enum Workload {
    /// Put every record, in order of keys; several threads each have their own range
    Fillseq,
    /// The same in commits of --batch entries
    Fillbatch,
    /// Put records drawn at random, each commit on the disk before the next begins
    Fillsync,
    /// Put N records drawn at random with replacement, so that about 63 % of them are there
    Fillrandom,
    /// Put records drawn at random over those that are there
    Overwrite,
    /// Get records drawn at random; the share that was found is shown
    Readrandom,
    /// Get keys that are between those that are there
    Readmissing,
    /// Make a cursor, seek a record drawn at random, read the entry there
    Seekrandom,
    /// Read all entries forward; several threads each have their own range
    Readseq,
    /// Read all entries backward
    Readreverse,
    /// readrandom, while one more thread overwrites at random as fast as it can
    Readwhilewriting,
    /// Add 1 to counters drawn at random, in a keyspace of their own
    Mergerandom,
    /// Delete records drawn at random
    Deleterandom,
    /// Put records drawn at random, each as an event that is committed once: with a token
    Idempotent,
    /// Put records drawn at random through one batcher, in groups of --batch items at most
    Batching,
    /// Add 1 to one of 1,000 counters drawn at random, through one coalescer
    Coalescing,
    /// Push records drawn at random into an ingest queue, which puts them in the background
    Ingest,
    /// Close the database and open it again, with a first read; an operation is an opening
    Reopen,
    /// Open what a process killed with 15 MiB in its log left, with a first read; an operation is a
    /// record of the log, a latency that of the whole opening
    Recovery,
    /// Offer an own database three times what it sustains; see --plot. Needs a --duration of some 20
    /// seconds, or a small --memory, to show more than the first flush
    Overload,
    /// Put records drawn at random into a database of 1 to 8 shards, by 1 to 8 writers, and batches over
    /// 1 to 8 shards, with both durabilities; tables of their own, and a second for each cell
    Sharding,
    /// Put records of 100 tenants, drawn by Zipf's law, into 2 shards that become 4 by themselves
    /// under it; for 30 seconds without a --duration; see --plot
    Splitting,
}

/// fillsync ends after so long: a commit takes 0.1 to 10 ms, and N of them would take hours.
const FILLSYNC_LIMIT: Duration = Duration::from_secs(5);
/// Counters of coalescing.
pub const COALESCED_KEYS: u64 = 1000;
/// Rows of a scan that are timed together: 64 rows take a few microseconds, the clock 25 ns.
const ROWS: u64 = 64;

impl Workload {
    /// Its name on the command line.
    pub fn name(self) -> String {
        format!("{self:?}").to_ascii_lowercase()
    }

    /// Whether it starts from an empty database.
    pub fn is_fill(self) -> bool {
        use Workload::{Fillbatch, Fillrandom, Fillseq, Fillsync};
        matches!(self, Fillseq | Fillbatch | Fillsync | Fillrandom)
    }

    /// Whether it changes the database.
    pub fn writes(self) -> bool {
        use Workload::{Batching, Coalescing, Idempotent, Ingest};
        use Workload::{Deleterandom, Mergerandom, Overwrite, Readwhilewriting};
        self.is_fill()
            || matches!(self, Overwrite | Mergerandom | Deleterandom | Readwhilewriting)
            || matches!(self, Idempotent | Batching | Coalescing | Ingest)
    }

    /// Whether it has databases of its own, and needs no fill.
    pub fn has_its_own(self) -> bool {
        matches!(self, Workload::Overload | Workload::Sharding | Workload::Splitting)
    }

    /// Whether it has to be named to be run.
    pub fn is_extra(self) -> bool {
        matches!(self, Workload::Sharding | Workload::Splitting)
    }

    /// Whether it is about opening a database, not about using it.
    pub fn opens(self) -> bool {
        matches!(self, Workload::Reopen | Workload::Recovery)
    }

    /// Whether it goes through the records once, in order, and ends there.
    fn is_ordered(self) -> bool {
        use Workload::{Fillbatch, Fillseq, Readreverse, Readseq};
        matches!(self, Fillseq | Fillbatch | Readseq | Readreverse)
    }

    /// When its threads stop, if they are not through before.
    pub fn limit(self, plan: &Plan) -> Option<Duration> {
        match self {
            Workload::Fillsync => Some(plan.duration.unwrap_or(FILLSYNC_LIMIT)),
            _ => plan.duration,
        }
    }

    /// How many operations all threads do together; none if time alone ends it.
    pub fn ops(self, plan: &Plan, live: &Live) -> Option<u64> {
        match self {
            Workload::Readseq | Workload::Readreverse => Some(live.count()),
            _ if plan.duration.is_some() && !self.is_ordered() => None,
            _ => Some(plan.records),
        }
    }
}

/// What all threads of a workload see.
pub struct Scene<'a> {
    pub plan: &'a Plan,
    pub workload: Workload,
    /// The how-manieth of the run: part of the seed.
    pub round: usize,
    pub db: &'a Db,
    pub counters: Option<Keyspace>,
    pub batcher: Option<Batcher>,
    pub coalescer: Option<Coalescer>,
    pub queue: Option<IngestQueue>,
    pub live: &'a Live,
    pub pool: &'a Pool,
}

/// One thread's part.
#[derive(Clone)]
pub struct Part {
    pub thread: usize,
    /// Its share of the records: those it writes or scans, if it does so in order, otherwise only
    /// as many as it draws.
    pub records: Range<u64>,
    /// The writer of readwhilewriting, whose operations are not the workload's.
    pub beside: bool,
}

impl Part {
    /// Splits a workload: every thread's part, the writer beside them last.
    pub fn split(plan: &Plan, workload: Workload) -> Vec<Part> {
        let (threads, records) = (plan.threads as u64, u128::from(plan.records));
        let border = |thread: u64| (records * u128::from(thread) / u128::from(threads)) as u64;
        let part = |thread| Part {
            thread: thread as usize,
            records: border(thread)..border(thread + 1),
            beside: false,
        };
        let mut parts: Vec<Part> = (0..threads).map(part).collect();
        if workload == Workload::Readwhilewriting {
            parts.push(Part { thread: plan.threads, records: 0..0, beside: true });
        }
        parts
    }

    /// The draws of this part, the same at every call.
    pub fn draws(&self, plan: &Plan, workload: Workload, round: usize) -> Draws {
        Draws::new(plan.records, plan.seed, workload as u8, round, self.thread)
    }
}

impl Scene<'_> {
    /// Does a part, to its end or until the meter says stop.
    pub fn play(&self, part: &Part, meter: &mut Meter<'_>) -> Result<()> {
        match self.workload {
            Workload::Fillseq => self.fill_in_order(part, meter),
            Workload::Fillbatch => self.fill_in_batches(part, meter),
            Workload::Fillsync => self.fill_synced(part, meter),
            Workload::Fillrandom | Workload::Overwrite => self.put_random(part, meter),
            Workload::Readwhilewriting if part.beside => self.put_random(part, meter),
            Workload::Readrandom | Workload::Readwhilewriting => self.get_random(part, meter),
            Workload::Readmissing => self.get_missing(part, meter),
            Workload::Seekrandom => self.seek_random(part, meter),
            Workload::Readseq => self.scan(part, meter, false),
            Workload::Readreverse => self.scan(part, meter, true),
            Workload::Mergerandom => self.merge_random(part, meter),
            Workload::Deleterandom => self.delete_random(part, meter),
            Workload::Idempotent => self.put_once(part, meter),
            Workload::Batching => self.put_in_groups(part, meter),
            Workload::Coalescing => self.coalesce(part, meter),
            Workload::Ingest => self.push(part, meter),
            Workload::Reopen | Workload::Recovery => unreachable!("see `opening`"),
            Workload::Overload | Workload::Sharding | Workload::Splitting => {
                unreachable!("they have databases of their own")
            }
        }
    }

    fn key(&self) -> Key {
        Key::new(self.plan.key_size, self.plan.records)
    }

    fn values(&self, part: &Part) -> Values<'_> {
        self.pool.values(part.thread)
    }

    fn entry_bytes(&self) -> u64 {
        (self.plan.key_size + self.plan.value_size) as u64
    }

    /// Runs `op` on records drawn at random, as many as are the part's or until time is up.
    fn at_random(
        &self,
        part: &Part,
        meter: &mut Meter<'_>,
        bytes: u64,
        mut op: impl FnMut(u64, &mut Meter<'_>) -> Result<()>,
    ) -> Result<()> {
        let endless = part.beside || self.plan.duration.is_some();
        let ops = if endless { u64::MAX } else { part.records.end - part.records.start };
        let mut draws = part.draws(self.plan, self.workload, self.round);
        while meter.ops() < ops {
            op(draws.next(), meter)?;
            if !meter.end(1, bytes) {
                break;
            }
        }
        Ok(())
    }

    fn fill_in_order(&self, part: &Part, meter: &mut Meter<'_>) -> Result<()> {
        let (mut key, mut values, bytes) = (self.key(), self.values(part), self.entry_bytes());
        for record in part.records.clone() {
            self.db.put(key.of(record), values.next())?;
            if !meter.end(1, bytes) {
                break;
            }
        }
        Ok(())
    }

    fn fill_in_batches(&self, part: &Part, meter: &mut Meter<'_>) -> Result<()> {
        let (mut key, mut values) = (self.key(), self.values(part));
        let mut next = part.records.start;
        while next < part.records.end {
            let end = part.records.end.min(next.saturating_add(self.plan.batch));
            let mut batch = self.db.batch();
            for record in next..end {
                batch.put(self.db, key.of(record), values.next());
            }
            batch.commit()?;
            if !meter.end(end - next, (end - next) * self.entry_bytes()) {
                break;
            }
            next = end;
        }
        Ok(())
    }

    fn fill_synced(&self, part: &Part, meter: &mut Meter<'_>) -> Result<()> {
        let (mut key, mut values) = (self.key(), self.values(part));
        self.at_random(part, meter, self.entry_bytes(), |record, _| {
            let mut batch = self.db.batch();
            batch.put(self.db, key.of(record), values.next());
            Ok(batch.commit_with(Durability::Disk)?)
        })
    }

    fn put_random(&self, part: &Part, meter: &mut Meter<'_>) -> Result<()> {
        let (mut key, mut values) = (self.key(), self.values(part));
        self.at_random(part, meter, self.entry_bytes(), |record, _| {
            Ok(self.db.put(key.of(record), values.next())?)
        })
    }

    fn delete_random(&self, part: &Part, meter: &mut Meter<'_>) -> Result<()> {
        let mut key = self.key();
        self.at_random(part, meter, self.plan.key_size as u64, |record, _| {
            Ok(self.db.delete(key.of(record))?)
        })
    }

    fn merge_random(&self, part: &Part, meter: &mut Meter<'_>) -> Result<()> {
        let mut key = self.key();
        let counters = self.counters.as_ref().expect("opened for this workload");
        self.at_random(part, meter, self.plan.key_size as u64 + 8, |record, _| {
            Ok(counters.merge(key.of(record), 1)?)
        })
    }

    fn put_once(&self, part: &Part, meter: &mut Meter<'_>) -> Result<()> {
        let (mut key, mut values) = (self.key(), self.values(part));
        // Another run on the same database has other events.
        let (mut id, mut batch) = (fastrand::u128(..), self.db.batch());
        self.at_random(part, meter, self.entry_bytes(), |record, _| {
            id = id.wrapping_add(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
            batch.put(self.db, key.of(record), values.next());
            match batch.commit_once(EventId::new("bench", &id.to_be_bytes()))?.is_duplicate() {
                false => Ok(()),
                true => Err(Failure::new("idempotent: a new event was taken for a duplicate")),
            }
        })
    }

    fn put_in_groups(&self, part: &Part, meter: &mut Meter<'_>) -> Result<()> {
        let (mut key, mut values) = (self.key(), self.values(part));
        let batcher = self.batcher.as_ref().expect("made for this workload");
        self.at_random(part, meter, self.entry_bytes(), |record, _| {
            // Flushing tells of failures.
            drop(batcher.put(self.db, key.of(record), values.next())?);
            Ok(())
        })?;
        Ok(batcher.flush()?)
    }

    fn coalesce(&self, part: &Part, meter: &mut Meter<'_>) -> Result<()> {
        let mut key = self.key();
        let coalescer = self.coalescer.as_ref().expect("made for this workload");
        self.at_random(part, meter, self.plan.key_size as u64 + 8, |record, _| {
            Ok(coalescer.add(key.of(record % COALESCED_KEYS), 1)?)
        })?;
        Ok(coalescer.flush()?)
    }

    fn push(&self, part: &Part, meter: &mut Meter<'_>) -> Result<()> {
        let (mut key, mut values) = (self.key(), self.values(part));
        let queue = self.queue.as_ref().expect("made for this workload");
        self.at_random(part, meter, self.entry_bytes(), |record, _| {
            Ok(queue.push(key.of(record), values.next())?)
        })
    }

    fn get_random(&self, part: &Part, meter: &mut Meter<'_>) -> Result<()> {
        let mut key = self.key();
        // A writer beside may have just put a record that was not there; it removes none.
        let may_appear = self.workload == Workload::Readwhilewriting;
        self.at_random(part, meter, 0, |record, meter| {
            let value = self.db.get(key.of(record))?;
            let expected = self.live.has(record);
            let right = value.is_some() == expected || may_appear && !expected;
            if !right {
                return Err(self.wrong(record, expected));
            }
            if let Some(value) = value {
                self.touch(record, &value)?;
                meter.found();
            }
            Ok(())
        })
    }

    fn get_missing(&self, part: &Part, meter: &mut Meter<'_>) -> Result<()> {
        let mut key = self.key();
        self.at_random(part, meter, 0, |record, _| match self.db.get(key.missing(record))? {
            Some(_) => Err(Failure::new(format!("a key behind record {record} is there"))),
            None => Ok(()),
        })
    }

    fn seek_random(&self, part: &Part, meter: &mut Meter<'_>) -> Result<()> {
        let mut key = self.key();
        self.at_random(part, meter, 0, |record, meter| {
            let mut cursor = self.db.cursor();
            cursor.seek(key.of(record))?;
            let there = cursor.valid() && cursor.key() == key.of(record);
            if there != self.live.has(record) {
                return Err(self.wrong(record, !there));
            }
            if cursor.valid() {
                self.touch(record, cursor.value())?;
            }
            if there {
                meter.found();
            }
            Ok(())
        })
    }

    /// Reads the rows of the part, exactly as many as there are.
    fn scan(&self, part: &Part, meter: &mut Meter<'_>, reverse: bool) -> Result<()> {
        let (mut key, bytes) = (self.key(), self.entry_bytes());
        let rows = self.live.count_in(part.records.clone());
        let mut cursor = self.db.cursor();
        match reverse {
            false => cursor.seek(key.of(part.records.start))?,
            true => cursor.seek_before(key.of(part.records.end))?,
        }
        let mut timed = 0;
        for row in 0..rows {
            if !cursor.valid() {
                return Err(Failure::new(format!("the scan ended after {row} of {rows} rows")));
            }
            self.touch(row, cursor.value())?;
            if reverse {
                cursor.prev()?
            } else {
                cursor.next()?
            }
            timed += 1;
            if timed == ROWS || row + 1 == rows {
                if !meter.end_rows(timed, timed * bytes) {
                    return Ok(());
                }
                timed = 0;
            }
        }
        let beyond = !cursor.valid()
            || if reverse {
                cursor.key() < key.of(part.records.start)
            } else {
                cursor.key() >= key.of(part.records.end)
            };
        if !beyond {
            return Err(Failure::new(format!(
                "the scan found more than the {rows} rows there are"
            )));
        }
        Ok(())
    }

    /// Reads the value, a byte of each cache line, and checks its length.
    fn touch(&self, record: u64, value: &[u8]) -> Result<()> {
        if value.len() != self.plan.value_size {
            let (found, size) = (value.len(), self.plan.value_size);
            let text = format!("the value of record {record} has {found} bytes, not {size}");
            return Err(Failure::new(text));
        }
        black_box(value.iter().step_by(64).fold(0u8, |sum, byte| sum.wrapping_add(*byte)));
        Ok(())
    }

    fn wrong(&self, record: u64, expected: bool) -> Failure {
        let (name, is) = (self.workload.name(), if expected { "is missing" } else { "is there" });
        let should = if expected { "was written" } else { "was never written, or deleted" };
        Failure::new(format!("{name}: record {record} {is}, but it {should}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_command_line_takes() {
        for workload in Workload::value_variants() {
            assert_eq!(Workload::from_str(&workload.name(), false), Ok(*workload));
        }
    }
}
