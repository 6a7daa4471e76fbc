//! Samples as comma-separated values.

use std::fmt::Write as _;

use crate::Outcome;

/// One row for each sample, with titles. Shares are between 0 and 1.
#[must_use]
pub fn csv(outcome: &Outcome) -> String {
    let mut text = String::from("day,vms,cpu,memory,rejected,fragmentation,empty_hosts\n");
    for s in &outcome.samples {
        let (cpu, memory, fragmentation) = (s.cpu, s.memory, s.fragmentation);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:.4},{},{cpu:.4},{memory:.4},{},{fragmentation:.4},{}",
            s.day, s.vms, s.rejected, s.empty_hosts
        );
    }
    text
}
