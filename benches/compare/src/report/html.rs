//! A page to look at: bars of every workload, and curves of the fills. All in one file.

use std::fmt::Write;

use crate::engine::Kind;
use crate::facet::Facet;
use crate::failure::Result;
use crate::job::Row;
use crate::report::Results;
use crate::report::plot::{self, Curve};
use crate::workload::Workload;

const STYLE: &str = "\
body { font: 15px/1.45 sans-serif; max-width: 900px; margin: 2em auto; padding: 0 1em; }
h3 { margin: 1.6em 0 0.2em; font-size: 1em; }
p.about { margin: 0 0 0.4em; color: #555; }
.bars { display: flex; flex-wrap: wrap; gap: 0 2em; }
.bars section { width: 420px; }
li { margin: 0.3em 0; }";

/// The whole page.
pub fn page(results: &Results) -> Result<String> {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <title>esker and its peers</title>\n<style>\n{STYLE}\n</style>\n\
         <h1>esker and its peers</h1>\n"
    );
    introduce(&mut page, results)?;
    page += "<h2>Workloads</h2>\n<p>Longer is better, except where a unit of time is named. \
             * marks a result that the time limit cut off.</p>\n<div class=\"bars\">\n";
    for workload in results.workloads() {
        for facet in Facet::of(workload) {
            push_bars(&mut page, results, workload, *facet)?;
        }
    }
    page += "</div>\n<h2>Fills over time</h2>\n";
    push_legend(&mut page, &results.kinds)?;
    for workload in results.workloads().into_iter().filter(|workload| workload.is_fill()) {
        push_curves(&mut page, results, workload)?;
    }
    page += "</html>\n";
    Ok(page)
}

fn introduce(page: &mut String, results: &Results) -> Result<()> {
    let plan = &results.plan;
    writeln!(
        page,
        "<p>{}; load average {}; a lone fdatasync takes {:.0} µs. {} records of 16 + {} bytes, at \
         most {} s a workload, a budget of {} MiB, rounds: {} (medians).</p>\n<ul>",
        escape(&results.machine),
        escape(&results.load),
        results.sync_us,
        plan.records,
        plan.value_bytes,
        plan.limit.as_secs_f64(),
        plan.memory_bytes >> 20,
        results.rounds
    )?;
    for kind in &results.kinds {
        writeln!(page, "<li><b>{}</b>: {}</li>", kind.name(), escape(kind.configuration()))?;
    }
    page.push_str("</ul>\n");
    for failure in &results.failures {
        writeln!(page, "<p><b>Failed</b>: {}</p>", escape(failure))?;
    }
    Ok(())
}

fn push_bars(page: &mut String, results: &Results, workload: Workload, facet: Facet) -> Result<()> {
    let rows = || results.kinds.iter().filter_map(|kind| results.median(*kind, workload));
    let values: Vec<_> = rows().filter_map(|row| Some((row.engine, facet.value(row)?))).collect();
    if values.is_empty() {
        return Ok(());
    }
    let capped: Vec<_> = rows().filter(|row| row.capped).map(|row| row.engine.name()).collect();
    let stars = match capped.is_empty() {
        true => String::new(),
        false => format!(" * {}", capped.join(", ")),
    };
    writeln!(
        page,
        "<section><h3>{}</h3><p class=\"about\">{}{stars}</p>\n{}</section>",
        facet.label(workload),
        escape(&workload.about()),
        plot::bars(&values)?
    )?;
    Ok(())
}

fn push_legend(page: &mut String, kinds: &[Kind]) -> Result<()> {
    page.push_str("<p>");
    for kind in kinds {
        let plotters::style::RGBColor(red, green, blue) = plot::colour(*kind);
        write!(page, "<b style=\"color: rgb({red}, {green}, {blue})\">{}</b> ", kind.name())?;
    }
    page.push_str("</p>\n");
    Ok(())
}

fn push_curves(page: &mut String, results: &Results, workload: Workload) -> Result<()> {
    let rows: Vec<&Row> =
        results.kinds.iter().filter_map(|kind| results.median(*kind, workload)).collect();
    // One that was over within a tick has no curve.
    if rows.iter().all(|row| row.curve.is_empty()) {
        return Ok(());
    }
    let of = |curve: fn(Kind, &[_]) -> Curve| -> Vec<Curve> {
        rows.iter().map(|row| curve(row.engine, &row.curve)).collect()
    };
    writeln!(
        page,
        "<h3>{}</h3>\n{}\n{}",
        workload.name(),
        plot::rates(&of(Curve::of_rate))?,
        plot::latencies(&of(Curve::of_p99))?
    )?;
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
