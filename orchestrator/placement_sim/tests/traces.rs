//! Short generated traces, by every policy and heuristic.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use drover_placement::NAMED;
use drover_placement_sim::{
    Cluster, Contender, Heuristic, HostClass, Options, Outcome, Until, csv, plot, simulate, upper_bound,
};
use drover_placement_trace::{
    Flavour, Trace,
    azure::MachineId,
    generate::{AzureShape, HuaweiShape, Seed, azure, huawei},
};
use drover_units::{Bytes, VcpuCount};

const HOST: Flavour = Flavour { vcpus: VcpuCount::new(40), memory: Bytes::gib(90) };

/// Policies that are also run with migrations: a policy that spreads would migrate at every other request.
const MIGRATE: [&str; 2] = ["pack", "least-fragmentation"];

fn cluster(hosts: usize) -> Cluster {
    Cluster::new(vec![HostClass::new("h", hosts, HOST.vcpus, HOST.memory)]).unwrap()
}

fn run(cluster: &Cluster, trace: &Trace, contender: &str, options: Options) -> Outcome {
    let contender: Contender = contender.parse().unwrap();
    let mut placer = contender.placer(cluster).unwrap();
    simulate(cluster, trace, placer.as_mut(), options, &mut |_| {})
        .unwrap_or_else(|error| panic!("{contender}: {error}"))
}

fn everybody() -> Vec<&'static str> {
    NAMED.into_iter().chain(Heuristic::ALL.map(Heuristic::name)).collect()
}

#[test]
fn nobody_overcommits_a_host() {
    let trace = huawei(&HuaweiShape::scaled(4_000), Seed(1));
    // Outgrown half way, so that much is refused and much comes and goes on full hosts.
    let cluster = cluster(6);
    for contender in everybody() {
        let outcome = run(&cluster, &trace, contender, Options::default());
        assert_eq!(outcome.placed + outcome.rejected, 4_000, "{contender}");
        assert!(outcome.rejected > 100 && outcome.cpu_max <= 1.0, "{contender}: {outcome:?}");
    }
}

#[test]
fn nobody_passes_the_bound_before_a_first_refusal() {
    let tables = azure(&AzureShape { vms: 3_000, ..AzureShape::default() }, Seed(2));
    let azure = tables.on_machine(MachineId(0), HOST).unwrap().0;
    for (trace, hosts) in [(huawei(&HuaweiShape::scaled(4_000), Seed(2)), 7), (azure, 20)] {
        let cluster = cluster(hosts);
        let bound = upper_bound(&cluster, &trace);
        for contender in everybody() {
            let options =
                Options { until: Until::FirstRejection, migrate: MIGRATE.contains(&contender), samples: 0 };
            let outcome = run(&cluster, &trace, contender, options);
            let first = outcome.first_rejection.expect("the trace outgrows the cluster");
            assert!(first.cpu <= bound.cpu + 1e-9, "{contender}: {} above {bound:?}", first.cpu);
            assert!(bound.day.is_some_and(|day| first.day <= day), "{contender}: {first:?} after {bound:?}");
        }
    }
}

#[test]
fn packing_policies_are_as_tight_as_the_best_heuristic() {
    let options = Options { until: Until::FirstRejection, migrate: false, samples: 0 };
    let trace = huawei(&HuaweiShape::scaled(40_000), Seed(3));
    let cluster = cluster(95);
    let reached =
        |contender| run(&cluster, &trace, contender, options).first_rejection.expect("outgrown").cpu;
    let best = Heuristic::ALL.map(|heuristic| reached(heuristic.name())).into_iter().fold(0.0, f64::max);
    for policy in ["pack", "least-fragmentation", "lifetime-aware", "energy"] {
        let cpu = reached(policy);
        assert!(cpu >= best - 0.02, "{policy} reaches {cpu}, the best heuristic {best}");
        if !MIGRATE.contains(&policy) {
            continue;
        }
        let options = Options { migrate: true, ..options };
        let migrated = run(&cluster, &trace, policy, options).first_rejection.expect("outgrown").cpu;
        let bound = upper_bound(&cluster, &trace).cpu;
        assert!(migrated >= bound - 0.02, "{policy} with migrations reaches {migrated} of {bound}");
    }
}

#[test]
fn equal_traces_give_equal_outcomes() {
    let trace = huawei(&HuaweiShape::scaled(3_000), Seed(4));
    for contender in everybody() {
        let options = Options { samples: 10, ..Options::default() };
        let once = run(&cluster(5), &trace, contender, options);
        assert_eq!(run(&cluster(5), &trace, contender, options), once, "{contender}");
    }
    let options = Options { until: Until::FirstRejection, migrate: true, samples: 10 };
    let once = run(&cluster(5), &trace, MIGRATE[0], options);
    assert_eq!(run(&cluster(5), &trace, MIGRATE[0], options), once);
}

#[test]
fn an_outcome_can_be_drawn_and_tabulated() {
    let trace = huawei(&HuaweiShape::scaled(3_000), Seed(5));
    let outcome = run(&cluster(5), &trace, "pack", Options { samples: 50, ..Options::default() });
    let drawing = plot::svg(&outcome, "pack <on> five & hosts").unwrap();
    assert!(drawing.starts_with("<svg") && drawing.trim_end().ends_with("</svg>"), "{drawing:.60}");
    assert!(drawing.contains("pack &lt;on&gt; five &amp; hosts"));
    assert!(drawing.matches("<polyline").count() >= 3, "a curve each");
    let table = csv(&outcome);
    assert_eq!(table.lines().count(), outcome.samples.len() + 1);
    let columns = table.lines().map(|line| line.split(',').count());
    assert!(columns.into_iter().all(|count| count == 7), "{table}");
    let curves = plot::terminal(&outcome, 40);
    assert_eq!(curves.lines().count(), 5, "{curves}");
}
