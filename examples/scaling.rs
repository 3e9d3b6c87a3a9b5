//! What sharding gives on machines larger than this one: a simulation with stated assumptions.
//!
//! Nothing here is measured on a large machine, and nothing of the engine runs. Writers, commit locks,
//! background threads, disks and syncs are simulated with what each step costs on a small one
//! ([`Costs::assumed`]); the tables say how far a number of shards carries, and what binds then. Change
//! an assumption, and look at what becomes of the conclusion.
//!
//! - *Writers*: one on each core that is not taken by background work. A put takes time outside the
//!   commit lock, then its turn in the lock of its shard; a lock that comes from another core costs
//!   more. Every put is drawn: exact queues, no formula for them.
//! - *Background work*: cores for flush and compaction, as many as the rate needs; the split of the cores
//!   that sustains most is searched.
//! - *Disks*: log, flush and compaction share their bandwidth; shards are dealt to disks in turn.
//! - *Memory*: bytes moved by all of it against the socket's bandwidth.
//! - *Disk durability*: each shard has one sync under way, which serves all who wait when it begins; a
//!   disk works on some syncs at a time; who was served takes a while to come back.
//!
//! `cargo run --release --example scaling`

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;

/// What the simulation believes. Times in nanoseconds.
struct Costs {
    /// Bytes of key and value.
    user_bytes: f64,
    /// Of a put outside the commit lock: encoding, checksum, memtable, publication.
    outside: f64,
    /// In the lock: sequence number, copy to the log, header.
    inside: f64,
    /// The same if another core had the lock last: lock, state, end of the log and ring are each a
    /// cache line that has to come over.
    handover: f64,
    /// Flush of an entry, and each time that a compaction rewrites it.
    flush: f64,
    rewrite: f64,
    /// How often an entry is rewritten until it lies in the last level.
    rewrites: f64,
    /// A sync, for each byte that it has to write, and how many a disk works on at a time.
    sync: f64,
    sync_byte: f64,
    syncs_at_a_time: usize,
    /// Who was woken by a sync commits again after at most this long.
    comes_back: f64,
}

/// A machine. Bytes a second of each disk, and of memory.
struct Machine {
    cores: usize,
    disks: usize,
    disk: f64,
    memory: f64,
}

/// This one, as measured, and others as their makers describe them.
const MACHINES: [Machine; 7] = [
    Machine { cores: 2, disks: 1, disk: 1.5e9, memory: 25e9 },
    Machine { cores: 16, disks: 1, disk: 3e9, memory: 80e9 },
    Machine { cores: 16, disks: 4, disk: 3e9, memory: 80e9 },
    Machine { cores: 64, disks: 1, disk: 3e9, memory: 230e9 },
    Machine { cores: 64, disks: 4, disk: 3e9, memory: 230e9 },
    Machine { cores: 128, disks: 4, disk: 3e9, memory: 460e9 },
    Machine { cores: 128, disks: 16, disk: 3e9, memory: 460e9 },
];

impl Costs {
    fn assumed() -> Costs {
        Costs {
            // 16-byte keys, 100-byte values.
            user_bytes: 116.0,
            // Measured on two cores: a put of one writer takes about 330 ns in all.
            outside: 285.0,
            inside: 45.0,
            // Four lines of 40 to 80 ns within a socket; more between sockets, which is not modelled.
            handover: 240.0,
            // Measured: 48 and 78 ns an entry. Five rewrites are ten times the memory, 300 GB or so.
            flush: 48.0,
            rewrite: 78.0,
            rewrites: 5.0,
            // Measured: 105 µs, and 193 with 256 KiB to write. That a disk does two in the time of one
            // is an assumption.
            sync: 105_000.0,
            sync_byte: 0.34,
            syncs_at_a_time: 2,
            // Fits what was measured of 8 writers to one log, 27 to 40 thousand commits a second. (With
            // 32 it was 66 to 110 thousand: two cores do not wake up more, and that is not modelled.)
            comes_back: 60_000.0,
        }
    }

    /// Processor time of background work for each put.
    fn background(&self) -> f64 {
        self.flush + self.rewrite * self.rewrites
    }

    /// Bytes to disk for each put: log, flush, rewrites.
    fn disk_bytes(&self) -> f64 {
        self.user_bytes * (2.0 + self.rewrites)
    }

    /// Bytes through memory for each put: the log's pages are written and written back, a dozen cache
    /// lines of the memtable missed, and every flush and rewrite reads, writes and copies to the kernel.
    fn memory_bytes(&self) -> f64 {
        4.0 * self.user_bytes + 12.0 * 64.0 + 4.0 * self.user_bytes * (1.0 + self.rewrites)
    }
}

/// Which keys are written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Load {
    Even,
    /// Zipf of 0.99 over ten million keys: the first has a sixteenth of all.
    Zipf,
}

impl Load {
    fn shard(self, random: &mut fastrand::Rng, shards: usize) -> usize {
        match self {
            Load::Even => random.usize(..shards),
            Load::Zipf => {
                const SKEW: f64 = 0.01;
                let span = 1e7f64.powf(SKEW) - 1.0;
                let rank = (span * random.f64() + 1.0).powf(1.0 / SKEW) as u64;
                // Slots are dealt to shards by hash.
                (rank.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as usize % shards
            }
        }
    }
}

/// A moment, for a heap.
#[derive(Clone, Copy, PartialEq)]
struct At(f64);

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &At) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    fn cmp(&self, other: &At) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Puts a second of so many writers, and the share of their time that they wait for locks.
fn writers(costs: &Costs, load: Load, writers: usize, shards: usize) -> (f64, f64) {
    const PUTS: usize = 20_000;
    let mut random = fastrand::Rng::with_seed(1);
    // When each writer comes to a lock, and when each lock is free, and who had it.
    let mut coming: BinaryHeap<Reverse<(At, usize)>> =
        (0..writers).map(|writer| Reverse((At(random.f64() * costs.outside), writer))).collect();
    let mut locks = vec![(0.0f64, usize::MAX); shards];
    let (mut waited, mut end) = (0.0, 0.0f64);
    for _ in 0..PUTS {
        let Reverse((At(now), writer)) = coming.pop().expect("a writer always comes back");
        let (free, last) = &mut locks[load.shard(&mut random, shards)];
        let begins = now.max(*free);
        waited += begins - now;
        let handover = if *last == writer { 0.0 } else { costs.handover };
        // Alone, nothing is ever handed over.
        let handover = if writers == 1 { 0.0 } else { handover };
        (*free, *last) = (begins + costs.inside + handover, writer);
        end = end.max(*free);
        let outside = costs.outside * (0.75 + random.f64() / 2.0);
        coming.push(Reverse((At(*free + outside), writer)));
    }
    (PUTS as f64 / end * 1e9, waited / (end * writers as f64))
}

/// What binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bottleneck {
    CommitLock,
    Cores,
    Disk,
    Memory,
}

impl fmt::Display for Bottleneck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Bottleneck::CommitLock => "commit lock",
            Bottleneck::Cores => "cores",
            Bottleneck::Disk => "disk bandwidth",
            Bottleneck::Memory => "memory bandwidth",
        })
    }
}

/// What a machine sustains.
struct Sustained {
    puts: f64,
    writers: usize,
    bottleneck: Bottleneck,
}

fn sustain(costs: &Costs, load: Load, machine: &Machine, shards: usize) -> Sustained {
    // A disk has as many shards as another, or one more; those of a skewed load are not alike.
    let mut random = fastrand::Rng::with_seed(2);
    let mut of_disk = vec![0u32; machine.disks.min(shards)];
    const DRAWN: u32 = 20_000;
    for _ in 0..DRAWN {
        let shard = load.shard(&mut random, shards);
        let count = of_disk.len();
        of_disk[shard % count] += 1;
    }
    let busiest = f64::from(*of_disk.iter().max().expect("one at least")) / f64::from(DRAWN);
    let disk = machine.disk / costs.disk_bytes() / busiest;
    let memory = machine.memory / costs.memory_bytes();
    let mut best = Sustained { puts: 0.0, writers: 0, bottleneck: Bottleneck::Cores };
    for part in 1..16 {
        let cores = machine.cores;
        let count = (cores * part / 16).max(1);
        let (front, waited) = writers(costs, load, count, shards);
        let back = (cores - count) as f64 / costs.background() * 1e9;
        let puts = front.min(back).min(disk).min(memory);
        if puts > best.puts * 1.001 {
            let bottleneck = match puts {
                puts if puts >= disk => Bottleneck::Disk,
                puts if puts >= memory => Bottleneck::Memory,
                // Another writer would only wait for locks as well.
                _ if waited > 0.3 => Bottleneck::CommitLock,
                _ => Bottleneck::Cores,
            };
            best = Sustained { puts, writers: count, bottleneck };
        }
    }
    best
}

/// What happens next in a simulation of syncs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    /// A client commits to this shard.
    Commit(usize),
    /// The sync of this shard ends.
    Synced(usize),
}

/// Commits a second of so many clients that wait for a sync each, of which a shard has one under way.
fn synced(costs: &Costs, clients: usize, disks: usize, shards: usize) -> f64 {
    const COMMITS: usize = 40_000;
    let mut random = fastrand::Rng::with_seed(3);
    // Clients that wait in each shard for the next sync, and those that the one under way serves.
    let (mut waiting, mut served) = (vec![0usize; shards], vec![0usize; shards]);
    let mut busy = vec![0usize; disks];
    let mut coming: BinaryHeap<Reverse<(At, Next)>> = BinaryHeap::new();
    for _ in 0..clients {
        let at = At(random.f64() * costs.comes_back);
        coming.push(Reverse((at, Next::Commit(random.usize(..shards)))));
    }
    let mut commits = 0;
    loop {
        let Reverse((At(now), next)) = coming.pop().expect("clients always come back");
        match next {
            Next::Commit(shard) => waiting[shard] += 1,
            Next::Synced(shard) => {
                busy[shard % disks] -= 1;
                let through = std::mem::take(&mut served[shard]);
                for _ in 0..through {
                    let at = At(now + random.f64() * costs.comes_back);
                    coming.push(Reverse((at, Next::Commit(random.usize(..shards)))));
                }
                commits += through;
                if commits >= COMMITS {
                    return commits as f64 / now * 1e9;
                }
            }
        }
        // Every shard in turn, from a random one on, so that none is last for ever.
        let from = random.usize(..shards);
        for shard in (0..shards).map(|step| (from + step) % shards) {
            let disk = shard % disks;
            if served[shard] == 0 && waiting[shard] > 0 && busy[disk] < costs.syncs_at_a_time {
                served[shard] = std::mem::take(&mut waiting[shard]);
                busy[disk] += 1;
                let bytes = served[shard] as f64 * costs.user_bytes;
                let takes = (costs.sync + bytes * costs.sync_byte) * (0.9 + random.f64() / 5.0);
                coming.push(Reverse((At(now + takes), Next::Synced(shard))));
            }
        }
    }
}

/// Prints it all.
pub fn main() -> Result<(), Box<dyn std::error::Error>> {
    let costs = Costs::assumed();
    println!(
        "Process durability: million puts a second that are sustained, by how many writers, and"
    );
    println!("what binds then");
    println!("cores disks shards |  even writers                   |  Zipf writers");
    for machine in &MACHINES {
        for shards in [1, 2, 4, 8, 16, 32, 64] {
            if shards > 2 * machine.cores {
                continue;
            }
            print!("{:>5} {:>5} {shards:>6}", machine.cores, machine.disks);
            for load in [Load::Even, Load::Zipf] {
                let Sustained { puts, writers, bottleneck } =
                    sustain(&costs, load, machine, shards);
                print!(" | {:>5.2} {writers:>7}  {bottleneck:<16}", puts / 1e6);
            }
            println!();
        }
    }
    println!("\nDisk durability: thousand commits a second");
    println!("clients disks        1        2        4        8       16 shards");
    for (clients, disks) in [(2, 1), (8, 1), (32, 1), (32, 4), (256, 1), (256, 4), (2048, 16)] {
        print!("{clients:>7} {disks:>5}");
        for shards in [1, 2, 4, 8, 16] {
            // Every commit has its turn in the lock, too.
            let locks = shards as f64 / (costs.inside + costs.handover) * 1e9;
            let commits = synced(&costs, clients, disks, shards).min(locks);
            print!(" {:>8.1}", commits / 1e3);
        }
        println!();
    }
    // What follows from it: one commit lock is enough for a small machine and one disk, and binds a
    // large machine with several; enough shards leave the disks, skewed or not.
    let binds =
        |machine: usize, shards| sustain(&costs, Load::Even, &MACHINES[machine], shards).bottleneck;
    assert_ne!(binds(0, 1), Bottleneck::CommitLock);
    assert_eq!((binds(6, 1), binds(6, 64)), (Bottleneck::CommitLock, Bottleneck::Disk));
    Ok(())
}
