//! A real process under four writer threads, killed with SIGKILL at random moments, reopened and
//! checked, round after round on one database.
//!
//! The child is this test binary again. Each of its threads repeats numbered steps; what step n of
//! thread t does follows from (t, n) alone ([`Step`]). After each acknowledgement the thread writes
//! its count into a slot of a file, with `pwrite`: handed to the kernel, it survives SIGKILL as an
//! acknowledged commit must. So after a kill, of each thread exactly `acknowledged` steps are there,
//! or one more that was under way; and the database has precisely what so many steps leave, which a
//! model that is carried along predicts: batches whole over two keyspaces, counters exact, nothing
//! else.
//!
//! `ESKER_KILLS=1000 cargo test --all-features --test it kill::` kills more often than the default;
//! `ESKER_SEED` sets the seed of the moments (the machine's own timing remains).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use esker::{Compression, Counter, Db, Durability, Filter, Keyspace, KeyspaceOptions, ReadMode};

const THREADS: usize = 4;
/// Keys of a thread are reused after so many steps, so that compactions have something to drop.
const WINDOW: u64 = 1500;
const KILLS: u64 = 40;
const SIGKILL: i32 = 9;

const DIR: &str = "ESKER_KILL_DIR";

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
    fn of(n: u64) -> Step {
        match n % 8 {
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
    steps: u64,
    /// For each key, the step that put it last: in the first keyspace, and in its twin.
    puts: [BTreeMap<Vec<u8>, u64>; 2],
    batches: i64,
    counts: i64,
}

impl Model {
    fn advance(&mut self, thread: usize, upto: u64) {
        for n in self.steps..upto {
            match Step::of(n) {
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

#[test]
#[ignore = "a role of the test below, which starts it as a process of its own"]
fn writers() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let dir = Path::new(&dir);
    // The parent holds the other end: if it goes, this process does.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
    let slots = open_slots(dir);
    let (db, twin, counts) = open(&dir.join("db"));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (db, twin, counts, slots) = (&db, &twin, &counts, &slots);
            scope.spawn(move || {
                for n in read_slot(slots, thread).. {
                    step(db, twin, counts, thread, n).unwrap();
                    write_slot(slots, thread, n + 1);
                }
            });
        }
    });
}

fn step(db: &Db, twin: &Keyspace, counts: &Keyspace, thread: usize, n: u64) -> esker::Result<()> {
    let (key, value) = (key(thread, n), value(thread, n));
    match Step::of(n) {
        Step::Put => db.put(key, value),
        Step::Count => counts.merge(format!("count {thread}"), 1),
        Step::Batch { delete } => {
            let mut batch = db.batch();
            batch.put(db, &key, &value).put(twin, &key, &value);
            if let Some(gone) = delete {
                let gone = self::key(thread, gone);
                batch.delete(db, &gone).delete(twin, &gone);
            }
            batch.merge(counts, format!("batches {thread}"), 1);
            match n % 16 {
                5 => batch.commit_async()?.wait(),
                _ => batch.commit_with(durability(n)),
            }
        }
    }
}

fn open(dir: &Path) -> (Db, Keyspace, Keyspace) {
    // The least memory there can be: memtables of 256 KiB and logs of 1 MiB, so that a round sees
    // several of each.
    let builder = Db::builder(dir).memory(1 << 20).table_bytes(64 << 10).threads(2);
    let builder = builder.filter(Filter::Bloom { bits_per_key: 10 }).compression(Compression::Lz4);
    let db = builder.read_mode(ReadMode::Mapped).open().unwrap();
    let twin = db.keyspace("twin", KeyspaceOptions::new()).unwrap();
    let counts = db.keyspace("counts", KeyspaceOptions::new().merge(Counter::default())).unwrap();
    (db, twin, counts)
}

/// The file with a count for each thread.
fn open_slots(home: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(home.join("acknowledged")).unwrap()
}

fn write_slot(file: &File, thread: usize, count: u64) {
    file.write_all_at(&count.to_le_bytes(), thread as u64 * 8).unwrap();
}

fn read_slot(file: &File, thread: usize) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, thread as u64 * 8).unwrap();
    u64::from_le_bytes(bytes)
}

// The parent.

#[test]
fn nothing_acknowledged_is_lost_to_a_killed_process() {
    let kills: u64 = number("ESKER_KILLS").unwrap_or(KILLS);
    let seed = number("ESKER_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("ESKER_SEED={seed} ESKER_KILLS={kills}");
    let mut random = fastrand::Rng::with_seed(seed);
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("acknowledged"), [0; 8 * THREADS]).unwrap();
    let slots = open_slots(home.path());
    let mut models: [Model; THREADS] = Default::default();
    for round in 0..kills {
        let mut child = start(home.path());
        std::thread::sleep(Duration::from_micros(random.u64(5_000..150_000)));
        kill(&mut child, home.path());
        let close = random.bool();
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            check(&home.path().join("db"), &slots, &mut models, close);
        }));
        if checked.is_err() {
            let kept = home.keep();
            panic!("after kill {round}: see {}, ESKER_SEED={seed}", kept.display());
        }
    }
    let steps: u64 = models.iter().map(|model| model.steps).sum();
    println!("{kills} kills, {steps} steps acknowledged or found");
    assert!(models.iter().all(|model| model.steps > kills), "hardly anything was written");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn start(home: &Path) -> Child {
    let stderr = File::create(home.join("stderr")).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::writers", "--ignored", "--nocapture"])
        .env(DIR, home)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap()
}

/// Kills the child, which must not have ended by itself.
fn kill(child: &mut Child, home: &Path) {
    child.kill().unwrap();
    let status = child.wait().unwrap();
    let said = std::fs::read_to_string(home.join("stderr")).unwrap();
    assert_eq!(status.signal(), Some(SIGKILL), "the writers ended by themselves: {said}");
}

/// Opens what is left, and compares it with the models, which are advanced to what was found.
fn check(dir: &Path, slots: &File, models: &mut [Model; THREADS], close: bool) {
    if dir.join("CURRENT").exists() {
        let report = esker::tools::verify(dir, &mut |_| {}).unwrap();
        assert!(report.is_ok(), "a plain crash is no damage:\n{report}");
    }
    let (db, twin, counts) = open(dir);
    let count = |key: String| match counts.get(key).unwrap() {
        Some(value) => Counter::decode(&value).expect("a counter"),
        None => 0,
    };
    for (thread, model) in models.iter_mut().enumerate() {
        let acknowledged = read_slot(slots, thread);
        model.advance(thread, acknowledged);
        let batches = format!("batches {thread}");
        let counts = format!("count {thread}");
        let found = (count(batches.clone()), count(counts.clone()));
        let put = |n: u64| db.get(key(thread, n)).unwrap().as_deref() == Some(&value(thread, n));
        // The step under way shows in what it alone changes.
        let one_more = match Step::of(acknowledged) {
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
