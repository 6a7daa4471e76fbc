//! `drover-node-agent`: the agent process on each host.
//!
//! It starts one `drover-vmmd` per VM, tells the control plane what runs here, and carries out what it is asked. All
//! decisions are `drover-node-supervisor`'s; this crate is processes, sockets, files and the clock:
//!
//! ```text
//!   control plane <--- registry (register, heartbeat)        service (NodeAgent gRPC) <--- control plane
//!                             ^                                   |
//!                             |   effects          messages       v
//!                             +--------- agent: one task, owns the Supervisor
//!                             |                                   ^
//!                             v                                   |
//!              launch, end, relay, extend lease ------------ watch, pidfd
//!                             |
//!                             v   unix socket in vms/<id>/
//!                          drover-vmmd, one per VM, each in a session of its own
//! ```
//!
//! VMs outlive their agent: SIGTERM (or a crash) ends the agent only, and the next one on the same state directory
//! adopts what runs. Only the lease bounds how long a VM runs without any agent.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "the driver of a pure core owns the clock")]

mod adopt;
mod agent;
mod capabilities;
mod cgroup;
mod clock;
mod config;
mod console;
mod death_watch;
mod handover;
mod host_facts;
mod jail;
mod launch;
mod logs;
mod machine;
mod message;
mod nics;
mod process;
mod recorder;
mod registry;
mod relay;
mod service;
mod spawn;
mod state_dir;
mod status;
mod suspended;
mod vmmd;

use std::io::IsTerminal as _;

use anyhow::Context as _;
use clap::Parser as _;
use drover_wire::{MAX_MESSAGE_BYTES, node::v1::node_agent_server::NodeAgentServer};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tracing::info;
use uuid::Uuid;

use crate::{
    agent::Agent,
    capabilities::Librbd,
    config::{Args, Config},
    death_watch::DeathWatch,
    jail::Jail,
    machine::Offers,
    registry::Registry,
    service::Service,
    state_dir::StateDir,
};

/// Messages that wait for the agent's task before their senders are held up.
const INBOX_DEPTH: usize = 1024;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let config = Config::resolve(args)?;
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(&config.log_level))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot make a tokio runtime")?
        .block_on(run(config))
}

async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let state_dir = StateDir::open(&config.state_dir)?;
    let node_id = state_dir.node_id()?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("--listen: cannot listen on {}", config.listen))?;
    let port = listener.local_addr().context("cannot tell the listening address")?.port();
    let incarnation = Uuid::new_v4();
    info!(node = %node_id, name = config.name, %incarnation, address = %config.advertise, port, "node agent starts");

    let jail = Jail::probe(&config.jail)?;
    if jail.is_on() {
        cgroup::find();
    }
    let librbd = Librbd::of(&config.vmmd).await;
    let suspended = state_dir.suspended().clone();
    let registry = Registry::new(&config, (node_id, incarnation), port, (&librbd, suspended.clone()))?;
    let (inbox, messages) = mpsc::channel(INBOX_DEPTH);
    let deaths = DeathWatch::start()?;
    let adopted = adopt::scan(&state_dir, &deaths).await?;
    let (pools, networks) = (config.pools.clone(), config.networks.clone());
    let agent = Agent::new((config, jail), state_dir, registry, deaths, inbox.clone())?;
    let service =
        NodeAgentServer::new(Service::new(node_id, Offers { pools, librbd, networks }, (inbox, suspended)))
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let server = Server::builder()
        .tcp_nodelay(true)
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener));

    tokio::select! {
        ended = server => ended.context("the gRPC server failed")?,
        () = agent.run(adopted, messages) => {}
        _ = terminate.recv() => info!("SIGTERM: the agent ends, its VMs go on and wait to be adopted"),
        _ = interrupt.recv() => info!("SIGINT: the agent ends, its VMs go on and wait to be adopted"),
    }
    Ok(())
}
