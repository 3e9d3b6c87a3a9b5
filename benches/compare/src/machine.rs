//! What the numbers were measured on, and what this process took of it. From /proc; what cannot
//! be read is 0 or left out.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};

/// One line about the machine.
pub fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = field(&cpu, "model name").unwrap_or("unknown model");
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = kibibytes(&memory, "MemTotal") >> 30;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores ({model}), {memory} GiB of memory, Linux {}", kernel.trim())
}

/// The load averages of 1, 5 and 15 minutes: above the cores in use, others were at work as well.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

/// A number of bytes out of `VmHWM:   24683112 kB`.
fn kibibytes(text: &str, name: &str) -> u64 {
    let number = field(text, name).and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    number.unwrap_or(0) << 10
}

/// Median of up to 200 lone `fdatasync`s of 128 appended bytes in a file of fixed size: what a
/// commit that waits for the disk costs at least. Takes half a second at most.
pub fn sync_time(dir: &Path) -> io::Result<Duration> {
    let path = dir.join("calibration");
    let file = fs::File::create(&path)?;
    file.write_all_at(&vec![0; 1 << 20], 0)?;
    file.sync_all()?;
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 200 && start.elapsed() < Duration::from_millis(500) {
        let before = Instant::now();
        file.write_all_at(&[7; 128], times.len() as u64 * 128)?;
        file.sync_data()?;
        times.push(before.elapsed());
    }
    fs::remove_file(&path)?;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// Touches so much memory and lets go of it, a quarter of what there is at most. A host may have taken
/// back what its guest did not use, and then the first touch of a page costs ten times as much as the
/// next: whoever comes after a process that wrote much would seem faster than who comes first.
pub fn claim_memory(bytes: u64) {
    const PAGE_BYTES: usize = 4096;
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = bytes.min(kibibytes(&memory, "MemAvailable") / 4);
    let mut claimed = vec![0_u8; bytes as usize];
    claimed.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
    std::hint::black_box(&claimed);
}

/// A control group with little memory, for processes and what they have in the page cache.
pub struct MemoryLimit(PathBuf);

impl MemoryLimit {
    /// Makes one, beside that of this process.
    pub fn make(bytes: u64) -> Result<MemoryLimit> {
        let root = Path::new("/sys/fs/cgroup");
        let name = format!("esker-compare-{}", std::process::id());
        // The first version has a tree for each resource.
        let first = root.join("memory");
        let (dir, file) = match first.join("memory.limit_in_bytes").exists() {
            true => (first.join(name), "memory.limit_in_bytes"),
            false => {
                drop(fs::write(root.join("cgroup.subtree_control"), "+memory"));
                (root.join(name), "memory.max")
            }
        };
        let make = || {
            fs::create_dir(&dir)?;
            let limit = MemoryLimit(dir.clone());
            fs::write(dir.join(file), bytes.to_string())?;
            Ok(limit)
        };
        make().map_err(|error: io::Error| {
            Failure::new(format!("--memory-limit: {}: {error}; it needs root", dir.display()))
        })
    }

    /// Puts a process into it.
    pub fn put(&self, process: u32) -> Result<()> {
        Ok(fs::write(self.0.join("cgroup.procs"), process.to_string())?)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // Its processes have ended; what stays if they have not is an empty group.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Bytes that the files in `dir` take on the disk, holes not counted, preallocation counted.
pub fn disk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        // Removed since it was listed.
        Err(_) => 0,
    };
    entries.flatten().map(bytes).sum()
}

/// What the kernel has counted for this process.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time of all threads, in user and system mode.
    pub cpu: Duration,
    /// Bytes that were, or will be, written to the disk because of this process.
    pub written_bytes: u64,
    /// The most that was resident since [`Usage::begin`], mapped files included.
    pub resident_peak_bytes: u64,
    /// What is resident now without files.
    pub anonymous_bytes: u64,
}

impl Usage {
    /// Starts a new peak, and reads the counters.
    pub fn begin() -> Usage {
        // Where the kernel refuses, peaks are of the whole process.
        drop(fs::write("/proc/self/clear_refs", "5"));
        Usage::now()
    }

    /// Reads the counters.
    pub fn now() -> Usage {
        let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
        let written = field(&io, "write_bytes").and_then(|text| text.parse().ok());
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Usage {
            cpu: cpu_time(),
            written_bytes: written.unwrap_or(0),
            resident_peak_bytes: kibibytes(&status, "VmHWM"),
            anonymous_bytes: kibibytes(&status, "RssAnon"),
        }
    }

    /// What was taken since `before`; the memory is as it is now.
    pub fn since(self, before: Usage) -> Usage {
        Usage {
            cpu: self.cpu.saturating_sub(before.cpu),
            written_bytes: self.written_bytes.saturating_sub(before.written_bytes),
            ..self
        }
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The time of [`wait_until_idle`] after which an engine is settled that cannot say so itself. It is part of
/// the time to settle.
pub const SETTLED: Duration = Duration::from_millis(100);

/// Waits until `ready` and the whole process has taken less than a tenth of a processor for so long, but no
/// more than a minute.
pub fn wait_until_idle(so_long: Duration, ready: impl Fn() -> bool) {
    const LOOK_EVERY: Duration = Duration::from_millis(20);
    const WAIT_MAX: Duration = Duration::from_secs(60);
    let looks = so_long.as_millis().div_ceil(LOOK_EVERY.as_millis());
    let (began, mut quiet) = (Instant::now(), 0);
    while quiet < looks && began.elapsed() < WAIT_MAX {
        let before = cpu_time();
        std::thread::sleep(LOOK_EVERY);
        let busy = cpu_time() - before > LOOK_EVERY / 10;
        quiet = if busy || !ready() { 0 } else { quiet + 1 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_and_this_process_are_measured() {
        assert!(describe().contains("cores ("), "{}", describe());
        assert_eq!(kibibytes("A: 1 kB\nVmHWM:\t  2048 kB\n", "VmHWM"), 2 << 20);
        let usage = Usage::begin();
        assert!(usage.cpu > Duration::ZERO && usage.anonymous_bytes > 0);
        assert!(usage.resident_peak_bytes >= usage.anonymous_bytes);
        assert_eq!(disk_bytes(Path::new("/nowhere")), 0);
    }
}
