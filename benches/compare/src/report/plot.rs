//! Plots as SVG, drawn by plotters: bars of a workload, and curves over time.

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::engine::Kind;
use crate::failure::{Failure, Result};
use crate::meter::Point;
use crate::report::short;

/// Pixels of a bar with the space around it.
const BAR_HEIGHT: i32 = 22;
/// Where bars begin, right of the names.
const BARS_LEFT: i32 = 80;
/// The longest bar; its number stands behind it.
const BARS_WIDTH: f64 = 250.0;
const BARS_PICTURE_WIDTH: u32 = 420;
const CURVES_SIZE: (u32, u32) = (860, 260);
const SANS: &str = "sans-serif";

/// An engine has the same colour everywhere.
pub fn colour(kind: Kind) -> RGBColor {
    match kind {
        Kind::Esker => RGBColor(200, 60, 30),
        Kind::EskerPread => RGBColor(230, 140, 110),
        Kind::Rocksdb => RGBColor(70, 110, 180),
        Kind::Fjall => RGBColor(60, 150, 100),
        Kind::Surrealkv => RGBColor(150, 90, 170),
        Kind::Canopydb => RGBColor(120, 160, 50),
        Kind::Heed => RGBColor(110, 110, 110),
        Kind::HeedWritemap => RGBColor(160, 160, 160),
        Kind::Redb => RGBColor(190, 140, 40),
        Kind::Sled => RGBColor(60, 160, 180),
    }
}

/// A bar for each engine.
pub fn bars(values: &[(Kind, f64)]) -> Result<String> {
    let mut svg = String::new();
    let height = BAR_HEIGHT * values.len() as i32;
    let size = (BARS_PICTURE_WIDTH, height as u32);
    let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    let most = values.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    for (place, (kind, value)) in values.iter().enumerate() {
        draw_bar(&area, place as i32 * BAR_HEIGHT, *kind, *value, value / most)?;
    }
    area.present().map_err(failed)?;
    drop(area);
    Ok(svg)
}

fn draw_bar(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    top: i32,
    kind: Kind,
    value: f64,
    share: f64,
) -> Result<()> {
    let end = BARS_LEFT + (BARS_WIDTH * share) as i32;
    let corners = [(BARS_LEFT, top + 3), (end.max(BARS_LEFT + 1), top + BAR_HEIGHT - 3)];
    area.draw(&Rectangle::new(corners, colour(kind).filled())).map_err(failed)?;
    let style = (SANS, 13).into_font();
    let name = Text::new(kind.name(), (0, top + 5), style.clone());
    area.draw(&name).map_err(failed)?;
    let number = Text::new(short(value), (end + 6, top + 5), style);
    area.draw(&number).map_err(failed)
}

/// One curve.
pub struct Curve {
    /// Whose.
    pub kind: Kind,
    /// Over seconds.
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// Thousands of operations a second.
    pub fn of_rate(kind: Kind, points: &[Point]) -> Curve {
        let points = points.iter().map(|point| (point.seconds, point.rate / 1000.0)).collect();
        Curve { kind, points }
    }

    /// Microseconds, for a logarithmic scale. A tick in which nothing ended has none.
    pub fn of_p99(kind: Kind, points: &[Point]) -> Curve {
        let points = points.iter().filter(|point| point.p99_us > 0.0);
        Curve { kind, points: points.map(|point| (point.seconds, point.p99_us)).collect() }
    }

    fn end(&self) -> f64 {
        self.points.last().map_or(0.0, |(seconds, _)| *seconds)
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        self.points.iter().map(|(_, value)| *value)
    }
}

/// Operations a second over time.
pub fn rates(curves: &[Curve]) -> Result<String> {
    let most = curves.iter().flat_map(Curve::values).fold(1.0, f64::max);
    draw_curves(curves, "thousands of operations a second", 0.0..most * 1.05)
}

/// p99 over time.
pub fn latencies(curves: &[Curve]) -> Result<String> {
    let most = curves.iter().flat_map(Curve::values).fold(1.0, f64::max);
    let least = curves.iter().flat_map(Curve::values).fold(most, f64::min);
    let range = (least * 0.8..most * 1.5).log_scale();
    draw_curves(curves, "p99 in microseconds", range)
}

fn draw_curves<Y>(curves: &[Curve], label: &str, range: Y) -> Result<String>
where
    Y: plotters::coord::ranged1d::AsRangedCoord<Value = f64>,
    Y::CoordDescType: plotters::coord::ranged1d::ValueFormatter<f64>,
{
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, CURVES_SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(failed)?;
    let end = curves.iter().map(Curve::end).fold(0.1, f64::max);
    let mut chart = ChartBuilder::on(&area)
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..end, range)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("seconds")
        .y_desc(label)
        .light_line_style(WHITE)
        .y_label_formatter(&|value: &f64| short(*value))
        .draw()
        .map_err(failed)?;
    for curve in curves {
        let line = LineSeries::new(curve.points.iter().copied(), colour(curve.kind));
        chart.draw_series(line).map_err(failed)?;
    }
    drop(chart);
    area.present().map_err(failed)?;
    drop(area);
    Ok(svg)
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(format!("drawing: {error}"))
}
