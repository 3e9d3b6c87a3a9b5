//! Idempotent commits beside plain ones, in turn: what flushes and compactions of one kind cost falls
//! upon the next, so kinds that are measured once, one after the other, cannot be compared.
//!
//! `cargo bench --bench once -- [rounds [commits of each kind in a round]]`

use std::time::Instant;

use esker::{Batch, Compression, Db, EventId};

const VALUE: [u8; 100] = [b'v'; 100];
/// Tokens and keys that are there before anything is measured.
const LIVE_TOKENS: u64 = 1_000_000;

/// 16 bytes that look like an id drawn at random, and never repeat.
fn id(number: u64) -> [u8; 16] {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (u128::from(mixed) << 64 | u128::from(number)).to_be_bytes()
}

/// Commits the batch, with the token of this number if the kind has any.
type Commit = fn(&mut Batch, u64);

fn plain(batch: &mut Batch, _: u64) {
    batch.commit().unwrap();
}

fn once(batch: &mut Batch, number: u64) {
    let outcome = batch.commit_once(EventId::new("orders", &id(number))).unwrap();
    assert!(!outcome.is_duplicate());
}

fn growing(batch: &mut Batch, number: u64) {
    let outcome = batch.commit_once(EventId::growing("sensor", number)).unwrap();
    assert!(!outcome.is_duplicate());
}

fn main() {
    let numbers: Vec<u64> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let rounds = numbers.first().copied().unwrap_or(3);
    let commits = numbers.get(1).copied().unwrap_or(2_000_000);
    let dir = tempfile::tempdir_in(".").unwrap();
    let db = Db::builder(dir.path()).compression(Compression::None).open().unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    let (mut batch, mut next) = (db.batch(), 0);
    let mut run = |commit: Commit, count: u64| {
        let began = Instant::now();
        for _ in 0..count {
            batch.put(&db, id(random.u64(..LIVE_TOKENS)), VALUE);
            next += 1;
            commit(&mut batch, next);
        }
        began.elapsed().as_secs_f64() * 1e6 / count as f64
    };
    run(once, LIVE_TOKENS);
    let kinds: [(&str, Commit); 3] = [
        ("a plain batch of one put", plain),
        ("the same, with a token of its own", once),
        ("the same, of a growing source", growing),
    ];
    let mut took = kinds.map(|_| Vec::new());
    for _ in 0..rounds {
        for ((_, commit), took) in kinds.iter().zip(&mut took) {
            took.push(run(*commit, commits));
        }
    }
    let medians = took.map(|mut took| {
        took.sort_by(f64::total_cmp);
        took[took.len() / 2]
    });
    for ((name, _), median) in kinds.iter().zip(medians) {
        let percent = 100.0 * medians[0] / median;
        println!("{name:<36} {median:.2} µs, {percent:.0} % of the plain rate");
    }
}
