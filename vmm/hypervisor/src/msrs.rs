//! A vCPU's model-specific registers.
//!
//! KVM lists the registers that make up a guest's state; which of them a host really reads and writes back differs.
//! The state holds those that both work for, found out once per machine.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::{HypervisorError, StateError};

/// The time-stamp counter: saved as a position in time, not as a register.
pub(crate) const TSC: u32 = 0x10;
/// Deadline of the APIC timer, by the TSC. Armed last: it counts only once the APIC is in deadline mode.
const TSC_DEADLINE: u32 = 0x6e0;
/// KVM's paravirtual registers, old and new numbers. A write registers guest memory, and KVM then writes there.
const KVM_CLOCK_OLD: std::ops::RangeInclusive<u32> = 0x11..=0x12;
const KVM_PARAVIRTUAL: std::ops::RangeInclusive<u32> = 0x4b56_4d00..=0x4b56_4dff;

/// One register's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Msr {
    pub(crate) index: u32,
    pub(crate) value: u64,
}

/// Which of `listed` this vCPU can save and take back.
///
/// Writing back the value just read changes nothing, with two exceptions that are therefore not tried: the TSC (saved
/// otherwise) and KVM's paravirtual registers (KVM itself listed them; a write makes it write to guest RAM, whose last
/// pages may already be on their way to another host).
pub(crate) fn savable(fd: &VcpuFd, listed: &[u32]) -> Result<Vec<u32>, HypervisorError> {
    let wanted: Vec<u32> = listed.iter().copied().filter(|&index| index != TSC).collect();
    let mut readable = Vec::new();
    let mut rest = wanted.as_slice();
    while !rest.is_empty() {
        let (values, refused) = read_some(fd, rest)?;
        rest = &rest[values.len() + usize::from(refused.is_some())..];
        readable.extend(values);
    }
    let untried = |index: u32| KVM_CLOCK_OLD.contains(&index) || KVM_PARAVIRTUAL.contains(&index);
    let mut savable: Vec<u32> =
        readable.iter().map(|msr| msr.index).filter(|&index| untried(index)).collect();
    readable.retain(|msr| !untried(msr.index));
    let mut rest = readable.as_slice();
    while !rest.is_empty() {
        let (written, refused) = write_some(fd, rest)?;
        savable.extend(rest[..written].iter().map(|msr| msr.index));
        rest = &rest[written + usize::from(refused.is_some())..];
    }
    // The deadline last, the others in a stable order.
    savable.sort_unstable_by_key(|&index| (index == TSC_DEADLINE, index));
    Ok(savable)
}

/// Reads registers that are known to be readable.
pub(crate) fn read_all(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<Msr>, HypervisorError> {
    let mut values = Vec::with_capacity(indices.len());
    for chunk in indices.chunks(KVM_MAX_MSR_ENTRIES) {
        let (read, refused) = read_some(fd, chunk)?;
        if let Some(index) = refused {
            return Err(HypervisorError::Call {
                attempt: "read a register it has read before",
                source: std::io::Error::other(format!("model-specific register {index:#x}")),
            });
        }
        values.extend(read);
    }
    Ok(values)
}

/// Writes registers in this order. One that is refused is an error, unless it has that value already.
pub(crate) fn write_all(fd: &VcpuFd, msrs: &[Msr]) -> Result<(), HypervisorError> {
    let mut rest = msrs;
    while !rest.is_empty() {
        let (written, refused) = write_some(fd, rest)?;
        rest = &rest[written..];
        if let Some(refused) = refused {
            let (now, _) = read_some(fd, &[refused.index])?;
            if now != [refused] {
                return Err(StateError::MsrRefused { index: refused.index }.into());
            }
            rest = &rest[1..];
        }
    }
    Ok(())
}

/// The time-stamp counter as a register.
pub(crate) fn read_tsc(fd: &VcpuFd) -> Result<u64, HypervisorError> {
    let values = read_all(fd, &[TSC])?;
    Ok(values[0].value)
}

pub(crate) fn write_tsc(fd: &VcpuFd, value: u64) -> Result<(), HypervisorError> {
    write_all(fd, &[Msr { index: TSC, value }])
}

/// Reads from the front until KVM refuses one; that one's index too.
fn read_some(fd: &VcpuFd, indices: &[u32]) -> Result<(Vec<Msr>, Option<u32>), HypervisorError> {
    let entries: Vec<_> = indices
        .iter()
        .take(KVM_MAX_MSR_ENTRIES)
        .map(|&index| kvm_msr_entry { index, ..Default::default() })
        .collect();
    let mut msrs = Msrs::from_entries(&entries).expect("at most KVM_MAX_MSR_ENTRIES were taken");
    let read = fd.get_msrs(&mut msrs).map_err(HypervisorError::call("read model-specific registers"))?;
    let values =
        msrs.as_slice()[..read].iter().map(|entry| Msr { index: entry.index, value: entry.data }).collect();
    let refused = (read < entries.len()).then(|| entries[read].index);
    Ok((values, refused))
}

/// Writes from the front until KVM refuses one; how many were written, and the one that was refused.
fn write_some(fd: &VcpuFd, msrs: &[Msr]) -> Result<(usize, Option<Msr>), HypervisorError> {
    let batch = &msrs[..msrs.len().min(KVM_MAX_MSR_ENTRIES)];
    let entries: Vec<_> = batch
        .iter()
        .map(|msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() })
        .collect();
    let entries = Msrs::from_entries(&entries).expect("a batch has at most KVM_MAX_MSR_ENTRIES");
    let written = fd.set_msrs(&entries).map_err(HypervisorError::call("write model-specific registers"))?;
    Ok((written, batch.get(written).copied()))
}
