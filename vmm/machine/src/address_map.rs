//! Where everything lies in the guest's two address spaces.
//!
//! ```text
//! ports        0x64        keyboard controller (reset line)
//!              0x3f8..     COM1, interrupt 4
//!              0x600..     ACPI's sleep and reset registers
//!              0xcf8..     PCI configuration
//! addresses    0           low RAM: boot structures below 1 MiB, the kernel from there
//!              0xe_0000    ACPI tables, in RAM that the guest is told not to use
//!              0xc800_0000 PCI configuration, where there is a PCI bus
//!              0xd000_0000 one page per virtio-mmio device, interrupts from 5
//!              0xe000_0000 memory of PCI devices, up to 0xf000_0000
//!              0xfec0_0000 I/O APIC, 0xfee0_0000 local APICs (in KVM)
//!              0x1_0000_0000 high RAM
//! ```

use drover_devices::{PciAddress, VirtioPci};
use drover_hypervisor::Gsi;
use drover_units::Gpa;

/// Most disks of one machine: interrupts 5 to 20, each its own pin of the I/O APIC.
pub const DISKS_MAX: usize = 16;
const FIRST_DISK_GSI: u32 = 5;
const FIRST_DISK_WINDOW: u64 = 0xd000_0000;
/// Device 0 is the host bridge.
const FIRST_DISK_FUNCTION: u8 = 1;
/// A virtio-mmio device's window: one page, of which it uses the first 0x200 bytes.
pub(crate) const DISK_WINDOW_LEN: u64 = 0x1000;

/// The place of one virtio-mmio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskSlot {
    pub(crate) window: Gpa,
    pub(crate) gsi: Gsi,
}

/// The place of the `index`-th disk; `index` is below [`DISKS_MAX`].
pub(crate) fn disk_slot(index: usize) -> DiskSlot {
    let number = u32::try_from(index).expect("disks are counted against DISKS_MAX");
    DiskSlot {
        window: Gpa::new(FIRST_DISK_WINDOW + u64::from(number) * DISK_WINDOW_LEN),
        gsi: Gsi(FIRST_DISK_GSI + number),
    }
}

/// Where the `index`-th disk is on the PCI bus: its device number and its memory at first.
pub(crate) fn disk_function(index: usize) -> (PciAddress, Gpa) {
    let number = u8::try_from(index).expect("disks are counted against DISKS_MAX");
    let address = PciAddress::device(FIRST_DISK_FUNCTION + number).expect("DISKS_MAX and one fit a bus");
    (address, Gpa::new(PCI_MEMORY.get() + u64::from(number) * VirtioPci::LEN))
}

/// Boot structures, where a kernel that loads from 1 MiB on does not overwrite them, nor the real-mode structures of
/// the first page.
pub(crate) const START_INFO: Gpa = Gpa::new(0x6000);
pub(crate) const MEMORY_MAP: Gpa = Gpa::new(0x7000);
pub(crate) const MODULES: Gpa = Gpa::new(0x8000);
pub(crate) const CMDLINE: Gpa = Gpa::new(0x2_0000);
/// ACPI's tables, where a PC has its firmware: guests that are told nothing look for the first of them here.
pub(crate) const ACPI: Gpa = Gpa::new(0xe_0000);
pub(crate) const ACPI_END: Gpa = KERNEL_START;
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
