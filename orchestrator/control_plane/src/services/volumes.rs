//! Volumes: a record in the store, and a disk in a pool.
//!
//! The record comes first (`Creating`) and is ready when the disk is there; so a disk without a record cannot be, and
//! what a killed control plane leaves half done shows in the record: the next one removes it. Everything but making
//! empty and imported volumes is an operation, and done by `storage`.

use std::{
    io::{self, Read},
    time::Duration,
};

use drover_cluster_state::{ClusterState, Stored, Txn, Volume, VolumeState};
use drover_driver::{Cluster, SubmitError, View};
use drover_ids::{OperationId, VolumeId};
use drover_ports::Store;
use drover_reconcile::admission::{self, AdmissionError, CreateVolume, RequestIdentity};
use drover_storage_pools::{StorageError, StoragePool, Target, Unobserved, write_sparse};
use drover_units::Bytes;
use drover_wire::control::v1::{
    self as wire, CloneVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest,
    DeleteVolumeRequest, DeleteVolumeResponse, FlattenVolumeRequest, GetVolumeRequest, ImportRequest,
    ListSnapshotsRequest, ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse,
    ProtectSnapshotRequest, ResizeVolumeRequest, RollbackSnapshotRequest, volumes_server::Volumes,
};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Api, identity, snapshots::named, to_the_end};
use crate::{
    convert,
    paging::PageRequest,
    pools::blocking,
    status::{describe, gone, no_such, status, submit_failed},
    upload::{self, Upload, broken_off, feed_into},
};

/// Bytes of an import that are written at a time.
const BLOCK_BYTES: usize = 1 << 20;
/// How long a request waits for the end of what it began, before the client is told to follow it.
const END_WAIT: Duration = Duration::from_secs(10);
/// How long the storage may take to say how much a volume takes. One that does not is shown without.
const USAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// The volume a client means, by id or name.
pub(super) fn find<'a>(state: &'a ClusterState, text: &str) -> Option<&'a Stored<Volume>> {
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

/// Why a volume is not filled.
#[derive(Debug, thiserror::Error)]
enum FillError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The client's bytes.
    #[error("the upload broke off")]
    Source(#[from] io::Error),
    #[error("data: more bytes came than size_bytes, {}; valid: at most that", .0.get())]
    TooLong(Bytes),
}

/// The same as a client's.
fn fill_failed(error: &FillError) -> Status {
    if let Some(status) = broken_off(error) {
        return status.clone();
    }
    match error {
        FillError::TooLong(_) => Status::invalid_argument(error.to_string()),
        FillError::Source(_) => Status::aborted(describe(error)),
        FillError::Storage(StorageError::Full { .. }) => Status::resource_exhausted(describe(error)),
        FillError::Storage(StorageError::Unsupported(_)) => Status::failed_precondition(describe(error)),
        FillError::Storage(_) => Status::internal(describe(error)),
    }
}

/// Fills a new volume with what comes.
fn fill(
    storage: &dyn StoragePool,
    volume: VolumeId,
    size: Bytes,
    source: &mut dyn Read,
) -> Result<(), FillError> {
    let mut writer = storage.begin(Target::Volume(volume), size)?;
    let mut block = vec![0; BLOCK_BYTES];
    let mut offset = 0_u64;
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match source.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if filled == 0 {
            return Ok(writer.finish()?);
        }
        if offset + filled as u64 > size.get() {
            return Err(FillError::TooLong(size));
        }
        write_sparse(&mut *writer, offset, &block[..filled])?;
        offset += filled as u64;
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
        fill: impl FnOnce(&dyn StoragePool, VolumeId, Bytes) -> Result<(), FillError> + Send + 'static,
    ) -> Result<wire::Volume, Status> {
        let (identity, pools) = (identity(request_id), self.pools.names());
        let admitted = self.cluster.submit(move |view| {
            let admitted = admission::create_volume(view.state, &pools, &request, &identity, view.now.wall)?;
            Ok((admitted.volume, admitted.txn))
        });
        let id = admitted.await.map_err(submit_failed)?;
        // Of two that ask for the same one makes it, and what a predecessor left is not removed meanwhile.
        let _alone = self.storage.volume(id).await;
        let found = move |state: &ClusterState| {
            state.volumes.get(&id).map(|volume| (volume.state, volume.pool.clone(), volume.size))
        };
        let found = self.cluster.read(move |view| found(view.state)).await.map_err(gone)?;
        let Some((VolumeState::Creating, pool, size)) = found else {
            // A repeated request, and the first one has been carried out.
            return self.volume(id).await;
        };
        let made = match self.storage_of(&pool).await {
            Ok(storage) => {
                let _permit = self.storage.permit(&pool).await;
                blocking(move || {
                    let made = fill(&*storage, id, size);
                    if made.is_err() {
                        // What cannot be removed now is not known to anybody: the first error counts.
                        let _left = storage.delete_volume(id, &Unobserved);
                    }
                    made
                })
                .await
            }
            Err(error) => Err(FillError::Storage(error)),
        };
        match made {
            // Also: a repeated request while the first one is under way, or after the process was killed in between.
            Ok(()) | Err(FillError::Storage(StorageError::Exists(_))) => {}
            Err(error) => {
                let status = fill_failed(&error);
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

    /// Waits for a moment for an operation's end, and shows it as it is then.
    async fn ended(&self, id: OperationId) -> Result<wire::Operation, Status> {
        let wait = async {
            let mut changes = self.cluster.changes();
            loop {
                let operation = self.operation(id).await?;
                if operation.state() != wire::OperationState::Running || changes.changed().await.is_err() {
                    return Ok(operation);
                }
            }
        };
        match tokio::time::timeout(END_WAIT, wait).await {
            Ok(operation) => operation,
            Err(_) => self.operation(id).await,
        }
    }
}

#[tonic::async_trait]
impl<S: Store> Volumes for Api<S> {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<wire::Volume>, Status> {
        let CreateVolumeRequest { request_id, name, pool, size_bytes } = request.into_inner();
        let request = CreateVolume { name, pool, size_bytes };
        let fill = |pool: &dyn StoragePool, id, size| Ok(pool.create_volume(id, size)?);
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
        let fill = move |pool: &dyn StoragePool, id, size| fill(pool, id, size, &mut upload);
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
            let ready = volume.state == VolumeState::Ready;
            Ok::<_, Status>((convert::volume(state, volume), volume.id, ready.then(|| volume.pool.clone())))
        };
        let (mut shown, id, pool) = self.cluster.read(move |view| get(view.state)).await.map_err(gone)??;
        if let Some(pool) = pool {
            let ask = async {
                let _permit = self.storage.permit(&pool).await;
                let storage = self.storage_of(&pool).await.ok()?;
                blocking(move || storage.volume_usage(id)).await.ok()?.used
            };
            let used = tokio::time::timeout(USAGE_TIMEOUT, ask).await.ok().flatten();
            shown.used_bytes = used.map(Bytes::get);
        }
        Ok(Response::new(shown))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let DeleteVolumeRequest { request_id, volume } = request.into_inner();
        let admit = move |view: View<'_>, identity: &RequestIdentity| {
            admission::delete_volume(view.state, &volume, identity, view.now.wall)
        };
        let id = self.admit(request_id, admit).await?;
        self.carry_out(id);
        let operation = self.ended(id).await?;
        if operation.state() == wire::OperationState::Failed {
            return Err(status(Code::FailedPrecondition, operation.reason));
        }
        Ok(Response::new(DeleteVolumeResponse { operation: Some(operation) }))
    }

    async fn clone_volume(
        &self,
        request: Request<CloneVolumeRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        self.clone_of(request.into_inner()).await
    }

    async fn resize_volume(
        &self,
        request: Request<ResizeVolumeRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let ResizeVolumeRequest { request_id, volume, size_bytes } = request.into_inner();
        self.work(request_id, move |view, identity| {
            admission::resize_volume(view.state, &volume, size_bytes, identity, view.now.wall)
        })
        .await
    }

    async fn flatten_volume(
        &self,
        request: Request<FlattenVolumeRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let FlattenVolumeRequest { request_id, volume } = request.into_inner();
        self.work(request_id, move |view, identity| {
            admission::flatten_volume(view.state, &volume, identity, view.now.wall)
        })
        .await
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let CreateSnapshotRequest { request_id, volume, name } = request.into_inner();
        self.work(request_id, move |view, identity| {
            admission::create_snapshot(view.state, &volume, &name, identity, view.now.wall)
        })
        .await
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        self.snapshots(request.into_inner()).await
    }

    async fn protect_snapshot(
        &self,
        request: Request<ProtectSnapshotRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let ProtectSnapshotRequest { request_id, snapshot, protect } = request.into_inner();
        let name = named(snapshot)?;
        self.work(request_id, move |view, identity| {
            admission::protect_snapshot(view.state, &name, protect, identity, view.now.wall)
        })
        .await
    }

    async fn rollback_snapshot(
        &self,
        request: Request<RollbackSnapshotRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let RollbackSnapshotRequest { request_id, snapshot } = request.into_inner();
        let name = named(snapshot)?;
        self.work(request_id, move |view, identity| {
            admission::rollback_snapshot(view.state, &name, identity, view.now.wall)
        })
        .await
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let DeleteSnapshotRequest { request_id, snapshot } = request.into_inner();
        let name = named(snapshot)?;
        self.work(request_id, move |view, identity| {
            admission::delete_snapshot(view.state, &name, identity, view.now.wall)
        })
        .await
    }
}
