//! Devices that come and go while a guest runs: a guest of a few instructions that looks at one place on its bus, and gives
//! back what it is asked for.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bare;

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use bare::kernel;
use drover_block::{Backend as _, MemoryImage, Owner};
use drover_ids::{NodeId, OwnerEpoch, VmId};
use drover_machine::{
    ConsoleSink, DeviceBus, Disk, EventSink, Hypervisor, Machine, MachineConfig, MachineError, NewDevice,
    Ownership, PauseGuard, Planned, Slot,
    devices::{RngConfig, VirtioKind, VirtioRng},
};
use drover_test_prerequisites::kvm;
use drover_units::{Bytes, VcpuCount};

const LIMIT: Duration = Duration::from_secs(60);
const SLOT: Slot = Slot::new(20);
/// The low byte of the vendor's number of every virtio device, and what is read where no device is.
const DEVICE: u8 = 0xf4;
const NOTHING: u8 = 0xff;

#[derive(Debug)]
struct Said(Sender<u8>);

impl ConsoleSink for Said {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let _ = self.0.send(*byte);
        }
    }
}

/// Says what it finds at the place of the slot, whenever that is something else than before. Lets go of what is asked back.
fn code() -> Vec<u8> {
    let place = 0x8000_0000_u32 | (u32::from(SLOT.number()) + 1) << 11;
    let mut code = vec![0x31, 0xdb]; // xor ebx, ebx
    code.extend([0x66, 0xba, 0xf8, 0x0c, 0xb8]); // again: mov dx, 0xcf8; mov eax, place
    code.extend(place.to_le_bytes());
    code.extend([0xef, 0x66, 0xba, 0xfc, 0x0c, 0xed]); // out dx, eax; mov dx, 0xcfc; in eax, dx
    code.extend([0x38, 0xd8, 0x74, 0x07, 0x88, 0xc3]); // cmp al, bl; je same; mov bl, al
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xee]); // mov dx, 0x3f8; out dx, al
    code.extend([0x66, 0xba, 0x14, 0x06, 0xed]); // same: mov dx, 0x614; in eax, dx
    code.extend([0x85, 0xc0, 0x74, 0x05]); // test eax, eax; jz next
    code.extend([0x66, 0xba, 0x18, 0x06, 0xef]); // mov dx, 0x618; out dx, eax
    code.extend([0xeb, 0xd6]); // next: jmp again
    code
}

fn machine(bus: DeviceBus) -> (Machine, PauseGuard, Receiver<u8>) {
    let config = MachineConfig { bus, ..MachineConfig::new(VcpuCount::new(1), Bytes::mib(2)) };
    let (said, hears) = channel();
    let (events, _) = channel();
    let (_file, kernel) = kernel(&code());
    let (machine, paused) = Planned::new(config)
        .unwrap()
        .allocate_memory()
        .unwrap()
        .open_volumes(Vec::new(), Ownership::Later)
        .unwrap()
        .attach_devices(&Hypervisor::open().unwrap(), Box::new(Said(said)), EventSink::channel(events))
        .unwrap()
        .boot(&kernel)
        .unwrap();
    (machine, paused, hears)
}

fn rng(slot: Slot) -> NewDevice {
    let rng = NewDevice::new(VirtioKind::Rng, |context| {
        let config = RngConfig { name: context.name, events: context.events };
        Ok(VirtioRng::new(config))
    });
    rng.in_slot(slot)
}

fn finds(hears: &Receiver<u8>, what: u8) {
    assert_eq!(hears.recv_timeout(LIMIT).expect("the guest looks"), what);
}

#[test]
fn a_guest_finds_what_is_attached_and_gives_back_what_it_is_asked_for() {
    if !kvm() {
        return;
    }
    let (machine, paused, hears) = machine(DeviceBus::VirtioPci);
    paused.resume().unwrap();
    finds(&hears, NOTHING);
    for _ in 0..2 {
        let paused = machine.pause(LIMIT).unwrap();
        assert_eq!(machine.attach_device(&paused, rng(SLOT)).unwrap(), SLOT);
        let error = machine.attach_device(&paused, rng(SLOT)).unwrap_err();
        assert!(matches!(error, MachineError::SlotNotFree(SLOT)), "{error}");
        assert_eq!(machine.virtio_devices().len(), 1);
        paused.resume().unwrap();
        finds(&hears, DEVICE);

        assert!(machine.panel().ask_back(SLOT));
        assert!(machine.panel().wait_let_go(SLOT, LIMIT));
        finds(&hears, NOTHING);
        let paused = machine.pause(LIMIT).unwrap();
        assert!(machine.detach_device(&paused, SLOT).unwrap());
        assert!(!machine.detach_device(&paused, SLOT).unwrap());
        assert!(machine.virtio_devices().is_empty());
        paused.resume().unwrap();
    }
    machine.stop(LIMIT).unwrap();
}

#[test]
fn a_disk_is_owned_while_it_is_attached_and_may_be_taken_by_force() {
    if !kvm() {
        return;
    }
    let owner = |epoch| Owner {
        vm: VmId::from_u128(1),
        node: NodeId::from_u128(2),
        epoch: OwnerEpoch::new(epoch),
        pid: 3,
    };
    let image = MemoryImage::new(Bytes::mib(1));
    let backend = Arc::new(image.open());
    backend.acquire(&owner(1)).unwrap();
    let (machine, paused, hears) = machine(DeviceBus::VirtioPci);
    let disk = Disk { id: "hot".to_owned(), backend: backend.clone(), queues: 2 };
    machine.attach_disk(&paused, disk, SLOT).unwrap();
    paused.resume().unwrap();
    finds(&hears, DEVICE);
    assert!(image.open().acquire(&owner(2)).is_err(), "it is the machine's");

    // What has come is part of what moves, and goes to a machine that has it in the same slot.
    let paused = machine.pause(LIMIT).unwrap();
    let state = machine.save(&paused).unwrap();
    let twin = |slot| {
        let config = MachineConfig {
            bus: DeviceBus::VirtioPci,
            ..MachineConfig::new(VcpuCount::new(1), Bytes::mib(2))
        };
        let disk = Disk { id: "hot".to_owned(), backend: Arc::new(image.open()), queues: 2 };
        let (said, _) = channel();
        let (events, _) = channel();
        Planned::new(config)
            .unwrap()
            .allocate_memory()
            .unwrap()
            .open_volumes(vec![disk], Ownership::Later)
            .unwrap()
            .with_disk_slots(vec![slot])
            .attach_devices(&Hypervisor::open().unwrap(), Box::new(Said(said)), EventSink::channel(events))
            .unwrap()
            .receive()
            .unwrap()
    };
    let (same, held) = twin(SLOT);
    assert_eq!(same.virtio_devices(), machine.virtio_devices());
    same.restore(&held, &state).unwrap();
    same.stop(LIMIT).unwrap();
    let (other, held) = twin(Slot::new(0));
    other.restore(&held, &state).unwrap_err();
    other.stop(LIMIT).unwrap();

    assert!(machine.detach_device(&paused, SLOT).unwrap());
    paused.resume().unwrap();
    finds(&hears, NOTHING);
    assert!(image.open().acquire(&owner(2)).is_err(), "it is the machine's until it is given up");
    machine.detached("hot").unwrap().give_up().unwrap();
    assert!(machine.detached("hot").is_none());
    image.open().acquire(&owner(2)).unwrap();
    machine.stop(LIMIT).unwrap();
}

#[test]
fn a_machine_without_pci_says_that_devices_neither_come_nor_go() {
    if !kvm() {
        return;
    }
    let (machine, paused, _hears) = machine(DeviceBus::VirtioMmio);
    let error = machine.attach_device(&paused, rng(SLOT)).unwrap_err();
    assert!(matches!(error, MachineError::NotHotPluggable), "{error}");
    assert!(!machine.panel().ask_back(SLOT));
    machine.stop(LIMIT).unwrap();
}
