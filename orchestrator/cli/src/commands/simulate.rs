//! `drover placement simulate`: files in, results out; the work is `drover-placement-sim`'s.

use std::{
    fs::{self, File},
    io::{BufReader, Read as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use drover_placement_sim::{
    Bound, Cluster, Contender, Options, Outcome, Sample, Until, plot, simulate, upper_bound,
};
use drover_placement_trace::{
    Flavour, Trace,
    azure::{self, MachineId, Tables},
    generate::{self, AzureShape, HuaweiShape, Seed},
    huawei,
};
use serde::Serialize;

use crate::{
    arguments::{Simulate, Stop},
    output::{Format, Row, print_rows, print_text},
    progress,
};

/// Events between two steps of the progress bar: drawing it must cost nothing beside deciding.
const PROGRESS_STEP: usize = 1 << 12;
/// Characters of a curve in a terminal: with its title and figures it fits 120 columns.
const PLOT_WIDTH: usize = 72;
/// What begins an SQLite file (SQLite's file format, section 1.2).
const SQLITE_MAGIC: &[u8] = b"SQLite format 3\0";

/// Runs every policy and prints what came of it.
pub(crate) fn run(arguments: &Simulate, format: Format) -> anyhow::Result<()> {
    let path = &arguments.cluster;
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let cluster = Cluster::parse(&text).with_context(|| path.display().to_string())?;
    let trace = load(arguments, &cluster)?;
    let until = match arguments.until {
        Stop::End => Until::End,
        Stop::FirstRejection => Until::FirstRejection,
    };
    let options = Options { until, migrate: arguments.defragment, ..Options::default() };
    let bound = upper_bound(&cluster, &trace);
    let mut rows = Vec::new();
    for contender in &arguments.policies {
        let mut placer = contender.placer(&cluster)?;
        let bar = progress::simulation_bar(&contender.to_string(), trace.events().len());
        let outcome = simulate(&cluster, &trace, placer.as_mut(), options, &mut |done| {
            if done.is_multiple_of(PROGRESS_STEP) {
                bar.set_position(done as u64);
            }
        });
        bar.finish_and_clear();
        let outcome = outcome.with_context(|| format!("policy {contender}"))?;
        write_files(arguments, contender, &outcome)?;
        rows.push(SimulationRow::new(contender, bound, outcome));
    }
    print_rows(format, &rows)?;
    if format == Format::Table {
        for row in &rows {
            print_text(&format!("\n{}\n{}", row.policy, plot::terminal(&row.outcome, PLOT_WIDTH)))?;
        }
    }
    Ok(())
}

fn load(arguments: &Simulate, cluster: &Cluster) -> anyhow::Result<Trace> {
    let seed = Seed(arguments.seed);
    match arguments.trace.as_str() {
        "huawei" => {
            let shape = match arguments.requests {
                Some(requests) => HuaweiShape::scaled(requests as usize),
                None => HuaweiShape::default(),
            };
            Ok(generate::huawei(&shape, seed))
        }
        "azure" => {
            let whole = AzureShape::default();
            let vms = arguments.requests.map_or(whole.vms, |requests| requests as usize);
            on_machine(arguments, cluster, &generate::azure(&AzureShape { vms, ..whole }, seed))
        }
        file => {
            let path = Path::new(file);
            read(arguments, cluster, path).with_context(|| path.display().to_string())
        }
    }
}

fn read(arguments: &Simulate, cluster: &Cluster, path: &Path) -> anyhow::Result<Trace> {
    let mut file = File::open(path).context("cannot open the trace (or is it to be 'huawei' or 'azure'?)")?;
    if let Some(types) = &arguments.vm_types {
        let types = File::open(types).with_context(|| format!("cannot open {}", types.display()))?;
        let tables = azure::read_csv(BufReader::new(file), BufReader::new(types))?;
        return on_machine(arguments, cluster, &tables);
    }
    let mut begin = Vec::new();
    file.by_ref().take(SQLITE_MAGIC.len() as u64).read_to_end(&mut begin).context("cannot read the trace")?;
    if begin == SQLITE_MAGIC {
        return on_machine(arguments, cluster, &azure::read_sqlite(path)?);
    }
    Ok(huawei::read(BufReader::new(begin.as_slice().chain(file)))?)
}

/// The requests for one machine of the Azure trace, in the size of the cluster's first hosts.
fn on_machine(arguments: &Simulate, cluster: &Cluster, tables: &Tables) -> anyhow::Result<Trace> {
    let machine = arguments.machine.map(MachineId).or_else(|| tables.commonest_machine());
    let Some(machine) = machine else { bail!("the trace has no VM types") };
    let Some(class) = cluster.classes().first() else { bail!("the cluster has no hosts") };
    let size = Flavour { vcpus: class.cores, memory: class.memory };
    let (trace, left_out) = tables.on_machine(machine, size)?;
    if left_out > 0 {
        eprintln!(
            "{left_out} requests are for types that machine {} is not offered with: left out",
            machine.0
        );
    }
    Ok(trace)
}

fn write_files(arguments: &Simulate, contender: &Contender, outcome: &Outcome) -> anyhow::Result<()> {
    let several = arguments.policies.len() > 1;
    let path_of =
        |path: &PathBuf| if several { with_name(path, &contender.to_string()) } else { path.clone() };
    let write = |path: PathBuf, text: &str| {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    if let Some(path) = &arguments.plot {
        let title = format!("{} on {}: {contender}", arguments.trace, arguments.cluster.display());
        write(path_of(path), &plot::svg(outcome, &title)?)?;
    }
    if let Some(path) = &arguments.csv {
        write(path_of(path), &drover_placement_sim::csv(outcome))?;
    }
    Ok(())
}

/// `out.svg` becomes `out-pack.svg`.
fn with_name(path: &Path, name: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-{name}{extension}"))
}

/// What came of one policy.
#[derive(Debug, Serialize)]
struct SimulationRow {
    policy: String,
    /// Share of the virtual CPUs that no algorithm can pass before its first refusal.
    lp_bound_cpu: f64,
    /// The mean of the samples.
    fragmentation_mean: f64,
    #[serde(flatten)]
    outcome: Outcome,
}

impl SimulationRow {
    fn new(contender: &Contender, bound: Bound, outcome: Outcome) -> Self {
        let sum: f64 = outcome.samples.iter().map(|sample: &Sample| sample.fragmentation).sum();
        Self {
            policy: contender.to_string(),
            lp_bound_cpu: bound.cpu,
            fragmentation_mean: sum / outcome.samples.len().max(1) as f64,
            outcome,
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

impl Row for SimulationRow {
    const TITLES: &'static [&'static str] = &[
        "POLICY",
        "PLACED",
        "REFUSED",
        "FIRST REFUSAL",
        "AT CPU",
        "AT MEMORY",
        "LP BOUND",
        "CPU MEAN",
        "CPU MAX",
        "FRAGMENTATION",
        "MIGRATED",
    ];

    fn cells(&self) -> Vec<String> {
        let outcome = &self.outcome;
        let first = outcome.first_rejection;
        let of_first = |text: fn(drover_placement_sim::FirstRejection) -> String| {
            first.map_or_else(|| "-".to_owned(), text)
        };
        vec![
            self.policy.clone(),
            outcome.placed.to_string(),
            outcome.rejected.to_string(),
            of_first(|first| format!("day {:.1}, {} vCPU", first.day, first.vcpus)),
            of_first(|first| percent(first.cpu)),
            of_first(|first| percent(first.memory)),
            percent(self.lp_bound_cpu),
            percent(outcome.cpu_mean),
            percent(outcome.cpu_max),
            percent(self.fragmentation_mean),
            outcome.migrated.to_string(),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        Self::TITLES.iter().copied().zip(self.cells()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_gets_a_file_of_its_own() {
        let check =
            |path: &str, expect: &str| assert_eq!(with_name(Path::new(path), "pack"), Path::new(expect));
        check("out.svg", "out-pack.svg");
        check("/tmp/a.b/out", "/tmp/a.b/out-pack");
    }
}
