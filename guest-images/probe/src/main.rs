//! Drover's test guest: see README.md for what it does and how it is told.
//!
//! ```text
//! boot.s ──▶ first vCPU: boot line, start the others, heartbeat, disk (and RAM, if it is alone) ──▶ halt
//!        └─▶ other vCPUs: RAM
//! ```
//!
//! Everything here runs in ring 3 with all memory and the ports it needs at hand; ring 0 only takes interrupts (gates.s).
//! The probe never spins while it waits for something: host, VMM and guest may share two cores.
#![no_std]
#![no_main]

mod apic;
mod balloon;
mod bench;
mod clock;
mod dirty;
mod disk;
mod first;
mod gate;
mod heartbeat;
mod instructions;
mod ordered;
mod pvh;
mod ram;
mod serial;
mod smp;
mod sockets;
mod virtio;
mod visitor;

use core::num::NonZeroU64;
use core::panic::PanicInfo;

use drover_probe_record::CommandLine;
use drover_probe_record::event::{BOOT_LINE_START, BootLineMiddle};

use crate::clock::Clock;
use crate::first::{FirstVcpu, Identity};
use crate::instructions::{random, tsc};
use crate::pvh::Loaded;
use crate::serial::{Line, report_error};

/// Bits of an incarnation: every JSON reader keeps these exactly.
const INCARNATION_MASK: u64 = (1 << 48) - 1;

/// Where each vCPU arrives in ring 3.
#[unsafe(no_mangle)]
extern "C" fn vcpu_main(start_info: u32, vcpu: u32) -> ! {
    gate::prepare_vcpu(vcpu as usize);
    if vcpu > 0 {
        smp::run_other(vcpu as usize);
    }
    let entered = tsc();
    gate::prepare_interrupts();
    serial::prepare();
    // What a host measures as "boots" is the first byte, so the line begins before its end is known.
    let mut line = Line::begin(u32::MAX);
    line.write(&BOOT_LINE_START);
    let mut loaded = Loaded::empty();
    let load = loaded.read(start_info);
    apic::prepare();
    smp::start();
    let parsed = CommandLine::parse(loaded.command_line());
    let command_line = parsed.unwrap_or_default();
    let told = command_line.tsc_khz.map(NonZeroU64::get).or_else(clock::khz_from_cpuid);
    let clock = Clock::new(told.unwrap_or_else(clock::khz_from_timer), entered);
    let identity = Identity { seed: command_line.workload.seed, incarnation: random() & INCARNATION_MASK };
    let Identity { seed, incarnation } = identity;
    line.write(&BootLineMiddle { seed, tsc: entered, tsc_khz: clock.khz(), incarnation });
    let vcpus = smp::wait(command_line.workload.vcpus, clock.clone());
    line.write(&format_args!("{vcpus}}}"));
    line.end();
    if let Err(why) = load {
        report_error(format_args!("{why}"));
    }
    if let Err(error) = parsed {
        report_error(format_args!("{error}"));
    }
    FirstVcpu::new(&command_line, &loaded, vcpus, clock, identity).run()
}

/// Reports and stops this vCPU; the others go on.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    serial::report_at_any_cost(format_args!("{info}"));
    loop {
        gate::idle();
    }
}
