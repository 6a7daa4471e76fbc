//! The agent's calls to the control plane.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use drover_ids::{NodeId, OwnerEpoch};
use drover_node_supervisor::{Event, StaleVm, Timers};
use drover_wire::{
    MAX_MESSAGE_BYTES,
    node::v1::{
        HeartbeatRequest, HeartbeatResponse, NodeCapacity, RegisterRequest, VmStatus,
        node_registry_client::NodeRegistryClient,
    },
};
use tokio::time::timeout;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use crate::{capabilities::Librbd, config::Config, suspended::Suspended};

/// A call that takes longer has failed: the next heartbeat is worth more than this one's late answer. Well below
/// every sensible lease, so that a lost answer does not cost it.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
const CONNECT_WITHIN: Duration = Duration::from_millis(500);

/// This node's introduction, and the way to the control plane. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    client: NodeRegistryClient<Channel>,
    introduction: RegisterRequest,
    suspended: Suspended,
}

impl Registry {
    pub(crate) fn new(
        config: &Config,
        (node, incarnation): (NodeId, Uuid),
        port: u16,
        (librbd, suspended): (&Librbd, Suspended),
    ) -> anyhow::Result<Self> {
        let channel = Endpoint::from_shared(config.control_plane.clone())
            .with_context(|| format!("--control-plane: '{}' is not a URL", config.control_plane))?
            .connect_timeout(CONNECT_WITHIN)
            .tcp_nodelay(true)
            .connect_lazy();
        let address = std::net::SocketAddr::new(config.advertise, port);
        let introduction = RegisterRequest {
            node_id: node.to_string(),
            name: config.name.clone(),
            address: address.to_string(),
            capacity: Some(NodeCapacity { vcpus: config.vcpus.get(), memory_bytes: config.memory.get() }),
            incarnation: incarnation.to_string(),
            pools: config.pools.iter().map(|pool| pool.name.clone()).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            facts: Some(config.facts.clone()),
            librbd: librbd.version().to_owned(),
        };
        let client = NodeRegistryClient::new(channel).max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { client, introduction, suspended })
    }

    /// Introduces the node.
    pub(crate) async fn register(mut self) -> Event {
        let response = match timeout(ANSWER_WITHIN, self.client.register(self.introduction)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => {
                warn!(error = status.message(), code = %status.code(), "the control plane did not accept this node");
                return Event::RegisterFailed;
            }
            Err(_) => {
                warn!("the control plane does not answer");
                return Event::RegisterFailed;
            }
        };
        let ms = |n: u32| Duration::from_millis(n.into());
        let timers = response.timers.unwrap_or_default();
        match Timers::new(
            ms(timers.heartbeat_interval_ms),
            ms(timers.pause_after_ms),
            ms(timers.kill_after_ms),
        ) {
            Ok(timers) => {
                info!(?timers, "registered");
                Event::Registered(timers)
            }
            Err(error) => {
                error!(%error, "the control plane's timers are refused");
                Event::RegisterFailed
            }
        }
    }

    /// Reports `vms`.
    pub(crate) async fn heartbeat(mut self, sequence: u64, vms: Vec<VmStatus>) -> Event {
        let request = HeartbeatRequest {
            node_id: self.introduction.node_id,
            incarnation: self.introduction.incarnation,
            sequence,
            vms,
            suspended: self.suspended.list().iter().map(ToString::to_string).collect(),
        };
        let asked_at = SystemTime::now();
        match timeout(ANSWER_WITHIN, self.client.heartbeat(request)).await {
            Ok(Ok(response)) => {
                let response = response.into_inner();
                for vm in response.discard.iter().filter_map(|vm| vm.parse().ok()) {
                    self.suspended.remove_older(vm, asked_at);
                }
                answered(sequence, response)
            }
            Ok(Err(status)) => {
                // The control plane knows another incarnation of this node, or none.
                let unknown = matches!(status.code(), Code::NotFound | Code::FailedPrecondition);
                warn!(error = status.message(), code = %status.code(), "heartbeat failed");
                Event::HeartbeatFailed { sequence, unknown }
            }
            Err(_) => {
                warn!("a heartbeat was not answered in time");
                Event::HeartbeatFailed { sequence, unknown: false }
            }
        }
    }
}

fn answered(sequence: u64, response: HeartbeatResponse) -> Event {
    let reap = response.reap.iter().filter_map(|stale| match stale.vm_id.parse() {
        Ok(vm) => Some(StaleVm { vm, epoch: OwnerEpoch::new(stale.epoch) }),
        Err(error) => {
            error!(%error, "the control plane's reap list has an entry that is none");
            None
        }
    });
    let reap: Vec<_> = reap.collect();
    if !response.lease_granted {
        debug!(stale = reap.len(), "the lease was not extended");
    }
    Event::HeartbeatAnswered { sequence, lease_granted: response.lease_granted, reap }
}
