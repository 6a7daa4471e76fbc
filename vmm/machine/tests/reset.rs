//! A guest that resets its machine finds a new one, and what outlives a reset.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bare;

use std::{
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use bare::kernel;
use drover_machine::{
    ConsoleSink, DeviceBus, EventSink, Hypervisor, KernelImage, Machine, MachineConfig, MachineEvent,
    Ownership, PauseGuard, Planned,
};
use drover_test_prerequisites::kvm;
use drover_units::{Bytes, VcpuCount};

const LIMIT: Duration = Duration::from_secs(60);

/// Counts its starts in the clock's memory and prints the count as a letter; prints X where RAM is not as new, and Y where
/// it runs on after its reset. Switches itself off at this count.
fn counting_guest(last: u8) -> Vec<u8> {
    vec![
        0xb0, 0x40, 0xe6, 0x70, // mov al, 0x40; out 0x70, al
        0xe4, 0x71, 0xfe, 0xc0, 0xe6, 0x71, // in al, 0x71; inc al; out 0x71, al
        0x88, 0xc3, 0x04, 0x40, // mov bl, al; add al, '@'
        0x66, 0xba, 0xf8, 0x03, 0xee, // mov dx, 0x3f8; out dx, al
        0x80, 0x3d, 0x00, 0x08, 0x10, 0x00, 0x00, // cmp byte [0x100800], 0
        0x75, 0x17, // jne bad
        0xc6, 0x05, 0x00, 0x08, 0x10, 0x00, 0x01, // mov byte [0x100800], 1
        0x80, 0xfb, last, // cmp bl, last
        0x74, 0x12, // je off
        0xb0, 0xfe, 0xe6, 0x64, // mov al, 0xfe; out 0x64, al
        0x66, 0xba, 0xf8, 0x03, 0xb0, b'Y', 0xee, // mov dx, 0x3f8; mov al, 'Y'; out dx, al
        0x66, 0xba, 0xf8, 0x03, 0xb0, b'X', 0xee, // bad: mov dx, 0x3f8; mov al, 'X'; out dx, al
        0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee,
        0xf4, // off: mov dx, 0x600; mov al, 0x34; out dx, al; hlt
    ]
}

#[derive(Clone, Debug, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl ConsoleSink for Screen {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().unwrap().extend(bytes);
    }
}

impl Screen {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

fn build(bus: DeviceBus, kernel: &KernelImage) -> (Machine, PauseGuard, Screen, Receiver<MachineEvent>) {
    let screen = Screen::default();
    let (sender, events) = channel();
    let config = MachineConfig { bus, ..MachineConfig::new(VcpuCount::new(2), Bytes::mib(2)) };
    let (machine, paused) = Planned::new(config)
        .unwrap()
        .allocate_memory()
        .unwrap()
        .open_volumes(Vec::new(), Ownership::Later)
        .unwrap()
        .attach_devices(&Hypervisor::open().unwrap(), Box::new(screen.clone()), EventSink::channel(sender))
        .unwrap()
        .boot(kernel)
        .unwrap();
    (machine, paused, screen, events)
}

#[test]
fn a_reset_starts_the_guest_anew_in_new_ram_and_keeps_the_clocks_memory() {
    if !kvm() {
        return;
    }
    for bus in [DeviceBus::VirtioMmio, DeviceBus::VirtioPci] {
        let (_file, kernel) = kernel(&counting_guest(3));
        let (machine, paused, screen, events) = build(bus, &kernel);
        paused.resume().unwrap();
        assert_eq!(events.recv_timeout(LIMIT), Ok(MachineEvent::GuestShutdown), "{}", screen.text());
        assert_eq!(screen.text(), "ABC");
        machine.stop(LIMIT).unwrap();
    }
}

#[test]
fn resets_and_pauses_do_not_get_in_each_others_way() {
    if !kvm() {
        return;
    }
    let (_file, kernel) = kernel(&counting_guest(20));
    let (machine, paused, screen, events) = build(DeviceBus::VirtioMmio, &kernel);
    machine.start_dirty_log().unwrap();
    paused.resume().unwrap();
    while machine.ended().is_none() {
        let paused = machine.pause(LIMIT).unwrap();
        // At every moment there is either a guest that has not reset or one that has not started.
        if machine.ended().is_none() {
            machine.save(&paused).unwrap();
        }
        machine.take_dirty().unwrap();
        paused.resume().unwrap();
    }
    assert_eq!(events.recv_timeout(LIMIT), Ok(MachineEvent::GuestShutdown), "{}", screen.text());
    assert_eq!(screen.text(), ('A'..='T').collect::<String>());
    machine.stop(LIMIT).unwrap();
}
