//! What the environment asks of the tests that try many cases, and the counts they give back.
//!
//! With `ESKER_TALLY=FILE` each of them appends a line of JSON to the file, such as
//! `{"crash states":61234}`: `cargo soak` adds them up. `ESKER_WORKERS` (2) is the number of threads
//! among which such a test divides its cases.

use std::cell::Cell;
use std::io::Write;

use esker::{Filter, Options};

/// A number from the environment.
pub fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is not a number")))
}

/// The seeds of a test that tries so many by default: `ESKER_SEED` alone; or as many as `count`
/// says, from `ESKER_FIRST_SEED` on.
pub fn seeds(count: &str, default: u64) -> std::ops::Range<u64> {
    let first = number("ESKER_FIRST_SEED").unwrap_or(0);
    match number("ESKER_SEED") {
        Some(seed) => seed..seed + 1,
        None => first..first + number(count).unwrap_or(default),
    }
}

/// Among how many threads a test divides its cases.
pub fn workers() -> usize {
    number("ESKER_WORKERS").unwrap_or(2) as usize
}

/// Adds what was tried to the file that wants to know.
pub fn tally(counts: &[(&str, u64)]) {
    let Some(path) = std::env::var_os("ESKER_TALLY") else { return };
    let counts: Vec<_> = counts.iter().map(|(what, count)| format!("\"{what}\":{count}")).collect();
    let line = format!("{{{}}}\n", counts.join(","));
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the tally is written");
}

/// A kind of filter: another one at each call of a test, and the first ones differ from test to test.
/// The same in every run.
pub fn filter() -> Filter {
    thread_local! {
        static TURN: Cell<usize> = Cell::new(std::thread::current().name().map_or(0, str::len));
    }
    match TURN.replace(TURN.get() + 1) % 2 {
        0 => Filter::Bloom { bits_per_key: 10 },
        _ => Filter::BinaryFuse8,
    }
}

/// `Options::tiny()` with such a filter.
pub fn tiny() -> Options {
    let mut options = Options::tiny();
    options.filter = filter();
    options
}
