//! The seam between the VM's thread and the machine: [`Hypervisor`] builds one, [`HostedVm`] is one.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use drover_ids::{NodeId, OwnerEpoch, VmId, VolumeId};
use drover_lifecycle::StopReason;
use drover_machine::{
    BlkMetricsSnapshot, DiskInstruments, Holder, Panel, Reclaimed, Slot,
    devices::{
        Balloon, MacAddress, NetMetrics, NetMetricsSnapshot, Throttle,
        limits::{Counters, Limits},
    },
};
use drover_migration::{GuestError, MigratableGuest};

use crate::{
    devices::Handles,
    order::{Change, LimitedDevice, VmConfig},
    refused::Refused,
};

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

/// A machine, as its instruments see it.
#[derive(Clone, Debug)]
pub(crate) struct Instrument {
    pub(crate) panel: Panel,
    pub(crate) holder: Holder,
    /// Its disks, in order.
    pub(crate) disks: Vec<DiskInstrument>,
    pub(crate) nics: Vec<NicInstrument>,
    pub(crate) handles: Handles,
}

/// A disk's counters and limits.
#[derive(Clone, Debug)]
pub(crate) struct DiskInstrument {
    pub(crate) volume: VolumeId,
    pub(crate) slot: Slot,
    pub(crate) counters: DiskInstruments,
}

/// A network interface's counters and limits.
#[derive(Clone, Debug)]
pub(crate) struct NicInstrument {
    pub(crate) mac: MacAddress,
    /// On a PCI bus.
    pub(crate) slot: Slot,
    pub(crate) metrics: Arc<NetMetrics>,
    pub(crate) throttle: Arc<Throttle>,
}

/// What a disk has done, and what its limits have held back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskReading {
    pub(crate) volume: VolumeId,
    pub(crate) counters: BlkMetricsSnapshot,
    pub(crate) throttled: Counters,
}

/// The same of a network interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NicReading {
    pub(crate) mac: MacAddress,
    pub(crate) counters: NetMetricsSnapshot,
    pub(crate) throttled: Counters,
}

impl Instruments {
    /// These are the machine's.
    pub(crate) fn connect(&self, instrument: Instrument) {
        *self.lock() = Some(instrument);
    }

    /// Changes a device's limits. Whether there is such a device.
    pub(crate) fn set_limits(&self, device: LimitedDevice, limits: Limits) -> bool {
        let present = self.lock();
        let Some(Instrument { disks, nics, .. }) = &*present else { return false };
        let throttle = match device {
            LimitedDevice::Disk(volume) => {
                disks.iter().find(|disk| disk.volume == volume).map(|disk| &disk.counters.throttle)
            }
            LimitedDevice::Nic(mac) => nics.iter().find(|nic| nic.mac == mac).map(|nic| &nic.throttle),
        };
        throttle.inspect(|throttle| throttle.set_limits(limits)).is_some()
    }

    /// Where a device is, where there is such a device.
    pub(crate) fn slot_of(&self, device: LimitedDevice) -> Option<Slot> {
        let present = self.lock();
        let Instrument { disks, nics, .. } = present.as_ref()?;
        match device {
            LimitedDevice::Disk(volume) => {
                disks.iter().find(|disk| disk.volume == volume).map(|disk| disk.slot)
            }
            LimitedDevice::Nic(mac) => nics.iter().find(|nic| nic.mac == mac).map(|nic| nic.slot),
        }
    }

    /// What may be done with the machine at any time.
    pub(crate) fn panel(&self) -> Option<Panel> {
        self.lock().as_ref().map(|instrument| instrument.panel.clone())
    }

    /// A disk has come.
    pub(crate) fn add_disk(&self, disk: DiskInstrument) {
        if let Some(instrument) = &mut *self.lock() {
            instrument.disks.push(disk);
        }
    }

    /// An interface has come.
    pub(crate) fn add_nic(&self, nic: NicInstrument) {
        if let Some(instrument) = &mut *self.lock() {
            instrument.nics.push(nic);
        }
    }

    /// A device has gone.
    pub(crate) fn remove(&self, device: LimitedDevice) {
        if let Some(Instrument { disks, nics, .. }) = &mut *self.lock() {
            match device {
                LimitedDevice::Disk(volume) => disks.retain(|disk| disk.volume != volume),
                LimitedDevice::Nic(mac) => nics.retain(|nic| nic.mac != mac),
            }
        }
    }

    /// The machine's balloon, where it has one.
    pub(crate) fn balloon(&self) -> Option<Balloon> {
        self.lock().as_ref().and_then(|instrument| instrument.handles.balloon())
    }

    /// A way to hold the machine back; `None` where there is none.
    pub(crate) fn holder(&self) -> Option<Holder> {
        self.lock().as_ref().map(|instrument| instrument.holder.clone())
    }

    /// Hands the guest what somebody typed, by the console that it spoke by last. What it has no room for is lost, as on
    /// any serial line.
    pub(crate) fn type_in(&self, bytes: &[u8]) {
        if let Some(Instrument { panel, handles, .. }) = &*self.lock() {
            match handles.console().filter(|port| port.has_spoken()) {
                Some(port) => port.input(bytes),
                None => panel.console_input(bytes),
            };
        }
    }

    /// Presses the power button; `false` where there is no machine, or the host refuses.
    pub(crate) fn press_power_button(&self) -> bool {
        self.lock().as_ref().is_some_and(|instrument| instrument.panel.press_power_button().is_ok())
    }

    /// Each disk's counters.
    pub(crate) fn disks(&self) -> Vec<DiskReading> {
        let read = |Instrument { disks, .. }: &Instrument| {
            let read = |disk: &DiskInstrument| DiskReading {
                volume: disk.volume,
                counters: disk.counters.metrics.snapshot(),
                throttled: disk.counters.throttle.counters(),
            };
            disks.iter().map(read).collect()
        };
        self.lock().as_ref().map(read).unwrap_or_default()
    }

    /// Each network interface's counters.
    pub(crate) fn nics(&self) -> Vec<NicReading> {
        let read = |nic: &NicInstrument| NicReading {
            mac: nic.mac,
            counters: nic.metrics.snapshot(),
            throttled: nic.throttle.counters(),
        };
        self.lock().as_ref().map(|machine| machine.nics.iter().map(read).collect()).unwrap_or_default()
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

    /// Attaches a device to a machine that runs, or takes one away. A refusal has changed nothing that it does not name.
    fn change(&mut self, machine: &mut Self::Machine, change: &Change) -> Result<(), Refused>;
}

/// A machine with its volumes, as the VM's thread drives it. Its migration is the other half of the seam.
///
/// The thread owns it and makes one call at a time, each of which may block. Dropping a machine ends its vCPUs and
/// gives its volumes up, without the final flush.
pub(crate) trait HostedVm: MigratableGuest + Sized + 'static {
    /// Runs the vCPUs for the first time.
    fn start(&mut self) -> Result<(), GuestError>;

    /// Who last took each volume that it writes: whose writes are the last in it. `None` where nobody is on record.
    fn last_owners(&self) -> Result<Vec<Option<drover_block::Owner>>, GuestError>;

    /// Asks the guest which pages are free, and gives those back that it has not written since.
    fn reclaim(&mut self, limit: Duration) -> Result<Reclaimed, GuestError>;

    /// Stops the vCPUs, drains the devices, flushes and gives up the volumes.
    fn end(self, limit: Duration) -> Result<(), GuestError>;
}
