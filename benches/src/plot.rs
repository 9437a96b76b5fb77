//! How latency and throughput grow: plots in SVG, from the results.

use std::path::Path;

use anyhow::{Context as _, Result};
use plotters::prelude::*;

use crate::benchmarks::latency::COMPUTED;
use crate::benchmarks::throughput::WATCHED;
use crate::result::{Results, Row};

const COLOURS: [RGBColor; 5] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x55, 0x55, 0x55),
];

/// A line of a plot: its name, and its points.
type Line = (String, Vec<(f64, f64)>);

pub(crate) fn all(results: &Results, docs: &Path) -> Result<()> {
    if let Some(found) = results.0.get("latency") {
        let (mut latency, mut computed): (Vec<Line>, Vec<Line>) = Default::default();
        for row in &found.rows {
            let what = row.group.rsplit_once(", ").map_or(row.group.as_str(), |(what, _)| what);
            if what == COMPUTED {
                add(&mut computed, &row.arm, row);
            } else if row.arm == "containerhook" {
                add(&mut latency, what, row);
            }
        }
        let across = "containers a second";
        plot(&docs.join("benchmarks-latency.svg"), "Latency, median", across, "µs", &latency)?;
        let title = "Processor time of the listener for one container";
        plot(&docs.join("benchmarks-computed.svg"), title, across, "µs", &computed)?;
    }
    if let Some(found) = results.0.get("throughput") {
        let mut callers: Vec<Line> = Vec::new();
        for row in found.rows.iter().filter(|row| !row.arm.ends_with(" watched")) {
            add(&mut callers, &row.arm, row);
        }
        let file = docs.join("benchmarks-throughput.svg");
        plot(&file, "Creates held and answered", "callers at once", "a second", &callers)?;
        let files =
            ["benchmarks-watched.svg", "benchmarks-watched-latency.svg", "benchmarks-watched-computed.svg"];
        let titles = [
            "Creates held and answered, 8 callers",
            "One create, 1 caller",
            "Processor time of the listener for one create",
        ];
        for (at, (group, unit)) in WATCHED.into_iter().enumerate() {
            let mut watched: Vec<Line> = Vec::new();
            let is_one = |row: &&Row| row.group == group && row.arm.ends_with(" watched");
            for row in found.rows.iter().filter(is_one) {
                add(&mut watched, "containerhook", row);
            }
            let unit = if unit == "/s" { "a second" } else { unit };
            plot(&docs.join(files[at]), titles[at], "containers watched", unit, &watched)?;
        }
    }
    Ok(())
}

fn add(lines: &mut Vec<Line>, name: &str, row: &Row) {
    let Some(x) = row.x else { return };
    let point = (x, row.median);
    match lines.iter_mut().find(|(known, _)| known == name) {
        Some((_, points)) => points.push(point),
        None => lines.push((name.to_owned(), vec![point])),
    }
}

fn plot(file: &Path, title: &str, across: &str, up: &str, lines: &[Line]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let points = || lines.iter().flat_map(|(_, points)| points);
    let (right, top) = points().fold((1.0f64, 1.0f64), |(x, y), point| (x.max(point.0), y.max(point.1)));
    // Rates and counts go by powers: the axis is logarithmic, with its zero at one half.
    let across_of = |x: f64| x.max(0.5);
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::new(file, (720, 400)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d((0.5..right * 1.2).log_scale(), 0.0..top * 1.1)?;
        chart.configure_mesh().x_desc(across).y_desc(up).light_line_style(WHITE).draw()?;
        for ((name, points), colour) in lines.iter().zip(COLOURS.iter().cycle()) {
            let at = points.iter().map(|point| (across_of(point.0), point.1));
            chart
                .draw_series(LineSeries::new(at.clone(), colour.stroke_width(2)))?
                .label(name)
                .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
            chart.draw_series(at.map(|point| Circle::new(point, 3, colour.filled())))?;
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()?;
        Ok(())
    };
    draw().map_err(|error| anyhow::anyhow!("{error}")).with_context(|| format!("drawing {}", file.display()))
}
