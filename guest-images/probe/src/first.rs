//! The first vCPU's work: heartbeat, disk, the way to the end, and RAM where there is no other vCPU.

use drover_probe_record::{CommandLine, DirtyWork, Event, MmioDevice, Workload};

use crate::balloon::Balloon;
use crate::bench::Bench;
use crate::clock::{Alarm, Clock};
use crate::dirty::{Region, Sweep};
use crate::disk::Disk;
use crate::gate;
use crate::heartbeat::Heartbeat;
use crate::instructions::out_byte;
use crate::ordered::Ordered;
use crate::pvh::Loaded;
use crate::ram::Ram;
use crate::serial::{report_error, report_last};
use crate::smp::{self, Plan};
use crate::sockets::Sockets;
use crate::visitor::Visitor;

/// How long a halt waits for the disk.
const SETTLE_US_MAX: u64 = 2_000_000;
/// How long the keyboard controller has to stop the machine before a triple fault does.
const RESET_US_MAX: u64 = 500_000;
/// Sleep control of our machine and of Cloud Hypervisor; enter the state that is off.
const SLEEP_CONTROL: u16 = 0x600;
const SLEEP_OFF: u8 = 1 << 5 | 5 << 2;
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;

/// Who this probe is.
#[derive(Clone, Copy)]
pub(crate) struct Identity {
    /// From the command line.
    pub(crate) seed: u64,
    /// Random, of this boot.
    pub(crate) incarnation: u64,
}

/// All that the first vCPU does.
pub(crate) struct FirstVcpu {
    clock: Clock,
    alarm: Alarm,
    heartbeat: Option<Heartbeat>,
    disk: Option<Disk>,
    bench: Option<Bench>,
    ordered: Option<Ordered>,
    balloon: Option<Balloon>,
    sockets: Option<Sockets>,
    visitor: Option<Visitor>,
    sweep: Option<Sweep>,
    halt: Halt,
}

/// The way to the end.
#[derive(Clone, Copy)]
enum Halt {
    Never,
    At(u64),
    /// The disk is settling, until then at most.
    Settling(u64),
}

impl FirstVcpu {
    /// Hands out the work. What cannot be done is reported, the rest is done.
    pub(crate) fn new(
        command_line: &CommandLine,
        loaded: &Loaded,
        vcpus: u32,
        mut clock: Clock,
        identity: Identity,
    ) -> Self {
        let Workload {
            heartbeat_ms,
            disk,
            bench,
            ordered,
            visitor,
            dirty,
            balloon_mib,
            vsock_port,
            halt_after_ms,
            ..
        } = command_line.workload;
        let mut ram = Ram::new(loaded.ram());
        let now = clock.now_us();
        let places: &[MmioDevice] = command_line.mmio_devices();
        let bench = bench.and_then(|work| {
            let started = Bench::start(places, &work, &mut ram, identity, now);
            started.inspect_err(|why| report_error(format_args!("nothing to measure: {why}"))).ok()
        });
        let ordered = ordered.filter(|_| bench.is_none() && disk.is_none()).and_then(|work| {
            let started = Ordered::start(places, &work, &mut ram, identity, now);
            started.inspect_err(|why| report_error(format_args!("no work on two disks: {why}"))).ok()
        });
        let disk = disk.filter(|_| bench.is_none()).and_then(|work| {
            let started = Disk::start(places, &work, &mut ram, identity);
            started.inspect_err(|why| report_error(format_args!("no work on the disk: {why}"))).ok()
        });
        let balloon = balloon_mib.and_then(|mib| {
            let started = Balloon::start(places, mib, &mut ram);
            started.inspect_err(|why| report_error(format_args!("no balloon: {why}"))).ok()
        });
        let sockets = vsock_port.and_then(|port| {
            let started = Sockets::start(places, port, &mut ram);
            started.inspect_err(|why| report_error(format_args!("no sockets: {why}"))).ok()
        });
        let region = dirty.and_then(|work| take_region(&mut ram, &work, identity.seed));
        let alone = vcpus <= 1;
        let sweep = region.as_ref().filter(|_| alone).map(|region| {
            // SAFETY: the only share, as there is no other vCPU.
            unsafe { region.share(0, 1, 0, now) }
        });
        let dirty = region.filter(|_| !alone).map(|region| (region, vcpus - 1));
        // Whoever comes later has the RAM that is left.
        let visitor = visitor.map(|work| Visitor::start(work, disk.is_some(), ram, identity));
        // SAFETY: once, as there is one first vCPU.
        unsafe { smp::assign(Plan { clock: clock.clone(), dirty }) };
        FirstVcpu {
            alarm: Alarm::new(0),
            heartbeat: heartbeat_ms.map(|period_ms| Heartbeat::new(period_ms, now)),
            disk,
            bench,
            ordered,
            balloon,
            sockets,
            visitor,
            sweep,
            halt: halt_after_ms.map_or(Halt::Never, |ms| Halt::At(ms * 1000)),
            clock,
        }
    }

    /// Works until the machine ends.
    pub(crate) fn run(mut self) -> ! {
        loop {
            let now = self.clock.now_us();
            if let Some(heartbeat) = &mut self.heartbeat {
                heartbeat.poll(now, &self.clock);
            }
            if let Some(disk) = &mut self.disk {
                disk.poll(now);
            }
            if let Some(bench) = &mut self.bench {
                bench.poll(now);
            }
            if let Some(ordered) = &mut self.ordered {
                ordered.poll(now);
            }
            if let Some(balloon) = &mut self.balloon {
                balloon.poll(now);
            }
            if let Some(sockets) = &mut self.sockets {
                sockets.poll(now);
            }
            if let Some(visitor) = &mut self.visitor {
                visitor.poll(now);
            }
            if let Some(sweep) = &mut self.sweep {
                sweep.poll(now);
            }
            self.approach_halt(now);
            let now = self.clock.now_us();
            let wake = self.wake_us();
            if wake <= now {
                continue;
            }
            self.alarm.set(now, wake);
            let disk_may = self.disk.as_mut().is_none_or(Disk::may_sleep);
            let ordered_may = self.ordered.as_mut().is_none_or(Ordered::may_sleep);
            let visitor_may = self.visitor.as_mut().is_none_or(Visitor::may_sleep);
            if disk_may && ordered_may && visitor_may && self.bench.as_mut().is_none_or(Bench::may_sleep) {
                gate::idle();
            }
        }
    }

    fn wake_us(&self) -> u64 {
        let halt = match self.halt {
            Halt::Never => u64::MAX,
            Halt::At(_) if self.measures() => u64::MAX,
            Halt::At(at) | Halt::Settling(at) => at,
        };
        let heartbeat = self.heartbeat.as_ref().map_or(u64::MAX, Heartbeat::wake_us);
        let disk = self.disk.as_ref().map_or(u64::MAX, Disk::wake_us);
        let sweep = self.sweep.as_ref().map_or(u64::MAX, Sweep::wake_us);
        let bench = self.bench.as_ref().map_or(u64::MAX, Bench::wake_us);
        let ordered = self.ordered.as_ref().map_or(u64::MAX, Ordered::wake_us);
        let balloon = self.balloon.as_ref().map_or(u64::MAX, Balloon::wake_us);
        let sockets = self.sockets.as_ref().map_or(u64::MAX, Sockets::wake_us);
        let visitor = self.visitor.as_ref().map_or(u64::MAX, Visitor::wake_us);
        halt.min(visitor)
            .min(balloon)
            .min(sockets)
            .min(heartbeat)
            .min(disk)
            .min(bench)
            .min(ordered)
            .min(sweep)
    }

    fn approach_halt(&mut self, now: u64) {
        match self.halt {
            Halt::At(at) if now >= at && !self.measures() => {
                if let Some(disk) = &mut self.disk {
                    disk.stop();
                }
                if let Some(bench) = &mut self.bench {
                    bench.stop();
                }
                if let Some(ordered) = &mut self.ordered {
                    ordered.stop();
                }
                if let Some(visitor) = &mut self.visitor {
                    visitor.stop();
                }
                self.halt = Halt::Settling(now + SETTLE_US_MAX);
            }
            Halt::Settling(limit) if now >= limit || self.is_settled() => self.halt_now(),
            _ => {}
        }
    }

    /// Whether a measurement is under way: it is told before the machine ends, however late a busy host has made it.
    fn measures(&self) -> bool {
        self.bench.as_ref().is_some_and(|bench| !bench.has_reported())
    }

    fn is_settled(&self) -> bool {
        self.disk.as_ref().is_none_or(Disk::is_stopped)
            && self.bench.as_ref().is_none_or(Bench::is_stopped)
            && self.ordered.as_ref().is_none_or(Ordered::is_stopped)
            && self.visitor.as_ref().is_none_or(Visitor::is_stopped)
    }

    fn halt_now(&mut self) -> ! {
        report_last(&Event::Halt {});
        // Off, where there is hardware-reduced ACPI with its registers where two machines have them; elsewhere nothing
        // answers there, and a reset ends the machine.
        out_byte(SLEEP_CONTROL, SLEEP_OFF);
        out_byte(KEYBOARD_COMMAND, KEYBOARD_RESET);
        let limit = self.clock.now_us() + RESET_US_MAX;
        loop {
            let now = self.clock.now_us();
            if now >= limit {
                gate::triple_fault();
            }
            self.alarm.set(now, limit);
            gate::idle();
        }
    }
}

fn take_region(ram: &mut Ram, work: &DirtyWork, seed: u64) -> Option<Region> {
    let DirtyWork { mib, mib_per_s } = *work;
    match Region::new(ram, mib, mib_per_s, seed) {
        Ok(region) => Some(region),
        Err(free) => {
            report_error(format_args!("no work on RAM: probe.dirty asks for {mib} MiB, {free} MiB are free"));
            None
        }
    }
}
