//! Ring 3's side of gates.s: the tables that ring 0 works by, and waiting for an interrupt.
//!
//! Waiting never loses an interrupt: a handler marks its vCPU as woken, and [`idle`] returns at once where that has
//! happened since it last returned. So a caller looks at everything that it waits for, then calls [`idle`], in a loop.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::serial;

global_asm!(include_str!("boot.s"));
global_asm!(include_str!("gates.s"));

/// vCPUs for which there are stacks; boot.s parks any other.
pub(crate) const VCPUS_MAX: usize = 16;
/// The vector of each vCPU's local timer.
pub(crate) const TIMER_VECTOR: u8 = 0x40;
/// The vector of devices.
pub(crate) const DEVICE_VECTOR: u8 = 0x41;
/// The vector by which vCPUs wake each other.
pub(crate) const CALL_VECTOR: u8 = 0x42;
/// The vector of interrupts that were gone when they arrived.
pub(crate) const SPURIOUS_VECTOR: u8 = 0xff;

const KERNEL_STACK_BYTES: usize = 4096;
const USER_STACK_BYTES: usize = 32768;
const TSS_BYTES: usize = 1024;
/// Where the permission bitmap starts in a TSS: right behind the TSS proper (Intel SDM volume 3, section 8.7).
const TSS_PERMISSIONS: usize = 104;
/// Ports 0 to 0xfff, and the byte of ones that has to follow.
const PERMISSION_BYTES: usize = 0x1000 / 8;
const _: () = assert!(TSS_PERMISSIONS + PERMISSION_BYTES < TSS_BYTES);

/// Memory that ring 0, other vCPUs or devices use too.
#[repr(C, align(4096))]
struct Shared<T>(UnsafeCell<T>);

// SAFETY: what is in there is reached through raw pointers, each use of which says why it is alone.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    const fn new(value: T) -> Self {
        Shared(UnsafeCell::new(value))
    }
}

#[unsafe(no_mangle)]
static IDT: Shared<[[u64; 2]; 256]> = Shared::new([[0; 2]; 256]);
#[unsafe(no_mangle)]
static TASK_STATES: Shared<[[u8; TSS_BYTES]; VCPUS_MAX]> = Shared::new([[0; TSS_BYTES]; VCPUS_MAX]);
#[unsafe(no_mangle)]
static KERNEL_STACKS: Shared<[KernelStack; VCPUS_MAX]> =
    Shared::new([const { KernelStack::new() }; VCPUS_MAX]);
/// The first vCPU, which drives the devices, has two.
#[unsafe(no_mangle)]
static USER_STACKS: Shared<[[u8; USER_STACK_BYTES]; VCPUS_MAX + 1]> =
    Shared::new([[0; USER_STACK_BYTES]; VCPUS_MAX + 1]);
#[unsafe(no_mangle)]
static FAULT_STACK: Shared<[u8; USER_STACK_BYTES]> = Shared::new([0; USER_STACK_BYTES]);

/// Where ring 0 keeps count for ring 3; gates.s knows this layout.
#[repr(C)]
struct Gate {
    woken: AtomicU32,
    timer: AtomicU32,
    device: AtomicU32,
    calls: AtomicU32,
}

#[repr(C)]
struct KernelStack {
    gate: Gate,
    stack: [u8; KERNEL_STACK_BYTES - size_of::<Gate>()],
}

impl KernelStack {
    const fn new() -> Self {
        KernelStack {
            gate: Gate {
                woken: AtomicU32::new(0),
                timer: AtomicU32::new(0),
                device: AtomicU32::new(0),
                calls: AtomicU32::new(0),
            },
            stack: [0; KERNEL_STACK_BYTES - size_of::<Gate>()],
        }
    }
}

unsafe extern "C" {
    safe fn idle_gate();
    static exception_entries: u8;
    static invalid_opcode_entry: u8;
    static timer_entry: u8;
    static device_entry: u8;
    static call_entry: u8;
    static spurious_entry: u8;
}

/// Lets ring 0 return to this vCPU's stacks and ring 3 use ports. The first thing that each vCPU does.
pub(crate) fn prepare_vcpu(index: usize) {
    let state = TASK_STATES.0.get().cast::<[u8; TSS_BYTES]>().wrapping_add(index);
    let stack_end = KERNEL_STACKS.0.get().cast::<KernelStack>().wrapping_add(index + 1);
    // SAFETY: each vCPU has its own index, which boot.s has checked, and only its own ring 0 reads its task state.
    let state = unsafe { &mut *state };
    state[4..12].copy_from_slice(&(stack_end as u64).to_le_bytes());
    state[102..104].copy_from_slice(&(TSS_PERMISSIONS as u16).to_le_bytes());
    state[TSS_PERMISSIONS + PERMISSION_BYTES..].fill(0xff);
}

/// Fills the interrupt table. Once, before anything can raise an interrupt.
pub(crate) fn prepare_interrupts() {
    let exceptions = &raw const exception_entries as usize;
    for vector in 0..=u8::MAX {
        let entry = match vector {
            6 => &raw const invalid_opcode_entry as usize,
            0..32 => exceptions + usize::from(vector) * 16,
            TIMER_VECTOR => &raw const timer_entry as usize,
            DEVICE_VECTOR => &raw const device_entry as usize,
            CALL_VECTOR => &raw const call_entry as usize,
            _ => &raw const spurious_entry as usize,
        };
        let slot = IDT.0.get().cast::<[u64; 2]>().wrapping_add(usize::from(vector));
        // SAFETY: the first vCPU alone runs, and its ring 0 is not entered while this loop does.
        unsafe { slot.write_volatile(interrupt_gate(entry as u64)) }
    }
}

/// A 64-bit interrupt gate for ring 0 (Intel SDM volume 3, section 6.14.1).
fn interrupt_gate(entry: u64) -> [u64; 2] {
    const CODE64: u64 = 0x08 << 16;
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e << 40;
    [(entry & 0xffff) | CODE64 | PRESENT_INTERRUPT_GATE | ((entry >> 16) & 0xffff) << 48, entry >> 32]
}

/// Sleeps until an interrupt has come since the last return.
pub(crate) fn idle() {
    idle_gate();
}

/// Device interrupts that a vCPU has taken since boot.
pub(crate) fn device_interrupts(vcpu: usize) -> u32 {
    gate_of(vcpu).device.load(Ordering::Acquire)
}

/// How often a vCPU's timer has rung since boot.
pub(crate) fn timer_interrupts(vcpu: usize) -> u32 {
    gate_of(vcpu).timer.load(Ordering::Acquire)
}

fn gate_of(vcpu: usize) -> &'static Gate {
    let stack = KERNEL_STACKS.0.get().cast::<KernelStack>().wrapping_add(vcpu);
    // SAFETY: in bounds for every index of a vCPU; the counters are atomics, the stack behind them is not reached.
    unsafe { &(*stack).gate }
}

/// Resets the machine without a device: an exception that no table entry answers.
pub(crate) fn triple_fault() -> ! {
    for vector in 0..256 {
        let slot = IDT.0.get().cast::<[u64; 2]>().wrapping_add(vector);
        // SAFETY: in bounds; nothing is meant to run after this.
        unsafe { slot.write_volatile([0; 2]) }
    }
    loop {
        idle();
    }
}

/// An exception that is not a gate: reports it and stops this vCPU; the others go on.
#[unsafe(no_mangle)]
extern "C" fn fault(vector: u64, error: u64, rip: u64, address: u64) -> ! {
    serial::report_at_any_cost(format_args!(
        "exception {vector} (error code {error:#x}) at {rip:#x}, address {address:#x}"
    ));
    loop {
        idle();
    }
}
