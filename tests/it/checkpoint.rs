//! Checkpoints: of one moment while everything goes on, whole or absent after a crash at any call, and
//! without a trace in the database that they were made of. The model's sequences make them too.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use esker::fs::Fs;
use esker::fs::fault::{Fault, FaultFs, FaultKind};
use esker::fs::intercept::Select;
use esker::fs::sabotage::SabotageFs;
use esker::fs::sim::{Image, Phase, SimFs, Survival};
use esker::runtime::Runtime;
use esker::{Counter, Db, ErrorKind, KeyspaceOptions, Options, ShardedDb, ShardedKeyspace};

use crate::score::{Score, Scored};

const COPY: &str = "/copy";
const UNFINISHED: &str = "/copy.checkpoint.tmp";

fn single(fs: Arc<dyn Fs>, dir: &str, create: bool) -> esker::Result<Db> {
    let mut options = Options::tiny();
    options.create = create;
    Db::open_on(fs, Runtime::threads(), dir, options)
}

fn sharded(fs: Arc<dyn Fs>, dir: &str, create: bool) -> esker::Result<ShardedDb> {
    let builder = ShardedDb::builder(dir).options(Options::tiny()).shards(3).slots(32);
    builder.create(create).open_on(fs, Runtime::threads())
}

fn counters(db: &ShardedDb) -> ShardedKeyspace {
    db.keyspace("counters", KeyspaceOptions::new().merge(Counter::default())).unwrap()
}

type Contents = BTreeMap<String, String>;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn try_entries(
    found: impl Iterator<Item = esker::Result<esker::Entry>>,
) -> esker::Result<Contents> {
    found.map(|entry| entry.map(|(key, value)| (text(&key), text(&value)))).collect()
}

fn entries(found: impl Iterator<Item = esker::Result<esker::Entry>>) -> Contents {
    try_entries(found).unwrap()
}

/// Everything in the database of this kind in `dir`; `None` if there is none.
fn found(fs: &SimFs, dir: &str, shards: bool) -> Result<Option<Contents>, String> {
    let fs: Arc<dyn Fs> = Arc::new(fs.clone());
    let opened = match shards {
        true => sharded(fs, dir, false).and_then(|db| try_entries(db.iter())),
        false => single(fs, dir, false).and_then(|db| try_entries(db.iter())),
    };
    match opened {
        Ok(found) => Ok(Some(found)),
        Err(error) if *error.kind() == ErrorKind::InvalidArgument => Ok(None),
        Err(error) => Err(format!("{dir}: {error}")),
    }
}

/// A database with tables, memtables and, of shards, slots on their way; and what it has.
struct Source {
    fs: SimFs,
    contents: Contents,
    shards: bool,
}

impl Source {
    fn new(shards: bool) -> Source {
        let fs = SimFs::new();
        let shared: Arc<dyn Fs> = Arc::new(fs.clone());
        let value = |n: u32| format!("{n}-{}", "x".repeat(n as usize % 40));
        let contents = if shards {
            let db = sharded(shared, "/db", true).unwrap();
            for n in 0..60 {
                db.put(format!("k{:02}", n % 37), value(n)).unwrap();
            }
            db.flush().unwrap();
            // Slowly, so that it is under way.
            db.set_move_rate(Some(2000));
            db.split(0).unwrap();
            let mut batch = db.batch();
            (60..72).for_each(|n| _ = batch.put(&db, format!("k{:02}", n % 37), value(n)));
            batch.commit().unwrap();
            db.sync().unwrap();
            entries(db.iter())
        } else {
            let db = single(shared, "/db", true).unwrap();
            for n in 0..60 {
                db.put(format!("k{:02}", n % 37), value(n)).unwrap();
            }
            db.flush().unwrap();
            (60..72).for_each(|n| db.put(format!("k{:02}", n % 37), value(n)).unwrap());
            db.sync().unwrap();
            entries(db.iter())
        };
        Source { fs, contents, shards }
    }

    /// Makes a checkpoint of what is on this disk, which is opened for it.
    fn checkpoint_on(&self, fs: &Arc<dyn Fs>) -> esker::Result<()> {
        match self.shards {
            true => sharded(fs.clone(), "/db", false)?.checkpoint(COPY),
            false => single(fs.clone(), "/db", false)?.checkpoint(COPY),
        }
    }
}

#[test]
fn a_checkpoint_opens_and_goes_its_own_way() {
    let fs = SimFs::new();
    let shared: Arc<dyn Fs> = Arc::new(fs.clone());
    let db = sharded(shared.clone(), "/db", true).unwrap();
    let counts = counters(&db);
    for n in 0..200 {
        db.put(format!("k{n}"), "before").unwrap();
        counts.merge(format!("c{}", n % 7), 1).unwrap();
    }
    db.checkpoint(COPY).unwrap();
    for n in 100..300 {
        db.put(format!("k{n}"), "after").unwrap();
    }
    let copy = sharded(shared, COPY, false).unwrap();
    assert_eq!(copy.keyspace_names(), db.keyspace_names());
    let before = entries(copy.iter());
    assert!(before.len() == 200 && before.values().all(|value| value == "before"));
    copy.put("k0", "in the copy").unwrap();
    copy.split(0).unwrap();
    copy.wait_for_moves().unwrap();
    let copied = counters(&copy);
    (0..7).for_each(|c| copied.merge(format!("c{c}"), 1000).unwrap());
    copy.close().unwrap();
    assert_eq!(db.shard_count(), 3);
    assert_eq!(&*db.get("k0").unwrap().unwrap(), b"before");
    assert_eq!(Counter::decode(&counts.get("c0").unwrap().unwrap()), Some(29));
    assert_eq!(entries(db.iter()).len(), 300);
    // Each of the two can be opened and compacted without the other's tables.
    db.compact_range::<&str>(..).unwrap();
    db.close().unwrap();
    let copy = sharded(Arc::new(fs.clone()), COPY, false).unwrap();
    let value = counters(&copy).get("c0").unwrap().unwrap();
    assert_eq!(Counter::decode(&value), Some(1029));
    copy.compact_range::<&str>(..).unwrap();
    // A shard of one is no shard of the other.
    drop(copy);
    let mark = fs.contents(&Path::new(COPY).join("shard-001/SHARD")).unwrap();
    fs.set_contents(Path::new("/db/shard-001/SHARD"), &mark).unwrap();
    let error = sharded(Arc::new(fs.clone()), "/db", false).unwrap_err();
    assert!(error.is_corruption(), "{error}");
}

/// Threads that write numbered steps, some over all shards, while slots move and checkpoints are made:
/// each checkpoint has of every thread some first steps, whole, at least those acknowledged before.
#[test]
fn checkpoints_under_writers_and_moves_are_of_one_moment() {
    const THREADS: usize = 3;
    let fs = SimFs::new();
    let shared: Arc<dyn Fs> = Arc::new(fs.clone());
    let db = sharded(shared.clone(), "/db", true).unwrap();
    let counts = counters(&db);
    let (stop, steps) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; THREADS]);
    std::thread::scope(|scope| {
        for (thread, done) in steps.iter().enumerate() {
            let (db, counts, stop) = (&db, &counts, &stop);
            scope.spawn(move || {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let mut batch = db.batch();
                    for part in 0..3 {
                        batch.put(db, format!("{thread}-{part}-{:03}", n % 300), n.to_string());
                    }
                    batch.put(db, format!("{thread}-steps"), (n + 1).to_string());
                    batch.merge(counts, format!("{thread}"), 1);
                    batch.commit().unwrap();
                    done.store(n + 1, Ordering::SeqCst);
                }
            });
        }
        for round in 0..6 {
            match round % 3 {
                0 => drop(db.split(round % db.shard_count()).unwrap()),
                1 => db.rebalance().unwrap(),
                _ => {}
            }
            let promised: Vec<u64> =
                steps.iter().map(|steps| steps.load(Ordering::SeqCst)).collect();
            let dir = format!("/copy-{round}");
            db.checkpoint(&dir).unwrap();
            let copy = sharded(shared.clone(), &dir, false).unwrap();
            for pass in 0..2 {
                let values = entries(copy.iter());
                for (thread, promised) in promised.iter().enumerate() {
                    let steps = values.get(&format!("{thread}-steps")).map_or("0", |value| value);
                    let steps: u64 = steps.parse().unwrap();
                    assert!(steps >= *promised, "round {round}: {steps} of {promised} steps");
                    for n in steps.saturating_sub(300)..steps {
                        for part in 0..3 {
                            let value = &values[&format!("{thread}-{part}-{:03}", n % 300)];
                            assert_eq!(*value, n.to_string(), "round {round}, pass {pass}");
                        }
                    }
                    let count = counters(&copy).get(format!("{thread}")).unwrap();
                    let count = count.map_or(0, |value| Counter::decode(&value).unwrap());
                    assert_eq!(count as u64, steps, "round {round}, pass {pass}");
                }
                // What was on its way when the checkpoint was made goes on in it.
                copy.wait_for_moves().unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Tables that compactions make superfluous while they are linked stay until they are.
#[test]
fn no_table_goes_while_it_is_linked() {
    let fs = SimFs::new();
    let db = single(Arc::new(fs.clone()), "/db", true).unwrap();
    for n in 0..300 {
        db.put(format!("k{:03}", n % 90), "x".repeat(30)).unwrap();
    }
    db.flush().unwrap();
    db.settle().unwrap();
    let before = entries(db.iter());
    let tables = |fs: &SimFs, dir: &str| {
        let mut names = fs.list(Path::new(dir)).unwrap();
        names.retain(|name| name.ends_with(".table"));
        names.sort();
        names
    };
    let at_first = tables(&fs, "/db");
    assert!(at_first.len() > 1);
    let (hooked, once) = (db.clone(), Arc::new(AtomicBool::new(false)));
    fs.on_call(Arc::new(move |_, phase, call| {
        if call.name == "link" && phase == Phase::Before && !once.swap(true, Ordering::SeqCst) {
            (0..90).for_each(|n| hooked.put(format!("k{n:03}"), "new").unwrap());
            hooked.compact_range::<&str>(..).unwrap();
            hooked.settle().unwrap();
        }
    }));
    db.checkpoint(COPY).unwrap();
    fs.clear_hook();
    let kept = tables(&fs, COPY);
    assert!(at_first.iter().all(|name| kept.contains(name)), "{at_first:?}, {kept:?}");
    db.settle().unwrap();
    let now = tables(&fs, "/db");
    assert!(at_first.iter().all(|name| !now.contains(name)), "{at_first:?}, {now:?}");
    assert!(entries(db.iter()).values().all(|value| value == "new"));
    assert_eq!(found(&fs, COPY, false).unwrap(), Some(before));
}

struct Moment {
    label: String,
    image: Image,
    made: bool,
}

/// What was tried.
#[derive(Debug, Default)]
struct Counts {
    moments: usize,
    cases: usize,
    complete: usize,
    again: usize,
}

/// After a crash at any call of a checkpoint the database has everything, and the checkpoint is
/// complete or not there; and it can be made again. The first violation, where the disk does to calls
/// what `wrap` says.
fn crash_everywhere(
    shards: bool,
    wrap: impl Fn(SimFs) -> Arc<dyn Fs>,
) -> (Counts, Result<(), String>) {
    let source = Source::new(shards);
    let moments = Arc::new(Mutex::new(Vec::new()));
    let sink = moments.clone();
    source.fs.on_call(Arc::new(move |disk, phase, call| {
        let is_about_the_copy = |path: &Path| path.to_string_lossy().starts_with(COPY);
        let concerned = is_about_the_copy(call.path)
            || call.to.is_some_and(is_about_the_copy)
            || call.path == Path::new("/");
        if phase != Phase::Before && call.changes() && concerned {
            let (label, image) = (call.to_string(), disk.snapshot());
            sink.lock().unwrap().push(Moment { label, image, made: false });
        }
    }));
    source.checkpoint_on(&wrap(source.fs.clone())).unwrap();
    source.fs.clear_hook();
    let (label, image) = ("the end".to_string(), source.fs.snapshot());
    let mut moments = std::mem::take(&mut *moments.lock().unwrap());
    moments.push(Moment { label, image, made: true });
    let mut counts = Counts { moments: moments.len(), ..Counts::default() };
    // Opening several engines takes a while: a sample of them.
    let (every, exhaustive) = if shards { (4, 2) } else { (1, 3) };
    let last = moments.len() - 1;
    for (index, moment) in moments.iter().enumerate() {
        if index % every != 0 && index != last {
            continue;
        }
        let survivals = moment.image.survivals(exhaustive, 1, index as u64);
        for end in [None].into_iter().chain(survivals.iter().map(Some)) {
            counts.cases += 1;
            if let Err(text) = crash(&source, moment, end, &mut counts) {
                let text = format!("moment {index}, after {}, {end:?}: {text}", moment.label);
                return (counts, Err(text));
            }
        }
    }
    println!("{counts:?}");
    (counts, Ok(()))
}

fn crash(
    source: &Source,
    Moment { image, made, .. }: &Moment,
    end: Option<&Survival>,
    counts: &mut Counts,
) -> Result<(), String> {
    let (shards, expected) = (source.shards, &source.contents);
    let disk = end.map_or_else(|| image.kill(), |survival| image.crash(survival));
    let is_all = |dir: &str| match found(&disk, dir, shards)? {
        Some(found) if found == *expected => Ok(true),
        Some(found) => Err(format!("{dir} has {found:?}, not {expected:?}")),
        None => Ok(false),
    };
    let is_there = is_all(COPY)?;
    counts.complete += usize::from(is_there);
    if *made && !is_there {
        return Err("the checkpoint is lost".to_string());
    }
    // Under its other name it is no database, as an open says, or a complete one.
    if let Ok(Some(found)) = found(&disk, UNFINISHED, shards)
        && found != *expected
    {
        return Err(format!("{UNFINISHED} has {found:?}, not {expected:?}"));
    }
    if !is_all("/db")? {
        return Err("the database is lost".to_string());
    }
    if !is_there && counts.cases.is_multiple_of(5) {
        counts.again += 1;
        let again = source.checkpoint_on(&(Arc::new(disk.clone()) as Arc<dyn Fs>));
        again.map_err(|error| format!("again: {error}"))?;
        if !is_all(COPY)? || disk.list(Path::new(UNFINISHED)).is_ok() {
            return Err("it was not made again".to_string());
        }
    }
    Ok(())
}

#[test]
fn a_crash_leaves_a_whole_checkpoint_or_none() {
    let (counts, outcome) = crash_everywhere(false, |disk| Arc::new(disk));
    outcome.unwrap();
    assert!(counts.moments > 30 && counts.cases > 60, "{counts:?}");
    assert!(counts.complete > 1 && counts.again > 5, "{counts:?}");
}

#[test]
fn a_crash_leaves_a_whole_checkpoint_of_shards_or_none() {
    let (counts, outcome) = crash_everywhere(true, |disk| Arc::new(disk));
    outcome.unwrap();
    assert!(counts.moments > 30 && counts.cases > 60, "{counts:?}");
    assert!(counts.complete > 1 && counts.again > 5, "{counts:?}");
}

/// The part of the score for the places that only checkpoints come to.
#[test]
fn every_sync_and_rename_of_a_checkpoint_that_is_left_out_or_late_is_noticed() {
    let mut score = Score::new(&[]);
    score.leave_out(Scored::Checkpoint, |site, call, damage| {
        let seen = Cell::new(None);
        let wrap = |disk: SimFs| {
            let on = Select::all().site(site).name(call);
            let sabotage = SabotageFs::all(Arc::new(disk), damage, on);
            seen.set(Some(sabotage.clone()));
            // Tables are copied where they cannot be linked.
            let fs = FaultFs::new(Arc::new(sabotage));
            fs.arm(Fault::new(FaultKind::Io).on(Select::all().name("link")).until_healed());
            Arc::new(fs) as Arc<dyn Fs>
        };
        let (_, outcome) = crash_everywhere(false, wrap);
        (seen.take().expect("it ran").damaged(), outcome.err())
    });
    score.check();
}

/// Every call fails once: the error has a kind, nothing is left, the database goes on, and the next
/// attempt succeeds.
#[test]
fn a_checkpoint_that_fails_leaves_nothing() {
    for shards in [false, true] {
        let source = Source::new(shards);
        let mut failed = 0;
        let select = || Select::all().within("copy");
        let counted = Arc::new(AtomicU64::new(0));
        let (disk, count) = (source.fs.snapshot().kill(), counted.clone());
        disk.on_call(Arc::new(move |_, phase, call| {
            let is_about_the_copy = call.path.starts_with(UNFINISHED);
            count.fetch_add(
                u64::from(phase == Phase::Before && is_about_the_copy),
                Ordering::Relaxed,
            );
        }));
        source.checkpoint_on(&(Arc::new(disk.clone()) as Arc<dyn Fs>)).unwrap();
        disk.clear_hook();
        let calls = counted.load(Ordering::Relaxed) + 5;
        for kind in
            [FaultKind::Io, FaultKind::NoSpace, FaultKind::FailedSync, FaultKind::ShortWrite]
        {
            for call in 0..calls {
                let disk = source.fs.snapshot().kill();
                let fs = FaultFs::over_sim(disk.clone());
                fs.arm(Fault::new(kind).on(select()).nth(call));
                let made = source.checkpoint_on(&(Arc::new(fs.clone()) as Arc<dyn Fs>));
                let what = format!("{kind:?} at call {call}");
                if fs.fired() == 0 {
                    made.expect(&what);
                    continue;
                }
                match made {
                    Ok(()) => {
                        assert_eq!(
                            found(&disk, COPY, shards).unwrap().as_ref(),
                            Some(&source.contents)
                        );
                    }
                    Err(error) => {
                        failed += 1;
                        let kind = error.kind();
                        let typed = matches!(kind, ErrorKind::Io(_) | ErrorKind::NoSpace);
                        assert!(typed, "{what}: {error}");
                        // The rename may have been done by then.
                        if let Some(copied) = found(&disk, COPY, shards).unwrap() {
                            assert_eq!(copied, source.contents, "{what}");
                            continue;
                        }
                        assert!(disk.list(Path::new(COPY)).is_err(), "{what}");
                        let shared: Arc<dyn Fs> = Arc::new(disk.clone());
                        source.checkpoint_on(&shared).expect(&what);
                    }
                }
                assert_eq!(
                    found(&disk, "/db", shards).unwrap().as_ref(),
                    Some(&source.contents),
                    "{what}"
                );
            }
        }
        assert!(failed > 20, "{failed}");
    }
}

#[test]
fn tables_that_cannot_be_linked_are_copied() {
    for shards in [false, true] {
        let source = Source::new(shards);
        let fs = FaultFs::over_sim(source.fs.clone());
        fs.arm(Fault::new(FaultKind::Io).on(Select::all().name("link")).until_healed());
        source.checkpoint_on(&(Arc::new(fs.clone()) as Arc<dyn Fs>)).unwrap();
        assert!(fs.fired() > 0);
        let after = source.fs.snapshot().crash(&Survival::NothingUnsynced);
        assert_eq!(found(&after, COPY, shards).unwrap().as_ref(), Some(&source.contents));
    }
}

#[test]
fn what_is_there_is_never_overwritten() {
    let fs = SimFs::new();
    let db = single(Arc::new(fs.clone()), "/db", true).unwrap();
    db.put("a", "b").unwrap();
    for (dir, kind) in [
        ("/db", ErrorKind::InvalidArgument),
        ("/", ErrorKind::InvalidArgument),
        ("/db/..", ErrorKind::InvalidArgument),
        ("/db/CURRENT", ErrorKind::InvalidArgument),
    ] {
        let error = db.checkpoint(dir).unwrap_err();
        assert_eq!(error.kind(), &kind, "{dir}: {error}");
    }
    // Something else's directory under the name that an attempt would take.
    fs.create_dir_all(Path::new(UNFINISHED)).unwrap();
    fs.create(&Path::new(UNFINISHED).join("letter")).unwrap();
    assert_eq!(db.checkpoint(COPY).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    assert!(fs.list(Path::new(UNFINISHED)).unwrap().contains(&"letter".to_string()));
    fs.remove(&Path::new(UNFINISHED).join("letter")).unwrap();
    let lock = fs.lock(&Path::new(UNFINISHED).join("LOCK")).unwrap();
    assert_eq!(db.checkpoint(COPY).unwrap_err().kind(), &ErrorKind::Locked);
    drop(lock);
    db.checkpoint(COPY).unwrap();
    assert_eq!(db.checkpoint(COPY).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    let other = db.clone();
    db.close().unwrap();
    assert_eq!(other.checkpoint("/other").unwrap_err().kind(), &ErrorKind::Closed);
    assert_eq!(found(&fs, COPY, false).unwrap().unwrap().len(), 1);
}
