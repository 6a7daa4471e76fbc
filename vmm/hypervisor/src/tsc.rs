//! Where a guest's time-stamp counter stands.
//!
//! KVM lets user space read and write the offset between the guest's counter and the host's (Linux 5.16,
//! KVM_VCPU_TSC_CTRL): exact, whenever it is done. Without it the counter is a register that moves while it is copied,
//! and KVM guesses which writes belong together.
#![expect(unsafe_code, reason = "KVM_VCPU_TSC_CTRL has no safe wrapper")]

use std::io;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::{ioctl::ioctl_with_ref, ioctl_iow_nr};

use crate::{HypervisorError, StateError, TimeSample, msrs, time::host_tsc};

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// What the guest's counter showed when the host's clocks were sampled.
pub(crate) fn read(fd: &VcpuFd, sample: &TimeSample) -> Result<u64, HypervisorError> {
    match offset(fd) {
        Some(offset) => Ok(sample.tsc.wrapping_add(offset)),
        None => {
            let value = msrs::read_tsc(fd)?;
            Ok(value.wrapping_sub(host_tsc().wrapping_sub(sample.tsc)))
        }
    }
}

/// How far the guest's counter may be from where it belongs, milliseconds of its ticks: more than the host's two clocks
/// drift apart during a migration, less than a guest's watchdogs notice.
const MISPLACED_MS_MAX: u64 = 100;

/// Makes the guest's counter show `value` at the moment of the sample, and run on from there.
///
/// Some KVMs accept the offset and do nothing (those that let the guest read the host's counter): fine where the guest
/// comes from the same host, an error where its time would jump.
pub(crate) fn write(fd: &VcpuFd, sample: &TimeSample, value: u64, khz: u32) -> Result<(), HypervisorError> {
    if offset(fd).is_some() {
        set_offset(fd, value.wrapping_sub(sample.tsc))
            .map_err(|source| HypervisorError::Call { attempt: "set a guest's TSC", source })?;
    } else {
        msrs::write_tsc(fd, value.wrapping_add(host_tsc().wrapping_sub(sample.tsc)))?;
    }
    let misplaced = read(fd, sample)?.wrapping_sub(value).cast_signed();
    if misplaced.unsigned_abs() > u64::from(khz).max(1) * MISPLACED_MS_MAX {
        return Err(StateError::TscFixed { misplaced }.into());
    }
    Ok(())
}

/// Guest counter minus host counter, modulo 2^64; `None` where this KVM does not tell.
fn offset(fd: &VcpuFd) -> Option<u64> {
    let mut offset = 0_u64;
    let attribute = attribute(&raw mut offset);
    // SAFETY: the attribute's address is that of a u64, which is what the kernel writes for this attribute.
    let answer = unsafe { ioctl_with_ref(fd, KVM_GET_DEVICE_ATTR(), &attribute) };
    (answer == 0).then_some(offset)
}

fn set_offset(fd: &VcpuFd, mut offset: u64) -> io::Result<()> {
    let attribute = attribute(&raw mut offset);
    // SAFETY: the attribute's address is that of a u64, which is what the kernel reads for this attribute.
    let answer = unsafe { ioctl_with_ref(fd, KVM_SET_DEVICE_ATTR(), &attribute) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn attribute(offset: *mut u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: offset.expose_provenance() as u64,
        flags: 0,
    }
}
