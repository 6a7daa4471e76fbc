//! RAM as the guest is told of it, whatever the boot protocol: the ranges of a PC's E820 table.

use drover_devices::PciRoot;
use drover_guest_memory::GuestMemory;
use drover_units::{Bytes, Gpa};

use crate::{
    DeviceBus,
    address_map::{CONVENTIONAL_RAM_END, KERNEL_START, PCI_CONFIG},
};

/// What a range is for, with E820's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Ram = 1,
    Reserved = 2,
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: Gpa,
    pub(super) len: Bytes,
    pub(super) usage: Use,
}

impl Range {
    fn between(start: Gpa, end: Gpa, usage: Use) -> Self {
        Self { start, len: Bytes::new(end.saturating_sub(start).get()), usage }
    }
}

/// RAM without the hole below 1 MiB that PCs have, and the window for PCI configuration where there is a bus: a kernel
/// takes that only where the map has it as reserved.
pub(super) fn ranges(memory: &GuestMemory, bus: DeviceBus) -> Vec<Range> {
    let mut map = vec![
        Range::between(Gpa::ZERO, CONVENTIONAL_RAM_END, Use::Ram),
        Range::between(CONVENTIONAL_RAM_END, KERNEL_START, Use::Reserved),
    ];
    let ram = memory.layout().ranges().iter();
    map.extend(ram.map(|range| Range::between(range.start.max(KERNEL_START), range.end(), Use::Ram)));
    if bus == DeviceBus::VirtioPci {
        map.push(Range { start: PCI_CONFIG, len: Bytes::new(PciRoot::ECAM_LEN), usage: Use::Reserved });
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_covers_all_ram_and_leaves_the_holes() {
        let memory = GuestMemory::anonymous(Bytes::gib(4));
        let map = ranges(&memory, DeviceBus::VirtioMmio);
        let found: Vec<_> =
            map.iter().map(|range| (range.start.get(), range.len.get(), range.usage)).collect();
        let mut expect = vec![
            (0, 0xa_0000, Use::Ram),
            (0xa_0000, 0x6_0000, Use::Reserved),
            (0x10_0000, 0xbff0_0000, Use::Ram),
            (1 << 32, 1 << 30, Use::Ram),
        ];
        assert_eq!(found, expect);
        let map = ranges(&memory, DeviceBus::VirtioPci);
        let found: Vec<_> =
            map.iter().map(|range| (range.start.get(), range.len.get(), range.usage)).collect();
        expect.push((PCI_CONFIG.get(), 1 << 20, Use::Reserved));
        assert_eq!(found, expect);
    }
}
