//! What is shown: Markdown, JSON, and a page with plots.

mod html;
mod markdown;
mod plot;

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::engine::Kind;
use crate::failure::{Failure, Result};
use crate::job::{Plan, Row};

pub use markdown::{line, print};

/// All that a run brought.
#[derive(Serialize)]
pub struct Results {
    /// The engines, in the order in which they are shown.
    pub kinds: Vec<Kind>,
    /// The sizes.
    pub plan: Plan,
    /// Processor, memory, kernel.
    pub machine: String,
    /// Load averages.
    pub load: String,
    /// Median of a lone fdatasync before the run, in microseconds.
    pub sync_us: f64,
    /// How often everything was run.
    pub rounds: usize,
    /// Every row of every round.
    pub rows: Vec<Row>,
    /// What failed, in words.
    pub failures: Vec<String>,
}

/// Writes everything as one JSON object.
pub fn write_json(results: &Results, file: &Path) -> Result<()> {
    write(file, &serde_json::to_string_pretty(results)?)
}

/// Writes the page.
pub fn write_html(results: &Results, file: &Path) -> Result<()> {
    write(file, &html::page(results)?)
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text)
        .map_err(|error| Failure::new(format!("writing {}: {error}", file.display())))
}

/// Three digits and a unit: `5.30 M`, `396 K`, `42.0`.
pub fn short(number: f64) -> String {
    let (number, unit) = match number {
        n if n >= 1e9 => (n / 1e9, " G"),
        n if n >= 1e6 => (n / 1e6, " M"),
        n if n >= 1e3 => (n / 1e3, " K"),
        n => (n, ""),
    };
    format!("{}{unit}", digits(number))
}

/// Three digits.
pub fn digits(number: f64) -> String {
    match number {
        n if n >= 99.95 => format!("{n:.0}"),
        n if n >= 9.995 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!(short(5_300_000.0), "5.30 M");
        assert_eq!(short(395_812.0), "396 K");
        assert_eq!(short(41.96), "42.0");
        assert_eq!(digits(9.999), "10.0");
    }
}
