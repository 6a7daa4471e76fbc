//! End-to-end scenarios on real processes and real KVM; see `tests/`. Run them with `cargo xtask test`, which builds the programs
//! that they start.
#![forbid(unsafe_code)]

use std::time::Duration;

use drover_client::{Client, Error, api::NodeState};
use drover_probe_record::{DirtyWork, DiskWork, Workload};
use drover_test_framework::{
    Binaries, CephCluster, ClusterOptions, TestCluster,
    ceph_cluster::CephOptions,
    eventually_async,
    probe_vm::{Launch, ProbeVm, STEP_DEADLINE, import_probe},
};
use drover_units::Bytes;
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

/// Blocks of a test VM's disk.
const SLOTS: u64 = 4096;

/// One cluster at a time: leases are about real time, and a machine has few cores.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A cluster in a temporary folder, with the probe imported. Another one of the same test program waits for this one's end.
#[derive(Debug)]
pub struct World {
    /// The processes.
    pub cluster: TestCluster,
    /// A connection to the control plane.
    pub client: Client,
    // Goes after the processes, which write below it.
    _folder: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl World {
    /// Starts `nodes` nodes that offer 4 vCPUs and `memory_per_node` each.
    ///
    /// # Errors
    /// If a process does not start.
    pub async fn start(nodes: usize, memory_per_node: Bytes) -> anyhow::Result<Self> {
        Self::start_on(nodes, memory_per_node, (None, Vec::new())).await
    }

    /// The same with agents that are told something more.
    ///
    /// # Errors
    /// If a process does not start.
    pub async fn start_with(
        nodes: usize,
        memory_per_node: Bytes,
        agent_arguments: Vec<String>,
    ) -> anyhow::Result<Self> {
        Self::start_on(nodes, memory_per_node, (None, agent_arguments)).await
    }

    /// The same with volumes in a Ceph cluster of its own.
    ///
    /// # Errors
    /// If a process does not start.
    pub async fn start_on_ceph(
        nodes: usize,
        memory_per_node: Bytes,
        ceph: &CephOptions,
    ) -> anyhow::Result<Self> {
        Self::start_on(nodes, memory_per_node, (Some(CephCluster::start(ceph)?), Vec::new())).await
    }

    async fn start_on(
        nodes: usize,
        memory_per_node: Bytes,
        (ceph, agent_arguments): (Option<CephCluster>, Vec<String>),
    ) -> anyhow::Result<Self> {
        let alone = ALONE.lock().await;
        let folder = tempfile::Builder::new().prefix("drover-e2e-").tempdir()?;
        let options = ClusterOptions {
            binaries: Binaries::of_this_build()?,
            folder: folder.path().to_owned(),
            nodes,
            vcpus_per_node: 4,
            memory_per_node,
            agent_arguments,
        };
        let cluster = match ceph {
            Some(ceph) => TestCluster::start_on_ceph(options, ceph).await?,
            None => TestCluster::start(options).await?,
        };
        let client = cluster.client().await?;
        import_probe(&client).await?;
        Ok(Self { cluster, client, _folder: folder, _alone: alone })
    }

    /// Launches a VM that beats, writes its disk and dirties memory.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn launch(&self, name: &str, seed: u64) -> anyhow::Result<ProbeVm> {
        let workload = Workload {
            seed,
            heartbeat_ms: Some(10),
            disk: Some(DiskWork { slots: SLOTS, iops: 200, queue_depth: 4 }),
            dirty: Some(DirtyWork { mib: 16, mib_per_s: 16 }),
            ..Workload::default()
        };
        let launch = Launch { name: name.to_owned(), workload, group: "spread".to_owned(), vcpus: 2 };
        ProbeVm::launch(&self.cluster, &self.client, launch).await
    }

    /// Waits until every node is ready.
    ///
    /// # Errors
    /// If one is not within the step deadline.
    pub async fn all_nodes_ready(&self) -> anyhow::Result<()> {
        eventually_async("every node to be ready", STEP_DEADLINE, || async {
            let nodes = self.client.list_nodes().await?;
            Ok(nodes.iter().all(|node| node.state() == NodeState::Ready).then_some(()))
        })
        .await
    }
}

/// The words with which the control plane refused.
///
/// # Panics
/// If the call succeeded, or failed in another way than by being refused.
pub fn refusal<T: std::fmt::Debug>(outcome: Result<T, Error>) -> String {
    match outcome {
        Err(
            error @ (Error::InvalidArgument { .. }
            | Error::Refused { .. }
            | Error::NotFound { .. }
            | Error::OperationFailed(_)),
        ) => error.to_string(),
        other => panic!("should have been refused: {other:?}"),
    }
}

/// For a state that a kill leads to through leases: they take seconds by design.
pub const LEASE_DEADLINE: Duration = Duration::from_secs(60);
