//! Tables in Markdown on standard output.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::engine::Kind;
use crate::facet::Facet;
use crate::failure::Result;
use crate::job::Row;
use crate::report::{Results, digits, short};
use crate::workload::Workload;

/// Prints all tables; with a pair, its ratios.
pub fn print(results: &Results, is_pair: bool) -> Result<()> {
    let mut text = introduction(results);
    text += &summary(results);
    if let ([ours, theirs], true) = (&results.kinds[..], is_pair) {
        text += &pair(results, *ours, *theirs);
    } else if results.kinds.len() > 1 && results.kinds.contains(&Kind::Esker) {
        text += &ratios(results);
    }
    text += &details(results);
    if !results.failures.is_empty() {
        text += "\n## Failures\n\n";
        results.failures.iter().for_each(|failure| writeln!(text, "- {failure}").expect("memory"));
    }
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

/// One row for a log.
pub fn line(row: &Row) -> String {
    format!(
        "{:9} {:16} {:>9}{} p99 {} µs, {} µs of CPU/op, settled after {:.2} s {}",
        row.engine.name(),
        Facet::Main.label(row.workload),
        short(row.value()),
        mark(row),
        digits(row.latency.p99),
        digits(row.cpu_us_per_op()),
        row.settle_seconds,
        row.note
    )
}

/// A star if it was cut off.
fn mark(row: &Row) -> &'static str {
    if row.capped { "\\*" } else { "" }
}

/// What was measured, on what.
fn introduction(results: &Results) -> String {
    let plan = &results.plan;
    let mut text = format!(
        "# esker and its peers\n\n{}; load average {}; a lone fdatasync takes {} µs.\n\
         {} records of 16 + {} bytes, at most {} s a workload, a budget of {} MiB, {} {}.\n\n",
        results.machine,
        results.load,
        digits(results.sync_us),
        plan.records,
        plan.value_bytes,
        plan.limit.as_secs_f64(),
        plan.memory_bytes >> 20,
        results.rounds,
        if results.rounds == 1 { "round" } else { "rounds, medians" },
    );
    for kind in &results.kinds {
        writeln!(text, "- **{}**: {}", kind.name(), kind.configuration()).expect("memory");
    }
    text
}

/// A row of a table.
fn push_row(text: &mut String, first: &str, cells: impl Iterator<Item = String>) {
    let cells: Vec<_> = cells.collect();
    writeln!(text, "| {first} | {} |", cells.join(" | ")).expect("memory");
}

fn push_head(text: &mut String, first: &str, columns: &[String]) {
    push_row(text, first, columns.iter().cloned());
    push_row(text, "---", columns.iter().map(|_| "---:".to_owned()));
}

/// Workloads against engines.
fn summary(results: &Results) -> String {
    let mut text = "\n## Operations a second\n\n".to_owned();
    let names: Vec<_> = results.kinds.iter().map(|kind| kind.name().to_owned()).collect();
    push_head(&mut text, "workload", &names);
    for workload in results.workloads() {
        for facet in Facet::of(workload) {
            let cell = |kind: &Kind| {
                let row = results.median(*kind, workload)?;
                Some(format!("{}{}", short(facet.value(row)?), mark(row)))
            };
            let cells = results.kinds.iter().map(|kind| cell(kind).unwrap_or_else(|| "–".into()));
            push_row(&mut text, &facet.label(workload), cells);
        }
    }
    if results.rows.iter().any(|row| row.capped) {
        text += "\n\\* cut off by the time limit: the rate of what was done.\n";
    }
    text
}

/// What stands beside a ratio: whether it is under its floor.
fn judge(facet: Facet, workload: Workload, ours: Kind, peer: Kind, ratio: f64) -> String {
    let target = facet.target(workload, peer).filter(|_| ours.is_ours());
    match target {
        Some(target) if ratio < target.floor => format!(" **under {}**", target.floor),
        Some(target) if ratio < target.goal => format!(" ({})", target.floor),
        Some(_) => " (goal)".to_owned(),
        None => String::new(),
    }
}

/// How many times better esker is than each other engine.
fn ratios(results: &Results) -> String {
    let mut text = "\n## How many times better esker is\n\n\
        The median of the rounds' ratios; in parentheses the floor that is held, or \"goal\" where that \
        is reached.\n\n"
        .to_owned();
    let peers: Vec<_> = results.kinds.iter().filter(|kind| !kind.is_ours()).collect();
    let names: Vec<_> = peers.iter().map(|kind| kind.name().to_owned()).collect();
    push_head(&mut text, "workload", &names);
    for workload in results.workloads() {
        for &facet in Facet::of(workload) {
            let cell = |peer: Kind| {
                let ratio = median(&paired(results, facet, workload, Kind::Esker, peer))?;
                let judged = judge(facet, workload, Kind::Esker, peer, ratio);
                Some(format!("{}{judged}", digits(ratio)))
            };
            let cells = peers.iter().map(|peer| cell(**peer).unwrap_or_else(|| "–".into()));
            push_row(&mut text, &facet.label(workload), cells);
        }
    }
    text
}

/// The ratios of the rounds, rising.
fn paired(
    results: &Results,
    facet: Facet,
    workload: Workload,
    ours: Kind,
    theirs: Kind,
) -> Vec<f64> {
    let pairs = results.rounds_of(ours, workload).filter_map(|row| {
        let same = |candidate: &&Row| candidate.round == row.round;
        facet.ratio(row, results.rounds_of(theirs, workload).find(same)?)
    });
    let mut ratios: Vec<f64> = pairs.collect();
    ratios.sort_by(f64::total_cmp);
    ratios
}

/// Of numbers that rise; `None` if there are none.
fn median(numbers: &[f64]) -> Option<f64> {
    numbers.get(numbers.len() / 2).copied()
}

/// Median ratio of the pairs of a round, and its range.
fn pair(results: &Results, ours: Kind, theirs: Kind) -> String {
    let (one, other) = (ours.name(), theirs.name());
    let mut text = format!("\n## How many times better {one} is than {other}\n\n");
    let columns = [one, other, "median ratio", "from", "to", "pairs"].map(str::to_owned);
    push_head(&mut text, "workload", &columns);
    for workload in results.workloads() {
        for &facet in Facet::of(workload) {
            let ratios = paired(results, facet, workload, ours, theirs);
            let (Some(least), Some(most)) = (ratios.first(), ratios.last()) else { continue };
            let median = ratios[ratios.len() / 2];
            let value = |kind| {
                let row = results.median(kind, workload)?;
                Some(format!("{}{}", short(facet.value(row)?), mark(row)))
            };
            let judged = judge(facet, workload, ours, theirs, median);
            let cells = [
                value(ours).unwrap_or_default(),
                value(theirs).unwrap_or_default(),
                format!("{}{judged}", digits(median)),
                digits(*least),
                digits(*most),
                ratios.len().to_string(),
            ];
            push_row(&mut text, &facet.label(workload), cells.into_iter());
        }
    }
    text
}

/// All columns of all rows.
fn details(results: &Results) -> String {
    let mut text = "\n## Details\n\n".to_owned();
    let columns = [
        "engine",
        "ops/s",
        "settled/s",
        "p50 µs",
        "p99",
        "p99.9",
        "max",
        "cpu s",
        "µs/op",
        "peak",
        "anon",
        "written",
        "w-amp",
        "own",
        "disk",
        "settle s",
        "note",
    ];
    push_head(&mut text, "workload", &columns.map(str::to_owned));
    for workload in results.workloads() {
        for kind in &results.kinds {
            if let Some(row) = results.median(*kind, workload) {
                push_row(&mut text, &Facet::Main.label(workload), detail(row).into_iter());
            }
        }
    }
    text
}

fn detail(row: &Row) -> [String; 17] {
    let mib = |bytes: u64| digits(bytes as f64 / f64::from(1 << 20));
    let times = |ratio: Option<f64>| ratio.map_or_else(|| "–".to_owned(), digits);
    let settled = match row.workload.is_time() {
        true => "–".to_owned(),
        false => short(row.settled_rate()),
    };
    [
        row.engine.name().to_owned(),
        format!("{}{}", short(row.value()), mark(row)),
        settled,
        digits(row.latency.p50),
        digits(row.latency.p99),
        digits(row.latency.p999),
        digits(row.latency.max),
        digits(row.usage.cpu.as_secs_f64()),
        digits(row.cpu_us_per_op()),
        mib(row.usage.resident_peak_bytes),
        mib(row.usage.anonymous_bytes),
        mib(row.usage.written_bytes),
        times(row.write_amplification()),
        times(row.own_write_amplification()),
        mib(row.disk_bytes),
        digits(row.settle_seconds),
        row.note.clone(),
    ]
}
