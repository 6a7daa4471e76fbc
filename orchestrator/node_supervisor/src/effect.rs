//! What a supervisor wants done.

use drover_ids::{OwnerEpoch, VmId};

use crate::{Lease, Run, Ticket};

/// How to end a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndHow {
    /// Ask the vmmd to stop, and kill it if it does not in time.
    Gracefully {
        /// The epoch to ask with.
        epoch: OwnerEpoch,
    },
    /// Kill it.
    Kill,
}

/// Something to do. Effects are carried out in the order they come in; those that take time, concurrently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Record the VM and its epoch durably, then start a process and let it run (or await) the VM that `ticket`'s
    /// command describes. Answered by `Spawned` and `Launched`.
    Launch {
        /// The VM.
        vm: VmId,
        /// Name of this launch in what follows.
        run: Run,
        /// The epoch it runs under.
        epoch: OwnerEpoch,
        /// Whose command describes the VM.
        ticket: Ticket,
        /// Until when it may run, unless extended.
        lease: Lease,
    },
    /// End a process. Answered by `ProcessEnded`, or by `EndOverdue` and perhaps `ProcessEnded` later.
    End {
        /// The VM.
        vm: VmId,
        /// The process.
        run: Run,
        /// How.
        how: EndHow,
    },
    /// Tell a vmmd its new lease. One that is being launched may not be there to be told, which does no harm.
    ExtendLease {
        /// The VM.
        vm: VmId,
        /// The process.
        run: Run,
        /// The epoch it holds.
        epoch: OwnerEpoch,
        /// Until when.
        lease: Lease,
    },
    /// Hand the command to the vmmd and answer the ticket with what it says. For a grant the newer epoch is recorded
    /// durably first.
    Relay {
        /// Whose command.
        ticket: Ticket,
        /// The VM.
        vm: VmId,
        /// The process.
        run: Run,
    },
    /// Answer a command.
    Answer {
        /// Which.
        ticket: Ticket,
        /// With what.
        answer: Result<Answer, Refusal>,
    },
    /// The VM's end has been acknowledged: remember only its epoch, keep its logs.
    Retire {
        /// The VM.
        vm: VmId,
        /// Its newest epoch.
        epoch: OwnerEpoch,
    },
    /// Too many VMs have been retired since: delete what is left of this one.
    Discard {
        /// The VM.
        vm: VmId,
    },
    /// Introduce this node to the control plane.
    Register,
    /// Report every VM. The lease it may buy counts from now.
    Heartbeat {
        /// To be named in the answer.
        sequence: u64,
    },
}

/// A command that was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The VM is as asked: answer with its status, and for an incoming one with its address.
    Status,
    /// No process of the VM is left.
    Stopped {
        /// Whether there was one.
        ended: bool,
    },
}

/// Why a command is refused, or could not be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Epoch zero is held by nobody.
    #[error("command.owner_epoch is 0, which nobody holds: valid epochs start at 1")]
    NoEpoch,
    /// The sender has lost the VM to a newer owner.
    #[error("command.owner_epoch {given} is stale: this node knows epoch {known} of the VM")]
    StaleEpoch {
        /// The sender's epoch.
        given: OwnerEpoch,
        /// The newest one seen here.
        known: OwnerEpoch,
    },
    /// The command is for another epoch than the one that runs.
    #[error("command.owner_epoch {given} does not match the VM, which runs here under epoch {running}")]
    OtherEpoch {
        /// The sender's epoch.
        given: OwnerEpoch,
        /// The VM's.
        running: OwnerEpoch,
    },
    /// The node's right to run VMs has run out, or was never given.
    #[error("this node holds no lease from the control plane and may not start VMs")]
    NoLease,
    /// Stale VMs have to end first.
    #[error("this node has stale VMs to end before it may take work")]
    Reaping,
    /// Nothing of the VM is here.
    #[error("this VM does not run here")]
    UnknownVm,
    /// It has run under this epoch, and has ended. Another start needs a newer epoch.
    #[error("this VM has ended here under epoch {epoch}: another start needs a newer epoch")]
    AlreadyEnded {
        /// The epoch it ran under.
        epoch: OwnerEpoch,
    },
    /// It is being ended.
    #[error("this VM is being ended here")]
    Ending,
    /// It is still being started.
    #[error("this VM is still being started here")]
    Starting,
    /// It runs here already, or was started for something else than what is asked.
    #[error("this VM is here under epoch {epoch} for another purpose: stop it first")]
    Occupied {
        /// The epoch it runs under.
        epoch: OwnerEpoch,
    },
    /// It was asked to end before it was up.
    #[error("superseded by a later command")]
    Superseded,
    /// vmmd could not be started, or refused; the driver knows why.
    #[error("the VM could not be started")]
    LaunchFailed,
    /// The process was told to end, killed, and is still there.
    #[error("the VM's process could not be killed yet: its end is not proven")]
    EndOverdue,
}
