//! The VM's virtio devices beside its disks: from its configuration to what the machine is given.

use std::sync::Arc;

use crate::{
    files::Files,
    hosted::NicInstrument,
    order::{NicConfig, VmConfig},
    refused::{Refused, chain},
};
use drover_machine::{
    NewDevice,
    devices::{NetConfig, NetMetrics, NetPort, Throttle, VirtioKind, VirtioNet},
};

/// Every device that the configuration asks for, in an order that depends on nothing else: the slots of those without a
/// wish follow from it. One line per kind; what a kind needs from the host is opened where its line points.
pub(crate) fn from_config(
    config: &VmConfig,
    files: &Files,
) -> Result<(Vec<NewDevice>, Vec<NicInstrument>), Refused> {
    let mut devices = Vec::new();
    let mut instruments = Vec::new();
    for (n, nic) in config.nics.iter().enumerate() {
        let (device, instrument) = interface(n, nic, files)?;
        devices.push(device);
        instruments.push(instrument);
    }
    Ok((devices, instruments))
}

/// Opens the interface's tap. The MAC address is what the guest knows it by, wherever it moves.
fn interface(n: usize, nic: &NicConfig, files: &Files) -> Result<(NewDevice, NicInstrument), Refused> {
    let refused = |error: &dyn std::error::Error| {
        Refused::Precondition(format!("config.nics[{n}].tap: {}", chain(error)))
    };
    let taps = files.tap(&nic.tap, nic.pairs).map_err(|error| refused(&error))?;
    let offloads = match taps.first() {
        Some(tap) => tap.probe_offloads().map_err(|error| refused(&error))?,
        None => return Err(Refused::Failed("an interface has at least one pair of queues".to_owned())),
    };
    let metrics = Arc::<NetMetrics>::default();
    let throttle = Arc::<Throttle>::default();
    throttle.set_limits(nic.limits);
    let instrument =
        NicInstrument { mac: nic.mac, metrics: Arc::clone(&metrics), throttle: Arc::clone(&throttle) };
    let (mac, mtu) = (nic.mac, nic.mtu);
    let device = NewDevice::new(VirtioKind::Net, move |context| {
        let ports = taps.into_iter().map(|tap| Box::new(tap) as Box<dyn NetPort>).collect();
        let (name, events) = (context.name, context.events);
        let config = NetConfig { name, mac, mtu, ports, offloads, metrics, throttle, events };
        VirtioNet::new(config).map_err(Into::into)
    });
    Ok((device.with_identity(mac.to_string()), instrument))
}
