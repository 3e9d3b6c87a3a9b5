//! What parent and child say to each other: a job as the child's argument, and a line of JSON for
//! each event on its standard output.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::Kind;
use crate::machine::Usage;
use crate::meter::Point;
use crate::workload::{Group, Workload};

/// What one child does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// On which engine.
    pub engine: Kind,
    /// On which database.
    pub group: Group,
    /// Which part of it.
    pub stage: Stage,
    /// What of the group is measured.
    pub workloads: Vec<Workload>,
    /// What it is about.
    pub plan: Plan,
    /// The database's directory; there is none yet in the first stage.
    pub dir: PathBuf,
}

/// Sizes that all jobs of a run have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Records of the database.
    pub records: u64,
    /// Bytes of a value, except where the workload says otherwise.
    pub value_bytes: usize,
    /// The budget of memory of each engine.
    pub memory_bytes: usize,
    /// After so long a workload is cut off.
    pub limit: Duration,
    /// Of all random draws.
    pub seed: u64,
}

impl Job {
    /// Records of the group's database.
    pub fn records(&self) -> u64 {
        match self.group {
            Group::Values4k => self.plan.records.div_ceil(20),
            Group::Values64k => self.plan.records.div_ceil(200),
            _ => self.plan.records,
        }
    }

    /// Bytes of their values.
    pub fn value_bytes(&self) -> usize {
        match self.group {
            Group::Values4k => 4 << 10,
            Group::Values64k => 64 << 10,
            _ => self.plan.value_bytes,
        }
    }
}

/// Groups about opening need several processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// All of a group that needs one process.
    Whole,
    /// Fills the database and closes it, or is killed by its own SIGKILL.
    Before,
    /// Opens what `Before` left.
    After,
}

/// What a child tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// What is being done that is no workload.
    Doing(String),
    /// So many operations of a workload are done.
    Progress(Workload, u64, u64),
    /// A workload is through.
    Row(Box<Row>),
    /// The child gives up.
    Failed(String),
}

/// What was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// On this engine.
    pub engine: Kind,
    /// Doing this.
    pub workload: Workload,
    /// Of so many rounds so far; from 0.
    pub round: usize,
    /// Operations that were done.
    pub ops: u64,
    /// Whether the time limit came before the last operation.
    pub capped: bool,
    /// From the first operation to the end of the last one.
    pub seconds: f64,
    /// From there until no background work was due; 0 for reads.
    pub settle_seconds: f64,
    /// Latency of an operation, or of the call that does several.
    pub latency: Latency,
    /// Keys and values that were written.
    pub user_bytes: u64,
    /// What it took until settled, by the kernel's count.
    pub usage: Usage,
    /// Bytes written until settled, by the engine's own count.
    pub engine_written_bytes: Option<u64>,
    /// Bytes of the directory once settled.
    pub disk_bytes: u64,
    /// Operations a second of the writer beside the readers.
    pub writer_rate: Option<f64>,
    /// What else there is to say.
    pub note: String,
    /// Throughput and latency over time.
    pub curve: Vec<Point>,
}

/// In microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// Exceeded by 1 in 100.
    pub p99: f64,
    /// Exceeded by 1 in 1000.
    pub p999: f64,
    /// The longest.
    pub max: f64,
    /// The longest if what the machine itself paused is left out; only of [`Workload::Overload`].
    pub max_running: Option<f64>,
}

impl Row {
    /// What the row is about: operations a second, or milliseconds where it is a time.
    pub fn value(&self) -> f64 {
        match self.workload.is_time() {
            true => self.latency.p50 / 1000.0,
            false => self.ops as f64 / self.seconds.max(1e-9),
        }
    }

    /// Operations a second with the time to settle.
    pub fn settled_rate(&self) -> f64 {
        self.ops as f64 / (self.seconds + self.settle_seconds).max(1e-9)
    }

    /// Microseconds of processor an operation, background work included.
    pub fn cpu_us_per_op(&self) -> f64 {
        self.usage.cpu.as_secs_f64() * 1e6 / self.ops.max(1) as f64
    }

    /// Bytes written for each byte of key and value, by the kernel's count.
    pub fn write_amplification(&self) -> Option<f64> {
        let written = self.usage.written_bytes as f64;
        (self.user_bytes > 0).then(|| written / self.user_bytes as f64)
    }

    /// The same by the engine's own count.
    pub fn own_write_amplification(&self) -> Option<f64> {
        let written = self.engine_written_bytes? as f64;
        (self.user_bytes > 0).then(|| written / self.user_bytes as f64)
    }
}
