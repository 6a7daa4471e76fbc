//! A VM into a file of its node. The agent does it; that the VM has ended, and why, comes with the agent's next report, as
//! with any other end.

use std::time::Duration;

use drover_cluster_state::{ClusterState, Desired, StopCause, VmPhase};
use drover_ids::{NodeId, VmId};
use drover_ports::Store;
use drover_wire::{
    control::v1::{self as wire, SuspendVmRequest},
    node::v1 as node,
};
use tokio::time::{sleep, timeout};
use tonic::Status;

use super::{Api, running::Running, vms::find};
use crate::{convert, status::gone};

/// Longest time that writing a VM may take: some hundred gigabytes on a disk of a gigabyte a second.
const WRITTEN_WITHIN: Duration = Duration::from_secs(600);
/// Longest time from the agent's answer to its report.
const REPORTED_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks at whether the report has come.
const LOOK: Duration = Duration::from_millis(20);

/// Suspends a VM. Repeated for a VM that is suspended, it has been done.
pub(super) async fn suspend<S: Store>(api: &Api<S>, request: SuspendVmRequest) -> Result<wire::Vm, Status> {
    // Repeating it is safe without being recognised: what is suspended stays so.
    let SuspendVmRequest { vm: text, .. } = request;
    let named = text.clone();
    let done = move |state: &ClusterState| {
        let vm = find(state, &named)?;
        let is_done = state.vm_phase(vm) == VmPhase::Stopped && vm.stop_cause == Some(StopCause::Suspended);
        Ok::<_, Status>(is_done.then(|| convert::vm(state, vm)))
    };
    let look = || {
        let done = done.clone();
        async move { api.cluster.read(move |view| done(view.state)).await.map_err(gone)? }
    };
    if let Some(vm) = look().await? {
        return Ok(vm);
    }
    let runner = api.cluster.read(move |view| runner(view.state, &text)).await.map_err(gone)?;
    let (vm, running) = runner?;
    let node = &running.node_name;
    let mut agent = api.agents.client(&running.address)?;
    let request = node::SuspendVmRequest { command: Some(running.command()), vm_id: vm.to_string() };
    match timeout(WRITTEN_WITHIN, agent.suspend_vm(request)).await {
        Ok(Ok(_)) => {}
        Ok(Err(status)) => {
            return Err(Status::new(status.code(), format!("node '{node}': {}", status.message())));
        }
        Err(_) => return Err(Status::deadline_exceeded(format!("node '{node}' does not answer"))),
    }
    let reported = async {
        loop {
            if let Some(vm) = look().await? {
                return Ok(vm);
            }
            sleep(LOOK).await;
        }
    };
    let late = || Status::deadline_exceeded("the VM is suspended, and its node has not reported it yet");
    timeout(REPORTED_WITHIN, reported).await.map_err(|_| late())?
}

/// Who runs it, where nobody else works on it.
fn runner(state: &ClusterState, text: &str) -> Result<(VmId, Running), Status> {
    let vm = find(state, text)?;
    let name = &vm.spec.name;
    let operation = vm.operation.and_then(|operation| state.operations.get(&operation));
    if operation.is_some_and(|operation| operation.is_running()) {
        let text = format!("vm: an operation works on VM '{name}'; valid: a VM that is left alone");
        return Err(Status::failed_precondition(text));
    }
    let running = (vm.desired == Desired::Running).then(|| Running::find(state, vm.id)).flatten();
    let not = || Status::failed_precondition(format!("vm: VM '{name}' does not run; valid: a VM that runs"));
    running.map(|running| (vm.id, running)).ok_or_else(not)
}

/// Of the VMs that are in files of a node, those that nobody will ask for: they are gone, or have run since.
pub(super) fn of_no_use(state: &ClusterState, node: NodeId, held: &[VmId]) -> Vec<VmId> {
    let of_use = |vm: &&VmId| {
        state.vms.get(vm).is_some_and(|vm| {
            // One that is being written, or used, belongs to a VM that the node has.
            vm.suspended_on == Some(node) || vm.ownership.candidates().any(|owner| owner.node == node)
        })
    };
    held.iter().filter(|vm| !of_use(vm)).copied().collect()
}
