//! Sums against what there is.

use std::collections::BTreeSet;

use super::{PlainCluster, PlainHost, PlainNuma, PlainPages, PlainVm, Standing};
use crate::Violation;

const TWO_MIB: u64 = 2 << 20;
const ONE_GIB: u64 = 1 << 30;

/// Memory that a VM takes of its kind of pages: whole ones.
fn memory_of(vm: &PlainVm) -> u64 {
    match vm.pages {
        PlainPages::Base => vm.memory,
        PlainPages::TwoMib => vm.memory.div_ceil(TWO_MIB) * TWO_MIB,
        PlainPages::OneGib => vm.memory.div_ceil(ONE_GIB) * ONE_GIB,
    }
}

/// Hundredths of shared vCPUs that a set of VMs needs on threads that are given out `overcommit` hundredths times: a
/// pinned one takes all that its thread could have been shared into.
fn cpu_of<'a>(vms: impl Iterator<Item = &'a PlainVm>, overcommit: u64) -> u64 {
    vms.map(|vm| if vm.pinned { vm.vcpus * overcommit } else { vm.vcpus * 100 }).sum()
}

/// What a host holds against what it has.
pub(super) fn of_host(cluster: &PlainCluster, host: &PlainHost, violations: &mut Vec<Violation>) {
    let here: Vec<&Standing> = cluster.standing.iter().filter(|standing| standing.host == host.id).collect();
    let vms = || here.iter().map(|standing| &standing.vm);
    let mut over = |rule, what: &str, used: u64, most: u64| {
        if used > most {
            violations
                .push(Violation::new(rule, format!("host {} gives out {used} of {most} {what}", host.name)));
        }
    };
    let threads = host.threads.saturating_sub(host.threads_reserved);
    over(
        "cpu",
        "hundredths of a shared CPU",
        cpu_of(vms(), host.cpu_overcommit),
        threads * host.cpu_overcommit,
    );
    let memory_in = |pages| vms().filter(|vm| vm.pages == pages).map(memory_of).sum::<u64>();
    let kept = host.two_mib + host.one_gib + host.memory_reserved;
    let ordinary = u128::from(host.memory.saturating_sub(kept)) * u128::from(host.memory_overcommit) / 100;
    let ordinary = u64::try_from(ordinary).unwrap_or(u64::MAX);
    over("memory", "bytes of ordinary memory", memory_in(PlainPages::Base), ordinary);
    over("hugepages-2mib", "bytes of 2 MiB pages", memory_in(PlainPages::TwoMib), host.two_mib);
    over("hugepages-1gib", "bytes of 1 GiB pages", memory_in(PlainPages::OneGib), host.one_gib);
    for (node, (threads, memory)) in numa_nodes(host).into_iter().enumerate() {
        let bound = || here.iter().filter(|standing| standing.numa_node == Some(node)).map(|s| &s.vm);
        over(
            "numa-cpu",
            &format!("hundredths of a shared CPU of NUMA node {node}"),
            cpu_of(bound(), host.cpu_overcommit),
            threads * host.cpu_overcommit,
        );
        over("numa-memory", &format!("bytes of NUMA node {node}"), bound().map(memory_of).sum(), memory);
    }
    for standing in here {
        let bound = standing.numa_node;
        if standing.vm.numa == PlainNuma::OneNode && bound.is_none() {
            let what = format!("VM {} must be on one NUMA node of host {}", standing.vm.id, host.name);
            violations.push(Violation::new("numa-bound", what));
        }
        if bound.is_some_and(|node| node >= numa_nodes(host).len()) {
            let what = format!("VM {} is on a NUMA node that host {} has not", standing.vm.id, host.name);
            violations.push(Violation::new("numa-bound", what));
        }
    }
}

/// A host's NUMA nodes: one, where it has named none.
pub(super) fn numa_nodes(host: &PlainHost) -> Vec<(u64, u64)> {
    if host.numa.is_empty() { vec![(host.threads, host.memory)] } else { host.numa.clone() }
}

/// Ways in which a VM can lie on a host.
pub(super) fn bindings(vm: &PlainVm, host: &PlainHost) -> Vec<Option<usize>> {
    let nodes = (0..numa_nodes(host).len()).map(Some);
    match vm.numa {
        PlainNuma::Anywhere => vec![None],
        PlainNuma::OneNode => nodes.collect(),
        PlainNuma::RatherOneNode => nodes.chain([None]).collect(),
    }
}

/// What a VM more on a host would be over, by its own doing: what the host gives out too much of already does not keep a
/// VM away that takes none of it. With several NUMA nodes to choose from: the least that is wrong.
pub(super) fn of_one_more(
    cluster: &PlainCluster,
    vm: &PlainVm,
    host: &PlainHost,
    violations: &mut Vec<Violation>,
) {
    let least = bindings(vm, host).into_iter().map(|binding| of_one_more_bound(cluster, vm, host, binding));
    violations.extend(least.min_by_key(Vec::len).unwrap_or_default());
}

/// The same for one way in which it can lie there.
pub(super) fn of_one_more_bound(
    cluster: &PlainCluster,
    vm: &PlainVm,
    host: &PlainHost,
    binding: Option<usize>,
) -> Vec<Violation> {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    of_host(cluster, host, &mut before);
    of_host(&cluster.with(vm, host.id, binding), host, &mut after);
    // The same words: the sum has not changed.
    after.retain(|violation| !before.contains(violation));
    after
}

/// What projects have against what they may. A VM that stands twice counts once.
pub(super) fn of_projects(cluster: &PlainCluster, only: Option<&str>, violations: &mut Vec<Violation>) {
    for (project, limit) in cluster.limits.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        let mut seen = BTreeSet::new();
        let (mut vcpus, mut memory) = (0, 0);
        for standing in cluster.standing.iter().filter(|standing| standing.vm.project == *project) {
            if seen.insert(standing.vm.id) {
                vcpus += standing.vm.vcpus;
                memory += standing.vm.memory;
            }
        }
        let used = [("vCPUs", vcpus, limit.vcpus), ("bytes", memory, limit.memory)];
        for (what, used, most) in used.into_iter().chain([("VMs", seen.len() as u64, limit.vms)]) {
            if let Some(most) = most.filter(|most| used > *most) {
                let what = format!("project {project} has {used} {what} of {most}");
                violations.push(Violation::new("project-limit", what));
            }
        }
    }
}
