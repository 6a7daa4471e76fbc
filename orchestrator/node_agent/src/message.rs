//! What the agent's task is told.

use std::sync::Arc;

use drover_ids::{OwnerEpoch, VmId};
use drover_node_supervisor::{Event, Run, Verb};
use drover_wire::{
    node::v1::VmStatus,
    vm::v1::{Command, VmInfo},
};
use tokio::sync::oneshot;
use tonic::Status;

use crate::{machine::Machine, process::Process, state_dir::RunDir, vmmd::Vmmd};

/// Everything that happens to an agent.
#[derive(Debug)]
pub(crate) enum Message {
    /// The control plane asks for something.
    Asked(Asked, oneshot::Sender<Result<Reply, Status>>),
    /// What is to be told of every VM.
    List(oneshot::Sender<Vec<VmStatus>>),
    /// Where a VM is.
    Find(VmId, oneshot::Sender<Located>),
    /// A launch has a process.
    Spawned { vm: VmId, run: Run, process: Arc<Process> },
    /// A process that is being launched can be talked to.
    Reachable { vm: VmId, run: Run, vmmd: Vmmd },
    /// A launch has ended.
    Launched { vm: VmId, run: Run, result: Result<Up, NotUp> },
    /// An adopted process answers.
    Connected { vm: VmId, run: Run, vmmd: Vmmd, info: VmInfo },
    /// A vmmd reports.
    Info { vm: VmId, run: Run, info: VmInfo },
    /// A vmmd is waiting for its VM at this address.
    Address { vm: VmId, run: Run, address: String },
    /// The end of a process is proven.
    Ended { vm: VmId, run: Run, exit: String },
    /// What needs no more than the supervisor.
    Event(Event),
}

/// A command, checked as far as that goes without knowing the VM.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) vm: VmId,
    pub(crate) verb: Verb,
    /// Valid, and handed on to vmmd.
    pub(crate) command: Command,
    pub(crate) body: Body,
}

impl Asked {
    pub(crate) fn epoch(&self) -> OwnerEpoch {
        OwnerEpoch::new(self.command.owner_epoch)
    }
}

/// What a command carries besides its verb.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    None,
    /// The VM to bring up; or why this node cannot, which matters only if it does not run yet.
    Machine(Box<Result<Machine, Status>>),
    MigrateOut(drover_wire::vm::v1::MigrateOutRequest),
    CancelMigration {
        migration_id: String,
    },
}

/// An answer to [`Asked`].
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Status(Box<VmStatus>),
    Stopped { ended: bool },
    Incoming { address: String },
}

/// A VM that runs, or waits to arrive.
#[derive(Debug)]
pub(crate) struct Up {
    pub(crate) vmmd: Vmmd,
    pub(crate) info: VmInfo,
    /// Where an incoming one waits.
    pub(crate) address: Option<String>,
}

/// A launch that failed.
#[derive(Debug)]
pub(crate) struct NotUp {
    pub(crate) status: Status,
    pub(crate) may_have_run: bool,
}

/// Where to find a VM's console.
#[derive(Debug)]
pub(crate) struct Located {
    pub(crate) dir: RunDir,
    /// `None`: no process is there, or it does not answer yet.
    pub(crate) vmmd: Option<Vmmd>,
    pub(crate) process: Option<Arc<Process>>,
}
