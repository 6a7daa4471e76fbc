//! Where everything lies in the guest's two address spaces.
//!
//! ```text
//! ports        0x64        keyboard controller (reset line)
//!              0x3f8..     COM1, interrupt 4
//! addresses    0           low RAM: boot structures below 1 MiB, the kernel from there
//!              0xd000_0000 one page per virtio-mmio device, interrupts from 5
//!              0xfec0_0000 I/O APIC, 0xfee0_0000 local APICs (in KVM)
//!              0x1_0000_0000 high RAM
//! ```

use drover_hypervisor::Gsi;
use drover_units::Gpa;

/// Most disks of one machine: interrupts 5 to 20, each its own pin of the I/O APIC.
pub const DISKS_MAX: usize = 16;
const FIRST_DISK_GSI: u32 = 5;
const FIRST_DISK_WINDOW: u64 = 0xd000_0000;
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

/// Boot structures, where a kernel that loads from 1 MiB on does not overwrite them, nor the real-mode structures of
/// the first page.
pub(crate) const START_INFO: Gpa = Gpa::new(0x6000);
pub(crate) const MEMORY_MAP: Gpa = Gpa::new(0x7000);
pub(crate) const CMDLINE: Gpa = Gpa::new(0x2_0000);
/// First address a kernel may load to.
pub(crate) const KERNEL_START: Gpa = Gpa::new(0x10_0000);
/// Above this and below [`KERNEL_START`] a PC has no RAM that a guest should use.
pub(crate) const CONVENTIONAL_RAM_END: Gpa = Gpa::new(0xa_0000);
