//! Volumes: a record in the store, and a file in a pool.
//!
//! The record comes first (`Creating`) and is ready when the file is there; it is marked (`Deleting`) before the file
//! goes, and forgotten after. So a file without a record cannot be, and what a killed control plane leaves half done
//! shows in the record: [`sweep`] removes it before the next one serves.

use drover_cluster_state::{ClusterState, Name, Stored, Txn, Volume, VolumeState};
use drover_dir_volume::{DirPool, PoolError};
use drover_driver::{Cluster, SubmitError};
use drover_ids::VolumeId;
use drover_ports::Store;
use drover_reconcile::admission::{self, AdmissionError, CreateVolume};
use drover_units::Bytes;
use drover_wire::control::v1::{
    self as wire, CreateVolumeRequest, DeleteVolumeRequest, DeleteVolumeResponse, GetVolumeRequest,
    ImportRequest, ListVolumesRequest, ListVolumesResponse, volumes_server::Volumes,
};
use tonic::{Request, Response, Status, Streaming};

use super::{Api, identity, to_the_end};
use crate::{
    convert,
    paging::PageRequest,
    pools::blocking,
    status::{describe, gone, no_such, submit_failed},
    upload::{self, Upload, broken_off, feed_into},
};

/// The volume a client means, by id or name.
fn find<'a>(state: &'a ClusterState, text: &str) -> Option<&'a Stored<Volume>> {
    let by_id = text.parse::<VolumeId>().ok().and_then(|id| state.volumes.get(&id));
    by_id.or_else(|| state.volume_named(text))
}

/// Commits what `txn` makes of the present state.
async fn commit<S: Store>(
    cluster: &Cluster<S>,
    txn: impl Fn(&ClusterState) -> Option<Txn> + Clone + Send + 'static,
) -> Result<(), SubmitError<AdmissionError>> {
    cluster.submit(move |view| Ok(((), txn(view.state)))).await
}

/// The storage's error as a client's.
fn pool_failed(error: &PoolError) -> Status {
    if let Some(status) = broken_off(error) {
        return status.clone();
    }
    match error {
        PoolError::Length { expected, copied } if copied > expected => Status::invalid_argument(format!(
            "data: more bytes came than size_bytes, {expected}; valid: at most that"
        )),
        PoolError::InUse { .. } => Status::failed_precondition(describe(error)),
        PoolError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            Status::resource_exhausted(describe(error))
        }
        _ => Status::internal(describe(error)),
    }
}

impl<S: Store> Api<S> {
    async fn volume(&self, id: VolumeId) -> Result<wire::Volume, Status> {
        let show =
            move |state: &ClusterState| state.volumes.get(&id).map(|volume| convert::volume(state, volume));
        let shown = self.cluster.read(move |view| show(view.state)).await.map_err(gone)?;
        shown.ok_or_else(|| no_such("volume", "volume", &id.to_string()))
    }

    /// Makes a volume whose file `fill` makes.
    async fn make_volume(
        self,
        request: CreateVolume,
        request_id: String,
        fill: impl FnOnce(&DirPool, VolumeId, Bytes) -> Result<(), PoolError> + Send + 'static,
    ) -> Result<wire::Volume, Status> {
        let (identity, pools) = (identity(request_id), self.pools.names());
        let admitted = self.cluster.submit(move |view| {
            let admitted = admission::create_volume(view.state, &pools, &request, &identity, view.now.wall)?;
            Ok((admitted.volume, admitted.txn))
        });
        let id = admitted.await.map_err(submit_failed)?;
        let found = move |state: &ClusterState| {
            state.volumes.get(&id).map(|volume| (volume.state, volume.pool.clone(), volume.size))
        };
        let found = self.cluster.read(move |view| found(view.state)).await.map_err(gone)?;
        let Some((VolumeState::Creating, pool, size)) = found else {
            // A repeated request, and the first one has been carried out.
            return self.volume(id).await;
        };
        let pool = self.pool(&pool)?;
        match blocking(move || fill(&pool, id, size)).await {
            // Also: a repeated request while the first one is under way, or after the process was killed in between.
            Ok(()) | Err(PoolError::VolumeExists(_)) => {}
            Err(error) => {
                let status = pool_failed(&error);
                commit(&self.cluster, move |state| admission::forget_volume(state, id))
                    .await
                    .map_err(submit_failed)?;
                return Err(status);
            }
        }
        commit(&self.cluster, move |state| admission::ready_volume(state, id))
            .await
            .map_err(submit_failed)?;
        self.volume(id).await
    }

    fn pool(&self, name: &Name) -> Result<DirPool, Status> {
        let pool = self.pools.get(name).cloned();
        pool.ok_or_else(|| Status::failed_precondition(format!("pool '{name}' is not configured any more")))
    }

    async fn remove_volume(self, volume: String) -> Result<(), Status> {
        let admitted = self.cluster.submit(move |view| {
            let admitted = admission::delete_volume(view.state, &volume)?;
            Ok((admitted.volume, admitted.txn))
        });
        let id = admitted.await.map_err(submit_failed)?;
        let pool = move |state: &ClusterState| state.volumes.get(&id).map(|volume| volume.pool.clone());
        let Some(pool) = self.cluster.read(move |view| pool(view.state)).await.map_err(gone)? else {
            // Another request was faster.
            return Ok(());
        };
        let pool = self.pool(&pool)?;
        blocking(move || pool.delete_volume(id)).await.map_err(|error| pool_failed(&error))?;
        commit(&self.cluster, move |state| admission::forget_volume(state, id)).await.map_err(submit_failed)
    }
}

/// Removes what a predecessor left half made or half deleted. What cannot be removed now is left for the next time.
pub(crate) async fn sweep<S: Store>(api: &Api<S>) -> Result<(), Status> {
    let half = |state: &ClusterState| -> Vec<(VolumeId, Name)> {
        let half = state.volumes.values().filter(|volume| volume.state != VolumeState::Ready);
        half.map(|volume| (volume.id, volume.pool.clone())).collect()
    };
    for (id, pool) in api.cluster.read(move |view| half(view.state)).await.map_err(gone)? {
        let Some(pool) = api.pools.get(&pool).cloned() else {
            tracing::warn!(volume = %id, %pool, "a half-made volume is in a pool that is not configured");
            continue;
        };
        if let Err(error) = blocking(move || pool.delete_volume(id)).await {
            tracing::warn!(volume = %id, error = describe(&error), "a half-made volume cannot be removed");
            continue;
        }
        commit(&api.cluster, move |state| admission::forget_volume(state, id))
            .await
            .map_err(submit_failed)?;
        tracing::info!(volume = %id, "a half-made volume was removed");
    }
    Ok(())
}

#[tonic::async_trait]
impl<S: Store> Volumes for Api<S> {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<wire::Volume>, Status> {
        let CreateVolumeRequest { request_id, name, pool, size_bytes } = request.into_inner();
        let request = CreateVolume { name, pool, size_bytes };
        let fill = |pool: &DirPool, id, size| pool.create_volume(id, size);
        to_the_end(self.clone().make_volume(request, request_id, fill)).await.map(Response::new)
    }

    async fn import_volume(
        &self,
        request: Request<Streaming<ImportRequest>>,
    ) -> Result<Response<wire::Volume>, Status> {
        let mut requests = request.into_inner();
        let header = upload::header(&mut requests).await?;
        let request = CreateVolume { name: header.name, pool: header.pool, size_bytes: header.size_bytes };
        let (feeder, mut upload) = Upload::new();
        let fill = move |pool: &DirPool, id, size| pool.import_volume_to_end(id, size, &mut upload);
        // The client's bytes end with the client; what is made of them is finished or removed either way.
        let made = to_the_end(self.clone().make_volume(request, header.request_id, fill));
        feed_into(requests, feeder, made).await.map(Response::new)
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let request = request.into_inner();
        let page = PageRequest::new("volume", request.page_size, &request.page_token)?;
        let list = move |state: &ClusterState| {
            let all = state.volumes.values().map(|volume| (volume.name.to_string(), volume)).collect();
            let (volumes, next_page_token) = page.take(all);
            let volumes = volumes.into_iter().map(|volume| convert::volume(state, volume)).collect();
            ListVolumesResponse { volumes, next_page_token }
        };
        self.cluster.read(move |view| list(view.state)).await.map(Response::new).map_err(gone)
    }

    async fn get_volume(&self, request: Request<GetVolumeRequest>) -> Result<Response<wire::Volume>, Status> {
        let text = request.into_inner().volume;
        let get = move |state: &ClusterState| {
            let volume = find(state, &text).ok_or_else(|| no_such("volume", "volume", &text))?;
            Ok(convert::volume(state, volume))
        };
        self.cluster.read(move |view| get(view.state)).await.map_err(gone)?.map(Response::new)
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        to_the_end(self.clone().remove_volume(request.into_inner().volume)).await?;
        Ok(Response::new(DeleteVolumeResponse {}))
    }
}
