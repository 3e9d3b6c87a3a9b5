//! What the numbers were measured on and with: processor, memory, kernel, file system, and what
//! this process took of them. From /proc; what cannot be read is left out or 0.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::text::size;

/// One line about the machine.
pub fn describe() -> String {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name))?.split_once(':')?.1;
        Some(line.trim().to_owned())
    };
    let model = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown model".into());
    let memory = field("/proc/meminfo", "MemTotal").and_then(|text| kibibytes(&text));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{cores} cores ({model}), {} of memory, Linux {}",
        size(memory.unwrap_or(0)),
        kernel.trim()
    )
}

/// A number of bytes out of `24683112 kB`.
fn kibibytes(text: &str) -> Option<u64> {
    text.trim().split(' ').next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The file system that has `dir`: its kind, as /proc/self/mounts names it.
pub fn file_system(dir: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    let mut best = (0, "unknown file system");
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(point), Some(kind)) = (fields.next(), fields.next()) else { continue };
        // A later mount hides an earlier one of the same place.
        if dir.starts_with(point) && point.len() >= best.0 {
            best = (point.len(), kind);
        }
    }
    best.1.to_owned()
}

/// Bytes that may still be written where `dir` is.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes that the files in `dir` take on the disk, preallocated ones included, as `du` counts.
pub fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let blocks = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        // Removed since it was listed.
        Err(_) => 0,
    };
    entries.flatten().map(blocks).sum()
}

/// Median of up to 200 lone `fdatasync`s, each of 128 appended bytes in a file of fixed size: what
/// a commit that waits for the disk costs here at least. Takes half a second at most.
pub fn sync_time(dir: &Path) -> io::Result<Duration> {
    let file = tempfile::tempfile_in(dir)?;
    file.set_len(1 << 20)?;
    file.sync_all()?;
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 200 && start.elapsed() < Duration::from_millis(500) {
        let before = Instant::now();
        file.write_all_at(&[7; 128], times.len() as u64 * 128)?;
        file.sync_data()?;
        times.push(before.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// Processor time that all threads of this process have taken.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Waits until this process has taken less than a tenth of a processor for so long, but no more than a
/// minute.
pub fn wait_until_idle(so_long: Duration) {
    const LOOK_EVERY: Duration = Duration::from_millis(20);
    const WAIT_MAX: Duration = Duration::from_secs(60);
    let (began, mut idle_since) = (Instant::now(), Instant::now());
    while idle_since.elapsed() < so_long && began.elapsed() < WAIT_MAX {
        let before = cpu_time();
        thread::sleep(LOOK_EVERY);
        if cpu_time() - before > LOOK_EVERY / 10 {
            idle_since = Instant::now();
        }
    }
}

/// Memory of this process in bytes.
#[derive(Clone, Copy, Default)]
pub struct Memory {
    /// The most that was resident, mapped files included, since [`Memory::forget_peak`].
    pub peak: u64,
    /// What is resident now without files: heap and stacks.
    pub anonymous: u64,
}

impl Memory {
    /// As the kernel sees it now.
    pub fn now() -> Memory {
        let mut memory = Memory::default();
        for line in fs::read_to_string("/proc/self/status").unwrap_or_default().lines() {
            match line.split_once(':') {
                Some(("VmHWM", text)) => memory.peak = kibibytes(text).unwrap_or(0),
                Some(("RssAnon", text)) => memory.anonymous = kibibytes(text).unwrap_or(0),
                _ => {}
            }
        }
        memory
    }

    /// Makes the kernel count the peak from here on. Where it refuses, peaks are of the process.
    pub fn forget_peak() {
        drop(fs::write("/proc/self/clear_refs", "5"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        assert!(describe().contains("cores ("), "{}", describe());
        assert_ne!(file_system(Path::new("/proc")), "unknown file system");
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), vec![1; 100_000]).unwrap();
        assert!(free_bytes(dir.path()).unwrap() > 0);
        assert!(sync_time(dir.path()).unwrap() > Duration::ZERO);
        assert!(disk_bytes(&dir.path().join("nowhere")) == 0);
        let memory = Memory::now();
        assert!(memory.peak >= memory.anonymous && memory.anonymous > 0);
        assert!(cpu_time() > Duration::ZERO);
    }
}
