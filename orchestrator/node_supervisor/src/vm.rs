//! One VM on this node.

use drover_ids::{MigrationId, OwnerEpoch};

use crate::{Run, Ticket, VmReport, VmState};

/// Why a process was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Boot,
    Incoming {
        migration: MigrationId,
    },
    /// Started by an earlier agent: what for, only its reports tell.
    Adopted,
}

/// A launch that waits for the end of the present process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Next {
    pub(crate) epoch: OwnerEpoch,
    pub(crate) role: Role,
    /// The first one describes the VM.
    pub(crate) tickets: Vec<Ticket>,
}

/// The present process has to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Doom {
    /// Commands that wait for the proof.
    pub(crate) stops: Vec<Ticket>,
    /// What comes after.
    pub(crate) next: Option<Next>,
    /// A kill has been ordered; nothing stronger is left.
    pub(crate) killing: bool,
    /// The process was killed and is still there: it is worth ordering again.
    pub(crate) overdue: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Launching {
        /// Commands that wait for the VM to be up.
        tickets: Vec<Ticket>,
        /// There is a process.
        spawned: bool,
        /// There was one, and it has ended; how far the launch came is not known yet.
        exited: bool,
    },
    Live {
        report: VmReport,
    },
    Ended {
        /// It may have executed instructions under its epoch.
        may_have_run: bool,
        /// The heartbeat that first reported the end.
        reported_in: Option<u64>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vm {
    /// The newest epoch seen: older commands are refused.
    pub(crate) floor: OwnerEpoch,
    /// The epoch the process runs (or ran) under.
    pub(crate) epoch: OwnerEpoch,
    pub(crate) run: Run,
    pub(crate) role: Role,
    pub(crate) phase: Phase,
    pub(crate) doom: Option<Doom>,
}

impl Vm {
    /// Whether a process may be there.
    pub(crate) const fn has_process(&self) -> bool {
        !matches!(self.phase, Phase::Ended { .. })
    }

    /// Whether there is a process to talk to.
    pub(crate) const fn is_reachable(&self) -> bool {
        matches!(self.phase, Phase::Live { .. } | Phase::Launching { spawned: true, exited: false, .. })
    }

    /// What the process says its epoch is, which is what it goes by. Zero: it holds nothing yet.
    pub(crate) fn learn_epoch(&mut self, reported: OwnerEpoch) {
        if reported != OwnerEpoch::default() {
            self.epoch = reported;
        }
    }

    /// Whether the process says that it holds this epoch.
    pub(crate) fn runs_at(&self, epoch: OwnerEpoch) -> bool {
        matches!(self.phase, Phase::Live { report } if report.epoch == epoch && report.state != VmState::Unreported)
    }

    /// Whether the process is what `wanted` asks for. A VM that has arrived is as good as one that was booted.
    pub(crate) fn serves(&self, wanted: Role) -> bool {
        let Phase::Live { report } = self.phase else { return self.role == wanted };
        let waiting = report.state == VmState::Incoming;
        match wanted {
            Role::Boot | Role::Adopted => !waiting,
            Role::Incoming { .. } => self.role == wanted || (self.role == Role::Adopted && waiting),
        }
    }

    /// Takes everything that waits for a launch here.
    pub(crate) fn take_launch_tickets(&mut self) -> Vec<Ticket> {
        match &mut self.phase {
            Phase::Launching { tickets, .. } => std::mem::take(tickets),
            _ => Vec::new(),
        }
    }
}
