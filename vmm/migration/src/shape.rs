//! What a machine looks like from outside: the two ends compare shapes before a byte of RAM moves.
//!
//! A saved state fits a machine built exactly like the one that it was saved from. Saying so at the start costs
//! nothing; finding out in switchover would cost the guest a pause and the operator a riddle.

use std::fmt;

use drover_ids::VmId;
use drover_units::{Bytes, Gpa, VcpuCount};

/// A contiguous range of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// Where it begins. Page-aligned.
    pub start: Gpa,
    /// How long it is. Whole pages, not zero.
    pub size: Bytes,
}

/// One device, by what its saved state must fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceShape {
    /// The kind of its saved state's envelope, for example `virtio-blk`.
    pub kind: String,
    /// Which one of its kind: the volume's id of a disk, a port, a slot. Empty where there is only one.
    pub identity: String,
    /// The version of its saved state that this end writes (source) or the newest that it reads (target).
    pub version: u16,
}

/// What guest software may have found out about its processor and must find again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuShape {
    /// CPUID's vendor string.
    pub vendor: String,
    /// Feature words of the CPUID that the guest was given, in an order that both ends share. The target must be
    /// able to offer every bit that is set at the source. Empty: nothing to compare.
    pub features: Vec<u32>,
}

/// The shape of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineShape {
    /// Whose machine it is.
    pub vm: VmId,
    /// Virtual CPUs.
    pub vcpus: VcpuCount,
    /// Guest RAM in ascending order without overlap.
    pub memory: Vec<RamRange>,
    /// Bytes in a page of the dirty log; 4096 on x86-64.
    pub page_size: u32,
    /// Every device that saves state, in the order of the machine's construction.
    pub devices: Vec<DeviceShape>,
    /// The processor.
    pub cpu: CpuShape,
}

/// Why a machine cannot take another's state. Displays the difference, source first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeMismatch {
    what: &'static str,
    source: String,
    target: String,
}

impl From<&drover_guest_memory::RamRange> for RamRange {
    fn from(range: &drover_guest_memory::RamRange) -> Self {
        Self { start: range.start, size: range.len }
    }
}

impl fmt::Display for ShapeMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} differ: the source has {}, the target {}", self.what, self.source, self.target)
    }
}

impl std::error::Error for ShapeMismatch {}

impl MachineShape {
    /// As bytes, for whoever keeps a machine's state in another way than by sending it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        crate::wire::encode_shape(self, &mut bytes);
        bytes
    }

    /// What [`to_bytes`](Self::to_bytes) wrote, here or in another release.
    ///
    /// # Errors
    /// [`WireError`](crate::wire::WireError) names the field that is not valid.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, crate::wire::WireError> {
        crate::wire::shape_from_bytes(bytes)
    }

    /// All guest RAM.
    pub fn ram(&self) -> Bytes {
        self.memory.iter().fold(Bytes::ZERO, |sum, range| sum.saturating_add(range.size))
    }

    /// Whether a machine of this shape can take the state of one shaped like `source`.
    ///
    /// # Errors
    /// The first difference that matters.
    pub fn accepts(&self, source: &Self) -> Result<(), ShapeMismatch> {
        let differ = |what, source: String, target: String| Err(ShapeMismatch { what, source, target });
        if self.vm != source.vm {
            return differ("VMs", source.vm.to_string(), self.vm.to_string());
        }
        if self.vcpus != source.vcpus {
            return differ("vCPU counts", source.vcpus.to_string(), self.vcpus.to_string());
        }
        if self.page_size != source.page_size {
            return differ("page sizes", source.page_size.to_string(), self.page_size.to_string());
        }
        if self.memory != source.memory {
            return differ(
                "memory layouts",
                Layout(&source.memory).to_string(),
                Layout(&self.memory).to_string(),
            );
        }
        self.accepts_devices(source)?;
        self.accepts_cpu(&source.cpu)
    }

    /// Devices are the same wherever they stand in the list: machines that take devices while they run list them in
    /// another order than those that were built with them.
    fn accepts_devices(&self, source: &Self) -> Result<(), ShapeMismatch> {
        let sorted = |shape: &Self| {
            let mut devices = shape.devices.clone();
            devices.sort_by(|one, other| (&one.identity, &one.kind).cmp(&(&other.identity, &other.kind)));
            devices
        };
        let (theirs, ours) = (sorted(source), sorted(self));
        let name = |device: Option<&DeviceShape>| match device {
            Some(device) => format!("{} '{}' version {}", device.kind, device.identity, device.version),
            None => "none".to_owned(),
        };
        for index in 0..ours.len().max(theirs.len()) {
            let (theirs, ours) = (theirs.get(index), ours.get(index));
            let fits = matches!((theirs, ours), (Some(theirs), Some(ours))
                if theirs.kind == ours.kind && theirs.identity == ours.identity && theirs.version <= ours.version);
            if !fits {
                return Err(ShapeMismatch { what: "devices", source: name(theirs), target: name(ours) });
            }
        }
        Ok(())
    }

    fn accepts_cpu(&self, source: &CpuShape) -> Result<(), ShapeMismatch> {
        if self.cpu.vendor != source.vendor {
            let (source, target) = (source.vendor.clone(), self.cpu.vendor.clone());
            return Err(ShapeMismatch { what: "processor vendors", source, target });
        }
        let words = |n: usize| format!("{n} feature words");
        if self.cpu.features.len() != source.features.len() {
            let (source, target) = (words(source.features.len()), words(self.cpu.features.len()));
            return Err(ShapeMismatch { what: "processor descriptions", source, target });
        }
        for (word, (theirs, ours)) in source.features.iter().zip(&self.cpu.features).enumerate() {
            if theirs & !ours != 0 {
                let (source, target) = (format!("word {word} = {theirs:#010x}"), format!("{ours:#010x}"));
                return Err(ShapeMismatch { what: "processor features", source, target });
            }
        }
        Ok(())
    }
}

struct Layout<'a>(&'a [RamRange]);

impl fmt::Display for Layout<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { " + " };
            write!(f, "{separator}{} at {}", range.size, range.start)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use drover_guest_memory::GuestMemory;

    use super::*;
    use crate::fake::fake_shape;

    fn check(change: impl Fn(&mut MachineShape), expect: Result<(), &str>) {
        let target = fake_shape(&GuestMemory::anonymous(Bytes::mib(1)));
        let mut source = target.clone();
        change(&mut source);
        let got = target.accepts(&source).map_err(|mismatch| mismatch.to_string());
        assert_eq!(got.as_ref().map_err(String::as_str), expect.as_ref().map_err(|text| *text).map(|()| &()));
    }

    #[test]
    fn a_shape_accepts_what_it_can_take_and_names_what_it_cannot() {
        check(|_| {}, Ok(()));
        check(
            |shape| shape.vcpus = VcpuCount::new(2),
            Err("vCPU counts differ: the source has 2, the target 1"),
        );
        check(
            |shape| shape.memory[0].size = Bytes::mib(2),
            Err("memory layouts differ: the source has 2 MiB at 0x0, the target 1 MiB at 0x0"),
        );
        check(
            |shape| shape.page_size = 16384,
            Err("page sizes differ: the source has 16384, the target 4096"),
        );
        check(
            |shape| shape.vm = VmId::from_u128(1),
            Err("VMs differ: the source has 00000000-0000-0000-0000-000000000001, \
                 the target 00000000-0000-0000-0000-000000000007"),
        );
    }

    #[test]
    fn devices_must_be_the_same_and_not_newer() {
        check(|shape| shape.devices[0].version = 0, Ok(()));
        check(
            |shape| shape.devices[0].version = 2,
            Err("devices differ: the source has fake-vcpu '' version 2, the target fake-vcpu '' version 1"),
        );
        check(
            |shape| shape.devices.clear(),
            Err("devices differ: the source has none, the target fake-vcpu '' version 1"),
        );
        check(
            |shape| shape.devices.push(shape.devices[0].clone()),
            Err("devices differ: the source has fake-vcpu '' version 1, the target none"),
        );
    }

    #[test]
    fn the_order_of_devices_does_not_matter() {
        let mut target = fake_shape(&GuestMemory::anonymous(Bytes::mib(1)));
        target.devices.push(DeviceShape { identity: "15/".to_owned(), ..target.devices[0].clone() });
        let mut source = target.clone();
        source.devices.reverse();
        assert!(target.accepts(&source).is_ok());
        source.devices[0].identity = "14/".to_owned();
        assert!(target.accepts(&source).is_err());
    }

    #[test]
    fn a_target_needs_every_processor_feature_of_the_source() {
        check(|shape| shape.cpu.features = vec![0b0011], Ok(()));
        check(
            |shape| shape.cpu.features = vec![0b0100],
            Err("processor features differ: the source has word 0 = 0x00000004, the target 0x0000000b"),
        );
        check(
            |shape| shape.cpu.features = vec![],
            Err("processor descriptions differ: the source has 0 feature words, the target 1 feature words"),
        );
        check(
            |shape| shape.cpu.vendor = "GenuineIntel".to_owned(),
            Err("processor vendors differ: the source has GenuineIntel, the target DroverFake12"),
        );
    }
}
