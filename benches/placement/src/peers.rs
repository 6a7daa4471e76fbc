//! Beside what kube-scheduler's own performance tests ask of it.
//!
//! Source: kubernetes/kubernetes, test/integration/scheduler_perf, `misc/performance-config.yaml` (SchedulingBasic: 680 pods/s
//! for 5000Nodes_10000Pods, 810 for 5000Nodes_50000Pods) and `affinity/performance-config.yaml` (SchedulingPodAntiAffinity: 60
//! for 5000Nodes_2000Pods; SchedulingPodAffinity: 35 for 5000Nodes_5000Pods), read in 2026. Those pods also pass an API server:
//! the ratio compares what each project asks of itself at the same shape, not two runs on one machine.

use std::{sync::Arc, time::Instant};

use drover_bench_report::{Better, ROUNDS, Report, Row, median};
use drover_placement::{Affinity, Demand, Direction, Peers, Profile, Scope, Strength};
use drover_units::{Bytes, VcpuCount};

use crate::world::{World, apart};

/// One of those tests: nodes, pods that run already, pods that are measured, and the threshold.
struct Test {
    name: &'static str,
    running: usize,
    measured: usize,
    threshold: f64,
    profile: fn() -> Profile,
}

const NODES: usize = 5_000;

const TESTS: [Test; 4] = [
    Test {
        name: "SchedulingBasic 10000Pods",
        running: 1_000,
        measured: 10_000,
        threshold: 680.0,
        profile: plain,
    },
    Test {
        name: "SchedulingBasic 50000Pods",
        running: 5_000,
        measured: 50_000,
        threshold: 810.0,
        profile: plain,
    },
    Test {
        name: "SchedulingPodAntiAffinity 2000Pods",
        running: 1_000,
        measured: 2_000,
        threshold: 60.0,
        profile: each_on_its_own,
    },
    Test {
        name: "SchedulingPodAffinity 5000Pods",
        running: 5_000,
        measured: 5_000,
        threshold: 35.0,
        profile: all_in_one_zone,
    },
];

fn plain() -> Profile {
    Profile::new(Demand::new(VcpuCount::new(1), Bytes::mib(500)))
}

fn each_on_its_own() -> Profile {
    let mut profile = plain();
    profile.groups.insert("green".to_owned());
    profile.affinity.push(apart("green"));
    profile
}

fn all_in_one_zone() -> Profile {
    let mut profile = plain();
    profile.groups.insert("blue".to_owned());
    profile.affinity.push(Affinity {
        peers: Peers::Group("blue".to_owned()),
        direction: Direction::Together,
        scope: Scope::Zone,
        strength: Strength::Required,
    });
    profile
}

/// Adds two rows for each test.
pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let mut ratios = Vec::new();
    for test in &TESTS {
        let profile = Arc::new((test.profile)());
        let mut rates = Vec::new();
        for _ in 0..ROUNDS {
            let mut world = World::of_hosts(NODES)?;
            let mut requests =
                (0..test.running + test.measured).map(|_| world.request(profile.clone())).collect::<Vec<_>>();
            let measured = requests.split_off(test.running);
            requests.iter().try_for_each(|request| world.place(request))?;
            let start = Instant::now();
            measured.iter().try_for_each(|request| world.place(request))?;
            rates.push(test.measured as f64 / start.elapsed().as_secs_f64());
        }
        let rate = median(&rates).unwrap_or(f64::NAN);
        let case = format!("{NODES} hosts as in kube-scheduler's {}", test.name);
        let row = Row::new(case.clone(), "decided and committed", "1/s", Better::Higher);
        report.push(row.value("drover", rate).value("kube-scheduler asks", test.threshold));
        let row = Row::new(case, "against the threshold", "times", Better::Higher);
        ratios.push(row.value("drover", rate / test.threshold));
    }
    ratios.into_iter().for_each(|row| report.push(row));
    report.note("kube-scheduler's thresholds: kubernetes/kubernetes test/integration/scheduler_perf, misc/ and affinity/performance-config.yaml. They include an API server.");
    Ok(())
}
