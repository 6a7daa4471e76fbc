//! Message-signalled interrupts without an exit: an event, a number beyond the I/O APIC's pins, and KVM's table that
//! turns the number into a message.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{HypervisorError, Vm, irq::IO_APIC_PINS, vm::Shared};

/// Most message-signalled interrupts of one machine: KVM's table has 4096 entries (KVM_MAX_IRQ_ROUTES), of which the
/// pins of the interrupt controllers take 40.
const MSIS_MAX: u32 = 4096 - IO_APIC_PINS - PIC_PINS;
const PIC_PINS: u32 = 16;

/// A message: written to `address`, `data` interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Names the processor.
    pub address: u64,
    /// Names the vector.
    pub data: u32,
}

/// KVM's routing table as we last wrote it, but for the pins, which never change. `None`: taken, without a message yet.
#[derive(Debug, Default)]
pub(crate) struct Routes(Mutex<BTreeMap<u32, Option<Message>>>);

impl Routes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Option<Message>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One message-signalled interrupt.
#[derive(Debug)]
pub struct MsiFd {
    vm: Arc<Shared>,
    gsi: u32,
    event: EventFd,
    /// KVM takes an event without a route to a worker, which finds the route that came meanwhile.
    routed: AtomicBool,
}

impl MsiFd {
    /// From now on it is this message. The same one again costs nothing; another one replaces KVM's whole table.
    ///
    /// # Errors
    /// [`HypervisorError::Call`]; the message is as before.
    pub fn route(&self, message: Message) -> Result<(), HypervisorError> {
        let mut routes = self.vm.routes.lock();
        let before = routes.insert(self.gsi, Some(message)).flatten();
        if before == Some(message) {
            return Ok(());
        }
        let written = self.vm.write_routes(&routes);
        match written {
            Ok(()) => self.routed.store(true, Ordering::Release),
            Err(_) => {
                routes.insert(self.gsi, before);
            }
        }
        written
    }

    /// Sends the message, if there is one yet.
    ///
    /// # Errors
    /// Where the host refuses to write the event.
    pub fn pulse(&self) -> io::Result<()> {
        if self.routed.load(Ordering::Acquire) { self.event.write(1) } else { Ok(()) }
    }
}

impl Drop for MsiFd {
    fn drop(&mut self) {
        // The pair was registered in `msi_line`; closing the event would end it too. The table keeps an entry that
        // nothing points to until it is written for another interrupt.
        let _ = self.vm.fd.unregister_irqfd(&self.event, self.gsi);
        self.vm.routes.lock().remove(&self.gsi);
    }
}

impl Vm {
    /// A new message-signalled interrupt, without a message.
    ///
    /// # Errors
    /// [`HypervisorError::TooManyMsis`], or [`HypervisorError::Call`] if there is no event to be had.
    pub fn msi_line(&self) -> Result<MsiFd, HypervisorError> {
        let event = EventFd::new(EFD_NONBLOCK)
            .map_err(|source| HypervisorError::Call { attempt: "create an event", source })?;
        let mut routes = self.shared.routes.lock();
        let gsi = (IO_APIC_PINS..IO_APIC_PINS + MSIS_MAX)
            .find(|gsi| !routes.contains_key(gsi))
            .ok_or(HypervisorError::TooManyMsis { max: MSIS_MAX })?;
        self.shared
            .fd
            .register_irqfd(&event, gsi)
            .map_err(HypervisorError::call("connect a message-signalled interrupt"))?;
        routes.insert(gsi, None);
        drop(routes);
        Ok(MsiFd { vm: Arc::clone(&self.shared), gsi, event, routed: AtomicBool::new(false) })
    }
}

impl Shared {
    fn write_routes(&self, routes: &BTreeMap<u32, Option<Message>>) -> Result<(), HypervisorError> {
        let messages = routes.iter().filter_map(|(gsi, message)| message.map(|message| msi(*gsi, message)));
        let entries: Vec<_> = pins().chain(messages).collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .expect("interrupts are counted against MSIS_MAX, which leaves room for the pins");
        self.fd.set_gsi_routing(&table).map_err(HypervisorError::call("route interrupts"))
    }
}

/// The pins as KVM routes them by itself: interrupts below 16 reach a PIC and the I/O APIC, the others the I/O APIC.
fn pins() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let half = PIC_PINS / 2;
    let pics = (0..PIC_PINS).map(move |gsi| match gsi.checked_sub(half) {
        None => pin(gsi, KVM_IRQCHIP_PIC_MASTER, gsi),
        Some(pin_number) => pin(gsi, KVM_IRQCHIP_PIC_SLAVE, pin_number),
    });
    pics.chain((0..IO_APIC_PINS).map(|gsi| pin(gsi, KVM_IRQCHIP_IOAPIC, gsi)))
}

fn pin(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

fn msi(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    entry
}
