//! Single instructions, and the functions that compiled code expects of a C library.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, _rdrand64_step, _rdtsc, CpuidResult};

/// Writes a byte to an I/O port. Ring 3 may do so up to port 0xfff (gate.rs).
pub(crate) fn out_byte(port: u16, value: u8) {
    // SAFETY: port I/O touches no memory that Rust knows of; the probe owns the machine.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) }
}

/// Reads a byte from an I/O port.
pub(crate) fn in_byte(port: u16) -> u8 {
    let value;
    // SAFETY: as for `out_byte`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Writes four bytes to I/O ports.
pub(crate) fn out_word(port: u16, value: u32) {
    // SAFETY: as for `out_byte`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) }
}

/// Reads four bytes from I/O ports.
pub(crate) fn in_word(port: u16) -> u32 {
    let value;
    // SAFETY: as for `out_byte`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Writes a device register.
pub(crate) fn write_register(address: usize, value: u32) {
    // SAFETY: callers pass addresses of device registers, which no Rust object shares.
    unsafe { (address as *mut u32).write_volatile(value) }
}

/// Reads a device register.
pub(crate) fn read_register(address: usize) -> u32 {
    // SAFETY: as for `write_register`.
    unsafe { (address as *const u32).read_volatile() }
}

/// Reads the time stamp counter.
pub(crate) fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has it, and CR4.TSD is clear.
    unsafe { _rdtsc() }
}

/// Asks the VMM for a CPUID leaf, subleaf (gates.s says why through ring 0).
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let (eax, ebx, ecx, edx);
    // SAFETY: the gate changes the four registers and nothing else; rbx, which Rust keeps, is put back.
    unsafe {
        asm!(
            "mov {keep}, rbx",
            "call cpuid_gate",
            "xchg {keep}, rbx",
            keep = out(reg) ebx,
            inout("eax") leaf => eax,
            inout("ecx") subleaf => ecx,
            out("edx") edx,
        );
    }
    let _: u64 = ebx;
    CpuidResult { eax, ebx: ebx as u32, ecx, edx }
}

/// A random number, or the best that a processor without RDRAND offers.
pub(crate) fn random() -> u64 {
    const RDRAND: u32 = 1 << 30;
    // Ring 3's own answer is the right one here: it says what ring 3 can execute.
    if __cpuid(1).ecx & RDRAND != 0 {
        // The documented number of attempts (Intel SDM volume 1, section 7.3.17.1).
        for _ in 0..10 {
            // SAFETY: CPUID has just said that the instruction exists.
            if let Some(value) = unsafe { rdrand() } {
                return value;
            }
        }
    }
    tsc().wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)
}

/// # Safety
/// The processor has RDRAND.
#[target_feature(enable = "rdrand")]
unsafe fn rdrand() -> Option<u64> {
    let mut value = 0;
    (_rdrand64_step(&mut value) == 1).then_some(value)
}

/// The precompiled core library is made to unwind and names this; with `panic = "abort"` nothing calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// # Safety
/// That of C's memcpy.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the direction flag is clear throughout.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") bytes => _,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// That of C's memmove.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= bytes {
        // SAFETY: the caller's promise; copying upwards never overwrites what is still to be read.
        return unsafe { memcpy(to, from, bytes) };
    }
    // SAFETY: the caller's promise; here `to` lies inside the source, so from the last byte down.
    unsafe {
        asm!("std", "rep movsb", "cld",
            inout("rdi") to.wrapping_add(bytes).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(bytes).wrapping_sub(1) => _,
            inout("rcx") bytes => _, options(nostack));
    }
    to
}

/// # Safety
/// That of C's memset.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the direction flag is clear throughout.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("al") value as u8, inout("rcx") bytes => _,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// That of C's memcmp.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    for index in 0..bytes {
        // SAFETY: the caller's promise. Volatile, so that this loop does not become a call of itself.
        let left = unsafe { left.add(index).read_volatile() };
        // SAFETY: the caller's promise.
        let right = unsafe { right.add(index).read_volatile() };
        if left != right {
            return i32::from(left) - i32::from(right);
        }
    }
    0
}

/// # Safety
/// That of C's bcmp.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(left, right, bytes) }
}
