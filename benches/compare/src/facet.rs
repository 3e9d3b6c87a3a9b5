//! What of a row is compared, and which ratios are to be reached.
//!
//! A ratio is how many times better esker is: its rate over the other's, or the other's time over
//! its own. The floor must hold; the goal is what to go for.

use crate::engine::Kind;
use crate::job::Row;
use crate::workload::Workload;

/// One number of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Facet {
    /// Operations a second, or milliseconds.
    Main,
    /// Operations a second with the time to settle.
    Settled,
    /// Operations a second of the writer beside the readers.
    Writer,
    /// Microseconds of processor an operation.
    Cpu,
    /// The longest operation, in milliseconds.
    Longest,
    /// The same if what the machine itself paused is left out.
    LongestRunning,
}

/// A floor and a goal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Must hold.
    pub floor: f64,
    /// To go for.
    pub goal: f64,
}

impl Facet {
    /// Those that are compared.
    pub fn of(workload: Workload) -> &'static [Facet] {
        match workload {
            Workload::Fillrandom => &[Facet::Main, Facet::Settled, Facet::Cpu],
            Workload::Overload => {
                &[Facet::Main, Facet::Settled, Facet::Longest, Facet::LongestRunning]
            }
            Workload::Readwhilewriting => &[Facet::Main, Facet::Writer],
            _ if workload.is_fill() => &[Facet::Main, Facet::Settled],
            _ => &[Facet::Main],
        }
    }

    /// The workload's name with what of it is meant.
    pub fn label(self, workload: Workload) -> String {
        let name = workload.name();
        match self {
            Facet::Main if workload.is_time() => format!("{name}, ms"),
            Facet::Main => name,
            Facet::Settled => format!("{name}, settled"),
            Facet::Writer => format!("{name}, its writer"),
            Facet::Cpu => format!("{name}, CPU µs/op"),
            Facet::Longest => format!("{name}, longest ms"),
            Facet::LongestRunning => format!("{name}, longest ms while the machine ran"),
        }
    }

    /// The number.
    pub fn value(self, row: &Row) -> Option<f64> {
        match self {
            Facet::Main => Some(row.value()),
            Facet::Settled => Some(row.settled_rate()),
            Facet::Writer => row.writer_rate,
            Facet::Cpu => Some(row.cpu_us_per_op()),
            Facet::Longest => Some(row.latency.max / 1000.0),
            Facet::LongestRunning => Some(row.latency.max_running? / 1000.0),
        }
    }

    /// How many times better `ours` is than `theirs`.
    pub fn ratio(self, ours: &Row, theirs: &Row) -> Option<f64> {
        let (ours_value, theirs_value) = (self.value(ours)?, self.value(theirs)?);
        let is_cost = matches!(self, Facet::Cpu | Facet::Longest | Facet::LongestRunning);
        let less_is_better = is_cost || ours.workload.is_time();
        let (better, worse) = match less_is_better {
            true => (theirs_value, ours_value),
            false => (ours_value, theirs_value),
        };
        (worse > 0.0).then(|| better / worse)
    }

    /// What esker has to reach over `peer`.
    pub fn target(self, workload: Workload, peer: Kind) -> Option<Target> {
        let [rocksdb, lsm, lmdb] = match self {
            Facet::Main => main_targets(workload)?,
            Facet::Settled => match workload {
                Workload::Fillseq | Workload::Fillrandom | Workload::Overwrite => {
                    [Some((2.5, 5.0)), Some((2.0, 4.0)), None]
                }
                _ => return None,
            },
            Facet::Writer => [Some((2.5, 5.0)), Some((2.0, 4.0)), Some((5.0, 15.0))],
            // A fifth of the longest.
            Facet::Longest | Facet::LongestRunning => [Some((5.0, 5.0)), None, None],
            // A third of the processor, and better a seventh.
            Facet::Cpu => [Some((3.0, 6.7)), Some((3.0, 6.7)), None],
        };
        let (floor, goal) = match peer {
            Kind::Rocksdb => rocksdb,
            Kind::Fjall | Kind::Surrealkv => lsm,
            Kind::Heed | Kind::HeedWritemap => lmdb,
            _ => None,
        }?;
        Some(Target { floor, goal })
    }
}

/// Floor and goal over RocksDB, over every other LSM tree, and over LMDB.
fn main_targets(workload: Workload) -> Option<[Option<(f64, f64)>; 3]> {
    use Workload::*;
    let all = |rocksdb, lsm, lmdb| Some([Some(rocksdb), Some(lsm), Some(lmdb)]);
    match workload {
        Fillrandom | Overwrite | Writers1 => all((4.0, 7.0), (3.0, 6.0), (8.0, 15.0)),
        Fillseq => all((3.0, 6.0), (2.5, 5.0), (8.0, 15.0)),
        Fillbatch100 | Fillbatch1000 => all((2.5, 5.0), (2.5, 5.0), (6.0, 12.0)),
        Writers2 | Writers4 | Writers8 => all((4.0, 7.0), (3.0, 5.0), (8.0, 15.0)),
        Fillsync1 => all((1.1, 1.3), (1.0, 1.2), (1.5, 2.0)),
        Fillsync8 => all((1.5, 2.5), (1.1, 1.5), (5.0, 10.0)),
        Fillsync32 => all((1.5, 3.0), (1.1, 2.0), (10.0, 25.0)),
        Readrandom | Readrandom2 | Readzipf | YcsbB | YcsbC => {
            all((2.0, 4.0), (1.8, 3.0), (0.7, 1.1))
        }
        Readmissing => all((1.2, 2.5), (0.8, 1.5), (2.0, 5.0)),
        Seek10 | Seek100 | Reverse100 | Prefix30 | YcsbE => all((2.5, 5.0), (2.5, 5.0), (0.5, 1.0)),
        Scan => all((2.0, 5.0), (2.0, 4.0), (0.7, 1.5)),
        Readwhilewriting => all((2.5, 5.0), (2.0, 4.0), (0.5, 1.0)),
        YcsbA | YcsbD | YcsbF => Some([Some((2.5, 5.0)), Some((2.0, 4.0)), None]),
        Counters1k | Counters1m => all((3.0, 6.0), (3.0, 5.0), (4.0, 10.0)),
        Readcounters => all((50.0, 150.0), (0.5, 1.0), (0.4, 1.0)),
        Queue => all((20.0, 100.0), (20.0, 100.0), (0.5, 2.0)),
        Tombseek10 | Tombscan => all((10.0, 40.0), (5.0, 25.0), (0.3, 1.0)),
        Fill4k | Fill64k => all((1.5, 3.0), (1.5, 3.0), (0.6, 1.5)),
        Read4k | Read64k => all((2.0, 4.0), (2.0, 4.0), (0.6, 1.0)),
        Recovery => Some([Some((3.0, 8.0)), Some((0.8, 2.0)), None]),
        Open => Some([Some((1.5, 4.0)), Some((0.5, 1.0)), None]),
        Fillsync2 | Multiget100 | Deleterandom | Overload => None,
    }
}
