//! What can be typed.

pub(crate) mod placement;
mod simulate;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use drover_units::Bytes;

use crate::output::Format;

pub(crate) use placement::{NodeCommand, PlacementCommand, ProjectCommand, RackCommand, RebalanceCommand};
pub(crate) use simulate::{Simulate, Stop};

#[derive(Debug, Parser)]
#[command(
    name = "drover",
    version,
    about = "Runs virtual machines on a pool of hosts",
    propagate_version = true
)]
pub(crate) struct Arguments {
    /// URL of the control plane
    #[arg(long, env = "DROVER_SERVER", default_value = "http://127.0.0.1:7400", global = true)]
    pub(crate) server: String,
    /// How to print results
    #[arg(short, long, value_enum, default_value_t = Format::Table, global = true)]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) wait: Wait,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How commands that start an operation wait for its end.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Wait {
    /// Wait for the operation to end (the default; undoes an earlier --no-wait)
    #[arg(long, global = true, overrides_with = "no_wait")]
    wait: bool,
    /// Print the operation and return at once instead of waiting for its end
    #[arg(long, global = true)]
    pub(crate) no_wait: bool,
    /// Give up waiting after this long, such as 90s or 5m; the operation goes on
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = humantime::parse_duration,
        global = true,
        conflicts_with = "no_wait"
    )]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Hosts that run VMs
    #[command(subcommand)]
    Node(NodeCommand),
    /// Nodes of one rack
    #[command(subcommand)]
    Rack(RackCommand),
    /// Virtual machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// Disks
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Boot images: ELF kernels with a PVH entry
    #[command(subcommand)]
    Image(ImageCommand),
    /// Long work, and how it ended
    #[command(subcommand)]
    Operation(OperationCommand),
    /// What happened in the cluster
    #[command(subcommand)]
    Event(EventCommand),
    /// Who VMs belong to: limits and policies
    #[command(subcommand)]
    Project(ProjectCommand),
    /// Few live migrations that balance the cluster
    #[command(subcommand)]
    Rebalance(RebalanceCommand),
    /// Where VMs go
    #[command(subcommand)]
    Placement(PlacementCommand),
    /// Prints a completion script for a shell
    Completion {
        /// The shell
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Creates a VM and starts it; with --count, several of one kind
    Create {
        #[command(flatten)]
        vm: CreateVm,
        /// So many VMs, named NAME-1 and so on: all of them get a place, or none is created
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
        count: Option<u32>,
    },
    /// Shows why a VM runs where it does, or why no node can take it
    Explain {
        /// Name or id
        vm: String,
    },
    /// Lists VMs
    List,
    /// Shows one VM
    Show {
        /// Name or id
        vm: String,
    },
    /// Starts a stopped VM
    Start {
        /// Name or id
        vm: String,
    },
    /// Stops a VM; its definition and volumes stay
    Stop {
        /// Name or id
        vm: String,
    },
    /// Moves a running VM to another node
    Migrate {
        /// Name or id
        vm: String,
        /// Node to move to, by name or id; without it placement chooses
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        /// Longest blackout to aim for, milliseconds
        #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        downtime: Option<u32>,
    },
    /// Stops and forgets a VM; its volumes stay
    Delete {
        /// Name or id
        vm: String,
    },
    /// Attaches this terminal to the serial console; Ctrl-] detaches
    Console {
        /// Name or id
        vm: String,
    },
    /// Prints the retained console log
    Logs {
        /// Name or id
        vm: String,
        /// Go on with what the guest prints
        #[arg(short, long)]
        follow: bool,
        /// At most the last so many bytes, such as 64K
        #[arg(long, value_name = "BYTES")]
        tail: Option<Bytes>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateVm {
    /// Name, unique in the cluster
    pub(crate) name: String,
    /// Boot image; needed to create one
    #[arg(long, default_value = "")]
    pub(crate) image: String,
    /// Virtual CPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) vcpus: u32,
    /// Memory, such as 256M
    #[arg(long, default_value = "256M")]
    pub(crate) memory: Bytes,
    /// Kernel command line
    #[arg(long, default_value = "")]
    pub(crate) cmdline: String,
    /// Volume to attach, by name or id; may be given several times
    #[arg(long = "volume", value_name = "VOLUME")]
    pub(crate) volumes: Vec<String>,
    /// VMs of one group are kept on different nodes
    #[arg(long, value_name = "GROUP", default_value = "")]
    pub(crate) anti_affinity: String,
    /// Higher is placed and restarted first
    #[arg(long, default_value_t = 0)]
    pub(crate) priority: u32,
    #[command(flatten)]
    pub(crate) place: placement::Where,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Creates an empty volume
    Create {
        /// Name, unique in the cluster
        name: String,
        /// Size, such as 10G; a multiple of 512 bytes
        #[arg(long)]
        size: Bytes,
        /// Pool; may be left out where there is only one
        #[arg(long, default_value = "")]
        pool: String,
    },
    /// Creates a volume from a raw file
    Import {
        #[command(flatten)]
        import: Import,
        /// Size of the volume, where it is to be larger than the file
        #[arg(long)]
        size: Option<Bytes>,
    },
    /// Lists volumes
    List,
    /// Shows one volume
    Show {
        /// Name or id
        volume: String,
    },
    /// Deletes a volume that is not attached, and its data
    Delete {
        /// Name or id
        volume: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Imports an ELF kernel with a PVH entry
    Import(Import),
    /// Lists boot images
    List,
    /// Deletes a boot image
    Delete {
        /// Name
        image: String,
    },
}

// The group that clap would make of this has the name of the subcommand's own.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Import {
    /// Name of what is created
    pub(crate) name: String,
    /// File to read
    pub(crate) file: PathBuf,
    /// Pool; may be left out where there is only one
    #[arg(long, default_value = "")]
    pub(crate) pool: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OperationCommand {
    /// Lists operations, newest last
    List {
        /// Only those of this VM or volume, by name or id
        #[arg(long)]
        subject: Option<String>,
    },
    /// Shows one operation
    Show {
        /// Id
        operation: String,
    },
    /// Follows an operation to its end
    Watch {
        /// Id
        operation: String,
    },
    /// Asks for an operation to end early
    Cancel {
        /// Id
        operation: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum EventCommand {
    /// Lists retained events, oldest first
    List {
        /// Only those of this VM, node or volume, by name or id
        #[arg(long)]
        subject: Option<String>,
        /// Only those after this sequence number
        #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
        after: u64,
    },
    /// Prints events as they happen
    Watch {
        /// Only those of this VM, node or volume, by name or id
        #[arg(long)]
        subject: Option<String>,
        /// Start after this sequence number instead of with what comes next
        #[arg(long, value_name = "SEQUENCE")]
        after: Option<u64>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    fn check(line: &str, valid: bool) {
        let words = std::iter::once("drover").chain(line.split_whitespace());
        assert_eq!(Arguments::try_parse_from(words).is_ok(), valid, "{line}");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_before_the_server_is_asked() {
        check("vm create web --image probe --memory 256M --volume a --volume b", true);
        check(
            "vm create web --image probe --count 3 --apart group:web@rack --spread web@zone=2 --tolerate gpu",
            true,
        );
        check("vm create web --image probe --count 0", false);
        check("vm create web --image probe --lifetime soon", false);
        check("node label n1 rack=r1 old-", true);
        check("node label n1", false);
        check("node drain n1 --parallel 4 --dry-run", true);
        check("node drain n1 --parallel 0", false);
        check("rack drain r1", true);
        check("rebalance mode automatic", true);
        check("rebalance mode sometimes", false);
        check("placement policy set mine --base balance --weight energy=7", true);
        check("placement explain x --memory 4G --vcpus 2", true);
        check("project set team --vms 3 --memory 8G", true);
        check("vm create web --image probe --vcpus 0", false);
        check("vm create web --image probe --memory lots", false);
        check("volume create data --size 10G -o json", true);
        check("volume create data --size -1", false);
        check("vm migrate web --to node-2 --downtime 30 --no-wait", true);
        check("vm migrate web --downtime 0", false);
        check("vm stop web --timeout 5m", true);
        check("vm stop web --timeout soon", false);
        check("vm stop web --no-wait --timeout 5m", false);
        check("vm stop web --no-wait --wait", true);
        check("volume import data disk.raw --size 1G", true);
        check(
            "placement simulate --trace huawei --cluster c.toml --policy pack --policy custom:pack=1",
            true,
        );
        check("placement simulate --trace huawei --cluster c.toml --policy perfect", false);
        check("placement simulate --trace huawei", false);
    }
}
