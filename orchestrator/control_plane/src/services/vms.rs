//! VMs.

use drover_cluster_state::{ClusterState, Stored, Vm};
use drover_dir_volume::{LockError, OwnerRecord};
use drover_ids::{OperationId, VmId, VolumeId};
use drover_ports::Store;
use drover_reconcile::admission::{self, AdmissionError, Admitted, DeviceName, MigrateVm, VmSnapshotName};
use drover_wire::control::v1::{
    self as wire, ConsoleRequest, CreateVmGroupRequest, CreateVmRequest, CreateVmSnapshotRequest,
    DeleteVmRequest, DeleteVmSnapshotRequest, GetVmRequest, ListVmSnapshotsRequest, ListVmSnapshotsResponse,
    ListVmsRequest, ListVmsResponse, LogsRequest, MigrateVmRequest, RollbackVmSnapshotRequest,
    SetLimitsRequest, StartVmRequest, StopVmRequest, vms_server::Vms,
};
use drover_wire::vm::v1::{BalloonStatus, ReclaimFreeMemoryResponse};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Api, balloon,
    console::{self, ConsoleStream},
    hotplug, identity, limits, running, suspend,
};
use crate::{
    convert,
    paging::PageRequest,
    pools::blocking,
    status::{describe, gone, invalid, no_such, submit_failed},
};

/// The VM a client means, by id or name.
pub(super) fn find<'a>(state: &'a ClusterState, text: &str) -> Result<&'a Stored<Vm>, Status> {
    let by_id = text.parse::<VmId>().ok().and_then(|id| state.vms.get(&id));
    by_id.or_else(|| state.vm_named(text)).ok_or_else(|| no_such("vm", "VM", text))
}

fn outcome(admitted: Admitted) -> (OperationId, Option<drover_cluster_state::Txn>) {
    (admitted.operation, admitted.txn)
}

impl<S: Store> Api<S> {
    /// Carries out an admission that ends in an operation.
    pub(super) async fn operate(
        &self,
        admit: impl Fn(drover_driver::View<'_>) -> Result<Admitted, AdmissionError> + Clone + Send + 'static,
    ) -> Result<Response<wire::Operation>, Status> {
        let admitted = self.cluster.submit(move |view| admit(view).map(outcome));
        let operation = admitted.await.map_err(submit_failed)?;
        self.operation(operation).await.map(Response::new)
    }

    /// Lets volumes go from VMs that have been deleted, so that their new VM can acquire them: on disk a volume stays
    /// with its last VM until it is told otherwise (see `drover-dir-volume`), and that VM is known to be gone only here.
    pub(super) async fn detach_from_deleted_vms(&self, volumes: Vec<String>) -> Result<(), Status> {
        let free = move |state: &ClusterState| -> Vec<(VolumeId, drover_cluster_state::Name)> {
            let named = |text: &String| {
                let by_id = text.parse::<VolumeId>().ok().and_then(|id| state.volumes.get(&id));
                by_id.or_else(|| state.volume_named(text))
            };
            let free = volumes.iter().filter_map(named).filter(|volume| volume.attached.is_none());
            free.map(|volume| (volume.id, volume.pool.clone())).collect()
        };
        let free = self.cluster.read(move |view| free(view.state)).await.map_err(gone)?;
        for (volume, pool) in free {
            // Admission says what is wrong with a pool that is not there.
            let Some(pool) = self.pools.get(&pool).cloned() else { continue };
            let sidecar = pool.sidecar_path(volume);
            let record = blocking(move || drover_dir_volume::read_record(&sidecar)).await;
            let record =
                record.map_err(|error| Status::internal(format!("spec.volumes: {}", describe(&error))))?;
            let Some(vm) = record.as_ref().map(OwnerRecord::vm) else { continue };
            // Ids are never used again: a VM that is not there will not be.
            if self.cluster.read(move |view| view.state.vms.contains_key(&vm)).await.map_err(gone)? {
                continue;
            }
            match blocking(move || drover_dir_volume::detach(&pool, volume, vm)).await {
                // Another request was faster.
                Ok(()) | Err(LockError::OtherVm { .. }) => {}
                Err(error) => {
                    let problem =
                        format!("spec.volumes: volume {volume} cannot be attached: {}", describe(&error));
                    return Err(Status::failed_precondition(problem));
                }
            }
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl<S: Store> Vms for Api<S> {
    async fn create_vm(
        &self,
        request: Request<CreateVmRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let CreateVmRequest { request_id, spec } = request.into_inner();
        let spec = spec.ok_or_else(|| invalid("spec", "it is missing", "what the VM is to be"))?;
        self.detach_from_deleted_vms(spec.volumes.clone()).await?;
        let identity = identity(request_id);
        self.operate(move |view| {
            let request = convert::create_vm(view.state, spec.clone())?;
            admission::create_vm(view.state, &request, &identity, view.now.wall)
        })
        .await
    }

    async fn create_vm_group(
        &self,
        request: Request<CreateVmGroupRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let CreateVmGroupRequest { request_id, spec, count } = request.into_inner();
        let spec = spec.ok_or_else(|| invalid("spec", "it is missing", "what each VM is to be"))?;
        let identity = identity(request_id);
        self.operate(move |view| {
            let request = convert::create_vm(view.state, spec.clone())?;
            admission::create_vm_group(view.state, &request, count, &identity, view.now.wall)
        })
        .await
    }

    async fn start_vm(&self, request: Request<StartVmRequest>) -> Result<Response<wire::Operation>, Status> {
        let StartVmRequest { request_id, vm } = request.into_inner();
        let identity = identity(request_id);
        self.operate(move |view| admission::start_vm(view.state, &vm, &identity, view.now.wall)).await
    }

    async fn stop_vm(&self, request: Request<StopVmRequest>) -> Result<Response<wire::Operation>, Status> {
        let StopVmRequest { request_id, vm, graceful_ms } = request.into_inner();
        let identity = identity(request_id);
        self.operate(move |view| admission::stop_vm(view.state, (&vm, graceful_ms), &identity, view.now.wall))
            .await
    }

    async fn migrate_vm(
        &self,
        request: Request<MigrateVmRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let MigrateVmRequest { request_id, vm, target_node, downtime_target_ms } = request.into_inner();
        let request = MigrateVm { vm, target_node, downtime_target_ms };
        let identity = identity(request_id);
        self.operate(move |view| {
            admission::migrate_vm(view.state, view.book, &request, &identity, view.now.wall)
        })
        .await
    }

    async fn delete_vm(
        &self,
        request: Request<DeleteVmRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let DeleteVmRequest { request_id, vm } = request.into_inner();
        let identity = identity(request_id);
        self.operate(move |view| admission::delete_vm(view.state, &vm, &identity, view.now.wall)).await
    }

    async fn attach_volume(
        &self,
        request: Request<wire::AttachVolumeRequest>,
    ) -> Result<Response<wire::Vm>, Status> {
        hotplug::attach_volume(self, request.into_inner()).await.map(Response::new)
    }

    async fn attach_nic(
        &self,
        request: Request<wire::AttachNicRequest>,
    ) -> Result<Response<wire::Vm>, Status> {
        hotplug::attach_nic(self, request.into_inner()).await.map(Response::new)
    }

    async fn detach_volume(
        &self,
        request: Request<wire::DetachVolumeRequest>,
    ) -> Result<Response<wire::Vm>, Status> {
        let wire::DetachVolumeRequest { vm, volume, force, wait_ms } = request.into_inner();
        let how = (DeviceName::Volume(volume), force, wait_ms);
        hotplug::detach(self, vm, how).await.map(Response::new)
    }

    async fn detach_nic(
        &self,
        request: Request<wire::DetachNicRequest>,
    ) -> Result<Response<wire::Vm>, Status> {
        let wire::DetachNicRequest { vm, mac, force, wait_ms } = request.into_inner();
        hotplug::detach(self, vm, (DeviceName::Nic(mac), force, wait_ms)).await.map(Response::new)
    }

    async fn press_power_button(
        &self,
        request: Request<wire::PressPowerButtonRequest>,
    ) -> Result<Response<wire::Vm>, Status> {
        running::press_power_button(self, request.into_inner().vm).await.map(Response::new)
    }

    async fn set_limits(&self, request: Request<SetLimitsRequest>) -> Result<Response<wire::Vm>, Status> {
        limits::set(self, request.into_inner()).await.map(Response::new)
    }

    async fn suspend_vm(
        &self,
        request: Request<wire::SuspendVmRequest>,
    ) -> Result<Response<wire::Vm>, Status> {
        suspend::suspend(self, request.into_inner()).await.map(Response::new)
    }

    async fn set_balloon(
        &self,
        request: Request<wire::SetBalloonRequest>,
    ) -> Result<Response<BalloonStatus>, Status> {
        balloon::set(self, request.into_inner()).await
    }

    async fn get_balloon(
        &self,
        request: Request<wire::GetBalloonRequest>,
    ) -> Result<Response<BalloonStatus>, Status> {
        balloon::get(self, request.into_inner()).await
    }

    async fn reclaim_free_memory(
        &self,
        request: Request<wire::ReclaimFreeMemoryRequest>,
    ) -> Result<Response<ReclaimFreeMemoryResponse>, Status> {
        balloon::reclaim(self, request.into_inner()).await
    }

    async fn get_vm(&self, request: Request<GetVmRequest>) -> Result<Response<wire::Vm>, Status> {
        let text = request.into_inner().vm;
        let get = move |state: &ClusterState| find(state, &text).map(|vm| convert::vm(state, vm));
        self.cluster.read(move |view| get(view.state)).await.map_err(gone)?.map(Response::new)
    }

    async fn list_vms(&self, request: Request<ListVmsRequest>) -> Result<Response<ListVmsResponse>, Status> {
        let request = request.into_inner();
        let page = PageRequest::new("vm", request.page_size, &request.page_token)?;
        let list = move |state: &ClusterState| {
            let all = state.vms.values().map(|vm| (vm.spec.name.to_string(), vm)).collect();
            let (vms, next_page_token) = page.take(all);
            ListVmsResponse {
                vms: vms.into_iter().map(|vm| convert::vm(state, vm)).collect(),
                next_page_token,
            }
        };
        self.cluster.read(move |view| list(view.state)).await.map(Response::new).map_err(gone)
    }

    async fn create_vm_snapshot(
        &self,
        request: Request<CreateVmSnapshotRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let CreateVmSnapshotRequest { request_id, vm, name } = request.into_inner();
        let (pools, name) = (self.pools.clone(), VmSnapshotName { vm, snapshot: name });
        let offline = blocking(move || pools.without_online_snapshots()).await;
        self.work(request_id, move |view, identity| {
            admission::create_vm_snapshot(view.state, &offline, &name, identity, view.now.wall)
        })
        .await
    }

    async fn list_vm_snapshots(
        &self,
        request: Request<ListVmSnapshotsRequest>,
    ) -> Result<Response<ListVmSnapshotsResponse>, Status> {
        self.vm_snapshots(request.into_inner()).await
    }

    async fn rollback_vm_snapshot(
        &self,
        request: Request<RollbackVmSnapshotRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let RollbackVmSnapshotRequest { request_id, vm, snapshot } = request.into_inner();
        let name = VmSnapshotName { vm, snapshot };
        self.work(request_id, move |view, identity| {
            admission::rollback_vm_snapshot(view.state, &name, identity, view.now.wall)
        })
        .await
    }

    async fn delete_vm_snapshot(
        &self,
        request: Request<DeleteVmSnapshotRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let DeleteVmSnapshotRequest { request_id, vm, snapshot } = request.into_inner();
        let name = VmSnapshotName { vm, snapshot };
        self.work(request_id, move |view, identity| {
            admission::delete_vm_snapshot(view.state, &name, identity, view.now.wall)
        })
        .await
    }

    type ConsoleStream = ConsoleStream;

    async fn console(
        &self,
        request: Request<Streaming<ConsoleRequest>>,
    ) -> Result<Response<Self::ConsoleStream>, Status> {
        console::attach(self, request.into_inner()).await.map(Response::new)
    }

    type LogsStream = ConsoleStream;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        console::logs(self, request.into_inner()).await.map(Response::new)
    }
}
