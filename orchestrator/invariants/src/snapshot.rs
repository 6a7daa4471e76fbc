//! One state.

use std::collections::{BTreeMap, BTreeSet};

use drover_cluster_state::{
    Capacity, ClusterState, Name, NameKind, OperationState, Right, Subject, Vm, VolumeState,
};
use drover_ids::{NodeId, VmId, VolumeId};

use crate::Violation;

/// Everything that is wrong with a state.
pub fn check(state: &ClusterState) -> Vec<Violation> {
    let mut violations = Vec::new();
    rights(state, &mut violations);
    capacity(state, &mut violations);
    anti_affinity(state, &mut violations);
    volumes(state, &mut violations);
    names(state, &mut violations);
    operations(state, &mut violations);
    violations
}

/// The grants of a VM, from the right itself.
fn grants(vm: &Vm) -> Vec<(NodeId, u64)> {
    match vm.ownership.right() {
        Right::Unowned => vec![],
        Right::Owned { node, epoch, .. } => vec![(node, epoch.get())],
        Right::Migrating { source, epoch, target, target_epoch, .. } => {
            vec![(source, epoch.get()), (target, target_epoch.get())]
        }
    }
}

fn rights(state: &ClusterState, violations: &mut Vec<Violation>) {
    for vm in state.vms.values() {
        let name = &vm.spec.name;
        let grants = grants(vm);
        for (node, epoch) in &grants {
            if *epoch > vm.ownership.highest().get() || *epoch == 0 {
                let what = format!("VM {name} has epoch {epoch} of at most {}", vm.ownership.highest());
                violations.push(Violation::new("epoch-bounds", what));
            }
            if !state.nodes.contains_key(node) {
                let what = format!("VM {name} belongs to node {node}, which is not there");
                violations.push(Violation::new("owner-exists", what));
            }
        }
        if let [(source, old), (target, new)] = grants[..]
            && (source == target || old >= new)
        {
            let what = format!("VM {name} moves from {source} at {old} to {target} at {new}");
            violations.push(Violation::new("migration-shape", what));
        }
    }
}

fn capacity(state: &ClusterState, violations: &mut Vec<Violation>) {
    let mut taken: BTreeMap<NodeId, Capacity> = BTreeMap::new();
    for vm in state.vms.values() {
        for (node, _) in grants(vm) {
            let sum = taken.entry(node).or_default();
            *sum = sum.plus(Capacity { vcpus: vm.spec.vcpus, memory: vm.spec.memory });
        }
    }
    for (id, taken) in taken {
        let Some(node) = state.nodes.get(&id) else { continue };
        // What is reserved may have become more since they were placed; there is never more than overcommit allows.
        let factors = node.overcommit();
        let most = factors.apply(node.capacity, Capacity::default());
        if taken.vcpus > most.vcpus || taken.memory > most.memory {
            let what = format!(
                "node {} holds {} vCPU(s) and {} of {} and {}",
                node.name, taken.vcpus, taken.memory, most.vcpus, most.memory
            );
            violations.push(Violation::new("capacity", what));
        }
    }
}

fn anti_affinity(state: &ClusterState, violations: &mut Vec<Violation>) {
    let mut members: BTreeMap<(NodeId, &Name), Vec<&Name>> = BTreeMap::new();
    for vm in state.vms.values() {
        let Some(group) = &vm.spec.anti_affinity_group else { continue };
        for (node, _) in grants(vm) {
            members.entry((node, group)).or_default().push(&vm.spec.name);
        }
    }
    for ((node, group), vms) in members {
        if vms.len() > 1 {
            let what = format!("node {node} holds {vms:?} of group {group}");
            violations.push(Violation::new("anti-affinity", what));
        }
    }
}

fn volumes(state: &ClusterState, violations: &mut Vec<Violation>) {
    let mut users: BTreeMap<VolumeId, BTreeSet<VmId>> = BTreeMap::new();
    for vm in state.vms.values() {
        for attachment in &vm.spec.volumes {
            if !users.entry(attachment.volume).or_default().insert(vm.id) {
                let what = format!("VM {} has volume {} twice", vm.spec.name, attachment.volume);
                violations.push(Violation::new("volume-attached-once", what));
            }
            let volume = state.volumes.get(&attachment.volume);
            if volume.is_none_or(|v| v.attached != Some(vm.id) || v.state != VolumeState::Ready) {
                let what = format!("VM {} uses volume {}, which is not its", vm.spec.name, attachment.volume);
                violations.push(Violation::new("volume-attached", what));
            }
        }
    }
    for (volume, users) in &users {
        if users.len() > 1 {
            let what = format!("volume {volume} is used by {} VMs", users.len());
            violations.push(Violation::new("volume-attached-once", what));
        }
    }
    for volume in state.volumes.values() {
        if let Some(holder) = volume.attached
            && !users.get(&volume.id).is_some_and(|users| users.contains(&holder))
        {
            let what = format!("volume {} is attached to {holder}, which does not use it", volume.name);
            violations.push(Violation::new("volume-attached", what));
        }
    }
}

fn names(state: &ClusterState, violations: &mut Vec<Violation>) {
    let subjects = (state.vms.values().map(|vm| (NameKind::Vm, &vm.spec.name, Subject::Vm(vm.id))))
        .chain(state.volumes.values().map(|v| (NameKind::Volume, &v.name, Subject::Volume(v.id))))
        .chain(state.nodes.values().map(|n| (NameKind::Node, &n.name, Subject::Node(n.id))));
    let mut used = BTreeSet::new();
    for (kind, name, subject) in subjects {
        let holder = state.names.get(&(kind, name.clone())).map(|entry| &entry.holder);
        if holder != Some(&subject) {
            let what = format!("{kind} {subject} is called {name}, which is held by {holder:?}");
            violations.push(Violation::new("name-held", what));
        }
        used.insert((kind, name.clone()));
    }
    for (kind, name) in state.names.keys().filter(|key| !used.contains(key)) {
        violations.push(Violation::new("name-used", format!("{kind} name {name} is held for nothing")));
    }
}

fn operations(state: &ClusterState, violations: &mut Vec<Violation>) {
    for operation in state.operations.values() {
        let running = operation.state == OperationState::Running;
        if running == operation.ended_at.is_some() {
            let what = format!(
                "operation {} is {:?}, ended at {:?}",
                operation.id, operation.state, operation.ended_at
            );
            violations.push(Violation::new("operation-end", what));
        }
        let unsuccessful = matches!(operation.state, OperationState::Failed | OperationState::Cancelled);
        if unsuccessful && operation.reason.is_empty() {
            let what = format!("operation {} is {:?} without a reason", operation.id, operation.state);
            violations.push(Violation::new("operation-reason", what));
        }
        if operation.percent > 100 {
            let what = format!("operation {} is {} percent done", operation.id, operation.percent);
            violations.push(Violation::new("operation-percent", what));
        }
    }
}

#[cfg(test)]
mod tests;
