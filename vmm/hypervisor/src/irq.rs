//! Events between devices and the guest that need no exit: irqfd inwards, ioeventfd outwards.

use std::{io, sync::Arc};

use drover_units::Gpa;
use kvm_ioctls::{IoEventAddress as KvmAddress, NoDatamatch};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{HypervisorError, Vm, vm::Shared};

/// Pins of KVM's I/O APIC (KVM_IOAPIC_NUM_PINS). KVM takes an irqfd for a pin beyond them and then delivers nothing.
pub(crate) const IO_APIC_PINS: u32 = 24;

/// A global system interrupt: a pin of the I/O APIC, and of the two PICs where it is below 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gsi(pub u32);

/// An edge-triggered interrupt line: an event that KVM turns into an edge on a pin.
///
/// KVM delivers to the I/O APIC from a kernel worker, so a pulse may still be on its way when the line's interrupt
/// controllers are saved. Whoever restores a machine pulses each line once: at worst the guest looks for nothing.
#[derive(Debug)]
pub struct IrqFd {
    vm: Arc<Shared>,
    gsi: Gsi,
    event: EventFd,
}

impl IrqFd {
    /// Raises and lowers the line.
    ///
    /// # Errors
    /// Where the host refuses to write the event.
    pub fn pulse(&self) -> io::Result<()> {
        self.event.write(1)
    }
}

impl Drop for IrqFd {
    fn drop(&mut self) {
        // The pair was registered in `irq_line`; closing the event would end it too.
        let _ = self.vm.fd.unregister_irqfd(&self.event, self.gsi.0);
    }
}

/// Where a write rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoEventAddress {
    /// A guest-physical address.
    Mmio(Gpa),
    /// A port.
    Port(u16),
}

/// A guest write that becomes an event: 4 bytes wide with this value, or of any width and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoEvent {
    /// Where.
    pub address: IoEventAddress,
    /// Which value.
    pub value: Option<u32>,
}

impl Vm {
    /// A line to this pin.
    ///
    /// # Errors
    /// [`HypervisorError::NoSuchPin`], or [`HypervisorError::Call`] if there is no event to be had.
    pub fn irq_line(&self, gsi: Gsi) -> Result<IrqFd, HypervisorError> {
        if gsi.0 >= IO_APIC_PINS {
            return Err(HypervisorError::NoSuchPin { gsi: gsi.0 });
        }
        let event = EventFd::new(EFD_NONBLOCK)
            .map_err(|source| HypervisorError::Call { attempt: "create an event", source })?;
        self.shared
            .fd
            .register_irqfd(&event, gsi.0)
            .map_err(HypervisorError::call("connect an interrupt line"))?;
        Ok(IrqFd { vm: Arc::clone(&self.shared), gsi, event })
    }

    /// From now on such writes add 1 to `event` and cause no exit.
    ///
    /// # Errors
    /// [`HypervisorError::Call`] if it is connected already or the host has no more.
    pub fn connect_io_event(&self, io_event: IoEvent, event: &EventFd) -> Result<(), HypervisorError> {
        let address = kvm_address(io_event.address);
        match io_event.value {
            Some(value) => self.shared.fd.register_ioevent(event, &address, value),
            None => self.shared.fd.register_ioevent(event, &address, NoDatamatch),
        }
        .map_err(HypervisorError::call("connect a doorbell"))
    }

    /// Ends what [`connect_io_event`](Self::connect_io_event) began with the same arguments.
    ///
    /// # Errors
    /// [`HypervisorError::Call`] if it was not connected.
    pub fn disconnect_io_event(&self, io_event: IoEvent, event: &EventFd) -> Result<(), HypervisorError> {
        let address = kvm_address(io_event.address);
        match io_event.value {
            Some(value) => self.shared.fd.unregister_ioevent(event, &address, value),
            None => self.shared.fd.unregister_ioevent(event, &address, NoDatamatch),
        }
        .map_err(HypervisorError::call("disconnect a doorbell"))
    }
}

fn kvm_address(address: IoEventAddress) -> KvmAddress {
    match address {
        IoEventAddress::Mmio(gpa) => KvmAddress::Mmio(gpa.get()),
        IoEventAddress::Port(port) => KvmAddress::Pio(u64::from(port)),
    }
}
