//! Watching a probe from outside: its lines, and its VMM's CPU time between two of them.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use drover_bench_vmms::ensure_uninterrupted;
use drover_probe_record::{
    BenchFigures, Event, Workload,
    bench::{WARM_UP_MS, Wait},
};

use crate::{case::Case, cpu::CpuTime, figures::Figures};

/// Between two looks at the log: a thousandth of what is measured.
const LOOK: Duration = Duration::from_millis(3);
/// From the start of a VMM to the end of its measurement, beside the measurement itself.
const SLACK: Duration = Duration::from_secs(30);
/// Between the end of a measurement and the guest's halt, so that the last lines do not meet it.
const HALT_AFTER_MS: u64 = 300;

/// vCPUs and memory of every guest.
pub(crate) const VCPUS: u32 = 1;
pub(crate) const MEMORY_MIB: u64 = 128;

/// What the guest is told.
pub(crate) fn command_line(case: &Case, length: Duration, wait: Option<Wait>) -> String {
    let work = case.work(length, wait);
    let halt_after_ms = WARM_UP_MS + work.ms + HALT_AFTER_MS;
    Workload {
        bench: Some(work),
        // A VMM that ends with its guest closes the image in order: nobody after it waits for a lock of the dead.
        halt_after_ms: Some(halt_after_ms),
        vcpus: Some(u64::from(VCPUS)),
        ..Workload::default()
    }
    .to_string()
}

/// Follows the console in `log` of a VMM's process to the end of its measurement.
pub(crate) fn measure(
    log: &Path,
    pid: u32,
    length: Duration,
    mut alive: impl FnMut() -> bool,
) -> anyhow::Result<Figures> {
    let deadline = Instant::now() + length + SLACK;
    let mut start = None;
    let mut seen = 0;
    loop {
        ensure_uninterrupted()?;
        let lives = alive();
        let text = fs::read(log).unwrap_or_default();
        while let Some(end) = text[seen..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&text[seen..seen + end]).into_owned();
            seen += end + 1;
            match Event::parse(line.trim()) {
                Ok(Event::BenchStart { .. }) => start = Some(CpuTime::of(pid)?),
                Ok(Event::Bench(counted)) => return finish(&counted, start, pid),
                Ok(Event::Error { what }) => bail!("the guest says: {what}"),
                _ => {}
            }
        }
        ensure!(
            lives,
            "the VMM ended before its measurement did; console: {}",
            String::from_utf8_lossy(&text)
        );
        ensure!(
            Instant::now() < deadline,
            "the measurement did not end; console: {}",
            String::from_utf8_lossy(&text)
        );
        thread::sleep(LOOK);
    }
}

fn finish(counted: &BenchFigures, start: Option<CpuTime>, pid: u32) -> anyhow::Result<Figures> {
    ensure!(counted.failed == 0, "{} requests failed", counted.failed);
    ensure!(counted.ops > 0, "no request ended");
    let Some(start) = start else { bail!("the measurement ended without a beginning") };
    Ok(Figures::of_guest(counted, CpuTime::of(pid)?.since(start)))
}
