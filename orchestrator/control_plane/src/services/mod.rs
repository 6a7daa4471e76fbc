//! The gRPC services: each turns messages into requests to the cluster, and what it sees into messages.

mod balloon;
mod console;
mod disk_images;
mod events;
pub(crate) mod hotplug;
mod images;
pub(crate) mod limits;
mod moves;
mod nodes;
mod operations;
mod placement;
mod pools;
mod registry;
mod running;
mod snapshots;
mod suspend;
mod turns;
mod vms;
mod volumes;
mod watching;

use std::sync::Arc;

use drover_driver::Cluster;
use drover_ids::OperationId;
use drover_ports::Store;
use drover_reconcile::{Timers, admission::RequestIdentity};
use drover_wire::control::v1 as wire;
use tonic::{Response, Status};
use uuid::Uuid;

use crate::{agents::AgentConnections, pools::Pools, state_dir::StateDir, storage::StorageWorker};

/// What every service works with. Clones share it.
#[derive(Debug)]
pub(crate) struct Api<S> {
    pub(crate) cluster: Cluster<S>,
    pub(crate) pools: Pools,
    pub(crate) agents: AgentConnections,
    pub(crate) timers: Timers,
    pub(crate) state_dir: Arc<StateDir>,
    pub(crate) storage: StorageWorker,
    /// Whose devices are being changed.
    pub(crate) turns: turns::Turns,
}

impl<S> Clone for Api<S> {
    fn clone(&self) -> Self {
        Self {
            cluster: self.cluster.clone(),
            pools: self.pools.clone(),
            agents: self.agents.clone(),
            timers: self.timers,
            state_dir: Arc::clone(&self.state_dir),
            storage: self.storage.clone(),
            turns: self.turns.clone(),
        }
    }
}

impl<S: Store> Api<S> {
    /// Has an admitted operation on storage done, and shows it.
    async fn begun(&self, id: OperationId) -> Result<Response<wire::Operation>, Status> {
        self.carry_out(id);
        self.operation(id).await.map(Response::new)
    }
}

/// How a request wants to be recognised.
fn identity(request_id: String) -> RequestIdentity {
    RequestIdentity { request_id, random: Uuid::new_v4().as_u128() }
}

/// Runs to its end even if the client goes meanwhile: a request that is abandoned halfway would leave a record that is
/// neither ready nor gone.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(Status::internal(format!("the request failed: {error}"))),
    }
}
