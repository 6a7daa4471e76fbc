//! `drover-control-plane`
//!
//! Exit status: 0 after SIGTERM or SIGINT, 1 if it could not start or failed, 2 for a configuration that is not valid.
#![forbid(unsafe_code)]

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser as _;
use drover_control_plane::{Arguments, Config, ControlPlane};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(ansi).init();

    let config = match Config::resolve(arguments) {
        Ok(config) => config,
        Err(error) => return fail(2, &error.into()),
    };
    match run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error),
    }
}

/// One line for people: what was tried, and why it did not work.
fn fail(status: u8, error: &anyhow::Error) -> ExitCode {
    // Without a place to say it, the status must do.
    let _unheard = writeln!(io::stderr(), "error: {error:#}");
    ExitCode::from(status)
}

async fn run(config: Config) -> anyhow::Result<()> {
    // Before anything is started: a signal that comes meanwhile is not lost.
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be handled")?;
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
