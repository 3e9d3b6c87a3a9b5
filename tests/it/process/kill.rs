//! SIGKILL at random moments.
//!
//! `ESKER_KILLS=1000 cargo test --all-features --test it process::kill` kills more often than the
//! default; `ESKER_SEED` sets the seed of the moments (the machine's own timing remains).

use std::time::Duration;

use crate::process::Rounds;
use crate::settings::{number, tally};

const KILLS: u64 = 200;

#[test]
fn nothing_acknowledged_is_lost_to_a_killed_process() {
    let kills: u64 = number("ESKER_KILLS").unwrap_or(KILLS);
    let seed = number("ESKER_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("ESKER_SEED={seed} ESKER_KILLS={kills}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut rounds = Rounds::new(false, None);
    for round in 0..kills {
        let mut child = rounds.start(&[], None, round % 4 == 3);
        std::thread::sleep(Duration::from_micros(random.u64(5_000..150_000)));
        rounds.kill(&mut child);
        rounds.check(&format!("kill {round}, ESKER_SEED={seed}"), true, random.bool());
    }
    println!("{kills} kills, {} steps acknowledged or found", rounds.steps());
    tally(&[("kills", kills)]);
    assert!(rounds.models.iter().all(|model| model.steps > kills), "hardly anything was written");
}
