//! Storage pools.

use std::{collections::BTreeSet, time::Duration};

use drover_cluster_state::{ClusterState, Name, Pool, PoolState, WallTime};
use drover_ports::Store;
use drover_reconcile::admission::{self, CreatePool};
use drover_storage_pools::{Capabilities, PoolUsage, StorageError};
use drover_wire::control::v1::{
    self as wire, CreatePoolRequest, DeletePoolRequest, GetPoolRequest, ListPoolsRequest, ListPoolsResponse,
    PoolKind, pools_server,
};
use tokio::task::JoinSet;
use tonic::{Request, Response, Status};

use super::{Api, identity};
use crate::{
    convert,
    paging::PageRequest,
    pools::blocking,
    status::{describe, gone, invalid, no_such, submit_failed},
};

/// How long a pool's storage may take to say how full it is. One that does not is shown without.
const USAGE_TIMEOUT: Duration = Duration::from_secs(3);

/// A pool as the cluster knows it.
#[derive(Clone, Debug)]
struct Known {
    name: Name,
    /// `None`: of the configuration.
    made: Option<Pool>,
    provisioned: u64,
    volumes: u32,
    images: u32,
}

fn known(state: &ClusterState, configured: &BTreeSet<Name>) -> Vec<Known> {
    let names = configured.iter().cloned().map(|name| (name, None));
    let made = state.pools.values().map(|pool| (pool.name.clone(), Some(pool.value.clone())));
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let pool = |(name, made): (Name, Option<Pool>)| {
        let volumes: Vec<_> = state.volumes.values().filter(|volume| volume.pool == name).collect();
        let provisioned = volumes.iter().fold(0_u64, |sum, volume| sum.saturating_add(volume.size.get()));
        let images = count(state.disk_images.values().filter(|image| image.pool == name).count());
        Known { name, made, provisioned, volumes: count(volumes.len()), images }
    };
    names.chain(made).map(pool).collect()
}

impl<S: Store> Api<S> {
    /// With what its storage says, if it answers in time.
    async fn shown(self, known: Known) -> wire::Pool {
        let api = self;
        let name = known.name.clone();
        let ready = known.made.as_ref().is_none_or(|pool| pool.state == PoolState::Ready);
        let ask = async move {
            let _permit = api.storage.permit(&name).await;
            let storage = api.storage_of(&name).await?;
            blocking(move || Ok((storage.capabilities(), storage.usage()?))).await
        };
        let asked: Result<(Capabilities, PoolUsage), String> = match ready {
            false => Err("it is not ready".to_owned()),
            true => match tokio::time::timeout(USAGE_TIMEOUT, ask).await {
                Ok(answer) => answer.map_err(|error: StorageError| describe(&error)),
                Err(_) => Err(format!("no answer within {} s", USAGE_TIMEOUT.as_secs())),
            },
        };
        pool(&known, &asked)
    }
}

fn pool(known: &Known, asked: &Result<(Capabilities, PoolUsage), String>) -> wire::Pool {
    let state = match known.made.as_ref().map(|pool| pool.state) {
        None | Some(PoolState::Ready) => wire::PoolState::Ready,
        Some(PoolState::Creating) => wire::PoolState::Creating,
        Some(PoolState::Deleting) => wire::PoolState::Deleting,
    };
    let kind = if known.made.is_some() { PoolKind::Rbd } else { PoolKind::Dir };
    let mut shown = wire::Pool {
        name: known.name.to_string(),
        kind: kind.into(),
        state: state.into(),
        configured: known.made.is_none(),
        provisioned_bytes: known.provisioned,
        volume_count: known.volumes,
        disk_image_count: known.images,
        ..wire::Pool::default()
    };
    if let Some(Pool { rbd, created_at, stall, .. }) = &known.made {
        shown.stall = stall.map(convert::stall);
        shown.cluster = rbd.cluster.to_string();
        shown.ceph_pool.clone_from(&rbd.ceph_pool);
        shown.namespace.clone_from(&rbd.namespace);
        shown.user.clone_from(&rbd.user);
        shown.created_at = created(*created_at);
    }
    match asked {
        Ok((can, usage)) => {
            shown.capabilities = Some(wire::PoolCapabilities {
                instant_clone: can.instant_clone,
                clones_need_source: can.clones_need_source,
                online_snapshot: can.online_snapshot,
            });
            shown.capacity_bytes = usage.capacity.map(|bytes| bytes.get());
            shown.available_bytes = usage.available.map(|bytes| bytes.get());
            shown.used_bytes = usage.used.map(|bytes| bytes.get());
        }
        Err(problem) => shown.problem.clone_from(problem),
    }
    shown
}

fn created(at: WallTime) -> Option<prost_types::Timestamp> {
    convert::timestamp(at)
}

#[tonic::async_trait]
impl<S: Store> pools_server::Pools for Api<S> {
    async fn create_pool(
        &self,
        request: Request<CreatePoolRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let request = request.into_inner();
        match request.kind() {
            PoolKind::Rbd => {}
            PoolKind::Dir => {
                return Err(Status::failed_precondition(
                    "kind: directories belong to hosts, which only their configuration knows; valid: --pool \
                     NAME=dir:PATH for the control plane and for each node that reaches it",
                ));
            }
            PoolKind::Unspecified => return Err(invalid("kind", "it is not said", "POOL_KIND_RBD")),
        }
        let CreatePoolRequest { request_id, name, cluster, ceph_pool, namespace, stall, .. } = request;
        let stall = stall.map(|stall| convert::stall_from("stall.action", stall)).transpose();
        let stall = stall.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let request = CreatePool { name, cluster, ceph_pool, namespace, stall };
        let (configured, clusters) = (self.pools.names(), self.pools.ceph().names());
        let identity = identity(request_id);
        let admitted = self.cluster.submit(move |view| {
            let known = (&configured, &clusters);
            let admitted = admission::create_pool(view.state, known, &request, &identity, view.now.wall)?;
            Ok((admitted.operation, admitted.txn))
        });
        self.begun(admitted.await.map_err(submit_failed)?).await
    }

    async fn delete_pool(
        &self,
        request: Request<DeletePoolRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let DeletePoolRequest { request_id, pool } = request.into_inner();
        let (configured, identity) = (self.pools.names(), identity(request_id));
        let admitted = self.cluster.submit(move |view| {
            let admitted = admission::delete_pool(view.state, &configured, &pool, &identity, view.now.wall)?;
            Ok((admitted.operation, admitted.txn))
        });
        self.begun(admitted.await.map_err(submit_failed)?).await
    }

    async fn get_pool(&self, request: Request<GetPoolRequest>) -> Result<Response<wire::Pool>, Status> {
        let text = request.into_inner().pool;
        let configured = self.pools.names();
        let all = self.cluster.read(move |view| known(view.state, &configured)).await.map_err(gone)?;
        let found = all.into_iter().find(|pool| pool.name.as_str() == text);
        let found = found.ok_or_else(|| no_such("pool", "pool", &text))?;
        Ok(Response::new(self.clone().shown(found).await))
    }

    async fn list_pools(
        &self,
        request: Request<ListPoolsRequest>,
    ) -> Result<Response<ListPoolsResponse>, Status> {
        let request = request.into_inner();
        let page = PageRequest::new("pool", request.page_size, &request.page_token)?;
        let configured = self.pools.names();
        let all = self.cluster.read(move |view| known(view.state, &configured)).await.map_err(gone)?;
        let all = all.into_iter().map(|pool| (pool.name.to_string(), pool)).collect();
        let (known, next_page_token) = page.take(all);
        // All are asked at once: one that hangs must not make the list as slow as all of them together.
        let mut asked = JoinSet::new();
        known.into_iter().for_each(|known| drop(asked.spawn(self.clone().shown(known))));
        let mut pools = asked.join_all().await;
        pools.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(ListPoolsResponse { pools, next_page_token }))
    }
}
