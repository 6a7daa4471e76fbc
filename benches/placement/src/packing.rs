//! How full a cluster becomes before a request is refused.
//!
//! A generated trace runs on a cluster that its demand outgrows on the way, after weeks of VMs coming and going, and stops at
//! the first refusal. The same trace by each policy, by the textbook's heuristics, and by the linear relaxation, which no
//! algorithm can pass.

use anyhow::Context as _;
use drover_bench_report::{Better, Report, Row, median};
use drover_placement::{NAMED, Policy};
use drover_placement_sim::{Cluster, Contender, Heuristic, HostClass, Options, Until, simulate, upper_bound};
use drover_placement_trace::{
    Action, Flavour, Trace,
    azure::MachineId,
    generate::{AzureShape, HuaweiShape, Seed, azure, huawei},
};
use drover_units::{Bytes, VcpuCount};

/// The cluster's virtual CPUs, of the most that the trace asks for at once: it is outgrown in the last third.
const SIZE: f64 = 0.7;
/// Hosts of VMAgent's published experiments on Huawei-East-1 (its documentation, "Dataset").
const HUAWEI_HOST: Flavour = Flavour { vcpus: VcpuCount::new(40), memory: Bytes::gib(90) };
/// The first machine of the generated Azure trace.
const AZURE_HOST: Flavour = Flavour { vcpus: VcpuCount::new(40), memory: Bytes::gib(256) };

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) seeds: u64,
    pub(crate) huawei_creations: usize,
    pub(crate) azure_vms: usize,
}

/// Adds a row for each trace.
pub(crate) fn run(report: &mut Report, size: Size) -> anyhow::Result<()> {
    let huawei_trace = |seed| Ok(huawei(&HuaweiShape::scaled(size.huawei_creations), seed));
    one_trace(report, "huawei", HUAWEI_HOST, size.seeds, &huawei_trace)?;
    let azure_trace = |seed| {
        let tables = azure(&AzureShape { vms: size.azure_vms, ..AzureShape::default() }, seed);
        let (trace, _) = tables.on_machine(MachineId(0), AZURE_HOST).context("the generated tables")?;
        Ok(trace)
    };
    one_trace(report, "azure", AZURE_HOST, size.seeds, &azure_trace)
}

fn one_trace(
    report: &mut Report,
    name: &str,
    host: Flavour,
    seeds: u64,
    generate: &dyn Fn(Seed) -> anyhow::Result<Trace>,
) -> anyhow::Result<()> {
    let mut reached: Vec<(String, Vec<f64>)> = Vec::new();
    let mut note =
        |contender: &str, percent: f64| match reached.iter_mut().find(|(name, _)| name == contender) {
            Some((_, values)) => values.push(percent),
            None => reached.push((contender.to_owned(), vec![percent])),
        };
    let mut hosts = Vec::new();
    for seed in 1..=seeds {
        let trace = generate(Seed(seed))?;
        let count = (vcpus_max(&trace) as f64 * SIZE / f64::from(host.vcpus.get())).ceil() as usize;
        hosts.push(count as f64);
        let cluster = Cluster::new(vec![HostClass::new(name, count, host.vcpus, host.memory)])?;
        for (name, contender, migrate) in contenders()? {
            let mut placer = contender.placer(&cluster)?;
            let options = Options { until: Until::FirstRejection, migrate, samples: 0 };
            let outcome = simulate(&cluster, &trace, placer.as_mut(), options, &mut |_| {})?;
            let first = outcome.first_rejection.context("the demand outgrows the cluster")?;
            note(&name, first.cpu * 100.0);
        }
        note("lp-bound", upper_bound(&cluster, &trace).cpu * 100.0);
    }
    let hosts = median(&hosts).unwrap_or_default();
    let case = format!("{name}, {hosts} hosts of {host}");
    let row = Row::new(case, "core utilisation at first rejection", "%", Better::Higher);
    report.push(row.medians(&reached));
    Ok(())
}

/// Policies that are also measured with migrations that make room for what would be refused.
const DEFRAGMENTED: [&str; 2] = ["pack", "least-fragmentation"];

/// The engine's policies, then the heuristics; each with its name in the report and whether it may migrate.
fn contenders() -> anyhow::Result<Vec<(String, Contender, bool)>> {
    let mut contenders = Vec::new();
    for name in DEFRAGMENTED {
        contenders.push((
            format!("drover {name}, defragmented"),
            Contender::Engine(Policy::named(name)?),
            true,
        ));
    }
    for name in NAMED {
        contenders.push((format!("drover {name}"), Contender::Engine(Policy::named(name)?), false));
    }
    let textbook = Heuristic::ALL.map(|one| (one.to_string(), Contender::Heuristic(one), false));
    contenders.extend(textbook);
    Ok(contenders)
}

/// The most virtual CPUs that are asked for at once.
fn vcpus_max(trace: &Trace) -> u64 {
    let mut size_of = vec![0; trace.creations()];
    let (mut asked, mut most) = (0, 0);
    for event in trace.events() {
        let vm = event.vm.0 as usize;
        match event.action {
            Action::Create { flavour, .. } => {
                size_of[vm] = u64::from(trace.flavour(flavour).vcpus.get());
                asked += size_of[vm];
            }
            Action::Delete => asked -= size_of[vm],
        }
        most = most.max(asked);
    }
    most
}
