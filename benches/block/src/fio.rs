//! fio's rbd or io_uring engine: what the storage gives without a guest.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, bail, ensure};
use drover_probe_record::bench::WARM_UP_MS;
use drover_test_prerequisites::is_installed;
use serde_json::Value;

use crate::{Contender, case::Case, figures::Figures, target::Target};

pub(crate) struct Fio<'a> {
    target: &'a Target,
}

impl<'a> Fio<'a> {
    /// fio, where it is here with the engine that the target takes.
    pub(crate) fn find(target: &'a Target) -> anyhow::Result<Self> {
        ensure!(is_installed("fio"), "fio is not installed (package fio)");
        let engines = Command::new("fio").arg("--enghelp").output().context("cannot run fio")?;
        let wanted = if let Target::Rbd(_) = target { "rbd" } else { "io_uring" };
        let has = String::from_utf8_lossy(&engines.stdout).lines().any(|line| line.trim() == wanted);
        ensure!(has, "this fio has no {wanted} engine");
        Ok(Self { target })
    }
}

impl Contender for Fio<'_> {
    fn name(&self) -> &str {
        "fio"
    }

    /// It is one thread, which more queues are no use to.
    fn can(&self, case: &Case) -> bool {
        case.queues == 1
    }

    fn run(&self, case: &Case, length: Duration) -> anyhow::Result<Figures> {
        let (storage, environment) = self.target.fio();
        let output = Command::new("fio")
            .args(["--name=bench", "--output-format=json", "--time_based"])
            .args(storage)
            .arg(format!("--rw={}", case.pattern.word()))
            .arg(format!("--bs={}", case.request_bytes))
            .arg(format!("--iodepth={}", case.queue_depth))
            .arg(format!("--runtime={}ms", length.as_millis()))
            .arg(format!("--ramp_time={WARM_UP_MS}ms"))
            // From before the submission, as a guest counts it: what the page cache holds is there when that returns.
            .args(["--lat_percentiles=1", "--clat_percentiles=0"])
            .envs(environment)
            .output()
            .context("cannot run fio")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("fio failed: {} {}", text.trim(), String::from_utf8_lossy(&output.stderr).trim());
        }
        parse(&text, case.pattern.writes())
    }
}

/// Reads fio's JSON, before which it may have written warnings.
fn parse(text: &str, writes: bool) -> anyhow::Result<Figures> {
    let json = text.find('{').and_then(|start| serde_json::from_str::<Value>(&text[start..]).ok());
    let json = json.with_context(|| format!("fio wrote no JSON: {text}"))?;
    let job = &json["jobs"][0];
    let side = &job[if writes { "write" } else { "read" }];
    let number = |value: &Value, what: &str| value.as_f64().with_context(|| format!("fio tells no {what}"));
    let latency = |percentile: &str| {
        let ns = number(&side["lat_ns"]["percentile"][percentile], "percentiles")?;
        Ok::<_, anyhow::Error>(ns / 1e3)
    };
    Ok(Figures {
        ops_per_s: number(&side["iops"], "iops")?,
        mib_per_s: number(&side["bw_bytes"], "bw_bytes")? / f64::from(1 << 20),
        p50_us: latency("50.000000")?,
        p99_us: latency("99.000000")?,
        // It tells the CPU time of its own thread only, and most is librbd's.
        guest: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_behind_warnings() {
        let text = r#"fio: a note
            {"jobs": [{"read": {"iops": 1000.5, "bw_bytes": 2097152, "lat_ns": {"percentile": {"50.000000": 1500, "99.000000": 9000}}}}]}"#;
        let figures = parse(text, false).unwrap();
        assert_eq!((figures.ops_per_s, figures.mib_per_s), (1000.5, 2.0));
        assert_eq!((figures.p50_us, figures.p99_us), (1.5, 9.0));
        assert!(parse(text, true).is_err());
    }
}
