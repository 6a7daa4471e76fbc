//! The hypervisor as devices see it.

use std::{io, sync::Arc};

use drover_bus::{Doorbell, DoorbellAddress, Doorbells, IrqLine, MsiLine, MsiLines, MsiMessage};
use drover_hypervisor::{Gsi, HypervisorError, IoEvent, IoEventAddress, IrqFd, Message, MsiFd, Vm};
use vmm_sys_util::eventfd::EventFd;

/// An interrupt line into a virtual machine.
#[derive(Debug)]
pub(crate) struct VmIrqLine(IrqFd);

impl VmIrqLine {
    pub(crate) fn new(vm: &Vm, gsi: Gsi) -> Result<Arc<Self>, HypervisorError> {
        vm.irq_line(gsi).map(|line| Arc::new(Self(line)))
    }
}

impl IrqLine for VmIrqLine {
    fn pulse(&self) -> io::Result<()> {
        self.0.pulse()
    }
}

/// A message-signalled interrupt into a virtual machine.
#[derive(Debug)]
struct VmMsiLine(MsiFd);

impl MsiLine for VmMsiLine {
    fn route(&self, message: MsiMessage) -> io::Result<()> {
        let message = Message { address: message.address, data: message.data };
        self.0.route(message).map_err(io::Error::other)
    }

    fn pulse(&self) -> io::Result<()> {
        self.0.pulse()
    }
}

/// The message-signalled interrupts of a virtual machine.
#[derive(Debug)]
pub(crate) struct VmMsiLines(pub(crate) Vm);

impl MsiLines for VmMsiLines {
    fn line(&self) -> io::Result<Arc<dyn MsiLine>> {
        self.0.msi_line().map(|line| Arc::new(VmMsiLine(line)) as _).map_err(io::Error::other)
    }
}

/// The doorbells of a virtual machine.
#[derive(Debug)]
pub(crate) struct VmDoorbells(pub(crate) Vm);

impl Doorbells for VmDoorbells {
    fn connect(&self, doorbell: Doorbell, event: &EventFd) -> io::Result<()> {
        self.0.connect_io_event(io_event(doorbell), event).map_err(io::Error::other)
    }

    fn disconnect(&self, doorbell: Doorbell, event: &EventFd) -> io::Result<()> {
        self.0.disconnect_io_event(io_event(doorbell), event).map_err(io::Error::other)
    }
}

fn io_event(doorbell: Doorbell) -> IoEvent {
    let address = match doorbell.address {
        DoorbellAddress::Mmio(gpa) => IoEventAddress::Mmio(gpa),
        DoorbellAddress::Port(port) => IoEventAddress::Port(port.0),
    };
    IoEvent { address, value: doorbell.value }
}
