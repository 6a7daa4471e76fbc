//! The seam between the VM's thread and the machine: [`Hypervisor`] builds one, [`HostedVm`] is one.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use drover_ids::{NodeId, OwnerEpoch, VmId, VolumeId};
use drover_lifecycle::StopReason;
use drover_machine::{BlkMetricsSnapshot, Holder, Panel};
use drover_migration::{GuestError, MigratableGuest};

use crate::{order::VmConfig, refused::Refused};

/// How long a machine may take to become quiet when it is paused or ended by command. Local storage answers within
/// milliseconds; what takes longer than this is a stalled storage, and the command fails instead of waiting for it.
pub(crate) const QUIESCE_LIMIT: Duration = Duration::from_secs(10);

/// For whom the machine is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) vm: VmId,
    pub(crate) node: NodeId,
    pub(crate) epoch: OwnerEpoch,
}

/// What a machine tells its thread by itself. Called by the machine's threads; must not block.
pub(crate) type EndSink = Arc<dyn Fn(StopReason, String) + Send + Sync>;

/// What others than the VM's thread may do with a machine at any time, from any thread, without waiting for it.
///
/// Filled when a machine has been built; of several (a build may be tried again) the newest counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Instruments {
    panel: Arc<Mutex<Option<Instrument>>>,
}

#[derive(Clone, Debug)]
struct Instrument {
    panel: Panel,
    holder: Holder,
    volumes: Vec<VolumeId>,
}

impl Instruments {
    /// These are the machine's, and its disks hold these volumes.
    pub(crate) fn connect(&self, panel: Panel, holder: Holder, volumes: Vec<VolumeId>) {
        *self.lock() = Some(Instrument { panel, holder, volumes });
    }

    /// A way to hold the machine back; `None` where there is none.
    pub(crate) fn holder(&self) -> Option<Holder> {
        self.lock().as_ref().map(|instrument| instrument.holder.clone())
    }

    /// Hands the guest what somebody typed. What it has no room for is lost, as on any serial line.
    pub(crate) fn type_in(&self, bytes: &[u8]) {
        if let Some(instrument) = &*self.lock() {
            instrument.panel.console_input(bytes);
        }
    }

    /// Presses the power button; `false` where there is no machine, or the host refuses.
    pub(crate) fn press_power_button(&self) -> bool {
        self.lock().as_ref().is_some_and(|instrument| instrument.panel.press_power_button().is_ok())
    }

    /// Each disk's counters.
    pub(crate) fn disks(&self) -> Vec<(VolumeId, BlkMetricsSnapshot)> {
        let read = |Instrument { panel, volumes, .. }: &Instrument| {
            volumes.iter().copied().zip(panel.disk_metrics()).collect()
        };
        self.lock().as_ref().map(read).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instrument>> {
        self.panel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Builds machines. A refusal has changed nothing: no volume is held, no memory kept.
pub(crate) trait Hypervisor: Send + 'static {
    /// What it builds.
    type Machine: HostedVm;

    /// Builds a machine that has its volumes and waits for [`HostedVm::start`].
    fn build(&mut self, config: &VmConfig, owner: Owner, ended: EndSink) -> Result<Self::Machine, Refused>;

    /// Builds a machine that waits for its guest: its volumes are open, and nobody's yet.
    fn build_incoming(
        &mut self,
        config: &VmConfig,
        owner: Owner,
        ended: EndSink,
    ) -> Result<Self::Machine, Refused>;
}

/// A machine with its volumes, as the VM's thread drives it. Its migration is the other half of the seam.
///
/// The thread owns it and makes one call at a time, each of which may block. Dropping a machine ends its vCPUs and
/// gives its volumes up, without the final flush.
pub(crate) trait HostedVm: MigratableGuest + Sized + 'static {
    /// Runs the vCPUs for the first time.
    fn start(&mut self) -> Result<(), GuestError>;

    /// Stops the vCPUs, drains the devices, flushes and gives up the volumes.
    fn end(self, limit: Duration) -> Result<(), GuestError>;
}
