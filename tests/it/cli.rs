//! The program `esker` from outside: each verb's output, exit status and errors.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A directory to run the program in.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
        command.args(args).current_dir(self.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs what has to succeed quietly; its standard output.
    fn ok(&self, args: &[&str]) -> Vec<u8> {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {stderr}");
        assert_eq!(stderr, "", "{args:?}");
        output.stdout
    }

    fn ok_text(&self, args: &[&str]) -> String {
        String::from_utf8(self.ok(args)).unwrap()
    }

    /// Runs what has to fail with this status, nothing on standard output and one line on
    /// standard error; that line.
    fn fails(&self, status: i32, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
        assert_eq!(output.stdout, b"", "{args:?}");
        assert!(stderr.starts_with("esker: ") && stderr.ends_with('\n'), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        stderr
    }
}

#[test]
fn a_checkpoint_is_a_database_of_its_own() {
    let place = Place::new();
    place.ok(&["put", "data", "a", "1", "--create"]);
    place.ok(&["merge", "data", "n", "5", "--keyspace", "c", "--operator", "counter", "--create"]);
    assert_eq!(place.ok(&["checkpoint", "data", "copy"]), b"");
    place.ok(&["put", "data", "a", "2"]);
    place.ok(&["put", "copy", "b", "3"]);
    assert_eq!(place.ok(&["get", "copy", "a"]), b"1");
    assert_eq!(place.ok(&["get", "copy", "n", "--keyspace", "c"]), b"5");
    assert_eq!(place.ok(&["get", "data", "a"]), b"2");
    place.fails(1, &["get", "data", "b"]);
    let text = place.fails(1, &["checkpoint", "data", "copy"]);
    assert!(text.contains("copy exists"), "{text}");
    let text = place.fails(1, &["checkpoint", "nothing", "other"]);
    assert!(text.contains("no such directory"), "{text}");
    assert!(!place.path().join("other").exists() && !place.path().join("nothing").exists());
    // Right after it was made there is no log yet.
    place.ok(&["checkpoint", "data", "again"]);
    place.ok(&["verify", "again"]);

    let (dir, copy) = (place.path().join("shards"), place.path().join("shards-copy"));
    let db = esker::ShardedDb::builder(&dir).shards(3).open().unwrap();
    (0..100).for_each(|n| db.put(format!("k{n}"), "x").unwrap());
    db.close().unwrap();
    place.ok(&["checkpoint", "shards", "shards-copy"]);
    for shard in 0..3 {
        place.ok(&["verify", &format!("shards-copy/shard-00{shard}")]);
    }
    let copied = esker::ShardedDb::builder(&copy).create(false).open().unwrap();
    assert_eq!((copied.shard_count(), copied.iter().count()), (3, 100));
}

#[test]
fn values_come_back_as_they_were_put() {
    let place = Place::new();
    place.ok(&["put", "data", "greeting", "hello", "--create"]);
    assert_eq!(place.ok(&["get", "data", "greeting"]), b"hello");
    place.ok(&["put", "data", "--escaped", r"\x00key", r"\xff\n\\"]);
    assert_eq!(place.ok(&["get", "data", "-e", r"\x00key"]), b"\xff\n\\");
    place.ok(&["put", "data", "empty", ""]);
    assert_eq!(place.ok(&["get", "data", "empty"]), b"");
    place.ok(&["put", "data", "--", "-dash", "--value"]);
    assert_eq!(place.ok(&["get", "data", "--", "-dash"]), b"--value");
    place.ok(&["delete", "data", "greeting"]);
    place.ok(&["delete", "data", "greeting"]);
    let error = place.fails(1, &["get", "data", "greeting"]);
    assert!(error.contains("no key greeting in keyspace default of data"), "{error}");
}

#[test]
fn keyspaces_are_apart_and_only_made_when_asked_for() {
    let place = Place::new();
    place.ok(&["put", "data", "k", "default", "--create"]);
    let error = place.fails(1, &["put", "data", "k", "v", "--keyspace", "users"]);
    assert!(error.contains("no keyspace users in data; it has: default"), "{error}");
    place.ok(&["put", "data", "k", "user", "--keyspace", "users", "--create"]);
    assert_eq!(place.ok(&["get", "data", "k", "--keyspace", "users"]), b"user");
    assert_eq!(place.ok(&["get", "data", "k"]), b"default");
    for verb in [&["get", "data", "k"][..], &["delete", "data", "k"], &["scan", "data"]] {
        let error = place.fails(1, &[verb, &["--keyspace", "nobody"]].concat());
        assert!(error.contains("default, users"), "{error}");
    }
}

#[test]
fn merges_add_up() {
    let place = Place::new();
    let counters = ["--keyspace", "counters"];
    let with = |args: &[&'static str]| [args, &counters].concat();
    place.ok(&with(&["merge", "data", "k", "5", "--operator", "counter", "--create"]));
    place.ok(&with(&["merge", "data", "k", "-2"]));
    assert_eq!(place.ok(&with(&["get", "data", "k"])), b"3");
    assert_eq!(place.ok(&with(&["get", "data", "k", "--raw"])), 3i64.to_le_bytes());
    place.ok(&with(&["put", "data", "k", "-40"]));
    place.ok(&with(&["merge", "data", "k", "-2"]));
    assert_eq!(place.ok_text(&with(&["scan", "data"])), "k\t-42\n");
    let error = place.fails(1, &with(&["merge", "data", "k", "many"]));
    assert!(error.contains("many is no 64-bit number"), "{error}");
    let error = place.fails(1, &with(&["merge", "data", "k", "1", "--operator", "max"]));
    assert!(error.contains("esker.counter.wrapping"), "{error}");

    let error = place.fails(1, &["merge", "data", "k", "1"]);
    assert!(error.contains("--operator counter"), "{error}");
    for (operator, operands, result) in [
        ("max", ["3", "9", "4"], "9"),
        ("min", ["3", "-9", "4"], "-9"),
        ("append", ["a", "b", "c"], "abc"),
        ("counter-saturating", ["9223372036854775807", "5", "-7"], "9223372036854775800"),
        ("counter-checked", ["1", "1", "1"], "3"),
    ] {
        for operand in operands {
            let args = ["merge", "data", "k", operand, "--keyspace", operator];
            place.ok(&[&args[..], &["--operator", operator, "--create"]].concat());
        }
        assert_eq!(place.ok_text(&["get", "data", "k", "--keyspace", operator]), result);
    }
}

#[test]
fn scans_print_what_they_are_asked_for() {
    let place = Place::new();
    for key in ["user:1", "user:2", "user:3", "visit:1"] {
        place.ok(&["put", "data", key, &key[5..], "--create"]);
    }
    place.ok(&["put", "data", "-e", r"\xfftab\t", r"line\n"]);
    let scan = |args: &[&'static str]| place.ok_text(&[&["scan", "data"][..], args].concat());
    let all = "user:1\t1\nuser:2\t2\nuser:3\t3\nvisit:1\t:1\n\\xfftab\\t\tline\\n\n";
    assert_eq!(scan(&[]), all);
    assert_eq!(scan(&["--prefix", "user:", "--reverse", "--limit", "2"]), "user:3\t3\nuser:2\t2\n");
    assert_eq!(scan(&["--from", "user:2", "--to", "visit:1"]), "user:2\t2\nuser:3\t3\n");
    assert_eq!(scan(&["--from", "user:3", "--limit", "1"]), "user:3\t3\n");
    assert_eq!(scan(&["--to", "user:2", "--reverse"]), "user:1\t1\n");
    assert_eq!(scan(&["--from", "z", "--to", "a"]), "");
    assert_eq!(scan(&["--prefix", "nothing"]), "");
    assert_eq!(scan(&["--limit", "0"]), "");
    assert_eq!(scan(&["-e", "--prefix", r"\xff"]), "\\xfftab\\t\tline\\n\n");
    let raw = place.ok(&["scan", "data", "--raw", "-e", "--prefix", r"\xff"]);
    assert_eq!(raw, b"\xfftab\t\tline\n\n");
    place.fails(2, &["scan", "data", "--prefix", "a", "--from", "b"]);
}

#[test]
fn a_reader_that_goes_away_ends_a_scan_quietly() {
    let place = Place::new();
    let value = "v".repeat(100_000);
    for key in 0..10 {
        place.ok(&["put", "data", &key.to_string(), &value, "--create"]);
    }
    let mut command = place.command(&["scan", "data"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"0\tvvvvvvvv");
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(128 + 13));
}

#[test]
fn stats_verify_and_dump_show_a_database() {
    let place = Place::new();
    place.ok(&["put", "data", "k", "needle", "--create"]);
    assert!(place.ok_text(&["stats", "data"]).len() > 10);
    assert!(place.ok_text(&["verify", "data"]).len() > 10);
    let mut dumped = 0;
    for entry in std::fs::read_dir(place.path().join("data")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() && entry.metadata().unwrap().len() > 0 {
            let path = entry.path();
            dumped += usize::from(!place.ok(&["dump", path.to_str().unwrap()]).is_empty());
        }
    }
    assert!(dumped > 0);
    // Whatever file holds the value: a flipped bit of it is found.
    let mut found = 0;
    for entry in std::fs::read_dir(place.path().join("data")).unwrap().flatten() {
        let whole = std::fs::read(entry.path()).unwrap();
        let Some(at) = whole.windows(6).position(|bytes| bytes == b"needle") else { continue };
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(entry.path(), bytes).unwrap();
        let output = place.run(&["verify", "data"]);
        found += usize::from(output.status.code() == Some(1) && !output.stderr.is_empty());
        std::fs::write(entry.path(), whole).unwrap();
    }
    assert!(found > 0);
}

#[test]
fn what_is_no_database_is_refused_in_one_line() {
    let place = Place::new();
    std::fs::create_dir(place.path().join("foreign")).unwrap();
    std::fs::write(place.path().join("foreign/important"), "mine").unwrap();
    std::fs::create_dir(place.path().join("empty")).unwrap();
    std::fs::write(place.path().join("file"), "mine").unwrap();
    for dir in ["missing", "foreign", "empty", "file"] {
        for args in [
            &["get", dir, "k"][..],
            &["put", dir, "k", "v"],
            &["delete", dir, "k"],
            &["merge", dir, "k", "1", "--operator", "counter"],
            &["scan", dir],
            &["stats", dir],
            &["verify", dir],
        ] {
            let error = place.fails(1, args);
            assert!(error.contains(dir), "{args:?}: {error}");
            let hint = match dir {
                "missing" => "makes a database",
                "file" => "give the directory",
                _ => "check the path",
            };
            assert!(error.contains(hint), "{args:?}: {error}");
        }
    }
    let error = place.fails(1, &["get", "missing", "k"]);
    assert!(error.contains("no such directory") && error.contains("--create"), "{error}");
    for args in [&["put", "foreign", "k", "v", "--create"][..], &["bench", "--db", "foreign"]] {
        let error = place.fails(1, args);
        assert!(error.contains("foreign"), "{error}");
    }
    assert!(place.fails(1, &["dump", "missing"]).contains("missing"));
    assert!(place.fails(1, &["dump", "empty"]).contains("is a directory"));
    assert!(!place.path().join("missing").exists());
    assert_eq!(std::fs::read_dir(place.path().join("empty")).unwrap().count(), 0);
    let names = std::fs::read_dir(place.path().join("foreign")).unwrap();
    assert_eq!(names.flatten().map(|entry| entry.file_name()).collect::<Vec<_>>(), ["important"]);
}

#[test]
fn a_database_that_is_open_elsewhere_is_locked() {
    let place = Place::new();
    let db = esker::Db::open(place.path().join("data")).unwrap();
    let error = place.fails(1, &["get", "data", "k"]);
    assert!(error.contains("open elsewhere"), "{error}");
    drop(db);
    assert!(place.fails(1, &["get", "data", "k"]).contains("no key k"));
}

#[test]
fn wrong_arguments_are_answered_in_one_line() {
    let place = Place::new();
    for (args, hint) in [
        (&["frobnicate"][..], "unrecognized subcommand 'frobnicate'"),
        (&["get"], "Usage: esker get"),
        (&["get", "data", "k", "--nonsense"], "--nonsense"),
        (&["scan", "data", "--limit", "x"], "--limit"),
        (&["merge", "data", "k", "1", "--operator", "times"], "counter"),
        (&["put", "data", "k", "-e", r"\q", "--create"], "after \\"),
        (&["bench", "fillrandm"], "fillrandom"),
        (&["bench", "--records", "0"], "at least 1"),
        (&["bench", "--memory", "12X"], "256M"),
        (&["bench", "--duration", "0"], "above 0"),
        (&["bench", "--durability", "none"], "process"),
        (&["bench", "--key-size", "7"], "8.."),
    ] {
        let status = if args.contains(&r"\q") { 1 } else { 2 };
        let error = place.fails(status, args);
        assert!(error.contains(hint), "{args:?}: {error}");
    }
    let error = place.fails(1, &["bench", "--records", "1G", "--key-size", "8"]);
    assert!(error.contains("--key-size"), "{error}");
    let error = place.fails(1, &["bench", "--records", "9000M", "--value-size", "1M"]);
    assert!(error.contains("fewer --records"), "{error}");
    assert_eq!(place.run(&[]).status.code(), Some(2));
    for args in [&["--help"][..], &["bench", "--help"], &["bench", "-h"], &["put", "--help"]] {
        assert!(place.ok_text(args).contains("esker"), "{args:?}");
    }
    assert!(place.ok_text(&["--version"]).starts_with("esker "));
}

const WORKLOADS: [&str; 17] = [
    "fillseq",
    "fillbatch",
    "fillsync",
    "fillrandom",
    "overwrite",
    "readrandom",
    "readmissing",
    "seekrandom",
    "readseq",
    "readreverse",
    "readwhilewriting",
    "mergerandom",
    "deleterandom",
    "idempotent",
    "batching",
    "coalescing",
    "ingest",
];

/// The workloads that open databases, which come after the others.
const OPENINGS: [&str; 3] = ["reopen", "recovery", "overload"];

fn objects(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn check_object(object: &Value, name: &str, threads: u64) {
    assert_eq!(object["workload"], name);
    assert_eq!(object["threads"], threads, "{object}");
    let number = |field: &str| object[field].as_f64().unwrap_or_else(|| panic!("{field} {object}"));
    assert!(number("ops") > 0.0 && number("ops_per_s") > 0.0, "{object}");
    assert!(number("settle_s") >= 0.0, "{object}");
    let latencies = ["p50_us", "p99_us", "p999_us", "max_us"].map(number);
    assert!(latencies.is_sorted() && latencies[3] > 0.0, "{object}");
    assert!(number("space_amplification") > 0.0, "{object}");
    let reads = ["readrandom", "readmissing", "seekrandom", "readseq", "readreverse"];
    match reads.contains(&name) {
        true => assert!(object["write_amplification"].is_null(), "{object}"),
        false => assert!(number("write_amplification") > 0.0, "{object}"),
    }
}

#[test]
fn bench_runs_every_workload_and_prints_json() {
    let place = Place::new();
    let objects = objects(&place.ok_text(&["bench", "--records", "2000", "--json"]));
    assert_eq!(objects.len(), WORKLOADS.len() + OPENINGS.len());
    for (object, name) in objects[WORKLOADS.len()..].iter().zip(OPENINGS) {
        assert_eq!(object["workload"], name);
        assert!(object["ops_per_s"].as_f64().unwrap() > 0.0, "{object}");
    }
    for (object, name) in objects.iter().zip(WORKLOADS) {
        check_object(object, name, 1);
        let all = !["fillsync", "readseq", "readreverse"].contains(&name);
        assert!(!all || object["ops"] == 2000, "{object}");
    }
    // 2000 draws of 2000 records twice over leave 86.5 % of them there.
    let rows = objects[8]["ops"].as_u64().unwrap();
    assert!((1650..1800).contains(&rows), "{rows}");
    assert_eq!(objects[9]["ops"], rows);
    assert_eq!(objects[6]["found"], 0);
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "nothing stays");
}

#[test]
fn bench_shares_the_work_among_threads() {
    let place = Place::new();
    let args = ["bench", "--records", "1999", "--threads", "3", "--batch", "7", "--json"];
    let more = ["--value-size", "0", "--key-size", "40", "--compression", "none", "--seed", "7"];
    let objects = objects(&place.ok_text(&[&args[..], &more].concat()));
    for (object, name) in objects.iter().zip(WORKLOADS) {
        check_object(object, name, 3);
    }
    assert_eq!(objects[1]["ops"], 1999);
}

#[test]
fn bench_ends_after_a_duration() {
    let place = Place::new();
    let args = ["bench", "fillrandom", "readwhilewriting", "readseq", "--records", "500"];
    let more = ["--duration", "0.05", "--json", "--durability", "disk", "--memory", "8M"];
    let objects = objects(&place.ok_text(&[&args[..], &more].concat()));
    assert!(objects[0]["seconds"].as_f64().unwrap() >= 0.05, "{}", objects[0]);
    assert!(objects[0]["fdatasync_us"].as_f64().unwrap() > 0.0, "{}", objects[0]);
    assert!(objects[1]["writer_ops_per_s"].as_f64().unwrap() > 0.0, "{}", objects[1]);
    // How many were written by then depends on how fast this disk syncs.
    assert!(objects[2]["ops"].as_u64().unwrap() > 0, "{}", objects[2]);
}

#[test]
fn bench_prints_a_table_and_draws_a_plot() {
    let place = Place::new();
    let args = ["bench", "fillrandom", "readrandom", "--records", "2000", "--plot", "plot.svg"];
    let text = place.ok_text(&args);
    for part in
        ["cores (", "2,000 records of 16 + 100 bytes", "durability process", "\nfillrandom "]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.contains("\nreadrandom ") && text.contains("% of the keys were there"), "{text}");
    let plot = std::fs::read_to_string(place.path().join("plot.svg")).unwrap();
    assert!(plot.starts_with("<svg") && plot.contains("fillrandom"));
}

#[test]
fn bench_draws_what_becomes_of_too_much() {
    let place = Place::new();
    let args = ["bench", "overload", "--duration", "0.4", "--threads", "2", "--memory", "2M"];
    let more = ["--json", "--records", "5000", "--plot", "plot.svg"];
    let object = &objects(&place.ok_text(&[&args[..], &more].concat()))[0];
    assert!(object["sustained_ops_per_s"].as_f64().unwrap() > 0.0, "{object}");
    assert!(object["offered_ops"].as_u64() >= object["ops"].as_u64(), "{object}");
    assert!(object["retries"].as_u64() >= object["retries_let_in"].as_u64(), "{object}");
    let plot = std::fs::read_to_string(place.path().join("plot.svg")).unwrap();
    assert!(["offered", "accepted", "sustained", "longest wait"].iter().all(|w| plot.contains(w)));
}

#[test]
fn bench_splits_a_database_under_a_skewed_load() {
    let place = Place::new();
    let args = ["bench", "splitting", "--duration", "4", "--records", "5000", "--json"];
    let objects = objects(&place.ok_text(&[&args[..], &["--plot", "plot.svg"]].concat()));
    let phases: Vec<_> = objects.iter().map(|object| object["phase"].as_str().unwrap()).collect();
    assert!(phases.starts_with(&["before", "during"]), "{phases:?}");
    for object in &objects {
        assert!(object["puts"].as_u64() > Some(0), "{object}");
        assert!((0.25..=1.0).contains(&object["heaviest_share"].as_f64().unwrap()), "{object}");
    }
    let moved: u64 = objects.iter().map(|object| object["slots_moved"].as_u64().unwrap()).sum();
    assert!(moved > 0, "{objects:?}");
    let plot = std::fs::read_to_string(place.path().join("plot.svg")).unwrap();
    assert!(["all shards", "shard 0", "shard 3"].iter().all(|name| plot.contains(name)));
}

#[test]
fn bench_measures_shards_writers_and_batches() {
    let place = Place::new();
    let args = ["bench", "sharding", "--duration", "0.03", "--records", "5000", "--json"];
    let objects = objects(&place.ok_text(&args));
    // Of each durability: four numbers of shards by four of writers, and four of batches.
    assert_eq!(objects.len(), 2 * (16 + 4));
    let batches = objects.iter().filter(|object| object["batch_shards"].is_u64());
    assert_eq!(batches.clone().count(), 8);
    assert!(batches.clone().all(|object| object["batches"].as_u64() > Some(0)), "{objects:?}");
}

/// Ctrl-C ends a bench and leaves nothing behind.
#[test]
fn bench_cleans_up_when_interrupted() {
    use rustix::process::{Pid, Signal, kill_process};
    let place = Place::new();
    let mut command =
        place.command(&["bench", "fillrandom", "--records", "1000", "--duration", "600"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // The introduction ends with the table's head: the handler and the directory are there.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("workload ")));
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn bench_keeps_and_reuses_a_given_directory() {
    let place = Place::new();
    let bench = |workload: &'static str| {
        ["bench", workload, "--records", "1000", "--db", "kept", "--json"].to_vec()
    };
    let first = place.run(&bench("readrandom"));
    assert!(first.status.success());
    let note = String::from_utf8(first.stderr).unwrap();
    assert!(note.contains("filling at random first"), "{note}");
    place.ok(&bench("mergerandom"));
    place.ok(&bench("mergerandom"));
    let rows = objects(&place.ok_text(&bench("readseq")))[0]["ops"].as_u64().unwrap();
    assert!((590..680).contains(&rows), "{rows}");
    place.ok(&bench("fillseq"));
    assert_eq!(objects(&place.ok_text(&bench("readreverse")))[0]["ops"], 1000);
    assert_eq!(place.ok(&["get", "kept", "0000000000000999"]).len(), 100);

    let other = ["bench", "readseq", "--records", "1001", "--db", "kept"];
    assert!(place.fails(1, &other).contains("--records 1000 --key-size 16 --value-size 100"));
    place.ok(&["delete", "kept", "0000000000000500"]);
    place.ok(&bench("readseq"));
    place.ok(&["put", "mine", "k", "v", "--create"]);
    assert!(place.fails(1, &["bench", "--db", "mine"]).contains("give a new directory"));
    assert_eq!(place.ok(&["get", "mine", "k"]), b"v");
}
