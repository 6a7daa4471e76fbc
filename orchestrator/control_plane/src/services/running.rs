//! VMs that run, and the way to the process of one.

use std::time::Duration;

use drover_cluster_state::ClusterState;
use drover_driver::View;
use drover_ids::VmId;
use drover_ports::Store;
use drover_wire::{control::v1 as wire, node::v1 as node, vm::v1 as vm};
use tokio::time::timeout;
use tonic::Status;
use uuid::Uuid;

use super::{Api, vms::find};
use crate::{convert, status::gone};

/// An agent passes a call on to a process of its host.
pub(super) const PASS_ON_WITHIN: Duration = Duration::from_secs(5);

/// Where a VM runs.
pub(super) struct Running {
    pub(super) address: String,
    pub(super) node_name: String,
    epoch: u64,
}

impl Running {
    /// `None` where nobody may run it at the moment.
    pub(super) fn find(state: &ClusterState, vm: VmId) -> Option<Self> {
        let candidate = state.vms.get(&vm)?.ownership.candidates().next()?;
        let node = state.nodes.get(&candidate.node)?;
        Some(Self {
            address: node.address.clone(),
            node_name: node.name.to_string(),
            epoch: candidate.epoch.get(),
        })
    }

    /// A command of an operation of its own.
    pub(super) fn command(&self) -> vm::Command {
        vm::Command { operation_id: Uuid::new_v4().to_string(), owner_epoch: self.epoch }
    }
}

/// Presses the power button of a VM that runs.
pub(super) async fn press_power_button<S: Store>(api: &Api<S>, text: String) -> Result<wire::Vm, Status> {
    let look = move |view: View<'_>| {
        let vm = find(view.state, &text)?;
        Ok::<_, Status>((vm.id, Running::find(view.state, vm.id), convert::vm(view.state, vm)))
    };
    let (id, running, shown) = api.cluster.read(look).await.map_err(gone)??;
    let Some(running) = running else {
        return Err(Status::failed_precondition("vm: it does not run"));
    };
    let request = node::PressPowerButtonRequest { command: Some(running.command()), vm_id: id.to_string() };
    let mut agent = api.agents.client(&running.address)?;
    match timeout(PASS_ON_WITHIN, agent.press_power_button(request)).await {
        Ok(pressed) => pressed.map(|_| shown),
        Err(_) => Err(Status::unavailable(format!("node '{}' does not answer", running.node_name))),
    }
}
