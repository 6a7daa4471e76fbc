//! Work on a disk that comes to the PCI bus and goes from it, as `probe.visitor` asks.
//!
//! The guest's side of hot-plug without ACPI: the machine's registers of slots are looked at every so often. A disk beside the
//! first one is written like that; one that is asked back is settled, reset and let go, unless the probe is told to keep it; one
//! that has been pulled out is forgotten.

use core::mem::MaybeUninit;

use drover_probe_record::{DiskWork, Event, VisitorState, VisitorWork};

use crate::disk::Disk;
use crate::first::Identity;
use crate::instructions::{in_word, out_word};
use crate::ram::Ram;
use crate::serial::{report, report_error};
use crate::virtio::pci;

/// The machine's registers, a bit for each device number (vmm/devices, `hotplug`).
const CHANGED: u16 = 0x610;
const ASKED: u16 = CHANGED + 4;
const EJECT: u16 = CHANGED + 8;
/// Between two looks at them.
const LOOK_US: u64 = 20_000;
const BLOCK: u32 = 2;

/// The worker.
pub(crate) struct Visitor {
    work: VisitorWork,
    identity: Identity,
    ram: Ram,
    /// The first disk's number, which is no visitor.
    resident: Option<u32>,
    present: Option<Present>,
    /// A disk that cannot be used, which is said once.
    useless: Option<u32>,
    look_us: u64,
}

struct Present {
    number: u32,
    /// In RAM of its own: the stack has no room for one more.
    disk: &'static mut Disk,
    asked: bool,
}

impl Visitor {
    /// Begins to look. `beside`: there is work on the first disk, too.
    pub(crate) fn start(work: VisitorWork, beside: bool, ram: Ram, identity: Identity) -> Self {
        let resident = if beside { disks().next() } else { None };
        Visitor { work, identity, ram, resident, present: None, useless: None, look_us: 0 }
    }

    /// Works on the disk that is there, and looks who comes and goes.
    pub(crate) fn poll(&mut self, now_us: u64) {
        if let Some(present) = &mut self.present {
            present.disk.poll(now_us);
        }
        if now_us >= self.look_us {
            self.look_us = now_us + LOOK_US;
            out_word(CHANGED, in_word(CHANGED));
            self.look();
        }
        self.let_go();
    }

    fn look(&mut self) {
        if let Some(Present { number, .. }) = self.present {
            if pci::kind(number).is_none() {
                report(&Event::Visitor { state: VisitorState::Gone, device: number, seq: 0, bad: 0 });
                self.present = None;
            } else {
                self.asked();
            }
            return;
        }
        let Some(number) = disks().find(|number| Some(*number) != self.resident) else {
            self.useless = None;
            return;
        };
        if self.useless == Some(number) {
            return;
        }
        let VisitorWork { slots, iops, .. } = self.work;
        let work = DiskWork { slots, iops, queue_depth: 1 };
        let place = self.place();
        let disk = Disk::visit(number, &work, &mut self.ram, self.identity);
        match disk.and_then(|disk| Ok(place?.write(disk))) {
            Ok(disk) => self.present = Some(Present { number, disk, asked: false }),
            Err(why) => {
                self.useless = Some(number);
                report_error(format_args!("no work on the visitor: {why}"));
            }
        }
    }

    /// Disks come seldom, and each gets room of its own.
    fn place(&mut self) -> Result<&'static mut MaybeUninit<Disk>, &'static str> {
        // SAFETY: nothing is claimed of what is in there.
        let taken = unsafe { self.ram.take::<MaybeUninit<Disk>>(1) };
        taken.ok().and_then(<[_]>::first_mut).ok_or("there is too little RAM for it")
    }

    fn asked(&mut self) {
        let Some(Present { number, disk, asked }) = &mut self.present else { return };
        let bit = 1 << *number;
        if *asked || in_word(ASKED) & bit == 0 {
            return;
        }
        out_word(ASKED, bit);
        let state = if self.work.keeps { VisitorState::Refused } else { VisitorState::Asked };
        report(&Event::Visitor { state, device: *number, seq: 0, bad: 0 });
        if !self.work.keeps {
            *asked = true;
            disk.stop();
        }
    }

    fn let_go(&mut self) {
        let Some(Present { number, disk, asked: true }) = &self.present else { return };
        if disk.is_stopped() {
            disk.reset();
            report(&Event::Visitor { state: VisitorState::LetGo, device: *number, seq: 0, bad: 0 });
            out_word(EJECT, 1 << *number);
            self.present = None;
        }
    }

    /// Submits nothing new from now on.
    pub(crate) fn stop(&mut self) {
        if let Some(present) = &mut self.present {
            present.disk.stop();
        }
    }

    /// Whether everything has come to its end after [`stop`](Self::stop).
    pub(crate) fn is_stopped(&self) -> bool {
        self.present.as_ref().is_none_or(|present| present.disk.is_stopped())
    }

    /// When to poll next, if no interrupt comes first.
    pub(crate) fn wake_us(&self) -> u64 {
        self.present.as_ref().map_or(u64::MAX, |present| present.disk.wake_us()).min(self.look_us)
    }

    /// Asks for an interrupt with the next completion; `false` if there is one to take already.
    pub(crate) fn may_sleep(&mut self) -> bool {
        self.present.as_mut().is_none_or(|present| present.disk.may_sleep())
    }
}

fn disks() -> impl Iterator<Item = u32> {
    (0..pci::DEVICES).filter(|number| pci::kind(*number) == Some(BLOCK))
}
