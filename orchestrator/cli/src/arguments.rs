//! What can be typed.

mod devices;
pub(crate) mod guest;
pub(crate) mod placement;
mod simulate;

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use drover_client::api::Nic;
use drover_units::Bytes;

use crate::output::Format;

pub(crate) use devices::{AttachArgs, Bus, ByteRate, Count, DetachArgs, HardwareArgs, LimitArgs, Reset};
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
    /// Where disks are kept
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Disks
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// What disks held at some moment
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// What VMs boot from: kernels (ELF with a PVH entry, or bzImage), initramfs, and disks that volumes are cloned from
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
#[expect(clippy::large_enum_variant, reason = "parsed once")]
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
    /// Attaches a volume or a network interface to a VM, running or not
    Attach(devices::AttachArgs),
    /// Takes a volume or a network interface from a VM, running or not
    Detach(devices::DetachArgs),
    /// Limits what a disk or a network interface of a VM may do, at once; without numbers: not at all
    Limit(devices::LimitArgs),
    /// Starts a stopped VM
    Start {
        /// Name or id
        vm: String,
    },
    /// Stops a VM; its definition and volumes stay
    Stop {
        /// Name or id
        vm: String,
        /// Presses its power button first, and stops it only if it has not shut itself down in time
        #[arg(long)]
        graceful: bool,
        /// What is in time, such as 5m
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "60s", requires = "graceful")]
        within: Duration,
    },
    /// Writes a running VM into a file of its node, memory and all, and stops it
    Suspend {
        /// Name or id
        vm: String,
    },
    /// Starts a suspended VM where it was
    ///
    /// Where its node cannot take it, or it has run in between, it starts from its disks. `vm stop` discards its memory instead.
    Resume {
        /// Name or id
        vm: String,
    },
    /// Shows the balloon of a running VM, which gives its memory back to the host, or changes it
    Balloon {
        /// Name or id
        vm: String,
        /// So much of the VM's memory is to be in the balloon, such as 512M; 0: all of it is the guest's
        #[arg(long, value_name = "SIZE")]
        target: Option<Bytes>,
        /// Asks the guest which pages are free, and gives those back
        #[arg(long)]
        reclaim: bool,
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
    /// What all disks of a VM held at one moment
    #[command(subcommand)]
    Snapshot(VmSnapshotCommand),
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

#[derive(Debug, Subcommand)]
pub(crate) enum VmSnapshotCommand {
    /// Keeps the content of every disk that a VM writes, all of one moment; it may run where its pools can do that
    Create {
        /// The VM, and a name for the snapshot
        #[arg(value_name = "VM@SNAPSHOT")]
        snapshot: Snapshot,
    },
    /// Lists snapshots of VMs
    List {
        /// Only those of this VM, by name or id
        vm: Option<String>,
    },
    /// Shows a snapshot of a VM
    Show {
        /// Which
        #[arg(value_name = "VM@SNAPSHOT")]
        snapshot: Snapshot,
    },
    /// Gives every disk of a VM the content it had; the VM must be stopped
    Rollback {
        /// What to go back to
        #[arg(value_name = "VM@SNAPSHOT")]
        snapshot: Snapshot,
    },
    /// Deletes a VM's snapshot that nothing needs; of a VM that is gone too, by its id
    Delete {
        /// Which
        #[arg(value_name = "VM@SNAPSHOT")]
        snapshot: Snapshot,
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
    /// A network interface; all parts are optional, and it may be given several times
    #[arg(long = "nic", value_name = "network=NAME,mac=ADDRESS,queues=N,mtu=N", value_parser = devices::nic)]
    pub(crate) nics: Vec<Nic>,
    #[command(flatten)]
    pub(crate) hardware: devices::HardwareArgs,
    #[command(flatten)]
    pub(crate) guest: guest::CloudInit,
    #[command(flatten)]
    pub(crate) stall: Stall,
    #[command(flatten)]
    pub(crate) place: placement::Where,
}

/// What becomes of a VM whose storage does not answer. Its requests wait in any case.
#[derive(Clone, Copy, Debug, Args)]
#[group(skip)]
pub(crate) struct Stall {
    /// What becomes of a VM when its storage does not answer: its requests wait in any case. A VM that does not say takes what
    /// its pool says, or waits
    #[arg(long, value_enum, value_name = "ACTION")]
    pub(crate) stall_action: Option<StallAction>,
    /// When storage is said not to answer, such as 10s, at least 500ms [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) stall_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StallAction {
    /// Go on, and say so
    Wait,
    /// Stand still until the storage answers again
    Pause,
    /// End, and be restarted, perhaps where the storage can be reached
    Stop,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Creates a volume: empty, from a disk image, or from a snapshot
    Create(CreateVolume),
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
    /// Makes a volume larger; a VM that runs sees it at once
    Resize {
        /// Name or id
        volume: String,
        /// The new size, such as 20G
        size: Bytes,
    },
    /// Makes a clone independent of what it was cloned from
    Flatten {
        /// Name or id
        volume: String,
    },
    /// Deletes a volume that is not attached, and its data
    Delete {
        /// Name or id
        volume: String,
    },
}

#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct CreateVolume {
    /// Name, unique in the cluster
    pub(crate) name: String,
    /// Size, such as 10G; a multiple of 512 bytes. Of a clone: at least that of what it is made of, which is the default
    #[arg(long, required_unless_present_any = ["image", "snapshot"])]
    pub(crate) size: Option<Bytes>,
    /// Disk image to clone
    #[arg(long, value_name = "IMAGE", conflicts_with = "snapshot")]
    pub(crate) image: Option<String>,
    /// Snapshot to clone
    #[arg(long, value_name = "VOLUME@SNAPSHOT")]
    pub(crate) snapshot: Option<Snapshot>,
    /// Pool; may be left out where there is only one. Of a clone: that of what it is made of; another one makes a copy
    #[arg(long, default_value = "")]
    pub(crate) pool: String,
}

/// `VOLUME@SNAPSHOT`, or `VM@SNAPSHOT`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// What it is one of.
    pub(crate) of: String,
    pub(crate) snapshot: String,
}

impl FromStr for Snapshot {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('@') {
            Some((of, snapshot)) if !of.is_empty() && !snapshot.is_empty() => {
                Ok(Self { of: of.to_owned(), snapshot: snapshot.to_owned() })
            }
            _ => Err("a snapshot is named VOLUME@SNAPSHOT, or VM@SNAPSHOT"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PoolKind {
    /// Images in a Ceph pool
    Rbd,
    /// Raw files in a directory
    Dir,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Makes a pool in a Ceph cluster that the control plane knows
    Create {
        /// Name, unique in the cluster
        name: String,
        /// What it is; directories are part of the configuration of control plane and nodes
        #[arg(long, value_enum, default_value_t = PoolKind::Rbd)]
        kind: PoolKind,
        /// Ceph cluster, by its name in the control plane's configuration; may be left out where there is only one
        #[arg(long, default_value = "")]
        cluster: String,
        /// Ceph's name of the pool
        #[arg(long, default_value = "")]
        ceph_pool: String,
        /// Its namespace
        #[arg(long, default_value = "")]
        namespace: String,
        #[command(flatten)]
        stall: Stall,
    },
    /// Lists pools, and how full they are
    List,
    /// Shows one pool
    Show {
        /// Name
        pool: String,
    },
    /// Deletes a pool in which nothing is
    Delete {
        /// Name
        pool: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Keeps a volume's present content; its VM may run where the pool can do that
    Create {
        /// The volume, and a name for the snapshot
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: Snapshot,
    },
    /// Lists snapshots
    List {
        /// Only those of this volume, by name or id
        volume: Option<String>,
    },
    /// Keeps a snapshot from being deleted
    Protect {
        /// Which
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: Snapshot,
    },
    /// Lets a snapshot be deleted again
    Unprotect {
        /// Which
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: Snapshot,
    },
    /// Gives a volume the content it had; its VM must be stopped
    Rollback {
        /// What to go back to
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: Snapshot,
    },
    /// Deletes a snapshot that nothing needs
    Delete {
        /// Which
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: Snapshot,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImageKind {
    /// A kernel or an initramfs
    Boot,
    /// A disk
    Disk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DiskFormat {
    /// The disk's bytes
    Raw,
    /// QEMU's format
    Qcow2,
}

#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct ImportImage {
    /// Name of what is created
    pub(crate) name: String,
    /// File to send, or http(s) URL that the control plane fetches
    pub(crate) source: String,
    /// Pool; may be left out where there is only one
    #[arg(long, default_value = "")]
    pub(crate) pool: String,
    /// What it is; found out by default: kernels and initramfs are known by their first bytes, anything else is a disk
    #[arg(long, value_enum)]
    pub(crate) kind: Option<ImageKind>,
    /// SHA-256 of the file; a URL needs one
    #[arg(long, value_name = "HEX")]
    pub(crate) sha256: Option<String>,
    /// A disk's format; found out by default
    #[arg(long, value_enum)]
    pub(crate) format: Option<DiskFormat>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Imports a kernel, an initramfs, or a raw or qcow2 disk. An import that breaks off is gone on with
    Import(ImportImage),
    /// Lists images
    List,
    /// Shows one image
    Show {
        /// Name
        image: String,
    },
    /// Copies a disk image into another pool
    Copy {
        /// Name
        image: String,
        /// Name of the copy
        name: String,
        /// Pool of the copy
        #[arg(long)]
        pool: String,
    },
    /// Deletes an image that nothing needs
    Delete {
        /// Name
        image: String,
    },
    /// Builds a guest on this machine, of a distribution's own packages; needs no cluster
    #[command(subcommand)]
    Build(guest::Build),
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
        check("vm create web --image probe --stall-action pause --stall-after 10s", true);
        check("vm create web --image probe --stall-action panic", false);
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
        check("volume create data", false);
        check("volume create data --image debian", true);
        check("volume create data --snapshot a@b --size 20G --pool fast", true);
        check("volume create data --snapshot ab", false);
        check("volume create data --snapshot a@b --image debian", false);
        check("snapshot create data@before", true);
        check("snapshot create data", false);
        check("vm snapshot create web@before", true);
        check("vm snapshot create web", false);
        check("vm snapshot list", true);
        check("vm snapshot rollback web@before --no-wait", true);
        check("pool create fast --kind rbd --cluster main --ceph-pool vms", true);
        check("image import debian https://example.org/d.qcow2 --sha256 00", true);
    }
}
