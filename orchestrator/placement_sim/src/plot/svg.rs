//! A drawing of the cluster over time.

use plotters::prelude::*;

use super::{CURVES, rejections};
use crate::Outcome;

const SIZE: (u32, u32) = (1000, 560);
/// Height of the upper part, of [`SIZE`].
const SPLIT: u32 = 400;
const COLOURS: [RGBColor; 3] = [RGBColor(31, 119, 180), RGBColor(44, 160, 44), RGBColor(214, 39, 40)];

/// The drawing could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the plot: {0}")]
pub struct PlotError(String);

/// Utilisation and fragmentation above, refused requests below, as a self-contained SVG document.
///
/// # Errors
/// If the drawing library refuses.
pub fn svg(outcome: &Outcome, title: &str) -> Result<String, PlotError> {
    let mut text = String::new();
    draw(outcome, title, &mut text).map_err(|cause| PlotError(cause.to_string()))?;
    Ok(text)
}

fn draw(outcome: &Outcome, title: &str, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(SPLIT);
    let days = outcome.samples.last().map_or(1.0, |sample| sample.day).max(f64::EPSILON);

    let mut chart = ChartBuilder::on(&upper)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(24)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..days, 0.0..1.0)?;
    let percent = |share: &f64| format!("{:.0}%", share * 100.0);
    chart.configure_mesh().light_line_style(WHITE).y_label_formatter(&percent).draw()?;
    for (curve, colour) in CURVES.iter().zip(COLOURS) {
        let points = outcome.samples.iter().map(|sample| (sample.day, (curve.value)(sample)));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;

    let refused: Vec<(f64, u64)> = rejections(outcome).collect();
    let most = refused.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let mut chart = ChartBuilder::on(&lower)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..days, 0_u64..most)?;
    chart.configure_mesh().light_line_style(WHITE).x_desc("day").y_desc("refused").y_labels(3).draw()?;
    let width = days / refused.len().max(1) as f64;
    let bars = refused.iter().filter(|(_, count)| *count > 0);
    chart.draw_series(bars.map(|(day, count)| {
        Rectangle::new([((day - width).max(0.0), 0), (*day, *count)], COLOURS[2].filled())
    }))?;
    root.present()?;
    Ok(())
}
