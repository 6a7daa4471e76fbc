//! `drover placement simulate`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use drover_placement_sim::Contender;

pub(super) const SIMULATE_HELP: &str = "\
A cluster is described by a TOML file:

  [[hosts]]
  class = \"general\"
  count = 300
  cores = 40
  memory = \"90G\"
  # optional: reserved_cores, reserved_memory, cpu_overcommit, memory_overcommit, zones = [\"a\", \"b\"], racks

Examples:
  drover placement simulate --trace huawei --cluster cluster.toml --policy pack --policy best-fit
  drover placement simulate --trace packing_trace_zone_a_v1.sqlite --cluster cluster.toml --until first-rejection --plot out.svg";

#[derive(Debug, Args)]
pub(crate) struct Simulate {
    /// 'huawei' or 'azure' for a generated trace of that shape, or a file: Huawei-East-1's CSV, the Azure packing trace's
    /// SQLite file, or a CSV export of its table vm (with --vm-types)
    #[arg(long, value_name = "TRACE")]
    pub(crate) trace: String,
    /// CSV export of the Azure packing trace's table vmType
    #[arg(long, value_name = "FILE")]
    pub(crate) vm_types: Option<PathBuf>,
    /// Of the Azure packing trace, the machine whose requests are taken; without it the one that most requests can be placed
    /// on. It gets the size of the cluster's first class
    #[arg(long, value_name = "ID")]
    pub(crate) machine: Option<u32>,
    /// Description of the cluster
    #[arg(long, value_name = "FILE")]
    pub(crate) cluster: PathBuf,
    /// Policy or heuristic; may be given several times to compare. 'custom:pack=50,fragmentation=100' has weights of its own
    #[arg(long = "policy", value_name = "NAME", default_value = "pack")]
    pub(crate) policies: Vec<Contender>,
    /// Of a generated trace: equal seeds give equal traces
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Of a generated trace: number of requests
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) requests: Option<u32>,
    /// When to stop
    #[arg(long, value_enum, default_value_t = Stop::End)]
    pub(crate) until: Stop,
    /// Migrate VMs to make room for a request that would be refused
    #[arg(long)]
    pub(crate) defragment: bool,
    /// Write a drawing (SVG); with several policies, one file each, with the policy's name in it
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
    /// Write the cluster over time (CSV); with several policies, one file each, with the policy's name in it
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stop {
    /// At the end of the trace
    End,
    /// As soon as a request is refused
    FirstRejection,
}
