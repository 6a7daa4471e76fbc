//! An outcome to look at: as a drawing, and in a terminal.

mod svg;
mod terminal;

pub use svg::{PlotError, svg};
pub use terminal::terminal;

use crate::{Outcome, Sample};

/// Something of a sample that is a share.
struct Curve {
    name: &'static str,
    value: fn(&Sample) -> f64,
}

const CURVES: [Curve; 3] = [
    Curve { name: "cpu", value: |sample| sample.cpu },
    Curve { name: "memory", value: |sample| sample.memory },
    Curve { name: "fragmentation", value: |sample| sample.fragmentation },
];

/// Requests refused between one sample and the next.
fn rejections(outcome: &Outcome) -> impl Iterator<Item = (f64, u64)> {
    outcome.samples.windows(2).map(|pair| (pair[1].day, pair[1].rejected - pair[0].rejected))
}
