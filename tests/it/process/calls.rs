//! At chosen system calls, by strace: SIGKILL at the k-th call, and windows of failing calls that
//! the process survives. Skipped, with a word, where strace is not there or may not trace.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::process::Rounds;
use crate::settings::{number, tally};

/// Calls that change what is on the disk, and how often at most a thread makes them in a round.
const KILLED_AT: [(&str, u64); 8] = [
    ("fdatasync", 40),
    ("fsync", 20),
    ("pwrite64", 60),
    ("fallocate", 8),
    ("unlink", 8),
    ("rename", 2),
    ("openat", 30),
    ("ftruncate", 4),
];
/// Failing calls, and whether tables are read and logs written by calls too: the log's and the
/// manifest's syncs, the space and the names of new files, reads of tables, writes of every file.
const FAILING: [(&str, &str, bool); 10] = [
    ("fdatasync", "EIO", false),
    ("fsync", "EIO", false),
    ("fallocate", "EIO", false),
    ("openat", "EIO", false),
    ("unlink", "EIO", false),
    ("pread64", "EIO", true),
    ("pwrite64", "EIO", true),
    ("pwrite64", "ENOSPC", true),
    ("fallocate", "ENOSPC", true),
    ("fdatasync", "EIO", true),
];

/// Whether strace can trace here; says so if not.
fn can_trace() -> bool {
    let traced = Command::new("strace")
        .args(["-qq", "-f", "-o", "/dev/null", "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let can = traced.is_ok_and(|status| status.success());
    if !can {
        println!("skipped: strace is missing or may not trace here");
    }
    can
}

/// Waits until the child has ended, at most so long.
fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let began = Instant::now();
    while began.elapsed() < patience {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

#[test]
fn nothing_acknowledged_is_lost_to_a_kill_at_a_system_call() {
    if !can_trace() {
        return;
    }
    let kills: u64 = number("ESKER_CALL_KILLS").unwrap_or(40);
    let seed = number("ESKER_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("ESKER_SEED={seed} ESKER_CALL_KILLS={kills}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut rounds = Rounds::new(false, None);
    let mut hits = 0;
    for round in 0..kills {
        let (call, most) = KILLED_AT[round as usize % KILLED_AT.len()];
        let nth = random.u64(1..=most);
        let only = format!("trace={call}");
        let inject = format!("inject={call}:signal=KILL:when={nth}");
        let wrapper = ["strace", "-qq", "-f", "-o", "/dev/null", "-e", &only, "-e", &inject];
        let mut child = rounds.start(&wrapper, None, round / KILLED_AT.len() as u64 % 2 == 1);
        // Once the parent's end of its standard input is closed, the child ends by itself.
        let ended = wait(&mut child, Duration::from_millis(700));
        drop(child.stdin.take());
        let status = ended.or_else(|| wait(&mut child, Duration::from_secs(30)));
        let status = status.expect("the child ends with its standard input");
        let killed = status.signal() == Some(9) || status.code() == Some(128 + 9);
        assert!(killed || status.code() == Some(1), "{status}: {}", rounds.said());
        hits += u64::from(killed);
        rounds.check(&format!("{call} {nth}, ESKER_SEED={seed}"), true, random.bool());
    }
    println!("{hits} of {kills} killed at their call, {} steps", rounds.steps());
    tally(&[("kills at a system call", hits)]);
    assert!(hits > kills / 4, "hardly any call was reached");
}

#[test]
fn a_window_of_failing_calls_is_survived_by_resuming() {
    if !can_trace() {
        return;
    }
    let mut rounds = Rounds::new(true, None);
    for (round, (call, error, by_calls)) in FAILING.into_iter().enumerate() {
        for first in [5 + round as u64, 40] {
            let only = format!("trace={call}");
            let inject = format!("inject={call}:error={error}:when={first}..{}", first + 3);
            let files = ["-P", rounds.dir.to_str().unwrap()];
            let mut wrapper = vec!["strace", "-qq", "-f", "-o", "/dev/null", "-e", &only];
            wrapper.extend(["-e", &inject]);
            // The opening of files is of interest in the database only; the others have no path
            // that strace could select by before the file is there.
            if call == "openat" {
                wrapper.extend(files);
            }
            let mut child = rounds.start(&wrapper, Some(400), by_calls);
            let status = wait(&mut child, Duration::from_secs(120)).expect("it ends");
            let label = format!("{call} failing with {error} from {first} on");
            assert!(status.success(), "{label}: {status}: {}", rounds.said());
            rounds.check(&label, true, round % 2 == 0);
        }
    }
    println!("{} windows survived, {} steps", 2 * FAILING.len(), rounds.steps());
    tally(&[("windows of failing calls", 2 * FAILING.len() as u64)]);
}
