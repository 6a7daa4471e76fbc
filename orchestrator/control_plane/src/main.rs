//! `drover-control-plane`
#![forbid(unsafe_code)]

use anyhow::Context as _;
use clap::Parser as _;
use drover_control_plane::{Arguments, Config, ControlPlane};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();

    let config = Config::resolve(arguments)?;
    // Before anything is started: a signal that comes meanwhile is not lost.
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?,
        signal(SignalKind::interrupt()).context("SIGINT cannot be handled")?,
    );
    let control_plane = ControlPlane::start(config).await?;
    tracing::info!(address = %control_plane.address(), "the control plane serves");
    control_plane
        .run(async move {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM: ending"),
                _ = interrupt.recv() => tracing::info!("SIGINT: ending"),
            }
        })
        .await
}
