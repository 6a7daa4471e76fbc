//! Guests that fail, in real machines: each ends with an event that says how, and nothing hangs.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bare;
mod silence;

use std::{sync::mpsc::channel, time::Duration};

use bare::kernel;
use drover_machine::{EventSink, Hypervisor, MachineConfig, MachineEvent, Ownership, Planned, ResetAction};
use drover_test_prerequisites::kvm;
use drover_units::{Bytes, VcpuCount};
use silence::Silence;

const LIMIT: Duration = Duration::from_secs(20);

/// Runs the code until the machine ends.
fn check(code: &[u8], expect: fn(&MachineEvent) -> bool) {
    let (_file, kernel) = kernel(code);
    let (sender, events) = channel();
    let config =
        MachineConfig { on_reset: ResetAction::End, ..MachineConfig::new(VcpuCount::new(2), Bytes::mib(2)) };
    let (machine, paused) = Planned::new(config)
        .unwrap()
        .allocate_memory()
        .unwrap()
        .open_volumes(Vec::new(), Ownership::Later)
        .unwrap()
        .attach_devices(&Hypervisor::open().unwrap(), Box::new(Silence), EventSink::channel(sender))
        .unwrap()
        .boot(&kernel)
        .unwrap();
    paused.resume().unwrap();
    let event = events.recv_timeout(LIMIT).unwrap();
    assert!(expect(&event), "{event:?}");
    assert_eq!(machine.ended().as_ref(), Some(&event));
    machine.stop(LIMIT).unwrap();
}

#[test]
fn a_triple_fault_ends_the_machine() {
    if !kvm() {
        return;
    }
    // lidt [0x100800] (an empty table, since RAM is zero there); ud2
    let code = [0x0f, 0x01, 0x1d, 0x00, 0x08, 0x10, 0x00, 0x0f, 0x0b];
    check(&code, |event| matches!(event, MachineEvent::Fault(what) if what.starts_with("vCPU 0: ")));
}

#[test]
fn a_reset_by_the_keyboard_controller_ends_the_machine() {
    if !kvm() {
        return;
    }
    // mov al, 0xfe; out 0x64, al; hlt
    check(&[0xb0, 0xfe, 0xe6, 0x64, 0xf4], |event| *event == MachineEvent::GuestReset);
}

#[test]
fn a_guest_that_runs_into_nothing_does_not_hang_the_machine() {
    if !kvm() {
        return;
    }
    // mov eax, 0xc0000000; jmp eax: no RAM, no device.
    let code = [0xb8, 0x00, 0x00, 0x00, 0xc0, 0xff, 0xe0];
    check(&code, |event| matches!(event, MachineEvent::Fault(_)));
}

#[test]
fn hostile_accesses_to_ports_and_addresses_read_as_ones_and_write_nothing() {
    if !kvm() {
        return;
    }
    let code = [
        0x66, 0xba, 0xff, 0xff, // mov dx, 0xffff
        0xed, // in eax, dx: across the end of the space
        0xef, // out dx, eax
        0x66, 0xba, 0xfe, 0x03, // mov dx, 0x3fe
        0xed, // in eax, dx: across the end of the serial port
        0xef, // out dx, eax
        0xa1, 0xfe, 0xff, 0xff, 0xcf, // mov eax, [0xcffffffe]: across the start of the first window
        0xa3, 0x00, 0x00, 0x00, 0xd0, // mov [0xd0000000], eax: no device there
        0xb0, 0xfe, 0xe6, 0x64, 0xf4, // reset
    ];
    check(&code, |event| *event == MachineEvent::GuestReset);
}
