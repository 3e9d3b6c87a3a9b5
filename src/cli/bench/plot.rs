//! Operations a second over time, a line for each workload, as an SVG file; and how a database bears
//! up under overload.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::bench::overload::Overload;
use crate::failure::{Failure, Result};
use crate::text::thousands;

/// A workload's name, and its curve: seconds since the start, and operations up to then.
pub type Curve = (String, Vec<(f64, u64)>);

/// Points of a line at most: what the eye tells apart in 900 pixels.
const POINTS_MAX: f64 = 150.0;

/// Draws the curves into `file`.
pub fn draw(file: &Path, curves: &[Curve]) -> Result<()> {
    let lines: Vec<_> = curves.iter().map(|(name, curve)| (name, rates(curve))).collect();
    let points = || lines.iter().flat_map(|(_, line)| line.iter().copied());
    let seconds = points().map(|point| point.0).fold(0.1, f64::max);
    let rate = points().map(|point| point.1).fold(1.0, f64::max);
    chart(file, &lines, seconds, rate * 1.05)
        .map_err(|error| Failure::new(format!("drawing {}: {error}", file.display())))
}

/// Operations a second between the points of a curve, in steps wide enough to be seen.
fn rates(curve: &[(f64, u64)]) -> Vec<(f64, f64)> {
    let step = curve.last().map_or(0.0, |last| last.0) / POINTS_MAX;
    let mut line = Vec::new();
    let mut from = (0.0, 0);
    for &(at, ops) in curve {
        if at - from.0 >= step.max(0.01) {
            line.push(((from.0 + at) / 2.0, (ops - from.1) as f64 / (at - from.0)));
            from = (at, ops);
        }
    }
    line
}

type Line<'a> = (&'a String, Vec<(f64, f64)>);
type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Draws what was offered and accepted and what is sustained, and below the longest waits.
pub fn draw_overload(file: &Path, overload: &Overload) -> Result<()> {
    panels(file, overload)
        .map_err(|error| Failure::new(format!("drawing {}: {error}", file.display())))
}

fn panels(file: &Path, overload: &Overload) -> Drawn {
    let points = &overload.points;
    let end = points.last().map_or(0.1, |point| point.at).max(0.1);
    let curve = |of: fn(&crate::bench::overload::Point) -> u64| -> Vec<(f64, f64)> {
        rates(&points.iter().map(|point| (point.at, of(point))).collect::<Vec<_>>())
    };
    let names = ["offered", "accepted", "sustained"].map(String::from);
    let sustained = vec![(0.0, overload.sustained), (end, overload.sustained)];
    let lines: Vec<Line<'_>> = names
        .iter()
        .zip([curve(|point| point.offered), curve(|point| point.accepted), sustained])
        .collect();
    let highest = lines.iter().flat_map(|(_, line)| line).map(|point| point.1).fold(1.0, f64::max);
    let waits: Vec<_> = points.iter().map(|point| (point.at, point.slowest_ms)).collect();
    let longest = waits.iter().map(|point| point.1).fold(1.0, f64::max);
    let root = SVGBackend::new(file, (960, 720)).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(460);
    panel(&upper, &lines, end, highest * 1.05, "operations a second")?;
    let name = "longest wait".to_string();
    panel(&lower, &[(&name, waits)], end, longest * 1.05, "milliseconds")?;
    Ok(root.present()?)
}

fn chart(file: &Path, lines: &[Line<'_>], seconds: f64, rate: f64) -> Drawn {
    let root = SVGBackend::new(file, (960, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    panel(&root, lines, seconds, rate, "operations a second")?;
    Ok(root.present()?)
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    lines: &[Line<'_>],
    seconds: f64,
    highest: f64,
    unit: &str,
) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(90)
        .build_cartesian_2d(0.0..seconds, 0.0..highest)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("seconds")
        .y_desc(unit)
        .y_label_formatter(&|value| thousands(*value as u64))
        .draw()?;
    for (index, (name, line)) in lines.iter().enumerate() {
        let color = Palette99::pick(index).stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.iter().copied(), color))?
            .label(name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color));
    }
    if !lines.is_empty() {
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_between_the_points() {
        assert_eq!(rates(&[(0.0, 0), (1.0, 100), (2.0, 400)]), [(0.5, 100.0), (1.5, 300.0)]);
        assert_eq!(rates(&[(0.0, 0), (0.0, 5)]), []);
        let long: Vec<_> = (0..10_000).map(|i| (f64::from(i) / 10.0, i as u64 * 7)).collect();
        let line = rates(&long);
        assert!(line.len() <= 160 && line.iter().all(|(_, rate)| (rate - 70.0).abs() < 1e-6));
    }

    #[test]
    fn curves_become_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plot.svg");
        draw(&file, &[("fillrandom".into(), vec![(0.0, 0), (0.1, 9), (0.2, 30)])]).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("<svg") && text.contains("fillrandom"), "{text}");
        draw(&file, &[]).unwrap();
        assert!(draw(&dir.path().join("nowhere/plot.svg"), &[]).is_err());
    }
}
