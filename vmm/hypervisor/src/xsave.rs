//! A vCPU's extended state (x87, SSE, AVX, …) as the processor's XSAVE area.
#![expect(unsafe_code, reason = "KVM_SET_XSAVE reads as many bytes as the process may use features for")]

use kvm_bindings::kvm_xsave;
use kvm_ioctls::VcpuFd;

use crate::HypervisorError;

/// Size of the area that KVM_GET_XSAVE and KVM_SET_XSAVE exchange.
const AREA: usize = 4096;

/// An XSAVE area.
///
/// 4 KiB hold every feature that a process gets without asking. Features that need more (Intel AMX) are off for guests
/// of a process that has not asked for them by arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM), which nothing here does.
#[derive(Clone)]
pub(crate) struct Xsave(Box<[u8; AREA]>);

impl Xsave {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0[..]
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        <[u8; AREA]>::try_from(bytes).ok().map(|area| Self(Box::new(area)))
    }
}

pub(crate) fn read(fd: &VcpuFd) -> Result<Xsave, HypervisorError> {
    let xsave = fd.get_xsave().map_err(HypervisorError::call("read a processor's extended state"))?;
    let mut area = Box::new([0; AREA]);
    for (bytes, word) in area.as_chunks_mut::<4>().0.iter_mut().zip(xsave.region) {
        *bytes = word.to_le_bytes();
    }
    Ok(Xsave(area))
}

pub(crate) fn write(fd: &VcpuFd, state: &Xsave) -> Result<(), HypervisorError> {
    let mut xsave = kvm_xsave::default();
    for (word, bytes) in xsave.region.iter_mut().zip(state.0.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    // SAFETY: the kernel reads 4096 bytes, the size of `region`, unless this process has asked for larger features
    // for its guests, which it has not (see `Xsave`).
    unsafe { fd.set_xsave(&xsave) }.map_err(HypervisorError::call("set a processor's extended state"))
}
