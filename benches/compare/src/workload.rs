//! The workloads, and the groups of them that share a database.
//!
//! A group begins with an empty database in a process of its own, fills it without measuring
//! where its own fill is not asked for, and runs its workloads in the order of [`Workload`].

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What is measured.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Put all records in order
    Fillseq,
    /// Put all records in random order
    Fillrandom,
    /// Put records drawn at random, as many as there are
    Overwrite,
    /// Get records drawn at random
    Readrandom,
    /// The same with 2 threads
    #[value(name = "readrandom-2")]
    #[serde(rename = "readrandom-2")]
    Readrandom2,
    /// Get records drawn with Zipf's distribution
    Readzipf,
    /// Get keys that are not there, between those that are
    Readmissing,
    /// Get 100 random records in one call; counted by record
    Multiget100,
    /// Seek to a random key and read 10 rows; counted by seek, like all short scans
    Seek10,
    /// Seek to a random key and read 100 rows
    Seek100,
    /// Seek to a random key and read 100 rows backward
    Reverse100,
    /// Read the 32 rows that have a random prefix
    Prefix30,
    /// Read all rows in order; counted by row
    Scan,
    /// Get random records beside a thread that overwrites without a pause
    Readwhilewriting,
    /// YCSB A: half reads, half updates, Zipf, 2 threads like all of YCSB here
    YcsbA,
    /// YCSB B: 95 % reads, 5 % updates, Zipf
    YcsbB,
    /// YCSB C: reads, Zipf
    YcsbC,
    /// YCSB D: 95 % reads of the latest records, 5 % inserts
    YcsbD,
    /// YCSB E: 95 % scans of 1 to 100 rows, 5 % inserts
    YcsbE,
    /// YCSB F: half reads, half reads followed by an update of the same record
    YcsbF,
    /// Put all records in random order, 100 in a batch; counted by record
    Fillbatch100,
    /// The same with 1000 in a batch
    Fillbatch1000,
    /// fillrandom with 1 thread
    #[value(name = "writers-1")]
    #[serde(rename = "writers-1")]
    Writers1,
    /// fillrandom with 2 threads, which share the records among them
    #[value(name = "writers-2")]
    #[serde(rename = "writers-2")]
    Writers2,
    /// fillrandom with 4 threads
    #[value(name = "writers-4")]
    #[serde(rename = "writers-4")]
    Writers4,
    /// fillrandom with 8 threads
    #[value(name = "writers-8")]
    #[serde(rename = "writers-8")]
    Writers8,
    /// Put half of the records at twice the rate at which the other half was put and settled
    Overload,
    /// fillrandom with Disk durability, at most 5 seconds
    #[value(name = "fillsync-1")]
    #[serde(rename = "fillsync-1")]
    Fillsync1,
    /// The same with 2 threads
    #[value(name = "fillsync-2")]
    #[serde(rename = "fillsync-2")]
    Fillsync2,
    /// The same with 8 threads
    #[value(name = "fillsync-8")]
    #[serde(rename = "fillsync-8")]
    Fillsync8,
    /// The same with 32 threads
    #[value(name = "fillsync-32")]
    #[serde(rename = "fillsync-32")]
    Fillsync32,
    /// Increment one of 1,000 counters drawn at random
    Counters1k,
    /// Increment one of 1 million counters
    Counters1m,
    /// Get one of 1,000 counters just after counters1k, before anything settles
    Readcounters,
    /// Put at the tail, seek to the head, read and delete it; 1,000 are waiting
    Queue,
    /// Delete 9 of 10 records in random order
    Deleterandom,
    /// seek10 just after those deletes, before anything settles
    Tombseek10,
    /// scan in the same state; counted by row that is left
    Tombscan,
    /// Put values of 4 KiB in random order, a 20th of the records
    Fill4k,
    /// Get them at random and read every cache line
    Read4k,
    /// Put values of 64 KiB in random order, a 200th of the records
    Fill64k,
    /// Get them at random and read every cache line
    Read64k,
    /// Open after a SIGKILL with 15 MiB of records in the log
    Recovery,
    /// Open a settled database that was closed, and get one record; median of 5
    Open,
}

/// Workloads that share a database and a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Group {
    /// fillseq.
    Sequential,
    /// fillrandom and all that reads or changes what it left.
    Records,
    /// One other fill of all records.
    Fill(Workload),
    /// One kind of counters.
    Counters(Workload),
    /// queue.
    Queue,
    /// deleterandom.
    Deletes,
    /// Reads across tombstones.
    Tombstones,
    /// Values of 4 KiB.
    Values4k,
    /// Values of 64 KiB.
    Values64k,
    /// recovery.
    Recovery,
    /// open.
    Open,
}

impl Workload {
    /// As on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value().expect("no workload is hidden");
        value.get_name().to_owned()
    }

    /// What it does, in a line.
    pub fn about(self) -> String {
        let value = self.to_possible_value().expect("no workload is hidden");
        value.get_help().map(ToString::to_string).unwrap_or_default()
    }

    /// Which database it runs on.
    pub fn group(self) -> Group {
        use Workload::*;
        match self {
            Fillseq => Group::Sequential,
            Fillbatch100 | Fillbatch1000 | Writers1 | Writers2 | Writers4 | Writers8 | Overload
            | Fillsync1 | Fillsync2 | Fillsync8 | Fillsync32 => Group::Fill(self),
            Counters1k | Counters1m | Readcounters => Group::Counters(self),
            Queue => Group::Queue,
            Deleterandom => Group::Deletes,
            Tombseek10 | Tombscan => Group::Tombstones,
            Fill4k | Read4k => Group::Values4k,
            Fill64k | Read64k => Group::Values64k,
            Recovery => Group::Recovery,
            Open => Group::Open,
            _ => Group::Records,
        }
    }

    /// Whether it is a fill, whose curve is worth a plot.
    pub fn is_fill(self) -> bool {
        use Workload::*;
        matches!(
            self,
            Fillseq
                | Fillrandom
                | Overwrite
                | Fillbatch100
                | Fillbatch1000
                | Writers1
                | Writers2
                | Writers4
                | Writers8
                | Overload
                | Fill4k
                | Fill64k
        )
    }

    /// Whether its result is a time, of which less is better, not a rate.
    pub fn is_time(self) -> bool {
        matches!(self, Workload::Recovery | Workload::Open)
    }
}

impl Group {
    /// The groups of these workloads, in order, each with its own.
    pub fn of(workloads: &[Workload]) -> Vec<(Group, Vec<Workload>)> {
        let mut groups: Vec<(Group, Vec<Workload>)> = Vec::new();
        let mut sorted = workloads.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        for workload in sorted {
            match groups.iter_mut().find(|(group, _)| *group == workload.group()) {
                Some((_, members)) => members.push(workload),
                None => groups.push((workload.group(), vec![workload])),
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_is_in_one_group() {
        let groups = Group::of(Workload::value_variants());
        let count: usize = groups.iter().map(|(_, workloads)| workloads.len()).sum();
        assert_eq!(count, Workload::value_variants().len());
        let two = Group::of(&[Workload::Seek10, Workload::Queue, Workload::Readrandom]);
        assert_eq!(two[0], (Group::Records, vec![Workload::Readrandom, Workload::Seek10]));
        assert_eq!(two[1], (Group::Queue, vec![Workload::Queue]));
    }
}
