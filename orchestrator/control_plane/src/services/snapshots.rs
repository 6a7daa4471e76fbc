//! Clones, growth and snapshots: the work on volumes that is an operation.

use std::collections::BTreeMap;

use drover_cluster_state::{ClusterState, Stored, Txn, Volume};
use drover_driver::View;
use drover_ids::{OperationId, VmId};
use drover_ports::Store;
use drover_reconcile::admission::{
    self, AdmissionError, Admitted, CloneOf, CloneVolume, RequestIdentity, SnapshotName, VmSnapshotPart,
};
use drover_wire::control::v1::{
    self as wire, CloneVolumeRequest, ListSnapshotsRequest, ListSnapshotsResponse, ListVmSnapshotsRequest,
    ListVmSnapshotsResponse, clone_volume_request::Source,
};
use tonic::{Response, Status};

use super::{Api, identity, vms, volumes::find};
use crate::{
    convert,
    paging::PageRequest,
    status::{gone, invalid, no_such, submit_failed},
};

pub(super) fn named(name: Option<wire::SnapshotName>) -> Result<SnapshotName, Status> {
    match name {
        Some(wire::SnapshotName { volume, snapshot }) => Ok(SnapshotName { volume, snapshot }),
        None => Err(invalid("snapshot", "there is none", "a volume and the name of its snapshot")),
    }
}

impl<S: Store> Api<S> {
    /// Admits work and has it done.
    pub(super) async fn work(
        &self,
        request_id: String,
        admit: impl Fn(View<'_>, &RequestIdentity) -> Result<Admitted, AdmissionError> + Clone + Send + 'static,
    ) -> Result<Response<wire::Operation>, Status> {
        self.begun(self.admit(request_id, admit).await?).await
    }

    pub(super) async fn admit(
        &self,
        request_id: String,
        admit: impl Fn(View<'_>, &RequestIdentity) -> Result<Admitted, AdmissionError> + Clone + Send + 'static,
    ) -> Result<OperationId, Status> {
        let identity = identity(request_id);
        let admitted = self.cluster.submit(move |view| {
            let Admitted { operation, txn } = admit(view, &identity)?;
            Ok::<(OperationId, Option<Txn>), AdmissionError>((operation, txn))
        });
        admitted.await.map_err(submit_failed)
    }

    pub(super) async fn clone_of(
        &self,
        request: CloneVolumeRequest,
    ) -> Result<Response<wire::Operation>, Status> {
        let CloneVolumeRequest { request_id, name, pool, size_bytes, source } = request;
        let source = match source {
            Some(Source::Image(image)) => CloneOf::Image(image),
            Some(Source::Snapshot(snapshot)) => CloneOf::Snapshot(named(Some(snapshot))?),
            None => return Err(invalid("source", "there is none", "an image, or a snapshot")),
        };
        let (request, configured) = (CloneVolume { name, pool, size_bytes, source }, self.pools.names());
        self.work(request_id, move |view, identity| {
            admission::clone_volume(view.state, &configured, &request, identity, view.now.wall)
        })
        .await
    }

    pub(super) async fn vm_snapshots(
        &self,
        request: ListVmSnapshotsRequest,
    ) -> Result<Response<ListVmSnapshotsResponse>, Status> {
        let page = PageRequest::new("vm-snapshot", request.page_size, &request.page_token)?;
        let text = request.vm;
        let list = move |state: &ClusterState| {
            let vm = match (text.as_str(), text.parse::<VmId>()) {
                ("", _) => None,
                (_, Ok(id)) => Some(id),
                (text, Err(_)) => Some(vms::find(state, text)?.id),
            };
            let mut wholes: BTreeMap<_, Vec<VmSnapshotPart<'_>>> = BTreeMap::new();
            let parts = admission::vm_snapshot_parts(state);
            for part in parts.filter(|part| vm.is_none_or(|vm| part.whole.vm == vm)) {
                // By VM, oldest first; those of one millisecond in some fixed order.
                let at = part.snapshot.created_at.as_unix_millis();
                let key = format!("{}/{at:020}/{}", part.whole.vm, part.snapshot.id);
                wholes.entry(key).or_default().push(part);
            }
            let (wholes, next_page_token) = page.take(wholes.into_iter().collect());
            let snapshots = wholes.iter().map(|parts| convert::vm_snapshot(state, parts)).collect();
            Ok::<_, Status>(ListVmSnapshotsResponse { snapshots, next_page_token })
        };
        self.cluster.read(move |view| list(view.state)).await.map_err(gone)?.map(Response::new)
    }

    pub(super) async fn snapshots(
        &self,
        request: ListSnapshotsRequest,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let page = PageRequest::new("snapshot", request.page_size, &request.page_token)?;
        let text = request.volume;
        let list = move |state: &ClusterState| {
            let volumes: Vec<&Stored<Volume>> = match text.as_str() {
                "" => state.volumes.values().collect(),
                text => vec![find(state, text).ok_or_else(|| no_such("volume", "volume", text))?],
            };
            let of = |volume: &&Stored<Volume>| {
                let shown = volume.snapshots.iter().map(|snapshot| {
                    // By volume, oldest first; those of one millisecond in some fixed order.
                    let at = snapshot.created_at.as_unix_millis();
                    let key = format!("{}/{at:020}/{}", volume.name, snapshot.id);
                    (key, convert::snapshot(state, volume, snapshot))
                });
                shown.collect::<Vec<_>>()
            };
            let (snapshots, next_page_token) = page.take(volumes.iter().flat_map(of).collect());
            Ok(ListSnapshotsResponse { snapshots, next_page_token })
        };
        self.cluster.read(move |view| list(view.state)).await.map_err(gone)?.map(Response::new)
    }
}
