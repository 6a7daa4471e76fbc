//! Room that is kept for host failures.
//!
//! A sum of free room would not do: it may lie in pieces too small for the VMs that need it. So the restart is tried, on
//! a snapshot: the fullest hosts are taken away, and their VMs are placed on the others, large ones first, as
//! tightly as possible and with all their constraints.

use std::cmp::Reverse;

use crate::{Decision, HostState, HostView, Inventory, Policy, Request};

use super::Decider;

/// Whether the fullest hosts could still fail if a decision were carried out.
pub(super) fn holds(
    decider: &mut Decider,
    inventory: &Inventory,
    request: &Request,
    policy: &Policy,
    decision: &Decision,
) -> bool {
    let mut scratch = inventory.clone();
    for victim in &decision.victims {
        if scratch.remove_vm(*victim).is_err() {
            return false;
        }
    }
    if scratch.hold(decision.host, request).is_err() {
        // It is there already, and takes nothing more.
        return true;
    }
    survives(decider, &scratch, policy)
}

/// Whether the VMs of the fullest hosts could be restarted on the others.
pub(super) fn survives(decider: &mut Decider, inventory: &Inventory, policy: &Policy) -> bool {
    if policy.host_failures == 0 {
        return true;
    }
    let mut hosts: Vec<HostView<'_>> =
        inventory.hosts().filter(|host| host.state() == HostState::Ready && host.vm_count() > 0).collect();
    hosts.sort_by_key(|host| (Reverse(host.memory_used()), Reverse(host.cpu_used()), host.id()));
    hosts.truncate(usize::from(policy.host_failures));
    let mut vms: Vec<_> = hosts.iter().flat_map(HostView::vms).collect();
    vms.sort_by_key(|vm| {
        let demand = vm.profile().demand;
        (Reverse(demand.memory), Reverse(demand.vcpus), vm.id())
    });
    let mut scratch = inventory.clone();
    for host in &hosts {
        if scratch.set_state(host.id(), HostState::Fenced).is_err() {
            return false;
        }
    }
    for vm in &vms {
        if scratch.release(vm.id(), vm.host().id()).is_err() {
            return false;
        }
    }
    // Packing: what is asked is whether there is a way, not whether the policy would take it.
    let tightly = Policy::default();
    vms.iter().all(|vm| {
        let request = vm.request();
        let restarted = decider.decide(&scratch, &request, &tightly);
        restarted.is_ok_and(|decision| scratch.hold(decision.host, &request).is_ok())
    })
}
