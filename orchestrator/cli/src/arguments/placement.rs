//! What can be typed about nodes, places and moves.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use drover_units::Bytes;

use super::simulate::{SIMULATE_HELP, Simulate};

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Lists nodes with their state and what they run
    List,
    /// Shows one node
    Show {
        /// Name or id
        node: String,
    },
    /// Adds, replaces or removes labels: KEY=VALUE, or KEY- to remove one
    Label {
        /// Name or id
        node: String,
        /// Such as rack=r1, zone=eu-1, disk-
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        labels: Vec<String>,
    },
    /// Adds or removes taints, which keep VMs away that do not tolerate them
    Taint {
        /// Name or id
        node: String,
        /// KEY[=VALUE]:refuse, KEY[=VALUE]:avoid, or KEY- to remove
        #[arg(required = true, value_name = "TAINT|KEY-")]
        taints: Vec<String>,
    },
    /// Lets a node take no new VMs; those that it has stay
    Cordon {
        /// Name or id
        node: String,
    },
    /// Lets a node take VMs again
    Uncordon {
        /// Name or id
        node: String,
    },
    /// Sets how far a node may be filled
    Set {
        /// Name or id
        node: String,
        /// How often a virtual CPU may be given away, such as 2.5; 0 for what the agent says
        #[arg(long, value_name = "FACTOR")]
        vcpu_overcommit: Option<f64>,
        /// How often memory may be given away, such as 1.2; 0 for what the agent says
        #[arg(long, value_name = "FACTOR")]
        memory_overcommit: Option<f64>,
        /// Virtual CPUs kept for the host itself
        #[arg(long, value_name = "N", requires = "reserved_memory")]
        reserved_vcpus: Option<u32>,
        /// Memory kept for the host itself
        #[arg(long, value_name = "SIZE", requires = "reserved_vcpus")]
        reserved_memory: Option<Bytes>,
    },
    /// Moves every VM away with live migrations, and keeps new ones away
    Drain {
        /// Name or id
        node: String,
        #[command(flatten)]
        drain: DrainOptions,
    },
    /// Ends a drain or a cordon: the node takes VMs again
    Undrain {
        /// Name or id
        node: String,
    },
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct DrainOptions {
    /// Most migrations at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) parallel: u32,
    /// Only show what would be moved, and where
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RackCommand {
    /// Moves every VM away from all nodes with this rack label
    Drain {
        /// Value of the label "rack"
        rack: String,
        #[command(flatten)]
        drain: DrainOptions,
    },
    /// Lets the nodes of a rack take VMs again
    Undrain {
        /// Value of the label "rack"
        rack: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Nothing moves unless somebody applies a plan
    Manual,
    /// Moves are proposed in the event log
    Partial,
    /// Moves are made
    Automatic,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RebalanceCommand {
    /// Shows the few moves that would be worth their cost
    Plan,
    /// Makes them
    Apply {
        /// Most migrations at once
        #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
        parallel: u32,
    },
    /// Shows who decides about moves, or changes it
    Mode {
        /// Who decides from now on
        mode: Option<Mode>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProjectCommand {
    /// Lists projects with their limits and what they use
    List,
    /// Stores a project, new or known
    Set {
        /// Name
        name: String,
        /// Most VMs; left out: no limit
        #[arg(long, value_name = "N")]
        vms: Option<u32>,
        /// Most virtual CPUs; left out: no limit
        #[arg(long, value_name = "N")]
        vcpus: Option<u32>,
        /// Most memory, such as 64G; left out: no limit
        #[arg(long, value_name = "SIZE")]
        memory: Option<Bytes>,
        /// Placement policy; left out: the cluster's
        #[arg(long, value_name = "POLICY", default_value = "")]
        policy: String,
    },
    /// Forgets a project that has no VMs
    Delete {
        /// Name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PlacementCommand {
    /// What a good host is: named policies
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Shows where a VM that does not exist would run, and why
    Explain {
        #[command(flatten)]
        vm: super::CreateVm,
    },
    /// Makes room for a VM that fits nowhere, with few live migrations
    Defragment {
        #[command(flatten)]
        vm: super::CreateVm,
        #[command(flatten)]
        moves: DrainOptions,
    },
    /// Runs a trace of VM requests on a described cluster; needs no control plane
    #[command(after_help = SIMULATE_HELP)]
    Simulate(Simulate),
    /// Shows what placement has done, and the cluster's settings
    Status,
    /// Changes the cluster's settings; what is left out stays
    Set {
        /// Policy of projects that have none
        #[arg(long, value_name = "POLICY")]
        policy: Option<String>,
        /// Hosts whose failure must be survivable: room for their VMs is kept free
        #[arg(long, value_name = "N")]
        failures_to_survive: Option<u32>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Lists policies: those that come with Drover and those that are stored
    List,
    /// Shows one policy
    Show {
        /// Name
        name: String,
    },
    /// Stores a policy; it is in force for the next decision
    Set {
        /// Name
        name: String,
        /// Policy to start from; custom starts from nothing
        #[arg(long, value_name = "POLICY", default_value = "custom")]
        base: String,
        /// Weight of a term, such as pack=100; 0 to 1000 (repeat for several)
        #[arg(long = "weight", value_name = "TERM=WEIGHT")]
        weights: Vec<String>,
        /// Breaks ties at random, but always in the same way
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        seed: u64,
    },
    /// Forgets a stored policy
    Delete {
        /// Name
        name: String,
    },
}

/// Where a VM may run.
///
/// PEER is vm:NAME or group:NAME. @DOMAIN is @host (the default), @rack or @zone. ~WEIGHT (1 to 100) makes a rule a
/// preference.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Placement")]
pub(crate) struct Where {
    /// Makes it a member of a group that rules speak of (repeat for several)
    #[arg(long = "group", value_name = "GROUP")]
    pub(crate) groups: Vec<String>,
    /// In the same domain as others: vm:NAME or group:NAME, then [@rack|@zone][~WEIGHT]
    #[arg(long = "together", value_name = "PEER[@DOMAIN][~WEIGHT]")]
    pub(crate) together: Vec<String>,
    /// In another domain than others: vm:NAME or group:NAME, then [@rack|@zone][~WEIGHT]
    #[arg(long = "apart", value_name = "PEER[@DOMAIN][~WEIGHT]")]
    pub(crate) apart: Vec<String>,
    /// Keeps a group even over hosts, racks or zones, to within SKEW (1 unless said)
    #[arg(long = "spread", value_name = "GROUP@DOMAIN[=SKEW][~WEIGHT]")]
    pub(crate) spread: Vec<String>,
    /// Asks for a label: KEY=VALUE[,VALUE], KEY!=VALUE, KEY or !KEY, then [~WEIGHT]
    #[arg(long = "label", value_name = "RULE[~WEIGHT]")]
    pub(crate) labels: Vec<String>,
    /// Does not mind a taint (repeat for several)
    #[arg(long = "tolerate", value_name = "KEY[=VALUE]")]
    pub(crate) tolerations: Vec<String>,
    /// On one NUMA node
    #[arg(long, value_enum)]
    pub(crate) numa: Option<Numa>,
    /// A host thread of its own for each virtual CPU
    #[arg(long)]
    pub(crate) pinned: bool,
    /// Memory from hugepages of this size: 2M or 1G
    #[arg(long, value_name = "SIZE")]
    pub(crate) hugepages: Option<Bytes>,
    /// Least processor: x86-64-v1 to x86-64-v4
    #[arg(long, value_name = "LEVEL", default_value = "")]
    pub(crate) cpu_baseline: String,
    /// A network its host must reach (repeat for several)
    #[arg(long = "network", value_name = "NAME")]
    pub(crate) networks: Vec<String>,
    /// Whose it is, and whose limits and policy count
    #[arg(long, value_name = "PROJECT", default_value = "")]
    pub(crate) project: String,
    /// May take the place of VMs of lower priority if it fits nowhere else
    #[arg(long)]
    pub(crate) preempt: bool,
    /// How long it is expected to live, such as 2h, for policies that look at it
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) lifetime: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Numa {
    /// Or nowhere
    Single,
    /// If there is room on one
    PreferSingle,
}
