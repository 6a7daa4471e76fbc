//! One control plane, some node agents, their vmmds: real processes below one folder.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use drover_client::{
    Client, Options, Waited,
    api::{CreatePoolRequest, NodeState, PoolKind},
};
use drover_units::Bytes;

use crate::{
    Binaries, CephCluster,
    process::{Process, VmmdProcess},
    wait::{eventually, eventually_async},
};

/// How long a process may take to serve, or a node to register, on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Name of the shared pool that is a directory.
const POOL: &str = "local";
/// Name of the pool in Ceph, where there is one.
const CEPH_POOL: &str = "ceph";
/// How the control plane's configuration calls the Ceph cluster.
const CEPH_CLUSTER: &str = "test";

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Where the programs are.
    pub binaries: Binaries,
    /// An empty or new folder for all state: `control-plane/`, `pool/`, `node-1/` and so on.
    pub folder: PathBuf,
    /// How many node agents.
    pub nodes: usize,
    /// vCPUs that each node offers.
    pub vcpus_per_node: u32,
    /// Memory that each node offers.
    pub memory_per_node: Bytes,
    /// What else each agent is told on its command line.
    pub agent_arguments: Vec<String>,
}

/// A running cluster. Dropping it ends every process of it; [`TestCluster::keep`] leaves them.
#[derive(Debug)]
pub struct TestCluster {
    options: ClusterOptions,
    ceph: Option<CephCluster>,
    address: String,
    control_plane: Option<Process>,
    agents: Vec<Option<Process>>,
    kept: bool,
}

impl TestCluster {
    /// Starts everything and waits until every node is ready.
    ///
    /// # Errors
    /// If a process does not start, with the end of its log.
    pub async fn start(options: ClusterOptions) -> anyhow::Result<Self> {
        Self::start_on(options, None).await
    }

    /// The same with volumes in a Ceph cluster, which goes with this one.
    ///
    /// # Errors
    /// If a process does not start, or the pool cannot be made.
    pub async fn start_on_ceph(options: ClusterOptions, ceph: CephCluster) -> anyhow::Result<Self> {
        let cluster = Self::start_on(options, Some(ceph)).await?;
        let pool = cluster.ceph()?.pool().to_owned();
        let client = cluster.client().await?;
        let request = CreatePoolRequest {
            name: CEPH_POOL.to_owned(),
            kind: PoolKind::Rbd.into(),
            cluster: CEPH_CLUSTER.to_owned(),
            ceph_pool: pool,
            ..CreatePoolRequest::default()
        };
        let operation = client.create_pool(request).await.context("the pool in Ceph is refused")?;
        client
            .wait_operation(&operation.id, Waited::at_most(START_DEADLINE), |_| {})
            .await
            .context("the pool in Ceph cannot be made")?;
        Ok(cluster)
    }

    async fn start_on(options: ClusterOptions, ceph: Option<CephCluster>) -> anyhow::Result<Self> {
        fs::create_dir_all(options.folder.join("pool")).context("cannot make the cluster's folder")?;
        let address = format!("127.0.0.1:{}", free_port()?);
        let agents = (0..options.nodes).map(|_| None).collect();
        let mut cluster = Self { options, ceph, address, control_plane: None, agents, kept: false };
        cluster.start_control_plane()?;
        for node in 0..cluster.options.nodes {
            cluster.start_agent(node)?;
        }
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let expected = self.options.nodes;
        let address = self.server();
        let ready = eventually_async("all nodes to be ready", START_DEADLINE, || async {
            let nodes = Client::connect(&address, Options::default()).await?.list_nodes().await?;
            let ready = nodes.iter().filter(|node| node.state() == NodeState::Ready).count();
            Ok((ready == expected).then_some(()))
        })
        .await;
        self.check_alive()?;
        ready
    }

    /// Starts the control plane, or starts it again on the same state.
    ///
    /// # Errors
    /// If it runs already or cannot be started.
    pub fn start_control_plane(&mut self) -> anyhow::Result<()> {
        ensure!(self.control_plane.is_none(), "the control plane runs already");
        let mut command = Command::new(self.options.binaries.control_plane());
        command
            .arg("--state-dir")
            .arg(self.folder().join("control-plane"))
            .args(["--listen", &self.address])
            .args(["--pool", &self.pool_argument()]);
        if let Some(ceph) = &self.ceph {
            command.args(["--ceph", &format!("{CEPH_CLUSTER}=conf:{}", ceph.conf_path().display())]);
        }
        let log = self.folder().join("control-plane.log");
        self.control_plane = Some(Process::spawn("control plane", command, &log)?);
        Ok(())
    }

    /// Starts a node's agent (nodes count from 0), or starts it again on the same state.
    ///
    /// # Errors
    /// If it runs already or cannot be started.
    pub fn start_agent(&mut self, node: usize) -> anyhow::Result<()> {
        ensure!(self.agents[node].is_none(), "the agent of node {node} runs already");
        let mut command = Command::new(self.options.binaries.node_agent());
        command
            .args(["--name", &node_name(node)])
            .arg("--state-dir")
            .arg(self.node_folder(node))
            .args(["--control-plane", &self.server()])
            .args(["--listen", "127.0.0.1:0"])
            .args(["--pool", &self.pool_argument()])
            .args(["--vcpus", &self.options.vcpus_per_node.to_string()])
            .args(["--memory", &self.options.memory_per_node.get().to_string()])
            .arg("--vmmd")
            .arg(self.options.binaries.vmmd())
            .args(&self.options.agent_arguments);
        let log = self.folder().join(format!("{}.log", node_name(node)));
        self.agents[node] = Some(Process::spawn(&node_name(node), command, &log)?);
        Ok(())
    }

    /// SIGKILL for the control plane.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn kill_control_plane(&mut self) -> anyhow::Result<()> {
        self.control_plane.take().map_or(Ok(()), |mut process| process.kill_9())
    }

    /// SIGKILL for one agent; its vmmds go on.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn kill_agent(&mut self, node: usize) -> anyhow::Result<()> {
        self.agents[node].take().map_or(Ok(()), |mut process| process.kill_9())
    }

    /// SIGKILL for one agent and every vmmd of its node: as much of a host's death as one machine can show.
    ///
    /// # Errors
    /// If a process does not die.
    pub fn kill_node(&mut self, node: usize) -> anyhow::Result<()> {
        self.kill_agent(node)?;
        self.vmmds(node).iter().try_for_each(VmmdProcess::kill_9)
    }

    /// Every vmmd of one node.
    pub fn vmmds(&self, node: usize) -> Vec<VmmdProcess> {
        VmmdProcess::below(&self.node_folder(node))
    }

    /// Every vmmd of the cluster.
    pub fn all_vmmds(&self) -> Vec<VmmdProcess> {
        VmmdProcess::below(self.folder())
    }

    /// Which node (counted from 0) has this name.
    pub fn node_index(&self, name: &str) -> Option<usize> {
        (0..self.options.nodes).find(|node| node_name(*node) == name)
    }

    /// Name of a node, counted from 0.
    pub fn node_name(&self, node: usize) -> String {
        node_name(node)
    }

    /// Whether a node's agent has been started and not killed.
    pub fn agent_runs(&self, node: usize) -> bool {
        self.agents[node].is_some()
    }

    /// A new connection to the control plane.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.server(), Options::default()).await?)
    }

    /// URL of the control plane.
    pub fn server(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The folder of everything.
    pub fn folder(&self) -> &Path {
        &self.options.folder
    }

    /// One node's state directory.
    pub fn node_folder(&self, node: usize) -> PathBuf {
        self.folder().join(node_name(node))
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.options.nodes
    }

    /// Name of the directory pool that all share.
    pub fn pool(&self) -> &'static str {
        POOL
    }

    /// Name of the pool that volumes are made in: the one in Ceph, where there is one.
    pub fn volume_pool(&self) -> &'static str {
        if self.ceph.is_some() { CEPH_POOL } else { POOL }
    }

    /// The Ceph cluster.
    ///
    /// # Errors
    /// If this cluster has none.
    pub fn ceph(&self) -> anyhow::Result<&CephCluster> {
        self.ceph.as_ref().context("this cluster keeps its volumes in a directory")
    }

    /// The raw file of a volume.
    pub fn volume_path(&self, volume_id: &str) -> PathBuf {
        self.folder().join("pool/volumes").join(format!("{volume_id}.raw"))
    }

    /// Fails, with the end of its log, if a process that should run has ended.
    ///
    /// # Errors
    /// If one has ended.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        self.control_plane
            .iter_mut()
            .chain(self.agents.iter_mut().flatten())
            .try_for_each(Process::check_alive)
    }

    /// Leaves every process running when this value is dropped.
    pub fn keep(mut self) {
        self.kept = true;
        for mut process in self.control_plane.take().into_iter().chain(self.agents.drain(..).flatten()) {
            process.detach();
        }
    }

    /// Ends every process and makes sure that none is left.
    ///
    /// # Errors
    /// If one does not end.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        // Agents first: they would report the end of their VMs, and the control plane would restart them.
        for node in 0..self.options.nodes {
            self.kill_agent(node)?;
        }
        self.kill_control_plane()?;
        eventually("every vmmd to end", START_DEADLINE, || {
            let left = self.all_vmmds();
            left.iter().try_for_each(VmmdProcess::kill_9)?;
            Ok(left.is_empty().then_some(()))
        })
    }

    fn pool_argument(&self) -> String {
        format!("{POOL}=dir:{}", self.folder().join("pool").display())
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        if !self.kept {
            self.stop().ok();
        }
    }
}

fn node_name(node: usize) -> String {
    format!("node-{}", node + 1)
}

/// A port that was free a moment ago. Whoever takes it meanwhile makes the control plane fail to start, which is seen.
fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot bind to loopback")?;
    Ok(listener.local_addr()?.port())
}
