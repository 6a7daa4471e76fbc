//! What others than a machine's owner may do with it at any time.

use std::{sync::Arc, time::Duration};

use drover_bus::IrqLine as _;
use drover_devices::{BlkMetrics, BlkMetricsSnapshot, Hotplug, Serial, Throttle};

use crate::{Slot, address_map::pci_place, wiring::VmIrqLine};

/// A machine's console input and counters. Clones share them. It keeps neither the guest nor its disks alive: on a
/// machine that has gone, typing has no effect and the counters stand still.
#[derive(Clone, Debug)]
pub struct Panel {
    pub(crate) serial: Arc<Serial>,
    pub(crate) button: Arc<VmIrqLine>,
    pub(crate) disk_metrics: Arc<[Arc<BlkMetrics>]>,
    pub(crate) disk_throttles: Arc<[Arc<Throttle>]>,
    /// `None` where devices neither come nor go.
    pub(crate) hotplug: Option<Arc<Hotplug>>,
}

impl Panel {
    /// Types on the serial console. Returns how many bytes the guest's port had room for. Never waits.
    pub fn console_input(&self, bytes: &[u8]) -> usize {
        self.serial.input(bytes)
    }

    /// Presses the power button, once and for a moment: a guest that listens shuts itself down in good order. Nothing
    /// happens where it does not. A machine that is paused finds out when it runs again.
    ///
    /// # Errors
    /// Where the host refuses to write the event.
    pub fn press_power_button(&self) -> std::io::Result<()> {
        self.button.pulse()
    }

    /// Each disk's limits, in the order in which the disks were given: none until they are set.
    pub fn disk_throttles(&self) -> &[Arc<Throttle>] {
        &self.disk_throttles
    }

    /// Asks the guest for the device in this slot; asking again reminds it. False where devices neither come nor go.
    pub fn ask_back(&self, slot: Slot) -> bool {
        self.hotplug.as_ref().map(|hotplug| hotplug.ask_back(pci_place(slot).0)).is_some()
    }

    /// Waits until the guest has let go of a device that it was asked for. False: it has not, in this time.
    pub fn wait_let_go(&self, slot: Slot, limit: Duration) -> bool {
        self.hotplug.as_ref().is_some_and(|hotplug| hotplug.wait_let_go(pci_place(slot).0, limit))
    }

    /// Leaves a device that was asked back with the guest. False: the guest has let it go already.
    pub fn withdraw(&self, slot: Slot) -> bool {
        self.hotplug.as_ref().is_none_or(|hotplug| hotplug.withdraw(pci_place(slot).0))
    }

    /// Each disk's counters, for whoever reads them later, in the order in which the disks were given.
    pub fn disk_counters(&self) -> &[Arc<BlkMetrics>] {
        &self.disk_metrics
    }

    /// Each disk's counters, in the order in which the disks were given.
    pub fn disk_metrics(&self) -> impl Iterator<Item = BlkMetricsSnapshot> {
        self.disk_metrics.iter().map(|metrics| metrics.snapshot())
    }
}
