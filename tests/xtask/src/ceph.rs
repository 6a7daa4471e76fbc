//! `cargo xtask ceph`: a Ceph cluster that stays until it is taken down.

use std::{path::Path, time::Instant};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use drover_test_ceph_cluster::{CephCluster, CephOptions, LeftRunning};

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Starts a cluster that survives this command
    Up {
        /// OSDs; pools keep one copy on each, at most three
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=9))]
        osds: u16,
        /// The monitor settings of a cluster in production: every change of a map takes about a second
        #[arg(long)]
        stock: bool,
    },
    /// Takes down every cluster that `up` started
    Down,
    /// Lists the clusters that `up` started and their processes; fails if there is none
    Status,
}

/// Runs one of the commands.
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Up { osds, stock } => up(*osds, *stock),
        Command::Down => down(),
        Command::Status => status(),
    }
}

fn up(osds: u16, stock: bool) -> anyhow::Result<()> {
    let start = Instant::now();
    let options = CephOptions { osds, ..CephOptions::default() };
    let options = if stock { options.stock_paxos() } else { options };
    let cluster = CephCluster::start(&options).context("the cluster does not start")?;
    let pool = cluster.pool().to_owned();
    let mon_hosts = cluster.mon_hosts().to_owned();
    let directory = cluster.leave_running()?;
    eprintln!("ceph: up in {:.1} s at {mon_hosts}, number of OSDs: {osds}", start.elapsed().as_secs_f64());
    explain(&directory, &pool);
    Ok(())
}

/// What one needs to use it: the first line can be evaluated by a shell.
fn explain(directory: &Path, pool: &str) {
    println!("export CEPH_CONF={}", directory.join("ceph.conf").display());
    println!(
        "# rbd create --size 1G {pool}/disk; rbd ls {pool}; ceph -s; rbd bench --io-type write {pool}/disk"
    );
    println!("# cargo xtask ceph down");
}

fn down() -> anyhow::Result<()> {
    let clusters = LeftRunning::all();
    if clusters.is_empty() {
        eprintln!("ceph: none is up");
    }
    for cluster in clusters {
        let directory = cluster.directory().to_owned();
        cluster.take_down()?;
        eprintln!("ceph: {} is down", directory.display());
    }
    Ok(())
}

fn status() -> anyhow::Result<()> {
    let clusters = LeftRunning::all();
    if clusters.is_empty() {
        bail!("no cluster is up: cargo xtask ceph up");
    }
    for cluster in clusters {
        println!("{}", cluster.conf_path().display());
        for (pid, program) in cluster.processes() {
            println!("  {program} (pid {pid})");
        }
    }
    Ok(())
}
