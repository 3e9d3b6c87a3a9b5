//! Real processes that come to an unkind end: killed at random moments (`kill`), killed at a chosen
//! system call or given failing ones (`calls`), their disk cut off (`power`); and one over shards that
//! are split (`split`). Reopened and checked,
//! round after round on one database.
//!
//! The child is this test binary again. Each of its eight threads repeats numbered steps; what step
//! n of thread t does follows from (t, n) alone ([`Step`]). After each acknowledgement the thread
//! writes its count into a slot of a file, with `pwrite`: handed to the kernel, it survives SIGKILL
//! as an acknowledged commit must. So after a kill, of each thread exactly `acknowledged` steps are
//! there, or one more that was under way; and the database has precisely what so many steps leave,
//! which a model that is carried along predicts: batches whole over two keyspaces, counters exact,
//! nothing else.
//!
//! In the *sealed* mode every step is a batch that also writes its number, so that the steps found
//! say themselves how many they are, and only those acknowledged as durable are counted in a slot.

mod calls;
mod kill;
mod power;
mod split;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Read};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::settings::number;

use esker::fs::RealFs;
use esker::runtime::Runtime;
use esker::{
    BreakerState, Compression, Counter, Db, Durability, ErrorKind, Filter, Keyspace,
    KeyspaceOptions, Options, ReadMode,
};

const THREADS: usize = 8;
/// Keys of a thread are reused after so many steps, so that compactions have something to drop.
const WINDOW: u64 = 1500;
const SIGKILL: i32 = 9;

/// Where the child finds its slots.
const HOME: &str = "ESKER_PROCESS_HOME";
/// Where its database is.
const DATABASE: &str = "ESKER_PROCESS_DATABASE";
/// Set in the sealed mode.
const SEALED: &str = "ESKER_PROCESS_SEALED";
/// In the sealed mode: so many steps a thread, with `resume` after errors; then it ends.
const STEPS: &str = "ESKER_PROCESS_STEPS";
/// Set where tables are to be read by `pread` and logs written by `pwrite`, so that each of these
/// calls can fail: through a mapping there is no call, and a failing read is a SIGBUS.
const BY_CALLS: &str = "ESKER_PROCESS_BY_CALLS";

/// What a step of a writer does.
enum Step {
    /// One commit of a put in both keyspaces, a count, and perhaps a delete in both.
    Batch { delete: Option<u64> },
    /// A put alone, in the first keyspace.
    Put,
    /// A count alone.
    Count,
}

impl Step {
    fn of(n: u64, sealed: bool) -> Step {
        match n % 8 {
            6 | 7 if sealed => Step::Batch { delete: None },
            6 => Step::Put,
            7 => Step::Count,
            3 => Step::Batch { delete: n.checked_sub(10) },
            _ => Step::Batch { delete: None },
        }
    }
}

/// How a batch is acknowledged.
fn durability(n: u64) -> Durability {
    if n.is_multiple_of(128) { Durability::Disk } else { Durability::Process }
}

fn key(thread: usize, n: u64) -> Vec<u8> {
    format!("{thread}:{:06}", n % WINDOW).into_bytes()
}

/// A value that tells of which step it is, and whether all of it is there.
fn value(thread: usize, n: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(n * THREADS as u64 + thread as u64);
    let mut value = format!("{thread} {n} ").into_bytes();
    let filler = random.usize(0..600);
    value.extend((0..filler).map(|_| random.alphanumeric() as u8));
    value
}

/// What a thread's first steps leave.
#[derive(Default)]
struct Model {
    sealed: bool,
    steps: u64,
    /// For each key, the step that put it last: in the first keyspace, and in its twin.
    puts: [BTreeMap<Vec<u8>, u64>; 2],
    batches: i64,
    counts: i64,
}

impl Model {
    fn advance(&mut self, thread: usize, upto: u64) {
        for n in self.steps..upto {
            match Step::of(n, self.sealed) {
                Step::Batch { delete } => {
                    for puts in &mut self.puts {
                        puts.insert(key(thread, n), n);
                        if let Some(gone) = delete {
                            puts.remove(&key(thread, gone));
                        }
                    }
                    self.batches += 1;
                }
                Step::Put => _ = self.puts[0].insert(key(thread, n), n),
                Step::Count => self.counts += 1,
            }
        }
        self.steps = upto;
    }
}

// The child.

/// The parent holds the other end of the standard input: if it goes, this process does.
fn end_with_the_parent() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
}

#[test]
#[ignore = "a role of the tests of this module, which start it as a process of its own"]
fn writers() {
    let Some(home) = std::env::var_os(HOME) else { return };
    let dir = PathBuf::from(std::env::var_os(DATABASE).expect("set with the home"));
    end_with_the_parent();
    let slots = open_slots(Path::new(&home));
    let sealed = std::env::var_os(SEALED).is_some();
    let steps = number(STEPS);
    // Where calls fail, an opening may: then it is tried again.
    let mut tries = if steps.is_some() { 20 } else { 1 };
    let (db, twin, counts) = loop {
        tries -= 1;
        match open(&dir) {
            Ok(opened) => break opened,
            Err(error) => assert!(tries > 0, "{error}"),
        }
    };
    let writer = Writer { db, twin, counts, sealed };
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (writer, slots) = (&writer, &slots);
            scope.spawn(move || {
                let begin = if sealed { writer.found(thread) } else { read_slot(slots, thread) };
                for n in begin..steps.map_or(u64::MAX, |steps| begin + steps) {
                    match steps {
                        None => writer.step(thread, n).unwrap(),
                        Some(_) => writer.insist(thread, n),
                    }
                    // An earlier commit of this thread is durable once a later one is.
                    if !sealed || durability(n) == Durability::Disk {
                        write_slot(slots, thread, n + 1);
                    }
                }
            });
        }
    });
    if steps.is_some() {
        for thread in 0..THREADS {
            write_slot(&slots, thread, writer.found(thread));
        }
        // What it flushes may meet the last failing calls: the log has it all the same.
        if let Err(error) = writer.db.close() {
            assert!(is_of_the_disk(&error), "{error}: {:?}", error.kind());
        }
    }
}

struct Writer {
    db: Db,
    twin: Keyspace,
    counts: Keyspace,
    sealed: bool,
}

impl Writer {
    fn step(&self, thread: usize, n: u64) -> esker::Result<()> {
        let (key, value) = (key(thread, n), value(thread, n));
        match Step::of(n, self.sealed) {
            Step::Put => self.db.put(key, value),
            Step::Count => self.counts.merge(format!("count {thread}"), 1),
            Step::Batch { delete } => {
                let mut batch = self.db.batch();
                batch.put(&self.db, &key, &value).put(&self.twin, &key, &value);
                if let Some(gone) = delete {
                    let gone = self::key(thread, gone);
                    batch.delete(&self.db, &gone).delete(&self.twin, &gone);
                }
                batch.merge(&self.counts, format!("batches {thread}"), 1);
                if self.sealed {
                    let seal = (n as i64 + 1).to_le_bytes();
                    batch.put(&self.counts, format!("steps {thread}"), seal);
                }
                match n % 16 {
                    5 => batch.commit_async()?.wait(),
                    _ => batch.commit_with(durability(n)),
                }
            }
        }
    }

    /// The steps of this thread that are there, in the sealed mode.
    fn found(&self, thread: usize) -> u64 {
        sealed_steps(&self.counts, thread)
    }

    /// Does a step in spite of errors: an operator who resumes at once, and then looks whether what
    /// failed is there before he does it again. Only then: while writes are refused, what others
    /// have under way may still make it visible.
    fn insist(&self, thread: usize, n: u64) {
        let (mut last, began) = (None, Instant::now());
        while began.elapsed() < Duration::from_secs(60) {
            match self.step(thread, n) {
                Ok(()) => return,
                Err(error) => assert!(is_of_the_disk(&error), "{error}: {:?}", error.kind()),
            }
            // Reads go on.
            patiently(|| self.db.get(key(thread, n)));
            // A resume fails as long as the disk does, or while another thread resumes.
            while self.db.breaker().0 != BreakerState::Closed {
                last = self.db.resume().err().or(last);
                assert!(began.elapsed() < Duration::from_secs(60), "never resumed: {last:?}");
                std::thread::sleep(Duration::from_millis(1));
            }
            if self.found(thread) == n + 1 {
                return;
            }
        }
        panic!("never done: {last:?}, {:?}", self.db.breaker());
    }
}

fn is_of_the_disk(error: &esker::Error) -> bool {
    matches!(error.kind(), ErrorKind::Io(_) | ErrorKind::Degraded { .. } | ErrorKind::NoSpace)
}

/// Reads: again, where calls may fail and the disk failed it.
fn patiently<T>(read: impl Fn() -> esker::Result<T>) -> T {
    let mut tries = if std::env::var_os(BY_CALLS).is_some() { 100 } else { 1 };
    loop {
        tries -= 1;
        match read() {
            Ok(found) => return found,
            Err(error) => {
                assert!(tries > 0 && matches!(error.kind(), ErrorKind::Io(_)), "{error}");
            }
        }
    }
}

fn sealed_steps(counts: &Keyspace, thread: usize) -> u64 {
    let seal = patiently(|| counts.get(format!("steps {thread}")));
    seal.map_or(0, |seal| Counter::decode(&seal).expect("a counter") as u64)
}

fn open(dir: &Path) -> esker::Result<(Db, Keyspace, Keyspace)> {
    // The least memory there can be: memtables of 256 KiB and logs of 1 MiB, so that a round sees
    // several of each.
    let mut options = Options::default();
    (options.memory, options.table_bytes, options.threads) = (1 << 20, 64 << 10, 2);
    // Each open draws its filter, so tables with both kinds lie beside each other.
    options.filter = match fastrand::bool() {
        true => Filter::Bloom { bits_per_key: 10 },
        false => Filter::BinaryFuse8,
    };
    options.compression = Compression::Lz4;
    let db = match std::env::var_os(BY_CALLS) {
        Some(_) => open_by_calls(dir, options)?,
        None => Db::open_with(dir, options)?,
    };
    let twin = db.keyspace("twin", KeyspaceOptions::new())?;
    let counts = db.keyspace("counts", KeyspaceOptions::new().merge(Counter::default()))?;
    Ok((db, twin, counts))
}

fn open_by_calls(dir: &Path, mut options: Options) -> esker::Result<Db> {
    options.read_mode = ReadMode::Pread;
    let fs = Arc::new(RealFs::with_written_logs());
    Db::open_on(fs, Runtime::threads(), dir, options)
}

/// The file with a count for each thread.
fn open_slots(home: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(home.join("acknowledged")).unwrap()
}

/// By `pwritev`, which nothing else uses: so that tests can fail every `pwrite` of the database.
fn write_slot(file: &File, thread: usize, count: u64) {
    let bytes = count.to_le_bytes();
    let written = rustix::io::pwritev(file, &[IoSlice::new(&bytes)], thread as u64 * 8).unwrap();
    assert_eq!(written, bytes.len());
}

fn read_slot(file: &File, thread: usize) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, thread as u64 * 8).unwrap();
    u64::from_le_bytes(bytes)
}

// The parent.

/// Rounds on one database: start, end it, check.
struct Rounds {
    home: tempfile::TempDir,
    /// Where the database is.
    dir: PathBuf,
    slots: File,
    models: [Model; THREADS],
    sealed: bool,
}

impl Rounds {
    /// With the database in `dir`, or in the home.
    fn new(sealed: bool, dir: Option<&Path>) -> Rounds {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("acknowledged"), [0; 8 * THREADS]).unwrap();
        let slots = open_slots(home.path());
        let dir = dir.map_or(home.path().join("db"), Path::to_path_buf);
        let models = std::array::from_fn(|_| Model { sealed, ..Model::default() });
        Rounds { home, dir, slots, models, sealed }
    }

    /// The child, run by this command if one is given.
    fn start(&self, wrapper: &[&str], steps: Option<u64>, by_calls: bool) -> Child {
        let mut settings = Vec::new();
        if self.sealed {
            settings.push((SEALED, "1".to_string()));
        }
        if by_calls {
            settings.push((BY_CALLS, "1".to_string()));
        }
        settings.extend(steps.map(|steps| (STEPS, steps.to_string())));
        self.spawn("process::writers", wrapper, settings)
    }

    /// The child in another role.
    fn start_as(&self, role: &str) -> Child {
        self.spawn(role, &[], Vec::new())
    }

    fn spawn(&self, role: &str, wrapper: &[&str], settings: Vec<(&str, String)>) -> Child {
        let stderr = File::create(self.home.path().join("stderr")).unwrap();
        let program = std::env::current_exe().unwrap();
        let mut command = match wrapper {
            [] => Command::new(&program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(&program);
                command
            }
        };
        command
            .args(["--exact", role, "--ignored", "--nocapture"])
            .env(HOME, self.home.path())
            .env(DATABASE, &self.dir)
            .envs(settings)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(stderr);
        command.spawn().unwrap()
    }

    /// What the child said.
    fn said(&self) -> String {
        std::fs::read_to_string(self.home.path().join("stderr")).unwrap()
    }

    /// Kills the child, which must not have ended by itself.
    fn kill(&self, child: &mut Child) {
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(SIGKILL), "it ended by itself: {}", self.said());
    }

    /// Checks what is left; keeps it if it is wrong.
    fn check(&mut self, label: &str, exactly: bool, close: bool) {
        let (dir, slots, models) = (&self.dir, &self.slots, &mut self.models);
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            check(dir, slots, models, exactly, close);
        }));
        if checked.is_err() {
            self.home.disable_cleanup(true);
            panic!("after {label}: see {}\n{}", self.home.path().display(), self.said());
        }
    }

    fn steps(&self) -> u64 {
        self.models.iter().map(|model| model.steps).sum()
    }
}

/// Opens what is left, and compares it with the models, which are advanced to what was found:
/// exactly what was acknowledged and at most one step more, or that at least.
fn check(dir: &Path, slots: &File, models: &mut [Model; THREADS], exactly: bool, close: bool) {
    if dir.join("CURRENT").exists() {
        let report = esker::tools::verify(dir, &mut |_| {}).unwrap();
        assert!(report.is_ok(), "a plain crash is no damage:\n{report}");
    }
    let (db, twin, counts) = open(dir).unwrap();
    let count = |key: String| match counts.get(key).unwrap() {
        Some(value) => Counter::decode(&value).expect("a counter"),
        None => 0,
    };
    for (thread, model) in models.iter_mut().enumerate() {
        let acknowledged = read_slot(slots, thread);
        if model.sealed {
            let steps = sealed_steps(&counts, thread);
            assert!(steps >= acknowledged, "thread {thread}: {steps} of {acknowledged} steps");
            assert!(!exactly || steps == acknowledged, "{steps} steps, not {acknowledged}");
            model.advance(thread, steps);
            assert_eq!(count(format!("batches {thread}")), model.batches);
            write_slot(slots, thread, steps);
            continue;
        }
        model.advance(thread, acknowledged);
        let batches = format!("batches {thread}");
        let counts = format!("count {thread}");
        let found = (count(batches.clone()), count(counts.clone()));
        let put = |n: u64| db.get(key(thread, n)).unwrap().as_deref() == Some(&value(thread, n));
        // The step under way shows in what it alone changes.
        let one_more = match Step::of(acknowledged, false) {
            Step::Batch { .. } => found.0 != model.batches,
            Step::Count => found.1 != model.counts,
            Step::Put => put(acknowledged),
        };
        model.advance(thread, acknowledged + u64::from(one_more));
        assert_eq!(found, (model.batches, model.counts), "counters of thread {thread}");
        // What is there now must stay there, acknowledged then or not.
        write_slot(slots, thread, model.steps);
    }
    for (keyspace, at) in [(&*db, 0), (&twin, 1)] {
        let mut expected = models.iter().enumerate().flat_map(|(thread, model)| {
            model.puts[at].iter().map(move |(key, n)| (key.clone(), value(thread, *n)))
        });
        for entry in keyspace.iter() {
            let (key, value) = entry.unwrap();
            let found = (key.to_vec(), value.to_vec());
            let expected = expected.next().expect("more than was written");
            let name = |(key, value): &(Vec<u8>, Vec<u8>)| {
                format!("{}={}", key.escape_ascii(), value.escape_ascii())
            };
            assert!(found == expected, "found {}, not {}", name(&found), name(&expected));
        }
        let missing = expected.next().map(|(key, _)| key.escape_ascii().to_string());
        assert_eq!(missing, None, "keyspace {at} ends too early");
        let forward = models.iter().map(|model| model.puts[at].len()).sum::<usize>();
        assert_eq!(keyspace.iter().rev().count(), forward);
    }
    if close {
        drop((twin, counts));
        db.close().unwrap();
    }
}
