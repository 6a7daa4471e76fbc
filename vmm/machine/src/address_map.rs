//! Where everything lies in the guest's two address spaces.
//!
//! ```text
//! ports        0x64        keyboard controller (reset line)
//!              0x70..      clock
//!              0x3f8..     COM1, interrupt 4
//!              0x600..     ACPI's sleep and reset registers
//!              0x610..     registers of slots that devices come to and go from, where there is a PCI bus
//!              0xcf8..     PCI configuration
//! addresses    0           low RAM: boot structures below 1 MiB, the kernel from there
//!              0xe_0000    ACPI tables, in RAM that the guest is told not to use
//!              0xf_fff0    what a jump to the firmware finds: a reset
//!              0xc800_0000 PCI configuration, where there is a PCI bus
//!              0xd000_0000 one page per virtio-mmio device, interrupts from 5
//!              0xe000_0000 memory of PCI devices, up to 0xf000_0000
//!              0xfec0_0000 I/O APIC, 0xfee0_0000 local APICs (in KVM)
//!              0x1_0000_0000 high RAM
//! ```

use drover_devices::{PciAddress, VirtioPci};
use drover_hypervisor::Gsi;
use drover_units::Gpa;

use crate::{Slot, boot::linux64::PAGE_TABLES_LEN};

/// Interrupts of virtio-mmio devices: each its own pin of the I/O APIC, from this one to the last but one.
const FIRST_MMIO_GSI: u32 = 5;
const FIRST_MMIO_WINDOW: u64 = 0xd000_0000;
/// Device 0 is the host bridge.
pub(crate) const FIRST_FUNCTION: u8 = 1;
/// A virtio-mmio device's window: one page, of which it uses the first 0x200 bytes.
pub(crate) const MMIO_WINDOW_LEN: u64 = 0x1000;
/// Places for virtio-mmio devices: interrupts 5 to 22. The last pin is the power button's.
pub(crate) const MMIO_SLOTS: u8 = 18;
/// Places on the PCI bus beside the host bridge.
pub(crate) const PCI_SLOTS: u8 = PciAddress::DEVICES - FIRST_FUNCTION;

/// Where the virtio-mmio device in this slot is, and its interrupt. The slot is below [`MMIO_SLOTS`].
pub(crate) fn mmio_place(slot: Slot) -> (Gpa, Gsi) {
    let number = slot.number();
    let window = Gpa::new(FIRST_MMIO_WINDOW + u64::from(number) * MMIO_WINDOW_LEN);
    (window, Gsi(FIRST_MMIO_GSI + u32::from(number)))
}

/// Where the device in this slot is on the PCI bus: its device number and its memory at first. The slot is below
/// [`PCI_SLOTS`].
pub(crate) fn pci_place(slot: Slot) -> (PciAddress, Gpa) {
    let address =
        PciAddress::device(FIRST_FUNCTION + slot.number()).expect("slots are counted against PCI_SLOTS");
    (address, Gpa::new(PCI_MEMORY.get() + u64::from(slot.number()) * VirtioPci::LEN))
}

/// The power button's interrupt: the last pin of the I/O APIC.
pub(crate) const POWER_BUTTON_GSI: Gsi = Gsi(23);

/// The interrupt of slots that devices come to and go from, on a PCI bus, where no virtio-mmio device has it.
pub(crate) const HOTPLUG_GSI: Gsi = Gsi(22);

/// Boot structures, where a kernel that loads from 1 MiB on does not overwrite them, nor the real-mode structures of
/// the first page.
pub(crate) const START_INFO: Gpa = Gpa::new(0x6000);
pub(crate) const MEMORY_MAP: Gpa = Gpa::new(0x7000);
pub(crate) const MODULES: Gpa = Gpa::new(0x8000);
/// For kernels that are entered in 64-bit mode: segment descriptors, page tables, boot parameters.
pub(crate) const GDT: Gpa = Gpa::new(0x5000);
pub(crate) const PAGE_TABLES: Gpa = Gpa::new(0x9000);
pub(crate) const BOOT_PARAMS: Gpa = Gpa::new(0x1_0000);
pub(crate) const CMDLINE: Gpa = Gpa::new(0x2_0000);
/// ACPI's tables, where a PC has its firmware: guests that are told nothing look for the first of them here.
pub(crate) const ACPI: Gpa = Gpa::new(0xe_0000);
pub(crate) const ACPI_END: Gpa = Gpa::new(0xf_0000);
/// Where a PC's processor starts, as real mode sees it (F000:FFF0).
pub(crate) const RESET_VECTOR: Gpa = Gpa::new(0xf_fff0);
const _: () = assert!(PAGE_TABLES.get() + PAGE_TABLES_LEN <= BOOT_PARAMS.get());
const _: () = assert!(FIRST_MMIO_GSI + MMIO_SLOTS as u32 <= POWER_BUTTON_GSI.0);

/// In the kernel's hypervisor, at the addresses of every PC.
pub(crate) const IO_APIC: Gpa = Gpa::new(0xfec0_0000);
pub(crate) const LOCAL_APIC: Gpa = Gpa::new(0xfee0_0000);
/// PCI configuration space as memory.
pub(crate) const PCI_CONFIG: Gpa = Gpa::new(0xc800_0000);
/// Where PCI devices' memory may be.
pub(crate) const PCI_MEMORY: Gpa = Gpa::new(0xe000_0000);
pub(crate) const PCI_MEMORY_END: Gpa = Gpa::new(0xf000_0000);
/// First address a kernel may load to.
pub(crate) const KERNEL_START: Gpa = Gpa::new(0x10_0000);
/// Above this and below [`KERNEL_START`] a PC has no RAM that a guest should use.
pub(crate) const CONVENTIONAL_RAM_END: Gpa = Gpa::new(0xa_0000);
