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
mod clock;
mod dirty;
mod disk;
mod first;
mod gate;
mod heartbeat;
mod instructions;
mod pvh;
mod ram;
mod serial;
mod smp;
mod virtio;

use core::fmt::{self, Display, Write};
use core::num::NonZeroU64;
use core::panic::PanicInfo;

use drover_probe_record::event::{BOOT_LINE_START, VOCABULARY};
use drover_probe_record::{CommandLine, Event};

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
    let parsed = CommandLine::parse(loaded.command_line());
    let command_line = parsed.unwrap_or_default();
    let clock = start_machine(&command_line, entered);
    let vcpus = smp::wait(command_line.workload.vcpus, clock.clone());
    let incarnation = random() & INCARNATION_MASK;
    let seed = command_line.workload.seed;
    let boot: Event<fmt::Arguments<'_>> =
        Event::Boot { probe: VOCABULARY, seed, vcpus, tsc: entered, tsc_khz: clock.khz(), incarnation };
    line.write(&Rest { skip: BOOT_LINE_START.len(), of: &boot });
    line.end();
    if let Err(why) = load {
        report_error(format_args!("{why}"));
    }
    if let Err(error) = parsed {
        report_error(format_args!("{error}"));
    }
    let identity = Identity { seed, incarnation };
    FirstVcpu::new(&command_line, &loaded, vcpus, clock, identity).run()
}

/// Sets the first vCPU and its clock up, and sends the others off.
fn start_machine(command_line: &CommandLine, entered: u64) -> Clock {
    apic::prepare();
    smp::start();
    let told = command_line.tsc_khz.map(NonZeroU64::get).or_else(clock::khz_from_cpuid);
    Clock::new(told.unwrap_or_else(clock::khz_from_timer), entered)
}

/// The end of a text whose start has been written already.
struct Rest<'a> {
    skip: usize,
    of: &'a dyn Display,
}

impl Display for Rest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Skip<'a, 'b> {
            bytes: usize,
            to: &'a mut fmt::Formatter<'b>,
        }
        impl Write for Skip<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                let skipped = self.bytes.min(text.len());
                self.bytes -= skipped;
                self.to.write_str(text.get(skipped..).unwrap_or_default())
            }
        }
        write!(Skip { bytes: self.skip, to: f }, "{}", self.of)
    }
}

/// Reports and stops this vCPU; the others go on.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    serial::report_at_any_cost(format_args!("{info}"));
    loop {
        gate::idle();
    }
}
