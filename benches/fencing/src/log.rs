//! What a vmmd logs of its own steps: `took_us=` beside a sentence.

use std::{fs, path::Path, time::Duration};

/// Every time that a step took, in the order of the log.
pub(crate) fn took(log: &Path, step: &str) -> Vec<Duration> {
    parse(&fs::read_to_string(log).unwrap_or_default(), step, "took_us=")
}

/// The sum of them: nothing where the step was not needed.
pub(crate) fn took_in_all(log: &Path, step: &str) -> Duration {
    took(log, step).into_iter().sum()
}

fn parse(text: &str, step: &str, field: &str) -> Vec<Duration> {
    let lines = text.lines().filter(|line| line.contains(step));
    let value = |line: &str| line.split(field).nth(1)?.split_whitespace().next()?.parse().ok();
    lines.filter_map(value).map(Duration::from_micros).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_found_by_its_sentence() {
        let text = "INFO vmmd: volumes released took_us=120\nINFO vmmd: volumes acquired took_us=7 n=1\nINFO other took_us=9\n";
        assert_eq!(parse(text, "volumes acquired", "took_us="), [Duration::from_micros(7)]);
        assert_eq!(parse(text, "nothing of it", "took_us="), []);
    }
}
