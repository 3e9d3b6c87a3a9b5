//! What a round consists of. Each regime is a command with everything that decides what it tries,
//! so that the same line in a shell tries the same again.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Programs of up to four verbs that a round tries.
const PROGRAMS: u64 = 4000;

/// The fuzz targets, and for how many seconds each is run in a round: most for the two that reach
/// the whole engine.
pub const FUZZED: [(&str, u64); 10] = [
    ("log", 10),
    ("batch", 5),
    ("block", 10),
    ("table", 15),
    ("edit", 5),
    ("manifest", 10),
    ("filter", 5),
    ("footer", 5),
    ("operations", 40),
    ("crash", 40),
];

/// One step of a round.
pub struct Step {
    pub name: String,
    pub seed: u64,
    pub runs: Runs,
}

/// What it runs.
pub enum Runs {
    /// Tests whose names contain the filter, with these settings.
    Tests { filter: &'static str, also_ignored: bool, settings: Vec<(&'static str, u64)> },
    /// A fuzz target, for so many seconds.
    Fuzz { target: &'static str, seconds: u64 },
}

/// The programs that were built for the soak.
pub struct Programs {
    /// The repository.
    pub root: PathBuf,
    pub tests: PathBuf,
    /// Holds the fuzz targets; none if they could not be built.
    pub fuzz: Option<PathBuf>,
}

/// The steps of a round, in order. The ledger's `base` makes two soaks differ.
pub fn steps(base: u64, round: u64, workers: u64, power_cuts: bool) -> Vec<Step> {
    // A test takes seeds from its first one on: a thousand keep the rounds apart.
    let seed = base + round * 1000;
    let mut steps = Vec::new();
    let mut tests = |name: &str, filter, settings: &[(&'static str, u64)]| {
        let mut settings = settings.to_vec();
        settings.push(("ESKER_WORKERS", workers));
        let runs = Runs::Tests { filter, also_ignored: name == "power cuts", settings };
        steps.push(Step { name: name.to_string(), seed, runs });
    };
    let states = [("ESKER_CRASH_SEED", seed), ("ESKER_CRASH_STATES", 60_000)];
    tests("crashes", "crash::every_crash_leads_to", &states);
    let rows = [("ESKER_CRASH_SEED", seed), ("ESKER_CRASH_SECONDS", 45)];
    tests("crashes in a row", "crash::crashes_in_a_row", &rows);
    let slice = [
        ("ESKER_CRASH_SEED", base),
        ("ESKER_PROGRAM_SLICE", round * PROGRAMS),
        ("ESKER_PROGRAM_COUNT", PROGRAMS),
    ];
    tests("short programs", "crash::programs::a_slice", &slice);
    let faults = [("ESKER_FAULT_SEED", seed), ("ESKER_FAULT_SECONDS", 60)];
    tests("faults", "crash::faults::every_call", &faults);
    let flips = [
        ("ESKER_DAMAGE_SEED", seed),
        ("ESKER_FLIP_SECONDS", 15),
        ("ESKER_FLIP_OTHERS_SECONDS", 15),
        ("ESKER_CUT_SECONDS", 15),
    ];
    tests("flips and cuts", "crash::damage", &flips);
    tests("misplaced bytes", "crash::misplaced", &[("ESKER_DAMAGE_SEED", seed)]);
    let shards = [("ESKER_CRASH_SEED", seed), ("ESKER_SHARDED_SECONDS", 20)];
    tests("crashes of shards", "sharded::crash", &shards);
    let faults = [("ESKER_FAULT_SEED", seed), ("ESKER_SHARDED_FAULT_SECONDS", 30)];
    tests("faults of shards", "sharded::faults", &faults);
    tests("toolkit", "crash::toolkit", &[("ESKER_CRASH_SEED", seed)]);
    let sequences = [("ESKER_FIRST_SEED", seed), ("ESKER_SEQUENCES", 1000)];
    tests("model", "model::", &sequences);
    let schedules = [("ESKER_FIRST_SEED", seed), ("ESKER_SCHEDULES", 60)];
    tests("schedules", "concurrency::", &schedules);
    tests("kills", "process::kill", &[("ESKER_SEED", seed), ("ESKER_KILLS", 60)]);
    let splits = [("ESKER_SEED", seed), ("ESKER_SPLIT_SECONDS", 30)];
    tests("kills during splits", "process::split::nothing", &splits);
    tests("system calls", "process::calls", &[("ESKER_SEED", seed), ("ESKER_CALL_KILLS", 24)]);
    if power_cuts {
        tests("power cuts", "process::power", &[("ESKER_SEED", seed), ("ESKER_CUTS", 20)]);
    }
    steps.extend(FUZZED.map(|(target, seconds)| Step {
        name: format!("fuzz {target}"),
        seed,
        runs: Runs::Fuzz { target, seconds },
    }));
    steps
}

impl Step {
    /// The command, whose counts go to `tally`; `None` if its program is not there.
    pub fn command(&self, programs: &Programs, tally: &Path) -> Option<Command> {
        let mut command = match &self.runs {
            Runs::Tests { filter, also_ignored, settings } => {
                let mut command = Command::new(&programs.tests);
                // One test at a time: a quota of time is meant for a whole worker.
                command.args([filter, "--nocapture", "--test-threads=1"]);
                if *also_ignored {
                    command.arg("--include-ignored");
                }
                command.current_dir(&programs.root);
                command.envs(settings.iter().map(|(name, value)| (name, value.to_string())));
                command
            }
            Runs::Fuzz { target, seconds } => {
                let fuzz = programs.root.join("fuzz");
                for folder in ["found", "artifacts"] {
                    std::fs::create_dir_all(fuzz.join(folder).join(target)).ok()?;
                }
                let mut command = Command::new(programs.fuzz.as_ref()?.join(target));
                command.current_dir(fuzz).args([
                    format!("found/{target}"),
                    format!("corpus/{target}"),
                    format!("-artifact_prefix=artifacts/{target}/"),
                    format!("-max_total_time={seconds}"),
                    // A seed of 32 bits, where 0 asks for a random one.
                    format!("-seed={}", self.seed % u64::from(u32::MAX) + 1),
                    "-print_final_stats=1".to_string(),
                    "-rss_limit_mb=2000".to_string(),
                    // So that a soak that was stopped for a while is not said to hang.
                    "-timeout=1200".to_string(),
                ]);
                command
            }
        };
        let others = std::env::vars_os().map(|(name, _)| name);
        let others = others.filter(|name| name.to_string_lossy().starts_with("ESKER_"));
        let set: Vec<_> = command.get_envs().map(|(name, _)| name.to_os_string()).collect();
        others.filter(|name| !set.contains(name)).for_each(|name| _ = command.env_remove(name));
        command.env("ESKER_TALLY", tally);
        Some(command)
    }

    /// What a user types to try the same again.
    pub fn again(&self) -> String {
        match &self.runs {
            Runs::Tests { filter, also_ignored, settings } => {
                let set = settings.iter().map(|(name, value)| format!("{name}={value} "));
                let ignored = if *also_ignored { " --include-ignored" } else { "" };
                format!(
                    "{}cargo test --profile soak --all-features --test it {filter} -- \
                     --nocapture{ignored}",
                    set.collect::<String>()
                )
            }
            Runs::Fuzz { target, .. } => format!(
                "cd fuzz && RUSTC_BOOTSTRAP=1 cargo +stable fuzz run {target} -s none \
                 artifacts/{target}/*"
            ),
        }
    }
}
