//! How long it takes to open a database: one that was closed, and one whose process was killed.
//!
//! Only the opening is timed, with a first read, so that nothing put off until then is missed.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use esker::Db;

use crate::bench::Plan;
use crate::bench::keys::{Draws, Key, Live, Pool};
use crate::bench::machine::{Memory, cpu_time, disk_bytes};
use crate::bench::meter::Tally;
use crate::bench::report::Printer;
use crate::bench::run::Measured;
use crate::bench::subject::Subject;
use crate::bench::workload::Workload;
use crate::failure::{Failure, Result};

/// Openings that are timed.
const ROUNDS: u64 = 20;
/// Keys and values in the log of a killed process: what the published comparisons replay.
const LOG_BYTES: u64 = 15 << 20;

/// Runs `reopen` or `recovery`.
pub fn measure(
    plan: &Plan,
    subject: &mut Subject,
    workload: Workload,
    printer: &Printer,
) -> Result<Measured> {
    let bar = printer.bar(&workload.name(), Some(ROUNDS), None);
    Memory::forget_peak();
    let mut opening = Opening { tally: Tally::new(), cpu: Duration::ZERO, curve: Vec::new() };
    let counted_bytes = match workload {
        Workload::Reopen => opening.reopen(plan, subject)?,
        _ => opening.recover(plan, &subject.dir.join("recovery"))?,
    };
    bar.finish();
    let live_bytes = subject.live_bytes(plan);
    let stats = subject.db().stats();
    let stored = stats.table_bytes + stats.log_bytes;
    Ok(Measured {
        workload,
        tally: opening.tally,
        curve: opening.curve,
        writer_rate: None,
        sync_time: None,
        settle: Duration::ZERO,
        cpu: opening.cpu,
        write_amplification: None,
        space_amplification: (live_bytes > 0).then(|| stored as f64 / live_bytes as f64),
        disk_bytes: disk_bytes(&subject.dir),
        memory: Memory::now(),
        counted_bytes,
        stalled: Duration::ZERO,
        overload: None,
    })
}

struct Opening {
    tally: Tally,
    cpu: Duration,
    curve: Vec<(f64, u64)>,
}

impl Opening {
    /// Closes the database and opens it again; an operation is an opening.
    fn reopen(&mut self, plan: &Plan, subject: &mut Subject) -> Result<u64> {
        let mut counted_bytes = 0;
        let first = (0..plan.records).find(|record| subject.live.has(*record));
        for _ in 0..ROUNDS {
            subject.close_only()?;
            let mut key = Key::new(plan.key_size, plan.records);
            let dir = subject.dir.clone();
            let db = self.time(plan, &dir, first.map(|record| key.of(record)), 1, 0)?;
            counted_bytes = db.stats().memory.total();
            subject.take_over(db);
        }
        Ok(counted_bytes)
    }

    /// Opens what a killed process left, again and again; an operation is a record of its log.
    fn recover(&mut self, plan: &Plan, dir: &Path) -> Result<u64> {
        let (origin, copy) = (dir.join("origin"), dir.join("copy"));
        let entry_bytes = (plan.key_size + plan.value_size) as u64;
        let records = plan.records.min(LOG_BYTES / entry_bytes + 1);
        let mut key = Key::new(plan.key_size, plan.records);
        let pool = Pool::new(plan.value_size, plan.seed);
        let db = Db::open_with(&origin, plan.options())?;
        let mut values = pool.values(0);
        let mut live = Live::none(plan.records);
        let mut draws = Draws::new(plan.records, plan.seed, 0, 0, 0);
        for record in (0..records).map(|_| draws.next()) {
            db.put(key.of(record), values.next())?;
            live.set(record, true);
        }
        let mut counted_bytes = 0;
        for _ in 0..ROUNDS {
            // What the kernel has of the files now is what a kill would leave.
            copy_files(&origin, &copy)?;
            let first = (0..plan.records).find(|record| live.has(*record));
            let first = first.map(|record| key.of(record));
            let opened = self.time(plan, &copy, first, records, records * entry_bytes)?;
            counted_bytes = opened.stats().memory.total();
            opened.close()?;
            fs::remove_dir_all(&copy)?;
        }
        db.close()?;
        fs::remove_dir_all(dir)?;
        Ok(counted_bytes)
    }

    fn time(
        &mut self,
        plan: &Plan,
        dir: &Path,
        first: Option<&[u8]>,
        ops: u64,
        bytes: u64,
    ) -> Result<Db> {
        let (start, cpu) = (Instant::now(), cpu_time());
        let db = Db::open_with(dir, plan.options())?;
        let found = first.map(|key| db.contains(key)).transpose()?;
        let elapsed = start.elapsed();
        if found == Some(false) {
            return Err(Failure::new("the first record is missing after opening"));
        }
        self.cpu += cpu_time() - cpu;
        self.tally.time(elapsed, ops, bytes);
        self.curve.push((self.tally.elapsed.as_secs_f64(), self.tally.ops));
        Ok(db)
    }
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if let Some(name) = path.file_name().filter(|_| path.is_file()) {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}
