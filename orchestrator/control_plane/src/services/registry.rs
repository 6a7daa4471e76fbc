//! The agents' side: registration and heartbeats.

use std::time::Duration;

use drover_ids::{OwnerEpoch, VmId};
use drover_ports::Store;
use drover_reconcile::{HeartbeatAnswer, admission};
use drover_wire::node::v1::{
    HeartbeatRequest, HeartbeatResponse, RegisterRequest, RegisterResponse, StaleVm, Timers,
    node_registry_server::NodeRegistry,
};
use tonic::{Request, Response, Status};

use super::{Api, suspend::of_no_use};
use crate::{
    convert,
    status::{gone, submit_failed},
};

/// Suspended VMs of one node that are looked at in one heartbeat. What is of no use among others stays until these are fewer.
const SUSPENDED_MAX: usize = 4096;

#[tonic::async_trait]
impl<S: Store> NodeRegistry for Api<S> {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let registration = convert::registration(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let node = registration.node;
        let admitted = self.cluster.submit(move |view| {
            let txn = admission::register_node(view.state, &registration, view.now.wall)?;
            Ok(((), txn))
        });
        admitted.await.map_err(submit_failed)?;
        tracing::info!(%node, "a node's agent has registered");
        let timers = self.timers.get();
        let ms = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        Ok(Response::new(RegisterResponse {
            timers: Some(Timers {
                heartbeat_interval_ms: ms(timers.heartbeat),
                pause_after_ms: ms(timers.pause_after),
                kill_after_ms: ms(timers.kill_after),
            }),
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let mut request = request.into_inner();
        // A node has no more of them than the cluster has VMs; what is no id is not looked at.
        let held = std::mem::take(&mut request.suspended);
        let held: Vec<VmId> = held.iter().take(SUSPENDED_MAX).filter_map(|vm| vm.parse().ok()).collect();
        let mut heartbeat =
            convert::heartbeat(request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        for vm in &held {
            if let Some(report) = heartbeat.vms.get_mut(vm) {
                report.has_file = true;
            }
        }
        match self.cluster.heartbeat(heartbeat).await.map_err(gone)? {
            HeartbeatAnswer::Unknown { node, .. } => {
                let problem = format!("node_id: node {node} is not registered with this incarnation");
                Err(Status::not_found(format!("{problem}; call Register first")))
            }
            HeartbeatAnswer::Known { node, lease_granted, reap, .. } => {
                let stale =
                    |(vm, epoch): (VmId, OwnerEpoch)| StaleVm { vm_id: vm.to_string(), epoch: epoch.get() };
                let reap = reap.into_iter().map(stale).collect();
                let discard = match held.is_empty() {
                    true => Vec::new(),
                    false => {
                        let of_no_use =
                            move |view: drover_driver::View<'_>| of_no_use(view.state, node, &held);
                        self.cluster.read(of_no_use).await.map_err(gone)?
                    }
                };
                let discard = discard.iter().map(VmId::to_string).collect();
                Ok(Response::new(HeartbeatResponse { lease_granted, reap, discard }))
            }
        }
    }
}
