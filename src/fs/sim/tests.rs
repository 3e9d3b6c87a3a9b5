//! Tests of the simulated file system: its rules one by one, then random programs against a model
//! of what must be durable.

use super::*;

fn path(name: &str) -> PathBuf {
    Path::new("/db").join(name)
}

/// A durable directory "/db".
fn disk() -> SimFs {
    let fs = SimFs::new();
    fs.create_dir_all(Path::new("/db")).unwrap();
    fs
}

fn put(fs: &SimFs, name: &str, text: &str) -> Arc<dyn File> {
    let file = fs.create(&path(name)).unwrap();
    file.write_at(0, text.as_bytes()).unwrap();
    file
}

fn durable(fs: &SimFs, name: &str, text: &str) -> Arc<dyn File> {
    let file = put(fs, name, text);
    file.sync().unwrap();
    fs.sync_dir(Path::new("/db")).unwrap();
    file
}

/// `a=text b=` for all files of "/db".
fn show(fs: &SimFs) -> String {
    let names = fs.list(Path::new("/db")).unwrap();
    let shown = names.iter().map(|name| {
        let bytes = fs.contents(&path(name)).unwrap();
        format!("{name}={}", bytes.escape_ascii())
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// What each of the whole survivals leaves.
fn table(fs: &SimFs) -> [String; 5] {
    let image = fs.snapshot();
    let all = [
        Survival::NothingUnsynced,
        Survival::Everything,
        Survival::DirectoryOnly,
        Survival::DataOnly,
        Survival::LastDirectoryOperationOnly,
    ];
    all.map(|survival| show(&image.crash(&survival)))
}

#[test]
fn a_new_file_survives_as_its_syncs_say() {
    let fs = disk();
    let file = put(&fs, "a", "x");
    assert_eq!(table(&fs), ["", "a=x", "a=", "", "a="], "nothing synced");
    file.sync().unwrap();
    assert_eq!(table(&fs), ["", "a=x", "a=x", "", "a=x"], "a file's sync does not keep its name");
    fs.sync_dir(Path::new("/db")).unwrap();
    assert_eq!(table(&fs), ["a=x"; 5]);

    let fs = disk();
    put(&fs, "a", "x");
    fs.sync_dir(Path::new("/db")).unwrap();
    assert_eq!(table(&fs), ["a=", "a=x", "a=", "a=x", "a="], "nor a directory's the bytes");
}

#[test]
fn a_rename_is_one_effect() {
    let fs = disk();
    durable(&fs, "a", "old");
    durable(&fs, "tmp", "new");
    fs.rename(&path("tmp"), &path("a")).unwrap();
    let [before, after] = ["a=old tmp=new", "a=new"];
    assert_eq!(table(&fs), [before, after, after, before, after]);
    assert_eq!(fs.snapshot().pending_effects(), 1);
    fs.sync_dir(Path::new("/db")).unwrap();
    assert_eq!(table(&fs), [after; 5]);
}

#[test]
fn an_unsynced_remove_may_be_undone_and_outlive_earlier_effects() {
    let fs = disk();
    durable(&fs, "a", "x");
    put(&fs, "b", "y");
    fs.remove(&path("a")).unwrap();
    assert_eq!(table(&fs), ["a=x", "b=y", "b=", "a=x", ""]);
    assert_eq!(show(&fs), "b=y");
    assert_eq!(fs.snapshot().describe_pending(), ["link b", "b: write 0+1", "unlink a"]);
}

#[test]
fn effects_of_one_name_apply_in_order() {
    let fs = disk();
    put(&fs, "a", "1");
    fs.remove(&path("a")).unwrap();
    put(&fs, "a", "2");
    let image = fs.snapshot();
    // link a, write 1, unlink a, link a, write 2
    let of = |mask| show(&image.crash(&Survival::Subset { mask }));
    assert_eq!(of(0b00011), "a=1");
    assert_eq!(of(0b00111), "");
    assert_eq!(of(0b11111), "a=2");
    assert_eq!(of(0b11000), "a=2");
    assert_eq!(of(0b01001), "a=");
    assert_eq!(of(0b00100), "");
}

#[test]
fn a_log_has_its_length_and_its_stores_one_by_one() {
    let fs = disk();
    let log = fs.create_log(&path("l"), 4).unwrap();
    fs.sync_dir(Path::new("/db")).unwrap();
    assert_eq!(table(&fs)[0], "l=");
    assert_eq!(table(&fs)[1], "l=\\x00\\x00\\x00\\x00");
    log.sync().unwrap();
    log.store(0, b"a").unwrap();
    log.store(2, b"c").unwrap();
    let image = fs.snapshot();
    assert_eq!(image.pending_effects(), 2);
    let of = |survival| show(&image.crash(&survival));
    assert_eq!(of(Survival::Only { kept: 1 }), "l=\\x00\\x00c\\x00", "a hole");
    assert_eq!(of(Survival::AllBut { dropped: 1 }), "l=a\\x00\\x00\\x00");
    assert_eq!(log.bytes(), 4);
}

#[test]
fn a_failed_sync_forgets_for_ever_what_is_still_read() {
    let fs = disk();
    let file = durable(&fs, "a", "____");
    file.write_at(0, b"1").unwrap();
    file.write_at(1, b"2").unwrap();
    fs.fail_sync(&path("a"), &Survival::Only { kept: 1 }).unwrap();
    assert_eq!(show(&fs), "a=12__");
    assert_eq!(table(&fs), ["a=_2__"; 5], "nothing is pending any more");
    file.write_at(2, b"3").unwrap();
    assert_eq!(table(&fs)[1], "a=_23_");
    file.sync().unwrap();
    assert_eq!(table(&fs), ["a=_23_"; 5]);
    assert_eq!(show(&fs), "a=123_");
}

#[test]
fn a_kill_keeps_everything_and_the_boot_and_a_power_cut_ends_the_boot() {
    let fs = disk();
    put(&fs, "a", "x");
    let lock = fs.lock(&path("LOCK")).unwrap();
    let ids = [fs.random_id(), fs.random_id()];
    assert_ne!(ids[0], ids[1]);
    let image = fs.snapshot();
    let killed = image.kill();
    assert_eq!(show(&killed), "LOCK= a=x");
    assert_eq!(table(&killed), table(&fs), "what was pending still is");
    assert_eq!(killed.boot_id(), fs.boot_id());
    killed.lock(&path("LOCK")).expect("nobody has it any more");
    let crashed = image.crash(&Survival::Everything);
    assert_ne!(crashed.boot_id(), fs.boot_id());
    assert!(!ids.contains(&crashed.random_id()));
    crashed.lock(&path("LOCK")).expect("nobody has it any more");
    let again = crashed.snapshot().crash(&Survival::Everything);
    assert_ne!(again.boot_id(), crashed.boot_id());
    assert_ne!(again.random_id(), crashed.snapshot().kill().random_id());
    assert_eq!(fs.lock(&path("LOCK")).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(lock);
    fs.lock(&path("LOCK")).unwrap();
}

#[test]
fn images_and_crashed_file_systems_are_independent() {
    let fs = disk();
    let file = durable(&fs, "a", "1");
    let map = file.map().unwrap();
    let image = fs.snapshot();
    let hash = fs.state_hash();
    file.write_at(0, b"2").unwrap();
    let crashed = image.crash(&Survival::NothingUnsynced);
    put(&crashed, "b", "3");
    assert_eq!(show(&image.crash(&Survival::Everything)), "a=1");
    assert_eq!(show(&fs), "a=2");
    assert_eq!(show(&crashed), "a=1 b=3");
    assert_eq!(&map[..], b"1");
    assert_eq!(&fs.open(&path("a")).unwrap().map().unwrap()[..], b"2");
    assert_ne!(fs.state_hash(), hash);
    assert_eq!(image.kill().state_hash(), hash);
    assert_eq!(image.crash(&Survival::NothingUnsynced).state_hash(), hash);
}

#[test]
fn directories_are_durable_once_created_and_lost_with_their_parents() {
    let fs = SimFs::new();
    fs.create_dir_all(Path::new("x/y")).unwrap();
    let after = fs.snapshot().crash(&Survival::NothingUnsynced);
    assert_eq!(after.list(Path::new("/x")).unwrap(), ["y"]);
    fs.create_dir(Path::new("/x/y/z")).unwrap();
    fs.create(Path::new("/x/y/z/f")).unwrap();
    fs.sync_dir(Path::new("/x/y/z")).unwrap();
    let after = fs.snapshot().crash(&Survival::NothingUnsynced);
    assert!(after.list(Path::new("/x/y")).unwrap().is_empty());
    assert_eq!(fs.list(Path::new("/x/y/z")).unwrap(), ["f"]);
    fs.rename(Path::new("/x/y/z"), Path::new("/x/y/w")).unwrap();
    assert_eq!(fs.list(Path::new("/x/y/w")).unwrap(), ["f"]);
    // A killed process may have left a directory that it made and did not sync.
    let killed = fs.snapshot().kill();
    killed.create_dir_all(Path::new("/x/y/w")).unwrap();
    let after = killed.snapshot().crash(&Survival::NothingUnsynced);
    assert_eq!(after.list(Path::new("/x/y/w")).unwrap(), ["f"]);
}

#[test]
fn errors_are_the_operating_systems() {
    use io::ErrorKind::*;
    let fs = disk();
    let file = durable(&fs, "a", "abc");
    put(&fs, "b", "");
    fs.create_dir_all(&path("d")).unwrap();
    let kind = |result: io::Result<()>| result.unwrap_err().kind();
    assert_eq!(kind(fs.create(&path("a")).map(drop)), AlreadyExists);
    assert_eq!(kind(fs.create_log(&path("a"), 1).map(drop)), AlreadyExists);
    assert_eq!(kind(fs.link(&path("a"), &path("b"))), AlreadyExists);
    assert_eq!(kind(fs.open(&path("c")).map(drop)), NotFound);
    assert_eq!(kind(fs.create(Path::new("/no/a")).map(drop)), NotFound);
    assert_eq!(kind(fs.create(&path("a/b")).map(drop)), NotADirectory);
    assert_eq!(kind(fs.create_dir_all(&path("a/b"))), NotADirectory);
    assert_eq!(kind(fs.open(&path("d")).map(drop)), IsADirectory);
    assert_eq!(kind(fs.remove(&path("c"))), NotFound);
    assert_eq!(kind(fs.remove(&path("d"))), IsADirectory);
    assert_eq!(kind(fs.rename(&path("c"), &path("d"))), NotFound);
    assert_eq!(kind(fs.rename(&path("a"), &path("d"))), IsADirectory);
    assert_eq!(kind(fs.rename(&path("d"), &path("a"))), NotADirectory);
    assert_eq!(kind(fs.rename(&path("a"), Path::new("/a"))), CrossesDevices);
    assert_eq!(kind(file.read_at(&mut [0; 3], 1)), UnexpectedEof);
    assert_eq!(kind(file.read_at(&mut [0; 3], u64::MAX)), UnexpectedEof);
    assert_eq!(kind(fs.open(&path("a")).unwrap().write_at(0, b"x")), PermissionDenied);
    let mut buf = [0; 2];
    file.read_at(&mut buf, 1).unwrap();
    assert_eq!(&buf, b"bc");
}

#[test]
fn a_full_disk_refuses_and_takes_again_once_there_is_room() {
    let fs = disk();
    let file = put(&fs, "a", "1234");
    fs.set_capacity(Some(10));
    assert_eq!(fs.free_bytes(Path::new("/db")).unwrap(), 6);
    let full = |result: io::Result<()>| {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
    };
    full(fs.create_log(&path("l"), 7).map(drop));
    assert_eq!(show(&fs), "a=1234", "no name is left behind");
    full(file.write_at(4, b"1234567"));
    full(file.set_len(11));
    full(file.allocate(11));
    file.allocate(9).unwrap();
    assert_eq!(fs.free_bytes(Path::new("/db")).unwrap(), 1);
    file.set_len(4).unwrap();
    assert_eq!(fs.free_bytes(Path::new("/db")).unwrap(), 6, "what lies beyond is given back");
    file.allocate(9).unwrap();
    file.write_at(4, b"12345").unwrap();
    full(put_more(&fs, 2));
    fs.remove(&path("a")).unwrap();
    fs.remove(&path("more")).unwrap();
    put_more(&fs, 10).unwrap();
}

fn put_more(fs: &SimFs, bytes: usize) -> io::Result<()> {
    fs.create(&path("more"))?.write_at(0, &vec![1; bytes])
}

#[test]
fn what_nothing_leads_to_is_dropped() {
    let fs = disk();
    let file = durable(&fs, "a", "kept by its handle");
    for i in 0..100 {
        let name = format!("{i}");
        durable(&fs, &name, "x");
        fs.remove(&path(&name)).unwrap();
    }
    fs.remove(&path("a")).unwrap();
    fs.sync_dir(Path::new("/db")).unwrap();
    assert_eq!(fs.shared.state.lock().files.len(), 1);
    assert_eq!(&file.map().unwrap()[..], b"kept by its handle");
    drop(file);
    fs.sync_dir(Path::new("/db")).unwrap();
    assert_eq!(fs.shared.state.lock().files.len(), 0);
}

#[test]
fn the_hook_sees_each_call_and_the_middle_of_stores() {
    let fs = disk();
    let log = fs.create_log(&path("l"), 64).unwrap();
    log.sync().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    fs.on_call(Arc::new(move |fs, phase, call| {
        let bytes = fs.contents(&path("l")).unwrap();
        let stored = bytes.iter().filter(|byte| **byte != 0).count();
        sink.lock().push((phase, call.to_string(), stored, fs.snapshot()));
    }));
    log.store(8, &[1; 32]).unwrap();
    log.store(40, &[1; 16]).unwrap();
    fs.clear_hook();
    log.sync().unwrap();
    let seen = seen.lock();
    let text: Vec<String> =
        seen.iter().map(|(phase, call, ..)| format!("{phase:?} {call}")).collect();
    let expected = ["Before store l 8+32", "Middle store l 8+32", "After store l 8+32"];
    assert_eq!(text[..3], expected);
    assert_eq!(text[3..], ["Before store l 40+16", "After store l 40+16"]);
    let stored: Vec<usize> = seen.iter().map(|(_, _, stored, _)| *stored).collect();
    assert!((1..32).contains(&stored[1]), "{stored:?}");
    assert_eq!((stored[0], stored[2], stored[4]), (0, 32, 48));
    let effects: Vec<usize> = seen.iter().map(|(.., image)| image.pending_effects()).collect();
    // With the link of the log's name, which was never synced: the whole takes the half's place.
    assert_eq!(effects, [1, 2, 2, 2, 3]);
}

#[test]
fn middles_begin_at_both_ends() {
    let drawn: Vec<(usize, bool)> = (0..100).map(|i| middle(i, 100)).collect();
    assert!(drawn.iter().all(|(cut, _)| (1..100).contains(cut)));
    assert!(drawn.iter().any(|(_, tail)| *tail) && drawn.iter().any(|(_, tail)| !*tail));
    let distinct: BTreeSet<usize> = drawn.iter().map(|(cut, _)| *cut).collect();
    assert!(distinct.len() > 40);
}

#[test]
fn torn_writes_leave_whole_units_and_reach_every_mix() {
    for tear in TEAR_UNITS {
        let fs = disk();
        let file = durable(&fs, "a", "");
        file.write_at(0, &vec![b'o'; 3 * tear + 10]).unwrap();
        file.sync().unwrap();
        file.write_at(1, &vec![b'n'; 3 * tear]).unwrap();
        let image = fs.snapshot();
        let mut seen = BTreeSet::new();
        for seed in 0..300 {
            let survival = Survival::Random { seed, tear, hole: Hole::Garbage };
            let after = image.crash(&survival).contents(&path("a")).unwrap();
            assert_eq!(after, image.crash(&survival).contents(&path("a")).unwrap(), "{survival:?}");
            assert_eq!(after.len(), 3 * tear + 10);
            for (i, unit) in after.chunks(tear).enumerate() {
                let expected_new = |at: usize| (1..=3 * tear).contains(&(i * tear + at));
                let old = unit.iter().all(|byte| *byte == b'o');
                let new = unit
                    .iter()
                    .enumerate()
                    .all(|(at, byte)| *byte == if expected_new(at) { b'n' } else { b'o' });
                assert!(old || new, "{survival:?}: unit {i} is torn: {:?}", unit.escape_ascii());
            }
            seen.insert(after);
        }
        // Bytes 1..=3·tear lie in 4 units, or in 3 where the unit is a byte.
        assert_eq!(seen.len(), if tear == 1 { 8 } else { 16 }, "tear {tear}");
    }
}

#[test]
fn holes_are_zeros_or_garbage_and_lengths_survive_alone() {
    let fs = disk();
    let file = durable(&fs, "a", "dd");
    file.write_at(2, b"nnnn").unwrap();
    let image = fs.snapshot();
    let mut lens = BTreeSet::new();
    for (hole, seed) in
        [Hole::Zero, Hole::Garbage].into_iter().flat_map(|h| (0..200).map(move |s| (h, s)))
    {
        let after = image.crash(&Survival::Random { seed, tear: 1, hole });
        let bytes = after.contents(&path("a")).unwrap();
        assert_eq!(&bytes[..2], b"dd");
        if hole == Hole::Zero {
            assert!(bytes[2..].iter().all(|byte| [0, b'n'].contains(byte)));
        }
        lens.insert((
            bytes.len(),
            hole == Hole::Garbage && bytes.iter().any(|b| !b"dn\0".contains(b)),
        ));
    }
    assert_eq!(lens, BTreeSet::from([(2, false), (6, false), (6, true)]));
}

#[test]
fn survivals_are_exhaustive_when_few_effects_are_pending() {
    let fs = disk();
    assert_eq!(fs.snapshot().survivals(10, 5, 1), [Survival::NothingUnsynced]);
    let file = put(&fs, "a", "1");
    let few = fs.snapshot().survivals(10, 5, 1);
    assert_eq!(few.len(), 4 + 5);
    let states: BTreeSet<u64> =
        few[..4].iter().map(|survival| fs.snapshot().crash(survival).state_hash()).collect();
    assert_eq!(states.len(), 3, "nothing, an empty file, the file");
    (0..20).for_each(|i| file.write_at(i, b"x").unwrap());
    let image = fs.snapshot();
    let many = image.survivals(10, 5, 1);
    assert_eq!(many.len(), 5 + 5 + 5 + 5);
    assert_eq!(many, image.survivals(10, 5, 1));
    assert_ne!(many, image.survivals(10, 5, 2));
}

/// Random programs; after each step every survival must leave what was synced, and nothing that
/// was never there.
#[test]
fn what_was_synced_survives_everything() {
    let seed = std::env::var("ESKER_SEED").map_or(11, |s| s.parse().unwrap());
    println!("ESKER_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for program in 0..60 {
        run_program(&mut random, program);
    }
}

/// What the model knows of a file: the byte each place had when it was last synced, and all bytes
/// it may have now.
struct Model {
    file: Arc<dyn File>,
    synced: Vec<u8>,
    live: Vec<u8>,
    /// Bytes written since the sync, by place.
    written: Vec<BTreeSet<u8>>,
}

fn run_program(random: &mut fastrand::Rng, program: u32) {
    let fs = disk();
    let mut files: BTreeMap<String, Model> = BTreeMap::new();
    // Names that are durable and were not touched since.
    let mut settled: BTreeSet<String> = BTreeSet::new();
    for step in 0..30 {
        let name = format!("{}", random.u8(0..3));
        let model = files.get_mut(&name);
        match (random.u8(0..8), model) {
            (_, None) => {
                let file = fs.create(&path(&name)).unwrap();
                let model = Model { file, synced: vec![], live: vec![], written: vec![] };
                files.insert(name, model);
            }
            (0..4, Some(model)) => {
                let (at, count) = (random.usize(0..40), random.usize(1..40));
                let data: Vec<u8> = (0..count).map(|_| random.u8(1..)).collect();
                model.file.write_at(at as u64, &data).unwrap();
                let end = model.live.len().max(at + count);
                model.live.resize(end, 0);
                model.written.resize(model.written.len().max(end), BTreeSet::new());
                for (i, byte) in data.into_iter().enumerate() {
                    model.live[at + i] = byte;
                    model.written[at + i].insert(byte);
                }
            }
            (4, Some(model)) => {
                model.file.sync().unwrap();
                model.synced = model.live.clone();
                model.written = vec![BTreeSet::new(); model.live.len()];
            }
            (5..7, Some(_)) => {
                fs.sync_dir(Path::new("/db")).unwrap();
                settled = files.keys().cloned().collect();
            }
            (_, Some(_)) => {
                fs.remove(&path(&name)).unwrap();
                settled.remove(&name);
                files.remove(&name);
            }
        }
        let image = fs.snapshot();
        for survival in image.survivals(4, 6, random.u64(..)) {
            let after = image.crash(&survival);
            assert_eq!(after.snapshot().pending_effects(), 0);
            let context = format!("program {program} step {step} {survival:?} {image:?}");
            check(&after, &files, &settled, &survival, &context);
        }
        for (name, model) in &files {
            assert_eq!(fs.contents(&path(name)).unwrap(), model.live);
            assert_eq!(image.kill().contents(&path(name)).unwrap(), model.live);
        }
    }
}

fn check(
    after: &SimFs,
    files: &BTreeMap<String, Model>,
    settled: &BTreeSet<String>,
    survival: &Survival,
    context: &str,
) {
    for name in settled {
        let (model, bytes) = (&files[name], after.contents(&path(name)).expect(context));
        // These programs never shorten a file.
        assert!(bytes.len() >= model.synced.len(), "{context}: {name} lost its length");
        for (at, byte) in bytes.iter().enumerate() {
            let written = model.written.get(at).is_some_and(|some| some.contains(byte));
            let hole = at >= model.synced.len();
            let garbage = matches!(survival, Survival::Random { hole: Hole::Garbage, .. });
            let fits = match model.synced.get(at) {
                Some(synced) => byte == synced || written,
                None => written || (hole && (*byte == 0 || garbage)),
            };
            assert!(fits, "{context}: {name} has {byte} at {at}");
        }
    }
}

#[test]
#[ignore = "prints what a crash state costs: cargo test -- --ignored --nocapture cost_of"]
fn cost_of_a_crash_state() {
    use std::time::Instant;

    let fs = SimFs::new();
    for i in 0..20 {
        let table = fs.create(Path::new(&format!("/{i}.table"))).unwrap();
        table.write_at(0, &[1; 4096]).unwrap();
        table.sync().unwrap();
    }
    fs.sync_dir(Path::new("/")).unwrap();
    let log = fs.create_log(Path::new("/log"), 65536).unwrap();
    log.sync().unwrap();
    let (since, mut images) = (Instant::now(), Vec::new());
    for i in 0..1000 {
        log.store(i * 64, &[1; 64]).unwrap();
        images.push(fs.snapshot());
    }
    println!("store and snapshot: {:?}", since.elapsed() / 1000);
    let since = Instant::now();
    for image in &images {
        let after = image.crash(&Survival::NothingUnsynced);
        assert_eq!(after.open(Path::new("/7.table")).unwrap().map().unwrap().len(), 4096);
    }
    println!("crash and open: {:?}", since.elapsed() / 1000);
}
