//! A machine's state: one envelope per part.

use drover_devices::{Device, Saved};
use drover_hypervisor::{HypervisorError, TimeSample, VcpuState, VmState};
use drover_saved_state::{Envelope, PayloadReader, PayloadWriter, SavedState, StateError};

use crate::{MachineError, machine::Shared};

/// The hypervisor's part of a machine as an envelope's payload. What is in it is the hypervisor's business.
#[derive(Debug)]
struct VmPayload(Vec<u8>);

impl SavedState for VmPayload {
    const KIND: &'static str = "kvm-vm";
    const VERSION: u16 = 1;

    fn encode(&self, payload: &mut PayloadWriter) {
        payload.bytes(&self.0);
    }
    fn decode(_version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        payload.bytes("sections").map(|bytes| Self(bytes.to_vec()))
    }
}

/// A vCPU, likewise; the instance is its number.
#[derive(Debug)]
struct VcpuPayload(Vec<u8>);

impl SavedState for VcpuPayload {
    const KIND: &'static str = "kvm-vcpu";
    const VERSION: u16 = 1;

    fn encode(&self, payload: &mut PayloadWriter) {
        payload.bytes(&self.0);
    }
    fn decode(_version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        payload.bytes("sections").map(|bytes| Self(bytes.to_vec()))
    }
}

/// Saves everything. The machine is frozen.
pub(crate) fn save(shared: &Shared) -> Result<Vec<Envelope>, MachineError> {
    let vm = shared.vm.save()?;
    let mut envelopes = vec![VmPayload(vm.to_bytes()).to_envelope(0)];
    for (number, vcpu) in shared.vcpus() {
        let state = vcpu.save(vm.time())?;
        envelopes.push(VcpuPayload(state.to_bytes()).to_envelope(number));
    }
    for device in shared.devices.all() {
        match device.save() {
            Saved::State(envelope) => envelopes.push(envelope),
            Saved::Stateless => {}
            Saved::NotMigratable(reason) => {
                return Err(device_error(device.as_ref(), "be saved", reason.into()));
            }
        }
    }
    Ok(envelopes)
}

/// Puts every envelope where it belongs. The machine is frozen and has never run.
pub(crate) fn restore(shared: &Shared, envelopes: &[Envelope]) -> Result<(), MachineError> {
    let mut rest: Vec<&Envelope> = envelopes.iter().collect();
    let now = TimeSample::now();

    let envelope = take(&mut rest, VmPayload::KIND, 0)?;
    let VmPayload(bytes) = decode(envelope)?;
    let vm = VmState::from_bytes(&bytes).map_err(HypervisorError::from)?;
    for (number, mut vcpu) in shared.vcpus() {
        let VcpuPayload(bytes) = decode(take(&mut rest, VcpuPayload::KIND, number)?)?;
        let state = VcpuState::from_bytes(&bytes).map_err(HypervisorError::from)?;
        vcpu.restore(&state, &vm, &now)?;
    }
    // After the vCPUs: their local APICs must be there when the I/O APIC has something to deliver.
    shared.vm.restore(&vm, &now)?;

    for device in shared.devices.all() {
        // What a device of this kind would save names what it takes.
        if let Saved::State(own) = device.save() {
            let envelope = take(&mut rest, own.kind().as_str(), own.instance())?;
            device
                .restore(envelope)
                .map_err(|error| device_error(device.as_ref(), "take its state", Box::new(error)))?;
        }
    }
    rest.first().map_or(Ok(()), |envelope| {
        let kind = envelope.kind().as_str().to_owned();
        Err(MachineError::UnknownState { kind, instance: envelope.instance() })
    })
}

fn take<'a>(rest: &mut Vec<&'a Envelope>, kind: &str, instance: u16) -> Result<&'a Envelope, MachineError> {
    let found =
        rest.iter().position(|envelope| envelope.kind().as_str() == kind && envelope.instance() == instance);
    found
        .map(|index| rest.swap_remove(index))
        .ok_or_else(|| MachineError::MissingState { kind: kind.to_owned(), instance })
}

fn decode<S: SavedState>(envelope: &Envelope) -> Result<S, MachineError> {
    S::from_envelope(envelope).map_err(|source| MachineError::State {
        kind: S::KIND.to_owned(),
        instance: envelope.instance(),
        source,
    })
}

fn device_error(
    device: &dyn Device,
    attempt: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
) -> MachineError {
    MachineError::Device { device: device.name().to_owned(), attempt, source }
}
