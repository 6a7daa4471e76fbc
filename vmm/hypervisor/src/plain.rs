//! KVM's structures as bytes.
#![expect(unsafe_code, reason = "reads and writes KVM's C structures byte by byte")]

use kvm_bindings::{
    kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_pit_state2, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};

/// A C structure of integers whose every byte means something.
///
/// # Safety
/// The type is `repr(C)`, any bytes are a valid value of it, and it has no padding the compiler added: KVM's ABI spells
/// its padding out, so that a zeroed value stays initialised in every byte.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: structures of the KVM ABI (include/uapi: asm/kvm.h, linux/kvm.h): integers, arrays of integers, and one union
// of such; all padding is declared as fields.
unsafe impl Plain for kvm_regs {}
// SAFETY: as above.
unsafe impl Plain for kvm_sregs {}
// SAFETY: as above.
unsafe impl Plain for kvm_xcrs {}
// SAFETY: as above.
unsafe impl Plain for kvm_lapic_state {}
// SAFETY: as above.
unsafe impl Plain for kvm_vcpu_events {}
// SAFETY: as above.
unsafe impl Plain for kvm_mp_state {}
// SAFETY: as above.
unsafe impl Plain for kvm_debugregs {}
// SAFETY: as above; the union's largest member, 512 bytes of `dummy`, covers the others.
unsafe impl Plain for kvm_irqchip {}
// SAFETY: as above.
unsafe impl Plain for kvm_pit_state2 {}

/// The value's bytes, as the kernel lays them out.
pub(crate) fn to_bytes<T: Plain>(value: &T) -> Vec<u8> {
    let start = std::ptr::from_ref(value).cast::<u8>();
    // SAFETY: `Plain` promises that all bytes of the value are initialised; they live as long as the borrow.
    unsafe { std::slice::from_raw_parts(start, size_of::<T>()) }.to_vec()
}

/// A value from its bytes, or `None` if they are not as many as it has.
pub(crate) fn from_bytes<T: Plain>(bytes: &[u8]) -> Option<T> {
    // SAFETY: the read stays inside `bytes`, whose length is checked first, and `Plain` promises that any bytes are a
    // value. The read does not need alignment.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_and_wrong_lengths_do_not() {
        let regs = kvm_regs { rip: 0x1234, rflags: 2, ..Default::default() };
        let bytes = to_bytes(&regs);
        assert_eq!(from_bytes::<kvm_regs>(&bytes), Some(regs));
        assert_eq!(from_bytes::<kvm_regs>(&bytes[1..]), None);
        assert_eq!(from_bytes::<kvm_regs>(&[bytes.as_slice(), &[0]].concat()), None);
    }
}
