//! Machines with devices beside disks: each kind has its slot, on either bus, and its state finds it there again.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bare;
mod silence;

use std::{sync::mpsc::channel, time::Duration};

use bare::kernel;
use drover_machine::{
    BuildError, DeviceBus, DevicesReady, EventSink, Hypervisor, MachineConfig, MachineError, NewDevice,
    Ownership, Planned, Slot,
    devices::{RngConfig, VirtioKind, VirtioRng},
};
use drover_test_prerequisites::kvm;
use drover_units::{Bytes, VcpuCount};
use silence::Silence;

const LIMIT: Duration = Duration::from_secs(60);

fn rng() -> NewDevice {
    NewDevice::new(VirtioKind::Rng, |context| {
        let config = RngConfig { name: context.name, events: context.events };
        Ok(VirtioRng::new(config))
    })
}

fn machine(bus: DeviceBus, devices: Vec<NewDevice>) -> Result<DevicesReady, BuildError> {
    let config = MachineConfig { bus, ..MachineConfig::new(VcpuCount::new(1), Bytes::mib(2)) };
    let (sender, _events) = channel();
    Planned::new(config)?
        .allocate_memory()?
        .open_volumes(Vec::new(), Ownership::Later)?
        .with_devices(devices)
        .attach_devices(&Hypervisor::open()?, Box::new(Silence), EventSink::channel(sender))
}

#[test]
fn a_devices_state_goes_to_the_device_in_its_slot() {
    if !kvm() {
        return;
    }
    for bus in [DeviceBus::VirtioMmio, DeviceBus::VirtioPci] {
        let (_file, kernel) = kernel(&[0xf4]);
        let three = || vec![rng(), rng().in_slot(Slot::new(2)), rng().with_identity("third")];
        let (source, paused) = machine(bus, three()).unwrap().boot(&kernel).unwrap();
        let devices = source.virtio_devices();
        let shape: Vec<_> = devices
            .iter()
            .map(|device| {
                (device.kind, device.slot.number(), device.identity.as_str(), device.state.as_str())
            })
            .collect();
        let rng_at = |slot, identity| (VirtioKind::Rng, slot, identity, "virtio-rng");
        assert_eq!(shape, [rng_at(2, ""), rng_at(16, ""), rng_at(17, "third")]);
        let state = source.save(&paused).unwrap();

        let (target, held) = machine(bus, three()).unwrap().receive().unwrap();
        assert_eq!(target.virtio_devices(), source.virtio_devices());
        target.restore(&held, &state).unwrap();
        assert_eq!(target.save(&held).unwrap().len(), state.len());
        target.stop(LIMIT).unwrap();

        let (fewer, held) = machine(bus, vec![rng()]).unwrap().receive().unwrap();
        let error = fewer.restore(&held, &state).unwrap_err();
        assert!(matches!(error, MachineError::UnknownState { .. }), "{error}");
        fewer.stop(LIMIT).unwrap();
        let elsewhere = vec![rng(), rng(), rng()];
        let (elsewhere, held) = machine(bus, elsewhere).unwrap().receive().unwrap();
        let error = elsewhere.restore(&held, &state).unwrap_err();
        assert!(
            matches!(
                error,
                MachineError::MissingState { instance: 18 | 15, .. } | MachineError::UnknownState { .. }
            ),
            "{error}"
        );
        elsewhere.stop(LIMIT).unwrap();
        source.stop(LIMIT).unwrap();
    }
}

#[test]
fn a_machine_takes_as_many_devices_as_its_bus_has_slots() {
    if !kvm() {
        return;
    }
    let full = (0..Slot::count(DeviceBus::VirtioPci)).map(|_| rng()).collect();
    assert!(machine(DeviceBus::VirtioPci, full).is_ok());
    let more = (0..=Slot::count(DeviceBus::VirtioMmio)).map(|_| rng()).collect();
    let error = machine(DeviceBus::VirtioMmio, more).unwrap_err();
    assert!(matches!(error, BuildError::TooManyDevices { asked: 19, count: 18 }), "{error}");
}

#[test]
fn a_device_that_cannot_be_made_is_named() {
    if !kvm() {
        return;
    }
    let broken = NewDevice::new(VirtioKind::Net, |_| Err::<VirtioRng, _>("there is no tap".into()));
    let error = machine(DeviceBus::VirtioPci, vec![broken]).unwrap_err();
    assert_eq!(error.to_string(), "cannot make the net0");
}
