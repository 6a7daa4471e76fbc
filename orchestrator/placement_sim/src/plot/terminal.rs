//! Curves of block characters.

use super::{CURVES, rejections};
use crate::Outcome;

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Longest title, so that the curves begin in one column.
const TITLE: usize = 13;

/// One line for each curve, so many characters wide; a share of 1 is a full block.
#[must_use]
pub fn terminal(outcome: &Outcome, width: usize) -> String {
    let mut text = String::new();
    for curve in CURVES {
        let values: Vec<f64> = outcome.samples.iter().map(curve.value).collect();
        let last = values.last().copied().unwrap_or(0.0);
        let most = values.iter().copied().fold(0.0, f64::max);
        let line = blocks(&buckets(&values, width, f64::max), 1.0);
        text.push_str(&format!(
            "{:TITLE$} {line} max {:.1}%, end {:.1}%\n",
            curve.name,
            most * 100.0,
            last * 100.0
        ));
    }
    let refused: Vec<f64> = rejections(outcome).map(|(_, count)| count as f64).collect();
    let buckets = buckets(&refused, width, |sum, value| sum + value);
    let most = buckets.iter().copied().fold(0.0, f64::max);
    text.push_str(&format!(
        "{:TITLE$} {} {} in all\n",
        "rejections",
        blocks(&buckets, most),
        outcome.rejected
    ));
    let end = outcome.samples.last().map_or(0.0, |sample| sample.day);
    text.push_str(&format!(
        "{:TITLE$} day 0{:>right$}\n",
        "",
        format!("{end:.1}"),
        right = width.saturating_sub(5)
    ));
    text
}

/// Values by columns, several to a column put together by `join`; fewer values than columns repeat.
fn buckets(values: &[f64], width: usize, join: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    let column = |index: usize| {
        let from = index * values.len() / width;
        let to = ((index + 1) * values.len() / width).max(from + 1).min(values.len());
        values.get(from..to).unwrap_or_default().iter().copied().fold(0.0, &join)
    };
    (0..width).map(column).collect()
}

fn blocks(values: &[f64], full: f64) -> String {
    let block = |value: &f64| {
        if *value <= 0.0 || full <= 0.0 {
            return ' ';
        }
        let level = (value / full * BLOCKS.len() as f64).ceil() as usize;
        BLOCKS[level.clamp(1, BLOCKS.len()) - 1]
    };
    values.iter().map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[f64], full: f64, expect: &str) {
        assert_eq!(blocks(values, full), expect);
    }

    #[test]
    fn a_block_is_as_high_as_its_value() {
        check(&[0.0, 0.01, 0.5, 1.0], 1.0, " ▁▄█");
        check(&[0.0, 0.0], 0.0, "  ");
        check(&[2.0, 4.0], 4.0, "▄█");
    }

    #[test]
    fn many_values_share_a_column_and_few_repeat() {
        assert_eq!(buckets(&[1.0, 3.0, 2.0, 0.0], 2, f64::max), [3.0, 2.0]);
        assert_eq!(buckets(&[1.0, 3.0, 2.0, 0.0], 2, |a, b| a + b), [4.0, 2.0]);
        assert_eq!(buckets(&[1.0, 2.0], 4, f64::max), [1.0, 1.0, 2.0, 2.0]);
        assert_eq!(buckets(&[], 3, f64::max), [0.0; 3]);
    }
}
