//! The balloon of a VM that runs, by way of its node.

use std::time::Duration;

use drover_ids::VmId;
use drover_ports::Store;
use drover_wire::{
    control::v1::{GetBalloonRequest, ReclaimFreeMemoryRequest, SetBalloonRequest},
    node::v1 as node,
    vm::v1::{BalloonStatus, ReclaimFreeMemoryResponse},
};
use tokio::time::timeout;
use tonic::{Response, Status};

use super::{
    Api,
    running::{PASS_ON_WITHIN, Running},
    vms::find,
};
use crate::status::gone;

/// How long a guest may take to tell its statistics.
const STATISTICS_WITHIN: Duration = Duration::from_secs(1);
/// How long a guest may take to name its free memory.
const NAMED_WITHIN: Duration = Duration::from_secs(10);

pub(super) async fn set<S: Store>(
    api: &Api<S>,
    request: SetBalloonRequest,
) -> Result<Response<BalloonStatus>, Status> {
    let (vm, running) = runner(api, request.vm).await?;
    let request = node::SetBalloonRequest {
        command: Some(running.command()),
        vm_id: vm.to_string(),
        target_bytes: request.target_bytes,
    };
    let mut agent = api.agents.client(&running.address)?;
    answered(&running, PASS_ON_WITHIN, agent.set_balloon(request)).await
}

pub(super) async fn get<S: Store>(
    api: &Api<S>,
    request: GetBalloonRequest,
) -> Result<Response<BalloonStatus>, Status> {
    let (vm, running) = runner(api, request.vm).await?;
    let request = node::GetBalloonRequest { vm_id: vm.to_string(), wait_ms: ms(STATISTICS_WITHIN) };
    let mut agent = api.agents.client(&running.address)?;
    answered(&running, PASS_ON_WITHIN + STATISTICS_WITHIN, agent.get_balloon(request)).await
}

pub(super) async fn reclaim<S: Store>(
    api: &Api<S>,
    request: ReclaimFreeMemoryRequest,
) -> Result<Response<ReclaimFreeMemoryResponse>, Status> {
    let (vm, running) = runner(api, request.vm).await?;
    let request = node::ReclaimFreeMemoryRequest {
        command: Some(running.command()),
        vm_id: vm.to_string(),
        limit_ms: ms(NAMED_WITHIN),
    };
    let mut agent = api.agents.client(&running.address)?;
    answered(&running, PASS_ON_WITHIN + NAMED_WITHIN, agent.reclaim_free_memory(request)).await
}

async fn runner<S: Store>(api: &Api<S>, text: String) -> Result<(VmId, Running), Status> {
    let look = move |view: drover_driver::View<'_>| {
        let vm = find(view.state, &text)?;
        let not = || Status::failed_precondition(format!("vm: VM '{}' does not run", vm.spec.name));
        Running::find(view.state, vm.id).map(|running| (vm.id, running)).ok_or_else(not)
    };
    api.cluster.read(look).await.map_err(gone)?
}

async fn answered<T>(
    running: &Running,
    within: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>, Status> {
    let node = &running.node_name;
    match timeout(within, call).await {
        Ok(Ok(answer)) => Ok(Response::new(answer.into_inner())),
        Ok(Err(status)) => Err(Status::new(status.code(), format!("node '{node}': {}", status.message()))),
        Err(_) => Err(Status::unavailable(format!("node '{node}' does not answer"))),
    }
}

fn ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
