//! A running control plane: everything put together, and taken apart again in order.

use std::{collections::BTreeMap, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use drover_cluster_state::{ClusterState, Name, RbdPool};
use drover_driver::{Driver, DriverError, LoadError, Ports};
use drover_ports::Store;
use drover_store_embedded::{Closed, EmbeddedStore, OpenError, Options};
use drover_wire::{
    DESCRIPTORS, MAX_MESSAGE_BYTES,
    control::v1::{
        disk_images_server::DiskImagesServer, events_server::EventsServer, images_server::ImagesServer,
        nodes_server::NodesServer, operations_server::OperationsServer, placement_server::PlacementServer,
        pools_server::PoolsServer, vms_server::VmsServer, volumes_server::VolumesServer,
    },
    node::v1::node_registry_server::NodeRegistryServer,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tonic::transport::{Server, server::TcpIncoming};
use uuid::Uuid;

use crate::{
    agents::AgentConnections,
    background::Background,
    blocklist_keeper,
    ceph::CephClusters,
    clock::SystemClock,
    config::Config,
    device_keeper,
    pools::Pools,
    services::Api,
    state_dir::{StateDir, StateDirError},
    status::describe,
    storage::{AuthorityError, Fetcher, Leftovers, StorageWorker, resume},
};

/// Streams on one connection at a time: an agent needs a few, a web server in front of many users some hundred.
const STREAMS_MAX: u32 = 1024;
/// How often an idle connection is asked whether it is alive, so that watchers whose host has died are let go.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Time for requests under way when the process is told to end. Nothing is lost with them: they are asked again.
const DRAIN: Duration = Duration::from_secs(2);

/// Why the control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory.
    #[error("--state-dir")]
    StateDir(#[from] StateDirError),
    /// A pool's directory.
    #[error("--pool")]
    Pool(#[from] drover_dir_volume::PoolError),
    /// Authorities of web servers.
    #[error("--import-ca")]
    Authority(#[from] AuthorityError),
    /// The store's file.
    #[error("opening the store failed")]
    Store(#[from] OpenError),
    /// The store's content.
    #[error("loading the store failed")]
    Load(#[from] LoadError),
    /// The address.
    #[error("--listen: cannot serve on {address}; valid: an address of this host, and a port that is free")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// gRPC reflection.
    #[error("the interface's description cannot be served")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A control plane that serves.
#[derive(Debug)]
pub struct ControlPlane {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    driver: JoinHandle<Result<(), DriverError>>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    background: Background,
    store_closed: Closed,
    // Held until all tasks have ended: nobody else may use the store before.
    _state_dir: Arc<StateDir>,
}

impl ControlPlane {
    /// Takes the state directory, loads the store, and serves. Ready when this returns.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let state_dir = Arc::new(StateDir::open(&config.state_dir)?);
        let pools = Pools::open(config.pools, CephClusters::new(config.ceph))?;
        let store = open_store(state_dir.store()).await?;
        let store_closed = store.closed();
        let listener = TcpListener::bind(config.listen).await;
        let bound = listener.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) =
            bound.map_err(|source| StartError::Listen { address: config.listen, source })?;

        let (stop, stopped) = watch::channel(false);
        let (clock, agents) = (SystemClock::start(), AgentConnections::default());
        let ports = Ports { store, agents: agents.clone(), fence: pools.clone(), clock };
        let (start, _) = Uuid::new_v4().as_u64_pair();
        let (driver, cluster) = Driver::load(ports, config.timers, Box::new(clock), start).await?;
        // Before anything is decided: a fence finds the pools of its volumes from the first moment on.
        pools.remember(made_pools(driver.state()));
        let leftovers = Leftovers::of(driver.state());
        let driver = tokio::spawn(driver.run(raised(stopped.clone())));
        let storage = StorageWorker::new(Fetcher::new(&config.import)?);
        let api = Api {
            cluster,
            pools,
            agents,
            timers: config.timers,
            state_dir: Arc::clone(&state_dir),
            storage,
            turns: Default::default(),
        };
        let background = api.storage.background.clone();
        background.spawn(remember_pools(api.clone()));
        background.spawn(blocklist_keeper::keep(api.cluster.clone(), api.pools.clone()));
        background.spawn(device_keeper::keep(api.clone()));
        let server = serve(api.clone(), listener, raised(stopped)).await?;
        // Storage may be slow, or away: agents do not wait for what a predecessor left.
        background.spawn(resume(api, leftovers));
        Ok(Self { address, stop, driver, server, background, store_closed, _state_dir: state_dir })
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs until `told` is ready or the driver fails for good, then ends in order: the driver first, so that every
    /// stream ends and no decision is made that nobody carries out; then the server, with some time for its answers.
    ///
    /// # Errors
    /// What ended it, if it was not told.
    pub async fn run(mut self, told: impl Future<Output = ()>) -> anyhow::Result<()> {
        let failure = tokio::select! {
            () = told => None,
            ended = &mut self.driver => Some(ended),
        };
        // Nobody waits for it any more only if both tasks have ended.
        let _heard = self.stop.send(true);
        let ended = match failure {
            Some(ended) => ended,
            None => self.driver.await,
        };
        self.background.end().await;
        match tokio::time::timeout(DRAIN, &mut self.server).await {
            Ok(served) => served??,
            Err(_) => {
                tracing::info!("some requests did not end in time");
                self.server.abort();
            }
        }
        // What was given up may have left a read under way: whoever starts next finds the file free.
        if tokio::time::timeout(DRAIN, self.store_closed.wait()).await.is_err() {
            tracing::warn!("the store is still in use");
        }
        Ok(ended??)
    }
}

async fn open_store(path: PathBuf) -> Result<EmbeddedStore, OpenError> {
    crate::pools::blocking(move || EmbeddedStore::open(&path, Options::default())).await
}

/// Ready once the flag is raised, or whoever could raise it has gone.
async fn raised(mut flag: watch::Receiver<bool>) {
    let _raised_or_gone = flag.wait_for(|raised| *raised).await;
}

/// The pools that clients made.
fn made_pools(state: &ClusterState) -> BTreeMap<Name, RbdPool> {
    state.pools.values().map(|pool| (pool.name.clone(), pool.rbd.clone())).collect()
}

/// Tells the pools what the store says of those that clients made, whenever that changes.
async fn remember_pools<S: Store>(api: Api<S>) {
    let mut changes = api.cluster.changes();
    let mut last = None;
    loop {
        let Ok(made) = api.cluster.read(|view| made_pools(view.state)).await else { return };
        if last.as_ref() != Some(&made) {
            api.pools.remember(made.clone());
            last = Some(made);
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn serve<S: Store>(
    api: Api<S>,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<JoinHandle<Result<(), tonic::transport::Error>>, StartError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<VmsServer<Api<S>>>().await;
    health.set_serving::<NodeRegistryServer<Api<S>>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .build_v1()?;
    macro_rules! limited {
        ($server:ident) => {
            $server::new(api.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES)
        };
    }
    let router = Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(limited!(NodeRegistryServer))
        .add_service(limited!(OperationsServer))
        .add_service(limited!(NodesServer))
        .add_service(limited!(VmsServer))
        .add_service(limited!(PlacementServer))
        .add_service(limited!(VolumesServer))
        .add_service(limited!(ImagesServer))
        .add_service(limited!(PoolsServer))
        .add_service(limited!(DiskImagesServer))
        .add_service(limited!(EventsServer));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Ok(tokio::spawn(async move {
        let served = router.serve_with_incoming_shutdown(incoming, stop).await;
        if let Err(error) = &served {
            tracing::error!(error = describe(error), "the server ended");
        }
        served
    }))
}
