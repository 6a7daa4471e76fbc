//! Guests that fail, in real machines: each ends with an event that says how, and nothing hangs.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{io::Write as _, sync::mpsc::channel, time::Duration};

use drover_machine::{
    ConsoleSink, DeviceBus, EventSink, Hypervisor, KernelImage, MachineConfig, MachineEvent, Ownership,
    Planned,
};
use drover_test_prerequisites::kvm;
use drover_units::{Bytes, VcpuCount};

const LIMIT: Duration = Duration::from_secs(20);

/// Nobody listens.
#[derive(Debug)]
struct Silence;

impl ConsoleSink for Silence {
    fn write(&mut self, _bytes: &[u8]) {}
}

/// A PVH kernel with this code at 1 MiB, which is also where it is entered.
fn kernel(code: &[u8]) -> (tempfile::NamedTempFile, KernelImage) {
    const CODE_AT: u32 = 0x10_0000;
    const HEADERS: u64 = 64 + 2 * 56;
    let program_header = |kind: u32, offset: u64, address: u64, len: u64| {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend_from_slice(&7_u32.to_le_bytes());
        [offset, address, address, len, len, 4]
            .iter()
            .for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        bytes
    };
    // Name length, descriptor length, type (XEN_ELFNOTE_PHYS32_ENTRY), name, descriptor.
    let mut note: Vec<u8> = [4_u32, 4, 18].iter().flat_map(|word| word.to_le_bytes()).collect();
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&CODE_AT.to_le_bytes());

    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    [u64::from(CODE_AT), 64, 0].iter().for_each(|word| image.extend_from_slice(&word.to_le_bytes()));
    image.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    image.extend(program_header(1, HEADERS + note.len() as u64, CODE_AT.into(), code.len() as u64));
    image.extend(program_header(4, HEADERS, 0, note.len() as u64));
    image.extend(note);
    image.extend_from_slice(code);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&image).unwrap();
    let kernel = KernelImage::open(file.path()).unwrap();
    (file, kernel)
}

/// Runs the code until the machine ends.
fn check(code: &[u8], expect: fn(&MachineEvent) -> bool) {
    let (_file, mut kernel) = kernel(code);
    let (sender, events) = channel();
    let config = MachineConfig {
        vcpus: VcpuCount::new(2),
        memory: Bytes::mib(2),
        cmdline: String::new(),
        bus: DeviceBus::default(),
    };
    let (machine, paused) = Planned::new(config)
        .unwrap()
        .allocate_memory()
        .unwrap()
        .open_volumes(Vec::new(), Ownership::Later)
        .unwrap()
        .attach_devices(&Hypervisor::open().unwrap(), Box::new(Silence), EventSink::channel(sender))
        .unwrap()
        .boot(&mut kernel)
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
